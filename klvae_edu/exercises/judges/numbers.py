"""Judge functions that compute plain numbers. `functions` judges those that compute tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from klvae_edu.exercises.attempt import Attempt, Local, call, kind, recipe
from klvae_edu.exercises.exercise import Judge

Probe = tuple[Any, ...]
Numbers = tuple[float, ...]


def judge_numbers(
    reference: Callable[..., Any],
    probes: Sequence[Probe],
    mistakes: Sequence[tuple[str, Callable[..., Any]]],
    given: Callable[[Probe], str],
    asked: str = "one number",
) -> Judge:
    """Make a judge of functions that return one number, or several.

    Args:
        reference: the reference solution.
        probes: arguments for the calls.
        mistakes: message, and code that makes the mistake. It is recognised if it agrees on all probes.
        given: describes a probe in words, for an answer that no mistake explains.
        asked: the result of the function, in words.
    """
    several = any(isinstance(reference(*copy.deepcopy(arguments)), (list, tuple)) for arguments in probes)

    def numbers(attempt: Attempt) -> list[Numbers | None]:
        return [attempt.run(numbers_of, arguments, several)["numbers"] for arguments in probes]

    expected = numbers(Local(reference))

    def judge(attempt: Attempt) -> str | None:
        about = attempt.run(kind)
        if not about["callable"]:
            return f"expected the function itself, got its result or another object ({about['type']})"
        results = []
        for arguments, right in zip(probes, expected, strict=True):
            found = attempt.run(numbers_of, arguments, several)
            if found["changed"]:
                return "it changes its input: work on a copy, such as values[::-1]"
            if found["numbers"] is None or right is None or len(found["numbers"]) != len(right):
                return f"expected {asked}, got {found['type']}"
            results.append(found["numbers"])
        if _agree(results, expected):
            return None
        for message, code in mistakes:
            if _agree(results, numbers(Local(code))):
                return message
        wrong = next(i for i, found in enumerate(results) if not _agree([found], [expected[i]]))
        wanted, yours = _in_words(expected[wrong]), _in_words(results[wrong])
        return f"for {given(probes[wrong])} {wanted} was expected, and yours is {yours}"

    return judge


@recipe
def numbers_of(answer: Any, probe: Probe, several: bool) -> dict[str, Any]:
    """Return the result as numbers, None if it has others; its type; and whether the arguments were changed."""
    own = copy.deepcopy(probe)
    result = call(answer, *own)
    return {"numbers": _numbers(result, several), "type": _type(result), "changed": own != probe}


def _type(result: Any) -> str:
    """Return the type of a result in words; of several, theirs."""
    if isinstance(result, (list, tuple)) and result:
        return f"a {type(result).__name__} of {', '.join(type(value).__name__ for value in result)}"
    return type(result).__name__


def _numbers(result: Any, several: bool) -> Numbers | None:
    """Convert a number, or with `several` a sequence of numbers, to a tuple; None for anything else, such as text."""
    try:
        values = [*result] if isinstance(result, (list, tuple)) else [*np.asarray(result).reshape(-1)]
        if not several and (isinstance(result, (list, tuple)) or np.ndim(result) > 0):
            return None
        if any(isinstance(value, (str, bytes)) for value in values):
            return None
        return tuple(float(value) for value in values)
    except (TypeError, ValueError, RuntimeError):
        return None


def _in_words(numbers: Numbers | None) -> str:
    return " and ".join(f"{number:.4g}" for number in numbers or ())


def _agree(results: Sequence[Numbers | None], others: Sequence[Numbers | None]) -> bool:
    return all(
        a is not None
        and b is not None
        and len(a) == len(b)
        and all(math.isclose(x, y, rel_tol=1e-5) for x, y in zip(a, b, strict=True))
        for a, b in zip(results, others, strict=True)
    )
