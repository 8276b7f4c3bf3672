"""Judge functions by their results.

The attempt and the reference solution run on a few probes (small random inputs). If the results differ, they are
compared with the results of known mistakes, so that the verdict can name the mistake. An exception is compared in the
same way. If no mistake matches, the verdict describes the difference. Only results count, not the code. But the attempt
must not change its input tensors.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from klvae_edu.exercises.attempt import (
    Attempt,
    Blank,
    Local,
    OpenGap,
    Recipe,
    call,
    explain,
    kind,
    one_line,
    recipe,
    type_name,
)
from klvae_edu.exercises.exercise import Judge
from klvae_edu.exercises.judges.likeness import likeness

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
    through: Recipe = call,
) -> Judge:
    """Make a judge of functions that return one tensor, or a tuple of tensors named `outputs`.

    Args:
        reference: the reference solution.
        probes: arguments for the calls. Their results must differ between the reference and each of the mistakes.
        mistakes: tried in this order. They are recognised by their results, or by the exception on the first probe.
        inputs: names of the arguments, in their order.
        outputs: names of the results.
        gradients: names of the inputs with respect to which the gradient is checked, too.
        through: recipe (answer, *probe) -> results, for answers that are not called with the probe itself. Reference
            and mistakes then are functions of the probe, too: see `through_recipe`.
    """

    of_mistakes: dict[Callable[..., Any], list[Any]] = {}  # their results, computed when they are first needed

    def judge(attempt: Attempt) -> str | None:
        about = attempt.run(kind)
        if not about["callable"]:
            return f"expected the function itself, got its result or another object ({about['type']})"
        results = [_outcome(attempt, through, probe) for probe in probes]
        if isinstance(results[0], Exception):
            return name_error(results[0], mistakes, lambda code: code.run(call, *copy.deepcopy(probes[0])))
        right = Local(reference)
        expected = [_outcome(right, call, probe) for probe in probes]
        if same(results[0], results[0]) and not same(_outcome(attempt, through, probes[0], seed=1), results[0]):
            instead = ": use the argument `noise`" if "noise" in inputs else ""
            return (
                "the same input gave two different results, as with dropout, a new layer or something kept: "
                f"it draws random numbers where none are asked for{instead}"
            )
        if all(map(same, results, expected)):
            complaints = itertools.chain(
                (_judge_inputs(attempt, through, probe, inputs) for probe in probes),
                (_judge_gradients(attempt, right, through, probe, inputs, gradients) for probe in probes),
                (_judge_other_memory(attempt, right, through, probe) for probe in probes),
                (_judge_random_state(attempt, right, through, probe) for probe in probes),
            )
            return next(filter(None, complaints), None)
        for message, code in mistakes:
            if code not in of_mistakes:
                of_mistakes[code] = [_outcome(Local(code), call, probe) for probe in probes]
            if _agree(results, of_mistakes[code], expected):
                return message
        part = _first_wrong(results, expected)
        if part is not None:  # of several results
            for alone, (message, code) in itertools.product((True, False), mistakes):
                if _agree_in(part, results, of_mistakes[code], expected, alone):
                    return message
        found, right_ones = (values if part is None else [it[part] for it in values] for values in (results, expected))
        alike = _common_ratio(found, right_ones) or likeness(found, right_ones)
        if alike:
            return alike if part is None else f"{outputs[part]}: {alike}"
        wrong = [same(result, right) for result, right in zip(results, expected, strict=True)].index(False)
        return f"{_describe(results[wrong], expected[wrong], outputs)}{_given(probes[wrong], inputs)}"

    return judge


def through_recipe(through: Recipe, mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Turn answers into functions of the probe, as `judge_function` with this recipe expects its mistakes."""
    return [(message, partial(through, code)) for message, code in mistakes]


def judge_parts(parts: Mapping[str, Judge], given: Sequence[str] = ()) -> Judge:
    """Make a judge of classes that judges part by part. The skeleton contains the parts in `given`."""

    def judge(attempt: Attempt) -> str | None:
        about = attempt.run(kind)
        if not about["callable"]:
            return f"expected the class itself, got an object of type {about['type']}"
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
                if not blank and name not in given:
                    break  # something is written, and the first fault is named
        if set(parts) - set(given) <= set(blank):
            raise Blank
        if blank:
            raise OpenGap(", ".join(blank))
        return complaints[0] if complaints else None

    return judge


def name_error(error: Exception, mistakes: Sequence[Mistake], run: Callable[[Local], Any]) -> str:
    """Return the message of the mistake that raises the same exception in `run`, or else describe the exception."""
    for message, code in mistakes:
        try:
            run(Local(code))
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


def _outcome(attempt: Attempt, through: Recipe, probe: Probe, seed: int = 0) -> Any:
    """Return the result for a copy of the probe, or the exception that was raised."""
    try:
        return attempt.run(result_of, through, probe, seed)
    except (Blank, OpenGap):
        raise
    except Exception as error:
        return error


