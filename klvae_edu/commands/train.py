"""Train an autoencoder from a recipe and options: `klvae train`."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from klvae_edu.commands.models import announce_hub
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import YOUR_IMAGES, about, load_recipe, recipe_names

DESCRIPTION = """\
Train an autoencoder on crops of images, and save its weights, a log and pictures in the folder --out.

RECIPE is optional and comes first: a name from the list below, a YAML file, or the training.json of a run to repeat. It
sets default values, which the options change.

"""


def train_config(argv: Sequence[str]) -> TrainingConfig:
    """Parse `[RECIPE] [--field value …]`: fields of the recipe, changed by the options. Wrong options and --help exit.

    Raises:
        ValueError: unknown recipe, or an error in it.
    """
    recipe = argv[0] if argv and not argv[0].startswith("-") else None
    default = TrainingConfig() if recipe is None else load_recipe(recipe)
    width = max(map(len, recipe_names()))
    recipes = [f"  {name:{width}}  {about(name).splitlines()[0]}" for name in recipe_names()]
    return tyro.cli(
        TrainingConfig,
        args=argv if recipe is None else argv[1:],
        default=default,
        prog=f"klvae train {'[RECIPE]' if recipe is None else recipe}",
        description=DESCRIPTION + "\n".join(recipes) if recipe is None else about(recipe),
    )


def run_train(config: TrainingConfig) -> int:
    """Run `klvae train` and return the exit code: 0, or 130 when it was interrupted."""
    from klvae_edu.data.sources import check_outside, source_folders
    from klvae_edu.training.trainer import train

    if config.data == YOUR_IMAGES and not source_folders(config.data):
        raise ValueError("data: this recipe needs your own images; name their folder: --data FOLDER")
    check_outside(config.out, config.data)
    if config.init is not None:
        announce_hub(config.init)
    return 130 if train(config).interrupted else 0
