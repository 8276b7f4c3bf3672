"""Open a weight file as one flat mapping of names to tensors, whatever nests or shards them.

A trainer's file is a dict of dicts: `{"model": {"encoder": {"conv_in.weight": …}}}` becomes
`model.encoder.conv_in.weight`. Of a large safetensors file only the tensors that are accessed are read.
"""

from __future__ import annotations

import json
import os
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from klvae_edu.weights.checks import shortened
from klvae_edu.weights.checksum import check_safetensors
from klvae_edu.weights.files import SAFETENSORS, SafetensorsFile, is_pickle, read_pickle

SUFFIXES = (*SAFETENSORS, ".ckpt", ".pt", ".pth", ".bin")
INDEX = re.compile(r".+\.index(\.[\w-]+)?\.json")  # the list of shards; a variant such as fp16 comes before .json
_USUAL = "state_dict"  # holds the weights of most trainers; its name is left out of the tensors' names
_MAX_DEPTH = 8  # of nested dicts
_LFS = b"version https://git-lfs"  # begins the file that stands for a large one


class Contents(NamedTuple):
    """Tensors of a file by name, its metadata, and its format in words."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    format: str
    lists: Sequence[str] = ()  # names of lists of tensors, which are not read


def open_contents(path: Path) -> Contents:
    """Open a safetensors file, a pickle of tensors, or the index of a sharded model.

    Raises:
        FileNotFoundError: no such file, or a shard is missing.
        ValueError: another kind of file, a damaged one, a pickle that asks for classes (nothing in it is executed), or
            one without tensors by name.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, got a folder; AutoencoderKL.from_pretrained reads it")
    if INDEX.fullmatch(path.name):
        return _open_shards(path)
    with open(path, "rb") as file:
        head = file.read(len(_LFS))
    if head == _LFS:
        raise ValueError(f"{path}: a pointer of Git LFS instead of the file itself; fetch it with git lfs pull")
    if head.startswith(b"GGUF"):
        raise ValueError(f"{path}: a GGUF file, whose weights are quantised; expected the weights before quantisation")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not is_pickle(path):
        file_of_tensors = SafetensorsFile(path)
        check_safetensors(path, file_of_tensors.metadata)
        return Contents(file_of_tensors, file_of_tensors.metadata, "safetensors")
    content = read_pickle(path)
    return Contents(_by_name(content, path), {}, "a pickle", [*_lists(content)])


def _open_shards(index: Path) -> Contents:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(shard) for shard in names.values()})
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{index}: expected the list of a model's shards (weight_map: {error!r})") from error
    if outside := [shard for shard in shards if os.path.basename(shard) != shard or INDEX.fullmatch(shard)]:
        raise ValueError(f"{index}: expected names of weight files in the same folder, got {outside[0]!r}")
    if missing := [shard for shard in shards if not index.with_name(shard).is_file()]:
        raise FileNotFoundError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(shortened(missing))}"
        )
    parts = [dict(open_contents(index.with_name(shard)).tensors) for shard in shards]
    return Contents(ChainMap(*parts), {}, f"{len(shards)} shards")


def _by_name(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected tensors by name, got something else ({type(content).__name__})")
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(content):
        if name in tensors:
            raise ValueError(f"{path}: two tensors have the name {name}")
        tensors[name] = tensor
    if not tensors and any(value or not isinstance(value, Mapping) for value in content.values()):
        listed = ", ".join(shortened([f"{name!r:.40} ({type(value).__name__})" for name, value in content.items()]))
        raise ValueError(f"{path}: expected tensors by name, bare or in dicts such as state_dict; found {listed}")
    return tensors


def _flat(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors under text keys, with the keys of all levels joined by dots."""
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _flat(value, prefix if name == _USUAL else f"{prefix}{name}.", depth + 1)


def _lists(content: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the names of lists that begin with a tensor, such as the averages of some trainers."""
    for name, value in content.items():
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _lists(value, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            yield f"{prefix}{name} ({len(value)} tensors)"
