#!/usr/bin/env bash
# diffusers 0.42.1: two pipelines of SDXL scale the latents of the same autoencoder differently. With latents_mean and
# latents_std in its configuration (Playground v2.5, EQ-SDXL-VAE), image-to-image encodes to (z - mean) · scale / std, and
# inpainting to z · scale. Both decode by the first formula.
#
# Why a good guess is wrong: the two are neighbours that share the autoencoder and the denoiser, inpainting's decoding
# knows both fields, and it starts without a warning. A repainted picture then comes back in other colours where
# nothing was to be repainted. The remedy is to encode the picture oneself and to pass `image` as scaled latents.
#
# Seen: a posterior that is 9 in all channels, with means 1 to 4, standard deviations 5 to 8 and a scale of 0.5, gives
# 0.8, 0.5833, 0.4286, 0.3125 in image-to-image and 4.5 in all channels in inpainting.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 diffusers==0.42.1 transformers==5.23.0
cat > "$folder/scale.py" <<'PYTHON'
import sys

import diffusers
import torch

mean, std, scale = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], 0.5
vae = diffusers.AutoencoderKL(
    block_out_channels=(32,), latents_mean=mean, latents_std=std, scaling_factor=scale, force_upcast=False
)
with torch.no_grad():  # every image has the posterior N(9, exp(-60)) in every channel
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.copy_(torch.tensor([9.0] * 4 + [-60.0] * 4))
unet = diffusers.UNet2DConditionModel(
    block_out_channels=(32,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    cross_attention_dim=8,
)
parts = {"vae": vae, "unet": unet, "scheduler": diffusers.EulerDiscreteScheduler(), "add_watermarker": False}
parts |= dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
image, where = torch.zeros(1, 3, 8, 8), (torch.float32, torch.device("cpu"), None)
from_image = diffusers.StableDiffusionXLImg2ImgPipeline(**parts).prepare_latents(
    image, torch.tensor([0]), 1, 1, *where, add_noise=False
)
of_inpainting = diffusers.StableDiffusionXLInpaintPipeline(**parts).prepare_latents(
    1, 4, 8, 8, *where, image=image, add_noise=False, return_image_latents=True
)[-1]
found = [z[0, :, 0, 0].tolist() for z in (from_image, of_inpainting)]
for name, values in zip(("image-to-image", "inpainting"), found):
    print(f"{name}: {', '.join(f'{value:.4f}' for value in values)}")
expected = [[(9 - m) * scale / s for m, s in zip(mean, std)], [9 * scale] * 4]
if not torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-3):
    sys.exit(f"expected {expected}: the behaviour changed")
PYTHON
"$folder/venv/bin/python" "$folder/scale.py"
