# %% [markdown]
# # 11 · Latents for diffusion: from noise to a picture
#
# {{badge}}
#
# A prior sample is no picture (notebook 10). Here a small network learns the way from noise to latents, in class-room time on two CPU
# cores, and the decoder turns its latents into pictures. Beside it you see the same network after a longer training, and you compute
# what the autoencoder saves.
#
# **You will be able to**
#
# * compute a scaling factor by both definitions, and say when they differ;
# * encode a data set once, so that a killed run loses one shard at most, and draw samples from it in every epoch;
# * write flow matching completely: path, velocity, loss, integration;
# * judge samples by eye *and* by numbers, and say what they cost.
#
# **You need** the posterior ([01](01_diagonal_gaussian.ipynb)), residual blocks and attention
# ([03](03_resnet_blocks.ipynb), [04](04_resampling_and_attention.ipynb)), and latents ([10](10_latent_space_explorer.ipynb)).
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

from klvae_edu import AutoencoderKL, flow
from klvae_edu.cli import main
from klvae_edu.data import photographs
from klvae_edu.data.latent_dataset import LatentDataset
from klvae_edu.data.sprites import COLOURS, SHAPES, read_sprite, sprite, sprite_label
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.flow import VelocityNet, train_flow
from klvae_edu.plots import bars, figure, image_grid, lines, show
from klvae_edu.pretrained_flow import load_flow

# %% [markdown]
# ## 1. Pictures that can be judged
#
# The data are *sprites*: one plain shape each, in one of six colours, with a place, a size and a rotation. A picture's content can be
# read from its pixels: colour, place and size directly, the shape by trying which drawing fits best.

# %%
sprites = torch.stack([sprite(index, 64) for index in range(48)])
for index in range(2):
    (found, explained), drawn = read_sprite(sprites[index]), sprite_label(index)
    print(f"drawn: {drawn.colour} {drawn.shape}; read: {found.colour} {found.shape}; explained: {explained:.2f}")

# %% [markdown]
# *Explained* is the share of the picture that this drawing accounts for: 1 for a clean sprite, 0 where an empty picture would fit as
# well. The baseline are sprites that the autoencoder has only encoded and decoded. How much do they lose, though it was never trained
# on sprites?


# %%
def quality(pictures):
    """How much of each picture (B, 3, H, W) a single clean sprite explains: (B,)."""
    return torch.tensor([(read_sprite(picture) or (None, 0.0))[1] for picture in pictures])


vae = AutoencoderKL.from_bundled()
with torch.no_grad():
    z = vae.encode(sprites).latent_dist.mode()
    rebuilt = vae.decode(z).sample.clamp(-1, 1)
clean = 0.7 * quality(rebuilt).median()  # from here on a picture counts as one clean sprite

# %%
fig = image_grid([sprites[:8], rebuilt[:8]], row_labels=["drawn", "rebuilt"])
alt = "Eight sprites on dark ground: discs, triangles and squares, each in one colour. The rebuilt ones are a little softer, with the same shapes and colours."
show(fig, alt=alt, format="jpeg")
same = [read_sprite(picture)[0].colour == sprite_label(k).colour for k, picture in enumerate(rebuilt)]
print(f"explained, median: {quality(rebuilt).median():.2f}; right colour: {sum(same)} of {len(same)}")
assert quality(rebuilt).median() > 0.9 and (quality(rebuilt) > clean).float().mean() > 0.8

# %% [markdown]
# About a twentieth, in the median. From here on a picture counts as *clean* if a sprite explains at least 0.7 times as much of it as
# of these.

# %% [markdown]
# ## 2. The scaling factor of a latent
#
# A diffusion model mixes latents with noise of standard deviation 1, so the latents should have about 1, too. One factor does that,
# but there are two ways to measure the standard deviation. Two channels with two values each:

# %%
two = torch.tensor([[1.0, 3.0], [11.0, 13.0]])
print(f"of each channel {two[0].std():.2f} and {two[1].std():.2f}; of all four {two.std():.2f}")

# %% [markdown]
# Each channel has a small spread; all values together have a large one, because the channels' means are far apart. The law of total
# variance connects them:
#
# $$\underbrace{\mathrm{Var}(z)}_{\text{all values}} \;=\; \underbrace{\tfrac1C\sum_c \sigma_c^2}_{\text{within channels}} \;+\; \underbrace{\mathrm{Var}_c(\mu_c)}_{\text{between their means}}$$
#
# The LDM paper uses all values about one mean (Rombach et al. 2022, appendix G), and CompVis' code takes it from the first batch
# (`ldm/models/diffusion/ddpm.py`). It is often described as an average over channels.

