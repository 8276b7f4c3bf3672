"""Checksums of files, written with them and verified when they are read. They find accidental damage, not forgery.

A safetensors file carries its own: the CRC-32 of its bytes, with zeros in the checksum's place. CRC-32 finds any damage
of up to four adjacent bytes, and misses one in four billion others. It takes a fraction of a secure hash's time.
"""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO

CHECKSUM = "klvae_crc32"  # name in the metadata of a safetensors file
BLANK = "crc32:00000000"  # its value before the file is whole
_BLOCK = 2**20  # bytes read at a time

_WITHOUT = "import sys; from safetensors.torch import *; f = sys.argv[1]; save_file(load_file(f), f, {'format': 'pt'})"


def file_crc32(path: Path) -> str:
    """Compute the checksum of a file: "crc32:" and eight hexadecimal digits."""
    with path.open("rb") as file:
        return _crc32(_blocks(file))


def fill_checksum(file: BinaryIO) -> None:
    """Write the checksum of a safetensors file over the `BLANK` in its metadata; without a `BLANK`, nothing."""
    file.seek(0)
    length, header = _header(file)
    if (blank := _entry(BLANK)) in header:
        filled = header.replace(blank, _entry(_crc32(chain([length, header], _blocks(file)))), 1)
        file.seek(len(length))
        file.write(filled)


def check_safetensors(path: Path, metadata: Mapping[str, str]) -> None:
    """Verify a safetensors file that carries a checksum; other files, as other programs write them, are not checked.

    Raises:
        ValueError: the file has changed since it was written.
    """
    carried = [value for name, value in metadata.items() if name == CHECKSUM or value.startswith(BLANK[:6])]
    if not carried:
        return
    with path.open("rb") as file:
        length, header = _header(file)
        blank = header.replace(_entry(carried[0]), _entry(BLANK), 1)
        found = _crc32(chain([length, blank], _blocks(file)))
    if metadata.get(CHECKSUM) != found:
        raise ValueError(
            f"{path}: damaged: its contents have changed since they were written ({found}, expected {carried[0]}). "
            f"Copy the file anew. {how_to_accept(path)}"
        )


def how_to_accept(weights: Path) -> str:
    """Say how to accept a model that was changed on purpose: its weights are written without what they carry."""
    command = f'python -c "{_WITHOUT}" {shlex.quote(str(weights))}'
    return f"If the change was made on purpose, write the weights without the checksum: {command}"


def _header(file: BinaryIO) -> tuple[bytes, bytes]:
    length = file.read(8)
    return length, file.read(int.from_bytes(length, "little"))


def _entry(value: str) -> bytes:
    return f'"{CHECKSUM}":"{value}"'.encode()


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK), b"")


def _crc32(parts: Iterable[bytes]) -> str:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return f"crc32:{value:08x}"
