# %% [markdown]
# # 10 · The latent space explorer: 4,096 numbers in your hands
#
# {{badge}}
#
# You have built the machine; now play with it. Turn single channels, heat the posterior, poke one latent pixel, mix two
# photographs, take bits away, and bring a photograph of your own. Each slider comes with the reason for what you see.
#
# **You will be able to**
#
# * measure a latent space: its channels, its spread, its scaling factor, and how much of it a plain matrix can read;
# * predict what an edit does before you move the slider;
# * say how many bits a latent value is worth, and what they buy beside JPEG;
# * show why noise from the prior decodes to no image.
#
# **You need** the posterior ([01](01_diagonal_gaussian.ipynb)), the KL term ([02](02_kl_loss.ipynb)), the receptive field
# ([04](04_resampling_and_attention.ipynb)), and PSNR ([06](06_reconstruction_losses.ipynb)).
#
# {{budget}}

# %% tags=["environment"]

# %%
import copy

import torch
from IPython.display import display
from torch import nn
from torch.nn import functional as F

from klvae_edu import AutoencoderKL, latents
from klvae_edu.baselines import jpeg
from klvae_edu.blocks import Attention
from klvae_edu.data import photographs
from klvae_edu.exercises import check, hint, solution
from klvae_edu.metrics import psnr
from klvae_edu.explore import panels
from klvae_edu.explore.photograph import Photograph
from klvae_edu.plots import PALETTE, figure, image_grid, show

torch.set_grad_enabled(False)  # nothing is trained today
BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"
MARKERS = list(zip(PALETTE[:4], "os^D", strict=True))  # a colour and a marker for each latent channel

# %% [markdown]
# ## 1. What do 4,096 numbers look like?
#
# Trained models come with the package. Take the smaller latent: Stable Diffusion's architecture, f = 8 and four latent channels, but small enough for
# sliders. `optimize()` makes a copy that computes the same in fewer multiplications ([12](12_scaling_up.ipynb) shows how). The cat
# below was not among the photographs it learnt from.

# %%
vae = AutoencoderKL.from_bundled().optimize()
photo = photographs("held-out")["chelsea"][None, :, 20:276, 100:356]
posterior = vae.encode(photo).latent_dist
z = posterior.mode()
print(f"{photo.numel():,} numbers in the photograph, {z.numel():,} in the latent {tuple(z.shape)}")


# %%
def decode(z):
    return vae.decode(z.float()).sample.clamp(-1, 1)  # your own functions may return float64


def small(image):
    """(1, 3, 256, 256) -> (3, 112, 112), for display."""
    return F.adaptive_avg_pool2d(image, 112)[0]


rebuilt = decode(z)

# %% [markdown]
# Each channel is a picture of 32 × 32 itself. Before you run the cell: will you recognise the cat in them? In all four?

# %%
pictures = [small(photo), *latents.channel_pictures(z)[0], small(rebuilt)]
titles = ["photograph", *(f"channel {channel}" for channel in range(4)), "decoded"]
caption = f"{psnr(rebuilt, photo).item():.1f} dB"
fig = image_grid([pictures], column_titles=titles, captions=[["", "", "", "", "", caption]])
show(
    fig,
    alt="A cat's face; the latent's four channels as grey pictures, in three of which the face is visible; and the decoded picture.",
    format="jpeg",
)

# %% [markdown]
# Things stay in their places. But what does each channel *say* about its place? Compare it with what can be measured on the 8 × 8
# patch: brightness, two colour differences, and two ramps.

# %%
red, green, blue = F.avg_pool2d(photo, 8)[0]
grey = photo.mean(1, keepdim=True)
left, right = (F.avg_pool2d(grey[..., start:], (8, 4), (8, 8))[0, 0] for start in (0, 4))
top, bottom = (F.avg_pool2d(grey[..., start:, :], (4, 8), (8, 8))[0, 0] for start in (0, 4))
looks = {
    "brightness": (red + green + blue) / 3,
    "red − blue": red - blue,
    "green − magenta": green - (red + blue) / 2,
    "brighter to the right": right - left,
    "brighter downwards": bottom - top,
}


# %%
def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]


table = torch.tensor([[correlation(look, channel) for channel in z[0]] for look in looks.values()])

# %% [markdown]
# Which of the five will you find in a channel of its own? A correlation of ±1 would be the same picture, up to contrast.

# %%
fig, ax = figure(size=(5.5, 2.4))
ax.imshow(table, cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
for row, column in torch.cartesian_prod(torch.arange(5), torch.arange(4)).tolist():
    value = table[row, column].item()
    ax.text(column, row, f"{value:+.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
ax.set(xticks=range(4), xticklabels=[f"channel {channel}" for channel in range(4)], yticks=range(5), yticklabels=looks)
ax.grid(False)
show(
    fig,
    alt="Correlations of the four channels with brightness, two colour differences and two ramps; numbers in a table.",
)
assert table[0].abs().max() > 0.5 and (table.abs() > 0.3).sum() > 4

# %% [markdown]
# Read down the columns. Where a single number stands out, the channel is nearly that one picture; where several do, it is a
# mixture. Three channels follow brightness: this training began with weights that pass average red, green and blue. The fourth holds
# what these leave out. Nobody asked for more order: the loss sees only what the decoder makes of all four.

# %% [markdown]
# Now the spread, the *standard deviation* ("deviation" from here on). A diffusion model mixes latents with noise of deviation 1.
# The latents of many images cannot all be held, so they come in batches. Five numbers in two batches: is the average of two
# deviations the deviation?

# %%
first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7.0, 9.0])
one, two, five = (values.std(correction=0) for values in (first, second, torch.cat([first, second])))  # divided by n
print(f"deviation of each batch {one:.2f}, {two:.2f}; of all five {five:.2f}")

