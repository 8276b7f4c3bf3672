"""Weights in files: diffusers' folder layout, `config.json` beside `diffusion_pytorch_model.safetensors`.

Nothing in a weight file is ever executed: safetensors holds numbers only, and a `.bin` pickle is read with
`weights_only=True`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from klvae_edu.config import AutoencoderKLConfig

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
PICKLE_NAME = "diffusion_pytorch_model.bin"

# The attention layers' names before diffusers' refactoring: most Stable Diffusion VAEs on the Hub still have them.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION_KEY = re.compile(r"^(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")


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
        ValueError: the weights do not fit the configuration; the message lists every tensor by name and shape.
    """
    from klvae_edu.autoencoder import AutoencoderKL

    config_file = _find(folder_or_hub_id, subfolder, revision, CONFIG_NAME)
    weights_file = _find(folder_or_hub_id, subfolder, revision, WEIGHTS_NAME, PICKLE_NAME)
    config = _read_config(config_file)
    with torch.device("meta"):  # the weights come from the file: no time is spent on random ones
        model = AutoencoderKL(config)
    weights = {_current_name(name): tensor for name, tensor in _read_weights(weights_file).items()}
    check_fit(model.state_dict(), weights, weights_file)
    kinds = {tensor.dtype for tensor in weights.values()}
    if dtype is None and (len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds)):
        names = ", ".join(sorted(map(str, kinds)))
        raise ValueError(f"{weights_file}: expected weights of one floating-point type, got {names}; pass dtype=…")
    model.load_state_dict(weights, strict=True, assign=True)
    return model.to(dtype) if dtype is not None else model


def save_pretrained(model: AutoencoderKL, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and the weights into `folder`, which is made if it is missing.

    Each file is written aside and then moved into place, so that one that was there stays whole until it is replaced.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_aside(folder / WEIGHTS_NAME) as path:
        save_file(weights, path, metadata={"format": "pt"})
    config = {"_class_name": "AutoencoderKL", **model.config.to_dict()}
    with written_aside(folder / CONFIG_NAME) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; on leaving, force it to the disk and move it to `path` in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)  # safetensors makes files that only their owner can read
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise one `ValueError` that lists every missing, unknown and misshapen tensor."""
    problems = [f"missing: {name} {tuple(expected[name].shape)}" for name in expected.keys() - weights.keys()]
    problems += [f"unknown: {name} {tuple(weights[name].shape)}" for name in weights.keys() - expected.keys()]
    problems += [
        f"misshapen: {name}, expected {tuple(expected[name].shape)}, got {tuple(weights[name].shape)}"
        for name in expected.keys() & weights.keys()
        if expected[name].shape != weights[name].shape
    ]
    if problems:
        lines = "\n  ".join(sorted(problems))
        raise ValueError(f"{source}: the weights do not fit the configuration:\n  {lines}")


def _current_name(name: str) -> str:
    """The name that a tensor has today: `…attentions.0.query.weight` is `…attentions.0.to_q.weight`."""
    match = _OLD_ATTENTION_KEY.match(name)
    return f"{match[1]}{_OLD_ATTENTION[match[2]]}{match[3]}" if match else name


def _read_config(path: Path) -> AutoencoderKLConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected the configuration's fields by name, got {values!r}")
    return AutoencoderKLConfig.from_dict(values)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            # Copies: otherwise they are the file itself, and whoever writes to it later changes the model.
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
        raise ValueError(f"{path}: expected a file of tensors and nothing else ({reason})") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: expected tensors by name, got something else ({type(weights).__name__})")
    return weights


def _find(source: str | os.PathLike[str], subfolder: str, revision: str | None, *names: str) -> Path:
    """The first of the files `names` that `source` has, as a local path."""
    folder = Path(source) / subfolder
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
