"""`AutoencoderKL`: the table of parameters, shapes, padding, and errors for wrong input."""

from __future__ import annotations

import dataclasses
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from klvae_edu import AutoencoderKL, AutoencoderKLConfig


@pytest.fixture(scope="module")
def sd_v1() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL()


@pytest.fixture(scope="module")
def tiny() -> AutoencoderKL:
    return AutoencoderKL.from_preset("tiny", seed=0).eval()


@pytest.fixture(scope="module")
def mini() -> AutoencoderKL:
    return AutoencoderKL.from_preset("mini", seed=0).eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_stable_diffusion_v1_has_83_653_863_parameters_in_248_tensors(sd_v1: AutoencoderKL) -> None:
    assert sd_v1.num_parameters() == 83_653_863
    assert len(sd_v1.state_dict()) == 248
    assert list(sd_v1.buffers()) == []
    assert sum(isinstance(module, nn.GroupNorm) for module in sd_v1.modules()) == 52
    assert sum(isinstance(module, nn.Conv2d) for module in sd_v1.modules()) == 64
    assert sum(isinstance(module, nn.Linear) for module in sd_v1.modules()) == 8


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("encoder", 34_163_592),
        ("encoder.conv_in", 3_584),
        ("encoder.down_blocks.0", 738_944),
        ("encoder.down_blocks.1", 2_690_304),
        ("encoder.down_blocks.2", 10_754_560),
        ("encoder.down_blocks.3", 9_443_328),
        ("encoder.mid_block", 10_494_976),
        ("encoder.mid_block.attentions.0", 1_051_648),
        ("encoder.conv_norm_out", 1_024),
        ("encoder.conv_out", 36_872),
        ("quant_conv", 72),
        ("post_quant_conv", 20),
        ("decoder", 49_490_179),
        ("decoder.conv_in", 18_944),
        ("decoder.mid_block", 10_494_976),
        ("decoder.up_blocks.0", 16_524_800),
        ("decoder.up_blocks.1", 16_524_800),
        ("decoder.up_blocks.2", 4_855_296),
        ("decoder.up_blocks.3", 1_067_648),
        ("decoder.conv_norm_out", 256),
        ("decoder.conv_out", 3_459),
    ],
)
def test_every_row_of_the_parameter_table(sd_v1: AutoencoderKL, name: str, parameters: int) -> None:
    assert count(sd_v1.get_submodule(name)) == parameters