# %% [markdown]
# {{exercise 11.1}}
#
# Compute both. (n or n - 1: both pass.)


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

# %%
with torch.no_grad():
    seen = [vae.encode(image[None, :, :296, :400]).latent_dist.mode() for image in photographs("held-out").values()]
for name, some in {"48 sprites": z, "the first 8 of them": z[:8], "photographs": torch.cat(seen)}.items():
    print("{:20} all values {:.2f}, channels {:.2f}".format(name, *scaling_factors(some)))
within, between = z.var((0, 2, 3), correction=0).mean(), z.mean((0, 2, 3)).var(correction=0)
assert abs((within + between) / z.var(correction=0) - 1) < 1e-4  # the law of total variance

# %% [markdown]
# Eight sprites give another factor than 48, so one batch is too few. The factor belongs to the data as much as to the model. And the
# factor of all values is smaller, because it includes the distance between the channels' means.
#
# One factor changes the spread but cannot remove the means. Newer models store mean and standard deviation of each channel
# (`latents_mean`, `latents_std` in diffusers' configuration). Take these numbers from our 48 sprites, and apply them to 48
# *others*:

# %%
with torch.no_grad():
    others = vae.encode(torch.stack([sprite(index, 64) for index in range(48, 96)])).latent_dist.mode()
mean, std = z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), keepdim=True)
versions = {"times one factor": others * scaling_factors(z)[0], "each channel by itself": (others - mean) / std}
for name, latent in versions.items():
    numbers = zip(latent.mean((0, 2, 3)).tolist(), latent.std((0, 2, 3)).tolist(), strict=True)
    print(f"{name:22} mean ± std:", ", ".join(f"{m:+.1f} ± {s:.1f}" for m, s in numbers))

# %% [markdown]
# With one factor, single channels are still shifted and too narrow or too wide. In a short training that counts, so we use the second
# way. The model's configuration stores it:
#
# ```python
# vae.config = dataclasses.replace(vae.config, scaling_factor=1.0, latents_mean=…, latents_std=…)
# vae.scale_latents(z), vae.decode_from_diffusion(z)   # and back
# ```

# %% [markdown]
# ## 3. Encode once
#
# The encoder is frozen, so every picture is encoded only once, although the flow is trained for many epochs. `klvae encode` writes a
# data set of latents; here it is called from Python, in a temporary folder:

# %%
folder = tempfile.TemporaryDirectory()


def klvae(command):
    with contextlib.chdir(folder.name):
        return main(command.split())


klvae("encode sprites latents --size 64 --count 3072 --device cpu")

# %% [markdown]
# It writes shards of 1,024 rows in Parquet, which `datasets.load_dataset("parquet", data_files="latents/data/*.parquet")` reads on any
# machine, and a `latents.json` that describes them.

# %%
shards = sorted(Path(folder.name, "latents", "data").iterdir())
print(*(f"{shard.name}  {shard.stat().st_size / 2**20:.1f} MiB" for shard in shards), sep="\n")
before = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]

# %% [markdown]
# If the run is killed, start the same command again. A shard gets its final name only when it is complete (atomic renaming), and
# complete shards are kept. Delete one, and leave a half-written file beside it:

# %%
shards[1].unlink()
shards[1].with_name(".half-written.part").write_bytes(b"nothing of use")
klvae("encode sprites latents --size 64 --count 3072 --device cpu")
assert [shard.read_bytes() for shard in sorted(shards[0].parent.iterdir())] == [content for content, _ in before]
print("written anew:", [shard.stat().st_mtime_ns != time for shard, (_, time) in zip(shards, before, strict=True)])

# %% [markdown]
# Only the missing shard was made again, and it is the same to the byte. The files contain the *moments*: means and
# log-variances of the posteriors. So every epoch can draw samples of its own, for twice the numbers.
#
# A sample is its mean plus independent noise, and variances of independent parts add up:
#
# $$\mathrm{Var}(z) = \mathrm{Var}(\mu) + \mathbb E\left[\sigma^2\right]$$

