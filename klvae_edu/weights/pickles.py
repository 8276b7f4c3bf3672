"""Read a pickle as data: its opcodes build lists, dicts and text; nothing is imported, called or built by name.

An object of a class becomes a `Placeholder`. Python's `pickletools` splits the bytes into opcodes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MAX_STEPS = 500_000  # opcodes, and entries that they copy: 30 for each tensor, 120 with the state of an optimizer
_MAX_NUMBER = 2**32  # of a key: larger numbers could all have the same hash


class Placeholder(dict[Any, Any]):
    """Stand-in for an object of a class: its items and its state, as plain data."""


class PickleReader:
    """Reader of the pickles of one file.

    Attributes:
        foreign: names of the classes and functions that the pickles ask for, without those in `known`.
    """

    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        """Take what the names in a pickle stand for.

        Args:
            known: name with its module -> value; a function among the values is called with the pickle's arguments.
            persistent: returns the value of a persistent id, which stands for what is outside of the pickle.
        """
        self.foreign: dict[str, None] = {}
        self._known, self._persistent, self._steps = known, persistent, 0

    def read(self, stream: BinaryIO) -> Any:
        """Read one pickle, and no byte after it.

        Raises:
            ValueError: too many opcodes, or an unknown one.
            Exception: of another class, for a damaged pickle.
        """
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            self._count(1)
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("no end")

    def _step(self, opcode: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":  # a set's items need not be compared
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST" | "FROZENSET":
                stack.append(self._items())
            case "TUPLE":
                stack.append(tuple(self._items()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(opcode[-1]) :] = [tuple(stack[-int(opcode[-1]) :])]
            case "DICT":
                pairs = self._items()
                stack.append({})
                _set_items(stack[-1], pairs)
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                _extend(*self._target())
            case "SETITEM":
                _set_items(stack[-3], [stack.pop(-2), stack.pop()])
            case "SETITEMS":
                _set_items(*self._target())
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._items()
            case "DUP":
                stack.append(stack[-1])
            case "GLOBAL":
                stack.append(self._named(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [self._named(".".join(stack[-2:]))]
            case "INST":
                items = self._items()
                stack.append(_made(self._named(argument.replace(" ", ".", 1)), items))
            case "OBJ":
                made, *items = self._items()
                stack.append(_made(made, items))
            case "NEWOBJ_EX":
                stack[-3:] = [_made(stack[-3], stack[-2])]
            case "REDUCE" | "NEWOBJ":
                stack[-2:] = [_made(*stack[-2:])]
            case "BUILD":
                self._set_state(stack[-2], stack.pop())
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"the opcode {opcode}")
            case _:  # a number, a text, bytes, None
                stack.append(argument)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS:,} entries besides the numbers of its tensors")

    def _items(self) -> list[Any]:
        """Take the items after the last mark off the stack."""
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _target(self) -> tuple[Any, list[Any]]:
        items = self._items()
        return self._stack[-1], items

    def _named(self, name: str) -> Any:
        if name not in self._known:
            self.foreign[name] = None
        return self._known.get(name)

    def _set_state(self, target: Any, state: Any) -> None:
        """Keep the state of an object of a class; PyTorch's tensors and dicts have none that matters."""
        if isinstance(target, Placeholder):
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):  # attributes, slots
                if isinstance(part, dict):
                    self._count(len(part))
                    target.update(part)


def _made(made: Any, arguments: Any) -> Any:
    return made(*arguments) if callable(made) else Placeholder()


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise TypeError(type(target).__name__)


def _set_items(target: Any, items: list[Any]) -> None:
    """Set keys and values, given in turn; keys other than text and small numbers are left out with their values."""
    if not isinstance(target, dict):
        raise TypeError(type(target).__name__)
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str) or (isinstance(key, int) and abs(key) < _MAX_NUMBER):
            target[key] = value
