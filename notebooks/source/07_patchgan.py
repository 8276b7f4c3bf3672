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
# `num_layers` with BatchNorm: 2, 4, 8, then always 8 times as wide; stride 2, the last of these 1. At the end: one channel, stride 1.


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
# Three quarters sit in one convolution, from 256 to 512 channels. Small beside the 84 million of notebook
# [05](05_kl_f8_architecture.ipynb)'s autoencoder. Is it the same as the finished one?

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
# *Hinge* is: from 1 on, the *margin*, it costs nothing. *Vanilla* is the cross-entropy: with p = sigmoid(logit), −log p for
# an image, −log(1 − p) for a reconstruction. Why write softplus(x) = log(1 + eˣ)? A reconstruction with a logit of 20:

# %%
logit = torch.tensor(20.0)
print(f"−log(1 − sigmoid) {-(1 - logit.sigmoid()).log():.3g}   softplus {F.softplus(logit):.3g}")

# %% [markdown]
# In float32 sigmoid(20) *is* 1, and log 0 is left. So leave the logits raw: −log p is softplus(−logit), −log(1 − p) is
# softplus(logit). For reconstructions the sign changes, as in hinge:
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
# What does a discriminator pay that says the same to everything? Five opinions, from −2 to 2. And then one that does tell them
# apart, but calls a single reconstruction real, and is sure of it:

# %%
x = torch.randn(2, 1, 5, 5)
for kind in ("hinge", "vanilla"):
    everywhere = [torch.full((1, 1, 30, 30), opinion) for opinion in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    print(f"{kind:7}", [round(discriminator_loss(same, same, kind).item(), 2) for same in everywhere])
    assert torch.allclose(discriminator_loss(x, 1 - x, kind), losses.discriminator_loss(x, 1 - x, kind)["disc_loss"])
real, fake = torch.tensor([2.0, 2.0]), torch.tensor([-5.0, 3.0])
print(
    f"hinge   {discriminator_loss(real, fake, 'hinge'):.2f}, with mean logits of {real.mean():.0f} and {fake.mean():.0f}"
)

# %% [markdown]
# Undecided: 1 for any logit within hinge's margins, log 2 = 0.69 or more for vanilla. The reverse does not hold: the last one pays
# 1.00, too, and keeps the means 3 apart. The loss alone does not say whether D can tell.

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
def train(mixed, norm=True):
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_filters=16, num_layers=2).apply(initialise)
    if not norm:
        network.main = nn.Sequential(*(layer for layer in network.main if not isinstance(layer, nn.BatchNorm2d)))
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
without_norm = train(mixed=False, norm=False)[1]

# %% [markdown]
# All begin at 1, undecided; a third has no norm, for comparison. Which one will be better off?

