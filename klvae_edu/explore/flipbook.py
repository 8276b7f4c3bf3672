"""Flipbook: sliders and pictures in one piece of HTML that needs neither a kernel nor a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Page(NamedTuple):
    """One picture of a flipbook: the slider's setting as text, the bytes of a JPEG, and the caption."""

    setting: str
    jpeg: bytes
    caption: str


# Event handlers are attributes of the elements, because some notebook viewers insert HTML without running a <script>.
# This also allows several flipbooks on one page. Moving a slider resets the other sliders to their initial settings.
_ON_INPUT = """
const book = this.closest('figure'), pictures = book.querySelectorAll('img');
for (const slider of book.querySelectorAll('input')) {
    if (slider !== this) slider.value = slider.defaultValue;
    const setting = JSON.parse(slider.dataset.settings)[slider.value];
    slider.setAttribute('aria-valuetext', setting);
    slider.nextElementSibling.textContent = setting;
}
const shown = JSON.parse(this.dataset.pictures)[this.value];
pictures.forEach((picture, i) => picture.style.display = i === shown ? '' : 'none');
book.querySelector('figcaption').textContent = pictures[shown].alt;
"""


def flipbook(title: str, sliders: Mapping[str, tuple[Sequence[Page], int]]) -> str:
    """Build the HTML of a flipbook from its sliders: label -> (pages, position of the initial page).

    All sliders start on the same picture. A picture that several sliders show is stored once.

    Raises:
        ValueError: the sliders start on different pictures.
    """
    starts = {pages[start][1:] for pages, start in sliders.values()}
    if len(starts) != 1:
        raise ValueError(f"flipbook: expected sliders that start on the same picture, got {len(starts)} pictures")
    (start,) = starts
    numbers = {start: 0}  # (picture, caption) -> number; the initial picture has number 0
    rows = []
    for label, (pages, position) in sliders.items():
        pictures = [numbers.setdefault(page[1:], len(numbers)) for page in pages]
        rows.append(_slider(label, [page.setting for page in pages], pictures, position))
    images = [_image(jpeg, caption, shown=number == 0) for (jpeg, caption), number in numbers.items()]
    heading = f"<div><b>{html.escape(title)}</b></div>\n" if title else ""
    caption = f'<figcaption role="status" aria-live="polite">{html.escape(start[1])}</figcaption>'
    return "\n".join([f'<figure style="margin: 0">\n{heading}{"".join(rows)}{caption}', *images, "</figure>"])


def _slider(label: str, settings: Sequence[str], pictures: Sequence[int], position: int) -> str:
    here = html.escape(settings[position])
    return (
        f'<div><label>{html.escape(label)} <input type="range" min="0" max="{len(pictures) - 1}" step="1" '
        f'value="{position}" aria-valuetext="{here}" data-pictures="{json.dumps(pictures)}" '
        f'data-settings="{html.escape(json.dumps(settings, ensure_ascii=False))}" '
        f'oninput="{html.escape(_ON_INPUT)}"><span>{here}</span></label></div>\n'
    )


def _image(jpeg: bytes, caption: str, shown: bool) -> str:
    style = "" if shown else ' style="display: none"'
    data = base64.b64encode(jpeg).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(caption)}"{style}>'
