# %% [markdown]
# # 12 · Scaling up: larger images, fewer bits, more machines
#
# {{badge}}
#
# Your autoencoder works on small images, one machine, a folder of photographs. What breaks when the image has 16 million
# pixels, the numbers 16 bits, the training two processes, the data nine million images? Each has a trick, and each trick a catch.
#
# **You will be able to**
#
# * decode large images in tiles, and say why seams appear and which part of them can be removed;
# * trade memory for time with checkpointing, and bits for speed without falling into float16's trap;
# * share data out to any number of readers, and go on in the middle of a pass;
# * compute what a training on OpenImages would cost you, in days and in money.
#
# **You need** the blocks of 03 and 04, the model of 05, and the step of 08.
#
# {{budget}}

# %% tags=["environment"]

# %%
import copy
import dataclasses
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset, photographs
from klvae_edu.exercises import check, hint, solution
from klvae_edu.performance.memory import TensorMemory
from klvae_edu.plots import PALETTE, figure, image_grid, show
from klvae_edu.performance.tiling import seam_lines, seam_metric
from klvae_edu.performance.winograd import WinogradConv2d

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# ## 1. What fills the memory?
#
# A decoder needs its weights, the latent, and whatever maps are alive between two layers. Which of the three is largest for a
# photograph of 512 × 512? `TensorMemory` counts the bytes of all tensors made within it, and notes the peak.

