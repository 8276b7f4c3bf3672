"""Grade handed-in notebooks: each runs in its own process, and the judges of this package check its answers.

    teacher's process                            one process for each notebook
    reads the notebook, starts the other     -->  imports the exercises; runs the cells; judges each answer
    waits for the verdicts, up to a limit    <--  writes its verdicts to a pipe that `print` does not reach

An exercise is passed when the package's own judge accepts an object from the notebook. Printed text, stored outputs and
another function named `check` have no effect. But a notebook is a program, and it runs with the rights of the user who
grades it. A notebook that manipulates its process in order to cheat, or that does harm, is not stopped here.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from klvae_edu.exercises import EXERCISES
from klvae_edu.exercises.exercise import one_line

State = Literal["passed", "not right yet", "not attempted", "did not run"]
Report = Callable[..., None]


@dataclass(frozen=True)
class Grade:
    """The result of one exercise in one handed-in notebook."""

    student: str
    notebook: str  # path of the file, relative to the folder of hand-ins
    exercise: str  # "NN.M"; empty if the file is no notebook of the course
    state: State
    message: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits for the process of one notebook."""

    seconds: float = 600.0
    gigabytes: float = 6.0  # of memory; only Linux can limit it


def hand_ins(folder: Path) -> list[tuple[str, Path]]:
    """List (student, file) for every notebook FOLDER/STUDENT/….ipynb or FOLDER/STUDENT.ipynb.

    Raises:
        ValueError: there is no such folder, or no notebook in it.
    """
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.ipynb"))]
    files = [path for path in files if not any(part.startswith(".") for part in path.parts)]  # .ipynb_checkpoints
    if not files:
        raise ValueError(f"{folder}: expected a folder of handed-in notebooks, found none")
    return [(path.with_suffix("").parts[0], folder / path) for path in files]


def grade(folder: Path, limits: Limits) -> Iterator[list[Grade]]:
    """Yield the grades of each handed-in notebook: one grade for every exercise of this notebook of the course.

    Raises:
        ValueError: there is no such folder, or no notebook in it.
    """
    for student, file in hand_ins(folder):
        name = file.relative_to(folder).as_posix()
        yield [Grade(student, name, *result) for result in _grade_file(file, limits)]


def _grade_file(file: Path, limits: Limits) -> list[tuple[str, State, str]]:
    try:
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(file.read_bytes())["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [("", "did not run", f"this is not a notebook ({type(error).__name__})")]
    wanted = _exercises_of("\n".join(source for _, source in cells))
    if not wanted:
        return [("", "did not run", "no exercise of the course is in it")]
    verdicts, trouble = _run([source for kind, source in cells if kind == "code"], limits)
    return [(id, *verdicts[id]) if id in verdicts else (id, *_without_verdict(id, trouble)) for id in wanted]


def _without_verdict(id: str, trouble: str) -> tuple[State, str]:
    if trouble:
        return "did not run", trouble
    return "not attempted", f'no cell calls the course\'s own check("{id}", …)'


def _exercises_of(text: str) -> list[str]:
    """List the exercises of the notebook whose exercises the text mentions most. File names are not reliable."""
    mentioned = {id for id in re.findall(r"\b\d\d\.\d+\b", text) if id in EXERCISES}
    notebooks = Counter(EXERCISES[id].notebook for id in sorted(mentioned)).most_common(1)
    return [id for id, it in EXERCISES.items() if notebooks and it.notebook == notebooks[0][0]]


def _run(cells: list[str], limits: Limits) -> tuple[dict[str, tuple[State, str]], str]:
    """Run the cells in a new process. Returns its verdicts, and a description of a failure, empty if there is none."""
    token = secrets.token_hex()  # marks the lines that the judge wrote
    settings = {"KLVAE_EDU_QUIET": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = os.environ | settings | {"IPYTHONDIR": folder}
        environment.pop("KLVAE_EDU_STRICT", None)
        process = subprocess.Popen(
            [sys.executable, "-m", "klvae_edu.exercises.grading"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        task = json.dumps({"token": token, "cells": cells, "gigabytes": limits.gigabytes}).encode()
        late = False
        try:
            output, _ = process.communicate(task, timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            late = True
            _kill(process)
            output = _output_so_far(process)
        finally:
            _kill(process)
    lines = [line for line in map(_parse, output.splitlines()) if line.pop("token", None) == token]
    verdicts: dict[str, tuple[State, str]] = {}
    for line in lines:
        if "exercise" in line and verdicts.get(line["exercise"], ("",))[0] != "passed":  # a pass is final
            verdicts[line["exercise"]] = (line["state"], line["message"])
    if late:
        return verdicts, f"stopped after {limits.seconds:g} s"
    if not any("done" in line for line in lines):
        return verdicts, "the notebook ended its process, or was ended: out of memory, perhaps"
    return verdicts, next((line["error"] for line in lines if "error" in line), "")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and the processes that it started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass


def _output_so_far(process: subprocess.Popen[bytes]) -> bytes:
    try:
        return process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired as error:  # a process that was not killed holds the pipe open
        return error.stdout or b""


def _parse(line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


# ---- In the process of one notebook ----------------------------------------------------------------------------------


def _work() -> None:
    """Read the task from standard input and run it. Verdicts are written as JSON lines to the original stdout."""
    task = json.loads(sys.stdin.buffer.read())
    channel, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    token = task["token"]

    def report(**line: str) -> None:
        os.write(channel, json.dumps({"token": token, **line}).encode() + b"\n")

    _limit_memory(task["gigabytes"])
    _judge_checks(report)
    _run_cells(task["cells"], report)
    report(done="")
    os._exit(0)  # without exit handlers and threads of the notebook


def _limit_memory(gigabytes: float) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9),) * 2)


def _judge_checks(report: Report) -> None:
    """Replace `check` in the notebook's copy of the package: it asks the judges of a second copy and reports."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "klvae_edu"]:
        del sys.modules[name]  # the notebook imports, and may change, a new copy
    import klvae_edu.exercises as notebooks

    finished, original = {id: it.reference for id, it in notebooks.EXERCISES.items()}, notebooks.check

    def check(id: str, attempt: Any) -> Any:
        if id not in EXERCISES:
            return original(id, attempt)  # raises a ValueError that lists similar ids
        if attempt is finished[id]:
            report(exercise=id, state="not attempted", message="this is the finished version")
            return attempt
        verdict = EXERCISES[id].run(attempt)
        state: State = "passed" if verdict.passed else "not right yet" if verdict.attempted else "not attempted"
        report(exercise=id, state=state, message=verdict.message)
        return attempt if verdict.passed else finished[id]

    notebooks.check = check


def _run_cells(cells: list[str], report: Report) -> None:
    """Run every cell like a kernel, also after a failed one. The first failure is reported."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    failed = False
    for number, source in enumerate(cells, 1):
        result = shell.run_cell(source)  # type: ignore[no-untyped-call]
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not failed:
            failed = True
            report(error=f"code cell {number} failed ({one_line(error)})")


if __name__ == "__main__":
    _work()
