"""A run that is killed and resumed gives bit for bit the same result as one without interruptions.

`make test` kills three times in one process and three times in two. KLVAE_EDU_KILLS changes the number (`make soak`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

KILLS = int(os.environ.get("KLVAE_EDU_KILLS", "3"))
STEPS = 12  # of the run that is killed at chosen moments
KILLED_STEPS = 4 * KILLS  # of the runs that are killed at random moments, some steps apart

# With a discriminator, averaged weights and two micro-batches a step: all parts of a checkpoint.
OPTIONS = [
    *("--size", "32", "--batch-size", "2", "--accumulate", "2", "--held-out", "3", "--sample-every", "5"),
    *("--ema", "0.9", "--disc-weight", "0.5", "--disc-start", "2", "--disc-channels", "8", "--disc-layers", "2"),
    *("--kl-weight", "0.01", "--kl-warmup", "4"),
    *("--device", "cpu"),
]
IN_TURNS: dict[int, list[str]] = {1: [], 2: ["--alternate"]}  # by the number of processes

posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")

Reference = Callable[..., Path]


@pytest.fixture(scope="module")
def reference(runs: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Make runs without interruptions, which keep checkpoints of their last 12 steps; one for each (ranks, steps)."""
    made: dict[tuple[int, int], Path] = {}

    def of(ranks: int, steps: int) -> Path:
        if (ranks, steps) not in made:
            out = made[ranks, steps] = tmp_path_factory.mktemp("reference") / "run"
            saves = ["--save-every", "1", "--keep", "12", "--steps", str(steps), "--out", str(out)]
            runs.finish(*OPTIONS, *IN_TURNS[ranks], *saves, "--data", str(pictures), ranks=ranks)
        return made[ranks, steps]

    return of


@posix
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments_a_run_ends_like_an_uninterrupted_one(
    ranks: int, runs: Any, reference: Reference, pictures: Path, tmp_path: Path
) -> None:
    whole, out, chance = reference(ranks, KILLED_STEPS), tmp_path / "run", random.Random(ranks)
    records = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    seconds_a_step = 4 * ranks / median(record["images_per_second"] for record in records)
    command = [*OPTIONS, *IN_TURNS[ranks], "--data", str(pictures), "--out", str(out), "--resume", "auto"]
    command += ["--save-every", "2", "--steps", str(KILLED_STEPS)]
    for _ in range(KILLS):
        process = runs.start(*command, ranks=ranks)
        runs.wait_for_step(process, out, runs.last_step(out) + chance.randint(1, 3))
        time.sleep(chance.random() * seconds_a_step)  # in a step, in a save, in a validation
        assert process.poll() is None, process.communicate()
        runs.kill(process)
    printed = runs.finish(*command, ranks=ranks)
    assert "Resumed from" in printed and "Interrupted" not in printed
    assert runs.differences(whole, out) == []


