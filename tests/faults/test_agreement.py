"""Two processes that differ in one thing: one error in both names it before the first step, and nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.cli import main
from klvae_edu.perceptual import LPIPS, cached_vgg16

# Two processes take the cases in turn. The first one always works in the folder "first", without the second's options.
PROGRAM = """
import contextlib, io, json, os, sys, zlib
from pathlib import Path
from klvae_edu.cli import main

root, cases, rank = Path(sys.argv[1]), json.loads(sys.argv[2]), int(os.environ["RANK"])

def checksums():
    return {str(path): zlib.crc32(path.read_bytes()) for path in (root / "run").rglob("*") if path.is_file()}

before = checksums()
for options, of_second, folder in cases:
    os.chdir(root / (folder if rank else "first"))
    os.environ["TORCH_HOME"] = os.getcwd()
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main(["train", *sys.argv[3:], *options, *(of_second if rank else [])])
    with open(root / f"attempts-{rank}.jsonl", "a") as file:
        print(json.dumps([code, errors.getvalue(), rank > 0 or checksums() == before]), file=file)
"""


class Case(NamedTuple):
    """A pattern of the error; options of both processes, of the second one alone, and the folder in which it works."""

    error: str
    options: tuple[str, ...] = ()
    of_second: tuple[str, ...] = ()
    folder: str = "first"


DIFFER, DIGEST = "the processes of this run differ. ", "[0-9a-f]{12}"
CASES = {
    "learning rates": Case(DIFFER + "lr: 0.002 in process 0, 0.001 in process 1", of_second=("--lr", "0.001")),
    "seeds of a new run": Case(
        DIFFER + "seed: 0 in process 0, 1 in process 1", options=("--out", "../new"), of_second=("--seed", "1")
    ),
    "batch sizes": Case(DIFFER + "batch_size: 2 in process 0, 1 in process 1", of_second=("--batch-size", "1")),
    "discriminators": Case(
        DIFFER + "disc_weight: 0.0 in process 0, 0.1 in process 1",
        options=("--disc-layers", "1"),
        of_second=("--disc-weight", "0.1"),
    ),
    "presets": Case(DIFFER + "preset: tiny in process 0, mini in process 1", of_second=("--preset", "mini")),
    "images": Case(
        DIFFER + rf"names of the data's files: {DIGEST} \(of 24\) in process 0, {DIGEST} \(of 25\) in process 1; .*",
        folder="with another image",
    ),
    "contents of an image": Case(
        DIFFER + f"sizes and times of the data's files: {DIGEST} in process 0, {DIGEST} in process 1",
        folder="with a changed image",
    ),
    "initial weights": Case(
        DIFFER + f"weights of init: {DIGEST} in process 0, {DIGEST} in process 1",
        options=("--init", "model"),
        folder="with another model",
    ),
    "perceptual losses": Case(
        DIFFER + f"weights of the perceptual loss: LPIPS {DIGEST} in process 0, untrained VGG16 in process 1",
        options=("--perceptual-weight", "0.1"),
        folder="without VGG16",
    ),
    "checkpoints": Case(
        DIFFER + f"checkpoint: step_0000002 {DIGEST} in process 0, step_0000001 {DIGEST} in process 1",
        of_second=("--resume", "../run/checkpoints/step_0000001"),
    ),
    "folders of the run": Case(
        DIFFER + "out: process 1 cannot see the folder of process 0: it must be on a disk that all share; .*",
        folder="on another disk/first",
    ),
    "a file that one has": Case("(process 1: )?nowhere.safetensors: .*", of_second=("--init", "nowhere.safetensors")),
}


class Attempt(NamedTuple):
    """Exit status of a process, the text on its standard error, and whether the files of the run are as before."""

    code: int
    errors: str
    unchanged: bool


@pytest.fixture(scope="module")
def root(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folders in which the processes work: "first" and its copies, each with one change."""
    root = tmp_path_factory.mktemp("agreement")
    (root / "program.py").write_text(PROGRAM)
    shutil.copytree(pictures, root / "first" / "pictures")
    AutoencoderKL.from_preset("tiny", seed=1).save_pretrained(root / "first" / "model")
    for folder in {case.folder for case in CASES.values()} - {"first"}:
        shutil.copytree(root / "first", root / folder)  # times of files too
    shutil.copy(pictures / "0.png", root / "with another image" / "pictures" / "more.png")
    shutil.copyfile(pictures / "1.png", root / "with a changed image" / "pictures" / "0.png")
    AutoencoderKL.from_preset("tiny", seed=2).save_pretrained(root / "with another model" / "model")
    trunk = LPIPS("untrained").trunk.state_dict()
    (root / "first" / "hub" / "checkpoints").mkdir(parents=True)
    path = root / "first" / "hub" / "checkpoints" / cached_vgg16().name
    torch.save({f"features.{name}": tensor for name, tensor in trunk.items()}, path)
    return root


@pytest.fixture(scope="module")
def attempts(runs: Any, root: Path) -> dict[str, list[Attempt]]:
    """Train two steps, and try to resume the run in each of the cases."""
    options = ["--size", "16", "--batch-size", "2", "--held-out", "2", "--device", "cpu", "--save-every", "1"]
    first = ["--data", str(root / "first" / "pictures"), "--out", str(root / "run"), "--batch-size", "32"]
    assert main(["train", *options, *first, "--steps", "2"]) == 0
    options += ["--data", "pictures", "--out", "../run", "--steps", "4", "--resume", "auto"]
    cases = [(case.options, case.of_second, case.folder) for case in CASES.values()]
    program = (str(root / "program.py"), str(root), json.dumps(cases))
    runs.finish(*options, ranks=2, program=program)
    found = [(root / f"attempts-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    return {case: [Attempt(*json.loads(line)) for line in pair] for case, *pair in zip(CASES, *found, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_differ_end_with_an_error_that_names_the_difference(
    case: str, attempts: dict[str, list[Attempt]]
) -> None:
    for attempt in attempts[case]:
        (error,) = [line for line in attempt.errors.splitlines() if line.startswith("klvae: ")]
        assert re.fullmatch(f"klvae: {CASES[case].error}", error), error
        assert attempt.code == 2


def test_then_the_folder_of_the_run_is_as_before(root: Path, attempts: dict[str, list[Attempt]]) -> None:
    assert all(first.unchanged for first, _ in attempts.values())
    assert (root / "run" / "log.jsonl").exists() and not (root / "new").exists()
