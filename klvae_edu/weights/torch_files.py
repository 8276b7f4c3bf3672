"""Read the files that `torch.save` writes: nothing in them is executed, and PyTorch's unpickler is not used.

Such a file is a pickle and the bytes of its storages: in a zip archive since PyTorch 1.6, one after the other before.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from klvae_edu.weights.pickles import PickleReader
from klvae_edu.weights.stored_tensors import NotReadError, StoredTensors

MAX_PICKLE = 1 << 25  # bytes without the storages; a checkpoint of Stable Diffusion has 300,000
MAX_DIRECTORY = 1 << 22  # bytes of an archive's directory; about 80 for each storage
ZIP = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a record: magic, length of its name, length of an extra field
_OLDER = (0x1950A86A20F9469CFC6C, 1001)  # the first two pickles of the format before PyTorch 1.6: magic, version
_NUMEL = struct.Struct("<q")


class TorchFile(NamedTuple):
    """Content of a file, and the names of the classes and functions whose objects are a `Placeholder` in it."""

    content: Any
    foreign: list[str]


def read_torch_file(path: Path) -> TorchFile:
    """Read a file that `torch.save` wrote. Its tensors are views of the memory-mapped file.

    Raises:
        ValueError: the file is damaged, or claims more than it holds.
    """
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
        file.seek(0)
        try:
            return _read_archive(path, file) if zipped else _read_older(path, file)
        except Exception as error:  # damaged content can raise any error
            reason = (
                error if isinstance(error, NotReadError) else f"a damaged file or another format ({_in_words(error)})"
            )
            raise ValueError(f"{path}: expected a file of tensors and nothing else, got {reason}") from error


def _read_archive(path: Path, file: BinaryIO) -> TorchFile:
    tensors = StoredTensors(path)
    reader = PickleReader(tensors.known, tensors.storage)
    with _Bounded(path) as bounded, ZipFile(bounded) as archive:
        records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
        if "constants.pkl" in records:
            raise NotReadError("a TorchScript program; save the state_dict() of its module instead")
        if any(record.compress_type != ZIP_STORED for record in records.values()):
            raise NotReadError("an archive whose records are compressed, which torch.save does not do")
        if "byteorder" in records and archive.open(records["byteorder"]).read(8) != b"little":
            raise NotReadError("an archive of a big-endian machine")
        content = archive.open(records["data.pkl"]).read(MAX_PICKLE)
    content = reader.read(io.BytesIO(content))
    tensors.fill(lambda key: _location(file, records[f"data/{key}"]))
    return TorchFile(content, list(reader.foreign))


def _read_older(path: Path, file: BinaryIO) -> TorchFile:
    """Read pickles of the magic number, the version, the machine, the content and the storages' keys; the storages."""
    tensors = StoredTensors(path)
    reader = PickleReader(tensors.known, tensors.storage)
    stream = io.BytesIO(file.read(MAX_PICKLE))
    if (reader.read(stream), reader.read(stream)) != _OLDER:
        raise ValueError("another pickle")
    _, content, keys = (reader.read(stream) for _ in range(3))
    start, locations = stream.tell(), dict[str, tuple[int, int]]()
    for key in keys:
        file.seek(start)
        (numel,) = _NUMEL.unpack(file.read(_NUMEL.size))
        storage = tensors.storages[key]
        locations[key] = (start + _NUMEL.size, numel * storage.dtype.itemsize)
        start = sum(locations[key])
    tensors.fill(locations.__getitem__)
    return TorchFile(content, list(reader.foreign))


def _location(file: BinaryIO, record: ZipInfo) -> tuple[int, int]:
    """Return the first byte of a record's content in an archive, and its length."""
    file.seek(record.header_offset)
    magic, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if magic != ZIP:
        raise ValueError(f"no record {record.filename:.40}")
    return record.header_offset + _LOCAL_HEADER.size + name + extra, record.file_size


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error!s:.100}".replace("\n", " ")


class _Bounded(io.FileIO):
    """File that gives a part of what is asked for at once: the size of an archive's directory is only a claim."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, MAX_DIRECTORY) if size is not None and size >= 0 else MAX_DIRECTORY) or b""
