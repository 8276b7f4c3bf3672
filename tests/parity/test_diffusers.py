"""With the same weights and input, results equal diffusers' AutoencoderKL to 1e-10 in float64, 2e-5 in float32."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceAutoencoderKL
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution
from klvae_edu.config import PRESETS
from tests.parity.reference import CONFIGS, SMALL, compare, image, narrow, pair_of, randomise, reference_of, relative

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])


@DTYPES
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_moments_reconstruction_and_gradients_agree(config: AutoencoderKLConfig, dtype: torch.dtype) -> None:
    difference = compare(*pair_of(config, dtype), image((32, 24), dtype))
    assert difference.moments < TOLERANCE[dtype]
    assert difference.reconstruction < TOLERANCE[dtype]
    assert difference.gradient < TOLERANCE[dtype]


@DTYPES
def test_stable_diffusion_v1_agrees_at_its_full_width(dtype: torch.dtype) -> None:
    difference = compare(*pair_of(AutoencoderKLConfig.from_preset("sd-v1"), dtype), image((32, 40), dtype, batch=1))
    assert difference.moments < TOLERANCE[dtype]
    assert difference.reconstruction < TOLERANCE[dtype]
    assert difference.gradient < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_agrees_block_by_block_with_gradients(preset: str, dtype: torch.dtype) -> None:
    """All blocks are compared, because two errors may cancel at the output. Widths are reduced."""
    ours, reference = pair_of(narrow(preset), dtype)
    seen: list[dict[str, Tensor]] = [watch(model) for model in (ours, reference)]
    side = 2 * ours.downsample_factor
    difference = compare(ours, reference, image((side, side + ours.downsample_factor), dtype))
    assert max(difference.moments, difference.reconstruction, difference.gradient) < TOLERANCE[dtype]
    assert seen[0].keys() == seen[1].keys()
    for name in seen[1]:
        assert relative(seen[0][name], seen[1][name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_parameters_have_diffusers_order(preset: str) -> None:
    """So an optimiser's state, a list of averages or a flat vector of diffusers' model fits this one."""
    ours, reference = pair_of(narrow(preset), torch.float32)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]


def watch(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a dictionary that a forward pass fills with the outputs of all blocks and of layers outside of them."""
    outputs: dict[str, Tensor] = {}
    blocks = ("resnets", "attentions", "downsamplers", "upsamplers", "down_blocks", "up_blocks")
    layers = ("mid_block", "conv_in", "conv_norm_out", "conv_out", "quant_conv", "post_quant_conv")
    for name, module in model.named_modules():
        path = name.split(".")
        if isinstance(module, torch.nn.Identity):
            continue
        if path[-1] in layers or (len(path) > 1 and path[-2] in blocks):
            module.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out.detach()}))
    return outputs


def test_the_forward_pass_takes_the_posteriors_mode_and_on_request_a_sample() -> None:
    ours, reference = pair_of(SMALL, torch.float64)
    x = image((32, 32), torch.float64)
    with torch.no_grad():
        assert relative(ours(x).sample, reference(x).sample) < 1e-10
        generators = [torch.Generator().manual_seed(5) for _ in range(2)]
        ours_sample = ours(x, sample_posterior=True, generator=generators[0]).sample
        theirs = reference(x, sample_posterior=True, generator=generators[1]).sample
        assert relative(ours_sample, theirs) < 1e-10
        assert relative(ours_sample, ours(x).sample) > 1e-3


def test_outputs_can_be_taken_as_tuples_as_pipelines_do() -> None:
    ours, reference = pair_of(SMALL, torch.float64)
    x = image((32, 32), torch.float64)
    z = ours.encode(x, return_dict=False)[0].mode()
    assert relative(z, reference.encode(x, return_dict=False)[0].mode()) < 1e-10
    decoded = ours.decode(z, return_dict=False, generator=None)[0]
    assert relative(decoded, reference.decode(z, return_dict=False)[0]) < 1e-10


def test_the_gaussian_agrees_where_the_log_variance_is_extreme() -> None:
    """Outside of [-30, 20], the range of the clamp, an unclamped log-variance would give 0 or infinity."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Reference

    logvar = torch.tensor([-1000.0, -31.0, -30.0, 0.0, 20.0, 21.0, 1000.0, 3.0], dtype=torch.float64)
    mean = torch.linspace(-2, 2, 8, dtype=torch.float64)
    parameters = torch.cat([mean.view(1, 8, 1, 1), logvar.view(1, 8, 1, 1)], dim=1)
    ours, theirs = DiagonalGaussianDistribution(parameters), Reference(parameters)
    sample = mean.view(1, 8, 1, 1) + 0.1
    other = torch.randn(parameters.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, a, b in [
        ("std", ours.std, theirs.std),
        ("var", ours.var, theirs.var),
        ("kl", ours.kl(), theirs.kl()),
        ("kl to another", ours.kl(DiagonalGaussianDistribution(other)), theirs.kl(Reference(other))),
        ("nll", ours.nll(sample), theirs.nll(sample)),
    ]:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_a_folder_written_by_us_loads_in_diffusers(tmp_path) -> None:
    ours = AutoencoderKL(SMALL)
    randomise(ours)
    ours.save_pretrained(tmp_path)
    theirs = ReferenceAutoencoderKL.from_pretrained(tmp_path)
    x = image((32, 32), torch.float32)
    with torch.no_grad():
        assert relative(ours(x).sample, theirs(x).sample) < 2e-5
    assert theirs.config.block_out_channels == list(SMALL.block_out_channels)


def test_a_folder_written_by_diffusers_loads_in_ours(tmp_path) -> None:
    theirs = reference_of(SMALL, torch.float32)
    theirs.save_pretrained(tmp_path)
    ours = AutoencoderKL.from_pretrained(tmp_path)
    assert ours.config == SMALL
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_a_folder_of_diffusers_own_defaults_loads_in_ours(tmp_path) -> None:
    """A config.json that leaves fields out means diffusers' defaults (one level of 64), not Stable Diffusion's."""
    theirs = ReferenceAutoencoderKL()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    ours = AutoencoderKL.from_pretrained(tmp_path)
    x = image((16, 16), torch.float32)
    with torch.no_grad():
        assert relative(ours(x).sample, theirs(x).sample) < 2e-5
