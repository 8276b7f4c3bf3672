# %% [markdown]
# # 03 · ResNet blocks: what encoder and decoder are made of
#
# {{badge}}
#
# Most of Stable Diffusion's encoder and decoder are ResNet blocks. A block normalises, applies an activation, and convolves,
# twice; then it adds its own input. In this notebook you find out what each of these steps is for, mostly by leaving it out.
#
# **You will be able to**
#
# * write group norm, and say which values share a mean;
# * show in numbers what the shortcut does for the gradient of a deep stack;
# * write a 1×1 convolution as one matrix for every pixel;
# * build the block, and show that it equals the package's.
#
# **You need** `nn.Module`, `nn.Conv2d` and autograd in PyTorch. [00](00_tour.ipynb) helps; 01 and 02 are
# not needed.
#
# {{budget}}

# %% tags=["environment"]

# %%
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu import AutoencoderKL
from klvae_edu.blocks import ResnetBlock2D  # the finished version of what you will build
from klvae_edu.data import photographs
from klvae_edu.diagrams import show_diagram
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.plots import figure, image_grid, lines, show

# %% [markdown]
# This is the block:

# %%
show_diagram("resnet_block")

# %% [markdown]
# Its words:
#
# * A *feature map* is what goes from layer to layer: C channels of H × W values, like an image with more than three colours. (Each
#   single channel is called a feature map, too.)
# * The *residual branch* computes what is added to the input. The *shortcut* carries the input past it.
# * An *activation*, or *nonlinearity*, is a function applied to each value by itself, such as max(x, 0).

# %% [markdown]
# ## 1. What happens to values after 58 layers?
#
# First, count the 3×3 convolutions between a photograph and its reconstruction. On PyTorch's *meta* device tensors have shapes but no values, so
# the model of full size takes no memory:

# %%
with torch.device("meta"):
    parts = list(AutoencoderKL.from_preset("sd-v1").modules())  # a preset is a named configuration
blocks = sum(isinstance(part, ResnetBlock2D) for part in parts)
depth = sum(isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) for part in parts)
print(f"{blocks} ResNet blocks, {depth} convolutions of 3×3, one after the other")

# %% [markdown]
# (Two are in each block; the others are at both ends and where the feature map is resized.) Suppose each of them multiplies its
# values by the same factor. Then a 1 becomes:

# %%
for factor in (0.5, 0.9, 1.0, 1.1, 2.0):
    print(f"{factor} ** {depth} = {factor**depth:.1e}")

# %% [markdown]
# Only 1.0 is harmless. Now real layers: 58 times an activation (SiLU, section 3) and a convolution. Its random
# weights are PyTorch's, multiplied by a number, `gain`. We measure the standard deviation of the feature map after each layer.


# %%
@torch.no_grad()
def deep_stack(x, gain, normalise):
    """The feature map after each layer."""
    torch.manual_seed(0)
    after = []
    for _ in range(depth):
        conv = nn.Conv2d(16, 16, 3, padding=1)
        conv.weight *= gain
        x = conv(F.silu(normalise(x)))
        after.append(x)
    return torch.cat(after)


# %%
noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
curves = {}
for gain in (5, 1):
    curves[f"weights × {gain}"] = deep_stack(noise, gain, nn.Identity()).std((1, 2, 3))
    curves[f"weights × {gain}, normalised"] = deep_stack(noise, gain, nn.GroupNorm(4, 16)).std((1, 2, 3))
assert curves["weights × 5"][-1] > 1e15 and curves["weights × 1"][-1] < 0.1
show(
    lines(curves, xlabel="layer", ylabel="standard deviation", log=True, dashed=("weights × 5", "weights × 1")),
    alt="The standard deviation after each layer. Without a norm (short dashes) one line climbs above 1e15, the other falls below "
    "0.1. With a norm before each layer both stay level.",
)

# %% [markdown]
# With large weights the values explode. With PyTorch's own they shrink, then stay constant; but that constant part comes only from
# the biases that every layer adds, and nothing of the input is left in it (measured under "Going further"). With a norm, both stay level. So values have to be
# brought back to size again and again.

