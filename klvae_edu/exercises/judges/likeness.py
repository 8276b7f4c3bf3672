"""Describe how wrong results are like the right ones: in another shape or order, rounded, scaled, shifted, squared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]  # found and right, for each probe, of one shape, in float64

_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded to whole numbers: leave them as they are": torch.round,
    "rounded down to whole numbers: leave them as they are": torch.floor,
    "rounded up to whole numbers: leave them as they are": torch.ceil,
    **{f"rounded to the digit {n} behind the point: leave them": partial(torch.round, decimals=n) for n in range(1, 5)},
    "squared: a root is missing, or a square is too much": torch.square,
    "under a root: a square is missing, or a root is too much": torch.sqrt,
    "upside down: 1 divided by each is asked for": torch.reciprocal,
    "without their signs: look for an abs, or a root of a square": torch.abs,
    "put into exp: look for an exp too much, or a missing log": torch.exp,
    "logarithms: look for a log too much, or a missing exp": torch.log,
}


def likeness(found: Sequence[Any], right: Sequence[Any]) -> str | None:
    """Describe what turns the right result of every probe into the one found; None if nothing known does."""
    if not all(isinstance(value, Tensor) and value.is_floating_point() for value in (*found, *right)):
        return None
    pairs = [(a.double(), b.double()) for a, b in zip(found, right, strict=True)]
    if any(a.numel() != b.numel() or not a.numel() for a, b in pairs):
        return None
    if any(a.shape != b.shape for a, b in pairs):
        return _in_another_shape(pairs)
    for what, change in _CHANGES.items():
        if all(_close(a, change(b)) for a, b in pairs):
            return f"the values are right, but {what}"
    if sum(b.numel() for _, b in pairs) < 2:
        return None
    return _by_a_constant(pairs) or _in_another_order(pairs)


def _in_another_shape(pairs: Pairs) -> str | None:
    if not all(_close(a.flatten(), b.flatten()) for a, b in pairs):
        return None
    a, b = next((a, b) for a, b in pairs if a.shape != b.shape)
    return f"the values are right, the shape is not: expected shape {tuple(b.shape)}, got {tuple(a.shape)}"


def _by_a_constant(pairs: Pairs) -> str | None:
    """Describe one number that is added to every value, or to 1 / every value; or a factor in each probe."""
    for change, where in ((torch.clone, "to every value"), (torch.reciprocal, "in the denominator of every value")):
        shift = float((change(pairs[0][0]) - change(pairs[0][1])).mean())
        if all(_close(change(a), change(b) + shift) for a, b in pairs):
            return f"{shift:+.4g} is added {where}"
    factors = [float((a * b).sum() / (b * b).sum()) for a, b in pairs]
    if all(b.numel() > 2 and factor and _close(a, factor * b) for (a, b), factor in zip(pairs, factors, strict=True)):
        return (
            f"every value is {factors[0]:.3g} times what it should be, and another factor with other inputs: "
            "look for a sum in place of a mean, or a division too many or missing"
        )
    return None


def _in_another_order(pairs: Pairs) -> str | None:
    if all(_close(a.flatten().sort().values, b.flatten().sort().values) for a, b in pairs):
        return "the right values in another order: look for a transposition, a flip, a sort, or a wrong reshape"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return bool(a.isfinite().all()) and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale)
