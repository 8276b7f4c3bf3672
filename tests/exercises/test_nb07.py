"""Exercises of notebook 07: right answers in many styles, and solutions that agree with the package."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import discriminator as finished
from klvae_edu import losses
from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

Discriminator, receptive_field, discriminator_loss = (EXERCISES[id].reference for id in ("07.1", "07.2", "07.3"))

# Right answers


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

    return Net


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


class NetInDouble(Discriminator):
    def forward(self, images):
        return self.double().main(images.double())


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
    x = torch.zeros(1, 1, 10 * 2**num_layers, dtype=torch.float64, requires_grad=True)
    y = x
    for stride in [2] * num_layers + [1, 1]:
        y = F.conv1d(y, torch.ones(1, 1, 4, dtype=torch.float64), stride=stride)
    y[0, 0, 0].backward()
    return int(x.grad.count_nonzero())


def field_as_a_tensor(num_layers):
    return torch.tensor(field_closed(num_layers))


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
    loss = discriminator_loss(discriminator(images), discriminator(reconstructions), "hinge")
    parameters = list(discriminator.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss


@all_verdicts(
    {
        "07.1": (
            pix2pix(nn.BatchNorm2d),
            pix2pix(nn.SyncBatchNorm),
            NetByModuleList,
            NetInDouble,
            finished.NLayerDiscriminator,
        ),
        "07.2": (field_closed, field_from_the_front, field_by_recursion, field_by_measurement, field_as_a_tensor),
        "07.3": (loss_by_max, loss_by_bce, loss_in_double, loss_by_the_package),
        "07.4": (weight_as_in_compvis, weight_without_grad, weight_by_einsum, weight_in_double, losses.adaptive_weight),
        "07.5": (step_by_hand, step_in_two_backwards, step_by_autograd_grad),
    }
)
def test_right_answers_pass_in_any_style(id, answer):
    assert_passes(id, answer)


# Gradients are checked


def test_a_detached_loss_is_named():
    def detached(logits_real, logits_fake, kind):
        return loss_by_max(logits_real.detach(), logits_fake, kind)

    assert_rejected("07.3", detached, "no gradient reaches logits_real")


def test_a_detached_network_is_named():
    class Detached(Discriminator):
        def forward(self, images):
            return self.main(images.detach())

    assert_rejected("07.1", Detached, "no gradient reaches images")


# The solutions agree with the package


def test_the_discriminator_is_the_packages():
    torch.manual_seed(0)
    ours, theirs = Discriminator(2, 4, 4).double(), finished.NLayerDiscriminator(2, 4, 4).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 2, 64, 64, dtype=torch.float64)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("num_layers", range(1, 7))
def test_the_patch_size_is_the_packages(num_layers):
    assert receptive_field(num_layers) == finished.receptive_field(num_layers)


def test_undecided_the_losses_are_one_and_log_2():
    zeros = torch.zeros(2, 1, 3, 3)
    assert discriminator_loss(zeros, zeros, "hinge").item() == 1
    assert discriminator_loss(zeros, zeros, "vanilla").item() == pytest.approx(math.log(2))
