# %% [markdown]
# # 01 · The posterior: a Gaussian for every latent value
#
# {{badge}}
#
# Stable Diffusion's encoder does not turn an image into a latent. It turns it into a *distribution* over latents, and the
# latent is drawn from that. In this notebook you build that distribution, down to the last clamp.
#
# **You will be able to**
#
# * read mean and log-variance off an encoder's output, and say why it is the logarithm;
# * draw a sample that gradients can pass through, and measure what the alternative would cost;
# * compute how likely a latent is (`nll`), and which one is the likeliest (`mode`);
# * show that your class and the finished `klvae_edu.DiagonalGaussianDistribution` give the same numbers.
#
# **You need** tensors, autograd and `nn.Module` in PyTorch, and the density of a Gaussian. [00](00_tour.ipynb) helps.
#
# {{budget}}

# %% tags=["environment"]

# %% [markdown]
# One cell of imports for the whole notebook. Everything from `klvae_edu` is the finished version of something that you will
# build in this course, here or later.

# %%
import math

import torch

from klvae_edu import AutoencoderKL, DiagonalGaussianDistribution
from klvae_edu.data import photographs
from klvae_edu.exercises import check, hint, solution
from klvae_edu.plots import PALETTE, figure, show, side_by_side

BLUE, ORANGE, GREY = PALETTE[0], PALETTE[1], "0.6"

# %% [markdown]
# ## 1. Why does the encoder put out twice as many channels as the latent has?
#
# A plain autoencoder maps an image to one point z. Suppose you decode a point right beside it, one that no training image was
# ever mapped to. What do you expect to see? Nothing in the training said anything about that point: the decoder may do there
# what it likes.
#
# A *variational* autoencoder leaves no such gaps. The encoder answers with a whole neighbourhood, a Gaussian around a mean,
# and the decoder has to cope with every sample from it. So each latent value needs two numbers: where, and how wide.

# %%
encoder_output = torch.tensor([[1.0, -2.0, 0.0, 2.0]])  # one image, a latent of two values
mean, logvar = encoder_output.chunk(2, dim=1)
print("mean             ", mean.tolist())
print("log-variance     ", logvar.tolist())

# %% [markdown]
# The first half of the channels holds the means, the second half the logarithms of the variances. That is a convention, not a
# law: swap the halves and a network trained one way is useless the other way. Now the same on a real encoder, untrained:

# %%
vae = AutoencoderKL.from_preset("tiny", seed=0)
image = torch.zeros(1, 3, 32, 32)
parameters = vae.quant_conv(vae.encoder(image))
print("image", tuple(image.shape), "-> parameters", tuple(parameters.shape))

# %% [markdown]
# An image of 3 × 32 × 32 becomes 8 × 8 × 8: four channels of means and four of log-variances, on a map four times smaller on
# each side. In Stable Diffusion the first number is 3 × 512 × 512, the second 8 × 64 × 64.

# %%
mean, logvar = parameters.chunk(2, dim=1)
assert mean.shape == logvar.shape == (1, 4, 8, 8)
print(f"average standard deviation {logvar.mul(0.5).exp().mean():.2f}, spread of the means {mean.std():.2f}")

# %% [markdown]
# "About 0, give or take 1", says the untrained encoder of this grey image: compare the two numbers. Keep this in mind for
# notebook 02, where saying nothing will turn out to be exactly what costs nothing.

# %% [markdown]
# ## 2. Why the logarithm, and why does it need a fence?
#
# Which numbers may a standard deviation take? Only positive ones; but the last layer of a network is a convolution, and puts
# out any number it likes. A logarithm may be any number, too: so the network puts out log σ², and `exp` makes it positive.

# %%
logvar = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
std = torch.exp(0.5 * logvar)
print("log σ²", logvar.tolist())
print("σ     ", [round(value, 2) for value in std.tolist()])

# %% [markdown]
# Half the logarithm of σ² is the logarithm of σ: hence the ½. Adding 2 to the log-variance multiplies σ by e, wherever you
# start. What happens when an encoder, early in training, puts out something large? Let us break it.

# %%
wild = torch.tensor([200.0], requires_grad=True)
variance = torch.exp(wild)
variance.sum().backward()
print("variance", variance.item(), " gradient", wild.grad.item())

# %% [markdown]
# Infinite, and so is its gradient (in float32, `exp` overflows at about 88). One such value in one image, and after the next
# step of the optimiser every weight it touches is `nan` or infinite. The original code therefore clamps the log-variance to
# [-30, 20] before anything else. What do the two ends mean?

# %%
low, high = math.exp(0.5 * -30.0), math.exp(0.5 * 20.0)
print(f"smallest σ {low:.1e}   largest σ {high:.1e}")

