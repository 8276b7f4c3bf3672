# %% [markdown]
# # 10 · The latent space explorer: 4,096 numbers in your hands
#
# {{badge}}
#
# You have built the autoencoder; now play with it. Turn single channels, poke one latent pixel, mix two photographs, take bits away,
# and upload a photograph of your own.
#
# **You will be able to**
#
# * measure a latent space: its channels, its spread, its scaling factor;
# * predict what an edit does before you move the slider;
# * say how many bits a latent value is worth, and compare that with JPEG;
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
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.explore import panels
from klvae_edu.explore.photograph import Photograph
from klvae_edu.metrics import psnr
from klvae_edu.plots import PALETTE, figure, image_grid, lines, maps, show

torch.set_grad_enabled(False)  # nothing is trained in this notebook

# %% [markdown]
# ## 1. What 4,096 numbers look like
#
# The package comes with trained models. This one has Stable Diffusion's architecture, f = 8 and four latent channels, but is small
# enough for sliders. `optimize()` makes a faster copy for inference ([12](12_scaling_up.ipynb) explains it). The cat was not among
# the photographs that it was trained on.


# %%
def decode(z):
    return vae.decode(z.float()).sample.clamp(-1, 1)  # your own functions may return float64


def small(image, side=112):
    """(1, 3, 256, 256) -> (3, side, side), for display."""
    return F.adaptive_avg_pool2d(image, side)[0]


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


vae = AutoencoderKL.from_bundled().optimize()
photo = photographs("held-out")["chelsea"][None, :, 20:276, 100:356]
posterior = vae.encode(photo).latent_dist
z = posterior.mode()
rebuilt = decode(z)
print(f"{photo.numel():,} numbers in the photograph, {z.numel():,} in the latent {tuple(z.shape)}")

# %% [markdown]
# Each channel is itself a picture of 32 × 32. Will you recognise the cat in all four?

# %%
titles = ["photograph", *(f"channel {channel}" for channel in range(4)), "decoded"]
fig = image_grid([[small(photo), *latents.channel_pictures(z)[0], small(rebuilt)]], column_titles=titles)
alt = "A cat's face, the four channels of its latent as grey pictures, and the decoded picture. Three channels show the face; the fourth shows only fine texture."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# In three of them: latent pixels keep their places. To see what a channel contains, compare it with what can be measured on each
# 8 × 8 patch: brightness, two colour differences, and the difference between its halves. ±1 means the same picture, up to contrast.

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
table = {name: [correlation(look, channel) for channel in z[0]] for name, look in looks.items()}
print("channel".ljust(22), "     0      1      2      3")
for name, row in table.items():
    print(name.ljust(22), "  ".join(f"{value:+.2f}" for value in row))
assert max(table["brightness"]) > 0.5 and abs(table["brightness"][3]) < 0.3

# %% [markdown]
# Channels 0 to 2 follow brightness. This training began with weights that pass average red, green and blue through
# (`docs/training.md`, Initialisation), and changed them. Channel 3 contains differences inside the patch. All four are mixtures:
# the loss sees only what the decoder makes of them together.
#
# Now the spread. A diffusion model mixes latents with noise of standard deviation 1. The latents of many images do not fit into
# memory, so they come in batches. The average of two standard deviations is not the standard deviation of all values:

# %%
first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7.0, 9.0])
one, two, five = (values.std(correction=0) for values in (first, second, torch.cat([first, second])))  # divided by n
print(f"standard deviation of each batch {one:.2f}, {two:.2f}; of all five {five:.2f}")

# %% [markdown]
# The difference *between* the batches is lost. But these sums can be added up:
#
# $$m = \frac1n\sum z, \qquad s^2 = \frac1n\sum z^2 - m^2, \qquad \text{scaling factor} = \frac{1}{s_\text{all}}$$
#
# The scaling factor is taken from *all* values about their one mean, as in CompVis' code (`ldm/models/diffusion/ddpm.py`).

