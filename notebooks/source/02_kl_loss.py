# %% [markdown]
# # 02 · The KL term: what the posterior costs
#
# {{badge}}
#
# In notebook 01 nothing kept the encoder from an infinitely sharp posterior. Here you build the price: the Kullback–Leibler
# divergence to N(0, I). You check it by simulation, find out what Stable Diffusion's weight of 1e-6 really weighs, and watch a
# posterior collapse when the price is too high.
#
# **You will be able to**
#
# * write the KL between diagonal Gaussians in closed form, and estimate it from samples when you doubt it;
# * say what a KL weight means under two conventions of summing, and convert one into the other;
# * read rate and distortion off trained models, and recognise posterior collapse.
#
# **You need** notebook [01](01_diagonal_gaussian.ipynb): mean, log-variance, the reparameterised sample.
#
# {{budget}}

# %% tags=["environment"]

# %%
import math

import torch
from torch import nn

from klvae_edu import AutoencoderKL, DiagonalGaussianDistribution
from klvae_edu.data import photographs
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution
from klvae_edu.explore.explorer import Choice, Explorer
from klvae_edu.losses import vae_loss
from klvae_edu.plots import PALETTE, figure, figure_to_image, show

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# ## 1. What does it cost to say something?
#
# Before it sees the image, a receiver expects each latent value to come from N(0, 1): that is the *prior* p. The posterior q says
# something else. How much? Draw z from q and ask how much likelier q finds it than p does; the average is the
# Kullback–Leibler divergence:
#
# $$\mathrm{KL}(q\,\|\,p) = \mathbb E_{z\sim q}\left[\log q(z) - \log p(z)\right]$$

# %% [markdown]
# Its unit is the *nat*, the bit of the natural logarithm (1 nat is 1.44 bits). For Gaussians there is a closed form, here for one
# value. Which of these five posteriors says nothing?

# %%
mean = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0])
logvar = torch.tensor([0.0, 0.0, 0.0, -2.0, 2.0])
cost = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
for row in zip(mean.tolist(), logvar.tolist(), cost.tolist(), strict=True):
    print("mean {:3.0f}   log-variance {:4.0f}   cost {:.2f} nats".format(*row))

# %% [markdown]
# The first one, which *is* the prior. Moving the mean costs half the square of the distance. Being narrower than the prior
# costs, and being wider costs more.
#
# Where does the form come from? Take both log-densities from notebook 01; log 2π cancels. On average over q, (z - μ)²/σ² is 1, and
# z² is μ² + σ². What remains of log q - log p is, for one value,
#
# $$\mathrm{KL}\big(\mathcal N(\mu, \sigma^2)\,\|\,\mathcal N(0, 1)\big) = \tfrac12\left(\mu^2 + \sigma^2 - 1 - \log\sigma^2\right)$$

# %% [markdown]
# {{exercise 02.1}}
#
# Write it for a whole latent. Its values are independent, so their divergences add up: one number per image. It is a loss, so
# the gradient must reach both inputs. As always, `hint("02.1")` helps you on, and `solution("02.1")` shows the finished code.


# %%
def kl_to_standard_normal(mean, logvar):
    """mean, logvar (B, C, …) -> KL to N(0, I) in nats, one number per image: (B,)."""
    # BEGIN SOLUTION
    each = mean**2 + torch.exp(logvar) - 1 - logvar
    return 0.5 * each.flatten(1).sum(1)
    # SKELETON
    #| each = ...  # four terms for every value
    #| return ...  # half their sum, for each image by itself
    # END SOLUTION


kl_to_standard_normal = check("02.1", kl_to_standard_normal)

# %% [markdown]
# Does PyTorch agree? It has a table of closed forms for pairs of distributions:

# %%
torch.manual_seed(0)
mean, logvar = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
posterior = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
theirs = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
print("relative |Δ| < 1e-5:", bool(((kl_to_standard_normal(mean, logvar) - theirs) / theirs).abs().max() < 1e-5))

