"""Devices, progress bars, process settings, and the checks of `klvae doctor`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from klvae_edu import environment
from klvae_edu.environment import PROCESS_SETTINGS, Check, pick_device, progress


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
    env["GOMP_SPINCOUNT"] = "7"  # set by hand: it stays
    done = subprocess.run([sys.executable, "-c", RESTARTED], env=env, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    pid = lines[0][1]
    assert lines == [["start", pid], ["start", pid], ["settled", pid, "2147483648", "8589934592", "7"]]


@pytest.fixture
def execve(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments of the processes that would have been started."""
    started: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, env: started.append(env))
    for name in (*PROCESS_SETTINGS, environment._RESTARTED):
        monkeypatch.delenv(name, raising=False)
    return started


def test_a_process_with_every_setting_goes_on(execve: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PROCESS_SETTINGS.items():
        monkeypatch.setenv(name, value)
    environment.restart_with_process_settings()
    assert execve == []


def test_a_process_whose_settings_are_lost_does_not_start_anew_for_ever(
    execve: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    environment.restart_with_process_settings()
    assert len(execve) == 1
    monkeypatch.setenv(environment._RESTARTED, execve[0][environment._RESTARTED])  # all that is left of it
    environment.restart_with_process_settings()
    assert len(execve) == 1


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_do_not_need_the_settings(
    execve: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    environment.restart_with_process_settings()
    assert execve == []
    assert environment.check_process_settings().ok


def test_every_check_of_the_doctor_has_its_say_and_what_is_required_is_here() -> None:
    checks = list(environment.doctor())
    assert {"python", "memory", "disk", "write access", "torch loads", "gpu", "torchvision fits torch"} <= {
        check.name for check in checks
    }
    assert [check for check in checks if check.required and not check.ok] == []
    assert all(check.detail and (check.ok or check.remedy) for check in checks)


def test_the_doctor_looks_at_every_package_of_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    required = {Requirement(line).name for line in project["dependencies"]}
    optional = {Requirement(line).name for group in ("course", "test") for line in groups[group]}
    checks = list(environment.check_requirements())
    assert {check.name for check in checks if check.required} == required
    assert {check.name for check in checks if not check.required} == optional


def test_a_missing_package_fails_with_the_command_that_installs_it() -> None:
    check = environment.check_package("no-such-package-anywhere", ">=1.0")
    assert check == Check(
        "no-such-package-anywhere", False, "not installed, wanted >=1.0", "pip install 'no-such-package-anywhere>=1.0'"
    )


def test_a_missing_optional_package_says_who_needs_it() -> None:
    check = environment.check_package("no-such-package-anywhere", ">=1.0", "the notebooks need it")
    assert not check.ok and not check.required
    assert "the notebooks need it" in check.remedy


def test_a_package_that_is_too_old_fails_with_both_versions() -> None:
    found = metadata.version("numpy")
    check = environment.check_package("numpy", ">=999")
    assert not check.ok
    assert check.detail == f"{found}, wanted >=999"


def test_a_package_that_is_not_installed_at_all_is_told_from_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_found)
    (check,) = environment.check_requirements()
    assert not check.ok and "pip install -e" in check.remedy


def test_a_torch_that_cannot_be_loaded_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    check = environment.check_torch()
    assert not check.ok and "ModuleNotFoundError" in check.detail
    assert not environment.check_gpu().ok


def test_a_torchvision_built_for_another_torch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(environment.importlib, "import_module", broken)
    check = environment.check_torchvision()
    assert not check.ok and "nms" in check.detail and "together" in check.remedy


def test_a_gpu_that_does_not_compute_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "pick_device", lambda: torch.device("meta"))  # a device that holds no numbers
    check = environment.check_gpu()
    assert not check.ok and not check.required and "--device cpu" in check.remedy


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert not environment.check_python().ok


def test_too_little_disk_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert environment.check_disk(tmp_path).ok == (shutil.disk_usage(tmp_path).free >= environment.DISK_NEEDED)
    monkeypatch.setattr(environment, "DISK_NEEDED", 2**80)
    check = environment.check_disk(tmp_path)
    assert not check.ok and str(tmp_path) in check.detail


def test_too_little_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MEMORY_NEEDED", 2**80)
    assert not environment.check_memory().ok


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    assert environment.check_write_access(tmp_path).ok
    assert list(tmp_path.iterdir()) == []
    assert not environment.check_write_access(tmp_path / "missing").ok


def test_missing_settings_are_a_note_with_the_line_that_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name, value in PROCESS_SETTINGS.items():
        monkeypatch.setenv(name, value)
    assert environment.check_process_settings().ok
    monkeypatch.delenv("GOMP_SPINCOUNT")
    check = environment.check_process_settings()
    assert not check.ok and not check.required
    assert "export GOMP_SPINCOUNT=20000" in check.remedy and "MALLOC" not in check.detail
