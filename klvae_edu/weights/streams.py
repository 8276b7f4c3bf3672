"""Write weights and configuration to a binary stream, and read them: a pipe, a socket, memory, an archive.

The bytes form a safetensors file with diffusers' names. They contain their own length, so that several models and other
data can follow each other in one stream.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

from torch import Tensor

from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.weights.files import MAX_JSON, on_cpu, order_metadata
from klvae_edu.weights.keys import to_diffusers
from klvae_edu.weights.pretrained import config_metadata, config_of_metadata

READ_SIZE = 1 << 24  # bytes read at a time
SOURCE = "the state in the stream"  # name of the source in error messages
_OTHER = "expected a stream that save_state wrote, got something else"


def write_state(config: AutoencoderKLConfig, weights: Mapping[str, Tensor], stream: BinaryIO) -> None:
    """Write weights and configuration to a binary stream and flush it. The stream stays open.

    Raises:
        ValueError: not a binary stream that is open for writing.
    """
    from safetensors.torch import save

    state = io.BytesIO(save(on_cpu(weights), metadata=config_metadata(config)))
    order_metadata(state)
    rest = state.getbuffer()
    try:
        while rest:
            written: int | None = stream.write(rest)
            if written is None and isinstance(stream, io.RawIOBase):
                raise BlockingIOError(f"{stream!r} takes no more at the moment; expected a stream that waits")
            rest = rest[len(rest) if written is None else written :]  # an unbuffered stream may write only a part
        stream.flush()
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"expected a binary stream that is open for writing, got {stream!r} ({error})") from error


class StateHeader(NamedTuple):
    """Beginning of a state in a stream: its bytes, the configuration, and the number of bytes that follow."""

    content: bytes
    config: AutoencoderKLConfig
    size: int


def read_header(stream: BinaryIO) -> StateHeader:
    """Read the configuration that `write_state` wrote, and how many bytes of tensors follow. No byte of them is read.

    Raises:
        ValueError: not a binary stream, an empty stream, a stream that ends too early, or other content.
    """
    length = _read(stream, 8, empty="is empty, or at its end")
    if int.from_bytes(length, "little") > MAX_JSON:  # other content: do not wait for that many bytes of a pipe
        raise ValueError(f"{_OTHER} (it begins with {length!r})")
    head = _read(stream, int.from_bytes(length, "little"))
    try:
        header = json.loads(head)
        metadata = header.pop("__metadata__", {})
        size = max(int(entry["data_offsets"][1]) for entry in header.values())
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{_OTHER} ({error})") from error
    config = config_of_metadata(metadata, SOURCE)
    if config is None:
        raise ValueError(f"{SOURCE} has no configuration: expected what save_state writes")
    return StateHeader(length + head, config, size)


def read_tensors(stream: BinaryIO, header: StateHeader, limit: int) -> dict[str, Tensor]:
    """Read the tensors that follow a header, under diffusers' names. No byte after them is read.

    Args:
        limit: number of bytes that they may have.

    Raises:
        ValueError: more bytes, a stream that ends too early, or other content.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if header.size > limit:
        raise ValueError(f"{SOURCE} claims {header.size:,} bytes of tensors; expected at most {limit:,}")
    try:
        return to_diffusers(load(_read(stream, header.size, before=header.content)))
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{_OTHER} ({error})") from error


def _read(stream: BinaryIO, size: int, empty: str = "ends too early", before: bytes = b"") -> bytes:
    """Read exactly `size` bytes in parts: a pipe may return fewer bytes, and a damaged header may give any size.

    Args:
        empty: phrase of the error message for a stream without any data.
        before: bytes to put before them.
    """
    parts, left = [before], size
    while left > 0:
        try:
            part = stream.read(min(left, READ_SIZE))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"expected a binary stream that is open for reading, got {stream!r} ({error})") from error
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise ValueError(
                f"expected a binary stream that waits for its data, got {stream!r}, which returned {part!r:.40}"
            )
        if not part:
            end = f"ends too early, after {size - left} of {size} bytes" if left < size else empty
            raise ValueError(f"the stream {end}: expected what save_state writes")
        parts.append(bytes(part))
        left -= len(part)
    return b"".join(parts)
