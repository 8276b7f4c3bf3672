"""How good reconstructions are: of one image PSNR, SSIM and the energy of its edges, of many the Fréchet distance.

A fourth one of an image, LPIPS, is in `klvae_edu.perceptual`. All take images (B, 3, H, W) in [-1, 1] and look at a
reconstruction as it is displayed, clamped to that range. Built in notebook 09.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn

SSIM_WINDOW = 11  # pixels
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"


def psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for images (B, C, H, W) in [-1, 1]: (B,); infinity where they are equal.

    10·log10(2² / MSE), the peak being the width of the range. A mean over images is a mean of dB, as in the literature,
    not the dB of a mean error.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or are not (B, C, H, W).
    """
    _check_pair("psnr", reconstruction, target)
    error = (reconstruction.float().clamp(-1, 1) - target.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


def ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of images (B, C, H, W) in [-1, 1]: (B,), 1 for equal images.

    By torchmetrics: per channel, the mean over a Gaussian window of 11×11 pixels (standard deviation 1.5) around each
    pixel, the image mirrored at its borders. It compares means as brightnesses, of which 0 is black: the images are
    moved to [0, 2] first, and the value is that of the pixels from 0 to 255. In [-1, 1] it would be another one.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III.

    Raises:
        ValueError: the shapes differ, are not (B, C, H, W), or are below 11 pixels a side.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair("ssim", reconstruction, target)
    if min(target.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"ssim: expected at least {SSIM_WINDOW} pixels a side, got {tuple(target.shape)}")
    of_windows = structural_similarity_index_measure(
        reconstruction.float().clamp(-1, 1) + 1, target.float() + 1, sigma=1.5, data_range=2.0, reduction="none"
    )
    assert isinstance(of_windows, Tensor)  # it can give more than that
    return of_windows


def gradient_energy(images: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels in images (B, C, H, W), the mean of both directions: (B,).

    The energy of edges and texture: a reconstruction with less of it than the original is blurred, whatever its PSNR.

    Raises:
        ValueError: not (B, C, H, W) with two pixels or more a side.
    """
    if images.dim() != 4 or min(images.shape[-2:]) < 2:
        raise ValueError(f"gradient_energy: expected (B, C, H, W) with 2 pixels a side, got {tuple(images.shape)}")
    shown = images.float().clamp(-1, 1)
    return torch.stack([shown.diff(dim=dim).square().flatten(1).mean(1) for dim in (2, 3)]).mean(0)


class FrechetDistance:
    """The Fréchet distance between the features of reconstructions and of originals, each taken as one Gaussian.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2·(Σ₁Σ₂)^½), by torchmetrics, in float64. It compares the two crowds, not pairs of images,
    and needs many of them: with few, two samples of the same crowd already have a distance. What is kept does not grow
    with their number.

    Args:
        features: a network that turns images (B, 3, H, W) in [-1, 1] into (B, F), with F as its `num_features`.
            "inception": the one of the FID, for which `torch-fidelity` is installed and its weights are in the cache of
            `torch.hub` or can be had. "random": a small one with fixed random weights, which sees edges, texture and
            colour, not objects. "auto": the first where it can be had, else the second; `name` and `source` tell which.
        device: where the network runs.

    Attributes:
        name: "rFID" with Inception; with anything else "Fréchet distance, …": values of different features have
            nothing to do with each other.
        source: where the features come from, in words.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium".

    Raises:
        ValueError: Inception is asked for and cannot be had, or its file is damaged.
    """

    def __init__(self, features: str | nn.Module = "auto", device: torch.device | str = "cpu") -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        network, self.name, self.source = _features(features)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.count = 0
        statistics = nn.Identity()
        statistics.num_features = network.num_features
        self._distance = FrechetInceptionDistance(statistics)  # is given features, which Identity leaves as they are

    @torch.no_grad()
    def update(self, reconstructions: Tensor, originals: Tensor) -> None:
        """Take in two batches (B, 3, H, W) in [-1, 1]."""
        _check_pair("FrechetDistance", reconstructions, originals)
        for images, real in ((reconstructions, False), (originals, True)):
            features = self.network(images.float().clamp(-1, 1).to(self.device))
            self._distance.update(features.cpu(), real=real)
        self.count += len(originals)

    def compute(self) -> float:
        """The distance between all that was taken in.

        Raises:
            ValueError: that was fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"FrechetDistance: expected two images or more, got {self.count}")
        return float(self._distance.compute().clamp(min=0))  # equal ones may come out as -1e-12


class RandomFeatures(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to 64 features (B, 64): mean responses of three layers of fixed random filters.

    The means of the first two layers, 16 and 16, and of the third, 32: texture at the scales of 3, 7 and 15 pixels.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 16, 16, 32)
        layers = [  # not drawn twice, or whoever draws at random afterwards would get other numbers
            nn.utils.skip_init(nn.Conv2d, *pair, 3, stride=2, padding=1, bias=False)  # type: ignore[no-untyped-call]
            for pair in itertools.pairwise(sizes)
        ]
        generator = torch.Generator().manual_seed(0)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, generator=generator)
        self.layers = nn.ModuleList(layers)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x, means = images, []
        for layer in self.layers:
            x = torch.relu(layer(x))
            means.append(x.mean((2, 3)))
        return torch.cat(means, dim=1)


class InceptionFeatures(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to the 2048 features (B, 2048) of the FID: torch-fidelity's Inception network.

    Raises:
        ValueError: the file at `weights` is damaged.
    """

    num_features = 2048

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found,unused-ignore]
            FeatureExtractorInceptionV3,
        )

        try:  # that network would execute what is in the file: it is given none that holds more than tensors
            torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise whatever their reader stumbles over
            raise ValueError(f"{weights}: cannot be read as weights ({error}); if it is damaged, delete it") from error
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images + 1) * 127.5).round().byte()
        return self.network(pixels)[0]


def _features(features: str | nn.Module) -> tuple[nn.Module, str, str]:
    """The network, and the distance's name and the features' origin in words."""
    if isinstance(features, nn.Module):
        return features, f"Fréchet distance, {type(features).__name__}", type(features).__name__
    if features not in ("auto", "inception", "random"):
        raise ValueError(f"features: expected 'auto', 'inception', 'random' or a network, got {features!r}")
    why = "they were asked for"
    if features != "random":
        found = _inception_weights()
        if isinstance(found, Path):
            return InceptionFeatures(found), "rFID", f"torch-fidelity's Inception with the weights in {found}"
        if features == "inception":
            raise ValueError(f"features: the FID's Inception network cannot be had: {found}")
        why = f"Inception cannot be had: {found}"
    return RandomFeatures(), "Fréchet distance, random features", f"a small network with fixed random weights ({why})"


def _inception_weights() -> Path | str:
    """The file with Inception's weights, or in words why it cannot be had."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return "torch-fidelity is not installed"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if cached.is_file():
        return cached
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return f"{cached} is missing, and HF_HUB_OFFLINE is set"
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(cached), hash_prefix="6726825d", progress=False)
    except (OSError, RuntimeError, HTTPException) as error:  # no network, or a part of the file
        return f"{cached} is missing, and {INCEPTION_URL} gave nothing ({error})"
    return cached


def _check_pair(name: str, reconstruction: Tensor, target: Tensor) -> None:
    if reconstruction.shape != target.shape or target.dim() != 4:
        shapes = f"{tuple(reconstruction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"{name}: expected two batches of one shape (B, C, H, W), got {shapes}")
