# %% [markdown]
# # 00 · A tour: from a photograph to 4,096 numbers and back
#
# {{badge}}
#
# Stable Diffusion never paints pixels. It paints *latents*, 48 times fewer numbers than the picture has, and an autoencoder turns
# them into the picture. This course builds that autoencoder. Today you only look around.
#
# **You will be able to**
#
# * say what goes into the autoencoder, what comes out, and which shapes lie between;
# * put a photograph through a small trained one, and judge it against two baselines that need no network;
# * open the box: look at latent channels, and see which pixels answer to one latent value;
# * find your way through the course.
#
# **You need** Python and a first acquaintance with PyTorch: tensors, modules, an optimiser loop. No mathematics yet.
#
# {{budget}}

# %% tags=["environment"]

# %% [markdown]
# If the cell above printed versions, everything is in place. If not, it says what to do; `klvae doctor` in a terminal checks the
# rest. Now the imports:

# %%
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu import AutoencoderKL
from klvae_edu.baselines import PatchPCA
from klvae_edu.data import image_dataset, photographs
from klvae_edu.metrics import psnr
from klvae_edu.plots import figure, show, side_by_side

# %% [markdown]
# ## 1. How many numbers is a photograph?
#
# Take a photograph of 256 × 256 pixels, three colours each. How many numbers is that? And how many would you dare to throw away?

# %%
photo = photographs("held-out")["chelsea"][None, :, 20:276, 100:356]  # (batch, colours, rows, columns), from -1 to 1
print("shape", tuple(photo.shape), " numbers", f"{photo.numel():,}")
print("darkest", round(photo.min().item(), 2), " brightest", round(photo.max().item(), 2))

# %%
show(side_by_side({"256 × 256": photo[0]}), alt="A photograph: the face of a ginger tabby cat.", format="jpeg")

# %% [markdown]
# Images in this course are tensors (B, 3, H, W) with values from -1 to 1: that is what the networks want. The latent of
# Stable Diffusion for such a picture has 4 channels of 32 × 32.

