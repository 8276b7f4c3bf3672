"""What passes does not break a later cell: each solved notebook runs whole with right answers in other styles."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import warnings

import matplotlib.pyplot as plt
import pytest
import torch

import klvae_edu.exercises
from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import SOURCES
from tools.markers import select

NOTEBOOKS = sorted({exercise.notebook for exercise in EXERCISES.values()})
OF_STREAMS = {"10.1"}  # its argument can be gone through once


def right_answers(notebook):
    """Return the right answers in the tests of a notebook's exercises, by id."""
    return importlib.import_module(f"tests.exercises.test_nb{notebook[:2]}").RIGHT


def is_one_by_one(id):
    """Tell whether an answer stands alone in a run. All functions of an exercise can be called in one run, in turn."""
    return inspect.isclass(EXERCISES[id].reference) or id in OF_STREAMS


def rounds():
    for notebook in NOTEBOOKS:
        answers = right_answers(notebook)
        count = max([1, *(len(answers[id]) for id in answers if is_one_by_one(id))])
        yield from ((notebook, number) for number in range(count))


def in_turn(answers):
    """Make a function that calls all of these functions with the same arguments, and returns what the first returns."""

    def answer(*arguments, **named):
        with torch.random.fork_rng(devices=()):
            for other in answers[1:]:
                state = torch.get_rng_state()
                other(*own(arguments), **own(named))
                torch.set_rng_state(state)
        return answers[0](*arguments, **named)

    return answer


def own(arguments):
    """Copy arguments, networks with their optimisers; those that are part of a graph cannot be copied."""
    try:
        return copy.deepcopy(arguments)
    except RuntimeError:
        return arguments


@pytest.mark.parametrize(("notebook", "number"), rounds())
def test_the_notebook_runs_whole(notebook, number, monkeypatch, tmp_path):
    answers = right_answers(notebook)

    def check(id, attempt):
        mine = answers.get(id) or [attempt]
        return mine[number % len(mine)] if is_one_by_one(id) else in_turn(mine)

    monkeypatch.setattr(klvae_edu.exercises, "check", check)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLVAE_EDU_QUIET", "1")
    file = SOURCES / f"{notebook}.py"
    code = compile(select(file.read_text(encoding="utf-8"), True, file.name), file.name, "exec")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=()):
        warnings.simplefilter("ignore")
        try:
            exec(code, {"__name__": "__main__"})
        finally:
            plt.close("all")
            torch.set_grad_enabled(True)
