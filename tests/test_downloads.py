"""A server that takes the connection and never answers: the download fails in words, after its time limit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch

from klvae_edu import AutoencoderKL, downloads
from klvae_edu.downloads import cached_weights


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that never answers; downloads are allowed, and wait for half a second."""
    monkeypatch.setattr(downloads, "SILENCE", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        end = threading.Timer(60, server.close)  # it resets the connection of a client that waits for ever
        end.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        end.cancel()


def test_the_weights_of_a_metric_are_not_waited_for_without_end(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    before = socket.getdefaulttimeout()
    with pytest.raises(OSError, match=r"vgg16-397923af\.pth is missing, and http.* cannot be downloaded \(.*timed out"):
        cached_weights(f"{silent}/vgg16-397923af.pth")
    assert socket.getdefaulttimeout() == before
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_model_on_the_hub_is_not_waited_for_without_end(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", silent)
    with pytest.raises(FileNotFoundError, match=r"the Hugging Face Hub gave no model for it \(.*timed out"):
        AutoencoderKL.from_pretrained("owner/model")
