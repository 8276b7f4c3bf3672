# %% [markdown]
# # 12 · Scaling up: larger images, fewer bits, more machines
#
# {{badge}}
#
# Your autoencoder works on small images, on one machine. Now the image has 16 million pixels, the numbers have 16 bits, two
# processes train together, and nine million images do not fit on the disk. Each has a method, and each method a limit that you
# will measure.
#
# **You will be able to**
#
# * decode large images in tiles, and remove most of the seams;
# * trade time for memory with checkpointing, and choose what is computed in 16 bits;
# * divide data among readers, and resume in the middle of a pass;
# * compute what a training on OpenImages costs, in days and in money.
#
# **You need** the blocks of 03 and 04, the model of 05, and the step of 08.
#
# {{budget}}

# %% tags=["environment"]

# %%
import copy
import dataclasses
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset, photographs
from klvae_edu.diagrams import show_diagram
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.performance.memory import TensorMemory
from klvae_edu.performance.tiling import seam_lines, seam_metric
from klvae_edu.plots import bars, image_grid, lines, show

# %% [markdown]
# ## 1. What fills the memory?
#
# A decoder needs its weights, the latent, and the feature maps that are alive between two layers. Guess which of the three is the
# largest for a photograph of 512 × 512. `TensorMemory` counts the bytes of all tensors made inside it, and keeps the peak.

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
# At 128 the weights are the largest, from 256 on the feature maps: twice the side needs four times the memory. Three large maps are
# alive at once, the input of the last stage's first ResNet block and two inside it. With C channels each, as many as the stage
# before has:
#
# $$\text{peak} \approx 3 \cdot 4\,\text{bytes} \cdot C \cdot H \cdot W$$
#
# So C is the second number in `block_out_channels`, in Stable Diffusion's decoder 256. Tensors on the `meta` device have no values
# (notebook 05), so counting needs no memory. Compute the last line by hand first.


# %%
def peak(config, side):
    """Bytes, by the formula."""
    return 3 * 4 * config.block_out_channels[1] * side**2


print(f"this model, 512 × 512: {peak(vae.config, 512) / mebi:.3g} MiB by the formula")
with torch.device("meta"):
    stable_diffusion = AutoencoderKL.from_preset("sd-v1").requires_grad_(False)
