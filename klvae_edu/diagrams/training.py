"""Diagrams of the training, and of decoding in tiles."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from klvae_edu.diagrams.sketch import LINE, LOSS, OPERATION, TENSOR, Sketch, diagram


@diagram(
    "The PatchGAN. Five 4×4 convolutions turn an image into a map of logits; the first three halve the side. Each"
    " logit sees only a square of 70 × 70 pixels (framed) and says how real this patch is. The loss averages over"
    " all logits."
)
def patchgan() -> Figure:
    sketch = Sketch(100, 25)
    sketch.grid(2, 21, 1, 17, lambda row, column: "#e4e4e4")
    sketch.axes.add_patch(
        Rectangle((9, 8), 17 * 70 / 256, 17 * 70 / 256, fill=False, edgecolor="#0072B2", linewidth=2.5)
    )
    sketch.write(10.5, 2, "3 × 256 × 256", 9)
    names = [
        ("64\nstride 2", 26),
        ("128\nstride 2", 37.5),
        ("256\nstride 2", 49),
        ("512\nstride 1", 60.5),
        ("1\nstride 1", 72),
    ]
    sketch.chain(12.5, [(x, words, 8.5, OPERATION) for words, x in names], 7)
    sketch.arrow((19, 12.5), (21.75, 12.5))
    sketch.write(49, 20, "channels of five convolutions 4×4, with LeakyReLU (and BatchNorm in the middle ones)", 9)
    sketch.grid(81, 19, 6, 2.2, lambda row, column: "#0072B2" if (row, column) == (2, 2) else TENSOR)
    sketch.arrow((76.25, 12.5), (80.5, 12.5))
    sketch.write(87.5, 2, "logits 1 × 30 × 30", 9)
    sketch.arrow((13.65, 8), (13.65, 5), (86.5, 5), (86.5, 12.4), dashed=True, head=False)
    return sketch.figure


@diagram(
    "One training step. Top: the autoencoder's optimiser follows the gradients of pixel, perceptual, KL and "
    "adversarial losses; the discriminator only passes gradients on, its weights are frozen. Bottom: the "
    "discriminator's optimiser follows its own loss on the image and on the reconstruction, which is detached, so"
    " that no gradient reaches the autoencoder."
)
def training_step() -> Figure:
    sketch = Sketch(104, 36)
    sketch.box(7, 27, "image x", 10, 5, TENSOR)
    sketch.box(23, 27, "encoder", 9, 6)
    sketch.box(36, 27, "z", 4, 5, TENSOR)
    sketch.box(47, 27, "decoder", 9, 6)
    sketch.box(59, 27, "x̂", 4, 5, TENSOR)
    for ends in ((12, 18.5), (27.5, 34), (38, 42.5), (51.5, 57)):
        sketch.arrow(*((x, 27) for x in ends))
    sketch.box(30, 34, "KL", 7, 3.4, LOSS)
    sketch.arrow((29, 27), (30, 32.3))
    sketch.box(76, 33, "pixel + perceptual", 16, 3.6, LOSS)
    sketch.box(73, 26, "D, frozen", 10, 5)
    sketch.box(88, 26, "adversarial", 11, 3.6, LOSS)
    sketch.arrow((61, 27.6), (64, 27.6), (64, 33), (68, 33))
    sketch.arrow((61, 26.4), (68, 26.2))
    sketch.arrow((78, 26), (82.5, 26))
    sketch.write(98, 29.6, "optimiser 1:\nencoder,\ndecoder", 9)
    sketch.box(59, 10, "x̂", 4, 5, TENSOR)
    sketch.arrow((59, 24.5), (59, 12.5), dashed=True)
    sketch.write(60.5, 18.5, "detached: the gradient stops", 9, ha="left")
    sketch.box(73, 8, "D, trained", 10, 6)
    sketch.box(88, 8, "hinge", 9, 3.6, LOSS)
    sketch.arrow((61, 10), (68, 9.4))
    sketch.arrow((7, 24.5), (7, 5), (68, 5.8))
    sketch.arrow((78, 8), (83.5, 8))
    sketch.write(98, 8, "optimiser 2:\nD", 9)
    return sketch.figure


@diagram(
    "Tiled decoding, along one axis. Two overlapping tiles of the latent are decoded separately. In the overlap "
    "the first picture's weight falls linearly from 1 to 0, the second's rises from 0 to 1; the sum is 1 "
    "everywhere, so that no seam is left where both agree."
)
def tiles() -> Figure:
    sketch = Sketch(84, 27)
    sketch.box(24, 22, "tile 1", 40, 5, TENSOR)
    sketch.box(60, 16.5, "tile 2", 40, 5, TENSOR)
    sketch.axes.add_patch(
        Polygon([(4, 4), (4, 11), (40, 11), (44, 4)], facecolor=OPERATION, edgecolor=LINE, hatch="///")
    )
    sketch.axes.add_patch(Polygon([(40, 4), (44, 11), (80, 11), (80, 4)], facecolor=LOSS, edgecolor=LINE, alpha=0.8))
    for x in (40, 44):
        sketch.arrow((x, 2.5), (x, 25.5), dashed=True, head=False)
    sketch.write(42, 26.2, "overlap", 9)
    sketch.write(20, 7.5, "weight of tile 1", 9, backgroundcolor="white")
    sketch.write(64, 7.5, "weight of tile 2", 9)
    return sketch.figure
