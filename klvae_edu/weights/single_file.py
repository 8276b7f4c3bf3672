"""Read and write an autoencoder in a single file.

Safetensors and pickles are read, with CompVis' or diffusers' names, under any prefix and any nesting. The file may
contain other models, too, as checkpoints of Stable Diffusion do. Safetensors are written, with the configuration in the
metadata.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klvae_edu.config import AutoencoderKLConfig, check_field_names
from klvae_edu.weights.checks import MAX_TENSORS, check_size
from klvae_edu.weights.contents import Contents, names_of, open_contents
from klvae_edu.weights.files import write_safetensors
from klvae_edu.weights.foreign import check_own
from klvae_edu.weights.keys import STATISTICS, infer_config, is_own, name_style, to_compvis, to_diffusers, uncompiled
from klvae_edu.weights.latent_scale import latent_scale
from klvae_edu.weights.places import choose_place, count_by_kind, how_to_choose, named
from klvae_edu.weights.pretrained import CONFIG_NAME, check_config, config_metadata, config_of_metadata, read_config
from klvae_edu.weights.quantised import apply_scales

NAMES = ("compvis", "diffusers")
USUAL_CHANNELS = 4  # of the latents of autoencoders with convolutions around the latent
MAX_NAMED = 3  # tensors in a message


class StoredModel(NamedTuple):
    """An autoencoder that was read from a file or a folder.

    Attributes:
        config: its configuration.
        weights: its tensors under current diffusers' names.
        path: the file that they are in.
        style: the naming scheme in words.
        prefix: what stands before the names in the file; may be empty.
        left_out: names of the file's tensors beside the autoencoder under the same prefix.
        others: number of tensors under other prefixes.
        notes: what was chosen or guessed, one sentence each.
    """

    config: AutoencoderKLConfig
    weights: dict[str, Tensor]
    path: Path
    style: str
    prefix: str
    left_out: list[str]
    others: int
    notes: list[str]

    @property
    def layout(self) -> str:
        """The naming scheme and the prefix in words."""
        return f"{self.style} under {self.prefix}" if self.prefix else self.style


def read_single_file(
    path: str | os.PathLike[str], ema: bool = False, prefix: str | None = None, **fields: Any
) -> StoredModel:
    """Read an autoencoder from one file.

    The configuration comes from the metadata, if this package wrote the file, or from the `config.json` in the folder
    of a file that diffusers wrote (`diffusion_pytorch_model…`). Otherwise it is inferred from the tensors, and the
    scaling from the other models in the file.

    Args:
        path: `.safetensors`, `.sft`, a pickle (`.ckpt`, `.pt`, `.pth`, `.bin`), or the `.index.json` of shards.
        ema: read the averaged weights: those that CompVis' training keeps under `model_ema.`, or of two autoencoders in
            the file the one whose prefix says so.
        prefix: read the autoencoder under this prefix, such as "first_stage_model"; None: the only one.
        **fields: single fields of the configuration by name, such as norm_num_groups=8 or scaling_factor=0.13025.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file contains no autoencoder of this class, or several; it is damaged, quantised in a way that
            is not read; an unknown field.
    """
    check_field_names(fields)
    path = Path(path).expanduser()
    contents = open_contents(path)
    try:
        config = _diffusers_config(path, contents, fields.keys())
        config = config or config_of_metadata(contents.metadata, "the configuration in its metadata")
        return select_model(contents, path, config, ema, prefix, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def select_model(
    contents: Contents,
    path: Path,
    config: AutoencoderKLConfig | None,
    ema: bool,
    prefix: str | None,
    fields: Mapping[str, Any],
) -> StoredModel:
    """Select the autoencoder in the contents of a file; without `config`, its configuration is inferred.

    Raises:
        ValueError: as `read_single_file`.
    """
    tensors = contents.tensors
    place, other = choose_place(tensors, prefix, ema)
    names = {uncompiled(name): name for name in tensors}
    inside = {plain.removeprefix(place): full for plain, full in names.items() if plain.startswith(place)}
    own = {plain: full for plain, full in inside.items() if is_own(plain)}
    if len(names) < len(tensors):  # two names that differ in a wrapper's part only: to_diffusers refuses them
        own = {full.removeprefix(place): full for full in tensors if full.startswith(place)}
    # diffusers' fuse_qkv_projections leaves copies beside the layers that they were made of.
    own = {name: full for name, full in own.items() if ".to_qkv." not in name or _query(name) not in own}
    if len(own) > MAX_TENSORS:
        raise ValueError(f"{len(own):,} tensors of an autoencoder; expected at most {MAX_TENSORS:,}")
    trained = set(own.values())
    if ema and other is None:
        own = _averages(own, inside)
    loaded = {plain: tensors[full] for plain, full in own.items()}  # each is read once
    check_own(loaded | {plain: tensors[full] for plain, full in _statistics(inside).items()})
    weights = to_diffusers(apply_scales(loaded))
    if STATISTICS[0] in weights:  # FLUX.2's own file does not count batches
        weights.setdefault(STATISTICS[-1], torch.tensor(0))
    read = trained | set(own.values())
    left_out = [plain for plain, full in inside.items() if full not in read and not _under(other, place + plain)]
    notes = []
    if other is not None:
        notes.append(
            f"two autoencoders: the one {named(place)} was taken; the one {named(other)}: {how_to_choose(other)}"
        )
    if left_out:
        notes.append(f"{len(left_out)} other tensors left out: {count_by_kind(left_out)}")
    if contents.lists:
        notes.append(f"lists of tensors are not read: {', '.join(contents.lists)}")
    if contents.foreign:
        notes.append(f"{names_of(contents.foreign)} are left out; nothing was run here, but another program may do so")
    if config:
        config = replace(config, **fields)
    else:
        config = infer_config(weights, **fields)
        notes += _on_quant_convs(config)
        scale, guess = latent_scale(config, tensors, contents.metadata, fields.keys())
        config = replace(config, **scale)
        notes += [guess] if guess else []
    check_size(config)
    return StoredModel(config, weights, path, name_style(own), place, left_out, len(tensors) - len(inside), notes)


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
    path = Path(path).expanduser()
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path}: expected a file name that ends in .safetensors")
    if names not in NAMES:
        raise ValueError(f"names: expected {' or '.join(map(repr, NAMES))}, got {names!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(to_compvis(weights) if names == "compvis" else weights, path, config_metadata(config))


def _on_quant_convs(config: AutoencoderKLConfig) -> list[str]:
    """Say where one of the two convolutions around the latent is missing, or both where they are usual."""
    there = (config.use_quant_conv, config.use_post_quant_conv)
    if there == (False, False) and config.latent_channels == USUAL_CHANNELS:
        return ["no quant_conv and post_quant_conv, which autoencoders with 4 latent channels usually have"]
    return [] if there[0] == there[1] else [f"one of quant_conv and post_quant_conv is missing: {there}"]


def _query(name: str) -> str:
    return name.replace(".to_qkv.", ".to_q.")


def _averages(own: Mapping[str, str], inside: Mapping[str, str]) -> dict[str, str]:
    """Find the averages that CompVis' training keeps; their names have no dots: model_ema.encoderconv_inweight."""
    averages = {name.replace(".", ""): full for name, full in inside.items() if name.startswith("model_ema.")}
    found = {name: averages.get("model_ema" + name.replace(".", ""), "") for name in own}
    if missing := [name for name, full in found.items() if not full]:
        named = ", ".join(missing) if len(missing) <= MAX_NAMED else f"{len(missing)} of {len(found)} tensors"
        raise ValueError(
            f"ema=True: expected averaged weights (model_ema.…) of the autoencoder, found none for {named}"
        )
    return found


def _under(place: str | None, name: str) -> bool:
    """Tell whether `name` is that of a tensor of the autoencoder under `place`."""
    return place is not None and name.startswith(place) and is_own(name.removeprefix(place))


def _statistics(inside: Mapping[str, str]) -> dict[str, str]:
    """Select tensors beside the network that tell another autoencoder from this one."""
    return {name: full for name, full in inside.items() if name.startswith("quantize.")}


def warn(message: str) -> None:
    """Warn, and attribute the warning to the line outside of this package that called it."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("klvae_edu."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _diffusers_config(path: Path, contents: Contents, given: Collection[str]) -> AutoencoderKLConfig | None:
    """Read the `config.json` in the folder of a file in diffusers' layout; None for other files."""
    config_file = path.with_name(CONFIG_NAME)
    if not (path.name.startswith("diffusion_pytorch_model.") and config_file.is_file()):
        return None
    config = read_config(config_file)
    if config is not None:
        check_config(config_file, path, contents.metadata, given)
    return config
