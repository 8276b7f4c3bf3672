#!/usr/bin/env bash
# torchmetrics 1.4.1 and 1.4.2 give different SSIM for the same images. Up to 1.4.1 the border of the similarity map, 5
# pixels for the usual window of 11, is left out of the mean; from 1.4.2 on it is part of it, computed with reflection
# padding. Neither has a warning or an argument for the other.
#
# Why a good guess is wrong: a patch release of a library of metrics is not expected to change the values of a metric, and
# a requirement such as torchmetrics>=1.4 allows both. Published tables and tests then depend on the day of installation.
#
# Seen: on 32 × 32 pixels with noise, 0.9298 with 1.4.1 and 0.9260 with 1.4.2. The mean over the interior of the map of
# 1.4.2 is the value of 1.4.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet setuptools==80.9.0 numpy==2.4.6 torch==2.15.0
cat > "$folder/ssim.py" <<'PYTHON'
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

generator = torch.Generator().manual_seed(0)
image = torch.rand(1, 3, 32, 32, generator=generator)
noisy = (image + 0.3 * torch.rand(1, 3, 32, 32, generator=generator)).clamp(0, 1)
mean, full = ssim(noisy, image, data_range=1.0, return_full_image=True)
print(f"{mean.item():.4f} {full[..., 5:-5, 5:-5].mean().item():.4f}")
PYTHON
for version in 1.4.1 1.4.2; do
    "$folder/venv/bin/pip" install --quiet "torchmetrics==$version"
    found[${version##*.}]=$("$folder/venv/bin/python" "$folder/ssim.py")
    echo "torchmetrics $version: SSIM and mean over the interior: ${found[${version##*.}]}"
done
[ "${found[1]} ${found[2]}" = "0.9298 0.9298 0.9260 0.9298" ] || { echo "expected 0.9298 0.9298 and 0.9260 0.9298: the behaviour changed"; exit 1; }
