"""Failures of the machine during a run, in words: no memory, a killed worker, a lost process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from klvae_edu.environment import out_of_memory
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.interrupt import outlive_launcher
from klvae_edu.training.result import resume_command
from klvae_edu.training.run_folder import RunFolder

WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is (killed by signal: \w[\w ]*\w)|exited unexpectedly)")
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)", re.IGNORECASE)


@contextmanager
def failures_in_words(config: TrainingConfig, folder: RunFolder, processes: int) -> Iterator[None]:
    """Replace errors of the machine in this context by one line: the failure, the last checkpoint, how to resume.

    Raises:
        MemoryError: an allocation failed.
        ChildProcessError: a worker of the data loader was killed.
        ConnectionError: another process of the run has ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        failure = _in_words(error)
        if failure is None:
            raise
        if isinstance(failure, ConnectionError):
            outlive_launcher()
        resume = resume_command(config, processes)
        raise type(failure)(f"{failure}; {folder.last_checkpoint()}. To resume: {resume}") from error


def _in_words(error: BaseException | None) -> MemoryError | OSError | None:
    """Describe a failure of the machine that is `error` or its cause; None: it is another error."""
    if error is None:
        return None
    text = str(error)
    if out_of_memory(error):
        asked = re.search(r"(?:tried|unable) to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
        amount = f" for {asked[1]} more" if asked else ""
        return MemoryError(f"not enough memory{amount}; a smaller --batch-size with a larger --accumulate needs less")
    if isinstance(error, RuntimeError) and (worker := WORKER.search(text)):
        reason = f"was {worker[1]}" if worker[1] else "has ended"
        return ChildProcessError(f"a --workers process {reason}, perhaps for lack of memory; fewer need less")
    if isinstance(error, RuntimeError) and LOST.search(text):
        return ConnectionError("another process of this run has ended or cannot be reached")
    return _in_words(error.__cause__)
