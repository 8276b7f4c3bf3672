"""Device, progress bars and process settings.

torch and tqdm are imported where they are used, so that `klvae doctor` works when one of them is missing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROCESS_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "2147483648",  # bytes; glibc requests larger blocks from the kernel every time
    "MALLOC_TRIM_THRESHOLD_": "8589934592",  # bytes; glibc returns freed memory above this to the kernel
    "GOMP_SPINCOUNT": "1000",  # iterations that a libgomp thread spins at a barrier before it sleeps
}
"""Environment variables that speed up PyTorch on a CPU under Linux. They must be set when the process starts.

By default glibc returns the memory of every large activation to the kernel and requests it again in the next layer:
20,000 to 37,000 page faults in one training step of the preset `tiny`. By default the threads of libgomp spin at every
barrier, which becomes very slow when another program uses one of the cores. One such training step on 2 shared cores
took 823 to 1025 ms by default and 146 to 153 ms with the three settings; on an idle machine it took 167 to 172 ms by
default. Results are the same bit for bit.

The number of spins weighs an idle machine against a busy one. Twelve steps of the preset `mini` (12 crops of 64x64, 2
threads on 2 cores of a Zen 4, medians of three) took 4.6 s alone and 15.5 s beside one busy process with 20,000 spins,
4.8 s and 10.2 s with 1,000, and 5.3 s and 9.4 s with none.

`make` exports the settings to all programs that it starts. The commands of `klvae` that compute restart themselves with
them. A disadvantage: the process keeps freed memory until it ends. Peak memory is therefore measured without them.
"""

_RESTART_MARK = "KLVAE_EDU_RESTARTED"  # set in a restarted process, so that it does not restart again
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def restart_with_process_settings() -> None:
    """Restart this process once with the missing `PROCESS_SETTINGS`. Variables that are already set keep their values.

    Does nothing on other systems than Linux. The process keeps its id, so launchers and Ctrl-C work as before.
    """
    missing = {name: value for name, value in PROCESS_SETTINGS.items() if name not in os.environ}
    if not missing or sys.platform != "linux" or _RESTART_MARK in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing, _RESTART_MARK: "1"})


def die_with_parent() -> None:
    """Ask the system to kill this process when its parent ends in any way. Does nothing on other systems than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is a failed allocation, by Python, NumPy or PyTorch, on a CPU or a GPU."""
    words = ("allocate", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(word in str(error) for word in words)
    )


def pick_device(name: str | None = None) -> torch.device:
    """Return the device `name`, or the first available one of CUDA, Apple's MPS and the CPU.

    Raises:
        ValueError: the device is not available; the message lists the available ones.
    """
    import torch

    available = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    available += ["cpu"]
    if name is None:
        return torch.device(available[0].split(":")[0])
    if name not in available and f"{name}:0" not in available:
        raise ValueError(f"device: {name!r} is not available here; available: {', '.join(available)}")
    return torch.device(name)


def progress(
    iterable: Iterable[Any] | None = None, *, desc: str | None = None, total: int | None = None, **tqdm_kwargs: Any
) -> Any:
    """Return a progress bar of `tqdm.auto`: a widget in a notebook, text in a terminal.

    Where standard error is neither, such as a log file, it writes a line after every hundredth of the work, at most one
    every ten seconds.

    It is disabled when the environment variable KLVAE_EDU_QUIET is set (tqdm's TQDM_DISABLE does not hide the widget).
    """
    from tqdm.auto import tqdm

    settings: dict[str, Any] = {"disable": bool(os.environ.get("KLVAE_EDU_QUIET")), "dynamic_ncols": True}
    widget = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    if not widget and not sys.stderr.isatty():
        count = total if total is not None else len(iterable) if isinstance(iterable, Sized) else 0
        settings |= {"file": _Lines(), "miniters": max(1, count // 100), "mininterval": 10, "dynamic_ncols": False}
        settings |= {"bar_format": "{desc}: {n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}, {rate_fmt}{postfix}]"}
    return tqdm(iterable, desc=desc, total=total, **{**settings, **tqdm_kwargs})


class _Lines:
    """Standard error as a stream for tqdm, which moves the cursor back instead of beginning a line."""

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
