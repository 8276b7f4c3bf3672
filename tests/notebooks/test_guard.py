"""Rules for the built notebooks, learner's and solved, that nbval does not check.

Each rule takes a notebook and yields descriptions of its faults. A second set of tests puts one fault at a time into a
faultless notebook, and asserts that the rule finds it.
"""

import re
from itertools import pairwise
from statistics import median

import nbformat
import pytest

from tools import build_notebooks
from tools.build_notebooks import is_environment, tags
from tools.course import COURSE

NAMES = COURSE.names()
BOTH = [pytest.param(name, solved, id=f"{name}{'-solved' * solved}") for name in NAMES for solved in (False, True)]
MEGABYTE = 10**6

# ---- Reading a notebook ----------------------------------------------------------------------------------------------


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def outputs(notebook):
    """List all outputs except the environment cell's, which depends on the machine."""
    return [output for cell in code_cells(notebook) if not is_environment(cell) for output in cell.outputs]


def words(output):
    """Return the text of an output."""
    data = output.get("data", {})
    return "".join([output.get("text", ""), *(str(data[kind]) for kind in data if kind.startswith("text/"))])


def prose(notebook):
    """List the text cells without fenced code."""
    return [re.sub(r"^```.*?^```", "", cell.source, flags=re.DOTALL | re.MULTILINE) for cell in text_cells(notebook)]


def headings(notebook):
    return [line for text in prose(notebook) for line in text.splitlines() if re.match("#+ ", line)]


def short(text):
    return repr(text[:70])


# ---- Rules -----------------------------------------------------------------------------------------------------------


def every_code_cell_was_executed_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != [*range(1, len(counts) + 1)]:
        yield f"execution counts are {counts}"


def no_error_and_no_warning_is_stored(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{output.get('ename', 'stderr')} after {short(cell.source)}"


def nothing_stored_changes_from_run_to_run(notebook):
    if notebook.metadata != build_notebooks.METADATA:
        yield f"metadata of the notebook: {dict(notebook.metadata)}"
    for cell in notebook.cells:
        allowed = build_notebooks.FOLDED if is_environment(cell) else {}
        if {name: value for name, value in cell.metadata.items() if name != "tags"} != allowed:
            yield f"metadata of the cell {short(cell.source)}: {dict(cell.metadata)}"
    for output in outputs(notebook):
        for kind in ("widget", "svg"):
            if any(kind in mime for mime in output.get("data", {})):
                yield f"an output of kind {kind}"
        if match := re.search(
            r"\d\d:\d\d:\d\d|\b20\d\d-\d\d-\d\d|\d ?(ms|µs|us|sec|seconds|minutes|it/s)\b", words(output)
        ):
            yield f"a time in an output: {match[0]!r}"


def no_path_of_a_machine(notebook):
    path = re.compile(r"(?<![\w.:/])/(home|root|tmp|work|Users|opt|usr|var|content)/|\b[A-Z]:\\(Users|Program|Windows)")
    for text in [cell.source for cell in notebook.cells] + [words(output) for output in outputs(notebook)]:
        if match := path.search(text):
            yield f"the path {text[match.start() :][:40]!r}"


def only_the_environment_cell_escapes_comparison(notebook):
    for cell in code_cells(notebook):
        escapes = {*tags(cell)} & {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception"}
        if (escapes and not is_environment(cell)) or re.search(r"#\s*NBVAL_", cell.source):
            yield f"the cell {short(cell.source)} is not compared"
    if [tags(cell) for cell in code_cells(notebook)].count(["environment", "nbval-ignore-output"]) != 1:
        yield "there is not one environment cell"


def nothing_is_used_that_cannot_be_compared(notebook):
    unfit = r"\binteract\w*\(|\bOutput\(|\bclear_output\b|\bdisplay_id\b|\bplt\.show\(|^\s*[%!]"
    for cell in code_cells(notebook):
        if match := re.search(unfit, cell.source, re.MULTILINE):
            yield f"{match[0]!r} in {short(cell.source)}"


def every_picture_has_its_caption(notebook):
    """The alt text of a picture is also the text of the next output: front ends do not show the metadata.

    Sliders, which are stored with a text beside their picture, show their caption themselves.
    """
    for cell in code_cells(notebook):
        for output, following in pairwise([*cell.outputs, {}]):
            for mime in output.get("data", {}) if "text/plain" not in output.get("data", {}) else ():
                alt = output.metadata.get(mime, {}).get("alt", "")
                if mime.startswith("image/") and following.get("data", {}).get("text/plain", "") != alt:
                    yield f"an output {mime} without a caption: {short(alt)}"


def every_picture_has_alt_text(notebook):
    for output in outputs(notebook):
        for mime in output.get("data", {}):
            if mime.startswith("image/") and not output.metadata.get(mime, {}).get("alt", "").strip():
                yield f"an output {mime} without alt text"
    for text in prose(notebook):
        yield from (f"{match[0]} has no alt text" for match in re.finditer(r"!\[\s*\]\([^)]*\)", text))
        for match in re.finditer(r"<img\b[^>]*>", text):
            if not re.search(r"""alt=(["'])\s*\S.*?\1""", match[0]):
                yield f"{match[0]} has no alt text"


def begins_with_its_title(notebook):
    if not notebook.cells or not re.match(r"# \S", notebook.cells[0].source):
        yield "the first cell does not begin with a title"
    if sum(line.startswith("# ") for line in headings(notebook)) > 1:
        yield "there is more than one title"


def heading_levels_do_not_jump(notebook):
    level = 0
    for line in headings(notebook):
        depth = line.index(" ")
        if depth > level + 1:
            yield f"{line!r} comes after a heading of level {level}"
        level = depth


def has_the_rhythm_of_the_course(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook) if not is_environment(cell)]
    if lengths and (median(lengths) > 6 or max(lengths) > 40):
        yield f"code cells have {median(lengths)} lines in the median and {max(lengths)} at most (6 and 40 are allowed)"
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    if "ccc" in kinds:
        yield f"three code cells in a row, from cell {kinds.index('ccc')}"


RULES = [
    every_code_cell_was_executed_in_order,
    no_error_and_no_warning_is_stored,
    nothing_stored_changes_from_run_to_run,
    no_path_of_a_machine,
    only_the_environment_cell_escapes_comparison,
    nothing_is_used_that_cannot_be_compared,
    every_picture_has_alt_text,
    every_picture_has_its_caption,
    begins_with_its_title,
    heading_levels_do_not_jump,
    has_the_rhythm_of_the_course,
]

# ---- The course's notebooks ------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(name, solved):
    return nbformat.read(COURSE.built(name, solved), as_version=4)


def test_there_is_a_course():
    assert NAMES
    assert len({name[:2] for name in NAMES}) == len(NAMES), "two notebooks have one number"


@pytest.mark.parametrize(("name", "solved"), BOTH)
class TestEveryNotebook:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
    def test_keeps_the_rule(self, notebook, rule):
        assert [*rule(notebook)] == []

    def test_is_what_its_source_gives(self, name, solved):
        assert build_notebooks.difference(COURSE, name, solved) is None, "run make notebooks"

    def test_is_below_one_megabyte(self, name, solved):
        assert COURSE.built(name, solved).stat().st_size < MEGABYTE

    def test_says_what_it_costs(self, notebook):
        assert re.search(r"Measured: about \d+ s and [\d.]+ GB on 2 CPU cores", notebook.cells[0].source)

    def test_checks_each_of_its_exercises_once_and_no_other(self, name, notebook):
        from klvae_edu.exercises import EXERCISES

        checked = re.findall(
            r"""\bcheck\(\s*["']([\d.]+)["']""", "\n".join(cell.source for cell in code_cells(notebook))
        )
        assert sorted(checked) == sorted(key for key, it in EXERCISES.items() if it.notebook == name)

    def test_introduces_each_exercise_before_its_check(self, name, notebook):
        from klvae_edu.exercises import EXERCISES

        cells = [cell.source for cell in notebook.cells]
        for key in (key for key, it in EXERCISES.items() if it.notebook == name):
            heading = next(index for index, source in enumerate(cells) if f"### Exercise {key}:" in source)
            check = next(
                index for index, source in enumerate(cells) if re.search(rf"""check\(\s*["']{key}["']""", source)
            )
            assert heading < check

    def test_links_only_to_what_is_handed_out_with_it(self, name, solved, notebook):
        folder = COURSE.built(name, solved).parent
        for target in re.findall(r"""(?:\]\(|src=["'])([^)"'\s]+)""", "\n".join(prose(notebook))):
            if re.match(r"[a-z]+:|#", target):
                continue
            file = (folder / target.split("#")[0]).resolve()
            assert file.is_file(), target
            assert file.is_relative_to(COURSE.notebooks), target

    def test_leads_to_the_published_course_as_it_was_at_this_version_and_to_nowhere_else(self, name, solved, notebook):
        sources = "\n".join(cell.source for cell in notebook.cells)
        badges = re.findall(r"colab\.research\.google\.com/github/([^)\s]+)\)", sources)
        installed = re.findall(r"git\+https://([^\"]+)\"", sources)
        if (published := COURSE.published()) is None:
            assert (badges, installed, "colab-badge" in sources) == ([], [], False)
        else:
            repo, tag = published
            path = COURSE.built(name, solved).relative_to(COURSE.root).as_posix()
            assert badges == [f"{repo}/blob/{tag}/{path}"]
            assert installed == [f"github.com/{repo}@{tag}"]


# ---- The rules themselves --------------------------------------------------------------------------------------------


def faultless():
    new = nbformat.v4
    figure = new.new_output("display_data", {"image/png": "aGVsbG8="}, metadata={"image/png": {"alt": "a picture"}})
    caption = new.new_output(
        "display_data", {"text/html": "<p><small>a picture</small></p>", "text/plain": "a picture"}
    )
    stream = new.new_output("stream", name="stdout", text="0.5 of /2 in 3 steps\n")
    folded = {"tags": ["environment", "nbval-ignore-output"], **build_notebooks.FOLDED}
    cells = [
        new.new_markdown_cell("# Title\n\n```\n# a comment\n```\n![a cat](images/cat.png)"),
        new.new_code_cell("setup", metadata=folded, execution_count=1),
        new.new_markdown_cell("## Part\n\n$f: x \\mapsto a/b$"),
        new.new_code_cell("show(figure)", outputs=[figure, caption], execution_count=2),
        new.new_code_cell("print(x)", outputs=[stream], execution_count=3),
    ]
    return new.new_notebook(cells=cells, metadata=build_notebooks.METADATA)


def text(index, source):
    return lambda notebook: notebook.cells[index].update(source=source)


def printed(words):
    return lambda notebook: notebook.cells[4].outputs[0].update(text=words)


def stored(output):
    return lambda notebook: notebook.cells[4].outputs.append(nbformat.from_dict(output))


def data(mime):
    return stored({"output_type": "display_data", "data": {mime: "?"}, "metadata": {}})


HOME = "/".join(["", "home", "me", "x.py"])  # joined here, because no file of the project may contain such a path

FAULTS = [
    (every_code_cell_was_executed_in_order, lambda notebook: notebook.cells[3].update(execution_count=None)),
    (every_code_cell_was_executed_in_order, lambda notebook: notebook.cells[3].update(execution_count=4)),
    (no_error_and_no_warning_is_stored, stored({"output_type": "error", "ename": "E", "evalue": "", "traceback": []})),
    (no_error_and_no_warning_is_stored, stored({"output_type": "stream", "name": "stderr", "text": "careful"})),
    (nothing_stored_changes_from_run_to_run, lambda notebook: notebook.metadata.update(widgets={})),
    (nothing_stored_changes_from_run_to_run, lambda notebook: notebook.cells[3].metadata.update(execution={})),
    (nothing_stored_changes_from_run_to_run, lambda notebook: notebook.cells[1].metadata.pop("jupyter")),
    (nothing_stored_changes_from_run_to_run, data("image/svg+xml")),
    (nothing_stored_changes_from_run_to_run, data(build_notebooks.WIDGET_VIEW)),
    (nothing_stored_changes_from_run_to_run, printed("started at 12:30:00")),
    (nothing_stored_changes_from_run_to_run, printed("took 3.1 seconds")),
    (no_path_of_a_machine, printed(f"saved to {HOME}")),
    (no_path_of_a_machine, text(4, f"open('{HOME}')")),
    (no_path_of_a_machine, printed("C:" + r"\Users\me")),
    (
        only_the_environment_cell_escapes_comparison,
        lambda notebook: notebook.cells[3].metadata.update(tags=["nbval-skip"]),
    ),
    (only_the_environment_cell_escapes_comparison, text(3, "# NBVAL_IGNORE_OUTPUT\nprint(1)")),
    (only_the_environment_cell_escapes_comparison, lambda notebook: notebook.cells.pop(1)),
    (nothing_is_used_that_cannot_be_compared, text(3, "@interact(x=1)")),
    (nothing_is_used_that_cannot_be_compared, text(3, "out = widgets.Output()")),
    (nothing_is_used_that_cannot_be_compared, text(3, "plt.show()")),
    (nothing_is_used_that_cannot_be_compared, text(3, "%pip install x")),
    (every_picture_has_alt_text, lambda notebook: notebook.cells[3].outputs[0].metadata.clear()),
    (every_picture_has_its_caption, lambda notebook: notebook.cells[3].outputs.pop()),
    (every_picture_has_its_caption, lambda notebook: notebook.cells[3].outputs[1].data.update({"text/plain": "a cat"})),
    (every_picture_has_alt_text, text(2, "![](images/cat.png)")),
    (every_picture_has_alt_text, text(2, '<img src="images/cat.png" alt="">')),
    (begins_with_its_title, text(0, "Title")),
    (begins_with_its_title, text(2, "# Another")),
    (heading_levels_do_not_jump, text(2, "### Part")),
    (has_the_rhythm_of_the_course, text(3, "\n".join(["x"] * 41))),
    (has_the_rhythm_of_the_course, lambda notebook: [text(index, "\n".join("x" * 7))(notebook) for index in (3, 4)]),
    (has_the_rhythm_of_the_course, lambda notebook: notebook.cells.insert(3, notebook.cells[3])),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_faultless_notebook_keeps_the_rule(rule):
    assert [*rule(faultless())] == []


@pytest.mark.parametrize(("rule", "plant"), FAULTS, ids=lambda it: getattr(it, "__name__", ""))
def test_the_rule_finds_a_planted_fault(rule, plant):
    notebook = faultless()
    plant(notebook)
    assert [*rule(notebook)]


def test_every_rule_has_a_planted_fault():
    assert {rule for rule, _ in FAULTS} == {*RULES}