# %% [markdown]
# Is it as expensive to halve σ as to double it? Guess, then run the cell.

# %%
for name, std in [("halved", 0.5), ("doubled", 2.0)]:
    cost = kl_to_standard_normal(torch.zeros(1, 1), torch.full((1, 1), 2 * math.log(std)))
    print(f"σ {name}: {cost.item():.2f} nats")

# %% [markdown]
# Now the whole landscape, for one value:

# %%
means, stds = torch.meshgrid(torch.linspace(-3, 3, 121), torch.linspace(0.05, 3, 120), indexing="xy")
landscape = kl_to_standard_normal(means.reshape(-1, 1), 2 * stds.log().reshape(-1, 1)).view_as(means)

# %%
fig, ax = figure(size=(6, 3.4))
lines = ax.contour(means, stds, landscape, levels=[0.05, 0.25, 0.5, 1, 2, 3, 4], colors=BLUE)
ax.clabel(lines, fmt="%g nats")
ax.plot(0, 1, "o", color=ORANGE)
ax.set(xlabel="mean μ", ylabel="standard deviation σ")
show(fig, alt="Contours of the KL over mean and standard deviation: a bowl, lowest (0) at mean 0 and deviation 1.")

# %% [markdown]
# A bowl, but a lopsided one. Downwards, towards σ = 0, the price grows only with the logarithm: each halving adds at most
# log 2 ≈ 0.69 nats, one bit. Sideways it grows with the square. So what will an encoder do that wants to tell its images
# apart cheaply: move the means far out, or keep them near and make σ small? (Section 5 shows both.)

# %% [markdown]
# ## 2. What if the other one is not N(0, I)?
#
# Two posteriors can be compared with each other, too. Is the cost of expecting p and getting q the same as the other way
# round? Try it with a narrow and a wide Gaussian, both around 0.


# %%
narrow, wide = torch.distributions.Normal(0.0, 0.2), torch.distributions.Normal(0.0, 2.0)
print(f"KL(narrow ‖ wide) = {torch.distributions.kl_divergence(narrow, wide):.2f} nats")
print(f"KL(wide ‖ narrow) = {torch.distributions.kl_divergence(wide, narrow):.1f} nats")

# %% [markdown]
# Not at all. The average is taken over samples of the *first* one. Samples of the narrow Gaussian are all plausible under the wide one;
# most samples of the wide one are near impossible under the narrow one. KL is no distance, and the order of its arguments
# matters:
#
# $$\mathrm{KL}(q\,\|\,p) = \tfrac12 \sum\left(\frac{(\mu_q - \mu_p)^2 + \sigma_q^2}{\sigma_p^2} - 1 - \log\sigma_q^2 + \log\sigma_p^2\right)$$

# %% [markdown]
# {{exercise 02.2}}
#
# Write it for means and log-variances. With a mean of 0 and a log-variance of 0 for p, it must give what you have already. The
# gradient must reach all four inputs.


# %%
def kl_between(mean, logvar, other_mean, other_logvar):
    """KL(q ‖ p) in nats for q = (mean, logvar) and p = (other_mean, other_logvar), each (B, C, …): (B,)."""
    # BEGIN SOLUTION
    each = ((mean - other_mean) ** 2 + torch.exp(logvar)) / torch.exp(other_logvar) - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)
    # SKELETON
    #| each = ...  # distance and variance in units of p's variance, and the logarithms
    #| return ...
    # END SOLUTION


kl_between = check("02.2", kl_between)

# %%
zeros = torch.zeros_like(mean)
special, general = kl_to_standard_normal(mean, logvar), kl_between(mean, logvar, zeros, zeros)
print("equal to the special case:", bool(torch.allclose(special, general)))

# %% [markdown]
# The finished class has both in one method: `posterior.kl()` and `posterior.kl(other)`. Now a picture: let two Gaussians of
# width σ move apart. At what distance, in units of σ, does the KL reach one nat?

