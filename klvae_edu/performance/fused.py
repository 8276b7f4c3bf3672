"""Fuse and exchange parts of a model so that it computes the same function in less time, for inference only.

`AutoencoderKL.optimize` makes a copy and calls `fuse` on it. What `fuse` changes:

* It upsamples in 4/9 of the multiplications (`FusedUpsample2D`): a nearest-neighbour repetition followed by a 3x3
  convolution is four 2x2 convolutions on the small map.
* In float32 on a CPU, wide layers convolve in a quarter of the multiplications, a third of the work with all sums
  (`WinogradConv2d`).
* In bfloat16, and in float32 on a CPU, maps lie in memory channels last: convolutions need not turn them round. Norms
  then need a mean near zero in float32 (`CentredGroupNorm`); bfloat16 has lost that precision before.
* Attention has one projection for queries, keys and values (`FusedAttention`), and activations work in place.

All of this is exact: in float64 the result agrees with the model to twelve digits, in float32 to about 1e-5 of the
largest value. `benchmarks/inference.py` measures error and time of each.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu.blocks import BACKENDS, Attention, Upsample2D
from klvae_edu.performance.winograd import WinogradConv2d


def fuse(model: nn.Module, dtype: torch.dtype) -> None:
    """Exchange the parts of `model` for faster ones, in place, and convert it to `dtype`; its weights are frozen.

    Args:
        model: encoders and decoders made of `klvae_edu.blocks`.
        dtype: floating-point type to compute in.
    """
    float32_on_cpu = dtype == torch.float32 and next(model.parameters()).device.type == "cpu"
    for module in reversed([*model.modules()]):  # children first: FusedAttention takes over the norm that is inside
        for name, child in module.named_children():
            if isinstance(child, Upsample2D) and child.conv.padding_mode == "zeros":
                setattr(module, name, FusedUpsample2D(child, dtype))
            elif isinstance(child, Attention):
                setattr(module, name, FusedAttention(child))
            elif isinstance(child, nn.GroupNorm) and float32_on_cpu:
                setattr(module, name, CentredGroupNorm.of(child))
            elif hasattr(child, "inplace"):  # an activation; each follows a norm, whose result nobody else needs
                child.inplace = True  # type: ignore[assignment]
            elif isinstance(child, nn.Conv2d) and float32_on_cpu and WinogradConv2d.pays_for(child):
                setattr(module, name, WinogradConv2d.of(child))
    if dtype == torch.bfloat16 or float32_on_cpu:
        model.to(memory_format=torch.channels_last)
    model.requires_grad_(False).eval().to(dtype)


class FusedUpsample2D(nn.Module):
    """`Upsample2D` as one 2x2 convolution on the small map: (B, C, H, W) -> (B, C, 2H, 2W).

    Once every pixel is repeated 2x2, a 3x3 window sees only 2x2 different pixels. Which of its weights fall on the same
    pixel depends on whether its row and its column are even or odd: four cases, four kernels of 2x2 sums. One
    convolution has all four as channels, and the large map is put together of its results.

    Odd rows and columns look one pixel further than even ones, hence the shift in `forward`. The padding of the small
    map is that of the large one, so the borders are exact, too.
    """

    # Which taps of three fall on the first and which on the second of two pixels, for an even place and an odd one.
    TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))

    def __init__(self, plain: Upsample2D, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = plain.conv.weight.detach(), plain.conv.bias
        assert bias is not None
        taps = torch.tensor(self.TAPS, dtype=torch.float64, device="cpu")
        # Summed in float64 and rounded once. e, f: even or odd; p, q: place in the new kernel; r, s: in the old one.
        kernels = torch.einsum("epr,fqs,oirs->efoipq", taps, taps, weight.cpu().double())
        self.weight = nn.Parameter(kernels.flatten(0, 2).to(dtype).to(weight.device))
        self.bias = nn.Parameter(bias.detach().repeat(4).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = len(x), *x.shape[-2:], len(self.bias) // 4
        phases = F.conv2d(x, self.weight, self.bias, padding=1)  # (B, 4·C, H+1, W+1)
        if phases.stride(1) == 1:  # channels last: the large map is to lie in memory as the small one does
            large = phases.new_empty(batch, 2 * height, 2 * width, channels).movedim(-1, 1)
        else:
            large = phases.new_empty(batch, channels, 2 * height, 2 * width)
        phases = phases.reshape(batch, 2, 2, channels, height + 1, width + 1)
        for row in (0, 1):
            for column in (0, 1):
                seen = phases[:, row, column, :, row : row + height, column : column + width]
                large[..., row::2, column::2] = seen
        return large


class CentredGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` whose variance is exact in the channels-last layout, too: (B, C, H, W) -> the same.

    In that layout PyTorch computes the variance on a CPU as E[x²] - E[x]² of rounded sums. For a feature map whose mean
    is 100 times its standard deviation the result is off by up to 0.2. Subtracting one constant from a whole group
    first changes nothing else; with the mean of every 64th pixel normal noise of up to 256x256 was off by 3e-5.
    """

    @classmethod
    def of(cls, norm: nn.GroupNorm) -> Self:
        """Build one that shares the weights of `norm`."""
        made = cls(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        some, each = x[..., ::8, ::8], self.num_channels // self.num_groups  # some: (B, C, ⌈H/8⌉, ⌈W/8⌉)
        of_groups = some.reshape(len(x), self.num_groups, each, *some.shape[2:]).mean((2, 3, 4))  # (B, groups)
        of_channels = of_groups.repeat_interleave(each, dim=1)  # (B, C)
        return super().forward(x - of_channels[..., None, None])


class FusedAttention(nn.Module):
    """`Attention` with one matrix for queries, keys and values: (B, C, H, W) -> the same shape."""

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        parts = (plain.to_q, plain.to_k, plain.to_v)
        self.group_norm, self.to_out, self.scale = plain.group_norm, plain.to_out, plain.scale
        self.backend = plain.backend
        self.to_qkv = nn.Linear(plain.to_q.in_features, 3 * plain.to_q.out_features, device="meta")
        self.to_qkv.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))  # (3C, C)
        self.to_qkv.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))  # (3C,)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        query, key, value = self.to_qkv(tokens).chunk(3, dim=-1)  # (B, H·W, C) each
        out = self.to_out[0](BACKENDS[self.backend](query, key, value, self.scale))  # (B, H·W, C)
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)
