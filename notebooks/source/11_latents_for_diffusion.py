# %% [markdown]
# # 11 · Latents for diffusion: from noise to a picture
#
# {{badge}}
#
# A prior sample is no picture (notebook 10). Here you close the gap: a small network learns the way from noise to latents, in
# class-room time on two CPU cores, and the decoder you know turns its latents into pictures. The same network on pixels shows what the
# autoencoder saves.
#
# **You will be able to**
#
# * compute a scaling factor by both definitions, and say when they differ;
# * encode a data set once, so that a killed run loses one shard at most, and draw from it as often as you like;
# * write flow matching whole: path, velocity, loss, integration;
# * judge samples by eye *and* by numbers, and say what they cost.
#
# **You need** the posterior ([01](01_diagonal_gaussian.ipynb)), residual blocks and attention
# ([03](03_resnet_blocks.ipynb), [04](04_resampling_and_attention.ipynb)), and latents in hand ([10](10_latent_space_explorer.ipynb)).
#
# {{budget}}

# %% tags=["environment"]

# %%
import contextlib
import dataclasses
import functools
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from klvae_edu import AutoencoderKL, flow, latents
from klvae_edu.cli import main
from klvae_edu.data import photographs
from klvae_edu.data.sprites import COLOURS, SHAPES, read_sprite, sprite, sprite_label
from klvae_edu.exercises import check, hint, solution
from klvae_edu.flow import VelocityNet, train_flow
from klvae_edu.data.latent_dataset import LatentDataset
from klvae_edu.plots import PALETTE, figure, image_grid, show
from klvae_edu.pretrained_flow import load_flow

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"
MARKERS = list(zip(PALETTE[:4], "os^D", strict=True))  # a colour and a marker for each latent channel

# %% [markdown]
# ## 1. What shall be generated?
#
# Something that can be judged. *Sprites*: one plain shape each, in one of six colours, with a place, a size and a turn. Whoever draws
# them knows what is in the picture. Can that also be read off a picture somebody else made?

# %%
sprites = torch.stack([sprite(index, 64) for index in range(48)])
for index in range(2):
    (found, explained), drawn = read_sprite(sprites[index]), sprite_label(index)
    print(f"drawn: {drawn.colour} {drawn.shape}; read: {found.colour} {found.shape}; explained: {explained:.2f}")

# %% [markdown]
# It can: colour, place and size from the pixels, the shape by trying which drawing fits. *Explained* is the share of the sprite that
# this drawing accounts for: 1 for a clean sprite, 0 where an empty picture would fit as well.

# %%
vae = AutoencoderKL.from_bundled()


@torch.no_grad()
def decode(z):
    return vae.decode(z).sample.clamp(-1, 1)


with torch.no_grad():
    z = vae.encode(sprites).latent_dist.mode()
rebuilt = decode(z)

# %% [markdown]
# A bar to measure samples by: sprites that the autoencoder has merely encoded and decoded. Samples can hardly be expected to be
# better. How much will it lose on pictures it was never trained on?


# %%
def quality(pictures):
    """How much of each picture (B, 3, H, W) a single clean sprite explains: (B,)."""
    return torch.tensor([(read_sprite(picture) or (None, 0.0))[1] for picture in pictures])


clean = 0.7 * quality(rebuilt).median()  # from here on a picture counts as one clean sprite

# %%
fig = image_grid([sprites[:8], rebuilt[:8]], row_labels=["drawn", "rebuilt"])
alt = (
    "Eight sprites on dark ground, discs, triangles and squares, each in one colour; below, the same, a little softer."
)
show(fig, alt=alt, format="jpeg")
same = [read_sprite(picture)[0].colour == sprite_label(k).colour for k, picture in enumerate(rebuilt)]
assert quality(sprites).min() > 0.9 and (quality(rebuilt) > clean).float().mean() > 0.8 and sum(same) > 45

# %% [markdown]
# A little softer, but one sprite each, of the colour that was drawn. A picture whose sprite is explained nearly as well as these are, at least 0.7 times their median,
# counts as *clean* from here on.

# %% [markdown]
# ## 2. By what is a latent multiplied?
#
# A diffusion model mixes latents with noise of deviation 1, so the latents need a deviation of about 1 themselves. One number does it,
# but which? Two channels, four values. What is "the" deviation?

