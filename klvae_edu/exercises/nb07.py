"""The exercises of notebook 07, PatchGAN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from klvae_edu import discriminator as finished
from klvae_edu import losses
from klvae_edu.exercises.exercise import Blank, Exercise, Mistakes, OpenGap, call
from klvae_edu.exercises.judges.functions import judge_function, probe, same
from klvae_edu.exercises.judges.modules import ModuleMistake, judge_module
from klvae_edu.exercises.judges.numbers import judge_numbers
from klvae_edu.training import steps

NOTEBOOK = "07_patchgan"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


class NLayerDiscriminator(nn.Module):
    """Images (B, C, H, W) -> logits (B, 1, h, w), one per patch: above zero where it looks real."""

    def __init__(self, in_channels: int = 3, num_filters: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, num_filters, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = num_filters
        for number in range(1, num_layers + 1):
            before, width = width, num_filters * min(2**number, 8)
            stride = 2 if number < num_layers else 1
            convolution = nn.Conv2d(before, width, 4, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images)


def receptive_field(num_layers: int) -> int:
    """The side in pixels of the patch that one logit of NLayerDiscriminator(num_layers=num_layers) sees."""
    strides = [2] * num_layers + [1, 1]
    side = 1
    for stride in reversed(strides):
        side = 4 + (side - 1) * stride
    return side


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor, kind: str) -> torch.Tensor:
    """Logits of images and of reconstructions -> the loss of the discriminator ("hinge" or "vanilla"), a scalar."""
    if kind == "hinge":
        real, fake = F.relu(1 - logits_real), F.relu(1 + logits_fake)
    else:
        real, fake = F.softplus(-logits_real), F.softplus(logits_fake)
    return 0.5 * (real.mean() + fake.mean())


def adaptive_weight(nll_gradient: torch.Tensor, adversarial_gradient: torch.Tensor, limit: float = 1e4) -> torch.Tensor:
    """Both gradients at the last layer's weight -> the factor that makes the second as long as the first: a scalar."""
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(max=limit).detach()


def discriminator_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    reconstructions: torch.Tensor,
) -> torch.Tensor:
    """One update of the discriminator with the hinge loss, which is returned. Nothing flows back further."""
    logits_real = discriminator(images)
    logits_fake = discriminator(reconstructions.detach())
    loss = discriminator_loss(logits_real, logits_fake, "hinge")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


# 07.1


def _net(
    *,
    kernel: int = 4,
    padding: int = 1,
    normed_bias: bool = False,
    bias: bool = True,
    last_bias: bool = True,
    first_stride: int = 2,
    strides: Callable[[int, int], int] = lambda number, count: 2 if number < count else 1,
    widths: Callable[[int], int] = lambda number: min(2**number, 8),
    count: Callable[[int], int] = lambda num_layers: num_layers,
    block: Callable[[nn.Module, int, nn.Module], list[nn.Module]] = lambda conv, width, act: [
        conv,
        nn.BatchNorm2d(width),
        act,
    ],
    first: Callable[[nn.Module, int, nn.Module], list[nn.Module]] = lambda conv, width, act: [conv, act],
    last: Callable[[nn.Module], list[nn.Module]] = lambda conv: [conv],
    activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.2),
) -> type[nn.Module]:
    """The finished class with one of its choices made otherwise."""

    class Mistaken(nn.Module):
        def __init__(self, in_channels: int = 3, num_filters: int = 64, num_layers: int = 3) -> None:
            super().__init__()
            conv = nn.Conv2d(in_channels, num_filters, kernel, first_stride, padding, bias=bias)
            layers = first(conv, num_filters, activation())
            width = num_filters
            for number in range(1, count(num_layers) + 1):
                before, width = width, num_filters * widths(number)
                conv = nn.Conv2d(before, width, kernel, strides(number, count(num_layers)), padding, bias=normed_bias)
                layers += block(conv, width, activation())
            layers += last(nn.Conv2d(width, 1, kernel, 1, padding, bias=last_bias))
            self.main = nn.Sequential(*layers)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.main(images)
            return logits

    return Mistaken


class _OneVerdict(NLayerDiscriminator):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean((2, 3))


class _OneVerdictAsANumber(NLayerDiscriminator):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean((1, 2, 3))


class _OneVerdictAsAMap(NLayerDiscriminator):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean((2, 3), keepdim=True)


