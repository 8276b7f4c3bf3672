"""Metrics of reconstructions. Per image: PSNR, SSIM, gradient energy. Per set: Fréchet distance.

Per-image metrics take images (B, C, H, W) in [-1, 1], the Fréchet distance (B, 3, H, W). Reconstructions are clamped to
this range, as for display. What is no image in this range, such as values from 0 to 255 or NaN, is a `ValueError`.
LPIPS, another metric per image, is in `klvae_edu.perceptual` and takes (B, 3, H, W). Built in notebook 09.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from klvae_edu.downloads import cached_weights, read_weights
from klvae_edu.efficientnet import EfficientNetDistance, available
from klvae_edu.validation import MAX_RECONSTRUCTION_VALUE, check_images, image_fault

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

SSIM_WINDOW = 11  # pixels
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


def psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of images (B, C, H, W) in [-1, 1], in dB: (B,); inf for equal images.

    The formula is 10·log10(2² / MSE), where the peak 2 is the width of the range. For several images, average the dB,
    as in the literature, not the errors.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or are not (B, C, H, W); or an image is not
            floating-point, not finite, or in another range: targets beyond ±1.5, reconstructions beyond ±16.
    """
    _check_pair("psnr", reconstruction, target)
    return unchecked_psnr(reconstruction, target)


