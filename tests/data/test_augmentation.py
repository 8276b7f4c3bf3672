"""Colour augmentation of training images."""

from __future__ import annotations

import math

import pytest
import torch

from klvae_edu.data import image_dataset
from klvae_edu.data.augmentation import Recoloured, recolour
from klvae_edu.data.procedural import dead_leaves
from klvae_edu.data.sources import Procedural
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.loader import images_of


def pixel(*rgb: float) -> torch.Tensor:
    return torch.tensor(rgb).view(3, 1, 1)


def test_a_third_of_a_turn_exchanges_the_colours() -> None:
    red = pixel(0.5, -0.2, -0.3)
    third = 2 * math.pi / 3
    torch.testing.assert_close(recolour(red, third, 1), pixel(-0.2, -0.3, 0.5))
    torch.testing.assert_close(recolour(red, -third, 1), pixel(-0.3, 0.5, -0.2))
    torch.testing.assert_close(recolour(red, 0, 1), red)


@pytest.mark.parametrize("angle", [0.4, 2.0, 5.5])
def test_grey_and_the_mean_of_each_pixel_stay_and_the_saturation_is_scaled(angle: float) -> None:
    image = torch.rand(3, 5, 7) * 0.4 - 0.2
    turned = recolour(image, angle, 1.5)
    torch.testing.assert_close(turned.mean(0), image.mean(0))
    torch.testing.assert_close((turned - turned.mean(0)).norm(dim=0), 1.5 * (image - image.mean(0)).norm(dim=0))
    torch.testing.assert_close(recolour(pixel(0.3, 0.3, 0.3), angle, 1.5), pixel(0.3, 0.3, 0.3))


def test_what_leaves_the_range_is_clamped() -> None:
    assert recolour(pixel(1.0, -1.0, -1.0), 1.0, 2).abs().max() == 1


def test_a_share_of_the_images_is_recoloured_and_always_the_same() -> None:
    plain = Procedural(dead_leaves, 8, seed=3, length=400)
    first, second = (Recoloured(plain, 0.25, seed=3) for _ in range(2))
    changed = [not torch.equal(first[index], plain[index]) for index in range(400)]
    assert 0.15 < sum(changed) / 400 < 0.35
    assert all(torch.equal(first[index], second[index]) for index in (399, 0, 17))
    assert len(first) == 400 and first.report() is None


def test_training_images_of_photographs_then_have_every_hue_and_held_out_ones_their_own() -> None:
    def greenest(recolour: float, split: str = "train") -> float:
        images = torch.stack([*image_dataset("photos", 16, split=split, length=60, recolour=recolour)])
        return float((images[:, 1] - images[:, [0, 2]].amax(1)).mean((1, 2)).max())

    assert greenest(0) < 0.1 < 0.2 < greenest(1)
    assert greenest(0, "held-out") == greenest(1, "held-out")


def test_a_run_is_given_them_where_it_asks() -> None:
    plain, other = (images_of(TrainingConfig(recolour=share), 4) for share in (0.0, 1.0))
    assert not torch.equal(plain[0], other[0])
    assert torch.equal(plain[0], image_dataset("photos", 32, length=4)[0])


def test_a_share_that_is_none_and_a_stream_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recolour: expected a share from 0 to 1, got 1\.5"):
        image_dataset("photos", 16, recolour=1.5)
    with pytest.raises(ValueError, match="recolour: not available for a data set that is streamed"):
        image_dataset("hf:owner/name", 16, streaming=True, recolour=0.5)
    with pytest.raises(ValueError, match="recolour: expected a number from 0 to 1, got -1"):
        TrainingConfig(recolour=-1)
