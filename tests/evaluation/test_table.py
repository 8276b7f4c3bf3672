"""Tables in plain text: alignment, wrapped headings, numbers without exponents."""

from __future__ import annotations

import math

import pytest

from klvae_edu.evaluation.table import aligned, three_digits


def test_headings_are_wrapped_and_cells_stand_below_them() -> None:
    columns = [["a heading that is long", "1.00", "22.00"], ["short", "a cell of twenty char", "-"]]
    assert list(aligned(["one", "another"], columns)) == [
        "         a heading that is   short",
        "         long",
        "one      1.00                a cell of twenty char",
        "another  22.00               -",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (12.345, "12.3"), (123.4, "123"), (12345.0, "12300"), (math.inf, "inf")],
)
def test_a_number_has_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert three_digits(value) == text
