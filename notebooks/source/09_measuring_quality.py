# %% [markdown]
# # 09 · Measuring quality
#
# {{badge}}
#
# Notebook 08 ended with a puzzle: PSNR fell, and the pictures got sharper. Which number should a table hold? Here you build
# three of them, find out what each one is blind to, and read the most quoted table of autoencoders with open eyes.
#
# **You will be able to**
#
# * build PSNR, SSIM and the Fréchet distance, equal to the finished ones, and say what each does not see;
# * say how sure a mean is, and compare two models on the same images;
# * read rFID, PSNR, f and c in Table 8 of the latent diffusion paper, and convert every row into bits;
# * build a vector-quantised latent (VQ), and compare it with a KL latent at the same rate.
#
# **You need** PSNR, patch-PCA and LPIPS from notebook [06](06_reconstruction_losses.ipynb), and the training step of
# [08](08_training_loop.ipynb).
#
# {{budget}}

# %% tags=["environment"]

# %%
import inspect
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision.transforms.functional import gaussian_blur

import klvae_edu
from klvae_edu import AutoencoderKL, latents, metrics
from klvae_edu.baselines import PatchPCA
from klvae_edu.data import image_dataset, photographs
from klvae_edu.efficientnet import EfficientNetDistance, available
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution
from klvae_edu.exercises.given import local_mean
from klvae_edu.metrics import FrechetDistance, RandomFeatures, gradient_energy, psnr
from klvae_edu.plots import PALETTE, figure, image_grid, show
from klvae_edu.training import steps
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import set_up, start_accelerator

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# The model is the one that comes with the package, KL-f8 in small. The images are 192 crops of 64 × 64 from two photographs
# that it was never trained on.


# %%
def crops(split, count, seed=0):
    return next(iter(DataLoader(image_dataset("photos", 64, split=split, seed=seed, length=count), batch_size=count)))


vae = AutoencoderKL.from_bundled().eval().requires_grad_(False)
held_out = crops("held-out", 192)
with torch.no_grad():
    rebuilt = torch.cat([vae(part).sample for part in held_out.split(32)]).clamp(-1, 1)
print(f"{vae.num_parameters():,} parameters, crops {tuple(held_out.shape)}")

# %% [markdown]
# ## 1. How sure is a mean of decibels?
#
# Five images have been reconstructed, and one of them went wrong. Take the mean of their five PSNRs, or the PSNR of their mean
# error: by how much do the two differ?

# %%
errors = torch.tensor([0.001, 0.002, 0.004, 0.008, 0.4])
decibels = 10 * torch.log10(4 / errors)
print("PSNR of each   ", [round(value, 1) for value in decibels.tolist()])
print(f"mean of the dB  {decibels.mean():.1f}   dB of the mean error {10 * torch.log10(4 / errors.mean()):.1f}")

# %% [markdown]
# Over ten decibels, from the same five images. The dB of the mean error is ruled by the worst one; in the mean of dB each
# counts alike. The literature takes the mean of dB:
#
# $$\mathrm{PSNR} = \frac1B \sum_{\text{images}} 10\,\log_{10}\frac{2^2}{\frac{1}{CHW}\sum (\hat x - x)^2}$$

# %% [markdown]
# {{exercise 09.1}}
#
# The 2 is the width of the range, from -1 to 1. Clamp the reconstruction to it first: nobody sees a value of 1.2.


# %%
def mean_psnr(reconstruction, target):
    """Images (B, C, H, W) in [-1, 1] -> a scalar: each image's PSNR in dB, averaged over the batch."""
    # BEGIN SOLUTION
    error = (reconstruction.clamp(-1, 1) - target).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(2**2 / error)).mean()
    # SKELETON
    #| error = ...  # (B,): of each image
    #| return ...   # decibels first, then their mean
    # END SOLUTION


mean_psnr = check("09.1", mean_psnr)

# %%
theirs = peak_signal_noise_ratio(rebuilt, held_out, data_range=2.0, dim=(1, 2, 3))
print(f"torchmetrics, dim=(1, 2, 3): max |Δ| < 1e-3 dB: {bool((mean_psnr(rebuilt, held_out) - theirs).abs() < 1e-3)}")
other = peak_signal_noise_ratio(rebuilt, held_out, data_range=2.0)
assert theirs - other > 0.5
print("without `dim` it gives the dB of the mean error, here more than 0.5 dB less")

# %% [markdown]
# So two papers can differ by that much and mean the same model. Now look at the 192 single values. What decides whether a
# crop's PSNR is high: the model, or the crop?

# %%
each, energy = psnr(rebuilt, held_out), gradient_energy(held_out)
fig, ax = figure(size=(6, 3))
ax.semilogx(energy, each, "o", color=BLUE, markersize=3)
ax.set(xlabel="gradient energy of the crop", ylabel="PSNR, dB")
show(
    fig,
    alt="PSNR of 192 crops over their gradient energy: the busier the crop, the lower, over a range of well above 10 dB.",
)
assert torch.corrcoef(torch.stack([energy.log(), each]))[0, 1] < -0.5 and each.max() - each.min() > 10

# %% [markdown]
# Mostly the crop. Even ones are easy, busy ones are not, and the values spread over more than 10 dB. A "± 4" beside a PSNR is
# mostly this: it speaks of the images, not of how sure the mean is.

# %% [markdown]
# How sure is it, then? *Bootstrap*: draw 192 of the 192 crops, with repetition, and take the mean; do that 2,000 times. The
# middle 95 % of these means is an interval. Do it for patch-PCA beside the model:

# %%
train = torch.stack([photo[:, :424, :496] for photo in photographs("train").values()])
pca = PatchPCA(patch_size=8, components=4).fit(train)
model, baseline = each, psnr(pca.reconstruct(held_out), held_out)
draws = torch.randint(192, (2000, 192), generator=torch.Generator().manual_seed(0))

