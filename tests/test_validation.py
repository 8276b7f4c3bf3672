"""Validation: images that are none are found, by number and by what they hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from klvae_edu.validation import MAX_RECONSTRUCTION_VALUE, check_images, image_fault


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_and_a_little_overshoot_are_valid_in_every_precision(dtype: torch.dtype) -> None:
    assert image_fault(batch(dtype)) is None
    assert image_fault(1.4 * batch(dtype)) is None
    check_images(batch(dtype).requires_grad_(), "images")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_and_its_image_numbered(value: float) -> None:
    images = batch()
    images[2, 1, 4, 5] = value
    assert image_fault(images) == (2, "NaN or infinite values")
    assert image_fault(images, limit=float("inf")) == (2, "NaN or infinite values")
    with pytest.raises(
        ValueError, match=r"^photos: expected .* in \[-1, 1\], got NaN or infinite values in image 3 of"
    ):
        check_images(images, "photos")


def test_another_range_is_found_with_its_ends() -> None:
    images = batch()
    images[1] = torch.linspace(0, 255, 90).view(3, 5, 6)
    assert image_fault(images) == image_fault(images, MAX_RECONSTRUCTION_VALUE) == (1, "values from 0 to 255")
    images[0] = torch.linspace(-2, 0, 90).view(3, 5, 6)
    assert image_fault(images) == (0, "values from -2 to 0")
    assert image_fault(images[:1], MAX_RECONSTRUCTION_VALUE) is None


def test_a_dark_photograph_from_0_to_255_is_no_reconstruction_but_an_overshoot_of_some_units_is() -> None:
    dark = torch.randint(0, 20, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    assert image_fault(dark, MAX_RECONSTRUCTION_VALUE) == (0, "values from 0 to 19")
    assert image_fault(5 * batch(), MAX_RECONSTRUCTION_VALUE) is None


def test_integers_are_no_images_whatever_their_values() -> None:
    assert image_fault(batch().byte()) == (0, "values of torch.uint8")
    with pytest.raises(ValueError, match=r"images: expected floating-point values in \[-1, 1\], got .*torch\.int64"):
        check_images(batch().long(), "images")


def test_an_empty_batch_is_valid() -> None:
    assert image_fault(torch.zeros(0, 3, 8, 8)) is None
