"""Devices, progress bars, process settings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from klvae_edu import environment
from klvae_edu.environment import PROCESS_SETTINGS, pick_device, progress


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_without_an_accelerator_the_device_is_the_cpu(bare_machine: None) -> None:
    assert pick_device() == torch.device("cpu")


def test_cuda_comes_before_mps_and_mps_before_the_cpu(bare_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device() == torch.device("cuda")


def test_a_device_can_be_named(two_gpus: None) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "tpu", "gpu"])
def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(bare_machine: None, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is not available here; available: cpu"):
        pick_device(name)


def test_a_gpu_beyond_the_last_is_not_available(two_gpus: None) -> None:
    with pytest.raises(ValueError, match="'cuda:2' is not available here; available: cuda:0, cuda:1, "):
        pick_device("cuda:2")


def test_progress_passes_its_items_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLVAE_EDU_QUIET", raising=False)
    assert list(progress(range(3), desc="counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err


def test_progress_writes_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log file the cursor cannot go back: a thousand updates must not be a thousand lines, or one long one."""
    monkeypatch.delenv("KLVAE_EDU_QUIET", raising=False)
    with progress(total=1000, desc="training", unit="step", mininterval=0) as bar:
        for number in range(1000):
            bar.set_postfix({"loss": f"0.{number}"}, refresh=False)
            bar.update()
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert "\r" not in text and 10 <= len(lines) <= 102
    assert all(line.startswith("training: ") and "/1000 steps [" in line for line in lines)
    assert lines[-1].startswith("training: 1000/1000 steps") and lines[-1].endswith("loss=0.999]")


def test_progress_is_silent_when_it_is_asked_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLVAE_EDU_QUIET", "1")
    assert list(progress(range(3), desc="counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


RESTARTED = """
import os
from klvae_edu.environment import PROCESS_SETTINGS, restart_with_process_settings
print("start", os.getpid())
restart_with_process_settings()
print("settled", os.getpid(), *(os.environ[name] for name in PROCESS_SETTINGS))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are for glibc and libgomp")
def test_a_process_starts_anew_once_with_the_settings_it_lacks() -> None:
    env = {name: value for name, value in os.environ.items() if name not in PROCESS_SETTINGS}
    env["GOMP_SPINCOUNT"] = "7"  # a value that is already set stays
    done = subprocess.run([sys.executable, "-c", RESTARTED], env=env, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    pid = lines[0][1]
    assert lines == [["start", pid], ["start", pid], ["settled", pid, "2147483648", "8589934592", "7"]]


@pytest.fixture
def execve(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Record the environments of the processes that would be started."""
    started: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, env: started.append(env))
    for name in (*PROCESS_SETTINGS, environment._RESTART_MARK):
        monkeypatch.delenv(name, raising=False)
    return started


def test_a_process_with_every_setting_stays(execve: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PROCESS_SETTINGS.items():
        monkeypatch.setenv(name, value)
    environment.restart_with_process_settings()
    assert execve == []


def test_a_process_whose_settings_are_lost_restarts_only_once(
    execve: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    environment.restart_with_process_settings()
    assert len(execve) == 1
    monkeypatch.setenv(environment._RESTART_MARK, execve[0][environment._RESTART_MARK])  # the only setting that is left
    environment.restart_with_process_settings()
    assert len(execve) == 1


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_do_not_need_the_settings(
    execve: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    environment.restart_with_process_settings()
    assert execve == []
