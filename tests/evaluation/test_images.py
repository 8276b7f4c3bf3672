"""Evaluation data: crops with the key of their photograph, or the whole images of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from PIL import Image

from klvae_edu.data import image_dataset, save_image
from klvae_edu.evaluation.images import GivenImages, evaluation_data

GREYS = {"a.png": 40, "b.png": 90, "sub/c.png": 140, "d.png": 190}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make four grey images of 40x24 pixels and a file that is not an image."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name, grey in GREYS.items():
        Image.new("RGB", (40, 24), (grey,) * 3).save(tmp_path / "images" / name)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    return tmp_path / "images"


def test_held_out_crops_are_those_of_image_dataset_each_with_its_photograph() -> None:
    data = evaluation_data("photos", 16, count=5)
    expected = image_dataset("photos", 16, split="held-out", length=5)
    found = [*data]
    assert [key for key, _ in found] == [(0,), (1,), (0,), (1,), (0,)]
    assert all(torch.equal(image, expected[n]) for n, (_, image) in enumerate(found))
    assert (len(data), data.photographs, data.report()) == (5, 2, None)
    assert data.what == "5 crops of 16x16 pixels, held out of photos"


def test_by_default_there_are_256_and_of_fewer_crops_than_photographs_those_are_counted() -> None:
    assert len(evaluation_data("photos", 16)) == 256
    assert evaluation_data("photos", 16, count=1).photographs == 1


def test_procedural_images_are_a_photograph_each_and_in_a_mixture_parts_do_not_share_one() -> None:
    assert [key for key, _ in evaluation_data("dead-leaves", 16, count=3)] == [(0,), (1,), (2,)]
    mixed = evaluation_data("photos+dead-leaves", 16, count=7)
    assert [key for key, _ in mixed] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0), (1, 2), (0, 1)]
    assert mixed.photographs == 2 + 3


def test_the_crop_that_takes_an_unreadable_images_place_has_the_photograph_it_is_cut_from(tmp_path: Path) -> None:
    for n in range(60):
        save_image(torch.full((3, 20, 20), n / 60), tmp_path / f"{n}.png")
    held_out = evaluation_data(str(tmp_path), 16).data.images.names
    assert len(held_out) == 3
    (tmp_path / held_out[1]).write_bytes(b"no image")
    data = evaluation_data(str(tmp_path), 16, count=6)
    found = [*data]
    assert [key for key, _ in found] == [(0,), (2,), (2,), (0,), (2,), (2,)]
    assert all(round(image.mean().item() * 60) == int(held_out[n][:-4]) for (n,), image in found)
    assert data.photographs == 2


def test_all_gives_each_image_of_a_folder_once_its_centre_scaled(folder: Path) -> None:
    image = torch.zeros(3, 24, 40)
    image[:, :, :8] = image[:, :, 32:] = 1  # outside the centred square
    save_image(image, folder / "sub" / "e.png")
    data = evaluation_data(str(folder), 12, "all")
    found = dict(data)
    assert len(found) == 5 and all(x.shape == (3, 12, 12) for x in found.values())
    shades = sorted(round((x.mean().item() + 1) * 127.5) for x in found.values())
    assert shades == sorted([*GREYS.values(), 128])  # with its white margins e.png would be lighter


def test_what_cannot_be_read_is_named_and_left_out(folder: Path) -> None:
    data = evaluation_data(str(folder), 12, "all")
    assert data.report() is None
    for _ in range(2):  # a second pass does not count it twice
        assert len([*data]) == data.photographs == 4
        report = data.report()
        assert report and report.startswith("1 of 5 images could not be read and are left out:\n")
        assert str(folder / "broken.png") in report


def test_the_list_of_what_cannot_be_read_does_not_grow_without_end(folder: Path) -> None:
    for n in range(30):
        (folder / f"worse{n}.png").write_bytes(b"")
    data = evaluation_data(str(folder), 12, "all")
    assert len([*data]) == 4
    lines = str(data.report()).splitlines()
    assert lines[0].startswith("31 of 35") and lines[-1] == "  and 11 more" and len(lines) == 22


def test_a_single_image_is_one_and_a_count_takes_the_first(folder: Path, tmp_path: Path) -> None:
    assert len(evaluation_data(str(folder), 12, "all", count=2)) == 2
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "a.png")
    assert len([*evaluation_data(str(tmp_path / "one"), 12, "all")]) == 1


def test_images_that_are_there_already_are_a_photograph_each() -> None:
    images = torch.rand(3, 3, 8, 6)
    data = GivenImages(images)
    assert [key for key, _ in data] == [(0,), (1,), (2,)] and data.photographs == len(data) == 3
    assert data.what == "3 images of 6x8 pixels"


def test_what_makes_no_data_is_an_error_that_says_why(tmp_path: Path) -> None:
    for source in ("photos", "dead-leaves"):
        with pytest.raises(ValueError, match=f"expected held-out for {source}; all is for images of your own"):
            evaluation_data(source, 16, "all")
    with pytest.raises(ValueError, match="found no image files"):
        evaluation_data(str(tmp_path), 16, "all")
    with pytest.raises(ValueError, match="found no image files"):
        evaluation_data(str(tmp_path), 16)
    with pytest.raises(ValueError, match="expected one image or more, got 0"):
        evaluation_data("photos", 16, count=0)


@pytest.mark.parametrize("layout", ["parquet", "tar", "zip"])
@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_all_gives_the_images_of_tables_and_archives(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, prefix: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    packed, files = tmp_path / "packed", sorted(folder.rglob("*.png"))
    packed.mkdir()
    if layout == "parquet":
        table = pyarrow.table({"image": [path.read_bytes() for path in files]})
        pyarrow.parquet.write_table(table, packed / "a.parquet")
    else:
        shutil.make_archive(str(packed / "a"), layout, folder)
    data = evaluation_data(f"{prefix}{packed}", 12, "all")
    found = sorted(round((image.mean().item() + 1) * 127.5) for _, image in data)
    assert found == sorted(GREYS.values())
    assert data.photographs == 4 and str(data.report()).startswith("1 of 5 images could not be read and are left out")


@pytest.mark.parametrize("split", ["held-out", "all"])
def test_images_have_the_channels_that_are_asked_for(folder: Path, split: Any) -> None:
    (folder / "broken.png").unlink()
    for channels in (1, 3):
        assert all(
            image.shape == (channels, 12, 12) for _, image in evaluation_data(str(folder), 12, split, 4, channels)
        )
    with pytest.raises(ValueError, match="expected 1 or 3 channels, got 5"):
        evaluation_data("dead-leaves", 12, channels=5)