# %%
distance = torch.linspace(0, 4, 41)[:, None]
fig, ax = figure(size=(6, 3))
for std, color in [(0.5, BLUE), (1.0, ORANGE), (2.0, GREEN)]:
    width = 2 * torch.full_like(distance, std).log()
    ax.plot(distance, kl_between(distance, width, 0 * distance, width), color=color, label=f"σ = {std:g}")
ax.axhline(1, color=GREY, linestyle="--")
ax.set(xlabel="distance of the means", ylabel="KL in nats", ylim=(0, 8))
ax.legend()
show(fig, alt="KL over the distance of the means for three widths: parabolas, the steepest for the smallest width.")

# %% [markdown]
# At √2 σ, whatever the width: one nat apart means √2 σ apart. Make σ smaller, and more posteriors fit into the same stretch, each
# a nat from its neighbour. In this sense sharp posteriors carry information: more images can be told apart.

# %% [markdown]
# ## 3. Do you believe the formula?
#
# You need not. By its definition in section 1 a KL divergence is an average, and an average can be simulated: draw z from q, and
# take the difference of the log-densities. How many samples would you need for one decimal?

# %%
q, p = torch.distributions.Normal(1.0, 0.5), torch.distributions.Normal(0.0, 1.0)
torch.manual_seed(0)
z, kl = q.sample((1000,)), torch.distributions.kl_divergence(q, p)
difference = q.log_prob(z) - p.log_prob(z)
print("five samples", [round(value, 1) for value in difference[:5].tolist()], " closed form", round(kl.item(), 2))
print(f"for an expected error of 0.05: about {(difference.std() / 0.05) ** 2:.0e} samples")

# %% [markdown]
# Single values scatter; some may even be negative, although the true average never is. The error falls with the square root
# of the number of samples.

# %% [markdown]
# {{exercise 02.3}}
#
# Estimate the KL to N(0, I) from given noise (S, B, C, …), S samples for each image. Constants that stand in both
# log-densities cancel.


# %%
def monte_carlo_kl(mean, logvar, noise):
    """mean, logvar (B, C, …), noise (S, B, C, …) from N(0, 1) -> estimated KL to N(0, I) in nats: (B,)."""
    # BEGIN SOLUTION
    z = mean + torch.exp(0.5 * logvar) * noise
    log_q = -0.5 * (logvar + (z - mean) ** 2 / torch.exp(logvar))
    log_p = -0.5 * z**2
    return (log_q - log_p).flatten(2).sum(2).mean(0)
    # SKELETON
    #| z = ...      # samples of q, made from the noise
    #| log_q = ...  # without the constant
    #| log_p = ...  # likewise
    #| return ...   # sum over a latent's values, average over the samples
    # END SOLUTION


monte_carlo_kl = check("02.3", monte_carlo_kl)

# %% [markdown]
# Now let it run towards the closed form, for one small latent of 16 values. The band is twice the expected error, computed
# from the scatter of the samples themselves.

# %%
torch.manual_seed(0)
mean, logvar = torch.randn(1, 16), torch.randn(1, 16)
exact = kl_to_standard_normal(mean, logvar).item()
single = torch.stack([monte_carlo_kl(mean, logvar, noise[None]) for noise in torch.randn(4000, 1, 16)])[:, 0]
count = torch.arange(1, 4001)
running, error = single.cumsum(0) / count, single.std() / count.sqrt()

# %%
fig, ax = figure(size=(6, 3))
ax.fill_between(count, exact - 2 * error, exact + 2 * error, color=BLUE, alpha=0.2, label="twice the expected error")
ax.semilogx(count, running, color=BLUE, label="estimate")
ax.axhline(exact, color=ORANGE, linestyle="--", label="closed form")
ax.set(xlabel="samples", ylabel="KL in nats", ylim=(exact - 8, exact + 8))
ax.legend()
show(fig, alt="The running Monte-Carlo estimate wanders inside a narrowing band and settles on the closed form.")
print("within four times the expected error at the end:", bool((running[-1] - exact).abs() < 4 * error[-1]))

