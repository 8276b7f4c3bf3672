"""A folder of 2,000 images of which 5 % cannot be read, for different reasons."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from klvae_edu.cli import main
from klvae_edu.data.crops import NAMES_IN_REPORT
from klvae_edu.data.folders import Folder
from klvae_edu.training.loader import SHUFFLE_BLOCK, ResumableSampler

IMAGES, EVERY = 2000, 20  # every 20th is broken
SEED, CROPS, BATCH = 8, 11_500, 500  # with this seed every training image is among the first 11,500


def picture(number: int, kind: str) -> bytes:
    """Make a small intact image in a format that Pillow writes."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((20, 24)).save(file, kind)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Make a chunk of a PNG file, with its checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, compressed: bytes) -> bytes:
    """Make a PNG file with a valid header and any data after it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def not_a_number() -> bytes:
    """Make a floating-point TIFF that contains NaN."""
    file = io.BytesIO()
    Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32)).save(file, "TIFF")
    return file.getvalue()


def write(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content())


# Suffix of the file, a function that writes it, and a word in the reported reason.
BREAKAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": (".png", write(lambda: b""), "not in any image format"),
    "cut off, jpeg": (".jpg", write(lambda: picture(1, "JPEG")[:-40]), "truncated"),
    "cut off, png": (".png", write(lambda: picture(1, "PNG")[:-60]), "truncated"),
    "zeros after the header": (".png", write(lambda: picture(1, "PNG")[:60] + bytes(800)), "cannot be read"),
    "text": (".jpeg", write(lambda: b"see the other folder\n"), "not in any image format"),
    "a web page": (".webp", write(lambda: b"<!DOCTYPE html><title>404</title>"), "not in any image format"),
    "a program's file": (".bmp", write(lambda: b"PK\x03\x04" + bytes(300)), "not in any image format"),
    "a link to nowhere": (".png", lambda path: path.symlink_to(path.with_name("gone.png")), "No such file"),
    "a link in a circle": (".gif", lambda path: path.symlink_to(path), "cannot be read"),
    "a bomb": (".png", write(lambda: png(60_000, 60_000, zlib.compress(b""))), "exceeds limit"),
    "not a number": (".tif", write(not_a_number), "nan"),
    "a damaged stream": (".png", write(lambda: png(20, 24, b"\x78\x9c" + bytes(range(90)))), "cannot be read"),
}


class Collection(NamedTuple):
    """The folder, and the kind of damage of each broken file."""

    folder: Path
    broken: dict[str, str]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder, broken = tmp_path_factory.mktemp("collection"), {}
    whole = [
        (suffix, picture(number, kind)) for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG")) for number in range(9)
    ]
    for number in range(IMAGES):
        place = folder / f"shelf-{number % 7}"
        place.mkdir(exist_ok=True)
        if number % EVERY:
            suffix, content = whole[number % len(whole)]
            (place / f"{number:04d}{suffix}").write_bytes(content)
        else:
            name = [*BREAKAGES][number // EVERY % len(BREAKAGES)]
            suffix, breakage, _ = BREAKAGES[name]
            path = place / f"{number:04d}{suffix}"
            breakage(path)
            broken[path.relative_to(folder).as_posix()] = name
    return Collection(folder, broken)


@pytest.fixture(scope="module")
def met(collection: Collection) -> Collection:
    """The training part of the collection: `CROPS` random crops include every training image."""
    names = Folder(str(collection.folder), "train", 16).names
    asked = {index % len(names) for index in islice(ResumableSampler(0, SHUFFLE_BLOCK, SEED), CROPS)}
    assert asked == {*range(len(names))}
    return Collection(collection.folder, {name: collection.broken[name] for name in names if name in collection.broken})


def test_a_hundred_broken_files_in_a_folder_end_no_run_and_every_one_is_named(
    collection: Collection, met: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--data", str(met.folder), "--seed", str(SEED), "--size", "8", "--held-out", "100", "--device", "cpu"]
    options += ["--batch-size", str(BATCH), "--steps", str(CROPS // BATCH)]
    assert main(["train", *options, "--out", str(out)]) == 0

    listed = (out / "unreadable.txt").read_text().splitlines()
    printed = capsys.readouterr().out.splitlines()
    heading = f"{len(met.broken)} of {len(Folder(str(met.folder), 'train', 16))} images could not be read"
    assert listed[0].startswith(heading)
    assert len(met.broken) > 90 and set(met.broken.values()) == {*BREAKAGES}
    for name, breakage in collection.broken.items():  # also the held-out ones
        (line,) = [line for line in listed if f"{name}: " in line]
        assert BREAKAGES[breakage][2] in line, breakage
    (begin,) = [number for number, line in enumerate(printed) if line.startswith(heading)]
    assert printed[begin : begin + NAMES_IN_REPORT + 1] == listed[: NAMES_IN_REPORT + 1]
    assert printed[begin + NAMES_IN_REPORT + 1] == f"  and {len(met.broken) - NAMES_IN_REPORT} more"
