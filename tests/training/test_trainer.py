"""The loop: what a run leaves behind, that it can be repeated, and what its summary says."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from klvae_edu import AutoencoderKL
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.held_out import HeldOut
from klvae_edu.training.trainer import TrainingResult, lr_factor, train, training_loader


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
    assert names == {
        "model",
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "training.json",
        "log.jsonl",
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
    always = {"step", "loss", "pixel", "kl", "grad_norm", "lr", "psnr", "images_per_second"}
    for record in records:
        measured = {"held_out_psnr"} if record["step"] in (2, 4, 5) else set()
        assert record.keys() == always | measured
    assert records[-1]["held_out_psnr"] == result.held_out["model"]
    assert records[0]["loss"] == pytest.approx(records[0]["pixel"] + 1e-6 * records[0]["kl"])


def test_the_learning_rate_follows_its_schedule(result: TrainingResult) -> None:
    records = [json.loads(line) for line in (result.config.out / "log.jsonl").read_text().splitlines()]
    expected = [result.config.lr * lr_factor(done, result.config) for done in range(5)]
    assert [record["lr"] for record in records] == pytest.approx(expected)


class IgnoresCtrlC(Dataset[torch.Tensor]):
    """One value: whether the process that reads it ignores SIGINT."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


def test_workers_outlive_ctrl_c_so_that_the_step_under_way_can_end(tmp_path: Path) -> None:
    for workers in (0, 1):
        (batch,) = training_loader(tiny_run(tmp_path, workers=workers), IgnoresCtrlC())
        assert batch.tolist() == [workers == 1] * 2


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
    with pytest.raises(FileNotFoundError, match=r"expected config\.json, found nothing"):
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
    monkeypatch.setattr("klvae_edu.training.held_out.PCA_CROPS", 8)
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
    assert last.startswith("Interrupted. To go on from these weights: klvae train ")
    assert "--init run/model" in last and "--steps 2" in last


def test_every_held_out_figure_is_measured_on_the_final_weights(result: TrainingResult) -> None:
    assert HeldOut(result.config, result.vae).measure(result.vae) == result.held_out