# %%
curves = {f"trained {name}": curve for name, (_, curve) in trained.items()} | {"without BatchNorm": without_norm}
fig, ax = figure(size=(6, 3))
for (name, curve), color, line in zip(curves.items(), (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True):
    ax.plot(curve, line, color=color, label=name)
ax.axhline(1, color=GREY, linestyle=":")
ax.set(xlabel="step", ylabel="hinge loss", ylim=(0, 1.4))
ax.legend(loc="upper right")
show(
    fig,
    alt="All three losses begin at 1. In two batches it falls to nearly 0; mixed it is ahead at first and then stays well above; without BatchNorm it falls least.",
)
in_two, mixed, none = (sum(curve[-10:]) for curve in curves.values())
assert in_two < 1 < mixed < 6 < none

# %% [markdown]
# Two batches win by far; without the norm it hardly gets going, reason enough to keep it here. Nearly nothing to pay: too good? Take
# a held-out patch, sharp or soft, among fifteen others, sharp or soft. Is its mean logit its own?


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
for ax, (name, lines) in zip(axes, logit_of.items(), strict=True):
    for (patch, pair_of), color, line in zip(lines.items(), (BLUE, ORANGE), ("o-", "s--"), strict=True):
        ax.plot(pair_of, line, color=color, label=f"a {patch} patch")
    ax.axhline(0, color=GREY, linestyle=":")
    ax.set(
        title=f"trained {name}", xticks=[0, 1], xticklabels=["among sharp ones", "among soft ones"], xlim=(-0.3, 1.3)
    )
axes[0].set_ylabel("mean logit of the patch")
axes[1].legend(loc="upper left")
show(
    fig,
    alt="Left, trained in two batches: among sharp patches a soft one is as high as a sharp one, among soft ones it is far below zero. Right, trained mixed: the soft one is far below the sharp one in either company, and both rise together among soft ones.",
)
first, second = ([*lines["sharp"], *lines["soft"]] for lines in logit_of.values())
assert first[0] - first[2] < 0.5 and first[2] > 0.8 and first[3] < -0.8
assert second[0] - second[2] > 2 and second[1] - second[3] > 4 and -2 < second[0] - second[3] < 0.5

# %% [markdown]
# The first judges the *batch*: a soft patch among sharp ones counts for real, the same among soft ones for fake. The mixed one tells
# patches apart in any company, but *relative to it*: soft among soft is worth no less than sharp among sharp.

# %% [markdown]
# For the norm takes away the mean and spread that a batch has in common. By what, then, does the first recognise a batch that is soft
# throughout? Look at what its last norm makes of either kind:

# %%
for kind, images in kinds.items():
    with torch.no_grad():
        z = F.batch_norm(trained["in two batches"][0].main[:6](images), None, None, training=True)
    skew = (z**3).mean((0, 2, 3)).abs().mean()
    print(f"{kind:5} mean {z.mean().abs():.1f}, spread {z.std():.1f}, lopsided by more than 1.4: {bool(skew > 1.4)}")

# %% [markdown]
# Mean and spread are the same; the *shape* is not. In a soft batch a channel's values lie lopsided about their mean, in a sharp one less
# so, and LeakyReLU turns shape into level. A clue to the batch, in every logit.

# %% [markdown]
# So mix them? No. The generator's step has reconstructions only: soft among soft, which the mixed one takes for real (right, last
# square). A discriminator must be trained as it is asked, so CompVis calls D twice, and so does this package.

# %% [markdown]
# What you pay for it: a loss near zero may only say that it knows the batch. Here is the difference on one photograph, its right half
# soft, with the mean logit of the outer half of either side:

# %%
cup = photos["coffee"][:, :, :448]
half = cup.clone()
half[:, :, 224:] = soften(cup[None], 4)[0, :, :, 224:]
with torch.no_grad():
    maps = {name: network(half[None])[0, 0] for name, (network, _) in trained.items()}
sides = {name: (logits[:, :27].mean().item(), logits[:, -27:].mean().item()) for name, logits in maps.items()}

# %%
fig, axes = figure(1, 3, size=(10, 3.4))
axes[0].imshow((half.permute(1, 2, 0) + 1) / 2)
axes[0].set(title="the right half is soft\n")
for ax, (name, logits) in zip(axes[1:], maps.items(), strict=True):
    edge = (3.5, 4 * logits.shape[1] + 3.5, 4 * logits.shape[0] + 3.5, 3.5)  # 4 pixels for each logit
    image = ax.imshow(logits, cmap="PuOr", vmin=-4, vmax=4, extent=edge)
    left, right = sides[name]
    ax.set(title=f"trained {name}\nleft {left:+.1f}, right {right:+.1f}", xlim=(0, 448), ylim=(400, 0))
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
assert min(sides["in two batches"]) > 0 and sides["mixed"][0] > 1 and sides["mixed"][1] < -1

# %% [markdown]
# Violet says real, orange fake. D is in train mode, as always here; this picture is its whole batch, a mixed one. Which of the two maps
# is what PatchGAN's drawings promise?

# %% [markdown]
# The second, with a limit: sharp but smooth places are called fake, for want of texture. The first is a little higher on the left, at
# rim and handle above all, but where zero lies it takes from the batch, and calls both sides real.

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
# Several thousand times; below you will see it change with the picture's size. So Esser et al. 2021 (eq. 7) measure it in every
# step, at the last layer's weight w; CompVis clamps it:
#
# $$\lambda = \min\left(\frac{\lVert\nabla_w\,\mathrm{nll}\rVert}{\lVert\nabla_w\,\mathrm{adversarial}\rVert + 10^{-4}},\; 10^4\right)$$

# %% [markdown]
# {{exercise 07.4}}
#
# Write it. The result is a tensor without axes (`.item()` would stop every step until the device has answered) and without a
# gradient. (CompVis halves it afterwards, a matter of taste that stays outside.)


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
weighted = at_last_layer(factor * adversarial)
print(f"‖∇ nll‖ {nll_gradient.norm():.1e}, ‖∇ λ · adversarial‖ {weighted.norm():.1e}")
assert torch.allclose(nll_gradient.norm(), weighted.norm(), rtol=1e-3)

# %% [markdown]
# With λ both pull equally hard at the last layer, in whatever directions. Then what is the clamp for? Let the adversarial gradient
# fade, until there is none. How loud is it beside nll, with the clamp and without?

# %%
for shrink in (1, 1e-3, 1e-6, 0):
    faint = shrink * adversarial_gradient
    weights = [adaptive_weight(nll_gradient, faint, limit) for limit in (float("inf"), 1e4)]
    raw, clamped = (f"λ {w:.1e} ({w * faint.norm() / nll_gradient.norm():.2g} of nll)" for w in weights)
    print(f"times {shrink:5g}: {raw}, clamped {clamped}")

# %% [markdown]
# Without a clamp a thousandth of the gradient is as loud as nll; only far below 10⁻⁴ does that term hold λ back. How large is too
# large? CompVis sums over a picture's values ("sum"), "mean" divides by their number. Where does 10⁴ act?

# %%
for side in (64, 96, 160):
    nll_pull, adversarial_pull = [at_last_layer(loss) for loss in both_losses(side)[1:]]
    print(f"{side} pixels, ‖∇ adversarial‖ {adversarial_pull.norm():.2g}")
    for reduction, pull in [("sum", nll_pull), ("mean", nll_pull / (3 * side**2))]:
        raw = adaptive_weight(pull, adversarial_pull, limit=float("inf")).item()
        print(f"  {reduction:4}: ‖∇ nll‖ {pull.norm():.1e}, λ {raw:7.2g}, the clamp leaves {min(1, 1e4 / raw):.0%}")

# %% [markdown]
# Under "sum" λ grows with the picture, from both sides, and the clamp cuts it. Under "mean" λ stays near 1, and 10⁴ does not act. (All
# this untrained; in a training, log λ and see whether it sits at the clamp.)

# %% [markdown]
# What does λ cost? Done as above, each loss goes back through LPIPS or D for λ, and once more in the step's own `backward`. Once is
# enough: stop at the reconstruction. From there to w it is one convolution.

# %%
reconstruction, *both = both_losses(64)
at_picture = [torch.autograd.grad(loss, reconstruction, retain_graph=True)[0] for loss in both]
at_weight = [torch.autograd.grad(reconstruction, weight, gradient, retain_graph=True)[0] for gradient in at_picture]
print("same λ to 1e-3:", bool((adaptive_weight(*at_weight) / factor - 1).abs() < 1e-3))
for ours, theirs in zip(at_weight, losses.last_layer_gradients(reconstruction, weight, at_picture), strict=True):
    assert torch.allclose(ours, theirs)

# %% [markdown]
# The chain rule in two halves; the second is the package's `last_layer_gradients`. The gradients *at the picture* can be kept: in
# notebook [08](08_training_loop.ipynb) their sum, weighted by λ, goes back through the autoencoder in a single pass.

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
# Some ten thousand times its own gradient, for λ is in it, and the wrong way: D is asked to find reconstructions *real*. Train
# section 4's small D for forty steps, clearing gradients only at the end, with ½λ from "sum" and from "mean":


# %%
def forty_steps(leak):
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_filters=16, num_layers=2).apply(initialise)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.9))
    log = []
    for images in batches[:40]:
        fakes = soften(images, 4)
        (leak * adversarial_loss(network(fakes))).backward()  # the generator's step
        real, fake = network(images), network(fakes)
        loss = discriminator_loss(real, fake, "hinge")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log.append((loss.item(), (real.mean() - fake.mean()).item()))
    return zip(*log, strict=True)


