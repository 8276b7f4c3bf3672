# %% [markdown]
# # 04 · Resampling and attention: how far one pixel sees
#
# {{badge}}
#
# You build the three parts that are still missing: one halves the feature map, one doubles it, and one lets every pixel look at
# all others. You measure how much of its image one *latent pixel*, a pixel of the encoder's last map, depends on.
#
# **You will be able to**
#
# * halve a feature map as Stable Diffusion does, and double it without a checkerboard;
# * compute a receptive field on paper, and measure it with a gradient;
# * build attention and the block around it, and say what it costs.
#
# **You need** convolutions, softmax and autograd in PyTorch; GroupNorm from [03](03_resnet_blocks.ipynb).
#
# {{budget}}

# %% tags=["environment"]

# %%
import copy

import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import AutoencoderKL
from klvae_edu.blocks import Attention, Downsample2D, Upsample2D
from klvae_edu.data import photographs
from klvae_edu.diagrams import show_diagram
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.plots import PALETTE, figure, image_grid, lines, maps, show

BLUE, ORANGE, GREY = *PALETTE[:2], "0.6"

# %% [markdown]
# ## 1. Downsampling: zeros on one side only
#
# A *feature map*, in short a map, is the output of a layer: C channels of H × W pixels. The encoder halves its sides three times,
# the decoder doubles them three times:

# %%
show_diagram("resampling")

# %% [markdown]
# The halving is a 3×3 convolution with a *stride* of two: its window moves two pixels at a time. In a row of six pixels, three
# windows of three fit only with an added zero:

# %%
pixels = torch.tensor([[[1, 2, 3, 4, 5, 6]]])
# unfold(2, 3, 2) cuts axis 2 into windows of three, in steps of two
print("a zero on the right ", F.pad(pixels, (0, 1)).unfold(2, 3, 2)[0, 0].tolist())
print("a zero on both sides", F.pad(pixels, (1, 1)).unfold(2, 3, 2)[0, 0].tolist())

# %% [markdown]
# Both give three windows (the second leaves its right zero over), but with their middles at 2, 4, 6 and at 1, 3, 5. Stable
# Diffusion has the first (CompVis latent-diffusion, `Downsample` in `model.py`). PyTorch's convolutions pad both sides alike, so
# `F.pad` adds the zeros, the last axis first: `(left, right, top, bottom)`.
#
# To follow this over three halvings, let every pixel hold its own position, and every convolution pass on the middle of its window:


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
# They end seven pixels apart: 1 + 2 + 4, because each halving doubles the size of a pixel. A latent pixel stands for eight image
# pixels, such as 0 to 7. Compare their middle with both paddings:

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
    alt="Middles of the windows after one, two and three halvings. Each grey stretch is eight pixels wide, with a dashed line in its middle. After three halvings, padding on the right gives 7, 15, 23, padding on both sides gives 0, 8, 16.",
)

# %% [markdown]
# Neither is centred. With zeros on the right a latent pixel looks 3.5 pixels too far right (and down), with zeros on both sides 3.5
# too far left (and up). Trained weights fit only one of the two.

# %% [markdown]
# {{exercise 04.1}}
#
# Halve a map: zeros on the right and at the bottom, then the convolution with stride 2. The gradient must reach all inputs.
# (`hint("04.1")` helps.)


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

# %%
ones, zero = torch.ones(1, 1, 3, 3), torch.zeros(1)  # a kernel of ones counts the pixels in its window
print("pixels in each window:", downsample(torch.ones(1, 1, 4, 4), ones, zero)[0, 0].tolist())
odd = torch.ones(1, 1, 7, 7)
print("7 × 7, zeros right and bottom:", tuple(downsample(odd, ones, zero).shape[2:]))
print("7 × 7, zeros on all sides:    ", tuple(F.conv2d(odd, ones, stride=2, padding=1).shape[2:]))

