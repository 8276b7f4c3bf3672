"""The tools that build, measure and hand out the notebooks."""

import json
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import nbformat
import pytest

from tools import build_notebooks, learner_copy, measure_notebooks
from tools.course import Course, CourseError
from tools.macros import expand
from tools.markers import select

NAME = "07_sample"
PROJECT = '[project]\nname = "x"\n\n[tool.klvae_edu]\nrepo = "{}"\n'
SOURCE = """\
# %% [markdown]
# # 07 · A sample
#
# {{badge}}
#
# What is half of it?

# %% tags=["environment"]

# %% [markdown]
# How large is a half of $e^{{\\mu}}$? See {{solutions-link}}.

# %%
def half(x: float) -> float:
    # BEGIN SOLUTION
    quotient = x / 2
    return quotient
    # SKELETON
    #| quotient = ...  # divide
    #|
    #| if x:
    #|     return quotient
    # END SOLUTION


# %%
def double(x: float) -> float:
    # BEGIN SOLUTION
    return 2 * x
    # END SOLUTION


print("the same words in every run")

# %% tags=["solution-only"]
print(half(3.0))
"""


@pytest.fixture
def course(tmp_path):
    course = Course(tmp_path / "the course")
    course.source(NAME).parent.mkdir(parents=True)
    course.source(NAME).write_text(SOURCE, encoding="utf-8")
    (course.root / "pyproject.toml").write_text(PROJECT.format("someone/course"))
    (course.root / "klvae_edu").mkdir()
    (course.root / "klvae_edu" / "_version.py").write_text('__version__ = "1.2.3"\n')
    return course


@pytest.fixture
def unpublished(course):
    (course.root / "pyproject.toml").write_text(PROJECT.format(""))
    return course


@pytest.fixture
def quick_environment(monkeypatch):
    """An environment cell that does not load torch."""
    monkeypatch.setattr(build_notebooks, "ENVIRONMENT_CELL", "where = [SOURCES]\nprint('ready')")


def code(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def text(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


class TestExercises:
    def test_the_solved_notebook_has_the_solution_and_no_marker(self, course):
        source = code(build_notebooks.parse(course, NAME, solved=True))
        assert "    quotient = x / 2\n    return quotient\n" in source
        assert "SOLUTION" not in source
        assert "SKELETON" not in source
        assert "#|" not in source

    def test_the_learners_notebook_has_the_skeleton_with_its_indentation(self, course):
        source = code(build_notebooks.parse(course, NAME, solved=False))
        assert "    quotient = ...  # divide\n\n    if x:\n        return quotient\n" in source
        assert "x / 2" not in source
        assert "SOLUTION" not in source

    def test_without_a_skeleton_the_learners_function_raises_not_implemented(self, course):
        source = code(build_notebooks.parse(course, NAME, solved=False))
        assert "def double(x: float) -> float:\n    raise NotImplementedError\n" in source

    def test_a_cell_for_the_solution_only_is_not_in_the_learners_notebook(self, course):
        assert "print(half(3.0))" in code(build_notebooks.parse(course, NAME, solved=True))
        assert "print(half(3.0))" not in code(build_notebooks.parse(course, NAME, solved=False))

    @pytest.mark.parametrize(
        ("lines", "line", "message"),
        [
            (["# BEGIN SOLUTION", "x = 1"], 3, "# END SOLUTION"),
            (["# BEGIN SOLUTION", "x = 1", "# %%", "# END SOLUTION"], 3, "# END SOLUTION"),
            (["# BEGIN SOLUTION", "x = 1", "# BEGIN SOLUTION"], 3, "inside an exercise"),
            (["x = 1", "# END SOLUTION"], 2, "without"),
            (["# SKELETON"], 1, "without"),
            (["  # BEGIN SOLUTION", "  x = 1", "  # SKELETON", "  x = ..."], 4, 'starts with "#| "'),
            (["# BEGIN SOLUTION", "x = 1", "# END SOLUTION"], 3, "outside of a function"),
            (["# BEGIN SOLUTION", "# SKELETON"], 2, "empty"),
            (["# BEGIN SOLUTION", "x = 1", "# SKELETON", "# END SOLUTION"], 4, "empty"),
            (["# Begin Solution", "x = 1"], 1, "exactly"),
            (["#END SOLUTION"], 1, "exactly"),
            (["# SKELETON:"], 1, "exactly"),
        ],
    )
    @pytest.mark.parametrize("solved", [False, True])
    def test_a_malformed_marker_is_an_error_that_names_file_and_line(self, lines, line, message, solved):
        with pytest.raises(CourseError, match=rf"^03_x\.py:{line}: .*{message}"):
            select("\n".join(lines), solved, "03_x.py")


class TestText:
    def test_the_badge_opens_this_notebook_in_the_published_repository_at_this_version(self, course):
        learners, solved = (text(build_notebooks.render(course, NAME, state)) for state in (False, True))
        assert "/github/someone/course/blob/v1.2.3/notebooks/07_sample.ipynb)" in learners
        assert "/github/someone/course/blob/v1.2.3/notebooks/solutions/07_sample.ipynb)" in solved

    def test_while_no_repository_is_set_there_is_no_badge_nor_a_gap_in_its_place(self, unpublished):
        first = build_notebooks.render(unpublished, NAME, solved=False).cells[0].source
        assert first == "# 07 · A sample\n\nWhat is half of it?"

    def test_each_state_links_to_the_other(self, course):
        learners, solved = (text(build_notebooks.render(course, NAME, state)) for state in (False, True))
        assert "(solutions/07_sample.ipynb)" in learners
        assert "(../07_sample.ipynb)" in solved

    @pytest.mark.parametrize("figure", ["![a cat](images/cat.png)", '<img alt="a cat" src="images/cat.png">'])
    def test_a_figure_in_a_file_of_its_own_is_refused_because_a_notebook_works_alone(self, course, figure):
        with pytest.raises(CourseError, match=r"images/cat\.png.* is a separate file"):
            expand(f"Look: {figure}", course, NAME, False)

    def test_latex_with_double_braces_is_left_alone(self, course):
        assert r"$e^{{\mu}}$" in text(build_notebooks.render(course, NAME, solved=False))

    def test_an_unknown_macro_is_an_error(self, course):
        with pytest.raises(CourseError, match=r"07_sample: unknown macro \{\{bagde\}\}"):
            expand("{{bagde}}", course, NAME, False)

    def test_the_budget_is_what_was_measured_rounded_up(self, course):
        course.measurements.write_text(json.dumps({NAME: {"seconds": 36.2, "gigabytes": 0.81}}))
        line = expand("{{budget}}", course, NAME, False)
        assert line == "Measured: about 40 s and 0.9 GB on 2 CPU cores"

    def test_a_budget_that_was_not_measured_names_the_command(self, course):
        with pytest.raises(CourseError, match="make measure NB=07"):
            expand("{{budget}}", course, NAME, False)

    def test_the_exercise_macro_takes_its_words_from_the_catalogue(self, course):
        from klvae_edu.exercises import EXERCISES

        number, it = next(iter(EXERCISES.items()))
        heading, _, effort = expand(f"{{{{exercise {number}}}}}", course, f"{number[:2]}_x", False).split("\n")
        assert heading == f"### Exercise {number}: {it.title}"
        assert effort == f"Difficulty {it.difficulty} of 5 · about {it.minutes} minutes"

    @pytest.mark.parametrize("number", ["07.99", "01.1"])
    def test_an_exercise_that_is_not_this_notebooks_is_an_error(self, course, number):
        with pytest.raises(CourseError, match=f"no exercise '{number}' for this notebook"):
            expand(f"{{{{exercise {number}}}}}", course, NAME, False)


class TestEnvironmentCell:
    def cell(self, course):
        notebook = build_notebooks.parse(course, NAME, solved=False)
        return next(cell for cell in notebook.cells if build_notebooks.is_environment(cell))

    def run(self, course, monkeypatch, folder, installed=False):
        """Run the cell in this folder; return the commands that it runs, with their constraints."""
        commands = []
        present = [installed, True]  # before and after an installation
        monkeypatch.setattr(util, "find_spec", lambda name: present.pop(0) or None)
        monkeypatch.setattr(
            subprocess, "check_call", lambda it: commands.append((it, Path(it[it.index("-c") + 1]).read_text()))
        )
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        exec(self.cell(course).source, {})
        return commands

    def test_is_short_and_its_output_is_not_compared(self, course):
        cell = self.cell(course)
        assert cell.metadata.tags == ["environment", "nbval-ignore-output"]
        assert len(cell.source.splitlines()) <= 26

    def test_prints_versions_and_device_where_the_package_is_installed(self, course, monkeypatch, capsys, tmp_path):
        assert self.run(course, monkeypatch, tmp_path, installed=True) == []
        printed = capsys.readouterr().out
        for word in ("Python", "torch", metadata.version("klvae-edu"), "device: "):
            assert word in printed

    def test_run_again_it_installs_nothing(self, course, monkeypatch, tmp_path):
        (tmp_path / "klvae_edu-1.2.3-py3-none-any.whl").touch()
        assert len(self.run(course, monkeypatch, tmp_path)) == 1
        assert self.run(course, monkeypatch, tmp_path, installed=True) == []

    def test_installs_the_newest_wheel_beside_the_notebook(self, course, monkeypatch, tmp_path):
        for version in ("0.9.0", "0.10.0", "0.2.0"):
            (tmp_path / f"klvae_edu-{version}-py3-none-any.whl").touch()
        ((command, _),) = self.run(course, monkeypatch, tmp_path)
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        wheel = (tmp_path / "klvae_edu-0.10.0-py3-none-any.whl").resolve().as_uri()
        assert command[-1] == f"klvae-edu[notebooks] @ {wheel}"

    def test_a_solved_notebook_finds_the_wheel_one_folder_up(self, course, monkeypatch, tmp_path):
        (tmp_path / "klvae_edu-1.2.3-py3-none-any.whl").touch()
        ((command, _),) = self.run(course, monkeypatch, tmp_path / "solutions")
        assert command[-1].endswith("/klvae_edu-1.2.3-py3-none-any.whl")

    def test_without_a_wheel_it_installs_this_version_from_the_repository(self, course, monkeypatch, tmp_path):
        ((command, _),) = self.run(course, monkeypatch, tmp_path)
        assert command[-1] == "klvae-edu[notebooks] @ git+https://github.com/someone/course@v1.2.3"

    def test_what_is_installed_stays_at_its_version(self, course, monkeypatch, tmp_path):
        ((_, kept),) = self.run(course, monkeypatch, tmp_path)
        for name in ("torch", "numpy", "torchvision", "matplotlib", "ipywidgets", "pillow"):
            assert f"{name}=={metadata.version(name)}\n" in kept

    def test_with_neither_a_wheel_nor_a_repository_it_says_what_to_do(self, unpublished, monkeypatch, tmp_path):
        with pytest.raises(ModuleNotFoundError, match=r"make lab.*klvae_edu-.*\.whl beside this notebook"):
            self.run(unpublished, monkeypatch, tmp_path)

    def test_names_no_repository_while_none_is_set(self, unpublished):
        assert "git+" not in self.cell(unpublished).source

    def test_must_be_empty_in_the_source(self, course):
        course.source(NAME).write_text('# %% tags=["environment"]\nimport torch\n')
        with pytest.raises(CourseError, match="leave it empty"):
            build_notebooks.parse(course, NAME, solved=False)


@pytest.mark.usefixtures("quick_environment")
class TestBuilding:
    def files(self, course):
        return [course.built(NAME, solved) for solved in (False, True)]

    def test_both_notebooks_are_executed_and_building_again_gives_the_same_bytes(self, course):
        assert build_notebooks.main([], course) == 0
        first = [file.read_bytes() for file in self.files(course)]
        solved = nbformat.reads(first[1].decode(), as_version=4)
        assert solved.cells[-1].outputs[0].text == "1.5\n"
        assert build_notebooks.main(["7", "--execute"], course) == 0
        assert [file.read_bytes() for file in self.files(course)] == first

    def test_nothing_that_changes_by_itself_is_stored(self, course):
        course.source(NAME).write_text(
            "# %%\nimport os, sys\nimport ipywidgets\n\nprint(os.path.basename(os.getcwd()), file=sys.stderr)\n"
            "print('a')\n\n# %%\nipywidgets.IntSlider()\n"
        )
        assert build_notebooks.main([], course) == 0
        stored = json.loads(self.files(course)[1].read_text())
        assert stored["metadata"] == build_notebooks.METADATA
        assert all(cell["metadata"] == {} for cell in stored["cells"])
        (slider,) = stored["cells"][1]["outputs"]
        assert [*slider["data"]] == ["text/plain"]
        streams = {output["name"]: output["text"] for output in stored["cells"][0]["outputs"]}
        assert streams == {"stdout": ["a\n"], "stderr": ["solutions\n"]}

    def test_text_and_repository_change_without_executing_anything(self, course, monkeypatch):
        build_notebooks.main([], course)
        monkeypatch.setattr(build_notebooks, "execute", None)
        course.source(NAME).write_text(SOURCE.replace("A sample", "Another sample"))
        assert build_notebooks.main(["--repo", "me/fork"], course) == 0
        for file in self.files(course):
            notebook = nbformat.read(file, as_version=4)
            assert "Another sample" in text(notebook)
            assert "github/me/fork/blob" in text(notebook)
            assert "me/fork@v1.2.3" in code(notebook)
            assert "someone" not in file.read_text()
            assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
        assert build_notebooks.main(["--check"], course) == 0

    def test_changed_code_is_executed(self, course, capsys):
        build_notebooks.main([], course)
        course.source(NAME).write_text(SOURCE.replace("half(3.0)", "half(5.0)"))
        capsys.readouterr()
        assert build_notebooks.main([], course) == 0
        learners, solved = capsys.readouterr().out.splitlines()
        assert learners.startswith("notebooks/07_sample.ipynb: unchanged; 12 words")
        assert solved.startswith("notebooks/solutions/07_sample.ipynb: executed;")
        assert nbformat.read(self.files(course)[1], as_version=4).cells[-1].outputs[0].text == "2.5\n"

    @pytest.mark.parametrize(
        ("cell", "complaint"), [("import os\nos._exit(1)", "died"), ("import time\ntime.sleep(60)", "timed out")]
    )
    def test_a_cell_that_ends_or_stops_its_kernel_fails(self, course, cell, complaint, capsys, monkeypatch):
        monkeypatch.setattr(build_notebooks, "CELL_SECONDS", 5)
        course.source(NAME).write_text(f"# %%\n{cell}\n")
        assert build_notebooks.main([], course) == 1
        assert complaint in capsys.readouterr().err

    def test_an_error_in_a_cell_fails_and_writes_nothing(self, course, capsys):
        course.source(NAME).write_text("# %%\nprint(1 / 0)\n")
        assert build_notebooks.main([], course) == 1
        complaint = capsys.readouterr().err
        assert "notebooks/07_sample.ipynb is not written" in complaint
        assert "ZeroDivisionError" in complaint
        assert not any(file.exists() for file in self.files(course))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda notebook: notebook.cells[0].update(source="edited"),
            lambda notebook: notebook.cells[1].update(execution_count=None),
            lambda notebook: notebook.cells[1].metadata.update(tags=[]),
            lambda notebook: notebook.cells.pop(),
            lambda notebook: notebook.metadata.update(widgets={}),
            lambda notebook: notebook.cells[2].update(id="other"),
        ],
        ids=["text", "not executed", "tags", "cell", "metadata", "id"],
    )
    def test_check_finds_a_notebook_that_is_not_what_its_source_gives(self, course, damage, capsys):
        for solved in (False, True):
            notebook = build_notebooks.render(course, NAME, solved)
            for count, cell in enumerate(build_notebooks.code_cells(notebook), 1):
                cell.execution_count = count
            course.built(NAME, solved).parent.mkdir(exist_ok=True)
            nbformat.write(notebook, course.built(NAME, solved))
        assert build_notebooks.main(["--check"], course) == 0
        notebook = nbformat.read(self.files(course)[1], as_version=4)
        damage(notebook)
        nbformat.write(notebook, self.files(course)[1])
        assert build_notebooks.main(["--check"], course) == 1
        assert "notebooks/solutions/07_sample.ipynb" in capsys.readouterr().out

    def test_check_finds_a_notebook_that_was_not_built_and_one_without_a_source(self, course, capsys):
        assert build_notebooks.main(["--check"], course) == 1
        assert "is missing" in capsys.readouterr().out
        nbformat.write(nbformat.v4.new_notebook(), course.notebooks / "08_orphan.ipynb")
        assert build_notebooks.main(["--check", "8"], course) == 1
        assert "08_orphan has no source" in capsys.readouterr().err

    def test_a_notebook_that_git_left_half_merged_is_built_anew(self, course):
        for solved in (False, True):
            course.built(NAME, solved).parent.mkdir(exist_ok=True)
            course.built(NAME, solved).write_text("<<<<<<< HEAD\n{}")
        assert build_notebooks.main(["--check"], course) == 1
        assert build_notebooks.main([], course) == 0
        assert build_notebooks.main(["--check"], course) == 0

    def test_a_repository_that_is_none_is_refused(self, course, capsys):
        assert build_notebooks.main(["--repo", "https://example.org/me/fork"], course) == 1
        assert "OWNER/NAME" in capsys.readouterr().err

    def test_a_measurement_is_written_for_the_notebook_that_was_asked_for(self, course):
        course.measurements.write_text('{"01_other": {"seconds": 1.0, "gigabytes": 0.1}}')
        assert measure_notebooks.main(["07"], course) == 0
        measured = json.loads(course.measurements.read_text())
        assert measured["01_other"] == {"seconds": 1.0, "gigabytes": 0.1}
        assert 0 < measured[NAME]["seconds"] < 120
        assert 0.02 < measured[NAME]["gigabytes"] < 2


@pytest.fixture
def handed_out(tmp_path):
    """A course of two built notebooks and a figure, and a learner's new copy of it."""
    course, work = Course(tmp_path / "course"), tmp_path / "my work"
    for file in ("notebooks/03_first.ipynb", "notebooks/solutions/03_first.ipynb", "notebooks/11_second.ipynb"):
        write_cell(course.root / file, "print('as handed out')")
    (course.notebooks / "images").mkdir()
    (course.notebooks / "images" / "cat.png").write_bytes(b"a cat")
    assert learner_copy.main(["--to", str(work)], course) == 0
    return course, work


def write_cell(file, source, outputs=()):
    file.parent.mkdir(parents=True, exist_ok=True)
    cell = nbformat.v4.new_code_cell(source, id="cell", outputs=[*outputs])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)


class TestLearnersCopy:
    def test_has_the_notebooks_their_solutions_and_the_figures(self, handed_out):
        course, work = handed_out
        files = ["03_first.ipynb", "11_second.ipynb", "images/cat.png", "solutions/03_first.ipynb"]
        for file in files:
            assert (work / file).read_bytes() == (course.notebooks / file).read_bytes()
        visible = sorted(path.relative_to(work).as_posix() for path in work.rglob("[!.]*") if path.is_file())
        assert visible == files

    def test_what_the_learner_wrote_is_kept_and_the_newer_one_offered(self, handed_out, capsys):
        course, work = handed_out
        write_cell(work / "03_first.ipynb", "print('my work')")
        learner_copy.main(["--to", str(work)], course)
        assert "newer" not in capsys.readouterr().out
        write_cell(course.notebooks / "03_first.ipynb", "print('updated')")
        for _ in range(2):
            mine = (work / "03_first.ipynb").read_bytes()
            learner_copy.main(["--to", str(work)], course)
            assert (work / "03_first.ipynb").read_bytes() == mine
            assert "make fresh NB=03" in capsys.readouterr().out

    def test_a_notebook_nobody_wrote_in_follows_the_course(self, handed_out):
        course, work = handed_out
        for round in ("updated", "updated again"):
            write_cell(course.notebooks / "03_first.ipynb", f"print('{round}')")
            learner_copy.main(["--to", str(work)], course)
            assert (work / "03_first.ipynb").read_bytes() == (course.notebooks / "03_first.ipynb").read_bytes()

    def test_running_a_notebook_is_not_writing_in_it(self, handed_out):
        course, work = handed_out
        ran = nbformat.v4.new_output("stream", text="as handed out\n")
        write_cell(work / "03_first.ipynb", "print('as handed out')", [ran])
        mine = (work / "03_first.ipynb").read_bytes()
        learner_copy.main(["--to", str(work)], course)
        assert (work / "03_first.ipynb").read_bytes() == mine, "outputs stay as long as the course says the same"
        write_cell(course.notebooks / "03_first.ipynb", "print('updated')")
        learner_copy.main(["--to", str(work)], course)
        assert "updated" in (work / "03_first.ipynb").read_text()

    def test_a_notebook_that_is_none_any_more_is_kept(self, handed_out):
        course, work = handed_out
        (work / "03_first.ipynb").write_text("<<<<<<< conflict")
        write_cell(course.notebooks / "03_first.ipynb", "print('updated')")
        learner_copy.main(["--to", str(work)], course)
        assert (work / "03_first.ipynb").read_text() == "<<<<<<< conflict"

    def test_a_figure_the_learner_replaced_is_kept_and_one_untouched_refreshed(self, handed_out):
        course, work = handed_out
        (course.notebooks / "images" / "cat.png").write_bytes(b"a better cat")
        learner_copy.main(["--to", str(work)], course)
        assert (work / "images" / "cat.png").read_bytes() == b"a better cat"
        (work / "images" / "cat.png").write_bytes(b"my cat")
        (course.notebooks / "images" / "cat.png").write_bytes(b"the best cat")
        learner_copy.main(["--to", str(work)], course)
        assert (work / "images" / "cat.png").read_bytes() == b"my cat"

    def test_a_notebook_the_learner_removed_comes_back_clean(self, handed_out):
        course, work = handed_out
        (work / "03_first.ipynb").unlink()
        learner_copy.main(["--to", str(work)], course)
        assert (work / "03_first.ipynb").read_bytes() == (course.notebooks / "03_first.ipynb").read_bytes()

    def test_files_of_the_learners_own_are_left_alone(self, handed_out):
        course, work = handed_out
        (work / "notes.txt").write_text("mine")
        write_cell(work / "12_mine.ipynb", "print('mine')")
        write_cell(course.notebooks / "12_mine.ipynb", "print('a notebook of the course by the same name')")
        learner_copy.main(["--to", str(work)], course)
        assert (work / "notes.txt").read_text() == "mine"
        assert "print('mine')" in (work / "12_mine.ipynb").read_text()

    @pytest.mark.parametrize("record", [None, "", "[]", "{"])
    def test_without_its_record_nothing_that_differs_is_overwritten(self, handed_out, record):
        course, work = handed_out
        (work / learner_copy.RECORD).unlink()
        if record is not None:
            (work / learner_copy.RECORD).write_text(record)
        write_cell(course.notebooks / "03_first.ipynb", "print('updated')")
        learner_copy.main(["--to", str(work)], course)
        assert "as handed out" in (work / "03_first.ipynb").read_text()

    def test_a_course_without_notebooks_is_an_error(self, tmp_path, capsys):
        assert learner_copy.main(["--to", str(tmp_path / "work")], Course(tmp_path)) == 1
        assert "no notebooks" in capsys.readouterr().err


