"""Open a weight file as one flat mapping of names to tensors, whatever nests or shards them.

A trainer's file is a dict of dicts: `{"model": {"encoder": {"conv_in.weight": …}}}` becomes
`model.encoder.conv_in.weight`. Of a large safetensors file only the tensors that are accessed are read.
"""

from __future__ import annotations

import os
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from klvae_edu.weights.checks import shortened
from klvae_edu.weights.checksum import check_safetensors
from klvae_edu.weights.files import SAFETENSORS, SafetensorsFile, is_pickle, read_json
from klvae_edu.weights.pickles import MAX_STEPS
from klvae_edu.weights.torch_files import read_torch_file

SUFFIXES = (*SAFETENSORS, ".ckpt", ".pt", ".pth", ".bin")
INDEX = re.compile(r".+\.index(\.[\w-]+)?\.json")  # the list of shards; a variant such as fp16 comes before .json
# Dicts whose names are left out of the tensors' names: of most trainers, and of a whole module that was saved.
_UNNAMED = ("state_dict", "_modules", "_parameters", "_buffers")
_MAX_DEPTH = 24  # of nested dicts
_MAX_NAME = 500  # characters
_SAFE_WAYS = (
    "Ask its author for a safetensors file, or convert it in a container without network and files of yours, which is "
    "thrown away afterwards"
)
_LFS = b"version https://git-lfs"  # begins the file that stands for a large one


class Contents(NamedTuple):
    """Tensors of a file by name, its metadata, and its format in words."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    format: str
    lists: Sequence[str] = ()  # names of lists of tensors, which are not read
    foreign: Sequence[str] = ()  # names of the classes and functions whose objects are not read


def open_contents(path: Path) -> Contents:
    """Open a safetensors file, a pickle of tensors, or the index of a sharded model.

    Raises:
        FileNotFoundError: no such file, or a shard is missing.
        ValueError: another kind of file, a damaged one, or a pickle without tensors by name.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, got a folder; AutoencoderKL.from_pretrained reads it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file, got a device or a pipe")
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
        if long := next((name for name in file_of_tensors if len(name) > _MAX_NAME), None):
            raise ValueError(f"{path}: a name of {len(long):,} characters")
        check_safetensors(path, file_of_tensors.metadata)
        return Contents(file_of_tensors, file_of_tensors.metadata, "safetensors")
    content, foreign = read_torch_file(path)
    tensors, lists = _by_name(content, path, foreign)
    return Contents(tensors, {}, "a pickle", lists, foreign)


def names_of(foreign: Sequence[str]) -> str:
    """Count and list the classes and functions that a pickle asks for."""
    listed = ", ".join(shortened([name[:80] if name.isprintable() else ascii(name[:80]) for name in foreign]))
    return f"objects of {len(foreign)} classes ({listed})" if len(foreign) > 1 else f"objects of the class {listed}"


def _open_shards(index: Path) -> Contents:
    try:
        names = read_json(index)["weight_map"]
        shards = sorted({str(shard) for shard in names.values()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index}: expected the list of a model's shards (weight_map: {error!r:.200})") from error
    if outside := [shard for shard in shards if os.path.basename(shard) != shard or INDEX.fullmatch(shard)]:
        raise ValueError(f"{index}: expected names of weight files in the same folder, got {outside[0]!r:.80}")
    if missing := [shard for shard in shards if not index.with_name(shard).is_file()]:
        raise FileNotFoundError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(shortened(missing))}"
        )
    parts = [open_contents(index.with_name(shard)) for shard in shards]
    tensors = ChainMap(*(dict(part.tensors) for part in parts))
    return Contents(tensors, {}, f"{len(shards)} shards", foreign=[name for part in parts for name in part.foreign])


def _by_name(content: Any, path: Path, foreign: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Collect the tensors of a pickle, and the names of its lists of tensors."""
    more = f"; {names_of(foreign)} are left out. {_SAFE_WAYS}" if foreign else ""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected tensors by name, got something else ({type(content).__name__}){more}")
    tensors, lists = dict[str, Tensor](), list[str]()
    for name, value in _flat(content, path, count()):
        if isinstance(value, list):
            lists.append(f"{name} ({len(value)} tensors)")
        elif name in tensors:
            raise ValueError(f"{path}: two tensors have the name {name}")
        else:
            tensors[name] = value
    if not tensors and (foreign or any(value or not isinstance(value, Mapping) for value in content.values())):
        found = [f"{name!r:.40} ({type(value).__name__})" for name, value in content.items()]
        raise ValueError(
            f"{path}: expected tensors by name, bare or in dicts such as state_dict; found "
            f"{', '.join(shortened(found)) or 'none'}{more}"
        )
    return tensors, lists


def _flat(
    content: Mapping[Any, Any], path: Path, steps: Iterator[int], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield tensors and lists of tensors under text keys, with the keys of all levels joined by dots."""
    for key, value in content.items():
        if next(steps) > MAX_STEPS:  # the same dicts, again and again
            raise ValueError(f"{path}: more than {MAX_STEPS:,} names")
        if not isinstance(key, str) or not isinstance(value, (Tensor, Mapping, list)):
            continue
        name = prefix + key
        if len(name) > _MAX_NAME:
            raise ValueError(f"{path}: a name of {len(name):,} characters")
        if isinstance(value, Mapping):
            if depth < _MAX_DEPTH:
                yield from _flat(value, path, steps, prefix if key in _UNNAMED else f"{name}.", depth + 1)
        elif isinstance(value, Tensor) or (value and isinstance(value[0], Tensor)):
            yield name, value