# %% [markdown]
# Half of seven is rounded down, with zeros on all sides up. For even sides, the shapes are equal.
#
# Now break it: put a symmetric downsampling, with the same parameters, into a whole encoder (of `mini`, a small *preset*, a named
# configuration of this package).


# %%
class SymmetricDownsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


encoder = AutoencoderKL.from_preset("mini", seed=0).encoder
symmetric = copy.deepcopy(encoder)
for block in symmetric.down_blocks:
    block.downsamplers = nn.ModuleList(SymmetricDownsample(old.conv.in_channels) for old in block.downsamplers)
print(symmetric.load_state_dict(encoder.state_dict()))

# %% [markdown]
# No error. Now show both encoders the same crop of a photograph. The symmetric one looks seven pixels further up and left. What
# happens when it gets a crop seven pixels further down and right?

# %%
photo = photographs("held-out")["chelsea"][None]  # held out: used for no training
with torch.no_grad():
    expected = encoder(photo[:, :, 20:276, 100:356])
    moved = [symmetric(photo[:, :, 20 + s : 276 + s, 100 + s : 356 + s]) for s in range(15)]
errors = [((z - expected).norm() / expected.norm()).item() for z in moved]
print(f"relative error: {errors[0]:.0%} in place, {errors[7]:.0%} moved by seven pixels")

fig = lines({"error": errors}, xlabel="pixels by which the symmetric encoder's crop is moved", ylabel="relative error")
fig.axes[0].set_ylim(0, 1.2)
show(
    fig,
    alt="Relative difference of the two encoders' results. It is above 0.6 for every shift except seven, where it falls to 0.13.",
)
assert min(errors) == errors[7] < 0.2 and sorted(errors)[1] > 0.6

# %% [markdown]
# At exactly seven pixels the results nearly agree: the wrong padding looks at other pixels, whatever the weights. (The optional part
# explains the remaining 13%.)

# %% [markdown]
# ## 2. Upsampling without a checkerboard
#
# The obvious inverse is a *transposed* convolution with stride 2. It places copies of its kernel two pixels apart, one for each
# input pixel, and adds what overlaps. On five ones, a kernel of three ones gives an uneven result. Does a kernel of four ones help?

# %%
row = torch.ones(1, 1, 5)
for weights in ([1, 1, 1], [1, 1, 1, 1], [1, 2, 3, 4]):
    sums = F.conv_transpose1d(row, torch.tensor([[weights]]).float(), stride=2)
    print("transposed", f"{weights!s:12}", sums[0, 0].int().tolist())
sums = F.conv1d(row.repeat_interleave(2, dim=2), torch.tensor([[[1.0, 2.0, 3.0]]]), padding=1)
print("repeated   [1, 2, 3]   ", sums[0, 0].int().tolist())

# %% [markdown]
# Four ones help: every inner pixel is counted twice. But with other weights the pixels get 1 + 3 and 2 + 4 in turn, and nothing
# makes such sums equal.
#
# The last line repeats each pixel (*nearest neighbour*), then convolves: every output pixel uses all weights, except at the border.
# In two dimensions:

# %%
square, kernel = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
counts = {
    "transposed": F.conv_transpose2d(square, kernel, stride=2)[0, 0],
    "nearest, then convolution": F.conv2d(F.interpolate(square, scale_factor=2.0), kernel, padding=1)[0, 0],
}
show(
    maps(counts, size=(7, 3), cmap="Blues", label="contributions"),
    alt="Number of contributions to each output pixel, for an input of ones and a kernel of ones. Transposed convolution: a checkerboard of 1, 2 and 4. Nearest neighbour, then convolution: 9 everywhere, fewer only along the border.",
)
assert counts["transposed"].unique().tolist() == [1, 2, 4]

# %% [markdown]
# This *checkerboard* is there before anything is learned, and training often does not balance the weights completely (Odena et al.
# 2016, "Deconvolution and Checkerboard Artifacts"). Their advice, first repeat, then convolve, is what Stable Diffusion does.

