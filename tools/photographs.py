"""Fetch freely licensed photographs from Debian packages, as training and evaluation images for the bundled models.

`photographs.csv` names each photograph: package and version, path in the package, SHA-256, licence, holder, and split.
FOLDER/train and FOLDER/held-out are written, one file a photograph; nothing of them is in the repository or the wheel.
Needs `apt-get` and `dpkg-deb` (Debian, Ubuntu), and about 0.3 GB of downloads.

    python -m tools.photographs FOLDER
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tools.course import CourseError, command

MANIFEST = Path(__file__).with_suffix(".csv")


class Photograph(NamedTuple):
    """One row of the manifest."""

    name: str  # file name in the folder that is written
    split: str  # "train" or "held-out"
    package: str
    version: str
    member: str  # path in the package; after "!", path in a Qt resource file
    sha256: str
    licence: str
    holder: str


def manifest(path: Path = MANIFEST) -> list[Photograph]:
    """Read the manifest: all photographs, in the order of their packages."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Photograph(**row) for row in csv.DictReader(file)]


def download(package: str, version: str, folder: Path) -> Path:
    """Download a package and unpack it into `folder`; returns where its files are.

    If the archive no longer has this version, its current one is taken, and this is printed.

    Raises:
        CourseError: there is no such package, or no network.
    """
    for wanted in (f"{package}={version}", package):
        done = subprocess.run(["apt-get", "download", wanted], cwd=folder, capture_output=True, text=True)
        if done.returncode == 0:
            break
        print(f"{wanted}: not in the archive; trying its current version" if "=" in wanted else done.stderr.strip())
    else:
        raise CourseError(f"{package}: cannot be downloaded. `apt-get update` may help")
    (archive,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / package)], check=True)
    archive.unlink()
    return folder / package


def contents(root: Path, member: str) -> bytes | None:
    """Read a member of an unpacked package; None if it is missing."""
    path, _, resource = member.partition("!")
    if not (root / path).is_file():
        return None
    data = (root / path).read_bytes()
    return dict(resource_files(data)).get(resource) if resource else data


def resource_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Iterate over the files in a Qt resource file (.rcc): path and contents.

    Source: Qt, `qtbase/src/tools/rcc/rcc.cpp`, format versions 1 to 3.

    Raises:
        CourseError: another format.
    """
    magic, version, tree, payload, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres" or not 1 <= version <= 3:
        raise CourseError(f"expected a Qt resource file of version 1 to 3, got one that begins with {data[:8]!r}")
    node_size = 14 if version == 1 else 22  # later versions store the time of the last change

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6  # after the length and a hash
        return data[start : start + 2 * length].decode("utf-16-be")

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name, flags = struct.unpack_from(">IH", data, tree + node * node_size)
        path = f"{folder}/{name_at(name)}" if node else ""  # node 0 is the root, without a name
        if flags & 2:  # a folder: its children follow each other
            count, first = struct.unpack_from(">2I", data, tree + node * node_size + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags & 4:  # files compressed by zstd are left out: photographs are compressed already
            (offset,) = struct.unpack_from(">I", data, tree + node * node_size + 10)
            (length,) = struct.unpack_from(">I", data, payload + offset)
            stored = data[payload + offset + 4 : payload + offset + 4 + length]
            yield path, zlib.decompress(stored[4:]) if flags & 1 else stored  # zlib: after the length

    yield from walk(0, "")


def fetch(photographs: list[Photograph], out: Path) -> list[str]:
    """Write `photographs` into `out`/train and `out`/held-out; returns a line for each one that is left out.

    A photograph is left out if its package has another picture under this path, or none.
    """
    missing = []
    with tempfile.TemporaryDirectory() as folder:
        for (package, version), rows in groupby(photographs, key=lambda row: (row.package, row.version)):
            root = download(package, version, Path(folder))
            for row in rows:
                data = contents(root, row.member)
                if data is None or hashlib.sha256(data).hexdigest() != row.sha256:
                    missing.append(f"{row.name}: {'missing' if data is None else 'another picture'} in {package}")
                    continue
                (out / row.split).mkdir(parents=True, exist_ok=True)
                (out / row.split / row.name).write_bytes(data)
    return missing


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fetch freely licensed photographs from Debian packages.")
    parser.add_argument("folder", type=Path, help="new folder for the photographs")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise CourseError(f"{options.folder}: expected a new folder, this one exists")
    photographs = manifest()
    missing = fetch(photographs, options.folder)
    for line in missing:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{len(photographs) - len(missing)} of {len(photographs)} photographs in {options.folder}")


if __name__ == "__main__":
    sys.exit(main())