# %% [markdown]
# ## 2. Group norm
#
# All norms below subtract a mean and divide by a standard deviation. They differ in which values share these two. The picture has three images of
# six channels; each square is a whole channel of H × W values. Squares with the same letter share.

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
    alt="Three images by six channels. Batch norm has a letter for each column, layer norm for each row, instance norm for "
    "each square, group norm for each pair of neighbouring squares in a row.",
)

# %% [markdown]
# Only batch norm has letters that run over several images. So its result for *your* image depends on the other images of the batch. How
# much? Take 16 × 16 crops of two photographs, after a random convolution. Keep one image, exchange the others, and see how much
# its result changes.

# %%
photos = photographs("held-out")  # held out: no bundled model was trained on them
corners = [(y, x) for y in range(0, 288, 16) for x in range(0, 448, 16)]
crops = torch.stack([photo[:, y : y + 16, x : x + 16] for photo in photos.values() for y, x in corners])
torch.manual_seed(0)
with torch.no_grad():
    features = nn.Conv2d(3, 16, 3, padding=1)(crops)
print("feature maps of the crops:", tuple(features.shape))


# %%
@torch.no_grad()
def change(norm, size, trials=30):
    """Relative change of one image's result when the others of its batch are exchanged, on average."""
    generator = torch.Generator().manual_seed(size)
    changes = []
    for _ in range(trials):
        picked = torch.randint(len(features), (2, size), generator=generator)
        picked[1, 0] = picked[0, 0]  # the same image in both batches
        a, b = (norm(features[batch])[0] for batch in picked)
        changes.append((a - b).norm() / a.norm())
    return torch.stack(changes).mean().item()


# %% [markdown]
# Large images leave room for small batches only. The configurations of CompVis, who published Stable Diffusion, have 4 images per
# GPU (`models/first_stage_models/kl-f8/config.yaml`) or 12 (`configs/autoencoder/autoencoder_kl_32x32x4.yaml`).

# %%
for size in (4, 12, 64):
    batch, group = change(nn.BatchNorm2d(16), size), change(nn.GroupNorm(4, 16), size)
    assert group < 1e-6
    print(f"{size:2} images: batch norm changes by {batch:.0%}, group norm by less than 1e-6")

# %% [markdown]
# With 4 or 12 images, other neighbours in the batch change the result by about half of its own norm. In use, batch norm
# takes running averages instead, so the network computes another function than in training. Group norm (Wu & He 2018) does not look at other images at all.
#
# Now in numbers. Take a group of five values, subtract the mean, divide by the standard deviation:

# %%
values = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
mean = values.mean()
var = ((values - mean) ** 2).mean()
normalised = (values - mean) / torch.sqrt(var)
print(f"mean {mean:.0f}, variance {var:.0f} ->", [round(value, 2) for value in normalised.tolist()])

# %% [markdown]
# The result has mean 0 and variance 1. The variance is a plain average, over N and not N - 1. For a feature map x the averages
# run over all values of group g of image b; then each *channel* c has a weight and a bias:
#
# $$y_{bchw} = \gamma_c \, \frac{x_{bchw} - \mu_{bg}}{\sqrt{\sigma_{bg}^2 + \varepsilon}} + \beta_c.$$
#
# ε keeps the root away from zero. It is 1e-6 in Stable Diffusion's autoencoder and 1e-5 by default in PyTorch. Section 7 shows
# where one notices.

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
# For help, run `hint("03.1")` in a new cell, then `solution("03.1")`. Compare with PyTorch (the print says whose function is compared),
# and with two special cases: one group is layer norm, as many groups as channels are instance norm.

# %%
x, one, zero = features[:4], torch.ones(16), torch.zeros(16)
assert (group_norm(x, 8, one + 1, one) - F.group_norm(x, 8, one + 1, one, eps=1e-6)).abs().max() < 1e-4
assert (group_norm(x, 1, one, zero) - F.layer_norm(x, x.shape[1:], eps=1e-6)).abs().max() < 1e-4
assert (group_norm(x, 16, one, zero) - F.instance_norm(x, eps=1e-6)).abs().max() < 1e-4
print(whose("03.1", group_norm), "group_norm = F.group_norm; 1 group: layer norm; 16: instance norm.  max |Δ| < 1e-4")

