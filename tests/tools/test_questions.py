"""Questions: the numbers depend only on seed and name, and the answers are right."""

import csv
import math

import pytest

from tools import questions

NOTEBOOKS = sorted({question.notebook for question in questions.QUESTIONS})


def answers(student, seed="a class"):
    return [float(answer) for _, answer in questions.sheet(seed, student, NOTEBOOKS)]


def test_there_is_a_question_for_every_notebook():
    from tools.course import COURSE

    assert [name[:2] for name in COURSE.names()] == NOTEBOOKS


def test_a_student_gets_the_same_sheet_again_and_another_one_with_another_name_or_seed():
    assert answers("anna") == answers("anna")
    different = [a != b for a, b in zip(answers("anna"), answers("ben"), strict=True)]
    assert sum(different) > len(different) / 2
    assert answers("anna") != answers("anna", "another class")


def test_leaving_out_a_notebook_leaves_the_other_questions_as_they_are():
    both, one = questions.sheet("s", "anna", ["01", "02"]), questions.sheet("s", "anna", ["02"])
    assert both[-1:] == one


@pytest.mark.parametrize("student", ["anna", "ben", "carl"])
def test_every_number_that_the_answer_needs_stands_in_the_text(student):
    for text, answer in questions.sheet("s", student, NOTEBOOKS):
        assert "{" not in text
        assert text.endswith("?")
        assert math.isfinite(float(answer))


@pytest.mark.parametrize(
    ("words", "numbers", "answer"),
    [
        ("numbers is the latent?", {"height": 256, "width": 256}, 4096),
        ("the sample", {"mean": 1.0, "logvar": 2 * math.log(3), "noise": 0.5}, 2.5),
        ("likelihood", {"mean": 1.0, "logvar": 0.0, "value": 2.0}, 0.5 * math.log(2 * math.pi) + 0.5),
        ("KL divergence", {"mean": 2.0, "logvar": 0.0}, 2.0),
        ("one mean", {"groups": 2, "channels": 6, "side": 4}, 48),
        ("ResNet block", {"before": 32, "after": 64}, 9 * (32 * 64 + 64 * 64) + 32 * 64 + 3 * 64 + 2 * (32 + 64)),
        ("attention", {"height": 4, "width": 8}, 1024),
        ("times fewer", {"height": 256, "width": 256, "f": 8, "channels": 4}, 48),
        ("What is the PSNR", {"error": 0.04}, 20),
        ("hinge", {"a": 0.5, "b": 2.0, "c": -3.0, "d": 0.0}, 0.5 * (0.25 + 0.5)),
        ("How many patches", {"side": 256}, 900),
        ("decay", {"decay": 0.99, "steps": 100}, 100 * 0.99**100),
        ("PSNR rise", {"factor": 10}, 10),
        ("kept in {bits} bits", {"height": 256, "width": 256, "bits": 8}, 4096),
        ("quantiser", {"codes": 1024, "height": 8, "width": 8}, 80),
        ("tokens", {"side": 512, "f": 8, "patch": 2}, 1024),
        ("AdamW", {"millions": 100, "each": 2.0, "batch": 4}, 9.6),
    ],
)
def test_the_answer_is_what_is_worked_out_by_hand(words, numbers, answer):
    (question,) = [question for question in questions.QUESTIONS if words in question.text]
    assert question.answer(**numbers) == pytest.approx(answer, rel=1e-6)


def test_the_command_writes_a_sheet_for_each_student_and_the_answers(tmp_path):
    questions.main(["2026", "anna", "ben", "--notebooks", "01", "02", "--to", str(tmp_path / "out")])
    assert (tmp_path / "out" / "ben.md").read_text(encoding="utf-8").startswith("# Questions for ben\n\n1. ")
    with (tmp_path / "out" / "answers.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["student"], row["question"]) for row in rows] == [(s, n) for s in ("anna", "ben") for n in "123"]
