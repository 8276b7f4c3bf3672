"""The folder of a run: what it refuses, what it takes up again, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from klvae_edu import AutoencoderKL
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.run_folder import RunFolder, unused
from klvae_edu.training.setup import Training, set_up, start_accelerator


def training_in(out: Path, **changes: Any) -> Training:
    config = TrainingConfig(out=out, size=16, device="cpu", **changes)
    return set_up(config, start_accelerator(config))


def run_saved_at(out: Path, *steps: int, keep: int = 2) -> Training:
    """A run's folder after saves at these steps."""
    training, folder = training_in(out, keep=keep), RunFolder(out)
    folder.start(training.config)
    for step in steps:
        training.step = step
        folder.log({"step": step})
        folder.save(training)
    folder.release()
    return training


def test_a_folder_in_use_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run-2").mkdir()
    with pytest.raises(FileExistsError, match=f"in use, and nothing in it was changed.* --out {tmp_path / 'run-3'}$"):
        RunFolder(tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileExistsError, match="in use"):
        RunFolder(tmp_path / "run")


def test_nothing_is_written_before_the_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []
    folder.start(TrainingConfig(seed=5))
    assert json.loads((tmp_path / "a" / "run" / "training.json").read_text())["seed"] == 5


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    RunFolder(tmp_path).start(TrainingConfig())
    assert (tmp_path / "training.json").exists()


def test_the_log_has_one_object_a_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "loss": 0.5})
    folder.log({"step": 2, "loss": 0.25})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_picture_has_its_step_in_its_name(tmp_path: Path) -> None:
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    RunFolder(tmp_path).save_picture(pixels, 500)
    with Image.open(tmp_path / "held_out_000500.png") as image:
        assert np.array_equal(np.asarray(image), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["held_out_000500.png"]


def test_what_is_kept_can_be_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    folder = RunFolder(out)
    assert folder.last_checkpoint() == f"nothing was saved in {out} before"
    run_saved_at(out, 7)
    folder = RunFolder(out, "auto")
    folder.start(TrainingConfig(), step=7)
    assert folder.last_checkpoint() == f"the last good checkpoint is {out / 'checkpoints' / 'step_0000007'}"


def test_a_save_leaves_a_checkpoint_and_the_weights_to_use(tmp_path: Path) -> None:
    training = run_saved_at(tmp_path, 3)
    loaded = AutoencoderKL.from_pretrained(tmp_path / "model").state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in training.vae.state_dict().items())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_0000003"]


def test_the_weights_to_use_are_the_averaged_ones_where_there_are_any(tmp_path: Path) -> None:
    training, folder = training_in(tmp_path, ema=0.9), RunFolder(tmp_path)
    for parameter in training.averaged.parameters():
        parameter.data.fill_(0.25)
    folder.save(training)
    loaded = AutoencoderKL.from_pretrained(tmp_path / "model")
    assert {value for tensor in loaded.state_dict().values() for value in tensor.unique().tolist()} == {0.25}


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    run_saved_at(tmp_path, 1, 2, 10, 11, keep=3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_0000002",
        "step_0000010",
        "step_0000011",
    ]


def test_without_resume_a_run_is_not_gone_on_with_but_the_way_is_told(tmp_path: Path) -> None:
    run_saved_at(tmp_path / "run", 1)
    with pytest.raises(FileExistsError, match=r"in use.*--resume auto.*--out"):
        RunFolder(tmp_path / "run")


def test_resume_does_not_touch_a_folder_that_is_no_runs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"in use, and nothing in it was changed\. Choose another"):
        RunFolder(tmp_path, "auto")


def test_auto_takes_the_last_checkpoint(tmp_path: Path) -> None:
    run_saved_at(tmp_path, 9, 10)
    folder = RunFolder(tmp_path, "auto")
    assert folder.find_checkpoint() == folder.checkpoint(10)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a run that never saved"])
