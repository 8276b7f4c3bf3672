"""Paths of the course's files, the repository in which it is published, and error handling for the tools."""

from __future__ import annotations

import functools
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

P = ParamSpec("P")


class CourseError(Exception):
    """An error in the course's files or in a tool's arguments. Its message is printed for the user."""


def command(main: Callable[P, int | None]) -> Callable[P, int]:
    """Decorate a tool's main function: a `CourseError` is printed, and the exit code is returned (None means 0)."""

    @functools.wraps(main)
    def run(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return main(*arguments, **options) or 0
        except CourseError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return run


@dataclass(frozen=True)
class Course:
    root: Path

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    def source(self, name: str) -> Path:
        return self.notebooks / "source" / f"{name}.py"

    def built(self, name: str, solved: bool) -> Path:
        return self.notebooks / ("solutions" if solved else "") / f"{name}.ipynb"

    def solutions(self, name: str) -> Path:
        return self.root / "klvae_edu" / "exercises" / "solutions" / f"nb{name[:2]}.py"

    @property
    def measurements(self) -> Path:
        return self.notebooks / "source" / "measured.json"

    def names(self) -> list[str]:
        """List the notebooks in order, such as "01_diagonal_gaussian": every name with a source or a built notebook."""
        files = [*self.notebooks.glob("source/[0-9][0-9]_*.py"), *self.notebooks.glob("[0-9][0-9]_*.ipynb")]
        return sorted({file.stem for file in files})

    def named(self, wanted: str) -> str:
        """Return the full name of the notebook "3", "03", "03_resnet_blocks" or "03_resnet_blocks.ipynb".

        Raises:
            CourseError: there is no such notebook. The message lists all of them.
        """
        names = self.names()
        stem = Path(wanted).stem
        for name in names:
            if stem == name or (stem.isdigit() and int(stem) == int(name[:2])):
                return name
        complaint = f"no notebook {wanted!r};" if wanted else "say which notebook;"
        raise CourseError(f"{complaint} there are: {', '.join(names) or 'none'}")

    @property
    def version(self) -> str:
        text = (self.root / "klvae_edu" / "_version.py").read_text(encoding="utf-8")
        return text.split('__version__ = "')[1].split('"')[0]

    def published(self) -> tuple[str, str] | None:
        """Return the repository ("owner/name", from pyproject.toml) and the version's tag; None if not published."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        repo = project["tool"]["klvae_edu"]["repo"]
        return (repo, f"v{self.version}") if repo else None


COURSE = Course(Path(__file__).resolve().parent.parent)
