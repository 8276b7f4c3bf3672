"""Guard of decompositions: what is not finite is refused at the door; everything else is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from klvae_edu.exercises.judges import linalg
from klvae_edu.exercises.judges.linalg import FiniteLinalg, check_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), complex(0, float("nan"))])
def test_a_tensor_that_is_not_finite_is_refused_in_one_line(value: complex) -> None:
    values = torch.ones(3, 3, dtype=torch.complex128 if isinstance(value, complex) else torch.float64)
    values[1, 2] = value
    with pytest.raises(ValueError, match=r"torch\.linalg got NaN or infinite values, as from the root of a negative"):
        check_finite([torch.ones(2), values, "L"])


def test_finite_tensors_and_other_arguments_pass() -> None:
    check_finite([torch.eye(3), torch.arange(3), None, "L", True])


def test_inside_of_the_context_the_arguments_are_checked() -> None:
    """`torch.linalg.cross` is arithmetic of three numbers: harmless should the guard fail, unlike a decomposition."""
    bad = torch.tensor([1.0, float("nan"), 2.0])
    assert torch.linalg.cross(bad, bad).isnan().any()
    with FiniteLinalg(), pytest.raises(ValueError, match="got NaN or infinite values"):
        torch.linalg.cross(bad, bad)
    assert torch.linalg.cross(bad, bad).isnan().any()


@pytest.mark.parametrize(
    "function",
    [
        torch.linalg.eig,
        torch.linalg.eigvals,
        torch.linalg.eigh,
        torch.linalg.eigvalsh,
        torch.linalg.svd,
        torch.svd,
        torch.linalg.svdvals,
        torch.linalg.matrix_rank,
        torch.linalg.pinv,
        torch.linalg.cond,
        torch.linalg.cholesky,
        torch.inverse,
        lambda matrix: torch.linalg.matrix_norm(matrix, "nuc"),
        lambda matrix: torch.norm(matrix, p="nuc"),
        lambda matrix: torch.linalg.eigvals(matrix.requires_grad_()),
    ],
)
def test_every_decomposition_is_checked(function: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """With finite numbers: the check is seen to be called, whatever name PyTorch has for the function."""
    seen: list[Tensor] = []
    monkeypatch.setattr(linalg, "check_finite", lambda arguments: seen.extend(arguments))
    with FiniteLinalg():
        function(torch.eye(3))
    assert any(isinstance(values, Tensor) and torch.equal(values, torch.eye(3)) for values in seen)


def test_inside_of_the_context_everything_else_is_computed_as_outside() -> None:
    matrix = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.eye(4)
    nan = torch.tensor([1.0, float("nan")])
    functions = (torch.linalg.eigvals, torch.linalg.svdvals, torch.linalg.inv, torch.linalg.det, torch.trace)
    outside = [function(matrix) for function in functions]
    with FiniteLinalg():
        torch.testing.assert_close([function(matrix) for function in functions], outside)
        leaf = matrix.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.linalg.det(leaf), leaf)
        assert nan.sum().isnan() and nan.sqrt().isnan().any() and torch.linalg.vector_norm(nan).isnan()
    torch.testing.assert_close(gradient, torch.linalg.det(matrix) * torch.linalg.inv(matrix).T)
