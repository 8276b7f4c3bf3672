"""Types of the arguments that commands share, and the error for images that do not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from klvae_edu.environment import out_of_memory


def not_empty(text: str) -> str:
    """Return `text`. Raises `ValueError` if it is empty."""
    if not text:
        raise ValueError("expected a name, got an empty one")
    return text


def home_path(text: str) -> Path:
    """Return the path of this name, with ~ as the home folder. Raises `ValueError` if the name is empty."""
    return Path(os.path.expanduser(not_empty(text)))


def _type_of(kind: type, read: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH" if kind is Path else "STR",
        instance_from_str=lambda arguments: read(arguments[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


ModelName = Annotated[str, _type_of(str, not_empty)]
HomePath = Annotated[Path, _type_of(Path, home_path)]


@contextmanager
def memory_for(size: int) -> Iterator[None]:
    """Turn a failed allocation into a `ValueError` that names the `size` of the images, in pixels."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"size: not enough memory for images of {size}x{size} pixels; choose a smaller --size"
        ) from error
