# %% [markdown]
# # 03 · ResNet blocks: the brick of encoder and decoder
#
# {{badge}}
#
# Stable Diffusion's encoder and decoder are stacks of one brick. It normalises, bends and convolves, twice over, and adds
# its own input. In this notebook you find out what each of these is for: by leaving it out.
#
# **You will be able to**
#
# * write group norm, say which values share a mean, and why images of a batch should not;
# * show in numbers what the shortcut does for the gradient of a deep stack;
# * write a 1×1 convolution as one matrix for every pixel;
# * build the block, count its parameters, and show that it equals the finished one.
#
# **You need** `nn.Module`, `nn.Conv2d` and autograd in PyTorch. [00](00_tour.ipynb) helps; 01 and 02 are
# not needed.
#
# {{budget}}

# %% tags=["environment"]

# %% [markdown]
# The imports. `ResnetBlock2D` is the finished version of what you will build.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu import AutoencoderKL
from klvae_edu.blocks import ResnetBlock2D
from klvae_edu.data import photographs
from klvae_edu.exercises import EXERCISES, check, hint, solution
from klvae_edu.plots import PALETTE, figure, image_grid, show

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"


def whose(id, part):
    """Until your answer has passed, `check` goes on with the finished version."""
    return "the finished" if part is EXERCISES[id].reference else "your"


# %% [markdown]
# ## 1. What becomes of numbers on a long way?
#
# How many 3×3 convolutions does a photograph pass on its way to the latent, its short form, and back? Guess, then count. Tensors on PyTorch's
# *meta* device have shapes but no values, so that the model of full size costs nothing:

# %%
with torch.device("meta"):
    parts = list(AutoencoderKL.from_preset("sd-v1").modules())
blocks = sum(isinstance(part, ResnetBlock2D) for part in parts)
depth = sum(isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) for part in parts)
print(f"{blocks} ResNet blocks, {depth} convolutions of 3×3, one after the other")

# %% [markdown]
# (Two in each block; the rest stand at both ends and where the map is resized.) Suppose each of them makes its numbers a little larger or smaller, always by the same factor. What is left of a 1 at the
# end? Five factors:

# %%
for factor in (0.5, 0.9, 1.0, 1.1, 2.0):
    print(f"{factor} ** {depth} = {factor**depth:.1e}")

# %% [markdown]
# Only 1.0 is harmless. Which factor do real layers have? Here are random ones, 58 times SiLU (section 3) and convolution, with
# PyTorch's weights times a `gain`. We look at the *spread* of each map, its standard deviation.


# %%
@torch.no_grad()
def deep_stack(x, gain, normalise):
    """The map after each layer."""
    torch.manual_seed(0)
    maps = []
    for _ in range(depth):
        conv = nn.Conv2d(16, 16, 3, padding=1)
        conv.weight *= gain
        x = conv(F.silu(normalise(x)))
        maps.append(x)
    return torch.cat(maps)


def spreads(maps):
    return maps.std((1, 2, 3))


noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
nothing, norm = nn.Identity(), nn.GroupNorm(4, 16)

# %% [markdown]
# Two sizes of weights, without and with a normalisation before each layer. (For now it is PyTorch's; you write it in a
# minute.) Which of the four lines stay level?

# %%
fig, ax = figure(size=(6.5, 3.2))
for gain, color in [(5, ORANGE), (1, BLUE)]:
    ax.semilogy(spreads(deep_stack(noise, gain, nothing)), "--", color=color, label=f"weights × {gain}")
    ax.semilogy(spreads(deep_stack(noise, gain, norm)), color=color, label=f"weights × {gain}, normalised")
ax.set(xlabel="layer", ylabel="spread of the map")
ax.legend()
show(
    fig,
    alt="Without a norm, one line climbs above 1e15, the other falls below 0.1. With one, both are level, near 2 and 0.3.",
)

# %% [markdown]
# With large weights the numbers explode. With PyTorch's own they fall, and then seem to settle. Is that all right? Feed the
# stack zeros instead. By which factor does the difference between the two results grow from layer to layer?

# %%
for gain, normalise, least, most in [(5, nothing, 1e15, 1e17), (1, nothing, 0, 1e-6), (1, norm, 0.1, 10)]:
    apart = spreads(deep_stack(noise, gain, normalise) - deep_stack(torch.zeros_like(noise), gain, normalise))
    factor = (apart[10] / apart[0]) ** 0.1  # in the first layers, before rounding is all that is left
    print(f"weights × {gain}{', normalised' * (normalise is norm)}: {factor:.1f} times as large after each layer")
    assert least < apart[-1] < most

