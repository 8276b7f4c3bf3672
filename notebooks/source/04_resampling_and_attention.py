# %% [markdown]
# # 04 · Resampling and attention: how far one pixel sees
#
# {{badge}}
#
# Between the ResNet blocks of notebook 03 and a whole encoder, three parts are missing: one halves the map, one doubles it, and
# one lets every pixel look at every other. You build all three, and measure what one *latent pixel*, a place on the encoder's
# last map, sees of its image.
#
# **You will be able to**
#
# * put the zeros of the downsampling where Stable Diffusion has them, and say what the other place does to loaded weights;
# * double a map without a checkerboard, and say where the checkerboard stays all the same;
# * compute a receptive field on paper, and measure it with a gradient;
# * build attention and the block around it, and say what it costs.
#
# **You need** convolutions, softmax and autograd in PyTorch; GroupNorm from notebook [03](03_resnet_blocks.ipynb).
#
# {{budget}}

# %% tags=["environment"]

# %%
import copy
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import AutoencoderKL
from klvae_edu.blocks import Attention, Downsample2D, Upsample2D
from klvae_edu.data import photographs
from klvae_edu.exercises import check, hint, solution
from klvae_edu.plots import PALETTE, figure, image_grid, show

BLUE, ORANGE, GREY = *PALETTE[:2], "0.6"

# %% [markdown]
# ## 1. Where do the zeros go?
#
# Three times the encoder halves its map: a 3×3 convolution moves in steps of two (its *stride*). Take six pixels in a row,
# windows of three, steps of two. How many windows fit, and which pixel has to be made up?

# %%
pixels = torch.tensor([[[1, 2, 3, 4, 5, 6]]])
# unfold(2, 3, 2) cuts axis 2 into windows of three, in steps of two
print("a zero on the right ", F.pad(pixels, (0, 1)).unfold(2, 3, 2)[0, 0].tolist())
print("a zero on both sides", F.pad(pixels, (1, 1)).unfold(2, 3, 2)[0, 0].tolist())

# %% [markdown]
# Three windows either way, so no shape will tell the two apart. But the first row has its middles at 2, 4, 6, the second at 1,
# 3, 5. Stable Diffusion has the first (CompVis latent-diffusion, `Downsample` in `ldm/modules/diffusionmodules/model.py`).
#
# PyTorch's convolutions pad both sides alike, so `F.pad` adds the zeros, the last axis first: `(left, right, top, bottom)`.

# %% [markdown]
# One pixel: does it matter? Let every pixel carry its own position, and each convolution pass on the middle of its window.
# Where are the middles after three halvings?


# %%
def positions(padding, halvings=3):
    x, middle = torch.arange(24.0)[None, None], torch.tensor([[[0.0, 1.0, 0.0]]])
    for _ in range(halvings):
        x = F.conv1d(F.pad(x, padding), middle, stride=2)
    return x[0, 0].tolist()


# %%
print("a zero on the right ", positions((0, 1)))
print("a zero on both sides", positions((1, 1)))

# %% [markdown]
# Seven pixels apart: 1 + 2 + 4, for every halving makes the next one's pixel twice as large. A latent pixel stands for eight
# image pixels, say 0 to 7. Which of the two is in their middle?

# %%
fig, ax = figure(size=(7, 2.8))
for padding, color, marker, lift in [((0, 1), BLUE, "o", 0.12), ((1, 1), ORANGE, "s", -0.12)]:
    for halvings in range(1, 4):
        x = positions(padding, halvings)
        ax.plot(x, [halvings + lift] * len(x), marker, color=color)
    ax.plot([], [], marker, color=color, label="right only" if padding == (0, 1) else "both sides")
for left in (0, 8, 16):
    ax.axvspan(left - 0.5, left + 7.5, color=GREY, alpha=0.2 if left % 16 else 0.4, linewidth=0)
    ax.axvline(left + 3.5, color="black", linestyle="--", linewidth=1)
ax.set(xlabel="position in the row of pixels", ylabel="halvings", yticks=[1, 2, 3], ylim=(0.5, 3.5), xlim=(-1, 24))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="Window middles after one, two and three halvings: padded on the right they end at 7, 15, 23, padded on both sides at 0, 8, 16.",
)

# %% [markdown]
# Neither: the dashed middle of each grey stretch lies at 3.5. With zeros on the right each latent pixel looks 3.5 pixels too
# far to the right (and down), with zeros on both sides 3.5 too far to the left (and up). Trained weights expect one of them.

# %% [markdown]
# {{exercise 04.1}}
#
# Halve a map: zeros on the right and at the bottom, then the convolution with stride 2. The gradient must reach all three inputs.
# As always, `hint("04.1")` helps you on, `solution("04.1")` shows the finished code.


