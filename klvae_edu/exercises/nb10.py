"""The exercises of notebook 10, the latent space explorer."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, sin
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from klvae_edu import latents as package
from klvae_edu.exercises.attempt import Attempt, Local, call, recipe
from klvae_edu.exercises.exercise import Exercise, Judge, Mistakes
from klvae_edu.exercises.judges.functions import Mistake, Probe, judge_function, probe, result_of, same, through_recipe
from klvae_edu.exercises.solutions.nb10 import fit_preview, latent_statistics, quantise, slerp, with_temperature
from klvae_edu.gaussian import DiagonalGaussianDistribution

NOTEBOOK = "10_latent_space_explorer"

# Judging by parts of the results

Results = Sequence[Any]  # one for each probe
_SIZE = "a size is fixed in the code: take sizes from the arguments, z.shape or a.shape"
_PRECISION = "nearly right, but digits are lost: compute in float32 or float64, not in half precision"


def _judge(
    reference: Callable[..., Any],
    probes: Sequence[Probe],
    mistakes: Sequence[Mistake],
    look: Callable[[Results, Results], str | None],
    errors: Sequence[tuple[str, str]] = (),
    **options: Any,
) -> Judge:
    """Make a judge of functions that looks closer at an answer that none of the mistakes explains.

    It takes the mistake that explains the first wrong output, and most of the other wrong values.

    Args:
        look: (results, right results) -> description of a fault.
        errors: a part of the text of an exception, and the message for it.
        options: as for `judge_function`.
    """
    through = options.get("through", call)
    judge = judge_function(partial(through, reference), probes, through_recipe(through, mistakes), **options)

    @cache
    def outputs(answer: Any) -> list[Results]:
        return _outputs(_results(Local(answer), through, probes))

    def judge_closer(attempt: Attempt) -> str | None:
        complaint = judge(attempt)
        if complaint is None or complaint in dict(mistakes):
            return complaint
        for text, message in errors:
            if text in complaint:
                return message
        found, right = (_results(it, through, probes) for it in (attempt, Local(reference)))
        ours, theirs = _outputs(found), _outputs(right)
        is_random = not same(found, _results(attempt, through, probes, seed=1))
        if is_random or same(ours, theirs) or len(ours) != len(theirs):
            return complaint
        wrong = [same(a, b) for a, b in zip(ours, theirs, strict=True)].index(False)
        explained = [_explained(ours, outputs(code), theirs, wrong) for _, code in mistakes]
        if any(explained):
            return mistakes[explained.index(max(explained))][0]
        return _PRECISION if _nearly(ours[wrong], theirs[wrong]) else look(found, right) or complaint

    return judge_closer


def _explained(ours: Sequence[Results], others: Sequence[Results], right: Sequence[Results], wrong: int) -> int:
    """Count the wrong values that a mistake explains: 0 unless the first, or if it has others wrong in that output."""
    if len(others) != len(right):
        return 0
    values = [*zip(ours[wrong], others[wrong], right[wrong], strict=True)]
    first = next(same(a, b) for a, b, c in values if not same(a, c))
    if not first or any(same(a, c) and not same(b, c) for a, b, c in values):
        return 0
    columns = zip(ours, others, right, strict=True)
    return sum(same(a, b) and not same(a, c) for column in columns for a, b, c in zip(*column, strict=True))


def _results(attempt: Attempt, through: Callable[..., Any], probes: Sequence[Probe], seed: int = 0) -> Results:
    """Return the results, none if one of them is an exception."""
    try:
        return [attempt.run(result_of, through, probe, seed) for probe in probes]
    except Exception:
        return []


def _outputs(results: Results) -> list[Results]:
    """Sort results by output: each on all probes."""
    return [*zip(*(it if isinstance(it, (tuple, list)) else (it,) for it in results), strict=False)]


def _nearly(ours: Results, theirs: Results) -> bool:
    """Tell whether all values are off by little, as by the rounding of half precision."""
    return all(
        isinstance(a, Tensor) and a.shape == b.shape and not same(a, b) and (a - b).abs().max() <= 3e-3 * b.abs().max()
        for a, b in zip(ours, theirs, strict=True)
    )


# 10.1


class _Made(TorchFunctionMode):
    """Keeps weak references to the large tensors that are made while it is active, so that hoarders can be found."""

    def __init__(self) -> None:
        super().__init__()
        self.of_batch: list[list[weakref.ref[Tensor]]] = [[]]  # one list for each batch, and one for what is before
        self.large = 0  # values, half a batch: sums over two images are no larger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.large and isinstance(result, Tensor) and result.numel() > self.large:
            self.of_batch[-1].append(weakref.ref(result))
        return result

    def begin(self, batch: Tensor) -> None:
        self.large = batch.numel() // 2
        self.of_batch.append([])

    def earlier_is_held(self) -> bool:
        """Tell whether a large tensor of an earlier batch is still in memory."""

        def alive() -> bool:
            return any(made() is not None for batch in self.of_batch[:-1] for made in batch)

        if alive():  # perhaps in a cycle; collecting takes long, and is rarely needed
            gc.collect()
        return alive()


class Stream:
    """Batches that can be gone through once; each is let go (overwritten) when the next one is asked for."""

    def __init__(self, batches: Sequence[Tensor], made: _Made) -> None:
        self._batches = list(batches)
        self._made = made
        self._begun = False

    def __iter__(self) -> Iterator[Tensor]:
        if self._begun:
            raise ValueError("a second pass over batches that are there only once")
        self._begun = True
        for batch in self._batches:
            self._made.begin(batch)
            given = batch.clone()
            yield given
            if not torch.equal(given, batch):
                raise ValueError("a batch was changed in place")
            given.fill_(torch.nan)
        if self._made.earlier_is_held():
            raise ValueError("batches are held")


@recipe
def streamed(answer: Any, *batches: Tensor) -> Any:
    """Return the statistics of a stream of these batches; the scaling factor may be a plain number."""
    with _Made() as made:
        found = call(answer, Stream(batches, made))
    if not isinstance(found, (tuple, list)):
        return found
    numbers = (float, np.floating)
    return tuple(torch.tensor(float(v), dtype=torch.float64) if isinstance(v, numbers) else v for v in found)


def _rows_of_channels(z):
    return z.double().transpose(0, 1).flatten(1)


def _summed(batches, values_of=_rows_of_channels, count_of=lambda z: z[:, 0].numel(), start=0):
    """Count, sums, and sums of squares."""
    count, total, squares = 0, start, start
    for z in batches:
        values = values_of(z)
        count, total, squares = count + count_of(z), total + values.sum(1), squares + values.pow(2).sum(1)
    return count, total, squares


def _spread(count, total, squares):
    """Mean (C,), variance (C,), variance over all."""
    mean = total / count
    return mean, squares / count - mean**2, squares.mean() / count - mean.mean() ** 2


def _exactly(mean, var, of_all):
    return mean, var.sqrt(), 1 / of_all.sqrt()


def _statistics(change=_exactly, **sums):
    """Make the finished version with another end (mean, var, of_all) -> results, or with other sums."""
    return lambda batches: change(*_spread(*_summed(batches, **sums)))


def _averaged(weight, power, correction):
    """Average each batch's own means and standard deviations (power 1) or variances (power 2)."""

    def statistics(batches):
        rows = [
            (weight(z), z.mean((0, 2, 3)), z.std((0, 2, 3), correction=correction) ** power, z.std() ** power)
            for z in batches
        ]
        whole = sum(row[0] for row in rows)
        mean, std, of_all = (sum(row[0] * row[i] for row in rows) / whole for i in (1, 2, 3))
        return mean, std ** (1 / power), 1 / of_all ** (1 / power)

    return statistics


def _equal_shares(pieces):
    """Average the moments of each piece (an image, a batch) as if all were of one size."""

    def statistics(batches):
        moments = [(p.double().mean((0, 2, 3)), p.double().pow(2).mean((0, 2, 3))) for z in batches for p in pieces(z)]
        mean, square = (torch.stack(column).mean(0) for column in zip(*moments, strict=True))
        return _exactly(mean, square - mean**2, square.mean() - mean.mean() ** 2)

    return statistics


