# %% [markdown]
# # 07 · PatchGAN: is this patch real?
#
# {{badge}}
#
# Every loss so far compares a reconstruction with its original. The *discriminator* D never sees the original: it learns to tell
# photographs from reconstructions, patch by patch.
#
# **You will be able to**
#
# * build Stable Diffusion's discriminator, and measure which pixels one logit sees;
# * write both of its losses, and say what the generator minimises;
# * explain how BatchNorm lets D judge the batch instead of the patch;
# * balance two losses at one layer, and say when the clamp acts;
# * keep D's gradients out of the autoencoder, and read its log.
#
# **You need** the receptive field of notebook [04](04_resampling_and_attention.ipynb), the losses of
# [06](06_reconstruction_losses.ipynb), `backward` and `.grad` in PyTorch.
#
# {{budget}}

# %% tags=["environment"]

# %%
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import AutoencoderKL, losses
from klvae_edu import discriminator as finished
from klvae_edu.data import image_dataset, photographs
from klvae_edu.diagrams import show_diagram
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.losses import adversarial_loss, reconstruction_loss
from klvae_edu.perceptual import LPIPS
from klvae_edu.plots import PALETTE, figure, lines, maps, show, side_by_side
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.diagnosis import diagnose

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# ## 1. Judging without the original
#
# Take patches of photographs, and soft copies of them: half the resolution, and back. One number that could tell them apart is
# how much neighbouring pixels differ. Five patches, five copies: is one number enough?


# %%
def soften(images, factor):
    return F.interpolate(F.avg_pool2d(images, factor), scale_factor=float(factor), mode="bilinear")


def edges(images):
    return images.diff(dim=-1).abs().mean((1, 2, 3)) + images.diff(dim=-2).abs().mean((1, 2, 3))


# %%
held_out = image_dataset("photos", 64, split="held-out")
sharp = torch.stack([held_out[index] for index in range(128)])
soft = soften(sharp, 2)
photos = photographs("held-out")
print("sharp", [round(value, 2) for value in edges(sharp[:5]).tolist()])
print("soft ", [round(value, 2) for value in edges(soft[:5]).tolist()])

# %% [markdown]
# In pairs it is: each copy has less than its original. But alone, 0.07 may be a soft patch, or a sharp one of something
# smooth. Only a threshold is left. Choose the best one for the training photographs, and test it on these held-out ones:

# %%
crops = image_dataset("photos", 64)
training, choices = torch.stack([crops[index] for index in range(256)]), torch.linspace(0, 0.25, 251)[:, None]
right = (edges(training) > choices).sum(1) + (edges(soften(training, 2)) <= choices).sum(1)
threshold = choices[right.argmax()]
alone = ((edges(sharp) > threshold).float().mean() + (edges(soft) <= threshold).float().mean()) / 2
print(f"in pairs {(edges(sharp) > edges(soft)).float().mean():.0%} right, alone {alone:.0%}")

# %% [markdown]
# Four of five. But the rule has a worse fault: it is *fixed*. Add grain to the soft patches, which makes them no sharper:

# %%
grain = 0.04 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
candidates = {"sharp": sharp, "soft": soft, "soft, with grain": soft + grain}
for name, images in candidates.items():
    print(f"{(edges(images) > threshold).float().mean():4.0%} of {name} pass for sharp")

# %%
show(
    side_by_side({name: images[0].clamp(-1, 1) for name, images in candidates.items()}),
    alt="One patch three times: sharp, soft, and soft under fine coloured grain, which the threshold takes for sharp.",
    format="jpeg",
)

# %% [markdown]
# Grain passes more often than sharpness. Any fixed measure can be cheated. So let D *learn*, and continue to
# learn while the autoencoder, its *generator*, tries to satisfy it (Goodfellow et al. 2014). Layout and colours are
# left to the other losses. Texture is missing, and texture is local: small patches are enough (Isola et al. 2017, section 3.2.2).

# %% [markdown]
# ## 2. One logit for each patch
#
# Convolutions alone judge all patches at once. Each value of the last feature map is a *logit* for the patch that it sees: above
# zero for real.

# %%
show_diagram("patchgan")

# %%
side = 256
for stride in (2, 2, 2, 1, 1):
    side = (side + 2 - 4) // stride + 1
    print(f"stride {stride}: {side}")

# %% [markdown]
# With stride 1 a row loses one pixel: three by the kernel, less two of padding.
#
# *BatchNorm* takes mean and variance of a channel over the *whole batch*, unlike GroupNorm (notebook 03). The convolutions before
# it need no bias. Add 100 to every value before the norm:

# %%
torch.manual_seed(0)
x, norm = torch.randn(4, 8, 6, 6), nn.BatchNorm2d(8)
print("max |Δ| < 1e-4:", bool((norm(x + 100) - norm(x)).abs().max() < 1e-4))

