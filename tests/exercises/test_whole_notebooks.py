"""Each notebook runs to its end with right answers in other styles: nothing that passes breaks a later cell.

One run takes one right answer of every exercise. `KLVAE_EDU_STYLES=all` (`make soak`) makes as many runs of each
notebook as it takes for every answer to have its turn; `make test` makes one of each that takes half a minute or less.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import RIGHT

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))[1:]  # the tour has no exercises
SHORT = ("01", "03", "04", "05")
EXCHANGE = """
import sys

sys.path.insert(0, {root!r})
from tests.exercises.test_whole_notebooks import exchange_answers

exchange_answers({notebook!r}, {number})
"""


def right_answers(notebook: str) -> dict[str, Any]:
    """Return the right answers in other styles, by exercise of the notebook, such as 01."""
    importlib.import_module(f"tests.exercises.test_nb{notebook}")
    return {id: answers for id, answers in RIGHT.items() if id.startswith(f"{notebook}.")}


def exchange_answers(notebook: str, number: int) -> None:
    """Let every check of the process judge, and return, a right answer in another style."""
    from klvae_edu import exercises

    styles, check = right_answers(notebook), exercises.check

    def check_another(id: str, attempt: Any) -> Any:
        other = styles.get(id, [attempt])
        answer = other[number % len(other)]
        found = check(id, answer)
        assert found is answer, f"{id}: {answer.__name__} was rejected"
        return found

    exercises.check = check_another


def rounds() -> list[tuple[Path, int]]:
    """List the runs: notebook, and the number of its answers' style."""
    if os.environ.get("KLVAE_EDU_STYLES") != "all":
        return [(path, 0) for path in NOTEBOOKS if path.name[:2] in SHORT]
    most = {path: max(map(len, right_answers(path.name[:2]).values())) for path in NOTEBOOKS}
    return [(path, number) for path in NOTEBOOKS for number in range(most[path])]


@pytest.mark.parametrize(("path", "number"), rounds(), ids=lambda value: getattr(value, "name", str(value))[:2])
def test_a_notebook_runs_to_its_end(path: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)
    exchange = EXCHANGE.format(root=str(ROOT), notebook=path.name[:2], number=number)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(exchange))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    of_notebook = {id for id in EXERCISES if id.startswith(path.name[:2])}
    assert {*re.findall(r"^(\d\d\.\d) .*: passed$", printed, re.MULTILINE)} == of_notebook


def test_every_exercise_but_those_of_one_style_has_another_right_answer() -> None:
    for path in NOTEBOOKS:
        right_answers(path.name[:2])
    assert len({*EXERCISES} - {*RIGHT}) <= 3, {*EXERCISES} - {*RIGHT}
