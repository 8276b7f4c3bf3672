"""float16 weights and autocast: no NaN for large activations, and no arithmetic in float16 with `force_upcast`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.network import Autoencoder

NO_ARITHMETIC = {"_to_copy", "copy_", "empty", "empty_strided", "detach", "view", "clone"}  # copies and views


class Arithmetic(TorchDispatchMode):
    """Record every operation with a result of the given type, except `NO_ARITHMETIC`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.found = dtype, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if isinstance(result, Tensor) and result.dtype == self.dtype and name not in NO_ARITHMETIC:
            self.found.add(name)
        return result


def model(force_upcast: bool) -> AutoencoderKL:
    """The first convolutions give values around 1e6; behind the first norm all values are small."""
    config = AutoencoderKLConfig.from_preset("tiny", force_upcast=force_upcast)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(config).eval()
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 1e5  # each weight fits into float16, but products with an image overflow
        vae.decoder.conv_in.weight *= 1e5
    return vae


def image() -> Tensor:
    return 2 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1


def test_without_upcast_the_activations_overflow_in_half() -> None:
    """The tests below need activations that overflow without upcast."""
    vae = model(force_upcast=False).half()
    with torch.no_grad():
        assert vae(image().half()).sample.isnan().any()


def test_with_upcast_half_weights_give_what_float32_gives() -> None:
    vae = model(force_upcast=True)
    vae.half().float()  # the same rounded weights for both
    half = vae.clone().half()
    with torch.no_grad():
        posterior, expected = half.encode(image().half()).latent_dist, vae.encode(image().half().float()).latent_dist
        reconstruction, expected_image = half(image().half()).sample, vae(image().half().float()).sample
    assert posterior.mean.dtype == reconstruction.dtype == torch.float16
    torch.testing.assert_close(posterior.mean.float(), expected.mean, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(reconstruction.float(), expected_image, rtol=2e-2, atol=2e-2)


def test_with_upcast_nothing_is_computed_in_half() -> None:
    vae = model(force_upcast=True).half()
    x, z = image().half(), torch.ones(1, 4, 8, 8, dtype=torch.float16)
    with torch.no_grad():
        with Arithmetic(torch.float16) as seen:
            vae.run_bounded(partial(Autoencoder.encode, vae), x, tiling=False, units=(4, 1))
            vae.decode(z)
        assert seen.found == set()
        vae.config = AutoencoderKLConfig.from_preset("tiny", force_upcast=False)
        with Arithmetic(torch.float16) as seen:
            vae.decode(z)
        assert {"convolution", "native_group_norm"} & {name.removeprefix("mkldnn_") for name in seen.found}


def test_the_weights_stay_half_and_receive_gradients_in_half() -> None:
    vae = model(force_upcast=True).half()
    vae.decode(torch.ones(1, 4, 8, 8, dtype=torch.float16)).sample.sum().backward()
    for parameter in vae.decoder.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float16


@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_under_autocast_half_is_upcast_and_bfloat16_is_not(autocast: torch.dtype) -> None:
    vae = model(force_upcast=True)
    with torch.no_grad():
        expected = vae(image()).sample
        with torch.autocast("cpu", autocast), Arithmetic(autocast) as seen:
            output = vae(image()).sample
    if autocast == torch.float16:
        assert seen.found == set()
        assert torch.equal(output, expected)
    else:
        assert "convolution" in seen.found or "mkldnn_convolution" in seen.found
        assert output.isfinite().all()


def test_tiles_and_slices_are_upcast_too() -> None:
    vae = model(force_upcast=True).half()
    vae.enable_tiling(size=16, overlap=8)
    vae.enable_slicing()
    with torch.no_grad():
        assert vae(torch.cat([image(), image()]).half()).sample.isfinite().all()


def test_checkpointing_with_half_weights_is_refused_in_words() -> None:
    vae = model(force_upcast=True).half()
    vae.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match=r"expected weights in float32, got torch\.float16"):
        vae(image().half())
    with torch.no_grad():
        assert vae(image().half()).sample.isfinite().all()


@pytest.mark.parametrize("weights", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_every_pair_of_weights_and_autocast_gives_finite_numbers(weights: torch.dtype, autocast: torch.dtype) -> None:
    vae = model(force_upcast=True).to(weights)
    with torch.no_grad(), torch.autocast("cpu", autocast):
        assert vae(image().to(weights)).sample.isfinite().all()


def test_threads_may_share_a_model_in_half() -> None:
    vae = model(force_upcast=True).half()
    z = torch.ones(1, 4, 8, 8, dtype=torch.float16)

    def work(_: int) -> Tensor:
        with torch.no_grad():
            return vae.decode(z).sample

    expected = work(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(work, range(16)))
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float16}


def test_weights_that_are_offloaded_between_layers_are_upcast() -> None:
    vae = model(force_upcast=True).half()
    z = torch.ones(1, 4, 8, 8, dtype=torch.float16)
    with torch.no_grad():
        expected = vae.decode(z).sample
        cpu_offload(vae, execution_device=torch.device("cpu"))
        assert torch.equal(vae.decode(z).sample, expected)
