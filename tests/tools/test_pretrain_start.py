"""The small model that notebook 08 starts from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from klvae_edu import AutoencoderKL
from tools import pretrain_start
from tools.pretrain_start import ARCHITECTURE, CONFIG, MODEL, pretrain, readme, sharpness


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL.from_pretrained(MODEL, dtype=torch.float32)


def test_it_is_small_and_in_float16():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 600_000
    with safe_open(MODEL / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_it_has_the_architecture_that_the_tool_trains(vae):
    assert vae.config == ARCHITECTURE


def test_its_readme_states_the_measured_figures(vae):
    assert readme(vae, CONFIG) == (MODEL / "README.md").read_text(encoding="utf-8")


def test_its_images_are_blurred(vae):
    held_out = pretrain_start.Validation(replace(CONFIG, held_out=16), vae).images
    with torch.no_grad():
        assert sharpness(vae(held_out).sample, held_out) < 0.7
    assert sharpness(held_out, held_out) == 1


def test_diffusers_loads_it_too(vae):
    from diffusers import AutoencoderKL as Theirs

    theirs = Theirs.from_pretrained(MODEL, torch_dtype=torch.float32)
    images = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(vae(images).sample, theirs(images).sample, rtol=0, atol=1e-5)


def test_the_tool_makes_such_a_folder(tmp_path):
    config = replace(CONFIG, steps=2, sample_every=2, save_every=2, held_out=4)
    pretrain(config, tmp_path / "start")
    made = AutoencoderKL.from_pretrained(tmp_path / "start")
    assert replace(made.config, scaling_factor=None) == ARCHITECTURE and made.dtype == torch.float16
    assert "2 steps of 8 crops" in (tmp_path / "start" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "start" / "config.json").read_text())["block_out_channels"] == [16, 32, 32]
