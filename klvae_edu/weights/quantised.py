"""Weights of 8 bits that are stored with a scale for each layer: the scales are applied, never dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_SCALE = re.compile(r"(.+)\.(?:scale_weight|weight_scale)")
_OF_ACTIVATIONS = re.compile(r"(.+\.(?:scale_input|input_scale|comfy_quant)|scaled_fp8)")


def apply_scales(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply the weights of a quantised file by their scales, in float32. Other weights stay as they are.

    A scale is a number for a layer, or a number for each output channel. Scales of activations are left out: the model
    computes in floating point.

    Raises:
        ValueError: a scale without a weight, or of another shape.
    """
    plain = {name: tensor for name, tensor in weights.items() if not _OF_ACTIVATIONS.fullmatch(name)}
    scales = {match[1] + ".weight": name for name in plain if (match := _SCALE.fullmatch(name))}
    scaled = {name: tensor for name, tensor in plain.items() if name not in scales.values()}
    for name, scale_name in scales.items():
        scale = plain[scale_name]
        weight = scaled.get(name)
        if weight is None:
            raise ValueError(f"{scale_name}: a scale, but there is no {name}")
        if scale.numel() not in (1, len(weight)):
            raise ValueError(
                f"{scale_name}: expected one number, or one for each of {len(weight)} channels, "
                f"got shape {tuple(scale.shape)}"
            )
        scaled[name] = weight.to(torch.float32) * scale.to(torch.float32).reshape(-1, *[1] * (weight.ndim - 1))
    return scaled
