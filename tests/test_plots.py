"""Plots: image grids without resampling, alt text on every picture, matplotlib's global state unchanged."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from klvae_edu import plots


def checkerboard(size):
    return ((torch.arange(size)[:, None] + torch.arange(size)) % 2 * 2.0 - 1.0).expand(3, size, size)


def pixels_of(fig):
    return np.asarray(Image.open(io.BytesIO(plots.render(fig))).convert("RGB"))


# to_image


def test_minus_one_is_black_zero_is_grey_and_one_is_white():
    image = plots.to_image(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3).expand(3, 1, 3))
    assert image.dtype == np.uint8 and image.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def test_values_outside_are_clipped_and_nan_is_black():
    values = torch.tensor([-7.0, 7.0, float("inf"), float("-inf"), float("nan")])
    assert plots.to_image(values.view(1, 1, 5))[0, :, 0].tolist() == [0, 255, 255, 0, 0]


def test_height_width_and_colour_keep_their_places():
    image = torch.full((3, 2, 4), -1.0)
    image[1, 0, 3] = 1.0
    pixels = plots.to_image(image)
    assert pixels.shape == (2, 4, 3) and pixels[0, 3].tolist() == [0, 255, 0] and pixels.sum() == 255


def test_a_gradient_or_half_precision_is_no_obstacle():
    assert plots.to_image(torch.ones(3, 2, 2, dtype=torch.bfloat16, requires_grad=True)).min() == 255


@pytest.mark.parametrize("image", [torch.zeros(2, 3, 8, 8), torch.zeros(4, 8, 8), torch.zeros(3, 8, 8).byte()])
def test_another_shape_or_type_is_an_error_that_says_so(image):
    with pytest.raises(ValueError, match=r"\(3, H, W\) or \(1, H, W\).*got shape"):
        plots.to_image(image)


# image_grid


def test_every_pixel_becomes_a_square_of_whole_screen_pixels():
    image = plots.to_image(checkerboard(20))
    pixels = pixels_of(plots.image_grid([[image]]))
    expected = image.repeat(6, axis=0).repeat(6, axis=1)
    assert pixels.shape == (120 + 16, 120 + 16, 3)
    assert (pixels[8:-8, 8:-8] == expected).all()


def test_large_images_are_neither_shrunk_nor_magnified():
    image = plots.to_image(checkerboard(200))
    assert (pixels_of(plots.image_grid([[image]]))[8:-8, 8:-8] == image).all()


def test_a_smaller_image_fills_its_cell_by_whole_factors():
    small = plots.to_image(checkerboard(60))
    pixels = pixels_of(plots.image_grid([[checkerboard(200), small]]))
    expected = small.repeat(3, axis=0).repeat(3, axis=1)
    assert (pixels[18 : 18 + 180, 8 + 200 + 8 + 10 :][:, :180] == expected).all()


def test_labels_titles_and_captions_leave_the_images_as_they_are():
    image = plots.to_image(checkerboard(128))
    texts = {
        "row_labels": ["a", "b"],
        "column_titles": ["one", "two"],
        "captions": [["1 dB", "2 dB"], ["3 dB", "4 dB"]],
    }
    pixels = pixels_of(plots.image_grid([[image, image], [image, image]], **texts))
    windows = np.lib.stride_tricks.sliding_window_view(pixels[:, :, 0], (128, 128))
    hits = (windows == image[:, :, 0]).all(axis=(2, 3)).sum()
    assert hits == 4


def test_a_batch_is_a_row():
    assert pixels_of(plots.image_grid([torch.zeros(3, 3, 128, 128)])).shape == (144, 3 * 136 + 8, 3)


@pytest.mark.parametrize("rows", [[], [[]], [[torch.zeros(3, 8, 8)], []]])
def test_an_empty_grid_is_an_error(rows):
    with pytest.raises(ValueError, match="at least one image"):
        plots.image_grid(rows)


@pytest.mark.parametrize("texts", [{"row_labels": ["a", "b"]}, {"column_titles": ["a"]}, {"captions": [["a"], ["b"]]}])
def test_labels_that_do_not_match_are_an_error_that_counts_them(texts):
    with pytest.raises(ValueError, match=r"(row_labels|column_titles|captions): expected \d, got \d"):
        plots.image_grid([torch.zeros(2, 3, 8, 8)], **texts)


def test_an_array_that_is_no_image_is_an_error():
    with pytest.raises(ValueError, match=r"\(H, W, 3\) of uint8, got \(8, 8\) in float64"):
        plots.image_grid([[np.zeros((8, 8))]])


def test_images_of_other_channels_are_grey_rows_with_their_names():
    bands = torch.stack([torch.full((128, 128), value) for value in (-1.0, 0.0, 1.0, 0.5)])
    fig = plots.image_grid([[bands, -bands]], column_titles=["original", "model"], captions=[["a", "b"]])
    texts = [text.get_text() for text in fig.texts]
    assert texts == ["band 1", "original", "model", "band 2", "band 3", "band 4", "a", "b"]
    as_rows = [[image[band : band + 1] for image in (bands, -bands)] for band in range(4)]
    names = [f"band {band}" for band in range(1, 5)]
    by_hand = plots.image_grid(
        as_rows, row_labels=names, column_titles=["original", "model"], captions=[(), (), (), ("a", "b")]
    )
    assert plots.render(fig) == plots.render(by_hand)


def test_bands_follow_the_name_of_their_row_and_other_rows_keep_theirs():
    fig = plots.image_grid([torch.zeros(2, 2, 8, 8), torch.zeros(2, 1, 8, 8)], row_labels=["held-out", "model"])
    assert [text.get_text() for text in fig.texts] == ["held-out band 1", "held-out band 2", "model"]


def test_a_row_of_images_with_different_numbers_of_bands_is_an_error():
    with pytest.raises(ValueError, match=r"one number of channels in a row, got \[3, 5\]"):
        plots.image_grid([[torch.zeros(5, 8, 8), torch.zeros(3, 8, 8)]])


def test_side_by_side_is_a_row_with_names():
    fig = plots.side_by_side({"image": checkerboard(8), "reconstruction": checkerboard(8)})
    assert [text.get_text() for text in fig.texts] == ["image", "reconstruction"]


# figures


def test_the_readers_settings_are_left_alone_and_no_backend_is_chosen():
    before = dict(matplotlib.rcParams)
    fig, axes = plots.figure(1, 2, (5, 2))
    axes[0].plot([1, 2])
    plots.render(fig)
    plots.side_by_side({"x": checkerboard(8)})
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys; from klvae_edu import exercises, plots; plots.figure()\n"
        "assert not {'matplotlib.pyplot', 'ipywidgets', 'IPython'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_take_the_palettes_colours_in_order():
    _, axes = plots.figure()
    lines = [axes.plot([0, 1])[0].get_color() for _ in plots.PALETTE]
    assert tuple(lines) == plots.PALETTE


def test_the_readers_settings_do_not_change_the_picture():
    fig, axes = plots.figure()
    axes.plot([1, 2])
    with matplotlib.rc_context({"savefig.dpi": 30, "savefig.bbox": "tight", "savefig.facecolor": "red"}):
        assert pixels_of(fig).shape == (350, 600, 3)


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_the_same_figure_gives_the_same_bytes(format):
    def picture():
        fig, axes = plots.figure()
        axes.plot([1, 3, 2])
        return plots.render(fig, format)

    first = picture()
    assert first == picture()
    assert b"Software" not in first and b"atplotlib" not in first


def test_a_figure_becomes_a_frame():
    fig, _ = plots.figure(size=(3, 2))
    frame = plots.figure_to_image(fig)
    assert frame.shape == (200, 300, 3) and frame.dtype == np.uint8 and frame.max() == 255 > frame.min()
    assert (frame == pixels_of(fig)).all()


# show


def test_outside_ipython_a_figure_is_only_closed(capsys):
    import matplotlib.pyplot as plt

    fig = plt.figure()
    plots.show(fig, "Nothing.")
    assert not plt.get_fignums() and capsys.readouterr().out == ""


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_picture_without_alt_text_is_an_error(alt):
    with pytest.raises(ValueError, match="alt: expected a sentence"):
        plots.show(plots.figure()[0], alt)


def test_an_unknown_format_is_an_error():
    with pytest.raises(ValueError, match="'png' or 'jpeg', got 'svg'"):
        plots.show(plots.figure()[0], "A figure.", format="svg")


def test_in_ipython_it_is_an_image_with_alt_text_and_the_same_words_as_a_caption():
    code = """
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
InteractiveShell.instance()
import matplotlib.pyplot as plt
from klvae_edu import plots
for format in "png", "jpeg":
    fig, ax = plt.subplots()
    with capture_output() as captured:
        plots.show(fig, "A < B", format)
    output, caption = captured.outputs
    mime = f"image/{format}"
    assert list(output.data) == [mime] and isinstance(output.data[mime], bytes)
    assert output.metadata == {mime: {"alt": "A < B"}}
    assert caption.data == {"text/html": "<p><small>A &lt; B</small></p>", "text/plain": "A < B"}
    assert captured.stdout == captured.stderr == "" and not plt.get_fignums()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Charts


