"""The benchmark of training runs, and refuses to compare two steps that compute different things."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import train_step
from klvae_edu.config import PRESETS

Pair = tuple[train_step.Ours, train_step.Peer, Tensor]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Our step, CompVis' step and the images, at the smallest size."""
    setting = train_step.SETTINGS["tiny"]
    return train_step.Ours(setting), train_step.Peer(setting), setting.images()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_training_benchmark_writes_a_report_of_time_memory_and_parts(tmp_path: Path) -> None:
    train_step.main(["--settings", "tiny", "--rounds", "1", "--out", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["machine", "rounds", "tiny"]
    found = report["tiny"]
    ways = [train_step.OURS, train_step.CONSTANT, train_step.PEER]
    assert list(found["seconds"]) == list(found["time over ours"]) == ways
    assert found["time over ours"][train_step.OURS] == [1.0, 1.0, 1.0]
    for median, smallest, largest in found["time over ours"].values():
        assert 0 < smallest <= median <= largest
    assert list(found["time over a constant weight"]) == [train_step.OURS]
    assert set(found["relative differences"]) == {"adaptive weight", "gradient", "discriminator's gradient"}
    peaks = found["peak MiB over networks and data"]
    assert list(peaks) == [train_step.OURS, train_step.PEER]
    assert all(peak > 10 for peak in peaks.values())  # the two networks' gradients and averages alone take more
    shares = found["share of our step in %"]
    assert len(shares) == 7 and all(share > 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)


def test_the_reports_in_the_repository_are_of_this_form() -> None:
    report = json.loads(Path(train_step.__file__).with_suffix(".json").read_text())
    assert list(report) == ["machine", "rounds", "small", "sd-v1"]
    for name in ("small", "sd-v1"):
        assert all(value < train_step.AGREEMENT for value in report[name]["relative differences"].values())


def test_the_benchmark_adds_no_preset(pair: Pair) -> None:
    assert "small" not in PRESETS


def test_both_ways_start_from_the_same_weights_and_agree(pair: Pair) -> None:
    ours, peer, images = pair
    before = {name: tensor.clone() for name, tensor in ours.training.vae.state_dict().items()}
    train_step.check_agreement(ours, peer, images)
    for name, tensor in peer.vae.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.training.vae.state_dict().items())


@pytest.mark.parametrize(
    ("spoiled", "named"), [("perceptual", "adaptive weight"), ("kl", "gradient"), ("hinge", "discriminator's gradient")]
)
def test_ways_that_differ_are_not_compared(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, spoiled: str, named: str
) -> None:
    ours, peer, images = pair
    if spoiled == "perceptual":
        distance = peer.lpips.forward
        monkeypatch.setattr(peer.lpips, "forward", lambda *pair: 1.01 * distance(*pair))
    elif spoiled == "kl":
        monkeypatch.setattr(train_step, "KL_WEIGHT", 1e-2)
    else:
        step = peer.discriminator_step
        monkeypatch.setattr(peer, "discriminator_step", lambda images, fake: step(images, 0.99 * fake))
    with pytest.raises(AssertionError, match=f"^{named}: the two ways differ by"):
        train_step.check_agreement(ours, peer, images)


def test_a_clamped_adaptive_weight_is_no_agreement(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peer, images = pair
    last = ours.training.patchgan.main[-1].weight
    monkeypatch.setattr(last, "data", 1e-6 * last.data)
    with pytest.raises(AssertionError, match="is clamped"):
        train_step.check_agreement(ours, peer, images)