# %%
latent_shape = (1, 4, 256 // 8, 256 // 8)
latent_numbers = 4 * 32 * 32
print(f"latent {latent_shape}: {latent_numbers:,} numbers, {photo.numel() // latent_numbers} times fewer")

# %% [markdown]
# The side shrinks by f = 8, so that one latent pixel stands for a patch of 8 × 8 × 3 = 192 numbers, with only 4 to describe it.
# Everything from here on is about choosing those 4 well.

# %% [markdown]
# ## 2. Could you do it without a network?
#
# Let us first put together something that has the right shapes and does the most obvious thing: average every patch of 8 × 8, and on the
# way back repeat each average 64 times. Three of the four channels are then used. It is a *placeholder*: in the course you
# will replace it part by part.


# %%
class PlaceholderAutoencoder(nn.Module):
    """The right shapes, no learning: (B, 3, H, W) -> (B, 4, H/8, W/8) -> (B, 3, H, W)."""

    def encode(self, x):
        averages = F.avg_pool2d(x, 8)
        unused = torch.zeros_like(averages[:, :1])
        return torch.cat([averages, unused], dim=1)

    def decode(self, z):
        return F.interpolate(z[:, :3], scale_factor=8)


# %%
placeholder = PlaceholderAutoencoder()
latent = placeholder.encode(photo)
blocks = placeholder.decode(latent)
assert latent.shape == latent_shape and blocks.shape == photo.shape
print(f"PSNR {psnr(blocks, photo).item():.1f} dB")

# %% [markdown]
# PSNR, the peak signal-to-noise ratio, measures the error on a logarithmic scale: 10 dB more is a tenth of the squared error. Is there anything better than averages? Yes: the best *linear* code, four learned
# patterns per patch (principal component analysis, PCA), found in six other photographs.

# %%
crops = image_dataset("photos", 64, length=512)  # of the photographs to train on; this one is not among them
pca = PatchPCA(patch_size=8, components=4).fit(torch.stack([*crops]))
linear = pca.reconstruct(photo)
print(f"patch-PCA, 4 numbers per patch: PSNR {psnr(linear, photo).item():.1f} dB")

# %%
show(
    side_by_side({"photograph": photo[0], "averages": blocks[0], "patch-PCA": linear[0]}),
    alt="The cat three times: sharp; in coarse squares of one colour; and in squares with simple shading in them.",
    format="jpeg",
)

# %% [markdown]
# Squares, and squares with shading in them. Have you noticed the eyes? In patch-PCA's version they have lost their green, although
# its error is smaller: it spends its four numbers on what varies most, and that is light and dark.

# %% [markdown]
# Both treat every patch by itself and in the same way. What could a network do that
# they cannot? It can look at the neighbours, and it can treat an edge, a whisker and a patch of fur differently.

# %% [markdown]
# ## 3. What does the real thing look like?
#
# Here is Stable Diffusion's own architecture, without weights: on PyTorch's `meta` device it takes no memory and no time, and
# still tells its shapes. Its encoder answers with a distribution over latents, the *posterior*; for now only its mean matters, which `mode()` gives.

# %%
with torch.device("meta"):
    stable_diffusion = AutoencoderKL.from_preset("sd-v1")
    posterior = stable_diffusion.encode(torch.empty(1, 3, 256, 256)).latent_dist
print(f"{stable_diffusion.num_parameters():,} parameters; latent {tuple(posterior.mean.shape)}")

# %% [markdown]
# 84 million parameters. You will build it in notebooks 03 to 05 and prove that it equals the original. Its trained weights are a
# download of a few hundred megabytes, and training it takes weeks on a GPU. For a laptop there is a small sibling of the same
# make. What does it do before any training?

# %%
untrained = AutoencoderKL.from_preset("kl-f8-mini", seed=0)
with torch.no_grad():
    noise = untrained(photo).sample
print(f"{untrained.num_parameters():,} parameters, f = {untrained.downsample_factor}")
print(f"PSNR {psnr(noise, photo).item():.1f} dB")

# %% [markdown]
# Random weights, a random picture. And after training? The package brings this model's trained weights along, a file of four megabytes:
# hours on one CPU core, with 63 photographs. It has never seen this cat. Guess: does it beat patch-PCA?

# %%
vae = AutoencoderKL.from_bundled("kl-f8-mini").eval()
with torch.no_grad():
    posterior = vae.encode(photo).latent_dist
    rebuilt = vae.decode(posterior.mode()).sample
averages_db, linear_db, network_db = (psnr(image, photo).item() for image in (blocks, linear, rebuilt))
assert posterior.mean.shape == latent_shape
assert network_db > linear_db + 0.5
print("the network is more than half a dB above patch-PCA; the picture's titles say where all of them are")

# %%
show(
    side_by_side({"photograph": photo[0], "untrained": noise[0], f"trained, {network_db:.1f} dB": rebuilt[0]}),
    alt="The cat; coloured noise, brighter where its eyes are; and the cat again, clear, its fur a little soft.",
    format="jpeg",
)

# %% [markdown]
# A cat, a little soft, and no trace of squares. Look at it from near, beside the two that know no other patch. Where would you see
# the borders of the patches first?

# %%
eye = slice(60, 140), slice(20, 160)
show(
    side_by_side(
        {
            "photograph": photo[0][:, *eye],
            f"averages, {averages_db:.1f} dB": blocks[0][:, *eye],
            f"patch-PCA, {linear_db:.1f} dB": linear[0][:, *eye],
            f"network, {network_db:.1f} dB": rebuilt[0][:, *eye],
        }
    ),
    alt="One eye from near: sharp and green; squares; reddish squares with shading in them; and, from the network, a round eye with a pupil.",
    format="jpeg",
)

# %% [markdown]
# The same 4,096 numbers, and no squares: the network knows what edges look like, and may use the neighbours. Fine whiskers are lost, and
# single hairs of the fur are not where they were: four numbers for a patch do not say where each hair is.

# %% [markdown]
# Stable Diffusion 3 and FLUX keep 16 channels instead of 4, which is 12 times fewer numbers than pixels. The package brings a second
# model of the same size with 16 channels. How much do you expect to come back?

# %%
sixteen = AutoencoderKL.from_bundled("kl-f8-mini-16").eval()
with torch.no_grad():
    finer = sixteen(photo).sample
finer_db = psnr(finer, photo).item()
assert finer_db > network_db + 2

# %%
show(
    side_by_side(
        {
            "photograph": photo[0][:, *eye],
            f"4 channels, {network_db:.1f} dB": rebuilt[0][:, *eye],
            f"16 channels, {finer_db:.1f} dB": finer[0][:, *eye],
        }
    ),
    alt="The eye from near: the photograph; from 4 channels, soft; from 16 channels, with single hairs around the eye.",
    format="jpeg",
)

# %% [markdown]
# Hair by hair. Why then did Stable Diffusion take 4? Because another model has to *generate* the latent, and four times as many numbers
# are harder to generate (notebooks 09 and 11). The course stays with 4 channels, unless it says otherwise.

# %% [markdown]
# PSNR is not everything, as notebook 09 shows, but keep patch-PCA in mind as the bar: a network that does not pass it on pictures it
# has never seen has not learnt yet.

# %% [markdown]
# ## 4. What is in the box?
#
# The latent is a small picture itself: 4 channels of 32 × 32. Would you expect to recognise the cat in it?


# %%
def stretched(values):
    """One channel (H, W) -> (1, H, W), its smallest value black (-1) and its largest white (1)."""
    return (2 * (values - values.min()) / (values.max() - values.min()) - 1)[None]


z = posterior.mode()
channels = {f"channel {index}": stretched(z[0, index]) for index in range(4)}
show(
    side_by_side({"photograph": photo[0]} | channels),
    alt="The photograph, and the latent's four channels in grey; in three of them the cat's face can be recognised, coarsely.",
    format="jpeg",
)

# %% [markdown]
# You do, at least in three of them, because the encoder is made of convolutions, which keep things in their places. Each channel
# is whatever mixture of light, colour and edges served the training; the fourth has hardly more than edges. Notebook 10 takes them apart.

# %% [markdown]
# So a latent pixel belongs to a place in the image. But does it answer for its own 8 × 8 patch only? Change one latent pixel,
# and see which pixels of the decoded picture move.

# %%
poked = z.clone()
poked[0, :, 16, 16] += 3 * z.std()
with torch.no_grad():
    change = (vae.decode(poked).sample - rebuilt).abs().amax(1)[0]
moved = (change > 0.05).sum().item() / 64
assert moved > 2
print("pixels that move by 0.05 or more would fill more than two patches")

# %%
fig, ax = figure(size=(4.6, 4))
picture = ax.imshow(change, cmap="magma")
ax.plot([128, 136, 136, 128, 128], [128, 128, 136, 136, 128], color="white")  # the latent pixel's own patch
fig.colorbar(picture, label="largest change of a colour")
ax.set(xticks=[], yticks=[], xlim=(92, 172), ylim=(172, 92))  # the surroundings of the patch
ax.grid(False)
show(
    fig,
    alt="Where the picture changes when one latent pixel is poked: a bright spot around its own patch, fading over several patches.",
)

# %% [markdown]
# The white square is the latent pixel's own patch. The change is strongest there and spreads to its neighbours: the decoder
# looks around, as patch-PCA cannot. Notebook 04 computes how far it can look, and notebook 10 gives you sliders for this.
#
# Last question for today: the encoder answered with a *distribution*, `posterior`. How wide is it, compared with how much the
# latent varies from place to place? And does it matter for the picture whether you decode the mean or a sample?

# %%
with torch.no_grad():
    sampled = vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample
assert posterior.std.mean() < z.std() / 4
assert abs(psnr(sampled, photo).item() - network_db) < 0.3
print("the noise is less than a quarter as wide as the means are spread; a sample's PSNR is within 0.3 dB")

# %% [markdown]
# So a sample is nearly as good as the mean. Why have a distribution at all, then? That is the question of notebooks 01 and 02.

# %% [markdown]
# ## 5. Where do we go from here?
#
# | notebook | you build | and see |
# | --- | --- | --- |
# | [01](01_diagonal_gaussian.ipynb) | the posterior: a Gaussian for every latent value | why the reparameterised gradient is the less noisy one |
# | [02](02_kl_loss.ipynb) | the KL term | a posterior that collapses when the price is too high |
# | [03](03_resnet_blocks.ipynb) | ResNet blocks | gradients with and without the shortcut |
# | [04](04_resampling_and_attention.ipynb) | resampling and attention | what one latent pixel sees |
# | [05](05_kl_f8_architecture.ipynb) | the KL-f8 architecture | your assembly equal to the original, on the same weights |
# | [06](06_reconstruction_losses.ipynb) | reconstruction losses | why squared error blurs |
# | [07](07_patchgan.ipynb) | the PatchGAN discriminator | where it looks |
# | [08](08_training_loop.ipynb) | the training loop | what each safeguard prevents |
# | [09](09_measuring_quality.ipynb) | quality measures | how to read the published tables |
# | [10](10_latent_space_explorer.ipynb) | a latent explorer | your own photograph under sliders |
# | [11](11_latents_for_diffusion.ipynb) | a flow on latents | noise becoming a latent becoming a picture |
# | [12](12_scaling_up.ipynb) | scaling up | tiles, memory, precision, many processes |
#
# Each notebook stands by itself, uses the finished parts of the package for whatever you have not built yet, and has
# exercises that are checked on the spot.
#
# ### Try it
#
# 1. Take a photograph of your own: `klvae_edu.data.load_image(path)`, cut to sides that 8 divides. What does the network make of it?
# 2. Decode a latent of zeros, and one of random numbers. Is either a picture?
# 3. Fit `pca` to this very photograph, `.fit(photo)`, which is not fair. Does the network still win?

# %% [markdown]
# ## Summary
#
# 1. The autoencoder maps 256 × 256 × 3 numbers to 32 × 32 × 4 and back: 48 times fewer.
# 2. Images are (B, 3, H, W) with values from -1 to 1; one latent pixel stands for a patch of 8 × 8.
# 3. Averages and patch-PCA are the bars: any network has to beat four linear patterns per patch.
# 4. Latent pixels keep their place, and answer for a neighbourhood.
# 5. The encoder answers with a distribution, not a point.
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
# It may have learnt the photograph by heart. What counts is a picture that it has never seen. `klvae train` therefore holds
# photographs out: this cat is one of them.
# </details>
#
# <details><summary>Which of the three, averages, patch-PCA or network, can use the neighbouring patch to describe an edge?</summary>
#
# Only the network. The other two see each patch by itself.
# </details>
#
# **Next:** [01, the posterior](01_diagonal_gaussian.ipynb).
