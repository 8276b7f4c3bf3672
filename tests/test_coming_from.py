"""docs/coming-from.md: every line of its tables runs and does what the table says, and no name is missing."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.models import attention_processor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as ReferenceGaussian
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from packaging.version import Version
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderKLOutput,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from klvae_edu.blocks import Attention
from klvae_edu.bridge import as_diffusers
from klvae_edu.performance.tiling import Tiling
from tests.parity.reference import relative

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
NAMES_BLOCK, PIPELINE_BLOCK, SAVING_BLOCK = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SOURCES = ("diffusers: AutoencoderKL", "diffusers: FlaxAutoencoderKL", "AiDotNet: AutoencoderKL")


class Row(NamedTuple):
    source: str  # the heading of its table
    theirs: str  # the first cell, without backticks
    ours: str  # the lines of Python in the second cell
    differs: str


def _rows() -> list[Row]:
    rows = []
    for section in PAGE.split("\n## ")[1:]:
        source, text = section.split("\n", 1)
        for line in text.splitlines():
            if line.startswith("| ") and not line.startswith("| ---") and "| here |" not in line:
                theirs, ours, differs = line.removeprefix("| ").removesuffix(" |").split(" | ")
                spans = ours.split("<br>")
                assert all(re.fullmatch("`[^`]+`", span) for span in spans) and differs, line
                rows.append(Row(source, theirs.replace("`", ""), "\n".join(span.strip("`") for span in spans), differs))
    return rows


ROWS = _rows()

IN_TILES = "vae.enable_tiling(size=16, overlap=8)"
PREPARATION = {  # run before rows that would change nothing in a new model
    "vae.disable_gradient_checkpointing()": "vae.enable_gradient_checkpointing()",
    "vae.disable_slicing()": "vae.enable_slicing()",
    "vae.disable_tiling()": IN_TILES,
    "vae.enable_tiling(use_tiling=False)": IN_TILES,
    "vae.tiled_encode(x)": f"{IN_TILES}; vae.disable_tiling()",
    "vae.tiled_encode(x, return_dict=False)": f"{IN_TILES}; vae.disable_tiling()",
    "vae.tiled_decode(z)": f"{IN_TILES}; vae.disable_tiling()",
    "vae.tiled_decode(z, return_dict=False)": f"{IN_TILES}; vae.disable_tiling()",
    "vae.set_attn_processor(processor, _remove_lora=False)": "vae.set_attention_backend('eager')",
    "AttnProcessor2_0()": "vae.set_attention_backend('eager')",
    "XFormersAttnProcessor()": "vae.set_attention_backend('eager')",
    "SupportsSlicing": "vae.enable_slicing()",
    "SupportsTiling": IN_TILES,
    "ResetState()": "vae(image).sample.mean().backward()",
}


# ---- Running a row ---------------------------------------------------------------------------------------------------


def run(code: str, names: dict[str, Any]) -> Any:
    """Execute lines of Python; return the value of the last one if it is an expression, else None."""
    body = ast.parse(code).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "the row", "exec"), names)
    return eval(compile(last, "the row", "eval"), names) if last else None


@pytest.fixture(scope="module")
def theirs() -> diffusers.AutoencoderKL:
    """diffusers' model with the weights of the page's `vae`, which are always the same."""
    names: dict[str, Any] = {}
    run(NAMES_BLOCK, names)
    return twin(names["vae"])


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page's first lines define."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    run(NAMES_BLOCK, names)
    return names


def twin(vae: AutoencoderKL) -> diffusers.AutoencoderKL:
    """diffusers' model of the same configuration and weights."""
    model = diffusers.AutoencoderKL(**vae.config.to_dict())
    model.load_state_dict(vae.state_dict(), strict=True)
    return model


def close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> bool:
    return ours.shape == theirs.shape and relative(ours, theirs) < tolerance


def works_as_in_diffusers(vae: AutoencoderKL) -> bool:
    x = torch.rand(1, vae.config.in_channels, 16, 16) * 2 - 1
    models = vae, twin(vae)
    ours, theirs = (model.encode(x).latent_dist for model in models)
    images = [model.decode(theirs.mode()).sample for model in models]
    return close(ours.parameters, theirs.parameters) and close(*images)


# ---- Checks of the rows ----------------------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[SimpleNamespace], bool | None]] = {}


def check(*rows: str) -> Callable[[Callable[[SimpleNamespace], None]], None]:
    """Register a check for the rows with these first cells.

    It gets the page's names after the row has run, `out` (the value of the row's last line), `before` (the model before
    the row) and `theirs` (diffusers' model with the same weights).
    """

    def register(function: Callable[[SimpleNamespace], None]) -> None:
        for row in rows:
            assert row not in CHECKS, f"two checks for {row}"
            CHECKS[row] = function

    return register


def _built_with(**fields: Any) -> Callable[[SimpleNamespace], bool]:
    """Check that the row makes a model with these fields, which computes the same as diffusers'."""
    return lambda n: all(getattr(n.out.config, k) == v for k, v in fields.items()) and works_as_in_diffusers(n.out)


ATTENTION_BELOW = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
for _name in ("AutoencoderKL", "FlaxAutoencoderKL"):
    CHECKS |= {
        f"{_name}(in_channels=3)": _built_with(in_channels=1),
        f"{_name}(out_channels=3)": _built_with(out_channels=1),
        f"{_name}(block_out_channels=(64,))": _built_with(block_out_channels=(32, 64, 64)),
        f"{_name}(layers_per_block=1)": lambda n: (
            AutoencoderKLConfig().layers_per_block == 2 and _built_with(layers_per_block=1)(n)
        ),
        f'{_name}(act_fn="silu")': _built_with(act_fn="gelu"),
        f"{_name}(latent_channels=4)": _built_with(latent_channels=16),
        f"{_name}(norm_num_groups=32)": _built_with(norm_num_groups=8),
    }
CHECKS |= {
    'FlaxAutoencoderKL(down_block_types=("DownEncoderBlock2D",))': _built_with(
        down_block_types=ATTENTION_BELOW["down_block_types"]
    ),
    'FlaxAutoencoderKL(up_block_types=("UpDecoderBlock2D",))': _built_with(
        up_block_types=ATTENTION_BELOW["up_block_types"]
    ),
    "AutoencoderKL(use_quant_conv=True)": _built_with(use_quant_conv=False),
    "AutoencoderKL(use_post_quant_conv=True)": _built_with(use_post_quant_conv=False),
    "AutoencoderKL(mid_block_add_attention=True)": _built_with(mid_block_add_attention=False),
    "new AutoencoderKL<T>(inputChannels: 3)": _built_with(in_channels=1, out_channels=1),
    "new AutoencoderKL<T>(latentChannels: 4)": _built_with(latent_channels=16),
    "new AutoencoderKL<T>(baseChannels: 128)": _built_with(block_out_channels=(32, 64, 64)),
    "new AutoencoderKL<T>(channelMults: [1, 2, 4, 4])": _built_with(block_out_channels=(32, 64, 128, 128)),
    "new AutoencoderKL<T>(latentScaleFactor: 0.18215)": _built_with(scaling_factor=0.13025),
}