# %%
two = torch.tensor([[1.0, 3.0], [11.0, 13.0]])
print(f"of each channel {two[0].std():.2f} and {two[1].std():.2f}; of all four {two.std():.2f}")

# %% [markdown]
# Each channel is narrow; the heap is broad, because the channels lie *apart*. The two are tied by the law of total variance, with n in
# the place of n - 1:
#
# $$\underbrace{\mathrm{Var}(z)}_{\text{all values}} \;=\; \underbrace{\tfrac1C\sum_c \sigma_c^2}_{\text{within channels}} \;+\; \underbrace{\mathrm{Var}_c(\mu_c)}_{\text{between their means}}$$

# %% [markdown]
# Both definitions are in use. The LDM paper's is of all values, about one mean (Rombach et al. 2022, appendix G), and CompVis' code
# takes it from the first batch alone (`ldm/models/diffusion/ddpm.py`). Often it is told as an average over channels.

# %% [markdown]
# {{exercise 11.1}}
#
# Compute both. (n or n - 1: with so many values either passes.) `hint("11.1")` helps you on, `solution("11.1")` shows the finished
# code.


# %%
def scaling_factors(z):
    """Latents (B, C, h, w) -> 1 / deviation of all values, and 1 / the average of the channels' deviations."""
    # BEGIN SOLUTION
    of_all = z.std()
    of_channels = z.std(dim=(0, 2, 3))
    return 1 / of_all, 1 / of_channels.mean()
    # SKELETON
    #| of_all = ...       # one deviation
    #| of_channels = ...  # (C,)
    #| return ..., ...
    # END SOLUTION


scaling_factors = check("11.1", scaling_factors)

# %% [markdown]
# Now real latents: of sprites, of their first eight only, and of photographs. For which will the two factors differ most?

# %%
with torch.no_grad():
    cats = [vae.encode(image[None, :, :296, :400]).latent_dist.mode() for image in photographs("held-out").values()]
sets = {"48 sprites": z, "the first 8 of them": z[:8], "photographs": torch.cat(cats)}
for name, some in sets.items():
    print("{:20} all values {:.2f}, channels {:.2f}".format(name, *scaling_factors(some)))

# %% [markdown]
# Three things to take away. Eight pictures give another factor than 48: so much for the first batch. The factor belongs to the *data*
# as much as to the model: sprites are not photographs. And where the channels' means lie apart, the factor of all values is the
# smaller one.

# %%
within, between = z.var((0, 2, 3), correction=0).mean(), z.mean((0, 2, 3)).var(correction=0)
print("law of total variance: relative |Δ| < 1e-4:", bool(abs((within + between) / z.var(correction=0) - 1) < 1e-4))
assert scaling_factors(z)[0] < scaling_factors(z)[1]

# %% [markdown]
# So is one factor enough? It stretches, but it moves nothing. Newer models keep a mean and a deviation for each channel
# (`latents_mean`, `latents_std` in diffusers' configuration). Noise has mean 0 and deviation 1 in every channel: which of the three
# comes closest to it?

# %%
factor, mean, std = scaling_factors(z)[0], z.mean((0, 2, 3)), z.std((0, 2, 3))
versions = {"as they are": (mean, std), "times one factor": (mean * factor, std * factor)}
versions["each channel by itself"] = ((mean - mean) / std, std / std)

# %%
fig, axes = figure(1, 3, size=(7.5, 2.4))
for ax, (title, (centre, spread)) in zip(axes, versions.items(), strict=True):
    ax.axhspan(-1, 1, color=GREY, alpha=0.3)
    for channel, (color, marker) in enumerate(MARKERS):
        ax.errorbar(channel, centre[channel], spread[channel], fmt=marker, color=color, capsize=5)
    ax.set(xticks=range(4), xlabel="channel", title=title, ylim=(-3, 3))
alt = "Mean and deviation of four channels beside a band from -1 to 1: scattered as they are and times one factor, on the band where each is standardised."
show(fig, alt=alt)
assert mean.std() > 0.1

# %% [markdown]
# With one factor the heap has a deviation of 1, but single channels still lie beside the noise, which the network has to learn first.
# In a short training that counts, so we take the third. The model's own settings carry it:

# %% [markdown]
# ```python
# vae.config = dataclasses.replace(vae.config, scaling_factor=1.0, latents_mean=…, latents_std=…)
# vae.scale_latents(z), vae.decode_from_diffusion(z)   # and back
# ```
#
# But the numbers should come from the whole data set, not from 48 sprites.

