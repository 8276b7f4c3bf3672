"""The three backends: the same numbers and gradients; the chunked one never holds all weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from klvae_edu import AutoencoderKL, attention
from klvae_edu.attention import BACKENDS


def tokens(number: int, channels: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, number, channels)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("number", [1, 7, 10, 11])
def test_every_backend_gives_the_definitions_numbers_and_gradients(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CHUNK", 5)
    query, key, value = tokens(number)
    logits = torch.einsum("bqc,bkc->bqk", query, key) * 0.3
    weights = logits.exp() / logits.exp().sum(2, keepdim=True)
    expected = torch.einsum("bqk,bkc->bqc", weights, value)
    result = BACKENDS[name](query, key, value, 0.3)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    grads = [torch.autograd.grad(out, (query, key, value), cotangent) for out in (result, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_the_chunked_backend_never_holds_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK", 16)
    query, key, value = (x.detach() for x in tokens(256, channels=2))
    with Largest() as eager:
        BACKENDS["eager"](query, key, value, 1.0)
    with Largest() as chunked:
        BACKENDS["chunked"](query, key, value, 1.0)
    assert eager.elements == 2 * 256 * 256
    assert chunked.elements == 2 * 16 * 256


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
