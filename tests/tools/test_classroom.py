"""The zips for a class: their contents, and that packing again gives the same bytes."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import nbformat
import pytest

from tools import build_notebooks, classroom
from tools.course import COURSE, Course

PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "klvae-edu"
dynamic = ["version"]
[tool.setuptools]
packages = ["klvae_edu"]
[tool.setuptools.dynamic]
version = { attr = "klvae_edu._version.__version__" }
[tool.klvae_edu]
repo = ""
"""


@pytest.fixture
def course(tmp_path):
    """A course of one notebook, built."""
    course = Course(tmp_path / "course")
    files = {
        "pyproject.toml": PROJECT,
        "README.md": "A course",
        "LICENSE": "MIT",
        "LICENSES/photographs.md": "Free",
        "constraints.txt": "numpy==2.4.6",
        "docs/teaching.md": "The guide",
        "tools/questions.py": "",
        "klvae_edu/__init__.py": "",
        "klvae_edu/_version.py": '__version__ = "1.2.3"\n',
        "klvae_edu/__pycache__/left.pyc": "left over",
        "notebooks/source/00_first.py": "# %% [markdown]\n# # First\n\n# %%\n1 + 1\n",
    }
    for name, text in files.items():
        (course.root / name).parent.mkdir(parents=True, exist_ok=True)
        (course.root / name).write_text(text)
    for solved in (False, True):
        notebook = build_notebooks.render(course, "00_first", solved)
        notebook.cells[1].execution_count = 1
        course.built("00_first", solved).parent.mkdir(exist_ok=True)
        nbformat.write(notebook, course.built("00_first", solved))
    return course


def names(path):
    return [PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in zipfile.ZipFile(path).namelist()]


COMMON = {
    "README.md",
    "LICENSE",
    "LICENSES/photographs.md",
    "constraints.txt",
    "notebooks/00_first.ipynb",
    "notebooks/klvae_edu-1.2.3-py3-none-any.whl",
}


def test_the_teachers_zip_has_the_solutions_the_guide_and_the_questions_and_the_students_has_not(course, capsys):
    assert classroom.main(course) == 0
    assert "dist/klvae-edu-students-1.2.3.zip" in capsys.readouterr().out
    dist = course.root / "dist"
    assert {*names(dist / "klvae-edu-students-1.2.3.zip")} == COMMON
    more = {"notebooks/solutions/00_first.ipynb", "teaching.md", "questions.py"}
    assert {*names(dist / "klvae-edu-classroom-1.2.3.zip")} == COMMON | more


def test_packing_again_gives_the_same_bytes(course):
    first = [path.read_bytes() for path in classroom.pack(course)]
    (course.root / "klvae_edu" / "__init__.py").touch()
    assert [path.read_bytes() for path in classroom.pack(course)] == first


def test_every_file_is_in_one_folder_named_after_the_zip_and_is_readable(course):
    for path in classroom.pack(course):
        for entry in zipfile.ZipFile(path).infolist():
            assert entry.filename.startswith(f"{path.stem}/")
            assert entry.external_attr >> 16 == 0o644


def test_the_wheel_in_it_is_the_package_and_installs_without_a_network(course, tmp_path):
    students = zipfile.ZipFile(classroom.pack(course)[1])
    (wheel,) = [name for name in students.namelist() if name.endswith(".whl")]
    file = Path(students.extract(wheel, tmp_path))
    assert not any("pycache" in name for name in zipfile.ZipFile(file).namelist())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(tmp_path / "site")]
    assert subprocess.run([*pip, str(file)]).returncode == 0
    assert (tmp_path / "site" / "klvae_edu" / "_version.py").is_file()


def test_a_notebook_that_is_out_of_date_is_not_handed_out(course, capsys):
    course.source("00_first").write_text("# %% [markdown]\n# # Second\n\n# %%\n1 + 1\n")
    assert classroom.main(course) == 1
    assert "run make notebooks" in capsys.readouterr().err
    assert not (course.root / "dist").exists()


@pytest.mark.parametrize("teacher", [False, True])
def test_links_in_the_courses_notebooks_lead_to_files_in_the_zip(teacher, tmp_path):
    wheel = tmp_path / "klvae_edu-1.2.3-py3-none-any.whl"
    wheel.touch()
    files = classroom.contents(COURSE, wheel, teacher)
    assert any(name.startswith("notebooks/solutions/") for name in files) == teacher
    for name in files:
        if name.endswith(".ipynb"):
            cells = [cell for cell in json.loads(files[name])["cells"] if cell["cell_type"] == "markdown"]
            targets = re.findall(r"\]\(([\w./-]+\.ipynb)", "\n".join("".join(cell["source"]) for cell in cells))
            found = {(COURSE.root / name).parent.joinpath(target).resolve() for target in targets}
            assert {path.relative_to(COURSE.root).as_posix() for path in found} <= {*files}, name
