"""docs/files.md: every row of its tables is tried, and no row is missing."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import diffusers
import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, features
from pyarrow import parquet
from safetensors.torch import save_file
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.cli import main
from klvae_edu.data import image_dataset
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.crops import hold_out
from klvae_edu.data.files import UnreadableImage, load_image
from klvae_edu.weights.keys import to_compvis

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "files.md").read_text(encoding="utf-8")
CONFIG = AutoencoderKLConfig(block_out_channels=(32, 64), layers_per_block=1, scaling_factor=0.3)
STEM = "diffusion_pytorch_model"


def table(heading: str) -> dict[str, str]:
    """Return the rows of the table under a heading: first cell -> second cell."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1] for row in cells}


class Try:
    """A small autoencoder, its weights under both naming schemes, and a folder for files made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vae = AutoencoderKL(CONFIG)
        self.diffusers = dict(self.vae.state_dict())
        self.compvis = {name: tensor.contiguous() for name, tensor in to_compvis(self.diffusers).items()}
        self.vae.save_pretrained(folder / "model")

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read(self, name: str | Path) -> list[str]:
        """Read a model, check that it has the weights, and return what was said."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = AutoencoderKL.from_any(name, dtype=torch.float32)
        assert torch.equal(model.get_parameters(), self.vae.get_parameters())
        return [str(warning.message) for warning in said]

    def refused(self, name: str | Path) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            AutoencoderKL.from_any(name, dtype=torch.float32)
        return str(error.value)

    def file(self, weights: dict[str, Tensor], name: str = "vae.safetensors") -> Path:
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, self.path(name))
        return self.path(name)

    def pickle(self, content: Any, name: str = "vae.ckpt") -> Path:
        torch.save(content, self.path(name))
        return self.path(name)


Check = Callable[[Any], None]
ROWS: dict[str, dict[str, Check]] = {"Models": {}, "Pictures": {}, "Data sets": {}}


def row(first_cell: str, of: str = "Models") -> Callable[[Check], Check]:
    """Register what a row of a table says: `of` is the heading of the table."""

    def register(check: Check) -> Check:
        ROWS[of][first_cell] = check
        return check

    return register


@row("the name of a bundled model, `kl-f8-mini`")
def _(n: Try) -> None:
    assert AutoencoderKL.from_any("kl-f8-mini").config.latent_channels == 4


@row("a folder of `save_pretrained`, of this package or of diffusers")
def _(n: Try) -> None:
    assert n.read(n.folder / "model") == []
    theirs = diffusers.AutoencoderKL.from_pretrained(n.folder / "model")
    theirs.save_pretrained(n.folder / "theirs")
    assert n.read(n.folder / "theirs") == []


@row("a folder with one variant only, `diffusion_pytorch_model.fp16.safetensors`")
def _(n: Try) -> None:
    (n.folder / "model" / f"{STEM}.safetensors").rename(n.folder / "model" / f"{STEM}.fp16.safetensors")
    n.read(n.folder / "model")


@row("a folder with several variants and none without a name")
def _(n: Try) -> None:
    (n.folder / "model" / f"{STEM}.safetensors").rename(n.folder / "model" / f"{STEM}.fp16.safetensors")
    shutil.copy(n.folder / "model" / f"{STEM}.fp16.safetensors", n.folder / "model" / f"{STEM}.ema.safetensors")
    assert "'ema' or 'fp16'" in n.refused(n.folder / "model")
    AutoencoderKL.from_pretrained(n.folder / "model", variant="ema")
    n.read(n.folder / "model" / f"{STEM}.fp16.safetensors")


@row("a folder with shards and their `index.json`")
def _(n: Try) -> None:
    theirs = diffusers.AutoencoderKL.from_pretrained(n.folder / "model")
    theirs.save_pretrained(n.folder / "shards", max_shard_size="500KB")
    assert len([*(n.folder / "shards").glob("*-of-*.safetensors")]) > 1
    n.read(n.folder / "shards")
    theirs.save_pretrained(n.folder / "variant", max_shard_size="500KB", variant="fp16")
    n.read(n.folder / "variant")