# %%
vae = AutoencoderKL.from_bundled().eval().requires_grad_(False)
mebi = 2**20
print(f"weights {4 * vae.num_parameters() / mebi:.2g} MiB")
for side in (128, 256, 512):
    z = torch.zeros(1, 4, side // 8, side // 8)
    with TensorMemory() as memory:
        vae.decode(z)
    print(f"side {side}: latent {4 * z.numel() / mebi:.2g} MiB, peak {memory.peak / mebi:.3g} MiB")

# %% [markdown]
# At 128 the weights, from 256 on the maps between: each doubling of the side makes four times as much. Three large maps are alive
# at once, the input of the last stage's first ResNet block and two within it. With C channels each:
#
# $$\text{peak} \approx 3 \cdot 4\,\text{bytes} \cdot C \cdot H \cdot W$$
#
# The last upsampling makes a map of C channels, the second number in `block_out_channels`.


# %%
def peak(config, side):
    """Bytes, by the formula."""
    return 3 * 4 * config.block_out_channels[1] * side**2


print(f"C = {vae.config.block_out_channels[1]}, side 512: {peak(vae.config, 512) / mebi:.3g} MiB by the formula")

# %% [markdown]
# And Stable Diffusion's decoder, with C = 256? Counting needs no values: on the `meta` device tensors have none (notebook 05), so
# not a byte is spent. Compute the first line by hand before you look, and then the last: your 16 million pixels.

# %%
with torch.device("meta"):
    stable_diffusion = AutoencoderKL.from_preset("sd-v1").requires_grad_(False)
for side in (256, 512, 1024):
    with TensorMemory() as memory:
        stable_diffusion.decode(torch.zeros(1, 4, side // 8, side // 8, device="meta"))
    print(f"{side} × {side}: {memory.peak / 2**30:.3g} GiB")
print(f"4096 × 4096: {peak(stable_diffusion.config, 4096) / 2**30:.3g} GiB by the formula")

# %% [markdown]
# A batch multiplies it once more. The cheapest trick: one image of the batch after the other, *slicing*. Does the result
# change, when no layer looks from one image to the next?

# %%
batch = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
with TensorMemory() as together:
    whole = vae.decode(batch).sample

# %%
vae.enable_slicing()
with TensorMemory() as in_slices:
    sliced = vae.decode(batch).sample
vae.disable_slicing()
assert (whole - sliced).abs().max() < 1e-4
print(f"peak {together.peak / mebi:.3g} MiB together, {in_slices.peak / mebi:.3g} MiB in slices; max |Δ| < 1e-4")

# %% [markdown]
# Only rounding differs: another batch size takes other kernels. For free? Nearly. But one large image is no batch.

# %% [markdown]
# ## 2. What does a tile not know?
#
# So cut the latent into *tiles*, decode each, put the pieces together. Here is a photograph's latent, decoded whole and in tiles
# of 16 × 16 latent pixels, edge to edge. Where do you expect the seams, and why should there be any?

# %%
photo = photographs("held-out")["coffee"][None, :, :384, :384]
z = vae.encode(photo).latent_dist.mode()
with TensorMemory() as memory_of_whole:
    whole = vae.decode(z).sample
pieces = [[vae.decode(part).sample for part in row.split(16, dim=3)] for row in z.split(16, dim=2)]
edge_to_edge = torch.cat([torch.cat(row, dim=3) for row in pieces], dim=2)

# %%
view = (slice(None), slice(64, 256), slice(64, 256))
difference = 4 * (edge_to_edge - whole)
fig = image_grid(
    [[whole[0][view], edge_to_edge[0][view], difference[0][view]]],
    column_titles=["whole", "tiles, edge to edge", "difference × 4"],
)
show(
    fig,
    alt="A cup, decoded whole and in tiles: in the tiled one lines and steps of colour cross the picture, in the difference a cross.",
    format="jpeg",
)

# %% [markdown]
# Lines at multiples of 128 pixels, and steps of colour. The view begins at pixel 64, so that the line at 128 lies at 64 in it; grey
# is no difference.
#
# A tile misses what lies beyond its edge (convolutions see zeros), the whole map's mean and variance (GroupNorm), and what attention
# would have looked at.

# %% [markdown]
# How hard is a seam? The `seam_metric` compares jumps across the lines with jumps beside them: 1 is no seam. Guess the other
# number before you look.

# %%
lines = [128, 256]
seams = {"whole": seam_metric(whole, lines, lines), "edge to edge": seam_metric(edge_to_edge, lines, lines)}
assert seams["edge to edge"] > 2 > 1.3 > seams["whole"]
print("seam metric:", ", ".join(f"{name} {value:.1f}" for name, value in seams.items()))

# %% [markdown]
# Against the zeros at the edges helps overlap: neighbours share some cells, and a *ramp* passes from one to the other. With
# four shared cells, let a weight rise and its neighbour's fall. At every cell the two must add up to what?

# %%
rising = (torch.arange(4) + 0.5) / 4
print("rising ", rising.tolist())
print("falling", rising.flip(0).tolist())
print("sum    ", (rising + rising.flip(0)).tolist())

# %% [markdown]
# {{exercise 12.1}}
#
# The weights of one tile along one axis: they rise over the first `before` cells, stay at one, and fall over the last `after`.
# A tile at the border of the image shares nothing there: `before` or `after` is 0. The ramps may meet, not overlap.


# %%
def ramp(length, before, after):
    """The weights (length,) of a tile that shares `before` cells with the last one and `after` with the next."""
    # BEGIN SOLUTION
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 0.5) / before if before else 1.0
    weights[length - after :] = 1 - (torch.arange(after) + 0.5) / after if after else 1.0
    return weights
    # SKELETON
    #| weights = ...  # ones
    #| rising = ...   # over the first `before` cells: from the middle of a cell to the middle of the next
    #| falling = ...  # over the last `after` cells
    #| return ...
    # END SOLUTION


ramp = check("12.1", ramp)

# %% [markdown]
# Three tiles of 24 cells over a row of 48, starting at 0, 12 and 24: do the weights add up to one everywhere?

# %%
starts, sums = (0, 12, 24), torch.zeros(48)
weights = [ramp(24, 12 if start else 0, 12 if start < 24 else 0) for start in starts]
fig, ax = figure(size=(6, 2.6))
for start, weight, style in zip(starts, weights, ("-", "--", ":"), strict=True):
    sums[start : start + 24] += weight
    ax.plot(range(start, start + 24), weight, style, label=f"tile from {start}")
ax.plot(sums, color=GREY, linewidth=4, alpha=0.5, label="sum")
ax.set(xlabel="cell", ylabel="weight", ylim=(0, 1.1)), ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
assert (sums - 1).abs().max() < 1e-6
show(
    fig,
    alt="The first weight falls from one, the second rises to a peak and falls, the third rises; their sum is a level line at one.",
)

# %% [markdown]
# In two dimensions the weights multiply, and the package's `enable_tiling` does the rest. Is the seam gone, and is the image the one
# that the whole would have been?

# %%
size, overlap = 128, 32
lines = seam_lines(48, size // 8, overlap // 8, unit=8)
vae.enable_tiling(size=size, overlap=overlap)
with TensorMemory() as memory:
    blended = vae.decode(z).sample

# %%
error = (blended - whole).norm() / (edge_to_edge - whole).norm()
seam = seam_metric(blended, lines, lines)
assert seam < 1.3 and 0.3 < error < 0.95
print(f"peak {memory_of_whole.peak / mebi:.2g} MiB whole, {memory.peak / mebi:.2g} MiB in tiles")
print(f"seam metric: {seam:.1f}; {error:.1f} times as far from the whole as tiles edge to edge")

# %% [markdown]
# No seam, but not the whole image either: each tile is still normalised by its *own* mean and variance. Overlap hides a step of
# colour by stretching it. Could a tile know the statistics of all of them, without anyone holding the whole map?

# %% [markdown]
# Five numbers, in tiles of two and three. The mean of all is easy. The variance of all is *not* the mean of the tiles' variances.
# What is missing?

# %%
row = torch.tensor([1.0, 3.0, 6.0, 7.0, 8.0])
tiles = row[:2], row[2:]
print("mean", row.mean().item(), " of the tiles", [tile.mean().item() for tile in tiles])
print(f"variance {row.var(correction=0):.3g}, of the tiles", [f"{tile.var(correction=0):.3g}" for tile in tiles])

# %% [markdown]
# {{exercise 12.2}}
#
# The spread *between* the tiles. With shares $p_i$ of the cells,
#
# $$\mu = \sum_i p_i \mu_i, \qquad \sigma^2 = \sum_i p_i \left(\sigma_i^2 + (\mu_i - \mu)^2\right).$$


# %%
def pooled(means, variances, counts):
    """Statistics of tiles, (tiles, groups), and their cells, (tiles,) -> mean and variance of all, (groups,) each."""
    # BEGIN SOLUTION
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)
    # SKELETON
    #| share = ...        # of each tile, as a column
    #| mean, variance = ...
    #| return mean, variance
    # END SOLUTION


pooled = check("12.2", pooled)

# %%
means = torch.stack([tile.mean() for tile in tiles])[:, None]
variances = torch.stack([tile.var(correction=0) for tile in tiles])[:, None]
print("pooled", [f"{value.item():.3g}" for value in pooled(means, variances, torch.tensor([2, 3]))])

# %% [markdown]
# With `global_norm=True` the package decodes every tile twice: a first pass measures at each GroupNorm, a second uses the pooled
# statistics. Will it then equal the whole? Think of what stood *before* the second GroupNorm while the first pass measured it.

# %%
vae.enable_tiling(size=size, overlap=overlap, global_norm=True)
with_statistics = vae.decode(z).sample
vae.disable_tiling()
results = {"edge to edge": edge_to_edge, "overlap": blended, "overlap, pooled": with_statistics}
errors = {name: ((x - whole).norm() / whole.norm()).item() for name, x in results.items()}
assert errors["overlap, pooled"] < 0.9 * errors["overlap"] < 0.81 * errors["edge to edge"]
print("nearer to the whole:", " > ".join(errors))

# %%
fig, ax = figure(size=(6, 2.4))
ax.barh([*errors], [100 * error for error in errors.values()], color=[GREY, BLUE, ORANGE])
for place, error in enumerate(errors.values()):
    ax.text(100 * error, place, f" {100 * error:.2g} %", va="center")
ax.set(xlabel="distance to the image decoded whole, in % of its norm", xlim=(0, 125 * max(errors.values())))
ax.invert_yaxis()
show(fig, alt="Three bars of falling length: tiles edge to edge, with overlap, with overlap and pooled statistics.")

# %% [markdown]
# Nearer, not equal: while it measures, the first pass still normalises by each tile's own numbers, and attention keeps to its tile.
# Twice the time, the memory of one tile.

# %% [markdown]
# ## 3. Which maps does the way back need?
#
# Training keeps what decoding throws away: the backward pass asks for every layer's input. Ten layers in a row: how many maps are
# alive before `backward`? *Checkpointing* keeps a few and computes the others again. What would two checkpoints cost?

# %%
x = torch.ones(1000, requires_grad=True)


def chain(x, layers):
    for _ in range(layers):
        x = torch.sin(x)
    return x


for name, run in {
    "all ten": lambda: chain(x, 10),
    "two parts": lambda: checkpoint(chain, checkpoint(chain, x, 5, use_reentrant=False), 5, use_reentrant=False),
}.items():
    with TensorMemory() as memory:
        y = run()
        kept = memory.now
        y.sum().backward()
    print(f"{name:9}: {kept / 4000:.0f} maps kept, {memory.peak / 4000:.0f} at the peak of the way back")

# %% [markdown]
# Two are kept instead of ten; on the way back four come alive again, one part at a time. With n layers in √n parts the peak grows
# like √n (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). The price is most of a second forward pass.

# %% [markdown]
# What share of a training step's memory does it save for Stable Diffusion's autoencoder? A part is one ResNet block, one attention,
# or one change of size. The way back is about twice the work of a pass forward: how much does a second pass add?


# %%
def training_step(vae, images):
    """Forward and backward of the pixel loss, on images (B, 3, H, W)."""
    F.mse_loss(vae(images, sample_posterior=True).sample, images).backward()


def step_cost(preset, side, checkpointing):
    """Bytes of activations at the peak, and floating-point operations, of a training step on one image."""
    with torch.device("meta"):
        vae, images = AutoencoderKL.from_preset(preset).train(), torch.zeros(1, 3, side, side)
    if checkpointing:
        vae.enable_gradient_checkpointing()
    with FlopCounterMode(display=False) as operations:
        training_step(vae, images)
    vae.zero_grad()
    with TensorMemory() as memory:
        training_step(vae, images)
    return memory.peak - 4 * vae.num_parameters(), operations.get_total_flops()


# %%
costs = {checkpointing: step_cost("sd-v1", 256, checkpointing) for checkpointing in (False, True)}
for checkpointing, (size, operations) in costs.items():
    print(f"checkpointing {checkpointing!s:5}: {size / 2**30:.2g} GiB, {operations / 1e12:.2f} TFLOP")
print(f"memory × {costs[True][0] / costs[False][0]:.2f}, work × {costs[True][1] / costs[False][1]:.2f}")

# %% [markdown]
# A fifth of the memory for a sixth more work, not a third: PyTorch stops repeating a part as soon as the last tensor that the way
# back asks for is there. A part's last convolution needs only its *input*, and is spared. Without that stop?

# %%
with set_checkpoint_early_stop(False):
    to_the_end = step_cost("sd-v1", 256, True)[1]
print(f"every part repeated to its end: work × {to_the_end / costs[False][1]:.2f}")

# %% [markdown]
# The third that you expected. And the gradients? What is repeated must come out as it did: the same numbers, the same kernels. With
# the same seed for the posterior's sample, do both ways give one gradient?

# %%
small = AutoencoderKL.from_preset("tiny", seed=0).train()
images = next(iter(DataLoader(image_dataset("photos", 32, length=8), batch_size=8)))
gradients = []

# %%
for checkpointing in (False, True):
    (small.enable_gradient_checkpointing if checkpointing else small.disable_gradient_checkpointing)()
    torch.manual_seed(0)  # of the posterior's sample
    small.zero_grad()
    training_step(small, images)
    gradients.append(torch.cat([weight.grad.flatten() for weight in small.parameters()]))
small.disable_gradient_checkpointing()
assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()
print("gradients: relative |Δ| < 1e-5")

# %% [markdown]
# ## 4. How few bits does a number need?
#
# 16 bits are half the memory and, on the right processor, twice the speed or more. There are two ways to spend them. Which of
# these five numbers will survive in which?

# %%
numbers = torch.tensor([1.001, 300.0, 70_000.0, 1e-6, 1e-9])
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    print(f"{str(dtype):15}", [f"{value:.4g}" for value in numbers.to(dtype).tolist()])

# %% [markdown]
# float16 has 11 bits of precision and ends at 65,504; below 6e-8 there is nothing. bfloat16 has float32's range with 8 bits: 1.001
# is 1. So where does float16 fail in an autoencoder? Not at its pixels.

# %%
x = torch.tensor([[-300.0, 300.0, 310.0, -310.0]])
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    variance = x.to(dtype).square().mean()
    print(
        f"{str(dtype):15} variance {variance.item():.3g}, normalised {[round(v, 2) for v in (x.to(dtype) * variance.rsqrt()).tolist()[0]]}"
    )

# %% [markdown]
# A square outgrows it long before the value does. The infinite variance makes all maps 0, or NaN where infinity is subtracted. The
# activations of Stable Diffusion's decoders themselves pass 65,504: that is what `force_upcast` in their configuration says.

# %% [markdown]
# {{exercise 12.3}}
#
# A GroupNorm (without weight and bias) that is safe for 16-bit maps: compute in float32, give back the type that came. Where must
# the conversion stand? Write mean and variance out: `F.group_norm` hides the question, since on a CPU it converts by itself.


# %%
def safe_group_norm(x, groups, eps=1e-6):
    """x (B, C, H, W) of any floating-point type -> normalised over each group of channels, in the same type."""
    # BEGIN SOLUTION
    grouped = x.float().reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)
    # SKELETON
    #| grouped = ...  # (B, groups, everything else), in a type with room
    #| variance, mean = ...
    #| return ...     # in the shape and type of x
    # END SOLUTION


safe_group_norm = check("12.3", safe_group_norm)

# %% [markdown]
# The whole model in 16 bits: how far from float32 does the image come out? With weights in float16 this package heeds `force_upcast`
# and computes in float32; diffusers leaves that to its pipelines. Switch it off, too: which is nearer, float16 or bfloat16?


# %%
def in_type(dtype, force_upcast=True):
    one = copy.deepcopy(vae).to(dtype)
    one.config = dataclasses.replace(vae.config, force_upcast=force_upcast)
    return one.decode(z[..., :16, :16].to(dtype)).sample.float()


# %%
right = in_type(torch.float32)
runs = in_type(torch.float16), in_type(torch.float16, force_upcast=False), in_type(torch.bfloat16)
upcast, half, bfloat = (((run - right).norm() / right.norm()).item() for run in runs)
assert max(upcast, half) < 2e-3 < bfloat < 0.05 and half < bfloat / 3
print("float16: less than 0.2 % off, computed in float32 or in float16")
print("bfloat16: more than three times as far off, and less than 5 %")

# %% [markdown]
# Even computed in float16 it is nearer than bfloat16: three bits more. Is `force_upcast` for nothing, then? That depends on how large
# the maps grow. What is the largest number that a layer of this small decoder gives out?

# %%
largest, layers = [], vae.decoder.modules()
hooks = [layer.register_forward_hook(lambda layer, x, out: largest.append(out.abs().max().item())) for layer in layers]
vae.decode(z[..., :16, :16])
for hook in hooks:
    hook.remove()
assert max(largest) < 6_500
print("largest number in any map: less than a tenth of 65,504")

# %% [markdown]
# Nothing overflows here, so that only precision counts. It does not carry over: one value past 65,504 in a large decoder becomes
# infinite, the next norm makes NaN of its whole group, and precision counts no more.

# %% [markdown]
# And in training? Average a loss over a million values, and single gradients fall below float16's floor. *Loss scaling* multiplies
# before the way back and divides after. bfloat16 needs none. Five gradients:

# %%
gradient = torch.tensor([1e-3, 1e-5, 1e-7, 1e-8, 1e-9])
for name, found in {
    "float16": gradient.half(),
    "float16, scaled": (gradient * 2**16).half().float() / 2**16,
    "bfloat16": gradient.bfloat16(),
}.items():
    print(f"{name:15}", [f"{value:.1g}" for value in found.tolist()])

# %% [markdown]
# So: autocast to bfloat16, weights in float32 (notebook 08 showed why), and float16 only with a scaler and an eye on its ceiling.

# %% [markdown]
# ## 5. Same numbers, another order?
#
# Another order, a compiler, less arithmetic: bars at the section's end say what each is worth to you. First the order. A map
# (B, C, H, W) lies in memory channel by channel, or, `channels_last`, pixel by pixel. What changes in shape and strides?

# %%
x = torch.arange(12.0).view(1, 3, 2, 2)
for name, one in {"contiguous": x, "channels_last": x.to(memory_format=torch.channels_last)}.items():
    order = one.as_strided((12,), (1,)).int().tolist()
    print(f"{name:13} shape {tuple(one.shape)} strides {one.stride()} in memory {order}")

# %% [markdown]
# The same tensor to everyone but the memory. And a compiler? `torch.compile` hands what it traced to a *backend*. This one compiles
# nothing: it counts. How many graphs is a decoder, and is most of it convolutions and matrix products?


# %%
def counting(graph, inputs):
    found.append([node.target for node in graph.graph.nodes if node.op in ("call_function", "call_method")])
    return graph.forward


# %%
found = []
decoder = torch.compile(copy.deepcopy(small.decoder).eval(), backend=counting)
with torch.no_grad():
    decoder(torch.zeros(1, 4, 8, 8))
torch.compiler.reset()
heavy = sum(any(word in str(target) for word in ("conv2d", "linear", "attention")) for target in found[0])
assert len(found) == 1
print(f"graphs: {len(found)}; more than half of its operations are cheap: {heavy < len(found[0]) / 2}")

# %% [markdown]
# One graph: the compiler may see it all. It can win at the cheap operations, fused into one pass over memory; convolutions stay what
# they are. If a C++ compiler is at hand here, the last picture shows norm, SiLU and sum, compiled.


# %%
def piece(x, weight, bias):
    return x + F.silu(F.group_norm(x, 8, weight, bias))


# %%
def seconds(function, repeats=5):
    function()
    laps = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        laps.append(time.perf_counter() - start)
    return min(laps)


# %% [markdown]
# The shortest of five laps, after one that does not count: caches warm up, and other programs only add time. Times are your
# machine's: drawn, never printed.

# %%
x, weight, bias = torch.randn(1, 64, 128, 128), torch.ones(64), torch.zeros(64)
ways = {"eager": seconds(lambda: piece(x, weight, bias))}
compiler = next(filter(shutil.which, ("g++", "c++", "clang++")), None)
if compiler:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would look for a GPU's compiler, aloud
    compiled = torch.compile(piece)
    assert (compiled(x, weight, bias) - piece(x, weight, bias)).abs().max() < 1e-4
    ways["compiled"] = seconds(lambda: compiled(x, weight, bias))

# %% [markdown]
# A compiler keeps the multiplications; arithmetic can save some. The decoder repeats each pixel, then convolves, so that a window of
# three sees only two different pixels. Which kernels of two would do on the row itself, in place of (1, 2, 4)?

# %%
row = torch.tensor([1.0, 5.0, 2.0, 3.0])
repeated = F.pad(row.repeat_interleave(2), (1, 1))
before, here, after = F.pad(row, (1, 1)).unfold(0, 3, 1).T
print("three taps:", F.conv1d(repeated[None, None], torch.tensor([[[1.0, 2.0, 4.0]]])).flatten().tolist())
print("two taps:  ", torch.stack([before + 6 * here, 3 * here + 4 * after], dim=1).flatten().tolist())

# %% [markdown]
# (1, 2 + 4) where the pixel's first copy is in the middle, (1 + 2, 4) where its second is. In two dimensions: four kernels of 2 × 2
# on the small map for one of 3 × 3 on the large one, 4/9 of the work. `vae.optimize()` makes a copy for inference that does so.
# What is left of the whole decoder's work?

# %%
optimized, flops = vae.optimize(), []
for one in (vae, optimized):
    with FlopCounterMode(display=False) as operations:
        one.decode(z)
    flops.append(operations.get_total_flops())
assert (vae.decode(z).sample - optimized.decode(z).sample).abs().max() < 1e-4
print(f"work × {flops[1] / flops[0]:.2f}, max |Δ| < 1e-4")

# %% [markdown]
# A window over pixels that differ can be had for less, too. Two neighbouring results of three taps take six multiplications, or four,
# if sums are taken first (*Winograd's minimal filtering*, [arXiv:1509.09308](https://arxiv.org/abs/1509.09308)):

# %%
(a, b, c, d), (u, v, w) = (3.0, 1.0, 4.0, 2.0), (2.0, 7.0, 1.0)  # four pixels in a row, three taps
p, q, r, s = (a - c) * u, (b + c) * (u + v + w) / 2, (c - b) * (u - v + w) / 2, (b - d) * w
print("six: ", [a * u + b * v + c * w, b * u + c * v + d * w], " four:", [p + q + r, q - r - s])

# %% [markdown]
# The taps' sums are taken once for all pixels, the pixels' once for all output channels, and p, q, r, s are added over the input
# channels before the last sums. So sums grow with the channels, products with their square: a narrow layer gains nothing. In two
# dimensions 2 × 2 pixels take 16 products for 36. `optimize()` computes 4 × 4 with 36 for 144, in float32 on a CPU, from 128 channels
# on. This model's layers are narrower; Stable Diffusion's are not. One of them, and its error:

# %%
direct = nn.Conv2d(256, 256, 3, padding=1)
minimal = WinogradConv2d(256, 256, 3, padding=1)
minimal.load_state_dict(direct.state_dict())
pixels, flops, errors = torch.randn(1, 256, 64, 64), [], []
expected = copy.deepcopy(direct).double()(pixels.double())
for layer in (direct, minimal):
    with FlopCounterMode(display=False) as operations:
        errors.append((layer(pixels) - expected).abs().max() / expected.abs().max())
    flops.append(operations.get_total_flops())
print(f"work × {flops[1] / flops[0]:.2f}; less exact, but to 1e-5: {bool(errors[0] < errors[1] < 1e-5)}")

# %% [markdown]
# A quarter for the products; the rest is the sums, counted here as products with fixed matrices. What is added and taken off again
# is rounded in between.

# %% [markdown]
# Time may fall by more than the work: the repeated map is never written to memory, and activations work in place. The decoder as
# it is, that copy, the other order, 16 bits: which is fastest where you are?

# %%
model = {"float32": vae, "optimize()": optimized}
model["channels_last"] = copy.deepcopy(vae).to(memory_format=torch.channels_last)
model["bfloat16"] = copy.deepcopy(vae).to(torch.bfloat16)
inputs = z[..., :24, :24]
whole_decoder = {name: seconds(lambda one=one: one.decode(inputs.to(one.dtype)), 3) for name, one in model.items()}

# %%
fig, axes = figure(1, 2, size=(8, 2.6))
for ax, bars, title in zip(
    axes,
    (whole_decoder, ways),
    ("decoding 192 × 192", f"norm, SiLU, sum{'' if compiler else ' (no C++ compiler here)'}"),
    strict=True,
):
    first = next(iter(bars.values()))
    ax.barh([*bars], [value / first for value in bars.values()], color=BLUE)
    ax.set(xlabel="time over the first", title=title), ax.invert_yaxis()
show(fig, alt="Bars of time relative to float32 and to eager mode, as measured on the machine that drew them.")

# %% [markdown]
# A processor that does not multiply in bfloat16 takes *longer* in it, and compiling costs seconds to minutes. Measure on your shapes,
# and the error with the time. A map 100 deviations from zero, in both orders:

# %%
far = 100 + torch.randn(1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
exact = F.group_norm(far.double(), 8)
errors = [(F.group_norm(one, 8) - exact).abs().max() for one in (far, far.to(memory_format=torch.channels_last))]
print("channels last: at least 100 times as far off:", bool(errors[1] > 100 * errors[0]))

# %% [markdown]
# On the machine this was built on, about 6e-6 off and about 0.02. Channels last, PyTorch 2.15 on a CPU takes the variance as mean
# square less squared mean, two large numbers for a small one. A norm does not care for a constant taken off a whole group. What if
# the mean of every 16th pixel is taken off first?

# %%
groups = far.unflatten(1, (8, 4))
estimate = groups[..., ::4, ::4].mean((2, 3, 4), keepdim=True)
centred = (groups - estimate).flatten(1, 2).contiguous(memory_format=torch.channels_last)
print("as near as in the usual order:", bool((F.group_norm(centred, 8) - exact).abs().max() < 2 * errors[0]))

# %% [markdown]
# That is what `optimize()` does in float32 on a CPU, with every 64th: the order that convolutions like, and norms that can bear it.

# %% [markdown]
# ## 6. Whose gradient is it?
#
# A batch's gradient is the mean of its images' gradients. Which image pulls hardest? A loop would tell, eight backward passes long.
# `torch.func` turns the model into a function of its weights, `grad` differentiates it, `vmap` does so for all images at once.

# %%


def loss(weights, image):
    """Of one image (3, H, W), through the posterior's mode."""
    return F.mse_loss(torch.func.functional_call(small, weights, (image[None],)).sample[0], image)


# %%
weights = {name: weight.detach() for name, weight in small.named_parameters()}
small.set_attention_backend("eager")  # the fused kernel knows no vmap
each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, images)
each = torch.cat([gradient.flatten(1) for gradient in each.values()], dim=1)
print("gradients", tuple(each.shape))

# %% [markdown]
# Eight gradients of 954,567 numbers each, in one call. Is their mean what `backward` finds for the batch, and do all images pull
# alike?

# %%
small.zero_grad()
F.mse_loss(small(images).sample, images).backward()
together = torch.cat([weight.grad.flatten() for weight in small.parameters()])

# %%
assert (each.mean(0) - together).norm() < 1e-4 * together.norm()
lengths = each.norm(dim=1)
print("mean of eight = gradient of the batch: relative |Δ| < 1e-4")
print(f"the longest is more than twice the shortest: {(lengths.max() > 2 * lengths.min()).item()}")

# %% [markdown]
# Because it is a mean, it can be computed in two places: each process takes half of the batch, and both average what they found.
# That is all that data parallelism is; a wrapper around the model does it. Call the model itself instead: how far is a process's
# gradient then from that of the whole batch?

# %%
program = """
import os, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))  # the same in both
mine = batch.chunk(2)[rank]
torch.manual_seed(0)
model, whole = nn.Linear(5, 5), nn.Linear(5, 5)
whole.load_state_dict(model.state_dict())
whole(batch).square().mean().backward()
wrapped = DistributedDataParallel(model)
gaps = {}
for name, forward in {"through the wrapper": wrapped, "behind its back": model}.items():
    model.zero_grad()
    forward(mine).square().mean().backward()
    gaps[name] = (model.weight.grad - whole.weight.grad).abs().max().item()
dist.barrier()  # who leaves early closes the line while the other may still be reading
dist.destroy_process_group()
if rank == 0:
    for name, gap in gaps.items():
        print(f"{name}: off by {'less than 1e-6' if gap < 1e-6 else f'{gap:.1g}'}", flush=True)
os._exit(0)  # at once: the usual way out, which takes threads down, now and then aborts
"""

# %% [markdown]
# `torchrun` starts the program twice and tells each copy its number, the *rank*. `gloo` carries tensors between processors, `nccl`
# between GPUs. Should the two miss each other, they are begun again.

# %%
folder = tempfile.TemporaryDirectory()
file = Path(folder.name) / "two.py"
file.write_text(program)
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(file)]
for _ in range(3):
    ended = subprocess.run(torchrun, capture_output=True, text=True)
    if ended.returncode == 0:
        break