# %%
logvar = torch.linspace(-40, 30, 400)
fig, ax = figure(size=(6, 3))
ax.semilogy(logvar, torch.exp(0.5 * logvar), color=GREY, linestyle="--", label="without a clamp")
ax.semilogy(logvar, torch.exp(0.5 * logvar.clamp(-30, 20)), color=BLUE, label="clamped to [-30, 20]")
ax.set(xlabel="what the network puts out (log σ²)", ylabel="standard deviation σ")
ax.legend()
show(
    fig,
    alt="Standard deviation over log-variance: a straight line on a log scale, level below -30 and above 20 with the clamp.",
)

# %% [markdown]
# Read the picture from the left: below -30 nothing changes any more, because σ is already far below anything a decoder could
# tell from zero. Above 20 the sample would be pure noise anyway. Where the line is level, what is the gradient? Zero: beyond
# the fence, nothing pushes a value back. In practice it hardly ever goes there.

# %% [markdown]
# {{exercise 01.1}}
#
# Split the encoder's output into mean and log-variance, and clamp the log-variance. It should work for (B, 2C, H, W) as well
# as for (B, 2C), let gradients through, and leave its input as it was.


# %%
def split_parameters(parameters):
    """(B, 2C, …) -> mean (B, C, …) and log-variance (B, C, …), the latter within [-30, 20]."""
    # BEGIN SOLUTION
    mean, logvar = parameters.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)
    # SKELETON
    #| mean, logvar = ...  # two halves of the channels
    #| return mean, ...    # the log-variance, kept within the fence
    # END SOLUTION


split_parameters = check("01.1", split_parameters)

# %% [markdown]
# Stuck? `hint("01.1")` in a new cell gives one hint after another, `solution("01.1")` shows the finished code. Until your
# version passes, the notebook goes on with the finished one, so nothing below breaks. Try it on the encoder's output:

# %%
mean, logvar = split_parameters(parameters)
print("mean", tuple(mean.shape), " log-variance", tuple(logvar.shape))

# %% [markdown]
# ## 3. How does a gradient get through a random draw?
#
# The decoder sees z, a random number. The loss is computed from what the decoder makes of it. To train the encoder, the loss
# must be differentiated with respect to the mean and σ that z was drawn from. But what is the derivative of a dice roll?

# %%
mean, std = torch.tensor([1.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)
z = torch.distributions.Normal(mean, std).sample()
print("does z know where it came from?", z.requires_grad)

# %% [markdown]
# `sample()` cuts the graph. Now five draws in another way: take noise ε from N(0, 1), which has nothing to do with the
# encoder, and *compute* z from it. If you raise the mean by 0.1 and keep the noise, by how much does each z move?

# %%
torch.manual_seed(0)
noise = torch.randn(5)
z = 1.0 + 0.5 * noise
z_shifted = 1.1 + 0.5 * noise
print("z      ", [round(value, 2) for value in z.tolist()])
print("change ", [round(value, 2) for value in (z_shifted - z).tolist()])

# %% [markdown]
# By 0.1, each of them. The randomness has moved out of the way into ε, and what is left is an ordinary function of the
# encoder's output:
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
# Does it sample what it should? Draw 100,000 values for mean 2 and σ = 3, so log σ² = 2 log 3, and look at their mean and
# standard deviation:

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
    alt="Four noise values in the middle row; lines lead up and down to the samples they become under two Gaussians.",
)

# %% [markdown]
# Follow one colour from the middle row, up and down: the same ε, the same place in the order, only shifted and stretched. That is all a sample of a
# Gaussian is. A generator with a fixed seed therefore gives comparable samples from different posteriors.

# %% [markdown]
# ## 4. Was the trick necessary?
#
# There is another way to differentiate an expectation, and it works even where z cannot be computed from noise. It uses only
# the density q, and that ∇q = q ∇log q (the *score-function* estimator, REINFORCE):
#
# $$\nabla_\mu \, \mathbb E_q[f(z)] = \mathbb E_q\!\left[f(z)\, \nabla_\mu \log q(z)\right], \qquad
# \nabla_\mu \log q(z) = \frac{z - \mu}{\sigma^2}.$$
#
# Both are right on average. Which would you rather have? Try them on f(z) = (z - 3)², at μ = 1 and σ = 1, where the true
# derivative is 2(μ - 3) = -4.

# %%
torch.manual_seed(0)
mean, noise = 1.0, torch.randn(100_000)
z = mean + noise
pathwise = 2 * (z - 3)  # df/dz · dz/dμ
score = (z - 3) ** 2 * (z - mean)  # f(z) · (z - μ) / σ²
print(f"pathwise        mean {pathwise.mean():.1f}   variance {pathwise.var():.0f}")
print(f"score function  mean {score.mean():.1f}   variance {score.var():.0f}")

