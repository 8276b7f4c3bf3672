"""Hugging Face data sets, from the Hub or from disk, loaded whole or streamed.

Images are asked for undecoded and read by `files.load_image`: one damaged image does not end a run.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from klvae_edu.data.crops import HELD_OUT_SHARE, hold_out, random_crop, shared_zeros, stable_hash
from klvae_edu.data.files import UnreadableImage, load_image

HELD_OUT_NAMES = ("validation", "valid", "val", "dev", "test")
SHUFFLE_BUFFER = 256  # undecoded images, a few hundred kB each, that every worker holds
_NOTES = (64, 4096)  # workers, bytes of text from each


class HubImages:
    """The images of a data set by number. Held out are those of its validation or test split, or 5 % of the rows."""

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


class StreamedCrops(IterableDataset[Tensor]):
    """Random crops (3, size, size) in [-1, 1] from a data set that is read in passing, again and again.

    `length` crops in all (None: without end), shared out to the DataLoader workers, as are the data set's shards: no
    image is seen twice in one pass, and workers beyond the number of shards have nothing to do. Training images are
    shuffled in a buffer. Unreadable images are left out, and reported at the end. Where the data set has no split of
    its own for it, the images with the smallest 5 % of hashes are held out.
    """

    def __init__(self, source: str, split: str, size: int, *, seed: int, length: int | None) -> None:
        data, has_own_split = open_split(source, split, streaming=True)
        self.source, self.split, self.size, self.seed, self.length = source, split, size, seed, length
        self.has_own_split = has_own_split
        data, self.column = undecoded(data, source)
        self.data = data.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER) if split == "train" else data
        # Each worker counts and notes in its own row, which it shares with the process that reports.
        self.unreadable = shared_zeros(_NOTES[0], dtype=torch.int64)
        self.notes = shared_zeros(*_NOTES, dtype=torch.uint8)

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        worker, workers = (info.id, min(info.num_workers, self.data.n_shards)) if info else (0, 1)
        if worker < workers:
            share = None if self.length is None else len(range(worker, self.length, workers))
            yield from itertools.islice(self._crops(worker), share)

    def report(self, limit: int | None = None) -> str | None:
        """How many images of the first pass were unreadable, which and why; None if there were none.

        All that were noted are named, whatever `limit` says: a worker notes what fits into 4 kB.
        """
        count = int(self.unreadable.sum())
        if not count:
            return None
        notes = [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in self.notes]
        return "\n".join([f"{count} images could not be read and were left out:", *filter(None, notes)])

    def _crops(self, worker: int) -> Iterator[Tensor]:
        rng = np.random.default_rng((self.seed, worker))
        for epoch in itertools.count():
            self.data.set_epoch(epoch)  # another order in each pass
            nothing_read = True
            for example in self.data:
                if not self._wanted(example[self.column]):
                    continue
                try:
                    image = decode(example[self.column], self.source)
                except UnreadableImage as error:
                    if epoch == 0:
                        self._note(worker % len(self.notes), str(error))
                    continue
                nothing_read = False
                yield random_crop([image], self.size, rng)
            if nothing_read:
                reason = self.report() or "It is too small to hold 5 % out of a stream: read it without streaming."
                raise ValueError(f"{self.source}: none of its {self.split} images can be read. {reason}")

    def _wanted(self, value: Any) -> bool:
        if self.has_own_split:
            return True
        content = value and (value["bytes"] or value["path"].encode())
        held_out = stable_hash(content or b"") < HELD_OUT_SHARE * 2**64
        return held_out == (self.split == "held-out")

    def _note(self, row: int, text: str) -> None:
        self.unreadable[row] += 1
        line = torch.frombuffer(bytearray(f"  {text}\n".encode()), dtype=torch.uint8)
        used = int(self.notes[row].count_nonzero())
        line = line[: self.notes.shape[1] - used]
        self.notes[row, used : used + len(line)] = line


def open_split(source: str, split: str, streaming: bool) -> tuple[Any, bool]:
    """The part of a data set that serves as `split`, and whether it is a split of its own (else: of all the images).

    Raises:
        ValueError: no such data set here or on the Hub, or no network to look there; `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{source}: Hugging Face data sets need `datasets`: pip install 'klvae-edu[course]'"
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
    """`data` with its (first) image column left undecoded, and that column's name.

    Raises:
        ValueError: it has no image column, or no rows.
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
    """The image in an undecoded value {"bytes": …, "path": …}: (3, H, W) in [-1, 1]. Raises `UnreadableImage`."""
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
