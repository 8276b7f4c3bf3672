"""A notebook exported as HTML, in a real browser: captions are visible, and pictures are stored once."""

import subprocess
import sys

import nbformat
import pytest

from tests.browser.test_lab import CHROMIUM, QUIET, pytestmark  # noqa: F401  (the mark skips where there is no Chromium)
from tools.course import COURSE


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The page of notebook 00, and its stored alt texts."""
    from playwright.sync_api import sync_playwright

    path, folder = COURSE.built("00_tour", solved=False), tmp_path_factory.mktemp("export")
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(folder), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    alts = [kind["alt"] for output in outputs for kind in output.get("metadata", {}).values() if "alt" in kind]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.route(lambda url: url.startswith("http"), lambda route: route.abort())
        page.goto((folder / "00_tour.html").as_uri())
        yield page, alts
        browser.close()


def test_every_picture_is_followed_by_its_caption(exported):
    page, alts = exported
    captions = page.locator(".jp-OutputArea-child:has(img) + .jp-OutputArea-child small")
    assert alts and [text.strip() for text in captions.all_text_contents()] == alts
    assert all(caption.bounding_box()["height"] > 0 for caption in captions.all())


def test_every_picture_is_stored_once(exported):
    page, alts = exported
    sources = page.locator("img").evaluate_all("images => images.map(image => image.src)")
    assert len(sources) == len({*sources}) == len(alts)
