"""One file with a whole autoencoder in it, or with one among other things, as Stable Diffusion's checkpoints have it.

Read are safetensors and pickles, under CompVis' and diffusers' names, bare or under a prefix. Written are safetensors,
with the configuration in their metadata.
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

# What lies beside the autoencoder in a whole checkpoint tells which diffusion model's latents it makes.
BESIDE = {
    "conditioner.embedders.": "sdxl",
    "model.diffusion_model.joint_blocks.": "sd3",
    "model.diffusion_model.double_blocks.": "flux",
    "double_blocks.": "flux",
    "cond_stage_model.": "sd-v1",
    # After Stable Diffusion's text encoder: its image variations (2.1 unCLIP) have a label_emb, too.
    "model.diffusion_model.label_emb.": "sdxl",
}


def read_single_file(
    path: str | os.PathLike[str], ema: bool = False, **fields: Any
) -> tuple[AutoencoderKLConfig, dict[str, Tensor], str]:
    """Read the autoencoder in one file: configuration, weights under diffusers' names, naming scheme in words.

    The configuration is the file's own, if this package wrote it, or in the `config.json` beside a file that diffusers
    wrote (`diffusion_pytorch_model…`). Otherwise it is inferred from the tensors, and the scaling from what else is in
    the file; where that leaves two possibilities, a warning says which was taken.

    Args:
        path: `.safetensors`, `.sft`, or a pickle: `.ckpt`, `.pt`, `.pth`, `.bin`.
        ema: take the averaged weights (`model_ema.…`) that CompVis' training keeps beside the others.
        **fields: single fields of the configuration by name, such as norm_num_groups=8 or scaling_factor=0.13025.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no autoencoder in it; a damaged file; a pickle that asks for classes (nothing in it is executed); an
            unknown field.
    """
    check_field_names(fields)
    path = Path(path)
    tensors, metadata = _open(path)
    try:
        prefix = find_prefix(tensors)
        weights = to_diffusers(_chosen(tensors, prefix, ema))
        config = config_of_metadata(metadata, "the configuration in its metadata") or _config_beside(path)
        config = replace(config, **fields) if config else _inferred(weights, tensors, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    style = name_style(name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return config, weights, f"{style} under {prefix}" if prefix else style


def write_single_file(
    config: AutoencoderKLConfig, weights: Mapping[str, Tensor], path: str | os.PathLike[str], names: str = "compvis"
) -> None:
    """Write `weights` into one safetensors file, under CompVis' names (which other programs expect) or "diffusers"'.

    Raises:
        ValueError: another suffix than .safetensors, or unknown `names`.
        OSError: the disk is full, or gone.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path}: expected a file name that ends in .safetensors")
    if names not in NAMES:
        raise ValueError(f"names: expected {' or '.join(map(repr, NAMES))}, got {names!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(to_compvis(weights) if names == "compvis" else weights, path, config_metadata(config))


def _open(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The tensors of a file by name, read when they are asked for, and its metadata."""
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, got a folder; AutoencoderKL.from_pretrained reads it")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a file name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not is_pickle(path):
        file = SafetensorsFile(path)
        return file, file.metadata
    found = read_pickle(path)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):  # beside the training's counters
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected tensors by name, got something else ({type(found).__name__})")
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if found and not tensors:
        listed = ", ".join(shortened([f"{name!r:.40} ({type(value).__name__})" for name, value in found.items()]))
        raise ValueError(f"{path}: expected tensors by name, bare or in a dict state_dict; found {listed}")
    return tensors, {}


def _chosen(tensors: Mapping[str, Tensor], prefix: str, ema: bool) -> dict[str, Tensor]:
    """The autoencoder's tensors without the prefix, and without what only its training needs: loss and averages."""
    names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    plain = {name: full for name, full in names.items() if not name.startswith(("loss.", "model_ema."))}
    if codebook := [name for name in plain if name.startswith("quantize.")]:
        raise ValueError(f"a VQ model, whose latents are entries of a codebook ({codebook[0]}); expected a KL one")
    if ema:
        # CompVis' averages have the names without their dots: model_ema.encoderconv_inweight.
        averages = {name.replace(".", ""): full for name, full in names.items() if name.startswith("model_ema.")}
        found = {name: averages.get("model_ema" + name.replace(".", ""), "") for name in plain}
        if missing := [name for name, full in found.items() if not full and tensors[plain[name]].ndim]:
            raise ValueError(
                "ema=True: expected averaged weights (model_ema.…) of the autoencoder, found none for "
                f"{', '.join(shortened(missing))}"
            )
        plain = {name: full for name, full in found.items() if full}
    weights = {name: tensors[full] for name, full in plain.items()}
    return {name: tensor for name, tensor in weights.items() if tensor.ndim}  # counters, such as global_step, are none


def _inferred(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> AutoencoderKLConfig:
    config = infer_config(weights, **fields)
    scale = tensors.get("scale_factor")  # CompVis' LatentDiffusion keeps the one that it measured
    told = {}
    if scale is not None and scale.numel() == 1 and scale.is_floating_point():
        told["scaling_factor"] = scale.item()
    scaling = _scaling(config, tensors, guess="scaling_factor" not in told | dict(fields)) | told
    return replace(config, **{name: value for name, value in scaling.items() if name not in fields})


def _scaling(config: AutoencoderKLConfig, names: Collection[str], guess: bool) -> dict[str, Any]:
    """How latents are scaled, from what lies beside the autoencoder; with a warning, by what is likely."""
    for beginning, preset in BESIDE.items():
        if any(name.startswith(beginning) for name in names):
            of_preset = PRESETS[preset].to_dict()
            same = of_preset["latent_channels"] == config.latent_channels
            return {name: of_preset[name] for name in FREE_FIELDS} if same else {}
    network = replace(config, **{name: getattr(PRESETS["sd-v1"], name) for name in FREE_FIELDS})
    if guess and network == PRESETS["sd-v1"]:
        _warn(
            f"taken as Stable Diffusion 1's or 2's: scaling_factor={network.scaling_factor}. SDXL's autoencoder is the "
            f"same network; for it, pass scaling_factor={PRESETS['sdxl'].scaling_factor}"
        )
        return {"scaling_factor": network.scaling_factor}
    if guess and config.latent_channels == 16 and not config.use_quant_conv:
        known = " or ".join(
            f"scaling_factor={PRESETS[preset].scaling_factor}, shift_factor={PRESETS[preset].shift_factor} ({whose})"
            for preset, whose in (("sd3", "Stable Diffusion 3"), ("flux", "Flux"))
        )
        _warn(f"16 latent channels, whose scaling is not in the file: pass {known}")
    return {}


def _warn(message: str) -> None:
    """Warn about the line that called this package, whichever of its functions it called."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("klvae_edu."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _config_beside(path: Path) -> AutoencoderKLConfig | None:
    """The configuration in the `config.json` beside a file that diffusers wrote."""
    config_file = path.with_name(CONFIG_NAME)
    ours = path.name.startswith("diffusion_pytorch_model.") and config_file.is_file()
    return read_config(config_file) if ours else None
