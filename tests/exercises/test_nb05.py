"""The exercises of notebook 05: solutions, wrong answers that the judges describe, right answers in many styles."""

from __future__ import annotations

import re
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution, network
from klvae_edu.blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from klvae_edu.exercises import nb05
from klvae_edu.exercises.nb05 import Autoencoder, Decoder, Encoder
from klvae_edu.weights import keys
from tests.exercises.answers import assert_passes, assert_rejected, mistakes, verdicts

SMALL = AutoencoderKLConfig(block_out_channels=(8, 16, 24), norm_num_groups=4, latent_channels=3)


# The solutions, and the probes


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
    ours, theirs = Autoencoder(SMALL).double(), AutoencoderKL(SMALL).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    assert torch.equal(ours.encode(x).parameters, theirs.encode(x).latent_dist.parameters)
    assert torch.equal(ours(x), theirs(x).sample)


def test_at_full_size_the_finished_assembly_has_stable_diffusions_parameters():
    with torch.device("meta"):
        model = Autoencoder(AutoencoderKLConfig())
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
    for settings in nb05._SETTINGS:
        config, (tensor,) = AutoencoderKLConfig(**settings), probe(settings)
        height, width = tensor.shape[-2:]
        factor = config.downsample_factor if probe is nb05._image else 1
        assert height != width and height % factor == width % factor == 0
        assert (height // factor) * (width // factor) not in config.block_out_channels
        assert tensor.shape[0] not in (config.latent_channels, 2 * config.latent_channels)


# 05.1


@mistakes(
    "05.1",
    [
        ("a gap `...` is still open", nb05._changed(lambda walk: [(walk[0][0], ...), *walk[1:]])),
        ("it raised IndexError: list index out of range, for block_out", nb05._changed(lambda walk: walk[9])),
        ("expected a list of (channels, side), got dict", nb05._changed(lambda walk: dict(enumerate(walk)))),
        ("expected a list of (channels, side), got tuple", nb05._changed(tuple)),
        ("in round brackets, got an entry of type list", nb05._changed(lambda walk: [[*entry] for entry in walk])),
        ("expected 7 entries, for conv_in, every level", nb05._changed(lambda walk: [*walk, walk[-1]])),
        ("after level 1 it has (3, 4), expected (32, 127)", nb05._changed(lambda walk: [*walk[:2], (3, 4), *walk[3:]])),
        ("after conv_in it has (16, 510.0), expected (16, 510)", nb05._changed(lambda walk: [(16, 510.0), *walk[1:]])),
    ],
)
def test_a_wrong_walk_is_described(keyword, answer):
    assert_rejected("05.1", answer, keyword)


def test_a_result_in_the_place_of_the_function_is_named():
    assert_rejected("05.1", nb05.shape_walk((8, 16), 4, 64), "expected the function itself")
    assert_rejected("05.5", "quant_conv.weight", "expected the function itself")


def walk_in_one_expression(block_out_channels, latent_channels, side):
    n = len(block_out_channels)
    levels = [(width, side >> min(i + 1, n - 1)) for i, width in enumerate(block_out_channels)]
    return [(block_out_channels[0], side), *levels, (2 * latent_channels, side >> (n - 1))]


def walk_by_the_network(block_out_channels, latent_channels, side):
    """Pads and slices a tensor like the network's convolutions, and reads its sides."""
    x = torch.zeros(1, block_out_channels[0], side, side, device="meta")
    walk = [x.shape[1:3]]
    for level, width in enumerate(block_out_channels):
        if level < len(block_out_channels) - 1:
            x = F.pad(x, (0, 1, 0, 1))[:, :, 2::2, 2::2]
        walk.append((width, x.shape[-1]))
    return [*walk, (2 * latent_channels, x.shape[-1])]


@verdicts("05.1", [walk_in_one_expression, walk_by_the_network])
def test_a_right_walk_passes_in_any_style(answer):
    assert_passes("05.1", answer)


# 05.2 and 05.3


def through(stages, act=F.silu):
    """Make an encoder that goes through these stages up to conv_norm_out."""
    return nb05._with(Encoder, forward=lambda m, x: m.conv_out(act(m.conv_norm_out(nn.Sequential(*stages(m))(x)))))


def with_a_plain_list(encoder, config):
    encoder.__dict__["down_blocks"] = [*encoder._modules.pop("down_blocks")]


def with_relu_inside(encoder, config):
    encoder.down_blocks[0].resnets[0].nonlinearity = nn.ReLU()


@mistakes(
    "05.2",
    [
        ("self.down_blocks is a plain list", nb05._made(Encoder, with_a_plain_list)),
        (
            "self.down_blocks is an nn.Sequential: make it an nn.ModuleList",
            nb05._made(Encoder, lambda m, _: setattr(m, "down_blocks", nn.Sequential(*m.down_blocks))),
        ),
        (
            "conv_out has the same channels whatever the config says",
            nb05._made(
                Encoder, lambda m, _: setattr(m, "conv_out", nn.Conv2d(m.conv_out.in_channels, 8, 3, padding=1))
            ),
        ),
        (
            "take the widths from config.block_out_channels",
            nb05._levels(Encoder, lambda i, widths: i < 2, lambda widths: (8, 8, 16, 24)),
        ),
        (
            "the levels have 2 ResNet blocks for layers_per_block=1, expected 1",
            nb05._levels(Encoder, numbers=lambda layers, groups: (2, groups)),
        ),
        ("conv_act is a ReLU", nb05._made(Encoder, lambda m, _: setattr(m, "conv_act", nn.ReLU()))),
        ("down_blocks.0.resnets.0.nonlinearity is a ReLU", nb05._made(Encoder, with_relu_inside)),
        ("no gradient reaches", nb05._with(Encoder, forward=lambda m, x: Encoder.forward(m, x).detach())),
        ("mid_block is never called", through(lambda m: [m.conv_in, *m.down_blocks])),
        ("mid_block is called 2 times", through(lambda m: [m.conv_in, *m.down_blocks, m.mid_block, m.mid_block])),
        (
            "down_blocks.0 is given what mid_block returned: it should be what conv_in returned",
            through(lambda m: [m.conv_in, m.mid_block, *m.down_blocks]),
        ),
        (
            "conv_in is given something else than the input: nothing belongs in between",
            through(lambda m: [nn.SiLU(), m.conv_in, *m.down_blocks, m.mid_block]),
        ),
        (
            "conv_out is given what conv_norm_out returned: it should be what conv_act returned",
            through(lambda m: [m.conv_in, *m.down_blocks, m.mid_block], act=lambda x: x),
        ),
        (
            "large values do not come through",
            nb05._with(Encoder, forward=lambda m, x: Encoder.forward(m, x).clamp(-30, 20)),
        ),
        (
            "the result is something else than what conv_out returned",
            nb05._with(Encoder, forward=lambda m, x: F.silu(Encoder.forward(m, x))),
        ),
    ],
)
def test_a_wrong_encoder_is_described(keyword, answer):
    assert_rejected("05.2", answer, keyword)


def ending_with_the_norm(decoder, z):
    z = nn.Sequential(decoder.conv_in, decoder.mid_block, *decoder.up_blocks, decoder.conv_out)(z)
    return decoder.conv_norm_out(z)


@mistakes(
    "05.3",
    [
        ("conv_norm_out is given what conv_out returned", nb05._with(Decoder, forward=ending_with_the_norm)),
        ("no gradient reaches", nb05._with(Decoder, forward=lambda m, z: Decoder.forward(m, z).detach())),
    ],
)
def test_a_wrong_decoder_is_described(keyword, answer):
    assert_rejected("05.3", answer, keyword)


class EncoderByIndices(nn.Module):
    """Uses indices, functional SiLU, and every argument by name."""

    def __init__(self, config):
        super().__init__()
        widths, groups, n = config.block_out_channels, config.norm_num_groups, len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], kernel_size=3, stride=1, padding=1)
        levels = []
        for i in range(n):
            before = widths[0] if i == 0 else widths[i - 1]
            levels.append(
                DownEncoderBlock2D(before, widths[i], config.layers_per_block, groups, config.act_fn, i < n - 1)
            )
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = UNetMidBlock2D(widths[n - 1], groups, config.act_fn)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, 1, 1)

    def forward(self, x):
        x = nn.Sequential(self.conv_in, *self.down_blocks, self.mid_block)(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class EncoderByHand(EncoderByIndices):
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


@verdicts("05.2", [EncoderByIndices, EncoderByHand, network.Encoder])
def test_a_right_encoder_passes_in_any_style(answer):
    assert_passes("05.2", answer)


class DecoderByALoop(nn.Module):
    """Counts down through the configured widths, and collects the levels in a list first."""

    def __init__(self, config):
        super().__init__()
        widths = list(reversed(config.block_out_channels))
        groups, last = config.norm_num_groups, len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, 1, 1)
        self.mid_block = UNetMidBlock2D(widths[0], groups, "silu", add_attention=True)
        levels, width = [], widths[0]
        for level, after in enumerate(widths):
            layers = config.layers_per_block + 1
            levels.append(UpDecoderBlock2D(width, after, layers, groups, "silu", add_upsample=level < last))
            width = after
        self.up_blocks = nn.ModuleList(levels)
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding="same")

    def forward(self, z):
        z = self.conv_norm_out(nn.Sequential(self.conv_in, self.mid_block, *self.up_blocks)(z))
        return self.conv_out(F.silu(z, inplace=True))


