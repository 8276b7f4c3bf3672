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


def down_symmetric(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=2, padding=1)


def down_left_and_top(x, weight, bias):
    x = torch.cat([torch.zeros_like(x[..., :1]), x], dim=3)
    x = torch.cat([torch.zeros_like(x[..., :1, :]), x], dim=2)
    return F.conv2d(x, weight, bias, stride=2)


def down_right_and_top(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 1, 0)), weight, bias, stride=2)


def down_right_only(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1)), weight, bias, stride=2)


def down_bottom_only(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 0, 0, 1)), weight, bias, stride=2)


def down_left_and_right(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=2, padding=(0, 1))


def down_top_and_bottom(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 0, 1, 1)), weight, bias, stride=2)


def down_without_padding(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=2)


def down_padded_twice(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2, padding=1)


def down_without_stride(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias)


def down_same(x, weight, bias):
    return F.conv2d(x, weight, bias, padding="same")


def down_reflected(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 0, 1), mode="reflect"), weight, bias, stride=2)


def down_replicated(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), weight, bias, stride=2)


def down_pooled(x, weight, bias):
    return F.conv2d(F.avg_pool2d(x, kernel_size=2), weight, bias, padding=1)


def down_max_pooled(x, weight, bias):
    return F.max_pool2d(F.conv2d(x, weight, bias, padding=1), 2)


def down_sliced(x, weight, bias):
    return F.conv2d(x[:, :, ::2, ::2], weight, bias, padding=1)


def down_symmetric_by_slices(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)[:, :, ::2, ::2]


def down_without_bias(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2)


def down_weight_transposed(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight.permute(1, 0, 2, 3), bias, stride=2)


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
        ("on all four sides", down_symmetric),
        ("on all four sides", down_symmetric_by_slices),
        ("on the left and at the top", down_left_and_top),
        ("on the right and at the top", down_right_and_top),
        ("on the right only", down_right_only),
        ("at the bottom only", down_bottom_only),
        ("on the left and on the right only", down_left_and_right),
        ("at the top and at the bottom only", down_top_and_bottom),
        ("no padding", down_without_padding),
        ("padded twice", down_padded_twice),
        ("stride is missing", down_without_stride),
        ("stride is missing", down_same),
        ("by reflection", down_reflected),
        ("repeating the border", down_replicated),
        ("pooled before the convolution", down_pooled),
        ("largest of four", down_max_pooled),
        ("dropped before the convolution", down_sliced),
        ("bias is missing", down_without_bias),
        ("weight is transposed", down_weight_transposed),
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


def up_bilinear(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="bilinear"), weight, bias, padding=1)


def up_bilinear_to_the_corners(x, weight, bias):
    return F.conv2d(nn.UpsamplingBilinear2d(scale_factor=2)(x), weight, bias, padding=1)


def up_bicubic(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="bicubic"), weight, bias, padding=1)


def up_tiled(x, weight, bias):
    return F.conv2d(torch.tile(x, (2, 2)), weight, bias, padding=1)


def up_tiled_by_cat(x, weight, bias):
    x = torch.cat([x, x], dim=2)
    return F.conv2d(torch.cat([x, x], dim=3), weight, bias, padding=1)


def up_rows_tiled(x, weight, bias):
    doubled = torch.cat([x, x], dim=2).repeat_interleave(2, dim=-1)
    return F.conv2d(doubled, weight, bias, padding=1)


def up_height_only(x, weight, bias):
    return F.conv2d(x.repeat_interleave(2, dim=2), weight, bias, padding=1)


def up_width_only(x, weight, bias):
    return F.conv2d(x.repeat_interleave(2, dim=-1), weight, bias, padding=1)


def up_convolved_first(x, weight, bias):
    return F.interpolate(F.conv2d(x, weight, bias, padding=1), scale_factor=2.0)


