"""Typical answers to the exercises of notebook 04: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu.blocks import Attention, Downsample2D, Upsample2D
from klvae_edu.exercises import nb04
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

# 04.1


def down_raises(x, weight, bias):
    raise NotImplementedError


def down_gaps(x, weight, bias):
    padded = ...  # noqa: F841
    return ...


def down_half(x, weight, bias):
    padded = ...
    return F.conv2d(padded, weight, bias, stride=2)


def down_as_a_module(x, weight, bias):
    return nn.Conv2d(x.shape[1], x.shape[1], 3, stride=2)(F.pad(x, (0, 1, 0, 1)))


def down_detached(x, weight, bias):
    conv = nn.Conv2d(x.shape[1], x.shape[1], 3, stride=2)
    conv.weight.data, conv.bias.data = weight.data, bias.data
    return conv(F.pad(x, (0, 1, 0, 1)))


def down_without_return(x, weight, bias):
    F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)


@verdicts("04.1", [down_raises, down_gaps])
def test_a_blank_downsampling_is_not_attempted(answer):
    assert_blank("04.1", answer)


@mistakes(
    "04.1",
    [
        ("gap `...` is still open", down_half),
        ("two different results", down_as_a_module),
        ("no gradient reaches weight and bias", down_detached),
        ("is a return missing?", down_without_return),
    ],
)
def test_a_wrong_downsampling_is_named(keyword, answer):
    assert_rejected("04.1", answer, keyword)


def down_by_zero_pad(x, weight, bias):
    return nn.functional.conv2d(nn.ZeroPad2d((0, 1, 0, 1))(x), weight, bias, 2)


def down_by_a_larger_map(x, weight, bias):
    larger = x.new_zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
    larger[:, :, :-1, :-1] = x
    return F.conv2d(larger, weight, bias, stride=(2, 2))


def down_by_odd_places(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)[:, :, 1::2, 1::2]


def down_by_unfold(x, weight, bias):
    windows = F.pad(x, (0, 1, 0, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
    return torch.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def down_by_a_loop(x, weight, bias):
    padded = F.pad(x, (0, 1, 0, 1))
    height, width = x.shape[2] // 2, x.shape[3] // 2
    out = bias[None, :, None, None].expand(len(x), -1, height, width)
    for i in range(3):
        for j in range(3):
            taps = padded[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2]
            out = out + torch.einsum("bchw,oc->bohw", taps, weight[:, :, i, j])
    return out


def down_by_the_finished_block(x, weight, bias):
    block = Downsample2D(x.shape[1])
    return torch.func.functional_call(block, {"conv.weight": weight, "conv.bias": bias}, (x,))


def down_in_double(x, weight, bias):
    return F.conv2d(F.pad(x.double(), (0, 1, 0, 1)), weight.double(), bias.double(), stride=2)


@verdicts(
    "04.1",
    [
        down_by_zero_pad,
        down_by_a_larger_map,
        down_by_odd_places,
        down_by_unfold,
        down_by_a_loop,
        down_by_the_finished_block,
        down_in_double,
    ],
)
def test_a_right_downsampling_passes_in_any_style(answer):
    assert_passes("04.1", answer)


# 04.2


def up_raises(x, weight, bias):
    raise NotImplementedError


def up_gaps(x, weight, bias):
    doubled = ...  # noqa: F841
    return ...


def up_half(x, weight, bias):
    doubled = ...
    return F.conv2d(doubled, weight, bias, padding=1)


def up_detached(x, weight, bias):
    return F.conv2d(F.interpolate(x.detach(), scale_factor=2.0), weight, bias, padding=1)


@verdicts("04.2", [up_raises, up_gaps])
def test_a_blank_upsampling_is_not_attempted(answer):
    assert_blank("04.2", answer)


@mistakes(
    "04.2",
    [
        ("gap `...` is still open", up_half),
        ("no gradient reaches x", up_detached),
    ],
)
def test_a_wrong_upsampling_is_named(keyword, answer):
    assert_rejected("04.2", answer, keyword)


def up_by_interpolate(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def up_by_indices(x, weight, bias):
    rows, columns = torch.arange(2 * x.shape[2]) // 2, torch.arange(2 * x.shape[3]) // 2
    return F.conv2d(x[:, :, rows][:, :, :, columns], weight, bias, padding="same")


def up_by_expand(x, weight, bias):
    b, c, h, w = x.shape
    doubled = x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w)
    return F.conv2d(F.pad(doubled, (1, 1, 1, 1)), weight, bias)


def up_by_kron(x, weight, bias):
    return F.conv2d(torch.kron(x, torch.ones(2, 2)), weight, bias, padding=1)


def up_by_assignment(x, weight, bias):
    larger = x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    for i in (0, 1):
        for j in (0, 1):
            larger[:, :, i::2, j::2] = x
    return F.conv2d(larger, weight, bias, padding=1)


def up_by_the_finished_block(x, weight, bias):
    block = Upsample2D(x.shape[1])
    return torch.func.functional_call(block, {"conv.weight": weight, "conv.bias": bias}, (x,))


def up_in_double(x, weight, bias):
    return up_by_interpolate(x.double(), weight.double(), bias.double())


@verdicts(
    "04.2",
    [
        up_by_interpolate,
        up_by_indices,
        up_by_expand,
        up_by_kron,
        up_by_assignment,
        up_by_the_finished_block,
        up_in_double,
    ],
)
def test_a_right_upsampling_passes_in_any_style(answer):
    assert_passes("04.2", answer)


# 04.3


def field_raises(layers):
    raise NotImplementedError


def field_gaps(layers):
    field, jump = 1, 1
    for _kernel, _stride in layers:
        field = ...
        jump = ...  # noqa: F841
    return field


def field_half(layers):
    field, jump = 1, 1
    for kernel, _stride in layers:
        field = field + (kernel - 1) * jump
        jump = ...
    return field


def field_as_a_list(layers):
    fields = [1]
    for kernel, _ in layers:
        fields.append(fields[-1] + kernel - 1)
    return fields


def field_as_text(layers):
    return str(field_by_walking_back(layers))


def field_in_a_list(layers):
    return [field_by_walking_back(layers)]


def field_that_empties_its_input(layers):
    field = 1
    while layers:
        kernel, stride = layers.pop()
        field = (field - 1) * stride + kernel
    return field


def field_off_by_one(layers):
    return field_by_walking_back(layers) + 1


@verdicts("04.3", [field_raises, field_gaps])
def test_a_blank_receptive_field_is_not_attempted(answer):
    assert_blank("04.3", answer)


@mistakes(
    "04.3",
    [
        ("gap `...` is still open", field_half),
        ("expected one number, got list", field_as_a_list),
        ("expected one number, got list", field_in_a_list),
        ("expected one number, got str", field_as_text),
        ("changes its input: work on a copy", field_that_empties_its_input),
        ("for the layers [(3, 1), (5, 1)] 7 was expected, and yours is 8", field_off_by_one),
    ],
)
def test_a_wrong_receptive_field_is_named(keyword, answer):
    assert_rejected("04.3", answer, keyword)


def test_a_number_is_not_a_function_that_computes_it():
    assert_rejected("04.3", 217, "expected the function itself")


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


def attention_raises(q, k, v):
    raise NotImplementedError


def attention_gaps(q, k, v):
    scores = ...  # noqa: F841
    weights = ...  # noqa: F841
    return ...


def attention_half(q, k, v):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])  # noqa: F841
    weights = ...
    return weights @ v


def attention_in_place_on_the_query(q, k, v):
    q *= q.shape[-1] ** -0.5
    return torch.softmax(q @ k.mT, dim=-1) @ v


def attention_squeezed(q, k, v):
    return F.scaled_dot_product_attention(q, k, v).squeeze()


def attention_with_detached_weights(q, k, v):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1).detach() @ v


@verdicts("04.4", [attention_raises, attention_gaps])
def test_a_blank_attention_is_not_attempted(answer):
    assert_blank("04.4", answer)


@mistakes(
    "04.4",
    [
        ("gap `...` is still open", attention_half),
        ("changes its input q", attention_in_place_on_the_query),
        ("no gradient reaches q and k", attention_with_detached_weights),
        ("expected shape (1, 5, 3), got (5, 3)", attention_squeezed),
    ],
)
def test_a_wrong_attention_is_named(keyword, answer):
    assert_rejected("04.4", answer, keyword)


def attention_by_pytorch(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def attention_by_einsum(q, k, v):
    scores = torch.einsum("bqc,bkc->bqk", q, k) / q.shape[2] ** 0.5
    return torch.einsum("bqk,bkc->bqc", scores.softmax(dim=2), v)


def attention_by_hand(q, k, v):
    weights = torch.exp((q / math.sqrt(q.shape[-1])) @ k.permute(0, 2, 1))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.bmm(weights, v)


def attention_by_a_loop(q, k, v):
    rows = []
    for query in q.unbind(1):
        scores = (query[:, None] * k).sum(-1) * q.shape[-1] ** -0.5
        rows.append((scores.softmax(-1)[..., None] * v).sum(1))
    return torch.stack(rows, dim=1)


def attention_the_other_way_round(q, k, v):
    scores = k @ q.mT / math.sqrt(q.shape[-1])
    return scores.softmax(dim=1).mT @ v


def attention_in_place(q, k, v):
    scores = q @ k.mT
    scores /= math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


def attention_in_double(q, k, v):
    return attention_by_einsum(q.double(), k.double(), v.double())


@verdicts(
    "04.4",
    [
        attention_by_pytorch,
        attention_by_einsum,
        attention_by_hand,
        attention_by_a_loop,
        attention_the_other_way_round,
        attention_in_place,
        attention_in_double,
    ],
)
def test_a_right_attention_passes_in_any_style(answer):
    assert_passes("04.4", answer)


# 04.5


class BlankRaising(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        raise NotImplementedError

    def forward(self, x):
        raise NotImplementedError


class BlankGaps(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = ...
        self.to_q = ...
        self.to_k = ...
        self.to_v = ...
        self.to_out = ...

    def forward(self, x):
        tokens = ...  # noqa: F841
        out = ...  # noqa: F841
        return ...


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


class HalfWithoutForward(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).mT  # noqa: F841
        out = ...  # noqa: F841
        return ...


class HalfWithoutOut(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        del self.to_out
        self.to_out = ...


class DefaultEps(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.group_norm = nn.GroupNorm(groups, channels)


class OneGroup(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.group_norm = nn.GroupNorm(1, channels, eps=1e-6)


class OutInAPlainList(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        del self.to_out
        self.to_out = [nn.Linear(channels, channels)]


class OutForgotten(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        del self.to_out


class WithoutBiases(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_q = nn.Linear(channels, channels, bias=False)


class InPlace(Right):
    def forward(self, x):
        x += self.attend(self.group_norm(x).flatten(2).mT).mT.reshape(x.shape)
        return x


class OfTwoImages(Right):
    def forward(self, x):
        tokens = self.group_norm(x).reshape(2, x.shape[1], -1).mT
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](out).mT.reshape(x.shape)


class DetachedTokens(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).mT.detach()
        return x + self.attend(tokens).mT.reshape(x.shape)


@verdicts("04.5", [BlankRaising, BlankGaps])
def test_a_blank_block_is_not_attempted(answer):
    assert_blank("04.5", answer)


@mistakes(
    "04.5",
    [
        ("gap `...` is still open", HalfWithoutForward),
        ("self.to_out", HalfWithoutOut),
        ("group_norm has eps 1e-05, expected 1e-06", DefaultEps),
        ("group_norm has num_groups 1, expected 2", OneGroup),
        ("plain list", OutInAPlainList),
        ("it has no to_out", OutForgotten),
        ("it has no to_q.bias", WithoutBiases),
        ("changes its input x", InPlace),
        ("no gradient reaches group_norm", DetachedTokens),
        ("the shape is right, the values are not", OfTwoImages),
    ],
)
def test_a_wrong_block_is_named(keyword, answer):
    assert_rejected("04.5", answer, keyword)


class WithOwnAttention(Right):
    def attend(self, tokens):
        return self.to_out[0](attention_by_einsum(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))


class WithPixelsInAnotherOrder(Right):
    def forward(self, x):
        tokens = self.group_norm(x).mT.flatten(2).mT  # column by column: attention does not depend on the order
        return x + self.attend(tokens).mT.reshape(x.mT.shape).mT


class WithDropoutBesideTheLayer(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_out.append(nn.Dropout(0.0))

    def forward(self, x):
        out = super().forward(x) - x
        return x + self.to_out[1](out)


class WithSequentialOut(Right):
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
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).float())


@verdicts(
    "04.5",
    [
        Right,
        Attention,
        WithOwnAttention,
        WithPixelsInAnotherOrder,
        WithDropoutBesideTheLayer,
        WithSequentialOut,
        ByFunctions,
        InDouble,
    ],
)
def test_a_right_block_passes_in_any_style(answer):
    assert_passes("04.5", answer)


# The finished versions


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2)])
@pytest.mark.parametrize(("name", "block"), [("downsample", Downsample2D(4)), ("upsample", Upsample2D(4))])
def test_the_finished_resampling_does_what_the_blocks_do(name, block, size):
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(getattr(nb04, name)(x, block.conv.weight, block.conv.bias), block(x))


def test_the_finished_attention_block_does_what_the_packages_does_on_the_same_weights():
    block, finished = nb04.AttentionBlock(8, 2).double(), Attention(8, 2).double()
    with torch.no_grad():
        for parameter in finished.parameters():
            nn.init.normal_(parameter)
    block.load_state_dict(finished.state_dict())
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), finished(x), rtol=1e-12, atol=1e-12)


def test_the_finished_receptive_field_of_no_layer_is_the_pixel_itself():
    assert nb04.receptive_field([]) == 1
