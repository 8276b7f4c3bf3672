"""Weights in files: diffusers' folder layout, `config.json` beside `diffusion_pytorch_model.safetensors`.

Nothing in a weight file is ever executed: safetensors holds numbers only, and a pickle is read with
`weights_only=True`. Files of other layouts are in `klvae_edu.single_file`, which reads and writes by what is here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.names import to_diffusers, uncompiled
from klvae_edu.weight_files import SafetensorsFile, is_pickle, read_pickle, shortened, write_safetensors
from klvae_edu.weight_files import written_aside as written_aside  # for others, too

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.model_mixin import ModelMixin

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
PICKLE_NAME = "diffusion_pytorch_model.bin"

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # that a model can have

BUNDLED = ("kl-f8-mini",)  # folders in assets/ with a model to use

# The fields of the configuration that the network does not depend on.
FREE_FIELDS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast")


def load_pretrained(
    folder_or_hub_id: str | os.PathLike[str],
    subfolder: str = "",
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> AutoencoderKL:
    """Load a model saved by `save_pretrained`, here or in diffusers.

    Args:
        folder_or_hub_id: a folder, or a Hub id such as "stabilityai/sd-vae-ft-mse" where there is a network or a cache.
        subfolder: where the model lies within it, e.g. "vae" in a whole pipeline.
        revision: branch, tag or commit on the Hub.
        dtype: data type of the weights; None: as they lie in the file.

    Raises:
        FileNotFoundError: neither a folder that holds a model nor reachable on the Hub.
        ValueError: the weights do not fit the configuration (the message lists the tensors by name and shape), are not
            finite, or cannot be read.
    """
    check_dtype(dtype)
    config_file = _find(folder_or_hub_id, subfolder, revision, CONFIG_NAME)
    weights_file = _find(folder_or_hub_id, subfolder, revision, WEIGHTS_NAME, PICKLE_NAME)
    config = read_config(config_file)
    tensors = _read_weights(weights_file)
    try:
        weights = to_diffusers(tensors)
    except ValueError as error:
        raise ValueError(f"{weights_file}: {error}") from error
    return build(config, weights, weights_file, dtype)


def load_bundled(name: str = "kl-f8-mini") -> AutoencoderKL:
    """The trained model that comes with the package, in float32; its files hold float16.

    f = 8 and 4 latent channels as in Stable Diffusion, 2.2 million parameters; `assets/kl-f8-mini/README.md` is its
    model card. Nothing is downloaded.

    Raises:
        ValueError: there is no bundled model of that name.
    """
    if name not in BUNDLED:
        raise ValueError(f"name: expected one of the bundled models, {', '.join(BUNDLED)}; got {name!r}")
    return load_pretrained(Path(__file__).parent / "assets" / name, dtype=torch.float32)


def save_pretrained(model: ModelMixin, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and the weights into `folder`, which is made if it is missing.

    Each file is written aside and then moved into place, so that one that was there stays whole until it is replaced.

    Raises:
        ValueError: the model is no longer the one of its configuration (the message lists the tensors), or a copy for
            inference that `optimize` made.
    """
    folder, weights = Path(folder), weights_to_write(model)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, folder / WEIGHTS_NAME, {"format": "pt"})
    with written_aside(folder / CONFIG_NAME) as path:
        path.write_text(config_json(model.config, indent=2) + "\n", encoding="utf-8")


def build(
    config: AutoencoderKLConfig, weights: Mapping[str, Tensor], source: str | Path, dtype: torch.dtype | None = None
) -> AutoencoderKL:
    """The model of `config` with copies of `weights`, which have current diffusers' names.

    Raises:
        ValueError: `weights` are not the configuration's, not of one floating-point type, or not finite.
    """
    check_dtype(dtype)
    try:
        model = without_weights(config)
    except (RuntimeError, TypeError) as error:  # sizes beyond what PyTorch can count
        raise ValueError(f"{source}: no model can be built of {config} ({str(error).splitlines()[0]})") from error
    check_fit(model.state_dict(), weights, source)
    kinds = {(tensor.dtype, tensor.layout) for tensor in weights.values()}
    if not all(kind.is_floating_point and layout is torch.strided for kind, layout in kinds):
        names = ", ".join(sorted(f"{kind} ({layout})" for kind, layout in kinds))
        raise ValueError(f"{source}: expected weights of a floating-point type, dense (torch.strided), got {names}")
    if dtype is None and (len(kinds) > 1 or not all(kind in DTYPES for kind, _ in kinds)):
        names = ", ".join(sorted(str(kind) for kind, _ in kinds))
        raise ValueError(f"{source}: expected weights of one type a model computes in, got {names}; pass dtype=…")
    # Copies: otherwise they are the file itself, and whoever writes to it later changes the model.
    own = {name: tensor.detach().to(dtype or tensor.dtype, copy=True) for name, tensor in weights.items()}
    check_finite(own, source)
    model.load_state_dict(own, strict=True, assign=True)
    return model