assert ended.returncode == 0, ended.stderr
print(ended.stdout.strip())

# %% [markdown]
# The wrapper averages as the gradients appear. Whoever calls the model itself, or `vae.encode` behind the wrapper, trains two models
# without an error message; diffusers' example script does (`docs/training.md`). The package's engine runs the same way:
#
# ```
# torchrun --nproc-per-node 2 -m klvae_edu train mini
# ```

# %% [markdown]
# ## 7. Who reads what?
#
# Nine million images do not fit into memory, perhaps not onto the disk. They come in *shards*, files of some thousand rows, and are
# read in passing. Two processes with four workers each are eight *readers*. In one pass, each image once, over all of them: how
# would you deal twelve rows to three readers?

# %%
order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
for reader in range(3):
    print(f"reader {reader}: {order[reader::3].tolist()}")

# %% [markdown]
# All shuffle alike, then take turns. That needs no talk between readers, only the same seed. If each shuffled by a seed of its own,
# some images would come twice and others never. The next pass takes the next seed.

# %% [markdown]
# {{exercise 12.4}}
#
# A run stops in the middle of a pass, when this reader has had `done` of its rows. Which are left to it? The order of pass
# `epoch` comes from `torch.randperm`, by a generator of its own with the seed `seed + epoch`.


# %%
def rows_left(count, seed, epoch, reader, readers, done):
    """Of rows 0 … count - 1, those that this reader still has to read in this pass, in its order."""
    # BEGIN SOLUTION
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return order[reader::readers][done:]
    # SKELETON
    #| order = ...  # of all rows, the same for all readers
    #| mine = ...
    #| return ...
    # END SOLUTION