# %% [markdown]
# {{exercise 04.2}}
#
# Double a map: repeat every pixel 2 × 2, then a 3×3 convolution that keeps the size. The gradient must reach all inputs.


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
# Now three doublings in a row, from 8 × 8 to 64 × 64 pixels. Both ways get the same random numbers as weights.


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
    return torch.einsum("bchw,ck->bkhw", z.float(), torch.randn(32, 3, generator=generator))


# %%
generator = torch.Generator().manual_seed(1)
even = torch.randn(1, 32, 1, 1, generator=generator).expand(1, 32, 8, 8)  # the same everywhere
slow = F.interpolate(torch.randn(1, 32, 3, 3, generator=generator), size=8, mode="bicubic")
pictures = [[three_doublings(z, transposed)[0] for transposed in (True, False)] for z in (even, slow)]
spreads = [picture[:, 16:-16, 16:-16].std((1, 2)).max() for picture in pictures[0]]
assert spreads[0] > 0.05 and spreads[1] < 1e-5  # away from the border

stretched = [[(x - x.mean((1, 2), keepdim=True)) / (2.5 * x.std()) for x in row] for row in pictures]
stretched = [F.interpolate(torch.stack(row), scale_factor=3.0) for row in stretched]
show(
    image_grid(stretched, row_labels=["even", "slow"], column_titles=["transposed", "nearest"]),
    alt="Three doublings of a map that is the same everywhere (even) and of one that changes slowly (slow), each picture stretched to its own contrast. Transposed convolutions leave a fine coloured checkerboard on both. Nearest neighbour leaves the even map even inside, and a soft grid on the slow one.",
)

# %% [markdown]
# With nearest neighbour the even map stays even, except for a frame, where the zeros of the padding come in. (An optional part
# explains the soft grid.) The cost: the convolution runs on the large map, with four times as many multiplications.

# %% [markdown]
# ## 3. What one latent pixel sees
#
# The pixels that an output pixel depends on are its *receptive field*. Measure it: outside the field, the gradient is zero.


# %%
def seen(*strides):
    x = y = torch.zeros(1, 1, 63, requires_grad=True)
    for stride in strides:
        y = F.conv1d(y, torch.ones(1, 1, 3), stride=stride, padding=1)
    y[0, 0, y.shape[2] // 2].backward()
    return int(x.grad.count_nonzero())


# %%
for strides in [(1,), (1, 1), (2, 1), (2, 1, 1), (2, 2, 1)]:
    print("strides", strides, "see", seen(*strides))

# %% [markdown]
# Each kernel of size k reaches k - 1 pixels further. Behind a stride of two, these pixels are two input pixels apart, behind two
# such strides four. This distance, the *jump* j, is the product of all strides before a layer. For layers 1, 2, … from input to
# output, with kernels k and strides s, the field is r pixels wide:
#
# $$r = 1 + \sum_l (k_l - 1)\, j_l, \qquad j_1 = 1, \quad j_{l+1} = j_l\, s_l$$

# %% [markdown]
# {{exercise 04.3}}
#
# Compute the receptive field of a stack of layers, such as the five above.


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
    #| field, jump = 1, 1  # r so far, and j of the first layer
    #| for kernel, stride in layers:
    #|     field = ...
    #|     jump = ...
    #| return field
    # END SOLUTION


receptive_field = check("04.3", receptive_field)

# %% [markdown]
# A latent pixel of Stable Diffusion (the preset `sd-v1`) *stands for* eight image pixels in a row. How many does it *see*: 20,
# 100, more? (On PyTorch's `meta` device a model has shapes, but no numbers. 1×1 convolutions count as well: for them, k - 1 is 0.)

# %%
with torch.device("meta"):
    sd = AutoencoderKL.from_preset("sd-v1").encoder
layers = [(layer.kernel_size[0], layer.stride[0]) for layer in sd.modules() if isinstance(layer, nn.Conv2d)]
field = receptive_field(layers)
print(f"{len(layers)} convolutions see {field} pixels in a row, {field**2 / 256**2:.0%} of a picture of 256 × 256")
print("of these, the 9 behind the last stride add", 8 * (receptive_field(layers[-9:]) - 1))

# %% [markdown]
# It sees 217, and two thirds come from behind the last stride, where each step is eight pixels wide.
#
# Now measure it by the gradient of latent pixel (16, 16), on a thinner model with the same convolutions, but without attention and
# norms. Both are added afterwards.


# %%
def thin_encoder(attention=False, norms=False):
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, mid_block_add_attention=attention)
    for block in model.modules():
        for name, layer in [*block.named_children()]:
            if isinstance(layer, nn.GroupNorm) and not norms:
                setattr(block, name, nn.Identity())
    return model.encoder.double()  # in float32, the smallest gradients would become 0


