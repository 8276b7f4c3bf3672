"""Random crops for training, each a pure function of (seed, index).

No state is kept between crops. A data set therefore gives the same crops in any order, process or worker.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from klvae_edu.data.files import UnreadableImage, printable, resize
from klvae_edu.data.remarks import warn_once

HELD_OUT_SHARE = 0.05
MAX_CROP_SIDE = 0.5  # times the shorter side of the image
NAMES_IN_REPORT = 20  # a report names at most this many unreadable images


def pyramid(image: Tensor, smallest: int) -> list[Tensor]:
    """Return `image` (C, H, W) and copies of it, each half as large as the one before it.

    The copies are area averages, of 8-bit pixels rounded to 8 bits. The shorter side of the last one has at least
    `smallest` pixels.
    """
    levels = [image]
    while min(levels[-1].shape[-2:]) // 2 >= smallest:
        half = F.avg_pool2d(levels[-1].float(), 2)
        levels.append(half if image.is_floating_point() else half.round_().byte())
    return levels


def eight_bit(image: Tensor) -> Tensor:
    """Store an image (C, H, W) in [-1, 1] as 8-bit pixels, a quarter of the memory; one with finer values stays."""
    pixels = ((image + 1) * 127.5).round_().byte()
    return pixels if torch.equal(from_eight_bit(pixels), image) else image


def from_eight_bit(pixels: Tensor) -> Tensor:
    """Convert 8-bit pixels back to float32 in [-1, 1], exactly as they were read."""
    return pixels.float().div_(127.5).sub_(1)


def random_crop(levels: Sequence[Tensor], size: int, rng: np.random.Generator) -> Tensor:
    """Cut a random square out of an image, resize it to (C, size, size), and mirror it with probability 1/2.

    The side of the square lies between `size` pixels and half of the image's shorter side. Its logarithm is uniform,
    because natural images have similar statistics at all scales. Larger squares are not used: a model is not applied
    to whole scenes that were shrunk to a small crop. If half of the shorter side is less than `size`, the square has
    `size` pixels; an even smaller image is enlarged.

    Args:
        levels: the image (C, H, W) in [-1, 1] or as 8-bit pixels, alone or followed by halved copies (`pyramid`), which
            save time.
        size: side of the crop in pixels.
        rng: source of all random numbers.
    """
    shorter = min(levels[0].shape[-2:])
    side = min(size * max(MAX_CROP_SIDE * shorter / size, 1) ** rng.random(), shorter)
    depth = min(int(math.log2(max(side / size, 1))), len(levels) - 1)
    image = levels[depth]
    height, width = image.shape[-2:]
    side = min(round(side / 2**depth), height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = image[:, top : top + side, left : left + side]
    if crop.dtype == torch.uint8:
        crop = from_eight_bit(crop)
    if rng.random() < 0.5:
        crop = crop.flip(-1)
    return crop.clone() if side == size else resize(crop, size, size)


def hold_out(
    keys: Sequence[str], read: Callable[[int], object] | None = None, source: str = ""
) -> tuple[list[int], list[int]]:
    """Split images by the hashes of their names: (positions of training images, positions of held-out images).

    The 5 % of the images whose names have the smallest hashes are held out, at least one image. The split depends only
    on the names, so adding an image moves almost no other image between the parts. A single image is in both parts.
    Each part is in the order of the hashes.

    If none of a part can be read, the next image of the other part that can be joins it, which is said. `read` tries
    an image by its position; it raises `UnreadableImage`. `source` names the images in the warning.
    """
    if len(keys) == 1:
        return [0], [0]
    by_hash = sorted(range(len(keys)), key=lambda position: stable_hash(name_bytes(keys[position])))
    count = max(1, round(HELD_OUT_SHARE * len(keys)))
    train, held_out = by_hash[count:], by_hash[:count]  # not sorted by name: neighbours are often similar images
    if read is not None:
        for part, other, use in ((held_out, train, "held-out"), (train, held_out, "training")):
            found = [] if any(True for _ in _readable(part, read)) else [*islice(_readable(other, read), 2)]
            if not found:
                continue
            if len(found) > 1:
                other.remove(found[0])
            both = "" if len(found) > 1 else ", and is in both parts"
            name = printable(keys[found[0]])
            warn_once(
                f"{source}: none of the {len(part)} {use} images can be read; image {name} takes their place{both}"
            )
            part.append(found[0])
    return train, held_out


def _readable(positions: Sequence[int], read: Callable[[int], object]) -> Iterator[int]:
    """Yield the positions of the images that can be read."""
    for position in positions:
        try:
            read(position)
        except UnreadableImage:
            continue
        yield position


def name_bytes(name: str) -> bytes:
    """Encode a file name as UTF-8; also one that is no text, on every system in the same way."""
    return name.encode(errors="surrogatepass")


def stable_hash(content: bytes) -> int:
    """Return a 64-bit hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def shared_zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Allocate zeros in memory that DataLoader workers share with the main process."""
    zeros: Tensor = torch.zeros(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return zeros


def unreadable_report(errors: Sequence[str], count: int, outcome: str, total: int | None = None) -> str:
    """Write the report on `count` unreadable images (of `total`): a heading, the errors, and the number of the others.

    Args:
        errors: messages of the images that are named, at most `count`.
        count: number of unreadable images.
        outcome: end of the heading, such as " and are left out".
        total: number of all images; None leaves it out.
    """
    of = "" if total is None else f" of {total}"
    lines = [f"{count}{of} images could not be read{outcome}:", *(f"  {error}" for error in errors)]
    if count > len(errors):
        lines.append(f"  and {count - len(errors)} more")
    return "\n".join(lines)


class Images(Protocol):
    """Uncropped images by number."""

    def __len__(self) -> int: ...

    def load(self, number: int) -> Sequence[Tensor]:
        """Return the image's levels, the input of `random_crop`. Raises `UnreadableImage`."""


