"""All images of a source, each once and whole: what a data set of latents is made of.

Training takes random crops and never ends (`sources`). Here every image has a number, and number i is the same picture
in any process: whoever was interrupted goes on at any of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor

from klvae_edu.data.files import load_image, resize
from klvae_edu.data.sources import PROCEDURAL, Folder, is_data_set, joined_sources, photographs

Numbered = tuple[list[str], Callable[[int], Tensor]]  # the images' names, and image i


class AllImages:
    """`len(self)` images (3, size, size) in [-1, 1]: of each, the largest centred square, scaled to `size` pixels.

    Args:
        source: "sprites" or "dead-leaves" (`count` of them), "photos", a folder of images, or a Hugging Face data set:
            one of those that `image_dataset` takes.
        size: side in pixels.
        count: how many; None: all that the source has.

    Attributes:
        names: of the images, by number.

    Raises:
        ValueError: the source makes no images, or has no end and `count` is not given.
    """

    def __init__(self, source: str, size: int, count: int | None = None) -> None:
        if size < 8 or (count is not None and count < 1):
            raise ValueError(f"expected size ≥ 8 pixels and one image or more, got {size=}, {count=}")
        if len(joined_sources(source)) > 1:
            raise ValueError(f"expected one source, got {source!r}")
        if source in PROCEDURAL and count is None:
            raise ValueError(f"count: {source} has no end; say how many images, for example --count 10000")
        self.size = size
        if source in PROCEDURAL:
            draw = PROCEDURAL[source]
            self.names = [f"{source} {number}" for number in range(count or 0)]
            self._image: Callable[[int], Tensor] = lambda number: draw(number, size, 0)
        else:
            names, self._image = (_of_hub if is_data_set(source) else _of_pictures)(source)
            self.names = names[:count]

    def __len__(self) -> int:
        return len(self.names)

    def load(self, number: int) -> Tensor:
        """Image `number`, (3, size, size). Raises `UnreadableImage`."""
        return centre(self._image(number), self.size)


def centre(image: Tensor, size: int) -> Tensor:
    """The largest centred square of an image (3, H, W), scaled to (3, size, size)."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[:, top : top + side, left : left + side]
    return square if side == size else resize(square, size, size)


def _of_pictures(source: str) -> Numbered:
    if source == "photos":
        known = photographs("train") | photographs("held-out")
        return [*known], [*known.values()].__getitem__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one image is on both sides of the split is no matter here
        both = [Folder(source, "train"), Folder(source, "held-out")]
    names = sorted({name for side in both for name in side.names})
    return names, lambda number: load_image(both[0].root / names[number])


def _of_hub(source: str) -> Numbered:
    from klvae_edu.data.hub import HubImages

    splits = {split: HubImages(source.removeprefix("hf:"), split) for split in ("train", "held-out")}
    places = [(split, number) for split, images in splits.items() for number in range(len(images))]

    def image(number: int) -> Tensor:
        split, place = places[number]
        return splits[split].load(place)[0]

    return [f"{split} {splits[split].rows[number]}" for split, number in places], image
