"""Write the picture of the README.

It is the contact sheet that the built notebook 02 stores for its explorer.

    python -m tools.readme_picture
"""

from __future__ import annotations

import base64

import nbformat

from tools.course import COURSE, Course


def contact_sheet(course: Course) -> bytes:
    """Return the PNG that the built notebook 02 stores for its `Explorer`."""
    notebook = nbformat.read(course.built("02_kl_loss", solved=False), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    sheets = [
        output["data"]["image/png"]
        for output in outputs
        if "image/png" in output.get("data", {}) and output["data"].get("text/plain", "").startswith("Explorer(")
    ]
    (sheet,) = sheets
    return base64.b64decode(sheet)


if __name__ == "__main__":
    COURSE.notebooks.joinpath("images", "kl_weights.png").write_bytes(contact_sheet(COURSE))
