"""Helpers of the benchmarks: name of the machine, memory of a process, times, ratios with their spread, reports."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from klvae_edu.bridge import as_diffusers

if TYPE_CHECKING:
    import diffusers

    from klvae_edu import AutoencoderKL

# The speed of a processor depends on the width of its vectors and on instructions for bfloat16.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def machine(device: str = "cpu") -> str:
    """Name the processor and its features, or the GPU; the number of threads; the version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the architecture of the processor and, where Linux lists them, its `FEATURES`."""
    if not cpuinfo.exists():
        return platform.machine()
    found = set(cpuinfo.read_text().split())
    return " ".join([platform.machine(), *(name for name in FEATURES if name in found)])


def memory(name: str) -> int:
    """Read a line of /proc/self/status, in bytes: VmRSS is the memory of the process now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def begin_peak() -> int:
    """Reset VmHWM, the peak memory, and return the memory that the process has now, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory is returned to the system, and not counted
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def measured_elsewhere(module: str, *arguments: str) -> int:
    """Run a module of this package in a new process, and return the number that it prints."""
    # With the default allocator: settings that make it faster keep freed memory in the process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", module, *arguments]
    root = Path(__file__).parents[1]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=root).stdout)


def times(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each way in each round, after a warm-up round. The first way changes every round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        first = number % len(ways)
        for way in [*ways][first:] + [*ways][:first]:
            start = time.perf_counter()
            ways[way]()
            if number:
                seconds[way].append(time.perf_counter() - start)
    return seconds


def diffusers_twin(vae: AutoencoderKL) -> diffusers.AutoencoderKL:
    """Build diffusers' model with the same configuration and a copy of the weights."""
    return as_diffusers(vae.clone()).eval()


def ratios(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, list[float]]:
    """Divide each way's time by the time of `reference` in the same round: median, minimum, maximum over rounds."""
    found = {}
    for way, values in seconds.items():
        of_rounds = [one / other for one, other in zip(values, seconds[reference], strict=True)]
        found[way] = [round(value, 3) for value in (median(of_rounds), min(of_rounds), max(of_rounds))]
    return found


def write(report: Mapping[str, Any], path: Path) -> None:
    """Write a report to the file `path`, and print it."""
    text = json.dumps(report, indent=2)
    path.write_text(text + "\n")
    print(text)