# %% [markdown]
# {{exercise 07.1}}
#
# All convolutions are 4×4 with `padding=1`, all activations LeakyReLU(0.2).
#
# * first: a convolution with bias, stride 2, `num_filters` wide; an activation;
# * then, `num_layers` times: a convolution without bias, BatchNorm, an activation. The widths are 2, 4, 8, 8, 8, … times
#   `num_filters`, the strides 2, but 1 in the last of these;
# * at the end: a convolution with bias, stride 1, one channel.
#
# (`hint("07.1")` helps, `solution("07.1")` shows the finished code.)


# %%
class NLayerDiscriminator(nn.Module):
    """Images (B, C, H, W) -> logits (B, 1, h, w), one per patch: above zero where it looks real."""

    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        # BEGIN SOLUTION
        layers = [nn.Conv2d(in_channels, num_filters, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = num_filters
        for number in range(1, num_layers + 1):
            before, width = width, num_filters * min(2**number, 8)
            stride = 2 if number < num_layers else 1
            convolution = nn.Conv2d(before, width, 4, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        # SKELETON
        #| layers = [...]  # a convolution and its activation
        #| for number in range(1, num_layers + 1):
        #|     layers += [...]  # convolution, norm, activation; which width, which stride?
        #| layers += [...]  # down to one channel
        #| self.main = nn.Sequential(*layers)
        # END SOLUTION

    def forward(self, images):
        # BEGIN SOLUTION
        return self.main(images)
        # SKELETON
        #| return ...
        # END SOLUTION


NLayerDiscriminator = check("07.1", NLayerDiscriminator)

# %% [markdown]
# Row by row. Three quarters of the parameters are in one convolution, from 256 to 512 channels:

# %%
discriminator, x = NLayerDiscriminator(), torch.zeros(1, 3, 256, 256)
for layer in discriminator.main:
    x, count = layer(x), sum(p.numel() for p in layer.parameters())
    if count:
        print(f"{type(layer).__name__:12} {x.shape[1]:4} × {x.shape[2]:3} × {x.shape[3]:3}   {count:9,} parameters")
print(f"{sum(p.numel() for p in discriminator.parameters()):,} in all")

# %%
theirs = finished.NLayerDiscriminator()
discriminator.load_state_dict(theirs.state_dict())
pair = torch.stack([photos["coffee"][:, :256, :256], photos["chelsea"][:, :256, 100:356]])
with torch.no_grad():
    close = bool((discriminator(pair) - theirs(pair)).abs().max() < 1e-5)
print(f"{whose('07.1', NLayerDiscriminator)} class and the package's, with the same weights: max |Δ| < 1e-5: {close}")

# %% [markdown]
# {{exercise 07.2}}
#
# How many pixels in a row does one logit see? Walk back from it: n neighbours after a convolution with kernel k and stride s see
# k + (n - 1) · s of the map before it. Begin with n = 1, the logit itself.


# %%
def receptive_field(num_layers):
    """The side in pixels of the patch that one logit of NLayerDiscriminator(num_layers=num_layers) sees."""
    # BEGIN SOLUTION
    strides = [2] * num_layers + [1, 1]
    side = 1
    for stride in reversed(strides):
        side = 4 + (side - 1) * stride
    return side
    # SKELETON
    #| strides = ...  # of all convolutions, from the image to the logits
    #| side = ...     # one logit, then back through all of them
    #| return side
    # END SOLUTION


receptive_field = check("07.2", receptive_field)

# %%
print({num_layers: receptive_field(num_layers) for num_layers in range(1, 6)})

# %% [markdown]
# For three layers 70: the "70×70 PatchGAN" (Isola et al. 2017, appendix 6.1.2). Measure it by the gradient of one logit
# of the first of two photographs. In eval mode BatchNorm's mean and variance are fixed; in train mode they come from the batch.
# Which pixels will have a gradient in each mode?

# %%
by_mode = {}
for mode in ("eval", "train"):
    x = pair.clone().requires_grad_()
    discriminator.train(mode == "train")(x)[0, 0, 15, 15].backward()  # the logit in the middle of the first picture
    by_mode[mode] = x.grad.abs().sum(1)
    own, other = (picture.count_nonzero() for picture in by_mode[mode])
    print(f"{mode:5} mode: {own:6} pixels of its own picture, {other:6} of the other")
assert by_mode["eval"].count_nonzero() == receptive_field(3) ** 2

# %%
relative = {mode: (gradient / gradient.max()).clamp(min=1e-5).log10() for mode, gradient in by_mode.items()}
fields = {
    "eval mode": relative["eval"][0],
    "train mode": relative["train"][0],
    "the other picture": relative["train"][1],
}
show(
    maps(fields, label="log10, relative", size=(9, 2.9)),
    alt="Gradient of one logit at every pixel. In eval mode it is zero (dark) outside the patch of 70 pixels. In train mode it is small but not zero everywhere, in the other picture of the batch as well.",
)

# %% [markdown]
# In eval mode exactly 70² = 4,900. In train mode *every pixel of every picture in the batch*: through the batch's mean and variance
# each logit depends on all of them. D is trained in train mode.

# %% [markdown]
# ## 3. The discriminator's two losses
#
# D should give high logits to images and low ones to reconstructions. For an image, *hinge* costs max(0, 1 − logit). *Vanilla* is the
# cross-entropy −log p with p = sigmoid(logit), which equals softplus(−logit); softplus(x) = log(1 + eˣ). For a reconstruction the logit
# changes its sign: −log(1 − p) = softplus(logit). Which of the two costs reaches zero?

# %%
logits, high = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]), torch.tensor(20.0)
print("hinge of an image  ", [round(cost, 2) for cost in F.relu(1 - logits).tolist()])
print("vanilla of an image", [round(cost, 2) for cost in F.softplus(-logits).tolist()])
print(f"a reconstruction with logit 20: −log(1 − p) {-(1 - high.sigmoid()).log():.3g}, softplus {F.softplus(high):.3g}")

# %% [markdown]
# Hinge, from 1 on, its *margin*. The last line shows why vanilla needs softplus and raw logits: in float32 sigmoid(20) *is* 1,
# and log 0 is infinite.

# %% [markdown]
# {{exercise 07.3}}
#
# Write both, for D's logits as they are. Each mean is over its own logits, and there may be more of one kind.
#
# $$\tfrac12\,\mathbb E\max(0, 1 - D(x)) + \tfrac12\,\mathbb E\max(0, 1 + D(\hat x)) \qquad
# \tfrac12\,\mathbb E\,\mathrm{softplus}(-D(x)) + \tfrac12\,\mathbb E\,\mathrm{softplus}(D(\hat x))$$


# %%
def discriminator_loss(logits_real, logits_fake, kind):
    """Logits of images and of reconstructions -> the loss of the discriminator ("hinge" or "vanilla"), a scalar."""
    # BEGIN SOLUTION
    if kind == "hinge":
        real, fake = F.relu(1 - logits_real), F.relu(1 + logits_fake)
    else:
        real, fake = F.softplus(-logits_real), F.softplus(logits_fake)
    return 0.5 * (real.mean() + fake.mean())
    # SKELETON
    #| if kind == "hinge":
    #|     real, fake = ..., ...  # the cost of every logit
    #| else:
    #|     real, fake = ..., ...
    #| return ...
    # END SOLUTION


discriminator_loss = check("07.3", discriminator_loss)

# %% [markdown]
# The loss of a D that gives the same logit to everything, from −2 to 2. Then of one that is wrong about one of two
# reconstructions:

# %%
for kind in ("hinge", "vanilla"):
    everywhere = [torch.full((1, 1, 30, 30), logit) for logit in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    print(f"{kind:7}", [round(discriminator_loss(same, same, kind).item(), 2) for same in everywhere])
real, fake = torch.tensor([2.0, 2.0]), torch.tensor([-5.0, 3.0])
print(f"hinge   {discriminator_loss(real, fake, 'hinge'):.2f}, mean logits {real.mean():.0f} and {fake.mean():.0f}")

# %% [markdown]
# Undecided: 1 for any logit within hinge's margins, log 2 = 0.69 or more for vanilla. But the last D also has a loss
# of 1.00, and its mean logits are 3 apart. The loss alone does not say whether D can tell the two apart.
#
# The generator minimises −log sigmoid D(x̂) in the textbook, −D(x̂) in CompVis' code (`contperceptual.py`) and
# here. The slopes:

# %%
logits = torch.linspace(-4, 4, 161).requires_grad_()
costs = {
    "D: hinge of a reconstruction": F.relu(1 + logits),
    "D: vanilla of a reconstruction": F.softplus(logits),
    "generator: −logit": -logits,
    "textbook: −log sigmoid": F.softplus(-logits),
}
slopes = {name: torch.autograd.grad(cost.sum(), logits)[0] for name, cost in costs.items()}
dashed = ["D: vanilla of a reconstruction", "textbook: −log sigmoid"]
fig = lines(slopes, logits.detach(), xlabel="logit of a reconstruction", ylabel="slope", dashed=dashed, size=(9, 3))
fig.axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
show(
    fig,
    alt="Slopes over the logit of a reconstruction. Hinge's is 0 below −1 and 1 above it; vanilla's rises smoothly. The textbook's generator slope fades to 0 for high logits; −logit has the slope −1 everywhere.",
)
assert slopes["D: hinge of a reconstruction"][logits < -1].eq(0).all() and slopes["generator: −logit"].eq(-1).all()

# %% [markdown]
# Below −1 hinge has no slope: D stops learning from patches of which it is sure. −D(x̂) always has the same slope and
# no lower limit, so its value alone says nothing. Add 3 to all logits:

# %%
real, fake = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 0.0])
for shift in (0.0, 3.0):
    gap = (real.mean() - fake.mean()).item()
    print(f"generator's term {adversarial_loss(fake + shift):5.1f}   gap of the mean logits {gap:.1f}")

