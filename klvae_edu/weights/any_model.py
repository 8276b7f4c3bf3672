"""Read an autoencoder from whatever it is in: a bundled model, a file, a folder, or the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from klvae_edu.config import suggestion
from klvae_edu.weights.contents import INDEX, SUFFIXES
from klvae_edu.weights.folders import read_pretrained
from klvae_edu.weights.pretrained import BUNDLED, bundled_folder
from klvae_edu.weights.single_file import StoredModel, read_single_file

_URL = re.compile(
    r"(?:hf:/|https?://(?:www\.)?(?:huggingface\.co|hf\.co))/([\w.-]+/[\w.-]+)"
    r"(?:/(?:blob|resolve|tree)/([^/]+)(?:/(.+?))?)?/?(\?.*)?"
)
AVERAGED = "ema"  # after "#": the averaged weights


class Source(NamedTuple):
    """Where a model is: a path on this machine, or a Hub id, a revision and a path in it; and the prefix to take."""

    name: str
    inside: str = ""
    revision: str | None = None
    prefix: str | None = None

    @property
    def on_hub(self) -> bool:
        """True if the Hub has to be asked: there is no such path here."""
        return self.name not in BUNDLED and not Path(self.name).expanduser().exists()


def parse_source(source: str | os.PathLike[str]) -> Source:
    """Parse the name of a model: see `read_model`. A path that exists counts as it is, with all its characters.

    Raises:
        ValueError: an empty name, or an address of another site than the Hub.
    """
    text = os.fspath(source)
    if not text:
        raise ValueError("expected the name of a model, got an empty one")
    if text in BUNDLED or Path(text).expanduser().exists():
        return Source(text)
    name, sign, prefix = text.rpartition("#")
    name, chosen = (name, prefix) if sign else (text, None)
    if name in BUNDLED or Path(name).expanduser().exists():
        return Source(name, prefix=chosen)
    if match := _URL.fullmatch(name):
        return Source(match[1], unquote(match[3] or ""), match[2], chosen)
    if "://" in name:
        raise ValueError(f"{name}: expected an address of huggingface.co; download the file and pass its path")
    parts = name.split("/")
    if len(parts) > 2 and parts[0] not in ("", ".", "..", "~"):
        return Source("/".join(parts[:2]), "/".join(parts[2:]), None, chosen)
    return Source(name, prefix=chosen)


def read_model(source: str | os.PathLike[str], ema: bool = False, **fields: Any) -> StoredModel:
    """Read an autoencoder, whatever it is in.

    Args:
        source: the name of a bundled model; a weight file; a folder in diffusers' layout, or a pipeline with one; a Hub
            id such as "stabilityai/sdxl-vae", with the path of a folder or a file in it after another "/"
            ("owner/name/vae"), or the address of its page. "#PREFIX" after it takes the autoencoder under this prefix
            in a file with several, "#ema" the averaged weights.
        ema: as "#ema".
        **fields: single fields of the configuration by name, such as norm_num_groups=8 or scaling_factor=0.13025.

    Raises:
        FileNotFoundError: no such file or folder, and not available on the Hub.
        ValueError: there is no autoencoder of this class, or it cannot be read; an unknown field.
    """
    found = parse_source(source)
    ema, prefix = (True, None) if found.prefix == AVERAGED else (ema, found.prefix)
    if found.name in BUNDLED:
        return read_pretrained(bundled_folder(found.name), ema=ema, prefix=prefix, **fields)
    path = Path(found.name).expanduser()
    if path.is_file():
        return read_single_file(path, ema, prefix, **fields)
    if path.is_dir():
        return read_pretrained(path, ema=ema, prefix=prefix, **fields)
    if is_missing_file(found.name):
        raise FileNotFoundError(f"{found.name}: file not found")
    if _is_file_name(found.inside):
        return read_single_file(_download(found), ema, prefix, **fields)
    if hint := suggestion(found.name, BUNDLED):
        raise FileNotFoundError(f"{found.name}: no such file or folder; {hint}")
    return read_pretrained(found.name, found.inside, found.revision, ema=ema, prefix=prefix, **fields)


def is_missing_file(name: str) -> bool:
    """Tell whether `name` can only be a file on this machine, which is missing."""
    found = parse_source(name)
    return found.on_hub and _is_file_name(found.name)


def _is_file_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) or INDEX.fullmatch(name) is not None


def _download(source: Source) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.name, source.inside, revision=source.revision))
    except Exception as error:  # no network, no such repository or file, no access, or not a Hub id
        raise FileNotFoundError(
            f"{source.name}/{source.inside}: no such file here, and the Hugging Face Hub gave none "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        ) from error
