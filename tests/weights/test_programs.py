"""Layouts for other programs, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from klvae_edu.config import PRESETS
from klvae_edu.weights.programs import PROGRAMS, family_of, layout_for, read_by_diffusers


def test_the_family_is_told_by_network_and_scale() -> None:
    for name in ("sd-v1", "sdxl", "sd3", "flux", "flux2", "flux2-small-decoder"):
        assert family_of(PRESETS[name]) == name
        assert family_of(replace(PRESETS[name], sample_size=64)) == name
        assert family_of(replace(PRESETS[name], layers_per_block=1)) is None
    assert family_of(replace(PRESETS["sd-v1"], scaling_factor=None)) is None
    assert family_of(PRESETS["kl-f8-mini"]) is None


def test_every_program_gets_a_layout_or_a_reason() -> None:
    for program in PROGRAMS:
        for name, config in PRESETS.items():
            try:
                layout = layout_for(program, config, f"{name}.safetensors")
            except ValueError as error:
                assert "reads models with the network of" in str(error)
            else:
                wants_folder = program in ("onetrainer", "diffusers") or (
                    program == "kohya" and family_of(config) is None
                )
                assert layout.folder == wants_folder


def test_invokeai_tells_the_family_by_the_files_name() -> None:
    with pytest.raises(ValueError, match='expected one with "sdxl" in it, got vae'):
        layout_for("invokeai", PRESETS["sdxl"], "vae.safetensors")
    with pytest.raises(ValueError, match='expected one without "sdxl" in it'):
        layout_for("invokeai", PRESETS["sd-v1"], "my-SDXL.safetensors")
    with pytest.raises(ValueError, match=r"InvokeAI reads models .* this is sd3's"):
        layout_for("invokeai", PRESETS["sd3"], "vae.safetensors")


def test_what_diffusers_reads_is_said(tmp_path: Path) -> None:
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    assert "from_single_file" in read_by_diffusers(PRESETS["sd-v1"], file, "diffusers' names", "")
    assert "from_single_file" in read_by_diffusers(PRESETS["sd-v1"], file, "CompVis' names", "vae.")
    assert "does not read it" in read_by_diffusers(PRESETS["sd-v1"], file, "CompVis' names", "model.")
    assert "AutoencoderKLFlux2 has no from_single_file that works" in read_by_diffusers(
        PRESETS["flux2"], file, "CompVis' names", ""
    )
    (tmp_path / "config.json").write_text("{}")
    assert "from_pretrained" in read_by_diffusers(PRESETS["sd-v1"], file, "diffusers' names", "")
