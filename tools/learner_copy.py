"""The learner's own copy of the course, in the folder work/ that git ignores.

Copies the notebooks, their solutions and figures. A notebook in which the learner has written is never overwritten;
one in which nobody has written follows the course when it is updated. Outputs do not count as written.

    python -m tools.learner_copy              bring work/ up to date
    python -m tools.learner_copy --fresh NN   a clean copy of one notebook, beside the learner's
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

from tools.course import COURSE, Course, CourseError

RECORD = ".handed-out.json"  # what was handed out last: a fingerprint for each file


def fingerprint(file: Path) -> str:
    """Of a notebook what its cells say (outputs and metadata change by looking at it), of other files the bytes."""
    content = file.read_bytes()
    if file.suffix == ".ipynb":
        try:
            cells = [[cell["cell_type"], "".join(cell["source"])] for cell in json.loads(content)["cells"]]
            content = json.dumps(cells).encode()
        except (ValueError, KeyError, TypeError):
            pass  # not a notebook any more: the learner's business
    return hashlib.sha256(content).hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy so that an interruption leaves no half a file behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def course_files(course: Course) -> list[Path]:
    """What is handed out, relative to the folder notebooks/."""
    files = [
        file for pattern in ("*.ipynb", "solutions/*.ipynb", "images/**/*") for file in course.notebooks.glob(pattern)
    ]
    return sorted(file.relative_to(course.notebooks) for file in files if file.is_file())


def read_record(work: Path) -> dict[str, str]:
    try:
        record = json.loads((work / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # then every file that differs from the course counts as the learner's
    return record if isinstance(record, dict) else {}


def write_record(work: Path, record: dict[str, str]) -> None:
    (work / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def update(course: Course, work: Path) -> None:
    """Hand out what is missing, refresh what is untouched, and say which newer notebooks there are."""
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
    """A clean copy of one notebook beside the learner's own; returns its path."""
    name = course.named(wanted)
    source, own = course.built(name, solved=False), work / f"{name}.ipynb"
    if not source.exists():
        raise CourseError(f"{name} has not been built: run make notebooks")
    endings = itertools.chain([".fresh"], (f".fresh-{number}" for number in itertools.count(2)))
    target = next(path for ending in endings if not (path := work / f"{name}{ending}.ipynb").exists())
    copy(source, target)
    record = read_record(work)
    if own.exists() and fingerprint(own) != record.get(own.name):
        record[own.name] = fingerprint(source)  # the newer one has been taken: stop offering it
        write_record(work, record)
    return target


def main(arguments: list[str] | None = None, course: Course = COURSE) -> int:
    parser = argparse.ArgumentParser(description="Bring the learner's copy of the course up to date.")
    parser.add_argument("--fresh", metavar="NN", help="write a clean copy of this notebook beside the learner's own")
    parser.add_argument("--to", metavar="FOLDER", type=Path, default=course.root / "work", help="default: work")
    options = parser.parse_args(arguments)
    try:
        if options.fresh is None:
            update(course, options.to)
            print(f"Your copy of the course: {options.to}")
        else:
            print(f"A clean copy: {fresh(course, options.to, options.fresh)}")
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
