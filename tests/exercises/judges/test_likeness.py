"""The likeness of wrong results to the right ones, and mistakes in one of several results."""

from __future__ import annotations

import pytest
import torch

from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe
from klvae_edu.exercises.judges.likeness import likeness

RIGHT = [probe((3, 4))[0].abs() + 0.1, probe((2, 5))[0].abs() + 0.1]


@pytest.mark.parametrize(
    ("change", "keyword"),
    [
        (lambda x: x[None], "the values are right, the shape is not: expected shape (3, 4), got (1, 3, 4)"),
        (lambda x: x.flip(1), "the right values in another order"),
        (lambda x: x.round(), "rounded to whole numbers"),
        (lambda x: x.floor(), "rounded down"),
        (lambda x: x.round(decimals=2), "rounded to the digit 2 behind the point"),
        (lambda x: x**2, "squared"),
        (lambda x: x.sqrt(), "under a root"),
        (lambda x: 1 / x, "upside down"),
        (lambda x: x.log(), "logarithms"),
        (lambda x: x + 2, "+2 is added to every value"),
        (lambda x: 1 / (1 / x + 0.5), "+0.5 is added in the denominator"),
        (lambda x: x / x.sum(), "another factor with other inputs"),
    ],
)
def test_what_was_done_to_the_right_values_is_told(change, keyword):
    assert keyword in likeness([change(x) for x in RIGHT], RIGHT)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.cumsum(1), lambda x: x[:1], lambda x: x.tolist(), lambda x: x * torch.nan, lambda x: x.long()],
)
def test_other_results_are_like_nothing(change):
    assert likeness([change(x) for x in RIGHT], RIGHT) is None


def both(x):
    return x.sum(1), x.std(1)


MISTAKES = Mistakes(
    {"a mean": lambda x: (x.mean(1), x.std(1)), "variances": lambda x: (x.sum(1), x.var(1))}.items(),
)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: (x.mean(1), x.var(1)), "a mean"),
        (lambda x: (x.sum(1), x.var(1)), "variances"),
        (lambda x: (x.sum(1) + 1, x.var(1)), "the sum: +1 is added to every value"),
    ],
)
def test_one_of_several_results_is_named_by_itself(answer, message):
    judge = judge_function(
        both, [probe((3, 4)), probe((2, 7))], MISTAKES, inputs=("x",), outputs=("the sum", "the rest")
    )
    assert Exercise("00.1", "t", "00", 1, 1, both, (), ("a", "b"), judge).run(answer).message == message
