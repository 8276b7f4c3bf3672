# %% [markdown]
# # 05 · The KL-f8 architecture
#
# {{badge}}
#
# Posterior, ResNet block, resampling, attention: the parts lie on the table. In this notebook you assemble them into Stable
# Diffusion's autoencoder, hold it against the finished one number by number, and load a weight file into it.
#
# **You will be able to**
#
# * follow an image through the network, from 256 to 32 and back, and name every shape on the way;
# * build the encoder, the decoder, and the two 1×1 convolutions between them;
# * account for each of its 83,653,863 parameters;
# * tell a test that shows two networks equal from one that only looks like it;
# * translate the tensor names in a weight file, and load it.
#
# **You need** the blocks of [03](03_resnet_blocks.ipynb) and [04](04_resampling_and_attention.ipynb), finished or your own, and
# the posterior of [01](01_diagonal_gaussian.ipynb).
#
# {{budget}}

# %% tags=["environment"]

# %% [markdown]
# One cell of imports for the whole notebook. The blocks are the finished versions of what notebooks 03 and 04 build.

# %%
import copy
import tempfile
from importlib import util
from itertools import groupby, pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from klvae_edu import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution
from klvae_edu.blocks import (
    Attention,
    DownEncoderBlock2D,
    Downsample2D,
    ResnetBlock2D,
    UNetMidBlock2D,
    UpDecoderBlock2D,
)
from klvae_edu.data import photographs
from klvae_edu.exercises import check, hint, solution
from klvae_edu.plots import PALETTE, figure, image_grid, show, side_by_side

BLUE, ORANGE, GREEN, GREY = PALETTE[0], PALETTE[1], PALETTE[2], "0.6"
torch.set_grad_enabled(False)  # only one toy is trained, in section 3

# %% [markdown]
# ## 1. How does a picture get small?
#
# A picture of 256 × 256 becomes a latent of 4 × 32 × 32. The network that does it has four *levels*, one for each number in
# `block_out_channels`. Does every level halve the map?

# %%
config = AutoencoderKLConfig()  # the defaults are Stable Diffusion v1's
image_values, latent_values = 3 * 256**2, 4 * 32**2
print("widths of the levels", config.block_out_channels)
print(f"{image_values:,} values become {latent_values:,}: {image_values // latent_values} times fewer")

# %% [markdown]
# No: 256 / 32 = 8 = 2³, three halvings in four levels. Every level halves the map *but the last*. With n levels,
#
# $$f = 2^{\,n-1}.$$
#
# Drawings that halve in all four levels end at 16 × 16.

# %% [markdown]
# To watch the shapes, no arithmetic is needed. On PyTorch's `meta` device a tensor has a shape and no values: 84 million weights
# take no memory, and a pass through the network takes no time.

# %%
with torch.device("meta"):
    stable_diffusion = AutoencoderKL(config)
    picture = torch.empty(1, 3, 256, 256)
whole = stable_diffusion.encoder
layers = [whole.conv_in, *whole.down_blocks, whole.mid_block, whole.conv_norm_out, whole.conv_act, whole.conv_out]

# %%
labels = ["image", "conv_in", "level 0", "level 1", "level 2", "level 3", "mid", "norm", "SiLU", "conv_out"]
maps = [picture]
for layer in layers:
    maps.append(layer(maps[-1]))
print("\n".join(f"{label:<9} {one.shape[1]:>3} × {one.shape[2]}²" for label, one in zip(labels, maps, strict=True)))

# %% [markdown]
# Multiply, roughly, before you go on. After which line does a map hold fewer values than the picture, 196,608?

# %%
fig, ax = figure(size=(6.5, 3))
ax.bar(labels, [one.numel() for one in maps], color=[GREY, *[BLUE] * 8, ORANGE])
ax.axhline(image_values, color="black", linestyle="--", label="values in the picture")
ax.set(yscale="log", ylabel="values in the map", ylim=(3e3, 2e7))
ax.tick_params(axis="x", labelrotation=40)
ax.legend()
show(
    fig,
    alt="Values per map on a log scale: the picture, then forty times more, falling to twice the picture at the end of the mid block, and far below it only after conv_out.",
)
assert min(one.numel() for one in maps[1:-1]) > 2 * image_values > 20 * maps[-1].numel()

# %% [markdown]
# At the very end. The first convolution blows the picture up 43 times, and even the smallest inner map, 512 × 32², holds more than
# twice the picture's values. What squeezes is a single layer: `conv_out`, from 512 channels to 8.

# %%
print(f"conv_in: {maps[1].numel() / image_values:.0f} times the picture")
print(f"mid block: {maps[6].numel() / image_values:.1f} times; conv_out: {maps[-1].numel() / image_values:.3f}")

# %% [markdown]
# Eight channels, because mean and log-variance have four each (notebook 01). The width of a level is the number of channels it
# *puts out*; `conv_in` puts out the first width already.

# %% [markdown]
# {{exercise 05.1}}
#
# Write the walk down as a list of (channels, side): after `conv_in`, after every level, after `conv_out`. The mid block keeps the
# shape and is not listed. An odd side is halved downwards: 125 becomes 62 (notebook 04).


# %%
def shape_walk(block_out_channels, latent_channels, side):
    """(128, 256, 512, 512), 4, 256 -> [(128, 256), (128, 128), …, (8, 32)], the encoder's maps."""
    # BEGIN SOLUTION
    walk = [(block_out_channels[0], side)]
    for width in block_out_channels[:-1]:
        side //= 2
        walk.append((width, side))
    return [*walk, (block_out_channels[-1], side), (2 * latent_channels, side)]
    # SKELETON
    #| walk = [...]  # what conv_in puts out: (channels, side)
    #| for level, width in enumerate(block_out_channels):
    #|     walk.append(...)  # what this level puts out; does it halve the side?
    #| walk.append(...)  # what conv_out puts out
    #| return walk
    # END SOLUTION


shape_walk = check("05.1", shape_walk)

# %% [markdown]
# Stuck? `hint("05.1")` in a new cell gives one hint after another, `solution("05.1")` shows the finished code. Does your list agree
# with what the network itself said? And what becomes of a picture of 250 pixels?

# %%
walked = [(one.shape[1], one.shape[2]) for one in (*maps[1:6], maps[-1])]
assert shape_walk(config.block_out_channels, 4, 256) == walked
print("from 256:", shape_walk(config.block_out_channels, 4, 256))
print("from 250:", shape_walk(config.block_out_channels, 4, 250))

# %% [markdown]
# 250 becomes 31, and 8 · 31 is 248: the picture would come back two rows and two columns smaller, without a word. The finished `AutoencoderKL` pads such
# a picture to 256 first, and says so; the bare network does not.

# %% [markdown]
# ## 2. What is an encoder made of?
#
# From here on a small relative stands in for the real one: the same four levels, an eighth to a quarter of the width. A level
# needs two widths, the one it gets and the one it puts out. Which pairs are they?

# %%
small = AutoencoderKLConfig(block_out_channels=(32, 64, 64, 64), norm_num_groups=8)
widths = small.block_out_channels
print([*pairwise((widths[0], *widths))])

# %% [markdown]
# Four levels, four pairs. The first level gets the 32 channels that `conv_in` has made, and keeps them. The finished level block
# holds the ResNet blocks and, where it is asked to, the halving:

# %%
level = DownEncoderBlock2D(32, 64, num_layers=2, groups=8, act_fn="silu", add_downsample=True)
for name, block in level.named_children():
    print(f"{name:<13}", [type(part).__name__ for part in block])
print("(1, 32, 16, 16) ->", tuple(level(torch.zeros(1, 32, 16, 16)).shape))

# %% [markdown]
# (`attentions` holds placeholders: here no level has attention.) After the levels comes the mid block, ResNet, attention, ResNet;
# and then, before `conv_out`, one more GroupNorm and SiLU. Why one more norm, when every block begins with one?

# %%
torch.manual_seed(0)
fresh_encoder = AutoencoderKL(small).encoder
body = nn.Sequential(fresh_encoder.conv_in, *fresh_encoder.down_blocks, fresh_encoder.mid_block)
patch = photographs("held-out")["chelsea"][None, :, 80:144, 119:215]  # a cat's eye, 64 × 96
show(image_grid([F.interpolate(patch, scale_factor=3)]), alt="The patch: a cat's eye, wide open.", format="jpeg")

# %%
contrasts = [1, 3, 10, 30, 100, 300, 1000]
spread = {"with conv_norm_out": [], "without": []}
for contrast in contrasts:
    inner = body(contrast * patch)
    spread["without"].append(fresh_encoder.conv_out(F.silu(inner)).std().item())
    spread["with conv_norm_out"].append(fresh_encoder.conv_out(F.silu(fresh_encoder.conv_norm_out(inner))).std().item())

# %% [markdown]
# A block normalises what it *reads*. What it passes on is its input plus something, and nobody ever normalises that sum. So if the
# picture comes in with 100 times its contrast (as pixels from 0 to 255 have, apart from their offset), what comes out?

# %%
fig, ax = figure(size=(6, 3))
for (name, curve), marker, color in zip(spread.items(), "os", (BLUE, ORANGE), strict=True):
    ax.loglog(contrasts, curve, f"{marker}-", color=color, label=name)
ax.set(xlabel="the picture's contrast, times", ylabel="spread of the output")
ax.legend()
show(
    fig,
    alt="Spread of the encoder's output over the picture's contrast: level with the last norm; without it, level at first and then rising in proportion.",
)
assert max(spread["with conv_norm_out"]) < 1.5 * min(spread["with conv_norm_out"])
assert spread["without"][-1] > 20 * spread["without"][0]

# %% [markdown]
# Without the last norm, what the blocks add outweighs the contrast up to about 10 times; then it goes straight through. With it,
# hardly anything changes, which is a trap of its own: the output's size gives no hint of forgotten rescaling.

# %% [markdown]
# {{exercise 05.2}}
#
# Build the encoder from finished blocks. Submodules: `conv_in`, `down_blocks` (a ModuleList), `mid_block`, `conv_norm_out`,
# `conv_act`, `conv_out`. Both convolutions are 3×3 and keep the size; the norm's `eps` is 1e-6.