# %% [markdown]
# ## 3. Why SiLU, and not ReLU?
#
# Between two convolutions there must be a nonlinearity, or together they are one convolution. The simplest is ReLU: max(x, 0).
# Stable Diffusion's autoencoder uses SiLU, also called *swish*: x · σ(x). This σ is no
# standard deviation, but the sigmoid function, σ(x) = 1 / (1 + exp(-x)). Values and slopes at five places:

# %%
x = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0], requires_grad=True)
for activation in (F.relu, F.silu):
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    rounded = [[round(value, 2) for value in row.tolist()] for row in (activation(x), slope)]
    print(f"{activation.__name__}  values {rounded[0]}  slopes {rounded[1]}")

# %% [markdown]
# For large x both are nearly x. Left of zero, ReLU's slope is 0 everywhere, so a value there passes no gradient on. SiLU's slope is positive at -1 and
# *negative* at -4. Only one point in between has slope 0, the lowest one:

# %%
x = torch.linspace(-6, 4, 1001, requires_grad=True)
y = F.silu(x)
(slope,) = torch.autograd.grad(y.sum(), x)
x, y = x.detach(), y.detach()
print(f"lowest at x = {x[y.argmin()].item():.2f}, y = {y.min().item():.2f}")

# %%
curves = {"SiLU": y, "SiLU's slope": slope, "ReLU": x.clamp(min=0), "ReLU's slope": (x > 0).float()}
fig = lines(curves, x, xlabel="x", dashed=("ReLU", "ReLU's slope"))
fig.axes[0].set_ylim(-0.5, 3)
alt = "SiLU follows ReLU (short dashes), but is below 0 for negative x. Its slope rises smoothly; ReLU's jumps from 0 to 1."
show(fig, alt=alt)

# %% [markdown]
# {{exercise 03.2}}
#
# Write SiLU. It should also cope with x = 200 and x = -200, and so should its gradient. (That of x / (1 + exp(-x)) does not: at -200
# the exponential overflows, and the gradient is NaN.)


# %%
def silu(x):
    """x of any shape -> x · σ(x)."""
    # BEGIN SOLUTION
    return x * torch.sigmoid(x)
    # END SOLUTION


silu = check("03.2", silu)

# %%
x = torch.linspace(-5, 5, 11)
assert torch.allclose(silu(x), F.silu(x))
print(whose("03.2", silu), "silu = F.silu")

# %% [markdown]
# ## 4. The shortcut: why the input is added
#
# On its way back, the gradient is multiplied by every layer's slope. Say these lie between -0.3 and 0.3. If each layer *adds*
# its input, x + f(x), the slopes are 1 + f′(x). Five layers of each kind:

# %%
slopes = torch.tensor([0.3, -0.2, 0.1, -0.3, 0.2])
print(f"product of the slopes     {slopes.prod():.5f}")
print(f"product of 1 + the slopes {(1 + slopes).prod():.2f}")
print(f"all of them positive      {(1 + slopes.abs()).prod():.2f}")

# %% [markdown]
# Around 1, slopes of both signs nearly cancel; slopes of one sign do not. So only a measurement can tell. Each `Piece` is norm,
# SiLU and convolution, twice. Norm and shortcut can be left out:


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
# Stack 32 of them, send random values through, take some loss at the end, and ask autograd for its gradient with respect to the
# feature map after each piece.