@check("AutoencoderKL()", "FlaxAutoencoderKL()")
def _(n):
    default = diffusers.AutoencoderKL()
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (n.out, default)]
    assert shapes[0] == shapes[1]
    assert AutoencoderKLConfig() == AutoencoderKLConfig.from_preset("sd-v1")
    assert hasattr(diffusers, "FlaxAutoencoderKL") == (Version(diffusers.__version__) < Version("0.40"))


@check('AutoencoderKL(down_block_types=("DownEncoderBlock2D",))', 'AutoencoderKL(up_block_types=("UpDecoderBlock2D",))')
def _(n):
    plain = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    for name, types in plain.items():
        assert getattr(AutoencoderKL(block_out_channels=(32, 64)).config, name) == types
        with pytest.raises(ValueError, match=name):
            AutoencoderKL(block_out_channels=(32, 64), **{name: types[:1]})
    found = {name: getattr(n.out.config, name) for name in plain}
    assert found in [plain | {name: types} for name, types in ATTENTION_BELOW.items()]
    assert works_as_in_diffusers(n.out)
    later = diffusers.AutoencoderKL(  # can be built, but not run
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )
    with pytest.raises(RuntimeError):
        later(torch.zeros(1, 3, 16, 16))
    narrow = plain | {"down_block_types": ("DownEncoderBlock2D",)}
    fewer = diffusers.AutoencoderKL(block_out_channels=(32, 32), **narrow)
    assert fewer(torch.zeros(1, 3, 16, 16)).sample.isfinite().all() and len(fewer.encoder.down_blocks) == 1
    for name, types in plain.items():
        with pytest.raises(ValueError, match=name):
            AutoencoderKL(block_out_channels=(32, 32), **{name: types * 2})
        with pytest.raises(IndexError):
            diffusers.AutoencoderKL(block_out_channels=(32, 32), **plain | {name: types * 2})


@check(
    "AutoencoderKL(sample_size=32)",
    "FlaxAutoencoderKL(sample_size=32)",
    "new AutoencoderKL<T>(inputSpatialSize: 512)",
)
def _(n):
    assert n.out.config.sample_size in (256, 512)
    n.out.enable_tiling()
    assert n.out.tiling.size == Tiling().size != n.out.config.sample_size
    assert twin(n.out).tile_sample_min_size == n.out.config.sample_size
    assert n.out(torch.zeros(1, 3, 8, 24)).sample.shape == (1, 3, 8, 24)


@check("AutoencoderKL(scaling_factor=0.18215)", "FlaxAutoencoderKL(scaling_factor=0.18215)")
def _(n):
    assert n.out.config.scaling_factor == 0.13025
    n.out.config = dataclasses.replace(n.out.config, scaling_factor=None)
    with pytest.raises(ValueError, match="no scaling factor"):
        n.out.scale_latents(n.z)


@check("AutoencoderKL(force_upcast=True)")
def _(n):
    assert n.vae.dtype == n.out.dtype == torch.float16
    exact = n.before.half().float().decode(n.z.half().float()).sample.half()
    assert torch.equal(n.out, exact)
    assert not torch.equal(copy.deepcopy(n.theirs).half().decode(n.z.half()).sample, exact)


@check("vae.config")
def _(n):
    assert n.vae.config.scaling_factor == 0.13025
    assert torch.equal(n.vae.scale_latents(n.z), n.z * 0.13025)
    with pytest.raises(dataclasses.FrozenInstanceError):
        n.vae.config.scaling_factor = 1.0
    n.theirs.config["scaling_factor"]  # a dictionary


@check("ModelMixin")
def _(n):
    assert n.out == (n.theirs.num_parameters(), n.theirs.dtype, n.theirs.device)
    assert not isinstance(n.vae, diffusers.ModelMixin)


@check("AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float16)")
def _(n):
    assert n.out.dtype == diffusers.AutoencoderKL.from_pretrained(n.folder, torch_dtype=torch.float16).dtype
    n.out.save_pretrained(n.folder)
    assert AutoencoderKL.from_pretrained(n.folder).dtype == torch.float16
    assert diffusers.AutoencoderKL.from_pretrained(n.folder).dtype == torch.float32


@check("vae.save_pretrained(folder)")
def _(n):
    read = diffusers.AutoencoderKL.from_pretrained(n.folder)
    assert close(read.decode(n.z).sample, n.theirs.decode(n.z).sample)
    assert dict(read.config)["scaling_factor"] == 0.18215
    n.theirs.save_pretrained(n.folder / "theirs")
    assert {path.name for path in n.folder.iterdir() if path.is_file()} == {
        path.name for path in (n.folder / "theirs").iterdir()
    }
    assert torch.equal(AutoencoderKL.from_pretrained(n.folder / "theirs").get_parameters(), n.vector)


@check("FlaxModelMixin")
def _(n):
    assert torch.equal(n.out.get_parameters(), n.vector) and n.out.config == n.vae.config


@check("FromOriginalVAEMixin.from_single_file(url)")
def _(n):
    assert torch.equal(n.out.get_parameters(), n.vector) and n.out.config == n.vae.config
    with safe_open(n.folder / "vae.safetensors", framework="pt") as file:
        assert "encoder.down.0.block.0.norm1.weight" in file.keys()  # noqa: SIM118  # the file is no dictionary


def _block_runs(times: int) -> Callable[[SimpleNamespace], None]:
    """Check that a block runs `times` times in a forward and backward pass, and that the gradients are the same."""

    def function(n: SimpleNamespace) -> None:
        calls: list[int] = []
        n.vae.decoder.mid_block.resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
        for model in (n.vae, n.before):
            model(n.image).sample.square().mean().backward()
        assert len(calls) == times
        assert close(*(torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (n.vae, n.before)))

    return function


CHECKS["vae.enable_gradient_checkpointing()"] = _block_runs(2)
CHECKS["vae.disable_gradient_checkpointing()"] = _block_runs(1)


