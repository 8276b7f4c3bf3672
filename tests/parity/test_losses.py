"""The training steps give the same scalars, adaptive weight and gradients as CompVis' loss, fully differentiated.

As in `test_mutations.py`, common mistakes are made on purpose: the comparison must detect each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klvae_edu.losses import adaptive_weight, discriminator_loss, kl_loss, last_layer_gradients, reconstruction_loss
from klvae_edu.perceptual import LPIPS
from klvae_edu.training import setup, steps
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import TrainableDiscriminator, Training, set_up, start_accelerator
from tests.parity.contperceptual import LPIPSWithDiscriminator

SIZE, VALUES, BATCH = 16, 3 * 16 * 16, 2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@cache
def lpips(dtype: torch.dtype) -> LPIPS:
    return LPIPS("untrained").to(dtype)


@pytest.fixture(autouse=True)
def one_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share one VGG16 among all runs; it is never trained."""
    monkeypatch.setattr(setup, "LPIPS", lambda _: lpips(torch.float32))


def begin(dtype: torch.dtype = torch.float64, clamped: bool = False, **options: Any) -> Training:
    """Begin a run. `clamped`: the discriminator's last layer is almost 0, so its gradients are, too."""
    usual: dict[str, Any] = {"size": SIZE, "batch_size": BATCH, "device": "cpu", "grad_clip": math.inf}
    usual |= {"pixel": "l1", "reduction": "sum", "kl_weight": 1e-3, "lpips": "untrained"}
    usual |= {"disc_weight": 0.5, "disc_channels": 8, "disc_layers": 2}
    config = TrainingConfig(**usual | options)
    training = set_up(config, start_accelerator(config))
    if training.discriminator is not None and clamped:
        with torch.no_grad():
            training.patchgan.main[-1].weight.mul_(1e-5)
    for network in (training.model, training.discriminator):
        if network is not None:
            network.to(dtype)
    if training.perceptual is not None:
        training.perceptual = lpips(dtype)
    training.begin_step()
    return training


def reference(training: Training) -> LPIPSWithDiscriminator:
    """Make CompVis' loss with the weights of this run."""
    config = training.config
    return LPIPSWithDiscriminator(
        deepcopy(training.patchgan) if training.discriminator is not None else None,
        training.perceptual,
        kl_weight=config.kl_weight,
        perceptual_weight=config.perceptual_weight,
        disc_weight=config.disc_weight,
        hinge=config.disc_loss == "hinge",
        squared=config.pixel == "l2",
    )


