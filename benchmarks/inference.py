"""Speed of encoding and decoding, plain and optimised, against the peers. Run: python -m benchmarks.inference

All ways have the same weights and take turns in one process. A speed is diffusers' time in float32 over a way's time in
the same round: 2 is twice as fast. Errors are measured at 64x64 pixels of a photograph, against our plain model in
float64, relative to the largest value. Stable Diffusion's network has random weights, the bundled one its own.

--compvis FOLDER, a clone of CompVis' latent-diffusion, adds its encoder and decoder (they need einops). --compile adds
our compiled copy, and takes some minutes longer. --device cuda measures on a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import diffusers_twin, machine, ratios, times, write
from klvae_edu import AutoencoderKL
from klvae_edu.data import photographs
from klvae_edu.environment import restart_with_process_settings
from klvae_edu.weights.keys import to_compvis

PEER, PLAIN = "diffusers", "ours"
COMPILED = "ours, optimised, compiled"
ERROR_SIDE = 64  # pixels
AGREEMENT = 1e-3  # largest error in float32 at which two ways count as the same function

Function = Callable[[Tensor], Tensor]


class CompVis(nn.Module):
    """CompVis' encoder and decoder with our weights, imported from the clone that is first in `sys.path`."""

    def __init__(self, vae: AutoencoderKL) -> None:
        from ldm.modules.diffusionmodules.model import Decoder, Encoder

        super().__init__()
        config, widths = vae.config, vae.config.block_out_channels
        fields = {
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config.layers_per_block,
            "attn_resolutions": [],
            "in_channels": config.in_channels,
            "out_ch": config.out_channels,
            "resolution": 256,
            "z_channels": config.latent_channels,
            "double_z": True,
        }
        self.encoder, self.decoder = Encoder(**fields), Decoder(**fields)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.load_state_dict(to_compvis(vae.state_dict()))

    def moments(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def image(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


def halves(model: Any) -> dict[str, Function]:
    """Return `encode`, image to moments, and `decode`, latent to image, of our model, diffusers' or CompVis'."""
    if isinstance(model, CompVis):
        return {"encode": model.moments, "decode": model.image}
    return {
        "encode": lambda x: model.encode(x).latent_dist.parameters,
        "decode": lambda z: model.decode(z).sample,
    }


def models(vae: AutoencoderKL, compvis: bool, compiled: bool) -> dict[str, nn.Module]:
    """Make the model of each way, by name. Names that end with bfloat16 compute in it, all others in float32."""
    found: dict[str, nn.Module] = {PEER: diffusers_twin(vae)}
    if compvis:
        found["CompVis"] = CompVis(vae).to(vae.device).eval()
    found |= {
        PLAIN: vae,
        "ours, channels last": vae.clone().to(memory_format=torch.channels_last),
        "ours, optimised": vae.optimize(),
        "diffusers, bfloat16": diffusers_twin(vae).bfloat16(),
        "diffusers, channels last, bfloat16": diffusers_twin(vae).bfloat16().to(memory_format=torch.channels_last),
        "ours, optimised, bfloat16": vae.optimize(torch.bfloat16),
    }
    if compiled:
        found |= {COMPILED: vae.optimize(), f"{COMPILED}, bfloat16": vae.optimize(torch.bfloat16)}
    return found


def dtype_of(way: str) -> torch.dtype:
    return torch.bfloat16 if way.endswith("bfloat16") else torch.float32


def errors(ways: dict[str, dict[str, Function]], vae: AutoencoderKL) -> dict[str, dict[str, float]]:
    """Measure the largest difference from float64, relative to the largest value, for each half and way.

    Raises:
        AssertionError: the error of a way in float32 is `AGREEMENT` or more.
    """
    exact = vae.clone().double()
    x = photographs("held-out")["chelsea"][None, :, 100 : 100 + ERROR_SIDE, 100 : 100 + ERROR_SIDE].to(vae.device)
    inputs = {"encode": x.double(), "decode": exact.encode(x.double()).latent_dist.mode()}
    found: dict[str, dict[str, float]] = {}
    for half, function in halves(exact).items():
        expected = function(inputs[half])
        found[half] = {}
        for way, own in ways.items():
            difference = (own[half](inputs[half].to(dtype_of(way))).double() - expected).abs().max()
            error = (difference / expected.abs().max()).item()
            assert error < AGREEMENT or dtype_of(way) != torch.float32, f"{half}, {way}: differs by {error:.2g}"
            found[half][way] = float(f"{error:.1e}")
    return found


def run(function: Function, x: Tensor) -> None:
    function(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


@torch.no_grad()
def measure(vae: AutoencoderKL, side: int, rounds: int, compvis: bool, compiled: bool) -> dict[str, Any]:
    """Measure time, speed and error of both halves in every way."""
    ways = {way: halves(model) for way, model in models(vae, compvis, compiled).items()}
    off = errors(ways, vae)
    for way, functions in ways.items():
        if way.startswith(COMPILED):
            ways[way] = {half: torch.compile(function) for half, function in functions.items()}
    latent = side // vae.downsample_factor
    shapes = {"encode": (1, 3, side, side), "decode": (1, vae.config.latent_channels, latent, latent)}
    report: dict[str, Any] = {}
    for half, shape in shapes.items():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device)
        calls = {way: partial(run, functions[half], x.to(dtype_of(way))) for way, functions in ways.items()}
        seconds = times(calls, rounds)
        report[half] = {
            "seconds": {way: round(median(values), 4) for way, values in seconds.items()},
            "speed over diffusers": {way: ratios(seconds, way)[PEER] for way in seconds},
            "largest error": off[half],
        }
    return report


def network(name: str) -> AutoencoderKL:
    """Load the bundled model, or make an untrained one of a preset."""
    bundled = name == "kl-f8-mini"
    vae = AutoencoderKL.from_bundled(name) if bundled else AutoencoderKL.from_preset(name, seed=0)
    return vae.requires_grad_(False).eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["sd-v1", "kl-f8-mini"], help="presets, or the bundled model")
    parser.add_argument("--side", type=int, default=256, help="image side in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also measure the compiled copy")
    parser.add_argument("--compvis", type=Path, metavar="FOLDER", help="a clone of CompVis' repository")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    if options.compvis:
        sys.path.insert(0, str(options.compvis))
    report: dict[str, Any] = {
        "machine": machine(options.device),
        "side": options.side,
        "rounds": options.rounds,
    }
    for name in options.networks:
        vae = network(name).to(options.device)
        compvis = options.compvis is not None and vae.config.norm_num_groups == 32  # CompVis has no other number
        report[name] = measure(vae, options.side, options.rounds, compvis, options.compile)
    write(report, options.out)


if __name__ == "__main__":
    restart_with_process_settings()
    main()
