"""Initialise an untrained autoencoder so that it passes average colours through.

The encoder then averages the colour of each patch, and the decoder fills each patch with this average: about what
reducing and enlarging an image gives. From random weights, the latent channels first learn brightness, which has the
largest errors, and hardly ever change to colour later: reconstructions stay nearly grey.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.blocks import Attention, Downsample2D, ResnetBlock2D, Upsample2D

COLOURS = 3
MIN_CHANNELS = 4 * COLOURS  # of each level
RANDOM_SCALE = 0.03  # factor of the random weights on the path of the colours: enough to tell channels apart
BRANCH_SCALE = 0.1  # factor of the random weights in the last layer of each residual branch
LOG_VARIANCE = -4.0  # of the posterior: a standard deviation of 0.14 in colours from -1 to 1
OUTPUT_GAIN = 0.7  # of the decoder's last convolution: the norms before it amplify by about 1 / 0.7

IDENTITY_1X1 = torch.ones(1, 1)
IDENTITY = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
BOX = torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])  # mean of the 2x2 pixels that become one
TENT = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16  # smooths nearest-neighbour upsampling


@torch.no_grad()
def initialise_as_averages(vae: AutoencoderKL) -> None:
    """Change random weights in place so that three latent channels are the mean colours; the others stay random.

    Colours take the shortcuts; the last layer of each residual branch is scaled down. Each colour has two channels,
    x and -x, because SiLU(x) - SiLU(-x) = x: the last activation passes it unchanged. Other channels are constantly 1
    or -1, so that GroupNorm scales all images nearly alike.

    Raises:
        ValueError: a model without three image channels, three latent channels, or 12 channels at each level.
    """
    config = vae.config
    if (config.in_channels, config.out_channels) != (COLOURS, COLOURS) or config.latent_channels < COLOURS:
        found = f"{config.in_channels} in, {config.out_channels} out, {config.latent_channels} latent"
        expected = "3 channels in and out, and at least 3 latent ones"
        raise ValueError(f"initialisation: averages need {expected}, got {found}")
    if min(config.block_out_channels) < MIN_CHANNELS:
        raise ValueError(
            f"initialisation: averages need at least {MIN_CHANNELS} channels, got {config.block_out_channels}"
        )
    for half in (vae.encoder, vae.decoder):
        _write_colours(half.conv_in)
        for module in half.modules():
            if isinstance(module, ResnetBlock2D):
                _scale_down(module.conv2)
                if isinstance(module.conv_shortcut, nn.Conv2d):
                    _pass_through(module.conv_shortcut, IDENTITY_1X1)
            elif isinstance(module, Attention):
                _scale_down(cast(nn.Linear, module.to_out[0]))
            elif isinstance(module, Downsample2D):
                _pass_through(module.conv, BOX)
            elif isinstance(module, Upsample2D):
                _pass_through(module.conv, TENT)
    _read_colours(vae.encoder.conv_out, 1.0)
    _read_colours(vae.decoder.conv_out, OUTPUT_GAIN)
    vae.encoder.conv_out.weight[config.latent_channels :] *= RANDOM_SCALE
    _bias(vae.encoder.conv_out)[config.latent_channels :] = LOG_VARIANCE
    for conv in (vae.quant_conv, vae.post_quant_conv):
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)
            _bias(conv).zero_()


def _write_colours(conv: nn.Conv2d) -> None:
    """Map input channel i to channels 4i (itself) and 4i + 1 (its negative); the others are 1, -1, … plus noise."""
    _bias(conv).copy_(_signs(len(conv.weight)))
    for i in range(COLOURS):
        conv.weight[4 * i : 4 * i + 2] *= RANDOM_SCALE
        conv.weight[4 * i, i] += IDENTITY
        conv.weight[4 * i + 1, i] -= IDENTITY
        _bias(conv)[4 * i : 4 * i + 2] = 0


def _pass_through(conv: nn.Conv2d, kernel: Tensor) -> None:
    """Map each channel to itself, through `kernel`; additional output channels are 1, -1, … plus noise."""
    kept = min(conv.weight.shape[:2])
    conv.weight[:kept] *= RANDOM_SCALE
    conv.weight[range(kept), range(kept)] += kernel
    _bias(conv).zero_()
    _bias(conv)[kept:] = _signs(len(conv.weight) - kept)


def _read_colours(conv: nn.Conv2d, gain: float) -> None:
    """Map channels 4i and 4i + 1 after SiLU to output channel i, times `gain`: their difference is linear again."""
    for i in range(COLOURS):
        conv.weight[i] *= RANDOM_SCALE
        conv.weight[i, 4 * i] += gain * IDENTITY
        conv.weight[i, 4 * i + 1] -= gain * IDENTITY
    _bias(conv).zero_()


def _scale_down(layer: nn.Conv2d | nn.Linear) -> None:
    layer.weight *= BRANCH_SCALE
    _bias(layer).zero_()


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Return the bias. Every layer here has one, but the layers' types allow None."""
    assert layer.bias is not None
    return layer.bias


def _signs(count: int) -> Tensor:
    return 1.0 - 2.0 * (torch.arange(count) % 2)
