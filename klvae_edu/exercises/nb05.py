"""The exercises of notebook 05, the KL-f8 architecture."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu import autoencoder, network
from klvae_edu.blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.exercises.attempt import (
    Attempt,
    Local,
    NothingReturned,
    Raised,
    Recipe,
    call,
    explain,
    kind,
    recipe,
    type_name,
)
from klvae_edu.exercises.exercise import Exercise, Judge, Mistakes
from klvae_edu.exercises.judges.functions import Mistake, Probe, judge_parts, probe, same
from klvae_edu.exercises.judges.modules import built, forward_of, judge_module, settings_of, shapes_of
from klvae_edu.exercises.solutions.nb05 import Autoencoder, Decoder, Encoder, diffusers_name, shape_walk
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.weights import keys

NOTEBOOK = "05_kl_f8_architecture"


# Answers that are plain Python: numbers and texts


@recipe
def plain_result(answer: Any, *arguments: Any) -> Any:
    """Return the result; a gap in a pair inside of it counts as a gap."""
    result = call(answer, *arguments)
    for entry in result if isinstance(result, list) else ():
        if isinstance(entry, tuple):
            call(lambda entry=entry: entry)
    return result


def _judge_plain(
    reference: Callable[..., Any],
    probes: Sequence[Probe],
    mistakes: Sequence[Mistake],
    describe: Callable[[Any, Any, Probe], str],
) -> Judge:
    """Make a judge of functions that return no tensors.

    Args:
        reference: the reference solution.
        probes: arguments for the calls.
        mistakes: tried in this order. They are recognised if they agree on all probes.
        describe: describes (result, expected result, probe) where no mistake fits.
    """

    def judge(attempt: Attempt) -> str | None:
        about = attempt.run(kind)
        if not about["callable"]:
            return f"expected the function itself, got its result or another object ({about['type']})"
        results, right = ([_outcome(it, probe) for probe in probes] for it in (attempt, Local(reference)))
        if all(isinstance(result, NothingReturned) for result in results):
            raise NothingReturned
        wrong = next((i for i, result in enumerate(results) if _text(result) != _text(right[i])), None)
        if wrong is None:
            return None
        for message, code in mistakes:
            if all(_text(result) == _text(_outcome(Local(code), probes[i])) for i, result in enumerate(results)):
                return message
        return describe(results[wrong], right[wrong], probes[wrong])

    return judge


def _outcome(attempt: Attempt, arguments: Probe) -> Any:
    try:
        return attempt.run(plain_result, *arguments)
    except (Raised, NothingReturned) as error:
        return error


def _text(outcome: Any) -> str:
    """Write a result or an exception as text that tells types apart, too: 62 from 62.0, a list from a tuple."""
    return outcome.text if isinstance(outcome, Raised) else repr(outcome)


# The levels that halve or double their map, in 05.1 to 05.3

Widths = Sequence[int]
Rule = Callable[[int, Widths], bool]  # (level, widths of all levels) -> whether it halves or doubles the map


def _but_last(level: int, widths: Widths) -> bool:
    return level < len(widths) - 1


def _wrong_rules(halves: str) -> list[tuple[str, Rule]]:
    """List the wrong rules. `halves` is the verb."""
    return [
        ("the rule fits four levels only: the last one is len(block_out_channels) - 1", lambda i, widths: i < 3),
        (f"every level {halves} the map: the last one keeps it", lambda i, widths: True),
        (f"no level {halves} the map: all but the last do", lambda i, widths: False),
        (f"only the first level {halves} the map: all but the last do", lambda i, widths: i == 0),
        (f"only the last level {halves} the map: it is the one that does not", lambda i, w: i == len(w) - 1),
        (
            f"the first level keeps the map and the last one {halves} it: the other way round, or noted too late",
            lambda i, widths: i > 0,
        ),
        ("the last two levels keep the map: only the last one does", lambda i, widths: i < len(widths) - 2),
        (
            f"a level {halves} the map where the width changes: all but the last do, whatever their widths",
            lambda i, widths: widths[i] != widths[max(i - 1, 0)],
        ),
        (
            "the last level is known by its width, and others may have the same: go by its number",
            lambda i, widths: widths[i] != widths[-1],
        ),
    ]


# 05.1

Walk = list[tuple[int, int]]


def _walk(halves: Rule = _but_last, half: Callable[[int], Any] = lambda side: side // 2) -> Callable[..., Walk]:
    """Make a walk with another rule, or with another idea of half a side."""

    def walk(block_out_channels, latent_channels, side):
        found = [(block_out_channels[0], side)]
        for level, width in enumerate(block_out_channels):
            side = half(side) if halves(level, block_out_channels) else side
            found.append((width, side))
        return [*found, (2 * latent_channels, side)]

    return walk


def _changed(change: Callable[[Walk], Any]) -> Callable[..., Any]:
    """Make the right walk, changed afterwards."""
    return lambda *arguments: change(shape_walk(*arguments))


def _widths(change: Callable[[list[int]], list[int]]) -> Callable[..., Walk]:
    """Make the right walk with other widths after the levels."""

    def changed(walk: Walk) -> Walk:
        widths, sides = zip(*walk[1:-1], strict=True)
        return [walk[0], *zip(change([*widths]), sides, strict=True), walk[-1]]

    return _changed(changed)


def _end(change: Callable[[int, int], Walk]) -> Callable[..., Walk]:
    """Make the right walk with another end."""
    return _changed(lambda w: [*w[:-1], *change(*w[-1])])


WALK_MISTAKES = Mistakes(
    [
        *((message, _walk(rule)) for message, rule in _wrong_rules("halves")),
        ("the side is divided by 4: half the side is already a quarter of the pixels", _walk(half=lambda it: it // 4)),
        ("round() takes .5 to the even neighbour: halve downwards, side // 2", _walk(half=lambda it: round(it / 2))),
        ("odd sides are rounded up: 125 becomes 62, side // 2", _walk(half=lambda it: (it + 1) // 2)),
        ("a side has a fraction: it is a whole number of pixels, divide with //", _walk(half=lambda it: it / 2)),
        ("the end has latent_channels: mean and log-variance have twice as many", _end(lambda c, s: [(c // 2, s)])),
        ("the end has 8 channels whatever latent_channels is: it has twice as many", _end(lambda c, s: [(8, s)])),
        ("conv_out halves the side: it only changes the channels", _end(lambda c, s: [(c, s // 2)])),
        ("the end is missing: conv_out turns the last width into 2 · latent_channels", _end(lambda c, s: [])),
        ("the end has the last width: conv_out makes 2 · latent_channels of it", _changed(lambda w: [*w[:-1], w[-2]])),
        (
            "the end has the picture's side: conv_out keeps the side of the last level",
            _changed(lambda w: [*w[:-1], (w[-1][0], w[0][1])]),
        ),
        ("the mid block is listed: it keeps the shape, leave it out", _changed(lambda w: [*w[:-1], *w[-2:]])),
        ("the start is missing: conv_in changes the channels and keeps the side", _changed(lambda w: w[1:])),
        ("the image itself is listed: the list starts after conv_in", _changed(lambda w: [(3, w[0][1]), *w])),
        ("it starts with 3 channels: conv_in makes block_out_channels[0]", _changed(lambda w: [(3, w[0][1]), *w[1:]])),
        ("conv_in halves the side: the first level does", lambda widths, c, side: shape_walk(widths, c, side // 2)),
        ("the side is 256 whatever the argument says: start with side", lambda w, c, side: shape_walk(w, c, 256)),
        (
            "the side is rounded up to a multiple of f first, as the finished class pads: the bare network does not",
            lambda widths, latent, side: shape_walk(widths, latent, -(-side // 2 ** (n := len(widths) - 1)) * 2**n),
        ),
        (
            "side // 2 * level multiplies the half: half of a half, and so on, is side // 2**level",
            _changed(lambda w: [w[0], *((it[0], w[0][1] // 2 * min(i, len(w) - 2)) for i, it in enumerate(w[1:], 1))]),
        ),
        (
            "the channels are doubled: level i makes block_out_channels[i]",
            _widths(lambda w: [w[0] << i for i in range(len(w))]),
        ),
        ("the widths come one level early: level i makes block_out_channels[i]", _widths(lambda w: [*w[1:], w[-1]])),
        ("the widths come one level late: level i makes block_out_channels[i]", _widths(lambda w: [w[0], *w[:-1]])),
        ("all levels have the first width: each has its own", _widths(lambda w: w[:1] * len(w))),
        ("the widths are reversed: that is the decoder", _widths(lambda w: w[::-1])),
        ("it runs from the smallest map to the largest: that is the decoder", _changed(lambda w: w[::-1])),
        ("channels and side are swapped: each entry is (channels, side)", _changed(lambda w: [it[::-1] for it in w])),
        ("only the sides are listed: each entry is (channels, side)", _changed(lambda w: [it[1] for it in w])),
        ("only the channels are listed: each entry is (channels, side)", _changed(lambda w: [it[0] for it in w])),
        (
            "height and width are listed both: an entry is (channels, side)",
            _changed(lambda w: [(*it, it[1]) for it in w]),
        ),
        ("the first level is missing: it puts out the first width once more", _changed(lambda w: [w[0], *w[2:]])),
        ("the last level is missing: it keeps the side, and is listed", _changed(lambda w: [*w[:-2], w[-1]])),
    ]
)


@WALK_MISTAKES("the side is halved after it is listed: halve, then append what the level puts out")
def walk_halving_after_the_list(block_out_channels, latent_channels, side):
    walk = [(block_out_channels[0], side)]
    for width in block_out_channels:
        walk.append((width, side))
        side //= 2
    return [*walk, (2 * latent_channels, side)]


def _describe_walk(result: Any, expected: Any, arguments: Probe) -> str:
    case = f"for block_out_channels={arguments[0]}, latent_channels={arguments[1]}, side={arguments[2]}"
    if isinstance(result, Raised):
        return f"{explain(result)}, {case}"
    if not isinstance(result, list):
        return f"expected a list of (channels, side), got {type_name(result)}"
    if len(result) != len(expected):
        return f"expected {len(expected)} entries, for conv_in, every level and conv_out, got {len(result)}, {case}"
    for entry in result:
        if not isinstance(entry, tuple):
            return f"expected pairs (channels, side) in round brackets, got an entry of type {type_name(entry)}"
    wrong = next(i for i in range(len(expected)) if repr(result[i]) != repr(expected[i]))
    stage = "conv_in" if wrong == 0 else "conv_out" if wrong == len(expected) - 1 else f"level {wrong - 1}"
    return f"after {stage} it has {result[wrong]}, expected {expected[wrong]}, {case}"


# 05.2 to 05.4: modules, built from the settings of a configuration

# The first has equal widths: layers in a wrong order run, and are known by their results. It has Stable Diffusion's
# number of levels and the others have not, but none has its latent: numbers that are right for it alone are found out.
# The widths of the second rise and fall: sorted ones are not reversed ones.
_SETTINGS: tuple[dict[str, Any], ...] = (
    {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 5},
    {"block_out_channels": (8, 24, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3},
    {"block_out_channels": (4, 8), "layers_per_block": 2, "norm_num_groups": 2, "latent_channels": 3},
)
_BUILDS = tuple((settings,) for settings in _SETTINGS)


def _image(settings: Mapping[str, Any]) -> Probe:
    """Make two images or one, not square, with another number of pixels than of channels at the mid block."""
    return probe((len(settings["block_out_channels"]) // 2, 3, 24, 40))


def _latent(settings: Mapping[str, Any]) -> Probe:
    """Make latents likewise: 15 pixels at the mid block."""
    return probe((len(settings["block_out_channels"]) // 2, settings["latent_channels"], 3, 5))


_READ = ("mean", "logvar", "std", "parameters")  # of the posterior, by the judge and by later cells


def _moments(posterior: Any) -> Any:
    """Stack mean, log-variance and standard deviation; anything that is no posterior comes back as it is."""
    if not all(hasattr(posterior, name) for name in _READ):
        return posterior
    return torch.cat([posterior.mean, posterior.logvar, posterior.std], dim=1)


def viewed(cls: Any, method: str = "forward") -> Any:
    """Return a subclass that is built from settings, and whose forward is this method."""

    def __init__(self: Any, settings: Mapping[str, Any]) -> None:
        cls.__init__(self, AutoencoderKLConfig(**settings))

    def forward(self: Any, x: Tensor) -> Any:
        return _moments(getattr(self, method)(x))

    return type(cls.__name__, (cls,), {"__init__": __init__} | ({} if method == "forward" else {"forward": forward}))


@recipe
def through_view(cls: Any, method: str, inner: Recipe, *values: Any) -> Any:
    """Return what another recipe does for this view of a class of modules."""
    is_module = isinstance(cls, type) and issubclass(cls, nn.Module)
    return inner(viewed(cls, method) if is_module else cls, *values)


class _View(Attempt):
    """A view of an attempt, wherever it lives."""

    def __init__(self, attempt: Attempt, method: str = "forward") -> None:
        self._attempt, self._method = attempt, method

    def run(self, recipe: Recipe, *values: Any) -> Any:
        """Return `recipe(view of the answer, *values)`; raises as `Attempt.run`."""
        return self._attempt.run(through_view, self._method, recipe, *values)


@recipe
def calls_of(cls: Any, build: Probe, state: Mapping[str, Tensor], x: Tensor) -> dict[str, Any]:
    """Run forward; return the calls of submodules, [name, what it was given, what it returned], and the result."""
    module = built(cls, build, state)
    calls: list[list[Any]] = []

    def note(name: str, returned: Any) -> None:
        next(entry for entry in reversed(calls) if entry[0] == name).append(copy.deepcopy(returned))

    for name, part in module.named_modules():
        part.register_forward_pre_hook(
            lambda _, given, name=name: calls.append([name, *(copy.deepcopy(given[:1]) or [None])])
        )
        part.register_forward_hook(lambda _, given, returned, name=name: note(name, returned))
    result = None
    with torch.no_grad(), contextlib.suppress(Exception):  # the calls before an exception are of interest, too
        result = module(x.clone())
    return {"calls": [entry for entry in calls if entry[0]], "result": result}


Stages = Mapping[str, Callable[[Tensor], Any] | None]


def _describe_flow(attempt: Attempt, reference: Any, inputs: Callable[..., Probe], stages: Stages) -> str | None:
    """Describe the first stage that is not given what the one before it returned; None if all are.

    A stage with a function may be computed without a submodule of its name.
    """
    build, (x,) = _BUILDS[0], inputs(*_BUILDS[0])
    torch.manual_seed(0)
    flow = attempt.run(calls_of, build, dict(reference(*build).state_dict()), x)
    names, finished = [entry[0] for entry in flow["calls"]], flow["result"] is not None
    missing = [name for name, function in stages.items() if name not in names and not function]
    if any(other.startswith(f"{name}.") for name in missing for other in names):
        return None  # its own submodules are called one by one
    for name in stages:
        if names.count(name) > 1:
            return f"{name} is called {names.count(name)} times: once is right"
    if missing and finished:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} never called"
    calls = {entry[0]: [*entry[1:], None, None] for entry in flow["calls"]}
    outputs = {"the input": x} | {name: calls[name][1] for name in stages if name in calls}
    before = "the input"
    for name, function in stages.items():
        given = calls[name][0] if name in calls else None
        if given is not None and not same(given, outputs.get(before)):
            source = next((other for other, value in outputs.items() if same(given, value)), None)
            if source:
                return f"{name} is given {_said(source)}: it should be {_said(before)}"
            return f"{name} is given something else than {_said(before)}: nothing belongs in between"
        if function and name not in calls and outputs.get(before) is not None:
            outputs[name] = function(outputs[before])
        before = name
    if isinstance(flow["result"], Tensor) and not same(flow["result"], outputs[before]):
        return f"the result is something else than {_said(before)}: nothing comes after it"
    return None


def _said(stage: str) -> str:
    return stage if stage.startswith("the ") else f"what {stage} returned"


def _judge_stages(
    reference: Any,
    inputs: Callable[..., Probe],
    mistakes: Sequence[Mistake],
    parts: Sequence[str],
    stages: Stages,
    describe: Callable[[Attempt, str], str | None],
    last: str,
    method: str = "forward",
    given: Sequence[str] = (),
) -> Judge:
    """Make a judge of one method of a module: `judge_module`, and where that knows no mistake, another description.

    `describe` makes it of the attempt and the complaint; if it returns None, it is the first stage with a wrong input.
    `last` is the layer that makes large values in the end: a clamp shows there.
    """
    right = viewed(reference, method)
    judge = judge_module(
        right, _BUILDS, inputs, [(message, viewed(code, method)) for message, code in mistakes], parts, given
    )

    def judge_method(attempt: Attempt) -> str | None:
        view = _View(attempt, method)
        complaint = judge(view)
        if complaint is None:
            finished = right(*_BUILDS[0])
            state = {key: it * (100 if key.startswith(last) else 1) for key, it in finished.state_dict().items()}
            run = partial(forward_of, build=_BUILDS[0], state=state)
            if not same(*(who.run(run, *inputs(*_BUILDS[0])) for who in (view, Local(right)))):
                return f"large values do not come through: nothing comes after {last}, not even a clamp"
        elif complaint not in dict(mistakes):
            with contextlib.suppress(Exception):  # of weights that do not fit
                return describe(view, complaint) or _describe_flow(view, right, inputs, stages) or complaint
        return complaint

    return judge_method


def _with(of: type[nn.Module], **methods: Callable[..., Any]) -> type[nn.Module]:
    """Make the finished class with other methods."""
    return type(of.__name__, (of,), methods)


def _made(of: type[nn.Module], change: Callable[[Any, AutoencoderKLConfig], Any]) -> type[nn.Module]:
    """Make the finished class with other layers."""

    def __init__(self: Any, config: AutoencoderKLConfig) -> None:
        of.__init__(self, config)
        change(self, config)

    return _with(of, __init__=__init__)


def _after(of: type[nn.Module], change: Callable[[Any], Any], method: str = "forward") -> type[nn.Module]:
    """Make the finished class with a result that is changed afterwards."""
    return _with(of, **{method: lambda m, x: change(getattr(of, method)(m, x))})


def _conv(of: type[nn.Module], name: str, into: float, out: float) -> type[nn.Module]:
    """Make the finished class with another convolution: its channels, in and out, are multiplied by these factors."""

    def change(module: Any, config: AutoencoderKLConfig) -> None:
        right = getattr(module, name)
        channels = int(into * right.in_channels), int(out * right.out_channels)
        setattr(module, name, nn.Conv2d(*channels, right.kernel_size, padding="same"))

    return _made(of, change)


# 05.2 and 05.3


def _levels(
    of: type[nn.Module],
    rule: Rule = _but_last,
    widths_of: Callable[[Widths], Widths] = lambda widths: widths,
    numbers: Callable[[int, int], tuple[int, int]] = lambda layers, groups: (layers, groups),
) -> type[nn.Module]:
    """Make encoder or decoder with another rule, other widths (the first one comes twice), or other layers, groups."""
    name, block, step = ("down_blocks", DownEncoderBlock2D, 1) if of is Encoder else ("up_blocks", UpDecoderBlock2D, -1)

    def change(module: Any, config: AutoencoderKLConfig) -> None:
        widths = config.block_out_channels[::step]
        counts = numbers(config.layers_per_block + (of is Decoder), config.norm_num_groups)
        steps = pairwise(widths_of((widths[0], *widths)))
        levels = [block(*pair, *counts, "silu", rule(i, widths)) for i, pair in enumerate(steps)]
        setattr(module, name, nn.ModuleList(levels))

    return _made(of, change)


def _ordered(of: type[nn.Module], order: Callable[[tuple[int, ...]], Sequence[int]]) -> type[nn.Module]:
    """Make the finished class with its widths in another order."""

    def __init__(self: Any, config: AutoencoderKLConfig) -> None:
        of.__init__(self, replace(config, block_out_channels=tuple(order(config.block_out_channels))))

    return _with(of, __init__=__init__)


def _middle(of: type[nn.Module], level: int, **options: bool) -> type[nn.Module]:
    """Make the finished class with a mid block of this level's width, or with other options."""

    def change(module: Any, config: AutoencoderKLConfig) -> None:
        width = config.block_out_channels[level]
        module.mid_block = UNetMidBlock2D(width, config.norm_num_groups, "silu", **options)

    return _made(of, change)


