"""Result of an evaluation: the metrics of each model with their intervals, as a table, as JSON, and with notes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from klvae_edu.evaluation.bootstrap import REPLICATES, Array, Estimate, estimate, finite, paired_differences
from klvae_edu.evaluation.table import aligned, three_digits

MIN_UNITS = 20  # photographs or images that the bootstrap draws; with fewer, an interval is not reliable
NEAR_CLASSES = 5  # a class is kept if it is among this many first classes of the reconstruction

PSNR, SSIM, ENERGY, CLASS_KEPT = "PSNR", "SSIM", "gradient energy", "class kept"


class Evaluation:
    """Result of `evaluate`.

    Attributes:
        quotients: metrics of each model, (1 + REPLICATES, metrics): row 0 over all images, then one row per replicate.
        metrics: names of the columns.
        frechet: Fréchet distance of each model; empty if there is none.
        frechet_name: name of this distance.
        notes: explanations of the numbers, one or two sentences each.
        about: the data, the intervals, the sources and the versions, as in `to_dict`.
    """

    def __init__(
        self,
        quotients: Mapping[str, Array],
        metrics: tuple[str, ...],
        frechet: Mapping[str, float],
        frechet_name: str,
        notes: list[str],
        about: dict[str, Any],
    ) -> None:
        self.quotients, self.metrics, self.notes, self.about = quotients, metrics, notes, about
        self.frechet, self.frechet_name = frechet, frechet_name

    def estimate(self, model: str, metric: str) -> Estimate:
        """Return the metric of a model over all images."""
        return self._estimate(self.quotients[model][:, self.metrics.index(metric)])

    def difference(self, model: str, other: str, metric: str) -> Estimate:
        """Return the metric of `model` minus the metric of `other`, on the same images; 0 for two exact models."""
        column = self.metrics.index(metric)
        return self._estimate(paired_differences(self.quotients[model][:, column], self.quotients[other][:, column]))

    def table(self) -> str:
        """Format a table: a row for each model, a column for each metric, and the notes below.

        A wide table is in two parts: metrics of pixels, and below them metrics of features.
        """
        columns = []  # of each metric the heading, then a cell for each model
        for metric in self.metrics:
            heading, spec = _COLUMNS.get(metric, (f"{metric} (0 is best)", ".3f"))
            columns.append([heading, *(f"{self.estimate(model, metric):{spec}}" for model in self.quotients)])
        if self.frechet:
            columns.append([f"{self.frechet_name} (0 is best)", *map(three_digits, self.frechet.values())])
        parts = [columns] if len(columns) <= _MAX_COLUMNS else [columns[:3], columns[3:]]
        lines = [line for part in parts for line in (*aligned([*self.quotients], part), "")]
        notes = ["\n".join(textwrap.wrap(note, 118, break_on_hyphens=False)) for note in self.notes]
        return "\n".join([*lines, *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the table and their origin for JSON; None replaces numbers that are not finite."""
        models = {
            model: {metric: self.estimate(model, metric).to_dict() for metric in self.metrics}
            | ({self.frechet_name: {"value": finite(self.frechet[model])}} if self.frechet else {})
            for model in self.quotients
        }
        return {**self.about, "models": models, "notes": self.notes}

    def _estimate(self, values: Array) -> Estimate:
        return Estimate(float(values[0])) if self.about["intervals"] is None else estimate(values)


_COLUMNS = {  # heading and number format; other metrics are distances
    PSNR: ("PSNR in dB (more is better)", ".2f"),
    SSIM: ("SSIM (1 is best)", ".3f"),
    ENERGY: ("gradient energy (1: that of the originals)", ".3f"),
    CLASS_KEPT: ("class kept (1 is best)", ".2f"),
}
_MAX_COLUMNS = 5  # of a table in one part


def notes_on(about: dict[str, Any]) -> list[str]:
    """Explain the numbers of an evaluation, from what `Evaluation.about` holds: one or two sentences each."""
    data, intervals, sources = about["data"], about["intervals"], about["sources"]
    notes = [f"{data['images']} images from {data['photographs']} photographs: {data['what']}."]
    drawn = f"95 % intervals in brackets: by a bootstrap of {REPLICATES} replicates"
    if intervals is None:
        notes.append(f"No intervals: they need {MIN_UNITS} images or more.")
    elif intervals["drawn"] == "photographs":
        notes.append(
            f"{drawn} that draw photographs, each with all its crops. They show how much the values would change with "
            "other photographs of the same kind."
        )
    else:
        notes.append(
            f"{drawn} that draw crops, because {data['photographs']} photographs are too few. They show how much the "
            "values would change with other crops of the same photographs. With other photographs they may change more."
        )
    notes.append("Gradient energy: block edges and noise add to it, too.")
    notes += [f"{name}: features of {source}." for name, source in sources.items() if name != CLASS_KEPT]
    if CLASS_KEPT in sources:
        notes.append(
            f"Class kept: share of images whose first class is among the first {NEAR_CLASSES} of the "
            f"reconstruction, by {sources[CLASS_KEPT]}."
        )
    return notes
