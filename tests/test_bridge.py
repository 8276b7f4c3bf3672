"""`as_diffusers`: diffusers' own class around the same weights, accepted by its pipelines and adapters."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.bridge import as_diffusers
from tests.parity.reference import CONFIGS, image, randomise, relative

SMALL = AutoencoderKLConfig(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, sample_size=16)


def model(config: AutoencoderKLConfig = SMALL) -> AutoencoderKL:
    vae = AutoencoderKL(config)
    randomise(vae)
    return vae.eval()


@pytest.mark.parametrize("config", [SMALL, CONFIGS["FLUX.2"]], ids=["AutoencoderKL", "AutoencoderKLFlux2"])
def test_it_is_diffusers_class_with_the_same_parameters_and_buffers(config: AutoencoderKLConfig) -> None:
    vae = model(config)
    theirs = as_diffusers(vae)
    assert type(theirs) is getattr(diffusers, config.diffusers_class)
    assert not theirs.training
    assert all(a is b for a, b in zip(vae.parameters(), theirs.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(vae.buffers(), theirs.buffers(), strict=True))
    x = image((16, 16), torch.float32)
    with torch.no_grad():
        assert relative(vae(x).sample, theirs(x).sample) < 2e-5


def test_a_step_of_one_is_a_step_of_the_other() -> None:
    vae = model()
    theirs = as_diffusers(vae)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    before = vae.get_parameters()
    theirs(image((16, 16), torch.float32)).sample.square().mean().backward()
    optimizer.step()
    assert vae.encoder.conv_in.weight.grad is not None
    assert not torch.equal(vae.get_parameters(), before)


def test_a_pipeline_takes_it_in_from_pretrained_and_saves_it(tmp_path: Path) -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8
    )
    DiTPipeline(transformer, as_diffusers(model()), DDIMScheduler()).save_pretrained(tmp_path / "first")
    vae = AutoencoderKL.from_pretrained(tmp_path / "first", subfolder="vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    pipe = DiTPipeline.from_pretrained(tmp_path / "first", vae=as_diffusers(vae))
    assert pipe.vae.decoder.conv_out.bias is vae.decoder.conv_out.bias
    pipe.save_pretrained(tmp_path / "second")
    again = AutoencoderKL.from_pretrained(tmp_path / "second", subfolder="vae")
    assert torch.equal(again.get_parameters(), vae.get_parameters())


def test_a_lora_is_trained_on_it_and_fused_into_our_weights() -> None:
    peft = pytest.importorskip("peft")
    vae = model()
    before, x = vae.get_parameters(), image((16, 16), torch.float32)
    theirs = as_diffusers(vae)
    theirs.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    trained = [name for name, parameter in theirs.named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name for name in trained)
    with torch.no_grad():
        adapted = theirs(x).sample
        assert relative(vae(x).sample, adapted) > 1e-4  # ours is the base, without the adapter
        theirs.fuse_lora()
        assert relative(vae(x).sample, adapted) < 2e-5
    assert not torch.equal(vae.get_parameters(), before)


def test_what_diffusers_would_compute_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="ignores padding_mode='reflect': it would compute something else"):
        as_diffusers(AutoencoderKL(block_out_channels=(16, 32), norm_num_groups=8, padding_mode="reflect"))
    with pytest.raises(ValueError, match="expected the model itself, got a copy that optimize"):
        as_diffusers(model().optimize())
