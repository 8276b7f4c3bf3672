# %% [markdown]
# # 02 · The KL term: how far a posterior is from N(0, I)
#
# {{badge}}
#
# The reconstruction error alone would make σ as small as possible (notebook 01). Here you build the term that works against it: the
# Kullback–Leibler divergence (KL) of the posterior from N(0, I). You see why it belongs in the loss, what Stable Diffusion's weight
# of 1e-6 means, and how a posterior collapses when the weight is too large.
#
# **You will be able to**
#
# * write the KL between diagonal Gaussians in closed form, and check it with samples;
# * derive the evidence lower bound, and say what the KL's weight β means in it;
# * convert a weight between sums and means;
# * recognise posterior collapse.
#
# **You need** notebook [01](01_diagonal_gaussian.ipynb): mean, log-variance, the reparameterised sample.
#
# {{budget}}

# %% tags=["environment"]

# %%
import math

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from klvae_edu import AutoencoderKL, DiagonalGaussianDistribution
from klvae_edu.data import photographs
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.explore.explorer import Choice, Explorer
from klvae_edu.losses import vae_loss
from klvae_edu.plots import PALETTE, figure, figure_to_image, image_grid, lines, show

BLUE, ORANGE, GREY = *PALETTE[:2], "0.6"

# %% [markdown]
# ## 1. The KL to N(0, I)
#
# Before a model sees the image, each latent value is expected to come from N(0, 1), the *prior* p. For the image, the encoder
# gives another distribution: the posterior q. To measure how far q is from p, draw z from q, compare the two log-densities at z, and
# average:
#
# $$\mathrm{KL}(q\,\|\,p) = \mathbb E_{z\sim q}\left[\log q(z) - \log p(z)\right]$$

# %% [markdown]
# It is measured in *nats*: bits, but with the natural logarithm (1 nat is 1.44 bits). Which of these five posteriors has a KL
# of zero? PyTorch computes it; you will write it yourself below.

# %%
means = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0])
stds = torch.tensor([1.0, 1.0, 1.0, 0.5, 2.0])
kls = kl_divergence(Normal(means, stds), Normal(0.0, 1.0))
for row in zip(means, stds, kls, strict=True):
    print("mean {:.0f}   σ {:.1f}   KL {:.2f} nats".format(*row))

# %% [markdown]
# Only the first one, which equals the prior. A mean at distance d costs d²/2. Halving σ costs 0.32 nats, doubling it 0.81.
#
# For Gaussians no sampling is needed. The two log-densities are (notebook 01)
#
# $$\log q(z) = -\tfrac12\left(\log 2\pi + \log\sigma^2 + \tfrac{(z-\mu)^2}{\sigma^2}\right), \qquad
# \log p(z) = -\tfrac12\left(\log 2\pi + z^2\right).$$
#
# On average over q, (z - μ)²/σ² is 1, and z² is μ² + σ². Put both into log q - log p: four terms remain.

# %% [markdown]
# {{exercise 02.1}}
#
# Put the four terms together, for a whole latent. The values are independent, so their KLs add up: one
# number per image. It is a loss, so the gradient must reach both inputs. As always, `hint("02.1")` helps, and
# `solution("02.1")` shows the finished code.


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
# For one value this is
#
# $$\mathrm{KL}\big(\mathcal N(\mu, \sigma^2)\,\|\,\mathcal N(0, 1)\big) = \tfrac12\left(\mu^2 + \sigma^2 - 1 - \log\sigma^2\right)$$
#
# Compare with PyTorch on two latents. (The print says whose function was compared.)

# %%
torch.manual_seed(0)
mean, logvar = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
theirs = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).flatten(1).sum(1)
assert ((kl_to_standard_normal(mean, logvar) - theirs) / theirs).abs().max() < 1e-5
print(whose("02.1", kl_to_standard_normal), "function and PyTorch's: relative |Δ| < 1e-5")

# %% [markdown]
# Now for all means and standard deviations in a range:

# %%
means, stds = torch.meshgrid(torch.linspace(-3, 3, 121), torch.linspace(0.05, 3, 120), indexing="xy")
landscape = kl_to_standard_normal(means.reshape(-1, 1), 2 * stds.log().reshape(-1, 1)).view_as(means)

# %%
fig, ax = figure(size=(6, 3.4))
contours = ax.contour(means, stds, landscape, levels=[0.05, 0.25, 0.5, 1, 2, 3, 4], colors=BLUE)
ax.clabel(contours, fmt="%g nats")
ax.plot(0, 1, "o", color=ORANGE)
ax.set(xlabel="mean μ", ylabel="standard deviation σ")
show(
    fig, alt="The KL over mean and standard deviation, as contour lines. It is 0 at the orange point, μ = 0 and σ = 1."
)

# %% [markdown]
# The bowl is not symmetric. Towards σ = 0 it rises without bound, but slowly: each halving of σ adds at most log 2 ≈ 0.69 nats, one
# bit. Towards large |μ| it rises with the square. The decoder tells two images apart if their posteriors hardly overlap: the means
# must be far apart compared with σ. Halving σ is cheaper than doubling large means.

# %% [markdown]
# ## 2. The KL between any two Gaussians
#
# Two posteriors can be compared with each other, too. Take a narrow and a wide Gaussian, both around 0. Is the KL the same in both
# directions?

# %%
narrow, wide = Normal(0.0, 0.2), Normal(0.0, 2.0)
print(f"KL(narrow ‖ wide) = {kl_divergence(narrow, wide):.2f} nats")
print(f"KL(wide ‖ narrow) = {kl_divergence(wide, narrow):.1f} nats")

# %% [markdown]
# No. The average is taken over samples of the *first* one. Most samples of the wide Gaussian are almost impossible under the narrow
# one, but not the other way round. So the KL is not a distance, and the order of its arguments matters:
#
# $$\mathrm{KL}(q\,\|\,p) = \tfrac12 \sum\left(\frac{(\mu_q - \mu_p)^2 + \sigma_q^2}{\sigma_p^2} - 1 - \log\sigma_q^2 + \log\sigma_p^2\right)$$

# %% [markdown]
# {{exercise 02.2}}
#
# Write it for means and log-variances. With a mean of 0 and a log-variance of 0 for p, it must give the same as 02.1. The
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
assert torch.allclose(special, general)
print(whose("02.2", kl_between), "kl_between with N(0, I) as p equals the special case")

# %% [markdown]
# ## 3. Checking the formula by simulation
#
# By definition a KL is an average, so it can be simulated: draw z from q, and average the difference of the log-densities. How many
# samples bring the expected error down to 0.05?

# %%
q, p = Normal(1.0, 0.5), Normal(0.0, 1.0)
torch.manual_seed(0)
z = q.sample((1000,))
difference = q.log_prob(z) - p.log_prob(z)
print(f"closed form {kl_divergence(q, p):.2f}, samples from {difference.min():.1f} to {difference.max():.1f}")
print(f"for an expected error of 0.05: about {(difference.std() / 0.05) ** 2:.0e} samples")

# %% [markdown]
# About two hundred: the error falls with the square root of their number. Single values can be negative; the KL, their average,
# never is.

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
# Let the estimate run towards the closed form, for one small latent of 16 values. The expected error is computed from the scatter
# of the samples themselves.

# %%
torch.manual_seed(0)
mean, logvar = torch.randn(1, 16), torch.randn(1, 16)
exact = kl_to_standard_normal(mean, logvar).item()
single = torch.stack([monte_carlo_kl(mean, logvar, noise[None]) for noise in torch.randn(4000, 1, 16)])[:, 0]
count = torch.arange(1, 4001)
running, error = single.cumsum(0) / count, single.std() / count.sqrt()

