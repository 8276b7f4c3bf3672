"""The command line: `klvae train`, `klvae reconstruct`, `klvae convert`, `klvae doctor`.

Exit codes: 0 all went well, 1 some photograph or check did not, 2 wrong use or an error, 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from klvae_edu.environment import doctor, restart_with_process_settings
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import YOUR_IMAGES, about, load_recipe, recipe_names

if TYPE_CHECKING:
    from torch import Tensor

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.metrics import PatchPCA

TRAIN_DESCRIPTION = """\
Train an autoencoder on crops of images, and keep its weights, a log and pictures in the folder --out.

RECIPE, where there is one, comes first: a name from below, a YAML file of your own, or the training.json of a run that
is to be repeated. It sets the defaults that the options change.

"""
DESCRIPTION = "klvae_edu: the autoencoder of Stable Diffusion, from a course. Each command has its own --help."


@dataclass(frozen=True)
class ReconstructOptions:
    """Put photographs through a trained autoencoder, and a picture of what comes out beside each."""

    photos: Positional[tuple[Path, ...]]  # image files, of any kind that Pillow reads
    model: str | None = None  # trained weights: a folder such as run/model, or a Hub id
    out: Path = Path("reconstructions")  # folder for the pictures, one PNG a photograph
    size: int = 512  # longest side in pixels that a photograph is reduced to; it bounds time and memory
    device: Literal["cuda", "mps", "cpu"] | None = None  # what to compute on; None: the best there is

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected a whole number of at least 1, got {self.size}")


@dataclass(frozen=True)
class ConvertOptions:
    """Write an autoencoder's weights as another program expects them."""

    source: Positional[str]  # what to read: a file (.safetensors, .ckpt, …), a folder in diffusers' layout, or a Hub id
    target: Positional[Path]  # what to write: a file name that ends in .safetensors, or without a suffix a folder
    names: Literal["compvis", "diffusers"]  # how to name the weights; a folder has diffusers' names
    scaling_factor: float | None = None  # of a single file that does not tell: 0.13025 for SDXL's network
    norm_num_groups: int | None = None  # likewise, where it is not 32
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # of the weights; None: as they lie in the source
    ema: bool = False  # take the averaged weights out of a checkpoint of CompVis' training


@dataclass(frozen=True)
class DoctorOptions:
    """Check the environment line by line, and say what to do about each failure."""