# %% [markdown]
# Same mean, another variance. The pathwise estimate asks the decoder which way is better. The score function only hears *how
# good* each sample was, and must find out the direction by itself. Which of the two histograms below is which?

# %%
fig, ax = figure(size=(6, 3))
bins = torch.linspace(-40, 5, 90).numpy()
ax.hist(score.numpy(), bins, density=True, color=ORANGE, label="score function")
ax.hist(pathwise.numpy(), bins, density=True, color=BLUE, alpha=0.8, label="reparameterised")
ax.axvline(-4, color="black", linestyle="--", label="true gradient")
ax.set(xlabel="one sample's estimate of the gradient", ylabel="density")
ax.legend()
show(
    fig,
    alt="Histograms of both estimates: the reparameterised one a bell around -4; the score function's a peak near 0 with a long left tail.",
)

# %% [markdown]
# Most of the score function's samples say "about 0", many even have the wrong sign; a long tail on the left repairs the mean. With
# one latent value it needs some twenty times as many samples for the same error. But how many values does a real latent have?
# Before you run the next cell, guess how its variance grows when f sums over d values and we look at one of them.


# %%
def gradient_variances(d, samples=2000):
    """Variance of both estimates of the gradient for the first mean, when f = Σ (z_i - 3)² over d values."""
    z = 1.0 + torch.randn(samples, d, generator=torch.Generator().manual_seed(d))
    pathwise = 2 * (z[:, 0] - 3)
    score = (z - 3).pow(2).sum(1) * (z[:, 0] - 1.0)
    return pathwise.var().item(), score.var().item()


sizes = [1, 4, 16, 64, 256, 1024, 4096]
pathwise_variance, score_variance = zip(*(gradient_variances(d) for d in sizes), strict=True)

# %%
fig, ax = figure(size=(6, 3.2))
ax.loglog(sizes, score_variance, "o-", color=ORANGE, label="score function")
ax.loglog(sizes, pathwise_variance, "s-", color=BLUE, label="reparameterised")
ax.set(xlabel="values in the latent", ylabel="variance of the gradient")
ax.legend()
show(
    fig,
    alt="On log scales, the score function's gradient variance rises with the square of the latent's size; the other stays level.",
)
growth = score_variance[-1] / score_variance[-3]
assert 200 < growth < 320  # sixteen times the size, about 16² = 256 times the variance
print(f"at 4096 values the score function is {score_variance[-1] / pathwise_variance[-1]:.0e} times noisier")

# %% [markdown]
# 4,096 values is the latent of a 256 × 256 image in Stable Diffusion. The variance of the score function grows with the
# *square* of the size, because the whole sum, about 5d, multiplies this one's score. (Subtracting the sum's mean first, a
# *baseline*, leaves growth in proportion to d: better, but it still grows.) The reparameterised
# gradient stays where it was. That is why one sample per image is enough to train on.

# %% [markdown]
# ## 5. How likely is a value?
#
# Given the posterior, which z would you call surprising? Surprise has a measure, the *negative log-likelihood*: -log q(z), in
# nats. For one value, from the Gaussian's density:
#
# $$-\log q(z) = \tfrac12\left[\log 2\pi + \log \sigma^2 + \frac{(z - \mu)^2}{\sigma^2}\right].$$

# %%
z = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
surprise = 0.5 * (math.log(2 * math.pi) + 0.0 + z**2)  # μ = 0, log σ² = 0
print("z       ", z.tolist())
print("-log q  ", [round(value, 2) for value in surprise.tolist()])

# %% [markdown]
# Symmetric about the mean, smallest at the mean, growing with the square of the distance. Can it be negative? A density may
# be greater than one: make σ small and see.

# %%
narrow = 0.5 * (math.log(2 * math.pi) + math.log(0.01**2) + 0.0)  # z = μ, σ = 0.01
print(f"at the mean of a Gaussian with σ = 0.01: {narrow:.2f} nats")

# %% [markdown]
# Values of one latent are independent given the image (that is what *diagonal* means), so their log-likelihoods add up: sum
# over channels, rows and columns, one number per image.

# %% [markdown]
# {{exercise 01.3}}
#
# Compute the negative log-likelihood of a sample, summed over all but the batch.


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
# A check by other means: PyTorch has the density of a Gaussian, too. And which z is the likeliest, the *mode*? Move z away
# from the mean, to either side:

# %%
mean, logvar = torch.full((61, 1), 0.5), torch.full((61, 1), -1.0)
z = torch.linspace(-2, 3, 61)[:, None]
ours = nll(mean, logvar, z)
theirs = -torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(1)
print("max |Δ| < 1e-5:", bool((ours - theirs).abs().max() < 1e-5), "  least at z =", round(z[ours.argmin()].item(), 2))

