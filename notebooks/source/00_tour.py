# %% [markdown]
# # 00 · A tour: from a photograph to 4,096 numbers and back
#
# {{badge}}
#
# Stable Diffusion has two parts. One network generates a *latent*: an array with 48 times fewer numbers than a picture. The other,
# an autoencoder, turns latents into pictures, and pictures into latents. This course builds that autoencoder. In this notebook you
# build nothing yet: you use a small trained one, and look inside.
#
# **You will be able to**
#
# * say what goes into the autoencoder, what comes out, and which shapes are between;
# * compress a photograph with a trained autoencoder, and compare it with two baselines that need no network;
# * look at the channels of a latent, and see which pixels depend on one latent value;
# * choose your way through the course.
#
# **You need** Python and the basics of PyTorch: tensors, modules, an optimiser loop. No mathematics yet.
#
# {{budget}}

# %% tags=["environment"]

# %% [markdown]
# If the cell above printed versions, everything is in place. If not, its message says what to do. In a terminal, `klvae doctor`
# checks the rest. Now the imports, and a helper that draws images side by side:

# %%
import torch
import torch.nn.functional as F

from klvae_edu import AutoencoderKL
from klvae_edu.baselines import PatchPCA
from klvae_edu.data import image_dataset, photographs
from klvae_edu.diagrams import show_diagram
from klvae_edu.metrics import psnr
from klvae_edu.plots import maps, show, side_by_side


def compare(images, caption):
    """Draw images (3, H, W) side by side, each below its title."""
    show(side_by_side(images), alt=caption, format="jpeg")


# %% [markdown]
# ## 1. How many numbers is a photograph?
#
# Here is the whole autoencoder. The *encoder* turns a photograph into a mean and a variance for every latent value; a sample from
# them is the latent, z. The *decoder* turns the latent into a picture.

# %%
show_diagram("pipeline")

# %% [markdown]
# The photograph has 3 × 256 × 256 = 196,608 numbers, the latent 4 × 32 × 32 = 4,096. Here is the photograph of this notebook. It is
# *held out*: kept out of all training. Such images form the *validation set*, on which trained networks are judged.

# %%
photo = photographs("held-out")["chelsea"][None, :, 20:276, 100:356]  # (batch, colours, rows, columns), from -1 to 1
print("shape", tuple(photo.shape), " numbers", f"{photo.numel():,}")
print("darkest", round(photo.min().item(), 2), " brightest", round(photo.max().item(), 2))

# %%
compare({"256 × 256": photo[0]}, "A photograph: the face of a ginger tabby cat with green eyes.")

# %% [markdown]
# Images in this course are tensors (B, 3, H, W) with values from -1 to 1. Networks train well on numbers of this size.

