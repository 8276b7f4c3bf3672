"""The exercises of notebook 12, scaling up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from klvae_edu.data.shards import ShardReader
from klvae_edu.exercises.exercise import Blank, Exercise, OpenGap, call
from klvae_edu.exercises.judges.functions import Probe, adapted, judge_function, probe, same
from klvae_edu.performance import tiling
from klvae_edu.performance.upcast import in_float32
from klvae_edu.training.recipes import load_recipe

NOTEBOOK = "12_scaling_up"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def ramp(length: int, before: int, after: int) -> torch.Tensor:
    """The weights (length,) of a tile that shares `before` cells with the last one and `after` with the next."""
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 0.5) / before if before else 1.0
    weights[length - after :] = 1 - (torch.arange(after) + 0.5) / after if after else 1.0
    return weights


def pooled(means: torch.Tensor, variances: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of tiles, (tiles, groups), and their cells, (tiles,) -> mean and variance of all, (groups,) each."""
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


def safe_group_norm(x: torch.Tensor, groups: int, eps: float = 1e-6) -> torch.Tensor:
    """x (B, C, H, W) of any floating-point type -> normalised over each group of channels, in the same type."""
    grouped = x.float().reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


def rows_left(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> torch.Tensor:
    """Of rows 0 … count - 1, those that this reader still has to read in this pass, in its order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return order[reader::readers][done:]


def cost(
    crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
) -> tuple[float, float]:
    """Days, and what they cost."""
    hours = crops / (crops_per_second * machines * efficiency) / 3600
    return hours / 24, hours * machines * price


# 12.1


def _ramped(rising: Callable[[int], Tensor], falling: Callable[[int], Tensor] | None = None) -> Callable[..., Tensor]:
    """The finished weights with other ramps."""

    def weights(length: int, before: int, after: int) -> Tensor:
        found = torch.ones(length)
        found[:before] = rising(before)
        if after:
            found[length - after :] = falling(after) if falling else rising(after).flip(0)
        return found

    return weights


def _middles(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / max(count, 1)


def _sliced_from_minus_zero(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] *= _middles(before)
    weights[-after:] *= 0.0 if after == 0 else _middles(after).flip(0)
    return weights


RAMP_MISTAKES = (
    (
        "the ramp begins at 0 and ends at 1: the cell at its end would count nothing; take the middles of the cells, "
        "from 0.5 / before on",
        _ramped(lambda count: torch.linspace(0, 1, count)),
    ),
    (
        "without its ends linspace still adds up to one, but its steps are 1 / (before + 1): take the middles of the "
        "cells, from 0.5 / before on in steps of 1 / before",
        _ramped(lambda count: torch.linspace(0, 1, count + 2)[1:-1]),
    ),
    (
        "the ramp begins at 0: both ramps add up to less than 1; take the middles of the cells (+ 0.5)",
        _ramped(lambda count: torch.arange(count) / max(count, 1)),
    ),
    (
        "the ramp ends at 1: both ramps add up to more than 1; take the middles of the cells (+ 0.5)",
        _ramped(lambda count: (torch.arange(count) + 1.0) / max(count, 1)),
    ),
    (
        "both ends rise: the last cells must fall, from 1 down to 0",
        _ramped(_middles, _middles),
    ),
    (
        "the first cells fall and the last ones rise: it is the other way round",
        _ramped(lambda count: _middles(count).flip(0)),
    ),
    (
        "one half everywhere in the overlap: there the seam is again, at both ends of it; let the weight rise",
        _ramped(lambda count: torch.full((count,), 0.5)),
    ),
    (
        "with after = 0 the last cells are lost: weights[-0:] is everything, write weights[length - after:]",
        _sliced_from_minus_zero,
    ),
    (
        "the last cells do not fall: the neighbour's ramp rises there",
        _ramped(_middles, lambda count: torch.ones(count)),
    ),
    (
        "the first cells do not rise: the neighbour's ramp falls there",
        _ramped(lambda count: torch.ones(count), lambda count: _middles(count).flip(0)),
    ),
    (
        "`before` and `after` are exchanged: the first `before` cells rise",
        lambda length, before, after: ramp(length, after, before),
    ),
)

# 12.2

_Statistics = tuple[Tensor, Tensor]


def _pooling(variance: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], weigh: bool = True) -> Callable[..., Any]:
    """Pooled statistics, with the variance made otherwise from means, variances, their mean and the shares."""

    def statistics(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
        share = (counts / counts.sum() if weigh else torch.ones_like(counts) / len(counts))[:, None]
        mean = (share * means).sum(0)
        return mean, variance(means, variances, mean, share)

    return statistics


def _right(means: Tensor, variances: Tensor, mean: Tensor, share: Tensor) -> Tensor:
    return (share * (variances + (means - mean) ** 2)).sum(0)


def _counts_for_shares(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = counts[:, None]
    mean = (share * means).sum(0)
    return mean, _right(means, variances, mean, share)


_NO_SHARES = "the counts are not made into shares: divide by their sum"

POOL_MISTAKES = (
    (
        "the variance is the mean of the tiles' variances: what lies between their means is missing",
        _pooling(lambda means, variances, mean, share: (share * variances).sum(0)),
    ),
    (
        "every tile counts the same: weigh it by its number of cells",
        _pooling(_right, weigh=False),
    ),
    (
        "neither is weighed by the number of cells, nor is the spread between the tiles in the variance",
        _pooling(lambda means, variances, mean, share: variances.mean(0), weigh=False),
    ),
    (
        "the spread between the means is not weighed by the tiles' shares",
        _pooling(lambda means, variances, mean, share: (share * variances).sum(0) + ((means - mean) ** 2).mean(0)),
    ),
    (
        "the spread between the means is a variance with n - 1, and not weighed: weigh the squares by the shares",
        _pooling(lambda means, variances, mean, share: (share * variances).sum(0) + means.var(0)),
    ),
    (
        "only the spread between the means: the variances within the tiles are missing",
        _pooling(lambda means, variances, mean, share: (share * (means - mean) ** 2).sum(0)),
    ),
    (
        "the distance of the means is not squared",
        _pooling(lambda means, variances, mean, share: (share * (variances + (means - mean).abs())).sum(0)),
    ),
    (
        "this is the standard deviation: the variance is asked for",
        _pooling(lambda means, variances, mean, share: _right(means, variances, mean, share).sqrt()),
    ),
    (
        "the shares are squared in the variance: weigh each tile once",
        _pooling(lambda means, variances, mean, share: (share**2 * (variances + (means - mean) ** 2)).sum(0)),
    ),
    (
        "(variance, mean): the mean comes first",
        lambda means, variances, counts: pooled(means, variances, counts)[::-1],
    ),
    (_NO_SHARES, _counts_for_shares),
    (
        _NO_SHARES,
        lambda means, variances, counts: ((counts[:, None] * means).sum(0), (counts[:, None] * variances).sum(0)),
    ),
)

# 12.3


_Scale = Callable[[Tensor, float], Tensor]  # of the variance and eps: what the map is multiplied by


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) -> (B, groups, C / groups, H, W)."""
    return x.reshape(len(x), groups, -1, *x.shape[2:])


def _normed(
    x: Tensor,
    groups: int,
    eps: float,
    dtype: torch.dtype,
    axes: tuple[int, ...] = (2, 3, 4),
    scale: _Scale | None = None,
) -> Tensor:
    """The finished norm in another type, over other axes of (B, groups, channels, H, W), or scaled otherwise."""
    grouped = _grouped(x.to(dtype), groups)
    mean = grouped.mean(axes, keepdim=True)
    variance = (grouped - mean).square().mean(axes, keepdim=True)
    return ((grouped - mean) * (scale(variance, eps) if scale else (variance + eps).rsqrt())).view_as(x)


def _norm(**different: Any) -> Callable[..., Tensor]:
    """The finished norm, but for one thing."""
    return lambda x, groups, eps=1e-6: _normed(x, groups, eps, torch.float32, **different).to(x.dtype)


def _in(dtype: torch.dtype) -> Callable[..., Tensor]:
    """It computes in one 16-bit type and gives back the type of x."""
    return lambda x, groups, eps=1e-6: _normed(x, groups, eps, dtype).to(x.dtype)


def _given_back_in(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda x, groups, eps=1e-6: _normed(x, groups, eps, torch.float32).to(dtype)


def _mean_not_subtracted(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = _grouped(x.float(), groups)
    variance = grouped.var((2, 3, 4), correction=0, keepdim=True)
    return (grouped * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


def _unbiased(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    n = x[0].numel() // groups
    return _norm(scale=lambda variance, eps: (variance * n / (n - 1) + eps).rsqrt())(x, groups, eps)


def _difference_of_squares(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = _grouped(x.float(), groups)
    mean, square = (one.mean((2, 3, 4), keepdim=True) for one in (grouped, grouped.square()))
    return ((grouped - mean) * (square - mean.square() + eps).rsqrt()).view_as(x).to(x.dtype)


_IN_FLOAT32 = "it comes back in float32: give back the type of x"
_IN_ONE_TYPE = "it comes back in {} whatever came: give back the type of x, x.dtype"
_ROUNDED = {  # bfloat16 first: its 8 bits are among float16's 11
    torch.bfloat16: "bfloat16 has the range, not the precision: take the statistics in float32",
    torch.float16: "a float32 map is computed in float16, with 11 bits: take the statistics in float32",
}
_PER_PIXEL = "the statistics are taken at each pixel: they go over rows and columns, too, the whole map of a group"
_FAR_FROM_ZERO = (
    "far from zero the mean square less the squared mean is rounding, no variance: subtract the mean before you square"
)

NORM_MISTAKES = (
    (
        "the squares outgrow float16: convert x to float32 before the mean and the variance are taken, not after",
        lambda x, groups, eps=1e-6: _normed(x, groups, eps, x.dtype),
    ),
    (_IN_FLOAT32, _given_back_in(torch.float32)),
    (_IN_ONE_TYPE.format("float16"), _given_back_in(torch.float16)),
    (_IN_ONE_TYPE.format("bfloat16"), _given_back_in(torch.bfloat16)),
    (_ROUNDED[torch.bfloat16], _in(torch.bfloat16)),
    (_ROUNDED[torch.float16], _in(torch.float16)),
    (_FAR_FROM_ZERO, _difference_of_squares),
    (
        "every channel is normalised for itself: the statistics are those of a whole group",
        _norm(axes=(3, 4)),
    ),
    (
        "the statistics go over all channels: each group has its own",
        _norm(axes=(1, 2, 3, 4)),
    ),
    (_PER_PIXEL, _norm(axes=(1, 2))),
    (_PER_PIXEL, _norm(axes=(2,))),
    ("the mean is not subtracted", _mean_not_subtracted),
    ("the variance is divided by n - 1: GroupNorm divides by n (correction=0)", _unbiased),
    (
        "it is divided by the variance: its root is missing",
        _norm(scale=lambda variance, eps: 1 / (variance + eps)),
    ),
    (
        "a constant map becomes NaN: add eps to the variance, under the root",
        _norm(scale=lambda variance, eps: variance.rsqrt()),
    ),
    (
        "eps is added to the deviation: it belongs to the variance, under the root",
        _norm(scale=lambda variance, eps: 1 / (variance.sqrt() + eps)),
    ),
    (
        "eps is 1e-5, as PyTorch has it by default: pass on the one that came",
        lambda x, groups, eps=1e-6: _norm()(x, groups, 1e-5),
    ),
    (
        "eps is always 1e-6: use the one that came",
        lambda x, groups, eps=1e-6: _norm()(x, groups, 1e-6),
    ),
)


def _in_double(norm: Callable[..., Any]) -> Callable[..., Any]:
    """The norm's result in a form that does not depend on its type."""

    def of(x: Tensor, groups: int, *eps: float) -> Any:
        result = norm(x, groups, *eps)
        return result.double() if isinstance(result, Tensor) else result

    return of


def _judge_norm(attempt: Any) -> str | None:
    """First the type, then the values, then those of a map so far from zero that right answers round differently."""
    complaint = _judge_type(attempt) if callable(attempt) else None
    complaint = complaint or _judge_values(_in_double(attempt) if callable(attempt) else attempt)
    if complaint:
        return complaint
    expected, found = (norm(_FAR, 2, 1e-6) for norm in (safe_group_norm, attempt))
    return None if (found - expected).abs().max() < 0.02 else _FAR_FROM_ZERO


def _judge_type(attempt: Callable[..., Any]) -> str | None:
    results = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        try:
            results.append(call(attempt, _MAP.to(dtype), 2))
        except (Blank, OpenGap):
            raise
        except Exception:  # told with the values
            return None
    if not all(isinstance(result, Tensor) for result in results):
        return None
    types = {result.dtype for result in results}
    if len(types) == 1:
        (only,) = types
        return _IN_FLOAT32 if only == torch.float32 else _IN_ONE_TYPE.format(str(only).removeprefix("torch."))
    if not same(results[0], safe_group_norm(_MAP, 2)):
        for dtype, message in _ROUNDED.items():
            if torch.equal(results[0], results[0].to(dtype).to(results[0].dtype)):
                return message
    return None


# 12.4


def _rows(
    order: Callable[[int, int, int, int], Tensor] | None = None,
    share: Callable[[Tensor, int, int, int], Tensor] | None = None,
) -> Callable[..., Tensor]:
    """The finished answer with another order, from (count, seed, epoch, reader), or another share of it."""

    def rows(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
        found = (order or _shuffled)(count, seed, epoch, reader)
        return share(found, reader, readers, done) if share else found[reader::readers][done:]

    return rows


def _by(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _shuffled(count: int, seed: int, epoch: int, reader: int) -> Tensor:
    return _by(seed + epoch, count)


def _chunk(order: Tensor, reader: int, readers: int, done: int) -> Tensor:
    size = len(order) // readers
    return order[reader * size : (reader + 1) * size][done:]


ROWS_MISTAKES = (
    (
        "every reader shuffles in its own way, so that rows come twice or never: the seed must not know the reader",
        _rows(lambda count, seed, epoch, reader: _by(seed + epoch + reader, count)),
    ),
    (
        "every pass has the same order: the seed is seed + epoch",
        _rows(lambda count, seed, epoch, reader: _by(seed, count)),
    ),
    (
        "the seed is the pass alone: it is seed + epoch",
        _rows(lambda count, seed, epoch, reader: _by(epoch, count)),
    ),
    (
        "nothing is shuffled: the order is a torch.randperm",
        _rows(lambda count, seed, epoch, reader: torch.arange(count)),
    ),
    (
        "the first `done` rows of the whole order are passed over: they are counted in this reader's own rows",
        _rows(share=lambda order, reader, readers, done: order[done:][reader::readers]),
    ),
    (
        "`done` is counted over all readers: it is this reader's own count",
        _rows(share=lambda order, reader, readers, done: order[reader::readers][done // readers :]),
    ),
    (
        "what it has had comes again: leave out its first `done` rows",
        _rows(share=lambda order, reader, readers, done: order[reader::readers]),
    ),
    (
        "these are the rows that it has had: the others are left",
        _rows(share=lambda order, reader, readers, done: order[reader::readers][:done]),
    ),
    (
        "chunks of equal size lose the last rows, where the readers do not divide them: take every readers-th row",
        _rows(share=_chunk),
    ),
    (
        "torch.chunk deals out rows in a run, and leaves less to the last readers, or nothing: take turns, every "
        "readers-th row from number `reader` on",
        _rows(share=lambda order, reader, readers, done: order.chunk(readers)[reader][done:]),
    ),
    (
        "chunks are dealt out: take turns, every readers-th row from number `reader` on",
        _rows(share=lambda order, reader, readers, done: order.tensor_split(readers)[reader][done:]),
    ),
    (
        "every reader gets all rows: take every readers-th from number `reader` on",
        _rows(share=lambda order, reader, readers, done: order[done:]),
    ),
    (
        "the rows are split before they are shuffled: a reader would see the same ones in every pass",
        lambda count, seed, epoch, reader, readers, done: torch.arange(count)[reader::readers][
            _by(seed + epoch, len(range(reader, count, readers)))
        ][done:],
    ),
)


def _as_floats(rows: Callable[..., Any]) -> Callable[..., Any]:
    """Row numbers, in a tensor or in a list, as floating-point values, which judges compare."""

    def of(*arguments: int) -> Any:
        found = rows(*arguments)
        if isinstance(found, (list, range)) and ... not in found:
            found = torch.tensor([*found])
        return found.double() if isinstance(found, Tensor) else found

    return of


# 12.5


def _costing(days: Callable[..., float], money: Callable[..., float]) -> Callable[..., Any]:
    """Days and money as functions of the hours, of the machines and of the price."""

    def costs(
        crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
    ) -> tuple[float, float]:
        hours = crops / (crops_per_second * machines * efficiency) / 3600
        return days(hours, machines, efficiency), money(hours, machines, efficiency, price)

    return costs


def _days(hours: float, machines: int, efficiency: float) -> float:
    return hours / 24


def _money(hours: float, machines: int, efficiency: float, price: float) -> float:
    return hours * machines * price


COST_MISTAKES = (
    (
        "the money is that of one machine: each of them costs",
        _costing(_days, lambda hours, machines, efficiency, price: hours * price),
    ),
    (
        "the time is multiplied by the efficiency: with more waiting it takes longer, so divide by it",
        _costing(
            lambda hours, machines, efficiency: hours * efficiency**2 / 24,
            lambda hours, machines, efficiency, price: hours * efficiency**2 * machines * price,
        ),
    ),
    (
        "the efficiency is missing: machines that wait for each other do less",
        _costing(
            lambda hours, machines, efficiency: hours * efficiency / 24,
            lambda hours, machines, efficiency, price: hours * efficiency * machines * price,
        ),
    ),
    (
        "only the days know the efficiency: machines cost while they wait, too",
        _costing(_days, lambda hours, machines, efficiency, price: hours * efficiency * machines * price),
    ),
    (
        "the time is that of one machine: they share the work",
        _costing(
            lambda hours, machines, efficiency: hours * machines / 24,
            lambda hours, machines, efficiency, price: hours * machines**2 * price,
        ),
    ),
    (
        "the days are those of one machine: they share the work",
        _costing(lambda hours, machines, efficiency: hours * machines / 24, _money),
    ),
    (
        "these are hours: a day has 24",
        _costing(lambda hours, machines, efficiency: hours, _money),
    ),
    (
        "the price is taken for a day: it is that of an hour",
        _costing(_days, lambda hours, machines, efficiency, price: hours / 24 * machines * price),
    ),
    (
        "the price is taken for a second: it is that of an hour",
        _costing(_days, lambda hours, machines, efficiency, price: 3600 * hours * machines * price),
    ),
    (
        "the price is missing",
        _costing(_days, lambda hours, machines, efficiency, price: hours * machines),
    ),
    (
        "the seconds are divided by 60 once: an hour has 3600",
        _costing(
            lambda hours, machines, efficiency: 60 * hours / 24,
            lambda hours, machines, efficiency, price: 60 * hours * machines * price,
        ),
    ),
    (
        "the money comes first: days, then money",
        lambda *arguments, **more: cost(*arguments, **more)[::-1],
    ),
)


def _as_tensors(costs: Callable[..., Any]) -> Callable[..., Any]:
    """Days and money as tensors."""

    def of(*arguments: float) -> Any:
        found = costs(*arguments)
        if not isinstance(found, (tuple, list)):
            return torch.tensor(float(found)) if isinstance(found, (int, float)) else found
        return tuple(torch.tensor(float(v)) if isinstance(v, (int, float)) else v for v in found)

    return of


def _norm_probes() -> list[Probe]:
    """Squares too large for float16; an eps that counts; a group without any spread; and spreads no larger than eps."""
    large, level, small = (probe(shape)[0] for shape in ((1, 6, 2, 3), (2, 4, 3, 2), (1, 4, 4, 2)))
    level[:, :2] = 2.0
    # 480 * large + 500: no result is near the middle of two float16 numbers, where right answers round differently.
    return [((480 * large + 500).half(), 3), (_MAP, 2, 0.5), (level, 2), (1e-3 * (small - 0.3), 2)]


_MAP = probe((2, 4, 3, 2))[0]
_FAR = 10_000 + probe((2, 4, 4, 4), scale=2.0)[0].round()
_judge_values = judge_function(
    _in_double(safe_group_norm),
    _norm_probes(),
    [(message, _in_double(code)) for message, code in NORM_MISTAKES],
    inputs=("x", "groups", "eps"),
)


_TILE_PROBES: list[Probe] = [(12, 4, 3), (10, 0, 5), (9, 4, 0), (6, 0, 0), (8, 4, 4)]
_POOL_PROBES: list[Probe] = [
    (probe((3, 4))[0], probe((3, 4), scale=0.5)[0].abs() + 0.1, torch.tensor([6.0, 10.0, 1.0])),
    (probe((2, 1))[0], probe((2, 1), scale=0.5)[0].abs() + 0.1, torch.tensor([5.0, 2.0])),
]
_ROW_PROBES: list[Probe] = [(23, 7, 2, 1, 3, 4), (10, 0, 1, 2, 4, 1), (8, 3, 0, 0, 1, 5), (9, 1, 4, 3, 5, 0)]
_COST_PROBES: list[Probe] = [(5.9e6, 17.0, 8, 0.8, 2.5), (1e6, 40.0, 1, 1.0, 0.3), (2e5, 3.0, 2, 0.5, 1.5)]


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="12.1",
        title="The weights of a tile",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=ramp,
        in_package=(tiling.placements,),
        hints=(
            "Four cells: 0.125, 0.375, 0.625, 0.875. Read the other way round they are the neighbour's.",
            "(torch.arange(before) + 0.5) / before rises; one minus the same, or flip(0), falls.",
            "With after = 0, weights[-after:] is the whole tile: count from the front, weights[length - after:].",
        ),
        judge=judge_function(ramp, _TILE_PROBES, RAMP_MISTAKES, inputs=("length", "before", "after")),
    ),
    Exercise(
        id="12.2",
        title="The statistics of all tiles",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=pooled,
        in_package=(tiling.GlobalStatistics.pooled,),
        hints=(
            "counts / counts.sum() are the shares; as a column, [:, None], they multiply (tiles, groups).",
            "The mean is (share * means).sum(0).",
            "Each tile's variance, plus the square of its mean's distance from the mean of all; then weigh and sum.",
        ),
        judge=judge_function(
            pooled, _POOL_PROBES, POOL_MISTAKES, inputs=("means", "variances", "counts"), outputs=("mean", "variance")
        ),
    ),
    Exercise(
        id="12.3",
        title="GroupNorm in 16 bits",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=3,
        reference=safe_group_norm,
        in_package=(in_float32,),
        hints=(
            "x.float() before anything is squared, .to(x.dtype) on the result.",
            "x.float().reshape(len(x), groups, -1): the statistics go over the last axis, with correction=0.",
            "grouped minus its mean, times (variance + eps).rsqrt(), .view_as(x).to(x.dtype).",
        ),
        judge=_judge_norm,
    ),
    Exercise(
        id="12.4",
        title="What a reader has left",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=rows_left,
        in_package=(ShardReader,),
        hints=(
            "The order must come out alike in every reader: one generator, seeded with seed + epoch.",
            "order[reader::readers] takes every readers-th from number `reader` on.",
            "Leave out the first `done` of *these*: [done:] comes last.",
        ),
        judge=adapted(
            judge_function(
                _as_floats(rows_left),
                _ROW_PROBES,
                [(message, _as_floats(code)) for message, code in ROWS_MISTAKES],
                inputs=("count", "seed", "epoch", "reader", "readers", "done"),
            ),
            _as_floats,
        ),
    ),
    Exercise(
        id="12.5",
        title="Days and money",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=1,
        reference=cost,
        in_package=(load_recipe,),
        hints=(
            "All machines together do crops_per_second * machines * efficiency.",
            "Seconds divided by 3600 are hours; the price is for an hour of one machine.",
        ),
        judge=adapted(
            judge_function(
                _as_tensors(cost),
                _COST_PROBES,
                [(message, _as_tensors(code)) for message, code in COST_MISTAKES],
                inputs=("crops", "crops_per_second", "machines", "efficiency", "price"),
                outputs=("the days", "the money"),
            ),
            _as_tensors,
        ),
    ),
)
