"""The folder of a training run: weights for use, checkpoints to resume from, log and pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from klvae_edu.training.checkpoint import delete_checkpoint, read_description, save_checkpoint
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.log import LOG_NAME, cut_log
from klvae_edu.training.setup import Training
from klvae_edu.weights.files import atomic_write

if TYPE_CHECKING:
    from klvae_edu.plots import Pixels

LOCK_NAME = ".klvae.lock"


class RunFolder:
    """The folder of a run: `model/` in diffusers' layout, `checkpoints/step_…/`, `training.json`, the log, pictures.

    Args:
        path: a new or an empty folder; nothing but a lock file is written before `start`.
        resume: "auto" resumes the run in `path`, if there is one; or the folder of one of the run's checkpoints.
        writes: True in one of several training processes; in the others, methods change no file.

    Raises:
        FileExistsError: the folder exists and is not a resumable run. Nothing is changed.
    """

    def __init__(self, path: Path, resume: str | None = None, writes: bool = True) -> None:
        self.path = path
        self.resume = resume
        self.writes = writes
        self.saved_step: int | None = None  # step of the last complete checkpoint
        self._superseded: list[Path] = []  # later checkpoints than the one resumed, kept until the next is complete
        self._lock = FileLock(path / LOCK_NAME, mode=0o666, thread_local=False)  # for every user who may write here
        if writes:
            self._check_unused()

    def __enter__(self) -> RunFolder:
        """Lock the folder, if it exists already, before anything in it is read."""
        if self.writes and self.path.is_dir():
            self._acquire_lock()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Unlock the folder for other runs."""
        self._lock.release()

    @property
    def model(self) -> Path:
        """The folder of the weights for use; `AutoencoderKL.from_pretrained` reads it."""
        return self.path / "model"

    def _check_unused(self) -> None:
        of_a_run = (self.path / "training.json").is_file()
        own = self.resume == "auto" or (
            self.resume is not None and Path(self.resume).resolve().parent == (self.path / "checkpoints").resolve()
        )
        if own and of_a_run:
            return
        # A lock, or a file that `start` had not finished when the run was killed, is no content.
        empty = self.path.is_dir() and all(one.match(".*.part") or one.name == LOCK_NAME for one in self.path.iterdir())
        if self.path.exists() and not empty:
            hint = " Resume that run with --resume auto." if of_a_run else ""
            raise FileExistsError(
                f"out: expected a new or an empty folder; {self.path} is in use, and nothing in it was changed.{hint} "
                f"Choose another one, for example --out {unused(self.path)}"
            )

    def find_checkpoint(self) -> Path | None:
        """Find the checkpoint to resume from: the named one, else the last intact one; None for a new run.

        Raises:
            ValueError: the named one is missing or damaged, or every checkpoint in the folder is damaged.
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
                warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
        if folders:
            raise ValueError(f"resume: expected an intact checkpoint, but every one in {folders[0].parent} is damaged")
        return None

    def start(self, config: TrainingConfig, step: int = 0) -> None:
        """Make and lock the folder, write the configuration, and cut the log back to `step`.

        Checkpoints of later steps are kept, each with a copy of the log, until `save` has written this run's first one.
        If it never comes, `resume="auto"` takes the last of them, and its log.
        """
        if self.checkpoint(step).is_dir():  # the run resumes from its own checkpoint, not from one of another run
            self.saved_step = step
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire_lock()  # for a new folder; a folder that existed is locked already
        with atomic_write(self.path / "training.json") as path:
            values = config.to_dict() | {"resume": None}  # a repetition of this run begins at step 1
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        # A killed save leaves our temporary file, and that of safetensors (.tmpXXXXXX: findings/).
        for pattern in ("checkpoints/.*.partial", "model/.*.part", "model/.tmp??????", ".*.part"):
            for unfinished in self.path.glob(pattern):
                shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        self._superseded = [later for later in self.checkpoints() if _number(later) > step]
        self._cut_log(step)

    def _cut_log(self, step: int) -> None:
        """Cut the log back to `step`; superseded checkpoints get a copy of the whole log."""
        log = self.path / LOG_NAME
        if (own := self.checkpoint(step) / LOG_NAME).exists():  # it was superseded, by a run that saved nothing
            os.replace(own, log)
        if not log.exists():
            return
        for later in self._superseded:
            if not (later / LOG_NAME).exists():
                with atomic_write(later / LOG_NAME) as path:
                    shutil.copyfile(log, path)
        cut_log(log, step)

    def _acquire_lock(self) -> None:
        """Lock the folder for this process, unless this process has locked it already.

        Raises:
            FileExistsError: another run has locked it.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise FileExistsError(f"out: another run is writing into {self.path}; nothing in it was changed") from error
        except (OSError, NotImplementedError):  # a file system without locks
            pass
        self._check_unused()  # of two runs that began together, one may have finished already

    def save(self, training: Training) -> None:
        """Write a checkpoint, replace the weights in `model/`, and delete old checkpoints. Every process calls it.

        Raises:
            OSError: the disk is full or gone. Earlier checkpoints are intact; the message names the last one.
        """
        try:
            save_checkpoint(training, self.checkpoint(training.step))
            self.saved_step = training.step
            self._delete_superseded()
            self.publish(training)
        except (OSError, SafetensorError) as error:
            raise OSError(f"step {training.step} could not be saved ({error}); {self.last_checkpoint()}") from error

    def publish(self, training: Training) -> None:
        """Write `model/` and delete old checkpoints. It follows a checkpoint, or a resume."""
        if self.writes:
            training.averaged.save_pretrained(self.model)
            for old in [] if self._superseded else self.checkpoints()[: -training.config.keep]:
                delete_checkpoint(old)

    def _delete_superseded(self) -> None:
        """Delete the later checkpoints of before the resume. One of the same step has been replaced already."""
        for later in self._superseded:
            if _number(later) != self.saved_step:
                delete_checkpoint(later)
        self._superseded = []

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self.path / "checkpoints" / f"step_{step:07d}"

    def checkpoints(self) -> list[Path]:
        """List the checkpoints in the folder, in the order of their steps."""
        found = self.path.glob("checkpoints/step_*")
        return sorted((folder for folder in found if re.fullmatch(r"step_\d{7,}", folder.name)), key=_number)

    def last_checkpoint(self) -> str:
        """Say in words which checkpoint a run that fails now leaves behind."""
        if self.saved_step is None:
            return f"nothing was saved in {self.path} before"
        return f"the last good checkpoint is {self.checkpoint(self.saved_step)}"

    def log(self, record: Mapping[str, object]) -> None:
        """Append one line to `log.jsonl`."""
        if self.writes:
            path = self.path / LOG_NAME
            with self._explain_disk_error(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def save_picture(self, picture: Pixels, step: int) -> None:
        """Write the picture of validation crops after `step`."""
        from PIL import Image

        if self.writes:
            name = self.path / f"held_out_{step:06d}.png"
            with self._explain_disk_error(name), atomic_write(name) as path:
                Image.fromarray(picture).save(path, format="PNG")

    def save_report(self, report: str | None) -> None:
        """Write the report on files of the data that could not be read into `unreadable.txt`, if there is one."""
        if self.writes and report:
            name = self.path / "unreadable.txt"
            with self._explain_disk_error(name), atomic_write(name) as path:
                path.write_text(report + "\n", encoding="utf-8")

    @contextmanager
    def _explain_disk_error(self, path: Path) -> Iterator[None]:
        """Add the name of the file, and the checkpoint that is kept, to an error of the disk in this context."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{path} could not be written ({error}); {self.last_checkpoint()}") from error


def unused(path: Path) -> Path:
    """Find a free name: `path` itself, else the first of `path-2`, `path-3`, …"""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def _number(checkpoint: Path) -> int:
    """Read the step from the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))
