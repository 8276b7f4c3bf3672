"""The course in a real JupyterLab and a real browser. A test of the kernel alone cannot see the page."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import TimeoutError

NOTEBOOKS = ["02_kl_loss.ipynb", "10_latent_space_explorer.ipynb"]
SECONDS = 180  # limit for all cells of a notebook, on a busy machine
PICTURE_TIMEOUT = 30_000  # milliseconds until a slider's new picture appears, on a busy machine
TOKEN = "only-for-this-test"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]

pytestmark = pytest.mark.skipif(not CHROMIUM and not os.environ.get("CI"), reason="there is no Chromium here")

RUN_ALL_CELLS = "() => window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"
CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells"
DRAWN = f"""() => {{
    const kind = "application/vnd.jupyter.widget-view+json";
    const sent = ({CELLS})().flatMap(cell => cell.outputs ?? []).filter(output => output.data && kind in output.data);
    const outputs = [...document.querySelectorAll(".jp-OutputArea-output")];
    const shown = outputs.filter(output => output.querySelector(".jupyter-widgets"));
    return shown.length >= sent.length;
}}"""
KERNEL_STATUS = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status"
PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a JupyterLab on a learner's copy of the course, started by `make lab`, with default settings."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True"]
    command = ["make", "--old-file=.venv/.installed", "lab", f"PY={sys.executable}", f"WORK={folder / 'work'}"]
    folders = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}_DIR": str(folder / place) for name, place in folders.items()}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "ws"),
    }
    environment.pop("MPLBACKEND")  # a learner's kernel chooses its own
    environment.pop("MAKEFLAGS", None)  # of `make test`
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, f"LAB_ARGS={shlex.join(options)}"],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        for _ in range(SECONDS):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", timeout=5)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda name: name[:2])
def page(request, server):
    """A notebook, open in JupyterLab, with every cell executed.

    `page.errors` lists the errors of the page, `page.other_requests` the addresses that it requested elsewhere.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(SECONDS * 1000)
        page.errors, page.other_requests = [], []

        def elsewhere(route):
            page.other_requests.append(route.request.url)
            route.fulfill(body="<svg xmlns='http://www.w3.org/2000/svg'/>", content_type="image/svg+xml")

        page.route(lambda url: url.startswith("http") and not url.startswith(server), elsewhere)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        # Its own workspace: a shared one opens the previous notebook again, which may cover this one.
        page.goto(f"{server}/lab/workspaces/{request.param[:2]}/tree/{request.param}?token={TOKEN}")
        page.wait_for_function(f"() => ({KERNEL_STATUS})() === 'idle'")
        page.evaluate(f"() => Promise.race([({RUN_ALL_CELLS})(), new Promise(r => setTimeout(r, {SECONDS * 1000}))])")
        # Cells finish before the page has drawn their outputs.
        page.wait_for_function(DRAWN)
        yield page
        browser.close()


