"""Explorer: controls redraw the picture, errors are shown, and a notebook without a kernel still shows pictures."""

from __future__ import annotations

import inspect
import io

import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from PIL import Image

from klvae_edu import plots
from klvae_edu.explore.controls import Choice, Slider
from klvae_edu.explore.explorer import FLIPBOOK, Explorer

EIGHT = int(ipywidgets.__version__.split(".")[0]) >= 8


def grey(level, width=30):
    return np.full((20, width, 3), level, np.uint8)


def shown(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.image.value)))


def make(draw=lambda level: grey(int(level)), alt=lambda level: f"Grey {level:g}.", **options):
    return Explorer(draw, {"level": Slider("Level", 0, 200, 10, 50)}, alt=alt, format="png", **options)


def test_it_starts_with_the_controls_values():
    explorer = make()
    assert explorer.values == {"level": 50} and (shown(explorer) == 50).all()


def test_moving_a_control_draws_anew_with_all_values_by_name():
    calls = []

    def draw(level, sign):
        calls.append((level, sign))
        return grey(100)

    controls = {"level": Slider("Level", 0, 200, 10, 50), "sign": Choice("Sign", ["+", "-"])}
    explorer = Explorer(draw, controls, alt="Grey.")
    explorer.controls["sign"].value = "-"
    explorer.controls["level"].value = 60
    assert calls == [(50, "+"), (50, "-"), (60, "-")]


def test_a_message_from_the_browser_draws_anew():
    explorer = make()
    explorer.controls["level"].set_state({"value": 70.0})
    assert (shown(explorer) == 70).all()


def test_a_slider_stays_within_its_ends():
    explorer = make()
    explorer.controls["level"].value = 900
    assert explorer.values == {"level": 200}


@pytest.mark.parametrize(
    "picture",
    [
        grey(255),
        Image.fromarray(grey(255)),
        Image.fromarray(grey(255)).convert("L"),
        torch.ones(3, 20, 30),
        torch.ones(1, 20, 30),
    ],
)
def test_arrays_pil_images_and_tensors_are_pictures(picture):
    explorer = make(draw=lambda level: picture)
    assert shown(explorer).shape == (20, 30, 3) and (shown(explorer) == 255).all()


def test_a_figure_is_a_picture():
    assert shown(make(draw=lambda level: plots.figure(size=(2, 1))[0])).shape == (100, 200, 3)


def test_another_object_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"draw: expected .* got ndarray of shape \(4, 4\) in float64"):
        make(draw=lambda level: np.zeros((4, 4)))


def test_no_controls_are_an_error():
    with pytest.raises(ValueError, match="at least one Slider or Choice"):
        Explorer(grey, {}, alt="")


def test_the_caption_follows_the_picture_and_is_escaped_for_html():
    explorer = make(alt=lambda level: f"Grey < {level:g}.")
    assert "Grey &lt; 50." in explorer.status.value
    explorer.controls["level"].value = 60
    assert "Grey &lt; 60." in explorer.status.value and 'role="status"' in explorer.status.value


def test_an_error_is_told_and_the_last_picture_stays_until_the_next():
    def draw(level):
        if level == 60:
            raise ValueError("no <sixty>")
        return grey(int(level))

    explorer = make(draw)
    explorer.controls["level"].value = 60
    assert "Not drawn for Level = 60: ValueError: no &lt;sixty&gt;" in explorer.status.value
    assert (shown(explorer) == 50).all()
    explorer.controls["level"].value = 70
    assert (shown(explorer) == 70).all() and "Grey 70." in explorer.status.value


def test_an_error_in_the_first_picture_is_raised():
    with pytest.raises(ZeroDivisionError):
        make(draw=lambda level: 1 / 0)


def test_labels_have_room():
    controls = {"a": Slider("Temperature of the posterior", 0, 1, 0.1, 1), "b": Slider("B", 0, 10, 5, 5)}
    explorer = Explorer(lambda a, b: grey(1), controls, alt="")
    assert [control.style.description_width for control in explorer.controls.values()] == ["29ch", "29ch"]


def test_a_sentence_beside_the_picture_is_added_to_the_caption():
    explorer = make(draw=lambda level: (grey(int(level)), f"Measured: {level:g}."))
    assert "Grey 50. Measured: 50." in explorer.status.value
    explorer.controls["level"].value = 60
    assert "Grey 60. Measured: 60." in explorer.status.value and (shown(explorer) == 60).all()


def test_refresh_draws_anew_for_the_same_settings():
    ink = {"level": 50}
    explorer = make(draw=lambda level: grey(ink["level"]))
    ink["level"] = 90
    assert (shown(explorer) == 50).all()
    explorer.refresh()
    assert (shown(explorer) == 90).all() and explorer.values == {"level": 50}


def test_the_repr_is_fixed():
    assert repr(make(title="Greys")) == repr(make(title="Greys")) == "Explorer('Greys': Level)"


def test_the_contact_sheet_goes_from_end_to_end_and_leaves_the_controls_alone():
    explorer = make()
    sheet = plots.figure_to_image(explorer.contact_sheet())
    assert explorer.values == {"level": 50} and (shown(explorer) == 50).all()
    levels = [0, 20, 50, 80, 100, 120, 150, 180, 200]
    assert all(((sheet == level).all(axis=2).sum() >= 20 * 30) for level in levels)