# %%
def downsample(x, weight, bias):
    """x (B, C, H, W), weight (C, C, 3, 3), bias (C,) -> (B, C, H // 2, W // 2)."""
    # BEGIN SOLUTION
    left, right, top, bottom = 0, 1, 0, 1
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride=2)
    # SKELETON
    #| padded = ...  # zeros on the right and at the bottom
    #| return ...    # F.conv2d in steps of two
    # END SOLUTION


downsample = check("04.1", downsample)

# %% [markdown]
# Count what each window sees: convolve 4 × 4 ones with ones. Then try an odd side: what becomes of seven pixels?

# %%
ones, zero = torch.ones(1, 1, 3, 3), torch.zeros(1)
print(downsample(torch.ones(1, 1, 4, 4), ones, zero)[0, 0].tolist())

# %%
odd = torch.ones(1, 1, 7, 7)
print("zeros on the right and at the bottom", tuple(downsample(odd, ones, zero).shape[2:]))
print("zeros on all sides                  ", tuple(F.conv2d(odd, ones, stride=2, padding=1).shape[2:]))

# %% [markdown]
# Nine pixels inside, six at an edge, four in the corner at the bottom right. Half of seven is rounded down, to H // 2. With
# zeros on all sides it is rounded up. The numbers are wrong for every size, the shape for odd ones only.

# %% [markdown]
# Now break it. Here is the other downsampling, with parameters of the same names and shapes. Put it into a whole encoder (of
# `mini`, a small preset of this package): will the weights load?


# %%
class SymmetricDownsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


# %%
encoder = AutoencoderKL.from_preset("mini", seed=0).encoder
symmetric = copy.deepcopy(encoder)
for block in symmetric.down_blocks:
    block.downsamplers = nn.ModuleList(SymmetricDownsample(old.conv.in_channels) for old in block.downsamplers)
print(symmetric.load_state_dict(encoder.state_dict()))

# %% [markdown]
# Not a word of complaint. Now give both encoders a photograph, the same window of it. If the symmetric one looks seven pixels
# further up and left, what happens when its window moves by seven pixels down and right?

# %%
photo = photographs("held-out")["chelsea"][None]
with torch.no_grad():
    expected = encoder(photo[:, :, 20:276, 100:356])
    moved = [symmetric(photo[:, :, 20 + s : 276 + s, 100 + s : 356 + s]) for s in range(15)]
errors = [((z - expected).norm() / expected.norm()).item() for z in moved]
print(f"relative error: {errors[0]:.0%} in place, {errors[7]:.0%} moved by seven pixels")

# %%
fig, ax = figure(size=(6, 3))
ax.plot(range(15), errors, "o-", color=BLUE)
ax.set(xlabel="pixels by which the symmetric encoder's picture is moved", ylabel="relative error", ylim=(0, 1.2))
show(
    fig, alt="The relative error over the shift is about one, but for a sharp notch that reaches down to 0.13 at seven."
)
assert min(errors) == errors[7] < 0.2 and sorted(errors)[1] > 0.5

# %% [markdown]
# A notch at exactly seven: the wrong padding neither blurs nor brightens, it looks at other pixels. These weights are random, but
# with any weights the notch would be there. And what remains of the error?

# %%
for margin in (4, 8, 14):
    inner, right = (z[:, :, margin:-margin, margin:-margin] for z in (moved[7], expected))
    print(f"relative error without the outer {margin:2} of 32: {(inner - right).norm() / right.norm():.0%}")

# %% [markdown]
# Most of it sits at the border, where zeros come in from different sides. But a rest stays, even in the middle 4 × 4. Something
# carries news of the border across the whole map: section 3 will find it.

# %% [markdown]
# ## 2. How is a map doubled without a pattern?
#
# The way back seems obvious: a *transposed* convolution with stride 2. It puts copies of its kernel two pixels apart, one for
# each input pixel, and adds up what overlaps. Five ones, a kernel of three ones: what comes out? Do four help?

# %%
row = torch.ones(1, 1, 5)
for weights in ([1, 1, 1], [1, 1, 1, 1], [1, 2, 3, 4]):
    sums = F.conv_transpose1d(row, torch.tensor([[weights]]).float(), stride=2)
    print("transposed", f"{weights!s:12}", sums[0, 0].int().tolist())
sums = F.conv1d(row.repeat_interleave(2, dim=2), torch.tensor([[[1.0, 2.0, 3.0]]]), padding=1)
print("repeated   [1, 2, 3]   ", sums[0, 0].int().tolist())

# %% [markdown]
# Three wide: every other pixel counts twice. Four wide: twice everywhere inside. Yet with other weights, pixels get 1 + 3 and
# 2 + 4 in turn, and nothing makes such sums agree.
#
# Last line: each pixel is repeated (*nearest neighbour*), then convolved: all weights for all, but at the border. In two
# dimensions:

# %%
square, kernel = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
counts = {
    "transposed convolution": F.conv_transpose2d(square, kernel, stride=2)[0, 0],
    "nearest, then convolution": F.conv2d(F.interpolate(square, scale_factor=2.0), kernel, padding=1)[0, 0],
}
fig, axes = figure(1, 2, size=(7, 3.6))
for ax, (name, grid) in zip(axes, counts.items(), strict=True):
    ax.imshow(grid, cmap="Blues", vmin=0, vmax=14)
    for (i, j), count in zip(torch.cartesian_prod(*[torch.arange(len(grid))] * 2), grid.flatten(), strict=True):
        ax.text(j, i, f"{count:.0f}", ha="center", va="center")
    ax.set(title=name, xticks=[], yticks=[])
    ax.grid(False)
show(
    fig,
    alt="Counts of contributions: a checkerboard of 1, 2 and 4 on the left; 9 everywhere on the right, fewer at the border.",
)
assert counts["transposed convolution"].unique().tolist() == [1, 2, 4]

# %% [markdown]
# One, two, four: a *checkerboard* before anything is learned (Odena, Dumoulin & Olah 2016, "Deconvolution and Checkerboard
# Artifacts"). Training can balance the weights, and often does not quite. Their advice is the one on the right: first repeat,
# then convolve.

# %% [markdown]
# {{exercise 04.2}}
#
# Double a map: repeat every pixel 2 × 2, then a 3×3 convolution that keeps the size. The gradient must reach all inputs here, too.


# %%
def upsample(x, weight, bias):
    """x (B, C, H, W), weight (C, C, 3, 3), bias (C,) -> (B, C, 2H, 2W)."""
    # BEGIN SOLUTION
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.conv2d(doubled, weight, bias, padding=1)
    # SKELETON
    #| doubled = ...  # [1, 2] becomes [1, 1, 2, 2], along both axes
    #| return ...     # F.conv2d
    # END SOLUTION


upsample = check("04.2", upsample)

# %% [markdown]
# Three doublings in a row with random weights, as at the start of a training. What do they make of a map that is the same
# everywhere, and of one that changes slowly? Both ways of doubling get the same random numbers as weights.


# %%
@torch.no_grad()
def three_doublings(z, transposed):
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        weight = torch.randn(32, 32, 3, 3, generator=generator) / 12
        if transposed:
            z = F.silu(F.conv_transpose2d(z, weight, stride=2, padding=1, output_padding=1))
        else:
            z = F.silu(upsample(z, weight, torch.zeros(32)))
    return torch.einsum("bchw,ck->bkhw", z, torch.randn(32, 3, generator=generator))


# %% [markdown]
# Maps of 32 channels on 8 × 8 pixels become pictures of 3 channels on 64 × 64. An even map should stay even, at least in the
# middle, out of reach of the border.

# %%
generator = torch.Generator().manual_seed(1)
even = torch.randn(1, 32, 1, 1, generator=generator).expand(1, 32, 8, 8)
slow = F.interpolate(torch.randn(1, 32, 3, 3, generator=generator), size=8, mode="bicubic")
pictures = [[three_doublings(z, transposed)[0] for transposed in (True, False)] for z in (even, slow)]
spreads = [picture[:, 16:-16, 16:-16].std((1, 2)).max() for picture in pictures[0]]
assert spreads[0] > 0.05 and spreads[1] < 1e-5

# %%
stretched = [[(x - x.mean((1, 2), keepdim=True)) / (2.5 * x.std()) for x in row] for row in pictures]
stretched = [F.interpolate(torch.stack(row), scale_factor=3.0) for row in stretched]
fig = image_grid(stretched, row_labels=["even", "slow"], column_titles=["transposed", "nearest"])
show(
    fig,
    alt="Left column: fine coloured chequers over both pictures. Right column: a flat square with a frame; soft patches and stripes with a frame.",
)

# %% [markdown]
# (Each picture is stretched to its own contrast.) On the left, a pattern that nobody asked for. On the right, the even map stays even, but for a frame, where the padding's zeros
# creep in. The slow map has the frame, too, and soft stripes, but no chequers.

# %% [markdown]
# The price: the convolution runs on the large map, with four times as many multiplications as on the small one. Does it need
# them all? Look at its windows in a row of repeated pixels:

# %%
windows = torch.tensor([1, 1, 2, 2, 3, 3]).unfold(0, 3, 1)
print(windows.tolist())
print("from one result to the next:", (windows * torch.tensor([1, 2, 3])).sum(1).diff().tolist())

# %% [markdown]
# Two different pixels in a window, in two dimensions four: four weights could do the work of nine (notebook 12). And on this
# slope, the kernel 1, 2, 3 makes steps of 2 and 4: only on flat maps is the pattern quite gone.

