"""Weights of other models are named in one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klvae_edu import AutoencoderKL


def error_of(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        AutoencoderKL.from_any(path)
    message = str(error.value)
    assert str(path) in message and len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("quantize.embedding.weight", (16, 4), "a VQ model"),
        ("decoder.time_conv_out.weight", (3, 3, 3, 1, 1), "AutoencoderKLTemporalDecoder"),
        ("decoder.condition_encoder.layers.0.weight", (4, 3, 3, 3), "AsymmetricAutoencoderKL"),
        ("encoder.extra.weight", (4, 3, 3, 3, 3), "a video autoencoder"),
        ("encoder.conv_in.weight.absmax", (4,), "quantised weights (bitsandbytes"),
        ("encoder.conv_in.qweight", (4,), "quantised weights (GPTQ or AWQ"),
        ("encoder.conv_in.weight_scale_inv", (4,), "quantised weights (blocks"),
    ],
)
def test_a_tensor_of_another_model_beside_ours_tells_it(
    compvis: dict[str, Tensor], file: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    save_file({**compvis, name: torch.zeros(shape)}, file)
    assert expected in error_of(file) and name in error_of(file)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["encoder.layers.0.weight", "decoder.layers.1.conv.0.weight"], "TAESD"),
        (["taesd_encoder.0.weight", "taesd_decoder.1.weight"], "TAESD"),
        (["encoder.0.weight", "decoder.3.conv.2.bias"], "TAESD"),
        (["encoder.downsamples.0.residual.0.gamma", "decoder.middle.0.residual.0.gamma"], "Wan's"),
        (["encoder.stages.0.op_list.0.main.conv.weight"], "deep compression"),
    ],
)
def test_a_file_of_another_autoencoder_is_named(file: Path, names: list[str], expected: str) -> None:
    save_file({name: torch.zeros(2) for name in names}, file)
    assert expected in error_of(file)


def test_a_network_with_other_layers_is_one_line_and_not_a_list_of_tensors(
    compvis: dict[str, Tensor], file: Path
) -> None:
    kept = {name: tensor for name, tensor in compvis.items() if ".conv_in." in name}
    save_file(kept | {f"encoder.layer{i}.weight": torch.zeros(2) for i in range(90)}, file)
    assert "another network than AutoencoderKL's: 4 of its " in error_of(file)


def test_a_folder_of_every_other_class_of_diffusers_is_named(tmp_path: Path) -> None:
    import diffusers

    warnings.simplefilter("ignore")
    models = [
        diffusers.AutoencoderTiny(),
        diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2
        ),
        diffusers.AsymmetricAutoencoderKL(down_block_out_channels=(32,), up_block_out_channels=(32,)),
        diffusers.VQModel(block_out_channels=(32,), num_vq_embeddings=8),
    ]
    for model in models:
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        with pytest.raises(ValueError) as error:
            AutoencoderKL.from_pretrained(folder)
        assert (
            f"expected a model of the class AutoencoderKL or AutoencoderKLFlux2, got one of {type(model).__name__!r}"
            in str(error.value)
        )
        with pytest.raises(ValueError) as error:
            AutoencoderKL.from_single_file(next(folder.glob("*.safetensors")), norm_num_groups=8)
        assert len(str(error.value).splitlines()) == 1
