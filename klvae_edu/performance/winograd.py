"""Winograd's minimal filtering F(4x4, 3x3): 3x3 convolutions of wide layers on a CPU in about a third of the work.

In one dimension, F(4, 3) computes four outputs Y of a filter g with three taps from six pixels d:

    Y = Aᵀ[(G g) ⊙ (Bᵀ d)]

The elementwise product ⊙ takes 6 multiplications; a direct computation takes 4 · 3 = 12. In two dimensions, 4x4
outputs take 36 multiplications instead of 144. The matrices A, G and B (see `transforms`) cost only sums and constant
factors.

The method works because filtering is the transpose of a product of two polynomials. The product has degree 5, so its
values at six points determine it, and each value takes one multiplication. One of the six points is infinity.

With C input and C' output channels, each multiplication becomes a product of two matrices, which a CPU computes almost
as efficiently as a direct convolution. For each tile, the work of these products grows with C · C', and the work of the
transforms with C + C'. The kernels are transformed at every call, whatever the size of the feature map. The method is
therefore faster only for wide layers on feature maps that are not small.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308), section 4, F(4x4, 3x3);
for the points Barabasz and others, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
Networks" (arXiv:1803.10986). Used by `optimize()`, notebook 12, section 5.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 3  # side of the kernel
TILE = 4  # side of the output tile that is computed at once
WINDOW = TILE + TAPS - 1  # side of the input window of a tile

MIN_CHANNELS = 128  # input and output channels; with 96 it took about as long as direct convolution (AVX-512)
MIN_TILES = 64  # tiles of a batch, as in one image of 32x32 pixels; with 16 it was slower
TILES_PER_BAND = 128  # tiles computed at once, so that intermediate results fit into the cache; 64 to 256 differ little


class Transforms(NamedTuple):
    """Matrices of F(4x4, 3x3), for flattened tiles of one channel.

    `result @ ((kernel @ taps) * (image @ window))` convolves a 6x6 window with 3x3 taps: 4x4 pixels.
    """

    result: Tensor  # (16, 36), Aᵀ ⊗ Aᵀ
    kernel: Tensor  # (36, 9), G ⊗ G
    image: Tensor  # (36, 36), Bᵀ ⊗ Bᵀ


def transforms(*points: float) -> Transforms:
    """Compute the matrices in float64 for polynomials evaluated at five `points` and at infinity."""
    values = np.vander(points, TILE, increasing=True)
    others = [np.delete(points, place) for place in range(len(points))]
    denominators = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]  # Lagrange's
    result = np.vstack([values, np.eye(TILE)[-1]]).T
    kernel = np.vstack([values[:, :TAPS] / denominators, np.eye(TAPS)[-1]])
    image = np.vstack([*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(points)[::-1]])
    return Transforms(*(torch.from_numpy(np.kron(matrix, matrix)) for matrix in (result, kernel, image)))


MATRICES = transforms(0, 1, -1, 1 / 2, -2)  # smaller rounding errors than Lavin and Gray's 0, 1, -1, 2, -2


class WinogradConv2d(nn.Conv2d):
    """`nn.Conv2d` with a 3x3 kernel, stride 1 and padding 1, and the same weights: (B, C, H, W) -> (B, C', H, W).

    It convolves directly where Winograd's method is slower or inexact: on small feature maps, in half precision (the
    transforms would round too much), under autocast and on other devices than the CPU. Otherwise the result is channels
    last, which is also the faster layout for the input.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """Build a layer that shares the weights of `conv`, for which `can_replace` is true."""
        made = cls(conv.in_channels, conv.out_channels, TAPS, padding=1, bias=conv.bias is not None, device="meta")
        made.weight, made.bias = conv.weight, conv.bias
        return made

    @staticmethod
    def can_replace(conv: nn.Conv2d) -> bool:
        """Tell whether this class computes the same as `conv`, and `conv` is wide enough to gain time."""
        if min(conv.in_channels, conv.out_channels) < MIN_CHANNELS:
            return False
        kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
        return kind == ((TAPS, TAPS), (1, 1), (1, 1), (1, 1), 1, "zeros")

    def applies_to(self, x: Tensor) -> bool:
        """Tell whether `x` is convolved by Winograd's method; otherwise it is convolved directly."""
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.device.type != "cpu":
            return False
        exact = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        return exact and len(x) * tile_count(x.shape[2]) * tile_count(x.shape[3]) >= MIN_TILES

    def forward(self, x: Tensor) -> Tensor:
        if not self.applies_to(x):
            return super().forward(x)
        result, kernel, image = (matrix.to(x) for matrix in MATRICES)
        kernels = kernel @ self.weight.permute(2, 3, 1, 0).reshape(TAPS * TAPS, -1)
        kernels = kernels.reshape(-1, self.in_channels, self.out_channels)  # (36, C, C')
        batch, _, height, width = x.shape
        rows, columns = tile_count(height), tile_count(width)
        # Compute bands of tile rows, so that intermediate results stay small. A single band when compiling, because the
        # compiler would unroll the loop, and for gradients, because each band would copy the whole gradient of x.
        single_band = torch.compiler.is_compiling() or x.requires_grad
        band_rows = rows if single_band else max(1, TILES_PER_BAND // (batch * columns))
        out = x.new_empty(batch, rows, TILE, columns, TILE, self.out_channels)
        for first in range(0, rows, band_rows):
            count = min(band_rows, rows - first)
            windows = tile_windows(x.movedim(1, -1), first, count, columns)  # (6, 6, B, count, columns, C)
            values = (image @ windows.reshape(WINDOW**2, -1)).reshape(WINDOW**2, -1, self.in_channels)
            products = torch.bmm(values, kernels)  # (36, B * count * columns, C')
            tiles = (result @ products.flatten(1)).reshape(TILE, TILE, batch, count, columns, -1)
            if self.bias is not None:
                tiles += self.bias
            out[:, first : first + count] = tiles.permute(2, 3, 0, 4, 1, 5)
        out = out.flatten(3, 4).flatten(1, 2)  # (B, 4 · rows, 4 · columns, C')
        return out[:, :height, :width].contiguous().movedim(-1, 1)


def tile_count(side: int) -> int:
    """Count the tiles that cover `side` pixels."""
    return -(-side // TILE)


def tile_windows(x: Tensor, first: int, rows: int, columns: int) -> Tensor:
    """Cut the input windows of `rows` rows of tiles from row `first` on: (B, H, W, C) -> (6, 6, B, rows, columns, C).

    Neighbouring windows overlap by two pixels. Outside of x there are zeros.
    """
    above = int(first == 0)
    band = x[:, first * TILE + above - 1 : (first + rows) * TILE + 1]
    below = rows * TILE + 2 - above - band.shape[1]
    band = F.pad(band, (0, 0, 1, columns * TILE + 1 - x.shape[2], above, below))
    return band.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE).permute(4, 5, 0, 1, 2, 3)