# %% [markdown]
# And in the encoder? Run backwards, a convolution with stride 2 *is* a transposed convolution. Guess the gradient of
# the sum over your `downsample`:

# %%
x = torch.ones(1, 1, 8, 8, requires_grad=True)
downsample(x, ones, zero).sum().backward()
print(x.grad[0, 0, :4].int().tolist())

# %% [markdown]
# There it is again: some pixels count four times as much as their diagonal neighbours. Nearest neighbour saves the pictures of the
# decoder; the gradient that flows back through the encoder is still uneven (Odena et al. point this out, too).

# %% [markdown]
# ## 3. What does one latent pixel see?
#
# What an output pixel depends on is its *receptive field*. For one 3×3 convolution, that is three pixels in a row. For two, one
# after the other? And if the first has a stride of two? Measure it: outside, the gradient is zero.


# %%
def seen(*strides):
    x = torch.zeros(1, 1, 63, requires_grad=True)
    y = x
    for stride in strides:
        y = F.conv1d(y, torch.ones(1, 1, 3), stride=stride, padding=1)
    y[0, 0, y.shape[2] // 2].backward()
    return int(x.grad.count_nonzero())


# %%
for strides in [(1,), (1, 1), (2, 1), (2, 1, 1), (2, 2, 1)]:
    print("strides", strides, "see", seen(*strides))

# %% [markdown]
# Each kernel of k reaches k - 1 pixels further. But behind a stride of two, neighbours on the map are two input pixels apart, and
# behind two such strides four. For layers 1, 2, … from input to output, the field is r pixels wide:
#
# $$r = 1 + \sum_l (k_l - 1) \prod_{i<l} s_i$$

# %% [markdown]
# {{exercise 04.3}}
#
# Compute the receptive field of a stack of layers. Does it give the five numbers above?


# %%
def receptive_field(layers):
    """layers: (kernel, stride) pairs from input to output -> the pixels in a row that one output pixel sees."""
    # BEGIN SOLUTION
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field
    # SKELETON
    #| field, jump = 1, 1  # pixels seen so far; distance of two neighbours on the map, in input pixels
    #| for kernel, stride in layers:
    #|     field = ...
    #|     jump = ...
    #| return field
    # END SOLUTION


receptive_field = check("04.3", receptive_field)

# %%
[receptive_field([(3, stride) for stride in strides]) for strides in [(1,), (1, 1), (2, 1), (2, 1, 1), (2, 2, 1)]]

# %% [markdown]
# And Stable Diffusion's encoder, the preset `sd-v1`? A latent pixel *stands for* eight image pixels in a row. How many does it
# *see*: 20, 100, more? (On the `meta` device a model has shapes, but no numbers. The 1×1 shortcuts may stand in the row: for
# them, k - 1 is 0.)

# %%
with torch.device("meta"):
    sd = AutoencoderKL.from_preset("sd-v1").encoder
layers = [(layer.kernel_size[0], layer.stride[0]) for layer in sd.modules() if isinstance(layer, nn.Conv2d)]
field = receptive_field(layers)
print(f"{len(layers)} convolutions see {field} pixels in a row, {field**2 / 256**2:.0%} of a picture of 256 × 256")
print("of these, the 9 behind the last stride add", 8 * (receptive_field(layers[-9:]) - 1))

# %% [markdown]
# Two thirds are added at the bottom, where each step is eight pixels wide.
#
# Now measure it on a thinner model with the same layers: the gradient of the latent pixel (16, 16). At first, mean and spread in
# each norm are held fixed, for a reason that you will see.


# %%
def fixed(norm, x):
    """GroupNorm as it is before training, but its mean and spread are mere numbers: no gradient goes through them."""
    groups = x.unflatten(1, (norm.num_groups, -1))
    variance, mean = torch.var_mean(groups.detach(), (2, 3, 4), correction=0, keepdim=True)
    return ((groups - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)


def thin_encoder(attention, norms):
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, mid_block_add_attention=attention)
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm) and norms == "fixed":
            layer.forward = partial(fixed, layer)
    return model.encoder.double()  # in float32, the faintest gradients would be lost


# %%
def what_one_latent_pixel_sees(encoder):
    """The size of its gradient with respect to each pixel of the photograph, (256, 256)."""
    x = photo[:, :, 20:276, 100:356].double().requires_grad_()
    encoder(x)[0, :, 16, 16].sum().backward()
    return x.grad[0].abs().sum(0)


seen_by = {
    "convolutions": what_one_latent_pixel_sees(thin_encoder(attention=False, norms="fixed")),
    "with attention": what_one_latent_pixel_sees(thin_encoder(attention=True, norms="fixed")),
    "with norms": what_one_latent_pixel_sees(thin_encoder(attention=False, norms="as they are")),
}

