#!/usr/bin/env bash
# Pillow 13.0.0: an RGB TIFF of 16 bits with one plane for each colour (PlanarConfiguration 2), without compression, is
# read as a wrong picture, with no error and no warning: each plane's bytes are taken for pixels of 8 bits.
#
# Why a good guess is wrong: the same picture is read right, as its upper 8 bits, if its pixels are stored together, or if
# the planes are compressed. So one expects 8 of the 16 bits here, too, or an error as for other layouts that are unknown.
#
# Seen: of a picture that is 0x1234 everywhere, the pixels are 0x12 in the two other layouts, and 0x34 and 0x12 in turns in
# this one. tifffile, which wrote the files, reads 0x1234 from all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 pillow==13.0.0 tifffile==2026.3.3
cat > "$folder/read.py" <<'PYTHON'
import sys

import numpy
import tifffile
from PIL import Image

pixels = numpy.full((6, 8, 3), 0x1234, numpy.uint16)
planes = pixels.transpose(2, 0, 1)
layouts = {
    "pixels together": (pixels, {"planarconfig": "contig"}),
    "planes, compressed": (planes, {"planarconfig": "separate", "compression": "zlib"}),
    "planes": (planes, {"planarconfig": "separate"}),
}
seen = {}
for name, (values, options) in layouts.items():
    path = f"{sys.argv[1]}/{name}.tif"
    tifffile.imwrite(path, values, photometric="rgb", **options)
    assert (tifffile.imread(path) == 0x1234).all()
    seen[name] = sorted({hex(value) for value in numpy.asarray(Image.open(path)).flatten().tolist()})
    print(f"{name}: Pillow reads {', '.join(seen[name])}")
if [*seen.values()] != [["0x12"], ["0x12"], ["0x12", "0x34"]]:
    sys.exit("expected 0x12, 0x12, and 0x12 with 0x34: the behaviour changed")
PYTHON
"$folder/venv/bin/python" "$folder/read.py" "$folder"
