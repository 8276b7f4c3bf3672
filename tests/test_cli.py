"""The command line: what each command writes and prints, its exit codes, and errors in one line."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from klvae_edu import AutoencoderKL, cli, environment, single_file
from klvae_edu.checkpoints import WEIGHTS_NAME
from klvae_edu.cli import main, train_config
from klvae_edu.data import photographs, save_image
from klvae_edu.environment import PROCESS_SETTINGS, Check
from klvae_edu.metrics import PatchPCA, psnr
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import about, load_recipe, recipe_names

PSNR_LINE = re.compile(r"^(.+): model (\d+\.\d\d) dB, patch-PCA (\d+\.\d\d) dB, bicubic (\d+\.\d\d) dB -> (.+)$")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model; how good it is does not matter here."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    AutoencoderKL.from_preset("tiny", seed=0).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph with odd sides, 61x45."""
    path = tmp_path / "cat.png"
    save_image(photographs("held-out")["chelsea"][:, 100:145, 100:161], path)
    return path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed to stderr: one line that begins with the program's name."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("klvae: ")
    return line.removeprefix("klvae: ")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("train", "reconstruct", "convert", "doctor"))


def test_an_unknown_command_or_a_value_out_of_range_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in ((["trian"], "trian"), (["train", "--steps", "0"], "steps: expected"), ([], "train")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert word in capsys.readouterr().err


def test_the_console_trains_then_goes_on_then_reconstructs(tmp_path: Path, photo: Path) -> None:
    """The real thing, in processes of its own."""

    def klvae(*arguments: str) -> str:
        command = [sys.executable, "-m", "klvae_edu", *arguments]
        env = {**os.environ, **PROCESS_SETTINGS}  # it need not start anew
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ["--size", "16", "--batch-size", "2", "--steps", "3", "--held-out", "4", "--device", "cpu"]
    printed = klvae("train", "--data", "photos", *options)
    assert "Step 3 of 3" in printed and "Mean PSNR on 4 held-out crops of 16x16 pixels" in printed
    assert re.search(r"\d+\.\d\d dB  model\n", printed) and "dB  patch-PCA" in printed and "dB  bicubic" in printed
    assert "klvae reconstruct PHOTO --model run/model" in printed
    klvae("train", "--data", "dead-leaves", *options, "--init", "run/model", "--out", "run-2")
    (line,) = klvae("reconstruct", photo.name, "--model", "run-2/model").splitlines()
    assert PSNR_LINE.match(line)
    assert (tmp_path / "reconstructions" / "cat_reconstruction.png").is_file()


def test_reconstruct_writes_three_pictures_side_by_side_and_prints_psnr(
    model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", str(photo), "--model", str(model), "--out", str(tmp_path / "out")]) == 0
    found = PSNR_LINE.match(capsys.readouterr().out.strip())
    assert found
    name, of_model, of_pca, of_bicubic, path = found.groups()
    assert name == str(photo) and path == str(tmp_path / "out" / "cat_reconstruction.png")

    image = photographs("held-out")["chelsea"][None, :, 100:145, 100:161]
    vae = AutoencoderKL.from_pretrained(model)
    with torch.no_grad():
        expected = psnr(vae(image).sample, image).item()
    assert float(of_model) == pytest.approx(expected, abs=0.06)  # the file holds 8 bits
    assert float(of_pca) > float(of_model) < float(of_bicubic)  # untrained
    with Image.open(path) as picture:
        width, height = picture.size
    assert width >= 3 * 61 and height >= 45


def test_patch_pca_is_fitted_on_the_training_photographs_not_on_the_picture(
    model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[torch.Tensor] = []
    fit = PatchPCA.fit
    monkeypatch.setattr(PatchPCA, "fit", lambda self, images: fitted.append(images) or fit(self, images))
    assert main(["reconstruct", str(photo), "--model", str(model), "--out", str(tmp_path / "out")]) == 0
    (crops,) = fitted
    assert len(crops) == 512 and crops.shape[1:] == (3, 64, 64)


def test_what_can_be_read_is_done_and_what_cannot_is_named(
    model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, missing, speck = tmp_path / "broken.jpg", tmp_path / "missing.jpg", tmp_path / "speck.png"
    broken.write_bytes(b"no image")
    Image.new("RGB", (2, 2)).save(speck)
    photos = [str(path) for path in (broken, missing, speck, photo)]
    assert main(["reconstruct", *photos, "--model", str(model), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert PSNR_LINE.match(printed.out.strip())
    for path, line in zip((broken, missing, speck), printed.err.splitlines(), strict=True):
        assert line.startswith(f"klvae: {path}: ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cat_reconstruction.png"]


def test_pictures_of_the_same_name_do_not_overwrite_each_other(
    model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "cat.jpg"
    other.parent.mkdir()
    Image.new("RGB", (32, 32), "red").save(other)
    assert main(["reconstruct", str(photo), str(other), "--model", str(model), "--out", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {"cat.png", "cat_reconstruction.png", "cat_reconstruction-2.png"}


def test_a_large_photograph_is_reduced_to_size_and_a_small_one_is_left(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    forward = AutoencoderKL.forward

    def remember(self: AutoencoderKL, sample: torch.Tensor) -> object:
        seen.append(tuple(sample.shape))
        return forward(self, sample)

    monkeypatch.setattr(AutoencoderKL, "forward", remember)
    for name, size in (("wide", (400, 100)), ("tall", (100, 400)), ("small", (30, 20))):
        Image.new("RGB", size, "green").save(tmp_path / f"{name}.png")
    photos = [str(tmp_path / f"{name}.png") for name in ("wide", "tall", "small")]
    assert main(["reconstruct", *photos, "--model", str(model), "--out", str(tmp_path / "o"), "--size", "80"]) == 0
    assert seen == [(1, 3, 20, 80), (1, 3, 80, 20), (1, 3, 20, 30)]


def test_without_a_model_the_error_says_how_to_train_one(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", str(photo)]) == 2
    assert "klvae train --out run" in error_of(capsys)


def test_without_a_photograph_the_error_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "--model", str(model)]) == 2
    assert "at least one photograph" in error_of(capsys)


def test_a_folder_without_a_model_is_an_error_that_names_it(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", str(photo), "--model", str(tmp_path)]) == 2
    assert f"{tmp_path}: expected config.json, found cat.png" in error_of(capsys)


def test_a_device_that_is_not_there_is_an_error(
    model: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["reconstruct", str(photo), "--model", str(model), "--device", "cuda"]) == 2
    assert "'cuda' is not available here" in error_of(capsys)


def test_a_run_that_is_in_the_way_is_an_error_with_another_name_for_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").touch()
    assert main(["train", "--out", str(tmp_path), "--size", "16"]) == 2
    assert "--out" in error_of(capsys)


@pytest.mark.parametrize(
    ("data", "out", "folder"),
    [(".", "run", "."), ("images", "images/deep/run", "images"), ("photos+images", "images", "images")],
)
def test_a_run_is_not_written_among_the_images_it_is_trained_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: str,
    out: str,
    folder: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    assert main(["train", "--data", data, "--out", out]) == 2
    assert "out: expected a folder outside of the images" in (error := error_of(capsys))
    assert f"; {out} is inside of {folder}. Name another one with --out" in error
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "a.png"]


class TestTrainConfig:
    def test_the_options_go_before_the_recipe_and_the_recipe_before_the_defaults(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("steps: 7\nlr: 1e-4\nadaptive: false\n")
        expected = TrainingConfig(steps=9, lr=1e-4, adaptive=False)
        assert train_config([str(file), "--steps", "9"]) == expected
        assert train_config([str(file), "--steps", "9", "--adaptive"]) == replace(expected, adaptive=True)
        assert train_config([]) == TrainingConfig()
        assert train_config(["--steps", "9"]) == TrainingConfig(steps=9)

    @pytest.mark.parametrize("name", recipe_names())
    def test_the_command_of_a_run_from_a_recipe_needs_no_recipe(self, name: str) -> None:
        config = train_config([name, "--seed", "5"])
        assert config == replace(load_recipe(name), seed=5)
        program, command, *options = shlex.split(config.command())
        assert (program, command) == ("klvae", "train")
        assert train_config(options) == config

    def test_help_names_the_recipes_and_with_one_shows_its_values(self, capsys: pytest.CaptureFixture[str]) -> None:
        def help_of(*arguments: str) -> str:
            with pytest.raises(SystemExit) as stop:
                main(["train", *arguments, "--help"])
            assert stop.value.code == 0
            return " ".join(capsys.readouterr().out.replace("│", " ").split())

        plain, of_mini = help_of(), help_of("mini")
        assert "usage: klvae train [RECIPE]" in plain and "usage: klvae train mini" in of_mini
        for name in recipe_names():
            assert f" {name} {about(name).splitlines()[0]}" in plain
        assert "optimiser steps (default: 3000)" in plain
        assert f"optimiser steps (default: {load_recipe('mini').steps})" in of_mini
        assert about("mini").splitlines()[0] in of_mini

    def test_a_mistyped_recipe_or_option_is_an_error_with_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "mnii"]) == 2
        assert "there is no recipe 'mnii'; did you mean 'mini'?" in error_of(capsys)
        with pytest.raises(SystemExit) as stop:
            main(["train", "mini", "--bach-size", "4"])
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert "--bach-size" in printed and "--batch-size" in printed

    def test_a_fault_in_a_file_is_one_line_that_names_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("steps: many\n")
        assert main(["train", str(file)]) == 2
        assert error_of(capsys) == f"{file}: steps: expected a whole number, got 'many'"

    @pytest.mark.parametrize("name", [name for name in recipe_names() if name != "mini"])
    def test_a_recipe_for_images_of_your_own_asks_for_them(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["train", name]) == 2
        assert "--data FOLDER" in error_of(capsys)
        assert not list(tmp_path.iterdir())


class TestConvert:
    def test_writes_one_file_from_a_folder_and_a_folder_from_that_file(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file, folder = tmp_path / "vae.safetensors", tmp_path / "new" / "model"
        assert main(["convert", str(model), str(file), "--names", "compvis"]) == 0
        size = "f = 4, 4 latent channels, 954,567 parameters"
        assert capsys.readouterr().out == (
            f"{model}: a folder in diffusers' layout, {size} -> {file}, CompVis' names\n"
        )
        assert "encoder.down.0.block.0.norm1.weight" in load_file(file)

        assert main(["convert", str(file), str(folder), "--names", "diffusers"]) == 0
        printed = capsys.readouterr()
        assert printed.out == f"{file}: CompVis' names, {size} -> {folder}, a folder in diffusers' layout\n"
        assert printed.err == ""
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            assert (folder / name).read_bytes() == (model / name).read_bytes()

    def test_takes_the_autoencoder_out_of_a_whole_checkpoint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
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
        assert again.config == vae.config  # Stable Diffusion's scale, for what lay beside
        assert load_file(target).keys() == vae.state_dict().keys()

    def test_takes_on_its_command_line_what_a_single_file_does_not_tell(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights, source, target = load_file(model / WEIGHTS_NAME), tmp_path / "bare.safetensors", tmp_path / "folder"
        save_file(weights, source)  # neither a configuration in it nor one beside it
        told = ["--scaling-factor", "0.13025", "--norm-num-groups", "8"]
        assert main(["convert", str(source), str(target), "--names", "diffusers", *told]) == 0
        config = AutoencoderKL.from_pretrained(target).config
        assert (config.scaling_factor, config.norm_num_groups) == (0.13025, 8)
        assert main(["convert", str(model), str(tmp_path / "other"), "--names", "diffusers", *told]) == 2
        assert "scaling_factor and norm_num_groups: for a single file only" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()

    def test_takes_the_data_type_and_the_averaged_weights_on_request(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
        assert "pass dtype=…" in error_of(capsys)
        assert convert(tmp_path / "vae.ckpt", "half.safetensors", "--dtype", "float16") == 0
        half = load_file(tmp_path / "half.safetensors")
        assert torch.equal(half["quant_conv.weight"], weights["quant_conv.weight"].half())
        assert convert(tmp_path / "vae.ckpt", "ema.safetensors", "--ema") == 0
        assert all(bool((tensor == 1).all()) for tensor in load_file(tmp_path / "ema.safetensors").values())

        assert convert(model, "folder", "--dtype", "bfloat16") == 0
        assert AutoencoderKL.from_pretrained(tmp_path / "folder").dtype == torch.bfloat16
        capsys.readouterr()
        assert convert(model, "other", "--ema") == 2
        assert "ema: for a single file only" in error_of(capsys)

    @pytest.mark.parametrize("name", ["dir.ckpt", "dir.safetensors"])
    def test_reads_a_folder_whatever_its_name(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        source = tmp_path / name
        source.mkdir()
        target = tmp_path / "vae.SafeTensors"
        assert main(["convert", str(source), str(target), "--names", "compvis"]) == 2
        assert f"{source}: expected config.json, found nothing" in error_of(capsys)
        for file in model.iterdir():
            (source / file.name).write_bytes(file.read_bytes())
        assert main(["convert", str(source), str(target), "--names", "compvis"]) == 0
        assert "a folder in diffusers' layout" in capsys.readouterr().out

    def test_opens_a_single_file_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        AutoencoderKL.from_preset("tiny", seed=0).to_single_file(tmp_path / "vae.safetensors")
        opened: list[Path] = []
        read = single_file.SafetensorsFile
        monkeypatch.setattr(single_file, "SafetensorsFile", lambda path: opened.append(path) or read(path))
        command = ["convert", str(tmp_path / "vae.safetensors"), str(tmp_path / "folder"), "--names", "diffusers"]
        assert main(command) == 0
        assert opened == [tmp_path / "vae.safetensors"]

    def test_does_not_write_over_anything(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "vae.safetensors").write_text("precious")
        (tmp_path / "folder").mkdir()
        for target in ("vae.safetensors", "folder"):
            assert main(["convert", str(model), str(tmp_path / target), "--names", "diffusers"]) == 2
            assert f"{target}: in use, and nothing in it was changed" in error_of(capsys)
        assert (tmp_path / "vae.safetensors").read_text() == "precious"
        assert not list((tmp_path / "folder").iterdir())

    @pytest.mark.parametrize(
        ("target", "names", "message"),
        [
            ("vae.ckpt", "diffusers", "vae.ckpt: expected a file name that ends in .safetensors, or a folder's"),
            ("model", "compvis", "model: a folder has diffusers' names; for CompVis' names write"),
        ],
    )
    def test_says_what_it_writes(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, names: str, message: str
    ) -> None:
        assert main(["convert", str(model), str(tmp_path / target), "--names", names]) == 2
        assert message in error_of(capsys)
        assert not list(tmp_path.iterdir())

    def test_says_what_is_wrong_with_a_file_and_does_not_ask_the_hub_for_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = str(tmp_path / "out.safetensors")
        (tmp_path / "broken.ckpt").write_bytes(b"nothing")
        missing = [("missing.safetensors", "there is no such file"), ("missing.CKPT", "there is no such file")]
        for source, message in (*missing, ("broken.ckpt", "damaged")):
            assert main(["convert", str(tmp_path / source), target, "--names", "compvis"]) == 2
            error = error_of(capsys)
            assert source in error and message in error

    def test_asks_the_hub_for_what_is_not_here_and_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["convert", "no/such-model", str(tmp_path / "model"), "--names", "diffusers"]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first == "klvae: there is no folder no/such-model; asking the Hugging Face Hub for it"
        assert second.startswith("klvae: 'no/such-model' is not a folder here")


def test_the_doctor_finds_what_is_required_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and "All that is required is there." in printed
    assert re.search(r"^ok +python +3\.", printed, re.MULTILINE)


def test_the_doctor_says_what_to_do_about_each_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        Check("good", True, "as it should be"),
        Check("missing extra", False, "not installed", "pip install extra", required=False),
        Check("broken", False, "does not load", "install it again"),
    ]
    monkeypatch.setattr(cli, "doctor", lambda: iter(checks))
    assert main(["doctor"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "ok good as it should be",
        "note missing extra not installed",
        "-> pip install extra",
        "FAIL broken does not load",
        "-> install it again",
        "",
        "1 required check(s) failed.",
    ]


def test_the_doctor_succeeds_when_only_optional_things_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "doctor", lambda: iter([Check("extra", False, "missing", "get it", required=False)]))
    assert main(["doctor"]) == 0


@pytest.mark.parametrize(
    ("arguments", "restarts"),
    [
        (["train"], True),
        (["reconstruct", "a.jpg"], True),
        (["convert", "a", "b"], False),
        (["doctor"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_only_commands_that_compute_start_anew_with_the_process_settings(
    arguments: list[str], restarts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cli, "restart_with_process_settings", lambda: calls.append("restart"))
    monkeypatch.setattr(cli, "main", lambda: calls.append("main") or 3)
    monkeypatch.setattr(sys, "argv", ["klvae", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run()
    assert stop.value.code == 3
    assert calls == (["restart"] if restarts else []) + ["main"]


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are for glibc and libgomp")
def test_the_trainer_runs_with_the_process_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read from the memory of the process itself, as its libraries read them."""
    code = (
        "import klvae_edu.training.trainer as trainer\n"
        "trainer.train = lambda config: print(open('/proc/self/environ').read()) or exit(0)\n"
        "import klvae_edu.cli\n"
        "klvae_edu.cli.run()\n"
    )
    for name in (*PROCESS_SETTINGS, environment._RESTARTED):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", code, "train"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"{name}={value}" in done.stdout.split("\0") for name, value in PROCESS_SETTINGS.items())
