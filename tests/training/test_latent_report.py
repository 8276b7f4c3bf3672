"""Latent statistics at the end of a run: one pass equals two, and channels that carry nothing are named."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset
from klvae_edu.training.latent_report import LatentReport, fit_scaling, latent_report


@pytest.fixture
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_bundled().double()


@pytest.fixture
def images() -> Tensor:
    crops = image_dataset("dead-leaves", 32)
    return torch.stack([crops[index] for index in range(9)]).double()


def test_one_pass_in_batches_equals_a_second_pass_over_everything(vae: AutoencoderKL, images: Tensor) -> None:
    report = latent_report(vae, images.split(2))
    posterior = vae.encode(images).latent_dist
    mean, variance = posterior.mean, posterior.logvar.exp()
    torch.testing.assert_close(report.samples.mean, mean.mean((0, 2, 3)), rtol=1e-6, atol=1e-9)
    std = (mean.var((0, 2, 3)) + variance.mean((0, 2, 3))).sqrt()
    torch.testing.assert_close(report.samples.std, std, rtol=1e-6, atol=0)
    assert report.samples.overall_std == pytest.approx((mean.var() + variance.mean()).sqrt().item(), rel=1e-6)
    assert report.samples.scaling_factor == pytest.approx(1 / report.samples.overall_std)
    torch.testing.assert_close(report.signal, mean.var((0, 2, 3)) / std**2, rtol=1e-6, atol=0)


def test_it_is_the_spread_of_samples_and_not_of_means_alone(vae: AutoencoderKL, images: Tensor) -> None:
    report = latent_report(vae, [images])
    generator = torch.Generator().manual_seed(0)
    posterior = vae.encode(images).latent_dist
    samples = torch.cat([posterior.sample(generator) for _ in range(50)])
    assert report.samples.overall_std == pytest.approx(samples.std().item(), rel=0.01)
    assert report.samples.overall_std > posterior.mean.std().item()


@torch.no_grad()
def with_channel(vae: AutoencoderKL, number: int, mean: float, logvar: float) -> AutoencoderKL:
    """The same model with a posterior in one channel that does not depend on the image."""
    channels = vae.config.latent_channels
    conv = cast(nn.Conv2d, vae.quant_conv)
    assert conv.bias is not None
    for row, value in ((number, mean), (channels + number, logvar)):
        conv.weight[row] = 0
        conv.bias[row] = value
    return vae


@pytest.mark.parametrize(("mean", "logvar"), [(0.0, 0.0), (0.3, -20.0)], ids=["collapsed", "constant"])
def test_a_channel_that_carries_nothing_is_named(
    vae: AutoencoderKL, images: Tensor, mean: float, logvar: float
) -> None:
    report = latent_report(with_channel(vae, 2, mean, logvar), images.split(4))
    assert report.unused == [2]
    assert any(line.startswith("Channel 2 is unused: 0.0% of its variance") for line in report.summary())


def test_no_channel_of_the_bundled_model_is_unused(images: Tensor) -> None:
    report = latent_report(AutoencoderKL.from_bundled(), [images.float()])
    assert report.unused == [] and not any("unused" in line for line in report.summary())


@pytest.fixture
def report(vae: AutoencoderKL, images: Tensor) -> LatentReport:
    return latent_report(vae, [images])


def test_the_scaling_that_a_model_has_is_measured_anew(vae: AutoencoderKL, report: LatentReport) -> None:
    vae.config = replace(vae.config, scaling_factor=0.18215, shift_factor=None)
    fit_scaling(vae, report)
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (round(1 / report.samples.overall_std, 4), None)

    vae.config = replace(vae.config, shift_factor=0.1)
    fit_scaling(vae, report)
    assert vae.config.shift_factor == round(report.samples.overall_mean, 4)

    vae.config = replace(
        vae.config, scaling_factor=1.0, shift_factor=None, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4
    )
    fit_scaling(vae, report)
    assert vae.config.scaling_factor == 1.0
    assert vae.config.latents_std == pytest.approx(report.samples.std.tolist(), abs=1e-4)
