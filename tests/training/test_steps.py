"""One training step of each network: what it changes, what it leaves alone, what it returns, and what it refuses.

The checks of isolation are tested, too: each runs with a classic mistake in the step, and must notice it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klvae_edu import DiagonalGaussianDistribution
from klvae_edu.losses import adversarial_loss, kl_loss, reconstruction_loss
from klvae_edu.metrics import psnr
from klvae_edu.perceptual import LPIPS
from klvae_edu.training import setup, steps
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import Training, set_up, start_accelerator
from klvae_edu.training.steps import discriminator_step, generator_losses, generator_step

GAN: dict[str, Any] = {"disc_weight": 0.5, "disc_channels": 4, "disc_layers": 2}
WITH_LPIPS: dict[str, Any] = {"perceptual_weight": 1.0, "lpips": "untrained"}
ALL = GAN | WITH_LPIPS | {"ema": 0.99}

untrained = cache(LPIPS)


@pytest.fixture(autouse=True)
def one_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for each run: nothing changes it."""
    monkeypatch.setattr(setup, "LPIPS", untrained)


def begin(**options: Any) -> Training:
    """A run in its first step."""
    usual: dict[str, Any] = {"size": 16, "batch_size": 2, "steps": 100, "warmup": 0.0, "device": "cpu"}
    config = TrainingConfig(**usual | options)
    training = set_up(config, start_accelerator(config))
    training.begin_step()
    return training


Begin = Callable[..., Training]


def in_double(training: Training) -> Training:
    for network in (training.model, training.discriminator, training.ema):
        if network is not None:
            network.double()
    return training


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def generator(training: Training, batch: Tensor | None = None) -> dict[str, float]:
    """A step of the autoencoder with the same posterior samples each time."""
    torch.manual_seed(0)
    scalars, _ = generator_step(training, images() if batch is None else batch)
    return scalars


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: None if gradient is None else gradient.clone() for name, gradient in found.items()}


