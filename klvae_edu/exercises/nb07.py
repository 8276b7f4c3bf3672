"""The exercises of notebook 07, PatchGAN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from klvae_edu import discriminator as finished
from klvae_edu import losses
from klvae_edu.exercises.attempt import Attempt, Blank, OpenGap, Raised, call, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import Probe, judge_function, probe, same, through_recipe
from klvae_edu.exercises.judges.modules import built, judge_module, settings_of
from klvae_edu.exercises.judges.numbers import judge_numbers
from klvae_edu.exercises.solutions.nb07 import (
    NLayerDiscriminator,
    adaptive_weight,
    discriminator_loss,
    discriminator_step,
    receptive_field,
)
from klvae_edu.training import steps

NOTEBOOK = "07_patchgan"


# 07.1


def _net(
    first="conv act",
    middle="conv norm act",
    last="conv",
    *,
    kernel=4,
    padding=1,
    biases=(True, False, True),
    strides=lambda num_layers: [2] * num_layers + [1, 1],
    width=lambda filters, number: filters * min(2**number, 8),
    taken=lambda widths, place: widths[place],
    norm=nn.BatchNorm2d,
    activation=lambda: nn.LeakyReLU(0.2),
):
    """The solution with one of its choices made otherwise."""

    class Mistaken(nn.Module):
        def __init__(self, in_channels=3, num_filters=64, num_layers=3):
            super().__init__()
            widths = [in_channels, *(width(num_filters, number) for number in range(num_layers + 1)), 1]
            orders = [(first, biases[0]), *[(middle, biases[1])] * num_layers, (last, biases[2])]
            layers = []
            for place, ((order, bias), stride) in enumerate(zip(orders, strides(num_layers), strict=True)):
                there, conv = widths[place + 1], partial(nn.Conv2d, taken(widths, place), bias=bias)
                make = {
                    "conv": partial(conv, there, kernel, stride, padding),
                    "norm": partial(norm, there if order.startswith("conv") else widths[place]),
                    "act": activation,
                    "drop": nn.Dropout,
                }
                layers += [make[name]() for name in order.split()]
            self.main = nn.Sequential(*layers)

        def forward(self, images):
            return self.main(images)

    return Mistaken


def _built_with(change, network: Any = NLayerDiscriminator):
    """The network, built with other arguments than the given ones."""

    class Rebuilt(network):  # type: ignore[misc]
        def __init__(self, in_channels=3, num_filters=64, num_layers=3):
            super().__init__(*change(in_channels, num_filters, num_layers))

    return Rebuilt


def _ending(end):
    """The solution, its logits changed at the end."""

    class Ended(NLayerDiscriminator):
        def forward(self, images):
            return end(super().forward(images))

    return Ended


_ALL, _NONE = (True, True, True), (False, False, False)
_WIDTHS = {
    "they go on beyond 8 times num_filters": lambda filters, number: filters * 2**number,
    "they do not double": lambda filters, number: filters,
    "they grow by num_filters each time": lambda filters, number: filters * (number + 1),
    "they grow by 2 · num_filters each time": lambda filters, number: filters * max(min(2 * number, 8), 1),
    "they double one convolution too late": lambda filters, number: filters * min(2 ** max(number - 1, 0), 8),
    "they stop at 4 · num_filters": lambda filters, number: filters * min(2**number, 4),
    "they stop at 16 · num_filters": lambda filters, number: filters * min(2**number, 16),
    "they stop at 8 channels": lambda filters, number: min(filters * 2**number, 8),
}
_BIASES = {
    "no convolution has one": _NONE,
    "the first convolution has none": (False, False, True),
    "the last convolution has none": (True, False, False),
    "they are the wrong way round": (False, True, False),
}
_ORDERS: dict[str, dict[str, Any]] = {
    "there is a norm after the first convolution": {"first": "conv norm act"},
    "there is a norm after the first activation": {"first": "conv act norm"},
    "there is a norm after the last convolution": {"last": "conv norm"},
    "the norms are missing": {"middle": "conv act"},
    "the norms are missing, and all convolutions have a bias": {"middle": "conv act", "biases": _ALL},
    "a norm comes after the activation": {"middle": "conv act norm"},
    "a norm comes before the convolution": {"middle": "norm conv act"},
    "there are no activations": {"first": "conv", "middle": "conv norm"},
    "the last convolution is missing": {"last": ""},
    "there is no activation after the first convolution": {"first": "conv"},
    "there is no activation after the norms": {"middle": "conv norm"},
    "there is dropout": {"middle": "conv norm act drop"},
    "there is an activation after the last convolution": {"last": "conv act"},
}
_NORMS = {
    "it keeps no running mean and variance, as GroupNorm and InstanceNorm2d": partial(nn.GroupNorm, 1),
    "it has no parameters, as an InstanceNorm2d": nn.InstanceNorm2d,
    "it has no weight and bias of its own": partial(nn.BatchNorm2d, affine=False),
    "it sees each image by itself, as an InstanceNorm2d: all of the batch together": partial(
        nn.InstanceNorm2d, affine=True, track_running_stats=True
    ),
    "its momentum is not the usual 0.1": partial(nn.BatchNorm2d, momentum=0.9),
    "its eps is not the usual 1e-5": partial(nn.BatchNorm2d, eps=1e-3),
}
_SHAPES: dict[str, dict[str, Any]] = {
    "the kernels are 3×3": {"kernel": 3},
    "the kernels are 5×5": {"kernel": 5, "padding": 2},
    "the padding is missing": {"padding": 0},
    "the padding is 2": {"padding": 2},
}
_STRIDES = {
    "those of the middle convolutions": lambda n: [2] * (n + 1) + [1],
    "all middle convolutions have 1": lambda n: [2] + [1] * (n + 1),
    "the last two of the middle convolutions have 1": lambda n: [2] * max(n - 1, 1) + [1] * min(n + 1, 3),
    "the first convolution has 1": lambda n: [1] + [2] * (n - 1) + [1, 1],
    "the last convolution has 2": lambda n: [2] * n + [1, 2],
}
_ACTIVATIONS = {
    "it is ReLU": nn.ReLU,
    "it has its usual slope of 0.01": nn.LeakyReLU,
    "its slope is 2, which makes negative values larger": partial(nn.LeakyReLU, 2.0),
    "it is SiLU": nn.SiLU,
    "it is GELU": nn.GELU,
}
_ENDS = {
    "there is a sigmoid": torch.sigmoid,
    "there is a tanh": torch.tanh,
    "there is one number for each image": lambda logits: logits.mean((1, 2, 3)),
    "there is one verdict for each image": lambda logits: logits.mean((2, 3)),
    "there is one verdict for each image, a map of one logit": lambda logits: logits.mean((2, 3), keepdim=True),
}
_ARGUMENTS = {
    "in_channels is not used, there are always 3": lambda c, f, n: (3, f, n),
    "num_layers is not used, there are always 3": lambda c, f, n: (c, f, 3),
    "there is one middle convolution too many": lambda c, f, n: (c, f, n + 1),
    "there is one middle convolution too few": lambda c, f, n: (c, f, n - 1),
}
_NORMED_BIAS = "the convolutions before a BatchNorm have a bias, which the norm takes away again: bias=False"
_TIMES = "num_filters times 2, 4, 8, and then 8 for all that follow"
_MADE_FOR = "there are num_layers of the middle ones, from num_filters on, and the first takes in_channels"
_MOMENTUM, _EPS = (f"the norm: {fault}; BatchNorm2d(width) as it comes" for fault in list(_NORMS)[-2:])
PATCHGAN_MISTAKES = Mistakes(
    [
        # by their parameters
        (_NORMED_BIAS, _net(biases=_ALL)),
        *((f"the widths: {fault}; {_TIMES}", _net(width=width)) for fault, width in _WIDTHS.items()),
        *(
            (f"{_NORMED_BIAS}; and the widths: {fault}", _net(width=width, biases=_ALL))
            for fault, width in _WIDTHS.items()
        ),
        *(
            (f"the biases: {fault}; only the convolutions before a BatchNorm go without", _net(biases=biases))
            for fault, biases in _BIASES.items()
        ),
        *((f"{fault}: {_MADE_FOR}", _built_with(change)) for fault, change in _ARGUMENTS.items()),
        *(
            (f"{_NORMED_BIAS}; and {fault}", _built_with(change, _net(biases=_ALL)))
            for fault, change in _ARGUMENTS.items()
        ),
        *(
            (f"{fault}: convolution, BatchNorm2d, LeakyReLU; the first has no norm, the last neither", _net(**order))
            for fault, order in _ORDERS.items()
        ),
        *((f"the norm: {fault}; BatchNorm2d(width) as it comes", _net(norm=norm)) for fault, norm in _NORMS.items()),
        *((f"{fault}: every convolution is 4×4, with padding=1", _net(**shape)) for fault, shape in _SHAPES.items()),
        (
            "a middle convolution takes num_filters channels: it takes as many as the one before has made",
            _net(taken=lambda widths, place: widths[1 if place < len(widths) - 2 else place] if place else widths[0]),
        ),
        # by their results
        *(
            (f"the strides: {fault}; 2 for the first, 2 for the middle ones but their last, then 1", _net(strides=it))
            for fault, it in _STRIDES.items()
        ),
        *(
            (f"the activation: {fault}; it is LeakyReLU(0.2)", _net(activation=it))
            for fault, it in _ACTIVATIONS.items()
        ),
        *((f"{fault} at the end: return the map of logits as it is", _ending(end)) for fault, end in _ENDS.items()),
        # last, as it takes long to build
        ("num_filters is not used, the first convolution is always 64 wide", _built_with(lambda c, f, n: (c, 64, n))),
    ]
)


@PATCHGAN_MISTAKES(
    "there is a list among the layers, and nn.Sequential takes none: write layers += [...], or Sequential(*layers)"
)
class NestedLists(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        layers = [nn.Conv2d(in_channels, num_filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(layers)  # type: ignore[call-overload]


_BUILDS: list[Probe] = [(3, 4, 3), (2, 4, 1), (3, 2, 5)]
_judge_class = judge_module(
    NLayerDiscriminator,
    builds=_BUILDS,
    inputs=lambda channels, filters, layers: probe((2, channels, 4 * 2**layers, 4 * 2**layers + 8)),
    mistakes=PATCHGAN_MISTAKES,
    parts=("main",),
)


@recipe
def in_eval_mode(cls: Any, build: Probe, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the logits in eval mode, after one call in train mode."""
    network = built(cls, build, state)
    with torch.no_grad():
        network(images)
        logits: Tensor = network.eval()(images)
    return logits