# %% [markdown]
# {{exercise 11.2}}
#
# Compute for each channel the standard deviation that samples would have.


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
# `klvae encode` has computed the same for all 3,072 sprites. Compare the first shard with it, and with real samples:

# %%
data = LatentDataset(Path(folder.name, "latents"))
posterior = data.posterior(0)
predicted = deviation_of_samples(posterior.mean, posterior.logvar)
drawn = posterior.sample(torch.Generator().manual_seed(0)).std((0, 2, 3))
print("within 2 % of samples:", bool(((predicted / drawn - 1).abs() < 0.02).all()))
print("within 5 % of the whole set:", bool(((predicted / data.statistics.std - 1).abs() < 0.05).all()))

# %% [markdown]
# Now set the model's configuration from all latents, and draw one epoch in batches of 64. Each channel should have mean 0 and standard
# deviation 1:

# %%
mean, std = (tuple(values.tolist()) for values in (data.statistics.mean, data.statistics.std))
vae.config = dataclasses.replace(vae.config, scaling_factor=1.0, latents_mean=mean, latents_std=std)
epoch = torch.cat([*data.batches(64, torch.Generator().manual_seed(0), vae.scale_latents)])
print(tuple(epoch.shape), "std within 0.05 of 1:", bool((epoch.std((0, 2, 3)) - 1).abs().max() < 0.05))
assert epoch.mean((0, 2, 3)).abs().max() < 0.05

# %% [markdown]
# ## 4. The way from noise to data
#
# *Flow matching* takes the straight way. From noise x₀ to a latent x₁ it takes one unit of time. Five places on the way from -1 to 3:

# %%
times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
print("places:", ((1 - times) * -1 + times * 3).tolist())

# %% [markdown]
# The velocity is 4 all the way: the derivative of x_t by t does not contain t.
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
# Noise and data are paired at random, so the lines cross. At a crossing two velocities are right, and the best answer under squared
# error is their *average*. This is what a network learns.
#
# Here the average is known: let the data be two points, -2 and 2. A point at x at time t started from the noise (x − 2t)/(1 − t) or
# (x + 2t)/(1 − t). Bayes' rule compares their Gaussian densities:
#
# $$\mathbb E[x_1 \mid x_t = x] = 2\,\frac{e^{a} - e^{-a}}{e^{a} + e^{-a}} = 2\tanh a, \qquad a = \frac{2tx}{(1-t)^2}$$
#
# The velocity is the remaining way, from x to this, divided by the remaining time, 1 − t.


# %%
def average_velocity(x, t):
    """For data that are -2 or 2: the velocity expected at x (B, 1, 1, 1) and t (B,)."""
    t = t[:, None, None, None]
    expected = 2 * torch.tanh(2 * t * x / (1 - t) ** 2)  # of x1, given x_t = x
    return (expected - x) / (1 - t)


# %% [markdown]
# Compare it with the mean of many lines that pass near x = 0.5 at t = 0.4:

# %%
generator = torch.Generator().manual_seed(0)
many = torch.randn(200_000, 1, 1, 1, generator=generator)
ends = 4.0 * torch.randint(2, many.shape, generator=generator) - 2
x_t, velocity = straight_path(many, ends, torch.full((200_000,), 0.4))
mean = velocity[(x_t - 0.5).abs() < 0.02].mean() - average_velocity(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0.4]))
print(f"lines of {whose('11.3', straight_path)} function: |Δ| < 0.1:", bool(mean.abs() < 0.1))

# %% [markdown]
# Now follow the average velocity, in steps of a hundredth, until just before the end. Where does it lead noise that starts near 0?

# %%
noise, points = many[:40], ends[:40].flatten()
walked = [noise]
for step in range(99):
    walked.append(walked[-1] + average_velocity(walked[-1], torch.full((40,), step / 100)) / 100)
walked = torch.cat(walked, dim=1)[:, :, 0, 0]

# %%
fig, (left, right) = figure(1, 2, size=(7, 2.6))
left.plot([0, 1], torch.stack([noise.flatten(), points]), color="0.4", linewidth=0.8)
right.plot(torch.arange(100) / 100, walked.T, color="0.4", linewidth=0.8)
left.set(title="lines between random pairs", xlabel="t", ylabel="x")
right.set(title="following the average velocity", xlabel="t", ylim=left.get_ylim())
alt = "Left: 40 straight lines from noise to -2 or 2, which cross everywhere. Right: 40 paths along the average velocity. They never cross; near 0 they separate, upper ones to 2, lower ones to -2."
show(fig, alt=alt)
assert (walked[:, -1].abs() - 2).abs().max() < 0.2
assert (walked[:, -1].flatten()[noise.flatten().argsort()].diff() > -1e-3).all()  # no two have changed places

