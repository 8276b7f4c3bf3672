"""Run-time settings of a model: slices, tiles, upcast, gradient checkpointing, attention backend, inference copy.

They change memory and time, and results by rounding only; tiling changes results by more (see `performance.tiling`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from torch import Tensor

from klvae_edu.blocks import BACKENDS, Attention, CheckpointedBlock
from klvae_edu.performance.fused import FusedAttention, fuse
from klvae_edu.performance.tiling import Tiling, sliced, tiled
from klvae_edu.performance.upcast import computes_in_float16, in_float32
from klvae_edu.weights.checks import check_dtype
from klvae_edu.weights.mixin import ModelMixin


class PerformanceMixin(ModelMixin):
    """Base of `AutoencoderKL`: the settings, and `run_bounded`, which computes a half of the network under them.

    Attributes:
        use_slicing: process a batch image by image.
        use_tiling: process images in overlapping tiles, as `tiling` says.
    """

    use_slicing = False
    use_tiling = False
    tiling = Tiling()

    def run_bounded(self, half: Callable[[Tensor], Tensor], x: Tensor, tiling: bool, units: tuple[int, int]) -> Tensor:
        """Compute `half`, the bare network's `encode` or `decode`, of x: in slices, in tiles and in float32, as is set.

        Args:
            units: sides in pixels of what one latent pixel stands for, in x and in the result; see `tiled`.
        """
        if (hook := getattr(self, "_hf_hook", None)) is not None:
            hook.pre_forward(self)  # a diffusers pipeline that offloads its models moves the weights back here
        if self.config.force_upcast and computes_in_float16(x, self.dtype):
            half = partial(in_float32, half, self)
        if tiling:
            factor, norms = self.config.downsample_factor, self if self.tiling.global_norm else None
            self.tiling.check(factor)
            tile, overlap = self.tiling.size // factor, self.tiling.overlap // factor
            half = partial(tiled, half, tile=tile, overlap=overlap, units=units, norms=norms)
        out = sliced(half, x) if self.use_slicing and len(x) > 1 else half(x)
        return out.contiguous() if self.inference_only else out  # callers may `view` it, which channels last forbids

    def enable_slicing(self) -> None:
        """Encode and decode a batch one image at a time: less memory, the same numbers up to rounding."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self.use_slicing = False

    def enable_tiling(
        self, use_tiling: bool = True, size: int | None = None, overlap: int | None = None, global_norm: bool = False
    ) -> None:
        """Encode and decode in overlapping tiles: memory does not grow with the image, numbers differ slightly.

        Args:
            use_tiling: False turns it off.
            size, overlap: in pixels, multiples of f; None: 288 and 64, and a quarter of tiles smaller than 256.
            global_norm: measure GroupNorm's statistics over all tiles first: nearer to the whole, in twice the time.

        Raises:
            ValueError: sizes that are no multiples of f, or an overlap as large as the tile.
        """
        factor, size = self.config.downsample_factor, Tiling.size if size is None else size
        if overlap is None:
            overlap = min(Tiling.overlap, int(size) // 4 // factor * factor)
        tiling = Tiling(size, overlap, global_norm)
        tiling.check(factor)
        self.tiling, self.use_tiling = tiling, use_tiling

    def disable_tiling(self) -> None:
        """Encode and decode images whole."""
        self.use_tiling = False

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        """Keep fewer activations for the backward pass and recompute the others: a sixth more work, far less memory."""
        for module in self.modules():
            if isinstance(module, CheckpointedBlock):
                module.gradient_checkpointing = enable

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation for the backward pass."""
        self.enable_gradient_checkpointing(False)

    def set_attention_backend(self, name: str) -> None:
        """Choose how attention is computed: "sdpa" (the default), "eager" or "chunked"; see `klvae_edu.blocks`.

        Raises:
            ValueError: no backend of that name.
        """
        if name not in BACKENDS:
            raise ValueError(f"attention backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
        for module in self.modules():
            if isinstance(module, Attention | FusedAttention):
                module.backend = name

    def optimize(self, dtype: torch.dtype | None = None) -> Self:
        """Make a copy for inference that computes the same function in less time. The model itself is not changed.

        The copy has weights of its own: after further training of the model, make a new one. It keeps the model's
        settings (tiling, slicing, attention backend) and passes gradients to images and latents, not to weights; it
        cannot be trained or saved. What is exchanged is in `klvae_edu.performance.fused`.

        Args:
            dtype: the type the copy computes in, and of its images and latents; None: the model's.
                `torch.bfloat16` has float32's range and 8 bits of precision: results move by about 1 % of their range.
                It is faster where the processor multiplies in it (AMX, AMD's Zen 5, a GPU), and slower elsewhere.
                `torch.float16` halves the weights' memory; under `force_upcast` it is computed in float32.

        Raises:
            ValueError: `dtype` is no floating-point type; the model is such a copy already, or its parts no longer
                match its configuration.

        With a compiler installed, `torch.compile(vae.optimize().decode)` is faster still, after a minute of compiling.
        """
        check_dtype(dtype)
        self.checked_weights()  # raises where the parts to be exchanged are not what they were
        copy = self.clone()
        fuse(copy, dtype or self.dtype)
        copy.inference_only = True
        return copy

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Do as in PyTorch, but refuse True for a copy that `optimize` made.

        Raises:
            ValueError: such a copy, whose weights cannot be turned back into the model's.
        """
        if requires_grad and self.inference_only:
            raise ValueError("this is a copy for inference, made by optimize(): train the model it was made of")
        return super().requires_grad_(requires_grad)