# %%
assert (running[-1] - exact).abs() < 4 * error[-1]
fig = lines(
    {"estimate": running, "closed form": exact + 0 * error},
    count,
    xlabel="samples",
    ylabel="KL in nats",
    dashed=("closed form",),
)
fig.axes[0].fill_between(count, exact - 2 * error, exact + 2 * error, color=BLUE, alpha=0.2)
fig.axes[0].set(xscale="log", ylim=(exact - 8, exact + 8))
alt = "The running estimate over the number of samples. It settles on the closed form. The band is twice the expected error."
show(fig, alt=alt)

# %% [markdown]
# They agree. Train on the formula, which has no noise. The estimate is for priors that are not Gaussian.

# %% [markdown]
# ## 4. The weight 1e-6: sums and means
#
# Without the parts that notebooks 06 and 07 add, the training loss of Stable Diffusion's autoencoder is *pixel error + 1e-6 · KL*.
# What the weight does depends on the *reduction* of each term: sum or mean. First the counts:

# %%
image_values, latent_values = 3 * 256 * 256, 4 * 32 * 32
print(
    f"{image_values:,} values in an image, {latent_values:,} in its latent: {image_values // latent_values} times fewer"
)

# %% [markdown]
# Then the size of the KL. Stable Diffusion multiplies its latents by 0.18215, which is one over their standard deviation
# (`scale_factor` in the original code). So they are far wider than N(0, 1):

# %%
latent_std = 1 / 0.18215
print(
    f"standard deviation of the latents: {latent_std:.1f}; a mean of this size has a KL of {latent_std**2 / 2:.0f} nats"
)

# %% [markdown]
# The original code, latent-diffusion by the research group CompVis, *sums* the absolute error over an image's values, sums
# the KL over its latent's values, and averages only over the batch. `F.l1_loss` and `F.mse_loss` *average* over everything. What
# does that change?

# %%
posterior_kl = 20.0 * latent_values  # suppose 20 nats per latent value: 15 for the mean, the rest for a small σ
error_per_value = 0.05  # suppose 0.05 on the scale from -1 to 1
print(f"sum + sum:  pixels {error_per_value * image_values:8.0f}   1e-6 · KL {1e-6 * posterior_kl:.2f}")
print(f"mean + sum: pixels {error_per_value:8.2f}   1e-6 · KL {1e-6 * posterior_kl:.2f}")

# %% [markdown]
# With sums, the KL term is tiny: five orders of magnitude below the pixels. With a mean over the pixels, the same 1e-6 outweighs
# the pixel error: relative to it, the term is 196,608 times stronger. A weight means nothing without its reduction.

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
# The package's version is `klvae_edu.losses.vae_loss`, which returns the terms by name. Its `reduction="mean"` divides the
# *whole* total by the image's C·H·W, so the balance stays the same. Compare on a photograph and an untrained model:

# %%
photo = photographs("held-out")["coffee"][None, :, :256, :256]  # held out: no bundled model was trained on it
vae = AutoencoderKL.from_preset("mini", seed=0)  # a preset: a named configuration, here a small one
with torch.no_grad():
    posterior = vae.encode(photo).latent_dist
    reconstruction = vae.decode(posterior.mode()).sample
terms = vae_loss(reconstruction, photo, posterior)

# %%
total = kl_vae_loss(reconstruction, photo, posterior)
averaged = vae_loss(reconstruction, photo, posterior, reduction="mean")["loss"]
assert torch.allclose(total, terms["loss"]) and torch.allclose(averaged * image_values, terms["loss"])
print(whose("02.4", kl_vae_loss), "loss equals the package's vae_loss")
print(f"share of the KL term, untrained model: {1e-6 * terms['kl'] / terms['loss']:.0e}")
print(f"with the numbers supposed above:       {1e-6 * posterior_kl / (error_per_value * image_values):.0e}")

# %% [markdown]
# Either way, the KL term is a tiny part of the loss. It does not make the latents standard normal: their standard deviation is 5.5.
# It is *meant to* keep σ from going to zero and the means from drifting away. Section 6 tests weights on a small model;
# section 5 gives the reason for adding a KL at all.

