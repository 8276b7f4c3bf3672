"""The loop: what a run leaves behind, that it can be repeated, and what its summary says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.perceptual import LPIPS, cached_vgg16
from klvae_edu.training.checkpoint import read_description, sealed
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.latent_report import CROPS, latent_report
from klvae_edu.training.loader import images_of, signals_ignored_by_workers, training_loader
from klvae_edu.training.result import TrainingResult
from klvae_edu.training.setup import set_up, start_accelerator
from klvae_edu.training.trainer import train
from klvae_edu.training.validation import Validation
from tests.training.whole_step import whole_step

OF_LATENTS = {"latent_mean", "latent_std", "latent_signal", "latent_scaling_factor"}


def tiny_run(out: Path, **changes: Any) -> TrainingConfig:
    """Five steps, a second or two."""
    config = TrainingConfig(
        out=out, size=16, batch_size=2, steps=5, held_out=3, sample_every=2, save_every=2, device="cpu"
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train(tiny_run(tmp_path_factory.mktemp("runs") / "first"))


def same_weights(first: AutoencoderKL, second: AutoencoderKL) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_model_configuration_log_and_pictures(result: TrainingResult) -> None:
    names = {path.relative_to(result.config.out).as_posix() for path in result.config.out.rglob("*")}
    assert names - {".klvae.lock"} == {  # some versions of filelock leave the file, others remove it
        "model",
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "training.json",
        "log.jsonl",
        "checkpoints",
        *(f"checkpoints/step_000000{step}" for step in (4, 5)),
        *(
            f"checkpoints/step_000000{step}/{name}"
            for step in (4, 5)
            for name in ("weights.safetensors", "optimizers.pt", "random_0.pt", "state.json")
        ),
        "held_out_000002.png",
        "held_out_000004.png",
        "held_out_000005.png",
    }
    with Image.open(result.config.out / "held_out_000005.png") as image:
        image.load()


def test_the_saved_model_is_the_trained_one(result: TrainingResult) -> None:
    assert same_weights(AutoencoderKL.from_pretrained(result.config.out / "model"), result.vae)
    assert not same_weights(AutoencoderKL.from_preset("tiny", seed=0), result.vae)


def test_the_log_has_a_line_a_step_and_held_out_psnr_where_it_was_measured(result: TrainingResult) -> None:
    records = [json.loads(line) for line in (result.config.out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    always = {"step", "loss", "nll", "pixel", "kl", "grad_norm", "lr", "psnr", "images_per_second"}
    for record in records:
        measured = {"held_out_psnr"} if record["step"] in (2, 4, 5) else set()
        measured |= OF_LATENTS if record["step"] == 5 else set()
        assert record.keys() == always | measured
    assert records[-1]["held_out_psnr"] == result.held_out["model"]
    assert records[0]["loss"] == pytest.approx(records[0]["pixel"] + 1e-6 * records[0]["kl"])


def test_the_learning_rate_follows_its_schedule(result: TrainingResult) -> None:
    records = [json.loads(line) for line in (result.config.out / "log.jsonl").read_text().splitlines()]
    expected = [result.config.lr * result.config.lr_factor(step) for step in range(1, 6)]
    assert [record["lr"] for record in records] == pytest.approx(expected)


def test_the_finished_model_has_the_scaling_factor_of_its_latents(result: TrainingResult) -> None:
    config = json.loads((result.config.out / "model" / "config.json").read_text())
    record = json.loads((result.config.out / "log.jsonl").read_text().splitlines()[-1])
    assert result.latents is not None
    expected = latent_report(result.vae, DataLoader(images_of(result.config, CROPS), 7))
    assert record["latent_scaling_factor"] == pytest.approx(1 / expected.samples.overall_std, rel=1e-6)
    assert record["latent_std"] == pytest.approx(expected.samples.std.tolist(), rel=1e-6)
    assert config["scaling_factor"] == round(record["latent_scaling_factor"], 4)
    assert f"the scaling factor {config['scaling_factor']:.4f}." in result.summary()


def test_a_frozen_encoder_keeps_its_scaling_factor(result: TrainingResult, tmp_path: Path) -> None:
    vae = result.vae.clone()
    vae.config = replace(vae.config, scaling_factor=0.5)
    vae.save_pretrained(tmp_path / "model")
    tuned = train(tiny_run(tmp_path / "run", init=str(tmp_path / "model"), trained_part="decoder", steps=1))
    assert tuned.vae.config.scaling_factor == 0.5
    assert tuned.latents is not None and round(tuned.latents.samples.scaling_factor, 4) != 0.5


def roles(log: Path) -> str:
    """The networks that took a step: g, d, or b for both; "-" where the autoencoder did not see the discriminator."""
    found = ""
    for record in map(json.loads, log.read_text().splitlines()):
        generator, discriminator = "loss" in record, "disc_loss" in record
        found += "b" if generator and discriminator else "d" if discriminator else "g"
        found += "" if not generator or "adversarial" in record else "-"
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"disc_start": 0}, "bbbbbb"),
        ({"disc_start": 3}, "g-g-g-bbb"),
        ({"disc_start": 4, "disc_warmup": 2}, "g-g-b-b-bb"),
        ({"disc_start": 4, "disc_warmup": 9}, "b-b-b-b-bb"),
        ({"disc_start": 2, "alternate": True}, "g-g-dgdg"),
        ({"disc_start": 0, "alternate": True}, "dgdgdg"),
        ({"disc_weight": 0.0}, "g-g-g-g-g-g-"),
    ],
)
def test_who_is_trained_when(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    small = {"disc_weight": 0.5, "disc_channels": 4, "disc_layers": 1, "steps": 6, "save_every": 99, "sample_every": 99}
    train(tiny_run(tmp_path / "run", **small | changes))
    assert roles(tmp_path / "run" / "log.jsonl") == expected


def test_on_the_discriminators_turn_the_autoencoder_stays_as_it_is() -> None:
    config = TrainingConfig(
        size=16, disc_weight=0.5, disc_channels=4, disc_layers=1, alternate=True, ema=0.9, device="cpu"
    )
    training = set_up(config, start_accelerator(config))
    before = {name: tensor.clone() for name, tensor in training.vae.state_dict().items()}
    scalars = whole_step(training, torch.zeros(2, 3, 16, 16))
    assert scalars.keys() == {"disc_loss", "logits_real", "logits_fake", "disc_grad_norm", "disc_lr"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.vae.state_dict().items())
    assert all(parameter.grad is None for parameter in training.vae.parameters())
    assert training.ema is not None and training.ema.n_averaged == 0


def test_the_log_has_every_term(tmp_path: Path) -> None:
    train(
        tiny_run(
            tmp_path / "run", steps=1, disc_weight=0.5, disc_layers=1, perceptual_weight=1.0, lpips="untrained", ema=0.9
        )
    )
    (record,) = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert record.keys() == {
        *("step", "loss", "nll", "pixel", "perceptual", "kl", "adversarial", "adversarial_weight", "clamped"),
        *("disc_loss", "logits_real", "logits_fake", "grad_norm", "disc_grad_norm", "lr", "disc_lr", "psnr"),
        *("images_per_second", "held_out_psnr", *OF_LATENTS),
    }
    assert record["nll"] == pytest.approx(record["pixel"] + record["perceptual"], rel=1e-5)
    total = record["nll"] + 1e-6 * record["kl"] + record["adversarial_weight"] * record["adversarial"]
    assert record["loss"] == pytest.approx(total, rel=1e-5)


def test_an_untrained_lpips_is_told_in_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_run(tmp_path / "run", steps=1, perceptual_weight=1.0, lpips="untrained"))
    assert "The perceptual loss was LPIPS with untrained VGG16." in capsys.readouterr().out


def test_tensorboard_gets_every_term_when_asked(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_run(tmp_path / "run", tensorboard=True))
    (folder,) = {path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "kl", "psnr"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in records]


def test_without_tensorboard_asking_for_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorboard: it is not installed: pip install 'klvae-edu\[tensorboard\]'"):
        train(tiny_run(tmp_path / "run", tensorboard=True))
    assert not (tmp_path / "run").exists()


def test_a_run_in_parts_equals_a_run_in_one(tmp_path: Path) -> None:
    """Stopped by fewer steps, under a learning rate that does not know the end, and resumed with more."""
    level = {"schedule": "constant", "warmup": 0.0, "save_every": 99, "sample_every": 99}
    whole = train(tiny_run(tmp_path / "whole", **level))
    train(tiny_run(tmp_path / "parts", **level, steps=2))
    resumed = train(tiny_run(tmp_path / "parts", **level, resume="auto"))
    assert same_weights(whole.vae, resumed.vae)
    assert resumed.held_out == whole.held_out


def test_a_run_that_is_at_its_end_is_resumed_without_a_step(result: TrainingResult, tmp_path: Path) -> None:
    train(tiny_run(tmp_path / "run"))
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    again = train(tiny_run(tmp_path / "run", resume="auto"))
    assert (again.step, again.held_out) == (5, result.held_out)
    assert not again.interrupted
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_fewer_steps_than_were_made_are_an_error_that_changes_nothing(tmp_path: Path) -> None:
    train(tiny_run(tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"steps: .*step_0000005 is of step 5: expected more steps, got 3"):
        train(tiny_run(tmp_path / "run", steps=3, resume="auto"))
    earlier = str(tmp_path / "run" / "checkpoints" / "step_0000004")
    with pytest.raises(ValueError, match="is of step 4: expected more steps, got 4"):
        train(tiny_run(tmp_path / "run", steps=4, resume=earlier))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_what_changed_since_a_checkpoint_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_run(tmp_path / "run"))
    train(tiny_run(tmp_path / "run", steps=6, lr=1e-5, resume="auto"))
    assert "step_0000005; steps 5 -> 6; lr 0.002 -> 1e-05." in capsys.readouterr().out


def test_other_weights_of_the_perceptual_loss_than_at_the_checkpoint_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """VGG16 is not there in the first run, and its place is taken by untrained features; in the second run it is."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="LPIPS uses untrained features"):
        train(tiny_run(tmp_path / "run", steps=1, perceptual_weight=0.1))
    cached_vgg16().parent.mkdir(parents=True)
    trunk = LPIPS("untrained").trunk.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in trunk.items()}, cached_vgg16())
    train(tiny_run(tmp_path / "run", steps=2, perceptual_weight=0.1, resume="auto"))
    changes = r"step_0000001; steps 1 -> 2; weights of the perceptual loss: untrained VGG16 -> LPIPS [0-9a-f]{12}\."
    assert re.search(changes, capsys.readouterr().out)


