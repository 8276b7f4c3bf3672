"""Macros in a notebook's text: what is written in one place and stands in many.

{{badge}}           opens the notebook on Colab, as it was at this version; nothing while the course is not published
{{budget}}          time and memory, as measured
{{exercise 01.2}}   an exercise's heading, difficulty and minutes, from the catalogue
{{solutions-link}}  leads to the solved notebook, and from there back
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
    from klvae_edu.exercises import EXERCISES  # here, so that a text without exercises builds without the package

    if number not in EXERCISES or not number.startswith(name[:2]):
        known = ", ".join(key for key in EXERCISES if key.startswith(name[:2]))
        raise CourseError(f"{name}: the catalogue has no exercise {number!r} for this notebook; it has: {known}")
    it = EXERCISES[number]
    return f"### Exercise {number}: {it.title}\n\nDifficulty {it.difficulty} of 5 · about {it.minutes} minutes"


def other_state(name: str, solved: bool) -> str:
    if solved:
        return f"[the notebook without solutions](../{name}.ipynb)"
    return f"[the solved notebook](solutions/{name}.ipynb)"


def expand(text: str, course: Course, name: str, solved: bool) -> str:
    """A text cell with its macros filled in.

    Raises:
        CourseError: an unknown macro; or a figure in a file of its own, which a notebook copied alone would lack.
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
                return other_state(name, solved)
        raise CourseError(f"{name}: unknown macro {match[0]}")

    if figure := re.search(r"""!\[[^\]]*\]\((?![a-z]+:)[^)]*\)|<img\b[^>]*src=["'](?![a-z]+:)[^>]*>""", text):
        raise CourseError(f"{name}: {figure[0]} lies in another file: draw it in a code cell, which stores it")
    text = re.sub(r"\{\{([^{}\\]*)\}\}", value, text)  # a backslash means LaTeX
    return re.sub(r"\n{3,}", "\n\n", text)  # where a macro gave nothing