# %% [markdown]
# Which rows of the photograph get any gradient at all? The formula says how many; section 1 says around which one.

# %%
rows = seen_by["convolutions"].any(1).nonzero()
first, last = rows.min().item(), rows.max().item()
print(f"rows {first} to {last}: {last - first + 1} pixels, the middle at {(first + last) // 2} = 8 · 16 + 7")
assert last - first + 1 == receptive_field(layers)

# %% [markdown]
# Counted and measured agree to the pixel, and the middle lies seven pixels beyond 8 · 16: that is section 1. Which pixels of
# that square matter? What changes with attention, the norms still fixed? And what with norms as they are, without attention?

# %%
titles = ["convolutions", "attention, norms fixed", "norms, no attention"]
fig, axes = figure(1, 3, size=(9, 3.2))
for ax, title, gradient in zip(axes, titles, seen_by.values(), strict=True):
    strength = (gradient / gradient.max()).log10().where(gradient > 0, torch.nan)
    image = ax.imshow(strength, cmap="viridis", vmin=-8, vmax=0)
    ax.set(title=title, xticks=[0, 135, 255], yticks=[0, 135, 255])
    ax.spines[:].set_visible(True)  # the photograph's edge
    ax.grid(False)
fig.colorbar(image, ax=axes, label="log10 of the gradient", shrink=0.9)
show(
    fig,
    alt="A bright spot and the cat's eyes, fading inside a square, white outside; twice the same on a dim floor that fills the picture.",
)

# %%
for name, gradient in seen_by.items():
    half = gradient[135 - 54 : 135 + 55, 135 - 54 : 135 + 55].sum() / gradient.sum()
    far = 1 - gradient[first : last + 1, first : last + 1].sum() / gradient.sum()
    print(f"{name:15} {half:3.0%} in the inner half, 109 × 109; {far.abs():.0%} outside the square of 217")
reached = [int(gradient.count_nonzero()) for gradient in seen_by.values()]
assert reached == [217**2, 256**2, 256**2]

# %% [markdown]
# *Seeing is not looking.* Convolutions see 217 pixels, but nearly all of the gradient falls into the inner half, a quarter of the
# area: many paths lead to the middle, few to the rim. That is the *effective* receptive field (Luo et al. 2016), here for random
# weights.

# %% [markdown]
# White is exactly zero. Attention leaves none: it asks everywhere. Nor do norms: GroupNorm divides by the spread of the *whole*
# map. (The cat's eyes shine in all three: what a SiLU lets through depends on its input.) Either can
# have brought the border's news to section 1's middle 4 × 4, which is out of the convolutions' reach.

# %% [markdown]
# So norms reach as far as attention, and here they take more from outside. But what a norm brings from afar is one mean and one
# spread, the same for all pixels of a group. In attention, each pixel asks for itself.

# %% [markdown]
# ## 4. How can one place ask another?
#
# A convolution weighs pixels by *where* they are, attention by *what* they are. Each *token* (for us: a pixel with its channels)
# has a key (what I am), a value (what I have to tell) and a query (what I look for). Which of five tokens will this query find?

# %%
keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
values = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
query = torch.tensor([4.0, 0.0])
print("scores", (keys @ query).tolist())

# %%
weights = torch.softmax(keys @ query, dim=0)
print("weights", [round(weight, 2) for weight in weights.tolist()], " sum", round(weights.sum().item(), 2))
print("answer ", round((weights @ values).item(), 1))

# %% [markdown]
# Tokens 1 and 3 have the key that is looked for. They get nearly all of the *attention weights* (no parameters: they are made
# anew for every input), and the answer is near 20, the average of *their* values. For N queries, keys and values of C numbers
# each (Vaswani et al. 2017, section 3.2.1):
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt C}\right) V$$

# %% [markdown]
# Why √C? A score is a sum of C products. How large does it get for random queries and keys, as C grows from 4 to 512, the
# width of Stable Diffusion's attention?

# %%
torch.manual_seed(0)
for channels in (4, 64, 512):
    q, k = torch.randn(2, 10_000, channels)
    spread = (q * k).sum(1).std()
    print(f"C = {channels:3}   spread of the scores {spread:2.0f}   √C {channels**0.5:2.0f}   exp {spread.exp():.0e}")

# %% [markdown]
# About √C, as the variances of C products add up. After exp, such differences become factors of billions, and one key gets
# nearly everything. What is then left of an output's gradient at the scores, from which queries and keys learn?


# %%
def saturation(channels, scale):
    """Of 256 queries on as many keys: the average largest weight, and the median of the gradients at their scores."""
    q, k, v = torch.randn(3, 256, channels, generator=torch.Generator().manual_seed(channels))
    scores = (q @ k.T * scale).requires_grad_()
    weights = torch.softmax(scores, dim=1)
    (weights @ v)[:, 0].sum().backward()
    return weights.max(1).values.mean().item(), scores.grad.norm(dim=1).median().item()