@row("a folder with a pickle, `diffusion_pytorch_model.bin`")
def _(n: Try) -> None:
    diffusers.AutoencoderKL.from_pretrained(n.folder / "model").save_pretrained(
        n.folder / "pickle", safe_serialization=False
    )
    n.read(n.folder / "pickle")


@row("a folder with CompVis' names in its weight file")
def _(n: Try) -> None:
    n.file(n.compvis, f"model/{STEM}.safetensors")
    n.read(n.folder / "model")


@row("a folder with one weight file and no `config.json`")
def _(n: Try) -> None:
    n.file(n.compvis, "alone/my.safetensors")
    assert any("the configuration is inferred" in said for said in n.read(n.folder / "alone"))


@row("the folder of a pipeline")
def _(n: Try) -> None:
    shutil.copytree(n.folder / "model", n.folder / "pipeline" / "vae")
    n.path("pipeline/model_index.json").write_text("{}")
    n.read(n.folder / "pipeline")


def hub(n: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a cache of the Hub in place that an earlier download has filled, with one repository: owner/name."""
    snapshot = n.folder / "cache" / "models--owner--name" / "snapshots" / ("0" * 40)
    shutil.copytree(n.folder / "model", snapshot)
    shutil.copytree(n.folder / "model", snapshot / "vae")
    shutil.copy(n.folder / "model" / f"{STEM}.safetensors", snapshot / "vae.safetensors")
    refs = n.folder / "cache" / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(n.folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def on_hub(n: Try, *names: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        hub(n, monkeypatch)
        for name in names:
            n.read(name)


@row("a Hub id, `owner/name`")
def _(n: Try) -> None:
    on_hub(n, "owner/name")


@row("a folder or a file on the Hub, `owner/name/vae`, `owner/name/vae.safetensors`")
def _(n: Try) -> None:
    on_hub(n, "owner/name/vae", "owner/name/vae.safetensors")


@row("the address of a page of the Hub")
def _(n: Try) -> None:
    address = "https://huggingface.co/owner/name"
    on_hub(n, address, f"{address}/tree/main/vae", f"{address}/blob/main/vae.safetensors")


@row("a single file with CompVis' names, or with diffusers'")
def _(n: Try) -> None:
    n.read(n.file(n.compvis))
    n.read(n.file(n.diffusers))


def renamed(weights: dict[str, Tensor], where: str, names: dict[str, str]) -> dict[str, Tensor]:
    """Rename layers after `where`: the keys of `names` become its values."""
    found = {}
    for name, tensor in weights.items():
        match = re.fullmatch(rf"(.*{where}\.)(.+)(\.(?:weight|bias))", name)
        found[f"{match[1]}{names.get(match[2], match[2])}{match[3]}" if match else name] = tensor
    assert found.keys() != weights.keys()
    return found


@row("a single file with diffusers' names from before its attention refactoring")
def _(n: Try) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    n.read(n.file(renamed(n.diffusers, r"attentions\.0", old)))


@row("a single file with CompVis' names and diffusers' names of the attention layers")
def _(n: Try) -> None:
    n.read(n.file(renamed(n.compvis, "attn_1", {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"})))


@row("a pickle: `.ckpt`, `.pt`, `.pth`, `.bin`")
def _(n: Try) -> None:
    for suffix in ("ckpt", "pt", "pth", "bin"):
        n.read(n.pickle(n.compvis, f"vae.{suffix}"))

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (n.folder / "executed",))

    assert "nothing was run here" in n.read(n.pickle({**n.compvis, "x": Attack()}))[0]
    n.refused(n.pickle(Attack()))
    assert not (n.folder / "executed").exists()


@row("a pickle with objects of classes, also a whole module")
def _(n: Try) -> None:
    for content in ({**n.compvis, "x": Fraction(1, 2)}, {"vae": n.vae, "x": Fraction(1, 2)}):
        assert "fractions.Fraction" in " ".join(n.read(n.pickle(content)))


@row("a pickle whose weights are inside of such objects in another way, or in none")
def _(n: Try) -> None:
    message = n.refused(n.pickle({"x": Fraction(1, 2)}))
    assert "fractions.Fraction" in message and "safetensors" in message


@row("a file that claims more than it holds, or expands a few numbers to many")
def _(n: Try) -> None:
    content = {**n.compvis, "encoder.conv_in.weight": torch.zeros(1).expand(2**30)}
    assert "more than 4 times its size" in n.refused(n.pickle(content))


@row("a checkpoint of Stable Diffusion with other models beside the autoencoder")
def _(n: Try) -> None:
    weights = {f"first_stage_model.{name}": tensor for name, tensor in n.compvis.items()}
    others = {"model.diffusion_model.out.0.weight": torch.zeros(1), "cond_stage_model.weight": torch.zeros(1)}
    n.read(n.pickle({"state_dict": weights | others}))
    n.read(n.file(weights | others))


@row("a prefix before the names, at any depth: `module.model.vae.`")
def _(n: Try) -> None:
    for prefix in ("module.model.vae.", "_forward_module.", "autoencoder.", "ema_model."):
        n.read(n.file({prefix + name: tensor for name, tensor in n.compvis.items()}))


@row('dicts in dicts at any depth: `{"model": {"vae": …}}`')
def _(n: Try) -> None:
    for content in ({"model": {"vae": n.compvis}}, {"ema": n.diffusers, "epoch": 3}, {"a": {"b": {"c": n.compvis}}}):
        n.read(n.pickle(content))


@row("a file with trained and averaged weights")
def _(n: Try) -> None:
    ones = {name: torch.ones_like(tensor) for name, tensor in n.compvis.items()}
    path = n.pickle({"model": n.compvis, "ema": ones})
    assert any("two autoencoders" in said for said in n.read(path))
    assert bool((AutoencoderKL.from_any(f"{path}#ema").get_parameters() == 1).all())


@row("a file with two autoencoders")
def _(n: Try) -> None:
    path = n.pickle({"left": n.compvis, "right": {name: torch.ones_like(t) for name, t in n.compvis.items()}})
    message = n.refused(path)
    assert "under left" in message and "under right" in message
    n.read(f"{path}#left")


@row("other tensors beside the autoencoder, such as those of the training loss")
def _(n: Try) -> None:
    more = {
        "loss.logvar": torch.zeros(1),
        "loss.discriminator.0.weight": torch.zeros(2),
        "linear.weight": torch.ones(1),
    }
    assert any(
        "3 other tensors left out: 2 under loss, 1 under linear" in said for said in n.read(n.file(n.compvis | more))
    )


@row("weights in 8-bit floats with a scale for each layer or channel")
def _(n: Try) -> None:
    eights: dict[str, Tensor] = {}
    for name, tensor in n.compvis.items():
        eights[name] = tensor.sign().to(torch.float8_e4m3fn) if tensor.ndim == 4 else tensor
        if tensor.ndim == 4:
            eights[name.replace(".weight", ".scale_weight")] = torch.tensor(0.25)
    model = AutoencoderKL.from_any(n.file(eights), dtype=torch.float32)
    assert set(model.encoder.conv_in.weight.abs().unique().tolist()) == {0.25}


@row("weights that bitsandbytes, GPTQ or AWQ quantised; a GGUF file")
def _(n: Try) -> None:
    for name, program in (
        ("encoder.conv_in.weight.absmax", "bitsandbytes"),
        ("encoder.conv_in.qweight", "GPTQ or AWQ"),
    ):
        assert program in n.refused(n.file({**n.compvis, name: torch.zeros(1)}))
    n.path("vae.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "GGUF" in n.refused(n.path("vae.gguf"))


@row("a folder or a single file of FLUX.2's autoencoder, also with its small decoder")
def _(n: Try) -> None:
    for decoder in (None, (32, 32)):
        config = replace(CONFIG, scaling_factor=None, patch_size=(2, 2), decoder_block_out_channels=decoder)
        n.vae = AutoencoderKL(config)
        n.vae.bn.running_var.uniform_(1, 2)
        n.vae.save_pretrained(n.folder / "flux2")
        assert n.read(n.folder / "flux2") == []
        n.vae.to_single_file(n.folder / "ae.safetensors")
        assert n.read(n.folder / "ae.safetensors") == []
        read = AutoencoderKL.from_any(n.folder / "ae.safetensors")
        assert torch.equal(read.bn.running_var, n.vae.bn.running_var)


@row("a `config.json` with a shift and with means and standard deviations of the channels")
def _(n: Try) -> None:
    config = replace(CONFIG, shift_factor=0.5, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    n.vae.config = config
    n.vae.save_pretrained(n.folder / "both")
    assert "latents_mean and latents_std: these are used" in n.read(n.folder / "both")[0]


@row("a folder of another class, such as `AutoencoderTiny`")
def _(n: Try) -> None:
    diffusers.AutoencoderTiny().save_pretrained(n.folder / "taesd")
    assert "'AutoencoderTiny'" in n.refused(n.folder / "taesd")


@row("a file of a VQ model, of TAESD, of a video autoencoder")
def _(n: Try) -> None:
    assert "VQ model" in n.refused(n.file({**n.compvis, "quantize.embedding.weight": torch.zeros(4, 4)}))
    assert "TAESD" in n.refused(n.file({"encoder.layers.0.weight": torch.zeros(1)}))
    assert "video" in n.refused(n.file({**n.compvis, "encoder.x.weight": torch.zeros(1, 1, 3, 3, 3)}))


@row("a file without an autoencoder: a LoRA, a U-Net, a text encoder")
def _(n: Try) -> None:
    for name in (
        "lora_unet_down_blocks_0.lora_down.weight",
        "model.diffusion_model.out.0.weight",
        "text_model.x.weight",
    ):
        message = n.refused(n.file({name: torch.zeros(1)}))
        assert "no autoencoder in it" in message and name in message


@row("a truncated file, or a web page saved as a weight file")
def _(n: Try) -> None:
    path = n.file(n.compvis)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"<!doctype html><title>Sign in</title>"):
        path.write_bytes(content)
        assert "damaged" in n.refused(path)


class Pictures:
    """A folder for pictures: noise of 48x40 pixels in many formats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rgb = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        self.image = Image.fromarray(self.rgb)

    def saved(self, name: str, image: Image.Image | None = None, **options: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or self.image).save(path, **options)
        return path

    def tiff(self, pixels: NDArray[Any], **options: Any) -> Path:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(self.folder / "x.tif", pixels, **options)
        return self.folder / "x.tif"

    def parquet(self, name: str, **columns: Any) -> Path:
        (self.folder / name).mkdir()
        parquet.write_table(pa.table(columns), self.folder / name / "train.parquet")
        return self.folder / name


def read(path: Path, channels: int = 3, said: str | None = None) -> Tensor:
    """Read a picture, and check that `said` is a part of the only warning; None: there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = load_image(path, channels=channels)
    assert [said] == [said for _ in caught] if said else not caught, [str(warning.message) for warning in caught]
    assert said is None or said in str(caught[0].message)
    assert len(image) == channels and bool((image.abs() <= 1).all())
    return image


def pixels(image: Tensor) -> NDArray[Any]:
    return ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def refused(path: Path, channels: int = 3) -> str:
    with pytest.raises(UnreadableImage) as error:
        load_image(path, channels=channels)
    return str(error.value)


@row("JPEG, PNG, WebP, TIFF, GIF, BMP, JPEG 2000, PPM, TGA, ICO, PSD; AVIF from Pillow 11.3 on", of="Pictures")
def _(n: Pictures) -> None:
    for suffix in ("png", "tif", "bmp", "jp2", "ppm", "tga"):
        assert np.array_equal(pixels(read(n.saved(f"x.{suffix}"))), n.rgb)
    for suffix in ("jpg", "webp", "gif", "ico", *(["avif"] if features.check("avif") else [])):
        read(n.saved(f"x.{suffix}"))
    psd = n.folder / "x.psd"  # Pillow does not write it: header of RGB with 8 bits, three empty parts, raw planes
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, *n.rgb.shape[:2], 8, 3)
    psd.write_bytes(header + bytes(12) + bytes(2) + n.rgb.transpose(2, 0, 1).tobytes())
    assert np.array_equal(pixels(read(psd)), n.rgb)


@row("EPS and other formats that Pillow knows, by whatever name", of="Pictures")
def _(n: Pictures) -> None:
    for suffix in ("eps", "pcx"):
        n.saved(f"x.{suffix}").rename(n.folder / "x.jpg")
        assert "not in any image format that is read (JPEG, " in refused(n.folder / "x.jpg")


@row("more than 178,956,970 pixels (twice Pillow's limit)", of="Pictures")
def _(n: Pictures) -> None:
    path = n.saved("x.png", Image.new("1", (15_000, 12_000)))
    assert "exceeds limit of 178956970 pixels" in (message := refused(path)) and "KLVAE_EDU_MAX_PIXELS" in message


@row("a picture whose suffix is that of another format", of="Pictures")
def _(n: Pictures) -> None:
    n.saved("x.png").rename(n.folder / "x.jpg")
    assert np.array_equal(pixels(read(n.folder / "x.jpg")), n.rgb)


@row("CMYK, palette, one bit", of="Pictures")
def _(n: Pictures) -> None:
    for mode, suffix in (("CMYK", "tif"), ("P", "png"), ("1", "png")):
        image = n.image.convert(mode)
        assert np.array_equal(pixels(read(n.saved(f"x.{suffix}", image))), np.asarray(image.convert("RGB")))


@row("CMYK, for a model with 4 channels", of="Pictures")
def _(n: Pictures) -> None:
    assert "got CMYK" in refused(n.saved("x.tif", n.image.convert("CMYK")), channels=4)


@row("rotated by its EXIF data, also a TIFF of n bands", of="Pictures")
def _(n: Pictures) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(pixels(read(n.saved("x.png", exif=exif))), np.rot90(n.rgb, -1))
    five = n.rgb[..., [0, 1, 2, 0, 1]]
    path = n.tiff(five, photometric="minisblack", planarconfig="contig", extratags=[(0x0112, "H", 1, 6, True)])
    assert np.array_equal(pixels(read(path, channels=5)), np.rot90(five, -1))


@row("transparent", of="Pictures")
def _(n: Pictures) -> None:
    clear = n.image.convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    assert bool((read(n.saved("x.png", clear)) == 1).all())
    assert np.array_equal(pixels(read(n.folder / "x.png", channels=4)), np.asarray(clear))


@row("grey, for an RGB model; RGB, for a grey model", of="Pictures")
def _(n: Pictures) -> None:
    grey = n.image.convert("L")
    assert np.array_equal(pixels(read(n.saved("g.png", grey))), np.asarray(grey.convert("RGB")))
    assert np.array_equal(pixels(read(n.saved("x.png"), channels=1))[..., 0], np.asarray(grey))


@row("16-bit grey", of="Pictures")
def _(n: Pictures) -> None:
    values = np.linspace(0, 65535, 1920).reshape(40, 48).astype(np.uint16)
    image = read(n.saved("x.png", Image.fromarray(values)))
    assert np.allclose(image[0].numpy(), values / 65535 * 2 - 1, atol=1e-6)
    read(n.saved("dark.png", Image.fromarray(values // 32)), said="look nearly black")


@row("a TIFF whose zero is white, of 8 or 16 bits or floating point", of="Pictures")
def _(n: Pictures) -> None:
    for values in (n.rgb[..., 0], n.rgb[..., 0] * np.uint16(257), n.rgb[..., 0] / np.float32(255)):
        image = read(n.tiff(values, photometric="miniswhite"))
        assert np.array_equal(pixels(image)[..., 0], 255 - n.rgb[..., 0])


@row("integers from -128 to 127", of="Pictures")
def _(n: Pictures) -> None:
    assert "signed" in refused(n.tiff(np.full((8, 8), -5, np.int8)))


@row("16-bit RGB", of="Pictures")
def _(n: Pictures) -> None:
    image = read(n.tiff(n.rgb.astype(np.uint16) * 257, photometric="rgb"))
    assert np.array_equal(pixels(image), n.rgb)


@row("16-bit RGB in uncompressed planes", of="Pictures")
def _(n: Pictures) -> None:
    planes = n.rgb.astype(np.uint16).transpose(2, 0, 1) * 257
    image = read(n.tiff(planes, photometric="rgb", planarconfig="separate"))
    assert np.array_equal(pixels(image), n.rgb)


@row("floating point", of="Pictures")
def _(n: Pictures) -> None:
    values = n.rgb.astype(np.float32) / 255
    assert np.array_equal(pixels(read(n.tiff(values, photometric="rgb"))), n.rgb)
    assert "from 0 to 1" in refused(n.tiff(values * 255, photometric="rgb"))


@row("a TIFF of n bands, for a model with n channels", of="Pictures")
def _(n: Pictures) -> None:
    bands = np.dstack([n.rgb, n.rgb[..., :2]])
    path = n.tiff(bands, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(pixels(read(path, channels=5)), bands)
    assert "expected 3 channels, got 5 bands of uint8" in refused(path)


@row("a TIFF of more bands than RGB, which have no meaning in it", of="Pictures")
def _(n: Pictures) -> None:
    path = n.tiff(np.dstack([n.rgb, n.rgb[..., :1]]), photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(pixels(read(path, said="bands without a meaning are left out (1 of 4)")), n.rgb)


@row("a fourth band that is marked as alpha but has hardly a 0 or 255", of="Pictures")
def _(n: Pictures) -> None:
    path = n.tiff(np.dstack([n.rgb, n.rgb[..., :1] // 2 + 20]), photometric="rgb", extrasamples=["unassalpha"])
    read(path, said="near infrared")


@row("a stack or an animation", of="Pictures")
def _(n: Pictures) -> None:
    stack = n.rgb[None, ..., 0].repeat(3, 0)
    read(n.tiff(stack, photometric="minisblack"), said="only the first page or frame is read (1 of 3)")
    read(n.saved("x.gif", save_all=True, append_images=[n.image.rotate(180)]), said="1 of 2")


@row("HEIC", of="Pictures")
def _(n: Pictures) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    smooth = n.image.resize((6, 5)).resize(n.image.size, Image.Resampling.BICUBIC)  # its colours have half the sides
    assert np.abs(pixels(read(n.saved("x.heic", smooth, quality=100))).astype(int) - np.asarray(smooth)).mean() < 4


@row("smaller than the `--size` of `encode` and `evaluate --split all`", of="Pictures")
def _(n: Pictures) -> None:
    n.saved("x.png")
    with pytest.warns(UserWarning, match="smaller than 64 pixels are enlarged"):
        assert AllImages(str(n.folder), 64).load(0).shape == (3, 64, 64)


@row("a file name that is no text", of="Pictures")
def _(n: Pictures) -> None:
    path = n.saved("x.png")
    raw = os.path.join(os.fsencode(n.folder), b"gr\xfc\xdfe.png")
    os.rename(os.fsencode(path), raw)
    assert np.array_equal(pixels(read(Path(os.fsdecode(raw)))), n.rgb)
    assert len(AllImages(str(n.folder), 32)) == 1


@row("an empty or truncated file, or no picture", of="Pictures")
def _(n: Pictures) -> None:
    n.saved("good.png")
    whole = n.saved("x.jpg").read_bytes()
    for name, content in (("a.jpg", b""), ("b.jpg", whole[: len(whole) // 2]), ("c.jpg", b"<html>")):
        (n.folder / name).write_bytes(content)
        assert name in refused(n.folder / name)
    (n.folder / "x.jpg").unlink()
    crops = image_dataset(str(n.folder), 16, length=12)
    assert len([*crops]) == 12
    assert (report := crops.report()) and "others took their place" in report


def count(source: Path | str) -> int:
    return len(AllImages(str(source), 32))


@row("a folder of pictures with subfolders", of="Data sets")
def _(n: Pictures) -> None:
    for name in ("a.png", "b/c.jpg", "b/d/e.webp"):
        n.saved(name)
    assert count(n.folder) == 3


@row("a folder behind a symbolic link", of="Data sets")
def _(n: Pictures) -> None:
    n.saved("store/cats/1.png")
    n.saved("data/dogs/2.png")
    (n.folder / "data" / "cats").symlink_to(n.folder / "store" / "cats")
    (n.folder / "data" / "again").symlink_to(n.folder / "store" / "cats")
    assert count(n.folder / "data") == 2


@row("other files in a folder, such as captions", of="Data sets")
def _(n: Pictures) -> None:
    n.saved("1.png")
    for name in ("1.txt", "2.txt", "3.psb"):
        (n.folder / name).touch()
    with pytest.warns(UserWarning, match=r"1 images are read; left out: 2 \.txt, 1 \.psb"):
        assert count(n.folder) == 1


def encoded(n: Pictures) -> bytes:
    return n.saved("x.png").read_bytes()


@row("`hf:NAME`, or a folder of Parquet files: a column of images", of="Data sets")
def _(n: Pictures) -> None:
    rows = {"image": [{"bytes": encoded(n), "path": None}] * 4}
    (n.folder / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).to_parquet(
        str(n.folder / "set" / "train.parquet")
    )
    assert count(n.folder / "set") == count(f"hf:{n.folder / 'set'}") == 4


@row("Parquet with a column of bytes, or of bytes and path, as pandas and Spark write it", of="Data sets")
def _(n: Pictures) -> None:
    assert count(n.parquet("plain", image=[encoded(n)] * 4, label=[0] * 4)) == 4
    assert count(n.parquet("struct", image=[{"bytes": encoded(n), "path": None}] * 4)) == 4


@row("several columns of images", of="Data sets")
def _(n: Pictures) -> None:
    folder = n.parquet("two", conditioning_image=[encoded(n)] * 4, image=[encoded(n)] * 4)
    with pytest.warns(UserWarning, match=r"image.*conditioning_image|conditioning_image.*image"):
        assert count(folder) == 4


@row("a column by its name, `hf:NAME#COLUMN`", of="Data sets")
def _(n: Pictures) -> None:
    folder = n.parquet("two", a=[encoded(n)] * 4, b=[b"no image"] * 4)
    images = AllImages(f"hf:{folder}#a", 32)
    assert images.load(0).shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"\bc\b"):
        AllImages(f"hf:{folder}#c", 32)


def members(n: Pictures) -> dict[str, bytes]:
    picture = encoded(n)
    return {"1.jpg": n.saved("y.jpg").read_bytes(), "1.mask.png": picture, "1.txt": b"a cat", "2.png": picture}


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@row("tar files, `.tar.gz`, `.tar.bz2` and `.tar.xz` too; zip files", of="Data sets")
def _(n: Pictures) -> None:
    plain = {name: encoded(n) for name in ("a/1.png", "b.png", "b.edit.png")}
    for kind in ("", "gz", "bz2", "xz"):
        shards = tar(n.folder / f"tars{kind}" / ".".join(filter(None, ("0.tar", kind))), plain, f"w:{kind}").parent
        assert count(shards) == 3
    assert count(zipped(n.folder / "zips" / "0.zip", plain | {"captions.csv": b"a,b"}).parent) == 3


@row("a WebDataset: tar or zip files with captions or the like of the pictures' names", of="Data sets")
def _(n: Pictures) -> None:
    for shards in (tar(n.folder / "tars" / "0.tar", members(n)), zipped(n.folder / "zips" / "0.zip", members(n))):
        with pytest.warns(UserWarning, match=r"1 × mask\.png are not read"):
            assert count(shards.parent) == 2
        assert count(f"hf:{shards.parent}#mask.png") == 1


@row("an archive or a Parquet file by its own name, such as `./a+b [1].zip`", of="Data sets")
def _(n: Pictures) -> None:
    with chdir(n.folder):
        zipped(Path("a+b [1].zip"), {"1.png": encoded(n)})
        assert count("./a+b [1].zip") == count("a+b [1].zip") == 1
        n.parquet("table", image=[encoded(n)] * 4)
        assert count("table/train.parquet") == 4


@row("an archive in an archive", of="Data sets")
def _(n: Pictures) -> None:
    with pytest.raises(ValueError, match=r"no image files in it; it has 1 \.zip"):
        count(zipped(n.folder / "outer.zip", {"inner.zip": b""}))


@row("a folder of `save_to_disk`", of="Data sets")
def _(n: Pictures) -> None:
    rows = {"image": [{"bytes": encoded(n), "path": None}] * 4}
    features_of = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features_of).save_to_disk(str(n.folder / "saved"))
    assert count(n.folder / "saved") == 4


@row("a data set without pictures", of="Data sets")
def _(n: Pictures) -> None:
    with pytest.raises(ValueError, match=r"label.*int64"):
        count(n.parquet("labels", label=[0] * 4))


@row("a data set without rows", of="Data sets")
def _(n: Pictures) -> None:
    with pytest.raises(ValueError, match="got an empty data set"):
        count(n.parquet("none", image=pa.array([], pa.binary())))


@row("held-out pictures that cannot be read, all of them", of="Data sets")
def _(n: Pictures) -> None:
    names = [f"{number}.png" for number in range(20)]
    for name in names:
        n.saved(name)
    (n.folder / names[hold_out(names)[1][0]]).write_bytes(b"")
    with pytest.warns(UserWarning, match="none of the 1 held-out images can be read; image .* takes their place"):
        assert len([*image_dataset(str(n.folder), 16, split="held-out", length=4)]) == 4


@pytest.mark.parametrize(("heading", "cell"), [(h, cell) for h in ROWS for cell in ROWS[h]], ids=lambda text: text[:50])
def test_a_row_is_true(heading: str, cell: str, tmp_path: Path) -> None:
    assert table(heading)[cell].startswith(("read", "refused", "left out"))
    ROWS[heading][cell]((Try if heading == "Models" else Pictures)(tmp_path))


@pytest.mark.parametrize("heading", ROWS)
def test_no_row_is_missing(heading: str) -> None:
    assert [*table(heading)] == [*ROWS[heading]]


def test_every_program_is_a_choice_of_convert_and_the_page_says_what_it_gets() -> None:
    from klvae_edu.weights.programs import PROGRAMS

    assert sorted(re.findall(r"`--for (\w+)`", PAGE)) == sorted(PROGRAMS)


def test_diffusers_reads_a_single_file_of_each_naming_scheme_and_the_folder_exactly(tmp_path: Path) -> None:
    vae = AutoencoderKL(CONFIG)
    assert main(["convert", str(saved(vae, tmp_path)), str(tmp_path / "folder"), "--for", "diffusers"]) == 0
    readers: list[Callable[[], Any]] = [lambda: diffusers.AutoencoderKL.from_pretrained(tmp_path / "folder")]
    for names in ("compvis", "diffusers"):
        file = tmp_path / f"{names}.safetensors"
        vae.to_single_file(file, names)
        readers.append(
            lambda file=file: diffusers.AutoencoderKL.from_single_file(str(file), config=str(tmp_path / "folder"))
        )
    for reader in readers:
        theirs = reader().state_dict()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in vae.state_dict().items())


def saved(vae: AutoencoderKL, folder: Path) -> Path:
    vae.save_pretrained(folder / "model")
    return folder / "model"