# %%
def gradient_norms(norm, shortcut, gain=1.0):
    """The gradient's norm at each depth, and the standard deviation at the end. Weights are `gain` times PyTorch's."""
    torch.manual_seed(0)
    pieces = [Piece(16, norm, shortcut) for _ in range(32)]
    after = [torch.randn(1, 16, 16, 16, requires_grad=True)]
    for piece in pieces:
        for conv in (piece.branch[2], piece.branch[5]):
            conv.weight.data *= gain
        after.append(piece(after[-1]))
    loss = (after[-1] * torch.randn(after[-1].shape)).sum()
    gradients = torch.autograd.grad(loss, after)
    return [gradient.double().norm().item() for gradient in gradients], after[-1].std().item()


# %% [markdown]
# There are four combinations. In which of them is the gradient about as large at the first piece as at the last?

# %%
kinds = {
    "neither": (False, False),
    "norm only": (True, False),
    "shortcut only": (False, True),
    "norm and shortcut": (True, True),
}
gradients = {kind: gradient_norms(*options)[0] for kind, options in kinds.items()}
fig = lines(gradients, xlabel="after piece", ylabel="norm of the gradient", log=True, dashed=("neither", "norm only"))
fig.axes[0].set_ylim(1e-3, 1e5)
show(
    fig,
    alt="The gradient's norm, from the last piece (right) back to the first (left). With neither it vanishes, with the norm "
    "only it grows over a hundredfold, with a shortcut it stays within a factor of three.",
)

# %% [markdown]
# In the two with a shortcut. With neither, the gradient is gone after a few pieces. With the norm only, it *grows*: dividing by the
# standard deviation also divides the gradient, and where the standard deviation is below 1, the gradient becomes larger.

# %%
assert 0 < gradients["neither"][0] < 1e-30
print("neither: at the first piece < 1e-30")
for kind in list(kinds)[1:]:
    times = [norm / gradients[kind][-1] for norm in gradients[kind]]
    print(f"{kind}: {times[0]:.3g} times as large at the first piece, {max(times):.3g} times at its largest")
assert gradients["norm only"][0] > 50 * gradients["norm only"][-1]
for kind in ("shortcut only", "norm and shortcut"):
    assert max(gradients[kind]) < 3 * min(gradients[kind])

# %% [markdown]
# The shortcut alone looks best. But training can make weights larger. Multiply them by three:

# %%
for kind in ("shortcut only", "norm and shortcut"):
    for gain in (1, 3):
        norms, std = gradient_norms(*kinds[kind], gain)
        print(
            f"{kind}, weights × {gain}: standard deviation {std:.2g} at the end, gradient × {norms[0] / norms[-1]:.2g}"
        )

# %% [markdown]
# Without a norm, a factor of three in the weights becomes a factor of millions in the values. With it, each branch adds about as
# much as the one before, however large the sum has become. The shortcut lets the gradient pass, the norm keeps the values in
# size: a block needs both.

# %% [markdown]
# ## 5. The 1×1 convolution: a shortcut between different widths
#
# Where a block changes the number of channels, its input cannot be added to the branch's output. The shortcut must change the
# number as well (Stable Diffusion's from 128 to 256, for example), with as little work as possible. On a small scale, from 3
# channels to 2, for one pixel:

# %%
pixel = torch.tensor([1.0, 2.0, 3.0])
matrix = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])  # a row for each output
print("one pixel: ", pixel.tolist(), "->", (matrix @ pixel).tolist())

# %% [markdown]
# A matrix, the same one for every pixel: that is a 1×1 convolution. Its weight (out, in, 1, 1) is the matrix with two extra
# dimensions of size 1.
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
    mixed = torch.einsum("oi,bihw->bohw", weight, x)
    return mixed + bias[:, None, None]
    # SKELETON
    #| mixed = ...  # the matrix at every pixel: (B, out, H, W)
    #| return ...   # a bias for each output channel
    # END SOLUTION


pointwise = check("03.3", pointwise)

# %%
conv = nn.Conv2d(16, 64, kernel_size=1)
with torch.no_grad():
    assert (pointwise(features[:4], conv.weight[:, :, 0, 0], conv.bias) - conv(features[:4])).abs().max() < 1e-5
print(f"{whose('03.3', pointwise)} pointwise = nn.Conv2d(16, 64, 1), max |Δ| < 1e-5")

