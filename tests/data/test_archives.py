"""Tar and zip files: every image in them is a row, whatever its suffix, and a truncated one is said."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from klvae_edu.data import image_dataset
from klvae_edu.data.all_images import AllImages

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".PNG": "PNG", ".webp": "WEBP"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def content(name: str, grey: int) -> bytes:
    file, suffix = io.BytesIO(), Path(name).suffix
    if suffix not in KINDS:
        return b"a cat"
    Image.new("RGB", (8, 8), (grey,) * 3).save(file, KINDS[suffix])
    return file.getvalue()


def tar(path: Path, names: Iterable[str]) -> Path:
    """Write a tar file; image i is of the grey i."""
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for number, name in enumerate(names):
            data = content(name, number)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def greys(source: object) -> list[int]:
    images = AllImages(str(source), 8)
    return [round((images.load(number).mean().item() + 1) * 127.5) for number in range(len(images))]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_shards_is_a_data_set_with_and_without_the_prefix(tmp_path: Path, streaming: bool) -> None:
    for shard in range(2):
        tar(tmp_path / f"{shard:05}.tar", [f"{n:05}{end}" for n in range(5) for end in (".jpg", ".txt")])
    for source in (str(tmp_path), f"hf:{tmp_path}"):
        data = image_dataset(source, 8, length=6, streaming=streaming)
        assert all(crop.shape == (3, 8, 8) for crop in data) and data.report() is None
    assert Counter(greys(tmp_path)) == Counter([0, 2, 4, 6, 8] * 2)


def test_images_of_several_suffixes_are_all_read_also_those_that_begin_late(tmp_path: Path) -> None:
    names = [f"{n:03}{'.jpg' if n < 8 else '.png'}" for n in range(12)] + ["012.PNG", "013.webp"]
    assert greys(tar(tmp_path / "late.tar", names)) == [*range(14)]


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz"])
def test_a_plain_archive_is_read_with_its_folders_and_dots_in_names(tmp_path: Path, name: str) -> None:
    tar(tmp_path / name, ["a/1.png", "a/readme.md", "b/1.png", "b/photo.v2.png", "b/._1.png", "b/x.y.z.jpg"])
    assert greys(tmp_path) == [0, 2, 3, 5]


def test_of_a_sample_the_image_with_the_plain_name_is_read_and_another_can_be_chosen(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [f"{n}{end}" for n in range(3) for end in (".jpg", ".mask.png", ".json")])
    with pytest.warns(UserWarning, match=r"mask\.png are not read; #FIELD chooses another"):
        assert greys(tmp_path) == [0, 3, 6]
    assert greys(f"{tmp_path}#mask.png") == [1, 4, 7]
    with pytest.raises(ValueError, match=r"expected a field of its archives \(jpg, mask\.png\), got 'depth'"):
        greys(f"{tmp_path}#depth")


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    assert len(greys(tar(tmp_path / "a.tar", ["0.png"]))) == 1
    assert len(greys(tar(tmp_path / "a.tar", [f"{n}.png" for n in range(30)]))) == 30


def test_a_name_that_is_no_text_is_no_obstacle(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", ["0.png", os.fsdecode(b"gr\xfc\xdfe.png")])
    assert greys(tmp_path) == [0, 1]


def test_shards_with_another_suffix_each_and_a_varying_number_of_images_are_read_whole(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [f"{n}.jpg" for n in range(6)])
    tar(tmp_path / "1.tar", [f"{n}.png" for n in range(6)])
    tar(tmp_path / "2.tar", [f"{n}.{image}.jpg" for n in range(4) for image in range(1 + n % 3)])
    assert len(greys(tmp_path)) == 6 + 6 + 7


def test_a_tar_file_without_images_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", ["0.txt", "1.txt"])
    with pytest.raises(ValueError, match=r"a\.tar: no image files in it"):
        greys(tmp_path)


def test_what_an_archive_has_instead_of_images_is_said_in_a_short_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", b"")
    with pytest.raises(ValueError, match=r"outer\.zip: no image files in it; it has 1 \.zip$"):
        greys(tmp_path / "outer.zip")
    path = tar(tmp_path / "many.tar", [f"x.{n:03}.png" for n in range(100)])
    with pytest.raises(ValueError, match=r"007\.png and 92 others\), got 'depth'"):
        greys(f"{path}#depth")


NAMES = ("a.tar", "A.TAR", "a.tgz", "a.tar.bz2", "a.tar.xz", "a+b.tar", "x [1].tar", "f [1]/a.tar")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("streaming", [False, True])
def test_an_archive_is_read_by_any_name_also_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, streaming: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    tar(tmp_path / name, [f"{n}.png" for n in range(4)])
    for source in (name, f"./{name}", f"hf:{name}"):
        assert len([*image_dataset(source, 8, split="train", length=4)]) == 4
        assert greys(source) == [0, 1, 2, 3]
    assert greys(Path(name).parent) == [0, 1, 2, 3]
    assert next(iter(image_dataset(name, 8, streaming=streaming))).shape == (3, 8, 8)


def test_an_archive_is_a_part_of_a_mixture_and_a_table_is_read_by_a_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "a.tar", [f"{n}.png" for n in range(4)])
    assert len([*image_dataset("sprites+a.tar", 8, length=4)]) == 4
    parquet.write_table(pa.table({"image": [content("a.png", n) for n in range(4)]}), tmp_path / "x [1].parquet")
    assert greys("x [1].parquet") == greys("./x [1].parquet") == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize("late", ["edit.png", "txt"])
def test_every_image_of_a_plain_archive_is_read_and_of_a_web_dataset_what_is_left_out_is_counted(
    tmp_path: Path, suffix: str, late: str
) -> None:
    names = [f"{n:03}.png" for n in range(105)] + [
        f"{n:03}.{end}" for n in range(105, 108) for end in ("edit.png", "png")
    ]
    names += ["107.txt"] if late == "txt" else []
    path = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, name in enumerate(names):
                archive.writestr(name, content(name, number))
    else:
        tar(path, names)
    if late == "txt":
        with pytest.warns(UserWarning, match=r"of the images in its archives 3 × edit\.png are not read"):
            assert len(greys(tmp_path)) == 108
    else:
        assert greys(tmp_path) == [*range(111)]


def test_a_file_that_was_cut_off_is_an_error_or_a_warning_and_never_silent(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [f"{n}.png" for n in range(6)])
    whole = path.read_bytes()
    entry = 2 * tarfile.BLOCKSIZE  # header and image
    path.write_bytes(whole[: 3 * entry])
    with pytest.warns(UserWarning, match=r"1 tar files have no end mark and may be cut off, such as .*a\.tar"):
        assert len(greys(path)) == 3
    path.write_bytes(whole[: 3 * entry + tarfile.BLOCKSIZE])
    with pytest.raises(ValueError, match=r"a\.tar.*unexpected end of data"):
        greys(path)


@pytest.mark.parametrize("readers", [1, 2])
def test_the_shards_of_a_stream_are_shared_out(tmp_path: Path, readers: int) -> None:
    for shard in range(4):
        tar(tmp_path / f"{shard}.tar", [f"{n}.png" for n in range(6)])
    data: Any = image_dataset(str(tmp_path), 8, streaming=True)
    data.has_own_split = True  # nothing is held out
    seen = [number for reader in range(readers) for number in _one_pass(data, reader, readers)]
    assert len(seen) == 24


def _one_pass(data: Any, reader: int, readers: int) -> list[int]:
    crops = []
    for crop, place in data.crops(reader, readers):
        if place.epoch > 0:
            break
        crops.append(round((crop.mean().item() + 1) * 127.5))
    return crops
