"""Everything that decides a training run: `klvae train` takes its options and their help from this dataclass."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from klvae_edu.config import PRESETS


@dataclass(frozen=True)
class TrainingConfig:
    """Train an autoencoder on crops of images, with the pixel and KL losses.

    The defaults train the preset `tiny` on crops of the sample photographs: 3,000 steps, 3 minutes on 2 CPU cores.

    Raises:
        ValueError: a field out of its range, named together with the value it got.
    """

    data: str = "photos"  # photos, dead-leaves, a folder of images, or a data set on the Hugging Face Hub (hf:NAME)
    streaming: bool = False  # read a Hub data set bit by bit over the network, instead of all of it beforehand
    out: Path = Path("run")  # new folder for the weights, the log and the pictures
    preset: str = "tiny"  # untrained model to begin with: sd-v1, kl-f8, mini or tiny
    init: str | None = None  # weights to begin with instead: a folder such as run/model, or a Hub id
    size: int = 32  # side of the square crops in pixels; the model's downsample factor must divide it
    batch_size: int = 8  # crops per step
    steps: int = 3000  # optimiser steps
    lr: float = 2e-3  # AdamW's learning rate at its peak
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's averages of the gradient and of its square
    warmup: float = 0.05  # fraction of the steps in which the learning rate rises; then it falls to 0 along a cosine
    grad_clip: float = 1.0  # longest gradient, in the loss per pixel value
    pixel: Literal["l1", "l2"] = "l2"  # pixel loss: absolute or squared difference
    kl_weight: float = 1e-6  # weight of the KL term where both terms are summed over an image, as in CompVis
    mixed_precision: Literal["no", "bf16"] = "no"  # bf16 is faster where the processor has it; weights stay float32
    device: Literal["cuda", "mps", "cpu"] | None = None  # what to compute on; None: the best there is
    workers: int = 0  # processes that prepare crops beside the training one
    seed: int = 0  # of the weights, the crops and the posterior samples
    held_out: int = 128  # crops of images that are never trained on, for measuring
    sample_every: int = 500  # steps between two measurements and pictures of held-out crops
    save_every: int = 500  # steps between two saves of the weights

    def __post_init__(self) -> None:
        for name in ("size", "batch_size", "steps", "held_out", "sample_every", "save_every"):
            self._expect(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("workers", "seed"):
            self._expect(name, getattr(self, name) >= 0, "a whole number of at least 0")
        for name in ("lr", "grad_clip"):
            self._expect(name, 0 < getattr(self, name) < float("inf"), "a positive number")
        self._expect("kl_weight", 0 <= self.kl_weight < float("inf"), "a number of at least 0")
        self._expect("warmup", 0 <= self.warmup < 1, "a fraction of at least 0 and below 1")
        self._expect("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        self._expect("preset", self.preset in PRESETS, f"one of {', '.join(PRESETS)}")
        self._expect("pixel", self.pixel in ("l1", "l2"), "l1 or l2")
        self._expect("mixed_precision", self.mixed_precision in ("no", "bf16"), "no or bf16")
        self._expect("device", self.device in (None, "cuda", "mps", "cpu"), "cuda, mps or cpu")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, as `training.json` holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"out": str(self.out), "betas": list(self.betas)}

    def command(self, **changes: Any) -> str:
        """The command line of this run with `changes`; fields at their default are left out."""
        changed, default = replace(self, **changes), TrainingConfig()
        words = ["klvae", "train"]
        for field in fields(self):
            value, option = getattr(changed, field.name), "--" + field.name.replace("_", "-")
            if value == getattr(default, field.name):
                continue
            if isinstance(value, bool):
                words += [option]
            else:
                words += [option, *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(words)