def test_a_contact_sheet_moves_one_control_at_a_time():
    seen = []

    def draw(a, b):
        seen.append((a, b))
        return grey(1)

    explorer = Explorer(draw, {"a": Slider("A", 0, 1, 0.1, 0.5), "b": Choice("B", "xyzw", "y")}, alt="")
    seen.clear()
    explorer.contact_sheet()
    assert seen == [(0.0, "y"), (1.0, "y"), (0.5, "x"), (0.5, "z"), (0.5, "w")]  # (0.5, "y") is shown already


def test_a_setting_that_cannot_be_drawn_leaves_its_place_grey():
    def draw(level):
        if level == 200:
            raise ValueError
        return grey(int(level))

    sheet = plots.figure_to_image(make(draw).contact_sheet())
    assert ((sheet == 128).all(axis=2)).sum() >= 20 * 30 and (sheet == 200).all(axis=2).sum() < 20 * 30


def test_large_pictures_are_small_on_the_contact_sheet():
    explorer = make(draw=lambda level: grey(9, width=3000))
    assert plots.figure_to_image(explorer.contact_sheet()).shape[1] < 800


def test_the_rows_of_a_contact_sheet_are_the_controls():
    controls = {name: Slider(name, 0, 200, 100, 0) for name in "ab"}
    explorer = Explorer(lambda a, b: grey(int(a or b)), controls, alt="", thumbnail=15)
    sheet = plots.figure_to_image(explorer.contact_sheet())
    assert sheet.shape[1] < 4 * 120  # three of 15×10 pixels, magnified 8 times; more would fit
    assert ((sheet == 200).all(axis=2).sum(axis=1) == 120).sum() == 2 * 80  # one in each of two rows


def test_after_an_error_the_sheet_does_not_take_the_last_picture_for_the_current_one():
    def draw(level):
        if level == 200:
            raise ValueError
        return grey(int(level))

    explorer = make(draw)
    explorer.controls["level"].value = 200
    sheet = plots.figure_to_image(explorer.contact_sheet())
    assert (sheet == 50).all(axis=2).sum() < 2 * 80 * 120  # once, at its own setting, magnified, and not at 200


def test_what_a_notebook_stores_is_the_sheet_with_alt_text_beside_the_live_widget():
    explorer = make(title="Greys")
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "Explorer('Greys': Level)"
    assert ("application/vnd.jupyter.widget-view+json" in data) == EIGHT  # 7 has another way to display
    assert data["image/png"] == plots.render(explorer.contact_sheet())
    assert metadata == {"image/png": {"alt": "Greys for Level = 0, 20, 50, 80, 100, 120, 150, 180, 200. Grey 50."}}


def test_a_photograph_is_sent_and_stored_as_jpeg():
    explorer = Explorer(lambda level: grey(int(level)), {"level": Slider("Level", 0, 200, 10, 50)}, alt="Grey.")
    data, metadata = explorer._repr_mimebundle_()
    assert Image.open(io.BytesIO(explorer.image.value)).format == "JPEG"
    assert Image.open(io.BytesIO(data["image/jpeg"])).format == "JPEG" and "image/jpeg" in metadata


def test_a_flipbook_has_every_setting_and_starts_where_the_controls_are():
    explorer = make(title="Greys")
    book = explorer.flipbook()
    assert book.count("<img") == 21 and book.count('type="range"') == 1
    assert 'min="0" max="20" step="1" value="5" aria-valuetext="50"' in book
    assert explorer.values == {"level": 50} and (shown(explorer) == 50).all()


def test_a_flipbook_moves_one_control_at_a_time_and_shares_the_picture_they_start_on():
    controls = {"a": Slider("A", 0, 100, 50, 50), "b": Choice("B", [1, 2, 3, 4], 2)}
    book = Explorer(lambda a, b: grey(int(a) + b), controls, alt=lambda a, b: f"{a:g} and {b}").flipbook()
    assert book.count('type="range"') == 2 and book.count("<img") == 3 + 4 - 1
    assert all(f'alt="{text}"' in book for text in ("0 and 2", "100 and 2", "50 and 2", "50 and 1", "50 and 4"))


def test_a_current_setting_between_the_steps_of_a_flipbook_is_among_them():
    explorer = Explorer(lambda x: grey(int(x)), {"x": Slider("X", 0, 200, 1, 77)}, alt=lambda x: f"{x:g}")
    assert 'aria-valuetext="77"' in explorer.flipbook()


@pytest.mark.skipif(not EIGHT, reason="with ipywidgets 7 a notebook keeps the live widget alone")
def test_an_html_edition_of_a_notebook_shows_flipbooks_instead_of_widgets(monkeypatch):
    monkeypatch.setenv(FLIPBOOK, "1")
    source = """
        import numpy as np
        from klvae_edu.explore.controls import Slider
        from klvae_edu.explore.explorer import Explorer
        Explorer(lambda x: np.full((8, 8, 3), x, np.uint8), {"x": Slider("X", 0, 9, 1, 4)}, alt="Grey.")
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(inspect.cleandoc(source))])
    ExecutePreprocessor(timeout=300).preprocess(notebook)
    (output,) = notebook.cells[0].outputs
    assert set(output["data"]) == {"text/plain", "text/html"}
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert page.count('type="range"') == 1 and page.count('alt="Grey."') == 10