class _NestedLists(nn.Module):
    def __init__(self, in_channels: int = 3, num_filters: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        nn.Sequential([nn.LeakyReLU(0.2)])  # type: ignore[call-overload]


def _normed_by(norm: Callable[[int], nn.Module]) -> type[nn.Module]:
    return _net(block=lambda conv, width, act: [conv, norm(width), act])


_BATCH_NORM = "the norm is a BatchNorm2d"
_MOMENTUM = "the BatchNorm2d has another momentum than its usual 0.1: BatchNorm2d(width) as it comes"
_EPS = "the BatchNorm2d has another eps than its usual 1e-5: BatchNorm2d(width) as it comes"
_WIDTHS = "num_filters times 2, 4, 8, and then 8 for all that follow"
_NORMED_BIAS = "the convolutions before a BatchNorm have a bias, which the norm takes away again: bias=False"
_LOGITS = "the last convolution's values are the logits"
_SLOPE = "the activation is LeakyReLU with a slope of 0.2"
PATCHGAN_MISTAKES: tuple[ModuleMistake, ...] = (
    # by their parameters
    (_NORMED_BIAS, _net(normed_bias=True)),
    *(
        (f"{_NORMED_BIAS}; and {wrong}: {_WIDTHS}", _net(normed_bias=True, widths=widths))
        for wrong, widths in (
            ("the widths go on doubling", lambda number: 2**number),
            ("the widths do not double", lambda number: 1),
            ("the widths grow by num_filters each time", lambda number: min(number + 1, 8)),
            ("the widths grow by num_filters each time", lambda number: number + 1),
            ("the widths double one convolution too late", lambda number: min(2 ** (number - 1), 8)),
        )
    ),
    (
        f"{_NORMED_BIAS}; and there is one middle convolution too many: num_layers of them",
        _net(normed_bias=True, count=lambda num_layers: num_layers + 1),
    ),
    (
        "no convolution has a bias: those without a norm behind them, the first and the last, need one",
        _net(bias=False, last_bias=False),
    ),
    ("the first convolution has no bias: without a norm behind it, it needs one", _net(bias=False)),
    ("the last convolution has no bias: without a norm behind it, it needs one", _net(last_bias=False)),
    (
        "the biases are the wrong way round: only the convolutions before a BatchNorm go without",
        _net(bias=False, last_bias=False, normed_bias=True),
    ),
    *(
        ("there is a norm after the first convolution: only the middle ones have one", code)
        for code in (
            _net(first=lambda conv, width, act: [conv, nn.BatchNorm2d(width), act]),
            _net(first=lambda conv, width, act: [conv, act, nn.BatchNorm2d(width)]),
        )
    ),
    (
        "there is a norm after the last convolution: its values are the logits as they are",
        _net(last=lambda conv: [conv, nn.BatchNorm2d(1)]),
    ),
    ("the norms are missing: a BatchNorm2d after each middle convolution", _net(block=lambda c, width, act: [c, act])),
    (
        "the norms are missing: a BatchNorm2d after each middle convolution",
        _net(block=lambda c, width, act: [c, act], normed_bias=True),
    ),
    (
        "the norm comes after the activation: the order is convolution, BatchNorm2d, LeakyReLU",
        _net(block=lambda conv, width, act: [conv, act, nn.BatchNorm2d(width)]),
    ),
    (
        "there is no LeakyReLU after the first convolution",
        _net(first=lambda conv, width, act: [conv]),
    ),
    (
        f"the norm keeps no running mean and spread, as InstanceNorm2d and GroupNorm do: {_BATCH_NORM}",
        _normed_by(lambda width: nn.GroupNorm(1, width)),
    ),
    (
        f"the norm has no parameters, as an InstanceNorm2d: {_BATCH_NORM}, which has",
        _normed_by(nn.InstanceNorm2d),
    ),
    (
        f"the BatchNorm2d has no weight and bias of its own: {_BATCH_NORM} as it comes",
        _normed_by(lambda width: nn.BatchNorm2d(width, affine=False)),
    ),
    (_MOMENTUM, _normed_by(lambda width: nn.BatchNorm2d(width, momentum=0.9))),
    (_EPS, _normed_by(lambda width: nn.BatchNorm2d(width, eps=1e-3))),
    ("the kernels are 3×3: every convolution here is 4×4", _net(kernel=3)),
    ("the kernels are 5×5: every convolution here is 4×4", _net(kernel=5, padding=2)),
    (f"the widths go on doubling: {_WIDTHS}", _net(widths=lambda number: 2**number)),
    (f"the widths do not double: {_WIDTHS}", _net(widths=lambda number: 1)),
    (f"the widths grow by num_filters each time: {_WIDTHS}", _net(widths=lambda number: min(number + 1, 8))),
    (f"the widths grow by num_filters each time: {_WIDTHS}", _net(widths=lambda number: number + 1)),
    (
        f"the widths double one convolution too late: {_WIDTHS}, beginning with the second convolution",
        _net(widths=lambda number: min(2 ** (number - 1), 8)),
    ),
    (
        f"the width is capped at 8 channels: {_WIDTHS}; the cap is on the factor",
        _net(widths=lambda number: 2),
    ),
    (
        "there is one middle convolution too many: num_layers of them, of which the last has stride 1",
        _net(count=lambda num_layers: num_layers + 1),
    ),
    (
        "there is one middle convolution too few: num_layers of them, of which the last has stride 1",
        _net(count=lambda num_layers: num_layers - 1),
    ),
    # by their results
    (
        "all middle convolutions have stride 2: the last of them has stride 1",
        _net(strides=lambda number, count: 2),
    ),
    (
        "all middle convolutions have stride 1: all but the last of them have stride 2",
        _net(strides=lambda number, count: 1),
    ),
    ("the first convolution has stride 1: it is the first of those with stride 2", _net(first_stride=1)),
    ("the padding is missing: every convolution pads one pixel on each side", _net(padding=0)),
    ("the padding is 2: every convolution pads one pixel on each side", _net(padding=2)),
    (f"the activation is ReLU: {_SLOPE}", _net(activation=nn.ReLU)),
    (f"LeakyReLU has its usual slope of 0.01: {_SLOPE}", _net(activation=nn.LeakyReLU)),
    (f"the slope is 2, which makes negative values larger: {_SLOPE}", _net(activation=lambda: nn.LeakyReLU(2.0))),
    (f"the activation is SiLU: {_SLOPE}", _net(activation=nn.SiLU)),
    (f"the activation is GELU: {_SLOPE}", _net(activation=nn.GELU)),
    (
        "there is no activation after the norms: LeakyReLU(0.2) follows each of them",
        _net(block=lambda conv, width, act: [conv, nn.BatchNorm2d(width), nn.Identity()]),
    ),
    (
        f"there is a sigmoid at the end: {_LOGITS}, and the loss is made for them",
        _net(last=lambda conv: [conv, nn.Sigmoid()]),
    ),
    (f"there is a tanh at the end: {_LOGITS}", _net(last=lambda conv: [conv, nn.Tanh()])),
    (f"there is a LeakyReLU at the end: {_LOGITS}", _net(last=lambda conv: [conv, nn.LeakyReLU(0.2)])),
    *(
        ("the patches are averaged into one verdict per image: return the map of logits", code)
        for code in (_OneVerdict, _OneVerdictAsANumber, _OneVerdictAsAMap)
    ),
    # by their exceptions
    (
        "there is a list among the layers, and nn.Sequential takes none: write layers += [...], or Sequential(*layers)",
        _NestedLists,
    ),
)
_judge_class = judge_module(
    NLayerDiscriminator,
    builds=[(3, 4, 3), (2, 4, 1), (3, 2, 5)],
    inputs=lambda channels, filters, layers: probe((2, channels, 4 * 2**layers, 4 * 2**layers + 8)),
    mistakes=PATCHGAN_MISTAKES,
    parts=("main",),
)


def _judge_discriminator(attempt: Any) -> str | None:
    """Judge it as any module, in train mode. Then look at the settings that show in eval mode only."""
    complaint = _judge_class(attempt)
    if complaint and "values are right" not in complaint:
        return complaint
    network, right = attempt(3, 4, 1), NLayerDiscriminator(3, 4, 1)
    network.load_state_dict(right.state_dict())
    norm = network.get_submodule("main.3")
    if getattr(norm, "eps", 1e-5) != 1e-5:
        return _EPS
    if complaint:
        return complaint
    (images,) = probe((2, 3, 8, 16))
    if not same(right(images), network(images)) or not same(right.eval()(images), network.eval()(images)):
        usual = getattr(norm, "momentum", 0.1) == 0.1
        return (
            "right in train mode, but not in eval mode, where BatchNorm2d uses its running statistics"
            if usual
            else _MOMENTUM
        )
    return None


# 07.2


def _walked(strides: Callable[[int], list[int]], kernel: int = 4) -> Callable[[int], float]:
    """The finished version for another stack of layers."""

    def walk(num_layers: int) -> float:
        side = 1
        for stride in reversed(strides(num_layers)):
            side = kernel + (side - 1) * stride
        return float(side)

    return walk


def _right(num_layers: int) -> list[int]:
    return [2] * num_layers + [1, 1]


def _with_side_strides(num_layers: int) -> float:
    side = 1
    for stride in reversed(_right(num_layers)):
        side = 4 + side * stride
    return float(side)


def _adding_whole_kernels(num_layers: int) -> float:
    side, jump = 1, 1
    for stride in _right(num_layers):
        side += 4 * jump
        jump *= stride
    return float(side)


def _from_nothing(num_layers: int) -> float:
    side = 0
    for stride in reversed(_right(num_layers)):
        side = 4 + (side - 1) * stride
    return float(side)


_ENDS = "num_layers convolutions with stride 2, then two with stride 1"
FIELD_MISTAKES: tuple[tuple[str, Callable[[int], float]], ...] = (
    (f"the two convolutions with stride 1 are left out: {_ENDS}", _walked(lambda n: [2] * n)),
    (f"one convolution with stride 1 is left out: {_ENDS}", _walked(lambda n: [2] * n + [1])),
    *(
        (f"as if three convolutions had stride 1, or one of the last two had stride 2: {_ENDS}", _walked(strides))
        for strides in (
            lambda n: [2] * n + [1] * 3,
            lambda n: [2] * (n + 1) + [1],
            lambda n: [2] * (n + 2),
        )
    ),
    (
        "one convolution with stride 2 too many: the first one is counted among the num_layers",
        _walked(lambda n: [2] * (n + 1) + [1, 1]),
    ),
    (f"one convolution with stride 2 too few: {_ENDS}", _walked(lambda n: [2] * (n - 1) + [1, 1])),
    ("the kernels are counted as 3×3: here they are 4×4", _walked(_right, kernel=3)),
    ("the kernels count as 5: a kernel of 4 reaches 3 further than a single place", _walked(_right, kernel=5)),
    (
        "the layers are walked in the wrong direction: with 4 + (side - 1) · stride, begin at the logits",
        _walked(lambda n: [1, 1] + [2] * n),
    ),
    ("side · stride is too long: n places are n - 1 strides apart, 4 + (side - 1) · stride", _with_side_strides),
    ("the kernels count as 5: a kernel of 4 reaches 3 further than a single place", _adding_whole_kernels),
    ("the strides are ignored: behind a stride of 2, places are two pixels apart", lambda n: float(1 + 3 * (n + 2))),
    ("this is the distance of two logits: the patch that one of them sees is asked for", lambda n: float(2**n)),
    ("this is the patch's area: its side is asked for", lambda n: float(receptive_field(n) ** 2)),
    ("one side only: the whole patch is asked for", lambda n: float(receptive_field(n) // 2)),
    ("70 holds for num_layers = 3 only: compute it from num_layers", lambda n: 70.0),
    ("the walk begins with 0 places: one logit is one place", _from_nothing),
)
_FIELD_PROBES = (3, 1, 2, 5)


# 07.3

_Loss = Callable[[Tensor, Tensor], Tensor]
_Kinds = Callable[[Tensor, Tensor, str], Tensor]


def _half(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (real.mean() + fake.mean())


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return _half(F.relu(1 - real), F.relu(1 + fake))


def _vanilla(real: Tensor, fake: Tensor) -> Tensor:
    return _half(F.softplus(-real), F.softplus(fake))


def _kinds(hinge: _Loss = _hinge, vanilla: _Loss = _vanilla) -> _Kinds:
    return lambda real, fake, kind: hinge(real, fake) if kind == "hinge" else vanilla(real, fake)


def _in_any(message: str, hinge: _Loss, vanilla: _Loss) -> Iterator[tuple[str, _Kinds]]:
    """A mistake made in both kinds, or in one of them."""
    yield message, _kinds(hinge, vanilla)
    yield f"hinge: {message}", _kinds(hinge=hinge)
    yield f"vanilla: {message}", _kinds(vanilla=vanilla)


def _on_probabilities(real: Tensor, fake: Tensor) -> Tensor:
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    return 0.5 * (F.binary_cross_entropy(real, ones) + F.binary_cross_entropy(fake, zeros))


def _on_probabilities_above(eps: float) -> _Loss:
    return lambda real, fake: -_half((real.sigmoid() + eps).log(), (1 - fake.sigmoid() + eps).log())


def _log_of_one_plus_exp(logits: Tensor) -> Tensor:
    return (1 + logits.exp()).log()


DISCRIMINATOR_LOSS_MISTAKES: tuple[tuple[str, _Kinds], ...] = (
    *_in_any(
        "the factor ½ is missing: the loss is the mean of the two terms",
        lambda r, f: 2 * _hinge(r, f),
        lambda r, f: 2 * _vanilla(r, f),
    ),
    *_in_any(
        "the signs are exchanged: logits of images are to be high, those of reconstructions low",
        lambda r, f: _hinge(f, r),
        lambda r, f: _vanilla(f, r),
    ),
    *_in_any(
        "reconstructions are treated like images: their logits are to be low, so the sign is the other one",
        lambda r, f: _hinge(r, -f),
        lambda r, f: _vanilla(r, -f),
    ),
    *_in_any(
        "images are treated like reconstructions: their logits are to be high, so the sign is the other one",
        lambda r, f: _hinge(-r, f),
        lambda r, f: _vanilla(-r, f),
    ),
    *_in_any(
        "the term of the reconstructions is missing",
        lambda r, f: F.relu(1 - r).mean(),
        lambda r, f: F.softplus(-r).mean(),
    ),
    *_in_any(
        "the term of the reconstructions is missing",
        lambda r, f: F.relu(1 - r).mean() / 2,
        lambda r, f: F.softplus(-r).mean() / 2,
    ),
    *_in_any(
        "the term of the images is missing",
        lambda r, f: F.relu(1 + f).mean(),
        lambda r, f: F.softplus(f).mean(),
    ),
    *_in_any(
        "the term of the images is missing",
        lambda r, f: F.relu(1 + f).mean() / 2,
        lambda r, f: F.softplus(f).mean() / 2,
    ),
    *_in_any(
        "it is a sum over the logits: take the mean of each term",
        lambda r, f: (F.relu(1 - r).sum() + F.relu(1 + f).sum()) / 2,
        lambda r, f: (F.softplus(-r).sum() + F.softplus(f).sum()) / 2,
    ),
    *_in_any(
        "all logits are averaged together: take the mean of each term by itself, for the numbers of logits may differ",
        lambda r, f: torch.cat([F.relu(1 - r).flatten(), F.relu(1 + f).flatten()]).mean(),
        lambda r, f: torch.cat([F.softplus(-r).flatten(), F.softplus(f).flatten()]).mean(),
    ),
    *_in_any(
        "its sign is wrong: the discriminator minimises it, and it is never below zero",
        lambda r, f: -_hinge(r, f),
        lambda r, f: -_vanilla(r, f),
    ),
    *_in_any(
        "this is the generator's term: the discriminator has one term for images and one for reconstructions",
        lambda r, f: -f.mean(),
        lambda r, f: -f.mean(),
    ),
    *_in_any(
        "this is the difference of the mean logits (Wasserstein): the two kinds are hinge and cross-entropy",
        lambda r, f: f.mean() - r.mean(),
        lambda r, f: f.mean() - r.mean(),
    ),
    *_in_any(
        "this is the difference of the mean logits (Wasserstein): the two kinds are hinge and cross-entropy",
        lambda r, f: (f.mean() - r.mean()) / 2,
        lambda r, f: (f.mean() - r.mean()) / 2,
    ),
    *_in_any(
        "these are squared distances from labels (least-squares GAN): the two kinds are hinge and cross-entropy",
        lambda r, f: ((r - 1).square().mean() + f.square().mean()) / 2,
        lambda r, f: ((r - 1).square().mean() + f.square().mean()) / 2,
    ),
    ("the kinds are exchanged: hinge is made of relu, vanilla of softplus", _kinds(_vanilla, _hinge)),
    *_in_any(
        "the mean is taken first: cost every logit by relu or softplus, and take the mean of the costs",
        lambda r, f: (F.relu(1 - r.mean()) + F.relu(1 + f.mean())) / 2,
        lambda r, f: (F.softplus(-r.mean()) + F.softplus(f.mean())) / 2,
    ),
    # hinge
    (
        "hinge: the relu is missing, so that it pays to push logits beyond the margin for ever",
        _kinds(lambda r, f: _half(1 - r, 1 + f)),
    ),
    (
        "hinge: the margin is on the wrong side: it costs when an image's logit is below 1, not above",
        _kinds(lambda r, f: _half(F.relu(r - 1), F.relu(-1 - f))),
    ),
    (
        "hinge: the margin is on the wrong side: images should exceed 1, and reconstructions fall below -1",
        _kinds(lambda r, f: _half(F.relu(-1 - r), F.relu(f - 1))),
    ),
    (
        "hinge: the margin of 1 is missing: relu(1 - logit), not relu(-logit)",
        _kinds(lambda r, f: _half(F.relu(-r), F.relu(f))),
    ),
    ("hinge: the 1 stands outside of relu: relu(1 - logit)", _kinds(lambda r, f: _half(1 - F.relu(r), 1 + F.relu(f)))),
    ("hinge: the 1 stands outside of relu: relu(1 - logit)", _kinds(lambda r, f: _half(1 + F.relu(-r), 1 + F.relu(f)))),
    (
        "hinge: this is the minimum of 0 and 1 - logit: relu is the maximum",
        _kinds(lambda r, f: _half((1 - r).clamp(max=0), (1 + f).clamp(max=0))),
    ),
    (
        "hinge: it is squared: the hinge is relu itself",
        _kinds(lambda r, f: _half(F.relu(1 - r) ** 2, F.relu(1 + f) ** 2)),
    ),
    (
        "hinge: there is a sigmoid before it: the hinge is of the logits themselves",
        _kinds(lambda r, f: _hinge(r.sigmoid(), f.sigmoid())),
    ),
    (
        "hinge: absolute values instead of relu: beyond the margin nothing is to be paid",
        _kinds(lambda r, f: _half((1 - r).abs(), (1 + f).abs())),
    ),
    # vanilla
    (
        "vanilla: a sigmoid is taken twice: softplus and binary_cross_entropy_with_logits take raw logits",
        _kinds(vanilla=lambda r, f: _vanilla(r.sigmoid(), f.sigmoid())),
    ),
    (
        "vanilla: the logarithm is missing: softplus(-logit) is -log sigmoid(logit)",
        _kinds(vanilla=lambda r, f: _half(1 - r.sigmoid(), f.sigmoid())),
    ),
    (
        "vanilla: the logarithm is missing: softplus(-logit) is -log sigmoid(logit)",
        _kinds(vanilla=lambda r, f: _half(-r.sigmoid(), f.sigmoid())),
    ),
    (
        "vanilla: infinite at 20, where sigmoid is 1 in float32: use softplus of the logit, no log of a probability",
        _kinds(vanilla=lambda r, f: _half(-r.sigmoid().log(), -(1 - f.sigmoid()).log())),
    ),
    (
        "vanilla: binary_cross_entropy after a sigmoid, which is 1 in float32 at 20: use softplus of the logit",
        _kinds(vanilla=lambda r, f: _on_probabilities(r.sigmoid(), f.sigmoid())),
    ),
    *(
        (f"vanilla: wrong at 20, where sigmoid is 1 in float32, and no {eps:g} helps: use softplus of the logit", code)
        for eps, code in ((eps, _kinds(vanilla=_on_probabilities_above(eps))) for eps in (1e-6, 1e-7, 1e-8, 1e-12))
    ),
    (
        "vanilla: infinite from 89 on, where exp is infinite in float32: softplus is log(1 + exp) without that",
        _kinds(vanilla=lambda r, f: _half(_log_of_one_plus_exp(-r), _log_of_one_plus_exp(f))),
    ),
    (
        "vanilla: a margin of 1 is inside: softplus takes the logit as it is",
        _kinds(vanilla=lambda r, f: _half(F.softplus(1 - r), F.softplus(1 + f))),
    ),
    ("the argument kind is not used: it is always hinge", _kinds(vanilla=_hinge)),
    ("the argument kind is not used: it is always vanilla", _kinds(hinge=_vanilla)),
    (
        "images and reconstructions are added logit by logit: take the mean of each term first",
        _kinds(
            lambda r, f: (F.relu(1 - r) + F.relu(1 + f)[: len(r)]) / 2,
            lambda r, f: (F.softplus(-r) + F.softplus(f)[: len(r)]) / 2,
        ),
    ),
    # by their exceptions
    (
        "vanilla: binary_cross_entropy takes probabilities: for logits there is binary_cross_entropy_with_logits",
        _kinds(vanilla=_on_probabilities),
    ),
)


def _of_both_kinds(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Both losses at once."""

    def both(logits_real: Tensor, logits_fake: Tensor) -> tuple[Any, ...]:
        results, blank = [], []
        for kind in ("hinge", "vanilla"):
            try:
                results.append(call(loss, logits_real, logits_fake, kind))
            except Blank:
                blank.append(kind)
        if len(blank) == 1:
            raise OpenGap(blank[0])
        if blank:
            raise Blank
        return tuple(results)

    return both


_BEYOND = (3 + probe((1, 1, 5, 5))[0], -2 + probe((1, 1, 5, 5))[0])  # most of them beyond the margin
_SURE = probe((1, 1, 5, 5), (1, 1, 5, 5), scale=20)  # so far from zero that sigmoid gives 1
_CERTAIN = probe((1, 1, 5, 5), (1, 1, 5, 5), scale=100)  # so far that exp is infinite

_judge_loss = judge_function(
    _of_both_kinds(discriminator_loss),
    [probe((3, 1, 4, 5), (2, 1, 4, 5), scale=2), probe((2, 1, 3, 3), (4, 1, 3, 3), scale=2), _BEYOND, _SURE, _CERTAIN],
    [(message, _of_both_kinds(code)) for message, code in DISCRIMINATOR_LOSS_MISTAKES],
    inputs=("logits_real", "logits_fake"),
    outputs=("hinge", "vanilla"),
    gradients=("logits_real", "logits_fake"),
)


# 07.4

_Weight = Callable[[Tensor, Tensor, float], Tensor]


def _weighed(
    length: Callable[[Tensor], Tensor] = lambda gradient: gradient.norm(),
    ratio: Callable[[Tensor, Tensor], Tensor] = lambda nll, adversarial: nll / (adversarial + 1e-4),
    limited: Callable[[Tensor, float], Tensor] = lambda weight, limit: weight.clamp(0, limit),
) -> _Weight:
    """The finished version with one of its parts exchanged."""
    return lambda nll, adversarial, limit: limited(ratio(length(nll), length(adversarial)), limit)


def _with_epsilon(eps: float) -> _Weight:
    return _weighed(ratio=lambda nll, adversarial: nll / (adversarial + eps))


def _root_mean_square(gradient: Tensor) -> Tensor:
    return gradient.square().mean().sqrt()


_LENGTH = "the length of a gradient is its norm, the root of the sum of all squares"
_BELOW = "1e-4 is added to the adversarial norm, below the line, so that nothing is divided by zero"
WEIGHT_MISTAKES: tuple[tuple[str, _Weight], ...] = (
    (
        "the ratio is upside down: the reconstruction's gradient stands above, the adversarial one below",
        _weighed(ratio=lambda nll, adversarial: adversarial / (nll + 1e-4)),
    ),
    (
        "the ratio is upside down: the reconstruction's gradient stands above, the adversarial one below",
        _weighed(ratio=lambda nll, adversarial: adversarial / nll),
    ),
    (
        "this is the norm of the ratio: take the norm of each gradient first, then the ratio",
        lambda nll, adversarial, limit: (nll / (adversarial + 1e-4)).norm().clamp(0, limit),
    ),
    (
        "this is the mean of the ratio: take the norm of each gradient first, then the ratio",
        lambda nll, adversarial, limit: (nll / (adversarial + 1e-4)).mean().clamp(0, limit),
    ),
    (
        "this is the norm of the difference: the ratio of the norms is asked for",
        lambda nll, adversarial, limit: (nll - adversarial).norm().clamp(0, limit),
    ),
    (f"the norms are squared: {_LENGTH}", _weighed(length=lambda gradient: gradient.square().sum())),
    (f"absolute values are summed: {_LENGTH}", _weighed(length=lambda gradient: gradient.abs().sum())),
    (f"it is the mean of the absolute values: {_LENGTH}", _weighed(length=lambda gradient: gradient.abs().mean())),
    (f"it is the mean of the gradient: {_LENGTH}", _weighed(length=lambda gradient: gradient.mean())),
    (f"it is the sum of the gradient: {_LENGTH}", _weighed(length=lambda gradient: gradient.sum())),
    (f"it is the largest value: {_LENGTH}", _weighed(length=lambda gradient: gradient.abs().max())),
    (f"it is the spread of the gradient: {_LENGTH}", _weighed(length=lambda gradient: gradient.std())),
    (
        f"it is the root of the mean square, where the sum is meant: {_LENGTH}",
        _weighed(length=_root_mean_square),
    ),
    (
        "1e-4 is added to the reconstruction's norm: it belongs to the adversarial one, which may be zero",
        _weighed(ratio=lambda nll, adversarial: (nll + 1e-4) / adversarial),
    ),
    (f"1e-4 is missing: {_BELOW}", _weighed(ratio=lambda nll, adversarial: nll / adversarial)),
    (
        f"1e-4 is added to the ratio: {_BELOW}",
        _weighed(ratio=lambda nll, adversarial: nll / adversarial + 1e-4),
    ),
    *((f"another number than 1e-4 is added: {_BELOW}", _with_epsilon(eps)) for eps in (1e-3, 1e-5, 1e-6, 1e-8)),
    (
        f"the adversarial norm is kept above 1e-4 instead: {_BELOW}",
        _weighed(ratio=lambda nll, adversarial: nll / adversarial.clamp(min=1e-4)),
    ),
    ("the limit is missing: clamp(0, limit)", _weighed(limited=lambda weight, limit: weight)),
    (
        "it is clamped from below: the limit is the largest value, clamp(0, limit)",
        _weighed(limited=lambda weight, limit: weight.clamp(min=limit)),
    ),
    (
        "the limit is 1e4 whatever the argument says: use limit",
        _weighed(limited=lambda weight, limit: weight.clamp(0, 1e4)),
    ),
    ("it is clamped to 1: the limit is the argument limit", _weighed(limited=lambda weight, limit: weight.clamp(0, 1))),
    (
        "the reconstruction's norm is clamped: clamp the ratio",
        lambda nll, adversarial, limit: nll.norm().clamp(max=limit) / (adversarial.norm() + 1e-4),
    ),
    (
        "halved: the factor 0.5 is CompVis' weight of the whole term, and comes later",
        _weighed(limited=lambda weight, limit: weight.clamp(0, limit) / 2),
    ),
    (
        "there is one weight for each filter: the norm is over all axes",
        lambda nll, adversarial, limit: (
            nll.flatten(1).norm(dim=1) / (adversarial.flatten(1).norm(dim=1) + 1e-4)
        ).clamp(0, limit),
    ),
    (
        "this is the weighted gradient: return the weight alone",
        lambda nll, adversarial, limit: adversarial * adaptive_weight(nll, adversarial, limit),
    ),
)


def _weight_probes() -> list[tuple[Tensor, Tensor, float]]:
    """An ordinary pair, a faint adversarial gradient, none at all, ratios above two limits, a faint first gradient."""
    nll, adversarial = probe((3, 4, 3, 3), (3, 4, 3, 3))
    return [
        (5 * nll, adversarial, 1e4),
        (nll, 3e-6 * adversarial, 1e7),
        (nll, 0 * adversarial, 1e7),
        (1e6 * nll, adversarial, 1e4),
        (300 * nll, adversarial, 7.0),
        (1e-6 * nll, adversarial, 1e4),
    ]


_READ = (
    "the number is read, as by .item(), float(), min(ratio, limit) or an if, and every step would wait for the device: "
    "a tensor's clamp(max=limit) keeps it a tensor"
)
_judge_values = judge_function(
    adaptive_weight, _weight_probes(), WEIGHT_MISTAKES, inputs=("nll_gradient", "adversarial_gradient", "limit")
)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
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


def _judge_adaptive_weight(attempt: Any) -> str | None:
    complaint = _judge_values(attempt)
    if complaint:
        return _READ if complaint.startswith("expected a Tensor, got float") else complaint
    nll, adversarial, limit = _weight_probes()[0]
    with _Reads() as reads:  # type: ignore[no-untyped-call]
        weight = attempt(nll.requires_grad_(), adversarial.requires_grad_(), limit)
    if reads.noticed:
        return _READ
    if weight.requires_grad:
        return "the value is right, but it carries a gradient: it is a number to multiply with, so detach it"
    return None


# 07.5

_Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], Any]


def _step(
    real: Callable[[nn.Module, Tensor], Tensor] = lambda discriminator, images: discriminator(images),
    fake: Callable[[nn.Module, Tensor], Tensor] = lambda discriminator, images: discriminator(images.detach()),
    loss: Callable[[Tensor, Tensor], Tensor] = _hinge,
    order: str = "zero_grad backward step",
) -> _Step:
    """The finished version with one of its parts exchanged."""

    def step(
        discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
    ) -> Tensor:
        value = loss(real(discriminator, images), fake(discriminator, reconstructions))
        actions: dict[str, Callable[[], Any]] = {
            "zero_grad": optimizer.zero_grad,
            "backward": value.backward,
            "step": optimizer.step,
        }
        for action in order.split():
            actions[action]()
        return value

    return step


def _together(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    logits = discriminator(torch.cat([images, reconstructions.detach()]))
    loss = _hinge(*logits.chunk(2))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def _images_only(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    return discriminator_step(discriminator, optimizer, images, images)


def _in_place(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    return discriminator_step(discriminator, optimizer, images, reconstructions.detach_())


def _in_eval_mode(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    return discriminator_step(discriminator.eval(), optimizer, images, reconstructions)


def _without_graph(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    with torch.no_grad():
        loss = _hinge(discriminator(images), discriminator(reconstructions))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def _frozen(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    discriminator.requires_grad_(False)
    return discriminator_step(discriminator, optimizer, images, reconstructions)


_NO_DETACH = "the autoencoder gets a gradient: the discriminator must see reconstructions.detach()"
_STALE = "what lay in .grad before is still in the update: optimizer.zero_grad() comes before backward"
_FAKES = "the reconstructions teach it nothing: detach what goes into the discriminator, not what comes out"
STEP_MISTAKES = Mistakes(
    [
        (_NO_DETACH, _step(fake=lambda discriminator, images: discriminator(images))),
        (
            f"{_NO_DETACH}; and the generator's gradient is still in the update: optimizer.zero_grad() before backward",
            _step(fake=lambda discriminator, images: discriminator(images), order="backward step"),
        ),
        ("detach_ cuts the caller's own tensor: detach, without the underscore, leaves it alone", _in_place),
        (_STALE, _step(order="backward step")),
        (_STALE, _step(order="backward step zero_grad")),
        *(
            ("the weights stay as they were: zero_grad, then backward, then step, in this order", _step(order=order))
            for order in (
                "zero_grad backward",
                "backward zero_grad step",
                "zero_grad step backward",
                "zero_grad step",
                "backward",
            )
        ),
        (
            "the step comes before backward, with what lay in .grad before: zero_grad, then backward, then step",
            _step(order="step zero_grad backward"),
        ),
        (
            "the step comes before backward, with what lay in .grad before: zero_grad, then backward, then step",
            _step(order="step backward"),
        ),
        (_FAKES, _step(fake=lambda discriminator, images: discriminator(images).detach())),
        (
            "the images teach it nothing: no detach and no no_grad around the discriminator",
            _step(real=lambda discriminator, images: discriminator(images).detach()),
        ),
        (
            "images and reconstructions share a batch, and so BatchNorm's mean and spread: call it once for each",
            _together,
        ),
        ("the discriminator is put into eval mode: leave it as it is", _in_eval_mode),
        ("images and reconstructions are exchanged in the loss", _step(loss=lambda real, fake: _hinge(fake, real))),
        ("the loss is vanilla: hinge is asked for", _step(loss=_vanilla)),
        ("the factor ½ is missing in the loss", _step(loss=lambda real, fake: 2 * _hinge(real, fake))),
        ("this is the generator's loss: here the discriminator learns", _step(loss=lambda real, fake: -fake.mean())),
        *(
            ("the loss is the difference of the mean logits (Wasserstein): hinge is asked for", _step(loss=loss))
            for loss in (
                lambda real, fake: fake.mean() - real.mean(),
                lambda real, fake: (fake.mean() - real.mean()) / 2,
            )
        ),
        (
            "the term of the reconstructions is missing in the loss",
            _step(loss=lambda real, fake: F.relu(1 - real).mean()),
        ),
        ("the term of the images is missing in the loss", _step(loss=lambda real, fake: F.relu(1 + fake).mean())),
        ("the discriminator is called with the images twice: the reconstructions are the fakes", _images_only),
        # by their exceptions
        (
            "nothing asks for a gradient under no_grad: detach the reconstructions instead, and only them",
            _without_graph,
        ),
        (
            "the discriminator is frozen: in its own step it is to learn, and the autoencoder is kept out by detach",
            _frozen,
        ),
    ]
)


@STEP_MISTAKES("the discriminator stays frozen: its next step would fail, so leave requires_grad as it is")
def step_that_freezes(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    loss = discriminator_step(discriminator, optimizer, images, reconstructions)
    discriminator.requires_grad_(False)
    return loss


@STEP_MISTAKES(
    "the caller's images are left with requires_grad: the discriminator's weights ask for a gradient already"
)
def step_with_images_that_ask(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    return discriminator_step(discriminator, optimizer, images.requires_grad_(), reconstructions)


@STEP_MISTAKES("the discriminator is left in eval mode: leave it in train mode, also after the step")
def step_that_ends_in_eval_mode(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    loss = discriminator_step(discriminator, optimizer, images, reconstructions)
    discriminator.eval()
    return loss


@STEP_MISTAKES("the discriminator is put into eval mode: leave it as it is")
def step_in_eval_mode(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    loss = discriminator_step(discriminator.eval(), optimizer, images, reconstructions)
    discriminator.train()
    return loss


@STEP_MISTAKES("optimizer.step() is called twice: one update a batch")
def step_of_two_updates(
    discriminator: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, reconstructions: Tensor
) -> Tensor:
    loss = discriminator_step(discriminator, optimizer, images, reconstructions)
    optimizer.step()
    return loss


def _played(step: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that returns a step's loss, the new weights, the gradients in the decoder, and four flags."""

    def play(images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        decoder = nn.Conv2d(3, 3, 3, padding=1)
        discriminator = nn.Sequential(
            nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4, 1, 1)
        )
        with torch.no_grad():
            for parameter in discriminator.parameters():
                parameter.mul_(3)  # logits on both sides of the margin
                parameter.grad = torch.randn_like(parameter)  # as the generator's step may have left it
        optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)
        reconstructions = decoder(latents)
        try:
            loss = call(step, discriminator, optimizer, images, reconstructions)
        except RuntimeError as error:
            if any(parameter.requires_grad for parameter in discriminator.parameters()):
                raise
            raise RuntimeError("the discriminator asks for no gradient") from error  # PyTorch's text is no_grad's
        left = decoder.weight.grad
        weights = torch.cat([parameter.detach().flatten() for parameter in discriminator.parameters()])
        left = torch.zeros(3, 3, 3, 3) if left is None else left
        asks = [all(parameter.requires_grad for parameter in discriminator.parameters()), images.requires_grad]
        flags = torch.tensor([reconstructions.requires_grad, *asks, discriminator.training]).float()
        return torch.as_tensor(loss).detach(), weights, left, flags

    return play


_judge_played = judge_function(
    _played(discriminator_step),
    [probe((3, 3, 12, 12), (3, 3, 12, 12)), probe((2, 3, 8, 8), (2, 3, 8, 8))],
    [(message, _played(code)) for message, code in STEP_MISTAKES],
    inputs=("images", "reconstructions"),
    outputs=(
        "the loss",
        "the discriminator's weights after the step",
        "the gradient left in the decoder",
        "whether the reconstructions have a graph, the discriminator and the images ask for a gradient, and train mode",
    ),
)


def _wrapped(judge: Callable[[Any], str | None], wrap: Callable[[Any], Any]) -> Callable[[Any], str | None]:
    return lambda attempt: judge(wrap(attempt) if callable(attempt) else attempt)


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
            "nn.Sequential(*layers) makes them a network.",
            "A middle one: Conv2d(before, width, 4, stride, padding=1, bias=False), BatchNorm2d(width) and "
            "LeakyReLU(0.2).",
            "Number the middle ones from 1 to num_layers: width = num_filters * min(2**number, 8), and stride 2 for "
            "all but the last, which has 1.",
        ),
        judge=_judge_discriminator,
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
        judge=judge_numbers(
            receptive_field,
            [(num_layers,) for num_layers in _FIELD_PROBES],
            FIELD_MISTAKES,
            given=lambda probe: f"num_layers={probe[0]}",
        ),
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
        judge=_wrapped(_judge_loss, _of_both_kinds),
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
            "gradient.norm() is the length over all axes. What if the adversarial one is zero?",
            "ratio has 1e-4 below the line, beside the adversarial norm. Its clamp(max=...) stays a tensor, and "
            "detach() cuts it off.",
        ),
        judge=_judge_adaptive_weight,
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
        judge=_wrapped(_judge_played, _played),
    ),
)
