"""Photograph: uploads with ipywidgets 7 and 8, and panels that are redrawn for another photograph."""

from __future__ import annotations

import io

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from klvae_edu import AutoencoderKL
from klvae_edu.data.files import UnreadableImage, center_square
from klvae_edu.explore import photograph
from klvae_edu.explore.photograph import Photograph, encode, read, uploaded_files


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(photograph, "SIDE", 32)


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL.from_preset("tiny", seed=0)


def file(level=255, size=(40, 40), format="PNG", **options):
    stream = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(stream, format, **options)
    return stream.getvalue()


def upload(shown, *files):
    """Upload files as the browser does; `files` are (name, content)."""
    if int(ipywidgets.__version__.split(".")[0]) >= 8:
        kinds = {"type": "image/png", "last_modified": 1_700_000_000_000}
        value = [
            {"name": name, "size": len(content), "content": memoryview(content), **kinds} for name, content in files
        ]
        shown.button.set_state({"value": value})
    else:
        metadata = [{"name": name, "type": "image/png", "size": len(content)} for name, content in files]
        contents = [memoryview(content) for _, content in files]
        shown.button.set_state({"metadata": metadata, "data": contents, "_counter": shown.button._counter + 1})


def grey(level=0.0):
    return torch.full((3, 32, 32), level)


def is_all(shown, level):
    return (shown.image - level).abs().max() < 1e-5  # resizing rounds


def displayed(shown):
    return np.asarray(Image.open(io.BytesIO(shown.picture.value)))


def test_an_upload_takes_the_place_of_the_photograph():
    shown = Photograph(grey(), "grey")
    assert "Photograph: grey, the square in the middle at 32×32 pixels." in shown.status.value
    upload(shown, ("white.png", file(255)))
    assert shown.image.shape == (1, 3, 32, 32) and is_all(shown, 1)
    assert displayed(shown).shape == (32, 32, 3) and (displayed(shown) == 255).all()
    assert "Photograph: white.png" in shown.status.value and 'role="status"' in shown.status.value


def test_one_upload_after_the_other():
    shown = Photograph(grey())
    for level in (255, 0, 255):
        upload(shown, (f"{level}.png", file(level)))
        assert is_all(shown, level / 127.5 - 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("notes.txt", b"not an image")], "notes.txt: not in any image format that is read"),
        ([("broken.png", file()[:60])], "broken.png: cannot be read"),
        ([("empty.png", b"")], "empty.png: not in any image format"),
        ([("a.png", file()), ("b.png", file(0))], "expected one photograph, got 2 files."),
    ],
)
def test_what_is_no_photograph_is_told_and_the_last_one_stays(files, message):
    shown = Photograph(grey(), "grey")
    before = shown.picture.value
    upload(shown, *files)
    assert message in shown.status.value and "The photograph stays: grey." in shown.status.value
    assert is_all(shown, 0) and shown.picture.value == before
    upload(shown, ("white.png", file()))
    assert is_all(shown, 1) and "stays" not in shown.status.value


def test_a_huge_photograph_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(photograph, "MAX_PIXELS", 1_000_000)
    shown = Photograph(grey(), "grey")
    upload(shown, ("huge.png", file(size=(2000, 501))))
    advice = "shrink it to 1 million or fewer, or save it as a JPEG that is not progressive"
    assert f"huge.png: 2000×501 pixels; {advice}" in shown.status.value
    for options in ({}, {"format": "JPEG", "progressive": True}):
        with pytest.raises(UnreadableImage, match="2000×501"):
            read(file(size=(2000, 501), **options), "huge")


def test_a_large_photograph_is_reduced_while_it_is_read(monkeypatch):
    monkeypatch.setattr(photograph, "MAX_PIXELS", 1_000_000)  # less than the JPEG has, more than its decoder gives
    assert read(file(size=(4000, 2100), format="JPEG"), "large.jpg").shape == (3, 525, 1000)
    monkeypatch.undo()
    assert read(file(size=(4000, 2100)), "large.png").shape == (3, 525, 1000)


def test_a_bomb_of_pixels_is_refused_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 40×40 pixels get Pillow's warning, 100×100 its error
    assert read(file(), "large.png").shape == (3, 40, 40)
    with pytest.raises(UnreadableImage, match=r"bomb\.png: cannot be read: .*exceeds limit"):
        read(file(size=(100, 100)), "bomb.png")
    assert not recwarn.list


def test_an_empty_upload_changes_nothing():
    shown = Photograph(grey(), "grey")
    upload(shown, ("white.png", file()))
    upload(shown)
    assert is_all(shown, 1) and "white.png" in shown.status.value


