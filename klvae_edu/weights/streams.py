"""Write weights and configuration to a binary stream, and read them: a pipe, a socket, memory, an archive.

The bytes form a safetensors file with diffusers' names. They contain their own length, so that several models and other
data can follow each other in one stream.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from torch import Tensor

from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.weights.files import MAX_HEADER, on_cpu, order_metadata
from klvae_edu.weights.keys import to_diffusers
from klvae_edu.weights.pretrained import config_metadata, config_of_metadata

READ_SIZE = 1 << 24  # bytes read at a time
SOURCE = "the state in the stream"  # name of the source in error messages


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


def read_state(stream: BinaryIO) -> tuple[AutoencoderKLConfig, dict[str, Tensor]]:
    """Read the configuration and the weights that `write_state` wrote. No byte after them is read.

    Raises:
        ValueError: not a binary stream, an empty stream, a stream that ends too early, or other content.
    """
    metadata, weights = _read_safetensors(stream)
    config = config_of_metadata(metadata, SOURCE)
    if config is None:
        raise ValueError(f"{SOURCE} has no configuration: expected what save_state writes")
    return config, to_diffusers(weights)


def _read_safetensors(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read metadata and tensors of a safetensors file at the current position of `stream`, and nothing after it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    length = _read(stream, 8, "is empty, or at its end")
    if int.from_bytes(length, "little") > MAX_HEADER:  # other content: do not wait for that many bytes of a pipe
        raise ValueError(f"expected a stream that save_state wrote, got something else (it begins with {length!r})")
    head = _read(stream, int.from_bytes(length, "little"))
    try:
        header = json.loads(head)
        metadata = header.pop("__metadata__", {})
        size = max(int(entry["data_offsets"][1]) for entry in header.values())
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"expected a stream that save_state wrote, got something else ({error})") from error
    body = _read(stream, size)
    try:
        return metadata, load(length + head + body)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"expected a stream that save_state wrote, got something else ({error})") from error


def _read(stream: BinaryIO, size: int, empty: str = "ends too early") -> bytes:
    """Read exactly `size` bytes in parts: a pipe may return fewer bytes, and a damaged header may give any size.

    Args:
        empty: phrase of the error message for a stream without any data.
    """
    data = bytearray()
    while len(data) < size:
        try:
            part = stream.read(min(size - len(data), READ_SIZE))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"expected a binary stream that is open for reading, got {stream!r} ({error})") from error
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise ValueError(
                f"expected a binary stream that waits for its data, got {stream!r}, which returned {part!r:.40}"
            )
        if not part:
            end = f"ends too early, after {len(data)} of {size} bytes" if data else empty
            raise ValueError(f"the stream {end}: expected what save_state writes")
        data += part
    return bytes(data)
