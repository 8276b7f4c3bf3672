# %% [markdown]
# # 13 · For work: fine-tune, diagnose, choose
#
# {{badge}}
#
# A decoder that should suit your pictures, a run that broke overnight, a GPU that is too small: eight tasks from work, each with a
# small real case.
#
# **You will be able to**
#
# * fine-tune a decoder without changing a single latent, and prove it;
# * find the fault of a run or of a model by its symptom;
# * choose f and the number of channels, and say what the diffusion model pays for them;
# * name the layer at which float16 overflows, and the latent channel that carries nothing;
# * test a training step for two faults of public scripts, and compute what fits on a GPU.
#
# **You need** the model of [05](05_kl_f8_architecture.ipynb), the training step of [08](08_training_loop.ipynb), and PSNR and
# gradient energy from [09](09_measuring_quality.ipynb).
#
# {{budget}}

# %% tags=["environment"]

# %%
import contextlib
import copy
import io
import shlex
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from klvae_edu import AutoencoderKL
from klvae_edu.baselines import PatchPCA
from klvae_edu.cli import main
from klvae_edu.data import image_dataset, photographs
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.exercises import check, hint, solution, whose
from klvae_edu.metrics import gradient_energy, psnr
from klvae_edu.performance.memory import TensorMemory
from klvae_edu.plots import PALETTE, bars, figure, image_grid, show

# %% [markdown]
# The model is the small KL-f8 of the package, whose last stages were trained with a discriminator. The *held-out* crops are from
# two photographs that no training has used.


# %%
def crops(split, count, seed=0):
    return next(iter(DataLoader(image_dataset("photos", 64, split=split, seed=seed, length=count), batch_size=count)))


vae = AutoencoderKL.from_bundled("kl-f8-mini").eval().requires_grad_(False)
train, held_out = crops("train", 96, seed=3), crops("held-out", 32)

# %% [markdown]
# ## 1. Fine-tune the decoder, and keep the latents
#
# A diffusion model learns the latents of one encoder. If the encoder changes, that training is lost; the decoder may change. So the
# commonest job is to train the decoder alone, on the pictures that matter to you.
#
# The known example is `sd-vae-ft-mse`, Stable Diffusion's decoder, trained further with squared error and 0.1 LPIPS. Its model
# card gives 24.5 dB instead of 23.4. It works with every diffusion model for these latents.

# %% [markdown]
# An image passes four parts:
#
# `encoder` → `quant_conv` → **latent** → `post_quant_conv` → `decoder`
#
# What stands before the latent is frozen: its parameters get no gradients. What comes after it is trained.

# %% [markdown]
# {{exercise 13.1}}
#
# The model may have been loaded for inference, with all parameters frozen. Models such as SD3's have no convolutions around the
# latent: there, `vae.quant_conv` and `vae.post_quant_conv` are `nn.Identity`.


