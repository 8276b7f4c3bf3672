"""An autoencoder in a single file: naming schemes, prefixes, other models in the file, writing, errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.weights.keys import to_diffusers
from klvae_edu.weights.single_file import read_single_file
from tests.parity.compvis import compvis_shapes, compvis_weights

SMALL = {"ch": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1}
SMALL_CONFIG = AutoencoderKLConfig(block_out_channels=(32, 64, 64), layers_per_block=1, scaling_factor=None)
SIXTEEN = {**SMALL, "z_channels": 16, "quant_convs": False}
UNET = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return compvis_weights(compvis_shapes(**SMALL))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vae.safetensors"


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def holds(model: AutoencoderKL, weights: dict[str, Tensor]) -> bool:
    """Tell whether the model has these weights, which have CompVis' names."""
    expected, found = to_diffusers(weights), model.state_dict()
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in found)


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        AutoencoderKL.from_single_file(path, **options)
    message = str(error.value)
    assert str(path) in message
    return message


class TestReading:
    def test_a_file_of_compvis_names_is_read_with_the_configuration_of_its_tensors(
        self, weights: dict[str, Tensor], path: Path
    ) -> None:
        save_file(weights, path)
        model = AutoencoderKL.from_single_file(path)
        assert holds(model, weights)
        assert model.config == SMALL_CONFIG
        assert read_single_file(path).layout == "CompVis' names"

    def test_the_loaded_model_can_be_trained_and_owns_its_weights(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file(weights, path)
        model = AutoencoderKL.from_single_file(path)
        path.write_bytes(bytes(path.stat().st_size))
        assert holds(model, weights)
        model(torch.zeros(1, 3, 32, 32)).sample.sum().backward()
        assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
    def test_pickles_are_read(self, weights: dict[str, Tensor], tmp_path: Path, suffix: str, zipped: bool) -> None:
        path = tmp_path / f"vae{suffix}"
        torch.save(weights, path, _use_new_zipfile_serialization=zipped)
        assert holds(AutoencoderKL.from_single_file(path), weights)

    @pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae.", "module."])
    @pytest.mark.parametrize("names", ["compvis", "diffusers"])
    def test_the_prefix_is_found_whatever_the_names(
        self, weights: dict[str, Tensor], path: Path, prefix: str, names: str
    ) -> None:
        renamed = weights if names == "compvis" else to_diffusers(weights)
        save_file(under(prefix, renamed) | (UNET if prefix else {}), path)
        assert holds(AutoencoderKL.from_single_file(path), weights)
        style = "CompVis' names" if names == "compvis" else "diffusers' names"
        assert read_single_file(path).layout == (f"{style} under {prefix}" if prefix else style)

    def test_what_a_training_framework_keeps_others_the_weights_is_left(
        self, weights: dict[str, Tensor], tmp_path: Path
    ) -> None:
        path = tmp_path / "epoch=1.ckpt"
        training = {
            "loss.logvar": torch.zeros(()),
            "loss.perceptual_loss.net.slice1.0.weight": torch.ones(3),
            "loss.discriminator.main.0.weight": torch.ones(3),
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(5),
            "model_ema.encoderconv_inweight": torch.zeros(32, 3, 3, 3),
        }
        content = {"epoch": 1, "global_step": 9, "state_dict": weights | training, "optimizer_states": [{"lr": 0.1}]}
        torch.save(content, path)
        assert holds(AutoencoderKL.from_single_file(path), weights)

    def test_numbers_among_the_weights_are_left(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save({**weights, "global_step": 3, 7: torch.zeros(1)}, tmp_path / "vae.pt")
        assert holds(AutoencoderKL.from_single_file(tmp_path / "vae.pt"), weights)

    def test_numbers_in_tensors_without_a_dimension_are_left(self, weights: dict[str, Tensor], path: Path) -> None:
        counters = {"global_step": torch.tensor(3), "model_ema.decay": torch.tensor(0.9)}
        averages = {f"model_ema.{name.replace('.', '')}": tensor + 1 for name, tensor in weights.items()}
        save_file({**weights, **counters, **averages}, path)
        assert holds(AutoencoderKL.from_single_file(path), weights)
        assert holds(
            AutoencoderKL.from_single_file(path, ema=True), {name: tensor + 1 for name, tensor in weights.items()}
        )

    @pytest.mark.parametrize("name", ["vae.sft", "vae.SAFETENSORS", "vae.ckpt", "vae.pt"])
    def test_safetensors_are_recognised_by_their_content(
        self, weights: dict[str, Tensor], tmp_path: Path, name: str
    ) -> None:
        save_file(weights, tmp_path / name)
        assert holds(AutoencoderKL.from_single_file(tmp_path / name), weights)

    @pytest.mark.parametrize("name", ["vae.safetensors", "vae.sft", "vae.CKPT"])
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
    def test_pickles_are_recognised_by_their_content(
        self, weights: dict[str, Tensor], tmp_path: Path, name: str, zipped: bool
    ) -> None:
        torch.save({"state_dict": weights}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert holds(AutoencoderKL.from_single_file(tmp_path / name), weights)

    @pytest.mark.parametrize("part", ["", "encoder.", "decoder."])
    def test_the_weights_of_a_compiled_model_are_read(
        self, weights: dict[str, Tensor], tmp_path: Path, part: str
    ) -> None:
        compiled = {
            f"{part}_orig_mod.{name.removeprefix(part)}" if name.startswith(part) else name: tensor
            for name, tensor in weights.items()
        }
        torch.save(compiled, tmp_path / "vae.pt")
        assert holds(AutoencoderKL.from_single_file(tmp_path / "vae.pt"), weights)

    def test_matrices_for_attention_are_read_too(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file({n: t.flatten(1) if ".attn_1." in n and t.ndim == 4 else t for n, t in weights.items()}, path)
        assert holds(AutoencoderKL.from_single_file(path), weights)

    def test_the_data_type_is_the_files_or_the_one_asked_for(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file({name: tensor.half() for name, tensor in weights.items()}, path)
        assert AutoencoderKL.from_single_file(path).dtype == torch.float16
        model = AutoencoderKL.from_single_file(path, dtype=torch.float32)
        assert holds(model, {name: tensor.half().float() for name, tensor in weights.items()})

    @pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn, "float16", 16])
    def test_a_data_type_that_no_model_has_is_an_error_before_the_file_is_opened(
        self, path: Path, dtype: object
    ) -> None:
        with pytest.raises(
            ValueError, match=r"^dtype: expected a floating-point type .*torch\.float16.*, got "
        ) as error:
            AutoencoderKL.from_single_file(path, dtype=dtype)  # type: ignore[arg-type]
        assert str(error.value).endswith(repr(dtype))

    def test_weights_of_eight_bits_need_a_choice_of_what_to_compute_in(
        self, weights: dict[str, Tensor], path: Path
    ) -> None:
        eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}
        save_file(eight, path)
        assert "got torch.float8_e4m3fn; pass dtype=…" in error_of(path)
        expected = {name: tensor.to(torch.float16) for name, tensor in eight.items()}
        assert holds(AutoencoderKL.from_single_file(path, dtype=torch.float16), expected)

    def test_a_file_that_diffusers_wrote_has_its_configuration_others_it(self, tmp_path: Path) -> None:
        """The tensors do not contain the activation and the number of groups."""
        config = replace(SMALL_CONFIG, act_fn="gelu", norm_num_groups=8, scaling_factor=0.3, sample_size=64)
        vae = AutoencoderKL(config)
        vae.save_pretrained(tmp_path)
        assert AutoencoderKL.from_single_file(tmp_path / "diffusion_pytorch_model.safetensors").config == config
        torch.save(vae.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
        assert AutoencoderKL.from_single_file(tmp_path / "diffusion_pytorch_model.bin").config == config
        halves = {name: tensor.half() for name, tensor in vae.state_dict().items()}
        save_file(halves, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
        assert AutoencoderKL.from_single_file(
            tmp_path / "diffusion_pytorch_model.fp16.safetensors", sample_size=8
        ).config == replace(config, sample_size=8)
        (tmp_path / "config.json").write_text("{")
        assert "config.json: expected JSON" in error_of(tmp_path / "diffusion_pytorch_model.safetensors")

    @pytest.mark.parametrize("config", ["no JSON", "[]", '{"transformer": {"layers": 3}}', '{"_class_name": "Other"}'])
    def test_what_other_programs_keep_in_the_metadata_is_no_configuration(
        self, weights: dict[str, Tensor], path: Path, config: str
    ) -> None:
        save_file(weights, path, metadata={"config": config})
        assert AutoencoderKL.from_single_file(path).config == SMALL_CONFIG


class TestAveragedWeights:
    @pytest.fixture
    def averages(self) -> dict[str, Tensor]:
        return compvis_weights(compvis_shapes(**SMALL), seed=1)

    @pytest.mark.parametrize("prefix", ["", "first_stage_model."])
    @pytest.mark.parametrize("dots", [False, True])
    def test_are_taken_on_request(
        self, weights: dict[str, Tensor], averages: dict[str, Tensor], path: Path, prefix: str, dots: bool
    ) -> None:
        kept = {f"model_ema.{name if dots else name.replace('.', '')}": tensor for name, tensor in averages.items()}
        kept["model_ema.decay"] = torch.tensor(0.999)
        save_file(under(prefix, {**weights, **kept}), path)
        assert holds(AutoencoderKL.from_single_file(path), weights)
        assert holds(AutoencoderKL.from_single_file(path, ema=True), averages)

    def test_that_are_not_all_there_are_an_error_that_names_them(
        self, weights: dict[str, Tensor], averages: dict[str, Tensor], path: Path
    ) -> None:
        save_file(weights, path)
        assert "found none for" in error_of(path, ema=True)
        kept = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in averages.items()}
        del kept["model_ema.quant_convweight"]
        save_file({**weights, **kept}, path)
        assert error_of(path, ema=True).endswith("found none for quant_conv.weight")

    def test_of_the_unet_are_not_the_autoencoders(self, weights: dict[str, Tensor], path: Path) -> None:
        unet = {"model_ema.diffusion_modelinput_blocks00weight": torch.ones(4), "model_ema.decay": torch.tensor(0.9)}
        save_file(under("first_stage_model.", weights) | UNET | unet, path)
        assert holds(AutoencoderKL.from_single_file(path), weights)
        assert "ema=True" in error_of(path, ema=True)


class TestScaling:
    """The scaling factor is not in the weights: it comes from other tensors in the file, or from the caller."""

    @pytest.mark.parametrize(
        ("prefix", "arguments", "preset"),
        [
            ("conditioner.embedders.0.transformer.weight", SMALL, "sdxl"),
            ("cond_stage_model.transformer.text_model.weight", SMALL, "sd-v1"),
            ("model.diffusion_model.label_emb.0.0.weight", SMALL, "sdxl"),
            ("model.diffusion_model.joint_blocks.0.x_block.weight", SIXTEEN, "sd3"),
            ("model.diffusion_model.double_blocks.0.img_attn.weight", SIXTEEN, "flux"),
        ],
    )
    def test_is_that_of_the_diffusion_model_in_the_file(
        self, path: Path, prefix: str, arguments: dict[str, Any], preset: str
    ) -> None:
        save_file(
            under("first_stage_model.", compvis_weights(compvis_shapes(**arguments))) | {prefix: torch.ones(1)}, path
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config = AutoencoderKL.from_single_file(path).config
        expected = AutoencoderKLConfig.from_preset(preset)
        for field in ("scaling_factor", "shift_factor", "sample_size", "force_upcast"):
            assert getattr(config, field) == getattr(expected, field), field
        changed = AutoencoderKL.from_single_file(path, scaling_factor=0.5, sample_size=64).config
        assert changed == replace(config, scaling_factor=0.5, sample_size=64)

    def test_of_stable_diffusions_image_variations_is_not_sdxls(self, weights: dict[str, Tensor], path: Path) -> None:
        """Their U-Net has the same embedding as SDXL's; the text encoders have different names."""
        others = ("cond_stage_model.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight")
        save_file(under("first_stage_model.", weights) | {name: torch.ones(1) for name in others}, path)
        assert AutoencoderKL.from_single_file(path).config.scaling_factor == 0.18215

    @pytest.mark.parametrize("others", [{}, {"cond_stage_model.weight": torch.ones(1)}])
    def test_that_the_diffusion_model_measured_comes_first(
        self, weights: dict[str, Tensor], path: Path, others: dict[str, Tensor]
    ) -> None:
        """CompVis' LatentDiffusion saves it with scale_by_std."""
        measured = {"scale_factor": torch.tensor(0.25)}
        save_file(under("first_stage_model.", weights) | UNET | others | measured, path)
        config = AutoencoderKL.from_single_file(path).config
        assert config.scaling_factor == 0.25
        assert config.sample_size == 512
        assert AutoencoderKL.from_single_file(path, scaling_factor=0.5).config.scaling_factor == 0.5

    def test_that_cannot_be_one_is_an_error(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file(under("first_stage_model.", weights) | {"scale_factor": torch.tensor(float("nan"))}, path)
        assert "scaling_factor: expected a finite number" in error_of(path)
        save_file(under("first_stage_model.", weights) | {"scale_factor": torch.tensor(1j)}, path)
        assert AutoencoderKL.from_single_file(path).config.scaling_factor is None

    def test_that_the_diffusion_model_measured_needs_no_warning(self, path: Path) -> None:
        save_file(
            under("first_stage_model.", compvis_weights(compvis_shapes(**SIXTEEN))) | {"scale_factor": torch.ones(1)},
            path,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert AutoencoderKL.from_single_file(path).config.scaling_factor == 1.0

    def test_of_another_number_of_channels_than_that_model_has_stays_open(self, path: Path) -> None:
        """Flux.2, for example, has the block names of Flux, but other latents."""
        others = {"model.diffusion_model.double_blocks.0.weight": torch.ones(1)}
        save_file(under("vae.", compvis_weights(compvis_shapes(**SMALL, z_channels=32))) | others, path)
        assert AutoencoderKL.from_single_file(path).config.scaling_factor is None

    def test_of_stable_diffusions_network_alone_is_its_own_with_a_warning_about_sdxl(self, tmp_path: Path) -> None:
        path = tmp_path / "vae.ckpt"
        with torch.serialization.skip_data():  # zeros that take no disk space
            torch.save({name: torch.empty(shape, dtype=torch.half) for name, shape in compvis_shapes().items()}, path)
        with pytest.warns(UserWarning, match=r"0\.18215.*SDXL.*scaling_factor=0\.13025") as caught:
            model = AutoencoderKL.from_single_file(path)
        assert [warning.filename for warning in caught] == [__file__]
        assert model.config == AutoencoderKLConfig.from_preset("sd-v1") and model.num_parameters() == 83_653_863
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert AutoencoderKL.from_single_file(path, scaling_factor=0.13025).config.scaling_factor == 0.13025
            assert AutoencoderKL.from_single_file(path, scaling_factor=None).config.scaling_factor is None

    def test_of_sixteen_channels_alone_stays_open_with_a_warning_that_names_both(self, path: Path) -> None:
        save_file(compvis_weights(compvis_shapes(**SIXTEEN)), path)
        with pytest.warns(UserWarning, match=r"1\.5305, shift_factor=0\.0609.*0\.3611, shift_factor=0\.1159") as caught:
            config = AutoencoderKL.from_single_file(path).config
            AutoencoderKL.from_single_file(path)
        assert [warning.filename for warning in caught] == [__file__] * 2
        assert config.scaling_factor is None and config.shift_factor is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config = AutoencoderKL.from_single_file(path, scaling_factor=0.3611, shift_factor=0.1159).config
        assert (config.scaling_factor, config.shift_factor) == (0.3611, 0.1159)

    def test_of_any_other_network_stays_open(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file(weights, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert AutoencoderKL.from_single_file(path).config.scaling_factor is None


class TestWriting:
    CONFIGS = (
        SMALL_CONFIG,
        AutoencoderKLConfig(
            block_out_channels=(16, 24),
            norm_num_groups=8,
            act_fn="gelu",
            scaling_factor=0.7,
            latents_mean=(0.1, 0.2, 0.3, 0.4),
            latents_std=(1.0, 2.0, 3.0, 4.0),
            sample_size=64,
            force_upcast=False,
        ),
        AutoencoderKLConfig(
            block_out_channels=(32, 64),
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            shift_factor=0.1,
        ),
    )

    @pytest.mark.parametrize("config", CONFIGS, ids=["plain", "other settings", "other parts"])
    @pytest.mark.parametrize("names", ["compvis", "diffusers"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_written_model_comes_back_to_the_last_bit_with_its_whole_configuration(
        self, path: Path, config: AutoencoderKLConfig, names: str, dtype: torch.dtype
    ) -> None:
        vae = AutoencoderKL(config).to(dtype)
        vae.to_single_file(path, names)
        again = AutoencoderKL.from_single_file(path)
        assert again.config == config and again.dtype == dtype
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in vae.state_dict().items())
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["format"] == "pt"
            assert json.loads(file.metadata()["config"])["_class_name"] == "AutoencoderKL"
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    def test_compvis_file_to_model_to_compvis_file_is_the_same_file(
        self, weights: dict[str, Tensor], tmp_path: Path
    ) -> None:
        save_file(weights, tmp_path / "a.safetensors")
        AutoencoderKL.from_single_file(tmp_path / "a.safetensors").to_single_file(tmp_path / "b.safetensors")
        again = load_file(tmp_path / "b.safetensors")
        assert again.keys() == weights.keys()
        assert all(torch.equal(again[name], weights[name]) for name in weights)

    def test_compvis_names_are_written_unless_others_are_asked_for(self, path: Path) -> None:
        AutoencoderKL(SMALL_CONFIG).to_single_file(path)
        assert {name: tuple(tensor.shape) for name, tensor in load_file(path).items()} == compvis_shapes(**SMALL)
        AutoencoderKL(SMALL_CONFIG).to_single_file(path, names="diffusers")
        assert load_file(path).keys() == AutoencoderKL(SMALL_CONFIG).state_dict().keys()

    def test_a_field_can_be_changed_in_reading(self, path: Path) -> None:
        AutoencoderKL(SMALL_CONFIG).to_single_file(path)
        assert AutoencoderKL.from_single_file(path, scaling_factor=0.2).config == replace(
            SMALL_CONFIG, scaling_factor=0.2
        )

    @pytest.mark.parametrize("names", ["compvis", "diffusers"])
    def test_a_model_with_a_compiled_part_is_written_as_if_it_were_not(self, tmp_path: Path, names: str) -> None:
        vae = AutoencoderKL(SMALL_CONFIG)
        vae.to_single_file(tmp_path / "plain.safetensors", names)
        vae.decoder = torch.compile(vae.decoder)  # type: ignore[assignment]
        vae.to_single_file(tmp_path / "compiled.safetensors", names)
        assert (tmp_path / "compiled.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()

    def test_a_changed_model_is_refused_and_nothing_is_written(self, tmp_path: Path) -> None:
        vae = AutoencoderKL(SMALL_CONFIG)
        vae.quant_conv = torch.nn.Identity()
        with pytest.raises(ValueError, match=r"the model: the weights do not fit(.|\n)*missing: quant_conv\.bias"):
            vae.to_single_file(tmp_path / "new" / "vae.safetensors")
        assert not list(tmp_path.iterdir())

    def test_the_folder_is_made(self, tmp_path: Path) -> None:
        AutoencoderKL(SMALL_CONFIG).to_single_file(tmp_path / "new" / "folder" / "vae.safetensors")
        assert (tmp_path / "new" / "folder" / "vae.safetensors").is_file()

    @pytest.mark.parametrize("name", ["vae.ckpt", "vae", "vae.pt", "vae.safetensors.old"])
    def test_nothing_but_safetensors_is_written(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=r"ends in \.safetensors"):
            AutoencoderKL(SMALL_CONFIG).to_single_file(tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_unknown_names_are_an_error_that_lists_the_known_ones(self, path: Path) -> None:
        with pytest.raises(ValueError, match="expected 'compvis' or 'diffusers', got 'ldm'"):
            AutoencoderKL(SMALL_CONFIG).to_single_file(path, names="ldm")

    @pytest.mark.parametrize("function", ["os.fsync", "os.replace", "safetensors.torch.save_file"])
    def test_a_failed_write_leaves_the_file_that_was_there(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        from safetensors import SafetensorError

        def full(*args: object, **kwargs: object) -> None:
            raise SafetensorError("No space left") if function.startswith("safetensors") else OSError("No space left")

        AutoencoderKL(SMALL_CONFIG).to_single_file(path)
        before = path.read_bytes()
        monkeypatch.setattr(function, full)
        with pytest.raises(OSError, match="No space left"):
            AutoencoderKL(SMALL_CONFIG).to_single_file(path)
        assert path.read_bytes() == before
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


class TestAWrongFile:
    def test_is_listed_tensor_by_tensor_with_shapes(self, weights: dict[str, Tensor], path: Path) -> None:
        del weights["quant_conv.bias"]
        weights["encoder.extra.weight"] = torch.zeros(2, 3)
        weights["decoder.up.2.block.0.norm1.bias"] = torch.zeros(5)
        save_file(weights, path)
        message = error_of(path)
        assert "missing: quant_conv.bias (8,)" in message
        assert "unknown: encoder.extra.weight (2, 3)" in message
        assert "misshapen: decoder.up_blocks.0.resnets.0.norm1.bias, expected (64,), got (5,)" in message
        assert len(message.splitlines()) == 4

    def test_has_a_long_list_shortened_for_each_kind(self, weights: dict[str, Tensor], path: Path) -> None:
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.up")}
        missing = len(weights) - len(kept)
        save_file(kept | {f"encoder.extra.{i}": torch.zeros(1) for i in range(33)}, path)
        message = error_of(path)
        assert f"missing: … and {missing - 20} more" in message and "unknown: … and 13 more" in message
        assert len(message.splitlines()) == 1 + 21 + 21

    def test_with_transposed_convolutions_lists_them(self, weights: dict[str, Tensor], path: Path) -> None:
        turned = {n: t.transpose(0, 1).contiguous() if t.ndim == 4 else t for n, t in weights.items()}
        save_file(turned, path)
        message = error_of(path)
        assert "misshapen: encoder.conv_in.weight, expected (32, 3, 3, 3), got (3, 32, 3, 3)" in message
        assert "missing" not in message and "unknown" not in message

    @pytest.mark.parametrize("half", ["encoder", "decoder"])
    def test_with_one_half_only_lists_the_other(self, weights: dict[str, Tensor], path: Path, half: str) -> None:
        save_file({name: tensor for name, tensor in weights.items() if name.startswith(half)}, path)
        lines = error_of(path).splitlines()[1:]
        other = "decoder" if half == "encoder" else "encoder"
        assert lines and all(line.startswith((f"  missing: {other}.", "  missing: … and")) for line in lines)

    @pytest.mark.parametrize(
        "names",
        [
            ["model.diffusion_model.input_blocks.0.0.weight"],
            ["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight", "mid_block.attentions.0.proj_in.weight"],
            ["lora_unet_down_blocks_0.lora_down.weight"],
            ["text_model.encoder.layers.0.weight"],
            [],
        ],
        ids=["unet", "unet of diffusers", "lora", "text encoder", "empty"],
    )
    @pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
    def test_without_an_autoencoder_says_what_was_looked_for_and_what_is_there(
        self, tmp_path: Path, names: list[str], suffix: str
    ) -> None:
        path = tmp_path / f"model{suffix}"
        content = {name: torch.zeros(1) for name in names}
        save_file(content, path) if suffix == ".safetensors" else torch.save({"state_dict": content}, path)
        message = error_of(path)
        assert "no autoencoder" in message and "first_stage_model. or vae." in message
        assert all(name in message for name in names or ["no tensors"])

    def test_with_a_vq_model_says_so(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file({**weights, "quantize.embedding.weight": torch.zeros(16, 4)}, path)
        assert re.search(r"a VQ model.*quantize\.embedding\.weight", error_of(path))

    def test_with_two_autoencoders_says_so(self, weights: dict[str, Tensor], path: Path) -> None:
        both = under("vae.", weights) | under("first_stage_model.", {n: t.clone() for n, t in weights.items()})
        save_file(both, path)
        assert "more than one autoencoder" in error_of(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_with_values_that_are_not_finite_names_the_tensors(
        self, weights: dict[str, Tensor], path: Path, value: float
    ) -> None:
        weights["decoder.conv_out.bias"][1] = value
        weights["encoder.mid.attn_1.q.weight"][0, 0] = value
        save_file(weights, path)
        message = error_of(path)
        assert (
            "NaN or infinity in decoder.conv_out.bias" in message and "encoder.mid_block.attentions.0.to_q" in message
        )
        assert message.count("torch.float32") == 2

    def test_whose_values_the_asked_for_type_cannot_hold_says_so(self, weights: dict[str, Tensor], path: Path) -> None:
        weights["quant_conv.bias"][0] = 1e6
        save_file(weights, path)
        assert AutoencoderKL.from_single_file(path).dtype == torch.float32
        assert "torch.float16 cannot hold the values of quant_conv.bias" in error_of(path, dtype=torch.float16)

    def test_without_one_of_the_convolutions_around_the_latent_says_so(
        self, weights: dict[str, Tensor], path: Path
    ) -> None:
        save_file({name: tensor for name, tensor in weights.items() if not name.startswith("post_quant")}, path)
        with pytest.warns(UserWarning, match="one of quant_conv and post_quant_conv is missing"):
            AutoencoderKL.from_single_file(path)
        save_file({name: tensor for name, tensor in weights.items() if "quant_conv" not in name}, path)
        with pytest.warns(UserWarning, match="which autoencoders with 4 latent channels usually have"):
            AutoencoderKL.from_single_file(path)

    def test_of_mixed_types_or_of_whole_numbers_says_so(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file({**weights, "quant_conv.bias": weights["quant_conv.bias"].half()}, path)
        assert "torch.float16, torch.float32" in error_of(path)
        assert AutoencoderKL.from_single_file(path, dtype=torch.bfloat16).dtype == torch.bfloat16
        save_file({**weights, "quant_conv.bias": weights["quant_conv.bias"].to(torch.int8)}, path)
        assert "torch.int8" in error_of(path, dtype=torch.float32)

    def test_of_sparse_tensors_says_so(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        path = tmp_path / "vae.pt"
        torch.save({**weights, "quant_conv.bias": weights["quant_conv.bias"].to_sparse()}, path)
        assert "dense" in error_of(path)

    def test_that_is_cut_off_or_no_such_file_at_all_says_so(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        for path in (tmp_path / "vae.safetensors", tmp_path / "vae.ckpt"):
            save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            assert re.search("a damaged or incomplete safetensors file|got a damaged file", error_of(path))
            path.write_bytes(b"<html>Access denied</html>")
            assert re.search("a damaged or incomplete safetensors file|got a damaged file", error_of(path))
            path.unlink()
            with pytest.raises(FileNotFoundError, match=path.name):
                AutoencoderKL.from_single_file(path)

    def test_in_a_pickle_of_objects_only_names_their_classes_and_the_safe_ways_out(self, tmp_path: Path) -> None:
        path = tmp_path / "sd-v1-4.ckpt"
        torch.save({"callbacks": {"lr": Fraction(1, 2)}, "model": Fraction(1, 3)}, path)
        message = error_of(path)
        assert "objects of the class fractions.Fraction are left out. Ask its author for a safetensors file" in message
        assert "weights_only" not in message and "python" not in message

    def test_with_a_planted_program_does_not_run_it(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "executed",))

        path = tmp_path / "vae.ckpt"
        for content in ({**weights, "x": Attack()}, {"state_dict": weights, "x": Attack()}):
            torch.save(content, path)
            with pytest.warns(UserWarning, match=r"objects of 3 classes \(.*pathlib.*nothing was run here"):
                AutoencoderKL.from_single_file(path)
        torch.save(Attack(), path)
        assert "pathlib" in error_of(path)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1), 3, {"state_dict": {}}, {"state_dict": 3}])
    def test_of_anything_but_tensors_by_name_says_so(self, tmp_path: Path, content: object) -> None:
        path = tmp_path / "vae.pt"
        torch.save(content, path)
        assert re.search("expected tensors by name|found no tensors", error_of(path))

    @pytest.mark.parametrize("content", [{"model": {"a": 1}, "step": 3}, {"net": [torch.zeros(1)], 7: "x"}])
    def test_with_the_weights_elsewhere_lists_what_is_there(self, tmp_path: Path, content: dict[Any, Any]) -> None:
        path = tmp_path / "vae.pt"
        torch.save(content, path)
        message = error_of(path)
        assert "state_dict" in message
        assert all(f"{name!r} ({type(value).__name__})" in message for name, value in content.items())

    @pytest.mark.parametrize(
        "fields",
        [
            {"down_block_types": 5},
            {"block_out_channels": "wide"},
            {"block_out_channels": [2**60] * 3},
            {"block_out_channels": [2**64] * 3},
            {"norm_num_groups": {}},
            {"latents_mean": [[]], "latents_std": [None]},
            {"act_fn": []},
        ],
        ids=str,
    )
    def test_with_an_invalid_configuration_names_the_file(
        self, weights: dict[str, Tensor], tmp_path: Path, fields: dict[str, Any]
    ) -> None:
        config = json.dumps({"_class_name": "AutoencoderKL", **SMALL_CONFIG.to_dict(), **fields})
        save_file(weights, tmp_path / "vae.safetensors", metadata={"config": config})
        error_of(tmp_path / "vae.safetensors")
        save_file(to_diffusers(weights), tmp_path / "diffusion_pytorch_model.safetensors")
        (tmp_path / "config.json").write_text(config)
        error_of(tmp_path / "diffusion_pytorch_model.safetensors")

    @pytest.mark.parametrize("name", ["vae.onnx", "vae", "vae.json"])
    def test_of_another_suffix_says_which_are_read(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"content")
        assert ".safetensors, .sft, .ckpt, .pt, .pth or .bin" in error_of(tmp_path / name)

    def test_that_is_a_folder_says_what_reads_it(self, tmp_path: Path) -> None:
        for name in ("vae.bin", "vae"):
            (tmp_path / name).mkdir()
            assert "from_pretrained reads it" in error_of(tmp_path / name)

    def test_with_groups_that_cannot_be_guessed_asks_for_them(self, path: Path) -> None:
        config = AutoencoderKLConfig(block_out_channels=(16, 24), norm_num_groups=8, scaling_factor=None)
        save_file(AutoencoderKL(config).state_dict(), path)
        assert "norm_num_groups=…" in error_of(path)
        assert AutoencoderKL.from_single_file(path, norm_num_groups=8).config == config

    def test_is_not_the_reason_when_a_field_is_unknown(self, weights: dict[str, Tensor], path: Path) -> None:
        save_file(weights, path)
        with pytest.raises(ValueError, match="'norm_groups'; did you mean 'norm_num_groups'"):
            AutoencoderKL.from_single_file(path, norm_groups=8)


LOAD = """
import resource, sys
import torch
from klvae_edu import AutoencoderKL
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
AutoencoderKL.from_single_file(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux counts it")
def test_out_of_a_checkpoint_of_gigabytes_only_the_autoencoder_is_read(tmp_path: Path) -> None:
    """The checkpoint contains 4 GB of other tensors, which take no disk space."""
    shapes = compvis_shapes(**SMALL)
    with torch.serialization.skip_data():
        autoencoder = {f"first_stage_model.{name}": torch.empty(shape) for name, shape in shapes.items()}
        unet = {f"model.diffusion_model.{i}.weight": torch.empty(1 << 28) for i in range(4)}
        torch.save({"state_dict": unet | autoencoder}, tmp_path / "sd.ckpt")
    assert (tmp_path / "sd.ckpt").stat().st_size > 4 << 30
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "sd.ckpt")], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 200  # MB