@check("vae.encode(x)")
def _(n):
    assert close(n.out.parameters, n.theirs.encode(n.image).latent_dist.parameters)
    odd = torch.zeros(1, 3, 17, 19)
    with pytest.warns(UserWarning, match="padded by reflection"):
        assert n.vae.encode(odd).latent_dist.mean.shape[-2:] == (5, 5)
    assert n.theirs.encode(odd).latent_dist.mean.shape[-2:] == (4, 4)
    with pytest.raises(ValueError, match="expected an image"):
        n.vae.encode(odd[0])


@check("vae.encode(x, return_dict=False)")
def _(n):
    assert close(n.out.parameters, n.theirs.encode(n.image, return_dict=False)[0].parameters)
    assert isinstance(n.vae.encode(n.image, return_dict=False), AutoencoderKLOutput)


@check("vae.decode(z)", "vae.decode(z, return_dict=False)", "vae.decode(z, generator=generator)", "Decode(latent)")
def _(n):
    assert close(n.out, n.theirs.decode(n.z, return_dict=False)[0])
    assert isinstance(n.vae.decode(n.z, return_dict=False), DecoderOutput)
    for model in (n.vae, n.theirs):
        images = [model.decode(n.z, generator=torch.Generator().manual_seed(seed)).sample for seed in (0, 1)]
        assert torch.equal(*images)
    assert not any(isinstance(module, nn.Tanh) for module in n.vae.modules())


@check("vae.forward(sample)", "vae.forward(sample, return_dict=True)", 'model.apply({"params": params}, sample)')
def _(n):
    assert close(n.out, n.theirs(n.image).sample)
    assert isinstance(n.vae(n.image, return_dict=False), DecoderOutput)
    odd = torch.zeros(1, 3, 17, 19)
    with pytest.warns(UserWarning, match="padded by reflection"):
        assert n.vae(odd).sample.shape == odd.shape
    assert n.theirs(odd).sample.shape == (1, 3, 16, 16)
    assert not any(isinstance(module, nn.Dropout) for module in n.vae.modules())


@check("vae.forward(sample, sample_posterior=False)", "Forward(image)")
def _(n):
    drawn = [model(n.image, True, generator=torch.Generator().manual_seed(5)).sample for model in (n.vae, n.theirs)]
    assert close(*drawn)
    mode = n.vae(n.image).sample
    assert n.out.shape == mode.shape and not torch.equal(n.out, mode)


@check("vae.forward(sample, generator=None)")
def _(n):
    assert close(n.out, n.theirs(n.image, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample)
    ours, theirs = (
        model(n.image, True, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)]).sample
        for model in (n.vae, n.theirs)
    )
    assert close(ours, theirs)


CHECKS |= {
    "z = z * scaling_factor": lambda n: torch.equal(n.out, n.z * 0.18215),
    "z = 1 / scaling_factor * z": lambda n: close(n.out, 1 / 0.18215 * n.z),
    "IVAEModel<T>: ScaleLatent(latent)": lambda n: torch.equal(n.out, n.z * 0.18215),
    "IVAEModel<T>: UnscaleLatent(latent)": lambda n: close(n.out, n.z / 0.18215),
    "AutoencoderKL(shift_factor=None)": lambda n: (
        close(n.out, (n.z - 0.1159) * 0.3611) and close(n.vae.unscale_latents(n.out), n.z)
    ),
    "AutoencoderKL(latents_mean=None, latents_std=None)": lambda n: (
        close(n.out, (n.z - 0.1) * 0.5 / 2.0) and close(n.vae.unscale_latents(n.out), n.z)
    ),
}


def decoded_parts(model: nn.Module, z: Tensor) -> list[torch.Size]:
    """List the shapes of the decoder's inputs."""
    shapes: list[torch.Size] = []
    with model.decoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape)):
        model.decode(z)
    return shapes


@check("vae.enable_slicing()", "IVAEModel<T>: SetSlicingEnabled(true)")
def _(n):
    assert close(n.out, n.theirs.decode(n.z).sample)
    theirs = copy.deepcopy(n.theirs)
    theirs.enable_slicing()
    assert decoded_parts(n.vae, n.z) == decoded_parts(theirs, n.z) == [(1, 4, 8, 8)] * 2


@check("vae.disable_slicing()")
def _(n):
    assert decoded_parts(n.vae, n.z) == [(2, 4, 8, 8)]


CHECKS["SupportsSlicing"] = lambda n: n.out is True and len(decoded_parts(n.vae, n.z)) == 2
CHECKS["SupportsTiling"] = lambda n: n.out is True and len(decoded_parts(n.vae, n.z)) == 9


@check("vae.enable_tiling()", "IVAEModel<T>: SetTilingEnabled(true)")
def _(n):
    whole = n.before.decode(n.z).sample
    assert n.out.shape == whole.shape and not close(n.out, whole)
    assert decoded_parts(n.vae, n.z) == [(2, 4, 4, 4)] * 9
    assert (Tiling().size, Tiling().overlap) == (288, 64)
    theirs = copy.deepcopy(n.theirs)
    assert theirs.tile_sample_min_size == theirs.config.sample_size and theirs.tile_overlap_factor == 0.25
    theirs.enable_tiling()
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = 16, 4
    assert {shape[2:] for shape in decoded_parts(theirs, n.z)} == {(4, 4), (4, 2), (2, 4), (2, 2)}


@check("vae.enable_tiling(use_tiling=False)", "vae.disable_tiling()")
def _(n):
    assert n.vae.use_tiling is False
    large = torch.zeros(1, 4, 80, 8)
    assert decoded_parts(n.vae, large) == [large.shape]


@check("vae.tiled_encode(x)", "vae.tiled_encode(x, return_dict=False)")
def _(n):
    assert isinstance(n.vae.tiled_encode(n.image, return_dict=False), AutoencoderKLOutput)
    n.vae.enable_tiling(size=16, overlap=8)
    assert torch.equal(n.out.parameters, n.vae.encode(n.image).latent_dist.parameters)
    assert n.out.mean.shape == n.z.shape and not close(n.out.parameters, n.posterior.parameters)
    with pytest.warns(FutureWarning, match="deprecated"):
        n.theirs.tiled_encode(n.image)


@check("vae.tiled_decode(z)", "vae.tiled_decode(z, return_dict=False)")
def _(n):
    assert isinstance(n.vae.tiled_decode(n.z, return_dict=False), DecoderOutput)
    n.vae.enable_tiling(size=16, overlap=8)
    assert torch.equal(n.out, n.vae.decode(n.z).sample)
    assert n.out.shape == n.image.shape and not close(n.out, n.reconstruction)


