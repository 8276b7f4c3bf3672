"""Files with CompVis' names: diffusers reads the same weights from them as this package, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceAutoencoderKL
from safetensors.torch import load_file, save_file

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.weights import keys
from klvae_edu.weights.keys import to_compvis, to_diffusers
from tests.parity.reference import image, randomise, reference_of, relative

SD_V1 = AutoencoderKLConfig(block_out_channels=(32, 64, 64, 64))
CONFIGS = {
    "Stable Diffusion 1's shape": SD_V1,
    "three blocks per level, every width its own": AutoencoderKLConfig(
        block_out_channels=(32, 64, 96), layers_per_block=3
    ),
    "sixteen channels without quant convs": AutoencoderKLConfig(
        block_out_channels=(32, 64), latent_channels=16, use_quant_conv=False, use_post_quant_conv=False
    ),
}
IN_LEVELS = AutoencoderKLConfig(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
)


def randomised(config: AutoencoderKLConfig) -> AutoencoderKL:
    vae = AutoencoderKL(config)
    randomise(vae)
    return vae


def read_by_diffusers(file: Path, config: AutoencoderKLConfig) -> ReferenceAutoencoderKL:
    """Read a file with diffusers' converter. The configuration is in a folder, so the Hub is not asked."""
    folder = file.parent / "configuration"
    ReferenceAutoencoderKL(**config.to_dict()).save_config(folder)
    return ReferenceAutoencoderKL.from_single_file(str(file), config=str(folder))


def differing(ours: AutoencoderKL, theirs: ReferenceAutoencoderKL) -> list[str]:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    return [name for name, tensor in ours.state_dict().items() if not torch.equal(tensor, expected[name])]


def is_the_same_to_diffusers(file: Path, ours: AutoencoderKL) -> bool:
    """Tell whether diffusers reads this model from the file."""
    try:
        return differing(ours, read_by_diffusers(file, ours.config)) == []
    except (KeyError, RuntimeError, ValueError):
        return False


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_our_compvis_file_is_the_same_model_in_diffusers(tmp_path: Path, config: AutoencoderKLConfig) -> None:
    ours = randomised(config)
    ours.to_single_file(tmp_path / "vae.safetensors", names="compvis")
    theirs = read_by_diffusers(tmp_path / "vae.safetensors", config)
    assert differing(ours, theirs) == []
    with torch.no_grad():
        x = image((32, 32), torch.float32, batch=1)
        assert relative(ours(x).sample, theirs(x).sample) < 2e-5


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_a_whole_checkpoint_is_the_same_model_to_diffusers_and_to_us(tmp_path: Path, prefix: str) -> None:
    ours = randomised(SD_V1)
    weights = {prefix + name: tensor.contiguous() for name, tensor in to_compvis(ours.state_dict()).items()}
    weights["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "sd.safetensors")
    assert differing(ours, read_by_diffusers(tmp_path / "sd.safetensors", SD_V1)) == []
    assert differing(AutoencoderKL.from_single_file(tmp_path / "sd.safetensors"), ours) == []


@pytest.mark.parametrize("config", [*CONFIGS.values(), IN_LEVELS], ids=[*CONFIGS.keys(), "attention in a level"])
def test_diffusers_weights_to_compvis_names_and_back_are_the_same(tmp_path: Path, config: AutoencoderKLConfig) -> None:
    theirs = reference_of(config, torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    AutoencoderKL.from_pretrained(tmp_path / "theirs").to_single_file(tmp_path / "vae.safetensors")
    assert not any("attentions" in name for name in load_file(tmp_path / "vae.safetensors"))
    AutoencoderKL.from_single_file(tmp_path / "vae.safetensors").save_pretrained(tmp_path / "ours")
    again = ReferenceAutoencoderKL.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert again.config["scaling_factor"] == config.scaling_factor


def test_our_file_of_diffusers_names_is_the_weight_file_of_diffusers_layout(tmp_path: Path) -> None:
    ours = randomised(SD_V1)
    ours.to_single_file(tmp_path / "diffusion_pytorch_model.safetensors", names="diffusers")
    ReferenceAutoencoderKL(**SD_V1.to_dict()).save_config(tmp_path)
    assert differing(ours, ReferenceAutoencoderKL.from_pretrained(tmp_path)) == []


# Each mistake exchanges two parts of CompVis' names, in both directions. Writing and reading a file would undo it, so
# only another reader shows it.
MISTAKES: dict[str, Callable[[str], str]] = {
    "the decoder's levels are not reversed": lambda name: re.sub(
        r"decoder\.up\.([0-3])", lambda match: f"decoder.up.{3 - int(match[1])}", name
    ),
    "two equally wide levels are exchanged": lambda name: re.sub(
        r"(down|up)\.([23])\.block", lambda match: f"{match[1]}.{5 - int(match[2])}.block", name
    ),
    "query and key are exchanged": lambda name: re.sub(
        r"attn_1\.([qk])", lambda match: "attn_1." + {"q": "k", "k": "q"}[match[1]], name
    ),
    "the middle's blocks are exchanged": lambda name: re.sub(
        r"block_([12])", lambda match: f"block_{3 - int(match[1])}", name
    ),
    "the norms are exchanged": lambda name: re.sub(r"norm([12])", lambda match: f"norm{3 - int(match[1])}", name),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_map_shows(tmp_path: Path, mistake: Callable[[str], str]) -> None:
    """With a mistake, diffusers cannot read the file, or reads another model."""
    ours = randomised(SD_V1)
    renamed = {mistake(name): tensor.contiguous() for name, tensor in to_compvis(ours.state_dict()).items()}
    save_file(renamed, tmp_path / "vae.safetensors")
    assert not is_the_same_to_diffusers(tmp_path / "vae.safetensors", ours)


def test_a_table_that_does_not_reverse_the_levels_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the table of this package. A round trip undoes it, and would not detect it."""
    table = [(compvis, diffusers.replace("{reversed}", "{level}")) for compvis, diffusers in keys.TEMPLATES]
    monkeypatch.setattr(keys, "RULES", {column: keys.rules(table, column) for column in (0, 1)})
    ours = randomised(AutoencoderKLConfig(block_out_channels=(32, 32, 32), layers_per_block=1))
    weights = ours.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in to_diffusers(to_compvis(weights)).items())
    ours.to_single_file(tmp_path / "vae.safetensors")
    assert not is_the_same_to_diffusers(tmp_path / "vae.safetensors", ours)
    monkeypatch.undo()
    ours.to_single_file(tmp_path / "vae.safetensors")
    assert is_the_same_to_diffusers(tmp_path / "vae.safetensors", ours)