# %% [markdown]
# The reconstructions are as far from the images as before. In a log, read `logits_real`, `logits_fake`, and the *gap* between them.

# %% [markdown]
# ## 4. BatchNorm lets D judge the batch
#
# If images and reconstructions go through D in two calls, BatchNorm lets D recognise the *batch* instead of the patch, and its loss
# falls to nearly zero. Two calls are right all the same, because of the generator's step.
#
# Three small discriminators learn to tell crops from the same crops at a quarter of the resolution: in two calls; with both kinds *mixed* in one batch; in two calls without BatchNorm.

# %%
STEPS = 80
batches = torch.stack([crops[index] for index in range(16 * STEPS)]).chunk(STEPS)


def initialise(layer):  # as in pix2pix (Isola et al. 2017, appendix 6.2) and CompVis' code
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    if isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


# %%
def train(mixed, norm=True):
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_filters=16, num_layers=2).apply(initialise)
    if not norm:
        network.main = nn.Sequential(*(layer for layer in network.main if not isinstance(layer, nn.BatchNorm2d)))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.9))
    curve = []
    for step, real in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / STEPS)
        fake = soften(real, 4)
        logits = network(torch.cat([real, fake])).chunk(2) if mixed else (network(real), network(fake))
        loss = discriminator_loss(*logits, "hinge")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return network, curve


