"""Ctrl-C, SIGTERM and SIGHUP during training: finish the current step, save, and stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

# Windows has no SIGHUP, the signal of a terminal that is closed.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C (SIGINT), SIGTERM and SIGHUP set. A second Ctrl-C raises KeyboardInterrupt at once.

    A SIGHUP that is ignored, as under `nohup`, stays ignored.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write and not print: a signal may arrive in the middle of a print. The terminal may be gone.
        if sys.__stderr__ is not None:  # else descriptor 2 may be any other file
            with suppress(OSError):
                os.write(2, b"\nStopping after this step. Ctrl-C once more stops at once, without saving.\n")

    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield asked
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in previous.items():
        if number == signal.SIGINT or handler is not signal.SIG_IGN:
            signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def any_process(accelerator: Accelerator, value: bool) -> bool:
    """Tell whether `value` is true in any process. Every process has to call this at the same place."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum").item() > 0


def outlive_launcher() -> None:
    """Ignore SIGTERM from here on: torchrun sends it when another process has ended, and this one has to report."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
