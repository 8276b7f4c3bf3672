"""Checkpoints: everything is in them, a damaged one is refused, and one that does not fit is too."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from klvae_edu.training.checkpoint import (
    load_checkpoint,
    networks,
    partial_folder,
    read_description,
    save_checkpoint,
    sealed,
)
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import Training, set_up, start_accelerator
from tests.training.whole_step import whole_step

WITH_ALL = {"size": 16, "disc_weight": 0.5, "disc_channels": 4, "disc_layers": 1, "ema": 0.9, "device": "cpu"}
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def training_with(**changes: Any) -> Training:
    config = TrainingConfig(**WITH_ALL | changes)
    return set_up(config, start_accelerator(config))


def after(training: Training, steps: int) -> dict[str, Tensor]:
    """Everything that the next steps depend on, and what they came to."""
    scalars: dict[str, float] = {}
    for _ in range(steps):
        scalars = whole_step(training, IMAGES)
    found = {name: tensor.clone() for name, tensor in networks(training).items()}
    for optimizer in (training.optimizer, training.disc_optimizer):
        assert optimizer is not None
        for state in optimizer.state_dict()["state"].values():
            found |= {f"{name} of tensor {len(found)}": value.clone() for name, value in state.items()}
    return found | {"random": torch.get_rng_state(), "scalars": torch.tensor([*scalars.values()])}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run with everything, after three steps."""
    training = training_with()
    after(training, 3)
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "step_0000003"
    save_checkpoint(training, folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = training_with()
    after(whole, 3)
    save_checkpoint(whole, tmp_path / "step_0000003")
    expected = after(whole, 2)

    resumed = training_with(seed=99)  # other weights, other random numbers
    load_checkpoint(resumed, tmp_path / "step_0000003")
    assert resumed.step == 3
    found = after(resumed, 2)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("forgotten", ["autoencoder", "average", "discriminator", "optimizers", "random", "step"])
def test_every_part_of_a_checkpoint_is_needed(
    forgotten: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would notice if any of them were missing."""
    expected = training_with()
    load_checkpoint(expected, saved)
    result = after(expected, 2)

    resumed = training_with(seed=99)
    fresh = {name: tensor.clone() for name, tensor in networks(resumed).items()}
    optimizers = [resumed.optimizer.state_dict(), resumed.disc_optimizer.state_dict()]  # type: ignore[union-attr]
    load_checkpoint(resumed, saved)
    if forgotten == "optimizers":
        resumed.optimizer.load_state_dict(optimizers[0])
        resumed.disc_optimizer.load_state_dict(optimizers[1])  # type: ignore[union-attr]
    elif forgotten == "random":
        torch.manual_seed(99)
    elif forgotten == "step":
        resumed.step = 0
    else:
        with torch.no_grad():
            for name, tensor in networks(resumed).items():
                if name.startswith(forgotten):
                    tensor.copy_(fresh[name])
    found = after(resumed, 2)
    assert [name for name in result if not torch.equal(found[name], result[name])] != []


def test_a_checkpoint_describes_itself(saved: Path) -> None:
    state = read_description(saved)
    assert (state["step"], state["processes"]) == (3, 1)
    assert state["config"]["disc_weight"] == 0.5
    assert state["files"].keys() == {"weights.safetensors", "optimizers.pt", "random_0.pt"}
    assert (saved / "state.json").read_text() == sealed(state)


def test_nothing_is_left_of_an_attempt_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")  # torch's words for a full disk

    monkeypatch.setattr(torch, "save", full)
    training = training_with()
    with pytest.raises(OSError, match="the checkpoint of step 0 could not be written"):
        save_checkpoint(training, tmp_path / "step_0000000")
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_left_half_written_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "step_0000000"
    partial_folder(folder).mkdir()
    (partial_folder(folder) / "junk").touch()
    save_checkpoint(training_with(), folder)
    assert read_description(folder)["step"] == 0
    assert not (folder / "junk").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizers.pt", "random_0.pt"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"damaged: \d+ bytes of \d+"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "damaged: its contents have changed"),
        (lambda path: path.unlink(), "damaged: missing"),
    ],
    ids=["cut off", "changed", "missing"],
)
def test_a_damaged_file_is_named(name: str, damage: Any, message: str, copied: Path) -> None:
    damage(copied / name)
    training = training_with()
    before = {key: tensor.clone() for key, tensor in networks(training).items()}
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        load_checkpoint(training, copied)
    assert all(torch.equal(tensor, before[key]) for key, tensor in networks(training).items())
    assert training.step == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "null"])
def test_a_damaged_description_is_named(content: str, copied: Path) -> None:
    (copied / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json: damaged"):
        read_description(copied)


@pytest.mark.parametrize("change", ["step", "processes", "architecture", "config", "files"])
def test_a_description_that_was_changed_or_cut_short_is_damaged(change: str, copied: Path) -> None:
    state = json.loads((copied / "state.json").read_text())
    (copied / "state.json").write_text(json.dumps(state | {change: None}))
    with pytest.raises(ValueError, match=r"state\.json: damaged"):
        read_description(copied)
    del state[change]
    (copied / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state\.json: damaged"):
        read_description(copied)


def test_a_folder_without_a_description_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint here: state\.json is missing"):
        read_description(tmp_path)


def test_a_later_format_is_not_guessed_at(copied: Path) -> None:
    (copied / "state.json").write_text(sealed(read_description(copied) | {"format": 2}))
    with pytest.raises(ValueError, match="a checkpoint of format 2, this version reads 1"):
        read_description(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preset": "mini"},
            r"of another autoencoder, .*block_out_channels: expected \[32, 64, 64, 64\], got \[32, 64, 64\]",
        ),
        ({"disc_channels": 8}, "of another discriminator, disc_channels: expected 8, got 4"),
        ({"disc_weight": 0.0}, "of another discriminator, which this run has not and the checkpoint has"),
        ({"ema": 0.0}, "of another training, averaged: expected False, got True"),
        ({"trained_part": "decoder"}, "of another training, trained_part: expected decoder, got all"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(changes: dict[str, Any], message: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(training_with(**changes), saved)


@pytest.mark.parametrize(
    ("part", "setting"),
    [("autoencoder", "mid_block_add_attention"), ("discriminator", "disc_layers"), ("training", "trained_part")],
)
def test_a_checkpoint_from_before_a_setting_was_there_is_of_its_default(part: str, setting: str, copied: Path) -> None:
    was = read_description(copied)
    del was["architecture"][part][setting]
    (copied / "state.json").write_text(sealed(was))
    if setting == "disc_layers":  # this run has 1, the default is 3
        with pytest.raises(ValueError, match="disc_layers: expected 1, got 3, the default of before this setting"):
            load_checkpoint(training_with(), copied)
        return
    load_checkpoint(training := training_with(), copied)
    assert training.step == 3


def test_a_checkpoint_from_before_a_part_was_there_is_of_its_defaults(copied: Path) -> None:
    was = read_description(copied)
    del was["architecture"]["training"]
    (copied / "state.json").write_text(sealed(was))
    with pytest.raises(ValueError, match="averaged: expected True, got False, the default of before this setting"):
        load_checkpoint(training_with(), copied)


def test_a_checkpoint_of_another_number_of_processes_is_refused(copied: Path) -> None:
    (copied / "state.json").write_text(sealed(read_description(copied) | {"processes": 4}))
    with pytest.raises(ValueError, match=r"a checkpoint of 4 process\(es\), and this run has 1"):
        load_checkpoint(training_with(), copied)


class Planted:
    def __reduce__(self) -> Any:
        return (Path("/tmp/planted-by-a-checkpoint").touch, ())


def test_nothing_in_a_checkpoint_is_executed(copied: Path, tmp_path: Path) -> None:
    """Not even when whoever planted it gave it the right fingerprint."""
    content = pickle.dumps({"autoencoder": Planted()}, protocol=2)
    state = read_description(copied)
    (copied / "optimizers.pt").write_bytes(content)
    state["files"]["optimizers.pt"] = {"bytes": len(content), "blake2b": hashlib.blake2b(content).hexdigest()}
    (copied / "state.json").write_text(sealed(state))
    with pytest.raises(ValueError, match=r"optimizers\.pt: expected tensors, numbers and their names"):
        load_checkpoint(training_with(), copied)
    assert not Path("/tmp/planted-by-a-checkpoint").exists()