def _mistakes_of_both(of: type[nn.Module], halves: str) -> list[Mistake]:
    """List the mistakes that occur in both encoder and decoder."""
    name = "down_blocks" if of is Encoder else "up_blocks"
    return [
        *((message, _levels(of, rule)) for message, rule in _wrong_rules(halves)),
        *(
            (
                "there is one level too few: the first one maps its width to itself, pairwise((widths[0], *widths))",
                _levels(of, rule, widths_of=lambda widths: widths[1:]),
            )
            for rule in (_but_last, lambda i, widths: i < len(widths) - 2)
        ),
        ("the widths are one level ahead: level 0 keeps its width", _levels(of, widths_of=lambda w: (*w[1:], w[-1]))),
        ("the norms have 32 groups: take config.norm_num_groups", _levels(of, numbers=lambda n, groups: (n, 32))),
        ("layers and groups are exchanged in the call of a level", _levels(of, numbers=lambda n, groups: (groups, n))),
        (
            "each level is put in front of the others: append it",
            _made(of, lambda m, config: setattr(m, name, nn.ModuleList([*getattr(m, name)][::-1]))),
        ),
        ("the mid block has the largest map's width: it stands at the smallest map", _middle(of, 0)),
        ("the mid block lacks its attention: ResNet, attention, ResNet", _middle(of, -1, add_attention=False)),
        ("an nn.ModuleList cannot be called: loop over it", _with(of, forward=lambda m, x: getattr(m, name)(x))),
    ]


ENCODER_MISTAKES = Mistakes(
    [
        *_mistakes_of_both(Encoder, "halves"),
        ("the levels have a ResNet block more: that is the decoder", _levels(Encoder, numbers=lambda n, g: (n + 1, g))),
        ("the widths are reversed: that is the decoder", _ordered(Encoder, lambda widths: widths[::-1])),
        (
            "conv_out makes latent_channels: mean and log-variance have twice as many",
            _conv(Encoder, "conv_out", 1, 0.5),
        ),
        ("only the mean is returned: the posterior needs all channels", _after(Encoder, lambda y: y.chunk(2, 1)[0])),
        ("the result is split: return it whole, the posterior splits it", _after(Encoder, lambda y: y.chunk(2, 1))),
        ("a tanh at the end: means and log-variances may be any numbers", _after(Encoder, torch.tanh)),
    ]
)

_NO_TANH = "a tanh at the end: Stable Diffusion's decoder has none, and was trained without"
_NO_CLAMP = "the result is clamped: return what conv_out gives, whoever shows it clamps"
_NO_SIGMOID = "a sigmoid at the end: Stable Diffusion's decoder has none, and images run from -1 to 1"
DECODER_MISTAKES = Mistakes(
    [
        *_mistakes_of_both(Decoder, "doubles"),
        ("the levels have layers_per_block ResNet blocks: one more", _levels(Decoder, numbers=lambda n, g: (n - 1, g))),
        ("the widths are not reversed: the last one comes first", _ordered(Decoder, lambda widths: widths[::-1])),
        ("the widths are sorted: reverse them, for they may rise and fall", _ordered(Decoder, sorted)),
        ("conv_in takes mean and log-variance: a latent is decoded, latent_channels", _conv(Decoder, "conv_in", 2, 1)),
        (_NO_TANH, _after(Decoder, torch.tanh)),
        (_NO_SIGMOID, _after(Decoder, torch.sigmoid)),
        (_NO_SIGMOID, _after(Decoder, lambda image: 2 * image.sigmoid() - 1)),
        (_NO_CLAMP, _after(Decoder, lambda image: image.clamp(-1, 1))),
    ]
)


