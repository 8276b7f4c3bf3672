"""Failures in `save_pretrained`: the weights that were saved before stay intact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.weights.pretrained import WEIGHTS_NAME

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def filled(value: float) -> AutoencoderKL:
    """Make a model with all weights `value`, so that a mixture of two saves is detected."""
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.fill_(value)
    return vae


def values_in(folder: Path) -> set[float]:
    weights = AutoencoderKL.from_pretrained(folder).state_dict().values()
    return {value for tensor in weights for value in tensor.unique().tolist()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of weights, all of them 1."""
    filled(1.0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "safetensors.torch.save_file"])
def test_an_error_of_the_disk_leaves_the_weights_of_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(function, full)
    with pytest.raises(OSError, match="No space left"):
        filled(2.0).save_pretrained(folder)
    monkeypatch.undo()
    assert values_in(folder) == {1.0}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS_NAME]
    filled(3.0).save_pretrained(folder)  # with space again
    assert values_in(folder) == {3.0}


DISK_FULL = """
import resource, sys
from tests.faults.test_saves import filled
from safetensors import SafetensorError
filled(1.0).save_pretrained(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # a quarter of the weights fits
try:
    filled(2.0).save_pretrained(sys.argv[1])
except (OSError, SafetensorError) as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE")
def test_a_write_that_the_system_really_refuses_leaves_the_weights_of_before(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path / "run")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: ")
    assert values_in(tmp_path / "run") == {1.0}


@needs_fork
@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("call", [1, 2])  # for the weights, for config.json
def test_a_process_killed_at_the_worst_moment_leaves_weights_that_are_whole(
    folder: Path, moment: str, call: int
) -> None:
    child = os.fork()
    if child == 0:  # in the child no exception may reach pytest
        try:
            calls = 0
            module, name = moment.split(".")
            original = getattr(sys.modules[module], name)

            def deadly(*args: object) -> object:
                nonlocal calls
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args)

            setattr(sys.modules[module], name, deadly)
            filled(2.0).save_pretrained(folder)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert values_in(folder) in ({1.0}, {2.0})


@needs_fork
def test_a_process_killed_at_any_moment_leaves_weights_that_are_whole(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for trial in range(12):
        folder = tmp_path / f"model-{trial}"
        filled(0.0).save_pretrained(folder)
        models = [filled(float(step)) for step in range(1, 4)]
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for vae in models:
                        vae.save_pretrained(folder)
            finally:
                os._exit(1)
        time.sleep(0.2 * torch.rand(1, generator=generator).item())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (value,) = values_in(folder)
        seen.add(value)
    assert seen <= {0.0, 1.0, 2.0, 3.0}
    assert len(seen) > 1  # some kills came during or after a save
