"""The configuration of a training run. `klvae train` takes its options and their help from this dataclass."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from klvae_edu.config import PRESETS, suggestion


@dataclass(frozen=True)
class TrainingConfig:
    """Train an autoencoder on crops of images: pixel, KL and, on request, perceptual and adversarial losses.

    The defaults train the preset `tiny` on crops of the sample photographs: 3,000 steps, 3 minutes on 2 CPU cores.

    Raises:
        ValueError: a field out of its range, named together with the value it got.
    """

    data: str = "photos"  # photos, dead-leaves, sprites, a folder of images, hf:NAME on the Hub, or several with +
    streaming: bool = False  # stream a Hub data set over the network instead of downloading it first
    recolour: float = 0.0  # fraction of training crops with changed hue and saturation, for data with few colours
    out: Path = Path("run")  # new folder for weights, log and pictures
    resume: str | None = None  # resume an interrupted run: auto (the one in --out), or the folder of a checkpoint
    preset: str = "tiny"  # architecture of an untrained model: sd-v1, kl-f8, mini, tiny, …
    initialisation: Literal["random", "averages"] = "random"  # untrained weights: random, or passing colours through
    padding_mode: Literal["zeros", "reflect"] = "zeros"  # of an untrained model; diffusers has zeros only
    # trained weights instead of untrained ones: a folder such as run/model, a weight file, or a Hub id
    init: str | None = None
    scaling_factor: float | None = None  # scaling factor of the model at --init; None: that of its file
    trained_part: Literal["all", "decoder"] = "all"  # decoder: the encoder is frozen, so that latents stay the same
    size: int = 32  # side of the square crops in pixels, a multiple of the model's downsample factor
    batch_size: int = 8  # crops of a micro-batch, in each process
    accumulate: int = 1  # micro-batches of a step: their gradients are summed before the weights change
    steps: int = 3000  # optimiser steps

    lr: float = 2e-3  # peak learning rate of AdamW
    scale_lr: bool = False  # multiply lr by the number of crops in a step over all processes, as CompVis does
    schedule: Literal["cosine", "constant"] = "cosine"  # learning rate after the warm-up: cosine to 0, or constant
    warmup: float = 0.05  # fraction of the steps in which the learning rate rises from 0 to lr
    betas: tuple[float, float] = (0.9, 0.99)  # decay rates of AdamW's averages of the gradient and of its square
    weight_decay: float = 0.01  # weight decay of AdamW
    grad_clip: float = 1.0  # clip each network's gradient to this norm; inf disables clipping
    ema: float = 0.0  # decay of the moving average of the weights, which is then saved; such as 0.999; 0: no average

    reduction: Literal["mean", "sum"] = "mean"  # loss per pixel value, or summed over an image as in CompVis
    pixel: Literal["l1", "l2"] = "l2"  # pixel loss: absolute or squared difference
    kl_weight: float = 1e-6  # weight of the KL term, for a loss summed over an image as in CompVis
    kl_warmup: int = 0  # number of steps in which kl_weight rises linearly from 0
    perceptual_weight: float = 0.0  # weight of the perceptual loss; 0 disables it
    perceptual: Literal["lpips", "efficientnet-lite0"] = "lpips"  # LPIPS, or features that install as a package
    lpips: str = "auto"  # weights of VGG16: auto (cached or downloaded), untrained, or a file

    disc_weight: float = 0.0  # weight of the adversarial loss, times the adaptive weight; 0: no discriminator
    disc_start: int = 0  # number of steps before the autoencoder is trained on the discriminator
    disc_warmup: int = 0  # number of steps before disc_start in which the discriminator is trained already
    disc_ramp: int = 0  # number of steps after disc_start in which disc_weight rises linearly from 0
    disc_max_weight: float | None = None  # upper limit of the adversarial weight that is applied and logged
    disc_loss: Literal["hinge", "vanilla"] = "hinge"  # loss of the discriminator
    disc_lr: float | None = None  # peak learning rate of the discriminator; None: the same as lr
    disc_channels: int = 64  # channels of the discriminator's first convolution
    disc_layers: int = 3  # convolutions of the discriminator with stride 2
    adaptive: bool = True  # balance the gradients of both losses at the last layer; without: disc_weight alone
    alternate: bool = False  # once the discriminator is trained, train the networks in turns; else both in each step

    mixed_precision: Literal["no", "bf16"] = "no"  # bf16: autocast to bfloat16; weights stay float32
    device: Literal["cuda", "mps", "cpu"] | None = None  # None: the first available of cuda, mps and cpu
    workers: int = 0  # processes that load crops; 0: the training process loads them
    seed: int = 0  # seed of weights, crops and posterior samples
    held_out: int = 128  # validation crops, of images that are never trained on
    sample_every: int = 500  # steps between two validations, each with a picture
    save_every: int = 500  # steps between two checkpoints
    keep: int = 2  # number of checkpoints to keep, the newest
    tensorboard: bool = False  # also write the log for TensorBoard

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
        for name in ("workers", "seed", "kl_warmup", "disc_start", "disc_warmup", "disc_ramp"):
            value = getattr(self, name)
            self._expect(name, isinstance(value, int) and 0 <= value < 2**63, "a whole number of at least 0")
        self._expect("lr", 0 < self.lr < math.inf, "a positive number")
        self._expect("disc_lr", self.disc_lr is None or 0 < self.disc_lr < math.inf, "a positive number")
        self._expect("grad_clip", self.grad_clip > 0, "a positive number")
        self._expect("disc_max_weight", self.disc_max_weight is None or self.disc_max_weight > 0, "a positive number")
        for name in ("kl_weight", "perceptual_weight", "disc_weight", "weight_decay"):
            self._expect(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        for name in ("warmup", "ema"):
            self._expect(name, 0 <= getattr(self, name) < 1, "a number of at least 0 and below 1")
        self._expect("recolour", 0 <= self.recolour <= 1, "a number from 0 to 1")
        self._expect("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        if self.init is not None:
            self._expect("initialisation", self.initialisation == "random", "random, since init brings trained weights")
            self._expect("padding_mode", self.padding_mode == "zeros", "zeros, since init brings its own")
        of_init = self.scaling_factor is None or (self.init is not None and 0 < self.scaling_factor < math.inf)
        self._expect("scaling_factor", of_init, "a positive number together with init, or None")
        self._expect("preset", self.preset in PRESETS, f"one of {', '.join(PRESETS)}")
        for name, (*first, last) in _choices().items():
            value = getattr(self, name)
            unset = value is None and name == "device"
            self._expect(name, unset or value in (*first, last), f"{', '.join(first)} or {last}")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def lr_factor(self, step: int) -> float:
        """Compute the learning rate of step 1, 2, … over its peak: a linear rise, then half a cosine or constant."""
        done, rise = min(step - 1, self.steps), round(self.warmup * self.steps)
        if done < rise:
            return (done + 1) / (rise + 1)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, self.steps - rise)))

    def trains_discriminator(self, step: int) -> bool:
        """Tell whether the discriminator is trained in this step (1, 2, …)."""
        since = step - max(0, self.disc_start - self.disc_warmup)
        return self.disc_weight > 0 and since > 0 and (not self.alternate or since % 2 == 1)

    def trains_autoencoder(self, step: int) -> bool:
        """Tell whether the autoencoder is trained in this step (1, 2, …): not in the discriminator's turns."""
        return not (self.alternate and self.trains_discriminator(step))

    def adversarial(self, step: int) -> bool:
        """Tell whether the autoencoder's loss has the adversarial term in this step (1, 2, …)."""
        return self.disc_weight > 0 and step > self.disc_start

    def kl_weight_at(self, step: int) -> float:
        """Return `kl_weight` in step 1, 2, …: a linear rise over `kl_warmup` steps, then constant.

        Source: Bowman et al. 2016, "Generating Sentences from a Continuous Space", section 3.1.
        """
        return self.kl_weight * min(1.0, step / (self.kl_warmup + 1))

    def disc_weight_at(self, step: int) -> float:
        """Return `disc_weight` in step 1, 2, …: 0 up to `disc_start`, then a linear rise over `disc_ramp` steps."""
        return self.disc_weight * min(1.0, max(0, step - self.disc_start) / (self.disc_ramp + 1))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, as in `training.json`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"out": str(self.out), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Build a configuration from fields as `to_dict`, JSON or YAML have them; the others get their defaults.

        Former names are translated (`current_names`).

        Raises:
            ValueError: no such field, or a value of another type or out of its range. The message names the field.
        """
        kinds, values = get_type_hints(cls), current_names(values)
        for name in values:
            if name not in kinds:
                hint = suggestion(str(name), kinds) or f"the fields are {', '.join(kinds)}"
                raise ValueError(f"there is no field {name!r}; {hint}")
        return cls(**{name: _read(name, kinds[name], value) for name, value in values.items()})

    def command(self, **changes: Any) -> str:
        """Format the command line of this run with `changes`. Fields with their default value are left out."""
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


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the former names of fields in a run file: `start` is `initialisation`."""
    return {_RENAMED.get(name, name): value for name, value in values.items()}


_RENAMED = {"start": "initialisation"}


def _choices() -> dict[str, list[str]]:
    """List the fields whose annotation is a Literal, with their values."""
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
    """Convert `value` to a field's type. YAML 1.1 reads 1e-6 as text and a bare no as false: both are undone here."""
    if type(None) in get_args(kind):
        if value is None:
            return None
        (kind,) = {*get_args(kind)} - {type(None)}
    if get_origin(kind) is Literal:  # __post_init__ checks that it is one of the values
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
