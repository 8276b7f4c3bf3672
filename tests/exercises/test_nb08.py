"""Typical answers to the exercises of notebook 08: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import copy
import io
import random

import pytest
import torch

from klvae_edu.exercises import EXERCISES
from klvae_edu.exercises.nb08 import SCHEDULE_MISTAKES, restore
from klvae_edu.losses import (
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
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
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

# 08.1


def step_raises(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    raise NotImplementedError


def step_gaps(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior, reconstruction = ...  # noqa: RUF059
    nll, kl = ...  # noqa: RUF059
    adversarial = ...  # noqa: F841
    weight = ...  # noqa: F841
    loss = ...  # noqa: F841
    ...  # noqa: PIE790
    return ...


def step_half(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    nll, kl = pixel_loss(reconstruction, images, "l2"), kl_loss(posterior, images)
    loss = nll + kl_weight * kl + ...
    loss.backward()
    return reconstruction


def losses_of(vae, discriminator, images):
    """The losses that most answers compute in the same way."""
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    with frozen(discriminator):
        adversarial = -discriminator(reconstruction).mean()
    return reconstruction, pixel_loss(reconstruction, images, "l2"), kl_loss(posterior, images), adversarial


def weight_of(vae, nll, adversarial):
    weight = vae.decoder.conv_out.weight
    pair = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (nll, adversarial)]
    return adaptive_weight(*pair)


def step_without_gradients_at_the_judge(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    nll = pixel_loss(reconstruction, images, "l2")
    with torch.no_grad():
        adversarial = adversarial_loss(discriminator(reconstruction))
    optimizer.zero_grad()
    loss = nll + kl_weight * kl_loss(posterior, images)
    (loss + disc_weight * weight_of(vae, nll, adversarial) * adversarial).backward()
    optimizer.step()
    return reconstruction.detach()


def step_with_the_discriminators_loss(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    reconstruction, nll, kl, _ = losses_of(vae, discriminator, images)
    with frozen(discriminator):
        adversarial = discriminator_loss(discriminator(images), discriminator(reconstruction))["disc_loss"]
    optimizer.zero_grad()
    (nll + kl_weight * kl + disc_weight * weight_of(vae, nll, adversarial) * adversarial).backward()
    optimizer.step()
    return reconstruction.detach()


def step_without_freezing(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    nll, adversarial = pixel_loss(reconstruction, images, "l2"), adversarial_loss(discriminator(reconstruction))
    optimizer.zero_grad()
    loss = nll + kl_weight * kl_loss(posterior, images)
    (loss + disc_weight * weight_of(vae, nll, adversarial) * adversarial).backward()
    optimizer.step()
    return reconstruction.detach()


def step_returning_the_graph(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    reconstruction, nll, kl, adversarial = losses_of(vae, discriminator, images)
    optimizer.zero_grad()
    (nll + kl_weight * kl + disc_weight * weight_of(vae, nll, adversarial) * adversarial).backward()
    optimizer.step()
    return reconstruction


def step_freeing_the_graph_at_the_second(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    reconstruction, nll, kl, adversarial = losses_of(vae, discriminator, images)
    last = vae.decoder.conv_out.weight
    (a,) = torch.autograd.grad(nll, last, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last)
    optimizer.zero_grad()
    (nll + kl_weight * kl + disc_weight * adaptive_weight(a, b) * adversarial).backward()
    optimizer.step()
    return reconstruction.detach()


def step_with_the_kl_weight_of_the_text(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    reconstruction, nll, kl, adversarial = losses_of(vae, discriminator, images)
    optimizer.zero_grad()
    (nll + 1e-6 * kl + disc_weight * weight_of(vae, nll, adversarial) * adversarial).backward()
    optimizer.step()
    return reconstruction.detach()


def step_judging_the_photographs(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    reconstruction, nll, kl, adversarial = losses_of(vae, discriminator, images)
    weight = weight_of(vae, nll, adversarial)
    optimizer.zero_grad()
    (nll + kl_weight * kl - disc_weight * weight * discriminator(images).mean()).backward()
    optimizer.step()
    return reconstruction.detach()


def step_in_eval_mode(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    vae.eval()
    return step_by_hand(vae, discriminator, optimizer, images, disc_weight, kl_weight)


def step_returning_nothing(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    step_returning_the_graph(vae, discriminator, optimizer, images, disc_weight, kl_weight)


def step_without_sample(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample())
    return pixel_loss(reconstruction, images, "l2")


def step_judging_before_sample(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    reconstruction = vae.decode(vae.encode(images).latent_dist.sample())
    return adversarial_loss(discriminator(reconstruction))


def step_without_latent_dist(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    posterior = vae.encode(images)
    return vae.decode(posterior.sample()).sample


def step_weighing_with(weigh):
    def step(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
        reconstruction, nll, kl, adversarial = losses_of(vae, discriminator, images)
        weight = weigh(nll, adversarial, vae.decoder.conv_out, disc_weight)
        optimizer.zero_grad()
        (nll + kl_weight * kl + weight * adversarial).backward()
        optimizer.step()
        return reconstruction.detach()

    step.__name__ = weigh.__name__
    return step


def weight_from_losses_and_layer(nll, adversarial, layer, disc_weight):
    return disc_weight * adaptive_weight(nll, adversarial, layer.weight)


def weight_from_tuples(nll, adversarial, layer, disc_weight):
    a = torch.autograd.grad(nll, layer.weight, retain_graph=True)
    b = torch.autograd.grad(adversarial, layer.weight, retain_graph=True)
    return disc_weight * adaptive_weight(a, b)


def weight_at_the_layer_itself(nll, adversarial, layer, disc_weight):
    a, b = (torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (nll, adversarial))
    return disc_weight * adaptive_weight(a, b)


def weight_limited(nll, adversarial, layer, disc_weight):
    a, b = (torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in (nll, adversarial))
    return adaptive_weight(a, b, disc_weight)


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
    a = torch.autograd.grad(nll, last, retain_graph=True)[0].norm()
    b = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
    weight = disc_weight * torch.clamp(a / (b + 1e-4), 0, 1e4).item()
    terms = {"nll": nll, "kl": posterior.kl().mean(), "adversarial": adversarial}
    loss = generator_loss(terms, kl_weight=kl_weight, adversarial_weight=weight)["loss"]
    parameters = [*vae.parameters()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return reconstruction.data


def step_clearing_the_discriminator_afterwards(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    reconstruction = step_without_freezing(vae, discriminator, optimizer, images, disc_weight, kl_weight)
    discriminator.zero_grad()
    return reconstruction


@verdicts("08.1", [step_raises, step_gaps])
def test_a_blank_step_is_not_attempted(answer):
    assert_blank("08.1", answer)


def test_a_half_written_step_has_an_open_gap():
    assert_rejected("08.1", step_half, "gap `...` is still open")


@mistakes(
    "08.1",
    [
        ("judge the reconstruction with its graph", step_without_gradients_at_the_judge),
        ("this is the discriminator's loss", step_with_the_discriminators_loss),
        ("leaves gradients in the discriminator", step_without_freezing),
        ("comes back with its graph", step_returning_the_graph),
        ("retain_graph=True in both", step_freeing_the_graph_at_the_second),
        ("a fixed weight such as 1e-6", step_with_the_kl_weight_of_the_text),
        ("nothing of the adversarial term reaches", step_judging_the_photographs),
        ("a network is left in eval mode", step_in_eval_mode),
        ("is a return missing", step_returning_nothing),
        ("take its .sample", step_without_sample),
        ("take its .sample", step_judging_before_sample),
        ("take its .latent_dist", step_without_latent_dist),
        ("takes two gradients and nothing else", step_weighing_with(weight_from_losses_and_layer)),
        ("take its [0]", step_weighing_with(weight_from_tuples)),
        ("take the convolution's .weight", step_weighing_with(weight_at_the_layer_itself)),
        ("or cut off at disc_weight", step_weighing_with(weight_limited)),
    ],
)
def test_a_wrong_step_is_named(keyword, answer):
    assert_rejected("08.1", answer, keyword)


def test_a_result_in_place_of_the_step_is_refused():
    assert_rejected("08.1", torch.zeros(2), "expected the function itself")


@verdicts("08.1", [step_with_a_surrogate, step_by_hand, step_clearing_the_discriminator_afterwards])
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


def surrogate_raises(reconstruction, losses, weights):
    raise NotImplementedError


def surrogate_gaps(reconstruction, losses, weights):
    leaf, gradient = ...  # noqa: RUF059
    for _loss, _weight in zip(losses, weights, strict=True):
        gradient += ...
    return ...


def surrogate_half(reconstruction, losses, weights):
    leaf = reconstruction.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    for _loss, _weight in zip(losses, weights, strict=True):
        gradient = gradient + ...
    return (reconstruction * gradient).sum()


def combined(reconstruction, losses, weights):
    leaf = reconstruction.detach().requires_grad_()
    return sum(w * torch.autograd.grad(loss(leaf), leaf)[0] for loss, w in zip(losses, weights, strict=True))


def surrogate_of_the_leaf(reconstruction, losses, weights):
    leaf = reconstruction.detach()
    return (leaf * combined(reconstruction, losses, weights)).sum()


def surrogate_by_backward(reconstruction, losses, weights):
    leaf = reconstruction.detach().clone().requires_grad_(True)
    for loss, weight in zip(losses, weights, strict=True):
        (weight * loss(leaf)).backward()
    return torch.sum(reconstruction * leaf.grad)


def surrogate_plain_sum(reconstruction, losses, weights):
    return sum(weight * loss(reconstruction) for loss, weight in zip(losses, weights, strict=True))


def surrogate_computing_twice(reconstruction, losses, weights):
    for loss in losses:
        assert torch.isfinite(loss(reconstruction.detach()))
    return (reconstruction * combined(reconstruction, losses, weights)).sum()


def surrogate_with_a_tuple(reconstruction, losses, weights):
    leaf = reconstruction.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    for loss, weight in zip(losses, weights, strict=True):
        gradient += weight * torch.autograd.grad(loss(leaf), leaf)
    return (reconstruction * gradient).sum()


def surrogate_adding_a_tuple(reconstruction, losses, weights):
    leaf = reconstruction.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    for loss, weight in zip(losses, weights, strict=True):
        gradient = gradient + torch.autograd.grad(weight * loss(leaf), leaf)
    return (reconstruction * gradient).sum()


def surrogate_returning_the_gradient(reconstruction, losses, weights):
    return combined(reconstruction, losses, weights)


def surrogate_by_backward_into_the_leaf(reconstruction, losses, weights):
    leaf = reconstruction.detach().clone().requires_grad_(True)
    total = sum(weight * loss(leaf) for loss, weight in zip(losses, weights, strict=True))
    total.backward(inputs=[leaf])
    return torch.sum(reconstruction * leaf.grad)


def surrogate_by_torch_func(reconstruction, losses, weights):
    def total(x):
        return sum(weight * loss(x) for loss, weight in zip(losses, weights, strict=True))

    return (reconstruction * torch.func.grad(total)(reconstruction.detach())).sum()


def surrogate_over_the_batch(reconstruction, losses, weights):
    return (reconstruction * combined(reconstruction, losses, weights)).sum() / len(reconstruction)


def surrogate_summed_over_a_mean(reconstruction, losses, weights):
    return (reconstruction * combined(reconstruction, losses, weights)).mean(0).sum()


def surrogate_by_einsum(reconstruction, losses, weights):
    return torch.einsum("bchw,bchw->", reconstruction, combined(reconstruction, losses, weights))


def surrogate_of_value_zero(reconstruction, losses, weights):
    gradient = combined(reconstruction, losses, weights)
    return ((reconstruction - reconstruction.detach()) * gradient).sum()


def surrogate_without_a_leaf(reconstruction, losses, weights):
    gradient = torch.zeros_like(reconstruction)
    for loss, weight in zip(losses, weights, strict=True):
        gradient = gradient + weight * torch.autograd.grad(loss(reconstruction), reconstruction)[0]
    return torch.dot(reconstruction.flatten(), gradient.detach().flatten())


@verdicts("08.2", [surrogate_raises, surrogate_gaps])
def test_a_blank_surrogate_is_not_attempted(answer):
    assert_blank("08.2", answer)


def test_a_half_written_surrogate_has_an_open_gap():
    assert_rejected("08.2", surrogate_half, "gap `...` is still open")


@mistakes(
    "08.2",
    [
        ("no gradient reaches the autoencoder", surrogate_of_the_leaf),
        ("leaves gradients in a network", surrogate_by_backward),
        ("runs through the losses in the backward pass", surrogate_plain_sum),
        ("computed 2 times", surrogate_computing_twice),
        ("averaged over the batch", surrogate_over_the_batch),
        ("averaged over the batch", surrogate_summed_over_a_mean),
        ("no gradient reaches the autoencoder", surrogate_returning_the_gradient),
        ("take its [0]", surrogate_with_a_tuple),
        ("take its [0]", surrogate_adding_a_tuple),
    ],
)
def test_a_wrong_surrogate_is_named(keyword, answer):
    assert_rejected("08.2", answer, keyword)


@verdicts(
    "08.2",
    [
        surrogate_by_backward_into_the_leaf,
        surrogate_by_torch_func,
        surrogate_by_einsum,
        surrogate_of_value_zero,
        surrogate_without_a_leaf,
    ],
)
def test_a_right_surrogate_passes_in_any_style(answer):
    assert_passes("08.2", answer)


# 08.3


def order_raises(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    raise NotImplementedError


def order_gaps(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    adversarial, trains_discriminator = ...  # noqa: RUF059
    reconstructions = generator_step(images, ...)
    if trains_discriminator:
        discriminator_step(images, ...)
    return reconstructions


def order_half(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    reconstructions = generator_step(images, step > disc_start)
    if step > disc_start - disc_warmup:
        discriminator_step(images, ...)
    return reconstructions


def order_judging_the_reconstructions_twice(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    reconstructions = generator_step(images, step > disc_start)
    if step > disc_start - disc_warmup:
        discriminator_step(reconstructions, reconstructions)
    return reconstructions


def order_in_turns(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    reconstructions = generator_step(images, step > disc_start)
    if step > disc_start - disc_warmup and step % 2:
        discriminator_step(images, reconstructions)
    return reconstructions


def order_returning_the_images(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    reconstructions = generator_step(images, step > disc_start)
    if step > disc_start - disc_warmup:
        discriminator_step(images, reconstructions)
    return images


def order_with_a_missing_argument(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    return generator_step(images)


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


@verdicts("08.3", [order_raises, order_gaps])
def test_a_blank_order_is_not_attempted(answer):
    assert_blank("08.3", answer)


def test_a_half_written_order_says_which_gap_is_open():
    assert_rejected("08.3", order_half, "an argument of discriminator_step")


@mistakes(
    "08.3",
    [
        ("on something else", order_judging_the_reconstructions_twice),
        ("in step 4, with disc_start=4", order_in_turns),
        ("not the reconstructions", order_returning_the_images),
        ("generator_step takes (images, adversarial)", order_with_a_missing_argument),
    ],
)
def test_a_wrong_order_is_named(keyword, answer):
    assert_rejected("08.3", answer, keyword)


@verdicts("08.3", [order_by_names, order_counting_left])
def test_a_right_order_passes_in_any_style(answer):
    assert_passes("08.3", answer)


@pytest.mark.parametrize("step", range(1, 8))
def test_the_finished_order_is_the_configurations(step):
    config, seen = TrainingConfig(disc_weight=0.5, disc_start=4, disc_warmup=2), []
    steps = lambda images, adversarial: seen.append(adversarial), lambda *_: seen.append("judged")
    EXERCISES["08.3"].reference(step, None, *steps, config.disc_start, config.disc_warmup)
    assert seen == [config.adversarial(step), *["judged"] * config.trains_discriminator(step)]


def test_there_is_a_word_for_every_schedule():
    assert len({message for message, _ in SCHEDULE_MISTAKES}) == len(SCHEDULE_MISTAKES)


# 08.4


def share(n, decay):
    return min(decay, (1 + n) / (10 + n))


def ema_raises(averages, weights, n, decay=0.9999):
    raise NotImplementedError


def ema_gaps(averages, weights, n, decay=0.9999):
    d, one_minus_d = ...  # noqa: RUF059
    with torch.no_grad():
        for _average, _weight in zip(averages, weights, strict=True):
            ...
    return averages


def ema_half(averages, weights, n, decay=0.9999):
    d = min(decay, ...)
    return [average.mul_(d) for average in averages]


@torch.no_grad()
def ema_without_brackets(averages, weights, n, decay=0.9999):
    d = min(decay, 1 + n / 10 + n)
    for average, weight in zip(averages, weights, strict=True):
        average.copy_(d * average + (1 - d) * weight)
    return averages


def ema_with_new_tensors(averages, weights, n, decay=0.9999):
    d = share(n, decay)
    with torch.no_grad():
        for i in range(len(averages)):
            averages[i] = d * averages[i] + (1 - d) * weights[i]
    return averages


def ema_with_a_graph(averages, weights, n, decay=0.9999):
    d = share(n, decay)
    for average, weight in zip(averages, weights, strict=True):
        average.mul_(d).add_(weight, alpha=1 - d)
    return averages


@torch.no_grad()
def ema_into_the_weights(averages, weights, n, decay=0.9999):
    d = share(n, decay)
    for average, weight in zip(averages, weights, strict=True):
        weight.mul_(1 - d)
        average.mul_(d).add_(weight)
    return averages


def ema_returning_another_list(averages, weights, n, decay=0.9999):
    return [average.clone() for average in ema_by_data(averages, weights, n, decay)]


def ema_returning_nothing(averages, weights, n, decay=0.9999):
    ema_by_data(averages, weights, n, decay)


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


@verdicts("08.4", [ema_raises, ema_gaps])
def test_a_blank_average_is_not_attempted(answer):
    assert_blank("08.4", answer)


def test_a_half_written_average_has_an_open_gap():
    assert_rejected("08.4", ema_half, "gap `...` is still open")


@mistakes(
    "08.4",
    [
        ("with both brackets", ema_without_brackets),
        ("new tensors", ema_with_new_tensors),
        ("carry a graph", ema_with_a_graph),
        ("the weights are changed, too", ema_into_the_weights),
        ("not what is returned", ema_returning_another_list),
        ("is a return missing", ema_returning_nothing),
    ],
)
def test_a_wrong_average_is_named(keyword, answer):
    assert_rejected("08.4", answer, keyword)


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


def snapshot_raises(run):
    raise NotImplementedError


def snapshot_gaps(run):
    return {"model": ..., "optimizer": ..., "average": ..., "step": ..., "random": ...}


def snapshot_half(run):
    return {**snapshot_by_copies(run), "optimizer": ...}


def snapshot_by_copies(run):
    kept = {name: copy.deepcopy(getattr(run, name).state_dict()) for name in ("model", "optimizer", "average")}
    return {**kept, "step": run.step, "random": torch.get_rng_state()}


def without(*names):
    def snapshot(run):
        return {name: value for name, value in snapshot_by_copies(run).items() if name not in names}

    snapshot.__name__ = f"without_{'_and_'.join(names)}"
    return snapshot


def snapshot_of_references(run):
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.state_dict(),
        "step": run.step,
        "random": torch.get_rng_state(),
    }


def snapshot_with_two_shallow_copies(run):
    kept = {"model": dict(run.model.state_dict()), "average": dict(run.average.state_dict())}
    return {**snapshot_by_copies(run), **kept}


def snapshot_of_parameters(run):
    return {**snapshot_by_copies(run), "model": copy.deepcopy([*run.model.parameters()])}


def snapshot_of_objects(run):
    return {**snapshot_by_copies(run), "model": copy.deepcopy(run.model)}


def snapshot_of_the_optimizer_object(run):
    return {**snapshot_by_copies(run), "optimizer": copy.deepcopy(run.optimizer)}


def snapshot_without_random_numbers(run):
    return {**snapshot_by_copies(run), "random": None}


def snapshot_of_pythons_random_numbers(run):
    return {**snapshot_by_copies(run), "random": random.getstate()}


def snapshot_of_no_optimizer(run):
    return {**snapshot_by_copies(run), "optimizer": None}


def snapshot_drawing(run):
    return {**snapshot_by_copies(run), "random": torch.get_rng_state() if torch.rand(1) < 2 else None}


def snapshot_from_step_zero(run):
    return {**snapshot_by_copies(run), "step": 0}


def snapshot_of_a_new_optimizer(run):
    return {**snapshot_by_copies(run), "optimizer": torch.optim.AdamW(run.model.parameters(), lr=0.05).state_dict()}


def snapshot_one_step_further(run):
    run.step = run.step + 1
    return snapshot_by_copies(run)


def snapshot_with_another_key(run):
    kept = snapshot_by_copies(run)
    kept["rng"] = kept.pop("random")
    return kept


def snapshot_in_a_tuple(run):
    return tuple(snapshot_by_copies(run).values())


def snapshot_by_a_file(run):
    buffer = io.BytesIO()
    torch.save(snapshot_of_references(run), buffer)
    buffer.seek(0)
    return torch.load(buffer)


def snapshot_of_a_whole_copy(run):
    other = copy.deepcopy({name: getattr(run, name).state_dict() for name in ("model", "optimizer", "average")})
    return dict(other, step=int(run.step), random=torch.random.get_rng_state().clone())


def snapshot_by_clones(run):
    def cloned(module):
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    return {**snapshot_by_copies(run), "model": cloned(run.model), "average": cloned(run.average)}


@verdicts("08.5", [snapshot_raises, snapshot_gaps])
def test_a_blank_snapshot_is_not_attempted(answer):
    assert_blank("08.5", answer)


def test_a_half_written_snapshot_says_which_gap_is_open():
    assert_rejected("08.5", snapshot_half, "gap `...` is still open (optimizer)")


@mistakes(
    "08.5",
    [
        ("nothing is copied", snapshot_of_references),
        ("the model's weights are missing", without("model")),
        ("Adam's averages of the gradient", without("optimizer")),
        ("the averaged weights are missing", without("average")),
        ("the number of the step is missing", without("step")),
        ("get_rng_state()", without("random")),
        ("optimiser's state is missing", without("optimizer", "random")),
        ("not copied: model and average", snapshot_with_two_shallow_copies),
        ("with the names of the weights", snapshot_of_parameters),
        ("whole objects are kept", snapshot_of_objects),
        ("under 'optimizer' lies the whole object", snapshot_of_the_optimizer_object),
        ("torch.get_rng_state() gives", snapshot_without_random_numbers),
        ("torch.get_rng_state() gives", snapshot_of_pythons_random_numbers),
        ("a part is None", snapshot_of_no_optimizer),
        ("draws a random number", snapshot_drawing),
        ("keep run.step as it is", snapshot_from_step_zero),
        ("kept without its state", snapshot_of_a_new_optimizer),
        ("changes the run itself", snapshot_one_step_further),
        ("restore does not know rng", snapshot_with_another_key),
        ("expected a dictionary, got tuple", snapshot_in_a_tuple),
    ],
)
def test_a_wrong_snapshot_is_named(keyword, answer):
    assert_rejected("08.5", answer, keyword)


@verdicts("08.5", [snapshot_by_copies, snapshot_by_a_file, snapshot_of_a_whole_copy, snapshot_by_clones])
def test_a_right_snapshot_passes_in_any_style(answer):
    assert_passes("08.5", answer)


def test_restoring_leaves_the_snapshot_good_for_another_time():
    from klvae_edu.exercises.nb08 import Run

    model = torch.nn.Linear(2, 2)
    run = Run(model, torch.optim.Adam(model.parameters()), copy.deepcopy(model))
    kept = snapshot_by_copies(run)
    for _ in range(2):
        restore(run, kept)
        assert torch.equal(run.model.weight, kept["model"]["weight"])
        model(torch.ones(1, 2)).sum().backward()
        run.optimizer.step()