@recipe
def result_of(answer: Any, through: Recipe, probe: Probe, seed: int) -> Any:
    """Return the result for a copy of the probe."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also looks for other devices
    return through(answer, *copy.deepcopy(probe))


def _agree(results: Sequence[Any], wrong: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Compare results with a mistake's: on the first probe, and on every other where the attempt raises nothing.

    A mistake that is right on the first probe has to raise the same type where the attempt raises.
    """
    raises_too = same(wrong[0], expected[0])
    return same(results[0], wrong[0]) and all(
        not raises_too or _exception_type(a) == _exception_type(b) if isinstance(a, Exception) else same(a, b)
        for a, b in zip(results, wrong, strict=True)
    )


def _first_wrong(results: Sequence[Any], expected: Sequence[Any]) -> int | None:
    """Return the place of the first wrong one of several results; None if no several results are there."""
    pairs = [*zip(results, expected, strict=True)]
    if not all(isinstance(a, (tuple, list)) and isinstance(b, tuple) and len(a) == len(b) for a, b in pairs):
        return None
    return next((i for i in range(len(expected[0])) if not all(same(a[i], b[i]) for a, b in pairs)), None)


def _agree_in(part: int, results: Sequence[Any], wrong: Sequence[Any], expected: Sequence[Any], alone: bool) -> bool:
    """Compare one of several results, the first wrong one, with a mistake's; with `alone`, its others must be right."""
    if _first_wrong(wrong, expected) != part:
        return False
    rest_is_right = all(same(a[part + 1 :], b[part + 1 :]) for a, b in zip(wrong, expected, strict=True))
    return (rest_is_right or not alone) and all(same(a[part], b[part]) for a, b in zip(results, wrong, strict=True))


def _exception_type(result: Any) -> str:
    """Return the name of an exception's type, also where it is behind a `Raised`; empty for other results."""
    return one_line(result).partition(":")[0] if isinstance(result, Exception) else ""


@recipe
def traces_of(answer: Any, through: Recipe, probe: Probe) -> dict[str, Any]:
    """Call it, and return what it leaves: the arguments, and which of them require gradients."""
    arguments = copy.deepcopy(probe)
    through(answer, *arguments)
    return {
        "arguments": arguments,
        "require gradients": [isinstance(value, Tensor) and value.requires_grad for value in arguments],
    }


def _judge_inputs(attempt: Attempt, through: Recipe, probe: Probe, names: Sequence[str]) -> str | None:
    left = attempt.run(traces_of, through, probe)
    for name, before, after, requires in zip(names, probe, left["arguments"], left["require gradients"], strict=False):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            return (
                f"the values are right, but it changes its input {name}: "
                "work on a copy, without operations in place such as add_ or +="
            )
        if isinstance(before, Tensor) and before.requires_grad != requires:
            return f"the values are right, but it changes requires_grad of its input {name}"
    return None


@recipe
def sets_a_seed(answer: Any, through: Recipe, probe: Probe) -> bool:
    """Tell whether it leaves the same random state, whatever that was before. A new layer only moves it on."""
    states = []
    for seed in (0, 1):
        torch.default_generator.manual_seed(seed)
        through(answer, *copy.deepcopy(probe))
        states.append(torch.get_rng_state())
    return torch.equal(*states)


def _judge_random_state(attempt: Attempt, right: Attempt, through: Recipe, probe: Probe) -> str | None:
    if attempt.run(sets_a_seed, through, probe) and not right.run(sets_a_seed, call, probe):
        return "the values are right, but it changes the random state of the cells below: look for a manual_seed"
    return None


def _judge_other_memory(attempt: Attempt, right: Attempt, through: Recipe, probe: Probe) -> str | None:
    """Try the probe as a crop of a larger tensor, and in float64, as far as the reference takes them."""
    for kind_of_input, convert, advice in _OTHER_MEMORY:
        try:
            expected = right.run(converted, convert, call, probe)
        except Exception:
            continue
        try:
            found = attempt.run(converted, convert, through, probe)
        except Exception as error:
            return f"the values are right, but with an input {kind_of_input} {explain(error)}: {advice}"
        if not same(found, expected):
            return f"the values are right, but not those for an input {kind_of_input}: {advice}"
        types = [*zip(_types(found), _types(expected), strict=True)]
        if convert is in_float64 and _has_float32(probe):
            lower = next((a for a, b in types if b is torch.float64 != a), None)
            if lower is not None:
                return f"the values are right, but for an input {kind_of_input} the result is {lower}: {advice}"
    return None


def _has_float32(probe: Probe) -> bool:
    return any(isinstance(value, Tensor) and value.dtype is torch.float32 for value in probe)


def _types(result: Any) -> list[Any]:
    """List the data types of a tensor, or of several."""
    return [value.dtype for value in result] if isinstance(result, (tuple, list)) else [result.dtype]


@recipe
def converted(answer: Any, convert: Callable[[Tensor], Tensor], through: Recipe, probe: Probe) -> Any:
    """Return the result for a converted probe."""
    torch.default_generator.manual_seed(0)
    return through(answer, *(convert(value) if isinstance(value, Tensor) else value for value in probe))


