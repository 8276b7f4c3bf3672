"""Memory of activations in training and in tiled decoding. Run: python -m benchmarks.activations

A training step of Stable Diffusion's network, plain and with gradient checkpointing: the peak memory of the process,
less its memory before the step (weights, gradients and AdamW's averages). Tiled decoding with the bundled model, from
512 to 4096 pixels: the peak memory, less the memory before (model and latent) and the output.

Every number is measured in a new process, with the default allocator.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import begin_peak, machine, measured_elsewhere, memory, write
from klvae_edu import AutoencoderKL

STEPS = ("plain", "with checkpointing")
DECODING = ("the model", "its optimised copy")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def step_memory(way: str, preset: str, side: int) -> int:
    """Measure the peak memory of one training step, less the memory before it, in bytes: batch 1, MSE and KL."""
    vae = AutoencoderKL.from_preset(preset, seed=0)
    vae.enable_gradient_checkpointing(way == "with checkpointing")
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-5)

    def step(x: Tensor) -> None:
        posterior = vae.encode(x).latent_dist
        image = vae.decode(posterior.sample()).sample
        loss = (image - x).square().mean() + 1e-6 * posterior.kl().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # gradients keep their memory, which is not counted

    step(noise(1, 3, 64, 64))  # allocates the gradients and the averages
    x = noise(1, 3, side, side)
    before = begin_peak()
    step(x)
    return memory("VmHWM") - before


@torch.no_grad()
def decoding_memory(way: str, side: int) -> int:
    """Measure the peak memory of tiled decoding, less the memory before it and the output, in bytes."""
    vae = AutoencoderKL.from_bundled()
    if way == "its optimised copy":
        vae = vae.optimize()
    vae.enable_tiling()
    z = noise(1, vae.config.latent_channels, side // vae.downsample_factor, side // vae.downsample_factor)
    before = begin_peak()
    image = vae.decode(z).sample
    return memory("VmHWM") - before - image.numel() * image.element_size()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="sd-v1", help="network of the training step")
    parser.add_argument("--side", type=int, default=256, help="image side in the training step, in pixels")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="image sides in decoding, in pixels"
    )
    parser.add_argument("--memory-of", choices=[*STEPS, *DECODING], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    if options.memory_of in STEPS:
        print(step_memory(options.memory_of, options.preset, options.side))
        return
    if options.memory_of:
        print(decoding_memory(options.memory_of, options.side))
        return

    def mebibytes(way: str, side: int) -> int:
        settings = ["--memory-of", way, "--preset", options.preset, "--side", str(side)]
        return round(measured_elsewhere("benchmarks.activations", *settings) / 2**20)

    steps = {way: mebibytes(way, options.side) for way in STEPS}
    report = {
        "machine": machine(),
        "training step": f"{options.preset}, batch 1, {options.side} pixels, float32",
        "MiB of activations": steps,
        "checkpointing over plain": round(steps["with checkpointing"] / steps["plain"], 3),
        "MiB of tiled decoding, output aside": {
            way: {str(side): mebibytes(way, side) for side in options.sides} for way in DECODING
        },
    }
    write(report, options.out)


if __name__ == "__main__":
    main()
