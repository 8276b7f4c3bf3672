"""Streamed data sets: shards are distributed over all readers and shuffled, and reading resumes at any row.

A reader is one DataLoader worker of one training process. Its rows, their order and their crops are a function of the
seed, the pass and the reader's number. Three numbers (`Place`) therefore describe a reader's position.

Three methods of `datasets` are used: `shard`, `iter` for rows in batches, and `skip`, which does not decode. Its
`split_dataset_by_node` is not used: if the number of shards is no multiple of the number of processes, every process
reads all rows. Its workers beyond the number of shards get no rows. Its shuffle buffer is not part of a `state_dict`:
when a run is resumed, rows that were in the buffer are lost, and rows that were used before may be repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from klvae_edu.data.columns import decode, undecoded
from klvae_edu.data.crops import HELD_OUT_SHARE, name_bytes, random_crop, shared_zeros, stable_hash
from klvae_edu.data.files import UnreadableImage, printable
from klvae_edu.data.hub import open_split, parse_source
from klvae_edu.data.remarks import RemarkCount

BLOCK = 256  # rows in a shuffle block; every reader holds one block of undecoded images, a few hundred kB each
ROWS_PER_READ = 32
_NOTES_SHAPE = (64, 4096)  # readers, bytes of text from each


class Place(NamedTuple):
    """Position of a reader: the pass, the number of its shard in this pass, and the number of rows read from it."""

    epoch: int = 0
    shard: int = 0
    row: int = 0


START = Place()


class Row(NamedTuple):
    """Row of a data set: the value of its column, its shard, its number there, and the reader's place after it."""

    value: Any
    shard: int
    number: int
    place: Place


@dataclass(frozen=True)
class ShardReader:
    """Read the rows of a sharded data set that belong to reader number `reader` of `readers`.

    Every row of a pass goes to exactly one reader. Each pass distributes the shards in another order. If there are
    fewer shards than readers, several readers share a shard and take its rows in turn: each of them reads the whole
    shard, but decodes only its own rows.
    """

    data: Any  # an `IterableDataset` of `datasets`
    column: str
    seed: int | None  # of the order of shards and rows; None: stored order
    reader: int = 0
    readers: int = 1

    def rows(self, place: Place = START) -> Iterator[Row]:
        """Yield the remaining rows of the pass that contains `place`."""
        first = self.reader % self.data.n_shards  # its first shard
        shards = self._order(self.data.n_shards, place.epoch)[first :: self.readers]
        for turn, shard in enumerate(shards[place.shard :], start=place.shard):
            done = place.row if turn == place.shard else 0
            for number, value in self._rows_of(shard, done, place.epoch):
                done += 1
                yield Row(value, shard, number, Place(place.epoch, turn, done))

    def _rows_of(self, shard: int, done: int, epoch: int) -> Iterator[tuple[int, Any]]:
        """Yield this reader's rows of a shard after the first `done`, shuffled in blocks: (number, value)."""
        first, shards = self.reader % self.data.n_shards, self.data.n_shards
        sharers, turn = len(range(first, self.readers, shards)), self.reader // shards
        block = done // BLOCK
        rest = self.data.shard(shards, shard).skip(block * BLOCK * sharers)
        values = (value for rows in rest.iter(ROWS_PER_READ) for value in rows[self.column])
        numbered = itertools.islice(enumerate(values, start=block * BLOCK * sharers), turn, None, sharers)
        while rows := [*itertools.islice(numbered, BLOCK)]:
            order = self._order(len(rows), epoch, shard, block)
            for position in order[max(0, done - block * BLOCK) :]:
                yield rows[position]
            block += 1

    def _order(self, count: int, *key: int) -> Sequence[int]:
        if self.seed is None:
            return range(count)
        return np.random.default_rng((self.seed, *key)).permutation(count).tolist()


@dataclass
class StreamPosition:
    """Position of one process in a stream: the places of its readers, and the reader of the next batch."""

    places: list[Place]
    next: int = 0

    def follow(self, places: Tensor) -> None:
        """Advance by one batch. `places` (B, 3) are the places after each of its crops."""
        epoch, shard, row = places[-1].tolist()
        self.places[self.next] = Place(epoch, shard, row)
        self.next = (self.next + 1) % len(self.places)

    def to_dict(self) -> dict[str, Any]:
        """Return the position as lists and numbers, for a checkpoint."""
        return {"places": [[*place] for place in self.places], "next": self.next}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamPosition:
        """Build the position that `to_dict` returned."""
        return cls([Place(*place) for place in values["places"]], values["next"])