# %% [markdown]
# What can such a layer never do to a photograph? Apply four matrices to the same cup.

# %%
torch.manual_seed(0)
photo = photos["coffee"][:, 60:316, 150:406]
matrices = {"as it is": torch.eye(3), "red and blue exchanged": torch.eye(3).flip(0)}
matrices |= {"grey": torch.full((3, 3), 1 / 3), "random": torch.randn(3, 3) / 3}
pictures = {name: pointwise(photo[None], matrix, torch.zeros(3))[0] for name, matrix in matrices.items()}

# %%
fig = image_grid([list(pictures.values())], column_titles=list(pictures))
alt = "The cup as it is, with red and blue exchanged, in grey, in random colours. Every edge stays where it was."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# It changes colours, but never moves or blurs anything: no pixel sees its neighbour. In the block this layer is called
# `conv_shortcut`; in CompVis' code `nin_shortcut`, for *network in network* (Lin et al. 2013). (There, `conv_shortcut` is a 3×3
# convolution, off by default.) Where the numbers of channels are equal, x itself is added.

# %% [markdown]
# ## 6. The order of the steps, and the block
#
# The original ResNet (He et al. 2015) had an activation *after* the sum. Here all steps are inside of the branch, and nothing
# follows the sum (*pre-activation*, He et al. 2016). What would a SiLU after the sum do? Try it on eight blocks:

# %%
torch.manual_seed(0)
clean = cut = torch.randn(1, 32, 16, 16)
for _ in range(8):
    block = ResnetBlock2D(32, 32, groups=8).requires_grad_(False)
    clean, cut = block(clean), F.silu(block(cut))

# %%
assert cut.min() > -0.2786 and clean.min() < -3
for name, result in {"nothing after the sum": clean, "SiLU after the sum": cut}.items():
    print(f"{name}: {(result < -0.2786).float().mean():.0%} of the values are below -0.28, SiLU's lowest value")

# %% [markdown]
# A SiLU after the sum cuts off everything below -0.28 in every block. Inside the branch it leaves the sum free: what leaves a stack is
# the input plus what all branches added, and the gradient passes the sums unchanged.

# %% [markdown]
# {{exercise 03.4}}
#
# Build the block. Its submodules must have exactly these names, because weights are loaded by name. The 3×3 convolutions keep
# height and width; `conv1` changes the number of channels. Every norm has eps 1e-6.


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
# First, count parameters, for a block from 128 to 128 channels and one to 256. A 3×3 convolution has 9 · in · out weights and
# out biases, a norm two numbers per channel.


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
# The norms have very few parameters, the shortcut less than 4 %. Now compare with the package's block, and with that of
# *diffusers*, Hugging Face's library, where it is installed. Fresh norms all have weight 1 and bias 0, so a test on fresh blocks could not see two norms exchanged. So change every parameter first.


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
# `load_state_dict` is strict: it has also compared all names and shapes. diffusers' block also serves diffusion models, which give it
# the time step; `temb_channels=None` leaves that out.

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
# A test is worth something only if it fails on a mistake. Make one on purpose: the ε of PyTorch's default in both norms.

# %%
for scale in (1.0, 0.01):
    block = ResnetBlock2D(128, 128, groups=32).double().requires_grad_(False)
    x = scale * torch.randn(2, 128, 12, 10, dtype=torch.float64)
    right = block(x)
    block.norm1.eps = block.norm2.eps = 1e-5
    relative = (block(x) - right).norm() / (right - x).norm()
    print(f"input of standard deviation {scale}: the branch changes by {relative:.0e}")

# %% [markdown]
# 5e-5 is far above the bound of 1e-10, so the comparison would have failed. With a tolerance of 1e-3 the mistake would have passed on an ordinary
# input; on a nearly flat one the branch is off by a percent.
#
# Last, give the block *trained* weights: those of the first block of the bundled model's encoder. Its input is the cup after one
# convolution.

