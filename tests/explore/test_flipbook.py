"""flipbook: sliders and pictures in one piece of HTML; tests/browser moves the sliders."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from klvae_edu.explore.flipbook import Page, flipbook


class Elements(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.found = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for found, attributes in self.found if found == tag]


def pages(*settings):
    return [Page(str(setting), f"picture {setting}".encode(), f"Shows {setting}.") for setting in settings]


def test_the_picture_at_the_start_is_shown_and_the_others_are_not():
    images = Elements(flipbook("", {"Level": (pages(1, 2, 3), 1)})).all("img")
    assert [image["alt"] for image in images] == ["Shows 2.", "Shows 1.", "Shows 3."]
    assert ["style" in image for image in images] == [False, True, True]
    assert base64.b64decode(images[0]["src"].removeprefix("data:image/jpeg;base64,")) == b"picture 2"


def test_a_slider_has_its_label_and_shows_its_setting_as_text():
    book = flipbook("Greys", {"Level < 4": (pages("dark", "light"), 1)})
    (slider,) = Elements(book).all("input")
    assert slider["type"] == "range" and (slider["min"], slider["max"], slider["value"]) == ("0", "1", "1")
    assert slider["aria-valuetext"] == "light" and slider["data-settings"] == '["dark", "light"]'
    assert slider["data-pictures"] == "[1, 0]"
    assert "<label>Level &lt; 4 <input" in book and "<b>Greys</b>" in book


def test_two_sliders_start_on_one_picture():
    start = Page("4", b"start", "The start.")
    elements = Elements(flipbook("", {"A": ([start, *pages(1)], 0), "B": ([*pages(2, 3), start], 2)}))
    assert [slider["data-pictures"] for slider in elements.all("input")] == ["[0, 1]", "[2, 3, 0]"]
    assert len(elements.all("img")) == 4


def test_sliders_that_start_on_different_pictures_are_a_value_error():
    with pytest.raises(ValueError, match="start on the same picture, got 2"):
        flipbook("", {"A": (pages(1, 2), 0), "B": (pages(1, 2), 1)})


def test_words_from_elsewhere_cannot_leave_their_place():
    evil = "\"'><script>alert(1)</script>"
    book = flipbook(evil, {evil: ([Page(evil, b"", evil)], 0)})
    assert Elements(book).all("script") == []
    assert Elements(book).all("img")[0]["alt"] == evil