def _judge_half(reference: Any, name: str, inputs: Callable[..., Probe], mistakes: Sequence[Mistake]) -> Judge:
    """Make a judge of encoder or decoder, whose levels are in the list `name`."""
    levels = [f"{name}.{level}" for level in range(len(_SETTINGS[0]["block_out_channels"]))]
    inner = [*levels, "mid_block"] if reference is Encoder else ["mid_block", *levels]
    stages: Stages = {
        "conv_in": None,
        **dict.fromkeys(inner),
        "conv_norm_out": None,
        "conv_act": F.silu,
        "conv_out": None,
    }
    parts = ("conv_in", name, "mid_block", "conv_norm_out", "conv_act", "conv_out")

    def describe(view: Attempt, complaint: str) -> str | None:
        fixed = _describe_fixed(view, "conv_in", "conv_out")
        return _describe_levels(view, name) or fixed or _describe_activation(view, name)

    judge = _judge_stages(reference, inputs, mistakes, parts, stages, describe, "conv_out", given=(name,))

    def judge_half(attempt: Attempt) -> str | None:
        if complaint := judge(attempt):
            return complaint
        found = _View(attempt).run(settings_of, _BUILDS[0], name)["type"]
        if found != "ModuleList":
            return f"self.{name} is an nn.{found}: make it an nn.ModuleList, which later cells look into"
        return None

    return judge_half