# %% [markdown]
# {{exercise 10.1}}
#
# Mean and standard deviation of each channel, and the scaling factor, in one pass: each batch is gone when the next one comes.
# Images may differ in size. (n or n − 1: both pass.)


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
means, stds, scale = latent_statistics(iter(encoded))
print("mean of each channel              ", "  ".join(f"{value:+.2f}" for value in means.tolist()))
print("standard deviation of each channel", "  ".join(f" {value:.2f}" for value in stds.tolist()))
print(f"scaling factor {scale:.2f}; in the model's configuration {vae.config.scaling_factor:.2f}")

# %% [markdown]
# The prior has mean 0 and standard deviation 1 everywhere; here one mean is -0.5. The two factors come from different images
# and differ by a seventh. Stable Diffusion's factor, 0.18215, means a standard deviation of 5.5. Below, latents are not scaled.

# %% [markdown]
# ## 2. Turning one channel
#
# There are two edits: add something to a channel (*shift*), or stretch it (*scale*). Five values, stretched to twice their contrast:

# %%
values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
print("about zero:    ", (2 * values).tolist())
print("about the mean:", (values.mean() + 2 * (values - values.mean())).tolist())

# %% [markdown]
# Scaled about zero, the channel is shifted as well. So scale about the mean. Scaled by 0, a channel is *muted*: it has its mean everywhere.


# %%
def edited(z, channel, shift=0.0, scale=1.0):
    result = z.clone()  # the caller's latent stays as it is
    mean = z[:, channel].mean((1, 2), keepdim=True)
    result[:, channel] = mean + scale * (z[:, channel] - mean) + shift
    return result


assert torch.allclose(edited(z, 2, 0.5, 1.5), latents.edit_channel(z, 2, shift=0.5, scale=1.5), atol=1e-5)
spread = z.std((2, 3))[0]
muted, lower, higher = (
    [decode(edited(z, c, shift * spread[c], scale)) for c in range(4)] for shift, scale in ((0, 0), (-2, 1), (2, 1))
)
fig = image_grid(
    [[small(picture) for picture in row] for row in (muted, higher)],
    column_titles=[f"channel {c}" for c in range(4)],
    row_labels=["muted to its mean", "raised"],
)
alt = "The cat with each channel muted (top) and raised by two standard deviations (bottom). Raised, channel 0 makes it red, 1 green, 2 blue; channel 3 changes hardly anything. Muted, the first three take away light and shade."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# In numbers: how far a shift moves the mean of red, green and blue, and how much PSNR is lost when the channel is muted. Can
# any of the four be spared?

# %%
shifted = [(b - a).mean((0, 2, 3)).tolist() for a, b in zip(lower, higher, strict=True)]  # raised minus lowered
full, missed = psnr(rebuilt, photo).item(), [psnr(picture, photo).item() for picture in muted]
for channel, (colours, decibels) in enumerate(zip(shifted, missed, strict=True)):
    moved = ", ".join(f"{n} {round(value, 1) + 0.0:+.1f}" for n, value in zip("RGB", colours, strict=True))
    print(f"channel {channel}: {moved}; muted {decibels - full:+.1f} dB")
assert [row.index(max(row)) for row in shifted[:3]] == [0, 1, 2] and max(missed) < full - 0.2

# %% [markdown]
# No: each costs decibels, the fourth the fewest. Channel 0 moves mostly red, 1 green, 2 blue, and 3 no mean colour. Now by hand,
# beginning with a shift of 1.5 standard deviations. (Where no kernel runs, you see a sheet of settings.)

# %%
mine = Photograph(photo[0], "a cat")  # section 8 replaces it by yours, in all panels at once
panels.channels(vae, mine)

# %% [markdown]
# If shifts change colours evenly, a 4 × 3 matrix and a bias should read a small picture from the latent without a decoder:
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
# Fit these 15 numbers to the six photographs, and use them on the cat and on a cup of coffee. *Hue* is here colour minus grey.
# R² is the share of the variance that is explained: 1 for the averages themselves, 0 for one mean colour of all photographs.


# %%
def preview(z, weight, bias):
    return torch.einsum("bchw,cd->bdhw", z, weight.float()) + bias.float().view(1, 3, 1, 1)


