# %% [markdown]
# # 07 · PatchGAN: is this patch real?
#
# {{badge}}
#
# Every loss so far compares a reconstruction with its original. Here you build a judge who never sees the original: a small
# network that learns to tell photographs from reconstructions, patch by patch. Then you find out how loudly it may speak, and how
# it spoils a training when nobody watches.
#
# **You will be able to**
#
# * build the discriminator of Stable Diffusion's autoencoder, and measure which pixels one of its logits sees;
# * write both of its losses on raw logits, and say what the generator minimises instead;
# * explain what BatchNorm tells a discriminator that no patch does;
# * balance two losses at one layer, and say when the clamp acts;
# * run the discriminator's step without leaving a trace in the autoencoder.
#
# **You need** the receptive field of notebook [04](04_resampling_and_attention.ipynb), the reconstruction losses of notebook
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
from klvae_edu.exercises import check, hint, solution
from klvae_edu.losses import adversarial_loss, reconstruction_loss
from klvae_edu.perceptual import LPIPS
from klvae_edu.plots import PALETTE, figure, show, side_by_side

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# ## 1. Can you tell without the original?
#
# Take patches of photographs, and soft copies of them: half the resolution, and back. A feature that should tell them apart is
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
print("sharp", [round(value, 2) for value in edges(sharp[:5]).tolist()])
print("soft ", [round(value, 2) for value in edges(soft[:5]).tolist()])

# %% [markdown]
# In pairs it is easy: each copy has less than its original. But cover the upper line. Is 0.07 a soft patch, or a sharp one of
# something smooth? Without the original only a threshold is left. Take the best one for the *training* photographs:

# %%
crops = image_dataset("photos", 64)
training = torch.stack([crops[index] for index in range(256)])
high, low = edges(training), edges(soften(training, 2))
choices = torch.linspace(0, 0.25, 251)[:, None]
threshold = choices[((high > choices).sum(1) + (low <= choices).sum(1)).argmax()]

# %%
print(f"in pairs {(edges(sharp) > edges(soft)).float().mean():.0%} right")
alone = ((edges(sharp) > threshold).float().mean() + (edges(soft) <= threshold).float().mean()) / 2
print(f"alone {alone:.0%} right, with a threshold of {threshold.item():.2f}")

# %% [markdown]
# Four of five. Where does it go wrong, among the sharp patches or among the soft ones?

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
    alt="Two overlapping histograms: soft patches crowd below the threshold of 0.1, sharp ones spread over both sides.",
)

# %% [markdown]
# Mostly among the sharp ones: photographs have smooth places. And the rule has a worse fault: it is *fixed*, so that whoever knows
# it can please it. How would you get a soft patch past this threshold, without making it any sharper?

# %%
grain = 0.04 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
for name, images in [("sharp", sharp), ("soft", soft), ("soft, with grain", soft + grain)]:
    print(f"{(edges(images) > threshold).float().mean():4.0%} pass for sharp: {name}")

# %%
names = ["sharp", "soft", "soft, with grain"]
show(
    side_by_side({name: x[0].clamp(-1, 1) for name, x in zip(names, (sharp, soft, soft + grain), strict=True)}),
    alt="One patch three times: sharp, soft, and soft under fine coloured grain.",
    format="jpeg",
)

# %% [markdown]
# Grain does it, and it does it better than sharpness. Any fixed measure can be cheated in such a way. So let the judge *learn*, and go
# on learning while the autoencoder tries to please it (Goodfellow et al. 2014): the *discriminator* D, and its opponent, the
# *generator*.

# %% [markdown]
# Should D judge whole pictures? Layout and colours are taken care of already, by the latent and the pixel loss; what is missing is
# texture, and texture is local. Patches much smaller than the picture are enough (Isola et al. 2017, section 3.2.2).

# %% [markdown]
# ## 2. How are all patches judged at once?
#
# By convolutions alone. Each value on the last map is a verdict on what it sees: a *logit*, above zero for real. Five convolutions
# of 4×4 pad by one pixel, with strides 2, 2, 2, 1, 1. What is left of 256 pixels in a row?