# %% [markdown]
# The formula holds. It is also free of noise, which is why nobody trains on the estimate when the closed form exists. The
# estimate is for the day when your prior is no Gaussian.

# %% [markdown]
# ## 4. What does a weight of 1e-6 weigh?
#
# The training loss of Stable Diffusion's autoencoder is, without its perceptual and adversarial parts, *pixel error + 1e-6 ·
# KL*. A millionth of what, against what? An image has C·H·W values, a latent has far fewer. Count them:

# %%
image_values, latent_values = 3 * 256 * 256, 4 * 32 * 32
print(
    f"{image_values:,} values in an image, {latent_values:,} in its latent: {image_values // latent_values} times fewer"
)

# %% [markdown]
# The original code, CompVis' latent-diffusion, *sums* the absolute error over all of an image's values, sums the KL over all of its latent's values, and
# averages only over the batch. Many people write `F.l1_loss` or `F.mse_loss` for the first, which *averages*. What does that
# do to the balance?

# %%
posterior_kl = 20.0 * latent_values  # suppose 20 nats per latent value: a mean of 5.5 alone costs ½ · 5.5² = 15
error_per_value = 0.05  # suppose 0.05 on the scale from -1 to 1
print(f"sums:      pixels {error_per_value * image_values:8.0f}   1e-6 · KL {1e-6 * posterior_kl:.2f}")
print(f"mean + sum: pixels {error_per_value:7.2f}   1e-6 · KL {1e-6 * posterior_kl:.2f}")

# %% [markdown]
# With sums, the KL term is a feather: five orders of magnitude below the pixels. With a mean on one side only, the same
# "1e-6" is heavier than the whole pixel error, 196,608 times stronger. A weight without its reduction means nothing: when you
# read one, look for the sum or the mean beside it.

# %% [markdown]
# {{exercise 02.4}}
#
# Write the loss with the original's reduction: L1, summed over C, H and W; KL, summed over the latent; both averaged over the
# batch.


# %%
def kl_vae_loss(reconstruction, target, posterior, kl_weight=1e-6):
    """reconstruction, target (B, C, H, W); posterior has .kl() -> (B,). Returns a scalar."""
    # BEGIN SOLUTION
    pixel = (reconstruction - target).abs().flatten(1).sum(1).mean()
    return pixel + kl_weight * posterior.kl().mean()
    # SKELETON
    #| pixel = ...  # absolute error: a sum for each image, a mean over the batch
    #| return ...   # plus the weighted KL, a mean over the batch as well
    # END SOLUTION


kl_vae_loss = check("02.4", kl_vae_loss)

# %% [markdown]
# The finished version is `klvae_edu.losses.vae_loss`, which returns the terms by name. Its `reduction="mean"` divides the
# *whole* total by the image's C·H·W, so that the weight keeps its meaning. Compare on a photograph and an untrained model:

# %%
photo = photographs("held-out")["coffee"][None, :, :256, :256]
vae = AutoencoderKL.from_preset("mini", seed=0)
with torch.no_grad():
    posterior = vae.encode(photo).latent_dist
    reconstruction = vae.decode(posterior.mode()).sample
terms = vae_loss(reconstruction, photo, posterior)

# %%
yours = kl_vae_loss(reconstruction, photo, posterior)
averaged = vae_loss(reconstruction, photo, posterior, reduction="mean")["loss"]
assert torch.allclose(yours, terms["loss"]) and torch.allclose(averaged * image_values, terms["loss"])
print(f"share of the KL term, untrained model: {1e-6 * terms['kl'] / terms['loss']:.0e}")
print(f"with the numbers supposed above:       {1e-6 * posterior_kl / (error_per_value * image_values):.0e}")