def explained(found, true):
    """R² of light (the mean of the three colours) and of hue (the colours minus it)."""
    parts = [(x.mean(1, keepdim=True), x - x.mean(1, keepdim=True)) for x in (found, true)]
    pairs = zip(*parts, strict=True)
    return [1 - (a - b).pow(2).mean() / (b - b.mean((0, 2, 3), keepdim=True)).pow(2).mean() for a, b in pairs]


six, averages = torch.cat(encoded), F.avg_pool2d(torch.stack([image[:, :424, :496] for image in known]), 8)
coffee = photographs("held-out")["coffee"][None, :, 60:316, 150:406]
unseen = torch.cat([z, vae.encode(coffee).latent_dist.mode()])
true = F.avg_pool2d(torch.cat([photo, coffee]), 8)

# %%
read = preview(unseen, *fit_preview(six, averages))
scores = {
    "the six photographs": explained(preview(six, *fit_preview(six, averages)), averages),
    "cat and cup": explained(read, true),
    "cat and cup, a matrix of their own": explained(preview(unseen, *fit_preview(unseen, true)), true),
}
for name, (light, hue) in scores.items():
    print(f"{name:35} R² of light {light:.2f}, of hue {hue:.2f}")
fig = image_grid(
    [[true[0], read[0].clamp(-1, 1), true[1], read[1].clamp(-1, 1)]], column_titles=["averages", "15 numbers"] * 2
)
alt = "Cat and cup in 32 by 32 pixels: averages of the photograph, and the colours that the matrix reads from the latent. Light and dark parts are at their places, but with false black outlines, and the colours are too grey."
show(fig, alt=alt)

# %% [markdown]
# Light carries over to new photographs, hue does not: 0.68 becomes 0.04. The latent does contain it, for a matrix fitted to the
# cat and the cup themselves reaches 0.58. Six may be too few, or hue is stored differently in every picture: these numbers do not
# decide. A preview costs almost nothing, so it can be shown at every step of a diffusion.

# %% [markdown]
# ## 3. How much noise the decoder forgives
#
# The encoder gives each value a mean and a standard deviation σ (notebook 01). Multiply the noise by a *temperature*: 0 gives the
# mean, 1 the posterior itself. The first and the last of these five values hardly move even at 3, because their σ is small:

# %%
mean, std = torch.tensor([2.0, -1.0, 0.0, 1.0, 3.0]), torch.tensor([0.01, 0.1, 0.5, 0.1, 0.01])
noise = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
for temperature in (0, 1, 3):
    print(temperature, [round(value, 2) for value in (mean + temperature * std * noise).tolist()])

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
noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
sample = posterior.sample(torch.Generator().manual_seed(0))
assert (with_temperature(posterior, 1.0, noise) - sample).abs().max() < 1e-5
print(f"temperature 1: {whose('10.3', with_temperature)} function and posterior.sample() agree, max |Δ| < 1e-5")

# %% [markdown]
# At which temperature is the cat gone: 1, 3, 10 or 30? Let "gone" mean that the picture has lost 8 dB.

# %%
heated = {value: decode(with_temperature(posterior, value, noise)) for value in (0, 1, 3, 10, 30)}
lost = {value: full - psnr(image, photo).item() for value, image in heated.items()}
assert lost[1] < 0.5 and lost[3] < 1 and 5 < lost[10] < 6.5 and 14 < lost[30] < 17
fig = image_grid([[small(image) for image in heated.values()]], column_titles=[f"temperature {t}" for t in heated])
alt = "The decoded cat at five temperatures. At 1 and 3 it looks unchanged, at 10 it is blotchy, at 30 only coloured noise is left."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# Between 10 and 30: at 10 the picture has lost 6 dB, at 30 it has lost 15. At 1 you see no difference, because the decoder was trained on
# exactly this noise, and at 3 hardly one.
#
# The KL weight w decides how wide the posterior is. If noise in a value raises the loss by ½ h σ², where h is the curvature of the
# loss, the sum of both terms has its minimum at a known σ:
#
# $$\tfrac12\,h\,\sigma^2 + w\cdot\tfrac12\left(\sigma^2 - \log\sigma^2\right) \quad\text{is smallest at}\quad \sigma^2 = \frac{w}{w + h}$$
#
# A search over σ for five values of h, with w = 1, confirms it:

# %%
h, sigma = torch.tensor([0.0, 1.0, 3.0, 15.0, 99.0]), torch.linspace(0.05, 1.5, 1451)
cost = 0.5 * h[:, None] * sigma**2 + 0.5 * (sigma**2 - 2 * sigma.log())
print("by search ", [round(value, 2) for value in sigma[cost.argmin(1)].tolist()])
print("by formula", [round(value, 2) for value in (1 / (1 + h)).sqrt().tolist()])

# %% [markdown]
# A value that the picture does not need (h = 0) keeps the prior's σ = 1. A value that it needs gets a small σ. Where h is
# much larger than w, ten times the weight gives √10 times the noise. Now turn the temperature yourself:

# %%
panels.temperature(vae, mine)

# %% [markdown]
# ## 4. Poking one number
#
# Notebook 04 counted how far convolutions reach. The decoder also has GroupNorm, which divides by statistics of the *whole* map. In
# these five values only the last one changes, by 1:

# %%
values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 6.0]])
for row in F.group_norm(values[:, None], 1)[:, 0]:
    print([round(value, 2) for value in row.tolist()])

# %% [markdown]
# After the norm all five are different. So one poked latent pixel should change the whole picture. Poke one in the fur, in row 22 and
# column 6, by four standard deviations of the channel that was missed most when muted. How much of the change stays near it?

# %%
row, column, channel = 22, 6, missed.index(min(missed))
poked = latents.poke(z, row, column, 4 * spread[channel].item(), channel)
answer = (decode(poked) - rebuilt).abs().amax(1)[0]
patches = (decode(poked) - rebuilt).pow(2).sum(1)[0].unfold(0, 8, 8).unfold(1, 8, 8).sum((2, 3))  # (32, 32)
near = patches[row - 1 : row + 2, column - 1 : column + 2].sum() / patches.sum()
assert (answer > 0).float().mean() > 0.95
print(f"{near:.0%} of the squared change lies in the poked patch and its eight neighbours")
fig = maps({"change of each pixel, log10": answer.clamp(min=1e-6).log10()}, cmap="magma", size=(4.2, 3))
alt = "The change of each pixel of the cat on a logarithmic scale: large at the spot, about a thousandth in all the rest, nowhere zero."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# Almost all of it; but the rest of the cat changes, too ("Going further" finds out why). So tiles that are decoded separately do not
# fit together exactly (notebook 12). Now poke where you like:

# %%
panels.pixel(vae, mine)

# %% [markdown]
# ## 5. Between two photographs
#
# Halfway on the straight line between the cat and the cup is the average of both latents. Take two vectors at right angles,
# both of norm 5:

# %%
a, b = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0, 0.0, 0.0]])
middle = (a + b) / 2
print("average", middle[0].tolist(), f"with norm {middle.norm():.2f}")
print("on the arc", [round(value, 2) for value in latents.slerp(a, b, 0.5)[0].tolist()])

# %% [markdown]
# The average has a smaller norm. *Spherical* interpolation stays on the arc (Shoemake 1985). With Ω the angle between a and b,
#
# $$\mathrm{slerp}(a, b; t) = \frac{\sin((1-t)\,\Omega)}{\sin\Omega}\,a + \frac{\sin(t\,\Omega)}{\sin\Omega}\,b$$
#
# For two vectors in one direction it is 0/0: below an angle of 0.001, take the straight line.

# %% [markdown]
# {{exercise 10.4}}
#
# Write it for latents: one angle for each pair of the batch, over all its values. Rounding can lift a cosine above 1, where `acos` has
# no value: clamp it.


# %%
def slerp(a, b, t):
    """From a (t = 0) to b (t = 1), both (B, C, h, w): each a turned by t times the angle to its b."""
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

# %% [markdown]
# Will the cat *turn into* a cup, its ears becoming a rim? The last row mixes the two decoded pictures pixel by pixel.

