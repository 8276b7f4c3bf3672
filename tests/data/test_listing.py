"""The listing of a source's files: additions, removals and changes are told apart; other sources have none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from klvae_edu.data import save_image
from klvae_edu.data.listing import Listing, files_of, list_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        save_image(torch.zeros(3, 16, 16), tmp_path / "images" / name)
    (tmp_path / "images" / "notes.md").write_text("no image")
    return tmp_path / "images"


def test_nothing_changed_in_an_untouched_folder_or_a_copy_of_it(folder: Path, tmp_path: Path) -> None:
    before = list_files(str(folder))
    assert len(before.hashes) == 3
    (folder / "notes.md").write_text("not read")
    assert before.changes_to(list_files(str(folder))) == ""
    assert Listing.from_dict(before.to_dict()).changes_to(list_files(str(folder))) == ""


def test_what_was_added_changed_and_removed_is_counted_and_named(folder: Path) -> None:
    before = list_files(str(folder))
    (folder / "a.png").unlink()
    shutil.copy(folder / "b.png", folder / "d.png")
    os.utime(folder / "b.png", ns=(1, 1))  # written anew with as many bytes
    found = before.changes_to(list_files(str(folder)))
    assert found == f"1 added ({folder}/d.png), 1 changed ({folder}/b.png), 1 removed"


def test_of_many_files_three_are_named(folder: Path) -> None:
    before = list_files(str(folder))
    for number in range(5):
        shutil.copy(folder / "b.png", folder / f"e{number}.png")
    assert before.changes_to(list_files(str(folder))).startswith(f"5 added ({folder}/e0.png, ")
    assert before.changes_to(list_files(str(folder))).endswith(", …)")


def test_of_a_data_set_its_tables_count_and_of_an_archive_itself(folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", folder)
    assert files_of(archive) == [""]
    (tmp_path / "set").mkdir()
    for name in ("dataset_info.json", "data-00000.arrow", "README.md"):
        (tmp_path / "set" / name).touch()
    assert files_of(str(tmp_path / "set")) == ["data-00000.arrow"]


def test_images_that_are_in_no_file_have_no_listing(folder: Path) -> None:
    assert len(list_files("photos+dead-leaves").hashes) == 0
    assert files_of("owner/name") == []
    assert len(list_files(f"photos+{folder}").hashes) == 3