# %% [markdown]
# Next to nothing, either way. So what is a weight like that for? It does not make the latent a standard normal, not even nearly: it only
# keeps σ from going to zero and the means from drifting off. To see what a *real* price does, take a model so small that it
# trains in a second, and try many prices.

# %% [markdown]
# ## 5. What happens as the price goes up?
#
# The toy: pictures of 16 × 16 with one soft dot, whose place (x, y) is drawn at random. Two numbers say all there is to say
# about such a picture. A latent of two values should therefore be enough. Will the model find x and y by itself?

# %%
side = 16
axis = torch.linspace(-1, 1, side)


def dots(places):
    """Places (B, 2) in [-1, 1] -> pictures (B, 256) in [0, 1], one soft dot each."""
    across = (axis - places[:, :1]) ** 2
    down = (axis - places[:, 1:]) ** 2
    return torch.exp(-(down[:, :, None] + across[:, None, :]) / 0.125).flatten(1)


places = 0.7 * (2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) - 1)
pictures = dots(places)

# %%
fig, axes = figure(1, 6, size=(8, 1.6))
for ax, picture in zip(axes, pictures, strict=False):
    ax.imshow(picture.view(side, side), cmap="gray", vmin=0, vmax=1)
    ax.axis("off")
show(fig, alt="Six of the pictures: a soft white dot on black, each at another place.")

# %% [markdown]
# The model has an encoder and a decoder of three linear layers each, with *your* kind of posterior in the middle. Its loss is
# squared error plus β times KL. Up to a factor and a constant, that is the negative of the *evidence lower bound* (ELBO) for
# Gaussian pixels of variance β/2.