class TestFreshCopy:
    def test_lies_beside_the_learners_own_and_never_replaces_one(self, handed_out):
        course, work = handed_out
        write_cell(work / "03_first.ipynb", "print('my work')")
        for wanted, name in [("03", "fresh"), ("3", "fresh-2"), ("03_first.ipynb", "fresh-3")]:
            assert learner_copy.main(["--to", str(work), "--fresh", wanted], course) == 0
            copy = work / f"03_first.{name}.ipynb"
            assert copy.read_bytes() == (course.notebooks / "03_first.ipynb").read_bytes()
            write_cell(copy, "print('more work')")
        assert "my work" in (work / "03_first.ipynb").read_text()
        assert "more work" in (work / "03_first.fresh.ipynb").read_text()

    def test_ends_the_offer_until_the_course_changes_again(self, handed_out, capsys):
        course, work = handed_out
        write_cell(work / "03_first.ipynb", "print('my work')")
        for version in ("updated", "updated again"):
            write_cell(course.notebooks / "03_first.ipynb", f"print('{version}')")
            learner_copy.main(["--to", str(work)], course)
            assert "newer" in capsys.readouterr().out
            learner_copy.main(["--to", str(work), "--fresh", "03"], course)
            learner_copy.main(["--to", str(work)], course)
            assert "newer" not in capsys.readouterr().out

    def test_of_an_untouched_notebook_leaves_it_following_the_course(self, handed_out):
        course, work = handed_out
        write_cell(course.notebooks / "03_first.ipynb", "print('updated')")
        learner_copy.main(["--to", str(work), "--fresh", "03"], course)
        learner_copy.main(["--to", str(work)], course)
        assert "updated" in (work / "03_first.ipynb").read_text()

    def test_works_before_anything_was_handed_out(self, handed_out, tmp_path):
        course, _ = handed_out
        assert learner_copy.main(["--to", str(tmp_path / "new"), "--fresh", "11"], course) == 0
        assert (tmp_path / "new" / "11_second.fresh.ipynb").exists()

    @pytest.mark.parametrize("wanted", ["99", "first", "", "1"])
    def test_of_an_unknown_notebook_lists_those_there_are(self, handed_out, wanted, capsys):
        course, work = handed_out
        assert learner_copy.main(["--to", str(work), "--fresh", wanted], course) == 1
        assert "there are: 03_first, 11_second" in capsys.readouterr().err
