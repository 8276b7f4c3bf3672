"""The stored flow model's figures, and the tool that trains it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.data.sprites import BACKGROUND, sprite
from klvae_edu.flow import VelocityNet
from klvae_edu.pretrained_flow import FLOW_SPRITES, encoder_sha256, load_flow, save_flow
from tools.train_flow import Training, card, describe, evaluated, explained, samples, standardised, trained

TINY = Training(images=12, steps=3, batch_size=4, width=16, depth=1)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_bundled().eval()


@pytest.fixture(scope="module")
def evaluation() -> dict:
    return json.loads((FLOW_SPRITES / "evaluation.json").read_text(encoding="utf-8"))


class TestTheStoredFlow:
    def test_has_the_figures_that_its_evaluation_states(self, vae: AutoencoderKL, evaluation: dict) -> None:
        found = evaluated(vae, {"flow-sprites": load_flow()}, 48)["figures"]
        for name in ("flow-sprites", "encoded and decoded"):
            assert found[name]["clean"] == pytest.approx(evaluation["figures"][name]["clean"], abs=0.12), name
            assert found[name]["explained"] == pytest.approx(evaluation["figures"][name]["explained"], abs=0.05), name

    def test_is_better_than_a_network_trained_as_in_the_notebook(self, evaluation: dict) -> None:
        stored, classroom, rebuilt = evaluation["figures"].values()
        assert classroom["clean"] < stored["clean"] and classroom["explained"] < stored["explained"]
        assert stored["explained"] < rebuilt["explained"] + 0.02

    def test_has_a_card_with_these_figures(self, evaluation: dict) -> None:
        assert card(load_flow()[1], evaluation) == (FLOW_SPRITES / "README.md").read_text(encoding="utf-8")


class TestATraining:
    def test_makes_a_folder_that_the_package_reads_and_a_card(self, vae: AutoencoderKL, tmp_path: Path) -> None:
        net, config = trained(vae, TINY)
        save_flow(net, config, tmp_path)
        describe(vae, tmp_path, TINY, count=3)
        loaded, found = load_flow(tmp_path)
        assert found == config and isinstance(loaded, VelocityNet)
        assert (config.channels, config.width, config.depth) == (4, 16, 1)
        assert (config.images, config.steps, config.batch_size) == (12, 3, 4)
        assert config.encoder_sha256 == encoder_sha256(vae)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert "Data: 12 sprites" in text and "3 steps of 4 latents" in text and "3 samples of each network" in text

    def test_depends_on_the_autoencoder_and_its_length_only(self, vae: AutoencoderKL) -> None:
        first, _ = trained(vae, TINY)
        torch.manual_seed(1)
        second, _ = trained(vae, TINY)
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name
        assert any(tensor.any() for name, tensor in first.state_dict().items() if name.startswith("conv_out"))
        assert vae.config == AutoencoderKL.from_bundled().config  # left as it was

    def test_uses_latents_with_mean_0_and_standard_deviation_1_in_each_channel(self, vae: AutoencoderKL) -> None:
        _, config = trained(vae, TINY)
        with torch.no_grad():
            posterior = vae.encode(torch.stack([sprite(index, 64) for index in range(12)])).latent_dist
        z = posterior.sample(torch.Generator().manual_seed(0))
        scaled = standardised(vae, config.latents_mean, config.latents_std).scale_latents(z)
        torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.02)
        torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.02)


class TestTheMeasure:
    def test_of_samples_is_low_before_training_and_high_for_rebuilt_sprites(self, vae: AutoencoderKL) -> None:
        untrained = VelocityNet(4, 16, 1), trained(vae, TINY)[1]
        figures = evaluated(vae, {"untrained": untrained}, 6)["figures"]
        assert figures["untrained"]["clean"] == 0 and figures["untrained"]["explained"] < 0.3
        assert figures["encoded and decoded"]["clean"] > 0.8

    def test_is_1_for_a_sprite_and_0_for_an_empty_picture(self) -> None:
        empty = torch.tensor(BACKGROUND)[:, None, None].expand(3, 64, 64)
        shares = explained(torch.stack([sprite(0, 64), empty]))
        assert shares[0] > 0.95 and shares[1] == 0

    def test_takes_samples_in_the_latents_own_units(self, vae: AutoencoderKL) -> None:
        """A network that stands still leaves noise: the decoder gets mean + std · noise."""
        _, config = trained(vae, TINY)
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        with torch.no_grad():
            expected = vae.decode(mean + std * noise).sample.clamp(-1, 1)
        torch.testing.assert_close(samples(vae, VelocityNet(4, 16, 1), config, 2), expected)
