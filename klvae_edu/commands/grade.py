"""`klvae grade`: the exercises of a class's handed-in notebooks, as a table."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class GradeOptions:
    """Run a class's notebooks, each in a process of its own, judge their exercises, and write a table of the results.

    Notebooks lie in FOLDER/STUDENT/ or are called FOLDER/STUDENT.ipynb. They are programs, and run with your rights:
    grade those of people you do not know in a container.
    """

    folder: Positional[Path]  # of the handed-in notebooks
    out: Path = Path("grades.csv")  # the table: student, notebook, exercise, state, message
    seconds: float = 600.0  # a notebook that takes longer is stopped
    gigabytes: float = 6.0  # of memory for each notebook, where the system can limit it (Linux)


def run_grade(options: GradeOptions) -> int:
    """`klvae grade`: 1 when something did not run."""
    from klvae_edu.exercises.grading import Grade, Limits, grade

    if options.seconds <= 0 or options.gigabytes <= 0:
        raise ValueError(f"expected limits above 0, got {options.seconds:g} s and {options.gigabytes:g} GB")
    states: Counter[str] = Counter()
    grades = grade(options.folder, Limits(options.seconds, options.gigabytes))
    first = next(grades)  # before the table of an earlier time is written over
    with options.out.open("w", encoding="utf-8-sig", newline="") as file:  # the mark at its start is for Excel
        table = csv.writer(file)
        table.writerow(field.name for field in fields(Grade))
        for of_one in itertools.chain([first], grades):
            table.writerows(map(_cell, astuple(it)) for it in of_one)
            file.flush()
            passed = sum(it.state == "passed" for it in of_one)
            print(f"{of_one[0].notebook}: {passed} of {len(of_one)} passed", flush=True)
            states.update(it.state for it in of_one)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    print(f"\n{options.out}: {states.total()} exercises: {counts}")
    return 1 if states["did not run"] else 0


def _cell(text: str) -> str:
    """So that a spreadsheet takes no name or message for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
