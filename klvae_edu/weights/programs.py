"""Layouts for other programs: the names and the shape that each reads, and the models that it cannot hold.

Tried with random weights of sd-v1, sdxl, sd3 and flux; the versions are in `docs/files.md`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from klvae_edu.config import PRESETS, AutoencoderKLConfig
from klvae_edu.weights.pretrained import FREE_FIELDS

Program = Literal["comfyui", "forge", "a1111", "kohya", "onetrainer", "invokeai", "diffusers"]
PROGRAMS: tuple[Program, ...] = get_args(Program)

_TITLES = {
    "comfyui": "ComfyUI",
    "forge": "Forge",
    "a1111": "AUTOMATIC1111",
    "kohya": "kohya's sd-scripts",
    "onetrainer": "OneTrainer",
    "invokeai": "InvokeAI",
    "diffusers": "diffusers",
}
_FAMILIES = {  # whose networks a program can hold; a missing one holds any
    "comfyui": ("sd-v1", "sdxl", "sd3", "flux"),
    "forge": ("sd-v1", "sdxl", "sd3", "flux"),
    "a1111": ("sd-v1", "sdxl"),
    "kohya": ("sd-v1", "sdxl", "flux"),
    "invokeai": ("sd-v1", "sdxl", "flux"),
}
_DIFFUSERS_PREFIXES = ("", "first_stage_model.", "vae.")
_FOLDERS = ("onetrainer", "diffusers")  # programs that want a folder; the others take a file


class Layout(NamedTuple):
    """Layout of a saved model: one file or a folder, with which names."""

    folder: bool
    names: Literal["compvis", "diffusers"]


def layout_for(program: Program, config: AutoencoderKLConfig, file_name: str) -> Layout:
    """Choose the layout that `program` reads.

    Args:
        config: configuration of the model.
        file_name: name that the file will have: InvokeAI tells the family by it.

    Raises:
        ValueError: the program cannot hold this model, or would take it for another one.
    """
    title, family = _TITLES[program], family_of(config)
    allowed = _FAMILIES.get(program)
    if program == "kohya" and family is None and config.latent_channels == PRESETS["sd-v1"].latent_channels:
        allowed = None  # the folder of any network with the latents of Stable Diffusion
    if allowed is not None and family not in allowed:
        got = f"this is {family}'s" if family else "this one has others"
        raise ValueError(f"{title} reads models with the network of {' or '.join(allowed)} only; {got}")
    if program == "invokeai" and family in ("sd-v1", "sdxl") and ("sdxl" in file_name.lower()) != (family == "sdxl"):
        wanted = 'with "sdxl" in it' if family == "sdxl" else 'without "sdxl" in it'
        raise ValueError(f"{title} tells the family by the file's name: expected one {wanted}, got {file_name}")
    if program in _FOLDERS or (program == "kohya" and family is None):
        return Layout(folder=True, names="diffusers")
    return Layout(folder=False, names="compvis")


def family_of(config: AutoencoderKLConfig) -> str | None:
    """Name the family whose network and scaling `config` has: "sd-v1", "sdxl", "sd3", "flux", or FLUX.2's two.

    The network of two of them is the same; the scaling factor tells them apart.
    """
    for name in ("sd-v1", "sdxl", "sd3", "flux", "flux2", "flux2-small-decoder"):
        known = PRESETS[name]
        if config.patch_size != known.patch_size:  # the scaling of one is impossible with the other's
            continue
        same = replace(config, **{field: getattr(known, field) for field in FREE_FIELDS}) == known
        if same and config.scaling_factor == known.scaling_factor:
            return name
    return None


def read_by_diffusers(config: AutoencoderKLConfig, path: Path, style: str, prefix: str) -> str:
    """Say in words how diffusers 0.42 reads a weight file that this package read, if it does.

    Args:
        config: configuration of the model.
        style: naming scheme, as in `StoredModel`.
        prefix: prefix of the names.
    """
    kind = config.diffusers_class
    if (
        path.with_name("config.json").is_file()
        and path.name.startswith("diffusion_pytorch_model")
        and not prefix
        and "CompVis" not in style
    ):
        return f"reads the folder: {kind}.from_pretrained"
    if config.patch_size is not None:
        return f"does not read it: {kind} has no from_single_file that works; save the model as a folder"
    if prefix in _DIFFUSERS_PREFIXES:
        return "reads the file: AutoencoderKL.from_single_file, with config= for its scaling factor"
    return f"does not read it: it does not know the prefix {prefix}"
