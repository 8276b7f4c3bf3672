# %% [markdown]
# # 05 · The KL-f8 architecture
#
# {{badge}}
#
# You have all the parts: posterior, ResNet block, resampling, attention. In this notebook you assemble them into Stable
# Diffusion's autoencoder, prove that it equals the finished one, and send a photograph through it with trained weights.
#
# **You will be able to**
#
# * follow an image through the network, from 256 to 32 and back, and name every shape on the way;
# * build the encoder, the decoder, and the two 1×1 convolutions between them;
# * account for each of its 83,653,863 parameters;
# * test whether two networks are equal, with a test that can fail;
# * translate the tensor names in a weight file, and load it.
#
# **You need** the blocks of [03](03_resnet_blocks.ipynb) and [04](04_resampling_and_attention.ipynb), and the posterior of
# [01](01_diagonal_gaussian.ipynb). Their finished versions are imported below.
#
# {{budget}}

# %% tags=["environment"]

# %%
import copy
import tempfile
from functools import partial
from importlib import util
from itertools import pairwise
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
from klvae_edu.diagrams import show_diagram
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.metrics import psnr
from klvae_edu.plots import PALETTE, bars, figure, lines, show, side_by_side

BLUE, ORANGE = PALETTE[:2]
_ = torch.set_grad_enabled(False)  # nothing is trained here, except in an optional part

# %% [markdown]
# ## 1. From 256 to 32: the shapes
#
# A picture of 3 × 256 × 256 becomes a latent of 4 × 32 × 32, and the latent a picture again. These are the *feature maps* (the
# outputs of layers, in short maps) on the way:

# %%
show_diagram("kl_f8")

# %% [markdown]
# Each half has four *levels*, one for each number in `block_out_channels`. Such a number is the level's *width*, the channels of its
# output. The encoder's level 3 is a single slab: its input and output have the same shape. This is inside a level:

# %%
show_diagram("level")

# %%
config = AutoencoderKLConfig()  # the defaults are Stable Diffusion v1's
image_values, latent_values = 3 * 256**2, 4 * 32**2
print("widths of the levels", config.block_out_channels)
print(f"{image_values:,} values become {latent_values:,}: {image_values // latent_values} times fewer")

# %% [markdown]
# Four levels, but three halvings: 256 / 32 = 8 = 2³. Every level halves the map *except the last*. For n levels the *downsampling
# factor* is
#
# $$f = 2^{\,n-1}.$$
#
# Halving in all four levels would give 16 × 16.
#
# PyTorch can show the shapes at no cost. On its `meta` device a tensor has a shape, but no values: 84 million weights take no
# memory, and a pass through the network takes no time.

# %%
with torch.device("meta"):
    stable_diffusion = AutoencoderKL(config)
    picture = torch.empty(1, 3, 256, 256)
half = stable_diffusion.encoder
layers = [half.conv_in, *half.down_blocks, half.mid_block, half.conv_norm_out, half.conv_act, half.conv_out]

# %%
labels = ["image", "conv_in", "level 0", "level 1", "level 2", "level 3", "mid", "norm", "SiLU", "conv_out"]
maps = [picture]
for layer in layers:
    maps.append(layer(maps[-1]))
print("\n".join(f"{label:<9} {one.shape[1]:>3} × {one.shape[2]}²" for label, one in zip(labels, maps, strict=True)))

# %% [markdown]
# Estimate the number of values in each map: channels × side × side. Which lines hold fewer than the picture, 196,608?

# %%
fig = bars({label: one.numel() for label, one in zip(labels, maps, strict=True)}, xlabel="values in the map", log=True)
fig.axes[0].axvline(image_values, color="black", linestyle="--")
show(
    fig,
    alt="Values in each map, on a log scale; the dashed line is the picture's number. Every map inside the encoder holds more than the picture. Only the output of conv_out holds fewer.",
)
assert min(one.numel() for one in maps[1:-1]) > 2 * image_values > 20 * maps[-1].numel()
print(f"conv_in: {maps[1].numel() / image_values:.0f} times the picture")
print(f"mid block: {maps[6].numel() / image_values:.1f} times; conv_out: {maps[-1].numel() / image_values:.3f}")

