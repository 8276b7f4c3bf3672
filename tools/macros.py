"""Expand the macros in a notebook's text.

{{badge}}           link to this version of the notebook on Colab; empty while the course is not published
{{budget}}          measured time and memory
{{exercise 01.2}}   heading, difficulty and minutes of an exercise, from the catalogue
{{solutions-link}}  link to the solved notebook, or from there back to the learner's
"""

from __future__ import annotations

import json
import math
import re

from tools.course import Course, CourseError


def badge(course: Course, name: str, solved: bool) -> str:
    published = course.published()
    if published is None:
        return ""
    repo, tag = published
    path = course.built(name, solved).relative_to(course.root).as_posix()
    colab = "https://colab.research.google.com"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{repo}/blob/{tag}/{path})"


def budget(course: Course, name: str) -> str:
    measured = json.loads(course.measurements.read_text(encoding="utf-8")) if course.measurements.exists() else {}
    if name not in measured:
        raise CourseError(f"{name} has not been measured: run make measure NB={name[:2]}")
    seconds = 5 * math.ceil(measured[name]["seconds"] / 5)
    gigabytes = math.ceil(10 * measured[name]["gigabytes"]) / 10
    return f"Measured: about {seconds} s and {gigabytes} GB on 2 CPU cores"


def exercise(name: str, number: str) -> str:
    from klvae_edu.exercises import EXERCISES  # text without exercises is built without the package

    if number not in EXERCISES or not number.startswith(name[:2]):
        known = ", ".join(key for key in EXERCISES if key.startswith(name[:2]))
        raise CourseError(f"{name}: the catalogue has no exercise {number!r} for this notebook; it has: {known}")
    it = EXERCISES[number]
    return f"### Exercise {number}: {it.title}\n\nDifficulty {it.difficulty} of 5 · about {it.minutes} minutes"


def solutions_link(name: str, solved: bool) -> str:
    if solved:
        return f"[the notebook without solutions](../{name}.ipynb)"
    return f"[the solved notebook](solutions/{name}.ipynb)"


def expand(text: str, course: Course, name: str, solved: bool) -> str:
    """Expand the macros of a text cell.

    Raises:
        CourseError: an unknown macro; or a figure in a separate file, which a notebook copied alone would lack.
    """

    def value(match: re.Match[str]) -> str:
        match match[1].split():
            case ["badge"]:
                return badge(course, name, solved)
            case ["budget"]:
                return budget(course, name)
            case ["exercise", number]:
                return exercise(name, number)
            case ["solutions-link"]:
                return solutions_link(name, solved)
        raise CourseError(f"{name}: unknown macro {match[0]}")

    if figure := re.search(r"""!\[[^\]]*\]\((?![a-z]+:)[^)]*\)|<img\b[^>]*src=["'](?![a-z]+:)[^>]*>""", text):
        raise CourseError(f"{name}: {figure[0]} is a separate file: draw the figure in a code cell, which stores it")
    text = re.sub(r"\{\{([^{}\\]*)\}\}", value, text)  # braces with a backslash are LaTeX
    return re.sub(r"\n{3,}", "\n\n", text)  # an empty macro leaves blank lines
