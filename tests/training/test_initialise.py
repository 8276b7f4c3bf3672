"""Weights that begin as averages: what they compute, for which models, and that a run can begin with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu import AutoencoderKL
from klvae_edu.config import PRESETS
from klvae_edu.data import image_dataset
from klvae_edu.metrics import psnr
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.initialise import initialise_as_averages
from klvae_edu.training.networks import starting_model

SMALL = ["tiny", "mini", "kl-f8-mini"]


def begun(preset: str, seed: int = 0) -> AutoencoderKL:
    vae = AutoencoderKL.from_preset(preset, seed=seed).eval()
    initialise_as_averages(vae)
    return vae


@pytest.fixture(scope="module")
def crops() -> Tensor:
    return torch.stack([*image_dataset("photos", 64, split="held-out", length=8)])


@pytest.mark.parametrize("preset", SMALL)
@torch.no_grad()
def test_three_latent_channels_follow_the_colours_of_the_patches_and_the_fourth_does_not(
    preset: str, crops: Tensor
) -> None:
    vae = begun(preset)
    means = vae.encode(crops).latent_dist.mean.transpose(0, 1).flatten(1)
    patches = F.avg_pool2d(crops, vae.downsample_factor).transpose(0, 1).flatten(1)
    alike = torch.corrcoef(torch.cat([means, patches]))[:4, 4:]
    assert alike.diagonal().min() > 0.97
    assert alike[3].abs().max() < 0.9


@pytest.mark.parametrize("preset", SMALL)
@torch.no_grad()
def test_the_reconstruction_is_recognisable_before_any_training(preset: str, crops: Tensor) -> None:
    random = AutoencoderKL.from_preset(preset, seed=0).eval()
    assert psnr(begun(preset)(crops).sample, crops).mean() > psnr(random(crops).sample, crops).mean() + 5


@torch.no_grad()
def test_each_colour_arrives_in_its_own_place() -> None:
    """Red, green and blue halves: what comes out is most like what went in, not a channel for another."""
    vae = begun("mini")
    image = -0.6 * torch.ones(1, 3, 64, 64)
    for channel, (rows, columns) in enumerate([((0, 32), (0, 32)), ((0, 32), (32, 64)), ((32, 64), (0, 32))]):
        image[0, channel, slice(*rows), slice(*columns)] = 0.6
    found = torch.corrcoef(torch.cat([image[0].flatten(1), vae(image).sample[0].flatten(1)]))[:3, 3:]
    assert (found.argmax(1) == torch.arange(3)).all()
    assert found.diagonal().min() > 0.9


def test_the_posterior_begins_narrow(crops: Tensor) -> None:
    assert begun("mini").encode(crops).latent_dist.std.median().item() == pytest.approx(0.135, rel=0.2)


def test_what_carries_no_colour_stays_random_and_a_seed_decides_it() -> None:
    first, again, other = begun("mini"), begun("mini"), begun("mini", seed=1)
    name = "encoder.down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(first.state_dict()[name], AutoencoderKL.from_preset("mini", seed=0).state_dict()[name])
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_every_weight_gets_a_gradient(crops: Tensor) -> None:
    """Nothing is begun at a zero that nothing could leave."""
    vae = begun("mini")
    posterior = vae.encode(crops).latent_dist
    (F.mse_loss(vae.decode(posterior.sample()).sample, crops) + 1e-3 * posterior.kl().mean()).backward()
    assert [name for name, weight in vae.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_it_learns_colours_sooner_than_random_weights() -> None:
    crops = torch.stack([*image_dataset("photos", 32, length=320, recolour=1.0)])
    last = {}
    for initialisation in ("random", "averages"):
        vae = starting_model(TrainingConfig(preset="tiny", initialisation=initialisation)).train()
        optimizer = torch.optim.AdamW(vae.parameters(), 1e-3)
        losses = []
        for step, batch in enumerate(crops.split(8)):
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20)
            optimizer.zero_grad()
            loss = F.mse_loss(vae(batch).sample, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        last[initialisation] = sum(losses[-10:])
    assert last["averages"] < 0.5 * last["random"]


def test_a_model_without_room_for_the_colours_is_an_error_that_says_what_it_lacks() -> None:
    narrow = AutoencoderKL(replace(PRESETS["tiny"], block_out_channels=(8, 16, 16)))
    with pytest.raises(ValueError, match=r"at least 12 channels, got \(8, 16, 16\)"):
        initialise_as_averages(narrow)
    poor = AutoencoderKL(replace(PRESETS["tiny"], latent_channels=2))
    with pytest.raises(ValueError, match="at least 3 latent ones, got 3 in, 3 out, 2 latent"):
        initialise_as_averages(poor)


def test_a_run_begins_with_them_only_where_it_is_asked_to_and_has_no_trained_weights() -> None:
    plain = starting_model(TrainingConfig(preset="tiny")).state_dict()
    asked = starting_model(TrainingConfig(preset="tiny", initialisation="averages")).state_dict()
    expected = begun("tiny").state_dict()
    assert all(torch.equal(asked[name], expected[name]) for name in expected)
    assert not torch.equal(plain["encoder.conv_in.weight"], asked["encoder.conv_in.weight"])
    with pytest.raises(
        ValueError, match="initialisation: expected random, since init brings trained weights, got 'averages'"
    ):
        TrainingConfig(init="run/model", initialisation="averages")
