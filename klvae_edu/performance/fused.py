"""Replace layers of a model by faster ones that compute the same function, for inference only.

`AutoencoderKL.optimize` makes a copy and calls `fuse` on it. `fuse` changes the following:

* Upsampling takes 4/9 of the multiplications (`FusedUpsample2D`): nearest-neighbour upsampling followed by a 3x3
  convolution equals four 2x2 convolutions on the small feature map.
* In float32 on a CPU, wide layers convolve with a quarter of the multiplications (`WinogradConv2d`). Including sums,
  that is a third of the work.
* In bfloat16, and in float32 on a CPU, feature maps have the channels-last layout, so that convolutions need not
  reorder them. In this layout, norms in float32 need a mean near zero (`CentredGroupNorm`); in bfloat16 that precision
  is lost already.
* Attention has one projection for queries, keys and values (`FusedAttention`), and activations work in place.

The function stays the same: results agree with the model to twelve digits in float64, and to about 1e-5 of the largest
value in float32. `benchmarks/inference.py` measures error and time of each change.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu.blocks import Attention, Upsample2D
from klvae_edu.performance.winograd import WinogradConv2d


def fuse(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace layers of `model` in place by faster ones, convert it to `dtype` and freeze its weights.

    Forward hooks of replaced layers are not kept.

    Args:
        model: encoders and decoders made of `klvae_edu.blocks`.
        dtype: floating-point type to compute in.
    """
    float32_on_cpu = dtype == torch.float32 and next(model.parameters()).device.type == "cpu"
    for module in reversed([*model.modules()]):  # children first: FusedAttention takes the norm of Attention
        for name, child in module.named_children():
            if isinstance(child, Upsample2D) and child.conv.padding_mode == "zeros":
                setattr(module, name, FusedUpsample2D(child, dtype))
            elif isinstance(child, Attention) and not isinstance(child, FusedAttention):
                setattr(module, name, FusedAttention(child))
            elif isinstance(child, nn.GroupNorm) and float32_on_cpu:
                setattr(module, name, CentredGroupNorm.of(child))
            elif hasattr(child, "inplace"):  # an activation; each follows a norm, whose output nothing else uses
                child.inplace = True  # type: ignore[assignment]
            elif isinstance(child, nn.Conv2d) and float32_on_cpu and WinogradConv2d.can_replace(child):
                setattr(module, name, WinogradConv2d.of(child))
    if dtype == torch.bfloat16 or float32_on_cpu:
        model.to(memory_format=torch.channels_last)
    model.requires_grad_(False).eval().to(dtype)


class FusedUpsample2D(nn.Module):
    """`Upsample2D` as one 2x2 convolution on the small feature map: (B, C, H, W) -> (B, C, 2H, 2W).

    After every pixel is repeated 2x2, a 3x3 window covers only 2x2 different pixels, and the weights that fall on the
    same pixel can be added up. They depend on the position of the window: its row and its column are even or odd. These
    four cases give four 2x2 kernels. One convolution computes all four as channels, and `forward` interleaves them.

    Windows at odd positions start one pixel later, so `forward` shifts these results by one. The small map is padded
    with zeros as the large map would be, so the borders are exact, too.
    """

    # For an even and for an odd position: the taps (of three) on the first pixel, and the taps on the second.
    TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))

    def __init__(self, upsample: Upsample2D, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = upsample.conv.weight.detach(), upsample.conv.bias
        assert bias is not None
        taps = torch.tensor(self.TAPS, dtype=torch.float64, device="cpu")
        # Sum in float64 and round once. e, f: even or odd; p, q: place in the 2x2 kernel; r, s: in the 3x3 kernel.
        kernels = torch.einsum("epr,fqs,oirs->efoipq", taps, taps, weight.cpu().double())
        self.weight = nn.Parameter(kernels.flatten(0, 2).to(dtype).to(weight.device))
        self.bias = nn.Parameter(bias.detach().repeat(4).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = len(x), *x.shape[-2:], len(self.bias) // 4
        phases = F.conv2d(x, self.weight, self.bias, padding=1)  # (B, 4·C, H+1, W+1)
        if phases.stride(1) == 1:  # channels last: the large map gets the layout of the small one
            large = phases.new_empty(batch, 2 * height, 2 * width, channels).movedim(-1, 1)
        else:
            large = phases.new_empty(batch, channels, 2 * height, 2 * width)
        phases = phases.reshape(batch, 2, 2, channels, height + 1, width + 1)
        for row in (0, 1):
            for column in (0, 1):
                phase = phases[:, row, column, :, row : row + height, column : column + width]
                large[..., row::2, column::2] = phase  # (B, C, H, W)
        return large


class CentredGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` with an accurate variance in the channels-last layout, too: (B, C, H, W) -> the same shape.

    In that layout PyTorch computes the variance on a CPU as E[x²] - E[x]² from rounded sums. If the mean of a feature
    map is 100 times its standard deviation, the error of the result is up to 0.2. Subtracting a constant from a group
    does not change the exact result. `forward` subtracts the mean of every 64th pixel: with it, the error for normal
    noise of up to 256x256 pixels was 3e-5.
    """

    @classmethod
    def of(cls, norm: nn.GroupNorm) -> Self:
        """Build a norm that shares the weights of `norm`."""
        made = cls(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        part, width = x[..., ::8, ::8], self.num_channels // self.num_groups  # (B, C, ⌈H/8⌉, ⌈W/8⌉), channels per group
        group_means = part.reshape(len(x), self.num_groups, width, *part.shape[2:]).mean((2, 3, 4))  # (B, groups)
        channel_means = group_means.repeat_interleave(width, dim=1)  # (B, C)
        return super().forward(x - channel_means[..., None, None])


class FusedAttention(Attention):
    """`Attention` with one matrix for queries, keys and values: (B, C, H, W) -> the same shape."""

    def __init__(self, attention: Attention) -> None:
        channels = attention.to_q.in_features
        with torch.device("meta"):  # without weights: they are taken from `attention` below
            super().__init__(channels, attention.group_norm.num_groups)
            self.to_qkv = nn.Linear(channels, 3 * channels)
        layers = (attention.to_q, attention.to_k, attention.to_v)
        del self.to_q, self.to_k, self.to_v
        self.to_qkv.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))  # (3C, C)
        self.to_qkv.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))  # (3C,)
        self.group_norm, self.to_out = attention.group_norm, attention.to_out
        self.scale, self.backend = attention.scale, attention.backend

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute queries, keys and values, (B, N, C) each, by one product."""
        return self.to_qkv(tokens).chunk(3, dim=-1)
