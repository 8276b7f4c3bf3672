"""The door of the model: what comes in is checked once, and padded to whole latent pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def check_tensor(what: str, x: object, channels: int, dtype: torch.dtype, at_least: int) -> None:
    """Raise a `ValueError` unless `x` is (B, channels, H, W) in `dtype`, H and W at least `at_least`.

    Under autocast, float32, float16 and bfloat16 are taken for each other, as autocast itself does.
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


def pad_to_multiple(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) -> the same, continued by reflection on the right and at the bottom to multiples of `factor`."""
    height, width = x.shape[-2:]
    bottom, right = -height % factor, -width % factor
    return F.pad(x, (0, right, 0, bottom), mode="reflect") if bottom or right else x