# %%
latent_shape = (1, 4, 256 // 8, 256 // 8)
latent_numbers = 4 * 32 * 32
print(f"latent {latent_shape}: {latent_numbers:,} numbers, {photo.numel() // latent_numbers} times fewer")

# %% [markdown]
# The encoder shrinks each side by a factor of 8, which is called f. The latent therefore has 32 × 32 positions, the *latent
# pixels*. One latent pixel replaces a patch of 8 × 8 × 3 = 192 numbers by 4. The rest of the course is about choosing those 4 well.

# %% [markdown]
# ## 2. Two baselines without a network
#
# A *baseline* is a simple method that a better one has to beat. The first stores the average colour of every 8 × 8 patch, and
# repeats it 64 times on the way back. This takes 3 numbers per patch.

# %%
averages = F.avg_pool2d(photo, 8)
blocks = F.interpolate(averages, scale_factor=8)
print("averages", tuple(averages.shape), "-> picture", tuple(blocks.shape))
averages_db = psnr(blocks, photo).item()
print(f"PSNR {averages_db:.1f} dB")

# %% [markdown]
# PSNR, the peak signal-to-noise ratio, measures the squared error on a logarithmic scale, in decibels (dB). Higher is better: 10 dB
# more mean a tenth of the squared error.
#
# The second baseline is *linear*: principal component analysis (PCA) finds four fixed patterns in six other photographs. Each patch
# is then stored as four numbers, one for each pattern, which say how much of it to add to the mean patch. Of all such codes with
# four patterns, PCA has the smallest squared error on the photographs it was fitted to.

# %%
crops = image_dataset("photos", 64, length=512)  # of the photographs to train on; the cat is not among them
pca = PatchPCA(patch_size=8, components=4).fit(torch.stack([*crops]))
linear = pca.reconstruct(photo)
linear_db = psnr(linear, photo).item()
print(f"patch-PCA, 4 numbers per patch: PSNR {linear_db:.1f} dB")

# %%
compare(
    {"photograph": photo[0], "averages": blocks[0], "patch-PCA": linear[0]},
    "The cat three times: the photograph; squares of one colour; and patch-PCA, whose squares have simple shading. Patch-PCA's cat "
    "is pink, and its eyes are no longer green.",
)

# %% [markdown]
# Patch-PCA has the smaller error, but its cat is pink. The four patterns show the reason:

# %%
mean = pca.mean.view(3, 8, 8)
patterns = {f"pattern {index + 1}": mean + 6 * it.view(3, 8, 8) for index, it in enumerate(pca.basis)}
compare(
    {"mean patch": mean} | patterns,
    "The mean patch is a reddish grey. The four patterns, each added to it: darker; redder; darker on the left; darker at the "
    "bottom. A patch may also use them with a minus sign.",
)

# %% [markdown]
# Patterns 1, 3 and 4 change only the light. Pattern 2 changes the colour: it adds red, and takes away blue and green. Orange fur needs
# red and some green. Only pattern 2 can make a patch redder, and red without green is pink. Measure green against red and blue:


# %%
def green(image):
    """Average of green minus the mean of red and blue: above zero is greenish, below zero is pink to magenta."""
    return (image[:, 1] - (image[:, 0] + image[:, 2]) / 2).mean().item()


print(f"photograph {green(photo):.2f}, mean patch {green(mean[None]):.2f}, patch-PCA {green(linear):.2f}")
assert green(linear) < green(mean[None]) - 0.05 < green(photo)

# %% [markdown]
# Patch-PCA lacks green everywhere, in the eyes most visibly. PCA spends its four numbers on what varies most in the photographs
# that it was fitted to, and that is mainly light and dark.
#
# Both baselines treat every patch alone, and all patches in the same way. A network can use the neighbouring patches, and it can
# treat an edge, a whisker and a patch of fur differently.

# %% [markdown]
# ## 3. A trained network
#
# First the full size. This is Stable Diffusion's own architecture without weights: on PyTorch's `meta` device a network takes no
# memory, and still computes shapes. Its encoder returns a distribution over latents, the *posterior*; `mean` is its centre.

# %%
with torch.device("meta"):
    stable_diffusion = AutoencoderKL.from_preset("sd-v1")
    posterior = stable_diffusion.encode(torch.empty(1, 3, 256, 256)).latent_dist
megabytes = 4 * stable_diffusion.num_parameters() / 1e6
print(f"{stable_diffusion.num_parameters():,} parameters; latent {tuple(posterior.mean.shape)}")
print(f"weights in float32: {megabytes:.0f} MB")

# %% [markdown]
# A *preset* is a named configuration, here that of Stable Diffusion 1. You build this network in notebooks 03 to 05, and show that it
# computes the same as the one in *diffusers*, Hugging Face's library of diffusion models.
#
# For a laptop there is a smaller model with the same architecture. Before any training:

# %%
untrained = AutoencoderKL.from_preset("kl-f8-mini", seed=0)
with torch.no_grad():
    noise = untrained(photo).sample
untrained_db = psnr(noise, photo).item()
print(f"{untrained.num_parameters():,} parameters, f = {untrained.downsample_factor}; PSNR {untrained_db:.1f} dB")

# %% [markdown]
# Random weights give a random picture. The package also contains trained weights for this model, a file of four megabytes. The
# training took two to three hours on one CPU core, with 63 photographs (source: its recipe and model card). The cat is not among them.

# %%
vae = AutoencoderKL.from_bundled("kl-f8-mini").eval()
with torch.no_grad():
    posterior = vae.encode(photo).latent_dist
    rebuilt = vae.decode(posterior.mode()).sample  # mode(): the most likely latent, which is the mean
network_db = psnr(rebuilt, photo).item()
assert posterior.mean.shape == latent_shape and network_db > linear_db + 2

# %%
compare(
    {"photograph": photo[0], "untrained": noise[0], "trained": rebuilt[0]},
    "The photograph; coloured noise from the untrained network, in which the eyes can be guessed; and the cat from the trained "
    "network: clear, with fur a little soft, and green eyes.",
)

# %% [markdown]
# The trained network shows a cat without visible squares, and it keeps the green. It was trained on 63 photographs, and patch-PCA
# was fitted to six. To see whether that is the reason, fit PCA to this very cat, which is the best that any four patterns can do:

# %%
fitted_db = psnr(PatchPCA(patch_size=8, components=4).fit(photo).reconstruct(photo), photo).item()
decibels = {"averages": averages_db, "patch-PCA": linear_db, "patch-PCA of the cat": fitted_db}
decibels |= {"untrained": untrained_db, "trained": network_db}
print("method                PSNR in dB")
for method, db in decibels.items():
    print(f"{method:<20}  {db:10.1f}")
assert linear_db < fitted_db < network_db
assert abs(green(rebuilt) - green(photo)) < 0.02


# %%
def eye(images):
    """(1, 3, 256, 256) -> one eye of the cat, twice as large: (3, 160, 280)."""
    return images[0, :, 60:140, 20:160].repeat_interleave(2, 1).repeat_interleave(2, 2)


compare(
    {"photograph": eye(photo), "averages": eye(blocks), "patch-PCA": eye(linear), "network": eye(rebuilt)},
    "One eye from near: the photograph; squares; pink squares with shading; and the network's round green eye with a pupil. The "
    "network shows no squares.",
)

# %% [markdown]
# The network stores 4 numbers per patch like patch-PCA, and its squared error is about half as large (2.8 dB). More photographs are
# not the only reason: it is better even than PCA fitted to this cat (26.5 dB). Some details are lost: fine whiskers are gone, and
# single hairs are not where they were. Four numbers cannot say where each hair is.

# %% [markdown]
# Stable Diffusion 3 and FLUX keep 16 channels instead of 4. The latent then has 12 times fewer numbers than the picture, not 48. The
# package contains a second model of the same size with 16 channels.

# %%
sixteen = AutoencoderKL.from_bundled("kl-f8-mini-16").eval()
with torch.no_grad():
    finer = sixteen(photo).sample
finer_db = psnr(finer, photo).item()
print(f"4 channels {network_db:.1f} dB, 16 channels {finer_db:.1f} dB")
assert finer_db > network_db + 2

# %%
compare(
    {"photograph": eye(photo), "4 channels": eye(rebuilt), "16 channels": eye(finer)},
    "The eye from near: the photograph; from 4 channels, soft; from 16 channels, with single hairs around the eye.",
)

# %% [markdown]
# With 16 channels single hairs come back. Stable Diffusion 1 took only 4, because a second model has to *generate* the latent, and
# four times as many numbers are harder to generate (notebooks 09 and 11). The course uses 4 channels, unless it says otherwise.
#
# PSNR does not measure everything (notebook 09), but use patch-PCA as the baseline: a network that does worse on new pictures has
# not learned enough.

# %% [markdown]
# ## 4. What is in the latent?
#
# The latent has 4 channels of 32 × 32 values. Such an array (C, H, W) inside a network is called a *feature map*. Each channel can be
# drawn as a small grey picture.


# %%
def stretched(values):
    """One channel (H, W) -> (1, H, W), its smallest value black (-1) and its largest white (1)."""
    return (2 * (values - values.min()) / (values.max() - values.min()) - 1)[None]


z = posterior.mode()
channels = {f"channel {index + 1}": stretched(z[0, index]) for index in range(4)}
compare(
    {"photograph": photo[0]} | channels,
    "The photograph, and the latent's four channels in grey. The cat's face is visible in three of them, coarsely; the fourth "
    "looks like noise, with edges around one eye.",
)

# %% [markdown]
# The face is visible because the encoder consists of convolutions, which keep things in their places. Training chose what each channel
# stores: a mixture of light, colour and edges. Notebook 10 takes the channels apart.

# %% [markdown]
# So a latent pixel belongs to a place in the picture. To see which pixels depend on it, change one latent pixel, decode, and
# compare. Count the pixels that change by more than 0.05, and divide by 64, the number of pixels in one patch.

# %%
poked = z.clone()
poked[0, :, 16, 16] += 3 * z.std()
with torch.no_grad():
    change = (vae.decode(poked).sample - rebuilt).abs().amax(1)[0]
patches = (change > 0.05).sum().item() / 64
print(f"as many pixels changed as in {patches:.1f} patches")
assert patches > 2

# %%
fig = maps({"largest change of a colour": change[104:160, 104:160]}, cmap="magma", size=(4.6, 4))
fig.axes[0].plot([23.5, 31.5, 31.5, 23.5, 23.5], [23.5, 23.5, 31.5, 31.5, 23.5], color="white")
show(
    fig,
    alt="Changes in the decoded picture after one latent pixel was changed. They are largest inside its own patch (white square), "
    "and spread over the neighbouring patches.",
)

# %% [markdown]
# The decoder uses one latent pixel for a whole neighbourhood, which patch-PCA cannot do. Notebook 04 computes how far this reaches, and
# notebook 10 has sliders for it.
#
# The encoder returned a *distribution*, `posterior`. Compare its width, the standard deviation σ, with the *spread* of the means: their
# standard deviation over the latent. And decode a sample instead of the mean.

# %%
with torch.no_grad():
    sampled = vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample
print(f"σ {posterior.std.mean():.3f}, spread of the means {z.std():.2f}")
print(f"PSNR from the mean {network_db:.1f} dB, from a sample {psnr(sampled, photo).item():.1f} dB")
assert posterior.std.mean() < z.std() / 4 and abs(psnr(sampled, photo).item() - network_db) < 0.3

# %% [markdown]
# The noise is less than a tenth of the spread, so a sample gives nearly the same picture as the mean. Notebooks 01 and 02 explain why the
# encoder returns a distribution nevertheless.

# %% [markdown]
# ## 5. The map of the course
#
# | notebook | kind | you build | and see |
# | --- | --- | --- | --- |
# | 00 | core | nothing yet | this tour |
# | [01](01_diagonal_gaussian.ipynb) | core | the posterior: a Gaussian for every latent value | a trained posterior: mean, σ, samples |
# | [02](02_kl_loss.ipynb) | core | the KL term | a posterior that collapses when the KL weight is too large |
# | [03](03_resnet_blocks.ipynb) | core | ResNet blocks | gradients with and without the shortcut |
# | [04](04_resampling_and_attention.ipynb) | core | resampling and attention | which pixels one latent pixel depends on |
# | [05](05_kl_f8_architecture.ipynb) | core | the KL-f8 architecture | your network, equal to the original on the same weights |
# | [06](06_reconstruction_losses.ipynb) | core | reconstruction losses | why squared error blurs |
# | [07](07_patchgan.ipynb) | core | the PatchGAN discriminator | which patches it calls real |
# | [08](08_training_loop.ipynb) | core | the training loop | what each safeguard prevents |
# | [09](09_measuring_quality.ipynb) | core | quality measures | how to read the published tables |
# | [10](10_latent_space_explorer.ipynb) | core | edits of latents | your own photograph under sliders |
# | [11](11_latents_for_diffusion.ipynb) | core | a flow on latents | noise that becomes a latent, and then a picture |
# | [12](12_scaling_up.ipynb) | core, any time after 08 | tiles, memory, precision, many processes | what each of them saves |
# | [13](13_for_work.ipynb) | core, any time after 08 | for work: a fine-tuned decoder; a choice of f and channels; 16 bits | runs that go wrong, and the cause |
# | [15](15_vector_quantisation.ipynb) | optional, after 09 | vector quantisation: a codebook instead of a Gaussian | which codes are in use |
#
# Each notebook can be read alone: it uses the finished parts of the package for whatever you have not built. Its exercises are
# checked on the spot. Sections whose heading ends in "(optional)" can be left out.

# %% [markdown]
# ### A path of half a day
#
# For those who want to understand and use the autoencoder, but not to build every part: about three hours and a quarter.
# In each notebook run all cells first: where an exercise is open, the cells below it use the finished version.
#
# | part | minutes |
# | --- | --- |
# | this notebook | 35 |
# | 01, sections 1 to 3, and 6 | 30 |
# | 02, section 1 (the KL), 5 (why error plus KL) and 6 (eight weights) | 35 |
# | 05, section 8 (trained weights) | 5 |
# | 10 | 90 |
#
# The minutes count reading at 150 words a minute, three quarters of a minute for each code cell, and the exercises.
#
# ### Try it
#
# 1. Load a photograph of your own with `klvae_edu.data.load_image(path)`, cut its sides to multiples of 8, and put it through `vae`.
# 2. Decode a latent of zeros, and one of random numbers. (The first gives a nearly even grey, the second blotches of colour.)
# 3. Give the PCA more patterns. (7 are still behind the network with its 4 numbers per patch, 8 are ahead.)

# %% [markdown]
# ## Summary
#
# 1. The autoencoder maps 256 × 256 × 3 numbers to 32 × 32 × 4 and back: 48 times fewer.
# 2. Images are (B, 3, H, W) with values from -1 to 1; one latent pixel replaces a patch of 8 × 8.
# 3. Averages and patch-PCA are the baselines: a network has to beat four linear patterns per patch.
# 4. Latent pixels keep their place, and each of them affects a neighbourhood.
# 5. The encoder returns a distribution, not a point.
#
# ### Check yourself
#
# <details><summary>An image of 512 × 768: what is the shape of its latent, with f = 8 and 4 channels?</summary>
#
# 4 × 64 × 96. Still 48 times fewer numbers: the ratio does not depend on the size.
# </details>
#
# <details><summary>Why is it no proof of quality that a network reconstructs the photograph it was trained on?</summary>
#
# It may have memorised the photograph. What counts is a picture that it has never seen. `klvae train` therefore keeps a
# validation set out of the training: this cat is in it.
# </details>
#
# <details><summary>Which of the three, averages, patch-PCA or network, can use the neighbouring patch to describe an edge?</summary>
#
# Only the network. The other two treat each patch alone.
# </details>
#
# **Next:** [01, the posterior](01_diagonal_gaussian.ipynb).
