"""Two processes train one model: they have equal weights, they equal one process with both batches, and they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from klvae_edu.cli import main
from klvae_edu.training.checkpoint import read_description

TIMEOUT = 300  # seconds, on a busy machine; gloo would wait for half an hour
TOLERANCE = 1e-10  # in float64; a wrong average shows at 1e-4 and above

# Every case runs in one and in two processes, on the same crops. The discriminator's batch norms are removed, because
# their statistics depend on the process's part of the batch. The noise of a posterior sample depends only on its crop.
WORKER = """
import json, os, sys
import torch
from torch import nn
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.training import setup
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.steps import discriminator_step, generator_step
from klvae_edu.training.trainer import reconstruct

torch.set_default_dtype(torch.float64)
cases, results = json.loads(sys.argv[1]), sys.argv[2]
noise_keys = []  # of the crops that are encoded next

def sample(self, generator=None):
    keys = [noise_keys.pop(0) for _ in self.mean]
    draw = lambda key: torch.randn(self.mean.shape[1:], generator=torch.Generator().manual_seed(key))
    return self.mean + self.std * torch.stack([draw(key) for key in keys])

def without_norms(*args):
    discriminator = NLayerDiscriminator(*args)
    for number, layer in enumerate(discriminator.main):
        if isinstance(layer, nn.BatchNorm2d):
            discriminator.main[number] = nn.Identity()
        elif isinstance(layer, nn.Conv2d):
            layer.weight.data *= case["gain"]
    return discriminator

DiagonalGaussianDistribution.sample, setup.NLayerDiscriminator = sample, without_norms

def own_crops(accumulate, rank, processes):
    # Two crops a process and part: in one process, a part holds what the processes together have in theirs.
    size = 2 * 2 // processes
    return [4 * part + rank * size + number for part in range(accumulate) for number in range(size)]

for name, case in cases.items():
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    sizes = dict(size=16, batch_size=4 // processes, disc_channels=4, disc_layers=1)
    config = TrainingConfig(**case["config"], **sizes, device="cpu")
    training = setup.set_up(config, setup.start_accelerator(config))
    rank, reduce = training.accelerator.process_index, training.accelerator.reduce
    if case.get("fault") == "each weighs by its own gradients":
        training.accelerator.reduce = lambda tensor, how: tensor if tensor.dim() > 2 else reduce(tensor, how)
    if case.get("fault") == "behind the wrapper of the autoencoder":
        training.model = getattr(training.model, "module", training.model)
        training.accelerator.no_sync = lambda network: torch.enable_grad()
    if case.get("fault") == "behind the wrapper of the discriminator":
        training.discriminator = getattr(training.discriminator, "module", training.discriminator)
    log = []
    for step in range(5):
        crops = [100 * step + number for number in own_crops(config.accumulate, rank, processes)]
        noise_keys[:] = crops
        images = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(key)) * 2 - 1 for key in crops]
        images = torch.stack(images)
        training.begin_step()
        if config.trains_autoencoder(training.step):
            scalars, reconstructions = generator_step(training, images)
        else:
            scalars, reconstructions = {}, reconstruct(training, images)
        if config.trains_discriminator(training.step):
            scalars |= discriminator_step(training, images, reconstructions)
        log.append(scalars)
        assert not noise_keys
    networks = {"autoencoder": training.vae, "average": training.averaged, "discriminator": training.patchgan}
    weights = {key: dict(network.named_parameters()) for key, network in networks.items()}
    torch.save({"weights": weights, "log": log}, f"{results}/{name}-{rank}-of-{processes}.pt")
"""

EVERYTHING = {"disc_weight": 0.5, "warmup": 0.0, "ema": 0.9}
CASES: dict[str, dict[str, Any]] = {
    "joint": {},
    "in turns": {"alternate": True},
    "in parts, summed": {"accumulate": 2, "reduction": "sum"},
    "at the clamp": {},
    "without the adaptive weight": {"adaptive": False},
}
FAULTS = (
    "each weighs by its own gradients",
    "behind the wrapper of the autoencoder",
    "behind the wrapper of the discriminator",
)


class Outcome(NamedTuple):
    """The weights of each process after five steps, by network and name, and its log."""

    weights: list[dict[str, dict[str, Tensor]]]
    logs: list[list[dict[str, float]]]

    def apart(self) -> dict[str, float]:
        """Return the largest difference between the processes' weights, by network."""
        return distances(self.weights[0], self.weights[-1])


