"""Several models on the same images, side by side: their metrics, with how sure each is, in one pass.

Nothing that is kept grows with the number of images. The intervals come from a bootstrap that draws, for each of its
replicates, how often an image counts (Poisson's distribution, with mean 1): what is kept are sums per replicate. All
models share the draws, so that differences between them have intervals, too.

Source: Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams" (the Poisson bootstrap).
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from klvae_edu._version import __version__
from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.environment import progress
from klvae_edu.evaluation.images import EvaluationData, GivenImages, Key
from klvae_edu.metrics import FrechetDistance, gradient_energy, psnr, ssim

Array = NDArray[np.float64]
Method = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> their reconstructions

REPLICATES = 1000
LEVEL = 0.95
ENOUGH = 20  # of what is drawn: with fewer, an interval is no measure of anything

PSNR, SSIM, LPIPS, ENERGY = "PSNR", "SSIM", "LPIPS", "gradient energy"


class Estimate(NamedTuple):
    """A value and its 95 % interval (None: no interval)."""

    value: float
    low: float | None
    high: float | None

    def __format__(self, spec: str) -> str:
        """Every number in the format `spec`, such as ".2f"."""
        interval = "" if self.low is None else f" [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{self.value:{spec}}{interval}"

    def to_dict(self) -> dict[str, float | None]:
        """By name, for JSON, which knows no infinity: None stands for what is not finite."""
        return {name: _finite(value) for name, value in self._asdict().items()}


class Sums:
    """Metrics as quotients of two sums over images, once as they are (row 0) and once per replicate.

    A mean has 1 as its denominator; the gradient energy that of the originals, as a quotient of means is not upset by
    single images without edges.
    """

    def __init__(self, metrics: int) -> None:
        self.numerators = np.zeros((1 + REPLICATES, metrics))
        self.denominators = np.zeros((1 + REPLICATES, metrics))

    def add(self, weights: Array, numerators: Array, denominators: Array) -> None:
        """Take in one image: weights (1 + REPLICATES,), its numerators and denominators (metrics,)."""
        counted = weights > 0  # an infinite PSNR times 0 would be no number
        self.numerators[counted] += np.outer(weights[counted], numerators)
        self.denominators += np.outer(weights, denominators)

    def quotients(self) -> Array:
        """(1 + REPLICATES, metrics)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.numerators / self.denominators