# %%
side = 256
for stride in (2, 2, 2, 1, 1):
    side = (side + 2 - 4) // stride + 1
    print(f"stride {stride}: {side}")

# %% [markdown]
# 30 × 30 verdicts on one picture. With stride 1 a 4×4 kernel takes three pixels off a row, and the padding gives two back: each of
# the last two steps loses one.
#
# The middle three convolutions are each followed by BatchNorm, and have no bias. Why not? Add 100 to every value before a
# BatchNorm:

# %%
torch.manual_seed(0)
x, norm = torch.randn(4, 8, 6, 6), nn.BatchNorm2d(8)
print("max |Δ| < 1e-4:", bool((norm(x + 100) - norm(x)).abs().max() < 1e-4))

# %% [markdown]
# The norm subtracts the mean, and the bias with it; then it adds a bias of its own. Unlike GroupNorm (notebook 03), its mean and
# spread are those of a channel over the *whole batch*. Keep this in mind.

# %% [markdown]
# {{exercise 07.1}}
#
# All convolutions are 4×4 with `padding=1`, all activations LeakyReLU(0.2). First: stride 2, `num_filters` wide, no norm. Then
# `num_layers` with BatchNorm: 2, 4, 8, then always 8 times as wide, stride 2, but 1 in the last. At the end: one channel.


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
# (`hint("07.1")` helps you on, `solution("07.1")` shows the finished code.) Row by row, for one picture of 256 pixels a side. Where
# do you expect most of the parameters?

# %%
discriminator = NLayerDiscriminator()
x = torch.zeros(1, 3, 256, 256)
for layer in discriminator.main:
    x, count = layer(x), sum(p.numel() for p in layer.parameters())
    if count:
        print(f"{type(layer).__name__:12} {x.shape[1]:4} × {x.shape[2]:3} × {x.shape[3]:3}   {count:9,} parameters")
print(f"{sum(p.numel() for p in discriminator.parameters()):,} in all")

# %% [markdown]
# Three quarters sit in one convolution, from 256 to 512 channels. Small beside an autoencoder of 84 million. Is it the same as
# the finished one?

# %%
theirs = finished.NLayerDiscriminator()
discriminator.load_state_dict(theirs.state_dict())
photos = photographs("held-out")
pair = torch.stack([photos["coffee"][:, :256, :256], photos["chelsea"][:, :256, 100:356]])
with torch.no_grad():
    print("max |Δ| < 1e-5:", bool((discriminator(pair) - theirs(pair)).abs().max() < 1e-5))

# %% [markdown]
# One thing is left, how it begins. pix2pix, and CompVis after it, draw all weights with a spread of 0.02 (Isola et al. 2017, appendix
# 6.2); the finished one does so by itself, and yours will in section 4.


# %%
def initialise(layer):
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    if isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


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
# 70 for three: the "70×70 PatchGAN" (Isola et al. 2017, appendix 6.1.2). Now measure it: which pixels of the two photographs move the logit in
# the middle, (15, 15) of the first? At first in eval mode, where BatchNorm's mean and spread are fixed numbers.


# %%
def what_one_logit_sees():
    x = pair.clone().requires_grad_()
    discriminator(x)[0, 0, 15, 15].backward()
    return x.grad.abs().sum(1)


# %%
by_mode = {}
for mode in ("eval", "train"):
    discriminator.train(mode == "train")
    by_mode[mode] = what_one_logit_sees()
    own, other = (picture.count_nonzero() for picture in by_mode[mode])
    print(f"{mode:5} mode: {own:6} pixels of its own picture, {other:6} of the other")
assert by_mode["eval"].count_nonzero() == receptive_field(3) ** 2

# %% [markdown]
# In eval mode exactly 70² = 4,900. In train mode *every pixel of every picture in the batch*: through the batch's mean and spread,
# each verdict depends on the company. How much of it? Each mode in parts of its own largest gradient:

# %%
relative = {mode: gradient / gradient.max() for mode, gradient in by_mode.items()}
panels = {
    "eval mode": relative["eval"][0],
    "train mode": relative["train"][0],
    "train mode, the other picture": relative["train"][1],
}
fig, axes = figure(1, 3, size=(9, 3.2))
for ax, (title, gradient) in zip(axes, panels.items(), strict=True):
    strength = gradient.log10().where(gradient > 0, torch.nan)
    image = ax.imshow(strength, cmap="viridis", vmin=-5, vmax=0)
    ax.set(title=title, xticks=[0, 97, 166, 255], yticks=[0, 97, 166, 255])
    ax.grid(False)
fig.colorbar(image, ax=axes, label="log10, relative", shrink=0.9)
show(
    fig,
    alt="A bright square of 70 pixels on white; the same on a dim floor that fills the picture; the dim floor alone.",
)

# %%
total = by_mode["train"].sum()
print(f"within the patch {by_mode['train'][0, 97:167, 97:167].sum() / total:.0%}", end=", ")
print(f"in the other picture {by_mode['train'][1].sum() / total:.0%} of the gradient")

# %% [markdown]
# The patch is 70 pixels wide, rows 97 to 166. The floor is thin, but wide: a sixth of the gradient lies outside the patch, nearly
# half of that in the other picture. (White is zero.) Training happens in train mode; section 4 shows what D makes of it.

# %% [markdown]
# ## 3. What is a verdict worth?
#
# D is to say high numbers for images and low ones for reconstructions. How much should a logit cost? Five logits of an image, under
# the two usual rules. Which of the two is content at some point?

# %%
logits = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
print("logit  ", logits.tolist())
print("hinge  ", [round(cost, 2) for cost in F.relu(1 - logits).tolist()])
print("vanilla", [round(cost, 2) for cost in F.softplus(-logits).tolist()])

# %% [markdown]
# *Hinge* is: from 1 on, the *margin*, nothing is to be gained. *Vanilla* is the cross-entropy, −log of the probability
# sigmoid(logit). Why is it written with softplus(x) = log(1 + eˣ), the same in algebra? A reconstruction with a logit of 20:

# %%
logit = torch.tensor(20.0)
print(f"−log(1 − sigmoid) {-(1 - logit.sigmoid()).log():.3g}   softplus {F.softplus(logit):.3g}")

# %% [markdown]
# In float32 sigmoid(20) *is* 1, and log 0 is left. So leave the logits raw. For reconstructions, their sign changes:
#
# $$\tfrac12\,\mathbb E\max(0, 1 - D(x)) + \tfrac12\,\mathbb E\max(0, 1 + D(\hat x)) \qquad
# \tfrac12\,\mathbb E\,\mathrm{softplus}(-D(x)) + \tfrac12\,\mathbb E\,\mathrm{softplus}(D(\hat x))$$

# %% [markdown]
# {{exercise 07.3}}
#
# Write both, for D's logits as they are. Each term is the mean over its own, and one may have more of them than the other.


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
# What does a discriminator pay that says the same to everything? Five opinions, from −2 to 2:

# %%
x = torch.randn(2, 1, 5, 5)
for kind in ("hinge", "vanilla"):
    everywhere = [torch.full((1, 1, 30, 30), opinion) for opinion in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    print(f"{kind:7}", [round(discriminator_loss(same, same, kind).item(), 2) for same in everywhere])
    assert torch.allclose(discriminator_loss(x, 1 - x, kind), losses.discriminator_loss(x, 1 - x, kind)["disc_loss"])

# %% [markdown]
# Hinge: 1, for any logit within the margins. Vanilla: log 2 = 0.69, or more. A loss that stays there tells nothing apart; whether D
# *cannot*, or there is nothing *to* tell, it does not say.

# %% [markdown]
# Now the other player, the generator. In the textbook it minimises −log sigmoid D(x̂). CompVis'
# code has −D(x̂) for both kinds (`contperceptual.py`), and so has this course. Where do the two differ? Look at costs and slopes:

# %%
logits = torch.linspace(-4, 4, 161).requires_grad_()
curves = {
    "hinge, of a fake": (F.relu(1 + logits), BLUE, "-"),
    "vanilla, of a fake": (F.softplus(logits), ORANGE, "--"),
    "generator: −logit": (-logits, GREEN, "-."),
    "textbook: −log sigmoid": (F.softplus(-logits), "black", ":"),
}
slopes = {name: torch.autograd.grad(curve.sum(), logits)[0] for name, (curve, _, _) in curves.items()}

# %%
fig, axes = figure(1, 2, size=(9, 3.2))
for name, (curve, color, line) in curves.items():
    axes[0].plot(logits.detach(), curve.detach(), line, color=color, label=name)
    axes[1].plot(logits.detach(), slopes[name], line, color=color)
axes[0].set(xlabel="logit of a reconstruction", title="cost", ylim=(-4.2, 5))
axes[1].set(xlabel="logit of a reconstruction", title="slope", ylim=(-1.2, 1.2))
axes[0].legend(fontsize=8)
show(
    fig,
    alt="Costs over the logit, and their slopes: hinge's slope jumps from 0 to 1 at minus 1, vanilla's rises smoothly, the textbook's fades to 0, the generator's is minus 1 everywhere.",
)
assert slopes["hinge, of a fake"][logits < -1].eq(0).all() and slopes["generator: −logit"].eq(-1).all()

# %% [markdown]
# Beyond the margin hinge has no slope: D stops learning from what it is sure of. The textbook's slope fades as reconstructions pass for
# real. −D never fades, and has no floor: the pull stays the same however well things go.

# %% [markdown]
# So what does a generator's term of −2.5 tell you? Take one discriminator and add 3 to all its logits:

# %%
real, fake = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 0.0])
for shift in (0.0, 3.0):
    gap = (real.mean() - fake.mean()).item()
    print(f"generator's term {adversarial_loss(fake + shift):5.1f}   gap of the mean logits {gap:.1f}")

# %% [markdown]
# Nothing by itself: the reconstructions are as far from the images as before. In a log, read both mean logits, `logits_real` and
# `logits_fake`, and their gap. The package reports them beside the loss.

# %% [markdown]
# ## 4. What does it learn, the patch or the batch?
#
# Let a small discriminator learn by itself: `num_layers=2`, patches of 34 pixels. Its fakes are crops at a quarter of the resolution.
# Images and fakes can go through in two batches, or *mixed* in one. Does it matter? Section 2 says: perhaps.

# %%
STEPS = 80
batches = torch.stack([crops[index] for index in range(16 * STEPS)]).chunk(STEPS)


def verdicts(network, real, fake, mixed):
    return network(torch.cat([real, fake])).chunk(2) if mixed else (network(real), network(fake))


# %%
def train(mixed):
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_filters=16, num_layers=2).apply(initialise)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.9))
    curve = []
    for step, real in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / STEPS)  # fades, so that no last step is an accident
        loss = discriminator_loss(*verdicts(network, real, soften(real, 4), mixed), "hinge")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return network, curve


trained = {"in two batches": train(mixed=False), "mixed": train(mixed=True)}

# %% [markdown]
# Both begin at 1, undecided. Which one will be better off?

# %%
fig, ax = figure(size=(6, 3))
for (name, (_, curve)), color, line in zip(trained.items(), (BLUE, ORANGE), ("-", "--"), strict=True):
    ax.plot(curve, line, color=color, label=f"trained {name}")
ax.axhline(1, color=GREY, linestyle=":")
ax.set(xlabel="step", ylabel="hinge loss", ylim=(0, 1.4))
ax.legend(loc="upper right")
show(
    fig,
    alt="Both losses begin at 1; in two batches it falls to nearly 0, mixed it falls more slowly and stays well above.",
)
assert sum(trained["in two batches"][1][-10:]) < 1 < sum(trained["mixed"][1][-10:]) < 6

# %% [markdown]
# Two batches win by far: nearly nothing left to pay. Too good? Ask both about held-out photographs, in both ways: each kind in a
# batch of its own, and mixed. A patch judged rightly is a logit on the right side of zero.


