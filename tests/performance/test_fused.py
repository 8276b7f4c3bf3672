"""The inference copy: it computes the same function in less work, with its own weights."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.blocks import Upsample2D
from klvae_edu.data import photographs
from klvae_edu.performance.fused import CentredGroupNorm, FusedUpsample2D
from klvae_edu.performance.winograd import WinogradConv2d
from tests.parity.reference import CONFIGS, narrow, randomise

CL = torch.channels_last
MODELS = CONFIGS | {f"narrow {preset}": narrow(preset) for preset in ("sd-v1", "sd3", "kl-f16", "mini", "kl-f8-mini")}


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).detach().abs().max() / b.double().detach().abs().max())


def randomised(config: AutoencoderKLConfig, dtype: torch.dtype = torch.float64) -> AutoencoderKL:
    vae = AutoencoderKL(config).to(dtype)
    randomise(vae)
    return vae


@pytest.fixture
def tiny() -> AutoencoderKL:
    return AutoencoderKL.from_preset("tiny", seed=0)


# ---- The same function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_in_float64_the_copy_is_the_model_whatever_the_configuration(name: str) -> None:
    vae = randomised(MODELS[name])
    copy, f = vae.optimize(), vae.downsample_factor
    for height, width in ((4, 4), (5, 3), (1, 2)):
        z = random(2, vae.config.latent_channels, height, width)
        assert relative(copy.decode(z).sample, vae.decode(z).sample) < 1e-10
        x = random(2, 3, f * height, f * width)
        found, expected = copy.encode(x).latent_dist.parameters, vae.encode(x).latent_dist.parameters
        assert relative(found, expected) < 1e-10


@pytest.mark.filterwarnings("ignore:images are padded")
@torch.no_grad()
def test_images_of_any_size_come_back_in_it() -> None:
    vae = randomised(CONFIGS["attention in the levels"])
    x = random(1, 3, 33, 47)
    found = vae.optimize()(x).sample
    assert found.shape == x.shape
    assert relative(found, vae(x).sample) < 1e-10


@torch.no_grad()
def test_in_float32_it_is_the_bundled_model_up_to_rounding() -> None:
    vae = AutoencoderKL.from_bundled()
    copy, x = vae.optimize(), photographs("held-out")["chelsea"][None, :, :128, :128]
    z = vae.encode(x).latent_dist.mode()
    assert relative(copy.encode(x).latent_dist.mode(), z) < 1e-5
    assert relative(copy.decode(z).sample, vae.decode(z).sample) < 1e-5


@torch.no_grad()
def test_in_float32_it_stays_exact_where_a_map_is_far_from_zero() -> None:
    """With channels last, PyTorch's GroupNorm on a CPU is inaccurate, because it subtracts squares of large sums."""
    vae = AutoencoderKL(block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8)
    vae.decoder.conv_in.bias.fill_(100.0)
    z = random(1, 4, 64, 64, dtype=torch.float32)
    expected = vae.clone().double().decode(z.double()).sample
    copy = vae.optimize()
    assert copy.decoder.conv_in.weight.is_contiguous(memory_format=CL)
    assert relative(copy.decode(z).sample, expected) < 1e-4
    for module in copy.modules():
        for name, child in module.named_children():
            if isinstance(child, CentredGroupNorm):
                plain = torch.nn.GroupNorm(child.num_groups, child.num_channels, child.eps)
                plain.load_state_dict(child.state_dict())
                setattr(module, name, plain)
    assert relative(copy.decode(z).sample, expected) > 1e-3