# %% [markdown]
# To the point on its side of 0. The crossings are gone, and every path still ends at a data point. That is flow matching: train on
# straight lines between random pairs, and follow the average.

# %% [markdown]
# ## 5. Following a velocity
#
# Euler's method takes the velocity where it is, and goes one step with it. Let the velocity be 2t, from x = 0: at t = 1 the right place
# is 1. Euler comes this far:

# %%
for steps in (1, 2, 4):
    print(f"{steps} steps: {sum(2 * (step / steps) / steps for step in range(steps)):.2f}")

# %% [markdown]
# Too short, because each step uses the velocity at its *start*, and this one grows. Heun's method goes there on trial, asks for the
# velocity again, and uses the average of both. In this example it is exact.
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
# If all data are one Gaussian, the average velocity has a closed form (`flow.gaussian_velocity`), and the way ends at mean + standard
# deviation · noise. Heun asks twice per step. Which method wins at the same number of questions?

# %%
start = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
counts, errors = (4, 8, 16, 32, 64, 128, 256), {"Euler": [], "Heun": []}
exact = functools.partial(flow.gaussian_velocity, mean=2.0, std=0.3)
for questions in counts:
    found = flow.integrate(exact, start, questions, "euler"), integrate(exact, start, questions // 2)
    for method, end in zip(errors, found, strict=True):
        errors[method].append((end - (2 + 0.3 * start)).abs().mean().item())

# %%
fig = lines(
    errors, x=counts, xlabel="times that the velocity is asked", ylabel="mean error", log=True, dashed=("Euler",)
)
fig.axes[0].set_xscale("log")
alt = "Mean error over the number of questions, both axes logarithmic. Both curves fall; Heun's falls about twice as steeply as Euler's."
show(fig, alt=alt)
assert errors["Heun"][-1] < 0.05 * errors["Euler"][-1] and 3.5 < errors["Heun"][-2] / errors["Heun"][-1] < 4.5

# %% [markdown]
# Heun. With twice as many steps its error falls to a quarter, Euler's to a half. Below we take fifteen steps.

# %% [markdown]
# ## 6. Training in class-room time
#
# The network is a U-Net with one level: a residual block at 8 × 8, two with attention at 4 × 4, and one more at 8 × 8. Each block must
# know the time. A single number t would hardly tell near times apart, so 64 sines and cosines of t pass through a linear layer, which
# gives one number to add to each channel.


# %%
def train(steps, batch=32):
    torch.manual_seed(0)
    generator, net = torch.Generator().manual_seed(0), VelocityNet(channels=4, width=48, depth=2)
    epochs = (data.batches(batch, generator, vae.scale_latents) for _ in itertools.count())
    return train_flow(net, itertools.chain.from_iterable(epochs), steps, generator=generator)


# %% [markdown]
# `train_flow` is the loop: AdamW, a learning rate that falls like a cosine, and notebook 08's moving average of the weights. One
# training step is three lines, and the loss is your path under squared error. Will the loss go to zero?


# %%
def loss_of(velocity, x1):
    x0, t = torch.randn_like(x1), torch.rand(len(x1))
    x_t, target = straight_path(x0, x1, t)
    return (velocity(x_t, t) - target).square().mean()


net = VelocityNet(channels=4, width=48, depth=2)
print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} million parameters")
print("untrained, the answer is 0 and the loss about 2:", bool(abs(loss_of(net, epoch[:512]) - 2) < 0.2))

# %% [markdown]
# No: at a crossing several velocities are right, and their variance always remains. It begins at 2, because noise and data
# have a variance of 1 each. Now train:

# %%
STEPS, BATCH = 600, 32
flow_net, losses = train(STEPS, BATCH)
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(1)
fig = lines({"loss, mean of 20 steps": smooth}, xlabel="step", ylabel="loss", size=(6, 2.4))
show(
    fig,
    alt="The loss over the training steps. It falls from 2, quickly at first, then slowly, and stays well above zero.",
)
assert 0.1 < sum(losses[-50:]) / 50 < 1.2

