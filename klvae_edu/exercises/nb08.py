"""The exercises of notebook 08, the training loop."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.exercises.attempt import Attempt, Blank, Local, NothingReturned, OpenGap, call, kind, one_line, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.given import restore
from klvae_edu.exercises.judges.functions import judge_function, probe, same, through_recipe
from klvae_edu.exercises.solutions.nb08 import ema_update, generator_step, snapshot, surrogate, training_step
from klvae_edu.losses import adaptive_weight, adversarial_loss, generator_loss, kl_loss, pixel_loss
from klvae_edu.training import checkpoint, setup, steps, trainer

NOTEBOOK = "08_training_loop"
_NO_NAME = ("the values are not: ", " is added ", "in another order")  # in complaints that only describe wrong values


def each(make, **parts):
    """Make a mistake of every (message, code) in the list of a part: the answer with this code as that part."""
    return [(message, make(**{part: code})) for part, mistakes in parts.items() for message, code in mistakes]


def _in_words(complaint: str | None, raised: Mapping[str, tuple[str, Any]]) -> str | None:
    """Replace a complaint that quotes an exception, by a part of its text, if it is known what that means here."""
    if not complaint or not complaint.startswith("it raised"):
        return complaint
    return next((message for part, (message, _) in raised.items() if part in complaint), complaint)


def _has_no_name(complaint: str | None) -> bool:
    return complaint is not None and any(words in complaint for words in _NO_NAME)


def _first(effects: Mapping[str, tuple[str, Any]], found: Mapping[str, bool]) -> str | None:
    """Return the message of the first effect that was found; None if there is none."""
    return next((message for name, (message, _) in effects.items() if found[name]), None)


def _refuse(attempt: Attempt) -> str | None:
    about = attempt.run(kind)
    if about["callable"]:
        return None
    return f"expected the function itself, got its result or another object ({about['type']})"


def _factors(found: Any, parts: Sequence[Tensor]) -> list[float] | None:
    """Return the factors with which the parts add up to a result, rounding aside; None if they do not."""
    if not isinstance(found, Tensor) or not found.isfinite().all():
        return None
    basis = torch.stack([part.flatten().double() for part in parts], dim=1)
    factors = torch.linalg.lstsq(basis, found.flatten().double()[:, None]).solution.flatten()
    if not same(basis @ factors, found.flatten()):
        return None
    least = factors.abs().max() * (1e-9 if found.dtype == torch.float64 else 1e-5)
    return torch.where(factors.abs() > least, factors, 0.0).tolist()


# 08.1


clip = nn.utils.clip_grad_norm_


def frozen_logits(discriminator, reconstruction):
    discriminator.requires_grad_(False)
    logits = discriminator(reconstruction)
    discriminator.requires_grad_(True)
    return logits


def update(vae, optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def step_with(
    encode=lambda vae, images: vae.encode(images).latent_dist,
    draw=lambda posterior: posterior.sample(),
    image=lambda output: output.sample,
    nll=lambda reconstruction, images: pixel_loss(reconstruction, images, "l2"),
    kl=kl_loss,
    logits=lambda discriminator, reconstruction, images: frozen_logits(discriminator, reconstruction),
    adversarial=adversarial_loss,
    at=lambda vae, reconstruction: vae.decoder.conv_out.weight,
    gradient=lambda term, at: torch.autograd.grad(term, at, retain_graph=True)[0],
    weigh=lambda a, b, share: share * adaptive_weight(a, b),
    total=lambda nll, kl, adversarial, kl_weight, weight: nll + kl_weight * kl + weight * adversarial,
    update=update,
    result=lambda reconstruction: reconstruction.detach(),
):
    """The step with one of its parts made otherwise."""

    def step(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
        posterior = encode(vae, images)
        reconstruction = image(vae.decode(draw(posterior)))
        terms = [nll(reconstruction, images), kl(posterior, images)]
        terms.append(adversarial(logits(discriminator, reconstruction, images)))
        last = at(vae, reconstruction)
        weight = weigh(gradient(terms[0], last), gradient(terms[2], last), disc_weight)
        update(vae, optimizer, total(*terms, kl_weight, weight))
        return result(reconstruction)

    return step


def step_and(act, step=generator_step):
    """The step, and something after it."""

    def both(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
        reconstruction = step(vae, discriminator, optimizer, images, disc_weight, kl_weight)
        act(vae, discriminator)
        return reconstruction

    return both


_ORDER = "the autoencoder does not change: zero_grad(), backward() and optimizer.step() must come in this order"
_CLIPPED = "the gradients are clipped: that is not asked for, and changes the step"
_NO_ENCODER = "the pixel loss does not reach the encoder: no detach or no_grad from vae.encode to vae.decode"
_SQUEEZED = "the reconstruction is clamped or squeezed: all losses get what vae.decode gives"
_SUM = "it is a sum over an image's values, averaged over the batch"
_MEANS = "pixel loss and KL are means over the image's values: each is a sum, averaged over the batch"
_NO_KL = "the KL term is missing, or has a fixed weight such as 1e-6: multiply it by the argument kl_weight"
_UNHEARD = "nothing of the adversarial term reaches the autoencoder: is it in the loss, of the reconstruction's logits?"
_ON_PIXELS = "the adaptive weight multiplies the pixel loss: it belongs to the adversarial term"
_ON_MORE = "the adaptive weight multiplies other terms, too: it belongs to the adversarial term alone"
_NO_GRAPH = "a loss has no graph back to the autoencoder: of the reconstruction, not the images; no detach, no no_grad"
_OWN_LOSS = "this is the discriminator's loss: the autoencoder's is minus the mean of the logits"
_SHAPED = "the logits go through another function first: the autoencoder's loss is minus their mean"
_LAYER = "the gradients are taken at another layer: the last one is vae.decoder.conv_out"
_ONE = "the adaptive weight is 1: it is missing, limited by a third argument, or both gradients are the same .grad"
_LIMITED = "the adaptive weight is cut off at disc_weight: its third argument is a limit, leave it out"
_TOO_EARLY = "disc_weight multiplies the adversarial term before its gradient, and the adaptive weight undoes it"
_OWN_WEIGHT = "the adaptive weight is written out, but not as min(‖a‖ / (‖b‖ + 1e-4), 1e4): take adaptive_weight"
_OF_LOSSES = "the adaptive weight is a ratio of the losses: it takes their gradients, from torch.autograd.grad"
_NO_GRADIENT = "adaptive_weight takes two gradients: the [0] of torch.autograd.grad; a .grad is empty before backward()"
_DICTIONARY = 'a loss is a dictionary: take its entry, such as ["loss"]'
_RETAIN = "a backward pass frees the graph that the next one needs: retain_graph=True in both torch.autograd.grad"
_DEFAULTS = "without its last two arguments the step must use disc_weight=0.5 and kl_weight=1e-6"
_OTHER_IMAGE = "what comes back is not vae.decode(posterior.sample()).sample: look at what is decoded, and done to it"
_OTHER_LOSS = (
    "the update is none by pixel loss (L2), KL and adversarial loss of this reconstruction: one is something else"
)
_OTHER_RESULT = "the update is right, but what is returned is not the reconstruction that was judged: detach that"
_SEED = "every step draws the same sample: no seed, and no generator of its own"
_FREEZE = "requires_grad_(False) while it judges"
_UNFROZEN = step_with(logits=lambda d, x, images: d(x))
_STEP_EFFECTS = {
    "seed": (_SEED, step_with(draw=lambda posterior: [torch.manual_seed(0), posterior.sample()][1])),
    "gradients": (f"it leaves gradients in the discriminator: {_FREEZE}", _UNFROZEN),
    "cleared": (f"it clears the discriminator's gradients: {_FREEZE}", step_and(lambda _, d: d.zero_grad(), _UNFROZEN)),
    "judge changed": ("it changes the discriminator's weights", step_and(lambda vae, d: d.main[0].weight.data.neg_())),
    "judge frozen": ("the discriminator stays frozen afterwards", step_and(lambda vae, d: d.requires_grad_(False))),
    "graph": ("the reconstruction comes back with its graph: detach it", step_with(result=lambda x: x)),
    "frozen": ("the autoencoder stays frozen: unfreeze it", step_and(lambda vae, d: vae.requires_grad_(False))),
    "eval": ("a network is left in eval mode: leave both in train mode", step_and(lambda vae, d: vae.eval())),
}
_RAISED_BY_STEP = {
    "'DecoderOutput'": ("vae.decode(…) gives an object: take its .sample", step_with(image=lambda output: output)),
    "'AutoencoderKLOutput'": ("vae.encode(…) gives an object: take its .latent_dist", step_with(AutoencoderKL.encode)),
    "only for scalar": ("a loss must be a number: take its mean", step_with(adversarial=torch.neg)),
    "attribute 'norm'": (_NO_GRADIENT, step_with(gradient=lambda term, at: None)),
    "'Conv2d'": ("gradients are taken at the layer's .weight", step_with(at=lambda vae, x: vae.decoder.conv_out)),
    "clamp() received": ("it takes two gradients, no more", step_with(weigh=lambda a, b, w: adaptive_weight(a, b, a))),
    "a second time": (_RETAIN, step_with(gradient=lambda term, at: torch.autograd.grad(term, at)[0])),
    "element 0 of tensors": (_NO_GRAPH, step_with(logits=lambda d, x, images: frozen_logits(d, x.detach()))),
    "not have been used": (_NO_GRAPH, step_with(logits=lambda d, x, images: d(images))),
    "'dict' object": (_DICTIONARY, step_with(total=lambda *terms: {"loss": terms})),
    "to be a torch.Tensor": (_DICTIONARY, step_with(adversarial=lambda logits: {"loss": logits})),
}
GENERATOR_MISTAKES = Mistakes(
    [
        *each(
            step_with,
            update=[
                ("old gradients are not cleared before backward()", lambda vae, o, loss: [loss.backward(), o.step()]),
                (_ORDER, lambda vae, o, loss: [o.zero_grad(), loss.backward()]),
                (_CLIPPED, lambda vae, o, loss: [o.zero_grad(), loss.backward(), clip(vae.parameters(), 1), o.step()]),
            ],
            draw=[
                ("the mean is decoded: in training the decoder gets posterior.sample()", lambda q: q.mode()),
                (_NO_ENCODER, lambda q: q.sample().detach()),
            ],
            encode=[(_NO_ENCODER, torch.no_grad()(lambda vae, images: vae.encode(images).latent_dist))],
            image=[(_SQUEEZED, lambda output: output.sample.clamp(-1, 1))],
            nll=[
                ("the pixel loss is L1, the default of pixel_loss: L2 is asked for", pixel_loss),
                (f"the pixel loss is L1, and a mean: {_SUM}", F.l1_loss),
                (f"the pixel loss is a mean over the values: {_SUM}", F.mse_loss),
                (f"the pixel loss is summed over the batch: {_SUM}", partial(F.mse_loss, reduction="sum")),
            ],
            kl=[
                (f"the KL is summed over the batch: {_SUM}", lambda q, images: q.kl().sum()),
                (f"the KL is a mean over the image's values: {_SUM}", partial(kl_loss, reduction="mean")),
            ],
            total=[
                (_NO_KL, lambda nll, kl, adv, kl_weight, w: nll + w * adv),
                ("kl_weight is missing on the KL term", lambda nll, kl, adv, kl_weight, w: nll + kl + w * adv),
                ("the pixel term is missing", lambda nll, kl, adv, kl_weight, w: kl_weight * kl + w * adv),
                (_UNHEARD, lambda nll, kl, adv, kl_weight, w: nll + kl_weight * kl),
                (_ON_PIXELS, lambda nll, kl, adv, kl_weight, w: w * nll + kl_weight * kl + adv),
                (_ON_MORE, lambda nll, kl, adv, kl_weight, w: w * nll + kl_weight * kl + w * adv),
            ],
            logits=[("the discriminator judges in eval mode", lambda d, x, images: frozen_logits(d.eval(), x))],
            adversarial=[
                ("the sign of the adversarial term: it is minus the mean of the logits, which are to rise", torch.mean),
                ("the logits are summed: take their mean", lambda logits: -logits.sum()),
                (_OWN_LOSS, lambda logits: F.relu(1 + logits).mean()),
                (_OWN_LOSS, lambda logits: F.relu(1 + logits).mean() / 2),
                (_SHAPED, lambda logits: F.relu(1 - logits).mean()),
                (_SHAPED, lambda logits: F.softplus(-logits).mean()),
                (_SHAPED, lambda logits: -logits.sigmoid().mean()),
                (_SHAPED, lambda logits: (logits - 1).square().mean()),
            ],
            at=[
                (_LAYER, lambda vae, x: vae.decoder.conv_in.weight),
                (_LAYER, lambda vae, x: vae.decoder.conv_norm_out.weight),
                (_LAYER, lambda vae, x: vae.post_quant_conv.weight),
                (_LAYER, lambda vae, x: vae.encoder.conv_out.weight),
                ("the gradients are taken at the last bias: take the weight", lambda vae, x: vae.decoder.conv_out.bias),
                ("the gradients are taken at the reconstruction, not at the last layer's weight", lambda vae, x: x),
            ],
            weigh=[
                (_ONE, lambda a, b, share: share),
                (_ONE, lambda a, b, share: adaptive_weight(a, b, share)),
                (_LIMITED, lambda a, b, share: share * adaptive_weight(a, b, share)),
                ("disc_weight is missing before the adaptive weight", lambda a, b, share: adaptive_weight(a, b)),
                ("disc_weight is multiplied in twice", lambda a, b, share: share**2 * adaptive_weight(a, b)),
                (_TOO_EARLY, lambda a, b, share: share * adaptive_weight(a, share * b)),
                (_TOO_EARLY, lambda a, b, share: share**2 * adaptive_weight(a, share * b)),
                ("disc_weight and the adaptive weight are added", lambda a, b, share: share + adaptive_weight(a, b)),
                ("disc_weight is a fixed number: take the argument", lambda a, b, share: 0.5 * adaptive_weight(a, b)),
                ("the adaptive weight is upside down: nll first", lambda a, b, share: share * adaptive_weight(b, a)),
                (_OWN_WEIGHT, lambda a, b, share: share * (a.norm() / b.norm()).clamp(0, 1e4)),
                (_OWN_WEIGHT, lambda a, b, share: share * (a.norm() / (b.norm() + 1e-6)).clamp(0, 1e4)),
                (_OWN_WEIGHT, lambda a, b, share: share * a.norm() / (b.norm() + 1e-4)),
                (_OWN_WEIGHT, lambda a, b, share: share * (a.norm() / (b.norm() + 1e-4)).clamp(0, 1)),
                (_OWN_WEIGHT, lambda a, b, share: share * a.square().sum() / (b.square().sum() + 1e-4)),
            ],
            gradient=[(_OF_LOSSES, lambda term, at: term)],
        ),
        (_MEANS, step_with(nll=F.mse_loss, kl=partial(kl_loss, reduction="mean"))),
        (_DEFAULTS, lambda vae, d, o, x, disc=1.0, kl_weight=1e-6: generator_step(vae, d, o, x, disc, kl_weight)),
        (_OTHER_RESULT, lambda vae, d, o, x, *rest: [generator_step(vae, d, o, x, *rest), vae(x).sample.detach()][1]),
        *_RAISED_BY_STEP.values(),
        *_STEP_EFFECTS.values(),
    ]
)


def networks(seed: int) -> tuple[AutoencoderKL, NLayerDiscriminator, Tensor]:
    """Build small networks in float64, and images. All terms count, with seed 1 the limit and with 2 the 1e-4, too."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=2).double()
    discriminator = NLayerDiscriminator(3, 4, 1).double()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(20)
        discriminator.main[-1].get_parameter("weight").mul_((1.0, 1e-6, 1e-2)[seed])
    return vae, discriminator, 2 * torch.rand(2, 3, 8, 8, dtype=torch.float64) - 1


_Move = tuple[Any, Tensor]


@recipe
def step_made(step: Any, seed: int, *weights: float) -> _Move:
    """Make one step, and return its result and the change of the weights. Gradients are not empty before it."""
    with torch.random.fork_rng(devices=[]):
        vae, discriminator, images = networks(seed)
        for parameter in vae.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        before = vae.get_parameters()
        optimizer = torch.optim.SGD(vae.parameters(), lr=1e-4)
        torch.manual_seed(seed)  # for the posterior's sample
        reconstruction = call(step, vae, discriminator, optimizer, images, *weights)
        return reconstruction, (before - vae.get_parameters()) * 1e4


@recipe
def effects_of_step(step: Any) -> dict[str, bool]:
    """Make a step beside a discriminator that holds gradients, and tell what it does besides."""
    vae, discriminator, images = networks(0)
    weights, asked = [*discriminator.parameters()], []
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    discriminator.register_forward_pre_hook(
        lambda judge, _: asked.append(any(weight.requires_grad for weight in judge.parameters()))
    )
    torch.manual_seed(123)
    state = torch.get_rng_state()
    reconstruction = call(step, vae, discriminator, torch.optim.SGD(vae.parameters(), lr=1e-4), images, 0.5, 0.1)
    held = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return {
        "seed": torch.initial_seed() != 123 or torch.equal(torch.get_rng_state(), state),
        "gradients": any(bool(gradient.any()) and not bool((gradient == 1).all()) for gradient in held),
        "cleared": any(asked) and not all(bool(gradient.any()) for gradient in held),
        "judge changed": not all(map(torch.equal, before, weights)),
        "judge frozen": not all(weight.requires_grad for weight in weights),
        "graph": reconstruction.requires_grad,
        "frozen": not all(weight.requires_grad for weight in vae.parameters()),
        "eval": not (vae.training and discriminator.training),
    }


_move = cache(step_made)
_MOVES = [(0, 0.5, 0.1), (1, 0.8, 0.3), (2, 0.5, 0.1)]
_TERMS = ("pixel loss", "KL", "adversarial loss")
_OF_TERMS = [step_with(total=lambda *terms, number=number: terms[number]) for number in range(3)]
_judge_move = judge_function(
    partial(_move, generator_step),
    _MOVES,
    through_recipe(_move, GENERATOR_MISTAKES),
    inputs=("seed", "disc_weight", "kl_weight"),
    outputs=("the reconstruction", "the change of the autoencoder's weights"),
    through=step_made,
)


def _judge_generator_step(attempt: Attempt) -> str | None:
    complaint = _in_words(_judge_move(attempt), _RAISED_BY_STEP)
    if complaint and not _has_no_name(complaint):
        return complaint.split(", for seed = ")[0]
    left = attempt.run(effects_of_step)
    if complaint:
        return _name_move(attempt, left)
    mine, right = attempt.run(step_made, 0), _move(generator_step, 0)
    if [f"{count:.3g}" for count in _shares(mine)] != [f"{count:.3g}" for count in _shares(right)]:
        return _DEFAULTS
    return _first(_STEP_EFFECTS, left)


def _shares(move: _Move, seed: int = 0) -> list[float]:
    """Return how often each of the three losses counts in a change of the weights; empty if it is made otherwise."""
    return _factors(move[1], [_move(step, seed, 0.5, 0.1)[1] for step in _OF_TERMS]) or []


def _name_move(attempt: Attempt, left: dict[str, bool]) -> str:
    """Name what is wrong with a step that does not do the same as a known mistake."""
    for given in _MOVES:
        mine, right = attempt.run(step_made, *given), _move(generator_step, *given)
        if not same(mine[0], right[0]):
            return _SEED if left["seed"] else _OTHER_RESULT if same(mine[1], right[1]) else _OTHER_IMAGE
        if not same(mine[1], right[1]):
            counts = zip(_TERMS, _shares(mine, given[0]), _shares(right, given[0]), strict=False)
            wrong = [f"{name} {a:.3g} times, not {b:.3g}" for name, a, b in counts if abs(a - b) > 1e-4 * abs(b)]
            asked = f"with disc_weight={given[1]} and kl_weight={given[2]}, the loss has the"
            return f"{asked} {', the '.join(wrong)}" if wrong else _OTHER_LOSS
    return _OTHER_LOSS


# 08.2


def leaf_of(reconstruction):
    return reconstruction.detach().requires_grad_()


def at_a_leaf(reconstruction, losses, **options):
    leaf = leaf_of(reconstruction)
    return [torch.autograd.grad(loss(leaf), leaf, **options)[0] for loss in losses]


def by_backward(reconstruction, losses):
    leaves = [leaf_of(reconstruction) for _ in losses]
    for leaf, loss in zip(leaves, losses, strict=True):
        loss(leaf).backward()
    return [leaf.grad for leaf in leaves]


def weighted_sum(gradients, weights):
    return sum(weight * gradient for gradient, weight in zip(gradients, weights, strict=True))


def plain_sum(reconstruction, losses, weights):
    return weighted_sum([loss(reconstruction) for loss in losses], weights)


def surrogate_with(gradients=at_a_leaf, add=weighted_sum, product=lambda r, gradient: (r * gradient).sum()):
    """The surrogate with one of its parts made otherwise."""
    return lambda r, losses, weights: product(r, add(gradients(r, losses), weights))


_LINEAR = "the surrogate is reconstruction · gradient, summed over everything"
_NO_REACH = f"no gradient reaches the autoencoder: {_LINEAR}, with the reconstruction as it came, not the detached one"
_BY_VALUE = "reconstruction and gradient are to be multiplied value by value, and then summed: (a * b).sum()"
_NO_SUM = "its gradient is not the sum of the losses' gradients at the reconstruction, each times its weight"
_TOO = "the losses themselves are added, too: the surrogate has their gradients already"
_BENT = f"the surrogate is not linear in the reconstruction: {_LINEAR}"
_MEAN = "the product is averaged, over everything or a part: sum it, or the gradient is too small"
_CHANGED = "it changes the reconstruction in place: work on other tensors, such as torch.zeros_like"
_WENT_BACK = "it calls backward() on the surrogate: return it, the training step goes back from there"
_LATE = "the gradient is right, but it runs through the losses in the backward pass: take theirs at a leaf beforehand"
_NOT_UNPACKED = "torch.autograd.grad gives a tuple of gradients, one for each input: take its [0]"
_NO_LEAF = "the losses are taken where no gradient is kept: the leaf is reconstruction.detach().requires_grad_()"
_TWO_LEAVES = "a loss and its gradient are taken at different tensors: loss(leaf), then torch.autograd.grad(…, leaf)"
_EQUAL = "the gradients lose their lengths: take each as it is, times its weight"
_NO_CONSTANT = "the gradient depends on the reconstruction: it must be a constant, taken at a detached leaf"
_VALUES = "the losses' values are multiplied in: it is their gradients at the reconstruction that are needed"
_ROUNDED = "in float64 the gradient is rounded: add up in tensors like the reconstruction, as torch.zeros_like makes"
_SURROGATE_EFFECTS = {
    "changed": (_CHANGED, surrogate_with(product=lambda r, g: (r.add_(1) * g).sum())),
    "went back": (_WENT_BACK, surrogate_with(product=lambda r, g: [(r * g).sum().backward(), (r * g).sum()][1])),
    "late": (_LATE, plain_sum),
    "left": ("backward() leaves gradients in the discriminator: take torch.autograd.grad", surrogate_with(by_backward)),
    "twice": ("a loss is computed twice: once is enough", surrogate_with(lambda r, f: at_a_leaf(r, f + f)[: len(f)])),
    "graph": ("the gradient keeps a graph: no create_graph", surrogate_with(partial(at_a_leaf, create_graph=True))),
    "bent": (_BENT, surrogate_with(product=lambda r, g: (r - (r - g).detach()).square().sum() / 2)),
}
_RAISED_BY_SURROGATE = {
    "multiply sequence": (_NOT_UNPACKED, surrogate_with(lambda r, losses: [(g,) for g in at_a_leaf(r, losses)])),
    "'Tensor' and 'tuple'": (_NOT_UNPACKED, surrogate_with(add=lambda g, weights: g[0] + (g[1],))),
    "numpy()": ("NumPy knows no gradients: stay with tensors", surrogate_with(product=lambda r, g: r.numpy())),
    "for scalar outputs": (
        "the product is not summed to a scalar",
        surrogate_with(product=torch.mul),
    ),
    "not have been used": (_TWO_LEAVES, surrogate_with(lambda r, f: torch.autograd.grad(f[0](leaf_of(r)), r))),
    "does not require grad": (_NO_LEAF, surrogate_with(lambda r, f: torch.autograd.grad(f[0](r.detach()), r))),
}
SURROGATE_MISTAKES = Mistakes(
    [
        *each(
            surrogate_with,
            product=[
                (_NO_REACH, lambda r, g: (leaf_of(r) * g).sum()),
                (_MEAN, lambda r, g: (r * g).mean()),
                (_MEAN, lambda r, g: (r * g).sum() / len(r)),
                (_MEAN, lambda r, g: (r * g).mean(1).sum()),
                (_MEAN, lambda r, g: (r * g).sum() / r[0].numel()),
                (_MEAN, lambda r, g: (r * g).mean((2, 3)).sum()),
                ("the sign: the gradient is taken as it is", lambda r, g: -(r * g).sum()),
                (_BENT, lambda r, g: (r.square() * g).sum()),
                (_BENT, lambda r, g: (r.square() * g).sum() / 2),
                (_BENT, lambda r, g: (r * g).square().sum()),
                (_BENT, lambda r, g: (r - g).square().sum()),
                (_BY_VALUE, lambda r, g: (r + g).sum()),
                (_BY_VALUE, lambda r, g: (r @ g).sum()),
                (_BY_VALUE, lambda r, g: r.sum() * g.sum()),
            ],
            add=[
                ("the weights are missing", lambda g, weights: sum(g)),
                ("each weight is applied twice", lambda g, weights: weighted_sum(g, [w * w for w in weights])),
                ("the gradients are averaged: add them up", lambda g, weights: weighted_sum(g, weights) / len(g)),
                ("only the last loss counts: add the gradients up", lambda g, weights: weights[-1] * g[-1]),
                ("only the first loss counts: return after the loop", lambda g, weights: weights[0] * g[0]),
                ("only two losses count: take all", lambda g, weights: weighted_sum(g[:2], weights[:2])),
                ("every loss gets every weight: go in pairs, with zip", lambda g, weights: sum(weights) * sum(g)),
                ("the gradients' sum begins at 1: begin at zeros", lambda g, weights: 1 + weighted_sum(g, weights)),
                (_ROUNDED, lambda g, weights: weighted_sum(g, weights).float()),
            ],
            gradients=[
                ("leaf.grad adds up over the losses", lambda r, losses: [*itertools.accumulate(at_a_leaf(r, losses))]),
                (_EQUAL, lambda r, losses: [g / g.norm() for g in at_a_leaf(r, losses)]),
                (_EQUAL, lambda r, losses: [g.sign() for g in at_a_leaf(r, losses)]),
                (_NO_CONSTANT, lambda r, f: [torch.autograd.grad(loss(r), r, create_graph=True)[0] for loss in f]),
                (_VALUES, lambda r, losses: [loss(r.detach()) for loss in losses]),
            ],
        ),
        (_TOO, lambda r, losses, weights: surrogate(r, losses, weights) + plain_sum(r, losses, weights)),
        *_SURROGATE_EFFECTS.values(),
        *_RAISED_BY_SURROGATE.values(),
    ]
)


class _Scene:
    """A reconstruction behind the weight of a layer, and losses of it, which count their calls."""

    def __init__(self, weight: Tensor, count: int) -> None:
        self.weight = weight.detach().clone().requires_grad_()
        images = torch.linspace(1, 2, 3 * (len(weight) - 1), dtype=weight.dtype).view(-1, 3, 1, 1)
        self.reconstruction = images * (self.weight.sin() @ self.weight)  # (2, 3, 3, 3) or (3, 3, 4, 4)
        self.judge = torch.ones((), requires_grad=True)  # a weight of the network that judges
        values = (lambda x: (x - 1).pow(2).sum(), lambda x: -(self.judge * x).pow(3).mean(), lambda x: x.sin().sum())
        self.calls, self.passes = [0] * count, 0  # of each loss; back through any of them
        self.losses = [partial(self._counted, number, value) for number, value in enumerate(values[:count])]

    def _counted(self, number: int, value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.calls[number] += 1
        x = x.clone()
        if x.requires_grad:
            x.register_hook(self._count_pass)
        return value(x)

    def _count_pass(self, gradient: Tensor) -> None:
        self.passes += 1


@recipe
def gradient_behind(answer: Any, weight: Tensor, weights: Sequence[float]) -> Any:
    """Return the surrogate's gradient at the weight of a layer that the reconstruction comes from."""
    scene = _Scene(weight, len(weights))
    scalar = call(answer, scene.reconstruction, scene.losses, weights)
    if not isinstance(scalar, Tensor):
        return scalar
    if not scalar.requires_grad:
        return torch.zeros_like(weight)
    return torch.autograd.grad(scalar, scene.weight, allow_unused=True, materialize_grads=True)[0]


@recipe
def effects_of_surrogate(answer: Any, weight: Tensor, weights: Sequence[float]) -> dict[str, bool]:
    """Tell what a surrogate does besides the gradient: to the reconstruction, to the losses, and in a backward pass."""
    learning, scene = _Scene(weight, len(weights)), _Scene(weight, len(weights))
    call(answer, learning.reconstruction, learning.losses, weights)
    scene.judge.requires_grad_(False)
    before = scene.reconstruction.detach().clone()
    scalar = call(answer, scene.reconstruction, scene.losses, weights)
    found = dict.fromkeys(_SURROGATE_EFFECTS, False) | {
        "changed": not torch.equal(scene.reconstruction, before),
        "went back": scene.weight.grad is not None,
        "left": learning.judge.grad is not None,
        "twice": max(scene.calls) > 1,
    }
    if found["changed"] or not scalar.requires_grad:
        return found
    passes = [scene.passes]
    (slope,) = torch.autograd.grad(scalar, scene.reconstruction, create_graph=True)
    passes.append(scene.passes)
    scalar.backward()
    found |= {"late": passes[1] > passes[0], "graph": scene.passes > passes[1], "bent": slope.requires_grad}
    return found


_SCENES = [(*probe((3, 3)), (0.7, 3.0, 2.0)), (*probe((4, 4)), (0.5, 2.0))]
_judge_gradient = judge_function(
    partial(gradient_behind, surrogate),
    _SCENES,
    through_recipe(gradient_behind, SURROGATE_MISTAKES),
    inputs=("weight", "the losses' weights"),
    outputs=("the gradient behind the reconstruction",),
    through=gradient_behind,
)


def _judge_surrogate(attempt: Attempt) -> str | None:
    complaint = _in_words(_judge_gradient(attempt), _RAISED_BY_SURROGATE)
    if complaint and not _has_no_name(complaint):
        return complaint
    found = attempt.run(effects_of_surrogate, *_SCENES[0])
    if complaint:
        return _CHANGED if found["changed"] else _name_gradient(attempt) or (_BENT if found["bent"] else _NO_SUM)
    return _first(_SURROGATE_EFFECTS, found) or _judge_precision(attempt)


def _judge_precision(attempt: Attempt) -> str | None:
    weight, weights = _SCENES[0]
    found, right = (it.run(gradient_behind, weight.double(), weights) for it in (attempt, Local(surrogate)))
    return None if torch.allclose(found, right, rtol=1e-9, atol=1e-9) else _ROUNDED


def _name_gradient(attempt: Attempt) -> str | None:
    """Tell how often each loss counts, in a gradient that is a sum of the losses' gradients."""
    for weight, weights in _SCENES:
        ones = torch.eye(len(weights)).tolist()
        found = attempt.run(gradient_behind, weight, weights)
        factors = _factors(found, [gradient_behind(surrogate, weight, one) for one in ones])
        if factors and not same(torch.tensor(factors), torch.tensor(weights)):
            listed = " and ".join(f"{factor:.3g}" for factor in factors)
            return f"the losses count {listed} times, and their weights are {' and '.join(map(str, weights))}"
    return None


# 08.3


@recipe
def timeline(answer: Any, disc_start: int, disc_warmup: int) -> list[list[str]]:
    """Return what happens in each of the steps 1 to 6, in words."""
    batch, made, judged = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), torch.full((), 2.0)
    things = {"images": batch, "reconstructions": made, "what discriminator_step returns": judged}
    happened: list[list[str]] = []

    def happens(name: str, *arguments: Any) -> None:
        words = []
        for value in arguments:
            if value is ...:
                raise OpenGap(f"an argument of {name}")
            known = (word for word, thing in things.items() if same(thing, value))
            words.append(next(known, str(value) if isinstance(value, bool) else type(value).__name__))
        happened[-1].append(f"{name}({', '.join(words)})")

    def generator_step(images: Any, adversarial: Any) -> Tensor:
        no_flag = adversarial is ... or (isinstance(adversarial, Tensor) and adversarial.numel() > 1)
        happens("generator_step", images, adversarial if no_flag else bool(adversarial))
        return made

    def discriminator_step(images: Any, reconstructions: Any) -> Tensor:
        happens("discriminator_step", images, reconstructions)
        return judged

    for double in (generator_step, discriminator_step):
        double.__qualname__ = double.__name__  # as a TypeError quotes it
    for step in range(1, 7):
        happened.append([])
        try:
            happens("return", call(answer, step, batch, generator_step, discriminator_step, disc_start, disc_warmup))
        except NothingReturned:
            happens("return", None)
    if all(events[-1] == "return(NoneType)" for events in happened):
        raise NothingReturned
    return happened


def scheduled(
    sees=lambda step, start, warmup: step > start,
    trains=lambda step, start, warmup: step > start - warmup,
    given=lambda images, made: (images, made),
    result=lambda images, made, judged: made,
):
    """The step with another schedule, or other tensors handed on."""

    def one_step(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
        made, judged = generator_step(images, sees(step, disc_start, disc_warmup)), None
        if trains(step, disc_start, disc_warmup):
            judged = discriminator_step(*given(images, made))
        return result(images, made, judged)

    return one_step


_ZERO = "0 is taken for never: disc_start=0 means from the first step on, disc_warmup=0 no step before disc_start"
_ONCE = "the condition holds in one step only: it must hold from there on"
_COUNTED = "one step late: step counts from 1 already, so that step > disc_start is right as it stands"
_EXAMPLE = "the numbers of the example are fixed: take the arguments disc_start and disc_warmup"
_TURNS = "the discriminator is trained in every second step only: from its first on it is trained in every one"
_NOT_RETURNED = "what generator_step returns, the reconstructions, is to be returned in every step"
_TWO_STEPS = "the autoencoder makes two steps on one batch: call generator_step once, and hand its result on"
_RESTS = "the autoencoder rests in some steps: it is trained in every one"
_FIRST = "the discriminator's step comes first: it needs the reconstructions of this batch"
_TWO_JUDGED = "the discriminator makes two steps on one batch"
_CALLED = "discriminator_step({}, {}) is called: it takes (images, reconstructions)"
_UPSIDE_DOWN = "the condition is upside down: step > disc_start, and step > disc_start - disc_warmup"
SCHEDULE_MISTAKES = Mistakes(
    [
        *each(
            scheduled,
            sees=[
                ("the discriminator is used one step early: step > disc_start", lambda s, start, w: s >= start),
                ("the discriminator is used in its warm-up: step > disc_start", lambda s, start, w: s > start - w),
                ("the warm-up ends at disc_start: the discriminator is used then", lambda s, start, w: s > start + w),
                ("the discriminator is used from the first step on: step > disc_start", lambda s, start, w: True),
                ("the discriminator is never used", lambda s, start, w: False),
                (_UPSIDE_DOWN, lambda s, start, w: s <= start),
                (_UPSIDE_DOWN, lambda s, start, w: s < start),
                (_ONCE, lambda s, start, w: s == start),
                (_ONCE, lambda s, start, w: s == start + 1),
                (_COUNTED, lambda s, start, w: s > start + 1),
                (_ZERO, lambda s, start, w: start and s > start),
                (_EXAMPLE, lambda s, start, w: s > 4),
            ],
            trains=[
                ("the discriminator is trained one step early: >, not >=", lambda s, start, w: s >= start - w),
                ("the warm-up is ignored: training begins disc_warmup steps early", lambda s, start, w: s > start),
                ("the warm-up is added: training begins before disc_start", lambda s, start, w: s > start + w),
                ("disc_warmup is a number of steps, not the first of them", lambda s, start, w: s > w),
                ("training ends with the warm-up: it must go on", lambda s, start, w: start - w < s <= start),
                ("training ends before disc_start: it must go on", lambda s, start, w: start - w < s < start),
                ("the difference is turned: disc_start - disc_warmup", lambda s, start, w: s > w - start),
                (_UPSIDE_DOWN, lambda s, start, w: s <= start - w),
                (_UPSIDE_DOWN, lambda s, start, w: s < start - w),
                ("the discriminator is trained from the first step on", lambda s, start, w: True),
                ("the discriminator is never trained", lambda s, start, w: False),
                (_TURNS, lambda s, start, w: s > start - w and s % 2 == 0),
                (_TURNS, lambda s, start, w: s > start - w and s % 2 == 1),
                (_ONCE, lambda s, start, w: s == start - w),
                (_ONCE, lambda s, start, w: s == start - w + 1),
                (_COUNTED, lambda s, start, w: s > start - w + 1),
                (_ZERO, lambda s, start, w: w and s > start - w),
                (_EXAMPLE, lambda s, start, w: s > 2),
            ],
            given=[
                (_CALLED.format("reconstructions", "images"), lambda images, made: (made, images)),
                (_CALLED.format("images", "images"), lambda images, made: (images, images)),
                (_CALLED.format("reconstructions", "reconstructions"), lambda images, made: (made, made)),
            ],
            result=[
                (_NOT_RETURNED, lambda images, made, judged: made if judged is None else judged),
                (_NOT_RETURNED, lambda images, made, judged: None if judged is None else made),
            ],
        ),
    ]
)


@SCHEDULE_MISTAKES(_TWO_STEPS)
def reconstruct_twice(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    if step > disc_start - disc_warmup:
        discriminator_step(images, generator_step(images, step > disc_start))
    return generator_step(images, step > disc_start)


@SCHEDULE_MISTAKES(_FIRST)
def train_the_discriminator_first(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    if step > disc_start - disc_warmup:
        discriminator_step(images, images)
    return generator_step(images, step > disc_start)


@SCHEDULE_MISTAKES(_RESTS)
def train_the_discriminator_alone(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    if disc_start - disc_warmup < step <= disc_start:
        discriminator_step(images, images)
        return images
    return training_step(step, images, generator_step, discriminator_step, disc_start, disc_warmup)


_Events = list[list[str]]  # of each step
_CALLS = [f"generator_step(images, {heard})" for heard in (True, False)] + [
    "discriminator_step(images, reconstructions)"
]
_SCHEDULES = ((4, 2), (2, 0), (0, 0), (1, 3))


def _events(attempt: Attempt) -> _Events:
    return [step for schedule in _SCHEDULES for step in attempt.run(timeline, *schedule)]


def _happens(event: str, events: _Events) -> list[bool]:
    return [any(it.startswith(event) for it in step) for step in events]


_events_of = cache(lambda answer: _events(Local(answer)))


def _judge_schedule(attempt: Attempt) -> str | None:
    refused = _refuse(attempt)
    if refused:
        return refused
    found, expected = _events(attempt), _events_of(training_step)
    in_a_step = next(filter(None, map(_name_step, found)), None)
    if in_a_step or found == expected:
        return in_a_step
    for event in ("generator_step(images, True)", "discriminator_step"):
        for message, code in SCHEDULE_MISTAKES:
            if _happens(event, found) == _happens(event, _events_of(code)) != _happens(event, expected):
                return message
    number = [a == b for a, b in zip(found, expected, strict=True)].index(False)
    (start, warmup), step = _SCHEDULES[number // 6], number % 6 + 1
    wanted, got = ", ".join(expected[number]), ", ".join(found[number])
    return f"in step {step}, with disc_start={start} and disc_warmup={warmup}: expected {wanted}; got {got}"


def _name_step(events: list[str]) -> str | None:
    """Name what is wrong in one step, whenever it is made."""
    order = "".join(event[0] for event in events)  # of generator_step, discriminator_step and return
    if order.count("g") != 1:
        return _TWO_STEPS if "g" in order else _RESTS
    if order != "gr" and order != "gdr":
        return _FIRST if order == "dgr" else _TWO_JUDGED
    for event, right in zip(events[:-1], ("(images, adversarial)", "(images, reconstructions)"), strict=False):
        if event not in _CALLS:
            return f"{event} is called: it takes {right}"
    return None if events[-1] == "return(reconstructions)" else _NOT_RETURNED


# 08.4


def averaged(
    rate=lambda n, decay: min(decay, (1 + n) / (10 + n)),
    blend=lambda average, weight, d: d * average + (1 - d) * weight,
    context=torch.no_grad,
):
    """The update with another rate, or another blend, or in another context."""

    def update(averages, weights, n, decay=0.9999):
        with context():
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(blend(average.clone(), weight, rate(n, decay)))
        return averages

    return update


def replace_averages(averages, weights, n, decay=0.9999):
    averages[:] = ema_update([average.clone() for average in averages], weights, n, decay)
    return averages


_UNCHANGED = (
    "the averages stay as they were: change every one in place (mul_, add_, lerp_, copy_), whether it requires a "
    "gradient or not; average = … only renames"
)
_FORMULA = "d is the smaller of decay and (1 + n) / (10 + n), with both brackets"
_WEIGHTS_CHANGED = "the weights are changed: they belong to the model that trains, change the averages only"
_FROZEN = "the weights are frozen: leave their requires_grad, they are being trained"
_NO_RETURN = "the averages are right, but they are not what is returned"
_ONLY_FIRST = "only the first average moves: is the return inside of the loop?"
_ONLY_LAST = "only the last average moves: is the update outside of the loop?"
_DECAY = "without its last argument the update must use decay=0.9999"
_UPDATE_EFFECTS = {
    "weights": (_WEIGHTS_CHANGED, averaged(blend=lambda a, w, d: d * a + w.mul_(1 - d))),
    "other tensors": ("the list has new tensors in it: change the old ones, with mul_ and add_", replace_averages),
    "graph": ("the averages get a graph: work in torch.no_grad()", averaged(context=torch.enable_grad)),
    "frozen": (_FROZEN, lambda a, weights, *rest: ema_update(a, [w.requires_grad_(False) for w in weights], *rest)),
    "other result": (_NO_RETURN, lambda *given: [average.clone() for average in ema_update(*given)]),
}
_RAISED_BY_UPDATE = {
    "leaf Variable": (_WEIGHTS_CHANGED, lambda averages, weights, *_: weights[0].mul_(0.1)),
    "equal size": ("the shapes differ: update pair after pair", lambda averages, *_: torch.stack(averages)),
}
EMA_MISTAKES = Mistakes(
    [
        *each(
            averaged,
            blend=[
                (_UNCHANGED, lambda a, w, d: a),
                ("d and 1 - d are exchanged: the average keeps the share d", lambda a, w, d: (1 - d) * a + d * w),
                ("the average is not scaled by d before the weights are added", lambda a, w, d: a + (1 - d) * w),
                ("the weights are not scaled by 1 - d", lambda a, w, d: d * a + w),
                ("the weights are missing: add them, times 1 - d, in place", lambda a, w, d: d * a),
                ("1 - d itself is added: it multiplies the weights", lambda a, w, d: d * a + 1 - d),
                ("the sign: average + (1 - d) · (weight - average)", lambda a, w, d: a + (1 - d) * (a - w)),
                ("d scales the average before the difference is taken", lambda a, w, d: d * a + (1 - d) * (w - d * a)),
                (_WEIGHTS_CHANGED, lambda a, w, d: [w.lerp_(a, 1 - d), a][1]),
            ],
            rate=[
                (f"the warm-up has no effect: {_FORMULA}", lambda n, decay: decay),
                (f"d is the larger of the two: {_FORMULA}", lambda n, decay: max(decay, (1 + n) / (10 + n))),
                (f"the two are multiplied: {_FORMULA}", lambda n, decay: decay * (1 + n) / (10 + n)),
                ("decay is ignored: it limits the share d", lambda n, decay: (1 + n) / (10 + n)),
                ("decay is a fixed number: take the argument", lambda n, decay: min(0.9999, (1 + n) / (10 + n))),
                ("the warm-up is one update ahead: n counts from 1", lambda n, decay: min(decay, (2 + n) / (11 + n))),
                ("the warm-up is one update late: n counts from 1", lambda n, decay: min(decay, n / (9 + n))),
                (f"the 1 is missing in the warm-up: {_FORMULA}", lambda n, decay: min(decay, n / (10 + n))),
                ("this is the plain mean of n updates: take the formula's d", lambda n, decay: min(decay, (n - 1) / n)),
                ("the averages become the weights: d is 0, as by copy_ or //", lambda n, decay: 0),
            ],
        ),
        (_ONLY_FIRST, lambda averages, weights, *rest: [ema_update(averages[:1], weights[:1], *rest), averages][1]),
        (_ONLY_LAST, lambda averages, weights, *rest: [ema_update(averages[-1:], weights[-1:], *rest), averages][1]),
        (_DECAY, lambda averages, weights, n, decay=0.999: ema_update(averages, weights, n, decay)),
        *_UPDATE_EFFECTS.values(),
        *_RAISED_BY_UPDATE.values(),
    ]
)


@recipe
def updated(answer: Any, averages: Tensor, weights: Tensor, n: int, *decay: float) -> Tensor:
    """Return both averages after the update, in one vector."""
    mine = [averages[0].clone(), averages[1:].clone()]
    call(answer, mine, [nn.Parameter(weights[0].clone()), nn.Parameter(weights[1:].clone())], n, *decay)
    return torch.cat([average.flatten() for average in mine])


@recipe
def effects_of_update(answer: Any) -> dict[str, bool]:
    """Make an update, and tell what it does besides the new values of the averages."""
    averages, weights = [torch.zeros(3)], [nn.Parameter(torch.ones(3))]
    average = averages[0]
    result = call(answer, averages, weights, 1, 0.5)
    return {
        "weights": not torch.equal(weights[0], torch.ones(3)),
        "other tensors": averages[0] is not average,
        "graph": average.requires_grad,
        "frozen": not weights[0].requires_grad,
        "other result": not isinstance(result, (list, tuple)) or len(result) != 1 or result[0] is not average,
    }


_UPDATES = [(*probe((3, 4), (3, 4)), *rest) for rest in ((1, 0.9), (5, 0.99), (1000, 0.95), (10**6,))]
_judge_averages = judge_function(
    partial(updated, ema_update),
    _UPDATES,
    through_recipe(updated, EMA_MISTAKES),
    inputs=("the averages", "the weights", "n", "decay"),
    outputs=("the averages",),
    through=updated,
)


def _judge_ema(attempt: Attempt) -> str | None:
    complaint = _in_words(_judge_averages(attempt), _RAISED_BY_UPDATE)
    if _has_no_name(complaint):
        return _name_average(attempt) or complaint
    if complaint and complaint != _UNCHANGED:
        return complaint
    found = attempt.run(effects_of_update)
    return _WEIGHTS_CHANGED if found["weights"] else complaint or _first(_UPDATE_EFFECTS, found)


def _name_average(attempt: Attempt) -> str | None:
    """Tell which shares of average and weight a wrong average is made of."""
    for averages, weights, *rest in _UPDATES:
        found, right = (it.run(updated, averages, weights, *rest) for it in (attempt, Local(ema_update)))
        shares = _factors(found, [averages, weights])
        if shares and not same(found, right):
            n, *decay = rest
            if not decay:
                return _DECAY
            d = min(*decay, (1 + n) / (10 + n))
            mine = f"the average keeps {shares[0]:.3g} of itself and takes {shares[1]:.3g} of the weight"
            return f"in update n={n}, with decay={decay[0]}, {mine}: it should be d and 1 - d, with d = {d:.3g}"
    return None


# 08.5


@dataclass
class Run:
    """A training run between two steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module  # the model with averaged weights
    step: int = 0


def _run() -> Run:
    """Make three steps of a model with dropout, so that the random numbers matter, and with running statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    run = Run(model, torch.optim.AdamW(model.parameters(), lr=0.05), copy.deepcopy(model))
    _go_on(run, 3)
    return run


def _go_on(run: Run, count: int) -> None:
    for _ in range(count):
        run.step += 1
        loss = (run.model(torch.randn(2, 4)) - run.step).pow(2).mean()
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        ema_update([*run.average.parameters()], [*run.model.parameters()], run.step)


def _state(run: Run) -> dict[str, Any]:
    """Copy the state that a snapshot has to hold, in a form that can be compared; and the model's mode."""
    optimizer = run.optimizer.state_dict()
    memory = [value.clone() for of_one in optimizer["state"].values() for value in of_one.values()]
    settings = [{name: group[name] for name in group if name != "params"} for group in optimizer["param_groups"]]
    return {
        "model": [*map(torch.clone, run.model.state_dict().values())],
        "optimizer": [memory, settings],
        "average": [*map(torch.clone, run.average.state_dict().values())],
        "step": run.step,
        "random": torch.get_rng_state(),
        "mode": [
            run.model.training,
            run.average.training,
            *(weight.requires_grad for weight in run.model.parameters()),
        ],
    }


@recipe
def restored(take: Any) -> dict[str, Any]:
    """Take a snapshot, go on, and restore; return the run's state at each of these points, and the snapshot's keys."""
    run = _run()
    found: dict[str, Any] = {"before": _state(run)}
    kept = call(take, run)
    found |= {"type": type(kept).__name__, "taken": _state(run)}
    if not isinstance(kept, dict):
        return found
    open_gaps = [str(name) for name, value in kept.items() if value is ...]
    if open_gaps:
        raise Blank if len(open_gaps) == len(kept) else OpenGap(", ".join(open_gaps))
    found |= {"keys": [str(key) for key in kept], "error": ""}
    try:
        _go_on(run, 2)
        found["moved"] = _state(run)
        call(take, run)  # a later snapshot leaves an earlier one as it is
        restore(run, kept)
    except Exception as error:
        found["error"] = f"it raised {one_line(error)}"
    return found | {"after": _state(run)}


_KEYS = ("model", "optimizer", "average", "step", "random")
_WHAT_IT_COSTS = {
    "model": "the model's weights are missing",
    "optimizer": "the optimiser's state is missing: Adam's averages of the gradient would start from nothing",
    "average": "the averaged weights are missing",
    "step": "the number of the step is missing: learning rate and data follow from it",
    "random": "the random numbers' state is missing: torch.get_rng_state()",
}
_OTHER_VALUES = (
    'under "{}" lies something else than what the run held at that moment, or a tensor that the run changes later'
)
_REFERENCES = "state_dict() hands out the tensors themselves, which the next steps change: copy.deepcopy it"
_DRAWN = "it draws a random number, or sets a seed: only look at the state, torch.get_rng_state()"
_MODE = "the run's model is left in eval mode, or frozen: a snapshot only looks"
_RUN_CHANGED = "taking the snapshot changes the run itself, which goes on otherwise than without it: only look"
_HALVES = "the weights are kept in half precision, and come back rounded: keep them as they are"
_NOT_THE_STATE = "restore needs what state_dict() gives, with its brackets: the names of the weights, and tensors"
_NOT_RANDOM = 'under "random" restore needs the tensor that torch.get_rng_state() gives'
_OBJECT = "whole objects are kept, not their state: restore needs what state_dict() gives"
_EXCHANGED = "the model's weights and the averaged ones are exchanged, or the same: each state has its own key"
_NOT_WHOLE = 'under "optimizer" restore needs all that state_dict() gives: "state" and "param_groups"'
_WITH_A_GRAPH = "the tensors are kept with a graph: copy.deepcopy what state_dict() gives"
_ONE_DICTIONARY = (
    "one dictionary is used for all snapshots: a later one changes those before, so make a new one each time"
)
_HOLLOW = "the optimiser's settings are kept without its state: Adam's averages would start from nothing"


def halves(module):
    return {name: weight.half() for name, weight in module.state_dict().items()}


def states(*names):
    return {name: lambda run, name=name: getattr(run, name).state_dict() for name in names}


def snapshot_with(missing="", **changed):
    """The snapshot with parts made otherwise, or without one."""
    return lambda run: {
        name: changed[name](run) if name in changed else value
        for name, value in snapshot(run).items()
        if name != missing
    }


def snapshot_and(act):
    """The snapshot, and something done to the run."""
    return lambda run: [snapshot(run), act(run)][0]


_RAISED_BY_RESTORE = {
    "'AdamW' object": (_OBJECT, snapshot_with(optimizer=lambda run: copy.deepcopy(run.optimizer))),
    "torch.ByteTensor": (_NOT_RANDOM, snapshot_with(random=lambda run: torch.get_rng_state)),
    "dict-like": (_NOT_THE_STATE, snapshot_with(model=lambda run: run.model.state_dict)),
    "'generator'": (_NOT_THE_STATE, snapshot_with(model=lambda run: run.model.parameters())),
    "Tensor-like": (_NOT_THE_STATE, snapshot_with(model=lambda run: dict.fromkeys(run.model.state_dict()))),
    "'param_groups'": (_NOT_WHOLE, snapshot_with(optimizer=lambda run: run.optimizer.state_dict()["state"])),
    "parameter groups": (_NOT_WHOLE, snapshot_with(optimizer=lambda run: run.optimizer.state)),
    "list indices": (_NOT_WHOLE, snapshot_with(optimizer=lambda run: run.optimizer.param_groups)),
    "attribute 'copy'": (_NOT_WHOLE, snapshot_with(optimizer=lambda run: run.optimizer.state_dict)),
    "Missing key(s)": (_NOT_THE_STATE, snapshot_with(model=lambda run: {})),
    "graph leaves": (_WITH_A_GRAPH, snapshot_with(model=lambda run: {"w": run.model[0].weight.clone()})),
    "NoneType": ("a part is None: restore needs the state of each", snapshot_with(optimizer=lambda run: None)),
}
SNAPSHOT_MISTAKES = Mistakes(
    [
        (f"nothing is copied: {_REFERENCES}", snapshot_with(**states("model", "optimizer", "average"))),
        (f"not copied: model and average; {_REFERENCES}", snapshot_with(**states("model", "average"))),
        *((f"not copied: {name}; {_REFERENCES}", snapshot_with(**states(name))) for name in _KEYS[:3]),
        *((message, snapshot_with(name)) for name, message in _WHAT_IT_COSTS.items()),
        (_EXCHANGED, lambda run: snapshot(Run(run.average, run.optimizer, run.model, run.step))),
        (_EXCHANGED, snapshot_with(average=lambda run: copy.deepcopy(run.model.state_dict()))),
        (_EXCHANGED, snapshot_with(model=lambda run: copy.deepcopy(run.average.state_dict()))),
        (_OBJECT, lambda run: {**snapshot(run), **{name: copy.deepcopy(getattr(run, name)) for name in _KEYS[:3]}}),
        (_OTHER_VALUES.format("step"), snapshot_with(step=lambda run: run.step + 1)),
        (_OTHER_VALUES.format("random"), snapshot_with(random=lambda run: torch.Generator().get_state())),
        ("a seed is where random numbers began: get_rng_state()", snapshot_with(random=lambda run: 0)),
        (_HOLLOW, snapshot_with(optimizer=lambda run: copy.deepcopy(run.optimizer.state_dict()) | {"state": {}})),
        (_HALVES, snapshot_with(model=lambda run: halves(run.model))),
        (_HALVES, snapshot_with(model=lambda run: halves(run.model), average=lambda run: halves(run.average))),
        (_DRAWN, snapshot_with(random=lambda run: torch.rand(1))),
        (_ONE_DICTIONARY, lambda run, kept={}: kept.update(snapshot(run)) or kept),
        (_MODE, snapshot_and(lambda run: run.model.eval())),
        (_MODE, snapshot_and(lambda run: run.model.requires_grad_(False))),
        (_RUN_CHANGED, snapshot_and(lambda run: setattr(run, "step", run.step + 1))),
        *_RAISED_BY_RESTORE.values(),
    ]
)
_found_of = cache(restored)


def _judge_snapshot(attempt: Attempt) -> str | None:
    refused = _refuse(attempt)
    if refused:
        return refused
    found = attempt.run(restored)
    changed = [name for name, value in found["before"].items() if not _equal(value, found["taken"][name])]
    if changed:
        return {"random": _DRAWN, "mode": _MODE}.get(changed[-1], _RUN_CHANGED)
    if "keys" not in found:
        return f"expected a dictionary, got {found['type']}"
    wrong = [name for name in _KEYS if not _equal(found["before"][name], found["after"][name])]
    if not found["error"] and not wrong:
        return None
    named = (message for message, code in SNAPSHOT_MISTAKES if _equal(found, _found_of(code)))
    error = _in_words(found["error"], _RAISED_BY_RESTORE) or ""
    return next(named, None) or error.replace("it raised", "restore raised") or _name_parts(wrong, found)


def _name_parts(wrong: list[str], found: dict[str, Any]) -> str:
    """Name what is the matter with parts that are not as they were when the snapshot was taken."""
    unknown = [name for name in found["keys"] if name not in _KEYS]
    if unknown:
        return f"restore does not know {', '.join(unknown)}: the keys are {', '.join(_KEYS)}"
    kept = [name for name in wrong if name in found["keys"]]
    references = [name for name in kept if _equal(found["after"][name], found["moved"][name])]
    if references:
        return f"not copied: {' and '.join(references)}; {_REFERENCES}"
    return "; ".join(_OTHER_VALUES.format(name) if name in kept else _WHAT_IT_COSTS[name] for name in wrong)


def _equal(a: Any, b: Any) -> bool:
    """Tell whether two values are equal to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b) and not isinstance(a, Tensor) and not isinstance(b, Tensor)


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
        mistakes=GENERATOR_MISTAKES,
    ),
    Exercise(
        id="08.2",
        title="One backward pass for all losses",
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
        mistakes=SURROGATE_MISTAKES,
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
        mistakes=SCHEDULE_MISTAKES,
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
        mistakes=EMA_MISTAKES,
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
        mistakes=SNAPSHOT_MISTAKES,
    ),
)