trained = {"in two calls": train(mixed=False), "mixed": train(mixed=True)}
curves = {name: curve for name, (_, curve) in trained.items()} | {"without BatchNorm": train(False, norm=False)[1]}

# %% [markdown]
# All begin undecided, at 1. Which one will have the lowest loss after 80 steps?

# %%
show(
    lines(curves, xlabel="step", ylabel="hinge loss", dashed=("mixed",), size=(6, 3)),
    alt="Loss of the three discriminators. In two calls it falls to nearly 0. Mixed it is lower at first and then stays well above. Without BatchNorm it falls least.",
)
in_two, mixed, none = (sum(curve[-10:]) for curve in curves.values())
assert in_two < 1 < mixed < 6 < none

# %% [markdown]
# In two calls, by far. Without the norm it hardly learns in this time.
#
# Now give each D one held-out patch, sharp or soft, among fifteen others, all sharp or all soft:


# %%
@torch.no_grad()
def mean_logit(network, patches, company):
    logits = [network(torch.cat([patch[None], company]))[0].mean() for patch in patches]
    return torch.stack(logits).mean().item()


kinds = {"sharp": sharp[:31], "soft": soften(sharp[:31], 4)}
logit_of = {
    name: {patch: [mean_logit(network, kinds[patch][:16], kinds[company][16:]) for company in kinds] for patch in kinds}
    for name, (network, _) in trained.items()
}

# %%
fig, axes = figure(1, 2, size=(9, 3))
for ax, (name, by_patch) in zip(axes, logit_of.items(), strict=True):
    for (patch, values), color, line in zip(by_patch.items(), (BLUE, ORANGE), ("o-", "s--"), strict=True):
        ax.plot(["among sharp ones", "among soft ones"], values, line, color=color, label=f"a {patch} patch")
    ax.axhline(0, color=GREY, linestyle=":")
    ax.margins(x=0.3)
    ax.set(title=f"trained {name}", ylabel="mean logit of the patch")
axes[1].legend(loc="upper left")
show(
    fig,
    alt="Left, trained in two calls: among sharp patches a soft patch gets the same logit as a sharp one; among soft patches it gets a negative one, and a sharp one is little above 0. Right, trained mixed: the soft patch is below the sharp one in either company, but both are higher among soft patches.",
)
first, second = ([*by_patch["sharp"], *by_patch["soft"]] for by_patch in logit_of.values())
assert first[0] - first[2] < 0.5 and first[2] > 0.8 and first[3] < -0.8 and abs(first[1]) < 0.8
assert second[0] - second[2] > 2 and second[1] - second[3] > 4 and -2 < second[0] - second[3] < 0.5 < second[3]