# %% [markdown]
# ## 3. How often must a picture be encoded?
#
# Once. The encoder is frozen; only the flow is trained, for many epochs. `klvae encode` writes a data set of latents, here called from
# Python, in a folder that goes away with the notebook:

# %%
folder = tempfile.TemporaryDirectory()


def klvae(command):
    with contextlib.chdir(folder.name):
        return main(command.split())


klvae("encode sprites latents --size 64 --count 3072 --device cpu")

# %% [markdown]
# What is in there? Shards of 1,024 rows in Parquet, which `datasets.load_dataset("parquet", data_files="latents/data/*.parquet")` reads
# anywhere, and a `latents.json` that says what they are of.

# %%
shards = sorted(Path(folder.name, "latents", "data").iterdir())
print(*(f"{shard.name}  {shard.stat().st_size / 2**20:.1f} MiB" for shard in shards), sep="\n")
before = [shard.read_bytes() for shard in shards]
written = [shard.stat().st_mtime_ns for shard in shards]

# %% [markdown]
# A night's run is killed at three in the morning. What do you do? The same command again. Shards get their names when they are whole,
# and whole ones are kept. Let us lose one, and leave a half-written file beside it:

# %%
shards[1].unlink()
shards[1].with_name(".half-written.part").write_bytes(b"nothing of use")
klvae("encode sprites latents --size 64 --count 3072 --device cpu")
assert sorted(shards[0].parent.iterdir()) == shards
assert [shard.read_bytes() for shard in shards] == before
print("written anew:", [shard.stat().st_mtime_ns != time for shard, time in zip(shards, written, strict=True)])

# %% [markdown]
# One shard was made again, and it is the same to the byte. The files hold the posteriors' *means and log-variances*, in which nothing
# is random. Samples would be frozen for all epochs; from moments, every epoch draws its own. The price: twice the numbers.

# %% [markdown]
# Moments tell even the spread of samples that nobody drew. A sample is its mean plus independent noise, so variances add up:
#
# $$\mathrm{Var}(z) = \mathrm{Var}(\mu) + \mathbb E\left[\sigma^2\right]$$
#
# {{exercise 11.2}}
#
# For each channel: how far would samples spread?


# %%
def deviation_of_samples(mean, logvar):
    """Posteriors (B, C, h, w) -> the deviation (C,) that their samples would have, without drawing any."""
    # BEGIN SOLUTION
    of_means = mean.var(dim=(0, 2, 3))
    of_noise = logvar.exp().mean(dim=(0, 2, 3))
    return (of_means + of_noise).sqrt()
    # SKELETON
    #| of_means = ...  # the variance of all means of a channel, (C,)
    #| of_noise = ...  # the average variance of its posteriors, (C,)
    #| return ...
    # END SOLUTION


deviation_of_samples = check("11.2", deviation_of_samples)

# %% [markdown]
# `klvae encode` has done the same for all 3,072, shard by shard. `posterior(0)` is the first shard's: does that third agree with the
# whole? And with real samples?

# %%
data = LatentDataset(Path(folder.name, "latents"))
posterior = data.posterior(0)
predicted = deviation_of_samples(posterior.mean, posterior.logvar)
drawn = posterior.sample(torch.Generator().manual_seed(0)).std((0, 2, 3))
print("within 2 % of samples:", bool(((predicted / drawn - 1).abs() < 0.02).all()))
print("within 5 % of the whole set:", bool(((predicted / data.statistics.std - 1).abs() < 0.05).all()))

# %% [markdown]
# Now the settings, from all latents, and one epoch in batches of 64, each sampled and scaled. What should mean and deviation of each
# channel be?

# %%
mean, std = (tuple(values.tolist()) for values in (data.statistics.mean, data.statistics.std))
vae.config = dataclasses.replace(vae.config, scaling_factor=1.0, latents_mean=mean, latents_std=std)
epoch = torch.cat([*data.batches(64, torch.Generator().manual_seed(0), vae.scale_latents)])
print(tuple(epoch.shape), "mean 0 and deviation 1 within 0.05:", bool((epoch.std((0, 2, 3)) - 1).abs().max() < 0.05))
assert epoch.mean((0, 2, 3)).abs().max() < 0.05

