"""`klvae train --resume` with checkpoints that are damaged, malicious, or of another run."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from klvae_edu.cli import main
from klvae_edu.training.checkpoint import read_description, sealed
from klvae_edu.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def command(pictures: Path) -> list[str]:
    """A run of four steps with all parts of a checkpoint; it saves after steps 2 and 4."""
    sizes = ["--size", "16", "--batch-size", "1", "--held-out", "1", "--steps", "4", "--save-every", "2"]
    networks = ["--disc-weight", "0.5", "--disc-channels", "4", "--disc-layers", "1", "--ema", "0.9"]
    return ["train", *sizes, *networks, "--sample-every", "9", "--data", str(pictures), "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run, for the test to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Flip one bit near the end; in `state.json` it is in the hash of the file."""
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, flip, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizers.pt", "random_0.pt", "state.json"])
def test_auto_takes_the_checkpoint_before_one_with_a_damaged_file(
    name: str, damage: Callable[[Path], None], out: Path
) -> None:
    folder = RunFolder(out, "auto")
    damage(folder.checkpoint(4) / name)
    with pytest.warns(UserWarning, match=rf"step_0000004.*({name}|damaged).*; trying the checkpoint before it"):
        assert folder.find_checkpoint() == folder.checkpoint(2)


def test_from_the_checkpoint_before_the_run_ends_as_it_did(
    command: list[str], whole: Path, out: Path, runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(out / "checkpoints" / "step_0000004" / "weights.safetensors")
    shutil.rmtree(out / "model")
    with pytest.warns(UserWarning, match=r"step_0000004/weights\.safetensors: damaged"):
        assert main([*command, "--out", str(out), "--resume", "auto"]) == 0
    assert f"Resumed from {out}/checkpoints/step_0000002." in capsys.readouterr().out
    assert runs.differences(whole, out) == []


def test_when_all_are_damaged_or_the_one_that_is_named_nothing_is_touched(
    command: list[str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = out / "checkpoints" / "step_0000004"
    flip(last / "optimizers.pt")
    cut(out / "checkpoints" / "step_0000002" / "random_0.pt")
    before = contents(out)
    assert main([*command, "--out", str(out), "--resume", str(last)]) == 2
    assert capsys.readouterr().err == f"klvae: {last / 'optimizers.pt'}: damaged: its contents have changed\n"
    with pytest.warns(UserWarning, match="damaged"):
        assert main([*command, "--out", str(out), "--resume", "auto"]) == 2
    error = capsys.readouterr().err
    assert error == f"klvae: resume: expected an intact checkpoint, but every one in {last.parent} is damaged\n"
    assert contents(out) == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (["--preset", "mini"], "block_out_channels: expected [32, 64, 64, 64], got [32, 64, 64]"),
        (["--padding-mode", "reflect"], "another autoencoder, padding_mode: expected reflect, got zeros"),
        (["--disc-channels", "8"], "another discriminator, disc_channels: expected 8, got 4"),
        (["--disc-weight", "0"], "another discriminator, which this run has not and the checkpoint has"),
        (["--ema", "0"], "another training, averaged: expected False, got True"),
        (["--trained-part", "decoder"], "another training, trained_part: expected decoder, got all"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(
    changes: list[str], difference: str, command: list[str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(out)
    assert main([*command, *changes, "--out", str(out), "--resume", "auto"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("klvae: ") and difference in error and error.count("\n") == 1
    assert contents(out) == before


def test_resume_needs_the_folder_of_a_run(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear reader")
    assert main([*command, "--out", str(tmp_path / "letters"), "--resume", "auto"]) == 2
    assert "is in use, and nothing in it was changed" in capsys.readouterr().err
    assert contents(tmp_path / "letters") == {"letter.txt": b"dear reader"}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_where_there_is_nothing_to_resume_a_run_begins_at_the_beginning(
    there: bool, command: list[str], whole: Path, runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if there:
        (tmp_path / "run").mkdir()
    assert main([*command, "--out", str(tmp_path / "run"), "--resume", "auto"]) == 0
    assert "Resumed" not in capsys.readouterr().out
    assert runs.differences(whole, tmp_path / "run") == []


def test_the_next_checkpoint_of_a_run_replaces_the_later_ones(command: list[str], out: Path, runs: Any) -> None:
    """Otherwise the next `--resume auto` would use one of them, which belongs to the other run."""
    earlier = out / "checkpoints" / "step_0000002"
    changed = [*command, "--lr", "1e-4", "--steps", "3", "--keep", "1", "--out", str(out)]
    assert main([*changed, "--resume", str(earlier)]) == 0
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_0000003"]
    assert [record["step"] for record in runs.log(out)] == [1, 2, 3]


def test_changed_data_are_said(
    command: list[str], out: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    run = [
        *command[: command.index("--data")],
        "--data",
        str(images),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "new"),
    ]
    assert main(run) == 0
    more = [*run, "--steps", "5", "--resume", "auto"]
    (images / "3.png").rename(images / "another.png")
    assert main(more) == 0
    printed = capsys.readouterr().out
    assert (
        f"The data are not those of the checkpoint (by names, sizes and times of files): 1 added ({images}" in printed
    )
    assert "another.png), 1 removed." in printed
    assert main([*more, "--steps", "6"]) == 0
    assert "The data are not those" not in capsys.readouterr().out


def test_a_checkpoint_without_a_listing_of_the_data_is_resumed(
    command: list[str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = out / "checkpoints" / "step_0000004"
    state = read_description(last)
    (last / "data.pt").unlink()
    del state["files"]["data.pt"]
    (last / "state.json").write_text(sealed(state))
    assert main([*command, "--steps", "5", "--out", str(out), "--resume", "auto"]) == 0
    assert "The data are not those" not in capsys.readouterr().out


def test_resuming_in_a_new_folder_leaves_the_old_one_unchanged(
    command: list[str], out: Path, runs: Any, tmp_path: Path
) -> None:
    before, new = contents(out), tmp_path / "branch"
    earlier = out / "checkpoints" / "step_0000002"
    assert main([*command, "--out", str(new), "--resume", str(earlier)]) == 0
    assert contents(out) == before
    assert [record["step"] for record in runs.log(new)] == [3, 4]
    assert runs.checkpoint_differences(*(run / "checkpoints" / "step_0000004" for run in (out, new))) == []


class Planted:
    """Unpickling this object creates a file."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return Path.touch, (self.trap,)


@pytest.mark.parametrize("forged", [False, True], ids=["planted", "planted and its fingerprint forged"])
@pytest.mark.parametrize("name", ["optimizers.pt", "random_0.pt"])
def test_nothing_in_a_checkpoint_is_executed(
    name: str, forged: bool, command: list[str], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, trap = out / "checkpoints" / "step_0000004", tmp_path / "trap"
    content = pickle.dumps({"autoencoder": Planted(trap), "cpu": Planted(trap)}, protocol=2)
    state = read_description(folder)
    (folder / name).write_bytes(content)
    if forged:
        state["files"][name] = {"bytes": len(content), "blake2b": hashlib.blake2b(content).hexdigest()}
        (folder / "state.json").write_text(sealed(state))
    before = contents(out)
    assert main([*command, "--out", str(out), "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"klvae: {folder / name}: ") and error.count("\n") == 1
    assert ("expected tensors, numbers and their names" if forged else "damaged") in error
    assert contents(out) == before
    assert not trap.exists()
    pickle.loads(content)  # the trap works
    assert trap.exists()
