"""`Explorer`: a few sliders, the picture they make, and a line of text on it.

It works in JupyterLab and on Colab (ipywidgets 7 and 8). A notebook that is only read, without a kernel, shows a sheet
of pictures at several settings in its place; a page of HTML can have a flipbook of them.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from klvae_edu import plots
from klvae_edu.explore.controls import Choice, Slider
from klvae_edu.explore.flipbook import Page, flipbook

FLIPBOOK = "KLVAE_EDU_FLIPBOOK"  # an environment variable: when it is set, notebooks display flipbooks, no widgets

_SHEET_WIDTH = 800  # of the contact sheet, in pixels
_SETTINGS = 3  # of each control on it, where there are several controls
_PAGES, _PAGE_SIDE = 24, 380  # of a flipbook: pages of all controls together, about, and their longest side
_JPEG_QUALITY, _STORED_QUALITY = 90, 75  # of the live picture, and of what is stored in a file


class Pictured(widgets.VBox):  # type: ignore[misc]
    """Widgets below each other, with a picture for readers who have no kernel."""

    def still(self) -> tuple[str, bytes, str]:
        """The picture in their place: its MIME type, its bytes, and its alt text."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live widget, and the still picture beside it."""
        live = getattr(super(), "_repr_mimebundle_", dict)  # ipywidgets 7 has another way to display itself
        mime, picture, alt = self.still()
        return {**(live(**kwargs) or {"text/plain": repr(self)}), mime: picture}, {mime: {"alt": alt}}