def backends(vae: AutoencoderKL) -> list[str]:
    return [module.backend for module in vae.modules() if isinstance(module, Attention)]


def _attends_like(backend: str, processor: Any) -> Callable[[SimpleNamespace], None]:
    def function(n: SimpleNamespace) -> None:
        assert backends(n.vae) == [backend] * 2
        theirs = copy.deepcopy(n.theirs)
        theirs.set_attn_processor(processor)
        assert close(n.vae.decode(n.z).sample, theirs.decode(n.z).sample)

    return function


EAGER = attention_processor.AttnProcessor()
CHECKS |= {
    "AttnProcessor()": _attends_like("eager", EAGER),
    "AttnProcessor2_0()": _attends_like("sdpa", attention_processor.AttnProcessor2_0()),
    "XFormersAttnProcessor()": _attends_like("sdpa", EAGER),  # xFormers itself would need a GPU
    "SlicedAttnProcessor(slice_size)": _attends_like("chunked", attention_processor.SlicedAttnProcessor(1)),
    "vae.set_attn_processor(processor)": _attends_like("eager", EAGER),
}


@check("vae.fuse_qkv_projections()")
def _(n):
    theirs = copy.deepcopy(n.theirs)
    theirs.fuse_qkv_projections()
    fused = [name for name, _ in theirs.named_modules() if name.endswith("to_qkv")]
    assert fused == [name for name, _ in n.fast.named_modules() if name.endswith("to_qkv")] and len(fused) == 2
    assert not [name for name, _ in n.vae.named_modules() if name.endswith("to_qkv")]
    assert close(n.fast.decode(n.z).sample, theirs.decode(n.z).sample)


@check('vae.set_attn_processor({"encoder.mid_block.attentions.0.processor": processor, …})')
def _(n):
    assert backends(n.vae) == ["chunked", "sdpa"]
    assert list(n.theirs.attn_processors) == [
        f"{half}.mid_block.attentions.0.processor" for half in ("encoder", "decoder")
    ]


@check("vae.set_attn_processor(processor, _remove_lora=False)")
def _(n):
    assert backends(n.vae) == ["sdpa"] * 2
    assert list(inspect.signature(n.theirs.set_attn_processor).parameters) == ["processor"]
    assert list(inspect.signature(n.vae.set_attention_backend).parameters) == ["name"]


@check("vae.set_default_attn_processor()")
def _(n):
    theirs = copy.deepcopy(n.theirs)
    kinds = [{type(p) for p in theirs.attn_processors.values()}]
    theirs.set_default_attn_processor()
    kinds.append({type(p) for p in theirs.attn_processors.values()})
    assert kinds == [{attention_processor.AttnProcessor2_0}, {attention_processor.AttnProcessor}]
    assert (backends(n.before), backends(n.vae)) == (["sdpa"] * 2, ["eager"] * 2)


@check(
    "AttnAddedKVProcessor(), SlicedAttnAddedKVProcessor(slice_size), AttnAddedKVProcessor2_0(), "
    "XFormersAttnAddedKVProcessor(), CustomDiffusionAttnProcessor(), CustomDiffusionXFormersAttnProcessor(), "
    "CustomDiffusionAttnProcessor2_0()"
)
def _(n):
    assert list(inspect.signature(n.out.forward).parameters) == ["x"]  # there is no text input


@check("LoRAAttnProcessor(), LoRAAttnProcessor2_0(), LoRAXFormersAttnProcessor(), LoRAAttnAddedKVProcessor()")
def _(n):
    assert [type(layer) for layer in n.out] == [nn.Linear] * 4
    adapter = nn.Linear(64, 64, bias=False)
    n.attention.to_q.register_forward_hook(lambda _, inputs, output: output + adapter(inputs[0]))
    assert not close(n.vae.decode(n.z).sample, n.before.decode(n.z).sample)


@check("AutoencoderKLOutput(latent_dist=posterior)", "FlaxAutoencoderKLOutput(latent_dist=posterior)")
def _(n):
    assert n.out.latent_dist is n.out[0] is n.posterior


@check("DecoderOutput(sample=image)", "FlaxDecoderOutput(sample=image)")
def _(n):
    assert n.out.sample is n.out[0] is n.image
    with pytest.raises(TypeError):
        n.out["sample"]
    assert n.theirs.decode(n.z)["sample"].shape == n.image.shape


def gaussians(n: SimpleNamespace, **arguments: Any) -> tuple[DiagonalGaussianDistribution, ReferenceGaussian]:
    parameters = n.posterior.parameters
    return DiagonalGaussianDistribution(parameters, **arguments), ReferenceGaussian(parameters, **arguments)


@check("DiagonalGaussianDistribution(parameters)")
def _(n):
    _, theirs = gaussians(n)
    for name in ("parameters", "mean", "logvar", "std", "var"):
        assert torch.equal(getattr(n.out, name), getattr(theirs, name))
    with pytest.raises(ValueError, match="an even number"):
        DiagonalGaussianDistribution(torch.zeros(1, 3, 2, 2))


@check("DiagonalGaussianDistribution(parameters, deterministic=True)")
def _(n):
    _, theirs = gaussians(n, deterministic=True)
    assert torch.equal(n.out.sample(), theirs.sample())
    assert (n.out.kl().tolist(), theirs.kl().tolist()) == ([0.0, 0.0], [0.0])
    assert (n.out.nll(n.z).tolist(), theirs.nll(n.z).tolist()) == ([0.0, 0.0], [0.0])


@check("posterior.sample(generator)", "FlaxDiagonalGaussianDistribution.sample(key)")
def _(n):
    _, theirs = gaussians(n)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(n.out, theirs.sample(torch.Generator().manual_seed(0)))
    assert torch.equal(n.out, n.posterior.sample(generator))
    assert not torch.equal(n.out, n.posterior.sample(generator))  # the generator has advanced
    assert n.posterior.sample().shape == n.out.shape

    def generators(count):
        return [torch.Generator().manual_seed(seed) for seed in range(count)]

    for count in (1, 2):
        assert torch.equal(n.posterior.sample(generators(count)), theirs.sample(generators(count)))
    for count in (0, 3):
        with pytest.raises(ValueError, match="one generator, or one for each of the 2 images"):
            n.posterior.sample(generators(count))
    with pytest.raises(IndexError):
        theirs.sample([])
    assert torch.equal(theirs.sample(generators(3)), theirs.sample(generators(2)))


CHECKS["posterior.mode()"] = lambda n: torch.equal(n.out, gaussians(n)[1].mode())