def what_one_latent_pixel_sees(encoder):
    """The size of its gradient with respect to each pixel of the photograph, (256, 256)."""
    x = photo[:, :, 20:276, 100:356].double().requires_grad_()
    encoder(x)[0, :, 16, 16].sum().backward()
    return x.grad[0].abs().sum(0)


# %%
seen_by = {
    "convolutions": what_one_latent_pixel_sees(thin_encoder()),
    "with attention": what_one_latent_pixel_sees(thin_encoder(attention=True)),
    "with norms": what_one_latent_pixel_sees(thin_encoder(norms=True)),
}
rows = seen_by["convolutions"].any(1).nonzero()
first, last = rows.min().item(), rows.max().item()
print(f"rows {first} to {last}: {last - first + 1} pixels, the middle at {(first + last) // 2} = 8 · 16 + 7")
assert last - first + 1 == receptive_field(layers)
for name, gradient in seen_by.items():
    half = gradient[135 - 54 : 135 + 55, 135 - 54 : 135 + 55].sum() / gradient.sum()
    print(f"{name:15} {'> 99%' if half > 0.99 else f'{half:5.0%}'} of the gradient in the inner half, 109 × 109")

# %% [markdown]
# Formula and measurement agree to the pixel. The middle is seven pixels beyond 8 · 16: the padding of section 1.

# %%
fig, axes = figure(1, 3, size=(9, 3.2))
for ax, (title, gradient) in zip(axes, seen_by.items(), strict=True):
    strength = (gradient / gradient.max()).log10().where(gradient > 0, torch.nan)
    image = ax.imshow(strength, cmap="viridis", vmin=-8, vmax=0)
    ax.set(title=title, xticks=[0, 135, 255], yticks=[0, 135, 255])
    ax.spines[:].set_visible(True)  # the photograph's edge
    ax.grid(False)
fig.colorbar(image, ax=axes, label="log10 of the gradient", shrink=0.9)
show(
    fig,
    alt="Gradient of one latent pixel at each pixel of the photograph, on a log scale; white means exactly zero. Convolutions alone: bright in the middle, fading inside a square, white outside. With attention or with norms, no pixel is white.",
)
reached = [int(gradient.count_nonzero()) for gradient in seen_by.values()]
assert reached == [217**2, 256**2, 256**2]

# %% [markdown]
# The receptive field is not the *effective* one (Luo et al. 2016). The middle counts more, because more paths lead to it: the inner
# half, a quarter of the area, gets nearly all of the gradient, and three quarters even with norms.
#
# White means exactly zero. With attention no pixel is white, because it looks everywhere. With norms none is either, because
# GroupNorm divides by the spread of the *whole* map. The more a value differs from the mean, the more it changes this spread:
# therefore the cat's eyes show. All pixels of a group share one mean and one spread; in attention, each pixel chooses for itself.

# %% [markdown]
# ## 4. Attention: a weighted average over all pixels
#
# A convolution weighs pixels by *where* they are, attention by *what* they are. Each *token* (here: a pixel with its channels) has
# three vectors: a query (what it looks for), a key (how it is found) and a value (what it passes on). Which of these five tokens
# will the query find?