# %% [markdown]
# Only the last. Even the smallest inner map, 512 × 32², holds more than twice the picture's values. A single layer
# compresses: `conv_out`, from 512 channels to 8. Eight, because mean and log-variance have four each.

# %% [markdown]
# {{exercise 05.1}}
#
# Write the encoder's maps as a list of (channels, side): after `conv_in`, after every level, after `conv_out`. The mid block keeps the
# shape and is not listed. Half of an odd side is rounded down: 125 becomes 62.


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

# %%
walked = [(one.shape[1], one.shape[2]) for one in (*maps[1:6], maps[-1])]
assert shape_walk(config.block_out_channels, 4, 256) == walked
print("from 256:", shape_walk(config.block_out_channels, 4, 256))
print("from 250:", shape_walk(config.block_out_channels, 4, 250))

# %% [markdown]
# 250 becomes 31, and 8 · 31 is 248: without a warning, the picture would come back two rows and two columns smaller. The finished
# `AutoencoderKL` pads such a picture to 256 first, and warns.

# %% [markdown]
# ## 2. The encoder
#
# From here on a smaller network with the same four levels replaces the real one. A level needs two widths, of its input and of its
# output:

# %%
small = AutoencoderKLConfig(block_out_channels=(32, 64, 64, 64), norm_num_groups=8)
widths = small.block_out_channels
print([*pairwise((widths[0], *widths))])

# %% [markdown]
# Four levels, four pairs. The first level gets 32 channels, because `conv_in` has made them. The finished level contains the ResNet
# blocks and, if asked to, the halving:

# %%
level = DownEncoderBlock2D(32, 64, num_layers=2, groups=8, act_fn="silu", add_downsample=True)
for name, block in level.named_children():
    print(f"{name:<13}", [type(part).__name__ for part in block])
print("(1, 32, 16, 16) ->", tuple(level(torch.zeros(1, 32, 16, 16)).shape))

# %% [markdown]
# (`attentions` holds placeholders: no level of KL-f8 has attention.) After the levels comes the mid block: ResNet, attention, ResNet.
# Then, before `conv_out`, one more GroupNorm and SiLU, because every block adds to its input, and nothing has normalised the sum
# yet. (An optional part removes this norm.)

# %% [markdown]
# {{exercise 05.2}}
#
# Build the encoder from finished blocks. Submodules: `conv_in`, `down_blocks` (an `nn.ModuleList` of `DownEncoderBlock2D`),
# `mid_block`, `conv_norm_out`, `conv_act`, `conv_out`. Both convolutions are 3×3 and keep the size; the norm's `eps` is 1e-6.


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

# %%
patch = photographs("held-out")["chelsea"][None, :, 80:144, 119:215]  # a cat's eye, 64 × 96; no model was trained on it
encoder = Encoder(small)
(channels, height), (_, width) = (shape_walk(widths, small.latent_channels, side)[-1] for side in (64, 96))
assert encoder(patch).shape == (1, channels, height, width)
print("(1, 3, 64, 96) ->", tuple(encoder(patch).shape))

# %% [markdown]
# ## 3. The decoder
#
# The decoder undoes the three halvings, with the same four widths. Which half has more parameters?


# %%
def count(module):
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in module.parameters())


print(f"encoder {count(stable_diffusion.encoder):,}   decoder {count(stable_diffusion.decoder):,}")

# %% [markdown]
# The decoder, by 45%. Its levels have `layers_per_block + 1` ResNet blocks, three instead of two. And they end with their
# *up*sampling, so more blocks work on small maps, which have many channels.
#
# A U-Net's decoder also gets the maps inside its encoder. This decoder gets the latent only: a diffusion model makes latents without
# any picture, so there are no such maps. (An optional part adds them.)

# %% [markdown]
# {{exercise 05.3}}
#
# Build the decoder: `conv_in`, `mid_block`, `up_blocks` (an `nn.ModuleList` of `UpDecoderBlock2D`), `conv_norm_out`, `conv_act`,
# `conv_out`. The levels run from the smallest map, with the last of `block_out_channels`, to the largest. Nothing comes after
# `conv_out`, no tanh either.


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
        #| self.up_blocks = nn.ModuleList()
        #| for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
        #|     ...  # UpDecoderBlock2D(before, after, layers, groups, "silu", add_upsample=…)
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
# ## 4. Two 1×1 convolutions, and the whole
#
# After the encoder comes `quant_conv`, before the decoder `post_quant_conv`. Such a 1×1 convolution is one small matrix for every
# pixel (notebook 03). How much does a network gain from an 8 × 8 matrix right after a convolution, with nothing in between?

