"""Sources: every kind of training data; crops are pure functions, unreadable files are replaced and reported."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from klvae_edu.data import save_image
from klvae_edu.data.crops import hold_out, pyramid, random_crop
from klvae_edu.data.folders import Folder
from klvae_edu.data.sources import Mixture, image_dataset, joined_sources, photographs, source_folders

LEVELS = 20  # number of flat test images; image i has the grey level 10·i


def flat_images(folder: Path, count: int, side: int = 24) -> Path:
    """Make a folder with `count` images of one colour each: 00.png, 01.png, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (side, side), (10 * number,) * 3).save(folder / f"{number:02}.png")
    return folder


def number_of(crop: Tensor) -> int:
    """Return the number of the flat image that a crop was cut from."""
    return round((crop.mean().item() + 1) * 127.5 / 10)


def damage(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"{number:02}.png").write_bytes(b"damaged")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let every network access fail; `datasets` is offline and has an empty cache."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"tried to connect: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # 5 s a parquet stream


# --- every source


@pytest.mark.parametrize("source", ["dead-leaves", "photos", "folder"])
@pytest.mark.parametrize("split", ["train", "held-out"])
@pytest.mark.parametrize("size", [32, 48])
def test_items_are_square_rgb_images_in_minus_one_to_one(tmp_path: Path, source: str, split: Any, size: int) -> None:
    if source == "folder":
        source = str(flat_images(tmp_path / "images", 5))
    data = image_dataset(source, size, split=split, length=12)
    assert len(data) == 12
    crops = torch.stack(list(data))
    assert crops.shape == (12, 3, size, size)
    assert crops.dtype == torch.float32
    assert crops.isfinite().all()
    assert crops.abs().max() <= 1


@pytest.mark.parametrize("source", ["dead-leaves", "photos"])
def test_a_crop_is_a_pure_function_of_seed_and_index(source: str) -> None:
    one, two, other = (image_dataset(source, 32, seed=seed, length=20) for seed in (4, 4, 5))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = {index: two[index] for index in order}
    assert all(torch.equal(one[index], shuffled[index]) for index in range(20))
    assert not any(torch.equal(one[index], other[index]) for index in range(20))
    assert len({crop.numpy().tobytes() for crop in one}) == 20


@pytest.mark.parametrize("source", ["dead-leaves", "photos"])
def test_workers_give_the_same_crops_in_the_same_order(source: str) -> None:
    data = image_dataset(source, 16, length=12)
    alone = torch.cat(list(DataLoader(data, batch_size=3)))
    assert torch.equal(torch.cat(list(DataLoader(data, batch_size=3, num_workers=2))), alone)


@pytest.mark.parametrize("source", ["dead-leaves", "photos"])
def test_held_out_crops_do_not_depend_on_the_seed_and_differ_from_training_crops(source: str) -> None:
    one, two = (image_dataset(source, 32, split="held-out", seed=seed) for seed in (0, 1))
    assert len(one) == 256
    assert all(torch.equal(one[index], two[index]) for index in range(20))
    train = {image.numpy().tobytes() for image in image_dataset(source, 32, length=256)}
    assert not train & {image.numpy().tobytes() for image in one}


def test_by_default_an_epoch_is_long_and_may_be_indexed_anywhere() -> None:
    data = image_dataset("photos", 16)
    assert len(data) == 2**20
    assert data[2**20 - 1].shape == (3, 16, 16)