# %%
cup, steps = unseen[1:], [0.25, 0.5, 0.75]
assert torch.allclose(slerp(z, cup, 0.3).float(), latents.slerp(z, cup, 0.3), atol=1e-4)
print(f"{whose('10.4', slerp)} slerp and the package's agree")
straight = [decode((1 - t) * z + t * cup) for t in steps]
arc = [decode(slerp(z, cup, t)) for t in steps]
faded = [(1 - t) * rebuilt + t * decode(cup) for t in steps]  # the two decoded pictures, mixed pixel by pixel
fig = image_grid(
    [[small(image) for image in row] for row in (straight, arc, faded)],
    row_labels=["straight line", "arc", "pixels mixed"],
    column_titles=[f"t = {t:g}" for t in steps],
)
alt = "From a cat to a cup, at a quarter, a half and three quarters: along the straight line, along the arc, and by mixing pixels. In all three rows both pictures lie over each other; along the arc they have more contrast."
show(fig, alt=alt, format="jpeg")
assert psnr(straight[1], faded[1]) > psnr(rebuilt, faded[1]) + 3 and arc[1].std() > straight[1].std()

# %% [markdown]
# No: it is a cross-fade. Each latent pixel describes *its own place*, and nothing says that this eye should move to that rim. The arc
# has more contrast, because its factors add up to more than 1 (0.71 + 0.71).
#
# The arc is right for *noise*, from which diffusion starts:

# %%
one, two = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
angle = torch.rad2deg(torch.acos(F.cosine_similarity(one.flatten(1), two.flatten(1))))
print(f"norms {one.norm():.0f} and {two.norm():.0f}, angle {angle.item():.0f}°")
print(f"halfway: straight {((one + two) / 2).norm():.0f}, arc {slerp(one, two, 0.5).norm():.0f}")

# %% [markdown]
# In 4,096 dimensions two random vectors are almost at right angles, with norms of about √4096 = 64. A diffusion model was never
# trained on noise of norm 45.

# %%
panels.interpolation(vae, mine, coffee)

# %% [markdown]
# ## 6. How many bits a latent value is worth
#
# 4,096 numbers in float32 are 16 kB, with more digits than the picture needs. With n bits a value has 2ⁿ levels. Five values, and 2
# bits from -1 to 1:

# %%
values = torch.tensor([-1.4, -0.5, 0.1, 0.3, 0.9])
print([round(value, 2) for value in latents.quantise(values, bits=2, low=-1.0, high=1.0).tolist()])

# %% [markdown]
# The levels are -1, -⅓, ⅓ and 1: four levels with *three* steps between them. What lies outside goes to the nearer end.
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
print(f"{whose('10.5', quantise)} quantise and the package's agree")
starved = {bits: decode(quantise(z, bits, low, high)) for bits in range(1, 9)}
ours = {bits: psnr(image, photo).item() for bits, image in starved.items()}
fig = image_grid(
    [[small(starved[bits]) for bits in range(1, 6)]],
    column_titles=[f"{bits} bit{'s' * (bits > 1)}" for bits in range(1, 6)],
    captions=[[f"{512 * bits:,} bytes" for bits in range(1, 6)]],
)
alt = "The decoded cat with 1 to 5 bits a value, which are 512 n bytes an image. One bit leaves patches of wild colour; from 4 bits on no difference is visible."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# Is that good? Compare with JPEG at as many bytes. (Where even its worst quality takes more, it is drawn at the bytes that it took.)

# %%
theirs = {}  # bytes that it took: dB
for bits in ours:
    picture, taken = jpeg(photo, 512 * bits)
    theirs[int(taken)] = psnr(picture, photo).item()
assert [bits for bits, decibels in zip(ours, theirs.values(), strict=True) if ours[bits] > decibels] == [3, 4, 5]
assert ours[4] < full - 0.3 < ours[5] and min(theirs) > 512
for limit in (512 * 5, 2700):
    picture, taken = jpeg(photo, limit)
    print(f"JPEG, {taken.item() / 2560 - 1:+.0%} bytes against 5 bits: {psnr(picture, photo).item() - ours[5]:+.1f} dB")
