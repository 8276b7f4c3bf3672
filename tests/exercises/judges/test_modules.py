"""The judge of `nn.Module` classes: parameters, results, exceptions and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu.exercises.exercise import Exercise, Verdict
from klvae_edu.exercises.judges.functions import probe
from klvae_edu.exercises.judges.modules import judge_module


class Reference(nn.Module):
    """norm, ReLU, then two layers in a list, with x or a projection of it added at the end."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, in_channels, eps=1e-6)
        self.layers = nn.ModuleList([nn.Conv2d(in_channels, out_channels, 3, padding=1)])
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x):
        return self.skip(x) + self.layers[0](F.relu(self.norm(x)))


class WithoutSkip(Reference):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.skip = nn.Identity()


class WithoutActivation(Reference):
    def forward(self, x):
        return self.skip(x) + self.layers[0](self.norm(x))


MISTAKES = (
    ("the skip is missing where the widths differ", WithoutSkip),
    ("the activation is missing", WithoutActivation),
)
BUILDS = [(4, 4), (4, 6)]


def inputs(in_channels, out_channels):
    return probe((2, in_channels, 5, 6))


def exercise(**options):
    arguments = {
        "reference": Reference,
        "builds": BUILDS,
        "inputs": inputs,
        "mistakes": MISTAKES,
        "parts": ("norm", "layers", "skip"),
    }
    judge = judge_module(**(arguments | options))
    return Exercise("00.1", "A module", "00", 1, 1, Reference, (Reference,), ("a", "b"), judge)


def verdict(attempt, **options):
    return exercise(**options).run(attempt)


def changed(**methods):
    """Make a right class with other methods."""
    return type("Attempt", (Reference,), methods)


def made(**layers):
    """Make a right class with other layers, each given as a function of the widths."""

    class Attempt(Reference):
        def __init__(self, in_channels, out_channels):
            super().__init__(in_channels, out_channels)
            for name, make in layers.items():
                setattr(self, name, make(in_channels, out_channels))

    return Attempt


# Right


