"""Evaluate several models on the same images in one pass: metrics with bootstrap confidence intervals.

Memory does not grow with the number of images: `bootstrap` stores weighted sums only.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from klvae_edu._version import __version__
from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.environment import progress
from klvae_edu.evaluation.bootstrap import LEVEL, REPLICATES, Array, Estimate, Sums, bootstrap_weights, estimate, finite
from klvae_edu.evaluation.images import EvaluationData, GivenImages, Key
from klvae_edu.evaluation.table import aligned, three_digits
from klvae_edu.metrics import EfficientNetFeatures, FrechetDistance, gradient_energy, psnr, ssim

Method = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> their reconstructions

MIN_UNITS = 20  # photographs or images that the bootstrap draws; with fewer, an interval is not reliable
NEAR_CLASSES = 5  # a class is kept if it is among this many first classes of the reconstruction

PSNR, SSIM, ENERGY, CLASS_KEPT = "PSNR", "SSIM", "gradient energy", "class kept"


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
        """Format a table: a row for each model, a column for each metric, and the notes below.

        A wide table is in two parts: metrics of pixels, and below them metrics of features.
        """
        columns = []  # of each metric the heading, then a cell for each model
        for metric in self.metrics:
            heading, spec = _COLUMNS.get(metric, (f"{metric} (0 is best)", ".3f"))
            columns.append([heading, *(f"{self.estimate(model, metric):{spec}}" for model in self.quotients)])
        columns.append([f"{self.frechet_name} (0 is best)", *map(three_digits, self.frechet.values())])
        parts = [columns] if len(columns) <= _MAX_COLUMNS else [columns[:3], columns[3:]]
        lines = [line for part in parts for line in (*aligned([*self.quotients], part), "")]
        notes = ["\n".join(textwrap.wrap(note, 118, break_on_hyphens=False)) for note in self.notes]
        return "\n".join([*lines, *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the table and their origin for JSON; None replaces numbers that are not finite."""
        models = {
            model: {metric: self.estimate(model, metric).to_dict() for metric in self.metrics}
            | {self.frechet_name: {"value": finite(self.frechet[model])}}
            for model in self.quotients
        }
        return {**self.about, "models": models, "notes": self.notes}

    def _estimate(self, values: Array) -> Estimate:
        return Estimate(float(values[0])) if self.about["intervals"] is None else estimate(values)


_COLUMNS = {  # heading and number format; other metrics are distances
    PSNR: ("PSNR in dB (more is better)", ".2f"),
    SSIM: ("SSIM (1 is best)", ".3f"),
    ENERGY: ("gradient energy (1: that of the originals)", ".3f"),
    CLASS_KEPT: ("class kept (1 is best)", ".2f"),
}
_MAX_COLUMNS = 5  # of a table in one part


