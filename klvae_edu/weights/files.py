"""Files of tensors: read and write safetensors, and tell them from pickles.

Tensors are read one by one, so that a few can be taken out of a checkpoint of several GB without loading the others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

from safetensors import SafetensorError
from torch import Tensor

from klvae_edu.weights.checksum import fill_checksum

MAX_JSON = 4_000_000  # bytes of a header, a configuration, a list of shards; Stable Diffusion XL's header has 300,000
_LIBRARYS_MAX_HEADER = 100_000_000  # larger numbers are other content
SAFETENSORS = (".safetensors", ".sft")


class SafetensorsFile(Mapping[str, Tensor]):
    """Tensors of a safetensors file by name. Each tensor is read when it is accessed.

    Raises:
        ValueError: the file is damaged or truncated, or its header is too large.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if MAX_JSON < header < path.stat().st_size:
            raise ValueError(f"{path}: expected a header of at most {MAX_JSON:,} bytes, got one of {header:,}")
        try:
            self._file = cast(Any, safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise ValueError(f"{path}: a damaged or incomplete safetensors file ({error})") from error
        self._names: dict[str, None] = dict.fromkeys(self._file.keys())  # a dict keeps the order and finds names fast
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            return self._file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{name} cannot be read ({error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_pickle(path: Path) -> bool:
    """Tell whether a file is a pickle and not safetensors, by its first bytes or, if they are unclear, by its name."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LIBRARYS_MAX_HEADER:
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix.lower() not in SAFETENSORS


def read_json(path: Path) -> Any:
    """Read a JSON file in any encoding of Unicode.

    Raises:
        ValueError: not JSON, or more than `MAX_JSON` bytes.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"{path}: expected at most {MAX_JSON:,} bytes of JSON")
    try:
        return json.loads(content)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `weights` detached, on the CPU and contiguous, as safetensors needs them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Compute a checksum of names and values, in float32 and sorted by name: the type in a file does not change it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(on_cpu(weights).items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()


def write_safetensors(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write `weights` by name to a safetensors file, atomically.

    With `CHECKSUM: BLANK` in the metadata the file carries its checksum.

    Raises:
        OSError: the disk is full or not available.
    """
    from safetensors.torch import save_file

    try:
        with atomic_write(path) as temporary:
            save_file(on_cpu(weights), temporary, metadata=metadata)
            with open(temporary, "rb+") as file:
                order_metadata(file)
                fill_checksum(file)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Atomically replace `path`: yield a temporary file in the same folder, then fsync and rename it."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")  # unique, because threads may write the same file
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def order_metadata(file: BinaryIO) -> None:
    """Sort the metadata of a safetensors file. The library writes them in random order, so that the bytes differ."""
    file.seek(0)
    header = file.read(int.from_bytes(file.read(8), "little"))
    values = json.loads(header)
    values["__metadata__"] = dict(sorted(values["__metadata__"].items()))
    file.seek(8)
    file.write(json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(header)))
