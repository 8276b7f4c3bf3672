"""All images of a source, each exactly once, as centred squares: the input of `klvae encode`.

Training uses an endless sequence of random crops instead (`sources`). Here every image has a number. Image i is the
same in every process, so an interrupted run can resume at any image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from klvae_edu.data.files import center_square, load_image
from klvae_edu.data.hub import HubImages
from klvae_edu.data.sources import PROCEDURAL, image_names, is_data_set, joined_sources, photographs

Numbered = tuple[list[str], Callable[[int], Tensor]]  # names of the images; function that reads image i, (3, H, W)


class NumberedImages:
    """Images (3, size, size) in [-1, 1] by number: the largest centred square of each image, resized.

    Attributes:
        names: names of the images, by number.
        size: side in pixels.
    """

    def __init__(self, names: list[str], read: Callable[[int], Tensor], size: int) -> None:
        self.names, self._read, self.size = names, read, size

    def __len__(self) -> int:
        return len(self.names)

    def load(self, number: int) -> Tensor:
        """Return image `number`, (3, size, size). Raises `UnreadableImage`."""
        return center_square(self._read(number), self.size)


class AllImages(NumberedImages):
    """All images of a source, or its first `count`.

    Args:
        source: "sprites" or "dead-leaves" (these need `count`), "photos", a folder of images, or a Hugging Face data
            set. The names are those of `image_dataset`, but only one source is allowed.
        size: side in pixels, at least 8.
        count: number of images; None: all images of the source.

    Raises:
        ValueError: the source has no images, or it is endless and `count` is not given.
    """

    def __init__(self, source: str, size: int, count: int | None = None) -> None:
        if size < 8 or (count is not None and count < 1):
            raise ValueError(f"expected size ≥ 8 pixels and one image or more, got {size=}, {count=}")
        if len(joined_sources(source)) > 1:
            raise ValueError(f"expected one source, got {source!r}")
        if source in PROCEDURAL and count is None:
            raise ValueError(f"count: {source} has no end; give a number, for example --count 10000")
        names, read = _numbered(source, size, count)
        super().__init__(names[:count], read, size)


def folder_images(folder: str) -> Numbered:
    """List the images of a folder, training and held-out ones together, in the order of their names."""
    root = Path(folder).expanduser()
    names = image_names(root)
    return names, lambda number: load_image(root / names[number])


def _numbered(source: str, size: int, count: int | None) -> Numbered:
    if source in PROCEDURAL:
        draw = PROCEDURAL[source]
        return [f"{source} {number}" for number in range(count or 0)], lambda number: draw(number, size, 0)
    if source == "photos":
        images = photographs("train") | photographs("held-out")
        return [*images], [*images.values()].__getitem__
    return _hub_images(source) if is_data_set(source) else folder_images(source)


def _hub_images(source: str) -> Numbered:
    splits = {split: HubImages(source.removeprefix("hf:"), split) for split in ("train", "held-out")}
    places = [(split, position) for split, images in splits.items() for position in range(len(images))]

    def read(number: int) -> Tensor:
        split, position = places[number]
        return splits[split].load(position)[0]

    return [f"{split} {splits[split].rows[position]}" for split, position in places], read