# %%
class ToyVAE(nn.Module):
    def __init__(self):
        super().__init__()
        inner = [nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        self.encoder = nn.Sequential(nn.Linear(side**2, 128), *inner, nn.Linear(128, 4))
        inner = [nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        self.decoder = nn.Sequential(nn.Linear(2, 128), *inner, nn.Linear(128, side**2))

    def encode(self, x):
        return DiagonalGaussianDistribution(self.encoder(x))


# %%
def train(beta, steps=800):
    torch.manual_seed(0)
    model = ToyVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in progress(range(steps), desc=f"β = {beta:g}"):
        x = pictures[torch.randint(len(pictures), (128,))]
        posterior = model.encode(x)
        squared_error = (model.decoder(posterior.sample()) - x).pow(2).sum(1).mean()
        optimizer.zero_grad()
        (squared_error + beta * posterior.kl().mean()).backward()
        optimizer.step()
        schedule.step()
    return model


torch.set_num_threads(1)  # layers this small gain nothing from a second core
betas = [0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0]
models = {beta: train(beta) for beta in betas}

# %% [markdown]
# Eight models, eight prices, the same seed. For each: the *rate*, how many nats its posteriors say on average, and the
# *distortion*, how far its reconstructions are off. What do you expect the two to do as β rises?


# %%
@torch.no_grad()
def rate_and_distortion(model):
    posterior = model.encode(pictures)
    z = posterior.sample(torch.Generator().manual_seed(0))
    return posterior.kl().mean().item(), (model.decoder(z) - pictures).pow(2).sum(1).mean().item()


measured = {beta: rate_and_distortion(model) for beta, model in models.items()}
average_picture = (pictures - pictures.mean(0)).pow(2).sum(1).mean().item()

# %%
fig, ax = figure(size=(6, 3.2))
rates, distortions = zip(*measured.values(), strict=True)
ax.plot(rates, distortions, "o-", color=BLUE)
for beta, (rate, distortion) in measured.items():
    ax.annotate(f"β = {beta:g}", (rate, distortion), xytext=(6, 6), textcoords="offset points")
ax.axhline(average_picture, color=GREY, linestyle="--", label="always the average picture")
ax.set(xlabel="rate: KL in nats", ylabel="distortion: squared error", yscale="log")
ax.legend()
ax.set(xlim=(-1, 27), ylim=(0.01, 20))
show(
    fig,
    alt="Distortion over rate for eight weights: steeply falling up to 9 nats, then nearly level. The largest weight sits at rate 0.",
)

# %% [markdown]
# A trade. From right to left each model says less and is further off; at first, giving up many nats costs very little. At some price the
# posterior says *nothing*: rate 0, and the error of a model that always paints the average picture. That is **posterior
# collapse**.

# %%
assert measured[0.001][0] > measured[0.1][0] > measured[1.0][0]  # the rate falls with the price
assert measured[0.001][1] < measured[0.1][1] < measured[1.0][1]  # and the error rises with it
assert measured[4.0][0] < 0.1 and measured[4.0][1] > 0.95 * average_picture
print("β = 4 has collapsed: a rate below 0.1 nats, and the error of the average picture")

# %% [markdown]
# Why does it stop at exactly nothing? The posterior pays β for *every* nat, and a nat buys a certain reduction of the error. As soon as even the
# first nat costs more than it buys, silence is the best deal.
#
# Now look inside. Move the slider over the eight models: left, the posteriors of 200 pictures, coloured by the dot's true x
# (at β = 0 some lie outside the axes); right, what the decoder makes of a grid of latents from -2 to 2, the dashed square.
# Where no kernel runs, all eight stand side by side.


# %%
@torch.no_grad()
def inside(beta):
    model, posterior = models[beta], models[beta].encode(pictures[:200])
    steps = torch.linspace(-2, 2, 9)
    grid = torch.cartesian_prod(steps.flip(0), steps).flip(1)  # z1 grows to the right, z2 upwards
    tiles = model.decoder(grid).view(9, 9, side, side).permute(0, 2, 1, 3).reshape(9 * side, 9 * side)
    fig, (left, right) = figure(1, 2, size=(8, 4))
    left.errorbar(*posterior.mean.T, *posterior.std.T.flip(0), fmt="none", ecolor=GREY, linewidth=0.8)
    left.scatter(*posterior.mean.T, c=places[:200, 0], cmap="viridis", s=8, zorder=2)
    left.plot([-2, 2, 2, -2, -2], [-2, -2, 2, 2, -2], "--", color="black", linewidth=1)
    left.set(title="posteriors: mean and one σ", xlabel="z1", ylabel="z2", xlim=(-7, 7), ylim=(-7, 7))
    right.imshow(tiles, cmap="gray", vmin=0, vmax=1)
    right.set(title="decoded from the dashed square", xticks=[], yticks=[])
    right.set_xticks(torch.arange(side, 9 * side, side) - 0.5, minor=True)
    right.set_yticks(torch.arange(side, 9 * side, side) - 0.5, minor=True)
    right.grid(which="minor", color=GREY, linewidth=0.5, alpha=1)
    right.tick_params(which="minor", length=0)
    return figure_to_image(fig)


frames = {beta: inside(beta) for beta in betas}


# %%
def describe(beta):
    rate, distortion = measured[beta]
    return f"β = {beta:g}: rate {rate:.1f} nats, squared error {distortion:.2g}"


Explorer(
    lambda beta: frames[beta], {"beta": Choice("KL weight β", betas, 0.1, "{:g}".format)}, alt=describe, format="png"
)

# %% [markdown]
# In every model but the last, neighbours are neighbours: the two values carry the place, turned, flipped or bent. At β = 0 the
# tiles are clean, but all dots are near the middle: the square holds only a part of the cloud. At 0.1 to 1 the cloud fills the
# square and the dots reach the borders; in the corners, where no posterior lies, they are smeared. At β = 2 they are blurred, and
# at β = 4 every tile is the same smear.

# %% [markdown]
# So what does a higher price buy, if not better pictures? Draw z from N(0, I), as if you wanted new pictures, and decode. Where are
# the dots, and are they dots? For each sample we look for the nearest of the 1,000 pictures.


# %%
@torch.no_grad()
def prior_samples(model):
    """Spread of the dots' places in decoded samples of N(0, I), and their squared error to the nearest picture."""
    decoded = model.decoder(torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)))
    distance, nearest = torch.cdist(decoded, pictures).min(1)
    return places[nearest].std(0).mean().item(), distance.pow(2).mean().item()