def test_norms_are_centred_in_float32_only() -> None:
    vae = AutoencoderKL(block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        centred = {type(module) for module in vae.optimize(dtype).modules() if isinstance(module, torch.nn.GroupNorm)}
        assert centred == {CentredGroupNorm if dtype == torch.float32 else torch.nn.GroupNorm}


@pytest.fixture(scope="module")
def wide() -> AutoencoderKL:
    return randomised(AutoencoderKLConfig(block_out_channels=(64, 128, 256), layers_per_block=1), torch.float32)


def test_wide_layers_use_winograd_in_float32_only(wide: AutoencoderKL) -> None:
    def widths(dtype: torch.dtype) -> set[tuple[int, int]]:
        layers = [layer for layer in wide.optimize(dtype).modules() if isinstance(layer, WinogradConv2d)]
        return {(layer.in_channels, layer.out_channels) for layer in layers}

    assert widths(torch.float32) == {(128, 128), (128, 256), (256, 256), (256, 128)}
    assert widths(torch.float64) == widths(torch.bfloat16) == set()


@pytest.mark.parametrize("height, width", [(16, 16), (13, 9)])
@torch.no_grad()
def test_wide_layers_compute_the_same(wide: AutoencoderKL, height: int, width: int) -> None:
    exact, copy = wide.clone().double(), wide.optimize()
    x, z = random(2, 3, 4 * height, 4 * width), random(2, 4, height, width)
    moments, image = exact.encode(x).latent_dist.parameters, exact.decode(z).sample
    assert relative(copy.encode(x.float()).latent_dist.parameters, moments) < 2e-5
    assert relative(copy.decode(z.float()).sample, image) < 2e-5
    copy = copy.double()
    assert any(isinstance(layer, WinogradConv2d) for layer in copy.modules())
    assert relative(copy.encode(x).latent_dist.parameters, moments) < 1e-10


@pytest.mark.parametrize("shape", [(1, 16, 64, 64), (2, 16, 5, 3), (1, 16, 1, 1)])
def test_a_centred_norm_is_the_norm(shape: tuple[int, ...]) -> None:
    norm = torch.nn.GroupNorm(4, 16, eps=1e-6).double()
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = random(*shape) + 100
    expected = norm(x)
    norm = CentredGroupNorm.of(norm)
    assert relative(norm(x), expected) < 1e-9
    x = x.contiguous(memory_format=CL)
    assert norm(x).is_contiguous(memory_format=CL)


def test_gradients_with_respect_to_a_latent_are_the_models() -> None:
    vae = randomised(CONFIGS["attention in the levels"])
    gradients = []
    for model in (vae, vae.optimize()):
        z = random(1, 4, 6, 5).requires_grad_()
        (gradient,) = torch.autograd.grad(model.decode(z).sample.square().sum(), z)
        gradients.append(gradient)
    assert relative(gradients[1], gradients[0]) < 1e-10


@torch.no_grad()
def test_circular_padding_stays() -> None:
    """Seamless textures are made by setting circular padding in every convolution."""
    vae = AutoencoderKL(block_out_channels=(16, 128), layers_per_block=1, norm_num_groups=8)
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding == (1, 1):
            layer.padding_mode = "circular"
    z = random(1, 4, 32, 32, dtype=torch.float32)
    assert relative(vae.optimize().decode(z).sample, vae.decode(z).sample) < 1e-5


@torch.no_grad()
def test_no_images_give_none(tiny: AutoencoderKL) -> None:
    assert (
        tiny.optimize().decode(torch.zeros(0, 4, 8, 8)).sample.shape
        == tiny.decode(torch.zeros(0, 4, 8, 8)).sample.shape
    )


def test_the_copy_works_under_vmap() -> None:
    copy, z = randomised(CONFIGS["tiny"]).optimize(), random(3, 1, 4, 4, 4)
    found = torch.func.vmap(lambda one: copy.decode(one).sample)(z)
    assert relative(found.flatten(0, 1), copy.decode(z.flatten(0, 1)).sample) < 1e-10


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_each_half_of_the_copy_is_one_graph_for_the_compiler(half: str) -> None:
    copy = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4).optimize()
    x = torch.rand(1, *((3, 16, 16) if half == "encode" else (4, 8, 8)))

    def run(x: Tensor) -> Tensor:
        return copy.encode(x).latent_dist.mode() if half == "encode" else copy.decode(x).sample

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x), rtol=0, atol=1e-6)


# ---- Upsampling ------------------------------------------------------------------------------------------------------


def upsampling(channels: int = 6) -> Upsample2D:
    plain = Upsample2D(channels).double().requires_grad_(False)
    randomise(plain)
    return plain


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (7, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL], ids=["usual layout", "channels last"])
def test_four_kernels_on_the_small_map_are_one_on_the_large_map_up_to_its_borders(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    plain = upsampling()
    fused = FusedUpsample2D(plain, torch.float64)
    x = random(2, 6, *size).to(memory_format=layout)
    found, expected = fused(x), plain(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CL], ids=["usual layout", "channels last"])
def test_the_large_map_lies_in_memory_as_the_small_one_does(layout: torch.memory_format) -> None:
    plain = upsampling().to(memory_format=layout)
    fused = FusedUpsample2D(plain, torch.float64).to(memory_format=layout)
    assert fused(random(2, 6, 4, 4).to(memory_format=layout)).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("taps", ["even and odd exchanged", "the middle tap on the wrong side"])
