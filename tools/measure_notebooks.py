"""Measure time and memory of each notebook on 2 CPU cores, for the line at its top.

Run the solved notebook in a fresh kernel with two threads, and write the wall time in seconds and the kernel's peak
memory to notebooks/source/measured.json. Measure on an idle machine, then build the notebooks.

    python -m tools.measure_notebooks [NN ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import nbformat

from tools.build_notebooks import execute, parse
from tools.course import COURSE, Course, command

# On Linux ru_maxrss includes the process that started the kernel, so /proc is read where it exists.
PEAK_CELL = """\
import pathlib, re, resource, sys
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1])
print(peak)"""


def measure(course: Course, name: str) -> dict[str, float]:
    """Return the seconds from the kernel's start to its end, and its peak memory in GB (10⁹ bytes)."""
    notebook = parse(course, name, solved=True)
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK_CELL))
    began = time.perf_counter()
    execute(notebook, course.built(name, solved=True), threads=2)
    seconds = time.perf_counter() - began
    peak = int(notebook.cells[-1].outputs[0].text)
    return {"seconds": round(seconds, 1), "gigabytes": round(peak / 1e9, 2)}


@command
def main(arguments: list[str] | None = None, course: Course = COURSE) -> None:
    parser = argparse.ArgumentParser(description="Measure time and memory of the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NN", help="only these notebooks, such as 02")
    options = parser.parse_args(arguments)
    file = course.measurements
    for name in [course.named(name) for name in options.names] or course.names():
        measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        measured[name] = measure(course, name)
        file.write_text(json.dumps(measured, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
        print(f"{name}: {measured[name]['seconds']} s, {measured[name]['gigabytes']} GB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
