"""Judging functions: values, memory, data types, gradients, and the caller's objects."""

from __future__ import annotations

import pytest
import torch

from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe
from klvae_edu.exercises.judges.numbers import judge_numbers


def total(x):
    return x.flatten(1).sum(1)


def swish(x):
    return x * torch.sigmoid(x)


def verdict(judge, answer):
    exercise = Exercise("00.1", "t", "00", 1, 1, total, (), ("a", "b"), judge)
    return exercise.run(answer)


TOTAL = judge_function(total, [probe((2, 3, 4))], [], inputs=("x",), gradients=("x",))
SWISH = judge_function(swish, [probe((3, 4)), (torch.tensor([[-200.0, 200.0]]),)], [], inputs=("x",), gradients=("x",))


def test_a_right_answer_passes():
    assert verdict(TOTAL, lambda x: torch.einsum("bcn->b", x)).passed
    assert verdict(SWISH, torch.nn.functional.silu).passed


def test_a_view_that_needs_contiguous_memory_is_told():
    message = verdict(TOTAL, lambda x: x.view(len(x), -1).sum(1)).message
    assert "with an input that is a crop of a larger one it raised RuntimeError: view size is not" in message
    assert message.endswith("use reshape or flatten, not view")


def test_a_tensor_of_another_type_is_told():
    message = verdict(TOTAL, lambda x: x.flatten(1) @ torch.ones(x[0].numel())).message
    assert "with an input of float64 it raised RuntimeError" in message
    assert message.endswith("make new tensors with the dtype of the input, as torch.zeros_like does")


def test_a_reference_that_takes_no_float64_asks_for_none():
    weights = torch.ones(12)
    judge = judge_function(lambda x: x.flatten(1) @ weights, [probe((2, 3, 4))], [], inputs=("x",))
    assert verdict(judge, lambda x: x.flatten(1) @ torch.ones(12)).passed


def test_a_gradient_that_is_nan_on_extreme_values_is_told():
    message = verdict(SWISH, lambda x: x / (1 + torch.exp(-x))).message
    assert message.startswith("the values are right, but the gradient to x is not finite, for example where it is -200")


def test_a_change_of_requires_grad_is_told():
    def answer(x):
        x.requires_grad_()
        return total(x)

    assert verdict(TOTAL, answer).message == "the values are right, but it changes requires_grad of its input x"


MISTAKES = Mistakes()


@MISTAKES("dims 1, 2 are fixed")
def fixed_dims(x):
    return x.sum((1, 2))


@MISTAKES("half of it")
def half(x):
    return total(x) / 2


NAMED = judge_function(total, [probe((2, 3, 4)), probe((5, 6))], MISTAKES, inputs=("x",))


def test_registered_mistakes_are_named():
    assert [code for _, code in MISTAKES] == [fixed_dims, half]
    assert verdict(NAMED, lambda x: x.sum(dim=(1, 2))).message == "dims 1, 2 are fixed"
    assert verdict(NAMED, lambda x: 0.5 * x.reshape(len(x), -1).sum(1)).message == "half of it"


def test_a_mistake_that_is_right_on_the_first_input_is_named_only_for_its_own_exception():
    def for_two_images(x):
        return torch.stack([x[0].sum(), x[1].sum()]) if len(x) == 2 else torch.zeros(2)[5]

    assert verdict(NAMED, for_two_images).message == "dims 1, 2 are fixed"  # the same type of exception

    def for_two_images_only(x):
        if len(x) != 2:
            raise ValueError("two images expected")
        return total(x)

    assert "two images expected" in verdict(NAMED, for_two_images_only).message


def recursive(x):
    return recursive(x)


def test_a_function_that_calls_itself_is_told_so():
    assert verdict(TOTAL, recursive).message.startswith("it calls itself without end")


def raising(x):
    y = x.flatten(1)
    return y.sum(7)


def test_the_line_that_raises_is_quoted():
    message = verdict(TOTAL, raising).message
    assert message.startswith("it raised IndexError") and message.endswith(", in the line `return y.sum(7)`")


def test_an_empty_tuple_is_an_attempt():
    assert verdict(TOTAL, lambda x: ()).attempted


def test_the_default_data_type_is_restored():
    verdict(TOTAL, lambda x: torch.set_default_dtype(torch.float64))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (lambda n: 2 * n, True),
        (lambda n: 2.0 * n, True),
        (lambda n: torch.tensor(2 * n), True),
        (lambda n: str(2 * n), False),
        (lambda n: [2 * n], False),
        (lambda n: torch.tensor([2 * n]), False),
    ],
)
def test_where_a_number_is_asked_a_number_is_taken(answer, passes):
    judge = judge_numbers(lambda n: 2 * n, [(3,), (5,)], [], given=lambda probe: str(probe))
    found = verdict(judge, answer)
    assert found.passed == passes
    assert passes or "expected one number" in found.message


def test_where_several_numbers_are_asked_any_sequence_is_taken_but_text():
    judge = judge_numbers(lambda n: (n, 2 * n), [(3,)], [], given=lambda probe: str(probe), asked="two numbers")
    for answer in (lambda n: [n, 2 * n], lambda n: torch.tensor([n, 2 * n])):
        assert verdict(judge, answer).passed
    assert "expected two numbers" in verdict(judge, lambda n: (str(n), str(2 * n))).message


def test_an_operation_that_pytorch_does_not_have_for_a_type_is_no_skeleton():
    assert "not implemented" in verdict(TOTAL, lambda x: x.long().softmax(0).sum((1, 2))).message


def test_a_result_with_a_gradient_where_none_is_asked_passes():
    judge = judge_function(total, [probe((2, 3, 4))], [], inputs=("x",))
    one = torch.ones((), requires_grad=True)
    assert verdict(judge, lambda x: one * total(x)).passed
