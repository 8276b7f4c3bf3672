"""`ModelMixin`: parameters as a vector, and copies of models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

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
def test_anything_but_a_vector_of_real_numbers_is_refused(tiny: AutoencoderKL, vector: object) -> None:
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


def test_a_clone_warns_about_padding_on_its_own(tiny: AutoencoderKL) -> None:
    copy = tiny.clone()
    for model in (tiny, copy):
        with pytest.warns(UserWarning, match="padded"):
            model.encode(torch.zeros(1, 3, 9, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.encode(torch.zeros(1, 3, 9, 9))


class Sub(AutoencoderKL):
    """A subclass without changes."""


LOADERS: dict[str, Callable[[Path], Sub]] = {
    "from_preset": lambda folder: Sub.from_preset("tiny", seed=0),
    "from_bundled": lambda folder: Sub.from_bundled(),
    "from_pretrained": lambda folder: Sub.from_pretrained(folder),
    "from_single_file": lambda folder: Sub.from_single_file(folder / "vae.safetensors"),
    "clone": lambda folder: Sub.from_preset("tiny").clone(),
    "optimize": lambda folder: Sub.from_preset("tiny").optimize(),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())
def test_a_subclass_loads_itself(tiny: AutoencoderKL, load: Callable[[Path], Sub], tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    tiny.to_single_file(tmp_path / "vae.safetensors")
    assert type(load(tmp_path)) is Sub
