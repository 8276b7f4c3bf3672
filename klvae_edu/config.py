"""Configuration of the autoencoder: one frozen dataclass, and the named presets.

The fields have the names of diffusers' `AutoencoderKL`, so that its `config.json` files can be read. Stable Diffusion's
widths come from CompVis' `models/first_stage_models/kl-f8/config.yaml` (`ch: 128`, `ch_mult: [1, 2, 4, 4]`).
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

# Class names in `klvae_edu.blocks`: without attention, with attention.
DOWN_BLOCK_TYPES = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_BLOCK_TYPES = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
# `act_fn` -> class name in `torch.nn`.
ACTIVATIONS = {"silu": "SiLU", "swish": "SiLU", "mish": "Mish", "gelu": "GELU", "relu": "ReLU"}
SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")  # fields about the scale of latents
PADDING_MODES = ("zeros", "reflect")
_WIDTHS = ("block_out_channels", "decoder_block_out_channels")
_TUPLES = (*_WIDTHS, "down_block_types", "up_block_types", "latents_mean", "latents_std", "patch_size")


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Configuration of an `AutoencoderKL`. The defaults are Stable Diffusion v1's.

    Raises:
        ValueError: a field has an impossible value; the message names the field and the value.
    """

    in_channels: int = 3  # channels of the image (RGB)
    out_channels: int = 3  # channels of the reconstruction
    down_block_types: tuple[str, ...] | None = None  # encoder, one per level; None: no attention in any level
    up_block_types: tuple[str, ...] | None = None  # decoder, one per level, smallest feature map first; None: likewise
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # width per level, largest map first; f = 2^(levels - 1)
    layers_per_block: int = 2  # ResNet blocks per level of the encoder; the decoder has one more
    act_fn: str = "silu"  # activation of the ResNet blocks (the two output layers always use SiLU)
    latent_channels: int = 4  # channels of z; the encoder returns twice as many: mean and log-variance
    norm_num_groups: int = 32  # groups of every GroupNorm; must divide every width
    sample_size: int = 512  # image side in pixels that the model was trained for; not a limit
    scaling_factor: float | None = 0.18215  # factor of the latents for diffusion; None: unknown
    shift_factor: float | None = None  # subtracted before scaling (Stable Diffusion 3, Flux)
    latents_mean: tuple[float, ...] | None = None  # per-channel mean, an alternative to the shift
    latents_std: tuple[float, ...] | None = None  # per-channel standard deviation, given together with latents_mean
    force_upcast: bool = True  # compute in float32 where float16 would overflow
    use_quant_conv: bool = True  # 1x1 convolution after the encoder
    use_post_quant_conv: bool = True  # 1x1 convolution before the decoder
    mid_block_add_attention: bool = True  # attention in the mid block of encoder and decoder
    decoder_block_out_channels: tuple[int, ...] | None = None  # width per level of the decoder; None: as the encoder's
    padding_mode: Literal["zeros", "reflect"] = (
        "zeros"  # around feature maps: "zeros" or "reflect"; diffusers has zeros only
    )
    patch_size: tuple[int, int] | None = None  # FLUX.2: statistics of latent patches normalise latents; None: no such
    batch_norm_eps: float = 1e-4  # added to the variance of patches

    def __post_init__(self) -> None:
        for name in _TUPLES:
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has lists only
                object.__setattr__(self, name, tuple(value))
        self._check_counts()
        levels = len(self.block_out_channels)
        if self.down_block_types is None:
            object.__setattr__(self, "down_block_types", (DOWN_BLOCK_TYPES[0],) * levels)
        if self.up_block_types is None:
            object.__setattr__(self, "up_block_types", (UP_BLOCK_TYPES[0],) * levels)
        self._check_block_types("down_block_types", DOWN_BLOCK_TYPES)
        self._check_block_types("up_block_types", UP_BLOCK_TYPES)
        if not isinstance(self.act_fn, str) or self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn: expected one of {', '.join(ACTIVATIONS)}, got {self.act_fn!r}")
        self._check_switches()
        self._check_latent_scale()

    def _check_counts(self) -> None:
        widths = self.block_out_channels
        if not isinstance(widths, tuple) or not widths:
            raise ValueError(f"block_out_channels: expected one width per level, such as (128, 256), got {widths!r}")
        counts = {
            name: getattr(self, name)
            for name in ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
        }
        decoder = self.decoder_block_out_channels
        if decoder is not None and (not isinstance(decoder, tuple) or len(decoder) != len(widths)):
            raise ValueError(
                f"decoder_block_out_channels: expected {len(widths)} widths, one per level, got {decoder!r}"
            )
        named = {f"{name}[{i}]": width for name in _WIDTHS for i, width in enumerate(getattr(self, name) or ())}
        counts |= named
        if not isinstance(self.sample_size, int):
            raise ValueError(f"sample_size: expected one whole number (the side of a square), got {self.sample_size!r}")
        for name, value in (counts | {"sample_size": self.sample_size}).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        for name, width in named.items():
            if width % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups: expected a divisor of every width, but {self.norm_num_groups} does not divide "
                    f"{name} = {width}"
                )

    def _check_block_types(self, name: str, known: tuple[str, ...]) -> None:
        types, levels = getattr(self, name), len(self.block_out_channels)
        if not isinstance(types, tuple):
            raise ValueError(f"{name}: expected {levels} block types, one per level, got {types!r}")
        if len(types) != levels:
            raise ValueError(
                f"{name}: expected {levels}, one per entry of block_out_channels, got {len(types)}: {types}"
            )
        for block_type in types:
            if block_type not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {block_type!r}")

    def _check_switches(self) -> None:
        for name in ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
            value = getattr(self, name)
            if value not in (True, False):
                raise ValueError(f"{name}: expected true or false, got {value!r}")
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode: expected {' or '.join(PADDING_MODES)}, got {self.padding_mode!r}")

    def _check_latent_scale(self) -> None:
        for name in ("scaling_factor", "shift_factor"):
            value = getattr(self, name)
            if value is not None and not _is_finite(value):
                raise ValueError(f"{name}: expected a finite number or None, got {value!r}")
        if self.scaling_factor is not None and self.scaling_factor <= 0:
            raise ValueError(f"scaling_factor: expected a positive number or None, got {self.scaling_factor!r}")
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std: expected both or neither, got one of them")
        for name in ("latents_mean", "latents_std"):
            value = getattr(self, name)
            valid = isinstance(value, tuple) and len(value) == self.latent_channels and all(map(_is_finite, value))
            if value is not None and not valid:
                raise ValueError(f"{name}: expected {self.latent_channels} numbers (latent_channels), got {value!r}")
        if self.latents_std is not None and not all(std > 0 for std in self.latents_std):
            raise ValueError(f"latents_std: expected positive numbers, got {self.latents_std}")
        self._check_patches()

    def _check_patches(self) -> None:
        if not _is_finite(self.batch_norm_eps) or self.batch_norm_eps < 0:
            raise ValueError(f"batch_norm_eps: expected a finite number of at least 0, got {self.batch_norm_eps!r}")
        if self.patch_size is None:
            return
        sides = self.patch_size if isinstance(self.patch_size, tuple) else ()
        if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int) or sides[0] < 1:
            raise ValueError(
                f"patch_size: expected two equal whole numbers, such as (2, 2), or None, got {self.patch_size!r}"
            )
        if given := [name for name in SCALES if getattr(self, name) is not None]:
            raise ValueError(f"patch_size: its statistics normalise the latents; expected no {', '.join(given)}")

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Width per level of the decoder, largest map first."""
        return self.decoder_block_out_channels or self.block_out_channels

    @property
    def diffusers_class(self) -> str:
        """Name of diffusers' class with this network: "AutoencoderKL", or FLUX.2's "AutoencoderKLFlux2"."""
        return "AutoencoderKL" if self.patch_size is None else FLUX2_CLASS

    @property
    def downsample_factor(self) -> int:
        """f = image side / latent side. Every level except the last halves the sides."""
        return 1 << (len(self.block_out_channels) - 1)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> AutoencoderKLConfig:
        """Return the preset `name`, with single fields changed by keyword.

        Raises:
            ValueError: unknown preset (the message lists the presets), or unknown field.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}")
        check_field_names(changes)
        return replace(PRESETS[name], **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderKLConfig:
        """Build the configuration from the fields of a diffusers `config.json`.

        Missing fields get diffusers' defaults; some of them differ from the defaults of this class. Unknown fields are
        ignored with a warning that names them. Names with a leading underscore are ignored without a warning.
        """
        known = {field.name for field in fields(cls)}
        defaults = _FLUX2_DEFAULTS if values.get("_class_name") == FLUX2_CLASS else _DIFFUSERS_DEFAULTS
        values = {name: value for name, value in values.items() if not name.startswith("_") and name != _UNUSED}
        foreign = sorted(values.keys() - known)
        if foreign:
            warnings.warn(f"config.json: fields that AutoencoderKL does not know are ignored: {foreign}", stacklevel=3)
        config = cls(**(defaults | {name: value for name, value in values.items() if name in known}))
        if config.shift_factor is not None and config.latents_mean is not None:
            warnings.warn(
                "config.json has a shift_factor, and the channels' latents_mean and latents_std: these are used with "
                "the scaling_factor, and the shift is not, as in diffusers' pipeline of SDXL",
                stacklevel=3,
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as in `config.json` (JSON writes tuples as lists).

        Fields that diffusers' class does not have are left out where their values mean the same to it, and the
        decoder's own widths where there are none: only later versions of its class for FLUX.2 know them.
        """
        unneeded = _FOREIGN[self.diffusers_class] | {"decoder_block_out_channels": None}
        return {name: value for name, value in asdict(self).items() if name not in unneeded or value != unneeded[name]}

    def ignored_by_diffusers(self) -> list[str]:
        """List the fields whose values diffusers' class ignores: there, the network or its latents would be others."""
        return [name for name, usual in _FOREIGN[self.diffusers_class].items() if getattr(self, name) != usual]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the question "did you mean 'NAME'?" for the most similar name in `known`; empty if none is similar."""
    return "".join(f"did you mean {near!r}?" for near in difflib.get_close_matches(name, [*known], n=1))


def check_field_names(names: Iterable[str]) -> None:
    """Raise a `ValueError` for the first name that is not a configuration field, with the most similar field."""
    known = [field.name for field in fields(AutoencoderKLConfig)]
    for name in names:
        if name not in known:
            hint = suggestion(name, known) or f"the fields are {', '.join(known)}"
            raise ValueError(f"AutoencoderKL has no configuration field {name!r}; {hint}")


_DIFFUSERS_DEFAULTS: dict[str, Any] = {  # defaults of diffusers' AutoencoderKL that differ from this class
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "sample_size": 32,
}

FLUX2_CLASS = "AutoencoderKLFlux2"
_FLUX2_DEFAULTS: dict[str, Any] = {  # of that class
    "latent_channels": 32,
    "sample_size": 1024,
    "scaling_factor": None,
    "patch_size": (2, 2),
}
_UNUSED = "batch_norm_momentum"  # of that class, where no forward pass uses it
# Fields that diffusers' classes do not have, with the values that mean the same to them.
_FOREIGN: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "decoder_block_out_channels": None,
        "padding_mode": "zeros",
        "patch_size": None,
        "batch_norm_eps": 1e-4,
    },
    FLUX2_CLASS: {"padding_mode": "zeros", **dict.fromkeys(SCALES), "force_upcast": True},
}

_SD_V1 = AutoencoderKLConfig()
_SD3_NETWORK: dict[str, Any] = {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}


_FLUX2 = replace(_SD_V1, **_FLUX2_DEFAULTS)


def _ldm_paper_config(widths: tuple[int, ...], latent_channels: int, attention_levels: int = 0) -> AutoencoderKLConfig:
    """Build the configuration of a model of the LDM paper: 256x256 pixels, no published scaling factor.

    The last `attention_levels` levels, with the smallest feature maps, have attention.
    """
    plain = len(widths) - attention_levels
    return AutoencoderKLConfig(
        block_out_channels=widths,
        down_block_types=DOWN_BLOCK_TYPES[:1] * plain + DOWN_BLOCK_TYPES[1:] * attention_levels,
        up_block_types=UP_BLOCK_TYPES[1:] * attention_levels + UP_BLOCK_TYPES[:1] * plain,
        latent_channels=latent_channels,
        sample_size=256,
        scaling_factor=None,
    )


PRESETS: dict[str, AutoencoderKLConfig] = {
    # Stable Diffusion 1.x and 2.x: 83,653,863 parameters.
    "sd-v1": _SD_V1,
    # Stable Diffusion XL: the same network with other weights and another scaling factor.
    "sdxl": replace(_SD_V1, sample_size=1024, scaling_factor=0.13025),
    # Stable Diffusion 3 and Flux: 16 latent channels, no 1x1 convolutions at the latent, a shift before scaling.
    "sd3": replace(_SD_V1, **_SD3_NETWORK, scaling_factor=1.5305, shift_factor=0.0609),
    "flux": replace(_SD_V1, **_SD3_NETWORK, scaling_factor=0.3611, shift_factor=0.1159),
    # FLUX.2: 32 channels, and statistics of 2x2 patches of the latent. Its small decoder has widths of its own.
    "flux2": _FLUX2,
    "flux2-small-decoder": replace(_FLUX2, decoder_block_out_channels=(96, 192, 384, 384)),
    # Models of the LDM paper: CompVis latent-diffusion, `configs/autoencoder/autoencoder_kl_*.yaml`. Only KL-f8 has a
    # published scaling factor, because it is Stable Diffusion's network.
    "kl-f4": _ldm_paper_config((128, 256, 512), latent_channels=3),
    "kl-f8": replace(_SD_V1, sample_size=256),
    "kl-f16": _ldm_paper_config((128, 128, 256, 256, 512), latent_channels=16, attention_levels=1),
    "kl-f32": _ldm_paper_config((128, 128, 256, 256, 512, 512), latent_channels=64, attention_levels=2),
    # f = 8 as in Stable Diffusion, small enough for a laptop: 1,250,759 parameters.
    "mini": AutoencoderKLConfig(
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=None,
    ),
    # A bundled model: narrow on large feature maps, so that a slider in a notebook responds at once, and wide on
    # small ones. 2,059,287 parameters.
    "kl-f8-mini": AutoencoderKLConfig(
        block_out_channels=(16, 32, 96, 96),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=256,
        scaling_factor=None,
    ),
    # The same with 16 latent channels, and without the convolutions around the latent, as in SD3 and FLUX.
    "kl-f8-mini-16": AutoencoderKLConfig(
        block_out_channels=(16, 32, 96, 96),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=256,
        scaling_factor=None,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    # f = 4 at 32 pixels, for lessons that train from scratch.
    "tiny": AutoencoderKLConfig(
        block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8, sample_size=32, scaling_factor=None
    ),
}
