"""docs/files.md: every row of its tables is tried, and no row is missing."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.cli import main
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


MODELS: dict[str, Callable[[Try], None]] = {}


def row(first_cell: str) -> Callable[[Callable[[Try], None]], Callable[[Try], None]]:
    def register(check: Callable[[Try], None]) -> Callable[[Try], None]:
        MODELS[first_cell] = check
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

    n.refused(n.pickle({**n.compvis, "x": Attack()}))
    assert not (n.folder / "executed").exists()


@row("a pickle that asks for classes")
def _(n: Try) -> None:
    message = n.refused(n.pickle({**n.compvis, "x": Fraction(1, 2)}))
    assert "fractions.Fraction" in message and "convert it" in message


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


@pytest.mark.parametrize("cell", MODELS, ids=lambda cell: cell[:60])
def test_a_row_about_a_model_is_true(cell: str, tmp_path: Path) -> None:
    assert table("Models")[cell].startswith(("read", "refused"))
    MODELS[cell](Try(tmp_path))


def test_no_row_about_a_model_is_missing() -> None:
    assert [*table("Models")] == [*MODELS]


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
