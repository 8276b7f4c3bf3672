"""The benchmark of loading runs, and detects a reader that misses images or reads them twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from benchmarks import data_path
from klvae_edu.data.crops import random_crop
from klvae_edu.data.files import load_image
from klvae_edu.data.shards import ShardReader


@pytest.fixture(autouse=True, scope="module")
def settings_of_datasets() -> Iterator[None]:
    """Work offline, and restore the cache folder, which the benchmark changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        yield


def run(out: Path) -> None:
    data_path.main(["--images", "200", "--shards", "6", "--rounds", "1", "--out", str(out)])


def test_every_way_sees_every_image_once_and_is_timed(tmp_path: Path) -> None:
    run(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    ways = ["1 worker", "2 workers", *data_path.SIMULATED, data_path.SHARED]
    assert report["every image once in a pass, also with a resume in mid-pass"] == ways
    assert [*report["images per second"]] == ways and min(report["images per second"].values()) > 0
    for shares in (report["time over 1 worker"], report["time over 1 reader"]):
        assert all(0 < smallest <= ratio <= largest for ratio, smallest, largest in shares.values())


def test_a_reader_that_forgets_its_place_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ShardReader.rows
    monkeypatch.setattr(ShardReader, "rows", lambda self, place: rows(self, place._replace(row=0)))
    with pytest.raises(AssertionError, match=r"with a stop: 0 images were never seen, \d+ more than once"):
        run(tmp_path / "report.json")


def test_a_picture_s_number_survives_the_crop(tmp_path: Path) -> None:
    for number in (0, 255, 256, 6399):
        (tmp_path / "image.png").write_bytes(data_path.picture(number))
        crop = random_crop([load_image(tmp_path / "image.png")], data_path.SIZE, np.random.default_rng(number))
        assert data_path.numbers_of(torch.stack([crop])) == [number]
        assert crop[0].std() > 0.1
