"""Tables in plain text, for a terminal."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

MIN_COLUMN_WIDTH = 18  # characters


def aligned(names: Sequence[str], columns: Sequence[Sequence[str]]) -> Iterator[str]:
    """Format the lines of a table: the names of the rows, and columns to their right.

    Args:
        names: one for each row.
        columns: each a heading, which is wrapped, and a cell for each row.
    """
    widths = [max(MIN_COLUMN_WIDTH, *map(len, cells)) for _, *cells in columns]
    heads = [textwrap.wrap(column[0], width) for column, width in zip(columns, widths, strict=True)]
    rows = [("", *line) for line in itertools.zip_longest(*heads, fillvalue="")]
    rows += zip(names, *(cells for _, *cells in columns), strict=True)
    first = max(map(len, names))
    for name, *cells in rows:
        yield "  ".join([name.ljust(first), *map(str.ljust, cells, widths)]).rstrip()


def three_digits(value: float) -> str:
    """Format a number with three significant digits and without an exponent: 0.0123, 12.3, 1230."""
    return np.format_float_positional(value, 3, fractional=False, trim="-")
