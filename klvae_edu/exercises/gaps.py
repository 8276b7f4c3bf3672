"""Gaps of the skeletons: tell a skeleton that is partly filled from an untouched one.

A gap is `...`, alone or as a value. An ellipsis in an index or a type is none.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from klvae_edu.exercises.attempt import recipe

# Number of lines with a gap in the skeleton of each exercise. A test compares them with the notebooks.
# fmt: off
GAPS = {
    "01.1": 2, "01.2": 2, "01.3": 2, "01.4": 3,
    "02.1": 2, "02.2": 2, "02.3": 4, "02.4": 2,
    "03.1": 5, "03.2": 0, "03.3": 2, "03.4": 8,
    "04.1": 2, "04.2": 2, "04.3": 2, "04.4": 3, "04.5": 8,
    "05.1": 3, "05.2": 6, "05.3": 8, "05.4": 4, "05.5": 2,
    "06.1": 4, "06.2": 2, "06.3": 2, "06.4": 2, "06.5": 2,
    "07.1": 4, "07.2": 2, "07.3": 3, "07.4": 2, "07.5": 5,
    "08.1": 8, "08.2": 3, "08.3": 3, "08.4": 2, "08.5": 1,
    "09.1": 2, "09.2": 5, "09.3": 4, "09.4": 2,
    "10.1": 4, "10.2": 4, "10.3": 1, "10.4": 3, "10.5": 3,
    "11.1": 3, "11.2": 3, "11.3": 3, "11.4": 4,
    "12.1": 4, "12.2": 2, "12.3": 3, "12.4": 3, "12.5": 2,
    "13.1": 3, "13.2": 3, "13.3": 3,
    "15.1": 4,
}
# fmt: on


@recipe
def first_open_gap(attempt: Any, id: str) -> str | None:
    """Return the first line with a gap, if some gaps of the skeleton are filled and others are not; else None."""
    try:
        source = textwrap.dedent(inspect.getsource(attempt))
        (definition,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError):  # no source, or a part of a line
        return None
    is_whole = isinstance(definition, (ast.FunctionDef, ast.ClassDef)) and definition.name == attempt.__name__
    lines = gap_lines(definition) if is_whole else []  # of a lambda the source is the statement around it
    return source.splitlines()[lines[0] - 1].strip() if 0 < len(lines) < GAPS.get(id, 0) else None


def gap_lines(tree: ast.AST) -> list[int]:
    """List the numbers of the lines that have a gap."""
    no_gaps = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Subscript) for part in ast.walk(node.slice)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return sorted({node.lineno for node in constants if node.value is ... and id(node) not in no_gaps})
