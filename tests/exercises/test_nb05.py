"""Typical answers to the exercises of notebook 05: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import dataclasses
import re
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution, network
from klvae_edu.blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from klvae_edu.exercises import EXERCISES, nb05
from klvae_edu.weights import keys
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

SMALL = AutoencoderKLConfig(block_out_channels=(8, 16, 24), norm_num_groups=4, latent_channels=3)


# What holds for the finished versions


@pytest.mark.parametrize("side", [64, 50])
def test_the_finished_walk_is_the_encoders(side):
    shapes, x = [], torch.zeros(1, 3, side, side)
    encoder = network.Encoder(SMALL)
    for stage in (encoder.conv_in, *encoder.down_blocks):
        x = stage(x)
        shapes.append((x.shape[1], x.shape[2]))
    shapes.append((encoder.conv_out(x).shape[1], x.shape[2]))
    assert nb05.shape_walk(SMALL.block_out_channels, SMALL.latent_channels, side) == shapes


def test_the_finished_assembly_has_the_packages_weights_and_results():
    ours, theirs = nb05.Autoencoder(SMALL).double(), AutoencoderKL(SMALL).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    assert torch.equal(ours.encode(x).parameters, theirs.encode(x).latent_dist.parameters)
    assert torch.equal(ours(x), theirs(x).sample)


def test_at_full_size_the_finished_assembly_has_stable_diffusions_parameters():
    with torch.device("meta"):
        model = nb05.Autoencoder(AutoencoderKLConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_653_863


def test_the_finished_translation_is_the_packages():
    with torch.device("meta"):
        weights = AutoencoderKL(AutoencoderKLConfig()).state_dict()
    compvis = keys.to_compvis(weights)
    assert {nb05.diffusers_name(name, 4) for name in compvis} == weights.keys() != compvis.keys()
    for name, tensor in compvis.items():
        assert keys.to_diffusers({"decoder.up.3.block.0.norm1.bias": tensor, name: tensor}).keys() == {
            "decoder.up_blocks.0.resnets.0.norm1.bias",
            nb05.diffusers_name(name, 4),
        }


@pytest.mark.parametrize("probe", [nb05._image, nb05._latent])
def test_no_probe_has_a_symmetry_that_hides_a_mistake(probe):
    for config in nb05._CONFIGS:
        (tensor,) = probe(config)
        height, width = tensor.shape[-2:]
        factor = config.downsample_factor if tensor.shape[1] == 3 and probe is nb05._image else 1
        assert height != width and height % factor == width % factor == 0
        assert (height // factor) * (width // factor) not in config.block_out_channels
        assert tensor.shape[0] not in (config.latent_channels, 2 * config.latent_channels)


@pytest.mark.parametrize("method", nb05.AUTOENCODER_MISTAKES)
def test_every_known_mistake_of_a_method_is_told_from_the_truth_and_from_the_others(method):
    for message, code in nb05.AUTOENCODER_MISTAKES[method]:
        assert EXERCISES["05.4"].run(code).message == f"{method}: {message}"


# 05.1


def walk_raises(block_out_channels, latent_channels, side):
    raise NotImplementedError


def walk_blank(block_out_channels, latent_channels, side):
    walk = [...]
    for _ in block_out_channels:
        walk.append(...)
    walk.append(...)
    return walk


def walk_half(block_out_channels, latent_channels, side):
    walk = [(block_out_channels[0], side)]
    for _ in block_out_channels:
        walk.append(...)
    walk.append(...)
    return walk


def walk_half_inside(block_out_channels, latent_channels, side):
    walk = [(block_out_channels[0], side)]
    for width in block_out_channels:
        walk.append((width, ...))
    return [*walk, (2 * latent_channels, side)]


def walk_of_stable_diffusion_only(block_out_channels, latent_channels, side):
    a, b, c, d = block_out_channels
    return [(a, side), (a, side // 2), (b, side // 4), (c, side // 8), (d, side // 8), (2 * latent_channels, side // 8)]


def walk_as_a_dictionary(block_out_channels, latent_channels, side):
    return dict(enumerate(walk_right(block_out_channels, latent_channels, side)))


@verdicts("05.1", [walk_raises, walk_blank])
def test_a_blank_walk_is_not_attempted(answer):
    assert_blank("05.1", answer)


@mistakes(
    "05.1",
    [
        ("gap `...` is still open", walk_half),
        ("gap `...` is still open", walk_half_inside),
        ("it raised ValueError: not enough values to unpack", walk_of_stable_diffusion_only),
        ("expected a list of (channels, side), got dict", walk_as_a_dictionary),
    ],
)
def test_a_wrong_walk_is_named(keyword, answer):
    assert_rejected("05.1", answer, keyword)


def test_a_result_in_the_place_of_the_function_is_named():
    assert_rejected("05.1", nb05.shape_walk((8, 16), 4, 64), "expected the function itself")
    assert_rejected("05.5", "quant_conv.weight", "expected the function itself")


def walk_right(block_out_channels, latent_channels, side):
    walk = [(block_out_channels[0], side)]
    for width in block_out_channels[:-1]:
        side //= 2
        walk.append((width, side))
    return [*walk, (block_out_channels[-1], side), (2 * latent_channels, side)]


def walk_in_one_expression(block_out_channels, latent_channels, side):
    n = len(block_out_channels)
    levels = [(width, side >> min(i + 1, n - 1)) for i, width in enumerate(block_out_channels)]
    return [(block_out_channels[0], side), *levels, (2 * latent_channels, side >> (n - 1))]


def walk_of_lists(block_out_channels, latent_channels, side):
    return [list(entry) for entry in walk_right(block_out_channels, latent_channels, side)]


def walk_as_a_tuple(block_out_channels, latent_channels, side):
    return tuple(walk_right(block_out_channels, latent_channels, side))


def walk_by_the_network(block_out_channels, latent_channels, side):
    """Pads and slices a tensor like the network's convolutions, and reads its sides."""
    x = torch.zeros(1, block_out_channels[0], side, side, device="meta")
    walk = [x.shape[1:3]]
    for level, width in enumerate(block_out_channels):
        if level < len(block_out_channels) - 1:
            x = F.pad(x, (0, 1, 0, 1))[:, :, 2::2, 2::2]
        walk.append((width, x.shape[-1]))
    return [*walk, (2 * latent_channels, x.shape[-1])]