widths = [4, 16, 64, 256, 1024, 4096]
plain = [saturation(channels, 1.0) for channels in widths]
scaled = [saturation(channels, channels**-0.5) for channels in widths]

# %%
fig, axes = figure(1, 2, size=(8, 3))
for ax, column, title in zip(axes, (0, 1), ("largest of 256 weights", "gradient at the scores, median"), strict=True):
    ax.semilogx(widths, [row[column] for row in plain], "o-", color=ORANGE, label="without scale")
    ax.semilogx(widths, [row[column] for row in scaled], "s-", color=BLUE, label="divided by √C")
    ax.set(title=title, xlabel="C", ylim=(0, None))
axes[0].legend()
show(
    fig,
    alt="Over C: without a scale the largest weight climbs towards 1; the gradient rises up to C = 16, then falls to 0. With it both stay level.",
)
assert plain[-1][0] > 0.9 and plain[-1][1] < 0.01 * plain[0][1]
assert scaled[-1][0] < 0.1 and scaled[-1][1] > 0.5 * scaled[0][1]

# %% [markdown]
# Without the scale, softmax becomes a choice as C grows. While it still wavers between a few keys (C = 16), the gradient is even
# larger; once it has chosen, next to nothing is left for most queries. Divided by √C, scores have a spread of one at any width.

# %% [markdown]
# {{exercise 04.4}}
#
# Write attention for a batch; there, `k.T` becomes `k.transpose(1, 2)`. Whose weights must sum to one: those of a query over all
# keys, or those of a key over all queries? The gradient must reach q, k and v.


# %%
def attention(q, k, v):
    """q, k, v (B, N, C) -> (B, N, C): for each query the average of the values, weighted over the keys."""
    # BEGIN SOLUTION
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores, dim=-1)
    return weights @ v
    # SKELETON
    #| scores = ...   # (B, N, N): each query times each key, scaled
    #| weights = ...  # a query's weights over all keys sum to 1
    #| return ...
    # END SOLUTION


attention = check("04.4", attention)

# %% [markdown]
# PyTorch has the same in one call, faster and with less memory (section 6). Does it agree?

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 100, 64)
difference = attention(q, k, v) - F.scaled_dot_product_attention(q, k, v)
print("max |Δ| < 1e-5:", bool(difference.abs().max() < 1e-5))

# %% [markdown]
# ## 5. How does a map go through attention?
#
# A map has to become a row of tokens: one per pixel, each with the pixel's C channels. Here is a map of two channels on 2 × 2
# pixels. Which of the two rearrangements gives pixels?

# %%
x = torch.tensor([[[1, 2], [3, 4]], [[10, 20], [30, 40]]])[None]  # (B, C, H, W)
print("flatten, transpose:", x.flatten(2).transpose(1, 2)[0].tolist())
print("reshape:           ", x.reshape(1, 4, 2)[0].tolist())

# %% [markdown]
# The first: (1, 10) is the pixel at the top left. The reshape has the right shape, but makes a token of two neighbours. Nothing
# complains, and on the way back the same trap waits again.

# %% [markdown]
# The whole block, in order: GroupNorm, tokens, three linear layers for queries, keys and values, attention, one more linear
# layer, back into a map, plus the input.

# %% [markdown]
# Some networks split the channels into several *heads*, each with attention of its own. Stable Diffusion's block has one, with
# all 512 channels. How large is its scale, and how many parameters do four linear layers with biases and a norm have?

# %%
print(f"scale {512**-0.5:.4f}, parameters {4 * (512 * 512 + 512) + 2 * 512:,}")

# %% [markdown]
# {{exercise 04.5}}
#
# Build the block, with these names: `group_norm` (eps 1e-6), `to_q`, `to_k`, `to_v`, and `to_out`, an `nn.ModuleList` of one
# linear layer, which is used as `self.to_out[0]`. (Diffusers keeps a dropout beside it: hence the list.)


# %%
class AttentionBlock(nn.Module):
    """(B, C, H, W) -> the same shape: to every pixel is added what it gathers from all pixels."""

    def __init__(self, channels, groups):
        super().__init__()
        # BEGIN SOLUTION
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        # SKELETON
        #| self.group_norm = ...
        #| self.to_q = ...
        #| self.to_k = ...
        #| self.to_v = ...
        #| self.to_out = ...
        # END SOLUTION

    def forward(self, x):
        # BEGIN SOLUTION
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        out = self.to_out[0](out)
        return x + out.transpose(1, 2).reshape(x.shape)
        # SKELETON
        #| tokens = ...  # normalised, (B, H·W, C)
        #| out = ...     # attention, then to_out
        #| return ...    # a map again, plus the input
        # END SOLUTION