def _describe_levels(attempt: Attempt, name: str) -> str | None:
    """Describe levels that do not depend on the configuration, or have a wrong number of ResNet blocks."""
    found = [
        {key: it for key, it in attempt.run(shapes_of, build).items() if key.startswith(name)} for build in _BUILDS
    ]
    if found[0] == found[1] != {}:
        return "the levels are the same whatever the config says: take the widths from config.block_out_channels"
    for shapes, settings in zip(found, _SETTINGS, strict=True):
        number = len({key.split(".")[3] for key in shapes if key.startswith(f"{name}.0.resnets.")})
        layers = settings["layers_per_block"]
        expected = layers + (name == "up_blocks")
        if number not in (0, expected):
            return f"the levels have {number} ResNet blocks for layers_per_block={layers}, expected {expected}"
    return None


def _describe_fixed(attempt: Attempt, *names: str) -> str | None:
    """Name a convolution with the same channels for two configurations that ask for others; None if there is none."""
    first, last = (attempt.run(shapes_of, build) for build in (_BUILDS[0], _BUILDS[-1]))
    for name in names:
        if first.get(f"{name}.weight", 0) == last.get(f"{name}.weight"):
            return f"{name} has the same channels whatever the config says: take them from there"
    return None


def _describe_activation(attempt: Attempt, name: str) -> str | None:
    """Name an activation that is not SiLU; None if all are."""
    for place in ("conv_act", f"{name}.0.resnets.0.nonlinearity", "mid_block.resnets.0.nonlinearity"):
        found = attempt.run(settings_of, _BUILDS[0], place)["type"]
        if found != "SiLU" and hasattr(nn, found):
            return f"{place} is a {found}: every activation is SiLU, here and in the blocks"
    return None


