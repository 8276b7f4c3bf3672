"""Fixtures for the tests of commands: a saved model, a photograph, and the line of an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from klvae_edu import AutoencoderKL
from klvae_edu.data import photographs, save_image


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, untrained."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    AutoencoderKL.from_preset("tiny", seed=0).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph with odd sides, 61x45."""
    path = tmp_path / "cat.png"
    save_image(photographs("held-out")["chelsea"][:, 100:145, 100:161], path)
    return path


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that reads stderr, which must be one line that begins with the program's name."""

    def read() -> str:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("klvae: ")
        return line.removeprefix("klvae: ")

    return read
