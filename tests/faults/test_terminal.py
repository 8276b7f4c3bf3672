"""A run outlives its terminal: broken pipes, closed windows, a killed trainer, the end of a notebook's kernel."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from klvae_edu.training.checkpoint import read_description
from klvae_edu.training.run_folder import LOCK_NAME

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals and signals as POSIX has them")
TIMEOUT = 300  # seconds, on a busy machine
ENDLESS = 100_000  # steps
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


@pytest.fixture
def command(pictures: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Make the command of a run into `tmp_path / "run"` whose steps take milliseconds."""

    def of(*options: str) -> list[str]:
        sizes = ["--size", "16", "--batch-size", "2", "--held-out", "2", "--device", "cpu", "--data", str(pictures)]
        program = [sys.executable, "-m", "klvae_edu", "train"]
        return [*program, *sizes, *options, "--out", str(tmp_path / "run")]

    return of


def assert_saved(out: Path, runs: Any) -> None:
    """Check that the last step of the log has a checkpoint, and the weights are there."""
    step = runs.last_step(out)
    assert [record["step"] for record in runs.log(out)] == list(range(1, step + 1))
    assert read_description(out / "checkpoints" / f"step_{step:07d}")["step"] == step
    assert (out / "model" / "config.json").is_file()


@pytest.mark.parametrize("pipe", ["|", "2>&1 |"])
def test_ctrl_c_saves_though_it_ends_tee_as_well(
    pipe: str, command: Callable[..., list[str]], runs: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = shlex.join(command("--steps", str(ENDLESS), "--workers", "1"))
    script = f"set -o pipefail; {words} {pipe} tee {tmp_path / 'log'}; exit ${{PIPESTATUS[0]}}"
    shell = runs.start("-c", script, program=(), executable="bash")
    runs.wait_for_step(shell, out, 3)
    os.killpg(shell.pid, signal.SIGINT)
    _, errors = shell.communicate(timeout=TIMEOUT)
    assert_saved(out, runs)
    assert "Traceback" not in errors
    if pipe == "|":  # standard error is still the terminal
        seen = errors + (tmp_path / "log").read_text(encoding="utf-8")  # of tee, if it was the last to end
        assert "Interrupted. To resume: klvae train" in seen


def test_a_pipe_that_breaks_does_not_end_the_run(command: Callable[..., list[str]], runs: Any, tmp_path: Path) -> None:
    reads, writes = os.pipe()
    process = subprocess.Popen(command("--steps", "5"), stdout=writes, stderr=writes)
    runs.started.append(process)
    os.close(writes)
    os.close(reads)
    assert process.wait(TIMEOUT) == 0
    assert runs.last_step(tmp_path / "run") == 5
    assert_saved(tmp_path / "run", runs)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed_ends_the_run_saved_or_not_at_all(
    nohup: bool, command: Callable[..., list[str]], runs: Any, tmp_path: Path
) -> None:
    import pty

    out, words = tmp_path / "run", command("--steps", "40" if nohup else str(ENDLESS), "--workers", "1")
    pid, terminal = pty.fork()
    if pid == 0:
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execv(words[0], words)
    process = psutil.Process(pid)
    try:
        os.set_blocking(terminal, False)
        deadline = time.monotonic() + TIMEOUT
        while runs.last_step(out) < 3:
            assert time.monotonic() < deadline and process.status() != psutil.STATUS_ZOMBIE
            try:
                os.read(terminal, 65536)  # else the run would wait for a reader
            except BlockingIOError:
                time.sleep(0.01)
        os.close(terminal)
        assert process.wait(TIMEOUT) == (0 if nohup else 130)
    finally:
        if process.is_running():
            process.kill()
    assert_saved(out, runs)
    assert not nohup or runs.last_step(out) == 40


@pytest.mark.skipif(sys.platform != "linux", reason="the signal at a parent's end is Linux's")
def test_a_killed_trainer_leaves_no_worker_and_no_lock(
    command: Callable[..., list[str]], runs: Any, tmp_path: Path
) -> None:
    """The workers are stopped: they cannot notice the trainer's end, so the system has to end them."""
    out = tmp_path / "run"
    process = subprocess.Popen(command("--steps", str(ENDLESS), "--workers", "2"), stderr=subprocess.DEVNULL)
    runs.started.append(process)
    runs.wait_for_step(process, out, 3)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    for worker in workers:
        worker.suspend()
    process.kill()
    process.wait(TIMEOUT)
    _, alive = psutil.wait_procs(workers, timeout=30)
    for worker in alive:
        worker.kill()
    assert not alive
    with FileLock(out / LOCK_NAME, blocking=False):
        pass


def test_a_run_started_as_the_guide_says_outlives_the_kernel_of_its_notebook(
    command: Callable[..., list[str]], runs: Any, tmp_path: Path
) -> None:
    from jupyter_client.manager import start_new_kernel

    (code,) = re.findall(r"```python\n([^`]*start_new_session[^`]*)```", GUIDE.read_text(encoding="utf-8"))
    assert '["klvae", "train", "mini"]' in code
    code = code.replace('["klvae", "train", "mini"]', repr(command("--steps", "40")))
    manager, client = start_new_kernel(startup_timeout=TIMEOUT, cwd=str(tmp_path))
    try:
        reply = client.execute_interactive(code + "\nlog.close()", timeout=TIMEOUT, output_hook=lambda message: None)
        assert reply["content"]["status"] == "ok"
        (pid,) = [child.pid for child in psutil.Process(manager.provisioner.pid).children()]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    process = psutil.Process(pid)
    runs_on = process.status() != psutil.STATUS_ZOMBIE
    assert runs_on
    process.wait(TIMEOUT)
    assert runs.last_step(tmp_path / "run") == 40
    assert "Step 40 of 40" in (tmp_path / "run.log").read_text(encoding="utf-8")
