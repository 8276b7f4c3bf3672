"""`Exercise`, the verdict on an attempt, and the sandbox in which attempts run."""

from __future__ import annotations

import contextlib
import inspect
import io
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from klvae_edu.exercises.attempt import Attempt, Blank, Local, explain, recipe
from klvae_edu.exercises.gaps import first_open_gap

Answer = TypeVar("Answer", bound=Callable[..., Any])
Judge = Callable[[Attempt], str | None]  # describes the mistake in an attempt; None: it passes


class Mistakes(list[tuple[str, Callable[..., Any]]]):
    """Wrong answers to an exercise, as students write them, each behind its message.

    Above a function or a class, `@MISTAKES("the message")` registers it. The judge names a mistake by them, and the
    tests take each of them as an answer.
    """

    def __call__(self, message: str) -> Callable[[Answer], Answer]:
        """Register the decorated answer under `message`, after the earlier ones."""

        def register(answer: Answer) -> Answer:
            self.append((message, answer))
            return answer

        return register


@dataclass(frozen=True)
class Verdict:
    """Result of `Exercise.run`. The message is one line; it is empty if the attempt passed."""

    passed: bool
    attempted: bool
    message: str = ""


@dataclass(frozen=True)
class Exercise:
    """One exercise of the course."""

    id: str  # "NN.M": notebook and number
    title: str
    notebook: str  # the notebook's name, without .ipynb
    minutes: int  # approximate time for a reader
    difficulty: int  # 1 (easy) to 5
    reference: Any  # the solution: returned by `check`, shown by `solution`
    in_package: tuple[Any, ...]  # functions or classes of the package that do the same
    hints: tuple[str, ...]  # from a small hint to nearly the solution
    judge: Judge
    mistakes: Sequence[tuple[str, Any]] = ()  # wrong answers, each behind its message

    def run(self, answer: Any) -> Verdict:
        """Judge an answer in a sandbox: its exceptions, output and changes of random states have no effect outside."""
        if answer is None or answer is ...:
            return Verdict(passed=False, attempted=False)
        with sandbox():
            return self.verdict(Local(answer))

    def verdict(self, attempt: Attempt) -> Verdict:
        """Judge an attempt, wherever it lives."""
        try:
            complaint = self.judge(attempt) or self._judge_defaults(attempt)
        except Blank:
            line = attempt.run(first_open_gap, self.id)
            if line is None:
                return Verdict(passed=False, attempted=False)
            complaint = f"a gap `...` is still open: {line}"
        except Exception as error:
            complaint = explain(error)
        return Verdict(passed=complaint is None, attempted=True, message=complaint or "")

    def _judge_defaults(self, attempt: Attempt) -> str | None:
        """Compare the defaults of the arguments, by position: names are free."""
        for (name, wanted), (_, found) in zip(defaults_of(self.reference), attempt.run(defaults_of), strict=False):
            if wanted != "none" and found != wanted:
                return f"the values are right, but the default of {name} is {found}: {wanted} is asked for"
        return None


@recipe
def defaults_of(answer: Any) -> list[tuple[str, str]]:
    """Return (name, default in words) of each parameter, "none" where there is no default; empty if that is unknown."""
    try:
        parameters = [*inspect.signature(answer).parameters.values()]
    except (TypeError, ValueError):
        return []
    if any(it.kind in (it.VAR_POSITIONAL, it.VAR_KEYWORD) for it in parameters):
        return []
    return [(it.name, "none" if it.default is it.empty else f"{it.default!r:.40}") for it in parameters]


@contextlib.contextmanager
def sandbox() -> Iterator[None]:
    """Suppress output and warnings, enable gradients, and restore every random state at the end."""
    states, dtype = (random.getstate(), np.random.get_state()), torch.get_default_dtype()
    silence = io.StringIO()
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with (
        torch.random.fork_rng(devices=list(cuda)),
        torch.enable_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_default_dtype(dtype)
