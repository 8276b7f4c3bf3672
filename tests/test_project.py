"""The project around the package: files, environment, wheel, Makefile, docstrings and layers."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMMANDS = {"help", "lab", "fresh", "test", "oldest", "lint", "notebooks", "measure", "bench", "soak"}
COMMANDS |= {"constraints", "classroom"}


def tracked():
    """List the files of the project: those that git tracks, or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


class TestTree:
    @pytest.mark.parametrize("name", ["README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md"])
    def test_has_its_usual_documents(self, name):
        assert (ROOT / name).read_text(encoding="utf-8").strip()

    def test_names_no_registry_and_no_path_of_a_machine(self):
        hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "anaconda" + ".org"]
        folders = ["root", "home", "work", "Users"]
        unwanted = re.compile(
            "|".join([*map(re.escape, hosts), *(rf"(?<![\w.:/]){'/'}{folder}{'/'}\w" for folder in folders)])
        )
        found = []
        for path in tracked():
            text = path.read_bytes().decode("utf-8", errors="ignore")
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in unwanted.finditer(text)]
        assert found == []


class TestEnvironment:
    def test_conda_installs_what_pyproject_says_and_nothing_else(self):
        environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
        assert environment["name"] == PROJECT["project"]["name"]
        assert environment["channels"] == ["conda-forge"]
        python = f"python{PROJECT['project']['requires-python']}"
        assert environment["dependencies"] == [python, "pip", {"pip": ["-e .[all]"]}]

    def test_all_brings_every_optional_group(self):
        groups = PROJECT["project"]["optional-dependencies"]
        (all_of_them,) = groups["all"]
        assert set(re.search(r"\[(.*)\]", all_of_them)[1].split(",")) == set(groups) - {"all"}

    def test_the_lowest_torchmetrics_has_the_ssim_that_the_course_prints(self):
        from packaging.requirements import Requirement

        (metrics,) = [
            Requirement(text) for text in PROJECT["project"]["dependencies"] if text.startswith("torchmetrics")
        ]
        assert not metrics.specifier.contains("1.4.1")  # it leaves out the border of the image
        assert metrics.specifier.contains("1.4.3")

    def test_constraints_are_names_and_versions_within_what_pyproject_asks_for(self):
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name

        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
        tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
        groups = PROJECT["project"]["optional-dependencies"]
        for text in [
            *PROJECT["project"]["dependencies"],
            *groups["notebooks"],
            *groups["perceptual"],
            *groups["course"],
            *groups["test"],
            *groups["lint"],
        ]:
            wanted = Requirement(text)
            if wanted.name not in ("setuptools", "klvae-edu"):  # installed with the environment, another group
                assert wanted.specifier.contains(tested[canonicalize_name(wanted.name)]), text

    def test_the_bare_import_does_not_even_load_torch(self):
        code = "import sys, klvae_edu; print(*sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "torch" not in result.stdout.split()

    def test_using_the_package_loads_nothing_heavy_but_torch(self):
        code = "import sys; from klvae_edu import *; AutoencoderKL.from_preset('tiny'); print(*sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        heavy = {"lpips", "datasets", "accelerate", "ipywidgets", "matplotlib", "skimage"}
        heavy |= {"torchvision", "tyro", "huggingface_hub", "PIL"}
        assert {"klvae_edu.autoencoder", "torch"} <= {*result.stdout.split()}
        assert not heavy & {*result.stdout.split()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the project's files, without an earlier build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked():
        copy = folder / "tree" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip(["wheel", *options, "--wheel-dir", str(folder), str(folder / "tree")])
    (wheel,) = folder.glob("*.whl")
    return wheel


class TestWheel:
    def test_contains_the_package_with_its_data_and_nothing_else(self, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        inside = {name for name in names if not re.match(r"klvae_edu-[^/]+\.dist-info/", name)}
        assert inside == {
            path.relative_to(ROOT).as_posix() for path in tracked() if path.is_relative_to(ROOT / "klvae_edu")
        }

    def test_carries_every_licence(self, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        wanted = ["LICENSE", *(f"LICENSES/{path.name}" for path in tracked() if path.parent == ROOT / "LICENSES")]
        for name in wanted:
            assert any(inside.endswith(f".dist-info/licenses/{name}") for inside in names), name

    def test_works_without_the_tree(self, wheel, tmp_path):
        pip(["install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel)])
        code = "import klvae_edu as it; print(it.__file__, it.AutoencoderKL.from_preset('tiny').num_parameters())"
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-P", "-c", code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        file, parameters = result.stdout.split()
        assert Path(file).is_relative_to(tmp_path)
        assert int(parameters) > 0


def pip(arguments):
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# A stand-in for python3 that records its arguments. "-m venv FOLDER" makes another one.
PYTHON = """\
#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
    "-c import sys; sys.exit(sys.version_info"*) test ! -e too-old ;;
    --version) echo "Python 3.9.2" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install"*) test ! -e no-network ;;
esac
"""


@pytest.mark.skipif(not shutil.which("make") and not os.environ.get("CI"), reason="there is no make here")
class TestMakefile:
    @pytest.fixture
    def make(self, tmp_path):
        """Run make in an empty clone, in a folder with a space in its name, with a stand-in for Python."""
        folder = tmp_path / "a clone"
        (folder / "bin").mkdir(parents=True)
        shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
        (folder / "bin" / "python3").write_text(PYTHON)
        (folder / "bin" / "python3").chmod(0o755)
        for tool in ("sh", "make", "echo", "basename", "test", "mkdir", "cp", "touch", "id", "awk", "sed", "mv"):
            if found := shutil.which(tool):  # nothing else is on the path, neither uv nor another Python
                (folder / "bin" / tool).symlink_to(found)
        log = folder / "log"

        def run(*arguments, **settings):
            log.write_text("")
            environment = {"PATH": str(folder / "bin"), "LOG": str(log), **settings}
            result = subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
            return result, log.read_text()

        run.folder = folder
        return run

    def test_lists_its_commands_when_asked_nothing(self, make):
        result, log = make()
        assert {line.split()[1] for line in result.stdout.splitlines()} == COMMANDS
        assert log == ""

    @pytest.mark.parametrize("command", sorted(COMMANDS - {"help"}))
    def test_every_command_builds_the_environment_when_it_is_missing_and_only_then(self, make, command):
        result, log = make(command, "NB=03")
        assert result.returncode == 0, result.stderr
        assert "python3 -m venv .venv\n" in log
        assert "-m pip install -c constraints.txt -e .[all]" in log
        _, log = make(command, "NB=03")
        assert "venv .venv" not in log
        assert "pip install" not in log

    def test_an_interrupted_installation_is_repeated(self, make):
        (make.folder / "no-network").touch()
        assert make("lint")[0].returncode != 0
        (make.folder / "no-network").unlink()
        result, log = make("lint")
        assert result.returncode == 0
        assert "pip install" in log

    def test_uv_is_used_where_there_is_one(self, make):
        (make.folder / "bin" / "uv").write_text(
            '#!/bin/sh\necho "uv $*" >> "$LOG"\nmkdir -p .venv/bin\ncp bin/python3 .venv/bin/python\n'
        )
        (make.folder / "bin" / "uv").chmod(0o755)
        result, log = make("lint")
        assert result.returncode == 0, result.stderr
        assert "uv venv --seed --allow-existing --python python3 .venv" in log
        assert "uv pip install --python .venv/bin/python -c constraints.txt -e .[all]" in log
        assert "-m venv" not in log

    def test_a_python_that_is_too_old_is_refused_in_a_sentence(self, make):
        (make.folder / "too-old").touch()
        result, log = make("lab")
        assert result.returncode != 0
        assert "The course needs Python 3.11 or later, and python3 is Python 3.9.2." in result.stdout
        assert "venv" not in log

    def test_lab_makes_the_learners_copy_and_opens_it_with_the_options_given(self, make):
        _, log = make("lab", "LAB_ARGS=--no-browser --port=9999")
        copying, opening = log.splitlines()[-2:]
        assert copying == "python -m tools.learner_copy --to work"
        assert opening.startswith("python -m jupyterlab --ServerApp.root_dir=work")
        assert opening.endswith("--no-browser --port=9999")
        assert ("--allow-root" in opening) == (os.getuid() == 0)

    @pytest.mark.parametrize("failing", ["pytest tests", "--nbval"])
    def test_test_runs_both_halves_and_fails_when_either_does(self, make, failing):
        make("lint")
        python = make.folder / ".venv" / "bin" / "python"
        python.write_text(PYTHON.replace("case", f'case "$*" in *"{failing}"*) exit 1;; esac\ncase', 1))
        result, log = make("test")
        assert result.returncode != 0
        assert "-m pytest tests -n 2 --dist loadscope" in log
        assert re.search("--nbval .* -n 2 --dist loadscope notebooks", log)

    def test_oldest_tests_the_lowest_versions_in_an_environment_of_its_own(self, make):
        result, log = make("oldest")
        assert result.returncode == 0, result.stderr
        assert log.splitlines()[-4:] == [
            "python3 -m venv .venv-oldest",
            "python -m pip install uv",
            "python -m uv pip install --python .venv-oldest --resolution lowest-direct -e .[all]",
            "python -m pytest tests --ignore tests/browser/test_lab.py -n 2 --dist loadscope",
        ]
        assert (make.folder / ".venv-oldest" / ".gitignore").read_text() == "*\n"

    def test_notebooks_can_be_built_for_a_fork(self, make):
        _, log = make("notebooks", "REPO=me/fork")
        assert "python -m tools.build_notebooks --repo me/fork" in log.splitlines()

    def test_processes_start_with_the_packages_own_settings(self):
        from klvae_edu.environment import PROCESS_SETTINGS

        for name, value in PROCESS_SETTINGS.items():
            assert re.search(rf"^export {name} .?= {value}$", (ROOT / "Makefile").read_text(), re.MULTILINE), name


BANNED_OPENINGS = ("What ", "How ", "Whether ", "Which ", "The one ")


def banned_docstrings(source: str) -> list[str]:
    """List name and first words of each docstring that does not begin with a verb or the noun itself."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    texts = [(getattr(node, "name", "module"), ast.get_docstring(node) or "") for node in nodes]
    return [f"{name}: {' '.join(text.split()[:4])}" for name, text in texts if text.startswith(BANNED_OPENINGS)]


class TestDocstrings:
    @pytest.mark.parametrize("folder", ["klvae_edu", "tools", "benchmarks", "tests"])
    def test_begin_with_a_verb_or_a_noun(self, folder):
        files = sorted((ROOT / folder).rglob("*.py"))
        assert files
        found = {path: banned_docstrings(path.read_text(encoding="utf-8")) for path in files}
        assert [f"{path.relative_to(ROOT)}: {text}" for path in files for text in found[path]] == []

    def test_with_another_opening_are_found(self):
        module = '"""How it works."""\ndef f():\n    """Whether x."""\nclass A:\n    """Return what is."""\n'
        assert banned_docstrings(module) == ["module: How it works.", "f: Whether x."]


class TestLayers:
    """The contract of import-linter, on a copy of the package."""

    @pytest.fixture
    def lint_imports(self, tmp_path):
        for path in [ROOT / "pyproject.toml", *(ROOT / "klvae_edu").rglob("*.py")]:
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        command = [sys.executable, "-c", code, "--no-cache"]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return lambda: subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    def test_are_kept(self, lint_imports):
        result = lint_imports()
        assert result.returncode == 0, result.stdout + result.stderr

    def test_an_upward_import_inside_a_function_breaks_the_contract(self, lint_imports, tmp_path):
        with (tmp_path / "klvae_edu" / "blocks.py").open("a", encoding="utf-8") as file:
            file.write("\n\ndef upward():\n    import klvae_edu.autoencoder\n")
        result = lint_imports()
        assert result.returncode == 1, result.stdout + result.stderr
        assert "klvae_edu.blocks" in result.stdout
