"""Recipes: whole training runs by name, each a YAML file of the fields that differ from the defaults, and why."""

from __future__ import annotations

import difflib
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from klvae_edu.training.config import TrainingConfig

FOLDER = Path(__file__).with_name("recipes")
YOUR_IMAGES = "FOLDER"  # what `data` is in the recipes for images that do not come with the package


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(recipe: str | os.PathLike[str]) -> TrainingConfig:
    """The configuration that a recipe stands for: a name, a YAML file of your own, or the `training.json` of a run.

    Raises:
        ValueError: no such recipe, a file that is no YAML of fields, or a field that is unknown or has a wrong value.
            The message names the file and the field, and offers the nearest name.
        FileNotFoundError: no such file.
    """
    path = recipe_path(recipe)
    try:
        return TrainingConfig.from_dict(_fields(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def about(recipe: str | os.PathLike[str]) -> str:
    """What a recipe says about itself: the comment at its head. The first line is its title."""
    lines = recipe_path(recipe).read_text(encoding="utf-8").splitlines()
    return "\n".join(
        line.removeprefix("#").removeprefix(" ") for line in takewhile(lambda line: line[:1] == "#", lines)
    )


def recipe_path(recipe: str | os.PathLike[str]) -> Path:
    """The file of a recipe, which may be a name or a file already; a name of the package's goes first.

    Raises:
        ValueError: it is neither.
        FileNotFoundError: it has a file's name, and there is no such file.
    """
    name, path = str(recipe), Path(recipe).expanduser()
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        raise FileNotFoundError(f"{path}: there is no such file")
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    raise ValueError(f"there is no recipe {name!r}; {hint} {', '.join(recipe_names())}, and YAML files of your own")


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