def _judge_discriminator(attempt: Attempt) -> str | None:
    """Judge it as any module, in train mode. Then look at settings that have no parameters, or show in eval mode."""
    complaint = _judge_class(attempt)
    if complaint and "values are" not in complaint:
        return complaint
    build, (images,) = (3, 4, 1), probe((2, 3, 8, 16))
    first, norm, second = (attempt.run(settings_of, build, name) for name in ("main.1", "main.3", "main.4"))
    if norm["settings"].get("eps", 1e-5) != 1e-5:
        return _EPS
    if complaint:
        for name, it in (("main.1", first), ("main.4", second)):
            slope = it["settings"].get("negative_slope")
            if slope != 0.2:
                return f"{name} is a {it['type']}{f'({slope})' if slope else ''}, expected LeakyReLU(0.2)"
        return complaint
    if norm["settings"].get("momentum", 0.1) != 0.1:
        return _MOMENTUM
    state = dict(NLayerDiscriminator(*build).state_dict())
    if same(attempt.run(in_eval_mode, build, state, images), in_eval_mode(NLayerDiscriminator, build, state, images)):
        return None
    return "right in train mode, but not in eval mode, where BatchNorm2d uses its running statistics"


# 07.2


def _walk(strides=lambda n: [2] * n + [1, 1], step=lambda side, stride: 4 + (side - 1) * stride, start=1):
    """The solution for another stack of layers, with another step, or from another start."""

    def walked(num_layers):
        side = start
        for stride in reversed(strides(num_layers)):
            side = step(side, stride)
        return side

    return walked


_STACKS = {
    "the two convolutions with stride 1 are left out": lambda n: [2] * n,
    "one convolution with stride 1 is left out": lambda n: [2] * n + [1],
    "one is too many, or the walk begins at 4, or one of the last two has stride 2": lambda n: [2] * n + [1, 1, 1],
    "one convolution with stride 2 is too many": lambda n: [2] * (n + 1) + [1, 1],
    "one convolution with stride 2 is too few": lambda n: [2] * (n - 1) + [1, 1],
    "the walk begins at the image, not at the logits": lambda n: [1, 1] + [2] * n,
    "the strides 1 and 2 are exchanged": lambda n: [1] * n + [2, 2],
}
_STEPS = {
    "the kernels are counted as 3×3": lambda side, stride: 3 + (side - 1) * stride,
    "a kernel of 4 reaches 3 further than one place, not 4": lambda side, stride: 5 + (side - 1) * stride,
    "n places are n - 1 strides apart, not n": lambda side, stride: 4 + side * stride,
    "a bracket is in the wrong place": lambda side, stride: (4 + side - 1) * stride,
    "the padding is taken off, but what it adds is seen, too": lambda side, stride: 4 + (side - 1) * stride - 2,
    "a bracket is missing": lambda side, stride: 4 + side - 1 * stride,
    "the 4 is missing": lambda side, stride: (side - 1) * stride,
    "the strides are ignored": lambda side, stride: 4 + (side - 1),
}
_CLOSED = {
    "this is the distance of two logits: the patch that one of them sees is asked for": lambda n: 2**n,
    "this is the patch's area: its side is asked for": lambda n: receptive_field(n) ** 2,
    "one side only: the whole patch is asked for": lambda n: receptive_field(n) // 2,
    "70 holds for num_layers = 3 only: compute it from num_layers": lambda n: 70,
    "2 pixels too many: is a - 2 missing?": lambda n: receptive_field(n) + 2,
    "1 pixel too many: begin with 1, and count a kernel as 4": lambda n: receptive_field(n) + 1,
    "1 pixel too few: begin with 1, and count a kernel as 4": lambda n: receptive_field(n) - 1,
    "^ is no power in Python: write 2**num_layers": lambda n: 9 * (2 ^ n) - 2,
    "the loop ends after its first step: return comes after it, not within": lambda n: 4,
    "the kernels are added: walk back from one logit, side = 4 + (side - 1) · stride": lambda n: 4 * n + 8,
    "the kernels are multiplied: walk back from one logit, side = 4 + (side - 1) · stride": lambda n: 4 ** (n + 2),
    "this is the size of the last map of 256 pixels: one of its values sees a patch": lambda n: 256 // 2**n,
    "this is the number of logits in a row: one of them sees a patch": lambda n: 256 // 2**n - 2,
}
_STACK = "num_layers convolutions with stride 2, then two with stride 1, walked backwards"
FIELD_MISTAKES = Mistakes(
    [
        *((f"{fault}: {_STACK}", _walk(strides)) for fault, strides in _STACKS.items()),
        *((f"{fault}: a step is side = 4 + (side - 1) · stride", _walk(step=step)) for fault, step in _STEPS.items()),
        *_CLOSED.items(),
        ("the walk begins with 0 places: one logit is one place", _walk(start=0)),
    ]
)


_judge_side, _judge_side_of_three = (
    judge_numbers(
        receptive_field,
        [(num_layers,) for num_layers in probes],
        FIELD_MISTAKES,
        given=lambda probe: f"num_layers={probe[0]}",
    )
    for probes in ((3, 1, 2, 5, 7), (3,))
)


def _judge_field(attempt: Attempt) -> str | None:
    try:
        complaint = _judge_side(attempt)
    except Raised as error:
        if error.text.startswith(("KeyError", "IndexError")) and _judge_side_of_three(attempt) is None:
            return "the sides are looked up in a table, which ends somewhere: compute them, for any num_layers"
        raise
    if complaint and complaint not in dict(FIELD_MISTAKES) and _judge_side_of_three(attempt) is None:
        return f"right for num_layers = 3, not for every other; {complaint}"
    return complaint


# 07.3

_COSTS = {"hinge": lambda x: F.relu(1 - x), "vanilla": lambda x: F.softplus(-x)}  # of an image's logits


def _half(cost, r, f):
    return (cost(r).mean() + cost(-f).mean()) / 2


def _loss(hinge=_half, vanilla=_half):
    """The loss, made in another way of the costs and the logits r and f of images and reconstructions."""
    return lambda r, f, kind: {"hinge": hinge, "vanilla": vanilla}[kind](_COSTS[kind], r, f)


def _costing(kind, of_images, of_reconstructions=None):
    """The loss with another cost in one kind; that of a reconstruction is an image's with -logit, or the second."""
    of_fakes = of_reconstructions or (lambda f: of_images(-f))
    return _loss(**{kind: lambda cost, r, f: (of_images(r).mean() + of_fakes(f).mean()) / 2})