# %% [markdown]
# Not even near: what lies *between* the batches is lost. But sums can be added up, and three of them are enough:
#
# $$m = \frac1n\sum z, \qquad s^2 = \frac1n\sum z^2 - m^2, \qquad \text{scaling factor} = \frac{1}{s_\text{all}}$$

# %% [markdown]
# The last is of *all* values about their one mean, as in CompVis' code (`ldm/models/diffusion/ddpm.py`), which takes it from the first
# batch alone.

# %% [markdown]
# {{exercise 10.1}}
#
# Mean and deviation of each channel, and the scaling factor, in one pass: the batches are a stream, and each must be let go when
# the next one comes. Images may differ in size. (n or n − 1: with so many values both pass.) `hint("10.1")` helps you on,
# `solution("10.1")` shows the finished code.


# %%
def latent_statistics(batches):
    """One pass over latents (B, C, h, w) -> mean (C,), standard deviation (C,), and the scaling factor."""
    # BEGIN SOLUTION
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for z in batches:
        values = z.double().transpose(0, 1).flatten(1)
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.pow(2).sum(1)
    mean = total / count
    std = (squares / count - mean**2).sqrt()
    overall = (squares.mean() / count - mean.mean() ** 2).sqrt()
    return mean, std, 1 / overall
    # SKELETON
    #| count, total, squares = 0, 0, 0
    #| for z in batches:
    #|     values = ...  # (C, B·h·w), in double precision
    #|     ...           # add to count, total and squares
    #| mean, std = ..., ...
    #| return mean, std, ...  # the scaling factor: of all values, about one mean
    # END SOLUTION


latent_statistics = check("10.1", latent_statistics)


# %%
known = photographs("train").values()  # six photographs; the cat and the cup are not among them
encoded = [vae.encode(image[None, :, :424, :496]).latent_dist.mode() for image in known]
means, stds, scale = latent_statistics(iter(encoded))  # six are few enough to keep; a data set is not
finished = latents.statistics(encoded)
assert torch.allclose(means.double(), finished.mean, atol=1e-3)
assert torch.allclose(stds.double(), finished.std, rtol=1e-3)

# %% [markdown]
# The prior says N(0, 1) for every value. How far off are the real ones? And by which number must they be multiplied for a spread of 1?

# %%
fig, ax = figure(size=(5, 2.4))
for channel, (color, marker) in enumerate(MARKERS):
    ax.errorbar(channel, means[channel], stds[channel], fmt=marker, color=color, capsize=6)
ax.axhspan(-1, 1, color=GREY, alpha=0.3, label="the prior, ± one deviation")
ax.set(xticks=range(4), xlabel="channel", ylabel="mean ± one deviation")
ax.set(title=f"scaling factor {scale:.2f} here, {vae.config.scaling_factor:.2f} in the model")
ax.legend()
show(fig, alt="Mean and deviation of each channel, beside the band from -1 to 1 of the prior.")
assert 0.5 < scale / vae.config.scaling_factor < 2

# %% [markdown]
# The two factors were taken from different images, and agree roughly. Stable Diffusion's 0.18215 says that its latents
# have a deviation of 5.5, as you saw in notebook 02. Everything below is in the latent's own units, not scaled.

# %% [markdown]
# ## 2. What happens when you turn one channel?
#
# Two knobs: add something to a channel (*shift*), or stretch it (*scale*). Five values, stretched to twice their contrast. What
# should not change?

# %%
values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
print("about zero:    ", (2 * values).tolist())
print("about the mean:", (values.mean() + 2 * (values - values.mean())).tolist())

# %% [markdown]
# The mean. Scaled about zero, a channel is shifted as well, and you would not know which of the two you see. Scaled by 0, a channel
# is *muted*: it says the same everywhere.


# %%
def edited(z, channel, shift=0.0, scale=1.0):
    result = z.clone()  # the caller's latent stays as it is
    mean = z[:, channel].mean((1, 2), keepdim=True)
    result[:, channel] = mean + scale * (z[:, channel] - mean) + shift
    return result


assert torch.allclose(edited(z, 2, 0.5, 1.5), latents.edit_channel(z, 2, shift=0.5, scale=1.5), atol=1e-5)

# %%
spread = z.std((2, 3))[0]
mutes, lower, higher = (
    [decode(edited(z, c, shift * spread[c], scale)) for c in range(4)] for shift, scale in ((0, 0), (-2, 1), (2, 1))
)
fig = image_grid(
    [[small(picture) for picture in row] for row in (mutes, higher)],
    column_titles=[f"channel {c}" for c in range(4)],
    row_labels=["muted to its mean", "raised by 2 deviations"],
)
show(
    fig,
    alt="The cat with each channel muted, and raised: its colours, its light and its drawing change.",
    format="jpeg",
)

# %% [markdown]
# What is it that a shift changes: light, colour, or the drawing itself? And which channel can you do without? Two measurements.

# %%
shifted = torch.stack([(b - a).mean((0, 2, 3)) for a, b in zip(lower, higher, strict=True)])  # (channels, colours)
muted = [psnr(picture, photo).item() for picture in mutes]
full = psnr(rebuilt, photo).item()

# %%
fig, (one, two) = figure(1, 2, size=(7, 2.5))
for offset, (name, color, hatch) in enumerate([("red", ORANGE, ""), ("green", GREEN, "//"), ("blue", BLUE, "..")]):
    places = torch.arange(4) + 0.25 * (offset - 1)
    one.bar(places, shifted[:, offset], 0.25, color=color, hatch=hatch, edgecolor="white", label=name)
