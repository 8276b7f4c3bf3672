"""The configuration of a run: what it accepts, and the command line it stands for."""

from __future__ import annotations

import json
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
        ("grad_clip", 0.0),
        ("kl_weight", -1e-6),
        ("kl_weight", float("nan")),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("preset", "large"),
        ("pixel", "l3"),
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
    with pytest.raises(ValueError, match=r"one of sd-v1, sdxl, .*, mini, tiny, got .large."):
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
        data="my photos",
        streaming=True,
        out=Path("runs/it's here"),
        preset="mini",
        init="a b/model",
        size=64,
        batch_size=4,
        steps=7,
        lr=3e-4,
        betas=(0.5, 0.9),
        warmup=0.25,
        grad_clip=0.5,
        pixel="l1" if TrainingConfig().pixel == "l2" else "l2",
        kl_weight=1e-5,
        mixed_precision="bf16" if TrainingConfig().mixed_precision == "no" else "no",
        device="cpu",
        workers=2,
        seed=3,
        held_out=5,
        sample_every=11,
        save_every=13,
    )
    untouched = [f.name for f in fields(config) if getattr(config, f.name) == getattr(TrainingConfig(), f.name)]
    assert untouched == []
    assert parse(config.command()) == config


def test_a_command_can_differ_from_its_run() -> None:
    config = TrainingConfig(size=64)
    assert parse(config.command(init="run/model", steps=5)) == replace(config, init="run/model", steps=5)


def test_every_option_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(TrainingConfig, args=["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in fields(TrainingConfig):
        assert "--" + field.name.replace("_", "-") in words
    assert words.count("(default: ") == len(fields(TrainingConfig))
    for help_text in ("steps between two saves of the weights", "optimiser steps", "AdamW's learning rate"):
        assert help_text in words


def test_the_configuration_can_be_written_as_json() -> None:
    values = json.loads(json.dumps(TrainingConfig(out=Path("a")).to_dict()))
    assert values.keys() == {field.name for field in fields(TrainingConfig)}
    again = TrainingConfig(**values | {"out": Path(values["out"]), "betas": tuple(values["betas"])})
    assert again == TrainingConfig(out=Path("a"))