rows_left = check("12.4", rows_left)

# %% [markdown]
# Sixty-four readers, a thousand rows, each stopped somewhere else: together with what they had had, is every row there once?

# %%
seen = []
for reader in range(64):
    mine = rows_left(1000, 0, 5, reader, 64, done=0)
    seen += map(int, [*mine[: reader % 16], *rows_left(1000, 0, 5, reader, 64, done=reader % 16)])
print(len(seen), sorted(seen) == [*range(1000)])

# %% [markdown]
# For real data one row is too small a unit: a reader would open every shard. So whole shards are dealt out. Only where readers
# outnumber shards do several share one: each of them reads it whole and decodes its own rows.

# %% [markdown]
# Here are six Parquet files of eight tiny images, each as bright as its number: how many shards will each of two processes get?

# %%
import datasets

from klvae_edu.data.shards import START, ProcessShare, StreamedCrops, StreamPosition

datasets.disable_progress_bars()
shards = Path(folder.name) / "shards"
shards.mkdir()

# %%
for shard in range(6):
    rows = [torch.full((8, 8, 3), 5 * (8 * shard + row), dtype=torch.uint8).numpy() for row in range(8)]
    part = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    part.to_parquet(shards / f"train-{shard:05}-of-00006.parquet")
part.to_parquet(shards / "test-00000-of-00001.parquet")

