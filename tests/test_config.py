"""`AutoencoderKLConfig`: valid and invalid fields, presets, and diffusers' config.json."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from klvae_edu import AutoencoderKL, AutoencoderKLConfig


def test_the_defaults_are_stable_diffusion_v1s() -> None:
    config = AutoencoderKLConfig()
    assert config.block_out_channels == (128, 256, 512, 512)
    assert config.layers_per_block == 2
    assert config.scaling_factor == 0.18215
    assert config.downsample_factor == 8
    assert config == AutoencoderKLConfig.from_preset("sd-v1")


def test_block_types_follow_the_number_of_widths() -> None:
    config = AutoencoderKLConfig(block_out_channels=(32, 64))
    assert config.down_block_types == ("DownEncoderBlock2D",) * 2
    assert config.up_block_types == ("UpDecoderBlock2D",) * 2
    assert config.downsample_factor == 2


def test_a_config_is_frozen_and_can_be_compared_and_hashed() -> None:
    config = AutoencoderKLConfig()
    with pytest.raises(FrozenInstanceError):
        config.latent_channels = 8  # type: ignore[misc]
    assert hash(config) == hash(AutoencoderKLConfig())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"block_out_channels": ()}, ["block_out_channels", "()"]),
        ({"block_out_channels": 128}, ["block_out_channels", "128"]),
        ({"block_out_channels": (128, 0)}, ["block_out_channels[1]", "0"]),
        ({"block_out_channels": (48, 64)}, ["norm_num_groups", "32", "48"]),
        ({"latent_channels": 0}, ["latent_channels", "0"]),
        ({"latent_channels": 4.0}, ["latent_channels", "4.0"]),
        ({"layers_per_block": -1}, ["layers_per_block", "-1"]),
        ({"sample_size": [512, 512]}, ["sample_size", "[512, 512]"]),
        ({"act_fn": "tanh"}, ["act_fn", "tanh", "silu"]),
        ({"down_block_types": ("DownEncoderBlock2D",)}, ["down_block_types", "4", "1"]),
        ({"up_block_types": ("UpBlock2D",) * 4}, ["up_block_types", "UpBlock2D", "UpDecoderBlock2D"]),
        ({"scaling_factor": 0.0}, ["scaling_factor", "0.0"]),
        ({"scaling_factor": "0.1"}, ["scaling_factor", "'0.1'"]),
        ({"scaling_factor": float("inf")}, ["scaling_factor", "finite", "inf"]),
        ({"shift_factor": "a"}, ["shift_factor", "'a'"]),
        ({"padding_mode": "circular"}, ["padding_mode", "zeros or reflect", "'circular'"]),
        ({"decoder_block_out_channels": (32, 64)}, ["decoder_block_out_channels", "4 widths", "(32, 64)"]),
        ({"patch_size": 2}, ["patch_size", "(2, 2)", "got 2"]),
        ({"patch_size": (2, 4)}, ["patch_size", "equal", "(2, 4)"]),
        ({"patch_size": (2, 2), "scaling_factor": 0.5}, ["patch_size", "no scaling_factor"]),
        ({"batch_norm_eps": -1.0}, ["batch_norm_eps", "-1.0"]),
        ({"latents_mean": ("a",) * 4, "latents_std": (1.0,) * 4}, ["latents_mean", "4 numbers", "'a'"]),
        ({"down_block_types": 5}, ["down_block_types", "5"]),
        ({"force_upcast": "false"}, ["force_upcast", "'false'"]),
        ({"use_quant_conv": None}, ["use_quant_conv", "None"]),
        ({"latents_mean": 1, "latents_std": 1}, ["latents_mean", "4 numbers", "1"]),
        ({"latents_mean": (0.0,) * 4}, ["latents_mean", "latents_std"]),
        ({"latents_mean": (0.0,) * 3, "latents_std": (1.0,) * 3}, ["latents_mean", "4 numbers", "(0.0, 0.0, 0.0)"]),
        ({"latents_mean": (0.0,) * 4, "latents_std": (1.0, 1.0, 0.0, 1.0)}, ["latents_std", "positive"]),
    ],
)
def test_an_impossible_configuration_names_the_field_and_the_value(fields: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        AutoencoderKLConfig(**fields)
    for word in words:
        assert word in str(error.value)


def test_a_mistyped_field_is_an_error_that_offers_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'latent_channels'"):
        AutoencoderKL(latent_chanels=4)
    with pytest.raises(ValueError, match="did you mean 'scaling_factor'"):
        AutoencoderKLConfig.from_preset("tiny", scale_factor=1.0)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"sd-v1, sdxl, sd3, flux, flux2, flux2-small-decoder, kl-f4, .*, tiny"):
        AutoencoderKLConfig.from_preset("sdxxl")


def test_a_file_that_leaves_fields_out_has_diffusers_defaults() -> None:
    config = AutoencoderKLConfig.from_dict({"_class_name": "AutoencoderKL"})
    assert config.block_out_channels == (64,)
    assert config.layers_per_block == 1
    assert config.sample_size == 32


def test_a_field_from_elsewhere_is_named_in_a_warning_and_ignored() -> None:
    with pytest.warns(UserWarning, match="encoder_depth"):
        config = AutoencoderKLConfig.from_dict({"encoder_depth": 2})
    assert config == AutoencoderKLConfig.from_dict({})


def test_a_configuration_survives_json() -> None:
    config = AutoencoderKLConfig.from_preset("tiny", latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    assert AutoencoderKLConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("preset", ["mini", "tiny"])
def test_small_presets_have_no_scaling_factor_until_one_is_computed(preset: str) -> None:
    assert AutoencoderKLConfig.from_preset(preset).scaling_factor is None


@pytest.mark.parametrize(
    ("preset", "factor", "channels", "scale", "shift"),
    [
        ("sd-v1", 8, 4, 0.18215, None),
        ("sdxl", 8, 4, 0.13025, None),
        ("sd3", 8, 16, 1.5305, 0.0609),
        ("flux", 8, 16, 0.3611, 0.1159),
        ("kl-f4", 4, 3, None, None),
        ("kl-f8", 8, 4, 0.18215, None),
        ("kl-f16", 16, 16, None, None),
        ("kl-f32", 32, 64, None, None),
    ],
)
def test_the_published_family(
    preset: str, factor: int, channels: int, scale: float | None, shift: float | None
) -> None:
    config = AutoencoderKLConfig.from_preset(preset)
    assert config.downsample_factor == factor
    assert config.latent_channels == channels
    assert (config.scaling_factor, config.shift_factor) == (scale, shift)
    assert config.use_quant_conv == config.use_post_quant_conv == (preset not in ("sd3", "flux"))


def test_the_papers_models_have_attention_where_the_map_is_16_pixels_or_smaller() -> None:
    """At 256 pixels: one level of KL-f16 and two of KL-f32, with the same sizes in encoder and decoder."""
    for preset, levels in (("kl-f4", 0), ("kl-f8", 0), ("kl-f16", 1), ("kl-f32", 2)):
        config = AutoencoderKLConfig.from_preset(preset)
        down = [block.startswith("Attn") for block in config.down_block_types]
        assert down == [config.sample_size >> level <= 16 for level in range(len(down))]
        assert sum(down) == levels
        assert [block.startswith("Attn") for block in config.up_block_types] == down[::-1]