one.set(xticks=range(4), xlabel="channel", title="mean colour: raised minus lowered")
one.legend()
two.bar(range(4), muted, color=GREY)
two.axhline(full, color="black", linestyle="--", label="none muted")
two.set(xticks=range(4), xlabel="channel", title="PSNR when muted, in dB", ylim=(10, full + 5))
two.legend(loc="upper right")
show(
    fig,
    alt="Left: how far a shift of each channel moves the mean of red, green and blue. Right: PSNR with each channel muted.",
)
assert shifted.abs().max() > 0.2 and max(muted) < full - 0.2

# %% [markdown]
# Each channel moves the colours in its own direction, some much further than others. None is idle: whichever you mute, decibels are
# lost. Now by hand. (Where no kernel runs, a sheet of settings stands in the panel's place.)

# %%
mine = Photograph(photo[0], "a cat")  # section 8 puts your own in its place, in all panels at once
panels.channels(vae, mine)

# %% [markdown]
# A shift changes the mean colour. Is the latent perhaps *linear* in colour? Then a 4 × 3 matrix and a bias could read a small
# picture without any decoder:
#
# $$\widehat{\text{rgb}} = z\,W + b, \qquad W, b \;=\; \arg\min \sum \lVert z\,W + b - \text{rgb}\rVert^2$$

# %% [markdown]
# {{exercise 10.2}}
#
# Fit it by least squares. Every latent pixel of every image is one equation; the colours are the averages of its 8 × 8 patch.