_WHOLE = "it is 1 / the standard deviation of all values about their one mean"
_BETWEEN = "what lies between the batches' means is lost; add up values and squares"
_ALIKE = "count alike, though a larger one has more values: add up the values, and count them"
_MIXED = "channels and batch are mixed up: bring the channels to the front (transpose), then flatten the rest"
_FOUR = "the number of channels is fixed at 4: take it from the batch, z.shape[1]"
_COUNT_OF_ALL = "for the factor all channels are added up: divide by the count of all, C times that of one"
_ORDER = "the results are out of order: the mean, the standard deviation, the scaling factor"
_STREAM = "the batches are a stream, to go through with `for z in batches`"
_UNLIKE = (
    "the sums of two batches differ in shape: transpose(0, 1).flatten(1) makes one row for each channel to sum over"
)
_DEVIATIONS: tuple[Mistake, ...] = (  # of mean and variance, (C,), and the variance of all values
    ("this is the variance of the channels: take the root", lambda m, v, w: v),
    ("this is 1 / standard deviation of the channels: only the factor is 1 / …", lambda m, v, w: v.rsqrt()),
    ("the square of the mean is not subtracted: squares / count - mean ** 2", lambda m, v, w: (v + m**2).sqrt()),
    ("the mean is subtracted without its square", lambda m, v, w: (v + m**2 - m).abs().sqrt()),
    ("the root is taken too early: subtract the square of the mean first", lambda m, v, w: (v + m**2).sqrt() - m**2),
    ("the root of negative numbers is NaN: a variance is squares / count - mean ** 2", lambda m, v, w: (-v).sqrt()),
    ("it is about the mean of all: take the channel's", lambda m, v, w: (v + m**2 - m.mean() ** 2).abs().sqrt()),
)
_FACTORS: tuple[Mistake, ...] = (  # of the same
    (f"the factor is made of the channels' average standard deviation: {_WHOLE}", lambda m, v, w: 1 / v.sqrt().mean()),
    (f"the factor is made of the channels' average variance: {_WHOLE}", lambda m, v, w: 1 / v.mean().sqrt()),
    (f"the factor is made of the spread of the standard deviations: {_WHOLE}", lambda m, v, w: 1 / v.sqrt().std()),
    (f"the factor is made of the spread of the channels' means: {_WHOLE}", lambda m, v, w: 1 / m.std()),
    (f"one factor for each channel, where a single one is asked for: {_WHOLE}", lambda m, v, w: 1 / v.sqrt()),
    (f"the factor is upside down: {_WHOLE}", lambda m, v, w: w.sqrt()),
    ("the factor is 1 / variance: take the root", lambda m, v, w: 1 / w),
    ("the factor is the variance: take the root, and 1 / that", lambda m, v, w: w),
    ("the factor is Stable Diffusion's: compute that of these latents", lambda m, v, w: torch.tensor(0.18215)),
    ("the square of the mean is not subtracted in the factor", lambda m, v, w: 1 / (w + m.mean() ** 2).sqrt()),
    ("the mean is subtracted without its square in the factor", lambda m, v, w: (w + m.mean() ** 2 - m.mean()) ** -0.5),
    (_COUNT_OF_ALL, lambda m, v, w: (len(m) * (w + m.mean() ** 2) - m.sum() ** 2).abs() ** -0.5),
    (_COUNT_OF_ALL, lambda m, v, w: v.sum() ** -0.5),
)
_ENDS: tuple[Mistake, ...] = (
    *((message, lambda m, v, w, std=std: (m, std(m, v, w), 1 / w.sqrt())) for message, std in _DEVIATIONS),
    *((message, lambda m, v, w, factor=factor: (m, v.sqrt(), factor(m, v, w))) for message, factor in _FACTORS),
    ("one mean and standard deviation for all: keep a sum for each channel", lambda m, v, w: _exactly(m.mean(), w, w)),
    ("the results are columns (C, 1): drop keepdim", lambda m, v, w: _exactly(m[:, None], v[:, None], w)),
    (_ORDER, lambda m, v, w: (v.sqrt(), m, 1 / w.sqrt())),
    (_ORDER, lambda m, v, w: (1 / w.sqrt(), m, v.sqrt())),
)
_COUNTS: tuple[Mistake, ...] = (
    ("divided by the number of images: each has h·w values in every channel", len),
    ("divided by the number of batches: each has B·h·w values in every channel", lambda z: 1),
    ("count is that of one image of each batch: a channel has B·h·w values in it", lambda z: z[0, 0].numel()),
    ("count is the number of values of all channels: one channel has B·h·w of a batch's", torch.numel),
    ("divided by the number of channels: each channel has B·h·w values of a batch", lambda z: z.shape[1]),
)
STATISTICS_MISTAKES = Mistakes(
    [
        *((message, _statistics(end)) for message, end in _ENDS),
        *((message, _statistics(count_of=count_of)) for message, count_of in _COUNTS),
        (_MIXED, _statistics(values_of=lambda z: z.double().reshape(z.shape[1], -1))),
        (_MIXED, _statistics(values_of=lambda z: z.double().reshape(-1, z.shape[1]).T)),
        (_FOUR, _statistics(values_of=lambda z: z.double().transpose(0, 1).reshape(4, -1))),
        (_FOUR, _statistics(values_of=lambda z: _rows_of_channels(z[:, [0, 1, 2, 3]]))),
        (_FOUR, _statistics(start=torch.zeros(4))),
        (_UNLIKE, _statistics(values_of=lambda z: z.double().flatten(1))),
        (f"images {_ALIKE}", _equal_shares(lambda z: z.split(1))),
        (f"batches {_ALIKE}", _equal_shares(lambda z: [z])),
        *(
            (f"the batches' own {what} are averaged: {_BETWEEN}", _averaged(weight, power, correction))
            for what, power in (("standard deviations", 1), ("variances", 2))
            for weight in (lambda z: 1, len, torch.numel)
            for correction in (0, 1)
        ),
        ("the first batch alone counts: return after the loop", lambda b: latent_statistics([next(iter(b))])),
        # by their exceptions
        ("it goes through the batches twice: a stream is there once", lambda b: [0 for _ in b for _ in b]),
        ("a batch is changed in place: it belongs to the caller", lambda b: [z.add_(1.0) for z in b]),
        (_STREAM, torch.cat),
        (f"{_STREAM}: it has no length", len),
        (f"{_STREAM}: it cannot be indexed", lambda b: b[0]),
    ]
)


@STATISTICS_MISTAKES("the factor is that of the first batch alone, as in CompVis' code: it is of all values")
def statistics_with_the_first_factor(batches):
    count, total, squares, factor = 0, 0, 0, None
    for z in batches:
        values, factor = _rows_of_channels(z), factor or 1 / z.std()
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.pow(2).sum(1)
    mean, std, _ = _exactly(*_spread(count, total, squares))
    return mean, std, factor


@STATISTICS_MISTAKES("the sum is squared, not each value: square the values first, then add them up")
def statistics_of_squared_sums(batches):
    count = total = squares = 0
    for z in batches:
        values = _rows_of_channels(z)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.sum(1) ** 2
    return _exactly(*_spread(count, total, squares))


@STATISTICS_MISTAKES("the sums are not divided by the count")
def statistics_undivided(batches):
    _, total, squares = _summed(batches)
    return total, (squares - total**2).sqrt(), 1 / (squares.mean() - total.mean() ** 2).sqrt()


@STATISTICS_MISTAKES("the last batch alone counts: add to count, total and squares (+=) in each turn of the loop")
def statistics_overwritten(batches):
    for z in batches:
        sums = _summed([z])
    return _exactly(*_spread(*sums))


@STATISTICS_MISTAKES(
    "all batches are held, or a list of them: take its sums from each batch, and let it go, with all copies of it"
)
def statistics_of_all_at_once(batches):
    z = torch.cat(list(batches))
    return z.mean((0, 2, 3)), z.std((0, 2, 3)), 1 / z.std()


def _look_at_statistics(found: Results, right: Results) -> str | None:
    """Name the first output that is wrong in value."""
    ours, theirs = _outputs(found), _outputs(right)
    wrong = [same(a, b) for a, b in zip(ours, theirs, strict=True)].index(False)
    if not isinstance(ours[wrong][0], Tensor) or ours[wrong][0].shape != theirs[wrong][0].shape:
        return None
    return (
        "the mean is not that of all values of a channel: add up values and count in every batch, then divide once",
        "the mean is right, the standard deviation is not: the root of squares / count - mean ** 2",
        f"mean and standard deviation are right, the scaling factor is not: {_WHOLE}",
    )[wrong]


# 10.2


@recipe
def fitted(answer: Any, z: Tensor, colours: Tensor) -> Any:
    """Return the fit.

    Raises:
        TypeError: the answer returns parts of what lstsq returns, which is a tuple of four.
    """
    found = call(answer, z, colours)
    if isinstance(found, tuple) and any(isinstance(part, tuple) for part in (found, *found)[len(found) == 2 :]):
        raise TypeError("parts of what lstsq returns")
    return found