# %%
keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
values = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
scores = keys @ torch.tensor([4.0, 0.0])  # with the query
weights = torch.softmax(scores, dim=0)
print("scores", scores.tolist(), "weights", [round(weight, 2) for weight in weights.tolist()])
print("answer", round((weights @ values).item(), 1))

# %% [markdown]
# It finds the tokens 1 and 3, whose keys have the query's direction. They get nearly all of the *attention weights* (which are no
# parameters: each input has its own), and the answer is near 20, the average of their values. For N queries, keys and values of
# C numbers each, scores are also divided by √C (Vaswani et al. 2017, section 3.2.1):
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt C}\right) V$$
#
# Without the root, scores grow with C, which is 512 in Stable Diffusion, because a score is a sum of C products:

# %%
torch.manual_seed(0)
for channels in (4, 64, 512):
    q, k = torch.randn(2, 10_000, channels)
    spread = (q * k).sum(1).std()
    print(f"C = {channels:3}   spread of the scores {spread:2.0f}   √C {channels**0.5:2.0f}   exp {spread.exp():.0e}")

# %% [markdown]
# The spread is √C, because the variances of C products add up. After exp, such differences are factors of billions: one key gets
# nearly all the weight, and hardly any gradient is left. Divided by √C, scores have a spread of one at any width.

# %% [markdown]
# {{exercise 04.4}}
#
# Write attention for a batch; there, `k.T` becomes `k.transpose(1, 2)`. The weights of one query over all keys sum to one, and the
# gradient must reach q, k and v.


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

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 100, 64)
difference = attention(q, k, v) - F.scaled_dot_product_attention(q, k, v)  # PyTorch's own, faster, with less memory
print(f"{whose('04.4', attention)} attention and PyTorch's: max |Δ| < 1e-5:", bool(difference.abs().max() < 1e-5))

# %% [markdown]
# ## 5. The attention block
#
# The block turns its normalised map into tokens, one for each pixel, and back:

# %%
show_diagram("attention")

# %% [markdown]
# Here is a map of two channels on 2 × 2 pixels. Which of the two rearrangements gives pixels?

# %%
x = torch.tensor([[[1, 2], [3, 4]], [[10, 20], [30, 40]]])[None]  # (B, C, H, W)
print("flatten, transpose:", x.flatten(2).transpose(1, 2)[0].tolist())
print("reshape:           ", x.reshape(1, 4, 2)[0].tolist())

# %% [markdown]
# The first: (1, 10) is the pixel at the top left. The reshape has the right shape, too, but puts two neighbouring pixels into one
# token. The same mistake can be made on the way back.
#
# Some networks split the channels into *heads*, each with its own attention. This block has one head.

# %% [markdown]
# {{exercise 04.5}}
#
# Build the block, with these names: `group_norm` (eps 1e-6), `to_q`, `to_k`, `to_v`, and `to_out`, an `nn.ModuleList` of one
# linear layer, used as `self.to_out[0]`. (So they are called in diffusers, Hugging Face's library of diffusion models.)


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
# The block does not know where its pixels are. To see this, shuffle the pixels before the block, then after it, and compare; do the
# same with a convolution:

# %%
torch.manual_seed(0)
x, order = torch.randn(1, 16, 36), torch.randperm(36)
for layer in (AttentionBlock(16, 4), nn.Conv2d(16, 16, 3, padding=1)):
    before = layer(x[..., order].view(1, 16, 6, 6)).flatten(2)
    after = layer(x.view(1, 16, 6, 6)).flatten(2)[..., order]
    print(f"{type(layer).__name__:15} shuffled before or after, the same: {torch.allclose(before, after, atol=1e-5)}")

# %% [markdown]
# For attention, a map is a set of pixels without order. Only convolutions know about places.

# %% [markdown]
# ## 6. What attention costs
#
# N = H·W tokens have N² attention weights. The block stands behind the last halving only, on a 64 × 64 map for a 512 × 512 image. How
# much memory would the weights take at full size, in single precision?