# %%
def decoder_only(vae):
    """Freeze the parts of `vae` that make the latents, train the rest -> a list of the parameters to train."""
    # BEGIN SOLUTION
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    for part in (vae.post_quant_conv, vae.decoder):
        part.requires_grad_(True)
    return [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    # SKELETON
    #| ...         # no gradients for what makes the latents
    #| ...         # gradients for the rest, whatever was before
    #| return ...
    # END SOLUTION


decoder_only = check("13.1", decoder_only)

# %% [markdown]
# A frozen encoder saves work, too: the posterior of a training image never changes, so it is computed once.

# %%
with torch.no_grad():
    posterior = vae.encode(train).latent_dist


def fine_tune(loss, seed, steps):
    """A copy of the model, its decoder trained for some steps of four crops each."""
    tuned, generator = copy.deepcopy(vae), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(decoder_only(tuned), lr=2e-4, betas=(0.5, 0.9), weight_decay=0.0)
    for _ in range(steps):
        chosen = torch.randint(len(train), (4,), generator=generator)
        noise = torch.randn(posterior.mean[chosen].shape, generator=generator)
        z = posterior.mean[chosen] + posterior.std[chosen] * noise
        optimizer.zero_grad()
        loss(tuned.decode(z).sample, train[chosen]).backward()
        optimizer.step()
    return tuned.requires_grad_(False)


# %% [markdown]
# After 24 steps with the squared error, three things are measured on held-out crops: the latents, PSNR, and the gradient
# energy ("edges") as a share of the originals'.


# %%
def quality(model):
    rebuilt = model.decode(model.encode(held_out).latent_dist.mode()).sample.clamp(-1, 1)
    edges = gradient_energy(rebuilt).mean() / gradient_energy(held_out).mean()
    return psnr(rebuilt, held_out).mean().item(), edges.item()


tuned = fine_tune(F.mse_loss, seed=0, steps=24)
(decibels, edges), (tuned_decibels, tuned_edges) = quality(vae), quality(tuned)

# %%
assert torch.equal(vae.encode(held_out).latent_dist.parameters, tuned.encode(held_out).latent_dist.parameters)
assert tuned_decibels > decibels + 0.2 and tuned_edges < edges - 0.1
print(f"means and log-variances after training with {whose('13.1', decoder_only)} function: the same bits")
print("PSNR on held-out crops: more than 0.2 dB higher; edges: weaker")
rows = {"held out": held_out[:6]} | {
    name: model(held_out[:6]).sample.clamp(-1, 1) for name, model in (("before", vae), ("after", tuned))
}
show(
    image_grid([*rows.values()], row_labels=[*rows]),
    alt="Six held-out crops, and their reconstructions before and after the fine-tuning. After it, textures are smoother.",
    format="jpeg",
)

# %% [markdown]
# More decibels, and less texture: not a better model, but another choice. The discriminator had added texture, which costs PSNR
# (notebook 09), and the squared error takes it away again.

# %% [markdown]
# So decide first what should improve. `sd-vae-ft-mse` makes the same trade: by its card PSNR rose, rFID rose as well (from 4.42 to
# 4.70), and pictures are smoother. The recipe `klvae train sd-vae-finetune` does it at full size, and has the sources of these
# numbers.

# %% [markdown]
# ## 2. Broken runs and broken models: symptom, cause, test
#
# From `docs/training.md`:
#
# | symptom | likely cause | test |
# | --- | --- | --- |
# | loss is NaN | step too large, or float16 | `diagnose`; section 4 |
# | `kl` falls to 0 | KL weight too large | `diagnose`; section 5 |
# | `disc_loss` stays at 1 | discriminator learns nothing | `diagnose` |
# | `disc_loss` goes to 0 | discriminator wins | `diagnose` |
# | PSNR falls at `disc_start`, and stays low | `disc_weight` too large | `diagnose` |
# | pattern repeats every f pixels | decoder sees too few neighbours | `inspect`: grid |
# | colours are off | other range or order of channels | `inspect`: colour shift |
# | soft pictures | pixel loss alone, too few steps | `inspect`: blur |

# %% [markdown]
# Both commands run in a shell. Here a function returns their lines. A small network keeps the runs short.

# %%
folder = tempfile.TemporaryDirectory()


def klvae(command):
    printed = io.StringIO()
    with contextlib.chdir(folder.name), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        main(shlex.split(command))
    return printed.getvalue().splitlines()


torch.manual_seed(0)
untrained = AutoencoderKL(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=None)
untrained.save_pretrained(Path(folder.name) / "untrained")
chelsea = photographs("held-out")["chelsea"][None, :, 80:208, 119:247]

# %% [markdown]
# Somebody wrote `--disc-lr 1e-7` where `1e-4` was meant. Everything runs, nothing warns. What will the log of 30 steps show?

# %%
RUN = """train --data sprites --init untrained --size 32 --batch-size 4 --steps 30 --held-out 4 --device cpu
    --disc-weight 0.5 --disc-channels 16 --disc-layers 1 --betas 0.5 0.9"""
klvae(f"{RUN} --disc-start 0 --disc-lr 1e-7 --out broken")
lines = klvae("diagnose broken")
assert "the discriminator died" in lines
print(lines[2], lines[4].strip(), sep="\n")

# %% [markdown]
# The hinge loss stays at 1, the loss of a guess: the autoencoder follows a judge that knows nothing. The finding "died" covers
# judges that never learned, as here, and judges that stopped, as in 08. Steps and values behind it are left out, because
# training differs a little between machines.

# %% [markdown]
# The advice, followed in both points: the usual learning rate, and ten steps in which it learns before it counts.

# %%
klvae(f"{RUN} --disc-start 10 --disc-warmup 10 --out mended")
print(klvae("diagnose mended")[-1])

# %% [markdown]
# Now a broken model, without a log. In a copy of the bundled one, the convolutions after the three upsamplings see no neighbours:
# each 3 × 3 kernel is replaced by its sum, in the middle. And a bias of the last layer is changed.

# %%
broken = copy.deepcopy(vae)
for block in broken.decoder.up_blocks[:3]:
    kernel = block.upsamplers[0].conv.weight
    kernel.copy_(F.pad(kernel.sum((2, 3), keepdim=True), (1, 1, 1, 1)))
broken.decoder.conv_out.bias[0] += 0.1
broken.save_pretrained(Path(folder.name) / "model")

# %% [markdown]
# `inspect` finds nothing in the bundled model. In the broken one:

# %%
INSPECT = "--data photos --size 128 --crops 8 --device cpu"
print("bundled:", klvae(f"inspect kl-f8-mini {INSPECT}")[-1])
findings = klvae(f"inspect model {INSPECT}")[-3:]
assert [line.split(":")[0] for line in findings] == ["blur", "grid", "colour shift"]
print(*findings, sep="\n")

# %%
pictures = [chelsea[0], vae(chelsea).sample[0].clamp(-1, 1), broken(chelsea).sample[0].clamp(-1, 1)]
show(
    image_grid([pictures], column_titles=["photograph", "bundled model", "broken model"]),
    alt="A cat's eye: the photograph, the bundled model, and the broken model, whose picture is made of squares of 8 × 8 pixels and too red.",
    format="jpeg",
)

# %% [markdown]
# Both faults are named, each with a number and with what to try (ΔE is a distance of
# colours). The blur follows from the grid: within a square nothing changes. So mend one fault, and inspect again.

# %% [markdown]
# ## 3. Choose f and the number of channels
#
# f is the side of a latent pixel in image pixels, c the number of latent channels. A latent keeps $c / f^2$ numbers per pixel.
# To train a network for every choice takes days; patch-PCA (notebook 06), the best linear code, takes seconds. Its components are
# sorted, so one fit for each f serves every c.

# %%
fitted_to = torch.stack([photo[:, :384, :480] for photo in photographs("train").values()])
held = torch.stack([photo[:, :288, :448] for photo in photographs("held-out").values()])
CHANNELS, curves = (2, 4, 8, 16), {}
for f in (4, 8, 16):
    pca = PatchPCA(patch_size=f, components=16).fit(fitted_to)
    basis = pca.basis
    for c in CHANNELS:
        pca.basis = basis[:c]
        curves[f, c] = psnr(pca.reconstruct(held), held).mean().item()
print("PSNR in dB   " + "".join(f"c = {c:<6}" for c in CHANNELS))
for f in (4, 8, 16):
    print(f"f = {f:<8} " + "".join(f"{curves[f, c]:<10.1f}" for c in CHANNELS))

# %%
fig, ax = figure(size=(6, 3.4))
for f, style in ((4, "s-"), (8, "o--"), (16, "^:")):
    ax.semilogx([64 * c / f**2 for c in CHANNELS], [curves[f, c] for c in CHANNELS], style, base=2, label=f"f = {f}")
kept = [0.5, 1, 2, 4, 8, 16, 32, 64]
ax.set(xlabel="numbers kept for 8 × 8 pixels", ylabel="PSNR, dB", xticks=kept, xticklabels=kept), ax.legend()
assert curves[16, 16] > curves[8, 4] + 1 and curves[8, 8] > curves[4, 2] + 1
assert min(curves[f, 2 * c] - curves[f, c] for f in (4, 8, 16) for c in (2, 4, 8)) > 1.5
show(
    fig,
    alt="PSNR of patch-PCA on two held-out photographs over the numbers kept for 8 × 8 pixels. Each curve rises with the channels; at an equal count of numbers the larger f lies higher.",
)

# %% [markdown]
# First, every doubling of c brings more than 1.5 dB. Second, at an equal count of numbers the *larger* f wins, by more than 1 dB:
# a large patch stores only once what its parts have in common. (Networks also see neighbouring patches: in 09's table f = 8 and 16
# are equal.)
#
# So the autoencoder alone would take many channels. A diffusion model has to learn them.

# %% [markdown]
# Let each latent pixel be one *token*. An image of side H has $(H/f)^2$ of them, and attention compares all pairs.

# %%
print("512 × 512   tokens   pairs of tokens   numbers to learn at c = 4 and at c = 16")
for f in (4, 8, 16):
    tokens = (512 // f) ** 2
    print(f"f = {f:<8} {tokens:<8} {tokens**2 / 1e6:<17.3g} {4 * tokens:<12} {16 * tokens}")

# %% [markdown]
# Twice the f means a quarter of the tokens and a sixteenth of the pairs. More channels cost no tokens, but each token has more
# numbers to predict. What the family chose (`klvae_edu/config.py`):
#
# | preset | f | c |
# | --- | --- | --- |
# | `kl-f4`, `kl-f16`, `kl-f32` (LDM paper) | 4, 16, 32 | 3, 16, 64 |
# | `sd-v1`, `sdxl` | 8 | 4 |
# | `sd3`, `flux` | 8 | 16 |
# | `flux2` | 8 | 32 |

# %% [markdown]
# The later ones kept f = 8 and took more channels, as diffusion models became larger. Begin there: f = 8, and c = 4 for a small
# diffusion model, 16 for a large one. Draw this curve for *your* pictures first: a network has to beat it.

# %% [markdown]
# ## 4. float16, and a hunt for the first NaN
#
# float16 ends at 65,504; bfloat16 has float32's range, but 8 bits of precision instead of 24 (notebook 12).
#
# | | float16 | bfloat16 |
# | --- | --- | --- |
# | weights, optimiser, EMA | float32 | float32: else small updates are lost |
# | forward pass | autocast | autocast |
# | norms, LPIPS, losses, adaptive weight | float32 | float32 |
# | gradients | loss scaling | as they are |
# | decoding | if `force_upcast` is false | yes |

# %% [markdown]
# A norm divides by the spread of its input. So nothing in the loss keeps a convolution before it from growing. Here one is made
# 50,000 times as large. Does the picture change?

# %%
decoder, z = vae.decoder, vae.post_quant_conv(vae.encode(chelsea[..., :64, :64]).latent_dist.mode())
grown = copy.deepcopy(decoder)
for parameter in grown.up_blocks[2].resnets[0].conv1.parameters():
    parameter *= 5e4
assert (grown(z) - decoder(z)).abs().max() < 1e-3
print("float32: max |Δ| < 1e-3;   float16: all finite:", bool(copy.deepcopy(grown).half()(z.half()).isfinite().all()))

# %% [markdown]
# In float32 it does not. In float16 it is broken, and nothing says where. *Forward hooks* (notebook 05) see the output of every
# module.

# %% [markdown]
# {{exercise 13.2}}
#
# Modules may be called in another order than `__init__` has them. The sum at the end of a block belongs to the block, not to one of
# its layers. Outputs that are no tensors are passed over. Leave no hook behind.


# %%
def first_nonfinite(model, x):
    """The name of the first module of `model(x)` whose output has a value that is not finite, or None."""
    # BEGIN SOLUTION
    found = []

    def look(name):
        def hook(module, inputs, output):
            if torch.is_tensor(output) and not output.isfinite().all():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None
    # SKELETON
    #| found = []
    #|
    #| def look(name):
    #|     def hook(module, inputs, output):
    #|         ...  # remember the name, if the output is a tensor and not finite
    #|
    #|     return hook
    #|
    #| ...          # a hook for every module, the forward pass, and the hooks off again
    #| return ...
    # END SOLUTION


first_nonfinite = check("13.2", first_nonfinite)

# %%
for name, model in {"bundled": decoder, "grown": grown}.items():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        print(f"{name:8} {str(dtype):15} {first_nonfinite(copy.deepcopy(model).to(dtype), z.to(dtype))}")

# %% [markdown]
# The convolution is found, and only in float16. The cure: divide its weights and bias. Any large factor would do, since the norm
# after it divides by the spread.

# %%
for parameter in grown.up_blocks[2].resnets[0].conv1.parameters():
    parameter /= 1e4
assert (grown(z) - decoder(z)).abs().max() < 1e-3
print("float16, mended:", first_nonfinite(copy.deepcopy(grown).half(), z.half()))

# %% [markdown]
# `sdxl-vae-fp16-fix` is a published cure of this kind: its model card says that SDXL's autoencoder was fine-tuned to the same
# output, with smaller weights and biases inside. Otherwise take bfloat16, or float32 for the layer that was found.

# %% [markdown]
# ## 5. Find a channel that carries nothing
#
# Where the KL term is too strong, a channel may *collapse* onto the prior: its mean is 0 for every image, its posterior as wide as
# the prior, $\sigma = 1$. It holds only noise. A *dead* channel is constant: its mean never changes, and σ is small. The share of
# signal in the variance shows both:
#
# $$\text{signal} = \frac{\mathrm{Var}(\mu)}{\mathrm{Var}(\mu) + \mathrm{mean}(\sigma^2)}$$

# %% [markdown]
# Channel 2 of a copy is collapsed by hand. `quant_conv` gives four means, then four log-variances: rows 2 and 6 become 0. The
# decoder ignores the channel, as it would learn to.

# %%
collapsed = copy.deepcopy(vae)
for row in (2, 6):
    collapsed.quant_conv.weight[row] = 0
    collapsed.quant_conv.bias[row] = 0
collapsed.post_quant_conv.weight[:, 2] = 0

# %%
for name, model in {"bundled": vae, "collapsed": collapsed}.items():
    of = model.encode(held_out).latent_dist
    spread, width = of.mean.std((0, 2, 3)), of.std.square().mean((0, 2, 3)).sqrt()
    signal = spread**2 / (spread**2 + width**2)
    for title, values in (("std of the means", spread), ("posterior width", width), ("signal", signal)):
        print(f"{name:10} {title:17}", "  ".join(f"{value:.2f}" for value in values))

# %% [markdown]
# PSNR does not show it. `klvae train` measures these rows at its end, and `inspect` names the channel:

# %%
assert signal.argmin() == 2 and signal[2] < 0.01
collapsed.save_pretrained(Path(folder.name) / "collapsed")
lines = klvae(f"inspect collapsed {INSPECT}")
print(next(line for line in lines if line.startswith("collapsed channels")))
folder.cleanup()

# %% [markdown]
# ## 6. Two faults of public trainers, caught by a test
#
# In diffusers' widely copied example (`docs/training.md`) the reconstruction is *not detached* in the discriminator's step, and
# LPIPS stands inside `torch.no_grad()`. Neither raises an error. One test finds both: it asks what an action does to the gradients
# of a network.

# %% [markdown]
# {{exercise 13.3}}
#
# `action` takes no arguments and is run once. `parameters` may be an iterator, such as `vae.parameters()`. A gradient `None`
# counts as zeros. An action that clears a gradient changes it.


# %%
def changes_gradients(action, parameters):
    """Run action(), and tell whether it changed the gradient of any of the parameters (None counts as zeros)."""
    # BEGIN SOLUTION
    parameters = list(parameters)

    def gradients():
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]

    before = gradients()
    action()
    return not all(map(torch.equal, before, gradients()))
    # SKELETON
    #| before = ...  # copies of the gradients
    #| action()
    #| after = ...
    #| return ...    # True or False
    # END SOLUTION


changes_gradients = check("13.3", changes_gradients)

# %% [markdown]
# First, the discriminator's step. It may change the discriminator only.

# %%
torch.manual_seed(0)
model, judge, images = AutoencoderKL.from_preset("tiny"), NLayerDiscriminator(3, 16, 1), train[:4, :, :32, :32]
optimizer = torch.optim.Adam(judge.parameters(), lr=1e-4)


def discriminator_step(fakes):
    loss = F.relu(1 - judge(images)).mean() + F.relu(1 + judge(fakes)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# %%
reconstruction = model(images).sample
for name, fakes in {"detached": reconstruction.detach(), "not detached": reconstruction}.items():
    changed = changes_gradients(partial(discriminator_step, fakes), model.parameters())
    print(f"{name:13} changes the autoencoder's gradients: {changed}")

# %% [markdown]
# The second line should be False as well. At the reconstruction, compare the direction of what leaks with the gradient of the
# autoencoder's own adversarial loss, $-\mathrm{mean}\,D(\hat x)$:

# %%
leaf = reconstruction.detach().requires_grad_()
(leak,) = torch.autograd.grad(F.relu(1 + judge(leaf)).mean(), leaf)
(wanted,) = torch.autograd.grad(-judge(leaf).mean(), leaf)
print(f"cosine of the two: {F.cosine_similarity(leak.flatten(), wanted.flatten(), dim=0):.1f}")

# %% [markdown]
# Minus one: the leak trains the autoencoder to be *recognised* as a copy. (So exactly only while every logit is above -1; below,
# the hinge is flat.)
#
# Second, the perceptual loss. A small layer of features stands in for LPIPS. The pixel loss has weight 0 here, so that all
# gradients come from the perceptual term.

# %%
features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).requires_grad_(False)


def perceptual(reconstruction):
    return (features(reconstruction) - features(images)).square().mean()


def inside_no_grad(reconstruction):
    with torch.no_grad():
        return perceptual(reconstruction)


# %%
def backward_of(term):
    reconstruction = model(images).sample
    (term(reconstruction) + 0 * F.mse_loss(reconstruction, images)).backward()


for term in (perceptual, inside_no_grad):
    model.zero_grad()
    changed = changes_gradients(partial(backward_of, term), model.decoder.parameters())
    print(f"{term.__name__:15} trains the decoder: {changed}")

# %% [markdown]
# The value is right in both, and in a run it falls, because the pixel loss lowers it, too. So the log shows nothing.

# %% [markdown]
# ## 7. What fits on a GPU of 16 GB
#
# Memory can be *computed* before a machine is rented. `TensorMemory` (notebook 12) counts the bytes of all tensors made inside it.
# First what does not depend on the images:


# %%
def training_step(model, images):
    F.mse_loss(model(images, sample_posterior=True).sample.float(), images.float()).backward()


with TensorMemory() as memory:
    counted = AutoencoderKL.from_preset("mini")
    optimizer = torch.optim.AdamW(counted.parameters())
    training_step(counted, torch.zeros(1, 3, 64, 64))
    optimizer.step()
print(f"{memory.now / counted.num_parameters():.3g} bytes a parameter: 4 each for weight, gradient and two averages")

# %% [markdown]
# Then the activations: what one *more* image adds to the peak. Under autocast on a GPU, convolutions compute in bfloat16, but
# PyTorch keeps GroupNorm in float32. Hooks that convert the inputs of layers imitate this.


# %%
def like_autocast(model):
    for module in model.to(torch.bfloat16).modules():
        if isinstance(module, (nn.GroupNorm, nn.Conv2d, nn.Linear)):
            dtype = torch.float32 if isinstance(module, nn.GroupNorm) else torch.bfloat16
            module.to(dtype).register_forward_pre_hook(lambda module, x, dtype=dtype: (x[0].to(dtype),))


def peak(preset, side, batch, checkpointing=False, bf16=False, device="meta"):
    with torch.device(device):
        counted, images = AutoencoderKL.from_preset(preset).train(), torch.zeros(batch, 3, side, side)
    if checkpointing:
        counted.enable_gradient_checkpointing()
    if bf16:
        like_autocast(counted)
    with TensorMemory() as memory:
        training_step(counted, images.to(counted.dtype))
    return memory.peak


def per_image(*arguments, **options):
    return peak(*arguments, 2, **options) - peak(*arguments, 1, **options)


# %% [markdown]
# On the `meta` device tensors have shapes and no values, so that Stable Diffusion's autoencoder can be counted here. Do such
# counts agree with real tensors, and does four times the area need four times the memory?

# %%
real = per_image("mini", 64, device="cpu")
assert abs(per_image("mini", 64) / real - 1) < 0.02 and abs(per_image("mini", 128) / real / 4 - 1) < 0.05
print("meta and real tensors agree within 2 %; twice the side: four times as much, within 5 %")

# %%
with torch.device("meta"):
    fixed = 16 * AutoencoderKL.from_preset("sd-v1").num_parameters()
free = 16e9 - 2e9 - fixed
print(f"COMPUTED, sd-v1 on 16 GB: {fixed / 1e9:.2f} GB for weights, gradients, AdamW\nGB an image, and images that fit")
for checkpointing in (False, True):
    for bf16 in (False, True):
        each = per_image("sd-v1", 256, checkpointing=checkpointing, bf16=bf16)
        words = f"{'autocast' if bf16 else 'float32':9}{'checkpointing' if checkpointing else ''}"
        sizes = (f"{s}²: {k * each / 1e9:5.2f} {free // (k * each):3.0f}" for s, k in ((256, 1), (512, 4)))
        print(f"{words:23}", "    ".join(sizes))

# %% [markdown]
# The table relies on these two checks. 2 GB are left free for the driver, workspaces and fragments: an assumption. LPIPS and the discriminator come on top.
# Autocast saves little here, because the norms keep float32; checkpointing saves most, for a second forward pass. Larger
# batches come from adding up the gradients of several small ones (`--accumulate`).

# %% [markdown]
# ## 8. What one seed moves
#
# An *ablation* compares two settings. Which loss gives the decoder of section 1 more decibels, L1 or the squared error? Each gets ten
# steps with four seeds. For one seed, both see the same crops and the same noise.

# %%
difference = {}
for seed in range(4):
    l1, l2 = (quality(fine_tune(loss, seed, steps=10))[0] for loss in (F.l1_loss, F.mse_loss))
    difference[f"seed {seed}"] = l1 - l2

# %%
values = torch.tensor([*difference.values()])
show(
    bars(difference, xlabel="PSNR with L1 minus PSNR with the squared error, dB"),
    alt="Four bars, one for each seed: the difference in PSNR between the two losses. Some are positive, some negative.",
)
assert values.min() < -0.05 and values.max() > 0

# %% [markdown]
# The answer depends on the seed, which here moves the crops and the posterior's noise, in a full training the first weights, too.
#
# So take three seeds or more, and give the whole range, as `docs/training.md` does. A difference smaller than the range is no
# result. And a short run tells little about a long one.

# %% [markdown]
# ## Summary
#
# 1. Encoder and `quant_conv` make the latents: frozen, they keep every bit. The decoder's loss trades PSNR against texture.
# 2. Begin with the symptom: `klvae diagnose` reads the log, `klvae inspect` measures the model.
# 3. More channels help the autoencoder, and are more to learn for the diffusion model; a small f costs it tokens.
# 4. A norm hides the scale of a convolution: float16 may overflow there, and a hook finds it. A collapsed channel has no signal.
# 5. A test of gradients catches what no log shows. Memory can be computed; one seed is no result.
#
# ### Check yourself
#
# <details><summary>A colleague fine-tunes the decoder and quant_conv, because "it is only a 1 × 1 convolution". What happens?</summary>
#
# quant_conv makes mean and log-variance. All latents move, and the diffusion model was trained on others.
# </details>
#
# <details><summary>A run has a good PSNR, and a scaling factor far above 1. What would you look at?</summary>
#
# The factor is 1 over the latents' standard deviation, so the latents are small: look for dead channels, whose means never change.
# </details>
#
# <details><summary>Your loss is NaN in step 2,000, in float16, and finite in bfloat16. What is the next step?</summary>
#
# Something passes 65,504. Run one batch from the last checkpoint in float16, and let hooks name the first module that is not finite.
# </details>
#
# **Next:** your own data, with `docs/training.md`; or [15, vector quantisation](15_vector_quantisation.ipynb), optional.
