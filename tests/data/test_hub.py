"""Hugging Face data sets: names with configuration and column, columns of bytes, and what is not used is said."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from klvae_edu.data import image_dataset
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.columns import holds_images
from klvae_edu.data.crops import hold_out
from klvae_edu.data.hub import HubSource, parse_source
from klvae_edu.data.sources import is_data_set


def png(grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (grey,) * 3).save(file, "PNG")
    return file.getvalue()


GREYS = {"image": 0, "depth": 100, "img": 200}


def greys_of(source: object, **options: Any) -> set[int]:
    """Return the greys of the first crops of a source."""
    crops = [crop for crop, _ in zip(image_dataset(str(source), 8, length=4, **options), range(4), strict=False)]
    return {round((crop.mean().item() + 1) * 127.5) for crop in crops}


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path.parent


def image_columns(folder: Path, *names: str) -> Path:
    """Write a Parquet file with columns of images."""
    features = datasets.Features({name: datasets.Image() for name in names})
    rows = {name: [{"bytes": png(GREYS[name]), "path": None}] * 4 for name in names}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return folder


@pytest.fixture(autouse=True)
def own_cache_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# --- names


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("owner/name", ("owner/name", None, None)),
        ("hf:owner/name:en", ("owner/name", "en", None)),
        ("hf:owner/name#img", ("owner/name", None, "img")),
        ("hf:name:2023-10.v1#conditioning image", ("name", "2023-10.v1", "conditioning image")),
        ("hf:/no/such/folder", ("/no/such/folder", None, None)),
    ],
)
def test_a_name_may_have_a_configuration_and_a_column(source: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parse_source(source) == HubSource(*parts)


def test_a_folder_that_exists_is_not_split(tmp_path: Path) -> None:
    odd = tmp_path / "a:b#c"
    odd.mkdir()
    assert parse_source(f"hf:{odd}") == HubSource(str(odd))
    assert parse_source(f"hf:{odd}:en#img") == HubSource(str(odd), "en", "img")
    assert parse_source(f"{odd}#img") == HubSource(str(odd), None, "img")


def test_names_of_the_hub_are_recognised_with_configuration_and_column(tmp_path: Path) -> None:
    assert is_data_set("owner/name") and is_data_set("owner/name:en#img")
    assert not is_data_set("photos") and not is_data_set(str(tmp_path)) and not is_data_set("./missing")


# --- configurations


@pytest.fixture
def two_configurations(tmp_path: Path) -> Path:
    for name, grey in (("dark", 0), ("bright", 200)):
        parquet(tmp_path / name / "train.parquet", image=[png(grey)] * 4)
    entries = "\n".join(f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in ("dark", "bright"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{entries}\n---\n")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_the_configuration_is_chosen_after_a_colon(two_configurations: Path, streaming: bool) -> None:
    assert greys_of(f"hf:{two_configurations}:dark", streaming=streaming) == {0}
    assert greys_of(f"hf:{two_configurations}:bright#image", streaming=streaming) == {200}


@pytest.mark.parametrize(("wanted", "got"), [("", "none was named"), (":green", "got 'green'")])
def test_a_missing_configuration_is_an_error_that_lists_them(two_configurations: Path, wanted: str, got: str) -> None:
    with pytest.raises(ValueError, match=rf"expected a configuration after a colon, one of 'dark', 'bright'; {got}"):
        image_dataset(f"hf:{two_configurations}{wanted}", 8)


def test_a_saved_data_set_has_none(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"image": [1]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="a folder written by save_to_disk has no configurations"):
        image_dataset(f"hf:{tmp_path / 'set'}:en", 8)


# --- columns


@pytest.mark.parametrize(
    ("names", "column"), [(("depth", "img", "image"), "image"), (("depth", "img"), "img"), (("depth", "img2"), "depth")]
)
def test_of_several_columns_one_is_preferred_by_its_name_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], column: str
) -> None:
    monkeypatch.setitem(GREYS, "img2", 50)
    folder = image_columns(tmp_path / "set", *names)
    message = rf"of the columns {', '.join(names)}, {column} is read; #COLUMN after the name chooses"
    with pytest.warns(UserWarning, match=message):
        assert greys_of(folder) == {GREYS[column]}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_is_named_is_read_in_silence(tmp_path: Path, silent: None, streaming: bool) -> None:
    folder = image_columns(tmp_path / "set", "image", "depth")
    assert greys_of(f"hf:{folder}#depth", streaming=streaming) == {100}


def test_a_missing_column_and_one_of_something_else_are_errors_that_list_the_columns(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", image=[png()] * 2, label=[0] * 2)
    for column in ("picture", "label"):
        with pytest.raises(
            ValueError, match=rf"'{column}' to be a column of images, got .*: image \(binary\), label \("
        ):
            image_dataset(f"hf:{tmp_path}#{column}", 8)


ENCODED = {
    "bytes": pa.array([png(100)] * 4),
    "large bytes": pa.array([png(100)] * 4, pa.large_binary()),
    "bytes and no path": pa.array([{"bytes": png(100), "path": None}] * 4),
    "path and bytes": pa.array([{"path": "a.png", "bytes": png(100)}] * 4),
    "bytes and more": pa.array([{"bytes": png(100), "path": "a.png", "height": 8}] * 4),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ENCODED)
def test_bytes_in_parquet_files_of_other_programs_are_images(tmp_path: Path, kind: str, streaming: bool) -> None:
    parquet(tmp_path / "train.parquet", label=[0] * 4, picture=ENCODED[kind])
    assert greys_of(tmp_path, streaming=streaming) == {100}
    assert greys_of(f"{tmp_path / 'train.parquet'}#picture", streaming=streaming) == {100}


def test_columns_of_images_win_over_columns_of_bytes(tmp_path: Path, silent: None) -> None:
    features = datasets.Features({"embedding": datasets.Value("binary"), "image": datasets.Image()})
    rows = {"embedding": [b"0123"] * 4, "image": [{"bytes": png(), "path": None}] * 4}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    assert greys_of(tmp_path) == {0}


def test_lists_of_images_are_refused_by_their_type(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", images=[[png(), png()]] * 2)
    with pytest.raises(ValueError, match=r"expected a column of images, got the columns: images \(List\("):
        image_dataset(f"hf:{tmp_path}", 8)


# --- what is read


def test_splits_that_are_not_used_are_named_and_encoding_reads_all(tmp_path: Path) -> None:
    for name, rows in (("train", 3), ("validation", 2), ("test", 4)):
        parquet(tmp_path / f"{name}.parquet", image=[png()] * rows)
    with pytest.warns(UserWarning, match="train is trained on, validation is held out, not used: test"):
        image_dataset(str(tmp_path), 8)
    assert len(AllImages(str(tmp_path), 8)) == 9


@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_datasets_takes_for_no_part_of_a_folder_are_counted(tmp_path: Path, streaming: bool) -> None:
    for name in ("a.png", "b.png", "training_day.png", "my_test.png"):
        (tmp_path / name).write_bytes(png())
    with pytest.warns(UserWarning, match="leaves out 2 .png; without the prefix hf: all image files are read"):
        image_dataset(f"hf:{tmp_path}", 8, streaming=streaming)
    assert len(AllImages(str(tmp_path), 8)) == 4


def test_a_folder_of_images_with_a_table_of_captions_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    for number in range(3):
        (tmp_path / "00000" / f"{number}.png").write_bytes(png())
    parquet(tmp_path / "00000.parquet", url=["a"], caption=["b"])
    assert not holds_images(tmp_path / "00000.parquet")
    with pytest.warns(UserWarning, match=r"3 images are read; left out: 1 \.parquet"):
        assert len(AllImages(str(tmp_path), 8)) == 3


def test_a_folder_of_images_in_tables_with_a_picture_beside_them_is_a_data_set(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train.parquet", image=[png(100)] * 3)
    (tmp_path / "banner.png").write_bytes(png())
    with pytest.warns(UserWarning, match="leaves out 1 .png"):
        assert greys_of(tmp_path) == {100}


@pytest.mark.parametrize("streaming", [False, True])
def test_zip_files_are_read_whole(tmp_path: Path, streaming: bool) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"test/{number}.png", png(50))
            archive.writestr(f"test/{number}.txt", "a caption")
    assert greys_of(tmp_path, streaming=streaming) == {50}
    assert len(AllImages(str(tmp_path / "photos.zip"), 8)) == 4


def test_archives_that_are_left_out_come_with_the_way_to_read_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0.png", png())
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.warns(UserWarning, match="leaves out 1 .tar; an archive is read by its own name$"):
        assert len(AllImages(str(tmp_path), 8)) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_table_among_others_is_no_obstacle_and_alone_it_is_named(tmp_path: Path, streaming: bool) -> None:
    parquet(tmp_path / "train-0.parquet", image=pa.array([], pa.binary()))
    if not streaming:
        with pytest.raises(ValueError, match="expected images, got an empty data set"):
            AllImages(str(tmp_path), 8)
    parquet(tmp_path / "train-1.parquet", image=[png(100)] * 3)
    assert greys_of(tmp_path, streaming=streaming) == {100}


def test_a_held_out_row_without_an_image_is_replaced_by_the_next(tmp_path: Path) -> None:
    (held_out,) = hold_out([str(row) for row in range(20)])[1]
    values = [None if row == held_out else png(10 * row) for row in range(20)]
    parquet(tmp_path / "train.parquet", image=pa.array(values, pa.binary()))
    with pytest.warns(UserWarning, match=r"none of the 1 held-out images can be read; image \d+ takes their place"):
        held = image_dataset(str(tmp_path), 8, split="held-out", length=4)
    greys = [{crop.mean().item() for crop in part} for part in (image_dataset(str(tmp_path), 8, length=40), held)]
    assert [*map(len, greys)] == [18, 1] and not greys[0] & greys[1]


@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "a.zip"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nonsense" * 99)
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: cannot be read as a data set: "):
        image_dataset(str(tmp_path), 8)