def test_auto_begins_at_the_beginning_where_there_is_no_checkpoint(left: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if left == "an empty folder":
        out.mkdir()
    elif left == "a run that never saved":
        RunFolder(out).start(TrainingConfig())
    assert RunFolder(out, "auto").find_checkpoint() is None


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path) -> None:
    run_saved_at(tmp_path, 1, 2)
    folder = RunFolder(tmp_path, "auto")
    (folder.checkpoint(2) / "optimizers.pt").unlink()
    with pytest.warns(
        UserWarning, match=r"step_0000002/optimizers\.pt: damaged: missing; trying the checkpoint before it"
    ):
        assert folder.find_checkpoint() == folder.checkpoint(1)


def test_when_all_are_damaged_nothing_is_begun_anew(tmp_path: Path) -> None:
    run_saved_at(tmp_path, 1)
    folder = RunFolder(tmp_path, "auto")
    (folder.checkpoint(1) / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match=r"every one in .* is damaged"):
        folder.find_checkpoint()


def test_a_checkpoint_that_is_named_must_be_whole(tmp_path: Path) -> None:
    run_saved_at(tmp_path, 1, 2)
    first = tmp_path / "checkpoints" / "step_0000001"
    assert RunFolder(tmp_path, str(first)).find_checkpoint() == first
    (first / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.safetensors: damaged: 0 bytes of"):
        RunFolder(tmp_path, str(first)).find_checkpoint()
    with pytest.raises(ValueError, match="no checkpoint here"):
        RunFolder(tmp_path, str(tmp_path / "checkpoints" / "nowhere")).find_checkpoint()


def test_another_runs_checkpoint_is_gone_on_from_in_a_new_folder_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_saved_at(tmp_path / name, 1, 2)
    foreign = str(tmp_path / "b" / "checkpoints" / "step_0000001")
    with pytest.raises(FileExistsError, match="a is in use, and nothing in it was changed"):
        RunFolder(tmp_path / "a", foreign)
    assert RunFolder(tmp_path / "c", foreign).find_checkpoint() == Path(foreign)


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")  # both begin before it is there
    first.start(TrainingConfig(seed=1))
    with pytest.raises(FileExistsError, match="another run is writing into"):
        second.start(TrainingConfig(seed=2))
    with pytest.raises(FileExistsError, match="another run is writing into"):
        RunFolder(tmp_path / "run", "auto").start(TrainingConfig(seed=3))
    first.release()
    with pytest.raises(FileExistsError, match="in use"):  # the first one is done, and the second knows of none
        second.start(TrainingConfig(seed=2))
    second.release()
    assert json.loads((tmp_path / "run" / "training.json").read_text())["seed"] == 1
    RunFolder(tmp_path / "run", "auto").start(TrainingConfig(seed=3))


def test_a_run_that_is_taken_up_is_locked_before_its_checkpoints_are_read(tmp_path: Path) -> None:
    """Else one that still runs could save another between the reading and the lock, and lose it."""
    run_saved_at(tmp_path / "run", 1)
    with RunFolder(tmp_path / "run", "auto") as folder:
        with pytest.raises(FileExistsError, match="another run is writing into"), RunFolder(tmp_path / "run", "auto"):
            pass
        folder.start(TrainingConfig(), 1)
    with RunFolder(tmp_path / "run", "auto"):
        pass


def test_whoever_repeats_a_run_does_not_resume_it(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "auto").start(TrainingConfig(resume="auto"))
    assert json.loads((tmp_path / "run" / "training.json").read_text())["resume"] is None


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    run_saved_at(tmp_path, 1, 2, 3)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # killed in the middle of a line
    folder = RunFolder(tmp_path, "auto")
    folder.start(TrainingConfig(), step=2)
    folder.log({"step": 3})
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def names_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def logged_steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_later_checkpoints_stay_until_the_first_one_of_the_resumed_run_is_complete(tmp_path: Path) -> None:
    """With keep=1 the one that is resumed would be deleted, too, if it were the only one to count."""
    training = run_saved_at(tmp_path, 2, 4, 6, keep=3)
    training.config = TrainingConfig(out=tmp_path, keep=1)
    folder = RunFolder(tmp_path, str(tmp_path / "checkpoints" / "step_0000002"))
    folder.start(training.config, step=2)
    folder.publish(training)
    assert names_of(tmp_path) == ["step_0000002", "step_0000004", "step_0000006"]
    training.step = 4
    folder.log({"step": 4})
    folder.save(training)
    assert names_of(tmp_path) == ["step_0000004"]
    assert not (folder.checkpoint(4) / "log.jsonl").exists()  # it is the new one
    assert logged_steps(tmp_path) == [2, 4]


def test_a_resumed_run_that_saved_nothing_leaves_the_earlier_one_with_its_log(tmp_path: Path) -> None:
    training = run_saved_at(tmp_path, 2, 4, 6, keep=3)
    for _ in range(2):
        folder = RunFolder(tmp_path, str(tmp_path / "checkpoints" / "step_0000002"))
        folder.start(training.config, step=2)
        folder.log({"step": 3})
        assert logged_steps(tmp_path) == [2, 3]
        folder.release()
    folder = RunFolder(tmp_path, "auto")
    assert folder.find_checkpoint() == folder.checkpoint(6)
    folder.start(training.config, step=6)
    assert logged_steps(tmp_path) == [2, 4, 6]
    assert names_of(tmp_path) == ["step_0000002", "step_0000004", "step_0000006"]


def test_what_a_kill_left_unfinished_is_cleared_away(tmp_path: Path) -> None:
    run_saved_at(tmp_path, 1)
    unfinished = [tmp_path / "checkpoints" / ".step_0000002.partial", tmp_path / "model" / ".config.json.abc.part"]
    unfinished += [tmp_path / "model" / ".tmpAbC123"]  # as safetensors leaves it
    unfinished[0].mkdir()
    (unfinished[0] / "random_0.pt").touch()
    for file in unfinished[1:]:
        file.touch()
    RunFolder(tmp_path, "auto").start(TrainingConfig(), step=1)
    assert not any(path.exists() for path in unfinished)
    assert (tmp_path / "model" / "config.json").exists()


def test_a_save_that_fails_names_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, folder = training_in(tmp_path), RunFolder(tmp_path)
    training.step = 4
    folder.save(training)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("klvae_edu.training.checkpoint.write_safetensors", full)
    training.step = 5
    with pytest.raises(OSError, match=r"step 5 could not be saved .*No space left.*good checkpoint is .*step_0000004"):
        folder.save(training)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_0000004"]


def test_what_could_not_be_read_is_listed_in_a_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_report(None)
    assert not (tmp_path / "unreadable.txt").exists()
    folder.save_report("1 of 2 images could not be read")
    assert (tmp_path / "unreadable.txt").read_text() == "1 of 2 images could not be read\n"


def test_a_process_that_does_not_write_leaves_no_trace_and_minds_no_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("of the process that writes")
    folder = RunFolder(tmp_path, writes=False)
    folder.start(TrainingConfig())
    folder.log({"step": 1})
    folder.save_report("damage")
    folder.save_picture(np.zeros((2, 2, 3), np.uint8), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]
    assert (tmp_path / "training.json").read_text() == "of the process that writes"


def test_an_unused_name_is_the_first_that_is_free(tmp_path: Path) -> None:
    assert unused(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert unused(tmp_path / "run") == tmp_path / "run-2"
    (tmp_path / "run-2").touch()
    assert unused(tmp_path / "run") == tmp_path / "run-3"
    (tmp_path / "cat.png").touch()
    assert unused(tmp_path / "cat.png") == tmp_path / "cat-2.png"