@verdicts("05.1", [walk_right, walk_in_one_expression, walk_of_lists, walk_as_a_tuple, walk_by_the_network])
def test_a_right_walk_passes_in_any_style(answer):
    assert_passes("05.1", answer)


# 05.2


class EncoderBlank(nn.Module):
    def __init__(self, config):
        super().__init__()
        widths, _layers, _groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        self.conv_in = ...
        self.down_blocks = nn.ModuleList()
        for _ in widths:
            ...
        self.mid_block = ...
        self.conv_norm_out = ...
        self.conv_act = ...
        self.conv_out = ...

    def forward(self, x):
        raise NotImplementedError


class EncoderHalf(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.block_out_channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        self.mid_block = ...

    def forward(self, x):
        raise NotImplementedError


class EncoderRight(nn.Module):
    """Uses indices, functional SiLU, and every argument by name."""

    last_halves = first_keeps = False
    more_layers = 0
    output = 2
    eps = 1e-6

    def __init__(self, config):
        super().__init__()
        widths, groups, n = config.block_out_channels, config.norm_num_groups, len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], kernel_size=3, stride=1, padding=1)
        levels = []
        for i in range(n):
            before = widths[0] if i == 0 else widths[i - 1]
            halve = (i < n - 1 or self.last_halves) and not (i == 0 and self.first_keeps)
            layers = config.layers_per_block + self.more_layers
            levels.append(DownEncoderBlock2D(before, widths[i], layers, groups, config.act_fn, halve))
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = UNetMidBlock2D(widths[n - 1], groups, config.act_fn)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=self.eps)
        self.conv_out = nn.Conv2d(widths[-1], self.output * config.latent_channels, 3, 1, 1)

    def forward(self, x):
        x = nn.Sequential(self.conv_in, *self.down_blocks, self.mid_block)(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class EncoderByHand(EncoderRight):
    """Writes out SiLU, and calls the layers of each level one by one."""

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down_blocks:
            for resnet in level.resnets:
                x = resnet(x)
            for downsample in level.downsamplers:
                x = downsample(x)
        x = self.conv_norm_out(self.mid_block(x))
        return self.conv_out(x * torch.sigmoid(x))


class EncoderWithDefaultEps(EncoderRight):
    eps = 1e-5


class EncoderMidNotMade(EncoderRight):
    def __init__(self, config):
        super().__init__(config)
        del self.mid_block

    def forward(self, x):
        x = nn.Sequential(self.conv_in, *self.down_blocks)(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class EncoderInSequence(EncoderRight):
    def __init__(self, config):
        super().__init__(config)
        self.down_blocks = nn.Sequential(*self.down_blocks)

    def forward(self, x):
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class EncoderWithFixedWidths(EncoderRight):
    def __init__(self, config):
        super().__init__(AutoencoderKLConfig(norm_num_groups=4, block_out_channels=(16, 32, 64, 64)))


class EncoderWithTwoBlocks(EncoderRight):
    def __init__(self, config):
        super().__init__(dataclasses.replace(config, layers_per_block=2))


class EncoderInAList(EncoderRight):
    def __init__(self, config):
        super().__init__(config)
        levels = list(self.down_blocks)
        del self.down_blocks
        self.down_blocks = levels

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class EncoderWithoutPadding(EncoderRight):
    def __init__(self, config):
        super().__init__(config)
        self.conv_out = nn.Conv2d(config.block_out_channels[-1], 2 * config.latent_channels, 3)


class EncoderWithQuantConv(EncoderRight):
    def __init__(self, config):
        super().__init__(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, x):
        return self.quant_conv(super().forward(x))


class EncoderDetached(EncoderRight):
    def forward(self, x):
        x = nn.Sequential(self.conv_in, *self.down_blocks, self.mid_block)(x).detach()
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def test_a_blank_encoder_is_not_attempted():
    assert_blank("05.2", EncoderBlank)


@mistakes(
    "05.2",
    [
        ("gap `...` is still open", EncoderHalf),
        ("conv_norm_out has eps 1e-05, expected 1e-06", EncoderWithDefaultEps),
        ("it has no mid_block", EncoderMidNotMade),
        ("self.down_blocks is a plain list", EncoderInAList),
        ("self.down_blocks is an nn.Sequential: make it an nn.ModuleList", EncoderInSequence),
        ("take the widths from config.block_out_channels", EncoderWithFixedWidths),
        ("whatever the config says: config.layers_per_block", EncoderWithTwoBlocks),
        ("conv_out has padding (0, 0), expected (1, 1)", EncoderWithoutPadding),
        ("it has quant_conv, which is not asked for", EncoderWithQuantConv),
        ("no gradient reaches", EncoderDetached),
    ],
)
def test_a_wrong_encoder_is_named(keyword, answer):
    assert_rejected("05.2", answer, keyword)


@verdicts("05.2", [EncoderRight, EncoderByHand, network.Encoder])
def test_a_right_encoder_passes_in_any_style(answer):
    assert_passes("05.2", answer)


# 05.3


class DecoderBlank(nn.Module):
    def __init__(self, config):
        super().__init__()
        _widths, _groups = ..., config.norm_num_groups
        _layers = ...
        self.conv_in = ...
        self.mid_block = ...
        self.up_blocks = nn.ModuleList()
        self.conv_norm_out = ...
        self.conv_act = ...
        self.conv_out = ...

    def forward(self, z):
        raise NotImplementedError


class DecoderRight(nn.Module):
    """Counts down through the configured widths, and collects the levels in a list first."""

    turn_round = True
    more_layers = 1
    doubles = staticmethod(lambda level, last: level < last)
    into = 1
    eps = 1e-6

    def __init__(self, config):
        super().__init__()
        widths = list(reversed(config.block_out_channels)) if self.turn_round else list(config.block_out_channels)
        groups, last = config.norm_num_groups, len(widths) - 1
        self.conv_in = nn.Conv2d(self.into * config.latent_channels, widths[0], 3, 1, 1)
        self.mid_block = UNetMidBlock2D(widths[0], groups, "silu", add_attention=True)
        levels, width = [], widths[0]
        for level in range(len(widths)):
            layers = config.layers_per_block + self.more_layers
            doubles = self.doubles(level, last)
            levels.append(UpDecoderBlock2D(width, widths[level], layers, groups, "silu", add_upsample=doubles))
            width = widths[level]
        self.up_blocks = nn.ModuleList(levels)
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=self.eps)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding="same")

    def forward(self, z):
        z = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            z = level(z)
        return self.conv_out(F.silu(self.conv_norm_out(z)))