def test_curves_have_labels_and_dashes_of_their_own():
    axes = plots.lines({"a": [1, 2], "b": torch.tensor([2.0, 3.0])}, x=[5, 6], ylabel="y", dashed=("b",)).axes[0]
    a, b = axes.get_lines()
    assert (a.get_linestyle(), b.get_linestyle()) == ("-", "--")
    assert a.get_xdata().tolist() == [5, 6] and b.get_ydata().tolist() == [2, 3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_ylabel() == "y" and axes.get_yscale() == "linear"


def test_curves_can_be_told_apart_without_colours():
    ink = []
    for name in "abcd":
        fig = plots.lines({name: [1, 1] for name in "abcd"})
        for line in fig.axes[0].lines:
            line.set(color="black", visible=line.get_label() == name)
        fig.axes[0].get_legend().remove()
        ink.append(int((pixels_of(fig)[:, :, 0] < 100).sum()))
    assert min(np.diff(sorted(ink))) > 20


def test_one_curve_has_no_legend_and_counts_from_zero():
    axes = plots.lines({"a": [1, 10, 100]}, log=True).axes[0]
    assert axes.get_legend() is None and axes.get_yscale() == "log"
    assert axes.get_lines()[0].get_xdata().tolist() == [0, 1, 2]


def test_bars_stand_from_the_top_in_their_order():
    axes = plots.bars({"first": 1, "second": torch.tensor(3.0)}, xlabel="dB").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1, 3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.yaxis_inverted()


def test_maps_share_their_range_of_colours_or_not():
    fields = {"low": torch.zeros(2, 2), "high": torch.full((2, 2), 5.0)}
    together = [axes.images[0].get_clim() for axes in plots.maps(fields).axes if axes.images]
    alone = [axes.images[0].get_clim() for axes in plots.maps(fields, shared=False).axes if axes.images]
    assert together == [(0, 5)] * 2 and alone[0][0] <= 0 <= alone[0][1] < alone[1][1]
    assert [axes.get_title() for axes in plots.maps(fields).axes if axes.images] == ["low", "high"]
