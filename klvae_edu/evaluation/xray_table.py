"""Format the measures of `xray` as tables in plain text."""

from __future__ import annotations

from collections.abc import Iterator

from klvae_edu.evaluation import findings
from klvae_edu.evaluation.findings import Latents
from klvae_edu.evaluation.table import aligned, three_digits
from klvae_edu.evaluation.xray import Artefacts


def tables(seen: Artefacts, latents: Latents, factor: int) -> Iterator[str]:
    """Format the lines of two tables: measures of the images, with their limits, and of the latents by channel."""
    noise = "times other periods"
    rows = {
        "PSNR": (f"{seen.psnr:.2f} dB", ""),
        "finest detail kept": (f"{seen.detail:.1%}", f"below {findings.LEAST_DETAIL:.1%}: blur"),
        f"repetition with {factor} pixels": (
            f"{seen.grid:.4f}, {seen.grid_to_noise:.1f} {noise}",
            f"above {findings.GRID} and {findings.GRID_TO_NOISE:g} {noise}: grid",
        ),
        "pattern of 2 pixels": (
            f"{seen.checkerboard:.2f} levels of 255, {seen.checkerboard_to_noise:.1f} {noise}",
            f"above {findings.CHECKERBOARD} and {findings.CHECKERBOARD_TO_NOISE:g} {noise}: checkerboard",
        ),
        "colour shift": (f"ΔE {seen.colour:.2f}", f"above {findings.COLOUR}: colour shift"),
        "squared error at the border": (f"{seen.border:.2f} times inside", f"above {findings.BORDER:g}: border"),
        "images with spots": (
            f"{seen.spots:.1%}, saturated {seen.saturated:.1%}",
            f"above {findings.SPOTS:.0%}: spots",
        ),
    }
    values, limits = zip(*rows.values(), strict=True)
    yield from aligned([*rows], [("measured", *values), ("named when", *limits)])
    yield ""
    columns = {"mean": latents.mean, "standard deviation": latents.std, "posterior width": latents.width}
    cells = [(name, *map(three_digits, values.tolist())) for name, values in columns.items()]
    cells.append(("signal", *(f"{share:.1%}" for share in latents.signal.tolist())))
    yield from aligned([f"latent channel {number}" for number in range(len(latents.mean))], cells)
    yield ""
    measured = "none" if latents.scaling_factor is None else f"{latents.scaling_factor:.4f}"
    scaled = "" if latents.scaled_std is None else f"; the model scales them to a deviation of {latents.scaled_std:.2f}"
    yield f"scaling factor of these latents: {measured}, shift {float(latents.mean.mean()):.4f}{scaled}"
    yield f"spectral share of frequencies above 1/4: {latents.spectral_share:.0%} (white noise: 80%)"