# %%
class Encoder(nn.Module):
    """Image (B, 3, H, W) -> mean and log-variance of the latent, stacked: (B, 2 · latent_channels, H/f, W/f)."""

    def __init__(self, config):
        super().__init__()
        # BEGIN SOLUTION
        widths, layers, groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.down_blocks.append(DownEncoderBlock2D(before, after, layers, groups, "silu", add_downsample=not last))
        self.mid_block = UNetMidBlock2D(widths[-1], groups, "silu")
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
        # SKELETON
        #| widths, layers, groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        #| self.conv_in = ...
        #| self.down_blocks = nn.ModuleList()
        #| for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
        #|     ...  # DownEncoderBlock2D(before, after, layers, groups, "silu", add_downsample=…)
        #| self.mid_block = ...  # UNetMidBlock2D(width, groups, "silu")
        #| self.conv_norm_out = ...
        #| self.conv_act = ...
        #| self.conv_out = ...
        # END SOLUTION

    def forward(self, x):
        # BEGIN SOLUTION
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
        # END SOLUTION


Encoder = check("05.2", Encoder)

# %% [markdown]
# Two checks by numbers: the shape at the end of your own walk, one for the height and one for the width, and the number of
# parameters of the finished encoder.

# %%
encoder = Encoder(small)
(channels, height), (_, width) = (shape_walk(widths, small.latent_channels, side)[-1] for side in (64, 96))
assert encoder(patch).shape == (1, channels, height, width)
assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in fresh_encoder.parameters())
print("(1, 3, 64, 96) ->", tuple(encoder(patch).shape))

# %% [markdown]
# ## 3. Is the decoder the encoder run backwards?
#
# It undoes the same three halvings and has the same four widths. So which half has more parameters, or are they equal?


# %%
def count(module):
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in module.parameters())


print(f"encoder {count(stable_diffusion.encoder):,}   decoder {count(stable_diffusion.decoder):,}")

# %% [markdown]
# Nearly half as many again. The decoder's levels have `layers_per_block + 1` ResNet blocks, three instead of two. And a level ends with its
# *up*sampling, so that its blocks work on the small side of the step. To let the network draw itself, listen to its blocks:


# %%
def trace(model, x, kinds):
    """What the blocks of these kinds put out when x goes through the model, by name, in order."""
    outputs = {}
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, kinds)}
    hooks = [
        block.register_forward_hook(lambda block, inputs, output, name=name: outputs.update({name: output}))
        for name, block in blocks.items()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return outputs


# %% [markdown]
# One slab for each ResNet block, as tall as its map and as thick as its number of channels. How many slabs will there be on the left, how many
# on the right? (The mid block has two in either half.)

# %%
resnets = trace(stable_diffusion, picture, ResnetBlock2D)
slabs = [(name.split(".")[0], *output.shape[1:3]) for name, output in resnets.items()]
per_half = {half: sum(slab[0] == half for slab in slabs) for half in ("encoder", "decoder")}
assert per_half == {"encoder": 4 * 2 + 2, "decoder": 4 * 3 + 2}
print("ResNet blocks:", per_half)

# %%
fig, ax = figure(size=(8, 3))
place = 0.0
for (half, thick, tall), alike in groupby(slabs):
    if (half, tall) == ("decoder", 32):
        ax.vlines(place + 2, -16, 16, color="black", linewidth=1)
        ax.text(place + 2, 24, "latent", ha="center")
        place += 4.5
    places = [place + number * (thick / 128 + 0.5) for number, _ in enumerate(alike)]
    ax.bar(places, tall, thick / 128, -tall / 2, color={"encoder": BLUE, "decoder": ORANGE}[half], align="edge")
    ax.text(sum(places) / len(places) + thick / 256, -135, f"{thick}\n{tall}²", ha="center", va="top", fontsize=8)
    place = places[-1] + thick / 128 + 0.5
ax.text(0, 140, "encoder: 2 blocks a level")
ax.text(place, 140, "decoder: 3 blocks a level", ha="right")
ax.set(xticks=[], yticks=[], ylim=(-205, 160), xlabel="channels (thickness) and side (height) of the maps")
ax.grid(False)
ax.spines[:].set_visible(False)
show(
    fig,
    alt="Slabs as tall as the map and as thick as its channels, from 128 channels at 256² to 512 at 32²: ten in the encoder, getting smaller and thicker; a line for the latent; fourteen in the decoder, getting larger and thinner.",
)

# %% [markdown]
# Compare the small thick slabs beside the latent (whose four channels are too thin to draw). They cost the most parameters, as
# section 5 will show, and the decoder has more of them: five at 32 × 32 and three at 64 × 64, against four and two.

# %% [markdown]
# Some drawings have arrows from the encoder's levels over to the decoder's, as in a U-Net, which hands its maps across. What would
# they do to the latent? Build a toy with one level, with or without such an arrow, on patches of a photograph.


# %%
class Toy(nn.Module):
    """32 × 32 pixels -> a latent of 4 × 4 × 4 -> 32 × 32 pixels; with an arrow past the latent, or without."""

    def __init__(self, arrow):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.latent = nn.Conv2d(8, 4, 8, stride=8)
        self.up = nn.Conv2d(4, 16, 3, padding=1)
        inner = nn.Conv2d(24 if arrow else 16, 16, 3, padding=1)
        self.out = nn.Sequential(inner, nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
        self.arrow = arrow

    def encode(self, x):
        features = F.silu(self.features(x))
        return self.latent(features), features

    def decode(self, z, features):
        x = F.interpolate(F.silu(self.up(z)), scale_factor=8)
        return self.out(torch.cat([x, features], dim=1) if self.arrow else x)


# %%
cat = photographs("held-out")["chelsea"]


def some_patches(number):
    rows, columns = torch.randint(cat.shape[1] - 32, (number,)), torch.randint(cat.shape[2] - 32, (number,))
    return torch.stack([cat[:, r : r + 32, c : c + 32] for r, c in zip(rows, columns, strict=True)])


@torch.enable_grad()
def train(arrow, steps=100):
    torch.manual_seed(0)
    model = Toy(arrow)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        x = some_patches(8)
        F.mse_loss(model.decode(*model.encode(x)), x).backward()
        optimizer.step()
    return model


# %% [markdown]
# Each is then tested with the picture's own latent, with *another* picture's, and with zeros over the arrow: a diffusion model's
# latent comes without a picture that an encoder could have seen. (Without an arrow, the third case is the first.)


# %%
def errors(model):
    torch.manual_seed(1)
    x = some_patches(64)
    z, features = model.encode(x)
    other = z.roll(1, 0)  # every picture gets the latent of the one before it
    cases = {"own latent": (z, features), "another's latent": (other, features), "no picture": (z, 0 * features)}
    return {name: F.mse_loss(model.decode(*case), x).item() for name, case in cases.items()}


plain, arrowed = errors(train(arrow=False)), errors(train(arrow=True))

# %%
fig, ax = figure(size=(6.5, 3))
for offset, hatch, color, name, bars in [(-0.2, "", BLUE, "no arrow", plain), (0.2, "//", ORANGE, "arrow", arrowed)]:
    at = [number + offset for number in range(3)]
    ax.bar(at, bars.values(), 0.4, color=color, hatch=hatch, edgecolor="white", label=name)
ax.set_xticks(range(3), plain)
ax.set(yscale="log", ylabel="squared error", ylim=(1e-3, 0.5))
ax.legend()
show(
    fig,
    alt="Squared errors on a log scale. Without the arrow: small with the own latent, large with another's. With it: far smaller, almost the same with another's latent, and large without a picture.",
)
assert arrowed["another's latent"] < plain["own latent"] / 2 < plain["another's latent"] / 4
assert arrowed["no picture"] > 10 * arrowed["another's latent"]
print("with the arrow, another picture's latent is better than the own one without it")

# %% [markdown]
# The arrow wins on its own latent, and almost as well on another picture's: the latent has become worthless. (The third case is
# weaker evidence: it was never trained on zeros.) **All that may reach the decoder is the latent.**

# %% [markdown]
# {{exercise 05.3}}
#
# Build the decoder: `conv_in`, `mid_block`, `up_blocks` (a ModuleList), `conv_norm_out`, `conv_act`, `conv_out`. The levels run from
# the smallest map, which is the last of `block_out_channels`, to the largest. There is nothing after `conv_out`, no tanh either.


# %%
class Decoder(nn.Module):
    """Latent (B, latent_channels, h, w) -> image (B, 3, f·h, f·w)."""

    def __init__(self, config):
        super().__init__()
        # BEGIN SOLUTION
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        layers = config.layers_per_block + 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = UNetMidBlock2D(widths[0], groups, "silu")
        self.up_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.up_blocks.append(UpDecoderBlock2D(before, after, layers, groups, "silu", add_upsample=not last))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        # SKELETON
        #| widths, groups = ..., config.norm_num_groups  # the widths in the decoder's order
        #| layers = ...
        #| self.conv_in = ...
        #| self.mid_block = ...
        #| self.up_blocks = nn.ModuleList()  # UpDecoderBlock2D(before, after, layers, groups, "silu", add_upsample=…)
        #| self.conv_norm_out = ...
        #| self.conv_act = ...
        #| self.conv_out = ...
        # END SOLUTION

    def forward(self, z):
        # BEGIN SOLUTION
        z = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            z = level(z)
        return self.conv_out(self.conv_act(self.conv_norm_out(z)))
        # END SOLUTION


Decoder = check("05.3", Decoder)

# %%
decoded = Decoder(small)(torch.zeros(1, 4, 8, 12))
assert decoded.shape == patch.shape
print("(1, 4, 8, 12) ->", tuple(decoded.shape))

# %% [markdown]
# ## 4. What are two 1×1 convolutions doing in between?
#
# After the encoder comes `quant_conv`, before the decoder `post_quant_conv`. A 1×1 convolution is one small matrix for every pixel
# (notebook 03). How much can a network gain from an 8 × 8 matrix right after a convolution, with nothing in between?

# %%
torch.manual_seed(0)
conv_out, quant_conv, both = encoder.conv_out, nn.Conv2d(8, 8, 1), nn.Conv2d(64, 8, 3, padding=1)
matrix = quant_conv.weight[:, :, 0, 0]
both.weight[:] = (matrix @ conv_out.weight.flatten(1)).view(8, 64, 3, 3)
both.bias[:] = matrix @ conv_out.bias + quant_conv.bias

# %%
deep = torch.randn(1, 64, 8, 12)
difference = (both(deep) - quant_conv(conv_out(deep))).abs().max()
assert difference < 1e-5
print("one convolution does the work of two: max |Δ| < 1e-5")

# %% [markdown]
# Nothing. Two linear maps in a row are one, if the padded one comes first, as here. Both are heirlooms of the VQ models, which
# replace every vector by the nearest in a learned table, the codebook; `quant_conv` fits the channels to it (CompVis,
# `ldm/models/autoencoder.py`).

# %% [markdown]
# Stable Diffusion 3 and FLUX.1 left them out (FLUX.2 has them again), but version 1 was trained with them, so a faithful network has them. It has *no* scaling
# factor, though: the 0.18215 that diffusion models multiply latents with belongs to them (notebook 11).

# %% [markdown]
# {{exercise 05.4}}
#
# Put it together. `encode` returns the posterior, of which mean and log-variance are the channels *after* `quant_conv`; `decode`
# an image; and `forward` decodes the posterior's `mode()`, as diffusers' does (CompVis' own draws a sample).


# %%
class Autoencoder(nn.Module):
    """Images to posteriors, latents to images."""

    def __init__(self, config):
        super().__init__()
        # BEGIN SOLUTION
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        # SKELETON
        #| self.encoder = ...
        #| self.decoder = ...
        #| self.quant_conv = ...
        #| self.post_quant_conv = ...
        # END SOLUTION

    def encode(self, x):
        """(B, 3, H, W) -> DiagonalGaussianDistribution of latents (B, latent_channels, H/f, W/f)."""
        # BEGIN SOLUTION
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))
        # END SOLUTION

    def decode(self, z):
        """(B, latent_channels, h, w) -> (B, 3, f·h, f·w)."""
        # BEGIN SOLUTION
        return self.decoder(self.post_quant_conv(z))
        # END SOLUTION

    def forward(self, x):
        """An image and back, through the posterior's mode."""
        # BEGIN SOLUTION
        return self.decode(self.encode(x).mode())
        # END SOLUTION