# %%
torch.manual_seed(0)
conv_out, quant_conv, both = nn.Conv2d(64, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(64, 8, 3, padding=1)
matrix = quant_conv.weight[:, :, 0, 0]
both.weight[:] = (matrix @ conv_out.weight.flatten(1)).view(8, 64, 3, 3)
both.bias[:] = matrix @ conv_out.bias + quant_conv.bias

# %%
deep = torch.randn(1, 64, 8, 12)
difference = (both(deep) - quant_conv(conv_out(deep))).abs().max()
assert difference < 1e-5
print("one convolution does the work of two: max |Δ| < 1e-5")

# %% [markdown]
# Nothing: two linear maps in a row are one. (Zeros are padded before both, as here; padding between the two would change the
# border.) Both convolutions were taken over from VQ models,
# which replace every vector by the nearest one in a learned table; there `quant_conv` fits the channels to the table (CompVis,
# `ldm/models/autoencoder.py`). Stable Diffusion 3 and FLUX.1 left them out. Version 1 was trained with them, so they belong to a
# faithful network. The scaling factor 0.18215 does not: it belongs to the diffusion model (notebook 11).

# %% [markdown]
# {{exercise 05.4}}
#
# Put it together. `encode` returns the posterior, a `DiagonalGaussianDistribution` of all channels that `quant_conv` puts out.
# `decode` returns the image, through `post_quant_conv` and the decoder. `forward` does both in turn, with the posterior's `mode()`.
# (Training decodes a `sample()` instead; evaluation decodes the `mode()`, as here and in diffusers.)


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
# ## 5. The 83,653,863 parameters
#
# This is the class at full size, on the `meta` device, stage by stage:


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
between = {"quant_conv": full.quant_conv, "post_quant_conv": full.post_quant_conv}
stages = dict(stages_of(full.encoder, "encoder")) | between | dict(stages_of(full.decoder, "decoder"))

# %%
parameters = {name: count(stage) for name, stage in stages.items()}
for name, number in parameters.items():
    print(f"{name:<24} {number:>10,}")
print(f"{'sum':<24} {sum(parameters.values()):>10,}")
assert sum(parameters.values()) == count(full) == count(stable_diffusion) == 83_653_863

# %% [markdown]
# Each row can be calculated by hand. The first level: two ResNet blocks 128 → 128, each with two convolutions of 3 · 3 · 128 · 128 weights
# and 128 biases, and two norms of 128 weights and 128 biases; then the convolution of the halving.

# %%
conv, norm = 3 * 3 * 128 * 128 + 128, 2 * 128
print(f"2 · (2 · {conv:,} + 2 · {norm}) + {conv:,} = {2 * (2 * conv + 2 * norm) + conv:,}")
assert parameters["encoder.down_blocks.0"] == 2 * (2 * conv + 2 * norm) + conv

# %% [markdown]
# The number of parameters does not depend on the picture's size; that of the *activations*, the values computed on the way, does. To
# count them, `outputs_of` records what layers put out. It uses forward hooks: functions that PyTorch calls after a layer.


# %%
def outputs_of(model, x, kinds):
    """The outputs of all layers of these kinds while x goes through the model, by name, in order."""
    outputs, hooks = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, kinds):
            keep = partial(lambda name, layer, inputs, output: outputs.update({name: output}), name)
            hooks.append(layer.register_forward_hook(keep))
    model(x)
    for hook in hooks:
        hook.remove()
    return outputs


# %%
values = dict.fromkeys(stages, 0)
activations = outputs_of(full, picture, (nn.Conv2d, nn.Linear, nn.GroupNorm))
for name, activation in activations.items():
    stage = next(stage for stage in stages if f"{name}.".startswith(f"{stage}."))
    values[stage] += activation.numel()

# %% [markdown]
# (Activation functions, sums and attention weights are not counted.) Which stages have the most parameters, and which the most
# activations?

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
    alt="Parameters and activations of each stage, from the picture at the top to the picture at the bottom. Most parameters are in the middle, around the latent. Most activations are at both ends, above all in the decoder's last levels.",
)

