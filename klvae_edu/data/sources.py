"""Data sets for training: `image_dataset(source, size)`.

A source is a kind of procedural images, the photographs inside scikit-image, a folder of images, a Hugging Face data
set, or a mixture of several of these.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from klvae_edu.data.augmentation import Recoloured
from klvae_edu.data.columns import holds_images
from klvae_edu.data.crops import NAMES_IN_REPORT, ImageCrops, Images, IndexedImages, pyramid
from klvae_edu.data.files import load_image, printable, to_channels
from klvae_edu.data.folders import ARCHIVES, Folder, archives, has_images, suffix_of
from klvae_edu.data.hub import HubImages, parse_source
from klvae_edu.data.procedural import dead_leaves
from klvae_edu.data.shards import StreamedCrops
from klvae_edu.data.sprites import sprite

Split = Literal["train", "held-out"]

TRAIN_LENGTH = 2**20  # crops; an epoch of random crops has no natural length
HELD_OUT_LENGTH = 256
HELD_OUT_SEED = 2**63  # seed of held-out crops for every training seed

# In scikit-image's folder of sample images; its docstrings give their origins (LICENSES/sample-photographs.md).
PHOTOGRAPHS: dict[Split, dict[str, str]] = {
    "train": {
        "camera": "camera.png",
        "hubble_deep_field": "hubble_deep_field.jpg",
        "immunohistochemistry": "ihc.png",
        "motorcycle": "motorcycle_left.png",
        "retina": "retina.jpg",
        "rocket": "rocket.jpg",
    },
    "held-out": {"chelsea": "chelsea.png", "coffee": "coffee.png"},
}

PROCEDURAL: dict[str, Callable[[int, int, int], Tensor]] = {"dead-leaves": dead_leaves, "sprites": sprite}
BUILT_IN = (*PROCEDURAL, "photos")


def image_dataset(
    source: str,
    size: int,
    *,
    split: Split = "train",
    seed: int = 0,
    length: int | None = None,
    streaming: bool = False,
    recolour: float = 0.0,
    channels: int = 3,
) -> Procedural | ImageCrops | Mixture | Recoloured | StreamedCrops:
    """Build a data set of square images (channels, size, size), float32 in [-1, 1].

    Training images are random crops, each a pure function of (seed, index). Held-out crops come from other images and
    are the same for every seed. The data set's `report()` lists the files that could not be read (None: all were read).

    Args:
        source: "dead-leaves" or "sprites" (procedural), "photos" (the photographs inside scikit-image), a folder of
            images, searched with its subfolders, or a data set for Hugging Face `datasets`: an id on the Hub, a folder
            written by `save_to_disk`, or a folder with Parquet, tar or zip files. The prefix "hf:" selects a Hugging
            Face data set, NAME[:CONFIG][#COLUMN]; "./photos" is a folder. Sources joined with "+", such as
            "photos+dead-leaves", alternate (`Mixture`).
        size: side of the images in pixels.
        split: "train" or "held-out". If a source has no held-out split, 5 % of its images are held out.
        seed: seed of the training crops.
        length: number of crops. Default: 2²⁰ for training, 256 for held-out crops, no end for a training stream.
        streaming: stream a Hugging Face data set instead of loading it first; the result is an `IterableDataset`.
        recolour: share of the training images that get another hue and saturation (`Recoloured`).
        channels: 3 (RGB), 1 (grey), or the number of bands of the images; see `load_image`.

    Raises:
        ValueError: an argument is out of range, or the source is not found or has no images. The message says what
            was expected.
    """
    if split not in ("train", "held-out"):
        raise ValueError(f"split: expected 'train' or 'held-out', got {split!r}")
    if size < 1 or seed < 0 or (length is not None and length < 1):
        raise ValueError(f"expected size ≥ 1, seed ≥ 0 and length ≥ 1, got {size=}, {seed=}, {length=}")
    if not 0 <= recolour <= 1:
        raise ValueError(f"recolour: expected a share from 0 to 1, got {recolour}")
    if channels < 1 or (recolour and channels != 3):
        raise ValueError(f"expected one channel or more, and 3 with recolour, got {channels=}, {recolour=}")
    if split == "held-out":
        seed, length = HELD_OUT_SEED, length or HELD_OUT_LENGTH

    names = joined_sources(source)
    if streaming:
        if recolour:
            raise ValueError("recolour: not available for a data set that is streamed")
        if len(names) > 1:
            raise ValueError(f"streaming is for one Hugging Face data set; {source!r} are {len(names)} sources")
        if not is_data_set(source):
            raise ValueError(
                f"streaming is for Hugging Face data sets (hf:NAME); {source!r} is none and needs none: "
                "each image is read or drawn when its turn comes"
            )
        return StreamedCrops(source, split, size, seed=seed, length=length, channels=channels)
    length = length or TRAIN_LENGTH
    parts = [_one_source(name, split, size, seed, -(-length // len(names)), channels) for name in names]
    images = parts[0] if len(parts) == 1 else Mixture(parts, size, seed=seed, length=length)
    return Recoloured(images, recolour, seed=seed) if recolour and split == "train" else images


def _one_source(source: str, split: Split, size: int, seed: int, length: int, channels: int) -> Procedural | ImageCrops:
    if source in PROCEDURAL:
        return Procedural(PROCEDURAL[source], size, seed=seed, length=length, channels=channels)
    images: Images
    if source == "photos":
        images = Photographs(split, size, channels)
    elif is_data_set(source):
        images = HubImages(source.removeprefix("hf:"), split, channels)
    else:
        images = Folder(source, split, size, channels)
    return ImageCrops(images, size, seed=seed, length=length)


def joined_sources(source: str) -> list[str]:
    """Split `source` at its "+" signs. A path with "+" in its name is one source; the longest existing name counts.

    Raises:
        ValueError: a source is empty or comes twice.
    """
    names, left = [], source.split("+")
    while left:
        lengths = range(len(left), 1, -1)
        count = next((count for count in lengths if _folder("+".join(left[:count])).exists()), 1)
        names.append("+".join(left[:count]))
        left = left[count:]
    if not all(names) or len({*names}) < len(names):
        raise ValueError(f"expected a source, or different ones with + between them, got {source!r}")
    return names


def source_folders(source: str) -> list[Path]:
    """List the local folders that `image_dataset(source, …)` reads."""
    folders = [_folder(name) for name in joined_sources(source) if name not in BUILT_IN]
    return [folder for folder in folders if folder.is_dir()]


def check_outside(out: Path, source: str) -> None:
    """Check that the output folder `out` is not inside a folder that `image_dataset(source, …)` reads.

    Raises:
        ValueError: it is inside one. A later run would read the results as images.
    """
    for folder in source_folders(source):
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                "out: expected a folder outside of the images, because a later run could read the results as images; "
                f"{out} is inside of {printable(str(folder))}. Name another folder"
            )


def photographs(split: Split = "held-out", channels: int = 3) -> dict[str, Tensor]:
    """Read the photographs inside scikit-image, by name: (channels, H, W) in [-1, 1]. Nothing is downloaded.

    The held-out photographs are natural photographs; no crop of them is in the training data.

    Raises:
        ValueError: an unknown split, or scikit-image is not installed.
        UnreadableImage: the installed version of scikit-image lacks one of them, or `channels` is not 1 or 3.
    """
    if split not in PHOTOGRAPHS:
        raise ValueError(f"split: expected 'train' or 'held-out', got {split!r}")
    spec = importlib.util.find_spec("skimage")  # not imported: its own functions may download
    if spec is None or spec.origin is None:
        raise ValueError("the photographs are inside scikit-image, which is not installed: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"
    return {name: load_image(folder / file, channels=channels) for name, file in PHOTOGRAPHS[split].items()}


class Procedural(IndexedImages):
    """The first `length` images of `draw(index, size, seed)`, RGB or grey: (channels, size, size) in [-1, 1].

    Raises:
        ValueError: `channels` is not 1 or 3.
    """

    def __init__(
        self, draw: Callable[[int, int, int], Tensor], size: int, *, seed: int, length: int, channels: int = 3
    ) -> None:
        super().__init__(size, seed=seed, length=length)
        self.draw, self.channels = draw, check_colour(channels)

    def make(self, index: int) -> Tensor:
        return to_channels(self.draw(index, self.size, self.seed), self.channels)


def check_colour(channels: int) -> int:
    """Check the number of channels of procedural images. Raises `ValueError` unless it is 1 or 3."""
    if channels not in (1, 3):
        raise ValueError(f"procedural images are RGB or grey: expected 1 or 3 channels, got {channels}")
    return channels


class Mixture(IndexedImages):
    """`length` images (C, size, size) in [-1, 1] of n alternating data sets: image i is image i // n of part i mod n.

    Each part gives its images in its own order, so no image of a part is skipped.
    """

    def __init__(self, parts: Sequence[Procedural | ImageCrops], size: int, *, seed: int, length: int) -> None:
        super().__init__(size, seed=seed, length=length)
        self.parts = parts

    def make(self, index: int) -> Tensor:
        turn, part = divmod(index, len(self.parts))
        return self.parts[part][turn]

    def report(self, limit: int | None = NAMES_IN_REPORT) -> str | None:
        """Join the reports of the parts. None: there are none."""
        return "\n".join(filter(None, [part.report(limit) for part in self.parts])) or None


class Photographs:
    """Photographs of scikit-image as image pyramids in memory, for crops of `size` pixels."""

    def __init__(self, split: Split, size: int, channels: int = 3) -> None:
        self.pyramids = [pyramid(image, size) for image in photographs(split, channels).values()]

    def __len__(self) -> int:
        return len(self.pyramids)

    def load(self, number: int) -> Sequence[Tensor]:
        return self.pyramids[number]


def is_data_set(source: str) -> bool:
    """Tell whether `datasets` reads `source`, otherwise it is a folder of images.

    It does with the prefix "hf:", if it is a folder in the formats of `datasets`, a Parquet file or an archive, a
    folder of Parquet files with images in them or of archives without image files beside them, or a name like a Hub id
    that is not on disk.
    """
    if source in BUILT_IN:
        return False
    if source.startswith("hf:"):
        return True
    path = _folder(source)
    if path.is_file():
        return suffix_of(path.name) in ARCHIVES
    if not path.is_dir():
        name = parse_source(source).name
        return not path.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None
    if any((path / mark).exists() for mark in ("dataset_dict.json", "dataset_info.json")):
        return True
    parquet = next((file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern)), None)
    if parquet and holds_images(parquet):
        return True
    return not has_images(path) and any(archives(path))


def _folder(source: str) -> Path:
    """Return the folder that `source` would be on this disk."""
    return parse_source(source).folder
