"""Update the learner's copy of the course, in the folder work/ that git ignores.

Notebooks, solutions and figures are copied. A notebook that the learner has edited is never overwritten. One that
nobody has edited is replaced when the course has a newer one. Outputs do not count as edits.

    python -m tools.learner_copy              bring work/ up to date
    python -m tools.learner_copy --fresh NN   write a clean copy of one notebook next to the learner's
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from tools.course import COURSE, Course, CourseError, command

RECORD = ".handed-out.json"  # a fingerprint of each file when it was handed out last


def fingerprint(file: Path) -> str:
    """Hash a file: of a notebook the cells without outputs and metadata, of any other file the bytes."""
    content = file.read_bytes()
    if file.suffix == ".ipynb":
        try:
            cells = [[cell["cell_type"], "".join(cell["source"])] for cell in json.loads(content)["cells"]]
            content = json.dumps(cells).encode()
        except (ValueError, KeyError, TypeError):
            pass  # the learner has made something else of it
    return hashlib.sha256(content).hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy atomically: an interruption leaves no partial file under the name of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def course_files(course: Course) -> list[Path]:
    """List the files that are handed out, relative to the folder notebooks/."""
    files = [
        file for pattern in ("*.ipynb", "solutions/*.ipynb", "images/**/*") for file in course.notebooks.glob(pattern)
    ]
    return sorted(file.relative_to(course.notebooks) for file in files if file.is_file())


def read_record(work: Path) -> dict[str, str]:
    try:
        record = json.loads((work / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # every file that differs from the course counts as edited
    return record if isinstance(record, dict) else {}


def write_record(work: Path, record: dict[str, str]) -> None:
    (work / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def update(course: Course, work: Path) -> None:
    """Copy missing files, replace unedited ones, and print which edited ones have a newer version.

    Raises:
        CourseError: the course has no notebooks.
    """
    files = course_files(course)
    if not files:
        raise CourseError(f"no notebooks in {course.notebooks}")
    work.mkdir(parents=True, exist_ok=True)
    record = read_record(work)
    for file in files:
        source, target, key = course.notebooks / file, work / file, file.as_posix()
        new = fingerprint(source)
        mine = fingerprint(target) if target.exists() else None
        if mine is None or (mine == record.get(key) and mine != new):
            copy(source, target)
            record[key] = new
        elif mine == new:
            record[key] = new
        elif record.get(key) != new:
            print(f"{key}: yours is kept; the course has a newer one: {offer(file)}")
    write_record(work, record)


def offer(file: Path) -> str:
    if file.suffix == ".ipynb" and file.parent == Path():
        return f"make fresh NB={file.name[:2]}"
    return f"remove {file.as_posix()} from your copy to get it"


def fresh(course: Course, work: Path, wanted: str) -> Path:
    """Write a clean copy of one notebook next to the learner's own, and return its path.

    Raises:
        CourseError: there is no such notebook, or it has not been built.
    """
    name = course.named(wanted)
    source, own = course.built(name, solved=False), work / f"{name}.ipynb"
    if not source.exists():
        raise CourseError(f"{name} has not been built: run make notebooks")
    endings = itertools.chain([".fresh"], (f".fresh-{number}" for number in itertools.count(2)))
    target = next(path for ending in endings if not (path := work / f"{name}{ending}.ipynb").exists())
    copy(source, target)
    record = read_record(work)
    if own.exists() and fingerprint(own) != record.get(own.name):
        record[own.name] = fingerprint(source)  # the learner has the newer version: stop offering it
        write_record(work, record)
    return target


@command
def main(arguments: list[str] | None = None, course: Course = COURSE) -> None:
    parser = argparse.ArgumentParser(description="Bring the learner's copy of the course up to date.")
    parser.add_argument("--fresh", metavar="NN", help="write a clean copy of this notebook next to the learner's own")
    parser.add_argument("--to", metavar="FOLDER", type=Path, default=course.root / "work", help="default: work")
    options = parser.parse_args(arguments)
    if options.fresh is None:
        update(course, options.to)
        print(f"Your copy of the course: {options.to}")
    else:
        print(f"A clean copy: {fresh(course, options.to, options.fresh)}")


if __name__ == "__main__":
    sys.exit(main())
