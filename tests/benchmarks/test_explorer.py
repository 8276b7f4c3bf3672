"""The explorer's benchmark runs, times only pictures that were drawn, and checks that the peer computes the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import explorer
from benchmarks.common import diffusers_twin
from klvae_edu import AutoencoderKL
from klvae_edu.explore import panels


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_preset("tiny", seed=0)


IMAGE = torch.zeros(3, 32, 32)


def test_every_panel_is_measured() -> None:
    public = {name for name, value in vars(panels).items() if getattr(value, "__module__", "") == panels.__name__}
    assert {name for name in public if name[0] != "_"} == {*explorer.SLIDERS}


def test_the_report_has_times_and_ratios_of_each_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "SLIDERS", {"bits": "bits"})
    explorer.main(["--events", "2", "--out", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["side"] == 256 and report["events"] == 2
    assert report["milliseconds from event to picture"]["bits"]["median"] > 0
    assert report["milliseconds of the peer"]["bits"]["median"] > 0
    ratio, smallest, largest = report["time of the peer over ours"]["bits"]
    assert 0 < smallest <= ratio <= largest


@pytest.mark.parametrize(("name", "steps"), [("channels", 61), ("pixel", 8)])
def test_a_slider_goes_from_end_to_end_and_no_setting_comes_twice_in_a_row(
    vae: AutoencoderKL, name: str, steps: int
) -> None:
    panel = getattr(panels, name)(vae, IMAGE)
    found, values = [], explorer.settings(panel, name)
    for _ in range(steps + 5):
        found.append(next(values))
        panel.controls[explorer.SLIDERS[name]].value = found[-1]
    assert len({round(value, 6) for value in found}) == steps
    assert all(before != after for before, after in itertools.pairwise(found))


def test_an_event_that_draws_nothing_is_not_timed(vae: AutoencoderKL) -> None:
    panel = panels.bits(vae, IMAGE)
    with pytest.raises(RuntimeError, match="nothing was drawn"):
        explorer.latency(panel, "bits", panel.controls["bits"].value)


def test_a_peer_that_decodes_something_else_is_not_compared(vae: AutoencoderKL) -> None:
    peer = diffusers_twin(vae)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    explorer.check_agreement(vae, peer, z)
    with torch.no_grad():
        peer.decoder.conv_out.bias.add_(0.01)
    with pytest.raises(AssertionError, match="the two decoders differ"):
        explorer.check_agreement(vae, peer, z)