# %% [markdown]
# ## 5. Why error plus KL: the evidence lower bound
#
# A VAE is a model of images. It draws z from the prior p(z), then pixels from p(x|z), a distribution around the decoder's
# output. A good model gives the training images a high density: we want a large log p(x), the *evidence*.
#
# $$p(x) = \int p(x|z)\,p(z)\,dz$$
#
# With one pixel and one latent value the integral is easy. Take the decoder 2z, pixel noise of variance 1, and x = 3. Then x
# is 2z plus noise: itself Gaussian, of variance 2² + 1 = 5:

# %%
x, z = torch.tensor(3.0), torch.linspace(-10, 10, 2001)
evidence = Normal(0.0, math.sqrt(5)).log_prob(x)
integral = (Normal(2 * z, 1.0).log_prob(x) + Normal(0.0, 1.0).log_prob(z)).exp().sum() * 0.01
print(f"log p(x): {evidence:.2f} in closed form, {integral.log():.2f} by trying 2,001 values of z")

# %% [markdown]
# For images nobody can compute the integral. But for every z, by the rule for conditional probabilities,
#
# $$\log p(x) = \log p(x|z) + \log p(z) - \log p(z|x).$$
#
# Take any density q(z). Add and subtract log q(z), and average over z from q (the left side does not depend on z):
#
# $$\log p(x) = \underbrace{\mathbb E_q[\log p(x|z)] - \mathrm{KL}(q\,\|\,p(z))}_{\text{evidence lower bound (ELBO)}} + \mathrm{KL}(q\,\|\,p(z|x)).$$
#
# A KL is never negative, because the logarithm is concave (Jensen's inequality). So log p(x) is never below the ELBO, hence its
# name.

# %% [markdown]
# The two are equal only if q is the true posterior p(z|x). By Bayes' rule this is proportional to p(x|z) p(z), here
#
# $$e^{-(3 - 2z)^2/2} \, e^{-z^2/2} \propto e^{-5 (z - 1.2)^2/2}:$$
#
# a Gaussian with mean 1.2 and variance 1/5. Compute the bound for five q:


# %%
def bound(mean, std):
    """E_q[log p(x|z)] - KL(q ‖ p(z)) for q = N(mean, std²), each (n,): (n,)."""
    squared_error = (x - 2 * mean) ** 2 + (2 * std) ** 2  # (x - 2z)², averaged over q
    return -0.5 * (math.log(2 * math.pi) + squared_error) - kl_to_standard_normal(mean[:, None], 2 * std.log()[:, None])


# %%
means, stds = torch.tensor([0.0, 0.6, 1.2, 1.2, 1.2]), torch.tensor([1.0, 1.0, 1.0, 0.2**0.5, 0.1])
for row in zip(means, stds, bound(means, stds), strict=True):
    print("q: mean {:.1f}   σ {:.2f}   bound {:.2f}".format(*row))
gap = kl_between(means[:, None], 2 * stds.log()[:, None], torch.full((5, 1), 1.2), torch.full((5, 1), 0.2).log())
assert (bound(means, stds) + gap - evidence).abs().max() < 1e-4
print("bound + KL(q ‖ true posterior) = log p(x), for all five: max |Δ| < 1e-4")

# %% [markdown]
# The fourth q is the true posterior: there the bound equals log p(x). Now for many means of q:

# %%
means = torch.linspace(-0.5, 3, 71)
widths = {"σ = 0.45 (true posterior)": 0.2**0.5, "σ = 1": 1.0, "σ = 0.1": 0.1}
curves = {name: bound(means, torch.full((71,), std)) for name, std in widths.items()}
fig = lines(curves | {"log p(x)": evidence.expand(71)}, means, xlabel="mean of q", ylabel="nats", dashed=("log p(x)",))
fig.axes[0].set_ylim(-8, -2)
alt = "The bound over the mean of q, for three σ. No curve is above log p(x). The curve with the true posterior's σ touches it, at the true posterior's mean, 1.2."
show(fig, alt=alt)

