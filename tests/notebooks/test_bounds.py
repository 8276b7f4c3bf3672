"""Bounds on a notebook's size: what a learner can read in one sitting. They are counted in its source, the solved form.

A section whose heading ends in "(optional)" is beside the main path. Plotting is what draws or shows a figure, without
the words of its caption.
"""

import re
from dataclasses import dataclass, field

import jupytext
import pytest

from tools.course import COURSE

MAIN_CELLS, MAIN_WORDS, OPTIONAL_CELLS = 80, 2000, 20
PLOTTING = re.compile(
    r"\bplots?\.|\baxe?s?\b|\bfig\b|\bfigure\(|\bshow(_diagram)?\(|\b(image_grid|lines|bars|maps)\(|legend\(|colorbar"
)
CAPTION = re.compile(r"""\s*(alt=)?f?["'].*["'],?""")


@dataclass
class Size:
    main: int = 0  # cells
    optional: int = 0
    words: int = 0  # of the main path
    lines: int = 0  # of code
    plotting: int = 0
    questions: dict[str, int] = field(default_factory=dict)  # by section, without those of exercises

    @property
    def plotted(self):
        return self.plotting / max(1, self.lines)


def size_of(source):
    """Measure a notebook in jupytext's percent format."""
    size, section, optional = Size(), "", False
    for cell in jupytext.reads(source, fmt="py:percent").cells:
        is_text = cell.cell_type == "markdown"
        if is_text and (heading := re.match(r"## (.*)", cell.source)):
            section, optional = heading[1], heading[1].endswith("(optional)")
        size.optional += optional
        size.main += not optional
        if is_text:
            size.words += 0 if optional else len(words(cell.source))
            if "{{exercise" not in cell.source:
                size.questions[section] = size.questions.get(section, 0) + cell.source.count("?")
        else:
            code = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            size.lines += len(code)
            size.plotting += plotting(code)
    return size


def words(text):
    """List the words of a text without code blocks, formulas, HTML, macros and the targets of links."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|<[^>]+>|\{\{[^}]*\}\}|(?<=\])\([^)]*\)", " ", text, flags=re.DOTALL)
    return re.findall(r"[\w%]+(?:[-'’.,]\w+)*", text)


def plotting(code):
    """Count lines that draw, with the lines of a call that goes on."""
    count = depth = 0
    for line in code:
        if depth > 0 or PLOTTING.search(line):
            count += not CAPTION.fullmatch(line)
            depth = max(0, depth + sum(map(line.count, "([{")) - sum(map(line.count, ")]}")))
    return count


@pytest.mark.parametrize("name", COURSE.names())
class TestEveryNotebook:
    @pytest.fixture
    def size(self, name):
        return size_of(COURSE.source(name).read_text(encoding="utf-8"))

    def test_its_main_path_is_short(self, size):
        assert (size.main <= MAIN_CELLS, size.words <= MAIN_WORDS) == (True, True), size

    def test_what_is_optional_is_little(self, size):
        assert size.optional <= OPTIONAL_CELLS

    def test_a_section_asks_the_reader_once_at_most(self, size):
        asked = {section: count for section, count in size.questions.items() if section != "Summary"}  # self-check
        assert {section: count for section, count in asked.items() if count > 1} == {}

    def test_a_fifth_of_the_code_at_most_is_plotting(self, size):
        assert size.plotted <= 0.2


SAMPLE = """\
# %% [markdown]
# # Title
#
# Three short words, and `code`.

# %%
x = 1
fig = lines({"a": [1, 2]})
show(
    fig,
    alt="One line "
    "that rises.",
)

# %% [markdown]
# ## 1. Which? (optional)
#
# $a + b$ [link](https://example.org/?) ```
# more code
# ```

# %% [markdown]
# {{exercise 01.1}}
#
# Why? Why not?
"""


def test_a_notebook_is_measured_as_described():
    size = size_of(SAMPLE)
    assert (size.main, size.optional) == (2, 2)
    assert words("# Title\n\nThree short words, and `code`.") == ["Title", "Three", "short", "words", "and", "code"]
    assert size.words == 6
    assert (size.lines, size.plotting) == (7, 4)
    assert size.questions == {"": 0, "1. Which? (optional)": 2}
