"""Diagrams of the model: the whole, the posterior, and the blocks."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.diagrams.sketch import HATCHED, LINE, OPERATION, TENSOR, Sketch, diagram


@diagram(
    "The autoencoder. The encoder turns a photograph of 3 × 256 × 256 numbers into a mean and a log-variance of 4"
    " × 32 × 32 numbers each. A sample z of this Gaussian, 48 times fewer numbers than the photograph, goes "
    "through the decoder, which returns a picture of the first size."
)
def pipeline() -> Figure:
    sketch = Sketch(92, 22)
    sketch.box(8, 11, "photograph\n3 × 256 × 256", 13, 13, TENSOR)
    sketch.axes.add_patch(Polygon([(19, 19), (31, 14), (31, 8), (19, 3)], facecolor=OPERATION, edgecolor=LINE))
    sketch.write(25, 11, "encoder")
    for y, words in ((15, "mean μ\n4 × 32 × 32"), (7, "log σ²\n4 × 32 × 32")):
        sketch.box(40, y, words, 11, 6, TENSOR)
        sketch.arrow((31, 11), (34.5, y))
        sketch.arrow((45.5, y), (50, 11))
    sketch.box(55.5, 11, "z = μ + σ ε\n4 × 32 × 32", 11, 7, TENSOR)
    sketch.axes.add_patch(Polygon([(64, 14), (76, 19), (76, 3), (64, 8)], facecolor=OPERATION, edgecolor=LINE))
    sketch.write(70, 11, "decoder")
    sketch.box(85, 11, "picture\n3 × 256 × 256", 12, 13, TENSOR)
    for ends in ((14.5, 19), (61, 64), (76, 79)):
        sketch.arrow(*((x, 11) for x in ends))
    sketch.write(55.5, 4.5, "ε: noise, N(0, 1)", 8)
    return sketch.figure


@diagram(
    "The posterior. The encoder's 8 channels are split into a mean μ and a log-variance. The log-variance is "
    "clamped to [-30, 20] and turned into the standard deviation σ. A sample is z = μ + σ · ε with noise ε; the "
    "mode is μ."
)
def posterior() -> Figure:
    sketch = Sketch(92, 22)
    sketch.box(7, 11, "moments\n8 × 32 × 32", 11, 7, TENSOR)
    sketch.box(25, 17, "mean μ, 4 channels", 17, fill=TENSOR)
    sketch.chain(
        5,
        [
            (24, "log σ², 4 channels", 17, TENSOR),
            (43, "clamp to\n[-30, 20]", 11, OPERATION),
            (59, "exp(½ log σ²)", 13, OPERATION),
            (71, "σ", 4, TENSOR),
        ],
    )
    sketch.arrow((12.5, 12), (16.5, 17))
    sketch.arrow((12.5, 10), (15.5, 5))
    sketch.box(59, 11, "ε from N(0, 1)", 13, 4, TENSOR)
    sketch.box(71, 11, "×", 4, 4)
    sketch.box(71, 17, "+", 4, 4)
    sketch.box(85, 17, "sample z\n4 × 32 × 32", 12, 6, TENSOR)
    sketch.arrow((33.5, 17), (69, 17))
    sketch.arrow((71, 7.5), (71, 9))
    sketch.arrow((65.5, 11), (69, 11))
    sketch.arrow((71, 13), (71, 15))
    sketch.arrow((73, 17), (79, 17))
    return sketch.figure


@diagram(
    "The ResNet block. The residual branch (top) is norm, activation, convolution, twice. The shortcut (bottom) "
    "carries the input past it, unchanged or through a 1×1 convolution where the number of channels changes. "
    "Their sum is the output."
)
def resnet_block() -> Figure:
    sketch = Sketch(98, 22)
    names = ["GroupNorm", "SiLU", "conv 3×3", "GroupNorm", "SiLU", "conv 3×3"]
    places = [21, 31.5, 41.5, 54, 64.5, 74.5]
    sketch.chain(
        16, [(x, words, 10 if words != "SiLU" else 7, OPERATION) for x, words in zip(places, names, strict=True)]
    )
    sketch.box(6, 11, "x\nC × H × W", 10, 6, TENSOR)
    sketch.box(48, 5, "shortcut: x itself, or conv 1×1 if C changes", 34, 5)
    sketch.box(84, 11, "+", 4, 4)
    sketch.box(92.5, 11, "output\nC' × H × W", 10, 6, TENSOR)
    sketch.arrow((11, 11), (13, 11), (13, 16), (16, 16))
    sketch.arrow((13, 11), (13, 5), (31, 5))
    sketch.arrow((79.5, 16), (84, 16), (84, 13))
    sketch.arrow((65, 5), (84, 5), (84, 9))
    sketch.arrow((86, 11), (87.5, 11))
    sketch.write(48, 20.5, "residual branch", 9)
    return sketch.figure


@diagram(
    "Resampling. Left: downsampling pads one row below and one column on the right with zeros (hatched), then a "
    "3×3 convolution with stride 2 makes 2 × 2 values from 4 × 4; its first and last positions are framed. Right:"
    " upsampling repeats each value in a 2 × 2 square, then a 3×3 convolution with padding on all sides follows."
)
def resampling() -> Figure:
    sketch = Sketch(98, 29)
    cell = 3.6
    sketch.grid(3, 22, 5, cell, lambda row, column: HATCHED if 4 in (row, column) else TENSOR)
    for corner in (0, 2):
        place = (3 + corner * cell, 22 - (corner + 3) * cell)
        sketch.axes.add_patch(Rectangle(place, 3 * cell, 3 * cell, fill=False, edgecolor="#0072B2", linewidth=2.5))
    sketch.arrow((22, 13), (33, 13))
    sketch.write(27.5, 17, "conv 3×3\nstride 2", 9)
    sketch.grid(34, 16.6, 2, cell, lambda row, column: TENSOR)
    greys = ["#ffffff", "#c9c9c9", "#8f8f8f", "#e4e4e4"]
    sketch.grid(53, 16.6, 2, cell, lambda row, column: greys[2 * row + column])
    sketch.arrow((61, 13), (67, 13))
    sketch.write(64, 16, "repeat", 9)
    sketch.grid(68, 20.2, 4, cell, lambda row, column: greys[2 * (row // 2) + column // 2])
    sketch.arrow((83.5, 13), (94, 13))
    sketch.write(88.5, 15.5, "conv 3×3", 9)
    sketch.write(22, 26.5, "downsampling: pad right and below, then convolve", 9)
    sketch.write(74, 26.5, "upsampling: repeat, then convolve", 9)
    return sketch.figure


@diagram(
    "The attention block. The feature map of C channels becomes H·W tokens of C numbers. Three linear layers make"
    " queries, keys and values. Each token's output is an average of all values, with weights from the softmax of"
    " its query's products with all keys, divided by √C. A linear layer follows, the tokens become a map, and the"
    " shortcut adds the input."
)
def attention() -> Figure:
    sketch = Sketch(104, 26)
    sketch.box(6, 12, "map\nC × H × W", 10, 6, TENSOR)
    sketch.box(19, 12, "norm, then\ntokens\nH·W × C", 11, 8)
    sketch.arrow((11, 12), (13.5, 12))
    for y, words in ((20, "Q"), (12, "K"), (4, "V")):
        sketch.box(31, y, words, 5, 4)
        sketch.arrow((24.5, 12), (26.5, 12), (26.5, y), (28.5, y))
    sketch.box(49, 16, "softmax(Q Kᵀ / √C)\nH·W × H·W", 19, 7)
    sketch.arrow((33.5, 20), (37, 20), (37, 17), (39.5, 17))
    sketch.arrow((33.5, 12), (37, 12), (37, 15), (39.5, 15))
    sketch.box(66, 12, "weights\n× V", 9, 6)
    sketch.arrow((58.5, 16), (60, 16), (60, 13), (61.5, 13))
    sketch.arrow((33.5, 4), (60, 4), (60, 11), (61.5, 11))
    sketch.box(80, 12, "linear, then\nmap\nC × H × W", 12, 8)
    sketch.arrow((70.5, 12), (74, 12))
    sketch.box(90, 12, "+", 4, 4)
    sketch.box(98.5, 12, "output\nC × H × W", 10, 6, TENSOR)
    sketch.arrow((86, 12), (88, 12))
    sketch.arrow((92, 12), (93.5, 12))
    sketch.arrow((6, 15), (6, 24.5), (90, 24.5), (90, 14))
    sketch.write(48, 23.2, "shortcut", 9)
    return sketch.figure


@diagram(
    "One level. In the encoder two ResNet blocks are followed by a downsampling, which halves the sides (not in "
    "the last level). In the decoder three ResNet blocks are followed by an upsampling, which doubles them. The "
    "first block of a level changes the number of channels."
)
def level() -> Figure:
    sketch = Sketch(96, 20)
    sketch.write(6, 15, "encoder", 10)
    sketch.write(6, 5, "decoder", 10)
    resnet = ("ResNet", 9, OPERATION)
    sketch.chain(15, [(19, "C × H × W", 12, TENSOR), (36, *resnet), (50, *resnet), (67, "downsample", 12, OPERATION),
                      (86, "C' × H/2 × W/2", 15, TENSOR)])  # fmt: skip
    sketch.chain(5, [(19, "C × H × W", 12, TENSOR), (33, *resnet), (44, *resnet), (55, *resnet),
                     (69, "upsample", 11, OPERATION), (87, "C' × 2H × 2W", 14, TENSOR)])  # fmt: skip
    return sketch.figure


def feature_maps(config: AutoencoderKLConfig, side: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """List (channels, side) of the feature maps of encoder and decoder, one entry where one of both changes."""
    widths = config.block_out_channels
    encoder = [(config.in_channels, side), (widths[0], side)]
    for before, after in pairwise(widths):
        side //= 2
        encoder += [(before, side), (after, side)]
    decoder = [(config.latent_channels, side), (widths[-1], side)]
    for width in reversed(widths):
        decoder += [(width, side), (width, 2 * side)]
        side *= 2
    decoder[-1] = (config.out_channels, side // 2)  # the last level does not upsample
    return [*dict.fromkeys(encoder), (2 * config.latent_channels, encoder[-1][1])], [*dict.fromkeys(decoder)]


@diagram(
    "KL-f8, the autoencoder of Stable Diffusion. Each slab is a feature map; its height shows the side, its width"
    " the number of channels. The encoder halves the side three times, from 256 to 32, and widens from 128 to 512"
    " channels. Its last convolution leaves 8 channels: mean and log-variance. The decoder returns to 256 × 256 "
    "from the 4 channels of z, and doubles the side before it narrows. The lines at the bottom "
    "are the four levels of each half: a level begins at its input, and its output is the input of the next one."
)
def kl_f8() -> Figure:
    sketch, middle = Sketch(100, 38), 21
    encoder, decoder = feature_maps(AutoencoderKLConfig.from_preset("sd-v1"), side=256)
    x = 1.0
    for part in (encoder, decoder):
        inner = []  # the left and the right edge of each hidden map
        for channels, side in part:
            w, h = 1 + channels / 180, 3 + side / 13  # of a slab
            x += w / 2 + 1.8
            look = TENSOR if channels < 10 else OPERATION  # not a hidden map
            sketch.axes.add_patch(Rectangle((x - w / 2, middle - h / 2), w, h, facecolor=look, edgecolor=LINE))
            sketch.write(x, middle + h / 2 + 1.4, str(channels), 8)
            sketch.write(x, middle - h / 2 - 1.4, f"{side}²", 8)
            inner += [(x - w / 2, x + w / 2)] if look is OPERATION else []
            x += w / 2 + 1.2
        sides = [side for channels, side in part if channels >= 10]
        starts = [inner[i][0] for i in range(len(sides)) if i == 0 or sides[i] != sides[i - 1]]  # of the levels
        for number, (left, right) in enumerate(pairwise([*starts, inner[-1][1] + 0.6])):
            right -= 0.6  # a gap before the next level
            sketch.arrow((left, 4.5), (right, 4.5), head=False)
            sketch.write((left + right) / 2, 2.8, str(number), 8)
        sketch.write(starts[0] - 3.5, 2.8, "level", 8)
        if part is encoder:
            sketch.arrow((x, middle), (x + 8, middle))
            sketch.write(x + 4, middle + 2.5, "sample", 9)
            x += 7.5
    sketch.write(26, 36.5, "encoder (channels above, side below)", 9)
    sketch.write(76, 36.5, "decoder", 9)
    return sketch.figure
