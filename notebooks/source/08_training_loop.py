# %% [markdown]
# # 08 · The training loop
#
# {{badge}}
#
# You have all the parts. Now you train them together, and switch the discriminator on during the run. Then you remove each
# safeguard in turn.
#
# **You will be able to**
#
# * write the autoencoder's training step, with one backward pass for all losses;
# * say which network is trained when, and read a log through the discriminator's start;
# * recognise a run whose discriminator leaks or dies, and repair it;
# * average weights, and resume a run exactly.
#
# **You need** the losses of notebook [06](06_reconstruction_losses.ipynb), and [07](07_patchgan.ipynb): discriminator, adaptive
# weight, `discriminator_step`.
#
# {{budget}}

# %% tags=["environment"]

# %%
import copy
import inspect
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import klvae_edu
from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset, photographs
from klvae_edu.diagrams import show_diagram
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.exercises.given import restore
from klvae_edu.losses import (
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    kl_loss,
    last_layer_gradients,
    pixel_loss,
)
from klvae_edu.metrics import psnr
from klvae_edu.plots import PALETTE, figure, image_grid, lines, show
from klvae_edu.training import steps
from klvae_edu.training.checkpoint import load_checkpoint, networks, save_checkpoint
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.diagnosis import diagnose
from klvae_edu.training.setup import set_up, start_accelerator

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# Training from random weights takes hours. So begin where a long run switches its discriminator on: with a small autoencoder that
# was trained on L2 and KL only. Measurements use crops of two held-out photographs, which are never trained on.

# %%
START = Path(klvae_edu.__file__).parent / "assets" / "narrow-start"
vae = AutoencoderKL.from_pretrained(START, dtype=torch.float32)
batches = [*DataLoader(image_dataset("photos", 32, seed=0, length=1440), batch_size=8)]
held_out = next(iter(DataLoader(image_dataset("photos", 32, split="held-out", length=32), batch_size=32)))
print(f"{vae.num_parameters():,} parameters; {len(batches)} batches of {tuple(batches[0].shape)}")

# %% [markdown]
# How sharp are its reconstructions? Measure the energy of their edges, the mean square of the differences between neighbouring
# pixels, relative to the originals:


# %%
def sharpness(images, originals=held_out):
    """The energy of the edges in `images`, relative to that in the originals."""
    energy = [x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean() for x in (images, originals)]
    return (energy[0] / energy[1]).item()


# %%
with torch.no_grad():
    before = vae(held_out).sample
print(f"PSNR {psnr(before, held_out).mean():.1f} dB, edges {sharpness(before):.0%} of the originals'")

# %% [markdown]
# Nearly half of the edges' energy is missing: squared error is lowest at the mean of all plausible textures, which is smooth
# (notebook 06).

# %% [markdown]
# ## 1. Two networks with opposite aims
#
# Each step has one batch, two networks and two optimisers. The autoencoder's adversarial loss runs *through* the discriminator. After
# its `backward()`, which of the two networks holds gradients?

# %%
torch.manual_seed(0)
discriminator, images = NLayerDiscriminator(num_filters=32, num_layers=2), batches[0]
adversarial_loss(discriminator(vae(images).sample)).backward()
for name, network in {"autoencoder": vae, "discriminator": discriminator}.items():
    held = [parameter.grad is not None for parameter in network.parameters()]
    print(f"{name}: {sum(held)} of {len(held)} weights hold a gradient")

# %% [markdown]
# Both do. The discriminator's gradient asks for *higher* logits of reconstructions, the opposite of its own aim. An optimiser that
# used it would train the discriminator to be fooled. So a training step must say where gradients stop:

# %%
show_diagram("training_step")

# %% [markdown]
# ## 2. One backward pass for three losses
#
# The autoencoder's loss is a sum, in CompVis' units: nll (the reconstruction loss) and KL are sums over an image's values, averaged
# over the batch; the adversarial term is a mean over all logits.
#
# $$L = \mathrm{nll} + 10^{-6}\, \mathrm{KL} + \tfrac12\, \lambda \cdot \big(-\mathrm{mean}\, D(\hat x)\big), \qquad
# \lambda = \frac{\lVert\nabla\,\mathrm{nll}\rVert}{\lVert\nabla\,\mathrm{adversarial}\rVert + 10^{-4}}$$
#
# The gradients in λ are those at the decoder's last layer, and λ is clamped to 10⁴ (07). ½ is CompVis' `disc_weight`. Here nll is
# L2 alone: no VGG16 to download. CompVis' `contperceptual.py` has nll = rec / exp(logvar) + logvar, but no optimiser trains
# `logvar`. It stays 0, and nll = rec.

# %% [markdown]
# {{exercise 08.1}}
#
# Write one step in plain PyTorch. `vae.encode(images).latent_dist` is the posterior, `kl_loss(posterior, images)` its KL, and
# `vae.decode(…).sample` the images. Freeze the discriminator (`requires_grad_(False)`) while it computes its logits, and unfreeze
# it. The optimiser is the autoencoder's.
#
# `adaptive_weight` takes two gradients, the nll's first, as `torch.autograd.grad(loss, weight, retain_graph=True)[0]` gives them.


