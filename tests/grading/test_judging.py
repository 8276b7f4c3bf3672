"""Grading: a notebook's own claims have no effect, and no notebook stops the grading of the others."""

import csv
import json

import pytest
import torch

from klvae_edu.commands.grade import GradeOptions, run_grade
from klvae_edu.exercises import EXERCISES
from klvae_edu.grading import Limits, grade

RIGHT = """
import torch
from klvae_edu.exercises import check

def reparameterize(mean, logvar, noise):
    return mean + torch.exp(0.5 * logvar) * noise

reparameterize = check("01.2", reparameterize)
"""
WRONG = RIGHT.replace("0.5 * logvar", "logvar")
BLANK = """
from klvae_edu.exercises import check

def reparameterize(mean, logvar, noise):
    std = ...
    return ...

reparameterize = check("01.2", reparameterize)
"""

FORGED = """
import os
from klvae_edu.exercises.values import to_bytes
data = to_bytes({"exercise": "01.2", "state": "passed", "passed": True, "message": ""})
for number in range(1, 20):
    try:
        os.write(number, len(data).to_bytes(8, "little") + data)
    except OSError:
        pass
"""
OWN_CHECK = """
def check(id, attempt):
    print(f"{id} The reparameterised sample: passed")
    return attempt

check("01.2", lambda mean, logvar, noise: mean)
"""
PATCHED = """
import klvae_edu.exercises.exercise as framework
import klvae_edu.exercises.judges.functions as judging
framework.Exercise.run = framework.Exercise.verdict = lambda self, attempt: framework.Verdict(True, True)
judging.same = lambda a, b: True
import torch
torch.equal = torch.allclose = lambda *a, **b: True
"""
FINISHED = """
from klvae_edu.exercises import EXERCISES, check
check("01.2", EXERCISES["01.2"].reference)
"""

# The cells of each student's notebook.
HAND_INS = {
    "after trouble": [
        "1 / 0",
        "import sys\nsys.exit()",
        "for _ in range(2000):\n    print('x' * 100_000)",
        WRONG,
        RIGHT,
    ],
    "blank": [BLANK],
    "ends the process": [RIGHT, "import os\nos._exit(0)", "never reached"],
    "exits in an answer": [RIGHT.replace("return mean", "import os\n    os._exit(3)\n    return mean")],
    "fails": ["reparameterise = 1 / 0"],
    "forges": [FORGED, BLANK],
    "hands in the finished version": [FINISHED],
    "has a check of its own": [OWN_CHECK],
    "patches the judge": [PATCHED, WRONG],
    "takes all memory": ["import torch\nheap = torch.zeros(10**10) + 1", RIGHT],
}