# %% [markdown]
# So PyTorch's weights keep 0.3 of what an input adds, in each of 58 layers: nothing arrives. What is level there are the biases,
# added anew by each layer. Numbers have to be brought back to size, again and again. But to what size, and measured over which values?

# %% [markdown]
# ## 2. Which values share a mean?
#
# All norms below subtract a mean and divide by a standard deviation. They differ in who shares them. You see three images of
# six channels each; behind each square lies a whole map of H × W pixels. Squares with the same letter share.

# %%
image, channel = torch.arange(3)[:, None].expand(3, 6), torch.arange(6).expand(3, 6)
shared = {
    "batch norm": channel,
    "layer norm": image,
    "instance norm": 6 * image + channel,
    "group norm, 3 groups": 3 * image + channel // 2,
}

# %%
fig, axes = figure(1, 4, size=(9, 1.9))
for ax, (name, label) in zip(axes, shared.items(), strict=True):
    ax.imshow(label, cmap="tab20", vmin=0, vmax=19, alpha=0.5)
    for row in range(3):
        for column in range(6):
            ax.text(column, row, chr(65 + int(label[row, column])), ha="center", va="center")
    ax.set(title=name, xlabel="channel", xticks=[], yticks=range(3))
    ax.grid(False)
axes[0].set_ylabel("image")
show(
    fig,
    alt="Three images by six channels. A letter for each column, each row, each square, each pair of squares in a row.",
)

# %% [markdown]
# Only batch norm has letters that run down from image to image. So what comes out for *your* image depends on who else is in the
# batch. How much? Let us measure it on 16 × 16 crops of two photographs, seen through a random convolution.

# %%
photos = photographs("held-out")
# (3, H, W) -> (3, rows, columns, 16, 16) -> (rows · columns, 3, 16, 16)
crops = [photo.unfold(1, 16, 16).unfold(2, 16, 16).flatten(1, 2).transpose(0, 1) for photo in photos.values()]
crops = torch.cat(crops)
torch.manual_seed(0)
with torch.no_grad():
    maps = nn.Conv2d(3, 16, 3, padding=1)(crops)
print("maps of crops", tuple(maps.shape))


# %%
@torch.no_grad()
def change(norm, size, trials=30):
    """How much of an image's result changes, on average, when the others in its batch are exchanged."""
    generator = torch.Generator().manual_seed(size)
    changes = []
    for _ in range(trials):
        picked = torch.randint(len(maps), (2, size), generator=generator)
        picked[1, 0] = picked[0, 0]  # the same image in both batches
        a, b = (norm(maps[batch])[0] for batch in picked)
        changes.append((a - b).norm() / a.norm())
    return torch.stack(changes).mean().item()


sizes = [2, 4, 8, 12, 16, 32, 64]
by_batch = [change(nn.BatchNorm2d(16), size) for size in sizes]  # a new one is in training mode: it looks at the batch
by_group = [change(nn.GroupNorm(4, 16), size) for size in sizes]

# %% [markdown]
# Which batch sizes matter? Large images leave room for small batches only: the configurations of CompVis, who published Stable
# Diffusion, have 4 images per GPU (`models/first_stage_models/kl-f8/config.yaml`) and 12
# (`configs/autoencoder/autoencoder_kl_32x32x4.yaml`).

# %%
fig, ax = figure(size=(6, 3))
ax.axvspan(4, 12, color=GREY, alpha=0.25, label="CompVis' batches")
ax.plot(sizes, by_batch, "o-", color=ORANGE, label="batch norm")
ax.plot(sizes, by_group, "s-", color=BLUE, label="group norm")
ax.set(xlabel="images in the batch", ylabel="change by the neighbours", xscale="log")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend()
show(
    fig,
    alt="With batch norm the change falls from 0.63 at 2 images to 0.15 at 64; with group norm it is zero.",
)

# %% [markdown]
# With few images, exchanging the neighbours changes about half of the result. In use, batch norm takes running averages
# instead: one function in training, another one later. Group norm (Wu & He 2018) does not look at the neighbours at all. The grey band in numbers:

# %%
assert max(by_group) < 1e-6 and by_batch[1] > 2 * by_batch[-1]
print(f"batch norm, 4 images: {by_batch[1]:.0%}; 12 images: {by_batch[3]:.0%}")
print("group norm, any number: max |Δ| < 1e-6")

# %% [markdown]
# ### Five numbers, by hand
#
# A group of five values. What will their mean and standard deviation be after subtracting the one and dividing by the
# other?