# 05.4

_SCALE = 0.18215  # Stable Diffusion v1's
_NOT_SCALED = "the scaling factor is applied: diffusion models do that to a latent, the autoencoder itself does not"


def _posterior(mean: Tensor, logvar: Tensor, **options: bool) -> DiagonalGaussianDistribution:
    return DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1), **options)


def _encodes(posterior: Callable[[Tensor, Tensor], Any]) -> type[nn.Module]:
    """Make the autoencoder with another posterior of the right mean and log-variance."""
    return _with(Autoencoder, encode=lambda m, x: posterior(*m.quant_conv(m.encoder(x)).chunk(2, dim=1)))


_other = partial(_with, Autoencoder)
AUTOENCODER_MISTAKES = Mistakes(
    [
        ("encode: quant_conv has latent_channels: twice as many come in", _conv(Autoencoder, "quant_conv", 0.5, 0.5)),
        ("encode: quant_conv halves the channels: as many go out as in", _conv(Autoencoder, "quant_conv", 1, 0.5)),
        (
            "encode: post_quant_conv has 2 · latent_channels: it takes a latent",
            _conv(Autoencoder, "post_quant_conv", 2, 2),
        ),
        (
            "encode: the posterior is deterministic: leave that argument out, so that it has a spread",
            _encodes(lambda mean, logvar: _posterior(mean, logvar, deterministic=True)),
        ),
        (
            "encode: the halves are swapped: the mean comes first",
            _encodes(lambda mean, logvar: _posterior(logvar, mean)),
        ),
        (
            "encode: mean and log-variance are taken alternately: the mean is the first half of the channels",
            _encodes(lambda *halves: _posterior(*(torch.cat(halves, dim=1)[:, i::2] for i in (0, 1)))),
        ),
        *(
            ("encode: exp stands where the log-variance belongs: the posterior is made of logvar itself", code)
            for code in (
                _encodes(lambda mean, logvar: _posterior(mean, logvar.exp())),
                _encodes(lambda mean, logvar: _posterior(mean, (logvar / 2).exp())),
            )
        ),
        (
            "encode: mean and log-variance are two arguments: hand in all channels as one, the posterior splits them",
            _encodes(lambda mean, logvar: DiagonalGaussianDistribution(mean, logvar)),  # type: ignore[arg-type]
        ),
        *(
            (f"encode: {_NOT_SCALED}", code)
            for code in (
                _encodes(lambda mean, logvar: _posterior(_SCALE * mean, _SCALE * logvar)),
                _encodes(lambda mean, logvar: _posterior(_SCALE * mean, logvar)),
            )
        ),
        *(
            (f"decode: {_NOT_SCALED}", _other(decode=lambda m, z, scale=scale: Autoencoder.decode(m, scale * z)))
            for scale in (_SCALE, 1 / _SCALE)
        ),
        (
            "decode: it takes the mode of its argument: a latent comes in, no posterior",
            _other(decode=lambda m, z: Autoencoder.decode(m, z.mode())),
        ),
        (f"decode: {_NO_TANH}", _after(Autoencoder, torch.tanh, "decode")),
        (f"decode: {_NO_CLAMP}", _after(Autoencoder, lambda image: image.clamp(-1, 1), "decode")),
        ("forward: it returns the latent: decode it", _other(forward=lambda m, x: m.encode(x).mode())),
        (
            "forward: it decodes the standard deviation, not the mode",
            _other(forward=lambda m, x: m.decode(m.encode(x).std)),
        ),
        (
            "forward: post_quant_conv is left out: go through self.decode, which has it",
            _other(forward=lambda m, x: m.decoder(m.encode(x).mode())),
        ),
        (
            "forward: post_quant_conv is applied twice: self.decode has it already",
            _other(forward=lambda m, x: m.decode(m.post_quant_conv(m.encode(x).mode()))),
        ),
    ]
)


@recipe
def posterior_of(cls: Any, build: Probe, x: Tensor) -> dict[str, Any]:
    """Return what encode returned, and which attributes of a posterior it lacks."""
    module: Any = built(cls, build)
    posterior = module.encode(x)
    return {"result": posterior, "missing": [name for name in _READ if not hasattr(posterior, name)]}