@pytest.mark.parametrize("source", ["dead-leaves", "photos"])
def test_indices_out_of_range_are_refused(source: str) -> None:
    data = image_dataset(source, 16, length=3)
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"from 0 to 2, got {index}"):
            data[index]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"split": "test"}, "split: expected 'train' or 'held-out', got 'test'"),
        ({"size": 0}, "expected size ≥ 1.*size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"length": 0}, "length=0"),
        ({"streaming": True}, r"streaming is for Hugging Face data sets \(hf:NAME\); 'photos' is none and needs none"),
        ({"channels": 0}, "expected one channel or more"),
        ({"channels": 1, "recolour": 0.5}, "3 with recolour, got channels=1, recolour=0.5"),
        ({"channels": 5}, "expected 5 channels, got 3|expected 5 channels, got 1"),
        ({"channels": 2, "source": "sprites"}, "procedural images are RGB or grey: expected 1 or 3 channels, got 2"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        image_dataset(**({"source": "photos", "size": 32} | arguments))


@pytest.mark.parametrize("split", ["train", "held-out"])
@pytest.mark.parametrize("source", ["dead-leaves", "sprites", "photos", "folder", "photos+dead-leaves"])
def test_grey_crops_are_those_of_colour_by_their_luma(tmp_path: Path, source: str, split: Any) -> None:
    source = str(flat_images(tmp_path, 5)) if source == "folder" else source
    grey, colour = (image_dataset(source, 16, split=split, length=6, channels=channels) for channels in (1, 3))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for one, three in zip(grey, colour, strict=True):
        torch.testing.assert_close(one, (three * weights).sum(0, keepdim=True), atol=0.03, rtol=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_have_the_channels_that_are_asked_for(tmp_path: Path, streaming: bool) -> None:
    source = saved(tmp_path, "parquet", {"train": [3, 3], "test": [9]})
    crops = image_dataset(source, 8, length=4, streaming=streaming, channels=1)
    assert [crop.shape for crop in crops] == [(1, 8, 8)] * 4
    with pytest.raises(ValueError, match=r"none of .*images can be read.*\n.*expected 4 channels, got 3"):
        next(iter(image_dataset(source, 8, length=4, streaming=streaming, channels=4)))


def test_images_of_five_bands_are_cropped(tmp_path: Path) -> None:
    for number in range(3):
        image = torch.linspace(-1, 1, 5).view(5, 1, 1).expand(5, 24, 20)
        save_image(image, tmp_path / f"{number}.tif")
    crops = torch.stack([*image_dataset(str(tmp_path), 8, length=4, channels=5)])
    assert crops.shape == (4, 5, 8, 8)
    torch.testing.assert_close(crops.mean((0, 2, 3)), torch.linspace(-1, 1, 5), atol=0.01, rtol=0)


def test_where_all_is_well_there_is_nothing_to_report() -> None:
    assert image_dataset("dead-leaves", 16).report() is None
    assert image_dataset("photos", 16).report() is None


# --- crops


def test_pyramid_levels_are_area_averages_down_to_the_smallest_side() -> None:
    image = torch.rand(3, 70, 100)
    levels = pyramid(image, 16)
    assert [tuple(level.shape[-2:]) for level in levels] == [(70, 100), (35, 50), (17, 25)]
    torch.testing.assert_close(levels[1][:, 0, 0], image[:, :2, :2].mean((1, 2)))


def coordinates(height: int, width: int) -> Tensor:
    """Make an image: channel 0 is the column, channel 1 the row, both divided by the longer side."""
    longer = max(height, width)
    columns = torch.arange(width).expand(height, width) / longer
    rows = torch.arange(height)[:, None].expand(height, width) / longer
    return torch.stack([columns, rows, torch.zeros(height, width)])


@pytest.mark.parametrize("shape", [(160, 240), (240, 160), (100, 100)])
def test_crops_have_every_scale_and_place_and_both_directions(shape: tuple[int, int]) -> None:
    image = coordinates(*shape)
    crops = torch.stack([random_crop([image], 16, np.random.default_rng(seed)) for seed in range(400)])
    between_centres = (crops[:, 1].amax((1, 2)) - crops[:, 1].amin((1, 2))) * max(shape)
    sides = between_centres * 16 / 15
    smallest, largest = 16, min(shape) / 2
    assert smallest - 1 < sides.min() < smallest + 2
    assert largest - 3 < sides.max() < largest + 2
    # uniform in the logarithm of the side: half of the crops are smaller than the geometric mean of the two limits
    assert (sides < (smallest * largest) ** 0.5).float().mean() == pytest.approx(0.5, abs=0.1)
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, 0, -1]
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.1)
    assert (crops[:, 1, 0, 0] < crops[:, 1, -1, 0]).all()  # never upside down
    for channel, side in ((0, shape[1]), (1, shape[0])):
        assert crops[:, channel].min() * max(shape) < 2
        assert crops[:, channel].max() * max(shape) > side - 3


def test_a_crop_from_a_pyramid_is_about_the_crop_from_the_image() -> None:
    image = torch.nn.functional.avg_pool2d(torch.rand(3, 264, 264), 9, stride=1) * 2 - 1  # smooth, 256×256
    for seed in range(20):
        fast, exact = (random_crop(levels, 16, np.random.default_rng(seed)) for levels in (pyramid(image, 16), [image]))
        assert (fast - exact).abs().mean() < 0.04


def test_crops_that_are_shrunk_are_antialiased() -> None:
    noise = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    crops = [random_crop([noise], 16, np.random.default_rng(seed)) for seed in range(60)]
    spread = [crop.std().item() for crop in crops]
    assert min(spread) < 0.2  # shrunk 4 times: means of 16 values of standard deviation 0.58
    assert max(spread) > 0.5  # hardly shrunk


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 1), (2, 300)])
def test_images_smaller_than_the_crop_are_scaled_up(shape: tuple[int, int]) -> None:
    crop = random_crop([torch.rand(3, *shape)], 16, np.random.default_rng(0))
    assert crop.shape == (3, 16, 16)