# %% [markdown]
# The first D judges above all the *batch*: a soft patch among sharp ones counts as real, among soft ones as fake. A sharp patch
# among soft ones stays a little above 0. The mixed D tells patches apart in any batch, but only relative to it: soft
# among soft gets no less than sharp among sharp.
#
# Mixing is no cure: in the generator's step D gets reconstructions only, and the mixed D takes these for real. D must be trained
# on the kind of batch that it will later judge, so CompVis and this package call it twice.

# %% [markdown]
# ## 5. The weight λ of the adversarial loss
#
# The autoencoder now minimises the reconstruction loss (*nll*, notebook 06) and −mean D(x̂). Compare their gradients at the
# last layer, whose output is the picture, for an untrained autoencoder. Which one is larger?

# %%
WEIGHTS = "untrained"  # "auto" downloads VGG16's, 528 MB
perceptual = LPIPS(WEIGHTS)
vae = AutoencoderKL.from_preset("mini", seed=0)
weight = vae.decoder.conv_out.weight
torch.manual_seed(0)
judge = finished.NLayerDiscriminator()


def both_losses(side):
    images = pair[:, :, 96 : 96 + side, 96 : 96 + side]
    reconstruction = vae(images).sample
    nll = reconstruction_loss(reconstruction, images, perceptual(reconstruction, images))["nll"]
    return reconstruction, nll, adversarial_loss(judge(reconstruction))


def at_last_layer(loss):
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]  # retain_graph: the graph is used again


# %%
reconstruction, nll, adversarial = both_losses(64)
nll_gradient, adversarial_gradient = at_last_layer(nll), at_last_layer(adversarial)
print(f"‖∇ nll‖ {nll_gradient.norm():.1e}, ‖∇ adversarial‖ {adversarial_gradient.norm():.1e}", end=", ")
print(f"ratio {nll_gradient.norm() / adversarial_gradient.norm():.1e}")

# %% [markdown]
# The nll's, several thousand times. The ratio depends on the training and on the picture's size. So Esser et al. 2021 (eq. 7)
# measure it in every step, at the last layer's weight w; CompVis clamps it:
#
# $$\lambda = \min\left(\frac{\lVert\nabla_w\,\mathrm{nll}\rVert}{\lVert\nabla_w\,\mathrm{adversarial}\rVert + 10^{-4}},\; 10^4\right)$$
#
# KL-f8's configuration then halves it (`disc_weight: 0.5` in `autoencoder_kl_32x32x4.yaml`). The adversarial term of the loss is
# **½λ** · (−mean D(x̂)).

# %% [markdown]
# {{exercise 07.4}}
#
# Write λ, without the ½. The result is a tensor without axes (`.item()` would stop every step until the device has answered) and without a
# gradient.


# %%
def adaptive_weight(nll_gradient, adversarial_gradient, limit=1e4):
    """Both gradients at the last layer's weight -> the factor that gives the second the norm of the first: a scalar."""
    # BEGIN SOLUTION
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(max=limit).detach()
    # SKELETON
    #| ratio = ...  # of two norms
    #| return ...   # at most limit, without a gradient
    # END SOLUTION


adaptive_weight = check("07.4", adaptive_weight)

# %% [markdown]
# Multiply the adversarial loss by λ, and take its gradient again:

# %%
factor = adaptive_weight(nll_gradient, adversarial_gradient)
weighted = at_last_layer(factor * adversarial)
print(f"‖∇ nll‖ {nll_gradient.norm():.1e}, ‖∇ λ · adversarial‖ {weighted.norm():.1e}")
assert torch.allclose(nll_gradient.norm(), weighted.norm(), rtol=1e-3)

# %% [markdown]
# The norms are equal. The clamp acts where the adversarial gradient is more than 10⁴ times smaller than the nll's.
#
# CompVis sums over a picture's values ("sum"). Divided by their number C·H·W ("mean"), nll and λ are smaller, and the limit must be
# divided, too:

# %%
for side in (64, 96, 160):
    values, (nll_pull, adversarial_pull) = 3 * side**2, [at_last_layer(loss) for loss in both_losses(side)[1:]]
    print(f"{side:3} pixels: ‖∇ nll‖ {nll_pull.norm():.1e} as a sum, ‖∇ adversarial‖ {adversarial_pull.norm():.1f}")
    for reduction, pull, limits in [("sum", nll_pull, [1e4]), ("mean", nll_pull / values, [1e4, 1e4 / values])]:
        raw = adaptive_weight(pull, adversarial_pull, limit=float("inf")).item()
        left = ", ".join(f"{limit:.2g} leaves {min(1, limit / raw):.0%}" for limit in limits)
        print(f"    {reduction:4}: λ {raw:7.2g}; a limit of {left}")

# %% [markdown]
# Under "sum" the nll's gradient grows with the picture and the adversarial one shrinks, so λ grows, and from 96 pixels on the clamp
# acts. Under "mean" λ stays near 1, and an unconverted 10⁴ does not act. The package converts the limit (`klvae_edu/training/steps.py`).

