"""Folders of images: links are followed, names need not be text, and what is left out is counted once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from klvae_edu.data import image_dataset
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.crops import hold_out
from klvae_edu.data.folders import archives, counted, has_images, image_names, unread_files

NOT_TEXT = os.fsdecode(b"gr\xfc\xdfe.png")  # Latin-1
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and names as POSIX has them")


def images(folder: Path, *names: str) -> Path:
    """Make images of 8x8 pixels with these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name, format="PNG")
    return folder


def left_out_of(folder: Path) -> str:
    """Return what the one warning about a folder says."""
    with pytest.warns(UserWarning, match="left out: ") as caught:
        image_names(folder)
    (warning,) = caught
    return str(warning.message).split("left out: ")[1]


# --- links


def test_folders_behind_links_are_read_under_the_name_of_the_link(tmp_path: Path) -> None:
    images(tmp_path / "store" / "cats", "0.png", "deep/1.png")
    images(tmp_path / "data" / "dogs", "0.png")
    (tmp_path / "data" / "cats").symlink_to(tmp_path / "store" / "cats")
    assert image_names(tmp_path / "data") == ["cats/0.png", "cats/deep/1.png", "dogs/0.png"]


def test_a_folder_that_can_be_reached_twice_is_read_once_and_a_real_one_keeps_its_name(tmp_path: Path) -> None:
    images(tmp_path / "store", "0.png")
    images(tmp_path / "data" / "real", "1.png")
    for name, target in (("a", "store"), ("b", "store"), ("another", "data/real")):
        (tmp_path / "data" / name).symlink_to(tmp_path / target)
    assert image_names(tmp_path / "data") == ["a/0.png", "real/1.png"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    images(tmp_path / "one", "0.png")
    images(tmp_path / "two", "1.png")
    (tmp_path / "one" / "two").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "one").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "self").symlink_to(tmp_path / "one")
    with pytest.warns(UserWarning, match=r"left out: 2 × upward link"):
        assert image_names(tmp_path / "one") == ["0.png", "two/1.png"]


def test_a_link_to_a_folder_around_the_images_does_not_bring_in_all_of_it(tmp_path: Path) -> None:
    images(tmp_path, "outside.png", "data/inside.png")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match=r"1 images are read; left out: 1 × upward link"):
        assert image_names(tmp_path / "data") == ["inside.png"]


def test_a_link_to_a_file_is_a_file_and_a_broken_one_is_met_when_it_is_read(tmp_path: Path) -> None:
    images(tmp_path, "0.png")
    (tmp_path / "1.png").symlink_to("0.png")
    (tmp_path / "2.png").symlink_to("nowhere.png")
    (tmp_path / "3").symlink_to("nowhere")
    with pytest.warns(UserWarning, match="left out: 1 × broken link"):
        assert image_names(tmp_path) == ["0.png", "1.png", "2.png"]


# --- what is left out