def test_crops_own_their_memory() -> None:
    image = torch.zeros(3, 16, 16)
    for seed in range(8):  # mirrored or not
        random_crop([image], 16, np.random.default_rng(seed)).fill_(1)
    assert image.max() == 0


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (3, 1), (20, 1), (100, 5), (1000, 50)])
def test_five_percent_and_at_least_one_image_are_held_out(count: int, held_out: int) -> None:
    train, held = hold_out([f"{number}.jpg" for number in range(count)])
    assert len(held) == held_out
    assert sorted(train + held) == list(range(count))


def test_whether_an_image_is_held_out_depends_on_its_name_alone() -> None:
    names = [f"{number}.jpg" for number in range(1000)]
    held = {names[position] for position in hold_out(names)[1]}
    backward = names[::-1]
    assert {backward[position] for position in hold_out(backward)[1]} == held
    with_one_more = [*names, "new.jpg"]
    assert len(held - {with_one_more[position] for position in hold_out(with_one_more)[1]}) <= 1


# --- photographs


def test_the_photographs_are_whole_and_split_without_overlap() -> None:
    train, held_out = photographs("train"), photographs("held-out")
    assert set(held_out) == {"chelsea", "coffee"}
    assert not set(train) & set(held_out)
    assert held_out["chelsea"].shape == (3, 300, 451)
    assert held_out["coffee"].shape == (3, 400, 600)
    assert train["rocket"].shape == (3, 427, 640)
    assert "astronaut" not in train  # the only face: for reports
    for image in (train | held_out).values():
        assert image.shape[0] == 3
        assert -1 <= image.min() < image.max() <= 1


