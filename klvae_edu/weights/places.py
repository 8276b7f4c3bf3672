"""Find an autoencoder among the names of a file: under which prefix it is, and what else is there.

The prefix is where the encoder's and the decoder's first tensor are, at any depth: bare, in Stable Diffusion's
checkpoints under `first_stage_model.`, in a trainer's file for example under `module.ema.vae.`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from klvae_edu.weights.checks import shortened
from klvae_edu.weights.foreign import CLASSES, recognised
from klvae_edu.weights.keys import ROOTS, is_known, uncompiled

_FIRST = ("encoder.conv_in.weight", "decoder.conv_in.weight")
_AVERAGED = re.compile(r"(.*[._])?(ema|averag\w*|shadow|swa)([._].*)?", re.IGNORECASE)
_USUAL = "first_stage_model. or vae."
_MAX_NAMED = 5
_MAX_PARTS = 9  # of a tensor's name without a prefix


def find_places(names: Iterable[str]) -> dict[str, int]:
    """Find the prefixes of autoencoders among `names`: prefix -> number of known tensors.

    Prefixes with a whole autoencoder come alone. If there are none, prefixes with a part of one are returned.
    """
    places: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for name in map(uncompiled, names):
        parts = name.split(".")
        for position in range(max(0, len(parts) - _MAX_PARTS), len(parts)):
            rest = ".".join(parts[position:])
            if parts[position] in ROOTS and is_known(rest):
                prefix = "".join(f"{part}." for part in parts[:position])
                places[prefix] += 1
                whole[prefix] += rest in _FIRST
    complete = {prefix: places[prefix] for prefix in places if whole[prefix] == len(_FIRST)}
    return complete or dict(places)


def choose_place(names: Iterable[str], prefix: str | None = None, ema: bool = False) -> tuple[str, str | None]:
    """Choose the prefix of the autoencoder to read. Return it, and the prefix of the other one of two; None: none.

    Args:
        names: names of all tensors.
        prefix: the prefix to take, with or without a dot at its end; None: the only one, or of two the one that does
            not hold averaged weights.
        ema: take the one with averaged weights, if there are two.

    Raises:
        ValueError: there is no autoencoder, none under `prefix`, or it is not clear which one to take.
    """
    names = list(names)
    places = find_places(names)
    if not places and (kind := recognised(names)):
        raise ValueError(f"{kind}; expected an {CLASSES[0]}")
    if not places:
        listed = ", ".join(names[:_MAX_NAMED]) + (f", … ({len(names)} in all)" if len(names) > _MAX_NAMED else "")
        raise ValueError(
            "no autoencoder in it: expected names such as encoder.conv_in.weight and decoder.conv_in.weight, bare or "
            f"after a prefix such as {_USUAL}; found {listed or 'no tensors'}"
        )
    if prefix is not None:
        wanted = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        if wanted not in places:
            raise ValueError(f"no autoencoder under {wanted or 'no prefix'}; there is one {_listed(places)}")
        return wanted, None
    if len(places) == 1:
        return next(iter(places)), None
    averaged = [place for place in places if _AVERAGED.fullmatch(place)]
    plain = [place for place in places if place not in averaged]
    if len(averaged) == len(plain) == 1:
        return (averaged[0], plain[0]) if ema else (plain[0], averaged[0])
    raise ValueError(f"more than one autoencoder: {_listed(places)}; choose one: {how_to_choose(max(places))}")


def how_to_choose(place: str) -> str:
    """Say how the autoencoder under a prefix is chosen: in Python, and in a command."""
    return f"prefix={place!r} in Python, FILE#{place.rstrip('.')} in a command"


def named(place: str) -> str:
    """Name a place: "under vae", or "bare"."""
    return f"under {place.rstrip('.')}" if place else "bare"


def count_by_kind(names: Iterable[str]) -> str:
    """Count names by their first part: "136 under loss, 2 under model_ema, global_step"."""
    kinds = Counter(f"under {first}" if rest else first for first, _, rest in (name.partition(".") for name in names))
    several = [f"{count} {kind}" if kind.startswith("under ") else kind for kind, count in kinds.most_common()]
    return ", ".join(several[:8]) + (f", … ({len(several)} kinds)" if len(several) > 8 else "")


def _listed(places: dict[str, int]) -> str:
    return " and ".join(shortened([f"{count} tensors {named(place)}" for place, count in places.items()]))
