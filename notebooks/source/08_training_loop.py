# %% [markdown]
# # 08 · The training loop
#
# {{badge}}
#
# All the parts are there: posterior, KL, encoder, decoder, losses, discriminator, adaptive weight. Here they are trained
# together, through the moment in which the discriminator is switched on. Then every safeguard is taken away, one at a time.
#
# **You will be able to**
#
# * write the autoencoder's step, with one pass back for all its losses, and say which gradients it may leave behind;
# * say who is trained when, and read a log through the discriminator's start;
# * recognise a run without isolation, without a late start, without the adaptive weight;
# * average weights, and stop a run so that it goes on as if nothing had happened.
#
# **You need** the losses of notebook 06, and 07: discriminator, adaptive weight, and its `discriminator_step`.
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
from klvae_edu.data import image_dataset
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.environment import progress
from klvae_edu.exercises import check, hint, solution
from klvae_edu.exercises.given import restore
from klvae_edu.losses import adaptive_weight, adversarial_loss, discriminator_loss, generator_loss, kl_loss, pixel_loss
from klvae_edu.metrics import psnr
from klvae_edu.plots import PALETTE, figure, image_grid, show
from klvae_edu.training import steps
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import set_up, start_accelerator
from klvae_edu.training.checkpoint import load_checkpoint, networks, save_checkpoint

BLUE, ORANGE, GREEN, GREY = *PALETTE[:3], "0.6"

# %% [markdown]
# Training from nothing takes hours. So you start where a long run stands when its discriminator is switched on: with a small
# autoencoder from the package, trained on L2 and KL only.

# %%
START = Path(klvae_edu.__file__).parent / "assets" / "narrow-start"
vae = AutoencoderKL.from_pretrained(START, dtype=torch.float32)
batches = [*DataLoader(image_dataset("photos", 32, seed=0, length=1440), batch_size=8)]
held_out = next(iter(DataLoader(image_dataset("photos", 32, split="held-out", length=32), batch_size=32)))
print(f"{vae.num_parameters():,} parameters; {len(batches)} batches of {tuple(batches[0].shape)}")

# %% [markdown]
# What does it lack? Take the energy of an image's edges, the mean square of the differences between neighbouring pixels, in the
# reconstruction and in the original. Guess the ratio.


# %%
def sharpness(images):
    """The energy of the edges in `images`, over that in the held-out crops."""
    energy = [x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean() for x in (images, held_out)]
    return (energy[0] / energy[1]).item()


with torch.no_grad():
    before = vae(held_out).sample
print(f"PSNR {psnr(before, held_out).mean():.1f} dB, edges {sharpness(before):.0%} of the originals'")

# %% [markdown]
# Nearly half of the edges' energy is gone: the mean of all plausible textures is no texture (notebook 06). This is what the
# discriminator is for. It can only punish what it has learnt to see, and it learns from the same run.

# %% [markdown]
# ## 1. What can go wrong between two networks?
#
# One batch, two networks, two optimisers, opposite wishes. The autoencoder's loss runs *through* the discriminator. Before you
# run the cell: after one `backward()` of the autoencoder's adversarial loss, which of the two networks holds gradients?

# %%
torch.manual_seed(0)
discriminator = NLayerDiscriminator(num_filters=32, num_layers=2)
images = batches[0]
adversarial_loss(discriminator(vae(images).sample)).backward()
for name, network in {"autoencoder": vae, "discriminator": discriminator}.items():
    held = sum(parameter.grad is not None for parameter in network.parameters())
    print(f"{name}: {held} of {sum(1 for _ in network.parameters())} weights hold a gradient")

# %% [markdown]
# (The encoder's too: the loss runs through the latent.) The discriminator holds a gradient that wants *higher* logits for
# reconstructions, the contrary of its own aim. If its optimiser steps without clearing, it learns to be fooled. Section 5 does so.

# %%
vae.zero_grad(), discriminator.zero_grad()
print("cleared:", all(p.grad is None for network in (vae, discriminator) for p in network.parameters()))

# %% [markdown]
# ## 2. How does the autoencoder learn from three losses at once?
#
# Its loss is a sum, in CompVis' units: nll and KL are sums over an image's values, averaged over the batch; the adversarial term
# is a mean over all logits.
#
# $$L = \mathrm{nll} + 10^{-6}\, \mathrm{KL} + \tfrac12\, \lambda \cdot \big(-\mathrm{mean}\, D(\hat x)\big), \qquad
# \lambda = \frac{\lVert\nabla\,\mathrm{nll}\rVert}{\lVert\nabla\,\mathrm{adversarial}\rVert + 10^{-4}}$$
#
# The gradients in λ are those at the decoder's last layer, and λ is clamped to 10⁴ (07). nll is the reconstruction loss; here it
# is L2 alone: the perceptual term's trained VGG16 would have to be downloaded.