# %% [markdown]
# ## 4. Which way leads from noise to data?
#
# The straight one. Take noise x₀ and a latent x₁, and walk from one to the other in one unit of time. Five places on the way from -1 to
# 3; what is the velocity?

# %%
times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
print("places:", ((1 - times) * -1 + times * 3).tolist())

# %% [markdown]
# Four, all the way: the derivative of x_t by t has no t in it.
#
# $$x_t = (1-t)\,x_0 + t\,x_1, \qquad \frac{dx_t}{dt} = x_1 - x_0$$
#
# (Lipman et al. 2023, section 4.1; Liu et al. 2023, equation 1.)

# %% [markdown]
# {{exercise 11.3}}
#
# Place and velocity for a batch, where each latent has a time of its own.


# %%
def straight_path(x0, x1, t):
    """Noise x0, data x1 (B, C, h, w), times t (B,) -> the place x_t between them, and the velocity, (B, C, h, w)."""
    # BEGIN SOLUTION
    t = t[:, None, None, None]
    x_t = (1 - t) * x0 + t * x1
    return x_t, x1 - x0
    # SKELETON
    #| t = ...    # of a shape that stretches over an image
    #| x_t = ...
    #| return x_t, ...
    # END SOLUTION


straight_path = check("11.3", straight_path)

# %% [markdown]
# But which data for which noise? Any for any: pairs are drawn at random, and the lines cross. At a crossing, two velocities are right.
# What is nearest to several answers at once, in mean squared error, is their *average*, and that a network learns. Is it any use?

# %% [markdown]
# Try it where the average is known. Let the data be two points, -2 and 2. Whoever is at x at time t came from noise
# $(x \mp 2t)/(1-t)$, with the density of a Gaussian there. Bayes' rule compares the two densities:
#
# $$\mathbb E[x_1 \mid x_t = x] = 2\,\frac{e^{a} - e^{-a}}{e^{a} + e^{-a}} = 2\tanh a, \qquad a = \frac{2tx}{(1-t)^2}$$
#
# From x to there is the rest of the way; over the rest of the time, 1 - t, that is the velocity.


# %%
def average_velocity(x, t):
    """For data that are -2 or 2: the velocity expected at x (B, 1, 1, 1) and t (B,)."""
    t = t[:, None, None, None]
    expected = 2 * torch.tanh(2 * t * x / (1 - t) ** 2)  # of x1, given x_t = x
    return (expected - x) / (1 - t)


generator = torch.Generator().manual_seed(0)
noise = torch.randn(40, 1, 1, 1, generator=generator)
points = 4.0 * torch.randint(2, noise.shape, generator=generator) - 2

# %% [markdown]
# Is it the average of what your function gives? Many lines, those that pass near x = 0.5 at t = 0.4:

# %%
many = torch.randn(200_000, 1, 1, 1, generator=generator)
ends = 4.0 * torch.randint(2, many.shape, generator=generator) - 2
x_t, velocity = straight_path(many, ends, torch.full((200_000,), 0.4))
near = (x_t - 0.5).abs() < 0.02
difference = velocity[near].mean() - average_velocity(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0.4])).item()
print("|Δ| < 0.1:", bool(difference.abs() < 0.1))

# %% [markdown]
# Now follow the average, in steps of a hundredth, until just before the end. Where will it lead noise that starts near 0?

# %%
walked = [noise]
for step in range(99):
    t = torch.full((40,), step / 100)
    walked.append(walked[-1] + average_velocity(walked[-1], t) / 100)
walked = torch.cat(walked, dim=1)[:, :, 0, 0]

# %%
fig, (left, right) = figure(1, 2, size=(7, 2.6))
for start, end, way in zip(noise.flatten(), points.flatten(), walked, strict=True):
    left.plot(
        [0, 1], [start, end], color=BLUE if end > 0 else ORANGE, linestyle="-" if end > 0 else "--", linewidth=0.8
    )
    above = way[-1] > 0
    right.plot(
        torch.arange(100) / 100, way, color=BLUE if above else ORANGE, linestyle="-" if above else "--", linewidth=0.8
    )
left.set(title="lines between random pairs", xlabel="t", ylabel="x")
right.set(title="following the average velocity", xlabel="t", ylim=left.get_ylim())
alt = "Left: straight lines from noise to -2 or 2, crossing everywhere. Right: curves that never cross, and split between the two points."
show(fig, alt=alt)
assert (walked[:, -1].abs() - 2).abs().max() < 0.2
assert (walked[:, -1].flatten()[noise.flatten().argsort()].diff() > -1e-3).all()  # no two have changed places