_IN_ANY_KIND = {
    "the factor ½ is missing: the loss is the mean of the two terms": lambda c, r, f: 2 * _half(c, r, f),
    "the factor ½ is missing in the reconstructions' term": lambda c, r, f: c(r).mean() / 2 + c(-f).mean(),
    "the factor ½ is missing in the images' term": lambda c, r, f: c(r).mean() + c(-f).mean() / 2,
    "the loss is a quarter of the sum: it is half of it": lambda c, r, f: _half(c, r, f) / 2,
    "the signs are exchanged: images are to have high logits": lambda c, r, f: _half(c, -r, -f),
    "reconstructions are treated like images: their logits are to be low": lambda c, r, f: _half(c, r, -f),
    "images are treated like reconstructions: their logits are to be high": lambda c, r, f: _half(c, -r, f),
    "the term of the reconstructions is missing": lambda c, r, f: c(r).mean(),
    "only half the term of the images: the reconstructions' is missing": lambda c, r, f: c(r).mean() / 2,
    "the term of the images is missing": lambda c, r, f: c(-f).mean(),
    "only half the term of the reconstructions: the images' is missing": lambda c, r, f: c(-f).mean() / 2,
    "the terms are subtracted: both are costs, so add them": lambda c, r, f: (c(r).mean() - c(-f).mean()) / 2,
    "it is a sum over the logits: take the mean of each term": lambda c, r, f: (c(r).sum() + c(-f).sum()) / 2,
    "it is a sum over the patches of an image: take the mean of each term": lambda c, r, f: (
        (c(r).sum() / len(r) + c(-f).sum() / len(f)) / 2
    ),
    "the mean logits are subtracted first: each term is a mean of its own costs": lambda c, r, f: c(
        r.mean() - f.mean()
    ),
    "the larger of the two terms: add them": lambda c, r, f: torch.maximum(c(r).mean(), c(-f).mean()),
    "all logits are averaged together: take the mean of each term by itself": lambda c, r, f: torch.cat(
        [c(r).flatten(), c(-f).flatten()]
    ).mean(),
    "its sign is wrong: it is minimised, and never below zero": lambda c, r, f: -_half(c, r, f),
    "this is the generator's term: the discriminator has two, of relu or softplus": (lambda c, r, f: -f.mean()),
    "this is a difference of mean logits (Wasserstein): take relu or softplus": lambda c, r, f: f.mean() - r.mean(),
    "this is half a difference of mean logits (Wasserstein): take relu or softplus": lambda c, r, f: (
        (f.mean() - r.mean()) / 2
    ),
    "these are squared distances (least-squares GAN): take relu or softplus": lambda c, r, f: (
        ((r - 1).square().mean() + f.square().mean()) / 2
    ),
    "the mean is taken first: take relu or softplus of every logit, then the mean": (
        lambda c, r, f: _half(c, r.mean(), f.mean())
    ),
    "a sigmoid comes first: take the logits as they are": lambda c, r, f: _half(c, r.sigmoid(), f.sigmoid()),
}
_HINGE: dict[str, list[Any]] = {
    "the relu is missing, so that it pays to push logits beyond the margin for ever": [lambda x: 1 - x],
    "the relu is leaky, so that it pays to push logits beyond the margin": [lambda x: F.leaky_relu(1 - x, 0.2)],
    "the relu is leaky, and it pays to push logits beyond the margin": [lambda x: F.leaky_relu(1 - x)],
    "the margin is on the wrong side: it costs when an image's logit is below 1, not above": [lambda x: F.relu(x - 1)],
    "the margin is on the wrong side: images should exceed 1, reconstructions fall below -1": [
        lambda x: F.relu(-1 - x)
    ],
    "the margin of 1 is missing: relu(1 - logit), not relu(-logit)": [lambda x: F.relu(-x)],
    "the images' margin of 1 is missing: relu(1 - logit)": [lambda r: F.relu(-r), lambda f: F.relu(1 + f)],
    "the reconstructions' margin of 1 is missing: relu(1 + logit)": [lambda r: F.relu(1 - r), F.relu],
    "the reconstructions' margin is on the wrong side: relu(1 + logit)": [
        lambda r: F.relu(1 - r),
        lambda f: F.relu(f - 1),
    ],
    "the 1 stands outside of relu: relu(1 - logit)": [lambda r: 1 - F.relu(r), lambda f: 1 + F.relu(f)],
    "the 1 is added outside of relu: relu(1 - logit)": [lambda x: 1 + F.relu(-x)],
    "this is the minimum of 0 and 1 - logit: relu is the maximum": [lambda x: (1 - x).clamp(max=0)],
    "it is squared: the hinge is relu itself": [lambda x: F.relu(1 - x) ** 2],
    "absolute values instead of relu: beyond the margin nothing is to be paid": [lambda x: (1 - x).abs()],
    "softplus(1 - logit) is a smooth hinge: take relu": [lambda x: F.softplus(1 - x)],
    "the cost ends at 2, as with logits clamped to [-1, 1]: it grows for ever": [lambda x: F.relu(1 - x).clamp(max=2)],
}
_UNSURE = "use softplus of the logit, as sigmoid is 1 in float32 at 20"
_VANILLA: dict[str, list[Any]] = {
    "the logarithm is missing: softplus(-logit) is -log sigmoid(logit)": [lambda x: 1 - x.sigmoid()],
    "the logarithm is missing in -sigmoid: softplus(-logit) is -log sigmoid(logit)": [
        lambda r: -r.sigmoid(),
        lambda f: f.sigmoid(),
    ],
    f"the log of a probability is infinite: {_UNSURE}": [
        lambda r: -r.sigmoid().log(),
        lambda f: -(1 - f.sigmoid()).log(),
    ],
    f"binary_cross_entropy after a sigmoid: {_UNSURE}": [
        lambda r: F.binary_cross_entropy(r.sigmoid(), torch.ones_like(r)),
        lambda f: F.binary_cross_entropy(f.sigmoid(), torch.zeros_like(f)),
    ],
    **{
        f"no {eps:g} in the logarithm helps: {_UNSURE}": [
            lambda r, eps=eps: -(r.sigmoid() + eps).log(),
            lambda f, eps=eps: -(1 - f.sigmoid() + eps).log(),
        ]
        for eps in (1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12)
    },
    **{
        f"no clamp at {eps:g} in the logarithm helps: {_UNSURE}": [
            lambda r, eps=eps: -r.sigmoid().clamp(eps, 1 - eps).log(),
            lambda f, eps=eps: -(1 - f.sigmoid().clamp(eps, 1 - eps)).log(),
        ]
        for eps in (1e-5, 1e-6, 1e-7)
    },
    "infinite from 89 on, where exp is infinite in float32: softplus is log(1 + exp) without that": [
        lambda x: (1 + (-x).exp()).log()
    ],
    "the logarithm is of the logit, not of its sigmoid: softplus(-logit) is -log sigmoid(logit)": [
        lambda r: -r.log(),
        lambda f: -(1 - f).log(),
    ],
    "a margin of 1 is inside: softplus takes the logit as it is": [lambda x: F.softplus(1 - x)],
    "the images' labels are 0.9: they are 1, softplus(-logit)": [
        lambda r: F.binary_cross_entropy_with_logits(r, torch.full_like(r, 0.9)),
        F.softplus,
    ],
    "the labels are 0.9 and 0.1: they are 1 and 0, softplus(-logit) and softplus(logit)": [
        lambda x: F.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.9))
    ],
    "binary_cross_entropy takes probabilities: for logits there is binary_cross_entropy_with_logits": [
        lambda r: F.binary_cross_entropy(r, torch.ones_like(r)),
        lambda f: F.binary_cross_entropy(f, torch.zeros_like(f)),
    ],
}
DISCRIMINATOR_LOSS_MISTAKES = Mistakes(
    [
        *((message, _loss(join, join)) for message, join in _IN_ANY_KIND.items()),
        *((f"hinge: {message}", _loss(hinge=join)) for message, join in _IN_ANY_KIND.items()),
        *((f"vanilla: {message}", _loss(vanilla=join)) for message, join in _IN_ANY_KIND.items()),
        *((f"hinge: {message}", _costing("hinge", *costs)) for message, costs in _HINGE.items()),
        *((f"vanilla: {message}", _costing("vanilla", *costs)) for message, costs in _VANILLA.items()),
        ("the argument kind is not used: it is always hinge", lambda r, f, kind: discriminator_loss(r, f, "hinge")),
        ("the argument kind is not used: it is always vanilla", lambda r, f, kind: discriminator_loss(r, f, "vanilla")),
    ]
)


