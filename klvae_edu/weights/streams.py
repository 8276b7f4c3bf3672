"""Weights and configuration through a binary stream: a pipe, a socket's file, memory, an entry of an archive.

The bytes are those of a safetensors file under diffusers' names. They tell their own length, so that several models,
and anything else, may follow each other in one stream.
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

PIECE = 1 << 24  # bytes read at a time
SOURCE = "the state in the stream"  # in errors


def write_state(config: AutoencoderKLConfig, weights: Mapping[str, Tensor], stream: BinaryIO) -> None:
    """Write weights and configuration to a binary stream and flush it. The stream stays open.

    Raises:
        ValueError: no binary stream, or one that is closed or only for reading.
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
            rest = rest[len(rest) if written is None else written :]  # an unbuffered stream may take a part
        stream.flush()
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"expected a binary stream that is open for writing, got {stream!r} ({error})") from error


def read_state(stream: BinaryIO) -> tuple[AutoencoderKLConfig, dict[str, Tensor]]:
    """Read what `write_state` wrote, from the position of `stream` and no byte further: configuration and weights.

    Raises:
        ValueError: no binary stream, an empty one, one that ends too early, or other content.
    """
    metadata, weights = _read_safetensors(stream)
    config = config_of_metadata(metadata, SOURCE)
    if config is None:
        raise ValueError(f"{SOURCE} has no configuration: expected what save_state writes")
    return config, to_diffusers(weights)


def _read_safetensors(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of the safetensors bytes that begin where `stream` stands; nothing after them is read."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    length = _read(stream, 8, "is empty, or at its end")
    if int.from_bytes(length, "little") > MAX_HEADER:  # other bytes: a pipe would be waited on for more of them
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


def _read(stream: BinaryIO, size: int, when_nothing_comes: str = "ends too early") -> bytes:
    """Exactly `size` bytes, piece by piece: pipes give what they have, and a damaged header may ask for any number."""
    data = bytearray()
    while len(data) < size:
        try:
            piece = stream.read(min(size - len(data), PIECE))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"expected a binary stream that is open for reading, got {stream!r} ({error})") from error
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise ValueError(
                f"expected a binary stream that waits for its data, got {stream!r}, which gave {piece!r:.40}"
            )
        if not piece:
            end = f"ends too early, after {len(data)} of {size} bytes" if data else when_nothing_comes
            raise ValueError(f"the stream {end}: expected what save_state writes")
        data += piece
    return bytes(data)