# %%
fig, ax = figure(size=(6, 3))
for log_variance, color in [(-2.0, BLUE), (0.0, ORANGE)]:
    ax.plot(z, nll(mean, torch.full_like(mean, log_variance), z), color=color, label=f"log σ² = {log_variance:.0f}")
ax.axvline(0.5, color=GREY, linestyle="--", label="mean")
ax.set(xlabel="z", ylabel="-log q(z) in nats")
ax.legend()
show(
    fig,
    alt="Two parabolas of surprise with their lowest points at the mean 0.5; the one of the smaller variance is lower and steeper.",
)

# %% [markdown]
# Both parabolas have their lowest point at the mean: the mode of a Gaussian *is* its mean. When Stable Diffusion only needs
# the best guess and no noise, it takes `mode()`. The narrow Gaussian is less surprised at its mean, and more surprised further out.

# %% [markdown]
# ## 6. Can you put it into one class?
#
# All parts are there. What is missing are conveniences that people rely on: a `generator`, so that a sample can be repeated;
# the noise on the device and in the data type of the mean; and `deterministic=True`, a posterior without width, whose sample
# is its mean.

# %% [markdown]
# {{exercise 01.4}}
#
# Build the class. `split_parameters` can be used as it is; `sample` and `nll` need `self.std`, `self.var` and `dims`. The
# density of a deterministic posterior is infinite; the finished class defines its `nll` as zeros of shape (B,): do the same.


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
        #| self.var = ...  # likewise
        # END SOLUTION

    def sample(self, generator=None):
        """A sample of the mean's shape, device and data type."""
        # BEGIN SOLUTION
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * noise
        # END SOLUTION

    def mode(self):
        """The likeliest value."""
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
# Now the proof: your class and the finished one on the same parameters, with the same seed. The finished one is tested
# against diffusers, to 12 digits, at extreme log-variances as well.

# %%
photo = photographs("held-out")["chelsea"][:, 20:276, 100:356]
with torch.no_grad():
    parameters = vae.quant_conv(vae.encoder(photo[None]))
yours, finished = DiagonalGaussian(parameters), DiagonalGaussianDistribution(parameters)
z = finished.sample(torch.Generator().manual_seed(0))

# %%
differences = {
    "sample": yours.sample(torch.Generator().manual_seed(0)) - z,
    "mode": yours.mode() - finished.mode(),
    "nll": (yours.nll(z) - finished.nll(z)) / finished.nll(z),
}
for name, difference in differences.items():
    assert difference.abs().max() < 1e-5, name
print("sample, mode and nll agree: max |Δ| < 1e-5")

# %% [markdown]
# What does such a posterior look like for a photograph? The encoder is untrained, so guess first: will you see anything of the
# cat in the means? And in a sample?


# %%
def stretched(values):
    """One channel (H, W) -> (1, H, W), its smallest value black (-1) and its largest white (1)."""
    return (2 * (values - values.min()) / (values.max() - values.min()) - 1)[None]


channels = {"mean": finished.mean, "standard deviation": finished.std, "sample": z}
fig = side_by_side({"photograph": photo} | {name: stretched(values[0, 2]) for name, values in channels.items()})
show(
    fig,
    alt="A cat; a latent channel's mean, with the cat's eyes and nose; its standard deviation; and a sample, nearly all noise.",
    format="jpeg",
)

# %% [markdown]
# Each picture has its own scale of greys. Stretched that way, the mean shows eyes and nose even in an untrained network:
# convolutions keep things in place. The sample hardly does, because the noise is larger than the signal. By how much?

# %%
signal, noise = finished.mean[0, 2].std(), finished.std[0, 2].mean()
print(f"spread of the means {signal:.2f}, width of the posterior {noise:.2f}")
assert signal < noise / 3

# %% [markdown]
# To be of use, the encoder must raise the first number above the second: spread the means out, or make the posterior narrow.
# Nothing stops it from going to the extreme, a σ of 1e-7, unless that has a price. The price is the KL term: notebook 02.

# %% [markdown]
# ## Summary
#
# 1. The encoder puts out a Gaussian for every latent value: means in the first half of the channels, log-variances in the second.
# 2. The logarithm keeps σ positive; the clamp to [-30, 20] keeps it finite.
# 3. z = μ + σ ε lets the gradient through; the score function's variance (without a baseline) grows with the square of the latent's size.
# 4. -log q(z) is a parabola per value, summed over the latent; its lowest point, the mode, is the mean.
# 5. Your class equals the finished one, and the finished one equals Stable Diffusion's.
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
# None: the clamp is level there. The KL term, computed from the clamped value, does not pull it back either.
# </details>
#
# **Next:** [02, the KL term](02_kl_loss.ipynb). It puts a price on every nat that the posterior says about its image.
