"""Controls of an `Explorer`: a number on a slider, or one of several values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np

_LAYOUT = {"width": "480px", "max_width": "100%"}


@dataclass(frozen=True)
class Slider:
    """A number between `min` and `max`, in steps of `step`; `value` is the initial one."""

    label: str
    min: float
    max: float
    step: float
    value: float

    def widget(self) -> widgets.FloatSlider:
        """Make the widget; its readout has the decimals of `step`."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return widgets.FloatSlider(
            value=self.value,
            min=self.min,
            max=self.max,
            step=self.step,
            description=self.label,
            readout_format=f".{digits}f",
            layout=_LAYOUT,
        )

    def evenly_spaced(self, count: int) -> list[float]:
        """Return `count` evenly spaced settings, rounded to steps, with both ends; all settings if there are fewer."""
        spaced = np.linspace(self.min, self.max, count)
        steps = (self.min + round((x - self.min) / self.step) * self.step for x in spaced)
        return sorted({round(float(min(self.max, x)), 10) for x in steps})  # 0.3, not 0.30000000000000004

    def including(self, value: float, settings: list[float]) -> list[float]:
        """Return `settings` with `value`, sorted."""
        return sorted({*settings, value})

    def text(self, value: Any) -> str:
        """Format a setting."""
        return f"{value:.3g}"


@dataclass(frozen=True)
class Choice:
    """One of several values, in the given order; `format` makes their labels. Initial value: `value`, or the first."""

    label: str
    values: Sequence[Any]
    value: Any = None
    format: Callable[[Any], str] = str

    def widget(self) -> widgets.SelectionSlider:
        """Make the widget."""
        return widgets.SelectionSlider(
            options=[(self.format(value), value) for value in self.values],
            value=self.values[0] if self.value is None else self.value,
            description=self.label,
            readout=False,  # the readout accepts typed text and then goes blank; the caption shows the value
            layout=_LAYOUT,
        )

    def evenly_spaced(self, count: int) -> list[Any]:
        """Return `count` evenly spaced values with both ends, or all if there are fewer."""
        positions = np.linspace(0, len(self.values) - 1, min(count, len(self.values)))
        return [self.values[round(position)] for position in positions]

    def including(self, value: Any, settings: list[Any]) -> list[Any]:
        """Return `settings` with `value`, in the order of the values."""
        return [each for each in self.values if each == value or each in settings]

    def text(self, value: Any) -> str:
        """Format a value."""
        return self.format(value)