# %%
encoder = AutoencoderKL.from_bundled("kl-f8-mini").encoder.requires_grad_(False)
trained = encoder.down_blocks[0].resnets[0]
block = ResnetBlock(16, 16, groups=4).requires_grad_(False)
block.load_state_dict(trained.state_dict())
x = encoder.conv_in(photo[None])
y = block(x)
assert (y - trained(x)).abs().max() < 1e-4
print(whose("03.4", ResnetBlock), "ResnetBlock with trained weights: max |Δ| < 1e-4")

# %%
parts = [
    group_norm(it, 16, torch.ones(16), torch.zeros(16))[0] / 3 for it in (x, y - x, y)
]  # each channel standardised
fig = image_grid(
    [[part[c : c + 1] for part in parts] for c in (6, 10)], column_titles=["input", "what the branch adds", "output"]
)
alt = (
    "Two of the 16 channels, each standardised by group norm. The input has fine edges. The branch adds smooth areas, such as "
    "the dark rim of the cup. The output has both: the edges came through the shortcut."
)
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# The branch of this trained block does not repeat its input. It computes only what is to change; the edges need no weights, because
# the shortcut carries them.

# %% [markdown]
# ## Going further: what arrives after 58 layers (optional)
#
# Does anything of the input arrive at the end of section 1's stacks? Feed them the noise and zeros, and measure by which factor the difference
# of the two results grows from layer to layer.

# %%
norm, nothing = nn.GroupNorm(4, 16), nn.Identity()
for gain, normalise, least, most in [(5, nothing, 1e15, 1e17), (1, nothing, 0, 1e-6), (1, norm, 0.1, 10)]:
    apart = deep_stack(noise, gain, normalise) - deep_stack(torch.zeros_like(noise), gain, normalise)
    apart = apart.std((1, 2, 3))
    factor = (apart[10] / apart[0]) ** 0.1  # in the first layers, before rounding is all that is left
    print(f"weights × {gain}{', normalised' * (normalise is norm)}: {factor:.1f} times as large after each layer")
    assert least < apart[-1] < most

# %% [markdown]
# PyTorch's weights keep 0.3 of what an input adds, in each of 58 layers: nothing arrives. The constant part comes only from the
# biases that every layer adds. With a norm, the difference keeps its size.

# %% [markdown]
# ## Going further: group norm forgets contrast (optional)
#
# Stable Diffusion's 32 groups would be instance norm on a feature map of 32 channels: each channel by itself. What is lost in that?
# Take the cup as a feature map of three channels, and a second print of it: darker, flat, orange.

# %%
faded = 0.4 * photo + torch.tensor([0.1, -0.3, -0.6])[:, None, None]
prints = torch.stack([photo, faded])
one, zero = torch.ones(3), torch.zeros(3)
by_image, by_channel = (group_norm(prints, groups, one, zero) for groups in (1, 3))
assert (by_channel[0] - by_channel[1]).abs().max() < 1e-3

# %%
rows = zip(prints, 0.4 * by_image, 0.4 * by_channel, strict=True)  # 0.4, because the norms lead out of [-1, 1]
fig = image_grid([*rows], row_labels=["original", "faded"], column_titles=["before", "1 group", "3 groups"])
alt = "A cup, and an orange, faded print of it. With one group the second stays orange, with three both look the same."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# Group norm removes a group's mean and standard deviation, nothing else. With three groups, one for each colour, the two prints become
# equal. With one group, the differences between the colours remain.
#
# Both are measured over the whole feature map. If a picture is cut into tiles, each tile has its own; so the seams can be seen (notebook 12).

# %%
with_the_rest = group_norm(photo[None], 1, one, zero)[..., :128]
alone = group_norm(photo[None, ..., :128], 1, one, zero)
print(f"the left half, with the rest and alone: max |Δ| = {(with_the_rest - alone).abs().max():.1f}")

# %% [markdown]
# ## Going further: units that stop learning (optional)
#
# What does a slope of 0 do to a unit that has to learn? Let `activation(input + bias)` learn to put out 1, from a start at which
# ReLU is 0 for all inputs:

# %%
inputs = torch.linspace(-1, 1, 11)
for activation, start in [(F.relu, -1.2), (F.silu, -1.2), (F.silu, -3.0)]:
    bias = torch.tensor(start, requires_grad=True)
    for _ in range(100):
        loss = (activation(inputs + bias) - 1).pow(2).mean()
        bias.data -= 0.5 * torch.autograd.grad(loss, bias)[0]
    print(f"{activation.__name__}: bias {start} -> {bias.item():.1f}")

# %% [markdown]
# ReLU never moves again: the unit is *dead*. SiLU finds its way from -1.2. From -3 it moves in the wrong direction, because left of its
# lowest point the slope is negative. SiLU reduces the problem but does not remove it.

# %% [markdown]
# ## Going further: do shortcuts help to learn? (optional)
#
# Let two stacks of 32 pieces try, both with norms. The task: tell where a photograph differs from its own blur. It needs neighbours, but no depth.
# Always answering 0 has an error of 1.


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
        error = net(x) / 4 - target  # a quarter, so that it starts out as small as the target
        loss = error.pow(2).mean() / target.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


torch.set_num_threads(1)  # layers this small gain nothing from a second core
losses = {"without shortcuts": learn(False), "with shortcuts": learn(True)}

# %%
smooth = {name: curve.unfold(0, 8, 1).mean(1) for name, curve in losses.items()}  # the mean of 8 steps
fig = lines(smooth, range(8, 61), xlabel="step", ylabel="error, mean of 8 steps", dashed=("without shortcuts",))
fig.axes[0].set_ylim(0, None)
show(fig, alt="Error over 60 steps. With shortcuts it falls fast and far; without, slowly, and it stays far above.")
assert smooth["with shortcuts"][-1] < smooth["without shortcuts"][-1] / 2

# %% [markdown]
# Yes: same layers, same weights at the start, same data, and less than half of the error. The gradient's size is hardly the
# reason, because Adam divides by it (Kingma & Ba 2015). One explanation, which this experiment does not prove: without shortcuts
# a piece first has to learn to pass its input on. A fresh block already does:

# %%
torch.manual_seed(0)
fresh, x = ResnetBlock2D(32, 32, groups=8), torch.randn(1, 32, 16, 16)
y = fresh(x).detach()
whole, branch = (torch.corrcoef(torch.stack([x, it]).flatten(1))[0, 1].abs() for it in (y, y - x))
print(f"correlation with the input: block {whole:.2f}, branch alone {branch:.2f}")

# %% [markdown]
# ## Summary
#
# 1. Without normalisation the values of a deep stack explode or shrink; group norm brings them back to size, for each image by itself.
# 2. Group norm's mean and variance run over a group's channels and all of H × W; weight and bias belong to channels; ε is 1e-6.
# 3. SiLU, x · σ(x), is a smooth activation. Its slope is 0 only at its lowest point, -1.28.
# 4. The shortcut gives every block a slope of 1 + something, so the gradient arrives.
# 5. The block, yours if 03.4 has passed, has the names, the parameters and the numbers of the package's.
#
# ### Check yourself
#
# <details><summary>You multiply a feature map by 2 and add 5, in all channels. What does group norm put out?</summary>
#
# The same as before, up to ε: it removes the group's mean and standard deviation. Multiply only *one* channel of a group by 2,
# and the result does change: differences between a group's channels remain.
# </details>
#
# <details><summary>Where in a block from 128 to 256 channels would a norm with 128 channels be right, and where with 256?</summary>
#
# norm1 sees the input: 128. norm2 comes after conv1, which has changed the number of channels: 256. The shortcut has no norm; it
# starts from x itself.
# </details>
#
# <details><summary>All names and shapes agree, all weights load, and yet the block's branch is off by 5e-5 of its size. Where do you look first?</summary>
#
# At settings that are in no state dict, and first at the ε of the norms: 1e-5 instead of 1e-6 had just this effect. On a nearly
# flat input it grows to a percent, which is no rounding error.
# </details>
#
# **Next:** notebook 04 makes feature maps smaller and larger, and lets distant pixels see each other: resampling and attention.
