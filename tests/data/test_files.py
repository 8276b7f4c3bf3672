"""Files: all formats of Pillow become RGB in [-1, 1], and unreadable files are named in the error."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from klvae_edu.data.files import UnreadableImage, from_pil, load_image, resize, save_image
from klvae_edu.validation import check_images

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    """Draw random RGB pixels (height, width, 3) from a fixed seed."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).float()


def pixel(image: torch.Tensor, row: int = 0, column: int = 0) -> list[float]:
    return [round(value, 3) for value in image[:, row, column].tolist()]


# --- reading


def test_rgb_becomes_float32_channels_first_in_minus_one_to_one(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.shape == (3, 6, 8)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    torch.testing.assert_close(image, expected(picture()))
    assert pixel(from_pil(Image.new("RGB", (1, 1), (0, 255, 51)))) == [-1.0, 1.0, -0.6]


def test_a_path_as_text_and_an_open_file_are_read_too(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    torch.testing.assert_close(load_image(str(tmp_path / "a.png")), expected(picture()))
    with open(tmp_path / "a.png", "rb") as file:
        torch.testing.assert_close(load_image(file), expected(picture()))
    torch.testing.assert_close(load_image(io.BytesIO((tmp_path / "a.png").read_bytes())), expected(picture()))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".tga", ".webp"])
def test_lossless_formats_give_the_very_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    torch.testing.assert_close(load_image(path), expected(picture()))


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(picture()[..., 0]).save(tmp_path / "grey.png")
    image = load_image(tmp_path / "grey.png")
    torch.testing.assert_close(image, expected(picture()[..., :1]).expand(3, -1, -1))


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    image = load_image(tmp_path / "bits.png")
    assert (pixel(image, 0, 0), pixel(image, 0, 1)) == ([1, 1, 1], [-1, -1, -1])


def test_palette_images_get_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *RED])
    image.putdata([1, 0])
    image.save(tmp_path / "palette.gif")
    loaded = load_image(tmp_path / "palette.gif")
    assert (pixel(loaded, 0, 0), pixel(loaded, 0, 1)) == ([1, -1, -1], [-1, -1, 1])


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["one index", "a table"])
def test_transparent_palette_entries_are_laid_over_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *RED])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=transparency)
    loaded = load_image(tmp_path / "palette.png")
    assert (pixel(loaded, 0, 0), pixel(loaded, 0, 1)) == ([1, 1, 1], [1, -1, -1])


def test_alpha_is_laid_over_white_in_proportion(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(*RED, 255), (*RED, 0), (*RED, 51)])
    image.save(tmp_path / "alpha.png")
    loaded = load_image(tmp_path / "alpha.png")
    assert pixel(loaded, 0, 0) == [1, -1, -1]
    assert pixel(loaded, 0, 1) == [1, 1, 1]  # the colour of a fully transparent pixel is invisible
    assert pixel(loaded, 0, 2) == [1, 0.6, 0.6]


def test_grey_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 255), (0, 0)])
    image.save(tmp_path / "la.png")
    loaded = load_image(tmp_path / "la.png")
    assert (pixel(loaded, 0, 0), pixel(loaded, 0, 1)) == ([-1, -1, -1], [1, 1, 1])


@pytest.mark.parametrize(("mode", "colour"), [("L", 0), ("RGB", RED)])
def test_a_colour_declared_transparent_is_laid_over_white(tmp_path: Path, mode: str, colour: object) -> None:
    Image.new(mode, (1, 1), colour).save(tmp_path / "key.png", transparency=colour)
    assert pixel(load_image(tmp_path / "key.png")) == [1, 1, 1]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert pixel(load_image(tmp_path / "cmyk.tif")) == [1, -1, -1]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    torch.testing.assert_close(
        load_image(tmp_path / "cmyk.jpg")[:, 0, 0], torch.tensor([1.0, -1, -1]), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    image = from_pil(Image.new("RGB", (1, 1), RED).convert(mode))
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, -1, -1]), atol=0.03, rtol=0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 300, 32768, 65535]], dtype=np.uint16)).save(tmp_path / f"deep{suffix}")
    image = load_image(tmp_path / f"deep{suffix}")
    wanted = torch.tensor([0, 300, 32768, 65535]) / 65535 * 2 - 1
    torch.testing.assert_close(image, wanted.expand(3, 1, 4), atol=1e-6, rtol=0)


def test_big_endian_16_bit_grey_is_read_the_same() -> None:
    image = Image.frombytes("I;16B", (2, 1), np.array([0x0102, 0xFFFF], dtype=">u2").tobytes())
    torch.testing.assert_close(from_pil(image)[0, 0], torch.tensor([0x0102 / 65535 * 2 - 1, 1.0]))


def test_32_bit_integers_that_hold_16_bits_are_read_as_such() -> None:
    image = from_pil(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)))
    assert image[0].tolist() == [[-1, 1]]


