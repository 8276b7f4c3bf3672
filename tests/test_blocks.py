"""Blocks: shapes, and details that are easy to get wrong. Their numbers are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from klvae_edu import blocks
from klvae_edu.blocks import (
    BACKENDS,
    Attention,
    AttnDownEncoderBlock2D,
    AttnUpDecoderBlock2D,
    DownEncoderBlock2D,
    Downsample2D,
    ResnetBlock2D,
    UNetMidBlock2D,
    UpDecoderBlock2D,
    Upsample2D,
)


def test_a_resnet_block_whose_second_convolution_is_zero_is_its_shortcut() -> None:
    for out_channels in (8, 16):
        block = ResnetBlock2D(8, out_channels, groups=4)
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        x = torch.randn(2, 8, 5, 6)
        torch.testing.assert_close(block(x), block.conv_shortcut(x))
    assert "conv_shortcut.weight" in block.state_dict()
    assert "conv_shortcut.weight" not in ResnetBlock2D(8, 8, groups=4).state_dict()


def test_downsampling_halves_and_pads_on_the_right_and_at_the_bottom_only() -> None:
    down = Downsample2D(1)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    ones = torch.ones(1, 1, 4, 4)
    assert down(ones).tolist() == [[[[9.0, 6.0], [6.0, 4.0]]]]


def test_upsampling_repeats_each_pixel_before_it_convolves() -> None:
    up = Upsample2D(1)
    nn.init.zeros_(up.conv.weight)
    up.conv.weight.data[0, 0, 1, 1] = 1.0
    nn.init.zeros_(up.conv.bias)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert up(x)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_attention_is_softmax_of_scaled_products_over_all_pixels() -> None:
    attention = Attention(16, groups=4).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    tokens = F.group_norm(x, 4, attention.group_norm.weight, attention.group_norm.bias, 1e-6).flatten(2).mT
    q, k, v = attention.to_q(tokens), attention.to_k(tokens), attention.to_v(tokens)
    weights = torch.softmax(torch.einsum("bqc,bkc->bqk", q, k) / 4.0, dim=-1)
    expected = x + attention.to_out[0](weights @ v).mT.reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


def test_attention_commutes_with_a_permutation_of_the_pixels() -> None:
    attention = Attention(8, groups=4)
    x = torch.randn(1, 8, 4, 4)
    order = torch.randperm(16)
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(
        attention(shuffled).flatten(2), attention(x).flatten(2)[..., order], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("block_type", [DownEncoderBlock2D, AttnDownEncoderBlock2D])
@pytest.mark.parametrize("add_downsample", [True, False])
def test_a_level_of_the_encoder_halves_unless_it_is_the_last(block_type: type, add_downsample: bool) -> None:
    block = block_type(8, 16, 2, groups=4, act_fn="silu", add_downsample=add_downsample)
    side = 4 if add_downsample else 8
    assert block(torch.randn(1, 8, 8, 8)).shape == (1, 16, side, side)
    assert len(block.resnets) == 2
    assert any(isinstance(module, Attention) for module in block.modules()) == (block_type is AttnDownEncoderBlock2D)


@pytest.mark.parametrize("block_type", [UpDecoderBlock2D, AttnUpDecoderBlock2D])
@pytest.mark.parametrize("add_upsample", [True, False])
def test_a_level_of_the_decoder_doubles_unless_it_is_the_last(block_type: type, add_upsample: bool) -> None:
    block = block_type(16, 8, 3, groups=4, act_fn="silu", add_upsample=add_upsample)
    side = 8 if add_upsample else 4
    assert block(torch.randn(1, 16, 4, 4)).shape == (1, 8, side, side)
    assert len(block.resnets) == 3


def test_the_middle_block_keeps_the_shape_with_and_without_attention() -> None:
    x = torch.randn(1, 8, 4, 4)
    for add_attention in (True, False):
        block = UNetMidBlock2D(8, groups=4, act_fn="silu", add_attention=add_attention)
        assert block(x).shape == x.shape
        assert any("to_q" in name for name in block.state_dict()) == add_attention


def test_every_norm_has_eps_1e_6() -> None:
    block = AttnDownEncoderBlock2D(8, 16, 2, groups=4, act_fn="silu", add_downsample=True)
    norms = [module for module in block.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 6
    assert {norm.eps for norm in norms} == {1e-6}


# ---- The three attention backends -----------------------------------------------------------------------------------


def tokens(number: int, channels: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, number, channels)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("number", [1, 7, 10, 11])
def test_every_backend_gives_the_definitions_numbers_and_gradients(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "QUERY_CHUNK", 5)
    query, key, value = tokens(number)
    logits = torch.einsum("bqc,bkc->bqk", query, key) * 0.3
    weights = logits.exp() / logits.exp().sum(2, keepdim=True)
    expected = torch.einsum("bqk,bkc->bqc", weights, value)
    result = BACKENDS[name](query, key, value, 0.3)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    grads = [torch.autograd.grad(out, (query, key, value), cotangent) for out in (result, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that is created."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_the_chunked_backend_never_holds_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "QUERY_CHUNK", 16)
    query, key, value = (x.detach() for x in tokens(256, channels=2))
    with Largest() as eager:
        BACKENDS["eager"](query, key, value, 1.0)
    with Largest() as chunked:
        BACKENDS["chunked"](query, key, value, 1.0)
    assert eager.elements == 2 * 256 * 256
    assert chunked.elements == 2 * 16 * 256
