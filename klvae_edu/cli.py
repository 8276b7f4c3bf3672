"""The command line: `klvae train`, and the commands of `klvae_edu.commands`.

Exit codes: 0 all went well, 1 some photograph or check did not, 2 wrong use or an error, 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from klvae_edu.commands.convert import ConvertOptions, run_convert
from klvae_edu.commands.doctor import DoctorOptions, run_doctor
from klvae_edu.commands.encode import EncodeOptions, run_encode
from klvae_edu.commands.evaluate import EvaluateOptions, run_evaluate
from klvae_edu.commands.grade import GradeOptions, run_grade
from klvae_edu.commands.models import announce_hub
from klvae_edu.commands.reconstruct import ReconstructOptions, run_reconstruct
from klvae_edu.environment import restart_with_process_settings
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import YOUR_IMAGES, about, load_recipe, recipe_names

TRAIN_DESCRIPTION = """\
Train an autoencoder on crops of images, and keep its weights, a log and pictures in the folder --out.

RECIPE, where there is one, comes first: a name from below, a YAML file of your own, or the training.json of a run that
is to be repeated. It sets the defaults that the options change.

"""
DESCRIPTION = "klvae_edu: the autoencoder of Stable Diffusion, from a course. Each command has its own --help."


def run() -> None:
    """The entry point of the console script."""
    warnings.formatwarning = lambda message, *where, **more: f"klvae: {message}\n"
    if sys.argv[1:2] and sys.argv[1] in COMPUTE:
        restart_with_process_settings()
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code. An error that a user can mend is one line on stderr, no traceback."""
    import tyro

    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["train"]:
            return run_train(train_config(argv[1:]))
        kinds: dict[str, Callable[..., object]] = {name: kind for name, (kind, _) in COMMANDS.items()}
        options = tyro.extras.subcommand_cli_from_dict(kinds, args=argv, prog="klvae", description=DESCRIPTION)
        return dict(COMMANDS.values())[type(options)](options)
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


# Each command's options, which become its flags and its help, and what it does with them.
COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (TrainingConfig, run_train),
    "reconstruct": (ReconstructOptions, run_reconstruct),
    "encode": (EncodeOptions, run_encode),
    "evaluate": (EvaluateOptions, run_evaluate),
    "convert": (ConvertOptions, run_convert),
    "grade": (GradeOptions, run_grade),
    "doctor": (DoctorOptions, run_doctor),
}
COMPUTE = ("train", "reconstruct", "encode", "evaluate")
