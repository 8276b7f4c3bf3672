# %% [markdown]
# # 09 · Measuring quality
#
# {{badge}}
#
# In notebook 08 PSNR fell while the pictures became sharper. So one number is not enough. Here you build three, and read the
# best-known table of autoencoders.
#
# **You will be able to**
#
# * build PSNR, SSIM and the Fréchet distance, and say what each does not see;
# * compare two models, and say how sure the result is;
# * read Table 8 of the latent diffusion paper, and convert its rows into bits;
# * choose f, the downsampling factor, and c, the number of latent channels.
#
# **You need** PSNR, patch-PCA and feature distances from [06](06_reconstruction_losses.ipynb), and the training step of
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
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim
from torchvision.transforms.functional import gaussian_blur

import klvae_edu
from klvae_edu import AutoencoderKL, metrics
from klvae_edu.baselines import PatchPCA
from klvae_edu.data import image_dataset, photographs
from klvae_edu.efficientnet import EfficientNetDistance, available
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.exercises.given import local_mean
from klvae_edu.metrics import FrechetDistance, RandomFeatures, gradient_energy, psnr
from klvae_edu.plots import PALETTE, figure, image_grid, lines, show
from klvae_edu.training import steps
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import set_up, start_accelerator

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"


def crops(split, count, seed=0):
    return next(iter(DataLoader(image_dataset("photos", 64, split=split, seed=seed, length=count), batch_size=count)))


# %% [markdown]
# The model is the package's small KL-f8. The images are 192 crops of two *held-out* photographs: they were kept out of the
# training.

# %%
vae = AutoencoderKL.from_bundled().eval().requires_grad_(False)
held_out = crops("held-out", 192)
with torch.no_grad():
    rebuilt = torch.cat([vae(part).sample for part in held_out.split(32)]).clamp(-1, 1)
print(f"{vae.num_parameters():,} parameters, crops {tuple(held_out.shape)}")

# %% [markdown]
# ## 1. PSNR, and how sure a mean is
#
# Of five reconstructions one went wrong. Take the mean of their five PSNRs, or the PSNR of their mean error: by how much do the
# two differ?

# %%
errors = torch.tensor([0.001, 0.002, 0.004, 0.008, 0.4])
decibels = 10 * torch.log10(4 / errors)
print("PSNR of each   ", [round(value, 1) for value in decibels.tolist()])
print(f"mean of the dB  {decibels.mean():.1f}   dB of the mean error {10 * torch.log10(4 / errors.mean()):.1f}")

# %% [markdown]
# By more than ten decibels. The worst image decides the dB of the mean error; in the mean of the dB each image counts the same.
# The literature takes the mean of the dB:
#
# $$\mathrm{PSNR} = \frac1B \sum_{\text{images}} 10\,\log_{10}\frac{2^2}{\frac{1}{CHW}\sum (\hat x - x)^2}$$

# %% [markdown]
# {{exercise 09.1}}
#
# The 2 is the width of the range, from -1 to 1. Clamp the reconstruction to it first.


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
agree = bool((mean_psnr(rebuilt, held_out) - theirs).abs() < 1e-3)
print(f"torchmetrics with dim=(1, 2, 3) and {whose('09.1', mean_psnr)} function: max |Δ| < 1e-3 dB: {agree}")
without = peak_signal_noise_ratio(rebuilt, held_out, data_range=2.0)
assert theirs - without > 0.5
print("torchmetrics without `dim` gives the dB of the mean error, here more than 0.5 dB less")

# %% [markdown]
# So two papers can differ by half a decibel and mean the same model. Now look at the 192 single values, beside the *gradient
# energy* of each crop: the mean squared difference of neighbouring pixels.

# %%
each, energy = psnr(rebuilt, held_out), gradient_energy(held_out)
fig, ax = figure(size=(6, 3))
ax.semilogx(energy, each, "o", color=BLUE, markersize=3)
ax.set(xlabel="gradient energy of the crop", ylabel="PSNR, dB")
show(fig, alt="PSNR of 192 crops over their gradient energy. The more edges a crop has, the lower its PSNR.")
assert torch.corrcoef(torch.stack([energy.log(), each]))[0, 1] < -0.5 and each.max() - each.min() > 10

