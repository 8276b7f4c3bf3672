"""The code in docs/training.md does what the text says."""

import re
from pathlib import Path

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.losses import vae_loss

GUIDE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.fixture
def equivariant_pair():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL) if "equivariant" in block]
    names = {}
    exec(compile(code, "docs/training.md", "exec"), names)
    return names["equivariant_pair"]


def test_the_latent_and_the_image_are_turned_or_reduced_alike(equivariant_pair):
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    sides, turned, plain = set(), 0, 0
    for _ in range(60):
        reconstruction, target, posterior = equivariant_pair(vae, images)
        assert reconstruction.shape == target.shape
        assert torch.equal(posterior.mean, vae.encode(images).latent_dist.mean)
        sides.add(target.shape[-1])
        plain += torch.equal(target, images)
        turned += any(torch.equal(target, images.rot90(turns, (2, 3))) for turns in (1, 2, 3))
    assert sides == {32, 16} and 15 < plain < 45 and 5 < turned < 30


def test_the_pair_can_be_trained_on(equivariant_pair):
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    reconstruction, target, posterior = equivariant_pair(vae, images)
    vae_loss(reconstruction, target, posterior)["loss"].backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