def of_1024_pixels() -> tuple[DiagonalGaussianDistribution, ReferenceGaussian]:
    """A latent of 1024 × 1024 pixels in float16, with a KL beyond its largest number, 65,504."""
    parameters = (1.5 * torch.randn(1, 8, 128, 128, generator=torch.Generator().manual_seed(0))).half()
    return DiagonalGaussianDistribution(parameters), ReferenceGaussian(parameters)


@check("posterior.kl(other)")
def _(n):
    _, theirs = gaussians(n)
    assert close(n.out[0], theirs.kl()) and close(n.out[1], theirs.kl(ReferenceGaussian(torch.zeros(2, 8, 8, 8))))
    one = torch.zeros(1, 8, 8, 8)
    with pytest.raises(ValueError, match="another Gaussian"):
        n.posterior.kl(DiagonalGaussianDistribution(one))
    assert theirs.kl(ReferenceGaussian(one)).shape == (2,)
    ours, theirs = of_1024_pixels()
    for measure in (lambda q: q.kl(), lambda q: q.nll(theirs.mode() + 1)):
        assert torch.equal(measure(ours), measure(DiagonalGaussianDistribution(ours.parameters.float())))
        assert measure(theirs).isinf().all()


@check("posterior.nll(sample)")
def _(n):
    ours, theirs = gaussians(n)
    assert n.out.shape == (2,)
    assert close(ours.nll(n.z + 0.5), theirs.nll(n.z + 0.5))


# ---- Flax ------------------------------------------------------------------------------------------------------------


@check("FlaxAutoencoderKL(dtype=jnp.bfloat16)")
def _(n):
    assert n.output.dtype == torch.bfloat16 and n.vae.dtype == torch.float32
    assert close(n.output.float(), n.before(n.image).sample, 0.1)
    assert n.vae.to(torch.bfloat16).dtype == torch.bfloat16


@check("FlaxAutoencoderKL(parent=module)", 'FlaxAutoencoderKL(name="vae")')
def _(n):
    assert dict(n.parent.named_children()) == {"vae": n.vae}
    assert all(name.startswith("vae.") for name in n.parent.state_dict())
    assert not any(module is n.parent for module in n.vae.modules())


@check("flax.linen.Module")
def _(n):
    weights = {name: 0.5 * weight for name, weight in n.before.named_parameters()}
    elsewhere = n.functional_call(n.vae, weights, (n.image,)).sample
    assert torch.equal(n.out, n.before(n.image).sample)
    n.before.set_parameters(0.5 * n.vector)
    assert close(elsewhere, n.before(n.image).sample) and torch.equal(n.vae.get_parameters(), n.vector)


@check('params["encoder"]["conv_in"]["kernel"]')
def _(n):
    patch = n.image.permute(0, 2, 3, 1)[:, 4:7, 10:13]  # (B, 3, 3, C), as Flax has it
    at_the_middle = torch.einsum("bhwi,hwio->bo", patch, n.out) + n.vae.encoder.conv_in.bias
    assert close(at_the_middle, n.vae.encoder.conv_in(n.image)[:, :, 5, 11])


@check("model.init_weights(rng)", "new AutoencoderKL<T>(seed: 0)")
def _(n):
    again, other = (AutoencoderKL.from_preset("tiny", seed=seed) for seed in (0, 1))
    assert torch.equal(n.out.get_parameters(), again.get_parameters())
    assert not torch.equal(n.out.get_parameters(), other.get_parameters())


@check('model.apply({"params": params}, sample, method=model.encode)')
def _(n):
    assert n.out.shape == (2, 8, 8, 4)
    assert torch.equal(n.out[1, 2, 3], n.before.encode(n.image).latent_dist.mean[1, :, 2, 3])


@check('model.apply({"params": params}, latents, method=model.decode)')
def _(n):
    assert close(n.out, n.theirs.decode(n.z).sample)
    with pytest.raises(ValueError, match="expected a latent"):
        n.vae.decode(n.z.permute(0, 2, 3, 1))


@check("Just-In-Time (JIT) compilation: jax.jit")
def _(n):
    assert close(n.out, n.theirs.decode(n.z).sample)


@check("Automatic Differentiation: jax.grad")
def _(n):
    image = n.image.clone().requires_grad_()
    n.vae(image).sample.square().mean().backward()
    assert close(n.out, image.grad)
    assert all(parameter.grad is not None for parameter in n.vae.parameters())


@check("Vectorization: jax.vmap")
def _(n):
    assert close(n.out, n.before(n.image).sample)


PMAP = "Parallelization: jax.pmap"


@check(PMAP)
def _(n):
    one, other = n.out
    assert torch.equal(one["together"], other["together"])
    assert not close(one["alone"], other["alone"])
    assert close(one["together"], (one["alone"] + other["alone"]) / 2)


PROCESS = """
import copy, os, sys
import torch

names = {{}}
exec({opening!r}, names)
rank = int(os.environ["RANK"])
names["image"] = names["image"][rank : rank + 1]  # each process has its own image
alone = copy.deepcopy(names["vae"])


def gradient(vae, reconstruction, posterior):
    names["vae_loss"](reconstruction, names["image"], posterior)["loss"].backward()
    return torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])


torch.manual_seed(rank)
exec({row!r}, names)
together = gradient(names["vae"], names["reconstruction"], names["posterior"])
torch.manual_seed(rank)
alone = gradient(alone, *names["TrainableAutoencoder"](alone)(names["image"]))
torch.save({{"together": together, "alone": alone}}, sys.argv[1])
torch.distributed.destroy_process_group()
"""