# %% [markdown]
# The values spread over more than 10 dB, and most of that comes from the crops: smooth ones are easy. A "± 4" beside a PSNR is
# mostly this spread, and not the uncertainty of the mean.
#
# For that, use a *bootstrap*: draw as many values as there are, with repetition, take their mean, and do that 2,000 times. The
# middle 95 % of the means are the interval. But crops of one photograph resemble each other. So take eight photographs and 24
# crops of each. None is among the 63 that the bundled model was trained on (`photographs("train")` is the course's own small
# training set). The baseline, patch-PCA, is fitted to the other seven.

# %%
centre, tiles = {}, {}
for name, photo in (photographs("train") | photographs("held-out")).items():
    top, left = photo.shape[1] // 2 - 128, photo.shape[2] // 2 - 192
    centre[name] = photo[:, top : top + 256, left : left + 384]
    tiles[name] = torch.stack([tile for row in centre[name].split(64, 1) for tile in row.split(64, 2)])


# %%
def by_photograph(name):
    """PSNR of the 24 crops: of the model, and of patch-PCA."""
    others = torch.cat([images for other, images in tiles.items() if other != name])
    pca = PatchPCA(patch_size=8, components=4).fit(others)
    return torch.stack([psnr(found, tiles[name]) for found in (vae(tiles[name]).sample, pca.reconstruct(tiles[name]))])


found = torch.stack([by_photograph(name) for name in tiles])  # (8 photographs, 2 methods, 24 crops)
for name, (model, baseline) in zip(tiles, found.mean(2), strict=True):
    print(f"{name:22} model {model:.1f} dB   patch-PCA {baseline:.1f} dB   difference {model - baseline:3.1f} dB")
lead = (found[:, 0] - found[:, 1]).mean(1)
print(f"mean difference {lead.mean():.1f} dB, without retina and rocket {lead.sort().values[:6].mean():.1f} dB")
assert lead.min() > 0.4

# %% [markdown]
# The model is ahead on all eight. Now bootstrap twice: draw single crops, then draw photographs, each with
# all of its crops.

# %%
generator = torch.Generator().manual_seed(0)
draw_crops = torch.randint(192, (2000, 192), generator=generator)
draw_photographs = torch.randint(8, (2000, 8), generator=generator)
values = {"model": found[:, 0], "patch-PCA": found[:, 1], "difference": found[:, 0] - found[:, 1]}
intervals = {}
for name, value in values.items():
    means = value.flatten()[draw_crops].mean(1), value.mean(1)[draw_photographs].mean(1)
    intervals[name] = [mean.quantile(torch.tensor([0.025, 0.975])) for mean in means]
width = {name: [(high - low).item() for low, high in pair] for name, pair in intervals.items()}
assert all(2.5 * by_crops < by_photographs for by_crops, by_photographs in width.values())
assert intervals["model"][1][0] < intervals["patch-PCA"][1][1] and intervals["difference"][1][0] > 1

# %%
fig, ax = figure(1, 2, size=(8, 2.4))
labels = ["crops drawn", "photographs drawn"]
for axis, names in zip(ax, (["model", "patch-PCA"], ["difference"]), strict=True):
    for row, name in enumerate(names):
        for shift, color, interval, label in zip((-0.12, 0.12), (BLUE, ORANGE), intervals[name], labels, strict=True):
            axis.plot(interval, [row + shift] * 2, "|-", color=color, linewidth=2, label=label if row == 0 else None)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="dB", ylim=(-0.6, len(names) - 0.4))
ax[1].set_xlim(0, None)
ax[1].legend()
show(
    fig,
    alt="95 % intervals. With photographs drawn they are about three to four times as wide as with crops drawn. Those of the model and of patch-PCA then overlap; that of their difference stays above 1 dB.",
)

# %% [markdown]
# Crops alone promise too much: with other photographs the means move by several dB, and the two intervals overlap. (With only
# eight photographs even these intervals tend to be too narrow.) Still the mean *difference* is above 1 dB, because what is
# hard for one method is mostly hard for the other. So draw photographs, and compare models *pairwise, on the same images*.

# %% [markdown]
# ## 2. SSIM: comparing neighbourhoods
#
# Squared error counts each pixel by itself (notebook 06). SSIM compares *neighbourhoods* by three terms: brightness, contrast,
# and whether the pixels rise and fall together. With the means μ, the standard deviations σ and the covariance, each term is 1
# if nothing is wrong:
#
# $$\frac{2\mu_a\mu_b}{\mu_a^2+\mu_b^2}, \qquad \frac{2\sigma_a\sigma_b}{\sigma_a^2+\sigma_b^2}, \qquad
# \frac{\mathrm{cov}(a, b)}{\sigma_a\sigma_b}$$

