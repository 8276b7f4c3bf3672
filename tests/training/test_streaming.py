"""Training on a stream: cut off and gone on with, a run sees the images that it would have seen."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from klvae_edu.training import trainer
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.trainer import train

IMAGES, DAMAGED = 24, 5


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three Parquet files of eight images, each of one brightness; one cannot be read."""
    import datasets

    folder = tmp_path_factory.mktemp("data")
    features = datasets.Features({"image": datasets.Image()})

    def png(number: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (10 * number,) * 3).save(file, "PNG")
        return file.getvalue()

    for shard in range(3):
        rows = [{"bytes": png(number), "path": f"{number}.png"} for number in range(8 * shard, 8 * shard + 8)]
        if shard == DAMAGED // 8:
            rows[DAMAGED % 8]["bytes"] = b"damaged"
        name = folder / f"train-{shard:05}-of-00003.parquet"
        datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(str(name))
    held_out = datasets.Dataset.from_dict({"image": rows[:2]}, features=features)
    held_out.to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers of the images of each step."""
    steps, make_step = [], trainer.generator_step

    def note(training: Any, images: Tensor) -> tuple[dict[str, float], Tensor]:
        steps.append(((images.mean((1, 2, 3)) + 1) * 127.5 / 10).round().int().tolist())
        return make_step(training, images)

    monkeypatch.setattr(trainer, "generator_step", note)
    return steps


def streamed(data_set: Path, out: Path, **changes: Any) -> TrainingConfig:
    """Eight steps of three images each: a pass over the 23 that can be read, and the first of the next one."""
    sizes: dict[str, Any] = {"size": 16, "batch_size": 3, "steps": 8, "held_out": 2, "sample_every": 100}
    config = TrainingConfig(data=f"hf:{data_set}", streaming=True, out=out, save_every=1, keep=9, device="cpu", **sizes)
    return replace(config, **changes)


def resumed(config: TrainingConfig, step: int, **changes: Any) -> TrainingConfig:
    return replace(config, resume=str(config.out / "checkpoints" / f"step_{step:07d}"), **changes)


def test_in_one_pass_every_image_is_trained_on_once(data_set: Path, tmp_path: Path, seen: list[list[int]]) -> None:
    result = train(streamed(data_set, tmp_path / "run"))
    assert sorted([*chain(*seen)][: IMAGES - 1]) == [number for number in range(IMAGES) if number != DAMAGED]
    assert "1 images could not be read" in result.summary() and f"{DAMAGED}.png" in result.summary()


@pytest.mark.parametrize("workers", [0, 2])
def test_from_each_checkpoint_a_run_goes_on_with_the_images_it_had_not_seen_to_the_same_weights(
    workers: int, data_set: Path, tmp_path: Path, seen: list[list[int]]
) -> None:
    config = streamed(data_set, tmp_path / "run", workers=workers)
    whole = train(config).vae.state_dict()
    undisturbed = [*seen]
    for step in (1, 4, 7):
        seen.clear()
        again = train(resumed(config, step)).vae.state_dict()
        assert seen == undisturbed[step:]
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_going_on_with_another_number_of_workers_is_refused_and_nothing_is_changed(
    data_set: Path, tmp_path: Path
) -> None:
    config = streamed(data_set, tmp_path / "run", steps=2, workers=2)
    train(config)
    log = (config.out / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"workers: expected 2, one for each stream position in the checkpoint, got 1"):
        train(resumed(config, 1, workers=1))
    assert (config.out / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("changes", [{"seed": 1}, {"data": "other"}])
def test_another_stream_is_read_from_its_beginning(
    changes: dict[str, Any], data_set: Path, tmp_path: Path, seen: list[list[int]]
) -> None:
    (tmp_path / "other").symlink_to(data_set)
    changes = {name: f"hf:{tmp_path / value}" if name == "data" else value for name, value in changes.items()}
    config = streamed(data_set, tmp_path / "run", steps=4)
    train(config)
    train(streamed(data_set, tmp_path / "new", steps=2, **changes))
    from_the_beginning = seen[4:]
    seen.clear()
    train(resumed(config, 2, **changes))
    assert seen == from_the_beginning
