"""Grade the exercises in the notebooks of a class: `klvae grade`."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class GradeOptions:
    """Run the notebooks of a class, each in its own process, check their exercises, and write a table of the results.

    Expected are folders FOLDER/STUDENT/ with notebooks, or files FOLDER/STUDENT.ipynb. Notebooks are programs that run
    with your rights. Use a container for notebooks of people that you do not know.
    """

    folder: Positional[Path]  # folder of the students' notebooks
    out: Path = Path("grades.csv")  # table of results: student, notebook, exercise, state, message
    seconds: float = 600.0  # time limit of a notebook in seconds
    gigabytes: float = 6.0  # memory limit of a notebook in gigabytes (Linux only)


def run_grade(options: GradeOptions) -> int:
    """Run `klvae grade` and return the exit code: 1 when a notebook did not run."""
    from klvae_edu.exercises.grading import Grade, Limits, grade

    if options.seconds <= 0 or options.gigabytes <= 0:
        raise ValueError(f"expected limits above 0, got {options.seconds:g} s and {options.gigabytes:g} GB")
    states: Counter[str] = Counter()
    grades = grade(options.folder, Limits(options.seconds, options.gigabytes))
    first = next(grades)  # raises errors before an earlier table is overwritten
    with options.out.open("w", encoding="utf-8-sig", newline="") as file:  # utf-8-sig: Excel needs the byte-order mark
        table = csv.writer(file)
        table.writerow(field.name for field in fields(Grade))
        for notebook in itertools.chain([first], grades):
            table.writerows(map(_cell, astuple(exercise)) for exercise in notebook)
            file.flush()
            passed = sum(exercise.state == "passed" for exercise in notebook)
            print(f"{notebook[0].notebook}: {passed} of {len(notebook)} passed", flush=True)
            states.update(exercise.state for exercise in notebook)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    print(f"\n{options.out}: {states.total()} exercises: {counts}")
    return 1 if states["did not run"] else 0


def _cell(text: str) -> str:
    """Quote a text that a spreadsheet would read as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
