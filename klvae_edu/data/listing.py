"""Listings of the local files that a data source reads, to say what changed in it between two runs.

Of a file two hashes of eight bytes are kept: of its name, and of its size and time. Data sets on the Hub are not
listed: their cached files do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from klvae_edu.data.archives import file_version
from klvae_edu.data.crops import name_bytes, stable_hash
from klvae_edu.data.files import printable
from klvae_edu.data.folders import data_files, image_names
from klvae_edu.data.hub import parse_source
from klvae_edu.data.sources import BUILT_IN, is_data_set, joined_sources

_NAMED = 3  # files that a message names


class Listing(NamedTuple):
    """Hashes of names and versions of files, int64 of shape (files,), and the names, which are not stored."""

    hashes: Tensor
    versions: Tensor
    names: Sequence[str] = ()

    def to_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint stores."""
        return {"hashes": self.hashes, "versions": self.versions}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Tensor]) -> Listing:
        """Return the listing that `to_dict` stored."""
        return cls(stored["hashes"], stored["versions"])

    def changes_to(self, now: Listing) -> str:
        """Say what was added, removed and changed from this listing to `now`: "1 added (a.png), 2 removed"; or ""."""
        old = dict(zip(self.hashes.tolist(), self.versions.tolist(), strict=True))
        new = dict(zip(now.hashes.tolist(), now.versions.tolist(), strict=True))
        names = dict(zip(new, now.names, strict=True))
        added = [names[file] for file in new if file not in old]
        changed = [names[file] for file in new if file in old and old[file] != new[file]]
        removed = len(old.keys() - new.keys())
        found = {"added": added, "changed": changed}
        parts = [f"{len(files):,} {kind} ({_listed(files)})" for kind, files in found.items() if files]
        return ", ".join([*parts, f"{removed:,} removed"] if removed else parts)


def list_files(source: str) -> Listing:
    """List the local files that `image_dataset(source, …)` reads; none for procedural images and the Hub."""
    names, versions = [], []
    for name in joined_sources(source):
        root = parse_source(name).folder
        for file in files_of(name):
            names.append(f"{name}/{file}" if file else name)
            versions.append(repr(file_version(str(root / file))).encode())
    return Listing(_hashes(map(name_bytes, names)), _hashes(versions), [*map(printable, names)])


def files_of(source: str) -> list[str]:
    """List the local files of one source, relative to its folder; "" stands for a source that is a file itself."""
    root = parse_source(source).folder
    if source in BUILT_IN or not root.exists():
        return []
    if root.is_file():
        return [""]
    return data_files(root) if is_data_set(source) else image_names(root)


def _hashes(contents: Iterable[bytes]) -> Tensor:
    return torch.tensor([stable_hash(content) - 2**63 for content in contents], dtype=torch.int64)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