def run() -> None:
    """The entry point of the console script."""
    warnings.formatwarning = lambda message, *where, **more: f"klvae: {message}\n"
    if sys.argv[1:2] in (["train"], ["reconstruct"]):
        restart_with_process_settings()
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code. An error that a user can mend is one line on stderr, no traceback."""
    import tyro

    commands: dict[str, Callable[..., object]] = {
        "train": TrainingConfig,
        "reconstruct": ReconstructOptions,
        "convert": ConvertOptions,
        "doctor": DoctorOptions,
    }
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["train"]:
            return run_train(train_config(argv[1:]))
        options = tyro.extras.subcommand_cli_from_dict(commands, args=argv, prog="klvae", description=DESCRIPTION)
        if isinstance(options, ReconstructOptions):
            return run_reconstruct(options)
        if isinstance(options, ConvertOptions):
            return run_convert(options)
        return run_doctor()
    except KeyboardInterrupt:
        print("klvae: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"klvae: {error}", file=sys.stderr)
        return 2


def train_config(argv: Sequence[str]) -> TrainingConfig:
    """What `klvae train` is told, `[RECIPE] [--field value …]`: the recipe's fields where no option says otherwise.

    Raises:
        ValueError: there is no such recipe, or something in it is wrong. Wrong options and --help exit, as tyro does.
    """
    import tyro

    recipe = argv[0] if argv and not argv[0].startswith("-") else None
    default = TrainingConfig() if recipe is None else load_recipe(recipe)
    width = max(map(len, recipe_names()))
    recipes = [f"  {name:{width}}  {about(name).splitlines()[0]}" for name in recipe_names()]
    return tyro.cli(
        TrainingConfig,
        args=argv if recipe is None else argv[1:],
        default=default,
        prog=f"klvae train {'[RECIPE]' if recipe is None else recipe}",
        description=TRAIN_DESCRIPTION + "\n".join(recipes) if recipe is None else about(recipe),
    )


def run_train(config: TrainingConfig) -> int:
    """`klvae train`: 0, or 130 when it was interrupted."""
    from klvae_edu.data.sources import source_folders
    from klvae_edu.training.trainer import train

    folders = source_folders(config.data)
    if config.data == YOUR_IMAGES and not folders:
        raise ValueError("data: this recipe is for images of your own; say where they are: --data FOLDER")
    for folder in folders:
        if config.out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"out: expected a folder outside of the images, or the next run is trained on the pictures of this "
                f"one; {config.out} is inside of {folder}. Name another one with --out"
            )
    if config.init is not None:
        announce_hub(config.init)
    return 130 if train(config).interrupted else 0


def run_doctor() -> int:
    """`klvae doctor`: 1 when a check fails that the package cannot work without."""
    failed = 0
    for check in doctor():
        mark = "ok" if check.ok else "FAIL" if check.required else "note"
        failed += mark == "FAIL"
        print(f"{mark:4}  {check.name:22}  {check.detail}")
        if not check.ok:
            print(f"      -> {check.remedy}")
    print(f"\n{failed} required check(s) failed." if failed else "\nAll that is required is there.")
    return 1 if failed else 0


def run_reconstruct(options: ReconstructOptions) -> int:
    """`klvae reconstruct`: 1 when some of the photographs could not be done; the others are."""
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.data import UnreadableImage, load_image
    from klvae_edu.environment import pick_device
    from klvae_edu.metrics import PatchPCA
    from klvae_edu.training.held_out import some_crops
    from klvae_edu.training.run_folder import unused

    if not options.photos:
        raise ValueError("expected at least one photograph: klvae reconstruct PHOTO... --model FOLDER")
    if options.model is None:
        raise ValueError(
            "no trained model comes with the package yet; train one with `klvae train --out run` (some minutes on "
            "2 CPU cores), then pass --model run/model"
        )
    announce_hub(options.model)
    vae = AutoencoderKL.from_pretrained(options.model, dtype=torch.float32).to(pick_device(options.device))
    crops, _ = some_crops(TrainingConfig(data="photos", size=16 * vae.downsample_factor), "train", 512)
    pca = PatchPCA(vae.downsample_factor, vae.config.latent_channels).fit(crops)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for photo in options.photos:
        try:
            path = unused(options.out / f"{photo.stem}_reconstruction.png")
            values = reconstruct(vae, pca, load_image(photo, name=str(photo)), options.size, path)
            print(f"{photo}: {values} -> {path}")
        except ValueError as error:
            failed += 1
            which = "" if isinstance(error, UnreadableImage) else f"{photo}: "  # that one names the file itself
            print(f"klvae: {which}{error}", file=sys.stderr)
    return 1 if failed else 0


def run_convert(options: ConvertOptions) -> int:
    """`klvae convert`: never writes over what is there."""
    import torch

    from klvae_edu.checkpoints import load_pretrained, save_pretrained
    from klvae_edu.single_file import SUFFIXES, load_with_style, save_single_file

    source, target = Path(options.source), options.target
    if target.suffix.lower() not in ("", ".safetensors"):
        raise ValueError(f"{target}: expected a file name that ends in .safetensors, or a folder's without a suffix")
    if not target.suffix and options.names == "compvis":
        raise ValueError(f"{target}: a folder has diffusers' names; for CompVis' names write {target}.safetensors")
    if target.exists():
        raise ValueError(f"{target}: in use, and nothing in it was changed; name another target, or move it away")
    told: dict[str, Any] = {"scaling_factor": options.scaling_factor, "norm_num_groups": options.norm_num_groups}
    told = {name: value for name, value in told.items() if value is not None} | ({"ema": True} if options.ema else {})
    dtype = getattr(torch, options.dtype) if options.dtype else None
    if source.is_file():
        vae, found = load_with_style(source, dtype, **told)
    elif source.suffix.lower() in SUFFIXES and not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file")
    else:
        if told:
            raise ValueError(
                f"{' and '.join(told)}: for a single file only; a folder has its config.json, and no averages"
            )
        announce_hub(options.source)
        vae, found = load_pretrained(options.source, dtype=dtype), "a folder in diffusers' layout"
    if target.suffix:
        save_single_file(vae, target, options.names)
        written = f"{target}, {'CompVis' if options.names == 'compvis' else 'diffusers'}' names"
    else:
        save_pretrained(vae, target)
        written = f"{target}, a folder in diffusers' layout"
    size = f"f = {vae.downsample_factor}, {vae.config.latent_channels} latent channels"
    print(f"{source}: {found}, {size}, {vae.num_parameters():,} parameters -> {written}")
    return 0


def announce_hub(model: str) -> None:
    """Say so when `model` is no folder: without a network the Hub is asked in vain for half a minute."""
    if not Path(model).exists():
        print(f"klvae: there is no folder {model}; asking the Hugging Face Hub for it", file=sys.stderr)


def reconstruct(vae: AutoencoderKL, pca: PatchPCA, photo: Tensor, size: int, path: Path) -> str:
    """Write `photo` (3, H, W) beside what the model and patch-PCA make of it; return the PSNR of each in words."""
    from PIL import Image

    from klvae_edu.data.files import resize
    from klvae_edu.metrics import psnr
    from klvae_edu.plots import figure_to_image, image_grid
    from klvae_edu.training.held_out import reconstructions

    height, width = photo.shape[-2:]
    scale = size / max(height, width)
    if scale < 1:
        photo = resize(photo, max(1, round(height * scale)), max(1, round(width * scale)))
    found = reconstructions(vae, pca, photo[None])
    values = {name: f"{psnr(image, photo[None]).item():.2f} dB" for name, image in found.items()}
    titles = ["original", *(f"{name}, {values[name]}" for name in ("model", "patch-PCA"))]
    picture = image_grid([[photo, found["model"][0], found["patch-PCA"][0]]], column_titles=titles)
    Image.fromarray(figure_to_image(picture)).save(path)
    return ", ".join(f"{name} {value}" for name, value in values.items())
