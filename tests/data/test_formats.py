"""TIFFs of several bands and HEIC: read with an optional package, or refused with the package's name."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.files import UnreadableImage, load_image, save_image
from klvae_edu.data.formats import image_suffixes, register_heif
from klvae_edu.data.latent_writer import encode_images
from klvae_edu.evaluation.images import evaluation_data

RNG = np.random.default_rng(0)
HEIC_HEADER = b"\0\0\0\x18ftypheic\0\0\0\0"


def bands(count: int, dtype: str = "uint8") -> np.ndarray:
    """Draw values (6, 8, count): integers of the whole range, or floats from 0 to 1."""
    if dtype.startswith("float"):
        return RNG.random((6, 8, count)).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max, (6, 8, count), dtype, endpoint=True)


def expected(values: np.ndarray) -> torch.Tensor:
    white = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    return torch.from_numpy((values / white * 2 - 1).astype(np.float32)).permute(2, 0, 1)


def written(folder: Path, values: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(folder / "a.tif", values, **({"planarconfig": "contig"} | options))
    return folder / "a.tif"


# --- several bands


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("count", [2, 4, 5, 8])
def test_every_band_is_a_channel(tmp_path: Path, count: int, dtype: str) -> None:
    values = bands(count, dtype)
    path = written(tmp_path, values, photometric="minisblack")
    torch.testing.assert_close(load_image(path, channels=count), expected(values), atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [{"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}])
def test_every_layout_of_a_file_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    values = bands(5, "uint16")
    path = written(tmp_path, values, photometric="minisblack", **options)
    torch.testing.assert_close(load_image(path, channels=5), expected(values))
    torch.testing.assert_close(load_image(io.BytesIO(path.read_bytes()), "row 0", channels=5), expected(values))


def test_bands_one_after_the_other_and_a_page_for_each_band_are_read(tmp_path: Path) -> None:
    values = bands(5)
    for planes in ({"planarconfig": "separate"}, {"planarconfig": None}):
        path = written(tmp_path, values.transpose(2, 0, 1), photometric="minisblack", **planes)
        torch.testing.assert_close(load_image(path, channels=5), expected(values))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_colours_in_planes_are_those_of_pixels(tmp_path: Path, dtype: str, planes: str, compression: Any) -> None:
    values = bands(3, dtype)
    stored = values.transpose(2, 0, 1) if planes == "separate" else values
    path = written(tmp_path, stored, photometric="rgb", planarconfig=planes, compression=compression)
    torch.testing.assert_close(load_image(path), expected(values), atol=1 / 127, rtol=0)


def test_floating_point_colours_are_read_as_rgb_and_as_grey(tmp_path: Path) -> None:
    values = bands(3, "float32")
    path = written(tmp_path, values, photometric="rgb")
    torch.testing.assert_close(load_image(path), expected(values))
    luma = (expected(values) * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    torch.testing.assert_close(load_image(path, channels=1), luma)


def test_a_fourth_band_is_a_channel_or_left_out_with_a_warning(tmp_path: Path) -> None:
    values = bands(4)
    path = written(tmp_path, values, photometric="rgb", extrasamples=["unspecified"])
    torch.testing.assert_close(load_image(path, channels=4), expected(values))
    with pytest.warns(UserWarning, match=r"a\.tif: bands without a meaning are left out \(1 of 4\)"):
        torch.testing.assert_close(load_image(path), expected(values[..., :3]))


@pytest.mark.parametrize(("count", "channels"), [(5, 3), (5, 1), (4, 3), (8, 5), (12, 3)])
def test_another_number_of_bands_is_refused(tmp_path: Path, count: int, channels: int) -> None:
    path = written(tmp_path, bands(count), photometric="minisblack")
    with pytest.raises(UnreadableImage, match=rf"a\.tif: .*expected {channels} channels?, got {count} bands of uint8"):
        load_image(path, channels=channels)


def test_floating_point_values_outside_of_0_to_1_are_refused_with_their_range(tmp_path: Path) -> None:
    path = written(tmp_path, bands(3, "float32") * 200, photometric="rgb")
    with pytest.raises(UnreadableImage, match=r"expected values from 0 to 1 \(float32\), got \d+\.\d+ to 19\d\.\d+"):
        load_image(path)


@pytest.mark.parametrize(
    ("values", "options", "what"),
    [
        (bands(5), {"photometric": "minisblack"}, "5 bands of uint8"),
        (bands(3, "float32"), {"photometric": "rgb"}, "3 bands of float32"),
        (bands(1, "float64"), {"planarconfig": None}, "1 band of float64"),
    ],
)
def test_without_tifffile_the_command_to_install_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: np.ndarray, options: dict[str, Any], what: str
) -> None:
    path = written(tmp_path, values, **options)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnreadableImage, match=rf"a TIFF of {what}, .*: pip install tifffile"):
        load_image(path, channels=values.shape[2])


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_where_white_is_zero_the_values_are_inverted(tmp_path: Path, dtype: str, count: int) -> None:
    values = bands(count, dtype)
    stored = (1 if dtype == "float32" else np.iinfo(dtype).max) - values
    path = written(
        tmp_path,
        stored[..., 0] if count == 1 else stored,
        photometric="miniswhite",
        planarconfig=None if count == 1 else "contig",
    )
    torch.testing.assert_close(load_image(path, channels=count), expected(values))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_signed_bytes_are_refused(tmp_path: Path, count: int) -> None:
    values = np.full((6, 8, count), -5, np.int8)
    path = written(tmp_path, values[..., 0] if count == 1 else values, planarconfig=None if count == 1 else "contig")
    with pytest.raises(UnreadableImage, match=r"signed 8-bit values, .*: store them as uint8"):
        load_image(path, channels=count)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_inks_are_no_bands(tmp_path: Path, dtype: str) -> None:
    path = written(tmp_path, bands(4, dtype), photometric="separated")
    with pytest.raises(UnreadableImage, match="expected 4 channels, got CMYK"):
        load_image(path, channels=4)
    assert load_image(path).shape == (3, 6, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright_like_pictures(tmp_path: Path, orientation: int) -> None:
    grey = bands(1)
    path = written(
        tmp_path, np.dstack([grey] * 5), photometric="minisblack", extratags=[(274, "H", 1, orientation, True)]
    )
    picture = Image.fromarray(grey[..., 0])
    exif = picture.getexif()
    exif[274] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    torch.testing.assert_close(load_image(path, channels=5), load_image(tmp_path / "a.png", channels=1).repeat(5, 1, 1))


# --- doubts


@pytest.mark.parametrize(
    ("high", "bits", "factor"), [(1023, 10, 64), (2047, 11, 32), (4095, 12, 16), (16383, 14, 4), (200, 8, 256)]
)
def test_16_bit_images_that_use_fewer_bits_are_read_dark_and_that_is_said(
    tmp_path: Path, high: int, bits: int, factor: int
) -> None:
    grey = np.linspace(0, high, 48).astype(np.uint16).reshape(6, 8)
    paths = [tmp_path / "a.png", tmp_path / "b.tif", tmp_path / "c.tif"]
    Image.fromarray(grey).save(paths[0])
    tifffile.imwrite(paths[1], grey)
    tifffile.imwrite(paths[2], np.dstack([grey] * 5), photometric="minisblack", planarconfig="contig")
    for path, channels in zip(paths, (1, 3, 5), strict=True):
        message = rf"values up to {high} of 65535; if these are {bits}-bit values, multiply them by {factor}\)"
        with pytest.warns(UserWarning, match=message):
            image = load_image(path, channels=channels)
        assert image.max().item() == pytest.approx(high / 65535 * 2 - 1, abs=1e-6)


def test_also_in_colour(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (6, 8, 3), np.uint16)
    values[0, 0] = 4095
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png))
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "planes.tif", values.transpose(2, 0, 1), **planes)
    for path in (tmp_path / "a.png", written(tmp_path, values, photometric="rgb"), tmp_path / "planes.tif"):
        with pytest.warns(UserWarning, match="these are 12-bit values, multiply them by 16"):
            assert load_image(path).max() < -0.85


def test_every_remark_on_a_file_is_a_warning(tmp_path: Path) -> None:
    path = written(tmp_path, RNG.integers(0, 2048, (3, 6, 8), np.uint16), photometric="minisblack", planarconfig=None)
    with pytest.warns(UserWarning) as caught:
        load_image(path)
    assert sorted(str(warning.message).split("(")[1][:9] for warning in caught) == ["1 of 3)", "values up"]


def test_black_and_bright_16_bit_images_raise_no_doubts(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for high in (0, 16384, 65535):
            Image.fromarray(np.full((6, 8), high, np.uint16)).save(tmp_path / "a.png")
            load_image(tmp_path / "a.png")


def test_near_infrared_marked_as_alpha_is_doubted_and_true_alpha_is_not(tmp_path: Path) -> None:
    colours = bands(3)
    infrared = written(tmp_path, np.dstack([colours, bands(1)]), photometric="rgb", extrasamples=["unassalpha"])
    with pytest.warns(UserWarning, match="marked as alpha.*near infrared, remove it or read 4 channels"):
        load_image(infrared)
    cut_out = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8)[None, :, None].repeat(6, 0)
    alpha = written(tmp_path, np.dstack([colours, cut_out]), photometric="rgb", extrasamples=["unassalpha"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(alpha)
        assert load_image(alpha, channels=4).shape == (4, 6, 8)
    assert (image[:, :, :4] == 1).all()
    torch.testing.assert_close(image[:, :, 4:], expected(colours)[:, :, 4:])


def test_of_a_stack_the_first_page_is_read_and_the_number_is_said(tmp_path: Path) -> None:
    for values, options in (
        (bands(30).transpose(2, 0, 1), {}),
        (RNG.random((30, 6, 8, 3), np.float32), {"photometric": "rgb"}),
    ):
        path = written(tmp_path, values, planarconfig=None, **options)
        with pytest.warns(UserWarning, match=r"only the first page or frame is read \(1 of 30\)"):
            assert load_image(path).shape == (3, 6, 8)


# --- HEIC, and files of other kinds


WITHOUT_PILLOW_HEIF = """
import sys, warnings
sys.modules["pillow_heif"] = None  # importing it then fails, as if it were not installed
from pathlib import Path
from klvae_edu.data.files import UnreadableImage, load_image
from klvae_edu.data.folders import image_names
from klvae_edu.data.formats import image_suffixes

assert ".heic" not in image_suffixes()
try:
    load_image(sys.argv[1] + "/a.jpg")
except UnreadableImage as error:
    print(error)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    image_names(Path(sys.argv[1]))
print(caught[0].message)
"""


def test_without_pillow_heif_the_command_to_install_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(HEIC_HEADER)  # whatever its name
    for number in range(3):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(HEIC_HEADER)
    program = [sys.executable, "-c", WITHOUT_PILLOW_HEIF, str(tmp_path)]
    unreadable, left_out = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "a.jpg: a HEIC image, " in unreadable and unreadable.endswith(": pip install pillow-heif")
    assert left_out.endswith("left out: 3 .heic (pip install pillow-heif)")


@pytest.mark.skipif(not register_heif(), reason="pillow-heif is not installed")
def test_with_pillow_heif_heic_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (255, 0, 0)).save(tmp_path / "a.heic")
    image = load_image(tmp_path / "a.heic")
    assert image.shape == (3, 48, 64)
    torch.testing.assert_close(image.mean((1, 2)), torch.tensor([1.0, -1, -1]), atol=0.1, rtol=0)
    assert ".heic" in image_suffixes()


def test_formats_that_pillow_only_recognises_have_no_suffix_here() -> None:
    suffixes = image_suffixes()
    assert {".png", ".jpg", ".jpeg", ".tif", ".webp", ".mpo"} <= suffixes
    assert not {".h5", ".eps", ".mpg", ".pdf", ".pcx"} & suffixes


@pytest.mark.parametrize("kind", ["EPS", "PCX"])  # for an EPS, Pillow would run Ghostscript
def test_the_content_decides_and_other_formats_are_not_opened(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", kind)
    with pytest.raises(UnreadableImage, match=r"a\.jpg: not in any image format that is read \(JPEG, .*PNG, "):
        load_image(tmp_path / "a.jpg")


# --- too many pixels


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice as many are read


@pytest.fixture(params=["pixels", "7 bands", "floating point"])
def of_2400_pixels(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """An image of 60×40 pixels, and its channels. Pillow reads the first, tifffile the others."""
    if request.param == "7 bands":
        return written(tmp_path, np.zeros((60, 40, 7), np.uint8), photometric="minisblack"), 7
    if request.param == "floating point":
        return written(tmp_path, np.zeros((60, 40, 3), np.float32), photometric="rgb"), 3
    Image.new("RGB", (40, 60)).save(tmp_path / "a.png")
    return tmp_path / "a.png", 3


@pytest.mark.usefixtures("limit")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_with_what_to_do_and_read_when_asked(
    of_2400_pixels: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, channels = of_2400_pixels
    advice = "Shrink it; or if you trust it, set the environment variable KLVAE_EDU_MAX_PIXELS to its number of pixels"
    for given in (None, "2398"):
        if given:
            monkeypatch.setenv("KLVAE_EDU_MAX_PIXELS", given)
        with pytest.raises(UnreadableImage, match=rf"2400 pixels\) exceeds limit of {given or 2000} pixels.*{advice}"):
            load_image(path, channels=channels)
    monkeypatch.setenv("KLVAE_EDU_MAX_PIXELS", "2400")
    assert load_image(path, channels=channels).shape == (channels, 60, 40)


@pytest.mark.usefixtures("limit")
def test_a_limit_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLVAE_EDU_MAX_PIXELS", "50 million")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="KLVAE_EDU_MAX_PIXELS: expected a whole number, got '50 million'"):
        load_image(tmp_path / "a.png")


def test_a_bomb_among_photographs_is_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("1", (15_000, 15_000)).save(folder / "bomb.png")
    for number in range(3):
        Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    reason = r"bomb\.png: cannot be read: Image size \(225000000 pixels\) exceeds limit of 178956970"
    crops = [image_dataset(str(folder), 16, split=split, length=6) for split in ("train", "held-out")]
    assert all(len([*data]) == 6 for data in crops)
    assert re.search(reason, "".join(data.report() or "" for data in crops))
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    encoded = encode_images(vae, AllImages(str(folder), 16), tmp_path / "latents", {})
    assert encoded["encoded"] == 3 and re.search(reason, str(encoded["left_out"]))
    evaluated = evaluation_data(str(folder), 16, "all")
    assert len([*evaluated]) == 3 and re.search(reason, evaluated.report() or "")


# --- writing


@pytest.mark.parametrize(("channels", "name"), [(1, "a.png"), (1, "a.tif"), (3, "a.tif"), (5, "a.tif"), (2, "a.tiff")])
def test_a_saved_image_of_any_number_of_channels_is_read_back(tmp_path: Path, channels: int, name: str) -> None:
    image = torch.rand(channels, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_image(image, tmp_path / name)
    assert (load_image(tmp_path / name, channels=channels) - image).abs().max() <= 1 / 255 + 1e-6


def test_a_format_without_bands_is_refused_for_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(1, H, W\), or \.tif for other numbers of channels, got \(5, 6, 8\)"):
        save_image(torch.zeros(5, 6, 8), tmp_path / "a.png")
