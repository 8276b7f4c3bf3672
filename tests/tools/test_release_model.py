"""The bundled model, and the tool that makes it from a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset
from klvae_edu.evaluation.compare import evaluate
from klvae_edu.evaluation.images import evaluation_data
from klvae_edu.training.recipes import about, load_recipe
from klvae_edu.training.trainer import train
from tools import release_model
from tools.release_model import AFTER, BEFORE, MODEL, OUTSIDE_CROPS, PCA, averaged_at, card, release

CONFIG = load_recipe("mini-release")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_bundled("kl-f8-mini").eval()


@pytest.fixture(scope="module")
def values() -> dict:
    return json.loads((MODEL / "evaluation.json").read_text(encoding="utf-8"))


class TestTheBundledModel:
    def test_is_small_and_in_float16(self) -> None:
        assert sum(file.stat().st_size for file in MODEL.iterdir()) < 6_000_000
        with safe_open(MODEL / "diffusion_pytorch_model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118

    def test_is_read_by_diffusers(self, vae: AutoencoderKL) -> None:
        from diffusers import AutoencoderKL as Theirs

        theirs = Theirs.from_pretrained(MODEL, torch_dtype=torch.float32)
        (image,) = image_dataset("photos", 64, split="held-out", length=1)
        with torch.no_grad():
            torch.testing.assert_close(vae(image[None]).sample, theirs(image[None]).sample, rtol=0, atol=1e-4)
        assert theirs.config.scaling_factor == vae.config.scaling_factor

    def test_has_the_quality_that_its_card_states(self, vae: AutoencoderKL, values: dict) -> None:
        """Fewer crops are measured, so the interval of the mean over all crops is widened."""
        found = evaluate({AFTER: vae}, evaluation_data("photos", release_model.SIDE, count=24))
        for metric in ("PSNR", "gradient energy"):
            written, now = values["held out"]["models"][AFTER][metric], found.estimate(AFTER, metric)
            margin = 2 * (written["high"] - written["low"])
            assert abs(now.value - written["value"]) < margin, metric

    def test_has_the_scaling_factor_of_its_latents(self, vae: AutoencoderKL, values: dict) -> None:
        assert vae.config.scaling_factor == pytest.approx(1 / values["latents"]["std"], rel=1e-3)
        images = torch.stack([*image_dataset(CONFIG.data, release_model.SIDE, length=16)])
        with torch.no_grad():
            assert 0.7 < (vae.encode_for_diffusion(images)).std() < 1.4

    def test_was_trained_with_the_settings_of_the_recipe(self, values: dict) -> None:
        assert {name: values["trained"][name] for name in release_model.CARD_SETTINGS} == {
            name: CONFIG.to_dict()[name] for name in release_model.CARD_SETTINGS
        }
        assert CONFIG.disc_start < values["trained"]["step"] <= CONFIG.steps
        command = "`tools/release_model.py --step {step} --way {way}`".format(**values["trained"])
        assert command in about("mini-release")

    def test_has_a_card_with_the_measured_figures(self, vae: AutoencoderKL, values: dict) -> None:
        text = (MODEL / "README.md").read_text(encoding="utf-8")
        assert text == card(vae, values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run of two steps, and the folder that the tool makes from it."""
    folder = tmp_path_factory.mktemp("release")
    small = {"steps": 2, "disc_start": 1, "disc_warmup": 0, "batch_size": 2, "held_out": 2, "workers": 0}
    train(replace(CONFIG, **small, save_every=1, out=folder / "run", device="cpu"))
    (folder / "outside").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 280, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "outside" / "noise.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_model, "LATENT_CROPS", 2)
        patch.setattr(release_model, "PCA_CROPS", 16)
        release(folder / "run", folder / "model", folder / "outside", held_out=20, origin="one field of noise")
    return folder / "run", folder / "model"


class TestTheTool:
    def test_writes_the_averaged_weights_of_the_last_step(self, made: tuple[Path, Path]) -> None:
        run, model = made
        released = AutoencoderKL.from_pretrained(model)
        last = averaged_at(run, 2, released)
        assert released.dtype == torch.float16
        for name, weight in last.state_dict().items():
            torch.testing.assert_close(released.state_dict()[name], weight.half())

    def test_goes_part_of_the_way_from_before_the_discriminator(
        self, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(release_model, "LATENT_CROPS", 2)
        monkeypatch.setattr(release_model, "PCA_CROPS", 16)
        run, _ = made
        release(run, tmp_path, held_out=4, way=1.5)
        released = AutoencoderKL.from_pretrained(tmp_path, dtype=torch.float32)
        first, last = (averaged_at(run, step, released).get_parameters() for step in (1, 2))
        torch.testing.assert_close(released.get_parameters(), 1.5 * last - 0.5 * first, rtol=1e-3, atol=1e-4)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert "2 steps (1), at 1.5:\n  network interpolation" in text and "--way 1.5" in text

    def test_measures_the_stage_before_the_discriminator_too(self, made: tuple[Path, Path]) -> None:
        run, model = made
        values = json.loads((model / "evaluation.json").read_text(encoding="utf-8"))
        assert [*values["held out"]["models"]] == [BEFORE, AFTER, PCA, "bicubic"]
        like = AutoencoderKL.from_pretrained(model)
        first, last = (averaged_at(run, step, like).get_parameters() for step in (1, 2))
        assert not torch.equal(first, last)

    def test_measures_on_photographs_from_outside(self, made: tuple[Path, Path]) -> None:
        _, model = made
        values = json.loads((model / "evaluation.json").read_text(encoding="utf-8"))
        data = values["from outside"]["data"]
        assert (data["images"], data["photographs"]) == (OUTSIDE_CROPS, 1)
        assert "scaled to 256x256 pixels; one field of noise)" in (model / "README.md").read_text(encoding="utf-8")

    def test_puts_every_figure_into_the_card(self, made: tuple[Path, Path]) -> None:
        _, model = made
        text = (model / "README.md").read_text(encoding="utf-8")
        values = json.loads((model / "evaluation.json").read_text(encoding="utf-8"))
        psnr = values["held out"]["models"][AFTER]["PSNR"]["value"]
        assert f"| {AFTER} | {psnr:.2f}" in text
        assert "2 steps with 2 crops of 64 × 64 pixels each" in text
        assert not re.search(r"[{}]", text)
