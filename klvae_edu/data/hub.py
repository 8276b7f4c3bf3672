"""Hugging Face data sets from the Hub or from disk, loaded completely; `shards` streams them.

`datasets` returns the images undecoded and `files.load_image` decodes them, so one damaged image does not end a run.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from klvae_edu.data.crops import hold_out
from klvae_edu.data.files import UnreadableImage, load_image

HELD_OUT_NAMES = ("validation", "valid", "val", "dev", "test")  # names of a held-out split, first match wins


class HubImages:
    """Images of a data set by number. Its validation or test split is held out; without one, 5 % of its rows are."""

    def __init__(self, source: str, split: str) -> None:
        data, has_own_split = open_split(source, split, streaming=False)
        self.source = source
        self.data, self.column = undecoded(data, source)
        self.rows: Sequence[int] = range(len(data))
        if not has_own_split:
            train, held_out = hold_out([str(row) for row in self.rows])
            self.rows = train if split == "train" else held_out

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, number: int) -> Sequence[Tensor]:
        row = self.rows[number]
        return [decode(self.data[row][self.column], f"{self.source}, row {row}")]


def open_split(source: str, split: str, streaming: bool) -> tuple[Any, bool]:
    """Open the part of a data set that serves as `split`.

    Returns:
        The data, and whether the data set has a held-out split of its own. If it has none, `split` changes nothing.

    Raises:
        ValueError: the data set is neither on disk nor on the Hub, the Hub cannot be reached, or `datasets` is not
            installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{source}: Hugging Face data sets need `datasets`: pip install 'klvae-edu[notebooks]'"
        ) from error
    folder = Path(source).expanduser()
    try:
        if any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            splits = datasets.load_from_disk(str(folder))
        else:
            splits = datasets.load_dataset(str(folder) if folder.exists() else source, streaming=streaming)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {_why_not(folder, error)}") from error
    if isinstance(splits, datasets.Dataset):
        splits = {"train": splits}
    own = next((name for name in HELD_OUT_NAMES if name in splits), None)
    train = "train" if "train" in splits else next((name for name in splits if name != own), own)
    has_own_split = own is not None and own != train
    data = splits[own if has_own_split and split == "held-out" else train]
    if streaming and isinstance(data, datasets.Dataset):
        data = data.to_iterable_dataset(num_shards=max(1, min(len(data), 64)))
    return data, has_own_split


def undecoded(data: Any, source: str) -> tuple[Any, str]:
    """Keep only the first image column of `data`, undecoded, and return it with the column's name.

    Raises:
        ValueError: the data have no image column, or no rows.
    """
    import datasets

    features = data.features or {}
    column = next((name for name, feature in features.items() if isinstance(feature, datasets.Image)), None)
    if column is None:
        found = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items()) or "none known"
        raise ValueError(f"{source}: expected a column of images, got the columns: {found}")
    if isinstance(data, datasets.Dataset) and not len(data):
        raise ValueError(f"{source}: expected images, got an empty data set")
    return data.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column


def decode(value: Any, where: str) -> Tensor:
    """Decode a value {"bytes": …, "path": …} to an image (3, H, W) in [-1, 1]. Raises `UnreadableImage`."""
    import fsspec  # type: ignore[import-untyped]  # `datasets` needs it too

    if not value or not (value["bytes"] or value["path"]):
        raise UnreadableImage(f"{where}: no image here")
    name = f"{where}, {value['path']}" if value["path"] else where
    if value["bytes"]:
        return load_image(io.BytesIO(value["bytes"]), name)
    try:
        with fsspec.open(value["path"], "rb") as file:  # a path on disk, on the Hub, or inside an archive
            return load_image(file, name)
    except OSError as error:
        raise UnreadableImage(f"{name}: cannot be read: {error.strerror or error}") from error


def _why_not(folder: Path, error: Exception) -> str:
    if folder.exists():
        return f"`datasets` cannot read this folder: {error}"
    if not isinstance(error, ConnectionError):
        return f"neither a folder here nor a data set that the Hugging Face Hub lets us read: {error}"
    return (
        "neither a folder here nor a data set in the local cache, and the Hugging Face Hub cannot be reached "
        f"({error}). Check the name and the network, or download the data set first and pass its folder."
    )