# %%
stripes = torch.tensor([0.2, 0.6, 0.2, 0.6, 0.2])
others = {"brighter": stripes + 0.2, "half the contrast": 0.18 + stripes / 2, "inverted": 0.72 - stripes}
for name, other in others.items():
    (mean_a, mean_b), (std_a, std_b) = (stripes.mean(), other.mean()), (stripes.std(), other.std())
    light = 2 * mean_a * mean_b / (mean_a**2 + mean_b**2)
    contrast = 2 * std_a * std_b / (std_a**2 + std_b**2)
    together = torch.cov(torch.stack([stripes, other]))[0, 1] / (std_a * std_b)
    print(f"{name:18} brightness {light:.2f}   contrast {contrast:.2f}   together {together:5.2f}")

# %% [markdown]
# Each change lowers one term. SSIM is their product (Wang et al. 2004, section III). σ_a σ_b cancels in the last two, and two
# small constants prevent 0/0 where a patch is constant:
#
# $$\mathrm{SSIM} = \frac{2\mu_a\mu_b + 0.01^2}{\mu_a^2+\mu_b^2 + 0.01^2}\cdot
# \frac{2\,\mathrm{cov}(a, b) + 0.03^2}{\sigma_a^2+\sigma_b^2 + 0.03^2}$$
#
# The means are taken around each pixel, weighted by a Gaussian window of 11 × 11 pixels with a standard deviation of 1.5.

# %%
row = torch.exp(-(torch.arange(-5, 6).float() ** 2) / (2 * 1.5**2))
window = torch.outer(row, row) / row.sum() ** 2
print(f"sum {window.sum():.1f}   centre {window[5, 5]:.3f}   middle of the edge {window[5, 0]:.4f}")
print(inspect.getsource(local_mean))

# %% [markdown]
# {{exercise 09.2}}
#
# Write it for whole images. `local_mean(images, window)` is the weighted mean around each pixel. A variance is the mean of the
# squares minus the square of the mean. The constants and the means are for images from 0 to 1, where black is 0.


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
found, finished = ssim(noisy, cat, window), metrics.ssim(noisy, cat)
print(f"the package and {whose('09.2', ssim)} function: max |Δ| < 1e-4: {bool((found - finished).abs().max() < 1e-4)}")
print(f"SSIM {finished.item():.3f};  not shifted: {torchmetrics_ssim(noisy, cat, data_range=2.0).item():.3f}")

# %% [markdown]
# The last number is of the values from -1 to 1, where 0 is grey; SSIM takes 0 for black, and raises no error. Before you
# compare two SSIMs, ask for the range.
#
# Now spoil the cat's eye in four ways: shift it by one pixel, which you hardly see; add noise; blur it; make it brighter. All
# have the squared error of the shift. How will SSIM rank them?


# %%
spoil = {
    "noise": lambda s: cat + s * noise,
    "blur": lambda s: gaussian_blur(cat, 25, 8 * s + 0.01),
    "brighter": lambda s: cat + s,
}
target = psnr(cat.roll(1, 3), cat).item()


