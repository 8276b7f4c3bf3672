"""The folder of a training run: weights for use, checkpoints to go on from, the log and the pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klvae_edu.training.checkpoint import partial_folder, read_description, save_checkpoint
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import Training
from klvae_edu.weights.files import atomic_write

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from klvae_edu.plots import Pixels


class RunFolder:
    """`model/` in diffusers' layout, `checkpoints/step_…/`, `training.json`, `log.jsonl`, `held_out_….png`.

    Args:
        path: a new or an empty folder; nothing is written before `start`.
        resume: "auto" goes on in `path`, where it is the folder of a run; or one of the run's checkpoints.
        writes: of several training processes, one writes; in the others methods leave the files alone.

    Raises:
        FileExistsError: something lies there that is not to be gone on with. It is left alone.
    """

    def __init__(self, path: Path, resume: str | None = None, writes: bool = True) -> None:
        self.path = path
        self.resume = resume
        self.writes = writes
        self.saved_step: int | None = None  # of the last whole checkpoint
        self._lock: int | None = None
        if writes:
            self._refuse_what_is_in_use()

    def __enter__(self) -> RunFolder:
        """Keep other runs out of the folder, if it is there yet, before anything in it is read."""
        if self.writes and self.path.is_dir():
            self._take()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let other runs have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def model(self) -> Path:
        """Where the weights to use lie; `AutoencoderKL.from_pretrained` reads it."""
        return self.path / "model"

    def _refuse_what_is_in_use(self) -> None:
        of_a_run = (self.path / "training.json").is_file()
        own = self.resume == "auto" or (
            self.resume is not None and Path(self.resume).resolve().parent == (self.path / "checkpoints").resolve()
        )
        if own and of_a_run:
            return
        # A kill before `training.json` has its name leaves a file that nobody but `start` can have made.
        empty = self.path.is_dir() and all(one.match(".*.part") for one in self.path.iterdir())
        if self.path.exists() and not empty:
            go_on = " Go on with that run: --resume auto." if of_a_run else ""
            raise FileExistsError(
                f"out: expected a new or an empty folder; {self.path} is in use, and nothing in it was changed.{go_on} "
                f"Name another one, for example --out {unused(self.path)}"
            )

    def to_resume(self) -> Path | None:
        """The checkpoint to go on from: the one that was named, or the last whole one; None to begin at the beginning.

        Raises:
            ValueError: the one that was named is missing or damaged, or every one in the folder is damaged.
        """
        if self.resume is None:
            return None
        if self.resume != "auto":
            read_description(Path(self.resume))
            return Path(self.resume)
        folders = self.checkpoints()
        for folder in reversed(folders):
            try:
                read_description(folder)
                return folder
            except ValueError as error:
                warnings.warn(f"{error}; the checkpoint before it is tried", stacklevel=2)
        if folders:
            raise ValueError(f"resume: expected a whole checkpoint, every one in {folders[0].parent} is damaged")
        return None

    def start(self, config: TrainingConfig, step: int = 0) -> None:
        """Make the folder, write the configuration, and take back what lies beyond `step`, which will come again."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._take()  # one that is new
        with atomic_write(self.path / "training.json") as path:
            values = config.to_dict() | {"resume": None}  # whoever repeats this run begins at its beginning
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        for later in self.checkpoints():
            if _number(later) > step:
                _delete(later)
        for pattern in ("checkpoints/.*.partial", "model/.*.part", ".*.part"):
            for unfinished in self.path.glob(pattern):
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        if self.checkpoint(step).is_dir():  # and not that of another run
            self.saved_step = step
        log = self.path / "log.jsonl"
        if log.exists():
            kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) in range(step + 1)]
            with atomic_write(log) as path:
                path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _take(self) -> None:
        """Lock the folder for this process, unless it has it already.

        Raises:
            FileExistsError: another run has it.
        """
        if sys.platform == "win32" or self._lock is not None:  # Windows has no such locks
            return
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise FileExistsError(f"out: another run is writing into {self.path}; nothing in it was changed") from error
        except OSError:  # a file system without locks
            self.release()
        self._refuse_what_is_in_use()  # of two runs that began together, one may be done already

    def save(self, training: Training) -> None:
        """Write a checkpoint and, in the place of those before, the weights to use. Every process calls it.

        Raises:
            OSError: the disk is full or gone. What was saved before is whole, and the message names its step.
        """
        from safetensors import SafetensorError

        try:
            save_checkpoint(training, self.checkpoint(training.step))
            self.saved_step = training.step
            self.publish(training)
        except (OSError, SafetensorError) as error:
            raise OSError(f"step {training.step} could not be saved ({error}); {self.kept()}") from error

    def publish(self, training: Training) -> None:
        """What follows a checkpoint, and comes late where a run was killed in between: `model/`, and fewer old ones."""
        if self.writes:
            training.averaged.save_pretrained(self.model)
            for old in self.checkpoints()[: -training.config.keep]:
                _delete(old)

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step`."""
        return self.path / "checkpoints" / f"step_{step:07d}"

    def checkpoints(self) -> list[Path]:
        """Those that are there, in the order of their steps."""
        found = self.path.glob("checkpoints/step_*")
        return sorted((folder for folder in found if re.fullmatch(r"step_\d{7,}", folder.name)), key=_number)

    def kept(self) -> str:
        """What a run that fails now leaves behind, in words."""
        if self.saved_step is None:
            return f"nothing was saved in {self.path} before"
        return f"the last good checkpoint is {self.checkpoint(self.saved_step)}"

    def log(self, record: Mapping[str, float]) -> None:
        """Append one line to `log.jsonl`."""
        if self.writes:
            path = self.path / "log.jsonl"
            with self._telling(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def save_picture(self, picture: Pixels, step: int) -> None:
        """Write the picture of held-out crops after `step`."""
        from PIL import Image

        if self.writes:
            name = self.path / f"held_out_{step:06d}.png"
            with self._telling(name), atomic_write(name) as path:
                Image.fromarray(picture).save(path, format="PNG")

    def save_report(self, report: str | None) -> None:
        """Write which files of the data could not be read, all of them, into `unreadable.txt`."""
        if self.writes and report:
            name = self.path / "unreadable.txt"
            with self._telling(name), atomic_write(name) as path:
                path.write_text(report + "\n", encoding="utf-8")

    @contextmanager
    def _telling(self, path: Path) -> Iterator[None]:
        """An error of the disk within it says which file it was, and what is kept."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{path} could not be written ({error}); {self.kept()}") from error


def unused(path: Path) -> Path:
    """`path` itself when nothing has that name, else the first of `path-2`, `path-3`, … that is free."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def _number(checkpoint: Path) -> int:
    """The step in its name."""
    return int(checkpoint.name.removeprefix("step_"))


def _delete(checkpoint: Path) -> None:
    """Under another name first: a folder that is half deleted must not pass for a checkpoint."""
    gone = partial_folder(checkpoint)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def _step_of(line: str) -> Any:
    """The step of a line of the log; None for one that was cut off."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