def test_it_is_counted_by_kind_and_what_a_system_leaves_behind_is_not_worth_a_word(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.jpg", ".hidden.png", ".thumbnails/0.png", "without")
    for name in ("a.txt", "b.TXT", "c.txt", "d.json", "e.json", ".DS_Store", "._0.png", "Thumbs.db"):
        (tmp_path / name).write_text("")
    found = left_out_of(tmp_path)
    assert found.startswith("3 .txt, 2 .json, ")
    assert {*found.split(", ")[2:]} == {"1 × hidden file", "1 × hidden folder", "1 × file without suffix"}


def test_where_nothing_is_left_out_nothing_is_said(tmp_path: Path) -> None:
    images(tmp_path, "0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_names(tmp_path) == ["0.png"]


def test_training_and_held_out_images_bring_one_warning(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png", "a.txt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()  # once for equal texts, as in a program
        for split in ("train", "held-out"):
            image_dataset(str(tmp_path), 8, split=split)
    assert len(caught) == 1


def test_many_kinds_are_summed_up(tmp_path: Path) -> None:
    images(tmp_path, "0.png")
    for number in range(20):
        (tmp_path / f"{number}.kind{number:02}").write_text("")
    assert left_out_of(tmp_path).endswith(", 12 of other kinds")


def test_a_folder_without_images_is_an_error_that_says_what_is_in_it(tmp_path: Path) -> None:
    for name in ("a.rar", "b.rar", "c.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"found no image files .* in this folder or its subfolders; it has 2 .rar, 1"):
        image_names(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root opens every folder")
def test_a_folder_that_cannot_be_opened_is_counted(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "locked/1.png")
    (tmp_path / "locked").chmod(0)
    try:
        assert left_out_of(tmp_path) == "1 × locked folder"
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_images_and_archives_that_another_program_has_not_read_are_counted(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png", "2.jpg", "notes.txt")
    (tmp_path / "a.tar").write_bytes(b"")
    assert unread_files(tmp_path, [str(tmp_path / "0.png")]) == {".jpg": 1, ".png": 1, ".tar": 1}
    assert not unread_files(tmp_path, ["0.png", "1.png", "2.jpg", "a.tar", "metadata.csv"])


def test_archives_are_found_by_their_names_in_any_case_and_said_beside_images(tmp_path: Path) -> None:
    names = ("a.tgz", "B.ZIP", "c.tar.bz2", "d.TAR.XZ", "deep/e.tar", "f.parquet")
    images(tmp_path, "0.png", "deep/1.tar.png", "2.gz", *names)
    assert sorted(archives(tmp_path)) == sorted(str(tmp_path / name) for name in names)
    assert image_names(tmp_path) == ["0.png", "deep/1.tar.png"]
    assert "1 .tar.xz (read by its own name)" in counted(unread_files(tmp_path, []))


def test_a_warning_comes_once_also_after_warnings_were_caught_in_between(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png", "a.txt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image_names(tmp_path)
        image_names(tmp_path)
    assert len(caught) == 1


# --- held-out images that cannot be read


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_without_a_readable_image_gets_one_of_the_other_part(tmp_path: Path, part: int) -> None:
    names = [f"{number}.png" for number in range(20)]
    images(tmp_path, *names)
    for number in hold_out(names)[part]:
        (tmp_path / names[number]).write_bytes(b"damaged")
    use = ("training", "held-out")[part]
    with pytest.warns(
        UserWarning, match=rf"none of the \d+ {use} images can be read; image \d+\.png takes their place"
    ):
        parts = [image_dataset(str(tmp_path), 8, split=split, length=4) for split in ("train", "held-out")]
    assert [len([*crops]) for crops in parts] == [4, 4]
    train, held_out = ({*crops.images.names} for crops in parts)
    both = "" if part else {names[number] for number in hold_out(names)[1]}  # the only image that can be read
    assert train & held_out == {*both} and len(train | held_out) == 20


def test_a_folder_has_images_at_any_depth_or_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    assert not has_images(tmp_path)
    assert has_images(images(tmp_path, "a/b/c.png"))


# --- names


def make_or_skip(make: Callable[[], object]) -> None:
    try:
        make()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names that are text only")


def test_names_that_are_no_text_are_read_split_and_printed(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png")
    make_or_skip(lambda: images(tmp_path, NOT_TEXT))
    parts = [image_dataset(str(tmp_path), 8, split=split, length=4) for split in ("train", "held-out")]
    assert all(list(part) for part in parts)
    assert sorted(name for part in parts for name in part.images.names) == ["0.png", "1.png", NOT_TEXT]
    found = AllImages(str(tmp_path), 8)
    assert [*found.names] == ["0.png", "1.png", "gr\\udcfc\\udcdfe.png"]
    assert found.load(2).shape == (3, 8, 8)


def test_an_unreadable_file_whose_name_is_no_text_is_reported_in_text(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png")
    make_or_skip(lambda: (tmp_path / NOT_TEXT).write_bytes(b""))
    parts = [image_dataset(str(tmp_path), 8, split=split, length=4) for split in ("train", "held-out")]
    reports = "\n".join(part.report() or "" for part in parts if list(part))
    assert "gr\\udcfc\\udcdfe.png: not in any image format" in reports
    reports.encode()


def test_names_that_are_text_keep_their_place() -> None:
    names = [f"{number}-größe.jpg" for number in range(60)]
    assert hold_out(names)[1] == [22, 36, 38]
