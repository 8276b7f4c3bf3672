"""The scale of latents in a file without a configuration: by models beside it, by metadata, or a guess that is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from klvae_edu.config import PRESETS, AutoencoderKLConfig
from klvae_edu.weights.latent_scale import latent_scale

FOUR = replace(PRESETS["sd-v1"], scaling_factor=None)
SIXTEEN = replace(PRESETS["sd3"], scaling_factor=None, shift_factor=None)
THREE_LEVELS = AutoencoderKLConfig(block_out_channels=(128, 256, 512), scaling_factor=None)


def scale(
    config: AutoencoderKLConfig, *names: str, metadata: dict[str, str] | None = None, given: tuple[str, ...] = ()
) -> tuple[dict[str, Any], str | None]:
    tensors: dict[str, Tensor] = {name: torch.ones(4) for name in names}
    return latent_scale(config, tensors, metadata or {}, given)


@pytest.mark.parametrize(
    ("config", "name", "scaling_factor", "shift_factor"),
    [
        (FOUR, "conditioner.embedders.0.transformer.weight", 0.13025, None),
        (FOUR, "cond_stage_model.transformer.text_model.weight", 0.18215, None),
        (THREE_LEVELS, "cond_stage_model.model.ln_final.weight", 0.08333, None),  # the x4 upscaler
        (FOUR, "model.double_layers.0.attn.w1q.weight", 0.13025, None),  # AuraFlow
        (FOUR, "model.diffusion_model.mlp_t5.0.weight", 0.13025, None),  # HunyuanDiT
        (SIXTEEN, "model.diffusion_model.cap_embedder.1.weight", 0.3611, 0.1159),  # Lumina 2
        (SIXTEEN, "model.diffusion_model.double_blocks.0.img_attn.qkv.weight", 0.3611, 0.1159),
        (SIXTEEN, "model.diffusion_model.joint_blocks.0.x_block.weight", 1.5305, 0.0609),
    ],
)
def test_is_that_of_the_model_beside_it(
    config: AutoencoderKLConfig, name: str, scaling_factor: float, shift_factor: float | None
) -> None:
    fields, warning = scale(config, name)
    assert (fields["scaling_factor"], fields["shift_factor"], warning) == (scaling_factor, shift_factor, None)


def test_of_playground_is_in_its_file() -> None:
    tensors = {
        "edm_mean": torch.tensor([0.5, -1.0, 0.25, 2.0]),
        "edm_std": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "conditioner.embedders.0.weight": torch.ones(1),
    }
    fields, warning = latent_scale(FOUR, tensors, {}, ())
    assert warning is None
    assert (fields["scaling_factor"], fields["latents_mean"], fields["latents_std"]) == (
        0.5,
        (0.5, -1.0, 0.25, 2.0),
        (1.0, 2.0, 3.0, 4.0),
    )
    replace(FOUR, **fields)  # a valid configuration


def test_may_be_told_by_the_metadata_of_a_trainer() -> None:
    for architecture, expected in (("stable-diffusion-xl-v1-base/vae", 0.13025), ("stable-diffusion-v1", 0.18215)):
        fields, warning = scale(FOUR, metadata={"modelspec.architecture": architecture})
        assert (fields["scaling_factor"], warning) == (expected, None)


def test_is_said_to_be_a_guess_or_open_where_it_is() -> None:
    fields, warning = scale(FOUR)
    assert fields == {"scaling_factor": 0.18215} and warning is not None and "a guess" in warning
    fields, warning = scale(SIXTEEN)
    assert fields == {} and warning is not None and "1.5305" in warning and "0.3611" in warning
    fields, warning = scale(replace(FOUR, latent_channels=32), "double_blocks.0.weight")
    assert fields == {} and warning is not None and "32 latent channels" in warning


def test_that_is_given_is_not_guessed() -> None:
    assert scale(FOUR, given=("scaling_factor",)) == ({}, None)
    assert scale(SIXTEEN, given=("scaling_factor", "shift_factor")) == ({}, None)