def without_weights(config: AutoencoderKLConfig) -> AutoencoderKL:
    """The model of `config` with shapes only: no time is spent on random weights."""
    from klvae_edu.autoencoder import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(config)


def weights_to_write(model: ModelMixin) -> dict[str, Tensor]:
    """The weights of `model` by the names that they are written under, whether parts of it are compiled or not.

    Raises:
        ValueError: they are not its configuration's: parts of the model were changed, and nobody could load the file.
    """
    if model.inference_only:
        raise ValueError("expected the model itself, got a copy that optimize() made: its weights have another form")
    weights = {uncompiled(name): tensor for name, tensor in model.state_dict().items()}
    check_fit(without_weights(model.config).state_dict(), weights, "the model")
    return weights


def check_dtype(dtype: object) -> None:
    """Raise a `ValueError` for what is neither None nor a type that a model can have."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected a floating-point type ({', '.join(map(str, DTYPES))}), got {dtype!r}")


def config_json(config: AutoencoderKLConfig, indent: int | None = None) -> str:
    """The configuration as diffusers' `config.json` has it."""
    return json.dumps({"_class_name": "AutoencoderKL", **config.to_dict()}, indent=indent)


def own_metadata(model: ModelMixin) -> dict[str, str]:
    """The metadata of a safetensors file that is read without a `config.json` beside it."""
    return {"format": "pt", "config": config_json(model.config)}


def own_config(metadata: Mapping[str, Any], source: str | Path) -> AutoencoderKLConfig | None:
    """The configuration in such metadata; None without one (other programs keep theirs under the same key)."""
    try:
        values = json.loads(metadata["config"])
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    ours = isinstance(values, dict) and values.get("_class_name") == "AutoencoderKL"
    return _config(values, source) if ours else None


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise one `ValueError` that lists every missing, unknown and misshapen tensor (the first 20 of each kind)."""
    problems = {
        "missing": [f"{name} {tuple(expected[name].shape)}" for name in expected.keys() - weights.keys()],
        "unknown": [f"{name} {tuple(weights[name].shape)}" for name in weights.keys() - expected.keys()],
        "misshapen": [
            f"{name}, expected {tuple(expected[name].shape)}, got {tuple(weights[name].shape)}"
            for name in expected.keys() & weights.keys()
            if expected[name].shape != weights[name].shape
        ],
    }
    lines = [f"\n  {kind}: {line}" for kind, found in problems.items() for line in shortened(sorted(found))]
    if lines:
        raise ValueError(f"{source}: the weights do not fit the configuration (in diffusers' names):{''.join(lines)}")


def check_finite(weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise a `ValueError` that names the tensors with NaN or infinite values."""
    bad = sorted(f"{name} ({tensor.dtype})" for name, tensor in weights.items() if not tensor.isfinite().all())
    if bad:
        raise ValueError(f"{source}: expected finite weights, found NaN or infinity in {', '.join(shortened(bad))}")


def read_config(path: Path) -> AutoencoderKLConfig:
    """The configuration in a `config.json`."""
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
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # values of any kind come from files
        raise ValueError(f"{source}: {error}") from error


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not is_pickle(path):
        return SafetensorsFile(path)
    weights = read_pickle(path)
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: expected tensors by name, got something else ({type(weights).__name__})")
    return weights


def _find(source: str | os.PathLike[str], subfolder: str, revision: str | None, *names: str) -> Path:
    """The first of the files `names` that `source` has, as a local path."""
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
        except Exception as error:  # no network, no such repository, no access, not a Hub id: one message serves all
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
