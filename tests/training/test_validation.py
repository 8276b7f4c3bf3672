"""Measuring on held-out crops: the model beside patch-PCA and bicubic interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from klvae_edu import AutoencoderKL, plots
from klvae_edu.baselines import PatchPCA, bicubic
from klvae_edu.data import image_dataset
from klvae_edu.data.crops import hold_out
from klvae_edu.metrics import psnr
from klvae_edu.plots import image_grid
from klvae_edu.training import validation
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.validation import Validation, reconstructions

CONFIG = TrainingConfig(size=16, batch_size=3, held_out=7)  # 7 crops in batches of 3, 3 and 1


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_preset("tiny", seed=0)


@pytest.fixture(scope="module")
def measured(vae: AutoencoderKL) -> Validation:
    return Validation(CONFIG, vae)


def test_the_crops_are_those_of_the_held_out_split_whatever_the_seed(measured: Validation, vae: AutoencoderKL) -> None:
    data = image_dataset("photos", 16, split="held-out", length=7)
    assert torch.equal(measured.images, torch.stack([data[i] for i in range(7)]))
    other = Validation(TrainingConfig(size=16, batch_size=3, held_out=7, seed=9), vae)
    assert torch.equal(measured.images, other.images)


def test_the_figures_are_mean_psnr_over_all_crops(measured: Validation, vae: AutoencoderKL) -> None:
    images = measured.images
    with torch.no_grad():
        expected = {
            "model": vae(images).sample,
            "patch-PCA": measured.pca.reconstruct(images),
            "bicubic": bicubic(images, 4),
        }
    found = measured.measure(vae)
    assert list(found) == list(expected)
    for name, images_again in expected.items():
        assert found[name] == pytest.approx(psnr(images_again, images).mean().item(), abs=1e-3)


def test_patch_pca_keeps_as_many_numbers_as_the_latent_and_is_fitted_on_training_crops(
    measured: Validation, vae: AutoencoderKL
) -> None:
    latent = vae.encode(measured.images).latent_dist.mode()
    patches = (16 // measured.pca.patch_size) ** 2
    assert measured.pca.components * patches == latent[0].numel()
    data = image_dataset("photos", 16, split="train", length=validation.PCA_CROPS)
    again = PatchPCA(4, 4).fit(torch.stack([data[i] for i in range(validation.PCA_CROPS)]))
    torch.testing.assert_close(again.reconstruct(measured.images), measured.pca.reconstruct(measured.images))


def test_a_reconstruction_goes_through_the_mode_of_the_posterior(measured: Validation, vae: AutoencoderKL) -> None:
    first = reconstructions(vae, measured.pca, measured.images)
    second = reconstructions(vae, measured.pca, measured.images)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(image.requires_grad for image in first.values())


def test_the_picture_has_labelled_rows_of_crops_and_both_reconstructions(
    measured: Validation, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[tuple[list[Tensor], list[str]]] = []

    def remember(rows: list[Tensor], row_labels: list[str]) -> Figure:
        grids.append((rows, row_labels))
        return image_grid(rows, row_labels=row_labels)

    monkeypatch.setattr(plots, "image_grid", remember)
    pixels = measured.picture(vae)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    ((rows, labels),) = grids
    found = reconstructions(vae, measured.pca, measured.images)
    for label, images, expected in zip(
        labels, rows, (measured.images, found["model"], found["patch-PCA"]), strict=True
    ):
        torch.testing.assert_close(images, expected, msg=label)
    assert labels == ["held-out", "model", "patch-PCA"]


def test_an_unreadable_file_among_the_held_out_is_reported(vae: AutoencoderKL, tmp_path: Path) -> None:
    for number in range(40):  # 2 of 40 are held out
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    config = TrainingConfig(data=str(tmp_path), size=16, held_out=4)
    assert Validation(config, vae).unreadable is None
    spoiled = hold_out(sorted(path.name for path in tmp_path.iterdir()))[1][0]
    (tmp_path / f"{spoiled:02d}.png").write_bytes(b"no image")
    report = Validation(config, vae).unreadable
    assert report is not None and "1 of 2 images" in report and f"{spoiled:02d}.png" in report
