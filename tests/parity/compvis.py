"""Names and shapes of CompVis' weights, written like its constructors and without `klvae_edu.weights.keys`.

Source: CompVis latent-diffusion, `ldm/modules/diffusionmodules/model.py` (Encoder, Decoder) and
`ldm/models/autoencoder.py` (AutoencoderKL).
"""

from __future__ import annotations

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def compvis_shapes(
    ch: int = 128,
    ch_mult: tuple[int, ...] = (1, 2, 4, 4),
    num_res_blocks: int = 2,
    z_channels: int = 4,
    attention_levels: tuple[int, ...] = (),
    quant_convs: bool = True,
) -> Shapes:
    """Return all weights' names and shapes. In both halves, level 0 has the largest feature map."""
    widths = [ch * mult for mult in ch_mult]
    levels = len(widths)
    shapes: Shapes = {}

    conv(shapes, "encoder.conv_in", 3, ch, 3)
    width = ch
    for level in range(levels):
        for block in range(num_res_blocks):
            resnet(shapes, f"encoder.down.{level}.block.{block}", width, widths[level])
            width = widths[level]
            if level in attention_levels:
                attention(shapes, f"encoder.down.{level}.attn.{block}", width)
        if level != levels - 1:
            conv(shapes, f"encoder.down.{level}.downsample.conv", width, width, 3)
    bottom(shapes, "encoder", width, 2 * z_channels)

    conv(shapes, "decoder.conv_in", z_channels, width, 3)
    for level in reversed(range(levels)):
        for block in range(num_res_blocks + 1):
            resnet(shapes, f"decoder.up.{level}.block.{block}", width, widths[level])
            width = widths[level]
            if level in attention_levels:
                attention(shapes, f"decoder.up.{level}.attn.{block}", width)
        if level != 0:
            conv(shapes, f"decoder.up.{level}.upsample.conv", width, width, 3)
    bottom(shapes, "decoder", widths[-1], 3, last=width)

    if quant_convs:
        conv(shapes, "quant_conv", 2 * z_channels, 2 * z_channels, 1)
        conv(shapes, "post_quant_conv", z_channels, z_channels, 1)
    return shapes


def bottom(shapes: Shapes, half: str, width: int, out: int, last: int | None = None) -> None:
    """Add the mid block, at the smallest feature map, and the output layers, of width `last` if it is given."""
    resnet(shapes, f"{half}.mid.block_1", width, width)
    attention(shapes, f"{half}.mid.attn_1", width)
    resnet(shapes, f"{half}.mid.block_2", width, width)
    norm(shapes, f"{half}.norm_out", last or width)
    conv(shapes, f"{half}.conv_out", last or width, out, 3)


def resnet(shapes: Shapes, name: str, before: int, after: int) -> None:
    norm(shapes, f"{name}.norm1", before)
    conv(shapes, f"{name}.conv1", before, after, 3)
    norm(shapes, f"{name}.norm2", after)
    conv(shapes, f"{name}.conv2", after, after, 3)
    if before != after:
        conv(shapes, f"{name}.nin_shortcut", before, after, 1)


def attention(shapes: Shapes, name: str, width: int) -> None:
    norm(shapes, f"{name}.norm", width)
    for layer in ("q", "k", "v", "proj_out"):
        conv(shapes, f"{name}.{layer}", width, width, 1)


def norm(shapes: Shapes, name: str, width: int) -> None:
    shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(shapes: Shapes, name: str, before: int, after: int, side: int) -> None:
    shapes |= {f"{name}.weight": (after, before, side, side), f"{name}.bias": (after,)}


def compvis_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Make random weights of these names and shapes. All tensors differ."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
