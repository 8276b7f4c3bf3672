"""State-dict keys: convert CompVis' and diffusers' names, and infer the configuration from names and shapes.

CompVis' names (latent-diffusion, `ldm/modules/diffusionmodules/model.py`) are used in Stability's SGM, in Stable
Diffusion's checkpoints and in Flux' `ae.safetensors`, too. This package uses the names of current diffusers. A rule
matches a whole name, so that a second conversion changes nothing: replacing `q` in `to_q` would give `to_to_q`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from torch import Tensor

from klvae_edu.config import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, AutoencoderKLConfig

# Corresponding names, used in both directions. Each name is followed by .weight or .bias. CompVis numbers the decoder's
# levels from the largest feature map, diffusers from the smallest: {reversed} is levels - 1 - {level}.
TEMPLATES = (  # CompVis, diffusers
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("encoder.quant_conv", "quant_conv"),  # FLUX.2's file
    ("decoder.post_quant_conv", "post_quant_conv"),
    ("{half}.conv_in", "{half}.conv_in"),
    ("encoder.down.{level}.block.{index}.{resnet}", "encoder.down_blocks.{level}.resnets.{index}.{resnet}"),
    ("encoder.down.{level}.attn.{index}.{attention}", "encoder.down_blocks.{level}.attentions.{index}.{attention}"),
    ("encoder.down.{level}.downsample.conv", "encoder.down_blocks.{level}.downsamplers.0.conv"),
    ("{half}.mid.block_1.{resnet}", "{half}.mid_block.resnets.0.{resnet}"),
    ("{half}.mid.attn_1.{attention}", "{half}.mid_block.attentions.0.{attention}"),
    ("{half}.mid.block_2.{resnet}", "{half}.mid_block.resnets.1.{resnet}"),
    ("decoder.up.{level}.block.{index}.{resnet}", "decoder.up_blocks.{reversed}.resnets.{index}.{resnet}"),
    ("decoder.up.{level}.attn.{index}.{attention}", "decoder.up_blocks.{reversed}.attentions.{index}.{attention}"),
    ("decoder.up.{level}.upsample.conv", "decoder.up_blocks.{reversed}.upsamplers.0.conv"),
    ("{half}.norm_out", "{half}.conv_norm_out"),
    ("{half}.conv_out", "{half}.conv_out"),
)
LAYERS = {  # values of {resnet} and {attention}: CompVis, diffusers
    "resnet": (
        ("norm1", "norm1"),
        ("conv1", "conv1"),
        ("norm2", "norm2"),
        ("conv2", "conv2"),
        ("nin_shortcut", "conv_shortcut"),
    ),
    "attention": (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")),
}
COMPVIS, DIFFUSERS = 0, 1  # columns of TEMPLATES and LAYERS

# Names of attention layers, as they are read in either scheme: some trainers write one scheme's paths with the other's
# names. The second line holds diffusers' names before its refactoring; most Stable Diffusion VAEs on the Hub have them.
_ATTENTION = dict(LAYERS["attention"]) | {current: current for _, current in LAYERS["attention"]}
_ATTENTION |= {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0", "to_out": "to_out.0"}
_ATTENTION_NAMES = "|".join(map(re.escape, sorted(_ATTENTION, key=len, reverse=True)))
_ATTENTION_KEY = re.compile(rf"(.*\.attentions\.[0-9]+\.)({_ATTENTION_NAMES})(\.(?:weight|bias))")
_ATTENTION_WEIGHT = re.compile(r".*\.attentions\.[0-9]+\.to_(?:q|k|v|out\.0)\.weight")

ROOTS = ("encoder", "decoder", "quant_conv", "post_quant_conv")  # the first parts of an autoencoder's names
STATISTICS = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")  # FLUX.2's, of patches of latents
# Parts that PyTorch's wrappers add: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_MAX_LEVELS = 16  # the last one's feature map has 1/32,768 of the image's side
_NUMBER = "0|[1-9][0-9]{0,3}"
_LEVEL = re.compile(rf"(?:encoder\.(?:down|down_blocks)|decoder\.(?:up|up_blocks))\.({_NUMBER})\..*")


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename `weights` to current diffusers' names, from CompVis' names or older diffusers' names.

    Attention weights are 1x1 convolutions in CompVis: (C, C, 1, 1) becomes (C, C). Current names and names that are not
    in `TEMPLATES` stay as they are.

    The names are built in notebook 05, section 7.

    Raises:
        ValueError: two tensors get the same name.
    """
    levels, found = _levels(map(uncompiled, weights)), dict[str, Tensor]()
    for name, tensor in weights.items():
        plain = uncompiled(name)
        current = _current_name(_translate(plain, COMPVIS, levels) or plain)
        if current in found:
            both = f"two tensors have the name {current} in diffusers' naming scheme"
            raise ValueError(f"{both}; in the file, one of them is {name}")
        convolution = tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and _ATTENTION_WEIGHT.fullmatch(current)
        found[current] = tensor.flatten(1) if convolution else tensor
    return found


