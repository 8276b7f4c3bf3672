"""The data loader of a run. The order of images is a function of seed and position, so a run can resume anywhere."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from klvae_edu.data import image_dataset
from klvae_edu.data.crops import NAMES_IN_REPORT
from klvae_edu.data.shards import START, ProcessShare, StreamPosition
from klvae_edu.data.sources import Split
from klvae_edu.environment import die_with_parent
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.interrupt import STOP_SIGNALS
from klvae_edu.training.setup import Training

SHUFFLE_BLOCK = 2**20  # crops that are shuffled together


class ResumableSampler(Sampler[int]):
    """Sample the indices 0 … length - 1 in random order, from place `position` on; every 2²⁰ are shuffled separately.

    If 2²⁰ divides both lengths, a larger `length` keeps the order: a run can be resumed with more steps.
    """

    def __init__(self, position: int, length: int, seed: int) -> None:
        self.position, self.length, self.seed = position, length, seed

    def __len__(self) -> int:
        return self.length - self.position

    def __iter__(self) -> Iterator[int]:
        for first in range(self.position // SHUFFLE_BLOCK * SHUFFLE_BLOCK, self.length, SHUFFLE_BLOCK):
            generator = torch.Generator().manual_seed(self.seed + first)
            order = torch.randperm(min(SHUFFLE_BLOCK, self.length - first), generator=generator)
            for place in order[max(0, self.position - first) :].tolist():
                yield first + place


def images_of(
    config: TrainingConfig, length: int | None, split: Split = "train", size: int | None = None, channels: int = 3
) -> Any:
    """Make the data set of `config`: `length` images of `size` pixels (None: `config.size`); see `image_dataset`."""
    return image_dataset(
        config.data,
        size or config.size,
        split=split,
        seed=config.seed,
        length=length,
        streaming=config.streaming,
        recolour=config.recolour,
        channels=channels,
    )


def batches(training: Training, data: Any) -> Generator[Tensor]:
    """Yield this process's batches (batch_size · accumulate, 3, size, size) in [-1, 1] for the remaining steps.

    Close the generator when no more are needed: its workers ignore SIGTERM until then.
    """
    config, accelerator = training.config, training.accelerator
    with signals_ignored_by_workers() if config.workers else nullcontext() as worker_init:
        if not config.streaming:
            position = training.step * config.batch_size * config.accumulate * accelerator.num_processes
            yield from accelerator.prepare(training_loader(config, data, position, worker_init))
            return
        training.stream = training.stream or StreamPosition([START] * max(1, config.workers))
        share = ProcessShare(data, training.stream, accelerator.process_index, accelerator.num_processes)
        # Not through Accelerate, whose loader would let one process read for all.
        for images, places in training_loader(config, share, worker_init=worker_init):
            training.stream.follow(places)
            yield images.to(accelerator.device)


def reports(training: Training, data: Any, limit: int | None = NAMES_IN_REPORT) -> list[str]:
    """Report the files that could not be read, at most `limit` by name; with a stream, a report of each process."""
    found = [data.report(limit)]
    if training.config.streaming:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return [report for report in found if report]


def training_loader(
    config: TrainingConfig,
    data: Dataset[Any],
    position: int = 0,
    worker_init: Callable[[int], None] | None = None,
) -> DataLoader[Any]:
    """Make a loader of batches of batch_size · accumulate items, in an order set by the seed, from `position` on."""
    stream = isinstance(data, IterableDataset)
    return DataLoader(
        data,
        batch_size=config.batch_size * config.accumulate,
        sampler=None if stream else ResumableSampler(position, len(data), config.seed),  # type: ignore[arg-type]
        num_workers=config.workers,
        worker_init_fn=worker_init if config.workers else None,
        drop_last=True,
        generator=torch.Generator().manual_seed(config.seed),  # else it would draw from the training's random numbers
    )


@contextmanager
def signals_ignored_by_workers() -> Iterator[Callable[[int], None]]:
    """Yield a `worker_init_fn`: within this context the workers ignore Ctrl-C, SIGTERM and SIGHUP.

    The signals reach the workers too, which have to live until the trainer has finished its last step. After the
    context SIGTERM ends them: the trainer's process sends it at its own end, and waits for them. If the trainer is
    killed, they are killed with it: a forked worker would keep the lock on the folder of the run.
    """
    done = multiprocessing.RawValue("b", 0)  # shared with the workers
    end = functools.partial(setattr, done, "value", 1)
    # A process may end inside of this context, for example when `train` runs in a daemon thread. Exit handlers run in
    # reverse order: this one before that of multiprocessing, which sends SIGTERM and waits.
    atexit.register(end)
    try:
        yield functools.partial(_ignore_signals, done)
    finally:
        end()
        atexit.unregister(end)


def _ignore_signals(done: Any, worker: int) -> None:
    die_with_parent()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if done.value else None)
