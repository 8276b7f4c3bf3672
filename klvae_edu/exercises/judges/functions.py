"""Judge functions by their results.

The attempt and the reference solution run on a few probes (small random inputs). If the results differ, they are
compared with the results of known mistakes, so that the verdict can name the mistake. An exception is compared in the
same way. If no mistake matches, the verdict describes the difference. Only results count, not the code. But the attempt
must not change its input tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from klvae_edu.exercises.exercise import Blank, Judge, OpenGap, call, explain, one_line

Probe = tuple[Any, ...]  # the arguments of one call
_SHAPES_NAMED = 3  # in a message
Mistake = tuple[str, Callable[..., Any]]  # message, and code that makes the mistake


def judge_function(
    reference: Callable[..., Any],
    probes: Sequence[Probe],
    mistakes: Sequence[Mistake],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str] = ("the result",),
    gradients: Sequence[str] = (),
) -> Judge:
    """Make a judge of functions that return one tensor, or a tuple of tensors named `outputs`.

    Args:
        reference: the reference solution.
        probes: arguments for the calls. Their results must differ between the reference and each of the mistakes.
        mistakes: tried in this order. They are recognised by their results, or by the exception on the first probe.
        inputs: names of the arguments, in their order.
        outputs: names of the results.
        gradients: names of the inputs with respect to which the gradient is checked, too.
    """

    of_mistakes: dict[Callable[..., Any], list[Any]] = {}  # their results, computed when they are first needed

    def judge(attempt: Any) -> str | None:
        if not callable(attempt):
            return f"expected the function itself, got its result or another object ({type(attempt).__name__})"
        results = [_outcome(attempt, probe) for probe in probes]
        if isinstance(results[0], Exception):
            return name_error(results[0], mistakes, lambda code: call(code, *copy.deepcopy(probes[0])))
        expected = [_outcome(reference, probe) for probe in probes]
        if same(results[0], results[0]) and not same(_outcome(attempt, probes[0], seed=1), results[0]):
            instead = ": use the argument `noise`" if "noise" in inputs else ""
            return (
                f"the same input gave two different results: it draws random numbers where none are asked for{instead}"
            )
        if all(map(same, results, expected)):
            positions = {name: inputs.index(name) for name in gradients}
            return (
                _judge_inputs(attempt, probes, inputs)
                or _judge_other_memory(attempt, reference, probes[0])
                or next(filter(None, (_judge_gradients(attempt, reference, p, positions) for p in probes)), None)
            )
        for message, code in mistakes:
            if code not in of_mistakes:
                of_mistakes[code] = [_outcome(code, probe) for probe in probes]
            if _agree(results, of_mistakes[code], expected):
                return message
        ratio = _common_ratio(results, expected)
        if ratio is not None:
            return f"every value is {ratio:.3g} times what it should be: look for a factor or a sign"
        wrong = [same(result, right) for result, right in zip(results, expected, strict=True)].index(False)
        return f"{_describe(results[wrong], expected[wrong], outputs)}{_given(probes[wrong], inputs)}"

    return judge


def adapted(judge: Judge, adapt: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Judge:
    """Make a judge that applies `judge` to `adapt(attempt)`."""
    return lambda attempt: judge(adapt(attempt) if callable(attempt) else attempt)


def judge_parts(parts: Mapping[str, Judge], given: Sequence[str] = ()) -> Judge:
    """Make a judge of classes that judges part by part. The skeleton contains the parts in `given`."""

    def judge(attempt: Any) -> str | None:
        if not callable(attempt):
            return f"expected the class itself, got an object of type {type(attempt).__name__}"
        complaints, blank = [], []
        for name, judge_part in parts.items():
            try:
                complaint = judge_part(attempt)
            except (Blank, OpenGap):
                blank.append(name)
                continue
            except Exception as error:
                complaint = explain(error)
            if complaint:
                complaints.append(f"{name}: {complaint}")
        if set(parts) - set(given) <= set(blank):
            raise Blank
        if blank:
            raise OpenGap(", ".join(blank))
        return complaints[0] if complaints else None

    return judge


def name_error(error: Exception, mistakes: Sequence[Mistake], run: Callable[[Callable[..., Any]], Any]) -> str:
    """Return the message of the mistake that raises the same exception in `run`, or else describe the exception."""
    for message, code in mistakes:
        try:
            run(code)
        except Exception as other:
            if one_line(other) == one_line(error):
                return message
    return explain(error)


def probe(*shapes: tuple[int, ...], scale: float = 1.0) -> Probe:
    """Make normal tensors with mean 0.3, the same in every call. The mean keeps sums from cancelling."""
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return tuple(scale * torch.randn(shape, generator=generator) + 0.3 for shape in shapes)


def same(a: Any, b: Any) -> bool:
    """Tell whether two results are equal up to rounding in single precision."""
    if isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
        both = isinstance(a, (tuple, list)) and isinstance(b, (tuple, list))
        return both and len(a) == len(b) and all(map(same, a, b))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    if a.shape != b.shape or not a.is_floating_point() or not b.is_floating_point():
        return False
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    scale = float(b.nan_to_num(0.0, 0.0, 0.0).abs().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def _outcome(function: Callable[..., Any], probe: Probe, seed: int = 0) -> Any:
    """Return the result of the function on a copy of the probe, or the exception that it raised."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also looks for other devices
    try:
        return call(function, *copy.deepcopy(probe))
    except (Blank, OpenGap):
        raise
    except Exception as error:
        return error