# %% [markdown]
# {{exercise 08.1}}
#
# One step, in plain PyTorch: `vae.encode(images).latent_dist` is the posterior, `kl_loss(posterior, images)` its KL,
# `vae.decode(…).sample` the images. The discriminator judges but must not learn: meanwhile its weights ask for no gradient
# (`requires_grad_(False)`). The optimiser is the autoencoder's.
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
    #| posterior, reconstruction = ...  # a sample of the posterior is decoded, not the mean
    #| nll, kl = ...                    # L2 and KL, with the losses imported above
    #| adversarial = ...                # the discriminator's weights keep no gradient of this
    #| weight = ...                     # disc_weight times the adaptive weight, at vae.decoder.conv_out.weight
    #| loss = ...                       # three terms
    #| ...                              # clear, backward, update
    #| return ...
    # END SOLUTION


generator_step = check("08.1", generator_step)

# %% [markdown]
# Does it keep to itself? Make one step and look at both networks (`get_parameters` gives all weights as one vector). `None` is
# stricter than zero: nothing came. And how often does a gradient pass back through the discriminator?

# %%
optimizer = torch.optim.Adam(vae.parameters(), lr=2e-4, betas=(0.5, 0.9))
old = vae.get_parameters(), nn.utils.parameters_to_vector(discriminator.parameters()).detach()
passes = []
hook = discriminator.register_full_backward_hook(lambda *_: passes.append(1))
generator_step(vae, discriminator, optimizer, images)
hook.remove()
print("autoencoder moved:", not torch.equal(vae.get_parameters(), old[0]))
assert torch.equal(nn.utils.parameters_to_vector(discriminator.parameters()), old[1])
print("discriminator: untouched, gradients", {parameter.grad for parameter in discriminator.parameters()})
print("passes back through the discriminator:", len(passes))

# %% [markdown]
# Two: the adversarial loss goes back once for λ and once for the update, and so does the nll, each through everything that it is
# made of. Can each be done once?

# %%
x = torch.tensor([1.0, -2.0, 0.0, 2.0, 3.0], requires_grad=True)
gradients = [torch.autograd.grad(loss(x), x)[0] for loss in (lambda x: x.square().sum(), lambda x: x.exp().sum())]
wanted = (gradients[0] + 0.5 * gradients[1]).detach()
print("gradient of the sum     ", [round(value, 2) for value in wanted.tolist()])
print("gradient of Σ x · wanted", [round(v, 2) for v in torch.autograd.grad((x * wanted).sum(), x)[0].tolist()])

# %% [markdown]
# The same five numbers. A *linear* function of x with slope g has the gradient g, whatever the losses were that g came from.
# So take each loss's gradient at the reconstruction, once; combine them as you like; and send back $\sum \hat x \cdot g$.

# %% [markdown]
# {{exercise 08.2}}
#
# Write this surrogate for any losses of the reconstruction. Their graphs end where they are taken: detach it into a leaf. Only
# the leaf's gradient is asked for, nobody else's. The surrogate itself keeps the graph that leads back into the autoencoder.


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
# Is it exact for a whole network? Compare all of the autoencoder's gradients with those of the plain sum, in float64, where
# rounding cannot hide a mistake. The weight 30 stands for ½λ.

# %%
exact, judge = copy.deepcopy(vae).double(), copy.deepcopy(discriminator).double().eval().requires_grad_(False)
photos = images.double()
losses = [lambda x: pixel_loss(x, photos, "l2"), lambda x: adversarial_loss(judge(x))]


def all_gradients(scalar):
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(scalar, [*exact.parameters()])])


# %%
reconstruction = exact(photos, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample
plain = losses[0](reconstruction) + 30.0 * losses[1](reconstruction)
mine = exact(photos, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample
a, b = all_gradients(plain), all_gradients(surrogate(mine, losses, [1.0, 30.0]))
assert (a - b).norm() / a.norm() < 1e-10
print("relative |Δ| of the whole gradient < 1e-10")

# %% [markdown]
# The package's step does that, but its second weight is not given: λ follows from both gradients. At the last convolution's weight
# they need no new pass through the losses: its output *is* the reconstruction, so one weight gradient of that layer turns each
# gradient there into one at the weight (`last_layer_gradients`, 07).

# %% [markdown]
# `frozen` is your `requires_grad_(False)` and back; `model` is the VAE and `accelerator` Accelerate's engine, both for several
# processes.
#
# `micro_batches` splits a batch too large for memory into `accumulate` pieces, `optimizer_step` clips the gradient and updates,
# `clamped` says whether λ met its limit. Where does the KL come in, and where does any graph end?

# %%
print(inspect.getsource(steps.generator_step))
print(inspect.getsource(steps.generator_losses))
print(inspect.getsource(steps.adversarial_weight))

# %% [markdown]
# The KL does not go through the reconstruction, so it is added to the surrogate as it is. `generator_loss` only names the terms
# for the log. What would a surrogate's *value* tell you? Nothing: only its gradient is meant.

# %% [markdown]
# ## 3. Who is trained when?
#
# The discriminator's step you wrote in notebook 07: the same batch, the reconstructions detached, its own optimiser. In the
# package's, `discriminator` wraps `patchgan` and judges both batches in one call. Find the `detach`; what becomes of gradients of
# earlier steps?

# %%
print(inspect.getsource(steps.discriminator_step))

# %% [markdown]
# When does it begin? In CompVis' configuration for KL-f8 after 50,001 steps (`disc_start`). An autoencoder should first get
# right what pixels can teach. Some let the discriminator train a while before it is heard: here that is `disc_warmup`. With
# `disc_start=4`, `disc_warmup=2`, what happens in step 3? And in step 5?

# %% [markdown]
# {{exercise 08.3}}
#
# Put both steps in order. `generator_step(images, adversarial)` returns the reconstructions; `discriminator_step(images,
# reconstructions)` returns nothing that you need. Steps count from 1; the first one *after* `disc_start` steps is heard.


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
# Step 3 of `disc_start=4`, `disc_warmup=2`, and step 5: did you guess right? The package asks its configuration:

# %%
config = TrainingConfig(disc_weight=0.5, disc_start=4, disc_warmup=2)
for step in range(1, 7):
    print(
        f"step {step}: discriminator trained {config.trains_discriminator(step)!s:5}  heard {config.adversarial(step)}"
    )

# %% [markdown]
# ## 4. What happens when the discriminator is switched on?
#
# Now the run: 40 steps as before, then 140 with the discriminator. Guess three curves: the PSNR of held-out crops, the energy of
# their edges, the weight ½λ. Which rise, which fall?

# %%
CONFIG = TrainingConfig(  # warmup is the learning rate's, no clipping: one thing at a time
    init=str(START), size=32, batch_size=8, device="cpu", reduction="sum", grad_clip=math.inf,
    lr=2e-4, disc_lr=5e-4, schedule="constant", warmup=0.0, betas=(0.5, 0.9), ema=0.95,
    disc_weight=0.5, disc_start=40, disc_channels=32, disc_layers=2,
)  # fmt: skip

# %% [markdown]
# Your `training_step` drives the package's two steps; `set_up` makes networks and optimisers from the configuration. Every ten
# steps the held-out crops are measured, with the weights as they are and with their running average, which section 6 explains.


# %%
def measured(vae):
    with torch.no_grad():
        found = vae(held_out).sample
    return psnr(found, held_out).mean().item(), sharpness(found)


def run(config, count, measure=10, step_of=training_step):
    training, log, curve = set_up(config, start_accelerator(config)), [], []
    models = [training.vae, training.averaged] if config.ema else [training.vae]

    def autoencoder(images, adversarial):
        assert adversarial == config.adversarial(training.step)  # the package asks its configuration
        scalars, reconstructions = steps.generator_step(training, images)
        log.append(scalars)
        return reconstructions

    def judge(images, reconstructions):
        log[-1].update(steps.discriminator_step(training, images, reconstructions))

    for images in progress(batches[:count], desc="training"):
        training.begin_step()
        step_of(training.step, images, autoencoder, judge, config.disc_start, config.disc_warmup)
        if measure and training.step % measure == 0:
            curve.append((training.step, *(value for model in models for value in measured(model))))
    return training, log, torch.tensor(curve)


training, log, curve = run(CONFIG, 180)


# %%
def smooth(log, name, width=10):
    """Means over the last `width` steps that have it, and their steps."""
    found = [(step, scalars[name]) for step, scalars in enumerate(log, 1) if name in scalars]
    values = torch.tensor([value for _, value in found])
    return [step for step, _ in found][width - 1 :], values.unfold(0, width, 1).mean(1)


def mark_start(ax, start=CONFIG.disc_start):
    ax.axvline(start, color=GREY, linestyle=":")


# %% [markdown]
# The training loss jumps from batch to batch more than it moves in the whole run, so look at the held-out crops. Logits are means
# of ten steps, the weight is as it comes. The dotted line is the discriminator's start.

# %%
first, last = curve[curve[:, 0] <= CONFIG.disc_start, 1:3].mean(0), curve[-5:, 1:3].mean(0)
weights = torch.tensor([scalars["adversarial_weight"] for scalars in log[CONFIG.disc_start :]])

# %%
fig, axes = figure(2, 2, size=(9, 5.4))
(quality, edges), (verdicts, loudness) = axes
quality.plot(curve[:, 0], curve[:, 1], "o-", color=BLUE, markersize=3)
edges.plot(curve[:, 0], curve[:, 2], "s-", color=ORANGE, markersize=3)
verdicts.plot(*smooth(log, "logits_real"), color=BLUE, label="photographs")
verdicts.plot(*smooth(log, "logits_fake"), color=ORANGE, linestyle="--", label="reconstructions")
loudness.semilogy(range(41, 181), weights, color=GREEN)
edges.axhline(1, color=GREY, linestyle="--"), verdicts.legend()
quality.set_title(f"PSNR on held-out crops, dB: {first[0]:.1f} → {last[0]:.1f}")
edges.set_title(f"their edges, of the originals': {first[1]:.0%} → {last[1]:.0%}")
verdicts.set_title("mean logits")
loudness.set_title(f"weight ½λ: up to {weights.max():.0f}; the last 20: {weights[-20:].mean():.0f}")
for ax in axes.flat:
    ax.set_xlim(0, 185), mark_start(ax)
loudness.set_xlabel("step"), verdicts.set_xlabel("step")
show(
    fig,
    alt="Four curves over 180 steps, the start at 40: PSNR level, then falling; edges level, then rising; logits that move together and slowly come apart; a weight that rises for some steps, then falls to a tenth.",
)

# %% [markdown]
# Above (in the titles: means before the start and of the last five): what it costs, and what it buys. PSNR goes *down*, and
# nothing is broken. An edge that is invented a pixel off costs more squared error than one left out.

# %% [markdown]
# What is the price, in decibels for ten points of edges? And how much do two neighbouring measurements differ by chance?


# %%
def price(before, after):
    """Decibels lost for ten points of edges won, between two pairs (PSNR, edges)."""
    return (0.1 * (before[0] - after[0]) / (after[1] - before[1])).item()


# %%
assert last[0] < first[0] - 0.2 and last[1] > first[1] + 0.1 and price(first, last) < 0.5
assert curve[:, 1].diff().abs().max() < 0.6
print("PSNR more than 0.2 dB lower, edges more than 10 points higher: below 0.5 dB for ten points")
print("neighbouring measurements: less than 0.6 dB apart")

# %% [markdown]
# One measurement says little; means of several do. Below, left: the logits move together, for an untrained judge cannot tell, and
# within ±1 moving both by c is free: ½(1 - c) + ½(1 + c) = 1. They part slowly. Right: its gradients are weak, so the balance makes it *loud*.

# %%
logits = {name: smooth(log, name, 40)[1] for name in ("logits_real", "logits_fake")}
assert logits["logits_real"][-1] - logits["logits_fake"][-1] > 0.1
assert weights[:20].mean() > 100 and weights[-20:].mean() < 25 and 2 < weights.argmax() < 30 and weights.min() > 3
print("mean logits of the last 40 steps: photographs more than 0.1 above reconstructions")
print("mean ½λ: above 100 in the first 20 steps, below 25 in the last 20; its peak is not the first step")

# %% [markdown]
# And what do the pictures say? Four of the held-out crops; the last row is what the run changed, four times as strong, around grey.

# %%
with torch.no_grad():
    after = training.vae(held_out).sample
chosen = [9, 25, 30, 10]
change = (4 * (after - before)).clamp(-1, 1)
rows = {"held out": held_out, "before": before, "after": after, "change × 4": change}
show(
    image_grid([images[chosen] for images in rows.values()], row_labels=[*rows]),
    alt="A cup, its saucer's rim and two crops with a cat's eye; reconstructed before the run, smooth; after it, slightly crisper; the change is grey but for double lines along rims and eyes.",
    format="jpeg",
)

# %% [markdown]
# The change sits on rims and around the eyes, light beside dark: contrast across edges. (The coffee is too red before and after;
# that is the small model.) 140 steps of a small judge only begin what takes a real run a hundred thousand.

# %% [markdown]
# ## 5. What does each safeguard prevent?
#
# ### Isolation
#
# Two lines are easily forgotten, as in diffusers' example `train_autoencoderkl.py`: the discriminator is not frozen in the
# autoencoder's step, and its gradients are not cleared before its own. What will its logits do? And is one cure enough?


# %%
def leaky_step(training, images, cure=None):
    """Both networks on one batch (that script lets them take turns); gradients are cleared only after each update."""
    (reconstruction, posterior), patchgan = training.model(images), training.patchgan
    patchgan.requires_grad_(cure != "frozen")
    nll, adversarial = pixel_loss(reconstruction, images, "l2"), adversarial_loss(patchgan(reconstruction))
    patchgan.requires_grad_(True)
    last_layer = training.vae.decoder.conv_out.weight
    pair = [torch.autograd.grad(term, last_layer, retain_graph=True)[0] for term in (nll, adversarial)]
    loss = nll + 1e-6 * kl_loss(posterior, images) + 0.5 * adaptive_weight(*pair) * adversarial
    loss.backward()  # into the discriminator, too, unless it is frozen
    training.optimizer.step(), training.optimizer.zero_grad()
    if cure == "cleared":
        training.disc_optimizer.zero_grad()
    terms = discriminator_loss(patchgan(images), patchgan(reconstruction.detach()))
    terms["disc_loss"].backward()  # added to what lies there
    training.disc_optimizer.step(), training.disc_optimizer.zero_grad()
    return {name: value.item() for name, value in terms.items()}


# %% [markdown]
# Same seed, same batches, same start, the discriminator on from the first step: with the package's steps; leaking; and ten steps
# with each of the two lines put back.

# %%
AT_ONCE = replace(CONFIG, disc_start=0, ema=0.0)
adaptive, kept_apart, adaptive_curve = run(AT_ONCE, 40)
logs = {"kept apart": kept_apart}
for name, cure, count in (("leaking", None, 40), ("frozen only", "frozen", 10), ("cleared only", "cleared", 10)):
    leaking = set_up(AT_ONCE, start_accelerator(AT_ONCE))
    logs[name] = [leaky_step(leaking, images, cure) for images in progress(batches[:count], desc=name)]

# %%
fig, axes = figure(1, 2, size=(8, 3))
for (name, found), style in zip(logs.items(), ("-", "--", "o", "+"), strict=True):
    for ax, key, color in zip(axes, ("disc_loss", "logits_fake"), (BLUE, ORANGE), strict=True):
        label = f"{name}: {found[-1][key]:.2f}"
        ax.plot([scalars[key] for scalars in found], style, color=color, fillstyle="none", label=label)
axes[0].set(xlabel="step", title="discriminator's loss (last value)"), axes[0].legend()
axes[1].set(xlabel="step", title="logits of reconstructions (last value)"), axes[1].legend()
show(
    fig,
    alt="Kept apart, loss and logits stay near 1 and 0, and so they do with either line put back; leaking, both climb without end.",
)

# %% [markdown]
# Either line stops it: frozen, no foreign gradient comes; cleared, none is used. Can the leaking one at least still tell photographs
# from reconstructions? Compare its logits:

# %%
for name in ("kept apart", "frozen only", "cleared only"):
    loss, *both = (logs[name][-1][key] for key in ("disc_loss", "logits_real", "logits_fake"))
    assert loss < 1.1 and max(map(abs, both)) < 0.6, name
print("kept apart, or with one line: loss below 1.1, mean logits below 0.6 in size")

# %%
leaked = logs["leaking"]
assert sum(s["logits_fake"] - s["logits_real"] for s in leaked[-20:]) > 0
assert leaked[9]["disc_loss"] > 1.3 and leaked[-1]["disc_loss"] > 3 and leaked[-1]["logits_real"] > 5
print("leaking: loss above 3, both mean logits above 5, reconstructions above photographs")

# %% [markdown]
# The discriminator has been trained to please: the adversarial gradient, ½λ times as strong, drowned what it should learn. No
# error, no NaN. But the log shows it: a healthy hinge loss stays at 1 (undecided) or below (it can tell), this one climbs far
# above, and both mean logits run off together.

# %% [markdown]
# ### A late start
#
# Now an *untrained* autoencoder, with the discriminator from the first step, and without one. Will it learn faster with a second
# teacher?

# %%
folder = tempfile.TemporaryDirectory()
torch.manual_seed(0)
AutoencoderKL(vae.config).save_pretrained(folder.name)
UNTRAINED = replace(AT_ONCE, init=folder.name, lr=1e-3)
_, with_judge, judged = run(UNTRAINED, 60)
_, _, alone = run(replace(UNTRAINED, disc_start=10**6), 60)

# %%
ends = [found[-3:, 1:].mean(0) for found in (alone, judged)]
fig, ax = figure(size=(6, 3))
names = "discriminator from step 1", "without"
for found, end, style, name in zip((judged, alone), ends[::-1], ("s--", "o-"), names, strict=True):
    ax.plot(found[:, 0], found[:, 1], style, label=f"{name}: edges {end[1]:.0%} in the end")
ax.set(xlabel="step", title=f"PSNR on held-out crops, dB; last three: {ends[1][0]:.1f} against {ends[0][0]:.1f}")
ax.legend(loc="lower right")
show(fig, alt="PSNR of an untrained autoencoder over 60 steps: with the discriminator it stays below the run without.")

# %% [markdown]
# PSNR lower, edges stronger, as in section 4. Why is it good there and bad here? Compare the price.

# %%
assert ends[1][0] < ends[0][0] - 0.5 and ends[1][1] > ends[0][1] and price(*ends) > 2 * price(first, last)
print("price of ten points of edges: more than twice that of section 4")

# %% [markdown]
# And it buys what would have come for nothing: pixels alone led the model at the top of this notebook to 27.7 dB *and* 53 % of the
# edges. In section 4 they had no more to give, PSNR and edges were level; only then is a decibel well spent.
#
# Is the second teacher at a loss, or is its task too easy? Its own loss says: 1 is undecided, 0 is certain.

# %%
easy, hard = (sum(s["disc_loss"] for s in found) / len(found) for found in (with_judge[20:50], kept_apart[20:]))
assert easy < 0.6 and hard > 0.9
print("discriminator's mean loss from step 21: below 0.6; with the trained autoencoder above 0.9")

# %% [markdown]
# Too easy: grey smears are no photographs, and pixels say more exactly what is wrong with them. So `disc_start` comes late.

# %% [markdown]
# ### The adaptive weight
#
# What if the weight is a constant? Here is ½λ in section 4 again, with three candidates: CompVis' 0.5 *as it is*, 50, and 500.
# Which of them would do?

# %%
fig, ax = figure(size=(6, 3))
ax.semilogy(range(41, 181), weights, color=GREEN, label=f"adaptive, ½λ: {weights.max():.0f} to {weights.min():.0f}")
for constant, style in ((500, "--"), (50, "-."), (0.5, ":")):
    ax.axhline(constant, color=ORANGE, linestyle=style, label=f"constant {constant}")
ax.set(xlabel="step", ylabel="weight", xlim=(35, 185)), ax.legend(loc=(0.02, 0.1))
show(fig, alt="The adaptive weight falls from some 300 to some 10; 50 crosses it, 500 lies above, 0.5 far below.")

# %% [markdown]
# In 140 steps the rule went through a factor of more than ten, crossing 50 on its way. Now 40 steps with each constant, the
# discriminator on from the first step, beside the adaptive run above. How would you tell good from bad: by PSNR, or by edges?

# %%
curves = {"adaptive": adaptive_curve}
for constant in (0.5, 50, 500):
    _, _, curves[constant] = run(replace(AT_ONCE, adaptive=False, disc_weight=float(constant)), 40)
ends = {name: found[-2:, 1:].mean(0) for name, found in curves.items()}

# %%
fig, ax = figure(size=(7, 4))
ax.plot(curve[:, 2], curve[:, 1], "o", color=GREY, markersize=4, label="section 4, 180 steps")
for (name, found), style in zip(curves.items(), ("s-", "^:", "v-.", "D--"), strict=True):
    label = f"{name}: {ends[name][0]:.1f} dB, {ends[name][1]:.0%}"
    ax.plot(found[:, 2], found[:, 1], style, markersize=4, label=label)
ax.set(
    xlabel="edges, relative to the originals'",
    ylabel="PSNR, dB",
    title="40 steps each (legend: mean of the last two points)",
)
ax.legend()
show(
    fig,
    alt="PSNR against edges: adaptive and 50 stay in the band of section 4's points, 0.5 at its beginning; 500 runs below it, and downwards.",
)

# %% [markdown]
# By PSNR alone 0.5 would do, by edges alone 500. What counts is one *for* the other. 0.5 buys nothing, it is not heard. 500 gets
# edges that section 4 got too, and pays more decibels for them.

# %%
assert (curves[0.5][:3, 1:] - curve[:3, 1:3]).abs().max() < 0.1  # section 4 before its start
assert price(ends[0.5], ends[500]) > 1.5 * price(first, last) and ends[500][0] < ends["adaptive"][0] - 0.4
assert (ends[50][0] - ends["adaptive"][0]).abs() < 0.6  # the spread of single measurements in section 4
print("0.5: as without a discriminator. 500: ten points of edges cost more than 1.5 times section 4's price")
print("50 against adaptive: nearer than two neighbouring measurements may be (0.6 dB)")

# %% [markdown]
# 50 and the rule cannot be told apart in 40 steps of one seed: a constant *can* be found, by trying. What the rule saves is the
# search.
#
# Does it have to be made again? Take the same loss in other units, each term averaged over an image's 3,072 values
# (`reduction="mean"`), with the same `disc_weight` of 0.5:

# %%
_, other_log, other = run(replace(AT_ONCE, reduction="mean"), 20)
first_weights = [sum(s["adversarial_weight"] for s in of_run[:20]) / 20 for of_run in (kept_apart, other_log)]
assert first_weights[0] > 100 and first_weights[1] < 0.1
print("mean ½λ of the first 20 steps: summed > 100, averaged < 0.1")
assert (other[-1, 1] - adaptive_curve[1, 1]).abs() < 0.2
print("PSNR after step 20: within 0.2 dB of the run with sums")

# %% [markdown]
# The rule's weights are a thousand times smaller and more, and the run goes as before: the ratio of gradients travels. A constant
# has to be found again when the units change.

# %% [markdown]
# ## 6. Which weights do you keep?
#
# Every step jumps a little to one side of where the run is heading, and the last weights are one such jump. A running average
# keeps 0.9 of itself and takes 0.1 of each new jump. With jumps of spread 1, what is left? Its variance stays v = 0.9² v + 0.1², so
# v = 0.01 / 0.19 = 0.1 / 1.9.

# %%
torch.manual_seed(0)
jumps, average = torch.randn(2000), torch.zeros(())
kept = torch.stack([average := 0.9 * average + 0.1 * jump for jump in jumps])
print(
    f"spread of the jumps {jumps.std():.1f}, of their average {kept[100:].std():.2f}; √(0.1 / 1.9) = {(0.1 / 1.9) ** 0.5:.2f}"
)

# %% [markdown]
# A running average needs one copy of the model (an *exponential moving average*, EMA): in each update the average keeps the
# share d of itself. Near 1 it remembers long, and would remember the untrained weights; so CompVis begins with less
# (`ldm/modules/ema.py`):
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
for n in (1, 10, 100, 10_000, 90_000):
    print(f"update {n:6,}: share of the new weights {1 - min(0.9999, (1 + n) / (10 + n)):.2g}")

# %% [markdown]
# With a decay of 0.9999 the warm-up lasts 90,000 updates: shorter runs never reach it. The run of section 4 kept an average too, by
# this formula (0.95, reached near update 170). Is it steadier? Is it better?

# %%
fig, axes = figure(1, 2, size=(9, 3))
for ax, column, title in zip(axes, (1, 2), ("PSNR on held-out crops, dB", "their edges"), strict=True):
    ax.plot(curve[:, 0], curve[:, column], "o-", color=BLUE, markersize=3, label="weights as they are")
    ax.plot(curve[:, 0], curve[:, column + 2], "s--", color=ORANGE, markersize=3, label="averaged")
    ax.set(xlabel="step", title=title), ax.legend(), mark_start(ax)
show(fig, alt="PSNR and edges over the steps: the averaged weights follow both curves, smoother and a little behind.")

# %%
moves, ends = curve[4:, 1:].diff(dim=0).abs().mean(0), curve[-5:, 1:].mean(0)
assert moves[2] < moves[0] and moves[3] < moves[1] and ends[2] > ends[0] and ends[3] < ends[1]
print(
    "averaged: steadier in both; over the last five, PSNR higher and edges lower than those of the weights as they are"
)

# %% [markdown]
# Steadier, yes. But not better: PSNR falls and edges rise, and an average that lags behind has a little more of the one and less
# of the other. It pays where the weights wander about a place, at the end of a long run.

# %% [markdown]
# One more number that recipes leave to a rule: CompVis multiplies the base learning rate by everything that makes a step's batch
# larger (`main.py`, `--scale_lr`). For a base of 4.5e-6, batches of 12, 2 of them accumulated, on 1 GPU:

# %%
base, batch, accumulate, processes = 4.5e-6, 12, 2, 1
print(f"learning rate {base * batch * accumulate * processes:.3g}")

# %% [markdown]
# Whoever copies 4.5e-6 without the rule trains at a 24th of the rate. In `bfloat16` it is worse: 8 bits of precision, so a weight
# near 1 moves in steps of 0.004 to 0.008. How many weights move at all in 100 steps at 4.5e-6, all in one direction?

# %%
for dtype in (torch.float32, torch.bfloat16):
    weight = nn.Parameter(vae.get_parameters().to(dtype))
    old, optimizer = weight.detach().clone(), torch.optim.Adam([weight], lr=base)
    weight.grad = torch.ones_like(weight)
    for _ in range(100):
        optimizer.step()
    print(f"{str(dtype):15} {(weight != old).float().mean():.0%} of the weights have moved")

# %% [markdown]
# So weights stay in float32, and only the arithmetic between them may be 16 bits wide (`--mixed-precision bf16`). That is
# notebook 12.

# %% [markdown]
# ## 7. What must be saved for a run to go on?
#
# Machines stop. You have the weights in a file, load them, and train on. Is that the same run? Guess what a step reads that is
# not a weight.

# %% [markdown]
# {{exercise 08.5}}
#
# A small run: a model with dropout, Adam, an average. Take a `snapshot` from which `restore` (given) makes a run that goes on
# exactly as this one would have. Meanwhile the run goes on, and changes its tensors in place.


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
# Now on the real loop. Four steps, a checkpoint, two more. Then twice from the checkpoint: once with everything, once with the
# networks' weights alone.


# %%
def make(training, first, last):
    for images in batches[first:last]:
        training.begin_step()
        scalars, reconstructions = steps.generator_step(training, images)
        steps.discriminator_step(training, images, reconstructions)


SHORT = replace(CONFIG, disc_start=0)
unbroken = set_up(SHORT, start_accelerator(SHORT))
make(unbroken, 0, 4)
checkpoint = Path(folder.name) / "step_4"
save_checkpoint(unbroken, checkpoint)
weights_alone = {name: tensor.clone() for name, tensor in networks(unbroken).items()}
make(unbroken, 4, 6)
print(sorted(path.name for path in checkpoint.iterdir()))

# %% [markdown]
# Networks, both optimisers, the random numbers, and a description with the step and a fingerprint of every file. The order of the
# data and the learning rate follow from the step (notebook 12 and `klvae_edu.training.loader`).

# %%
resumed, from_weights = (set_up(SHORT, start_accelerator(SHORT)) for _ in range(2))
load_checkpoint(resumed, checkpoint)
make(resumed, 4, 6)
with torch.no_grad():
    for name, tensor in networks(from_weights).items():
        tensor.copy_(weights_alone[name])
make(from_weights, 4, 6)


# %%
def gap(training):
    pairs = zip(networks(unbroken).values(), networks(training).values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


print("everything: largest |Δ| after two steps", gap(resumed))
assert gap(from_weights) > SHORT.lr / 2
print(f"weights alone: largest |Δ| more than half the learning rate of {SHORT.lr:g}")
folder.cleanup()

# %% [markdown]
# To the bit, or as far off as a step is long. Here three things are missing at once: Adam's memory, without which it begins with
# steps of full length in every direction; the random numbers, so that the posterior draws other noise; and the step.

# %% [markdown]
# All of this is one command. From the folder of the course:
#
# ```
# klvae train mini
# klvae train mini --resume auto
# klvae train --init klvae_edu/assets/narrow-start --lr 2e-4 --disc-weight 0.5 --disc-start 500 --disc-channels 32 --disc-layers 2
# ```
#
# The first is a recipe of 4,000 steps with a start at 3,000; the second goes on with it where it was cut off; the third goes on
# with the model of this notebook, in a folder `run`.

# %% [markdown]
# ## Summary
#
# 1. Two networks, two optimisers, one batch: neither step may leave a gradient in the other's network.
# 2. Gradients at the reconstruction, each loss once; λ from them; their sum goes back in one pass.
# 3. After the discriminator's start PSNR falls while edges come back: that is the trade, and its price in decibels tells good from bad.
# 4. Unfrozen *and* uncleared, the discriminator learns to be fooled; from the first step it sells dear what pixels give for nothing; a constant weight has to be searched for.
# 5. A run that goes on needs weights, both optimisers, average, random numbers and the step.
#
# ### Check yourself
#
# <details><summary>Your log shows a discriminator's hinge loss of 3, and rising. Where do you look?</summary>
#
# A healthy loss is at 1 or below; well above and rising is a fault. Compare both mean logits: if they run off together, one common
# cause is the other's gradient: is it frozen in the autoencoder's step, are its gradients cleared before its own?
# </details>
#
# <details><summary>After disc_start the PSNR has fallen by half a decibel. Do you stop?</summary>
#
# No. Look at pictures and at the edges: an invented edge beside the true one costs squared error. Stop if PSNR goes on falling while
# the edges no longer rise, or rise above 100 %.
# </details>
#
# <details><summary>Why is the surrogate's value of no use in the log?</summary>
#
# It is made to have the right slope at one point, nothing more: adding any constant to it changes no gradient.
# </details>
#
# **Next:** 09, measuring quality. PSNR fell and the pictures got sharper: so which number should a table hold?
