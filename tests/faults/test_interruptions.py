"""Runs that end early: Ctrl-C, SIGTERM, SIGHUP, a loss that is not finite."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.cli import main
from klvae_edu.perceptual import LPIPS
from klvae_edu.training import steps, trainer
from klvae_edu.training.checkpoint import read_description
from klvae_edu.training.setup import Training

TIMEOUT = 300  # seconds, on a busy machine
ENDLESS = 100_000  # steps

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


@pytest.fixture
def small(pictures: Path) -> list[str]:
    """The options of a run whose steps take milliseconds."""
    sizes = ["--size", "16", "--batch-size", "2", "--held-out", "2", "--device", "cpu"]
    return [*sizes, "--data", str(pictures)]


def weights_are_finite(folder: Path) -> bool:
    return all(tensor.isfinite().all() for tensor in AutoencoderKL.from_pretrained(folder).state_dict().values())


def how_to_resume(printed: str) -> list[str]:
    """The words of the command that an interrupted run ends with."""
    (line,) = [line for line in printed.splitlines() if line.startswith("Interrupted. To resume: ")]
    return shlex.split(line.split(": ", 1)[1])


@posix
@pytest.mark.parametrize(
    ("send", "options"),
    [
        (lambda pid: os.killpg(pid, signal.SIGINT), ["--workers", "1"]),  # Ctrl-C reaches the workers, too
        (lambda pid: os.kill(pid, signal.SIGTERM), []),
        (lambda pid: os.killpg(pid, signal.SIGTERM), ["--workers", "1"]),
        (lambda pid: os.killpg(pid, signal.SIGHUP), ["--workers", "1"]),  # the window of the terminal is closed
    ],
    ids=["ctrl-c", "sigterm", "sigterm to all", "sighup to all"],
)
def test_an_interrupted_run_saves_everything_and_says_how_to_resume(
    send: Callable[[int], None], options: list[str], small: list[str], runs: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = runs.start(*small, *options, "--steps", str(ENDLESS), "--out", str(out))
    runs.wait_for_step(process, out, 3)
    send(process.pid)
    printed, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Stopping after this step" in errors

    step = runs.last_step(out)
    assert [record["step"] for record in runs.log(out)] == list(range(1, step + 1))
    assert weights_are_finite(out / "model")
    assert read_description(out / "checkpoints" / f"step_{step:07d}")["step"] == step

    words = how_to_resume(printed)
    assert words[:2] == ["klvae", "train"]
    for option, value in {"--resume": "auto", "--out": str(out), "--steps": str(ENDLESS)}.items():
        assert words[words.index(option) + 1] == value
    words[words.index("--steps") + 1] = str(step + 2)
    assert main(words[1:]) == 0  # the printed command works
    assert runs.last_step(out) == step + 2


@posix
def test_two_processes_stop_after_the_same_step_whichever_is_asked(small: list[str], runs: Any, tmp_path: Path) -> None:
    out, step = tmp_path / "run", 0
    options = [*small, "--steps", str(ENDLESS), "--out", str(out)]

    def ctrl_c(torchrun: subprocess.Popen[str]) -> None:
        os.killpg(torchrun.pid, signal.SIGINT)  # torchrun passes the signal on

    def sigterm_for_one(torchrun: subprocess.Popen[str]) -> None:
        psutil.Process(torchrun.pid).children()[-1].terminate()

    for send in (ctrl_c, sigterm_for_one):
        process = runs.start(*options, ranks=2)
        runs.wait_for_step(process, out, step + 3)
        send(process)
        printed, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode not in (0, -signal.SIGKILL), errors
        assert errors.count("Stopping after this step") >= 1
        assert not step or f"Resumed from {out}/checkpoints/step_{step:07d}." in printed
        step = runs.last_step(out)
        state = read_description(out / "checkpoints" / f"step_{step:07d}")
        assert (state["step"], state["processes"]) == (step, 2)
        assert [record["step"] for record in runs.log(out)] == list(range(1, step + 1))
        launcher, options = how_to_resume(printed)[:6], how_to_resume(printed)[6:]
        assert launcher == ["torchrun", "--nproc-per-node", "2", "-m", "klvae_edu", "train"]


@posix
def test_a_second_ctrl_c_stops_at_once(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def impatient(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(trainer, "generator_step", impatient)
    assert main(["train", *small, "--out", str(tmp_path / "run")]) == 130
    assert "klvae: interrupted" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


@posix
def test_after_a_run_ctrl_c_does_again_what_it_did_before(small: list[str], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(["train", *small, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_interruption_in_the_last_step_is_none(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step = trainer.generator_step

    def interrupted(*args: Any) -> tuple[dict[str, float], Tensor]:
        signal.raise_signal(signal.SIGINT)
        return make_step(*args)

    monkeypatch.setattr(trainer, "generator_step", interrupted)
    assert main(["train", *small, "--steps", "1", "--out", str(tmp_path / "run")]) == 0


Spoil = Callable[[Training, Tensor, pytest.MonkeyPatch], None]


def spoil_image(training: Training, images: Tensor, patch: pytest.MonkeyPatch) -> None:
    images[0, 0, 0, 0] = float("nan")


def spoil_lpips(training: Training, images: Tensor, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LPIPS, "forward", lambda self, images, targets: (images * float("nan")).mean((1, 2, 3)))


def spoil_kl(training: Training, images: Tensor, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(steps, "kl_loss", lambda posterior, *args: posterior.kl().mean() * float("inf"))


def spoil_discriminator(training: Training, images: Tensor, patch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        next(training.patchgan.parameters()).fill_(float("nan"))


DISCRIMINATOR = ["--disc-weight", "0.5", "--disc-channels", "4", "--disc-layers", "1"]


@pytest.mark.parametrize(
    ("term", "spoil", "options"),
    [
        ("pixel is nan", spoil_image, DISCRIMINATOR),
        ("perceptual is nan", spoil_lpips, ["--perceptual-weight", "1", "--lpips", "untrained"]),
        ("kl is inf", spoil_kl, DISCRIMINATOR),
        ("adversarial is nan", spoil_discriminator, DISCRIMINATOR),
        ("disc_loss is nan", spoil_discriminator, [*DISCRIMINATOR, "--disc-start", "9", "--disc-warmup", "9"]),
        ("disc_loss is nan", spoil_discriminator, [*DISCRIMINATOR, "--disc-start", "3", "--alternate"]),
    ],
    ids=["pixel", "perceptual", "kl", "adversarial", "disc_loss before its start", "disc_loss in turns"],
)
def test_a_term_that_is_not_finite_ends_the_run_with_its_step_and_the_last_good_checkpoint(
    term: str,
    spoil: Spoil,
    options: list[str],
    small: list[str],
    runs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"

    def spoiling(make_step: Callable[..., Any]) -> Callable[..., Any]:
        def spoiled(training: Training, images: Tensor) -> Any:
            if training.step == 4:
                spoil(training, images, patch)
            return make_step(training, images)

        return spoiled

    command = ["train", *small, *options, "--save-every", "2", "--steps", "5", "--out", str(out)]
    with monkeypatch.context() as patch:
        for name in ("generator_step", "reconstruct"):  # one of them begins every step
            patch.setattr(trainer, name, spoiling(getattr(trainer, name)))
        assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("klvae: step 4: ") and error.count("\n") == 1
    assert f"{term}" in error and "--lr" in error
    assert f"the last good checkpoint is {out / 'checkpoints' / 'step_0000002'}" in error
    assert [record["step"] for record in runs.log(out)] == [1, 2, 3, 4]
    assert runs.log(out)[-1].keys() == {"step", "error"}  # read by `klvae diagnose`
    assert weights_are_finite(out / "model")
    assert main([*command, "--resume", "auto"]) == 0  # after the cause is removed
    assert [record["step"] for record in runs.log(out)] == [1, 2, 3, 4, 5]


def test_a_learning_rate_that_is_far_too_large_is_noticed(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *small, "--lr", "1e30", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "loss is" in error and "nothing was saved in" in error
