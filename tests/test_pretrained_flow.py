"""The stored flow model, and folders that flow models are written into and read from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from klvae_edu import AutoencoderKL
from klvae_edu.data.sprites import sprite
from klvae_edu.flow import VelocityNet, integrate
from klvae_edu.pretrained_flow import FLOW_SPRITES, FlowConfig, encoder_sha256, load_flow, save_flow

CONFIG = FlowConfig(
    channels=4,
    width=16,
    depth=1,
    latents_mean=(0.1, -0.2, 0.3, 1 / 3),
    latents_std=(0.5, 0.6, 0.7, 0.8),
    encoder_sha256="0123",
    images=8,
    steps=2,
    batch_size=4,
    minutes=0.1,
)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_bundled().eval()


@pytest.fixture
def net() -> VelocityNet:
    net = VelocityNet(4, 16, 1)
    for number, parameter in enumerate(net.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    return net


class TestTheStoredFlow:
    def test_is_at_most_two_megabytes_in_float16_and_has_no_other_weights(self) -> None:
        assert sum(file.stat().st_size for file in FLOW_SPRITES.iterdir()) <= 2_000_000
        assert {file.suffix for file in FLOW_SPRITES.iterdir()} == {".safetensors", ".json", ".md"}
        with safe_open(FLOW_SPRITES / "flow.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118

    def test_was_trained_on_the_latents_of_the_bundled_encoder(self, vae: AutoencoderKL) -> None:
        _, config = load_flow()
        assert config.encoder_sha256 == encoder_sha256(vae), "kl-f8-mini has another encoder: run tools.train_flow"

    def test_has_the_scaling_of_the_latents_of_sprites(self, vae: AutoencoderKL) -> None:
        _, config = load_flow()
        with torch.no_grad():
            z = vae.encode(torch.stack([sprite(index, 64) for index in range(256)])).latent_dist
        mean, std = z.mean.mean((0, 2, 3)), (z.mean.var((0, 2, 3)) + z.var.mean((0, 2, 3))).sqrt()
        torch.testing.assert_close(torch.tensor(config.latents_std) / std, torch.ones(4), rtol=0, atol=0.05)
        torch.testing.assert_close((torch.tensor(config.latents_mean) - mean) / std, torch.zeros(4), rtol=0, atol=0.05)

    def test_is_read_in_float32_for_inference_and_gives_the_same_samples_each_time(self) -> None:
        samples = []
        for _ in range(2):
            net, config = load_flow()
            assert not net.training and {parameter.dtype for parameter in net.parameters()} == {torch.float32}
            noise = torch.randn(4, config.channels, 8, 8, generator=torch.Generator().manual_seed(0))
            samples.append(integrate(net, noise, 4))
        assert torch.equal(*samples)
        assert (samples[0] - noise).abs().mean() > 0.1  # it moves the noise

    def test_gives_samples_with_the_statistics_of_latents(self) -> None:
        net, config = load_flow()
        noise = torch.randn(128, config.channels, 8, 8, generator=torch.Generator().manual_seed(0))
        found = integrate(net, noise, 8)
        assert found.mean((0, 2, 3)).abs().max() < 0.15 and (found.std((0, 2, 3)) - 1).abs().max() < 0.15
        kurtosis = ((found - found.mean()) / found.std()).pow(4).mean()
        assert abs(kurtosis - 3) > 0.3  # Gaussian noise has 3


class TestAFolder:
    def test_gives_back_the_configuration_and_the_weights_rounded_to_float16(
        self, net: VelocityNet, tmp_path: Path
    ) -> None:
        save_flow(net, CONFIG, tmp_path / "new" / "flow")
        loaded, config = load_flow(tmp_path / "new" / "flow")
        assert config == CONFIG
        for name, tensor in net.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor.half().float(), rtol=0, atol=0)

    def test_without_a_flow_model_is_a_file_not_found_error(self, net: VelocityNet, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_flow(tmp_path)
        save_flow(net, CONFIG, tmp_path)
        (tmp_path / "flow.safetensors").unlink()
        with pytest.raises(FileNotFoundError):
            load_flow(tmp_path)

    @pytest.mark.parametrize("change", [{"width": None}, {"width": 20}, {"latents_mean": None}, {"colour": "red"}])
    def test_with_a_configuration_of_something_else_is_a_value_error(
        self, net: VelocityNet, tmp_path: Path, change: dict
    ) -> None:
        save_flow(net, CONFIG, tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match="expected the configuration of a flow model"):
            load_flow(tmp_path)

    def test_whose_weights_do_not_fit_the_configuration_is_a_value_error(
        self, net: VelocityNet, tmp_path: Path
    ) -> None:
        save_flow(net, replace(CONFIG, depth=2), tmp_path)
        with pytest.raises(ValueError, match=r"missing: attentions\.1"):
            load_flow(tmp_path)

    def test_with_weights_that_float16_cannot_hold_is_a_value_error(self, net: VelocityNet, tmp_path: Path) -> None:
        nn.init.constant_(net.conv_in.weight, 1e6)
        save_flow(net, CONFIG, tmp_path)
        with pytest.raises(ValueError, match=r"NaN or infinity in conv_in\.weight"):
            load_flow(tmp_path)


class TestTheChecksumOfTheEncoder:
    @pytest.mark.parametrize(
        ("weights", "changes"),
        [
            ("encoder.conv_in.weight", True),
            ("quant_conv.bias", True),
            ("decoder.conv_in.weight", False),
            ("post_quant_conv.bias", False),
        ],
    )
    def test_changes_with_the_weights_that_latents_depend_on(self, weights: str, changes: bool) -> None:
        vae = AutoencoderKL.from_preset("tiny", seed=0)
        before = encoder_sha256(vae)
        nn.init.constant_(vae.get_parameter(weights), 0.5)
        assert (encoder_sha256(vae) != before) == changes

    def test_is_the_same_in_every_type_that_holds_the_weights(self) -> None:
        vae = AutoencoderKL.from_preset("tiny", seed=0).half()
        assert encoder_sha256(vae) == encoder_sha256(vae.clone().float())
