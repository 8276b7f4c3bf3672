"""The exercises of notebook 05, the KL-f8 architecture."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu import autoencoder, network
from klvae_edu.blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.exercises.exercise import Blank, Exercise, Judge, Mistakes, OpenGap, call, explain, one_line
from klvae_edu.exercises.judges.functions import Probe, judge_parts, probe
from klvae_edu.exercises.judges.modules import ModuleMistake, judge_module
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.weights import keys

NOTEBOOK = "05_kl_f8_architecture"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with names that the notebook imports, because `solution` shows them and readers paste them.


def shape_walk(block_out_channels: tuple[int, ...], latent_channels: int, side: int) -> list[tuple[int, int]]:
    """The encoder's maps as (channels, side): after conv_in, after every level, after conv_out."""
    walk = [(block_out_channels[0], side)]
    for level, width in enumerate(block_out_channels):
        last = level == len(block_out_channels) - 1
        side = side if last else side // 2
        walk.append((width, side))
    walk.append((2 * latent_channels, side))
    return walk


class Encoder(nn.Module):
    """Image (B, 3, H, W) -> mean and log-variance of the latent, stacked: (B, 2 · latent_channels, H/f, W/f)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, layers, groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.down_blocks.append(DownEncoderBlock2D(before, after, layers, groups, "silu", add_downsample=not last))
        self.mid_block = UNetMidBlock2D(widths[-1], groups, "silu")
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latent (B, latent_channels, h, w) -> image (B, 3, f·h, f·w)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, layers, groups = config.block_out_channels[::-1], config.layers_per_block + 1, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = UNetMidBlock2D(widths[0], groups, "silu")
        self.up_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.up_blocks.append(UpDecoderBlock2D(before, after, layers, groups, "silu", add_upsample=not last))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            z = level(z)
        return self.conv_out(self.conv_act(self.conv_norm_out(z)))


class Autoencoder(nn.Module):
    """Images to posteriors, latents to images. `forward` goes through the posterior's mode."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, x: torch.Tensor) -> DiagonalGaussianDistribution:
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x).mode())


def diffusers_name(name: str, levels: int) -> str:
    """A tensor's name in CompVis' files, or in old ones of diffusers, -> its name in diffusers today."""
    new = {
        "down": "down_blocks",
        "up": "up_blocks",
        "mid": "mid_block",
        "block": "resnets",
        "block_1": "resnets.0",
        "block_2": "resnets.1",
        "attn_1": "attentions.0",
        "nin_shortcut": "conv_shortcut",
        "downsample": "downsamplers.0",
        "upsample": "upsamplers.0",
        "norm_out": "conv_norm_out",
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "proj_attn": "to_out.0",
    }
    parts = name.split(".")
    if parts[:2] == ["decoder", "up"]:
        parts[2] = str(levels - 1 - int(parts[2]))
    return ".".join(new.get(part, part) for part in parts)


# Answers that are plain Python: numbers and texts

PlainMistake = tuple[str, Callable[..., Any]]


def _judge_plain(
    reference: Callable[..., Any],
    probes: Sequence[Probe],
    mistakes: Sequence[PlainMistake],
    describe: Callable[[Any, Any, Probe], str],
) -> Judge:
    """A judge of functions that return no tensors. It goes by the first probe with a wrong answer.

    Args:
        reference: the finished version.
        probes: arguments to call it with.
        mistakes: tried in this order, on that one probe: of two mistakes made at once each is named in its turn.
        describe: what to say of (the result, the expected one, the probe) where no known mistake fits.
    """

    def judge(attempt: Any) -> str | None:
        if not callable(attempt):
            return f"expected the function itself, got its result or another object ({type(attempt).__name__})"
        for arguments in probes:
            result, expected = _outcome(attempt, arguments), _plain(reference(*arguments))
            if result == expected:
                continue
            for message, code in mistakes:
                if result == _outcome(code, arguments):
                    return message
            return result.message if isinstance(result, _Raised) else describe(result, expected, arguments)
        return None

    return judge


@dataclass(frozen=True)
class _Raised:
    """In the place of a result: the exception, by which two outcomes are compared, and what is said of it."""

    exception: str
    message: str = field(compare=False)


def _outcome(function: Callable[..., Any], arguments: Probe) -> Any:
    try:
        return _plain(call(function, *arguments))
    except (Blank, OpenGap):
        raise
    except Exception as error:
        return _Raised(one_line(error), explain(error))


def _plain(value: Any) -> Any:
    """Sequences of any kind as tuples.

    Raises:
        OpenGap: there is a `...` inside.
    """
    if value is ...:
        raise OpenGap("inside the result")
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


# 05.1

Widths = tuple[int, ...]
Walk = list[tuple[int, int]]


def _halving(halves: Callable[[int, int], bool]) -> Callable[..., Walk]:
    """The walk where the levels with halves(level, last level) halve the side."""

    def walk(widths: Widths, latent: int, side: int) -> Walk:
        found = [(widths[0], side)]
        for level, width in enumerate(widths):
            side = side // 2 if halves(level, len(widths) - 1) else side
            found.append((width, side))
        return [*found, (2 * latent, side)]

    return walk


def _dividing(divided: Callable[[int], Any]) -> Callable[..., Any]:
    """The walk with another idea of half a side."""

    def walk(widths: Widths, latent: int, side: int) -> Any:
        sides = [side, side]
        for _ in widths[1:]:
            sides.append(divided(sides[-1]))
        return [*zip((widths[0], *widths), [side, *sides[2:], sides[-1]], strict=True), (2 * latent, sides[-1])]

    return walk


