"""Build the course's notebooks from their sources.

A notebook is edited only in its source, notebooks/source/NN_name.py (jupytext's percent format). From each source this
script writes the learner's notebook, notebooks/NN_name.ipynb, and the solved one, notebooks/solutions/NN_name.ipynb.
Both are executed. Their solutions also go into the package: see solutions.py. markers.py and macros.py describe the
syntax of a source. A notebook whose code has not changed is not executed again: only its text is replaced. The same
sources always give the same bytes.

    python -m tools.build_notebooks [NN ...] [--check | --execute] [--repo OWNER/NAME]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from tools import solutions
from tools.course import COURSE, Course, CourseError, command
from tools.macros import expand
from tools.markers import read

CELL_SECONDS = 600  # on a busy machine; nbval allows 120
CPU_OFFLINE = {"KLVAE_EDU_QUIET": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# The environment cell is one line until it is opened: in JupyterLab, and on Colab, which shows its title.
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}

# Installed packages, above all torch, keep their versions. SOURCES: the address of the published course, or nothing.
ENVIRONMENT_CELL = """\
# @title Run this cell first. It may be run again at any time.
import importlib.util, platform, subprocess, sys, tempfile
from importlib import metadata
from pathlib import Path

if importlib.util.find_spec("klvae_edu") is None:  # on Colab, for instance, where everything else is there
    from packaging.version import Version

    wheels = [*Path().glob("klvae_edu-*.whl"), *Path("..").glob("klvae_edu-*.whl")]
    wheels.sort(key=lambda wheel: Version(wheel.name.split("-")[1]))
    sources = [SOURCES*(wheel.resolve().as_uri() for wheel in wheels)]
    if not sources:
        raise ModuleNotFoundError("klvae_edu is not here: start the course with `make lab`, or put the teacher's file "
                                  "klvae_edu-….whl beside this notebook (on Colab: Files, Upload) and run this again")
    present = {it.name: metadata.version(it.name) for it in metadata.distributions() if it.name}
    kept = Path(tempfile.mkdtemp(), "kept.txt")
    kept.write_text("".join(f"{name}=={version}\\n" for name, version in present.items() if version))
    package = f"klvae-edu[notebooks] @ {sources[-1]}"
    print("installing", package)
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "-c", str(kept), package])
    importlib.invalidate_caches()

