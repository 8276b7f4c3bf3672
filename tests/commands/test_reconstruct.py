"""`klvae reconstruct`: files, printed values, and unreadable photographs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from klvae_edu import AutoencoderKL, DecoderOutput
from klvae_edu.baselines import PatchPCA
from klvae_edu.cli import main
from klvae_edu.data import photographs
from klvae_edu.metrics import psnr

PSNR_LINE = re.compile(r"^(.+): model (\d+\.\d\d) dB, patch-PCA (\d+\.\d\d) dB, bicubic (\d+\.\d\d) dB -> (.+)$")


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


def test_without_a_model_it_is_the_bundled_one(
    model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str, **options: object) -> AutoencoderKL:
        asked.append(name)
        return AutoencoderKL.from_pretrained(model)

    monkeypatch.setattr(AutoencoderKL, "from_any", load)
    assert main(["reconstruct", str(photo), "--out", str(tmp_path / "out")]) == 0
    assert asked == ["kl-f8-mini"]


def test_without_a_photograph_the_error_says_so(model: Path, error_of: Callable[[], str]) -> None:
    assert main(["reconstruct", "--model", str(model)]) == 2
    assert "at least one photograph" in error_of()


def test_a_folder_without_a_model_is_an_error_that_names_it(
    photo: Path, tmp_path: Path, error_of: Callable[[], str]
) -> None:
    assert main(["reconstruct", str(photo), "--model", str(tmp_path)]) == 2
    assert re.match(rf"{re.escape(str(tmp_path))}: expected config\.json.*, found cat\.png", error_of())


def test_a_device_that_is_not_there_is_an_error(
    model: Path, photo: Path, error_of: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["reconstruct", str(photo), "--model", str(model), "--device", "cuda"]) == 2
    assert "'cuda' is not available here" in error_of()


# ---- Channels and values ---------------------------------------------------------------------------------------------


def saved(folder: Path, channels: int, out_channels: int | None = None) -> Path:
    """Save a model with f = 2 and 2 latent channels for images of `channels` channels."""
    config = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 2}
    AutoencoderKL(in_channels=channels, out_channels=out_channels or channels, **config).save_pretrained(folder)
    return folder


def test_a_model_of_grey_images_reconstructs_a_colour_photograph_in_grey(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "grey", 1)
    assert main(["reconstruct", str(photo), "--model", str(model), "--out", str(tmp_path / "out")]) == 0
    assert PSNR_LINE.match(capsys.readouterr().out.strip())
    with Image.open(tmp_path / "out" / "cat_reconstruction.png") as picture:
        red, green, blue = picture.convert("RGB").split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()


def test_a_picture_of_other_bands_has_a_row_for_each_and_no_patch_pca(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = torch.randint(0, 255, (5, 130, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tifffile.imwrite(tmp_path / "bands.tif", values.numpy(), photometric="minisblack", planarconfig="separate")
    model = saved(tmp_path / "model", 5)
    assert main(["reconstruct", str(tmp_path / "bands.tif"), "--model", str(model), "--out", str(tmp_path)]) == 0
    left_out, line = capsys.readouterr().out.splitlines()
    assert "patch-PCA is left out" in left_out and "5 channels" in left_out
    assert re.search(r"bands\.tif: model \d+\.\d\d dB, bicubic \d+\.\d\d dB -> ", line)
    with Image.open(tmp_path / "bands_reconstruction.png") as picture:
        assert picture.height > 5 * 130 and picture.width > 2 * 130


def test_a_model_with_other_channels_out_than_in_is_one_line(
    photo: Path, tmp_path: Path, error_of: Callable[[], str]
) -> None:
    model = saved(tmp_path / "depth", 3, 1)
    assert main(["reconstruct", str(photo), "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    assert f"as many channels out as in, but {model} has 3 in and 1 out" in error_of()


@pytest.mark.parametrize(
    ("value", "found"), [(float("nan"), "NaN or infinite values"), (128.0, r"values from 128 to 128")]
)
def test_a_reconstruction_that_is_no_image_is_an_error_with_photograph_and_model_and_no_picture(
    value: float,
    found: str,
    model: Path,
    photo: Path,
    tmp_path: Path,
    error_of: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = AutoencoderKL.forward

    def spoiled(self: AutoencoderKL, sample: torch.Tensor) -> DecoderOutput:
        return DecoderOutput(forward(self, sample).sample.fill_(value))

    monkeypatch.setattr(AutoencoderKL, "forward", spoiled)
    assert main(["reconstruct", str(photo), "--model", str(model), "--out", str(tmp_path / "out")]) == 1
    line = error_of()
    assert line.startswith(f"{photo}: ") and f"model {model} gave {found}" in line
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_photograph_that_size_makes_too_thin_is_an_error_that_says_so(
    model: Path, tmp_path: Path, error_of: Callable[[], str]
) -> None:
    Image.new("RGB", (2000, 20)).save(tmp_path / "thin.png")
    arguments = ["reconstruct", str(tmp_path / "thin.png"), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--size", "200"]) == 1
    assert error_of().endswith("at least 4 pixels on each side, got 200x2, reduced from 2000x20 by --size 200")


def test_the_home_folder_may_be_written_as_a_tilde(
    model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["reconstruct", f"~/{photo.name}", "--model", str(model), "--out", "~/out"]) == 0
    assert [*(tmp_path / "out").iterdir()] and not (tmp_path / "~").exists()


@pytest.mark.parametrize("option", ["--out", "--model"])
def test_empty_names_are_refused(photo: Path, option: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["reconstruct", str(photo), option, ""])
