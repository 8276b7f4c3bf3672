"""Slices and tiles: equal numbers where they must be equal, and no crash for any size."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from klvae_edu import AutoencoderKL
from klvae_edu.performance.tiling import Tiling, global_statistics, placements, seam_lines, seam_metric, sliced, tiled
from tests.parity.reference import randomise


def up_by_two(x: Tensor) -> Tensor:
    """A decoder whose pixels are independent: blended tiles must equal the untiled result."""
    return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2) * 3.0


def down_by_two(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 2)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_preset("tiny", seed=0).double().eval()


# ---- Positions and weights of tiles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (8, 0), (8, 1), (8, 4), (8, 7), (16, 4)])
def test_the_weights_of_all_tiles_add_up_to_one_at_every_place(tile: int, overlap: int, unit: int) -> None:
    for length in range(1, 60):
        total = torch.zeros(length * unit, dtype=torch.float64)
        for start, weights in placements(length, tile, overlap, unit):
            assert len(weights) == min(tile, length) * unit
            assert (weights > 0).all()
            total[start * unit : start * unit + len(weights)] += weights
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)


def test_the_last_tile_is_moved_back_and_not_made_smaller() -> None:
    assert [start for start, _ in placements(100, 64, 16)] == [0, 36]
    assert [start for start, _ in placements(113, 64, 16)] == [0, 48, 49]
    assert [start for start, _ in placements(112, 64, 16)] == [0, 48]
    assert [start for start, _ in placements(64, 64, 16)] == [0]


def test_a_map_smaller_than_a_tile_is_one_tile() -> None:
    ((start, weights),) = placements(5, 64, 16)
    assert start == 0
    assert torch.equal(weights, torch.ones(5, dtype=torch.float64))


def test_the_ramp_of_two_tiles_is_linear_over_their_overlap() -> None:
    (_, first), (start, second) = placements(12, 8, 4)
    assert start == 4
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
    torch.testing.assert_close(second[:4], expected)
    torch.testing.assert_close(first[4:], expected.flip(0))


# ---- Pure functions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (11, 23), (40, 17), (3, 30)])
def test_tiles_of_a_function_without_neighbourhood_give_the_whole(height: int, width: int) -> None:
    z = random(2, 3, height, width)
    torch.testing.assert_close(tiled(up_by_two, z, 8, 3, (1, 2)), up_by_two(z), rtol=1e-14, atol=1e-14)
    x = random(2, 3, 2 * height, 2 * width)
    torch.testing.assert_close(tiled(down_by_two, x, 8, 3, (2, 1)), down_by_two(x), rtol=1e-14, atol=1e-14)


def test_every_tile_has_the_full_size_also_the_last() -> None:
    seen = set()

    def spy(x: Tensor) -> Tensor:
        seen.add(tuple(x.shape[-2:]))
        return x

    for height in range(8, 30):
        tiled(spy, random(1, 1, height, 19), 8, 2)
    assert seen == {(8, 8)}


def test_half_precision_tiles_are_blended_without_a_change_of_type_or_level() -> None:
    z = torch.full((1, 1, 40, 40), 0.7, dtype=torch.bfloat16)
    out = tiled(lambda x: x, z, 8, 4)
    assert out.dtype == torch.bfloat16
    assert (out - z).abs().max() <= 2**-8  # one unit in the last place of 0.7


def test_a_gradient_passes_through_tiles() -> None:
    z = random(1, 2, 20, 20).requires_grad_()
    tiled(up_by_two, z, 8, 4, (1, 2)).sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, 12.0))


# ---- The model -------------------------------------------------------------------------------------------------------


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def test_slicing_gives_the_same_numbers(vae: AutoencoderKL) -> None:
    x = random(3, 3, 32, 40)
    with torch.no_grad():
        z, image = vae.encode(x).latent_dist.parameters, vae(x).sample
        vae.enable_slicing()
        calls = []
        handle = vae.decoder.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
        sliced_z, sliced_image = vae.encode(x).latent_dist.parameters, vae(x).sample
        handle.remove()
        vae.disable_slicing()
    assert calls == [1, 1, 1]
    assert relative(sliced_z, z) < 1e-12
    assert relative(sliced_image, image) < 1e-12
    assert torch.equal(sliced(vae.quant_conv, z), torch.cat([vae.quant_conv(one[None]) for one in z]))


def test_with_one_tile_tiling_gives_exactly_the_untiled_result(vae: AutoencoderKL) -> None:
    x = random(2, 3, 64, 48)
    with torch.no_grad():
        z, image = vae.encode(x).latent_dist.parameters, vae(x).sample
        for global_norm in (False, True):
            vae.enable_tiling(size=64, overlap=16, global_norm=global_norm)
            assert torch.equal(vae.encode(x).latent_dist.parameters, z)
            assert torch.equal(vae(x).sample, image)
        vae.disable_tiling()


@pytest.mark.filterwarnings("ignore:images are padded")
def test_no_size_from_64_to_200_crashes_with_tiles_of_64(vae: AutoencoderKL) -> None:
    """The sizes include one and a half tiles, odd numbers, and a last tile of 1 to 63 pixels in both directions."""
    quick = AutoencoderKL(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4).eval()
    quick.enable_tiling(size=64, overlap=16)
    with torch.no_grad():
        for side in range(64, 201):
            x = torch.zeros(1, 3, side, 264 - side)
            latent = quick.encode(x).latent_dist.mode()
            assert latent.shape[-2:] == (-(-side // 8), -(-(264 - side) // 8))
            assert quick(x).sample.shape == x.shape


def test_tiling_and_slicing_work_together(vae: AutoencoderKL) -> None:
    x = random(3, 3, 96, 64)
    with torch.no_grad():
        vae.enable_tiling(size=48, overlap=16)
        together = vae(x).sample
        vae.enable_slicing()
        calls = []
        handle = vae.decoder.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[0].shape))
        one_by_one = vae(x).sample
        handle.remove()
        vae.disable_slicing()
        vae.disable_tiling()
    assert set(calls) == {(1, 4, 12, 12)}
    assert relative(together, one_by_one) < 1e-12


def test_tiles_are_laid_whatever_the_sample_size_of_the_model(vae: AutoencoderKL) -> None:
    """In diffusers a tile has the side `sample_size`, so that a model for 512 pixels never tiles at 512."""
    model = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=1024).eval()
    model.enable_tiling()
    calls = []
    model.decoder.register_forward_hook(lambda _module, inputs, _output: calls.append(tuple(inputs[0].shape[-2:])))
    with torch.no_grad():
        model.decode(torch.zeros(1, 4, 256, 256))  # 512x512 pixels: f is 2 here
    assert calls == [(144, 144)] * 4


class LargestTensor(TorchDispatchMode):
    """Record the largest tensor that is created, except tensors of the output's shape."""

    def __init__(self, output: tuple[int, ...]) -> None:
        super().__init__()
        self.output, self.elements = output, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tuple(tensor.shape) != self.output:
                whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
                self.elements = max(self.elements, tensor.numel() if whole else 0)  # views of the output do not count
        return result


