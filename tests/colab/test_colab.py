"""Colab: the package installs without changing Colab's versions, and a single notebook runs under Colab's front end.

A test cannot use Colab itself. It is simulated by the versions that Colab publishes, in constraints.txt, and by a
virtual environment with the packages of this one except klvae_edu, and with Colab's versions of the front end.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.classroom import build_wheel
from tools.course import COURSE

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
COLAB = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
COLABS_PYTHON = "3.13"
FRONT_END = ("ipywidgets", "ipython", "ipykernel", "matplotlib")
NO_NETWORK = r"NewConnectionError|NameResolutionError|ProxyError|ConnectTimeout|dns error|error sending request"


def run(command, network=False, **options):
    """Return exit code and output of a command. Without a network, a test that needs it is skipped, except in CI."""
    command = [str(word) for word in command]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if result.returncode and network and not os.environ.get("CI") and re.search(NO_NETWORK, result.stdout):
        pytest.skip(f"no network for {Path(command[0]).name}")
    return result.returncode, result.stdout


def succeed(*arguments, **options):
    code, output = run(*arguments, **options)
    assert code == 0, output
    return output


# ---- Installed versions stay -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resolve(tmp_path_factory):
    """resolve(text of pyproject.toml) -> (exit code, the versions on Colab after an installation, or an error)."""
    tools, folder = tmp_path_factory.mktemp("uv"), tmp_path_factory.mktemp("project")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--retries=1"]
    succeed([*pip, "--no-deps", "--target", tools, "uv"], network=True)
    uv = [tools / "bin" / "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"]

    def resolve(project):
        (folder / "pyproject.toml").write_text(project, encoding="utf-8")
        options = ["--extra", "notebooks", "--python-version", COLABS_PYTHON, "-c", CONSTRAINTS]
        return run([*uv, *options, folder / "pyproject.toml"], network=True)

    return resolve


PROJECT = (COURSE.root / "pyproject.toml").read_text(encoding="utf-8")
NEWER_TORCH = re.sub(r'"torch>=[\d.]+"', '"torch>=2.12"', PROJECT)


def beyond_colab(text):
    """List the requirements on packages of Colab that Colab's versions do not meet."""
    project = tomllib.loads(text)["project"]
    asked = [Requirement(it) for it in [*project["dependencies"], *project["optional-dependencies"]["notebooks"]]]
    known = {canonicalize_name(name): version for name, version in COLAB.items()}
    there = [it for it in asked if canonicalize_name(it.name) in known]
    assert len(there) > 5
    return [str(it) for it in there if not it.specifier.contains(known[canonicalize_name(it.name)])]


def test_no_requirement_asks_for_more_than_colab_has():
    assert beyond_colab(PROJECT) == []
    assert beyond_colab(NEWER_TORCH) == ["torch>=2.12"]


def test_the_package_resolves_with_everything_that_colab_has_at_its_version(resolve):
    code, output = resolve(PROJECT)
    assert code == 0, output
    resolved = dict(line.split("==") for line in output.splitlines() if "==" in line)
    for name in ("torch", "torchvision", "numpy", "matplotlib", "ipywidgets"):
        assert resolved[name] == COLAB[name]


def test_the_notebooks_bring_no_second_jupyter_to_colab():
    asked = tomllib.loads(PROJECT)["project"]["optional-dependencies"]["notebooks"]
    assert not {"jupyterlab", "notebook", "jupyter"} & {Requirement(it).name for it in asked}


def test_a_bound_above_colabs_torch_does_not_resolve(resolve):
    code, output = resolve(NEWER_TORCH)
    assert code != 0
    assert "torch" in output


# ---- A notebook alone, in a folder with the wheel --------------------------------------------------------------------


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The Python of an environment like Colab's, without klvae_edu."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "env", symlinks=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "env")}))
    machine = folder / "machine"
    machine.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "klvae_edu" not in path.name and path.suffix != ".pth":
            (machine / path.name).symlink_to(path)
    (own / "google" / "colab").mkdir(parents=True)
    (own / "google" / "colab" / "__init__.py").write_text(
        '"""A stand-in, imported before the first cell as on Colab."""'
    )
    (own / "colab.pth").write_text(f"{machine}\nimport google.colab\n")
    python = folder / "env" / "bin" / "python"
    wanted = [f"{name}=={COLAB[name]}" for name in FRONT_END]
    kept = folder / "kept.txt"
    kept.write_text("".join(f"{name}=={metadata.version(name)}\n" for name in ("torch", "numpy", "pillow")))
    succeed([python, "-m", "pip", "install", "--quiet", "--retries=1", "-c", kept, *wanted], network=True)
    code, _ = run([python, "-P", "-c", "import klvae_edu"], cwd=folder)
    assert code != 0, "the package is there already"
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(COURSE, tmp_path_factory.mktemp("wheel"))


LOOK_AROUND = """\
import json, sys
from importlib import metadata
import klvae_edu
names = ("torch", "numpy", "pillow", "ipywidgets", "ipython", "ipykernel", "matplotlib")
print(json.dumps([klvae_edu.__file__, "google.colab" in sys.modules, {it: metadata.version(it) for it in names}]))"""


def run_notebook(notebook, python, folder):
    """Run every cell in a kernel of this Python, in which pip has no network."""
    spec = {"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    (folder / ".kernels" / "colab").mkdir(parents=True)
    (folder / ".kernels" / "colab" / "kernel.json").write_text(json.dumps(spec | {"display_name": "Colab"}))
    specs = KernelSpecManager(kernel_dirs=[str(folder / ".kernels")], ensure_native_kernel=False)
    kernel = AsyncKernelManager(kernel_name="colab", kernel_spec_manager=specs)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=kernel, timeout=600, coalesce_streams=True, resources=resources)
    settings = {"OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1", "KLVAE_EDU_QUIET": "1", "PYTHONPATH": ""}
    client.execute(env=os.environ | settings)


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


# The first notebook installs the package from the wheel; the second one finds it installed.
@pytest.mark.parametrize("number", ["01", "10"])
def test_a_notebook_copied_alone_runs_to_its_end_and_prints_what_is_stored(number, colab, wheel, tmp_path):
    stored = nbformat.read(COURSE.built(COURSE.named(number), solved=False), as_version=4)
    notebook = nbformat.from_dict(json.loads(json.dumps(stored)))
    notebook.cells.append(nbformat.v4.new_code_cell(LOOK_AROUND))
    shutil.copy(wheel, tmp_path)
    run_notebook(notebook, colab, tmp_path)
    file, on_colab, versions = json.loads(printed(notebook.cells[-1]))
    assert Path(file).is_relative_to(colab.parent.parent), "not the package in the wheel"
    assert on_colab
    for name, version in versions.items():
        assert version == (COLAB[name] if name in FRONT_END else metadata.version(name)), name
    for ran, was in zip(notebook.cells, stored.cells, strict=False):
        if ran.cell_type == "code" and "environment" not in ran.metadata.get("tags", []):
            assert printed(ran) == printed(was)


def test_sliders_and_panels_work_under_colabs_ipywidgets(colab):
    tests = [f"tests/explore/test_{module}.py" for module in ("explorer", "controls", "panels", "photograph")]
    command = [colab, "-m", "pytest", "-q", *tests]
    output = succeed(command, cwd=COURSE.root, env=os.environ | {"PYTHONPATH": ""})
    assert re.search(r"^\d+ passed", output, re.MULTILINE), output
