"""Large images in bounded memory: process a batch one image at a time, and an image in overlapping tiles.

Slicing changes results by rounding errors only, because another batch size uses other convolution kernels. Tiling
changes results more: every GroupNorm takes its mean and variance over the whole feature map, and attention looks at the
whole feature map, but a tile has its own mean, variance and pixels. Overlap hides the seam between two tiles. It does
not remove the difference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from klvae_edu.blocks import checkpointed_blocks

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles in image pixels. They must be multiples of the model's downsampling factor, see `check`."""

    size: int = 288  # side of a tile; 2x2 tiles cover 512x512 pixels with the overlap below
    overlap: int = 64  # minimum number of pixels that neighbouring tiles share
    global_norm: bool = False  # GroupNorm's statistics over all tiles: closer to the untiled result, twice the time

    def check(self, factor: int) -> None:
        """Raise a `ValueError` unless the sizes are multiples of `factor` and the overlap is smaller than the tile."""
        for name, value, least in (("size", self.size, factor), ("overlap", self.overlap, 0)):
            if not isinstance(value, int) or value < least or value % factor:
                raise ValueError(f"tile {name}: expected a multiple of {factor} of at least {least}, got {value!r}")
        if self.overlap >= self.size:
            raise ValueError(f"tile overlap: expected less than the tile's size {self.size}, got {self.overlap}")


def sliced(function: Function, x: Tensor) -> Tensor:
    """Compute `function` (B, …) -> (B, …) for one element of the batch at a time."""
    return torch.cat([function(element) for element in torch.split(x, 1)])


