"""Slider and Choice: their widgets, and the settings that a contact sheet or a flipbook shows."""

from __future__ import annotations

import pytest

from klvae_edu.explore.controls import Choice, Slider


def test_a_slider_has_a_label_and_its_readout_shows_the_step():
    fine, coarse = Slider("Fine", 0, 1, 0.125, 1).widget(), Slider("Coarse", 0, 10, 5, 5).widget()
    assert (fine.description, fine.value, fine.readout_format) == ("Fine", 1, ".1f")
    assert (coarse.min, coarse.max, coarse.step, coarse.readout_format) == (0, 10, 5, ".0f")


def test_a_choice_starts_at_its_first_value_by_default_and_labels_its_values():
    values = [0.0, 0.01, 1.0]
    assert Choice("β", values).widget().value == 0.0
    assert Choice("β", values, 1.0).widget().value == 1.0
    assert [label for label, _ in Choice("β", values, format="{:g}".format).widget().options] == ["0", "0.01", "1"]


@pytest.mark.parametrize(
    ("slider", "count", "expected"),
    [
        (Slider("", 0, 10, 1, 0), 3, [0, 5, 10]),
        (Slider("", 0, 1, 0.1, 0), 4, [0, 0.3, 0.7, 1]),  # exactly 0.3, not the rounded sum of three steps
        (Slider("", 1, 4, 1, 1), 9, [1, 2, 3, 4]),  # fewer settings than asked for
    ],
)
def test_some_settings_go_from_end_to_end_on_the_steps_each_once(slider, count, expected):
    assert slider.evenly_spaced(count) == expected


def test_some_values_of_a_choice_go_from_end_to_end():
    assert Choice("", "abcde").evenly_spaced(3) == ["a", "c", "e"]
    assert Choice("", "ab").evenly_spaced(3) == ["a", "b"]


def test_the_current_setting_takes_its_place_among_them():
    assert Slider("", 0, 10, 1, 0).including(3, [0, 5, 10]) == [0, 3, 5, 10]
    assert Slider("", 0, 10, 1, 0).including(5, [0, 5, 10]) == [0, 5, 10]
    assert Choice("", "abcde").including("d", ["a", "c", "e"]) == ["a", "c", "d", "e"]


def test_settings_in_words():
    assert Slider("", 0, 1, 0.1, 0).text(0.30000000000000004) == "0.3"
    assert Choice("", [True, False], format={True: "yes", False: "no"}.get).text(True) == "yes"