# %% [markdown]
# Both models see the same draws, so that there is an interval of their *difference*, too. Guess: is it wider than that of each,
# or narrower?

# %%
intervals = {}
for name, values in {"model": model, "patch-PCA": baseline, "difference": model - baseline}.items():
    intervals[name] = values[draws].mean(1).quantile(torch.tensor([0.025, 0.975]))
width = {name: (high - low).item() for name, (low, high) in intervals.items()}
assert intervals["difference"][0] > 0 and width["difference"] < 0.6 * min(width["model"], width["patch-PCA"])
print("widths in dB:", "   ".join(f"{name} {value:.1f}" for name, value in width.items()))

# %%
fig, ax = figure(1, 2, size=(8, 2.2))
for axis, names in zip(ax, (["model", "patch-PCA"], ["difference"]), strict=True):
    for row, name in enumerate(names):
        axis.plot(intervals[name], [row, row], "|-", color=(BLUE, ORANGE)[row], linewidth=2, markersize=12)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="dB", ylim=(-0.6, len(names) - 0.4))
low, high = intervals["patch-PCA"][0].item() - 0.2, intervals["model"][1].item() + 0.2
ax[0].set_xlim(low, high)
ax[1].set_xlim(0, high - low)
show(
    fig,
    alt="On equal scales the intervals of the two means, and that of the mean difference: half as wide, and above 0.",
)

# %% [markdown]
# Each mean depends on which crops were drawn; the difference about half as much, for what is hard for one model is mostly hard
# for the other. So compare models *pairwise, on the same images*.
#
# One warning: 192 crops, but two photographs. No bootstrap knows a photograph that is not there.

# %% [markdown]
# ## 2. Can a number see structure?
#
# Squared error counts each pixel by itself (notebook 06). SSIM compares *neighbourhoods*, in three questions. Is it as bright?
# Is the contrast the same? Do the pixels rise and fall together? Which of these does each of the following fail?

# %%
stripes = torch.tensor([0.2, 0.6, 0.2, 0.6, 0.2])
others = {"brighter": stripes + 0.2, "half the contrast": 0.18 + stripes / 2, "turned over": 0.72 - stripes}

# %% [markdown]
# One term for each question, with the means μ, the standard deviations σ and the covariance. Each is 1 where all is well:
#
# $$\frac{2\mu_a\mu_b}{\mu_a^2+\mu_b^2}, \qquad \frac{2\sigma_a\sigma_b}{\sigma_a^2+\sigma_b^2}, \qquad
# \frac{\mathrm{cov}(a, b)}{\sigma_a\sigma_b}$$

# %%
for name, other in others.items():
    (mean_a, mean_b), (std_a, std_b) = (stripes.mean(), other.mean()), (stripes.std(), other.std())
    light = 2 * mean_a * mean_b / (mean_a**2 + mean_b**2)
    contrast = 2 * std_a * std_b / (std_a**2 + std_b**2)
    together = torch.cov(torch.stack([stripes, other]))[0, 1] / (std_a * std_b)
    print(f"{name:18} brightness {light:.2f}   contrast {contrast:.2f}   together {together:5.2f}")

# %% [markdown]
# One question each. SSIM is the product of the three (Wang et al. 2004, section III). σ_a σ_b cancels in the last two, and two
# small constants keep an even patch from being 0/0:
#
# $$\mathrm{SSIM} = \frac{2\mu_a\mu_b + 0.01^2}{\mu_a^2+\mu_b^2 + 0.01^2}\cdot
# \frac{2\,\mathrm{cov}(a, b) + 0.03^2}{\sigma_a^2+\sigma_b^2 + 0.03^2}$$

# %% [markdown]
# All this around each pixel, with a Gaussian window of 11 × 11 and a standard deviation of 1.5. How much do the pixels at the
# window's rim still count?

# %%
row = torch.exp(-(torch.arange(-5, 6).float() ** 2) / (2 * 1.5**2))
window = torch.outer(row, row) / row.sum() ** 2
print(f"sum {window.sum():.1f}   centre {window[5, 5]:.3f}   middle of the rim {window[5, 0]:.4f}")
print(inspect.getsource(local_mean))

# %% [markdown]
# {{exercise 09.2}}
#
# Write it for whole images. `local_mean(images, window)` is the weighted mean around each pixel. The mean of the squares, less
# the square of the mean: what is that? The constants are for images from 0 to 1, and so are the means: black is 0.


# %%
def ssim(reconstruction, target, window):
    """Images (B, C, H, W) in [-1, 1], window (k, k) that sums to 1 -> their structural similarity (B,)."""
    # BEGIN SOLUTION
    a, b = (reconstruction + 1) / 2, (target + 1) / 2
    mean_a, mean_b = local_mean(a, window), local_mean(b, window)
    var_a = local_mean(a * a, window) - mean_a**2
    var_b = local_mean(b * b, window) - mean_b**2
    cov = local_mean(a * b, window) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)
    return (luminance * structure).mean((1, 2, 3))
    # SKELETON
    #| a, b = ...                  # from 0 to 1
    #| mean_a, mean_b = ...        # around each pixel
    #| var_a, var_b, cov = ...     # around each pixel
    #| luminance, structure = ...  # the two factors
    #| return ...                  # one number for each image
    # END SOLUTION


ssim = check("09.2", ssim)

# %%
cat = photographs("held-out")["chelsea"][None, :, 80:208, 119:247]
noise = torch.randn(cat.shape, generator=torch.Generator().manual_seed(0))
noisy = (cat + 0.2 * noise).clamp(-1, 1)
yours, finished = ssim(noisy, cat, window), metrics.ssim(noisy, cat)
print(f"SSIM {finished.item():.3f}   max |Δ| < 1e-4: {bool((yours - finished).abs().max() < 1e-4)}")