def tuned(change):
    """Apply a change at the strength, between 0 and 1, that has the PSNR of the shift."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if psnr(change(middle), cat) > target else (low, middle)
    return change(low).clamp(-1, 1)


# %%
spoiled = {"shifted": cat.roll(1, 3)} | {name: tuned(change) for name, change in spoil.items()}
found = {name: ssim(image, cat, window).item() for name, image in spoiled.items()}
print(f"all at {target:.1f} dB;  SSIM:", "   ".join(f"{name} {value:.2f}" for name, value in found.items()))
assert max(abs(psnr(image, cat).item() - target) for image in spoiled.values()) < 0.01
assert found["brighter"] > 0.95 and found["blur"] < found["noise"] < found["shifted"] + 0.05 < 0.8

# %% [markdown]
# Brightness costs almost nothing, since contrast and structure stay. Blur costs most: it removes the contrast of the fur. A
# shift that you hardly see costs as much as noise: SSIM compares pixels *at the same position*, as PSNR does.

# %%
names = [f"{name}: {value:.2f}" for name, value in found.items()]
show(
    image_grid([[cat[0], *(image[0] for image in spoiled.values())]], captions=[["photograph", *names]]),
    alt="A cat's eye five times: the photograph; shifted by a pixel; with strong noise; blurred; and brighter. The numbers are SSIM; PSNR is the same for all four.",
    format="jpeg",
)

# %% [markdown]
# ## 3. The Fréchet distance: comparing sets of images
#
# Suppose a decoder draws good fur, but no hair is where it was: PSNR and SSIM are low. Instead, compare all reconstructions
# *together* with all photographs together. Five numbers and five others:

# %%
a = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
b = 2 * a + 1
for name, order in {"in order": torch.arange(5), "shuffled": torch.tensor([3, 0, 4, 1, 2])}.items():
    print(f"{name:9} pair by pair {(a - b[order]).pow(2).mean():.0f}", end="   ")
    means, stds = (a.mean() - b.mean()).pow(2), (a.std(correction=0) - b[order].std(correction=0)).pow(2)
    print(f"means and standard deviations {means:.0f} + {stds:.0f} = {means + stds:.0f}")

# %% [markdown]
# The second number does not depend on the pairs. It is the squared *Fréchet distance* of two Gaussians. With D features the
# standard deviations become covariance matrices Σ and Ω:
#
# $$d^2 = \lVert\mu - \nu\rVert^2 + \mathrm{tr}\big(\Sigma + \Omega - 2\,(\Sigma\Omega)^{1/2}\big)$$
#
# A trace is the sum of the eigenvalues, and the root has the roots of ΣΩ's eigenvalues. ΣΩ is not symmetric, so
# `torch.linalg.eigvals` returns complex numbers. Except for rounding they are real and not negative: take `.real`, and clamp.

# %% [markdown]
# {{exercise 09.3}}
#
# Write it for two sets of features. Take the eigenvalues of ΣΩ itself: those of Σ and Ω do not give them.


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
# The *FID* takes 2,048 features of Inception, a network trained to recognise objects (Heusel et al. 2017). *rFID* is the FID
# between reconstructions and their own originals. Inception has to be downloaded; *EfficientNet-Lite1*, also trained on
# ImageNet, is a package (`klvae-edu[perceptual]`). It has 1,280 features:

# %%
EXTRA = available("efficientnet-lite1")
finished = FrechetDistance("efficientnet-lite1" if EXTRA else "random")
originals, reconstructed = (torch.cat([finished.features(x) for x in y.split(32)]) for y in (held_out, rebuilt))
finished.add(reconstructed, originals)
originals = originals.double()
distance = frechet_distance(reconstructed.double(), originals)
print(f"{finished.name}: {finished.source}")
agree = math.isclose(distance.item(), finished.compute(), rel_tol=1e-4)
print(f"the package and {whose('09.3', frechet_distance)} function are equal: {agree}")
if not EXTRA:
    print("klvae-edu[perceptual] is not installed: below, a small network with random weights takes Lite1's place.")

# %% [markdown]
# This is no rFID: compare it only with numbers from the same features. No model here is trained on Lite1's features, so Lite1
# can be the *judge*.
#
# Make two small sets, of colours and of edges. Then blur the crops; tint them red; give every crop the *next* one as its
# reconstruction. Which of the three does neither set notice?


# %%
def colours(images):
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1).double()


def edges(images):
    return torch.cat([images.diff(dim=dim).abs().mean((2, 3)) for dim in (2, 3)], dim=1).double()


# %%
tinted = (held_out + torch.tensor([0.2, 0.0, 0.0]).view(1, 3, 1, 1)).clamp(-1, 1)
changed, seen = {"blurred": gaussian_blur(held_out, 9, 1.5), "tinted": tinted, "next": held_out.roll(1, 0)}, {}
for name, images in changed.items():
    seen[name] = [mean_psnr(images, held_out).item()]
    seen[name] += [frechet_distance(see(images), see(held_out)).item() for see in (colours, edges)]
    print("{:8} PSNR {:4.1f} dB   colours {:.3f}   edges {:.3f}".format(name, seen[name][0], *map(abs, seen[name][1:])))

# %% [markdown]
# The next crop: neither notices that every reconstruction shows another picture. Colours see the tint, edges see the blur. PSNR
# finds the tint worse than the blur. The trained features:

# %%
assert seen["tinted"][1] > 3 * seen["blurred"][1] and seen["blurred"][2] > 3 * seen["tinted"][2]
assert max(map(abs, seen["next"][1:])) < 1e-6 and seen["next"][0] < 15 and seen["tinted"][0] < seen["blurred"][0]
judged = {}
for name, images in changed.items():
    features = torch.cat([finished.features(part) for part in images.split(32)])
    judged[name] = frechet_distance(features.double(), originals)
shares = {name: (value / judged["blurred"]).abs().item() for name, value in judged.items()}
print(f"{finished.name}, as a share of the blur's:", *(f"{name} {share:.0%}" for name, share in shares.items()))
if EXTRA:
    assert 0.02 < shares["tinted"] < 0.3 and shares["next"] < 1e-4

# %% [markdown]
# The judge sees both, and the blur far more. The next crop costs nothing here either. A small rFID says that the textures are
# plausible, not that the image is *yours*.

# %% [markdown]
# ## 4. Table 8 of the latent diffusion paper
#
# Table 8 (Rombach et al. 2022, arXiv 2112.10752v2, appendix D.2) measures autoencoders on ImageNet's validation images:
# DALL-E's, and the authors' own, trained on OpenImages. For f × f pixels a *KL* latent has c numbers; a *VQ* latent has the
# index of one vector (code) in a table. Here are eleven of the nineteen rows. Which is Stable Diffusion's?

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
# f = 8 and c = 4, KL: R-FID 0.90, PSNR 24.19 (R-FID is rFID). If 0.87 and 24.08 are quoted for Stable Diffusion, somebody
# took the row f = 16, c = 16.

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
    alt="R-FID over PSNR for eleven autoencoders. Where PSNR is higher, R-FID is mostly lower. DALL-E is far above all others.",
)

# %% [markdown]
# The paper prints 24.19 ± 4.19. That is the spread over the images; the standard
# error of the mean is 4.19 / √50,000 = 0.019 dB.
#
# Stability's model card (`stabilityai/sd-vae-ft-ema-original`) measures the same weights on 5,000 images of COCO: R-FID **4.99**
# instead of 0.90. Never compare R-FIDs of different images.

# %% [markdown]
# {{exercise 09.4}}
#
# Is a row with f = 16 half as large as one with f = 8? Count bits. An RGB image has 8 bits a value. How many times smaller is
# its latent? You choose the bits of a KL value, because the table does not say.


# %%
def compression(side, factor, channels, bits, codes):
    """Bits of an RGB image, side x side, 8 bits a value, over those of its latent: with KL, and with VQ."""
    # BEGIN SOLUTION
    image, positions = 3 * side**2 * 8, (side // factor) ** 2
    return image / (positions * channels * bits), image / (positions * math.log2(codes))
    # SKELETON
    #| image, positions = ...
    #| return ..., ...  # KL: channels values of `bits` bits at each position; VQ: one of `codes` numbers
    # END SOLUTION


compression = check("09.4", compression)

# %%
for f, kind, codes, channels, rfid, *_ in TABLE[1:]:
    kl, vq = compression(256, f, channels, 16, codes or 2)
    size = f"{kl:4.0f} times smaller at 16 bits a value" if kind == "KL" else f"{vq:4.0f} times smaller"
    print(f"{kind} f{f:<2} c{channels:<2} {codes or '':5}   R-FID {rfid:.2f}   {size}")

# %% [markdown]
# Three KL rows have 4,096 values at 256 × 256: f = 8 and f = 16 are equally good, f = 32 is worse. (Patch-PCA prefers the larger
# f, as each of its patches is coded alone: notebook 13.) And "KL beats VQ at f = 8" compares 8 kB with 1.8 kB, if a KL value takes 16
# bits. The optional notebook [15](15_vector_quantisation.ipynb) compares them at equal bits.

# %% [markdown]
# ## 5. Choosing f and c
#
# Take c first. The package has a second model, with 16 latent channels, as in Stable Diffusion 3 and FLUX.1. How many decibels
# do twelve more channels gain?

# %%
models = {4: vae, 16: AutoencoderKL.from_bundled("kl-f8-mini-16").eval().requires_grad_(False)}
photos = torch.stack([centre[name][:, :, 64:320] for name in ("chelsea", "motorcycle")])  # (2, 3, 256, 256)
decoded = {channels: model(photos).sample.clamp(-1, 1) for channels, model in models.items()}
for channels, images in decoded.items():
    share = (gradient_energy(images) / gradient_energy(photos)).mean()
    print(f"c = {channels:2}: PSNR {mean_psnr(images, photos):.1f} dB   edges {share:.0%} of the photographs'")

# %% [markdown]
# Four, and more of the edges:

# %%
pictures = {"photograph": photos} | {f"c = {channels}": images for channels, images in decoded.items()}
show(
    image_grid([*zip(*pictures.values(), strict=True)], column_titles=[*pictures]),
    alt="A cat and a motorcycle, decoded from 4 and from 16 channels. Four channels lose the fur, the whiskers and the engine's fins; sixteen keep most of them.",
    format="jpeg",
)

# %% [markdown]
# The diffusion model has to generate all of this: 16 numbers per position instead of 4. To see how predictable they are, fit
# the best linear map from the eight positions around it to each latent value, on six photographs, and test it on the other two.
# R² is the share of the variance that it predicts.


# %%
def neighbourhoods(latents):
    """Latents [(C, h, w)] -> the values around each inner position (n, 8·C), and its own (n, C)."""
    patches = torch.cat([F.unfold(z[None], 3).view(len(z), 9, -1) for z in latents], 2)  # (C, 9, n)
    around = patches[:, [0, 1, 2, 3, 5, 6, 7, 8]]
    return around.flatten(0, 1).T.double(), patches[:, 4].T.double()


def predictability(model):
    """R² of each channel, the highest first."""
    latents = [model.encode(photo[None]).latent_dist.mean[0] for photo in centre.values()]
    (inputs, outputs), (test_inputs, test_outputs) = neighbourhoods(latents[:6]), neighbourhoods(latents[6:])
    weight = torch.linalg.lstsq(inputs - inputs.mean(0), outputs - outputs.mean(0)).solution
    rest = test_outputs - outputs.mean(0) - (test_inputs - inputs.mean(0)) @ weight
    return (1 - rest.pow(2).mean(0) / test_outputs.var(0)).sort(descending=True).values


# %%
shares = {f"c = {channels}": predictability(model) for channels, model in models.items()}
fig = lines(shares, xlabel="channel, sorted", ylabel="R²", size=(6, 3))
show(fig, alt="R² of each channel. With c = 16, three channels are predicted well, and thirteen poorly.")
rest = {name: (1 - share).sum().item() for name, share in shares.items()}
print("sum of 1 - R², in values per position:", *(f"{name}: {value:.1f}  " for name, value in rest.items()))
assert shares["c = 16"][2] > 0.75 and shares["c = 16"][3] < 0.5 and 3 < rest["c = 16"] / rest["c = 4"] < 4.5

# %% [markdown]
# Three of the sixteen channels are smooth, and their neighbours predict them. The other thirteen hold detail. About 10 values
# per position stay unpredicted, instead of 2.6. A diffusion model is no linear map, but it, too, has to learn more values.
#
# The KL weight differs, too: 0.02 for 4 channels, 0.0001 for 16 (Stable Diffusion: 1e-6, with other losses). With 0.02 twelve of the 16 channels collapsed
# (`training/recipes/kl-f8-mini-16.yaml`).

# %%
for f, kind, _, channels, _, decibels, _ in TABLE:
    if kind == "KL":
        positions = (512 // f) ** 2
        size = f"{positions:6,} positions, attention × {positions**2 / 4096**2:.3g}"
        print(f"f{f:<2} c{channels:<2} PSNR {decibels:.1f}   512 × 512: {size}")
assert mean_psnr(decoded[16], photos) - mean_psnr(decoded[4], photos) > 3

# %% [markdown]
# Now f. It sets the number of positions, (H/f)², and so the diffusion model's time: most layers cost in proportion to the
# positions, attention to their square.
#
# | important | choose | reason |
# | --- | --- | --- |
# | a small diffusion model | f = 8, c = 4 (Stable Diffusion 1, SDXL) | few positions, few numbers |
# | lettering, fine detail | f = 8, c = 16 (Stable Diffusion 3, FLUX.1) | 4 dB more here; needs a larger diffusion model |
# | exact reconstruction | f = 4, c = 3 | 3.3 dB more in Table 8; 16 × the attention |
# | very large images | f = 16 or 32, c = 16 or more | few positions; channels replace them |
#
# LDM's samples were best for f = 4 and 8 (Rombach et al. 2022, section 4.1). More channels reconstruct better; the samples
# profit from them as the diffusion model grows (Esser et al. 2024, arXiv 2403.03206, section 5.2.1).

# %% [markdown]
# ## 6. An ablation: what each loss changes
#
# An *ablation* changes one thing, leaves all else, and measures. Train the bundled model for 24 more steps, five times, on the
# same crops. Before you run it, write down for each column: rises, falls, or stays?
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

# %%
PERCEPTUAL = {"perceptual": "efficientnet-lite0", "perceptual_weight": 0.03}
if not EXTRA:
    print("klvae-edu[perceptual] is not installed: the perceptual term is untrained LPIPS, and there is no judge.")
    PERCEPTUAL = {"perceptual": "lpips", "lpips": "untrained", "perceptual_weight": 1.0}

# %% [markdown]
# The perceptual term is EfficientNet-Lite0's feature distance; the judge is Lite1. The discriminator first learns alone, for 40
# steps.


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
# Measure on 32 held-out crops. "Edges" is the gradient energy divided by the originals'.


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
    alt="Five metrics of the five runs; the dotted lines are the plain run. The strong KL has the weakest edges and the largest standard deviation. The discriminator has the strongest edges and a lower PSNR and SSIM. The perceptual term has a lower SSIM, too, and the smallest feature distance.",
)

# %% [markdown]
# This is one seed, 24 steps, and 32 crops of two photographs: trust the signs, not the sizes.

# %%
plain, without, strong, perceptual, adversarial = results.values()
spread = vae.encode(held_out[:32]).latent_dist.mean.std((0, 2, 3))
assert without[3] < 0.95 * plain[3] and abs(without[0] - plain[0]) < 0.2
assert strong[0] < plain[0] - 2 and strong[2] < 0.7 * plain[2] and strong[3] > 3 * plain[3]
assert strong[3] > 0.5 * spread.mean()
assert abs(perceptual[0] - plain[0]) < 0.6 and perceptual[2] > plain[2] and perceptual[3] < plain[3]
assert adversarial[0] < plain[0] - 0.15 and adversarial[2] > plain[2] + 0.06 and adversarial[3] < 1.2 * plain[3]
assert max(perceptual[1], adversarial[1]) < plain[1]
if EXTRA:
    assert perceptual[4] == min(row[4] for row in results.values()) and perceptual[4] < adversarial[4] - 0.01
    assert perceptual[2] < adversarial[2] and perceptual[0] > adversarial[0]
print("Against the plain run:")
print("without KL:    std lower, PSNR within 0.2 dB")
print("KL × 2,000:    std more than 3 times as large, PSNR more than 2 dB lower, edges weaker")
print("perceptual:    std lower, PSNR within 0.6 dB, SSIM lower, edges stronger")
print("discriminator: PSNR and SSIM lower, edges more than 0.06 higher")

# %% [markdown]
# With 2,000 times the KL weight the posterior widens to more than half of the latent's spread. The picture is smooth and pale,
# although decoded without noise. Probably noise of this size hides textures in training, and the decoder learns their average.
#
# Without KL the posterior narrows, and nearly as much with the perceptual term.
#
# The discriminator gains edges and costs PSNR and SSIM. The perceptual term gains fewer edges; it costs about as much SSIM, but
# hardly any PSNR.

# %%
shown = {"held out": held_out} | {
    name: runs[name](held_out[:3]).sample.detach() for name in runs if name != "without KL"
}
rows = [[F.interpolate(images[i : i + 1], scale_factor=3)[0] for images in shown.values()] for i in (0, 2)]
show(
    image_grid(rows, column_titles=[*shown]),
    alt="Two held-out crops, three times enlarged, and what four of the runs make of them. The strong KL is the smoothest, and pale; the perceptual term and the discriminator have stronger edges.",
    format="jpeg",
)

# %% [markdown]
# Here the plain run and the one without KL lead by PSNR and SSIM, with hardly a difference; the perceptual one by the judge, the
# discriminator's by edges. So a table needs several columns. `klvae evaluate MODEL` prints one for your own models.

# %% [markdown]
# ## Going further: how many images a Fréchet distance needs (optional)
#
# Take two sets of N crops of the *same* photographs. Their true distance is 0. Compare what the formula gives for N = 64, 128,
# … 1,024 with the distance of blurred crops from *their own* originals, as in rFID. The features are 64 of a small random
# network.

# %%
network = RandomFeatures()
with torch.no_grad():
    first, second = (crops("train", 1024, seed) for seed in (1, 2))
    features = [torch.cat([network(part) for part in images.split(64)]) for images in (first, second)]
    features += [torch.cat([network(gaussian_blur(part, 9, 1.0)) for part in first.split(64)])]

# %% [markdown]
# Cut each set into parts of N crops, and average the distances of the parts.

# %%
many, more, blurred = (part.double() for part in features)
counts, curves = [64, 128, 256, 512, 1024], {}
for name, others in {"two sets of one kind": more, "blurred, against their own originals": blurred}.items():
    pairs = [zip(many.split(count), others.split(count), strict=True) for count in counts]
    curves[name] = [torch.stack([frechet_distance(*pair) for pair in of_count]).mean().item() for of_count in pairs]

# %%
bias, paired = curves.values()
curves["∝ 1/N"] = [bias[0] * counts[0] / count for count in counts]
fig = lines(curves, counts, xlabel="images in each set", ylabel="Fréchet distance", log=True, dashed=("∝ 1/N",))
fig.axes[0].set(xscale="log", xticks=counts, xticklabels=counts)
fig.axes[0].minorticks_off()
show(
    fig,
    alt="The Fréchet distance of two sets of one kind falls with their size, roughly as 1/N. That of blurred crops and their own originals stays nearly the same.",
)
assert all(large > small for large, small in zip(bias, bias[1:], strict=False)) and bias[0] > 4 * bias[-1] > 0
assert max(paired) < 1.3 * min(paired) and bias[0] > 3 * paired[0]

# %% [markdown]
# For two sets of one kind it is not 0, and the fewer images, the larger. A covariance of 64 features has 2,080 numbers, and the
# noise in them counts as distance; Lite1's has 819,840, Inception's two million. Never compare distances over different numbers
# of images.
#
# Reconstructions share this noise with their own originals, so their curve is nearly constant. Therefore ask which images are
# compared, too: rFID compares each image with its own reconstruction, a generator's FID compares two sets without pairs. In
# section 4, 0.90 was measured on 50,000 images, and 4.99 on 5,000. If Inception's features behave like these 64, the number of
# images explains little of this difference; that is not tested here.

# %% [markdown]
# ## Going further: rows of Table 8 that disagree (optional)
# Mostly a better PSNR goes with a better R-FID. Look at the three best rows at f = 8 by SSIM, and at the two VQ rows with f =
# 4.

# %%
at_8 = sorted((row for row in TABLE if row[0] == 8), key=lambda row: -row[6])
for f, kind, codes, _, rfid, decibels, similarity in at_8[:3] + [row for row in TABLE if row[:2] == (4, "VQ")]:
    print(f"{kind:6} f{f} {codes or '':5}   SSIM {similarity:.2f}   PSNR {decibels:.1f}   R-FID {rfid:5.2f}")
assert at_8[0][1] == "DALL-E" and at_8[0][4] == max(row[4] for row in TABLE)

# %% [markdown]
# DALL-E's has the best SSIM at f = 8 and the worst R-FID of the table. It was trained without a discriminator (Ramesh et al.
# 2021, section 2.1), and on other images. With f = 4, 256 codes lose a decibel against 8,192, and have the better R-FID.

# %% [markdown]
# ## Summary
#
# 1. PSNR: mean of the dB, peak 2, clamped. Compare models on the same images, and bootstrap over photographs.
# 2. SSIM: brightness, contrast, structure, with black = 0. It compares pixels at the same position.
# 3. Fréchet distance: two sets, by their features. It does not see whose picture it is.
# 4. KL-f8 has R-FID 0.90 and PSNR 24.19. f alone is no size: count bits. More channels reconstruct better and are harder to
#    generate.
# 5. Far too much KL costs PSNR and edges; a discriminator gains edges and costs PSNR.
#
# ### Check yourself
#
# <details><summary>Model A: PSNR 24.9 ± 3.8, model B: 24.5 ± 3.9, on the same images. Is A better?</summary>
#
# ± is the spread over the images and does not say. Take the difference image by image, and bootstrap its mean.
# </details>
#
# <details><summary>Two papers give 0.9 and 5.0 as rFID of the same weights. Who is wrong?</summary>
#
# Perhaps nobody: the images may differ.
# </details>
#
# <details><summary>Your diffusion model is small, the images are 512 × 512 without lettering. Which f and c?</summary>
#
# f = 8, c = 4. With f = 4 attention costs 16 times as much; with c = 16 a linear map leaves four times as many values unpredicted.
# </details>
#
# **Next:** 10, the latent space explorer: what the numbers of a latent mean.
