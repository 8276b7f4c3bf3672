"""Weights of 8 bits: their scales are applied, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.weights.quantised import apply_scales


def quantised(weights: dict[str, Tensor], scale_name: str, per_channel: bool) -> dict[str, Tensor]:
    """Store every convolution in 8-bit floats with a scale, as programs for little memory do."""
    found: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in weights.items():
        if tensor.ndim < 4:
            found[name] = tensor
            continue
        scale = tensor.abs().flatten(1).amax(1) / 448 if per_channel else tensor.abs().max() / 448
        found[name] = (tensor / scale.reshape(-1, 1, 1, 1)).to(torch.float8_e4m3fn)
        found[name.replace(".weight", f".{scale_name}")] = scale
        found[name.replace(".weight", ".scale_input")] = torch.ones(())
    return found


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_a_scale_of_each_layer_or_channel_is_applied(
    vae: AutoencoderKL, compvis: dict[str, Tensor], file: Path, scale_name: str, per_channel: bool
) -> None:
    save_file(quantised(compvis, scale_name, per_channel), file)
    loaded = AutoencoderKL.from_single_file(file, dtype=torch.float32).state_dict()
    for name, tensor in vae.state_dict().items():
        # 3 bits after the leading one: half of a 16th of the value, and half of the smallest step near 0
        allowed = tensor.abs() / 16 + tensor.abs().max() / 448 * 2**-9
        assert bool(((loaded[name] - tensor).abs() <= allowed + 1e-12).all()), name


def test_weights_without_scales_stay_as_they_are(compvis: dict[str, Tensor]) -> None:
    assert all(tensor is compvis[name] for name, tensor in apply_scales(compvis).items())


def test_a_scale_that_fits_nothing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a\.weight_scale: a scale, but there is no a\.weight"):
        apply_scales({"a.weight_scale": torch.ones(1)})
    with pytest.raises(ValueError, match=r"a\.scale_weight: expected one number, or one for each of 4 channels"):
        apply_scales({"a.weight": torch.ones(4, 2), "a.scale_weight": torch.ones(3)})
