"""Folders as people have them: variants, shards, a whole pipeline, other names; and repositories on the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.weights.folders import choose_weights, read_pretrained
from klvae_edu.weights.pretrained import WEIGHTS_NAME
from tests.weights.test_contents import holds, sharded


@pytest.fixture
def folder(vae: AutoencoderKL, tmp_path: Path) -> Path:
    vae.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bin"], None, f"{STEM}.safetensors"),
        ([f"{STEM}.bin", f"{STEM}.fp16.safetensors"], None, f"{STEM}.bin"),
        ([f"{STEM}.fp16.safetensors"], None, f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.fp16.bin", f"{STEM}.fp16.safetensors"], None, f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], "fp16", f"{STEM}.fp16.safetensors"),
        ([f"{STEM}.safetensors.index.json"], None, f"{STEM}.safetensors.index.json"),
        ([f"{STEM}.safetensors.index.fp16.json"], None, f"{STEM}.safetensors.index.fp16.json"),
        ([f"{STEM}.fp16.safetensors.index.json"], "fp16", f"{STEM}.fp16.safetensors.index.json"),
        ([f"{STEM}-00001-of-00002.safetensors", "vae.safetensors"], None, "vae.safetensors"),
        (["model.safetensors", "README.md"], None, "model.safetensors"),
        (
            [f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-00001-of-00002.safetensors"],
            None,
            f"{STEM}.safetensors.index.fp16.json",
        ),
    ],
)
def test_the_weights_are_chosen_by_name(names: list[str], variant: str | None, chosen: str) -> None:
    assert choose_weights([*names, "config.json"], variant, "here") == chosen


def test_where_there_is_a_choice_it_is_named() -> None:
    both = [f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors"]
    with pytest.raises(ValueError, match="several variants of the weights; choose with variant='fp16' or 'non_ema'"):
        choose_weights(both, None, "here")
    with pytest.raises(FileNotFoundError, match="no weights of the variant 'bf16'; there are 'fp16' or 'non_ema'"):
        choose_weights(both, "bf16", "here")
    with pytest.raises(ValueError, match=r"several weight files, a\.safetensors, b\.pt; name the file itself"):
        choose_weights(["a.safetensors", "b.pt"], None, "here")
    with pytest.raises(FileNotFoundError, match=rf"expected {STEM}\.safetensors or another variant of it, found notes"):
        choose_weights(["notes"], None, "here")


def test_a_variant_and_shards_are_read(vae: AutoencoderKL, folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / f"{STEM}.fp16.safetensors")
    assert holds(AutoencoderKL.from_pretrained(folder), vae)
    assert holds(AutoencoderKL.from_pretrained(folder, variant="fp16"), vae)
    weights = load_file(folder / f"{STEM}.fp16.safetensors")
    (folder / f"{STEM}.fp16.safetensors").unlink()
    sharded(weights, folder)
    assert holds(AutoencoderKL.from_pretrained(folder), vae)


def test_of_a_pipeline_its_autoencoder_is_read(vae: AutoencoderKL, folder: Path) -> None:
    pipeline = folder.parent / "pipeline"
    shutil.copytree(folder, pipeline / "vae")
    (pipeline / "model_index.json").write_text("{}")
    assert holds(AutoencoderKL.from_pretrained(pipeline), vae)
    assert holds(AutoencoderKL.from_pretrained(pipeline, subfolder="vae"), vae)
    shutil.rmtree(pipeline / "vae")
    with pytest.raises(FileNotFoundError, match=r"pipeline: expected config\.json and .*, found model_index\.json"):
        AutoencoderKL.from_pretrained(pipeline)


def test_a_folder_without_a_configuration_is_read_and_it_is_said(
    vae: AutoencoderKL, compvis: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(compvis, tmp_path / "my-vae.safetensors")
    with pytest.warns(UserWarning, match=r"config\.json is missing: the configuration is inferred"):
        assert holds(AutoencoderKL.from_pretrained(tmp_path), vae)


def test_other_names_in_a_folder_are_read_and_said(
    vae: AutoencoderKL, compvis: dict[str, Tensor], folder: Path
) -> None:
    save_file(compvis, folder / WEIGHTS_NAME)
    assert holds(AutoencoderKL.from_pretrained(folder), vae)
    assert read_pretrained(folder).layout == "a folder, CompVis' names"


def test_tensors_beside_the_autoencoder_are_counted_in_one_warning(vae: AutoencoderKL, folder: Path) -> None:
    more = {"loss.logvar": torch.zeros(1), "loss.net.0.weight": torch.zeros(1), "global_step": torch.zeros(1)}
    save_file(vae.state_dict() | more, folder / WEIGHTS_NAME)
    with pytest.warns(UserWarning) as caught:
        assert holds(AutoencoderKL.from_pretrained(folder), vae)
    assert [str(w.message) for w in caught] == [
        f"{folder / WEIGHTS_NAME}: 3 other tensors left out: 2 under loss, global_step"
    ]


def test_copies_that_diffusers_keeps_of_fused_layers_are_left_out(vae: AutoencoderKL, folder: Path) -> None:
    import diffusers

    theirs = diffusers.AutoencoderKL.from_pretrained(folder)
    theirs.fuse_qkv_projections()
    theirs.save_pretrained(folder)
    with pytest.warns(UserWarning, match="4 other tensors left out"):
        assert holds(AutoencoderKL.from_pretrained(folder), vae)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_may_be_in_any_encoding_of_unicode(vae: AutoencoderKL, folder: Path, encoding: str) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding=encoding)
    assert AutoencoderKL.from_pretrained(folder).config == vae.config


def test_another_programs_configuration_counts_as_none(vae: AutoencoderKL, folder: Path) -> None:
    (folder / "config.json").write_text('{"lr": 1e-4}')
    with pytest.warns(UserWarning, match=r"config\.json is another program's: the configuration is inferred"):
        assert holds(AutoencoderKL.from_pretrained(folder), vae)


def test_a_folder_above_is_told_where_the_model_is(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"found model; there is one in {folder}"):
        AutoencoderKL.from_pretrained(folder.parent)


class TestTheHub:
    """The Hub is replaced by a folder: repositories lie in it under their ids."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        import huggingface_hub

        root = tmp_path / "hub"

        class Api:
            def model_info(self, hub_id: str, revision: str | None = None, *, timeout: float) -> SimpleNamespace:
                repository = root / hub_id
                if not repository.is_dir():
                    raise OSError(f"no repository {hub_id}")
                names = [p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()]
                return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

        def download(hub_id: str, name: str, revision: str | None = None, **more: Any) -> str:
            path = root / hub_id / name
            if not path.is_file():
                raise OSError(f"no file {name}")
            self.downloaded.append(name)
            return str(path)

        self.downloaded: list[str] = []
        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return root

    def test_a_repository_its_folder_and_its_file_are_read(self, vae: AutoencoderKL, folder: Path, hub: Path) -> None:
        shutil.copytree(folder, hub / "owner" / "vae")
        shutil.copytree(folder, hub / "owner" / "pipeline" / "vae")
        vae.to_single_file(hub / "owner" / "files" / "sub" / "x.safetensors")
        for name in (
            "owner/vae",
            "owner/pipeline",
            "owner/pipeline/vae",
            "owner/files/sub/x.safetensors",
            "https://huggingface.co/owner/pipeline",
            "https://huggingface.co/owner/pipeline/tree/main/vae",
            "https://huggingface.co/owner/files/blob/main/sub/x.safetensors",
            "https://huggingface.co/owner/files/resolve/main/sub/x.safetensors?download=true",
        ):
            assert holds(AutoencoderKL.from_any(name), vae), name

    def test_only_what_is_needed_is_downloaded(self, folder: Path, hub: Path) -> None:
        repository = hub / "owner" / "vae"
        shutil.copytree(folder, repository)
        for name in (f"{STEM}.fp16.safetensors", f"{STEM}.bin", "sample.png"):
            (repository / name).write_bytes(b"large")
        AutoencoderKL.from_pretrained("owner/vae")
        assert sorted(self.downloaded) == ["config.json", WEIGHTS_NAME]

    def test_shards_come_with_their_index(self, vae: AutoencoderKL, folder: Path, hub: Path) -> None:
        repository = hub / "owner" / "vae"
        shutil.copytree(folder, repository)
        (repository / WEIGHTS_NAME).unlink()
        sharded(vae.state_dict(), repository)
        assert holds(AutoencoderKL.from_pretrained("owner/vae"), vae)
        assert len(self.downloaded) == 4

    def test_what_is_not_there_is_an_error_with_the_name(self, hub: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"'owner/none' is not a folder here.*no repository owner/none"):
            AutoencoderKL.from_any("owner/none")
        with pytest.raises(FileNotFoundError, match=r"owner/none/x\.safetensors: no such file here"):
            AutoencoderKL.from_any("owner/none/x.safetensors")
