"""Select the solution or the skeleton of each exercise in a notebook's source, by the markers around them.

    def reparameterize(mean, logvar, noise):
        # BEGIN SOLUTION
        std = torch.exp(0.5 * logvar)
        return mean + std * noise
        # SKELETON
        #| std = ...  # the standard deviation
        #| return ...
        # END SOLUTION

The source itself is the solved notebook. Without a SKELETON part, the learner's function raises NotImplementedError.
"""

import re

from tools.course import Course, CourseError

BEGIN, SKELETON, END = MARKERS = ("# BEGIN SOLUTION", "# SKELETON", "# END SOLUTION")
LIKE_A_MARKER = re.compile(r"#\s*(BEGIN\s+SOLUTION|END\s+SOLUTION|SKELETON)\b", re.IGNORECASE)


def read(course: Course, name: str, solved: bool) -> str:
    """Return the source of a notebook, as `select` does.

    Raises:
        CourseError: there is no source, or a marker is misplaced.
    """
    source = course.source(name)
    if not source.exists():
        raise CourseError(f"{name} has no source {source.relative_to(course.root)}")
    return select(source.read_text(encoding="utf-8"), solved, source.name)


def select(text: str, solved: bool, file: str) -> str:
    """Return the source with the solution or the skeleton of every exercise, without markers.

    Raises:
        CourseError: a marker is misspelt or out of place; the message names file and line.
    """
    kept: list[str] = []
    part = indent = ""  # the marker before this line inside an exercise, "" outside of exercises
    filled = False

    for number, line in enumerate([*text.splitlines(), "# %%"], 1):
        stripped = line.strip()

        def complain(message: str, number: int = number) -> CourseError:
            return CourseError(f"{file}:{number}: {message}")

        if stripped.startswith("# %%") and part:
            raise complain(f'the cell ends inside an exercise: "{END}" is missing')
        if stripped not in MARKERS and LIKE_A_MARKER.match(stripped):
            raise complain(f"write the marker exactly as one of: {', '.join(MARKERS)}")
        if stripped == BEGIN:
            if part:
                raise complain("an exercise begins inside an exercise")
            part, indent, filled = BEGIN, line[: line.index("#")], False
        elif stripped == SKELETON:
            if part != BEGIN:
                raise complain(f'"{SKELETON}" without "{BEGIN}" before it')
            if not filled:
                raise complain("the solution is empty")
            part, filled = SKELETON, False
        elif stripped == END:
            if not part:
                raise complain(f'"{END}" without "{BEGIN}" before it')
            if not filled:
                raise complain("the solution or the skeleton before this line is empty")
            if part == BEGIN and not indent:
                raise complain(f'outside of a function an exercise needs a skeleton: add "{SKELETON}"')
            if part == BEGIN and not solved:
                kept.append(f"{indent}raise NotImplementedError")
            part = ""
        elif part == SKELETON:
            match = re.fullmatch(r"(\s*)#\|(?: (.*))?", line)
            if match is None:
                raise complain('every line of a skeleton starts with "#| "')
            filled = True
            if not solved:
                kept.append(f"{match[1]}{match[2] or ''}".rstrip())
        else:
            filled = filled or bool(stripped)
            if solved or not part:
                kept.append(line)
    return "\n".join(kept[:-1]) + "\n"
