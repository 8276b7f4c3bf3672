"""Recipes: training configurations by name, each a YAML file of the fields that differ from the defaults.

A recipe can have several stages, such as one without and one with a discriminator: the list `stages` holds the fields
of each, and the fields beside it are those of all stages. A stage is a run of its own, with a new optimiser, that
begins with the weights of the stage before it.
"""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from klvae_edu.config import suggestion
from klvae_edu.training.config import TrainingConfig

FOLDER = Path(__file__).with_name("recipes")
YOUR_IMAGES = "FOLDER"  # the value of `data` in recipes for images that do not come with the package


def recipe_names() -> list[str]:
    """List the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(recipe: str | os.PathLike[str]) -> TrainingConfig:
    """Load a recipe of one stage: a name, a YAML file of your own, or the `training.json` of a run.

    Raises:
        ValueError: as `load_stages`, or several stages.
        FileNotFoundError: no such file.
    """
    first, *others = load_stages(recipe)
    if others:
        count = 1 + len(others)
        raise ValueError(f"{recipe}: expected a recipe of one stage, got {count}; {recipe}:1 names the first")
    return first


def load_stages(recipe: str | os.PathLike[str]) -> list[TrainingConfig]:
    """Load all stages of a recipe, or the single stage N of `RECIPE:N`, counted from 1.

    Raises:
        ValueError: no such recipe or stage, a file that is no YAML of fields, or a field that is unknown or has a wrong
            value. The message names the file and the field, and offers the nearest name.
        FileNotFoundError: no such file.
    """
    name, number = split_stage(recipe)
    path = recipe_path(name)
    try:
        common = _fields(path)
        stages = common.pop("stages", [{}])
        if not (isinstance(stages, list) and stages and all(isinstance(stage, dict) for stage in stages)):
            raise ValueError(f"stages: expected a list of fields, got {stages!r}")
        merged = [TrainingConfig.from_dict(_of_stage(common, stage, first=stage is stages[0])) for stage in stages]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if number is None:
        return merged
    if not 1 <= number <= len(merged):
        raise ValueError(f"{recipe}: expected a stage from 1 to {len(merged)}, got {number}")
    return [merged[number - 1]]


def split_stage(recipe: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Split `RECIPE:N` into the recipe and the number of its stage; without a number: None."""
    name, colon, number = str(recipe).rpartition(":")
    return (name, int(number)) if colon and number.isdigit() else (str(recipe), None)


def about(recipe: str | os.PathLike[str]) -> str:
    """Read the comment at the head of a recipe. Its first line is the title."""
    lines = recipe_path(split_stage(recipe)[0]).read_text(encoding="utf-8").splitlines()
    return "\n".join(
        line.removeprefix("#").removeprefix(" ") for line in takewhile(lambda line: line[:1] == "#", lines)
    )


def recipe_path(recipe: str | os.PathLike[str]) -> Path:
    """Find the file of a recipe: that of a recipe with this name, else the file itself.

    Raises:
        ValueError: no recipe and no file of that name.
        FileNotFoundError: no file of that name, which ends in .yaml, .yml or .json.
    """
    name, path = str(recipe), Path(recipe).expanduser()
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        raise FileNotFoundError(f"{path}: there is no such file")
    near = suggestion(name, recipe_names())
    hint = f"{near} There are" if near else "there are"
    raise ValueError(f"there is no recipe {name!r}; {hint} {', '.join(recipe_names())}, and YAML files of your own")


def _of_stage(common: dict[str, Any], stage: dict[str, Any], first: bool) -> dict[str, Any]:
    """Join the fields of all stages and of one. A later stage begins with weights, which bring what is left out."""
    brought = ("initialisation", "padding_mode")
    return {name: value for name, value in {**common, **stage}.items() if first or name not in brought}


def _fields(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("expected YAML, got no text in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"no valid YAML: {line}{getattr(error, 'problem', None) or error}") from error
    if not isinstance(fields, dict):
        got = "an empty file" if fields is None else f"a {type(fields).__name__}"
        raise ValueError(f"expected lines such as `steps: 100`, got {got}")
    return fields
