"""A flipbook: pictures under sliders in one piece of HTML, which needs neither a kernel nor a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Page(NamedTuple):
    """One picture of a flipbook: the slider's setting in words, the bytes of a JPEG, and what it shows."""

    setting: str
    jpeg: bytes
    caption: str


# Handlers stand in the elements themselves: notebook viewers insert HTML in ways in which a <script> may not run, and
# this way any number of flipbooks get along on one page. A slider that is moved sends the others back to their places.
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
    """HTML with one slider for each label, its pages and the position at which it starts.

    All sliders start on the same picture; a picture that several of them show is there once.

    Raises:
        ValueError: the sliders start on different pictures.
    """
    starts = {pages[start][1:] for pages, start in sliders.values()}
    if len(starts) != 1:
        raise ValueError(f"flipbook: expected sliders that start on the same picture, got {len(starts)} pictures")
    (start,) = starts
    numbers = {start: 0}  # of each picture with its caption; the one that is shown at first comes first
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