class StreamedCrops(IterableDataset[Tensor]):
    """Random crops (channels, size, size) in [-1, 1] from a data set that is streamed, pass after pass.

    There are `length` crops in total (None: no end). The crops and the rows are distributed over the DataLoader
    workers, so no image comes twice in one pass. Training images are shuffled. Unreadable images are left out and
    reported at the end. If the data set has no held-out split, the images with the smallest 5 % of hashes are held out.
    """

    def __init__(self, source: str, split: str, size: int, *, seed: int, length: int | None, channels: int = 3) -> None:
        data, self.has_own_split = open_split(source, split, streaming=True)
        self.data, self.column = undecoded(data, source, parse_source(source).column)
        self.source, self.channels, self.remarks = printable(source.removeprefix("hf:")), channels, RemarkCount()
        self.split, self.size, self.seed, self.length = split, size, seed, length
        # Each worker writes to its own row. The rows are in memory shared with the main process.
        self.unreadable = shared_zeros(_NOTES_SHAPE[0], dtype=torch.int64)
        self.notes = shared_zeros(*_NOTES_SHAPE, dtype=torch.uint8)

    def __iter__(self) -> Iterator[Tensor]:
        worker, workers = _worker()
        share = None if self.length is None else len(range(worker, self.length, workers))
        return (crop for crop, _ in itertools.islice(self.crops(worker, workers), share))

    def crops(self, reader: int, readers: int, place: Place = START) -> Iterator[tuple[Tensor, Place]]:
        """Yield the crops of one reader after `place`, without end, each with the place after it.

        Raises:
            ValueError: the reader cannot read any image in a whole pass.
        """
        seed = self.seed if self.split == "train" else None
        rows = ShardReader(self.data, self.column, seed, reader, readers)
        for epoch in itertools.count(place.epoch):
            nothing_read = epoch > place.epoch or place == Place(epoch)  # in a whole pass
            for row in rows.rows(place if place.epoch == epoch else Place(epoch)):
                if not self._wanted(row.value):
                    continue
                try:
                    image = decode(row.value, self.source, self.channels, self.remarks)
                except UnreadableImage as error:
                    if epoch == 0:
                        self._note(reader % len(self.notes), str(error))
                    continue
                nothing_read = False
                rng = np.random.default_rng((self.seed, epoch, row.shard, row.number))
                yield random_crop([image], self.size, rng), row.place
            if nothing_read:
                raise ValueError(f"{self.source}: {self._why_nothing(reader, readers)}")

    def report(self, limit: int | None = None) -> str | None:
        """Report the unreadable images of the first pass: their number, names and errors. None: there are none.

        `limit` is ignored. A worker stores as many names and errors as fit into 4 kB, and all of these are named.
        """
        count = int(self.unreadable.sum())
        if not count:
            return None
        notes = [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in self.notes]
        return "\n".join([f"{count} images could not be read and were left out:", *filter(None, notes)])

    def _why_nothing(self, reader: int, readers: int) -> str:
        if self.report():
            return f"none of its {self.split} images can be read. {self.report()}"
        if readers > 1:
            return f"too small for {readers} readers (processes times workers): number {reader} finds no image in it"
        return (
            f"none of its {self.split} images can be read. "
            "It is too small to hold 5 % out of a stream: read it without streaming."
        )

    def _wanted(self, value: Any) -> bool:
        if self.has_own_split:
            return True
        content = value and (value["bytes"] or name_bytes(value["path"]))
        held_out = stable_hash(content or b"") < HELD_OUT_SHARE * 2**64
        return held_out == (self.split == "held-out")

    def _note(self, row: int, text: str) -> None:
        self.unreadable[row] += 1
        line = torch.frombuffer(bytearray(f"  {text}\n".encode()), dtype=torch.uint8)
        used = int(self.notes[row].count_nonzero())
        line = line[: self.notes.shape[1] - used]
        self.notes[row, used : used + len(line)] = line


class ProcessShare(IterableDataset[tuple[Tensor, Tensor]]):
    """Crops of a stream for one training process, from `position` on, each with the place after it, (3,).

    Each DataLoader worker of the process is a reader. Workers read ahead of training, so a crop carries its place: the
    position to resume at is that of the last crop that was used in training.
    """

    def __init__(self, stream: StreamedCrops, position: StreamPosition, process: int = 0, processes: int = 1) -> None:
        self.stream, self.position, self.process, self.processes = stream, position, process, processes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker, workers = _worker()
        mine = (self.position.next + worker) % workers  # a DataLoader takes its first batch from worker 0
        readers, place = workers * self.processes, self.position.places[mine]
        for crop, after in self.stream.crops(self.process * workers + mine, readers, place):
            yield crop, torch.tensor(after)


def _worker() -> tuple[int, int]:
    """Return the number of this DataLoader worker and the number of workers; (0, 1) in the main process."""
    info = get_worker_info()
    if info is None:
        return 0, 1
    import fsspec.asyn  # type: ignore[import-untyped]

    fsspec.asyn.reset_lock()  # the threads of fsspec do not exist in this process
    return info.id, info.num_workers