def test_a_checkpoint_of_version_0_1_0_whose_field_is_called_start_is_resumed_without_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_run(tmp_path / "run", initialisation="averages"))
    checkpoint = tmp_path / "run" / "checkpoints" / "step_0000005"
    description = read_description(checkpoint)
    description["config"]["start"] = description["config"].pop("initialisation")
    del description["config"]["disc_ramp"], description["perceptual_weights"]  # fields of later versions
    (checkpoint / "state.json").write_text(sealed(description))
    train(tiny_run(tmp_path / "run", initialisation="averages", steps=6, resume="auto"))
    assert "step_0000005; steps 5 -> 6." in capsys.readouterr().out


def test_a_discriminator_that_never_begins_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_run(tmp_path / "run", steps=1, disc_weight=0.5, disc_layers=1, disc_start=1))
    assert (
        "disc_start=1 is not before the last step, 1: the autoencoder is never trained on the discriminator"
        in capsys.readouterr().out
    )


def test_averaged_weights_are_what_comes_out(result: TrainingResult, tmp_path: Path) -> None:
    averaged = train(tiny_run(tmp_path / "run", ema=0.9))
    assert same_weights(AutoencoderKL.from_pretrained(tmp_path / "run" / "model"), averaged.vae)
    assert not same_weights(averaged.vae, result.vae)
    assert Validation(averaged.config, averaged.vae).measure(averaged.vae) == averaged.held_out


