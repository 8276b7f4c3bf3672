"""The activations of Stable Diffusion's autoencoders outgrow float16, whose largest number is 65,504.

In diffusers, `force_upcast` is a note to the pipelines, some of which heed it. Here the model itself heeds it, wherever
it is called from: with weights in float16, and under autocast to float16, it computes in float32. bfloat16, which has
float32's range, is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def in_half(x: Tensor, weights: torch.dtype) -> bool:
    """Whether a computation on `x` would be done in float16."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) == torch.float16
    return weights == torch.float16


def in_float32(stages: Sequence[nn.Module], x: Tensor) -> Tensor:
    """`x` through the stages, computed in float32 by float32 copies of their weights. The stages stay as they are.

    Raises:
        ValueError: gradient checkpointing in training: its second forward pass would find the weights in float16.
    """
    blocks = [block for stage in stages for block in stage.modules() if getattr(block, "gradient_checkpointing", False)]
    if torch.is_grad_enabled() and any(weight.dtype == torch.float16 for b in blocks for weight in b.parameters()):
        raise ValueError("gradient checkpointing: expected weights in float32 or bfloat16 for training, got float16")
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        for stage in stages:
            weights = {name: weight.float() for name, weight in stage.named_parameters()}
            x = functional_call(stage, weights, (x,))
    return x
