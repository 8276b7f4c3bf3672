"""The course in a real JupyterLab and a real browser: what no test of the kernel alone can see."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import learner_copy
import pytest

NOTEBOOK = "02_kl_loss.ipynb"
SECONDS = 180  # for all cells of the notebook, on a machine with other work
TOKEN = "only-for-this-test"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]

pytestmark = pytest.mark.skipif(not CHROMIUM and not os.environ.get("CI"), reason="there is no Chromium here")

RUN_ALL_CELLS = "() => window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"
CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells"
KERNEL_STATUS = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status"
PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a JupyterLab on a learner's copy of the course, as `make lab` starts it, with empty settings."""
    folder = tmp_path_factory.mktemp("lab")
    assert learner_copy.main(["--to", str(folder / "work")]) == 0
    tracker = folder / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')  # every cell is in the page, also those far below
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--ServerApp.root_dir={folder / 'work'}", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    options += [
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
    ]
    options += ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    folders = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}_DIR": str(folder / place) for name, place in folders.items()}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "ws"),
    }
    environment.pop("MPLBACKEND")  # a learner's kernel chooses its own
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=stream, stderr=stream
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
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def page(server):
    """The notebook, open in JupyterLab, with every cell executed.

    `page.errors` is what the page complained about, `page.asked_elsewhere` what it wanted from other machines.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(SECONDS * 1000)
        page.errors, page.asked_elsewhere = [], []

        def elsewhere(route):
            page.asked_elsewhere.append(route.request.url)
            route.fulfill(body="<svg xmlns='http://www.w3.org/2000/svg'/>", content_type="image/svg+xml")

        page.route(lambda url: url.startswith("http") and not url.startswith(server), elsewhere)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{server}/lab/tree/{NOTEBOOK}?token={TOKEN}")
        page.wait_for_function(f"() => ({KERNEL_STATUS})() === 'idle'")
        page.evaluate(f"() => Promise.race([({RUN_ALL_CELLS})(), new Promise(r => setTimeout(r, {SECONDS * 1000}))])")
        yield page
        browser.close()


def test_every_cell_runs_without_an_error(page):
    cells = [cell for cell in page.evaluate(CELLS) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"] == []


def test_the_slider_changes_the_picture_from_the_keyboard(page):
    explorer = page.locator(".widget-vbox", has=page.locator(".noUi-handle")).filter(has=page.locator("img")).first
    picture, handle = explorer.locator("img").first, explorer.locator(".noUi-handle").first
    picture.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    before = picture.evaluate(PIXELS)
    handle.focus()
    page.keyboard.press("ArrowRight")
    changed = f"([image, before]) => ({PIXELS})(image) !== before"
    page.wait_for_function(changed, arg=[picture.element_handle(), before], timeout=20_000)


def test_the_page_reports_no_error(page):
    assert page.errors == []


def test_nothing_but_the_badge_is_asked_from_the_internet(page):
    assert {*page.asked_elsewhere} <= {"https://colab.research.google.com/assets/colab-badge.svg"}
