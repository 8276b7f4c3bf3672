"""Refuse values that are not finite at the door of `torch.linalg`, so that an attempt gets a verdict.

`torch.linalg` does not check them. NumPy's and SciPy's functions are not guarded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DECOMPOSITIONS = ("aten::linalg_", "aten::_linalg_")  # and with them all that is in torch.linalg
NORM = "aten::linalg_vector_norm"  # no decomposition: NaN gives NaN


class FiniteLinalg(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which functions of `torch.linalg` raise a `ValueError` for NaN and infinite values.

    PyTorch's other names for them, such as `torch.svd`, call the same functions.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Check the arguments of `func`, an operator of ATen, and call it."""
        if func.name().startswith(DECOMPOSITIONS) and not func.name().startswith(NORM):
            check_finite(args)
        return func(*args, **(kwargs or {}))


def check_finite(arguments: Iterable[Any]) -> None:
    """Raise a `ValueError` if a tensor among `arguments` has NaN or infinite values."""
    for values in arguments:
        if isinstance(values, Tensor) and not values.isfinite().all():
            raise ValueError(
                "torch.linalg got NaN or infinite values, as from the root of a negative number: "
                "an entry of a product of matrices may be negative"
            )
