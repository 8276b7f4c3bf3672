"""Common mistakes are made on purpose: the comparison with diffusers must detect each of them.

With a tolerance of 3e-3 it would miss most of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu import AutoencoderKL
from klvae_edu.blocks import Attention, Downsample2D, ResnetBlock2D
from tests.parity.reference import CONFIGS, SMALL, compare, image, pair_of, reference_of, relative


def eps_1e_5(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5


def symmetric_padding(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, Downsample2D):
            module.forward = lambda x, conv=module.conv: conv(F.pad(x, (1, 0, 1, 0)))


def padding_on_all_sides(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, Downsample2D):
            module.conv.padding = (1, 1)
            module.forward = module.conv.forward


def missing_attention_scale(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            module.scale = 1.0


def eight_heads_scale(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            module.scale = (module.to_q.out_features / 8) ** -0.5


def scale_by_pixels(model: AutoencoderKL) -> None:
    """Hidden if the feature map has as many pixels as channels."""
    for half in (model.encoder, model.decoder):
        half.mid_block.attentions[0].register_forward_pre_hook(
            lambda module, inputs: setattr(module, "scale", inputs[0][0, 0].numel() ** -0.5)
        )


def height_and_width_exchanged(model: AutoencoderKL) -> None:
    """The result of attention is reshaped to (W, H) instead of (H, W)."""
    for half in (model.encoder, model.decoder):
        half.mid_block.attentions[0].register_forward_hook(
            lambda _module, inputs, out: (
                inputs[0] + (out - inputs[0]).flatten(2).view(*out.shape[:2], *out.shape[:1:-1]).mT
            )
        )


def swapped_norms(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, ResnetBlock2D) and module.norm1.num_channels == module.norm2.num_channels:
            module.norm1, module.norm2 = module.norm2, module.norm1


def reversed_decoder(model: AutoencoderKL) -> None:
    """The ResNet blocks of the two equally wide levels change places (others would not fit)."""
    first, second = model.decoder.up_blocks[0], model.decoder.up_blocks[1]
    first.resnets[1], second.resnets[1] = second.resnets[1], first.resnets[1]


def upsampling_before_the_blocks(model: AutoencoderKL) -> None:
    first = model.decoder.up_blocks[0]
    first.forward = lambda x: nn.Sequential(*first.upsamplers, *first.resnets)(x)


def swapped_query_and_value_biases(model: AutoencoderKL) -> None:
    attention = model.encoder.mid_block.attentions[0]
    attention.to_q.bias, attention.to_v.bias = attention.to_v.bias, attention.to_q.bias


def bilinear_upsampling(model: AutoencoderKL) -> None:
    for up in model.decoder.up_blocks:
        for upsample in up.upsamplers:
            upsample.forward = lambda x, conv=upsample.conv: conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))


MISTAKES: list[Callable[[AutoencoderKL], None]] = [
    eps_1e_5,
    symmetric_padding,
    padding_on_all_sides,
    missing_attention_scale,
    eight_heads_scale,
    scale_by_pixels,
    height_and_width_exchanged,
    swapped_norms,
    reversed_decoder,
    upsampling_before_the_blocks,
    swapped_query_and_value_biases,
    bilinear_upsampling,
]


def test_without_a_mistake_the_pair_agrees() -> None:
    difference = compare(*pair_of(SMALL, torch.float64), image((32, 24), torch.float64))
    assert max(difference.moments, difference.reconstruction, difference.gradient) < 1e-10


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.__name__ for mistake in MISTAKES])
def test_parity_notices(mistake: Callable[[AutoencoderKL], None]) -> None:
    ours, reference = pair_of(SMALL, torch.float64)
    mistake(ours)
    difference = compare(ours, reference, image((32, 24), torch.float64))
    assert max(difference.moments, difference.reconstruction) > 1e-7


def test_parity_notices_an_unclamped_log_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, reference = pair_of(SMALL, torch.float64)
    with torch.no_grad():
        for model in (ours, reference):
            model.quant_conv.bias[4:] = torch.tensor([-100.0, -60.0, 25.0, 21.0])
    x = image((32, 24), torch.float64)

    with torch.no_grad():
        expected = reference.encode(x).latent_dist.kl()
        assert relative(ours.encode(x).latent_dist.kl(), expected) < 1e-10
        monkeypatch.setattr(torch.Tensor, "clamp", lambda self, *_: self)
        assert relative(ours.encode(x).latent_dist.kl(), expected) > 0.1


def another_eps(model: AutoencoderKL) -> None:
    model.config = replace(model.config, batch_norm_eps=1e-5)


def positions_of_a_patch_column_by_column(model: AutoencoderKL) -> None:
    model.in_patches = lambda z: F.pixel_unshuffle(z.mT, 2).mT


def positions_before_channels(model: AutoencoderKL) -> None:
    model.in_patches = lambda z: F.pixel_unshuffle(z, 2).unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)


def variance_for_standard_deviation(model: AutoencoderKL) -> None:
    model.bn.running_var.square_()


@pytest.mark.parametrize(
    "mistake",
    [another_eps, positions_of_a_patch_column_by_column, positions_before_channels, variance_for_standard_deviation],
    ids=lambda mistake: mistake.__name__,
)
def test_parity_notices_mistakes_in_the_normalisation_of_flux2(mistake: Callable[[AutoencoderKL], None]) -> None:
    ours, _ = pair_of(CONFIGS["FLUX.2"], torch.float64)
    x = image((32, 24), torch.float64)
    with torch.no_grad():
        right = ours.encode_for_diffusion(x, sample=False)
        mistake(ours)
        assert relative(ours.encode_for_diffusion(x, sample=False), right) > 1e-4


def test_a_decoder_whose_widths_are_reversed_does_not_load() -> None:
    config = CONFIGS["FLUX.2 with a decoder of its own widths"]
    reference = reference_of(config, torch.float32)
    widths = config.decoder_widths[::-1]
    with pytest.raises(ValueError, match="do not fit the configuration"):
        AutoencoderKL.from_weights(
            replace(config, decoder_block_out_channels=widths), reference.state_dict(), "diffusers"
        )
