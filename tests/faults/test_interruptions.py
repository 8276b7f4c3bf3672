"""Runs that end before their time: Ctrl-C, SIGTERM, a loss that is not finite, a disk that is full."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.cli import main
from klvae_edu.environment import PROCESS_SETTINGS
from klvae_edu.training import trainer

SMALL = ["--size", "16", "--batch-size", "2", "--held-out", "2", "--device", "cpu"]

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


def weights_are_finite(folder: Path) -> bool:
    return all(tensor.isfinite().all() for tensor in AutoencoderKL.from_pretrained(folder).state_dict().values())


def started(out: Path, *options: str) -> subprocess.Popen[str]:
    """A training run in a process group of its own, as a terminal gives it one, that has made three steps."""
    command = [sys.executable, "-m", "klvae_edu", "train", *SMALL, "--steps", "100000", "--out", str(out), *options]
    process = subprocess.Popen(
        command,
        env={**os.environ, **PROCESS_SETTINGS},  # it need not start anew
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline, log = time.monotonic() + 120, out / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.05)
    return process


@posix
@pytest.mark.parametrize(
    ("send", "options"),
    [
        (lambda pid: os.killpg(pid, signal.SIGINT), ["--workers", "1"]),  # Ctrl-C reaches the workers too
        (lambda pid: os.kill(pid, signal.SIGTERM), []),
        (lambda pid: os.killpg(pid, signal.SIGTERM), ["--workers", "1"]),
    ],
    ids=["ctrl-c", "sigterm", "sigterm to all"],
)
def test_an_interrupted_run_saves_its_weights_and_says_how_to_go_on(
    send: Callable[[int], None], options: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(out, *options)
    send(process.pid)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Stopping after this step" in errors

    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert weights_are_finite(out / "model")

    (line,) = [line for line in printed.splitlines() if line.startswith("Interrupted. To go on")]
    words = shlex.split(line.split(": ", 1)[1])
    assert words[:2] == ["klvae", "train"]
    assert words[words.index("--init") + 1] == str(out / "model")
    assert int(words[words.index("--steps") + 1]) == 100000 - steps[-1]
    assert words[words.index("--out") + 1] == str(tmp_path / "run-2")
    words[words.index("--steps") + 1] = "2"
    assert main(words[1:]) == 0  # the command as it was printed works
    assert weights_are_finite(tmp_path / "run-2" / "model")


@posix
def test_a_second_ctrl_c_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def impatient(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(trainer, "generator_step", impatient)
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 130
    assert "klvae: interrupted" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


@posix
def test_after_a_run_ctrl_c_does_again_what_it_did_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(["train", *SMALL, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_interruption_in_the_last_step_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = trainer.generator_step

    def interrupted(*args: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(trainer, "generator_step", interrupted)
    assert main(["train", *SMALL, "--steps", "1", "--out", str(tmp_path / "run")]) == 0


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_the_last_good_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = trainer.generator_step, 0

    def spoiled(model: torch.nn.Module, *args: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            next(model.parameters()).data[0] = float("nan")
        return step(model, *args)

    monkeypatch.setattr(trainer, "generator_step", spoiled)
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--save-every", "2", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("klvae: step 4: the loss is nan")
    assert f"the weights of step 2 are whole in {out / 'model'}" in error and "--lr" in error
    assert error.count("\n") == 1
    assert weights_are_finite(out / "model")
    assert len((out / "log.jsonl").read_text().splitlines()) == 3


def test_a_learning_rate_that_is_far_too_large_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--lr", "1e30", "--out", str(tmp_path / "run")]) == 2
    assert "the loss is" in capsys.readouterr().err


def test_a_full_disk_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync, calls = os.fsync, 0

    def full(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:  # training.json, weights and config.json of the first save
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--save-every", "2", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("klvae: the weights of step 4 could not be saved") and error.count("\n") == 1
    assert "the weights of step 2 are whole" in error
    assert weights_are_finite(out / "model")
