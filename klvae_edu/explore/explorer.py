"""`Explorer`: a few sliders, a picture that depends on them, and a caption.

It works in JupyterLab and on Colab (ipywidgets 7 and 8). Without a kernel, a notebook shows a contact sheet instead:
pictures at several settings. An HTML page can show a flipbook of them.
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

FLIPBOOK = "KLVAE_EDU_FLIPBOOK"  # environment variable; if it is set, notebooks display flipbooks instead of widgets

_SHEET_WIDTH = 800  # of the contact sheet, in pixels
_SETTINGS = 3  # settings of each control on a contact sheet of several controls
_PAGES, _PAGE_SIDE = 24, 380  # flipbook: approximate number of pages of all controls, and their longest side in pixels
_JPEG_QUALITY, _STORED_QUALITY = 90, 75  # of the live picture, and of pictures stored in a file


class Pictured(widgets.VBox):  # type: ignore[misc]
    """A column of widgets with a static picture for readers without a kernel."""

    def still(self) -> tuple[str, bytes, str]:
        """Return the static picture: its MIME type, its bytes, and its alt text."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the representations for Jupyter: the live widget and the static picture."""
        live = getattr(super(), "_repr_mimebundle_", dict)  # missing in ipywidgets 7, which uses another method
        mime, picture, alt = self.still()
        return {**(live(**kwargs) or {"text/plain": repr(self)}), mime: picture}, {mime: {"alt": alt}}


class Explorer(Pictured):
    """Controls above a picture that is redrawn when one of them is moved.

    Args:
        draw: function of the controls' values by name. It returns an (H, W, 3) uint8 array, a PIL image, a Tensor
            (3, H, W) in [-1, 1], or a matplotlib figure. It may also return a pair of a picture and a sentence, such as
            a measurement; the sentence is added to the caption. If the first call raises, the exception is raised
            here. If a later call raises, its message is shown and the last picture stays.
        controls: `Slider` or `Choice` by name.
        alt: caption, shown above the picture and used as its alt text: a sentence, or a function of the same values.
        title: heading.
        format: "jpeg" is small, for photographs; "png" is sharp, for plots.
        thumbnail: longest side of a picture on the contact sheet, in pixels.

    Attributes:
        pixels: the picture that is shown, (H, W, 3) uint8.

    Raises:
        ValueError: there are no controls, or `draw` returns something else.

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
        for control in self.controls.values():  # room for the longest label; all sliders are aligned
            control.style.description_width = f"{max(len(spec.label) for spec in controls.values()) + 1}ch"
        self._drawn = self.values  # settings of the picture that is shown
        self.pixels, self._caption = self._picture(self._drawn)
        # Without align_self the column would stretch the picture to its own width.
        layout = {"align_self": "flex-start", "max_width": "100%"}
        self.image = widgets.Image(value=encode_pixels(self.pixels, format), format=format, layout=layout)
        self.status = widgets.HTML(status_line(self._caption))
        heading = [widgets.HTML(f"<b>{html.escape(title)}</b>")] if title else []
        super().__init__([*heading, *self.controls.values(), self.status, self.image])
        for control in self.controls.values():
            control.observe(lambda change: self.refresh(), names="value")

    @property
    def values(self) -> dict[str, Any]:
        """Current settings of the controls by name."""
        return {name: control.value for name, control in self.controls.items()}

    def contact_sheet(self) -> Figure:
        """Draw small pictures at several settings: one control at a time is moved, the others keep their settings."""
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
        """Redraw the picture for the current settings; show the message if `draw` raises."""
        # An exception in a callback of ipywidgets would only appear in a log.
        values = self.values
        try:
            self.pixels, self._caption = self._picture(values)
        except Exception as error:
            settings = ", ".join(f"{spec.label} = {spec.text(values[name])}" for name, spec in self._specs.items())
            self.status.value = status_line(f"Not drawn for {settings}: {type(error).__name__}: {error}")
        else:
            self._drawn = values
            self.image.value = encode_pixels(self.pixels, self.image.format)
            self.status.value = status_line(self._caption)

    def still(self) -> tuple[str, bytes, str]:
        """Return the contact sheet; its alt text lists the settings."""
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
        """Return HTML with a slider for each control and a picture for each setting; no kernel or network is needed.

        One control at a time is moved, the others keep their settings. A notebook does not store the flipbook, for two
        reasons. Viewers prefer HTML to a picture, and those that remove scripts (GitHub) would show a slider without
        function. Its bytes may also differ between runs by a rounded pixel. If `KLVAE_EDU_FLIPBOOK` is set while a
        notebook is executed, for its HTML edition, explorers display the flipbook instead of the widgets.
        """
        values = self.values
        sliders = {}
        for name, spec in self._specs.items():
            settings = spec.including(values[name], spec.evenly_spaced(max(3, _PAGES // len(self._specs))))
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
        return _to_pixels(picture), caption

    def _sheet(self) -> dict[str, list[Any]]:
        """Return the settings of each control on the contact sheet."""
        count = 9 if len(self._specs) == 1 else _SETTINGS
        return {name: spec.evenly_spaced(count) for name, spec in self._specs.items()}

    def _at(self, values: dict[str, Any]) -> tuple[plots.Pixels, str]:
        """Return picture and caption at these settings without moving the controls; grey if `draw` raises."""
        if values == self._drawn:
            return self.pixels, self._caption
        try:
            return self._picture(values)
        except Exception as error:  # the live widget shows the full message
            return np.full_like(self.pixels, 128), f"Not drawn: {error}"

    def _page(self, values: dict[str, Any], setting: str) -> Page:
        pixels, caption = self._at(values)
        return Page(setting, encode_pixels(_shrunk(pixels, _PAGE_SIDE), "jpeg", _STORED_QUALITY), caption)


def _to_pixels(picture: Any) -> plots.Pixels:
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
    """Shrink `pixels` so that no side is longer than `side`."""
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    return np.asarray(small)


def encode_pixels(pixels: plots.Pixels, format: str, quality: int = _JPEG_QUALITY) -> bytes:
    """Encode (H, W, 3) uint8 pixels as an image file of this format."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, quality=quality)
    return buffer.getvalue()


def status_line(text: str) -> str:
    """Return a line of HTML that screen readers announce when it changes."""
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'
