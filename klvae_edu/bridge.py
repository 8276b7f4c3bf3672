"""The bridge to diffusers: its own class around the weights of a model, without a copy.

diffusers' pipelines accept only subclasses of its `ModelMixin` in `from_pretrained(pipe, vae=…)`, and save and adapt
only those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from klvae_edu.autoencoder import AutoencoderKL

if TYPE_CHECKING:
    import diffusers


def as_diffusers(vae: AutoencoderKL) -> diffusers.AutoencoderKL:
    """Return diffusers' model whose parameters and buffers are those of `vae`: training one trains both.

    It is diffusers' `AutoencoderKL`, or for FLUX.2's networks its `AutoencoderKLFlux2`, in the same mode.
    Tiling, slicing and gradient checkpointing have to be switched on there. `.to(…)` with another type or device
    separates the two.

    Raises:
        ImportError: diffusers is not installed, or too old for this class.
        ValueError: the configuration has values that diffusers ignores, such as `padding_mode="reflect"`; or `vae` is a
            copy for inference, as in `ModelMixin.checked_weights`.
    """
    config = vae.config
    if ignored := config.ignored_by_diffusers():
        values = ", ".join(f"{name}={getattr(config, name)!r}" for name in ignored)
        raise ValueError(f"diffusers' {config.diffusers_class} ignores {values}: it would compute something else")
    weights = vae.checked_weights()
    try:
        import diffusers

        with torch.device("meta"):  # without weights of its own
            model: Any = getattr(diffusers, config.diffusers_class)(**config.to_dict())
    except (ImportError, AttributeError, TypeError) as error:  # the class, or a field of it, came later
        raise ImportError(f"expected a diffusers that has this model (pip install -U diffusers): {error}") from error
    model.load_state_dict(weights, strict=True, assign=True)
    # `assign` makes new parameters of the same memory; with the same parameters the gradients are shared, too.
    for name, parameter in vae.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, parameter)
    return model.train(vae.training)
