"""Validate and pad the inputs of models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def check_tensor(what: str, x: object, channels: int, dtype: torch.dtype, at_least: int) -> None:
    """Raise a `ValueError` unless `x` is (B, channels, H, W) in `dtype`, with H and W at least `at_least`.

    Under autocast, any of float32, float16 and bfloat16 is accepted in place of another, because autocast converts.

    Args:
        what: name of `x` in the error message, such as "an image".
    """
    expected = f"expected {what} of shape (B, {channels}, H, W) in {dtype}, H and W at least {at_least}"
    if not isinstance(x, Tensor):
        raise ValueError(f"{expected}; got {type(x).__name__}")
    got = f"got shape {tuple(x.shape)} in {x.dtype}"
    if x.ndim != 4 or x.shape[1] != channels or min(x.shape[-2:]) < at_least:
        raise ValueError(f"{expected}; {got}")
    converted = {torch.float32, torch.float16, torch.bfloat16}
    if x.dtype != dtype and not ({x.dtype, dtype} <= converted and torch.is_autocast_enabled(x.device.type)):
        raise ValueError(f"{expected}; {got}")


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) by reflection on the right and at the bottom, until `multiple` divides both sides.

    Raises:
        ValueError: not (B, C, H, W), or a side smaller than `multiple`: reflection has too few pixels.
    """
    if x.ndim != 4 or min(x.shape[-2:]) < multiple:
        expected = f"(B, C, H, W) with H and W of {multiple} pixels or more"
        raise ValueError(f"expected images of shape {expected}, got {tuple(x.shape)}")
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, bottom), mode="reflect") if bottom or right else x
