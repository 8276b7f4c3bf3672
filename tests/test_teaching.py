"""The teacher's guide follows the notebooks: sections, exercises and minutes."""

import re

import jupytext
import pytest

from klvae_edu.exercises import EXERCISES
from tests.notebooks.test_bounds import words
from tools.course import COURSE
from tools.questions import QUESTIONS

GUIDE = (COURSE.root / "docs" / "teaching.md").read_text(encoding="utf-8")
PARTS = {part[:2]: part for part in re.findall(r"^### (\d\d · .*?)(?=^##)", GUIDE, flags=re.MULTILINE | re.DOTALL)}


def planned(name):
    """Compute the guide's table for a notebook: section -> (exercises, minutes).

    The minutes are those of the exercises, reading at 150 words a minute, and ¾ of a minute for each code cell, in all
    rounded to 5.
    """
    parts = {}
    for cell in jupytext.read(COURSE.source(name), fmt="py:percent").cells:
        heading = (
            re.match(r"## (\d+\. .*|.*\(optional\)|Summary)", cell.source) if cell.cell_type == "markdown" else None
        )
        if heading:
            title = "Summary and self-check" if heading[1] == "Summary" else heading[1]
            asked, minutes = parts.setdefault(title, ([], [0.0]))
        if not parts:
            continue
        minutes[0] += len(words(cell.source)) / 150 if cell.cell_type == "markdown" else 0.75
        asked += re.findall(r"\{\{exercise ([\d.]+)\}\}", cell.source)
    return {
        title: (asked, max(5, 5 * round((minutes[0] + sum(EXERCISES[id].minutes for id in asked)) / 5)))
        for title, (asked, minutes) in parts.items()
    }


def rows(number):
    """Read the guide's table for a notebook: section -> (exercises, minutes)."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PARTS[number].splitlines() if line[:1] == "|"]
    return {section: (re.findall(r"[\d.]+", asked), int(minutes)) for section, asked, minutes in cells[2:-1]}


def together(number):
    """Read the last row of the guide's table for a notebook: the minutes of its main path."""
    (minutes,) = re.findall(r"\*\*Together\*\*, without the optional part \| \| (\d+) \|", PARTS[number])
    return int(minutes)


def test_it_has_every_notebook():
    assert sorted(PARTS) == [name[:2] for name in COURSE.names()]


@pytest.mark.parametrize("name", COURSE.names())
class TestEachNotebook:
    def test_its_title_sections_and_exercises_are_the_notebooks(self, name):
        title = COURSE.source(name).read_text(encoding="utf-8").splitlines()[1].removeprefix("# # ")
        assert PARTS[name[:2]].splitlines()[0] == title
        assert [*rows(name[:2])] == [*planned(name)]

    def test_its_minutes_are_computed_as_the_guide_says_and_add_up(self, name):
        assert rows(name[:2]) == planned(name)
        main_path = [minutes for section, (_, minutes) in rows(name[:2]).items() if "(optional)" not in section]
        assert together(name[:2]) == sum(main_path)

    def test_it_names_mistakes_in_existing_exercises_and_questions_to_discuss(self, name):
        part = PARTS[name[:2]]
        assert "**Goes wrong.**" in part
        assert part.count("?", part.index("**Discuss.**")) >= 2
        assert set(re.findall(r"\b\d\d\.\d\b", part)) <= {id for id in EXERCISES if id.startswith(name[:2])}


def test_the_limits_that_it_names_are_the_defaults_of_the_command():
    from dataclasses import fields

    from klvae_edu.commands.grade import GradeOptions

    defaults = {field.name: field.default for field in fields(GradeOptions)}
    assert f"--seconds {defaults['seconds']:g} and --gigabytes {defaults['gigabytes']:g}" in GUIDE


def class_minutes(name, at_home):
    """Compute the minutes of a class for a notebook, without the exercises for which `at_home(exercise)` holds."""
    main_path = [part for section, part in planned(name).items() if "(optional)" not in section]
    asked = [EXERCISES[id] for ids, _ in main_path for id in ids]
    return 1.5 * (sum(minutes for _, minutes in main_path) - sum(it.minutes for it in asked if at_home(it)))


def test_a_session_is_enough_for_a_notebook_as_the_guide_says():
    assert all(class_minutes(name, at_home=lambda _: True) <= 90 for name in COURSE.names())
    fitting = [name[:2] for name in COURSE.names() if class_minutes(name, lambda it: it.difficulty >= 3) <= 90]
    assert f"the others at home, {', '.join(fitting[:-1])} and {fitting[-1]} fit into 90 minutes" in GUIDE.replace(
        "\n  ", " "
    )


def test_the_minutes_of_the_lab_add_up():
    lab = GUIDE[GUIDE.index("## A lab of 90 minutes") : GUIDE.index("## Notebook by notebook")]
    assert sum(map(int, re.findall(r"^\| (\d+) \|", lab, flags=re.MULTILINE))) == 90


def test_the_exam_has_as_many_questions_and_minutes_as_the_guide_says():
    count = len(QUESTIONS)
    assert f"All notebooks together give {count} questions" in GUIDE
    assert f"an exam of {4 * count} minutes" in GUIDE