def notebook(*cells, text="### Exercise 01.2"):
    cells = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    kernel = {"kernelspec": {"name": "a-kernel-nobody-has", "display_name": "?"}}
    return json.dumps({"cells": [{"cell_type": "markdown", "source": text}, *cells], "metadata": kernel})


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Grade a class of all these. Returns the exit code, and the rows of the table by student and exercise."""
    folder = tmp_path_factory.mktemp("the class")
    for student, cells in HAND_INS.items():
        (folder / student).mkdir()
        (folder / student / "01_diagonal_gaussian (2).ipynb").write_text(notebook(*cells))
    (folder / "damaged.ipynb").write_text("<<<<<<< HEAD")
    (folder / "=of another course.ipynb").write_text(notebook("1 + 1", text="Hello"))
    out = folder / "grades.csv"
    code = run_grade(GradeOptions(folder, out, gigabytes=3))
    with out.open(encoding="utf-8-sig", newline="") as file:
        rows = {(row["student"], row["exercise"]): row for row in csv.DictReader(file)}
    return code, rows


def result(graded, student, exercise="01.2"):
    row = graded[1][student, exercise]
    return row["state"], row["message"]


class TestWhatIsCredited:
    def test_a_right_answer_whatever_else_the_notebook_does_that_leaves_it_running(self, graded):
        assert result(graded, "after trouble") == ("passed", "")

    def test_an_answer_judged_before_the_notebook_ended_its_process(self, graded):
        assert result(graded, "ends the process") == ("passed", "")

    def test_an_answer_after_a_cell_that_wanted_more_memory_than_allowed(self, graded):
        assert result(graded, "takes all memory") == ("passed", "")
        assert "memory" in result(graded, "takes all memory", "01.1")[1]


class TestWhatIsNot:
    def test_a_wrong_answer_gets_the_notebooks_own_message_and_patching_the_package_does_not_help(self, graded):
        message = EXERCISES["01.2"].run(lambda mean, logvar, noise: mean + torch.exp(logvar) * noise).message
        assert result(graded, "patches the judge") == ("not right yet", message)

    @pytest.mark.parametrize("student", ["blank", "forges"])
    def test_a_skeleton_even_where_a_passed_line_is_written_to_every_open_file(self, graded, student):
        assert result(graded, student) == ("not attempted", "")

    def test_what_is_given_to_another_check_than_the_courses(self, graded):
        state, message = result(graded, "has a check of its own")
        assert state == "not attempted"
        assert 'check("01.2", …)' in message

    def test_the_finished_version_itself(self, graded):
        assert result(graded, "hands in the finished version") == ("not attempted", "this is the finished version")

    def test_what_comes_after_the_end_of_the_process_did_not_run(self, graded):
        state, message = result(graded, "ends the process", "01.1")
        assert state == "did not run"
        assert "ended its process" in message

    def test_where_no_check_was_reached_the_first_failure_is_told(self, graded):
        assert result(graded, "fails") == ("did not run", "code cell 1 failed (ZeroDivisionError: division by zero)")

    def test_an_answer_that_ends_its_process(self, graded):
        assert result(graded, "exits in an answer") == ("did not run", "it ends its process")


class TestACellThatNeverEnds:
    """It costs its own exercise: it is named, and the others are graded."""

    @pytest.mark.parametrize(
        "loop",
        ["while True: pass", "while True:\n        try: sum(range(1000))\n        except BaseException: pass"],
        ids=["interrupted", "killed"],
    )
    def test_in_an_answer(self, tmp_path, loop):
        answer = f"def split_parameters(parameters):\n    {loop}\n"
        answer = f"from klvae_edu.exercises import check\n{answer}\ncheck('01.1', split_parameters)"
        (tmp_path / "a.ipynb").write_text(notebook(answer, RIGHT))
        (grades,) = grade(tmp_path, Limits(seconds=30))
        by_exercise = {it.exercise: (it.state, it.message) for it in grades}
        assert by_exercise["01.1"] == ("did not run", "code cell 1 took longer than 6 s and was stopped")
        assert by_exercise["01.2"] == ("passed", "")

    def test_outside_of_any_exercise(self, tmp_path):
        (tmp_path / "a.ipynb").write_text(notebook("while True: pass", RIGHT))
        (grades,) = grade(tmp_path, Limits(seconds=20))
        assert {it.exercise: it.state for it in grades}["01.2"] == "passed"


class TestTheTable:
    def test_has_every_exercise_of_the_notebook_whatever_its_file_is_called(self, graded):
        wanted = [id for id in EXERCISES if id.startswith("01.")]
        for student in HAND_INS:
            assert [exercise for name, exercise in graded[1] if name == student] == wanted

    def test_names_what_is_no_notebook_of_the_course(self, graded):
        assert result(graded, "damaged", "") == (
            "did not run",
            "this is not a notebook (damaged, or another kind of file)",
        )
        state, message = result(graded, "'=of another course", "")
        assert (state, message) == ("did not run", "no exercise of the course is in it")

    def test_holds_no_formula_for_a_spreadsheet(self, graded):
        assert not any(value.startswith("=") for row in graded[1].values() for value in row.values())

    def test_the_command_says_by_its_code_that_something_did_not_run(self, graded):
        assert graded[0] == 1
