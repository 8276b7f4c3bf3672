"""The exercises of notebook 10, the latent space explorer."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from klvae_edu import latents as package
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import Probe, adapted, judge_function, probe, same
from klvae_edu.gaussian import DiagonalGaussianDistribution

NOTEBOOK = "10_latent_space_explorer"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def latent_statistics(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass over latents (B, C, h, w) -> mean (C,), standard deviation (C,), and the scaling factor."""
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for z in batches:
        values = z.double().transpose(0, 1).flatten(1)  # (C, B·h·w)
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.pow(2).sum(1)
    mean = total / count
    std = (squares / count - mean**2).sqrt()
    overall = (squares.mean() / count - mean.mean() ** 2).sqrt()  # over all values, channels included
    return mean, std, 1 / overall


def fit_preview(z: torch.Tensor, colours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents z (B, C, h, w), colours (B, 3, h, w) -> weight (C, 3), bias (3,): the best under squared error."""
    rows = z.permute(0, 2, 3, 1).flatten(0, 2)  # (pixels, C)
    rgb = colours.permute(0, 2, 3, 1).flatten(0, 2)  # (pixels, 3)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)  # a 1 for the bias
    fitted = torch.linalg.lstsq(rows, rgb).solution  # (C + 1, 3)
    return fitted[:-1], fitted[-1]


def with_temperature(posterior: DiagonalGaussianDistribution, temperature: float, noise: torch.Tensor) -> torch.Tensor:
    """The posterior's sample with its noise `temperature` times as strong: (B, C, h, w)."""
    return posterior.mean + temperature * posterior.std * noise


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """From a (t = 0) to b (t = 1), both (B, C, h, w), at an even pace along the angle between each pair."""
    x, y = a.flatten(1), b.flatten(1)
    cosine = F.cosine_similarity(x, y, dim=1)
    angle = torch.acos(cosine.clamp(-1, 1))[:, None]  # (B, 1)
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    straight = (1 - t) * x + t * y
    return torch.where(angle < 1e-3, straight, between).view_as(a)


def quantise(z: torch.Tensor, bits: int, low: float, high: float) -> torch.Tensor:
    """Each value to the nearest of 2**bits evenly spaced levels; the first is `low`, the last `high`."""
    step = (high - low) / (2**bits - 1)
    index = ((z - low) / step).round().clamp(0, 2**bits - 1)
    return low + index * step


# 10.1

_Statistics = Callable[[Iterable[Tensor]], Any]


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


class _Stream:
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


def _streamed(code: Callable[..., Any]) -> Callable[..., Any]:
    """The statistics as a function of the batches themselves; the scaling factor may be a plain number."""

    def of_batches(*batches: Tensor) -> Any:
        with _Made() as made:
            found = code(_Stream(batches, made))
        if not isinstance(found, (tuple, list)):
            return found
        return tuple(torch.tensor(float(v)) if isinstance(v, (float, np.floating)) else v for v in found)

    return of_batches


def _sums(
    finish: Callable[[int, Tensor, Tensor], Any],
    values_of: Callable[[Tensor], Tensor] = lambda z: z.double().transpose(0, 1).flatten(1),
) -> _Statistics:
    """The finished version with another end, or other values: finish(count, sums, sums of squares)."""

    def statistics(batches: Iterable[Tensor]) -> Any:
        found = [(v.shape[1], v.sum(1), v.pow(2).sum(1)) for v in map(values_of, batches)]
        counts, totals, squares = zip(*found, strict=True)
        return finish(sum(counts), torch.stack(totals).sum(0), torch.stack(squares).sum(0))

    return statistics


def _averaged(weight: Callable[[Tensor], float], scale: Callable[[Tensor], Tensor] | None = None) -> _Statistics:
    """Each batch's own mean and standard deviation, averaged."""

    def statistics(batches: Iterable[Tensor]) -> Any:
        rows = []
        for z in batches:
            own = z.std() if scale is None else scale(z)
            rows.append((weight(z), z.mean((0, 2, 3)), z.std((0, 2, 3)), own))
        whole = sum(row[0] for row in rows)
        mean, std, overall = (sum(row[0] * row[i] for row in rows) / whole for i in (1, 2, 3))
        return mean, std, 1 / torch.as_tensor(overall)

    return statistics


def _equal_shares(pieces: Callable[[Tensor], Sequence[Tensor]]) -> _Statistics:
    """Means of values and squares of each piece (an image, a batch), averaged as if all were of one size."""

    def statistics(batches: Iterable[Tensor]) -> Any:
        moments = [(p.double().mean((0, 2, 3)), p.double().pow(2).mean((0, 2, 3))) for z in batches for p in pieces(z)]
        mean, square = (torch.stack(column).mean(0) for column in zip(*moments, strict=True))
        return _exactly(mean, square - mean**2, square.mean() - mean.mean() ** 2)

    return statistics


def _by_images(batches: Iterable[Tensor]) -> Any:
    found = [(len(z), z.double().sum((0, 2, 3)), z.double().pow(2).sum((0, 2, 3))) for z in batches]
    counts, totals, squares = zip(*found, strict=True)
    return _exactly(*_spread(sum(counts), torch.stack(totals).sum(0), torch.stack(squares).sum(0)))


def _four_channels(batches: Iterable[Tensor]) -> Any:
    return latent_statistics(torch.stack([z[:, channel] for channel in range(4)], dim=1) for z in batches)


def _places_for_four_channels(batches: Iterable[Tensor]) -> Any:
    count, total, squares = 0, torch.zeros(4), torch.zeros(4)
    for z in batches:
        values = z.double().transpose(0, 1).flatten(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.pow(2).sum(1)
    return _exactly(*_spread(count, total, squares))


def _first_only(batches: Iterable[Tensor]) -> Any:
    z = next(iter(batches)).double()
    return z.mean((0, 2, 3)), z.std((0, 2, 3)), 1 / z.std()


def _spread(count: int, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,), variance over all."""
    mean = sums / count
    return mean, squares / count - mean**2, squares.mean() / count - mean.mean() ** 2


def _ending(change: Callable[[Tensor, Tensor, Tensor], Any]) -> _Statistics:
    return _sums(lambda count, sums, squares: change(*_spread(count, sums, squares)))


def _exactly(mean: Tensor, var: Tensor, overall: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return mean, var.sqrt(), 1 / overall.sqrt()


_ALL_VALUES = (
    "the scaling factor is 1 / the deviation of all values about their one mean, so how far channels lie apart counts"
)
_AVERAGED = (
    "the batches' own deviations are averaged: what lies between the batches' means is lost; add up values and squares"
)
_AVERAGED_VARIANCES = (
    "the batches' own variances are averaged: what lies between the batches' means is lost; add up values and squares"
)
_FIRST = "the first batch alone counts: go on to the end of the stream, and return after the loop"
_HELD = "all latents are held at once: take its sums from each batch, and let it go, with all copies of it"
STATISTICS_MISTAKES = Mistakes(
    [
        *(
            (_AVERAGED, _averaged(weight))
            for weight in (lambda z: 1.0, lambda z: float(len(z)), lambda z: float(z.numel()))
        ),
        *(
            (
                f"the batches' own deviations are averaged, and the channels' too; {_ALL_VALUES}",
                _averaged(weight, lambda z: z.std((0, 2, 3)).mean()),
            )
            for weight in (lambda z: 1.0, lambda z: float(len(z)), lambda z: float(z.numel()))
        ),
        (
            f"the scaling factor is made of the channels' average deviation: {_ALL_VALUES}",
            _ending(lambda mean, var, overall: (mean, var.sqrt(), 1 / var.sqrt().mean())),
        ),
        (
            f"the scaling factor is made of the channels' average variance: {_ALL_VALUES}",
            _ending(lambda mean, var, overall: (mean, var.sqrt(), 1 / var.mean().sqrt())),
        ),
        (
            "one scaling factor for each channel: a single one is asked for, 1 / the deviation of all values",
            _ending(lambda mean, var, overall: (mean, var.sqrt(), 1 / var.sqrt())),
        ),
        (
            "the scaling factor is upside down: 1 / the deviation of all values",
            _ending(lambda mean, var, overall: (mean, var.sqrt(), overall.sqrt())),
        ),
        (
            "the scaling factor is 1 / variance: take the root",
            _ending(lambda mean, var, overall: (mean, var.sqrt(), 1 / overall)),
        ),
        (
            "this is the variance of the channels: take the root",
            _ending(lambda mean, var, overall: (mean, var, 1 / overall.sqrt())),
        ),
        (
            "variances, where deviations are asked for: take the root, of all values, too",
            _ending(lambda mean, var, overall: (mean, var, 1 / overall)),
        ),
        (
            "the square of the mean is not subtracted: a variance is the mean of squares minus the square of the mean",
            _sums(lambda n, sums, squares: (sums / n, (squares / n).sqrt(), 1 / (squares.mean() / n).sqrt())),
        ),
        (
            "the mean of all values is not subtracted in the scaling factor: subtract its square, too",
            _sums(
                lambda n, sums, squares: (
                    sums / n,
                    (squares / n - (sums / n) ** 2).sqrt(),
                    1 / (squares.mean() / n).sqrt(),
                )
            ),
        ),
        (
            "the mean is subtracted without its square",
            _sums(
                lambda n, s, q: (s / n, (q / n - s / n).abs().sqrt(), 1 / (q.mean() / n - s.mean() / n).abs().sqrt()),
            ),
        ),
        (
            "statistics of each latent pixel, or each row: they are over batch, rows and columns, (C,)",
            _sums(lambda n, s, q: _exactly(*_spread(n, s, q)), lambda z: z.double().permute(1, 2, 3, 0).flatten(0, 2)),
        ),
        *(
            (
                "channels and batch are mixed up: bring the channels to the front (transpose), then flatten the rest",
                _sums(lambda n, s, q: _exactly(*_spread(n, s, q)), values_of),
            )
            for values_of in (
                lambda z: z.double().reshape(z.shape[1], -1),
                lambda z: z.double().reshape(-1, z.shape[1]).T,
            )
        ),
        *(
            (
                "the number of channels is fixed at 4: take it from the batch, z.shape[1]",
                code,
            )
            for code in (
                _four_channels,
                _places_for_four_channels,
                _sums(lambda n, s, q: _exactly(*_spread(n, s, q)), lambda z: z.double().transpose(0, 1).reshape(4, -1)),
            )
        ),
        ("divided by the number of images: each has h·w values in every channel", _by_images),
        *(
            (
                f"{what} count alike, though a larger one has more values: add up the values, and count them",
                _equal_shares(pieces),
            )
            for what, pieces in (("images", lambda z: z.split(1)), ("batches", lambda z: [z]))
        ),
        (_FIRST, _first_only),
        # by their exceptions
        (
            "it goes through the batches twice: a stream is there once; count, sum and sum of squares need one pass",
            lambda batches: ([0 for _ in batches], [0 for _ in batches]),
        ),
        (
            "a batch is changed in place: it belongs to the caller; use z - mean, z ** 2 and the like",
            lambda batches: [z.add_(1.0) for z in batches],
        ),
        ("the batches are a stream, not one tensor: go through them with `for z in batches`", lambda b: torch.cat(b)),
        ("the batches are a stream, not one tensor: go through them with `for z in batches`", lambda b: torch.stack(b)),
        ("the batches are a stream, which has no length: count the values as they come", lambda b: len(b)),
        ("the batches are a stream, which cannot be indexed: go through them with `for z in batches`", lambda b: b[0]),
    ]
)


def _added_up(batches: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    return _sums(lambda count, total, squares: (count, total, squares))(batches)


@STATISTICS_MISTAKES("the results are out of order: the mean, the standard deviation, the scaling factor")
def statistics_with_the_deviation_first(batches: Iterable[Tensor]) -> Any:
    mean, std, scale = latent_statistics(batches)
    return std, mean, scale


@STATISTICS_MISTAKES("the results are out of order: the mean, the standard deviation, the scaling factor")
def statistics_with_the_factor_first(batches: Iterable[Tensor]) -> Any:
    mean, std, scale = latent_statistics(batches)
    return scale, mean, std


@STATISTICS_MISTAKES("one mean and one deviation for all channels: keep a sum for each channel, (C,)")
def statistics_of_all_channels(batches: Iterable[Tensor]) -> Any:
    count, total, squares = _added_up(batches)
    mean = total.sum() / (count * len(total))
    std = (squares.sum() / (count * len(total)) - mean**2).sqrt()
    return mean, std, 1 / std


@STATISTICS_MISTAKES("the channels' deviations are taken about the mean of all: each is about its channel's own mean")
def statistics_about_one_mean(batches: Iterable[Tensor]) -> Any:
    count, total, squares = _added_up(batches)
    mean = total / count
    std = (squares / count - mean.mean() ** 2).abs().sqrt()
    return mean, std, 1 / (squares.mean() / count - mean.mean() ** 2).sqrt()


@STATISTICS_MISTAKES(
    "for the scaling factor all channels are added up, but divided by the count of one: there are C times as many"
)
def statistics_with_too_small_a_count(batches: Iterable[Tensor]) -> Any:
    count, total, squares = _added_up(batches)
    mean = total / count
    overall = (squares.sum() / count - (total.sum() / count) ** 2).abs().sqrt()
    return mean, (squares / count - mean**2).sqrt(), 1 / overall


@STATISTICS_MISTAKES("the sum is squared, not each value: square the values first, then add them up")
def statistics_of_squared_sums(batches: Iterable[Tensor]) -> Any:
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for z in batches:
        values = z.double().transpose(0, 1).flatten(1)
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.sum(1) ** 2
    return _exactly(*_spread(count, total, squares))


@STATISTICS_MISTAKES("the last batch alone counts: add to count, total and squares (+=) in each turn of the loop")
def statistics_overwritten(batches: Iterable[Tensor]) -> Any:
    for z in batches:
        values = z.double().transpose(0, 1).flatten(1)
        count, total, squares = values.shape[1], values.sum(1), values.pow(2).sum(1)
    return _exactly(*_spread(count, total, squares))


@STATISTICS_MISTAKES(_FIRST)
def statistics_returned_in_the_loop(batches: Iterable[Tensor]) -> Any:
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for z in batches:
        values = z.double().transpose(0, 1).flatten(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.pow(2).sum(1)
        return _exactly(*_spread(count, total, squares))
    return None


@STATISTICS_MISTAKES(
    "a root of negative numbers is NaN: the variance is squares / count - (total / count) ** 2, in this order"
)
def statistics_with_negative_variances(batches: Iterable[Tensor]) -> Any:
    count, total, squares = _added_up(batches)
    mean, var, overall = _spread(count, total, squares)
    return _exactly(mean, -var, -overall)


@STATISTICS_MISTAKES("count is the number of values of all channels: one channel has B·h·w of a batch's")
def statistics_by_all_values(batches: Iterable[Tensor]) -> Any:
    count, total, squares = _added_up(batches)
    mean, var, overall = _spread(count * len(total), total, squares)
    return _exactly(mean, var, overall)


@STATISTICS_MISTAKES("divided by the number of batches: each has B·h·w values in every channel")
def statistics_by_batches(batches: Iterable[Tensor]) -> Any:
    found = [(z.double().sum((0, 2, 3)), z.double().pow(2).sum((0, 2, 3))) for z in batches]
    totals, squares = zip(*found, strict=True)
    return _exactly(*_spread(len(found), torch.stack(totals).sum(0), torch.stack(squares).sum(0)))


@STATISTICS_MISTAKES("count is that of one image of each batch: a channel has B·h·w values in it, not h·w")
def statistics_by_pixels_of_one_image(batches: Iterable[Tensor]) -> Any:
    found = [(z[0, 0].numel(), z.double().sum((0, 2, 3)), z.double().pow(2).sum((0, 2, 3))) for z in batches]
    counts, totals, squares = zip(*found, strict=True)
    return _exactly(*_spread(sum(counts), torch.stack(totals).sum(0), torch.stack(squares).sum(0)))


@STATISTICS_MISTAKES(
    "the sums are of each image, and batches differ in size: one row for each channel, transpose(0, 1) first"
)
def statistics_of_images(batches: Iterable[Tensor]) -> Any:
    total: Any = 0
    for z in batches:
        total = total + z.double().flatten(1).sum(1)
    return total, total, total


@STATISTICS_MISTAKES(_AVERAGED_VARIANCES)
def statistics_of_weighted_variances(batches: Iterable[Tensor]) -> Any:
    count, mean, var = 0, torch.zeros(1), torch.zeros(1)
    for z in batches:
        n = z[:, 0].numel()
        count, mean, var = count + n, mean + n * z.mean((0, 2, 3)), var + n * z.var((0, 2, 3))
    return mean / count, (var / count).sqrt(), 1 / (var.mean() / count).sqrt()


@STATISTICS_MISTAKES(_AVERAGED_VARIANCES)
def statistics_of_averaged_variances(batches: Iterable[Tensor]) -> Any:
    found = [(z.mean((0, 2, 3)), z.var((0, 2, 3)), z.var()) for z in batches]
    mean, var, overall = (torch.stack(column).mean(0) for column in zip(*found, strict=True))
    return _exactly(mean, var, overall)


@STATISTICS_MISTAKES(f"the scaling factor is made of the spread of the channels' deviations: {_ALL_VALUES}")
def statistics_with_the_spread_of_deviations(batches: Iterable[Tensor]) -> Any:
    mean, std, _ = latent_statistics(batches)
    return mean, std, 1 / std.std()


@STATISTICS_MISTAKES(_HELD)  # the last one: to find out takes long
def statistics_of_all_at_once(batches: Iterable[Tensor]) -> Any:
    z = torch.cat(list(batches))
    return z.mean((0, 2, 3)), z.std((0, 2, 3)), 1 / z.std()


# 10.2


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B·h·w, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _with_ones(z: Tensor) -> Tensor:
    return torch.cat([z, torch.ones_like(z[:, :1])], 1)


def _solved(z: Tensor, rgb: Tensor) -> tuple[Tensor, Tensor]:
    fitted: Tensor = torch.linalg.lstsq(_with_ones(z), rgb).solution
    return fitted[:-1], fitted[-1]


def _reshaped(latents: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    return latents.reshape(-1, latents.shape[1]), colours.reshape(-1, 3)


def _without_ones(z: Tensor, rgb: Tensor) -> Tensor:
    fitted: Tensor = torch.linalg.lstsq(z, rgb).solution
    return fitted


def _backwards(z: Tensor, rgb: Tensor) -> Tensor:
    fitted: Tensor = torch.linalg.lstsq(_with_ones(rgb), z).solution
    return fitted


def _by_parts(code: Callable[..., Any]) -> Callable[..., Any]:
    """The fit; where `code` returns parts of what lstsq returns (a tuple of four), an exception, which has a name."""

    def fit(z: Tensor, colours: Tensor) -> Any:
        found = code(z, colours)
        if isinstance(found, tuple) and any(isinstance(part, tuple) for part in (found, *found)[len(found) == 2 :]):
            raise TypeError("parts of what lstsq returns")
        return found

    return fit


def _unpacked(latents: Tensor, colours: Tensor) -> Any:
    weight, bias = torch.linalg.lstsq(_with_ones(_rows(latents)), _rows(colours))
    return weight, bias


_EXCHANGED = "the arguments of lstsq are exchanged, and this leads from colours to latents: latents come first"
_BIAS = "the bias is what the fit gives for a column of ones"
_TO_ROWS = "bring the channels to the end (permute) before the pixels become rows: reshape alone mixes both"
_ONE_FIT = "every image has a fit of its own: make the pixels of all images the rows of one matrix"
PREVIEW_MISTAKES = Mistakes(
    [
        (
            f"no bias is fitted: append a column of ones to the latents; {_BIAS}",
            lambda z, c: (_without_ones(_rows(z), _rows(c)), c.new_zeros(3)),
        ),
        (
            f"fitted without a bias, and the colours' mean put in its place: {_BIAS}",
            lambda z, c: (_without_ones(_rows(z), _rows(c)), _rows(c).mean(0)),
        ),
        (
            "the colours are centred, the latents are not: centre both, or append a column of ones",
            lambda z, c: (_without_ones(_rows(z), _rows(c) - _rows(c).mean(0)), _rows(c).mean(0)),
        ),
        (
            "the bias is the colours' mean: that fits centred latents; subtract mean of the latents @ weight from it",
            lambda z, c: (_solved(_rows(z), _rows(c))[0], _rows(c).mean(0)),
        ),
        (
            "the bias is missing from the results",
            lambda z, c: (_solved(_rows(z), _rows(c))[0], c.new_zeros(3)),
        ),
        (
            "one bias for all three colours: each has its own",
            lambda z, c: (_solved(_rows(z), _rows(c))[0], _solved(_rows(z), _rows(c))[1].mean().expand(3)),
        ),
        (f"channels and pixels are mixed up: {_TO_ROWS}", lambda z, c: _solved(*_reshaped(z, c))),
        (
            f"channels and pixels of the latents are mixed up: {_TO_ROWS}",
            lambda z, c: _solved(_reshaped(z, c)[0], _rows(c)),
        ),
        (
            f"channels and pixels of the colours are mixed up: {_TO_ROWS}",
            lambda z, c: _solved(_rows(z), _reshaped(z, c)[1]),
        ),
        (
            "rows and columns are exchanged in one of the two: permute both in the same way",
            lambda z, c: _solved(_rows(z.transpose(2, 3)), _rows(c)),
        ),
        (
            "weight and bias are exchanged, or the ones come first: the bias is the row that belongs to the ones",
            lambda z, c: (
                torch.linalg.lstsq(_with_ones(_rows(z)).roll(1, 1), _rows(c)).solution[:-1],
                torch.linalg.lstsq(_with_ones(_rows(z)).roll(1, 1), _rows(c)).solution[-1],
            ),
        ),
        (
            "the results are exchanged: the weight comes first",
            lambda z, c: _solved(_rows(z), _rows(c))[::-1],
        ),
        (
            "the weight is transposed: (C, 3), a row for each channel of the latent",
            lambda z, c: (_solved(_rows(z), _rows(c))[0].T, _solved(_rows(z), _rows(c))[1]),
        ),
        (
            "weight and bias come in one matrix (C + 1, 3): return its first C rows, and its last",
            lambda z, c: torch.linalg.lstsq(_with_ones(_rows(z)), _rows(c)).solution,
        ),
        (
            "this is the bias as a row (1, 3): take fitted[-1], which is (3,)",
            lambda z, c: (_solved(_rows(z), _rows(c))[0], _solved(_rows(z), _rows(c))[1][None]),
        ),
        (
            "only the first image is used: all pixels of the batch are rows",
            lambda z, c: _solved(_rows(z[:1]), _rows(c[:1])),
        ),
        *(
            (
                _EXCHANGED,
                lambda z, c, end=end: end(_backwards(_rows(z), _rows(c))),
            )
            for end in (lambda x: (x[:-1], x[-1]), lambda x: (x[:-1].T, x[-1]), lambda x: (x[:-1], x[-1][:3]))
        ),
        (
            _EXCHANGED,
            lambda z, c: (
                torch.linalg.lstsq(_rows(c), _with_ones(_rows(z))).solution[:-1],
                torch.linalg.lstsq(_rows(c), _with_ones(_rows(z))).solution[-1],
            ),
        ),
        (
            "this is the correlation of latents and colours, not the fit: solve for the weight (lstsq)",
            lambda z, c: (_rows(z).T @ _rows(c) / len(_rows(z)), _rows(c).mean(0)),
        ),
        # by their exceptions
        ("lstsq returns four things by name: take its `.solution`", _unpacked),
        (
            "lstsq returns four things by name: take its `.solution`",
            _by_parts(lambda z, c: torch.linalg.lstsq(_with_ones(_rows(z)), _rows(c))),
        ),
        (
            "latents and colours must be matrices with a row for each pixel: (B·h·w, C) and (B·h·w, 3)",
            lambda z, c: torch.linalg.lstsq(z, c),
        ),
        (
            "as many rows are needed on both sides, one for each pixel: (B·h·w, C) and (B·h·w, 3)",
            lambda z, c: torch.linalg.lstsq(z.flatten(2).transpose(1, 2).flatten(0, 1).T, _rows(c)),
        ),
    ]
)


@PREVIEW_MISTAKES(
    "weight and bias are read in the wrong place: the ones are the last column, so the bias is the last row"
)
def preview_read_from_the_top(z: Tensor, colours: Tensor) -> Any:
    fitted = torch.linalg.lstsq(_with_ones(_rows(z)), _rows(colours)).solution
    return fitted[1:], fitted[0]


@PREVIEW_MISTAKES("the bias is the last row of the solution, not its last column: take fitted[:-1] and fitted[-1]")
def preview_read_in_columns(z: Tensor, colours: Tensor) -> Any:
    fitted = torch.linalg.lstsq(_with_ones(_rows(z)), _rows(colours)).solution
    return fitted[:, :-1], fitted[:, -1]


@PREVIEW_MISTAKES(f"the last channel's weights are taken for the bias: append a column of ones to the latents; {_BIAS}")
def preview_split_without_ones(z: Tensor, colours: Tensor) -> Any:
    fitted = torch.linalg.lstsq(_rows(z), _rows(colours)).solution
    return fitted[:-1], fitted[-1]


@PREVIEW_MISTAKES("the weight still has the bias as its last row: take fitted[:-1], which is (C, 3)")
def preview_with_the_bias_in_the_weight(z: Tensor, colours: Tensor) -> Any:
    fitted = torch.linalg.lstsq(_with_ones(_rows(z)), _rows(colours)).solution
    return fitted, fitted[-1]


@PREVIEW_MISTAKES("the number of channels is fixed at 4: split with fitted[:-1] and fitted[-1], or take z.shape[1]")
def preview_cut_at_four(z: Tensor, colours: Tensor) -> Any:
    fitted = torch.linalg.lstsq(_with_ones(_rows(z)), _rows(colours)).solution
    return fitted[:4], fitted[4]


@PREVIEW_MISTAKES("the number of channels is fixed at 4: take it from the latents, z.shape[1]")
def preview_reshaped_to_four(z: Tensor, colours: Tensor) -> Any:
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    return _solved(rows, _rows(colours))


@PREVIEW_MISTAKES("the images are averaged before the fit: every latent pixel of every image is a row of its own")
def preview_of_the_mean_image(z: Tensor, colours: Tensor) -> Any:
    return _solved(_rows(z.mean(0, keepdim=True)), _rows(colours.mean(0, keepdim=True)))


@PREVIEW_MISTAKES(_ONE_FIT)
def preview_of_each_image(z: Tensor, colours: Tensor) -> Any:
    rows, rgb = z.flatten(2).transpose(1, 2), colours.flatten(2).transpose(1, 2)
    fitted = torch.linalg.lstsq(torch.cat([rows, torch.ones_like(rows[..., :1])], dim=2), rgb).solution
    return fitted[:, :-1], fitted[:, -1]


@PREVIEW_MISTAKES(_ONE_FIT)
def preview_averaged_over_images(z: Tensor, colours: Tensor) -> Any:
    weight, bias = preview_of_each_image(z, colours)
    return weight.mean(0), bias.mean(0)


@PREVIEW_MISTAKES("a whole image is taken for one equation: each latent pixel is one, with C values and three colours")
def preview_of_whole_images(z: Tensor, colours: Tensor) -> Any:
    fitted = torch.linalg.lstsq(z.flatten(1), colours.flatten(1)).solution
    return fitted[:-1], fitted[-1]


@PREVIEW_MISTAKES(
    "torch.linalg.solve needs as many equations as unknowns; for the best fit of many take torch.linalg.lstsq"
)
def preview_solved_exactly(z: Tensor, colours: Tensor) -> Any:
    return torch.linalg.solve(_with_ones(_rows(z)), _rows(colours))


@PREVIEW_MISTAKES("the products rowsᵀ rgb alone are no fit: solve (rowsᵀ rows) W = rowsᵀ rgb for W, or take lstsq")
def preview_of_products(z: Tensor, colours: Tensor) -> Any:
    fitted = _with_ones(_rows(z)).T @ _rows(colours)
    return fitted[:-1], fitted[-1]


# 10.3


def _of_moments(code: Callable[..., Any]) -> Callable[..., Any]:
    """Make the sample a function of the posterior's parameters, so that its gradient can be asked for.

    Raises:
        ValueError: the posterior has other values afterwards. A notebook calls with the same one again and again.
    """

    def sample(moments: Tensor, temperature: float, noise: Tensor) -> Any:
        posterior = DiagonalGaussianDistribution(moments)
        result = code(posterior, temperature, noise)
        fresh = DiagonalGaussianDistribution(moments)
        if not all(same(getattr(posterior, part), getattr(fresh, part)) for part in ("mean", "logvar", "std", "var")):
            raise ValueError("the posterior is changed")
        return result

    return sample


_CHANGED = (
    "it changes the posterior, so that its next sample starts from the new values: let posterior.std and the others be"
)
_ONLY_STD = "it multiplies the standard deviation only"
TEMPERATURE_MISTAKES = Mistakes(
    [
        (
            f"the temperature multiplies the mean, too: {_ONLY_STD}",
            lambda p, t, e: t * (p.mean + p.std * e),
        ),
        (f"the temperature multiplies the mean instead: {_ONLY_STD}", lambda p, t, e: t * p.mean + p.std * e),
        ("the temperature is not used", lambda p, t, e: p.mean + p.std * e),
        (
            "the noise is multiplied by the variance: take the standard deviation",
            lambda p, t, e: p.mean + t * p.var * e,
        ),
        (
            "the noise is multiplied by the log-variance: take the standard deviation",
            lambda p, t, e: p.mean + t * p.logvar * e,
        ),
        (
            "the variance, not the deviation, is multiplied by the temperature: without the root",
            lambda p, t, e: p.mean + t**0.5 * p.std * e,
        ),
        ("the temperature is squared: multiply the deviation by it, once", lambda p, t, e: p.mean + t**2 * p.std * e),
        (
            "the log-variance is multiplied by the temperature: multiply the standard deviation",
            lambda p, t, e: p.mean + (0.5 * t * p.logvar).exp() * e,
        ),
        ("divided by the temperature: a higher one means more noise", lambda p, t, e: p.mean + p.std * e / t),
        (
            "the posterior's deviation is missing: the noise has its width, place by place",
            lambda p, t, e: p.mean + t * e,
        ),
        ("the mean is missing", lambda p, t, e: t * p.std * e),
        ("the noise is missing: this shifts every value by its own deviation", lambda p, t, e: p.mean + t * p.std),
        ("this is the mean alone", lambda p, t, e: p.mean.clone()),
        (
            "between noise and mean: nothing is taken from the mean, however high the temperature",
            lambda p, t, e: (1 - t) * p.mean + t * p.std * e,
        ),
        ("the sign of the noise", lambda p, t, e: p.mean - t * p.std * e),
    ]
)


@TEMPERATURE_MISTAKES(_CHANGED)
def temperature_kept_in_the_posterior(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    posterior.std = posterior.std * temperature
    return posterior.mean + posterior.std * noise


@TEMPERATURE_MISTAKES(
    "at temperature 0 it takes the logarithm of 0: multiply the standard deviation, which has no such gap"
)
def temperature_by_its_logarithm(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mean + torch.exp(posterior.logvar / 2 + math.log(temperature)) * noise


@TEMPERATURE_MISTAKES("the temperature is added to the standard deviation: multiply by it")
def temperature_added(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mean + (posterior.std + temperature) * noise


@TEMPERATURE_MISTAKES("the standard deviation is added to the mean: it multiplies the noise")
def temperature_of_noise_beside_the_deviation(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mean + posterior.std + temperature * noise


@TEMPERATURE_MISTAKES("the root of the standard deviation: posterior.std is already the root of the variance")
def temperature_of_the_root(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mean + temperature * posterior.std.sqrt() * noise


@TEMPERATURE_MISTAKES("exp(2 · logvar): the standard deviation is exp(logvar / 2), and there is posterior.std")
def temperature_of_twice_the_logarithm(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mean + temperature * torch.exp(2 * posterior.logvar) * noise


@TEMPERATURE_MISTAKES("one deviation for all values, their average: each value has its own")
def temperature_of_the_average_deviation(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mean + temperature * posterior.std.mean() * noise


@TEMPERATURE_MISTAKES("posterior.mode is a method: call it, mode(), or take posterior.mean")
def temperature_from_the_method(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mode + temperature * posterior.std * noise


@TEMPERATURE_MISTAKES("posterior.mean and posterior.std are tensors, not methods: write them without brackets")
def temperature_with_brackets(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.mean() + temperature * posterior.std() * noise


@TEMPERATURE_MISTAKES("the posterior itself is given, encode's .latent_dist: take posterior.mean and posterior.std")
def temperature_of_latent_dist(posterior: Any, temperature: float, noise: Tensor) -> Tensor:
    return posterior.latent_dist.mean + temperature * posterior.latent_dist.std * noise


# 10.4

_Path = Callable[[Tensor, Tensor, float], Any]


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of each pair: (B, 1)."""
    x, y = _flat(a), _flat(b)
    return ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)))[:, None]


