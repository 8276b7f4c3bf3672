"""Hugging Face data sets from the Hub or from disk, loaded completely; `shards` streams them.

A source is NAME[:CONFIG][#COLUMN]. `datasets` returns the images undecoded and `files.read_image` decodes them, so one
damaged image does not end a run. Tar and zip files are read by `archives`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from klvae_edu.data.archives import archive_splits
from klvae_edu.data.crops import hold_out
from klvae_edu.data.files import UnreadableImage, printable, read_image
from klvae_edu.data.folders import unread_files
from klvae_edu.data.remarks import RemarkCount

HELD_OUT_NAMES = ("validation", "valid", "val", "dev", "test")  # names of a held-out split, first match wins
COLUMN_NAMES = ("image", "img", "picture", "photo")  # preferred among several columns of images, first match wins


class HubSource(NamedTuple):
    """Name of a data set: an id on the Hub or a folder, and perhaps one of its configurations and columns."""

    name: str
    config: str | None = None
    column: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of this name, which need not exist."""
        return Path(self.name).expanduser()


def parse_source(source: str) -> HubSource:
    """Split NAME[:CONFIG][#COLUMN], with or without the prefix "hf:". A name that exists as a path is not split."""
    text = source.removeprefix("hf:")
    if HubSource(text).folder.exists():
        return HubSource(text)
    name, hash_sign, column = text.rpartition("#")
    if not hash_sign:
        name, column = text, ""
    if HubSource(name).folder.exists():
        return HubSource(name, None, column or None)
    found = re.fullmatch(r"(.+):([\w.+-]+)", name)
    return HubSource(found[1], found[2], column or None) if found else HubSource(name, None, column or None)


class HubRows:
    """Images in a split of a data set by number of the row, as float32 in [-1, 1].

    Attributes:
        column: name of the column that is read; see `undecoded`.
        remarks: counts of the remarks on images that were read.
    """

    def __init__(self, data: Any, source: str, channels: int = 3) -> None:
        self.source, self.channels, self.remarks = printable(source), channels, RemarkCount()
        self.data, self.column = undecoded(data, source)
        self.rows: Sequence[int] = range(len(self.data))

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, number: int) -> Sequence[Tensor]:
        """Return the image alone, the only level. Raises `UnreadableImage`."""
        row = self.rows[number]
        return [decode(self.data[row][self.column], f"{self.source}, row {row}", self.channels, self.remarks)]


class HubImages(HubRows):
    """Images of a data set for "train" or "held-out".

    Its validation or test split is held out; without one, 5 % of its rows are.
    """

    def __init__(self, source: str, split: str, channels: int = 3) -> None:
        data, has_own_split = open_split(source, split, streaming=False)
        super().__init__(data, source, channels)
        if not has_own_split:
            train, held_out = hold_out([str(row) for row in self.rows])
            self.rows = train if split == "train" else held_out


def open_split(source: str, split: str, streaming: bool) -> tuple[Any, bool]:
    """Open the part of a data set that serves as `split`, "train" or "held-out". A warning names the unused splits.

    Returns:
        The data, and whether the data set has a held-out split of its own. If it has none, `split` changes nothing.

    Raises:
        ValueError: see `open_splits`.
    """
    splits = open_splits(source, streaming)
    own = next((name for name in HELD_OUT_NAMES if name in splits), None)
    train = "train" if "train" in splits else next((name for name in splits if name != own), own or "")
    has_own_split = own is not None and own != train
    unused = [name for name in splits if name not in (train, own)]
    if unused and split == "train":
        held_out = f", {own} is held out" if has_own_split else ""
        message = f"{printable(source)}: {train} is trained on{held_out}, not used: {', '.join(unused)}"
        warnings.warn(message, stacklevel=2)
    return splits[own if own and has_own_split and split == "held-out" else train], has_own_split


def open_splits(source: str, streaming: bool = False) -> dict[str, Any]:
    """Open all splits of a data set, by name.

    Raises:
        ValueError: the data set is neither on disk nor on the Hub, the Hub cannot be reached, the configuration does
            not exist or must be chosen, or `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{source}: Hugging Face data sets need `datasets`: pip install 'klvae-edu[notebooks]'"
        ) from error
    wanted = parse_source(source)
    try:
        if any((wanted.folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            if wanted.config:
                raise ValueError("a folder written by save_to_disk has no configurations")
            splits = datasets.load_from_disk(str(wanted.folder))
            splits = {"train": splits} if isinstance(splits, datasets.Dataset) else splits
        else:
            splits = _load(wanted, streaming)
    except Exception as error:  # `datasets` passes on the errors of many readers
        raise ValueError(f"{printable(wanted.name)}: {_why_not(wanted, error)}") from error
    for name, data in splits.items():
        if streaming and isinstance(data, datasets.Dataset):
            splits[name] = data.to_iterable_dataset(num_shards=max(1, min(len(data), 64)))
    return dict(splits)


def holds_images(parquet: Path) -> bool:
    """Tell whether a Parquet file has a column of bytes or of {"bytes": …}, not only names and captions of images."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]

        schema = pyarrow.parquet.read_schema(parquet)
    except (ImportError, OSError, ValueError):  # `datasets` will say what is missing or damaged
        return True
    leaves = [child.type for field in schema for child in (field, *(field.flatten() if field.type.num_fields else ()))]
    return any(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind) for kind in leaves)