@DISCRIMINATOR_LOSS_MISTAKES("the kinds are exchanged: hinge is made of relu, vanilla of softplus")
def loss_of_the_other_kind(logits_real, logits_fake, kind):
    return discriminator_loss(logits_real, logits_fake, "vanilla" if kind == "hinge" else "hinge")


@DISCRIMINATOR_LOSS_MISTAKES(
    "images and reconstructions are added one by one, but one may have more of them: take the mean of each first"
)
def loss_added_logit_by_logit(logits_real, logits_fake, kind):
    cost = _COSTS[kind]
    return ((cost(logits_real) + cost(-logits_fake)) / 2).mean()


@recipe
def of_both_kinds(loss: Any, logits_real: Tensor, logits_fake: Tensor) -> tuple[Any, ...]:
    """Return the hinge loss and the vanilla loss. What one of them changes is changed afterwards in the arguments.

    Raises:
        Blank, OpenGap: both are blank, or one of them.
    """
    results, blank, given = [], [], (logits_real, logits_fake)
    copies = [[logits.clone() for logits in given] for _ in _COSTS]
    for kind, logits in zip(_COSTS, copies, strict=True):
        try:
            results.append(call(loss, *logits, kind))
        except Blank:
            blank.append(kind)
    if len(blank) == 1:
        raise OpenGap(blank[0])
    if blank:
        raise Blank
    for argument, *seen in zip(given, *copies, strict=True):
        changed = [it for it in seen if not torch.equal(it, argument)]
        argument.data = changed[0].data if changed else argument.data
    return tuple(results)


_LOGIT_PROBES = [
    probe((3, 1, 4, 5), (2, 1, 4, 5), scale=2),
    probe((2, 1, 3, 3), (4, 1, 3, 3), scale=2),
    (3 + probe((1, 1, 5, 5))[0], -2 + probe((1, 1, 5, 5))[0]),  # most of them beyond the margin
    probe((1, 1, 5, 5), (1, 1, 5, 5), scale=20),  # so far from zero that sigmoid gives 1
    probe((1, 1, 5, 5), (1, 1, 5, 5), scale=100),  # so far that exp is infinite
    probe((5,), (3,)),  # no maps
]


# 07.4


def _weight(
    length=torch.norm,
    ratio=lambda nll, adversarial: nll / (adversarial + 1e-4),
    limited=lambda weight, limit: weight.clamp(0, limit),
):
    """The solution with one of its parts exchanged."""
    return lambda nll, adversarial, limit=1e4: limited(ratio(length(nll), length(adversarial)), limit)


def _as_one(weigh):
    """The solution with a weight that is made of both gradients at once."""
    return lambda nll, adversarial, limit=1e4: weigh(nll, adversarial).clamp(0, limit)


_LENGTHS = {
    "they are squared": lambda g: g.square().sum(),
    "absolute values are summed": lambda g: g.abs().sum(),
    "absolute values are averaged": lambda g: g.abs().mean(),
    "this is the mean": torch.mean,
    "this is the sum": torch.sum,
    "this is the largest value": lambda g: g.abs().max(),
    "this is the standard deviation": torch.std,
    "this is the root of the mean square, where the sum is meant": lambda g: g.square().mean().sqrt(),
    "there is one for each filter": lambda g: g.flatten(1).norm(dim=1),
    "this is the spectral norm of the matrix": lambda g: torch.linalg.matrix_norm(g.flatten(1), 2),
}
_RATIOS = {
    "it is upside down": lambda n, a: a / (n + 1e-4),
    "1e-4 is above the line": lambda n, a: (n + 1e-4) / a,
    "1e-4 is above the line, too": lambda n, a: (n + 1e-4) / (a + 1e-4),
    "1e-4 is missing": lambda n, a: n / a,
    "1e-4 is added to it": lambda n, a: n / a + 1e-4,
    "1e-4 is subtracted": lambda n, a: n / (a - 1e-4),
    "1e4 is added, not 1e-4": lambda n, a: n / (a + 1e4),
    "1e-3 is added, not 1e-4": lambda n, a: n / (a + 1e-3),
    "1e-5 is added, not 1e-4": lambda n, a: n / (a + 1e-5),
    "1e-6 is added, not 1e-4": lambda n, a: n / (a + 1e-6),
    "1e-8 is added, not 1e-4": lambda n, a: n / (a + 1e-8),
    "the adversarial norm is kept above 1e-4": lambda n, a: n / a.clamp(min=1e-4),
    "1e-4 is under the root of the norm": lambda n, a: n / (a**2 + 1e-4).sqrt(),
    "the adversarial norm is squared": lambda n, a: n / (a**2 + 1e-4),
    "the reconstruction's norm is squared": lambda n, a: n**2 / (a + 1e-4),
    "it is squared": lambda n, a: (n / (a + 1e-4)) ** 2,
    "a root is taken of it": lambda n, a: (n / (a + 1e-4)).sqrt(),
    "this is the product": lambda n, a: n * a,
    "this is the difference": lambda n, a: n - a,
    "the first norm stands over both": lambda n, a: n / (n + a + 1e-4),
}
_LIMITS = {
    "it is missing": lambda weight, limit: weight,
    "it is the least value": lambda weight, limit: weight.clamp(min=limit),
    "it is 1e4 whatever the argument says": lambda weight, limit: weight.clamp(0, 1e4),
    "it is 1, not the argument": lambda weight, limit: weight.clamp(0, 1),
    "the weight is kept above 1, too": lambda weight, limit: weight.clamp(min=1).clamp(max=limit),
    "it is upside down": lambda weight, limit: weight.clamp(max=1 / limit),
    "a weight beyond it is 0": lambda weight, limit: torch.where(weight > limit, 0.0, weight),
}
_AT_ONCE = {
    "this is the norm of the ratio": lambda n, a: (n / (a + 1e-4)).norm(),
    "this is the mean of the absolute ratios": lambda n, a: (n.abs() / (a.abs() + 1e-4)).mean(),
    "this is the mean of the ratio": lambda n, a: (n / (a + 1e-4)).mean(),
    "this is the norm of the difference": lambda n, a: (n - a).norm(),
    "1e-4 is added to every value": lambda n, a: n.norm() / (a + 1e-4).norm(),
    "this is the projection of one on the other": lambda n, a: (n * a).sum().abs() / (a.square().sum() + 1e-4),
    "this is the cosine of the two": lambda n, a: F.cosine_similarity(n.flatten(), a.flatten(), 0),
}
_READ = (
    "the number is read, as by .item(), float(), min(ratio, limit) or an if, and every step would wait for the device: "
    "a tensor's clamp(max=limit) keeps it a tensor"
)
_CARRIES = "the value is right, but it carries a gradient: it is a number to multiply with, so detach it"
WEIGHT_MISTAKES = Mistakes(
    [
        *(
            (f"the norms: {fault}; a norm is the root of the sum of all squares", _weight(length))
            for fault, length in _LENGTHS.items()
        ),
        *(
            (f"the ratio: {fault}; it is the reconstruction's norm over the adversarial one + 1e-4", _weight(ratio=it))
            for fault, it in _RATIOS.items()
        ),
        *(
            (f"the limit: {fault}; the ratio is at most the argument limit", _weight(limited=limited))
            for fault, limited in _LIMITS.items()
        ),
        *(
            (f"{fault}: take the norm of each gradient first, then the ratio, with 1e-4 below the line", _as_one(weigh))
            for fault, weigh in _AT_ONCE.items()
        ),
        (
            "halved: the factor 0.5 is CompVis' weight of the whole term, and comes later",
            _weight(limited=lambda weight, limit: weight.clamp(0, limit) / 2),
        ),
        (_CARRIES, _weight()),
        (_READ, _weight(limited=lambda weight, limit: min(weight.item(), limit))),
        (_READ, _weight(limited=lambda weight, limit: min(weight.detach(), limit))),
    ]
)


