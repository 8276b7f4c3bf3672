"""`klvae doctor`: a line a check, and what to do about each failure."""

from __future__ import annotations

import re

import pytest

from klvae_edu.cli import main
from klvae_edu.commands import doctor
from klvae_edu.environment import Check


def test_the_doctor_finds_what_is_required_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and "All that is required is there." in printed
    assert re.search(r"^ok +python +3\.", printed, re.MULTILINE)


def test_the_doctor_says_what_to_do_about_each_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        Check("good", True, "as it should be"),
        Check("missing extra", False, "not installed", "pip install extra", required=False),
        Check("broken", False, "does not load", "install it again"),
    ]
    monkeypatch.setattr(doctor, "doctor", lambda: iter(checks))
    assert main(["doctor"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "ok good as it should be",
        "note missing extra not installed",
        "-> pip install extra",
        "FAIL broken does not load",
        "-> install it again",
        "",
        "1 required check(s) failed.",
    ]


def test_the_doctor_succeeds_when_only_optional_things_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "doctor", lambda: iter([Check("extra", False, "missing", "get it", required=False)]))
    assert main(["doctor"]) == 0
