"""Everything that decides a training run: `klvae train` takes its options and their help from this dataclass."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from klvae_edu.config import PRESETS


@dataclass(frozen=True)
class TrainingConfig:
    """Train an autoencoder on crops of images: pixel, KL and, on request, perceptual and adversarial losses.

    The defaults train the preset `tiny` on crops of the sample photographs: 3,000 steps, 3 minutes on 2 CPU cores.

    Raises:
        ValueError: a field out of its range, named together with the value it got.
    """

    data: str = "photos"  # photos, dead-leaves, sprites, a folder of images, hf:NAME on the Hub, or several with +
    streaming: bool = False  # read a Hub data set bit by bit over the network, instead of all of it beforehand
    recolour: float = 0.0  # share of the training crops with another hue and saturation, for data with few colours
    out: Path = Path("run")  # new folder for the weights, the log and the pictures
    resume: str | None = None  # go on with a run that was cut off: auto (the one in --out), or a checkpoint's folder
    preset: str = "tiny"  # untrained model to begin with: sd-v1, kl-f8, mini or tiny
    start: Literal["random", "averages"] = "random"  # untrained weights: as drawn, or such as average and paint colours
    init: str | None = None  # weights to begin with instead: a folder such as run/model, or a Hub id
    trained_part: Literal["all", "decoder"] = "all"  # decoder: the latents stay those that the model has now
    size: int = 32  # side of the square crops in pixels; the model's downsample factor must divide it
    batch_size: int = 8  # crops per process that are computed at once
    accumulate: int = 1  # such batches per step: their gradients are added up before the weights change
    steps: int = 3000  # optimiser steps

    lr: float = 2e-3  # AdamW's learning rate at its peak
    scale_lr: bool = False  # multiply lr by the crops of a step over all processes, as CompVis does
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate after its rise: down to 0, or as it is
    warmup: float = 0.05  # fraction of the steps in which the learning rate rises
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's averages of the gradient and of its square
    weight_decay: float = 0.01  # AdamW's
    grad_clip: float = 1.0  # longest gradient of either network; inf: any
    ema: float = 0.0  # the weights that are kept average the past ones with this decay, such as 0.999; 0: the last ones

    reduction: Literal["mean", "sum"] = "mean"  # loss per pixel value, or summed over an image as in CompVis
    pixel: Literal["l1", "l2"] = "l2"  # pixel loss: absolute or squared difference
    kl_weight: float = 1e-6  # weight of the KL term where all terms are summed over an image, as in CompVis
    perceptual_weight: float = 0.0  # of LPIPS beside the pixel loss; 0: without
    lpips: str = "auto"  # VGG16's weights: auto (cached or downloaded), untrained, or a file

    disc_weight: float = 0.0  # of the adversarial term, times the adaptive weight; 0: no discriminator
    disc_start: int = 0  # steps before the autoencoder sees the discriminator
    disc_warmup: int = 0  # steps just before that in which the discriminator is trained already
    disc_loss: Literal["hinge", "vanilla"] = "hinge"  # the discriminator's loss
    disc_lr: float | None = None  # the discriminator's learning rate; None: as lr
    disc_channels: int = 64  # of the discriminator's first convolution
    disc_layers: int = 3  # convolutions of the discriminator with stride 2
    adaptive: bool = True  # balance both terms' gradients at the last layer; without it disc_weight is all there is
    alternate: bool = False  # once there is a discriminator, the networks take turns; else both train on every batch

    mixed_precision: Literal["no", "bf16"] = "no"  # bf16 is faster where the processor has it; weights stay float32
    device: Literal["cuda", "mps", "cpu"] | None = None  # what to compute on; None: the best there is
    workers: int = 0  # processes that prepare crops beside the training one
    seed: int = 0  # of the weights, the crops and the posterior samples
    held_out: int = 128  # crops of images that are never trained on, for measuring
    sample_every: int = 500  # steps between two measurements and pictures of held-out crops
    save_every: int = 500  # steps between two checkpoints
    keep: int = 2  # checkpoints that are kept, the last ones
    tensorboard: bool = False  # write the log for TensorBoard too

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out).expanduser())
        for name in ("resume", "init", "lpips"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))
        for name in (
            *("size", "batch_size", "accumulate", "steps", "held_out", "sample_every", "save_every", "keep"),
            *("disc_channels", "disc_layers"),
        ):
            value = getattr(self, name)
            self._expect(name, isinstance(value, int) and value >= 1, "a whole number of at least 1")
        for name in ("workers", "seed", "disc_start", "disc_warmup"):
            value = getattr(self, name)
            self._expect(name, isinstance(value, int) and 0 <= value < 2**63, "a whole number of at least 0")
        self._expect("lr", 0 < self.lr < math.inf, "a positive number")
        self._expect("disc_lr", self.disc_lr is None or 0 < self.disc_lr < math.inf, "a positive number")
        self._expect("grad_clip", self.grad_clip > 0, "a positive number")
        for name in ("kl_weight", "perceptual_weight", "disc_weight", "weight_decay"):
            self._expect(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        for name in ("warmup", "ema"):
            self._expect(name, 0 <= getattr(self, name) < 1, "a number of at least 0 and below 1")
        self._expect("recolour", 0 <= self.recolour <= 1, "a number from 0 to 1")
        self._expect("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        if self.init is not None:
            self._expect("start", self.start == "random", "random, since init brings trained weights")
        self._expect("preset", self.preset in PRESETS, f"one of {', '.join(PRESETS)}")
        for name, (*first, last) in _choices().items():
            value = getattr(self, name)
            unset = value is None and name == "device"
            self._expect(name, unset or value in (*first, last), f"{', '.join(first)} or {last}")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def lr_factor(self, step: int) -> float:
        """The learning rate of step 1, 2, … over its peak: a straight rise, then half a cosine down to 0, or level."""
        done, rise = min(step - 1, self.steps), round(self.warmup * self.steps)
        if done < rise:
            return (done + 1) / (rise + 1)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, self.steps - rise)))

    def trains_discriminator(self, step: int) -> bool:
        """Whether the discriminator is trained in this step (1, 2, …)."""
        return self.disc_weight > 0 and step > self.disc_start - self.disc_warmup

    def adversarial(self, step: int) -> bool:
        """Whether the autoencoder sees the discriminator in this step (1, 2, …)."""
        return self.disc_weight > 0 and step > self.disc_start

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, as `training.json` holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"out": str(self.out), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The configuration with these fields, as `to_dict`, JSON or YAML has them, and the others at their defaults.

        Raises:
            ValueError: no such field, or a value of another type or out of its range. The message names the field.
        """
        kinds = get_type_hints(cls)
        for name in values:
            if name not in kinds:
                near = difflib.get_close_matches(str(name), kinds, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(kinds)}"
                raise ValueError(f"there is no field {name!r}; {hint}")
        return cls(**{name: _read(name, kinds[name], value) for name, value in values.items()})

    def command(self, **changes: Any) -> str:
        """The command line of this run with `changes`; fields at their default are left out."""
        changed, default = replace(self, **changes), TrainingConfig()
        words = ["klvae", "train"]
        for field in fields(self):
            value, option = getattr(changed, field.name), "--" + field.name.replace("_", "-")
            if value == getattr(default, field.name):
                continue
            if isinstance(value, bool):
                words += [option if value else f"--no-{option.removeprefix('--')}"]
            else:
                words += [option, *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(words)


def _choices() -> dict[str, list[str]]:
    """The fields whose annotation lists their values, and those values."""
    hints = get_type_hints(TrainingConfig).items()
    literals = {name: [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal] for name, hint in hints}
    return {name: [*get_args(found[0])] for name, found in literals.items() if found}


_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a list",
    str: "text",
    Path: "text",
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+|[-+]?inf(inity)?", re.IGNORECASE)


def _read(name: str, kind: Any, value: Any) -> Any:
    """`value` as a field of this type has it. YAML 1.1 takes 1e-6 for text and a bare no for false: both are meant."""
    if type(None) in get_args(kind):
        if value is None:
            return None
        (kind,) = {*get_args(kind)} - {type(None)}
    if get_origin(kind) is Literal:  # whether it is one of them is seen to where all ranges are
        return "no" if value is False and "no" in get_args(kind) else value
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_read(name, float, part) for part in value)
    if kind is float and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise ValueError(f"{name}: expected {_EXPECTED[get_origin(kind) or kind]}, got {value!r}")
