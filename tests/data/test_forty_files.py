"""A folder of 40 files as people have them: read, unreadable or left out, each is accounted for in every use."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, features

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.formats import register_heif
from klvae_edu.data.latent_dataset import LatentDataset
from klvae_edu.data.latent_writer import encode_images
from klvae_edu.evaluation.images import evaluation_data

SIZE = 16
READ, UNREADABLE, LEFT_OUT = "read", "unreadable", "left out"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)
NOT_TEXT = os.fsdecode(b"gr\xfc\xdfe.png")  # Latin-1
INFRARED = np.dstack([PIXELS, PIXELS[..., 0]])
FIVE = np.dstack([PIXELS, PIXELS[..., :2]])
DEEP = (PIXELS[..., 0].astype(np.uint16) << 8) + 255

Maker = Callable[[Path], object]


def saved(image: Image.Image, kind: str | None = None, **options: object) -> Maker:
    return lambda path: image.save(path, kind, **options)


def bands(values: np.ndarray, **options: object) -> Maker:
    return lambda path: tifffile.imwrite(path, values, **options)


def content(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data)


def jpeg() -> bytes:
    file = io.BytesIO()
    RGB.save(file, "JPEG")
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def class_folder_behind_a_link(path: Path) -> None:
    (store := path.parents[2] / "store").mkdir()
    RGB.save(store / path.name)
    path.parent.rmdir()
    path.parent.symlink_to(store, target_is_directory=True)


AVIF = READ if features.check("avif") else LEFT_OUT
FRAMES = {"save_all": True, "append_images": [RGB.rotate(180), RGB.rotate(90).resize(RGB.size)]}

FILES: dict[str, tuple[Maker, str]] = {
    "plain.jpg": (saved(RGB), READ),
    "progressive.jpeg": (saved(RGB, progressive=True), READ),
    "cmyk.jpg": (saved(RGB.convert("CMYK")), READ),
    "grey.jpg": (saved(RGB.convert("L")), READ),
    "turned.jpg": (saved(RGB, exif=turned()), READ),
    "two-views.mpo": (saved(RGB, "MPO", **FRAMES), READ),
    "palette.png": (saved(RGB.quantize(16)), READ),
    "transparent-entry.png": (saved(RGB.quantize(16), transparency=3), READ),
    "one-bit.png": (saved(RGB.convert("1")), READ),
    "grey-and-alpha.png": (saved(RGB.convert("LA")), READ),
    "16-bit.png": (saved(Image.fromarray(DEEP)), READ),
    "11-bit.png": (saved(Image.fromarray(DEEP >> 5)), READ),
    "moving.png": (saved(RGB, **FRAMES), READ),
    "moving.gif": (saved(RGB, **FRAMES), READ),
    "moving.webp": (saved(RGB, **FRAMES), READ),
    "alpha.webp": (saved(RGB.convert("RGBA")), READ),
    "bitmap.bmp": (saved(RGB), READ),
    "targa.tga": (saved(RGB), READ),
    "plain.ppm": (saved(RGB), READ),
    "16-bit.pgm": (content(b"P5 48 40 65535\n" + DEEP.astype(">u2").tobytes()), READ),
    "icon.ico": (saved(RGB), READ),
    "plain.avif": (saved(RGB) if AVIF == READ else content(b"avif"), AVIF),
    "lzw.tif": (saved(RGB, compression="tiff_lzw"), READ),
    "float.tif": (bands((PIXELS[..., 0] / 255).astype(np.float32)), READ),
    "float-rgb.tif": (bands((PIXELS / 255).astype(np.float32), photometric="rgb"), READ),
    "pages.tif": (bands(np.stack([PIXELS[..., 0]] * 3), photometric="minisblack"), READ),
    "near-infrared.tif": (bands(INFRARED, photometric="rgb", extrasamples=["unassalpha"]), READ),
    "panorama.png": (saved(RGB.resize((3000, 2))), READ),
    "really-a-jpeg.png": (saved(RGB, "JPEG"), READ),
    "link.png": (lambda path: path.symlink_to(path.with_name("palette.png")), READ),
    NOT_TEXT: (saved(RGB), READ),
    "class/behind-a-link.png": (class_folder_behind_a_link, READ),
    "five-bands.tif": (bands(FIVE, photometric="minisblack", planarconfig="contig"), UNREADABLE),
    "float-to-255.tif": (bands(PIXELS[..., 0].astype(np.float32)), UNREADABLE),
    "cut-off.jpg": (content(jpeg()[:-200]), UNREADABLE),
    "empty.png": (content(b""), UNREADABLE),
    "broken-link.png": (lambda path: path.symlink_to("nowhere.png"), UNREADABLE),
    "phone.heic": (content(b"\0\0\0\x18ftypheic\0\0\0\0"), UNREADABLE if register_heif() else LEFT_OUT),
    "plain.txt": (content(b"a caption"), LEFT_OUT),
    ".hidden.png": (saved(RGB), LEFT_OUT),
}
OUTCOMES = [outcome for _, outcome in FILES.values()]


class Forty(NamedTuple):
    """The folder, and the number that the warning about it counts as left out."""

    folder: str
    left_out: int


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Forty:
    folder = tmp_path_factory.mktemp("forty") / "images"
    folder.mkdir()
    for name, (make, _) in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        make(folder / name)
    with pytest.warns(UserWarning, match=r"images are read; left out") as caught:
        AllImages(str(folder), SIZE)
    counted = str(caught[0].message).split("left out: ")[1]
    return Forty(str(folder), sum(int(number) for number in re.findall(r"(?:^|, )(\d+) ", counted)))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def test_there_are_forty_and_what_is_no_image_is_counted(forty: Forty) -> None:
    assert len(FILES) == 40
    assert forty.left_out == OUTCOMES.count(LEFT_OUT)


def test_they_are_trained_on(forty: Forty) -> None:
    read, reports = set(), ""
    for split in ("train", "held-out"):
        data = image_dataset(forty.folder, SIZE, split=split, length=80)
        crops = torch.stack([*data])
        assert crops.shape == (80, 3, SIZE, SIZE) and crops.isfinite().all() and crops.abs().max() <= 1
        bad = data.unreadable.tolist()
        read |= {name for name, unreadable in zip(data.images.names, bad, strict=True) if not unreadable}
        reports += data.report() or ""
    assert read == {name for name, (_, outcome) in FILES.items() if outcome == READ}
    unreadable = {name for name, (_, outcome) in FILES.items() if outcome == UNREADABLE}
    assert all(f"{name}: " in reports for name in unreadable)
    assert len(read) + len(unreadable) + forty.left_out == 40


def test_they_are_encoded(forty: Forty, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    result = encode_images(vae, AllImages(forty.folder, SIZE), tmp_path / "latents", {})
    assert len(LatentDataset(tmp_path / "latents")) == OUTCOMES.count(READ)
    assert result["encoded"] + len(result["left_out"]) + forty.left_out == 40


def test_they_are_evaluated_on(forty: Forty) -> None:
    data = evaluation_data(forty.folder, SIZE, "all")
    images = [image for _, image in data]
    assert len(images) == data.photographs == OUTCOMES.count(READ)
    (unreadable,) = re.findall(rf"^(\d+) of {40 - forty.left_out} images could not be read", data.report() or "")
    assert data.photographs + int(unreadable) + forty.left_out == 40


def test_what_is_not_read_whole_is_counted_by_kind(forty: Forty) -> None:
    data = evaluation_data(forty.folder, SIZE, "all")
    list(data)
    assert data.remarks.summary() is not None
    counts = {kind.split()[0]: count for kind, count in data.remarks.images.items()}
    assert counts == {"only": 4, "16-bit": 1, "the": 1, "images": 1}  # moving ×3, pages; 11 bits; infrared; small
