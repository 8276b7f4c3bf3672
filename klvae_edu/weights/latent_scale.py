"""Guess how a single file's latents are scaled: its weights do not tell, but the models beside them do.

Sources: diffusers' conversion scripts and the configurations that the models' authors published.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from klvae_edu.config import PRESETS, AutoencoderKLConfig
from klvae_edu.weights.pretrained import FREE_FIELDS

# Part of the name of another tensor in the file -> preset with that model's scaling. The first that is found counts.
_PRESET_BY_NAME = {
    "conditioner.embedders.": "sdxl",
    "joint_blocks.": "sd3",
    "double_blocks.": "flux",
    "cap_embedder.": "flux",  # Lumina 2, whose autoencoder is Flux'
    "double_layers.": "sdxl",  # AuraFlow, whose autoencoder is SDXL's
    "mlp_t5.": "sdxl",  # HunyuanDiT, likewise
    "cond_stage_model.": "sd-v1",
    # After cond_stage_model: Stable Diffusion's image variations (2.1 unCLIP) have a label_emb, too.
    "model.diffusion_model.label_emb.": "sdxl",
}
_UPSCALER = ((128, 256, 512), 0.08333)  # widths and scaling factor of Stable Diffusion's x4 upscaler (f = 4)
_PLAYGROUND = 0.5  # of Playground v2.5, whose file also holds means and standard deviations
# Beginnings of the metadata field modelspec.architecture, which several trainers write.
_ARCHITECTURES = {
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-3": "sd3",
    "flux-1": "flux",
    "stable-diffusion-v": "sd-v1",
}


def latent_scale(
    config: AutoencoderKLConfig, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], given: Collection[str]
) -> tuple[dict[str, Any], str | None]:
    """Infer the fields of the configuration about the scale of latents, without those in `given`.

    Returns:
        The fields, and a warning where they are a guess or open; None: they are certain.
    """
    if config.patch_size is not None:  # FLUX.2's statistics are tensors of the autoencoder
        return {}, None
    measured = tensors.get("scale_factor")  # CompVis' LatentDiffusion saves the scaling factor that it measured
    fields, warning = _of_file(config, tensors, metadata)
    if measured is not None and measured.numel() == 1 and measured.is_floating_point():
        fields, warning = fields | {"scaling_factor": measured.item()}, None
    if "scaling_factor" in given:
        warning = None
    return {name: value for name, value in fields.items() if name not in given}, warning


def _of_file(
    config: AutoencoderKLConfig, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, Any], str | None]:
    channels = (config.latent_channels,)
    if all(name in tensors and tensors[name].shape == channels for name in ("edm_mean", "edm_std")):
        mean, std = (tuple(tensors[name].tolist()) for name in ("edm_mean", "edm_std"))
        return _fields("sdxl") | {"scaling_factor": _PLAYGROUND, "latents_mean": mean, "latents_std": std}, None
    preset = next((preset for part, preset in _PRESET_BY_NAME.items() if any(part in name for name in tensors)), None)
    architecture = metadata.get("modelspec.architecture", "")
    preset = preset or next((known for name, known in _ARCHITECTURES.items() if architecture.startswith(name)), None)
    if preset == "sd-v1" and config.block_out_channels == _UPSCALER[0]:
        return _fields(preset) | {"scaling_factor": _UPSCALER[1]}, None
    if preset is not None and PRESETS[preset].latent_channels == config.latent_channels:
        return _fields(preset), None
    if preset is not None:
        return {}, (
            f"the scale of its latents is open: names like those of {preset}'s model, but {config.latent_channels} "
            "latent channels: pass scaling_factor=…"
        )
    network = replace(config, **_fields("sd-v1"))
    if network == PRESETS["sd-v1"]:
        sd, xl = (PRESETS[name].scaling_factor for name in ("sd-v1", "sdxl"))
        return {"scaling_factor": sd}, (
            f"a guess: taken as Stable Diffusion 1's or 2's, scaling_factor={sd}. SDXL's autoencoder has the same "
            f"network; for it, pass scaling_factor={xl}"
        )
    if config.latent_channels == 16 and not config.use_quant_conv:
        choices = " or ".join(
            f"scaling_factor={PRESETS[preset].scaling_factor}, shift_factor={PRESETS[preset].shift_factor} ({model})"
            for preset, model in (("sd3", "Stable Diffusion 3"), ("flux", "Flux"))
        )
        return {}, f"16 latent channels, whose scaling is not in the file: pass {choices}"
    return {}, None


def _fields(preset: str) -> dict[str, Any]:
    return {name: getattr(PRESETS[preset], name) for name in FREE_FIELDS}