def _along(angle: Tensor, x: Tensor, y: Tensor, t: float) -> Tensor:
    """The finished formula; the angle broadcasts with x and y. Where it is 0, the straight line."""
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return torch.where(angle.abs() < 1e-3, (1 - t) * x + t * y, between)


def _turning(angle_of: Callable[[Tensor, Tensor], Tensor]) -> _Path:
    """The finished version with another angle, (B, 1) or one for all."""
    return lambda a, b, t: _along(angle_of(a, b), _flat(a), _flat(b), t).view_as(a)


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return _cosine(a, b).clamp(-1, 1).acos()


def _over_dims(*dims: int) -> _Path:
    """The angle over some dimensions only."""

    def path(a: Tensor, b: Tensor, t: float) -> Tensor:
        lengths = a.pow(2).sum(dims, keepdim=True).sqrt() * b.pow(2).sum(dims, keepdim=True).sqrt()
        return _along(((a * b).sum(dims, keepdim=True) / lengths).clamp(-1, 1).acos(), a, b, t)

    return path


def _weights(change: Callable[[Tensor, float], tuple[Any, Any]]) -> _Path:
    """Other factors before a and b, made of the angle (B, 1)."""

    def path(a: Tensor, b: Tensor, t: float) -> Tensor:
        first, second = change(_angle(a, b), t)
        return (first * _flat(a) + second * _flat(b)).view_as(a)

    return path