fig = lines(
    {"latents, n bits a value": [*ours.values()]}, x=[512 * bits for bits in ours], xlabel="bytes", ylabel="PSNR in dB"
)
fig.axes[0].plot(theirs.keys(), theirs.values(), "s--", label="JPEG")
fig.axes[0].legend(loc="lower right")
alt = "PSNR over bytes for one image. The latents' curve rises steeply up to 2,000 bytes and then stays level. JPEG begins at 900 bytes, is lower between 1,500 and 2,500 bytes, and goes on rising."
show(fig, alt=alt)

# %% [markdown]
# At 3 and 4 bits the latents are better. At 5 it is a tie: JPEG's next file is a little too large, and as good. From 5 bits
# on less than 0.3 dB is missing, and the latents gain hardly more. (JPEG gives frequent numbers shorter codes; ours are not packed.) In
# the panel each channel has a range of its own:

# %%
panels.bits(vae, mine)

# %% [markdown]
# ## 7. Drawing from the prior
#
# A VAE is a *generative* model: draw z from N(0, I) and decode. In notebook 02 that gave dots; here it gives no picture. Compare the
# prior with noise that knows more about the cat: "own spread" has the mean and the standard deviation of its channels, "shuffled" is
# made of its own latent pixels, in random order. How strongly are values correlated with the one below them, at most in any channel:

# %%
generator = torch.Generator().manual_seed(0)
prior, (std, mean) = latents.prior_sample(z.shape, generator), torch.std_mean(z, (2, 3), keepdim=True)
shuffled = z.flatten(2)[:, :, torch.randperm(1024, generator=generator)].view_as(z)
ladder = {"prior": prior, "own spread": mean + std * prior, "shuffled": shuffled, "the cat": z}
for name, latent in ladder.items():
    print(f"{name:10} {max(abs(correlation(latent[0, c, :-1], latent[0, c, 1:])) for c in range(4)):.2f}")

# %% [markdown]
# In the noise, neighbours are almost uncorrelated; in the cat they are not. A Fourier transform writes each channel as a sum of waves.
# Each has a strength, and a phase: where its crests lie. The correlations at *all* distances follow from the strengths
# alone. So build two more latents: the cat's strengths with random phases, and its phases with random strengths. Correlate each
# decoded picture with the cat's, in grey:

# %%
waves = torch.fft.rfft2(z - mean)
random = torch.fft.rfft2(torch.randn(z.shape, generator=generator))
same = random[:, :1] / random[:, :1].abs()  # one random phase for all channels keeps their correlations with each other
strengths, phases = waves.abs().clamp(min=1e-9), waves / waves.abs().clamp(min=1e-9)
ladder["own strengths"] = mean + torch.fft.irfft2(strengths * phases * same)
ladder["own phases"] = mean + std * torch.fft.irfft2(random.abs() * phases)
ladder["the cat"] = ladder.pop("the cat")  # last
names, drawn = list(ladder), {name: decode(latent) for name, latent in ladder.items()}
likeness = {name: correlation(drawn[name].mean(1), rebuilt.mean(1)) for name in names}
print(", ".join(f"{name} {value:.2f}" for name, value in likeness.items()))
fig = image_grid(
    [[small(drawn[name], 128) for name in names[i : i + 3]] for i in (0, 3)],
    captions=[names[:3], names[3:]],
)
alt = "Six decoded latents. The prior, own spread and shuffled give coloured noise. The cat's strengths with random phases give clouds. The cat's phases with random strengths give a cat's face in blotchy colours. The last one is the cat."
show(fig, alt=alt, format="jpeg")
assert max(abs(correlation(ladder["shuffled"][0, c, :-1], ladder["shuffled"][0, c, 1:])) for c in range(4)) < 0.1
assert likeness["own phases"] > 0.7 and all(abs(likeness[name]) < 0.2 for name in names[:4])

# %% [markdown]
# The prior gives noise. Even genuine latent pixels, and all of the cat's means, standard deviations and correlations, are not
# enough. The phases carry most of this cat: which waves meet at which place. A higher KL weight would pull each posterior towards
# N(0, I), but lose the picture (notebook 02). So keep the weight small and *learn* which latents occur: that is notebook 11.

