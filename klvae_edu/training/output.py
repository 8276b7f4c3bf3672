"""Standard output and standard error whose failing writes do not end a run: a closed pipe or window, a full disk."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

FAILURES = (OSError, ValueError)  # ValueError: the stream is closed, or its encoding lacks a character


class LastingStream:
    """A text stream without errors: text that cannot be written goes to the stream `instead`, if there is one.

    `klvae train | tee log` ends with the command to resume. Ctrl-C ends `tee` as well, and before the trainer: then the
    command appears on standard error.
    """

    def __init__(self, stream: io.TextIOWrapper, instead: LastingStream | None = None) -> None:
        self.stream, self.instead = stream, instead

    def write(self, text: str) -> int:
        """Write `text` without a delay: an error at the end of the process would come too late."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except FAILURES:
            if self.instead is not None:
                self.instead.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream. Errors are ignored."""
        with suppress(*FAILURES):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def make_output_last() -> tuple[Any, Any]:
    """Replace `sys.stdout` and `sys.stderr` by streams without errors, and return what they were.

    Streams that are not files, such as those of a notebook, stay.
    """
    before = sys.stdout, sys.stderr
    sys.stderr = _lasting(sys.stderr)
    sys.stdout = _lasting(sys.stdout, sys.stderr if isinstance(sys.stderr, LastingStream) else None)
    return before


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within this context, no write to `sys.stdout` or `sys.stderr` raises an error."""
    before = make_output_last()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, instead: LastingStream | None = None) -> Any:
    if stream is None:  # the process was started with this stream closed
        stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    return LastingStream(stream, instead) if isinstance(stream, io.TextIOWrapper) else stream
