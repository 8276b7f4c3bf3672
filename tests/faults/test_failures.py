"""Failures of the machine: one message with the last good checkpoint and the command to resume, exit status 2."""

from __future__ import annotations

import multiprocessing
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from klvae_edu.cli import main
from klvae_edu.training import trainer
from klvae_edu.training.setup import Training

TIMEOUT = 300  # seconds, on a busy machine


def allocate_too_much() -> None:
    torch.empty(10**15)


def allocate_too_much_in_numpy() -> None:
    np.empty(10**15)


def run_out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB")


def run_out_of_memory() -> None:
    raise MemoryError


def lose_a_worker() -> None:
    """Kill a worker as the system does when memory is short."""
    multiprocessing.active_children()[0].kill()
    time.sleep(TIMEOUT)  # until PyTorch reports it


@pytest.mark.parametrize(
    ("fail", "options", "words"),
    [
        (allocate_too_much, [], "not enough memory for 4000000000000000 bytes more; a smaller --batch-size"),
        (allocate_too_much_in_numpy, [], "not enough memory for 7.11 PiB more; a smaller --batch-size"),
        (run_out_of_gpu_memory, [], "not enough memory for 20.00 GiB more; a smaller --batch-size"),
        (run_out_of_memory, [], "not enough memory; a smaller --batch-size"),
        (lose_a_worker, ["--workers", "2"], "a --workers process was killed by signal: Killed, perhaps for lack of"),
    ],
)
def test_the_message_names_the_failure_and_the_way_on(
    fail: Callable[[], None],
    options: list[str],
    words: str,
    pictures: Path,
    runs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_step = trainer.generator_step

    def failing(training: Training, images: Tensor) -> tuple[dict[str, float], Tensor]:
        if training.step == 3:
            fail()
        return make_step(training, images)

    out = tmp_path / "run"
    sizes = ["--size", "16", "--batch-size", "2", "--held-out", "2", "--device", "cpu", "--steps", "4"]
    command = ["train", *sizes, *options, "--save-every", "2", "--data", str(pictures), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "generator_step", failing)
        assert main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "steps [" not in line]
    assert line.startswith(f"klvae: {words}")
    assert f"; the last good checkpoint is {out / 'checkpoints' / 'step_0000002'}. To resume: klvae train " in line

    _, *resume = shlex.split(line.split("To resume: ")[1])
    assert main(resume) == 0
    assert [record["step"] for record in runs.log(out)] == [1, 2, 3, 4]


def test_an_error_of_another_kind_is_not_taken_for_a_failure_of_the_machine(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(training: Training, images: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainer, "generator_step", wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main(["train", "--size", "16", "--data", str(pictures), "--device", "cpu", "--out", str(tmp_path / "run")])