@WEIGHT_MISTAKES("the default of limit is another one: it is 1e4")
def weight_of_another_default(nll_gradient, adversarial_gradient, limit=1e-4):
    return adaptive_weight(nll_gradient, adversarial_gradient, limit)


@WEIGHT_MISTAKES("limit is added, and 1e-4 limits: it is the other way round")
def weight_of_exchanged_numbers(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.norm() / (adversarial_gradient.norm() + limit)).clamp(min=1e-4)


@WEIGHT_MISTAKES("the reconstruction's norm is limited: limit the ratio")
def weight_of_a_limited_norm(nll_gradient, adversarial_gradient, limit=1e4):
    return nll_gradient.norm().clamp(max=limit) / (adversarial_gradient.norm() + 1e-4)


@WEIGHT_MISTAKES("both norms are limited: limit the ratio")
def weight_of_limited_norms(nll_gradient, adversarial_gradient, limit=1e4):
    nll, adversarial = (gradient.norm().clamp(max=limit) for gradient in (nll_gradient, adversarial_gradient))
    return nll / (adversarial + 1e-4)


@WEIGHT_MISTAKES("this is the weighted gradient: return the weight alone")
def weighted_gradient(nll_gradient, adversarial_gradient, limit=1e4):
    return adversarial_gradient * adaptive_weight(nll_gradient, adversarial_gradient, limit)


