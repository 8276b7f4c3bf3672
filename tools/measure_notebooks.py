"""Measure what each notebook takes on 2 CPU cores, for the line in its head.

Runs the solved notebook in a fresh kernel with two threads and writes wall seconds and the kernel's peak memory to
notebooks/source/measured.json. Measure on a quiet machine, then build the notebooks.

    python -m tools.measure_notebooks [NN ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import nbformat

from tools.build_notebooks import execute, parse
from tools.course import COURSE, Course, CourseError

# Linux hands ru_maxrss on from the process that started the kernel, hence /proc where there is one.
PEAK_CELL = """\
import pathlib, re, resource, sys
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1])
print(peak)"""


def measure(course: Course, name: str) -> dict[str, float]:
    """Seconds from the kernel's start to its end, and the most memory it held, in GB (10⁹ bytes)."""
    notebook = parse(course, name, solved=True)
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK_CELL))
    began = time.perf_counter()
    execute(notebook, course.built(name, solved=True), threads=2)
    seconds = time.perf_counter() - began
    peak = int(notebook.cells[-1].outputs[0].text)
    return {"seconds": round(seconds, 1), "gigabytes": round(peak / 1e9, 2)}


def main(arguments: list[str] | None = None, course: Course = COURSE) -> int:
    parser = argparse.ArgumentParser(description="Measure time and memory of the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NN", help="only these notebooks, such as 02")
    options = parser.parse_args(arguments)
    file = course.measurements
    try:
        for name in [course.named(name) for name in options.names] or course.names():
            measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            measured[name] = measure(course, name)
            file.write_text(json.dumps(measured, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
            print(f"{name}: {measured[name]['seconds']} s, {measured[name]['gigabytes']} GB", flush=True)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
