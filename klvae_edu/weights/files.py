"""Files of tensors: safetensors and pickles, read without executing anything in them; safetensors, written.

They are read so that a few tensors can be taken out of a checkpoint of several GB without the rest.
"""

from __future__ import annotations

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

MAX_HEADER = 100_000_000  # bytes, as in the safetensors library
SAFETENSORS = (".safetensors", ".sft")

# What training frameworks keep beside the weights: Lightning's callbacks and NumPy's numbers.
BOOKKEEPING = re.compile(r"(pytorch_lightning|lightning)\..+|numpy\.(dtype|(core|_core)\.multiarray\.scalar)")
_ALLOWING = threading.Lock()  # PyTorch has one list of allowed classes for all threads

TO_SAFETENSORS = (  # what the error about a pickle with foreign classes tells its reader to run
    "import sys, torch, safetensors.torch as s; "
    "w = torch.load(sys.argv[1], map_location='cpu', weights_only=False); w = w.get('state_dict', w); "
    "s.save_file({k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}, sys.argv[2])"
)


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name. Each is read when it is asked for: of a whole checkpoint, few are.

    Raises:
        ValueError: the file is damaged or cut off.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        try:
            self._file = cast(Any, safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
        self._names: dict[str, None] = dict.fromkeys(self._file.keys())  # with their order, and quick to look up
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


class Inert:
    """Stands for a bookkeeping class while a pickle is read: takes anything, does nothing, keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle and not safetensors: by its first bytes, or where they say nothing by its name."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix.lower() not in SAFETENSORS


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote to `path`, its tensors still in the file where the format allows it.

    Objects of `BOOKKEEPING` classes become `Inert`.

    Raises:
        ValueError: damaged, or it holds more than tensors, numbers, text and their collections. The message names the
            classes it asks for and how to convert the file; nothing in it is executed.
    """
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # the format since PyTorch 1.6; the one before cannot be mapped
    misnamed = path.suffix == ".safetensors"  # PyTorch goes by the name, so it gets none, and nothing can be mapped
    try:
        inert: list[Any] = [(Inert, name) for name in _foreign(path) if BOOKKEEPING.fullmatch(name)]
        with _ALLOWING, torch.serialization.safe_globals(inert), open(path, "rb") as file:
            mapped = zipped and not misnamed
            return torch.load(file if misnamed else path, map_location="cpu", weights_only=True, mmap=mapped)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # on damaged files the unpickler raises whatever it stumbles over
        raise ValueError(f"{path}: expected a file of tensors and nothing else, {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Why a pickle cannot be read: it asks for classes, or is damaged."""
    classes = _foreign(path) or re.findall(r"(?:Unsupported global:|load unsupported) GLOBAL (\S+)", str(error))
    if not classes:
        return f"and this one is damaged or is none ({type(error).__name__})"
    command = f'python -c "{TO_SAFETENSORS}" {shlex.quote(str(path))} converted.safetensors'
    return (
        f"but it asks for {', '.join(shortened(sorted(classes)))}, and whoever loads such classes runs code that the "
        "file chooses. If you trust where it comes from, convert it once, on a machine that has these classes "
        f"installed: {command}"
    )


def _foreign(path: Path) -> list[str]:
    """The classes and functions that a pickle asks for; none in the format before PyTorch 1.6, where nobody knows."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # also on damaged files, which raise whatever the reader stumbles over
        return []


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` as they are written."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def write_safetensors(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write `weights` to `path` atomically, under their names.

    Raises:
        OSError: the disk is full, or gone.
    """
    from safetensors.torch import save_file

    try:
        with atomic_write(path) as aside:
            save_file(on_cpu(weights), aside, metadata=metadata)
            with open(aside, "rb+") as file:
                order_metadata(file)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Atomically replace `path`: yield a temporary file beside it to write to, then fsync and rename it."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}.part")  # its own, for threads that write the same file
    try:
        aside.touch(exist_ok=False)
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)  # safetensors makes files that only their owner can read
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def order_metadata(file: BinaryIO) -> None:
    """Sort the metadata in a safetensors file: the library leaves their order, and so the file's bytes, to chance."""
    file.seek(0)
    header = file.read(int.from_bytes(file.read(8), "little"))
    values = json.loads(header)
    values["__metadata__"] = dict(sorted(values["__metadata__"].items()))
    file.seek(8)
    file.write(json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(header)))
