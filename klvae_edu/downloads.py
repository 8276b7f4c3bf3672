"""Pretrained weights of metric networks: find the file in the cache of `torch.hub` or download it, and read it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

SILENCE = 30.0  # seconds that a download waits for an answer, or for its next bytes


def cached_weights(url: str, progress: bool = False) -> Path:
    """Return the path of the file from `url` in the cache of `torch.hub`; download it if it is missing.

    Args:
        url: its file name ends in the first digits of the file's SHA-256, such as `vgg16-397923af.pth`. A download
            with another checksum is deleted.
        progress: show a progress bar during the download.

    Raises:
        OSError: the file is missing, and it cannot be downloaded, the server is silent for `SILENCE` seconds, or
            HF_HUB_OFFLINE is set. The message gives the path, the URL and the reason.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"{path} is missing, and HF_HUB_OFFLINE is set: {url} is not downloaded")
    if progress:
        print(f"Downloading {url} to {path}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _time_limit(SILENCE):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=progress)
    except (OSError, RuntimeError, HTTPException) as error:  # no network, another checksum, an interrupted download
        raise OSError(f"{path} is missing, and {url} cannot be downloaded ({error})") from error
    return path


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Limit the silence of new connections: `torch.hub` passes no limit on, and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_weights(path: Path) -> dict[str, Any]:
    """Read the state dictionary in a .safetensors file or a PyTorch file, without executing code from the file.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # for a damaged file the readers raise exceptions of many types
        raise ValueError(f"{path}: cannot be read as weights ({error}); if it is damaged, delete it") from error