class Evaluation:
    """What `evaluate` found.

    Attributes:
        quotients: for each model (1 + REPLICATES, metrics), first over all images, then by replicate.
        metrics: the names of the columns.
        frechet: the distance of each model, and `frechet_name` what it is called.
        notes: what has to be said about it, a sentence or two each.
        about: the data and the versions, as they are in `to_dict`.
    """

    def __init__(
        self,
        quotients: Mapping[str, Array],
        metrics: tuple[str, ...],
        frechet: Mapping[str, float],
        frechet_name: str,
        notes: list[str],
        about: dict[str, Any],
    ) -> None:
        self.quotients, self.metrics, self.notes, self.about = quotients, metrics, notes, about
        self.frechet, self.frechet_name = frechet, frechet_name

    def estimate(self, model: str, metric: str) -> Estimate:
        """The metric of a model over all images."""
        return self._estimate(self.quotients[model][:, self.metrics.index(metric)])

    def difference(self, model: str, other: str, metric: str) -> Estimate:
        """How much larger the metric of `model` is than that of `other`, on the same images."""
        column = self.metrics.index(metric)
        return self._estimate(self.quotients[model][:, column] - self.quotients[other][:, column])

    def table(self) -> str:
        """A row for each model, a column for each metric, the notes below."""
        heads = [*(_COLUMNS[metric][0] for metric in self.metrics), f"{self.frechet_name} (0 is best)"]
        rows = {
            model: [f"{self.estimate(model, metric):{_COLUMNS[metric][1]}}" for metric in self.metrics]
            + [f"{self.frechet[model]:.3g}"]
            for model in self.quotients
        }
        widths = [max(_NARROWEST, *map(len, column)) for column in zip(*rows.values(), strict=True)]
        wrapped = [textwrap.wrap(head, width) for head, width in zip(heads, widths, strict=True)]
        lines = [("", line) for line in itertools.zip_longest(*wrapped, fillvalue="")] + [*rows.items()]
        first = max(map(len, rows))
        text = ["  ".join([name.ljust(first), *map(str.ljust, line, widths)]).rstrip() for name, line in lines]
        return "\n".join([*text, "", *("\n".join(textwrap.wrap(note, 118)) for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Everything that is in the table, and where it comes from, for JSON; what is no finite number is None."""
        models = {
            model: {metric: self.estimate(model, metric).to_dict() for metric in self.metrics}
            | {self.frechet_name: {"value": _finite(self.frechet[model])}}
            for model in self.quotients
        }
        return {**self.about, "models": models, "notes": self.notes}

    def _estimate(self, values: Array) -> Estimate:
        if self.about["intervals"] is None:
            return Estimate(float(values[0]), None, None)
        low, high = np.quantile(values[1:], (0.5 - LEVEL / 2, 0.5 + LEVEL / 2), method="inverted_cdf")
        return Estimate(float(values[0]), float(low), float(high))


_COLUMNS = {  # heading and number format
    PSNR: ("PSNR in dB (more is better)", ".2f"),
    SSIM: ("SSIM (1 is best)", ".3f"),
    LPIPS: ("LPIPS (0 is best)", ".3f"),
    ENERGY: ("gradient energy (1: that of the originals)", ".3f"),
}
_NARROWEST = 18


@torch.no_grad()
def evaluate(
    models: Mapping[str, AutoencoderKL | Method],
    data: EvaluationData | Tensor,
    *,
    lpips: nn.Module | None = None,
    frechet: str | nn.Module = "auto",
    batch_size: int = 4,
    seed: int = 0,
) -> Evaluation:
    """Put `data` through each of `models`, by name, and compare what comes out with what went in.

    Args:
        models: autoencoders, which reconstruct through the mode of the posterior, or functions of images (B, 3, H, W).
        data: `evaluation_data(…)`, or images (B, 3, H, W) in [-1, 1].
        lpips: a `klvae_edu.perceptual.LPIPS`, on the device where it is to run; None leaves this metric out.
        frechet: the features of the `FrechetDistance`.
        batch_size: images at a time; it bounds memory and changes nothing else.
        seed: of the bootstrap.

    Raises:
        ValueError: no model, fewer than two images that could be read, or a reconstruction of another shape.
    """
    if not models:
        raise ValueError("evaluate: expected one model or more, got none")
    data = GivenImages(data) if isinstance(data, Tensor) else data
    by_photograph = data.photographs >= ENOUGH
    metrics = (PSNR, SSIM, *([] if lpips is None else [LPIPS]), ENERGY)
    sums = {name: Sums(len(metrics)) for name in models}
    distances = {name: FrechetDistance(frechet, _device(model)) for name, model in models.items()}
    count = 0
    for keys, originals in progress(_batches(data, batch_size), desc="evaluating", total=-(-len(data) // batch_size)):
        drawn = [bootstrap_weights(seed, key if by_photograph else (count + n,)) for n, key in enumerate(keys)]
        for name, model in models.items():
            images = _reconstruct(model, originals)
            for of_image in zip(drawn, *_measure(images, originals, lpips), strict=True):
                sums[name].add(*of_image)
            distances[name].update(images, originals)
        count += len(originals)
    if count < 2:
        raise ValueError(f"evaluate: expected two images or more, got {count}. {data.report() or ''}".strip())
    quotients = {name: of_model.quotients() for name, of_model in sums.items()}
    found = {name: distance.compute() for name, distance in distances.items()}
    distance = next(iter(distances.values()))
    enough = (data.photographs if by_photograph else count) >= ENOUGH
    drawn_are = None if not enough else "photographs" if by_photograph else "images"
    about = {
        "data": {"what": data.what, "images": count, "photographs": data.photographs, "unreadable": data.report()},
        "intervals": drawn_are and {"level": LEVEL, "replicates": REPLICATES, "drawn": drawn_are, "seed": seed},
        "sources": {distance.name: distance.source} | ({} if lpips is None else {LPIPS: str(lpips.source)}),
        "versions": {"klvae-edu": __version__} | {name: version(name) for name in ("torch", "torchmetrics", "numpy")},
    }
    return Evaluation(quotients, metrics, found, distance.name, _notes(about), about)


def _measure(images: Tensor, originals: Tensor, lpips: nn.Module | None) -> tuple[Array, Array]:
    """The metrics' numerators and denominators, each (B, metrics)."""
    values = [psnr(images, originals), ssim(images, originals)]
    if lpips is not None:
        device = next(lpips.buffers()).device
        values.append(lpips(images.clamp(-1, 1).to(device), originals.to(device)).cpu())
    numerators = torch.stack([*values, gradient_energy(images)], dim=1)
    denominators = torch.stack([torch.ones(len(images))] * len(values) + [gradient_energy(originals)], dim=1)
    return numerators.double().numpy(), denominators.double().numpy()


def _reconstruct(model: AutoencoderKL | Method, images: Tensor) -> Tensor:
    if isinstance(model, AutoencoderKL):
        return model(images.to(model.device)).sample.float().cpu()
    return model(images).float().cpu()


def _device(model: AutoencoderKL | Method) -> torch.device:
    return model.device if isinstance(model, AutoencoderKL) else torch.device("cpu")


def _batches(data: EvaluationData, size: int) -> Iterator[tuple[list[Key], Tensor]]:
    pairs = iter(data)
    while batch := [*itertools.islice(pairs, size)]:
        yield [key for key, _ in batch], torch.stack([image for _, image in batch])


def bootstrap_weights(seed: int, key: Key) -> Array:
    """How often what has this key counts: once as it is, then in each replicate."""
    return np.r_[1.0, np.random.default_rng((seed, *key)).poisson(1, REPLICATES)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _notes(about: dict[str, Any]) -> list[str]:
    data, intervals, sources = about["data"], about["intervals"], about["sources"]
    notes = [f"{data['images']} images from {data['photographs']} photographs: {data['what']}."]
    drawn = f"95 % intervals in brackets: by a bootstrap of {REPLICATES} replicates"
    if intervals is None:
        notes.append(f"No intervals: they take {ENOUGH} images or more.")
    elif intervals["drawn"] == "photographs":
        notes.append(
            f"{drawn} that draw photographs, with all that is cut from one: how far the values would move with other "
            "photographs like these."
        )
    else:
        notes.append(
            f"{drawn} that draw crops, as {data['photographs']} photographs are too few to draw: how far the values "
            "move with the places where these are cropped. With other photographs they may move by more."
        )
    notes.append("Gradient energy: edges of blocks and noise count, too.")
    notes += [f"{name}: features of {source}." for name, source in sources.items()]
    return notes