def test_the_photographs_are_the_ones_that_scikit_image_gives_out() -> None:
    import skimage.data

    wanted = torch.from_numpy(skimage.data.chelsea() / 127.5 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(photographs("held-out")["chelsea"], wanted)


def test_an_unknown_split_of_the_photographs_is_refused() -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'held-out', got 'test'"):
        photographs("test")  # type: ignore[arg-type]


def test_every_photograph_has_its_origin_and_licence_written_down() -> None:
    text = (Path(__file__).parents[2] / "LICENSES" / "sample-photographs.md").read_text()
    for split in ("train", "held-out"):
        for name in photographs(split):  # type: ignore[arg-type]
            assert f"`{name}`" in text


# --- folders


def test_a_folder_is_searched_with_its_subfolders_in_the_order_of_names(tmp_path: Path) -> None:
    flat_images(tmp_path / "b", 2)
    flat_images(tmp_path / "a" / "deep", 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "c.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "table.h5").write_text("no image")
    flat_images(tmp_path / ".hidden", 1)
    (tmp_path / "._c.jpg").write_bytes(b"what macOS leaves behind")
    names = sorted(Folder(str(tmp_path), "train", 64).names + Folder(str(tmp_path), "held-out", 64).names)
    assert names == ["a/deep/00.png", "a/deep/01.png", "b/00.png", "b/01.png", "c.JPG"]


def test_training_and_held_out_images_are_different_files(tmp_path: Path) -> None:
    folder = str(flat_images(tmp_path, 20))
    train = {number_of(crop) for crop in image_dataset(folder, 8, length=100)}
    held_out = {number_of(crop) for crop in image_dataset(folder, 8, split="held-out", length=100)}
    assert len(held_out) == 1
    assert train == set(range(20)) - held_out


def test_the_names_of_the_built_in_sources_win_over_folders_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat_images(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    assert image_dataset("photos", 8)[0].std() > 0.01
    assert image_dataset("./photos", 8)[0].std() < 1e-6


def test_images_take_turns(tmp_path: Path) -> None:
    crops = image_dataset(str(flat_images(tmp_path, 5)), 8, length=8)
    numbers = [number_of(crop) for crop in crops]
    assert len(set(numbers[:4])) == 4
    assert numbers[4:] == numbers[:4]


def test_a_single_image_is_on_both_sides_and_that_is_said(tmp_path: Path) -> None:
    flat_images(tmp_path, 1)
    with pytest.warns(UserWarning, match="one image only, so it is both trained on and held out") as caught:
        parts = [image_dataset(str(tmp_path), 8, split=split, length=4) for split in ("train", "held-out")]
    assert [{*map(number_of, part)} for part in parts] == [{0}, {0}] and len(caught) == 1


@pytest.mark.parametrize("name", ["missing", "deeper/than/two/missing", "./missing/folder"])
def test_a_missing_folder_is_named_with_what_was_looked_for(name: str) -> None:
    with pytest.raises(ValueError, match=r"missing.*: expected a folder with image files \(.*\), got no such folder"):
        image_dataset(name, 8)


def test_an_empty_folder_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: found no image files \(\.jpg, .*\) in this folder"):
        image_dataset(str(tmp_path), 8)


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    flat_images(tmp_path, 1)
    with pytest.raises(ValueError, match=r"00\.png: expected a folder .*, got a file"):
        image_dataset(str(tmp_path / "00.png"), 8)


# --- unreadable files


def test_decoded_images_stay_in_memory_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / f"{number}.png")
    images = Folder(str(tmp_path), "train", 16)
    first = [images.load(number) for number in range(len(images))]
    assert all(images.load(number) is levels for number, levels in enumerate(first))
    assert [tuple(level.shape) for level in first[0]] == [(3, 48, 64), (3, 24, 32)]
    assert all(level.dtype == torch.uint8 for level in first[0])

    data = image_dataset(str(tmp_path), 16)
    crops = [data[index] for index in range(14)]
    assert all(torch.equal(image_dataset(str(tmp_path), 16)[index], crop) for index, crop in enumerate(crops))

    monkeypatch.setattr("klvae_edu.data.folders.CACHE_BYTES", 3 * 64 * 48 * 3)
    limited = Folder(str(tmp_path), "train", 16)
    loaded = [limited.load(number) for number in range(len(limited))]
    kept = [limited.load(number) is levels for number, levels in enumerate(loaded)]
    assert kept == [True, True, *[False] * (len(limited) - 2)]  # with its smaller copies an image takes 4/3


def test_an_image_of_16_bits_is_not_rounded_to_8(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with pytest.warns(UserWarning, match="one image only"):
        (full, *_) = Folder(str(tmp_path), "train", 64).load(0)
    torch.testing.assert_close(full[0], torch.from_numpy(values / 65535 * 2 - 1).float(), rtol=0, atol=1e-7)


def test_an_unreadable_file_is_replaced_by_the_next_and_named_at_the_end(tmp_path: Path) -> None:
    flat_images(tmp_path, 10)
    names = Folder(str(tmp_path), "train", 64).names
    bad, following = names[3], names[4]
    (tmp_path / bad).write_bytes(b"damaged")
    data = image_dataset(str(tmp_path), 8, length=20)
    assert data.report() is None  # nothing has been read yet
    assert number_of(data[3]) == number_of(data[4]) == int(following[:2])
    list(data)
    report = data.report()
    assert report is not None
    assert report.startswith("1 of 9 images could not be read")
    assert report.count(bad) == 1
    assert "not in any image format" in report


def test_replacements_do_not_depend_on_the_order_of_reading(tmp_path: Path) -> None:
    flat_images(tmp_path, 10)
    damage(tmp_path, 2, 3, 4, 8)
    one, two = (image_dataset(str(tmp_path), 8, length=30) for _ in range(2))
    backward = [two[index] for index in reversed(range(30))]
    assert all(torch.equal(a, b) for a, b in zip(one, reversed(backward), strict=True))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_count_unreadable_files_together(tmp_path: Path, context: str) -> None:
    flat_images(tmp_path, 12)
    damage(tmp_path, *range(12))
    names = Folder(str(tmp_path), "train", 64).names
    for name in [*names[::2], *Folder(str(tmp_path), "held-out", 64).names]:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    data = image_dataset(str(tmp_path), 8, length=24)
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=context)
    assert sum(len(batch) for batch in loader) == 24
    report = data.report() or ""
    assert report.startswith("5 of 11 images could not be read")
    assert [name in report for name in names] == [position % 2 == 1 for position in range(11)]


def test_a_long_report_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number:02}.png").write_bytes(b"damaged")
    train = Folder(str(tmp_path), "train", 64).names
    Image.new("RGB", (8, 8)).save(tmp_path / train[-1])
    data = image_dataset(str(tmp_path), 8, length=57)
    data[0]
    report = data.report() or ""
    assert report.count("not in any image format") == 20
    assert "and 36 more" in report


def test_a_folder_of_unreadable_files_only_is_an_error(tmp_path: Path) -> None:
    flat_images(tmp_path, 3)
    damage(tmp_path, 0, 1, 2)
    data = image_dataset(str(tmp_path), 8)
    with pytest.raises(ValueError, match=r"none of the images can be read.*\n.*\.png: not in any image format"):
        data[0]


def test_images_take_turns_in_an_order_of_their_own_not_by_name(tmp_path: Path) -> None:
    flat_images(tmp_path, 20)
    names = Folder(str(tmp_path), "train", 64).names
    assert sorted(names) != names == Folder(str(tmp_path), "train", 64).names


def test_a_file_that_vanishes_before_it_is_decoded_is_replaced_too(tmp_path: Path) -> None:
    flat_images(tmp_path, 5)
    data = image_dataset(str(tmp_path), 8, length=8)
    name = Folder(str(tmp_path), "train", 64).names[0]
    (tmp_path / name).unlink()
    assert number_of(data[0]) == number_of(data[1])
    assert "No such file" in (data.report() or "")


def test_a_report_names_all_of_them_on_request(tmp_path: Path) -> None:
    for number in range(61):
        (tmp_path / f"{number:02}.png").write_bytes(b"damaged")
    train = Folder(str(tmp_path), "train", 64).names
    Image.new("RGB", (8, 8)).save(tmp_path / train[0])
    data = image_dataset(str(tmp_path), 8, length=len(train))
    data[1]
    whole = data.report(limit=None) or ""
    assert [name in whole for name in train] == [False] + [True] * (len(train) - 1)
    assert "more" not in whole
    assert (data.report(limit=2) or "").count("not in any image format") == 2
    assert f"and {len(train) - 3} more" in (data.report(limit=2) or "")


# --- several sources


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_sources_take_turns_each_with_its_own_images_in_order(split: Any) -> None:
    parts = [image_dataset(name, 16, split=split, seed=3, length=4) for name in ("photos", "dead-leaves")]
    mixed = image_dataset("photos+dead-leaves", 16, split=split, seed=3, length=7)
    assert isinstance(mixed, Mixture)
    assert len(mixed) == 7
    for index, image in enumerate(mixed):
        assert torch.equal(image, parts[index % 2][index // 2])


def test_every_image_of_a_source_has_its_turn(tmp_path: Path) -> None:
    """If image i of the mixture were image i of a part, two sources would skip every second image."""
    source = f"dead-leaves+{flat_images(tmp_path, 5)}"
    mixed = image_dataset(source, 8, length=8)
    assert len({number_of(mixed[index]) for index in (1, 3, 5, 7)}) == 4


def test_a_mixture_has_the_length_that_was_asked_for() -> None:
    for length in (1, 2, 3):
        mixed = image_dataset("dead-leaves+photos", 16, length=length)
        assert len(mixed) == len(list(mixed)) == length
    assert len(image_dataset("photos+dead-leaves", 16)) == 2**20
    assert len(image_dataset("photos+dead-leaves", 16, split="held-out")) == 256


def test_a_mixed_image_is_a_pure_function_of_seed_and_index() -> None:
    one, two, other = (image_dataset("photos+dead-leaves", 16, seed=seed, length=12) for seed in (4, 4, 5))
    backward = {index: two[index] for index in reversed(range(12))}
    assert all(torch.equal(one[index], backward[index]) for index in range(12))
    assert not any(torch.equal(one[index], other[index]) for index in range(12))


def test_mixed_held_out_images_are_of_held_out_images_whatever_the_seed() -> None:
    one, two = (image_dataset("photos+dead-leaves", 16, split="held-out", seed=seed, length=12) for seed in (0, 1))
    assert all(torch.equal(one[index], two[index]) for index in range(12))
    train = {image.numpy().tobytes() for image in image_dataset("photos+dead-leaves", 16, length=256)}
    assert not train & {image.numpy().tobytes() for image in one}


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_give_the_same_mixture_and_report_what_they_could_not_read(tmp_path: Path, workers: int) -> None:
    for part in ("a", "b"):
        flat_images(tmp_path / part, 6)
    bad = {part: Folder(str(tmp_path / part), "train", 64).names[0] for part in ("a", "b")}
    source = f"{tmp_path / 'a'}+dead-leaves+{tmp_path / 'b'}"
    whole = torch.stack([*image_dataset(source, 8, length=18)])
    for part, name in bad.items():
        (tmp_path / part / name).write_bytes(b"damaged")
    data = image_dataset(source, 8, length=18)
    found = torch.stack([*DataLoader(data, batch_size=None, num_workers=workers)])
    differ = [index for index in range(18) if not torch.equal(found[index], whole[index])]
    assert differ == [0, 2, 15, 17]  # crops 0 and 5 of either folder, whose first image is damaged
    report = data.report() or ""
    assert report.count("1 of 5 images could not be read") == 2
    assert all(str(tmp_path / part / name) in report for part, name in bad.items())
    assert (data.report(limit=0) or "").count("and 1 more") == 2


def test_where_all_is_well_a_mixture_has_nothing_to_report() -> None:
    data = image_dataset("photos+dead-leaves", 16, length=4)
    list(data)
    assert data.report() is None
    assert data.report(limit=None) is None


def test_a_folder_with_a_plus_in_its_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flat_images(tmp_path / "cats+dogs", 3)
    flat_images(tmp_path / "photos+dead-leaves", 3)
    assert joined_sources("cats+dogs") == ["cats+dogs"]
    assert joined_sources("photos+cats+dogs+dead-leaves") == ["photos", "cats+dogs", "dead-leaves"]
    assert joined_sources("hf:cats+dogs+photos") == ["hf:cats+dogs", "photos"]
    assert image_dataset("cats+dogs", 8)[0].std() < 1e-6
    assert image_dataset("photos+dead-leaves", 8)[0].std() < 1e-6


def test_a_file_with_a_plus_in_its_name_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a+b.zip").touch()
    assert joined_sources(f"sprites+{tmp_path}/a+b.zip") == ["sprites", f"{tmp_path}/a+b.zip"]


def test_a_mixture_may_have_a_data_set_in_it(tmp_path: Path) -> None:
    source = saved(tmp_path, "save_to_disk", {"train": [6, 6], "test": [9]})
    assert [number_of(image_dataset(f"dead-leaves+{source}", 8)[index]) for index in (1, 3)] == [6, 6]
    assert number_of(image_dataset(f"{source}+photos", 8, split="held-out")[0]) == 9


@pytest.mark.parametrize("source", ["", "+", "photos+", "+photos", "photos++dead-leaves", "photos+photos"])
def test_an_empty_source_and_one_that_comes_twice_are_refused(source: str) -> None:
    with pytest.raises(ValueError) as error:
        image_dataset(source, 8)
    assert str(error.value) == f"expected a source, or different ones with + between them, got {source!r}"


def test_a_part_that_is_missing_is_named_and_streams_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="missing: expected a folder with image files"):
        image_dataset("photos+missing", 8)
    with pytest.raises(ValueError, match=r"streaming is for one Hugging Face data set; 'hf:a/b\+photos' are 2 sources"):
        image_dataset("hf:a/b+photos", 8, streaming=True)


def test_the_folders_of_a_source_are_those_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "a", "b"):
        (tmp_path / name).mkdir()
    assert source_folders("photos+dead-leaves+a+hf:b+missing+name/on-the-hub") == [Path("a"), Path("b")]
    assert source_folders("./photos") == [Path("photos")]


# --- Hugging Face data sets


def hub_data(tmp_path: Path, splits: dict[str, list[int]], bad: tuple[int, ...] = ()) -> Any:
    """Make a `DatasetDict` of flat images with labels; images in `bad` are damaged."""
    import datasets

    features = datasets.Features({"label": datasets.Value("int64"), "photo": datasets.Image()})
    source = flat_images(tmp_path / "source", LEVELS)
    damage(source, *bad)
    rows = {
        name: {
            "label": numbers,
            "photo": [{"bytes": (source / f"{n:02}.png").read_bytes(), "path": f"{n:02}.png"} for n in numbers],
        }
        for name, numbers in splits.items()
    }
    return datasets.DatasetDict({n: datasets.Dataset.from_dict(r, features=features) for n, r in rows.items()})


def saved(tmp_path: Path, layout: str, splits: dict[str, list[int]], bad: tuple[int, ...] = ()) -> str:
    """Write the data of `hub_data` to a folder in one of the layouts of `datasets`."""
    data, folder = hub_data(tmp_path, splits, bad), tmp_path / layout
    if layout == "save_to_disk":
        data.save_to_disk(str(folder))
    elif layout == "parquet":
        folder.mkdir()
        for name, split in data.items():
            split.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    else:  # imagefolder
        for name, split in data.items():
            (folder / name).mkdir(parents=True)
            for row in split.cast_column("photo", __import__("datasets").Image(decode=False)):
                (folder / name / row["photo"]["path"]).write_bytes(row["photo"]["bytes"])
    return f"hf:{folder}"


def numbers_in(data: Any, count: int) -> list[int]:
    return [number_of(crop) for crop in itertools.islice(iter(data), count)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", ["save_to_disk", "parquet", "imagefolder"])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_local_data_sets_are_read_in_every_layout(tmp_path: Path, layout: str, streaming: bool, name: str) -> None:
    source = saved(tmp_path, layout, {"train": [0, 1, 2, 3, 4, 5], name: [6, 7]})
    train = image_dataset(source, 8, length=12, streaming=streaming)
    held_out = image_dataset(source, 8, split="held-out", length=4, streaming=streaming)
    assert isinstance(train, IterableDataset) == streaming
    assert sorted(numbers_in(train, 12)) == sorted([*range(6), *range(6)])
    assert numbers_in(held_out, 4) == [6, 7, 6, 7]
    assert next(iter(train)).shape == (3, 8, 8)
    assert train.report() is None


def test_a_folder_in_the_format_of_datasets_is_recognised_without_the_prefix(tmp_path: Path) -> None:
    for layout in ("save_to_disk", "parquet"):
        source = saved(tmp_path, layout, {"train": [3, 3, 3]}).removeprefix("hf:")
        assert number_of(image_dataset(source, 8)[0]) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_without_a_split_of_its_own_a_fixed_part_of_train_is_held_out(tmp_path: Path, streaming: bool) -> None:
    import datasets

    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(100)]
    data = datasets.Dataset.from_dict({"image": [Image.fromarray(p) for p in pixels]})
    data.save_to_disk(str(tmp_path / "data"))
    source, arguments = f"hf:{tmp_path / 'data'}", {"length": 300, "streaming": streaming}

    def contents(split: Any) -> set[bytes]:
        crops = itertools.islice(iter(image_dataset(source, 8, split=split, **arguments)), 300)
        return {min(crop.numpy().tobytes(), crop.flip(-1).numpy().tobytes()) for crop in crops}  # mirrored or not

    train, held_out = contents("train"), contents("held-out")
    assert not train & held_out
    assert len(train | held_out) == 100
    assert 1 <= len(held_out) <= 12
    assert contents("held-out") == held_out


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_of_a_data_set_are_replaced_and_named(tmp_path: Path, streaming: bool, workers: int) -> None:
    source = saved(tmp_path, "save_to_disk", {"train": list(range(8)), "test": [9]}, bad=(2, 5))
    data = image_dataset(source, 8, length=24, streaming=streaming)
    numbers = [number_of(crop) for crop in DataLoader(data, batch_size=None, num_workers=workers)]
    assert len(numbers) == 24
    assert set(numbers) == {0, 1, 3, 4, 6, 7}
    report = data.report() or ""
    assert report.startswith("2 ")
    assert report.count("02.png") == report.count("05.png") == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_undecodable_images_only_is_an_error(tmp_path: Path, streaming: bool) -> None:
    source = saved(tmp_path, "save_to_disk", {"train": [1, 2], "test": [9]}, bad=(1, 2))
    with pytest.raises(ValueError, match=r"none of .*images can be read.*\n.*01\.png"):
        next(iter(image_dataset(source, 8, streaming=streaming)))


def test_rows_without_an_image_are_replaced(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [None, *(Image.new("RGB", (8, 8), (10 * n,) * 3) for n in range(1, 5))]}
    splits = {name: datasets.Dataset.from_dict(rows, features=features) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    data = image_dataset(f"hf:{tmp_path / 'data'}", 8, length=5)
    assert numbers_in(data, 5) == [1, 1, 2, 3, 4]
    assert "row 0: no image here" in (data.report() or "")


def test_a_data_set_without_images_is_named_with_its_columns(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"data: expected a column of images, got the columns: text \(string\), label"):
        image_dataset(f"hf:{tmp_path / 'data'}", 8)


@pytest.mark.parametrize("source", ["hf:nobody/nothing", "nobody/nothing", "hf:nothing"])
def test_a_hub_id_without_a_network_says_so(source: str) -> None:
    with pytest.raises(ValueError, match=r"nothing: neither a folder here nor .* cannot be reached .* network"):
        image_dataset(source, 8)


def test_the_environment_variable_hf_hub_offline_is_respected() -> None:
    code = "from klvae_edu.data import image_dataset; image_dataset('hf:nobody/nothing', 8)"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "ValueError: nobody/nothing: neither a folder here" in run.stderr
    assert "Retry" not in run.stderr


def test_without_datasets_installed_the_command_to_install_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"need `datasets`: pip install 'klvae-edu\[notebooks\]'"):
        image_dataset("hf:nobody/nothing", 8)


def test_reading_photographs_loads_neither_scikit_image_nor_datasets() -> None:
    code = "import sys; from klvae_edu.data import image_dataset; image_dataset('photos', 8)[0]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "PIL" in loaded
    assert not {"skimage", "datasets", "matplotlib", "huggingface_hub"} & set(loaded)


def test_a_folder_that_datasets_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"data: cannot be read as a data set: "):
        image_dataset(f"hf:{tmp_path / 'data'}", 8)