# %% [markdown]
# So training raises the bound: it moves q, the encoder's posterior, towards the true one, and a high bound proves a high log p(x).
# The negative bound is the loss: an error plus a KL.
#
# To see what β is, let the D pixels be Gaussian with variance s². Then
#
# $$-\mathrm{ELBO} = \frac{1}{2s^2}\,\mathbb E_q\|x - \mathrm{decoder}(z)\|^2 + \mathrm{KL} + \frac D2\log(2\pi s^2).$$
#
# Multiply by β = 2s²: the sum of squared errors, plus β · KL, plus a constant. So **β/2 is the variance of the decoder's pixels**.
# (If the loss has *half* the sum of squares, β itself is the variance.)

# %% [markdown]
# ## 6. A toy at eight weights
#
# The pictures have 16 × 16 pixels and one soft dot, at a random place (x, y). These two numbers describe a picture
# completely, so a latent of two values should be enough.

# %%
side = 16
axis = torch.linspace(-1, 1, side)


def dots(places):
    """Places (B, 2) in [-1, 1] -> pictures (B, 256) in [0, 1], one soft dot each."""
    across = (axis - places[:, :1]) ** 2
    down = (axis - places[:, 1:]) ** 2
    return torch.exp(-(down[:, :, None] + across[:, None, :]) / 0.125).flatten(1)


def as_images(flat):
    return 2 * flat.view(-1, 1, side, side) - 1  # image_grid takes values in [-1, 1]


places = 0.7 * (2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) - 1)
pictures = dots(places)


# %%
show(
    image_grid([as_images(pictures[:6])]), alt="Six of the pictures: a soft white dot on black, each at another place."
)

# %% [markdown]
# Encoder and decoder have three linear layers each; the posterior is the class of notebook 01. The loss is the squared error, summed
# over the pixels, plus β · KL: up to a constant, β times the negative ELBO.


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
betas = [0.0, 1e-6, 0.001, 0.01, 0.1, 1.0, 2.0, 4.0]
models = {beta: train(beta) for beta in betas}

# %% [markdown]
# For each model, measure the *rate*, the average KL of its posteriors in nats, and the *distortion*, the squared error of its
# reconstructions. How will the two change as β rises?


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
ax.semilogy(*zip(*measured.values(), strict=True), "o-", color=BLUE)
for beta in set(betas) - {1e-6}:
    ax.annotate("0 and 1e-6" if beta == 0 else f"{beta:g}", measured[beta], xytext=(6, 6), textcoords="offset points")
ax.axhline(average_picture, color=GREY, linestyle="--")
ax.set(xlabel="rate: KL in nats", ylabel="distortion: squared error", xlim=(-1, 27), ylim=(0.01, 20))
show(
    fig,
    alt="Distortion over rate; the numbers at the points are β. Up to 9 nats it falls steeply, then it is nearly level. "
    "At β = 4 the rate is 0. Dashed: the error of always showing the average picture.",
)

# %% [markdown]
# A larger β gives a lower rate and a larger error. At first, many nats are saved at almost no error. At β = 4 the rate is 0, and
# the error is that of always showing the average picture. That is **posterior collapse**: all posteriors equal the prior, and z
# carries no information.

# %%
assert measured[0.001][0] > measured[0.1][0] > measured[1.0][0]  # the rate falls with β
assert measured[0.001][1] < measured[0.1][1] < measured[1.0][1]  # and the error rises with it
assert measured[4.0][0] < 0.1 and measured[4.0][1] > 0.95 * average_picture
print("β = 4 has collapsed: a rate below 0.1 nats, and the error of the average picture")
largest = torch.linalg.eigvalsh(torch.cov(pictures.T))[-1]
print(f"largest variance of a weighted sum of the pixels, with weights of norm 1: {largest:.2f}")

