"""The images of a run, and their order: a function of the seed and the place, so that a run can begin anywhere."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from klvae_edu.data import image_dataset
from klvae_edu.data.crops import NAMES_IN_REPORT
from klvae_edu.data.shards import START, ProcessShare, StreamPosition
from klvae_edu.data.sources import Split
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import Training

PASS = 2**20  # crops that are shuffled among each other


class ShuffledFrom(Sampler[int]):
    """The indices 0 … length - 1 from place `position` on, each pass of 2²⁰ shuffled by itself.

    The order does not depend on how long the run is to be: one that is resumed with more steps goes on with its own.
    """

    def __init__(self, position: int, length: int, seed: int) -> None:
        self.position, self.length, self.seed = position, length, seed

    def __len__(self) -> int:
        return self.length - self.position

    def __iter__(self) -> Iterator[int]:
        for first in range(self.position // PASS * PASS, self.length, PASS):
            generator = torch.Generator().manual_seed(self.seed + first)
            order = torch.randperm(min(PASS, self.length - first), generator=generator)
            for place in order[max(0, self.position - first) :].tolist():
                yield first + place


def images_of(config: TrainingConfig, length: int | None, split: Split = "train", size: int | None = None) -> Any:
    """`length` images of the configuration's data, as `image_dataset` makes them; `size`: other than it says."""
    return image_dataset(
        config.data,
        size or config.size,
        split=split,
        seed=config.seed,
        length=length,
        streaming=config.streaming,
        recolour=config.recolour,
    )


def batches(training: Training, data: Any) -> Iterator[Tensor]:
    """This process's batches (batch_size · accumulate, 3, size, size) for the steps that are left."""
    config, accelerator = training.config, training.accelerator
    if not config.streaming:
        position = training.step * config.batch_size * config.accumulate * accelerator.num_processes
        yield from accelerator.prepare(training_loader(config, data, position))
        return
    training.stream = training.stream or StreamPosition([START] * max(1, config.workers))
    share = ProcessShare(data, training.stream, accelerator.process_index, accelerator.num_processes)
    # Not through Accelerate, which would have one process read for all.
    for images, places in training_loader(config, share):
        training.stream.follow(places)
        yield images.to(accelerator.device)


def reports(training: Training, data: Any, limit: int | None = NAMES_IN_REPORT) -> list[str]:
    """What could not be read, in words; of a stream, every process knows its own share alone."""
    found = [data.report(limit)]
    if training.config.streaming:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return [report for report in found if report]


def training_loader(config: TrainingConfig, data: Dataset[Any], position: int = 0) -> DataLoader[Any]:
    """Batches of batch_size · accumulate items, in an order that follows from the seed, from `position` on."""
    stream = isinstance(data, IterableDataset)
    return DataLoader(
        data,
        batch_size=config.batch_size * config.accumulate,
        sampler=None if stream else ShuffledFrom(position, len(data), config.seed),  # type: ignore[arg-type]
        num_workers=config.workers,
        worker_init_fn=_outliving_signals() if config.workers else None,
        drop_last=True,
        generator=torch.Generator().manual_seed(config.seed),  # else it takes a number from those of the training
    )


def _outliving_signals() -> Callable[[int], None]:
    """Have workers ignore Ctrl-C and SIGTERM, until this process ends.

    Both are sent to the workers too, which have to live until the trainer has made its last step. But a process that
    ends sends its workers a SIGTERM of its own, and waits for them: with that one they have to go.
    """
    ended = multiprocessing.RawValue("b", 0)
    atexit.register(setattr, ended, "value", 1)  # before multiprocessing's own, which has been registered earlier
    return functools.partial(_ignore_signals, ended)


def _ignore_signals(ended: Any, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ended.value else None)
