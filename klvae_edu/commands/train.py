"""`klvae train`: a recipe and options become a configuration, which is checked and trained."""

from __future__ import annotations

from collections.abc import Sequence

from klvae_edu.commands.models import announce_hub
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import YOUR_IMAGES, about, load_recipe, recipe_names

DESCRIPTION = """\
Train an autoencoder on crops of images, and keep its weights, a log and pictures in the folder --out.

RECIPE, where there is one, comes first: a name from below, a YAML file of your own, or the training.json of a run that
is to be repeated. It sets the defaults that the options change.

"""


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
        description=DESCRIPTION + "\n".join(recipes) if recipe is None else about(recipe),
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