# This process imports everything once, and forks a run for each line that it reads: imports are slow.
FORK_SERVER = """
import io, json, os, re, signal, sys
import accelerate, matplotlib.pyplot, safetensors.torch, shutil, torch._dynamo, tyro
import klvae_edu.plots, klvae_edu.training.trainer
from klvae_edu.cli import main

def die_in(function, pattern, when):
    module, name = function.rsplit(".", 1)
    original = getattr(sys.modules[module], name)

    def deadly(*args, **kwargs):
        paths = [str(arg.name if isinstance(arg, io.IOBase) else arg) for arg in args if not isinstance(arg, dict)]
        if not any(re.search(pattern, path) for path in paths):
            return original(*args, **kwargs)
        if when != "before":
            original(*args, **kwargs)
        if when == "half-way":
            os.truncate(paths[0], os.path.getsize(paths[0]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(sys.modules[module], name, deadly)

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            printed = os.open(order["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            if order["death"]:
                die_in(*order["death"])
            code = main(["train", *order["options"]])
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# Function, pattern of an argument, and the moment of the kill: before the call, after it, or after it with half of the
# file removed. The kills come in this order; each run resumes the one before.
DEATHS: dict[str, tuple[str, str, str]] = {
    "before the first file has its name": ("os.replace", r"training\.json$", "before"),
    "before the first checkpoint is whole": ("torch.save", r"optimizers\.pt$", "half-way"),
    "as the random state is written": ("torch.save", r"random_0\.pt$", "half-way"),
    "as the weights are written": ("safetensors.torch.save_file", r"\.weights\.safetensors", "half-way"),
    "before the weights have their name": ("os.replace", r"weights\.safetensors$", "before"),
    "with state.json written, before the renaming": ("os.rename", r"/step_\d+$", "before"),
    "after the renaming, before model/": ("os.rename", r"/step_\d+$", "after"),
    "as the weights in model/ are written": ("safetensors.torch.save_file", r"/model/", "half-way"),
    "between the weights and config.json": ("os.replace", r"/model/config\.json$", "before"),
    "as an old checkpoint is renamed": ("os.rename", r"\.step_\d+\.partial$", "after"),
    "with an old checkpoint half deleted": ("os.unlink", r"^optimizers\.pt$", "after"),
    "as a picture is written": ("os.replace", r"held_out_\d+\.png$", "before"),
    "as the log is cut back": ("os.replace", r"log\.jsonl$", "before"),
    "after the last checkpoint, before model/": ("os.rename", rf"/step_{STEPS:07d}$", "after"),
}


class Death(NamedTuple):
    """The outcome of one kill."""

    exit_code: int
    step: int  # of the last checkpoint
    differences: dict[str, list[str]]  # from the uninterrupted run's checkpoints, by name
    printed: str


class Chain(NamedTuple):
    """A run that was killed at all of the `DEATHS`, and then finished."""

    out: Path
    deaths: dict[str, Death]
    exit_code: int
    printed: str


@pytest.fixture(scope="module")
def chain(runs: Any, reference: Reference, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    whole, out = reference(1, STEPS), tmp_path_factory.mktemp("chain") / "run"
    server = runs.start(program=("-c", FORK_SERVER), stdin=subprocess.PIPE)
    options = [*OPTIONS, "--save-every", "1", "--steps", str(STEPS), "--data", str(pictures)]
    options += ["--out", str(out), "--resume", "auto"]

    def run(death: tuple[str, str, str] | None) -> tuple[int, str]:
        printed = out.with_suffix(".txt")
        server.stdin.write(json.dumps({"options": options, "death": death, "printed": str(printed)}) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), printed.read_text()

    deaths = {}
    for moment, death in DEATHS.items():
        code, printed = run(death)
        saved = sorted((out / "checkpoints").glob("step_*"))
        differences = {
            folder.name: runs.checkpoint_differences(whole / "checkpoints" / folder.name, folder) for folder in saved
        }
        deaths[moment] = Death(code, int(saved[-1].name[5:]) if saved else 0, differences, printed)
    yield Chain(out, deaths, *run(None))
    runs.kill(server)


@posix
@pytest.mark.parametrize("moment", DEATHS)
def test_killed_at_a_bad_moment_it_leaves_intact_checkpoints_equal_to_the_uninterrupted_run_s(
    moment: str, chain: Chain
) -> None:
    death = chain.deaths[moment]
    assert death.exit_code == -signal.SIGKILL, death.printed  # the kill happened
    assert "Warning" not in death.printed and "klvae:" not in death.printed
    assert not any(death.differences.values()), death.differences


@posix
def test_the_runs_between_two_kills_resume_the_last_checkpoint(chain: Chain) -> None:
    steps = [death.step for death in chain.deaths.values()]
    assert steps[0] == 0 and steps[-1] == STEPS
    assert steps == sorted(steps)
    begins = [f"Resumed from {chain.out}/checkpoints/step_{step:07d}." if step else "" for step in [0, *steps]]
    printed = [*(death.printed for death in chain.deaths.values()), chain.printed]
    assert all(text.startswith(begin) for text, begin in zip(printed, begins, strict=True))


@posix
def test_killed_at_every_bad_moment_a_run_ends_like_an_uninterrupted_one(
    chain: Chain, runs: Any, reference: Reference
) -> None:
    assert chain.exit_code == 0, chain.printed
    assert runs.differences(reference(1, STEPS), chain.out) == []