Autoencoder = check("05.4", Autoencoder)

# %% [markdown]
# ## 5. Where are the 83,653,863 parameters?
#
# Your class at full size, on the `meta` device. First a guess: are most parameters where the maps are large, or where they are small?
# And most of the values that are computed on the way?


# %%
def stages_of(half, name):
    """The stages of encoder or decoder, by name; levels one by one."""
    for child, stage in half.named_children():
        if isinstance(stage, nn.ModuleList):
            yield from ((f"{name}.{child}.{number}", level) for number, level in enumerate(stage))
        else:
            yield f"{name}.{child}", stage


with torch.device("meta"):
    full = Autoencoder(config)
stages = dict(stages_of(full.encoder, "encoder"))
stages |= {"quant_conv": full.quant_conv, "post_quant_conv": full.post_quant_conv}
stages |= dict(stages_of(full.decoder, "decoder"))

# %%
parameters = {name: count(stage) for name, stage in stages.items()}
for name, number in parameters.items():
    print(f"{name:<24} {number:>10,}")
print(f"{'sum':<24} {sum(parameters.values()):>10,}")
assert sum(parameters.values()) == count(full) == count(stable_diffusion) == 83_653_863

# %% [markdown]
# Any row can be worked out by hand. The first level: two ResNet blocks 128 → 128, each two convolutions of 3 · 3 · 128 · 128 weights and
# 128 biases, and two norms of 128 weights and 128 biases; then the convolution of the halving.

# %%
conv, norm = 3 * 3 * 128 * 128 + 128, 2 * 128
print(f"2 · (2 · {conv:,} + 2 · {norm}) + {conv:,} = {2 * (2 * conv + 2 * norm) + conv:,}")
assert parameters["encoder.down_blocks.0"] == 2 * (2 * conv + 2 * norm) + conv

# %% [markdown]
# Parameters know nothing of the picture's size; activations do. Add up what the layers with parameters put out for one picture of
# 256 × 256, stage by stage (activation functions, sums and the attention's matrix are not counted), and put both side by side:

# %%
values = dict.fromkeys(stages, 0)
activations = trace(full, picture, (nn.Conv2d, nn.Linear, nn.GroupNorm))
for name, activation in activations.items():
    stage = next(stage for stage in stages if f"{name}.".startswith(f"{stage}."))
    values[stage] += activation.numel()

# %% [markdown]
# Which stages will have the longest bars on the left, and which on the right?

# %%
fig, (left, right) = figure(1, 2, size=(8, 4.2))
left.barh(list(parameters), [number / 1e6 for number in parameters.values()], color=BLUE)
right.barh(list(values), [number / 1e6 for number in values.values()], color=ORANGE)
left.set(title="parameters, millions")
right.set(title="values in activations, millions", yticklabels=[])
for ax in (left, right):
    ax.invert_yaxis()
show(
    fig,
    alt="Two bar charts over the network's stages. Parameters are largest in the middle, around the latent; activations are largest at both ends, most of all in the decoder's last levels.",
)

# %%
middle = ["encoder.down_blocks.2", "encoder.down_blocks.3", "encoder.mid_block"]
middle += ["decoder.mid_block", "decoder.up_blocks.0", "decoder.up_blocks.1"]
for title, numbers in [("parameters", parameters), ("values", values)]:
    share = sum(numbers[name] for name in middle) / sum(numbers.values())
    print(f"{title} in the six stages around the latent: {share:.0%}")
largest = max(activations, key=lambda name: activations[name].numel())
print(f"largest single map: {activations[largest].numel():,} values, from {largest}")
assert max(values, key=values.get) == "decoder.up_blocks.3"

# %% [markdown]
# Parameters sit in the middle, activations at the two ends. Training keeps most activations for the backward pass, so their *sum*
# fills the memory; without gradients each is dropped after use, and the *largest* maps decide (notebook 12). The largest is the decoder's.