def _describe_encode(attempt: Attempt, complaint: str) -> str | None:
    if "draws random numbers" in complaint:
        return "the same image gave two different posteriors: make layers in __init__, and draw nothing in encode"
    if not complaint.startswith("expected"):
        return _describe_fixed(attempt, "quant_conv", "post_quant_conv")
    found = attempt.run(posterior_of, _BUILDS[0], *_image(_SETTINGS[0]))
    if isinstance(found["result"], Tensor):
        return "it returns a tensor: return the posterior, a DiagonalGaussianDistribution of all channels"
    if 0 < len(found["missing"]) < len(_READ):
        lacking = found["missing"][0]
        return f"the posterior has no {lacking}, which later cells read: return a DiagonalGaussianDistribution"
    return complaint.replace("expected a Tensor", "expected a DiagonalGaussianDistribution")


def _describe_image(attempt: Attempt, complaint: str) -> str | None:
    if "draws random numbers" in complaint:
        return "it decodes a sample, so that each call gives another picture: decode the posterior's mode()"
    if "expected a Tensor, got tuple" in complaint:
        return "it returns several results: return the image alone"
    if decoded := re.search(r"conv2d\(\).* got \((\w+),", complaint):
        if decoded[1] == "method":
            return "it decodes the method itself: call it, mode()"
        return f"it decodes a {decoded[1]}: decode the posterior's mode(), a latent"
    return None


def _judge_method(method: str, inputs: Callable[..., Probe], *names: str) -> Judge:
    """Make a judge of one method, which uses these submodules and what lies between them."""
    between: Stages = {
        "the posterior's mode": lambda moments: moments.chunk(2, dim=1)[0],
        "the posterior of what quant_conv returned": lambda moments: _moments(DiagonalGaussianDistribution(moments)),
    }
    return _judge_stages(
        Autoencoder,
        inputs,
        [(text.removeprefix(f"{method}: "), code) for text, code in AUTOENCODER_MISTAKES if text.startswith(method)],
        ("encoder", "decoder", "quant_conv", "post_quant_conv"),
        {name: between.get(name) for name in names},
        _describe_encode if method == "encode" else _describe_image,
        "quant_conv" if method == "encode" else "decoder.conv_out",
        method,
    )


_AUTOENCODER = {
    "encode": _judge_method("encode", _image, "encoder", "quant_conv", "the posterior of what quant_conv returned"),
    "decode": _judge_method("decode", _latent, "post_quant_conv", "decoder"),
    "forward": _judge_method(
        "forward", _image, "encoder", "quant_conv", "the posterior's mode", "post_quant_conv", "decoder"
    ),
}

_judge_parts = judge_parts(_AUTOENCODER)


