"""The exercises of notebook 15, vector quantisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu import latents
from klvae_edu.exercises.attempt import Attempt, call, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe, through_recipe
from klvae_edu.exercises.solutions.nb15 import quantise

NOTEBOOK = "15_vector_quantisation"

# 15.1


def _rows(z):
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def _nearest(z, codebook, choose=lambda vectors, codebook: torch.cdist(vectors, codebook).argmin(1)):
    return codebook[choose(_rows(z), codebook)].view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)


def _to_codebook(z, e):
    return F.mse_loss(e, z.detach())


def _to_latent(z, e):
    return F.mse_loss(z, e.detach())


def _quantised(
    nearest=_nearest,
    *,
    through=lambda z, e: z + (e - z).detach(),
    codebook_loss=_to_codebook,
    commitment_loss=_to_latent,
):
    """The solution with one of its parts exchanged."""

    def code(z, codebook):
        e = nearest(z, codebook)
        return through(z, e), codebook_loss(z, e), commitment_loss(z, e)

    return code


def _not_permuted(z, codebook):
    vectors = z.reshape(-1, z.shape[1])
    return codebook[torch.cdist(vectors, codebook).argmin(1)].view_as(z)


def _sides_exchanged(z, codebook):
    b, c, h, w = z.shape
    found = codebook[torch.cdist(_rows(z), codebook).argmin(1)]
    return found.reshape(b, w, h, c).permute(0, 3, 2, 1)


def _each_channel(z, codebook):
    """The nearest value of every channel by itself."""
    found = [codebook[(z[:, c, ..., None] - codebook[:, c]).abs().argmin(-1), c] for c in range(z.shape[1])]
    return torch.stack(found, 1)


def _softly(z, codebook):
    weights = (-torch.cdist(_rows(z), codebook)).softmax(1)
    return (weights @ codebook).view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)


_CHOICES = {
    "the farthest vector is taken": lambda v, c: torch.cdist(v, c).argmax(1),
    "the vector with the largest product is taken, which favours long ones": lambda v, c: (v @ c.T).argmax(1),
    "the vector of the most similar direction is taken": lambda v, c: (F.normalize(v) @ F.normalize(c).T).argmax(1),
    "the distance is the sum of absolute differences": lambda v, c: torch.cdist(v, c, p=1).argmin(1),
    "differences are summed, and cancel each other": lambda v, c: (v[:, None] - c).sum(-1).abs().argmin(1),
    "the nearest to -z is taken, as the product has the wrong sign": lambda v, c: torch.cdist(-v, c).argmin(1),
    "one channel alone is compared": lambda v, c: (v[:, :1] - c[:, 0]).abs().argmin(1),
    # by their exceptions
    "for each code a position is chosen": lambda v, c: torch.cdist(v, c).argmin(0),
    "there is one index for all positions": lambda v, c: torch.cdist(v, c).argmin(),
    "the distances themselves are no indices": torch.cdist,
}
_LOOKUPS = {
    "the vectors are cut across the channels": _not_permuted,
    "(B, h, w, C) is viewed in another shape, which only renames its values": lambda z, codebook: (
        _nearest(z, codebook).permute(0, 2, 3, 1).reshape(z.shape)
    ),
    "height and width are exchanged on the way back": _sides_exchanged,
    # by their exceptions
    "z is not in rows": torch.cdist,
    "a view of permuted values fails, so use reshape": lambda z, codebook: z.permute(0, 2, 3, 1).view(-1, z.shape[1]),
    "4 channels are written into the code, not z.shape[1]": lambda z, codebook: torch.cdist(
        _rows(z).view(-1, 4), codebook
    ),
    "the vectors are not permuted back": lambda z, codebook: _nearest(z, codebook).permute(0, 2, 3, 1) - z,
}
_ERRORS_OF = {
    "summed": partial(F.mse_loss, reduction="sum"),
    "absolute": F.l1_loss,
    "a norm": lambda a, b: (a - b).norm(),
    "summed over each image": lambda a, b: (a - b).pow(2).sum() / len(a),
    "under a root": lambda a, b: F.mse_loss(a, b).sqrt(),
    "summed over the channels": lambda a, b: (a - b).pow(2).sum(1).mean(),
    "not averaged": lambda a, b: (a - b).pow(2),
    "weighted by 0.1": lambda a, b: 0.1 * F.mse_loss(a, b),
    "weighted by 0.25": lambda a, b: 0.25 * F.mse_loss(a, b),
    "halved": lambda a, b: 0.5 * F.mse_loss(a, b),
    "doubled": lambda a, b: 2 * F.mse_loss(a, b),
}
_THROUGH = {
    "it is z itself, and has not the codebook's values": lambda z, e: z,
    "no gradient reaches z: argmin has none, and in z + (nearest - z) z cancels": lambda z, e: e,
    "no gradient reaches z, which must not be detached where it is added": lambda z, e: e.detach(),
    "the gradient goes straight to z, and to the codebook as well": lambda z, e: e + z - z.detach(),
    "the gradient to z has the wrong sign, and the codebook gets one": lambda z, e: z.detach() + e - z,
    "the difference has the wrong sign": lambda z, e: z - (e - z).detach(),
}
_LOSSES = {
    "they are exchanged": (_to_latent, _to_codebook),
    "nothing is detached in them, so that each moves both": (F.mse_loss, F.mse_loss),
    "the first moves z, too": (F.mse_loss, _to_latent),
    "the second moves the codebook, too": (_to_codebook, F.mse_loss),
    "both move the codebook alone": (_to_codebook, _to_codebook),
    "both move z alone": (_to_latent, _to_latent),
    "the first is of the straight-through result, whose gradient is z's": (
        lambda z, e: F.mse_loss(z + (e - z).detach(), z.detach()),
        _to_latent,
    ),
    "neither has a gradient": (lambda z, e: F.mse_loss(e, z).detach(), lambda z, e: F.mse_loss(z, e).detach()),
    "the first has no gradient": (lambda z, e: F.mse_loss(e, z).detach(), _to_latent),
    "the second has no gradient": (_to_codebook, lambda z, e: F.mse_loss(z, e).detach()),
}


def _losses(codebook_loss=_to_codebook, commitment_loss=_to_latent):
    return _quantised(codebook_loss=codebook_loss, commitment_loss=commitment_loss)


_PERMUTED = "permute to (B, h, w, C), flatten to (B·h·w, C), and back to (B, C, h, w) at the end"
VQ_MISTAKES = Mistakes(
    [
        *(
            (f"{fault}: take the nearest vector, torch.cdist(vectors, codebook).argmin(1)", _quantised(nearest))
            for fault, nearest in (
                *((fault, partial(_nearest, choose=choose)) for fault, choose in _CHOICES.items()),
                ("each channel is quantised by itself", _each_channel),
                ("a mixture of codebook vectors is taken", _softly),
                ("every value is rounded to a whole number", lambda z, codebook: z.round()),
            )
        ),
        *((f"{fault}: {_PERMUTED}", _quantised(nearest)) for fault, nearest in _LOOKUPS.items()),
        *(
            (f"the first result: {fault}; return z + (nearest - z).detach()", _quantised(through=through))
            for fault, through in _THROUGH.items()
        ),
        *(
            (f"the losses: {fault}; the codebook loss moves the codebook alone, the other z alone", _losses(*losses))
            for fault, losses in _LOSSES.items()
        ),
    ]
)
VQ_MISTAKES += [
    (f"{which} {fault}; take the mean squared error over all values", _losses(*losses))
    for fault, loss in _ERRORS_OF.items()
    for which, *losses in (
        ("both losses are", lambda z, e, loss=loss: loss(e, z.detach()), lambda z, e, loss=loss: loss(z, e.detach())),
        ("the codebook loss is", lambda z, e, loss=loss: loss(e, z.detach())),
        ("the commitment loss is", _to_codebook, lambda z, e, loss=loss: loss(z, e.detach())),
    )
]

_LATENTS = [probe((2, 3, 4, 5), (6, 3), scale=2.0), probe((3, 2, 3, 3), (5, 2), scale=2.0)]
_RESULTS = ("the quantised latent", "the codebook loss", "the commitment loss")


@recipe
def gradients_of_each(answer: Any, z: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of each result with respect to z and to the codebook."""
    leaves = [x.clone().requires_grad_() for x in (z, codebook)]
    copies = [leaf.clone() for leaf in leaves]  # autograd allows no in-place operation on a leaf itself
    found: list[Tensor] = []
    for result in call(answer, *copies):
        total = (result * torch.linspace(1, 2, result.numel()).view(result.shape)).sum()
        if not total.requires_grad:
            total = total + 0 * leaves[0].sum()
        found += torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    return tuple(found)


_judge_values = judge_function(quantise, _LATENTS, VQ_MISTAKES, inputs=("z", "codebook"), outputs=_RESULTS)
_judge_gradients = judge_function(
    partial(gradients_of_each, quantise),
    _LATENTS,
    through_recipe(gradients_of_each, VQ_MISTAKES),
    inputs=("z", "codebook"),
    outputs=[f"the gradient of {result} with respect to {leaf}" for result in _RESULTS for leaf in ("z", "codebook")],
    through=gradients_of_each,
)


def _judge_quantise(attempt: Attempt) -> str | None:
    return _judge_values(attempt) or _judge_gradients(attempt)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="15.1",
        title="The nearest vector of a codebook",
        notebook=NOTEBOOK,
        minutes=20,
        difficulty=4,
        reference=quantise,
        in_package=(latents.quantise,),  # which rounds every value by itself, without a codebook
        hints=(
            "At each position z has a vector of C values. How do you get one vector per row, and back again?",
            "codebook[torch.cdist(vectors, codebook).argmin(1)]. In z + (…).detach() the gradient goes to z alone.",
            "F.mse_loss(nearest, z.detach()) moves the codebook, F.mse_loss(z, nearest.detach()) moves z.",
        ),
        judge=_judge_quantise,
        mistakes=VQ_MISTAKES,
    ),
)
