"""What a training run keeps on disk, written so that a crash at any moment leaves the previous save whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.checkpoints import written_aside
from klvae_edu.training.config import TrainingConfig

if TYPE_CHECKING:
    from klvae_edu.plots import Pixels


class RunFolder:
    """The folder of one run: `model/` in diffusers' layout, `training.json`, `log.jsonl`, `held_out_….png`.

    Args:
        path: a new or an empty folder; nothing is written before `start`.
        writes: of several training processes, one writes; in the others every method does nothing.

    Raises:
        FileExistsError: something lies there. It is left alone.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.saved_step: int | None = None  # of the weights that lie in `model/`
        if writes and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(
                f"out: expected a new or an empty folder; {path} is in use, and nothing in it was changed. "
                f"Name another one, for example --out {unused(path)}"
            )

    def start(self, config: TrainingConfig) -> None:
        """Make the folder and write the configuration into it."""
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            with written_aside(self.path / "training.json") as path:
                path.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")

    @property
    def model(self) -> Path:
        """Where the weights lie; `AutoencoderKL.from_pretrained` reads it."""
        return self.path / "model"

    def save(self, vae: AutoencoderKL, step: int) -> None:
        """Put the weights after `step` in the place of those saved before.

        Raises:
            OSError: the disk is full or gone. The weights saved before are whole, and the message names their step.
        """
        from safetensors import SafetensorError

        if not self.writes:
            return
        try:
            vae.save_pretrained(self.model)
        except (OSError, SafetensorError) as error:
            raise OSError(f"the weights of step {step} could not be saved ({error}); {self.kept()}") from error
        self.saved_step = step

    def kept(self) -> str:
        """What a run that fails now leaves behind, in words."""
        if self.saved_step is None:
            return f"nothing was saved in {self.model} before"
        return f"the weights of step {self.saved_step} are whole in {self.model}"

    def log(self, record: Mapping[str, float]) -> None:
        """Append one line to `log.jsonl`."""
        if self.writes:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def save_picture(self, picture: Pixels, step: int) -> None:
        """Write the picture of held-out crops after `step`."""
        from PIL import Image

        if self.writes:
            with written_aside(self.path / f"held_out_{step:06d}.png") as path:
                Image.fromarray(picture).save(path, format="PNG")


def unused(path: Path) -> Path:
    """`path` itself when nothing has that name, else the first of `path-2`, `path-3`, … that is free."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate
