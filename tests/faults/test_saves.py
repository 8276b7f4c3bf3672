"""Saves that go wrong: whatever happens while weights are written, the ones saved before are whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.checkpoints import WEIGHTS_NAME
from klvae_edu.environment import PROCESS_SETTINGS
from klvae_edu.training.state import RunFolder

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def filled(value: float) -> AutoencoderKL:
    """A model whose every weight is `value`, so that a mixture of two saves would show."""
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.fill_(value)
    return vae


def values_in(folder: Path) -> set[float]:
    weights = AutoencoderKL.from_pretrained(folder).state_dict().values()
    return {value for tensor in weights for value in tensor.unique().tolist()}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has saved its weights, all of them 1, after step 1."""
    folder = RunFolder(tmp_path / "run")
    folder.save(filled(1.0), 1)
    return folder


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "safetensors.torch.save_file"])
def test_an_error_of_the_disk_is_told_with_the_step_whose_weights_are_whole(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(function, full)
    with pytest.raises(OSError, match=r"step 2 could not be saved .*No space left.*; the weights of step 1 are whole"):
        folder.save(filled(2.0), 2)
    monkeypatch.undo()
    assert values_in(folder.model) == {1.0}
    assert sorted(path.name for path in folder.model.iterdir()) == ["config.json", WEIGHTS_NAME]
    folder.save(filled(3.0), 3)  # once there is room again
    assert values_in(folder.model) == {3.0}


def test_the_first_save_may_fail_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"nothing was saved in .* before"):
        RunFolder(tmp_path).save(filled(1.0), 1)


DISK_FULL = """
import resource, sys
from klvae_edu.training.state import RunFolder
from tests.faults.test_saves import filled
from pathlib import Path
folder = RunFolder(Path(sys.argv[1]))
folder.save(filled(1.0), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # a quarter of the weights fits
try:
    folder.save(filled(2.0), 2)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE")
def test_a_write_that_the_system_really_refuses_leaves_the_weights_of_before(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path / "run")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "step 2 could not be saved" in done.stdout and "step 1 are whole" in done.stdout
    assert values_in(tmp_path / "run" / "model") == {1.0}


@needs_fork
@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("call", [1, 2])  # for the weights, for config.json
def test_a_process_killed_at_the_worst_moment_leaves_weights_that_are_whole(
    folder: RunFolder, moment: str, call: int
) -> None:
    child = os.fork()
    if child == 0:  # from here to the kill, nothing may raise into pytest
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
            folder.save(filled(2.0), 2)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert values_in(folder.model) in ({1.0}, {2.0})


@needs_fork
def test_a_process_killed_at_any_moment_leaves_weights_that_are_whole(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for trial in range(12):
        folder = RunFolder(tmp_path / f"run-{trial}")
        folder.save(filled(0.0), 0)
        models = [filled(float(step)) for step in range(1, 4)]
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for step, vae in enumerate(models, start=1):
                        folder.save(vae, step)
            finally:
                os._exit(1)
        time.sleep(0.2 * torch.rand(1, generator=generator).item())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (value,) = values_in(folder.model)
        seen.add(value)
    assert seen <= {0.0, 1.0, 2.0, 3.0}
    assert len(seen) > 1  # the kills did hit processes that were saving


def test_a_training_run_that_is_killed_leaves_its_last_save(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--size", "16", "--batch-size", "1", "--steps", "100000", "--held-out", "1", "--save-every", "1"]
    command = [sys.executable, "-m", "klvae_edu", "train", *options, "--out", str(run), "--device", "cpu"]
    env = {**os.environ, **PROCESS_SETTINGS}  # it need not start anew
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        log = run / "log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= 5):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "the run did not get going"
            time.sleep(0.05)
        process.kill()
    vae = AutoencoderKL.from_pretrained(run / "model")
    assert all(tensor.isfinite().all() for tensor in vae.state_dict().values())
    whole_lines = (run / "log.jsonl").read_text().splitlines()[:-1]
    assert [json.loads(line)["step"] for line in whole_lines] == list(range(1, len(whole_lines) + 1))