# %%
@torch.no_grad()
def shares_right(network, mixed):
    real, fake = verdicts(network, sharp, soften(sharp, 4), mixed)
    return (real > 0).float().mean().item(), (fake < 0).float().mean().item()


right = {name: [shares_right(network, mixed) for mixed in (False, True)] for name, (network, _) in trained.items()}

# %%
fig, axes = figure(1, 2, size=(9, 3))
for ax, (name, shares) in zip(axes, right.items(), strict=True):
    for place, (kind, color, hatch) in enumerate([("images", BLUE, ""), ("fakes", ORANGE, "//")]):
        heights = [share[place] for share in shares]
        bars = ax.bar([0.4 * place - 0.2, 0.4 * place + 0.8], heights, 0.38, color=color, hatch=hatch, label=kind)
        ax.bar_label(bars, [f"{height:.0%}" for height in heights])
    ax.set(title=f"trained {name}", xticks=[0, 1], xticklabels=["asked in two batches", "asked mixed"], ylim=(0, 1.15))
axes[0].set_ylabel("patches judged rightly")
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="Trained in two batches: asked so, images and fakes are all judged rightly; asked mixed, all images and hardly a fake. Trained mixed: asked in two batches, most images and few fakes; asked mixed, most images and all fakes.",
)
assert min(right["in two batches"][0]) > 0.95 and min(right["mixed"][1]) > 0.8
assert right["in two batches"][1][0] > 0.95 and max(right["in two batches"][1][1], right["mixed"][0][1]) < 0.25

# %% [markdown]
# The perfect one calls *everything* real as soon as images and fakes share a batch. It has learnt to judge the *batch*: BatchNorm's
# mean and spread tell at once whether all of it is soft, and they reach every logit. The mixed one had to look at patches.

# %% [markdown]
# So mix them? No. The generator's step has reconstructions only, a batch of one kind, and there the mixed one takes most of them for
# real (right, first orange bar): the norm takes away what all have in common. A discriminator must be trained as it is asked.

# %% [markdown]
# So CompVis calls D twice, and so does this package. What you pay for it: a loss near zero says that it knows the *batch*. Here is
# the difference on one photograph, its right half soft:

# %%
cup = photos["coffee"][:, :, :448]
half = cup.clone()
half[:, :, 224:] = soften(cup[None], 4)[0, :, :, 224:]
with torch.no_grad():
    maps = {name: network(half[None])[0, 0] for name, (network, _) in trained.items()}

# %%
fig, axes = figure(1, 3, size=(10, 3.4))
axes[0].imshow((half.permute(1, 2, 0) + 1) / 2)
axes[0].set(title="the right half is soft")
for ax, (name, logits) in zip(axes[1:], maps.items(), strict=True):
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
    alt="A cup, its right half soft; the logits of the first discriminator, positive on both sides; those of the second, on the left positive at texture and edges, negative at the smooth saucer, and negative on the right.",
    format="jpeg",
)

# %% [markdown]
# Violet says real, orange fake. D is in train mode, as always here, with this picture as its whole batch, a mixed one. What does the
# mean logit say, of the outer half of either side?

# %%
for name, logits in maps.items():
    left, right_half = logits[:, :27].mean(), logits[:, -27:].mean()
    print(f"{name:14} left: {'real' if left > 0 else 'fake'}   right: {'real' if right_half > 0 else 'fake'}")

# %% [markdown]
# The first does react to texture, its left is darker; but where zero lies it takes from the batch, and calls everything real. The
# second is what PatchGAN's drawings promise, with a limit: sharp but smooth places are called fake, for want of texture.

# %% [markdown]
# ## 5. How loudly may it speak?
#
# The autoencoder now hears two voices, the reconstruction loss (*nll*, from notebook 06) and −mean D(x̂). Which one is louder at the last
# layer, the convolution that paints the picture? An untrained autoencoder, two crops; LPIPS with untrained features, so that nothing is
# downloaded.

