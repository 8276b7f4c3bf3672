"""Files of tensors: read safetensors and pickles without executing anything in them, and write safetensors.

Tensors are read one by one, so that a few can be taken out of a checkpoint of several GB without loading the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, cast
from uuid import uuid4

import torch
from safetensors import SafetensorError
from torch import Tensor

from klvae_edu.weights.checks import shortened
from klvae_edu.weights.checksum import fill_checksum

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
SAFETENSORS = (".safetensors", ".sft")

# Classes that training frameworks save besides the weights: Lightning's callbacks and NumPy's numbers.
IGNORED_CLASSES = re.compile(r"(pytorch_lightning|lightning)\..+|numpy\.(dtype|(core|_core)\.multiarray\.scalar)")
_SAFE_GLOBALS_LOCK = threading.Lock()  # PyTorch has one list of allowed classes for all threads

CONVERSION_SCRIPT = (  # Python code in the error message about a pickle with other classes
    "import sys, torch, safetensors.torch as s; "
    "d = lambda o: o.state_dict() if hasattr(o, 'state_dict') else o if isinstance(o, dict) else {}; "
    "f = lambda o: {k: o for k in ['']} if torch.is_tensor(o) else "
    "{(k if n == 'state_dict' else f'{n}.{k}').strip('.'): t for n, x in d(o).items() for k, t in f(x).items()}; "
    "w = f(torch.load(sys.argv[1], map_location='cpu', weights_only=False)); assert w, 'no tensors'; "
    "s.save_file({k: t.clone().contiguous() for k, t in w.items()}, sys.argv[2])"
)


class SafetensorsFile(Mapping[str, Tensor]):
    """Tensors of a safetensors file by name. Each tensor is read when it is accessed.

    Raises:
        ValueError: the file is damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

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


class Placeholder:
    """Placeholder for an ignored class while a pickle is read: it accepts any arguments and stores nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def is_pickle(path: Path) -> bool:
    """Tell whether a file is a pickle and not safetensors, by its first bytes or, if they are unclear, by its name."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix.lower() not in SAFETENSORS


def read_pickle(path: Path) -> Any:
    """Read a file that `torch.save` wrote. Its tensors are memory-mapped if the format allows it.

    Objects of `IGNORED_CLASSES` become `Placeholder` objects.

    Raises:
        ValueError: the file is damaged, or contains more than tensors, numbers, text and collections of them. The
            message names the classes in the file and gives a command that converts it. Nothing in it is executed.
    """
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # the format since PyTorch 1.6; the older format cannot be memory-mapped
    misnamed = path.suffix == ".safetensors"  # PyTorch would read it as safetensors: pass the open file, without mmap
    try:
        ignored: list[Any] = [(Placeholder, name) for name in _unsafe_globals(path) if IGNORED_CLASSES.fullmatch(name)]
        with _SAFE_GLOBALS_LOCK, torch.serialization.safe_globals(ignored), open(path, "rb") as file:
            mapped = zipped and not misnamed
            return torch.load(file if misnamed else path, map_location="cpu", weights_only=True, mmap=mapped)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # on a damaged file the unpickler can raise any error
        raise ValueError(f"{path}: expected a file of tensors and nothing else, {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Explain why a pickle cannot be read: it contains objects of classes, or it is damaged."""
    classes = _unsafe_globals(path) or re.findall(r"(?:Unsupported global:|load unsupported) GLOBAL (\S+)", str(error))
    if "TorchScript" in str(error):
        return "got a TorchScript program; save the state_dict() of its module instead"
    if not classes:
        return f"got a damaged file or another format ({type(error).__name__})"
    command = f'python -c "{CONVERSION_SCRIPT}" {shlex.quote(str(path))} converted.safetensors'
    return (
        f"but it asks for {', '.join(shortened(sorted(classes)))}. Loading such classes runs code that the file "
        "chooses. If you trust the source of the file, convert it once, on a machine where these classes are "
        f"installed: {command}"
    )


def _unsafe_globals(path: Path) -> list[str]:
    """List the classes and functions that a pickle asks for; empty for the format before PyTorch 1.6."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the older format, or a damaged file, which can raise any error
        return []


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
