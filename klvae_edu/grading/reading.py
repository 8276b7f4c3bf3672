"""Hand-ins as students really send them: every entry of the folder, and the cells of a notebook in any format."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 50_000_000  # bytes of a notebook; its pictures are stored in it
_NOTEBOOK = re.compile(r"\.(ipynb(\.\w+)?|py|zip|rar|7z|tgz|tar\.gz)$", re.IGNORECASE)
_ARCHIVES = (".zip", ".rar", ".7z", ".tgz", ".gz")
_CELL_OF_A_SCRIPT = re.compile(r"^# (?:%%.*|In\[[\d ]*\]:)$", re.MULTILINE)  # jupytext's, and Jupyter's "Save as .py"


class Unreadable(ValueError):
    """A hand-in without a grade. The message is the reason."""


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook."""

    is_code: bool
    source: str


@dataclass(frozen=True)
class HandIn:
    """A hand-in as it was read."""

    sha256: str
    cells: list[Cell]
    damaged: int  # number of cells that are left out


def hand_ins(folder: Path) -> list[tuple[str, Path]]:
    """List (student, file) for every entry FOLDER/STUDENT/… and FOLDER/STUDENT.ipynb, whether it can be graded or not.

    A student's folder without a notebook is listed itself.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    entries = [path for path in entries if path.is_dir() or _NOTEBOOK.search(path.name) or path.is_symlink()]
    if not entries:
        raise ValueError(f"{folder}: expected a folder of handed-in notebooks, found none")
    found = []
    for entry in entries:
        inside = sorted(_notebooks_in(entry)) if entry.is_dir() and not entry.is_symlink() else []
        student = entry.name if entry.is_dir() else _NOTEBOOK.sub("", entry.name)
        found += [(as_text(student), path) for path in inside or [entry]]
    return found


def _notebooks_in(folder: Path) -> list[Path]:
    """List the notebooks in a student's folder, without the copies that Jupyter keeps (.ipynb_checkpoints)."""
    return [
        Path(root, name)
        for root, folders, names in os.walk(folder)
        if not (folders.sort() or any(part.startswith((".", "__")) for part in Path(root).relative_to(folder).parts))
        for name in names
        if _NOTEBOOK.search(name) and not name.startswith(".")
    ]


def as_text(name: str) -> str:
    """Return a file name as text; bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read(path: Path, folder: Path) -> HandIn:
    """Read a hand-in in the folder of a class.

    Raises:
        Unreadable: it cannot be graded; the message says why.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Unreadable("a link to elsewhere, not followed")
    if path.is_dir():
        kinds = Counter(Path(name).suffix.lower() or "no suffix" for _, _, names in os.walk(path) for name in names)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
        raise Unreadable(f"no notebook in this folder ({listed or 'it is empty'})")
    if path.suffix.lower() in _ARCHIVES:
        raise Unreadable("an archive: unpack it into a folder of the student")
    try:
        if path.stat().st_size > LARGEST:
            raise Unreadable(f"larger than {LARGEST // 10**6} MB, which no notebook of the course is")
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"it cannot be read ({error.strerror})") from None
    return HandIn(hashlib.sha256(data).hexdigest(), *_cells(data, path))


def _cells(data: bytes, path: Path) -> tuple[list[Cell], int]:
    """Return the cells of a notebook or of a script, whatever the file's suffix."""
    try:
        notebook = json.loads(data)
    except (ValueError, RecursionError):
        if path.suffix.lower() == ".py":
            return _cells_of_script(data.decode("utf-8", "replace")), 0
        raise Unreadable("this is not a notebook (damaged, or another kind of file)") from None
    listed = _listed(notebook)
    if listed is None:
        raise Unreadable("this is not a notebook (JSON without cells)")
    cells = [cell for cell in map(_cell, listed) if cell is not None]
    return cells, len(listed) - len(cells)


def _listed(notebook: Any) -> list[Any] | None:
    """Return the cells as stored: in format 4, or in the worksheets of format 3 and earlier."""
    if not isinstance(notebook, dict):
        return None
    if isinstance(notebook.get("cells"), list):
        return notebook["cells"]
    sheets = notebook.get("worksheets")
    if not isinstance(sheets, list):
        return None
    return [cell for sheet in sheets if isinstance(sheet, dict) for cell in sheet.get("cells") or []]


def _cell(stored: Any) -> Cell | None:
    """Read a cell; None if it is damaged."""
    if not isinstance(stored, dict):
        return None
    source = stored.get("source", stored.get("input"))
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    return Cell(stored.get("cell_type") == "code", source) if isinstance(source, str) else None


def _cells_of_script(text: str) -> list[Cell]:
    """Split a script at jupytext's or Jupyter's marks of cells."""
    starts = [0, *(match.start() for match in _CELL_OF_A_SCRIPT.finditer(text)), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(starts) if text[start:end].strip()]
    return [Cell(not part.startswith(("# %% [markdown]", "# %% [raw]")), part) for part in parts]
