"""Latency of the explorer: from a slider's new value to the new picture. Run: python -m benchmarks.explorer

In each panel of `klvae_edu.explore.panels` a slider is moved with the browser's message. The time ends when the picture
has new bytes. Panels use the copy that `optimize()` makes, as in notebook 10. The peer works like a notebook without
this package: diffusers' AutoencoderKL with the same weights, and a matplotlib figure of the two pictures. Both take
turns, on the same settings.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import diffusers_twin, machine, ratios, write
from klvae_edu import AutoencoderKL
from klvae_edu.data import photographs
from klvae_edu.environment import restart_with_process_settings
from klvae_edu.explore import panels
from klvae_edu.explore.explorer import Explorer
from klvae_edu.explore.photograph import SIDE, Encoded, Photograph

AGREEMENT = 1e-4  # largest difference between our picture and the peer's, relative to the largest value
WARM_UP = 2  # events of each panel that are not counted
SLIDERS = {  # the control that is moved in each panel
    "channels": "shift",
    "temperature": "seed",
    "interpolation": "t",
    "pixel": "column",
    "bits": "bits",
    "prior": "seed",
}


def make(name: str, vae: AutoencoderKL, photograph: Photograph, other: Photograph) -> Explorer:
    pictures = {"prior": (), "interpolation": (photograph, other)}.get(name, (photograph,))
    panel: Explorer = getattr(panels, name)(vae, *pictures)
    return panel


def settings(panel: Explorer, name: str) -> Iterator[float]:
    """Yield the values of the panel's slider from end to end, repeatedly, and none twice in a row."""
    control = panel.controls[SLIDERS[name]]
    values = np.linspace(control.min, control.max, round((control.max - control.min) / control.step) + 1)
    while True:
        yield from (float(value) for value in values if abs(value - control.value) > control.step / 2)


def latency(panel: Explorer, name: str, value: float) -> float:
    """Measure the seconds from the browser's message with the slider's state to the new picture."""
    before = panel.image.value
    start = time.perf_counter()
    panel.controls[SLIDERS[name]].set_state({"value": value})
    seconds = time.perf_counter() - start
    if "Not drawn" in panel.status.value:
        raise RuntimeError(panel.status.value)
    if panel.image.value is before:
        raise RuntimeError(f"{name}: nothing was drawn for {value}")
    return seconds


def peer_latency(peer: diffusers.AutoencoderKL, encoded: Encoded) -> float:
    """Measure the seconds for decoding the latent and drawing two pictures with matplotlib."""
    start = time.perf_counter()
    with torch.no_grad():
        decoded = peer.decode(encoded.z).sample
    fig, axes = plt.subplots(1, 2, figsize=(5.2, 2.6))
    for axis, picture in zip(axes, (decoded, encoded.decoded), strict=True):
        axis.imshow(((picture[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).cpu().numpy())
        axis.axis("off")
    fig.savefig(io.BytesIO(), format="png")
    plt.close(fig)
    return time.perf_counter() - start


def check_agreement(vae: AutoencoderKL, peer: diffusers.AutoencoderKL, z: Tensor) -> None:
    with torch.no_grad():
        ours, theirs = vae.decode(z).sample, peer.decode(z).sample
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert difference < AGREEMENT, f"the two decoders differ by {difference:.2g}"


def measure(vae: AutoencoderKL, events: int) -> dict[str, dict[str, list[float]]]:
    """Measure the seconds of every event in each panel, ours and the peer's."""
    photograph, other = (Photograph(image, name) for name, image in photographs("held-out").items())
    peer, vae = diffusers_twin(vae), vae.optimize()
    encoded = photograph.encoded(vae)
    check_agreement(vae, peer, encoded.z)
    seconds: dict[str, dict[str, list[float]]] = {name: {"ours": [], "peer": []} for name in SLIDERS}
    for name, ways in seconds.items():
        panel = make(name, vae, photograph, other)
        values = settings(panel, name)
        for event in range(-WARM_UP, events):
            ours, theirs = latency(panel, name, next(values)), peer_latency(peer, encoded)
            if event >= 0:
                ways["ours"].append(ours)
                ways["peer"].append(theirs)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, in milliseconds."""
    return {"median": round(1e3 * median(seconds), 1), "p95": round(1e3 * quantiles(seconds, n=20)[-1], 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=50, help="number of events in each panel, 2 or more")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    seconds = measure(AutoencoderKL.from_bundled(), options.events)
    report = {
        "machine": machine(),
        "model": "kl-f8-mini, float32, optimize()",
        "side": SIDE,
        "events": options.events,
        "milliseconds from event to picture": {name: spread(ways["ours"]) for name, ways in seconds.items()},
        "milliseconds of the peer": {name: spread(ways["peer"]) for name, ways in seconds.items()},
        "time of the peer over ours": {name: ratios(ways, "ours")["peer"] for name, ways in seconds.items()},
    }
    write(report, options.out)


if __name__ == "__main__":
    restart_with_process_settings()
    main()
