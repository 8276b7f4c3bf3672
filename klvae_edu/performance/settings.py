"""Run-time settings of a model: slices, tiles, upcast, gradient checkpointing, attention backend, inference copy.

They change memory and time, and results by rounding errors only. Tiling changes results more, see
`performance.tiling`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from torch import Tensor

from klvae_edu.blocks import BACKENDS, Attention, CheckpointedBlock
from klvae_edu.performance.fused import fuse
from klvae_edu.performance.tiling import Tiling, sliced, tiled
from klvae_edu.performance.upcast import computes_in_float16, in_float32
from klvae_edu.weights.checks import check_dtype
from klvae_edu.weights.mixin import ModelMixin


class PerformanceMixin(ModelMixin):
    """Base class of `AutoencoderKL`: the settings, and `run_bounded`, which runs encoder or decoder under them.

    Attributes:
        use_slicing: process a batch one image at a time.
        use_tiling: process images in overlapping tiles.
        tiling: sizes of the tiles.
    """

    use_slicing = False
    use_tiling = False
    tiling = Tiling()

    def run_bounded(self, half: Callable[[Tensor], Tensor], x: Tensor, tiling: bool, units: tuple[int, int]) -> Tensor:
        """Compute `half(x)` in slices, in tiles and in float32, according to the settings.

        Args:
            half: `encode` or `decode` of the bare network.
            tiling: True computes in tiles.
            units: side in pixels of one latent pixel's patch in x and in the result: (f, 1) or (1, f); see `tiled`.
        """
        if (hook := getattr(self, "_hf_hook", None)) is not None:
            hook.pre_forward(self)  # a diffusers pipeline that offloads its models loads the weights here
        if self.config.force_upcast and computes_in_float16(x, self.dtype):
            half = partial(in_float32, half, self)
        if tiling:
            factor, norms = self.config.downsample_factor, self if self.tiling.global_norm else None
            self.tiling.check(factor)
            tile, overlap = self.tiling.size // factor, self.tiling.overlap // factor
            half = partial(tiled, half, tile=tile, overlap=overlap, units=units, norms=norms)
        out = sliced(half, x) if self.use_slicing and len(x) > 1 else half(x)
        return out.contiguous() if self.inference_only else out  # callers may `view` it, which fails on channels last

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
            use_tiling: False disables tiling.
            size: side of a tile in pixels, a multiple of f; None: 288.
            overlap: in pixels, a multiple of f; None: 64, or a quarter of `size` where that is less.
            global_norm: measure GroupNorm's statistics over all tiles first. The result is closer to the untiled one,
                at twice the time.

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
        """Encode and decode images without tiles."""
        self.use_tiling = False

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        """Keep fewer activations for the backward pass and recompute the others: 1/6 more work, far less memory."""
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
            if isinstance(module, Attention):
                module.backend = name

    def optimize(self, dtype: torch.dtype | None = None) -> Self:
        """Make a copy for inference that computes the same function in less time. The model itself is not changed.

        The copy has its own weights: after further training of the model, make a new copy. It keeps the model's
        settings (tiling, slicing, attention backend). Gradients reach images and latents, but not weights. The copy
        cannot be trained or saved. `klvae_edu.performance.fused` describes the layers that are replaced.

        Args:
            dtype: data type of the copy's weights, images and latents; None: the model's.
                `torch.bfloat16` has the range of float32 and 8 bits of precision: results change by about 1 % of their
                range. It is faster on processors that multiply in it (AMX, AMD's Zen 5, a GPU), and slower on others.
                `torch.float16` halves the memory of the weights; under `force_upcast` it computes in float32.

        Raises:
            ValueError: `dtype` is not a floating-point type; the model is already such a copy; or its layers do not
                match its configuration.

        With a compiler installed, `torch.compile(vae.optimize().decode)` is even faster, after a minute of compiling.
        """
        check_dtype(dtype)
        self.checked_weights()  # raises if the layers to replace were changed
        copy = self.clone()
        fuse(copy, dtype or self.dtype)
        copy.inference_only = True
        return copy

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set `requires_grad` of all parameters, as in PyTorch.

        Raises:
            ValueError: True on a copy that `optimize` made, because its weights cannot be converted back.
        """
        if requires_grad and self.inference_only:
            raise ValueError("this is a copy for inference, made by optimize(): train the model that it was made from")
        return super().requires_grad_(requires_grad)
