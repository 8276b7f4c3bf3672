"""Files of tensors, as they come from others: safetensors and pickles, read without executing anything in them.

Both are read so that a few tensors can be taken out of a checkpoint of several GB without the rest.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

LONGEST_LIST = 20  # tensors of one kind that an error names

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


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote to `path`, its tensors still in the file where the format allows it.

    Raises:
        ValueError: damaged, or it holds more than tensors, numbers, text and their collections. The message names the
            classes it asks for and how to convert the file; nothing in it is executed.
    """
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # the format since PyTorch 1.6; the one before cannot be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # on damaged files the unpickler raises whatever it stumbles over
        raise ValueError(f"{path}: expected a file of tensors and nothing else, {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Why a pickle cannot be read: it asks for classes, or is damaged."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not in the format since PyTorch 1.6
        classes = re.findall(r"Unsupported global: GLOBAL (\S+)", str(error))
    if not classes:
        return f"and this one is damaged or is none ({type(error).__name__})"
    command = f'python -c "{TO_SAFETENSORS}" {shlex.quote(str(path))} converted.safetensors'
    return (
        f"but it asks for {', '.join(shortened(sorted(classes)))}, and whoever loads such classes runs code that the "
        "file chooses. If you trust where it comes from, convert it once, on a machine that has these classes "
        f"installed: {command}"
    )


def order_metadata(file: BinaryIO) -> None:
    """Sort the metadata in a safetensors file: the library leaves their order, and so the file's bytes, to chance."""
    file.seek(0)
    header = file.read(int.from_bytes(file.read(8), "little"))
    values = json.loads(header)
    values["__metadata__"] = dict(sorted(values["__metadata__"].items()))
    file.seek(8)
    file.write(json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(header)))


def shortened(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - LONGEST_LIST
    return lines if more <= 0 else [*lines[:LONGEST_LIST], f"… and {more} more"]
