"""Attempts, and the one way to reach them: a recipe and values go in, values come out.

    judge                           attempt
    run(recipe, *values)    -->     recipe(answer, *values), where the answer lives
    values                  <--     what it returns, or an exception

A recipe is a function of this package that is decorated with `@recipe`, or a `functools.partial` of one. Values are
tensors, numbers, text, None, data types, recipes, and lists, tuples and dictionaries of values. Nothing else passes, so
that the answer may live in another process than its judge; `values` turns them into bytes and back.
"""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Recipe = Callable[..., Any]
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
RECIPES: dict[str, Recipe] = {}

_LONGEST_LINE = 100  # characters of the attempt's line that a message quotes
_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def recipe(function: AnyFunction) -> AnyFunction:
    """Register a function (answer, *values) -> values under its name, so that a judge may ask for it."""
    RECIPES[name_of(function)] = function
    return function


def name_of(function: Any) -> str:
    """Return the name under which a function is registered, or would be."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


class Blank(Exception):
    """Signal that the attempt is the unchanged skeleton."""


class OpenGap(Exception):
    """Signal that some gaps of the skeleton are still open."""


class NothingReturned(Exception):
    """Signal that the attempt returned None. No skeleton does, so the learner has written something."""


class Raised(Exception):
    """Signal that the attempt raised an exception: its type and text in one line, and the attempt's own line."""

    def __init__(self, text: str, line: str = "") -> None:
        super().__init__(text, line)
        self.text, self.line = text, line


SIGNALS = (Blank, OpenGap, NothingReturned, Raised)


class Opaque:
    """Stand-in for a result that is no value. Only the name of its type is known."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name


class Attempt(ABC):
    """Somebody's answer to an exercise."""

    @abstractmethod
    def run(self, recipe: Recipe, *values: Any) -> Any:
        """Return `recipe(answer, *values)`.

        Raises:
            Blank, OpenGap, NothingReturned: as `call` does.
            Raised: any other exception.
        """


class Local(Attempt):
    """An answer in this process."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def run(self, recipe: Recipe, *values: Any) -> Any:
        """Return `recipe(answer, *values)`; raises as `Attempt.run`."""
        try:
            return plain(recipe(self._answer, *values))
        except SIGNALS:
            raise
        except (Exception, SystemExit) as error:
            raise Raised(one_line(error), _line_of(error)) from error


def plain(value: Any) -> Any:
    """Keep values, detached from autograd, and replace everything else by an `Opaque`."""
    if isinstance(value, Tensor):
        is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_complex()
        return value.detach() if is_plain else Opaque(type(value).__name__)
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, Opaque)):
        return value
    inner = value.func if isinstance(value, partial) else value
    known = callable(inner) and RECIPES.get(name_of(inner)) is inner
    return value if known else Opaque(type(value).__name__)


def type_name(value: Any) -> str:
    """Return the name of the type that a value had where it was made."""
    return value.type_name if isinstance(value, Opaque) else type(value).__name__


@recipe
def kind(answer: Any) -> dict[str, Any]:
    """Describe an answer: whether it is callable, a class, a class of modules; its own name and its type's."""
    return {
        "callable": callable(answer),
        "class": isinstance(answer, type),
        "module": isinstance(answer, type) and issubclass(answer, nn.Module),
        "name": getattr(answer, "__name__", ""),
        "type": type(answer).__name__,
    }


@recipe
def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an attempt, and return its result.

    Raises:
        Blank: the function is still the skeleton (`raise NotImplementedError`, `a, b = ...` or `return ...`).
        OpenGap: another `...` is still in it.
        NothingReturned: the function returned None.
    """
    follows = torch.is_grad_enabled()
    try:
        result = function(*arguments)
        if torch.is_grad_enabled() != follows:
            raise ValueError("gradients are left switched off or on for the cells below: use `with torch.no_grad():`")
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
    finally:
        torch.set_grad_enabled(follows)
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
    raised = error if isinstance(error, Raised) else Raised(one_line(error), _line_of(error))
    if raised.text.startswith("RecursionError"):
        return "it calls itself without end: has a function of the library, or your own of before, the same name?"
    return f"it raised {raised.text}{f', in the line `{raised.line}`' if raised.line else ''}"


def _line_of(error: BaseException) -> str:
    """Return the line of the attempt in which an exception was raised or passed through; empty if it is not known."""
    lines = [
        linecache.getline(frame.f_code.co_filename, number).strip()
        for frame, number in traceback.walk_tb(error.__traceback__)
        if not _is_installed(frame.f_code.co_filename)
    ]
    line = lines[-1] if lines else ""
    return line if len(line) <= _LONGEST_LINE else ""


def _is_installed(file: str) -> bool:
    """Tell whether a file belongs to this package, to another installed one, or to Python."""
    return file.startswith((_PACKAGE, *_LIBRARIES, "<frozen"))


def one_line(error: BaseException) -> str:
    """Return the type and text of an exception, at most 160 characters."""
    if isinstance(error, Raised):
        return error.text
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else f"{text[:157]}..."
