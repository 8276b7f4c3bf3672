"""Tiled decoding against decoding the whole latent: memory, time, seams. Run: python -m benchmarks.tiled_decode

The network is Stable Diffusion's at full width. Its weights are random, which changes neither time nor memory. Memory
is measured in a new process for each row: the peak, less the memory before decoding and the output. Time is measured in
one process, in which the ways take turns. A ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import begin_peak, machine, measured_elsewhere, memory, ratios, write
from klvae_edu import AutoencoderKL
from klvae_edu.environment import restart_with_process_settings
from klvae_edu.performance.tiling import seam_lines, seam_metric

TILE, OVERLAP = 288, 64
WAYS = {"whole": {}, "tiled": {}, "tiled, global norm": {"global_norm": True}}


def model(way: str) -> AutoencoderKL:
    vae = AutoencoderKL.from_preset("sd-v1", seed=0).eval()
    vae.enable_tiling(way != "whole", size=TILE, overlap=OVERLAP, **WAYS[way])
    return vae


def latent(side: int) -> torch.Tensor:
    return torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def peak_memory(way: str, side: int) -> int:
    """Measure the peak memory of decoding, less the memory before it and the output, in bytes."""
    vae, z = model(way), latent(side)
    before = begin_peak()
    image = vae.decode(z).sample
    return memory("VmHWM") - before - image.numel() * image.element_size()


@torch.no_grad()
def times_and_seams(side: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    vae, z = model("whole"), latent(side)
    lines = seam_lines(side // 8, TILE // 8, OVERLAP // 8, unit=8)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    seams: dict[str, float] = {}
    for _ in range(rounds):
        for way, settings in WAYS.items():
            vae.enable_tiling(way != "whole", size=TILE, overlap=OVERLAP, **settings)
            start = time.perf_counter()
            image = vae.decode(z).sample
            seconds[way].append(time.perf_counter() - start)
            seams[way] = seam_metric(image, lines, lines)
    return seconds, seams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512, help="image side in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.memory_of:
        print(peak_memory(options.memory_of, options.side))
        return
    side = options.side
    if side <= TILE:
        parser.error(f"--side: expected more than one tile of {TILE} pixels, got {side}")
    rows = [(way, side) for way in WAYS] + [("tiled", side * 3 // 2)]
    sizes = {
        f"{way}, {of_side}": measured_elsewhere("benchmarks.tiled_decode", "--memory-of", way, "--side", str(of_side))
        for way, of_side in rows
    }
    seconds, seams = times_and_seams(side, options.rounds)
    report = {
        "machine": machine(),
        "network": "sd-v1, random weights, float32",
        "tile": TILE,
        "overlap": OVERLAP,
        "side": side,
        "peak MiB over the model, output aside": {name: round(size / 2**20) for name, size in sizes.items()},
        "seconds": {way: round(median(values), 2) for way, values in seconds.items()},
        "time over whole": ratios(seconds, "whole"),
        "seam metric": {way: round(value, 3) for way, value in seams.items()},
    }
    write(report, options.out)


if __name__ == "__main__":
    if "--memory-of" not in sys.argv:
        restart_with_process_settings()
    main()
