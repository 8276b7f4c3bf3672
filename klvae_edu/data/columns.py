"""Columns of images in the tables of `datasets`: which one is read, and the decoding of its values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch import Tensor

from klvae_edu.data.files import UnreadableImage, printable, read_image
from klvae_edu.data.remarks import RemarkCount, Remarks, warn_once

COLUMN_NAMES = ("image", "img", "picture", "photo")  # preferred among several columns of images, first match wins


def holds_images(parquet: Path) -> bool:
    """Tell whether a Parquet file has a column of bytes or of {"bytes": …}, not only names and captions of images."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]

        schema = pyarrow.parquet.read_schema(parquet)
    except (ImportError, OSError, ValueError):  # `datasets` will say what is missing or damaged
        return True
    leaves = [child.type for field in schema for child in (field, *(field.flatten() if field.type.num_fields else ()))]
    return any(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind) for kind in leaves)


def undecoded(data: Any, source: str, column: str | None) -> tuple[Any, str]:
    """Keep only one column of images of `data`, undecoded, and return it with the column's name.

    Args:
        data: a split of a data set.
        source: name of the data set in messages.
        column: name of the column; None: among the columns of images, or of bytes if there are none, the first of
            `COLUMN_NAMES`, or simply the first; a warning says so if there are several.

    Raises:
        ValueError: the data have no column of images or not the named one, or no rows.
    """
    import datasets

    features = data.features or {}
    listed = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items()) or "none known"
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    images = images or [name for name, feature in features.items() if _is_bytes(feature)]
    if column and (column not in features or not (column in images or _is_bytes(features[column]))):
        raise ValueError(f"{source}: expected {column!r} to be a column of images, got the columns: {listed}")
    if not images:
        raise ValueError(f"{source}: expected a column of images, got the columns: {listed}")
    if isinstance(data, datasets.Dataset) and not len(data):
        raise ValueError(f"{source}: expected images, got an empty data set")
    if not column:
        column = next((name for name in COLUMN_NAMES if name in images), images[0])
        if len(images) > 1:
            message = f"{source}: of the columns {', '.join(images)}, {column} is read; #COLUMN after the name chooses"
            warn_once(message)
    data = data.select_columns([column])
    if isinstance(data, datasets.Dataset) and getattr(features[column], "dtype", "") == "large_binary":
        data = data.cast_column(column, datasets.Value("binary"))  # `datasets` 4.0 cannot go on to images from there
    return data.cast_column(column, datasets.Image(decode=False)), column


def decode(value: Any, where: str, channels: int, remarks: RemarkCount) -> Tensor:
    """Decode a value like `read_value`, and count the remarks on the image instead of returning them."""
    image, name, found = read_value(value, where, channels)
    remarks.add(name, found)
    return image


def read_value(value: Any, where: str, channels: int) -> tuple[Tensor, str, Remarks]:
    """Decode a value {"bytes": …, "path": …} to an image (channels, H, W) in [-1, 1], its name, and remarks on it.

    Raises:
        UnreadableImage: there is no image, or it cannot be read.
    """
    import fsspec  # type: ignore[import-untyped]  # `datasets` needs it too

    if not value or not (value["bytes"] or value["path"]):
        raise UnreadableImage(f"{where}: no image here")
    name = f"{where}, {printable(value['path'])}" if value["path"] else where
    if value["bytes"]:
        image, found = read_image(io.BytesIO(value["bytes"]), name, channels)
    else:
        try:
            with fsspec.open(value["path"], "rb") as file:  # a path on disk, on the Hub, or inside an archive
                image, found = read_image(file, name, channels)
        except OSError as error:
            raise UnreadableImage(f"{name}: cannot be read: {error.strerror or error}") from error
    return image, name, found


def _is_bytes(feature: Any) -> bool:
    """Tell whether values are encoded files: bytes, or {"bytes": …, "path": …} as written by pandas and Spark."""
    if isinstance(feature, dict):
        return _is_bytes(feature.get("bytes"))
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _type_name(feature: Any) -> str:
    return getattr(feature, "dtype", None) or str(feature)