spreads, errors = zip(*(prior_samples(model) for model in models.values()), strict=True)

# %%
fig, (left, right) = figure(1, 2, size=(8, 2.8))
labels = [f"{beta:g}" for beta in betas]
left.plot(labels, spreads, "o-", color=BLUE)
left.axhline(places.std(0).mean(), color=GREY, linestyle="--")
left.set(xlabel="β", title="spread of the places (dashed: true)", ylim=(0, 0.5))
right.plot(labels, errors, "o-", color=ORANGE)
right.set(xlabel="β", title="squared error to the nearest dot")
show(
    fig,
    alt="Over β: the spread of places rises from under half of the true one to near it at β = 1, and is 0 at 4; the error is small up to β = 1 and large at 4.",
)
assert spreads[0] < 0.6 * places.std(0).mean() < spreads[5] and spreads[-1] < 0.1

# %% [markdown]
# *Coverage*. At β = 0 the prior draws perfect dots, but only in the middle; at β = 1 it draws them nearly everywhere, less cleanly.
# The price makes the latent space look like the prior, so that sampling the prior reaches all of it.

# %%
with torch.no_grad():
    spread = {beta: models[beta].encode(pictures).mean.std(0).mean().item() for beta in betas}
assert spread[0.0] > 2 and 0.8 < spread[1.0] < 1.2 and spread[4.0] < 0.1
print("spread of the means: above 2 at β = 0, near 1 at β = 1, near 0 at β = 4")

# %% [markdown]
# Which of these is Stable Diffusion's? One with a very small β. Its scaling factor, 0.18215, is one over its latents' standard
# deviation (LDM code, `scale_factor`), so that is about 5.5, far from 1. The KL term only keeps the latents in bounds. N(0, I) does
# not cover them; a diffusion model learns where they are, in notebook 11.

# %%
print(f"1 / 0.18215 = {1 / 0.18215:.2f}")

# %% [markdown]
# ## Summary
#
# 1. KL to N(0, I) is ½ Σ (μ² + σ² - 1 - log σ²): zero only for the prior, in nats, summed over the latent.
# 2. KL(q ‖ p) averages over q; swap the arguments and you get another number.
# 3. A Monte-Carlo estimate confirms the closed form, with an error that falls with the square root of the number of samples.
# 4. A weight means nothing without its reduction: sum against mean is a factor of C·H·W.
# 5. A higher price buys a latent space that the prior covers, with worse pictures, until the posterior collapses.
#
# ### Check yourself
#
# <details><summary>A colleague averages the KL over the latent's 4 · 32 · 32 values instead of summing, and keeps 1e-6. What changes?</summary>
#
# With pixels still summed, the KL is 4,096 times weaker than intended: next to nothing becomes nothing. Training looks the same for a long time; the latents drift
# further out.
# </details>
#
# <details><summary>In a collapsed model, what does the decoder do with z, and how would you notice from the loss curves alone?</summary>
#
# It ignores z, which is pure noise to it. The KL term falls to nearly zero and stays there, and the pixel error stops at that
# of the average picture.
# </details>
#
# <details><summary>Why is the rate at β = 0 finite, when nothing is charged for it?</summary>
#
# Because training ended. The squared error keeps asking for a smaller σ, each halving costs log 2 nats, and there is no
# reason to stop except that the gain gets smaller.
# </details>
#
# **Next:** notebook 03 builds the ResNet block, the brick of which encoder and decoder are made.
