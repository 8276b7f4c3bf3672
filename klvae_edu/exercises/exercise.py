"""`Exercise`, the verdict on an attempt, and the sandbox in which attempts run."""

from __future__ import annotations

import contextlib
import io
import linecache
import random
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from klvae_edu.exercises.gaps import first_open_gap

Answer = TypeVar("Answer", bound=Callable[..., Any])
Judge = Callable[[Any], str | None]  # describes the mistake in an attempt; None: it passes


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


_LONGEST_LINE = 100  # characters of the attempt's line that a message quotes
_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


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

    def run(self, attempt: Any) -> Verdict:
        """Judge an attempt in a sandbox: its exceptions, output and changes of random states have no effect outside."""
        if attempt is None or attempt is ...:
            return Verdict(passed=False, attempted=False)
        with _sandbox():
            try:
                complaint = self.judge(attempt)
            except Blank:
                line = first_open_gap(self.id, attempt)
                if line is None:
                    return Verdict(passed=False, attempted=False)
                complaint = f"a gap `...` is still open: {line}"
            except (Exception, SystemExit) as error:
                complaint = explain(error)
        return Verdict(passed=complaint is None, attempted=True, message=complaint or "")


class Blank(Exception):
    """Signal that the attempt is the unchanged skeleton."""


class OpenGap(Exception):
    """Signal that some gaps of the skeleton are still open."""


class NothingReturned(Exception):
    """Signal that the attempt returned None. No skeleton does, so the learner has written something."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an attempt, and return its result.

    Raises:
        Blank: the function is still the skeleton (`raise NotImplementedError`, `a, b = ...` or `return ...`).
        OpenGap: another `...` is still in it.
        NothingReturned: the function returned None.
    """
    try:
        result = function(*arguments)
    except NotImplementedError as error:
        if _raised_in_pytorch(error):
            raise
        raise Blank from None
    except Exception as error:
        if "cannot unpack non-iterable ellipsis" in str(error):
            raise Blank from None
        if "ellipsis" in str(error).lower():
            raise OpenGap(one_line(error)) from None
        raise
    if result is None:
        raise NothingReturned
    open_gaps = [value is ... for value in (result if isinstance(result, (tuple, list)) else (result,))]
    if open_gaps and all(open_gaps):
        raise Blank
    if any(open_gaps):
        raise OpenGap("one of the results")
    return result


def _raised_in_pytorch(error: BaseException) -> bool:
    """Tell whether PyTorch raised the error, as for the missing forward of an nn.ModuleList. This is no skeleton."""
    if "not implemented for" in str(error):  # by its C++ code, which has no frame
        return True
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith("torch.")


def explain(error: BaseException) -> str:
    """Describe in one line the exception that an attempt raised."""
    if isinstance(error, OpenGap):
        return f"a gap `...` is still open ({error})"
    if isinstance(error, NothingReturned):
        return "it returns None: is a return missing?"
    if isinstance(error, RecursionError):
        return "it calls itself without end: has a function of the library, or your own of before, the same name?"
    return f"it raised {one_line(error)}{_where(error)}"


def _where(error: BaseException) -> str:
    """Quote the line of the attempt in which an exception was raised or passed through; empty if it is not known."""
    lines = [
        linecache.getline(frame.f_code.co_filename, number).strip()
        for frame, number in traceback.walk_tb(error.__traceback__)
        if not _is_installed(frame.f_code.co_filename)
    ]
    line = lines[-1] if lines else ""
    return f", in the line `{line}`" if line and len(line) <= _LONGEST_LINE else ""


def _is_installed(file: str) -> bool:
    """Tell whether a file belongs to this package, to another installed one, or to Python."""
    return file.startswith((_PACKAGE, *_LIBRARIES, "<frozen"))


def one_line(error: BaseException) -> str:
    """Return the type and text of an exception, at most 160 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextlib.contextmanager
def _sandbox() -> Iterator[None]:
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