def up_without_doubling(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def up_without_convolution(x, weight, bias):
    return F.interpolate(x, scale_factor=2.0)


def up_without_padding(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias)


def up_padded_right_and_bottom(x, weight, bias):
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0), (0, 1, 0, 1)), weight, bias)


def up_padded_two_on_the_right(x, weight, bias):
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0), (0, 2, 0, 2)), weight, bias)


def up_reflected(x, weight, bias):
    return F.conv2d(F.pad(F.interpolate(x, scale_factor=2.0), (1, 1, 1, 1), mode="reflect"), weight, bias)


def up_with_stride(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, stride=2, padding=1)


def up_transposed(x, weight, bias):
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)


def up_transposed_uncropped(x, weight, bias):
    return F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride=2)


def up_with_zeros_between(x, weight, bias):
    larger = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    larger[:, :, ::2, ::2] = x
    return F.conv2d(larger, weight, bias, padding=1)


def up_flattened(x, weight, bias):
    doubled = x.repeat_interleave(2)
    return F.conv2d(doubled, weight, bias, padding=1)


def up_flattened_twice(x, weight, bias):
    doubled = x.repeat_interleave(2).repeat_interleave(2)
    return F.conv2d(doubled, weight, bias, padding="same")


def up_without_bias(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)


def up_detached(x, weight, bias):
    return F.conv2d(F.interpolate(x.detach(), scale_factor=2.0), weight, bias, padding=1)


@verdicts("04.2", [up_raises, up_gaps])
def test_a_blank_upsampling_is_not_attempted(answer):
    assert_blank("04.2", answer)