def _changed(change: Callable[[Walk], Any]) -> Callable[..., Any]:
    """The right walk, changed afterwards."""
    return lambda *arguments: change(shape_walk(*arguments))


def _of_widths(change: Callable[[Widths], Widths]) -> Callable[..., Walk]:
    """The right sides, with other widths after the levels."""

    def walk(widths: Widths, latent: int, side: int) -> Walk:
        right = shape_walk(widths, latent, side)
        return [right[0], *((w, s) for w, (_, s) in zip(change(widths), right[1:-1], strict=True)), right[-1]]

    return walk


_FOUR_LEVELS = "the rule fits four levels only: the last level is len(block_out_channels) - 1, whatever their number"
WALK_MISTAKES = Mistakes(
    [
        (_FOUR_LEVELS, _halving(lambda level, last: level < 3)),
        (
            "every level halves the side: the last one keeps it, n levels halve n - 1 times",
            _halving(lambda level, last: True),
        ),
        (
            "the first level keeps the side and the last one halves it: it is the other way round",
            _halving(lambda level, last: level > 0),
        ),
        ("no level halves the side: all but the last do", _halving(lambda level, last: False)),
        ("only one level halves the side: all but the last do", _halving(lambda level, last: level == 0)),
        ("the last two levels keep the side: only the last one does", _halving(lambda level, last: level < last - 1)),
        (
            "the side is divided by 4: half the side is already a quarter of the pixels",
            _dividing(lambda side: side // 4),
        ),
        (
            "round() takes .5 to the even neighbour, 3.5 to 4: odd sides are halved downwards, side // 2",
            _dividing(lambda side: round(side / 2)),
        ),
        (
            "odd sides are rounded up: the strided convolution drops the last pixel, so that 125 becomes 62",
            _dividing(lambda side: (side + 1) // 2),
        ),
        (
            "a side has a fraction: it is a whole number of pixels, divide with //",
            _dividing(lambda side: side / 2),
        ),
        (
            "the end has latent_channels: the encoder puts out a mean and a log-variance for each, twice as many",
            _changed(lambda walk: [*walk[:-1], (walk[-1][0] // 2, walk[-1][1])]),
        ),
        (
            "the end has 8 channels whatever latent_channels is: it has twice as many as the latent",
            _changed(lambda walk: [*walk[:-1], (8, walk[-1][1])]),
        ),
        (
            "the end is missing: conv_out turns the last width into 2 · latent_channels",
            _changed(lambda walk: walk[:-1]),
        ),
        ("the start is missing: conv_in changes the channels and keeps the side", _changed(lambda walk: walk[1:])),
        (
            "the image itself is listed: the list starts after conv_in",
            _changed(lambda walk: [(3, walk[0][1]), *walk]),
        ),
        (
            "it starts with the image's 3 channels: after conv_in there are block_out_channels[0]",
            _changed(lambda walk: [(3, walk[0][1]), *walk[1:]]),
        ),
        (
            "the mid block is listed: it keeps the shape; conv_in, the levels and conv_out are asked for",
            _changed(lambda walk: [*walk[:-1], walk[-2], walk[-1]]),
        ),
        (
            "conv_out halves the side: it only changes the channels",
            _changed(lambda walk: [*walk[:-1], (walk[-1][0], walk[-1][1] // 2)]),
        ),
        (
            "conv_in halves the side: the first halving is the first level's",
            lambda widths, latent, side: shape_walk(widths, latent, side // 2),
        ),
        (
            "the widths come one level early: a level puts out its own, block_out_channels[level]",
            _of_widths(lambda widths: (*widths[1:], widths[-1])),
        ),
        (
            "the widths come one level late: a level puts out its own, block_out_channels[level]",
            _of_widths(lambda widths: (widths[0], *widths[:-1])),
        ),
        ("all levels have the first width: each has its own", _of_widths(lambda widths: widths[:1] * len(widths))),
        ("the widths are reversed: that is the decoder", _of_widths(lambda widths: widths[::-1])),
        ("it runs from the smallest map to the largest: that is the decoder", _changed(lambda walk: walk[::-1])),
        (
            "channels and side are swapped: each entry is (channels, side)",
            _changed(lambda walk: [entry[::-1] for entry in walk]),
        ),
        (
            "only the sides are listed: each entry is (channels, side)",
            _changed(lambda walk: [side for _, side in walk]),
        ),
        (
            "only the channels are listed: each entry is (channels, side)",
            _changed(lambda walk: [width for width, _ in walk]),
        ),
    ]
)


@WALK_MISTAKES(
    "the side is halved after it is listed: a level halves the map before it puts it out, so halve, then append"
)
def walk_halving_after_the_list(widths: Widths, latent_channels: int, side: int) -> Walk:
    walk = [(widths[0], side)]
    for width in widths:
        walk.append((width, side))
        side //= 2
    return [*walk, (2 * latent_channels, side)]


@WALK_MISTAKES("height and width are listed both: each entry is (channels, side)")
def walk_of_triples(widths: Widths, latent_channels: int, side: int) -> list[tuple[int, int, int]]:
    return [(width, side, side) for width, side in shape_walk(widths, latent_channels, side)]


@WALK_MISTAKES("the start is listed, but not what the first level puts out: list every level, the first one as well")
def walk_without_the_first_level(widths: Widths, latent_channels: int, side: int) -> Walk:
    walk = shape_walk(widths, latent_channels, side)
    return [walk[0], *walk[2:]]


@WALK_MISTAKES("the last level is missing: it keeps the side, and is listed like the others")
def walk_without_the_last_level(widths: Widths, latent_channels: int, side: int) -> Walk:
    walk = shape_walk(widths, latent_channels, side)
    return [*walk[:-2], walk[-1]]


def _describe_walk(result: Any, expected: Any, arguments: Probe) -> str:
    case = f"for block_out_channels={arguments[0]}, latent_channels={arguments[1]}, side={arguments[2]}"
    if not isinstance(result, tuple):
        return f"expected a list of (channels, side), got {type(result).__name__}"
    if len(result) != len(expected):
        return f"expected {len(expected)} entries, for conv_in, every level and conv_out, got {len(result)}, {case}"
    wrong = next(i for i in range(len(expected)) if result[i] != expected[i])
    stage = "conv_in" if wrong == 0 else "conv_out" if wrong == len(expected) - 1 else f"level {wrong - 1}"
    return f"after {stage} it has {result[wrong]}, expected {expected[wrong]}, {case}"


# 05.2 and 05.3

# The first has equal widths: layers in a wrong order run, and are known by their results. It has Stable Diffusion's
# number of levels and the others have not, but none has its latent: numbers that are right for it alone are found out.
_CONFIGS = (
    AutoencoderKLConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=5),
    AutoencoderKLConfig(block_out_channels=(8, 16, 24), layers_per_block=1, norm_num_groups=4, latent_channels=3),
    AutoencoderKLConfig(block_out_channels=(4, 8), layers_per_block=2, norm_num_groups=2, latent_channels=3),
)
_BUILDS = tuple((config,) for config in _CONFIGS)


def _image(config: AutoencoderKLConfig) -> Probe:
    """Two images or one, not square, with another number of pixels than of channels at the mid block of any config."""
    return probe((len(config.block_out_channels) // 2, 3, 24, 40))


def _latent(config: AutoencoderKLConfig) -> Probe:
    """Likewise: 15 pixels at the mid block."""
    return probe((len(config.block_out_channels) // 2, config.latent_channels, 3, 5))


def _with(of: type[nn.Module], **methods: Callable[..., Any]) -> type[nn.Module]:
    """The finished class with other methods."""
    return type(of.__name__, (of,), methods)


def _made(of: type[nn.Module], change: Callable[[Any, AutoencoderKLConfig], Any]) -> type[nn.Module]:
    """The finished class with layers made otherwise."""

    def __init__(self: Any, config: AutoencoderKLConfig) -> None:
        of.__init__(self, config)
        change(self, config)

    return _with(of, __init__=__init__)


def _ran(of: type[nn.Module], forward: Callable[[Any, Tensor], Any]) -> type[nn.Module]:
    """The finished class with its layers used otherwise."""
    return _with(of, forward=forward)


Rule = Callable[[int, int], bool]  # (level, last level) -> whether it halves or doubles the map


def _levels(
    of: type[nn.Module], rule: Rule, layers: int = 0, widths_of: Callable[[Widths], Widths] = lambda widths: widths
) -> type[nn.Module]:
    """Encoder or decoder with another rule, more or fewer layers, or other widths (the first one comes twice)."""
    name, block, step = ("down_blocks", DownEncoderBlock2D, 1) if of is Encoder else ("up_blocks", UpDecoderBlock2D, -1)

    def change(module: Any, config: AutoencoderKLConfig) -> None:
        widths = config.block_out_channels[::step]
        last = len(widths) - 1
        count = config.layers_per_block + (of is Decoder) + layers
        steps = pairwise(widths_of((widths[0], *widths)))
        made = [block(*pair, count, config.norm_num_groups, "silu", rule(i, last)) for i, pair in enumerate(steps)]
        setattr(module, name, nn.ModuleList(made))

    return _made(of, change)


def _but_last(level: int, last: int) -> bool:
    return level < last


def _but_last_two(level: int, last: int) -> bool:
    return level < last - 1


def _conv(of: type[nn.Module], name: str, channels: Callable[[int, int], tuple[int, int]]) -> type[nn.Module]:
    """With another convolution: its channels, in and out, as `channels` makes them of the right ones."""

    def change(module: Any, config: AutoencoderKLConfig) -> None:
        right = getattr(module, name)
        before, after = channels(right.in_channels, right.out_channels)
        setattr(module, name, nn.Conv2d(before, after, right.kernel_size, padding=right.padding))

    return _made(of, change)


Stages = Sequence[nn.Module]


def _through(
    module: Any,
    x: Tensor,
    stages: Callable[[Stages, nn.Module], Stages] | None = None,
    norm: bool = True,
    act: Callable[[Any], Any] | None = F.silu,
) -> Any:
    """Encoder or decoder up to its conv_out, with other `stages`, made of the levels and the mid block, or less."""
    encodes = isinstance(module, Encoder)
    levels, mid = (*(module.down_blocks if encodes else module.up_blocks),), module.mid_block
    x = module.conv_in(x)
    for stage in stages(levels, mid) if stages else (*levels, mid) if encodes else (mid, *levels):
        x = stage(x)
    x = module.conv_norm_out(x) if norm else x
    return act(x) if act else x


def _staged(of: type[nn.Module], stages: Callable[[Stages, nn.Module], Stages]) -> type[nn.Module]:
    """The finished class with other stages between conv_in and conv_norm_out."""
    return _ran(of, lambda m, x: m.conv_out(_through(m, x, stages)))


def _common_mistakes(of: type[nn.Module]) -> tuple[ModuleMistake, ...]:
    """List the mistakes that occur in both encoder and decoder."""
    return (
        (
            "the mid block is made and not used: it stands where the map is smallest",
            _staged(of, lambda levels, mid: levels),
        ),
        (
            "the levels are made and not used: in the loop, assign what each one returns, x = level(x)",
            _staged(of, lambda levels, mid: (mid,)),
        ),
        (
            "conv_norm_out is made and not used: norm, SiLU, then conv_out",
            _ran(of, lambda m, x: m.conv_out(_through(m, x, norm=False))),
        ),
        (
            "the SiLU between conv_norm_out and conv_out is missing",
            _ran(of, lambda m, x: m.conv_out(_through(m, x, act=None))),
        ),
        (
            "conv_norm_out and SiLU are left out: norm, SiLU, then conv_out",
            _ran(of, lambda m, x: m.conv_out(_through(m, x, norm=False, act=None))),
        ),
        (
            "the SiLU stands before conv_norm_out: it comes after the norm",
            _ran(of, lambda m, x: m.conv_out(m.conv_norm_out(_through(m, x, norm=False)))),
        ),
        (
            "the activation before conv_out is a ReLU: it is SiLU, as in the blocks",
            _ran(of, lambda m, x: m.conv_out(_through(m, x, act=F.relu))),
        ),
        ("a SiLU after conv_out: nothing comes after it", _ran(of, lambda m, x: F.silu(of.forward(m, x)))),
        (
            "every level gets what conv_in or the mid block puts out: each gets what the one before it returned, "
            "x = level(x)",
            _staged(of, lambda levels, mid: (levels[-1], mid) if of is Encoder else (mid, levels[-1])),
        ),
        (
            "the list of levels cannot be called: loop over it, x = level(x)",
            _ran(of, lambda m, x: m.down_blocks(x) if of is Encoder else m.up_blocks(x)),
        ),
        (
            "the norms have 32 groups whatever the config says: config.norm_num_groups",
            _with(of, __init__=lambda m, config: of.__init__(m, replace(config, norm_num_groups=32))),
        ),
    )


def _judge_half(name: str, judge: Judge, mistakes: Sequence[ModuleMistake]) -> Judge:
    """Add to the judge of encoder or decoder what it cannot see: the kind of the list `name`, and a fixed config."""

    def judge_half(attempt: Any) -> str | None:
        complaint = judge(attempt)
        if complaint is None:
            kind = type(getattr(attempt(_CONFIGS[-1]), name))
            if issubclass(kind, nn.ModuleList):
                return None
            return f"self.{name} is an nn.{kind.__name__}: make it an nn.ModuleList, which later cells look into"
        if complaint not in dict(mistakes):
            with contextlib.suppress(Exception):
                return _ignored_config(attempt, name) or complaint
        return complaint

    return judge_half


def _ignored_config(attempt: Callable[[AutoencoderKLConfig], nn.Module], name: str) -> str | None:
    """Name the part of the config that makes no difference to the levels; None if all do."""
    with torch.device("meta"):
        levels = [getattr(attempt(config), name) for config in _CONFIGS]
    first, second = ({key: value.shape for key, value in list_.state_dict().items()} for list_ in levels[:2])
    if first == second:
        return "the levels are the same whatever the config says: take the widths from config.block_out_channels"
    if len(levels[1][0].resnets) == len(levels[2][0].resnets):
        return "the levels have the same number of ResNet blocks whatever the config says: config.layers_per_block"
    return None


def _turned_round(of: type[nn.Module]) -> type[nn.Module]:
    """With the widths in the other order."""

    def __init__(self: Any, config: AutoencoderKLConfig) -> None:
        of.__init__(self, replace(config, block_out_channels=config.block_out_channels[::-1]))

    return _with(of, __init__=__init__)


ENCODER_MISTAKES: tuple[ModuleMistake, ...] = (
    (_FOUR_LEVELS, _levels(Encoder, lambda level, last: level < 3)),
    (
        "every level halves the map: the last one does not (add_downsample=False)",
        _levels(Encoder, lambda level, last: True),
    ),
    (
        "no level halves the map: all but the last do (add_downsample=True)",
        _levels(Encoder, lambda level, last: False),
    ),
    (
        "only the last level halves the map: it is the one that does not",
        _levels(Encoder, lambda level, last: level == last),
    ),
    (
        "the first level keeps the map and the last one halves it: it is the other way round",
        _levels(Encoder, lambda level, last: level > 0),
    ),
    (
        "the levels have layers_per_block + 1 ResNet blocks: that is the decoder",
        _levels(Encoder, _but_last, layers=1),
    ),
    *(
        (
            "there is one level too few: the first one maps block_out_channels[0] to itself",
            _levels(Encoder, rule, widths_of=lambda w: w[1:]),
        )
        for rule in (_but_last, _but_last_two)
    ),
    (
        "the widths are one level ahead: the first level maps block_out_channels[0] to itself",
        _levels(Encoder, _but_last, widths_of=lambda w: (*w[1:], w[-1])),
    ),
    (
        "the widths are reversed: that is the decoder",
        _turned_round(Encoder),
    ),
    (
        "conv_out makes latent_channels: the posterior needs a mean and a log-variance, twice as many",
        _conv(Encoder, "conv_out", lambda before, after: (before, after // 2)),
    ),
    (
        "conv_out makes 8 channels whatever the config says: 2 * config.latent_channels",
        _conv(Encoder, "conv_out", lambda before, after: (before, 8)),
    ),
    (
        "the mid block stands before the levels: it comes after them, where the map is smallest",
        _staged(Encoder, lambda levels, mid: (mid, *levels)),
    ),
    (
        "the levels run backwards: they are kept in the order in which the image passes them",
        _staged(Encoder, lambda levels, mid: (*levels[::-1], mid)),
    ),
    *_common_mistakes(Encoder),
    (
        "only the first half of the channels is returned, the mean: the posterior needs both",
        _ran(Encoder, lambda m, x: Encoder.forward(m, x).chunk(2, dim=1)[0]),
    ),
    (
        "the result is split into mean and log-variance: return it whole, the posterior splits it",
        _ran(Encoder, lambda m, x: Encoder.forward(m, x).chunk(2, dim=1)),
    ),
    (
        "a tanh at the end: means and log-variances may be any numbers",
        _ran(Encoder, lambda m, x: Encoder.forward(m, x).tanh()),
    ),
)


def _doubling_after(blocks: int) -> type[nn.Module]:
    """With each level's upsampling after that many ResNet blocks."""

    def forward(decoder: Any, z: Tensor) -> Any:
        z = decoder.mid_block(decoder.conv_in(z))
        for level in decoder.up_blocks:
            for part in (*level.resnets[:blocks], *level.upsamplers, *level.resnets[blocks:]):
                z = part(z)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(z)))

    return _ran(Decoder, forward)


_NO_TANH = "a tanh at the end: Stable Diffusion's decoder has none, and was trained without"
_NO_CLAMP = "the result is clamped: return what conv_out gives, whoever shows it clamps"
DECODER_MISTAKES: tuple[ModuleMistake, ...] = (
    (_FOUR_LEVELS, _levels(Decoder, lambda level, last: level < 3)),
    (
        "the widths are not reversed: the decoder begins with the last one, at the smallest map",
        _turned_round(Decoder),
    ),
    (
        "the levels have layers_per_block ResNet blocks: in the decoder it is one more",
        _levels(Decoder, _but_last, layers=-1),
    ),
    (
        "every level doubles the map: the last one does not (add_upsample=False)",
        _levels(Decoder, lambda level, last: True),
    ),
    (
        "no level doubles the map: all but the last do (add_upsample=True)",
        _levels(Decoder, lambda level, last: False),
    ),
    (
        "only the last level doubles the map: it is the one that does not",
        _levels(Decoder, lambda level, last: level == last),
    ),
    (
        "the first level keeps the map and the last one doubles it: it is the other way round",
        _levels(Decoder, lambda level, last: level > 0),
    ),
    *(
        (
            "there is one level too few: the first one maps the last width to itself",
            _levels(Decoder, rule, widths_of=lambda w: w[1:]),
        )
        for rule in (_but_last, _but_last_two)
    ),
    (
        "the widths are one level ahead: the first level maps the last width to itself",
        _levels(Decoder, _but_last, widths_of=lambda w: (*w[1:], w[-1])),
    ),
    (
        "conv_in takes 2 · latent_channels: a latent is decoded, not a mean and a log-variance",
        _conv(Decoder, "conv_in", lambda before, after: (2 * before, after)),
    ),
    (
        "conv_in takes 4 channels whatever the config says: config.latent_channels",
        _conv(Decoder, "conv_in", lambda before, after: (4, after)),
    ),
    (
        "the mid block stands after the levels: it comes before them, where the map is smallest",
        _staged(Decoder, lambda levels, mid: (*levels, mid)),
    ),
    (
        "the levels run backwards: they are kept in the order in which the latent passes them",
        _staged(Decoder, lambda levels, mid: (mid, *levels[::-1])),
    ),
    *_common_mistakes(Decoder),
    *(
        (
            "the map is doubled too early: in a level the upsampling comes after all ResNet blocks",
            _doubling_after(blocks),
        )
        for blocks in (0, 1)
    ),
    (_NO_TANH, _ran(Decoder, lambda m, z: Decoder.forward(m, z).tanh())),
    (
        "a sigmoid at the end: Stable Diffusion's decoder has none, and images run from -1 to 1",
        _ran(Decoder, lambda m, z: Decoder.forward(m, z).sigmoid()),
    ),
    (_NO_CLAMP, _ran(Decoder, lambda m, z: Decoder.forward(m, z).clamp(-1, 1))),
)

# 05.4

_SCALE = 0.18215  # Stable Diffusion v1's
_NOT_SCALED = "the scaling factor is applied: diffusion models do that to a latent, the autoencoder itself does not"


def _encodes(parameters: Callable[[Any, Tensor], Tensor]) -> type[nn.Module]:
    """With a posterior of other parameters."""
    return _with(Autoencoder, encode=lambda m, x: DiagonalGaussianDistribution(parameters(m, x)))


def _mean_only(module: Any, x: Tensor) -> Tensor:
    """quant_conv on the mean; the log-variance goes past it."""
    before = module.encoder(x)
    return torch.cat([module.quant_conv(before).chunk(2, dim=1)[0], before.chunk(2, dim=1)[1]], dim=1)


AUTOENCODER_MISTAKES: dict[str, tuple[ModuleMistake, ...]] = {
    "encode": (
        (
            "quant_conv has latent_channels: it mixes mean and log-variance, 2 · latent_channels",
            _conv(Autoencoder, "quant_conv", lambda before, after: (before // 2, after // 2)),
        ),
        (
            "quant_conv halves the channels: it maps 2 · latent_channels to as many",
            _conv(Autoencoder, "quant_conv", lambda before, after: (before, after // 2)),
        ),
        (
            "post_quant_conv has 2 · latent_channels: it works on a latent",
            _conv(Autoencoder, "post_quant_conv", lambda before, after: (2 * before, 2 * after)),
        ),
        *(
            (
                "the 1×1 convolutions have 8 and 4 channels whatever the config says: "
                "2 * config.latent_channels and config.latent_channels",
                code,
            )
            for code in (
                _conv(_conv(Autoencoder, "quant_conv", lambda *_: (8, 8)), "post_quant_conv", lambda *_: (4, 4)),
                _conv(Autoencoder, "quant_conv", lambda *_: (8, 8)),
                _conv(Autoencoder, "post_quant_conv", lambda *_: (4, 4)),
            )
        ),
        (
            "quant_conv is made and not used: it comes after the encoder",
            _encodes(lambda m, x: m.encoder(x)),
        ),
        (
            "quant_conv works on the mean only: apply it to all channels, before they are split",
            _encodes(_mean_only),
        ),
        (
            "the posterior is deterministic: leave that argument out, so that it has a spread",
            _with(
                Autoencoder,
                encode=lambda m, x: DiagonalGaussianDistribution(m.quant_conv(m.encoder(x)), deterministic=True),
            ),
        ),
        (
            "the halves are swapped: the mean is the first half of what quant_conv puts out",
            _encodes(lambda m, x: torch.cat(m.quant_conv(m.encoder(x)).chunk(2, dim=1)[::-1], dim=1)),
        ),
        ("quant_conv is applied twice", _encodes(lambda m, x: m.quant_conv(m.quant_conv(m.encoder(x))))),
        (_NOT_SCALED, _encodes(lambda m, x: _SCALE * m.quant_conv(m.encoder(x)))),
    ),
    "decode": (
        (
            "post_quant_conv is made and not used: it comes before the decoder",
            _with(Autoencoder, decode=lambda m, z: m.decoder(z)),
        ),
        (
            "post_quant_conv is applied twice",
            _with(Autoencoder, decode=lambda m, z: m.decoder(m.post_quant_conv(m.post_quant_conv(z)))),
        ),
        *(
            (_NOT_SCALED, _with(Autoencoder, decode=lambda m, z, scale=scale: Autoencoder.decode(m, scale * z)))
            for scale in (_SCALE, 1 / _SCALE)
        ),
        (_NO_TANH, _with(Autoencoder, decode=lambda m, z: Autoencoder.decode(m, z).tanh())),
        (_NO_CLAMP, _with(Autoencoder, decode=lambda m, z: Autoencoder.decode(m, z).clamp(-1, 1))),
    ),
    "forward": (
        ("it returns the latent: decode it", _ran(Autoencoder, lambda m, x: m.encode(x).mode())),
        (
            "it decodes the standard deviation: decode the mode",
            _ran(Autoencoder, lambda m, x: m.decode(m.encode(x).std)),
        ),
        (
            "post_quant_conv is left out: go through self.decode, which has it",
            _ran(Autoencoder, lambda m, x: m.decoder(m.encode(x).mode())),
        ),
        (
            "post_quant_conv is applied twice: self.decode has it already",
            _ran(Autoencoder, lambda m, x: m.decode(m.post_quant_conv(m.encode(x).mode()))),
        ),
    ),
}


def _method(name: str, inputs: Callable[[AutoencoderKLConfig], Probe], look: Callable[[Any], Any]) -> Judge:
    """A judge of one method: it becomes `forward` of a subclass."""

    def viewed(cls: Any) -> Any:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            return cls
        return _with(cls, forward=lambda m, x: look(getattr(m, name)(x)))

    mistakes = [(message, viewed(code)) for message, code in AUTOENCODER_MISTAKES[name]]
    judge = judge_module(viewed(Autoencoder), _BUILDS, inputs, mistakes, _LAYERS)
    return lambda cls: judge(viewed(cls))


_READ = ("mean", "logvar", "std", "parameters")  # of the posterior, by the judge and by later cells


def _moments(posterior: Any) -> Any:
    """Mean, log-variance and deviation in one tensor; `...`, None and what is no posterior as they are."""
    if not all(hasattr(posterior, name) for name in _READ):
        return posterior
    return torch.cat([posterior.mean, posterior.logvar, posterior.std], dim=1)


def _judge_encode(cls: Any) -> str | None:
    complaint = _ENCODE(cls)
    if complaint and not complaint.startswith("expected"):
        return complaint
    posterior = cls(_CONFIGS[0]).encode(*_image(_CONFIGS[0]))
    if isinstance(posterior, Tensor):
        return "it returns a tensor: return the posterior, a DiagonalGaussianDistribution of all channels"
    missing = [name for name in _READ if not hasattr(posterior, name)]
    if 0 < len(missing) < len(_READ):
        return f"the posterior has no {missing[0]}, which later cells read: return a DiagonalGaussianDistribution"
    return complaint and complaint.replace("expected a Tensor", "expected a DiagonalGaussianDistribution")


def _judge_forward(cls: Any) -> str | None:
    complaint = _FORWARD(cls)
    if complaint and "draws random numbers" in complaint:
        return "it decodes a sample, so that each call gives another picture: decode the posterior's mode()"
    if decoded := re.search(r"conv2d\(\).* got \((\w+),", complaint or ""):
        if decoded[1] == "method":
            return "it decodes the method itself: call it, mode()"
        return f"it decodes a {decoded[1]}: decode the posterior's mode(), a latent"
    return complaint


_LAYERS = ("encoder", "decoder", "quant_conv", "post_quant_conv")
_ENCODE = _method("encode", _image, _moments)
_DECODE = _method("decode", _latent, lambda image: image)
_FORWARD = judge_module(Autoencoder, _BUILDS, _image, AUTOENCODER_MISTAKES["forward"], _LAYERS)

# 05.5


def _by_parts(
    level: Callable[[int, int], int] = lambda level, levels: levels - 1 - level, encoder_too: bool = False, **new: str
) -> Callable[[str, int], str]:
    """The right name, but with some parts translated otherwise, or the level counted otherwise."""

    def rename(name: str, levels: int) -> str:
        parts = name.split(".")
        if parts[:2] == ["decoder", "up"] or (encoder_too and parts[:2] == ["encoder", "down"]):
            parts[2] = str(level(int(parts[2]), levels))
        return ".".join(new.get(part, diffusers_name(part, levels)) for part in parts)

    return rename


def _reversing_up_blocks(name: str, levels: int) -> str:
    return _by_parts()(name.replace("up_blocks.", "up."), levels)


def _looking_for_up_anywhere(name: str, levels: int) -> str:
    parts = name.split(".")
    if "up" in name:
        parts[2] = str(levels - 1 - int(parts[2]))
    return ".".join(diffusers_name(part, levels) for part in parts)


NAME_MISTAKES = Mistakes(
    [
        (
            "the decoder's levels are counted from the wrong end: CompVis' decoder.up.0 is the largest map, "
            "decoder.up_blocks.0 the smallest",
            _by_parts(level=lambda level, levels: level),
        ),
        (
            "the decoder's levels are one off: level i of n is n - 1 - i from the other end",
            _by_parts(level=lambda level, levels: levels - level),
        ),
        (
            "the encoder's levels are reversed too: both schemes count them from the largest map",
            _by_parts(encoder_too=True),
        ),
        (
            "a current name's level is reversed: only CompVis' decoder.up counts from the largest map",
            _reversing_up_blocks,
        ),
        (
            "'up' is looked for in the whole name, and found in group_norm: ask whether the second part is 'up'",
            _looking_for_up_anywhere,
        ),
        (
            "it works for four levels only: count from the end with the argument levels",
            _by_parts(level=lambda level, levels: 3 - level),
        ),
        (
            "the mid block's ResNet blocks are one off: CompVis has block_1, block_2, diffusers resnets.0, resnets.1",
            _by_parts(block_1="resnets.1", block_2="resnets.2"),
        ),
        ("the attention block is one off: CompVis' attn_1 is attentions.0", _by_parts(attn_1="attentions.1")),
        *(
            (f"{old} is left as it is: it becomes {diffusers_name(old, 0)}", _by_parts(**{old: old}))  # type: ignore[arg-type]
            for old in ("down", "up", "mid", "block", "attn_1", "nin_shortcut", "norm_out")
        ),
        ("the attention's norm is left as it is: it becomes group_norm", _by_parts(norm="norm")),
        ("the attention's q, k, v are left as they are: they become to_q, to_k, to_v", _by_parts(q="q", k="k", v="v")),
        ("proj_out is left as it is: it becomes to_out.0", _by_parts(proj_out="proj_out")),
        (
            "to_out lacks its .0: diffusers keeps the layer in a list of one",
            _by_parts(proj_out="to_out", proj_attn="to_out"),
        ),
        (
            "downsamplers and upsamplers lack their .0: diffusers keeps the layer in a list of one",
            _by_parts(downsample="downsamplers", upsample="upsamplers"),
        ),
        (
            "downsample and upsample are left as they are: they become downsamplers.0 and upsamplers.0",
            _by_parts(downsample="downsample", upsample="upsample"),
        ),
        (
            "old names of diffusers come back as they are: query, key, value, proj_attn are to_q, to_k, to_v, to_out.0",
            _by_parts(query="query", key="key", value="value", proj_attn="proj_attn"),
        ),
    ]
)


@NAME_MISTAKES("the parts are joined without dots: put them between, '.'.join(parts)")
def name_without_dots(name: str, levels: int) -> str:
    return diffusers_name(name, levels).replace(".", "")


@NAME_MISTAKES("the parts are joined by another sign: put dots between them, '.'.join(parts)")
def name_with_underscores(name: str, levels: int) -> str:
    return diffusers_name(name, levels).replace(".", "_")


@NAME_MISTAKES("the last part, weight or bias, is left out: it comes back as it is")
def name_without_its_end(name: str, levels: int) -> str:
    return diffusers_name(name, levels).rpartition(".")[0]


@NAME_MISTAKES("conv_in and other parts without an entry are left out: new.get(part, part) keeps them")
def name_of_new_parts_only(name: str, levels: int) -> str:
    return ".".join(diffusers_name(part, levels) for part in name.split(".") if diffusers_name(part, levels) != part)


_OLD = (
    *("down", "up", "mid", "block", "block_1", "block_2", "attn_1", "nin_shortcut", "downsample", "upsample"),
    *("norm_out", "norm", "q", "k", "v", "proj_out", "query", "key", "value", "proj_attn"),
)


def _replaced_inside(name: str, result: str) -> bool:
    """Tell whether a part of the result is a part of the name in which one or more old names were replaced."""
    for part in name.split("."):
        for order in (_OLD, _OLD[::-1]):
            changed = {part}
            for old in order:
                changed |= {text.replace(old, diffusers_name(old, 0)) for text in changed if text != old}
            wrong = changed - {part, diffusers_name(part, 0)}
            if any(f".{text}." in f".{result}." for text in wrong):
                return True
    return False


def _describe_name(result: Any, expected: Any, arguments: Probe) -> str:
    if not isinstance(result, str):
        return f"expected the name as one text, got {type(result).__name__}"
    parts, right = result.split("."), expected.split(".")
    inside = any(len(whole) > 1 and whole in part for part in parts if part not in right for whole in right)
    if inside or _replaced_inside(arguments[0], result):
        return (
            f"{arguments[0]} becomes {result}: a name was replaced inside of another one; "
            "compare whole parts, as split('.') gives them"
        )
    verb = "comes back unchanged" if result == arguments[0] else f"becomes {result}"
    return f"{arguments[0]} {verb}, expected {expected} (levels={arguments[1]})"


_NAMES = (
    ("encoder.conv_in.weight", 4),
    ("encoder.down.1.block.0.conv1.weight", 4),
    ("encoder.down.1.block.0.nin_shortcut.weight", 4),
    ("encoder.down.0.downsample.conv.bias", 4),
    ("decoder.up.3.block.2.conv1.weight", 4),
    ("decoder.up.1.block.0.norm1.bias", 5),
    ("decoder.up.1.upsample.conv.weight", 4),
    ("encoder.mid.block_1.norm1.weight", 4),
    ("decoder.mid.block_2.conv2.bias", 4),
    ("decoder.mid.attn_1.norm.bias", 4),
    ("encoder.mid.attn_1.q.weight", 4),
    ("encoder.mid.attn_1.k.bias", 4),
    ("decoder.mid.attn_1.v.weight", 4),
    ("decoder.mid.attn_1.proj_out.weight", 4),
    ("decoder.norm_out.weight", 4),
    ("decoder.conv_out.bias", 4),
    ("quant_conv.weight", 4),
    ("post_quant_conv.bias", 4),
    ("encoder.mid_block.attentions.0.query.weight", 4),
    ("encoder.mid_block.attentions.0.key.bias", 4),
    ("decoder.mid_block.attentions.0.value.weight", 4),
    ("decoder.mid_block.attentions.0.proj_attn.weight", 4),
    ("decoder.mid_block.attentions.0.to_q.weight", 4),
    ("encoder.mid_block.attentions.0.to_out.0.bias", 4),
    ("encoder.mid_block.attentions.0.group_norm.bias", 4),
    ("decoder.up_blocks.3.resnets.0.conv_shortcut.weight", 4),
    ("encoder.down_blocks.1.downsamplers.0.conv.weight", 4),
    ("encoder.conv_norm_out.weight", 4),
)

EXERCISES = (
    Exercise(
        id="05.1",
        title="Walk through the shapes",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=shape_walk,
        in_package=(network.Encoder,),
        hints=(
            "conv_in and conv_out keep the side. A level may change the channels, the side, both or neither.",
            "Level i puts out block_out_channels[i]. Which is the only level that does not halve the side?",
            "For every level but the last: side //= 2. The last entry is (2 * latent_channels, side).",
        ),
        judge=_judge_plain(
            shape_walk,
            [((16, 32, 48, 96), 3, 256), ((128, 256, 512, 512), 4, 250), ((8, 24), 5, 31), ((32,), 1, 16)],
            WALK_MISTAKES,
            _describe_walk,
        ),
    ),
    Exercise(
        id="05.2",
        title="The encoder",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=Encoder,
        in_package=(network.Encoder,),
        hints=(
            "pairwise((widths[0], *widths)) gives each level its width before and after; enumerate counts the levels.",
            "The last level has add_downsample=False. The mid block and conv_norm_out have the last width.",
            "conv_out takes the last width to 2 * config.latent_channels, 3x3 with padding 1; the norm's eps is 1e-6.",
            "forward: conv_in, every level in a loop, mid_block, conv_norm_out, conv_act, conv_out.",
        ),
        judge=_judge_half(
            "down_blocks",
            judge_module(
                Encoder,
                _BUILDS,
                _image,
                ENCODER_MISTAKES,
                ("conv_in", "down_blocks", "mid_block", "conv_norm_out", "conv_act", "conv_out"),
                given=("down_blocks",),
            ),
            ENCODER_MISTAKES,
        ),
    ),
    Exercise(
        id="05.3",
        title="The decoder",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=Decoder,
        in_package=(network.Decoder,),
        hints=(
            "Turn the widths round once, widths = config.block_out_channels[::-1], and build as in the encoder.",
            "The mid block comes before the levels, with the first of the reversed widths.",
            "layers_per_block + 1 ResNet blocks in a level; all levels but the last have add_upsample=True.",
            "forward: conv_in, mid_block, every level in a loop, conv_norm_out, conv_act, conv_out; no tanh.",
        ),
        judge=_judge_half(
            "up_blocks",
            judge_module(
                Decoder,
                _BUILDS,
                _latent,
                DECODER_MISTAKES,
                ("conv_in", "mid_block", "up_blocks", "conv_norm_out", "conv_act", "conv_out"),
                given=("up_blocks",),
            ),
            DECODER_MISTAKES,
        ),
    ),
    Exercise(
        id="05.4",
        title="The autoencoder",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=Autoencoder,
        in_package=(autoencoder.AutoencoderKL,),
        hints=(
            "quant_conv comes after the encoder and has its channels, 2 · latent_channels in and out.",
            "encode returns DiagonalGaussianDistribution(…), which splits mean and log-variance by itself.",
            "post_quant_conv comes before the decoder, latent_channels in and out; forward decodes encode(x).mode().",
        ),
        judge=judge_parts({"encode": _judge_encode, "decode": _DECODE, "forward": _judge_forward}),
    ),
    Exercise(
        id="05.5",
        title="Translate a tensor's name",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=diffusers_name,
        in_package=(keys.to_diffusers,),
        hints=(
            'name.split(".") gives the parts; ".".join(parts) puts them together again.',
            "new.get(part, part) is the new name of a part if there is one, else the part itself.",
            "Where the first two parts are decoder and up, the third is the level: str(levels - 1 - int(parts[2])).",
        ),
        judge=_judge_plain(diffusers_name, _NAMES, NAME_MISTAKES, _describe_name),
    ),
)