# %%
def fit_preview(z, colours):
    """Latents z (B, C, h, w), colours (B, 3, h, w) -> weight (C, 3), bias (3,): the best under squared error."""
    # BEGIN SOLUTION
    rows = z.permute(0, 2, 3, 1).flatten(0, 2)
    rgb = colours.permute(0, 2, 3, 1).flatten(0, 2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    fitted = torch.linalg.lstsq(rows, rgb).solution
    return fitted[:-1], fitted[-1]
    # SKELETON
    #| rows = ...    # (pixels, C), and a column of ones for the bias
    #| rgb = ...     # (pixels, 3)
    #| fitted = ...  # (C + 1, 3), by torch.linalg.lstsq
    #| return ..., ...
    # END SOLUTION


fit_preview = check("10.2", fit_preview)

# %% [markdown]
# Fitted to these six photographs, tried on the cat and on another held-out photograph, a cup of coffee. How much of their light
# will 15 numbers explain, and how much of their hue, which is colour minus grey?

# %%
colours = F.avg_pool2d(torch.stack([image[:, :424, :496] for image in known]), 8)
weight, bias = (part.float() for part in fit_preview(torch.cat(encoded), colours))
coffee = photographs("held-out")["coffee"][None, :, 60:316, 150:406]
both, unseen = torch.cat([photo, coffee]), torch.cat([z, vae.encode(coffee).latent_dist.mode()])
preview = (torch.einsum("bchw,cd->bdhw", unseen, weight) + bias.view(1, 3, 1, 1)).clamp(-1, 1)

# %% [markdown]
# R² is the share of the variance that is explained: 1 for the averages themselves, 0 for each photograph's mean colour everywhere.


# %%
def explained(found, true):
    return 1 - (found - true).pow(2).mean() / (true - true.mean((0, 2, 3), keepdim=True)).pow(2).mean()


averages = F.avg_pool2d(both, 8)
greys = [x.mean(1, keepdim=True) for x in (preview, averages)]
light, hue = explained(*greys), explained(preview - greys[0], averages - greys[1])

# %%
pictures, titles = [averages[0], preview[0], averages[1], preview[1]], ["averages", "15 numbers"] * 2
captions = ["R² over both:", f"light {light:.2f}", f"hue {hue:.2f}", ""]
fig = image_grid([pictures], column_titles=titles, captions=[captions])
show(
    fig,
    alt="Cat and cup in 32 by 32 pixels: averages of the photograph, and the linear preview, right in light and shade and less so in colour.",
)
assert torch.allclose(preview, latents.preview(unseen, *latents.fit_preview(torch.cat(encoded), colours)), atol=1e-3)
assert light > 0.6 and light > hue

# %% [markdown]
# A matrix reads the light better than the hue, for which the latent is less linear: that is the decoder's work, as is all that is
# finer than 8 pixels. But a preview costs next to nothing: notebook 11 could show it at every step.

# %% [markdown]
# ## 3. How much noise does the decoder forgive?
#
# The encoder answers with a mean and a deviation for each value (notebook 01); from here on, σ is this one. Multiply the noise by a
# *temperature*: 0 is the mean, 1 the posterior itself. Five values: which of them hardly move at a temperature of 3?

# %%
mean, std = torch.tensor([2.0, -1.0, 0.0, 1.0, 3.0]), torch.tensor([0.01, 0.1, 0.5, 0.1, 0.01])
noise = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
for temperature in (0, 1, 3):
    print(temperature, [round(value, 2) for value in (mean + temperature * std * noise).tolist()])

# %% [markdown]
# The first and the last. The noise is not the same everywhere: each value has its own deviation, and the temperature multiplies that.

# %% [markdown]
# {{exercise 10.3}}
#
# Write it for a whole posterior, as `encode` returns it in `.latent_dist`. Gradients reach mean and log-variance, as they do in
# `sample`, and the posterior itself stays unchanged.


# %%
def with_temperature(posterior, temperature, noise):
    """The posterior's sample with its noise `temperature` times as strong: (B, C, h, w)."""
    # BEGIN SOLUTION
    return posterior.mean + temperature * posterior.std * noise
    # SKELETON
    #| return ...
    # END SOLUTION


with_temperature = check("10.3", with_temperature)

# %%
noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
sample = posterior.sample(torch.Generator().manual_seed(0))
difference = (with_temperature(posterior, 1.0, noise) - sample).abs().max().item()
print("temperature 1 against posterior.sample(): max |Δ|", "< 1e-5" if difference < 1e-5 else difference)

# %% [markdown]
# At which temperature will the cat be gone: 1, 3, 10 or 30? Let "gone" mean that the picture has lost 8 dB, and write your guess down.

# %%
temperatures = [0, 1, 3, 10, 30]
heated = [decode(with_temperature(posterior, temperature, noise)) for temperature in temperatures]
decibels = [psnr(image, photo).item() for image in heated]
fig = image_grid(
    [[small(image) for image in heated]],
    column_titles=[f"temperature {temperature}" for temperature in temperatures],
    captions=[[f"{value:.1f} dB" for value in decibels]],
)
show(
    fig,
    alt="The decoded cat at rising temperatures: unchanged at first, then grainy, at the end coloured noise.",
    format="jpeg",
)
assert decibels[0] - decibels[1] < 1 and decibels[0] - decibels[2] < 3 and decibels[-1] < decibels[0] - 8

# %% [markdown]
# The decibels hold your answer. At 1 you see no difference: the decoder was trained on exactly this noise. It even forgives three
# times as much. So who decided how wide the posterior is?

# %% [markdown]
# The KL weight did. Noise of deviation σ in a value that the picture depends on costs ½ h σ², with h the curvature of the loss. Against
# that stands the KL's price, w, which is lowest at σ = 1 (notebook 02):
#
# $$\tfrac12\,h\,\sigma^2 + w\cdot\tfrac12\left(\sigma^2 - \log\sigma^2\right) \quad\text{is smallest at}\quad \sigma^2 = \frac{w}{w + h}$$
#
# Do you believe it? Try five values of h, with w = 1, against a search.

# %%
h, sigma = torch.tensor([0.0, 1.0, 3.0, 15.0, 99.0]), torch.linspace(0.05, 1.5, 1451)
cost = 0.5 * h[:, None] * sigma**2 + 0.5 * (sigma**2 - 2 * sigma.log())
print("by search ", [round(value, 2) for value in sigma[cost.argmin(1)].tolist()])
print("by formula", [round(value, 2) for value in (1 / (1 + h)).sqrt().tolist()])

# %% [markdown]
# A value that the picture does not need (h = 0) is left at the prior's σ = 1, as noise. A value that it needs is kept sharp. And where
# h is much larger than w, a weight ten times as high means noise √10 times as wide.

# %% [markdown]
# So what the decoder is *sensitive* to, the encoder must give *sharply*. Sensitivity can be measured: push random signs back through the
# decoder and square the gradient. Products of two different pixels come with either sign and cancel on average; the sum of squared
# changes is left.

# %%
leaf, squared, generator = z.clone().requires_grad_(), 0, torch.Generator().manual_seed(1)
with torch.enable_grad():
    picture = vae.decode(leaf).sample
    for _ in range(12):
        signs = torch.randint(0, 2, picture.shape, generator=generator) * 2.0 - 1
        squared = squared + torch.autograd.grad(picture, leaf, signs, retain_graph=True)[0] ** 2 / 12

# %% [markdown]
# h grows like the sensitivity squared, so where h is much larger than w, σ falls like 1 / sensitivity: slope −1 on log scales. Will the four channels lie on such a line?
# And the places within one channel?

# %%
sensitivity, sigma = squared[0].sqrt().log10().flatten(1), posterior.std[0].log10().flatten(1)
x, y = sensitivity.mean(1), sigma.mean(1)
within = [correlation(*pair).item() for pair in zip(sensitivity, sigma, strict=True)]
fig, ax = figure(size=(5.5, 3))
for c, (color, marker) in enumerate(MARKERS):
    ax.plot(sensitivity[c, ::17], sigma[c, ::17], marker, color=color, markersize=3, alpha=0.5)
    ax.plot(x[c], y[c], marker, color=color, markersize=10, markeredgecolor="black", label=f"{c}: r = {within[c]:+.2f}")
ends = torch.stack([x.min() - 0.2, x.max() + 0.2])
ax.plot(ends, y.mean() + x.mean() - ends, "--", color="black", linewidth=1, label="slope −1")
ax.set(xlabel="sensitivity of the decoder, log10", ylabel="σ of the encoder, log10")
ax.legend(title="channel: r within it", loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="The encoder's σ over the decoder's sensitivity, log scales: four clouds, one a channel; their centres follow a line of slope -1.",
)
assert correlation(x, y) < -0.6 and max(map(abs, within)) < 0.6 and sigma.std(1).mean() < y.std()

# %% [markdown]
# The channels follow: what the decoder feels more, the encoder gives with less noise, although nobody told it. The places hardly do:
# within a channel the link is much looser (r in the legend), and σ differs little. Now heat it yourself:

# %%
panels.temperature(vae, mine)

# %% [markdown]
# ## 4. Which pixels answer when you poke one number?
#
# Notebook 04 counted how far convolutions reach. The decoder also has GroupNorm, which divides by statistics of the *whole* map. Five
# values; the last one changes by 1. What happens to the first?

# %%
values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 6.0]])
for row in F.group_norm(values[:, None], 1)[:, 0]:
    print([round(value, 2) for value in row.tolist()])