@verdicts("05.3", [DecoderByALoop, network.Decoder])
def test_a_right_decoder_passes_in_any_style(answer):
    assert_passes("05.3", answer)


# 05.4


class OwnGaussian:
    """A Gaussian as a reader of notebook 01 may have written it."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)
        self.std = torch.exp(self.logvar / 2)

    def mode(self):
        return self.mean


class AutoencoderByHand(Autoencoder):
    """Uses another posterior, its mean instead of mode(), and no method twice."""

    def encode(self, x):
        h = self.encoder(x)
        h = self.quant_conv(h)
        return OwnGaussian(h)

    def forward(self, x):
        return self.decoder(self.post_quant_conv(self.encode(x).mean))


class AutoencoderWithALayerForEachCall(Autoencoder):
    def encode(self, x):
        moments = self.encoder(x)
        self.quant_conv = nn.Conv2d(moments.shape[1], moments.shape[1], 1)
        return DiagonalGaussianDistribution(self.quant_conv(moments))


def encodes(change):
    return nb05._with(Autoencoder, encode=lambda m, x: change(m.quant_conv(m.encoder(x))))


def forwards(change):
    return nb05._with(Autoencoder, forward=change)


@mistakes(
    "05.4",
    [
        (
            "encode: the result is something else than the posterior of what quant_conv returned",
            encodes(lambda moments: DiagonalGaussianDistribution(F.silu(moments))),
        ),
        ("encode: the same image gave two different posteriors", AutoencoderWithALayerForEachCall),
        ("encode: it returns a tensor", encodes(lambda moments: moments)),
        ("encode: expected a DiagonalGaussianDistribution, got tuple", encodes(lambda moments: moments.chunk(2, 1))),
        (
            "encode: the posterior has no std, which later cells read",
            encodes(lambda moments: types.SimpleNamespace(mean=moments, logvar=moments, mode=lambda: moments)),
        ),
        ("decode: post_quant_conv is never called", nb05._with(Autoencoder, decode=lambda m, z: m.decoder(z))),
        ("forward: it decodes a sample", forwards(lambda m, x: m.decode(m.encode(x).sample()))),
        ("forward: it decodes the method itself: call it, mode()", forwards(lambda m, x: m.decode(m.encode(x).mode))),
        ("forward: it decodes a DiagonalGaussianDistribution", forwards(lambda m, x: m.decode(m.encode(x)))),
        ("forward: it returns several results", forwards(lambda m, x: (m.decode(m.encode(x).mode()), x))),
        (
            "forward: the values are right, but no gradient reaches",
            forwards(lambda m, x: m.decode(m.encode(x).mode().detach())),
        ),
    ],
)
def test_a_wrong_autoencoder_is_described(keyword, answer):
    assert_rejected("05.4", answer, keyword)


def test_a_right_autoencoder_passes_with_a_posterior_of_its_own():
    assert_passes("05.4", AutoencoderByHand)


# 05.5

TABLE = """
    down down_blocks, up up_blocks, mid mid_block, block resnets, block_1 resnets.0, block_2 resnets.1,
    attn_1 attentions.0, downsample downsamplers.0, upsample upsamplers.0, nin_shortcut conv_shortcut,
    norm_out conv_norm_out, norm group_norm, q to_q, k to_k, v to_v, proj_out to_out.0,
    query to_q, key to_k, value to_v, proj_attn to_out.0
