"""Loading the model that a command names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.commands.models import load_model


def test_a_folder_and_a_file_give_the_model_in_float32_ready_for_use(model: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(model)
    file = tmp_path / "vae.safetensors"
    vae.to(torch.float16).to_single_file(file)
    vae.save_pretrained(tmp_path / "half")
    for name in (str(file), str(tmp_path / "half")):
        loaded = load_model(name, "cpu")
        assert loaded.dtype == torch.float32 and loaded.device.type == "cpu" and not loaded.training
        assert torch.equal(loaded.get_parameters(), vae.get_parameters().float())


def test_a_bundled_model_goes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kl-f8-mini").mkdir()
    assert load_model("kl-f8-mini", "cpu").num_parameters() == 2_059_287
    with pytest.raises(FileNotFoundError, match=r"kl-f8-mini: expected config\.json and .*, found nothing"):
        load_model("./kl-f8-mini")


def test_a_missing_file_is_not_asked_of_the_hub_and_anything_else_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: file not found"):
        load_model(str(tmp_path / "none.safetensors"))
    assert capsys.readouterr().err == ""
    with pytest.raises(FileNotFoundError, match="'no/such-model' is not a folder here"):
        load_model("no/such-model")
    expected = "klvae: there is no folder no/such-model; looking for it on the Hugging Face Hub\n"
    assert capsys.readouterr().err == expected


def test_an_unavailable_device_is_an_error_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda' is not available here"):
        load_model("no/such-model", "cuda")
