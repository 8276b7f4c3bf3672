"""The exercises in the notebooks: the skeletons are blank, and the solutions pass."""

from __future__ import annotations

import ast

import pytest

from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import SOURCES, imported
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
