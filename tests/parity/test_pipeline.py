"""A diffusers pipeline gives the same pictures with our autoencoder as with diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceAutoencoderKL
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.performance.tiling import seam_lines, seam_metric
from tests.parity.reference import pair_of

CONFIG = AutoencoderKLConfig(
    block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8, sample_size=64, scaling_factor=0.5
)
SIZE = 128


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval()


@pytest.fixture(scope="module")
def pair() -> tuple[AutoencoderKL, ReferenceAutoencoderKL]:
    ours, reference = pair_of(CONFIG, torch.float32)
    return ours.eval(), reference.eval()


def pipeline(vae: torch.nn.Module, unet: UNet2DConditionModel) -> StableDiffusionImg2ImgPipeline:
    """Make a pipeline without a text encoder; embeddings are passed instead."""
    pipe = StableDiffusionImg2ImgPipeline(
        vae=vae,
        unet=unet,
        scheduler=DDIMScheduler(num_train_timesteps=100, steps_offset=1, clip_sample=False),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe: StableDiffusionImg2ImgPipeline, images: int = 2) -> Tensor:
    """Run the pipeline on fixed photographs, embeddings and noise: (images, 3, SIZE, SIZE) in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.linspace(0, 6, SIZE)
    photographs = torch.stack([torch.sin(rows[:, None] * k + rows * (k + 1)).expand(3, -1, -1) for k in range(images)])
    embeddings = torch.randn(images, 5, 32, generator=generator)
    result = pipe(
        image=(photographs + 1) / 2,
        prompt_embeds=embeddings,
        negative_prompt_embeds=torch.zeros_like(embeddings),
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(images)],
        output_type="pt",
    )
    return 2 * result.images - 1


@pytest.mark.parametrize("sliced", [False, True], ids=["plain", "sliced"])
def test_the_pipeline_gives_the_same_pictures(pair, unet: UNet2DConditionModel, sliced: bool) -> None:
    found = []
    for vae in pair:
        pipe = pipeline(vae, unet)
        if sliced:
            pipe.vae.enable_slicing()
        found.append(pictures(pipe))
        vae.disable_slicing()
    ours, theirs = found
    assert ours.shape == (2, 3, SIZE, SIZE)
    assert theirs.std() > 0.1  # a picture, not grey
    assert (ours - theirs).abs().max() <= 1e-4


def test_the_pictures_do_depend_on_the_autoencoder(pair, unet: UNet2DConditionModel) -> None:
    """If they did not, the test above could not fail."""
    other = pair[0].clone()
    with torch.no_grad():
        other.quant_conv.weight *= 1.01
    assert (pictures(pipeline(other, unet)) - pictures(pipeline(pair[1], unet))).abs().max() > 1e-3


def test_with_tiling_on_it_runs_and_its_seams_are_no_worse(pair, unet: UNet2DConditionModel) -> None:
    """Our tiles have other positions, on purpose. Here both models use tiles of 64 pixels with an overlap of 16."""
    ours, theirs = pair
    ours.enable_tiling(size=64, overlap=16)
    theirs.enable_tiling()  # 64 pixels, its sample_size, a quarter of which overlap
    assert (theirs.tile_sample_min_size, theirs.tile_overlap_factor) == (64, 0.25)
    images = [pictures(pipeline(vae, unet), images=1) for vae in pair]
    ours.disable_tiling()
    theirs.disable_tiling()
    whole = pictures(pipeline(ours, unet), images=1)
    lines = seam_lines(SIZE // 8, 8, 2, unit=8)
    their_lines = [48, 64, 96, 112]  # tiles begin every 48 pixels, and are blended over 16
    metrics = seam_metric(images[0], lines, lines), seam_metric(images[1], their_lines, their_lines)
    assert metrics[0] <= 1.05 * max(metrics[1], 1.0)
    errors = [float((image - whole).pow(2).mean().sqrt()) for image in images]
    assert 0 < errors[0] <= errors[1]


def test_the_pipeline_sees_the_models_factor_and_moves_it(pair, unet: UNet2DConditionModel) -> None:
    pipe = pipeline(pair[0].clone(), unet)
    assert pipe.vae_scale_factor == 8
    assert pipe.to(torch.float64).vae.dtype == torch.float64
    pipe.to(torch.float32)  # the UNet is shared by all tests
