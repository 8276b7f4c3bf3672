"""The configuration of a run: what it accepts, and the command line it stands for."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from klvae_edu.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("batch_size", 0),
        ("steps", 0),
        ("held_out", 0),
        ("sample_every", 0),
        ("save_every", -1),
        ("workers", -1),
        ("seed", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("accumulate", 0),
        ("keep", 0),
        ("disc_layers", 0),
        ("disc_start", -1),
        ("disc_ramp", -1),
        ("kl_warmup", -1),
        ("padding_mode", "circular"),
        ("disc_max_weight", 0.0),
        ("disc_lr", 0.0),
        ("disc_weight", -0.5),
        ("weight_decay", math.inf),
        ("ema", 1.0),
        ("grad_clip", 0.0),
        ("grad_clip", math.nan),
        ("kl_weight", -1e-6),
        ("kl_weight", float("nan")),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("preset", "large"),
        ("pixel", "l3"),
        ("perceptual", "vgg"),
        ("perceptual", "efficientnet-lite1"),  # the judge in `klvae evaluate`: never a loss
        ("schedule", "step"),
        ("disc_loss", "wasserstein"),
        ("mixed_precision", "fp16"),
        ("device", "cuda:1"),
    ],
)
def test_a_field_out_of_its_range_is_an_error_that_names_it_and_its_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        TrainingConfig(**{field: value})
    assert str(error.value).startswith(f"{field}: expected ")
    assert str(error.value).endswith(f", got {value!r}")


def test_the_presets_to_choose_from_are_listed() -> None:
    with pytest.raises(ValueError, match=r"one of sd-v1, sdxl, .*, mini, kl-f8-mini, kl-f8-mini-16, tiny, got .large."):
        TrainingConfig(preset="large")


def parse(command: str) -> TrainingConfig:
    words = shlex.split(command)
    assert words[:2] == ["klvae", "train"]
    return tyro.cli(TrainingConfig, args=words[2:])


def test_the_command_of_the_defaults_is_bare() -> None:
    assert TrainingConfig().command() == "klvae train"
    assert parse("klvae train") == TrainingConfig()


def test_every_field_survives_the_way_through_the_command_line() -> None:
    config = TrainingConfig(
        data="my photos+dead-leaves",
        streaming=True,
        out=Path("runs/it's here"),
        resume="auto",
        preset="mini",
        init="a b/model",
        trained_part="decoder",
        size=64,
        batch_size=4,
        accumulate=2,
        steps=7,
        lr=3e-4,
        scale_lr=True,
        schedule="constant",
        warmup=0.25,
        betas=(0.5, 0.9),
        weight_decay=0.0,
        grad_clip=math.inf,
        ema=0.99,
        reduction="sum",
        pixel="l1",
        kl_weight=1e-5,
        kl_warmup=4,
        perceptual_weight=0.1,
        perceptual="efficientnet-lite0",
        lpips="untrained",
        disc_weight=0.5,
        disc_start=3,
        disc_warmup=2,
        disc_ramp=5,
        disc_max_weight=0.02,
        disc_loss="vanilla",
        disc_lr=4.5e-6,
        disc_channels=32,
        disc_layers=2,
        adaptive=False,
        alternate=True,
        mixed_precision="bf16",
        device="cpu",
        workers=2,
        seed=3,
        held_out=5,
        sample_every=11,
        save_every=13,
        keep=1,
        tensorboard=True,
        recolour=0.5,
        scaling_factor=0.13,
    )
    begun = TrainingConfig(initialisation="averages", padding_mode="reflect")  # not together with init
    assert parse(begun.command()) == begun
    untouched = [f.name for f in fields(config) if getattr(config, f.name) == getattr(TrainingConfig(), f.name)]
    assert untouched == ["initialisation", "padding_mode"]
    assert parse(config.command()) == config
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_scaling_factor_is_that_of_init() -> None:
    for options in ({"scaling_factor": 0.13}, {"scaling_factor": -1.0, "init": "run/model"}):
        with pytest.raises(ValueError, match="scaling_factor: expected a positive number together with init"):
            TrainingConfig(**options)


@pytest.mark.parametrize("option", [{"initialisation": "averages"}, {"padding_mode": "reflect"}])
def test_what_init_brings_is_not_chosen_a_second_time(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="since init brings"):
        TrainingConfig(init="run/model", **option)


def test_a_command_can_differ_from_its_run() -> None:
    config = TrainingConfig(size=64)
    assert parse(config.command(init="run/model", steps=5)) == replace(config, init="run/model", steps=5)


def test_every_option_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(TrainingConfig, args=["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in fields(TrainingConfig):
        option = "--" + field.name.replace("_", "-")
        found = re.search(rf" {option}(?:, --no-\S+)? (?:(?:[A-Z]+|{{\S+) )*(.*?)\(default: ", words)
        assert found and found[1], option
    assert words.count("(default: ") == len(fields(TrainingConfig))
    for help_text in ("steps between two checkpoints", "optimiser steps", "peak learning rate of AdamW"):
        assert help_text in words


def test_the_configuration_can_be_written_as_json() -> None:
    values = json.loads(json.dumps(TrainingConfig(out=Path("a")).to_dict()))
    assert values.keys() == {field.name for field in fields(TrainingConfig)}
    assert TrainingConfig.from_dict(values) == TrainingConfig(out=Path("a"))


def test_the_field_start_of_version_0_1_0_is_read_as_initialisation() -> None:
    values = {name: value for name, value in TrainingConfig().to_dict().items() if name != "initialisation"}
    assert TrainingConfig.from_dict(values | {"start": "averages"}) == TrainingConfig(initialisation="averages")
    assert "start" not in TrainingConfig().to_dict()


def test_fields_that_are_not_given_have_their_defaults() -> None:
    assert TrainingConfig.from_dict({}) == TrainingConfig()
    assert TrainingConfig.from_dict({"steps": 5}) == TrainingConfig(steps=5)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("lr", "1e-6", 1e-6),  # which YAML 1.1 takes for text
        ("kl_weight", "+1.E-6", 1e-6),
        ("lr", 1, 1.0),
        ("grad_clip", "Infinity", math.inf),  # as JSON has it
        ("betas", [0, "9e-1"], (0.0, 0.9)),
        ("out", "a/b", Path("a/b")),
        ("init", None, None),
        ("disc_lr", "1e-4", 1e-4),
        ("disc_lr", None, None),
        ("device", None, None),
        ("mixed_precision", False, "no"),  # YAML 1.1 takes a bare no for false
    ],
)
def test_a_value_is_read_as_it_is_meant(name: str, value: Any, meant: Any) -> None:
    found = getattr(TrainingConfig.from_dict({name: value}), name)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", "ten", "a whole number"),
        ("steps", "1e3", "a whole number"),
        ("steps", 1e3, "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", None, "a whole number"),
        ("lr", "fast", "a number"),
        ("lr", "0.1", "a number"),  # quoted: nobody writes a number so
        ("lr", True, "a number"),
        ("lr", [1e-3], "a number"),
        ("disc_lr", "none", "a number"),
        ("betas", 0.9, "a list"),
        ("betas", "0.5 0.9", "a list"),
        ("scale_lr", 1, "true or false"),
        ("scale_lr", "true", "true or false"),
        ("data", 7, "text"),
        ("data", ["photos", "dead-leaves"], "text"),
        ("init", True, "text"),
        ("out", 7, "text"),
        ("pixel", 1, "l1 or l2"),
        ("pixel", ["l1"], "l1 or l2"),
        ("pixel", False, "l1 or l2"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_field_expectation_and_value(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(ValueError) as error:
        TrainingConfig.from_dict({name: value})
    assert str(error.value) == f"{name}: expected {expected}, got {value!r}"


def test_a_list_of_the_wrong_length_or_with_something_else_in_it_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"betas: expected two numbers in \[0, 1\), got \(0.9,\)"):
        TrainingConfig.from_dict({"betas": [0.9]})
    with pytest.raises(ValueError, match=r"betas: expected a number, got 'high'"):
        TrainingConfig.from_dict({"betas": [0.9, "high"]})


@pytest.mark.parametrize(
    ("name", "hint"),
    [("batch-size", "did you mean 'batch_size'"), ("stpes", "did you mean 'steps'"), ("xyz", "the fields are data, ")],
)
def test_an_unknown_field_is_an_error_that_offers_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"there is no field '{name}'; {hint}"):
        TrainingConfig.from_dict({name: 1})


def test_a_field_that_is_no_text_at_all_is_unknown_too() -> None:
    with pytest.raises(ValueError, match="there is no field True"):  # on: 5, in YAML 1.1
        TrainingConfig.from_dict({True: 5})  # type: ignore[dict-item]