@pytest.mark.parametrize("global_norm", [False, True])
def test_except_the_output_no_tensor_grows_with_the_image(global_norm: bool) -> None:
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4).eval()
    largest = {}
    with torch.no_grad():
        for tiling, side in ((True, 96), (True, 192), (False, 192)):
            vae.enable_tiling(tiling, size=48, overlap=16, global_norm=global_norm)
            x, z = torch.zeros(1, 3, side, side), torch.zeros(1, 4, side // 4, side // 4)
            with LargestTensor((1, 3, side, side)) as decoding:
                vae.decode(z)
            with LargestTensor((1, 8, side // 4, side // 4)) as encoding:
                vae.encode(x)
            largest[tiling, side] = (decoding.elements, encoding.elements)
    assert largest[True, 96] == largest[True, 192]
    assert max(largest[True, 192]) < min(largest[False, 192]) / 10


def test_tiled_encode_and_decode_tile_without_the_switch(vae: AutoencoderKL) -> None:
    vae.enable_tiling(size=48, overlap=16)
    x = random(1, 3, 96, 64)
    with torch.no_grad():
        moments = vae.encode(x).latent_dist.parameters
        image = vae.decode(moments[:, :4]).sample
        vae.disable_tiling()
        assert torch.equal(vae.tiled_encode(x).latent_dist.parameters, moments)
        assert torch.equal(vae.tiled_decode(moments[:, :4]).sample, image)
        assert not torch.equal(vae.encode(x).latent_dist.parameters, moments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 50}, "tile size: expected a multiple of 4 of at least 4, got 50"),
        ({"size": 0}, "tile size"),
        ({"size": 64.0}, "got 64.0"),
        ({"overlap": 3}, "tile overlap: expected a multiple of 4 of at least 0, got 3"),
        ({"size": 64, "overlap": 64}, "expected less than the tile's size 64, got 64"),
    ],
)
def test_tiles_that_do_not_fit_the_model_are_refused(vae: AutoencoderKL, settings: dict, message: str) -> None:
    before = vae.tiling
    with pytest.raises(ValueError, match=message):
        vae.enable_tiling(**settings)
    assert vae.tiling == before and not vae.use_tiling