def test_every_cell_runs_without_an_error(page):
    cells = [cell for cell in page.evaluate(CELLS) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"] == []


def test_every_figure_has_its_caption_below_it(page):
    outputs = [output for cell in page.evaluate(CELLS) for output in cell.get("outputs", [])]
    figures = [
        output for output in outputs if [*output.get("data", {})] in (["image/png"], ["image/jpeg"])
    ]  # no sliders
    stored = [next(iter(output["metadata"].values()))["alt"] for output in figures]
    below = page.locator(".jp-OutputArea-child:has(.jp-RenderedImage) + .jp-OutputArea-child small")
    assert stored and [text.strip() for text in below.all_text_contents()] == [text.strip() for text in stored]
    assert all(caption.bounding_box()["height"] > 0 for caption in below.all())


def test_the_environment_cell_is_one_folded_line(page):
    folded = page.locator(".jp-CodeCell:has(.jp-InputPlaceholder)")
    assert folded.count() == 1 and "torch" in folded.text_content()


def explorers(page):
    """List the explorers on the page: boxes with sliders and a picture, and without another explorer inside."""
    boxes = page.locator(".widget-vbox", has=page.locator(".noUi-handle")).filter(has=page.locator("img"))
    return [box for box in boxes.all() if box.locator(".widget-vbox", has=page.locator(".noUi-handle")).count() == 0]


def change(page, explorer, action):
    """Run `action`, and wait until the explorer's picture has changed."""
    picture = explorer.locator("img").first
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    before = picture.evaluate(PIXELS)
    action()
    changed = f"([image, before]) => image.complete && image.naturalWidth > 0 && ({PIXELS})(image) !== before"
    try:
        page.wait_for_function(changed, arg=[picture.element_handle(), before], timeout=PICTURE_TIMEOUT)
    except TimeoutError as error:
        raise AssertionError(f"the picture did not change: {explorer.inner_text()}") from error


def is_last(handle):
    """Tell whether a slider is at its maximum."""
    return handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")


def test_every_slider_changes_its_picture_from_the_keyboard(page):
    assert explorers(page)
    for explorer in explorers(page):
        for handle in explorer.locator(".noUi-handle").all():
            handle.scroll_into_view_if_needed()
            handle.focus()
            there, back = ("ArrowLeft", "ArrowRight") if is_last(handle) else ("ArrowRight", "ArrowLeft")
            for key in (there, back):  # back again: with a muted channel the other sliders would change nothing
                change(page, explorer, lambda key=key: page.keyboard.press(key))


def test_every_slider_changes_its_picture_when_it_is_dragged(page):
    assert explorers(page)
    for explorer in explorers(page):
        for handle in explorer.locator(".noUi-handle").all():
            handle.scroll_into_view_if_needed()
            box, track = handle.bounding_box(), handle.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]")
            ends = track.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            middle = ends["x"] + ends["width"] / 2
            target = ends["x"] + ends["width"] * (0.9 if x < middle else 0.1)

            def drag(x=x, y=y, target=target):
                page.mouse.move(x, y)
                page.mouse.down()
                page.mouse.move(target, y, steps=8)
                page.mouse.up()

            change(page, explorer, drag)


def test_no_slider_ended_in_an_error_message(page):
    assert explorers(page)
    for explorer in explorers(page):
        assert "Not drawn" not in explorer.locator("[role=status]").first.inner_text()


def test_a_screenshot_is_kept(page):
    """Screenshots are for people; git ignores the folder."""
    folder = Path(__file__).parents[2] / "screenshots"
    folder.mkdir(exist_ok=True)
    number = page.url.split("/")[-1][:2]
    for old in folder.glob(f"{number}_*.png"):
        old.unlink()
    for count, explorer in enumerate(explorers(page)):
        explorer.scroll_into_view_if_needed()
        explorer.screenshot(path=folder / f"{number}_explorer_{count}.png")
    assert (folder / f"{number}_explorer_0.png").stat().st_size > 10_000


@pytest.fixture
def upload(page):
    """A function that uploads a file with the button of a photograph, as a person does; None: notebook 02 has none."""
    button = page.locator(".widget-upload")
    if not button.count():
        assert page.url.split("?")[0].endswith("02_kl_loss.ipynb")
        return None

    def choose(path):
        button.scroll_into_view_if_needed()
        with page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files(path)

    return choose


def test_an_uploaded_photograph_takes_the_place_of_the_first_in_every_panel_that_follows(page, upload, tmp_path):
    if upload is None:
        return
    path = tmp_path / "stripes.png"
    stripes = np.zeros((300, 400, 3), np.uint8)
    stripes[:, ::20] = stripes[:, 1::20] = (230, 60, 20)
    Image.fromarray(stripes).save(path)
    first = explorers(page)[0]
    change(page, first, lambda: upload(path))
    page.wait_for_function("() => document.body.innerText.includes('stripes.png')", timeout=PICTURE_TIMEOUT)
    (tmp_path / "notes.txt").write_text("no picture")
    before = first.locator("img").first.evaluate(PIXELS)
    upload(tmp_path / "notes.txt")
    page.wait_for_function("() => document.body.innerText.includes('notes.txt: not in any image format')")
    assert first.locator("img").first.evaluate(PIXELS) == before


def test_a_photograph_of_30_megabytes_arrives(page, upload, tmp_path):
    if upload is None:
        return
    path = tmp_path / "large.bmp"
    Image.new("RGB", (4000, 2500), (20, 60, 230)).save(path)
    assert path.stat().st_size > 30_000_000
    change(page, explorers(page)[0], lambda: upload(path))
    page.wait_for_function("() => document.body.innerText.includes('large.bmp')", timeout=PICTURE_TIMEOUT)


def test_the_page_reports_no_error(page):
    assert page.errors == []


def test_nothing_but_the_badge_is_asked_from_the_internet(page):
    assert {*page.other_requests} <= {"https://colab.research.google.com/assets/colab-badge.svg"}