# %% [markdown]
# It changes, too, as everything does. So one poked latent pixel should reach the whole picture: strongly its own patch, less the
# neighbours, faintly the rest. Poke one in the fur, in row 22 and column 6, by four of its channel's deviations, in the channel that
# was missed most when muted:

# %%
row, column, channel = 22, 6, muted.index(min(muted))
poked = latents.poke(z, row, column, 4 * spread[channel].item(), channel)
answer = (decode(poked) - rebuilt).abs().amax(1)[0]
patches = (decode(poked) - rebuilt).pow(2).sum(1)[0].unfold(0, 8, 8).unfold(1, 8, 8).sum((2, 3))  # (32, 32)
around = [patches[row - r : row + r + 1, column - r : column + r + 1].sum() / patches.sum() for r in (0, 1, 2)]

# %%
fig, (one, two, three) = figure(1, 3, size=(7, 2.4))
for ax, image, title in ((one, rebuilt, "before, magnified"), (two, decode(poked), "poked")):
    ax.imshow(image[0].permute(1, 2, 0) / 2 + 0.5)
    ax.set(title=title, xlim=(0, 104), ylim=(232, 128))
picture = three.imshow(answer.clamp(min=1e-6).log10(), cmap="magma", vmin=-5, vmax=0)
fig.colorbar(picture, label="change, log10")
three.set(title=f"3 × 3 patches: {around[1]:.1%}")
top, left = 8 * row - 0.5, 8 * column - 0.5
for ax, color in ((one, "black"), (two, "black"), (three, "white")):
    ax.plot([left, left + 8, left + 8, left, left], [top, top, top + 8, top + 8, top], color=color, linewidth=1)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
show(
    fig,
    alt="Fur before and after the poke, which leaves a spot; on a log scale the change is bright at the spot and faint, but nowhere zero, in the rest.",
    format="jpeg",
)
assert around[1] > 0.5 and (answer > 0).float().mean() > 0.95

# %% [markdown]
# The square is the poked pixel's patch; it and its eight neighbours hold most of the squared change (percent above the map), but all of the
# cat answers. Who carries it so far: attention, the norms, or the convolutions?

# %% [markdown]
# Break the first two. In a copy, attention adds, and GroupNorm divides by, what it found for the *unpoked* latent. A *forward hook* does it: PyTorch
# calls it after a module, and what it returns takes the place of the module's output.


# %%
def keep_addition(attention, given, output):
    if not hasattr(attention, "kept"):  # the first time: for the latent as it is
        attention.kept = output - given[0]
    return given[0] + attention.kept


def keep_statistics(norm, given, output):
    grouped = given[0].reshape(1, norm.num_groups, -1)
    if not hasattr(norm, "kept"):
        norm.kept = grouped.mean(2, keepdim=True), grouped.var(2, keepdim=True, correction=0)
    normed = (grouped - norm.kept[0]) / (norm.kept[1] + norm.eps).sqrt()
    return normed.view_as(output) * norm.weight[:, None, None] + norm.bias[:, None, None]


# %%
def response(*hooks):
    """|change| of the picture (256, 256) when the latent is poked, with such hooks on the modules of each kind."""
    model = copy.deepcopy(vae)
    for kind, hook in hooks:
        for module in (module for module in model.decoder.modules() if isinstance(module, kind)):
            module.register_forward_hook(hook)
    before, after = (model.decode(latent).sample for latent in (z, poked))
    return (after - before).abs().mean(1)[0]


attention, norms = (Attention, keep_addition), (nn.GroupNorm, keep_statistics)
responses = {"as it is": response(), "attention kept": response(attention)}
responses |= {"norms kept": response(norms), "both kept": response(attention, norms)}

# %% [markdown]
# Average the answer over square rings around the poked patch, one patch wide. Which of the three broken decoders still reaches far? (A log scale has no 0: a curve
# that has become 0 ends.)

# %%
rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
ring = torch.maximum((rows - row).abs(), (columns - column).abs())
fig, ax = figure(size=(5.5, 2.8))
styles = ["o-", "x:", "^--", "D-"]
for (name, found), style, color in zip(responses.items(), styles, PALETTE, strict=False):
    patches = F.avg_pool2d(found[None, None], 8)[0, 0]
    means = torch.stack([patches[ring == r].mean() for r in range(24)])
    shown = means > 0
    ax.semilogy(torch.arange(24)[shown], means[shown], style, color=color, markersize=5, label=name)
ax.set(xlabel="distance in latent pixels", ylabel="mean change")
ax.legend(loc="lower right")
show(
    fig,
    alt="Mean change over distance. As it is, with attention kept, and with norms kept: level from afar. With both kept: it falls until it is zero.",
)
far = ring.repeat_interleave(8, 0).repeat_interleave(8, 1)
faint = {name: found[far > 14].mean() for name, found in responses.items()}
assert faint["both kept"] == 0 and faint["as it is"] > 1e-6
assert all(0.1 < faint[name] / faint["as it is"] < 5 for name in ("attention kept", "norms kept"))

# %% [markdown]
# With both kept only convolutions are left, and beyond their reach (count it as in notebook 04) the change is *exactly* zero. Keep one
# of the two, and the other still carries it everywhere, about as strongly as both: attention and the norms' statistics, each by itself.

# %% [markdown]
# That is why tiles of an image, decoded apart, do not quite fit together (notebook 12). Now poke where you like. Which pixels of the cat
# answer the loudest?

# %%
panels.pixel(vae, mine)