# %% [markdown]
# The loss says little about the samples, so look at those.

# %% [markdown]
# ## 7. From noise to sprites
#
# Three draws of noise are followed for fifteen steps, and decoded on the way. When do you see what they become?

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
alt = "Three samples, each decoded at six times from noise (t = 0) to a coloured shape on dark ground (t = 1). Place and colour show early, edges late."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# Place and colour a little after t = 0.5, edges last, although nobody asked for this order. Now 64 samples, judged by the number of
# section 1, beside noise that was decoded directly:

# %%
with torch.no_grad():
    pictures = vae.decode_from_diffusion(samples).clamp(-1, 1)
    of_noise = vae.decode_from_diffusion(noise[:16]).clamp(-1, 1)
marks = {"decoded noise": quality(of_noise), "samples": quality(pictures), "rebuilt sprites": quality(rebuilt)}
shares = {name: 100 * (values > clean).float().mean().item() for name, values in marks.items()}
assert shares["samples"] > 50 and shares["decoded noise"] < 10

# %%
fig = bars(shares, xlabel="clean pictures, in %")
alt = "The share of clean pictures: none of the decoded noise, more than half of the samples, and nearly all rebuilt sprites."
show(fig, alt=alt)

# %% [markdown]
# More than half of the samples are clean by this number. Your eye also asks for straight edges: a ragged shape lies mostly inside the
# sprite that fits it best, and *explained* asks for no more. A measure sees only what it measures (notebook 09).
#
# A longer training should give cleaner outlines. `load_flow` loads the same network, trained longer, which comes with the package (its
# card: `klvae_edu/assets/flow-sprites/README.md`). It gets the same noise and the same decoder.

# %%
stored, about = load_flow()
print(f"trained on {about.steps * about.batch_size / (STEPS * BATCH):.0f} times as many latents as yours")
its_vae = vae.clone()
its_vae.config = dataclasses.replace(vae.config, latents_mean=about.latents_mean, latents_std=about.latents_std)
with torch.no_grad():
    longer = its_vae.decode_from_diffusion(integrate(stored, noise, 15)).clamp(-1, 1)

# %%
pairs = [pictures[:8], longer[:8], pictures[8:16], longer[8:16]]
fig = image_grid(pairs, row_labels=["class-room", "longer"] * 2)
alt = "Sixteen samples of each network, in pairs that start from the same noise. Most pairs lie at nearly the same place; their colours often differ. After the longer training each has one even colour and a smooth outline, but many corners are round."
show(fig, alt=alt, format="jpeg")
marks["longer"] = quality(longer)
middle = {name: values.median().item() for name, values in marks.items()}
assert middle["samples"] + 0.02 < middle["longer"] < middle["rebuilt sprites"]
assert (marks["longer"] > clean).float().mean() > 0.9

# %% [markdown]
# The outlines are smooth now, and more than nine in ten are clean. Compare the two sprites of each pair, and sprites of different
# noise:

# %%
read = [[read_sprite(picture)[0] for picture in some] for some in (pictures, longer)]
x, y = (64 * torch.tensor([[getattr(it, axis) for it in some] for some in read]) for axis in "xy")  # (2, 64), in pixels
apart = torch.hypot(x[0][:, None] - x[1], y[0][:, None] - y[1])  # (64, 64); pairs on the diagonal
print("median distance within pairs below 4 pixels:", bool(apart.diag().median() < 4))
print("of different noise above 6 pixels:", bool(apart[~torch.eye(64, dtype=torch.bool)].median() > 6))
print("of one colour fewer than 9 in 10 pairs:", sum(a.colour == b.colour for a, b in zip(*read, strict=True)) < 58)

# %% [markdown]
# Two networks that were trained separately put their sprites at nearly the same places. Both approximate the *same* average velocity,
# which depends on the data alone, and integration adds nothing random. The colours often differ: at least one of the networks is not
# exact, so the noise decides only in part.

# %% [markdown]
# ## 8. The cost on pixels
#
# The same network could work without an autoencoder: on three channels instead of four, and on 64 × 64 positions instead of 8 × 8. Guess
# how many times more multiplications one picture needs.

# %%
flops = {}
for name, channels, side in (("latent", 4, 8), ("pixels", 3, 64)):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        VelocityNet(channels, width=48, depth=2)(torch.zeros(1, channels, side, side), torch.zeros(1))
    flops[name] = counter.get_total_flops()