class Explorer(Pictured):
    """Controls over a picture, drawn anew whenever one of them moves.

    Args:
        draw: called with the controls' values by name. It returns an (H, W, 3) uint8 array, a PIL image, a Tensor
            (3, H, W) in [-1, 1], or a matplotlib figure; or a pair of that and a sentence, which is added to the
            caption: what was measured in passing. When it raises, the message is shown and the last picture stays;
            only the first time the exception passes on.
        controls: `Slider` or `Choice` by name.
        alt: what the picture shows: a sentence, or a function of the same values. It is shown above the picture.
        title: shown above.
        format: "jpeg" is quick to send, for photographs; "png" is sharper, for plots.
        thumbnail: the longest side of a picture on the contact sheet, in pixels.

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
        thumbnail: int = 380,
    ) -> None:
        if not controls:
            raise ValueError("controls: expected at least one Slider or Choice, got none")
        self._draw, self._alt, self.title, self._specs = draw, alt, title, dict(controls)
        self._thumbnail = thumbnail
        self.controls = {name: spec.widget() for name, spec in controls.items()}
        for control in self.controls.values():  # wide enough for the longest label, and the sliders below each other
            control.style.description_width = f"{max(len(spec.label) for spec in controls.values()) + 1}ch"
        self._drawn = self.values  # the settings of the picture that is shown
        self._pixels, self._caption = self._picture(self._drawn)
        # Without align_self the column would stretch the picture to its own width.
        layout = {"align_self": "flex-start", "max_width": "100%"}
        self.image = widgets.Image(value=encode_pixels(self._pixels, format), format=format, layout=layout)
        self.status = widgets.HTML(status_line(self._caption))
        heading = [widgets.HTML(f"<b>{html.escape(title)}</b>")] if title else []
        super().__init__([*heading, *self.controls.values(), self.status, self.image])
        for control in self.controls.values():
            control.observe(lambda change: self.refresh(), names="value")

    @property
    def values(self) -> dict[str, Any]:
        """The controls' settings by name."""
        return {name: control.value for name, control in self.controls.items()}

    def contact_sheet(self) -> Figure:
        """Small pictures at several settings: each control is moved, while the others stay where they are."""
        pictures, captions = [], []
        for name, row in self._sheet().items():
            pictures += [_shrunk(self._at({**self.values, name: setting})[0], self._thumbnail) for setting in row]
            captions += [f"{self._specs[name].label} = {self._specs[name].text(setting)}" for setting in row]
        columns = max(1, _SHEET_WIDTH // max(picture.shape[1] for picture in pictures))
        columns = columns if len(self._specs) == 1 else min(columns, _SETTINGS)  # a row for each control
        return plots.image_grid(_in_rows(pictures, columns), captions=_in_rows(captions, columns))

    def __repr__(self) -> str:
        return f"Explorer({self.title!r}: {', '.join(spec.label for spec in self._specs.values())})"

    def refresh(self) -> None:
        """Draw the picture anew, for the settings as they are."""
        # An exception in a callback of ipywidgets would vanish into a log that nobody reads.
        values = self.values
        try:
            self._pixels, self._caption = self._picture(values)
        except Exception as error:
            settings = ", ".join(f"{spec.label} = {spec.text(values[name])}" for name, spec in self._specs.items())
            self.status.value = status_line(f"Not drawn for {settings}: {type(error).__name__}: {error}")
        else:
            self._drawn = values
            self.image.value = encode_pixels(self._pixels, self.image.format)
            self.status.value = status_line(self._caption)

    def still(self) -> tuple[str, bytes, str]:
        """The contact sheet, and the settings that it shows."""
        rows = (
            f"{self._specs[name].label} = {', '.join(map(self._specs[name].text, row))}"
            for name, row in self._sheet().items()
        )
        alt = f"{self.title or 'Pictures'} for {'; '.join(rows)}. {self._caption}"
        sheet, format = self.contact_sheet(), self.image.format
        if format == "png":
            return "image/png", plots.render(sheet), alt
        return "image/jpeg", encode_pixels(plots.figure_to_image(sheet), format, _STORED_QUALITY), alt

    def flipbook(self) -> str:
        """HTML with a slider for each control and a picture for each of its settings; it needs no kernel, no network.

        Each control is moved while the others stay where they are. It is not among what a notebook stores: viewers
        prefer HTML to a picture, those that drop scripts (GitHub) would be left with a slider that does nothing, and
        its bytes may differ in a rounded pixel from one run to the next. Where `KLVAE_EDU_FLIPBOOK` is set while a
        notebook is executed, for an HTML edition of it, explorers display this instead of themselves.
        """
        values = self.values
        sliders = {}
        for name, spec in self._specs.items():
            settings = spec.including(values[name], spec.some(max(3, _PAGES // len(self._specs))))
            pages = [self._page({**values, name: setting}, spec.text(setting)) for setting in settings]
            sliders[spec.label] = pages, settings.index(values[name])
        return flipbook(self.title, sliders)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if os.environ.get(FLIPBOOK):
            return {"text/plain": repr(self), "text/html": self.flipbook()}, {}
        return super()._repr_mimebundle_(**kwargs)

    def _picture(self, values: dict[str, Any]) -> tuple[plots.Pixels, str]:
        caption = self._alt(**values) if callable(self._alt) else self._alt
        picture = self._draw(**values)
        if isinstance(picture, tuple):
            picture, measured = picture
            caption = f"{caption} {measured}"
        return _pixels(picture), caption

    def _sheet(self) -> dict[str, list[Any]]:
        """The settings of each control that the contact sheet shows."""
        count = 9 if len(self._specs) == 1 else _SETTINGS
        return {name: spec.some(count) for name, spec in self._specs.items()}

    def _at(self, values: dict[str, Any]) -> tuple[plots.Pixels, str]:
        """Picture and caption at these settings, the controls left alone; grey where nothing can be drawn."""
        if values == self._drawn:
            return self._pixels, self._caption
        try:
            return self._picture(values)
        except Exception as error:  # the live widget says it in full
            return np.full_like(self._pixels, 128), f"Not drawn: {error}"

    def _page(self, values: dict[str, Any], setting: str) -> Page:
        pixels, caption = self._at(values)
        return Page(setting, encode_pixels(_shrunk(pixels, _PAGE_SIDE), "jpeg", _STORED_QUALITY), caption)


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


def _shrunk(pixels: plots.Pixels, side: int) -> plots.Pixels:
    """`pixels` with no side longer than `side`."""
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    return np.asarray(small)


def encode_pixels(pixels: plots.Pixels, format: str, quality: int = _JPEG_QUALITY) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, quality=quality)
    return buffer.getvalue()


def status_line(text: str) -> str:
    """A line of HTML that screen readers read out when it changes."""
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'
