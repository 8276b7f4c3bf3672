"""Train an autoencoder from a recipe and options: `klvae train`."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import replace

import tyro

from klvae_edu.commands.models import announce_hub
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.recipes import YOUR_IMAGES, about, load_stages, recipe_names, split_stage

DESCRIPTION = """\
Train an autoencoder on crops of images, and save its weights, a log and pictures in the folder --out.

RECIPE is optional and comes first: a name from the list below, a YAML file, or the training.json of a run to repeat. It
sets default values, which the options change. The options hold for all stages of a recipe; RECIPE:2 is its second stage
alone, which begins with the weights that --init names.

"""


def train_stages(argv: Sequence[str]) -> list[TrainingConfig]:
    """Parse `[RECIPE] [--field value …]`: the stages of the recipe, each changed by the options.

    Wrong options and --help exit. Of several stages, number N writes into OUT/stage-N and begins with the weights of
    the stage before it.

    Raises:
        ValueError: unknown recipe, or an error in it.
    """
    recipe = argv[0] if argv and not argv[0].startswith("-") else None
    stages = [TrainingConfig()] if recipe is None else load_stages(recipe)
    width = max(map(len, recipe_names()))
    recipes = [f"  {name:{width}}  {about(name).splitlines()[0]}" for name in recipe_names()]
    configs = [
        tyro.cli(
            TrainingConfig,
            args=argv if recipe is None else argv[1:],
            default=default,
            prog=f"klvae train {'[RECIPE]' if recipe is None else recipe}",
            description=DESCRIPTION + "\n".join(recipes) if recipe is None else about(recipe),
        )
        for default in stages
    ]
    if len(configs) == 1:
        number = None if recipe is None else split_stage(recipe)[1]
        if number not in (None, 1) and configs[0].init is None:
            raise ValueError(f"init: stage {number} begins with trained weights; name them: --init FOLDER")
        return configs
    folders = [config.out / f"stage-{number}" for number, config in enumerate(configs, 1)]
    first, *others = configs
    return [replace(first, out=folders[0])] + [
        replace(config, out=folder, init=str(before / "model"))
        for config, folder, before in zip(others, folders[1:], folders, strict=False)
    ]


def run_train(stages: Sequence[TrainingConfig]) -> int:
    """Run `klvae train`, stage after stage, and return the exit code: 0, or 130 when it was interrupted."""
    from klvae_edu.data.sources import check_outside, source_folders
    from klvae_edu.training.trainer import train

    for config in stages:
        if config.data == YOUR_IMAGES and not source_folders(config.data):
            raise ValueError("data: this recipe needs your own images; name their folder: --data FOLDER")
        check_outside(config.out, config.data)
    interrupted, writes = False, os.environ.get("RANK", "0") == "0"
    atexit.register(_disconnect)
    for number, config in enumerate(stages, 1):
        if len(stages) > 1 and writes:
            print(f"Stage {number} of {len(stages)}, in {config.out}", flush=True)
        if config.init is not None:
            announce_hub(config.init)
        interrupted = train(config).interrupted
        if interrupted:
            break
    return 130 if interrupted else 0


def _disconnect() -> None:
    """End the connection of several processes: a thread of it that is alive at exit would abort the process."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