print(
    f"{flops['pixels'] / flops['latent']:.0f} times; the {STEPS * BATCH:,} latents of the class-room training cost as much"
)
print(f"as {STEPS * BATCH * flops['latent'] / flops['pixels']:.0f} pictures on pixels")

# %% [markdown]
# 64 times for the positions, and more because attention grows with their square: 89 times. To see how much training a flow on latents
# needs, train it for shorter times, and measure how much a sprite explains of its samples.

# %%
for steps in (75, 150):
    short, _ = train(steps)
    with torch.no_grad():
        short_pictures = vae.decode_from_diffusion(integrate(short, noise, 15)).clamp(-1, 1)
    middle[steps] = quality(short_pictures).median().item()
curve = [middle[75], middle[150], middle["samples"], middle["longer"]]
assert curve == sorted(curve) and curve[1] < 0.55 < curve[2]

# %%
work = [
    3 * flops["latent"] * count / 1e12
    for count in (75 * BATCH, 150 * BATCH, STEPS * BATCH, about.steps * about.batch_size)
]
fig = lines(
    {"explained": curve}, x=work, xlabel="work of the training, in TFLOP", ylabel="explained, median of 64 samples"
)
fig.axes[0].set(xscale="log", ylim=(min(0, curve[0]), 1)), fig.axes[0].plot(work, curve, "o")
alt = "How much a clean sprite explains of the samples, over the work of the training, on a logarithmic axis: 75, 150, 600 and 18,000 steps on latents. It rises steeply up to 600 steps, then slowly."
show(fig, alt=alt)

# %% [markdown]
# On latents, 2,400 pictures (75 steps) give nothing usable yet. On pixels the class-room's work covers about two hundred. No flow on
# pixels is trained here: *if* it needed as many pictures, it would need 89 times the multiplications. The time also depends on the
# machine. The encoder's work is needed only once.

# %% [markdown]
# ## Going further: are all kinds drawn equally often? (optional)
#
# Colours and shapes are equally frequent in the data. Count them in the 64 samples of the class-room's network:

# %%
read = [found[0] for found in map(read_sprite, pictures) if found]
colours, shapes = Counter(it.colour for it in read), Counter(it.shape for it in read)
fig = bars({name: colours[name] for name in COLOURS} | {name: shapes[name] for name in SHAPES}, xlabel="of 64 samples")
alt = "How often each of six colours and each of three shapes was read from 64 samples. The colours all occur; the shapes are less even."
show(fig, alt=alt)
assert len(colours) >= 5

# %% [markdown]
# The network has never seen a colour, only numbers with noise. Shapes are its weak side: corners are fine detail and learned last.

# %% [markdown]
# ## Summary
#
# 1. One scaling factor changes the spread of all values, but does not remove the channels' different means. A mean and a standard deviation for each channel do.
# 2. Encode once and store moments: every epoch draws its own samples. Shards that get their name only when complete survive a kill.
# 3. Flow matching: straight lines between random pairs, squared error on x₁ - x₀. The network learns the average velocity, whose paths do not cross.
# 4. Heun's method asks twice per step, and its error falls with the square of the step.
# 5. On pixels one picture costs the same network 64 times as much, because there are 64 times as many positions; attention makes it 89.
#
# ### Check yourself
#
# <details><summary>The loss has stopped at 0.5. Is the training stuck?</summary>
#
# Not for that reason. The smallest possible loss is the variance of x₁ - x₀ among all lines through one place, which is far above zero.
# Look at samples, or compare two networks on the same pairs of a validation set.
# </details>
#
# <details><summary>You train a flow with the factor 0.18215 on latents of a model of your own. What goes wrong?</summary>
#
# That factor belongs to another model and other data. If your latents have a standard deviation of 1, it becomes 0.18: the noise is five
# times as strong as the data, and small errors of the network are large ones in the latent.
# </details>
#
# <details><summary>Why not train encoder, decoder and flow together, and save the encoding?</summary>
#
# The flow's loss would reach the encoder, which could make it small without any flow, with latents that are all the same. Here the latent
# space is fixed first, by reconstruction and KL.
# </details>
#
# **Next:** 12, scaling up: larger pictures, less memory, lower precision, several processes, and what the real training would cost.