def _agree(results: Sequence[Any], wrong: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Compare results with a mistake's: on the first probe, and on every other where the attempt raises nothing.

    A mistake that is right on the first probe has to raise the same type where the attempt raises.
    """
    raises_too = same(wrong[0], expected[0])
    return same(results[0], wrong[0]) and all(
        not raises_too or type(a) is type(b) if isinstance(a, Exception) else same(a, b)
        for a, b in zip(results, wrong, strict=True)
    )


def _judge_inputs(attempt: Callable[..., Any], probes: Sequence[Probe], names: Sequence[str]) -> str | None:
    for probe in probes:
        given = copy.deepcopy(probe)
        attempt(*given)
        for name, before, after in zip(names, probe, given, strict=False):
            if isinstance(before, Tensor) and not torch.equal(before, after):
                return (
                    f"the values are right, but it changes its input {name}: "
                    "work on a copy, without operations in place such as add_ or +="
                )
            if isinstance(before, Tensor) and before.requires_grad != after.requires_grad:
                return f"the values are right, but it changes requires_grad of its input {name}"
    return None


def _judge_other_memory(attempt: Callable[..., Any], reference: Callable[..., Any], probe: Probe) -> str | None:
    """Try the probe as a crop of a larger tensor, and in float64, as far as the reference takes them."""
    for kind, convert, advice in _OTHER_MEMORY:
        arguments = tuple(convert(value) if isinstance(value, Tensor) else value for value in probe)
        right = _outcome(reference, arguments)
        if isinstance(right, Exception):
            continue
        found = _outcome(attempt, arguments)
        if isinstance(found, Exception):
            return f"the values are right, but with an input {kind} {explain(found)}: {advice}"
        if not same(found, right):
            return f"the values are right, but not those for an input {kind}: {advice}"
    return None


def _crop_of_a_larger_one(x: Tensor) -> Tensor:
    """Copy values into the left half of a larger tensor: its rows do not follow each other in memory."""
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]] if x.ndim else x


_OTHER_MEMORY: tuple[tuple[str, Callable[[Tensor], Tensor], str], ...] = (
    ("that is a crop of a larger one", _crop_of_a_larger_one, "use reshape or flatten, not view"),
    (
        "of float64",
        lambda x: x.double() if x.is_floating_point() else x,
        "make new tensors with the dtype of the input, as torch.zeros_like does",
    ),
)


_CUT = "look for detach, no_grad, .data, .item or a new torch.tensor"


def _judge_gradients(
    attempt: Callable[..., Any],
    reference: Callable[..., Any],
    probe: Probe,
    wrt: Mapping[str, int],
) -> str | None:
    if not wrt:
        return None
    try:
        gradients = _gradients(attempt, probe, wrt)
    except Exception as error:
        return f"the values are right, but with a gradient to follow {explain(error)}"
    expected = _gradients(reference, probe, wrt)
    for name, gradient, right in zip(wrt, gradients, expected, strict=True):
        if right.isfinite().all() and not gradient.isfinite().all():
            at = float(probe[wrt[name]][~gradient.isfinite()].flatten()[0])
            return (
                f"the values are right, but the gradient to {name} is not finite, for example where it is {at:.4g}: "
                "look for an overflow, or a division by zero"
            )
    cut = [name for name, g, right in zip(wrt, gradients, expected, strict=True) if not g.any() and right.any()]
    if cut:
        return f"the values are right, but no gradient reaches {' and '.join(cut)}: {_CUT}"
    parts = [name for name, g, right in zip(wrt, gradients, expected, strict=True) if same(g, right * (g != 0))]
    wrong = [name for name, g, right in zip(wrt, gradients, expected, strict=True) if not same(g, right)]
    if wrong and set(wrong) <= set(parts):
        return f"the values are right, but a part of the gradient to {' and '.join(wrong)} is cut: {_CUT}"
    return f"the values are right, but not the gradient with respect to {' and '.join(wrong)}" if wrong else None


def weighted_sum(result: Any) -> Tensor:
    """Add up the results that have a gradient, with weights from 1 to 2: a scalar; 0 if there are none."""
    outputs = [value for value in (result if isinstance(result, (tuple, list)) else (result,)) if value.requires_grad]
    weighted = [value * torch.linspace(1, 2, value.numel()).view(value.shape) for value in outputs]
    return sum((value.sum() for value in weighted), torch.zeros(()))


def _gradients(function: Callable[..., Any], probe: Probe, wrt: Mapping[str, int]) -> list[Tensor]:
    """Return the gradient of a weighted sum of the results; zeros where there is none."""
    leaves = {position: probe[position].clone().requires_grad_() for position in wrt.values()}
    # Copies of the leaves, because autograd allows no in-place operation on a leaf itself.
    arguments = [leaves[i].clone() if i in leaves else copy.deepcopy(value) for i, value in enumerate(probe)]
    result = function(*arguments)
    total = weighted_sum(result)
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves.values()]
    return list(torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True))


def _common_ratio(results: Sequence[Any], expected: Sequence[Any]) -> float | None:
    """Return the factor by which all results differ from the expected values; None if there is no such factor."""
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (*results, *expected)):
        return None
    if any(result.shape != right.shape for result, right in zip(results, expected, strict=True)):
        return None
    ratio = float(results[0].double().sum() / expected[0].double().sum())
    scaled = (right.double() * ratio for right in expected)
    return ratio if abs(ratio) > 1e-6 and all(map(same, results, scaled)) else None


def _describe(result: Any, expected: Any, outputs: Sequence[str]) -> str:
    """Describe how a wrong result differs. The caller appends the input."""
    if isinstance(result, Exception):
        return explain(result)
    if isinstance(expected, tuple):
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            got = f"{len(result)} values" if isinstance(result, (tuple, list)) else type(result).__name__
            return f"expected {' and '.join(outputs)}, got {got}"
        wrong = next(i for i in range(len(expected)) if not same(result[i], expected[i]))
        return f"{outputs[wrong]}: {_describe(result[wrong], expected[wrong], outputs)}"
    if not isinstance(result, Tensor):
        return f"expected a Tensor, got {type(result).__name__}"
    if result.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(result.shape)}"
    if not result.is_floating_point():
        return f"expected floating-point numbers, got {result.dtype}"
    if not result.isfinite().all():
        what = "NaN, as from the logarithm or root of a negative number" if result.isnan().any() else "infinity"
        return f"the result contains {what}"
    difference = (result.double() - expected.double()).abs().flatten()
    worst = int(difference.argmax())
    found, right = float(result.flatten()[worst]), float(expected.flatten()[worst])
    return (
        "the shape is right, the values are not: where they differ most, "
        f"{right:.4g} was expected, and yours is {found:.4g}"
    )


def _given(probe: Probe, names: Sequence[str]) -> str:
    """Describe the input of a wrong result: the shapes of tensors, or the names and values of numbers."""
    shapes = [*dict.fromkeys(str(tuple(value.shape)) for value in probe if isinstance(value, Tensor))]
    if shapes:
        return f", for inputs of shape {', '.join(shapes[:_SHAPES_NAMED])}{', …' * (len(shapes) > _SHAPES_NAMED)}"
    named = zip(names, probe, strict=False)
    numbers = [f"{name} = {value:g}" for name, value in named if isinstance(value, (int, float))]
    return f", for {', '.join(numbers)}" if numbers else ""
