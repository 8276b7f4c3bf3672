"""State-dict keys: CompVis' names and back, names of older diffusers, prefixes, and the inferred configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.weights.checks import check_fit
from klvae_edu.weights.keys import infer_config, name_style, to_compvis, to_diffusers, uncompiled
from klvae_edu.weights.places import choose_place
from tests.parity.compvis import compvis_shapes, compvis_weights

ATTENTION_IN_LEVELS = AutoencoderKLConfig(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
)
SIXTEEN_CHANNELS = AutoencoderKLConfig(
    block_out_channels=(32, 64, 64, 64), latent_channels=16, use_quant_conv=False, use_post_quant_conv=False
)

# Configurations, with the arguments of CompVis' constructors for the same network.
NETWORKS: dict[str, tuple[AutoencoderKLConfig, dict[str, Any]]] = {
    "sd-v1": (AutoencoderKLConfig.from_preset("sd-v1"), {}),
    "sd3": (AutoencoderKLConfig.from_preset("sd3"), {"z_channels": 16, "quant_convs": False}),
    "kl-f4": (AutoencoderKLConfig.from_preset("kl-f4"), {"ch_mult": (1, 2, 4), "z_channels": 3}),
    "kl-f16": (
        AutoencoderKLConfig.from_preset("kl-f16"),
        {"ch_mult": (1, 1, 2, 2, 4), "z_channels": 16, "attention_levels": (4,)},
    ),
    "kl-f32": (
        AutoencoderKLConfig.from_preset("kl-f32"),
        {"ch_mult": (1, 1, 2, 2, 4, 4), "z_channels": 64, "attention_levels": (4, 5)},
    ),
    "attention in two levels": (
        ATTENTION_IN_LEVELS,
        {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attention_levels": (1, 2)},
    ),
    "sixteen channels, small": (
        SIXTEEN_CHANNELS,
        {"ch": 32, "ch_mult": (1, 2, 2, 2), "z_channels": 16, "quant_convs": False},
    ),
    "one level": (
        AutoencoderKLConfig(block_out_channels=(32,), layers_per_block=3),
        {"ch": 32, "ch_mult": (1,), "num_res_blocks": 3},
    ),
}
EACH_NETWORK = pytest.mark.parametrize(("config", "arguments"), NETWORKS.values(), ids=NETWORKS.keys())

SMALL = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1}


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def on_meta(config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """Build the model on the meta device: names and shapes only."""
    with torch.device("meta"):
        return AutoencoderKL(config).state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_stable_diffusions_file_has_248_tensors() -> None:
    assert len(compvis_shapes()) == 248 == len(on_meta(AutoencoderKLConfig.from_preset("sd-v1")))


@EACH_NETWORK
def test_our_weights_under_compvis_names_are_the_tensors_compvis_has(
    config: AutoencoderKLConfig, arguments: dict[str, Any]
) -> None:
    assert shapes(to_compvis(on_meta(config))) == compvis_shapes(**arguments)


@EACH_NETWORK
def test_compvis_weights_under_our_names_are_the_models(config: AutoencoderKLConfig, arguments: dict[str, Any]) -> None:
    weights = {name: torch.empty(shape, device="meta") for name, shape in compvis_shapes(**arguments).items()}
    assert shapes(to_diffusers(weights)) == shapes(on_meta(config))


@pytest.mark.parametrize(
    ("compvis", "diffusers"),
    [
        ("encoder.down.0.block.1.norm1.weight", "encoder.down_blocks.0.resnets.1.norm1.weight"),
        ("encoder.down.2.block.0.nin_shortcut.bias", "encoder.down_blocks.2.resnets.0.conv_shortcut.bias"),
        ("encoder.down.1.downsample.conv.weight", "encoder.down_blocks.1.downsamplers.0.conv.weight"),
        ("decoder.up.3.block.2.conv2.weight", "decoder.up_blocks.0.resnets.2.conv2.weight"),
        ("decoder.up.1.upsample.conv.bias", "decoder.up_blocks.2.upsamplers.0.conv.bias"),
        ("decoder.mid.block_1.norm2.weight", "decoder.mid_block.resnets.0.norm2.weight"),
        ("decoder.mid.block_2.norm2.weight", "decoder.mid_block.resnets.1.norm2.weight"),
        ("encoder.mid.attn_1.norm.bias", "encoder.mid_block.attentions.0.group_norm.bias"),
        ("encoder.mid.attn_1.q.bias", "encoder.mid_block.attentions.0.to_q.bias"),
        ("encoder.mid.attn_1.proj_out.bias", "encoder.mid_block.attentions.0.to_out.0.bias"),
        ("encoder.norm_out.weight", "encoder.conv_norm_out.weight"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_single_names_of_stable_diffusions_file(compvis: str, diffusers: str) -> None:
    """The decoder has four levels, counted in opposite directions."""
    last_level = {"encoder.down.3.block.0.norm1.bias": torch.zeros(1)}
    assert set(to_diffusers({compvis: torch.zeros(1), **last_level})) - set(to_diffusers(last_level)) == {diffusers}
    last_level = to_diffusers(last_level)
    assert set(to_compvis({diffusers: torch.zeros(1), **last_level})) - set(to_compvis(last_level)) == {compvis}


@pytest.mark.parametrize("arguments", [SMALL, {**SMALL, "attention_levels": (1,)}, {**SMALL, "quant_convs": False}])
def test_there_and_back_every_number_is_the_same(arguments: dict[str, Any]) -> None:
    weights = compvis_weights(compvis_shapes(**arguments))
    assert same(to_compvis(to_diffusers(weights)), weights)


def test_current_names_stay() -> None:
    """Replacing parts of names would turn to_q into to_to_q the second time."""
    weights = compvis_weights(compvis_shapes(**SMALL, attention_levels=(2,)))
    once = to_diffusers(weights)
    assert same(to_diffusers(once), once)
    assert same(to_compvis(to_compvis(once)), weights)


def test_attention_names_from_before_diffusers_refactoring_are_known() -> None:
    weights = to_diffusers(compvis_weights(compvis_shapes(**SMALL)))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(weights)
    for new_name, old_name in old.items():
        for name in [name for name in renamed if f".{new_name}." in name]:
            renamed[name.replace(f".{new_name}.", f".{old_name}.")] = renamed.pop(name)
    assert renamed.keys() != weights.keys()
    assert same(to_diffusers(renamed), weights)


def test_attention_weights_may_be_matrices_in_a_compvis_file_too() -> None:
    weights = compvis_weights(compvis_shapes(**SMALL))
    matrices = {
        name: tensor.flatten(1) if ".attn_1." in name and tensor.ndim == 4 else tensor
        for name, tensor in weights.items()
    }
    assert shapes(matrices) != shapes(weights)
    assert same(to_diffusers(matrices), to_diffusers(weights))


@pytest.mark.parametrize(
    "name",
    [
        "my.encoder.conv_in.weight",
        "encoder.norm_out.weight.old",
        "encoder.norm_outXweight",
        "encoder.down.0.block.0.conv_shortcut.weight",  # a 3x3 convolution in CompVis; no released model has it
        "encoder.down.00.block.0.norm1.weight",
        "encoder.down.٣.block.0.norm1.weight",
        "encoder.up.0.block.0.norm1.weight",
        "encoder.mid.block_3.norm1.weight",
        "encoder.mid.attn_1.qq.weight",
        "encoder.down.9999999999999999999.block.0.norm1.weight",
    ],
)
def test_a_name_that_only_looks_like_one_is_left_alone(name: str) -> None:
    assert list(to_diffusers({name: torch.zeros(1)})) == [name]


def test_two_tensors_for_one_name_are_an_error_that_names_them() -> None:
    name = "encoder.mid_block.attentions.0.to_q.bias"
    for other in ("encoder.mid.attn_1.q.bias", "encoder.mid_block.attentions.0.query.bias"):
        with pytest.raises(ValueError, match=f"two tensors have the name {name}"):
            to_diffusers({name: torch.zeros(1), other: torch.zeros(1)})


def test_the_naming_scheme_is_described() -> None:
    weights = compvis_weights(compvis_shapes(**SMALL))
    assert name_style(weights) == "CompVis' names"
    assert name_style(to_diffusers(weights)) == "diffusers' names"
    assert "before its attention refactoring" in name_style(["encoder.mid_block.attentions.0.query.weight"])


class TestTheInferredConfiguration:
    @EACH_NETWORK
    def test_is_the_networks(self, config: AutoencoderKLConfig, arguments: dict[str, Any]) -> None:
        weights = {name: torch.empty(shape, device="meta") for name, shape in compvis_shapes(**arguments).items()}
        unknown: dict[str, Any] = {"scaling_factor": None, "shift_factor": None, "sample_size": 512}
        assert infer_config(to_diffusers(weights)) == replace(config, **unknown)

    @pytest.mark.parametrize(
        "changes",
        [
            {"in_channels": 1, "out_channels": 2},
            {"mid_block_add_attention": False},
            {"use_quant_conv": False},
            {"use_post_quant_conv": False},
            {"layers_per_block": 4},
            {"latent_channels": 7},
            {"block_out_channels": (96, 32, 64)},
            {"down_block_types": ("AttnDownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D")},
            {"up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")},
        ],
        ids=str,
    )
    def test_has_every_field_that_the_tensors_show(self, changes: dict[str, Any]) -> None:
        base = AutoencoderKLConfig(block_out_channels=(32, 64, 64), layers_per_block=1, scaling_factor=None)
        config = replace(base, **changes)
        assert infer_config(on_meta(config)) == config

    def test_asks_for_the_number_of_groups_where_32_cannot_be(self) -> None:
        config = AutoencoderKLConfig(block_out_channels=(16, 40), norm_num_groups=8, scaling_factor=None)
        with pytest.raises(ValueError, match=r"32 does not divide the widths \(16, 40\): pass norm_num_groups=…"):
            infer_config(on_meta(config))
        assert infer_config(on_meta(config), norm_num_groups=8) == config

    def test_takes_a_given_field_as_it_is_given(self) -> None:
        weights = on_meta(ATTENTION_IN_LEVELS)
        assert infer_config(weights, act_fn="gelu", scaling_factor=0.5).act_fn == "gelu"
        assert infer_config(weights, latent_channels=8).latent_channels == 8

    def test_is_not_changed_by_one_misshapen_tensor(self) -> None:
        weights = on_meta(ATTENTION_IN_LEVELS)
        expected = infer_config(weights)
        for name, tensor in weights.items():
            broken = {**weights, name: torch.empty(*tensor.shape[1:], 5, device="meta")}
            if name != "decoder.conv_out.bias":  # the only tensor with the number of image channels
                assert infer_config(broken) == expected, name

    def test_of_transposed_convolutions_is_the_same(self) -> None:
        weights = on_meta(ATTENTION_IN_LEVELS)
        turned = {name: tensor.transpose(0, 1) if tensor.ndim == 4 else tensor for name, tensor in weights.items()}
        assert infer_config(turned) == infer_config(weights)

    @pytest.mark.parametrize("half", ["encoder", "decoder"])
    def test_of_one_half_alone_is_that_of_the_whole(self, half: str) -> None:
        """The error about the other half can then list the missing tensors."""
        weights = on_meta(replace(SIXTEEN_CHANNELS, scaling_factor=None))
        alone = {name: tensor for name, tensor in weights.items() if name.startswith(half)}
        assert infer_config(alone) == infer_config(weights)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.data())
    def test_of_tensors_that_contradict_each_other_ends_in_a_list_or_is_asked_for(self, data: st.DataObject) -> None:
        """Random damage: groups of tensors are missing, shapes are wrong, tensors of other networks are added."""
        weights = dict(on_meta(ATTENTION_IN_LEVELS))
        parts = sorted({name.rsplit(".", steps)[0] + "." for name in weights for steps in (1, 2, 3, 4)})
        left_out = data.draw(st.lists(st.sampled_from(parts), max_size=6))
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(left_out))}
        for name in data.draw(st.lists(st.sampled_from(sorted(weights)), max_size=6)):
            weights[name] = torch.empty(data.draw(st.lists(st.integers(0, 64), max_size=4)), device="meta")
        if data.draw(st.booleans()):
            weights |= on_meta(SIXTEEN_CHANNELS)
        try:
            config = infer_config(weights)
        except ValueError as error:
            assert "expected" in str(error) or "norm_num_groups" in str(error)
            return
        if shapes(weights) != shapes(on_meta(config)):
            with pytest.raises(ValueError, match=r"missing|unknown|misshapen"):
                check_fit(on_meta(config), weights, "the file")


def test_what_torch_compile_adds_to_names_is_taken_off_wherever_it_is() -> None:
    weights = compvis_weights(compvis_shapes(**SMALL))
    whole = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    part = {name.replace("decoder.", "decoder._orig_mod."): tensor for name, tensor in weights.items()}
    for compiled in (whole, part):
        assert choose_place(compiled)[0] == "" and name_style(compiled) == "CompVis' names"
        assert shapes(to_diffusers(compiled)) == shapes(to_diffusers(weights))
    assert uncompiled("encoder._orig_mod.conv_in._orig_mod.bias") == "encoder.conv_in.bias"
    assert uncompiled("my_orig_mod.bias") == "my_orig_mod.bias"
    assert name_style(["decoder._orig_mod.conv_in.bias"]) == "diffusers' names"


def test_a_compiled_and_a_plain_tensor_of_one_name_are_refused() -> None:
    weights = {"encoder.conv_in.bias": torch.zeros(1), "encoder._orig_mod.conv_in.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"two tensors have the name encoder\.conv_in\.bias"):
        to_diffusers(weights)