class DecoderInPlace(DecoderRight):
    def forward(self, z):
        z = self.conv_norm_out(nn.Sequential(self.conv_in, self.mid_block, *self.up_blocks)(z))
        return self.conv_out(F.silu(z, inplace=True))


class DecoderWithDefaultEps(DecoderRight):
    eps = 1e-5


class DecoderInSequence(DecoderRight):
    def __init__(self, config):
        super().__init__(config)
        self.up_blocks = nn.Sequential(*self.up_blocks)


class DecoderWithThreeBlocks(DecoderRight):
    def __init__(self, config):
        super().__init__(dataclasses.replace(config, layers_per_block=2))


def test_a_blank_decoder_is_not_attempted():
    assert_blank("05.3", DecoderBlank)


@mistakes(
    "05.3",
    [
        ("conv_norm_out has eps 1e-05, expected 1e-06", DecoderWithDefaultEps),
        ("self.up_blocks is an nn.Sequential: make it an nn.ModuleList", DecoderInSequence),
        ("whatever the config says: config.layers_per_block", DecoderWithThreeBlocks),
    ],
)
def test_a_wrong_decoder_is_named(keyword, answer):
    assert_rejected("05.3", answer, keyword)


@verdicts("05.3", [DecoderRight, DecoderInPlace, network.Decoder])
def test_a_right_decoder_passes_in_any_style(answer):
    assert_passes("05.3", answer)


