"""The summary of a run: it names the network of the perceptual loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klvae_edu import AutoencoderKL
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.result import TrainingResult, resume_command
from klvae_edu.training.trainer import train


def summary(perceptual: str, source: str | None) -> str:
    """Return the summary of a run whose perceptual loss has weights from `source`."""
    config = TrainingConfig(perceptual=perceptual, out=Path("run"))
    figures = {"model": 20.0, "patch-PCA": 26.0, "bicubic": 25.5}
    return TrainingResult(AutoencoderKL.from_preset("tiny"), config, 5, figures, 1.0, [], perceptual=source).summary()


@pytest.mark.parametrize(
    ("perceptual", "source", "sentence"),
    [
        ("lpips", "untrained VGG16", "The perceptual loss was LPIPS with untrained VGG16."),
        (
            "efficientnet-lite0",
            "efficientnet-lite0, trained on ImageNet",
            "The perceptual loss was efficientnet-lite0, trained on ImageNet.",
        ),
    ],
)
def test_the_summary_names_the_network_of_the_perceptual_loss(perceptual: str, source: str, sentence: str) -> None:
    assert sentence in summary(perceptual, source).splitlines()


@pytest.mark.parametrize("perceptual", ["lpips", "efficientnet-lite0"])
def test_without_a_perceptual_loss_the_summary_names_none(perceptual: str) -> None:
    assert "The perceptual loss" not in summary(perceptual, None)


def test_a_run_with_efficientnets_features_logs_their_loss_and_never_calls_it_lpips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"size": 16, "batch_size": 2, "steps": 2, "held_out": 2, "sample_every": 2, "save_every": 2}
    train(TrainingConfig(**small, perceptual_weight=0.5, perceptual="efficientnet-lite0", out=tmp_path, device="cpu"))
    for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        assert record["perceptual"] > 0
        assert record["nll"] == pytest.approx(record["pixel"] + 0.5 * record["perceptual"], rel=1e-5)
    printed = capsys.readouterr().out
    assert "The perceptual loss was efficientnet-lite0, trained on ImageNet." in printed
    assert "LPIPS" not in printed


@pytest.mark.parametrize(
    ("processes", "on_each_machine", "launcher"),
    [
        (1, None, "klvae train"),
        (4, None, "torchrun --nproc-per-node 4 -m klvae_edu train"),
        (4, "4", "torchrun --nproc-per-node 4 -m klvae_edu train"),
        (4, "2", "torchrun --nnodes 2 --node-rank N --master-addr HOST --nproc-per-node 2 -m klvae_edu train"),
    ],
)
def test_the_command_to_resume_starts_as_many_processes_on_as_many_machines(
    processes: int, on_each_machine: str | None, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if on_each_machine is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", on_each_machine)
    assert resume_command(TrainingConfig(seed=1), processes) == f"{launcher} --resume auto --seed 1"
