# %% [markdown]
# # 15 · Vector quantisation (optional)
#
# {{badge}}
#
# This notebook is optional: no other one depends on it. The KL latent has competitors. The latent diffusion paper also trains
# autoencoders whose latent is a grid of indices into a table of vectors. Here you build this, and compare it with the KL latent
# at the same number of bits.
#
# **You will be able to**
#
# * quantise a latent to the nearest vectors of a codebook, with gradients for the encoder and for the codebook;
# * count the codes in use, and avoid dead ones;
# * compare a KL and a VQ latent at the same rate, and say why Stable Diffusion has the former.
#
# **You need** PSNR and Table 8 from notebook [09](09_measuring_quality.ipynb), and the KL divergence from
# [02](02_kl_loss.ipynb).
#
# {{budget}}

# %% tags=["environment"]

# %%
import math

import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import AutoencoderKL, latents
from klvae_edu.data import photographs
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.metrics import psnr
from klvae_edu.plots import PALETTE, figure, image_grid, lines, show

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"
vae = AutoencoderKL.from_bundled().eval().requires_grad_(False)

# %% [markdown]
# ## 1. The nearest vector, and its gradient
#
# A VQ latent has at each position one of K vectors: the one of the *codebook* that is nearest to the encoder's output. Take
# five numbers and a codebook of three. Which gradient reaches the five?

# %%
values = torch.tensor([-1.2, -0.3, 0.1, 0.4, 1.5], requires_grad=True)
codebook = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
nearest = codebook[(values[:, None] - codebook).abs().argmin(1)]
gradients = torch.autograd.grad(nearest.sum(), (values, codebook), allow_unused=True)
print("nearest", nearest.tolist(), "  gradient of the values", gradients[0], "  of the codebook", gradients[1].tolist())

# %% [markdown]
# None: if a value moves a little, its nearest vector stays the same, so an encoder before it would learn nothing. The remedy is
# the *straight-through* gradient: the backward pass leaves the quantisation out. Two losses then pull the codebook and the
# encoder together (van den Oord et al. 2017, section 3.2):
#
# $$\hat z = z + \mathrm{sg}(e - z), \qquad \lVert e - \mathrm{sg}(z)\rVert^2, \qquad \lVert z - \mathrm{sg}(e)\rVert^2$$
#
# sg (stop gradient) is `detach`. The first loss moves the codebook vectors e to the latents z. The second, the *commitment*
# loss, keeps the latents near the codebook.

# %% [markdown]
# {{exercise 15.1}}
#
# Quantise a whole latent, and return both losses as means over all values. A vector is what stands at one position, across the
# channels.


# %%
def quantise(z, codebook):
    """z (B, C, h, w), codebook (K, C) -> the nearest codebook vectors (B, C, h, w), codebook loss, commitment loss."""
    # BEGIN SOLUTION
    vectors = z.permute(0, 2, 3, 1).flatten(0, 2)
    nearest = codebook[torch.cdist(vectors, codebook).argmin(1)]
    nearest = nearest.view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
    codebook_loss = F.mse_loss(nearest, z.detach())
    commitment_loss = F.mse_loss(z, nearest.detach())
    return z + (nearest - z).detach(), codebook_loss, commitment_loss
    # SKELETON
    #| vectors = ...                         # (B·h·w, C)
    #| nearest = ...                         # of each the nearest row of the codebook, then back to (B, C, h, w)
    #| codebook_loss, commitment_loss = ...  # each moves one of the two
    #| return ..., codebook_loss, commitment_loss
    # END SOLUTION


quantise = check("15.1", quantise)

# %% [markdown]
# With the straight-through result the encoder learns. `detach` keeps its values but cuts off the gradient, as `argmin` does when
# the nearest vector is used alone. Ask for the gradient at the encoder's first weights; the codebook is random here.

# %%
student = AutoencoderKL.from_bundled()
cup = photographs("held-out")["coffee"][None, :, 60:188, 150:278]
z = student.encode(cup).latent_dist.mean
quantised = quantise(z, torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))[0]
for name, latent in {"straight-through": quantised, "the same values, detached": quantised.detach()}.items():
    loss = F.mse_loss(student.decode(latent).sample, cup)
    (gradient,) = torch.autograd.grad(loss, student.encoder.conv_in.weight, retain_graph=True, allow_unused=True)
    print(f"{name}, with {whose('15.1', quantise)} function: gradient {'none' if gradient is None else 'there'}")

# %% [markdown]
# ## 2. Codes in use
#
# Now a codebook for the bundled model's latents; the encoder stays as it is. All positions of six photographs give 19,716
# vectors of 4 numbers. A layer, and a few gradient steps for its codebook:

# %%
train = torch.stack([photo[:, :424, :496] for photo in photographs("train").values()])
with torch.no_grad():
    z = torch.cat([vae.encode(part).latent_dist.mean for part in train.split(1)])
vectors = z.permute(0, 2, 3, 1).flatten(0, 2)
print("vectors:", tuple(vectors.shape))


