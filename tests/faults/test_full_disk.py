"""A full disk: the error is one line, the previous checkpoint is good, and no partial file is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.cli import main
from klvae_edu.training import trainer
from klvae_edu.training.checkpoint import read_description
from klvae_edu.training.run_folder import LOCK_NAME
from klvae_edu.training.setup import Training

AtStep4 = Callable[[Callable[[], None]], None]

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="file-size limits as POSIX has them")


@pytest.fixture
def command(pictures: Path) -> list[str]:
    """A run that saves after steps 2 and 4: checkpoints of 11 MB, and weights of 4 MB in model/."""
    sizes = ["--size", "16", "--batch-size", "1", "--held-out", "1", "--sample-every", "9", "--device", "cpu"]
    return ["train", *sizes, "--steps", "5", "--save-every", "2", "--data", str(pictures)]


@pytest.fixture
def at_step_4(monkeypatch: pytest.MonkeyPatch) -> AtStep4:
    """Call a function once, at the start of step 4, before any of its files is written."""

    def let(happen: Callable[[], None]) -> None:
        make_step = trainer.generator_step

        def step(training: Training, images: Tensor) -> tuple[dict[str, float], Tensor]:
            if training.step == 4:
                monkeypatch.undo()
                happen()
            return make_step(training, images)

        monkeypatch.setattr(trainer, "generator_step", step)

    return let


@pytest.fixture
def no_file_above() -> Iterator[Callable[[int], None]]:
    """Limit the size of all files: larger writes fail like on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def left_over(out: Path) -> list[str]:
    return [path.name for path in out.rglob(".*") if path.name != LOCK_NAME]


@needs_limits
@pytest.mark.parametrize(
    ("file", "size"), [("random_0.pt", 3_000), ("weights.safetensors", 1_000_000), ("optimizers.pt", 5_000_000)]
)
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    file: str,
    size: int,
    command: list[str],
    at_step_4: AtStep4,
    no_file_above: Callable[[int], None],
    runs: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    at_step_4(lambda: no_file_above(size))
    assert main([*command, "--out", str(out)]) == 2
    no_file_above(-1)
    error = capsys.readouterr().err
    assert error.startswith("klvae: step 4 could not be saved") and error.count("\n") == 1
    assert "File too large" in error  # the system's message, not torch's
    good = out / "checkpoints" / "step_0000002"
    assert error.endswith(f"the last good checkpoint is {good}\n")
    assert [path.name for path in good.parent.iterdir()] == [good.name]
    assert read_description(good)["files"][file]["bytes"] > size  # so this file did not fit
    assert left_over(out) == []
    AutoencoderKL.from_pretrained(out / "model")

    assert main([*command, "--out", str(out), "--resume", "auto"]) == 0  # with space again
    assert [record["step"] for record in runs.log(out)] == [1, 2, 3, 4, 5]


@needs_limits
def test_a_log_that_cannot_grow_ends_the_run_in_the_same_way(
    command: list[str],
    at_step_4: AtStep4,
    no_file_above: Callable[[int], None],
    runs: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    log = out / "log.jsonl"
    at_step_4(lambda: no_file_above(log.stat().st_size + 30))
    assert main([*command, "--out", str(out)]) == 2
    no_file_above(-1)
    error = capsys.readouterr().err
    assert error.startswith(f"klvae: {log} could not be written") and error.count("\n") == 1
    assert error.endswith(f"the last good checkpoint is {out / 'checkpoints' / 'step_0000002'}\n")
    assert not log.read_text().endswith("\n")  # a partial line was written

    assert main([*command, "--out", str(out), "--resume", "auto"]) == 0
    assert [record["step"] for record in runs.log(out)] == [1, 2, 3, 4, 5]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk in memory with the given size. A second call changes the size."""
    path, mounted = tmp_path / "disk", False

    def of(size: str) -> Path:
        nonlocal mounted
        path.mkdir(exist_ok=True)
        options = f"remount,size={size}" if mounted else f"size={size}"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)
        if made.returncode:
            pytest.skip("no permission to mount a disk; the tests with file-size limits need none")
        mounted = True
        return path

    yield of
    if mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs")
@pytest.mark.parametrize(
    ("size", "last_good"), [("20m", 2), ("28m", 4)], ids=["in the second checkpoint", "in model/, after it"]
)
def test_a_disk_that_is_really_full(
    size: str,
    last_good: int,
    command: list[str],
    disk: Callable[[str], Path],
    runs: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = disk(size) / "run"
    assert main([*command, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("klvae: step 4 could not be saved") and error.count("\n") == 1
    assert "No space left" in error
    assert error.endswith(f"the last good checkpoint is {out / 'checkpoints' / f'step_{last_good:07d}'}\n")
    assert read_description(out / "checkpoints" / f"step_{last_good:07d}")["step"] == last_good
    assert left_over(out) == []
    AutoencoderKL.from_pretrained(out / "model")

    disk("100m")
    assert main([*command, "--out", str(out), "--resume", "auto"]) == 0
    assert f"Resumed from {out / 'checkpoints' / f'step_{last_good:07d}'}." in capsys.readouterr().out
    assert [record["step"] for record in runs.log(out)] == [1, 2, 3, 4, 5]