def tiled(
    function: Function,
    x: Tensor,
    tile: int,
    overlap: int,
    units: tuple[int, int] = (1, 1),
    norms: nn.Module | None = None,
) -> Tensor:
    """Compute `function` on overlapping tiles and blend the results. Memory: one tile and the whole result.

    `tile` and `overlap` are counted in cells, the grid on which tiles may start. A cell is one latent pixel together
    with its patch of f x f image pixels. `units` gives the side of a cell in pixels: units[0] in the input, units[1] in
    the output. A decoder reads latents and writes images: units = (1, f). An encoder: units = (f, 1).

    Args:
        function: (B, C, h · units[0], w · units[0]) -> (B, D, h · units[1], w · units[1]), for any h, w.
        x: (B, C, H · units[0], W · units[0]), H x W cells.
        tile: side of a tile. The last tile of a row is moved back to end at the border; it is not made smaller.
        overlap: minimum number of cells that neighbouring tiles share.
        units: side of a cell in pixels, in the input and in the output.
        norms: module whose GroupNorms use statistics of all tiles. A first pass measures them, a second pass uses them.
            The result is closer to the untiled one, but not equal: the first pass still normalises each tile by its own
            statistics, and attention sees only its tile.

    Returns:
        (B, D, H · units[1], W · units[1]). If x fits into one tile, the result is exactly `function(x)`.

    Raises:
        ValueError: `norms` with gradient checkpointing in training, which would recompute outside of the tiles.
    """
    rows = placements(x.shape[-2] // units[0], tile, overlap, units[1])
    columns = placements(x.shape[-1] // units[0], tile, overlap, units[1])

    def blended() -> Tensor:
        out: Tensor | None = None
        for top, row_weight in rows:
            for left, column_weight in columns:
                rows_in, rows_out = _spans(top, row_weight, units)
                columns_in, columns_out = _spans(left, column_weight, units)
                part = function(x[..., rows_in, columns_in])
                if out is None:
                    out = part.new_zeros(*part.shape[:-2], *(units[1] * side // units[0] for side in x.shape[-2:]))
                weight = (row_weight[:, None] * column_weight).to(part.device, _at_least_float32(part))
                out[..., rows_out, columns_out] += part * weight
        assert out is not None
        return out

    if norms is None or len(rows) * len(columns) == 1:
        return blended()
    if torch.is_grad_enabled() and checkpointed_blocks(norms):
        raise ValueError("tiles with global_norm: expected no gradient checkpointing in training, but it is enabled")
    with global_statistics(norms) as statistics:
        blended()
        statistics.measuring = False
        return blended()


def _spans(start: int, weights: Tensor, units: tuple[int, int]) -> tuple[slice, slice]:
    """Return the range of pixels along one axis that a tile reads from the input, and the range in the output."""
    cells = len(weights) // units[1]
    return slice(start * units[0], (start + cells) * units[0]), slice(start * units[1], (start + cells) * units[1])


def placements(length: int, tile: int, overlap: int, unit: int = 1) -> list[tuple[int, Tensor]]:
    """Place tiles along one axis: for each tile its start in cells, and the blending weights of its output pixels.

    The weights, (min(tile, length) · unit,) in float64, rise linearly over the overlap with the previous tile and fall
    over the overlap with the next tile. At every pixel the weights of all tiles sum to one.

    Args:
        length: number of cells along the axis; `tile` and `overlap` are in cells, too.
        unit: side of a cell in output pixels.
    """
    stride, tile = tile - overlap, min(tile, length)
    starts = [*range(0, length - tile, stride), length - tile]
    ends = [start + tile for start in starts]
    place = torch.arange(tile * unit, dtype=torch.float64) + 0.5
    ramps = []
    for i in range(len(starts)):
        ramp = torch.ones_like(place)
        if i > 0:
            ramp = torch.minimum(ramp, place / max(unit * (ends[i - 1] - starts[i]), 1))
        if i + 1 < len(starts):
            ramp = torch.minimum(ramp, (tile * unit - place) / max(unit * (ends[i] - starts[i + 1]), 1))
        ramps.append(ramp)
    total = torch.zeros(length * unit, dtype=torch.float64)
    for start, ramp in zip(starts, ramps, strict=True):
        total[start * unit : start * unit + len(ramp)] += ramp
    return [
        (start, ramp / total[start * unit : start * unit + len(ramp)])
        for start, ramp in zip(starts, ramps, strict=True)
    ]


class GlobalStatistics:
    """Mean and variance of each GroupNorm over all tiles: recorded while `measuring` is True, used afterwards."""

    def __init__(self) -> None:
        self.measuring = True
        self.thread = threading.get_ident()
        self.moments: dict[nn.Module, list[tuple[Tensor, Tensor, int]]] = {}

    def hook(self, norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Record the statistics of one tile, or normalise it by the statistics of all tiles: (B, C, H, W)."""
        if threading.get_ident() != self.thread:  # another thread processes another image with the same model
            return output
        groups = inputs[0].reshape(len(output), norm.num_groups, output.shape[1:].numel() // norm.num_groups)
        if self.measuring:
            variance, mean = torch.var_mean(groups.to(_at_least_float32(groups)), dim=2, correction=0)
            self.moments.setdefault(norm, []).append((mean, variance, groups.shape[2]))
            return output
        mean, variance = self.pooled(norm)
        # One factor and one addend per channel, as in PyTorch's kernel: the result is the only new feature map.
        factor = norm.weight * (variance + norm.eps).rsqrt().repeat_interleave(norm.num_channels // norm.num_groups, 1)
        addend = norm.bias - factor * mean.repeat_interleave(norm.num_channels // norm.num_groups, 1)
        return torch.addcmul(addend[..., None, None], inputs[0], factor[..., None, None]).to(output.dtype)

    def pooled(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Pool mean and variance over all tiles: (B, groups) each. Tiles differ in their means, which adds variance."""
        tile_means, tile_variances, counts = zip(*self.moments[norm], strict=True)
        means, variances = torch.stack(tile_means), torch.stack(tile_variances)  # (tiles, B, groups)
        share = (means.new_tensor(counts) / sum(counts))[:, None, None]
        mean = (share * means).sum(0)
        return mean, (share * (variances + (means - mean) ** 2)).sum(0)


@contextmanager
def global_statistics(module: nn.Module) -> Iterator[GlobalStatistics]:
    """Register hooks on every GroupNorm of `module`, and remove them at the end."""
    statistics = GlobalStatistics()
    norms = [norm for norm in module.modules() if isinstance(norm, nn.GroupNorm)]
    handles = [norm.register_forward_hook(statistics.hook) for norm in norms]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


def seam_lines(length: int, tile: int, overlap: int, unit: int = 1) -> list[int]:
    """List the pixel positions along one axis at which a tile begins or ends, except the borders of the map."""
    starts = [start for start, _ in placements(length, tile, overlap)]
    edges = {start * unit for start in starts[1:]} | {(start + tile) * unit for start in starts[:-1]}
    return sorted(edges)


def seam_metric(image: Tensor, rows: list[int], columns: list[int], reach: int = 8) -> float:
    """Compare how much an image (B, C, H, W) changes across seams and near them: 1.0 means no seam.

    The metric is the mean absolute difference of neighbouring pixels across the seams, divided by the same mean for
    lines up to `reach` pixels away.

    Args:
        rows: horizontal seams; a seam lies before the pixel row of its number.
        columns: vertical seams, likewise.

    Raises:
        ValueError: no seam lies inside the image.
    """
    across, nearby = [], []
    for axis, lines in ((-2, rows), (-1, columns)):
        jumps = image.to(torch.float64).diff(dim=axis).abs().transpose(axis, -1).flatten(0, -2).mean(0)  # (lines,)
        seams = {line - 1 for line in lines if 0 < line <= len(jumps)}
        near = {seam + away for seam in seams for away in range(-reach, reach + 1)} - seams
        across += [jumps[seam] for seam in seams]
        nearby += [jumps[line] for line in near if 0 <= line < len(jumps)]
    if not across:
        raise ValueError(f"expected a seam within {tuple(image.shape[-2:])} pixels, got {rows} and {columns}")
    return float(torch.stack(across).mean() / torch.stack(nearby).mean())


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