# %%
panels.prior(vae)

# %% [markdown]
# ## 8. Your own photograph
#
# Press the button and choose a photograph. Its middle square, at 256 × 256, takes the cat's place in every panel above. It does not leave
# the machine that your kernel runs on. Try text, a face, one flat colour, and a crowd.

# %%
mine

# %% [markdown]
# Without a photograph, try these settings of the five panels:

# %%
best = {
    "decoded": rebuilt,
    "channel 1 raised": decode(edited(z, 1, 1.5 * spread[1])),
    "temperature 10": heated[10],
    "one value poked": decode(latents.poke(z, row, column, 10 * spread[channel].item(), channel)),
    "halfway to the cup": straight[1],
    "2 bits a value": starved[2],
}
names = list(best)
fig = image_grid(
    [[small(best[name], 192) for name in names[i : i + 3]] for i in (0, 3)], captions=[names[:3], names[3:]]
)
alt = "The decoded cat, and five edits of its latent: green by a shift of one channel, blotchy at temperature 10, with one bright spot, mixed with a cup, and in patches of few colours with 2 bits a value."
show(fig, alt=alt, format="jpeg")

# %% [markdown]
# ## Going further: what the decoder is sensitive to (optional)
#
# By the formula of section 3, σ should be small where the decoder is *sensitive*. This can be measured: push random signs back through
# the decoder and square the gradient. The square contains the squared slope of each pixel, and products of the slopes of two
# pixels. The signs of these products are random, so over many draws they cancel, and the sum of squared slopes remains.

# %%
leaf, squared, generator = z.clone().requires_grad_(), 0, torch.Generator().manual_seed(1)
with torch.enable_grad():
    picture = vae.decode(leaf).sample
    for _ in range(12):
        signs = torch.randint(0, 2, picture.shape, generator=generator) * 2.0 - 1
        squared = squared + torch.autograd.grad(picture, leaf, signs, retain_graph=True)[0] ** 2 / 12

# %% [markdown]
# h grows like the square of the sensitivity. So where h is much larger than w, σ falls like 1 / sensitivity: on logarithmic scales a line
# of slope −1.

# %%
sensitivity, sigma = squared[0].sqrt().log10().flatten(1), posterior.std[0].log10().flatten(1)
x, y = sensitivity.mean(1), sigma.mean(1)
fig, ax = figure(size=(5.5, 3))
for c, marker in enumerate("os^D"):
    ax.plot(sensitivity[c, ::17], sigma[c, ::17], marker, color=PALETTE[c], markersize=4, label=f"channel {c}")
ends = torch.stack([x.min() - 0.2, x.max() + 0.2])
ax.plot(ends, y.mean() + x.mean() - ends, "--", color="black", linewidth=1, label="slope −1")
ax.set(xlabel="sensitivity of the decoder, log10", ylabel="σ of the encoder, log10"), ax.legend()
alt = "The encoder's σ over the decoder's sensitivity, for many latent pixels, on logarithmic scales. Channels 0 to 2 lie close together; channel 3, to which the decoder is less sensitive, has a larger σ. Inside one channel σ hardly varies."
show(fig, alt=alt)
within = [correlation(*pair) for pair in zip(sensitivity, sigma, strict=True)]
slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
print(f"slope through the four channels' means {slope:.1f}")
print("correlation inside each channel", ", ".join(f"{value:+.1f}" for value in within))
assert correlation(x, y) < -0.6 and max(map(abs, within)) < 0.6 and sigma.std(1).mean() < y.std()

# %% [markdown]
# The decoder is least sensitive to channel 3, and its σ is the largest; the slope is near -1. But that is one channel against three
# similar ones. Inside a channel the formula does not hold here: σ hardly varies with the sensitivity measured.

