"""Typical answers to the exercises of notebook 07: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import discriminator as finished
from klvae_edu import losses
from klvae_edu.exercises import nb07
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

# 07.1


class NetRaises(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        raise NotImplementedError

    def forward(self, images):
        raise NotImplementedError


class NetGaps(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        layers = [...]
        for _number in range(1, num_layers + 1):
            layers += [...]
        layers += [...]
        self.main = nn.Sequential(*layers)

    def forward(self, images):
        return ...


class NetHalf(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        layers = [nn.Conv2d(in_channels, num_filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _number in range(1, num_layers + 1):
            layers += [...]
        layers += [nn.Conv2d(num_filters, 1, 4, 1, 1)]
        self.main = nn.Sequential(*layers)

    def forward(self, images):
        return self.main(images)


class NetWithoutForward(nb07.NLayerDiscriminator):
    def forward(self, images):
        return ...


def pix2pix(
    kernel=4,
    stride_last=1,
    slope=0.2,
    bias=False,
    cap=8,
    norm=nn.BatchNorm2d,
    first_norm=False,
    more=0,
    end=(),
    act=None,
):
    """Build the network like the code of pix2pix, with options for the usual mistakes."""

    class Net(nn.Module):
        def __init__(self, in_channels=3, num_filters=64, num_layers=3):
            super().__init__()
            activation = act or (lambda: nn.LeakyReLU(slope, True))
            sequence = [nn.Conv2d(in_channels, num_filters, kernel_size=kernel, stride=2, padding=1)]
            if first_norm:
                sequence.append(norm(num_filters))
            sequence.append(activation())
            mult = 1
            for n in range(1, num_layers + more):
                mult_prev, mult = mult, min(2**n, cap)
                sequence += [
                    nn.Conv2d(num_filters * mult_prev, num_filters * mult, kernel, stride=2, padding=1, bias=bias),
                    norm(num_filters * mult),
                    activation(),
                ]
            mult_prev, mult = mult, min(2 ** (num_layers + more), cap)
            sequence += [
                nn.Conv2d(num_filters * mult_prev, num_filters * mult, kernel, stride_last, 1, bias=bias),
                norm(num_filters * mult),
                activation(),
                nn.Conv2d(num_filters * mult, 1, kernel_size=kernel, stride=1, padding=1),
                *end,
            ]
            self.main = nn.Sequential(*sequence)

        def forward(self, input):
            return self.main(input)

    return Net


def named(name, code):
    """Make a class with this name, which appears in the list of tests."""
    code.__name__ = name
    return code


class NetWithOneVerdict(nb07.NLayerDiscriminator):
    def forward(self, images):
        return self.main(images).mean(dim=(1, 2, 3))


class NetWithOneVerdictPerChannel(nb07.NLayerDiscriminator):
    def forward(self, images):
        return F.adaptive_avg_pool2d(self.main(images), 1)[:, :, 0, 0]


class NetWithSigmoidInForward(nb07.NLayerDiscriminator):
    def forward(self, images):
        return torch.sigmoid(self.main(images))


class NetInAList(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        self.main = list(nb07.NLayerDiscriminator(in_channels, num_filters, num_layers).main)

    def forward(self, images):
        for layer in self.main:
            images = layer(images)
        return images


class NetByAnotherName(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        self.model = nb07.NLayerDiscriminator(in_channels, num_filters, num_layers).main

    def forward(self, images):
        return self.model(images)


class NetDetached(nb07.NLayerDiscriminator):
    def forward(self, images):
        return self.main(images.detach())


class NetWithOneWidth(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        layers = [nn.Conv2d(in_channels, num_filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(num_layers):
            stride = 1 if i == num_layers - 1 else 2
            layers.append(nn.Conv2d(num_filters, num_filters, 4, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(num_filters), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(num_filters, 1, 4, 1, 1))

    def forward(self, images):
        return self.main(images)


class NetWithoutFirstBias(nb07.NLayerDiscriminator):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__(in_channels, num_filters, num_layers)
        self.main[0] = nn.Conv2d(in_channels, num_filters, 4, 2, 1, bias=False)


class NetWithoutLastBias(nb07.NLayerDiscriminator):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__(in_channels, num_filters, num_layers)
        self.main[-1] = nn.Conv2d(self.main[-1].in_channels, 1, 4, 1, 1, bias=False)


class NetOfNestedLists(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        layers = [nn.Conv2d(in_channels, num_filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = num_filters
        for n in range(1, num_layers + 1):
            before, width = width, num_filters * min(2**n, 8)
            conv = nn.Conv2d(before, width, 4, 2 if n < num_layers else 1, 1, bias=False)
            layers.append([conv, nn.BatchNorm2d(width), nn.LeakyReLU(0.2)])
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)

    def forward(self, images):
        return self.main(images)


@verdicts("07.1", [NetRaises, NetGaps])
def test_a_blank_discriminator_is_not_attempted(answer):
    assert_blank("07.1", answer)


@mistakes(
    "07.1",
    [
        ("gap `...` is still open", NetHalf),
        ("gap `...` is still open (forward)", NetWithoutForward),
        ("have a bias, which the norm takes away", named("biased", pix2pix(bias=True))),
        ("have a bias, which the norm takes away", named("biased_uncapped", pix2pix(bias=True, cap=10**6))),
        ("and the widths go on doubling", named("uncapped_biased", pix2pix(bias=True, cap=10**6))),
        ("and there is one middle convolution too many", named("longer_biased", pix2pix(bias=True, more=1))),
        ("a list among the layers", NetOfNestedLists),
        ("the first convolution has no bias", NetWithoutFirstBias),
        ("the last convolution has no bias", NetWithoutLastBias),
        ("a norm after the first convolution", named("normed_first", pix2pix(first_norm=True))),
        ("slope of 0.01", named("default_slope", pix2pix(slope=0.01))),
        ("the activation is ReLU", named("relu", pix2pix(act=nn.ReLU))),
        ("kernels are 3×3", named("three", pix2pix(kernel=3))),
        ("go on doubling", named("uncapped", pix2pix(cap=10**6))),
        ("do not double", NetWithOneWidth),
        ("sigmoid at the end", named("sigmoid", pix2pix(end=[nn.Sigmoid()]))),
        ("sigmoid at the end", NetWithSigmoidInForward),
        ("all middle convolutions have stride 2", named("halving", pix2pix(stride_last=2))),
        ("one middle convolution too many", named("longer", pix2pix(more=1))),
        ("InstanceNorm2d", named("instance", pix2pix(norm=nn.InstanceNorm2d))),
        ("no running mean", named("group", pix2pix(norm=lambda width: nn.GroupNorm(2, width)))),
        ("one verdict per image", NetWithOneVerdict),
        ("one verdict per image", NetWithOneVerdictPerChannel),
        ("it has no parameters", NetInAList),
        ("it has no main", NetByAnotherName),
        ("no gradient reaches images", NetDetached),
    ],
)
def test_a_wrong_discriminator_is_named(keyword, answer):
    assert_rejected("07.1", answer, keyword)


class NetByModuleList(nn.Module):
    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        widths = [num_filters * min(2**n, 8) for n in range(num_layers + 1)]
        self.main = nn.ModuleList([nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)])
        for i, (a, b) in enumerate(pairwise(widths)):
            self.main.append(nn.Conv2d(a, b, 4, 1 + (i + 1 < num_layers), 1, bias=False))
            self.main.append(nn.BatchNorm2d(b))
            self.main.append(nn.LeakyReLU(0.2))
        self.main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, x):
        for layer in self.main:
            x = layer(x)
        return x


class NetInDouble(nb07.NLayerDiscriminator):
    def forward(self, images):
        return self.double().main(images.double())


@verdicts(
    "07.1",
    [
        named("as_in_pix2pix", pix2pix()),
        named("synchronised", pix2pix(norm=nn.SyncBatchNorm)),
        NetByModuleList,
        NetInDouble,
        finished.NLayerDiscriminator,
    ],
)
def test_a_right_discriminator_passes_in_any_style(answer):
    assert_passes("07.1", answer)


def test_the_finished_discriminator_is_the_packages():
    torch.manual_seed(0)
    ours, theirs = nb07.NLayerDiscriminator(2, 4, 4).double(), finished.NLayerDiscriminator(2, 4, 4).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 2, 64, 64, dtype=torch.float64)
    assert torch.equal(ours(images), theirs(images))


# 07.2


def field_raises(num_layers):
    raise NotImplementedError


def field_gaps(num_layers):
    strides = ...  # noqa: F841
    side = ...
    return side


def field_half(num_layers):
    strides = [2] * num_layers + [1, 1]
    side = 1
    for _stride in strides:
        side = ... + side
    return side


def field_of_strided_layers_only(num_layers):
    side = 1
    for _ in range(num_layers):
        side = 4 + (side - 1) * 2
    return side


def field_with_one_stride_one(num_layers):
    side = 4
    for _ in range(num_layers):
        side = 2 * side + 2
    return side


def field_with_a_strided_layer_too_many(num_layers):
    strides = [2] + [2] * num_layers + [1, 1]
    side = 1
    for stride in strides[::-1]:
        side = 4 + (side - 1) * stride
    return side


def field_with_all_strides_two(num_layers):
    side = 1
    for _ in range(num_layers + 2):
        side = 4 + (side - 1) * 2
    return side


def field_of_3x3(num_layers):
    side = 1
    for stride in [1, 1] + [2] * num_layers:
        side = 3 + (side - 1) * stride
    return side


def field_from_the_image(num_layers):
    side = 1
    for stride in [2] * num_layers + [1, 1]:
        side = 4 + (side - 1) * stride
    return side


def field_with_whole_sides(num_layers):
    side = 1
    for stride in [1, 1] + [2] * num_layers:
        side = 4 + side * stride
    return side


def field_of_whole_kernels(num_layers):
    side, jump = 1, 1
    for stride in [2] * num_layers + [1, 1]:
        side += 4 * jump
        jump *= stride
    return side


def field_without_strides(num_layers):
    return 1 + sum(4 - 1 for _ in range(num_layers + 2))


def field_always_70(num_layers):
    return 70


def field_as_stride(num_layers):
    return 2**num_layers


def field_as_area(num_layers):
    return (9 * 2**num_layers - 2) ** 2


def field_as_a_pair(num_layers):
    return 9 * 2**num_layers - 2, 9 * 2**num_layers - 2


def field_from_no_place(num_layers):
    side = 0
    for stride in [1, 1] + [2] * num_layers:
        side = 4 + (side - 1) * stride
    return side


def field_off_by_one(num_layers):
    return 9 * 2**num_layers - 1


@verdicts("07.2", [field_raises, field_gaps])
def test_a_blank_patch_size_is_not_attempted(answer):
    assert_blank("07.2", answer)


@mistakes(
    "07.2",
    [
        ("gap `...` is still open", field_half),
        ("two convolutions with stride 1 are left out", field_of_strided_layers_only),
        ("one convolution with stride 1 is left out", field_with_one_stride_one),
        ("one convolution with stride 2 too many", field_with_a_strided_layer_too_many),
        ("one of the last two had stride 2", field_with_all_strides_two),
        ("3×3", field_of_3x3),
        ("wrong direction", field_from_the_image),
        ("n - 1 strides apart", field_with_whole_sides),
        ("reaches 3 further", field_of_whole_kernels),
        ("strides are ignored", field_without_strides),
        ("num_layers = 3 only", field_always_70),
        ("distance of two logits", field_as_stride),
        ("area", field_as_area),
        ("begins with 0 places", field_from_no_place),
        ("expected one number, got tuple", field_as_a_pair),
        ("for num_layers=3 70 was expected, and yours is 71", field_off_by_one),
    ],
)
def test_a_wrong_patch_size_is_named(keyword, answer):
    assert_rejected("07.2", answer, keyword)


def test_a_number_is_not_a_function_that_computes_it():
    assert_rejected("07.2", 70, "expected the function itself")


def field_closed(num_layers):
    return 9 * 2**num_layers - 2


def field_from_the_front(num_layers):
    side, jump = 1, 1
    for stride in [2] * num_layers + [1, 1]:
        side += 3 * jump
        jump *= stride
    return side


def field_by_recursion(num_layers):
    return 7 if num_layers == 0 else 4 + 2 * (field_by_recursion(num_layers - 1) - 1)


def field_by_measurement(num_layers):
    x = torch.zeros(1, 1, 400, dtype=torch.float64, requires_grad=True)
    y = x
    for stride in [2] * num_layers + [1, 1]:
        y = F.conv1d(y, torch.ones(1, 1, 4, dtype=torch.float64), stride=stride)
    y[0, 0, 0].backward()
    return int(x.grad.count_nonzero())


def field_as_a_tensor(num_layers):
    return torch.tensor(field_closed(num_layers))


@verdicts("07.2", [field_closed, field_from_the_front, field_by_recursion, field_by_measurement, field_as_a_tensor])
def test_a_right_patch_size_passes_in_any_style(answer):
    assert_passes("07.2", answer)


@pytest.mark.parametrize("num_layers", range(1, 7))
def test_the_finished_patch_size_is_the_packages(num_layers):
    assert nb07.receptive_field(num_layers) == finished.receptive_field(num_layers)


# 07.3


def loss_raises(logits_real, logits_fake, kind):
    raise NotImplementedError


def loss_gaps(logits_real, logits_fake, kind):
    if kind == "hinge":
        real, fake = ..., ...
    else:
        real, fake = ..., ...  # noqa: F841
    return ...


def loss_half(logits_real, logits_fake, kind):
    if kind == "hinge":
        real, fake = F.relu(1 - logits_real), F.relu(1 + logits_fake)
        return (real.mean() + fake.mean()) / 2
    return ...


def loss_from_probabilities(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    real, fake = torch.sigmoid(logits_real), torch.sigmoid(logits_fake)
    return -0.5 * (torch.log(real).mean() + torch.log(1 - fake).mean())


def loss_from_probabilities_with_eps(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    real, fake = torch.sigmoid(logits_real), torch.sigmoid(logits_fake)
    return -0.5 * (torch.log(real + 1e-8).mean() + torch.log(1 - fake + 1e-8).mean())


def loss_with_bce_of_probabilities(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    loss, real, fake = nn.BCELoss(), torch.sigmoid(logits_real), torch.sigmoid(logits_fake)
    return 0.5 * (loss(real, torch.ones_like(real)) + loss(fake, torch.zeros_like(fake)))


def loss_added_before_the_mean(logits_real, logits_fake, kind):
    if kind == "hinge":
        real, fake = F.relu(1 - logits_real), F.relu(1 + logits_fake)
    else:
        real, fake = F.softplus(-logits_real), F.softplus(logits_fake)
    return (real + fake).mean() / 2


def loss_of_the_means(logits_real, logits_fake, kind):
    cost = F.relu if kind == "hinge" else F.softplus
    margin = 1 if kind == "hinge" else 0
    return 0.5 * (cost(margin - logits_real.mean()) + cost(margin + logits_fake.mean()))


def loss_without_half(logits_real, logits_fake, kind):
    if kind == "hinge":
        return F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def loss_without_half_in_vanilla(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    real = F.binary_cross_entropy_with_logits(logits_real, torch.ones_like(logits_real))
    return real + F.binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake))


def loss_with_sigmoid_twice(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    loss = nn.BCEWithLogitsLoss()
    real, fake = torch.sigmoid(logits_real), torch.sigmoid(logits_fake)
    return 0.5 * (loss(real, torch.ones_like(real)) + loss(fake, torch.zeros_like(fake)))


def loss_with_plain_bce(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    loss = nn.BCELoss()
    return 0.5 * (loss(logits_real, torch.ones_like(logits_real)) + loss(logits_fake, torch.zeros_like(logits_fake)))


def loss_with_labels_exchanged(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    real = F.binary_cross_entropy_with_logits(logits_real, torch.zeros_like(logits_real))
    return 0.5 * (real + F.binary_cross_entropy_with_logits(logits_fake, torch.ones_like(logits_fake)))


def loss_with_signs_exchanged(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 + logits_real).mean() + F.relu(1 - logits_fake).mean())
    return 0.5 * (F.softplus(logits_real).mean() + F.softplus(-logits_fake).mean())


def loss_with_fakes_as_images(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 - logits_fake).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def loss_with_margin_on_the_wrong_side(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(logits_real - 1).mean() + F.relu(-logits_fake - 1).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def loss_with_relu_of_the_mean(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real.mean()) + F.relu(1 + logits_fake.mean()))
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def loss_without_relu(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * ((1 - logits_real).mean() + (1 + logits_fake).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def loss_without_margin(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(-logits_real).mean() + F.relu(logits_fake).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def loss_of_the_images_only(logits_real, logits_fake, kind):
    return F.relu(1 - logits_real).mean() if kind == "hinge" else F.softplus(-logits_real).mean()


def loss_summed(logits_real, logits_fake, kind):
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).sum() + F.relu(1 + logits_fake).sum())
    return 0.5 * (F.softplus(-logits_real).sum() + F.softplus(logits_fake).sum())


def loss_of_all_together(logits_real, logits_fake, kind):
    logits = torch.cat([logits_real, -logits_fake])
    return F.relu(1 - logits).mean() if kind == "hinge" else -F.logsigmoid(logits).mean()


def loss_always_hinge(logits_real, logits_fake, kind):
    return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())


def loss_with_kinds_exchanged(logits_real, logits_fake, kind):
    return loss_by_max(logits_real, logits_fake, "vanilla" if kind == "hinge" else "hinge")


def loss_of_wasserstein(logits_real, logits_fake, kind):
    return logits_fake.mean() - logits_real.mean()


def loss_detached(logits_real, logits_fake, kind):
    return loss_by_max(logits_real.detach(), logits_fake, kind)


def loss_as_a_number(logits_real, logits_fake, kind):
    return loss_by_max(logits_real, logits_fake, kind).item()


def loss_with_the_sign_of_vanilla_only(logits_real, logits_fake, kind):
    if kind == "hinge":
        return loss_by_max(logits_real, logits_fake, kind)
    return (F.softplus(logits_real).mean() + F.softplus(logits_fake).mean()) / 2


def loss_with_the_sign_of_hinge_only(logits_real, logits_fake, kind):
    if kind == "vanilla":
        return loss_by_max(logits_real, logits_fake, kind)
    return 0.5 * torch.relu(1 - logits_real).mean() + 0.5 * torch.relu(1 - logits_fake).mean()


def loss_by_log_of_exp(logits_real, logits_fake, kind):
    if kind == "hinge":
        return loss_by_max(logits_real, logits_fake, kind)
    return 0.5 * (torch.log1p(torch.exp(-logits_real)).mean() + torch.log1p(torch.exp(logits_fake)).mean())


@verdicts("07.3", [loss_raises, loss_gaps])
def test_a_blank_loss_is_not_attempted(answer):
    assert_blank("07.3", answer)


@mistakes(
    "07.3",
    [
        ("gap `...` is still open", loss_half),
        ("½ is missing", loss_without_half),
        ("vanilla: the factor ½ is missing", loss_without_half_in_vanilla),
        ("vanilla: images are treated like reconstructions", loss_with_the_sign_of_vanilla_only),
        ("hinge: reconstructions are treated like images", loss_with_the_sign_of_hinge_only),
        ("vanilla: infinite from 89 on", loss_by_log_of_exp),
        ("sigmoid is taken twice", loss_with_sigmoid_twice),
        ("binary_cross_entropy takes probabilities", loss_with_plain_bce),
        ("signs are exchanged", loss_with_labels_exchanged),
        ("signs are exchanged", loss_with_signs_exchanged),
        ("reconstructions are treated like images", loss_with_fakes_as_images),
        ("margin is on the wrong side", loss_with_margin_on_the_wrong_side),
        ("the mean is taken first", loss_with_relu_of_the_mean),
        ("the mean is taken first", loss_of_the_means),
        ("added logit by logit", loss_added_before_the_mean),
        ("infinite at 20", loss_from_probabilities),
        ("no 1e-08 helps", loss_from_probabilities_with_eps),
        ("binary_cross_entropy after a sigmoid", loss_with_bce_of_probabilities),
        ("relu is missing", loss_without_relu),
        ("margin of 1 is missing", loss_without_margin),
        ("term of the reconstructions is missing", loss_of_the_images_only),
        ("a sum over the logits", loss_summed),
        ("averaged together", loss_of_all_together),
        ("always hinge", loss_always_hinge),
        ("kinds are exchanged", loss_with_kinds_exchanged),
        ("Wasserstein", loss_of_wasserstein),
        ("no gradient reaches logits_real", loss_detached),
        ("expected a Tensor, got float", loss_as_a_number),
    ],
)
def test_a_wrong_loss_is_named(keyword, answer):
    assert_rejected("07.3", answer, keyword)


def loss_by_max(logits_real, logits_fake, kind):
    if kind == "hinge":
        real, fake = (1 - logits_real).clamp(min=0), torch.maximum(1 + logits_fake, torch.zeros_like(logits_fake))
    else:
        real, fake = torch.logaddexp(-logits_real, torch.zeros_like(logits_real)), -F.logsigmoid(-logits_fake)
    return (real.mean() + fake.mean()) / 2


def loss_by_bce(logits_real, logits_fake, kind):
    if kind == "vanilla":
        real = F.binary_cross_entropy_with_logits(logits_real, torch.ones_like(logits_real))
        fake = F.binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake))
        return torch.stack([real, fake]).mean()
    return -0.5 * (torch.min(logits_real - 1, torch.tensor(0.0)).mean() + (-logits_fake - 1).clamp(max=0).mean())


def loss_in_double(logits_real, logits_fake, kind):
    return loss_by_bce(logits_real.double(), logits_fake.double(), kind)


def loss_by_the_package(logits_real, logits_fake, kind):
    return losses.discriminator_loss(logits_real, logits_fake, kind)["disc_loss"]


@verdicts("07.3", [loss_by_max, loss_by_bce, loss_in_double, loss_by_the_package])
def test_a_right_loss_passes_in_any_style(answer):
    assert_passes("07.3", answer)


# 07.4


def weight_raises(nll_gradient, adversarial_gradient, limit=1e4):
    raise NotImplementedError


def weight_gaps(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = ...  # noqa: F841
    return ...


def weight_half(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = ...
    return torch.clamp(ratio, 0, limit)


def weight_inverted(nll_gradient, adversarial_gradient, limit=1e4):
    weight = torch.norm(adversarial_gradient) / (torch.norm(nll_gradient) + 1e-4)
    return torch.clamp(weight, 0.0, limit).detach()


def weight_of_elements(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = nll_gradient / (adversarial_gradient + 1e-4)
    return ratio.norm().clamp(max=limit).detach()


def weight_undetached(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(max=limit)


def weight_unclamped(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).detach()


def weight_squared(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = (nll_gradient**2).sum() / ((adversarial_gradient**2).sum() + 1e-4)
    return ratio.clamp(max=limit).detach()


def weight_with_epsilon_above(nll_gradient, adversarial_gradient, limit=1e4):
    return ((nll_gradient.norm() + 1e-4) / adversarial_gradient.norm()).clamp(max=limit).detach()


def weight_without_epsilon(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.norm() / adversarial_gradient.norm()).clamp(max=limit).detach()


def weight_of_means(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.abs().mean() / (adversarial_gradient.abs().mean() + 1e-4)).clamp(max=limit).detach()


def weight_clamped_from_below(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return torch.clamp(ratio, limit).detach()


def weight_with_a_fixed_limit(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return torch.clamp(ratio, 0.0, 1e4).detach()


def weight_with_compvis_half(nll_gradient, adversarial_gradient, limit=1e4):
    return 0.5 * weight_unclamped(nll_gradient, adversarial_gradient).clamp(max=limit)


def weight_per_filter(nll_gradient, adversarial_gradient, limit=1e4):
    above, below = (gradient.flatten(1).norm(dim=1) for gradient in (nll_gradient, adversarial_gradient))
    ratio = above / (below + 1e-4)
    return ratio.clamp(max=limit).detach()


def weight_with_another_epsilon(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.norm() / (adversarial_gradient.norm() + 1e-8)).clamp(max=limit).detach()


def weight_as_a_number(nll_gradient, adversarial_gradient, limit=1e4):
    return min((nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).item(), limit)


def weight_by_min(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return min(ratio.detach(), limit)


def weight_that_changes_its_input(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.square_().sum().sqrt() / (adversarial_gradient.norm() + 1e-4)).clamp(max=limit).detach()


@verdicts("07.4", [weight_raises, weight_gaps])
def test_a_blank_weight_is_not_attempted(answer):
    assert_blank("07.4", answer)


@mistakes(
    "07.4",
    [
        ("gap `...` is still open", weight_half),
        ("upside down", weight_inverted),
        ("norm of the ratio", weight_of_elements),
        ("it carries a gradient", weight_undetached),
        ("the limit is missing", weight_unclamped),
        ("norms are squared", weight_squared),
        ("added to the reconstruction's norm", weight_with_epsilon_above),
        ("1e-4 is missing", weight_without_epsilon),
        ("mean of the absolute values", weight_of_means),
        ("clamped from below", weight_clamped_from_below),
        ("1e4 whatever the argument says", weight_with_a_fixed_limit),
        ("halved", weight_with_compvis_half),
        ("one weight for each filter", weight_per_filter),
        ("another number than 1e-4", weight_with_another_epsilon),
        ("as from min(ratio, limit)", weight_by_min),
        ("a tensor's clamp(max=limit)", weight_as_a_number),
        ("wait for the device", weight_as_a_number),
        ("changes its input nll_gradient", weight_that_changes_its_input),
    ],
)
def test_a_wrong_weight_is_named(keyword, answer):
    assert_rejected("07.4", answer, keyword)


def weight_as_in_compvis(nll_grads, g_grads, limit=1e4):
    d_weight = torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4)
    return torch.clamp(d_weight, 0.0, limit).detach()


def weight_without_grad(nll_gradient, adversarial_gradient, limit=1e4):
    with torch.no_grad():
        above, below = ((gradient * gradient).sum() ** 0.5 for gradient in (nll_gradient, adversarial_gradient))
        return torch.minimum(above / (below + 1e-4), torch.tensor(float(limit)))


def weight_by_einsum(nll_gradient, adversarial_gradient, limit=1e4):
    above = torch.einsum("oihw,oihw->", nll_gradient, nll_gradient).sqrt()
    ratio = above / torch.linalg.vector_norm(adversarial_gradient).add(1e-4)
    return ratio.clamp_(max=limit).detach()


def weight_in_double(nll_gradient, adversarial_gradient, limit=1e4):
    return weight_as_in_compvis(nll_gradient.double(), adversarial_gradient.double(), limit)


@verdicts(
    "07.4",
    [weight_as_in_compvis, weight_without_grad, weight_by_einsum, weight_in_double, losses.adaptive_weight],
)
def test_a_right_weight_passes_in_any_style(answer):
    assert_passes("07.4", answer)


# 07.5


def hinge(real, fake):
    return nb07.discriminator_loss(real, fake, "hinge")


def step_raises(discriminator, optimizer, images, reconstructions):
    raise NotImplementedError


def step_gaps(discriminator, optimizer, images, reconstructions):
    logits_real = ...  # noqa: F841
    logits_fake = ...  # noqa: F841
    loss = ...  # noqa: F841
    return ...


def step_half(discriminator, optimizer, images, reconstructions):
    logits_real = discriminator(images)
    logits_fake = ...
    loss = hinge(logits_real, logits_fake)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def step_without_detach(discriminator, optimizer, images, reconstructions):
    loss = hinge(discriminator(images), discriminator(reconstructions))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def step_as_in_the_public_script(discriminator, optimizer, images, reconstructions):
    loss = hinge(discriminator(images), discriminator(reconstructions))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def step_without_zero_grad(discriminator, optimizer, images, reconstructions):
    loss = hinge(discriminator(images), discriminator(reconstructions.detach()))
    loss.backward()
    optimizer.step()
    return loss


def step_with_zero_grad_at_the_end(discriminator, optimizer, images, reconstructions):
    loss = hinge(discriminator(images), discriminator(reconstructions.detach()))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def step_with_zero_grad_in_between(discriminator, optimizer, images, reconstructions):
    loss = hinge(discriminator(images), discriminator(reconstructions.detach()))
    loss.backward()
    discriminator.zero_grad()
    optimizer.step()
    return loss


def step_without_step(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    loss = hinge(discriminator(images), discriminator(reconstructions.detach()))
    loss.backward()
    return loss


def step_of_logits_detached(discriminator, optimizer, images, reconstructions):
    loss = hinge(discriminator(images), discriminator(reconstructions).detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def step_of_fakes_without_grad(discriminator, optimizer, images, reconstructions):
    with torch.no_grad():
        fake = discriminator(reconstructions)
    loss = hinge(discriminator(images), fake)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def step_without_any_graph(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    with torch.no_grad():
        loss = hinge(discriminator(images), discriminator(reconstructions))
    loss.backward()
    optimizer.step()
    return loss


def step_in_one_batch(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    logits = discriminator(torch.cat([images, reconstructions.detach()], dim=0))
    loss = hinge(logits[: len(images)], logits[len(images) :])
    loss.backward()
    optimizer.step()
    return loss


def step_with_arguments_exchanged(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    loss = hinge(discriminator(reconstructions.detach()), discriminator(images))
    loss.backward()
    optimizer.step()
    return loss


def step_with_vanilla(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    loss = nb07.discriminator_loss(discriminator(images), discriminator(reconstructions.detach()), "vanilla")
    loss.backward()
    optimizer.step()
    return loss


def step_of_the_generator(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    loss = -discriminator(reconstructions.detach()).mean()
    loss.backward()
    optimizer.step()
    return loss


def step_that_detaches_in_place(discriminator, optimizer, images, reconstructions):
    reconstructions.detach_()
    loss = hinge(discriminator(images), discriminator(reconstructions))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def step_with_a_frozen_discriminator(discriminator, optimizer, images, reconstructions):
    for parameter in discriminator.parameters():
        parameter.requires_grad = False
    loss = hinge(discriminator(images), discriminator(reconstructions.detach()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def step_of_wasserstein(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    loss = -(discriminator(images).mean() - discriminator(reconstructions.detach()).mean())
    loss.backward()
    optimizer.step()
    return loss


def step_without_return(discriminator, optimizer, images, reconstructions):
    step_by_hand(discriminator, optimizer, images, reconstructions)


@verdicts("07.5", [step_raises, step_gaps])
def test_a_blank_step_is_not_attempted(answer):
    assert_blank("07.5", answer)


@mistakes(
    "07.5",
    [
        ("gap `...` is still open", step_half),
        ("the discriminator must see reconstructions.detach()", step_without_detach),
        ("the generator's gradient is still in the update", step_as_in_the_public_script),
        ("without the underscore", step_that_detaches_in_place),
        ("what lay in .grad before is still in the update", step_without_zero_grad),
        ("what lay in .grad before is still in the update", step_with_zero_grad_at_the_end),
        ("the weights stay as they were", step_with_zero_grad_in_between),
        ("the weights stay as they were", step_without_step),
        ("the reconstructions teach it nothing", step_of_logits_detached),
        ("the reconstructions teach it nothing", step_of_fakes_without_grad),
        ("under no_grad", step_without_any_graph),
        ("the discriminator is frozen", step_with_a_frozen_discriminator),
        ("Wasserstein", step_of_wasserstein),
        ("share a batch", step_in_one_batch),
        ("exchanged in the loss", step_with_arguments_exchanged),
        ("vanilla", step_with_vanilla),
        ("the generator's loss", step_of_the_generator),
        ("is a return missing?", step_without_return),
    ],
)
def test_a_wrong_step_is_named(keyword, answer):
    assert_rejected("07.5", answer, keyword)


def step_by_hand(discriminator, optimizer, images, reconstructions):
    real, fake = discriminator(images), discriminator(reconstructions.data)
    loss = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
    discriminator.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    return loss.detach()


def step_in_two_backwards(discriminator, optimizer, images, reconstructions):
    optimizer.zero_grad()
    total = 0.0
    for sign, batch in ((-1, images), (1, reconstructions)):
        loss = 0.5 * F.relu(1 + sign * discriminator(batch.detach())).mean()
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total


def step_by_autograd_grad(discriminator, optimizer, images, reconstructions):
    loss = hinge(discriminator(images), discriminator(reconstructions))
    parameters = list(discriminator.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss


@verdicts("07.5", [step_by_hand, step_in_two_backwards, step_by_autograd_grad])
def test_a_right_step_passes_in_any_style(answer):
    assert_passes("07.5", answer)


def test_undecided_the_finished_losses_are_one_and_log_2():
    zeros = torch.zeros(2, 1, 3, 3)
    assert nb07.discriminator_loss(zeros, zeros, "hinge").item() == 1
    assert nb07.discriminator_loss(zeros, zeros, "vanilla").item() == pytest.approx(math.log(2))
