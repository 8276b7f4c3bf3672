"""Hand-ins: every entry of a folder has a row, and notebooks are read in whatever format they come."""

from __future__ import annotations

import json
import os
import zipfile

import pytest

from klvae_edu.grading.reading import Cell, Unreadable, as_text, hand_ins, read

SOURCE = "check('01.2', f)"
NOTEBOOK = json.dumps({"cells": [{"cell_type": "code", "source": SOURCE}], "nbformat": 4})


def test_lie_in_a_folder_for_each_student_or_are_called_after_them(tmp_path):
    for name in ("anna/01 (1).ipynb", "anna/late/02.ipynb", "ben.ipynb", ".trash/x.ipynb", "carl/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "anna" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "anna" / ".ipynb_checkpoints" / "01-checkpoint.ipynb").touch()
    found = [(student, file.relative_to(tmp_path).as_posix()) for student, file in hand_ins(tmp_path)]
    assert found == [
        ("anna", "anna/01 (1).ipynb"),
        ("anna", "anna/late/02.ipynb"),
        ("ben", "ben.ipynb"),
        ("carl", "carl"),
    ]


@pytest.mark.parametrize("name", ["01.ipynb", "01.ipynb.json", "01.ipynb.txt", "01.IPYNB", "01.py", "01.ipynb.ipynb"])
def test_a_notebook_is_read_whatever_its_suffix(tmp_path, name):
    (tmp_path / name).write_text(NOTEBOOK)
    ((student, file),) = hand_ins(tmp_path)
    assert student == "01" and read(file, tmp_path).cells == [Cell(True, SOURCE)]


def test_a_script_has_the_cells_that_its_marks_make(tmp_path):
    (tmp_path / "01.py").write_text("import torch\n\n# In[3]:\n\nx = 1\n# %% [markdown]\n# text\n# %%\ny = 2\n")
    cells = read(tmp_path / "01.py", tmp_path).cells
    assert [cell.is_code for cell in cells] == [True, True, False, True]
    assert cells[1].source == "# In[3]:\n\nx = 1\n"


def test_the_cells_of_format_3_are_in_worksheets(tmp_path):
    sheet = {"cells": [{"cell_type": "code", "input": [SOURCE]}, {"cell_type": "markdown", "source": "text"}]}
    (tmp_path / "01.ipynb").write_text(json.dumps({"worksheets": [sheet], "nbformat": 3}))
    assert read(tmp_path / "01.ipynb", tmp_path).cells == [Cell(True, SOURCE), Cell(False, "text")]


def test_damaged_cells_are_left_out_and_counted(tmp_path):
    cells = [{"cell_type": "code", "source": SOURCE}, {"cell_type": "code"}, "x", {"source": 3}]
    (tmp_path / "01.ipynb").write_text(json.dumps({"cells": cells}))
    hand_in = read(tmp_path / "01.ipynb", tmp_path)
    assert (hand_in.cells, hand_in.damaged) == ([Cell(True, SOURCE)], 3)


def reason(path, folder):
    with pytest.raises(Unreadable) as caught:
        read(path, folder)
    return str(caught.value)


class TestARowWithoutAGrade:
    def test_an_archive(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "anna.zip", "w") as archive:
            archive.writestr("01.ipynb", NOTEBOOK)
        ((student, file),) = hand_ins(tmp_path)
        assert student == "anna" and reason(file, tmp_path) == "an archive: unpack it into a folder of the student"

    def test_a_folder_without_a_notebook_says_what_is_in_it(self, tmp_path):
        (tmp_path / "anna").mkdir()
        (tmp_path / "ben").mkdir()
        for name in ("a.pdf", "b.pdf", "c.docx"):
            (tmp_path / "ben" / name).touch()
        assert [reason(file, tmp_path) for _, file in hand_ins(tmp_path)] == [
            "no notebook in this folder (it is empty)",
            "no notebook in this folder (2 .pdf, 1 .docx)",
        ]

    @pytest.mark.parametrize("text", ["<<<<<<< HEAD", "", "[1, 2]", '{"cells": 3}', "[" * 100_000])
    def test_what_is_no_notebook(self, tmp_path, text):
        (tmp_path / "a.ipynb").write_text(text)
        assert reason(tmp_path / "a.ipynb", tmp_path).startswith("this is not a notebook")

    @pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="links as POSIX has them")
    def test_a_link_to_elsewhere(self, tmp_path):
        (tmp_path / "secret.ipynb").write_text(NOTEBOOK)
        folder = tmp_path / "class"
        (folder / "ben").mkdir(parents=True)
        (folder / "anna.ipynb").symlink_to(tmp_path / "secret.ipynb")
        (folder / "ben" / "01.ipynb").symlink_to(tmp_path / "secret.ipynb")
        (folder / "carl").symlink_to(tmp_path)
        assert [student for student, _ in hand_ins(folder)] == ["anna", "ben", "carl"]
        assert {reason(file, folder) for _, file in hand_ins(folder)} == {"a link to elsewhere, not followed"}

    def test_a_file_that_is_too_large(self, tmp_path, monkeypatch):
        monkeypatch.setattr("klvae_edu.grading.reading.LARGEST", 10_000_000)
        (tmp_path / "a.ipynb").write_bytes(b" " * 10_000_001)
        assert reason(tmp_path / "a.ipynb", tmp_path) == "larger than 10 MB, which no notebook of the course is"


def test_a_name_that_is_no_text_is_escaped():
    assert as_text(os.fsdecode(b"gr\xfcn.ipynb")) == "gr\\xfcn.ipynb"


def test_a_folder_without_anything_is_a_value_error(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="expected a folder of handed-in notebooks"):
            hand_ins(folder)