# %%
WEIGHTS = "untrained"  # "auto" downloads VGG16's, 528 MB
perceptual = LPIPS(WEIGHTS)
vae = AutoencoderKL.from_preset("mini", seed=0)
weight = vae.decoder.conv_out.weight
torch.manual_seed(0)
judge = finished.NLayerDiscriminator()

# %% [markdown]
# One function makes both losses of a crop, another the gradient of a loss at the last layer's weight. (`retain_graph` keeps the graph for
# the next one.)


# %%
def both_losses(side):
    images = pair[:, :, 96 : 96 + side, 96 : 96 + side]
    reconstruction = vae(images).sample
    nll = reconstruction_loss(reconstruction, images, perceptual(reconstruction, images))["nll"]
    return reconstruction, nll, adversarial_loss(judge(reconstruction))


def at_last_layer(loss):
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


# %%
reconstruction, nll, adversarial = both_losses(64)
nll_gradient, adversarial_gradient = at_last_layer(nll), at_last_layer(adversarial)
print(f"‖∇ nll‖ {nll_gradient.norm():.1e}, ‖∇ adversarial‖ {adversarial_gradient.norm():.1e}", end=", ")
print(f"ratio {nll_gradient.norm() / adversarial_gradient.norm():.1e}")

# %% [markdown]
# Several thousand times, and by how much depends on the picture's size, the reduction, and the day of training. No fixed factor
# will do. Esser et al. 2021 (eq. 7) measure it in every step instead, at the last layer's weight w; CompVis clamps it:
#
# $$\lambda = \min\left(\frac{\lVert\nabla_w\,\mathrm{nll}\rVert}{\lVert\nabla_w\,\mathrm{adversarial}\rVert + 10^{-4}},\; 10^4\right)$$

# %% [markdown]
# {{exercise 07.4}}
#
# Write it. The result is a number to multiply with, so it carries no gradient. (CompVis halves it afterwards, a matter of taste that
# stays outside.)


# %%
def adaptive_weight(nll_gradient, adversarial_gradient, limit=1e4):
    """Both gradients at the last layer's weight -> the factor that makes the second as long as the first: a scalar."""
    # BEGIN SOLUTION
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(max=limit).detach()
    # SKELETON
    #| ratio = ...  # of two lengths
    #| return ...   # at most limit, without a gradient
    # END SOLUTION


adaptive_weight = check("07.4", adaptive_weight)

# %% [markdown]
# Does it do what it says? Weigh the adversarial loss with it, and take the gradient once more:

# %%
factor = adaptive_weight(nll_gradient, adversarial_gradient)
lengths = {
    "nll": nll_gradient.norm(),
    "adversarial": adversarial_gradient.norm(),
    "λ · adversarial": at_last_layer(factor * adversarial).norm(),
}
assert torch.allclose(lengths["nll"], lengths["λ · adversarial"], rtol=1e-3)

# %%
fig, ax = figure(size=(6, 2.4))
ax.barh(list(lengths), [length.item() for length in lengths.values()], color=[BLUE, GREY, ORANGE])
ax.set(xscale="log", xlim=(0.1, 1e6), xlabel="length of the gradient at the last layer")
ax.invert_yaxis()
show(
    fig, alt="Three bars on a log scale: nll above 10,000, adversarial a few units, and with its weight as long as nll."
)

# %% [markdown]
# With λ both pull equally hard at the last layer, in whatever directions. Then what is the clamp for? Let the adversarial gradient
# fade, until there is none:

# %%
for shrink in (1, 1e-3, 1e-6, 0):
    faint = shrink * adversarial_gradient
    raw, clamped = (adaptive_weight(nll_gradient, faint, limit) for limit in (float("inf"), 1e4))
    print(f"times {shrink:5g}: λ {raw:.1e}, clamped {clamped:.1e}")

# %% [markdown]
# 10⁻⁴ only keeps λ finite; without a clamp, next to nothing is made as loud as nll. But how large is too large? CompVis sums over a
# picture's values ("sum"), "mean" divides that total by their number. Where does 10⁴ act?