class IgnoresCtrlC(Dataset[torch.Tensor]):
    """One value: whether the process that reads it ignores SIGINT."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


def test_workers_outlive_ctrl_c_so_that_the_step_under_way_can_end(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit another
    try:
        for workers in (0, 1):
            with signals_ignored_by_workers() as worker_init:
                config = tiny_run(tmp_path, workers=workers)
                (batch,) = training_loader(config, IgnoresCtrlC(), worker_init=worker_init)
            assert batch.tolist() == [workers == 1] * 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_ends_takes_its_workers_with_it() -> None:
    program = """
import torch
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.latent_report import CROPS, latent_report
from klvae_edu.training.loader import images_of, signals_ignored_by_workers, training_loader

data = torch.utils.data.TensorDataset(torch.zeros(9))
context = signals_ignored_by_workers()
worker_init = context.__enter__()  # and it is never left
images = iter(training_loader(TrainingConfig(batch_size=2, workers=1), data, worker_init=worker_init))
next(images)  # and it is never closed
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_same_configuration_gives_the_same_weights(result: TrainingResult, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever happened before does not matter
    again = train(replace(result.config, out=tmp_path / "again"))
    assert same_weights(again.vae, result.vae)
    assert again.held_out == result.held_out


def test_another_seed_gives_other_weights(result: TrainingResult, tmp_path: Path) -> None:
    assert not same_weights(train(replace(result.config, out=tmp_path / "other", seed=1)).vae, result.vae)


def test_workers_change_nothing(result: TrainingResult, tmp_path: Path) -> None:
    assert same_weights(train(replace(result.config, out=tmp_path / "workers", workers=1)).vae, result.vae)


def test_saving_and_measuring_change_nothing(result: TrainingResult, tmp_path: Path) -> None:
    rarely = replace(result.config, out=tmp_path / "rarely", sample_every=1000, save_every=1000)
    assert same_weights(train(rarely).vae, result.vae)


def test_runs_in_one_process_may_differ_in_precision(result: TrainingResult, tmp_path: Path) -> None:
    rounded = train(replace(result.config, out=tmp_path / "bf16", mixed_precision="bf16"))
    assert rounded.vae.dtype == torch.float32
    assert not same_weights(rounded.vae, result.vae)
    again = train(replace(result.config, out=tmp_path / "fp32"))
    assert same_weights(again.vae, result.vae)


def test_a_run_goes_on_from_saved_weights(result: TrainingResult, tmp_path: Path) -> None:
    """With a learning rate that is next to nothing, they come out as they went in."""
    folder = result.config.out / "model"
    still = train(replace(result.config, out=tmp_path / "still", init=str(folder), steps=1, lr=1e-12))
    for name, tensor in still.vae.state_dict().items():
        torch.testing.assert_close(tensor, result.vae.state_dict()[name], atol=1e-6, rtol=0)


def test_weights_stored_in_16_bits_are_trained_in_32(tmp_path: Path) -> None:
    AutoencoderKL.from_preset("tiny", seed=0).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert train(tiny_run(tmp_path / "run", init=str(tmp_path / "half"), steps=1)).vae.dtype == torch.float32


def test_a_folder_in_use_stops_a_run_before_its_first_step(result: TrainingResult) -> None:
    log = (result.config.out / "log.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="--out"):
        train(result.config)
    assert (result.config.out / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 8, "perceptual_weight": 1.0}, "size: expected at least 16 pixels for a perceptual loss, got 8"),
        ({"size": 30}, "size: expected a multiple of 4, the model's downsample factor, got 30"),
        ({"data": "./no/such/folder"}, "no such folder"),
        ({"streaming": True}, "streaming is for Hugging Face data sets"),
    ],
)
def test_what_does_not_fit_together_leaves_no_folder_behind(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny_run(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_missing_weights_leave_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected config\.json and .*, found nothing"):
        train(tiny_run(tmp_path / "run", init=str(tmp_path / "empty")))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_images_with_a_damaged_one_is_trained_on_and_the_damage_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        Image.new("RGB", (24, 20), (40 * number, 100, 200)).save(images / f"{number}.png")
    for name in ("x1.png", "x2.png"):  # two, so that one is in the training split, wherever the other is
        (images / name).write_bytes(b"no image")
    result = train(tiny_run(tmp_path / "run", data=str(images)))
    assert result.step == 5
    printed = capsys.readouterr().out
    names = [name for name in ("x1.png", "x2.png") if name in printed]
    assert names
    assert all(printed.count(name) == 1 for name in names)


def test_procedural_images_need_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klvae_edu.training.validation.PCA_CROPS", 8)
    assert train(tiny_run(tmp_path / "run", data="dead-leaves", steps=2)).step == 2


def result_with(held_out: dict[str, float], step: int = 5) -> TrainingResult:
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    return TrainingResult(vae, tiny_run(Path("run")), step, held_out, images_per_second=12.3, unreadable=[])


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (20.0, "Higher than the model: patch-PCA and bicubic."),
        (25.9, "Higher than the model: patch-PCA."),
        (27.0, "The model is the highest."),
    ],
)
def test_the_summary_says_which_baselines_are_higher(model: float, sentence: str) -> None:
    lines = result_with({"model": model, "patch-PCA": 26.0, "bicubic": 25.5}).summary().splitlines()
    assert sentence in lines
    assert f"  {model:6.2f} dB  model" in lines
    assert "   26.00 dB  patch-PCA  4 numbers per 4x4 patch, as in the latent" in lines
    assert "   25.50 dB  bicubic    from the image reduced by 4: 3 numbers per 4x4 patch" in lines