# --- streams


def stream_of(tmp_path: Path, shards: int, **arguments: Any) -> Any:
    """Make a stream of `shards` parquet files with five flat images each."""
    data, folder = hub_data(tmp_path, {"train": list(range(5 * shards)), "test": [0]}), tmp_path / "stream"
    folder.mkdir()
    for shard in range(shards):
        rows = data["train"].select(range(5 * shard, 5 * shard + 5))
        rows.to_parquet(str(folder / f"train-{shard:05}-of-{shards:05}.parquet"))
    data["test"].to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return image_dataset(f"hf:{folder}", 8, streaming=True, **arguments)


@pytest.mark.parametrize(("shards", "workers"), [(4, 0), (4, 2), (3, 2), (1, 2)])
def test_in_one_pass_the_workers_see_every_image_once(tmp_path: Path, shards: int, workers: int) -> None:
    stream = stream_of(tmp_path, shards, length=5 * shards)
    seen = [number_of(crop) for crop in DataLoader(stream, batch_size=None, num_workers=workers)]
    assert len(seen) == 5 * shards
    if shards % max(workers, 1) == 0 or shards == 1:  # otherwise some workers need a second pass for their share
        assert sorted(seen) == list(range(5 * shards))


def test_a_stream_too_small_to_hold_images_out_says_so(tmp_path: Path) -> None:
    source = saved(tmp_path, "parquet", {"train": [7]})
    assert number_of(next(iter(image_dataset(source, 8, streaming=True)))) == 7
    with pytest.raises(ValueError, match="too small to hold 5 % out of a stream: read it without streaming"):
        next(iter(image_dataset(source, 8, split="held-out", streaming=True)))


def test_a_training_stream_has_no_end_and_another_order_in_each_pass(tmp_path: Path) -> None:
    seen = numbers_in(stream_of(tmp_path, 4), 60)
    passes = [seen[:20], seen[20:40], seen[40:]]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_stream_is_shuffled_by_its_seed(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, 4, length=20, seed=1)
    other = image_dataset(f"hf:{tmp_path / 'stream'}", 8, streaming=True, length=20, seed=2)
    assert numbers_in(stream, 20) == numbers_in(stream, 20)
    assert numbers_in(stream, 20) != numbers_in(other, 20)
    assert numbers_in(stream, 20) != sorted(numbers_in(stream, 20))
