"""Right answers to the exercises of notebook 08 in many styles, and wrong ones that are described without a name."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from klvae_edu.exercises import EXERCISES, nb08
from klvae_edu.exercises.given import restore
from klvae_edu.losses import (
    adaptive_weight,
    adversarial_loss,
    generator_loss,
    kl_loss,
    last_layer_gradients,
    pixel_loss,
)
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import ema_update as ema_of_the_package
from klvae_edu.training.setup import set_up, start_accelerator
from klvae_edu.training.steps import frozen
from klvae_edu.training.steps import generator_step as generator_step_of_the_package
from tests.exercises.answers import assert_passes, assert_rejected, verdicts

# 08.1


def step_with_a_surrogate(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    leaf = reconstruction.detach().requires_grad_()
    with frozen(discriminator):
        losses = pixel_loss(leaf, images, "l2"), adversarial_loss(discriminator(leaf))
    a, b = (torch.autograd.grad(loss, leaf)[0] for loss in losses)
    weight = adaptive_weight(*last_layer_gradients(reconstruction, vae.decoder.conv_out.weight, [a, b]))
    vae.zero_grad()
    ((reconstruction * (a + disc_weight * weight * b)).sum() + kl_weight * kl_loss(posterior, images)).backward()
    optimizer.step()
    return leaf.detach()


def step_by_hand(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample
    nll = ((reconstruction - images) ** 2).sum(dim=(1, 2, 3)).mean()
    adversarial = -discriminator(reconstruction).mean()
    last = vae.decoder.conv_out.weight
    a, b = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, adversarial))
    weight = disc_weight * torch.clamp(a / (b + 1e-4), 0, 1e4).item()
    terms = {"nll": nll, "kl": posterior.kl().mean(), "adversarial": adversarial}
    loss = generator_loss(terms, kl_weight=kl_weight, adversarial_weight=weight)["loss"]
    parameters = [*vae.parameters()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return reconstruction.data


@verdicts("08.1", [step_with_a_surrogate, step_by_hand])
def test_a_right_step_passes_in_any_style(answer):
    assert_passes("08.1", answer)


def test_the_finished_step_moves_the_weights_as_the_package_does():
    config = TrainingConfig(
        device="cpu", reduction="sum", disc_weight=0.5, disc_channels=4, disc_layers=1, grad_clip=float("inf")
    )
    training = set_up(config, start_accelerator(config))
    vae, patchgan = copy.deepcopy(training.vae), copy.deepcopy(training.patchgan)
    optimizer = torch.optim.AdamW(vae.parameters(), config.lr, config.betas, weight_decay=config.weight_decay)
    images = 2 * torch.rand(2, 3, 32, 32) - 1
    training.begin_step()
    optimizer.param_groups[0]["lr"] = training.optimizer.param_groups[0]["lr"]
    torch.manual_seed(1)
    _, theirs = generator_step_of_the_package(training, images)
    torch.manual_seed(1)
    ours = EXERCISES["08.1"].reference(vae, patchgan, optimizer, images)
    assert torch.equal(ours, theirs)
    before = training.optimizer.param_groups[0]["lr"]
    moved = (vae.get_parameters() - training.vae.get_parameters()).abs() < 0.05 * before
    assert moved.float().mean() > 0.99  # where a gradient is only rounding, AdamW's step has either sign


# 08.2


def surrogate_by_backward_into_the_leaf(reconstruction, losses, weights):
    leaf = reconstruction.detach().clone().requires_grad_(True)
    nb08.plain_sum(leaf, losses, weights).backward(inputs=[leaf])
    return torch.sum(reconstruction * leaf.grad)


def surrogate_by_torch_func(reconstruction, losses, weights):
    return (reconstruction * torch.func.grad(nb08.plain_sum)(reconstruction.detach(), losses, weights)).sum()


def surrogate_without_a_leaf(reconstruction, losses, weights):
    gradient = torch.zeros_like(reconstruction)
    for loss, weight in zip(losses, weights, strict=True):
        gradient = gradient + weight * torch.autograd.grad(loss(reconstruction), reconstruction)[0]
    return torch.dot(reconstruction.flatten(), gradient.detach().flatten())


@verdicts(
    "08.2",
    [
        surrogate_by_backward_into_the_leaf,
        surrogate_by_torch_func,
        surrogate_without_a_leaf,
        nb08.surrogate_with(product=lambda r, g: torch.einsum("bchw,bchw->", r, g)),
        nb08.surrogate_with(product=lambda r, g: ((r - r.detach()) * g).sum()),  # its value is 0
    ],
)
def test_a_right_surrogate_passes_in_any_style(answer):
    assert_passes("08.2", answer)


# 08.3


def order_by_names(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    reconstructions = generator_step(images, adversarial=disc_start < step)
    if not step <= disc_start - disc_warmup:
        discriminator_step(images, reconstructions=reconstructions.detach())
    return reconstructions


def order_counting_left(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    left = disc_start - (step - 1)
    reconstructions = generator_step(images, int(left <= 0))
    if left <= disc_warmup:
        discriminator_step(images, reconstructions)
    return reconstructions


@verdicts("08.3", [order_by_names, order_counting_left])
def test_a_right_order_passes_in_any_style(answer):
    assert_passes("08.3", answer)


@pytest.mark.parametrize("step", range(1, 8))
def test_the_finished_order_is_the_configurations(step):
    config, seen = TrainingConfig(disc_weight=0.5, disc_start=4, disc_warmup=2), []
    steps = lambda images, adversarial: seen.append(adversarial), lambda *_: seen.append("judged")
    EXERCISES["08.3"].reference(step, None, *steps, config.disc_start, config.disc_warmup)
    assert seen == [config.adversarial(step), *["judged"] * config.trains_discriminator(step)]


# 08.4


def share(n, decay):
    return min(decay, (1 + n) / (10 + n))


def ema_by_data(averages, weights, n, decay=0.9999):
    d = share(n, decay)
    for i, weight in enumerate(weights):
        averages[i].data = d * averages[i].data + (1 - d) * weight.data
    return averages


@torch.no_grad()
def ema_by_foreach(averages, weights, n, decay=0.9999):
    torch._foreach_lerp_(averages, [*weights], 1 - share(n, decay))
    return averages


@torch.no_grad()
def ema_by_steps_towards(averages, weights, n, decay=0.9999):
    for average, weight in zip(averages, weights, strict=True):
        average -= (1 - share(n, decay)) * (average - weight.detach())
    return tuple(averages)


@verdicts("08.4", [ema_by_data, ema_by_foreach, ema_by_steps_towards])
def test_a_right_average_passes_in_any_style(answer):
    assert_passes("08.4", answer)


@pytest.mark.parametrize("n", [1, 5, 10**6])
def test_the_finished_average_is_the_packages(n):
    torch.manual_seed(0)
    averages, weights = [torch.randn(3, 4), torch.randn(2)], [torch.randn(3, 4), torch.randn(2)]
    theirs = [average.clone() for average in averages]
    ema_of_the_package(0.9999)(theirs, weights, n)
    for mine, other in zip(EXERCISES["08.4"].reference(averages, weights, n), theirs, strict=True):
        torch.testing.assert_close(mine, other)


# 08.5


def snapshot_by_copies(run):
    kept = {name: copy.deepcopy(getattr(run, name).state_dict()) for name in ("model", "optimizer", "average")}
    return {**kept, "step": run.step, "random": torch.get_rng_state()}


def snapshot_by_a_file(run):
    buffer = io.BytesIO()
    torch.save({name: getattr(run, name).state_dict() for name in ("model", "optimizer", "average")}, buffer)
    buffer.seek(0)
    return torch.load(buffer) | {"step": int(run.step), "random": torch.random.get_rng_state().clone()}


def snapshot_by_clones(run):
    def cloned(module):
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    return {**snapshot_by_copies(run), "model": cloned(run.model), "average": cloned(run.average)}


@verdicts("08.5", [snapshot_by_copies, snapshot_by_a_file, snapshot_by_clones])
def test_a_right_snapshot_passes_in_any_style(answer):
    assert_passes("08.5", answer)


def test_restoring_leaves_the_snapshot_good_for_another_time():
    model = torch.nn.Linear(2, 2)
    run = nb08.Run(model, torch.optim.Adam(model.parameters()), copy.deepcopy(model))
    kept = snapshot_by_copies(run)
    for _ in range(2):
        restore(run, kept)
        assert torch.equal(run.model.weight, kept["model"]["weight"])
        model(torch.ones(1, 2)).sum().backward()
        run.optimizer.step()


# What is said of a mistake that has no name


@pytest.mark.parametrize(
    ("id", "keyword", "answer"),
    [
        ("08.1", "KL 0.3 times, not 0.1", nb08.step_with(total=lambda nll, kl, adv, c, w: nll + 3 * c * kl + w * adv)),
        ("08.1", "one is something else", nb08.step_with(adversarial=lambda logits: -logits.square().mean())),
        ("08.1", "look at what is decoded", nb08.step_with(draw=lambda posterior: posterior.sample() / 2)),
        ("08.2", "count 3 and 1 and 1 times", nb08.surrogate_with(add=lambda g, w: sum(g) + 2 * g[0])),
        ("08.2", "not the sum", nb08.surrogate_with(product=lambda r, g: (r * g.flip(-1)).sum())),
        ("08.3", "generator_step() missing 1", lambda step, images, generator_step, *rest: generator_step(images)),
        (
            "08.3",
            "in step 5, with disc_start=4",
            nb08.scheduled(sees=lambda step, start, _: step > start + (step == 5)),
        ),
        ("08.4", "keeps 0.5 of itself and takes 0.5 of the weight", nb08.averaged(rate=lambda n, decay: 0.5)),
        ("08.5", "restore does not know rng", lambda run: {"rng": torch.get_rng_state()}),
        ("08.5", "are missing; the optimiser's state is missing", lambda run: {"step": run.step}),
        ("08.5", "expected a dictionary, got tuple", lambda run: (run.step, torch.get_rng_state())),
    ],
)
def test_a_mistake_without_a_name_is_described(id, keyword, answer):
    assert_rejected(id, answer, keyword)
