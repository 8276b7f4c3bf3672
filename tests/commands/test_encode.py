"""`klvae encode`: images become a folder of latents; errors take one line; an interrupted run is resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from klvae_edu import AutoencoderKL
from klvae_edu.cli import main
from klvae_edu.data import save_image
from klvae_edu.data.latent_dataset import LatentDataset
from klvae_edu.environment import PROCESS_SETTINGS

TIMEOUT = 300  # seconds, on a busy machine


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sprites_become_latents(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "latents"
    assert main(["encode", "sprites", str(out), "--model", str(model), "--size", "16", "--count", "5"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    data = LatentDataset(out)
    assert f"5 latents of 4x4x4 values -> {out}\n" in printed.out
    assert f"scaling factor of these latents: {data.statistics.scaling_factor:.3g}" in printed.out
    assert (data.description["model"], data.description["source"]) == (str(model), "sprites")
    vae = AutoencoderKL.from_pretrained(model)
    from klvae_edu.data.sprites import sprite

    with torch.no_grad():
        mean = vae.encode(torch.stack([sprite(index, 16) for index in range(5)])).latent_dist.mean
    torch.testing.assert_close(data.posterior(0).mean, mean, rtol=1e-4, atol=1e-5)


def test_a_folder_is_encoded_whole_and_what_cannot_be_read_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "latents"
    photos.mkdir()
    for name in ("a.png", "c.png"):
        save_image(torch.zeros(3, 20, 30), photos / name)
    (photos / "b.png").write_bytes(b"nothing")
    assert main(["encode", str(photos), str(out), "--model", str(model), "--size", "16"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("2 latents of 4x4x4 values")
    assert (
        printed.err.startswith("klvae: 1 images could not be read or encoded, and are left out:\n")
        and "b.png" in printed.err
    )


def test_grey_models_encode_any_picture_and_many_bands_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for channels, suffix in ((1, ".png"), (4, ".tif")):
        folder, model = tmp_path / f"images{channels}", tmp_path / f"model{channels}"
        folder.mkdir()
        for number, bands in enumerate((channels, channels, 3)):
            save_image(torch.zeros(bands, 20, 30), folder / f"{number}{suffix}")
        AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ).save_pretrained(model)
        out = tmp_path / f"latents{channels}"
        code = main(["encode", str(folder), str(out), "--model", str(model), "--size", "16"])
        printed = capsys.readouterr()
        assert code == (0 if channels == 1 else 1)
        assert len(LatentDataset(out)) == (3 if channels == 1 else 2)
        assert channels == 1 or "2.tif: cannot be read: expected 4 channels, got 3" in printed.err


def test_what_is_not_read_whole_is_counted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    frames = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (0, 200)]
    for number in range(3):
        frames[0].save(photos / f"{number}.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"0\.gif: only the first page or frame is read \(1 of 2\)"):
        assert main(["encode", str(photos), str(tmp_path / "out"), "--model", str(model), "--size", "16"]) == 0
    assert capsys.readouterr().err == "klvae: 3 × only the first page or frame is read\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sprites"], "count: sprites has no end"),
        (["missing"], "no such folder"),
        (["sprites", "--count", "2", "--size", "18"], "size: expected a multiple of 4"),
        (["sprites", "--count", "0"], "one image or more"),
    ],
)
def test_wrong_use_is_one_line(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error_of: Callable[[], str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["encode", arguments[0], "out", *arguments[1:], "--model", str(model)]) == 2
    assert message in error_of()
    assert not (tmp_path / "out").exists()


def test_the_latents_do_not_go_among_the_images(model: Path, photo: Path, error_of: Callable[[], str]) -> None:
    out = photo.parent / "latents"
    assert main(["encode", str(photo.parent), str(out), "--model", str(model), "--size", "16"]) == 2
    error = error_of()
    assert "out: expected a folder outside of the images" in error
    assert f"; {out} is inside of {photo.parent}. Name another folder" in error
    assert not out.exists()


def test_a_half_finished_folder_of_another_model_is_left_alone(
    model: Path, tmp_path: Path, error_of: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "latents", tmp_path / "other"
    AutoencoderKL.from_preset("tiny", seed=1).save_pretrained(other)
    options = ["sprites", str(out), "--size", "16", "--count", "3"]
    assert main(["encode", *options, "--model", str(model)]) == 0
    capsys.readouterr()
    before = files(out)
    assert main(["encode", *options, "--model", str(other)]) == 2
    assert "holds other latents, which were not changed" in (error := error_of())
    assert f"model: {model} there, {other} now" in error and "weights_sha256" in error
    assert files(out) == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_a_run_that_is_killed_and_started_again_ends_with_the_same_files(model: Path, tmp_path: Path) -> None:
    """Run the command in separate processes."""

    def start(out: Path) -> subprocess.Popen[bytes]:
        options = ["sprites", str(out), "--model", str(model), "--size", "8", "--count", "6000", "--device", "cpu"]
        env = {**os.environ, **PROCESS_SETTINGS}
        return subprocess.Popen([sys.executable, "-m", "klvae_edu", "encode", *options], env=env)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed)
    deadline = time.monotonic() + TIMEOUT
    while not list(killed.glob("data/train-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(TIMEOUT)
    assert 0 < len(list(killed.glob("data/train-*"))) < 6  # the run was interrupted
    for out in (killed, whole):
        assert start(out).wait(TIMEOUT) == 0
    assert files(killed) == files(whole)
    assert len(LatentDataset(killed)) == 6000


def test_the_home_folder_may_be_written_as_a_tilde(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["encode", "sprites", "~/latents", "--model", str(model), "--size", "16", "--count", "2"]) == 0
    assert len(LatentDataset(tmp_path / "latents")) == 2 and not (tmp_path / "~").exists()


@pytest.mark.parametrize("arguments", [["sprites", ""], ["sprites", "out", "--model", ""]])
def test_empty_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["encode", *arguments, "--count", "1"])
    assert not [*tmp_path.iterdir()]


def test_images_that_do_not_fit_into_memory_are_one_line(
    model: Path, photo: Path, tmp_path: Path, error_of: Callable[[], str]
) -> None:
    arguments = ["encode", "photos", str(tmp_path / "out"), "--model", str(model), "--size", "100000000"]
    with pytest.warns(UserWarning, match="enlarged"):
        assert main(arguments) == 2
    assert error_of().startswith("size: not enough memory for images of 100000000x100000000 pixels")
