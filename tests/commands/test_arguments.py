"""Arguments of commands: ~ is the home folder, an empty name is none, and missing memory is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from klvae_edu.commands.arguments import home_path, memory_for, not_empty


def test_a_tilde_is_the_home_folder_and_an_unknown_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert home_path("~/a") == Path("/somewhere/a") and home_path("b/~c") == Path("b/~c")
    assert home_path("~no-such-user/a") == Path("~no-such-user/a")


def test_empty_names_are_refused() -> None:
    for read in (home_path, not_empty):
        with pytest.raises(ValueError, match="expected a name, got an empty one"):
            read("")


def test_a_failed_allocation_names_the_size_and_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="size: not enough memory for images of 9x9 pixels"), memory_for(9):
        torch.empty(2**50)
    with pytest.raises(ValueError, match="not enough memory"), memory_for(9):
        raise MemoryError
    with pytest.raises(RuntimeError, match="must match"), memory_for(9):
        torch.ones(2) + torch.ones(3)
