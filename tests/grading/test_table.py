"""The table of grades: it grows, goes on where it stopped, and holds nothing that a spreadsheet would compute."""

from __future__ import annotations

import csv
import json

import pytest

from klvae_edu.commands.grade import GradeOptions, run_grade
from klvae_edu.grading import Grade
from klvae_edu.grading.table import append_rows, cell, read_table, rows_of, write_mistakes, write_table

ANNA = [
    Grade("anna", "anna.ipynb", "01.1", "passed", "", "d1"),
    Grade("anna", "anna.ipynb", "01.2", "not right yet", "m", "d1"),
]
BEN = [Grade("ben", "ben.ipynb", "", "did not run", "an archive", "")]


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "grades.csv"
    write_table(path, rows_of(ANNA))
    append_rows(path, rows_of(BEN))
    assert read_table(path) == {"anna.ipynb d1": rows_of(ANNA), "ben.ipynb ": rows_of(BEN)}


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "grades.csv"
    write_table(path, rows_of(ANNA))
    path.write_bytes(path.read_bytes()[:-12])
    assert read_table(path) == {"anna.ipynb d1": rows_of(ANNA[:1])}


def test_another_file_is_never_overwritten(tmp_path):
    (tmp_path / "a.ipynb").write_text("{}")
    out = tmp_path / "notes.csv"
    out.write_text("my notes\n")
    with pytest.raises(ValueError, match="expected a table of grades with the columns student, notebook"):
        run_grade(GradeOptions(tmp_path, out))
    assert out.read_text() == "my notes\n"


def test_the_mistakes_of_a_class_are_counted_by_exercise_and_name(tmp_path):
    grades = [Grade(s, f"{s}.ipynb", "01.2", "not right yet", m) for s, m in (("a", "x"), ("b", "y"), ("c", "y"))]
    grades += [Grade("d", "d.ipynb", "01.1", "not right yet", "z"), Grade("e", "e.ipynb", "01.2", "passed")]
    write_mistakes(tmp_path / "m.csv", rows_of(grades))
    with (tmp_path / "m.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [*csv.reader(file)] == [
            ["exercise", "hand-ins", "mistake"],
            ["01.1", "1", "z"],
            ["01.2", "2", "y"],
            ["01.2", "1", "x"],
        ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "  =1", "\n\t =1", "＝1"])
def test_a_formula_is_quoted(text):
    assert cell(text).startswith("'")


@pytest.mark.parametrize(("text", "written"), [("a\tb\x1b[2J", "a\\tb\\x1b[2J"), ("σ² - 1", "σ² - 1")])
def test_control_characters_are_escaped(text, written):
    assert cell(text) == written


CODE = "from klvae_edu.exercises import check\ndef f(mean, logvar, noise):\n    return {}\ncheck('01.2', f)"


def hand_in(path, result):
    code = {"cell_type": "code", "source": CODE.format(result)}
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "01.1"}, code], "metadata": {}}))


def test_a_grading_goes_on_where_it_stopped_and_grades_anew_what_has_changed(tmp_path, capsys):
    folder, out = tmp_path / "class", tmp_path / "grades.csv"
    folder.mkdir()
    for student in ("anna", "ben"):
        hand_in(folder / f"{student}.ipynb", "mean")
    assert run_grade(GradeOptions(folder, out)) == 0
    first = out.read_bytes()
    capsys.readouterr()

    out.write_bytes(first.replace(b"not attempted", b"seen before"))  # would be replaced if it were graded again
    hand_in(folder / "ben.ipynb", "mean + (logvar / 2).exp() * noise")
    assert run_grade(GradeOptions(folder, out)) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 hand-ins have not changed" in printed and "ben.ipynb: 1 of 4 passed" in printed
    states = {(row[0], row[2]): row[3] for rows in read_table(out).values() for row in rows}
    assert states["anna", "01.1"] == "seen before" and states["ben", "01.2"] == "passed"
    mistakes = (tmp_path / "grades-mistakes.csv").read_text(encoding="utf-8-sig")
    assert mistakes.splitlines()[1].startswith("01.2,1,")
