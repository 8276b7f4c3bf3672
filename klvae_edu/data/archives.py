"""Images in tar and zip files, WebDataset's shards or plain ones, as splits of `datasets`.

`datasets` reads such files too, but takes the columns of tar files from the first samples: images of another suffix are
an error there, or come as None without a word if they begin later. Of zip files every file is an image to it, a caption
also. Here every image file is a row, and other files are none.
"""

from __future__ import annotations

import os
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

from klvae_edu.data.files import printable
from klvae_edu.data.formats import image_suffixes

_PEEKED = 100  # samples that are read to list the fields


class Member(NamedTuple):
    """Image file in an archive.

    Its key is the name up to the first dot, with the folder, and its field is the rest: jpg or seg.png in 0001.jpg and
    0001.seg.png. Neighbours with one key are a sample.
    """

    key: str
    field: str
    name: str
    content: bytes


def archive_splits(files: Mapping[Any, Sequence[str]], field: str | None, streaming: bool) -> dict[str, Any]:
    """Open archives as splits with one column of encoded images, called after the field or "image".

    Args:
        files: paths or addresses of the archives of each split.
        field: the field to read, such as "jpg"; None: of every sample the images whose field is a mere suffix, or all.
        streaming: whether the splits are streamed, or copied to the cache of `datasets` first.

    Raises:
        ValueError: an archive cannot be read, has no images, or none of this field.
    """
    import datasets

    first = next(iter(files.values()))[0]
    samples = [*islice(_samples([first]), _PEEKED)]
    fields = dict.fromkeys(member.field for member in chain(*samples))
    if not fields:
        raise ValueError(f"{first}: no image files in it")
    if field and field not in fields:
        raise ValueError(f"expected a field of its archives ({', '.join(fields)}), got {field!r}")
    left_out = fields.keys() - {member.field for sample in samples for member in _chosen(sample, field)}
    if left_out and not field:
        names = ", ".join(sorted(left_out))
        warnings.warn(f"of the images in its archives {names} are not read; #FIELD chooses another", stacklevel=2)
    if cut := [path for path in chain(*files.values()) if _is_cut(path)]:
        warnings.warn(f"{len(cut)} tar files have no end mark and may be cut off, such as {cut[0]}", stacklevel=2)
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return {
        str(split): kind.from_generator(
            _rows,
            features=datasets.Features({field or "image": datasets.Image()}),
            gen_kwargs={"archives": [*paths], "versions": [_version(path) for path in paths], "field": field},
        )
        for split, paths in files.items()
    }


def _rows(archives: Sequence[str], versions: Sequence[Any], field: str | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of archives; `versions` is for the cache of `datasets`, whose keys are the arguments."""
    for sample in _samples(archives):
        for member in _chosen(sample, field):
            yield {field or "image": {"bytes": member.content, "path": printable(member.name)}}


def _chosen(sample: list[Member], field: str | None) -> list[Member]:
    """Choose the images of a field; None: those whose field is a mere suffix, or all if there is none."""
    if field:
        return [member for member in sample if member.field == field]
    suffixes = image_suffixes()
    return [member for member in sample if f".{member.field}" in suffixes] or sample


def _samples(archives: Iterable[str]) -> Iterator[list[Member]]:
    for path in archives:
        try:
            for _, members in groupby(_members(path), key=lambda member: member.key):
                yield [*members]
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error


def _members(path: str) -> Iterator[Member]:
    """Yield the image files in an archive, without hidden ones, in the order of the archive."""
    import fsspec  # type: ignore[import-untyped]  # `datasets` needs it too

    suffixes = image_suffixes()

    def member(full_name: str) -> tuple[str, str] | None:
        folder, name = os.path.split(full_name)
        key, _, field = name.partition(".")
        is_image = key and os.path.splitext(name)[1].lower() in suffixes
        return (f"{folder}/{key}", field.lower()) if is_image else None

    with fsspec.open(path, "rb") as file:
        if path.lower().endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if found := member(name):
                        yield Member(*found, name, archive.read(name))
            return
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for entry in tar:
                if (found := member(entry.name)) and entry.isfile() and (content := tar.extractfile(entry)):
                    yield Member(*found, entry.name, content.read())


def _is_cut(path: str) -> bool:
    """Tell whether a local uncompressed tar file does not end in two blocks of zeros; `tarfile` does not miss them."""
    if not path.endswith(".tar") or not os.path.exists(path):
        return False
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2 * tarfile.BLOCKSIZE))
        return any(file.read())


def _version(path: str) -> tuple[int, int] | None:
    """Return what changes when a local file is written anew."""
    if not os.path.exists(path):
        return None
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