# %%
class VectorQuantiser(nn.Module):
    def __init__(self, codebook):
        super().__init__()
        self.codebook = nn.Parameter(codebook.clone())

    def forward(self, z):
        return quantise(z, self.codebook)

    def fit(self, vectors, count, lr=0.03, batch=2048, generator=None):
        optimizer = torch.optim.Adam(self.parameters(), lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, count)
        for _ in progress(range(count), desc=f"{len(self.codebook)} codes"):
            chosen = vectors[torch.randint(len(vectors), (batch,), generator=generator)]
            optimizer.zero_grad()
            self(chosen[:, :, None, None])[1].backward()
            optimizer.step(), schedule.step()
        return self


# %% [markdown]
# The codebook may begin near zero, as weights do, or at some of the vectors. Train both for 200 steps, and count how often each
# of the 256 codes is the nearest. *Perplexity*, two to the entropy in bits, is the effective number of codes in use. How many
# codes will not be used at all?


# %%
def usage(quantiser):
    """Share of the vectors for each code, the largest first."""
    nearest = torch.cdist(vectors, quantiser.codebook.detach()).argmin(1)
    counts = torch.bincount(nearest, minlength=len(quantiser.codebook)).double()
    return counts.sort(descending=True).values / len(nearest)


generator = torch.Generator().manual_seed(0)
some = torch.randperm(len(vectors), generator=generator)
starts = {"near zero": 0.01 * torch.randn(256, 4, generator=generator), "at latents": vectors[some[:256]]}
fitted = {name: VectorQuantiser(start).fit(vectors, 200, generator=generator) for name, start in starts.items()}

# %%
shares = {name: usage(quantiser) for name, quantiser in fitted.items()}
perplexity = {name: 2 ** -(share * share.clamp(min=1e-12).log2()).sum().item() for name, share in shares.items()}
assert perplexity["near zero"] < 100 and perplexity["at latents"] > 140
assert (shares["near zero"] == 0).sum() > 80 and (shares["at latents"] == 0).sum() < 10
print("begun near zero: more than 80 of 256 codes are never used, perplexity below 100")
print("begun at latents: fewer than 10 are never used, perplexity above 140")

# %% [markdown]
# A code that is nearest to no vector gets no gradient and stays where it is: it is *dead*. KL latents have no codes, but a
# similar fault: channels that collapse (notebook 02).

# %%
curves = {f"begun {name}": share.clamp(min=1e-5) for name, share in shares.items()}
fig = lines(
    curves, log=True, dashed=("begun near zero",), xlabel="code, the most used first", ylabel="share of the vectors"
)
fig.axes[0].set_ylim(2e-5, None)
show(fig, alt="Use of the 256 codes, sorted. Begun near zero about 140 are used; begun at latents nearly all are.")

# %% [markdown]
# ## 3. KL and VQ at the same rate
#
# Now give both the same number of bits. With b bits per position VQ has 2ᵇ vectors. The KL latent's 4 values are rounded to b/4
# bits each, between limits chosen on the training vectors. Encoder and decoder are the same. Which one wins?


# %%
def limits(bits):
    """Limits (4,) for the levels of each channel: of those tried, the ones with the smallest squared error."""
    middle, spread, widths = vectors.mean(0), vectors.std(0), torch.linspace(0.4, 4, 19)
    tries = [latents.quantise(vectors, bits, middle - w * spread, middle + w * spread) for w in widths]
    best = widths[torch.stack([(tried - vectors).pow(2).mean() for tried in tries]).argmin()]
    return [(middle + sign * best * spread).view(4, 1, 1) for sign in (-1, 1)]


# %%
held = photographs("held-out")
photos = torch.stack([held["chelsea"][:, :256, 90:346], held["coffee"][:, 60:316, 150:406]])
with torch.no_grad():
    posterior = vae.encode(photos).latent_dist
whole = vae.decode(posterior.mean).sample
best = psnr(whole, photos).mean().item()

# %% [markdown]
# The codebooks have 16, 256 and 4,096 vectors, for 4, 8 and 12 bits. Rounding takes 1, 2, … 5 bits a value, and so reaches 20.
# The two photographs are *held out*: nothing was trained or fitted on them.

# %%
quantised = {}
for bits, count in ((4, 100), (8, 100), (12, 40)):
    vq = VectorQuantiser(vectors[some[: 2**bits]]).fit(vectors, count, generator=generator)
    quantised["VQ", bits] = vq(posterior.mean)[0].detach()