def flat(network: nn.Module) -> Tensor:
    found = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return torch.cat([gradient.flatten() for gradient in found])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def assert_unchanged(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert now.keys() == before.keys()
    for name, value in before.items():
        assert now[name] is None if value is None else now[name] is not None and torch.equal(now[name], value), name


# What a step returns.


def test_a_step_returns_named_scalars_of_the_images_before_the_update() -> None:
    training = begin()
    torch.manual_seed(0)
    with torch.no_grad():
        reconstruction, posterior = training.model(images())
    terms = reconstruction_loss(reconstruction, images(), pixel="l2", reduction="mean")
    kl = kl_loss(posterior, images(), "mean")
    scalars = generator(training)
    assert list(scalars) == ["loss", "nll", "pixel", "kl", "psnr", "grad_norm", "lr"]
    assert all(type(value) is float for value in scalars.values())
    assert scalars["pixel"] == scalars["nll"] == pytest.approx(terms["pixel"].item(), rel=1e-5)
    assert scalars["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert scalars["loss"] == pytest.approx(terms["pixel"].item() + 1e-6 * kl.item(), rel=1e-5)
    assert scalars["psnr"] == pytest.approx(psnr(reconstruction, images()).mean().item(), rel=1e-5)
    assert scalars["lr"] == training.config.lr


def test_a_step_with_everything_names_every_term() -> None:
    training = begin(**ALL, disc_lr=1e-4)
    scalars = generator(training)
    assert set(scalars) == {
        *("loss", "nll", "pixel", "perceptual", "kl", "adversarial", "adversarial_weight", "clamped"),
        *("psnr", "grad_norm", "lr"),
    }
    parts = scalars["pixel"] + scalars["perceptual"] + 1e-6 * scalars["kl"]
    parts += scalars["adversarial_weight"] * scalars["adversarial"]
    assert scalars["loss"] == pytest.approx(parts, rel=1e-5)
    found = discriminator_step(training, images(), images(4)[2:])
    assert list(found) == ["disc_loss", "logits_real", "logits_fake", "disc_grad_norm", "disc_lr"]
    assert all(type(value) is float for value in [*scalars.values(), *found.values()])
    assert found["disc_lr"] == 1e-4


def test_a_step_returns_the_reconstructions_without_a_graph() -> None:
    training = begin(batch_size=2, accumulate=2)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = torch.cat([training.model(part)[0] for part in images(4).chunk(2)])
    torch.manual_seed(0)
    _, found = generator_step(training, images(4))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_the_adaptive_weight_the_adversarial_one_is_that_of_the_configuration(reduction: Any) -> None:
    scalars = generator(begin(**GAN, adaptive=False, reduction=reduction))
    assert scalars["adversarial_weight"] == pytest.approx(0.5 / (768 if reduction == "mean" else 1))
    assert scalars["clamped"] == 0.0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_clamped_adaptive_weight_is_told(reduction: Any) -> None:
    training = begin(**GAN, reduction=reduction)
    assert generator(training)["clamped"] == 0.0
    with torch.no_grad():
        training.patchgan.main[-1].weight.mul_(1e-9)
    scalars = generator(training)
    assert scalars["clamped"] == 1.0
    assert scalars["adversarial_weight"] == pytest.approx(0.5 * 1e4 / (768 if reduction == "mean" else 1))


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_weight_rises_linearly_over_the_ramp(adaptive: bool) -> None:
    def weight(step: int, **options: Any) -> float:
        training = begin(**GAN, adaptive=adaptive, disc_start=2, lr=1e-9, **options)
        training.step = step
        return generator(training)["adversarial_weight"]

    full = weight(3)
    assert [weight(step, disc_ramp=3) / full for step in (3, 4, 5, 6, 7)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_the_kl_term_rises_linearly_over_its_warm_up_in_the_loss_and_in_the_gradient() -> None:
    def kl_part(step: int, **options: Any) -> tuple[float, Tensor]:
        """Return the KL term's part of the loss, and the whole gradient of the encoder's last layer."""
        training = begin(kl_weight=0.5, grad_clip=math.inf, lr=1e-9, **options)
        training.step = step
        scalars = generator(training)
        gradient = training.vae.quant_conv.weight.grad
        assert gradient is not None
        return (scalars["loss"] - scalars["nll"]) / scalars["kl"], gradient

    shares = {step: kl_part(step, kl_warmup=3) for step in (1, 2, 3, 4, 50)}
    assert [share for share, _ in shares.values()] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5], rel=1e-4)
    (_, full), (_, without) = kl_part(1), kl_part(1, kl_warmup=10**9)
    torch.testing.assert_close(shares[1][1], without + (full - without) / 4, rtol=1e-4, atol=1e-7)
    assert torch.equal(shares[4][1], full)


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_weight_above_its_limit_is_clamped_in_the_log_and_in_the_gradient(adaptive: bool) -> None:
    free = begin(**GAN, adaptive=adaptive, grad_clip=math.inf)
    weight = generator(free)["adversarial_weight"]
    gradients = {}
    for limit in (0.5 * weight, 2 * weight):
        training = begin(**GAN, adaptive=adaptive, grad_clip=math.inf, disc_max_weight=limit)
        scalars = generator(training)
        assert scalars["adversarial_weight"] == pytest.approx(min(limit, weight))
        assert scalars["clamped"] == (limit < weight)
        gradients[limit] = flat(training.vae)
    assert torch.equal(gradients[2 * weight], flat(free.vae))
    half = begin(**GAN | {"disc_weight": 0.25}, adaptive=adaptive, grad_clip=math.inf)
    generator(half)
    torch.testing.assert_close(gradients[0.5 * weight], flat(half.vae))


def test_before_its_start_the_discriminator_is_not_even_asked() -> None:
    training = begin(**GAN, disc_start=1)
    calls: list[int] = []
    training.patchgan.register_forward_hook(lambda *_: calls.append(training.step))
    assert "adversarial" not in generator(training)
    assert calls == []
    training.begin_step()
    assert "adversarial" in generator(training)
    assert calls == [2]


def test_a_run_without_a_discriminator_makes_no_step_of_it() -> None:
    with pytest.raises(ValueError, match=r"a run with a discriminator, got disc_weight=0\.0"):
        discriminator_step(begin(), images(), images())


# What a step changes.


def test_a_step_moves_every_weight() -> None:
    training = begin(**GAN)
    before = weights(training.vae), weights(training.patchgan)
    generator(training)
    discriminator_step(training, images(), images(4)[2:])
    for network, old in zip((training.vae, training.patchgan), before, strict=True):
        assert [name for name, tensor in weights(network).items() if torch.equal(tensor, old[name])] == []


def test_steps_on_one_batch_lower_its_loss() -> None:
    training = begin()
    losses = [generator(training)["loss"] for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_gradient_is_clipped_and_its_length_before_that_is_told() -> None:
    whole = generator(begin(grad_clip=math.inf))["grad_norm"]
    clipped = begin(grad_clip=whole / 10)
    assert generator(clipped)["grad_norm"] == pytest.approx(whole, rel=1e-5)
    assert flat(clipped.vae).norm().item() == pytest.approx(whole / 10, rel=1e-3)


def test_the_discriminators_gradient_is_clipped_too() -> None:
    real, fake = images(), images(4)[2:]
    whole = discriminator_step(begin(**GAN, grad_clip=math.inf), real, fake)["disc_grad_norm"]
    clipped = begin(**GAN, grad_clip=whole / 10)
    assert discriminator_step(clipped, real, fake)["disc_grad_norm"] == pytest.approx(whole, rel=1e-5)
    assert flat(clipped.patchgan).norm().item() == pytest.approx(whole / 10, rel=1e-3)


def test_the_backward_pass_adds_to_the_gradients_that_are_there() -> None:
    once, twice = begin(), begin()
    for training, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            torch.manual_seed(0)
            _, surrogate = generator_losses(training, images(), *training.model(images()))
            training.accelerator.backward(surrogate)
    torch.testing.assert_close(flat(twice.vae), 2 * flat(once.vae))


def test_a_step_calls_only_the_forwards_of_the_modules_that_are_wrapped() -> None:
    """Otherwise the gradients of several processes would never meet."""
    training = begin(**GAN)
    inside = {"model": 0, "discriminator": 0}
    calls: list[tuple[str, bool]] = []

    def watch(wrapped: nn.Module, name: str) -> None:
        wrapped.register_forward_pre_hook(lambda *_: inside.update({name: 1}))
        wrapped.register_forward_hook(lambda *_: inside.update({name: 0}))

    watch(training.model, "model")
    assert training.discriminator is not None
    watch(training.discriminator, "discriminator")
    for name, part, owner in (
        ("encoder", training.vae.encoder, "model"),
        ("decoder", training.vae.decoder, "model"),
        ("patchgan", training.patchgan, "discriminator"),
    ):
        part.register_forward_pre_hook(lambda *_, name=name, owner=owner: calls.append((name, bool(inside[owner]))))
    generator(training)
    # The frozen discriminator has no gradient of its own here.
    assert calls == [("encoder", True), ("decoder", True), ("patchgan", False)]
    calls.clear()
    discriminator_step(training, images(), images(4)[2:])
    assert calls == [("patchgan", True)] * 2


def test_averaged_weights_follow_the_weights_after_each_step() -> None:
    training = begin(ema=0.9)
    average = None
    for decay in (0.0, 2 / 11, 3 / 12, 4 / 13):
        generator(training)
        now = weights(training.vae)
        average = {name: decay * (average or now)[name] + (1 - decay) * now[name] for name in now}
    assert average is not None
    for name, parameter in training.averaged.named_parameters():
        torch.testing.assert_close(parameter, average[name])
    assert not torch.equal(training.averaged.decoder.conv_in.weight, training.vae.decoder.conv_in.weight)


def test_a_discriminators_step_does_not_average() -> None:
    training = begin(**GAN, ema=0.9)
    generator(training)
    assert training.ema is not None
    before = weights(training.ema)
    discriminator_step(training, images(), images(4)[2:])
    assert training.ema.n_averaged.item() == 1
    assert_unchanged(weights(training.ema), before)


def test_decoder_only_moves_the_decoder_and_not_one_bit_of_the_encoder() -> None:
    training = begin(trained_part="decoder", **GAN, ema=0.9, weight_decay=0.5)
    before = weights(training.vae)
    for _ in range(3):
        generator(training)
        discriminator_step(training, images(), images(4)[2:])
    for network in (training.vae, training.averaged):
        for name, tensor in weights(network).items():
            trained = name.startswith(("decoder.", "post_quant_conv."))
            assert torch.equal(tensor, before[name]) != trained, name
    without = {name for name, gradient in gradients(training.vae).items() if gradient is None}
    assert without == {name for name in before if name.startswith(("encoder.", "quant_conv."))}


def test_lpips_changes_the_decoders_gradient() -> None:
    check_lpips_reaches_the_decoder(begin)


def check_lpips_reaches_the_decoder(begin: Begin) -> None:
    pulls = []
    for options in ({}, WITH_LPIPS):
        training = begin(grad_clip=math.inf, **options)
        generator(training)
        pulls.append(flat(training.vae.decoder))
    assert relative(pulls[1], pulls[0]) > 0.1


# Isolation.


def check_a_generator_step_leaves_the_discriminators_gradients(begin: Begin) -> None:
    training = begin(**GAN)
    asked: list[bool] = []
    training.patchgan.register_forward_hook(
        lambda network, *_: asked.append(any(parameter.requires_grad for parameter in network.parameters()))
    )
    before = gradients(training.patchgan)
    assert set(before.values()) == {None}
    generator(training)
    assert_unchanged(gradients(training.patchgan), before)
    assert asked == [False]  # nothing is kept for gradients that nobody wants
    assert all(parameter.requires_grad for parameter in training.patchgan.parameters())

    for parameter in training.patchgan.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = gradients(training.patchgan)
    generator(training)
    assert_unchanged(gradients(training.patchgan), before)


def check_a_discriminator_step_leaves_the_autoencoders_gradients(begin: Begin) -> None:
    """Even on reconstructions that still have their graph."""
    training = begin(**GAN)
    reconstructions, _ = training.model(images())
    assert reconstructions.requires_grad
    before = gradients(training.vae)
    assert set(before.values()) == {None}
    discriminator_step(training, images(), reconstructions)
    assert_unchanged(gradients(training.vae), before)

    for parameter in training.vae.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = gradients(training.vae)
    discriminator_step(training, images(), training.model(images())[0])
    assert_unchanged(gradients(training.vae), before)


def check_gradients_left_over_from_elsewhere_do_not_count(begin: Begin) -> None:
    clean, littered = begin(**GAN), begin(**GAN)
    for network in (littered.vae, littered.patchgan):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)
    for training in (clean, littered):
        generator(training)
        discriminator_step(training, images(), images(4)[2:])
    assert_unchanged(weights(littered.vae), weights(clean.vae))
    assert_unchanged(weights(littered.patchgan), weights(clean.patchgan))


def check_the_discriminator_learns_to_tell_a_fixed_batch(begin: Begin) -> None:
    """Both steps in turn, with an autoencoder that stands still: its reconstructions stay the same."""
    training = begin(**GAN, lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(12):
        training.optimizer.param_groups[0]["lr"] = 0.0
        torch.manual_seed(0)
        _, reconstructions = generator_step(training, images())
        losses.append(discriminator_step(training, images(), reconstructions)["disc_loss"])
    assert losses[0] > 0.9
    assert losses[-1] < 0.1


CHECKS: list[Callable[[Begin], None]] = [
    check_a_generator_step_leaves_the_discriminators_gradients,
    check_a_discriminator_step_leaves_the_autoencoders_gradients,
    check_gradients_left_over_from_elsewhere_do_not_count,
    check_the_discriminator_learns_to_tell_a_fixed_batch,
]


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__.removeprefix("check_") for check in CHECKS])
def test_the_networks_are_isolated(check: Callable[[Begin], None]) -> None:
    check(begin)


