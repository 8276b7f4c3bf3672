"""Float16 upcast: compute in float32 what float16 would overflow (its largest number is 65,504).

Activations of Stable Diffusion's autoencoders are larger than that. In diffusers `force_upcast` is a note that some
pipelines heed. Here the model heeds it, whoever calls it: with float16 weights, and under autocast to float16, it
computes in float32. bfloat16 has float32's range and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from klvae_edu.blocks import checkpointed_blocks

LAYERS = (F.conv2d, F.linear, F.group_norm)  # all functions of the network that take weights


def computes_in_float16(x: Tensor, weights: torch.dtype) -> bool:
    """Tell whether a layer with `weights` of this type would compute in float16 on `x`."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return weights == torch.float16 or (autocast and torch.get_autocast_dtype(device) == torch.float16)


def in_float32(function: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> Tensor:
    """Compute `function` of x, which runs through parts of `model`, in float32; the result has the weights' type.

    Autocast is switched off, and float16 weights are converted layer by layer: the model itself is not changed.

    Raises:
        ValueError: gradient checkpointing in training: the recomputation would find the weights in float16.
    """
    types = {weight.dtype for block in checkpointed_blocks(model) for weight in block.parameters()}
    if torch.is_grad_enabled() and types - {torch.float32}:
        found = ", ".join(sorted(map(str, types)))
        raise ValueError(f"gradient checkpointing with force_upcast: expected weights in float32, got {found}")
    with torch.autocast(x.device.type, enabled=False), _WeightsInFloat32():
        out = function(x.float())
    return out.to(next(model.parameters()).dtype)


class _WeightsInFloat32(TorchFunctionMode):
    """Convert the weights of each layer as it runs, so that threads may share the model."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in LAYERS:
            args = [value.float() if isinstance(value, Tensor) else value for value in args]
            kwargs = {k: value.float() if isinstance(value, Tensor) else value for k, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))
