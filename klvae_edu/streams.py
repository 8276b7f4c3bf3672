"""Weights and configuration through a binary stream: a pipe, a socket's file, memory, an entry of an archive.

The bytes are those of a safetensors file under diffusers' names. They tell their own length, so that several models,
and anything else, may follow each other in one stream.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from torch import Tensor

from klvae_edu.checkpoints import FREE_FIELDS, check_finite, check_fit, own_config, own_metadata, weights_to_write
from klvae_edu.names import to_diffusers, uncompiled
from klvae_edu.weight_files import LONGEST_HEADER, on_cpu, order_metadata

if TYPE_CHECKING:
    from klvae_edu.model_mixin import ModelMixin

PIECE = 1 << 24  # bytes read at a time
SOURCE = "the state in the stream"  # in errors


def save_state(model: ModelMixin, stream: BinaryIO) -> None:
    """Write `model` to a binary stream and flush it. The stream stays open.

    Raises:
        ValueError: no binary stream, or one that is closed or only for reading; a model that is no longer the one of
            its configuration.
    """
    from safetensors.torch import save

    state = io.BytesIO(save(on_cpu(weights_to_write(model)), metadata=own_metadata(model)))
    order_metadata(state)
    rest = state.getbuffer()
    try:
        while rest:
            written: int | None = stream.write(rest)
            if written is None and isinstance(stream, io.RawIOBase):
                raise BlockingIOError(f"{stream!r} takes no more at the moment; expected a stream that waits")
            rest = rest[len(rest) if written is None else written :]  # a stream without a buffer may take a part
        stream.flush()
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"expected a binary stream that is open for writing, got {stream!r} ({error})") from error


def load_state(model: ModelMixin, stream: BinaryIO) -> None:
    """Read what `save_state` wrote, from where `stream` stands and no byte further, into `model`.

    The model keeps its data type and device. It takes over how latents are scaled, and the other fields that the
    network does not depend on.

    Raises:
        ValueError: a state of another architecture (the fields are listed), no binary stream, an empty one, or one that
            ends too early. The model is as it was.
    """
    metadata, weights = _read_state(stream)
    config = own_config(metadata, SOURCE)
    if config is None:
        raise ValueError(f"{SOURCE} has no configuration: expected what save_state writes")
    expected, got = model.config.to_dict(), config.to_dict()
    differing = [name for name in expected if name not in FREE_FIELDS and expected[name] != got[name]]
    if differing:
        listed = "; ".join(f"{name}: expected {expected[name]}, got {got[name]}" for name in differing)
        raise ValueError(f"{SOURCE} is of another architecture: {listed}")
    weights, names = to_diffusers(weights), {name: uncompiled(name) for name in model.state_dict()}
    check_fit({names[name]: tensor for name, tensor in model.state_dict().items()}, weights, SOURCE)
    weights = {name: tensor.to(model.dtype) for name, tensor in weights.items()}
    check_finite(weights, SOURCE)
    model.load_state_dict({name: weights[plain] for name, plain in names.items()})
    model.config = replace(model.config, **{name: getattr(config, name) for name in FREE_FIELDS})


def _read_state(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of the safetensors bytes that begin where `stream` stands; nothing after them is read."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    length = _read(stream, 8, "is empty, or at its end")
    if int.from_bytes(length, "little") > LONGEST_HEADER:  # other bytes: a pipe would be waited on for more of them
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
