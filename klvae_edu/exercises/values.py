"""Values that judges and attempts exchange, as bytes: tensors by safetensors, the rest by JSON. Nothing is executed."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from klvae_edu.exercises.attempt import RECIPES, Opaque, name_of, plain

_LENGTH = 8  # bytes that give the length of the JSON


def to_bytes(value: Any) -> bytes:
    """Encode values. Everything else arrives as an `Opaque`."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_to_json(plain(value), tensors)).encode()
    return len(text).to_bytes(_LENGTH, "little") + text + safetensors.torch.save(tensors)


def from_bytes(data: bytes) -> Any:
    """Decode what `to_bytes` made.

    Raises:
        ValueError: other bytes.
    """
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    try:
        tensors = safetensors.torch.load(data[end:])
        return _from_json(json.loads(data[_LENGTH:end]), tensors)
    except Exception as error:  # of the JSON, of safetensors, or a name that is not there
        raise ValueError(f"expected values of an attempt, got other bytes ({type(error).__name__})") from error


def _to_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Describe a value: plain JSON where that has the type, else [kind, content]."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.contiguous().clone()  # safetensors wants each to own its memory
        return ["tensor", name]
    if isinstance(value, (list, tuple)):
        return ["list" if isinstance(value, list) else "tuple", [_to_json(item, tensors) for item in value]]
    if isinstance(value, dict):
        return ["dict", {key: _to_json(item, tensors) for key, item in value.items()}]
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).removeprefix("torch.")]
    if isinstance(value, Opaque):
        return ["opaque", value.type_name]
    if isinstance(value, partial):
        return ["partial", [_to_json(it, tensors) for it in (value.func, value.args, value.keywords)]]
    return ["recipe", name_of(value)]


def _from_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    match kind:
        case "tensor":
            return tensors[content]
        case "list":
            return [_from_json(item, tensors) for item in content]
        case "tuple":
            return tuple(_from_json(item, tensors) for item in content)
        case "dict":
            return {key: _from_json(item, tensors) for key, item in content.items()}
        case "dtype":
            return {str(it): it for it in vars(torch).values() if isinstance(it, torch.dtype)}[f"torch.{content}"]
        case "opaque":
            return Opaque(content)
        case "partial":
            function, arguments, named = (_from_json(item, tensors) for item in content)
            return partial(function, *arguments, **named)
        case "recipe":
            return RECIPES[content]
    raise ValueError(kind)
