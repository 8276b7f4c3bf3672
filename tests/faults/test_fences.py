"""Fences around hand-ins, each tried by a harmless marker: with it, and without it to show that the marker works."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import psutil
import pytest

from klvae_edu.commands.grade import GradeOptions, run_grade
from klvae_edu.grading import Limits, fences, grade

LIMITS = Limits(seconds=100)
landlock = pytest.mark.skipif(fences.landlock_version() < 1, reason="this kernel has no Landlock")
bwrap = pytest.mark.skipif(not fences.bwrap_works(), reason="bubblewrap is not installed, or may not be used here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux has these")


def write(path: Path, *cells: str) -> None:
    text = {"cell_type": "markdown", "source": "01.1"}
    path.write_text(
        json.dumps({"cells": [text, *({"cell_type": "code", "source": textwrap.dedent(it)} for it in cells)]})
    )


def inside(tmp_path: Path, code: str) -> str:
    """Run code as a hand-in, and return what it raises: `raise Exception(…)` brings a marker out."""
    folder = tmp_path / "class"
    folder.mkdir(exist_ok=True)
    write(folder / "anna.ipynb", code)
    ((first, *_),) = grade(folder, LIMITS)
    return first.message


def outside(code: str) -> str:
    """Run the same code without any fence, and return the last line of its error."""
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    return result.stderr.splitlines()[-1] if result.stderr else ""


def test_variables_of_the_environment_do_not_get_in(tmp_path, monkeypatch):
    monkeypatch.setenv("KLVAE_MARKER", "a marker")
    code = "import os\nraise Exception(os.environ.get('KLVAE_MARKER', 'none'))"
    assert "a marker" in outside(code) and "Exception: none" in inside(tmp_path, code)


def test_the_home_folder_is_another_one(tmp_path):
    code = "import os\nfrom pathlib import Path\nraise Exception(Path.home())"
    assert str(Path.home()) in outside(code)
    assert f"Exception: {Path.home()}" not in inside(tmp_path, code)


@landlock
def test_files_are_not_read(tmp_path):
    marker = tmp_path / "marker.txt"
    marker.write_text("a marker")
    code = f"raise Exception(open({str(marker)!r}).read())"
    assert "a marker" in outside(code)
    assert "PermissionError" in inside(tmp_path, code)


@landlock
@pytest.mark.parametrize("where", ["another hand-in", "the package"])
def test_files_are_not_written(tmp_path, where):
    own = Path(fences.__file__).with_name("marker.txt")
    path = tmp_path / "class" / "ben.ipynb" if where == "another hand-in" else own
    code = f"open({str(path)!r}, 'a').write(' ')"
    (tmp_path / "class").mkdir()
    try:
        assert outside(code) == "" and path.read_text() == " "
        path.unlink()
        message = inside(tmp_path, code)
        assert "PermissionError" in message or "Read-only file system" in message
        assert not path.exists()
    finally:
        own.unlink(missing_ok=True)


@landlock
def test_the_graders_memory_and_environment_are_not_read(tmp_path):
    pid = os.getpid()
    code = f"raise Exception(len(open('/proc/{pid}/environ').read()))"
    assert outside(code).startswith("Exception: ")
    message = inside(tmp_path, code)
    assert "PermissionError" in message or "FileNotFoundError" in message  # in a namespace of its own it is not there


@linux
def test_nothing_outlives_the_grader(tmp_path):
    marker = f"300.{uuid.uuid4().int % 10**9}"
    code = f"""
        import os, subprocess
        if os.fork() == 0:  # leaves its session, and its parent ends
            os.setsid()
            subprocess.Popen(["sleep", "{marker}"], start_new_session=True, stdout=-3, stderr=-3)  # DEVNULL
            os._exit(0)
        os.wait()
    """

    def alive() -> list[psutil.Process]:
        return [it for it in psutil.process_iter(["cmdline"]) if marker in (it.info["cmdline"] or ())]

    outside(code)
    (left,) = alive()
    left.kill()
    inside(tmp_path, code)
    assert not alive()


@linux
def test_a_file_has_a_largest_size(tmp_path):
    code = "f = open('large', 'wb')\nf.seek(3_000_000_000)\nf.write(b'x')\nf.flush()\nraise Exception('written')"
    assert "File too large" in inside(tmp_path, code)


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root can become another user")
def test_processes_of_a_user_have_a_largest_number(tmp_path):
    """The kernel sets root no limit."""
    code = """
        import os, sys
        from pathlib import Path
        from klvae_edu.grading import fences
        fences.PROCESSES = 20
        if sys.argv[1] == "with":
            fences._close_file_system = lambda folder: None
        os.setuid(54321)
        if sys.argv[1] == "with":
            fences.confine(Path("/tmp"), 8)
        count = 0
        try:
            while count < 40:
                if os.fork() == 0:
                    os.pause() if hasattr(os, "pause") else __import__("signal").pause()
                count += 1
        except BlockingIOError:
            pass
        print(count, flush=True)
        os.killpg(0, 9)
    """
    counts = []
    for how in ("without", "with"):
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), how],
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        counts.append(int(result.stdout))
    assert counts[0] == 40 and counts[1] < 25


@bwrap
def test_the_network_is_not_reached_and_loopback_is(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\nraise Exception('reached')"
        assert "reached" in outside(reach)
        assert "ConnectionRefusedError" in inside(tmp_path, reach)
    own = """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(server.getsockname(), 5)
        raise Exception("reached")
    """
    assert "reached" in inside(tmp_path, own)


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_grader_and_all_that_it_started(tmp_path, number):
    folder, marker = tmp_path / "class", f"300.{uuid.uuid4().int % 10**9}"
    folder.mkdir()
    write(folder / "anna.ipynb", "1")
    write(folder / "ben.ipynb", f"import subprocess\nsubprocess.run(['sleep', '{marker}'])")
    out = tmp_path / "grades.csv"
    command = [sys.executable, "-m", "klvae_edu", "grade", str(folder), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def alive() -> list[psutil.Process]:
        return [it for it in psutil.process_iter(["cmdline"]) if marker in (it.info["cmdline"] or ())]

    end = time.monotonic() + 120
    while not alive() and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number and not alive()
    assert "anna.ipynb,01.1" in out.read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("program", ["docker", "podman"])
def test_a_container_gets_no_network_and_a_read_only_file_system(tmp_path, monkeypatch, program):
    """By a stand-in, which keeps its arguments and runs the command here. The tests start no container."""
    stand_in = tmp_path / "bin" / program
    stand_in.parent.mkdir()
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump(sys.argv[1:], open({str(tmp_path / 'arguments')!r}, 'w'))\n"
        f"start = sys.argv.index('image') + 2\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[start:]])\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent))
    folder = tmp_path / "class"
    folder.mkdir()
    write(folder / "anna.ipynb", "from klvae_edu.exercises import check\ncheck('01.1', ...)")
    (grades,) = grade(folder, Limits(seconds=100, container="image"))
    assert grades[0].state == "not attempted" and grades[0].message == ""
    arguments = json.loads((tmp_path / "arguments").read_text())
    assert arguments[0] == "run" and arguments[arguments.index("--network") + 1] == "none"
    assert {"--read-only", "--rm", "--interactive", "--pids-limit", "--memory"} <= set(arguments)
    assert arguments[-4:] == ["image", "python", "-m", "klvae_edu.grading.runner"]


def test_without_a_container_program_the_error_says_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    write(tmp_path / "anna.ipynb", "1")
    with pytest.raises(ValueError, match="expected docker or podman, found neither"):
        run_grade(GradeOptions(tmp_path, tmp_path / "grades.csv", container="image"))


def test_a_missing_fence_is_named(monkeypatch):
    monkeypatch.setattr(fences, "landlock_version", lambda: 0)
    lines = fences.missing(bwrap=False)
    assert any("Landlock" in line for line in lines) and any("network" in line for line in lines)