import torch, klvae_edu.environment
print(f"Python {platform.python_version()}, torch {torch.__version__}, klvae_edu {klvae_edu.__version__}")
print("device:", klvae_edu.environment.pick_device())"""


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def is_environment(cell: NotebookNode) -> bool:
    return "environment" in tags(cell)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def environment_cell(course: Course) -> str:
    """Return the first code cell. Without a repository, it installs only from a wheel next to the notebook."""
    published = course.published()
    source = f'"git+https://github.com/{published[0]}@{published[1]}", ' if published else ""
    return ENVIRONMENT_CELL.replace("SOURCES", source)


def parse(course: Course, name: str, solved: bool) -> NotebookNode:
    """Read a notebook from its source. Macros are not expanded, and nothing is executed.

    Raises:
        CourseError: there is no source, a marker is misplaced, or the environment cell is not empty.
    """
    notebook = jupytext.reads(read(course, name, solved), fmt="py:percent")
    cells, seen = [], Counter[str]()
    for cell in notebook.cells:
        if "solution-only" in tags(cell) and not solved:
            continue
        key = f"{name}:{cell.cell_type}:{cell.source}"
        seen[key] += 1
        metadata: dict[str, Any] = {"tags": tags(cell)} if tags(cell) else {}
        if cell.cell_type == "code" and is_environment(cell):
            if cell.source.strip():
                raise CourseError(f"{name}: the cell tagged environment is filled by the builder: leave it empty")
            cell.source = environment_cell(course)
            metadata["tags"].append("nbval-ignore-output")
            metadata |= FOLDED
        identity = hashlib.sha1(f"{key}:{seen[key]}".encode()).hexdigest()[:12]
        if cell.cell_type == "code":
            cells.append(nbformat.v4.new_code_cell(cell.source, id=identity, metadata=metadata))
        else:
            cells.append(nbformat.v4.new_markdown_cell(cell.source, id=identity, metadata=metadata))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def render(course: Course, name: str, solved: bool) -> NotebookNode:
    """Make the notebook, complete but for its outputs."""
    notebook = parse(course, name, solved)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = expand(cell.source, course, name, solved)
    return notebook


def execute(notebook: NotebookNode, path: Path, threads: int) -> None:
    """Run every cell in a fresh kernel of this interpreter, in the folder of `path`.

    Outputs that differ from run to run are removed.

    Raises:
        CourseError: a cell raised, took longer than `CELL_SECONDS`, or ended the kernel.
    """
    environment = os.environ | CPU_OFFLINE | {"OMP_NUM_THREADS": str(threads)}
    environment.pop("KLVAE_EDU_STRICT", None)
    # Without kernel folders, "python3" is this interpreter, not a kernel that is registered on the machine.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    path.parent.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=CELL_SECONDS,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise CourseError(f"{path.parent.name}/{path.name} is not written: a cell failed\n{error}") from None
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET_VIEW, None)  # refers to a widget of this run


def reuse_outputs(notebook: NotebookNode, stored: NotebookNode) -> bool:
    """Copy the stored outputs if the code is the same, and tell whether it is. The environment cell may differ."""

    def code(of: NotebookNode) -> list[str]:
        return ["environment" if is_environment(cell) else cell.source for cell in code_cells(of)]

    old = code_cells(stored)
    if code(notebook) != code(stored) or any(cell.execution_count is None for cell in old):
        return False
    for cell, before in zip(code_cells(notebook), old, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return True


def stored_notebook(path: Path) -> NotebookNode | None:
    """Read a built notebook; None if it is missing or no notebook, such as a file with merge conflicts."""
    try:
        return nbformat.read(path, as_version=4)
    except (FileNotFoundError, ValueError):
        return None


def build(course: Course, name: str, solved: bool, execute_anyway: bool = False) -> str:
    """Write one notebook, and return "unchanged", "text replaced" or "executed"."""
    notebook, path = render(course, name, solved), course.built(name, solved)
    stored = stored_notebook(path)
    done = "text replaced"
    if execute_anyway or stored is None or not reuse_outputs(notebook, stored):
        execute(notebook, path, threads=1)
        done = "executed"
    text = nbformat.writes(notebook) + "\n"
    if done != "executed" and text == path.read_text(encoding="utf-8"):
        return "unchanged"
    path.write_text(text, encoding="utf-8", newline="\n")
    return done


def difference(course: Course, name: str, solved: bool) -> str | None:
    """Describe the first difference between the stored notebook and its source, or return None. Executes nothing."""
    path = course.built(name, solved)
    stored = stored_notebook(path)
    if stored is None:
        return "is missing, or is no notebook"
    if [cell.execution_count for cell in code_cells(stored)] != [*range(1, len(code_cells(stored)) + 1)]:
        return "has cells that were not executed, or not in order"
    for cell in code_cells(stored):
        cell.outputs, cell.execution_count = [], None
    wanted = render(course, name, solved)
    for index, (new, old) in enumerate(zip(wanted.cells, stored.cells, strict=False)):
        if new != old:
            return f"differs from its source in cell {index}, which starts: {new.source.splitlines()[:1]}"
    return None if wanted == stored else "differs from its source in its number of cells or its metadata"


def typical_words(course: Course, name: str, solved: bool) -> int:
    """Return the median number of words of a text cell. The course aims at 25 to 45."""
    notebook = nbformat.read(course.built(name, solved), as_version=4)
    return round(median([len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown"] or [0]))


def retarget(course: Course, repo: str) -> None:
    """Write the repository into pyproject.toml, from which badges and install lines are made.

    Raises:
        CourseError: `repo` is no OWNER/NAME, or pyproject.toml has no [tool.klvae_edu] that begins with repo.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise CourseError(f"--repo: expected OWNER/NAME, got {repo!r}")
    project = course.root / "pyproject.toml"
    text, count = re.subn(
        r'(\[tool\.klvae_edu\]\nrepo = )"[^"\n]*"', rf'\1"{repo}"', project.read_text(encoding="utf-8")
    )
    if count != 1:
        raise CourseError("pyproject.toml: expected a section [tool.klvae_edu] that begins with repo, found none")
    project.write_text(text, encoding="utf-8", newline="\n")


def run(options: argparse.Namespace, course: Course) -> int:
    if options.repo:
        retarget(course, options.repo)
        options.names = []  # the badge of every notebook changes
    names = [course.named(name) for name in options.names] or course.names()
    failed = 0
    for name in names:
        if options.check and solutions.differs(course, name):
            print(f"{course.solutions(name).relative_to(course.root)} differs from its source")
            failed += 1
        elif not options.check:
            solutions.write(course, name)  # before the notebooks run: they import it
        for solved in (False, True):
            where = course.built(name, solved).relative_to(course.root)
            if not options.check:
                done = build(course, name, solved, options.execute)
                words = typical_words(course, name, solved)
                print(f"{where}: {done}; {words} words in a typical text cell", flush=True)
            elif found := difference(course, name, solved):
                print(f"{where} {found}")
                failed += 1
    if failed:
        print("Run make notebooks.")
    return 1 if failed else 0


@command
def main(arguments: list[str] | None = None, course: Course = COURSE) -> int:
    parser = argparse.ArgumentParser(description="Build the course's notebooks from notebooks/source.")
    parser.add_argument("names", nargs="*", metavar="NN", help="only these notebooks, such as 02")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="execute and write nothing; fail if anything is out of date")
    what.add_argument("--execute", action="store_true", help="execute unchanged notebooks, too")
    what.add_argument("--repo", metavar="OWNER/NAME", help="set the repository, and rewrite badges and install lines")
    return run(parser.parse_args(arguments), course)


if __name__ == "__main__":
    sys.exit(main())
