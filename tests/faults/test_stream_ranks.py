"""Two processes read one stream: together they see each image of an epoch once, also after an interruption."""

from __future__ import annotations

import io
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SHARDS, ROWS, STEPS = 4, 6, 6  # an epoch: 24 images, two in each process and step

# Records the images on which each process trains. The brightness of an image is its number.
PROGRAM = """
import os, sys
from klvae_edu.cli import main
from klvae_edu.training import trainer

make_step = trainer.generator_step

def recording(training, images):
    with open(os.path.join(sys.argv[1], "seen-" + os.environ.get("RANK", "0")), "a") as file:
        numbers = ((images.mean((1, 2, 3)) + 1) * 127.5 / 10).round().int().tolist()
        file.write(" ".join(map(str, numbers)) + chr(10))
    return make_step(training, images)

trainer.generator_step = recording
raise SystemExit(main(["train", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    folder = tmp_path_factory.mktemp("data")
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(SHARDS):
        rows = []
        for number in range(ROWS * shard, ROWS * shard + ROWS):
            file = io.BytesIO()
            Image.new("RGB", (16, 16), (10 * number,) * 3).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": f"{number}.png"})
        name = folder / f"train-{shard:05}-of-{SHARDS:05}.parquet"
        datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(str(name))
    held_out = datasets.Dataset.from_dict({"image": rows[:2]}, features=features)
    held_out.to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def test_each_process_reads_its_own_shards_and_resumes_them(runs: Any, data_set: Path, tmp_path: Path) -> None:
    program, seen = tmp_path / "program.py", [tmp_path / "seen-0", tmp_path / "seen-1"]
    program.write_text(PROGRAM)
    options = ["--data", f"hf:{data_set}", "--streaming", "--size", "16", "--batch-size", "2", "--held-out", "2"]
    options += ["--device", "cpu", "--workers", "1", "--out", str(tmp_path / "run"), "--schedule", "constant"]
    for steps in (2, STEPS):
        more = ["--steps", str(steps), *(["--resume", "auto"] if steps == STEPS else [])]
        runs.finish(str(tmp_path), *options, *more, ranks=2, program=(str(program),))
    numbers = [[int(word) for word in path.read_text().split()] for path in seen]
    assert sorted(chain(*numbers)) == [*range(SHARDS * ROWS)]
    owned = [{number // ROWS for number in of_process} for of_process in numbers]
    assert [len(shards) for shards in owned] == [2, 2]
    assert not owned[0] & owned[1]
