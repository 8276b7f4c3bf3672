"""Tensors of a file that `torch.save` wrote. Their claims are checked before memory is taken for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klvae_edu.weights.pickles import Placeholder

MAX_VIEWS = 4  # the tensors may view the same storages: times the file's size that they may take in all
_SLACK = 1 << 20  # bytes; a small file may hold a tensor that repeats one number
_MAX_DIMENSIONS = 16
_MAX_NUMBER = 2**63
_ALIGNMENT = 8  # bytes; a storage elsewhere is copied

_STORAGES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_DTYPES = {  # class of a storage, or data type -> data type
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
}


class NotReadError(ValueError):
    """The file is whole, but of a kind that is not read. The message is the end of a sentence: what was found."""


class Storage(NamedTuple):
    """Storage as a pickle asks for it: its key, the type that it was saved with, and its size in bytes."""

    key: str
    dtype: torch.dtype
    size: int


class StoredTensors:
    """Tensors of a file: noted while its pickle is read, and filled afterwards, when the places of the bytes are known.

    Attributes:
        known: names in a pickle -> data types, and functions that make tensors and dicts.
        storages: the storages that the pickle asks for, by key.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        self._left = MAX_VIEWS * self._size + _SLACK
        self._views: list[tuple[Tensor, Storage, int, tuple[int, ...], tuple[int, ...]]] = []
        self.storages: dict[str, Storage] = {}
        self.known: dict[str, Any] = _DTYPES | {
            "collections.OrderedDict": _ordered_dict,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._tensor._rebuild_from_type_v2": _of_type,
        }

    def storage(self, identifier: Any) -> Any:
        """Note the storage that a persistent identifier asks for; other identifiers, as of source code, are left."""
        match identifier:
            case ("storage", torch.dtype() as dtype, str() as key, _, int() as numel, *view) if not any(view):
                storage = Storage(key, dtype, numel * dtype.itemsize)
                self.storages.setdefault(key, storage)
                return storage
        return Placeholder()

    def fill(self, locate: Callable[[str], tuple[int, int]]) -> None:
        """Fill the tensors with views of the file.

        Args:
            locate: returns the first byte of the storage with a key, and the number of bytes that it has.
        """
        parts: dict[str, torch.UntypedStorage] = {}
        whole = torch.UntypedStorage.from_file(os.fspath(self._path), False, self._size)
        for tensor, storage, offset, size, stride in self._views:
            start, length = locate(storage.key)
            if not (0 <= storage.size <= length and start + length <= self._size):
                raise ValueError(f"storage {storage.key:.40} is not whole")
            if storage.key not in parts:
                part = whole[start : start + length]
                parts[storage.key] = part.clone() if start % _ALIGNMENT else part
            tensor.set_(parts[storage.key], offset, size, stride)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None, hooks: Any = None, bits: Any = None
    ) -> Any:
        dtype = storage.dtype if isinstance(storage, Storage) else None
        return self._typed_tensor(storage, offset, size, stride, grad, hooks, dtype, bits)

    def _typed_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, bits: Any = None
    ) -> Any:
        """Note a tensor, and return it empty. One of an unknown type, or negated or conjugated by `bits`, is left."""
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype) or bits:
            return Placeholder()
        numbers = (offset, *size, *stride) if len(size) == len(stride) <= _MAX_DIMENSIONS else (-1,)
        if not all(isinstance(number, int) and 0 <= number < _MAX_NUMBER for number in numbers):
            raise ValueError("a tensor of an impossible shape")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if prod(size) and (last + 1) * dtype.itemsize > storage.size:
            raise ValueError("a tensor beyond its storage")
        self._left -= prod(size) * dtype.itemsize
        if self._left < 0:
            raise NotReadError(f"one whose tensors would take more than {MAX_VIEWS} times its size")
        tensor = torch.empty(0, dtype=dtype)
        self._views.append((tensor, storage, offset, tuple(size), tuple(stride)))
        return tensor


def _ordered_dict(*_: Any) -> dict[Any, Any]:
    return {}  # its items follow


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_type(make: Any, _: Any, arguments: Any, __: Any) -> Any:
    """Make a tensor of a class of its own, or with attributes, as the plain tensor."""
    return make(*arguments) if callable(make) else Placeholder()


def _sparse_tensor(*_: Any) -> Any:
    raise NotReadError("a sparse tensor; expected dense ones")