# %%
def generator_step(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    """One step of the autoencoder on images (B, 3, H, W). Returns their reconstruction, without a graph."""
    # BEGIN SOLUTION
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    nll, kl = pixel_loss(reconstruction, images, "l2"), kl_loss(posterior, images)
    discriminator.requires_grad_(False)
    adversarial = adversarial_loss(discriminator(reconstruction))
    discriminator.requires_grad_(True)
    last_layer = vae.decoder.conv_out.weight
    (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    weight = disc_weight * adaptive_weight(nll_gradient, adversarial_gradient)
    optimizer.zero_grad()
    (nll + kl_weight * kl + weight * adversarial).backward()
    optimizer.step()
    return reconstruction.detach()
    # SKELETON
    #| posterior = ...
    #| reconstruction = ...  # of a sample of the posterior, not of the mean
    #| nll, kl = ...         # L2 and KL, with the losses imported above
    #| adversarial = ...     # the discriminator's weights keep no gradient of this
    #| weight = ...          # disc_weight times the adaptive weight, at vae.decoder.conv_out.weight
    #| loss = ...            # three terms
    #| ...                   # clear, backward, update
    #| return ...
    # END SOLUTION


generator_step = check("08.1", generator_step)

# %% [markdown]
# Make one step, and look at both networks (`get_parameters` gives all weights as one vector). A hook counts the backward passes
# through the discriminator.

# %%
vae.zero_grad(), discriminator.zero_grad()
optimizer = torch.optim.Adam(vae.parameters(), lr=2e-4, betas=(0.5, 0.9))
old = vae.get_parameters(), nn.utils.parameters_to_vector(discriminator.parameters()).detach()
passes = []
hook = discriminator.register_full_backward_hook(lambda *_: passes.append(1))

# %%
generator_step(vae, discriminator, optimizer, images)
hook.remove()
print(f"{whose('08.1', generator_step)} step changed the autoencoder: {not torch.equal(vae.get_parameters(), old[0])}")
assert torch.equal(nn.utils.parameters_to_vector(discriminator.parameters()), old[1])
print("discriminator: unchanged, gradients", {parameter.grad for parameter in discriminator.parameters()})
print("backward passes through the discriminator:", len(passes))

# %% [markdown]
# Two: the adversarial loss is differentiated once for λ and once for the update. So is the nll, with LPIPS where it is used. One
# pass each is enough. To see why, compare two gradients at five numbers:

# %%
x = torch.tensor([1.0, -2.0, 0.0, 2.0, 3.0], requires_grad=True)
gradients = [torch.autograd.grad(loss(x), x)[0] for loss in (lambda x: x.square().sum(), lambda x: x.exp().sum())]
g = (gradients[0] + 0.5 * gradients[1]).detach()
print("g, the gradient of the losses' sum:", [round(value, 2) for value in g.tolist()])
print("gradient of the linear Σ x · g:    ", [round(v, 2) for v in torch.autograd.grad((x * g).sum(), x)[0].tolist()])

# %% [markdown]
# They are equal. The *linear* function Σ x · g has the gradient g, whatever losses g came from. So take each loss's gradient at the
# reconstruction, once; add them with their weights; and go back from $\sum \hat x \cdot g$. This scalar is a *surrogate*: it
# has the gradient of the loss, not its value.

# %% [markdown]
# {{exercise 08.2}}
#
# Write the surrogate of any losses. Take them at a leaf, the detached reconstruction, where their graphs end, and ask for the
# leaf's gradient only. The surrogate itself keeps the graph back into the autoencoder.


# %%
def surrogate(reconstruction, losses, weights):
    """A scalar, linear in the reconstruction, whose gradient is that of the losses' weighted sum."""
    # BEGIN SOLUTION
    leaf = reconstruction.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    for loss, weight in zip(losses, weights, strict=True):
        gradient += weight * torch.autograd.grad(loss(leaf), leaf)[0]
    return (reconstruction * gradient).sum()
    # SKELETON
    #| leaf, gradient = ...  # the reconstruction without its graph, asking for a gradient; and zeros like it
    #| for loss, weight in zip(losses, weights):
    #|     gradient += ...
    #| return ...            # linear in the reconstruction
    # END SOLUTION


surrogate = check("08.2", surrogate)

# %% [markdown]
# The package does the same, with two additions. λ is computed from both gradients before they are added: `last_layer_gradients` (07)
# turns each into a gradient at the last layer. And the KL, no function of the reconstruction, is added as it is. Here is the idea (an
# optional section at the end proves it); the whole step is in `klvae_edu/training/steps.py`.


# %%
def one_pass(vae, discriminator, images, posterior, reconstruction):
    """The scalar to go back from, and ½λ. `discriminator` is frozen."""
    leaf = reconstruction.detach().requires_grad_()  # the losses' graphs end here
    losses = pixel_loss(leaf, images, "l2"), adversarial_loss(discriminator(leaf))
    of_nll, of_adversarial = (torch.autograd.grad(loss, leaf)[0] for loss in losses)
    at_last_layer = last_layer_gradients(reconstruction, vae.decoder.conv_out.weight, [of_nll, of_adversarial])
    weight = 0.5 * adaptive_weight(*at_last_layer)
    gradient = of_nll + weight * of_adversarial
    return (reconstruction * gradient).sum() + 1e-6 * kl_loss(posterior, images), weight


# %%
posterior, passes = vae.encode(images).latent_dist, []
reconstruction = vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample
hook = discriminator.requires_grad_(False).register_full_backward_hook(lambda *_: passes.append(1))
one_pass(vae, discriminator, images, posterior, reconstruction)[0].backward()
hook.remove()
print("backward passes through the discriminator:", len(passes))

# %% [markdown]
# ## 3. Which network is trained when
#
# The discriminator's step is that of exercise 07.5: the same batch, the detached reconstructions, its own optimiser.
#
# In CompVis' configuration for KL-f8 the discriminator is used after 50,001 steps (`disc_start`): the autoencoder first learns what
# the pixel loss can teach. This package can also train it for some steps before it is used (`disc_warmup`). With `disc_start=4` and
# `disc_warmup=2`, which networks are trained in step 3?

# %% [markdown]
# {{exercise 08.3}}
#
# Put both steps in order. `generator_step(images, adversarial)` returns the reconstructions; what `discriminator_step(images,
# reconstructions)` returns is not needed. Steps count from 1. `adversarial` is true from the first step *after* `disc_start` steps on.


# %%
def training_step(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    """Step 1, 2, … on one batch. Returns the reconstructions that generator_step(images, adversarial) gives."""
    # BEGIN SOLUTION
    adversarial, trains_discriminator = step > disc_start, step > disc_start - disc_warmup
    reconstructions = generator_step(images, adversarial)
    if trains_discriminator:
        discriminator_step(images, reconstructions)
    return reconstructions
    # SKELETON
    #| adversarial, trains_discriminator = ...  # two conditions on the step
    #| reconstructions = generator_step(images, ...)
    #| if trains_discriminator:
    #|     discriminator_step(images, ...)
    #| return reconstructions
    # END SOLUTION


training_step = check("08.3", training_step)

# %% [markdown]
# Both, but the autoencoder's loss has no adversarial term before step 5. The package's schedule:

# %%
config = TrainingConfig(disc_weight=0.5, disc_start=4, disc_warmup=2)
for step in range(1, 7):
    trained, used = config.trains_discriminator(step), config.adversarial(step)
    print(f"step {step}: discriminator trained {trained!s:5}  used {used}")

# %% [markdown]
# ## 4. The discriminator's start
#
# Now the run: 40 steps as before, then 140 with the discriminator. A *control* makes all 180 without it. The learning rate is constant
# and gradients are not clipped: only one thing changes.

# %%
CONFIG = TrainingConfig(
    init=str(START), size=32, batch_size=8, device="cpu", reduction="sum", grad_clip=math.inf,
    lr=2e-4, disc_lr=5e-4, schedule="constant", warmup=0.0, betas=(0.5, 0.9), ema=0.95,
    disc_weight=0.5, disc_start=40, disc_channels=32, disc_layers=2,
)  # fmt: skip

# %% [markdown]
# `set_up` makes networks and optimisers from the configuration, and `training_step` (08.3) calls the package's two steps. PSNR and
# edges of the held-out crops are measured every ten steps.


# %%
def measured(vae):
    with torch.no_grad():
        found = vae(held_out).sample
    return psnr(found, held_out).mean().item(), sharpness(found)


def run(config, count, batches=batches, measure=10):
    training, log, curve = set_up(config, start_accelerator(config)), [], []
    models = [training.vae, training.averaged] if config.ema else [training.vae]

    def autoencoder(images, adversarial):
        assert adversarial == config.adversarial(training.step)  # the package asks its configuration
        scalars, reconstructions = steps.generator_step(training, images)
        log.append({"step": training.step, **scalars})
        return reconstructions

    def judge(images, reconstructions):
        log[-1].update(steps.discriminator_step(training, images, reconstructions))

    for images in progress(batches[:count], desc="training"):
        training.begin_step()
        training_step(training.step, images, autoencoder, judge, config.disc_start, config.disc_warmup)
        if measure and training.step % measure == 0:
            curve.append((training.step, *(value for model in models for value in measured(model))))
    return training, log, torch.tensor(curve)


# %%
def smooth(log, name, width=10):
    """Means over the last `width` steps that have it, and their steps."""
    found = [(scalars["step"], scalars[name]) for scalars in log if name in scalars]
    values = torch.tensor([value for _, value in found])
    return [step for step, _ in found][width - 1 :], values.unfold(0, width, 1).mean(1)


# %% [markdown]
# After step 40, does PSNR rise or fall? Logits are means over ten steps.

# %%
training, log, curve = run(CONFIG, 180)
_, _, control = run(replace(CONFIG, disc_start=10**6, ema=0.0), 180)
first, last = control[-5:, 1:].mean(0), curve[-5:, 1:3].mean(0)
weights = torch.tensor([scalars["adversarial_weight"] for scalars in log[CONFIG.disc_start :]])

# %%
fig, axes = figure(2, 2, size=(9, 5.4))
(quality, edges), (logits, loudness) = axes
quality.plot(curve[:, 0], curve[:, 1], "o-", color=BLUE, markersize=3)
edges.plot(curve[:, 0], curve[:, 2], "s-", color=ORANGE, markersize=3, label="with the discriminator")
for ax, column in ((quality, 1), (edges, 2)):
    ax.plot(control[:, 0], control[:, column], "--", color=GREY, label="control")
logits.plot(*smooth(log, "logits_real"), color=BLUE, label="photographs")
logits.plot(*smooth(log, "logits_fake"), color=ORANGE, linestyle="--", label="reconstructions")
loudness.semilogy(range(41, 181), weights, color=GREEN)
titles = "PSNR, dB", "edges, relative to the originals'", "mean logits", "weight ½λ"
for ax, title in zip(axes.flat, titles, strict=True):
    ax.set(title=title, xlim=(0, 185), xlabel="step"), ax.axvline(CONFIG.disc_start, color=GREY, linestyle=":")
logits.legend(), edges.legend()
show(
    fig,
    alt="The discriminator starts at the dotted line. The control stays at about 27.6 dB and 53 % of the edges; with the discriminator PSNR falls to about 27.2 dB, and the edges rise to about 68 %. The logits of photographs and reconstructions are equal at first and separate slowly. The weight ½λ falls to about a tenth.",
)

# %% [markdown]
# Compared with the control PSNR *falls*, and nothing is broken: an invented edge one pixel off costs more squared error than no edge.
# What matters is how many decibels ten points of edges cost.


# %%
def price(before, after):
    """Decibels lost for ten points of edges won, between two pairs (PSNR, edges)."""
    return (0.1 * (before[0] - after[0]) / (after[1] - before[1])).item()


# %%
assert last[0] < first[0] - 0.2 and last[1] > first[1] + 0.1 and price(first, last) < 0.5
assert curve[:, 1].diff().abs().max() < 0.6  # by chance, between neighbouring measurements
print("against the control: PSNR 0.2 dB or more lower, edges 10 points or more higher; below 0.5 dB for ten points")
separated = smooth(log, "logits_real", 40)[1][-1] - smooth(log, "logits_fake", 40)[1][-1]
assert separated > 0.1 and weights[:20].mean() > 100 and weights.min() > 3 and weights[-20:].mean() < 25
print("mean logits, last 40 steps: photographs more than 0.1 higher. Mean ½λ: from above 100 to below 25")

# %% [markdown]
# Lower left: at first the discriminator cannot tell the two apart; shifting both logits by c does not change its hinge loss:
# ½(1 − c) + ½(1 + c) = 1. Then they separate slowly. Lower right: its gradients are weak at first, so λ is large.

# %% [markdown]
# ## 5. What each safeguard prevents
#
# ### Isolation
#
# Two lines are easily forgotten, as in diffusers' example `train_autoencoderkl.py`: one freezes the discriminator in the
# autoencoder's step, one clears its gradients before its own step. (It does not detach the reconstructions either;
# here they are detached.)


# %%
def leaky_step(training, images, safeguard=None):
    """Both networks on one batch (in that script they take turns). Gradients are cleared only after each update."""
    (reconstruction, posterior), patchgan = training.model(images), training.patchgan
    patchgan.requires_grad_(safeguard != "frozen")
    nll, adversarial = pixel_loss(reconstruction, images, "l2"), adversarial_loss(patchgan(reconstruction))
    patchgan.requires_grad_(True)
    last_layer = training.vae.decoder.conv_out.weight
    pair = [torch.autograd.grad(term, last_layer, retain_graph=True)[0] for term in (nll, adversarial)]
    loss = nll + 1e-6 * kl_loss(posterior, images) + 0.5 * adaptive_weight(*pair) * adversarial
    loss.backward()  # into the discriminator, too, unless it is frozen
    training.optimizer.step(), training.optimizer.zero_grad()
    if safeguard == "cleared":
        training.disc_optimizer.zero_grad()
    terms = discriminator_loss(patchgan(images), patchgan(reconstruction.detach()))
    terms["disc_loss"].backward()  # added to the gradients that are there
    training.disc_optimizer.step(), training.disc_optimizer.zero_grad()
    return {name: value.item() for name, value in terms.items()}


# %% [markdown]
# All runs have the same batches and start, and use the discriminator from the first step on. They have one seed: small differences
# mean nothing. Does one of the two lines suffice?

# %%
AT_ONCE = replace(CONFIG, disc_start=0, ema=0.0)
adaptive, isolated, adaptive_curve = run(AT_ONCE, 40)
logs = {"isolated": isolated}
for name, safeguard, count in (("leaking", None, 40), ("frozen only", "frozen", 10), ("cleared only", "cleared", 10)):
    leaking = set_up(AT_ONCE, start_accelerator(AT_ONCE))
    logs[name] = [leaky_step(leaking, images, safeguard) for images in progress(batches[:count], desc=name)]

# %%
fig, axes = figure(1, 2, size=(8, 3))
for (name, found), style in zip(logs.items(), ("-", "--", "o", "+"), strict=True):
    for ax, key in zip(axes, ("disc_loss", "logits_fake"), strict=True):
        ax.plot([scalars[key] for scalars in found], style, fillstyle="none", label=name)
for ax, title in zip(axes, ("discriminator's loss", "logits of reconstructions"), strict=True):
    ax.set(xlabel="step", title=title)
axes[0].legend()
show(
    fig,
    alt="Isolated, the loss stays near 1 and the logits near 0, and so they do with either line put back. With the leak both keep rising.",
)
for name in ("isolated", "frozen only", "cleared only"):
    loss, *both = (logs[name][-1][key] for key in ("disc_loss", "logits_real", "logits_fake"))
    assert loss < 1.1 and max(map(abs, both)) < 0.6, name
leaked = logs["leaking"]
assert sum(s["logits_fake"] - s["logits_real"] for s in leaked[-20:]) > 0
assert leaked[9]["disc_loss"] > 1.3 and leaked[-1]["disc_loss"] > 3 and leaked[-1]["logits_real"] > 5
print("isolated, or with one line: loss below 1.1, mean logits within ±0.6")
print("leaking: loss above 3, both mean logits above 5, reconstructions above photographs")

# %% [markdown]
# Either line suffices. With the leak the adversarial gradient, ½λ times as strong, outweighs the discriminator's own, and all logits
# rise. Only the log shows it: both mean logits rise together.
#
# ### An early start
#
# Now an *untrained* autoencoder, with the discriminator from the first step on, and without it:

# %%
folder = tempfile.TemporaryDirectory()
torch.manual_seed(0)
AutoencoderKL(vae.config).save_pretrained(folder.name)
UNTRAINED = replace(AT_ONCE, init=folder.name, lr=3e-4)
_, early_log, early = run(UNTRAINED, 60)
_, _, alone = run(replace(UNTRAINED, disc_start=10**6), 60)

# %%
fig, axes = figure(1, 2, size=(8, 3))
for ax, column, title in zip(axes, (1, 2), ("PSNR on held-out crops, dB", "their edges"), strict=True):
    ax.plot(early[:, 0], early[:, column], "o-", label="discriminator from step 1 on")
    ax.plot(alone[:, 0], alone[:, column], "s--", label="without")
    ax.set(xlabel="step", title=title)
axes[1].legend()
show(
    fig,
    alt="An untrained autoencoder over 60 steps. With the discriminator PSNR is lower at nearly every measurement. At step 10 the edges are above the originals' (1); from step 50 on both runs have about a fifth.",
)
easy, hard = (sum(scalars["disc_loss"] for scalars in found[20:]) / len(found[20:]) for found in (early_log, isolated))
assert early[:, 1].mean() < alone[:, 1].mean() - 0.4 and easy < 0.6 and hard > 0.9
assert early[0, 2] > alone[0, 2] + 0.3 and (early[-2:, 2] - alone[-2:, 2]).abs().max() < 0.2
print("PSNR: on average more than 0.4 dB lower. disc_loss: below 0.6, with the trained autoencoder above 0.9")

# %% [markdown]
# The discriminator's task is easy (1 is undecided, 0 is certain). It costs decibels, and the edges of step 10 do not last. What this
# costs after thousands of steps is not measured here. But the pixel loss alone led the model at the top to 27.7 dB and 53 % of the
# edges.
#
# ### The adaptive weight
#
# Replace ½λ by a constant. In section 4 it was never below 3, so 0.5 alone would hardly act. Here are 40 steps with 50 and with
# 500:

# %%
curves = {"adaptive": adaptive_curve}
for constant in (50, 500):
    _, _, curves[f"constant {constant}"] = run(replace(AT_ONCE, adaptive=False, disc_weight=float(constant)), 40)
weak, strong, rule = (curves[name][:, 1:].mean(0) for name in ("constant 50", "constant 500", "adaptive"))

# %%
fig, ax = figure(size=(7, 4))
ax.plot(curve[:, 2], curve[:, 1], "o", color=GREY, markersize=4, label="section 4, 180 steps")
for (name, found), style in zip(curves.items(), ("s-", "v-.", "D--"), strict=True):
    ax.plot(found[:, 2], found[:, 1], style, markersize=4, label=name)
ax.set(xlabel="edges, relative to the originals'", ylabel="PSNR, dB"), ax.legend()
show(
    fig,
    alt="PSNR against edges. The adaptive run and the constant 50 stay near the points of section 4. With 500, PSNR is lower for the same edges.",
)
assert strong[0] < rule[0] - 0.2 and (strong[1] - rule[1]).abs() < 0.08
assert weak[0] > rule[0] - 0.2 and (weak[1] - rule[1]).abs() < 0.08
print("means of four measurements: edges within 8 points of the rule's")
print("PSNR: with 500 more than 0.2 dB below the rule's, with 50 not")

# %% [markdown]
# With 500 PSNR is lower at like edges, in these 40 steps; 50 and the rule cannot be told apart. So a constant may do as well, but must
# be found first; the rule needs no search.

# %% [markdown]
# ## 6. Averaged weights
#
# Each step moves the weights a little to one side of where the run is heading. A running average of them, an *exponential moving
# average* (EMA), is steadier. Each update keeps the share d of the average. With d near 1 it would remember the untrained weights
# for long, so CompVis begins with less (`ldm/modules/ema.py`). After how many updates is d = 0.9999?
#
# $$\bar w \leftarrow d\, \bar w + (1 - d)\, w, \qquad d = \min\!\left(\text{decay}, \frac{1 + n}{10 + n}\right)$$

# %% [markdown]
# {{exercise 08.4}}
#
# Write update n = 1, 2, … for lists of tensors, in place: the averages belong to a model, which must see the change. No graph
# may grow in them.


# %%
def ema_update(averages, weights, n, decay=0.9999):
    """Update n = 1, 2, …: move each average, in place, towards its weight. Returns the averages."""
    # BEGIN SOLUTION
    d = min(decay, (1 + n) / (10 + n))
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            average.mul_(d).add_(weight, alpha=1 - d)
    return averages
    # SKELETON
    #| d, one_minus_d = ...  # the share that stays, and the rest
    #| with torch.no_grad():
    #|     for average, weight in zip(averages, weights):
    #|         ...           # in place
    #| return averages
    # END SOLUTION


ema_update = check("08.4", ema_update)

# %%
for n in (1, 100, 10_000, 90_000):
    (share,) = ema_update([torch.zeros((), dtype=torch.float64)], [torch.ones((), dtype=torch.float64)], n)
    print(f"update {n:6,}: share of the new weights {share:.2g}")

# %% [markdown]
# After about 90,000: a shorter run never reaches it. An optional section at the end looks at the average of section 4's run.

# %% [markdown]
# ## 7. Saving and resuming a run
#
# Machines stop. You load the weights from a file and train on. What does the next step read that is not a weight?

# %% [markdown]
# {{exercise 08.5}}
#
# A small run has a model with dropout, Adam, and an average. Take a `snapshot` from which `restore` (given) makes a run that continues
# exactly as this one would. This run continues, too, and changes its tensors in place.


# %%
@dataclass
class Run:
    """A training run between two steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module  # the model with averaged weights
    step: int = 0


print(inspect.getsource(restore))


# %%
def snapshot(run):
    """All that `restore` needs, under the keys "model", "optimizer", "average", "step" and "random"."""
    # BEGIN SOLUTION
    return {
        "model": copy.deepcopy(run.model.state_dict()),
        "optimizer": copy.deepcopy(run.optimizer.state_dict()),
        "average": copy.deepcopy(run.average.state_dict()),
        "step": run.step,
        "random": torch.get_rng_state(),
    }
    # SKELETON
    #| return {"model": ..., "optimizer": ..., "average": ..., "step": ..., "random": ...}
    # END SOLUTION


snapshot = check("08.5", snapshot)

# %% [markdown]
# The optimiser's averages, the random state and the step. Now the real loop: four steps, a checkpoint, two more steps. Then the last
# two again: once from the whole checkpoint, once from the networks' weights alone.


# %%
def make(training, first, last):
    for images in batches[first:last]:
        training.begin_step()
        scalars, reconstructions = steps.generator_step(training, images)
        steps.discriminator_step(training, images, reconstructions)


SHORT = replace(CONFIG, disc_start=0)
unbroken, resumed, from_weights = (set_up(SHORT, start_accelerator(SHORT)) for _ in range(3))
torch.manual_seed(0)
make(unbroken, 0, 4)
checkpoint = Path(folder.name) / "step_4"
save_checkpoint(unbroken, checkpoint)
weights_alone = {name: tensor.clone() for name, tensor in networks(unbroken).items()}
make(unbroken, 4, 6)
print(sorted(path.name for path in checkpoint.iterdir()))

# %% [markdown]
# The order of the data and the learning rate follow from the step, which is in `state.json`.


# %%
def gap(training):
    pairs = zip(networks(unbroken).values(), networks(training).values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


load_checkpoint(resumed, checkpoint)
make(resumed, 4, 6)
with torch.no_grad():
    for name, tensor in networks(from_weights).items():
        tensor.copy_(weights_alone[name])
make(from_weights, 4, 6)
print("whole checkpoint: largest |Δ| after two steps", gap(resumed))
assert gap(from_weights) > SHORT.lr / 2
print(f"weights alone: largest |Δ| more than half the learning rate of {SHORT.lr:g}")
folder.cleanup()

# %% [markdown]
# Equal to the last bit in the first case; off by about one step's length in the second: Adam begins without its averages, and the
# posterior draws other noise. `klvae train mini --resume auto` starts the recipe `mini`, or resumes it.

# %% [markdown]
# ## 8. A discriminator that dies, and is saved
#
# For `klvae diagnose` (07) a discriminator has *died* when it is no better than a guess at the end. Here is one that learns first, in a
# run made to fail, with tiny networks on 16-pixel crops. The discriminator is trained from step 1 and used from step 61 on, with 100 times the
# learning rate of section 4. Will its loss end near 0, near 1, or far above?

# %%
torch.manual_seed(0)
tiny = AutoencoderKL(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False)
small = [*DataLoader(image_dataset("photos", 16, seed=0, length=1280), batch_size=8)]
with tempfile.TemporaryDirectory() as weights_of_tiny:
    tiny.save_pretrained(weights_of_tiny)
    DYING = replace(
        CONFIG, init=weights_of_tiny, size=16, reduction="mean", lr=2e-3, disc_lr=0.05, ema=0.0,
        disc_start=60, disc_warmup=60, disc_channels=16, disc_layers=1,
    )  # fmt: skip
    SAVED = replace(DYING, disc_lr=5e-4)
    dying, saved = (run(config, 160, small, measure=0)[1] for config in (DYING, SAVED))

# %% [markdown]
# It ends near 1, a guess. Call the function behind `klvae diagnose`:

# %%
for name, config, found in (("first run", DYING, dying), ("one change", SAVED, saved)):
    findings = diagnose(config, found)
    print(f"{name}, disc_lr={config.disc_lr:g}:", *[finding.name for finding in findings] or ["nothing found"])
    for finding in findings:
        assert finding.evidence.startswith("It had learnt")
        print("   ", finding.advice)

# %% [markdown]
# The betas are 0.5 and 0.9 already, so `disc_lr` remains. The second run has a hundredth of it; nothing else is changed. Both logs, as
# means of ten steps:

# %%
fig, axes = figure(1, 3, size=(10, 3))
for label, found, style in (("dies", dying, "-"), ("saved", saved, "--")):
    at, real = smooth(found, "logits_real")
    axes[0].plot(*smooth(found, "disc_loss"), style, label=label)
    axes[1].plot(at, real - smooth(found, "logits_fake")[1], style)
    axes[2].semilogy(*smooth(found, "adversarial_weight"), style)
for ax, title in zip(axes, ("discriminator's loss", "logits: photographs − reconstructions", "weight ½λ"), strict=True):
    ax.set(title=title, xlabel="step", xlim=(0, 165)), ax.axvline(60, color=GREY, linestyle=":")
axes[0].legend()
show(
    fig,
    alt="A discriminator that dies, and the same run with a hundredth of its learning rate. Until step 60 (dotted line) the first discriminator learns, loses it again near step 25 (loss above 1) and learns anew; the second learns throughout. At the end the loss of the first is 1, the difference of its logits 0, and ½λ grows. The other still tells photographs from reconstructions.",
)
ends = [{key: sum(s[key] for s in found[-40:]) / 40 for key in found[-1]} for found in (dying, saved)]
assert ends[0]["adversarial_weight"] > 3 * ends[1]["adversarial_weight"]
assert ends[0]["disc_loss"] > ends[1]["disc_loss"] and ends[1]["logits_real"] > ends[1]["logits_fake"]
print("last 40 steps: ½λ of the dead discriminator is more than three times as large")

# %% [markdown]
# From step 61 on the difference shrinks in both runs; with the large learning rate it vanishes. The gradients become small, and λ makes
# up for their size: the decoder is trained on a gradient that means nothing.
#
# In longer runs of kl-f8-mini the betas mattered: with 0.9 and 0.99 four of five runs broke down, with CompVis' 0.5 and 0.9 and
# smaller learning rates none of five (`docs/training.md`). What to look for in a log:
#
# | symptom | cause | what to try |
# | --- | --- | --- |
# | `disc_loss` at 1, both mean logits alike | it has not learned, or has died | smaller `disc_lr`; betas 0.5, 0.9; `disc_warmup` |
# | `disc_loss` far above 1, both logits rise | the leak of section 5 | freeze; clear gradients |
# | `disc_loss` near 0, logits far apart | it wins | smaller `disc_lr`, later `disc_start` |
# | λ at its clamp in most steps | its gradient has vanished | longer `disc_warmup`; `disc_max_weight`, an upper limit of ½λ |
# | PSNR falls by 2 dB for good | its share is too large, or it has died | earlier checkpoint; smaller `disc_weight`; `disc_ramp`, a slow rise from 0 |

# %% [markdown]
# ## 9. The result, in pictures
#
# Two crops of the held-out photographs: before section 4's run, after it, and by the bundled `kl-f8-mini-16`. That has one latent
# number for 12 pixel values, too, but was trained on 63 photographs: 10,000 steps, and 2,500 with a discriminator.

# %%
places = {"chelsea": (88, 128), "coffee": (96, 240)}
crops = torch.stack([photographs("held-out")[name][:, y : y + 96, x : x + 96] for name, (y, x) in places.items()])
models = {"before": vae, "140 steps": training.vae, "kl-f8-mini-16": AutoencoderKL.from_bundled("kl-f8-mini-16")}
vae.load_state_dict(AutoencoderKL.from_pretrained(START, dtype=torch.float32).state_dict())
with torch.no_grad():
    columns = {"original": crops} | {name: model(crops).sample for name, model in models.items()}
edges_of = [sharpness(found, crops) for found in columns.values()]
assert edges_of[1] < edges_of[2] < 1.2
large = [found.repeat_interleave(3, 2).repeat_interleave(3, 3) for found in columns.values()]
show(
    image_grid([[found[row] for found in large] for row in range(2)], column_titles=[*columns]),
    alt="The eye of a cat and a cup of coffee: original and three reconstructions. After 140 steps the edges have more contrast than before, with some double lines beside them. The small model's colours are wrong both times. The longer training has the colours right, and some of the fur.",
    format="jpeg",
)

# %% [markdown]
# ## Going further: the gradient of one pass is exact (optional)
#
# Section 2's `one_pass` and the surrogate should have the gradient of the plain sum of losses. Compare all three in float64, where
# rounding hides no difference:


# %%
def gradient_of(scalar):
    parts = torch.autograd.grad(scalar, [*exact.parameters()], retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


exact, judge = copy.deepcopy(vae).double(), copy.deepcopy(discriminator).double().eval().requires_grad_(False)
photos = images.double()
posterior = exact.encode(photos).latent_dist
reconstruction = exact.decode(posterior.sample(torch.Generator().manual_seed(0))).sample

# %%
scalar, weight = one_pass(exact, judge, photos, posterior, reconstruction)
losses, kl = [lambda x: pixel_loss(x, photos, "l2"), lambda x: adversarial_loss(judge(x))], kl_loss(posterior, photos)
plain = gradient_of(losses[0](reconstruction) + weight * losses[1](reconstruction) + 1e-6 * kl)
by_surrogate = surrogate(reconstruction, losses, [1.0, weight]) + 1e-6 * kl
for name, value in {"one_pass": scalar, f"{whose('08.2', surrogate)} surrogate": by_surrogate}.items():
    print(f"{name}: relative |Δ| < 1e-10: {bool((gradient_of(value) - plain).norm() < 1e-10 * plain.norm())}")

# %% [markdown]
# ## Going further: the averaged weights of section 4 (optional)
#
# How much steadier is an average? It keeps 0.9 of itself and takes 0.1 of each new jump. Its variance stays
# v = 0.9² v + 0.1², so v = 0.01 / 0.19 = 0.1 / 1.9, for jumps with a standard deviation of 1.

# %%
torch.manual_seed(0)
jumps, average = torch.randn(2000), torch.zeros(())
kept = torch.stack([average := 0.9 * average + 0.1 * jump for jump in jumps])
print(f"standard deviation of the jumps {jumps.std():.1f}, of their average {kept[100:].std():.2f}", end="; ")
print(f"√(0.1 / 1.9) = {(0.1 / 1.9) ** 0.5:.2f}")

# %% [markdown]
# Here is the average of section 4's run, with a decay of 0.95 (reached near update 170):

# %%
fig, axes = figure(1, 2, size=(9, 3))
for ax, column, title in zip(axes, (1, 2), ("PSNR on held-out crops, dB", "their edges"), strict=True):
    ax.plot(curve[:, 0], curve[:, column], "o-", markersize=3, label="weights as they are")
    ax.plot(curve[:, 0], curve[:, column + 2], "s--", markersize=3, label="averaged")
    ax.set(xlabel="step", title=title), ax.legend()
show(fig, alt="PSNR and edges over the steps. The averaged weights follow both curves, smoother and a little behind.")

# %%
moves, ends = curve[4:, 1:].diff(dim=0).abs().mean(0), curve[-5:, 1:].mean(0)
assert moves[2] < moves[0] and moves[3] < moves[1] and ends[2] > ends[0] and ends[3] < ends[1]
print("averaged: steadier in both; over the last five, PSNR is higher and edges are lower")

# %% [markdown]
# Steadier, but not better: PSNR falls and edges rise, and an average that lags behind has more of the first and less of the second.
# It is meant for the end of a long run, where the weights move around one place.

# %% [markdown]
# ## Going further: the same loss in other units (optional)
#
# A constant weight that was found by trying belongs to the units of the loss. Take means over an image's 3,072 values
# (`reduction="mean"`), with the same `disc_weight` of 0.5 and the adaptive weight:

# %%
_, other_log, other = run(replace(AT_ONCE, reduction="mean"), 20)
first_weights = [sum(s["adversarial_weight"] for s in of_run[:20]) / 20 for of_run in (isolated, other_log)]
assert first_weights[0] > 100 and first_weights[1] < 0.1 and (other[-1, 1] - adaptive_curve[1, 1]).abs() < 0.2
print("mean ½λ of the first 20 steps: with sums above 100, with means below 0.1")
print("PSNR after step 20: within 0.2 dB of the run with sums")

# %% [markdown]
# The weights are a thousand times smaller and more, and the run is the same: the rule adapts to the new units.

# %% [markdown]
# ## Going further: learning rates and bfloat16 (optional)
#
# CompVis multiplies the base learning rate by everything that makes a step's batch larger (`main.py`, `--scale_lr`). For a base of
# 4.5e-6, batches of 12, 2 of them accumulated, on 1 GPU:

# %%
base, batch, accumulate, processes = 4.5e-6, 12, 2, 1
print(f"learning rate {base * batch * accumulate * processes:.3g}")

# %% [markdown]
# Whoever copies 4.5e-6 without the rule trains at a 24th of the rate. `bfloat16` makes it worse: it has 8 bits of precision, so a
# weight near 1 moves in steps of 0.004 to 0.008. Make 100 steps at 4.5e-6, all in one direction:

# %%
for dtype in (torch.float32, torch.bfloat16):
    weight = nn.Parameter(vae.get_parameters().to(dtype))
    weight.grad, old, optimizer = torch.ones_like(weight), weight.detach().clone(), torch.optim.Adam([weight], lr=base)
    for _ in range(100):
        optimizer.step()
    print(f"{str(dtype):15} {(weight != old).float().mean():.0%} of the weights have moved")

# %% [markdown]
# So weights stay in float32, and only the arithmetic between them may be 16 bits wide (`--mixed-precision bf16`, notebook 12).

# %% [markdown]
# ## Summary
#
# 1. Two networks, two optimisers, one batch: neither step may leave a gradient in the other network.
# 2. Take each loss's gradient at the reconstruction once; λ follows from them; their sum goes back in one pass.
# 3. After the discriminator's start PSNR falls while edges return. Compare runs by the decibels that ten points of edges cost.
# 4. Neither frozen nor cleared, the discriminator learns to be fooled. With too large steps it dies: loss 1, equal logits, a growing λ.
# 5. Resuming needs weights, both optimisers, the average, the random state and the step.
#
# ### Check yourself
#
# <details><summary>Your log shows a discriminator's hinge loss of 3, and rising. Where do you look?</summary>
#
# A healthy loss is 1 or below. Compare both mean logits: if they rise together, look for the autoencoder's gradient. Is the
# discriminator frozen in the autoencoder's step, and are its gradients cleared before its own?
# </details>
#
# <details><summary>After disc_start the PSNR has fallen by half a decibel. Do you stop?</summary>
#
# No. Look at pictures and at the edges. Stop if PSNR goes on falling while the edges no longer rise, or rise above 100 %.
# </details>
#
# <details><summary>Why is the surrogate's value of no use in the log?</summary>
#
# Only its gradient is right: adding any constant to it changes no gradient.
# </details>
#
# **Next:** [09](09_measuring_quality.ipynb), measuring quality. PSNR fell and the pictures became sharper: so which number should a
# table hold?
