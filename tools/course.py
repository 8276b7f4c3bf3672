"""Where the course lies: its sources, the notebooks built from them, and where it is published."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


class CourseError(Exception):
    """A mistake in the course's files, or in what was asked for; the message is for the person at the keyboard."""


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

    @property
    def measurements(self) -> Path:
        return self.notebooks / "source" / "measured.json"

    def names(self) -> list[str]:
        """The notebooks in their order, such as "01_diagonal_gaussian"; one with neither source nor copy is none."""
        files = [*self.notebooks.glob("source/[0-9][0-9]_*.py"), *self.notebooks.glob("[0-9][0-9]_*.ipynb")]
        return sorted({file.stem for file in files})

    def named(self, wanted: str) -> str:
        """The notebook somebody means by "3", "03", "03_resnet_blocks" or "03_resnet_blocks.ipynb"."""
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
        """GitHub repository ("owner/name", from [tool.klvae_edu] in pyproject.toml) and the version's tag, if set."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        repo = project["tool"]["klvae_edu"]["repo"]
        return (repo, f"v{self.version}") if repo else None


COURSE = Course(Path(__file__).resolve().parent.parent)
