"""Float16 upcast: compute in float32 instead of float16, whose largest number is 65,504.

Activations of SDXL's decoder are larger and would overflow. In diffusers, `force_upcast` has an effect
in some pipelines only. In this package the model itself obeys it: with float16 weights, and under autocast to float16,
it computes in float32. bfloat16 has the range of float32 and is not upcast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from klvae_edu.blocks import checkpointed_blocks

WEIGHT_FUNCTIONS = (F.conv2d, F.linear, F.group_norm)  # all functions of the network that take weights


def computes_in_float16(x: Tensor, weights: torch.dtype) -> bool:
    """Tell whether a layer whose weights have the data type `weights` would compute in float16 on `x`."""
    device = x.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    return weights == torch.float16 or (autocast and torch.get_autocast_dtype(device) == torch.float16)


def in_float32(function: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> Tensor:
    """Compute `function(x)` in float32 and convert the result to the data type of the weights.

    Autocast is disabled, and float16 weights are converted layer by layer. The model itself is not changed.

    Args:
        function: a function that runs layers of `model`.

    Raises:
        ValueError: gradient checkpointing in training, because the recomputation would use the weights in float16.
    """
    types = {weight.dtype for block in checkpointed_blocks(model) for weight in block.parameters()}
    if torch.is_grad_enabled() and types - {torch.float32}:
        got = ", ".join(sorted(map(str, types)))
        raise ValueError(f"gradient checkpointing with force_upcast: expected weights in float32, got {got}")
    with torch.autocast(x.device.type, enabled=False), _WeightsInFloat32():
        out = function(x.float())
    return out.to(next(model.parameters()).dtype)


class _WeightsInFloat32(TorchFunctionMode):
    """Convert the weights of each layer to float32 when it runs, so that threads can share the model."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in WEIGHT_FUNCTIONS:
            args = [value.float() if isinstance(value, Tensor) else value for value in args]
            kwargs = {k: value.float() if isinstance(value, Tensor) else value for k, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))