# %% [markdown]
# ## 6. When are two networks equal?
#
# The parameters agree in number. Give your network the finished one's weights, made random in every place: fresh norms are all alike,
# and a swapped pair would not show. `strict=True` complains about any name or shape that is not the same. Is that a proof?


# %%
def randomise(model):
    """Give every parameter values of its own."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter[:] = noise / parameter[0].numel() ** 0.5
        else:  # norms and biases stay near 1 and 0: larger biases would drown the picture
            parameter += 0.3 * noise


# %%
torch.manual_seed(0)
finished = AutoencoderKL(small).double()
randomise(finished)
yours = Autoencoder(small).double()
print(yours.load_state_dict(finished.state_dict(), strict=True))

# %% [markdown]
# It is not: nothing in a weight file says which `eps` a norm has, or on which side the padding's zeros go (notebook 04). Only results
# can tell: in float64, so that rounding has fifteen digits of room, and beside diffusers' own class where it is installed.


# %%
def relative(a, b):
    """The largest difference over the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


others = {"the finished version": finished}
if util.find_spec("diffusers"):
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    others["diffusers"] = DiffusersAutoencoderKL(**small.to_dict()).double()
    others["diffusers"].load_state_dict(finished.state_dict())

# %% [markdown]
# Both give their results names: `latent_dist` is the posterior, and the `sample` of a decoder is the image, in which nothing is drawn
# at random. Do the numbers agree on the cat's eye?

# %%
eye = patch.double()
for name, other in others.items():
    moments = relative(yours.encode(eye).parameters, other.encode(eye).latent_dist.parameters)
    assert max(moments, relative(yours(eye), other(eye).sample)) < 1e-12
    print(f"{name}: moments and image agree, largest relative difference < 1e-12")

# %% [markdown]
# They do, for one small configuration and one input. Would a mistake have shown? A test that cannot fail shows nothing; so make three
# on purpose, all with every weight in place. The last divides the attention's scores by the root of the *pixels*, not the channels.

# %%
wrong_eps, wrong_padding, wrong_root = (copy.deepcopy(yours) for _ in range(3))
for norm in (module for module in wrong_eps.modules() if isinstance(module, nn.GroupNorm)):
    norm.eps = 1e-5  # PyTorch's default
for down in (module for module in wrong_padding.modules() if isinstance(module, Downsample2D)):
    down.forward = lambda x, conv=down.conv: F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
for block in (module for module in wrong_root.modules() if isinstance(module, Attention)):
    block.register_forward_pre_hook(lambda block, inputs: setattr(block, "scale", inputs[0][0, 0].numel() ** -0.5))

# %% [markdown]
# Now follow each of them through the network, block by block, against the finished one. Two more are no mistakes: your own network in
# float32, as networks are usually compared, and in float64. (On the log scale, 0 is drawn at 1e-17.)

# %%
models = {
    "symmetric padding": (wrong_padding, eye),
    "root of the pixels": (wrong_root, eye),
    "eps 1e-5": (wrong_eps, eye),
    "yours, float32": (copy.deepcopy(yours).float(), patch),
    "yours, float64": (yours, eye),
}

# %%
kinds = (ResnetBlock2D, Downsample2D, UNetMidBlock2D, UpDecoderBlock2D)
truth, drift = trace(finished, eye, kinds), {}
for name, (model, x) in models.items():
    drift[name] = [relative(output.double(), truth[block]) for block, output in trace(model, x, kinds).items()]
assert max(drift["yours, float64"]) < 1e-12 and max(drift["eps 1e-5"]) < 3e-4 < max(drift["root of the pixels"])
assert all(wrong > 10 * right for wrong, right in zip(drift["eps 1e-5"], drift["yours, float32"], strict=True))

# %% [markdown]
# Where will the lines of the wrong padding and of the wrong root begin to rise? And how far above your float32 network do you expect
# the wrong `eps`?

# %%
fig, ax = figure(size=(7, 3.8))
colors = (ORANGE, GREY, PALETTE[3], BLUE, GREEN)
for (name, curve), marker, color in zip(drift.items(), "svD^o", colors, strict=True):
    ax.semilogy([max(value, 1e-17) for value in curve], f"{marker}-", color=color, markersize=3, label=name)
ax.axhline(3e-3, color="black", linestyle="--", linewidth=1)
ax.text(len(truth) - 1, 1.5e-3, "a tolerance of 3e-3", ha="right", va="top")
ax.axvline(sum(name.startswith("encoder") for name in truth) - 0.5, color="black", linestyle=":")
ax.set(xlabel="block: the encoder's left of the line, the decoder's right of it", ylabel="relative difference")
ax.set_ylim(1e-18, 50)
ax.legend(loc="center right", bbox_to_anchor=(1, 0.35))
show(
    fig,
    alt="Relative difference after every block on a log scale. Symmetric padding: 0 for two blocks, then between 0.3 and 1. Root of the pixels: 0 up to the encoder's mid block, then a few hundredths. eps: between 1e-5 and 1e-4 all the way. Your network in float32: about 1e-6; in float64 at the bottom.",
)
assert min(drift["symmetric padding"][2:]) > 0.3 and max(drift["root of the pixels"][:12]) < 1e-12


# %%
def missed_by(model, x):
    """How far the posterior's mean and log-variance are from the finished one's."""
    return relative(model.encode(x).parameters.double(), finished.encode(x.double()).latent_dist.parameters)


