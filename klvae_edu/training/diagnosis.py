"""Diagnose a run from its log: each rule is a function of the configuration and the log that names one known failure.

Every threshold has a comment on how it was found. "Measured" means the runs of `tests/training/test_diagnosis.py`: a
network of 8 and 16 channels, 40 to 160 steps on 16-pixel and 32-pixel sprites.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klvae_edu.training.config import TrainingConfig

Records = Sequence[Mapping[str, Any]]  # of `read_log`

WINDOW = 10  # steps of a block whose median is one level: one batch of four sprites differs from the next by up to 2x
LEAST = 20  # values of a series without which nothing is said about its end: two blocks

# Loss over its lowest level before. Measured: 15 and 84 with 500 and 5,000 times the default learning rate, at most 1.5
# with up to 150 times, after which the network still learnt.
LOSS_JUMP = 4.0
# Fall of PSNR in dB. `docs/training.md` has a run that went wrong by 2 dB; a healthy one of `mini` fell by 0.6.
PSNR_FALL = 2.0
# The discriminator's loss over that of a guess. A guess has 1. Measured: 1.00 and more where it learnt nothing or broke
# down, 0.94 where both networks learn badly, 0.6 and less where it learns.
GUESSING = 0.99
# The same where the discriminator wins. Measured: below 0.01, and 0.3 in the healthy run that comes nearest.
WINNING = 0.05
# Share of steps with a clamped weight. By the meaning of the word: in most steps it is not adaptive any more.
CLAMPED = 0.5
# KL in nats per value of the image. Measured: 0.02 to 1 in healthy runs, 0.02 before the first step, 0.0001 collapsed,
# and 0.001 in a fine-tuned `kl-f8-mini` of whose channels 0.3 to 9 % of the variance is signal.
KL_COLLAPSED = 4e-3


@dataclass(frozen=True)
class Finding:
    """A failure that the log shows."""

    name: str
    evidence: str  # one sentence: steps and numbers from the log
    advice: str  # one sentence: what to try


@dataclass(frozen=True)
class Level:
    """The median of a series over the steps from `first` to `last`."""

    value: float
    first: int
    last: int

    def __str__(self) -> str:
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        return f"{self.value:.3g} ({steps})"


Series = list[tuple[int, float]]


def diagnose(config: TrainingConfig, records: Records) -> list[Finding]:
    """Name the failures that the log of a run with this configuration shows, in the order to look at them."""
    return [finding for rule in RULES if (finding := rule(config, records)) is not None]


# ---- Series ----------------------------------------------------------------------------------------------------------


def series(records: Records, name: str) -> Series:
    """List (step, value) of a scalar, where the log has it as a finite number."""
    found = ((record["step"], record.get(name)) for record in records)
    return [(step, value) for step, value in found if isinstance(value, (int, float)) and math.isfinite(value)]


def level(points: Series) -> Level:
    """Compute the median of a series that is not empty."""
    return Level(statistics.median(value for _, value in points), points[0][0], points[-1][0])


def blocks(points: Series) -> list[Level]:
    """Compute the level of each `WINDOW` values; an incomplete block at the end is left out."""
    return [level(points[end - WINDOW : end]) for end in range(WINDOW, len(points) + 1, WINDOW)]


def end_of(points: Series) -> Level | None:
    """Compute the level of the last third, of at least `LEAST` values; None: there are fewer."""
    return level(points[-max(LEAST, len(points) // 3) :]) if len(points) >= LEAST else None


def while_adversarial(config: TrainingConfig, records: Records, name: str) -> Series:
    """List a series from the step on in which the autoencoder is first trained on the discriminator."""
    return [(step, value) for step, value in series(records, name) if config.adversarial(step)]


# ---- Rules -----------------------------------------------------------------------------------------------------------


def ended_by_non_finite_loss(config: TrainingConfig, records: Records) -> Finding | None:
    """Find the record that `train` writes when a loss or a gradient is not finite."""
    if not records or "error" not in records[-1]:
        return None
    lr, norms = series(records, "lr"), series(records, "grad_norm")[-3:]
    before = f"; the gradient's norm before was {', '.join(f'{value:.3g}' for _, value in norms)}" if norms else ""
    at = f" (it was {lr[-1][1]:.2g} in step {lr[-1][0]})" if lr else ""
    return Finding(
        "ended by a non-finite loss",
        f"In step {records[-1]['step']} {records[-1]['error']}{before}.",
        "Resume from the last checkpoint, or begin again, with a fraction of the learning rate: "
        f"--lr {config.lr / 4:.2g}{at}.",
    )


def learning_rate_too_high(config: TrainingConfig, records: Records) -> Finding | None:
    """Find a loss that jumps above what it was, before the discriminator takes part in it."""
    losses = [(step, value) for step, value in series(records, "loss") if not config.adversarial(step)]
    if not losses:
        return None
    lowest = level(losses[:1])
    for block in blocks(losses):
        if block.value > LOSS_JUMP * lowest.value:
            norms = [value for step, value in series(records, "grad_norm") if block.first <= step <= block.last]
            return Finding(
                "learning rate too high",
                f"The loss rose from {lowest} to {block}, with gradient norms up to {max(norms):.3g}.",
                f"Try a tenth of the learning rate, --lr {config.lr / 10:.2g}, or a longer --warmup.",
            )
        lowest = min(lowest, block, key=lambda one: one.value)
    return None


def loss_rose_with_discriminator(config: TrainingConfig, records: Records) -> Finding | None:
    """Find a PSNR that falls when the autoencoder is first trained on the discriminator, and does not come back."""
    psnr = series(records, "psnr")
    before = [(step, value) for step, value in psnr if not config.adversarial(step)][-LEAST:]
    after = [(step, value) for step, value in psnr if config.adversarial(step)]
    if len(before) < WINDOW or len(after) < 2 * LEAST:
        return None
    was, best = level(before), max(blocks(after[len(after) // 2 :]), key=lambda one: one.value)
    if best.value > was.value - PSNR_FALL:
        return None
    losses = dict(series(records, "nll"))
    rise = [level([(step, losses[step]) for step in losses if one.first <= step <= one.last]) for one in (was, best)]
    return Finding(
        "the loss rose at the discriminator's start for good",
        f"PSNR was {was} dB and later never better than {best}; the reconstruction loss rose from {rise[0]} to "
        f"{rise[1]}.",
        "Go back to the last checkpoint before the start, and limit the discriminator's share: a smaller "
        "--disc-weight, --disc-ramp 1000, --disc-max-weight 0.02.",
    )


def discriminator_died(config: TrainingConfig, records: Records) -> Finding | None:
    """Find a discriminator that is no better than a guess at the end."""
    losses, chance = series(records, "disc_loss"), _chance(config)
    end = end_of(losses)
    if end is None or end.value < GUESSING * chance:
        return None
    real, fake = (end_of(series(records, name)) for name in ("logits_real", "logits_fake"))
    now = f"its loss is {end}, a guess has {chance:.3g}; it gives {_value(real)} to images, {_value(fake)} to copies"
    best = min(blocks(losses), key=lambda one: one.value)
    if best.value < 0.9 * GUESSING * chance:  # clearly below a guess
        return Finding(
            "the discriminator died",
            f"It had learnt, with a loss of {best}, but at the end {now}.",
            "Resume from a checkpoint before, with a smaller --disc-lr and --betas 0.5 0.9.",
        )
    return Finding(
        "the discriminator died",
        f"It never told images and reconstructions apart: {now}.",
        "Give it more time before it counts, --disc-warmup, or a larger --disc-lr; if its loss is far above a guess, a "
        "smaller one.",
    )


def discriminator_wins(config: TrainingConfig, records: Records) -> Finding | None:
    """Find a discriminator that is right about nearly every patch while the autoencoder is trained on it."""
    end = end_of(while_adversarial(config, records, "disc_loss"))
    if end is None or end.value > WINNING * _chance(config):
        return None
    real, fake = (end_of(series(records, name)) for name in ("logits_real", "logits_fake"))
    return Finding(
        "the discriminator wins",
        f"Its loss is {end}, with mean logits {_value(real)} for images and {_value(fake)} for reconstructions, which "
        "do not come nearer.",
        "Slow it down, with a smaller --disc-lr or fewer --disc-channels, or start it later, when reconstructions are "
        "better.",
    )


def adaptive_weight_at_clamp(config: TrainingConfig, records: Records) -> Finding | None:
    """Find an adaptive weight at CompVis' limit. At `disc_max_weight` it is where the user wants it."""
    clamped = end_of(while_adversarial(config, records, "clamped"))
    weight = end_of(while_adversarial(config, records, "adversarial_weight"))
    if clamped is None or weight is None or clamped.value < CLAMPED:
        return None
    if config.disc_max_weight is not None and weight.value > 0.99 * config.disc_max_weight:
        return None
    return Finding(
        "the adaptive weight is at its clamp",
        f"It was clamped in a median share of {clamped} of the micro-batches, with an adversarial weight of {weight}: "
        "the discriminator's gradient has almost vanished beside that of the reconstruction loss.",
        "Train the discriminator longer before it counts (--disc-start, --disc-warmup), and limit the weight that is "
        "applied: --disc-max-weight.",
    )


def posterior_collapsed(config: TrainingConfig, records: Records) -> Finding | None:
    """Find a KL term that is almost 0 at the end: no latent channel tells the images apart."""
    kl = end_of(series(records, "kl"))
    values = 1 if config.reduction == "mean" else 3 * config.size**2  # of an image
    if kl is None or kl.value / values >= KL_COLLAPSED:
        return None
    return Finding(
        "collapsed posterior",
        f"The KL term is {kl}: the latent carries next to nothing. PSNR is {end_of(series(records, 'psnr'))} dB.",
        f"Try a smaller --kl-weight: it is {config.kl_weight:.2g}, and released models have 1e-6.",
    )


def _chance(config: TrainingConfig) -> float:
    """Return the loss of a discriminator whose logits are all 0."""
    return 1.0 if config.disc_loss == "hinge" else math.log(2)


def _value(found: Level | None) -> str:
    return "-" if found is None else f"{found.value:.3g}"


RULES: tuple[Callable[[TrainingConfig, Records], Finding | None], ...] = (
    ended_by_non_finite_loss,
    learning_rate_too_high,
    posterior_collapsed,
    loss_rose_with_discriminator,
    discriminator_died,
    discriminator_wins,
    adaptive_weight_at_clamp,
)