def _rows(x):
    """(B, C, h, w) -> (B·h·w, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _mixed_up(x):
    return x.reshape(-1, x.shape[1])


def _with_ones(x):
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def _lstsq(x, y):
    return torch.linalg.lstsq(x, y).solution


def _split(solution):
    return solution[:-1], solution[-1]


def _fit(x, y):
    return _split(_lstsq(_with_ones(x), y))


def _fits_of_images(z, colours):
    rows, rgb = z.flatten(2).transpose(1, 2), colours.flatten(2).transpose(1, 2)
    solution = _lstsq(torch.cat([rows, torch.ones_like(rows[..., :1])], dim=2), rgb)
    return solution[:, :-1], solution[:, -1]


_BIAS = "the bias is what the fit gives for a column of ones"
_EXCHANGED = "the arguments of lstsq are exchanged, and this leads from colours to latents: latents come first"
_TO_ROWS = "bring the channels to the end (permute) before the pixels become rows: reshape alone mixes both"
_ONE_FIT = "every image has a fit of its own: make the pixels of all images the rows of one matrix"
_OTHER_ORDER = "latents and colours list their pixels in different orders: permute both in the same way"
_PIXELS_FIRST = "pixels are averaged before the fit: every latent pixel of every image is a row of its own"
_STANDARDISED = "the latents are standardised: weight and bias of this fit do not belong to the latents as they are"
_SQUARE = "inv and solve need as many equations as unknowns; for the best fit of many take torch.linalg.lstsq"
_POOLED = "the colours are averages of patches already, as many as latent pixels: do not pool them again"
_SOLUTION = "lstsq returns four things by name: take its `.solution`"
_READINGS: tuple[Mistake, ...] = (  # of the solution (C + 1, 3)
    ("the bias is missing from the results", lambda f: (f[:-1], 0 * f[-1])),
    ("the sign of the bias is wrong", lambda f: (f[:-1], -f[-1])),
    ("one bias for all three colours: each has its own", lambda f: (f[:-1], f[-1].mean().expand(3))),
    ("this is the bias as a row (1, 3): take fitted[-1], which is (3,)", lambda f: (f[:-1], f[-1:])),
    ("the results are exchanged: the weight comes first", lambda f: (f[-1], f[:-1])),
    ("the weight is transposed: (C, 3), a row for each channel of the latent", lambda f: (f[:-1].T, f[-1])),
    ("weight and bias come in one matrix (C + 1, 3): return its first C rows, and its last", lambda f: f),
    ("the ones come first: the bias is the row that belongs to the ones", lambda f: _split(f.roll(1, 0))),
    ("weight and bias are read in the wrong place: the bias is the last row, as the ones are", lambda f: (f[1:], f[0])),
    ("the bias is the last row, not the last column: take fitted[:-1] and fitted[-1]", lambda f: (f[:, :-1], f[:, -1])),
    ("the weight still has the bias as its last row: take fitted[:-1], which is (C, 3)", lambda f: (f, f[-1])),
    ("the number of channels is fixed at 4: split with fitted[:-1] and fitted[-1]", lambda f: (f[:4], f[4])),
    ("one grey for all three colours: each has weights of its own", lambda f: _split(f.mean(1, True).expand(-1, 3))),
    ("red and blue are exchanged: the colours stay in their order", lambda f: _split(f.flip(1))),
    ("the colours are brought to [0, 1]: fit them as they are", lambda f: (f[:-1] / 2, f[-1] / 2 + 0.5)),
    ("the colours are brought to [0, 255]: fit them as they are", lambda f: _split(255 * f)),
)
_FITS: tuple[Mistake, ...] = (  # of latents (pixels, C) and colours (pixels, 3)
    *((message, lambda x, y, read=read: read(_lstsq(_with_ones(x), y))) for message, read in _READINGS),
    (f"no bias is fitted: append a column of ones to the latents; {_BIAS}", lambda x, y: (_lstsq(x, y), 0 * y[0])),
    (f"fitted without a bias, and the colours' mean put in its place: {_BIAS}", lambda x, y: (_lstsq(x, y), y.mean(0))),
    (f"the last channel's weights are taken for the bias: {_BIAS}", lambda x, y: _split(_lstsq(x, y))),
    ("the ones are added to the latents: append them as a column", lambda x, y: (_lstsq(x + 1, y), 0 * y[0])),
    ("only the colours are centred: centre both", lambda x, y: (_lstsq(x, y - y.mean(0)), y.mean(0))),
    ("the bias is the colours' mean: subtract mean latent @ weight", lambda x, y: (_fit(x, y)[0], y.mean(0))),
    ("the colours' mean is missing from the bias", lambda x, y: (_fit(x, y)[0], -x.mean(0) @ _fit(x, y)[0])),
    ("mean latent @ weight is added: subtract it", lambda x, y: (_fit(x, y)[0], 2 * y.mean(0) - _fit(x, y)[1])),
    (_EXCHANGED, lambda x, y: _split(_lstsq(_with_ones(y), x))),
    (_EXCHANGED, lambda x, y: (_lstsq(_with_ones(y), x)[:-1].T, y.mean(0))),
    (_EXCHANGED, lambda x, y: _split(_lstsq(y, _with_ones(x)))),
    (_EXCHANGED, lambda x, y: _split(_lstsq(y, _with_ones(x)).T)),
    (
        "fitted from colours to latents, and inverted: that is another fit; latents come first in lstsq",
        lambda x, y: (_fit(y, x)[0].pinverse(), -_fit(y, x)[1] @ _fit(y, x)[0].pinverse()),
    ),
    ("this is the correlation, not the fit: solve for the weight (lstsq)", lambda x, y: (x.T @ y / len(x), y.mean(0))),
    ("the product rowsᵀ rgb is no fit: solve (rowsᵀ rows) W = rowsᵀ rgb", lambda x, y: _split(_with_ones(x).T @ y)),
    ("the colours are clamped: fit them as they are", lambda x, y: _fit(x, y.clamp(0, 1))),
    ("each pixel is divided by its norm: fit the latents as they are", lambda x, y: _fit(x / _norm(x), y)),
    (_STANDARDISED, lambda x, y: _fit((x - x.mean(0)) / x.std(0), y)),
    (_STANDARDISED, lambda x, y: _fit((x - x.mean(0)) / x.std(0, correction=0), y)),
    # by their exceptions
    (_SOLUTION, lambda x, y: torch.linalg.lstsq(_with_ones(x), y)),
    ("as many rows are needed on both sides, one for each pixel", lambda x, y: _lstsq(x.T, y)),
    (_SQUARE, lambda x, y: torch.linalg.solve(_with_ones(x), y)),
)
PREVIEW_MISTAKES = Mistakes(
    [
        *((message, lambda z, c, fit=fit: fit(_rows(z), _rows(c))) for message, fit in _FITS),
        *(
            (_OTHER_ORDER, lambda z, c, order=order: _fit(z.permute(*order, 1).flatten(0, 2), _rows(c)))
            for order in [*itertools.permutations((0, 2, 3))][1:]
        ),
        *(
            (_OTHER_ORDER, lambda z, c, order=order: _fit(_rows(z), c.permute(*order, 1).flatten(0, 2)))
            for order in [*itertools.permutations((0, 2, 3))][1:]
        ),
        (f"pixels and channels are mixed up: {_TO_ROWS}", lambda z, c: _fit(_mixed_up(z), _mixed_up(c))),
        (f"pixels and channels of the latents are mixed up: {_TO_ROWS}", lambda z, c: _fit(_mixed_up(z), _rows(c))),
        (f"pixels and channels of the colours are mixed up: {_TO_ROWS}", lambda z, c: _fit(_rows(z), _mixed_up(c))),
        ("only the first image is used: take all pixels", lambda z, c: _fit(_rows(z[:1]), _rows(c[:1]))),
        ("the number of channels is fixed at 4: take z.shape[1]", lambda z, c: _fit(_rows(z).reshape(-1, 4), _rows(c))),
        *(
            (_PIXELS_FIRST, lambda z, c, dim=dim: _fit(_rows(z.mean(dim, True)), _rows(c.mean(dim, True))))
            for dim in (0, 2, 3, (2, 3))
        ),
        (_ONE_FIT, _fits_of_images),
        (_ONE_FIT, lambda z, c: tuple(part.mean(0) for part in _fits_of_images(z, c))),
        (
            "a whole image is one equation here: each pixel is one",
            lambda z, c: _split(_lstsq(z.flatten(1), c.flatten(1))),
        ),
        ("latents and colours must be matrices with a row for each pixel", _lstsq),  # by its exception
    ]
)


@PREVIEW_MISTAKES("each channel is fitted by itself, but channels are correlated: fit them together (lstsq)")
def preview_by_channels(z, colours):
    x, y = _rows(z), _rows(colours)
    weight = (x - x.mean(0)).T @ (y - y.mean(0)) / (x - x.mean(0)).pow(2).sum(0)[:, None]
    return weight, y.mean(0) - x.mean(0) @ weight


def _pixels(batch: int, channels: int, height: int, width: int) -> Probe:
    """Make latents whose channels are correlated, and colours that depend on them, but not only."""
    z, noise, mix = probe((batch, channels, height, width), (batch, 3, height, width), (channels, 3))
    z = (z + 0.5 * z.roll(1, 1)) * torch.arange(1, channels + 1).view(-1, 1, 1) / 2 + 0.5
    return z, 0.2 * torch.einsum("bchw,cd->bdhw", z, mix) + 0.3 * noise + 0.2


_PIXELS = (_pixels(2, 4, 6, 8), _pixels(3, 5, 4, 7))


def _look_at_fit(found: Results, right: Results) -> str | None:
    """Compare its squared error with the smallest one."""
    (z, colours), (weight, bias), (best_weight, best_bias) = _PIXELS[0], found[0], right[0]
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.shape != best_weight.shape:
        return None
    if same(weight, best_weight):
        return f"the weight is right, the bias is not: {_BIAS}"
    if bias.shape != best_bias.shape:
        return None
    x, y = _rows(z), _rows(colours)
    ratio = float((x @ weight + bias - y).pow(2).sum() / (x @ best_weight + best_bias - y).pow(2).sum())
    advice = (
        "take all pixels, without a penalty, steps of a descent, or rounding"
        if ratio < 2
        else "look at the rows, and that both sides of normal equations have the same factor"
    )
    return f"this is not the best fit, its squared error is {ratio:.4g} times the smallest: {advice}"


# 10.3


@recipe
def sampled(answer: Any, moments: Tensor, temperature: float, noise: Tensor) -> Any:
    """Return the sample of the posterior with these parameters.

    Raises:
        ValueError: the posterior has other values afterwards. A notebook calls with the same one again and again.
    """
    posterior, fresh = DiagonalGaussianDistribution(moments.clone()), DiagonalGaussianDistribution(moments)
    result = call(answer, posterior, temperature, noise)
    if not all(same(getattr(posterior, part), getattr(fresh, part)) for part in ("mean", "logvar", "std", "var")):
        raise ValueError("the posterior is changed")
    return result


_CHANGED = (
    "it changes the posterior, so that its next sample starts from the new values: let posterior.std and the others be"
)
_ONE_STD = "one standard deviation for many values, their average: each value has its own"
_OWN_NOISE = "the noise is changed before it is used: take it as it is given"
_POSTERIOR = "the posterior is no tensor: take posterior.mean and posterior.std, without .latent_dist"
TEMPERATURE_MISTAKES = Mistakes(
    [
        ("the temperature multiplies the mean, too: only posterior.std", lambda p, t, e: t * (p.mean + p.std * e)),
        ("the temperature multiplies the mean instead of posterior.std", lambda p, t, e: t * p.mean + p.std * e),
        ("the temperature is not used", lambda p, t, e: p.mean + p.std * e),
        ("the noise is multiplied by the variance: take posterior.std", lambda p, t, e: p.mean + t * p.var * e),
        ("the noise is multiplied by the log-variance: take posterior.std", lambda p, t, e: p.mean + t * p.logvar * e),
        ("the temperature multiplies the variance, before the root", lambda p, t, e: p.mean + t**0.5 * p.std * e),
        ("the temperature is squared: multiply posterior.std by it once", lambda p, t, e: p.mean + t**2 * p.std * e),
        ("the temperature is in the exponent: multiply posterior.std by it", lambda p, t, e: p.mean + p.std**t * e),
        ("divided by the temperature: a higher one means more noise", lambda p, t, e: p.mean + p.std * e / t),
        ("posterior.std is missing: the noise is as wide as it, place by place", lambda p, t, e: p.mean + t * e),
        ("the mean is missing", lambda p, t, e: t * p.std * e),
        ("the noise is missing: this shifts every value by its own std", lambda p, t, e: p.mean + t * p.std),
        ("this is the mean alone", lambda p, t, e: p.mean.clone()),
        ("between noise and mean: nothing is taken from the mean", lambda p, t, e: (1 - t) * p.mean + t * p.std * e),
        ("between sample and mean: t is no share, but may be above 1", lambda p, t, e: (1 - t) * p.mean + t * e),
        ("the sign of the noise", lambda p, t, e: p.mean - t * p.std * e),
        ("the temperature is added to posterior.std: multiply by it", lambda p, t, e: p.mean + (p.std + t) * e),
        ("the noise is added to posterior.std: multiply by it", lambda p, t, e: p.mean + t * (p.std + e)),
        ("posterior.std is added to the mean: it multiplies the noise", lambda p, t, e: p.mean + p.std + t * e),
        ("mean and std are exchanged: std multiplies the noise", lambda p, t, e: p.std + t * p.mean * e),
        ("mean and noise are exchanged: std multiplies the noise", lambda p, t, e: e + t * p.std * p.mean),
        ("posterior.std multiplies the mean, too: look at the brackets", lambda p, t, e: (p.mean + t * e) * p.std),
        ("the mean multiplies the noise: it is added", lambda p, t, e: p.mean * t * p.std * e),
        ("the temperature is added to the noise: multiply by it", lambda p, t, e: p.mean + p.std * (e + t)),
        ("a root of posterior.std: it is the root already", lambda p, t, e: p.mean + t * p.std.sqrt() * e),
        ("exp(2 · logvar): the standard deviation is posterior.std", lambda p, t, e: p.mean + t * p.var**2 * e),
        ("the sign of the exponent, or divided by std: multiply by it", lambda p, t, e: p.mean + t / p.std * e),
        *(
            (_ONE_STD, lambda p, t, e, dims=dims: p.mean + t * p.std.mean(dims, keepdim=True) * e)
            for dims in ((0, 1, 2, 3), (1, 2, 3), (2, 3), 0, 1)
        ),
        (_ONE_STD, lambda p, t, e: p.mean + t * p.var.mean().sqrt() * e),
        ("the ½ stands outside of exp: take posterior.std", lambda p, t, e: p.mean + t * p.var / 2 * e),
        ("exp is missing: take posterior.std", lambda p, t, e: p.mean + t * p.logvar / 2 * e),
        (_OWN_NOISE, lambda p, t, e: p.mean + t * p.std * (e - e.mean()) / e.std()),
        (_OWN_NOISE, lambda p, t, e: p.mean + t * p.std * e.mean()),
        (_OWN_NOISE, lambda p, t, e: p.mean + t * p.std * e.sign()),
        (_OWN_NOISE, lambda p, t, e: p.mean + t * p.std * (e - e.mean())),
        (_OWN_NOISE, lambda p, t, e: p.mean + t * p.std * e / e.std()),
        (_OWN_NOISE, lambda p, t, e: p.mean + t * p.std * e.abs()),
        (_OWN_NOISE, lambda p, t, e: p.mean + t * p.std * e.clamp(-1, 1)),
        ("the first image's noise is used for all: each has its own", lambda p, t, e: p.mean + t * p.std * e[:1]),
        ("mean and noise come as a pair: add them", lambda p, t, e: (p.mean, t * p.std * e)),
        # by their exceptions
        ("posterior.mode is a method: call it, mode(), or take posterior.mean", lambda p, t, e: p.mode + t * p.std * e),
        ("posterior.mean and posterior.std are tensors, not methods", lambda p, t, e: p.mean() + t * p.std() * e),
        (_POSTERIOR, lambda p, t, e: p.latent_dist.mean + t * p.latent_dist.std * e),
        ("temperature 0 has no logarithm", lambda p, t, e: p.mean + (math.log(t) + p.logvar / 2).exp() * e),
    ]
)


@TEMPERATURE_MISTAKES(_CHANGED)
def temperature_kept_in_the_posterior(posterior, temperature, noise):
    posterior.std = posterior.std * temperature
    return posterior.mean + posterior.std * noise


_POSTERIORS = tuple(
    (moments, temperature, noise)
    for temperature, (moments, noise) in (
        (2.5, probe((2, 8, 4, 5), (2, 4, 4, 5))),
        (0.3, probe((1, 6, 3, 2), (1, 3, 3, 2))),
        (0, probe((3, 8, 2, 3), (3, 4, 2, 3))),
    )
)


def _look_at_noise(found: Results, right: Results) -> str | None:
    """Tell how strong the noise is, if it is the right one but for a factor."""
    for (moments, temperature, noise), ours, theirs in zip(_POSTERIORS, found, right, strict=True):
        if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
            return None
        mean, logvar = moments.chunk(2, dim=1)
        spread = (logvar / 2).exp() * noise
        strength = ((ours - mean) * spread).sum() / spread.pow(2).sum()
        if not same(ours, theirs) and same(ours, mean + strength * spread):
            return (
                f"at temperature {temperature:g} the noise is {strength:.3g} times as strong, not {temperature:g} times"
            )
    if not same(found[-1], right[-1]):
        return "at temperature 0 it is not the mean: the temperature multiplies all that is added to the mean"
    return "at temperature 0 it is right, above not: temperature * posterior.std * noise is added to the mean, no more"


# 10.4


def _cosine(x, y):
    return F.cosine_similarity(x, y, dim=1)[:, None]


def _angle(x, y):
    return _cosine(x, y).clamp(-1, 1).acos()


def _dot(x, y):
    return (x * y).sum(1, keepdim=True)


def _norm(x):
    return x.norm(dim=1, keepdim=True)


def _sines(w, t):
    return sin((1 - t) * w) / sin(w), sin(t * w) / sin(w)


def _where_small(w, line, arc, x, y):
    return torch.where(w.abs() < 1e-3, line, arc)


def _slerp(angle=_angle, factors=_sines, choose=_where_small):
    """Make the finished version with another angle, other factors, or another choice of the straight line."""

    def slerp(a, b, t):
        x, y = a.flatten(1), b.flatten(1)
        w = angle(x, y)
        first, second = factors(w, t)
        return choose(w, (1 - t) * x + t * y, first * x + second * y, x, y).view_as(a)

    return slerp


def _over_dims(*dims):
    """Take the angle over some dimensions only."""

    def slerp(a, b, t):
        norms = [x.pow(2).sum(dims, keepdim=True).sqrt() for x in (a, b)]
        w = ((a * b).sum(dims, keepdim=True) / norms[0] / norms[1]).clamp(-1, 1).acos()
        first, second = _sines(w, t)
        return torch.where(w < 1e-3, (1 - t) * a + t * b, first * a + second * b)

    return slerp


def _rescaled(norm, unit=lambda x: x / _norm(x)):
    """Turn between the directions (or a and b), then give the result a norm of its own."""

    def rescaled(a, b, t):
        x, y = a.flatten(1), b.flatten(1)
        turned = slerp(unit(x), unit(y), t)
        turned = turned / _norm(turned) * norm(_norm(x), _norm(y), t)
        return torch.where(_angle(x, y) < 1e-3, (1 - t) * x + t * y, turned).view_as(a)

    return rescaled


_ONE_NUMBER = "math.sin, float and .item() take one number, and each pair has an angle of its own: take torch.sin"
_BACKWARDS = "a and b are exchanged: t = 0 gives a, t = 1 gives b"
_IF = "`if` takes one decision, and each pair needs one of its own: torch.where(angle < 1e-3, straight, between)"
_NO_COSINES = "cosines for sines: the factors are sin((1 - t) · angle) / sin(angle) and sin(t · angle) / sin(angle)"
_RIGHT_ANGLE = "these factors are right for a right angle only: use the angle between a and b, in sines"
_EACH = "every pair has one angle, over all its values"
_BEYOND = "the arc cosine of a number beyond 1, which is NaN: the cosine is the product over the product of both norms"
_STILL = "where both point the same way it gives {}: there the straight line, (1 - t) * a + t * b, is asked for"
_NO_LINE = (
    "NaN for two that point the same way: there sin(angle) is 0, and rounding lifts a cosine above 1; clamp it, and "
    "take the straight line there"
)
_ZERO = "it gives 0 for two that point the same way: there sin(angle) is 0; take the straight line there"
_NO_CLAMP = "NaN for two that point the same way: rounding lifts their cosine above 1; clamp it to [-1, 1] before acos"
_TOGETHER = "NaN where only some pairs point the same way: decide for each (torch.where), not for all together"
_ALL_STRAIGHT = "one pair that points the same way makes the whole batch straight: decide for each (torch.where)"
_TOO_STRAIGHT = (
    "the straight line, or a limit of the cosine, reaches too wide an angle: below 0.001, say, and the arc above"
)
_RESCALED = "turned between directions, and given a norm afterwards: multiply a and b themselves by the two factors"
_DIVIDE = "divide by both norms themselves: the cosine is the sum of the products over the product of both norms"
_DIMENSIONS = (
    "the angle must be (B, 1) to multiply flat latents, (B, 1, 1, 1) to multiply latents: keep or add dimensions"
)
_ANGLES: tuple[Mistake, ...] = (
    (_BEYOND, lambda x, y: _dot(x, y).acos()),
    (f"the plain product is clamped for a cosine: {_DIVIDE}", lambda x, y: _dot(x, y).clamp(-1, 1).acos()),
    ("the cosine is taken for the angle: the arc cosine (torch.acos) is missing", _cosine),
    ("the cosine is taken of the cosine: the angle is the arc cosine", lambda x, y: _cosine(x, y).cos()),
    ("the arc sine is taken of the cosine: the angle is torch.acos(cosine)", lambda x, y: _cosine(x, y).asin()),
    ("1 - cosine is no angle: take torch.acos(cosine)", lambda x, y: 1 - _cosine(x, y)),
    ("the angle is in degrees: torch.sin takes radians", lambda x, y: _angle(x, y).rad2deg()),
    ("the angle is halved: take it as torch.acos gives it", lambda x, y: _angle(x, y) / 2),
    ("the angle is doubled: take it as torch.acos gives it", lambda x, y: _angle(x, y) * 2),
    ("the angle is clamped: clamp the cosine to [-1, 1], before acos", lambda x, y: _angle(x, y).clamp(-1, 1)),
    (f"divided by the squares of the norms: {_DIVIDE}", lambda x, y: (_dot(x, y) / (_norm(x) * _norm(y)) ** 2).acos()),
    *(
        (f"divided by one norm only: {_DIVIDE}", lambda x, y, n=n: (_dot(x, y) / n(x, y)).clamp(-1, 1).acos())
        for n in (lambda x, y: _norm(x), lambda x, y: _norm(y), lambda x, y: _norm(x) ** 2, lambda x, y: _norm(y) ** 2)
    ),
    (f"divided by the sum of the norms: {_DIVIDE}", lambda x, y: (_dot(x, y) / (_norm(x) + _norm(y))).acos()),
    (f"divided by the norms of the whole batch: {_DIVIDE}", lambda x, y: (_dot(x, y) / (x.norm() * y.norm())).acos()),
    ("the product is averaged: the cosine needs the sum", lambda x, y: (_cosine(x, y) / x.shape[1]).acos()),
    (
        "the means are subtracted before the angle: it is between a and b themselves, from 0",
        lambda x, y: _angle(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)),
    ),
    ("the cosine loses its sign: beyond a right angle it is negative", lambda x, y: _cosine(x, y).abs().acos()),
    ("the cosine is clamped to [0, 1]: clamp it to [-1, 1]", lambda x, y: _cosine(x, y).clamp(0, 1).acos()),
    ("a distance is taken for the angle: it is torch.acos(cosine)", lambda x, y: _norm(x - y)),
    ("a distance is taken for the angle: it is torch.acos(cosine)", lambda x, y: _norm(x / _norm(x) - y / _norm(y))),
)
_FACTORS_OF_PAIRS: tuple[Mistake, ...] = (  # of sin((1 - t) · angle), sin(t · angle), sin(angle)
    (_BACKWARDS, lambda one, two, sine: (two / sine, one / sine)),
    ("not divided by sin(angle)", lambda one, two, sine: (one, two)),
    ("divided by sin(angle) twice", lambda one, two, sine: (one / sine**2, two / sine**2)),
    ("multiplied by sin(angle): divide by it", lambda one, two, sine: (one * sine, two * sine)),
    ("only b's part is divided by sin(angle): put brackets around the sum", lambda one, two, sine: (one, two / sine)),
    ("only a's part is divided by sin(angle): divide both", lambda one, two, sine: (one / sine, two)),
    (
        "a's factor has 1 - sin(t · angle), not sin((1 - t) · angle)",
        lambda one, two, sine: ((1 - two) / sine, two / sine),
    ),
    ("a's factor is 1 - b's: it is made of sin((1 - t) · angle)", lambda one, two, sine: (1 - two / sine, two / sine)),
    ("a and b have the same factor: a's is made of sin((1 - t) · angle)", lambda one, two, sine: (two / sine,) * 2),
    ("the two parts are subtracted: add them", lambda one, two, sine: (one / sine, -two / sine)),
    ("the factors are scaled to a sum of 1: leave them", lambda one, two, sine: (one / (one + two), two / (one + two))),
)
_SINES: tuple[Mistake, ...] = (  # of the angle and t
    *(
        (message, lambda w, t, factors=factors: factors(sin((1 - t) * w), sin(t * w), sin(w)))
        for message, factors in _FACTORS_OF_PAIRS
    ),
    ("divided by the angle: divide by its sine", lambda w, t: (sin((1 - t) * w) / w, sin(t * w) / w)),
    ("brackets are missing: sin((1 - t) * angle)", lambda w, t: (sin(1 - t * w) / sin(w), sin(t * w) / sin(w))),
    (_RIGHT_ANGLE, lambda w, t: (math.cos(t * math.pi / 2), math.sin(t * math.pi / 2))),
    (_RIGHT_ANGLE, lambda w, t: (torch.cos(t * w), sin(t * w))),
    (_NO_COSINES, lambda w, t: (torch.cos((1 - t) * w) / w.cos(), torch.cos(t * w) / w.cos())),
    (_NO_COSINES, lambda w, t: (torch.cos((1 - t) * w) / w.sin(), torch.cos(t * w) / w.sin())),
    ("t is not used", lambda w, t: _sines(w, 0.5)),
)
_CHOICES: tuple[Mistake, ...] = (  # of the angle, the straight line, the arc, a and b
    (_NO_LINE, lambda w, line, arc, x, y: arc),
    (_ZERO, lambda w, line, arc, x, y: arc.nan_to_num()),
    (_STILL.format("a"), lambda w, line, arc, x, y: torch.where(w < 1e-3, x, arc)),
    (_STILL.format("b"), lambda w, line, arc, x, y: torch.where(w < 1e-3, y, arc)),
    (_STILL.format("their average"), lambda w, line, arc, x, y: torch.where(w < 1e-3, (x + y) / 2, arc)),
    ("torch.where is the wrong way round", lambda w, line, arc, x, y: torch.where(w > 1e-3, line, arc)),
    (
        "the cosine is compared with 1e-3, not the angle",
        lambda w, line, arc, x, y: torch.where(w.cos() < 1e-3, line, arc),
    ),
    ("the straight line runs from b to a", lambda w, line, arc, x, y: torch.where(w < 1e-3, x + y - line, arc)),
    *(
        (_TOO_STRAIGHT, lambda w, line, arc, x, y, least=least: torch.where(w < least, line, arc))
        for least in (0.07, 0.15, 0.3, 0.6, 1.0)
    ),
    (_ALL_STRAIGHT, lambda w, line, arc, x, y: line if (w < 1e-3).any() else arc),
    (_TOGETHER, lambda w, line, arc, x, y: line if (w < 1e-3).all() else arc),
)
_NORMS = (
    lambda n, m, t: n,
    lambda n, m, t: m,
    lambda n, m, t: (1 - t) * n + t * m,
    lambda n, m, t: n ** (1 - t) * m**t,
)
SLERP_MISTAKES = Mistakes(
    [
        ("this is the straight line: use the angle between a and b", torch.lerp),
        (_BACKWARDS, lambda a, b, t: slerp(b, a, t)),
        *((message, _slerp(angle=angle)) for message, angle in _ANGLES),
        (f"one angle for the whole batch: {_EACH}", _over_dims(0, 1, 2, 3)),
        (f"one angle for the whole batch: {_EACH}", _slerp(lambda x, y: _angle(x, y).mean())),
        (f"an angle for every pixel: {_EACH}", _over_dims(1)),
        (f"an angle for every channel: {_EACH}", _over_dims(2, 3)),
        (f"an angle for every row: {_EACH}", _over_dims(3)),
        (f"an angle for every column: {_EACH}", _over_dims(2)),
        (f"an angle for every value, over the batch: {_EACH}", _over_dims(0)),
        *((message, _slerp(factors=factors)) for message, factors in _SINES),
        *((message, _slerp(choose=choose)) for message, choose in _CHOICES),
        (_NO_CLAMP, _slerp(angle=lambda x, y: _cosine(x, y).acos())),
        ("the norms are lost: only for the angle a and b are divided by theirs", _rescaled(lambda n, m, t: 1)),
        *((_RESCALED, _rescaled(norm)) for norm in _NORMS),
        *((_RESCALED, _rescaled(norm, unit=lambda x: x)) for norm in _NORMS),
        ("the result is divided by its norm: leave it as it is", _rescaled(lambda n, m, t: 1, unit=lambda x: x)),
        ("the result is flat: give it the shape of a again", lambda a, b, t: slerp(a, b, t).flatten(1)),
        # by their exceptions
        (_DIMENSIONS, lambda a, b, t: sin((1 - t) * _angle(a.flatten(1), b.flatten(1))[:, 0]) * a),
        (_ONE_NUMBER, _slerp(factors=lambda w, t: (math.sin(w), math.sin(w)))),
        (_IF, _slerp(choose=lambda w, line, arc, x, y: line if w < 1e-3 else arc)),
        ("squeeze() drops the dimension of a batch of one", _slerp(lambda x, y: _angle(x, y).squeeze()[:, None])),
    ]
)


@SLERP_MISTAKES("the straight line, brought to the norm between: at t, the angle to a is t times the whole angle")
def slerp_straight_on_the_sphere(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    line = (1 - t) * x + t * y
    return (line / _norm(line) * ((1 - t) * _norm(x) + t * _norm(y))).view_as(a)


def _narrow(*angles: float) -> Probe:
    """Make pairs at these angles, in radians."""
    u = F.normalize(probe((len(angles), 64))[0], dim=1)
    v = probe((len(angles), 32, 2))[0].flatten(1)
    v = F.normalize(v - (v * u).sum(1, keepdim=True) * u, dim=1)
    angle = torch.tensor(angles)[:, None]
    a, b = (3 * x.view(-1, 4, 4, 4) for x in (u, 1.5 * (angle.cos() * u + angle.sin() * v)))
    return a, b


def _mixed() -> Probe:
    """Make pairs: 11 that point the same way, one of them exactly, the others up to rounding; then narrow ones."""
    a, b = probe((12, 4, 4, 4), (12, 4, 4, 4))
    a[1] = 0.5  # 64 of them: whoever computes the cosine, and however, it is exactly 1
    b[1:] = 2.0 * a[1:]
    return *map(torch.cat, zip((a, b), _narrow(0.05, 0.1, 0.2, 0.4, 0.8), strict=True)), 0.3


_PAIRS: tuple[Probe, ...] = (
    (*(2.0 * x - 0.8 for x in probe((2, 4, 3, 5), (2, 4, 3, 5))), 0.3),
    _mixed(),
    (torch.full((1, 4, 4, 4), 0.5), torch.ones(1, 4, 4, 4), 0.3),  # the cosine is exactly 1
)


def _look_at_pairs(found: Results, right: Results) -> str | None:
    """Look at single pairs, where rounding hides which mistake it is; else at the factors of a and b."""
    if any(
        not isinstance(ours, Tensor) or ours.shape != theirs.shape for ours, theirs in zip(found, right, strict=True)
    ):
        return None
    (a, b, _), (wide, mixed, equal) = _PAIRS[2], found
    if same(wide, right[0]):
        if equal.isnan().any():
            return _NO_LINE
        if mixed.isnan().any():
            return _TOGETHER if mixed[1].isnan().any() else _NO_CLAMP
        for start, message in ((0 * a, _ZERO), (a, _STILL.format("a")), (b, _STILL.format("b"))):
            if same(equal, start):
                return message
        return _TOO_STRAIGHT if same(equal, right[2]) else _STILL.format("other values")
    pairs = torch.stack(_PAIRS[0][:2], dim=1).flatten(2).transpose(1, 2)  # (B, values, 2)
    ours, theirs = (torch.linalg.lstsq(pairs, x.flatten(1)[..., None]).solution for x in (wide, right[0]))
    if not same(pairs @ ours, wide.flatten(1)[..., None]):
        return "it is not a sum of a and b, each times one number for all values of its pair"
    worst = int((ours - theirs).abs().sum((1, 2)).argmax())
    (first, second), (one, two) = ([f"{value:.6g}" for value in x[worst, :, 0]] for x in (ours, theirs))
    return f"pair {worst + 1}: the factors of a and b are {first} and {second}, and should be {one} and {two}"


# 10.5


def _rounded(
    steps=lambda bits: 2**bits - 1,
    step=lambda n, low, high: (high - low) / n,
    count=lambda z, step, low: (z - low) / step,
    index=lambda x, bits: x.round().clamp(0, 2**bits - 1),
    back=lambda index, step, low: low + index * step,
):
    """Make the finished version with some of its parts exchanged."""

    def code(z, bits, low, high):
        width = step(steps(bits), low, high)
        return back(index(count(z, width, low), bits), width, low)

    return code


def _floor(x, bits):
    return x.floor().clamp(0, 2**bits - 1)


def _multiples(z, step):
    return (z / step).round() * step


_ONE_DECISION = "`if`, min and max of Python take one decision, and z has many values: take clamp or torch.where"
_LEVELS = "2**bits levels have 2**bits - 1 steps between them"
_NEAREST = "the nearest level is asked for: round, and limit to low and high"
_NO_POWER = "2 ^ bits is no power in Python: it is 2**bits"
_NO_BITS = "the number of bits is fixed: use `bits`"
_SYMMETRIC = "the levels are made symmetric about 0: they go from low to high"
_MULTIPLES = "rounded to multiples of the step: the levels are counted from low"
_BACK = "the levels are those from 0 to 1: bring them back to the range,"
_WHOLE_STEP = "NaN, or one level alone: is the step 0, cut to a whole number by `//` or int, or are limits exchanged?"
_BYTE = "an integer of 8 bits has no room for the index, which may be 255 and more"
_OWN_RANGE = "the range is that of the values: use low and high"
_NO_RANGE = "fractions of 2**bits know nothing of low and high: the levels lie between these, evenly spaced"
_STEPS: tuple[Mistake, ...] = (
    (f"one level too few: {_LEVELS}", lambda bits: 2**bits - 2),
    ("as many levels as bits: there are 2**bits", lambda bits: bits - 1),
    ("as many steps as bits: there are 2**bits levels", lambda bits: bits),
    (_NO_POWER, lambda bits: (2 ^ bits) - 1),
    (_NO_POWER, lambda bits: 2 ^ (bits - 1)),
    (_NO_POWER, lambda bits: 2 ^ bits),
    ("bits**2 levels: there are 2**bits", lambda bits: bits**2 - 1),
    ("bits**2 steps: there are 2**bits - 1", lambda bits: bits**2),
    ("2 * bits levels: there are 2**bits", lambda bits: 2 * bits - 1),
    ("2 * bits steps: there are 2**bits - 1", lambda bits: 2 * bits),
    ("2 ** (bits - 1) steps: there are 2**bits - 1, one less than levels", lambda bits: 2 ** (bits - 1)),
    ("a bit less than there are, as for a sign: 2**bits - 1 steps", lambda bits: max(2 ** (bits - 1) - 1, 0.5)),
    (_NO_BITS, lambda bits: 2**3 - 1),
    (_NO_BITS, lambda bits: 2**8 - 1),
)
_INDICES: tuple[Mistake, ...] = (  # of (z - low) / step
    (f"rounded down: {_NEAREST}", _floor),
    (f"rounded down: {_NEAREST}", lambda x, bits: x.trunc().clamp(0, 2**bits - 1)),
    (f"rounded up: {_NEAREST}", lambda x, bits: x.ceil().clamp(0, 2**bits - 1)),
    ("only clamped: round to the levels, too", lambda x, bits: x.clamp(0, 2**bits - 1)),
    ("values outside of [low, high] are not clamped: the index goes from 0 to 2**bits - 1", lambda x, bits: x.round()),
    ("values above `high` are not clamped: the largest index is 2**bits - 1", lambda x, bits: x.round().clamp(min=0)),
    ("values below `low` are not clamped: the smallest index is 0", lambda x, bits: x.round().clamp(max=2**bits - 1)),
    ("the largest index is 2**bits - 1, not 2**bits: counted from 0", lambda x, bits: x.round().clamp(0, 2**bits)),
    ("the largest index is 2**bits - 1, not 2**bits - 2", lambda x, bits: x.round().clamp(0, 2**bits - 2)),
    ("the index is clamped to `bits`: the largest is 2**bits - 1", lambda x, bits: x.round().clamp(0, bits)),
    ("the index is clamped to 1 … 2**bits: it is counted from 0", lambda x, bits: x.round().clamp(1, 2**bits)),
    ("the index is clamped to [0, 1]: it goes from 0 to 2**bits - 1", lambda x, bits: x.round().clamp(0, 1)),
    ("the index has a sign: count it from low", lambda x, bits: x.round().clamp(-(2**bits) // 2, 2**bits // 2 - 1)),
    (_BYTE, lambda x, bits: x.round().to(torch.int8).clamp(0, 2**bits - 1)),
    (_BYTE, lambda x, bits: x.round().clamp(0, 2**bits - 1).to(torch.uint8)),
    ("an index outside comes in again at the other end: clamp it", lambda x, bits: x.round().remainder(2**bits)),
)
_WIDTHS: tuple[Mistake, ...] = (  # of the number of steps and the ends
    ("the step is upside down: it is the range over the number of steps", lambda n, low, high: n / (high - low)),
    ("high + low is no range: the step is made of high - low", lambda n, low, high: (high + low) / n),
    ("the sign of the step: it is made of high - low", lambda n, low, high: (low - high) / n),
    ("the step is made of high alone: the range is high - low", lambda n, low, high: high / n),
    ("brackets are missing in the step: high - low comes first", lambda n, low, high: high - low / n),
    ("brackets are missing in the step: 2**bits - 1 comes first", lambda n, low, high: (high - low) / (n + 1) - 1),
    (_WHOLE_STEP, lambda n, low, high: (high - low) // n),
)
_STEPS_FROM_LOW: tuple[Mistake, ...] = (
    ("brackets are missing: low is subtracted first, (z - low) / step", lambda z, step, low: z - low / step),
    ("low is not subtracted before rounding: the levels are counted from low", lambda z, step, low: z / step),
    ("low is added before rounding: subtract it", lambda z, step, low: (z + low) / step),
    ("multiplied by the step before rounding: divide", lambda z, step, low: (z - low) * step),
    ("not divided by the step before rounding", lambda z, step, low: z - low),
)
_VALUES: tuple[Mistake, ...] = (  # of the index
    ("low is not added at the end", lambda index, step, low: index * step),
    ("low is subtracted at the end: add it", lambda index, step, low: index * step - low),
    ("this is the index: multiply it by the step, and add low", lambda index, step, low: index),
    ("the step is missing at the end: index * step", lambda index, step, low: low + index),
    ("divided by the step at the end: multiply", lambda index, step, low: low + index / step),
    ("low is multiplied by the step, too: low + index * step", lambda index, step, low: (low + index) * step),
)
QUANTISE_MISTAKES = Mistakes(
    [
        (
            f"one level too many: {_LEVELS}",
            _rounded(lambda bits: 2**bits, index=lambda x, bits: x.round().clamp(0, 2**bits)),
        ),
        (f"the step is too small, and `high` is no level: {_LEVELS}", _rounded(lambda bits: 2**bits)),
        *((message, _rounded(steps)) for message, steps in _STEPS),
        *(
            (message, _rounded(steps, index=lambda x, bits, steps=steps: x.round().clamp(0, steps(bits))))
            for message, steps in _STEPS
        ),
        *((message, _rounded(index=index)) for message, index in _INDICES),
        *((message, _rounded(step=step)) for message, step in _WIDTHS),
        *((message, _rounded(count=count)) for message, count in _STEPS_FROM_LOW),
        *((message, _rounded(back=back)) for message, back in _VALUES),
        ("low is forgotten", _rounded(count=lambda z, step, low: z / step, back=lambda index, step, low: index * step)),
        (
            f"rounded down, in steps of (high - low) / 2**bits: {_NEAREST}, and {_LEVELS}",
            _rounded(lambda bits: 2**bits, index=_floor),
        ),
        (
            "the middle of each of 2**bits equal pieces: the levels begin at `low` and end at `high`",
            _rounded(lambda bits: 2**bits, index=lambda x, bits: _floor(x, bits) + 0.5),
        ),
        *(
            (_OWN_RANGE, lambda z, b, low, high, d=d: package.quantise(z, b, z.amin(d, True), z.amax(d, True)))
            for d in ((0, 1, 2, 3), (0, 2, 3), (1, 2, 3), (2, 3))
        ),
        (
            _OWN_RANGE,
            lambda z, b, low, high: quantise(low + (high - low) * (z - z.min()) / (z.max() - z.min()), b, low, high),
        ),
        *(
            ("the range is fixed: use low and high", lambda z, b, low, high, ends=ends: quantise(z, b, *ends))
            for ends in ((-1.0, 1.0), (0.0, 1.0))
        ),
        (_SYMMETRIC, lambda z, b, low, high: quantise(z, b, -max(-low, high), max(-low, high))),
        (_SYMMETRIC, lambda z, b, low, high: z.sign() * quantise(z.abs(), b, 0, high)),
        (f"{_BACK} low + (high - low) · …", lambda z, b, low, high: (quantise(z, b, low, high) - low) / (high - low)),
        (_MULTIPLES, lambda z, b, low, high: _multiples(z.clamp(low, high), (high - low) / (2**b - 1))),
        (
            "divided by the range, not by the step: two levels are left",
            lambda z, b, low, high: quantise(z, 1, low, high),
        ),
        (
            "the index is clamped to [low, high], which are values: an index goes from 0 to 2**bits - 1",
            lambda z, b, low, high: _rounded(index=lambda x, bits: x.round().clamp(low, high))(z, b, low, high),
        ),
        ("it rounds to `bits` decimals", lambda z, b, low, high: z.clamp(low, high).round(decimals=b)),
        (_NO_RANGE, lambda z, b, low, high: _multiples(z, 2**-b)),
        (_NO_RANGE, lambda z, b, low, high: _multiples(z.clamp(low, high), 2**-b)),
        ("the result is flat: keep the shape of z", lambda z, b, low, high: quantise(z, b, low, high).flatten()),
        ("Python's round takes one number: take .round()", lambda z, b, low, high: low + round((z - low) / b)),
    ]
)


_ROUNDED: tuple[Probe, ...] = (
    (*probe((2, 4, 5, 6), scale=2.0), 3, -1.3, 1.9),
    (*probe((1, 3, 4, 4), scale=3.0), 2, -1.9, 1.2),
    (*probe((2, 3, 5, 4), scale=2.0), 8, -1.7, 2.1),
    (*probe((1, 3, 2, 5), scale=2.0), 10, -1.7, 2.1),
)


def _look_at_levels(found: Results, right: Results) -> str | None:
    """Compare the levels with the right ones."""
    for (z, bits, low, high), ours, theirs in zip(_ROUNDED, found, right, strict=True):
        if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
            return None
        if ours.isnan().any():
            return _WHOLE_STEP
        if same(ours, theirs):
            continue
        inside = (low <= z) & (z <= high)
        if same(ours[inside], theirs[inside]):
            return "it is right inside of [low, high], not outside: there the index is clamped to 0 and 2**bits - 1"
        step = (high - low) / (2**bits - 1)
        index = (ours - low) / step
        if (ours - theirs).abs().max() < 0.1 * step:
            return _PRECISION
        if same(index + 1, index.round() + 1) and ours.min() >= low - 1e-4 and ours.max() <= high + 1e-4:
            return f"at {bits} bits all values are levels, but not the nearest ones: {_NEAREST}"
        first, last = float(ours.min()), float(ours.max())
        levels = f"at {bits} bits its levels go from {first:.3g} to {last:.3g}"
        return f"{levels}, {len(ours.unique())} of them; asked for are {2**bits} from low = {low:g} to high = {high:g}"
    return None


# Probes


def _batches(*shapes: tuple[int, ...]) -> Probe:
    """Make batches of latents that differ in mean and spread, so that averages of theirs are not those of all."""
    return tuple(
        batch * (1 + index) * torch.arange(1, batch.shape[1] + 1).view(-1, 1, 1) + 2.0 * index
        for index, batch in enumerate(probe(*shapes))
    )


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="10.1",
        title="Statistics in one pass",
        notebook=NOTEBOOK,
        minutes=12,
        difficulty=3,
        reference=latent_statistics,
        in_package=(package.statistics,),
        hints=(
            "Three numbers per channel are enough: how many values came, their sum, the sum of their squares.",
            "z.transpose(0, 1).flatten(1) has a row for each channel. Variance: mean of squares minus square of mean.",
            "For the scaling factor add up the sums of all channels first; then the same formula, and 1 / its root.",
        ),
        judge=_judge(
            latent_statistics,
            [
                _batches((9, 4, 20, 24), (2, 4, 12, 18), (5, 4, 26, 30)),
                _batches((6, 3, 20, 24), (3, 3, 16, 20), (2, 3, 30, 24), (4, 3, 24, 26)),
            ],
            STATISTICS_MISTAKES,
            _look_at_statistics,
            [("must match the size of tensor", _UNLIKE), ("Stream", _STREAM)],
            inputs=[f"batch {number}" for number in range(4)],
            outputs=("the mean", "the standard deviation", "the scaling factor"),
            through=streamed,
        ),
        mistakes=STATISTICS_MISTAKES,
    ),
    Exercise(
        id="10.2",
        title="A preview by least squares",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=3,
        reference=fit_preview,
        in_package=(package.fit_preview,),
        hints=(
            "Every pixel is one equation: its C latent values, weighted, plus the bias, should give its three colours.",
            "permute(0, 2, 3, 1).flatten(0, 2) makes rows of pixels. A column of ones turns the bias into a weight.",
            "torch.linalg.lstsq(rows, rgb).solution is (C + 1, 3): the last row belongs to the ones.",
        ),
        judge=_judge(
            fit_preview,
            _PIXELS,
            PREVIEW_MISTAKES,
            _look_at_fit,
            [
                ("is invalid for input of size", _SIZE),
                ("Output size is too small", _POOLED),
                ("batches of square matrices", _SQUARE),
                ("too many values to unpack", _SOLUTION),
            ],
            inputs=("z", "colours"),
            outputs=("weight", "bias"),
            through=fitted,
        ),
        mistakes=PREVIEW_MISTAKES,
    ),
    Exercise(
        id="10.3",
        title="Temperature",
        notebook=NOTEBOOK,
        minutes=4,
        difficulty=1,
        reference=with_temperature,
        in_package=(package.with_temperature,),
        hints=(
            "At temperature 1 it is the sample of notebook 01: mean + std · noise. At 0 it is the mean.",
            "posterior.mean and posterior.std are there; the temperature multiplies one of them.",
        ),
        judge=_judge(
            with_temperature,
            _POSTERIORS,
            TEMPERATURE_MISTAKES,
            _look_at_noise,
            [("'DiagonalGaussianDistribution'", _POSTERIOR)],
            inputs=("posterior", "temperature", "noise"),
            gradients=("posterior",),
            through=sampled,
        ),
        mistakes=TEMPERATURE_MISTAKES,
    ),
    Exercise(
        id="10.4",
        title="Spherical interpolation",
        notebook=NOTEBOOK,
        minutes=12,
        difficulty=3,
        reference=slerp,
        in_package=(package.slerp,),
        hints=(
            "The cosine of the angle is the product of both, summed over all values, divided by both norms.",
            "Flatten a and b with flatten(1), and keep the cosine (B, 1). Rounding can lift it above 1: clamp it.",
            "torch.where(angle < 1e-3, straight, between) takes the straight line where the angle is next to 0.",
        ),
        judge=_judge(
            slerp,
            _PAIRS,
            SLERP_MISTAKES,
            _look_at_pairs,
            [
                ("must match the size of tensor", _DIMENSIONS),
                ("is invalid for input of size", _SIZE),
                ("converted to", _ONE_NUMBER),
            ],
            inputs=("a", "b", "t"),
        ),
        mistakes=SLERP_MISTAKES,
    ),
    Exercise(
        id="10.5",
        title="Fewer bits",
        notebook=NOTEBOOK,
        minutes=6,
        difficulty=2,
        reference=quantise,
        in_package=(package.quantise,),
        hints=(
            "Four levels from 0 to 3 are 0, 1, 2, 3: three steps. How wide is a step between 2**bits levels?",
            "((z - low) / step).round() counts the steps from low. Which is the smallest index, which the largest?",
        ),
        judge=_judge(
            quantise,
            _ROUNDED,
            QUANTISE_MISTAKES,
            _look_at_levels,
            [("Boolean value of Tensor", _ONE_DECISION)],
            inputs=("z", "bits", "low", "high"),
        ),
        mistakes=QUANTISE_MISTAKES,
    ),
)
