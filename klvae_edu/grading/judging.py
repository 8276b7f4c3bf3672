"""Judge one hand-in: start its process, ask it for values, and compare them here, where no student's code has run.

An exercise is passed when an answer of the hand-in gives the right values for what the judge sends. Printed text,
stored outputs and another `check` have no effect, nor has what the hand-in changes in its own process.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from klvae_edu.exercises import EXERCISES
from klvae_edu.exercises.attempt import Attempt, Blank, NothingReturned, OpenGap, Raised, Recipe
from klvae_edu.exercises.exercise import sandbox
from klvae_edu.grading import fences
from klvae_edu.grading.channel import Channel, Closed
from klvae_edu.grading.reading import Cell, Unreadable, as_text, hand_ins, read

State = Literal["passed", "not right yet", "not attempted", "did not run"]
_SIGNALS = {it.__name__: it for it in (Blank, OpenGap, NothingReturned, Raised)}
_GRACE = 5.0  # seconds that a cell has to end by itself after its time
_START = 120.0  # seconds that a process may take to import the course
_DISK = 4_000_000_000  # bytes that a hand-in may leave in its folder


@dataclass(frozen=True)
class Grade:
    """The result of one exercise in one handed-in notebook."""

    student: str
    notebook: str  # path of the file, relative to the folder of hand-ins
    exercise: str  # "NN.M"; empty if there is no grade
    state: State
    message: str = ""
    sha256: str = ""  # of the hand-in's bytes; empty if it cannot be read


@dataclass(frozen=True)
class Limits:
    """Limits for one hand-in."""

    seconds: float = 600.0
    gigabytes: float = 6.0  # of memory, of each of its processes; only Linux can limit it
    container: str = ""  # image in which it runs; empty: no container

    @property
    def cell_seconds(self) -> float:
        """A fifth of the whole: one endless loop leaves time for the rest."""
        return self.seconds / 5


class TooSlow(BaseException):
    """Signal that a cell was stopped while its answer was being judged. No judge catches it."""


class Remote(Attempt):
    """An answer in the process of a hand-in."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def run(self, recipe: Recipe, *values: Any) -> Any:
        """Return `recipe(answer, *values)`; raises as `Attempt.run`."""
        self._channel.send({"recipe": recipe, "values": values})
        reply = self._channel.receive()
        if not isinstance(reply, dict):
            raise Closed
        if "value" in reply:
            return reply["value"]
        if reply.get("signal") == TooSlow.__name__:
            raise TooSlow
        try:
            raise _SIGNALS[reply["signal"]](*reply["arguments"])
        except (KeyError, TypeError):
            raise Closed from None


@dataclass
class Verdicts:
    """Verdicts on a hand-in so far."""

    seconds_left: float
    grades: dict[str, tuple[State, str]] = field(default_factory=dict)
    slow: dict[int, str] = field(default_factory=dict)  # number of a cell that was stopped: why
    failure: str = ""  # the first cell that failed
    judged: str = ""  # the exercise whose answer is being judged

    def add(self, id: str, state: State, message: str = "") -> None:
        """Record a verdict. A pass is final."""
        if self.grades.get(id, ("",))[0] != "passed":
            self.grades[id] = (state, message)