# %% [markdown]
# ## Going further: what carries a poke across the picture (optional)
#
# It could be attention, GroupNorm, or the convolutions. In a copy of the decoder, let attention add what it added for
# the *unpoked* latent, and let GroupNorm use the mean and variance that it had there. A *forward hook* does it: PyTorch calls it
# after a module, and its result replaces the module's output.


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
# Average the change over square rings around the poked patch, one patch wide. A logarithmic scale has no 0: a curve that has become 0
# ends.

# %%
rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
ring = torch.maximum((rows - row).abs(), (columns - column).abs())
curves = {}
for name, found in responses.items():
    patches = F.avg_pool2d(found[None, None], 8)[0, 0]
    means = torch.stack([patches[ring == r].mean() for r in range(24)])
    curves[name] = means.masked_fill(means == 0, torch.nan)
fig = lines(curves, xlabel="distance in latent pixels", ylabel="mean change", log=True, dashed=("attention kept",))
alt = "The mean change over the distance from the poke. With attention kept, or the norms kept, it stays level far away, as in the decoder as it is. With both kept it falls to zero."
show(fig, alt=alt)
far = {name: curve[20].item() for name, curve in curves.items() if name != "both kept"}
assert curves["both kept"][20].isnan() and min(far.values()) > 0.1 * max(far.values()) > 1e-7

# %% [markdown]
# With both kept only convolutions are left, and beyond their reach (count it as in notebook 04) the change is *exactly* zero. Keep one
# of the two, and the other still carries the change everywhere, about as strongly as both.

# %% [markdown]
# ## Going further: rounding is noise (optional)
#
# Rounding with a step Δ moves values by up to Δ/2, all equally likely: noise of standard deviation Δ/√12. It falls below σ, the noise
# of the training, at about the number of bits where the PSNR in section 6 became level:

# %%
sigmas = posterior.std.mean((0, 2, 3))
print(f"σ of the channels: {sigmas.min():.2f} to {sigmas.max():.2f}")
for bits in (1, 3, 5, 7):
    rounding = (high - low) / (2**bits - 1) / 12**0.5
    print(f"{bits} bits: rounding {rounding:.2g}, {full - ours[bits]:.1f} dB lost")
assert abs((quantise(z, 5, low, high) - z).std() / ((high - low) / 31 / 12**0.5) - 1) < 0.05

# %% [markdown]
# ## Going further: another model (optional)
#
# Every panel works with any model. Name one in `MODEL` and run the cells. "kl-f8-mini-16" comes with the package and has 16 channels, as
# SD3 and FLUX do: mute one, and compare. Stable Diffusion's own autoencoder needs a network, and on a CPU
# seconds for each move of a slider. As it stands, nothing is loaded.

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
# 1. A latent is a small picture in four mixed channels; its spread, measured in one pass, gives the scaling factor.
# 2. A shift of one channel changes the mean colour. A matrix reads light, and from six photographs no hue that carries over to new ones.
# 3. If noise in a value costs ½ h σ², the KL weight w makes σ² = w / (w + h) best: small where the picture needs the value.
# 4. A poke changes its own patch most and all others faintly; interpolation is a cross-fade, because latent pixels describe places.
# 5. Five bits a value are enough here. Noise with the right mean, spread and correlations still decodes to no image.
#
# ### Check yourself
#
# <details><summary>A friend scales a whole channel by 1.5 and wonders why the picture's tint has changed. What happened?</summary>
#
# It was scaled about zero. So it was also shifted, by half of its mean, and a shift changes the colour.
# </details>
#
# <details><summary>You train the same model again with ten times the KL weight. What happens to σ, and at which temperature is the cat gone then?</summary>
#
# Where h is much larger than w, σ becomes √10 times as wide. If the decoder's sensitivity stays the same, the 8 dB are then lost at a
# temperature √10 times lower.
# </details>
#
# <details><summary>Someone proposes to sample latents from a Gaussian fitted to many real latents, with the full covariance of all 4,096 values. Will it give images?</summary>
#
# Hardly. It knows how each place differs on average and how any two places vary together. In section 7 noise with one cat's correlations gave
# clouds: which waves meet at which place is not in any pair of values.
# </details>
#
# **Next:** notebook 11 learns which latents occur, by flow matching, and this decoder turns them into pictures.
