"""What the benchmarks share: the machine in words, the memory of a process, ratios with their spread, the report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes: VmRSS is what the process holds now, VmHWM the most it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def begin_peak() -> int:
    """Let VmHWM start anew; what the process holds now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def measured_elsewhere(script: str, *arguments: str) -> int:
    """The number that `script` prints in a fresh process."""
    # With the allocator as it comes: the settings that make it fast keep freed memory in the process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, script, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


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