# %% [markdown]
# `StreamedCrops` makes crops of them, `ProcessShare` is what one of the processes gets, beginning at a `StreamPosition`. An image's
# brightness tells its number again.

# %%
stream = StreamedCrops(str(shards), "train", 8, seed=0, length=None)


def numbers(crops):
    return ((crops.mean((1, 2, 3)) + 1) * 127.5 / 5).round().int().tolist()


# %% [markdown]
# A process owns 24 of the 48 images. Batches of five do not divide them, and a stream has no end: the batch that has the last of
# them runs on into the next pass. So only images whose place says pass 0 are taken.


# %%
def read(process, position, batches):
    """So many batches of five for one of two processes; what was seen of the first pass."""
    seen = []
    loader = DataLoader(ProcessShare(stream, position, process, 2), batch_size=5)
    for crops, places in islice(loader, batches):
        position.follow(places)
        seen += [number for number, place in zip(numbers(crops), places, strict=True) if place[0] == 0]
    return seen


# %% [markdown]
# A place is three numbers: the pass, which of the reader's *own* shards, how many rows of it are done. A checkpoint keeps the last
# place *trained on*, since workers read ahead. Stop after two batches, keep nothing but the positions, go on. What must the union be?

# %%
before, positions = {}, {}
for process in (0, 1):
    position = StreamPosition([START])
    before[process] = read(process, position, 2)
    positions[process] = position.to_dict()  # what goes into the checkpoint
