"""The table of grades, written as it grows and continued where it stopped, and the count of a class's mistakes."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path

from klvae_edu.grading.judging import Grade
from klvae_edu.weights.files import atomic_write

_ENCODING = "utf-8-sig"  # Excel needs the byte-order mark
_COLUMNS = [field.name for field in fields(Grade)]
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # also the wide ones, which some spreadsheets read as such
_BLANK = re.compile(r"^[\s\x00-\x1f\x7f]+")
Row = list[str]


def read_table(path: Path) -> dict[str, list[Row]]:
    """Return the rows of an earlier table by the notebook's name and the digest of its bytes; empty if there is none.

    Raises:
        ValueError: the file is another kind of table.
    """
    if not path.exists():
        return {}
    rows = [*csv.reader(path.read_text(encoding=_ENCODING).splitlines())]
    if not rows or rows[0] != _COLUMNS:
        raise ValueError(f"{path}: expected a table of grades with the columns {', '.join(_COLUMNS)}, to continue it")
    found: dict[str, list[Row]] = {}
    for row in rows[1:]:
        if len(row) == len(_COLUMNS):  # a line that was being written when the grading was killed is shorter
            found.setdefault(f"{row[1]} {row[-1]}", []).append(row)
    return found


def rows_of(grades: Iterable[Grade]) -> list[Row]:
    """Return the rows of one hand-in."""
    return [[*map(cell, astuple(grade))] for grade in grades]


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write a whole table, in one step."""
    with atomic_write(path) as temporary, temporary.open("w", encoding=_ENCODING, newline="") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append the rows of one hand-in, so that they are on the disk when the next one begins."""
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def write_mistakes(path: Path, rows: Iterable[Row]) -> None:
    """Write how many hand-ins made each mistake, the most frequent one of an exercise first."""
    counts = Counter((exercise, message) for _, _, exercise, state, message, _ in rows if state == "not right yet")
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    with atomic_write(path) as temporary, temporary.open("w", encoding=_ENCODING, newline="") as file:
        table = csv.writer(file)
        table.writerow(["exercise", "hand-ins", "mistake"])
        table.writerows([exercise, count, message] for (exercise, message), count in ordered)


def cell(text: str) -> str:
    """Escape control characters, and quote a text that a spreadsheet would read as a formula."""
    begins = _BLANK.sub("", text)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{text}" if begins.startswith(_FORMULA) else text
