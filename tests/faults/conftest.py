"""Training runs in processes of their own, as a user starts them, and what two runs must have in common."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from klvae_edu.environment import PROCESS_SETTINGS

PATIENCE = 300  # seconds for anything that should happen at all, on a machine that is busy with other things


def last_step(out: Path) -> int:
    """The step of the last whole line in the log of the run in `out`, 0 before there is one."""
    try:
        lines = (out / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0


def log_of(out: Path) -> list[dict[str, float]]:
    """The log, without what no two runs have in common."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "images_per_second"} for record in records]


def equal(first: Any, second: Any) -> bool:
    """Bit for bit, in tensors and in collections of them."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def checkpoint_differences(first: Path, second: Path) -> list[str]:
    """Which files of two checkpoints have other tensors or numbers in them."""
    names = sorted(path.name for path in first.iterdir())
    if names != sorted(path.name for path in second.iterdir()):
        return ["the names of the files"]
    differing = []
    for name in names:
        if name.endswith(".safetensors"):
            same = equal(load_file(first / name), load_file(second / name))
        elif name.endswith(".pt"):
            same = equal(torch.load(first / name), torch.load(second / name))
        else:
            states = [json.loads((folder / name).read_text()) for folder in (first, second)]
            same = equal(*({key: state[key] for key in ("step", "processes", "architecture")} for state in states))
        differing += [] if same else [name]
    return differing


def run_differences(first: Path, second: Path) -> list[str]:
    """Which of the results of two runs differ: weights, last checkpoint, log, pictures, left-over files."""
    names = [sorted(path.name for path in out.iterdir()) for out in (first, second)]
    differing = [] if names[0] == names[1] else [f"the names of the files: {names[0]} and {names[1]}"]
    differing += [f"left over: {path}" for out in (first, second) for path in out.rglob(".*")]
    differing += [
        path.name
        for path in [*sorted((first / "model").iterdir()), *sorted(first.glob("*.png"))]
        if path.read_bytes() != (second / path.relative_to(first)).read_bytes()
    ]
    differing += [] if log_of(first) == log_of(second) else ["log.jsonl"]
    last = [max((out / "checkpoints").iterdir()) for out in (first, second)]
    if last[0].name != last[1].name:
        return [*differing, f"the last checkpoint: {last[0].name} and {last[1].name}"]
    return [*differing, *checkpoint_differences(*last)]


class Runs:
    """Starts training runs, in one process or several, and kills what is left of them at the end."""

    last_step = staticmethod(last_step)
    log = staticmethod(log_of)
    differences = staticmethod(run_differences)
    checkpoint_differences = staticmethod(checkpoint_differences)

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, *options: str, ranks: int = 1, program: tuple[str, ...] = ("-m", "klvae_edu", "train"), **more: Any
    ) -> subprocess.Popen[str]:
        """`python -m klvae_edu train …`, or the same under torchrun, in a process group of its own."""
        command = [sys.executable, *program, *options]
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"]
            command[1:1] = torchrun
        process = subprocess.Popen(
            command,
            env={**os.environ, **PROCESS_SETTINGS, "CUDA_VISIBLE_DEVICES": ""},
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )
        self.started.append(process)
        return process

    def finish(self, *options: str, **how: Any) -> str:
        """Run to the end; what it printed."""
        process = self.start(*options, **how)
        printed, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        return str(printed)

    def wait_for_step(self, process: subprocess.Popen[str], out: Path, step: int) -> None:
        """Until the log in `out` has a line for `step`."""
        deadline = time.monotonic() + PATIENCE
        while last_step(out) < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"no step {step} in sight"
            time.sleep(0.005)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL for the process and all that it has started: torchrun gives each rank a process group of its own."""
        if process.poll() is not None:  # its number may be another's by now
            return
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=PATIENCE)
        process.communicate()


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    for process in runs.started:
        runs.kill(process)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small images: runs on them begin at once."""
    folder, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(24):
        coarse = Image.fromarray(chance.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder
