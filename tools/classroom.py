"""Pack the course for a class: one zip for the teacher, one for the students, into dist/.

Both hold the notebooks, and beside them the package as a wheel, which each notebook's first cell installs. The
teacher's has the solved notebooks too, the guide (docs/teaching.md), and questions whose numbers differ from student
to student. The same course gives the same bytes.

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
from tools.course import COURSE, Course, CourseError

BEGINNING_OF_TIME = (1980, 1, 1, 0, 0, 0)  # of zip files
ITS_SECONDS = "315532800"
STUDENTS_README = """\
# klvae-edu {version}: build the autoencoder of Stable Diffusion yourself

On your own machine you need Python 3.11 or later. In this folder, once, with a network:

    python -m pip install -c constraints.txt jupyterlab "notebooks/{wheel}[notebooks]"

and then, also without one:

    jupyter lab --notebook-dir=notebooks

On Google Colab: open a notebook with File, Upload notebook; upload `notebooks/{wheel}` under Files; run the first cell.

A notebook works alone: copy it with the wheel to where you like. Begin with `00_tour.ipynb`.

The code is under the MIT licence (LICENSE). The photographs in the notebooks are scikit-image's: LICENSES has their
origins and licences.
"""
TEACHERS_README = """
## For the teacher

* `teaching.md`: the guide. Minutes for each section, what goes wrong, questions for discussion, handing out, grading.
* `notebooks/solutions`: the solved notebooks. They and this part are not in the students' zip.
* `questions.py`: a sheet of questions for each student, with numbers of their own, and the answers.
"""


def build_wheel(course: Course, folder: Path) -> Path:
    """The package as a wheel, built in a copy of the tree, so that nothing left over from an earlier build gets in."""
    tree = folder / "tree"
    tree.mkdir()
    shutil.copytree(course.root / "klvae_edu", tree / "klvae_edu", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(course.root / "LICENSES", tree / "LICENSES")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(course.root / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": ITS_SECONDS}
    if subprocess.run([*pip, "--wheel-dir", str(folder), str(tree)], env=environment).returncode:
        raise CourseError("the wheel could not be built: see above")
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(course: Course, wheel: Path, teacher: bool) -> dict[str, bytes]:
    """What goes into a zip: name and bytes of each file."""
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
    """Write the files below one folder of the zip's name, in order and without the time of day."""
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{target.stem}/{name}", BEGINNING_OF_TIME)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same from every system: readable files
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=9)


def pack(course: Course) -> list[Path]:
    """Write both zips; returns where.

    Raises:
        CourseError: a notebook is not what its source gives; or the wheel could not be built.
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


def main(course: Course = COURSE) -> int:
    try:
        for target in pack(course):
            print(f"{target.relative_to(course.root)}: {target.stat().st_size / 1e6:.1f} MB")
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
