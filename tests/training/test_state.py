"""What a run keeps on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from klvae_edu import AutoencoderKL
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.state import RunFolder, unused


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
    folder = RunFolder(tmp_path)
    assert folder.kept() == f"nothing was saved in {tmp_path / 'model'} before"
    folder.save(AutoencoderKL.from_preset("tiny", seed=0), 7)
    assert folder.kept() == f"the weights of step 7 are whole in {tmp_path / 'model'}"


def test_a_process_that_does_not_write_leaves_no_trace_and_minds_no_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("of the process that writes")
    folder = RunFolder(tmp_path, writes=False)
    folder.start(TrainingConfig())
    folder.log({"step": 1})
    folder.save(AutoencoderKL.from_preset("tiny", seed=0), 1)
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