# %% [markdown]
# The crossings are gone, and still every walk ends at a data point, about half of them at each. That is flow matching: train on straight
# lines between random pairs, follow the average.

# %% [markdown]
# ## 5. How is a velocity followed?
#
# In steps: where am I, which way, go. That is Euler's method. Let the velocity be 2t, from x = 0: at t = 1 one should be at 1. How far
# does Euler come in 1, 2 and 4 steps?

# %%
for steps in (1, 2, 4):
    print(f"{steps} steps: {sum(2 * (step / steps) / steps for step in range(steps)):.2f}")

# %% [markdown]
# Short, because each step trusts the velocity at its *start*, and this one grows. Heun's method looks ahead: go there on trial, ask again, and take
# the average of both answers. Two questions a step, and exact here.
#
# $$v = v(x, t), \qquad v' = v(x + \Delta t\, v,\; t + \Delta t), \qquad x \leftarrow x + \Delta t\,\frac{v + v'}2$$

# %% [markdown]
# {{exercise 11.4}}
#
# Write Heun's method. The velocity is a function of places (B, …) and of times (B,), one for each.


# %%
def integrate(velocity, x0, steps):
    """Follow velocity(x, t), t (B,), from x0 (B, …) at t = 0 to t = 1, by Heun's method."""
    # BEGIN SOLUTION
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        v_end = velocity(x + dt * v, t + dt)
        x = x + dt * (v + v_end) / 2
    return x
    # SKELETON
    #| x, dt = x0, 1 / steps
    #| for step in range(steps):
    #|     t = ...      # (B,): the time at which this step begins
    #|     v = ...      # here
    #|     v_end = ...  # the velocity at the place and time to which v would lead
    #|     x = ...
    #| return x
    # END SOLUTION


integrate = check("11.4", integrate)

# %% [markdown]
# How many steps are enough? Where all data are one Gaussian, the average velocity is known in closed form (`flow.gaussian_velocity`),
# and the way should end at mean + deviation · noise. Which method wins at the same number of questions?

# %%
start = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
counts, errors = (4, 8, 16, 32, 64, 128, 256), {"Euler": [], "Heun": []}
exact = functools.partial(flow.gaussian_velocity, mean=2.0, std=0.3)
for questions in counts:
    found = flow.integrate(exact, start, questions, "euler"), integrate(exact, start, questions // 2)
    for method, end in zip(errors, found, strict=True):
        errors[method].append((end - (2 + 0.3 * start)).abs().mean().item())

# %%
fig, ax = figure(size=(5, 2.6))
for (name, values), (color, marker) in zip(errors.items(), MARKERS, strict=False):
    ax.loglog(counts, values, marker + "-", color=color, label=name)
ax.set(xlabel="times that the velocity is asked", ylabel="mean error")
ax.set_xticks(counts, counts)
ax.minorticks_off()
ax.legend()
alt = "Errors over the number of questions: both fall, Heun's about twice as steeply as Euler's on logarithmic axes."
show(fig, alt=alt)
assert errors["Heun"][-1] < 0.05 * errors["Euler"][-1] and 3.5 < errors["Heun"][-2] / errors["Heun"][-1] < 4.5

# %% [markdown]
# Two questions a step, and it wins all the same. With small steps, twice as many bring a quarter of Heun's error and half of Euler's:
# the one falls with the square of the step, the other with the step. Below we take fifteen: try four, and sixty.

# %% [markdown]
# ## 6. Can it be learnt in class-room time?
#
# The network is a U-Net of one floor: a residual block at 8 × 8, two with attention at 4 × 4, one more at 8 × 8. New is only that
# each block is told the time: 64 sines and cosines of t pass through a linear layer, which gives one number to add to each channel. Why
# not t itself?

# %%
torch.manual_seed(0)
net = VelocityNet(channels=4, width=48, depth=2)
print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} million parameters")
print("features of two times:", tuple(flow.time_features(torch.tensor([0.1, 0.9]), 64).shape))

# %% [markdown]
# One training step is three lines, and the loss is your path under squared error. Will the loss go to zero?