def grade(folder: Path, limits: Limits, done: Collection[Path] = ()) -> Iterator[list[Grade]]:
    """Yield the grades of each hand-in that is not in `done`: one for every exercise of its notebook of the course.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    for student, file in hand_ins(folder):
        if file in done:
            continue
        name = as_text(file.relative_to(folder).as_posix())
        try:
            hand_in = read(file, folder)
        except Unreadable as reason:
            yield [Grade(student, name, "", "did not run", str(reason))]
            continue
        left_out = f" ({hand_in.damaged} damaged cells left out)" if hand_in.damaged else ""
        yield [
            Grade(student, name, id, state, message + left_out, hand_in.sha256)
            for id, state, message in judge_cells(hand_in.cells, limits)
        ]


def judge_cells(cells: list[Cell], limits: Limits) -> list[tuple[str, State, str]]:
    """Return (exercise, state, message) for every exercise of the notebook of the course that these cells belong to."""
    wanted = _exercises_of("\n".join(cell.source for cell in cells))
    if not wanted:
        return [("", "did not run", "no exercise of the course is in it")]
    code = [(number, cell.source) for number, cell in enumerate((it for it in cells if it.is_code), 1)]
    verdicts = Verdicts(limits.seconds)
    trouble = _run_once(code, limits, verdicts)
    while trouble is None:  # a cell that could not be interrupted was left behind: once more without it
        trouble = _run_once([it for it in code if it[0] not in verdicts.slow], limits, verdicts)
    return [(id, *(verdicts.grades.get(id) or _without_verdict(id, trouble, verdicts, code))) for id in wanted]


def _exercises_of(text: str) -> list[str]:
    """List the exercises of the notebook whose exercises the text mentions most. File names are not reliable."""
    mentioned = {id for id in re.findall(r"\b\d\d\.\d+\b", text) if id in EXERCISES}
    notebooks = Counter(EXERCISES[id].notebook for id in sorted(mentioned)).most_common(1)
    return [id for id, it in EXERCISES.items() if notebooks and it.notebook == notebooks[0][0]]


def _without_verdict(id: str, trouble: str, verdicts: Verdicts, code: list[tuple[int, str]]) -> tuple[State, str]:
    for number, source in code:
        if number in verdicts.slow and f'"{id}"' in source.replace("'", '"'):
            return "did not run", verdicts.slow[number]
    if trouble or verdicts.failure:
        return "did not run", trouble or verdicts.failure
    return "not attempted", f'no cell calls the course\'s own check("{id}", …)'


# ---- The process of a hand-in ----------------------------------------------------------------------------------------


class _Watch(threading.Thread):
    """Kill a process when its deadline has passed, or when its folder has grown too large."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, deadline: float) -> None:
        super().__init__(daemon=True)
        self.deadline, self.reason = deadline, ""
        self._process, self._folder, self._ended = process, folder, threading.Event()

    def run(self) -> None:
        looks = 0
        while not self._ended.wait(0.1):
            looks += 1
            if time.monotonic() > self.deadline:
                self.reason = "late"
            elif looks % 20 == 0 and _size(self._folder) > _DISK:
                self.reason = f"it wrote more than {_DISK // 10**9} GB"
            if self.reason:
                kill(self._process)
                return

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self.join()


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (
                    os.lstat(os.path.join(root, name)).st_blocks * 512 if hasattr(os.stat_result, "st_blocks") else 0
                )
    return total


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _run_once(code: list[tuple[int, str]], limits: Limits, verdicts: Verdicts) -> str | None:
    """Run the cells in a new process, and judge what it hands in. Returns what went wrong, empty if nothing did.

    None: a cell had to be killed; it is in `verdicts.slow`, and there is time for the others.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, fences.nothing_outlives():
        folder = Path(name).resolve()
        process = _start(folder, limits)
        watch = _Watch(process, folder, time.monotonic() + _START)
        watch.start()
        cell, begun = 0, None
        try:
            channel = Channel(process.stdout, process.stdin)  # type: ignore[arg-type]
            channel.send({"cells": code, "cell_seconds": limits.cell_seconds, "gigabytes": limits.gigabytes})
            while "done" not in (message := channel.receive()):
                if "cell" in message:
                    cell, now = message["cell"], time.monotonic()
                    begun = begun or now
                    watch.deadline = min(begun + verdicts.seconds_left, now + limits.cell_seconds + _GRACE)
                _take(message, channel, verdicts, limits)
            return ""
        except (Closed, TypeError, KeyError):  # the last two: a message that the runner does not write
            pass
        finally:
            verdicts.seconds_left -= time.monotonic() - begun if begun else 0.0
            watch.end()
            kill(process)
            process.communicate()
    if watch.reason == "late" and not begun:
        return f"it has not begun after {_START:g} s"
    if watch.reason == "late" and verdicts.seconds_left > 0:
        verdicts.slow[cell] = _stopped(cell, limits)
        return None
    if verdicts.judged and not watch.reason:
        verdicts.add(verdicts.judged, "did not run", "it ends its process")
    if watch.reason:
        return f"stopped after {limits.seconds:g} s" if watch.reason == "late" else watch.reason
    return "the notebook ended its process, or was ended: out of memory, perhaps"


def _start(folder: Path, limits: Limits) -> subprocess.Popen[bytes]:
    settings, command = fences.environment(folder), ["-m", "klvae_edu.grading.runner"]
    if limits.container:
        line = fences.in_container(["python", *command], limits.container, fences.SETTINGS, limits.gigabytes)
    elif fences.bwrap_works():
        line = fences.in_bwrap([sys.executable, *command], folder, settings)
    else:
        line = [sys.executable, *command]
    return subprocess.Popen(
        line,
        cwd=folder,
        env=None if limits.container else settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _stopped(cell: int, limits: Limits) -> str:
    return f"code cell {cell} took longer than {limits.cell_seconds:g} s and was stopped"


def _take(message: dict[str, Any], channel: Channel, verdicts: Verdicts, limits: Limits) -> None:
    """Take a message of the runner: an answer to judge, or how a cell ended."""
    if "check" in message:
        id = message["check"]
        if message["blank"]:
            verdicts.add(id, "not attempted")
        elif message["finished"]:
            verdicts.add(id, "not attempted", "this is the finished version")
        else:
            _judge(id, channel, verdicts, limits)
            return
        channel.send({"passed": False})
    elif "slow" in message:
        verdicts.slow[message["slow"]] = _stopped(message["slow"], limits)
    elif "failed" in message and not verdicts.failure:
        verdicts.failure = f"code cell {message['failed']} failed ({message['error']})"


def _judge(id: str, channel: Channel, verdicts: Verdicts, limits: Limits) -> None:
    verdicts.judged = id
    with contextlib.suppress(TooSlow), sandbox():
        verdict = EXERCISES[id].verdict(Remote(channel))
        state: State = "passed" if verdict.passed else "not right yet" if verdict.attempted else "not attempted"
        verdicts.add(id, state, verdict.message)
        channel.send({"passed": verdict.passed})
    verdicts.judged = ""
