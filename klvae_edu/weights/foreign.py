"""Recognise weights of other autoencoders and quantised weights, so that the error can say what a file is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from klvae_edu.config import FLUX2_CLASS

CLASSES = ("AutoencoderKL", FLUX2_CLASS)

# Part of a tensor's name -> what the model is. The first that is found counts.
_BY_NAME = (
    (r"(^|\.)quantize\.", "a VQ model, whose latents are entries of a codebook"),
    (r"(time_conv_out|time_stack|spatial_res_block)\.", "Stable Video Diffusion's AutoencoderKLTemporalDecoder"),
    (r"decoder\.condition_encoder\.", "an AsymmetricAutoencoderKL"),
    (r"^(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.(conv\.\d+\.)?(weight|bias)$", "TAESD, an AutoencoderTiny"),
    (r"encoder\.(downsamples|middle)\.\d+\.", "Wan's video autoencoder (AutoencoderKLWan)"),
    (r"encoder\.(stages\.|down_blocks\.\d+\.\d+\.)", "a deep compression autoencoder (AutoencoderDC)"),
)
_QUANTISED = (
    (r"\.(absmax|quant_map|nested_absmax|SCB)$|\.quant_state\.", "bitsandbytes"),
    (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"\.weight_scale_inv$", "blocks of 8-bit floats"),
)


def check_class(values: Mapping[str, Any], source: object) -> None:
    """Raise a `ValueError` in one line if a `config.json` is that of another class."""
    name = values.get("_class_name", CLASSES[0])
    if name not in CLASSES:
        raise ValueError(f"{source}: expected a model of the class {' or '.join(CLASSES)}, got one of {name!r}")


def check_own(tensors: Mapping[str, Tensor]) -> None:
    """Raise a `ValueError` in one line if `tensors` are recognised as those of another autoencoder, or as quantised."""
    for name in tensors:
        for pattern, program in _QUANTISED:
            if re.search(pattern, name):
                raise ValueError(
                    f"quantised weights ({program}: {name}), which this package does not read; expected the weights "
                    "before quantisation"
                )
    kind = recognised(tensors)
    if kind is None and (video := next((name for name, tensor in tensors.items() if tensor.ndim == 5), None)):
        kind = f"a video autoencoder, with 3-D convolutions ({video})"
    if kind is not None:
        raise ValueError(f"{kind}; expected an {CLASSES[0]}")


def recognised(names: Iterable[str]) -> str | None:
    """Describe the other autoencoder that `names` belong to; None: none that is known here."""
    for pattern, kind in _BY_NAME:
        if found := next((name for name in names if re.search(pattern, name)), None):
            return f"{kind} ({found})"
    return None