# %%
values = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
mean = values.mean()
var = ((values - mean) ** 2).mean()
normalised = (values - mean) / torch.sqrt(var)
print(f"mean {mean:.0f}, variance {var:.0f} ->", [round(value, 2) for value in normalised.tolist()])

# %% [markdown]
# Mean 0 and variance 1, by construction. The variance is a plain average, over N and not N - 1. For a map x the average runs
# over all values of group g of image b, and a weight and a bias for each *channel* c come after it:
#
# $$y_{bchw} = \gamma_c \, \frac{x_{bchw} - \mu_{bg}}{\sqrt{\sigma_{bg}^2 + \varepsilon}} + \beta_c.$$

# %% [markdown]
# What is ε for? It keeps the root away from zero. In Stable Diffusion's autoencoder it is 1e-6, PyTorch's default is 1e-5.
# On which maps would you notice?

# %%
ordinary, flat = values, 0.5 + 0.0005 * values
for name, values_ in {"ordinary": ordinary, "nearly flat": flat}.items():
    right, wrong = (F.group_norm(values_[None, None], 1, eps=eps).std(correction=0) for eps in (1e-6, 1e-5))
    print(f"{name:<12} spread afterwards: {right:.2f} with 1e-6, {wrong:.2f} with 1e-5")

# %% [markdown]
# On ordinary maps, nowhere. On a nearly flat one the wrong ε takes away nearly half of the contrast. Think of a picture of one colour, or a channel with little
# to say. All weights load without complaint, and the network is subtly off.

# %% [markdown]
# {{exercise 03.1}}
#
# Write group norm. A group is a run of neighbouring channels. Mean and variance belong to a group of one image; weight and
# bias belong to a channel. The gradient must reach x, weight and bias.


# %%
def group_norm(x, groups, weight, bias, eps=1e-6):
    """x (B, C, H, W); weight and bias (C,). Returns (B, C, H, W)."""
    # BEGIN SOLUTION
    values = x.reshape(x.shape[0], groups, -1)
    mean = values.mean(2, keepdim=True)
    var = values.var(2, unbiased=False, keepdim=True)
    normalised = ((values - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    return normalised * weight[:, None, None] + bias[:, None, None]
    # SKELETON
    #| values = ...      # one row for each image and group
    #| mean = ...
    #| var = ...         # divided by N
    #| normalised = ...  # in the shape of x again
    #| return ...        # a weight and a bias for each channel
    # END SOLUTION


group_norm = check("03.1", group_norm)

# %% [markdown]
# Stuck? `hint("03.1")` in a new cell, then `solution("03.1")`. Compare with PyTorch's (the print says whose version is compared), and with two special cases: what is
# group norm with one group? And with as many groups as channels?

# %%
x, one, zero = maps[:4], torch.ones(16), torch.zeros(16)
assert (group_norm(x, 8, one + 1, one) - F.group_norm(x, 8, one + 1, one, eps=1e-6)).abs().max() < 1e-4
assert (group_norm(x, 1, one, zero) - F.layer_norm(x, x.shape[1:], eps=1e-6)).abs().max() < 1e-4
assert (group_norm(x, 16, one, zero) - F.instance_norm(x, eps=1e-6)).abs().max() < 1e-4
print(whose("03.1", group_norm), "group_norm = F.group_norm; 1 group: layer norm; 16: instance norm.  max |Δ| < 1e-4")

# %% [markdown]
# Stable Diffusion's 32 groups would be instance norm on a map of 32 channels: every channel for itself. What gets lost in that?
# Take a photograph, with values from -1 to 1, as a map of three channels, and a second print of it: darker, flat, orange.

# %%
photo = photos["coffee"][:, 60:316, 150:406]
faded = 0.4 * photo + torch.tensor([0.1, -0.3, -0.6])[:, None, None]
prints = torch.stack([photo, faded])
one, zero = torch.ones(3), torch.zeros(3)
by_image, by_channel = (group_norm(prints, groups, one, zero) for groups in (1, 3))

# %%
rows = zip(prints, 0.4 * by_image, 0.4 * by_channel, strict=True)  # 0.4, because the norms lead out of [-1, 1]
fig = image_grid([*rows], row_labels=["original", "faded"], column_titles=["before", "1 group", "3 groups"])
alt = "A cup, and an orange, faded print of it. With one group the second stays orange, with three both look the same."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# With three groups, one for each colour, both prints become the same. With one group, the faded cup stays flatter and more orange
# than the other. Then what was set to 1?

# %%
for name, row in zip(("original", "faded"), by_image, strict=True):
    spread, tint = row.std((1, 2)).mean(), (row[0] - row[2]).mean()
    print(f"1 group, {name:<8}: all {row.std():.2f}, each colour {spread:.2f}; red minus blue {tint:.2f}")
assert (by_channel[0] - by_channel[1]).abs().max() < 1e-3
print("3 groups, between the rows: max |Δ| < 1e-3")

# %% [markdown]
# The spread of *all* values of the group is 1. The tint, a difference between channels, is part of it: where there is much tint,
# little is left for each colour. Group norm forgets a group's common level and contrast, nothing else.

# %% [markdown]
# Both are measured over the whole map. So what happens if a picture is too large for the memory, and you cut it into tiles? Each tile then has its own
# level and contrast. Notebook 12 meets the seams; here is the reason for them:

# %%
with_the_rest = group_norm(photo[None], 1, one, zero)[..., :128]
alone = group_norm(photo[None, ..., :128], 1, one, zero)
print(f"the left half, with the rest and alone: max |Δ| = {(with_the_rest - alone).abs().max():.1f}")

# %% [markdown]
# ## 3. Why SiLU, and not ReLU?
#
# Between two convolutions something must bend, or the two are one convolution. The simplest bend is ReLU: max(x, 0). Stable
# Diffusion's autoencoder uses SiLU, also called *swish*, x · σ(x), with σ the sigmoid. What is different? Five numbers:

# %%
x = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0], requires_grad=True)
for bend in (F.relu, F.silu):
    (slope,) = torch.autograd.grad(bend(x).sum(), x)
    rounded = [[round(value, 2) for value in row.tolist()] for row in (bend(x), slope)]
    print(f"{bend.__name__}  values {rounded[0]}  slopes {rounded[1]}")