# %% [markdown]
# ## 5. What lies between two photographs?
#
# Take the cat and the cup. Halfway on the straight line is the average of both latents. Two vectors at right angles, both
# of length 5: how long is their average?

# %%
a, b = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0, 0.0, 0.0]])
middle = (a + b) / 2
print("average", middle[0].tolist(), f"of length {middle.norm():.2f}")
print("on the arc", [round(value, 2) for value in latents.slerp(a, b, 0.5)[0].tolist()])

# %% [markdown]
# Shorter: the straight line cuts the corner. *Spherical* interpolation keeps to the arc. With Ω the angle between a and b,
#
# $$\mathrm{slerp}(a, b; t) = \frac{\sin((1-t)\,\Omega)}{\sin\Omega}\,a + \frac{\sin(t\,\Omega)}{\sin\Omega}\,b$$
#
# (Shoemake 1985). For two that point the same way it is 0/0; then, below an angle of 0.001, say, take the straight line. (Exact
# opposites have no arc of their own.)

# %% [markdown]
# {{exercise 10.4}}
#
# Write it for latents: one angle for each pair of the batch, over all its values. Rounding can lift a cosine above 1, where `acos` has
# no value: clamp it.


# %%
def slerp(a, b, t):
    """From a (t = 0) to b (t = 1), both (B, C, h, w), at an even pace along the angle between each pair."""
    # BEGIN SOLUTION
    x, y = a.flatten(1), b.flatten(1)
    cosine = F.cosine_similarity(x, y, dim=1)
    angle = torch.acos(cosine.clamp(-1, 1))[:, None]
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    straight = (1 - t) * x + t * y
    return torch.where(angle < 1e-3, straight, between).view_as(a)
    # SKELETON
    #| x, y = a.flatten(1), b.flatten(1)
    #| angle = ...    # (B, 1)
    #| between = ...  # the formula
    #| return ...     # where the angle is next to 0 the straight line; in the shape of a
    # END SOLUTION


slerp = check("10.4", slerp)

# %%
cup = unseen[1:]
assert torch.allclose(slerp(z, cup, 0.3).float(), latents.slerp(z, cup, 0.3), atol=1e-4)
steps = [0.25, 0.5, 0.75]
straight = [decode((1 - t) * z + t * cup) for t in steps]
arc = [decode(slerp(z, cup, t)) for t in steps]
faded = [(1 - t) * decode(z) + t * decode(cup) for t in steps]  # no latents: the two pictures, laid over each other

# %% [markdown]
# Will the cat *turn into* a cup, ears becoming a rim? For comparison, the last row mixes the two decoded pictures pixel by pixel.

# %%
rows = {"straight line": straight, "arc": arc, "pixels mixed": faded}
likeness = [[psnr(*pair).item() for pair in zip(row, faded, strict=True)] for row in (straight, arc, [rebuilt] * 3)]
fig = image_grid(
    [[small(image) for image in row] for row in rows.values()],
    row_labels=list(rows),
    column_titles=[f"t = {t:g}" for t in steps],
    captions=[[f"{'the cat: ' * (row is likeness[2])}{value:.1f} dB" for value in row] for row in likeness],
)
show(
    fig,
    alt="Between a cat and a cup at a quarter, a half and three quarters, three times: along the straight line, along the arc, and by mixing pixels. All are cross-fades.",
    format="jpeg",
)
assert likeness[0][1] > likeness[2][1] + 3 and arc[1].std() > straight[1].std()

# %% [markdown]
# The decibels compare with the mixed pixels, to which halfway the straight line is much nearer than the cat itself: a cross-fade, not a morph. Each latent
# pixel describes *its own place*. Nothing says that this eye should travel to that rim.

# %% [markdown]
# The arc has more contrast. But its factors add up to more than 1 (0.71 + 0.71 in the five numbers): it stretches about zero, mean and all, and section 2
# warned against that.

# %% [markdown]
# Then what is the arc good for? For *noise*, from which diffusion starts. Guess the angle between two random latents, and the length of their
# average.

# %%
one, two = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
angle = torch.rad2deg(torch.acos(F.cosine_similarity(one.flatten(1), two.flatten(1))))
print(f"lengths {one.norm():.0f} and {two.norm():.0f}, angle {angle.item():.0f}°")
print(f"halfway: straight {((one + two) / 2).norm():.0f}, arc {slerp(one, two, 0.5).norm():.0f}")

# %% [markdown]
# In 4,096 dimensions, nearly any two are nearly at right angles, and about √4096 = 64 long. The average, 45 long, is like no noise that a
# diffusion model has ever seen; the arc's is. For latents of photographs there is no such law.

# %%
panels.interpolation(vae, mine, coffee)

# %% [markdown]
# ## 6. How many bits is a latent value worth?
#
# 4,096 numbers in float32 are 16 kB. Nobody needs all those digits. With n bits a value has 2ⁿ levels; here five values and 2 bits,
# from -1 to 1. Which four levels, and where does each value go?

# %%
values = torch.tensor([-1.4, -0.5, 0.1, 0.3, 0.9])
print([round(value, 2) for value in latents.quantise(values, bits=2, low=-1.0, high=1.0).tolist()])

# %% [markdown]
# To -1, -⅓, ⅓, 1: four levels with *three* steps between them, both ends included; what lies outside goes to the end.
#
# $$\text{step} = \frac{\text{high} - \text{low}}{2^n - 1}, \qquad \hat z = \text{low} + \text{step}\cdot\mathrm{round}\!\left(\frac{z - \text{low}}{\text{step}}\right)$$

# %% [markdown]
# {{exercise 10.5}}
#
# Write it, with the ends clamped.


