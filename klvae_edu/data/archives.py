"""Images in tar and zip files, WebDataset's shards or plain ones, as splits of `datasets`.

`datasets` reads such files too, but takes the columns of tar files from the first samples: images of another suffix are
an error there, or come as None without a word if they begin later. Of zip files every file is an image to it, a caption
also. Here every image file is a row, and other files are none.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

from klvae_edu.data.files import printable
from klvae_edu.data.folders import counted, suffix_of
from klvae_edu.data.formats import image_suffixes
from klvae_edu.data.remarks import warn_once

_PEEKED = 100  # samples of a stream that are read to list the fields
_NAMED = 8  # fields that an error lists


class Member(NamedTuple):
    """File in an archive.

    Its key is the name up to the first dot, with the folder, and its field is the rest: jpg or seg.png in 0001.jpg and
    0001.seg.png. Neighbours with one key are a sample. The content is that of an image.
    """

    key: str
    field: str
    name: str
    is_image: bool
    content: bytes = b""


def archive_splits(files: Mapping[Any, Sequence[str]], field: str | None, streaming: bool) -> dict[str, Any]:
    """Open archives as splits with one column of encoded images, called after the field or "image".

    They are a WebDataset if a sample has an image and another file, such as a caption; otherwise every image is read.

    Args:
        files: paths or addresses of the archives of each split.
        field: the field to read, such as "jpg"; None: all images, but of a sample of a WebDataset those whose field is
            a mere suffix, if there are any.
        streaming: whether the splits are streamed, or copied to the cache of `datasets` first.

    Raises:
        ValueError: an archive cannot be read, there are no images, or none of this field.
    """
    import datasets

    paths = [*chain(*files.values())]
    peeked = streaming or not all(map(os.path.exists, paths))
    fields, left_out, others, is_web_dataset = Counter[str](), Counter[str](), Counter[str](), False
    for sample in islice(_samples(paths[:1]), _PEEKED) if peeked else _samples(paths):
        images = [member for member in sample if member.is_image]
        is_web_dataset |= 0 < len(images) < len(sample)
        fields.update(member.field for member in images)
        left_out.update(member.field for member in images if member not in _chosen(images, field))
        others.update(suffix_of(member.name) or "file without suffix" for member in sample if not member.is_image)
    if not fields:
        held = f"; it has {counted(others, remedies=False)}" if others else ""
        raise ValueError(f"{paths[0]}: no image files in it{held}")
    if field and field not in fields:
        raise ValueError(f"expected a field of its archives ({_listed(fields)}), got {field!r}")
    if left_out and is_web_dataset and not field:
        where = f"in the first {_PEEKED} samples" if peeked else "in its archives"
        count = counted(left_out, remedies=False)
        warn_once(f"{paths[0]}: of the images {where} {count} are not read; #FIELD chooses another")
    if cut := [path for path in paths if _is_cut(path)]:
        warn_once(f"{len(cut)} tar files have no end mark and may be cut off, such as {cut[0]}")
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return {
        str(split): kind.from_generator(
            _rows,
            features=datasets.Features({field or "image": datasets.Image()}),
            gen_kwargs={
                "archives": [*paths],
                "versions": [file_version(path) for path in paths],
                "field": field,
                "whole": not is_web_dataset,
            },
        )
        for split, paths in files.items()
    }


def _rows(archives: Sequence[str], versions: Sequence[Any], field: str | None, whole: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of archives; `versions` is for the cache of `datasets`, whose keys are the arguments."""
    for sample in _samples(archives, contents=True):
        images = [member for member in sample if member.is_image]
        for member in images if whole and not field else _chosen(images, field):
            yield {field or "image": {"bytes": member.content, "path": printable(member.name)}}


def _chosen(images: list[Member], field: str | None) -> list[Member]:
    """Choose the images of a field; None: those whose field is a mere suffix, or all if there is none."""
    if field:
        return [member for member in images if member.field == field]
    return [member for member in images if "." not in member.field] or images


def _samples(archives: Iterable[str], contents: bool = False) -> Iterator[list[Member]]:
    for path in archives:
        try:
            for _, members in groupby(_members(path, contents), key=lambda member: member.key):
                yield [*members]
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error


def _members(path: str, contents: bool) -> Iterator[Member]:
    """Yield the files in an archive, without hidden ones, in its order, and read the `contents` of images."""
    import fsspec  # type: ignore[import-untyped]  # `datasets` needs it too

    suffixes = image_suffixes()

    def member(full_name: str) -> Member | None:
        folder, name = os.path.split(full_name)
        key, _, field = name.partition(".")
        is_image = suffix_of(name) in suffixes
        return Member(f"{folder}/{key}", field.lower(), full_name, is_image) if key else None

    with fsspec.open(path, "rb") as file:
        if path.lower().endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if found := member(name):
                        yield found._replace(content=archive.read(name)) if contents and found.is_image else found
            return
        with tarfile.open(fileobj=file, mode="r:*" if os.path.exists(path) else "r|*") as tar:
            for entry in tar:
                if entry.isfile() and (found := member(entry.name)):
                    opened = tar.extractfile(entry) if contents and found.is_image else None
                    yield found._replace(content=opened.read()) if opened else found


def _listed(fields: Counter[str]) -> str:
    """List the most frequent fields: jpg, mask.png and 3 others."""
    named = [name for name, _ in fields.most_common(_NAMED)]
    return ", ".join(named) + (f" and {len(fields) - _NAMED} others" if len(fields) > _NAMED else "")


def _is_cut(path: str) -> bool:
    """Tell whether a local uncompressed tar file does not end in two blocks of zeros; `tarfile` does not miss them."""
    if not path.endswith(".tar") or not os.path.exists(path):
        return False
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2 * tarfile.BLOCKSIZE))
        return any(file.read())


def file_version(path: str) -> tuple[int, int] | None:
    """Return what changes when a local file is written anew."""
    if not os.path.exists(path):
        return None
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