# %% [markdown]
# For large x both are nearly x. Left of zero, ReLU's slope is 0 everywhere. SiLU's is positive at -1 and *negative* at -4: SiLU goes
# down and up again, and only in between is its slope 0. Where is this lowest point?

# %%
x = torch.linspace(-6, 6, 1201, requires_grad=True)
y = F.silu(x)
(slope,) = torch.autograd.grad(y.sum(), x)
x, y, lowest = x.detach(), y.detach(), y.argmin()
print(f"lowest at x = {x[lowest].item():.2f}, y = {y[lowest].item():.2f}")

# %%
fig, (left, right) = figure(1, 2, size=(8, 2.8))
left.plot(x, x.clamp(min=0), "--", color=ORANGE, label="ReLU")
left.plot(x, y, color=BLUE, label="SiLU")
left.plot(x[lowest], y[lowest], "o", color="black", label="lowest point")
right.plot(x, x > 0, "--", color=ORANGE)
right.plot(x, slope, color=BLUE)
left.set(title="value", xlabel="x", ylim=(-0.5, 3))
right.set(title="slope", xlabel="x")
left.legend()
show(
    fig, alt="SiLU follows ReLU, but dips below 0 near -1.28. Its slope rises smoothly, where ReLU's jumps from 0 to 1."
)

# %% [markdown]
# Where ReLU's slope jumps, SiLU's passes smoothly, a little below 0 and a little above 1 on its way. What does a slope of 0 do to
# a unit that has to learn? Let `bend(input + bias)` learn to put out 1, from a start
# at which ReLU is 0 for all inputs:

# %%
inputs = torch.linspace(-1, 1, 11)
for bend, start in [(F.relu, -1.2), (F.silu, -1.2), (F.silu, -3.0)]:
    bias = torch.tensor(start, requires_grad=True)
    for _ in range(100):
        loss = (bend(inputs + bias) - 1).pow(2).mean()
        bias.data -= 0.5 * torch.autograd.grad(loss, bias)[0]
    print(f"{bend.__name__}: bias {start} -> {bias.item():.1f}")

# %% [markdown]
# ReLU is *dead*: it never moves again. SiLU finds its way from -1.2. From -3 it moves, but in the wrong direction: left of its
# lowest point the slope is reversed. A softer bend, no cure.

# %% [markdown]
# {{exercise 03.2}}
#
# Write SiLU. It should also cope with x = 200 and x = -200, and so should its gradient.


# %%
def silu(x):
    """x of any shape -> x · σ(x)."""
    # BEGIN SOLUTION
    return x * torch.sigmoid(x)
    # END SOLUTION


silu = check("03.2", silu)

# %%
assert torch.allclose(silu(inputs), F.silu(inputs))
print(whose("03.2", silu), "silu = F.silu")

# %% [markdown]
# ## 4. Why is the input added?
#
# On its way back, the gradient is multiplied by every layer's slope. Say these lie between -0.3 and 0.3. What is left after five layers? And
# what if each layer *adds* its input, x + f(x), with a slope of 1 + f′(x)?