# %%
for side in (32, 64, 128, 512):
    tokens = side * side
    print(f"map {side:3} × {side:3}   {tokens:7,} tokens   attention weights {4 * tokens**2 / 2**30:8.3g} GiB")

# %% [markdown]
# Twice the side means sixteen times the weights: 256 GiB at full size, a sixteenth of a GiB at 64 × 64. So attention stands where the
# map is smallest. Fast kernels, such as PyTorch's, never store the weights (Dao et al. 2022, "FlashAttention").

# %% [markdown]
# ## 7. Which pixels attention finds
#
# Take a photograph of 40 × 60 pixels, with its colours as tokens. In an untrained network, queries and keys are random projections
# of the colours:

# %%
small = F.interpolate(photographs("held-out")["coffee"][None], size=(40, 60), mode="area")
colours = small.flatten(2).transpose(1, 2)
colours = (colours - colours.mean(1)) / colours.std(1)  # (1, N, 3)


def weights_of(q, k):
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)[0]


torch.manual_seed(0)
with torch.no_grad():
    untrained = weights_of(nn.Linear(3, 64)(colours), nn.Linear(3, 64)(colours))
share = ((untrained.sort(1, descending=True).values.cumsum(1) < 0.5).sum(1) + 1) / 2400
print(f"half of a query's weight is on at least {share.min():.0%} of the pixels, median {share.median():.0%}")

# %% [markdown]
# No query concentrates on a few pixels, and which ones get more is random. Now make queries and keys by hand, so that each pixel looks
# for its own colour. With q = k = colour, keys of a large norm would win, because q · k grows with it. One more channel solves this:
# with q = (c, 1) and k = (c', -½ |c'|²) the score is c · c' - ½ |c'|² = ½ |c|² - ½ |c - c'|². The first term is the same for all keys, so
# softmax divides it out.

# %%
square_norm = colours.pow(2).sum(-1, keepdim=True)
q = 8 * torch.cat([colours, torch.ones_like(square_norm)], dim=-1)  # sharpens the softmax: 8 / √4 = 4
k = torch.cat([colours, -0.5 * square_norm], dim=-1)
handmade = weights_of(q, k)
assert (handmade.argmax(1) == torch.arange(2400)).float().mean() > 0.99  # nothing is more like a pixel than itself

# %% [markdown]
# Take three queries: a pixel on the rim of the cup, one on its saucer, one on the light wood. Which parts will each of them find?


# %%
def one_query(row, column):
    """The photograph with a frame around the query, and its attention weights in both cases, the largest of them white."""
    marked = small[0].clone()
    marked[:, row - 2 : row + 3, column - 2 : column + 3] = -1
    marked[:, row - 1 : row + 2, column - 1 : column + 2] = small[0, :, row - 1 : row + 2, column - 1 : column + 2]
    grids = [weights[row * 60 + column].view(1, 40, 60) for weights in (untrained, handmade)]
    captions = ["", *(f"max {grid.max() * 2400:.1f} / N" for grid in grids)]
    images = [marked, *(2 * grid / grid.max() - 1 for grid in grids)]
    return [F.interpolate(image[None], scale_factor=4.0)[0] for image in images], captions


rows, captions = zip(*(one_query(*place) for place in [(10, 18), (20, 44), (30, 3)]), strict=True)
columns, names = ["query", "untrained", "by colour"], ["rim", "saucer", "wood"]
show(
    image_grid(rows, row_labels=names, column_titles=columns, captions=captions),
    alt="Left: a cup, with a black frame around the query pixel. Middle and right: its attention weights, white where largest. By colour, each query finds parts of the picture with its own colour; untrained, it finds others, such as shadows.",
    format="jpeg",
)

# %% [markdown]
# By colour, the rim finds the whole rim, and the saucer its lit parts on both sides. The wood finds the light wood on the other side
# of the cup, and the cup's inner wall, which has the same colour. This is what attention *can* do; it does not say what a trained
# block looks for.

