"""The bundled models, and the tool that makes them from a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset
from klvae_edu.evaluation.compare import evaluate
from klvae_edu.evaluation.images import evaluation_data
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import load_stages
from klvae_edu.training.trainer import train
from klvae_edu.weights.pretrained import BUNDLED, bundled_folder
from tools import release_model
from tools.photographs import manifest
from tools.release_model import CROPS, PCA, card, release

OF_THE_MACHINE = {"data", "out", "init", "resume", "device"}  # settings that the card does not state


@pytest.fixture(scope="module", params=BUNDLED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def vae(name: str) -> AutoencoderKL:
    return AutoencoderKL.from_bundled(name).eval()


@pytest.fixture(scope="module")
def values(name: str) -> dict[str, Any]:
    return json.loads((bundled_folder(name) / "evaluation.json").read_text(encoding="utf-8"))


def test_all_weights_in_the_package_are_small() -> None:
    assets = bundled_folder(BUNDLED[0]).parent
    assert sum(file.stat().st_size for file in assets.rglob("*") if file.is_file()) < 12_000_000


class TestTheBundledModels:
    def test_are_in_float16(self, name: str) -> None:
        with safe_open(bundled_folder(name) / "diffusion_pytorch_model.safetensors", "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118

    def test_are_read_by_diffusers(self, name: str, vae: AutoencoderKL) -> None:
        from diffusers import AutoencoderKL as Theirs

        theirs = Theirs.from_pretrained(bundled_folder(name), torch_dtype=torch.float32)
        (image,) = image_dataset("photos", 64, split="held-out", length=1)
        with torch.no_grad():
            torch.testing.assert_close(vae(image[None]).sample, theirs(image[None]).sample, rtol=0, atol=1e-4)
        assert theirs.config.scaling_factor == vae.config.scaling_factor

    def test_have_the_quality_that_their_cards_state(self, name: str, vae: AutoencoderKL, values: dict) -> None:
        """On the two photographs that everyone has. Half of the crops are measured, so the interval is widened."""
        found = evaluate({name: vae}, evaluation_data("photos", release_model.SIDE, count=release_model.OWN_CROPS // 2))
        for metric in ("PSNR", "SSIM", "gradient energy"):
            written, now = values["photos"]["models"][name][metric], found.estimate(name, metric)
            margin = 2 * (written["high"] - written["low"])
            assert abs(now.value - written["value"]) < margin, metric

    def test_are_better_than_patch_pca_on_photographs_held_out(self, name: str, values: dict) -> None:
        models = values["held out"]["models"]
        for metric in ("PSNR", "SSIM"):
            assert models[name][metric]["value"] > models[PCA][metric]["value"], metric
        for metric in ("EfficientNet-Lite1 distance", "Fréchet distance, EfficientNet-Lite1"):
            assert models[name][metric]["value"] < models[PCA][metric]["value"], metric

    def test_have_the_scaling_factor_of_their_latents(self, vae: AutoencoderKL, values: dict) -> None:
        measured = values["stages"][0]["latents"]["latent_scaling_factor"]
        assert vae.config.scaling_factor == round(measured, 4)
        images = torch.stack([*image_dataset("photos", release_model.SIDE, length=16)])
        with torch.no_grad():
            assert 0.7 < vae.encode_for_diffusion(images).std() < 1.4

    def test_were_trained_with_the_settings_of_their_recipes(self, name: str, values: dict) -> None:
        default = TrainingConfig().to_dict()
        for made, recipe in zip(values["stages"], load_stages(name), strict=True):
            wanted = {field: value for field, value in recipe.to_dict().items() if value != default[field]}
            assert made["config"] == {field: wanted[field] for field in wanted if field not in OF_THE_MACHINE}

    def test_have_cards_with_the_measured_figures(self, name: str, vae: AutoencoderKL, values: dict) -> None:
        text = (bundled_folder(name) / "README.md").read_text(encoding="utf-8")
        assert text == card(vae, values)
        assert values["photographs"] == sum(row.split == "train" for row in manifest())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run of two stages of two steps each, and the folder that the tool makes from it."""
    folder = tmp_path_factory.mktemp("release")
    for split, count in (("train", 4), ("held-out", 2)):
        (folder / "photographs" / split).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 255, (300, 280, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "photographs" / split / f"{number}.png")
    small: dict[str, Any] = {"steps": 2, "batch_size": 2, "held_out": 2, "perceptual_weight": 0.0, "device": "cpu"}
    small |= {"mixed_precision": "no", "data": str(folder / "photographs" / "train")}
    first, second, *_ = load_stages("kl-f8-mini")
    train(replace(first, **small, out=folder / "run" / "stage-1"))
    weights = str(folder / "run" / "stage-1" / "model")
    train(replace(second, **small, disc_start=1, disc_warmup=1, out=folder / "run" / "stage-2", init=weights))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_model, "PCA_CROPS", 16)
        patch.setattr(release_model, "OWN_CROPS", 4)
        release("kl-f8-mini", folder / "run", folder / "photographs", folder / "model")
    return folder / "run", folder / "model"


