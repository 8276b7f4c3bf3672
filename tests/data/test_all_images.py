"""All images of a source, each exactly once, as centred squares."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from klvae_edu.data import UnreadableImage, dead_leaves, load_image, photographs, save_image
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.files import center_square, resize
from klvae_edu.data.sprites import sprite


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make images of 20x30 pixels: each has another grey, and they are not written in the order of their names."""
    for number, name in enumerate(["b/2.png", "a.png", "c.png", "b/1.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_image(torch.full((3, 20, 30), number / 10), tmp_path / name)
    return tmp_path


def test_a_folder_gives_each_of_its_images_once_in_the_order_of_their_names(folder: Path) -> None:
    images = AllImages(str(folder), 8)
    assert images.names == ["a.png", "b/1.png", "b/2.png", "c.png"]
    assert [round(images.load(number).mean().item(), 1) for number in range(len(images))] == [0.1, 0.3, 0.0, 0.2]
    assert AllImages(str(folder), 8, count=2).names == ["a.png", "b/1.png"]
    assert len(AllImages(str(folder), 8, count=99)) == 4


def test_an_image_is_its_largest_centred_square_scaled(folder: Path) -> None:
    picture = torch.rand(3, 20, 30) * 2 - 1
    save_image(picture, folder / "a.png")
    stored = load_image(folder / "a.png")
    assert torch.equal(AllImages(str(folder), 20).load(0), stored[:, :, 5:25])
    assert torch.equal(AllImages(str(folder), 8).load(0), resize(stored[:, :, 5:25], 8, 8))
    assert torch.equal(center_square(stored.mT, 20), stored.mT[:, 5:25])


def test_a_single_image_is_there_once(tmp_path: Path) -> None:
    save_image(torch.zeros(3, 9, 9), tmp_path / "only.png")
    assert AllImages(str(tmp_path), 8).names == ["only.png"]


def test_an_image_that_cannot_be_read_says_so_when_it_is_asked_for(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"nothing")
    images = AllImages(str(folder), 8)
    with pytest.raises(UnreadableImage, match=r"a\.png"):
        images.load(0)
    images.load(1)


@pytest.mark.parametrize(("source", "draw"), [("sprites", sprite), ("dead-leaves", dead_leaves)])
def test_procedural_images_are_those_of_training(source: str, draw) -> None:
    images = AllImages(source, 16, count=3)
    assert len(images) == 3 and images.names[2] == f"{source} 2"
    assert torch.equal(images.load(2), draw(2, 16))


def test_the_photographs_are_all_there() -> None:
    images = AllImages("photos", 16)
    assert {*images.names} == {*photographs("train"), *photographs("held-out")}
    number = images.names.index("chelsea")
    assert torch.equal(images.load(number), center_square(photographs("held-out")["chelsea"], 16))


def test_the_rows_of_a_data_set_are_all_there_once(tmp_path: Path) -> None:
    for number in range(4):
        save_image(torch.full((3, 9, 9), number / 10), tmp_path / f"{number}.png")
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / f"{number}.png") for number in range(4)]})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    images = AllImages(f"hf:{tmp_path / 'set'}", 8)
    assert sorted(round(images.load(number).mean().item(), 1) for number in range(len(images))) == [0.0, 0.1, 0.2, 0.3]
    assert len({*images.names}) == 4


@pytest.mark.parametrize(
    ("source", "size", "count", "message"),
    [
        ("sprites", 16, None, "sprites has no end"),
        ("sprites", 4, 3, "size ≥ 8"),
        ("sprites", 16, 0, "one image or more"),
        ("sprites+photos", 16, 3, "expected one source"),
        ("no/such/folder", 16, None, "no such folder"),
    ],
)
def test_wrong_arguments_are_value_errors_that_say_what_was_expected(
    source: str, size: int, count: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AllImages(source, size, count)


@pytest.mark.parametrize("source", ["sprites", "dead-leaves", "photos"])
def test_built_in_images_are_also_grey_and_nothing_else(source: str) -> None:
    grey, colour = (AllImages(source, 16, count=2, channels=channels).load(1) for channels in (1, 3))
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    torch.testing.assert_close(grey, luma, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match=r"expected .*channels, got "):
        AllImages(source, 16, count=2, channels=5)


def test_all_splits_of_a_data_set_are_there(tmp_path: Path) -> None:
    splits = {}
    for split, count in (("train", 3), ("validation", 1), ("other", 2)):
        rows = [{"bytes": None, "path": str(tmp_path / f"{split}{number}.png")} for number in range(count)]
        for row in rows:
            save_image(torch.zeros(3, 9, 9), row["path"])
        splits[split] = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    images = AllImages(f"hf:{tmp_path / 'set'}", 8)
    assert images.names == ["train 0", "train 1", "train 2", "validation 0", "other 0", "other 1"]
    for number, name in enumerate(images.names):
        assert images.load(number).shape == (3, 8, 8), name


def test_an_enlarged_image_is_remarked(tmp_path: Path) -> None:
    for name, size in (("a", (40, 16)), ("b", (15, 40)), ("c", (9, 9))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    images = AllImages(str(tmp_path), 16)
    with pytest.warns(UserWarning, match=r"b\.png: images smaller than 16 pixels are enlarged \(15x40\)"):
        assert [images.load(number).shape for number in range(3)] == [(3, 16, 16)] * 3
    assert images.remarks.summary() == "2 × images smaller than 16 pixels are enlarged"


@pytest.mark.parametrize("source", ["photos", "sprites"])
def test_what_is_in_the_package_has_no_version(source: str) -> None:
    assert AllImages(source, 16, 2).versions_sha256() is None