# %%
slopes = torch.tensor([0.3, -0.2, 0.1, -0.3, 0.2])
print(f"product of the slopes     {slopes.prod():.5f}")
print(f"product of 1 + the slopes {(1 + slopes).prod():.2f}")
print(f"all of them positive      {(1 + slopes.abs()).prod():.2f}")

# %% [markdown]
# Slopes of both signs nearly cancel around 1; of one sign, they would not. So only a measurement can tell. Now with real layers. Each `Piece` is norm, SiLU and convolution, twice. Norm and shortcut can be
# left out, so that we see who does what:


# %%
class Piece(nn.Module):
    def __init__(self, width, norm, shortcut):
        super().__init__()
        norms = [nn.GroupNorm(width // 4, width, eps=1e-6) if norm else nn.Identity() for _ in range(2)]
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
        self.branch = nn.Sequential(norms[0], nn.SiLU(), convs[0], norms[1], nn.SiLU(), convs[1])
        self.shortcut = shortcut

    def forward(self, x):
        return x + self.branch(x) if self.shortcut else self.branch(x)


# %% [markdown]
# Stack 32 of them, send a random map through, take some loss at the end, and ask autograd for its gradient with respect to the map after
# each piece.


# %%
def gradient_norms(norm, shortcut, gain=1.0):
    """The gradient's norm at each depth, and the spread of the last map. Weights are `gain` times PyTorch's."""
    torch.manual_seed(0)
    pieces = [Piece(16, norm, shortcut) for _ in range(32)]
    maps = [torch.randn(1, 16, 16, 16, requires_grad=True)]
    for piece in pieces:
        for conv in (piece.branch[2], piece.branch[5]):
            conv.weight.data *= gain
        maps.append(piece(maps[-1]))
    loss = (maps[-1] * torch.randn(maps[-1].shape)).sum()
    gradients = torch.autograd.grad(loss, maps)
    return [gradient.double().norm().item() for gradient in gradients], maps[-1].std().item()


# %% [markdown]
# Four combinations. On which would you bet: where does the gradient arrive at the first map in the size in which it set out?

# %%
kinds = {
    "neither": (False, False),
    "norm only": (True, False),
    "shortcut only": (False, True),
    "norm and shortcut": (True, True),
}
gradients = {kind: gradient_norms(*options)[0] for kind, options in kinds.items()}

# %%
fig, ax = figure(size=(6.5, 3.4))
styles = [(":", "black"), ("--", ORANGE), ("-.", GREEN), ("-", BLUE)]
for (kind, norms), (line, color) in zip(gradients.items(), styles, strict=True):
    ax.semilogy(norms, line, color=color, label=kind)
ax.set(xlabel="after piece", ylabel="norm of the gradient", ylim=(1e-3, 1e5))
ax.legend()
show(
    fig,
    alt="Backwards from piece 32: with neither it plunges, with norm only it grows over a hundredfold, with shortcuts it stays.",
)

# %% [markdown]
# Read it from the right, as the gradient travels. With neither it is gone after a few pieces. The norm saves the way forward, but on the way
# back the gradient *grows*, up to the last step: a norm divides the slopes, too, by the spread it found. With the shortcut it stays. How
# much, compared with the start?

# %%
assert 0 < gradients["neither"][0] < 1e-30
print("neither: at the first map < 1e-30")
for kind in list(kinds)[1:]:
    times = [norm / gradients[kind][-1] for norm in gradients[kind]]
    print(f"{kind}: {times[0]:.3g} times as large at the first map, {max(times):.3g} times at its largest")
assert gradients["norm only"][0] > 50 * gradients["norm only"][-1]
assert max(gradients["norm and shortcut"]) < 4 * min(gradients["norm and shortcut"])

# %% [markdown]
# The shortcut alone looks best. Then what is the norm for? Training makes weights larger: multiply them by three and look
# again.

# %%
for kind in ("shortcut only", "norm and shortcut"):
    for gain in (1, 3):
        norms, spread = gradient_norms(*kinds[kind], gain)
        print(f"{kind}, weights × {gain}: spread of the last map {spread:.2g}, gradient × {norms[0] / norms[-1]:.2g}")

# %% [markdown]
# Without norm, a factor of three in the weights is a factor of millions in the map. With it, a branch adds about as much as the one
# before, however large the map has become. The shortcut lets the gradient pass. You need both.

# %% [markdown]
# Do shortcuts also help to *learn*? Let two stacks try, both with norms. The task: tell where a photograph differs from its own
# blur. It needs neighbours, but no depth, which favours a stack that can pass pieces by. Zeros everywhere have an error of 1.


# %%
def learn(shortcut, steps=60):
    torch.manual_seed(0)
    pieces = [Piece(16, True, shortcut) for _ in range(32)]
    ends = nn.Conv2d(3, 16, 3, padding=1), nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
    net = nn.Sequential(ends[0], *pieces, ends[1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        x = crops[torch.randint(len(crops), (8,))]
        target = x - F.avg_pool2d(x, 3, stride=1, padding=1)
        error = net(x) / 4 - target  # a quarter, so that it starts out as quiet as the target
        loss = error.pow(2).mean() / target.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


torch.set_num_threads(1)  # layers this small gain nothing from a second core
losses = {"without shortcuts": learn(False), "with shortcuts": learn(True)}

# %%
fig, ax = figure(size=(6, 3))
for (name, curve), color, line in zip(losses.items(), (ORANGE, BLUE), ("--", "-"), strict=True):
    ax.plot(range(8, 61), curve.unfold(0, 8, 1).mean(1), line, color=color, label=name)
ax.set(xlabel="step", ylabel="error, mean of 8 steps", ylim=(0, None), xlim=(0, 62))
ax.legend()
show(
    fig,
    alt="Error over 60 steps: with shortcuts it falls fast and far; without, slowly, and it stays far above.",
)

# %% [markdown]
# Same layers, same weights at the start, same data. At the end, is one error less than half of the other?

# %%
final = {name: curve[-8:].mean() for name, curve in losses.items()}
less = (final["with shortcuts"] < final["without shortcuts"] / 2).item()
assert less
print("with shortcuts, less than half of the error:", less)

# %% [markdown]
# Why? Hardly for the gradient's size: Adam divides it away (Kingma & Ba 2015). A guess that this experiment does not prove: without
# shortcuts a piece first has to learn to hand on what it was given. How near to that is a fresh block, and its branch?

# %%
torch.manual_seed(0)
fresh, x = ResnetBlock2D(32, 32, groups=8), torch.randn(1, 32, 16, 16)
y = fresh(x).detach()
block, branch = (torch.corrcoef(torch.stack([x, it]).flatten(1))[0, 1].abs() for it in (y, y - x))
print(f"correlation with the input: block {block:.2f}, branch alone {branch:.2f}")
share = ((y - x).std() / x.std()).item()
print(f"the branch adds {share:.2f} of the input's spread")
print(f"variances add up: after 32 blocks about √(1 + 32 · {share:.2f}²) = {(1 + 32 * share**2) ** 0.5:.1f}")

# %% [markdown]
# Block and input are nearly the same; the branch alone has nothing to do with it. Some networks start closer still, with the last convolution at zero: then a block *is* the identity, and the gradient
# is the same at every depth. Neither CompVis' autoencoder does that, nor that of *diffusers*, Hugging Face's library. (Try it: `fresh.conv2.weight.data.zero_()`, bias as
# well.)

# %% [markdown]
# ## 5. How do you add 128 channels to 256?
#
# You cannot. Where a block changes the width, x has to be brought to the new width first, with as little work as possible. What
# is the cheapest layer that turns 3 channels into 2? Take one pixel:

# %%
pixel = torch.tensor([1.0, 2.0, 3.0])
matrix = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])  # a row for each output
print("one pixel: ", pixel.tolist(), "->", (matrix @ pixel).tolist())

# %% [markdown]
# A matrix, the same one for every pixel: that is a 1×1 convolution. Its weight (out, in, 1, 1) is the matrix, with two
# dimensions of size 1 for looks.
#
# $$y_{bohw} = \sum_i W_{oi} \, x_{bihw} + b_o$$

# %% [markdown]
# {{exercise 03.3}}
#
# Try it without a convolution: with `einsum`, or with `@` or `F.linear` after moving the channels to the end (and back). The
# gradient must reach all three inputs.


# %%
def pointwise(x, weight, bias):
    """x (B, in, H, W), weight (out, in), bias (out,) -> (B, out, H, W)."""
    # BEGIN SOLUTION
    return torch.einsum("oi,bihw->bohw", weight, x) + bias[:, None, None]
    # END SOLUTION


pointwise = check("03.3", pointwise)

# %%
conv = nn.Conv2d(16, 64, kernel_size=1)
with torch.no_grad():
    assert (pointwise(maps[:4], conv.weight[:, :, 0, 0], conv.bias) - conv(maps[:4])).abs().max() < 1e-5
print(f"{whose('03.3', pointwise)} pointwise = nn.Conv2d(16, 64, 1), max |Δ| < 1e-5")

# %% [markdown]
# What can such a layer do to a photograph, and what can it never do? Four matrices, applied to the same cup. The last one is
# random.

# %%
torch.manual_seed(0)
matrices = {"as it is": torch.eye(3), "red and blue exchanged": torch.eye(3).flip(0)}
matrices |= {"grey": torch.full((3, 3), 1 / 3), "random": torch.randn(3, 3) / 3}
pictures = {name: pointwise(photo[None], matrix, torch.zeros(3))[0] for name, matrix in matrices.items()}

# %%
fig = image_grid([list(pictures.values())], column_titles=list(pictures))
alt = "The cup as it is, with red and blue exchanged, in grey, in random colours. Every edge is where it was."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# It changes colours, never places: no pixel sees its neighbour. In the block it is called `conv_shortcut`; in CompVis' code
# `nin_shortcut`, for *network in network* (Lin et al. 2013), while `conv_shortcut` is a 3×3 convolution, off by default. Where the widths are
# equal, x itself is added.

# %% [markdown]
# ## 6. In which order?
#
# The original ResNet (He et al. 2015) had its activation *after* the sum. The block here keeps everything inside of the branch: norm,
# SiLU, convolution, twice; then the sum; then nothing (*pre-activation*, He et al. 2016). What would SiLU after the sum cost?

# %%
torch.manual_seed(0)
clean = cut = torch.randn(1, 32, 16, 16)
for _ in range(8):
    block = ResnetBlock2D(32, 32, groups=8).requires_grad_(False)
    clean, cut = block(clean), F.silu(block(cut))

# %%
fig, ax = figure(size=(6, 2.8))
bins = (-0.2785 + 0.15 * torch.arange(-40, 43)).numpy()
ax.hist(clean.flatten().numpy(), bins, density=True, color=BLUE, alpha=0.8, label="nothing after the sum")
ax.hist(cut.flatten().numpy(), bins, density=True, histtype="step", color="black", label="SiLU after the sum")
ax.axvline(-0.2785, color=GREY, linestyle="--", label="SiLU's lowest value")
ax.set(xlabel="value after 8 blocks", ylabel="density")
ax.legend()
show(fig, alt="After eight blocks: a broad bell around 0; with SiLU after each sum a narrow peak that ends at -0.28.")

# %% [markdown]
# Which share of the values is left of the dashed line, with and without?

# %%
assert cut.min() > -0.2786 and clean.min() < -3
for name, result in {"nothing after the sum": clean, "SiLU after the sum": cut}.items():
    print(f"{name}: {(result < -0.2786).float().mean():.0%}")

# %% [markdown]
# SiLU on the main road lets nothing below -0.28 pass, in any block. Inside of the branch it harms nobody: what leaves a stack is then the
# input plus a sum of what the branches said, and the gradient has a road without a gate.

# %% [markdown]
# {{exercise 03.4}}
#
# Build the block, with submodules of exactly these names, because the weights are loaded by name. The 3×3 convolutions keep
# the size of the map; `conv1` changes the width. Every norm has eps 1e-6.


# %%
class ResnetBlock(nn.Module):
    """norm, SiLU, 3×3 convolution, twice; then the input is added: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels, out_channels, groups):
        super().__init__()
        # BEGIN SOLUTION
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        # SKELETON
        #| self.norm1 = ...
        #| self.conv1 = ...
        #| self.norm2 = ...
        #| self.conv2 = ...
        #| self.conv_shortcut = ...  # nn.Identity() where the widths are equal
        # END SOLUTION

    def forward(self, x):
        # BEGIN SOLUTION
        hidden = self.conv1(silu(self.norm1(x)))
        hidden = self.conv2(silu(self.norm2(hidden)))
        return self.conv_shortcut(x) + hidden
        # SKELETON
        #| hidden = ...  # the first half of the branch
        #| hidden = ...  # the second half
        #| return ...
        # END SOLUTION


ResnetBlock = check("03.4", ResnetBlock)

# %% [markdown]
# ## 7. Is it the same block?
#
# First, count: how many parameters has a block from 128 to 128 channels, and one to 256? A 3×3 convolution has 9 · in · out
# weights and out biases, a norm has two numbers per channel. Which part is in the 3×3 convolutions?


# %%
def parameter_table(i, o):
    table = {"norm1": 2 * i, "conv1": 9 * i * o + o, "norm2": 2 * o, "conv2": 9 * o * o + o}
    return table | ({"conv_shortcut": i * o + o} if i != o else {})


for widths in [(128, 128), (128, 256)]:
    block = ResnetBlock(*widths, groups=32)
    measured = {name: sum(p.numel() for p in part.parameters()) for name, part in block.named_children()}
    assert {name: count for name, count in measured.items() if count} == parameter_table(*widths)
    total, large = sum(measured.values()), measured["conv1"] + measured["conv2"]
    print(f"{widths[0]} -> {widths[1]}: {total:,} parameters, {large / total:.1%} of them in the 3×3 convolutions")

# %% [markdown]
# What keeps those alive, norms and shortcut, costs next to nothing. Now the proof: the finished block, and diffusers' where it is
# installed. Why not compare fresh blocks? Fresh norms are all
# alike, with weight 1 and bias 0: swap them and nobody notices. So move every parameter first.


# %%
def largest_difference(theirs, widths):
    """Between this notebook's block and another one with the same weights, every one of them random, in float64."""
    ours = ResnetBlock(*widths, groups=32).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.double().parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        ours.load_state_dict(theirs.state_dict())  # strict: every name must be there, and no other
        x = torch.randn(2, widths[0], 12, 10, dtype=torch.float64)
        return (ours(x) - theirs(x)).abs().max().item()


# %%
for widths in [(128, 128), (128, 256)]:
    assert largest_difference(ResnetBlock2D(*widths, groups=32), widths) < 1e-10
print(whose("03.4", ResnetBlock), "ResnetBlock and klvae_edu.blocks.ResnetBlock2D: max |Δ| < 1e-10")

# %% [markdown]
# `load_state_dict` is strict: it has already compared all names and shapes. diffusers' block was made for diffusion models, too, which
# tell it the time step; `temb_channels=None` leaves that out.

# %%
try:
    from diffusers.models.resnet import ResnetBlock2D as DiffusersBlock
except ImportError:
    print("diffusers is not installed: compared with the finished block only")
else:
    for i, o in [(128, 128), (128, 256)]:
        theirs = DiffusersBlock(in_channels=i, out_channels=o, temb_channels=None, groups=32, eps=1e-6)
        theirs.forward = lambda x, forward=theirs.forward: forward(x, None)
        assert largest_difference(theirs, (i, o)) < 1e-10
    print(whose("03.4", ResnetBlock), "ResnetBlock and diffusers' ResnetBlock2D: max |Δ| < 1e-10")

# %% [markdown]
# Would this have noticed the wrong ε? Make the mistake on purpose, in both norms, and look:

# %%
for scale in (1.0, 0.01):
    block = ResnetBlock2D(128, 128, groups=32).double().requires_grad_(False)
    x = scale * torch.randn(2, 128, 12, 10, dtype=torch.float64)
    right = block(x)
    block.norm1.eps = block.norm2.eps = 1e-5
    relative = (block(x) - right).norm() / (right - x).norm()
    print(f"input of spread {scale}: the branch changes by {relative:.0e}")

# %% [markdown]
# Yes: 5e-5 is far above the bound of 1e-10. With a tolerance of 1e-3 it would have passed for right on an ordinary input, and been a
# percent off on a flat one.

# %% [markdown]
# ## Summary
#
# 1. Without normalisation a deep stack explodes or forgets its input; group norm resets level and contrast, for each image by itself.
# 2. Group norm's mean and variance run over a group's channels and the whole map; weight and bias belong to channels; ε is 1e-6.
# 3. SiLU, x · σ(x), is a smooth bend with its lowest point at -1.28, the only one where its slope is 0.
# 4. Adding the input gives every block a slope of 1 + something: the gradient arrives, and a fresh block nearly hands on what it was given.
# 5. The block, yours if 03.4 has passed, has the names, the parameters and the numbers of the package's.
#
# ### Check yourself
#
# <details><summary>You multiply an image's map by 2 and add 5, in all channels. What does group norm put out?</summary>
#
# The same as before, up to ε: the group's level and contrast are what it takes away. Multiply only *one* channel of a group
# by 2, and it does change: channels of a group keep their differences.
# </details>
#
# <details><summary>Where in a block from 128 to 256 channels would a norm with 128 channels be right, and where with 256?</summary>
#
# norm1 sees the input: 128. norm2 comes after conv1, which has changed the width: 256. The shortcut has no norm at all, it
# starts from x itself.
# </details>
#
# <details><summary>All names and shapes agree, all weights load, and yet the block's branch is off by 5e-5 of its size. Where do you look first?</summary>
#
# At settings that are in no state dict, and first of all at the ε of the norms: 1e-5 instead of 1e-6 had just this effect. On
# an input that is nearly flat it grows to a percent, and can no longer be taken for rounding.
# </details>
#
# **Next:** notebook 04 makes maps smaller and larger, and lets far pixels see each other: resampling and attention.