AttentionBlock = check("04.5", AttentionBlock)

# %% [markdown]
# Does the block know where its pixels are? Shuffle them, run the block, and compare with the shuffled result. The same for a
# convolution:

# %%
torch.manual_seed(0)
x, order = torch.randn(1, 16, 6, 6), torch.randperm(36)


def shuffle(x):
    return x.flatten(2)[:, :, order].view_as(x)


# %%
for layer in (AttentionBlock(16, 4), nn.Conv2d(16, 16, 3, padding=1)):
    agrees = torch.allclose(layer(shuffle(x)), shuffle(layer(x)), atol=1e-5)
    print(f"{type(layer).__name__:15} shuffled before or after, the same: {agrees}")

# %% [markdown]
# It does not. To attention a map is a bag of pixels. It is the convolutions around it that know about places.

# %% [markdown]
# ## 6. What does it cost?
#
# Every pixel weighs every pixel: N = H·W tokens have N² attention weights. The block stands only at the bottom, on a 64 × 64
# map for a 512 × 512 image. How much memory would they fill at the top?

# %%
for side in (32, 64, 128, 512):
    tokens = side * side
    print(f"map {side:3} × {side:3}   {tokens:7,} tokens   attention weights {4 * tokens**2 / 2**30:8.3g} GiB")

# %% [markdown]
# Twice the side, sixteen times the attention weights: 256 GiB at the top, in single precision. At the bottom of a 512 × 512
# image they are a sixteenth of a gibibyte, of a 1024 × 1024 image a whole one. But must they all exist at once?

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1024, 64)
chunks = torch.cat([attention(some, k, v) for some in q.split(128, dim=1)], dim=1)
print("max |Δ| < 1e-5:", bool((chunks - attention(q, k, v)).abs().max() < 1e-5))

# %% [markdown]
# No: each query is answered by itself. With 128 of 1,024 at a time, they take an eighth of the memory. Fast kernels never write
# them down (Dao et al. 2022, "FlashAttention").
#
# In the finished model, `vae.set_attention_backend("chunked")` chooses this loop, `"eager"` what you wrote, `"sdpa"` PyTorch's
# call, the default.

# %% [markdown]
# ## 7. Who looks at whom?
#
# Take a photograph of 40 × 60 pixels, with its colours as tokens. In an untrained network queries and keys are random projections
# of these. How many times its share of 1/N will a query's favourite key get?

# %%
small = F.interpolate(photographs("held-out")["coffee"][None], size=(40, 60), mode="area")
colours = small.flatten(2).transpose(1, 2)
colours = (colours - colours.mean(1)) / colours.std(1)  # (1, N, 3)


# %%
def weights_of(q, k):
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)[0]


torch.manual_seed(0)
with torch.no_grad():
    untrained = weights_of(nn.Linear(3, 64)(colours), nn.Linear(3, 64)(colours))
largest = 2400 * untrained.amax(1)
print(f"{largest.median():.1f} times for the median query, {largest.quantile(0.9):.1f} or more for a tenth of them")

# %% [markdown]
# Some queries are choosy, but for what is left to chance. Now make queries and keys by hand, so that each pixel looks for its own
# colour. Would q = k = colour do? No: q · k grows with the *length* of k, and extreme colours would win.

# %% [markdown]
# One channel more mends it. With q = (c, 1) and k = (c', -½ |c'|²), the score is c · c' - ½ |c'|². That is -½ |c - c'|², up to a
# number that is the same for all keys. Softmax divides that out.

# %%
length = colours.pow(2).sum(-1, keepdim=True)
q = 8 * torch.cat([colours, torch.ones_like(length)], dim=-1)  # 8: choosy (4, after √4)
k = torch.cat([colours, -0.5 * length], dim=-1)
handmade = weights_of(q, k)
assert (handmade.argmax(1) == torch.arange(2400)).float().mean() > 0.99  # nothing is more like a pixel than itself

# %% [markdown]
# Three queries: a pixel on the rim of the cup, one on its saucer, one on the light wood at the left. Which parts of the picture
# will each of them find? (In each map, white is the map's own largest weight.)


# %%
def one_query(row, column):
    """The photograph with a frame around the query, and its attention weights in both cases, the largest of them white."""
    marked = small[0].clone()
    marked[:, row - 2 : row + 3, column - 2 : column + 3] = -1
    marked[:, row - 1 : row + 2, column - 1 : column + 2] = small[0, :, row - 1 : row + 2, column - 1 : column + 2]
    grids = [weights[row * 60 + column].view(1, 40, 60) for weights in (untrained, handmade)]
    captions = ["", *(f"max {grid.max() * 2400:.1f} / N" for grid in grids)]
    images = [marked, *(2 * grid / grid.max() - 1 for grid in grids)]
    return [F.interpolate(image[None], scale_factor=3.0)[0] for image in images], captions