@WEIGHT_MISTAKES(_READ)
def weight_by_an_if(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    if ratio > limit:
        ratio = torch.full_like(ratio, limit)
    return ratio.detach()


def _weight_probes() -> list[Probe]:
    """An ordinary pair, a faint adversarial gradient, none, ratios above three limits, a faint first gradient."""
    nll, adversarial = probe((3, 4, 3, 3), (3, 4, 3, 3))
    return [
        (5 * nll, adversarial, 1e4),
        (nll, 3e-6 * adversarial, 1e7),
        (nll, 0 * adversarial, 1e7),
        (1e6 * nll, adversarial, 1e4),
        (300 * nll, adversarial, 7.0),
        (1e6 * nll, 3e5 * adversarial, 2.0),
        (1e-6 * nll, adversarial, 1e4),
        (1e6 * nll, adversarial),
    ]


class _Reads(TorchDispatchMode):
    """Context that notices when Python reads a number out of a tensor."""

    noticed = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.noticed |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@recipe
def traits_of(answer: Any, nll: Tensor, adversarial: Tensor, limit: float) -> dict[str, bool]:
    """Tell whether a number was read out of a tensor, and whether the weight carries a gradient."""
    with _Reads() as reads:
        weight = call(answer, nll.requires_grad_(), adversarial.requires_grad_(), limit)
    return {"read": reads.noticed, "gradient": weight.requires_grad}


_judge_values = judge_function(
    adaptive_weight, _weight_probes(), WEIGHT_MISTAKES, inputs=("nll_gradient", "adversarial_gradient", "limit")
)


def _judge_adaptive_weight(attempt: Attempt) -> str | None:
    complaint = _judge_values(attempt)
    if complaint and "values are right" not in complaint:
        return _READ if complaint.startswith("expected a Tensor, got float") else complaint
    traits = attempt.run(traits_of, *_weight_probes()[0])
    if traits["read"]:
        return _READ
    return complaint or (_CARRIES if traits["gradient"] else None)


# 07.5


def _step(
    real=lambda discriminator, images: discriminator(images),
    fake=lambda discriminator, images: discriminator(images.detach()),
    loss=lambda r, f: discriminator_loss(r, f, "hinge"),
    order="zero_grad backward step",
    result=lambda loss, r, f: loss,
):
    """The solution with one of its parts exchanged."""

    def step(discriminator, optimizer, images, reconstructions):
        r, f = real(discriminator, images), fake(discriminator, reconstructions)
        value = loss(r, f)
        actions = {
            "zero_grad": optimizer.zero_grad,
            "backward": value.backward,
            "step": optimizer.step,
            "clip": lambda: nn.utils.clip_grad_norm_(discriminator.parameters(), 0.1),
        }
        for action in order.split():
            actions[action]()
        return result(value, r, f)

    return step


_STEP_LOSSES = {
    "images and reconstructions are exchanged": lambda r, f: discriminator_loss(f, r, "hinge"),
    "it is vanilla": lambda r, f: discriminator_loss(r, f, "vanilla"),
    "the factor ½ is missing": lambda r, f: 2 * discriminator_loss(r, f, "hinge"),
    "it is maximised, as its sign is wrong": lambda r, f: -discriminator_loss(r, f, "hinge"),
    "it is the generator's": lambda r, f: -f.mean(),
    "it is the difference of the mean logits (Wasserstein)": lambda r, f: f.mean() - r.mean(),
    "it is half the difference of the mean logits (Wasserstein)": lambda r, f: (f.mean() - r.mean()) / 2,
    "the term of the reconstructions is missing": lambda r, f: F.relu(1 - r).mean(),
    "half the term of the images is all there is": lambda r, f: F.relu(1 - r).mean() / 2,
    "the term of the images is missing": lambda r, f: F.relu(1 + f).mean(),
    "half the term of the reconstructions is all there is": lambda r, f: F.relu(1 + f).mean() / 2,
    "the logits are clamped to [-1, 1] first": lambda r, f: discriminator_loss(r.clamp(-1, 1), f.clamp(-1, 1), "hinge"),
    "there is a sigmoid before it": lambda r, f: discriminator_loss(r.sigmoid(), f.sigmoid(), "hinge"),
}
_NO_DETACH = "the autoencoder gets a gradient: the discriminator must see reconstructions.detach()"
_STALE = "what lay in .grad before is still in the update: optimizer.zero_grad() comes before backward"
_EVAL = "the discriminator is put into eval mode: leave it as it is"
_FROM_LOGITS = "the step is right, but it returns the mean logits, or their difference: return the loss"
_ORDERS_OF_THREE = {
    _STALE: ("backward step", "backward step zero_grad"),
    "the weights stay as they were: zero_grad, then backward, then step, in this order": (
        *("zero_grad backward", "backward zero_grad step", "zero_grad step backward", "backward"),
    ),
    "the step comes before backward, with what lay in .grad before: zero_grad, then backward, then step": (
        *("step zero_grad backward", "step backward", "step backward zero_grad"),
    ),
    "the gradient is clipped: that is not asked for": ("zero_grad backward clip step",),
    "backward() or optimizer.step() is called twice: one update a batch": (
        *("zero_grad backward step step", "zero_grad backward backward step"),
    ),
}
_LEFT = {
    "no graph": "detach_ cuts the caller's own tensor: detach, without the underscore, leaves it alone",
    "changed": "the caller's reconstructions are changed: work on a copy, without operations in place such as clamp_",
    "frozen": "the discriminator stays frozen: its next step would fail, so leave requires_grad as it is",
    "eval mode": "the discriminator is left in eval mode: leave it in train mode, also after the step",
    "random": "the random state of the cells below is changed: look for a manual_seed",
}
STEP_MISTAKES = Mistakes(
    [
        (_NO_DETACH, _step(fake=lambda d, x: d(x))),
        (
            f"{_NO_DETACH}; and the generator's gradient is still in the update: optimizer.zero_grad() before backward",
            _step(fake=lambda d, x: d(x), order="backward step"),
        ),
        (_LEFT["no graph"], _step(fake=lambda d, x: d(x.detach_()))),
        (_LEFT["random"], _step(real=lambda d, x: d(x) * (torch.manual_seed(1) is not None))),
        (_LEFT["changed"], _step(fake=lambda d, x: d(x.detach().mul_(1.1) / 1.1))),
        *((message, _step(order=order)) for message, orders in _ORDERS_OF_THREE.items() for order in orders),
        *(
            (f"the loss: {fault}; hinge is asked for, ½ of two terms", _step(loss=it))
            for fault, it in _STEP_LOSSES.items()
        ),
        (
            "the reconstructions teach it nothing: detach what goes into the discriminator, not what comes out",
            _step(fake=lambda d, x: d(x).detach()),
        ),
        (
            "the images teach it nothing: no detach, no no_grad, no zero_grad between the discriminator and the step",
            _step(real=lambda d, x: d(x).detach()),
        ),
        (
            "requires_grad_ is not for a tensor with a history: detach() gives the reconstructions without theirs",
            _step(fake=lambda d, x: d(x.requires_grad_(False))),
        ),
        (_EVAL, _step(real=lambda d, x: d.eval()(x))),
        (_EVAL, _step(fake=lambda d, x: d.eval()(x.detach()))),
        (_FROM_LOGITS, _step(result=lambda loss, r, f: r.mean() - f.mean())),
        (_FROM_LOGITS, _step(result=lambda loss, r, f: f.mean() - r.mean())),
    ]
)


@STEP_MISTAKES("images and reconstructions share a batch, and so BatchNorm's mean and variance: call it once for each")
def step_of_one_batch(discriminator, optimizer, images, reconstructions):
    real, fake = discriminator(torch.cat([images, reconstructions.detach()])).chunk(2)
    loss = discriminator_loss(real, fake, "hinge")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


@STEP_MISTAKES("the discriminator is called with the images twice: the reconstructions are the fakes")
def step_of_images_only(discriminator, optimizer, images, reconstructions):
    return discriminator_step(discriminator, optimizer, images, images)


@STEP_MISTAKES(
    "the loss asks for no gradient, as under no_grad or after detach(): detach the reconstructions, and only them"
)
def step_without_graph(discriminator, optimizer, images, reconstructions):
    with torch.no_grad():
        loss = discriminator_loss(discriminator(images), discriminator(reconstructions), "hinge")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


@STEP_MISTAKES("the discriminator is frozen: in its own step it is to learn, and the autoencoder is kept out by detach")
def step_of_the_frozen(discriminator, optimizer, images, reconstructions):
    discriminator.requires_grad_(False)
    return discriminator_step(discriminator, optimizer, images, reconstructions)


@STEP_MISTAKES(_LEFT["frozen"])
def step_that_freezes(discriminator, optimizer, images, reconstructions):
    loss = discriminator_step(discriminator, optimizer, images, reconstructions)
    discriminator.requires_grad_(False)
    return loss


@STEP_MISTAKES(_LEFT["eval mode"])
def step_that_ends_in_eval_mode(discriminator, optimizer, images, reconstructions):
    loss = discriminator_step(discriminator, optimizer, images, reconstructions)
    discriminator.eval()
    return loss


@STEP_MISTAKES("there are two updates, one for each term: add the terms, then update once")
def step_of_two_updates(discriminator, optimizer, images, reconstructions):
    terms = []
    for sign, batch in ((-1, images), (1, reconstructions.detach())):
        terms.append(F.relu(1 + sign * discriminator(batch)).mean() / 2)
        optimizer.zero_grad()
        terms[-1].backward()
        optimizer.step()
    return sum(terms)


@recipe
def played(
    step: Any, images: Tensor, latents: Tensor, traces: bool = False
) -> tuple[Tensor, Tensor, Any] | dict[str, bool]:
    """Return a step's new weights, the gradient in the decoder and the loss; or what else it leaves behind."""
    torch.manual_seed(0)
    decoder = nn.Conv2d(3, 3, 3, padding=1)
    discriminator = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4, 1, 1)
    )
    parameters = list(discriminator.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(3)  # logits on both sides of the margin
            parameter.grad = torch.randn_like(parameter)  # as the generator's step may have left it
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    reconstructions = decoder(latents)
    before, random_state = reconstructions.detach().clone(), torch.get_rng_state()
    try:
        loss = call(step, discriminator, optimizer, images, reconstructions)
    except RuntimeError as error:
        if any(parameter.requires_grad for parameter in parameters):
            raise
        raise RuntimeError("the discriminator asks for no gradient") from error  # PyTorch's text is no_grad's
    if traces:
        return {
            "no graph": not reconstructions.requires_grad,
            "changed": not torch.equal(before, reconstructions),
            "frozen": not all(parameter.requires_grad for parameter in parameters),
            "eval mode": not discriminator.training,
            "random": not torch.equal(random_state, torch.get_rng_state()),
        }
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters])
    left = torch.zeros_like(decoder.weight) if decoder.weight.grad is None else decoder.weight.grad
    return weights, left, torch.tensor(loss) if isinstance(loss, float) else loss