# %%
def loss_of(velocity, x1):
    x0, t = torch.randn_like(x1), torch.rand(len(x1))
    x_t, target = straight_path(x0, x1, t)
    return (velocity(x_t, t) - target).square().mean()


print("untrained, it answers 0 and is wrong by about 2:", bool(abs(loss_of(net, epoch[:512]) - 2) < 0.2))

# %% [markdown]
# (A single number is hard to tell from its neighbour; fast waves tell near times apart.) Two, because noise and data have a variance
# of one each. `train_flow` is the loop around it: AdamW, a cosine for the learning rate, and notebook 08's average of the weights, to
# sample with. Every epoch draws latents of its own:

# %%
STEPS, BATCH = 600, 32
generator = torch.Generator().manual_seed(0)
epochs = (data.batches(BATCH, generator, vae.scale_latents) for _ in itertools.count())
flow_net, losses = train_flow(net, itertools.chain.from_iterable(epochs), STEPS, generator=generator)

# %%
fig, ax = figure(size=(6, 2.4))
ax.plot(losses, color=GREY, linewidth=0.7, label="each step")
ax.plot(range(10, STEPS - 9), torch.tensor(losses).unfold(0, 20, 1).mean(1)[:, None], color=BLUE, label="mean of 20")
ax.set(xlabel="step", ylabel="loss", ylim=(0, 2.2))
ax.legend()
show(fig, alt="The loss falls from 2 quickly at first, then slowly, and stays well above zero.")
assert 0.1 < sum(losses[-50:]) / 50 < 1.2

# %% [markdown]
# It levels off (the learning rate falls to 0, too), and far above zero it should: nobody can tell from a crossing which line one is
# on. The loss says little about the samples. Look at those.

# %% [markdown]
# ## 7. Does noise become a sprite?
#
# Three draws of noise, followed for fifteen steps, and decoded on the way. When do you see what it will be?

# %%
places = []


@torch.no_grad()
def velocity(x, t):
    places.append(x)
    return flow_net(x, t)


noise = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1))
samples = integrate(velocity, noise, 15)

# %%
stages = [*places[::2], samples][::3]  # Heun asks twice a step: the start of each, and every third of them
rows = [[vae.decode_from_diffusion(x[k : k + 1]).detach()[0].clamp(-1, 1) for x in stages] for k in range(3)]
fig = image_grid(rows, column_titles=[f"t = {t:.1f}" for t in torch.linspace(0, 1, 6)])
alt = "Three rows from noise at t = 0 to a coloured shape on dark ground at t = 1: place and colour show early, edges late."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# A little past half-way you can tell where it will be and in which colour; edges come last, from coarse to fine, though nobody asked for an order.
# (Noise is left in x_t until t = 1, because that is how the path is made.) Now many at once.

# %%
with torch.no_grad():
    pictures = vae.decode_from_diffusion(samples).clamp(-1, 1)
    of_noise = vae.decode_from_diffusion(noise[:16]).clamp(-1, 1)
fig = image_grid(pictures[:32].unflatten(0, (4, 8)))
alt = "32 samples: nearly all one blob on dark ground, many with uneven edges, some of mixed colour."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# Your verdict by eye first: how many are one sprite in one colour? Then by numbers, beside noise that was decoded as it is, and beside
# real sprites.

# %%
marks = {"rebuilt sprites": quality(rebuilt), "samples": quality(pictures), "decoded noise": quality(of_noise)}
shares = {name: (values > clean).float().mean().item() for name, values in marks.items()}
assert shares["samples"] > 0.5 and shares["decoded noise"] < 0.1
print("more than half of the samples are clean, and less than a tenth of the decoded noise")

# %%
fig, ax = figure(size=(6, 2.4))
for (name, values), (color, marker) in zip(marks.items(), MARKERS, strict=False):
    ax.plot(
        values.clamp(-0.5).sort().values,
        torch.linspace(0, 1, len(values)),
        marker,
        color=color,
        label=name,
        markersize=4,
    )
ax.axvline(clean, color="black", linestyle="--", label="clean to the right")
ax.set(xlabel="explained by one sprite (below -0.5 cut)", ylabel="share up to here")
ax.legend()
alt = (
    "Shares over how much is explained: decoded noise far left, then the samples, and the rebuilt sprites at the right."
)
show(fig, alt=alt)
assert marks["samples"].median() > marks["decoded noise"].max()