# %% [markdown]
# ## 6. Gradients that leak between the networks
#
# D's loss needs reconstructions, and their graph leads back into the autoencoder. After D's `backward`, which of the two networks has
# a gradient?


# %%
def gradient_norm(network):
    found = [parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None]
    return torch.stack(found).norm().item() if found else 0.0


both = nn.ModuleList([vae, judge])  # to clear all gradients at once

# %%
images = pair[:, :, 96:160, 96:160]
both.zero_grad()
discriminator_loss(judge(images), judge(vae(images).sample), "hinge").backward()
own = gradient_norm(judge)
print(f"after D's backward: D {own:.0f}, autoencoder {gradient_norm(vae):.0f}")
both.zero_grad()
reconstruction, nll, adversarial = both_losses(64)
(nll + 0.5 * factor * adversarial).backward()
print(f"after the autoencoder's: D {gradient_norm(judge):.0e}, {gradient_norm(judge) / own:.0e} times its own gradient")

# %% [markdown]
# Both, each time. D's `backward` leaves a gradient in the autoencoder that makes D's task *easier*. The autoencoder's leaves
# one in D that makes reconstructions look *real* to it, some ten thousand times its own, because ½λ is in it. If they are not
# cleared, they enter the next step.
#
# Train section 4's D with such a leak, with ½λ from "sum" and from "mean":


# %%
def forty_steps(leak):
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_filters=16, num_layers=2).apply(initialise)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.9))
    log = []
    for step, images in enumerate(batches[:40]):
        fakes = soften(images, 4)
        (leak * adversarial_loss(network(fakes))).backward()  # the generator's step
        real, fake = network(images), network(fakes)
        loss = discriminator_loss(real, fake, "hinge")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # too late
        means = {"logits_real": real.mean().item(), "logits_fake": fake.mean().item()}
        log.append({"step": step, "disc_loss": loss.item(), **means})
    return log


leaks = {"no leak": 0.0, "leak under “sum”": 0.5 * factor, "leak under “mean”": 0.5 * factor / (3 * 64**2)}
logs = {name: forty_steps(leak) for name, leak in leaks.items()}

# %%
fig, axes = figure(1, 2, size=(9, 3))
loss_of = {name: [record["disc_loss"] for record in log] for name, log in logs.items()}
gap_of = {name: [record["logits_real"] - record["logits_fake"] for record in log] for name, log in logs.items()}
for ax, curves in zip(axes, (loss_of, gap_of), strict=True):
    for (name, curve), line in zip(curves.items(), ("-", "--", "-."), strict=True):
        ax.plot(curve, line, label=name)
axes[0].set(xlabel="step", title="hinge loss", ylim=(0, 4))
axes[1].set(xlabel="step", title="gap of the mean logits")
axes[1].legend()
show(
    fig,
    alt="Without a leak the loss falls below 1 and the gap opens. With the leak under “sum” the loss rises far above 1, under “mean” it stays at 1; in neither does the gap open.",
)
(clean, by_sum, by_mean), (opened, shut, closed) = loss_of.values(), gap_of.values()
assert sum(clean[-10:]) < 7 and min(by_sum[-10:]) > 2 and all(abs(loss - 1) < 0.2 for loss in by_mean)
assert min(opened[-10:]) > 0.5 and max(*shut, *closed) < 0.1
assert min(logs["leak under “sum”"][-1][name] for name in ("logits_real", "logits_fake")) > 1

# %% [markdown]
# No error is raised. Under "sum" the loss shows the leak; under "mean" it stays at 1, as if D could not decide. (diffusers' example
# `train_autoencoderkl.py`, commit e276f08, has both leaks.) Three safeguards:
#
# * **detach** the reconstructions in D's step: nothing flows into the autoencoder;
# * **freeze** D in the autoencoder's step, `requires_grad_(False)`: gradients pass through, none stay;
# * **zero_grad** *before* each `backward` removes what another step has left. Alone it stops both leaks.

# %% [markdown]
# {{exercise 07.5}}
#
# Write one step of the discriminator, with the hinge loss and your `discriminator_loss`. Call the discriminator twice, once on the
# images and once on the reconstructions. No gradient may reach the autoencoder. The returned loss may keep its graph.


# %%
def discriminator_step(discriminator, optimizer, images, reconstructions):
    """One update of the discriminator with the hinge loss, which is returned. Nothing flows back further."""
    # BEGIN SOLUTION
    logits_real = discriminator(images)
    logits_fake = discriminator(reconstructions.detach())
    loss = discriminator_loss(logits_real, logits_fake, "hinge")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
    # SKELETON
    #| logits_real = ...
    #| logits_fake = ...
    #| loss = ...
    #| ...  # three calls, in which order?
    #| return ...
    # END SOLUTION