@mistakes(
    "04.2",
    [
        ("gap `...` is still open", up_half),
        ("bilinear", up_bilinear),
        ("bilinear", up_bilinear_to_the_corners),
        ("bicubic", up_bicubic),
        ("whole map is repeated, like a tile", up_tiled),
        ("whole map is repeated, like a tile", up_tiled_by_cat),
        ("rows are repeated like a tile", up_rows_tiled),
        ("only the height", up_height_only),
        ("only the width", up_width_only),
        ("convolution comes before", up_convolved_first),
        ("not repeated", up_without_doubling),
        ("convolution is missing", up_without_convolution),
        ("padding is missing", up_without_padding),
        ("right and at the bottom only", up_padded_right_and_bottom),
        ("right and at the bottom only", up_padded_two_on_the_right),
        ("reflecting the border", up_reflected),
        ("stride of 2", up_with_stride),
        ("transposed convolution, whose kernels overlap unevenly", up_transposed),
        ("transposed convolution, whose kernels overlap unevenly", up_transposed_uncropped),
        ("zeros between the pixels", up_with_zeros_between),
        ("repeat_interleave without dim", up_flattened),
        ("repeat_interleave without dim", up_flattened_twice),
        ("bias is missing", up_without_bias),
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


def field_whole_kernels(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        field += kernel * jump
        jump *= stride
    return field


def field_whole_kernels_from_zero(layers):
    field, jump = 0, 1
    for kernel, stride in layers:
        field += kernel * jump
        jump *= stride
    return field


def field_without_the_pixel(layers):
    return sum((kernel - 1) * math.prod(s for _, s in layers[:i]) for i, (kernel, _) in enumerate(layers))


def field_stride_first(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        jump *= stride
        field += (kernel - 1) * jump
    return field


def field_of_own_strides(layers):
    field = 1
    for kernel, stride in layers:
        field += (kernel - 1) * stride
    return field


def field_doubling(layers):
    field, jump = 1, 1
    for kernel, _stride in layers:
        field += (kernel - 1) * jump
        jump = 2 * jump
    return field


def field_returned_too_early(layers):  # noqa: RET503
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
        return field


def field_without_strides(layers):
    return 1 + sum(kernel - 1 for kernel, _ in layers)


def field_of_added_strides(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump += stride
    return field


def field_of_the_last_stride(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump = stride
    return field


def field_in_the_wrong_direction(layers):
    field = 1
    for kernel, stride in layers:
        field = (field - 1) * stride + kernel
    return field


def field_from_the_output(layers):
    field, jump = 1, 1
    for kernel, stride in reversed(layers):
        field += (kernel - 1) * jump
        jump *= stride
    return field


def field_of_summed_kernels(layers):
    return sum(kernel for kernel, _ in layers)


def field_of_multiplied_kernels(layers):
    return math.prod(kernel for kernel, _ in layers)


def field_as_total_stride(layers):
    return int(np.prod([stride for _, stride in layers]))


def field_as_area(layers):
    return field_by_walking_back(layers) ** 2


def field_as_radius(layers):
    return (field_by_walking_back(layers) - 1) / 2


def field_as_a_list(layers):
    fields = [1]
    for kernel, _ in layers:
        fields.append(fields[-1] + kernel - 1)
    return fields


def field_not_added_up(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        field = (kernel - 1) * jump
        jump *= stride
    return field


def field_times_stride(layers):
    field = 1
    for kernel, stride in layers:
        field = field * stride + (kernel - 1)
    return field


def field_times_stride_from_the_output(layers):
    return field_times_stride(layers[::-1])


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
        ("adds its whole kernel", field_whole_kernels),
        ("adds its whole kernel", field_whole_kernels_from_zero),
        ("the pixel itself is missing", field_without_the_pixel),
        ("own stride is counted", field_stride_first),
        ("by its own stride alone", field_of_own_strides),
        ("doubled by every layer", field_doubling),
        ("return stand inside the loop", field_returned_too_early),
        ("strides are ignored", field_without_strides),
        ("strides are added", field_of_added_strides),
        ("only the last stride", field_of_the_last_stride),
        ("wrong direction", field_in_the_wrong_direction),
        ("wrong direction", field_from_the_output),
        ("kernels are summed", field_of_summed_kernels),
        ("kernels are multiplied", field_of_multiplied_kernels),
        ("product of the strides", field_as_total_stride),
        ("area", field_as_area),
        ("one side only", field_as_radius),
        ("add it to the field", field_not_added_up),
        ("n - 1 strides apart", field_times_stride),
        ("n - 1 strides apart", field_times_stride_from_the_output),
        ("expected one number, got list", field_as_a_list),
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


def attention_over_queries(q, k, v):
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=1) @ v


def attention_over_queries_unscaled(q, k, v):
    return torch.softmax(q @ k.transpose(1, 2), dim=-2) @ v


def attention_over_the_default_axis(q, k, v):
    return F.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])) @ v


def attention_unscaled(q, k, v):
    return torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=2) @ v


def attention_divided_by_width(q, k, v):
    return torch.softmax(q @ k.mT / q.size(-1), dim=-1) @ v


def attention_multiplied_by_the_root(q, k, v):
    return torch.softmax(q @ k.mT * q.size(-1) ** 0.5, dim=-1) @ v


def attention_scaled_by_tokens(q, k, v):
    return torch.softmax(q @ k.mT / q.shape[1] ** 0.5, dim=-1) @ v


def attention_scaled_as_for_eight_heads(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=(q.shape[-1] // 8) ** -0.5)


def attention_with_the_scale_of_the_decoder(q, k, v):
    return torch.softmax(q @ k.transpose(1, 2) * 512**-0.5, dim=-1) @ v


def attention_in_eight_heads(q, k, v):
    b, n, c = q.shape
    q, k, v = (x.reshape(b, n, 8, c // 8).permute(0, 2, 1, 3) for x in (q, k, v))
    weights = torch.softmax(q @ k.mT * (c // 8) ** -0.5, dim=-1)
    return (weights @ v).permute(0, 2, 1, 3).reshape(b, n, c)


def attention_scaled_afterwards(q, k, v):
    return torch.softmax(q @ k.mT, dim=-1) / math.sqrt(q.shape[-1]) @ v


def attention_without_softmax(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])) @ v


def attention_with_exp_only(q, k, v):
    return torch.exp(q @ k.mT / math.sqrt(q.shape[-1])) @ v


def attention_with_sigmoid(q, k, v):
    return torch.sigmoid(q @ k.mT / math.sqrt(q.shape[-1])) @ v


def attention_exchanged(q, k, v):
    return torch.softmax(k @ q.mT / math.sqrt(q.shape[-1]), dim=-1) @ v


def attention_with_transposed_weights(q, k, v):
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    return torch.einsum("bji,bjc->bic", weights, v)


def attention_of_keys(q, k, v):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ k


def attention_of_values_as_keys(q, k, v):
    return torch.softmax(q @ v.mT / math.sqrt(q.shape[-1]), dim=-1) @ k


def attention_weights(q, k, v):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)


def attention_with_residual(q, k, v):
    return v + F.scaled_dot_product_attention(q, k, v)


def attention_masked(q, k, v):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    return torch.softmax(scores, dim=-1) @ v


def attention_over_the_batch(q, k, v):
    flat = [x.reshape(1, -1, x.shape[-1]) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*flat).reshape(q.shape)


def attention_of_channels(q, k, v):
    weights = torch.softmax(q.mT @ k / math.sqrt(q.shape[1]), dim=-1)
    return v @ weights.mT


def attention_in_place_on_the_query(q, k, v):
    q *= q.shape[-1] ** -0.5
    return torch.softmax(q @ k.mT, dim=-1) @ v


def attention_with_detached_weights(q, k, v):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1).detach() @ v


def attention_of_a_turned_batch(q, k, v):
    return torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), dim=-1) @ v


def attention_of_untransposed_keys(q, k, v):
    scores = torch.matmul(q, k) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


def attention_with_the_values_first(q, k, v):
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    return v @ torch.softmax(scores, dim=-1)


@verdicts("04.4", [attention_raises, attention_gaps])
def test_a_blank_attention_is_not_attempted(answer):
    assert_blank("04.4", answer)


@mistakes(
    "04.4",
    [
        ("gap `...` is still open", attention_half),
        ("softmax over the queries", attention_over_queries),
        ("softmax over the queries", attention_over_queries_unscaled),
        ("softmax over the batch", attention_over_the_default_axis),
        ("scale is missing", attention_unscaled),
        ("divided by C, without the root", attention_divided_by_width),
        ("multiplied by √C", attention_multiplied_by_the_root),
        ("number of tokens", attention_scaled_by_tokens),
        ("divided by √(C / 8)", attention_scaled_as_for_eight_heads),
        ("whatever the length of a query", attention_with_the_scale_of_the_decoder),
        ("8 heads", attention_in_eight_heads),
        ("scale comes after the softmax", attention_scaled_afterwards),
        ("softmax is missing", attention_without_softmax),
        ("exp without the division", attention_with_exp_only),
        ("sigmoid", attention_with_sigmoid),
        ("queries and keys are exchanged", attention_exchanged),
        ("weights are transposed", attention_with_transposed_weights),
        ("keys are averaged", attention_of_keys),
        ("keys and values are exchanged", attention_of_values_as_keys),
        ("these are the weights", attention_weights),
        ("values are added", attention_with_residual),
        ("causal mask", attention_masked),
        ("different images", attention_over_the_batch),
        ("k.T turns the batch around", attention_of_a_turned_batch),
        ("q @ k.transpose(1, 2)", attention_of_untransposed_keys),
        ("weights @ v, in this order", attention_with_the_values_first),
        ("channels are compared with channels", attention_of_channels),
        ("changes its input q", attention_in_place_on_the_query),
        ("no gradient reaches q and k", attention_with_detached_weights),
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


class WithoutResidual(Right):
    def forward(self, x):
        return self.attend(self.group_norm(x).flatten(2).mT).mT.reshape(x.shape)


class ResidualOfTheNormalised(Right):
    def forward(self, x):
        x = self.group_norm(x)
        return x + self.attend(x.flatten(2).mT).mT.reshape(x.shape)


class WithoutNorm(Right):
    def forward(self, x):
        return x + self.attend(x.flatten(2).mT).mT.reshape(x.shape)


class NormAtTheEnd(Right):
    def forward(self, x):
        return self.group_norm(x + self.attend(x.flatten(2).mT).mT.reshape(x.shape))


class NormAfterAttention(Right):
    def forward(self, x):
        return x + self.group_norm(self.attend(x.flatten(2).mT).mT.reshape(x.shape))


class WithActivation(Right):
    def forward(self, x):
        tokens = F.silu(self.group_norm(x)).flatten(2).mT
        return x + self.attend(tokens).mT.reshape(x.shape)


class TokensByReshape(Right):
    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.group_norm(x).reshape(b, h * w, c)
        return x + self.attend(tokens).reshape(b, c, h, w)


class TokensByViewOnly(Right):
    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.group_norm(x).view(b, h * w, c)
        return x + self.attend(tokens).mT.reshape(b, c, h, w)


class MapByReshape(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + self.attend(tokens).reshape(x.shape)


class HeightAndWidthExchanged(Right):
    def forward(self, x):
        b, c, h, w = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + self.attend(tokens).reshape(b, w, h, c).permute(0, 3, 2, 1)


class WithoutToOut(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).mT
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + out.mT.reshape(x.shape)


class WithoutScale(Right):
    def attend(self, tokens):
        weights = torch.softmax(self.to_q(tokens) @ self.to_k(tokens).mT, dim=-1)
        return self.to_out[0](weights @ self.to_v(tokens))


class SoftmaxOverQueries(Right):
    def attend(self, tokens):
        scores = self.to_q(tokens) @ self.to_k(tokens).mT * tokens.shape[-1] ** -0.5
        return self.to_out[0](torch.softmax(scores, dim=1) @ self.to_v(tokens))


class EightHeads(Right):
    def attend(self, tokens):
        q, k, v = (to(tokens).unflatten(-1, (8, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class QueriesAndKeysExchanged(Right):
    def attend(self, tokens):
        out = F.scaled_dot_product_attention(self.to_k(tokens), self.to_q(tokens), self.to_v(tokens))
        return self.to_out[0](out)


class QueriesForKeys(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).mT
        q, k, v = self.to_q(tokens), self.to_q(tokens), self.to_v(tokens)
        return x + self.to_out[0](F.scaled_dot_product_attention(q, k, v)).mT.reshape(x.shape)


class KeysForValues(Right):
    def attend(self, tokens):
        q, k = self.to_q(tokens), self.to_k(tokens)
        return self.to_out[0](F.scaled_dot_product_attention(q, k, k))


class QueriesFromToK(Right):
    def attend(self, tokens):
        q, k, v = self.to_k(tokens), self.to_k(tokens), self.to_v(tokens)
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v))


class OneLayerForAllThree(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_q = self.to_k = self.to_v = nn.Linear(channels, channels)


class ToQForAllThree(Right):
    def attend(self, tokens):
        q = k = v = self.to_q(tokens)
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v))


class TokensAddedBeforeOut(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = tokens + attention_by_pytorch(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        out = self.to_out[0](out)
        return x + out.transpose(1, 2).reshape(x.shape)


class TokensAddedBeforeOutOnly(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = tokens + attention_by_pytorch(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return self.to_out[0](out).transpose(1, 2).reshape(x.shape)


class InputAddedBeforeOutToo(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = attention_by_pytorch(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        out = self.to_out[0](x.flatten(2).transpose(1, 2) + out)
        return x + out.transpose(1, 2).reshape(x.shape)


class OutCalledAsAList(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = attention_by_pytorch(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        out = self.to_out(out)
        return x + out.transpose(1, 2).reshape(x.shape)


class OutWithoutBrackets(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_out = nn.ModuleList(nn.Linear(channels, channels))


class ChannelsBeforeGroups(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.group_norm = nn.GroupNorm(channels, groups, eps=1e-6)


class GroupsOfTheBook(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.group_norm = nn.GroupNorm(32, channels, eps=1e-6)


class NormOfTheTokens(Right):
    def forward(self, x):
        tokens = self.group_norm(x.flatten(2).transpose(1, 2))
        return x + self.attend(tokens).mT.reshape(x.shape)


class FlattenedOnly(Right):
    def forward(self, x):
        tokens = self.group_norm(x).flatten(2)
        return x + self.attend(tokens).reshape(x.shape)


class OneNormForQueriesOnly(Right):
    def forward(self, x):
        tokens, plain = self.group_norm(x).flatten(2).mT, x.flatten(2).mT
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(plain))
        return x + self.to_out[0](out).mT.reshape(x.shape)


class HalvedVariance(Right):
    def forward(self, x):
        return super().forward(x) / math.sqrt(2)


class DefaultEps(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.group_norm = nn.GroupNorm(groups, channels)


class OneGroup(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.group_norm = nn.GroupNorm(1, channels, eps=1e-6)


class ConvolutionsOfOnePixel(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Conv2d(channels, channels, 1)
        self.to_k = nn.Conv2d(channels, channels, 1)
        self.to_v = nn.Conv2d(channels, channels, 1)
        self.to_out = nn.ModuleList([nn.Conv2d(channels, channels, 1)])

    def forward(self, x):
        normed = self.group_norm(x)
        q, k, v = (to(normed).flatten(2).mT for to in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out[0](F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class OutWithoutList(Right):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_out = nn.Linear(channels, channels)


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
        ("the input is not added", WithoutResidual),
        ("the normalised input is added", ResidualOfTheNormalised),
        ("group_norm is not used", WithoutNorm),
        ("norm comes after the sum", NormAtTheEnd),
        ("norm comes after the attention", NormAfterAttention),
        ("an activation after the norm", WithActivation),
        ("cut into tokens, and put together, by a reshape alone", TokensByReshape),
        ("cut into tokens by a reshape alone", TokensByViewOnly),
        ("put together by a reshape alone", MapByReshape),
        ("height and width are exchanged", HeightAndWidthExchanged),
        ("to_out is not used", WithoutToOut),
        ("scale is missing", WithoutScale),
        ("softmax over the queries", SoftmaxOverQueries),
        ("8 heads", EightHeads),
        ("to_q and to_k are exchanged", QueriesAndKeysExchanged),
        ("to_q makes the keys, too", QueriesForKeys),
        ("to_k makes the values, too", KeysForValues),
        ("to_k makes the queries, too", QueriesFromToK),
        ("one layer makes queries, keys and values", OneLayerForAllThree),
        ("one layer makes queries, keys and values", ToQForAllThree),
        ("tokens are added before to_out", TokensAddedBeforeOut),
        ("tokens are added before to_out", TokensAddedBeforeOutOnly),
        ("tokens are added before to_out", InputAddedBeforeOutToo),
        ("its layer is self.to_out[0]", OutCalledAsAList),
        ("write brackets", OutWithoutBrackets),
        ("the argument groups stands first", ChannelsBeforeGroups),
        ("the argument groups stands first", GroupsOfTheBook),
        ("applied to the tokens", NormOfTheTokens),
        ("followed by transpose(1, 2)", FlattenedOnly),
        ("values are made of the input without its norm", OneNormForQueriesOnly),
        ("divided by √2", HalvedVariance),
        ("group_norm has eps 1e-05, expected 1e-06", DefaultEps),
        ("group_norm has num_groups 1, expected 2", OneGroup),
        ("1×1 convolutions", ConvolutionsOfOnePixel),
        ("to_out is a Linear itself", OutWithoutList),
        ("plain list", OutInAPlainList),
        ("it has no to_out", OutForgotten),
        ("it has no to_q.bias", WithoutBiases),
        ("changes its input x", InPlace),
        ("no gradient reaches group_norm", DetachedTokens),
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
