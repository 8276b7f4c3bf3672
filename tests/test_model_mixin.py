"""Weights as a vector and as a copy, gradient checkpointing: what a model offers beside its arithmetic."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig


@pytest.fixture
def tiny() -> AutoencoderKL:
    return AutoencoderKL.from_preset("tiny", seed=0)


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=dtype).view(2, 3, 32, 32)


def test_all_parameters_in_one_vector_and_back(tiny: AutoencoderKL) -> None:
    vector = tiny.get_parameters()
    assert vector.shape == (tiny.num_parameters(),)
    assert torch.equal(vector[: 32 * 3 * 9], tiny.encoder.conv_in.weight.flatten())
    other = AutoencoderKL.from_preset("tiny", seed=1)
    other.set_parameters(vector)
    assert torch.equal(other.get_parameters(), vector)
    with torch.no_grad():
        assert torch.equal(other(image()).sample, tiny(image()).sample)


def test_the_vector_is_a_copy_in_both_directions(tiny: AutoencoderKL) -> None:
    before = tiny.get_parameters()
    vector = tiny.get_parameters()
    vector.zero_()
    assert torch.equal(tiny.get_parameters(), before)
    tiny.set_parameters(vector)
    vector.fill_(1.0)
    assert not tiny.get_parameters().any()


@pytest.mark.parametrize("shape", [(5,), (954_566,), (954_568,), (1, 954_567), ()])
def test_a_vector_of_another_length_is_refused_and_nothing_is_changed(
    tiny: AutoencoderKL, shape: tuple[int, ...]
) -> None:
    before = tiny.get_parameters()
    with pytest.raises(ValueError, match=r"\(954567,\) with floating-point numbers, got") as error:
        tiny.set_parameters(torch.zeros(shape))
    assert str(shape) in str(error.value)
    assert torch.equal(tiny.get_parameters(), before)


@pytest.mark.parametrize("vector", [None, [0.0], torch.zeros(954_567, dtype=torch.int64)], ids=["none", "list", "int"])
def test_what_is_no_vector_of_real_numbers_is_refused(tiny: AutoencoderKL, vector: object) -> None:
    with pytest.raises(ValueError, match="expected a Tensor"):
        tiny.set_parameters(vector)


@pytest.mark.parametrize("preset", ["tiny", "kl-f4"])
def test_a_clone_has_the_same_architecture_weights_and_settings_and_its_own_memory(preset: str) -> None:
    config = AutoencoderKLConfig.from_preset(
        preset, block_out_channels=(16, 16, 32), norm_num_groups=4, layers_per_block=3
    )
    model = AutoencoderKL(config)
    model.enable_tiling(size=64, overlap=16)
    model.set_attention_backend("eager")
    copy = model.clone()
    assert copy.config == model.config
    assert copy.use_tiling and copy.tiling == model.tiling
    assert copy.encoder.mid_block.attentions[0].backend == "eager"
    assert torch.equal(copy.get_parameters(), model.get_parameters())
    with torch.no_grad():
        copy.encoder.conv_in.weight.zero_()
    assert model.encoder.conv_in.weight.any()


def test_a_clone_does_not_share_what_was_said_of_padding(tiny: AutoencoderKL) -> None:
    copy = tiny.clone()
    for model in (tiny, copy):
        with pytest.warns(UserWarning, match="padded"):
            model.encode(torch.zeros(1, 3, 9, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.encode(torch.zeros(1, 3, 9, 9))


# ---- Gradient checkpointing ------------------------------------------------------------------------------------------


def gradients(model: AutoencoderKL) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(image(torch.float64)).sample
    output.pow(2).sum().backward()
    return output.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def kept_for_backward(model: AutoencoderKL) -> int:
    """Bytes that autograd keeps between the two passes, the parameters aside."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(image(torch.float64)).sample  # held, so that no storage is used twice
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
    assert len(calls) == 3  # forward, and once more in the backward pass
