"""Diagnosis of real short runs: each failure is provoked and named, and nothing is said about three healthy runs.

All runs train a network of 8 and 16 channels on sprites of 16 or 32 pixels, from the same weights. Each is
trained once.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.diagnosis import RULES, Finding, diagnose
from klvae_edu.training.log import read_log
from klvae_edu.training.recipes import load_recipe
from klvae_edu.training.trainer import train

DISCRIMINATOR = {
    "disc_weight": 0.5,
    "disc_start": 20,
    "disc_channels": 16,
    "disc_layers": 1,
    "betas": (0.5, 0.9),
}
RUNS: dict[str, dict[str, Any]] = {
    # Healthy ones.
    "plain": {},
    "discriminator": DISCRIMINATOR,
    "turns": DISCRIMINATOR
    | {"alternate": True, "disc_loss": "vanilla", "disc_ramp": 10, "disc_max_weight": 0.01, "lr": 5e-3},
    # Broken ones.
    "huge lr": {"lr": 10.0},
    "no clipping": {"lr": 1e6, "grad_clip": math.inf},
    "huge KL": {"kl_weight": 100.0},
    "fixed weight": DISCRIMINATOR | {"adaptive": False, "disc_weight": 1e4, "disc_start": 50, "steps": 120},
    "unheard": DISCRIMINATOR | {"disc_weight": 1e-3, "disc_warmup": 20, "disc_lr": 0.01, "disc_channels": 32},
    # Neither network learns: the reconstruction's gradient stays large, that of an untrained discriminator small.
    "standstill": DISCRIMINATOR | {"disc_start": 0, "disc_lr": 1e-7, "lr": 1e-6, "size": 32, "steps": 30},
}

Diagnose = Callable[[str], list[Finding]]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of a run to its folder."""
    root = tmp_path_factory.mktemp("diagnosis")
    torch.manual_seed(0)
    network = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    AutoencoderKL(**network, scaling_factor=None, mid_block_add_attention=False).save_pretrained(root / "untrained")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            small = {"data": "sprites", "size": 16, "batch_size": 4, "steps": 60, "held_out": 4, "device": "cpu"}
            config = TrainingConfig(**small | RUNS[name], init=str(root / "untrained"), out=root / name)
            try:
                train(config)
            except FloatingPointError:
                assert name == "no clipping"
        return root / name

    return folder


@pytest.fixture(scope="module")
def findings_of(folder_of: Callable[[str], Path]) -> Diagnose:
    """Return a function from the name of a run to its findings."""
    return lambda name: findings_in(folder_of(name))


def findings_in(folder: Path) -> list[Finding]:
    records, damaged = read_log(folder / "log.jsonl")
    assert damaged == 0
    return diagnose(load_recipe(folder / "training.json"), records)


@pytest.mark.parametrize("name", ["plain", "discriminator", "turns"])
def test_nothing_is_named_in_a_healthy_run(name: str, findings_of: Diagnose) -> None:
    assert findings_of(name) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("huge lr", "learning rate too high"),
        ("no clipping", "ended by a non-finite loss"),
        ("huge KL", "collapsed posterior"),
        ("fixed weight", "the loss rose at the discriminator's start for good"),
        ("unheard", "the discriminator wins"),
    ],
)
def test_a_failure_is_named_and_no_other(name: str, expected: str, findings_of: Diagnose) -> None:
    (finding,) = findings_of(name)
    assert finding.name == expected


def test_a_discriminator_that_never_learns_and_a_weight_at_its_clamp(findings_of: Diagnose) -> None:
    died, clamped = findings_of("standstill")
    assert died.name == "the discriminator died" and died.evidence.startswith("It never told")
    assert clamped.name == "the adaptive weight is at its clamp"
    assert "a median share of 1 (steps 11 to 30)" in clamped.evidence


def test_a_discriminator_that_had_learnt_and_died(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Resume the run whose discriminator wins, with a learning rate at which it breaks down."""
    shutil.copytree(folder_of("unheard"), tmp_path / "run")
    config = load_recipe(tmp_path / "run" / "training.json")
    train(replace(config, out=tmp_path / "run", resume="auto", steps=100, disc_lr=10.0, schedule="constant"))
    (died,) = findings_in(tmp_path / "run")
    assert died.name == "the discriminator died" and died.evidence.startswith("It had learnt, with a loss of 0")


def test_evidence_is_a_sentence_with_steps_and_advice_names_an_option(findings_of: Diagnose) -> None:
    for finding in (finding for name in RUNS for finding in findings_of(name)):
        assert "step" in finding.evidence and finding.evidence.endswith(".")
        assert "--" in finding.advice and finding.advice.endswith(".")


def test_the_kl_term_is_judged_by_image_value_under_either_reduction(folder_of: Callable[[str], Path]) -> None:
    """In real logs the KL term is multiplied by the values of an image, as "sum" has it."""
    for name, expected in (("huge KL", ["collapsed posterior"]), ("plain", [])):
        config = load_recipe(folder_of(name) / "training.json")
        records, _ = read_log(folder_of(name) / "log.jsonl")
        summed = [record | {"kl": record["kl"] * 3 * 16**2} for record in records]
        assert [finding.name for finding in diagnose(replace(config, reduction="sum"), summed)] == expected


def test_a_weight_at_the_users_own_limit_is_no_finding(folder_of: Callable[[str], Path]) -> None:
    """Of the run whose weight is clamped, the limit is changed to the weight that the log has."""
    config = load_recipe(folder_of("standstill") / "training.json")
    records, _ = read_log(folder_of("standstill") / "log.jsonl")
    names = {finding.name for finding in diagnose(config, records)}
    limited = replace(config, disc_max_weight=records[-1]["adversarial_weight"])
    assert names - {finding.name for finding in diagnose(limited, records)} == {"the adaptive weight is at its clamp"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_a_log_of_a_few_steps_is_no_ground_for_a_finding(
    rule: Callable[..., Finding | None], steps: int, folder_of: Callable[[str], Path]
) -> None:
    for name in ("standstill", "huge KL"):
        records, _ = read_log(folder_of(name) / "log.jsonl")
        assert rule(load_recipe(folder_of(name) / "training.json"), records[:steps]) is None