leaks = {"nothing leaks": 0.0, "leak under “sum”": 0.5 * factor, "leak under “mean”": 0.5 * factor / (3 * 64**2)}
logs = {name: [*forty_steps(leak)] for name, leak in leaks.items()}

# %%
fig, axes = figure(1, 2, size=(9, 3))
for (name, log), color, line in zip(logs.items(), (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True):
    for ax, curve in zip(axes, log, strict=True):
        ax.plot(curve, line, color=color, label=name)
axes[0].axhline(1, color=GREY, linestyle=":")
axes[0].set(xlabel="step", title="hinge loss", ylim=(0, 4))
axes[1].set(xlabel="step", title="gap of the mean logits")
axes[1].legend()
show(
    fig,
    alt="Without a leak the loss falls below 1 and the gap opens. Leaking under sum the loss leaves the picture upwards, under mean it stays at 1, undecided to look at; in neither does the gap open.",
)
(clean, opened), (by_sum, shut), (by_mean, closed) = logs.values()
assert sum(clean[-10:]) < 7 and min(by_sum[-10:]) > 2 and all(abs(loss - 1) < 0.2 for loss in by_mean)
assert min(opened[-10:]) > 0.5 and max(*shut, *closed) < 0.1

# %% [markdown]
# Nothing raises an error. Under "sum" the loss gives it away, under "mean" it sits at 1 and looks undecided; the gap opens in neither.
# (diffusers' example `train_autoencoderkl.py`, commit e276f08, has both leaks.) Three guards:

# %% [markdown]
# * **detach** the reconstructions in D's step: nothing flows into the autoencoder;
# * **freeze** D in the autoencoder's step, `requires_grad_(False)`: gradients pass through, none stay in its weights;
# * **zero_grad** *before* each `backward`: whatever still lies there is not of this step. Alone it stops both leaks; the others
#   also save work.

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
# Now both steps, one after the other, on the networks of section 5. In the first, D is frozen. Is it quite untouched?

# %%
for network in (vae, judge):
    network.zero_grad()
judge.requires_grad_(False)
before = judge.main[3].running_mean.clone()
adversarial_loss(judge(vae(images).sample)).backward()
judge.requires_grad_(True)
print("after the generator's:    ", "autoencoder", length(vae) > 0, " discriminator", length(judge) > 0)
print("BatchNorm's running mean has moved:", not torch.equal(before, judge.main[3].running_mean))

# %%
vae.zero_grad()
optimizer = torch.optim.Adam(judge.parameters(), lr=1e-4, betas=(0.5, 0.9))
discriminator_step(judge, optimizer, images, vae(images).sample)
print("after the discriminator's:", "autoencoder", length(vae) > 0, " discriminator", length(judge) > 0)
assert all(parameter.grad is None for parameter in vae.parameters())

# %% [markdown]
# Each step leaves gradients on its own side only: what a test of a training loop should look at first. (The running mean is no weight,
# and freezing does not stop it; D in train mode never uses it.)

# %% [markdown]
# ## Summary
#
# 1. A discriminator judges without the original; a learned judge, because any fixed measure can be cheated.
# 2. Five convolutions, 30 × 30 logits of 70 × 70 pixels each, 2,765,633 parameters; in train mode every logit sees the whole batch.
# 3. Hinge and vanilla take raw logits, and undecided they are 1 and log 2; the generator minimises −mean D(x̂), whose value means nothing alone.
# 4. Fed in two batches, it can judge the batch; it is done all the same, because the generator's step has one kind only.
# 5. λ makes both gradients equally long at the last layer; detach, freeze and zero_grad keep the two networks apart.
#
# ### Check yourself
#
# <details><summary>The discriminator's hinge loss has been 1.00 for a thousand steps. Has it reached a balance with the autoencoder?</summary>
#
# The loss alone cannot say: look at the gap of the mean logits first. If it is open, D does tell them apart (section 3). If it is
# closed, D cannot, or there is nothing to tell, or a leak cancels what it would learn (section 6). Train a copy of it on the easy
# fakes of section 4: if its gap opens there, D can learn, and the loop and the reconstructions are left to look at.
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
# generator's step, with reconstructions only, D sees statistics that it was never trained with: in section 4 it took fakes for real.
# </details>
#
# **Next:** [08](08_training_loop.ipynb), the training loop: both steps in turn, for as long as it takes, with a late start for the discriminator, and what keeps the two in balance.
