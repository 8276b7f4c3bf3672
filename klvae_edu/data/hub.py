"""Hugging Face data sets from the Hub or from disk, loaded completely; `shards` streams them.

A source is NAME[:CONFIG][#COLUMN]. `datasets` returns the images undecoded and `files.read_image` decodes them, so one
damaged image does not end a run. Tar and zip files are read by `archives`.
"""

from __future__ import annotations

import glob
import os
import re
import textwrap
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from klvae_edu.data.archives import archive_splits
from klvae_edu.data.columns import read_value, undecoded
from klvae_edu.data.crops import hold_out
from klvae_edu.data.files import printable
from klvae_edu.data.folders import ARCHIVES, archives, counted, suffix_of, unread_files
from klvae_edu.data.remarks import RemarkCount, Remarks, warn_once

ROWS_PER_READ = 256  # of a Parquet file
_LONGEST_REASON = 300  # characters of an error of `datasets`, which may list all that it knows
HELD_OUT_NAMES = ("validation", "valid", "val", "dev", "test")  # names of a held-out split, first match wins


class HubSource(NamedTuple):
    """Name of a data set: an id on the Hub or a folder, and perhaps one of its configurations and columns."""

    name: str
    config: str | None = None
    column: str | None = None

    @property
    def folder(self) -> Path:
        """The folder or file of this name, which need not exist."""
        return Path(os.path.expanduser(self.name))


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
        self.data, self.column = undecoded(data, source, parse_source(source).column)
        self.rows: Sequence[int] = range(len(self.data))

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, number: int) -> Sequence[Tensor]:
        """Return the image alone, the only level. Raises `UnreadableImage`."""
        image, name, remarks = self._read(self.rows[number])
        self.remarks.add(name, remarks)
        return [image]

    def _read(self, row: int) -> tuple[Tensor, str, Remarks]:
        return read_value(self.data[row][self.column], f"{self.source}, row {row}", self.channels)


class HubImages(HubRows):
    """Images of a data set for "train" or "held-out".

    Its validation or test split is held out; without one, 5 % of its rows are.
    """

    def __init__(self, source: str, split: str, channels: int = 3) -> None:
        data, has_own_split = open_split(source, split, streaming=False)
        super().__init__(data, source, channels)
        if not has_own_split:
            train, held_out = hold_out([str(row) for row in self.rows], self._read, self.source)
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
        warn_once(message)
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


def _load(wanted: HubSource, streaming: bool) -> Any:
    import datasets

    path = Path(os.path.abspath(wanted.folder))  # `datasets` calls a data set after its folder, which "." does not name
    if path.is_file() and suffix_of(path.name) in {*ARCHIVES} - {".parquet"}:
        return archive_splits({"train": [str(path)]}, wanted.column, streaming)
    try:
        only = glob.escape(str(path)) if path.is_file() else None
        name = str(path.parent if only else path) if path.exists() else wanted.name
        builder = datasets.load_dataset_builder(name, wanted.config, data_files=only)
    except FileNotFoundError:  # `datasets` knows fewer names of archives, and takes a folder's name for a pattern
        found = sorted(archives(path)) if path.is_dir() and not wanted.config else []
        if not found or any(suffix_of(name) == ".parquet" for name in found):
            raise
        return archive_splits({"train": found}, wanted.column, streaming)
    files = builder.config.data_files or {}
    if path.is_dir() and not wanted.config and (left_out := unread_files(path, [*chain(*files.values())])):
        hint = "; an archive is read by its own name" if left_out.keys() & {*ARCHIVES} else ""
        if builder.name == "imagefolder" and left_out.keys() - {*ARCHIVES}:
            hint += "; without the prefix hf: all image files are read"
        message = f"{printable(wanted.name)}: `datasets` leaves out {counted(left_out, remedies=False)}{hint}"
        warn_once(message, stacklevel=5)
    if builder.name == "parquet":
        builder.config.batch_size = ROWS_PER_READ  # by default the first row group's size, which may be 0
    if builder.name == "webdataset" or (files and all(file.endswith(".zip") for file in chain(*files.values()))):
        return archive_splits(files, wanted.column, streaming)
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _why_not(wanted: HubSource, error: Exception) -> str:
    configurations = re.search(r"(?:available configs|Available): \[(.*?)\]", str(error))
    if configurations:
        got = f"got {wanted.config!r}" if wanted.config else "none was named"
        return f"expected a configuration after a colon, one of {configurations[1]}; {got}"
    if "corresponds to no data" in str(error):
        return "expected images, got an empty data set"
    if wanted.folder.exists():
        return f"cannot be read as a data set: {_short(error.__cause__ or error)}"
    if not isinstance(error, ConnectionError):
        return f"neither a folder here nor a data set that the Hugging Face Hub lets us read: {_short(error)}"
    return (
        "neither a folder here nor a data set in the local cache, and the Hugging Face Hub cannot be reached "
        f"({error}). Check the name and the network, or download the data set first and pass its folder."
    )


def _short(error: BaseException) -> str:
    return textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …")
