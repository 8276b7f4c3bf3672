"""What the benchmarks share: the machine in words, the memory of a process, ratios with their spread, the report."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import diffusers

    from klvae_edu import AutoencoderKL

# What decides how fast a processor multiplies: width of its vectors, and instructions for bfloat16.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def machine(device: str = "cpu") -> str:
    """Processor with its features, or GPU; threads; version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its architecture and its `FEATURES`, where Linux lists them."""
    if not cpuinfo.exists():
        return platform.machine()
    found = set(cpuinfo.read_text().split())
    return " ".join([platform.machine(), *(name for name in FEATURES if name in found)])


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes: VmRSS is what the process holds now, VmHWM the most it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def begin_peak() -> int:
    """Let VmHWM start anew; what the process holds now, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free already must not be counted as held
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def measured_elsewhere(module: str, *arguments: str) -> int:
    """Run a module of this package in a fresh process, and return the number that it prints."""
    # With the allocator as it comes: the settings that make it fast keep freed memory in the process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", module, *arguments]
    root = Path(__file__).parents[1]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=root).stdout)


def times(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one that does not count. Who begins changes every round."""
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
    """diffusers' model of the same configuration and with the same weights."""
    import diffusers

    peer = diffusers.AutoencoderKL(**{name: value for name, value in asdict(vae.config).items() if value is not None})
    peer.load_state_dict(vae.state_dict())
    return peer.to(vae.device).eval()


def ratios(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, list[float]]:
    """Each way's time over that of `reference` in the same round: median, smallest and largest over the rounds."""
    found = {}
    for way, values in seconds.items():
        of_rounds = [one / other for one, other in zip(values, seconds[reference], strict=True)]
        found[way] = [round(value, 3) for value in (median(of_rounds), min(of_rounds), max(of_rounds))]
    return found


def write(report: Mapping[str, Any], path: Path) -> None:
    """Into the file `path` and onto the screen."""
    text = json.dumps(report, indent=2)
    path.write_text(text + "\n")
    print(text)