discriminator_step = check("07.5", discriminator_step)

# %%
both.zero_grad()
judge.requires_grad_(False)  # the generator's step: D is frozen
adversarial_loss(judge(vae(images).sample)).backward()
judge.requires_grad_(True)
print("after the generator's:     autoencoder", gradient_norm(vae) > 0, " D", gradient_norm(judge) > 0)
both.zero_grad()
optimizer = torch.optim.Adam(judge.parameters(), lr=1e-4, betas=(0.5, 0.9))
discriminator_step(judge, optimizer, images, vae(images).sample)
print("after the discriminator's: autoencoder", gradient_norm(vae) > 0, "D", gradient_norm(judge) > 0)

# %% [markdown]
# Each step leaves gradients in its own network only. Test this first in any loop.

# %% [markdown]
# ## 7. What the log tells you
#
# `klvae diagnose RUN` reads the log of a training and names what went wrong. What does it say about the logs of section 6?

# %%
for name, log in logs.items():
    findings = [f"{finding.name}. {finding.evidence.split(':')[0]}" for finding in diagnose(TrainingConfig(), log)]
    print(f"{name}:", *findings or ["nothing found"])

# %% [markdown]
# "Died" is said of every discriminator that is no better than a guess at the end, whether it has learned before or, as with these
# leaks, never. The usual failures:
#
# | in the log | cause | test |
# | --- | --- | --- |
# | `disc_loss` stays at 1 (vanilla: 0.69), both mean logits are alike | D learns nothing, broke down, or suffers from a leak | train a copy on section 4's easy fakes: if its gap opens, look at the loop |
# | `disc_loss` above 1.5, both mean logits rise | a leak into D | see which network has a gradient after each `backward` |
# | `disc_loss` goes to 0, the logits stay far apart | D wins | lower `--disc-lr`: the logits should come nearer |
# | `clamped`, the share of batches whose λ was limited, is 1 in most steps | the adversarial gradient has almost vanished beside the nll's | print both norms at the last layer |
# | after D's start `psnr` falls by 2 dB or more for good | its share is too large | resume from a checkpoint before the start, with a smaller `--disc-weight`: `psnr` should fall less |
#
# Usual are a loss near 1 in the first steps, a pixel loss that rises a little at D's start, and a λ that changes by a factor of two
# from step to step.

# %% [markdown]
# ## Going further: where the threshold fails (optional)
#
# Section 1's threshold is wrong for one patch in five. The distributions show for which:

# %%
fig, ax = figure(size=(6, 2.8))
bins = torch.linspace(0, 0.3, 31).tolist()
ax.hist(edges(sharp), bins, color=BLUE, alpha=0.4, label="sharp")
ax.hist(edges(soft), bins, histtype="step", linewidth=2, color=ORANGE, label="soft")
ax.axvline(threshold.item(), color="black", linestyle="--", label="threshold")
ax.set(xlabel="mean difference of neighbours", ylabel="patches")
ax.legend()
show(
    fig,
    alt="Histograms of sharp and soft patches. Nearly all soft patches are below the threshold of 0.09; sharp ones lie on both sides, because photographs have smooth places.",
)
assert (edges(sharp) <= threshold).sum() > 2 * (edges(soft) > threshold).sum()

# %% [markdown]
# ## Going further: both discriminators on one photograph (optional)
#
# Make the right half of a photograph soft, and give it to section 4's discriminators. It is the whole batch, so this batch is mixed:

# %%
cup = photos["coffee"][:, :, :448]
half = cup.clone()
half[:, :, 224:] = soften(cup[None], 4)[0, :, :, 224:]
with torch.no_grad():
    logits_of = {name: network(half[None])[0, 0] for name, (network, _) in trained.items()}
sides = {name: (logits[:, :27].mean().item(), logits[:, -27:].mean().item()) for name, logits in logits_of.items()}

# %%
fig, axes = figure(1, 3, size=(10, 3.2))
axes[0].imshow((half.permute(1, 2, 0) + 1) / 2)
axes[0].set_title("the right half is soft")
for ax, (name, logits) in zip(axes[1:], logits_of.items(), strict=True):
    edge = (3.5, 4 * logits.shape[1] + 3.5, 4 * logits.shape[0] + 3.5, 3.5)  # 4 pixels for each logit
    image = ax.imshow(logits, cmap="PuOr", vmin=-4, vmax=4, extent=edge)
    ax.set(title=f"trained {name}", xlim=(0, 448), ylim=(400, 0))
for ax in axes:
    ax.axvline(224, color="black", linestyle="--", linewidth=1)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
