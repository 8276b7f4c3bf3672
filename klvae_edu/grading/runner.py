"""The process of one hand-in: it runs the cells, and answers the judge's questions about an answer.

Everything here can be changed by the hand-in's own code. So nothing here judges: what leaves this process are values.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from klvae_edu.environment import die_with_parent
from klvae_edu.exercises.attempt import Blank, Local, NothingReturned, OpenGap, Raised, one_line
from klvae_edu.exercises.exercise import sandbox
from klvae_edu.grading.channel import Channel
from klvae_edu.grading.fences import confine


class TooSlow(BaseException):
    """Signal that a cell has used its time. No `except Exception` of a student catches it."""


def main() -> None:
    """Receive the task through standard input, run it, and report through standard output."""
    channel = Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # what the hand-in prints goes nowhere, however much it is
        os.dup2(nowhere, standard)
    die_with_parent()
    task = channel.receive()
    _serve_checks(channel)
    confine(Path.cwd(), task["gigabytes"])
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _too_slow)
    _run_cells(task["cells"], task["cell_seconds"], channel)
    channel.send({"done": True})
    os._exit(0)  # without exit handlers and threads of the notebook


def _too_slow(signal_number: int, frame: Any) -> None:
    raise TooSlow


def _serve_checks(channel: Channel) -> None:
    """Replace `check`: it hands in the answer, and serves the judge until the verdict comes."""
    import klvae_edu.exercises as exercises

    original = exercises.check

    def check(id: str, attempt: Any) -> Any:
        if id not in exercises.EXERCISES:
            return original(id, attempt)  # raises a ValueError that lists similar ids
        finished = exercises.EXERCISES[id].reference
        channel.send({"check": id, "blank": attempt is None or attempt is ..., "finished": attempt is finished})
        answer = Local(attempt)
        try:
            while True:
                question = channel.receive()
                if "passed" in question:
                    return attempt if question["passed"] else finished
                with sandbox():
                    reply = _reply(answer, question["recipe"], question["values"])
                channel.send(reply)
        except TooSlow:
            channel.send({"signal": "TooSlow", "arguments": []})
            raise

    exercises.check = check


def _reply(answer: Local, recipe: Any, values: Any) -> dict[str, Any]:
    try:
        return {"value": answer.run(recipe, *values)}
    except (Blank, OpenGap, NothingReturned, Raised) as signal:
        return {"signal": type(signal).__name__, "arguments": [*signal.args]}


def _run_cells(cells: list[Any], seconds: float, channel: Channel) -> None:
    """Run every cell like a kernel, also after a failed one. The first failure is reported."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    for number, source in cells:
        channel.send({"cell": number})
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = shell.run_cell(source)  # type: ignore[no-untyped-call]
            error = result.error_before_exec or result.error_in_exec
        except BaseException as raised:  # TooSlow between two statements of the shell, for instance
            error = raised
        finally:
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)
        if isinstance(error, TooSlow):
            channel.send({"slow": number})
        elif error is not None:
            channel.send({"failed": number, "error": one_line(error)})


if __name__ == "__main__":
    main()
