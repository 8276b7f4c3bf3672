"""The teacher's guide follows the notebooks: sections, exercises and minutes."""

import re

import pytest

from klvae_edu.exercises import EXERCISES
from tools.course import COURSE

GUIDE = (COURSE.root / "docs" / "teaching.md").read_text(encoding="utf-8")
PARTS = {part[:2]: part for part in re.findall(r"^### (\d\d · .*?)(?=^##)", GUIDE, flags=re.MULTILINE | re.DOTALL)}


def sections(name):
    """Return the headings of a notebook's numbered sections, each with its exercises."""
    found = {}
    for line in COURSE.source(name).read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# ## (\d+\. .*)", line):
            found[heading[1]] = exercises = []
        if exercise := re.search(r"\{\{exercise ([\d.]+)\}\}", line):
            exercises.append(exercise[1])
    return found


def rows(number):
    """Read the guide's table for a notebook: section -> (exercises, minutes)."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PARTS[number].splitlines() if line[:1] == "|"]
    return {section: (re.findall(r"[\d.]+", asked), int(minutes)) for section, asked, minutes in cells[2:]}


def test_it_has_every_notebook():
    assert sorted(PARTS) == [name[:2] for name in COURSE.names()]


@pytest.mark.parametrize("name", COURSE.names())
class TestEachNotebook:
    def test_its_title_sections_and_exercises_are_the_notebooks(self, name):
        title = COURSE.source(name).read_text(encoding="utf-8").splitlines()[1].removeprefix("# # ")
        assert PARTS[name[:2]].splitlines()[0] == title
        table = {section: asked for section, (asked, _) in rows(name[:2]).items()}
        assert table.pop("Summary and self-check") == []
        assert table == sections(name)

    def test_a_section_takes_longer_than_its_exercises(self, name):
        for asked, minutes in rows(name[:2]).values():
            assert minutes >= 5 + 5 * (sum(EXERCISES[id].minutes for id in asked) // 5)

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
