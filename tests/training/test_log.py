"""Cutting the log back to a step: damaged lines are passed over, and named."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from klvae_edu.training.log import cut_log


def test_later_lines_go_and_a_line_that_a_kill_cut_off_is_not_worth_a_word(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut_log(log, 2)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"{}", b"[1]", b"", b'{"step": "2"}', b'{"step": 2, "lo'])
def test_a_damaged_line_is_named_by_file_and_number(damage: bytes, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    with pytest.warns(UserWarning, match=r"log\.jsonl:2: expected a JSON object with a step, got "):
        cut_log(log, 3)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
