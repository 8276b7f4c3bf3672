"""`klvae inspect`: what a file is, in ten lines, and what its images and latents are like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from klvae_edu import AutoencoderKL
from klvae_edu.cli import main
from klvae_edu.evaluation.images import batches, evaluation_data
from klvae_edu.training.latent_report import fit_scaling, latent_report

ROWS = "file names network parts family parameters types latents left out diffusers".replace("left out", "left-out")


def rows_of(printed: str) -> dict[str, str]:
    rows: dict[str, str] = {}
    for line in printed.splitlines():
        rows[line[:11].strip().replace(" ", "-")] = line[11:]
    return rows


def test_says_in_ten_lines_what_a_bundled_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "kl-f8-mini-16"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == ROWS.split()
    assert "f = 8, 3 image and 16 latent channels; widths 16, 32, 96, 96; blocks per level: 1" in rows["network"]
    assert "no convolutions around the latent" in rows["parts"] and "4 groups" in rows["parts"]
    assert rows["types"].startswith("float16 (")
    assert "from_pretrained" in rows["diffusers"]


def test_says_prefix_scale_and_what_else_is_in_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1)
    vae.to_single_file(tmp_path / "vae.safetensors")
    weights = {f"model.vae.{name}": t for name, t in load_file(tmp_path / "vae.safetensors").items()}
    weights |= {"model.vae.loss.logvar": torch.zeros(()), "model.cond_stage_model.weight": torch.zeros(1)}
    torch.save({"state_dict": weights}, tmp_path / "run.ckpt")
    assert main(["inspect", str(tmp_path / "run.ckpt")]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["names"] == "CompVis' names under model.vae."
    assert rows["latents"] == "scaling factor 0.18215, shift None"
    assert rows["left-out"] == "1: 1 under loss; 1 tensors of other models in the file"
    assert rows["parameters"].startswith(f"{vae.num_parameters():,} in ")
    assert rows["diffusers"] == "does not read it: it does not know the prefix model.vae."
    assert main(["inspect", str(tmp_path / "run.ckpt"), "--scaling-factor", "0.5"]) == 0
    assert "scaling factor 0.5" in capsys.readouterr().out


def test_a_file_whose_tensors_do_not_fit_is_described_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1).state_dict()
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / "vae.safetensors")
    assert main(["inspect", str(tmp_path / "vae.safetensors")]) == 1
    printed = capsys.readouterr().out
    assert "f = 2" in printed and "missing: decoder.conv_out.bias (3,)" in printed


def test_what_is_no_autoencoder_is_an_error(tmp_path: Path, error_of: Callable[[], str]) -> None:
    save_file({"encoder.layers.0.weight": torch.zeros(1)}, tmp_path / "taesd.safetensors")
    assert main(["inspect", str(tmp_path / "taesd.safetensors")]) == 2
    assert "TAESD" in error_of()


FEW_PHOTOS = ["--data", "photos", "--size", "96", "--crops", "4", "--device", "cpu"]


def test_a_bundled_model_is_measured_and_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--out", str(tmp_path / "seen.png"), "--json", str(tmp_path / "seen.json")]
    assert main(["inspect", "kl-f8-mini", *FEW_PHOTOS, *files]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("file ") and "4 images: 4 crops of 96x96 pixels, held out of photos" in printed
    assert "Nothing is out of the ordinary." in printed
    found = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert found["findings"] == []
    assert f"{found['artefacts']['psnr']:.2f} dB" in printed
    assert len(found["latents"]["width"]) == 4 and min(found["latents"]["width"]) > 0
    assert f"scaling factor of these latents: {found['latents']['scaling_factor']:.4f}" in printed
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 600 and picture.height > 500


def test_broken_latents_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = AutoencoderKL.from_bundled("kl-f8-mini-16")
    weight, bias = vae.encoder.conv_out.weight.data, vae.encoder.conv_out.bias.data
    for channel, logvar in ((3, 0.0), (5, -20.0)):
        for row, value in ((channel, 0.0), (16 + channel, logvar)):
            weight[row], bias[row] = 0, value
    vae.save_pretrained(tmp_path / "broken")
    arguments = ["inspect", str(tmp_path / "broken"), *FEW_PHOTOS, "--scaling-factor", "0.1"]
    assert main([*arguments, "--json", str(tmp_path / "seen.json")]) == 0
    found = {f["name"]: f["text"] for f in json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))["findings"]}
    assert {"collapsed channels", "dead channels", "scale"} <= {*found}
    assert "channel 3 is noise" in found["collapsed channels"] and "channel 5 is constant" in found["dead channels"]
    printed = capsys.readouterr().out
    assert all(f"{name}: {text}" in printed for name, text in found.items())


@pytest.mark.parametrize("patch_size", [None, (2, 2)])
def test_latents_scaled_by_their_own_statistics_have_a_deviation_of_one(
    patch_size: tuple[int, int] | None, tmp_path: Path
) -> None:
    scale = {"scaling_factor": None, "patch_size": patch_size}
    vae = AutoencoderKL(block_out_channels=(16, 32), latent_channels=4, norm_num_groups=4, **scale)
    ((_, images),) = batches(evaluation_data("photos", 96, count=4), 4)
    fit_scaling(vae, latent_report(vae, [images]))
    vae.save_pretrained(tmp_path / "model")
    main(["inspect", str(tmp_path / "model"), *FEW_PHOTOS, "--json", str(tmp_path / "seen.json")])
    latents = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))["latents"]
    assert latents["scaled_std"] == pytest.approx(1, rel=0.02)  # FLUX.2's eps makes it a little smaller


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.png"], "out: expected with --data"),
        (["--json", "a.json"], "json: expected with --data"),
        (["--data", "photos", "--out", "a.jpg"], "out: expected the name of a PNG file"),
        (["--data", "photos", "--json", "none/a.json"], "expected a file in an existing folder"),
        (["--data", "photos", "--size", "64"], "expected square images of 96 pixels or more"),
    ],
)
def test_wrong_options_are_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "kl-f8-mini", *arguments]) == 2
    assert message in capsys.readouterr().err