def in_two_processes(row: Row, folder: Path) -> list[dict[str, Tensor]]:
    """Return each process's gradients of a loss after the row, and the gradients of its own image alone."""
    script = folder / "process.py"
    script.write_text(PROCESS.format(opening=NAMES_BLOCK, row=row.ours), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TMPDIR": str(folder)}
    outputs = [folder / f"{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen([sys.executable, script, output], env=os.environ | where | {"RANK": str(rank)})
        for rank, output in enumerate(outputs)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(output, weights_only=True) for output in outputs]


@check("FlaxAutoencoderKLOutput.replace(latent_dist=other)")
def _(n):
    assert isinstance(n.out, AutoencoderKLOutput) and n.out.latent_dist is n.posterior


@check("FlaxDecoderOutput.replace(sample=other)")
def _(n):
    assert isinstance(n.out, DecoderOutput) and n.out.sample is n.image


CHECKS["FlaxDecoderOutput.dtype"] = lambda n: n.out == torch.float32


# ---- AiDotNet --------------------------------------------------------------------------------------------------------


@check("AutoencoderKL<T>")
def _(n):
    assert n.out is n.vae and n.vae.dtype == torch.float64
    assert close(n.vae(n.image.double()).sample, n.theirs(n.image).sample.double())


@check("VAEModelBase<T>", "IFullModel<T, Tensor<T>, Tensor<T>>")
def _(n):
    assert n.out is True


CHECKS["Tensor<T>, Vector<T>"] = lambda n: [tensor.shape for tensor in n.out] == [(1, 3, 32, 32), (10,)]


@check("new AutoencoderKL<T>()", "StableDiffusionV1()")
def _(n):
    assert n.out.num_parameters() == 83_653_863
    assert n.out.config.block_out_channels == tuple(128 * multiplier for multiplier in (1, 2, 4, 4))
    assert n.out.config.scaling_factor == 0.18215 and n.out.downsample_factor == 8


@check("SDXL()")
def _(n):
    assert n.out.config.scaling_factor == 0.13025 and n.out.config.sample_size == 1024
    assert dataclasses.replace(n.out.config, scaling_factor=0.18215, sample_size=512) == AutoencoderKLConfig()


@check("Lightweight()")
def _(n):
    assert n.out.config.scaling_factor == 0.18215
    smaller = [AutoencoderKL.from_preset(preset).num_parameters() for preset in ("mini", "tiny")]
    assert max(smaller) < n.out.num_parameters()


@check("new AutoencoderKL<T>(numResBlocks: 2)")
def _(n):
    assert [len(block.resnets) for block in n.out.encoder.down_blocks] == [1, 1]
    assert [len(block.resnets) for block in n.out.decoder.up_blocks] == [2, 2]
    assert works_as_in_diffusers(n.out)


@check("new AutoencoderKL<T>(numGroups: 32)")
def _(n):
    assert {module.num_groups for module in n.out.modules() if isinstance(module, nn.GroupNorm)} == {8}
    with pytest.raises(ValueError, match="does not divide"):
        AutoencoderKL(norm_num_groups=24, block_out_channels=(32, 64))


@check("new AutoencoderKL<T>(lossFunction: ILossFunction<T>)")
def _(n):
    squared = F.mse_loss(n.reconstruction, n.image, reduction="none").flatten(1).sum(1)
    assert close(n.out, (squared + 1e-6 * n.posterior.kl()).mean())


@check("Encoder (VAEEncoder<T>)")
def _(n):
    assert close(n.vae.quant_conv(n.out), n.theirs.encode(n.image).latent_dist.parameters)
    assert not close(n.out, n.posterior.parameters)


@check("Decoder (VAEDecoder<T>)")
def _(n):
    assert close(n.out, n.theirs.decode(n.z).sample)


CHECKS |= {
    "DownsampleFactor": lambda n: n.out == n.image.shape[-1] // n.z.shape[-1],
    "InputChannels": lambda n: n.out == n.image.shape[1],
    "LatentChannels": lambda n: n.out == n.z.shape[1],
    "LatentScaleFactor": lambda n: n.out == 0.18215,
    "ParameterCount": lambda n: n.out == n.theirs.num_parameters() == len(n.vector),
}


@check("Clone()", "DeepCopy()", "ICloneable<IFullModel<T, Tensor<T>, Tensor<T>>>")
def _(n):
    assert n.out is not n.vae and n.out.config == n.vae.config
    assert torch.equal(n.out(n.image).sample, n.vae(n.image).sample)
    n.out.set_parameters(0.0 * n.vector)
    assert torch.equal(n.vae.get_parameters(), n.vector)


@check("ComputeVAELoss(image, reconstruction, klWeight: 1e-6)")
def _(n):
    squared, divergence = F.mse_loss(n.reconstruction, n.image), n.posterior.kl().sum()
    assert close(n.out, (n.image[0].numel() * squared + 1e-6 * divergence / 2))
    heavier = n.image.numel()  # B·C·H·W
    assert close(  # theirs is ours with a scaled weight, divided by the number of values
        squared + 1e-6 * divergence,
        n.vae_loss(n.reconstruction, n.image, n.posterior, pixel="l2", kl_weight=1e-6 * heavier)["loss"]
        / n.image[0].numel(),
    )


@check("DecodeFromDiffusion(latent)")
def _(n):
    assert close(n.out, n.theirs.decode(n.z / 0.18215).sample)


@check("Encode(image, sampleMode: true)")
def _(n):
    torch.manual_seed(0)
    drawn = n.vae.encode(n.image).latent_dist.sample()
    torch.manual_seed(0)
    assert close(drawn, n.theirs.encode(n.image).latent_dist.sample())
    assert torch.equal(n.out, drawn)  # the row began with the same seed
    assert not torch.equal(drawn, n.vae.encode(n.image).latent_dist.sample())


CHECKS["Encode(image, sampleMode: false)"] = lambda n: close(n.out, n.theirs.encode(n.image).latent_dist.mode())


@check("EncodeForDiffusion(image, sampleMode: true)")
def _(n):
    assert n.out.shape == n.z.shape
    drawn = n.vae.encode_for_diffusion(n.image, generator=torch.Generator().manual_seed(0))
    theirs = n.theirs.encode(n.image).latent_dist
    assert close(drawn, 0.18215 * theirs.sample(torch.Generator().manual_seed(0)))
    assert close(n.vae.encode_for_diffusion(n.image, sample=False), 0.18215 * theirs.mode())


@check("EncodeWithDistribution(image)")
def _(n):
    theirs = n.theirs.encode(n.image).latent_dist
    assert close(n.out[0], theirs.mean) and close(n.out[1], theirs.logvar)
    extreme = DiagonalGaussianDistribution(torch.full((1, 2, 1, 2), 1e3))
    assert extreme.logvar.max() == 20.0


@check("GetParameters()")
def _(n):
    assert torch.equal(n.out, torch.cat([parameter.flatten() for parameter in n.vae.parameters()]))
    n.out.zero_()
    assert torch.equal(n.vae.get_parameters(), n.vector)  # it was a copy


@check("SetParameters(parameters)")
def _(n):
    assert torch.equal(n.vae.get_parameters(), 0.5 * n.vector)
    with pytest.raises(ValueError, match="expected a Tensor of shape"):
        n.vae.set_parameters(n.vector[:-1])


@check("IParameterizable<T, Tensor<T>, Tensor<T>>: WithParameters(parameters)")
def _(n):
    assert torch.equal(n.other.get_parameters(), 0.5 * n.vector) and torch.equal(n.vae.get_parameters(), n.vector)


@check("SaveState(stream)")
def _(n):
    assert not n.stream.closed
    file = n.folder / "state.safetensors"
    file.write_bytes(n.stream.getvalue())
    read = AutoencoderKL.from_single_file(file)
    assert torch.equal(read.get_parameters(), n.vector) and read.config == n.vae.config


@check("LoadState(stream)", "IModelSerializer: Serialize(), Deserialize(data)", "ICheckpointableModel")
def _(n):
    assert torch.equal(n.vae.get_parameters(), n.vector)
    assert n.stream.tell() in (0, len(n.stream.getvalue()))  # the stream was read to its end
    other = AutoencoderKL.from_preset("tiny", seed=1)
    other.load_state(io.BytesIO(n.stream.getvalue()))
    assert torch.equal(other.get_parameters(), n.vector) and other.config.scaling_factor == 0.18215


@check("IModelSerializer: SaveModel(filePath), LoadModel(filePath)")
def _(n):
    assert torch.equal(n.out.get_parameters(), n.vector) and n.out.config == n.vae.config


@check("ResetState()")
def _(n):
    assert all(parameter.grad is None for parameter in n.vae.parameters())
    assert torch.equal(n.vae(n.image).sample, n.before(n.image).sample)


@check("Train(input, expectedOutput)")
def _(n):
    torch.manual_seed(0)  # as before the row
    posterior = n.before.encode(n.image[:1]).latent_dist
    squared = (n.before.decode(posterior.sample()).sample - n.image[:1]).square()
    ((squared.sum() + 1e-6 * posterior.kl().sum()) / squared.numel()).backward()
    for after, before in zip(n.vae.parameters(), n.before.parameters(), strict=True):
        assert close(after, before - 1e-4 * before.grad, 1e-6)
    assert relative(n.vae.get_parameters(), n.vector) > 1e-6


@check("ArgumentNullException, ArgumentException, InvalidOperationException")
def _(n):
    assert n.out is ValueError
    for wrong in (None, io.StringIO(), io.BytesIO(), io.BytesIO(b"something else")):
        with pytest.raises(n.out, match="expected"):
            n.vae.load_state(wrong)
    with pytest.raises(n.out, match="expected"):
        n.vae.save_state(None)
    assert torch.equal(n.vae.get_parameters(), n.vector)


@check("IVAEModel<T>: Sample(mean, logVariance, seed: 0)")
def _(n):
    noise = torch.randn(n.z.shape, generator=torch.Generator().manual_seed(0))
    assert close(n.out, n.z + torch.exp(-n.z / 2) * noise)
    assert not torch.equal(n.posterior.sample(), n.posterior.sample())


@check("IModel<Tensor<T>, Tensor<T>, ModelMetadata<T>>: Predict(input)")
def _(n):
    assert not n.out.requires_grad and close(n.out, n.theirs(n.image).sample)


@check("IModel<Tensor<T>, Tensor<T>, ModelMetadata<T>>: GetModelMetadata()")
def _(n):
    assert all(n.theirs.config[name] == value for name, value in n.out.items())
    assert AutoencoderKLConfig.from_dict(n.out) == n.vae.config


@check("IFeatureAware: GetActiveFeatureIndices(), SetActiveFeatureIndices(indices), IsFeatureUsed(index)")
def _(n):
    assert n.out == [name for name in n.vae.state_dict() if not name.startswith("encoder.")]
    n.vae(n.image).sample.mean().backward()
    assert all((p.grad is not None) == (name in n.out) for name, p in n.vae.named_parameters())


@check("IFeatureImportance<T>: GetFeatureImportance()")
def _(n):
    assert list(n.out) == list(n.vae.state_dict()) and all(value >= 0 for value in n.out.values())
    assert len(set(n.out.values())) > len(n.out) // 2  # the values differ


@check("IGradientComputable<T, Tensor<T>, Tensor<T>>: ComputeGradients(input, target)")
def _(n):
    assert n.out.shape == n.vector.shape
    along, vae = n.out / n.out.norm(), n.before.double()  # finite differences in the gradient's direction
    losses = []
    for step in (1e-4, -1e-4):
        vae.set_parameters(n.vector.double() + step * along.double())
        losses.append((vae(n.image.double()).sample - n.image).square().mean())
    assert close(n.out.norm(), (losses[0] - losses[1]) / 2e-4, 1e-3)


@check("IGradientComputable<T, Tensor<T>, Tensor<T>>: ApplyGradients(gradients, learningRate)")
def _(n):
    for parameter in n.before.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(n.before.parameters(), lr=1e-4).step()
    assert torch.equal(n.vae.get_parameters(), n.before.get_parameters())


@check("IJitCompilable<T>: ExportComputationGraph(inputNodes)")
def _(n):
    assert close(n.out.module()(n.image).sample, n.before(n.image).sample)
    assert sum("conv2d" in str(node.target) for node in n.out.graph.nodes) == sum(
        isinstance(module, nn.Conv2d) for module in n.vae.modules()
    )


# ---- The tests -------------------------------------------------------------------------------------------------------


def cannot_compile() -> bool:
    """Tell whether the C++ compiler or Python.h, which inductor needs, is missing. In CI both must be present."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))
    header = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return not (compiler and header) and "CI" not in os.environ


@pytest.mark.parametrize("row", ROWS, ids=[row.theirs for row in ROWS])
def test_the_row_runs_and_does_what_the_table_says(row, names, theirs, tmp_path):
    if "torch.compile(vae.decode)(" in row.ours and cannot_compile():
        pytest.skip("no C++ compiler; the row is compiled without one in the next test")
    before = copy.deepcopy(names["vae"])
    run(PREPARATION.get(row.theirs, "None"), names)
    torch.manual_seed(0)
    out = in_two_processes(row, tmp_path) if row.theirs == PMAP else run(row.ours, names)
    names = {name: value for name, value in names.items() if not name.startswith("__")}
    result = CHECKS[row.theirs](SimpleNamespace(**names | {"out": out, "before": before, "theirs": theirs}))
    assert result is None or result is True


def test_the_model_is_one_graph_for_compilers(names):
    vae, image = names["vae"].requires_grad_(False), names["image"]
    assert close(torch.compile(vae, backend="aot_eager", fullgraph=True)(image).sample, vae(image).sample)


def test_every_row_has_its_check_and_every_check_its_row():
    rows = [row.theirs for row in ROWS]
    assert len(rows) == len(set(rows))
    assert set(rows) == set(CHECKS)
    assert {row.source for row in ROWS} == set(SOURCES)


ARGUMENTS = """in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn
    latent_channels norm_num_groups sample_size scaling_factor"""
REFERENCES = {  # every name on the page of each project
    "diffusers: AutoencoderKL": f"""AutoencoderKL {ARGUMENTS} force_upcast
        ModelMixin from_pretrained FromOriginalVAEMixin from_single_file url
        disable_slicing disable_tiling enable_slicing enable_tiling use_tiling
        forward sample sample_posterior return_dict generator
        set_attn_processor processor _remove_lora set_default_attn_processor
        AttnProcessor AttnProcessor2_0 XFormersAttnProcessor SlicedAttnProcessor AttnAddedKVProcessor
        SlicedAttnAddedKVProcessor AttnAddedKVProcessor2_0 XFormersAttnAddedKVProcessor CustomDiffusionAttnProcessor
        CustomDiffusionXFormersAttnProcessor CustomDiffusionAttnProcessor2_0 LoRAAttnProcessor LoRAAttnProcessor2_0
        LoRAXFormersAttnProcessor LoRAAttnAddedKVProcessor
        tiled_decode z tiled_encode x AutoencoderKLOutput latent_dist DecoderOutput DiagonalGaussianDistribution
        encode decode sample mode kl nll""",
    "diffusers: FlaxAutoencoderKL": f"""FlaxAutoencoderKL {ARGUMENTS} dtype parent name
        FlaxModelMixin flax linen Module JIT Differentiation Vectorization Parallelization jit grad vmap pmap
        FlaxAutoencoderKLOutput latent_dist FlaxDiagonalGaussianDistribution replace FlaxDecoderOutput sample""",
    "AiDotNet: AutoencoderKL": """AutoencoderKL T Tensor Vector VAEModelBase IVAEModel IFullModel IModel ModelMetadata
        IModelSerializer ICheckpointableModel IParameterizable IFeatureAware IFeatureImportance ICloneable
        IGradientComputable IJitCompilable
        inputChannels latentChannels baseChannels channelMults numResBlocks numGroups latentScaleFactor inputSpatialSize
        lossFunction ILossFunction seed
        Decoder VAEDecoder DownsampleFactor Encoder VAEEncoder InputChannels LatentChannels LatentScaleFactor
        ParameterCount SupportsSlicing SupportsTiling
        Clone ComputeVAELoss image reconstruction klWeight Decode latent DecodeFromDiffusion DeepCopy Encode sampleMode
        EncodeForDiffusion EncodeWithDistribution Forward GetParameters Lightweight LoadState stream ResetState SDXL
        SaveState SetParameters parameters StableDiffusionV1 Train input expectedOutput
        ArgumentNullException ArgumentException InvalidOperationException""",
}


@pytest.mark.parametrize("source", SOURCES)
def test_no_name_of_a_reference_is_missing(source):
    words = {word for row in ROWS if row.source == source for word in re.findall(r"\w+", row.theirs)}
    assert set(REFERENCES[source].split()) - words == set()


# ---- In a diffusers pipeline -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline_folder(theirs, tmp_path_factory) -> Path:
    """A saved diffusers pipeline: DiT is the only small one that needs no text encoder."""
    diffusers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=1, sample_size=8, patch_size=4
    )
    folder = tmp_path_factory.mktemp("pipeline")
    DiTPipeline(transformer=transformer, vae=theirs, scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


def drawn(pipe: DiTPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe(class_labels=[1], num_inference_steps=2, generator=generator, output_type="np").images)


def test_a_pipeline_that_is_loaded_with_the_bridge_makes_the_same_image_and_is_saved_whole(names, pipeline_folder):
    names["pipeline_folder"] = pipeline_folder
    run(PIPELINE_BLOCK, names)
    pipe, saved = names["pipe"], names["folder"] / "saved"
    image = drawn(pipe)
    assert type(pipe.vae) is diffusers.AutoencoderKL
    assert close(image, drawn(diffusers.DiffusionPipeline.from_pretrained(pipeline_folder)))
    pipe.save_pretrained(saved)
    assert close(image, drawn(diffusers.DiffusionPipeline.from_pretrained(saved)))


def test_in_a_pipeline_it_makes_the_same_image_whole_in_slices_and_in_tiles(names, pipeline_folder):
    pipe = diffusers.DiffusionPipeline.from_pretrained(pipeline_folder)
    image = drawn(pipe)
    pipe.vae = AutoencoderKL.from_pretrained(pipeline_folder, subfolder="vae")
    assert close(image, drawn(pipe))
    pipe.vae.enable_slicing()
    assert close(image, drawn(pipe))
    pipe.vae.enable_tiling(size=16, overlap=8)
    assert drawn(pipe).shape == image.shape


def test_a_pipeline_takes_it_after_loading_and_not_while_it_loads(names, pipeline_folder):
    with pytest.raises(ValueError, match=r"but should be .*ModelMixin"):
        diffusers.DiffusionPipeline.from_pretrained(pipeline_folder, vae=names["vae"])


def test_a_saved_pipeline_lacks_it_until_it_is_bridged(names, pipeline_folder):
    folder = names["folder"]

    def loaded():
        names["pipe"] = diffusers.DiffusionPipeline.from_pretrained(pipeline_folder)
        names["pipe"].vae = AutoencoderKL.from_pretrained(pipeline_folder, subfolder="vae")
        names["as_diffusers"] = as_diffusers
        return names["pipe"]

    image = drawn(loaded())
    run(SAVING_BLOCK, names)
    assert close(drawn(diffusers.DiffusionPipeline.from_pretrained(folder / "pipeline")), image)

    loaded().save_pretrained(folder / "without")
    run(SAVING_BLOCK, names)  # the pipeline is already saved
    for saved in (folder / "without", folder / "pipeline"):
        assert json.loads((saved / "model_index.json").read_text())["vae"] == [None, None]
    assert not (folder / "without" / "vae").exists()


def test_what_offloads_diffusers_models_reaches_it_in_encode_and_decode(names, theirs):
    """accelerate moves a model in a hook on `forward`, but pipelines call `encode` and `decode`."""
    called = []

    class Hook(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            called.append(type(module))
            return args, kwargs

    for model in (names["vae"], copy.deepcopy(theirs)):
        add_hook_to_module(model, Hook())
        model.encode(names["image"])
        model.decode(names["z"])
    assert called == [AutoencoderKL, AutoencoderKL, diffusers.AutoencoderKL, diffusers.AutoencoderKL]


def test_pipelines_do_not_fuse_its_projections(names):
    with pytest.raises(ValueError, match="only supported for the VAE of type"):
        StableDiffusionMixin.fuse_qkv_projections(SimpleNamespace(vae=names["vae"]), unet=False)
