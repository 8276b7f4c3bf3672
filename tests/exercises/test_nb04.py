"""Right answers to the exercises of notebook 04 in many styles, and what only its judges tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu.blocks import Attention, Downsample2D, Upsample2D
from klvae_edu.exercises.solutions import nb04
from tests.exercises.answers import assert_passes, assert_rejected, verdicts

# 04.1


def down_zero_pad(x, weight, bias):
    return nn.functional.conv2d(nn.ZeroPad2d((0, 1, 0, 1))(x), weight, bias, 2)


def down_larger(x, weight, bias):
    larger = x.new_zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
    larger[:, :, :-1, :-1] = x
    return F.conv2d(larger, weight, bias, stride=(2, 2))


def down_odd(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)[:, :, 1::2, 1::2]


def down_unfold(x, weight, bias):
    windows = F.pad(x, (0, 1, 0, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
    return torch.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def down_loop(x, weight, bias):
    padded = F.pad(x, (0, 1, 0, 1))
    height, width = x.shape[2] // 2, x.shape[3] // 2
    out = bias[None, :, None, None].expand(len(x), -1, height, width)
    for i in range(3):
        for j in range(3):
            taps = padded[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2]
            out = out + torch.einsum("bchw,oc->bohw", taps, weight[:, :, i, j])
    return out


def down_block(x, weight, bias):
    block = Downsample2D(x.shape[1])
    return torch.func.functional_call(block, {"conv.weight": weight, "conv.bias": bias}, (x,))


def down_double(x, weight, bias):
    return F.conv2d(F.pad(x.double(), (0, 1, 0, 1)), weight.double(), bias.double(), stride=2)


@verdicts("04.1", [down_zero_pad, down_larger, down_odd, down_unfold, down_loop, down_block, down_double])
def test_a_right_downsampling_passes_in_any_style(answer):
    assert_passes("04.1", answer)


# 04.2


def up_interpolate(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def up_indices(x, weight, bias):
    rows, columns = torch.arange(2 * x.shape[2]) // 2, torch.arange(2 * x.shape[3]) // 2
    return F.conv2d(x[:, :, rows][:, :, :, columns], weight, bias, padding="same")


def up_expand(x, weight, bias):
    b, c, h, w = x.shape
    doubled = x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
    return F.conv2d(F.pad(doubled, (1, 1, 1, 1)), weight, bias)


def up_kron(x, weight, bias):
    return F.conv2d(torch.kron(x, torch.ones(2, 2)), weight, bias, padding=1)


def up_assigned(x, weight, bias):
    larger = x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    for i in (0, 1):
        for j in (0, 1):
            larger[:, :, i::2, j::2] = x
    return F.conv2d(larger, weight, bias, padding=1)


def up_block(x, weight, bias):
    block = Upsample2D(x.shape[1])
    return torch.func.functional_call(block, {"conv.weight": weight, "conv.bias": bias}, (x,))


def up_double(x, weight, bias):
    return up_interpolate(x.double(), weight.double(), bias.double())


@verdicts("04.2", [up_interpolate, up_indices, up_expand, up_kron, up_assigned, up_block, up_double])
def test_a_right_upsampling_passes_in_any_style(answer):
    assert_passes("04.2", answer)


# 04.3


def field_by_walking_back(layers):
    field = 1
    for kernel, stride in reversed(layers):
        field = (field - 1) * stride + kernel
    return field


def field_by_recursion(layers):
    if not layers:
        return 1
    (kernel, stride), *rest = layers
    return (field_by_recursion(rest) - 1) * stride + kernel


def field_by_numpy(layers):
    kernels, strides = np.array(layers).T
    return 1 + ((kernels - 1) * np.concatenate([[1], strides[:-1].cumprod()])).sum()


def field_by_torch(layers):
    kernels, strides = torch.tensor(layers, dtype=torch.float64).T
    return 1 + (kernels - 1) @ (strides.cumprod(0) / strides)


def field_by_measurement(layers):
    x = torch.zeros(1, 1, 401, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride in layers:
        y = F.conv1d(y, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride)
    y[0, 0, 0].backward()
    return int(x.grad.count_nonzero())


@verdicts("04.3", [field_by_walking_back, field_by_recursion, field_by_numpy, field_by_torch, field_by_measurement])
def test_a_right_receptive_field_passes_in_any_style(answer):
    assert_passes("04.3", answer)


# 04.4


def att_pytorch(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def att_einsum(q, k, v):
    scores = torch.einsum("bqc,bkc->bqk", q, k) / q.shape[2] ** 0.5
    return torch.einsum("bqk,bkc->bqc", scores.softmax(dim=2), v)


def att_by_hand(q, k, v):
    weights = torch.exp((q / math.sqrt(q.shape[-1])) @ k.permute(0, 2, 1))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.bmm(weights, v)


def att_loop(q, k, v):
    rows = []
    for query in q.unbind(1):
        scores = (query[:, None] * k).sum(-1) * q.shape[-1] ** -0.5
        rows.append((scores.softmax(-1)[..., None] * v).sum(1))
    return torch.stack(rows, dim=1)


def att_turned(q, k, v):
    scores = k @ q.mT / math.sqrt(q.shape[-1])
    return scores.softmax(dim=1).mT @ v


def att_in_place(q, k, v):
    scores = q @ k.mT
    scores /= math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


def att_double(q, k, v):
    return att_einsum(q.double(), k.double(), v.double())


@verdicts("04.4", [att_pytorch, att_einsum, att_by_hand, att_loop, att_turned, att_in_place, att_double])
def test_a_right_attention_passes_in_any_style(answer):
    assert_passes("04.4", answer)


# 04.5


class Right(nn.Module):
    """The layers as they should be; forward is left to the others."""

    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def attend(self, tokens):
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return self.to_out[0](out)

    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.group_norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)
        return x + self.attend(tokens).reshape(b, h, w, c).permute(0, 3, 1, 2)


class OwnAttention(Right):
    def attend(self, tokens):
        return self.to_out[0](att_einsum(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))


class ByColumns(Right):
    def forward(self, x):
        tokens = self.group_norm(x).mT.flatten(2).mT  # column by column: attention does not depend on the order
        return x + self.attend(tokens).mT.reshape(x.mT.shape).mT


class DropoutBeside(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_out.append(nn.Dropout(0.0))

    def forward(self, x):
        out = super().forward(x) - x
        return x + self.to_out[1](out)


class SequentialOut(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_out = nn.Sequential(self.to_out[0])

    def attend(self, tokens):
        return self.to_out(F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))


class ByFunctions(Right):
    def forward(self, x):
        normed = F.group_norm(x, self.group_norm.num_groups, self.group_norm.weight, self.group_norm.bias, 1e-6)
        q, k, v = (F.conv2d(normed, to.weight[..., None, None], to.bias) for to in (self.to_q, self.to_k, self.to_v))
        weights = torch.einsum("bcij,bckl->bijkl", q, k).mul(x.shape[1] ** -0.5).flatten(3).softmax(-1)
        out = torch.einsum("bijn,bcn->bcij", weights, v.flatten(2))
        return x + F.conv2d(out, self.to_out[0].weight[..., None, None], self.to_out[0].bias)


class InDouble(Right):
    def attend(self, tokens):
        q, k, v = (to(tokens).double() for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).to(tokens.dtype))


@verdicts("04.5", [Right, Attention, OwnAttention, ByColumns, DropoutBeside, SequentialOut, ByFunctions, InDouble])
def test_a_right_block_passes_in_any_style(answer):
    assert_passes("04.5", answer)


# The solutions


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2)])
@pytest.mark.parametrize(("name", "block"), [("downsample", Downsample2D(4)), ("upsample", Upsample2D(4))])
def test_the_solution_of_resampling_does_what_the_blocks_do(name, block, size):
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(getattr(nb04, name)(x, block.conv.weight, block.conv.bias), block(x))


def test_the_solution_of_attention_block_does_what_the_packages_does_on_the_same_weights():
    block, finished = nb04.AttentionBlock(8, 2).double(), Attention(8, 2).double()
    with torch.no_grad():
        for parameter in finished.parameters():
            nn.init.normal_(parameter)
    block.load_state_dict(finished.state_dict())
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), finished(x), rtol=1e-12, atol=1e-12)


def test_the_solution_of_no_layer_is_the_pixel_itself():
    assert nb04.receptive_field([]) == 1


def down_by_a_new_layer(x, weight, bias):
    conv = nn.Conv2d(x.shape[1], x.shape[1], 3, stride=2)
    conv.weight.data, conv.bias.data = weight.data, bias.data
    return conv(F.pad(x, (0, 1, 0, 1)))


def up_detached(x, weight, bias):
    return F.conv2d(F.interpolate(x.detach(), scale_factor=2.0), weight, bias, padding=1)


def attention_with_detached_weights(q, k, v):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1).detach() @ v


@pytest.mark.parametrize(
    ("id", "message", "answer"),
    [
        ("04.1", "no gradient reaches weight and bias", down_by_a_new_layer),
        ("04.2", "no gradient reaches x", up_detached),
        ("04.4", "no gradient reaches q and k", attention_with_detached_weights),
    ],
)
def test_gradients_are_judged(id, message, answer):
    assert_rejected(id, answer, message)
