"""Photographs from Debian packages: the manifest, Qt resource files, and what is fetched and left out."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest

from tools import photographs
from tools.course import CourseError
from tools.photographs import Photograph, fetch, main, manifest, resource_files

LICENCES = r"CC0-1\.0|public domain|CC-BY(-SA)?-\d\.\d|BSD-3-Clause|Expat|L?GPL-[23]\+?"


class TestTheManifest:
    def test_every_photograph_has_a_free_licence_and_a_holder(self) -> None:
        for row in manifest():
            assert re.fullmatch(LICENCES, row.licence), row
            assert row.holder and "@" not in row.holder, row

    def test_twenty_are_held_out_and_no_picture_comes_twice(self) -> None:
        rows = manifest()
        assert Counter(row.split for row in rows) == {"train": len(rows) - 20, "held-out": 20}
        assert len({row.name.lower() for row in rows}) == len({row.sha256 for row in rows}) == len(rows) > 80

    def test_no_album_of_private_people_is_in_it(self) -> None:
        assert "kphotoalbum" not in {row.package for row in manifest()}


# ---- Qt resource files -----------------------------------------------------------------------------------------------


def resource_file(files: dict[str, tuple[int, bytes]], version: int) -> bytes:
    """Write a resource file with one folder, "pictures", that holds `files`: flags and stored bytes by name."""
    names, payload, leaves = b"", b"", []

    def add_name(name: str) -> int:
        nonlocal names
        offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return offset

    changed = b"" if version == 1 else bytes(8)
    folder = struct.pack(">IH2I", add_name("pictures"), 2, len(files), 2) + changed
    for name, (flags, stored) in files.items():
        leaves.append(struct.pack(">IHHHI", add_name(name), flags, 0, 0, len(payload)) + changed)
        payload += struct.pack(">I", len(stored)) + stored
    tree = struct.pack(">IH2I", 0, 2, 1, 1) + changed + folder + b"".join(leaves)
    head = 20 if version < 3 else 24
    offsets = (head, head + len(tree), head + len(tree) + len(payload))
    return struct.pack(">4s4I", b"qres", version, *offsets) + bytes(head - 20) + tree + payload + names


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_are_read_stored_as_they_are_or_compressed(version: int) -> None:
    packed = struct.pack(">I", 5) + zlib.compress(b"leaf!")
    data = resource_file({"a.webp": (0, b"RIFF"), "b.png": (1, packed), "c.txt": (4, b"zstd")}, version)
    assert dict(resource_files(data)) == {"/pictures/a.webp": b"RIFF", "/pictures/b.png": b"leaf!"}


def test_another_format_is_named() -> None:
    with pytest.raises(CourseError, match=r"expected a Qt resource file .* b'PK"):
        list(resource_files(b"PK\x03\x04" + bytes(40)))


# ---- Fetching --------------------------------------------------------------------------------------------------------


def row(name: str, split: str, member: str, data: bytes) -> Photograph:
    return Photograph(name, split, "pictures", "1.0", member, hashlib.sha256(data).hexdigest(), "CC0-1.0", "somebody")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for apt-get and dpkg-deb: a package is a tar file, and version 1.0 of "pictures" is in the archive."""
    programs, packages = tmp_path / "bin", tmp_path / "packages"
    (packages / "root" / "usr").mkdir(parents=True)
    programs.mkdir()
    apt_get = f'#!/bin/sh\n[ -e "{packages}/$2" ] || exit 100\ntar -C "{packages}/root" -cf pictures_1.deb .\n'
    (programs / "apt-get").write_text(apt_get)
    (programs / "dpkg-deb").write_text('#!/bin/sh\nmkdir -p "$3" && tar -C "$3" -xf "$2"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    (packages / "pictures=1.0").touch()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return packages


def test_photographs_are_written_by_split_and_what_differs_is_left_out(archive: Path, tmp_path: Path) -> None:
    files = archive / "root" / "usr"
    (files / "a.jpg").write_bytes(b"a")
    (files / "b.rcc").write_bytes(resource_file({"b.webp": (0, b"b")}, version=3))
    rows = [
        row("a.jpg", "train", "usr/a.jpg", b"a"),
        row("b.webp", "held-out", "usr/b.rcc!/pictures/b.webp", b"b"),
        row("other.jpg", "train", "usr/a.jpg", b"not a"),
        row("gone.jpg", "train", "usr/gone.jpg", b"gone"),
        row("gone.webp", "train", "usr/b.rcc!/pictures/gone.webp", b"gone"),
    ]
    missing = fetch(rows, tmp_path / "out")
    assert (tmp_path / "out" / "train" / "a.jpg").read_bytes() == b"a"
    assert (tmp_path / "out" / "held-out" / "b.webp").read_bytes() == b"b"
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a.jpg", "b.webp"]
    assert missing == [
        "other.jpg: another picture in pictures",
        "gone.jpg: missing in pictures",
        "gone.webp: missing in pictures",
    ]


def test_a_version_that_is_gone_is_replaced_by_the_current_one_and_this_is_said(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "root" / "usr" / "a.jpg").write_bytes(b"a")
    (archive / "pictures=1.0").rename(archive / "pictures")
    assert fetch([row("a.jpg", "train", "usr/a.jpg", b"a")], tmp_path / "out") == []
    assert "pictures=1.0: not in the archive; trying its current version" in capsys.readouterr().out


def test_a_package_that_cannot_be_downloaded_is_an_error_that_names_it(archive: Path, tmp_path: Path) -> None:
    (archive / "pictures=1.0").unlink()
    with pytest.raises(CourseError, match="pictures: cannot be downloaded"):
        fetch([row("a.jpg", "train", "usr/a.jpg", b"a")], tmp_path / "out")


def test_a_folder_in_use_is_refused_before_anything_is_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "fetch", lambda *_: pytest.fail("nothing is to be fetched"))
    assert main([str(tmp_path)]) == 1
    assert "expected a new folder" in capsys.readouterr().err
