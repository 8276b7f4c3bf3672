"""The exercises in the notebooks: the skeletons are blank, and the solutions pass."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
import textwrap

import pytest

from klvae_edu.exercises import EXERCISES
from klvae_edu.exercises.gaps import GAPS
from tests.exercises.answers import SOURCES, imported
from tools import solutions
from tools.course import COURSE
from tools.markers import select


def verdicts(name, solved):
    """Yield the verdicts of the checks of one notebook in order, without running its other cells."""
    file = SOURCES / f"{name}.py"
    names, written = imported(name), {}
    for node in ast.parse(select(file.read_text(encoding="utf-8"), solved, file.name)).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                written[node.name] = node
            case ast.Assign(targets=[ast.Name(target)], value=ast.Call(func=ast.Name("check"), args=[id, attempt])):
                exec(compile(ast.Module([written[attempt.id]], []), file.name, "exec"), names)
                exercise = EXERCISES[id.value]
                verdict = exercise.run(names[attempt.id])
                names[target] = names[attempt.id] if verdict.passed else exercise.reference
                yield exercise.id, verdict


@pytest.mark.parametrize("notebook", sorted({exercise.notebook for exercise in EXERCISES.values()}))
@pytest.mark.parametrize("solved", [False, True])
def test_a_blank_notebook_attempts_nothing_and_a_solved_one_passes_everything(notebook, solved):
    found = dict(verdicts(notebook, solved))
    assert list(found) == [id for id, exercise in EXERCISES.items() if exercise.notebook == notebook]
    for verdict in found.values():
        assert (verdict.attempted, verdict.passed, verdict.message) == (solved, solved, "")


@pytest.mark.parametrize("name", COURSE.names())
def test_the_packages_solutions_are_the_notebooks(name):
    assert not solutions.differs(COURSE, name)


@pytest.mark.parametrize("id", [id for id, count in GAPS.items() if count > 1])
def test_a_solution_with_its_last_line_still_open_has_a_gap(id):
    """Whatever a half-filled skeleton gives, it is not called right, and not called unattempted."""
    reference = EXERCISES[id].reference
    lines = textwrap.dedent(inspect.getsource(reference)).rstrip().splitlines()
    last = max(number for number, line in enumerate(lines) if line.strip().startswith("return "))
    while len(lines) > last + 1:
        lines.pop()
    lines[last] = f"{lines[last][: lines[last].index('return')]}return ..."
    names = dict(vars(sys.modules[reference.__module__]))
    source = "\n".join(lines)
    file = f"<half-filled {id}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)
    verdict = EXERCISES[id].run(names[reference.__name__])
    assert verdict.attempted and not verdict.passed and "gap" in verdict.message