# %%
def quantise(z, bits, low, high):
    """Each value to the nearest of 2**bits evenly spaced levels; the first is `low`, the last `high`."""
    # BEGIN SOLUTION
    step = (high - low) / (2**bits - 1)
    index = ((z - low) / step).round().clamp(0, 2**bits - 1)
    return low + index * step
    # SKELETON
    #| step = ...   # between neighbouring levels
    #| index = ...  # of the nearest level, from 0 on
    #| return ...
    # END SOLUTION


quantise = check("10.5", quantise)

# %%
low, high = z.min().item(), z.max().item()
assert torch.allclose(quantise(z, 3, low, high).float(), latents.quantise(z, 3, low, high), atol=1e-4)
starved = {bits: decode(quantise(z, bits, low, high)) for bits in range(1, 9)}
ours = {bits: psnr(image, photo).item() for bits, image in starved.items()}

# %% [markdown]
# n bits a value are 512 n bytes an image. At how many do you stop seeing a difference?

# %%
shown = (1, 2, 3, 4, 5)
fig = image_grid(
    [[small(starved[bits]) for bits in shown]],
    column_titles=[f"{bits} bit{'s' * (bits > 1)}" for bits in shown],
    captions=[[f"{512 * bits:,} bytes" for bits in shown]],
)
show(
    fig,
    alt="The decoded cat with 1 to 5 bits a value: flat patches first, then hardly a difference.",
    format="jpeg",
)
assert ours[1] < full - 3 and abs(ours[6] - full) < 0.5

# %% [markdown]
# Is that good? Ask JPEG, made for this very purpose, for the best picture in as many bytes. (Where even its worst takes more, it is drawn at the bytes
# that it took.) Which of the two do you expect ahead?

# %%
theirs = []  # (bytes that it took, dB)
for bits in ours:
    picture, taken = jpeg(photo, 512 * bits)
    theirs.append((int(taken), psnr(picture, photo).item()))
fitting = [bits for bits, (taken, _) in zip(ours, theirs, strict=True) if taken <= 512 * bits]
ahead = [bits for bits in fitting if theirs[bits - 1][1] > ours[bits]]

# %%
enough = next(bits for bits in ours if ours[bits] > full - 0.3)
fig, ax = figure(size=(5.5, 2.8))
ax.plot([512 * bits for bits in ours], ours.values(), "o-", color=BLUE, label="latents, n bits a value")
ax.plot(*zip(*theirs, strict=True), "s--", color=ORANGE, label="JPEG")
ax.axhline(full, color=BLUE, linestyle=":", linewidth=1, label="latents in float32")
ax.set(xlabel="bytes for the image", ylabel="PSNR in dB", xlim=(0, None))
ax.set(title=f"level from {enough} bits on; JPEG ahead {len(ahead)} of {len(fitting)} times")
ax.legend(loc="lower right")
show(fig, alt="PSNR over bytes: the latents rise steeply and then stay level; JPEG starts later and goes on rising.")
assert theirs[0][0] > 512 and theirs[-1][1] > full and enough <= 6

# %% [markdown]
# The latents saturate: from a few bits on (the title counts them) less than 0.3 dB is missing, and encoder and decoder set the limit. JPEG needs hundreds
# of bytes for its header alone; but where it fits, the title counts how often it is ahead, and it goes on rising.

# %% [markdown]
# Is the comparison fair? Against us: JPEG packs its numbers (Huffman codes), ours are counted as they are. For us: JPEG's receiver needs no
# network of megabytes. And PSNR is not the eye (notebook 09). Now you. (Here each channel has a range of its own.)

# %%
panels.bits(vae, mine)

# %% [markdown]
# Is there a link between bits and temperature? Rounding with a step Δ moves values by up to Δ/2 to either side, all equally likely:
# noise of deviation Δ/√12.

# %%
rounding = {bits: (high - low) / (2**bits - 1) / 12**0.5 for bits in ours}
sigmas = posterior.std.mean((0, 2, 3))
fig, ax = figure(size=(5, 2.3))
ax.semilogy(rounding.keys(), rounding.values(), "o-", color=BLUE, label="rounding: Δ/√12")
ax.axhspan(sigmas.min(), sigmas.max(), color=GREY, alpha=0.4, label="σ, from channel to channel")
ax.axvline(enough, color=ORANGE, linestyle="--", label="within 0.3 dB from here on")
ax.set(xlabel="bits a value", ylabel="deviation of the noise")
ax.legend()
show(
    fig,
    alt="The deviation of rounding noise falls with the bits and crosses the band of σ near where the PSNR levelled off.",
)
assert 0.25 * sigmas.min() < rounding[enough] < 4 * sigmas.max()
assert abs((quantise(z, 5, low, high) - z).std() / rounding[5] - 1) < 0.05

# %% [markdown]
# So both sliders ask one question: how much noise does the decoder forgive? The curve of decibels levels off about where rounding is down to σ, the
# noise of the training. Digits much finer than σ say nothing that the decoder could use.

# %% [markdown]
# ## 7. Can you draw a new image from the prior?
#
# A VAE is a *generative* model: draw z from N(0, I), decode, done? In notebook 02 that worked, for dots. Try it here; and then
# help it, step by step, with what is known of real latents.

# %%
generator = torch.Generator().manual_seed(0)
prior = latents.prior_sample(z.shape, generator)
own = z.mean((2, 3), keepdim=True) + z.std((2, 3), keepdim=True) * prior
shuffled = z.flatten(2)[:, :, torch.randperm(1024, generator=generator)].view_as(z)

