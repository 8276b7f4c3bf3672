"""Evaluate several models on the same images in one pass: metrics with bootstrap confidence intervals.

Memory does not grow with the number of images: `bootstrap` stores weighted sums only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

from klvae_edu._version import __version__
from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.environment import progress
from klvae_edu.evaluation.bootstrap import LEVEL, REPLICATES, Array, Sums, bootstrap_weights
from klvae_edu.evaluation.images import EvaluationData, GivenImages, batches
from klvae_edu.evaluation.result import CLASS_KEPT, ENERGY, MIN_UNITS, NEAR_CLASSES, PSNR, SSIM, Evaluation, notes_on
from klvae_edu.metrics import EfficientNetFeatures, FrechetDistance, gradient_energy, psnr, ssim
from klvae_edu.validation import MAX_ABSOLUTE_VALUE, MAX_RECONSTRUCTION_VALUE, image_fault

__all__ = ["Evaluation", "Method", "evaluate", "image_channels"]

Method = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [-1, 1] -> their reconstructions

FEATURE_CHANNELS = (1, 3)  # of images that networks of features take: grey is repeated to three channels


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
            (B, C, H, W) in [-1, 1] to their reconstructions.
        data: `evaluation_data(…)`, or images (B, C, H, W) in [-1, 1].
        distances: by name, further metrics such as `klvae_edu.perceptual.LPIPS`: networks that turn reconstructions and
            originals, both (B, 3, H, W) in [-1, 1], into distances (B,). They are on the device to use. Networks of
            features see grey images in three equal channels. For other numbers of channels than 1 and 3 they are left
            out, and a note says so.
        classifier: adds the metric "class kept", the share of the images whose first class is among the first five of
            the reconstruction; on the device to use.
        frechet: features of the `FrechetDistance`.
        batch_size: images per batch; it affects memory, not the results.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there is no model, or autoencoders of different numbers of channels; fewer than two images can be
            read, or one is not in [-1, 1]; a reconstruction has another shape than its original, is not finite, or
            far beyond [-1, 1], as values from 0 to 255 are. The message names the model and the image.
    """
    if not models:
        raise ValueError("evaluate: expected one model or more, got none")
    autoencoders = {name: model for name, model in models.items() if isinstance(model, AutoencoderKL)}
    if autoencoders:
        image_channels(autoencoders)
    data = GivenImages(data) if isinstance(data, Tensor) else data
    by_photograph = data.photographs >= MIN_UNITS
    pairs = batches(data, batch_size)
    first = next(pairs, None)
    with_features = first is None or first[1].shape[1] in FEATURE_CHANNELS
    distances, classifier = (distances or {}, classifier) if with_features else ({}, None)
    # One network for all models.
    shared = FrechetDistance(frechet, _device(next(iter(models.values())))) if with_features else None
    metrics = (PSNR, SSIM, ENERGY, *distances, *([] if classifier is None else [CLASS_KEPT]))
    sums = {name: Sums(len(metrics)) for name in models}
    frechets = {} if shared is None else {name: shared.empty() for name in models}
    count = 0
    pairs = itertools.chain([] if first is None else [first], pairs)
    for keys, originals in progress(pairs, desc="evaluating", total=-(-len(data) // batch_size)):
        _check(originals, "the data", MAX_ABSOLUTE_VALUE, count, data)
        drawn = [bootstrap_weights(seed, key if by_photograph else (count + n,)) for n, key in enumerate(keys)]
        wanted = None if shared is None else _Seen(originals, shared, classifier)
        for name, model in models.items():
            images = _reconstruct(name, model, originals)
            _check(images, f"model {name}", MAX_RECONSTRUCTION_VALUE, count, data)
            images = images.float()
            values = _measure(images, originals, distances)
            if shared is not None and wanted is not None:
                seen = _Seen(images, shared, classifier)
                frechets[name].add(seen.features, wanted.features)
                if classifier is not None:
                    values.append((seen.classes == wanted.classes[:, :1]).any(1))
            for of_image in zip(drawn, *_fractions(values, originals), strict=True):
                sums[name].add(*of_image)
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
        "sources": ({} if shared is None else {shared.name: shared.source})
        | {name: str(network.source) for name, network in distances.items()}
        | ({} if classifier is None else {CLASS_KEPT: classifier.source}),
        "versions": {"klvae-edu": __version__} | {name: version(name) for name in ("torch", "torchmetrics", "numpy")},
    }
    notes = notes_on(about)
    if any(np.isnan(of_model[0, metrics.index(ENERGY)]) for of_model in quotients.values()):
        notes.append("The gradient energy is not defined (nan): the originals have none.")
    if shared is None:
        notes.append("Metrics of features are left out: their networks see colour or grey, images of 3 channels or 1.")
    return Evaluation(quotients, metrics, computed, "" if shared is None else shared.name, notes, about)


def image_channels(models: Mapping[str, AutoencoderKL]) -> int:
    """Return the number of channels of the images that all `models` reconstruct.

    Raises:
        ValueError: a model gives another number of channels than it takes, or two models take different numbers.
    """
    channels = {name: vae.config.in_channels for name, vae in models.items()}
    for name, vae in models.items():
        if vae.config.out_channels != channels[name]:
            got = f"{channels[name]} in and {vae.config.out_channels} out"
            raise ValueError(f"expected a model with as many channels out as in, but {name} has {got}")
    if len({*channels.values()}) > 1:
        got = ", ".join(f"{count} for {name}" for name, count in channels.items())
        raise ValueError(f"expected models of images with the same number of channels, got {got}")
    return next(iter(channels.values()))


def _measure(images: Tensor, originals: Tensor, distances: Mapping[str, nn.Module]) -> list[Tensor]:
    """Compute the metrics of each image, each (B,); the gradient energy is that of the reconstruction."""
    values = [psnr(images, originals), ssim(images, originals), gradient_energy(images)]
    for network in distances.values():
        device = next(network.buffers()).device
        values.append(network(_rgb(images).clamp(-1, 1).to(device), _rgb(originals).to(device)).cpu())
    return values


class _Seen:
    """Results of the networks for images (B, 3, H, W) or (B, 1, H, W).

    Attributes:
        features: (B, F), for the Fréchet distance.
        classes: (B, 5), the most probable classes, if there is a classifier.
    """

    def __init__(self, images: Tensor, frechet: FrechetDistance, classifier: EfficientNetDistance | None) -> None:
        images = _rgb(images)
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


def _rgb(images: Tensor) -> Tensor:
    """Repeat grey images (B, 1, H, W) in three channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _reconstruct(name: str, model: AutoencoderKL | Method, images: Tensor) -> Tensor:
    found = model(images.to(model.device)).sample if isinstance(model, AutoencoderKL) else model(images)
    if not isinstance(found, Tensor) or found.shape != images.shape:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        expected = f"evaluate: expected reconstructions of shape {tuple(images.shape)}"
        raise ValueError(f"{expected}, but model {name} gave {got}")
    return found.cpu()


def _check(images: Tensor, holder: str, limit: float, before: int, data: EvaluationData) -> None:
    """Raise a `ValueError` unless images are finite and within ±`limit`. `before` images came before these."""
    fault = image_fault(images, limit)
    if fault is not None:
        number, found = fault
        raise ValueError(
            f"evaluate: expected floating-point values in [-1, 1], but {holder} gave {found} for image "
            f"{before + number + 1} of {len(data)} ({data.what})"
        )


def _device(model: AutoencoderKL | Method) -> torch.device:
    return model.device if isinstance(model, AutoencoderKL) else torch.device("cpu")
