"""The activations of Stable Diffusion's autoencoders outgrow float16, whose largest number is 65,504.

In diffusers, `force_upcast` is a note to the pipelines, some of which heed it. Here the model itself heeds it, wherever
it is called from: with weights in float16, and under autocast to float16, it computes in float32. bfloat16, which has
float32's range, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LAYERS = (F.conv2d, F.linear, F.group_norm)  # all that have weights


def in_half(x: Tensor, weights: torch.dtype) -> bool:
    """Whether a computation on `x` would be done in float16."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return weights == torch.float16 or (autocast and torch.get_autocast_dtype(device) == torch.float16)


class _WeightsInFloat32(TorchFunctionMode):
    """Converts the weights of each layer as it runs: the model itself is not touched, and threads may share it."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in LAYERS:
            args = [value.float() if isinstance(value, Tensor) else value for value in args]
            kwargs = {k: value.float() if isinstance(value, Tensor) else value for k, value in (kwargs or {}).items()}
        return function(*args, **(kwargs or {}))


def in_float32(stages: Sequence[nn.Module], x: Tensor) -> Tensor:
    """`x` through the stages in float32, whatever the type of their weights, and whatever autocast says.

    Raises:
        ValueError: gradient checkpointing in training: its second forward pass would find the weights as they are.
    """
    blocks = [block for stage in stages for block in stage.modules() if getattr(block, "gradient_checkpointing", False)]
    types = {weight.dtype for block in blocks for weight in block.parameters()}
    if torch.is_grad_enabled() and types - {torch.float32}:
        found = ", ".join(sorted(map(str, types)))
        raise ValueError(f"gradient checkpointing with force_upcast: expected weights in float32, got {found}")
    with torch.autocast(x.device.type, enabled=False), _WeightsInFloat32():
        x = x.float()
        for stage in stages:
            x = stage(x)
    return x