@recipe
def second_image(cls: Any, build: Probe, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return the result for the second image, of a new module and of a copy that has seen the first."""
    new: Any = built(cls, build)
    used = copy.deepcopy(new)
    with torch.no_grad():
        used(first)
        return {"new": new(second), "used": used(second)}


def _judge_autoencoder(attempt: Attempt) -> str | None:
    complaint = _judge_parts(attempt)
    if complaint is None:
        (x,) = _image(_SETTINGS[0])
        results = _View(attempt).run(second_image, _BUILDS[0], x, -x)
        if not same(results["new"], results["used"]):
            return "a second image gets what was computed for the first: keep nothing from call to call"
    return complaint


# 05.5


def _by_parts(
    level: Callable[[int, int], int] = lambda level, levels: levels - 1 - level, encoder_too: bool = False, **new: str
) -> Callable[[str, int], str]:
    """Make an answer with some parts translated otherwise, or with the levels counted otherwise."""

    def rename(name, levels):
        parts = name.split(".")
        if parts[:2] == ["decoder", "up"] or (encoder_too and parts[:2] == ["encoder", "down"]):
            parts[2] = str(level(int(parts[2]), levels))
        return ".".join(new.get(part, diffusers_name(part, levels)) for part in parts)

    return rename


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
            "it works for four levels only: count from the end with the argument levels",
            _by_parts(level=lambda level, levels: 3 - level),
        ),
        (
            "old names of diffusers come back as they are: query, key, value, proj_attn are to_q, to_k, to_v, to_out.0",
            _by_parts(query="query", key="key", value="value", proj_attn="proj_attn"),
        ),
    ]
)


@NAME_MISTAKES("a current name's level is reversed: only CompVis' decoder.up counts from the largest map")
def name_reversing_up_blocks(name, levels):
    return diffusers_name(name.replace("up_blocks.", "up."), levels)


@NAME_MISTAKES("'up' is looked for in the whole name, and found in group_norm: ask whether the second part is 'up'")
def name_looking_for_up_anywhere(name, levels):
    parts = name.split(".")
    if "up" in name:
        parts[2] = str(levels - 1 - int(parts[2]))
    return ".".join(diffusers_name(part, levels) for part in parts)


@NAME_MISTAKES("the levels are exchanged one after the other, 0 for 3 and then 3 for 0 again: stop after the first")
def name_exchanging_levels_in_a_loop(name, levels):
    for level in range(levels):
        name = name.replace(f"decoder.up.{level}.", f"decoder.up.{levels - 1 - level}.")
    return ".".join(diffusers_name(part, levels) for part in name.split("."))


@NAME_MISTAKES("conv_in and other parts without an entry are left out: new.get(part, part) keeps them")
def name_of_new_parts_only(name, levels):
    return ".".join(diffusers_name(part, levels) for part in name.split(".") if diffusers_name(part, levels) != part)


_NEW_NAMES = (
    *("down_blocks", "up_blocks", "mid_block", "resnets", "attentions", "conv_shortcut", "downsamplers", "upsamplers"),
    *("conv_norm_out", "group_norm", "to_q", "to_k", "to_v", "to_out"),
)


def _describe_name(result: Any, expected: Any, arguments: Probe) -> str:
    name, levels = arguments
    if isinstance(result, Raised):
        return f"for {name} {explain(result)}"
    if isinstance(result, NothingReturned):
        return f"for {name} it returns None: a name without old parts comes back as it is"
    if not isinstance(result, str):
        return f"expected the name as one text, got {type_name(result)}"
    if result == name:
        return f"{name} comes back unchanged, expected {expected} (levels={levels})"
    parts = name.split(".")
    right = [diffusers_name(part, levels) for part in parts]
    if parts[:2] == ["decoder", "up"]:
        right[2] = expected.split(".")[2]
    for i, part in enumerate(parts):
        if result == ".".join([*right[:i], *right[i + 1 :]]):
            return f"in {name}, {part} is left out"
        before, after = ".".join([*right[:i], ""]), ".".join(["", *right[i + 1 :]])
        if result.startswith(before) and result.endswith(after) and (right[i] != part or not _is_inside(result, right)):
            found = result[len(before) : len(result) - len(after)]
            verb = "is left as it is" if found == part else f"becomes {found}"
            return f"in {name}, {part} {verb}, expected {right[i]} (levels={levels})"
    if _is_inside(result, right):
        advice = "compare whole parts, as split('.') gives them"
        return f"{name} becomes {result}: a name was replaced inside of another one; {advice}"
    return f"{name} becomes {result}, expected {expected} (levels={levels})"


def _is_inside(result: str, right: Sequence[str]) -> bool:
    """Tell whether a new name stands inside of a wrong part, not counting numbers behind it."""
    wrong = set(result.split(".")) - set(".".join(right).split("."))
    return any(new in part and part.rstrip("_0123456789") != new for part in wrong for new in _NEW_NAMES)


def _judge_names(attempt: Attempt) -> str | None:
    """Describe the first wrong name, and list the other parts that have no entry yet."""
    complaint = _judge_first_name(attempt)
    if complaint is None:
        return None
    old, left = set(), {}
    for name, levels in _NAMES:
        parts = [part for part in name.split(".") if diffusers_name(part, levels) != part]
        result = _outcome(attempt, (name, levels))
        found = result.split(".") if isinstance(result, str) else ()
        old.update(parts)
        left.update(dict.fromkeys(part for part in parts if part in found))
    others = [part for part in left if not re.search(rf"\b{part}\b", complaint)]
    if not others or len(left) == len(old):  # all of them: the whole name comes back
        return complaint
    return f"{complaint}; also left as they are: {', '.join(others)}"


_NAMES = (
    ("encoder.conv_in.weight", 4),
    ("encoder.down.1.block.0.conv1.weight", 4),
    ("encoder.down.1.block.0.nin_shortcut.weight", 4),
    ("encoder.down.0.downsample.conv.bias", 4),
    ("decoder.up.3.block.2.conv1.weight", 4),
    ("decoder.up.1.block.0.norm1.bias", 5),
    ("decoder.up.1.upsample.conv.weight", 4),
    ("decoder.up.10.block.1.conv1.weight", 12),
    ("encoder.mid.block_1.norm1.weight", 4),
    ("decoder.mid.block_2.conv2.bias", 4),
    ("decoder.mid.attn_1.norm.bias", 4),
    *((f"encoder.mid.attn_1.{part}.weight", 4) for part in ("q", "k", "v", "proj_out")),
    ("decoder.norm_out.weight", 4),
    ("decoder.conv_out.bias", 4),
    ("quant_conv.weight", 4),
    ("post_quant_conv.bias", 4),
    *((f"decoder.mid_block.attentions.0.{part}.bias", 4) for part in ("query", "key", "value", "proj_attn")),
    *((f"encoder.mid_block.attentions.0.{part}.bias", 4) for part in ("to_q", "to_out.0", "group_norm")),
    ("decoder.up_blocks.3.resnets.0.conv_shortcut.weight", 4),
    ("encoder.down_blocks.1.downsamplers.0.conv.weight", 4),
    ("encoder.conv_norm_out.weight", 4),
)
_judge_first_name = _judge_plain(diffusers_name, _NAMES, NAME_MISTAKES, _describe_name)

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
            [((16, 32, 32, 24, 24), 3, 510), ((128, 256, 512, 512), 4, 250), ((24, 8), 5, 31), ((32,), 1, 16)],
            WALK_MISTAKES,
            _describe_walk,
        ),
        mistakes=WALK_MISTAKES,
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
        judge=_judge_half(Encoder, "down_blocks", _image, ENCODER_MISTAKES),
        mistakes=ENCODER_MISTAKES,
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
        judge=_judge_half(Decoder, "up_blocks", _latent, DECODER_MISTAKES),
        mistakes=DECODER_MISTAKES,
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
        judge=_judge_autoencoder,
        mistakes=AUTOENCODER_MISTAKES,
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
        judge=_judge_names,
        mistakes=NAME_MISTAKES,
    ),
)