def test_floating_point_grey_in_zero_to_one_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.25, 1.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    assert load_image(tmp_path / "float.tif")[1].tolist() == [[-1, -0.5, 1]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 65536]], dtype=np.int32),
        np.array([[-1, 5]], dtype=np.int32),
        np.array([[0, 255.0]], dtype=np.float32),
        np.array([[0.5, np.nan]], dtype=np.float32),
        np.array([[0.5, np.inf]], dtype=np.float32),
    ],
    ids=["32 bits", "negative", "floats to 255", "NaN", "infinity"],
)
def test_values_whose_white_is_unknown_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(UnreadableImage, match=r"odd\.tif.*expected values from 0 to"):
        load_image(tmp_path / "odd.tif")


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    assert pixel(load_image(tmp_path / "moving.gif")) == [1, -1, -1]


# --- channels


def test_colours_become_grey_by_luma_and_grey_keeps_its_precision(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    grey = load_image(tmp_path / "a.png", channels=1)
    luma = np.asarray(Image.fromarray(picture()).convert("L"))
    torch.testing.assert_close(grey, expected(luma[..., None]))
    Image.fromarray(np.array([[0, 301, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    deep = load_image(tmp_path / "deep.png", channels=1)
    torch.testing.assert_close(deep, torch.tensor([[[0, 301, 65535]]]) / 65535 * 2 - 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_grey_or_rgb(mode: str) -> None:
    image = Image.new("L", (4, 4), 255).convert(mode) if mode != "I;16" else Image.new(mode, (4, 4), 65535)
    if mode == "F":
        image = Image.new(mode, (4, 4), 1.0)
    for channels in (1, 3):
        assert (from_pil(image, channels) == torch.ones(channels, 4, 4)).all()


def test_transparent_pixels_are_white_also_in_grey(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png", channels=1) == 1).all()


def test_other_numbers_of_channels_are_the_bands_as_they_are() -> None:
    image = from_pil(Image.new("RGBA", (2, 2), (10, 20, 30, 40)), 4)
    torch.testing.assert_close((image[:, 0, 0] + 1) * 127.5, torch.tensor([10.0, 20, 30, 40]))
    assert from_pil(Image.new("LA", (2, 2), (5, 6)), 2).shape == (2, 2, 2)


@pytest.mark.parametrize(("mode", "channels", "got"), [("RGB", 4, 3), ("L", 2, 1), ("RGBA", 5, 4), ("I;16", 4, 1)])
def test_bands_that_are_not_there_are_refused(tmp_path: Path, mode: str, channels: int, got: int) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=rf"a\.png: .*expected {channels} channels, got {got}"):
        load_image(tmp_path / "a.png", channels=channels)


def test_inks_are_no_channels() -> None:
    with pytest.raises(UnreadableImage, match="expected 4 channels, got CMYK, which is read as RGB only"):
        from_pil(Image.new("CMYK", (2, 2)), 4)


def test_16_bit_grey_declared_transparent_is_white(tmp_path: Path) -> None:
    grey = np.array([[0, 16000, 65535], [16000, 15999, 3]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=16000)
    expected = np.where(grey == 16000, 65535, grey) / 65535 * 2 - 1
    torch.testing.assert_close(load_image(tmp_path / "a.png")[0], torch.from_numpy(expected.astype(np.float32)))


def test_warnings_name_the_file_and_what_is_not_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.warns(UserWarning, match=rf"{name}: only the first page or frame is read \(1 of 3\)"):
            load_image(tmp_path / name)


def test_the_views_of_a_camera_file_are_not_pages(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(tmp_path / "a.mpo")


# --- reduced


@pytest.mark.parametrize(
    "kind", ["RGB", "RGBA", "LA", "CMYK", "1", "P", "entry", "16 bits", "floats", "turned", "RGB floats"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_reduced_image_is_the_mean_of_squares_of_the_whole(tmp_path: Path, kind: str, channels: int) -> None:
    pixels, options, path = picture(24, 32), {}, tmp_path / ("a.tif" if "floats" in kind or kind == "CMYK" else "a.png")
    image = Image.fromarray(pixels)
    if kind == "RGBA":
        image.putalpha(Image.fromarray(pixels[::-1, :, 0]))
    elif kind == "16 bits":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif kind == "floats":
        image = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    elif kind in ("P", "entry"):
        image, options = image.quantize(16), {"transparency": 3} if kind == "entry" else {}
    elif kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    elif kind in ("LA", "CMYK", "1"):
        image = image.convert(kind)
    if kind == "RGB floats":
        pytest.importorskip("tifffile").imwrite(path, pixels.astype(np.float32) / 255, photometric="rgb")
    else:
        image.save(path, **options)
    whole, reduced = load_image(path, channels=channels), load_image(path, channels=channels, reduce_to=6)
    torch.testing.assert_close(reduced, torch.nn.functional.avg_pool2d(whole, 4), atol=4 / 255, rtol=0)


def test_a_small_image_is_not_reduced(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    torch.testing.assert_close(load_image(tmp_path / "a.png", reduce_to=4), expected(picture()))


# --- EXIF

# A 2×3 picture has red, green, blue and white corners. For each EXIF orientation: its corners, clockwise from the top
# left, after it was rotated as the standard prescribes.
TURNED = {
    1: "RGBW",
    2: "GRWB",
    3: "BWRG",
    4: "WBGR",
    5: "RWBG",
    6: "WRGB",
    7: "BGRW",
    8: "GBWR",
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    corners = np.zeros((32, 48, 3), dtype=np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, 24:], corners[16:, :24] = RED, GREEN, BLUE, (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners).save(tmp_path / f"turned{suffix}", exif=exif, quality=95)
    image = load_image(tmp_path / f"turned{suffix}")
    assert image.shape == ((3, 32, 48) if orientation <= 4 else (3, 48, 32))
    letters = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (True, True, True): "W"}
    seen = [image[:, row, column] > 0 for row, column in ((4, 4), (4, -5), (-5, -5), (-5, 4))]
    assert "".join(letters[tuple(channels.tolist())] for channels in seen) == TURNED[orientation]


def test_16_bit_images_are_turned_too() -> None:
    image = Image.fromarray(np.array([[1, 2, 3]], dtype=np.uint16))
    image.getexif()[0x0112] = 6
    assert from_pil(image).shape == (3, 3, 1)


def test_damaged_exif_data_do_not_lose_the_picture(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "exif.png", exif=b"Exif\x00\x00XX*\x00nonsense")
    torch.testing.assert_close(load_image(tmp_path / "exif.png"), expected(picture()))


# --- unreadable files


def test_a_text_file_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UnreadableImage, match=r"text\.png: not in any image format"):
        load_image(tmp_path / "text.png")


def test_an_empty_file_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImage, match=r"empty\.jpg: not in any image format"):
        load_image(tmp_path / "empty.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".tif", ".bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(picture(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match=rf"cut\{suffix}"):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about the damage
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".tif", ".bmp"])
def test_damaged_bytes_give_an_image_or_unreadable_image_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture(16, 16)).save(path)
    whole, rng = np.frombuffer(path.read_bytes(), dtype=np.uint8), np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=8)] = rng.integers(256, size=8)
        try:
            image = load_image(io.BytesIO(damaged.tobytes()), "damaged")
            assert image.shape[0] == 3
            check_images(image[None], "damaged")
        except UnreadableImage as error:
            refused += 1
            assert str(error).startswith("damaged: ")
    assert refused > 0


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.png: cannot be read: No such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(UnreadableImage, match=rf"{tmp_path.name}: cannot be read: "):
        load_image(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match=r"bomb\.png: .*decompression bomb"):
        load_image(tmp_path / "bomb.png")


def test_an_open_file_is_called_by_the_name_it_is_given() -> None:
    with pytest.raises(UnreadableImage, match=r"^row 7: "):
        load_image(io.BytesIO(b"nonsense"), "row 7")


def test_unreadable_image_is_a_value_error() -> None:
    assert issubclass(UnreadableImage, ValueError)


# --- writing and resizing


def test_a_saved_png_is_read_back_within_half_a_grey_level(tmp_path: Path) -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_image(image, tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png") - image).abs().max() <= 1 / 255 + 1e-6


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    for suffix, kind in ((".png", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP")):
        save_image(torch.zeros(3, 4, 4), tmp_path / f"a{suffix}")
        assert Image.open(tmp_path / f"a{suffix}").format == kind


def test_overshoot_is_clamped_when_saved(tmp_path: Path) -> None:
    save_image(torch.tensor([-7.0, 0.0, 7.0]).view(3, 1, 1), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("image", "name", "complaint"),
    [
        (torch.zeros(1, 3, 4, 4), "a.png", r"expected an image of shape \(3, H, W\).*, got \(1, 3, 4, 4\)"),
        (torch.full((3, 4, 4), float("nan")), "a.png", "NaN"),
        (torch.zeros(3, 4, 4), "a.xyz", r"\.png, \.jpg or the like, got '\.xyz'"),
        (torch.zeros(3, 4, 4), "a", "got ''"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, image: torch.Tensor, name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        save_image(image, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_resizing_down_averages_and_up_interpolates() -> None:
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1  # standard deviation 0.58
    assert resize(noise, 8, 8).std() < 0.1  # the mean of 64 values: 0.07; without antialiasing 0.4
    up = resize(torch.tensor([-1.0, 1.0]).expand(3, 2, 2), 8, 8)
    assert up.shape == (3, 8, 8)
    assert up.min() == -1
    assert up.max() == 1
    assert (up.diff(dim=-1) >= 0).all()


def test_the_package_alone_does_not_load_pillow() -> None:
    code = "import sys, klvae_edu; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