fig.colorbar(image, ax=axes, label="logit: real above 0", shrink=0.8)
show(
    fig,
    alt="A cup, its right half soft, and the logits of both discriminators; violet is real, orange is fake. The D trained in two calls calls both halves real. The D trained mixed calls texture and edges on the left real, and the right half fake.",
    format="jpeg",
)
assert min(sides["in two calls"]) > 0 and sides["mixed"][0] > 1 and sides["mixed"][1] < -1

# %% [markdown]
# The mixed D finds the soft half, but also calls sharp, smooth places fake, such as the saucer. The other D calls both halves real:
# it was never trained on a batch that holds both kinds.

# %% [markdown]
# ## Going further: how much comes from outside of the patch (optional)
#
# In train mode each pixel outside of the 70 × 70 patch has a small gradient (section 2), but there are many of them:

# %%
total = by_mode["train"].sum()
print(f"within the patch {by_mode['train'][0, 97:167, 97:167].sum() / total:.0%}", end=", ")
print(f"in the other picture {by_mode['train'][1].sum() / total:.0%} of the gradient")

# %% [markdown]
# ## Going further: when the adversarial gradient vanishes (optional)
#
# Scale the adversarial gradient of section 5 to smaller and smaller norms. Its weighted norm, in parts of the nll's, without the clamp
# and with it:

# %%
for size in (1.0, 1e-3, 1e-4, 1e-6):
    faint = size * adversarial_gradient / adversarial_gradient.norm()
    weights = [adaptive_weight(nll_gradient, faint, limit) for limit in (float("inf"), 1e4)]
    parts = [f"{(w * faint.norm() / nll_gradient.norm()).item():.2g}" for w in weights]
    print(f"norm {size:5g}: {parts[0]} without a clamp, {parts[1]} clamped")

# %% [markdown]
# Without the clamp a gradient of norm 10⁻³ still gets nine tenths of the nll's norm, whatever its direction. The 10⁻⁴ in the denominator
# limits λ only near 10⁻⁴, where it halves it, and below. The clamp acts much earlier.

# %% [markdown]
# ## Going further: λ at half the cost (optional)
#
# As written in section 5, each loss is differentiated twice: once for λ, once in `backward`. One pass through LPIPS and D is enough:
# take both gradients at the reconstruction. From there to the last layer's weight it is one convolution.

# %%
reconstruction, *terms = both_losses(64)
at_picture = [torch.autograd.grad(loss, reconstruction, retain_graph=True)[0] for loss in terms]
for ours, loss in zip(losses.last_layer_gradients(reconstruction, weight, at_picture), terms, strict=True):
    theirs = at_last_layer(loss)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()

# %% [markdown]
# Both are the same as before, to a thousandth of their norm. The package's `last_layer_gradients` computes the second half of this chain
# rule. The gradients *at the picture* can be kept: in notebook [08](08_training_loop.ipynb) their weighted sum goes back through the
# autoencoder in a single pass.

# %% [markdown]
# ## Going further: a frozen BatchNorm still changes (optional)
#
# Freezing D stops its weights. BatchNorm's running mean is no weight:

# %%
before = judge.main[3].running_mean.clone()
judge.requires_grad_(False)
judge(vae(images).sample)
judge.requires_grad_(True)
print("the running mean has changed:", not torch.equal(before, judge.main[3].running_mean))

# %% [markdown]
# It does no harm here: D stays in train mode, where the running mean is not used.

# %% [markdown]
# ## Summary
#
# 1. A discriminator judges without the original. It learns, because any fixed measure can be cheated.
# 2. Five convolutions, 30 × 30 logits of 70 × 70 pixels each, 2,765,633 parameters; in train mode every logit sees the whole batch.
# 3. Hinge and vanilla take raw logits; undecided they are 1 and log 2. The generator minimises −mean D(x̂).
# 4. In two calls D can judge the batch; the generator's step, with reconstructions only, requires them all the same.
# 5. λ gives both gradients the same norm at the last layer; detach, freeze and zero_grad keep the two networks apart.
#
# ### Check yourself
#
# <details><summary>The hinge loss has been 1.00 for a thousand steps. Has D reached a balance with the autoencoder?</summary>
#
# The loss alone cannot say. If the gap of the mean logits is open, D tells them apart (section 3). If not, follow the first row of
# section 7's table.
# </details>
#
# <details><summary>You go from crops of 256 to 512 pixels, with sums over the picture. What happens to λ and to the clamp?</summary>
#
# The nll's gradient grows, the adversarial one shrinks (section 5). λ grows, and the clamp acts more often.
# </details>
#
# <details><summary>Somebody sends both kinds through D in one batch. The loss rises. Is the code wrong?</summary>
#
# Both kinds now have the same batch statistics, and in the generator's step D takes fakes for real (section 4).
# </details>
#
# **Next:** [08](08_training_loop.ipynb), the training loop, with a late start for the discriminator.