class Functional(nn.Module):
    """The same parameters, with no layer called."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, in_channels, 1e-6)
        self.skip = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.layers = nn.Sequential(nn.Conv2d(in_channels, out_channels, 3))

    def forward(self, images):
        hidden = F.group_norm(images, 2, self.norm.weight, self.norm.bias, self.norm.eps).clamp_(min=0)
        hidden = F.conv2d(hidden, self.layers[0].weight, self.layers[0].bias, padding=1)
        hidden += images if self.skip is None else self.skip(images)
        return hidden


class HandmadeNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return F.group_norm(x, 2, self.weight, self.bias, 1e-6)


@pytest.mark.parametrize(
    "attempt",
    [
        Reference,
        Functional,
        made(norm=lambda i, o: HandmadeNorm(i)),
        made(layers=lambda i, o: nn.ModuleList([nn.Conv2d(i, o, 3, padding="same")])),
        made(activation=lambda i, o: nn.ReLU()),
        changed(forward=lambda self, x: self.skip(x).double() + self.layers[0](F.relu(self.norm(x))).double()),
    ],
    ids=["itself", "functional", "own norm", "padding in words", "parts without weights", "summed in double"],
)
def test_right_answers_pass_in_any_style(attempt):
    assert verdict(attempt) == Verdict(passed=True, attempted=True)


def test_inputs_may_be_written_down_one_for_each_build():
    assert verdict(Reference, inputs=[probe((1, 4, 3, 3)), probe((2, 4, 5, 5))]).passed


def test_forward_may_have_several_arguments_and_results():
    class Two(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, x, times):
            return times * self.linear(x), x

    exchanged = type("Exchanged", (Two,), {"forward": lambda self, x, times: Two.forward(self, x, times)[::-1]})
    options = {
        "reference": Two,
        "builds": [(3,)],
        "inputs": [(*probe((2, 3)), 2.0)],
        "mistakes": (),
        "parts": ("linear",),
    }
    assert verdict(Two, **options).passed
    assert "the result" in verdict(exchanged, **options).message


# Blank, half-written, and no module


class BlankRaising(nn.Module):
    def __init__(self, in_channels, out_channels):
        raise NotImplementedError

    def forward(self, x):
        raise NotImplementedError


class BlankGaps(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm = ...
        self.layers = ...

    def forward(self, x):
        hidden = ...  # noqa: F841
        return ...


class BlankWithUseOfGaps(BlankGaps):
    def forward(self, x):
        return x + self.layers(self.norm(x))


class Started(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, in_channels, eps=1e-6)
        self.layers = ...

    def forward(self, x):
        return ...


class GapInAnExpression(nn.Module):
    forward = BlankGaps.forward

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, in_channels, eps=1e-6)
        width = ...
        self.layers = nn.ModuleList([nn.Conv2d(width + 1, width, 3)])


@pytest.mark.parametrize("attempt", [None, ..., BlankRaising, BlankGaps, BlankWithUseOfGaps])
def test_a_blank_is_not_attempted(attempt):
    assert verdict(attempt) == Verdict(passed=False, attempted=False)


def test_what_the_skeleton_hands_out_is_no_attempt():
    assert verdict(Started).attempted
    assert not verdict(Started, given=("norm",)).attempted


@pytest.mark.parametrize(
    ("attempt", "gaps"),
    [
        (Started, "(self.layers, forward)"),
        (changed(forward=lambda self, x: ...), "(forward)"),
        (changed(forward=BlankRaising.forward), "(forward)"),
        (type("A", (BlankGaps,), {"forward": lambda self, x: x}), "(self.norm, self.layers)"),
        (GapInAnExpression, "(__init__, forward)"),
    ],
)
def test_a_half_written_class_names_its_gaps(attempt, gaps):
    assert verdict(attempt) == Verdict(False, True, f"a gap `...` is still open {gaps}")


def test_a_list_of_layers_that_is_called_is_no_gap():
    called = changed(forward=lambda self, x: self.skip(x) + self.layers(F.relu(self.norm(x))))
    assert verdict(called).message.startswith("it raised NotImplementedError: Module [ModuleList]")


class NoModule:
    def __init__(self, in_channels, out_channels):
        self.norm = nn.GroupNorm(2, in_channels)


class NoSuper(nn.Module):
    def __init__(self, in_channels, out_channels):
        self.norm = nn.GroupNorm(2, in_channels)


class MadeInForward(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.widths = in_channels, out_channels

    def forward(self, x):
        return nn.Conv2d(*self.widths, 1)(x)


class PlainList(Reference):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        layers = list(self.layers)
        del self.layers
        self.layers = layers


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (Reference(4, 4), "expected the class itself, got an object of type Reference"),
        (lambda i, o: Reference(i, o), "expected the class itself, got an object of type function"),
        (NoModule, "write class NoModule(nn.Module)"),
        (NoSuper, "__init__ must begin with super().__init__()"),
        (MadeInForward, "it has no parameters: make the layers in __init__"),
        (PlainList, "self.layers is a plain list, in which PyTorch finds no parameters: make it an nn.ModuleList"),
        (changed(forward=lambda self, x: None), "it returns None: is a return missing?"),
        (changed(forward=lambda self, x: self.conv(x)), "object has no attribute 'conv'"),
        (changed(__init__=lambda self, channels: nn.Module.__init__(self)), "it raised TypeError"),
    ],
)
def test_what_is_no_module_is_told_why(attempt, message):
    assert message in verdict(attempt).message


# Wrong parameters


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (WithoutSkip, "the skip is missing where the widths differ"),
        (
            made(norm=lambda i, o: nn.Identity()),
            "norm, of type Identity, has no weight (built with in_channels=4, out_channels=4)",
        ),
        (made(norm=lambda i, o: nn.GroupNorm(2, i, affine=False)), "norm, of type GroupNorm, has no weight"),
        (made(layers=lambda i, o: nn.ModuleList([nn.Conv2d(i, o, 3, bias=False)])), "it has no layers.0.bias"),
        (made(extra=lambda i, o: nn.Linear(1, 1)), "it has extra, which is not asked for"),
        (made(skip=lambda i, o: nn.Conv2d(i, o, 1)), "it has skip, which is not asked for"),
        (made(norm=lambda i, o: nn.BatchNorm2d(i, eps=1e-6)), "it has norm.running_mean, which is not asked for"),
        (
            made(layers=lambda i, o: nn.ModuleList([nn.Conv2d(i, i, 3)])),
            "layers.0 has out_channels 4, expected 6 (built with in_channels=4, out_channels=6)",
        ),
        (made(norm=lambda i, o: HandmadeNorm(o)), "norm is a HandmadeNorm, expected a GroupNorm"),
    ],
)
def test_parameters_of_another_name_or_shape_are_named(attempt, message):
    assert verdict(attempt).message.startswith(message)


# Wrong results


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (WithoutActivation, "the activation is missing"),
        (made(norm=lambda i, o: nn.GroupNorm(2, i)), "norm has eps 1e-05, expected 1e-06"),
        (made(norm=lambda i, o: nn.GroupNorm(1, i, eps=1e-6)), "norm has num_groups 1, expected 2"),
        (made(layers=lambda i, o: nn.ModuleList([nn.Conv2d(i, o, 3)])), "layers.0 has padding (0, 0), expected (1, 1)"),
        (
            made(layers=lambda i, o: nn.ModuleList([nn.Conv2d(i, o, 3, padding=1, padding_mode="reflect")])),
            "layers.0 has padding_mode reflect, expected zeros",
        ),
        (
            changed(forward=lambda self, x: x[:, :1]),
            "expected shape (2, 4, 5, 6), got (2, 1, 5, 6), for inputs of shape",
        ),
        (changed(forward=lambda self, x: 3 * Reference.forward(self, x)), "every value is 3 times what it should be"),
        (changed(forward=lambda self, x: Reference.forward(self, x) + x**2), "where they differ most"),
        (changed(forward=lambda self, x: F.dropout(Reference.forward(self, x))), "draws random numbers"),
        (changed(forward=lambda self, x: Reference.forward(self, x.add_(1) - 1)), "changes its input x"),
    ],
)
def test_wrong_results_are_named_or_described(attempt, message):
    found = verdict(attempt)
    assert found.attempted and not found.passed
    assert message in found.message and "\n" not in found.message


def test_a_result_that_is_wrong_in_one_build_only_names_that_build():
    wide = changed(
        forward=lambda self, x: Reference.forward(self, x) * (1 if isinstance(self.skip, nn.Identity) else 2)
    )
    assert verdict(wide).message.endswith("(built with in_channels=4, out_channels=6)")


def test_arguments_that_are_objects_are_not_printed():
    class Config:
        widths = (4, 6)

    class FromConfig(Reference):
        def __init__(self, config):
            super().__init__(*config.widths)

    twice = type("Twice", (FromConfig,), {"forward": lambda self, x: 2 * Reference.forward(self, x)})
    message = verdict(
        twice, reference=FromConfig, builds=[(Config(),)], inputs=[inputs(4, 6)], mistakes=()
    ).message  # fmt: skip
    assert "every value is 2 times" in message and "built with" not in message


# Exceptions


WIDTHS_EXCHANGED = made(layers=lambda i, o: nn.ModuleList([nn.Conv2d(o, i, 3, padding=1)]))
RAISING = (
    ("the layers are in no list", made(layers=lambda i, o: nn.ModuleList(nn.Conv2d(i, o, 3)))),
    ("the list is called", changed(forward=lambda self, x: self.layers(self.norm(x)))),
    (
        "x does not fit where the widths differ",
        changed(forward=lambda self, x: x + self.layers[0](F.relu(self.norm(x)))),
    ),
    ("the widths are exchanged", WIDTHS_EXCHANGED),
)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (made(layers=lambda i, o: nn.ModuleList(nn.Conv2d(i, o, 1))), "the layers are in no list"),
        (changed(forward=lambda self, x: self.skip(x) + self.layers(F.relu(self.norm(x)))), "the list is called"),
        (
            changed(forward=lambda self, x: x.clone() + self.layers[0](F.relu(self.norm(x)))),
            "x does not fit where the widths differ",
        ),
    ],
    ids=["construction", "forward", "forward of the second build"],
)
def test_an_exception_that_a_mistake_raises_as_well_names_the_mistake(attempt, message):
    assert verdict(attempt, mistakes=RAISING).message == message


def test_other_exceptions_are_told_as_they_are():
    unbuilt = made(norm=lambda i, o: nn.GroupNorm(3, i))
    assert verdict(unbuilt, mistakes=RAISING).message.startswith("it raised ValueError: num_channels")
    called = changed(forward=lambda self, x: self.skip(x) + self.norm())
    assert verdict(called, mistakes=RAISING).message.startswith("it raised TypeError: ")


def test_mistakes_that_cannot_be_built_do_not_hide_those_that_can():
    assert verdict(WIDTHS_EXCHANGED, mistakes=RAISING).message == "the widths are exchanged"


# Gradients


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            changed(forward=lambda self, x: self.skip(x) + self.layers[0](F.relu(self.norm(x)).detach())),
            "no gradient reaches norm: look for detach",
        ),
        (
            changed(forward=lambda self, x: Reference.forward(self, x).detach()),
            "no gradient reaches x, norm, layers.0: look for detach",
        ),
        (
            changed(forward=lambda self, x: self.skip(x) + self.layers[0](F.relu(self.norm(x.detach())))),
            "not the gradient with respect to x",
        ),
        (
            changed(
                forward=lambda self, x: self.skip(x) + self.layers[0](F.relu(self.norm(x))) + (x.sigmoid().mul_(0))
            ),
            "with a gradient to follow it raised RuntimeError",
        ),
    ],
)
def test_a_gradient_that_is_cut_is_named(attempt, message):
    assert message in verdict(attempt).message


def test_a_parameter_without_influence_needs_no_gradient():
    class Shifted(nn.Module):
        """Softmax does not depend on a shift: the gradient is rounding, and may be exactly zero."""

        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return (x * self.scale + self.shift).softmax(-1)

    exact = type("Exact", (Shifted,), {"forward": lambda self, x: (x * self.scale + self.shift.detach()).softmax(-1)})
    options = {"reference": Shifted, "builds": [()], "inputs": [probe((4, 3))], "mistakes": (), "parts": ("scale",)}
    assert verdict(exact, **options).passed
