"""Evaluate several models on the same images in one pass: metrics with bootstrap confidence intervals.

Memory does not grow with the number of images. For each replicate, the bootstrap draws the weight of each image from a
Poisson distribution with mean 1, and only weighted sums are stored per replicate. All models share the draws, so
differences between models have intervals, too.

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
MIN_UNITS = 20  # photographs or images that the bootstrap draws; with fewer, an interval is not reliable

PSNR, SSIM, LPIPS, ENERGY = "PSNR", "SSIM", "LPIPS", "gradient energy"


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval (None: no interval)."""

    value: float
    low: float | None
    high: float | None

    def __format__(self, spec: str) -> str:
        """Format every number with `spec`, such as ".2f"."""
        interval = "" if self.low is None else f" [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{self.value:{spec}}{interval}"

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers by name for JSON; None replaces numbers that are not finite."""
        return {name: _finite(value) for name, value in self._asdict().items()}


class Sums:
    """Metrics as quotients of two sums over images: row 0 without resampling, then one row per replicate.

    For a mean, the denominator of each image is 1. For the gradient energy it is the gradient energy of the original:
    a quotient of means stays finite when single images have no edges.
    """

    def __init__(self, metrics: int) -> None:
        self.numerators = np.zeros((1 + REPLICATES, metrics))
        self.denominators = np.zeros((1 + REPLICATES, metrics))

    def add(self, weights: Array, numerators: Array, denominators: Array) -> None:
        """Add one image with its weights (1 + REPLICATES,), and its numerators and denominators (metrics,)."""
        counted = weights > 0  # an infinite PSNR times 0 would be NaN
        self.numerators[counted] += np.outer(weights[counted], numerators)
        self.denominators += np.outer(weights, denominators)

    def quotients(self) -> Array:
        """Return the metrics, (1 + REPLICATES, metrics)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.numerators / self.denominators


class Evaluation:
    """Result of `evaluate`.

    Attributes:
        quotients: metrics of each model, (1 + REPLICATES, metrics): row 0 over all images, then one row per replicate.
        metrics: names of the columns.
        frechet: Fréchet distance of each model.
        frechet_name: name of this distance.
        notes: explanations of the numbers, one or two sentences each.
        about: the data, the intervals, the sources and the versions, as in `to_dict`.
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
        """Return the metric of a model over all images."""
        return self._estimate(self.quotients[model][:, self.metrics.index(metric)])

    def difference(self, model: str, other: str, metric: str) -> Estimate:
        """Return the metric of `model` minus the metric of `other`, on the same images."""
        column = self.metrics.index(metric)
        return self._estimate(self.quotients[model][:, column] - self.quotients[other][:, column])

    def table(self) -> str:
        """Format a table: a row for each model, a column for each metric, and the notes below."""
        heads = [*(_COLUMNS[metric][0] for metric in self.metrics), f"{self.frechet_name} (0 is best)"]
        rows = {
            model: [f"{self.estimate(model, metric):{_COLUMNS[metric][1]}}" for metric in self.metrics]
            + [f"{self.frechet[model]:.3g}"]
            for model in self.quotients
        }
        widths = [max(_MIN_COLUMN_WIDTH, *map(len, column)) for column in zip(*rows.values(), strict=True)]
        wrapped = [textwrap.wrap(head, width) for head, width in zip(heads, widths, strict=True)]
        lines = [("", line) for line in itertools.zip_longest(*wrapped, fillvalue="")] + [*rows.items()]
        first = max(map(len, rows))
        text = ["  ".join([name.ljust(first), *map(str.ljust, line, widths)]).rstrip() for name, line in lines]
        return "\n".join([*text, "", *("\n".join(textwrap.wrap(note, 118)) for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the table and their origin for JSON; None replaces numbers that are not finite."""
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
_MIN_COLUMN_WIDTH = 18  # characters


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
    """Reconstruct `data` with each of `models` and compare the reconstructions with the originals.

    Args:
        models: by name, autoencoders (they reconstruct from the mode of the posterior), or functions that map images
            (B, 3, H, W) in [-1, 1] to their reconstructions.
        data: `evaluation_data(…)`, or images (B, 3, H, W) in [-1, 1].
        lpips: a `klvae_edu.perceptual.LPIPS` on the device to use; None leaves this metric out.
        frechet: features of the `FrechetDistance`.
        batch_size: images per batch; it affects memory, not the results.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there is no model, fewer than two images can be read, or a reconstruction has another shape than
            its original.
    """
    if not models:
        raise ValueError("evaluate: expected one model or more, got none")
    data = GivenImages(data) if isinstance(data, Tensor) else data
    by_photograph = data.photographs >= MIN_UNITS
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
    enough = (data.photographs if by_photograph else count) >= MIN_UNITS
    drawn_are = None if not enough else "photographs" if by_photograph else "images"
    about = {
        "data": {"what": data.what, "images": count, "photographs": data.photographs, "unreadable": data.report()},
        "intervals": drawn_are and {"level": LEVEL, "replicates": REPLICATES, "drawn": drawn_are, "seed": seed},
        "sources": {distance.name: distance.source} | ({} if lpips is None else {LPIPS: str(lpips.source)}),
        "versions": {"klvae-edu": __version__} | {name: version(name) for name in ("torch", "torchmetrics", "numpy")},
    }
    return Evaluation(quotients, metrics, found, distance.name, _notes(about), about)


def _measure(images: Tensor, originals: Tensor, lpips: nn.Module | None) -> tuple[Array, Array]:
    """Compute numerators and denominators of the metrics, each (B, metrics)."""
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
    """Draw the weights of the unit with this key: 1 without resampling, then one weight per replicate."""
    return np.r_[1.0, np.random.default_rng((seed, *key)).poisson(1, REPLICATES)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _notes(about: dict[str, Any]) -> list[str]:
    data, intervals, sources = about["data"], about["intervals"], about["sources"]
    notes = [f"{data['images']} images from {data['photographs']} photographs: {data['what']}."]
    drawn = f"95 % intervals in brackets: by a bootstrap of {REPLICATES} replicates"
    if intervals is None:
        notes.append(f"No intervals: they need {MIN_UNITS} images or more.")
    elif intervals["drawn"] == "photographs":
        notes.append(
            f"{drawn} that draw photographs, each with all its crops. They show how much the values would change with "
            "other photographs of the same kind."
        )
    else:
        notes.append(
            f"{drawn} that draw crops, because {data['photographs']} photographs are too few. They show how much the "
            "values would change with other crops of the same photographs. With other photographs they may change more."
        )
    notes.append("Gradient energy: block edges and noise add to it, too.")
    notes += [f"{name}: features of {source}." for name, source in sources.items()]
    return notes