def batch(parts: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(parts * BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype) - 1


def flat(gradients: list[Tensor | None]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference divided by the norm of `expected`; infinity for NaN."""
    value = float((found.double() - expected.double()).norm() / expected.double().norm())
    return value if math.isfinite(value) else math.inf


def generator_difference(training: Training) -> dict[str, float]:
    """Return the relative difference of `generator_step` from the reference: for each scalar, and for the gradient."""
    config, dtype = training.config, next(training.vae.parameters()).dtype
    images = batch(config.accumulate, dtype)
    theirs, vae = reference(training), deepcopy(training.vae)
    torch.manual_seed(0)
    parts = [theirs.generator(vae, part) for part in images.chunk(config.accumulate)]
    torch.manual_seed(0)
    found, _ = steps.generator_step(training, images)

    scale = VALUES if config.reduction == "mean" else 1
    expected = {name: float(torch.stack([log[name] for log, _ in parts]).mean()) for name in parts[0][0]}
    expected = {name: value if name == "adversarial" else value / scale for name, value in expected.items()}
    difference = {name: abs(found[name] / value - 1) for name, value in expected.items()}
    gradient = torch.stack([flat(gradients) for _, gradients in parts]).mean(0) / scale
    difference["gradient"] = distance(flat([parameter.grad for parameter in training.vae.parameters()]), gradient)
    if config.disc_weight:
        limit = 1e4 * config.disc_weight / scale
        assert found["clamped"] == (expected["adversarial_weight"] == pytest.approx(limit))
    return difference


def discriminator_difference(training: Training) -> dict[str, float]:
    config, dtype = training.config, next(training.vae.parameters()).dtype
    images, fakes = batch(config.accumulate, dtype), 0.5 * batch(config.accumulate, dtype, seed=2)
    theirs = reference(training)
    pairs = zip(images.chunk(config.accumulate), fakes.chunk(config.accumulate), strict=True)
    parts = [theirs.discriminator_step(real, fake) for real, fake in pairs]
    found = steps.discriminator_step(training, images, fakes)
    gradient = torch.stack([flat(gradients) for _, gradients in parts]).mean(0)
    return {
        "disc_loss": abs(found["disc_loss"] / float(torch.stack([loss for loss, _ in parts]).mean()) - 1),
        "gradient": distance(flat([parameter.grad for parameter in training.patchgan.parameters()]), gradient),
    }


both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@both_precisions
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("clamped", [False, True], ids=["unclamped", "clamped"])
@pytest.mark.parametrize("perceptual", [0.0, 0.7], ids=["without LPIPS", "with LPIPS"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_the_autoencoder_is_compvis(
    dtype: torch.dtype, reduction: Any, clamped: bool, perceptual: float, accumulate: int
) -> None:
    training = begin(dtype, clamped, reduction=reduction, perceptual_weight=perceptual, accumulate=accumulate)
    difference = generator_difference(training)
    names = {"loss", "nll", "pixel", "kl", "adversarial", "adversarial_weight", "gradient"}
    assert difference.keys() == names | ({"perceptual"} if perceptual else set())
    # The mean of the logits is much smaller than the logits.
    rounding = {"adversarial": 10.0}
    for name, value in difference.items():
        assert value < TOLERANCE[dtype] * rounding.get(name, 1.0), name


@both_precisions
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_so_it_is_without_a_discriminator_and_for_either_pixel_loss(
    dtype: torch.dtype, reduction: Any, pixel: Any
) -> None:
    difference = generator_difference(begin(dtype, reduction=reduction, pixel=pixel, disc_weight=0.0))
    assert difference.keys() == {"loss", "nll", "pixel", "kl", "gradient"}
    assert max(difference.values()) < TOLERANCE[dtype]


def test_with_the_vanilla_discriminator_the_autoencoders_loss_is_the_same() -> None:
    assert max(generator_difference(begin(disc_loss="vanilla")).values()) < 1e-10


@both_precisions
@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_the_discriminator_is_compvis(dtype: torch.dtype, kind: Any, accumulate: int) -> None:
    difference = discriminator_difference(begin(dtype, disc_loss=kind, accumulate=accumulate))
    assert max(difference.values()) < TOLERANCE[dtype]


# Common mistakes, each in one function that the steps call.

Patch = tuple[Any, str, Any]


def no_clamp(nll: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    return nll.norm() / (adversarial.norm() + 1e-4)


def no_epsilon(nll: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    return (nll.norm() / adversarial.norm()).clamp(0, limit)


def upside_down(nll: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    return adaptive_weight(adversarial, nll, limit)


def limit_of_the_sum_under_the_mean(nll: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    return adaptive_weight(nll, adversarial)


def largest_values(nll: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    """The largest entry instead of the norm."""
    return adaptive_weight(nll.abs().max(), adversarial.abs().max(), limit)


def both_of_the_first(reconstruction: Tensor, weight: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    return last_layer_gradients(reconstruction, weight, [gradients[0], gradients[0]])


def at_the_reconstruction(reconstruction: Tensor, weight: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """The gradient at the reconstruction, not at the last layer."""
    return gradients


def distance_counted_once(*args: Any, **options: Any) -> dict[str, Tensor]:
    reconstruction, images, found = args
    return reconstruction_loss(reconstruction, images, None if found is None else found / VALUES, **options)


def summed_over_the_batch(*args: Any, **options: Any) -> dict[str, Tensor]:
    return {name: BATCH * term for name, term in reconstruction_loss(*args, **options).items()}


def kl_of_its_own_mean(posterior: Any, target: Tensor, reduction: Any) -> Tensor:
    return kl_loss(posterior, target) / posterior.mean[0].numel()


def kl_never_reduced(posterior: Any, target: Tensor, reduction: Any) -> Tensor:
    return kl_loss(posterior, target)


def adversarial_of_probabilities(logits: Tensor) -> Tensor:
    """The generator's loss of the original GAN, which CompVis does not use for "vanilla" either."""
    return nn.functional.softplus(-logits).mean()


def adversarial_upside_down(logits: Tensor) -> Tensor:
    return logits.mean()


GENERATOR_MISTAKES: list[tuple[Callable[..., Any], str, dict[str, Any]]] = [
    (no_clamp, "adaptive_weight", {"clamped": True}),
    (no_epsilon, "adaptive_weight", {}),
    (upside_down, "adaptive_weight", {}),
    (limit_of_the_sum_under_the_mean, "adaptive_weight", {"clamped": True, "reduction": "mean"}),
    (largest_values, "adaptive_weight", {}),
    (both_of_the_first, "last_layer_gradients", {}),
    (at_the_reconstruction, "last_layer_gradients", {}),
    (distance_counted_once, "reconstruction_loss", {"perceptual_weight": 0.7}),
    (summed_over_the_batch, "reconstruction_loss", {}),
    (kl_of_its_own_mean, "kl_loss", {}),
    (kl_never_reduced, "kl_loss", {"reduction": "mean"}),
    (adversarial_of_probabilities, "adversarial_loss", {"disc_loss": "vanilla"}),
    (adversarial_upside_down, "adversarial_loss", {}),
]


@pytest.mark.parametrize(
    ("mistake", "name", "options"), GENERATOR_MISTAKES, ids=[mistake.__name__ for mistake, *_ in GENERATOR_MISTAKES]
)
def test_parity_of_the_autoencoder_notices(
    mistake: Callable[..., Any], name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, name, mistake)
    assert generator_difference(begin(**options))["gradient"] > 1e-7


def test_parity_notices_a_distance_without_a_gradient() -> None:
    training = begin(perceptual_weight=0.7)
    training.perceptual = torch.no_grad()(lpips(torch.float64))  # type: ignore[assignment]
    theirs = begin(perceptual_weight=0.7)
    torch.manual_seed(0)
    steps.generator_step(training, batch(1, torch.float64))
    difference = generator_difference(theirs)
    assert difference["gradient"] < 1e-10
    found, expected = (flat([parameter.grad for parameter in t.vae.parameters()]) for t in (training, theirs))
    assert distance(found, expected) > 0.01


def test_parity_notices_a_weight_of_the_wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    training = begin()
    monkeypatch.setattr(
        steps,
        "last_layer_gradients",
        lambda reconstruction, _, gradients: last_layer_gradients(
            reconstruction, training.vae.decoder.conv_in.weight, gradients
        ),
    )
    assert generator_difference(training)["gradient"] > 1e-7


def without_the_half(*args: Any) -> dict[str, Tensor]:
    terms = discriminator_loss(*args)
    return terms | {"disc_loss": 2 * terms["disc_loss"]}


def exchanged(real: Tensor, fake: Tensor, kind: Any) -> dict[str, Tensor]:
    return discriminator_loss(fake, real, kind)


def the_other_kind(real: Tensor, fake: Tensor, kind: Any) -> dict[str, Tensor]:
    return discriminator_loss(real, fake, "vanilla" if kind == "hinge" else "hinge")


def one_batch_norm(self: TrainableDiscriminator, images: Tensor, reconstructions: Tensor) -> Any:
    return self.discriminator(torch.cat([images, reconstructions])).chunk(2)


DISCRIMINATOR_MISTAKES: list[Patch] = [
    (steps, "discriminator_loss", without_the_half),
    (steps, "discriminator_loss", exchanged),
    (steps, "discriminator_loss", the_other_kind),
    (TrainableDiscriminator, "forward", one_batch_norm),
]


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
@pytest.mark.parametrize(
    "mistake", DISCRIMINATOR_MISTAKES, ids=[mistake.__name__ for *_, mistake in DISCRIMINATOR_MISTAKES]
)
def test_parity_of_the_discriminator_notices(mistake: Patch, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*mistake)
    assert discriminator_difference(begin(disc_loss=kind))["gradient"] > 1e-7