@torch.no_grad()
def evaluate(
    models: Mapping[str, AutoencoderKL | Method],
    data: EvaluationData | Tensor,
    *,
    distances: Mapping[str, nn.Module] | None = None,
    classifier: EfficientNetDistance | None = None,
    frechet: str | nn.Module = "auto",
    batch_size: int = 4,
    seed: int = 0,
) -> Evaluation:
    """Reconstruct `data` with each of `models` and compare the reconstructions with the originals.

    Args:
        models: by name, autoencoders (they reconstruct from the mode of the posterior), or functions that map images
            (B, 3, H, W) in [-1, 1] to their reconstructions.
        data: `evaluation_data(…)`, or images (B, 3, H, W) in [-1, 1].
        distances: by name, further metrics such as `klvae_edu.perceptual.LPIPS`: networks that turn reconstructions and
            originals, both (B, 3, H, W) in [-1, 1], into distances (B,). They are on the device to use.
        classifier: adds the metric "class kept", the share of the images whose first class is among the first five of
            the reconstruction; on the device to use.
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
    distances = distances or {}
    by_photograph = data.photographs >= MIN_UNITS
    metrics = (PSNR, SSIM, ENERGY, *distances, *([] if classifier is None else [CLASS_KEPT]))
    sums = {name: Sums(len(metrics)) for name in models}
    shared = FrechetDistance(frechet, _device(next(iter(models.values()))))  # one network for all models
    frechets = {name: shared.empty() for name in models}
    count = 0
    for keys, originals in progress(_batches(data, batch_size), desc="evaluating", total=-(-len(data) // batch_size)):
        drawn = [bootstrap_weights(seed, key if by_photograph else (count + n,)) for n, key in enumerate(keys)]
        wanted = _Seen(originals, shared, classifier)
        for name, model in models.items():
            images = _reconstruct(model, originals)
            values = _measure(images, originals, distances)
            seen = _Seen(images, shared, classifier)
            if classifier is not None:
                values.append((seen.classes == wanted.classes[:, :1]).any(1))
            for of_image in zip(drawn, *_fractions(values, originals), strict=True):
                sums[name].add(*of_image)
            frechets[name].add(seen.features, wanted.features)
        count += len(originals)
    if count < 2:
        raise ValueError(f"evaluate: expected two images or more, got {count}. {data.report() or ''}".strip())
    quotients = {name: of_model.quotients() for name, of_model in sums.items()}
    computed = {name: of_model.compute() for name, of_model in frechets.items()}
    enough = (data.photographs if by_photograph else count) >= MIN_UNITS
    drawn_are = None if not enough else "photographs" if by_photograph else "images"
    about = {
        "data": {"what": data.what, "images": count, "photographs": data.photographs, "unreadable": data.report()},
        "intervals": drawn_are and {"level": LEVEL, "replicates": REPLICATES, "drawn": drawn_are, "seed": seed},
        "sources": {shared.name: shared.source}
        | {name: str(network.source) for name, network in distances.items()}
        | ({} if classifier is None else {CLASS_KEPT: classifier.source}),
        "versions": {"klvae-edu": __version__} | {name: version(name) for name in ("torch", "torchmetrics", "numpy")},
    }
    return Evaluation(quotients, metrics, computed, shared.name, _notes(about), about)


def _measure(images: Tensor, originals: Tensor, distances: Mapping[str, nn.Module]) -> list[Tensor]:
    """Compute the metrics of each image, each (B,); the gradient energy is that of the reconstruction."""
    values = [psnr(images, originals), ssim(images, originals), gradient_energy(images)]
    for network in distances.values():
        device = next(network.buffers()).device
        values.append(network(images.clamp(-1, 1).to(device), originals.to(device)).cpu())
    return values


class _Seen:
    """Results of the networks for images (B, 3, H, W).

    Attributes:
        features: (B, F), for the Fréchet distance.
        classes: (B, 5), the most probable classes, if there is a classifier.
    """

    def __init__(self, images: Tensor, frechet: FrechetDistance, classifier: EfficientNetDistance | None) -> None:
        self.features = frechet.features(images)
        if classifier is not None:
            network, device = frechet.network, classifier.classifier_bias.device
            if isinstance(network, EfficientNetFeatures) and network.network.source == classifier.source:
                pooled = self.features.to(device)  # the same network: computed once
            else:
                pooled = classifier.pooled(images.clamp(-1, 1).to(device))
            self.classes = classifier.classify(pooled).topk(NEAR_CLASSES).indices.cpu()


def _fractions(values: list[Tensor], originals: Tensor) -> tuple[Array, Array]:
    """Return numerators and denominators of the metrics, each (B, metrics)."""
    numerators = torch.stack(values, dim=1).double()
    denominators = torch.ones_like(numerators)
    denominators[:, 2] = gradient_energy(originals)
    return numerators.numpy(), denominators.numpy()


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
    notes += [f"{name}: features of {source}." for name, source in sources.items() if name != CLASS_KEPT]
    if CLASS_KEPT in sources:
        notes.append(
            f"Class kept: share of images whose first class is among the first {NEAR_CLASSES} of the "
            f"reconstruction, by {sources[CLASS_KEPT]}."
        )
    return notes