# %% [markdown]
# What if you forget the shift, and hand the values from -1 to 1 to torchmetrics, with their range, which is 2?

# %%
unshifted = structural_similarity_index_measure(noisy, cat, data_range=2.0)
print(f"SSIM without the shift: {unshifted.item():.3f}")

# %% [markdown]
# No error, another number: a mean near 0 is black for SSIM, and grey in images from -1 to 1. Before you compare two SSIMs, ask
# for the range.

# %% [markdown]
# Now four ways to spoil the cat's eye, each with the squared error of a shift by one pixel; blur, noise and brightness are
# tuned to it by bisection. PSNR cannot tell them apart. What will SSIM say of each?

# %%
target = psnr(cat.roll(1, 3), cat).item()
spoil = {
    "noise": lambda s: cat + s * noise,
    "blur": lambda s: gaussian_blur(cat, 25, 8 * s + 0.01),
    "brighter": lambda s: cat + s,
}


def tuned(spoiled):
    """At the strength between 0 and 1 that costs as much as the shift."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if psnr(spoiled(middle), cat) > target else (low, middle)
    return spoiled(low).clamp(-1, 1)


# %% [markdown]
# The shift itself moves every hair by one pixel, and you hardly see it. Rank the four before you look:

# %%
spoiled = {"shifted": cat.roll(1, 3)} | {name: tuned(code) for name, code in spoil.items()}
found = {name: ssim(image, cat, window).item() for name, image in spoiled.items()}
print(f"all at {target:.1f} dB;  SSIM:", "   ".join(f"{name} {value:.2f}" for name, value in found.items()))
assert max(abs(psnr(image, cat).item() - target) for image in spoiled.values()) < 0.01
assert found["brighter"] > 0.95 and found["blur"] < found["noise"] < found["shifted"] + 0.05 < 0.8

# %%
names = [f"{name}: {value:.2f}" for name, value in found.items()]
show(
    image_grid([[cat[0], *(image[0] for image in spoiled.values())]], captions=[["photograph", *names]]),
    alt="A cat's eye five times: the photograph; shifted by a pixel; with strong noise; blurred; and brighter.",
    format="jpeg",
)

# %% [markdown]
# For PSNR they are all equal. Brightness is nearly free, since contrast and structure stay. Blur costs most: it takes contrast
# away where fur was. And a shift that you can hardly see costs as much as noise: SSIM compares pixel with pixel, *in place*, as
# PSNR does.

# %% [markdown]
# ## 3. And if only the crowd has to look right?
#
# A decoder paints fur where fur was, every hair in another place. PSNR and SSIM compare pixel with pixel, and condemn it.
# Another question: do all reconstructions *together* look like all photographs together? Five numbers, and five others:

# %%
a = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
b = 2 * a + 1
for name, order in {"in order": torch.arange(5), "shuffled": torch.tensor([3, 0, 4, 1, 2])}.items():
    print(f"{name:9} pair by pair {(a - b[order]).pow(2).mean():.0f}", end="   ")
    means, stds = (a.mean() - b.mean()).pow(2), (a.std(correction=0) - b[order].std(correction=0)).pow(2)
    print(f"means and deviations {means:.0f} + {stds:.0f} = {means + stds:.0f}")

# %% [markdown]
# The second number does not care who is whose partner. It is what moving one crowd onto the other costs at best: the squared
# *Fréchet distance* of two Gaussians. With D features, deviations become covariance matrices:
#
# $$d^2 = \lVert\mu - \nu\rVert^2 + \mathrm{tr}\big(\Sigma + \Omega - 2\,(\Sigma\Omega)^{1/2}\big)$$

# %% [markdown]
# The root of a matrix, for its trace only? A trace is the sum of the eigenvalues, and the root has the roots of them. ΣΩ is not
# symmetric, so `torch.linalg.eigvals` gives complex numbers. They are real and not negative, up to rounding: so take `.real`,
# and clamp.

# %% [markdown]
# {{exercise 09.3}}
#
# Write it for two sets of features. Is the root of a product the product of the roots?


# %%
def frechet_distance(features, others):
    """Features (N, D) and (M, D) -> a scalar: the squared distance of Gaussians with their means and covariances."""
    # BEGIN SOLUTION
    means = (features.mean(0) - others.mean(0)).pow(2).sum()
    a, b = torch.cov(features.T), torch.cov(others.T)
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt()
    return means + a.trace() + b.trace() - 2 * roots.sum()
    # SKELETON
    #| means = ...  # squared, summed over the features
    #| a, b = ...   # (D, D): torch.cov wants a feature in each row
    #| roots = ...  # of the eigenvalues of a product
    #| return ...
    # END SOLUTION


frechet_distance = check("09.3", frechet_distance)

# %% [markdown]
# Features of what? The FID takes 2,048 of Inception, a network trained to recognise objects (Heusel et al. 2017).
# Reconstructions against their originals with it: that is *rFID*. Its weights have to be downloaded. Those of
# *EfficientNet-Lite1*, trained on ImageNet as well, come as a package (`klvae-edu[perceptual]`), with 1,280 features:

# %%
EXTRA = available("efficientnet-lite1")
finished = FrechetDistance("efficientnet-lite1" if EXTRA else "random")
finished.update(rebuilt, held_out)
originals = finished.features(held_out).double()
yours = frechet_distance(finished.features(rebuilt).double(), originals)
print(f"{finished.name}: {finished.source}")
print("equal to yours:", math.isclose(yours.item(), finished.compute(), rel_tol=1e-4))
if not EXTRA:
    print("klvae-edu[perceptual] is not installed: below, a small network with random weights takes Lite1's place.")

# %% [markdown]
# Such a number is no rFID, and may stand beside others of the same features only. Nothing here is ever trained on Lite1's
# features, so it can be the *judge*: a model scores well with the network that it was trained to please. What a distance
# sees is decided by its features. Make two small sets: one of colours, one of edges.


# %%
def colours(images):
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1).double()


def edges(images):
    return torch.cat([images.diff(dim=dim).abs().mean((2, 3)) for dim in (2, 3)], dim=1).double()


# %% [markdown]
# Blur the crops; tint them red; hand every crop the *next* one as its reconstruction. Which column notices what? One of the
# three is noticed by neither.

# %%
tint = torch.tensor([0.2, 0.0, 0.0]).view(1, 3, 1, 1)
crowds = {
    "blurred": gaussian_blur(held_out, 9, 1.5),
    "tinted": (held_out + tint).clamp(-1, 1),
    "next": held_out.roll(1, 0),
}
seen = {}
for name, images in crowds.items():
    seen[name] = [mean_psnr(images, held_out).item()]
    seen[name] += [frechet_distance(see(images), see(held_out)).item() for see in (colours, edges)]
    print("{:8} PSNR {:4.1f} dB   colours {:.3f}   edges {:.3f}".format(name, seen[name][0], *map(abs, seen[name][1:])))

# %% [markdown]
# Colours see the tint, edges see the blur, and each hardly notices the other's case. Nobody sees that every reconstruction
# shows another picture. And trained features? PSNR finds the tint worse than the blur. Do you, and does the judge?

# %%
assert seen["tinted"][1] > 3 * seen["blurred"][1] and seen["blurred"][2] > 3 * seen["tinted"][2]
assert max(map(abs, seen["next"][1:])) < 1e-6 and seen["next"][0] < 15 and seen["tinted"][0] < seen["blurred"][0]
judged = {name: frechet_distance(finished.features(images).double(), originals) for name, images in crowds.items()}
shares = {name: (value / judged["blurred"]).abs().item() for name, value in judged.items()}
print(f"{finished.name}, as a share of the blur's:", *(f"{name} {share:.0%}" for name, share in shares.items()))
if EXTRA:
    assert 0.02 < shares["tinted"] < 0.3 and shares["next"] < 1e-4

# %% [markdown]
# The judge sees both, and the blur far more: fur is part of what a cat is known by, a tint is not. But the next crop costs
# nothing here, too. A small rFID says that the textures are plausible, not that the image is *yours*. A table needs both kinds.

# %% [markdown]
# One more trap. Take two crowds of the *same* kind, say two sets of N crops of the training photographs. Their true distance is
# 0. What does the formula say for N = 64, 128, … 1,024? And of blurred crops against *their own* originals, as in rFID? To
# be quick, take 64 features of a small random network; the package names its distance "random features".

# %%
network = RandomFeatures()
with torch.no_grad():
    first, second = (crops("train", 1024, seed) for seed in (1, 2))
    features = [torch.cat([network(part) for part in images.split(64)]) for images in (first, second)]
    features += [torch.cat([network(gaussian_blur(part, 9, 1.0)) for part in first.split(64)])]
many, more, blurred = (part.double() for part in features)
counts, curves = [64, 128, 256, 512, 1024], {}
for name, others in {"strangers": more, "own originals": blurred}.items():
    pairs = [zip(many.split(count), others.split(count), strict=True) for count in counts]  # the mean is less noisy
    curves[name] = [torch.stack([frechet_distance(*pair) for pair in of_count]).mean().item() for of_count in pairs]

# %%
fig, ax = figure(size=(6, 3))
bias, paired = curves.values()
ax.loglog(counts, bias, "o-", color=BLUE, label="two sets of one kind")
ax.loglog(counts, paired, "s-", color=ORANGE, label="blurred, against their own originals")
ax.loglog(counts, [bias[0] * counts[0] / count for count in counts], "--", color=GREY, label="∝ 1/N")
ax.set(xlabel="images in each set", ylabel="Fréchet distance", xticks=counts, xticklabels=counts)
ax.minorticks_off()
ax.legend()
show(
    fig,
    alt="The Fréchet distance of two sets of one kind falls with their size, roughly as 1 over N; that of blurred crops and their own originals stays nearly level.",
)
assert all(large > small for large, small in zip(bias, bias[1:], strict=False)) and bias[0] > 4 * bias[-1] > 0
assert max(paired) < 1.3 * min(paired) and bias[0] > 3 * paired[0]

# %% [markdown]
# Two sets of one kind: not 0, and the fewer images, the larger. With 64 features a covariance has 2,080 numbers, and noise in
# them counts as distance. Lite1's has 819,840, Inception's two million. Such a distance compares with none of another number of
# images.

# %% [markdown]
# Reconstructions share that noise with their own originals: their curve is nearly level. So ask of a Fréchet distance not only
# how many images, but which against which: rFID compares pairs, a generator's FID strangers.

# %% [markdown]
# ## 4. What does the paper's table say?
#
# Table 8 of the latent diffusion paper (Rombach et al. 2022, arXiv 2112.10752v2, appendix D.2) compares DALL-E's autoencoder
# and its own, trained on OpenImages, on ImageNet's validation images. Here are eleven of its nineteen rows. Which one is Stable
# Diffusion's?

# %%
TABLE = [  # f, kind, codes of VQ, channels c, R-FID, PSNR, SSIM
    (8, "DALL-E", 8192, None, 32.01, 22.8, 0.73),
    (16, "VQ", 16384, 8, 5.15, 20.83, 0.54),
    (8, "VQ", 16384, 4, 1.14, 23.07, 0.65),
    (8, "VQ", 256, 4, 1.49, 22.35, 0.62),
    (4, "VQ", 8192, 3, 0.58, 27.43, 0.82),
    (4, "VQ", 256, 3, 0.47, 26.43, 0.80),
    (32, "KL", None, 64, 2.04, 22.27, 0.61),
    (16, "KL", None, 16, 0.87, 24.08, 0.68),
    (16, "KL", None, 8, 2.63, 21.94, 0.59),
    (8, "KL", None, 4, 0.90, 24.19, 0.69),
    (4, "KL", None, 3, 0.27, 27.53, 0.82),
]

# %% [markdown]
# f = 8 and c = 4, KL: R-FID 0.90, PSNR 24.19. (R-FID is rFID.) Quoted as 0.87 and 24.08, it has been mixed up with the row of f
# = 16, c = 16. Does better PSNR go with better R-FID?

# %%
fig, ax = figure(size=(8, 4))
styles = {"KL": ("o", BLUE), "VQ": ("s", ORANGE), "DALL-E": ("^", GREEN)}
below = {(16, 16, 0.87), (4, 3, 0.27), (4, 3, 0.47)}  # labels that would cover others
for f, kind, codes, channels, rfid, decibels, _ in TABLE:
    marker, color = styles[kind]
    ax.semilogy(decibels, rfid, marker, color=color)
    label = f"{kind} f{f}, " + (f"{codes:,} codes" if codes else f"c = {channels}")
    under = (f, channels, rfid) in below
    ax.annotate(label, (decibels, rfid), (6, -10 if under else 4), textcoords="offset points", fontsize=8)
ax.set(xlabel="PSNR, dB", ylabel="R-FID (lower is better)", xlim=(20, 30), ylim=(0.15, 60))
show(
    fig,
    alt="R-FID over PSNR for eleven autoencoders. Mostly one falls as the other rises; DALL-E stands far above all others.",
)

# %% [markdown]
# On the whole, yes. But take the three best at f = 8 by SSIM, and look at the two VQ rows with f = 4. What do you find?

# %%
at_8 = sorted((row for row in TABLE if row[0] == 8), key=lambda row: -row[6])
for f, kind, codes, _, rfid, decibels, similarity in at_8[:3] + [row for row in TABLE if row[:2] == (4, "VQ")]:
    print(f"{kind:6} f{f} {codes or '':5}   SSIM {similarity:.2f}   PSNR {decibels:.1f}   R-FID {rfid:5.2f}")
assert at_8[0][1] == "DALL-E" and at_8[0][4] == max(row[4] for row in TABLE)

# %% [markdown]
# By SSIM DALL-E's is the best at f = 8, by PSNR behind both f8 rows beside it, by R-FID the worst of the whole table, some 28
# times VQ's. It was trained without a discriminator (Ramesh et al. 2021, section 2.1), and on other images.

# %% [markdown]
# The two with f = 4 disagree as well: 256 codes lose a decibel against 8,192, and win in R-FID.

# %% [markdown]
# What about "±"? The paper prints 24.19 ± 4.19. That is the spread over the images, as in section 1. The mean of 50,000 is
# known far better:

# %%
print(f"standard error of a mean over 50,000 images that spread by 4.19 dB: {4.19 / math.sqrt(50_000):.3f} dB")

# %% [markdown]
# And another table? Stability's model card (`stabilityai/sd-vae-ft-ema-original`) measures the same weights on 5,000 images of
# COCO: R-FID **4.99** instead of 0.90, PSNR 23.4. The model has not changed, the images have. That they are a tenth as many
# should explain little: rFID compares pairs, as section 3's level curve does.

# %% [markdown]
# Last, f. Is a row with f = 16 half as large as one with f = 8? A KL latent holds c values at each place; VQ's holds *one
# index*, and the c numbers of the vector are looked up. So count bits.

# %% [markdown]
# {{exercise 09.4}}
#
# An RGB image has 8 bits a value. How many times smaller is its latent? The bits of a KL value are yours to choose: the table
# does not say.


# %%
def compression(side, factor, channels, bits, codes):
    """Bits of an RGB image, side x side, 8 bits a value, over those of its latent: with KL, and with VQ."""
    # BEGIN SOLUTION
    image, places = 3 * side**2 * 8, (side // factor) ** 2
    return image / (places * channels * bits), image / (places * math.log2(codes))
    # SKELETON
    #| image, places = ...
    #| return ..., ...  # KL: channels values of `bits` bits at each place; VQ: one of `codes` numbers
    # END SOLUTION


compression = check("09.4", compression)

# %%
for f, kind, codes, channels, rfid, *_ in TABLE[1:]:
    kl, vq = compression(256, f, channels, 16, codes or 2)
    size = f"{kl:4.0f} times smaller at 16 bits a value" if kind == "KL" else f"{vq:4.0f} times smaller"
    print(f"{kind} f{f:<2} c{channels:<2} {codes or '':5}   R-FID {rfid:.2f}   {size}")

# %% [markdown]
# Three KL rows have one size, 4,096 values: with f = 8 and 16 they are equally good, with f = 32 it is worse.

# %% [markdown]
# And "KL beats VQ at f = 8" compares 8 kB with 1.8 kB, if a KL value takes 16 bits. Does it need them? Is VQ worse, or just
# smaller? The table cannot say; of the small model you can.

# %% [markdown]
# ## 5. KL or VQ, at the same rate?
#
# A VQ latent may only be one of K vectors: the nearest in a *codebook*. Five numbers and a codebook of three. Which gradient
# comes back to the five?

# %%
values = torch.tensor([-1.2, -0.3, 0.1, 0.4, 1.5], requires_grad=True)
codebook = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
nearest = codebook[(values[:, None] - codebook).abs().argmin(1)]
gradients = torch.autograd.grad(nearest.sum(), (values, codebook), allow_unused=True)
print("nearest", nearest.tolist(), "  gradient of the values", gradients[0], "  of the codebook", gradients[1].tolist())

# %% [markdown]
# None: move a value a little, and its nearest vector stays the same. An encoder behind it would learn nothing. So pretend: on
# the way back, the quantisation is left out, *straight-through*. The losses then pull codebook and encoder together (van den
# Oord et al. 2017, section 3.2):
#
# $$\hat z = z + \mathrm{sg}(e - z), \qquad \lVert e - \mathrm{sg}(z)\rVert^2, \qquad \lVert z - \mathrm{sg}(e)\rVert^2$$

# %% [markdown]
# sg is `detach`: no gradient. The first loss moves the codebook to the latents, the second, the *commitment*, keeps the latents
# near the codebook.

# %% [markdown]
# {{exercise 09.5}}
#
# Quantise a whole latent, and return both losses as means over all values. Mind the shapes: a vector is what lies at one place,
# across the channels.


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


quantise = check("09.5", quantise)

# %% [markdown]
# Now on the bundled model's latents, with its encoder as it is. All places of the six training photographs give 19,716
# vectors of 4 numbers. A layer, and a few gradient steps for its codebook:

# %%
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
# Where does a codebook begin? Near zero, as weights do, or at some of the vectors? Count how often each code is the nearest
# after 200 steps. *Perplexity*, two to the entropy in bits, is the number of codes that are used, so to speak.


# %%
def usage(quantiser):
    nearest = torch.cdist(vectors, quantiser.codebook.detach()).argmin(1)
    counts = torch.bincount(nearest, minlength=len(quantiser.codebook)).double()
    return counts.sort(descending=True).values / len(nearest)


generator = torch.Generator().manual_seed(0)
some = torch.randperm(len(vectors), generator=generator)
starts = {"near zero": 0.01 * torch.randn(256, 4, generator=generator), "at latents": vectors[some[:256]]}
fitted = {name: VectorQuantiser(start).fit(vectors, 200, generator=generator) for name, start in starts.items()}

# %% [markdown]
# How many of the 256 codes are nobody's nearest, in each case?

# %%
shares = {name: usage(quantiser) for name, quantiser in fitted.items()}
perplexity = {name: 2 ** -(share * share.clamp(min=1e-12).log2()).sum().item() for name, share in shares.items()}
assert perplexity["near zero"] < 0.9 * perplexity["at latents"] and perplexity["at latents"] > 100
assert (shares["near zero"] == 0).sum() > 20 and (shares["at latents"] == 0).sum() < 10
print("begun near zero: more than 20 of 256 codes are dead, the perplexity is less than 0.9 of the other's")

# %%
fig, ax = figure(size=(6, 3))
for (name, share), style, color in zip(shares.items(), ("--", "-"), (ORANGE, BLUE), strict=True):
    ax.semilogy(range(1, 257), share.clamp(min=1e-5), style, color=color, label=f"begun {name}")
ax.set(xlabel="codes, from the most used", ylabel="share of the vectors", ylim=(2e-5, None))
ax.legend()
show(
    fig,
    alt="Share of the vectors for each of 256 codes, sorted: begun near zero it falls to nothing before the end; begun at latents it lasts.",
)

# %% [markdown]
# A code that is nobody's nearest gets no gradient, and stays where it is: *dead*. KL has no such trouble. Begun at latents,
# nearly all codes find work.

# %% [markdown]
# Now the same rate for both. At b bits a place, VQ has 2ᵇ vectors. The KL latent's 4 values are rounded to b/4 bits each,
# between limits chosen on the training vectors. Same encoder, same decoder: which one wins, and by how much?


# %%
def rounding(bits):
    """Limits (4,) for the levels of each channel, of those tried the ones with the least squared error."""
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

# %% [markdown]
# Codebooks of 16, 256 and 4,096 vectors for 4, 8 and 12 bits; rounding to 1, 2, … 5 bits a value, so that it reaches 20. The
# two photographs are held out.

# %%
quantised = {}
for bits, count in ((4, 100), (8, 100), (12, 40)):
    vq = VectorQuantiser(vectors[some[: 2**bits]]).fit(vectors, count, generator=generator)
    quantised["VQ", bits] = vq(posterior.mean)[0].detach()
for bits in (4, 8, 12, 16, 20):
    quantised["rounding", bits] = latents.quantise(posterior.mean, bits // 4, *rounding(bits // 4))

# %%
decoded = {key: vae.decode(latent).sample for key, latent in quantised.items()}
quality = {key: mean_psnr(image, photos).item() for key, image in decoded.items()}
gains = [quality["VQ", bits] - quality["rounding", bits] for bits in (4, 8, 12)]
assert min(gains[:2]) > 0.4 and gains[2] > 0.1
assert mean_psnr(whole, photos) - quality["rounding", 20] < 0.6
print("VQ against rounding: at 4 and 8 bits a place more than 0.4 dB better, at 12 more than 0.1")

# %% [markdown]
# How many bits does the posterior itself claim? Its KL, in nats, over ln 2: that is what a code would cost that tells a sample
# of it (notebook 02).

# %%
claimed = (posterior.kl() / math.log(2) / posterior.mean[0, 0].numel()).mean().item()
fig, ax = figure(size=(6, 3.2))
for kind, style, color, count in (("VQ", "s-", ORANGE, 3), ("rounding", "o--", BLUE, 5)):
    rates = [4, 8, 12, 16, 20][:count]
    ax.plot(rates, [quality[kind, bits] for bits in rates], style, color=color, label=kind)
ax.axhline(mean_psnr(whole, photos), color=GREY, linestyle=":", label="not quantised")
ax.axvline(claimed, color=GREEN, linestyle="-.", label="KL of the posterior")
ax.set(xlabel="bits at each place of the latent", ylabel="PSNR, dB", xticks=[4, 8, 12, 16, 20])
ax.legend()
show(
    fig,
    alt="PSNR over the rate: VQ lies above rounding at 4, 8 and 12 bits; rounding rises ever more slowly, and at 20 is within 0.6 dB of the unquantised level.",
)

# %% [markdown]
# Compare the dash-dotted line with where rounding levels off: beyond what the posterior itself claims, finer levels gain little.

# %% [markdown]
# At the same rate VQ wins, for its vectors lie where latents are, and channels that go together need not be told twice.

# %% [markdown]
# But its codebook doubles with every bit. At 12 bits it has 4,096 vectors for 19,716 examples; at 20 it would have a million.
# Rounding just goes on.

# %%
pictures = {"not quantised": whole, "VQ, 8 bits": decoded["VQ", 8], "rounded, 8 bits": decoded["rounding", 8]}
show(
    image_grid(
        [[image[i, :, 60:188, 60:188].clamp(-1, 1) for image in pictures.values()] for i in (0, 1)],
        column_titles=[*pictures],
    ),
    alt="Parts of two photographs, decoded from the whole latent, from 256 codes, and from values of 2 bits, which are blotched.",
    format="jpeg",
)
sizes = [32 * 32 * bits / 8000 for bits in (14, 16, 20)]
print("f = 8, 256 × 256: VQ of 16,384 codes {:.1f} kB; 16 and 20 bits a place {:.1f} and {:.1f} kB".format(*sizes))

# %% [markdown]
# And the table's 8 kB? 16 to 20 bits a place nearly suffice here. If that holds for KL-f8, it has hardly more bits than VQ, not
# more than four times as many. But this is another model, and PSNR, not R-FID: the question stays open.

# %% [markdown]
# Why use KL? Diffusion wants continuous values: even CompVis' VQ models are diffused before they are quantised. KL has them,
# without a codebook to keep alive.

# %% [markdown]
# Was this fair to VQ? Not quite: encoder and decoder were trained for KL. Could they learn with VQ? Ask for the gradient at the
# encoder's first weights:

# %%
student, quantiser = AutoencoderKL.from_bundled(), fitted["at latents"]
z = student.encode(held_out[:4]).latent_dist.mean
for name, latent in {"straight-through": quantiser(z)[0], "the nearest alone": quantiser(z)[0].detach()}.items():
    loss = F.mse_loss(student.decode(latent).sample, held_out[:4])
    (gradient,) = torch.autograd.grad(loss, student.encoder.conv_in.weight, retain_graph=True, allow_unused=True)
    print(f"{name}: gradient {'none' if gradient is None else 'there'}")

# %% [markdown]
# ## 6. What does each loss buy?
#
# An *ablation*: change one thing, leave all else, measure. From the same weights, on the same crops in the same order, the
# bundled model is trained on for 24 steps, five times. First, on paper: does each column rise, fall, or stay?
#
# | | PSNR | edges | std of the posterior |
# | --- | --- | --- | --- |
# | without KL | | | |
# | KL × 2,000 | | | |
# | with a perceptual term | | | |
# | with a discriminator | | | |

# %%
BUNDLED = Path(klvae_edu.__file__).parent / "assets" / "kl-f8-mini"
PLAIN = TrainingConfig(
    init=str(BUNDLED), size=64, batch_size=4, device="cpu", lr=2e-4, schedule="constant", warmup=0.0, betas=(0.5, 0.9),
    kl_weight=0.02, disc_lr=1e-3, disc_channels=32, disc_layers=2,
)  # fmt: skip
batches = [*DataLoader(image_dataset("photos", 64, seed=9, length=24 * 4), batch_size=4)]

# %% [markdown]
# The perceptual term is EfficientNet-Lite0's feature distance (notebook 06). Without `klvae-edu[perceptual]`, untrained LPIPS takes
# its place. The judge is Lite1, another network: its feature distance is the last column, if it is there.

# %%
PERCEPTUAL = {"perceptual": "efficientnet-lite0", "perceptual_weight": 0.03}
if not EXTRA:
    print("klvae-edu[perceptual] is not installed: the perceptual term is untrained LPIPS, and there is no judge.")
    PERCEPTUAL = {"perceptual": "lpips", "lpips": "untrained", "perceptual_weight": 1.0}

# %% [markdown]
# The two steps are those of notebook 08. Where there is a discriminator, it first learns alone, for 40 steps on the model as it
# is: its untrained verdicts would only be noise.


# %%
def fine_tune(**changes):
    config = replace(PLAIN, **changes)
    training = set_up(config, start_accelerator(config))
    if training.discriminator is not None:
        with torch.no_grad():
            ready = [(images, vae(images).sample) for images in batches[:10]]
        for pair in 4 * ready:
            steps.discriminator_step(training, *pair)
    for images in progress(batches, desc="fine-tuning"):
        training.begin_step()
        _, reconstructions = steps.generator_step(training, images)
        if training.discriminator is not None:
            steps.discriminator_step(training, images, reconstructions)
    return training.vae


# %%
settings = {"plain": {}, "without KL": {"kl_weight": 0.0}, "KL × 2,000": {"kl_weight": 40.0}}
settings |= {"perceptual": PERCEPTUAL, "discriminator": {"disc_weight": 1.0}}
runs = {name: fine_tune(**setting) for name, setting in settings.items()}

# %% [markdown]
# Columns: PSNR, SSIM, the gradient energy over that of the originals ("edges"), the posterior's standard deviation, and the
# judge's feature distance, on 32 held-out crops. Now compare with your paper.


# %%
judge = EfficientNetDistance("efficientnet-lite1") if EXTRA else None
TITLES = ["PSNR, dB", "SSIM", "edges", "std of the posterior", "feature distance, Lite1"][: 5 if EXTRA else 4]


@torch.no_grad()
def measured(vae):
    few = held_out[:32]
    posterior = vae.encode(few).latent_dist
    found = vae.decode(posterior.mean).sample
    edges = gradient_energy(found).mean() / gradient_energy(few).mean()
    row = [mean_psnr(found, few), metrics.ssim(found, few).mean(), edges, posterior.std.mean()]
    return row + ([judge(found.clamp(-1, 1), few).mean()] if EXTRA else [])


results = {name: torch.tensor(measured(model)) for name, model in runs.items()}

# %%
fig, axes = figure(1, len(TITLES), size=(2.7 * len(TITLES), 2.8))
for column, (ax, title) in enumerate(zip(axes, TITLES, strict=True)):
    values = [row[column].item() for row in results.values()]
    ax.plot(values, range(5), "o", color=BLUE)
    ax.axvline(values[0], color=GREY, linestyle=":")
    for row, value in enumerate(values):
        ax.annotate(f"{value:.3g}", (value, row), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    ax.set(title=title, yticks=range(5), yticklabels=[*results] if column == 0 else [], ylim=(4.5, -0.7))
    ax.margins(x=0.2)
show(
    fig,
    alt="PSNR, SSIM, edges, posterior's deviation and feature distance of five runs. The strong KL has the weakest edges and the largest deviation; the discriminator has the strongest edges, and a lower PSNR than the plain run; the perceptual term has the least feature distance.",
)

# %% [markdown]
# What of it is large enough to hold for other crops, and other batches? In words:

# %%
plain, without, strong, perceptual, adversarial = results.values()
assert without[3] < 0.95 * plain[3] and abs(without[0] - plain[0]) < 0.2
assert strong[0] < plain[0] - 0.25 and strong[2] < plain[2] and strong[3] > 1.4 * plain[3]
assert abs(perceptual[0] - plain[0]) < 0.6 and perceptual[2] > plain[2] and perceptual[3] < plain[3]
assert adversarial[0] < plain[0] - 0.15 and adversarial[2] > plain[2] + 0.06 and adversarial[3] < 1.2 * plain[3]
spread = vae.encode(held_out[:32]).latent_dist.mean.std((0, 2, 3))
print(f"the bundled latent's spread in its channels: {spread.min():.1f} to {spread.max():.1f}.  Against the plain run:")
print("without KL:    std lower, PSNR within 0.2 dB")
print("KL × 2,000:    std more than 1.4 times as large, PSNR more than 0.25 dB lower, edges weaker")
print("perceptual:    std lower, PSNR within 0.6 dB, edges stronger")
print("discriminator: PSNR lower, edges more than 0.06 higher")

# %% [markdown]
# At 2,000 times the KL weight the posterior widens. Why is the picture smoother, though decoded from the mean, without noise?
# Probably from training: noise, small beside the latent's spread, hides fine distinctions, and the decoder learns what the
# textures it confuses have in common.

# %% [markdown]
# Without KL the posterior narrows; and nearly as much with the perceptual term. 24 steps are too few to call either, and of 32
# crops from two photographs you would not believe it.

# %% [markdown]
# The discriminator buys edges and pays with PSNR. SSIM pays as well: it compares in place. The posterior hardly notices. The
# perceptual term brings fewer edges, for less. Are they the right ones? The judge, which no run was trained to please,
# finds the pictures of the perceptual term the nearest to the originals.

# %%
if EXTRA:
    assert perceptual[4] == min(row[4] for row in results.values()) and perceptual[4] < adversarial[4] - 0.01
    assert perceptual[2] < adversarial[2] and perceptual[0] > adversarial[0]

# %%
shown = ("plain", "KL × 2,000", "perceptual", "discriminator")
rows = {"held out": held_out[:6]} | {name: runs[name](held_out[:6]).sample.detach() for name in shown}
show(
    image_grid([*rows.values()], row_labels=[*rows]),
    alt="Six held-out crops; from the plain run a little smooth; with the strong KL smoother; with the perceptual term and with the discriminator with stronger edges.",
    format="jpeg",
)

# %% [markdown]
# Which row would you take? By PSNR and SSIM the plain one, by the judge the perceptual one, by edges the last. So a table holds
# more than one column, and says for each what it does not see.

# %% [markdown]
# For your own models: `klvae evaluate MODEL` prints such a table, with intervals, patch-PCA and JPEG beside it, and Lite1's
# verdicts: its feature distance, its Fréchet distance, and how often it still names the same class.

# %% [markdown]
# ## Summary
#
# 1. PSNR: mean of dB, peak 2, clamped. Its spread belongs to the images; compare models pairwise, on the same ones.
# 2. SSIM: brightness, contrast, structure in Gaussian windows, from black = 0. It compares in place, as PSNR does.
# 3. Fréchet distance: two crowds, by their features. It sees what these see, not whose picture it is; between strangers it grows
#    when images are few.
# 4. In Table 8 KL-f8 is R-FID 0.90, PSNR 24.19. f is no size: count bits before you say that KL beats VQ.
# 5. At the same rate, on the same encoder, VQ loses less than rounding. Far too much KL costs PSNR and edges; a judge buys
#    edges with PSNR.
#
# ### Check yourself
#
# <details><summary>Model A: PSNR 24.9 ± 3.8, model B: 24.5 ± 3.9, on the same 5,000 images. Is A better?</summary>
#
# ± is the spread over the images and says nothing about it. Take the difference image by image: its mean is known to a fraction of
# that, by a bootstrap over the images.
# </details>
#
# <details><summary>Two papers give 0.9 and 5.0 as rFID of the same weights. Who is wrong?</summary>
#
# Perhaps nobody: with other images the distance is another one. Their number matters less, for reconstructions share the noise of
# the draw with their originals; between strangers, as in a generator's FID, it matters, too.
# </details>
#
# <details><summary>A codebook of 16,384 vectors has a perplexity of 300. What has happened, and what would you try?</summary>
#
# Most codes are dead: nobody's nearest, they never move. Begin at latents instead of near zero.
# </details>
#
# **Next:** 10, the latent space explorer. You have measured what a latent loses; now take hold of its numbers, and see what each of
# them means.
