"""A flipbook in a real browser, without a kernel: sliders change the picture, also from the keyboard."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from klvae_edu.explore.flipbook import Page, flipbook

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(not CHROMIUM and not os.environ.get("CI"), reason="there is no Chromium here")


def page_of(setting, level):
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(stream, "jpeg")
    return Page(setting, stream.getvalue(), f"{setting}: grey {level}.")


@pytest.fixture(scope="module")
def page():
    """Two flipbooks on one page, the first with two sliders. `page.errors` lists the errors of the page."""
    from playwright.sync_api import sync_playwright

    start = page_of("none", 50)
    two = flipbook(
        "Two", {"A": ([start, page_of('a < "1"', 90), page_of("a2", 130)], 0), "B": ([page_of("b0", 10), start], 1)}
    )
    one = flipbook("One", {"C": ([page_of("c0", 200), page_of("c1", 250)], 0)})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.set_content(two + one)
        yield page
        browser.close()


def shown(page, book=0):
    """Return the alt texts of the visible pictures, and the caption above them."""
    figure = page.locator("figure").nth(book)
    alts = [image.get_attribute("alt") for image in figure.locator("img").all() if image.is_visible()]
    return alts, figure.locator("figcaption").inner_text()


def test_a_slider_turns_the_pages_from_the_keyboard_and_the_others_go_back(page):
    a, b, c = (page.get_by_label(label) for label in "ABC")
    assert shown(page) == (["none: grey 50."], "none: grey 50.")
    a.focus()
    page.keyboard.press("ArrowRight")
    assert shown(page) == (['a < "1": grey 90.'], 'a < "1": grey 90.')
    assert a.get_attribute("aria-valuetext") == 'a < "1"'
    b.focus()
    page.keyboard.press("Home")
    assert shown(page) == (["b0: grey 10."], "b0: grey 10.")
    assert a.input_value() == "0" and a.get_attribute("aria-valuetext") == "none"  # the other slider is reset
    a.focus()
    page.keyboard.press("End")
    assert shown(page) == (["a2: grey 130."], "a2: grey 130.") and b.input_value() == "1"
    assert shown(page, book=1) == (["c0: grey 200."], "c0: grey 200.")
    c.focus()
    page.keyboard.press("ArrowRight")
    assert shown(page, book=1) == (["c1: grey 250."], "c1: grey 250.")
    assert shown(page)[0] == ["a2: grey 130."]


def test_the_page_reports_no_error(page):
    assert page.errors == []
