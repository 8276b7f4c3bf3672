"""Grade the exercises in the notebooks of a class: `klvae grade`."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional


@dataclass(frozen=True)
class GradeOptions:
    """Run the notebooks of a class, each behind fences, check their exercises, and write a table of the results.

    Expected are folders FOLDER/STUDENT/ with notebooks, or files FOLDER/STUDENT.ipynb. If the table exists, it is
    continued: hand-ins that have not changed keep their rows. docs/teaching.md says what the fences stop.
    """

    folder: Positional[Path]  # folder of the students' notebooks
    out: Path = Path("grades.csv")  # table of results; beside it, the mistakes are counted in a second table
    seconds: float = 600.0  # time limit of a notebook in seconds; a cell gets a fifth of it
    gigabytes: float = 6.0  # memory limit of a process in gigabytes (Linux only)
    container: str = ""  # image with this package: each notebook runs in Docker or Podman, without a network


def run_grade(options: GradeOptions) -> int:
    """Run `klvae grade` and return the exit code: 1 when a notebook did not run."""
    from klvae_edu.grading import Limits, fences, grade, hand_ins
    from klvae_edu.grading.table import append_rows, read_table, rows_of, write_mistakes, write_table

    if options.seconds <= 0 or options.gigabytes <= 0:
        raise ValueError(f"expected limits above 0, got {options.seconds:g} s and {options.gigabytes:g} GB")
    files = [file for _, file in hand_ins(options.folder)]  # raises errors before an earlier table is overwritten
    earlier = read_table(options.out)
    for line in [] if options.container else fences.missing(fences.bwrap_works()):
        print(f"a fence is missing: {line}")

    kept = {file: rows for file in files if (rows := _unchanged(file, options.folder, earlier))}
    rows = [row for own in kept.values() for row in own]
    if kept:
        print(f"{options.out}: {len(kept)} of {len(files)} hand-ins have not changed and keep their grades")
    write_table(options.out, rows)
    with _signals_end_it():
        for grades in grade(options.folder, Limits(options.seconds, options.gigabytes, options.container), kept):
            new = rows_of(grades)
            append_rows(options.out, new)
            rows += new
            passed = sum(it.state == "passed" for it in grades)
            print(f"{grades[0].notebook}: {_summary(passed, grades)}", flush=True)
    rows.sort(key=lambda row: (row[0], row[1], row[2]))
    write_table(options.out, rows)
    mistakes = options.out.with_name(f"{options.out.stem}-mistakes.csv")
    write_mistakes(mistakes, rows)
    states = Counter(row[3] for row in rows)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    print(f"\n{options.out}: {states.total()} exercises: {counts}; {mistakes} counts the mistakes")
    return 1 if states["did not run"] else 0


def _summary(passed: int, grades: list[Any]) -> str:
    return f"{passed} of {len(grades)} passed" if grades[0].exercise else grades[0].message


def _unchanged(file: Path, folder: Path, earlier: dict[str, list[Any]]) -> list[Any] | None:
    """Return the earlier rows of a hand-in whose bytes are the same, unless something did not run."""
    from klvae_edu.grading.reading import Unreadable, as_text, read
    from klvae_edu.grading.table import cell

    try:
        hand_in = read(file, folder)
    except Unreadable:
        return None
    rows = earlier.get(f"{cell(as_text(file.relative_to(folder).as_posix()))} {hand_in.sha256}")
    return rows if rows and all(row[3] != "did not run" for row in rows) else None


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception: what was started is ended, and the table stays as it is."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
