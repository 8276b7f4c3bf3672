"""Agreement of the processes of a run on all that it begins with, before one of them waits for another.

Without it processes with other settings, images or weights train one model, and nobody notices.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from klvae_edu.data.listing import Listing, list_files
from klvae_edu.training.checkpoint import STATE
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.interrupt import outlive_launcher
from klvae_edu.training.networks import Networks, digest, load_networks
from klvae_edu.training.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

PLACES = ("out", "resume", "init", "lpips")  # settings that name a place: what is there is compared instead
DELAY = 5.0  # seconds within which a network file system must show a file that another machine has written
_NAMED = 4  # processes that a message names


class Start(NamedTuple):
    """All that a run begins with: the files of its data, its checkpoint (None: a new run), and its networks."""

    files: Listing
    checkpoint: Path | None
    networks: Networks

    def facts(self, config: TrainingConfig) -> dict[str, str]:
        """Describe all of it by digests, by name."""
        state = self.checkpoint and digest([(self.checkpoint / STATE).read_bytes()])
        return {
            "names of the data's files": f"{digest([self.files.hashes])} (of {len(self.files.hashes)})",
            "sizes and times of the data's files": digest([self.files.versions]),
            "checkpoint": f"{self.checkpoint.name} {state}" if self.checkpoint else "none",
            "weights of init": self.networks.vae_weights() if config.init else "none",
            "weights of the perceptual loss": self.networks.perceptual_weights(),
        }


class Report(NamedTuple):
    """Report of a process to the others: its settings and facts, whether it sees the folder of process 0, its error."""

    facts: dict[str, str]
    sees_folder: bool
    error: str | None


def agreed_start(config: TrainingConfig, accelerator: Accelerator, folder: RunFolder) -> Start:
    """Find and load all that a run begins with. Several processes compare it: all of them succeed, or none does.

    Raises:
        ValueError: processes differ, or another one failed. The folder is left as it was.
    """
    if accelerator.num_processes == 1:
        return _find_start(config, folder)
    from accelerate.utils import gather_object

    facts = {name: str(value) for name, value in config.to_dict().items() if name not in PLACES}
    error: Exception | None = None
    with _token(accelerator, folder.path) as token:
        sees_folder = _appears(token)
        try:
            start = _find_start(config, folder)
            facts |= start.facts(config)
        except Exception as caught:  # of any kind: the other processes wait for the report
            error = caught
        failure = None if error is None else str(error) or type(error).__name__
        reports = gather_object([Report(facts, sees_folder, failure)])
        differences = _differences(reports)
        failures = [f"{_named(ranks)}: {text}" for text, ranks in _by_value(report.error for report in reports) if text]
        if differences or failures:
            outlive_launcher()
            raise error if error and not differences else ValueError("; ".join(differences + failures))
    return start


def _find_start(config: TrainingConfig, folder: RunFolder) -> Start:
    return Start(list_files(config.data), folder.find_checkpoint(), load_networks(config))


def _differences(reports: Sequence[Report]) -> list[str]:
    """Say in what the processes differ, with the values. Of one that failed, only a part may be known."""
    found = []
    if blind := [rank for rank, report in enumerate(reports) if not report.sees_folder]:
        found.append(f"out: {_named(blind)} cannot see the folder of process 0: it must be on a disk that all share")
    for name in reports[0].facts:
        values = _by_value(report.facts.get(name) for report in reports)
        if len(values) > 1 and all(value is not None for value, _ in values):
            found.append(f"{name}: " + ", ".join(f"{value} in {_named(ranks)}" for value, ranks in values))
    return found and ["the processes of this run differ. " + found[0], *found[1:]]


def _by_value(values: Iterable[str | None]) -> list[tuple[str | None, list[int]]]:
    """Group the processes by their values."""
    groups: dict[str | None, list[int]] = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    return [*groups.items()]


def _named(ranks: Sequence[int]) -> str:
    """Name processes: "process 1", "processes 1, 2, 3, 4, …"."""
    listed = ", ".join(map(str, ranks[:_NAMED])) + (", …" if len(ranks) > _NAMED else "")
    return f"process{'es' if len(ranks) > 1 else ''} {listed}"


@contextmanager
def _token(accelerator: Accelerator, folder: Path) -> Iterator[Path]:
    """Yield the path of a file with a random name that process 0 has written into its `folder`; delete it afterwards.

    After an error, a folder that was made for it is deleted too.
    """
    from accelerate.utils import broadcast_object_list

    name, is_new = [f".{uuid4().hex}.part"], False
    if accelerator.is_main_process:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name[0]).touch()
    broadcast_object_list(name)  # of process 0
    token = folder / name[0]
    try:
        yield token
        is_new = False  # from here on it is the run's
    finally:
        if accelerator.is_main_process:
            token.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # another run has begun in it
                folder.rmdir()


def _appears(path: Path) -> bool:
    """Tell whether a file exists now or within `DELAY` seconds."""
    deadline = time.monotonic() + DELAY
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        for folder in reversed(path.parents):  # opening a folder makes a network file system ask its server
            with suppress(OSError):
                os.scandir(folder).close()
    return True
