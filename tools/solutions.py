"""Write the solutions of the exercises into the package, from the sources of the notebooks.

An installed package has no notebooks, and judges, shows and returns the solutions all the same. They are written once,
between the markers of a notebook's source, and `klvae_edu/exercises/solutions/nbNN.py` is made from there.
"""

from __future__ import annotations

import ast

from tools.course import Course
from tools.markers import read

_HEADER = '"""Solutions of notebook {number}. Written by tools.solutions from {source}; edit that."""\n'


def render(course: Course, name: str) -> str | None:
    """Return the module with the solutions of a notebook; None if it has no exercises."""
    text = read(course, name, solved=True)
    statements = ast.parse(text).body
    checked = {answer for statement in statements for answer in _checked(statement)}
    answers = [it for it in statements if isinstance(it, (ast.FunctionDef, ast.ClassDef)) and it.name in checked]
    if not answers:
        return None
    imports = _imports(statements, {node.id for it in answers for node in ast.walk(it) if isinstance(node, ast.Name)})
    bodies = [ast.get_source_segment(text, answer) for answer in answers]
    header = _HEADER.format(number=name[:2], source=course.source(name).relative_to(course.root).as_posix())
    return "\n".join([header, *imports, *(f"\n\n{body}" for body in bodies)]) + "\n"


def differs(course: Course, name: str) -> bool:
    """Tell whether the module with a notebook's solutions is missing or out of date."""
    text, path = render(course, name), course.solutions(name)
    return text is not None and not (path.exists() and path.read_text(encoding="utf-8") == text)


def write(course: Course, name: str) -> None:
    """Write the module with the solutions of a notebook, if it has exercises."""
    text, path = render(course, name), course.solutions(name)
    if text is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def _checked(statement: ast.stmt) -> list[str]:
    """Return the name of the function or class that `name = check("NN.M", name)` hands in."""
    match statement:
        case ast.Assign(value=ast.Call(func=ast.Name("check"), args=[ast.Constant(), ast.Name(answer)])):
            return [answer]
    return []


def _imports(statements: list[ast.stmt], used: set[str]) -> list[str]:
    """List the imports of the notebook that bind a name that is used: plain ones first, each sorted."""
    lines = []
    for it in statements:
        if isinstance(it, (ast.Import, ast.ImportFrom)):
            names = [alias for alias in it.names if (alias.asname or alias.name.partition(".")[0]) in used]
            if names:
                it.names = names
                lines.append(ast.unparse(it))
    return sorted(lines, key=lambda line: (line.startswith("from"), line))