def distances(first: dict[str, dict[str, Tensor]], second: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """Return the largest difference between weights of the same name, by network."""
    return {
        network: max((weight - second[network][name]).abs().max().item() for name, weight in weights.items())
        for network, weights in first.items()
    }


@pytest.fixture(scope="module")
def outcome(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Outcome]:
    results = tmp_path_factory.mktemp("ranks")
    (results / "worker.py").write_text(WORKER)
    # Without norms the discriminator's first gradients are tiny, and the adaptive weight is at its limit: hence a gain.
    cases: dict[str, Any] = {
        name: {"config": EVERYTHING | changes, "gain": 1 if "clamp" in name else 10} for name, changes in CASES.items()
    }
    faulty = {fault: cases["joint"] | {"fault": fault} for fault in FAULTS}
    for ranks, of_these in ((1, cases), (2, cases | faulty)):
        runs.finish(json.dumps(of_these), str(results), ranks=ranks, program=(str(results / "worker.py"),))

    def of(name: str, ranks: int) -> Outcome:
        found = [torch.load(results / f"{name}-{rank}-of-{ranks}.pt") for rank in range(ranks)]
        return Outcome([one["weights"] for one in found], [one["log"] for one in found])

    return of


Outcomes = Callable[[str, int], Outcome]


@pytest.mark.parametrize("case", CASES)
def test_after_five_steps_both_processes_have_the_same_weights_bit_for_bit(case: str, outcome: Outcomes) -> None:
    assert outcome(case, 2).apart() == {"autoencoder": 0.0, "average": 0.0, "discriminator": 0.0}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_both_batches(case: str, outcome: Outcomes) -> None:
    """AdamW divides by the size of the gradient. Where it is 0, as at the bias of a key, eps keeps rounding small."""
    one, two = outcome(case, 1), outcome(case, 2)
    assert max(distances(one.weights[0], two.weights[0]).values()) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_what_is_logged_is_the_mean_over_the_processes(case: str, outcome: Outcomes) -> None:
    (whole,), logs = outcome(case, 1).logs, outcome(case, 2).logs
    assert logs[0] == logs[1]
    for expected, record in zip(whole, logs[0], strict=True):
        assert record.keys() == expected.keys()
        for name, value in record.items():
            tolerance = 1e-5 if name == "psnr" else TOLERANCE  # PSNR is computed in float32
            assert value == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


def test_the_cases_are_what_they_are_called(outcome: Outcomes) -> None:
    """The adaptive weight is below its limit or at it, and the networks train jointly or in turns."""
    logs = {case: outcome(case, 2).logs[0] for case in CASES}
    clamped = {case: {record.get("clamped") for record in log} for case, log in logs.items()}
    assert clamped == {
        "joint": {0.0},
        "in turns": {0.0, None},
        "in parts, summed": {0.0},
        "at the clamp": {1.0},
        "without the adaptive weight": {0.0},
    }
    assert len({record["adversarial_weight"] for record in logs["joint"]}) == 5
    assert ["loss" in record for record in logs["in turns"]] == [False, True, False, True, False]


def test_adaptive_weights_from_each_process_s_own_gradients_would_be_noticed(outcome: Outcomes) -> None:
    faulty = outcome("each weighs by its own gradients", 2)
    assert max(distances(outcome("joint", 1).weights[0], faulty.weights[0]).values()) > 1e6 * TOLERANCE


@pytest.mark.parametrize("network", ["autoencoder", "discriminator"])
def test_a_network_called_behind_its_wrapper_would_be_noticed(network: str, outcome: Outcomes) -> None:
    faulty = outcome(f"behind the wrapper of the {network}", 2)
    assert faulty.apart()[network] > 1e6 * TOLERANCE
    assert max(distances(outcome("joint", 1).weights[0], faulty.weights[0]).values()) > 1e6 * TOLERANCE


# Two runs in sequence in the same two processes: in each, the second process fails in step 3.
FAILING_PROGRAM = """
import os, signal, sys
from klvae_edu.cli import main
from klvae_edu.training import trainer

rank, make_step = int(os.environ["RANK"]), trainer.generator_step

def poisoned(training, images):
    if rank == 1 and training.step == 3:
        images[0, 0, 0, 0] = float("nan")
    return make_step(training, images)

def deadly(training, images):
    if rank == 1 and training.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_step(training, images)

for name, step in (("poisoned", poisoned), ("deadly", deadly)):
    trainer.generator_step = step
    code = main(["train", *sys.argv[2:], "--out", os.path.join(sys.argv[1], name)])
    print(f"{name}: rank {rank} ended with {code}", flush=True)
"""


@pytest.fixture(scope="module")
def failed(runs: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, str, Path]:
    """The exit code, the printed text, the errors, and the folder of both runs."""
    folder = tmp_path_factory.mktemp("failed")
    (folder / "worker.py").write_text(FAILING_PROGRAM)
    options = ["--size", "16", "--batch-size", "2", "--held-out", "2", "--device", "cpu", "--steps", "6"]
    options += ["--save-every", "2", "--data", str(pictures)]
    process = runs.start(str(folder), *options, ranks=2, program=(str(folder / "worker.py"),))
    printed, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, printed, errors, folder


def test_not_a_number_in_one_process_stops_all_with_the_step_and_the_last_good_checkpoint(
    failed: tuple[int, str, str, Path],
) -> None:
    _, printed, errors, folder = failed
    assert all(f"poisoned: rank {rank} ended with 2" in printed for rank in (0, 1))
    good = folder / "poisoned" / "checkpoints" / "step_0000002"
    for words in ("klvae: step 3: ", "pixel is nan", f"the last good checkpoint is {good}"):
        assert errors.count(words) == 2, errors


def test_a_checkpoint_of_two_processes_is_not_resumed_by_one(
    failed: tuple[int, str, str, Path], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size", "16", "--held-out", "2", "--device", "cpu", "--data", str(pictures), "--resume", "auto"]
    assert main(["train", *options, "--out", str(failed[3] / "poisoned")]) == 2
    error = capsys.readouterr().err
    assert "a checkpoint of 2 process(es), and this run has 1" in error and error.count("\n") == 1


def test_a_process_that_dies_ends_the_run_with_an_error_and_not_in_waiting(failed: tuple[int, str, str, Path]) -> None:
    code, printed, errors, folder = failed
    assert code not in (0, None)
    assert "deadly: rank 0 ended with 2" in printed
    (line,) = [line for line in errors.splitlines() if line.startswith("klvae: another process of this run has ended")]
    good = folder / "deadly" / "checkpoints" / "step_0000002"
    assert f"the last good checkpoint is {good}. To resume: torchrun --nproc-per-node 2 -m klvae_edu train" in line
    assert read_description(good)["processes"] == 2