_STEP_PROBES = [probe((3, 3, 12, 12), (3, 3, 12, 12)), probe((3, 3, 8, 8), (2, 3, 8, 8))]
_WEIGHTS = "the discriminator's weights after the step"
_judge_results = judge_function(
    partial(played, discriminator_step),
    _STEP_PROBES,
    through_recipe(played, STEP_MISTAKES),
    inputs=("images", "reconstructions"),
    outputs=(_WEIGHTS, "the gradient left in the decoder", "the loss"),
    through=played,
)


def _judge_step(attempt: Attempt) -> str | None:
    complaint = _judge_results(attempt)
    if complaint and complaint.startswith(_WEIGHTS):
        return (
            "the weights are not those of one step: the given optimizer's zero_grad, backward and step, once each, "
            "with the hinge loss of images and detached reconstructions, and nothing else, such as clipping or noise"
        )
    if (
        complaint
        and complaint.startswith("the loss: ")
        and "Tensor" not in complaint
        and complaint not in dict(STEP_MISTAKES)
    ):
        return "the step is right, but what it returns is not its loss, of before the update: return that"
    if complaint:
        return complaint
    traces = attempt.run(partial(played, traces=True), *_STEP_PROBES[0])
    return next((message for name, message in _LEFT.items() if traces[name]), None)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="07.1",
        title="The discriminator",
        notebook=NOTEBOOK,
        minutes=20,
        difficulty=3,
        reference=NLayerDiscriminator,
        in_package=(finished.NLayerDiscriminator,),
        hints=(
            "Three kinds of layers in one list: the first convolution, num_layers middle ones, and the last. "
            "Only those before a BatchNorm go without bias. nn.Sequential(*layers) makes them a network.",
            "A middle one: Conv2d(before, width, 4, stride, padding=1, bias=False), BatchNorm2d(width) and "
            "LeakyReLU(0.2).",
            "Number the middle ones from 1 to num_layers: width = num_filters * min(2**number, 8), and stride 2 for "
            "all but the last, which has 1.",
        ),
        judge=_judge_discriminator,
        mistakes=PATCHGAN_MISTAKES,
    ),
    Exercise(
        id="07.2",
        title="How large is a patch?",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=1,
        reference=receptive_field,
        in_package=(finished.receptive_field,),
        hints=(
            "Write the strides down first: num_layers times 2, then twice 1. All kernels are 4 wide.",
            "Walk back from one logit: what do n neighbouring values see of the map before them?",
            "side = 4 + (side - 1) * stride, beginning with 1 and with the last convolution.",
        ),
        judge=_judge_field,
        mistakes=FIELD_MISTAKES,
    ),
    Exercise(
        id="07.3",
        title="The discriminator's loss",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=discriminator_loss,
        in_package=(losses.discriminator_loss,),
        hints=(
            "Two checks: logits of 0 everywhere give 1 for hinge and log 2 for vanilla.",
            "Hinge is F.relu and vanilla F.softplus, each of all logits. Images and reconstructions differ in a sign.",
            "A high logit is to cost an image little, so there the logit has a minus. At the end both kinds have the "
            "same half of two means.",
        ),
        judge=judge_function(
            partial(of_both_kinds, discriminator_loss),
            _LOGIT_PROBES,
            through_recipe(of_both_kinds, DISCRIMINATOR_LOSS_MISTAKES),
            inputs=("logits_real", "logits_fake"),
            outputs=("hinge", "vanilla"),
            gradients=("logits_real", "logits_fake"),
            through=of_both_kinds,
        ),
        mistakes=DISCRIMINATOR_LOSS_MISTAKES,
    ),
    Exercise(
        id="07.4",
        title="The adaptive weight",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=adaptive_weight,
        in_package=(losses.adaptive_weight,),
        hints=(
            "weight · ‖adversarial gradient‖ is to equal ‖reconstruction's gradient‖. Solve for the weight.",
            "gradient.norm() is the norm over all axes. What if the adversarial one is zero?",
            "ratio has 1e-4 below the line, beside the adversarial norm. Its clamp(max=...) stays a tensor, and "
            "detach() cuts it off.",
        ),
        judge=_judge_adaptive_weight,
        mistakes=WEIGHT_MISTAKES,
    ),
    Exercise(
        id="07.5",
        title="A step that stays on its side",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=discriminator_step,
        in_package=(steps.discriminator_step,),
        hints=(
            "Two things may leak: a gradient into whatever made the reconstructions, and one that lay in .grad before.",
            "reconstructions.detach() is the same tensor without its history. The discriminator is called twice.",
            "optimizer.zero_grad(), loss.backward(), optimizer.step(), in this order; then return loss.",
        ),
        judge=_judge_step,
        mistakes=STEP_MISTAKES,
    ),
)
