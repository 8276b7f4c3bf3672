"""A channel between two processes: values in both directions, each as its length and its bytes."""

from __future__ import annotations

from typing import IO, Any

from klvae_edu.exercises.values import from_bytes, to_bytes

LONGEST = 1 << 28  # bytes of one message: what the largest probe of the course needs, many times over
_HEAD = 8


class Closed(BaseException):
    """Signal that the other end is gone, or has sent what is no message. No judge catches it."""


class Channel:
    """Two pipes: values are received from the one and sent to the other."""

    def __init__(self, receives: IO[bytes], sends: IO[bytes]) -> None:
        self._receives, self._sends = receives, sends

    def send(self, value: Any) -> None:
        """Send a value; raises `Closed`."""
        data = to_bytes(value)
        try:
            self._sends.write(len(data).to_bytes(_HEAD, "little") + data)
            self._sends.flush()
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            raise Closed from error

    def receive(self) -> Any:
        """Return the next value; raises `Closed`."""
        length = int.from_bytes(self._read(_HEAD), "little")
        if length > LONGEST:
            raise Closed
        try:
            return from_bytes(self._read(length))
        except ValueError as error:
            raise Closed from error

    def _read(self, count: int) -> bytes:
        try:
            data = self._receives.read(count)
        except (OSError, ValueError) as error:
            raise Closed from error
        if len(data) < count:
            raise Closed
        return data