after = {process: read(process, StreamPosition.from_dict(positions[process]), 4) for process in (0, 1)}

# %%
for process in (0, 1):
    owned = sorted({number // 8 for number in before[process] + after[process]})
    epoch, turn, row = positions[process]["places"][0]
    stopped = f"in pass {epoch}, in the {('first', 'second', 'third')[turn]} of its shards, after {row} rows of it"
    print(f"process {process}: shards {owned}, stopped {stopped}")
print("each image once:", sorted(sum([*before.values(), *after.values()], [])) == [*range(48)])

# %% [markdown]
# In the package `klvae train --streaming --resume auto` does this, for any number of processes and workers.
# `benchmarks/data_path.py` counts it with 64 readers, and measures the images per second.

# %% [markdown]
# ## 8. What would OpenImages cost?
#
# CompVis trained Stable Diffusion's autoencoder on OpenImages, in 246,803 steps (`latent-diffusion`, README). The package's recipe
# takes 24 crops of 256 × 256 in each. Is your machine enough? First: how much work is one crop?

# %%
work = {
    (preset, side): step_cost(preset, side, False)[1] for preset, side in (("tiny", 32), ("mini", 64), ("sd-v1", 256))
}
for (preset, side), operations in work.items():
    print(f"{preset:5} at {side:3}: {operations / 1e9:6.3g} GFLOP a crop")
crops = 246_803 * 24
print(f"the recipe: {crops / 1e6:.3g} million crops, {crops * work['sd-v1', 256]:.2g} operations")

# %% [markdown]
# 5.92 million crops are fewer than nine million images: the whole training is less than one pass over them. No image need come
# twice. What does such a pass cost?

# %% [markdown]
# {{exercise 12.5}}
#
# From crops per second on one machine to days and money. `machines` share the work, at an `efficiency` below 1 (waiting for each
# other); each costs `price` an hour, also while it waits.


# %%
def cost(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    """Days, and what they cost."""
    # BEGIN SOLUTION
    hours = crops / (crops_per_second * machines * efficiency) / 3600
    return hours / 24, hours * machines * price
    # SKELETON
    #| hours = ...
    #| days, money = ...
    #| return days, money
    # END SOLUTION


cost = check("12.5", cost)

# %% [markdown]
# Now your own figure. Time steps of the `tiny` preset, take the operations per second that came of it, and assume a large model
# runs at the same speed (it does a little better: wide layers use a processor well). Guess: weeks, years, decades?

# %%
step = seconds(lambda: training_step(small, images), 3)
speed = len(images) * work["tiny", 32] / step  # operations a second
machines = {"this machine": (speed, 1, 0.1), "GPU, 50 TFLOP/s": (5e13, 1, 2.0), "eight of them": (5e13, 8, 2.0)}
plan = {
    name: cost(crops, rate / work["sd-v1", 256], count, 1.0 if count == 1 else 0.9, price)
    for name, (rate, count, price) in machines.items()
}
days = [found[0] for found in plan.values()]
assert days[0] > days[1] > days[2] and 3 < days[1] < 5 and days[0] > 7
print(f"a GPU that keeps up 50 TFLOP/s: {days[1]:.1f} days; eight, at an efficiency of 0.9: {24 * days[2]:.0f} hours")

# %%
fig, ax = figure(size=(7, 2.4))
labels = [f"{name}\n{price:g} an hour" for name, (_, _, price) in machines.items()]
ax.barh(labels, days, color=[GREY, BLUE, ORANGE])
for place, (one, money) in enumerate(plan.values()):
    ax.text(one * 1.1, place, f"{one:,.1f} days, {money:,.0f} in all", va="center")
ax.set(
    xscale="log", xlabel="days", xlim=(0.1, 300 * max(days)), title="Stable Diffusion's autoencoder, pixel loss only"
)
ax.invert_yaxis()
show(
    fig,
    alt="Days on a logarithmic scale: this machine takes months or years, a GPU some four days, eight of them half a day.",
)

# %% [markdown]
# Years, on two cores like those this was built on; days, on one GPU. Prices are examples: put in yours. LPIPS and the
# discriminator add about a tenth (the recipe's own comment says 2.9 TFLOP).

# %% [markdown]
# Eight machines at an efficiency of 0.9 are 7.2 times as fast and about a tenth dearer, since they are paid while they wait. Time,
# not thrift, is why people rent many.

# %% [markdown]
# And the data path has to keep up: at 50 TFLOP/s a GPU asks for how many crops each second, and how many readers is that, if one
# decodes some 50 photographs a second?

# %%
rate = 5e13 / work["sd-v1", 256]
print(
    f"{rate:.0f} crops a second: {-(-rate // 50):.0f} reader; eight GPUs, {8 * rate:.0f}: {-(-8 * rate // 50):.0f} readers"
)

# %% [markdown]
# The plan, then: `klvae train kl-f8-openimages --data hf:NAME --streaming --workers 4`, under `torchrun` where there are more GPUs,
# with `--mixed-precision bf16`, and `--resume auto` whenever a machine is taken away.

# %%
folder.cleanup()

# %% [markdown]
# ## Summary
#
# 1. Maps at full resolution fill the memory: slices bound the batch, tiles bound the image.
# 2. Overlap hides seams; pooled statistics bring tiles nearer to the whole; attention stays local.
# 3. Checkpointing saves most of the activations for most of a second forward pass, and changes no gradient.
# 4. bfloat16 has the range, float16 has not: normalise in float32, scale the loss, or stay out.
# 5. One seed for all readers, disjoint shares, the place kept with what was trained on: each image once, after a stop too.
#
# ### Check yourself
#
# <details><summary>Tiles with overlap 0 and pooled statistics: are there seams?</summary>
#
# Yes. The statistics agree then, nearly, but convolutions still see zeros at each tile's edge, and attention its own tile only.
# </details>
#
# <details><summary>Your float16 run shows a loss of NaN after 2,000 good steps. What do you try first?</summary>
#
# bfloat16, if the hardware has it: if the NaN is gone, something outgrew 65,504. Otherwise look for the first map that is infinite, and
# compute that layer in float32.
# </details>
#
# <details><summary>Four shards, sixteen readers: what is wasted?</summary>
#
# Reading. Four readers share a shard and each reads all of it to decode a quarter. No image comes twice, but bytes are read four
# times: cut the data into at least as many shards as there are readers.
# </details>
#
# **Next:** your own data. `docs/training.md` says what each number of a run means, and the recipes are where to begin.