# %%
around = ["encoder.down_blocks.2", "encoder.down_blocks.3", "encoder.mid_block"]
around += ["decoder.mid_block", "decoder.up_blocks.0", "decoder.up_blocks.1"]
for title, numbers in [("parameters", parameters), ("activations", values)]:
    print(f"{title} in the six stages around the latent: {sum(map(numbers.get, around)) / sum(numbers.values()):.0%}")
largest = max(activations, key=lambda name: activations[name].numel())
print(f"largest single map: {activations[largest].numel():,} values, from {largest}")

# %% [markdown]
# Parameters are in the middle, activations at the two ends. Training keeps most activations for the backward pass, so their *sum* fills
# the memory. Without gradients each is dropped after use, and the *largest* maps decide (notebook 12).

# %% [markdown]
# ## 6. When are two networks equal?
#
# Load the finished network's weights into the one built here. First make them all random: in a new network all norms have weight 1 and
# bias 0, so that two exchanged norms would not be noticed. `strict=True` raises an error for any name or shape that differs.


# %%
def randomise(model):
    """Give every parameter values of its own."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter[:] = noise / parameter[0].numel() ** 0.5
        else:  # norms and biases stay near 1 and 0: larger biases would outweigh the picture
            parameter += 0.3 * noise


# %%
torch.manual_seed(0)
finished = AutoencoderKL(small).double()
randomise(finished)
network = Autoencoder(small).double()
print(network.load_state_dict(finished.state_dict(), strict=True))

# %% [markdown]
# This is no proof: no weight file says which `eps` a norm has, or on which side zeros are padded (notebook 04). Only results can tell.
# Compare them in float64, where rounding errors are about 1e-16, with those of this package and, where it is installed, of diffusers
# (Hugging Face's library of diffusion models).


# %%
def relative(a, b):
    """The largest difference over the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


others = {"klvae_edu's": finished}
if util.find_spec("diffusers"):
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    others["diffusers'"] = DiffusersAutoencoderKL(**small.to_dict()).double()
    others["diffusers'"].load_state_dict(finished.state_dict())

# %%
eye = patch.double()
for name, other in others.items():
    moments = relative(network.encode(eye).parameters, other.encode(eye).latent_dist.parameters)
    assert max(moments, relative(network(eye), other(eye).sample)) < 1e-12
    print(f"{whose('05.4', Autoencoder)} network and {name}: moments and image differ by less than 1e-12")

# %% [markdown]
# (The *moments* are mean and log-variance.) They agree, for one configuration and one input. But a test that cannot fail shows nothing.
# So make three mistakes on purpose, all with every weight in place. `with_mistake` replaces the `forward` of some modules in a copy:


# %%
def with_mistake(kind, forward):
    """A copy of the network in which every module of this kind computes `forward(module, x)`."""
    wrong = copy.deepcopy(network)
    for module in wrong.modules():
        if isinstance(module, kind):
            module.forward = partial(forward, module)
    return wrong


def by_pixels(block, x):
    """Attention with scores divided by the root of the number of pixels, not of channels."""
    block.scale = x[0, 0].numel() ** -0.5
    return Attention.forward(block, x)


# %%
models = {
    "symmetric padding": with_mistake(Downsample2D, lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias, 2, padding=1)),
    "root of the pixels": with_mistake(Attention, by_pixels),
    "eps 1e-5": with_mistake(nn.GroupNorm, lambda m, x: F.group_norm(x, m.num_groups, m.weight, m.bias, 1e-5)),
    "correct, in float32": copy.deepcopy(network).float(),
    "correct, in float64": network,
}

# %% [markdown]
# Now follow each of them through the network, block by block, against the finished one:

# %%
kinds = (ResnetBlock2D, Downsample2D, UNetMidBlock2D, UpDecoderBlock2D)
truth, differences = outputs_of(finished, eye, kinds), {}
for name, model in models.items():
    outputs = outputs_of(model, patch if "float32" in name else eye, kinds)
    differences[name] = [relative(output.double(), truth[block]) for block, output in outputs.items()]