def unchecked_psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Compute `psnr` without its checks, which wait for a GPU: (B,), for the steps of a training."""
    error = (reconstruction.float().clamp(-1, 1) - target.float()).square().flatten(1).mean(1)  # (B,)
    return 10 * torch.log10(4 / error)


def ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Compute the structural similarity of images (B, C, H, W) in [-1, 1]: (B,), 1 for equal images.

    torchmetrics computes it in each channel, in a Gaussian window of 11×11 pixels (standard deviation 1.5) around each
    pixel, with reflection padding, and averages. SSIM compares local means as brightnesses, for which 0 must be black.
    The images are therefore shifted to [0, 2]. The result is then the same as for pixels from 0 to 255.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III.

    Raises:
        ValueError: the shapes differ, are not (B, C, H, W), or are below 11 pixels a side; or an image that `psnr`
            refuses.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair("ssim", reconstruction, target)
    if min(target.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"ssim: expected at least {SSIM_WINDOW} pixels a side, got {tuple(target.shape)}")
    values = structural_similarity_index_measure(  # (B,)
        reconstruction.float().clamp(-1, 1) + 1, target.float() + 1, sigma=1.5, data_range=2.0, reduction="none"
    )
    assert isinstance(values, Tensor)  # with other options it returns a tuple
    return values


def gradient_energy(images: Tensor) -> Tensor:
    """Compute the mean squared difference of neighbouring pixels of images (B, C, H, W) in [-1, 1]: (B,).

    It is averaged over the horizontal and the vertical direction, and measures edges and texture. A reconstruction with
    less gradient energy than the original is blurred, whatever its PSNR.

    Raises:
        ValueError: not (B, C, H, W), or a side of less than 2 pixels; or images that `psnr` refuses as reconstructions.
    """
    if images.dim() != 4 or min(images.shape[-2:]) < 2:
        raise ValueError(f"gradient_energy: expected (B, C, H, W), 2 pixels a side or more, got {tuple(images.shape)}")
    check_images(images, "gradient_energy", MAX_RECONSTRUCTION_VALUE)
    shown = images.float().clamp(-1, 1)
    return torch.stack([shown.diff(dim=dim).square().flatten(1).mean(1) for dim in (2, 3)]).mean(0)


class FrechetDistance:
    """Fréchet distance between the features of reconstructions and of originals, each modelled as one Gaussian.

    torchmetrics computes |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2·(Σ₁Σ₂)^½) in float64. The distance compares sets of images, not
    pairs. It needs many images: with few, even two samples of the same set have a large distance. Memory does not grow
    with the number of images.

    Args:
        features: a network that turns images (B, 3, H, W) in [-1, 1] into features (B, F), with the attribute
            `num_features` = F, or one of these names:
            "inception": the Inception network of the FID. It needs the package `torch-fidelity`, and weights from the
            cache of `torch.hub` or a download.
            "efficientnet-lite1": EfficientNet-Lite1 trained on ImageNet, from the extra `perceptual`.
            "random": a small network with fixed random weights. It responds to edges, texture and colour, not objects.
            "auto": the first of these three that is available. `name` and `source` say which.
        device: the device of the network.

    Attributes:
        name: "rFID" with Inception, otherwise "Fréchet distance, …". Distances of different features are not
            comparable.
        source: description of the network and of its weights, for reports.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium".

    Raises:
        ValueError: an unknown name, "inception" is not available, or the file of a network is damaged.
        ImportError: the package with EfficientNet-Lite1 is not installed.
    """

    def __init__(self, features: str | nn.Module = "auto", device: torch.device | str = "cpu") -> None:
        network, self.name, self.source = _features(features)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.count = 0
        self._statistics = self._no_images()

    @torch.no_grad()
    def update(self, reconstructions: Tensor, originals: Tensor) -> None:
        """Add a batch of reconstructions and the batch of their originals, both (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: the shapes differ, or are not (B, C, H, W); or an image that `psnr` refuses.
        """
        _check_pair("FrechetDistance", reconstructions, originals)
        self.add(self.features(reconstructions), self.features(originals))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Compute the features (B, F), on the CPU, of images (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: images that `psnr` refuses as reconstructions.
        """
        check_images(images, "FrechetDistance", MAX_RECONSTRUCTION_VALUE)
        features: Tensor = self.network(images.float().clamp(-1, 1).to(self.device))
        return features.cpu()

    def add(self, reconstructions: Tensor, originals: Tensor) -> None:
        """Add the features (B, F) of a batch of reconstructions and of their originals.

        Raises:
            ValueError: features that are not finite in float32: no distance is defined for them.
        """
        for name, features in (("reconstructions", reconstructions), ("originals", originals)):
            fault = image_fault(features, torch.finfo(torch.float32).max)
            if fault is not None:
                raise ValueError(
                    f"FrechetDistance: expected finite features of the {name}, got {fault[1]} in image {fault[0] + 1} "
                    f"of {len(features)}"
                )
        self._statistics.update(reconstructions, real=False)
        self._statistics.update(originals, real=True)
        self.count += len(originals)

    def empty(self) -> FrechetDistance:
        """Return a distance with the same network and without images."""
        other = copy.copy(self)
        other.count, other._statistics = 0, self._no_images()
        return other

    def compute(self) -> float:
        """Compute the Fréchet distance between all reconstructions and originals added so far.

        Raises:
            ValueError: fewer than two images were added.
        """
        if self.count < 2:
            raise ValueError(f"FrechetDistance: expected two images or more, got {self.count}")
        return float(self._statistics.compute().clamp(min=0))  # rounding can give -1e-12 for equal sets

    def _no_images(self) -> FrechetInceptionDistance:
        from torchmetrics.image.fid import FrechetInceptionDistance

        features = nn.Identity()  # the input are features already
        features.num_features = self.network.num_features
        return FrechetInceptionDistance(features)


class RandomFeatures(nn.Module):
    """Turn images (B, 3, H, W) in [-1, 1] into features (B, 64): mean activations of three layers of random filters.

    The layers have 16, 16 and 32 channels, and receptive fields of 3, 7 and 15 pixels. The weights are fixed.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 16, 16, 32)
        layers = [  # without PyTorch's initialisation, which would advance the global random generator
            nn.utils.skip_init(nn.Conv2d, *pair, 3, stride=2, padding=1, bias=False)  # type: ignore[no-untyped-call]
            for pair in itertools.pairwise(sizes)
        ]
        generator = torch.Generator().manual_seed(0)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, generator=generator)
        self.layers = nn.ModuleList(layers)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, 64) of images (B, 3, H, W)."""
        x, means = images, []
        for layer in self.layers:
            x = torch.relu(layer(x))  # (B, 16, H/2, W/2), (B, 16, H/4, W/4), (B, 32, H/8, W/8)
            means.append(x.mean((2, 3)))
        return torch.cat(means, dim=1)


class InceptionFeatures(nn.Module):
    """Turn images (B, 3, H, W) in [-1, 1] into the FID's features (B, 2048), by torch-fidelity's Inception network.

    Raises:
        ValueError: the file at `weights` is damaged.
    """

    num_features = 2048

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found,unused-ignore]
            FeatureExtractorInceptionV3,
        )

        read_weights(weights)  # torch-fidelity would execute code from the file: refuse all but tensors before
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, 2048) of images (B, 3, H, W)."""
        pixels = ((images + 1) * 127.5).round().byte()  # the FID is defined on 8-bit pixels
        return self.network(pixels)[0]


class EfficientNetFeatures(nn.Module):
    """Turn images (B, 3, H, W) in [-1, 1] into the features (B, 1280) before EfficientNet-Lite1's classifier."""

    num_features = EfficientNetDistance.num_features

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetDistance("efficientnet-lite1")

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, 1280) of images (B, 3, H, W)."""
        return self.network.pooled(images)


def _features(features: str | nn.Module) -> tuple[nn.Module, str, str]:
    """Return the network, and `FrechetDistance.name` and `FrechetDistance.source` for it."""
    if isinstance(features, nn.Module):
        return features, f"Fréchet distance, {type(features).__name__}", type(features).__name__
    names = ("auto", "inception", "efficientnet-lite1", "random")
    if features not in names:
        raise ValueError(f"features: expected a network or one of {', '.join(names)}, got {features!r}")
    reason = "as requested"
    if features in ("auto", "inception"):
        try:
            weights = _inception_weights()
        except OSError as error:
            if features == "inception":
                raise ValueError(f"features: the FID's Inception network is not available: {error}") from error
            reason = f"Inception is not available: {error}"
        else:
            return InceptionFeatures(weights), "rFID", f"torch-fidelity's Inception with the weights in {weights}"
    if features == "efficientnet-lite1" or (features == "auto" and available("efficientnet-lite1")):
        network = EfficientNetFeatures()
        return network, "Fréchet distance, EfficientNet-Lite1", f"{network.network.source} ({reason})"
    source = f"a small network with fixed random weights ({reason})"
    return RandomFeatures(), "Fréchet distance, random features", source


def _inception_weights() -> Path:
    """Return the file with Inception's weights. Raises `OSError` if it or torch-fidelity is not available."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise OSError("torch-fidelity is not installed")
    return cached_weights(INCEPTION_URL)


def _check_pair(name: str, reconstruction: Tensor, target: Tensor) -> None:
    if reconstruction.shape != target.shape or target.dim() != 4:
        shapes = f"{tuple(reconstruction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"{name}: expected two batches of one shape (B, C, H, W), got {shapes}")
    check_images(target, f"{name}: targets")
    check_images(reconstruction, f"{name}: reconstructions", MAX_RECONSTRUCTION_VALUE)
