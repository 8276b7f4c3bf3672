"""Data sets that are read in passing: their shards shared out to all readers, shuffled, and begun anywhere.

A reader is one DataLoader worker of one training process. Which rows it reads, in which order and as which crops is a
function of the seed, the pass and its number, so that three numbers say how far it has come.

From `datasets` come the shards (`shard`), their rows in bulk (`iter`) and passing over rows undecoded (`skip`). Its
`split_dataset_by_node` has every process read everything where the shards do not divide, it leaves workers beyond the
number of shards without work, and its shuffle buffer is not part of a `state_dict`: what lay there is lost.
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

from klvae_edu.data.crops import HELD_OUT_SHARE, random_crop, shared_zeros, stable_hash
from klvae_edu.data.files import UnreadableImage
from klvae_edu.data.hub import decode, open_split, undecoded

BLOCK = 256  # rows that are shuffled among each other: undecoded images, a few hundred kB each, in every reader
BULK = 32  # rows that are asked for at once
_NOTES = (64, 4096)  # readers, bytes of text from each


class Place(NamedTuple):
    """How far a reader has come: in which pass, at which of its shards in it, and how many rows it has had of this."""

    epoch: int = 0
    shard: int = 0
    row: int = 0


START = Place()


class Row(NamedTuple):
    """One row of a data set: its value in the column, which row of which shard it is, and the reader's place after."""

    value: Any
    shard: int
    number: int
    place: Place


@dataclass(frozen=True)
class ShardReader:
    """What reader number `reader` of `readers` gets of a data set in shards, in any pass.

    Every row of a pass goes to exactly one reader. The shards are dealt out, in another order in each pass. Where they
    are fewer than the readers, those that share one take turns in its rows: every reader then reads the whole shard,
    but decodes its own rows only.
    """

    data: Any  # an `IterableDataset` of `datasets`
    column: str
    seed: int | None  # of the order of shards and rows; None: as they lie
    reader: int = 0
    readers: int = 1

    def rows(self, place: Place = START) -> Iterator[Row]:
        """What is left of the pass in which `place` lies."""
        first = self.reader % self.data.n_shards  # of its shards
        shards = self._order(self.data.n_shards, place.epoch)[first :: self.readers]
        for turn, shard in enumerate(shards[place.shard :], start=place.shard):
            done = place.row if turn == place.shard else 0
            for number, value in self._rows_of(shard, done, place.epoch):
                done += 1
                yield Row(value, shard, number, Place(place.epoch, turn, done))

    def _rows_of(self, shard: int, done: int, epoch: int) -> Iterator[tuple[int, Any]]:
        """This reader's rows of a shard after the first `done`, shuffled in blocks: numbers and values."""
        first, shards = self.reader % self.data.n_shards, self.data.n_shards
        sharers, turn = len(range(first, self.readers, shards)), self.reader // shards
        block = done // BLOCK
        rest = self.data.shard(shards, shard).skip(block * BLOCK * sharers)
        values = (value for rows in rest.iter(BULK) for value in rows[self.column])
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
    """How far one process has come in a stream: the places of its readers, and which one's batch comes next."""

    places: list[Place]
    next: int = 0

    def follow(self, places: Tensor) -> None:
        """Go on by one batch, which came with the places (B, 3) after each of its crops."""
        epoch, shard, row = places[-1].tolist()
        self.places[self.next] = Place(epoch, shard, row)
        self.next = (self.next + 1) % len(self.places)

    def to_dict(self) -> dict[str, Any]:
        return {"places": [[*place] for place in self.places], "next": self.next}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamPosition:
        return cls([Place(*place) for place in values["places"]], values["next"])


class StreamedCrops(IterableDataset[Tensor]):
    """Random crops (3, size, size) in [-1, 1] from a data set that is read in passing, again and again.

    `length` crops in all (None: without end), shared out to the DataLoader workers, as are the data set's rows: no
    image is seen twice in one pass. Training images are shuffled. Unreadable images are left out, and reported at the
    end. Where the data set has no split of its own for it, the images with the smallest 5 % of hashes are held out.
    """

    def __init__(self, source: str, split: str, size: int, *, seed: int, length: int | None) -> None:
        data, self.has_own_split = open_split(source, split, streaming=True)
        self.data, self.column = undecoded(data, source)
        self.source, self.split, self.size, self.seed, self.length = source, split, size, seed, length
        # Each worker counts and notes in its own row, which it shares with the process that reports.
        self.unreadable = shared_zeros(_NOTES[0], dtype=torch.int64)
        self.notes = shared_zeros(*_NOTES, dtype=torch.uint8)

    def __iter__(self) -> Iterator[Tensor]:
        worker, workers = _worker()
        share = None if self.length is None else len(range(worker, self.length, workers))
        return (crop for crop, _ in itertools.islice(self.crops(worker, workers), share))

    def crops(self, reader: int, readers: int, place: Place = START) -> Iterator[tuple[Tensor, Place]]:
        """Without end: the crops of one of the readers after `place`, each with the place after it.

        Raises:
            ValueError: a whole pass in which the reader can read nothing.
        """
        seed = self.seed if self.split == "train" else None
        rows = ShardReader(self.data, self.column, seed, reader, readers)
        for epoch in itertools.count(place.epoch):
            nothing_read = epoch > place.epoch or place == Place(epoch)  # in a whole pass
            for row in rows.rows(place if place.epoch == epoch else Place(epoch)):
                if not self._wanted(row.value):
                    continue
                try:
                    image = decode(row.value, self.source)
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
        """How many images of the first pass were unreadable, which and why; None if there were none.

        All that were noted are named, whatever `limit` says: a worker notes what fits into 4 kB.
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
        content = value and (value["bytes"] or value["path"].encode())
        held_out = stable_hash(content or b"") < HELD_OUT_SHARE * 2**64
        return held_out == (self.split == "held-out")

    def _note(self, row: int, text: str) -> None:
        self.unreadable[row] += 1
        line = torch.frombuffer(bytearray(f"  {text}\n".encode()), dtype=torch.uint8)
        used = int(self.notes[row].count_nonzero())
        line = line[: self.notes.shape[1] - used]
        self.notes[row, used : used + len(line)] = line


class ProcessShare(IterableDataset[tuple[Tensor, Tensor]]):
    """What one of the training processes reads of a stream, from `position` on: crops, and the places after them (3,).

    Each of its DataLoader workers is a reader. The places travel with the crops because workers are ahead of training:
    only what has been trained on counts.
    """

    def __init__(self, stream: StreamedCrops, position: StreamPosition, process: int = 0, processes: int = 1) -> None:
        self.stream, self.position, self.process, self.processes = stream, position, process, processes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker, workers = _worker()
        mine = (self.position.next + worker) % workers  # a DataLoader begins with its worker 0
        readers, place = workers * self.processes, self.position.places[mine]
        for crop, after in self.stream.crops(self.process * workers + mine, readers, place):
            yield crop, torch.tensor(after)


def _worker() -> tuple[int, int]:
    """This DataLoader worker's number, and how many there are; (0, 1) outside of one."""
    info = get_worker_info()
    if info is None:
        return 0, 1
    import fsspec.asyn  # type: ignore[import-untyped]

    fsspec.asyn.reset_lock()  # its threads did not come along into this process
    return info.id, info.num_workers
