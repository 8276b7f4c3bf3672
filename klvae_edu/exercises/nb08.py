"""The exercises of notebook 08, the training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.exercises.exercise import Blank, Exercise, Mistakes, OpenGap, call
from klvae_edu.exercises.judges.functions import judge_function, name_error, probe, same
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.losses import adaptive_weight, adversarial_loss, generator_loss, kl_loss, pixel_loss
from klvae_edu.training import checkpoint, setup, steps, trainer

NOTEBOOK = "08_training_loop"

# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with names that the notebook knows, because `solution` shows them and readers paste them.


def generator_step(
    vae: AutoencoderKL,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    disc_weight: float = 0.5,
    kl_weight: float = 1e-6,
) -> torch.Tensor:
    """One step of the autoencoder on images (B, 3, H, W). Returns their reconstruction, without a graph."""
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    nll, kl = pixel_loss(reconstruction, images, "l2"), kl_loss(posterior, images)
    discriminator.requires_grad_(False)
    adversarial = adversarial_loss(discriminator(reconstruction))
    discriminator.requires_grad_(True)
    last_layer = vae.decoder.conv_out.weight
    (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    weight = disc_weight * adaptive_weight(nll_gradient, adversarial_gradient)
    optimizer.zero_grad()
    (nll + kl_weight * kl + weight * adversarial).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return reconstruction.detach()


def surrogate(
    reconstruction: torch.Tensor, losses: Sequence[Callable[[torch.Tensor], torch.Tensor]], weights: Sequence[float]
) -> torch.Tensor:
    """A scalar, linear in the reconstruction, whose gradient is that of the losses' weighted sum."""
    leaf = reconstruction.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    for loss, weight in zip(losses, weights, strict=True):
        gradient += weight * torch.autograd.grad(loss(leaf), leaf)[0]
    return (reconstruction * gradient).sum()


def training_step(
    step: int,
    images: torch.Tensor,
    generator_step: Callable[..., torch.Tensor],
    discriminator_step: Callable[..., object],
    disc_start: int,
    disc_warmup: int,
) -> torch.Tensor:
    """Step 1, 2, … on one batch. Returns the reconstructions that generator_step(images, adversarial) gives."""
    adversarial, trains_discriminator = step > disc_start, step > disc_start - disc_warmup
    reconstructions = generator_step(images, adversarial)
    if trains_discriminator:
        discriminator_step(images, reconstructions)
    return reconstructions


def ema_update(
    averages: list[torch.Tensor], weights: list[torch.Tensor], n: int, decay: float = 0.9999
) -> list[torch.Tensor]:
    """Update n = 1, 2, …: move each average, in place, towards its weight. Returns the averages."""
    d = min(decay, (1 + n) / (10 + n))
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            average.mul_(d).add_(weight, alpha=1 - d)
    return averages


@dataclass
class Run:
    """A training run between two steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module  # the model with averaged weights
    step: int = 0


def snapshot(run: Run) -> dict[str, object]:
    """All that `restore` needs, under the keys "model", "optimizer", "average", "step" and "random"."""
    return {
        "model": copy.deepcopy(run.model.state_dict()),
        "optimizer": copy.deepcopy(run.optimizer.state_dict()),
        "average": copy.deepcopy(run.average.state_dict()),
        "step": run.step,
        "random": torch.get_rng_state(),
    }


def restore(run: Run, kept: dict[str, Any]) -> None:
    """Put the run back into the state that `snapshot` found; what was not kept stays as it is."""
    for name in ("model", "optimizer", "average"):
        if name in kept:
            getattr(run, name).load_state_dict(copy.deepcopy(kept[name]))
    run.step = kept.get("step", run.step)
    if "random" in kept:
        torch.set_rng_state(kept["random"])


_Raised = Sequence[tuple[str, str]]  # a part of what Python says of an exception, and what it means here


def _in_words(complaint: str | None, raised: _Raised) -> str | None:
    """The complaint; where it quotes an exception that has a meaning here, that meaning."""
    if complaint is None or not complaint.startswith("it raised"):
        return complaint
    return next((message for part, message in raised if part in complaint), complaint)


# 08.1


def _l2(reconstruction: Tensor, images: Tensor) -> Tensor:
    return pixel_loss(reconstruction, images, "l2")


def _stepped(
    *,
    draw: Callable[[DiagonalGaussianDistribution], Tensor] = lambda posterior: posterior.sample(),
    nll: Callable[[Tensor, Tensor], Tensor] = _l2,
    kl: Callable[[DiagonalGaussianDistribution], Tensor] = lambda posterior: posterior.kl().mean(),
    adversarial: Callable[[Tensor], Tensor] = adversarial_loss,
    shown: Callable[[Tensor], Tensor] = lambda reconstruction: reconstruction,
    layer: Callable[[AutoencoderKL], Tensor] = lambda vae: vae.decoder.conv_out.weight,
    weight: Callable[..., Any] = lambda a, b, share: share * adaptive_weight(a, b),
    weights: Callable[[float, float], tuple[float, float, float]] = lambda kl_weight, w: (1.0, kl_weight, w),
    clears: bool = True,
    updates: bool = True,
    freezes: bool = True,
    frees: bool = True,
    retains: bool = True,
    create_graph: bool = False,
    of_losses: bool = False,
    mode: bool = True,
    detaches: bool = True,
    clip: float = 0.0,
    ends_frozen: bool = False,
    ends_in_eval: bool = False,
) -> Callable[..., Tensor]:
    """The finished step with one of its parts made otherwise."""

    def step(
        vae: AutoencoderKL,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        disc_weight: float = 0.5,
        kl_weight: float = 1e-6,
    ) -> Tensor:
        posterior = vae.encode(images).latent_dist
        reconstruction = vae.decode(draw(posterior)).sample
        discriminator.requires_grad_(not freezes).train(mode)
        terms = [nll(reconstruction, images), kl(posterior), adversarial(discriminator(shown(reconstruction)))]
        discriminator.requires_grad_(frees or not freezes)
        gradients = [
            torch.autograd.grad(term, layer(vae), retain_graph=retains, create_graph=create_graph)[0]
            for term in (terms[0], terms[2])
        ]
        nll_gradient, adversarial_gradient = (terms[0], terms[2]) if of_losses else gradients
        factors = weights(kl_weight, weight(nll_gradient, adversarial_gradient, disc_weight))
        if clears:
            optimizer.zero_grad()
        total = sum(factor * term for factor, term in zip(factors, terms, strict=True))
        assert isinstance(total, Tensor)
        total.backward()  # type: ignore[no-untyped-call]
        if clip:
            nn.utils.clip_grad_norm_(vae.parameters(), clip)
        if updates:
            optimizer.step()
        vae.requires_grad_(not ends_frozen).train(not ends_in_eval)
        return reconstruction.detach() if detaches else reconstruction

    return step


_SUMMED = "each term is a sum over an image's values, averaged over the batch"
_JUDGED = "the discriminator must judge the reconstruction with its graph: no detach, no no_grad before the loss"
_MOVING_MISTAKES = (
    ("old gradients are not cleared: optimizer.zero_grad() belongs before backward()", _stepped(clears=False)),
    (
        "the autoencoder does not change: zero_grad(), backward() and optimizer.step() must come in this order",
        _stepped(updates=False),
    ),
    (
        "the mean is decoded: in training the decoder gets a sample of the posterior",
        _stepped(draw=lambda posterior: posterior.mode()),
    ),
    (_JUDGED, _stepped(shown=lambda reconstruction: reconstruction.detach())),
    (
        "the sign of the adversarial term: the autoencoder wants high logits, so it is minus their mean",
        _stepped(adversarial=lambda logits: logits.mean()),
    ),
    *(
        (
            "this is the discriminator's loss: the autoencoder's is minus the mean of the logits",
            _stepped(adversarial=loss),
        )
        for loss in (lambda logits: (1 + logits).relu().mean(), lambda logits: (1 + logits).relu().mean() / 2)
    ),
    (
        "the logits have a hinge: it is the discriminator's, the autoencoder's loss is minus their mean",
        _stepped(adversarial=lambda logits: (1 - logits).relu().mean()),
    ),
    (
        "this is -log sigmoid of the logits, the vanilla loss: the autoencoder's here is minus their mean",
        _stepped(adversarial=lambda logits: F.softplus(-logits).mean()),
    ),
    (
        "nothing of the adversarial term reaches the autoencoder: is it in the loss, of the reconstruction's logits?",
        _stepped(weights=lambda kl_weight, w: (1.0, kl_weight, 0.0)),
    ),
    (
        "the encoder learns by the KL only: decode the posterior's sample as it is, without detach or no_grad",
        _stepped(draw=lambda posterior: posterior.sample().detach()),
    ),
    (
        "the adaptive weight multiplies the pixel loss: it belongs to the adversarial term",
        _stepped(weights=lambda kl_weight, w: (w, kl_weight, 1.0)),
    ),
    *(
        (
            "the adaptive weight multiplies other terms, too: it belongs to the adversarial term alone",
            _stepped(weights=weights),
        )
        for weights in (lambda kl_weight, w: (w, kl_weight, w), lambda kl_weight, w: (w, w * kl_weight, w))
    ),
    ("the logits are summed: take their mean", _stepped(adversarial=lambda logits: -logits.sum())),
    *(
        ("the gradients are clipped: that is not asked for, and changes the step", _stepped(clip=norm))
        for norm in (0.5, 1.0, 5.0)
    ),
    *(
        (
            "the adaptive weight is made without 1e-4 below the line: take adaptive_weight, imported above",
            _stepped(weight=lambda a, b, share, eps=eps: share * (a.norm() / (b.norm() + eps)).clamp(0, 1e4)),
        )
        for eps in (0.0, 1e-8, 1e-6)
    ),
    *(
        (
            "the adaptive weight has no limit: adaptive_weight, imported above, clamps it to 1e4",
            _stepped(weight=lambda a, b, share, eps=eps: share * a.norm() / (b.norm() + eps)),
        )
        for eps in (1e-4, 0.0)
    ),
    (
        "the adaptive weight is missing, or cut off at disc_weight: its third argument is a limit, leave it out",
        _stepped(weight=lambda a, b, share: share),
    ),
    (
        "disc_weight is missing: it multiplies the adaptive weight",
        _stepped(weight=lambda a, b, share: adaptive_weight(a, b)),
    ),
    (
        "disc_weight and the adaptive weight are added: multiply them",
        _stepped(weight=lambda a, b, share: share + adaptive_weight(a, b)),
    ),
    (
        "disc_weight is a fixed number: take the argument",
        _stepped(weight=lambda a, b, share: 0.5 * adaptive_weight(a, b)),
    ),
    (
        "a pass back frees the graph that backward() needs: retain_graph=True in both calls of torch.autograd.grad",
        _stepped(retains=False),
    ),
    (
        "the adaptive weight is upside down: the nll's gradient comes first",
        _stepped(weight=lambda a, b, share: share * adaptive_weight(b, a)),
    ),
    (
        "the adaptive weight is a ratio of the losses: it takes their gradients, from torch.autograd.grad",
        _stepped(of_losses=True),
    ),
    (
        "the adaptive weight is cut off at disc_weight: its third argument is a limit, leave it out",
        _stepped(weight=lambda a, b, share: share * adaptive_weight(a, b, share)),
    ),
    *(
        (
            "a gradient runs through the adaptive weight: it is a number, detach it",
            _stepped(
                weight=lambda a, b, share, limit=limit: share * (a.norm() / (b.norm() + 1e-4)).clamp(0, limit),
                create_graph=True,
            ),
        )
        for limit in (1e4, float("inf"))
    ),
    (
        "the gradients are taken at another layer: the last one is vae.decoder.conv_out",
        _stepped(layer=lambda vae: vae.decoder.conv_in.weight),
    ),
    (
        "the gradients are taken at the last layer's bias: take its weight",
        _stepped(layer=lambda vae: vae.decoder.get_parameter("conv_out.bias")),
    ),
    (
        "the KL term is missing, or has a fixed weight such as 1e-6: multiply it by the argument kl_weight",
        _stepped(weights=lambda kl_weight, w: (1.0, 0.0, w)),
    ),
    ("kl_weight is missing on the KL term", _stepped(weights=lambda kl_weight, w: (1.0, 1.0, w))),
    (
        f"the KL is summed over the batch: {_SUMMED}",
        _stepped(kl=lambda posterior: posterior.kl().sum()),
    ),
    (
        f"the KL is averaged over the latent's values: {_SUMMED}",
        _stepped(kl=lambda posterior: posterior.kl().mean() / posterior.mean[0].numel()),
    ),
    ("the pixel term is missing", _stepped(weights=lambda kl_weight, w: (0.0, kl_weight, w))),
    (
        f"the pixel loss is a mean over the values, the KL a sum: {_SUMMED}",
        _stepped(nll=lambda reconstruction, images: _l2(reconstruction, images) / images[0].numel()),
    ),
    ("the pixel loss is L1: L2 is asked for", _stepped(nll=pixel_loss)),
    (
        "the discriminator judges in eval mode: it is in train mode during training",
        _stepped(mode=False),
    ),
)
_LEFT_BEHIND = (
    (
        "the step is right, but it leaves gradients in the discriminator: freeze its weights (requires_grad_(False)) "
        "while it judges, or its own next step may use them",
        _stepped(freezes=False),
    ),
    (
        "the step is right, but the discriminator stays frozen: requires_grad_(True) after it has judged",
        _stepped(frees=False),
    ),
    (
        "the step is right, but the reconstruction comes back with its graph, and with it all activations: detach it",
        _stepped(detaches=False),
    ),
    (
        "the step is right, but the autoencoder stays frozen, and its next step would fail: leave its requires_grad",
        _stepped(ends_frozen=True),
    ),
    (
        "the step is right, but a network is left in eval mode: both train, so leave both in train mode",
        _stepped(ends_in_eval=True),
    ),
)
GENERATOR_MISTAKES = (*_MOVING_MISTAKES, *_LEFT_BEHIND)
_STEP_RAISED = (
    ("'DecoderOutput'", "vae.decode(…) gives an object with the images in it: take its .sample"),
    ("'AutoencoderKLOutput'", "vae.encode(…) gives an object with the posterior in it: take its .latent_dist"),
    ("only for scalar outputs", "a loss must be a number: take the mean of the logits"),
    ("'NoneType' object has no attribute 'norm'", "a .grad is empty before backward(): use torch.autograd.grad"),
    ("'tuple' object has no attribute 'norm'", "torch.autograd.grad gives a tuple of gradients: take its [0]"),
    ("'Conv2d'", "gradients are with respect to tensors: take the convolution's .weight"),
    ("clamp()", "adaptive_weight takes two gradients and nothing else: torch.autograd.grad is asked at the last layer"),
)


def _networks(seed: int) -> tuple[AutoencoderKL, NLayerDiscriminator, Tensor]:
    """Small ones in float64, with weights large enough for every term to count, and a batch of images.

    The second discriminator's last weights are so small that the adaptive weight is at its limit, the third one's so
    small that the 1e-4 in it counts.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=2).double()
    discriminator = NLayerDiscriminator(3, 4, 1).double()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(20)
        discriminator.main[-1].get_parameter("weight").mul_((1.0, 1e-6, 1e-2)[seed])
    return vae, discriminator, 2 * torch.rand(2, 3, 8, 8, dtype=torch.float64) - 1


def _stepping(step: Callable[..., Any]) -> Callable[[int, float, float], tuple[Tensor, Tensor]]:
    """Make a function that returns a step's result and the change of the weights. Gradients are not empty before it."""

    def stepped(seed: int, disc_weight: float, kl_weight: float) -> tuple[Tensor, Tensor]:
        vae, discriminator, images = _networks(seed)
        for parameter in vae.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        before = vae.get_parameters()
        optimizer = torch.optim.SGD(vae.parameters(), lr=1e-4)
        torch.manual_seed(seed)  # for the posterior's sample
        reconstruction = call(step, vae, discriminator, optimizer, images, disc_weight, kl_weight)
        change = (before - vae.get_parameters()) * 1e4
        return reconstruction.detach() if isinstance(reconstruction, Tensor) else reconstruction, change

    return stepped


_judge_the_move = judge_function(
    cache(_stepping(generator_step)),
    [(0, 0.5, 0.1), (1, 0.8, 0.3), (2, 0.5, 0.1)],
    [(message, cache(_stepping(code))) for message, code in _MOVING_MISTAKES],
    inputs=("seed", "disc_weight", "kl_weight"),
    outputs=("the reconstruction", "the change of the autoencoder's weights"),
)


def _judge_generator_step(attempt: Any) -> str | None:
    if not callable(attempt):
        return f"expected the function itself, got an object of type {type(attempt).__name__}"
    complaint = _in_words(_judge_the_move(_stepping(attempt)), _STEP_RAISED)
    if complaint:
        return complaint.split(", for seed = ")[0]
    vae, discriminator, images = _networks(0)
    reconstruction = attempt(vae, discriminator, torch.optim.SGD(vae.parameters(), lr=1e-4), images, 0.5, 0.1)
    left = [parameter.grad for parameter in discriminator.parameters() if parameter.grad is not None]
    faults = (
        any(bool(gradient.any()) for gradient in left),
        not all(parameter.requires_grad for parameter in discriminator.parameters()),
        reconstruction.requires_grad,
        not all(parameter.requires_grad for parameter in vae.parameters()),
        not (vae.training and discriminator.training),
    )
    return _LEFT_BEHIND[faults.index(True)][0] if any(faults) else None


# 08.2

_Losses = Sequence[Callable[[Tensor], Tensor]]


def _gradients(leaf: Tensor, losses: _Losses, weights: Sequence[float], create_graph: bool = False) -> list[Tensor]:
    pairs = zip(losses, weights, strict=True)
    return [w * torch.autograd.grad(loss(leaf), leaf, create_graph=create_graph)[0] for loss, w in pairs]


def _total(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([*tensors]).sum(0)


def _leaf(reconstruction: Tensor) -> Tensor:
    return reconstruction.detach().requires_grad_()


_LINEAR = "the surrogate is reconstruction · gradient, summed over everything"
SURROGATE_MISTAKES = (
    (
        f"no gradient reaches the autoencoder: {_LINEAR}, with the reconstruction as it came, not the detached one",
        lambda r, losses, weights: (_leaf(r) * _total(_gradients(_leaf(r), losses, weights))).sum(),
    ),
    (
        "the losses are taken where no gradient is kept: the leaf is reconstruction.detach().requires_grad_()",
        lambda r, losses, weights: (r * _total(_gradients(r.detach(), losses, weights))).sum(),
    ),
    (
        "the product is averaged: sum it, or the gradient is too small",
        lambda r, losses, weights: (r * _total(_gradients(_leaf(r), losses, weights))).mean(),
    ),
    (
        "the product is averaged over the batch: sum it over everything, or the gradient is too small",
        lambda r, losses, weights: (r * _total(_gradients(_leaf(r), losses, weights))).flatten(1).sum(1).mean(),
    ),
    (
        "the product is averaged over the channels: sum it over everything, or the gradient is too small",
        lambda r, losses, weights: (r * _total(_gradients(_leaf(r), losses, weights))).mean(1).sum(),
    ),
    (
        "the product is averaged over each image: sum it over everything, or the gradient is too small",
        lambda r, losses, weights: (r * _total(_gradients(_leaf(r), losses, weights))).flatten(1).mean(1).sum(),
    ),
    (
        "the product is averaged over the pixels: sum it over everything, or the gradient is too small",
        lambda r, losses, weights: (r * _total(_gradients(_leaf(r), losses, weights))).mean((2, 3)).sum(),
    ),
    (
        "the product is not summed: a scalar is asked for",
        lambda r, losses, weights: r * _total(_gradients(_leaf(r), losses, weights)),
    ),
    (
        "the weights are missing",
        lambda r, losses, weights: (r * _total(_gradients(_leaf(r), losses, [1.0] * len(weights)))).sum(),
    ),
    (
        "only the last loss counts: add the gradients up",
        lambda r, losses, weights: (r * _gradients(_leaf(r), losses, weights)[-1]).sum(),
    ),
    (
        "only the first loss counts: add the gradients up",
        lambda r, losses, weights: (r * _gradients(_leaf(r), losses, weights)[0]).sum(),
    ),
    (
        "the sign: the gradient is taken as it is",
        lambda r, losses, weights: -(r * _total(_gradients(_leaf(r), losses, weights))).sum(),
    ),
    (
        "the gradient depends on the reconstruction: it must be a constant, taken at a detached leaf",
        lambda r, losses, weights: (r * _total(_gradients(r, losses, weights, create_graph=True))).sum(),
    ),
    (
        "the values of the losses are multiplied in: it is their gradients at the reconstruction that are needed",
        lambda r, losses, weights: sum(
            w * (r * loss(_leaf(r)).detach()).sum() for loss, w in zip(losses, weights, strict=True)
        ),
    ),
)
_THROUGH = (
    "the gradient is right, but it runs through the losses in the backward pass: take theirs at a leaf beforehand"
)
_LEAKS = (
    "the gradient is right, but backward() leaves gradients in a network that a loss uses, such as the discriminator: "
    "torch.autograd.grad(…, leaf) leaves none"
)
_NOT_UNPACKED = "torch.autograd.grad gives a tuple of gradients, one for each input: take its [0]"
_SURROGATE_RAISED = (("multiply sequence", _NOT_UNPACKED), ("'Tensor' and 'tuple'", _NOT_UNPACKED))
_TWICE = "the gradient is right, but a loss is computed {} times: once is enough"


class _Counted(torch.autograd.Function):
    """The identity, counting the passes back through it. Its form is one that torch.func takes, too."""

    passes = 0
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        _Counted.passes += 1
        return gradients[0]


def _behind(attempt: Callable[..., Any], counts: dict[str, int] | None = None) -> Callable[[Tensor], Tensor]:
    """The surrogate's gradient at the weight of a layer that the reconstruction comes from."""

    def gradient(weight: Tensor) -> Tensor:
        weight = weight.detach().clone().requires_grad_()
        images = torch.linspace(1, 2, 2 * (len(weight) - 1), dtype=weight.dtype).view(-1, 2, 1, 1)
        reconstruction = images * (weight.sin() @ weight)  # (2, 2, 3, 3) or (3, 2, 4, 4)
        calls, judge = [0, 0], torch.ones((), requires_grad=True)  # a weight of the network that judges

        def counted(number: int, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def run(x: Tensor) -> Tensor:
                calls[number] += 1
                return loss(_Counted.apply(x))

            return run

        losses = [counted(0, lambda x: (x - 1).pow(2).sum()), counted(1, lambda x: -(judge * x).pow(3).mean())]
        scalar = call(attempt, reconstruction, losses, (0.7, 3.0))
        if not isinstance(scalar, Tensor):
            raise TypeError(f"expected a Tensor, got {type(scalar).__name__}")
        before = _Counted.passes
        found = torch.autograd.grad(scalar, weight, allow_unused=True)[0] if scalar.requires_grad else None
        if found is None:
            raise ValueError("no gradient reaches the autoencoder")
        if counts is not None:
            counts.update(calls=max(calls), late=_Counted.passes - before, left=int(judge.grad is not None))
        return found

    return gradient


_judge_gradient = judge_function(
    _behind(surrogate),
    [probe((3, 3)), probe((4, 4))],
    [(message, _behind(code)) for message, code in SURROGATE_MISTAKES],
    inputs=("weight",),
    outputs=("the gradient behind the reconstruction",),
)


def _judge_surrogate(attempt: Any) -> str | None:
    if not callable(attempt):
        return f"expected the function itself, got an object of type {type(attempt).__name__}"
    complaint = _in_words(_judge_gradient(_behind(attempt)), _SURROGATE_RAISED)
    if complaint:
        return complaint
    counts: dict[str, int] = {}
    _behind(attempt, counts)(probe((3, 3))[0])
    if counts["late"]:
        return _THROUGH
    if counts["left"]:
        return _LEAKS
    return _TWICE.format(counts["calls"]) if counts["calls"] > 1 else None


# 08.3

_CALL, _SEEN, _JUDGED_BY = "the autoencoder's step", "with the adversarial term", "the discriminator's step"


def _timeline(attempt: Callable[..., Any], disc_start: int, disc_warmup: int) -> list[str]:
    """Describe in words what happens in steps 1 to 6."""
    images, made = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    happened: list[str] = []

    def generator(*arguments: Any, **named: Any) -> Tensor:
        batch, adversarial = _two("generator_step", "(images, adversarial)", *arguments, *named.values())
        with_term = _SEEN if bool(adversarial) else "without the adversarial term"
        happened.append(f"{_CALL} {with_term}{'' if batch is images else ' on something else than the batch'}")
        return made

    def discriminator(*arguments: Any, **named: Any) -> Tensor:
        real, fake = _two("discriminator_step", "(images, reconstructions)", *arguments, *named.values())
        given = (real is images, same(fake, made)), (same(real, made), fake is images), (real is images, fake is images)
        names = "(images, reconstructions)", "(reconstructions, images)", "(images, images)", "something else"
        happened.append(f"{_JUDGED_BY} on {names[([*map(all, given), True]).index(True)]}")
        return torch.zeros(())

    found = []
    for step in range(1, 7):
        happened.clear()
        result = call(attempt, step, images, generator, discriminator, disc_start, disc_warmup)
        if not same(result, made):
            happened.append("a result that is not the reconstructions")
        found.append(", then ".join(happened) or "nothing")
    return found


def _two(name: str, expected: str, *arguments: Any) -> tuple[Any, ...]:
    if any(argument is ... for argument in arguments):
        raise OpenGap(f"an argument of {name}")
    if len(arguments) != 2:
        raise TypeError(f"{name} takes {expected}, got {len(arguments)} argument{'s' * (len(arguments) != 1)}")
    return arguments


def _scheduled(
    sees: Callable[[int, int, int], bool] = lambda step, start, warmup: step > start,
    trains: Callable[[int, int, int], bool] = lambda step, start, warmup: step > start - warmup,
    order: str = "generator",
    real: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda images, made: (images, made),
    again: bool = False,
) -> Callable[..., Tensor]:
    """The finished step with another schedule."""

    def scheduled(
        step: int, images: Tensor, generator: Callable[..., Tensor], discriminator: Callable[..., Any], *when: int
    ) -> Tensor:
        adversarial, judged = sees(step, *when), trains(step, *when)
        if judged and order == "discriminator":
            discriminator(images, torch.ones(1, 3, 2, 2))
        made = generator(images, adversarial)
        if judged and order == "generator":
            discriminator(*real(images, generator(images, adversarial) if again else made))
        return made

    return scheduled


SCHEDULE_MISTAKES = (
    (
        "one step early: after disc_start steps comes number disc_start + 1, so step > disc_start",
        _scheduled(lambda step, start, warmup: step >= start, lambda step, start, warmup: step >= start - warmup),
    ),
    (
        "the autoencoder sees the discriminator one step early: step > disc_start",
        _scheduled(sees=lambda step, start, warmup: step >= start),
    ),
    (
        "the discriminator begins one step early: step > disc_start - disc_warmup",
        _scheduled(trains=lambda step, start, warmup: step >= start - warmup),
    ),
    (
        "the warm-up is ignored: the discriminator's training begins disc_warmup steps before disc_start",
        _scheduled(trains=lambda step, start, warmup: step > start),
    ),
    (
        "the warm-up is added: the discriminator begins before disc_start, not after it",
        _scheduled(trains=lambda step, start, warmup: step > start + warmup),
    ),
    (
        "the autoencoder sees the discriminator during its warm-up: it has to wait for disc_start",
        _scheduled(sees=lambda step, start, warmup: step > start - warmup),
    ),
    (
        "both wait for the other's condition: the discriminator is the one that begins earlier",
        _scheduled(lambda step, start, warmup: step > start - warmup, lambda step, start, warmup: step > start),
    ),
    (
        "the discriminator is trained from the first step on: it begins disc_warmup steps before disc_start",
        _scheduled(trains=lambda step, start, warmup: True),
    ),
    (
        "the autoencoder sees the discriminator from the first step on: it has to wait for disc_start",
        _scheduled(sees=lambda step, start, warmup: True),
    ),
    ("the discriminator is never trained", _scheduled(trains=lambda step, start, warmup: False)),
    ("the autoencoder never sees the discriminator", _scheduled(sees=lambda step, start, warmup: False)),
    (
        "images and reconstructions are exchanged in discriminator_step: the images come first",
        _scheduled(real=lambda images, made: (made, images)),
    ),
    (
        "the discriminator gets the images twice: the second argument is what generator_step returns",
        _scheduled(real=lambda images, made: (images, images)),
    ),
    (
        "the autoencoder makes two steps on one batch: hand the reconstructions of the first on",
        _scheduled(again=True),
    ),
    (
        "the discriminator's step comes first: it needs the reconstructions of this batch",
        _scheduled(order="discriminator"),
    ),
)
_SCHEDULES = ((4, 2), (2, 0))


def _judge_schedule(attempt: Any) -> str | None:
    if not callable(attempt):
        return f"expected the function itself, got an object of type {type(attempt).__name__}"
    try:
        found = [_timeline(attempt, *schedule) for schedule in _SCHEDULES]
    except (Blank, OpenGap):
        raise
    except Exception as error:
        return name_error(error, (), lambda code: code)
    expected = [_timeline(training_step, *schedule) for schedule in _SCHEDULES]
    if found == expected:
        return None
    for message, code in SCHEDULE_MISTAKES:
        if found == [_timeline(code, *schedule) for schedule in _SCHEDULES]:
            return message
    return next(_first_differences(found, expected))


def _first_differences(found: list[list[str]], expected: list[list[str]]) -> Iterator[str]:
    for (start, warmup), mine, right in zip(_SCHEDULES, found, expected, strict=True):
        for step, (a, b) in enumerate(zip(mine, right, strict=True), 1):
            if a != b:
                yield f"in step {step}, with disc_start={start} and disc_warmup={warmup}: expected {b}; got {a}"


# 08.4

_AVERAGES = "the averages"


def _averaged(
    rate: Callable[[int, float], float] = lambda n, decay: min(decay, (1 + n) / (10 + n)),
    blend: Callable[[Tensor, Tensor, float], Tensor] = lambda a, w, d: d * a + (1 - d) * w,
) -> Callable[..., list[Tensor]]:
    """The finished update with another rate, or another blend."""

    def update(averages: list[Tensor], weights: list[Tensor], n: int, decay: float) -> list[Tensor]:
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(blend(average.clone(), weight, rate(n, decay)))
        return averages

    return update


EMA_MISTAKES = Mistakes(
    [
        (
            "the averages stay as they were: change them in place (mul_, add_, lerp_, copy_); average = … only renames",
            _averaged(blend=lambda a, w, d: a),
        ),
        (
            "decay and 1 - decay are exchanged: the average keeps the share d",
            _averaged(blend=lambda a, w, d: (1 - d) * a + d * w),
        ),
        (
            "the warm-up has no effect: d is the smaller of decay and (1 + n) / (10 + n), with both brackets",
            _averaged(lambda n, decay: decay),
        ),
        (
            "d is the larger of the two: early averages have to forget faster, take the smaller",
            _averaged(lambda n, decay: max(decay, (1 + n) / (10 + n))),
        ),
        ("decay is ignored: it limits the share d", _averaged(lambda n, decay: (1 + n) / (10 + n))),
        (
            "the warm-up is one update ahead: n counts from 1 already, (1 + n) / (10 + n)",
            _averaged(lambda n, decay: min(decay, (2 + n) / (11 + n))),
        ),
        (
            "the warm-up is one update late: (1 + n) / (10 + n), and n counts from 1",
            _averaged(lambda n, decay: min(decay, n / (9 + n))),
        ),
        ("the 1 is missing in the warm-up: (1 + n) / (10 + n)", _averaged(lambda n, decay: min(decay, n / (10 + n)))),
        (
            "the average is not scaled by d before the weights are added",
            _averaged(blend=lambda a, w, d: a + (1 - d) * w),
        ),
        ("the weights are not scaled by 1 - d", _averaged(blend=lambda a, w, d: d * a + w)),
        ("the averages become the weights: only a share of 1 - d moves", _averaged(blend=lambda a, w, d: w)),
        (
            "the sign: average + (1 - d) · (weight - average)",
            _averaged(blend=lambda a, w, d: a + (1 - d) * (a - w)),
        ),
    ]
)


@EMA_MISTAKES("only the first average moves: is the return inside of the loop?")
def update_of_the_first(averages: list[Tensor], weights: list[Tensor], n: int, decay: float) -> list[Tensor]:
    ema_update(averages[:1], weights[:1], n, decay)
    return averages


@EMA_MISTAKES("only the last average moves: is the update outside of the loop?")
def update_of_the_last(averages: list[Tensor], weights: list[Tensor], n: int, decay: float) -> list[Tensor]:
    ema_update(averages[-1:], weights[-1:], n, decay)
    return averages


def _after_update(update: Callable[..., Any]) -> Callable[[Tensor, Tensor, int, float], Tensor]:
    """Both averages after the update, in one vector."""

    def updated(averages: Tensor, weights: Tensor, n: int, decay: float) -> Tensor:
        mine = [averages[0].clone(), averages[1:].clone()]
        parameters = [nn.Parameter(weights[0].clone()), nn.Parameter(weights[1:].clone())]
        try:
            call(update, mine, parameters, n, decay)
        except RuntimeError as error:
            if "leaf Variable" in str(error):
                raise RuntimeError("the weights are changed in place: change the averages") from None
            raise
        return torch.cat([average.detach().flatten() for average in mine])

    return updated


_judge_averages = judge_function(
    _after_update(ema_update),
    [(*probe((3, 4), (3, 4)), n, decay) for n, decay in ((1, 0.9), (5, 0.99), (1000, 0.95))],
    [(message, _after_update(code)) for message, code in EMA_MISTAKES],
    inputs=(_AVERAGES, "the weights", "n", "decay"),
    outputs=(_AVERAGES,),
)


def _judge_ema(attempt: Any) -> str | None:
    if not callable(attempt):
        return f"expected the function itself, got an object of type {type(attempt).__name__}"
    complaint = _judge_averages(_after_update(attempt))
    if complaint:
        return complaint
    averages, weights = [torch.zeros(3)], [nn.Parameter(torch.ones(3))]
    average, kept = averages[0], weights[0].detach().clone()
    result = attempt(averages, weights, 1, 0.5)
    if averages[0] is not average:
        return "the list has new tensors in it, and whoever holds the old ones sees no change: use mul_ and add_"
    if average.requires_grad:
        return "the averages carry a graph that grows with every update: work under torch.no_grad()"
    if not torch.equal(weights[0], kept):
        return "the values are right, but the weights are changed, too: leave them as they are"
    if not isinstance(result, (list, tuple)) or len(result) != 1 or result[0] is not average:
        return "the averages are right, but they are not what is returned"
    return None


# 08.5


def _run(steps_made: int = 3) -> Run:
    """A model with dropout, so that the random numbers matter, after a few steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    run = Run(model, torch.optim.AdamW(model.parameters(), lr=0.05), copy.deepcopy(model))
    _go_on(run, steps_made)
    return run


def _go_on(run: Run, count: int) -> None:
    for _ in range(count):
        run.step += 1
        loss = (run.model(torch.randn(2, 4)) - run.step).pow(2).mean()
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        ema_update([*run.average.parameters()], [*run.model.parameters()], run.step)


def _keeping(*names: str, copies: Callable[[Any], Any] = copy.deepcopy) -> Callable[[Run], dict[str, object]]:
    """A snapshot of some parts only."""

    def taken(run: Run) -> dict[str, object]:
        parts = snapshot(run) | {
            name: copies(getattr(run, name).state_dict()) for name in ("model", "optimizer", "average")
        }
        return {name: parts[name] for name in names}

    return taken


_ALL = ("model", "optimizer", "average", "step", "random")
_WHAT_IT_COSTS = {
    "model": "the model's weights are missing",
    "optimizer": "the optimiser's state is missing: Adam's averages of the gradient would start from nothing",
    "average": "the averaged weights are missing",
    "step": "the number of the step is missing: learning rate and data follow from it",
    "random": "the random numbers' state is missing: torch.get_rng_state()",
}
_REFERENCES = "state_dict() hands out the tensors themselves, which the next steps change: copy.deepcopy it"
SNAPSHOT_MISTAKES = Mistakes(
    [
        (f"nothing is copied: {_REFERENCES}", _keeping(*_ALL, copies=lambda kept: kept)),
        *((message, _keeping(*(other for other in _ALL if other != name))) for name, message in _WHAT_IT_COSTS.items()),
        (
            "the optimiser's state is a copy of a dictionary only, with the optimiser's own tensors: copy.deepcopy it",
            lambda run: snapshot(run) | {"optimizer": dict(run.optimizer.state_dict())},
        ),
        (
            f"the model's weights are not copied: {_REFERENCES}",
            lambda run: snapshot(run) | {"model": run.model.state_dict()},
        ),
        (
            f"the averaged weights are not copied: {_REFERENCES}",
            lambda run: snapshot(run) | {"average": run.average.state_dict()},
        ),
        (
            'under "average" lie the model\'s own weights',
            lambda run: snapshot(run) | {"average": copy.deepcopy(run.model.state_dict())},
        ),
        (
            "the whole objects are kept, not their state: restore needs what state_dict() gives",
            lambda run: (
                snapshot(run) | {name: copy.deepcopy(getattr(run, name)) for name in ("model", "optimizer", "average")}
            ),
        ),
        ("the step is another number: keep run.step as it is", lambda run: snapshot(run) | {"step": run.step + 1}),
        (
            "a seed says how the random numbers began, not how far they have come: torch.get_rng_state()",
            lambda run: snapshot(run) | {"random": torch.initial_seed()},
        ),
    ]
)


@SNAPSHOT_MISTAKES("the optimiser's settings are kept without its state: Adam's averages would start from nothing")
def snapshot_with_settings_only(run: Run) -> dict[str, object]:
    settings = copy.deepcopy(run.optimizer.state_dict()["param_groups"])
    return snapshot(run) | {"optimizer": {"state": {}, "param_groups": settings}}


@SNAPSHOT_MISTAKES("the weights are kept in half precision, and come back rounded: keep them as they are")
def snapshot_of_halves(run: Run) -> dict[str, object]:
    halves = {name: weight.half() for name, weight in run.model.state_dict().items()}
    return snapshot(run) | {"model": halves}


@SNAPSHOT_MISTAKES("the weights are kept in half precision, and come back rounded: keep them as they are")
def snapshot_of_all_in_halves(run: Run) -> dict[str, object]:
    of_both = {"model": run.model.state_dict(), "average": run.average.state_dict()}
    halves = {part: {name: weight.half() for name, weight in kept.items()} for part, kept in of_both.items()}
    return snapshot(run) | halves


_SIDE_EFFECTS = {
    "drawn": "it draws a random number itself: only look at the state, torch.get_rng_state()",
    "mode": "the run's model is left in eval mode, and its dropout is off from here on: a snapshot only looks",
    "changed": "taking the snapshot changes the run itself, which goes on otherwise than without it: only look",
}


@SNAPSHOT_MISTAKES(_SIDE_EFFECTS["mode"])
def snapshot_in_eval_mode(run: Run) -> dict[str, object]:
    run.model.eval()
    return snapshot(run)


@SNAPSHOT_MISTAKES(_SIDE_EFFECTS["changed"])
def snapshot_that_counts(run: Run) -> dict[str, object]:
    kept = snapshot(run)
    run.step += 1
    return kept


@SNAPSHOT_MISTAKES(_SIDE_EFFECTS["changed"])
def snapshot_that_ends_the_run(run: Run) -> dict[str, object]:
    kept = snapshot(run)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    return kept


_OBJECT = "under {!r} lies the whole object, not its state: restore needs what state_dict() gives"
_SNAPSHOT_RAISED = (
    ("'AdamW' object", _OBJECT.format("optimizer")),
    ("torch.ByteTensor", 'under "random" restore needs the tensor that torch.get_rng_state() gives'),
    ("dict-like", "restore needs what state_dict() gives, with the names of the weights"),
    ("'generator'", "restore needs what state_dict() gives, with the names of the weights"),
    ("NoneType", "a part is None: restore needs the state of each"),
)


def _as_kept(run: Run) -> dict[str, Any]:
    """Copy the state that a snapshot has to hold, in a form that can be compared."""
    return {
        "model": [*map(torch.clone, run.model.state_dict().values())],
        "average": [*map(torch.clone, run.average.state_dict().values())],
        "optimizer": _of_optimizer(run.optimizer.state_dict()),
        "step": run.step,
        "random": torch.get_rng_state(),
    }


def _of_optimizer(state: dict[str, Any]) -> list[Any]:
    """All tensors of the state, and all settings but the list of parameters."""
    settings = [{name: group[name] for name in group.keys() - {"params"}} for group in state["param_groups"]]
    return [*(value.clone() for of_one in state["state"].values() for value in of_one.values()), *settings]


def _wrong_after_restoring(take: Callable[[Run], Any]) -> list[str]:
    """The parts of the run that are not as they were when the snapshot was taken."""
    run = _run()
    before = _as_kept(run)
    kept = call(take, run)
    if not isinstance(kept, dict):
        raise TypeError(f"expected a dictionary, got {type(kept).__name__}")
    open_gaps = [name for name, value in kept.items() if value is ...]
    if open_gaps:
        raise Blank if len(open_gaps) == len(kept) else OpenGap(", ".join(map(str, open_gaps)))
    if not torch.equal(torch.get_rng_state(), before["random"]):
        return ["drawn"]
    if not run.model.training:
        return ["mode"]
    if not _equal([*_as_kept(run).values()], [*before.values()]):
        return ["changed"]
    _go_on(run, 2)
    restore(run, kept)
    after = _as_kept(run)
    return [name for name in _ALL if not _equal(before[name], after[name])]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _judge_snapshot(attempt: Any) -> str | None:
    if not callable(attempt):
        return f"expected the function itself, got an object of type {type(attempt).__name__}"
    try:
        wrong = _wrong_after_restoring(attempt)
    except (Blank, OpenGap):
        raise
    except Exception as error:
        return _in_words(name_error(error, SNAPSHOT_MISTAKES, _wrong_after_restoring), _SNAPSHOT_RAISED)
    if not wrong:
        return None
    if wrong[0] in _SIDE_EFFECTS:
        return _SIDE_EFFECTS[wrong[0]]
    kept = attempt(_run())
    unknown = [str(name) for name in kept if name not in _ALL]
    if unknown:
        return f"restore does not know {', '.join(unknown)}: the keys are {', '.join(_ALL)}"
    for message, code in SNAPSHOT_MISTAKES:
        if kept.keys() == code(_run()).keys() and _does(code, wrong) and _alike(kept, code(_run())):
            return message
    if _alike(kept, snapshot(_run())) and all(name in kept for name in wrong):
        return f"not copied: {' and '.join(wrong)}; {_REFERENCES}"
    missing = [_WHAT_IT_COSTS[name] for name in wrong if name not in kept]
    return "; ".join(missing) or f"after restore these parts are not as they were: {', '.join(wrong)}"


def _does(mistake: Callable[[Run], Any], wrong: list[str]) -> bool:
    """Tell whether the same parts are wrong after this mistake. Some mistakes cannot be restored at all."""
    try:
        return _wrong_after_restoring(mistake) == wrong
    except Exception:
        return False


def _alike(mine: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two snapshots of equal runs hold the same tensors and settings, as far as both have them."""
    both = mine.keys() & other.keys()
    parts = {
        "model": lambda kept: [*kept.values()],
        "average": lambda kept: [*kept.values()],
        "optimizer": _of_optimizer,
    }
    return all(_equal(flat(mine[name]), flat(other[name])) for name, flat in parts.items() if name in both)


EXERCISES = (
    Exercise(
        id="08.1",
        title="The autoencoder's step",
        notebook=NOTEBOOK,
        minutes=20,
        difficulty=4,
        reference=generator_step,
        in_package=(steps.generator_step, generator_loss),
        hints=(
            "Three terms: pixel_loss(…, 'l2'), kl_loss and adversarial_loss of the discriminator's logits. "
            "Which of the two networks may this loss change?",
            "torch.autograd.grad(term, vae.decoder.conv_out.weight, retain_graph=True)[0] is one term's gradient; "
            "adaptive_weight takes the nll's, then the adversarial one's. discriminator.requires_grad_(False) before "
            "it judges, and True after it.",
            "loss = nll + kl_weight · kl + disc_weight · adaptive_weight(…) · adversarial, then optimizer.zero_grad(), "
            "loss.backward(), optimizer.step(), return reconstruction.detach().",
        ),
        judge=_judge_generator_step,
    ),
    Exercise(
        id="08.2",
        title="One pass back for all losses",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=4,
        reference=surrogate,
        in_package=(steps.generator_losses,),
        hints=(
            "Which linear function of x has the gradient g everywhere?",
            "leaf = reconstruction.detach().requires_grad_() ends a graph; then torch.autograd.grad(loss(leaf), leaf).",
            "Add up weight · gradient over the losses, then return (reconstruction * gradient).sum().",
        ),
        judge=_judge_surrogate,
    ),
    Exercise(
        id="08.3",
        title="Who is trained when",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=training_step,
        in_package=(trainer.train,),
        hints=(
            "Steps are counted from 1. With disc_start=4 the autoencoder makes four steps alone: which is the first "
            "with the adversarial term?",
            "The discriminator begins disc_warmup steps earlier, so both conditions differ by disc_warmup.",
            "step > disc_start, and step > disc_start - disc_warmup; discriminator_step comes last.",
        ),
        judge=_judge_schedule,
    ),
    Exercise(
        id="08.4",
        title="The averaged weights",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=ema_update,
        in_package=(setup.ema_update,),
        hints=(
            "Which share of itself does the average keep in update 1, with (1 + n) / (10 + n)? And in update 100,000?",
            "d = min(decay, (1 + n) / (10 + n)); average ← d · average + (1 - d) · weight, in place.",
            "Under torch.no_grad(): average.mul_(d).add_(weight, alpha=1 - d) for each pair.",
        ),
        judge=_judge_ema,
    ),
    Exercise(
        id="08.5",
        title="What a run has to keep",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=snapshot,
        in_package=(checkpoint.save_checkpoint,),
        hints=(
            "What does the next step read that this step has written? Do not forget what Adam remembers.",
            "state_dict() is a view on the run, not a copy of it: what do the next steps do to its tensors?",
            "copy.deepcopy(….state_dict()) for model, optimizer and average; run.step; torch.get_rng_state().",
        ),
        judge=_judge_snapshot,
    ),
)