class TestTheTool:
    def test_writes_the_weights_of_the_last_stage(self, made: tuple[Path, Path]) -> None:
        run, model = made
        released, last = AutoencoderKL.from_pretrained(model), AutoencoderKL.from_pretrained(run / "stage-2" / "model")
        assert released.dtype == torch.float16 and released.config == last.config
        for key, weight in last.state_dict().items():
            torch.testing.assert_close(released.state_dict()[key], weight.half())

    def test_measures_each_stage_on_photographs_held_out(self, made: tuple[Path, Path]) -> None:
        _, model = made
        values = json.loads((model / "evaluation.json").read_text(encoding="utf-8"))
        for where in ("held out", "photos"):
            assert [*values[where]["models"]] == ["after stage 1", "kl-f8-mini", PCA, "bicubic"]
        data = values["held out"]["data"]
        assert (data["images"], data["photographs"]) == (2 * CROPS, 2)

    def test_describes_each_stage(self, made: tuple[Path, Path]) -> None:
        _, model = made
        first, second = json.loads((model / "evaluation.json").read_text(encoding="utf-8"))["stages"]
        assert first["config"]["initialisation"] == "averages" and second["config"]["trained_part"] == "decoder"
        assert [*first["curve"]] == ["2"] and first["hours"] > 0
        factor = AutoencoderKL.from_pretrained(model).config.scaling_factor
        assert factor == round(first["latents"]["latent_scaling_factor"], 4)

    def test_puts_every_figure_into_the_card(self, made: tuple[Path, Path]) -> None:
        _, model = made
        text = (model / "README.md").read_text(encoding="utf-8")
        values = json.loads((model / "evaluation.json").read_text(encoding="utf-8"))
        psnr = values["held out"]["models"]["kl-f8-mini"]["PSNR"]["value"]
        assert f"| kl-f8-mini | {psnr:.2f}" in text
        assert "| 2 | 2 | 2 of 128×128 | decoder |" in text
        assert not re.search(r"[{}]", text)

    def test_refuses_an_unfinished_stage(self, made: tuple[Path, Path], tmp_path: Path) -> None:
        run, _ = made
        config = yaml.safe_load((run / "stage-2" / "training.json").read_text(encoding="utf-8")) | {"steps": 3}
        (tmp_path / "stage-1").mkdir()
        (tmp_path / "stage-1" / "training.json").write_text(json.dumps(config), encoding="utf-8")
        (tmp_path / "stage-1" / "log.jsonl").write_text((run / "stage-2" / "log.jsonl").read_text(encoding="utf-8"))
        with pytest.raises(ValueError, match="expected 3 steps, got 2"):
            release("kl-f8-mini", tmp_path, tmp_path, tmp_path / "model")
