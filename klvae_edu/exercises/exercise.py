"""An exercise, the verdict on an attempt, and the sandbox in which attempts run."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Judge = Callable[[Any], str | None]  # what is wrong with an attempt, or None


@dataclass(frozen=True)
class Verdict:
    """What `Exercise.run` says of an attempt. The message is one line, empty when the attempt passed."""

    passed: bool
    attempted: bool
    message: str = ""


@dataclass(frozen=True)
class Exercise:
    """One exercise of the course."""

    id: str  # "NN.M": notebook and number
    title: str
    notebook: str  # the notebook's name, without .ipynb
    minutes: int  # a reader's, roughly
    difficulty: int  # 1 (easy) to 5
    reference: Any  # the finished version: what `check` goes on with, and `solution` shows
    in_package: tuple[Any, ...]  # where the package does the same
    hints: tuple[str, ...]  # from a nudge to nearly everything
    judge: Judge

    def run(self, attempt: Any) -> Verdict:
        """Judge an attempt. Whatever the attempt does, nothing is raised, printed, or left changed."""
        if attempt is None or attempt is ...:
            return Verdict(passed=False, attempted=False)
        with _sandbox():
            try:
                complaint = self.judge(attempt)
            except Blank:
                return Verdict(passed=False, attempted=False)
            except (Exception, SystemExit) as error:
                complaint = explain(error)
        return Verdict(passed=complaint is None, attempted=True, message=complaint or "")


class Blank(Exception):
    """The skeleton as it was handed out."""


class OpenGap(Exception):
    """A skeleton of which some gaps are filled."""


class NothingReturned(Exception):
    """An attempt without a result. No skeleton returns None, so that something was written."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns.

    Raises:
        Blank: it is still the skeleton (`raise NotImplementedError`, `a, b = ...` or `return ...`).
        OpenGap: it ran into another `...`.
        NothingReturned: it returned None.
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
    if all(open_gaps):
        raise Blank
    if any(open_gaps):
        raise OpenGap("one of the results")
    return result


def _raised_in_pytorch(error: BaseException) -> bool:
    """Whether something that is not there was called, such as the forward of an nn.ModuleList: that is no blank."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith("torch.")


def explain(error: BaseException) -> str:
    """One line on an exception that an attempt raised."""
    if isinstance(error, OpenGap):
        return f"a gap `...` is still open ({error})"
    if isinstance(error, NothingReturned):
        return "it returns None: is a return missing?"
    return f"it raised {one_line(error)}"


def one_line(error: BaseException) -> str:
    """The exception's type and text, shortened."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextlib.contextmanager
def _sandbox() -> Iterator[None]:
    """Silence, gradients on, and every random state as it was before."""
    states = random.getstate(), np.random.get_state()
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