print("noticed by a tolerance of:   3e-3   1e-10   1e-10, on a square of 64 × 64")
for name, (model, x) in models.items():
    on_all, on_square = missed_by(model, x), missed_by(model, x[..., 16:80])
    print(f"{name:<28} {on_all > 3e-3!s:<6} {on_all > 1e-10!s:<7} {on_square > 1e-10}")

# %% [markdown]
# The padding shouts, from the first halving on. The `eps` whispers: more than ten times the rounding of a *right* network in float32,
# yet far below 3e-3. (diffusers' slow tests allow that much, absolute, on eight numbers of a real model's output:
# `test_models_autoencoder_kl.py`.)

# %% [markdown]
# And the wrong root hides completely at 64 × 64: in the mid block that is 8 · 8 pixels, as many as channels. On any square, a
# `reshape(…, width, height)` would hide. Therefore float64, 1e-10, and an input that is *not square, with pixels ≠ channels*
# (so do the package's own tests, at full width: `tests/parity`).

# %% [markdown]
# ## 7. Why does a file from elsewhere not load?
#
# One network, three sets of names. The weights on the Hub come in any of them. Here is your network's twin, saved as the original code
# would have saved it. How many of its tensors does your class recognise?

# %%
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # goes when the notebook is closed
file = Path(folder.name) / "vae.safetensors"
finished.to_single_file(file, names="compvis")

# %%
tensors, fresh = load_file(file), Autoencoder(small).double()
missing, unexpected = fresh.load_state_dict(tensors, strict=False)
print(
    f"{len(tensors)} tensors, {len(tensors) - len(unexpected)} of them known by name; {len(missing)} left as they were"
)

# %% [markdown]
# Remember this when a program offers `strict=False`: it raises no error. The two lists that it returns are all that tells you how much
# is still random. What are the others called?

# %%
for name in (
    "encoder.down.1.block.0.nin_shortcut.weight",
    "decoder.up.3.upsample.conv.bias",
    "encoder.mid.attn_1.q.weight",
):
    print(f"{name:<45}", tuple(tensors[name].shape))

# %% [markdown]
# | CompVis: the original, SDXL's file | diffusers, old | diffusers, now |
# | --- | --- | --- |
# | `encoder.down.0.block.1` | `encoder.down_blocks.0.resnets.1` | = |
# | `encoder.down.0.downsample.conv` | `encoder.down_blocks.0.downsamplers.0.conv` | = |
# | `decoder.up.3.block.0` (smallest map: last) | `decoder.up_blocks.0.resnets.0` (first) | = |
# | `decoder.up.3.upsample.conv` | `decoder.up_blocks.0.upsamplers.0.conv` | = |
# | `….mid.block_1`, `….mid.block_2` | `….mid_block.resnets.0`, `….mid_block.resnets.1` | = |
# | `….mid.attn_1` | `….mid_block.attentions.0` | = |
# | its `norm`, `q`, `k`, `v`, `proj_out` | `group_norm`, `query`, `key`, `value`, `proj_attn` | `group_norm`, `to_q`, `to_k`, `to_v`, `to_out.0` |
# | `nin_shortcut` | `conv_shortcut` | = |
# | `….norm_out` | `….conv_norm_out` | = |
#
# (= stands for the name on its left.) `norm1`, `conv1`, `norm2`, `conv2`, `conv_in`, `conv_out`, `quant_conv`, `post_quant_conv` are
# the same everywhere.

# %% [markdown]
# The tempting way is `replace`. What do you get if a name goes through it twice, as happens to files that were converted before?

# %%
name = "mid.attn_1.q.weight"
for _ in range(2):
    name = name.replace("q.weight", "to_q.weight")
print(name)

# %% [markdown]
# `to_to_q`: users have met such names after converting a file twice (diffusers issue 4790). Replace whole parts, between the
# dots, and a name that is already current stays as it is.

# %% [markdown]
# {{exercise 05.5}}
#
# Translate a name from either of the older schemes into diffusers' current one. Mind the decoder: CompVis counts its levels from the
# largest map, diffusers from the smallest. A current name comes back unchanged.


# %%
def diffusers_name(name, levels):
    """An older name -> the current one: decoder.up.3.block.0.conv1.bias -> decoder.up_blocks.0.resnets.0.conv1.bias."""
    # BEGIN SOLUTION
    new = {
        "down": "down_blocks",
        "up": "up_blocks",
        "mid": "mid_block",
        "block": "resnets",
        "block_1": "resnets.0",
        "block_2": "resnets.1",
        "attn_1": "attentions.0",
        "nin_shortcut": "conv_shortcut",
        "downsample": "downsamplers.0",
        "upsample": "upsamplers.0",
        "norm_out": "conv_norm_out",
        "norm": "group_norm",
        "proj_out": "to_out.0",
        "proj_attn": "to_out.0",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
    }
    parts = name.split(".")
    if parts[:2] == ["decoder", "up"]:
        parts[2] = str(levels - 1 - int(parts[2]))
    return ".".join(new.get(part, part) for part in parts)
    # SKELETON
    #| new = {"down": "down_blocks", "block": "resnets", "block_1": "resnets.0"}  # one entry for each part that changes
    #| parts = name.split(".")
    #| ...         # the decoder's levels are counted from the other end
    #| return ...  # all parts, the new ones where there are new ones
    # END SOLUTION


diffusers_name = check("05.5", diffusers_name)

