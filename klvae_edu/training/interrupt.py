"""Ctrl-C and SIGTERM during training: finish the current step, save, and stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C (SIGINT) and SIGTERM set. A second Ctrl-C raises KeyboardInterrupt at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write and not print: a signal may arrive in the middle of a print.
        os.write(2, b"\nStopping after this step. Ctrl-C once more stops at once, without saving.\n")

    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield asked
        return
    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
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