# %%
curves = {name: [max(value, 1e-17) for value in curve] for name, curve in differences.items()}
fig = lines(curves, xlabel="block", ylabel="relative difference", log=True, dashed=[*curves][3:], size=(7.5, 4))
fig.axes[0].axvline(sum(name.startswith("encoder") for name in truth) - 0.5, color="black", linestyle=":")
fig.axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="Relative difference to the finished network after every block, on a log scale (0 is drawn at 1e-17). The dotted line separates encoder and decoder. Symmetric padding differs strongly from the first halving on. The root of the pixels differs from the encoder's attention on. The wrong eps makes a small difference, but a larger one than rounding in the correct network in float32.",
)
assert min(differences["symmetric padding"][2:]) > 0.3 and max(differences["root of the pixels"][:12]) < 1e-12
assert max(differences["correct, in float64"]) < 1e-12 and max(differences["eps 1e-5"]) < 3e-4
pairs = zip(differences["eps 1e-5"], differences["correct, in float32"], strict=True)
assert all(wrong > 10 * right for wrong, right in pairs)

# %% [markdown]
# The wrong padding is obvious from the first halving on. The wrong eps makes a small difference: more than ten times the rounding of
# the correct network in float32, yet far below 3e-3. (diffusers' slow tests allow an absolute difference of 3e-3, on eight numbers of a
# real model's output: `test_models_autoencoder_kl.py`.) Here is what two tolerances notice, and what 1e-10 notices on a square:


# %%
def noticed(model, x, tolerance):
    """Do the posterior's moments differ from the finished one's by more than this?"""
    x = x.to(next(model.parameters()).dtype)
    return relative(model.encode(x).parameters.double(), finished.encode(x.double()).latent_dist.parameters) > tolerance


print("noticed by a tolerance of:   3e-3   1e-10   1e-10, on a square of 64 × 64")
for name, model in models.items():
    print(f"{name:<28} {noticed(model, eye, 3e-3)!s:<6} {noticed(model, eye, 1e-10)!s:<7}", end=" ")
    print(noticed(model, eye[..., 16:80], 1e-10))

# %% [markdown]
# Only 1e-10 notices the eps. It needs float64, because in float32 even the correct network fails. On the 64 × 64 square the wrong root is invisible: the
# mid block has 8 · 8 pixels, as many as channels. A square also hides an exchange of height and width: `reshape(B, C, W, H)` is
# right there. So a proof takes float64, 1e-10, and an input that is *not square, with pixels ≠ channels*.

# %% [markdown]
# ## 7. Tensor names in weight files
#
# There are three sets of names for this one network, and public weights use all of them. Here is the finished network, saved as the
# original code would have saved it. How many of its tensors does the class recognise?

# %%
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # deleted when the notebook is closed
file = Path(folder.name) / "vae.safetensors"
finished.to_single_file(file, names="compvis")

# %%
tensors, fresh = load_file(file), Autoencoder(small).double()
missing, unexpected = fresh.load_state_dict(tensors, strict=False)
known = len(tensors) - len(unexpected)
print(f"{len(tensors)} tensors, {known} of them known by name; {len(missing)} parameters left as they were")

# %% [markdown]
# So few, and no error: with `strict=False` only the two returned lists tell what is still random. These are the names:
#
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
# (= means: the same as on its left. All other names agree.)

# %% [markdown]
# {{exercise 05.5}}
#
# Translate a name from either of the older schemes into diffusers' current one. CompVis counts the decoder's levels from the largest
# map, diffusers from the smallest. Replace whole parts between the dots; a current name comes back unchanged.


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
# One difference is left. CompVis wrote the attention's matrices as 1×1 convolutions, (C, C, 1, 1), diffusers as linear layers, (C, C), with
# the same numbers. With that, the file loads, and gives the same picture to the last bit:

# %%
renamed = {diffusers_name(name, levels=4): tensor for name, tensor in tensors.items()}
matrices = [name for name in renamed if ".attentions." in name and renamed[name].ndim == 4]
renamed |= {name: renamed[name].flatten(1) for name in matrices}
print(fresh.load_state_dict(renamed, strict=True))
assert torch.equal(fresh(eye), network(eye))

# %% [markdown]
# ## 8. Trained weights: a photograph through the whole
#
# The package contains trained weights, `kl-f8-mini`: four levels as in KL-f8, but with fewer channels, and one ResNet block less in each
# level. If you have others, such as those of Stable Diffusion 1, 2 or XL, name them in `MODEL`. `from_single_file` translates names as
# in 05.5.

