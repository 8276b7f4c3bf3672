#!/usr/bin/env bash
# datasets 5.2.0: of a tar file of images in which another suffix begins after the fifth sample, the later images are lost
# without a word. `load_dataset` gives a row for each of them, with the caption, but None in place of the image.
#
# Why a good guess is wrong: if both suffixes are among the first five samples, the same archive is a clear error ("don't
# share the same prefix or the same types"). So one expects the error, or all images, wherever the second suffix begins.
# The columns are those of the first five samples; what later samples have under another name is dropped.
#
# Seen: of twelve samples, eight .jpg and then four .png, there are twelve rows, and four of them have no image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0
cat > "$folder/load.py" <<'PYTHON'
import io
import sys
import tarfile

import datasets
from PIL import Image

datasets.disable_progress_bars()


def load(name, jpegs):
    """Load twelve samples, of which the first `jpegs` are .jpg and the others .png, each with a caption."""
    with tarfile.open(f"{sys.argv[1]}/{name}/00000.tar", "w") as archive:
        for number in range(12):
            file, kind = io.BytesIO(), ("jpg", "JPEG") if number < jpegs else ("png", "PNG")
            Image.new("RGB", (8, 8)).save(file, kind[1])
            for suffix, content in ((kind[0], file.getvalue()), ("txt", b"a caption")):
                entry = tarfile.TarInfo(f"{number:05}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    rows = datasets.load_dataset(f"{sys.argv[1]}/{name}", cache_dir=sys.argv[1] + "/cache")["train"]
    return rows.column_names, sum(row["jpg"] is None and row["txt"] == "a caption" for row in rows), len(rows)


columns, lost, rows = load("late", 8)
print(f"columns {columns}; {rows} rows, {lost} of them without their image")
try:
    load("early", 3)
    early = "no error"
except ValueError as error:
    early = str(error)
print(f"with the second suffix among the first five samples: {early}")
if "png" in columns or (lost, rows) != (4, 12) or "same types" not in early:
    sys.exit("expected four of twelve images lost, or an error if the second suffix begins early: the behaviour changed")
PYTHON
mkdir "$folder/late" "$folder/early"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/load.py" "$folder"
