"""Gaps: a skeleton that is partly filled is told so."""

from __future__ import annotations

import ast

import pytest
import torch

from klvae_edu.exercises import EXERCISES
from klvae_edu.exercises.gaps import GAPS, first_open_gap, gap_lines
from tests.exercises.answers import SOURCES
from tools.markers import select


def skeletons():
    """Yield the id and the syntax tree of each skeleton in the notebooks."""
    for notebook in sorted({exercise.notebook for exercise in EXERCISES.values()}):
        file, written = SOURCES / f"{notebook}.py", {}
        for node in ast.parse(select(file.read_text(encoding="utf-8"), False, file.name)).body:
            match node:
                case ast.FunctionDef() | ast.ClassDef():
                    written[node.name] = node
                case ast.Assign(value=ast.Call(func=ast.Name("check"), args=[id, attempt])):
                    yield id.value, written[attempt.id]


def test_the_numbers_are_those_of_the_notebooks():
    assert {id: len(gap_lines(tree)) for id, tree in skeletons()} == GAPS


def test_an_ellipsis_in_an_index_or_a_type_is_no_gap():
    tree = ast.parse("def f(x: tuple[int, ...]):\n    y = x[..., 0]\n    a, b = ..., ...\n    ...\n    return y\n")
    assert gap_lines(tree) == [3, 4]


def untouched(mean, logvar, noise):
    std = ...  # noqa: F841
    return ...


def half_filled(mean, logvar, noise):
    std = torch.exp(0.5 * logvar)  # noqa: F841
    return ...


def without_gaps(mean, logvar, noise):
    raise NotImplementedError


@pytest.mark.parametrize(("answer", "line"), [(untouched, None), (half_filled, "return ..."), (without_gaps, None)])
def test_the_first_open_gap_is_named_where_others_are_filled(answer, line):
    assert first_open_gap(answer, "01.2") == line


def test_a_half_filled_skeleton_is_told_which_gap_is_open_and_an_untouched_one_nothing():
    verdict = EXERCISES["01.2"].run(half_filled)
    assert verdict.attempted and verdict.message == "a gap `...` is still open: return ..."
    for answer in (untouched, without_gaps):
        verdict = EXERCISES["01.2"].run(answer)
        assert not verdict.attempted and verdict.message == ""


def test_what_has_no_source_is_not_asked():
    assert first_open_gap(torch.exp, "01.2") is None