def test_the_summary_of_an_interrupted_run_says_how_to_go_on() -> None:
    figures = {"model": 20.0, "patch-PCA": 26.0, "bicubic": 25.5}
    interrupted, whole = result_with(figures, step=3), result_with(figures)
    assert interrupted.interrupted and not whole.interrupted
    assert "Interrupted" not in whole.summary()
    last = interrupted.summary().splitlines()[-1]
    assert last.startswith("Interrupted. To resume: klvae train ")
    assert "--resume auto" in last and "--steps 5" in last


def test_of_several_processes_as_many_go_on() -> None:
    result = replace(result_with({"model": 20.0, "patch-PCA": 26.0, "bicubic": 25.5}, step=3), processes=2)
    assert "To resume: torchrun --nproc-per-node 2 -m klvae_edu train --resume auto " in result.summary()


def test_every_held_out_figure_is_measured_on_the_final_weights(result: TrainingResult) -> None:
    assert Validation(result.config, result.vae).measure(result.vae) == result.held_out


@pytest.mark.parametrize("options", [{}, {"disc_weight": 0.5, "disc_start": 1, "size": 64}])
def test_a_model_of_grey_images_is_trained_on_photographs(tmp_path: Path, options: dict[str, Any]) -> None:
    vae = AutoencoderKL(AutoencoderKLConfig.from_preset("tiny", in_channels=1, out_channels=1))
    vae.to_single_file(tmp_path / "grey.safetensors")
    result = train(tiny_run(tmp_path / "run", data="photos", init=str(tmp_path / "grey.safetensors"), **options))
    assert result.vae.config.in_channels == 1
    assert list((tmp_path / "run").glob("held_out_*.png"))
    assert AutoencoderKL.from_pretrained(tmp_path / "run" / "model").config.scaling_factor is not None


def test_a_model_of_five_bands_is_trained_on_pictures_of_five_bands(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = rng.integers(0, 256, (40, 40, 5), dtype=np.uint8)
        tifffile.imwrite(tmp_path / "images" / f"{number}.tif", pixels, photometric="minisblack", planarconfig="contig")
    AutoencoderKL(AutoencoderKLConfig.from_preset("tiny", in_channels=5, out_channels=5)).save_pretrained(
        tmp_path / "five"
    )
    run = tiny_run(tmp_path / "run", data=str(tmp_path / "images"), init=str(tmp_path / "five"))
    result = train(run)
    assert result.vae(torch.zeros(1, 5, 32, 32)).sample.shape == (1, 5, 32, 32)
    AutoencoderKL.from_preset("tiny").save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match=r"expected 3 channels.* 5"):
        train(tiny_run(tmp_path / "other", data=str(tmp_path / "images"), init=str(tmp_path / "three")))