# 05.4


class AutoencoderBlank(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encoder = ...
        self.decoder = ...
        self.quant_conv = ...
        self.post_quant_conv = ...

    def encode(self, x):
        raise NotImplementedError

    def decode(self, z):
        raise NotImplementedError

    def forward(self, x):
        raise NotImplementedError


class AutoencoderRight(nn.Module):
    """Uses the package's encoder and decoder, and the mean instead of mode()."""

    kernel = 1

    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = network.Encoder(config), network.Decoder(config)
        z, k = config.latent_channels, self.kernel
        self.quant_conv = nn.Conv2d(z * 2, z * 2, kernel_size=k, padding=k // 2)
        self.post_quant_conv = nn.Conv2d(z, z, kernel_size=k, padding=k // 2)

    def encode(self, x):
        h = self.encoder(x)
        h = self.quant_conv(h)
        return DiagonalGaussianDistribution(h)

    def decode(self, z):
        z = self.post_quant_conv(z)
        return self.decoder(z)

    def forward(self, x):
        posterior = self.encode(x)
        return self.decode(posterior.mean)


class OwnGaussian:
    """A Gaussian as a reader of notebook 01 may have written it."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)
        self.std = torch.exp(self.logvar / 2)

    def mode(self):
        return self.mean


class AutoencoderWithOwnGaussian(AutoencoderRight):
    def encode(self, x):
        return OwnGaussian(self.quant_conv(self.encoder(x)))

    def forward(self, x):
        return self.decoder(self.post_quant_conv(self.encode(x).mode()))


class AutoencoderHalf(AutoencoderRight):
    def forward(self, x):
        raise NotImplementedError


class AutoencoderHalfEncoding(AutoencoderRight):
    def encode(self, x):
        _parameters = self.quant_conv(self.encoder(x))
        return ...


class AutoencoderWithoutQuantConv(AutoencoderRight):
    def __init__(self, config):
        super().__init__(config)
        del self.quant_conv

    def encode(self, x):
        return DiagonalGaussianDistribution(self.encoder(x))


class AutoencoderWithKernelsOfThree(AutoencoderRight):
    kernel = 3


class AutoencoderEncodingToParameters(AutoencoderRight):
    def encode(self, x):
        return self.quant_conv(self.encoder(x))

    def forward(self, x):
        return self.decode(self.encode(x).chunk(2, 1)[0])


class AutoencoderEncodingToANamespace(AutoencoderRight):
    def encode(self, x):
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return types.SimpleNamespace(mean=mean, logvar=logvar, mode=lambda: mean)


class AutoencoderEncodingToPairs(AutoencoderRight):
    def encode(self, x):
        return self.quant_conv(self.encoder(x)).chunk(2, 1)

    def forward(self, x):
        return self.decode(self.encode(x)[0])


class AutoencoderEncodingToMeans(AutoencoderRight):
    def encode(self, x):
        return super().encode(x).mode()

    def forward(self, x):
        return self.decode(self.encode(x))


class AutoencoderSampling(AutoencoderRight):
    def forward(self, x):
        return self.decode(self.encode(x).sample())


class AutoencoderWithoutBrackets(AutoencoderRight):
    def forward(self, x):
        return self.decode(self.encode(x).mode)


class AutoencoderWithoutBracketsBypassing(AutoencoderWithOwnGaussian):
    def forward(self, x):
        posterior = self.encode(x)
        return self.decoder(self.post_quant_conv(posterior.mode))


class AutoencoderDecodingThePosterior(AutoencoderRight):
    def forward(self, x):
        return self.decode(self.encode(x))


class AutoencoderOfCompVis(AutoencoderRight):
    def forward(self, x):
        posterior = self.encode(x)
        return self.decode(posterior.mode()), posterior


class AutoencoderDetached(AutoencoderRight):
    def forward(self, x):
        return self.decode(self.encode(x).mode().detach())


def test_a_blank_autoencoder_is_not_attempted():
    assert_blank("05.4", AutoencoderBlank)


@mistakes(
    "05.4",
    [
        ("gap `...` is still open (forward)", AutoencoderHalf),
        ("gap `...` is still open (encode", AutoencoderHalfEncoding),
        ("it has no quant_conv", AutoencoderWithoutQuantConv),
        ("quant_conv has kernel_size (3, 3), expected (1, 1)", AutoencoderWithKernelsOfThree),
        ("encode: it returns a tensor", AutoencoderEncodingToParameters),
        ("encode: expected a DiagonalGaussianDistribution, got tuple", AutoencoderEncodingToPairs),
        ("encode: it returns a tensor", AutoencoderEncodingToMeans),
        ("encode: the posterior has no std, which later cells read", AutoencoderEncodingToANamespace),
        ("forward: it decodes a sample", AutoencoderSampling),
        ("forward: it decodes the method itself: call it, mode()", AutoencoderWithoutBrackets),
        ("forward: it decodes the method itself: call it, mode()", AutoencoderWithoutBracketsBypassing),
        ("forward: it decodes a DiagonalGaussianDistribution", AutoencoderDecodingThePosterior),
        ("forward: expected a Tensor, got tuple", AutoencoderOfCompVis),
        ("forward: the values are right, but no gradient reaches", AutoencoderDetached),
    ],
)
def test_a_wrong_autoencoder_is_named(keyword, answer):
    assert_rejected("05.4", answer, keyword)


@verdicts("05.4", [AutoencoderRight, AutoencoderWithOwnGaussian])
def test_a_right_autoencoder_passes_in_any_style(answer):
    assert_passes("05.4", answer)


# 05.5


def name_blank(name, levels):
    _new = {"down": "down_blocks", "block": "resnets", "block_1": "resnets.0"}
    _parts = name.split(".")
    _level = ...
    return ...


def name_unchanged(name, levels):
    return name


TABLE = """
    down down_blocks, up up_blocks, mid mid_block, block resnets, block_1 resnets.0, block_2 resnets.1,
    attn_1 attentions.0, downsample downsamplers.0, upsample upsamplers.0, nin_shortcut conv_shortcut,
    norm_out conv_norm_out, norm group_norm, q to_q, k to_k, v to_v, proj_out to_out.0,
    query to_q, key to_k, value to_v, proj_attn to_out.0
"""
NEW = dict(line.split() for line in TABLE.split(","))


def name_by(level, **other):
    """Make an answer with the right table except for some entries. A name whose entry is None is kept."""
    new = {part: target for part, target in (NEW | other).items() if target}

    def translate(name, levels):
        parts = name.split(".")
        if parts[0] == "decoder" and parts[1] == "up":
            parts[2] = str(level(int(parts[2]), levels))
        return ".".join([new.get(part, part) for part in parts])

    return translate


def reversed_level(level, levels):
    return levels - 1 - level


def name_with_negative_levels(name, levels):
    return name_by(lambda level, levels: -1 - level)(name, levels)


def name_by_replacement(name, levels):
    """Replaces substrings like older converters: right for CompVis' names, wrong for converted names."""
    if re.match(r"decoder\.up\.\d", name):
        level = int(name.split(".")[2])
        name = name.replace(f"up.{level}", f"up_blocks.{levels - 1 - level}")
    name = name.replace("down.", "down_blocks.").replace("mid.", "mid_block.").replace(".block.", ".resnets.")
    name = name.replace("block_1", "resnets.0").replace("block_2", "resnets.1").replace("attn_1", "attentions.0")
    name = name.replace("downsample.", "downsamplers.0.").replace("upsample.", "upsamplers.0.")
    name = name.replace("norm_out", "conv_norm_out").replace("nin_shortcut", "conv_shortcut")
    for old, new in {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}.items():
        name = name.replace(old, new)
    if "attentions" in name:
        name = name.replace(".norm.", ".group_norm.").replace("proj_out", "to_out.0")
        for part in "qkv":
            name = name.replace(f"{part}.weight", f"to_{part}.weight").replace(f"{part}.bias", f"to_{part}.bias")
    return name


def name_by_plain_replacement(name, levels):
    for old, new in NEW.items():
        name = name.replace(old, new)
    return name


def name_by_plain_replacement_of_letters_first(name, levels):
    for old in sorted(NEW, key=len):
        name = name.replace(old, NEW[old])
    return name


def name_by_replacing_norm(name, levels):
    return name_by(reversed_level)(name, levels).replace("norm1", "group_norm1")


def name_as_parts(name, levels):
    return name_by(reversed_level)(name, levels).split(".")


def name_by_int(name, levels):
    parts = name.split(".")
    if parts[:2] == ["decoder", "up"]:
        parts[2] = levels - 1 - int(parts[2])
    return ".".join(NEW.get(part, part) for part in parts)


def name_with_up_anywhere(name, levels):
    parts = name.split(".")
    if "up" in name:
        parts[2] = str(levels - 1 - int(parts[2]))
    return ".".join(NEW.get(part, part) for part in parts)


def test_a_blank_translation_is_not_attempted():
    assert_blank("05.5", name_blank)


@mistakes(
    "05.5",
    [
        ("expected encoder.down_blocks.1.resnets.0.conv1.weight", name_unchanged),
        ("expected decoder.up_blocks.0.", name_with_negative_levels),
        ("replaced inside of another one", name_by_replacement),
        ("replaced inside of another one", name_by_replacing_norm),
        ("replaced inside of another one", name_by_plain_replacement),
        ("replaced inside of another one", name_by_plain_replacement_of_letters_first),
        ("expected the name as one text, got tuple", name_as_parts),
        ("it raised TypeError", name_by_int),
        ("ask whether the second part is 'up'", name_with_up_anywhere),
    ],
)
def test_a_wrong_translation_is_named(keyword, answer):
    assert_rejected("05.5", answer, keyword)


def name_by_parts(name, levels):
    return name_by(reversed_level)(name, levels)


def name_by_anchored_expressions(name, levels):
    rules = (
        (r"(encoder)\.down\.(\d+)\.block\.", r"\1.down_blocks.\2.resnets."),
        (r"(encoder)\.down\.(\d+)\.downsample\.", r"\1.down_blocks.\2.downsamplers.0."),
        (r"(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
        (r"(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
        (r"(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
        (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
        (r"(.*\.resnets\.\d+)\.nin_shortcut\.", r"\1.conv_shortcut."),
        (r"(.*\.attentions\.0)\.norm\.", r"\1.group_norm."),
        (r"(.*\.attentions\.0)\.(?:proj_out|proj_attn)\.", r"\1.to_out.0."),
        (r"(.*\.attentions\.0)\.(?:q|query)\.", r"\1.to_q."),
        (r"(.*\.attentions\.0)\.(?:k|key)\.", r"\1.to_k."),
        (r"(.*\.attentions\.0)\.(?:v|value)\.", r"\1.to_v."),
    )
    if match := re.match(r"decoder\.up\.(\d+)\.(block|upsample)\.(.*)", name):
        place = f"decoder.up_blocks.{levels - 1 - int(match[1])}"
        name = f"{place}.resnets.{match[3]}" if match[2] == "block" else f"{place}.upsamplers.0.{match[3]}"
    for pattern, new in rules:
        name = re.sub("^" + pattern, new, name)
    return name


def name_by_a_loop(name, levels):
    out, before = [], []
    for part in name.split("."):
        if before[-2:] == ["decoder", "up"]:
            out.append(f"{levels - int(part) - 1}")
        elif part in NEW:
            out.extend(NEW[part].split("."))
        else:
            out.append(part)
        before.append(part)
    return ".".join(out)


@verdicts("05.5", [name_by_parts, name_by_anchored_expressions, name_by_a_loop])
def test_a_right_translation_passes_in_any_style(answer):
    assert_passes("05.5", answer)
