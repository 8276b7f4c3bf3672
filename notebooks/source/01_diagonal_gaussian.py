# %% [markdown]
# # 01 · The posterior: a Gaussian for every latent value
#
# {{badge}}
#
# Stable Diffusion's encoder does not turn an image into one latent. It turns it into a *distribution* over latents, and the
# latent is drawn from that. In this notebook you build this distribution, and end with that of a trained encoder.
#
# **You will be able to**
#
# * read mean and log-variance from an encoder's output, and say why it is the logarithm, and why it is clamped;
# * draw a sample that gradients can pass through;
# * compute how likely a latent is (`nll`), and which one is the most likely (`mode`);
# * show that your class and `klvae_edu.DiagonalGaussianDistribution` give the same numbers;
# * compare the posteriors of an untrained and a trained encoder.
#
# **You need** tensors, autograd and `nn.Module` in PyTorch, and the density of a Gaussian. [00](00_tour.ipynb) helps.
#
# {{budget}}

# %% tags=["environment"]

# %% [markdown]
# All imports for the whole notebook. Everything from `klvae_edu` is the finished version of something that you build in this
# course, here or later.

# %%
import math

import torch

from klvae_edu import AutoencoderKL, DiagonalGaussianDistribution
from klvae_edu.data import photographs
from klvae_edu.diagrams import show_diagram
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.metrics import psnr
from klvae_edu.plots import PALETTE, figure, lines, show, side_by_side

# %% [markdown]
# ## 1. Why does the encoder put out twice as many channels as the latent has?
#
# Because each latent value needs two numbers: a mean and a variance. The encoder's output, called *moments* or `parameters`, holds both:

# %%
show_diagram("posterior")

# %% [markdown]
# A plain autoencoder maps an image to one point z. Training then says nothing about the points beside z, and what the decoder makes
# of them is left to chance.
#
# A *variational* autoencoder (VAE) trains the decoder on a neighbourhood: the encoder returns a Gaussian, and the decoder gets a
# random sample from it. This Gaussian is called the *posterior* q(z|x), or q for short: the distribution of the latent z, given the
# image x. A small example:

# %%
encoder_output = torch.tensor([[1.0, -2.0, 0.0, 2.0]])  # one image, a latent of two values
mean, logvar = encoder_output.chunk(2, dim=1)
print("mean             ", mean.tolist())
print("log-variance     ", logvar.tolist())

# %% [markdown]
# The first half of the channels holds the means, the second half the logarithms of the variances. This is a convention, but it must be
# kept: weights trained in one order are useless in the other. Now a real encoder, untrained, and a grey image. (`tiny` is a
# *preset*, a named configuration; it shrinks each side by 4. `quant_conv` is the encoder's last layer, which 05 explains.)

# %%
vae = AutoencoderKL.from_preset("tiny", seed=0)
image = torch.zeros(1, 3, 32, 32)
parameters = vae.quant_conv(vae.encoder(image))
print("image", tuple(image.shape), "-> parameters", tuple(parameters.shape))

# %% [markdown]
# An image of 3 × 32 × 32 becomes a feature map of 8 × 8 × 8: four channels of means and four of log-variances, with sides four times
# smaller. In Stable Diffusion, 3 × 512 × 512 becomes 8 × 64 × 64.

# %%
mean, logvar = parameters.chunk(2, dim=1)
assert mean.shape == logvar.shape == (1, 4, 8, 8)
print(f"average standard deviation {logvar.mul(0.5).exp().mean():.2f}, spread of the means {mean.std():.2f}")

# %% [markdown]
# The *spread* of the means is their standard deviation over the latent. Here it is much smaller than σ: this posterior is close to
# N(0, 1), and its samples are nearly all noise.

# %% [markdown]
# ## 2. Why the logarithm, and why is it clamped?
#
# A standard deviation must be positive. But the last layer of the encoder is a convolution, and its outputs can have any sign. A
# logarithm can have any sign, too. So the network puts out log σ², and `exp` makes it positive.

# %%
logvar = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
std = torch.exp(0.5 * logvar)
print("log σ²", logvar.tolist())
print("σ     ", [round(value, 2) for value in std.tolist()])

# %% [markdown]
# Half the logarithm of σ² is the logarithm of σ: hence the ½. Adding 2 to the log-variance multiplies σ by e, at any start. Now the
# reason for the clamp. Suppose that an encoder, early in training, puts out something large:

# %%
wild = torch.tensor([200.0], requires_grad=True)
variance = torch.exp(wild)
variance.sum().backward()
print("variance", variance.item(), " gradient", wild.grad.item())

# %% [markdown]
# The variance is infinite, and so is its gradient (in float32, `exp` overflows at about 88). After one such value, the next step of
# the optimiser makes every weight that it reaches infinite or `nan`. The original code therefore clamps the log-variance to
# [-30, 20] first. In standard deviations:

# %%
low, high = math.exp(0.5 * -30.0), math.exp(0.5 * 20.0)
print(f"smallest σ {low:.1e}   largest σ {high:.1e}")

# %%
logvar = torch.linspace(-40, 30, 400)
curves = {
    "without a clamp": torch.exp(0.5 * logvar),
    "clamped to [-30, 20]": torch.exp(0.5 * logvar.clamp(-30, 20)),
}
labels = {"xlabel": "what the network puts out (log σ²)", "ylabel": "standard deviation σ"}
fig = lines(curves, x=logvar, **labels, log=True, dashed=["without a clamp"])
show(
    fig,
    alt="Standard deviation against log-variance, on a log scale. Without a clamp it is a straight line; with the clamp it is "
    "constant below -30 and above 20.",
)

# %% [markdown]
# No useful σ is excluded: 3e-7 is too small for a decoder to notice, and 22,000 is pure noise. The clamp has one disadvantage:
# outside the limits the curve is constant and the gradient zero, so such a value is not pulled back. A trained encoder stays far
# inside (section 6: from -6.9 to -3.9).

# %% [markdown]
# {{exercise 01.1}}
#
# Split the encoder's output into mean and log-variance, and clamp the log-variance. The function should work for (B, 2C, H, W) and
# for (B, 2C), let gradients through, and leave its input unchanged.


# %%
def split_parameters(parameters):
    """(B, 2C, …) -> mean (B, C, …) and log-variance (B, C, …), the latter within [-30, 20]."""
    # BEGIN SOLUTION
    mean, logvar = parameters.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)
    # SKELETON
    #| mean, logvar = ...  # two halves of the channels
    #| return mean, ...    # the log-variance, clamped
    # END SOLUTION


split_parameters = check("01.1", split_parameters)

# %% [markdown]
# If you are stuck: `hint("01.1")` in a new cell gives one hint after another, and `solution("01.1")` shows the finished code. Until
# your version passes, the notebook uses the finished one, so all cells below run. Try it on the encoder's output:

# %%
mean, logvar = split_parameters(parameters)
print("mean", tuple(mean.shape), " log-variance", tuple(logvar.shape))

# %% [markdown]
# ## 3. How does a gradient get through a random draw?
#
# It does not. So the random number is drawn apart, and z is computed from it without chance. The decoder sees z, a random number, and the loss is computed from the
# decoder's output. To train the encoder, the loss must be differentiated with respect to the mean and σ. First the obvious way:

# %%
mean, std = torch.tensor([1.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)
z = torch.distributions.Normal(mean, std).sample()
print("z.requires_grad:", z.requires_grad)

# %% [markdown]
# `sample()` cuts the graph: no gradient gets from z to the mean. Now another way: take noise ε from N(0, 1), which does not depend on the encoder, and *compute* z from
# it. Then raise the mean by 0.1, and keep the noise:

# %%
torch.manual_seed(0)
noise = torch.randn(5)
z = 1.0 + 0.5 * noise
z_shifted = 1.1 + 0.5 * noise
print("z      ", [round(value, 2) for value in z.tolist()])
print("change ", [round(value, 2) for value in (z_shifted - z).tolist()])

# %% [markdown]
# Each z moves by 0.1. The randomness is now only in ε, and z is an ordinary function of the encoder's output:
#
# $$z = \mu + \sigma \, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, 1), \qquad
# \frac{\partial z}{\partial \mu} = 1, \qquad \frac{\partial z}{\partial \sigma} = \varepsilon.$$
#
# This is the *reparameterisation trick* (Kingma & Welling 2013, section 2.4).

# %% [markdown]
# {{exercise 01.2}}
#
# Compute the sample from mean, log-variance and noise, all of one shape. The gradient must reach both inputs.


# %%
def reparameterize(mean, logvar, noise):
    """mean, logvar and noise of one shape -> a sample of the same shape."""
    # BEGIN SOLUTION
    std = torch.exp(0.5 * logvar)
    return mean + std * noise
    # SKELETON
    #| std = ...   # from the log-variance; mind the half
    #| return ...  # shift and scale the noise
    # END SOLUTION


reparameterize = check("01.2", reparameterize)

# %% [markdown]
# A test of the distribution: draw 100,000 values for mean 2 and σ = 3, so log σ² = 2 log 3. Their mean and standard deviation:

# %%
torch.manual_seed(0)
noise = torch.randn(100_000, 1)
z = reparameterize(torch.full_like(noise, 2.0), torch.full_like(noise, 2 * math.log(3)), noise)
print(f"mean {z.mean():.1f}, standard deviation {z.std():.1f}")
assert abs(z.mean() - 2) < 0.05 and abs(z.std() - 3) < 0.05

# %%
fig, ax = figure(size=(6, 3))
for value, color in zip((-1.2, -0.4, 0.3, 1.1), PALETTE, strict=False):
    ax.plot([2 + 0.5 * value, value, -2 + 1.5 * value], [0, 1, 2], "o-", color=color, linewidth=1)
ax.set_yticks([0, 1, 2], ["μ = 2, σ = 0.5", "noise ε", "μ = -2, σ = 1.5"])
ax.set_xlabel("value")
show(
    fig,
    alt="Four noise values (middle row) and the samples that two Gaussians make from them. A sample is the noise, shifted by μ and "
    "stretched by σ: the order stays the same.",
)

# %% [markdown]
# A generator with a fixed seed gives the same ε each time. So samples from different posteriors can be compared.

# %% [markdown]
# ## 4. How likely is a value?
#
# The measure is the *negative log-likelihood*, -log q(z). It is small for likely values and large for surprising ones. Its unit is
# the *nat*: a bit, but with the natural logarithm (1 nat = 1.44 bits). From the density of a Gaussian, for one value:
#
# $$-\log q(z) = \tfrac12\left[\log 2\pi + \log \sigma^2 + \frac{(z - \mu)^2}{\sigma^2}\right].$$

# %%
z = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
surprise = 0.5 * (math.log(2 * math.pi) + 0.0 + z**2)  # μ = 0, log σ² = 0
print("z       ", z.tolist())
print("-log q  ", [round(value, 2) for value in surprise.tolist()])

# %% [markdown]
# It is smallest at the mean, and grows with the square of the distance. It can also be negative, because a density can be greater
# than 1 when σ is small:

# %%
narrow = 0.5 * (math.log(2 * math.pi) + math.log(0.01**2) + 0.0)  # z = μ, σ = 0.01
print(f"at the mean of a Gaussian with σ = 0.01: {narrow:.2f} nats")

# %% [markdown]
# *Diagonal* means that the values of one latent are independent, given the image. So their log-likelihoods add up over channels,
# rows and columns, to one number per image.
#
# Stable Diffusion's training does not use this number. You need log q again in 02, to check the KL by sampling.

# %% [markdown]
# {{exercise 01.3}}
#
# Compute the negative log-likelihood of a sample, summed over all dimensions but the batch.


# %%
def nll(mean, logvar, sample):
    """mean, logvar, sample (B, C, …) -> -log q(sample) in nats, one number per image: (B,)."""
    # BEGIN SOLUTION
    each = math.log(2 * math.pi) + logvar + (sample - mean) ** 2 / torch.exp(logvar)
    return 0.5 * each.flatten(1).sum(1)
    # SKELETON
    #| each = ...  # three terms for every value
    #| return ...  # half their sum, for each image by itself
    # END SOLUTION


nll = check("01.3", nll)

# %% [markdown]
# A check by other means: PyTorch has the density of a Gaussian, too. (The print says whose `nll` is compared: yours once it has
# passed, or else the finished one.) The *mode* is the most likely z. Move z away from the mean, to either side, to find it:

# %%
mean, logvar = torch.full((61, 1), 0.5), torch.full((61, 1), -1.0)
z = torch.linspace(-2, 3, 61)[:, None]
by_formula = nll(mean, logvar, z)
by_torch = -torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(1)
print(f"{whose('01.3', nll)} nll and PyTorch's: max |Δ| < 1e-5:", bool((by_formula - by_torch).abs().max() < 1e-5))
print("smallest at z =", round(z[by_formula.argmin()].item(), 2))

# %%
curves = {f"log σ² = {value:.0f}": nll(mean, torch.full_like(mean, value), z) for value in (-2.0, 0.0)}
show(
    lines(curves, x=z[:, 0], xlabel="z", ylabel="-log q(z) in nats"),
    alt="-log q for two variances and the mean 0.5. Both parabolas have their lowest point at the mean. The one of the smaller "
    "variance is lower there, and steeper.",
)

# %% [markdown]
# The mode of a Gaussian *is* its mean. Where you need the most likely latent, without noise, take `mode()`.

# %% [markdown]
# ## 5. All parts in one class
#
# The class also gets what users need: a `generator`, so that a sample can be repeated; noise with the device and data type of the
# mean; and `deterministic=True`, a posterior of width zero, whose sample is its mean.

# %% [markdown]
# {{exercise 01.4}}
#
# Build the class. You can use `split_parameters`. `sample` needs `self.std`, and `nll` needs `self.var`. `dims` are the dimensions
# that `nll` sums over: the default leaves one number per image of (B, C, H, W). The density of a deterministic posterior is infinite;
# its `nll` shall be zeros of shape (B,), as in the package. (Stable Diffusion's code returns a single 0.)


# %%
class DiagonalGaussian:
    """A Gaussian for every latent value: parameters (B, 2C, …), the mean in the first half of the channels."""

    def __init__(self, parameters, deterministic=False):
        # BEGIN SOLUTION
        self.deterministic = deterministic
        self.mean, self.logvar = split_parameters(parameters)
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = self.std**2
        # SKELETON
        #| self.deterministic = deterministic
        #| self.mean, self.logvar = ...
        #| self.std = ...  # 0 if deterministic
        #| self.var = ...  # the variance: 0 if deterministic, as well
        # END SOLUTION

    def sample(self, generator=None):
        """A sample of the mean's shape, device and data type."""
        # BEGIN SOLUTION
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * noise
        # END SOLUTION

    def mode(self):
        """The most likely value."""
        # BEGIN SOLUTION
        return self.mean
        # END SOLUTION

    def nll(self, sample, dims=(1, 2, 3)):
        """-log q(sample), summed over `dims`; 0 if deterministic."""
        # BEGIN SOLUTION
        if self.deterministic:
            return torch.zeros(self.mean.shape[0], dtype=self.mean.dtype, device=self.mean.device)
        each = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * each.sum(dim=dims)
        # END SOLUTION


DiagonalGaussian = check("01.4", DiagonalGaussian)

# %% [markdown]
# Now the comparison with the package's class: the same parameters, from an untrained encoder and a photograph, and the same seed. The
# package's class is tested against *diffusers*, Hugging Face's library of diffusion models, to 12 digits.

# %%
photo = photographs("held-out")["chelsea"][None, :, 20:276, 100:356]
with torch.no_grad():
    parameters = vae.quant_conv(vae.encoder(photo))
built, finished = DiagonalGaussian(parameters), DiagonalGaussianDistribution(parameters)
z = finished.sample(torch.Generator().manual_seed(0))

# %%
differences = {
    "sample": built.sample(torch.Generator().manual_seed(0)) - z,
    "mode": built.mode() - finished.mode(),
    "nll": (built.nll(z) - finished.nll(z)) / finished.nll(z),
}
for name, difference in differences.items():
    assert difference.abs().max() < 1e-5, name
print(f"{whose('01.4', DiagonalGaussian)} class and the package's: sample, mode and nll agree, max |Δ| < 1e-5")

# %% [markdown]
# ## 6. What does the posterior of a photograph look like?
#
# From the untrained encoder it is mostly noise; from a trained one it is not. First the untrained one. Each grey picture has its own
# scale from black to white.


# %%
def stretched(values):
    """One channel (H, W) -> (1, H, W), its smallest value black (-1) and its largest white (1)."""
    return (2 * (values - values.min()) / (values.max() - values.min()) - 1)[None]


channels = {"mean": finished.mean, "standard deviation": finished.std, "sample": z}
pictures = {"photograph": photo[0]} | {name: stretched(values[0, 2]) for name, values in channels.items()}
show(
    side_by_side(pictures),
    alt="Untrained encoder: the photograph, and channel 3 of the mean, of the standard deviation and of a sample. Eyes and nose are "
    "visible in the mean and in the standard deviation; the sample is nearly all noise.",
    format="jpeg",
)

# %% [markdown]
# Even the untrained mean shows eyes and nose, because convolutions keep things in place. In the sample they are lost: the noise is
# larger than the signal.

# %%
print(f"channel 3: spread of the means {finished.mean[0, 2].std():.2f}, σ {finished.std[0, 2].mean():.2f}")
assert finished.mean[0, 2].std() < finished.std[0, 2].mean() / 3

# %% [markdown]
# To be of use, training must turn this round: spread the means out, or make σ small. Now the trained model of notebook 00, which has
# never seen this cat:

# %%
trained = AutoencoderKL.from_bundled("kl-f8-mini").eval()
with torch.no_grad():
    q = trained.encode(photo).latent_dist
spreads, widths = q.mean.std((0, 2, 3)), q.std.mean((0, 2, 3))
for index in range(4):
    print(f"channel {index + 1}: spread of the means {spreads[index]:.2f}, σ {widths[index]:.2f}")

# %%
assert (widths < spreads / 4).all()
print(f"σ is at most {(widths / spreads).max():.2f} of the spread")
print(f"log-variances from {q.logvar.min():.1f} to {q.logvar.max():.1f}")

# %% [markdown]
# In every channel σ is under a quarter of the spread (at most 15 %). So the samples must look like the mean. Two of them:

# %%
samples = [q.sample(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
channels = {"mean": q.mean, "standard deviation": q.std, "sample 1": samples[0], "sample 2": samples[1]}
pictures = {"photograph": photo[0]} | {name: stretched(values[0, 0]) for name, values in channels.items()}
show(
    side_by_side(pictures),
    alt="Trained encoder: the photograph, and channel 1 of the mean, of the standard deviation and of two samples. The cat is "
    "visible in all of them. The samples can hardly be told from the mean; σ is largest at the eyes.",
    format="jpeg",
)

# %% [markdown]
# Now decode the mean and both samples. PSNR measures the error against the photograph, in decibels (higher is better).

# %%
with torch.no_grad():
    decoded = [trained.decode(latent).sample for latent in (q.mode(), *samples)]
names = ["from the mean", "from sample 1", "from sample 2"]
decibels = [psnr(picture, photo).item() for picture in decoded]
print(", ".join(f"{name} {db:.1f} dB" for name, db in zip(names, decibels, strict=True)))
assert max(decibels) - min(decibels) < 0.3

# %%
pictures = {"photograph": photo[0]} | {name: it[0] for name, it in zip(names, decoded, strict=True)}
show(
    side_by_side(pictures),
    alt="The photograph, and what the decoder makes of the mean and of two samples: three pictures of the cat that look the same, a "
    "little softer than the photograph.",
    format="jpeg",
)

# %% [markdown]
# The pictures agree, and the noise costs 0.1 dB. The decoder has learned to cope with a neighbourhood of each latent, as section 1
# asked, and a small one is enough.
#
# The reconstruction error alone would make σ as small as possible, since noise only adds error. The term that works against this is
# the KL term: notebook 02. (This model was trained with a KL weight of 0.02, next to a squared error summed
# over the image, so that the noise is noticeable. Source: its recipe.)

# %% [markdown]
# ## Going further: the gradient without the trick (optional)
#
# There is another way to differentiate an expectation. Write E_q[f(z)] for the average of a loss f(z) over samples z from q. It is
# the integral of q(z) f(z), and only q depends on μ. With ∇q = q ∇log q:
#
# $$\nabla_\mu \, \mathbb E_q[f(z)] = \int f(z) \, \nabla_\mu q(z) \, dz = \int f(z) \, q(z) \, \nabla_\mu \log q(z) \, dz
# = \mathbb E_q\!\left[f(z)\, \nabla_\mu \log q(z)\right], \qquad \nabla_\mu \log q(z) = \frac{z - \mu}{\sigma^2}.$$

# %% [markdown]
# This is the *score-function* estimator (REINFORCE). It needs f(z), but not its slope, and works even where z cannot be computed from
# noise. Compare both for f(z) = (z - 3)², at μ = 1 and σ = 1, where the true derivative is 2(μ - 3) = -4.

# %%
torch.manual_seed(0)
mean, noise = 1.0, torch.randn(100_000)
z = mean + noise
reparameterised = 2 * (z - 3)  # df/dz · dz/dμ
score = (z - 3) ** 2 * (z - mean)  # f(z) · (z - μ) / σ²
print(f"reparameterised  mean {reparameterised.mean():.1f}   variance {reparameterised.var():.0f}")
print(f"score function   mean {score.mean():.1f}   variance {score.var():.0f}")
print(f"score-function samples with the wrong sign: {(score > 0).float().mean():.0%}")

# %% [markdown]
# Both are right on average. But the score function has some twenty times the variance, and so needs twenty times as many samples for
# the same error. Half of its samples have the wrong sign: f is never negative, so the sign is that of the noise.

# %%
fig, ax = figure(size=(6, 3))
bins = torch.linspace(-40, 5, 90).numpy()
ax.hist(score.numpy(), bins, density=True, color=PALETTE[1], label="score function")
ax.hist(reparameterised.numpy(), bins, density=True, color=PALETTE[0], alpha=0.8, label="reparameterised")
ax.axvline(-4, color="black", linestyle="--", label="true gradient")
ax.set(xlabel="one sample's estimate of the gradient", ylabel="density")
ax.legend()
show(
    fig,
    alt="Histograms of both estimates. The reparameterised one is a bell around the true gradient, -4. The score function's has a "
    "peak near 0 and a long tail on the left, which makes its mean right.",
)

# %% [markdown]
# A real latent has many values: 4,096 for an image of 256 × 256. Estimate the gradient for the first mean, for two losses over d
# values. The first treats every value by itself: Σ (z - 3)². The second mixes them, as a decoder does: (Σ (z - 3))².


# %%
def variances(d, mixed):
    """Variance over 2,000 samples of both estimates of the gradient: (reparameterised, score function)."""
    z = 1.0 + torch.randn(2000, d, generator=torch.Generator().manual_seed(d))
    f = (z - 3).sum(1) ** 2 if mixed else (z - 3).pow(2).sum(1)
    slope = 2 * (z - 3).sum(1) if mixed else 2 * (z[:, 0] - 3)
    return slope.var().item(), (f * (z[:, 0] - 1.0)).var().item()


# %%
table = {(d, mixed): variances(d, mixed) for mixed in (False, True) for d in (1, 64, 4096)}
print("loss            d   reparameterised   score function")
for (d, mixed), (slope, score) in table.items():
    print(f"{'mixed' if mixed else 'separate':<8} {d:8}  {slope:16.1e}  {score:15.1e}")
assert table[4096, False][0] < 5 and 10_000 < table[4096, True][0] < 25_000

# %% [markdown]
# From d = 64 to 4,096, a factor of 64, the score function's variance grows by about 64² (separate) and 64⁴ (mixed), because the
# whole loss multiplies the score of one value. (Subtracting the
# average loss first, a *baseline*, helps, but it still grows.) The reparameterised variance stays at 4 for the separate loss, and
# grows with d for the mixed one: much more slowly. In practice one sample per image is enough, if the batch is large (Kingma & Welling
# 2013, section 2.3).

# %% [markdown]
# ## Summary
#
# 1. The encoder puts out a Gaussian for every latent value: means in the first half of the channels, log-variances in the second.
# 2. The logarithm keeps σ positive; the clamp to [-30, 20] keeps it finite.
# 3. z = μ + σ ε lets the gradient through to μ and σ.
# 4. -log q(z) is a parabola per value, summed over the latent; its lowest point, the mode, is the mean.
# 5. In the trained model σ is under a quarter of the spread of the means, and a sample decodes nearly like the mean.
#
# ### Check yourself
#
# <details><summary>Why is σ = exp(½ log σ²) and not exp(log σ²)?</summary>
#
# The network puts out the logarithm of the *variance*. exp gives the variance back; its square root, the ½ in the exponent,
# is the standard deviation. With exp(log σ²) every σ is squared: 0.1 becomes 0.01.
# </details>
#
# <details><summary>If you replace ε by 0, what do you get, and when would you want that?</summary>
#
# The mean, which is the mode. When latents are stored once for training a diffusion model, or an image is edited, the noise
# of the posterior is often left out.
# </details>
#
# <details><summary>Your log-variance is 25 in one place. Which gradient does it get from the sample?</summary>
#
# None: the clamp is constant there. The KL term, computed from the clamped value, does not pull it back either.
# </details>
#
# **Next:** [02, the KL term](02_kl_loss.ipynb). It adds a cost for every nat of information in the posterior.
