"""Pack the course for a class: one zip for the teacher, one for the students, into dist/.

Both zips hold the notebooks and, in the same folder, the package as a wheel, which each notebook's first cell installs.
The teacher's zip also has the solved notebooks, the guide (docs/teaching.md), and questions with different numbers for
each student. The same course always gives the same bytes.

    python -m tools.classroom
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tools.build_notebooks import difference
from tools.course import COURSE, Course, CourseError, command

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold
ZIP_EPOCH_SECONDS = "315532800"  # the same date since 1970
STUDENTS_README = """\
# klvae-edu {version}: build the autoencoder of Stable Diffusion yourself

On your own machine you need Python 3.11 or later. Run this once in this folder, with a network:

    python -m pip install -c constraints.txt jupyterlab "notebooks/{wheel}[notebooks]"

Then, also without a network:

    jupyter lab --notebook-dir=notebooks

On Google Colab: open a notebook with File, Upload notebook; upload `notebooks/{wheel}` under Files; run the first cell.

A notebook works alone: copy it, with the wheel, into any folder. Begin with `00_tour.ipynb`.

The code is under the MIT licence (LICENSE). The photographs in the notebooks are scikit-image's: LICENSES has their
origins and licences.
"""
TEACHERS_README = """
## For the teacher

* `teaching.md`: the guide. Minutes for each section, what goes wrong, questions for discussion, handing out, grading.
* `notebooks/solutions`: the solved notebooks. They and this part are not in the students' zip.
* `questions.py`: a sheet of questions for each student, with different numbers for each, and the answers.
"""


def build_wheel(course: Course, folder: Path) -> Path:
    """Build the package's wheel in a copy of the tree, so that no file of an earlier build gets into it."""
    tree = folder / "tree"
    tree.mkdir()
    shutil.copytree(course.root / "klvae_edu", tree / "klvae_edu", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(course.root / "LICENSES", tree / "LICENSES")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(course.root / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": ZIP_EPOCH_SECONDS}
    if subprocess.run([*pip, "--wheel-dir", str(folder), str(tree)], env=environment).returncode:
        raise CourseError("the wheel could not be built: see above")
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(course: Course, wheel: Path, teacher: bool) -> dict[str, bytes]:
    """Return the files of a zip: name and bytes of each."""
    readme = STUDENTS_README.format(version=course.version, wheel=wheel.name) + (TEACHERS_README if teacher else "")
    root = course.root
    files = {f"notebooks/{wheel.name}": wheel, "LICENSE": root / "LICENSE", "constraints.txt": root / "constraints.txt"}
    files |= {f"LICENSES/{path.name}": path for path in (root / "LICENSES").iterdir()}
    for name in course.names():
        for solved in (False, True) if teacher else (False,):
            path = course.built(name, solved)
            files[path.relative_to(root).as_posix()] = path
    if teacher:
        files |= {"teaching.md": root / "docs" / "teaching.md", "questions.py": root / "tools" / "questions.py"}
    return {"README.md": readme.encode()} | {name: path.read_bytes() for name, path in files.items()}


def write_zip(target: Path, files: dict[str, bytes]) -> None:
    """Write the files, sorted, into one folder that is named after the zip. All files have the same date."""
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{target.stem}/{name}", ZIP_EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # on every system alike: Unix, mode 644
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=9)


def pack(course: Course) -> list[Path]:
    """Write both zips, and return their paths.

    Raises:
        CourseError: a notebook differs from its source, or the wheel could not be built.
    """
    for name in course.names():
        for solved in (False, True):
            if found := difference(course, name, solved):
                raise CourseError(f"{course.built(name, solved).name} {found}: run make notebooks")
    zips = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(course, Path(folder))
        for whose, teacher in (("classroom", True), ("students", False)):
            target = course.root / "dist" / f"klvae-edu-{whose}-{course.version}.zip"
            write_zip(target, contents(course, wheel, teacher))
            zips.append(target)
    return zips


@command
def main(course: Course = COURSE) -> None:
    for target in pack(course):
        print(f"{target.relative_to(course.root)}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
