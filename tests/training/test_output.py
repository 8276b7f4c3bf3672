"""Output that cannot be written does not end the run: closed pipes, full disks, closed streams."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from klvae_edu.training.output import lasting_output

full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device without space, as Linux has it")


def broken_pipe() -> io.TextIOWrapper:
    """A pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    return open(writes, "w", encoding="utf-8")


def full_disk() -> io.TextIOWrapper:
    return open("/dev/full", "w", encoding="utf-8")


def closed() -> io.TextIOWrapper:
    with open(os.devnull, "w", encoding="utf-8") as stream:
        return stream


def narrow() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="ascii")


@pytest.mark.parametrize("make", [broken_pipe, pytest.param(full_disk, marks=full), closed, narrow])
def test_what_cannot_be_printed_appears_on_standard_error(
    make: Callable[[], io.TextIOWrapper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = (tmp_path / "errors").open("w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", make())
    monkeypatch.setattr(sys, "stderr", errors)
    with lasting_output():
        print("To resume: klvae trän")
    assert (tmp_path / "errors").read_text(encoding="utf-8").rstrip() == "To resume: klvae trän"
    errors.close()


def test_without_any_place_to_write_to_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    for streams in ((broken_pipe(), broken_pipe()), (None, None)):
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with lasting_output():
            print("lost", flush=True)
            print("lost", file=sys.stderr, flush=True)
            assert sys.stderr.isatty() is False  # the rest of the stream is as before
        assert (sys.stdout, sys.stderr) == streams


def test_the_stream_of_a_notebook_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no file; a flush after every piece of text would split a cell's output."""
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stdout", notebook)
    with lasting_output():
        assert sys.stdout is notebook


def test_a_broken_pipe_leaves_the_exit_status_of_a_command_as_it_is() -> None:
    """Python itself would end with 120 when it cannot flush its output at exit."""
    code = "import klvae_edu.cli as cli; cli.main = lambda: print('x' * 100_000) or 3; cli.run()"
    command = [sys.executable, "-c", code]
    with broken_pipe() as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "x" * 100_000 + "\n"
