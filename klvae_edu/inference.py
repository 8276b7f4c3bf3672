"""`optimize`: a copy of the model that computes the same function in less time, for inference only.

What the copy does differently:

* It upsamples in 4/9 of the multiplications (`FusedUpsample2D`): a nearest-neighbour repetition followed by a 3x3
  convolution is four 2x2 convolutions on the small map.
* In float32 on a CPU, wide layers convolve in a quarter of the multiplications, a third of the work with all sums
  (`WinogradConv2d`).
* In bfloat16, and in float32 on a CPU, maps lie in memory channels last: convolutions need not turn them round. Norms
  then need a mean near zero in float32 (`CentredGroupNorm`); bfloat16 has lost that precision before.
* Attention has one projection for queries, keys and values (`FusedAttention`), and activations work in place.

All of this is exact: in float64 the copy agrees with the model to twelve digits, in float32 to about 1e-5 of the
largest value. `benchmarks/inference.py` measures error and time of each.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu.attention import BACKENDS
from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.blocks import Attention, Upsample2D
from klvae_edu.checkpoints import check_dtype, weights_to_write
from klvae_edu.model_mixin import ModelMixin
from klvae_edu.winograd import WinogradConv2d


def optimize(model: ModelMixin, dtype: torch.dtype | None = None) -> InferenceAutoencoderKL:
    """A copy of `model` for inference: encodes and decodes the same, faster. The model itself is not touched.

    The copy has weights of its own: train the model further, and make a new copy then. It keeps the model's settings
    (tiling, slicing, attention backend) and takes gradients with respect to images and latents, not to weights.

    Args:
        model: an `AutoencoderKL` of any configuration.
        dtype: what the copy computes in; None: as the model. Images and latents must come in that type.
            `torch.bfloat16` has float32's range and 8 bits of precision: results move by about 1 % of their range.
            It is faster where the processor multiplies in it (AMX, AMD's Zen 5, a GPU), and slower where it does not.
            `torch.float16` halves the weights' memory; as in the model, `force_upcast` has it computed in float32.

    Raises:
        ValueError: `dtype` is no floating-point type, `model` is such a copy already, or no longer the model of its
            configuration.

    With a compiler at hand, `torch.compile(vae.optimize().decode)` is faster still, after a minute of compiling.
    """
    check_dtype(dtype)
    weights_to_write(model)  # raises where the parts that are exchanged below are not what they were
    dtype = dtype or model.dtype
    copy = model.clone()
    in_float32_on_cpu = dtype == torch.float32 and copy.device.type == "cpu"
    for module in list(copy.modules()):
        for name, child in module.named_children():
            if isinstance(child, Upsample2D) and child.conv.padding_mode == "zeros":
                setattr(module, name, FusedUpsample2D(child, dtype))
            elif isinstance(child, Attention):
                setattr(module, name, FusedAttention(child))
            elif isinstance(child, nn.GroupNorm) and in_float32_on_cpu:
                child.__class__ = CentredGroupNorm
            elif hasattr(child, "inplace"):  # an activation; each follows a norm, whose result nobody else needs
                child.inplace = True  # type: ignore[assignment]
            elif in_float32_on_cpu and WinogradConv2d.pays_for(child):
                child.__class__ = WinogradConv2d
    copy.__class__ = InferenceAutoencoderKL
    assert isinstance(copy, InferenceAutoencoderKL)
    if dtype == torch.bfloat16 or in_float32_on_cpu:
        copy.to(memory_format=torch.channels_last)
    return copy.requires_grad_(False).eval().to(dtype)


class InferenceAutoencoderKL(AutoencoderKL):
    """What `optimize` returns. Its weights have another form than the model's, so that it can be neither trained nor
    saved: both are for the model that it was made of."""

    inference_only = True

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Raise a `ValueError` for True: there is no way back from trained weights of this form to the model's."""
        if requires_grad:
            raise ValueError("this is a copy for inference, made by optimize(): train the model it was made of")
        return super().requires_grad_(False)

    def _run(self, stages: Any, x: Tensor, tiling: bool, units: tuple[int, int]) -> Tensor:
        """As the model, in the usual layout: what is `view`ed outside need not know of channels last."""
        return super()._run(stages, x, tiling, units).contiguous()


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
    """`nn.GroupNorm` that can be trusted with channels last: (B, C, H, W) -> the same.

    In that layout PyTorch takes the variance on a CPU as E[x²] - E[x]² of rounded sums, and for a map whose mean is 100
    times its deviation the result is off by up to 0.2. A constant that is taken off a whole group first changes
    nothing but that: with the mean of every 64th pixel, normal noise of up to 256x256 was 3e-5 off at most, there too.
    """

    def forward(self, x: Tensor) -> Tensor:
        some, each = x[..., ::8, ::8], self.num_channels // self.num_groups
        of_groups = some.reshape(len(x), self.num_groups, each, *some.shape[2:]).mean((2, 3, 4))
        of_channels = of_groups.repeat_interleave(each, dim=1)
        return super().forward(x - of_channels[..., None, None])


class FusedAttention(Attention):
    """`Attention` with one matrix for queries, keys and values: (B, C, H, W) -> the same shape."""

    def __init__(self, plain: Attention) -> None:
        nn.Module.__init__(self)
        parts = (plain.to_q, plain.to_k, plain.to_v)
        self.group_norm, self.to_out, self.scale = plain.group_norm, plain.to_out, plain.scale
        self.backend = plain.backend
        self.to_qkv = nn.Linear(plain.to_q.in_features, 3 * plain.to_q.out_features)
        self.to_qkv.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        self.to_qkv.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        query, key, value = self.to_qkv(tokens).chunk(3, dim=-1)
        out = self.to_out[0](BACKENDS[self.backend](query, key, value, self.scale))
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)
