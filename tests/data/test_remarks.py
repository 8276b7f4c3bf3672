"""Remarks of a data set: one warning for each kind, and counts."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image

from klvae_edu.data import image_dataset
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.remarks import RemarkCount


def test_the_first_of_each_kind_is_named_and_all_are_counted() -> None:
    count = RemarkCount()
    with pytest.warns(UserWarning) as caught:
        for number in range(5):
            count.add(f"{number}.tif", {"one kind": f"detail {number}"} | ({"another kind": "x"} if number > 2 else {}))
    assert [str(warning.message) for warning in caught] == [
        "0.tif: one kind (detail 0). Further images of this kind are not named",
        "3.tif: another kind (x). Further images of this kind are not named",
    ]
    assert count.summary() == "5 × one kind; 2 × another kind"


def test_without_remarks_there_is_nothing_to_say() -> None:
    count = RemarkCount()
    count.add("a.png", {})
    assert count.summary() is None


def test_a_folder_of_animations_brings_one_warning(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    for number in range(6):
        frames[0].save(tmp_path / f"{number}.gif", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(image_dataset(str(tmp_path), 8, length=10))
    assert len(caught) == 1
    images = AllImages(str(tmp_path), 8)
    with pytest.warns(UserWarning, match=r"only the first page or frame is read \(1 of 3\)"):
        for number in range(6):
            images.load(number)
    assert images.remarks.summary() == "6 × only the first page or frame is read"