# %% [markdown]
# The first is the prior. The second has the mean and the deviation that each channel has in the cat. The third consists of the cat's
# own latent pixels, all of them, in random order. What does none of them have? Neighbours. Five numbers, in order and shuffled:


# %%
def neighbours(z):
    """Correlation of each value with the one on its right, (…, w), without its sign: near 0 for much noise."""
    return correlation(z[..., :-1], z[..., 1:]).abs().item()


for row in ([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 5.0, 4.0, 3.0]):
    print(row, f"{neighbours(torch.tensor(row)):.2f}")

# %% [markdown]
# One more step, then: give noise the cat's correlations, at *every* distance. They are all in the strengths of its waves (its Fourier
# spectrum). Keep these, and turn each wave's phase by a random angle; the same in all channels, which keeps their correlations with each other.

# %%
mean = z.mean((2, 3), keepdim=True)
waves = torch.fft.rfft2(torch.randn(1, 1, 32, 32, generator=generator))
correlated = mean + torch.fft.irfft2(torch.fft.rfft2(z - mean) * waves / waves.abs())
ladder = {"prior": prior, "own spread": own, "shuffled": shuffled, "own waves": correlated, "the cat": z}
beside = {name: sum(neighbours(latent[0, c]) for c in range(4)) / 4 for name, latent in ladder.items()}

# %%
fig = image_grid(
    [[small(decode(latent)) for latent in ladder.values()]],
    column_titles=list(ladder),
    captions=[[f"neighbours {value:.2f}" for value in beside.values()]],
)
show(
    fig,
    alt="Five decoded latents: bright coloured noise; duller noise; noise in the cat's colours; clouds in the cat's colours; the cat.",
    format="jpeg",
)
assert max(abs(beside[name]) for name in ("prior", "own spread", "shuffled")) < 0.06
assert beside["the cat"] > 0.08 and abs(beside["own waves"] - beside["the cat"]) < 0.02

# %% [markdown]
# Four latents, and no image. The shuffled one is made of *nothing but* genuine latent pixels. The clouds have the cat's means, deviations and
# correlations: all that a Gaussian can know that is the same at every place. What makes a cat is which wave meets which, and where.

# %% [markdown]
# Would a higher KL weight help? It would pull each posterior towards N(0, I), and the price is the picture (notebook 02). So leave the
# weight small, and *learn* which latents occur: that is notebook 11.

# %%
panels.prior(vae)

# %% [markdown]
# ## 8. And your own photograph?
#
# Press the button and choose one: its middle square, at 256 × 256, takes the cat's place in every panel above. Nothing leaves the machine
# that your kernel runs on. (The text and the figures go on speaking of the cat.)

# %%
mine

# %% [markdown]
# Scroll up and try: text and faces (what suffers first?), one flat colour, a crowd; a poke in the sky and one in the crowd. Which of the
# things said above do you *not* find in your photograph?

# %% [markdown]
# Every panel works with any model. Name one in `MODEL` and run the cells. "kl-f8-mini-16" comes with the package and has 16 channels, as SD3
# and FLUX: is one of them worth as much as one of the four above? With a network, or a file at hand, take Stable Diffusion's own
# autoencoder. (On a CPU one decode takes seconds, and so does each move of a slider.) As it stands, nothing is loaded.

# %%
MODEL = ""  # "kl-f8-mini-16", a folder, or a Hub id such as "stabilityai/sd-vae-ft-mse" (335 MB)

real = vae
if MODEL == "kl-f8-mini-16":
    real = AutoencoderKL.from_bundled(MODEL).optimize()
elif MODEL:
    try:
        real = AutoencoderKL.from_pretrained(MODEL, dtype=torch.float32).optimize()
    except FileNotFoundError as error:
        print(f"not found, so the first model stays: {error}")

# %%
if real is vae:
    print("the panels above are of this model")
else:
    display(panels.channels(real, mine), panels.temperature(real, mine), panels.pixel(real, mine))

# %% [markdown]
# ## Summary
#
# 1. A latent is a small picture in four mixed channels; its spread, taken in one pass, gives the scaling factor.
# 2. A channel's shift changes the mean colour; a matrix reads light better than hue, and the decoder adds the rest.
# 3. The KL weight sets σ² = w / (w + h): sharp in the channels that the decoder feels most. It forgives more noise than it was trained on.
# 4. A poke answers in its own patch, then around it, and faintly everywhere, through GroupNorm and attention; interpolation cross-fades, because latent pixels describe places.
# 5. A few bits a value are enough: rounding finer than σ buys nothing. But the right mean, spread and correlations are not: noise decodes to no image.
#
# ### Check yourself
#
# <details><summary>A friend scales a whole channel by 1.5 and wonders why the picture's tint has changed. What happened?</summary>
#
# It was scaled about zero. The channel's mean is not zero, so that it was shifted by half of its mean as well, and a shift tints.
# </details>
#
# <details><summary>You train the same model again with ten times the KL weight. What happens to σ, and at which temperature will the cat now be gone?</summary>
#
# Where h is much larger than w, σ becomes √10 times as wide. If the decoder's sensitivity stays as it is, the 8 dB are then lost at a temperature
# √10 times lower.
# </details>
#
# <details><summary>Someone proposes to sample latents from a Gaussian fitted to many real latents, with the full covariance of all 4,096 values. Will it give images?</summary>
#
# Hardly. It knows pairs of values only: how each place differs on average, and how any two vary together. Section 7 gave noise one cat's
# pairs, the same at every place, and got clouds: which waves meet where is in no pair.
# </details>
#
# **Next:** notebook 11 learns which latents occur: a small flow-matching model turns noise into latents, and this decoder turns them into pictures.