"""
NEW = dict(line.split() for line in TABLE.split(","))


def name_with(translate):
    """Make an answer that translates the whole right name once more."""
    return lambda name, levels: translate(nb05.diffusers_name(name, levels))


def name_by_replacement(name, levels):
    for old, new in NEW.items():
        name = name.replace(old, new)
    return name


@mistakes(
    "05.5",
    [
        ("comes back unchanged, expected encoder.down_blocks.1.resnets.0.conv1.weight", lambda name, levels: name),
        ("3 becomes -4, expected 0", nb05._by_parts(level=lambda level, levels: -1 - level)),
        ("norm is left as it is, expected group_norm", nb05._by_parts(norm="norm")),
        ("proj_out becomes to_out, expected to_out.0", nb05._by_parts(proj_out="to_out")),
        ("in encoder.conv_in.weight, encoder is left out", name_with(lambda name: name.partition(".")[2])),
        ("becomes ENCODER.CONV_IN.WEIGHT, expected encoder.conv_in.weight", name_with(str.upper)),
        ("replaced inside of another one", name_by_replacement),
        ("replaced inside of another one", name_with(lambda name: name.replace("norm1", "group_norm_1x"))),
        ("expected the name as one text, got list", name_with(lambda name: name.split("."))),
        ("for encoder.conv_in.weight it raised ValueError", name_with(int)),
        ("for encoder.conv_in.weight it returns None", name_with(lambda name: name if "resnets" in name else None)),
    ],
)
def test_a_wrong_translation_is_described(keyword, answer):
    assert_rejected("05.5", answer, keyword)


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


@verdicts("05.5", [name_by_anchored_expressions, name_by_a_loop])
def test_a_right_translation_passes_in_any_style(answer):
    assert_passes("05.5", answer)
