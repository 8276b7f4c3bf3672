"""FLUX.2's autoencoder: folders and files in both directions, and latents normalised as in diffusers' pipeline."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.training.latent_report import fit_scaling, latent_report
from tests.parity.reference import CONFIGS, built_by_diffusers, image, narrow, pair_of, reference_of, relative

NAMES = [name for name in CONFIGS if name.startswith("FLUX.2")]
WITH_BOTH = pytest.mark.parametrize("name", NAMES)


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@WITH_BOTH
def test_a_folder_of_diffusers_loads_here_and_one_of_ours_there(name: str, tmp_path: Path) -> None:
    theirs = reference_of(CONFIGS[name], torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AutoencoderKL.from_pretrained(tmp_path / "theirs")
    assert ours.config == CONFIGS[name]
    assert equal(ours.state_dict(), theirs.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.save_pretrained(tmp_path / "ours")
    again = diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "ours")
    assert equal(again.state_dict(), theirs.state_dict())
    assert again.config.batch_norm_eps == CONFIGS[name].batch_norm_eps
    unknown = json.loads((tmp_path / "ours" / "config.json").read_text()).keys() - theirs.config.keys()
    assert not unknown


@WITH_BOTH
def test_its_single_file_has_the_convolutions_of_the_latent_in_encoder_and_decoder(name: str, tmp_path: Path) -> None:
    ours, _ = pair_of(CONFIGS[name], torch.float32)
    ours.to_single_file(tmp_path / "ae.safetensors")
    tensors = load_file(tmp_path / "ae.safetensors")
    assert {"encoder.quant_conv.weight", "decoder.post_quant_conv.bias", "bn.running_var"} < tensors.keys()
    del tensors["bn.num_batches_tracked"]  # as in published files
    save_file(tensors, tmp_path / "published.safetensors")
    config = CONFIGS[name]
    fields = {"norm_num_groups": config.norm_num_groups, "batch_norm_eps": config.batch_norm_eps}
    again = AutoencoderKL.from_single_file(tmp_path / "published.safetensors", **fields, sample_size=512)
    assert again.config == config
    assert again.state_dict().pop("bn.num_batches_tracked") == 0
    for key, tensor in ours.state_dict().items():
        assert key == "bn.num_batches_tracked" or torch.equal(again.state_dict()[key], tensor)


@WITH_BOTH
def test_latents_are_normalised_as_in_its_pipeline(name: str) -> None:
    ours, reference = pair_of(CONFIGS[name], torch.float64)
    x = image((32, 48), torch.float64)
    with torch.no_grad():
        z = ours.encode_for_diffusion(x, sample=False)
        pipeline, bn = diffusers.Flux2Pipeline, reference.bn
        mean, std = (it.view(1, -1, 1, 1) for it in (bn.running_mean, (bn.running_var + bn.eps).sqrt()))
        theirs = (pipeline._patchify_latents(reference.encode(x).latent_dist.mode()) - mean) / std
        assert relative(z, theirs) < 1e-10
        decoded = reference.decode(pipeline._unpatchify_latents(theirs * std + mean)).sample
        assert relative(ours.decode_from_diffusion(z), decoded) < 1e-10


def test_sides_that_are_no_multiples_of_a_patch_are_refused_with_those_of_the_image() -> None:
    ours, _ = pair_of(CONFIGS["FLUX.2"], torch.float32)
    with pytest.raises(ValueError, match=r"multiples of 2, got \(16, 15\): of images whose sides are multiples of 4"):
        ours.encode_for_diffusion(image((32, 30), torch.float32))
    with pytest.raises(ValueError, match=r"expected a scaled latent of shape \(B, 32, H, W\)"):
        ours.decode_from_diffusion(torch.zeros(1, 8, 4, 4))


def test_after_training_the_statistics_are_those_of_samples_at_each_position() -> None:
    ours, _ = pair_of(CONFIGS["FLUX.2"], torch.float32)
    batches = [image((32, 32), torch.float32), 0.5 * image((32, 32), torch.float32)]
    report = latent_report(ours, batches)
    fit_scaling(ours, report)
    with torch.no_grad():
        posteriors = [ours.encode(batch).latent_dist for batch in batches]
        draws = [ours.in_patches(it.sample(torch.Generator().manual_seed(k))) for it in posteriors for k in range(200)]
    every = torch.cat(draws).transpose(0, 1).flatten(1)
    torch.testing.assert_close(ours.bn.running_mean, every.mean(1), rtol=0.05, atol=0.05)
    torch.testing.assert_close(ours.bn.running_var, every.var(1), rtol=0.05, atol=0)
    channels = torch.cat([it.mean for it in posteriors]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(report.samples.mean, channels.double().mean(1))
    assert ours.config.scaling_factor is None


def test_a_scaling_factor_beside_the_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="statistics normalise the latents; expected no scaling_factor"):
        AutoencoderKLConfig.from_preset("flux2", scaling_factor=1.0)


@pytest.mark.parametrize("preset", ["flux2", "flux2-small-decoder"])
def test_the_presets_have_the_parameters_of_diffusers_class(preset: str) -> None:
    config = AutoencoderKLConfig.from_preset(preset)
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(config), built_by_diffusers(config)
    assert {name: p.shape for name, p in ours.state_dict().items()} == {
        name: p.shape for name, p in theirs.state_dict().items()
    }


def test_the_small_decoder_is_narrower() -> None:
    assert narrow("flux2-small-decoder").decoder_block_out_channels == (16, 24, 48, 48)


# ---- Reflection and other scales -------------------------------------------------------------------------------------


def test_reflection_is_that_of_published_models() -> None:
    """They switch it on where a convolution pads by itself; downsampling pads zeros on one side."""
    config = AutoencoderKLConfig(block_out_channels=(32, 64), norm_num_groups=8, padding_mode="reflect")
    reference = reference_of(AutoencoderKLConfig(block_out_channels=(32, 64), norm_num_groups=8), torch.float64)
    for layer in reference.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.padding[0] > 0:
            layer.padding_mode = "reflect"
    ours = AutoencoderKL(config).double()
    ours.load_state_dict(reference.state_dict())
    zeros = AutoencoderKL(AutoencoderKLConfig(block_out_channels=(32, 64), norm_num_groups=8)).double()
    zeros.load_state_dict(reference.state_dict())
    x = image((16, 24), torch.float64)
    with torch.no_grad():
        assert relative(ours(x).sample, reference(x).sample) < 1e-10
        assert relative(zeros(x).sample, reference(x).sample) > 1e-3


def test_saving_with_reflection_warns_that_diffusers_ignores_it(tmp_path: Path) -> None:
    config = AutoencoderKLConfig(block_out_channels=(32, 64), norm_num_groups=8, padding_mode="reflect")
    with pytest.warns(UserWarning, match="diffusers' AutoencoderKL ignores padding_mode='reflect'"):
        AutoencoderKL(config).save_pretrained(tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path).config.padding_mode == "reflect"


def test_of_a_shift_and_means_of_channels_the_means_are_used_as_in_diffusers_pipeline_of_sdxl(tmp_path: Path) -> None:
    """As in EQ-SDXL-VAE's config.json: a scaling factor of 0.12746, a shift of 0.864, and both lists."""
    mean, std = [0.5, -0.25, 0.75, 1.0], [7.0, 8.0, 6.5, 7.5]
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32,), scaling_factor=0.12746, shift_factor=0.864, latents_mean=mean, latents_std=std
    )
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="latents_mean and latents_std: these are used with the scaling_factor"):
        ours = AutoencoderKL.from_pretrained(tmp_path)
    assert (ours.config.shift_factor, ours.config.latents_mean) == (0.864, tuple(mean))
    z = torch.randn(1, 4, 3, 3)
    means, stds = (torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std))
    torch.testing.assert_close(ours.unscale_latents(z), z * stds / 0.12746 + means)  # the pipeline's formula