# %% [markdown]
# A sprite in one colour, says the number; your eye asks for straight edges as well. A ragged blob lies mostly within the sprite that fits
# it best, and *explained* asks no more than that. What a number does not ask, it cannot tell (notebook 09).

# %% [markdown]
# And is each kind drawn as often as it should be? Colours and shapes are even in the data. Where do you expect the flow to be weak?

# %%
read = [found[0] for found in map(read_sprite, pictures) if found]
colours, shapes = Counter(it.colour for it in read), Counter(it.shape for it in read)
fig, (one, two) = figure(1, 2, size=(7, 2.3))
for ax, counts, names in ((one, colours, COLOURS), (two, shapes, SHAPES)):
    ax.bar([*names], [counts[name] for name in names], color=BLUE)
    ax.axhline(64 / len(names), color="black", linestyle="--")
    ax.tick_params(axis="x", labelsize=8)
one.set(ylabel="of 64 samples", title="colours")
two.set(title="shapes")
alt = "Bars of how often each colour and each shape was read; a dashed line marks even shares."
show(fig, alt=alt)
assert len(colours) >= 5

# %% [markdown]
# Many colours, though it has seen nothing but numbers with noise in them. Shapes are its weak side: corners are fine detail and the
# last thing learnt, and a blob with a dent is neither disc nor square.

# %% [markdown]
# Would more steps sharpen them? `load_flow` loads the same network after a longer training, which is stored with the package (its card:
# `klvae_edu/assets/flow-sprites/README.md`). Its samples start from the same noise as yours, and the same decoder decodes them. Mean and
# standard deviation of the channels are those of its own training set.

# %%
stored, about = load_flow()
assert [it.shape for it in stored.parameters()] == [it.shape for it in net.parameters()]
print(f"trained on {about.steps * about.batch_size / (STEPS * BATCH):.0f} times as many latents as yours")

# %%
its_vae = vae.clone()
its_vae.config = dataclasses.replace(vae.config, latents_mean=about.latents_mean, latents_std=about.latents_std)
with torch.no_grad():
    longer = its_vae.decode_from_diffusion(integrate(stored, noise, 15)).clamp(-1, 1)
pairs = [pictures[:8], longer[:8], pictures[8:16], longer[8:16]]
fig = image_grid(pairs, row_labels=["class-room", "longer"] * 2)
alt = "Sixteen samples of each network, in pairs from the same noise: mostly at the same place; after the longer training each in one even colour, with clear edges."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# Each has one even colour and clear edges now, though some shapes are still neither disc nor square nor triangle. Is that in the numbers,
# too? And the two networks, trained separately, put their sprites at nearly the same places. Do they also agree on colours? Of six colours,
# chance would make about one pair in six alike.

# %%
marks["longer"] = quality(longer)
middle = {name: values.median() for name, values in marks.items()}
better = middle["samples"] + 0.02 < middle["longer"] < middle["rebuilt sprites"]
print("explained, median: class-room < longer training < rebuilt sprites:", bool(better))
assert (marks["longer"] > clean).float().mean() > 0.9
print("more than nine in ten of the longer training's samples are clean")
twins = [(a[0], b[0]) for a, b in zip(map(read_sprite, pictures), map(read_sprite, longer), strict=True) if a and b]
apart = torch.tensor([abs(a.x - b.x) + abs(a.y - b.y) for a, b in twins])
print("half of the pairs are less than a tenth of the side apart:", bool(apart.median() < 0.1))
print("more than two pairs in six have one colour:", sum(a.colour == b.colour for a, b in twins) > len(twins) / 3)

# %% [markdown]
# More steps do sharpen them: network, decoder and noise are the same, only the training is longer. The pairs agree because both networks
# approximate the *same* average velocity, which depends on the data alone, and integration adds nothing random: the noise decides. Where
# the short training has an error, the two paths part.

# %% [markdown]
# ## 8. What would it cost on pixels?
#
# The same network, without an autoencoder: three channels instead of four, 64 × 64 places instead of 8 × 8. How many times as many
# multiplications, for one picture?

# %%
pixel_net = VelocityNet(channels=3, width=48, depth=2)
flops = {}
for name, model, shape in (("latent", net, (1, 4, 8, 8)), ("pixels", pixel_net, (1, 3, 64, 64))):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(shape), torch.zeros(1))
    flops[name] = counter.get_total_flops()
