"""Measure the latents of a trained model on its training crops: the scaling factor, and channels that carry nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.latents import LatentStatistics, statistics

CROPS = 512  # training crops that are measured
UNUSED = 0.02  # a channel with a smaller share of signal carries almost nothing


@dataclass(frozen=True)
class LatentReport:
    """Statistics of posterior samples over many images.

    Attributes:
        samples: mean and standard deviation of samples, of each channel and of all values.
        patches: mean and standard deviation of samples, of each position in the patches of which FLUX.2's models have
            statistics, (C · 4,), in the order of `AutoencoderKL.in_patches`; of other models the same as `samples`.
        signal: (C,), the share of each channel's variance that differs from place to place and image to image, from 0
            to 1. The rest is the posterior's noise: a channel with 0 has collapsed onto the prior or is constant.
    """

    samples: LatentStatistics
    patches: LatentStatistics
    signal: Tensor

    @property
    def unused(self) -> list[int]:
        """The numbers of the channels, counted from 0, that carry almost nothing."""
        return [number for number, share in enumerate(self.signal.tolist()) if share < UNUSED]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, as in `log.jsonl`."""
        return {
            "latent_mean": self.samples.mean.tolist(),
            "latent_std": self.samples.std.tolist(),
            "latent_signal": self.signal.tolist(),
            "latent_scaling_factor": self.samples.scaling_factor,
        }

    def summary(self) -> list[str]:
        """Describe the report in lines."""
        means, deviations = (
            ", ".join(f"{value:.2f}" for value in values.tolist()) for values in (self.samples.mean, self.samples.std)
        )
        return [
            f"Latents of {CROPS} training crops: standard deviation {self.samples.overall_std:.3f} in all, which makes "
            f"the scaling factor {self.samples.scaling_factor:.4f}.",
            f"  means of the channels: {means}",
            f"  standard deviations:   {deviations}",
            *(
                f"Channel {number} is unused: {self.signal[number]:.1%} of its variance depends on the image. A "
                "smaller --kl-weight or another --seed may bring it into use."
                for number in self.unused
            ),
        ]


@torch.no_grad()
def latent_report(vae: AutoencoderKL, batches: Iterable[Tensor]) -> LatentReport:
    """Measure the posteriors of images in `batches`, each (B, C, H, W) in [-1, 1], in one pass; no batch is stored.

    Raises:
        ValueError: fewer than two values a channel.
    """
    return posterior_report(vae, (vae.encode(images.to(vae.device)).latent_dist for images in batches))


@torch.no_grad()
def posterior_report(vae: AutoencoderKL, posteriors: Iterable[DiagonalGaussianDistribution]) -> LatentReport:
    """Measure `posteriors` of `vae`, each of a batch of images, in one pass; none is stored.

    A sample is the posterior's mean plus independent noise, so the variances add up: Var z = Var μ + E[σ²]. No samples
    are drawn.

    Raises:
        ValueError: fewer than two values a channel.
    """
    channels = vae.config.latent_channels
    noise, count = torch.zeros((), dtype=torch.float64), 0

    def means() -> Iterator[Tensor]:
        nonlocal noise, count
        for posterior in posteriors:
            variances = vae.in_patches(posterior.logvar.exp()).double().transpose(0, 1).flatten(1).cpu()
            noise, count = noise + variances.sum(1), count + variances.shape[1]  # (C · p²,) for patches of p x p
            yield vae.in_patches(posterior.mean)

    of_means = statistics(means())
    noise = noise / count
    overall = (of_means.overall_mean, (of_means.overall_std**2 + noise.mean().item()) ** 0.5)
    patches = LatentStatistics(of_means.mean, (of_means.std.square() + noise).sqrt(), *overall)
    # Of whole channels: the positions in a patch have as many values each, and their means differ, too.
    means_at, squares_at, noise_at = (x.view(channels, -1) for x in (of_means.mean, of_means.std**2, noise))
    signal = squares_at.mean(1) + means_at.var(1, correction=0)
    variance = signal + noise_at.mean(1)  # (C,)
    samples = LatentStatistics(means_at.mean(1), variance.sqrt(), *overall)
    return LatentReport(samples, patches, signal / variance)


def fit_scaling(vae: AutoencoderKL, report: LatentReport) -> None:
    """Set the scaling of latents in the configuration of `vae` to the measured values; in FLUX.2's models, `bn`.

    The fields in use stay in use: a shift only where there is one, and with means and standard deviations of the
    channels the scaling factor keeps its value.
    """
    config, samples = vae.config, report.samples
    if config.patch_size is not None:
        vae.bn.get_buffer("running_mean").copy_(report.patches.mean)
        vae.bn.get_buffer("running_var").copy_(report.patches.std.square())
        return
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (tuple(round(value, 4) for value in values.tolist()) for values in (samples.mean, samples.std))
        vae.config = replace(config, latents_mean=mean, latents_std=std)
        return
    shift = None if config.shift_factor is None else round(samples.overall_mean, 4)
    vae.config = replace(config, scaling_factor=round(samples.scaling_factor, 4), shift_factor=shift)
