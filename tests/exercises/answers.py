"""Helpers for the tests of all exercises: run an answer, and assert the verdict."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from klvae_edu.exercises import EXERCISES, Verdict

SOURCES = Path(__file__).parents[2] / "notebooks" / "source"


def imported(notebook):
    """Return the names that the cells of a notebook import."""
    file, names = SOURCES / f"{notebook}.py", {}
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    imports = [statement for statement in statements if isinstance(statement, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), file.name, "exec"), names)
    return names


RIGHT = {}  # right answers in other styles by exercise, of the test modules that are imported


def verdicts(id, answers):
    RIGHT[id] = answers
    return pytest.mark.parametrize("answer", answers, ids=[f"{id}-{answer.__name__}" for answer in answers])


def all_verdicts(answers):
    RIGHT.update(answers)
    return pytest.mark.parametrize(
        ("id", "answer"), [(id, answer) for id, of_id in answers.items() for answer in of_id]
    )


def mistakes(id, answers):
    return pytest.mark.parametrize(
        ("keyword", "answer"), answers, ids=[f"{id}-{answer.__name__}" for _, answer in answers]
    )


def assert_rejected(id, answer, keyword):
    verdict = EXERCISES[id].run(answer)
    assert verdict.attempted and not verdict.passed
    assert keyword in verdict.message and "\n" not in verdict.message


def assert_passes(id, answer):
    assert EXERCISES[id].run(answer) == Verdict(passed=True, attempted=True)


def assert_blank(id, answer):
    assert EXERCISES[id].run(answer) == Verdict(passed=False, attempted=False)