# %%
MODEL = "kl-f8-mini"  # or a folder, a file (.safetensors, .ckpt), a Hub id such as "stabilityai/sd-vae-ft-mse" (335 MB)

if MODEL == "kl-f8-mini":
    real = AutoencoderKL.from_bundled(MODEL)
elif MODEL.endswith((".safetensors", ".ckpt")):
    real = AutoencoderKL.from_single_file(MODEL, dtype=torch.float32)
else:
    real = AutoencoderKL.from_pretrained(MODEL, dtype=torch.float32)

# %%
mine = Autoencoder(real.config)
print(mine.load_state_dict(real.state_dict(), strict=True))
print(f"{count(mine):,} parameters, in {whose('05.2', type(mine.encoder))} Encoder,", end=" ")
print(f"{whose('05.3', type(mine.decoder))} Decoder and {whose('05.4', type(mine))} Autoencoder")

# %% [markdown]
# Every weight fits. (If 05.4 is not solved, the finished Autoencoder uses the finished Encoder and Decoder.) Now send a photograph through
# it that was not used in training. The baseline replaces each block of 8 × 8 pixels by its average colour:

# %%
cat = photographs("held-out")["chelsea"][None, :, :296, :448]  # sides that are multiples of 8
result = mine(cat)
assert relative(result, real(cat).sample) < 1e-5  # and the finished class agrees
averages = F.interpolate(F.avg_pool2d(cat, 8), scale_factor=8.0)
print(f"PSNR: block averages {psnr(averages, cat).item():.1f} dB, autoencoder {psnr(result, cat).item():.1f} dB")
print(f"its squared error is {F.mse_loss(averages, cat) / F.mse_loss(result, cat):.1f} times smaller")

pair = {"photograph": cat[0], f"through {whose('05.4', Autoencoder)} Autoencoder": result[0]}
show(
    side_by_side(pair),
    alt="Left: a photograph of a cat, which the network was not trained on. Right: what the decoder makes of its latent, which has 48 times fewer numbers. Eyes, markings and colours are there; the fine fur is smoother, and the whiskers are blurred.",
    format="jpeg",
)

# %% [markdown]
# The network of notebooks 01 to 05 is complete. From 4 × 37 × 56 numbers it restores the photograph 4.2 dB better than the baseline.
# (Notebook 00 explains PSNR; its crop of the cat is another one, so its decibels differ. Stable Diffusion's `sd-vae-ft-mse`
# reaches 24.5 dB on COCO's pictures at 256 × 256, by its model card; these are other pictures, so the numbers cannot be compared.)
#
# The architecture gives the shapes. What the weights learn depends on the loss.

# %% [markdown]
# ## Going further: what the last norm is for (optional)
#
# A block normalises its *input*. Its output is that input plus something, and nothing normalises the sum, except `conv_norm_out` at
# the end. Multiply the picture's contrast, by 100 as for pixels from 0 to 255, and compare the encoder's output with this norm and
# without it:

# %%
torch.manual_seed(0)
fresh_encoder = AutoencoderKL(small).encoder
body = nn.Sequential(fresh_encoder.conv_in, *fresh_encoder.down_blocks, fresh_encoder.mid_block)
contrasts = [1, 3, 10, 30, 100, 300, 1000]
inner = [body(contrast * patch) for contrast in contrasts]
without = [fresh_encoder.conv_out(F.silu(x)).std().item() for x in inner]
with_norm = [fresh_encoder.conv_out(F.silu(fresh_encoder.conv_norm_out(x))).std().item() for x in inner]

# %%
curves = {"with conv_norm_out": with_norm, "without": without}
fig = lines(curves, contrasts, xlabel="contrast of the picture, times", ylabel="standard deviation", log=True)
fig.axes[0].set_xscale("log")
show(
    fig,
    alt="Standard deviation of the encoder's output over the picture's contrast, both on log scales. With the last norm it stays level. Without it, it is level at first and then grows in proportion.",
)
assert max(with_norm) < 1.5 * min(with_norm) and without[-1] > 20 * without[0]

# %% [markdown]
# Without the norm, the output grows in proportion to the contrast from about 100 times on; below, what the
# blocks add is larger. With the norm, hardly anything changes. So the size of the output does not tell you that you forgot to rescale the pixels.