def test_small_tiles_overlap_by_a_quarter_by_default(vae: AutoencoderKL) -> None:
    for size, overlap in ((288, 64), (256, 64), (64, 16), (32, 8), (4, 0)):
        vae.enable_tiling(size=size)
        assert (vae.tiling.size, vae.tiling.overlap) == (size, overlap)
    vae.disable_tiling()


def test_tiles_smaller_than_one_latent_pixel_are_refused_when_used() -> None:
    model = AutoencoderKL(block_out_channels=(8,) * 10, layers_per_block=1, norm_num_groups=4)  # f = 512
    with pytest.raises(ValueError, match="tile size: expected a multiple of 512"):
        model.tiled_decode(torch.zeros(1, 4, 2, 2))


def test_the_default_tiles_fit_every_preset() -> None:
    for factor in (2, 4, 8, 16, 32):
        Tiling().check(factor)


# ---- Statistics of the whole map -------------------------------------------------------------------------------------


class Normed(nn.Module):
    """One GroupNorm: with statistics of all tiles, tiles of equal weight must give exactly the untiled result."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4, eps=1e-6)
        nn.init.normal_(self.norm.weight, generator=torch.Generator().manual_seed(0))
        nn.init.normal_(self.norm.bias, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.bfloat16, 2**-7)])
def test_global_statistics_make_a_norms_tiles_equal_to_the_whole(dtype: torch.dtype, tolerance: float) -> None:
    model = Normed().to(dtype)
    x = (random(2, 4, 16, 24) * torch.linspace(0.1, 5.0, 24, dtype=torch.float64)).to(dtype)  # contrast varies
    whole = model(x)
    assert relative(tiled(model, x, 8, 0), whole) > 0.1
    assert relative(tiled(model, x, 8, 0, norms=model), whole) < tolerance


def test_global_statistics_leave_no_hook_behind_also_after_an_error() -> None:
    model = Normed()
    with pytest.raises(RuntimeError, match="planted"), global_statistics(model):
        raise RuntimeError("planted")
    assert not model.norm._forward_hooks


def test_global_statistics_bring_the_tiles_of_an_image_closer_to_the_whole() -> None:
    """The left half is dark and uniform, the right half bright and detailed: statistics of single tiles differ."""
    model = AutoencoderKL(
        block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False
    ).double()
    randomise(model)
    x = 0.02 * random(1, 3, 128, 192)
    x[..., 96:] = 0.5 + 10.0 * x[..., 96:]
    errors = []
    with torch.no_grad():
        whole = model.encode(x).latent_dist.parameters
        for global_norm in (False, True):
            model.enable_tiling(size=96, overlap=32, global_norm=global_norm)
            errors.append(float((model.encode(x).latent_dist.parameters - whole).norm() / whole.norm()))
    assert errors[1] < 0.5 * errors[0]


def test_a_gradient_through_global_statistics_is_the_functions_own() -> None:
    """The statistics depend on the image, too: a directional derivative includes that."""
    model = Normed().double()
    x, direction = random(1, 4, 12, 12), random(1, 4, 12, 12).roll(1, -1)

    def total(x: Tensor) -> Tensor:
        return (tiled(model, x, 8, 4, norms=model) ** 3).sum()

    (gradient,) = torch.autograd.grad(total(x.requires_grad_()), x)
    step = 1e-6 * direction
    with torch.no_grad():
        expected = (total(x + step) - total(x - step)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=0)


def test_global_statistics_and_checkpointing_exclude_each_other_in_training() -> None:
    model = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    model.enable_tiling(size=16, overlap=4, global_norm=True)
    model.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="global_norm: expected no gradient checkpointing"):
        model.decode(torch.zeros(1, 4, 16, 16))
    with torch.no_grad():
        assert model.decode(torch.zeros(1, 4, 16, 16)).sample.isfinite().all()


def test_threads_that_share_a_model_keep_their_statistics_apart() -> None:
    model = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4).eval()
    model.enable_tiling(size=16, overlap=4, global_norm=True)
    latents = [scale * random(1, 4, 16, 16, dtype=torch.float32) for scale in (0.1, 1.0, 10.0, 100.0)]

    def decoded(z: Tensor) -> Tensor:
        with torch.no_grad():
            return model.decode(z).sample

    expected = [decoded(z) for z in latents]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, right in zip(pool.map(decoded, latents), expected, strict=True):
                assert torch.equal(found, right)


def test_an_empty_batch_has_no_statistics_and_comes_out_empty() -> None:
    model = Normed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean of no values
        assert tiled(model, torch.zeros(0, 4, 16, 16), 8, 0, norms=model).shape == (0, 4, 16, 16)


# ---- Seams -----------------------------------------------------------------------------------------------------------


def test_seam_lines_are_where_tiles_begin_and_end() -> None:
    assert seam_lines(100, 64, 16) == [36, 64]
    assert seam_lines(16, 8, 0, unit=8) == [64]
    assert seam_lines(64, 64, 16) == []


def test_the_seam_metric_is_one_for_noise_and_larger_for_a_step() -> None:
    image = random(1, 3, 64, 64)
    assert seam_metric(image, [32], [32]) == pytest.approx(1.0, abs=0.1)
    image[..., 32:] += 5.0
    assert seam_metric(image, [], [32]) > 3.0
    assert seam_metric(image, [32], []) == pytest.approx(1.0, abs=0.15)


def test_the_seam_metric_needs_a_seam() -> None:
    with pytest.raises(ValueError, match=r"within \(8, 8\) pixels"):
        seam_metric(torch.zeros(1, 3, 8, 8), [0, 8], [])


def test_overlap_hides_the_seam_that_tiles_without_overlap_show() -> None:
    vae = AutoencoderKL.from_preset("tiny").double()
    randomise(vae)
    z = random(1, 4, 32, 32)
    with torch.no_grad():
        metrics = {}
        for overlap in (0, 32):
            vae.enable_tiling(size=64, overlap=overlap)
            lines = seam_lines(32, 16, overlap // 4, unit=4)
            metrics[overlap] = seam_metric(vae.decode(z).sample, lines, lines)
    assert metrics[32] < 1.1 < metrics[0]
