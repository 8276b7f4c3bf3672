"""3x3 convolutions in a third of the work: Winograd's minimal filtering, for wide layers on a CPU.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308), section 4, F(4x4, 3x3);
for the points Barabasz and others, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
Networks" (arXiv:1803.10986). Built in notebook 12, section 5, "Same numbers, another order?".

Filtering is the transpose of a product of polynomials. One of degree 5 is known by its values at six points, each of
which takes one multiplication. So four pixels in a row by three taps, twelve multiplications as sums over windows, take
six; in rows and columns 36 instead of 144. All else is sums and fixed factors: the matrices of `transforms`.

In all channels the same multiplication is a product of two matrices, at which a processor is nearly as good as at
direct convolution. For a tile, its work grows with C * C', that of the transforms with C + C'; the kernels are
transformed at every call, whatever the size of the map. So this pays in wide layers on maps that are not small.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 3  # in a row of the kernel
TILE = 4  # pixels in a row that are computed together
WINDOW = TILE + TAPS - 1  # pixels in a row that they see

MIN_CHANNELS = 128  # in and out; 96 took about as long as direct convolution (AVX-512)
MIN_TILES = 64  # of a batch, as in 32x32 pixels; with 16 of them it was slower
TILES_AT_ONCE = 128  # so that what is computed of them stays near the processor; 64 to 256 differ little


class Transforms(NamedTuple):
    """`result @ ((kernel @ taps) * (image @ window))` is what 3x3 taps give in a 6x6 window: 4x4 pixels, all flat."""

    result: Tensor  # (16, 36)
    kernel: Tensor  # (36, 9)
    image: Tensor  # (36, 36)


def transforms(*points: float) -> Transforms:
    """The matrices for polynomials that are evaluated at five `points` and at infinity, in float64."""
    values = np.vander(points, TILE, increasing=True)
    others = [np.delete(points, place) for place in range(len(points))]
    denominators = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]  # Lagrange's
    result = np.vstack([values, np.eye(TILE)[-1]]).T
    kernel = np.vstack([values[:, :TAPS] / denominators, np.eye(TAPS)[-1]])
    image = np.vstack([*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(points)[::-1]])
    return Transforms(*(torch.from_numpy(np.kron(matrix, matrix)) for matrix in (result, kernel, image)))


MATRICES = transforms(0, 1, -1, 1 / 2, -2)  # which round less than Lavin and Gray's 0, 1, -1, 2, -2


class WinogradConv2d(nn.Conv2d):
    """`nn.Conv2d` of 3x3 taps, stride 1 and padding 1, with the same weights: (B, C, H, W) -> (B, C', H, W).

    Small maps, half precision, in which the transforms would round too much, autocast and other devices take the direct
    way. Otherwise what it returns is channels last, which is also the faster layout for x.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """Build one that shares the weights of `conv`, for which `pays_for` is true."""
        made = cls(conv.in_channels, conv.out_channels, TAPS, padding=1, bias=conv.bias is not None, device="meta")
        made.weight, made.bias = conv.weight, conv.bias
        return made

    @staticmethod
    def pays_for(conv: nn.Conv2d) -> bool:
        """Tell whether this class computes what `conv` does, and gains on large feature maps: `conv` is wide."""
        if min(conv.in_channels, conv.out_channels) < MIN_CHANNELS:
            return False
        kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
        return kind == ((TAPS, TAPS), (1, 1), (1, 1), (1, 1), 1, "zeros")

    def pays_on(self, x: Tensor) -> bool:
        """Whether x is a map that this class computes, and large enough."""
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.device.type != "cpu":
            return False
        exact = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        return exact and len(x) * tiles_in(x.shape[2]) * tiles_in(x.shape[3]) >= MIN_TILES

    def forward(self, x: Tensor) -> Tensor:
        if not self.pays_on(x):
            return super().forward(x)
        result, kernel, image = (matrix.to(x) for matrix in MATRICES)
        kernels = kernel @ self.weight.permute(2, 3, 1, 0).reshape(TAPS * TAPS, -1)
        kernels = kernels.reshape(-1, self.in_channels, self.out_channels)  # (36, C, C')
        batch, _, height, width = x.shape
        down, across = tiles_in(height), tiles_in(width)
        # Bands of rows, so that all between x and the result stays small. But a compiler would write out each of them,
        # and on the way back to a gradient each would copy the whole map.
        at_once = torch.compiler.is_compiling() or x.requires_grad
        rows = down if at_once else max(1, TILES_AT_ONCE // (batch * across))
        whole = x.new_empty(batch, down, TILE, across, TILE, self.out_channels)
        for first in range(0, down, rows):
            tall = min(rows, down - first)
            windows = windows_of(x.movedim(1, -1), first, tall, across)  # (6, 6, B, tall, across, C)
            values = (image @ windows.reshape(WINDOW**2, -1)).reshape(WINDOW**2, -1, self.in_channels)
            products = torch.bmm(values, kernels)  # (36, B * tall * across, C')
            tiles = (result @ products.flatten(1)).reshape(TILE, TILE, batch, tall, across, -1)
            if self.bias is not None:
                tiles += self.bias
            whole[:, first : first + tall] = tiles.permute(2, 3, 0, 4, 1, 5)
        whole = whole.flatten(3, 4).flatten(1, 2)
        return whole[:, :height, :width].contiguous().movedim(-1, 1)


def tiles_in(side: int) -> int:
    """How many tiles cover that many pixels."""
    return -(-side // TILE)


def windows_of(x: Tensor, first: int, tall: int, across: int) -> Tensor:
    """What `tall` rows of `across` tiles see, from row `first` on: (B, H, W, C) -> (6, 6, B, tall, across, C).

    Windows overlap by two pixels. Around x there are zeros.
    """
    above = int(first == 0)
    band = x[:, first * TILE + above - 1 : (first + tall) * TILE + 1]
    below = tall * TILE + 2 - above - band.shape[1]
    band = F.pad(band, (0, 0, 1, across * TILE + 1 - x.shape[2], above, below))
    return band.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE).permute(4, 5, 0, 1, 2, 3)
