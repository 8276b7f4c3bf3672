"""Models in diffusers' folder layout: write `config.json` and `diffusion_pytorch_model.safetensors`, read the former.

`klvae_edu.weights.folders` finds and reads the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from klvae_edu.config import SCALES, AutoencoderKLConfig
from klvae_edu.weights.checksum import BLANK, CHECKSUM, how_to_accept
from klvae_edu.weights.files import MAX_JSON, atomic_write, read_json, write_safetensors
from klvae_edu.weights.foreign import CLASSES, check_class

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

BUNDLED = ("kl-f8-mini", "kl-f8-mini-16")  # the folders in `assets` that hold a trained model

# Fields of the configuration that do not change the network.
FREE_FIELDS = (*SCALES, "batch_norm_eps", "sample_size", "force_upcast")


def bundled_folder(name: str) -> Path:
    """Return the folder of a model that comes with the package. Its `README.md` is the model card.

    Raises:
        ValueError: unknown name; the message lists the bundled models.
    """
    if name not in BUNDLED:
        raise ValueError(f"name: expected one of the bundled models, {', '.join(BUNDLED)}; got {name!r}")
    return Path(__file__).parents[1] / "assets" / name


def write_pretrained(
    config: AutoencoderKLConfig, weights: Mapping[str, Tensor], folder: str | os.PathLike[str]
) -> None:
    """Write `config.json` and the weights into `folder`, which is created if it is missing.

    Each file is replaced atomically. The weights carry their checksum and the configuration, so that reading finds a
    change of either file.

    Raises:
        OSError: the disk is full or not available.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, folder / WEIGHTS_NAME, config_metadata(config) | {CHECKSUM: BLANK})
    with atomic_write(folder / CONFIG_NAME) as path:
        path.write_text(config_json(config, indent=2) + "\n", encoding="utf-8")


def config_json(config: AutoencoderKLConfig, indent: int | None = None) -> str:
    """Format the configuration as diffusers' `config.json`."""
    return json.dumps({"_class_name": config.diffusers_class, **config.to_dict()}, indent=indent)


def config_metadata(config: AutoencoderKLConfig) -> dict[str, str]:
    """Return the metadata of a safetensors file that contains the configuration, for files without a `config.json`."""
    return {"format": "pt", "config": config_json(config)}


def config_of_metadata(metadata: Mapping[str, Any], source: str | Path) -> AutoencoderKLConfig | None:
    """Read the configuration from metadata; None if there is none (other programs use the same key)."""
    try:
        text = metadata["config"]
        values = json.loads(text) if len(text) <= MAX_JSON else None
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("_class_name") not in CLASSES:
        return None
    return _config(values, source)


def read_config(path: Path) -> AutoencoderKLConfig | None:
    """Read the configuration in a `config.json`; None if it is another program's, with none of the fields.

    Raises:
        ValueError: not JSON, not a valid configuration, or that of another class.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected the configuration's fields by name, got {values!r:.100}")
    if "_class_name" not in values and not values.keys() & {field.name for field in fields(AutoencoderKLConfig)}:
        return None
    return _config(values, path)


def check_config(path: Path, weights: Path, metadata: Mapping[str, Any], given: Collection[str]) -> None:
    """Compare `config.json` with the configuration that its weights carry; those of other programs carry none.

    Args:
        path: the `config.json`.
        weights: the file of the weights.
        metadata: of the weights.
        given: fields that the caller replaces, which are not compared.

    Raises:
        ValueError: a field has changed since the weights were written.
    """
    if CHECKSUM not in metadata:
        return
    written, found = json.loads(metadata["config"]), read_json(path)
    changed = [
        f"{name} was {json.dumps(value)} and is {json.dumps(found[name]) if name in found else 'missing'}"
        for name, value in written.items()
        if name not in given and (name not in found or found[name] != value)
    ]
    if changed:
        raise ValueError(
            f"{path}: changed since the weights beside it were written: {'; '.join(changed)}. Restore it; other values "
            f"can be passed to from_any (scaling_factor=…) and to commands (--scaling-factor). {how_to_accept(weights)}"
        )


def _config(values: Mapping[str, Any], source: str | Path) -> AutoencoderKLConfig:
    check_class(values, source)
    try:
        return AutoencoderKLConfig.from_dict(values)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a file can contain values of any type
        raise ValueError(f"{source}: {error!s:.1000}") from error
