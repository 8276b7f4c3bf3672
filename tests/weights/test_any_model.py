"""One name for every model: what it may be, and what comes after "#"."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.weights.any_model import Source, parse_source
from tests.weights.test_contents import holds


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kl-f8-mini", Source("kl-f8-mini")),
        ("owner/name", Source("owner/name")),
        ("owner/name/vae", Source("owner/name", "vae")),
        ("owner/name/a/b.safetensors#ema", Source("owner/name", "a/b.safetensors", None, "ema")),
        ("https://huggingface.co/owner/name", Source("owner/name")),
        ("https://huggingface.co/owner/name/tree/refs/vae", Source("owner/name", "vae", "refs")),
        ("none.ckpt#model.vae", Source("none.ckpt", prefix="model.vae")),
        (
            "https://huggingface.co/owner/name/blob/main/my%20vae.safetensors",
            Source("owner/name", "my vae.safetensors", "main"),
        ),
        ("hf://owner/name", Source("owner/name")),
        ("./a/b/c", Source("./a/b/c")),
        ("/a/b/c", Source("/a/b/c")),
    ],
)
def test_a_name_is_parsed(name: str, expected: Source) -> None:
    assert parse_source(name) == expected


def test_a_path_that_exists_counts_with_all_its_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a#b.safetensors", "x/y/z"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert parse_source(name) == Source(name)
    assert parse_source("a#b.safetensors#ema") == Source("a#b.safetensors", prefix="ema")
    assert not parse_source("x/y").on_hub and parse_source("x/z").on_hub


def test_bundled_models_files_and_folders_are_read(
    vae: AutoencoderKL, compvis: dict[str, Tensor], tmp_path: Path
) -> None:
    vae.save_pretrained(tmp_path / "folder")
    save_file(compvis, tmp_path / "vae.safetensors")
    assert holds(AutoencoderKL.from_any(tmp_path / "folder"), vae)
    assert holds(AutoencoderKL.from_any(str(tmp_path / "vae.safetensors")), vae)
    assert AutoencoderKL.from_any("kl-f8-mini").num_parameters() == 2_059_287


def test_fields_of_the_configuration_can_be_given(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "folder")
    assert AutoencoderKL.from_any(tmp_path / "folder", scaling_factor=0.5).config.scaling_factor == 0.5
    assert AutoencoderKL.from_any("kl-f8-mini", scaling_factor=0.5).config.scaling_factor == 0.5
    with pytest.raises(ValueError, match="no configuration field 'scale'"):
        AutoencoderKL.from_any(tmp_path / "folder", scale=0.5)


def test_after_the_sign_is_the_prefix_or_the_averaged_weights(
    vae: AutoencoderKL, compvis: dict[str, Tensor], tmp_path: Path
) -> None:
    averages = {name: tensor + 1 for name, tensor in compvis.items()}
    torch.save({"model": compvis, "model_ema": averages}, tmp_path / "x.ckpt")
    path = str(tmp_path / "x.ckpt")
    with pytest.warns(UserWarning, match="the one under model was taken; the one under model_ema: prefix='model_ema.'"):
        assert holds(AutoencoderKL.from_any(path), vae)
    for chosen in ("#ema", "#model_ema", "#model_ema."):
        vector = AutoencoderKL.from_any(path + chosen).get_parameters()
        assert torch.allclose(vector, vae.get_parameters() + 1)


@pytest.mark.parametrize("name", ["none.safetensors", "folder/none.ckpt", "./a/b/none.safetensors.index.json"])
def test_a_missing_file_is_an_error_at_once(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"file not found|no such file"):
        AutoencoderKL.from_any(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected the name of a model, got an empty one"),
        ("https://civitai.com/api/download/models/1", "expected an address of huggingface.co; download the file"),
        ("kl-f8-mini#nonsense", "no autoencoder under nonsense"),
        ("kl-f8-mini#ema", "expected averaged weights .* found none for 184 of 184 tensors"),
    ],
)
def test_a_name_that_cannot_be_one_is_an_error_that_says_why(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderKL.from_any(name)


def test_a_misspelt_bundled_model_is_told_its_name() -> None:
    with pytest.raises(FileNotFoundError, match=r"kl-f8-minii: no such file or folder; did you mean 'kl-f8-mini'\?"):
        AutoencoderKL.from_any("kl-f8-minii")


def test_a_home_folder_is_expanded_in_sources_and_targets(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    vae.save_pretrained("~/folder")
    vae.to_single_file("~/vae.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "vae.safetensors"]
    for name in ("~/folder", "~/vae.safetensors"):
        assert holds(AutoencoderKL.from_any(name), vae)