# %% [markdown]
# The reason: by section 5, β = 4 means pixel noise of variance 2. The pictures vary less, so their differences count as noise.
#
# Now look inside. The slider chooses a model. Left: the posteriors of 200 pictures, coloured by the dot's true x (at small β some
# lie outside the axes). Right: what the decoder makes of a grid of latents from -2 to 2, the dashed square. On GitHub, where
# sliders do not work, you see all eight.


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
    borders = torch.arange(side, 9 * side, side) - 0.5
    right.set(title="decoded from the dashed square", xticks=borders, yticks=borders, xticklabels=[], yticklabels=[])
    right.grid(color=GREY, linewidth=0.5, alpha=1)
    right.tick_params(length=0)
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
# In every model but the last the dot moves steadily across the grid, both ways: z is x and y, turned or bent. Up to
# β = 0.01 the cloud is larger than the square, so all dots are near their tile's middle. From 0.1 to 2 it fills the square and the dots
# reach the borders; in the corners, where no posterior lies, they are smeared. At 4 every tile is the average picture.

# %% [markdown]
# Next, what tiny weights do. Measure the posteriors' σ, and the standard deviation of their means, for each β.

# %%
with torch.no_grad():
    posteriors = {beta: model.encode(pictures) for beta, model in models.items()}
sigma = {beta: it.std.mean().item() for beta, it in posteriors.items()}
spread = {beta: it.mean.std(0).mean().item() for beta, it in posteriors.items()}
curves = {"σ of a posterior": [*sigma.values()], "standard deviation of the means": [*spread.values()]}
show(
    lines(curves, [f"{beta:g}" for beta in betas], xlabel="β", log=True),
    alt="σ and the standard deviation of the means, over β. A weight of 1e-6 changes nothing; at 0.001 σ is more than five "
    "times as large. At β = 1 the means have a standard deviation of 1; at 4, σ is 1 and all means are equal.",
)

# %%
assert abs(sigma[1e-6] / sigma[0.0] - 1) < 0.2 and 5 < sigma[0.001] / sigma[0.0] < 12
assert measured[0.001][1] < 1.3 * measured[0.0][1]
assert spread[0.0] > 2 and 0.8 < spread[1.0] < 1.2 and spread[4.0] < 0.1
print("β = 0.001 against 0: σ is more than five times as large, the error less than 1.3 times")

# %% [markdown]
# So a small weight *can* keep σ from going to zero at almost no error: 0.001 does. 1e-6 changes nothing here. Whether it does in
# Stable Diffusion, with another error and far longer training, this toy cannot tell.
#
# A larger weight has another use. Draw z from N(0, I), as if you wanted new pictures, and decode:

# %%
with torch.no_grad():
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    samples = {beta: models[beta].decoder(z) for beta in (0.0, 1.0, 4.0)}
show(
    image_grid([as_images(row) for row in samples.values()], row_labels=[f"β = {beta:g}" for beta in samples]),
    alt="Eight samples of the prior, the same in each row, decoded at three weights. At 0 the dots are clean, but near the "
    "middle. At 1 they are at more places and a little weaker. At 4 all eight are the average picture.",
)

# %% [markdown]
# At β = 0 the prior covers only a small part of the cloud of posteriors, at β = 1 nearly all. At β = 4 the decoder ignores z.
# Check with 1,000 samples and their nearest pictures:


# %%
@torch.no_grad()
def prior_samples(model):
    """Standard deviation of the dots' places in decoded samples of N(0, I), and their squared error to the nearest picture."""
    decoded = model.decoder(torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)))
    distance, nearest = torch.cdist(decoded, pictures).min(1)
    return places[nearest].std(0).mean() / places.std(0).mean(), distance.pow(2).mean()


covered, errors = zip(*(prior_samples(models[beta]) for beta in samples), strict=True)
assert covered[0] < 0.6 and covered[1] > 0.8 and covered[2] < 0.1 and errors[0] < errors[1] < errors[2]
print("standard deviation of the places, of the true one: below 60 % at β = 0, above 80 % at 1, below 10 % at 4")

# %% [markdown]
# A larger weight makes all posteriors together look like the prior. Then samples of the prior reach every place, with less exact
# pictures.
#
# In Stable Diffusion N(0, I) does not cover the latents, whose standard deviation is 5.5. A diffusion model learns where they are
# (notebook 11).

