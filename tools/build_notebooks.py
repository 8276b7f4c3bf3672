"""Build the course's notebooks from their sources.

notebooks/source/NN_name.py (jupytext's percent format) is the only place where a notebook is edited. From each this
script writes notebooks/NN_name.ipynb, as the learner gets it, and notebooks/solutions/NN_name.ipynb, both executed.
markers.py and macros.py say what may stand in a source. What has not changed is not executed again: when the code of
every cell is the stored one's, only the text is replaced. The same sources give the same bytes, however often built.

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

from tools.course import COURSE, Course, CourseError
from tools.macros import expand
from tools.markers import select

CELL_SECONDS = 600  # on a busy machine; nbval allows 120
NO_ACCELERATOR_NO_NETWORK = {"KLVAE_EDU_QUIET": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# What is there already, torch above all, stays at its version. SOURCES: where the course is published, or nothing.
ENVIRONMENT_CELL = """\
# Run this cell first. It may be run again at any time.
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
    """The first code cell. While no repository is set, it installs from nowhere but a wheel beside the notebook."""
    published = course.published()
    source = f'"git+https://github.com/{published[0]}@{published[1]}", ' if published else ""
    return ENVIRONMENT_CELL.replace("SOURCES", source)


def parse(course: Course, name: str, solved: bool) -> NotebookNode:
    """The notebook before its text is expanded and its code executed."""
    source = course.source(name)
    if not source.exists():
        raise CourseError(f"{name} has no source {source.relative_to(course.root)}")
    read = jupytext.reads(select(source.read_text(encoding="utf-8"), solved, source.name), fmt="py:percent")
    cells, seen = [], Counter[str]()
    for cell in read.cells:
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
        identity = hashlib.sha1(f"{key}:{seen[key]}".encode()).hexdigest()[:12]
        if cell.cell_type == "code":
            cells.append(nbformat.v4.new_code_cell(cell.source, id=identity, metadata=metadata))
        else:
            cells.append(nbformat.v4.new_markdown_cell(cell.source, id=identity, metadata=metadata))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def render(course: Course, name: str, solved: bool) -> NotebookNode:
    """The notebook with everything but its outputs."""
    notebook = parse(course, name, solved)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = expand(cell.source, course, name, solved)
    return notebook


def execute(notebook: NotebookNode, path: Path, threads: int) -> None:
    """Run every cell in a fresh kernel of this interpreter, in the folder of `path`.

    What changes by itself, from run to run, is left out of the outputs.

    Raises:
        CourseError: a cell raised, took longer than `CELL_SECONDS`, or ended the kernel.
    """
    environment = os.environ | NO_ACCELERATOR_NO_NETWORK | {"OMP_NUM_THREADS": str(threads)}
    environment.pop("KLVAE_EDU_STRICT", None)
    # Without folders to look in, "python3" is this interpreter, whatever kernels the machine has registered.
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
            output.get("data", {}).pop(WIDGET_VIEW, None)  # names a live object of this very run


def reuse_outputs(notebook: NotebookNode, stored: NotebookNode) -> bool:
    """Take over the stored outputs if they are the outputs of this code; the environment cell's code may differ."""

    def code(of: NotebookNode) -> list[str]:
        return ["environment" if is_environment(cell) else cell.source for cell in code_cells(of)]

    old = code_cells(stored)
    if code(notebook) != code(stored) or any(cell.execution_count is None for cell in old):
        return False
    for cell, before in zip(code_cells(notebook), old, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return True


def stored_notebook(path: Path) -> NotebookNode | None:
    """The notebook as it was built last; None where there is none, or git left it half merged."""
    try:
        return nbformat.read(path, as_version=4)
    except (FileNotFoundError, ValueError):
        return None


def build(course: Course, name: str, solved: bool, execute_anyway: bool = False) -> str:
    """Write one notebook; returns what was done: "unchanged", "text replaced" or "executed"."""
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
    """Where the stored notebook is not what its source gives, or None. Executes nothing."""
    path = course.built(name, solved)
    stored = stored_notebook(path)
    if stored is None:
        return "is missing, or no notebook"
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
    """The median length of a text cell. The course aims at 25 to 45."""
    notebook = nbformat.read(course.built(name, solved), as_version=4)
    return round(median([len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown"] or [0]))


def retarget(course: Course, repo: str) -> None:
    """Write the repository into pyproject.toml, the one place that badges and install lines come from.

    Raises:
        CourseError: `repo` is no OWNER/NAME, or pyproject.toml has no place for it.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise CourseError(f"--repo wants OWNER/NAME, not {repo!r}")
    project = course.root / "pyproject.toml"
    text, count = re.subn(
        r'(\[tool\.klvae_edu\]\nrepo = )"[^"\n]*"', rf'\1"{repo}"', project.read_text(encoding="utf-8")
    )
    if count != 1:
        raise CourseError("pyproject.toml: no [tool.klvae_edu] that begins with repo")
    project.write_text(text, encoding="utf-8", newline="\n")


def run(options: argparse.Namespace, course: Course) -> int:
    if options.repo:
        retarget(course, options.repo)
        options.names = []  # the badges of all notebooks agree
    names = [course.named(name) for name in options.names] or course.names()
    failed = 0
    for name in names:
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


def main(arguments: list[str] | None = None, course: Course = COURSE) -> int:
    parser = argparse.ArgumentParser(description="Build the course's notebooks from notebooks/source.")
    parser.add_argument("names", nargs="*", metavar="NN", help="only these notebooks, such as 02")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="execute and write nothing; fail if anything is out of date")
    what.add_argument("--execute", action="store_true", help="execute even what has not changed")
    what.add_argument("--repo", metavar="OWNER/NAME", help="publish there: rewrites the setting, badges, install lines")
    options = parser.parse_args(arguments)
    try:
        return run(options, course)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