class IndexedImages(Dataset[Tensor]):
    """`length` images (C, size, size) in [-1, 1]. Image `index` is `make(index)`, a pure function of (seed, index)."""

    def __init__(self, size: int, *, seed: int, length: int) -> None:
        self.size, self.seed, self.length = size, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"expected an index from 0 to {self.length - 1}, got {index}")
        return self.make(index)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.make, range(self.length))

    def make(self, index: int) -> Tensor:
        """Return image `index`; subclasses define it."""
        raise NotImplementedError

    def report(self, limit: int | None = NAMES_IN_REPORT) -> str | None:
        """Report the unreadable images, at most `limit` by name (None: all). Returns None here: no files are read."""
        return None


class ImageCrops(IndexedImages):
    """`length` random crops (C, size, size) in [-1, 1] of n images; crop i is cut from image i mod n.

    An unreadable image is replaced by the next readable one. Unreadable images are marked in memory that DataLoader
    workers share; `report` lists them.
    """

    def __init__(self, images: Images, size: int, *, seed: int, length: int) -> None:
        super().__init__(size, seed=seed, length=length)
        self.images = images
        self.unreadable = shared_zeros(len(images), dtype=torch.bool)

    def make(self, index: int) -> Tensor:
        """Return crop `index`.

        Raises:
            ValueError: none of the images can be read.
        """
        for step in range(len(self.images)):
            number = (index + step) % len(self.images)
            if self.unreadable[number]:
                continue
            try:
                levels = self.images.load(number)
            except UnreadableImage:
                self.unreadable[number] = True
                continue
            return random_crop(levels, self.size, np.random.default_rng((self.seed, index)))
        raise ValueError(f"none of the images can be read. {self.report()}")

    def report(self, limit: int | None = NAMES_IN_REPORT) -> str | None:
        """Report the unreadable images that were met so far: their number, names and errors. None: there are none.

        At most `limit` of them are named (None: all). Each named image is read again to get its error.
        """
        numbers = self.unreadable.nonzero().flatten().tolist()
        if not numbers:
            return None
        errors = [self._reason(number) for number in numbers[:limit]]
        return unreadable_report(errors, len(numbers), ", others took their place", len(self.images))

    def _reason(self, number: int) -> str:
        """Read image `number` again and return its error: workers share only the marks of unreadable images."""
        try:
            self.images.load(number)
        except UnreadableImage as error:
            return str(error)
        return f"image {number}: could not be read during the run, but can be read now"
