"""Read and write an autoencoder in a single file.

Safetensors and pickles are read, with CompVis' or diffusers' names, with or without a prefix. The file may contain
other models, too, as checkpoints of Stable Diffusion do. Safetensors are written, with the configuration in the
metadata.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from klvae_edu.config import PRESETS, AutoencoderKLConfig, check_field_names
from klvae_edu.weights.checks import shortened
from klvae_edu.weights.files import SAFETENSORS, SafetensorsFile, is_pickle, read_pickle, write_safetensors
from klvae_edu.weights.keys import find_prefix, infer_config, name_style, to_compvis, to_diffusers
from klvae_edu.weights.pretrained import CONFIG_NAME, FREE_FIELDS, config_metadata, config_of_metadata, read_config

NAMES = ("compvis", "diffusers")
SUFFIXES = (*SAFETENSORS, ".ckpt", ".pt", ".pth", ".bin")

# Prefixes of other tensors in a checkpoint -> preset with the scaling of the checkpoint's diffusion model.
PRESET_BY_PREFIX = {
    "conditioner.embedders.": "sdxl",
    "model.diffusion_model.joint_blocks.": "sd3",
    "model.diffusion_model.double_blocks.": "flux",
    "double_blocks.": "flux",
    "cond_stage_model.": "sd-v1",
    # After cond_stage_model: Stable Diffusion's image variations (2.1 unCLIP) have a label_emb, too.
    "model.diffusion_model.label_emb.": "sdxl",
}


def read_single_file(
    path: str | os.PathLike[str], ema: bool = False, **fields: Any
) -> tuple[AutoencoderKLConfig, dict[str, Tensor], str]:
    """Read an autoencoder from one file: its configuration, weights with diffusers' names, naming scheme in words.

    The configuration comes from the metadata, if this package wrote the file, or from the `config.json` in the folder
    of a file that diffusers wrote (`diffusion_pytorch_model…`). Otherwise it is inferred from the tensors, and the
    scaling from the other models in the file. If several scalings are possible, a warning says which one was chosen.

    Args:
        path: `.safetensors`, `.sft`, or a pickle: `.ckpt`, `.pt`, `.pth`, `.bin`.
        ema: read the averaged weights (`model_ema.…`) of a checkpoint of CompVis' training.
        **fields: single fields of the configuration by name, such as norm_num_groups=8 or scaling_factor=0.13025.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file contains no autoencoder, is damaged, or is a pickle that asks for classes (nothing in it is
            executed); an unknown field.
    """
    check_field_names(fields)
    path = Path(path)
    tensors, metadata = _open(path)
    try:
        prefix = find_prefix(tensors)
        weights = to_diffusers(_autoencoder_tensors(tensors, prefix, ema))
        config = config_of_metadata(metadata, "the configuration in its metadata") or _diffusers_config(path)
        config = replace(config, **fields) if config else _inferred_config(weights, tensors, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    style = name_style(name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return config, weights, f"{style} under {prefix}" if prefix else style


def write_single_file(
    config: AutoencoderKLConfig, weights: Mapping[str, Tensor], path: str | os.PathLike[str], names: str = "compvis"
) -> None:
    """Write `weights` into one safetensors file, with CompVis' names (which other programs expect) or diffusers'.

    Args:
        weights: tensors under diffusers' names.
        names: "compvis" or "diffusers".

    Raises:
        ValueError: a suffix other than .safetensors, or unknown `names`.
        OSError: the disk is full or not available.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path}: expected a file name that ends in .safetensors")
    if names not in NAMES:
        raise ValueError(f"names: expected {' or '.join(map(repr, NAMES))}, got {names!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(to_compvis(weights) if names == "compvis" else weights, path, config_metadata(config))


def _open(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Open a file: return its tensors by name, read when they are accessed if possible, and its metadata."""
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, got a folder; AutoencoderKL.from_pretrained reads it")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not is_pickle(path):
        file = SafetensorsFile(path)
        return file, file.metadata
    content = read_pickle(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # a checkpoint of training
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected tensors by name, got something else ({type(content).__name__})")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if content and not tensors:
        listed = ", ".join(shortened([f"{name!r:.40} ({type(value).__name__})" for name, value in content.items()]))
        raise ValueError(f"{path}: expected tensors by name, bare or in a dict state_dict; found {listed}")
    return tensors, {}


def _autoencoder_tensors(tensors: Mapping[str, Tensor], prefix: str, ema: bool) -> dict[str, Tensor]:
    """Select the autoencoder's tensors, without the prefix and without the tensors of training: loss and averages."""
    names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    plain = {name: full for name, full in names.items() if not name.startswith(("loss.", "model_ema."))}
    if codebook := [name for name in plain if name.startswith("quantize.")]:
        raise ValueError(f"a VQ model, whose latents are entries of a codebook ({codebook[0]}); expected a KL model")
    if ema:
        # CompVis removes the dots from the names of averages: model_ema.encoderconv_inweight.
        averages = {name.replace(".", ""): full for name, full in names.items() if name.startswith("model_ema.")}
        found = {name: averages.get("model_ema" + name.replace(".", ""), "") for name in plain}
        if missing := [name for name, full in found.items() if not full and tensors[plain[name]].ndim]:
            raise ValueError(
                "ema=True: expected averaged weights (model_ema.…) of the autoencoder, found none for "
                f"{', '.join(shortened(missing))}"
            )
        plain = {name: full for name, full in found.items() if full}
    weights = {name: tensors[full] for name, full in plain.items()}
    return {name: tensor for name, tensor in weights.items() if tensor.ndim}  # without counters such as global_step


def _inferred_config(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> AutoencoderKLConfig:
    """Infer the configuration from the autoencoder's `weights` and from all `tensors` of the file."""
    config = infer_config(weights, **fields)
    scale = tensors.get("scale_factor")  # CompVis' LatentDiffusion saves the scaling factor that it measured
    measured = {}
    if scale is not None and scale.numel() == 1 and scale.is_floating_point():
        measured["scaling_factor"] = scale.item()
    scaling = _scaling(config, tensors, guess="scaling_factor" not in measured | dict(fields)) | measured
    return replace(config, **{name: value for name, value in scaling.items() if name not in fields})


def _scaling(config: AutoencoderKLConfig, names: Collection[str], guess: bool) -> dict[str, Any]:
    """Infer how latents are scaled from other tensors in the file, or, with `guess`, choose and warn."""
    for beginning, preset in PRESET_BY_PREFIX.items():
        if any(name.startswith(beginning) for name in names):
            known = PRESETS[preset]
            same = known.latent_channels == config.latent_channels
            return {name: getattr(known, name) for name in FREE_FIELDS} if same else {}
    network = replace(config, **{name: getattr(PRESETS["sd-v1"], name) for name in FREE_FIELDS})
    if guess and network == PRESETS["sd-v1"]:
        _warn(
            f"taken as Stable Diffusion 1's or 2's: scaling_factor={network.scaling_factor}. SDXL's autoencoder has "
            f"the same network; for it, pass scaling_factor={PRESETS['sdxl'].scaling_factor}"
        )
        return {"scaling_factor": network.scaling_factor}
    if guess and config.latent_channels == 16 and not config.use_quant_conv:
        choices = " or ".join(
            f"scaling_factor={PRESETS[preset].scaling_factor}, shift_factor={PRESETS[preset].shift_factor} ({model})"
            for preset, model in (("sd3", "Stable Diffusion 3"), ("flux", "Flux"))
        )
        _warn(f"16 latent channels, whose scaling is not in the file: pass {choices}")
    return {}


def _warn(message: str) -> None:
    """Warn, and attribute the warning to the line outside of this package that called it."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("klvae_edu."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _diffusers_config(path: Path) -> AutoencoderKLConfig | None:
    """Read the `config.json` in the folder of a file that diffusers wrote; None for other files."""
    config_file = path.with_name(CONFIG_NAME)
    from_diffusers = path.name.startswith("diffusion_pytorch_model.") and config_file.is_file()
    return read_config(config_file) if from_diffusers else None