# %% [markdown]
# ## 8. Comparison with the real parts
#
# Compare the three parts with those of this package, on the same random weights, in double precision, where rounding hides nothing.


# %%
def randomised(module):
    for index, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return module.double()


@torch.no_grad()
def largest_difference(down, up, block):
    """Between the three parts of this notebook and these, on the weights of these."""
    x = torch.randn(2, 32, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = AttentionBlock(32, 8).double()
    ours.load_state_dict(block.state_dict())
    differences = [
        downsample(x, down.conv.weight, down.conv.bias) - down(x),
        upsample(x, up.conv.weight, up.conv.bias) - up(x),
        ours(x) - block(x),
    ]
    return max(difference.abs().max() for difference in differences)


# %%
parts = {"04.1": downsample, "04.2": upsample, "04.5": AttentionBlock}
print("compared:", ", ".join(f"{whose(id, part)} {part.__name__}" for id, part in parts.items()))
finished = [randomised(part) for part in (Downsample2D(32), Upsample2D(32), Attention(32, groups=8))]
print("with klvae_edu: max |Δ| < 1e-10:", bool(largest_difference(*finished) < 1e-10))

# %% [markdown]
# Then with diffusers, where it is installed. There, `padding=0` means zeros on the right and at the bottom:

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
    print("with diffusers: max |Δ| < 1e-10:", bool(largest_difference(*theirs) < 1e-10))
except ImportError:
    print("diffusers is not installed: compared with klvae_edu only")

# %% [markdown]
# ## Going further: where a pattern remains (optional)
#
# Repeated pixels are redundant: a window of three holds only two different ones, in two dimensions four of nine. On a slope, this
# leaves a pattern. Here a kernel 1, 2, 3 runs over a row of repeated pixels:

# %%
windows = torch.tensor([1, 1, 2, 2, 3, 3]).unfold(0, 3, 1)
print(windows.tolist())
print("from one result to the next:", (windows * torch.tensor([1, 2, 3])).sum(1).diff().tolist())

# %% [markdown]
# The input rises evenly, the result in steps of 2 and 4 in turn. Only on flat maps is the pattern gone completely.
#
# The encoder has one, too: run backwards, a convolution with stride 2 *is* a transposed convolution. This is the gradient of the
# sum over the results of `downsample`:

# %%
x = torch.ones(1, 1, 8, 8, requires_grad=True)
downsample(x, ones, zero).sum().backward()
print(x.grad[0, 0, :4].int().tolist())

# %% [markdown]
# Some pixels count four times as much as their diagonal neighbours. Nearest neighbour removes the checkerboard from the decoder's
# pictures; the gradient that flows back through the encoder is still uneven (Odena et al. point this out, too).

# %% [markdown]
# ## Going further: what carries the border's effect inside (optional)
#
# In section 1 the two encoders still differed after the shift by seven pixels, because zeros come in from different sides. Leave out
# the border of the latents, more and more of it:

# %%
for margin in (4, 8, 14):
    inner, right = (z[:, :, margin:-margin, margin:-margin] for z in (moved[7], expected))
    print(f"relative error without the outer {margin:2} of 32: {(inner - right).norm() / right.norm():.0%}")

# %% [markdown]
# Most of the error is at the border. But a rest stays even in the middle 4 × 4, out of the convolutions' reach. Something carries the
# border's effect across the whole map: norms or attention. Remove one at a time, or both, from thin encoders:


# %%
@torch.no_grad()
def rest_in_the_middle(**parts):
    """Relative difference of the middle 4 × 4 latent pixels after the shift, for a thin encoder with these parts."""
    right = thin_encoder(**parts)
    wrong = copy.deepcopy(right)
    for block in wrong.down_blocks:
        for down in block.downsamplers:
            down.forward = lambda x, conv=down.conv: F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
    views = [photo[:, :, 20 + s : 276 + s, 100 + s : 356 + s].double() for s in (0, 7)]
    z, moved = right(views[0])[..., 14:18, 14:18], wrong(views[1])[..., 14:18, 14:18]
    return ((moved - z).norm() / z.norm()).item()


# %%
rests = {name: rest_in_the_middle(**parts) for name, parts in [
    ("neither", {}), ("attention", {"attention": True}), ("norms", {"norms": True}),
]}  # fmt: skip
for name, rest in rests.items():
    print(f"{name:<10} {'none, < 1e-12' if rest < 1e-12 else f'{rest:.1e}'}")

# %% [markdown]
# Without both, nothing remains: convolutions alone do not reach that far. Each of the two carries some of the effect, here the norms
# more than attention.

# %% [markdown]
# ## Going further: softmax without the scale (optional)
#
# Queries and keys learn from the gradient at the scores. How much of it is left, with the scale and without it, for 256 queries and
# as many keys?


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
fig = lines(
    {"without scale": [row[1] for row in plain], "divided by √C": [row[1] for row in scaled]},
    widths, xlabel="C", ylabel="median gradient at the scores", dashed=("without scale",),
)  # fmt: skip
fig.axes[0].set_xscale("log")
show(
    fig,
    alt="Median gradient at the scores over C. Divided by √C it stays level. Without the scale it first rises, up to C = 16, then falls to almost zero.",
)
assert plain[-1][0] > 0.9 and plain[-1][1] < 0.01 * plain[0][1]
assert scaled[-1][0] < 0.1 and scaled[-1][1] > 0.5 * scaled[0][1]

# %% [markdown]
# Without the scale, softmax chooses a single key as C grows: at C = 4096 the largest of 256 weights is above 0.9 on average. As long
# as it hesitates between a few keys (C = 16), the gradient is even larger; after the choice hardly any is left for most queries.

# %% [markdown]
# ## Going further: attention in chunks (optional)
#
# The N² weights need not all exist at the same time. Here 128 of 1,024 queries are answered at a time:

# %%
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1024, 64)
chunks = torch.cat([attention(some, k, v) for some in q.split(128, dim=1)], dim=1)
print("max |Δ| < 1e-5:", bool((chunks - attention(q, k, v)).abs().max() < 1e-5))