def test_the_shape_walk_of_stable_diffusion_v1(sd_v1: AutoencoderKL) -> None:
    """Check the shape after every level, 256² -> 32² -> 256², on the meta device."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in sd_v1.named_modules():
        if name.count(".") <= 2:
            module.register_forward_hook(
                lambda _module, _inputs, out, name=name: shapes.update({name: tuple(getattr(out, "shape", ()))})
            )
    z = sd_v1.encode(torch.empty(1, 3, 256, 256, device="meta")).latent_dist.mode()
    sd_v1.decode(z)
    assert tuple(z.shape) == (1, 4, 32, 32)
    assert [shapes[f"encoder.down_blocks.{level}"] for level in range(4)] == [
        (1, 128, 128, 128),
        (1, 256, 64, 64),
        (1, 512, 32, 32),
        (1, 512, 32, 32),
    ]
    assert shapes["quant_conv"] == (1, 8, 32, 32)
    assert [shapes[f"decoder.up_blocks.{level}"] for level in range(4)] == [
        (1, 512, 64, 64),
        (1, 512, 128, 128),
        (1, 256, 256, 256),
        (1, 128, 256, 256),
    ]
    assert shapes["decoder.conv_out"] == (1, 3, 256, 256)


def test_the_small_presets_have_the_documented_number_of_parameters() -> None:
    assert AutoencoderKL.from_preset("mini").num_parameters() == 1_250_759
    assert AutoencoderKL.from_preset("mini").downsample_factor == 8
    assert AutoencoderKL.from_preset("tiny").downsample_factor == 4


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = AutoencoderKL.from_preset("tiny", seed=1), AutoencoderKL.from_preset("tiny", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = AutoencoderKL.from_preset("tiny", seed=2)
    assert not torch.equal(first.encoder.conv_in.weight, other.encoder.conv_in.weight)


def test_the_posterior_is_eight_times_smaller_and_the_decoder_undoes_it(mini: AutoencoderKL) -> None:
    posterior = mini.encode(torch.zeros(2, 3, 64, 48)).latent_dist
    assert posterior.mean.shape == posterior.logvar.shape == (2, 4, 8, 6)
    assert mini.decode(posterior.mode()).sample.shape == (2, 3, 64, 48)


def test_odd_sizes_are_padded_by_reflection_and_forward_returns_the_size_it_got(mini: AutoencoderKL) -> None:
    x = torch.rand(1, 3, 257, 250) * 2 - 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = mini.encode(x).latent_dist
        assert posterior.mean.shape == (1, 4, 33, 32)  # of 264x256
        assert mini(x).sample.shape == x.shape
        padded = nn.functional.pad(x, (0, 6, 0, 7), mode="reflect")
        assert torch.equal(posterior.mean, mini.encode(padded).latent_dist.mean)


def test_padding_is_warned_about_once() -> None:
    model = AutoencoderKL.from_preset("tiny", seed=0)
    with pytest.warns(UserWarning, match="9x10 to 12x12"):
        model.encode(torch.zeros(1, 3, 9, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(torch.zeros(1, 3, 9, 10))


@pytest.mark.parametrize("size", [(8, 8), (8, 15), (15, 9), (9, 16)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_one_latent_pixel_is_the_smallest_image(mini: AutoencoderKL, size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert mini(torch.zeros(1, 3, *size)).sample.shape == (1, 3, *size)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.zeros(1, 3, 4, 4), "(1, 3, 4, 4)"),
        (torch.zeros(1, 3, 64, 7), "(1, 3, 64, 7)"),
        (torch.zeros(1, 2, 32, 32), "(1, 2, 32, 32)"),
        (torch.zeros(3, 32, 32), "(3, 32, 32)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "torch.float64"),
        ([[0.0]], "list"),
    ],
    ids=["4x4", "too narrow", "2 channels", "rank 3", "uint8", "float64 for float32 weights", "a list"],
)
def test_a_wrong_image_is_a_value_error_that_names_expected_and_actual(
    mini: AutoencoderKL, x: object, got: str
) -> None:
    for call in (mini.encode, mini):
        with pytest.raises(ValueError) as error:
            call(x)
        assert "(B, 3, H, W)" in str(error.value)
        assert "at least 8" in str(error.value)
        assert got in str(error.value)


@pytest.mark.parametrize(
    "z", [torch.zeros(1, 3, 4, 4), torch.zeros(4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.int64)]
)
def test_a_wrong_latent_is_a_value_error_that_names_expected_and_actual(mini: AutoencoderKL, z: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(B, 4, H, W\)") as error:
        mini.decode(z)
    assert str(tuple(z.shape)) in str(error.value)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("widths", [(8, 8), (8, 16), (16, 8)])
def test_a_latent_of_one_pixel_is_refused_where_norms_would_have_groups_of_one_value(
    widths: tuple[int, ...], batch: int
) -> None:
    """Such a norm loses the image. PyTorch refuses a batch of one with a sentence about training, and no larger one."""
    vae = AutoencoderKL(block_out_channels=widths, norm_num_groups=8, layers_per_block=1)
    with pytest.raises(ValueError, match=r"more than one latent pixel: with norm_num_groups = 8, as many as channels"):
        vae.encode(torch.zeros(batch, 3, 2, 2))
    for side in ((2, 4), (4, 2)):
        assert vae.encode(torch.zeros(batch, 3, *side)).latent_dist.mean.isfinite().all()
    if widths[-1] == 8:
        with pytest.raises(ValueError, match="more than one latent pixel"):
            vae.decode(torch.zeros(batch, 4, 1, 1))
    else:
        assert vae.decode(torch.zeros(batch, 4, 1, 1)).sample.shape == (batch, 3, 2, 2)


def test_a_latent_of_one_pixel_is_enough_for_stable_diffusions_norms(mini: AutoencoderKL) -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert mini(x).sample.shape == (1, 3, 8, 8)


def test_a_generator_for_each_image_samples_it_as_if_it_were_alone(tiny: AutoencoderKL) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = tiny(x, sample_posterior=True, generator=[torch.Generator().manual_seed(n) for n in (1, 2)]).sample
    for n, image in enumerate(x):
        generator = torch.Generator().manual_seed(n + 1)
        alone = tiny(image[None], sample_posterior=True, generator=generator).sample
        torch.testing.assert_close(together[n : n + 1], alone)
    latents = tiny.encode(x).latent_dist.sample([torch.Generator().manual_seed(n) for n in (1, 2)])
    torch.testing.assert_close(tiny.decode(latents, generator=[torch.Generator()] * 2).sample, together)


def test_autocast_may_bring_another_data_type(tiny: AutoencoderKL) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert tiny(torch.zeros(1, 3, 32, 32)).sample.dtype == torch.bfloat16
        assert tiny.encode(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).latent_dist.mean.shape == (1, 4, 8, 8)


def test_values_are_not_searched_for_nan_in_the_hot_path(tiny: AutoencoderKL) -> None:
    with torch.no_grad():
        assert tiny(torch.full((1, 3, 32, 32), float("nan"))).sample.isnan().all()


def test_a_batch_is_the_same_as_its_images_one_by_one(tiny: AutoencoderKL) -> None:
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        together = tiny(x).sample
        one_by_one = torch.cat([tiny(image[None]).sample for image in x])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)


def test_single_fields_of_a_preset_can_be_changed() -> None:
    assert AutoencoderKL.from_preset("tiny", scaling_factor=0.5).config.scaling_factor == 0.5
    with pytest.raises(ValueError, match="scaling_faktor"):
        AutoencoderKL.from_preset("tiny", scaling_faktor=0.5)


def test_a_presets_name_in_the_place_of_a_config_points_to_from_preset() -> None:
    with pytest.raises(ValueError, match=r"'tiny'; for a preset there is from_preset"):
        AutoencoderKL("tiny")


def test_float64_is_refused_under_autocast_too(tiny: AutoencoderKL) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"torch\.float64"):
        tiny.encode(torch.zeros(1, 3, 32, 32, dtype=torch.float64))


def test_a_config_and_single_fields_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="latent_channels"):
        AutoencoderKL(AutoencoderKLConfig(), latent_channels=8)


def test_single_fields_build_what_the_config_would(tiny: AutoencoderKL) -> None:
    model = AutoencoderKL(block_out_channels=(32, 64), norm_num_groups=8, latent_channels=16)
    assert model.config == AutoencoderKLConfig(block_out_channels=(32, 64), norm_num_groups=8, latent_channels=16)
    assert model.encode(torch.zeros(1, 3, 8, 8)).latent_dist.mean.shape == (1, 16, 4, 4)


# ---- Latents for diffusion -------------------------------------------------------------------------------------------

SCALES = {
    "scale only": ({"scaling_factor": 0.18215}, lambda z: z * 0.18215),
    "shift and scale": ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, lambda z: (z - 0.0609) * 1.5305),
    "mean and deviation": (
        {
            "scaling_factor": 0.5,
            "latents_mean": (0.1, -0.2, 0.3, 0.0),
            "latents_std": (1.0, 2.0, 4.0, 8.0),
        },
        lambda z: (
            (z - torch.tensor([0.1, -0.2, 0.3, 0.0]).view(1, 4, 1, 1))
            * 0.5
            / torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1)
        ),
    ),
}


@pytest.mark.parametrize(("fields", "scaled"), SCALES.values(), ids=SCALES.keys())
def test_latents_are_scaled_for_diffusion_and_back(fields: dict, scaled) -> None:
    vae = AutoencoderKL(AutoencoderKLConfig.from_preset("tiny", **fields)).eval()
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        mode = vae.encode_for_diffusion(x, sample=False)
        torch.testing.assert_close(mode, scaled(posterior.mode()))
        sample = vae.encode_for_diffusion(x, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(sample, scaled(posterior.sample(torch.Generator().manual_seed(3))))
        torch.testing.assert_close(vae.unscale_latents(mode), posterior.mode())
        torch.testing.assert_close(vae.decode_from_diffusion(mode), vae.decode(posterior.mode()).sample)


def test_without_a_scaling_factor_the_error_says_how_to_compute_it(tiny: AutoencoderKL) -> None:
    """The code in the message works."""
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"dataclasses\.replace\(vae\.config, scaling_factor=s\)") as error:
        tiny.encode_for_diffusion(x)
    for call in (tiny.scale_latents, tiny.unscale_latents, tiny.decode_from_diffusion):
        with pytest.raises(ValueError, match="no scaling factor"):
            call(torch.zeros(1, 4, 8, 8))
    names = {"vae": tiny.clone(), "images": x, "dataclasses": dataclasses}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for statement in str(error.value).split("`")[1::2]:
            exec(statement, names)
        torch.manual_seed(0)  # draw the same sample of the posterior again
        assert names["vae"].encode_for_diffusion(x).std().item() == pytest.approx(1.0, abs=1e-4)


# ---- Functional transforms and compilation ---------------------------------------------------------------------------


def test_vmap_over_images_is_a_batch(tiny: AutoencoderKL) -> None:
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        each = torch.func.vmap(lambda image: tiny(image[None]).sample[0])(x)
        torch.testing.assert_close(each, tiny(x).sample, rtol=0, atol=1e-5)


def test_vmap_goes_through_tiles(tiny: AutoencoderKL) -> None:
    model = tiny.clone()
    model.enable_tiling(size=32, overlap=16)
    x = torch.rand(2, 3, 48, 32) * 2 - 1
    with torch.no_grad():
        each = torch.func.vmap(lambda image: model(image[None]).sample[0])(x)
        torch.testing.assert_close(each, model(x).sample, rtol=0, atol=1e-5)


def test_grad_of_one_latent_value_with_respect_to_the_image(tiny: AutoencoderKL) -> None:
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    found = torch.func.grad(lambda image: tiny.encode(image).latent_dist.mean[0, 0, 4, 4])(x)
    leaf = x.clone().requires_grad_()
    tiny.encode(leaf).latent_dist.mean[0, 0, 4, 4].backward()
    torch.testing.assert_close(found, leaf.grad)


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_each_half_is_one_graph_for_the_compiler(half: str) -> None:
    """`fullgraph=True` fails at any Python code that cannot be compiled."""
    vae = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4).eval()
    x = torch.rand(1, *((3, 16, 16) if half == "encode" else (4, 8, 8)))

    def run(x: torch.Tensor) -> torch.Tensor:
        return vae.encode(x).latent_dist.mode() if half == "encode" else vae.decode(x).sample

    with torch.no_grad():
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), run(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_a_reader_reaches_the_network_in_three_calls_without_a_closure(half: str) -> None:
    vae, names = AutoencoderKL.from_preset("tiny", seed=0), []

    def note(*_: Any) -> None:
        for frame in traceback.extract_stack():
            if Path(frame.filename).parent.name in ("klvae_edu", "performance"):
                names.append(frame.name)

    {"encode": vae.encoder, "decode": vae.decoder}[half].register_forward_pre_hook(note)
    getattr(vae, half)(torch.zeros(1, {"encode": 3, "decode": 4}[half], 32, 32))
    assert names == [half, "run_bounded", half]  # the third call is the forward pass of encoder or decoder