def undecoded(data: Any, source: str) -> tuple[Any, str]:
    """Keep only one column of images of `data`, undecoded, and return it with the column's name.

    The column is the one that `source` names. Otherwise it is among the columns of images, or of bytes if there are
    none, the first of `COLUMN_NAMES`, or simply the first; a warning says so if there are several.

    Raises:
        ValueError: the data have no column of images or not the named one, or no rows.
    """
    import datasets

    features = data.features or {}
    listed = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items()) or "none known"
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    images = images or [name for name, feature in features.items() if _is_bytes(feature)]
    column = parse_source(source).column
    if column and (column not in features or not (column in images or _is_bytes(features[column]))):
        raise ValueError(f"{source}: expected {column!r} to be a column of images, got the columns: {listed}")
    if not images:
        raise ValueError(f"{source}: expected a column of images, got the columns: {listed}")
    if isinstance(data, datasets.Dataset) and not len(data):
        raise ValueError(f"{source}: expected images, got an empty data set")
    if not column:
        column = next((name for name in COLUMN_NAMES if name in images), images[0])
        if len(images) > 1:
            message = f"{source}: of the columns {', '.join(images)}, {column} is read; #COLUMN after the name chooses"
            warnings.warn(message, stacklevel=2)
    return data.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column


def decode(value: Any, where: str, channels: int, remarks: RemarkCount) -> Tensor:
    """Decode a value {"bytes": …, "path": …} to an image (channels, H, W) in [-1, 1], and count the remarks on it.

    Raises:
        UnreadableImage: there is no image, or it cannot be read.
    """
    import fsspec  # type: ignore[import-untyped]  # `datasets` needs it too

    if not value or not (value["bytes"] or value["path"]):
        raise UnreadableImage(f"{where}: no image here")
    name = f"{where}, {printable(value['path'])}" if value["path"] else where
    if value["bytes"]:
        image, found = read_image(io.BytesIO(value["bytes"]), name, channels)
    else:
        try:
            with fsspec.open(value["path"], "rb") as file:  # a path on disk, on the Hub, or inside an archive
                image, found = read_image(file, name, channels)
        except OSError as error:
            raise UnreadableImage(f"{name}: cannot be read: {error.strerror or error}") from error
    remarks.add(name, found)
    return image


def _load(wanted: HubSource, streaming: bool) -> Any:
    import datasets

    name, only = (str(wanted.folder) if wanted.folder.exists() else wanted.name), None
    if wanted.folder.is_file():
        name, only = str(wanted.folder.parent), wanted.folder.name
    builder = datasets.load_dataset_builder(name, wanted.config, data_files=only)
    files = builder.config.data_files or {}
    if (
        wanted.folder.is_dir()
        and not wanted.config
        and (left_out := unread_files(wanted.folder, [*chain(*files.values())]))
    ):
        hint = "; without the prefix hf: all image files are read" if builder.name == "imagefolder" else ""
        warnings.warn(f"{printable(wanted.name)}: `datasets` leaves out {left_out}{hint}", stacklevel=5)
    if builder.name == "webdataset" or (files and all(file.endswith(".zip") for file in chain(*files.values()))):
        return archive_splits(files, wanted.column, streaming)
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _is_bytes(feature: Any) -> bool:
    """Tell whether values are encoded files: bytes, or {"bytes": …, "path": …} as written by pandas and Spark."""
    if isinstance(feature, dict):
        return _is_bytes(feature.get("bytes"))
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _type_name(feature: Any) -> str:
    return getattr(feature, "dtype", None) or str(feature)


def _why_not(wanted: HubSource, error: Exception) -> str:
    configurations = re.search(r"(?:available configs|Available): \[(.*?)\]", str(error))
    if configurations:
        got = f"got {wanted.config!r}" if wanted.config else "none was named"
        return f"expected a configuration after a colon, one of {configurations[1]}; {got}"
    if wanted.folder.exists():
        return f"cannot be read as a data set: {error.__cause__ or error}"
    if not isinstance(error, ConnectionError):
        return f"neither a folder here nor a data set that the Hugging Face Hub lets us read: {error}"
    return (
        "neither a folder here nor a data set in the local cache, and the Hugging Face Hub cannot be reached "
        f"({error}). Check the name and the network, or download the data set first and pass its folder."
    )