def test_other_sums_of_the_taps_are_another_function(monkeypatch: pytest.MonkeyPatch, taps: str) -> None:
    """The tests above detect wrong sums."""
    even, odd = FusedUpsample2D.TAPS
    wrong = (odd, even) if taps.startswith("even") else (odd, odd)
    monkeypatch.setattr(FusedUpsample2D, "TAPS", wrong)
    plain, x = upsampling(), random(2, 6, 5, 4)
    assert relative(FusedUpsample2D(plain, torch.float64)(x), plain(x)) > 0.1


def test_it_takes_four_ninths_of_the_multiplications_and_a_border() -> None:
    plain, x, counts = upsampling(), random(1, 6, 16, 16), []
    for module in (plain, FusedUpsample2D(plain, torch.float64)):
        with FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(4 / 9 * (17 / 16) ** 2)


def test_the_kernels_are_summed_exactly_and_rounded_once() -> None:
    plain = upsampling().float()
    weight = plain.conv.weight.double()
    corner = FusedUpsample2D(plain, torch.bfloat16).weight[:6, :, 1, 1]  # even row and column: the sum of four taps
    assert torch.equal(corner, weight[:, :, 1:, 1:].sum((2, 3)).bfloat16())
    rounded_twice = weight.bfloat16()[:, :, 1:, 1:].sum((2, 3))
    assert not torch.equal(corner, rounded_twice)


# ---- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_norm", [False, True])
@torch.no_grad()
def test_tiles_and_slices_are_the_models(global_norm: bool) -> None:
    vae = randomised(CONFIGS["tiny"])
    vae.enable_tiling(size=32, overlap=8, global_norm=global_norm)
    vae.enable_slicing()
    copy = vae.optimize()
    x, calls = random(2, 3, 56, 40), []
    copy.encoder.register_forward_hook(lambda _module, inputs, _output: calls.append(tuple(inputs[0].shape)))
    assert relative(copy(x).sample, vae(x).sample) < 1e-10
    assert {*calls} == {(1, 3, 32, 32)}
    copy.disable_tiling()
    assert vae.use_tiling


@pytest.mark.parametrize("backend", ["eager", "chunked"])
def test_the_attention_backend_is_kept_and_can_be_changed(tiny: AutoencoderKL, backend: str) -> None:
    tiny.set_attention_backend(backend)
    copy = tiny.optimize()
    assert copy.decoder.mid_block.attentions[0].backend == backend
    copy.set_attention_backend("sdpa")
    assert copy.decoder.mid_block.attentions[0].backend == "sdpa"
    assert tiny.decoder.mid_block.attentions[0].backend == backend


def test_latents_for_diffusion_are_the_models() -> None:
    vae = randomised(narrow("sd3"))
    copy, x = vae.optimize(), random(1, 3, 16, 24)
    found, expected = (model.encode_for_diffusion(x, generator=torch.manual_seed(0)) for model in (copy, vae))
    assert relative(found, expected) < 1e-10
    assert relative(copy.decode_from_diffusion(found), vae.decode_from_diffusion(expected)) < 1e-10


@torch.no_grad()
def test_a_copy_can_be_copied_and_moved_to_another_type(tiny: AutoencoderKL) -> None:
    copy, z = tiny.optimize(), random(1, 4, 8, 8)
    again = copy.clone().double()
    assert again.inference_only
    assert relative(again.decode(z).sample, tiny.clone().double().decode(z).sample) < 1e-6


def test_a_model_with_compiled_parts_can_be_optimised(tiny: AutoencoderKL) -> None:
    tiny.decoder = torch.compile(tiny.decoder, backend="aot_eager")  # type: ignore[assignment]
    assert sum(isinstance(module, FusedUpsample2D) for module in tiny.optimize().modules()) == 2


# ---- The copy and the model ------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(tiny: AutoencoderKL) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    described = str(tiny)
    copy = tiny.optimize(torch.bfloat16)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert type(tiny) is AutoencoderKL and str(tiny) == described
    assert tiny.training and all(parameter.requires_grad for parameter in tiny.parameters())
    assert not any(getattr(module, "inplace", False) for module in tiny.modules())
    after = tiny.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) and after[name].is_contiguous() for name in before)


def test_a_model_that_is_trained_further_does_not_change_its_copy(tiny: AutoencoderKL) -> None:
    copy, z = tiny.optimize(), random(1, 4, 8, 8, dtype=torch.float32)
    before = copy.decode(z).sample
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.add_(0.1)
    assert torch.equal(copy.decode(z).sample, before)


