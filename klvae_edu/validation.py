"""Validate images, and validate and pad the inputs of models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ABSOLUTE_VALUE = 1.5  # of images: resampling exceeds 1 slightly; images in a wrong scale exceed it by far
# Of reconstructions, which may overshoot, because they are clamped for display. The bundled models stay below 7, even
# for latents a thousand times too large, and a photograph with values from 0 to 255 is below 16 only if it is black.
MAX_RECONSTRUCTION_VALUE = 16.0


def image_fault(images: Tensor, limit: float = MAX_ABSOLUTE_VALUE) -> tuple[int, str] | None:
    """Find the first image of a batch (B, …) that is not floating-point, not finite, or beyond ±`limit`.

    It reads the batch twice, and waits once for a GPU.

    Returns:
        The number of the image, from 0, and what it holds, such as "NaN or infinite values" or "values from 0 to 255".
        None: every image is valid.
    """
    if not images.is_floating_point():
        return 0, f"values of {images.dtype}"
    if not images.numel():
        return None
    flat = images.detach().flatten(1)
    extremes = torch.stack((flat.amin(1), flat.amax(1)), dim=1).tolist()  # (B, 2); NaN if the image has a NaN
    for number, (low, high) in enumerate(extremes):
        if not (math.isfinite(low) and math.isfinite(high)):
            return number, "NaN or infinite values"
        if max(-low, high) > limit:
            return number, f"values from {low:.4g} to {high:.4g}"
    return None


def check_images(images: Tensor, what: str, limit: float = MAX_ABSOLUTE_VALUE) -> None:
    """Raise a `ValueError` unless images (B, …) are floating-point, finite and within ±`limit`, about [-1, 1].

    Args:
        what: name of the images, with which the error message begins. The message also has the number of the image.
    """
    fault = image_fault(images, limit)
    if fault is not None:
        number, found = fault
        raise ValueError(
            f"{what}: expected floating-point values in [-1, 1], got {found} in image {number + 1} of {len(images)}"
        )


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


def check_group_sizes(groups: int, widths: tuple[int, ...], height: int, width: int) -> None:
    """Raise a `ValueError` if a GroupNorm on a feature map of height × width would have groups of a single value.

    Its output would be its bias, whatever the image is. PyTorch raises an error for a batch of one image, and none for
    a larger one.

    Args:
        widths: channels of the feature maps of this size.
    """
    if groups in widths and height == width == 1:
        raise ValueError(
            f"expected an image of more than one latent pixel: with norm_num_groups = {groups}, as many as channels, "
            "each group of the smallest feature map has a single value, and its norm would lose the image"
        )


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