# %% [markdown]
# ## Going further: no arrow past the latent (optional)
#
# A U-Net hands its encoder's maps to its decoder. Some drawings have such arrows in autoencoders, too. Here is a toy with one level, with or
# without an arrow, trained on patches of a photograph:


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
big_cat = photographs("held-out")["chelsea"]


def some_patches(number):
    rows, columns = torch.randint(big_cat.shape[1] - 32, (number,)), torch.randint(big_cat.shape[2] - 32, (number,))
    return torch.stack([big_cat[:, r : r + 32, c : c + 32] for r, c in zip(rows, columns, strict=True)])


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
# Test each with the picture's own latent, with *another* picture's, and with zeros over the arrow: a diffusion model's latent comes without
# a picture that an encoder could have seen. (Without an arrow, the third case is the first.)


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
both_cases = {f"no arrow, {name}": error for name, error in plain.items()}
both_cases |= {f"arrow, {name}": error for name, error in arrowed.items()}
show(
    bars(both_cases, xlabel="squared error"),
    alt="Squared errors. Without the arrow: small with the own latent, large with another's. With the arrow: much smaller, almost the same with another's latent, and large without a picture.",
)
assert arrowed["another's latent"] < plain["own latent"] / 2 < plain["another's latent"] / 4
assert arrowed["no picture"] > 10 * arrowed["another's latent"]

# %% [markdown]
# With the arrow, another picture's latent does better than the own latent without it: the decoder ignores the latent. (The third case is
# weaker evidence, because the toy was never trained on zeros.) **Only the latent may reach the decoder.**

# %% [markdown]
# ## Going further: names that look right (optional)
#
# `str.replace` seems to be enough for 05.5. But some files have been converted before, and their names go through it twice:

# %%
name = "mid.attn_1.q.weight"
for _ in range(2):
    name = name.replace("q.weight", "to_q.weight")
print(name)

# %% [markdown]
# Users have met such names (diffusers issue 4790). With whole parts, a current name stays as it is.
#
# A second danger: the first two levels of the decoder have the same shapes, here as in Stable Diffusion. Only the level's number in the name
# tells them apart. Swap them:

# %%
swapped = copy.deepcopy(network)
up = swapped.decoder.up_blocks
assert [p.shape for p in up[0].parameters()] == [p.shape for p in up[1].parameters()]
up[0], up[1] = up[1], up[0]
print(f"every name and shape fits, and the picture is off by {relative(swapped(eye), network(eye)):.0%}")

# %% [markdown]
# No error, and another picture. Compare a picture after every conversion, not only the list of names.

# %% [markdown]
# ## Summary
#
# 1. Four levels, three halvings: 256 → 32. The maps inside hold more values than the picture; only `conv_out` compresses.
# 2. The decoder is no mirror image: one block more in each level, from the small maps to the large, and it gets only the latent.
# 3. 83,653,863 parameters, most of them at small maps; most activations at large ones.
# 4. Equal names and shapes prove nothing. Equal results do: in float64, on an input that is not square and has not as many pixels as
# channels, by a test that notices planted mistakes.
# 5. Weight files have three sets of names. Translate whole parts, and count the decoder's levels from the small end.
#
# ### Check yourself
#
# <details><summary>A picture of 512 × 768 goes in. What is the latent's shape, and how many parameters and activations does the network have now?</summary>
#
# 4 × 64 × 96. Still 83,653,863 parameters: convolutions do not know the picture's size. Six times the activations of 256 × 256, and 36 times
# the attention weights.
# </details>
#
# <details><summary>Section 4 folded quant_conv into conv_out. Can post_quant_conv be folded into the decoder's conv_in as exactly?</summary>
#
# Inside, yes; along the border, no. conv_in pads with zeros *after* post_quant_conv has added its bias. Folded, the bias would count for the
# padding as well.
# </details>
#
# <details><summary>Somebody's port loads Stable Diffusion's weights strictly, and its pictures look right, but a little soft. Which two experiments would you make?</summary>
#
# Compare it with diffusers' class in float64, block by block, on an input that is not square: the first block that differs has the mistake.
# And plant a mistake on purpose, to see that the comparison notices.
# </details>
#
# **Next:** notebook 06 asks by what to judge a reconstruction, and why squared error alone gives blurred pictures.