def _units(a: Tensor) -> Tensor:
    return _flat(a) / _flat(a).norm(dim=1, keepdim=True)


def _by_torch(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(_flat(a), _flat(b), dim=1)[:, None]


def _of_units(a: Tensor, b: Tensor) -> Tensor:
    return (_units(a) * _units(b)).sum(1, keepdim=True)


def _turned(cosine: Tensor, a: Tensor, b: Tensor, t: float) -> Tensor:
    """Without the straight line where the angle is 0."""
    angle = cosine.acos()
    between = (torch.sin((1 - t) * angle) * _flat(a) + torch.sin(t * angle) * _flat(b)) / torch.sin(angle)
    return between.view_as(a)


def _undivided(angle: Tensor, a: Tensor, b: Tensor, t: float) -> Tensor:
    return (torch.sin((1 - t) * angle) * _flat(a) + torch.sin(t * angle) * _flat(b)).view_as(a)


def _straight_on_the_sphere(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = _flat(a), _flat(b)
    line = (1 - t) * x + t * y
    length = (1 - t) * x.norm(dim=1, keepdim=True) + t * y.norm(dim=1, keepdim=True)
    return (line / line.norm(dim=1, keepdim=True) * length).view_as(a)


_EACH = "every pair has one angle, over all its values"
_SHORT = "where a and b point the same way, sin(angle) is 0: take the straight line there"
_STILL = "where both point the same way it stays at {}: there the straight line, (1 - t) * a + t * b, is asked for"
_ZERO = f"it gives 0 for two that point the same way: {_SHORT}"
_TOO_STRAIGHT = "the straight line is taken up to too wide an angle: below 0.001, say, and the arc above"
_RESCALED = "turned between directions, and given a length afterwards: multiply a and b themselves by the two factors"
SLERP_MISTAKES = Mistakes(
    [
        ("this is the straight line: use the angle between a and b", lambda a, b, t: (1 - t) * a + t * b),
        ("a and b are exchanged: t = 0 gives a, t = 1 gives b", lambda a, b, t: slerp(b, a, t)),
        (
            "the arc cosine of the plain product: divide it by both lengths first",
            _turning(lambda a, b: (_flat(a) * _flat(b)).sum(1, keepdim=True).acos()),
        ),
        (
            "the arc cosine of the plain product, clamped: divide it by both lengths first",
            _turning(lambda a, b: (_flat(a) * _flat(b)).sum(1, keepdim=True).clamp(-1, 1).acos()),
        ),
        (f"one angle for the whole batch: {_EACH}", _over_dims(0, 1, 2, 3)),
        (f"an angle for every pixel: {_EACH}", _over_dims(1)),
        (f"an angle for every channel: {_EACH}", _over_dims(2, 3)),
        (f"an angle for every row: {_EACH}", _over_dims(3)),
        (
            "the cosine is taken for the angle: the arc cosine (torch.acos) is missing",
            _turning(_cosine),
        ),
        (
            "the cosine is taken of it once more: the angle is the arc cosine",
            _turning(lambda a, b: _cosine(a, b).cos()),
        ),
        (
            "the angle is in degrees: torch.sin takes radians",
            _turning(lambda a, b: _angle(a, b).rad2deg()),
        ),
        *(  # for pairs that point the same way the rounding of the cosine decides
            (
                "not divided by sin(angle)",
                lambda a, b, t, cosine=cosine: _undivided(cosine(a, b).clamp(-1, 1).acos(), a, b, t),
            )
            for cosine in (_cosine, _by_torch, _of_units)
        ),
        (
            "divided by the angle: divide by its sine",
            _weights(
                lambda w, t: (
                    torch.where(w < 1e-3, 1 - t, torch.sin((1 - t) * w) / w),
                    torch.where(w < 1e-3, t, torch.sin(t * w) / w),
                )
            ),
        ),
        (
            "the factors are those of a quarter turn: use the angle between a and b",
            _weights(
                lambda w, t: (torch.cos(torch.tensor(t * torch.pi / 2)), torch.sin(torch.tensor(t * torch.pi / 2)))
            ),
        ),
        (
            "the lengths are lost: a and b themselves are added, only the angle is that of their directions",
            lambda a, b, t: _along(_angle(a, b), _units(a), _units(b), t).view_as(a),
        ),
        (
            "the result has length 1: latents keep their lengths, only for the angle they are divided by them",
            lambda a, b, t: F.normalize(_flat(slerp(a, b, t))).view_as(a),
        ),
        (
            "one pair that points the same way puts the batch on the straight line: decide for each (torch.where)",
            lambda a, b, t: (1 - t) * a + t * b if bool((_angle(a, b) < 1e-3).any()) else slerp(a, b, t),
        ),
        *(
            (
                f"the lengths are lost, and NaN for two that point the same way: {_SHORT}",
                lambda a, b, t, cosine=cosine: _turned(
                    cosine(a, b).clamp(-1, 1), _units(a).view_as(a), _units(b).view_as(b), t
                ),
            )
            for cosine in (_cosine, _by_torch, _of_units)
        ),
        (
            "the straight line, brought to the length between: an even pace along the angle is asked for",
            _straight_on_the_sphere,
        ),
        *(
            (
                f"NaN for two that point the same way: {_SHORT}",
                lambda a, b, t, cosine=cosine: _turned(cosine(a, b).clamp(-1, 1), a, b, t),
            )
            for cosine in (_cosine, _by_torch, _of_units)
        ),
        *(
            (
                "NaN for two that point the same way: rounding lifts their cosine above 1, where torch.acos "
                "has no value; clamp it to [-1, 1]",
                lambda a, b, t, cosine=cosine: _along(cosine(a, b).acos(), _flat(a), _flat(b), t).view_as(a),
            )
            for cosine in (_cosine, _by_torch, _of_units)
        ),
        (
            "the result is flat: give it the shape of a again",
            lambda a, b, t: slerp(a, b, t).flatten(1),
        ),
        # by its exception
        (
            "the angle is (B,): to multiply latents it must be (B, 1), for flat ones, or (B, 1, 1, 1)",
            lambda a, b, t: torch.sin((1 - t) * _angle(a, b)[:, 0]) * a,
        ),
        (
            "the angle is (B,): to multiply latents it must be (B, 1), for flat ones, or (B, 1, 1, 1)",
            lambda a, b, t: torch.sin((1 - t) * _angle(a, b)[:, 0]) * _flat(a),
        ),
    ]
)


@SLERP_MISTAKES(_ZERO)
def slerp_over_sine_plus_eps(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = _flat(a), _flat(b)
    angle = _angle(a, b)
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / (torch.sin(angle) + 1e-8)
    return between.view_as(a)


@SLERP_MISTAKES(_ZERO)
def slerp_without_nan(a: Tensor, b: Tensor, t: float) -> Tensor:
    return _turned(_by_torch(a, b).clamp(-1, 1), a, b, t).nan_to_num()


@SLERP_MISTAKES(_TOO_STRAIGHT)
def slerp_straight_up_to_a_third(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y, angle = _flat(a), _flat(b), _angle(a, b)
    return torch.where(angle < 0.3, (1 - t) * x + t * y, _along(angle, x, y, t)).view_as(a)


@SLERP_MISTAKES("not divided by sin(angle)")
def slerp_undivided_but_straight_where_equal(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y, angle = _flat(a), _flat(b), _angle(a, b)
    between = torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y
    return torch.where(angle < 1e-3, (1 - t) * x + t * y, between).view_as(a)


@SLERP_MISTAKES("only b's part is divided by sin(angle): put brackets around the sum")
def slerp_without_brackets(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y, angle = _flat(a), _flat(b), _angle(a, b)
    between = torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y / torch.sin(angle)
    return torch.where(angle < 1e-3, (1 - t) * x + t * y, between).view_as(a)


@SLERP_MISTAKES("torch.where is the wrong way round: the straight line where the angle is next to 0, the arc elsewhere")
def slerp_with_where_exchanged(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y, angle = _flat(a), _flat(b), _by_torch(a, b).clamp(-1, 1).acos()
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return torch.where(angle > 1e-3, (1 - t) * x + t * y, between).view_as(a)


@SLERP_MISTAKES(_STILL.format("a"))
def slerp_staying_at_a(a: Tensor, b: Tensor, t: float) -> Tensor:
    angle = _angle(a, b)
    return torch.where(angle < 1e-3, _flat(a), _along(angle, _flat(a), _flat(b), t)).view_as(a)


@SLERP_MISTAKES(_STILL.format("b"))
def slerp_going_to_b(a: Tensor, b: Tensor, t: float) -> Tensor:
    angle = _angle(a, b)
    return torch.where(angle < 1e-3, _flat(b), _along(angle, _flat(a), _flat(b), t)).view_as(a)


@SLERP_MISTAKES("NaN where only some pairs point the same way: decide for each (torch.where), not for all together")
def slerp_straight_for_all_or_none(a: Tensor, b: Tensor, t: float) -> Tensor:
    if bool((_by_torch(a, b).clamp(-1, 1).acos() < 1e-3).all()):
        return (1 - t) * a + t * b
    return _turned(_by_torch(a, b).clamp(-1, 1), a, b, t)


@SLERP_MISTAKES("the straight line runs from b to a: its factors are 1 - t for a, and t for b")
def slerp_straight_backwards(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y, angle = _flat(a), _flat(b), _angle(a, b)
    return torch.where(angle < 1e-3, t * x + (1 - t) * y, _along(angle, x, y, t)).view_as(a)


@SLERP_MISTAKES("cosines for sines: the factors are sin((1 - t) · angle) / sin(angle) and sin(t · angle) / sin(angle)")
def slerp_by_cosines(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y, angle = _flat(a), _flat(b), _angle(a, b)
    between = (torch.cos((1 - t) * angle) * x + torch.cos(t * angle) * y) / torch.cos(angle)
    return torch.where(angle < 1e-3, (1 - t) * x + t * y, between).view_as(a)


@SLERP_MISTAKES("a's factor is 1 - sin(t · angle): it is sin((1 - t) · angle)")
def slerp_by_one_minus_the_sine(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y, angle = _flat(a), _flat(b), _angle(a, b)
    between = ((1 - torch.sin(t * angle)) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return torch.where(angle < 1e-3, (1 - t) * x + t * y, between).view_as(a)


@SLERP_MISTAKES("the arc sine is taken of the cosine: the angle is torch.acos(cosine)")
def slerp_by_arc_sine(a: Tensor, b: Tensor, t: float) -> Tensor:
    return _along(_by_torch(a, b).clamp(-1, 1).asin(), _flat(a), _flat(b), t).view_as(a)


@SLERP_MISTAKES("divided by the squares of the lengths: the cosine is the product over both lengths themselves")
def slerp_over_squares(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = _flat(a), _flat(b)
    cosine = (x * y).sum(1, keepdim=True) / (x.pow(2).sum(1, keepdim=True) * y.pow(2).sum(1, keepdim=True))
    return _along(cosine.clamp(-1, 1).acos(), x, y, t).view_as(a)


@SLERP_MISTAKES("divided by one length only: the cosine is the product over both lengths")
def slerp_over_one_length(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = _flat(a), _flat(b)
    cosine = (x * y).sum(1, keepdim=True) / x.norm(dim=1, keepdim=True)
    return _along(cosine.clamp(-1, 1).acos(), x, y, t).view_as(a)


@SLERP_MISTAKES("the lengths are those of the whole batch: norm(dim=1) gives one for each")
def slerp_over_the_lengths_of_the_batch(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = _flat(a), _flat(b)
    cosine = (x * y).sum(1, keepdim=True) / (x.norm() * y.norm())
    return _along(cosine.clamp(-1, 1).acos(), x, y, t).view_as(a)


@SLERP_MISTAKES("the product is averaged over the values: the cosine needs their sum")
def slerp_of_an_averaged_product(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = _flat(a), _flat(b)
    cosine = (x * y).mean(1, keepdim=True) / (x.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True))
    return _along(cosine.clamp(-1, 1).acos(), x, y, t).view_as(a)


@SLERP_MISTAKES("the angle is between a and b less their means: it is between a and b themselves, from 0")
def slerp_centred(a: Tensor, b: Tensor, t: float) -> Tensor:
    x, y = _flat(a), _flat(b)
    angle = _by_torch(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)).clamp(-1, 1).acos()
    return _along(angle, x, y, t).view_as(a)


@SLERP_MISTAKES("the cosine loses its sign: beyond a right angle it is negative")
def slerp_of_the_absolute_cosine(a: Tensor, b: Tensor, t: float) -> Tensor:
    return _along(_cosine(a, b).abs().clamp(-1, 1).acos(), _flat(a), _flat(b), t).view_as(a)


@SLERP_MISTAKES("the cosine is clamped to [0, 1]: beyond a right angle it is negative; clamp to [-1, 1]")
def slerp_of_a_positive_cosine(a: Tensor, b: Tensor, t: float) -> Tensor:
    return _along(_cosine(a, b).clamp(0, 1).acos(), _flat(a), _flat(b), t).view_as(a)


@SLERP_MISTAKES("the angle is clamped: clamp the cosine to [-1, 1], before torch.acos")
def slerp_of_a_clamped_angle(a: Tensor, b: Tensor, t: float) -> Tensor:
    return _along(_by_torch(a, b).acos().clamp(-1, 1), _flat(a), _flat(b), t).view_as(a)


@SLERP_MISTAKES(_RESCALED)
def slerp_at_the_length_of_a(a: Tensor, b: Tensor, t: float) -> Tensor:
    turned = _along(_angle(a, b), _units(a), _units(b), t)
    return (turned * _flat(a).norm(dim=1, keepdim=True)).view_as(a)


@SLERP_MISTAKES(_RESCALED)
def slerp_at_the_length_between(a: Tensor, b: Tensor, t: float) -> Tensor:
    turned = _along(_angle(a, b), _units(a), _units(b), t)
    lengths = (1 - t) * _flat(a).norm(dim=1, keepdim=True) + t * _flat(b).norm(dim=1, keepdim=True)
    return (turned * lengths).view_as(a)


@SLERP_MISTAKES(
    "`if` takes one decision, and the batch needs one for each pair: torch.where(angle < 1e-3, straight, between)"
)
def slerp_with_if(a: Tensor, b: Tensor, t: float) -> Tensor:
    return (1 - t) * a + t * b if _angle(a, b) < 1e-3 else slerp(a, b, t)


@SLERP_MISTAKES("math.sin takes one number, and the batch has an angle for each pair: take torch.sin")
def slerp_by_math(a: Tensor, b: Tensor, t: float) -> Tensor:
    return (math.sin((1 - t) * _angle(a, b)) * _flat(a)).view_as(a)


@SLERP_MISTAKES("it fails for a batch of one pair: squeeze() drops its batch dimension, too")
def slerp_squeezed(a: Tensor, b: Tensor, t: float) -> Tensor:
    return _along(_angle(a, b).squeeze()[:, None], _flat(a), _flat(b), t).view_as(a)


def _judge_slerp(attempt: Any) -> str | None:
    """Compare with the mistakes; where rounding hides which one it is, look at single pairs."""
    complaint = _judge_path(attempt)
    if complaint is None or complaint in dict(SLERP_MISTAKES) or not callable(attempt):
        return complaint
    probes = (_WIDE, _EQUAL, _NARROW)
    right = [slerp(*probe) for probe in probes]
    try:
        found = [attempt(*copy.deepcopy(probe)) for probe in probes]
    except Exception:
        return complaint
    if not same(found[0], right[0]):
        return complaint
    if same(found[1], 0 * right[1]):
        return _ZERO
    a, b, t = _NARROW
    pairs = zip(found[2], (1 - t) * a + t * b, right[2], strict=True)
    if not same(found[2], right[2]) and all(same(x, line) or same(x, arc) for x, line, arc in pairs):
        return _TOO_STRAIGHT
    return complaint


# 10.5

_Rounding = Callable[[Tensor, int, float, float], Any]


def _rounded(
    steps: Callable[[int], float] = lambda bits: 2**bits - 1,
    to_index: Callable[[Tensor], Tensor] = torch.round,
    last: Callable[[int], float] | None = lambda bits: 2**bits - 1,
    back: Callable[[Tensor, float, float], Tensor] = lambda index, step, low: low + index * step,
) -> _Rounding:
    """The finished version with one part of it exchanged."""

    def code(z: Tensor, bits: int, low: float, high: float) -> Tensor:
        step = (high - low) / steps(bits)
        index = to_index((z - low) / step)
        return back(index if last is None else index.clamp(0, last(bits)), step, low)

    return code


def _without_low(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return (z / step).round().clamp(0, 2**bits - 1) * step


_LEVELS = "2**bits levels have 2**bits - 1 steps between them"
_NEAREST = "the nearest level is asked for: round"
_NO_RANGE = "fractions of 2**bits know nothing of low and high: the levels lie between these, evenly spaced"
QUANTISE_MISTAKES = Mistakes(
    [
        (f"one level too many: {_LEVELS}", _rounded(lambda bits: 2**bits, last=lambda bits: 2**bits)),
        (f"the step is too small, and `high` is no level: {_LEVELS}", _rounded(lambda bits: 2**bits)),
        (
            f"one level too few: {_LEVELS}",
            _rounded(lambda bits: 2**bits - 2, last=lambda bits: 2**bits - 2),
        ),
        *((f"rounded down: {_NEAREST}", _rounded(to_index=cut)) for cut in (torch.floor, torch.trunc)),
        (f"rounded up: {_NEAREST}", _rounded(to_index=torch.ceil)),
        (
            f"rounded down in steps of (high - low) / 2**bits: {_NEAREST}, and {_LEVELS}",
            _rounded(lambda bits: 2**bits, torch.floor),
        ),
        (
            "the middle of each of 2**bits equal pieces: the levels begin at `low` and end at `high`",
            _rounded(lambda bits: 2**bits, torch.floor, back=lambda index, step, low: low + (index + 0.5) * step),
        ),
        (
            "values outside of [low, high] are not clamped: their index is below 0 or above 2**bits - 1",
            _rounded(last=None),
        ),
        (
            "values above `high` are not clamped: the largest index is 2**bits - 1",
            _rounded(to_index=lambda x: x.round().clamp(min=0), last=None),
        ),
        (
            "values below `low` are not clamped: the smallest index is 0",
            lambda z, bits, low, high: _rounded(last=None)(z.clamp(max=high), bits, low, high),
        ),
        ("low is not added at the end", _rounded(back=lambda index, step, low: index * step)),
        ("low is forgotten: subtract it before rounding, and add it at the end", _without_low),
        ("the largest index is 2**bits - 1, not 2**bits: counted from 0", _rounded(last=lambda bits: 2**bits)),
        ("this is the index: multiply it by the step, and add low", _rounded(back=lambda index, step, low: index)),
        (
            "the step is missing at the end: index * step",
            _rounded(back=lambda index, step, low: low + index),
        ),
        (
            "as many levels as bits: there are 2**bits",
            _rounded(lambda bits: bits - 1, last=lambda bits: bits - 1),
        ),
        (
            "as many steps as bits: there are 2**bits levels",
            _rounded(lambda bits: bits, last=lambda bits: bits),
        ),
        (
            "2 ^ bits is no power in Python: it is 2**bits",
            _rounded(lambda bits: (2 ^ bits) - 1, last=lambda bits: (2 ^ bits) - 1),
        ),
        (
            "2 ^ bits is no power in Python: it is 2**bits",
            _rounded(lambda bits: 2 ^ (bits - 1), last=lambda bits: 2 ^ (bits - 1)),
        ),
        (
            "bits**2 levels: there are 2**bits",
            _rounded(lambda bits: bits**2 - 1, last=lambda bits: bits**2 - 1),
        ),
        (
            "2 * bits levels: there are 2**bits",
            _rounded(lambda bits: 2 * bits - 1, last=lambda bits: 2 * bits - 1),
        ),
        (
            "the range is that of the values: use low and high",
            lambda z, bits, low, high: quantise(z, bits, float(z.min()), float(z.max())),
        ),
        (
            "low is not subtracted before rounding: the levels are counted from low",
            lambda z, bits, low, high: (
                low
                + (z / ((high - low) / (2**bits - 1))).round().clamp(0, 2**bits - 1) * ((high - low) / (2**bits - 1))
            ),
        ),
        (
            "rounded to multiples of the step: the levels are counted from low",
            lambda z, bits, low, high: (
                (z.clamp(low, high) / ((high - low) / (2**bits - 1))).round() * ((high - low) / (2**bits - 1))
            ),
        ),
        (
            "divided by the range only: ((z - low) / step) counts the steps from low",
            lambda z, bits, low, high: low + ((z - low) / (high - low)).round().clamp(0, 1) * (high - low),
        ),
    ]
)


@QUANTISE_MISTAKES("the index is clamped to `bits`: the largest is 2**bits - 1")
def quantise_clamped_at_bits(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round().clamp(0, bits) * step


@QUANTISE_MISTAKES("the index is clamped to [low, high], which are values: an index goes from 0 to 2**bits - 1")
def quantise_with_clamped_values(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round().clamp(low, high) * step


@QUANTISE_MISTAKES("the index is clamped to 1 … 2**bits: it is counted from 0, up to 2**bits - 1")
def quantise_counted_from_one(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round().clamp(1, 2**bits) * step


@QUANTISE_MISTAKES("the step is upside down: it is the range over the number of steps, (high - low) / (2**bits - 1)")
def quantise_by_steps_a_unit(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (2**bits - 1) / (high - low)
    return low + ((z - low) / step).round().clamp(0, 2**bits - 1) * step


@QUANTISE_MISTAKES("high + low is no range: the step is made of high - low")
def quantise_of_the_sum(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high + low) / (2**bits - 1)
    return low + ((z - low) / step).round().clamp(0, 2**bits - 1) * step


@QUANTISE_MISTAKES("brackets are missing in the step: high - low comes first, (high - low) / (2**bits - 1)")
def quantise_without_the_first_brackets(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = high - low / (2**bits - 1)
    return low + ((z - low) / step).round().clamp(0, 2**bits - 1) * step


@QUANTISE_MISTAKES("brackets are missing in the step: 1 is subtracted from 2**bits, (high - low) / (2**bits - 1)")
def quantise_without_the_second_brackets(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / 2**bits - 1
    return low + ((z - low) / step).round().clamp(0, 2**bits - 1) * step


@QUANTISE_MISTAKES("2 ** (bits - 1) steps: there are 2**bits - 1, one less than levels")
def quantise_with_half_the_steps(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / 2 ** (bits - 1)
    return low + ((z - low) / step).round().clamp(0, 2**bits - 1) * step


@QUANTISE_MISTAKES("brackets are missing: low is subtracted from z first, then divided, (z - low) / step")
def quantise_dividing_low(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return low + (z - low / step).round().clamp(0, 2**bits - 1) * step


@QUANTISE_MISTAKES("low is multiplied by the step, too: low + index * step, without brackets around the sum")
def quantise_multiplying_low(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return (low + ((z - low) / step).round().clamp(0, 2**bits - 1)) * step


@QUANTISE_MISTAKES(
    "an integer of 8 bits has no room for the index, which may be 255, or far outside before it is clamped"
)
def quantise_in_int8(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round().to(torch.int8).clamp(0, 2**bits - 1) * step


@QUANTISE_MISTAKES("an index outside comes in again at the other end: clamp it, without % or an unsigned type")
def quantise_wrapped(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round().remainder(2**bits) * step


@QUANTISE_MISTAKES("it rounds to `bits` decimals: round to the nearest of 2**bits levels between low and high")
def quantise_by_decimals(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    return torch.round(z.clamp(low, high), decimals=bits)


@QUANTISE_MISTAKES(_NO_RANGE)
def quantise_to_fractions(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    return (z * 2**bits).round() / 2**bits


@QUANTISE_MISTAKES(_NO_RANGE)
def quantise_to_fractions_of_the_clamped(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    return (z.clamp(low, high) * 2**bits).round() / 2**bits


@QUANTISE_MISTAKES("the levels are those from 0 to 1: bring them back to the range, low + (high - low) · …")
def quantise_between_zero_and_one(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    share = ((z - low) / (high - low)).clamp(0, 1)
    return (share * (2**bits - 1)).round() / (2**bits - 1)


@QUANTISE_MISTAKES("z is stretched by its own smallest and largest value: use low and high, (z - low) / (high - low)")
def quantise_stretched(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    share = (z - z.min()) / (z.max() - z.min())
    return low + (share * (2**bits - 1)).round() / (2**bits - 1) * (high - low)


@QUANTISE_MISTAKES("Python's round takes one number: a tensor has .round(), or torch.round")
def quantise_by_pythons_round(z: Any, bits: int, low: float, high: float) -> Any:
    return low + round((z - low) / ((high - low) / (2**bits - 1)))


@QUANTISE_MISTAKES("the number of bits is fixed: use `bits`")
def quantise_to_three_bits(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    return quantise(z, 3, low, high)


@QUANTISE_MISTAKES("the number of bits is fixed: use `bits`")
def quantise_to_eight_bits(z: Tensor, bits: int, low: float, high: float) -> Tensor:
    return quantise(z, 8, low, high)


def _batches(*shapes: tuple[int, ...]) -> Probe:
    """Batches of latents that differ in mean and spread, so that averages of theirs are not those of all."""
    return tuple(
        batch * (1 + index) * torch.arange(1, batch.shape[1] + 1).view(-1, 1, 1) + 2.0 * index
        for index, batch in enumerate(probe(*shapes))
    )


def _one_way(shape: tuple[int, ...]) -> Probe:
    """Pairs all but the first of which point the same way: the second one exactly, the others up to rounding."""
    a, b = probe(shape, shape)
    a[1] = 0.5  # 64 of them: whoever computes the cosine, and however, it is exactly 1
    b[1:] = 2.0 * a[1:]
    return a, b, 0.3


def _narrow(*angles: float) -> Probe:
    """Pairs at these angles, in radians."""
    u = F.normalize(probe((len(angles), 64))[0], dim=1)
    v = probe((len(angles), 32, 2))[0].flatten(1)
    v = F.normalize(v - (v * u).sum(1, keepdim=True) * u, dim=1)
    angle = torch.tensor(angles)[:, None]
    a, b = (3 * x.view(-1, 4, 4, 4) for x in (u, 1.5 * (angle.cos() * u + angle.sin() * v)))
    return a, b, 0.3


def _joined(pairs: Any, others: Any) -> Any:
    return torch.cat([pairs, others]) if isinstance(pairs, Tensor) else pairs


_WIDE: Probe = (*(2.0 * x - 0.8 for x in probe((2, 4, 3, 5), (2, 4, 3, 5))), 0.3)
_EQUAL: Probe = (torch.full((1, 4, 4, 4), 0.5), torch.ones(1, 4, 4, 4), 0.3)  # the cosine is exactly 1
_NARROW = _narrow(0.05, 0.1, 0.2, 0.4, 0.8)
_judge_path = judge_function(
    slerp,
    [_WIDE, tuple(map(_joined, _one_way((12, 4, 4, 4)), _NARROW)), _EQUAL],
    SLERP_MISTAKES,
    inputs=("a", "b", "t"),
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
        judge=adapted(
            judge_function(
                _streamed(latent_statistics),
                [
                    _batches((9, 4, 20, 24), (2, 4, 12, 18), (5, 4, 26, 30)),
                    _batches((6, 3, 20, 24), (3, 3, 16, 20), (2, 3, 30, 24), (4, 3, 24, 26)),
                ],
                [(message, _streamed(code)) for message, code in STATISTICS_MISTAKES],
                inputs=[f"batch {number}" for number in range(4)],
                outputs=("the mean", "the standard deviation", "the scaling factor"),
            ),
            _streamed,
        ),
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
        judge=adapted(
            judge_function(
                fit_preview,
                [probe((2, 4, 6, 8), (2, 3, 6, 8)), probe((3, 5, 4, 7), (3, 3, 4, 7))],
                PREVIEW_MISTAKES,
                inputs=("z", "colours"),
                outputs=("weight", "bias"),
            ),
            _by_parts,
        ),
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
        judge=adapted(
            judge_function(
                _of_moments(with_temperature),
                [
                    (moments, temperature, noise)
                    for temperature, (moments, noise) in (
                        (2.5, probe((2, 8, 4, 5), (2, 4, 4, 5))),
                        (0.3, probe((1, 6, 3, 2), (1, 3, 3, 2))),
                        (0, probe((3, 8, 2, 3), (3, 4, 2, 3))),
                    )
                ],
                [(message, _of_moments(code)) for message, code in TEMPERATURE_MISTAKES],
                inputs=("posterior", "temperature", "noise"),
                gradients=("posterior",),
            ),
            _of_moments,
        ),
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
            "The cosine of the angle is the product of both, summed over all values, divided by both lengths.",
            "Flatten a and b with flatten(1), and keep the cosine (B, 1). Rounding can lift it above 1: clamp it.",
            "torch.where(angle < 1e-3, straight, between) takes the straight line where the angle is next to 0.",
        ),
        judge=_judge_slerp,
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
        judge=judge_function(
            quantise,
            [
                (*probe((2, 4, 5, 6), scale=2.0), 3, -1.3, 1.9),
                (*probe((1, 3, 4, 4), scale=3.0), 2, -1.9, 1.2),
                (*probe((2, 3, 5, 4), scale=2.0), 8, -1.7, 2.1),
            ],
            QUANTISE_MISTAKES,
            inputs=("z", "bits", "low", "high"),
        ),
    ),
)