# %%
for side in (64, 96, 160):
    nll_pull, adversarial_pull = map(at_last_layer, both_losses(side)[1:])
    print(f"{side} pixels, ‖∇ adversarial‖ {adversarial_pull.norm():.2g}")
    for reduction, pull in [("sum", nll_pull), ("mean", nll_pull / (3 * side**2))]:
        raw = adaptive_weight(pull, adversarial_pull, limit=float("inf")).item()
        print(f"  {reduction:4}: ‖∇ nll‖ {pull.norm():.0e}, λ {raw:5.1g}, the clamp leaves {min(1, 1e4 / raw):.0%}")

# %% [markdown]
# The sum's gradient grows with the picture, the adversarial one shrinks. CompVis trains on 256 pixels, still further down: at the
# start of such a training the adversarial share is small. Under "mean" λ stays near 1, and the same clamp is 10⁴ / (C·H·W).

# %% [markdown]
# What does λ cost? Done as above, each loss goes back through LPIPS or D for λ, and once more in the step's own `backward`. Once is
# enough: stop at the reconstruction. From there to w it is one convolution.

# %%
reconstruction, *both = both_losses(64)
at_picture = [torch.autograd.grad(loss, reconstruction, retain_graph=True)[0] for loss in both]
at_weight = [torch.autograd.grad(reconstruction, weight, gradient, retain_graph=True)[0] for gradient in at_picture]
print("same λ to 1e-3:", bool((adaptive_weight(*at_weight) / factor - 1).abs() < 1e-3))
assert all(map(torch.allclose, at_weight, losses.last_layer_gradients(reconstruction, weight, at_picture)))

# %% [markdown]
# The chain rule in two halves; the second is the package's `last_layer_gradients`. The gradients *at the picture* are kept: their sum,
# weighted by λ, goes back through the autoencoder in a single pass.

# %% [markdown]
# ## 6. What leaks between two networks?
#
# Two networks, two optimisers, and tensors that connect them. D's loss needs reconstructions, and these remember who made them. After
# D's `backward`, who has a gradient?


# %%
def length(network):
    found = [parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None]
    return torch.stack(found).norm().item() if found else 0.0


images = pair[:, :, 96:160, 96:160]
for network in (vae, judge):
    network.zero_grad()

# %%
discriminator_loss(judge(images), judge(vae(images).sample), "hinge").backward()
own = length(judge)
print(f"in the discriminator {own:.0f}, in the autoencoder {length(vae):.0f}")

# %% [markdown]
# The autoencoder is told how to make D's work *easier*. If its gradients are not cleared, that goes into its next step. And the
# other way round: what does the autoencoder's `backward` leave in D?

# %%
for network in (vae, judge):
    network.zero_grad()
reconstruction, nll, adversarial = both_losses(64)
(nll + 0.5 * factor * adversarial).backward()
print(f"left in the discriminator: {length(judge):.0e}, {length(judge) / own:.0e} times its own gradient")

# %% [markdown]
# Some ten thousand times its own gradient, for λ is in it, and it points the wrong way: D is asked to find reconstructions *real*. What
# becomes of one that calls `zero_grad` only at the end of its own step? Section 4's, for forty steps, with half of the λ above:


# %%
def forty_steps(clear_first):
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_filters=16, num_layers=2).apply(initialise)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.9))
    curve = []
    for real in batches[:40]:
        fake = soften(real, 4)
        (0.5 * factor * adversarial_loss(network(fake))).backward()  # the generator's step
        if clear_first:
            optimizer.zero_grad()
        loss = discriminator_loss(network(real), network(fake), "hinge")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


clean, leaking = forty_steps(clear_first=True), forty_steps(clear_first=False)

# %%
fig, ax = figure(size=(6, 3))
ax.plot(clean, "-", color=BLUE, label="zero_grad before backward")
ax.plot(leaking, "--", color=ORANGE, label="zero_grad only at the end")
ax.axhline(1, color=GREY, linestyle=":")
ax.set(xlabel="step", ylabel="hinge loss", ylim=(0, None))
ax.legend()
show(
    fig,
    alt="With zero_grad before backward the loss falls below the dotted line of the undecided; without, it rises far above.",
)
assert sum(clean[-10:]) < 10 and min(leaking[-10:]) > 1.5