for side in (256, 1024):
    with TensorMemory() as memory:
        stable_diffusion.decode(torch.zeros(1, 4, side // 8, side // 8, device="meta"))
    print(f"Stable Diffusion, {side} × {side}: {memory.peak / 2**30:.3g} GiB counted")
print(f"Stable Diffusion, 4096 × 4096: {peak(stable_diffusion.config, 4096) / 2**30:.3g} GiB by the formula")

# %% [markdown]
# `TensorMemory` sees tensors only. The scratch memory inside a convolution and the allocator's cache come on top, so a GPU
# runs out of memory earlier.
#
# A batch multiplies the peak. No layer looks from one image to the next, so *slicing* decodes them one after the other:

# %%
batch = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
decoded, peaks = [], []
for sliced in (False, True):
    (vae.enable_slicing if sliced else vae.disable_slicing)()
    with TensorMemory() as memory:
        decoded.append(vae.decode(batch).sample)
    peaks.append(memory.peak / mebi)
vae.disable_slicing()
assert (decoded[0] - decoded[1]).abs().max() < 1e-4
print(f"peak {peaks[0]:.3g} MiB together, {peaks[1]:.3g} MiB in slices; max |Δ| < 1e-4")

# %% [markdown]
# ## 2. Tiles and their seams
#
# One large image is no batch, but its latent can be cut into *tiles* that are decoded one by one. Tiles may overlap, and then
# weights blend them:

# %%
show_diagram("tiles")

# %% [markdown]
# First without an overlap: a photograph's latent, decoded whole, and in tiles of 16 × 16 latent pixels edge to edge. Where do you
# expect differences?

# %%
photo = photographs("held-out")["coffee"][None, :, :384, :384]
z = vae.encode(photo).latent_dist.mode()
with TensorMemory() as memory_of_whole:
    whole = vae.decode(z).sample
pieces = [[vae.decode(part).sample for part in row.split(16, dim=3)] for row in z.split(16, dim=2)]
edge_to_edge = torch.cat([torch.cat(row, dim=3) for row in pieces], dim=2)

# %%
view = (slice(None), slice(64, 256), slice(64, 256))
pictures = [whole[0][view], edge_to_edge[0][view], 4 * (edge_to_edge - whole)[0][view]]
fig = image_grid([pictures], column_titles=["whole", "tiles, edge to edge", "difference × 4"])
alt = "A part of a cup. Left: decoded whole. Middle: decoded in tiles, with a thin line and a step of colour where tiles meet. Right: their difference, four times as strong, where grey means none. The lines form a cross, and the areas are not grey either."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# In lines where tiles meet, and in the tint of each tile. A tile misses the pixels beyond its edge (convolutions see zeros there),
# the mean and variance of the whole map (GroupNorm), and what attention would have looked at.
#
# `seam_metric` measures a seam: the mean jump across the lines, divided by the mean jump beside them. Without a seam it is 1.

# %%
places = [128, 256]
seams = {"whole": seam_metric(whole, places, places), "edge to edge": seam_metric(edge_to_edge, places, places)}
assert seams["edge to edge"] > 2 > 1.3 > seams["whole"]
print("seam metric:", ", ".join(f"{name} {value:.1f}" for name, value in seams.items()))

# %% [markdown]
# Overlap helps against the zeros at the edges. In the cells that two tiles share, their weights must add up to 1:

# %%
rising = (torch.arange(4) + 0.5) / 4
print("rising ", rising.tolist())
print("falling", rising.flip(0).tolist())
print("sum    ", (rising + rising.flip(0)).tolist())

# %% [markdown]
# {{exercise 12.1}}
#
# The weights of one tile along one axis rise over the first `before` cells, stay at one, and fall over the last `after`. At the
# image's border nothing is shared: `before` or `after` is 0, and `weights[-0:]` would be the whole tile. The ramps may touch but
# never overlap.


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
# Three tiles of 24 cells, starting at 0, 12 and 24, cover a row of 48:

# %%
weights = torch.zeros(3, 48)
for number, start in enumerate((0, 12, 24)):
    weights[number, start : start + 24] = ramp(24, 12 if start else 0, 12 if start < 24 else 0)
curves = {f"tile from {12 * number}": weight for number, weight in enumerate(weights)} | {"sum": weights.sum(0)}
assert (weights.sum(0) - 1).abs().max() < 1e-6
print(f"{whose('12.1', ramp)} ramps: at every cell the weights add up to 1")
fig = lines(curves, xlabel="cell", ylabel="weight", dashed=("sum",), size=(6, 2.6))
alt = "The weights of three overlapping tiles. Where one falls, the next one rises, and their sum is one at every cell."
show(fig, alt=alt)

# %% [markdown]
# In two dimensions the weights of rows and columns multiply. `enable_tiling` does all of this:

# %%
size, overlap = 128, 32
places = seam_lines(48, size // 8, overlap // 8, unit=8)
vae.enable_tiling(size=size, overlap=overlap)
with TensorMemory() as memory:
    blended = vae.decode(z).sample
error = (blended - whole).norm() / (edge_to_edge - whole).norm()
seam = seam_metric(blended, places, places)
assert seam < 1.3 and 0.3 < error < 0.95
print(f"peak {memory_of_whole.peak / mebi:.2g} MiB whole, {memory.peak / mebi:.2g} MiB in tiles")
print(f"seam metric: {seam:.1f}; {error:.1f} times as far from the whole as tiles edge to edge")

# %% [markdown]
# The seam is gone, but this is not the image decoded whole. Each tile is normalised by its *own* mean and variance, and overlap
# only spreads the step of colour over more pixels.
#
# The statistics of the whole follow from those of the tiles. Five numbers, in tiles of two and three, show that the variance of all
# is *not* the mean of the variances:

# %%
row = torch.tensor([1.0, 3.0, 6.0, 7.0, 8.0])
tiles = row[:2], row[2:]
print("mean", row.mean().item(), " of the tiles", [tile.mean().item() for tile in tiles])
print(f"variance {row.var(correction=0):.3g}, of the tiles", [f"{tile.var(correction=0):.3g}" for tile in tiles])

# %% [markdown]
# {{exercise 12.2}}
#
# The spread *between* the tiles is missing. With shares $p_i$ of the cells,
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
means = torch.stack([tile.mean() for tile in tiles])[:, None]
variances = torch.stack([tile.var(correction=0) for tile in tiles])[:, None]
print("pooled", [f"{value.item():.3g}" for value in pooled(means, variances, torch.tensor([2, 3]))])

# %% [markdown]
# With `global_norm=True` the package decodes every tile twice, in twice the time. The first pass measures at each GroupNorm, the
# second uses the pooled statistics.

# %%
vae.enable_tiling(size=size, overlap=overlap, global_norm=True)
with_statistics = vae.decode(z).sample
vae.disable_tiling()
results = {"edge to edge": edge_to_edge, "overlap": blended, "overlap, pooled": with_statistics}
errors = {name: ((x - whole).norm() / whole.norm()).item() for name, x in results.items()}
assert errors["overlap, pooled"] < 0.9 * errors["overlap"] < 0.81 * errors["edge to edge"]

# %%
fig = bars({name: 100 * value for name, value in errors.items()}, xlabel="distance from the whole, in % of its norm")
alt = "How far three tiled images are from the image decoded whole. Overlap brings them nearer, pooled statistics nearer still; no bar is zero."
show(fig, alt=alt)

# %% [markdown]
# Some distance remains. The first pass still normalises each tile by its own statistics, so later norms measure other maps than the
# whole image's. And attention never leaves its tile.

# %% [markdown]
# ## 3. Checkpointing: more work, less memory
#
# Training keeps all feature maps, because the backward pass needs every layer's input. *Checkpointing* keeps only the inputs of a
# few parts of the network and computes the rest again. Ten layers in a row, and the same in two parts:

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
    print(f"{name:9}: {kept / 4000:.0f} maps kept, {memory.peak / 4000:.0f} at the peak of the backward pass")

# %% [markdown]
# Two maps are kept, not ten; then one part at a time comes alive again. With n layers in √n parts the
# peak grows like √n (Chen et al. 2016, [arXiv:1604.06174](https://arxiv.org/abs/1604.06174)).
#
# In the autoencoder a part is one ResNet block, one attention block, or one change of size. A backward pass is about
# twice the work of a forward pass. How much more work is a second forward pass?


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
    vae.zero_grad(set_to_none=False)  # weights and gradients are there already, so they are not counted
    with TensorMemory() as memory:
        training_step(vae, images)
    return memory.peak, operations.get_total_flops()


# %%
costs = {"without": step_cost("sd-v1", 256, False), "with": step_cost("sd-v1", 256, True)}
with set_checkpoint_early_stop(False):
    costs["to the end"] = step_cost("sd-v1", 256, True)
for name, (used, operations) in costs.items():
    relative = f"memory × {used / costs['without'][0]:.2f}, work × {operations / costs['without'][1]:.2f}"
    print(f"{name:10} {used / 2**30:.2g} GiB, {operations / 1e12:.2f} TFLOP: {relative}")

# %% [markdown]
# A third of the memory is left (`benchmarks/activations.py` measures 0.36) for a sixth more work, not a third. PyTorch
# stops repeating a part when the last tensor that the backward pass needs is there: a part's last convolution needs only its *input*,
# so it is not repeated. The last line is without that stop.
#
# With one seed for the posterior's sample, both ways give the same gradient:

# %%
small = AutoencoderKL.from_preset("tiny", seed=0).train()
images = next(iter(DataLoader(image_dataset("photos", 32, length=8), batch_size=8)))
gradients = []
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
# ## 4. Sixteen bits, and where they fail
#
# 16 bits are half the memory and, on a processor that multiplies in them, less time. There are two formats:

# %%
numbers = torch.tensor([1.001, 300.0, 70_000.0, 1e-6, 1e-9])
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    print(f"{str(dtype):15}", [f"{value:.4g}" for value in numbers.to(dtype).tolist()])

# %% [markdown]
# float16 has 11 bits of precision; its largest number is 65,504, and below 3e-8 all becomes zero. bfloat16 has the range of
# float32, but only 8 bits: 1.001 becomes 1. float16 fails first inside the norms, where values are squared:

# %%
x = torch.tensor([-300.0, 300.0, 310.0, -310.0])
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    variance = x.to(dtype).square().mean()
    normalised = [round(value, 2) for value in (x.to(dtype) * variance.rsqrt()).tolist()]
    print(f"{str(dtype):15} variance {variance.item():.3g}, normalised {normalised}")

# %% [markdown]
# {{exercise 12.3}}
#
# A GroupNorm (without weight and bias) that is safe for 16-bit maps: compute in float32, and return the type that came in. Write
# mean and variance out; `F.group_norm` converts by itself on a CPU.


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
normalised = safe_group_norm(x.half().view(1, 4, 1, 1), 1).flatten()
print(f"{whose('12.3', safe_group_norm)} norm:", [round(v, 2) for v in normalised.tolist()], normalised.dtype)

# %% [markdown]
# The feature maps themselves can overflow, too. SDXL's decoder does so in float16 and gives NaN (model card of
# [sdxl-vae-fp16-fix](https://huggingface.co/madebyollin/sdxl-vae-fp16-fix)); its configuration says
# `force_upcast`. This package then computes in float32; diffusers leaves that to its pipelines. The card's fix is a decoder
# fine-tuned to the same output with smaller activations.
#
# With `force_upcast` off, is this small decoder better in float16 or in bfloat16?


# %%
def in_type(dtype):
    one = copy.deepcopy(vae).to(dtype)
    one.config = dataclasses.replace(vae.config, force_upcast=False)
    return one.decode(z[..., :16, :16].to(dtype)).sample.float()


right, *runs = map(in_type, (torch.float32, torch.float16, torch.bfloat16))
half, bfloat = (((run - right).norm() / right.norm()).item() for run in runs)
assert half < 2e-3 < bfloat < 0.05
print("float16 is less than 0.2 % off, bfloat16 more than that and less than 5 %")

largest, one = [], copy.deepcopy(vae)
for layer in one.decoder.modules():
    layer.register_forward_hook(lambda layer, x, out: largest.append(out.abs().max().item()))
one.decode(z[..., :16, :16])
assert max(largest) < 6_500
print("largest number in any feature map: less than a tenth of 65,504")

# %% [markdown]
# In float16: nothing overflows here, so only precision counts. In a larger decoder one infinite value is enough, and the next norm
# makes zeros or NaN of its whole group.
#
# Training asks for more. Each line is one thing that a training step needs; "no" is a failure. *Loss scaling*
# multiplies the loss before the backward pass and divides the gradients after it.

# %%
steps = {
    "weights: 0.1 + 1e-5 is more than 0.1": lambda v: v(0.1) + v(1e-5) > v(0.1),
    "gradients, eps of LPIPS and Adam: 1e-8 > 0": lambda v: v(1e-8) > 0,
    "gradients, loss scaled by 65,536: > 0": lambda v: v(1e-8 * 2**16) > 0,
    "LPIPS: features 0.5 and 0.501 differ": lambda v: v(0.5) != v(0.501),
    "GroupNorm: the square of 300 is finite": lambda v: v(300.0).square().isfinite(),
    "λ: the square of a gradient, 1e-4, is not 0": lambda v: v(1e-4).square() > 0,
    "Adam: 0.999 times an average is less": lambda v: v(1.0) * v(0.999) < v(1.0),
}
types = torch.float16, torch.bfloat16, torch.float32
print(f"{'':45}float16  bfloat16  float32")
for name, holds in steps.items():
    found = ["yes" if holds(lambda value, t=t: torch.tensor(value, dtype=t)) else "no" for t in types]
    print(f"{name:45}{found[0]:9}{found[1]:10}{found[2]}")

# %% [markdown]
# Each "no" is a reason below. *Autocast* is PyTorch's switch that converts the inputs of some layers to 16 bits:
#
# | | float16 | bfloat16 | float32 |
# | --- | --- | --- | --- |
# | weights | no: small updates are lost | no: small updates are lost | yes |
# | autocast: convolutions, attention | with loss scaling, if no map overflows | yes | yes, slower on a GPU |
# | LPIPS | no: eps is 0, and 0/0 is NaN | no: close features become equal | yes |
# | GroupNorm | no: squares overflow | input and output | statistics |
# | λ (adaptive weight) | no: squares become 0 | yes, with 8 bits | yes |
# | optimiser's averages | no: eps is 0 | no: averages stop moving | yes |
#
# The package trains so with `--mixed-precision bf16`: LPIPS switches autocast off, and PyTorch computes the norms' statistics in
# float32 by itself.

# %% [markdown]
# ## 5. What `optimize()` gains
#
# The decoder repeats each pixel and then convolves. A window of three then covers only two different pixels, so two taps are
# enough: instead of (1, 2, 4), (1, 2 + 4) for a pixel's first copy and (1 + 2, 4) for its second.

# %%
row = torch.tensor([1.0, 5.0, 2.0, 3.0])
repeated = F.pad(row.repeat_interleave(2), (1, 1))
before, here, after = F.pad(row, (1, 1)).unfold(0, 3, 1).T
print("three taps:", F.conv1d(repeated[None, None], torch.tensor([[[1.0, 2.0, 4.0]]])).flatten().tolist())
print("two taps:  ", torch.stack([before + 6 * here, 3 * here + 4 * after], dim=1).flatten().tolist())

# %% [markdown]
# In two dimensions four kernels of 2 × 2 replace one of 3 × 3: 4/9 of the work. `vae.optimize()` makes a copy for inference with
# this and similar changes (`klvae_edu/performance/fused.py`). What is left of the whole decoder's work?

# %%
optimized, flops = vae.optimize(), []
for one in (vae, optimized):
    with FlopCounterMode(display=False) as operations:
        image = one.decode(z).sample
    flops.append(operations.get_total_flops())
print(f"work × {flops[1] / flops[0]:.2f}; max |Δ| < 1e-4:", bool((image - whole).abs().max() < 1e-4))

# %% [markdown]
# Four fifths, for the same image. Work is not time; measure the time:


# %%
def seconds(function):
    """The shortest of four runs; the first one warms up the caches."""
    return min(timeit.repeat(function, number=1, repeat=4))


# %%
models = {"float32": vae, "optimize()": optimized, "bfloat16": copy.deepcopy(vae).to(torch.bfloat16)}
latent = z[..., :24, :24]
laps = {name: seconds(lambda one=one: one.decode(latent.to(one.dtype))) for name, one in models.items()}
fig = bars({name: lap / laps["float32"] for name, lap in laps.items()}, xlabel="time to decode 192 × 192, float32 = 1")
alt = "Time to decode one image, relative to float32, on the machine that drew these bars."
show(fig, alt=alt)

# %% [markdown]
# The order depends on the processor: bfloat16 is fast only on one with a unit for it. `optimize()` has less to compute on any.

# %% [markdown]
# ## 6. Two processes, one gradient
#
# A batch's gradient is the mean of its images' gradients. So two processes can each take half of the batch and average their
# gradients: *data parallelism*. PyTorch's wrapper `DistributedDataParallel` averages whenever the wrapper is called.

# %%
program = """
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def gradient(forward, images):
    model.zero_grad()
    forward(images).square().mean().backward()
    return model.weight.grad.clone()

dist.init_process_group("gloo")
torch.manual_seed(0)
model, batch = torch.nn.Linear(5, 5), torch.randn(8, 5)  # the same in both processes
whole = gradient(model, batch)
mine = batch.chunk(2)[dist.get_rank()]
wrapped = DistributedDataParallel(model)
for name, forward in {"wrapper called": wrapped, "model called": model}.items():
    gap = (gradient(forward, mine) - whole).abs().max().item()
    if dist.get_rank() == 0:
        print(f"{name}: off by {'less than 1e-6' if gap < 1e-6 else f'{gap:.1g}'}", flush=True)
dist.barrier()  # neither leaves while the other may still be reading
dist.destroy_process_group()
os._exit(0)  # the usual exit, which ends threads, sometimes aborts
"""

# %% [markdown]
# `torchrun` starts the program twice and tells each copy its number, the *rank*. `gloo` carries tensors between processors,
# `nccl` between GPUs. What happens when you call the model inside the wrapper instead?

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "two.py")
    file.write_text(program)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(file)]
    for _ in range(3):  # again, if the two miss each other
        ended = subprocess.run(torchrun, capture_output=True, text=True)
        if ended.returncode == 0:
            break
assert ended.returncode == 0, ended.stderr
print(ended.stdout.strip())

# %% [markdown]
# Nothing is averaged: without any error, two different models are trained. `vae.encode` has the same effect, and
# diffusers' example script has this fault (`docs/training.md`). The package is started the same way:
#
# ```
# torchrun --nproc-per-node 2 -m klvae_edu train mini
# ```

# %% [markdown]
# ## 7. Dividing data among readers
#
# Nine million images come in *shards*, files of some thousand rows each, and are streamed. Two processes with four workers each are
# eight *readers*. In one *pass* they shall read each image once. Twelve rows for three readers:

# %%
order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
for reader in range(3):
    print(f"reader {reader}: {order[reader::3].tolist()}")

# %% [markdown]
# All readers use the same shuffled order and take every third row, without communicating. With seeds of their own, some images
# would come twice and others never.

# %% [markdown]
# {{exercise 12.4}}
#
# A run stops in the middle of a pass, when this reader has read `done` of its rows. Which rows are left? The order of pass
# `epoch` comes from `torch.randperm`, with a generator of its own and the seed `seed + epoch`.


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
# 64 readers share a thousand rows, and each stops somewhere else. Is every row read once, before or after the stop?

# %%
seen = []
for reader in range(64):
    mine = rows_left(1000, 0, 5, reader, 64, done=0)
    seen += map(int, [*mine[: reader % 16], *rows_left(1000, 0, 5, reader, 64, done=reader % 16)])
print(len(seen), sorted(seen) == [*range(1000)])

# %% [markdown]
# Yes. In practice whole shards are dealt out, or every reader would open every shard. `klvae train --streaming --resume auto` does
# this for any number of processes and workers; "Going further" stops and resumes such a stream.

# %% [markdown]
# ## 8. The cost of OpenImages
#
# CompVis trained Stable Diffusion's autoencoder on OpenImages, in 246,803 steps (`latent-diffusion`, README). The package's recipe
# takes 24 crops of 256 × 256 in each step. First the work of one crop:

# %%
sides, crops = {"tiny": 32, "mini": 64, "sd-v1": 256}, 246_803 * 24
work = {preset: step_cost(preset, side, False)[1] for preset, side in sides.items()}
for preset, operations in work.items():
    print(f"{preset:5} at {sides[preset]:3}: {operations / 1e9:6.3g} GFLOP a crop")
print(f"the recipe: {crops / 1e6:.3g} million crops, {crops * work['sd-v1']:.2g} operations")

# %% [markdown]
# {{exercise 12.5}}
#
# Days and money, from the crops per second of one machine. `machines` share the work at an `efficiency` below 1, because they wait
# for each other. Each costs `price` an hour, also while waiting.


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
# 5.92 million crops are less than one pass over the nine million images, so no image comes twice.
#
# Now your own figure. The cell times the `tiny` preset and assumes as many operations per second for the large model. That is rough:
# time a real step before you rent a machine. The prices are examples.

# %%
speed = len(images) * work["tiny"] / seconds(lambda: training_step(small, images))  # operations a second
machines = {
    "this machine": (speed, 1, 1.0, 0.1),
    "GPU, 50 TFLOP/s": (5e13, 1, 1.0, 2.0),
    "8 of them": (5e13, 8, 0.9, 2.0),
}
plan = {name: cost(crops, rate / work["sd-v1"], *rest) for name, (rate, *rest) in machines.items()}
days = [found[0] for found in plan.values()]
assert days[0] > 100 and 3 < days[1] < 5 and days[1] > days[2]
print(f"one GPU that keeps up 50 TFLOP/s: {days[1]:.1f} days, {5e13 / work['sd-v1']:.0f} crops a second")
print(
    f"eight at an efficiency of 0.9: {24 * days[2]:.0f} hours, {plan['8 of them'][1] / plan['GPU, 50 TFLOP/s'][1]:.2f} × the money"
)

# %%
fig = bars(
    {f"{name}\n{machines[name][3]:g} an hour": one for name, (one, _) in plan.items()},
    xlabel="days",
    log=True,
    size=(7, 2.4),
)
for place, (one, money) in enumerate(plan.values()):
    fig.axes[0].text(one * 1.1, place, f"{one:,.1f} days, {money:,.0f} in all", va="center")
fig.axes[0].set(xlim=(0.1, 300 * max(days)))
alt = "Days of training for Stable Diffusion's autoencoder with the pixel loss only, on a logarithmic scale: this machine takes hundreds of days or more, the GPU some four days, eight of them half a day."
show(fig, alt=alt)

# %% [markdown]
# Eight machines are paid while they wait: they cost a tenth more and save time, not money. LPIPS and the discriminator add about a
# tenth to the work (2.9 TFLOP a crop, says the recipe). The command:
#
# ```
# klvae train kl-f8-openimages --data hf:NAME --streaming --workers 4 --mixed-precision bf16 --resume auto
# ```

# %% [markdown]
# ## Going further: a stream, stopped and resumed (optional)
#
# Six Parquet files hold eight tiny images each, and each image is as bright as its number. Two processes share the six shards.

# %%
import datasets

from klvae_edu.data.shards import START, ProcessShare, StreamedCrops, StreamPosition

datasets.disable_progress_bars()
shards = tempfile.TemporaryDirectory()

# %%
for shard in range(6):
    rows = [torch.full((8, 8, 3), 5 * (8 * shard + row), dtype=torch.uint8).numpy() for row in range(8)]
    part = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    part.to_parquet(Path(shards.name, f"train-{shard:05}-of-00006.parquet"))
part.to_parquet(Path(shards.name, "test-00000-of-00001.parquet"))

# %% [markdown]
# `StreamedCrops` makes crops of them, and `ProcessShare` is the part of one process, starting at a `StreamPosition`. A process owns
# 24 of the 48 images. A stream has no end, so batches of five run on into the next pass; only images of pass 0 are counted.

# %%
stream = StreamedCrops(shards.name, "train", 8, seed=0, length=None)


def numbers_of(crops):
    return ((crops.mean((1, 2, 3)) + 1) * 127.5 / 5).round().int().tolist()


def read(process, position, batches):
    """Read some batches of five as one of two processes; return the numbers of the first pass."""
    seen = []
    loader = DataLoader(ProcessShare(stream, position, process, 2), batch_size=5)
    for _, (crops, places) in zip(range(batches), loader, strict=False):
        position.follow(places)
        seen += [number for number, place in zip(numbers_of(crops), places, strict=True) if place[0] == 0]
    return seen


# %% [markdown]
# A place is three numbers: the pass, which of the reader's own shards, and how many of its rows are done. A checkpoint stores the last
# place *trained on*, because workers read ahead. Stop after two batches, keep only the positions, and resume:

# %%
before, positions = {}, {}
for process in (0, 1):
    position = StreamPosition([START])
    before[process] = read(process, position, 2)
    positions[process] = position.to_dict()  # this goes into the checkpoint
after = {process: read(process, StreamPosition.from_dict(positions[process]), 4) for process in (0, 1)}

# %%
for process in (0, 1):
    owned = sorted({number // 8 for number in before[process] + after[process]})
    epoch, turn, row = positions[process]["places"][0]
    stopped = f"in pass {epoch}, in the {('first', 'second', 'third')[turn]} of its shards, after {row} of its rows"
    print(f"process {process}: shards {owned}, stopped {stopped}")
print("each image once:", sorted(sum([*before.values(), *after.values()], [])) == [*range(48)])

# %% [markdown]
# Each process owns three shards, and each image came once. `benchmarks/data_path.py` counts the same with 64 readers, and measures
# images per second.

# %% [markdown]
# ## Summary
#
# 1. Feature maps fill the memory. Slicing removes the factor of the batch, tiling that of the image.
# 2. Overlap hides seams, and pooled statistics bring tiles nearer to the whole; attention stays inside its tile.
# 3. Checkpointing saves two thirds of the activations for a sixth more work, and does not change the gradient.
# 4. bfloat16 has float32's range, float16 has not. Weights, optimiser, LPIPS and norms stay in float32.
# 5. One seed for all readers, disjoint shares, and a stored position: each image is read once, also after a stop.
#
# ### Check yourself
#
# <details><summary>Tiles with overlap 0 and pooled statistics: are there seams?</summary>
#
# Yes. The statistics then nearly agree, but convolutions still see zeros at each tile's edge, and attention its own tile only.
# </details>
#
# <details><summary>Your float16 run shows a loss of NaN after 2,000 good steps. What do you try first?</summary>
#
# bfloat16, if the hardware has it. If the NaN is gone, a value was larger than 65,504. Otherwise find the first feature map that is
# infinite, and compute that layer in float32.
# </details>
#
# <details><summary>Four shards, sixteen readers: what is wasted?</summary>
#
# Reading. Four readers share a shard, and each reads all of it to decode a quarter. No image comes twice, but bytes are read four
# times: cut the data into at least as many shards as there are readers.
# </details>
#
# **Next:** [13, for work](13_for_work.ipynb): fine-tune a decoder, find faults, and compute what fits on a GPU.