for bits in (4, 8, 12, 16, 20):
    quantised["rounding", bits] = latents.quantise(posterior.mean, bits // 4, *limits(bits // 4))

# %%
decoded = {key: vae.decode(latent).sample for key, latent in quantised.items()}
quality = {key: psnr(image, photos).mean().item() for key, image in decoded.items()}
gains = [quality["VQ", bits] - quality["rounding", bits] for bits in (4, 8, 12)]
assert min(gains[:2]) > 0.4 and gains[2] > 0.1 and best - quality["rounding", 20] < 0.6
print("VQ against rounding: at 4 and 8 bits per position more than 0.4 dB better, at 12 more than 0.1")

# %% [markdown]
# VQ is better at all three rates, most at 8 bits, by about 1.2 dB. Its vectors lie where the latents are, and it does not repeat
# what several channels have in common.
#
# The posterior itself contains a limited number of bits: its KL, in nats, divided by ln 2, is the cost of transmitting a sample
# of it (notebook 02). It is the dash-dotted line of the next picture.

# %%
claimed = (posterior.kl() / math.log(2) / posterior.mean[0, 0].numel()).mean().item()
fig, ax = figure(size=(6, 3.2))
for kind, style, color, count in (("VQ", "s-", ORANGE, 3), ("rounding", "o--", BLUE, 5)):
    rates = [4, 8, 12, 16, 20][:count]
    ax.plot(rates, [quality[kind, bits] for bits in rates], style, color=color, label=kind)
ax.axhline(best, color=GREY, linestyle=":", label="not quantised")
ax.axvline(claimed, color=GREEN, linestyle="-.", label="KL of the posterior")
ax.set(xlabel="bits per position", ylabel="PSNR, dB", xticks=[4, 8, 12, 16, 20])
ax.legend()
show(
    fig,
    alt="PSNR over the rate. VQ is above rounding, by about 0.6 dB at 4 bits, 1.2 at 8 and 0.2 at 12. Rounding rises more and more slowly; with 20 bits it is within 0.6 dB of the latent that is not quantised. The KL of the posterior is about 16 bits.",
)
assert 13 < claimed < 19

# %% [markdown]
# Beyond the bits that the posterior contains, finer levels gain little. But VQ cannot go there: its codebook doubles with every
# bit. At 12 bits it has 4,096 vectors for 19,716 examples; at 20 it would have a million. Rounding has no codebook.

# %%
pictures = {"not quantised": whole, "VQ, 8 bits": decoded["VQ", 8], "rounded, 8 bits": decoded["rounding", 8]}
show(
    image_grid(
        [[image[i, :, 60:188, 60:188].clamp(-1, 1) for image in pictures.values()] for i in (0, 1)],
        column_titles=[*pictures],
    ),
    alt="Parts of two photographs, decoded from the latent itself, from 256 codes, and from four values of 2 bits each. Both show blotches of wrong colour; with rounding the eye has also turned browner.",
    format="jpeg",
)
sizes = [32 * 32 * bits / 8000 for bits in (14, 16, 20)]
print("f = 8, 256 × 256: VQ of 16,384 codes {:.1f} kB; 16 and 20 bits per position {:.1f} and {:.1f} kB".format(*sizes))

# %% [markdown]
# Table 8 in notebook 09 compares VQ's 1.8 kB with 8 kB, at 16 bits a KL value: more than four times as much. Here 20 bits per
# *position*, 2.6 kB, lose less than 0.6 dB. If that held for KL-f8, it would need 1.4 times VQ's bits. But this is another model,
# and PSNR instead of R-FID.
#
# The comparison was not quite fair to VQ: encoder and decoder were trained for KL.
#
# Stable Diffusion's noise is Gaussian and needs continuous values. Even with the paper's VQ models diffusion runs on the values
# before the quantisation, which becomes the first step of the decoder (Rombach et al. 2022, section 3.1). KL latents are
# continuous, and need no codebook. Diffusion over the indices themselves exists, too (Gu et al. 2022, arXiv 2111.14822).

# %% [markdown]
# ## Summary
#
# 1. A VQ latent has one index per position, to the nearest vector of a codebook: log₂ K bits.
# 2. The nearest vector has no gradient with respect to z. Straight-through copies it; two losses move codebook and encoder.
# 3. Codes that are never the nearest are dead. A codebook that begins at latents keeps nearly all in use.
# 4. At 4, 8 and 12 bits per position, on the same encoder, VQ loses less than rounding. Its codebook doubles with each bit.
# 5. Gaussian diffusion needs continuous values; the KL latent has them without a codebook.
#
# ### Check yourself
#
# <details><summary>A codebook of 16,384 vectors has a perplexity of 300. What has happened, and what would you try?</summary>
#
# Most codes are dead: nearest to no latent, they never move. Begin at latents instead of near zero.
# </details>
#
# <details><summary>How many bits has the VQ latent of a 256 × 256 image with f = 16 and 1,024 codes?</summary>
#
# 16 · 16 positions of 10 bits: 2,560 bits, or 320 bytes. The number of channels does not matter.
# </details>
#
# <details><summary>You return `nearest` instead of `z + (nearest - z).detach()`. What still learns?</summary>
#
# The decoder and the codebook. The encoder gets a gradient from the commitment loss only: it moves towards the codebook, and
# learns nothing about the reconstruction.
# </details>
#
# **Next:** nothing follows from here. If you came from notebook 09, go on with 10.
