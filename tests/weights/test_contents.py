"""Opening weight files: nested dicts, shards, and what is no file of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.weights.contents import open_contents


def holds(model: AutoencoderKL, vae: AutoencoderKL) -> bool:
    return torch.equal(model.get_parameters(), vae.get_parameters())


@pytest.mark.parametrize(
    "keys", [("state_dict",), ("model",), ("ema",), ("vae",), ("params", "g_ema"), ("a", "b", "c")]
)
def test_dicts_in_dicts_are_read_at_any_depth(
    vae: AutoencoderKL, compvis: dict[str, Tensor], tmp_path: Path, keys: tuple[str, ...]
) -> None:
    content: dict[str, Any] = compvis
    for key in reversed(keys):
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}}
    torch.save(content, tmp_path / "vae.ckpt")
    assert holds(AutoencoderKL.from_single_file(tmp_path / "vae.ckpt"), vae)


def test_the_halves_may_be_dicts_of_their_own(vae: AutoencoderKL, compvis: dict[str, Tensor], tmp_path: Path) -> None:
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in compvis.items():
        first, _, rest = name.partition(".")
        halves.setdefault(first, {})[rest] = tensor
    torch.save(halves, tmp_path / "vae.pt")
    assert holds(AutoencoderKL.from_single_file(tmp_path / "vae.pt"), vae)


def test_a_name_that_comes_twice_is_refused(compvis: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": compvis, "encoder": {"conv_in.weight": torch.zeros(1)}}, tmp_path / "vae.pt")
    with pytest.raises(ValueError, match=r"two tensors have the name encoder\.conv_in\.weight"):
        open_contents(tmp_path / "vae.pt")


def sharded(weights: dict[str, Tensor], folder: Path, stem: str = "diffusion_pytorch_model") -> Path:
    """Write the weights in two shards with their index, as diffusers does for large models."""
    names = sorted(weights)
    shards = {f"{stem}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, of_shard in shards.items():
        save_file({name: weights[name] for name in of_shard}, folder / shard)
    index = folder / f"{stem}.safetensors.index.json"
    where = {name: shard for shard, of_shard in shards.items() for name in of_shard}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_shards_are_read_through_their_index(vae: AutoencoderKL, compvis: dict[str, Tensor], tmp_path: Path) -> None:
    index = sharded(compvis, tmp_path, "vae")
    assert holds(AutoencoderKL.from_single_file(index), vae)
    (tmp_path / "vae-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 shards are missing: vae-00002-of-00002\.safetensors"):
        open_contents(index)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "vae.safetensors.index.json"])
def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path, shard: str) -> None:
    index = tmp_path / "vae.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match="expected names of weight files in the same folder"):
        open_contents(index)


@pytest.mark.parametrize("content", ["[]", "{}", "no json", '{"weight_map": 3}'])
def test_another_json_file_is_no_index(tmp_path: Path, content: str) -> None:
    index = tmp_path / "vae.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ValueError, match="expected the list of a model's shards"):
        open_contents(index)


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "vae.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(ValueError, match="a GGUF file, whose weights are quantised"):
        open_contents(tmp_path / "vae.gguf")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "vae.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="a pointer of Git LFS instead of the file itself"):
        open_contents(tmp_path / "vae.safetensors")


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "vae.pt"))
    with pytest.raises(ValueError, match=r"got a TorchScript program; save the state_dict\(\)"):
        open_contents(tmp_path / "vae.pt")


def test_lists_of_tensors_are_named_as_not_read(vae: AutoencoderKL, compvis: dict[str, Tensor], tmp_path: Path) -> None:
    content = {"vae": compvis, "ema": {"shadow_params": [torch.zeros(1)] * 3, "decay": 0.9}}
    torch.save(content, tmp_path / "vae.ckpt")
    with pytest.warns(UserWarning, match=r"lists of tensors are not read: ema\.shadow_params \(3 tensors\)"):
        assert holds(AutoencoderKL.from_single_file(tmp_path / "vae.ckpt"), vae)
