"""Write a sheet of questions for each student, with different numbers for each; the package computes the answers.

The notebooks' exercises ask for code, which students can copy. These questions ask for a number, found on paper or with
three lines of Python: a quick test of who did the work.

    python questions.py SEED STUDENT [STUDENT ...] [--notebooks 01 02] [--to FOLDER]

This writes FOLDER/STUDENT.md for each student and FOLDER/answers.csv. The same seed and name give the same sheet.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from klvae_edu.blocks import ResnetBlock2D
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.losses import discriminator_loss

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Question:
    notebook: str  # "NN"
    text: str  # with a {name} for each number
    draw: Callable[[random.Random], Numbers]
    answer: Callable[..., float]  # of the numbers, by name


def posterior(mean: float, logvar: float) -> DiagonalGaussianDistribution:
    """Return the posterior of one latent value: a mean and a log-variance, (1, 2, 1, 1)."""
    return DiagonalGaussianDistribution(torch.tensor([mean, logvar], dtype=torch.float64).view(1, 2, 1, 1))


def group_norm(r: random.Random) -> Numbers:
    groups = r.choice([8, 16, 32])
    return {"groups": groups, "channels": groups * r.randrange(2, 9), "side": r.randrange(4, 30)}


def gaussian(r: random.Random) -> Numbers:
    return {"mean": r.randrange(-20, 21) / 10, "logvar": r.choice([-3, -2.5, -2, -1.5, -1, 0.5, 1])}


def sides(r: random.Random) -> Numbers:
    return {"height": 8 * r.randrange(20, 100), "width": 8 * r.randrange(20, 100)}


QUESTIONS = (
    Question(
        "00",
        "KL-f8 (4 latent channels) encodes a picture of {height} × {width} pixels. How many numbers is the latent?",
        sides,
        lambda height, width: 4 * height * width / 64,
    ),
    Question(
        "01",
        "A latent value has mean {mean} and log-variance {logvar}; the noise drawn is {noise}. What is the sample?",
        lambda r: gaussian(r) | {"noise": r.randrange(-15, 16) / 10},
        lambda mean, logvar, noise: float(posterior(mean, logvar).mode() + noise * posterior(mean, logvar).std),
    ),
    Question(
        "01",
        "A latent value has mean {mean} and log-variance {logvar}. What is the negative log-likelihood of {value}?",
        lambda r: gaussian(r) | {"value": r.randrange(-15, 16) / 10},
        lambda mean, logvar, value: float(posterior(mean, logvar).nll(torch.full((1, 1, 1, 1), value))),
    ),
    Question(
        "02",
        "A latent value has mean {mean} and log-variance {logvar}. What is its KL divergence from N(0, 1), in nats?",
        gaussian,
        lambda mean, logvar: float(posterior(mean, logvar).kl()),
    ),
    Question(
        "03",
        "GroupNorm with {groups} groups gets a map of {channels} channels and {side} × {side} pixels. How many values "
        "share one mean?",
        group_norm,
        lambda groups, channels, side: channels / groups * side**2,
    ),
    Question(
        "03",
        "How many parameters has a ResNet block (3×3 convolutions with bias) from {before} to {after} channels?",
        lambda r: {"before": 32 * r.randrange(1, 4), "after": 32 * r.randrange(4, 9)},
        lambda before, after: sum(map(torch.numel, ResnetBlock2D(before, after, groups=32).parameters())),
    ),
    Question(
        "04",
        "How many scores does attention with one head compute on a map of {height} × {width} pixels?",
        lambda r: {"height": r.randrange(8, 65), "width": r.randrange(8, 65)},
        lambda height, width: (height * width) ** 2,
    ),
    Question(
        "05",
        "A picture of {height} × {width} pixels (RGB) goes through an autoencoder with f = {f} and {channels} latent "
        "channels. How many times fewer numbers has the latent?",
        lambda r: sides(r) | {"f": r.choice([4, 8]), "channels": r.choice([3, 4, 16])},
        lambda height, width, f, channels: 3 * f**2 / channels,
    ),
    Question(
        "06",
        "On values from -1 to 1 the mean squared error is {error}. What is the PSNR, in dB?",
        lambda r: {"error": r.randrange(2, 60) / 1000},
        lambda error: 10 * math.log10(4 / error),
    ),
    Question(
        "07",
        "The discriminator gives the patches of a photograph the logits {a} and {b}, those of a reconstruction {c} and "
        "{d}. What is its hinge loss?",
        lambda r: {name: r.randrange(-20, 21) / 10 for name in "abcd"},
        lambda a, b, c, d: float(discriminator_loss(torch.tensor([a, b]), torch.tensor([c, d]))["disc_loss"]),
    ),
    Question(
        "07",
        "How many patches does the PatchGAN with three strided layers judge on {side} × {side} pixels?",
        lambda r: {"side": 8 * r.randrange(10, 33)},
        lambda side: NLayerDiscriminator()(torch.zeros(1, 3, side, side)).numel(),
    ),
    Question(
        "08",
        "An average of the weights has the decay {decay}. After {steps} steps, what share of it is still the weights "
        "it began with, in per cent?",
        lambda r: {"decay": r.choice([0.99, 0.995, 0.998]), "steps": 10 * r.randrange(5, 60)},
        lambda decay, steps: 100 * decay**steps,
    ),
    Question(
        "09",
        "The mean squared error of a reconstruction falls to one {factor}th. By how many dB does the PSNR rise?",
        lambda r: {"factor": r.randrange(4, 20)},
        lambda factor: 10 * math.log10(factor),
    ),
    Question(
        "10",
        "A picture of {height} × {width} pixels goes through KL-f8 (4 latent channels), and each latent value is kept "
        "in {bits} bits. How many bytes is that?",
        lambda r: sides(r) | {"bits": r.randrange(2, 9)},
        lambda height, width, bits: 4 * height * width / 64 * bits / 8,
    ),
    Question(
        "11",
        "On the straight path from noise {noise} to data {data}, what is the value at t = {t}?",
        lambda r: {"noise": r.randrange(-20, 21) / 10, "data": r.randrange(-40, 41) / 10, "t": r.randrange(1, 10) / 10},
        lambda noise, data, t: (1 - t) * noise + t * data,
    ),
    Question(
        "12",
        "A tile of {a} cells has mean {low} and variance {v}, another of {b} cells mean {high} and variance {w}. What "
        "is the variance of all cells?",
        lambda r: {
            "a": r.randrange(2, 9),
            "b": r.randrange(2, 9),
            "low": r.randrange(0, 5),
            "high": r.randrange(5, 10),
            "v": r.randrange(1, 9),
            "w": r.randrange(1, 9),
        },
        lambda a, b, low, high, v, w: (a * v + b * w) / (a + b) + a * b * ((high - low) / (a + b)) ** 2,
    ),
    Question(
        "13",
        "A diffusion model takes {patch} × {patch} latent pixels as one token. How many tokens has a picture of "
        "{side} × {side} pixels, with an autoencoder of f = {f}?",
        lambda r: {"side": 64 * r.randrange(4, 17), "f": r.choice([4, 8, 16]), "patch": r.choice([1, 2])},
        lambda side, f, patch: (side / (f * patch)) ** 2,
    ),
    Question(
        "13",
        "A model has {millions} million parameters in float32 and is trained with AdamW; an image's activations take "
        "{each} GB. How many GB do weights, gradients, AdamW's averages and a batch of {batch} take?",
        lambda r: {"millions": r.randrange(20, 200), "each": r.randrange(5, 30) / 10, "batch": r.randrange(2, 9)},
        lambda millions, each, batch: 16 * millions / 1000 + batch * each,
    ),
    Question(
        "15",
        "A quantiser has a codebook of {codes} vectors and stores one index for each of {height} × {width} places. How "
        "many bytes is that?",
        lambda r: {"codes": 2 ** r.randrange(8, 15), "height": 8 * r.randrange(2, 9), "width": 8 * r.randrange(2, 9)},
        lambda codes, height, width: math.log2(codes) * height * width / 8,
    ),
)


def sheet(seed: str, student: str, notebooks: list[str]) -> list[tuple[str, str]]:
    """Return (question, answer) pairs for a student. The same seed, name and notebooks give the same pairs."""
    pairs = []
    for number, question in enumerate(QUESTIONS):
        if question.notebook in notebooks:
            numbers = question.draw(random.Random(f"{seed}/{student}/{number}"))
            pairs.append((question.text.format(**numbers), f"{question.answer(**numbers):.7g}"))
    return pairs


def main(arguments: list[str] | None = None) -> None:
    known = sorted({question.notebook for question in QUESTIONS})
    parser = argparse.ArgumentParser(description="Write a sheet of questions for each student, and the answers.")
    parser.add_argument("seed", help="of the class: another seed gives other numbers")
    parser.add_argument("students", nargs="+", metavar="STUDENT")
    parser.add_argument("--notebooks", nargs="+", choices=known, default=known, metavar="NN")
    parser.add_argument("--to", type=Path, default=Path("questions"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.to.mkdir(parents=True, exist_ok=True)
    with (options.to / "answers.csv").open("w", encoding="utf-8-sig", newline="") as file:
        answers = csv.writer(file)
        answers.writerow(["student", "question", "answer"])
        for student in options.students:
            pairs = sheet(options.seed, student, options.notebooks)
            lines = [f"# Questions for {student}", *(f"{n}. {text}" for n, (text, _) in enumerate(pairs, 1))]
            (options.to / f"{student}.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
            answers.writerows([student, n, answer] for n, (_, answer) in enumerate(pairs, 1))
    print(f"{options.to}: {len(options.students)} sheets, and answers.csv")


if __name__ == "__main__":
    main()
