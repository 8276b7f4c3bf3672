"""Folders of images: what is read, what is left out, and random crops' access to their files.

Folders behind symbolic links are searched too, each once. What is left out is counted by kind in one warning.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.utils.data import get_worker_info

from klvae_edu.data.crops import eight_bit, hold_out, pyramid
from klvae_edu.data.files import printable, read_image
from klvae_edu.data.formats import image_suffixes
from klvae_edu.data.remarks import RemarkCount, warn_once

CACHE_BYTES = 2**31  # of decoded images of a folder, in all workers together
_TAR_FILES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVES = (".parquet", ".zip", *_TAR_FILES)  # formats of data sets
LOOKED_FOR = "image files (.jpg, .png, .webp, .tif and others that Pillow reads)"
_KINDS_IN_WARNING = 8
_SYSTEM_FILES = (".ds_store", "thumbs.db", "desktop.ini")  # left by file managers; not worth a word
_REMEDIES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), " (pip install pillow-heif)"),
    ".avif": " (pip install --upgrade pillow)",
    **dict.fromkeys((".zip", *_TAR_FILES), " (read by its own name)"),
}


class Folder:
    """Image files in a folder and its subfolders, without hidden ones, ordered by the hashes of their names.

    Decoded images stay in memory, as pyramids for crops of `size` pixels, until they take 2 GiB: a crop of a photograph
    in memory takes a hundredth of the time. DataLoader workers share these 2 GiB between them.

    Raises:
        ValueError: the folder does not exist or has no image files.
    """

    def __init__(self, folder: str, split: Literal["train", "held-out"], size: int, channels: int = 3) -> None:
        self.root, self.size, self.channels = Path(os.path.expanduser(folder)), size, channels
        self.decoded: dict[int, list[Tensor]] = {}
        self.decoded_bytes = 0
        self.remarks = RemarkCount()
        names = image_names(self.root)
        if len(names) == 1:
            warn_once(f"{printable(folder)}: one image only, so it is both trained on and held out", stacklevel=4)
        train, held_out = hold_out(
            names, lambda number: read_image(self.root / names[number], channels=channels), printable(folder)
        )
        self.names = [names[position] for position in (train if split == "train" else held_out)]

    def __len__(self) -> int:
        return len(self.names)

    def load(self, number: int) -> Sequence[Tensor]:
        """Return the image's levels. Raises `UnreadableImage`."""
        if number in self.decoded:
            return self.decoded[number]
        levels = pyramid(eight_bit(read_file(self.root, self.names[number], self.channels, self.remarks)), self.size)
        worker = get_worker_info()
        size = sum(level.nbytes for level in levels)
        if self.decoded_bytes + size <= CACHE_BYTES // (worker.num_workers if worker else 1):
            self.decoded[number] = levels  # never removed: crops come from all images equally often
            self.decoded_bytes += size
        return levels


def read_file(root: Path, name: str, channels: int, remarks: RemarkCount) -> Tensor:
    """Read the image `name` in `root`, (channels, H, W) in [-1, 1], and count the remarks on it."""
    image, found = read_image(root / name, channels=channels)
    remarks.add(printable(str(root / name)), found)
    return image


def image_names(root: Path) -> list[str]:
    """List the image files in a folder and its subfolders, without hidden ones, relative to it and sorted.

    A folder behind a symbolic link counts like others, under the name of the link; one that can be reached in several
    ways is read once. A link to a file counts as a file. Whatever is left out is counted in one warning.

    Raises:
        ValueError: the folder does not exist or has no image files.
    """
    if not root.is_dir():
        kind = "a file" if root.exists() else "no such folder"
        raise ValueError(f"{printable(str(root))}: expected a folder with {LOOKED_FOR}, got {kind}")
    names, left_out = [], Counter[str]()
    for name, left_out_as in _entries(root, image_suffixes()):
        if left_out_as is None:
            names.append(name)
        else:
            left_out[left_out_as] += 1
    remainder = counted(left_out)
    if not names:
        held = f"; it has {remainder}" if remainder else ""
        raise ValueError(f"{printable(str(root))}: found no {LOOKED_FOR} in this folder or its subfolders{held}")
    if remainder:
        warn_once(f"{printable(str(root))}: {len(names):,} images are read; left out: {remainder}")
    return sorted(names)


def unread_files(root: Path, read: Sequence[str]) -> Counter[str]:
    """Count the image files and archives in a folder that are not among the files `read`, by suffix."""
    found = (suffix_of(name) for name, kind in _entries(root, image_suffixes()) if kind in (None, *ARCHIVES))
    return Counter(found) - Counter(map(suffix_of, read))


def archives(root: Path) -> Iterator[str]:
    """Yield the paths of the Parquet, tar and zip files in a folder and its subfolders, without hidden ones."""
    return (str(root / name) for name, kind in _entries(root, image_suffixes()) if kind in ARCHIVES)


def data_files(root: Path) -> list[str]:
    """List the images, archives and tables of a data set in a folder, relative to it and sorted."""
    kinds = (None, ".arrow", *ARCHIVES)
    return sorted(name for name, kind in _entries(root, image_suffixes()) if kind in kinds)


def has_images(root: Path) -> bool:
    """Tell whether a folder or one of its subfolders has an image file."""
    return any(kind is None for _, kind in _entries(root, image_suffixes()))


def _entries(root: Path, suffixes: set[str]) -> Iterator[tuple[str, str | None]]:
    """Yield what is in a folder: the name of a file and None for an image, otherwise the kind that is left out."""
    locked: list[OSError] = []
    seen: set[str] = set()  # real paths of folders
    starts = [root]
    for start in starts:  # links are followed after the real folders, so that those keep their names
        for parent, folders, files in os.walk(start, onerror=locked.append):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            inside, visible = Path(parent).relative_to(root), []
            for name in sorted(folders):
                folder = Path(parent, name)
                if name.startswith("."):
                    yield name, "hidden folder"
                elif not folder.is_symlink():
                    visible.append(name)
                elif root.resolve().is_relative_to(folder.resolve()):
                    yield name, "upward link"
                else:
                    starts.append(folder)
            folders[:] = visible
            for name in files:
                kind = _kind(Path(parent, name), suffixes)
                if kind != "":
                    yield (inside / name).as_posix(), kind
    yield from ((error.filename, "locked folder") for error in locked)


def _kind(path: Path, suffixes: set[str]) -> str | None:
    """Name the kind of a file that is left out; None for an image; "" for one that is not worth a word."""
    name, suffix = path.name, suffix_of(path.name)
    if name.lower() in _SYSTEM_FILES or name.startswith("._"):
        return ""
    if name.startswith("."):
        return "hidden file"
    if suffix in suffixes:
        return None
    if path.is_symlink() and not path.exists():
        return "broken link"
    return suffix or "file without suffix"


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in small letters: .png, .tar.gz; empty: it has none."""
    stem, suffix = os.path.splitext(name.lower())
    return ".tar" + suffix if f".tar{suffix}" in _TAR_FILES and stem.endswith(".tar") else suffix


def counted(kinds: Counter[str], remedies: bool = True) -> str:
    """Write the counts: 40 .heic (pip install pillow-heif), 3 .txt, 2 × hidden folder; without kinds an empty text."""
    named = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:_KINDS_IN_WARNING]
    parts = [
        f"{count:,} {'' if kind[0] == '.' else '× '}{printable(kind)}{_REMEDIES.get(kind, '') if remedies else ''}"
        for kind, count in named
    ]
    others = kinds.total() - sum(count for _, count in named)
    return ", ".join([*parts, f"{others:,} of other kinds"] if others else parts)