print(f"{flops['pixels'] / flops['latent']:.0f} times")

# %% [markdown]
# More than the 64 times as many places, because attention grows with their square. So with the same work it would see that many times
# fewer pictures. Training takes about three passes a picture; the encoder is paid once.

# %%
with FlopCounterMode(display=False) as counter, torch.no_grad():
    vae.encode(sprites[:1])
ours = 3 * flops["latent"] * STEPS * BATCH
print(f"encoding all 3,072 once: {3072 * counter.get_total_flops() / ours:.2f} of the training")
PIXEL_STEPS, PIXEL_BATCH = 6, 8
theirs = 3 * flops["pixels"] * PIXEL_STEPS * PIXEL_BATCH
part = theirs / ours
print(f"{PIXEL_STEPS * PIXEL_BATCH} pictures on pixels: {part:.2f} of the training that saw {STEPS * BATCH:,} latents")
rest = (1 - part) * STEPS * BATCH
print(f"the rest of that work: {rest:,.0f} latents, or {rest * flops['latent'] / flops['pixels']:.0f} pictures")

# %% [markdown]
# So give both that part of the work, from the beginning: 48 pictures here, some thousands of latents there. What will each draw?

# %%
images = (torch.stack([sprite(8 * step + k, 64) for k in range(PIXEL_BATCH)]) for step in range(PIXEL_STEPS))
pixel_flow, _ = train_flow(pixel_net, images, PIXEL_STEPS, generator=generator)
short_net = VelocityNet(channels=4, width=48, depth=2)
short_flow, _ = train_flow(short_net, itertools.chain.from_iterable(epochs), round(part * STEPS), generator=generator)

# %% [markdown]
# Now follow both, from noise, in six of Heun's steps each. On latents the noise is the one from above: compare.

# %%
with torch.no_grad():
    on_pixels = integrate(pixel_flow, torch.randn(4, 3, 64, 64, generator=generator), 6).clamp(-1, 1)
    on_latents = vae.decode_from_diffusion(integrate(short_flow, noise[:4], 6)).clamp(-1, 1)

# %%
fig = image_grid([on_latents, on_pixels], row_labels=["latents", "pixels"])
alt = "Four samples of the flow on latents, coloured clouds; four of the flow on pixels, coloured noise."
show(fig, alt=alt, format="jpeg")
assert quality(on_pixels).max() < quality(on_latents).median()

# %% [markdown]
# Clouds, and noise: so little is not enough for either. But you know what the rest of the work makes of the clouds, and on pixels it
# is for a hundred pictures or two. It could be learnt there as well, that many times longer.

# %% [markdown]
# And much of it would go into what the decoder knows already: how an edge looks. The autoencoder does the fine work once, for all
# pictures; the flow is left with what is where.

# %% [markdown]
# ## Summary
#
# 1. One scaling factor stretches the heap of all values; how far channels lie apart is in it, and mends nothing. A mean and a deviation for each channel do.
# 2. Encode once, keep moments: every epoch draws its own samples, and whole shards with atomic names survive a kill.
# 3. Flow matching: straight lines between random pairs, squared error on x₁ - x₀, and the network learns the average, whose paths do not cross.
# 4. Heun's method asks twice a step, and is worth it.
# 5. On pixels the same network costs as many times more as there are more places, and attention more than that.
#
# ### Check yourself
#
# <details><summary>The loss has stopped at 0.5. Is the training stuck?</summary>
#
# Not for that reason. The smallest possible loss is the variance of x₁ - x₀ among all lines through one place, which is far above zero.
# Look at samples, or compare two networks on the same held-out pairs.
# </details>
#
# <details><summary>You train a flow with the factor 0.18215 on latents of a model of your own. What goes wrong?</summary>
#
# That factor belongs to another model and other data. If your latents have a deviation of 1, they come out at 0.18: the noise is five
# times as strong as the data, nearly all of the way passes before anything is decided, and small errors of the network are large ones
# in the latent.
# </details>
#
# <details><summary>Why not train encoder, decoder and flow together, and save the encoding?</summary>
#
# The flow's loss would reach the encoder, which could make it small without any flow: with latents that are easy to guess, all the same.
# Here the latent space is fixed first, by reconstruction and KL, and the flow has to take it as it is.
# </details>
#
# **Next:** 12, scaling up: larger pictures, less memory, lower precision, several processes, and what the real training would cost.