def to_compvis(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename `weights` from current diffusers' names to CompVis' names; attention weights become (C, C, 1, 1).

    FLUX.2's get the names of its own file, where the 1x1 convolutions are parts of encoder and decoder.
    """
    levels, found = _levels(weights), dict[str, Tensor]()
    nested = {"quant_conv": "encoder.", "post_quant_conv": "decoder."} if STATISTICS[0] in weights else {}
    for name, tensor in weights.items():
        linear = tensor.ndim == 2 and _ATTENTION_WEIGHT.fullmatch(name)
        new = nested.get(name.partition(".")[0], "") + (_translate(name, DIFFUSERS, levels) or name)
        found[new] = tensor[:, :, None, None] if linear else tensor
    return found


def uncompiled(name: str) -> str:
    """Remove the parts that PyTorch's wrappers add: `decoder._orig_mod.conv_in.bias` becomes `decoder.conv_in.bias`."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def name_style(names: Iterable[str]) -> str:
    """Describe the naming scheme of `names` (without a prefix) in words."""
    names = [uncompiled(name) for name in names]
    if any(_translate(name, COMPVIS, 0) not in (None, name) for name in names):
        return "CompVis' names"
    if any(_current_name(name) != name for name in names):
        return "diffusers' names from before its attention refactoring"
    return "diffusers' names"


def infer_config(weights: Mapping[str, Tensor], **fields: Any) -> AutoencoderKLConfig:
    """Infer the configuration from the shapes of `weights` (current diffusers' names).

    Three fields cannot be inferred: the number of groups (32 is assumed), the activation (SiLU is assumed) and the
    scaling factor (None). If tensors contradict each other, the configuration follows the encoder, and
    `checks.check_fit` lists the contradictions.

    Args:
        **fields: fields of the configuration with known values.

    Raises:
        ValueError: 32 does not divide the widths; pass norm_num_groups.
    """
    usual = AutoencoderKLConfig()
    encoder, decoder = _widths(weights, "encoder.down_blocks"), _widths(weights, "decoder.up_blocks")[::-1]
    widths = encoder or decoder or usual.block_out_channels
    own = decoder if len(decoder) == len(widths) and decoder != widths else None
    if "norm_num_groups" not in fields and any(width % usual.norm_num_groups for width in (*widths, *(own or ()))):
        raise ValueError(
            f"how many groups the GroupNorms have is not in the file, and the usual {usual.norm_num_groups} does not "
            f"divide the widths {widths}: pass norm_num_groups=…"
        )
    blocks = _blocks(weights, "encoder.down_blocks") or _blocks(weights, "decoder.up_blocks") - 1
    latent = (  # the encoder returns twice as many channels: mean and log-variance
        _size(weights, "encoder.conv_out.bias", None) // 2,
        _size(weights, "encoder.conv_out.weight", None, widths[-1]) // 2,
        _size(weights, "decoder.conv_in.weight", (own or widths)[-1], None),
    )
    inferred: dict[str, Any] = {
        "in_channels": _size(weights, "encoder.conv_in.weight", widths[0], None) or usual.in_channels,
        "out_channels": _size(weights, "decoder.conv_out.bias", None) or usual.out_channels,
        "down_block_types": _block_types(weights, "encoder.down_blocks", DOWN_BLOCK_TYPES, len(widths)),
        "up_block_types": _block_types(weights, "decoder.up_blocks", UP_BLOCK_TYPES, len(widths)),
        "block_out_channels": widths,
        "decoder_block_out_channels": own,
        "patch_size": _patch_size(weights),
        "layers_per_block": blocks if blocks > 0 else usual.layers_per_block,
        "latent_channels": _most_common(filter(None, latent)) or usual.latent_channels,
        "scaling_factor": None,
        "use_quant_conv": _has(weights, "quant_conv."),
        "use_post_quant_conv": _has(weights, "post_quant_conv."),
        "mid_block_add_attention": _has(weights, "encoder.mid_block.attentions.", "decoder.mid_block.attentions."),
    }
    return AutoencoderKLConfig(**(inferred | fields))


def _patch_size(weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the size of patches that have statistics, 2x2 in every model so far; None without statistics."""
    return (2, 2) if STATISTICS[0] in weights else None


def _current_name(name: str) -> str:
    """Convert an older name: `…attentions.0.query.weight` becomes `…attentions.0.to_q.weight`."""
    match = _ATTENTION_KEY.fullmatch(name)
    return f"{match[1]}{_ATTENTION[match[2]]}{match[3]}" if match else name


def _pattern(template: str, column: int) -> re.Pattern[str]:
    """Compile the regular expression of a template, with a named group for every placeholder."""
    parts = {"half": "encoder|decoder", "level": _NUMBER, "reversed": _NUMBER, "index": _NUMBER}
    parts |= {kind: "|".join(re.escape(layer[column]) for layer in layers) for kind, layers in LAYERS.items()}
    if column == COMPVIS:
        parts["attention"] = _ATTENTION_NAMES
    text = re.escape(template + ".") + "(?P<kind>weight|bias)"
    for part, expression in parts.items():
        text = text.replace(re.escape(f"{{{part}}}"), f"(?P<{part}>{expression})")
    return re.compile(text)


def rules(templates: Iterable[tuple[str, str]], column: int) -> list[tuple[re.Pattern[str], str]]:
    """Compile `templates` into pairs: the pattern of a name in `column`, and the template in the other column."""
    return [(_pattern(pair[column], column), pair[1 - column] + ".{kind}") for pair in templates]


RULES = {column: rules(TEMPLATES, column) for column in (COMPVIS, DIFFUSERS)}


def _translate(name: str, column: int, levels: int) -> str | None:
    """Translate `name` from the naming scheme of `column` to the other one; None if no template matches."""
    for pattern, target in RULES[column]:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            for kind, layers in LAYERS.items():
                if kind in parts:
                    names = {layer[column]: layer[1 - column] for layer in layers}
                    parts[kind] = names.get(parts[kind]) or _ATTENTION[parts[kind]]
            if "{reversed}" in target:
                parts["reversed"] = str(levels - 1 - int(parts["level"]))
            elif "reversed" in parts:
                parts["level"] = str(levels - 1 - int(parts["reversed"]))
            return target.format(**parts)
    return None


def _levels(names: Iterable[str]) -> int:
    """Count the levels of the encoder or the decoder."""
    return 1 + max((int(match[1]) for name in names if (match := _LEVEL.fullmatch(name))), default=-1)


def is_known(name: str) -> bool:
    """Tell whether `name`, without a prefix, is that of a tensor of an autoencoder in one of the naming schemes."""
    current = _current_name(name)
    patterns = (pattern for rules in RULES.values() for pattern, _ in rules)
    return current in STATISTICS or any(pattern.fullmatch(current) for pattern in patterns)


def is_own(name: str) -> bool:
    """Tell whether `name`, without a prefix, is where the tensors of an autoencoder are."""
    return name.partition(".")[0] in ROOTS or name in STATISTICS


def _has(names: Iterable[str], *beginnings: str) -> bool:
    return any(name.startswith(beginnings) for name in names)


def _size(weights: Mapping[str, Tensor], name: str, *shape: int | None) -> int:
    """Return the size of the axis that is None in `shape`; 0 if the tensor is missing or has another shape."""
    sizes = tuple(weights[name].shape[: len(shape)]) if name in weights else ()
    fits = len(sizes) == len(shape) and all(want in (None, size) for want, size in zip(shape, sizes, strict=True))
    return sizes[shape.index(None)] if fits else 0


def _widths(weights: Mapping[str, Tensor], blocks: str) -> tuple[int, ...]:
    """Infer the width of each level: the most common size of its vectors. One misshapen tensor has no effect."""
    blocks = re.escape(blocks)
    vector = re.compile(rf"{blocks}\.({_NUMBER})\.resnets\.(?:{_NUMBER})\.(?:conv1|norm2|conv2)\.(?:weight|bias)")
    sizes = defaultdict[int, list[int]](list)
    for name, tensor in weights.items():
        if tensor.ndim == 1 and (match := vector.fullmatch(name)):
            sizes[int(match[1])].append(len(tensor))
    return tuple(_most_common(sizes[level]) for level in takewhile(sizes.__contains__, range(_MAX_LEVELS)))


def _blocks(names: Iterable[str], blocks: str) -> int:
    """Count the ResNet blocks per level; the most common count of all levels."""
    pattern = re.compile(rf"{re.escape(blocks)}\.({_NUMBER})\.resnets\.({_NUMBER})\..*")
    found = {(match[1], match[2]) for name in names if (match := pattern.fullmatch(name))}
    return _most_common(Counter(level for level, _ in found).values())


def _most_common(numbers: Iterable[int]) -> int:
    """Return the most common number, the first of several equally common ones; 0 without numbers."""
    return next((number for number, _ in Counter(numbers).most_common(1)), 0)


def _block_types(names: Iterable[str], blocks: str, types: tuple[str, ...], levels: int) -> tuple[str, ...]:
    """Choose the block type of each level: `types[1]` with attention, `types[0]` without."""
    return tuple(types[_has(names, f"{blocks}.{level}.attentions.")] for level in range(levels))
