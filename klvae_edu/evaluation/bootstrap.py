"""Bootstrap confidence intervals of means and of quotients of means, in one pass with constant memory.

For each replicate, the bootstrap draws the weight of each image from a Poisson distribution with mean 1, and only
weighted sums are stored per replicate. All models share the draws, so differences between models have intervals, too.

Source: Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams" (the Poisson bootstrap).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REPLICATES = 1000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval (None: no interval)."""

    value: float
    low: float | None = None
    high: float | None = None

    def __format__(self, spec: str) -> str:
        """Format every number with `spec`, such as ".2f"."""
        interval = "" if self.low is None else f" [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{self.value:{spec}}{interval}"

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers by name for JSON; None replaces numbers that are not finite."""
        return {name: finite(value) for name, value in self._asdict().items()}


class Sums:
    """Metrics as quotients of two sums over images: row 0 without resampling, then one row per replicate.

    For a mean, the denominator of each image is 1. For the gradient energy it is the gradient energy of the original:
    a quotient of means stays finite when single images have no edges.
    """

    def __init__(self, metrics: int) -> None:
        self.numerators = np.zeros((1 + REPLICATES, metrics))
        self.denominators = np.zeros((1 + REPLICATES, metrics))

    def add(self, weights: Array, numerators: Array, denominators: Array) -> None:
        """Add one image with its weights (1 + REPLICATES,), and its numerators and denominators (metrics,)."""
        counted = weights > 0  # an infinite PSNR times 0 would be NaN
        self.numerators[counted] += np.outer(weights[counted], numerators)
        self.denominators += np.outer(weights, denominators)

    def quotients(self) -> Array:
        """Return the metrics, (1 + REPLICATES, metrics); NaN where the denominator is 0: the metric is not defined."""
        undefined = np.full_like(self.numerators, np.nan)
        return np.divide(self.numerators, self.denominators, out=undefined, where=self.denominators > 0)


def bootstrap_weights(seed: int, key: tuple[int, ...]) -> Array:
    """Draw the weights of the unit with this key: 1 without resampling, then one weight per replicate."""
    return np.r_[1.0, np.random.default_rng((seed, *key)).poisson(1, REPLICATES)]


def paired_differences(values: Array, others: Array) -> Array:
    """Subtract the values of another model, (1 + REPLICATES,) each; 0 where they are equal, even if both are inf."""
    return np.subtract(values, others, out=np.zeros_like(values), where=values != others)


def estimate(values: Array) -> Estimate:
    """Estimate a metric from its values (1 + REPLICATES,): the first, with an interval of 95 % of the others."""
    low, high = np.quantile(values[1:], (0.5 - LEVEL / 2, 0.5 + LEVEL / 2), method="inverted_cdf")
    return Estimate(float(values[0]), float(low), float(high))


def finite(value: float | None) -> float | None:
    """Return `value` if it is finite, else None, which JSON can hold."""
    return value if value is not None and np.isfinite(value) else None
