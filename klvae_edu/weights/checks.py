"""Check weights before they are loaded into a model: data types, names and shapes, finite values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from klvae_edu.config import AutoencoderKLConfig

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # data types of a model
MAX_TENSORS = 10_000  # of a model; Stable Diffusion's autoencoder has 248
_TENSORS_OF_BLOCK = 8  # weights and biases of two norms and two convolutions
MAX_LISTED = 20  # maximum number of tensors of one kind in an error message


def check_dtype(dtype: object) -> None:
    """Raise a `ValueError` unless `dtype` is None or one of `DTYPES`."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected a floating-point type ({', '.join(map(str, DTYPES))}), got {dtype!r}")


def check_size(config: AutoencoderKLConfig) -> None:
    """Raise a `ValueError` if the network of `config` has too many layers to be built in a moment."""
    levels, layers = len(config.block_out_channels), config.layers_per_block
    if levels * (2 * layers + 1) * _TENSORS_OF_BLOCK > MAX_TENSORS:
        raise ValueError(
            f"expected a network of at most {MAX_TENSORS:,} tensors, got one of {levels:,} levels (block_out_channels) "
            f"with {layers:,} blocks each (layers_per_block)"
        )


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise a `ValueError` that lists missing, unknown and misshapen tensors (the first 20 of each kind), if any.

    If most of the tensors are others, it is one line.
    """
    common, others = expected.keys() & weights.keys(), weights.keys() - expected.keys()
    if 2 * len(common) < len(expected) and 2 * len(others) > len(weights):
        raise ValueError(
            f"{source}: the weights of another network than AutoencoderKL's: {len(common)} of its {len(expected)} "
            f"tensors are there, and {len(others)} others, such as {', '.join(sorted(others)[:3])}"
        )
    problems = {
        "missing": [f"{name} {tuple(expected[name].shape)}" for name in expected.keys() - weights.keys()],
        "unknown": [f"{name} {tuple(weights[name].shape)}" for name in weights.keys() - expected.keys()],
        "misshapen": [
            f"{name}, expected {tuple(expected[name].shape)}, got {tuple(weights[name].shape)}"
            for name in expected.keys() & weights.keys()
            if expected[name].shape != weights[name].shape
        ],
    }
    lines = [f"\n  {kind}: {line}" for kind, names in problems.items() for line in shortened(sorted(names))]
    if lines:
        raise ValueError(f"{source}: the weights do not fit the configuration (in diffusers' names):{''.join(lines)}")


def check_finite(weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise a `ValueError` that names the tensors with NaN or infinite values, if any."""
    # PyTorch before 2.9 has no `isfinite` of 8-bit floats.
    wide = {name: tensor.half() if tensor.element_size() == 1 else tensor for name, tensor in weights.items()}
    bad = sorted(f"{name} ({weights[name].dtype})" for name, tensor in wide.items() if not tensor.isfinite().all())
    if bad:
        raise ValueError(f"{source}: expected finite weights, found NaN or infinity in {', '.join(shortened(bad))}")


def checked_copies(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str | Path, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Copy `weights` for a model whose state is like `expected`, converted to `dtype` (None: unchanged).

    Copies are needed because tensors from a file may be memory-mapped: they would change when the file changes.

    Raises:
        ValueError: `weights` do not fit, are not all of one floating-point type, or are not finite.
    """
    check_fit(expected, weights, source)
    counts = [name for name, tensor in expected.items() if not tensor.is_floating_point()]  # of batches, in a BatchNorm
    counted = {name: weights[name].detach().to(expected[name].dtype, copy=True) for name in counts}
    weights = {name: tensor for name, tensor in weights.items() if name not in counted}
    kinds = {(tensor.dtype, tensor.layout) for tensor in weights.values()}
    if not all(kind.is_floating_point and layout is torch.strided for kind, layout in kinds):
        names = ", ".join(sorted(f"{kind} ({layout})" for kind, layout in kinds))
        raise ValueError(f"{source}: expected weights of a floating-point type, dense (torch.strided), got {names}")
    if dtype is None and (len(kinds) > 1 or not all(kind in DTYPES for kind, _ in kinds)):
        names = ", ".join(sorted(str(kind) for kind, _ in kinds))
        raise ValueError(
            f"{source}: expected weights of one type a model computes in, got {names}; "
            "pass dtype=…, in a command --dtype"
        )
    check_finite(weights, source)
    if too_large := [
        name for name, tensor in weights.items() if dtype and not tensor.detach().to(dtype).isfinite().all()
    ]:
        raise ValueError(f"{source}: {dtype} cannot hold the values of {', '.join(shortened(sorted(too_large)))}")
    copies = {name: tensor.detach().to(dtype or tensor.dtype, copy=True) for name, tensor in weights.items()}
    return copies | counted


def shortened(lines: list[str]) -> list[str]:
    """Keep the first `MAX_LISTED` lines and add one line with the number of the others."""
    more = len(lines) - MAX_LISTED
    return lines if more <= 0 else [*lines[:MAX_LISTED], f"… and {more} more"]
