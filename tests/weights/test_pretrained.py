"""Folders in diffusers' layout: writing, reading, and errors for damaged ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.config import PRESETS
from klvae_edu.weights.files import atomic_write
from klvae_edu.weights.pretrained import CONFIG_NAME, WEIGHTS_NAME

PICKLE_NAME = "diffusion_pytorch_model.bin"


@pytest.fixture
def tiny() -> AutoencoderKL:
    return AutoencoderKL.from_preset("tiny", seed=0)


@pytest.fixture
def saved(tiny: AutoencoderKL, tmp_path: Path) -> Path:
    tiny.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same_weights(first: AutoencoderKL, second: AutoencoderKL) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_comes_back_as_it_was_saved(tiny: AutoencoderKL, saved: Path) -> None:
    again = AutoencoderKL.from_pretrained(saved)
    assert again.config == tiny.config
    assert same_weights(again, tiny)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_the_loaded_model_can_be_trained(saved: Path) -> None:
    model = AutoencoderKL.from_pretrained(saved)
    model(torch.zeros(1, 3, 32, 32)).sample.sum().backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


def test_the_data_type_can_be_chosen(saved: Path) -> None:
    assert AutoencoderKL.from_pretrained(saved).dtype == torch.float32
    assert AutoencoderKL.from_pretrained(saved, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", torch.int8, torch.float8_e5m2])
def test_a_data_type_that_no_model_has_is_an_error_before_anything_is_looked_for(dtype: object) -> None:
    with pytest.raises(ValueError, match=r"^dtype: expected a floating-point type .*torch\.float16"):
        AutoencoderKL.from_pretrained("no/such-model", dtype=dtype)  # type: ignore[arg-type]


def test_a_model_with_compiled_parts_is_written_as_if_it_had_none(
    tiny: AutoencoderKL, saved: Path, tmp_path: Path
) -> None:
    tiny.decoder = torch.compile(tiny.decoder)  # type: ignore[assignment]
    tiny.encoder.mid_block = torch.compile(tiny.encoder.mid_block)  # type: ignore[assignment]
    tiny.save_pretrained(tmp_path / "again")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_weights_written_from_a_compiled_model_by_other_means_are_read(tiny: AutoencoderKL, saved: Path) -> None:
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tiny.state_dict().items()}, saved / WEIGHTS_NAME)
    assert same_weights(AutoencoderKL.from_pretrained(saved), tiny)


def test_a_changed_model_is_refused_before_anything_is_written(tiny: AutoencoderKL, tmp_path: Path) -> None:
    tiny.post_quant_conv = torch.nn.Conv2d(5, 4, 1)
    tiny.register_buffer("extra", torch.zeros(2))
    with pytest.raises(ValueError) as error:
        tiny.save_pretrained(tmp_path / "model")
    message = str(error.value)
    assert message.startswith("the model: the weights do not fit the configuration")
    assert "unknown: extra (2,)" in message
    assert "misshapen: post_quant_conv.weight, expected (4, 4, 1, 1), got (4, 5, 1, 1)" in message
    assert not list(tmp_path.iterdir())


def test_saving_leaves_the_global_random_state_as_it_was(tiny: AutoencoderKL, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.save_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_of_the_other_kind_is_recognised_by_its_content(tiny: AutoencoderKL, saved: Path) -> None:
    torch.save(tiny.state_dict(), saved / WEIGHTS_NAME)
    assert same_weights(AutoencoderKL.from_pretrained(saved), tiny)


def test_weights_of_eight_bits_need_a_choice(tiny: AutoencoderKL, saved: Path) -> None:
    eight = {name: tensor.to(torch.float8_e5m2) for name, tensor in tiny.state_dict().items()}
    save_file(eight, saved / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"got torch\.float8_e5m2; pass dtype=…"):
        AutoencoderKL.from_pretrained(saved)
    assert AutoencoderKL.from_pretrained(saved, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_model_may_lie_in_a_subfolder(tiny: AutoencoderKL, saved: Path) -> None:
    assert same_weights(AutoencoderKL.from_pretrained(saved.parent, subfolder="model"), tiny)
    with pytest.raises(FileNotFoundError, match="'vae'"):
        AutoencoderKL.from_pretrained(saved.parent, subfolder="vae")


def test_attention_names_from_before_the_refactoring_are_read(tiny: AutoencoderKL, saved: Path) -> None:
    weights = load_file(saved / WEIGHTS_NAME)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new_name, old_name in old.items():
        for name in [name for name in weights if f".{new_name}." in name]:
            weights[name.replace(f".{new_name}.", f".{old_name}.")] = weights.pop(name)
    save_file(weights, saved / WEIGHTS_NAME)
    assert same_weights(AutoencoderKL.from_pretrained(saved), tiny)


def test_weights_in_a_pickle_are_read_but_nothing_in_it_is_executed(tiny: AutoencoderKL, saved: Path) -> None:
    (saved / WEIGHTS_NAME).unlink()
    torch.save(tiny.state_dict(), saved / PICKLE_NAME)
    assert same_weights(AutoencoderKL.from_pretrained(saved), tiny)

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (saved / "executed",))

    torch.save({"weights": Attack()}, saved / PICKLE_NAME)
    with pytest.raises(ValueError, match="expected tensors by name"):
        AutoencoderKL.from_pretrained(saved)
    assert not (saved / "executed").exists()


def test_weights_that_do_not_fit_are_listed_by_name_and_shape(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS_NAME)
    del weights["quant_conv.bias"]
    weights["decoder.extra.weight"] = torch.zeros(1)
    weights["decoder.conv_out.bias"] = torch.zeros(4)
    save_file(weights, saved / WEIGHTS_NAME)
    with pytest.raises(ValueError) as error:
        AutoencoderKL.from_pretrained(saved)
    message = str(error.value)
    assert "missing: quant_conv.bias (8,)" in message
    assert "unknown: decoder.extra.weight (1,)" in message
    assert "misshapen: decoder.conv_out.bias, expected (3,), got (4,)" in message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_named(saved: Path, value: float) -> None:
    weights = load_file(saved / WEIGHTS_NAME)
    for name in ("quant_conv.bias", "decoder.conv_in.weight"):
        weights[name].view(-1)[2] = value
    save_file(weights, saved / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"found NaN or infinity in decoder\.conv_in\.weight .*, quant_conv\.bias"):
        AutoencoderKL.from_pretrained(saved)


def test_two_tensors_for_one_name_are_refused(saved: Path) -> None:
    name = "encoder.mid_block.attentions.0.to_q.bias"
    weights = load_file(saved / WEIGHTS_NAME)
    save_file({**weights, name.replace("to_q", "query"): torch.zeros(64)}, saved / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=rf"{WEIGHTS_NAME}: two tensors have the name {name}"):
        AutoencoderKL.from_pretrained(saved)


def test_weights_that_are_no_floating_point_numbers_are_refused(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS_NAME)
    save_file({**weights, "quant_conv.bias": weights["quant_conv.bias"].int()}, saved / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"expected weights of a floating-point type.*torch\.int32"):
        AutoencoderKL.from_pretrained(saved, dtype=torch.float32)


def test_a_truncated_weight_file_is_reported(saved: Path) -> None:
    data = (saved / WEIGHTS_NAME).read_bytes()
    (saved / WEIGHTS_NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="a damaged or incomplete safetensors file"):
        AutoencoderKL.from_pretrained(saved)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_broken_pickle_is_reported(saved: Path, content: bytes) -> None:
    (saved / WEIGHTS_NAME).unlink()
    (saved / PICKLE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=PICKLE_NAME):
        AutoencoderKL.from_pretrained(saved)


def test_a_pickle_may_nest_the_weights(tiny: AutoencoderKL, saved: Path) -> None:
    (saved / WEIGHTS_NAME).unlink()
    torch.save({"state_dict": tiny.state_dict(), "step": 3}, saved / PICKLE_NAME)
    assert same_weights(AutoencoderKL.from_pretrained(saved), tiny)


def test_writing_over_the_file_does_not_change_the_loaded_model(tiny: AutoencoderKL, saved: Path) -> None:
    model = AutoencoderKL.from_pretrained(saved)
    with open(saved / WEIGHTS_NAME, "r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert same_weights(model, tiny)


def test_weights_of_mixed_types_need_a_choice(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS_NAME)
    save_file({**weights, "quant_conv.bias": weights["quant_conv.bias"].half()}, saved / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"torch\.float16, torch\.float32"):
        AutoencoderKL.from_pretrained(saved)
    assert AutoencoderKL.from_pretrained(saved, dtype=torch.float32).dtype == torch.float32


def test_a_config_that_is_not_json_is_reported(saved: Path) -> None:
    for text in ("{", "[]", "null", "[" * 100_000):
        (saved / CONFIG_NAME).write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            AutoencoderKL.from_pretrained(saved)


@pytest.mark.parametrize("fields", [{"down_block_types": 5}, {"block_out_channels": [2**60] * 3}, {"act_fn": {}}])
def test_a_config_with_invalid_values_is_named(saved: Path, fields: dict) -> None:
    values = json.loads((saved / CONFIG_NAME).read_text())
    (saved / CONFIG_NAME).write_text(json.dumps(values | fields))
    with pytest.raises(ValueError) as error:
        AutoencoderKL.from_pretrained(saved)
    assert str(saved) in str(error.value) and next(iter(fields)) in str(error.value)


def test_any_error_in_a_config_is_a_value_error_with_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(values: dict) -> None:
        raise TypeError("not iterable")

    monkeypatch.setattr(AutoencoderKLConfig, "from_dict", fail)
    with pytest.raises(ValueError, match=r"config\.json: not iterable"):
        AutoencoderKL.from_pretrained(saved)


def test_a_folder_without_a_model_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"config\.json.*notes\.txt"):
        AutoencoderKL.from_pretrained(tmp_path)


def test_a_file_is_no_folder_and_the_error_says_what_reads_it(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"got a file; AutoencoderKL\.from_single_file reads it"):
        AutoencoderKL.from_pretrained(saved / WEIGHTS_NAME)


def test_the_same_model_is_written_to_the_same_bytes(tiny: AutoencoderKL, saved: Path, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "again")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("name", ["no/such-model", "./not-here", "a/b/c/d"])
def test_neither_a_folder_nor_on_the_hub_is_a_clear_error(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder here") as error:
        AutoencoderKL.from_pretrained(name)
    assert name in str(error.value)


def test_a_failed_write_leaves_the_file_that_was_there(saved: Path) -> None:
    before = (saved / CONFIG_NAME).read_bytes()
    with pytest.raises(OSError, match="disk full"), atomic_write(saved / CONFIG_NAME) as path:
        path.write_text("half of")
        raise OSError("disk full")
    assert (saved / CONFIG_NAME).read_bytes() == before
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_others_may_read_the_files_as_far_as_they_may_read_any(saved: Path) -> None:
    (saved / "any").touch()
    assert {(saved / name).stat().st_mode for name in (CONFIG_NAME, WEIGHTS_NAME, "any")} == {
        (saved / "any").stat().st_mode
    }


def test_the_config_file_is_diffusers(saved: Path) -> None:
    values = json.loads((saved / CONFIG_NAME).read_text())
    assert values["_class_name"] == "AutoencoderKL"
    assert values["block_out_channels"] == [32, 64, 64]


def test_the_bundled_model_is_the_preset_of_its_name_with_a_scaling_factor() -> None:
    vae = AutoencoderKL.from_bundled()
    assert vae.dtype == torch.float32
    assert vae.config.scaling_factor is not None
    assert replace(vae.config, scaling_factor=None) == PRESETS["kl-f8-mini"]
    assert vae.num_parameters() == 2_059_287


def test_an_unknown_bundled_model_is_an_error_that_lists_the_known_ones() -> None:
    known = "kl-f8-mini, kl-f8-mini-16"
    with pytest.raises(ValueError, match=f"name: expected one of the bundled models, {known}; got 'kl-f8-maxi'"):
        AutoencoderKL.from_bundled("kl-f8-maxi")