Mistake = Callable[[Training, pytest.MonkeyPatch], None]  # made in a run before its first step


def discriminator_not_frozen(training: Training, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(steps, "frozen", lambda network: nullcontext())


def gradient_left_in_the_discriminator(training: Training, patch: pytest.MonkeyPatch) -> None:
    def backward_through_everything(logits: Tensor) -> Tensor:
        loss = adversarial_loss(logits)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return loss

    discriminator_not_frozen(training, patch)
    patch.setattr(steps, "adversarial_loss", backward_through_everything)


def reconstructions_not_detached(training: Training, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tensor, "detach", lambda self: self)


def autoencoders_gradient_not_cleared(training: Training, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training.optimizer, "zero_grad", lambda: None)


def discriminators_gradient_not_cleared(training: Training, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training.disc_optimizer, "zero_grad", lambda: None)


def discriminator_trained_on_both_losses(training: Training, patch: pytest.MonkeyPatch) -> None:
    gradient_left_in_the_discriminator(training, patch)
    discriminators_gradient_not_cleared(training, patch)


def perceptual_distance_without_gradient(training: Training, patch: pytest.MonkeyPatch) -> None:
    if training.perceptual is not None:
        patch.setattr(training, "perceptual", torch.no_grad()(training.perceptual))


MISTAKES: list[tuple[Mistake, Callable[[Begin], None]]] = [
    (discriminator_not_frozen, check_a_generator_step_leaves_the_discriminators_gradients),
    (gradient_left_in_the_discriminator, check_a_generator_step_leaves_the_discriminators_gradients),
    (reconstructions_not_detached, check_a_discriminator_step_leaves_the_autoencoders_gradients),
    (autoencoders_gradient_not_cleared, check_gradients_left_over_from_elsewhere_do_not_count),
    (discriminators_gradient_not_cleared, check_gradients_left_over_from_elsewhere_do_not_count),
    (discriminator_trained_on_both_losses, check_the_discriminator_learns_to_tell_a_fixed_batch),
    (perceptual_distance_without_gradient, check_lpips_reaches_the_decoder),
]


@pytest.mark.parametrize(("mistake", "check"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_the_check_notices(mistake: Mistake, check: Callable[[Begin], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_with_mistake(**options: Any) -> Training:
        training = begin(**options)
        mistake(training, monkeypatch)
        return training

    with pytest.raises(AssertionError):
        check(begin_with_mistake)


def test_alone_the_discriminator_learns_to_tell_a_fixed_batch_by_either_loss() -> None:
    for kind in ("hinge", "vanilla"):
        training = begin(**GAN, disc_loss=kind, lr=1e-2)
        with torch.no_grad():
            reconstructions, _ = training.model(images())
        losses = [discriminator_step(training, images(), reconstructions) for _ in range(20)]
        assert losses[-1]["disc_loss"] < 0.1
        assert losses[-1]["logits_real"] > 1 > -1 > losses[-1]["logits_fake"]


# Accumulated gradients.


@pytest.fixture
def posterior_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise: a batch and its parts would draw other samples."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.mark.usefixtures("posterior_mode")
@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "pixel": "l1", "kl_weight": 1e-2}])
def test_two_parts_of_four_have_the_gradient_of_one_batch_of_eight(options: dict[str, Any]) -> None:
    found = []
    for accumulate in (1, 2):
        training = in_double(begin(batch_size=8 // accumulate, accumulate=accumulate, grad_clip=math.inf, **options))
        scalars = generator(training, images(8).double())
        found.append((flat(training.vae), scalars))
    (whole, scalars), (parts, of_parts) = found
    assert relative(parts, whole) < 1e-10
    for name, value in scalars.items():
        # PSNR is computed in float32.
        assert of_parts[name] == pytest.approx(value, rel=1e-5 if name == "psnr" else 1e-10), name


def test_the_discriminators_gradient_is_the_mean_of_its_parts() -> None:
    """Each part has batch norms of its own, so that it is not the gradient of the whole batch."""
    real, fake = images(8).double(), images(16)[8:].double()

    def gradient(accumulate: int, part: slice) -> Tensor:
        training = in_double(begin(**GAN, accumulate=accumulate, grad_clip=math.inf))
        discriminator_step(training, real[part], fake[part])
        return flat(training.patchgan)

    accumulated = gradient(2, slice(0, 8))
    halves = gradient(1, slice(0, 4)) + gradient(1, slice(4, 8))
    assert relative(accumulated, halves / 2) < 1e-10
    assert relative(accumulated, gradient(1, slice(0, 8))) > 1e-3


# Precision.


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_weights_gradients_averages_and_kl_stay_in_float32(precision: Any) -> None:
    training = begin(**ALL, mixed_precision=precision)
    reconstruction, posterior = training.model(images())
    assert reconstruction.dtype == posterior.mean.dtype == torch.float32
    generator(training)
    discriminator_step(training, images(), reconstruction)
    for network in (training.vae, training.patchgan):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert {parameter.grad.dtype for parameter in network.parameters() if parameter.grad is not None} == {
            torch.float32
        }
    for optimizer in (training.optimizer, training.disc_optimizer):
        assert optimizer is not None
        moments = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
        assert {value.dtype for value in moments} == {torch.float32}
    assert {parameter.dtype for parameter in training.averaged.parameters()} == {torch.float32}


def test_bfloat16_changes_the_result_by_rounding_only() -> None:
    exact, rounded = (generator(begin(**ALL, mixed_precision=precision)) for precision in ("no", "bf16"))
    for name in ("loss", "pixel", "perceptual"):
        assert rounded[name] != exact[name]
        assert rounded[name] == pytest.approx(exact[name], rel=0.02)


def moved(in_16_bits: bool) -> float:
    """The fraction of the weights that 100 steps at CompVis' learning rate for one image change."""
    training = begin(mixed_precision="bf16", lr=4.5e-6, schedule="constant", weight_decay=0.0, steps=100)
    if in_16_bits:
        training.vae.bfloat16()
    before = weights(training.vae)
    for _ in range(100):
        generator(training, images(1))
        training.begin_step()
    changed = [(tensor != before[name]).flatten() for name, tensor in weights(training.vae).items()]
    return torch.cat(changed).float().mean().item()


def test_small_updates_are_not_rounded_away_as_they_are_from_weights_of_16_bits() -> None:
    assert moved(in_16_bits=False) > 0.99
    assert moved(in_16_bits=True) < 0.5


# What is not finite.


def poison_images(training: Training, batch: Tensor) -> None:
    batch[0, 0, 0, 0] = float("nan")


def poison_pixels(training: Training, batch: Tensor) -> None:
    batch[0, 0, 0, 0] = float("inf")


def poison_perceptual(training: Training, batch: Tensor) -> None:
    training.perceptual = lambda a, b: (a - b).flatten(1).sum(1) / 0.0  # type: ignore[assignment]


def poison_discriminator(training: Training, batch: Tensor) -> None:
    with torch.no_grad():
        training.patchgan.main[-1].bias.fill_(float("nan"))


def poison_gradient(training: Training, batch: Tensor) -> None:
    training.vae.decoder.conv_out.bias.register_hook(lambda gradient: gradient * float("inf"))


POISONS: list[tuple[Callable[[Training, Tensor], None], str]] = [
    (poison_images, "loss is nan and nll is nan and pixel is nan"),
    (poison_pixels, "(loss|nll|pixel) is (inf|nan)"),
    (poison_perceptual, "perceptual is (inf|-inf|nan)"),
    (poison_discriminator, "adversarial is nan"),
    (poison_gradient, "^the gradient's norm is inf$"),
]


@pytest.mark.parametrize(("poison", "message"), POISONS, ids=[poison.__name__ for poison, _ in POISONS])
def test_a_term_that_is_not_finite_is_named_and_stops_before_anything_changes(
    poison: Callable[[Training, Tensor], None], message: str
) -> None:
    training = begin(**ALL, grad_clip=1.0)
    generator(training)
    assert training.ema is not None
    before, average = weights(training.vae), weights(training.ema)
    moments = {f"{n}": state["exp_avg"].clone() for n, state in enumerate(training.optimizer.state.values())}
    batch = images()
    poison(training, batch)
    with pytest.raises(FloatingPointError, match=message):
        generator(training, batch)
    assert_unchanged(weights(training.vae), before)
    assert_unchanged(weights(training.ema), average)
    assert training.ema.n_averaged.item() == 1
    now = {f"{n}": state["exp_avg"] for n, state in enumerate(training.optimizer.state.values())}
    assert_unchanged(now, moments)


def test_after_a_refused_step_the_next_one_is_as_if_it_had_not_been_tried() -> None:
    clean, tried = begin(), begin()
    with pytest.raises(FloatingPointError):
        generator(tried, images() * float("nan"))
    for training in (clean, tried):
        generator(training)
    assert_unchanged(weights(tried.vae), weights(clean.vae))


def test_one_bad_part_refuses_the_whole_step() -> None:
    training = begin(accumulate=2)
    before = weights(training.vae)
    batch = images(4)
    batch[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan"):
        generator(training, batch)
    assert_unchanged(weights(training.vae), before)


@pytest.mark.parametrize(
    ("real", "message"), [(float("nan"), "disc_loss is nan and logits_real is nan"), (None, "the gradient's norm")]
)
def test_a_discriminators_step_that_is_not_finite_changes_no_weight(real: float | None, message: str) -> None:
    training = begin(**GAN)
    before = weights(training.patchgan)
    batch = images()
    if real is None:
        training.patchgan.main[0].bias.register_hook(lambda gradient: gradient * float("nan"))
    else:
        batch[0, 0, 0, 0] = real
    with pytest.raises(FloatingPointError, match=message):
        discriminator_step(training, batch, images(4)[2:])
    assert_unchanged(weights(training.patchgan), before)


def test_equal_images_have_an_infinite_psnr_and_that_is_no_error() -> None:
    training = begin()
    with torch.no_grad():
        training.vae.decoder.conv_out.weight.zero_()
        training.vae.decoder.conv_out.bias.zero_()
    scalars = generator(training, torch.zeros(2, 3, 16, 16))
    assert scalars["psnr"] == math.inf
    assert scalars["pixel"] == 0.0