# %% [markdown]
# The result is the same, because queries are independent, and the weights take an eighth of the memory. In the finished model
# `vae.set_attention_backend("chunked")` chooses this loop, `"eager"` the formula of section 4, and `"sdpa"`, the default, PyTorch's
# own function.

# %% [markdown]
# ## Summary
#
# 1. Downsampling pads right and bottom only; with symmetric padding every weight loads, but other pixels are seen.
# 2. Nearest neighbour plus a convolution keeps flat maps flat; a transposed convolution leaves a checkerboard.
# 3. r = 1 + Σ (k - 1) · (product of the strides before): 217 pixels, of which the middle ones count most.
# 4. Attention averages values by softmax(q kᵀ / √C) over the keys; it knows contents, but no places.
# 5. Its N² weights are why it stands on the smallest map.
#
# ### Check yourself
#
# <details><summary>An encoder loads without an error, but its latents fit a picture moved by seven pixels. What do you look at first?</summary>
#
# The padding of the downsampling. A symmetric one has the same parameters and, for even sides, the same shapes, but looks
# 1 + 2 + 4 pixels further up and left.
# </details>
#
# <details><summary>Would a transposed convolution with a kernel of 4 have been good enough?</summary>
#
# No. Each inner pixel gets two contributions, but even and odd places use different weights, and nothing makes their sums equal: 4 and
# 6 in section 2.
# </details>
#
# <details><summary>You leave out the scale 512^-0.5 in a trained model. Is there an error, and what happens to the attention weights?</summary>
#
# No error: the shapes are right. But every score is √512 ≈ 23 times as large. This raises each attention weight to the 23rd power
# before they are made to sum to one again: large ones grow, small ones vanish.
# </details>
#
# **Next:** [05](05_kl_f8_architecture.ipynb) puts the parts together: encoder, decoder, 83,653,863 parameters, and trained weights.
