"""Large images in bounded memory: batches image by image, images in overlapping tiles.

Slicing changes nothing but rounding: another batch size takes other convolution kernels. Tiling does change the result:
every GroupNorm takes its mean and variance over the whole map, and attention looks over the whole map, so that a tile
which is computed by itself has other statistics. Overlap hides the seam between two tiles; it does not remove the
difference.
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
    """How an image is cut, in pixels. Sizes must be multiples of the model's downsampling factor.

    Raises:
        ValueError: an overlap as large as the tile, or sizes that `check` finds no multiples of the factor.
    """

    size: int = 288  # side of a tile; four of them cover 512x512 with the overlap below
    overlap: int = 64  # pixels that neighbouring tiles share, at least
    global_norm: bool = False  # GroupNorm's statistics over all tiles: nearer to the whole, in twice the time

    def check(self, factor: int) -> None:
        """Raise a `ValueError` when the sizes do not fit a model that downsamples by `factor`."""
        for name, value, least in (("size", self.size, factor), ("overlap", self.overlap, 0)):
            if not isinstance(value, int) or value < least or value % factor:
                raise ValueError(f"tile {name}: expected a multiple of {factor} of at least {least}, got {value!r}")
        if self.overlap >= self.size:
            raise ValueError(f"tile overlap: expected less than the tile's size {self.size}, got {self.overlap}")


def sliced(function: Function, x: Tensor) -> Tensor:
    """`function` (B, …) -> (B, …), one element of the batch at a time: the memory of one."""
    return torch.cat([function(one) for one in torch.split(x, 1)])


def tiled(
    function: Function,
    x: Tensor,
    tile: int,
    overlap: int,
    units: tuple[int, int] = (1, 1),
    norms: nn.Module | None = None,
) -> Tensor:
    """`function` over overlapping tiles, blended: the memory of one tile, and of the result.

    Lengths are counted in cells, of which a map has H_in / units[0] by W_in / units[0]. For the decoder a cell is a
    latent pixel and units = (1, f); for the encoder it is a patch of f by f image pixels and units = (f, 1).

    Args:
        function: (B, C, h · units[0], w · units[0]) -> (B, D, h · units[1], w · units[1]), for any h, w.
        x: (B, C, H_in, W_in).
        tile: side of a tile. The last tile of a row is moved back to end with the map, not made smaller.
        overlap: cells that two neighbours share, at least.
        norms: the module whose GroupNorms are to use statistics of all tiles. A first pass measures them, a second one
            uses them. That is nearer to the whole, not equal to it: while it measures, the first pass still normalises
            each tile by its own statistics, and attention keeps to its tile.

    Returns:
        (B, D, H_out, W_out). A map that fits into one tile comes out exactly as `function` gives it.

    Raises:
        ValueError: `norms` with gradient checkpointing in training, whose second forward pass is not within the tiles.
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
    """What a tile takes of one axis of the input, and what it fills of the output's."""
    cells = len(weights) // units[1]
    return slice(start * units[0], (start + cells) * units[0]), slice(start * units[1], (start + cells) * units[1])


def placements(length: int, tile: int, overlap: int, unit: int = 1) -> list[tuple[int, Tensor]]:
    """Where the tiles of one axis begin, in cells, and each one's weights, (min(tile, length) · unit,) in float64.

    The weights rise over the overlap with the tile before and fall over the overlap with the next one. At every place
    those of all tiles add up to one.
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
    """GroupNorm's mean and variance over all tiles: gathered while `measuring`, used afterwards."""

    def __init__(self) -> None:
        self.measuring = True
        self.thread = threading.get_ident()
        self.moments: dict[nn.Module, list[tuple[Tensor, Tensor, int]]] = {}

    def hook(self, norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """While measuring, note the statistics of one tile; then, normalise it by those of all: (B, C, H, W)."""
        if threading.get_ident() != self.thread:  # another one, which works on another image with the same model
            return output
        groups = inputs[0].reshape(len(output), norm.num_groups, output.shape[1:].numel() // norm.num_groups)
        if self.measuring:
            variance, mean = torch.var_mean(groups.to(_at_least_float32(groups)), dim=2, correction=0)
            self.moments.setdefault(norm, []).append((mean, variance, groups.shape[2]))
            return output
        mean, variance = self.pooled(norm)
        # As PyTorch's own kernel does it, one factor and one addend a channel: no map but the result is made.
        factor = norm.weight * (variance + norm.eps).rsqrt().repeat_interleave(norm.num_channels // norm.num_groups, 1)
        addend = norm.bias - factor * mean.repeat_interleave(norm.num_channels // norm.num_groups, 1)
        return torch.addcmul(addend[..., None, None], inputs[0], factor[..., None, None]).to(output.dtype)

    def pooled(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Mean and variance over all tiles, (B, groups) each: the variance within tiles and that of their means."""
        tile_means, tile_variances, counts = zip(*self.moments[norm], strict=True)
        means, variances = torch.stack(tile_means), torch.stack(tile_variances)  # (tiles, B, groups)
        share = (means.new_tensor(counts) / sum(counts))[:, None, None]
        mean = (share * means).sum(0)
        return mean, (share * (variances + (means - mean) ** 2)).sum(0)


@contextmanager
def global_statistics(module: nn.Module) -> Iterator[GlobalStatistics]:
    """Hooks on every GroupNorm of `module`, taken off at the end."""
    statistics = GlobalStatistics()
    norms = [norm for norm in module.modules() if isinstance(norm, nn.GroupNorm)]
    handles = [norm.register_forward_hook(statistics.hook) for norm in norms]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


def seam_lines(length: int, tile: int, overlap: int, unit: int = 1) -> list[int]:
    """Where one axis shows seams, if any: the places, in pixels, at which a tile begins or ends within the map."""
    starts = [start for start, _ in placements(length, tile, overlap)]
    edges = {start * unit for start in starts[1:]} | {(start + tile) * unit for start in starts[:-1]}
    return sorted(edges)


def seam_metric(image: Tensor, rows: list[int], columns: list[int], reach: int = 8) -> float:
    """How much more an image (B, C, H, W) changes across the seams than on either side of them: 1.0 means no more.

    The mean absolute difference of neighbouring pixels across the lines `rows` and `columns` (a line lies before the
    pixel of that number), over the same for the lines up to `reach` pixels away.

    Raises:
        ValueError: no line lies within the image.
    """
    across, beside = [], []
    for axis, lines in ((-2, rows), (-1, columns)):
        jumps = image.to(torch.float64).diff(dim=axis).abs().transpose(axis, -1).flatten(0, -2).mean(0)  # (lines,)
        seams = {line - 1 for line in lines if 0 < line <= len(jumps)}
        near = {seam + away for seam in seams for away in range(-reach, reach + 1)} - seams
        across += [jumps[seam] for seam in seams]
        beside += [jumps[line] for line in near if 0 <= line < len(jumps)]
    if not across:
        raise ValueError(f"expected a seam within {tuple(image.shape[-2:])} pixels, got {rows} and {columns}")
    return float(torch.stack(across).mean() / torch.stack(beside).mean())


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