def test_the_content_counts_and_not_the_name():
    shown = Photograph(grey())
    upload(shown, ("picture.txt", file(format="JPEG")))
    assert is_all(shown, 1)


def test_a_name_from_elsewhere_is_escaped():
    shown = Photograph(grey())
    upload(shown, ("<b>.png", file()))
    assert "&lt;b&gt;.png" in shown.status.value


def test_an_unexpected_error_is_told_as_well(monkeypatch):
    monkeypatch.setattr(photograph, "center_square", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Photograph(grey())
    monkeypatch.undo()
    shown = Photograph(grey(), "grey")
    monkeypatch.setattr(photograph, "center_square", lambda *arguments: 1 / 0)
    upload(shown, ("white.png", file()))
    assert "ZeroDivisionError: division by zero. The photograph stays: grey." in shown.status.value


def test_both_shapes_of_an_uploads_value_are_read():
    seven = {"a.png": {"metadata": {"name": "a.png", "size": 3}, "content": b"abc"}}
    eight = ({"name": "a.png", "type": "image/png", "size": 3, "content": memoryview(b"abc")},)
    assert uploaded_files(seven) == uploaded_files(eight) == [("a.png", b"abc")]
    assert uploaded_files({}) == uploaded_files(()) == []


def test_followers_are_told_of_another_photograph_and_a_new_one_takes_an_old_ones_place():
    shown, told = Photograph(grey()), []
    shown.follow("channels", lambda: told.append("old"))
    shown.follow("channels", lambda: told.append("new"))
    shown.follow("bits", lambda: told.append("bits"))
    upload(shown, ("white.png", file()))
    assert told == ["new", "bits"]
    upload(shown, ("notes.txt", b""))
    assert told == ["new", "bits"]


def test_a_photograph_is_encoded_once_for_each_model_and_again_when_it_changes(vae, monkeypatch):
    calls = []
    monkeypatch.setattr(photograph, "encode", lambda vae, image: calls.append(vae) or encode(vae, image))
    shown = Photograph(grey())
    assert shown.encoded(vae) is shown.encoded(vae) and calls == [vae]
    first = shown.encoded(vae)
    shown.replace(grey(1.0), "white")
    assert len(calls) == 1  # encoding is lazy
    assert shown.encoded(vae) is not first and calls == [vae, vae]
    assert (shown.encoded(vae).image == 1).all()


def test_what_is_known_of_a_model_goes_with_it():
    shown, other = Photograph(grey()), AutoencoderKL.from_preset("tiny", seed=1)
    shown.encoded(other)
    del other
    assert len(shown._encoded) == 0


def test_encoding_gives_the_mode_and_its_picture_in_the_models_dtype(vae):
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = encode(vae, image)
    assert torch.equal(found.z, vae.encode(image[None]).latent_dist.mode())
    assert torch.equal(found.decoded, vae(image[None]).sample)
    assert encode(vae.clone().double(), image[None]).decoded.dtype == torch.float64
    loss = vae.decode(found.z).sample.sum()  # the result allows a backward pass
    loss.backward()
    vae.zero_grad(set_to_none=True)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (32, 32), (3, 30, 32)])
def test_other_shapes_are_a_value_error(vae, shape):
    with pytest.raises(ValueError, match=r"one image \(3, H, W\) or \(1, 3, H, W\), with H and W multiples of 4"):
        encode(vae, torch.zeros(shape))


def test_the_square_is_the_middle_of_the_photograph():
    wide = torch.full((3, 10, 30), -1.0)
    wide[:, :, 10:20] = 1.0
    assert (center_square(wide, 10) == 1).all() and (center_square(wide.transpose(1, 2), 5) == 1).all()
    assert center_square(wide, 64).shape == (3, 64, 64)
    with pytest.raises(ValueError, match=r"expected an image \(3, H, W\), got shape \(1, 3, 8, 8\)"):
        center_square(torch.zeros(1, 3, 8, 8), 8)


def test_a_reader_without_a_kernel_sees_the_photograph_with_alt_text():
    shown = Photograph(grey(), "a cat")
    data, metadata = shown._repr_mimebundle_()
    assert data["text/plain"] == repr(shown) == "Photograph()"
    assert data["image/jpeg"] == shown.picture.value
    assert metadata["image/jpeg"]["alt"] == "Photograph: a cat, the square in the middle at 32×32 pixels."


def test_the_button_has_a_readable_label():
    button = Photograph(grey()).button
    assert button.description == "Upload a photograph" and button.accept == "image/*" and not button.multiple
