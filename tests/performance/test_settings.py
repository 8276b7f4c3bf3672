"""Settings of a model: attention backends, gradient checkpointing. Slices and tiles are in test_tiling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.blocks import BACKENDS


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=dtype).view(2, 3, 32, 32)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_model_takes_any_backend(name: str) -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0).double()
    x = torch.linspace(-1, 1, 3 * 32 * 32, dtype=torch.float64).view(1, 3, 32, 32)
    with torch.no_grad():
        expected = vae(x).sample
        vae.set_attention_backend(name)
        assert {half.mid_block.attentions[0].backend for half in (vae.encoder, vae.decoder)} == {name}
        torch.testing.assert_close(vae(x).sample, expected, rtol=1e-12, atol=1e-12)


def test_an_unknown_backend_is_refused_and_the_known_ones_are_named() -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    with pytest.raises(ValueError, match="sdpa, eager, chunked, got 'xformers'"):
        vae.set_attention_backend("xformers")


# ---- Gradient checkpointing ------------------------------------------------------------------------------------------


def gradients(model: AutoencoderKL) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(image(torch.float64)).sample
    output.pow(2).sum().backward()
    return output.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def kept_for_backward(model: AutoencoderKL) -> int:
    """Count the bytes that autograd keeps for the backward pass, without parameters."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(image(torch.float64)).sample  # keep the output, so that no storage is reused
    assert output.requires_grad
    return sum(kept.values())


def test_checkpointing_gives_the_same_output_and_gradients_and_keeps_less() -> None:
    model = AutoencoderKL.from_preset("tiny", seed=0).double()
    output, expected = gradients(model)
    plain = kept_for_backward(model)
    model.enable_gradient_checkpointing()
    checkpointed_output, found = gradients(model)
    assert torch.equal(checkpointed_output, output)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
    assert kept_for_backward(model) < 0.4 * plain
    model.disable_gradient_checkpointing()
    assert kept_for_backward(model) == plain


def test_checkpointing_computes_nothing_twice_where_no_gradient_is_asked() -> None:
    model = AutoencoderKL.from_preset("tiny", seed=0)
    model.enable_gradient_checkpointing()
    calls = []
    model.encoder.mid_block.resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(image())
    assert len(calls) == 1
    model(image()).sample.sum().backward()
    assert len(calls) == 3  # forward pass, backward pass with its recomputation
