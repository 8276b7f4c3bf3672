"""Training runs in separate processes, started like a user's, and the comparison of two runs."""

from __future__ import annotations

import json
import os
import signal
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
from klvae_edu.training.run_folder import LOCK_NAME

TIMEOUT = 300  # seconds, on a busy machine


@pytest.fixture(autouse=True, scope="session")
def hangups_are_not_ignored() -> Iterator[None]:
    """Let the runs have SIGHUP's usual meaning, also where the tests were started with `nohup`, which they inherit."""
    if hasattr(signal, "SIGHUP"):  # Windows has none
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        yield
        signal.signal(signal.SIGHUP, before)
    else:
        yield


def last_step(out: Path) -> int:
    """Return the step of the last complete line in the log of the run in `out`; 0 if there is none."""
    try:
        lines = (out / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0


def log_of(out: Path) -> list[dict[str, float]]:
    """Read the log without the speed, which differs in every run."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "images_per_second"} for record in records]


def equal(first: Any, second: Any) -> bool:
    """Compare tensors, or collections of them, bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def checkpoint_differences(first: Path, second: Path) -> list[str]:
    """List the files of two checkpoints whose tensors or numbers differ."""
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


def left_over(out: Path) -> list[str]:
    """List temporary files and folders of a run. The lock file is none: filelock keeps it on purpose."""
    return sorted(str(path) for path in out.rglob(".*") if path.name != LOCK_NAME)


def run_differences(first: Path, second: Path) -> list[str]:
    """List the results of two runs that differ: weights, last checkpoint, log, pictures, temporary files."""
    names = [sorted(path.name for path in out.iterdir()) for out in (first, second)]
    differing = [] if names[0] == names[1] else [f"the names of the files: {names[0]} and {names[1]}"]
    differing += [f"left over: {path}" for out in (first, second) for path in left_over(out)]
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
    """Start training runs in one process or several, and kill remaining processes at the end."""

    last_step = staticmethod(last_step)
    log = staticmethod(log_of)
    differences = staticmethod(run_differences)
    checkpoint_differences = staticmethod(checkpoint_differences)

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, *options: str, ranks: int = 1, program: tuple[str, ...] = ("-m", "klvae_edu", "train"), **more: Any
    ) -> subprocess.Popen[str]:
        """Start `python -m klvae_edu train …`, or the same under torchrun, in a new process group."""
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
        """Run to the end, and return the printed text."""
        process = self.start(*options, **how)
        printed, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
        return str(printed)

    def wait_for_step(self, process: subprocess.Popen[str], out: Path, step: int) -> None:
        """Wait until the log in `out` has a line for `step`."""
        deadline = time.monotonic() + TIMEOUT
        while last_step(out) < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"step {step} was not reached within {TIMEOUT} s"
            time.sleep(0.005)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill the process and its descendants with SIGKILL: torchrun puts each rank into its own process group."""
        if process.poll() is not None:  # its number may belong to another process now
            return
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=TIMEOUT)
        process.communicate()


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    for process in runs.started:
        runs.kill(process)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small images, on which runs start quickly."""
    folder, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(24):
        coarse = Image.fromarray(chance.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder
