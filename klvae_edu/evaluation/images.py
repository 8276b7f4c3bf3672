"""What models are evaluated on: images one after the other, each with the photograph that it was cut from.

Crops of one photograph resemble each other, so whoever says how sure a mean is has to know which those are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from klvae_edu.data import UnreadableImage, image_dataset
from klvae_edu.data.all_images import centre
from klvae_edu.data.crops import NAMES_IN_REPORT, ImageCrops
from klvae_edu.data.files import load_image
from klvae_edu.data.sources import BUILT_IN, Folder, Mixture

CROPS = 256
Key = tuple[int, ...]  # which photograph


class EvaluationData(Protocol):
    """Images to evaluate on.

    Iterating gives (key, image): the image (3, H, W) in [-1, 1], the key that of the photograph it comes from.
    """

    what: str  # in words

    @property
    def photographs(self) -> int:
        """How many there are; fewer at the end, when some could not be read."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]: ...

    def report(self) -> str | None:
        """The files that could not be read, and why; None if there are none."""


def evaluation_data(
    source: str, size: int, split: Literal["held-out", "all"] = "held-out", count: int | None = None
) -> HeldOutCrops | WholeImages:
    """Square images of `size` pixels from `source`, which is one of `image_dataset`'s.

    Args:
        split: "held-out" for random crops, always the same, of the images that are never trained on; "all", for a
            folder of which nothing was trained on: each image once, its largest centred square, scaled to `size`.
        count: number of images; None: 256 crops, or all images of the folder.

    Raises:
        ValueError: `source` makes no data set, is none that can be read whole, or `count` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"expected one image or more, got {count}")
    return HeldOutCrops(source, size, count or CROPS) if split == "held-out" else WholeImages(source, size, count)


class GivenImages:
    """A batch of images (B, 3, H, W) in [-1, 1] that are there already, each a photograph of its own."""

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

    def __init__(self, source: str, size: int, count: int) -> None:
        self.data = image_dataset(source, size, split="held-out", length=count)
        self.count = count
        self.what = f"{count} crops of {size}x{size} pixels, held out of {source}"

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


class WholeImages:
    """The first `count` images of a folder (None: all), each once: the largest centred square, as (3, size, size)."""

    def __init__(self, folder: str, size: int, count: int | None = None) -> None:
        if folder in BUILT_IN or folder.startswith("hf:"):
            raise ValueError(f"split: expected held-out for {folder}; all is for a folder of images of your own")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one image is on both sides of the split is no matter here
            both = [Folder(folder, "train"), Folder(folder, "held-out")]
        self.root, self.size = both[0].root, size
        self.names = sorted({name for side in both for name in side.names})[:count]
        self.unreadable: list[str] = []  # the first reasons
        self.failed = 0
        self.what = f"the centres of images in {folder}, scaled to {size}x{size} pixels"

    @property
    def photographs(self) -> int:
        return len(self.names) - self.failed

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        self.unreadable, self.failed = [], 0
        for number, name in enumerate(self.names):
            try:
                image = load_image(self.root / name)
            except UnreadableImage as error:
                self.failed += 1
                self.unreadable += [f"  {error}"] if self.failed <= NAMES_IN_REPORT else []
                continue
            yield (number,), centre(image, self.size)

    def report(self) -> str | None:
        if not self.failed:
            return None
        first = f"{self.failed} of {len(self.names)} images could not be read and are left out:"
        left = self.failed - len(self.unreadable)
        return "\n".join([first, *self.unreadable, *([f"  and {left} more"] if left else [])])


def _photograph_of(data: Dataset[Tensor], index: int) -> Key:
    """The number of the image that crop `index`, which has been made, was cut from."""
    if isinstance(data, Mixture):
        turn, part = divmod(index, len(data.parts))
        return part, *_photograph_of(data.parts[part], turn)
    if isinstance(data, ImageCrops):
        count = len(data.images)
        return (next(n % count for n in range(index, index + count) if not data.unreadable[n % count]),)
    return (index,)  # procedural: each is its own


def _photographs(data: Dataset[Tensor], count: int) -> int:
    if isinstance(data, Mixture):
        shares = [len(range(part, count, len(data.parts))) for part in range(len(data.parts))]
        return sum(_photographs(part, share) for part, share in zip(data.parts, shares, strict=True))
    if isinstance(data, ImageCrops):
        return min(len(data.images) - int(data.unreadable.sum()), count)
    return count
