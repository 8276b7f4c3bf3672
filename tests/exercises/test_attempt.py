"""The interface between judges and attempts: recipes and values go in, values or one of four signals come out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from klvae_edu.exercises.attempt import (
    Blank,
    Local,
    NothingReturned,
    Opaque,
    OpenGap,
    Raised,
    call,
    explain,
    kind,
    plain,
    type_name,
)
from klvae_edu.exercises.values import from_bytes, to_bytes


def half(x):
    return x / 2


def test_a_recipe_is_applied_to_the_answer():
    assert Local(half).run(call, 3.0) == 1.5


def test_results_have_no_graph():
    result = Local(half).run(call, torch.ones(2, requires_grad=True))
    assert not result.requires_grad and torch.equal(result, torch.full((2,), 0.5))


def test_the_kind_of_an_answer():
    class Layer(torch.nn.Module):
        pass

    assert Local(half).run(kind) == {
        "callable": True,
        "class": False,
        "module": False,
        "name": "half",
        "type": "function",
    }
    assert Local(Layer).run(kind)["module"] and Local(dict).run(kind)["class"] and not Local(3).run(kind)["callable"]


def unwritten(x):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "signal"),
    [
        (unwritten, Blank),
        (lambda x: ..., Blank),
        (lambda x: (x, ...), OpenGap),
        (lambda x: x + ..., OpenGap),
        (lambda x: None, NothingReturned),
        (lambda x: x / 0, Raised),
        (lambda x: exit(1), Raised),
    ],
)
def test_what_an_answer_can_signal(answer, signal):
    with pytest.raises(signal):
        Local(answer).run(call, 1)


def test_an_exception_is_told_with_the_line_of_the_answer():
    def wrong(x):
        return x.squash()

    with pytest.raises(Raised) as caught:
        Local(wrong).run(call, torch.ones(1))
    assert explain(caught.value) == (
        "it raised AttributeError: 'Tensor' object has no attribute 'squash', in the line `return x.squash()`"
    )


class TestValues:
    def test_pass_as_bytes(self):
        value = {
            "tensors": [torch.arange(6).view(2, 3).t(), torch.tensor(2.5, dtype=torch.bfloat16), torch.zeros(0, 4)],
            "numbers": (1, 2.5, float("inf"), True, None),
            "text": "σ² [list]",
            "dtype": torch.float16,
            "recipes": [call, partial(call, x=torch.ones(1))],
        }
        back = from_bytes(to_bytes(value))
        for found, given in zip(back["tensors"], value["tensors"], strict=True):
            assert found.dtype == given.dtype and torch.equal(found, given)
        assert back["recipes"][0] is call and torch.equal(back["recipes"][1].keywords["x"], torch.ones(1))
        assert {k: back[k] for k in ("numbers", "text", "dtype")} == {k: value[k] for k in ("numbers", "text", "dtype")}

    @pytest.mark.parametrize(
        ("result", "name"),
        [
            (np.ones(3), "ndarray"),
            (half, "function"),
            ({1: 2}, "dict"),
            (torch.ones(2, dtype=torch.complex64), "Tensor"),
            (torch.ones(2, device="meta"), "Tensor"),
        ],
    )
    def test_everything_else_is_known_by_its_type_only(self, result, name):
        for value in (plain(result), from_bytes(to_bytes(result))):
            assert isinstance(value, Opaque) and type_name(value) == name

    def test_a_number_of_numpy_is_a_number(self):
        assert plain(np.float32(0.5)) == 0.5

    @pytest.mark.parametrize("data", [b"", b"nonsense that is longer than a length", to_bytes([1, 2])[:-3]])
    def test_other_bytes_are_a_value_error(self, data):
        with pytest.raises(ValueError, match="expected values of an attempt"):
            from_bytes(data)

    def test_only_registered_functions_are_looked_up(self):
        text = b'["recipe", "os.system"]'
        with pytest.raises(ValueError, match="expected values of an attempt"):
            from_bytes(len(text).to_bytes(8, "little") + text + to_bytes(None)[12:])