# %% [markdown]
# One difference is left. CompVis wrote the attention's matrices as 1×1 convolutions, (C, C, 1, 1), diffusers as linear layers, (C, C):
# the same numbers. With that, the file loads, and the picture that comes out is the same to the last bit:

# %%
renamed = {diffusers_name(name, levels=4): tensor for name, tensor in tensors.items()}
matrices = [name for name in renamed if ".attentions." in name and renamed[name].ndim == 4]
renamed |= {name: renamed[name].flatten(1) for name in matrices}
print(fresh.load_state_dict(renamed, strict=True))
assert torch.equal(fresh(eye), yours(eye))

# %% [markdown]
# Would you notice if two levels were mixed up? The first two of the decoder have the same shapes, here as in Stable Diffusion, so that
# nothing in the file could tell. Only their order in the name does. Swap them:

# %%
swapped = copy.deepcopy(yours)
up = swapped.decoder.up_blocks
assert [p.shape for p in up[0].parameters()] == [p.shape for p in up[1].parameters()]
up[0], up[1] = up[1], up[0]
print(f"every name and shape fits, and the picture is off by {relative(swapped(eye), yours(eye)):.0%}")

# %% [markdown]
# ## 8. Does it work with real weights?
#
# The finished loader does all of this, for prefixes, pickles and old names as well. It infers the configuration, too, but for what no
# tensor tells, such as the groups of the norms. Files of our own keep that in their header.

# %%
loaded = AutoencoderKL.from_single_file(file)
assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in finished.state_dict().items())
assert loaded.config == finished.config
print("saved in CompVis' names and loaded again: every tensor equal, and the configuration, too")

# %% [markdown]
# Your turn, if you have Stable Diffusion's weights or a network: name them in `MODEL` and run the rest again. As it stands nothing is
# downloaded, and you get random weights, from which no picture can be expected.

# %%
MODEL = ""  # a folder, a file (.safetensors, .ckpt), or a Hub id, such as "stabilityai/sd-vae-ft-mse" (335 MB)

if not MODEL:
    real = AutoencoderKL.from_preset("mini", seed=0)
elif MODEL.endswith((".safetensors", ".ckpt")):
    real = AutoencoderKL.from_single_file(MODEL, dtype=torch.float32)
else:
    real = AutoencoderKL.from_pretrained(MODEL, dtype=torch.float32)
print(f"weights: {MODEL or 'random, because MODEL is empty'}; {real.num_parameters():,} parameters")

# %% [markdown]
# Whatever they are, they go into *your* class: built on the `meta` device, it takes over the loaded tensors instead of copying them, so
# that even the full model is in memory only once. (Models 1, 2 and XL; 3 and FLUX.1 lack the two 1×1 convolutions.)

# %%
with torch.device("meta"):
    mine = Autoencoder(real.config)
mine.load_state_dict(real.state_dict(), strict=True, assign=True)
photo = photographs("held-out")["coffee"][None, :, 60:316, 150:406]
reconstruction = mine(photo)
assert relative(reconstruction, real(photo).sample) < 1e-5
print("your class and the finished one agree on a photograph, largest relative difference < 1e-5")
if MODEL:
    pair = {"photograph": photo[0], "through your class": reconstruction[0]}
    show(side_by_side(pair), alt="A cup of coffee, and what comes back through the loaded weights.", format="jpeg")

# %% [markdown]
# With `MODEL` set, you see the photograph and what comes back: `sd-vae-ft-mse` reaches 24.5 dB (PSNR, notebook 06) on COCO's pictures
# at 256 × 256 (its model card). What makes the difference is training, and training begins with a loss.

# %% [markdown]
# ## Summary
#
# 1. Four levels, three halvings: 256 → 32. The maps inside hold more values than the picture; only `conv_out` squeezes.
# 2. The decoder is no mirror image: one block more in each level, from the small maps to the large, and nothing reaches it but the latent.
# 3. 83,653,863 parameters, most of them at small maps; most activations at large ones.
# 4. Names and shapes prove nothing. What counts is equal results in float64, on an input that is not square and has not as many pixels as channels, in a test that notices
# planted mistakes.
# 5. Weight files have three sets of names. Translate whole parts, and count the decoder's levels from the right end.
#
# ### Check yourself
#
# <details><summary>A picture of 512 × 768 goes in. What is the latent's shape, and how many parameters and activations does the network have now?</summary>
#
# 4 × 64 × 96. Still 83,653,863 parameters: convolutions do not know the picture's size. Six times the activations of 256 × 256, and inside
# the attention 36 times as many pairs of pixels.
# </details>
#
# <details><summary>Section 4 folded quant_conv into conv_out. Can post_quant_conv be folded into the decoder's conv_in as exactly?</summary>
#
# Inside, yes; along the border, no. conv_in pads with zeros *after* post_quant_conv has added its bias. Folded, the bias counts for the
# padding as well, which was zero before.
# </details>
#
# <details><summary>A friend's port loads Stable Diffusion's weights strictly, and its pictures look right, a little soft perhaps. Which two experiments would you make?</summary>
#
# Compare in float64 with random weights, against diffusers' class, block by block, on an input that is not square and whose smallest map has not as many pixels as channels: the first block that
# differs has the mistake. And plant a mistake on purpose, to see that the comparison notices.
# </details>
#
# **Next:** notebook 06 asks what a reconstruction should be judged by, and why squared error alone gives blurred pictures.
