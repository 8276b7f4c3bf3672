"""Checksums in `model/`: a flipped byte is found in either file; what other programs write is read as before."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from klvae_edu import AutoencoderKL
from klvae_edu.weights.checksum import file_crc32
from klvae_edu.weights.files import SafetensorsFile
from klvae_edu.weights.pretrained import CONFIG_NAME, WEIGHTS_NAME

FLIPS = 60


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.25)


@pytest.fixture
def folder(vae: AutoencoderKL, tmp_path: Path) -> Path:
    vae.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read_silently(folder: Path) -> AutoencoderKL:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return AutoencoderKL.from_pretrained(folder)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=4) + "\r\n")


@pytest.mark.filterwarnings("ignore:config.json. fields that AutoencoderKL does not know")
@pytest.mark.parametrize("part", ["tensors", "header", CONFIG_NAME])
def test_every_flipped_bit_is_noticed(part: str, vae: AutoencoderKL, folder: Path) -> None:
    path = folder / (CONFIG_NAME if part == CONFIG_NAME else WEIGHTS_NAME)
    content, chance = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes((folder / WEIGHTS_NAME).read_bytes()[:8], "little")
    first, end = {"tensors": (header, len(content)), "header": (0, header), CONFIG_NAME: (0, len(content))}[part]
    for _ in range(FLIPS):
        place, bit = chance.randrange(first, end), 1 << chance.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with pytest.raises(ValueError, match=path.name.split(".")[0]):
            AutoencoderKL.from_pretrained(folder)
    path.write_bytes(content)
    assert read_silently(folder).config == vae.config


def test_the_message_on_damaged_weights_gives_a_command_that_accepts_them(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"damaged: its contents have changed .*expected crc32:[0-9a-f]{8}") as error:
        AutoencoderKL.from_pretrained(folder)
    command = str(error.value).partition("checksum: ")[2]
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    read_silently(folder)


def test_a_configuration_that_was_edited_by_hand_is_named_with_the_ways_to_go_on(folder: Path) -> None:
    edit_config(folder, scaling_factor=0.5, norm_num_groups=2)
    with pytest.raises(ValueError) as error:
        AutoencoderKL.from_pretrained(folder)
    message = str(error.value)
    assert "norm_num_groups was 4 and is 2; scaling_factor was 0.25 and is 0.5. Restore it" in message
    assert "--scaling-factor" in message and "If the change was made on purpose" in message
    with pytest.raises(ValueError, match="norm_num_groups was 4 and is 2"):
        AutoencoderKL.from_single_file(folder / WEIGHTS_NAME)
    given = AutoencoderKL.from_any(folder, scaling_factor=0.75, norm_num_groups=4)  # neither comes from the file
    assert (given.config.scaling_factor, given.config.norm_num_groups) == (0.75, 4)


def test_another_layout_of_the_same_configuration_is_no_change(vae: AutoencoderKL, folder: Path) -> None:
    edit_config(folder, _diffusers_version="0.36.0")
    assert read_silently(folder).config == vae.config


def test_a_folder_without_checksums_is_read_as_it_is(vae: AutoencoderKL, folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME, metadata={"format": "pt"})
    edit_config(folder, scaling_factor=0.5)
    assert read_silently(folder).config.scaling_factor == 0.5


def test_a_model_that_went_through_diffusers_is_read(folder: Path, tmp_path: Path) -> None:
    """It keeps the fields of config.json that it does not know, and changes others."""
    theirs = diffusers.AutoencoderKL.from_pretrained(folder)
    theirs.register_to_config(scaling_factor=0.5)
    with torch.no_grad():
        theirs.quant_conv.bias.fill_(7)
    for out in (tmp_path / "other", folder):
        theirs.save_pretrained(out)
        ours = read_silently(out)
        assert ours.config.scaling_factor == 0.5 and bool((ours.quant_conv.bias == 7).all())


def test_the_same_model_makes_the_same_files(vae: AutoencoderKL, folder: Path, tmp_path: Path) -> None:
    for _ in range(4):
        vae.save_pretrained(tmp_path / "again")
        assert file_crc32(tmp_path / "again" / WEIGHTS_NAME) == file_crc32(folder / WEIGHTS_NAME)
    shutil.copy(folder / WEIGHTS_NAME, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert SafetensorsFile(tmp_path / "diffusion_pytorch_model.fp16.safetensors").metadata["format"] == "pt"
