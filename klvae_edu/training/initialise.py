"""Untrained weights that already do something: average the colour of each patch, and paint these averages.

Weights drawn at random first have to find out what a latent is for. Errors of light are the largest, so they spend all
of it on light and dark, and a channel that has settled does not leave for colour any more: the pictures stay nearly
grey. Begun here, a network starts about where shrinking and enlarging an image leads, and can only get better.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.blocks import Attention, Downsample2D, ResnetBlock2D, Upsample2D

COLOURS = 3
FEWEST = 4 * COLOURS  # channels that a level needs for them
RANDOM = 0.03  # times the random weights stay where colours pass: enough to tell channels apart
BRANCH = 0.1  # times the random weights stay at the end of each residual branch
LOG_VARIANCE = -4.0  # of the posterior: noise of 0.14 in colours from -1 to 1
LEVEL = 0.7  # about what the two last GroupNorms magnify, undone

SAME = torch.ones(1, 1)
MIDDLE = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
BOX = torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])  # the 2 × 2 pixels that become one
TENT = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16  # rounds off what was repeated


@torch.no_grad()
def start_as_averages(vae: AutoencoderKL) -> None:
    """Change freshly drawn weights in place: three latent channels are the mean colours, what is left stays random.

    Colours pass beside the residual branches, whose last weights are made small. Each travels twice, once with the
    other sign, for SiLU(x) - SiLU(-x) = x gets it through the last activation unchanged; channels that are constantly 1
    or -1 keep the scale of GroupNorm nearly the same for all images.

    Raises:
        ValueError: a model without three image channels, three latent channels, or 12 channels at each level.
    """
    config = vae.config
    if (config.in_channels, config.out_channels) != (COLOURS, COLOURS) or config.latent_channels < COLOURS:
        found = f"{config.in_channels} in, {config.out_channels} out, {config.latent_channels} latent"
        raise ValueError(f"start: averages need 3 channels in and out, and at least 3 latent ones, got {found}")
    if min(config.block_out_channels) < FEWEST:
        raise ValueError(f"start: averages need at least {FEWEST} channels, got {config.block_out_channels}")
    for half in (vae.encoder, vae.decoder):
        _enter(half.conv_in)
        for module in half.modules():
            if isinstance(module, ResnetBlock2D):
                _quieten(module.conv2)
                if isinstance(module.conv_shortcut, nn.Conv2d):
                    _pass_on(module.conv_shortcut, SAME)
            elif isinstance(module, Attention):
                _quieten(cast(nn.Linear, module.to_out[0]))
            elif isinstance(module, Downsample2D):
                _pass_on(module.conv, BOX)
            elif isinstance(module, Upsample2D):
                _pass_on(module.conv, TENT)
    _leave(vae.encoder.conv_out, 1.0)
    _leave(vae.decoder.conv_out, LEVEL)
    vae.encoder.conv_out.weight[config.latent_channels :] *= RANDOM
    _bias(vae.encoder.conv_out)[config.latent_channels :] = LOG_VARIANCE
    for conv in (vae.quant_conv, vae.post_quant_conv):
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)
            _bias(conv).zero_()


def _enter(conv: nn.Conv2d) -> None:
    """Input channel i -> channels 4i (itself) and 4i + 1 (its negative); the others are 1, -1, … and random."""
    _bias(conv).copy_(_signs(len(conv.weight)))
    for i in range(COLOURS):
        conv.weight[4 * i : 4 * i + 2] *= RANDOM
        conv.weight[4 * i, i] += MIDDLE
        conv.weight[4 * i + 1, i] -= MIDDLE
        _bias(conv)[4 * i : 4 * i + 2] = 0


def _pass_on(conv: nn.Conv2d, kernel: Tensor) -> None:
    """Each channel -> itself, through `kernel`; channels that come in addition are 1, -1, … and random."""
    kept = min(conv.weight.shape[:2])
    conv.weight[:kept] *= RANDOM
    conv.weight[range(kept), range(kept)] += kernel
    _bias(conv).zero_()
    _bias(conv)[kept:] = _signs(len(conv.weight) - kept)


def _leave(conv: nn.Conv2d, level: float) -> None:
    """Channels 4i and 4i + 1, which SiLU has bent -> output channel i, straight again."""
    for i in range(COLOURS):
        conv.weight[i] *= RANDOM
        conv.weight[i, 4 * i] += level * MIDDLE
        conv.weight[i, 4 * i + 1] -= level * MIDDLE
    _bias(conv).zero_()


def _quieten(layer: nn.Conv2d | nn.Linear) -> None:
    layer.weight *= BRANCH
    _bias(layer).zero_()


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """All layers here have one, which their type does not say."""
    assert layer.bias is not None
    return layer.bias


def _signs(count: int) -> Tensor:
    return 1.0 - 2.0 * (torch.arange(count) % 2)
