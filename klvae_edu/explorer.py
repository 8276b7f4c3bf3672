"""`Explorer`: a few sliders, the picture they make, and a line of text on it.

It works in JupyterLab and on Colab (ipywidgets 7 and 8). A notebook that is only read, without a kernel, shows a sheet
of pictures at several settings in its place.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from klvae_edu import plots

_SHEET_WIDTH, _THUMBNAIL = 800, 380  # of the contact sheet: its width, and the longest side of a picture, in pixels
_JPEG_QUALITY = 90
_LAYOUT = {"width": "480px", "max_width": "100%"}


@dataclass(frozen=True)
class Slider:
    """A number between `min` and `max`."""

    label: str
    min: float
    max: float
    step: float
    value: float

    def widget(self) -> widgets.FloatSlider:
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

    def some(self, count: int) -> list[float]:
        """`count` settings from end to end, on the slider's steps."""
        spaced = np.linspace(self.min, self.max, count)
        return [float(min(self.max, self.min + round((x - self.min) / self.step) * self.step)) for x in spaced]

    def text(self, value: Any) -> str:
        return f"{value:.3g}"


@dataclass(frozen=True)
class Choice:
    """One of several values, in the order given; `format` makes their labels. Without `value`, the first is chosen."""

    label: str
    values: Sequence[Any]
    value: Any = None
    format: Callable[[Any], str] = str

    def widget(self) -> widgets.SelectionSlider:
        return widgets.SelectionSlider(
            options=[(self.format(value), value) for value in self.values],
            value=self.values[0] if self.value is None else self.value,
            description=self.label,
            readout=False,  # it takes typed text and then goes blank; the caption tells the value
            layout=_LAYOUT,
        )

    def some(self, count: int) -> list[Any]:
        """`count` of the values from end to end, or all when there are fewer."""
        positions = np.linspace(0, len(self.values) - 1, min(count, len(self.values)))
        return [self.values[round(position)] for position in positions]

    def text(self, value: Any) -> str:
        return self.format(value)


class Explorer(widgets.VBox):  # type: ignore[misc]
    """Controls over a picture, drawn anew whenever one of them moves.

    Args:
        draw: called with the controls' values by name. It returns an (H, W, 3) uint8 array, a PIL image, a Tensor
            (3, H, W) in [-1, 1], or a matplotlib figure. When it raises, the message is shown and the last picture
            stays; only the first time the exception passes on.
        controls: `Slider` or `Choice` by name.
        alt: what the picture shows: a sentence, or a function of the same values. It is shown above the picture.
        title: shown above.
        format: "jpeg" is quick to send, for photographs; "png" is sharper, for plots.

    Raises:
        ValueError: no controls.

    Example:
        >>> Explorer(lambda beta: frames[beta], {"beta": Choice("KL weight β", list(frames))}, alt="…")
    """

    def __init__(
        self,
        draw: Callable[..., Any],
        controls: Mapping[str, Slider | Choice],
        *,
        alt: str | Callable[..., str],
        title: str = "",
        format: Literal["jpeg", "png"] = "jpeg",
    ) -> None:
        if not controls:
            raise ValueError("controls: expected at least one Slider or Choice, got none")
        self._draw, self._alt, self._title, self._specs = draw, alt, title, dict(controls)
        self.controls = {name: spec.widget() for name, spec in controls.items()}
        for control in self.controls.values():  # wide enough for the longest label, and the sliders below each other
            control.style.description_width = f"{max(len(spec.label) for spec in controls.values()) + 1}ch"
        self._pixels, self._caption = self._picture(self.values)
        # Without align_self the column would stretch the picture to its own width.
        layout = {"align_self": "flex-start", "max_width": "100%"}
        self.image = widgets.Image(value=_encode(self._pixels, format), format=format, layout=layout)
        self.status = widgets.HTML(_status(self._caption))
        heading = [widgets.HTML(f"<b>{html.escape(title)}</b>")] if title else []
        super().__init__([*heading, *self.controls.values(), self.status, self.image])
        for control in self.controls.values():
            control.observe(self._update, names="value")

    @property
    def values(self) -> dict[str, Any]:
        """The controls' settings by name."""
        return {name: control.value for name, control in self.controls.items()}

    def contact_sheet(self) -> Figure:
        """Small pictures at several settings: each control is moved, while the others stay where they are."""
        pictures, captions = [], []
        for name, row in self._sheet().items():
            pictures += [self._thumbnail({**self.values, name: setting}) for setting in row]
            captions += [f"{self._specs[name].label} = {self._specs[name].text(setting)}" for setting in row]
        columns = max(1, _SHEET_WIDTH // max(picture.shape[1] for picture in pictures))
        return plots.image_grid(_in_rows(pictures, columns), captions=_in_rows(captions, columns))

    def __repr__(self) -> str:
        return f"Explorer({self._title!r}: {', '.join(spec.label for spec in self._specs.values())})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live widget, and the contact sheet for readers without a kernel."""
        rows = (
            f"{self._specs[name].label} = {', '.join(map(self._specs[name].text, row))}"
            for name, row in self._sheet().items()
        )
        alt = f"{self._title or 'Pictures'} for {'; '.join(rows)}. {self._caption}"
        mime = f"image/{self.image.format}"
        live = getattr(super(), "_repr_mimebundle_", dict)  # ipywidgets 7 has another way to display itself
        data = live(**kwargs) or {"text/plain": repr(self)}
        return {**data, mime: plots.render(self.contact_sheet(), self.image.format)}, {mime: {"alt": alt}}

    def _update(self, change: Any) -> None:
        # An exception in a callback of ipywidgets would vanish into a log that nobody reads.
        try:
            self._pixels, self._caption = self._picture(self.values)
        except Exception as error:
            settings = ", ".join(f"{spec.label} = {spec.text(self.values[name])}" for name, spec in self._specs.items())
            self.status.value = _status(f"Not drawn for {settings}: {type(error).__name__}: {error}")
        else:
            self.image.value = _encode(self._pixels, self.image.format)
            self.status.value = _status(self._caption)

    def _picture(self, values: dict[str, Any]) -> tuple[plots.Pixels, str]:
        caption = self._alt(**values) if callable(self._alt) else self._alt
        return _pixels(self._draw(**values)), caption

    def _sheet(self) -> dict[str, list[Any]]:
        """The settings of each control that the contact sheet shows."""
        count = 9 if len(self._specs) == 1 else 3
        return {name: spec.some(count) for name, spec in self._specs.items()}

    def _thumbnail(self, values: dict[str, Any]) -> plots.Pixels:
        try:
            pixels = self._picture(values)[0]
        except Exception:  # the live widget says why; here the place stays grey
            pixels = np.full_like(self._pixels, 128)
        small = Image.fromarray(pixels)
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return np.asarray(small)


def _pixels(picture: Any) -> plots.Pixels:
    if isinstance(picture, Tensor):
        return plots.to_image(picture)
    if isinstance(picture, Figure):
        return plots.figure_to_image(picture)
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            "draw: expected an (H, W, 3) uint8 array, a PIL image, a Tensor (3, H, W) or a figure; "
            f"got {type(picture).__name__} of shape {pixels.shape} in {pixels.dtype}"
        )
    return pixels


def _in_rows(items: list[Any], columns: int) -> list[list[Any]]:
    return [items[start : start + columns] for start in range(0, len(items), columns)]


def _encode(pixels: plots.Pixels, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _status(text: str) -> str:
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'
