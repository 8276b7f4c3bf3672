"""Models in diffusers' folder layout (`config.json` and `diffusion_pytorch_model.safetensors`), and on the Hub.

Nothing in a weight file is executed: safetensors contains numbers only, and pickles are read with `weights_only=True`.
Single files are read and written by `klvae_edu.weights.single_file`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.weights.files import SafetensorsFile, atomic_write, is_pickle, read_pickle, write_safetensors
from klvae_edu.weights.keys import to_diffusers

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
PICKLE_NAME = "diffusion_pytorch_model.bin"

BUNDLED = ("kl-f8-mini", "kl-f8-mini-16")  # the folders in `assets` that hold a trained model

# Fields of the configuration that do not change the network.
FREE_FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast")


def read_pretrained(
    folder_or_hub_id: str | os.PathLike[str], subfolder: str = "", revision: str | None = None
) -> tuple[AutoencoderKLConfig, dict[str, Tensor], Path]:
    """Read a model's configuration, its weights under current diffusers' names, and the path of the weight file.

    Args:
        folder_or_hub_id: a folder, or a Hub id such as "stabilityai/sd-vae-ft-mse".
        subfolder: folder of the model inside it, such as "vae" in a pipeline.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: no folder with a model, and not available on the Hub.
        ValueError: a file that cannot be read.
    """
    config_file = _find(folder_or_hub_id, subfolder, revision, CONFIG_NAME)
    weights_file = _find(folder_or_hub_id, subfolder, revision, WEIGHTS_NAME, PICKLE_NAME)
    config = read_config(config_file)
    tensors = _read_weights(weights_file)
    try:
        return config, to_diffusers(tensors), weights_file
    except ValueError as error:
        raise ValueError(f"{weights_file}: {error}") from error


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

    Each file is replaced atomically.

    Raises:
        OSError: the disk is full or not available.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, folder / WEIGHTS_NAME, {"format": "pt"})
    with atomic_write(folder / CONFIG_NAME) as path:
        path.write_text(config_json(config, indent=2) + "\n", encoding="utf-8")


def config_json(config: AutoencoderKLConfig, indent: int | None = None) -> str:
    """Format the configuration as diffusers' `config.json`."""
    return json.dumps({"_class_name": "AutoencoderKL", **config.to_dict()}, indent=indent)


def config_metadata(config: AutoencoderKLConfig) -> dict[str, str]:
    """Return the metadata of a safetensors file that contains the configuration, for files without a `config.json`."""
    return {"format": "pt", "config": config_json(config)}


def config_of_metadata(metadata: Mapping[str, Any], source: str | Path) -> AutoencoderKLConfig | None:
    """Read the configuration from metadata; None if there is none (other programs use the same key)."""
    try:
        values = json.loads(metadata["config"])
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    is_config = isinstance(values, dict) and values.get("_class_name") == "AutoencoderKL"
    return _config(values, source) if is_config else None


def read_config(path: Path) -> AutoencoderKLConfig:
    """Read the configuration in a `config.json`.

    Raises:
        ValueError: not JSON, or not a valid configuration.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected the configuration's fields by name, got {values!r}")
    return _config(values, path)


def _config(values: Mapping[str, Any], source: str | Path) -> AutoencoderKLConfig:
    try:
        return AutoencoderKLConfig.from_dict(values)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a file can contain values of any type
        raise ValueError(f"{source}: {error}") from error


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not is_pickle(path):
        return SafetensorsFile(path)
    weights = read_pickle(path)
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: expected tensors by name, got something else ({type(weights).__name__})")
    return weights


def _find(source: str | os.PathLike[str], subfolder: str, revision: str | None, *names: str) -> Path:
    """Return the local path of the first of the files `names` that `source`, a folder or a Hub id, contains."""
    folder = Path(source) / subfolder
    if Path(source).is_file():
        raise ValueError(f"{source}: expected a folder, got a file; AutoencoderKL.from_single_file reads it")
    if folder.is_dir():
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(f"{folder}: expected {' or '.join(names)}, found {_listing(folder)}")
    if Path(source).is_dir():
        raise FileNotFoundError(f"{source}: expected a folder {subfolder!r} in it, found {_listing(Path(source))}")
    return _download(str(source), subfolder, revision, names)


def _download(hub_id: str, subfolder: str, revision: str | None, names: tuple[str, ...]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    reason: Any = None
    for name in names:
        try:
            return Path(hf_hub_download(hub_id, name, subfolder=subfolder or None, revision=revision))
        except EntryNotFoundError as error:
            reason = error
        except Exception as error:  # no network, no such repository, no access, or not a Hub id
            reason = error
            break
    raise FileNotFoundError(
        f"{hub_id!r} is not a folder here, and the Hugging Face Hub gave no {' or '.join(names)} for it "
        f"({type(reason).__name__}: {str(reason).strip().splitlines()[0]}). "
        "Without a network, pass the folder of a saved model."
    ) from reason


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") if names else "nothing"
