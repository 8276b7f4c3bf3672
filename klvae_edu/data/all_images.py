"""All images of a source, each exactly once, as centred squares: the input of `klvae encode`.

Training uses an endless sequence of random crops instead (`sources`). Here every image has a number. Image i is the
same in every process, so an interrupted run can resume at any image.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from klvae_edu.data.archives import file_version
from klvae_edu.data.files import center_square, printable, to_channels
from klvae_edu.data.folders import image_names, read_file
from klvae_edu.data.hub import HubRows, open_splits, parse_source
from klvae_edu.data.listing import files_of
from klvae_edu.data.remarks import RemarkCount, on_enlarged
from klvae_edu.data.sources import PROCEDURAL, check_colour, is_data_set, joined_sources, photographs

Numbered = tuple[list[str], Callable[[int], Tensor]]  # names of the images; function that reads image i, (C, H, W)


class AllImages:
    """All images of a source, or its first `count`: the largest centred square of each, resized.

    Attributes:
        names: names of the images, by number.
        size: side in pixels.
        channels: channels of the images.
        remarks: counts of the remarks on images that were read.

    Args:
        source: "sprites" or "dead-leaves" (these need `count`), "photos", a folder of images, or a Hugging Face data
            set, of which all splits are read. The names are those of `image_dataset`, but only one source is allowed.
        size: side in pixels, at least 8.
        count: number of images; None: all images of the source.
        channels: 3 (RGB), 1 (grey), or the number of bands of the images; see `load_image`.

    Raises:
        ValueError: the source has no images, or it is endless and `count` is not given.
    """

    def __init__(self, source: str, size: int, count: int | None = None, channels: int = 3) -> None:
        if size < 8 or (count is not None and count < 1):
            raise ValueError(f"expected size ≥ 8 pixels and one image or more, got {size=}, {count=}")
        if len(joined_sources(source)) > 1:
            raise ValueError(f"expected one source, got {printable(source)!r}")
        if source in PROCEDURAL and count is None:
            raise ValueError(f"count: {source} has no end; give a number, for example --count 10000")
        self.size, self.channels, self.remarks = size, channels, RemarkCount()
        names, self._read = self._numbered(source, count)
        self.names = names[:count]

    def __len__(self) -> int:
        return len(self.names)

    def load(self, number: int) -> Tensor:
        """Return image `number`, (channels, size, size) in [-1, 1]. Raises `UnreadableImage`."""
        image = self._read(number)
        self.remarks.add(self.names[number], on_enlarged(image, self.size))
        return center_square(image, self.size)

    def versions_sha256(self) -> str | None:
        """Return a hash of the sizes and times of the files that the images are in. None: there are none here."""
        found = [file_version(path) for path in self._paths(len(self))]
        return hashlib.sha256(repr(found).encode()).hexdigest() if found else None

    def _numbered(self, source: str, count: int | None) -> Numbered:
        self._paths: Callable[[int], list[str]] = lambda count: []  # files of the first images
        if source in PROCEDURAL:
            draw, channels = PROCEDURAL[source], check_colour(self.channels)
            names = [f"{source} {number}" for number in range(count or 0)]
            return names, lambda number: to_channels(draw(number, self.size, 0), channels)
        if source == "photos":
            images = photographs("train", self.channels) | photographs("held-out", self.channels)
            return [*images], [*images.values()].__getitem__
        return self._rows(source) if is_data_set(source) else self._files(Path(os.path.expanduser(source)))

    def _files(self, root: Path) -> Numbered:
        """List the images of a folder, training and held-out ones together, in the order of their names."""
        files = image_names(root)
        self._paths = lambda count: [str(root / file) for file in files[:count]]
        return [printable(file) for file in files], lambda number: read_file(
            root, files[number], self.channels, self.remarks
        )

    def _rows(self, source: str) -> Numbered:
        """List the rows of all splits of a data set, one split after the other."""
        splits = {name: HubRows(data, source, self.channels) for name, data in open_splits(source).items()}
        parts = [*splits.values()]
        files = [str(parse_source(source).folder / file) for file in files_of(source)]
        self._paths = lambda count: files
        for part in parts:
            part.remarks = self.remarks
        starts = [0, *itertools.accumulate(map(len, parts))]

        def read(number: int) -> Tensor:
            part = bisect.bisect_right(starts, number) - 1
            return parts[part].load(number - starts[part])[0]

        return [f"{name} {row}" for name, part in splits.items() for row in range(len(part))], read
