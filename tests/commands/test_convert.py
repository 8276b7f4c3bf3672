"""`klvae convert`: file layouts and naming schemes; nothing is overwritten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.cli import main
from klvae_edu.weights import contents
from klvae_edu.weights.pretrained import WEIGHTS_NAME


def test_writes_one_file_from_a_folder_and_a_folder_from_that_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "vae.safetensors", tmp_path / "new" / "model"
    assert main(["convert", str(model), str(file), "--names", "compvis"]) == 0
    size = "f = 4, 4 latent channels, 954,567 parameters"
    assert capsys.readouterr().out == (f"{model}: a folder in diffusers' layout, {size} -> {file}, CompVis' names\n")
    assert "encoder.down.0.block.0.norm1.weight" in load_file(file)

    assert main(["convert", str(file), str(folder), "--names", "diffusers"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{file}: CompVis' names, {size} -> {folder}, a folder in diffusers' layout\n"
    assert printed.err == ""
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()


def test_takes_the_autoencoder_out_of_a_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1)
    vae.to_single_file(tmp_path / "vae.safetensors")
    weights = {f"first_stage_model.{name}": t for name, t in load_file(tmp_path / "vae.safetensors").items()}
    weights |= {"model.diffusion_model.out.weight": torch.zeros(1), "cond_stage_model.weight": torch.zeros(1)}
    torch.save({"state_dict": weights}, tmp_path / "sd.ckpt")
    target = tmp_path / "small.safetensors"
    assert main(["convert", str(tmp_path / "sd.ckpt"), str(target), "--names", "diffusers"]) == 0
    printed = capsys.readouterr().out
    assert "sd.ckpt: CompVis' names under first_stage_model., f = 2, 4 latent channels, " in printed
    assert printed.endswith(f" -> {target}, diffusers' names\n")
    again = AutoencoderKL.from_single_file(target)
    assert again.config == vae.config  # Stable Diffusion's scaling, inferred from the other tensors
    assert load_file(target).keys() == vae.state_dict().keys()


def test_options_give_fields_that_a_single_file_lacks(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, source, target = load_file(model / WEIGHTS_NAME), tmp_path / "bare.safetensors", tmp_path / "folder"
    save_file(weights, source)  # neither metadata nor a config.json
    options = ["--scaling-factor", "0.13025", "--norm-num-groups", "8"]
    assert main(["convert", str(source), str(target), "--names", "diffusers", *options]) == 0
    config = AutoencoderKL.from_pretrained(target).config
    assert (config.scaling_factor, config.norm_num_groups) == (0.13025, 8)
    assert main(["convert", str(model), str(tmp_path / "other"), "--names", "diffusers", *options[:2]]) == 0
    assert AutoencoderKL.from_pretrained(tmp_path / "other").config.scaling_factor == 0.13025


def test_takes_the_data_type_and_the_averaged_weights_on_request(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: Callable[[], str]
) -> None:
    vae = AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1)
    vae.to_single_file(tmp_path / "vae.safetensors")
    weights = load_file(tmp_path / "vae.safetensors")
    averages = {f"model_ema.{name.replace('.', '')}": torch.ones_like(t) for name, t in weights.items()}
    mixed = {**weights, "quant_conv.bias": weights["quant_conv.bias"].half()}
    torch.save({"state_dict": mixed | averages}, tmp_path / "vae.ckpt")

    def convert(source: Path, target: str, *options: str) -> int:
        return main(["convert", str(source), str(tmp_path / target), "--names", "diffusers", *options])

    assert convert(tmp_path / "vae.ckpt", "none.safetensors") == 2
    assert "pass dtype=…" in error_of()
    assert convert(tmp_path / "vae.ckpt", "half.safetensors", "--dtype", "float16") == 0
    half = load_file(tmp_path / "half.safetensors")
    assert torch.equal(half["quant_conv.weight"], weights["quant_conv.weight"].half())
    assert convert(tmp_path / "vae.ckpt", "ema.safetensors", "--ema") == 0
    assert all(bool((tensor == 1).all()) for tensor in load_file(tmp_path / "ema.safetensors").values())

    assert convert(model, "folder", "--dtype", "bfloat16") == 0
    assert AutoencoderKL.from_pretrained(tmp_path / "folder").dtype == torch.bfloat16
    assert convert(model, "other", "--ema") == 2
    assert "expected averaged weights" in error_of()


@pytest.mark.parametrize("name", ["dir.ckpt", "dir.safetensors"])
def test_reads_a_folder_whatever_its_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: Callable[[], str], name: str
) -> None:
    source = tmp_path / name
    source.mkdir()
    target = tmp_path / "vae.SafeTensors"
    assert main(["convert", str(source), str(target), "--names", "compvis"]) == 2
    assert f"{source}: expected config.json and diffusion_pytorch_model.safetensors, found nothing" in error_of()
    for file in model.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    assert main(["convert", str(source), str(target), "--names", "compvis"]) == 0
    assert "a folder in diffusers' layout" in capsys.readouterr().out


def test_opens_a_single_file_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    AutoencoderKL.from_preset("tiny", seed=0).to_single_file(tmp_path / "vae.safetensors")
    opened: list[Path] = []
    read = contents.SafetensorsFile
    monkeypatch.setattr(contents, "SafetensorsFile", lambda path: opened.append(path) or read(path))
    command = ["convert", str(tmp_path / "vae.safetensors"), str(tmp_path / "folder"), "--names", "diffusers"]
    assert main(command) == 0
    assert opened == [tmp_path / "vae.safetensors"]


def test_does_not_write_over_anything(model: Path, tmp_path: Path, error_of: Callable[[], str]) -> None:
    (tmp_path / "vae.safetensors").write_text("precious")
    (tmp_path / "folder").mkdir()
    for target in ("vae.safetensors", "folder"):
        assert main(["convert", str(model), str(tmp_path / target), "--names", "diffusers"]) == 2
        assert f"{target}: it already exists and was not changed" in error_of()
    assert (tmp_path / "vae.safetensors").read_text() == "precious"
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    ("target", "names", "message"),
    [
        ("vae.ckpt", "diffusers", "vae.ckpt: expected a file name that ends in .safetensors, or a folder name"),
        ("model", "compvis", "model: a folder has diffusers' names; for CompVis' names write"),
    ],
)
def test_says_what_it_writes(
    model: Path, tmp_path: Path, error_of: Callable[[], str], target: str, names: str, message: str
) -> None:
    assert main(["convert", str(model), str(tmp_path / target), "--names", names]) == 2
    assert message in error_of()
    assert not list(tmp_path.iterdir())


def test_says_what_is_wrong_with_a_file_and_does_not_ask_the_hub_for_it(
    tmp_path: Path, error_of: Callable[[], str]
) -> None:
    target = str(tmp_path / "out.safetensors")
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    missing = [("missing.safetensors", "file not found"), ("missing.CKPT", "file not found")]
    for source, message in (*missing, ("broken.ckpt", "damaged")):
        assert main(["convert", str(tmp_path / source), target, "--names", "compvis"]) == 2
        error = error_of()
        assert source in error and message in error


def test_asks_the_hub_for_what_is_not_here_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "no/such-model", str(tmp_path / "model"), "--names", "diffusers"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "klvae: there is no folder no/such-model; looking for it on the Hugging Face Hub"
    assert second.startswith("klvae: 'no/such-model' is not a folder here")


class TestForAProgram:
    @pytest.fixture(scope="class")
    def sdxl(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A file with the network and the scaling factor of SDXL, whose weights take no disk space."""
        config = AutoencoderKLConfig.from_preset("sdxl")
        with torch.device("meta"):
            names = AutoencoderKL(config).state_dict()
        path = tmp_path_factory.mktemp("sdxl") / "vae.ckpt"
        with torch.serialization.skip_data():
            torch.save({name: torch.empty(t.shape, dtype=torch.half) for name, t in names.items()}, path)
        return path

    @pytest.mark.parametrize(
        ("program", "target", "names"),
        [
            ("comfyui", "vae.safetensors", "CompVis' names"),
            ("forge", "vae.safetensors", "CompVis' names"),
            ("a1111", "vae.safetensors", "CompVis' names"),
            ("kohya", "vae.safetensors", "CompVis' names"),
            ("invokeai", "sdxl-vae.safetensors", "CompVis' names"),
            ("onetrainer", "vae", "a folder in diffusers' layout"),
            ("diffusers", "vae", "a folder in diffusers' layout"),
        ],
    )
    def test_names_and_layout_are_what_it_reads(
        self, sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, target: str, names: str
    ) -> None:
        command = ["convert", str(sdxl), str(tmp_path / target), "--for", program, "--scaling-factor", "0.13025"]
        assert main(command) == 0
        assert capsys.readouterr().out.endswith(f"-> {tmp_path / target}, {names}\n")
        config = AutoencoderKL.from_any(tmp_path / target).config
        assert replace(config, sample_size=1024) == AutoencoderKLConfig.from_preset("sdxl")

    def test_a_model_that_it_cannot_hold_is_refused_before_anything_is_written(
        self, tmp_path: Path, error_of: Callable[[], str]
    ) -> None:
        command = ["convert", "kl-f8-mini", str(tmp_path / "vae.safetensors"), "--for", "comfyui"]
        assert main(command) == 2
        assert "ComfyUI reads models with the network of sd-v1 or sdxl or sd3 or flux only" in error_of()
        assert not list(tmp_path.iterdir())

    def test_a_target_of_the_other_kind_is_refused(self, tmp_path: Path, error_of: Callable[[], str]) -> None:
        assert main(["convert", "kl-f8-mini", str(tmp_path / "vae.safetensors"), "--for", "onetrainer"]) == 2
        assert "for onetrainer expected a folder name without a suffix" in error_of()

    def test_one_of_names_and_program_is_needed(self, tmp_path: Path, error_of: Callable[[], str]) -> None:
        for options in ([], ["--for", "comfyui", "--names", "compvis"]):
            assert main(["convert", "kl-f8-mini", str(tmp_path / "vae.safetensors"), *options]) == 2
            assert "expected one of --names and --for" in error_of()
