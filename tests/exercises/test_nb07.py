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


def pix2pix(norm):
    """Build the network like the code of pix2pix."""

    class Net(nn.Module):
        def __init__(self, in_channels=3, num_filters=64, num_layers=3):
            super().__init__()
            sequence = [
                nn.Conv2d(in_channels, num_filters, kernel_size=4, stride=2, padding=1),
                nn.LeakyReLU(0.2, True),
            ]
            mult = 1
            for n in range(1, num_layers + 1):
                mult_prev, mult = mult, min(2**n, 8)
                stride = 1 if n == num_layers else 2
                sequence += [
                    nn.Conv2d(num_filters * mult_prev, num_filters * mult, 4, stride, padding=1, bias=False),
                    norm(num_filters * mult),
                    nn.LeakyReLU(0.2, True),
                ]
            sequence += [nn.Conv2d(num_filters * mult, 1, kernel_size=4, stride=1, padding=1)]
            self.main = nn.Sequential(*sequence)

        def forward(self, input):
            return self.main(input)

    Net.__name__ = f"as_in_pix2pix_with_{norm.__name__}"
    return Net


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


@verdicts("07.1", [NetRaises, NetGaps])
def test_a_blank_discriminator_is_not_attempted(answer):
    assert_blank("07.1", answer)


@mistakes(
    "07.1",
    [
        ("gap `...` is still open", NetHalf),
        ("gap `...` is still open (forward)", NetWithoutForward),
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
        pix2pix(nn.BatchNorm2d),
        pix2pix(nn.SyncBatchNorm),
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


def field_as_a_pair(num_layers):
    return 9 * 2**num_layers - 2, 9 * 2**num_layers - 2


def field_off_by_one(num_layers):
    return 9 * 2**num_layers - 1


@verdicts("07.2", [field_raises, field_gaps])
def test_a_blank_patch_size_is_not_attempted(answer):
    assert_blank("07.2", answer)


@mistakes(
    "07.2",
    [
        ("gap `...` is still open", field_half),
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


def loss_detached(logits_real, logits_fake, kind):
    return loss_by_max(logits_real.detach(), logits_fake, kind)


def loss_as_a_number(logits_real, logits_fake, kind):
    return loss_by_max(logits_real, logits_fake, kind).item()


@verdicts("07.3", [loss_raises, loss_gaps])
def test_a_blank_loss_is_not_attempted(answer):
    assert_blank("07.3", answer)


@mistakes(
    "07.3",
    [
        ("gap `...` is still open", loss_half),
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


def weight_undetached(nll_gradient, adversarial_gradient, limit=1e4):
    return (nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(max=limit)


def weight_as_a_number(nll_gradient, adversarial_gradient, limit=1e4):
    return min((nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).item(), limit)


def weight_from_an_item(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return torch.tensor(min(ratio.item(), limit))


def weight_by_if(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    if ratio > limit:
        ratio = torch.full_like(ratio, limit)
    return ratio.detach()


def weight_from_floats(nll_gradient, adversarial_gradient, limit=1e4):
    ratio = float(nll_gradient.norm()) / (float(adversarial_gradient.norm()) + 1e-4)
    return torch.tensor(ratio).clamp(0, limit)


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
        ("it carries a gradient", weight_undetached),
        ("every step would wait for the device", weight_by_min),
        ("every step would wait for the device", weight_as_a_number),
        ("every step would wait for the device", weight_from_an_item),
        ("every step would wait for the device", weight_by_if),
        ("every step would wait for the device", weight_from_floats),
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
    ...  # noqa: PIE790
    return ...


def step_half(discriminator, optimizer, images, reconstructions):
    logits_real = discriminator(images)
    logits_fake = ...
    loss = hinge(logits_real, logits_fake)
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


def step_without_return(discriminator, optimizer, images, reconstructions):
    step_by_hand(discriminator, optimizer, images, reconstructions)


@verdicts("07.5", [step_raises, step_gaps])
def test_a_blank_step_is_not_attempted(answer):
    assert_blank("07.5", answer)


@mistakes(
    "07.5",
    [
        ("gap `...` is still open", step_half),
        ("the reconstructions teach it nothing", step_of_fakes_without_grad),
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
