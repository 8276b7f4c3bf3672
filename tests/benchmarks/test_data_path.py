"""The data path's benchmark runs, and finds out a reader that misses images or sees them twice."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from klvae_edu.data.crops import random_crop
from klvae_edu.data.files import load_image
from klvae_edu.data.shards import ShardReader


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE)  # it takes its own
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        yield importlib.import_module("benchmarks.data_path")


def run(benchmark: ModuleType, out: Path) -> None:
    benchmark.main(["--images", "200", "--shards", "6", "--rounds", "1", "--out", str(out)])


def test_every_way_sees_every_image_once_and_is_timed(benchmark: ModuleType, tmp_path: Path) -> None:
    run(benchmark, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    ways = ["1 worker", "2 workers", *benchmark.SIMULATED, benchmark.SHARED]
    assert report["every image once in a pass, also with a resume in mid-pass"] == ways
    assert [*report["images per second"]] == ways and min(report["images per second"].values()) > 0
    for shares in (report["time over 1 worker"], report["time over 1 reader"]):
        assert all(0 < smallest <= ratio <= largest for ratio, smallest, largest in shares.values())


def test_a_reader_that_forgets_its_place_is_found_out(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ShardReader.rows
    monkeypatch.setattr(ShardReader, "rows", lambda self, place: rows(self, place._replace(row=0)))
    with pytest.raises(AssertionError, match=r"with a stop: 0 images were never seen, \d+ more than once"):
        run(benchmark, tmp_path / "report.json")


def test_a_picture_s_number_survives_the_crop(benchmark: ModuleType, tmp_path: Path) -> None:
    import numpy as np

    for number in (0, 255, 256, 6399):
        (tmp_path / "image.png").write_bytes(benchmark.picture(number))
        crop = random_crop([load_image(tmp_path / "image.png")], benchmark.SIZE, np.random.default_rng(number))
        assert benchmark.numbers_of(torch.stack([crop])) == [number]
        assert crop[0].std() > 0.1
