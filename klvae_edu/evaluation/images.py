"""Evaluation data: images, each with a key that identifies the photograph that it was cut from.

Crops of the same photograph are not independent. The bootstrap in `compare` needs the keys to group them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from klvae_edu.data import UnreadableImage, image_dataset
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.crops import NAMES_IN_REPORT, ImageCrops, unreadable_report
from klvae_edu.data.files import printable
from klvae_edu.data.sources import BUILT_IN, Mixture

CROPS = 256  # default number of held-out crops
Key = tuple[int, ...]  # identifies a photograph


class EvaluationData(Protocol):
    """Images to evaluate on.

    Iteration yields (key, image): the image (C, H, W) in [-1, 1], and the key of the photograph that it comes from.
    """

    what: str  # description of the images in words

    @property
    def photographs(self) -> int:
        """Number of photographs. Unreadable ones are subtracted when they are met during iteration."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]: ...

    def report(self) -> str | None:
        """Report the files that could not be read, with the errors. None: there are none."""


def evaluation_data(
    source: str,
    size: int,
    split: Literal["held-out", "all"] = "held-out",
    count: int | None = None,
    channels: int = 3,
) -> HeldOutCrops | WholeImages:
    """Open square images of `size` pixels from `source`, a source of `image_dataset`.

    Args:
        source: a source of `image_dataset`; for split "all" a folder or a Hugging Face data set.
        size: side of the images in pixels.
        split: "held-out": fixed random crops of the held-out images. "all": each image of a folder or a data set once,
            its largest centred square, resized to `size`; for images that were not used in training.
        count: number of images; None: 256 crops, or all images of the folder.
        channels: 3 (RGB), 1 (grey), or the number of bands of the images; see `load_image`.

    Raises:
        ValueError: `source` is not found or has no images, `split` is "all" and `source` is built in, or `count` is
            below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"expected one image or more, got {count}")
    if split == "held-out":
        return HeldOutCrops(source, size, count or CROPS, channels)
    return WholeImages(source, size, count, channels)


class GivenImages:
    """A batch of images (B, C, H, W) in [-1, 1] in memory; each image counts as a photograph."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.what = f"{len(images)} images of {images.shape[-1]}x{images.shape[-2]} pixels"

    @property
    def photographs(self) -> int:
        return len(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        return (((number,), image) for number, image in enumerate(self.images))

    def report(self) -> str | None:
        return None


class HeldOutCrops:
    """`count` random crops of the held-out images of `source`; see `image_dataset`."""

    def __init__(self, source: str, size: int, count: int, channels: int = 3) -> None:
        self.data = image_dataset(source, size, split="held-out", length=count, channels=channels)
        self.count = count
        self.what = f"{count} crops of {size}x{size} pixels, held out of {printable(source)}"

    @property
    def photographs(self) -> int:
        return _photographs(self.data, self.count)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        for index in range(self.count):
            image = self.data[index]
            yield _photograph_of(self.data, index), image

    def report(self) -> str | None:
        return self.data.report()


class WholeImages(AllImages):
    """The first `count` images of a folder or a data set (None: all), each once: its largest centred square."""

    def __init__(self, source: str, size: int, count: int | None = None, channels: int = 3) -> None:
        if source in BUILT_IN:
            raise ValueError(f"split: expected held-out for {source}; all is for images of your own")
        super().__init__(source, size, count, channels)
        self.errors: list[str] = []  # of the first unreadable images
        self.failed = 0
        self.what = f"the centres of images in {printable(source)}, scaled to {size}x{size} pixels"

    @property
    def photographs(self) -> int:
        return len(self) - self.failed

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        self.errors, self.failed = [], 0
        for number in range(len(self)):
            try:
                image = self.load(number)
            except UnreadableImage as error:
                self.failed += 1
                self.errors += [str(error)] if self.failed <= NAMES_IN_REPORT else []
                continue
            yield (number,), image

    def report(self) -> str | None:
        return unreadable_report(self.errors, self.failed, " and are left out", len(self)) if self.failed else None


def batches(data: EvaluationData, size: int) -> Iterator[tuple[list[Key], Tensor]]:
    """Group `data` into batches of up to `size` images: keys, and images (B, C, H, W)."""
    pairs = iter(data)
    while batch := [*itertools.islice(pairs, size)]:
        yield [key for key, _ in batch], torch.stack([image for _, image in batch])


def _photograph_of(data: Dataset[Tensor], index: int) -> Key:
    """Return the number of the image that crop `index` was cut from. The crop must have been made before."""
    if isinstance(data, Mixture):
        turn, part = divmod(index, len(data.parts))
        return part, *_photograph_of(data.parts[part], turn)
    if isinstance(data, ImageCrops):
        count = len(data.images)
        return (next(n % count for n in range(index, index + count) if not data.unreadable[n % count]),)
    return (index,)  # procedural: every image is independent


def _photographs(data: Dataset[Tensor], count: int) -> int:
    if isinstance(data, Mixture):
        shares = [len(range(part, count, len(data.parts))) for part in range(len(data.parts))]
        return sum(_photographs(part, share) for part, share in zip(data.parts, shares, strict=True))
    if isinstance(data, ImageCrops):
        return min(len(data.images) - int(data.unreadable.sum()), count)
    return count
