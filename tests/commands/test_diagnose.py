"""`klvae diagnose`: the findings of a run in words, its exit codes, damaged lines, and folders without a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from klvae_edu.cli import main

SHORT = ["train", "--data", "sprites", "--size", "16", "--batch-size", "2", "--held-out", "2", "--device", "cpu"]


@pytest.fixture
def healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a run of two steps."""
    assert main([*SHORT, "--steps", "2", "--out", str(tmp_path / "my run")]) == 0
    assert f"What the log shows: klvae diagnose '{tmp_path / 'my run'}'" in capsys.readouterr().out.splitlines()
    return tmp_path / "my run"


def test_a_healthy_run_is_exit_code_0_and_damaged_lines_are_counted(
    healthy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = healthy / "log.jsonl"
    assert main(["diagnose", str(healthy)]) == 0
    assert capsys.readouterr().out == f"{log}: 2 steps, the last is 2 of 2\nNothing found.\n"
    first, second = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + b"\xff\xfe\n" + b"[1]\n" + second + b'{"step": 3, "lo')  # the last one is being written
    assert main(["diagnose", str(healthy)]) == 0
    printed = f"{log}: 2 steps, the last is 2 of 2; damaged lines passed over: 2\nNothing found.\n"
    assert capsys.readouterr().out == printed
    log.write_bytes(b"")
    assert main(["diagnose", str(healthy)]) == 0


def test_a_run_that_a_loss_ended_points_to_diagnose_which_names_step_and_term(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: Callable[[], str]
) -> None:
    command = [*SHORT, "--steps", "4", "--lr", "1e9", "--grad-clip", "inf", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    message = error_of()
    step = message.split()[1].rstrip(":")
    assert message.endswith(f"A smaller --lr may help; see klvae diagnose {tmp_path / 'run'}")
    assert main(["diagnose", str(tmp_path / "run")]) == 1
    head, _, name, evidence, advice = capsys.readouterr().out.splitlines()
    assert f"the last is {step} of 4" in head
    assert name == "ended by a non-finite loss"
    assert evidence.startswith(f"  In step {step} ") and " is nan" in evidence
    assert "--lr 2.5e+08" in advice
    # Resumed with a smaller rate, the run is healthy, and the record of the failure is gone.
    assert main([*SHORT, "--steps", "4", "--resume", "auto", "--out", str(tmp_path / "run")]) == 0
    assert main(["diagnose", str(tmp_path / "run")]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_folder_without_a_log_is_an_error_that_names_the_stages(tmp_path: Path, error_of: Callable[[], str]) -> None:
    assert main(["diagnose", str(tmp_path / "none")]) == 2
    assert error_of() == f"{tmp_path / 'none'}: expected the folder of a run, with log.jsonl"
    for stage in ("stage-1", "stage-2"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "log.jsonl").touch()
    assert main(["diagnose", str(tmp_path)]) == 2
    assert error_of().endswith(f"; its stages are {tmp_path / 'stage-1'} and {tmp_path / 'stage-2'}")