@recipe
def crop_of_a_larger_one(x: Tensor) -> Tensor:
    """Copy values into the left half of a larger tensor: its rows do not follow each other in memory."""
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]] if x.ndim else x


@recipe
def in_float64(x: Tensor) -> Tensor:
    """Convert floating-point numbers to float64."""
    return x.double() if x.is_floating_point() else x


_OTHER_MEMORY = (
    ("that is a crop of a larger one", crop_of_a_larger_one, "use reshape or flatten, not view"),
    ("of float64", in_float64, "make new tensors with the dtype of the input, as torch.zeros_like does"),
)


_CUT = "look for detach, no_grad, .data, .item or a new torch.tensor"


def _judge_gradients(
    attempt: Attempt, right: Attempt, through: Recipe, probe: Probe, inputs: Sequence[str], names: Sequence[str]
) -> str | None:
    if not names:
        return None
    wrt = [inputs.index(name) for name in names]
    try:
        gradients = attempt.run(gradients_of, through, probe, wrt)
    except Exception as error:
        return f"the values are right, but with a gradient to follow {explain(error)}"
    expected = right.run(gradients_of, call, probe, wrt)
    found = [*zip(names, wrt, gradients, expected, strict=True)]
    for name, position, gradient, wanted in found:
        if wanted.isfinite().all() and not gradient.isfinite().all():
            at = float(probe[position][~gradient.isfinite()].flatten()[0])
            return (
                f"the values are right, but the gradient to {name} is not finite, for example where it is {at:.4g}: "
                "look for an overflow, or a division by zero"
            )
    cut = [name for name, _, gradient, wanted in found if not gradient.any() and wanted.any()]
    if cut:
        return f"the values are right, but no gradient reaches {' and '.join(cut)}: {_CUT}"
    wrong = [(name, gradient, wanted) for name, _, gradient, wanted in found if not same(gradient, wanted)]
    listed = " and ".join(name for name, _, _ in wrong)
    if wrong and all(same(gradient, wanted * (gradient != 0)) for _, gradient, wanted in wrong):
        return f"the values are right, but a part of the gradient to {listed} is cut: {_CUT}"
    return f"the values are right, but not the gradient with respect to {listed}: {_CUT}" if wrong else None


def weighted_sum(result: Any) -> Tensor:
    """Add up the results that have a gradient, with weights from 1 to 2: a scalar; 0 if there are none."""
    outputs = [value for value in (result if isinstance(result, (tuple, list)) else (result,)) if value.requires_grad]
    weighted = [value * torch.linspace(1, 2, value.numel()).view(value.shape) for value in outputs]
    return sum((value.sum() for value in weighted), torch.zeros(()))


@recipe
def gradients_of(answer: Any, through: Recipe, probe: Probe, wrt: Sequence[int]) -> list[Tensor]:
    """Return the gradients of a weighted sum of the results to the arguments at `wrt`; zeros where there is none."""
    leaves = {position: probe[position].clone().requires_grad_() for position in wrt}
    # Copies of the leaves, because autograd allows no in-place operation on a leaf itself.
    arguments = [leaves[i].clone() if i in leaves else copy.deepcopy(value) for i, value in enumerate(probe)]
    total = weighted_sum(through(answer, *arguments))
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves.values()]
    return list(torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True))


def _common_ratio(results: Sequence[Any], expected: Sequence[Any]) -> str | None:
    """Describe the factor by which all results differ from the expected values; None if there is no such factor."""
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (*results, *expected)):
        return None
    if any(result.shape != right.shape for result, right in zip(results, expected, strict=True)):
        return None
    ratio = float(results[0].double().sum() / expected[0].double().sum())
    scaled = (right.double() * ratio for right in expected)
    near = 1e-2  # of one: a small term more or less, and no factor
    if abs(ratio) > 1e-6 and abs(ratio - 1) > near and all(map(same, results, scaled)):
        return f"every value is {ratio:.3g} times what it should be: look for a factor or a sign"
    return None


def _describe(result: Any, expected: Any, outputs: Sequence[str]) -> str:
    """Describe how a wrong result differs. The caller appends the input."""
    if isinstance(result, Exception):
        return explain(result)
    if isinstance(expected, tuple):
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            got = f"{len(result)} values" if isinstance(result, (tuple, list)) else type_name(result)
            return f"expected {' and '.join(outputs)}, got {got}"
        wrong = next(i for i in range(len(expected)) if not same(result[i], expected[i]))
        return f"{outputs[wrong]}: {_describe(result[wrong], expected[wrong], outputs)}"
    if not isinstance(result, Tensor):
        return f"expected a Tensor, got {type_name(result)}"
    if result.shape != expected.shape:
        one = ", one number for all" if result.numel() == 1 < expected.numel() else ""
        return f"expected shape {tuple(expected.shape)}, got {tuple(result.shape)}{one}"
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