def test_the_copy_cannot_be_trained(tiny: AutoencoderKL) -> None:
    copy = tiny.optimize()
    assert isinstance(copy, AutoencoderKL) and not copy.training
    assert not copy.decode(torch.zeros(1, 4, 8, 8)).sample.requires_grad
    with pytest.raises(ValueError, match=r"copy for inference.*: train the model that it was made from"):
        copy.requires_grad_()
    assert copy.requires_grad_(False) is copy


@pytest.mark.parametrize(
    "save",
    [
        lambda copy, folder: copy.save_pretrained(folder),
        lambda copy, folder: copy.to_single_file(folder / "vae.safetensors"),
        lambda copy, folder: copy.save_state(io.BytesIO()),
        lambda copy, folder: copy.optimize(),
    ],
    ids=["save_pretrained", "to_single_file", "save_state", "optimize"],
)
@pytest.mark.parametrize("widths", [(16, 16), (16,)], ids=["two levels", "no part differs"])
def test_the_copy_cannot_be_saved_or_optimised_again(
    save: Callable[[AutoencoderKL, Path], None], widths: tuple[int, ...], tmp_path: Path
) -> None:
    config = AutoencoderKLConfig(block_out_channels=widths, norm_num_groups=8, mid_block_add_attention=len(widths) > 1)
    with pytest.raises(ValueError, match=r"expected the model itself, got a copy that optimize\(\) made"):
        save(AutoencoderKL(config).optimize(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_models_weights_do_not_fit_into_the_copy(tiny: AutoencoderKL) -> None:
    copy, state = tiny.optimize(), io.BytesIO()
    tiny.save_state(state)
    state.seek(0)
    with pytest.raises(ValueError, match="upsamplers"):
        copy.load_state(state)
    with pytest.raises(ValueError, match="expected a Tensor of shape"):
        copy.set_parameters(tiny.get_parameters())
    with pytest.raises(RuntimeError, match="upsamplers"):
        copy.load_state_dict(tiny.state_dict())


def test_a_model_whose_parts_were_changed_is_refused(tiny: AutoencoderKL) -> None:
    tiny.decoder.up_blocks[0].upsamplers[0].conv = nn.Identity()
    with pytest.raises(ValueError, match=r"(?s)the model.*upsamplers\.0\.conv\.weight"):
        tiny.optimize()


# ---- Data types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_copy_computes_in_the_type_asked_for_and_gives_the_usual_layout(
    tiny: AutoencoderKL, dtype: torch.dtype
) -> None:
    copy = tiny.optimize(dtype)
    assert copy.dtype == dtype and {parameter.dtype for parameter in copy.parameters()} == {dtype}
    x = random(2, 3, 32, 32, dtype=dtype).clamp(-1, 1)
    z = copy.encode(x).latent_dist.parameters
    image = copy(x).sample
    assert z.dtype == image.dtype == dtype
    assert z.is_contiguous() and image.is_contiguous()
    bounds = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}
    assert relative(image, tiny(x.float()).sample) < bounds[dtype]


def test_the_errors_of_the_types_grow_with_their_rounding(tiny: AutoencoderKL) -> None:
    z = random(1, 4, 8, 8)
    with torch.no_grad():
        expected = tiny.clone().double().decode(z).sample
        errors = [
            relative(tiny.optimize(dtype).decode(z.to(dtype)).sample, expected)
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        ]
    assert all(10 * less < more for less, more in pairwise((errors[0], errors[2])))
    assert errors[0] < errors[1] < errors[2]


def test_without_a_type_it_is_that_of_the_model(tiny: AutoencoderKL) -> None:
    assert tiny.bfloat16().optimize().dtype == torch.bfloat16


@torch.no_grad()
def test_in_float16_it_is_computed_in_float32_where_the_model_says_so(tiny: AutoencoderKL) -> None:
    tiny.decoder.conv_in.weight *= 1e5  # each weight fits into float16; the activations behind do not
    z = torch.ones(1, 4, 8, 8, dtype=torch.float16)
    assert tiny.optimize(torch.float16).decode(z).sample.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int8, "bfloat16", torch.complex64])
def test_an_unsupported_data_type_is_refused(tiny: AutoencoderKL, dtype: object) -> None:
    with pytest.raises(ValueError, match="dtype: expected a floating-point type"):
        tiny.optimize(dtype)


def test_an_input_of_another_type_is_refused_as_the_model_refuses_it(tiny: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match=r"in torch\.bfloat16, .*; got .* in torch\.float32"):
        tiny.optimize(torch.bfloat16).decode(torch.zeros(1, 4, 8, 8))