rows, captions = zip(*(one_query(*place) for place in [(10, 18), (20, 44), (30, 3)]), strict=True)

# %%
columns, names = ["query", "untrained", "by colour"], ["rim", "saucer", "wood"]
fig = image_grid(rows, row_labels=names, column_titles=columns, captions=captions)
show(
    fig,
    alt="A cup with a framed pixel on its rim, its saucer, the wood. By colour, these light up; untrained, other things do, such as shadows.",
    format="jpeg",
)

# %% [markdown]
# By colour, the rim finds the whole rim, the saucer its lit parts on both sides. The wood finds light wood on the other side of
# the cup, and the cup's inner wall as well: the colour is the same.

# %% [markdown]
# But be careful: this is what attention *can* do, with queries and keys made by hand. What a trained block looks for is another
# question.

# %% [markdown]
# ## 8. Is it the same as the real one?
#
# Now the proof: your three parts and the real ones, with the same random weights, in double precision, where nothing can hide
# behind rounding. (In the place of a part that has not passed, `check` has put the finished one.)


# %%
def randomised(module):
    for index, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return module.double()


# %%
@torch.no_grad()
def largest_difference(down, up, block):
    """Between your three parts and these, on the weights of these."""
    x = torch.randn(2, 32, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    yours = AttentionBlock(32, 8).double()
    yours.load_state_dict(block.state_dict())
    differences = [
        downsample(x, down.conv.weight, down.conv.bias) - down(x),
        upsample(x, up.conv.weight, up.conv.bias) - up(x),
        yours(x) - block(x),
    ]
    return max(difference.abs().max() for difference in differences)


# %% [markdown]
# Your block takes over the real one's weights by name. First against this package:

# %%
finished = [randomised(part) for part in (Downsample2D(32), Upsample2D(32), Attention(32, groups=8))]
print("klvae_edu: max |Δ| < 1e-10:", bool(largest_difference(*finished) < 1e-10))

# %% [markdown]
# Then against diffusers, where it is installed. There, `padding=0` stands for zeros on the right and at the bottom. Its attention
# can do much more, so that it takes some arguments to make it do just this:

# %%
try:
    from diffusers.models import attention_processor, resnet

    theirs = [
        resnet.Downsample2D(32, use_conv=True, padding=0, name="op"),
        resnet.Upsample2D(32, use_conv=True),
        attention_processor.Attention(
            32, heads=1, dim_head=32, norm_num_groups=8, eps=1e-6, residual_connection=True, bias=True,
            upcast_softmax=True, _from_deprecated_attn_block=True,
        ),
    ]  # fmt: skip
    theirs = [randomised(part) for part in theirs]
    print("diffusers: max |Δ| < 1e-10:", bool(largest_difference(*theirs) < 1e-10))
except ImportError:
    print("diffusers is not installed: compared with klvae_edu only")

# %% [markdown]
# ## Summary
#
# 1. Downsampling pads right and bottom only; padding on both sides loads every weight and looks at other pixels.
# 2. Nearest neighbour plus a convolution leaves flat maps flat; a transposed convolution chequers them, and so does every strided one's gradient.
# 3. r = 1 + Σ (k - 1) · (product of the strides before): 217 pixels, of which those near the middle count most.
# 4. Attention averages values by softmax(q kᵀ / √C) over the keys; it knows contents and no places.
# 5. Its N² weights are why it stands at the smallest map; they need not all be written down.
#
# ### Check yourself
#
# <details><summary>An encoder loads without an error, and its latents fit only a picture that is moved by seven pixels. What do you look at first?</summary>
#
# The padding of the downsampling. A symmetric one has the same parameters and, for even sides, the same shapes, and it looks
# further up and left: by 1 + 2 + 4 pixels.
# </details>
#
# <details><summary>Would a transposed convolution with a kernel of 4 have been good enough?</summary>
#
# Its overlap is even: each pixel gets contributions from the same number of inputs. But even and odd places use different
# weights, and nothing makes their sums agree: 4 and 6 in section 2.
# </details>
#
# <details><summary>You leave out the scale 512^-0.5 in a trained model. Does anything complain, and what becomes of the attention weights?</summary>
#
# Nothing does: the shapes are right. But every score is √512 ≈ 23 times as large, which raises each attention weight to the 23rd
# power before they are made to sum to one again: large ones grow, small ones vanish.
# </details>
#
# **Next:** [05, the whole architecture](05_kl_f8_architecture.ipynb) puts the parts together: encoder, decoder, 83,653,863 parameters, and real weights.
