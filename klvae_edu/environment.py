"""Device, progress bars and process settings.

Neither torch nor tqdm is imported before it is needed: `klvae doctor` works when one of them is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROCESS_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "2147483648",  # bytes; glibc takes larger blocks fresh from the kernel every time
    "MALLOC_TRIM_THRESHOLD_": "8589934592",  # bytes; glibc gives freed memory back above this
    "GOMP_SPINCOUNT": "20000",  # how long a thread of libgomp spins at a barrier before it sleeps
}
"""Environment variables that speed up PyTorch on a CPU under Linux, for a process that starts with them.

By default glibc returns every large activation to the kernel and asks for it again in the next layer (20,000 to 37,000
page faults a training step of the preset `tiny`), and libgomp's threads spin at every barrier, which collapses as soon
as another program wants one of the cores. Measured for that step on 2 shared cores: 823 to 1025 ms by default, 146 to
153 ms with the three settings; on a quiet machine 167 to 172 ms by default. No result changes by a bit.

`make` exports them for all that it starts, and the commands of `klvae` that compute start anew with them. The price:
memory that was needed once stays with the process until it ends, so that peaks are measured without the settings.
"""

_RESTARTED = "KLVAE_EDU_RESTARTED"  # the mark of a process that was already started anew: it never does so twice


def restart_with_process_settings() -> None:
    """Start this process anew, once, with those of `PROCESS_SETTINGS` that are not set; values set by hand stay.

    Only under Linux, where glibc and libgomp read them. The process id stays: launchers and Ctrl-C see no difference.
    """
    missing = {name: value for name, value in PROCESS_SETTINGS.items() if name not in os.environ}
    if not missing or sys.platform != "linux" or _RESTARTED in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing, _RESTARTED: "1"})


def pick_device(name: str | None = None) -> torch.device:
    """The device to compute on: the one named, or the best there is (CUDA, then Apple's MPS, then the CPU).

    Raises:
        ValueError: the device named is not there; the message lists those that are.
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
    """A progress bar (`tqdm.auto`): a widget in a notebook, text in a terminal, silent when KLVAE_EDU_QUIET is set.

    tqdm's own TQDM_DISABLE does not silence the widget, hence our own switch.
    """
    from tqdm.auto import tqdm

    quiet = bool(os.environ.get("KLVAE_EDU_QUIET"))
    return tqdm(iterable, desc=desc, total=total, **{"disable": quiet, "dynamic_ncols": True, **tqdm_kwargs})