# %% [markdown]
# It learns to be wrong, and nothing raises an error; the only sign is a loss far above 1, worse than undecided. (diffusers' example
# `train_autoencoderkl.py` has both leaks.) Three guards, and each closes one door:

# %% [markdown]
# * **detach** the reconstructions in D's step: nothing flows into the autoencoder;
# * **freeze** D in the autoencoder's step, `requires_grad_(False)`: gradients pass through, none stay;
# * **zero_grad** *before* each `backward`: whatever still lies there is not of this step.

# %% [markdown]
# {{exercise 07.5}}
#
# Write one step of the discriminator, with the hinge loss and your `discriminator_loss`. Images and reconstructions have batches of
# their own, and the autoencoder must not notice.


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

# %% [markdown]
# Now both steps, one after the other, on the networks of section 5. In the first, D is frozen:

# %%
for network in (vae, judge):
    network.zero_grad()
judge.requires_grad_(False)
adversarial_loss(judge(vae(images).sample)).backward()
judge.requires_grad_(True)
print("after the generator's:    ", "autoencoder", length(vae) > 0, " discriminator", length(judge) > 0)

# %%
vae.zero_grad()
optimizer = torch.optim.Adam(judge.parameters(), lr=1e-4, betas=(0.5, 0.9))
discriminator_step(judge, optimizer, images, vae(images).sample)
print("after the discriminator's:", "autoencoder", length(vae) > 0, " discriminator", length(judge) > 0)
assert all(parameter.grad is None for parameter in vae.parameters())

# %% [markdown]
# Each step leaves gradients on its own side only. This is what a test of a training loop should look at first: not whether the loss
# falls, but whose `.grad` is None.

# %% [markdown]
# ## Summary
#
# 1. A discriminator judges without the original; a learned judge, because any fixed measure can be cheated.
# 2. Five convolutions, 30 × 30 logits of 70 × 70 pixels each, 2,765,633 parameters; in train mode every logit sees the whole batch.
# 3. Hinge and vanilla take raw logits, and undecided they are 1 and log 2; the generator minimises −mean D(x̂), whose value means nothing alone.
# 4. Fed in two batches, it judges the batch; it is done all the same, because the generator's step has one kind only.
# 5. λ makes both gradients equally long at the last layer; detach, freeze and zero_grad keep the two networks apart.
#
# ### Check yourself
#
# <details><summary>The discriminator's hinge loss has been 1.00 for a thousand steps. Has it reached a balance with the autoencoder?</summary>
#
# The loss alone cannot say. One and the same logit between −1 and 1 for everything costs 1: that is a discriminator that has learnt
# nothing, and also one that nothing is left to tell apart. Give a copy of it the easy fakes of section 4: if its loss falls within 80
# steps, it can learn, and the reconstructions hold it at 1. (A leaked gradient is something else: it drives the loss above 1.)
# </details>
#
# <details><summary>You go from crops of 256 to 512 pixels, with sums over the picture. What becomes of λ, and what of the clamp?</summary>
#
# The reconstruction's gradient is a sum over four times as many values and grows; the adversarial one is a mean over logits, and shrank
# in section 5. The raw λ grows, so the clamp at 10⁴ acts more often, and the adversarial share shrinks.
# </details>
#
# <details><summary>Somebody speeds up the discriminator by sending images and reconstructions through in one batch. The loss rises. Is the code wrong?</summary>
#
# It computes another thing: BatchNorm's statistics are now those of the mixture, the same for both, so the easy clue is gone. And in the
# generator's step, with reconstructions only, D sees statistics that it was never trained with: in section 4 it took most fakes for real.
# </details>
#
# **Next:** [08](08_training_loop.ipynb), the training loop: both steps in turn, for as long as it takes, with a late start for the discriminator, and what keeps the two in balance.