# %% [markdown]
# ## Going further: a nat, a collapse and 1e-6 in numbers (optional)
#
# **One nat apart.** The package's class has both KLs in one method: `posterior.kl()` and `posterior.kl(other)`. Let two Gaussians
# of the same width σ move apart:

# %%
distance = torch.linspace(0, 4, 41)[:, None]
curves = {}
for std in (0.5, 1.0, 2.0):
    width = 2 * torch.full_like(distance, std).log()
    curves[f"σ = {std:g}"] = kl_between(distance, width, 0 * distance, width)
fig = lines(
    curves | {"1 nat": torch.ones(41)}, distance, xlabel="distance of the means", ylabel="KL in nats", dashed=("1 nat",)
)
fig.axes[0].set_ylim(0, 8)
show(fig, alt="KL over the distance of the means: parabolas, the steepest for the smallest σ. All reach 1 nat at √2 σ.")

# %% [markdown]
# One nat apart means √2 σ apart, for every σ. With a smaller σ more posteriors fit into the same stretch, each one nat from its
# neighbour. In this sense narrow posteriors carry more information: more images can be told apart.

# %% [markdown]
# **The collapse.** A *linear* decoder uses a latent value only if some weighted sum of the pictures' pixels (weights of norm 1) has
# a variance above that of the decoder's pixels, β/2 (probabilistic PCA, Tipping & Bishop 1999). Section 6 computed the largest:

# %%
print(f"largest variance {largest:.2f}: a linear decoder collapses above β = {2 * largest:.1f}")

# %% [markdown]
# The toy's decoder is not linear, but it collapsed between 2 and 4 as well.
#
# **1e-6.** Absolute errors belong to Laplace pixels, with density exp(-|x - decoder(z)|/b) / 2b. The negative log-density is
# |x - decoder(z)|/b and a constant, so the KL's weight next to a sum of absolute errors is the scale b. As a scale, 1e-6 is very small:

# %%
level = 2 / 255
print(f"one of 256 grey levels, on the scale from -1 to 1: {level:.4f}, or {level / 1e-6:,.0f} times 1e-6")

# %% [markdown]
# It would mean that the decoder knows pixels thousands of times more exactly than an 8-bit image stores them. So 1e-6 is not a
# noise level. With such a weight the autoencoder is hardly a model of images in the sense of section 5: it is made to reconstruct.

# %% [markdown]
# ## Summary
#
# 1. KL to N(0, I) is ½ Σ (μ² + σ² - 1 - log σ²) nats, summed over the latent. It is zero only for the prior.
# 2. KL(q ‖ p) averages over q; the other direction gives another number. A simulation confirms the closed form.
# 3. A weight means nothing without its reduction: sum against mean is a factor of C·H·W.
# 4. Error plus KL is a bound: log p(x) ≥ E[log p(x|z)] - KL. With squared errors, β/2 is the variance of the pixels.
# 5. A larger β gives a latent space that the prior covers, and worse pictures, until the posterior collapses.
#
# ### Check yourself
#
# <details><summary>A colleague averages the KL over the latent's 4 · 32 · 32 values instead of summing, and keeps 1e-6. What changes?</summary>
#
# With pixels still summed, the KL is 4,096 times weaker than intended. It was already tiny; now it does even less to keep σ and
# the means in bounds.
# </details>
#
# <details><summary>In a collapsed model, what does the decoder do with z, and how would you notice from the loss curves alone?</summary>
#
# It ignores z, which is pure noise to it. The KL falls to nearly zero and stays there, and the error stops at that of the
# average picture.
# </details>
#
# <details><summary>Why is the rate at β = 0 finite, although the loss does not contain the KL?</summary>
#
# Because training ended. The squared error still favours a smaller σ, and each halving adds log 2 nats; the gain only gets
# smaller.
# </details>
#
# **Next:** notebook 03 builds the ResNet block, of which encoder and decoder are made.
