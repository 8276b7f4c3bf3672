"""The exercises of the course: `check` an answer, print a `hint` or the `solution`, see your `progress`.

>>> from klvae_edu.exercises import check
>>> reparameterize = check("01.2", ...)
01.2 The reparameterised sample: not attempted yet (the cells below use the finished version)
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klvae_edu.exercises import nb01, nb02, nb03, nb04, nb05, nb06, nb07, nb08, nb09, nb10, nb11, nb12, nb13, nb15
from klvae_edu.exercises.exercise import Exercise, Verdict
from klvae_edu.weights.files import atomic_write

__all__ = ["EXERCISES", "CheckFailed", "Exercise", "Verdict", "check", "hint", "progress", "solution", "whose"]

EXERCISES: dict[str, Exercise] = {
    exercise.id: exercise
    for notebook in (nb01, nb02, nb03, nb04, nb05, nb06, nb07, nb08, nb09, nb10, nb11, nb12, nb13, nb15)
    for exercise in notebook.EXERCISES
}

_PROGRESS_FILE = Path(".klvae_progress.json")  # in the working folder: a notebook's own folder
_passed: set[str] = set()  # in this session
_hints_given: dict[str, int] = {}


class CheckFailed(AssertionError):
    """Error for a check that did not pass in strict mode (KLVAE_EDU_STRICT=1)."""


def check(id: str, attempt: Any) -> Any:
    """Judge an attempt, print the verdict in one line, and return the function or class for the cells below.

    Args:
        id: of the exercise, "NN.M".
        attempt: your function or class itself, not its result.

    Returns:
        `attempt` if it passed, else the reference solution, so that the cells below run.

    Raises:
        ValueError: no such exercise; the message lists similar ones.
        CheckFailed: the attempt did not pass, and the environment variable KLVAE_EDU_STRICT is set to 1.
    """
    exercise = _find(id)
    if attempt is exercise.reference:  # `name = check(id, name)` run twice, after a check that did not pass
        verdict = Verdict(False, False, "this is the finished version; run the cell with your own once more")
    else:
        with _sign_of_life(id):
            verdict = exercise.run(attempt)
    if verdict.passed:
        _remember(id)
        print(f"{id} {exercise.title}: passed")
        return attempt
    state = "not right yet" if verdict.attempted else "not attempted yet"
    line = f"{id} {exercise.title}: {state}{': ' if verdict.message else ''}{verdict.message}"
    if os.environ.get("KLVAE_EDU_STRICT") == "1":
        raise CheckFailed(line)
    print(f"{line} (the cells below use the finished version)")
    return exercise.reference


def whose(id: str, part: Any) -> str:
    """Return "your" if `part`, the result of `check`, is an answer that passed, else "the finished".

    Raises:
        ValueError: no such exercise.
    """
    return "the finished" if part is _find(id).reference else "your"


@contextlib.contextmanager
def _sign_of_life(id: str) -> Iterator[None]:
    """Print that the check is working, if it takes longer than a second."""
    if _unattended():
        yield
        return
    out = sys.stdout  # the attempt's own output is suppressed
    timer = threading.Timer(1.0, lambda: print(f"{id}: checking …", file=out, flush=True))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def hint(id: str) -> None:
    """Print the next hint for an exercise; the first call prints the first hint.

    Raises:
        ValueError: no such exercise.
    """
    hints = _find(id).hints
    given = _hints_given.get(id, 0)
    if given == len(hints):
        print(f'{id}: these were all {given} hints; solution("{id}") shows the finished version')
        return
    _hints_given[id] = given + 1
    print(f"{id}, hint {given + 1} of {len(hints)}: {hints[given]}")


def solution(id: str) -> None:
    """Show the source of the reference solution, and name the same code in the package.

    Raises:
        ValueError: no such exercise.
    """
    exercise = _find(id)
    places = ", ".join(f"{place.__module__}.{place.__qualname__}" for place in exercise.in_package)
    text = f"{inspect.getsource(exercise.reference).rstrip()}\n\n# In the package: {places}"
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        print(text)
    else:  # a notebook highlights the code of a Markdown block
        ipython.display.display({"text/markdown": f"```python\n{text}\n```", "text/plain": text}, raw=True)


def progress() -> None:
    """Print which exercises are passed: in this session, or in earlier ones in the same folder."""
    passed = _passed | _recall()
    for exercise in EXERCISES.values():
        print(f"{exercise.id}  {exercise.title:<45}  {'passed' if exercise.id in passed else 'open'}")
    print(f"{len(passed & EXERCISES.keys())} of {len(EXERCISES)} passed")


def _find(id: str) -> Exercise:
    if id in EXERCISES:
        return EXERCISES[id]
    padded = f"{id:0>4}"  # "1.2" is "01.2"
    near = [padded] if padded in EXERCISES else difflib.get_close_matches(str(id), EXERCISES, n=3, cutoff=0.0)
    raise ValueError(f"there is no exercise {id!r}; the nearest are {', '.join(near)}")


def _remember(id: str) -> None:
    """Record a passed exercise, also in the progress file if it can be written. The file is only for `progress`."""
    _passed.add(id)
    if _unattended():
        return
    try:
        with atomic_write(_PROGRESS_FILE) as temporary:
            temporary.write_text(json.dumps(sorted(_passed | _recall()), indent=0) + "\n", encoding="utf-8")
    except OSError:
        pass


def _recall() -> set[str]:
    if _unattended():
        return set()
    try:
        ids = json.loads(_PROGRESS_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return {id for id in ids if isinstance(id, str)} if isinstance(ids, list) else set()


def _unattended() -> bool:
    """Tell whether a test or the builder runs the notebook. Then no progress file is read or written."""
    return bool(os.environ.get("KLVAE_EDU_QUIET"))
