"""panels: each slider applies a function of `latents` without encoding again, and follows a Photograph."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from klvae_edu import AutoencoderKL, latents
from klvae_edu.explore import panels, photograph
from klvae_edu.explore.photograph import Photograph, encode
from klvae_edu.metrics import psnr
from klvae_edu.plots import to_image

SIDE = 32


def noise(seed):
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


FIRST, SECOND = noise(0), noise(1)

PANELS = {
    "channels": lambda vae, image: panels.channels(vae, image),
    "temperature": lambda vae, image: panels.temperature(vae, image),
    "interpolation": lambda vae, image: panels.interpolation(vae, image, SECOND),
    "pixel": lambda vae, image: panels.pixel(vae, image),
    "bits": lambda vae, image: panels.bits(vae, image),
}


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photograph, "SIDE", SIDE)
        patch.setattr(panels, "SIDE", SIDE)
        yield


@pytest.fixture(scope="module")
def vae():
    model = AutoencoderKL.from_preset("tiny", seed=0)
    model.config = dataclasses.replace(model.config, scaling_factor=0.5)
    return model


@pytest.fixture
def encodings(vae, monkeypatch):
    """List of calls: it grows by one when the model encodes."""
    calls, true = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda *arguments: calls.append(1) or true(*arguments))
    return calls


def left(explorer):
    """Return the left picture before JPEG compression."""
    return explorer.pixels[:SIDE, :SIDE]


def right(explorer):
    return explorer.pixels[:SIDE, -SIDE:]


def decoded(vae, z):
    with torch.no_grad():
        return to_image(vae.decode(z).sample[0])


def move(explorer, **settings):
    for name, setting in settings.items():
        explorer.controls[name].value = setting


def test_channels_are_shifted_in_their_deviations_and_scaled(vae):
    panel, z = panels.channels(vae, FIRST), encode(vae, FIRST).z
    move(panel, channel=2, shift=-0.5, scale=2)
    edited = latents.edit_channel(z, 2, -0.5 * z[:, 2].std().item(), 2)
    assert (left(panel) == decoded(vae, edited)).all()


def test_channels_start_with_a_shift_that_can_be_seen_and_come_back_to_the_decoded_picture(vae):
    panel = panels.channels(vae, FIRST)
    assert not (left(panel) == to_image(encode(vae, FIRST).decoded[0])).all()
    move(panel, shift=0)
    assert (left(panel) == to_image(encode(vae, FIRST).decoded[0])).all()


def test_muting_this_channel_leaves_its_mean_and_muting_the_others_leaves_this_one(vae):
    panel, z = panels.channels(vae, FIRST), encode(vae, FIRST).z
    move(panel, channel=1, shift=0, mute=panels.MUTE_THIS)
    assert (left(panel) == decoded(vae, latents.edit_channel(z, 1, mute=True))).all()
    move(panel, mute=panels.MUTE_OTHERS)
    alone = z.mean((2, 3), keepdim=True).expand_as(z).clone()
    alone[:, 1] = z[:, 1]
    assert np.abs(left(panel).astype(int) - decoded(vae, alone)).max() <= 1


def test_all_channels_are_shown_and_the_chosen_one_is_framed(vae):
    panel = panels.channels(vae, FIRST)
    move(panel, shift=0)
    frames = []
    for channel in range(4):
        move(panel, channel=channel)
        sheet = panel.pixels[:, SIDE + 8 :]
        frames.append((sheet == (213, 94, 0)).all(axis=2))
        assert frames[-1].any() and f"{channel} framed" in panel.status.value
    assert sum(frames).max() == 1  # in four places


def test_temperature_scales_one_noise(vae):
    panel, found = panels.temperature(vae, FIRST), encode(vae, FIRST)
    drawn = torch.randn(found.z.shape, generator=torch.Generator().manual_seed(3))
    move(panel, seed=3, temperature=2.0)
    assert (left(panel) == decoded(vae, latents.with_temperature(found.posterior, 2.0, drawn))).all()
    assert (right(panel) == to_image(found.decoded[0])).all()
    move(panel, temperature=0.0)
    assert (left(panel) == right(panel)).all() and "PSNR inf dB" in panel.status.value


def test_temperatures_go_on_until_the_noise_is_twice_as_strong_as_the_latent(vae):
    narrow = vae.clone()
    with torch.no_grad():
        narrow.quant_conv.bias[4:] -= 16  # standard deviations e⁸ times as small
    for model in (vae, narrow):
        found = encode(model, FIRST)
        share = (found.posterior.std.square().mean().sqrt() / found.z.std()).item()
        values = [value for _, value in panels.temperature(model, FIRST).controls["temperature"].options]
        assert values[:5] == [0, 0.5, 1, 2, 5][: len(values)]
        assert values[-1] >= 2 / share and (values[-2] < 2 / share or len(values) == 4)
    assert values[-1] > 1000 and all(b / a in (2, 2.5) for a, b in itertools.pairwise(values[1:]))


def test_latents_are_mixed_along_line_and_arc_beside_the_decoded_pixels_mixed(vae):
    panel = panels.interpolation(vae, FIRST, SECOND)
    first, second = encode(vae, FIRST), encode(vae, SECOND)
    a, b = first.z, second.z
    move(panel, t=0.25)
    assert (left(panel) == decoded(vae, latents.lerp(a, b, 0.25))).all()
    assert (right(panel) == to_image(latents.lerp(first.decoded, second.decoded, 0.25)[0])).all()
    move(panel, way=panels.ARC)
    assert (left(panel) == decoded(vae, latents.slerp(a, b, 0.25))).all()
    norms = [f"{z.norm().item():.3g}" for z in (a, latents.slerp(a, b, 0.25), b)]
    assert f"Norms of the first latent, the mixed and the second: {', '.join(norms)}." in panel.status.value


def test_a_poked_pixel_is_framed_and_its_change_shown_in_grey(vae):
    panel, found = panels.pixel(vae, FIRST), encode(vae, FIRST)
    move(panel, row=2, column=5, channel=3, amount=8)
    by = 8 * found.z[:, 3].std().item()
    poked = decoded(vae, latents.poke(found.z, 2, 5, by, 3))
    framed = (left(panel) == (213, 94, 0)).all(axis=2)
    assert framed[6:14, 18:26].sum() == framed.sum() == 8 * 8 - 4 * 4  # around the 4×4 pixels from (8, 20)
    assert (left(panel)[~framed] == poked[~framed]).all()
    move(panel, amount=0)
    assert (np.abs(right(panel)[~framed].astype(int) - 128) <= 1).all() and "0% of" in panel.status.value


def test_the_share_of_the_change_near_the_pixel_is_measured(vae):
    panel, found = panels.pixel(vae, FIRST), encode(vae, FIRST)
    move(panel, row=0, column=7, channel=0, amount=10)
    with torch.no_grad():
        poked = vae.decode(latents.poke(found.z, 0, 7, 10 * found.z[:, 0].std().item(), 0)).sample
    squared = (poked - found.decoded).square()[0]
    assert f"{(squared[:, :8, 24:].sum() / squared.sum()).item():.0%} of the squared change" in panel.status.value


def test_bits_round_each_channel_between_its_ends(vae):
    panel, found = panels.bits(vae, FIRST), encode(vae, FIRST)
    move(panel, bits=2)
    low, high = found.z.amin((2, 3), keepdim=True), found.z.amax((2, 3), keepdim=True)
    rounded = latents.quantise(found.z, 2, low, high)
    assert len(rounded[0, 0].unique()) <= 4 and (left(panel) == decoded(vae, rounded)).all()
    assert (right(panel) == to_image(found.decoded[0])).all()
    with torch.no_grad():
        measured = psnr(vae.decode(rounded).sample, FIRST[None]).item()
    assert f"64 bytes, PSNR {measured:.1f} dB" in panel.status.value  # 4 × 8 × 8 values of 2 bits


def test_the_prior_has_the_spread_of_real_latents_or_another(vae):
    panel = panels.prior(vae)
    drawn = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (left(panel) == decoded(vae, 2 * drawn)).all()  # 1 / scaling factor
    move(panel, spread=0.5, seed=4)
    assert (left(panel) == decoded(vae, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)))).all()
    assert "a standard deviation of 1; over latents of photographs it is 2, in N(0, I) it is 1" in panel.status.value


def test_a_model_without_a_scaling_factor_has_no_prior_panel(vae):
    with pytest.raises(ValueError, match="no scaling factor"):
        panels.prior(AutoencoderKL.from_preset("tiny", seed=0))


@pytest.mark.parametrize("name", PANELS)
def test_sliders_decode_and_never_encode(name, vae, encodings):
    panel = PANELS[name](vae, FIRST)
    made = len(encodings)
    for control in panel.controls.values():
        ends = (control.options[-1][1],) if hasattr(control, "options") else (control.min, control.max)
        for end in ends:
            before = panel.image.value
            control.value = end
            assert "Not drawn" not in panel.status.value and panel.image.value
        assert before
    assert len(encodings) == made


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_changes_with_its_photograph_and_keeps_its_settings(name, vae):
    shown = Photograph(FIRST)
    panel = PANELS[name](vae, shown)
    start = panel.image.value
    control = next(iter(panel.controls.values()))
    control.value = control.options[1][1] if hasattr(control, "options") else control.max
    shown.replace(SECOND, "another")
    other = PANELS[name](vae, SECOND)
    next(iter(other.controls.values())).value = control.value
    assert panel.image.value == other.image.value != start


def test_panels_share_one_encoding_of_a_photograph(vae, encodings):
    shown = Photograph(FIRST)
    for make in (panels.channels, panels.temperature, panels.pixel, panels.bits):
        make(vae, shown)
    assert len(encodings) == 1
    shown.replace(SECOND, "another")
    assert len(encodings) == 2


def test_a_cell_run_again_lets_its_old_panel_go_but_another_models_panel_stays(vae):
    shown = Photograph(FIRST)
    panels.bits(vae, shown)
    panels.bits(vae, shown)
    assert len(shown._followers) == 1
    other = vae.clone()
    other.config = dataclasses.replace(vae.config, scaling_factor=0.25)
    panels.bits(other, shown)
    assert len(shown._followers) == 2


def test_a_panel_that_cannot_draw_the_new_photograph_says_so(vae, monkeypatch):
    shown = Photograph(FIRST)
    panel = panels.bits(vae, shown)
    monkeypatch.setattr(vae, "decode", lambda z: 1 / 0)
    shown.replace(SECOND, "another")
    assert "Not drawn for Bits = 3: ZeroDivisionError" in panel.status.value


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_has_labels_a_fixed_repr_and_a_small_sheet_with_alt_text(name, vae):
    panel = PANELS[name](vae, FIRST)
    assert repr(panel) == repr(PANELS[name](vae, SECOND)) and not any(sign.isdigit() for sign in repr(panel))
    assert all(control.description for control in panel.controls.values())
    mime, picture, alt = panel.still()
    assert mime == "image/jpeg" and Image.open(io.BytesIO(picture)).width <= 800
    assert "Left: " in alt and "Right: " in alt and panel.title in alt


def test_it_works_in_double_precision_too(vae):
    panel = panels.pixel(vae.clone().double(), FIRST)
    move(panel, amount=3)
    assert "Not drawn" not in panel.status.value


def test_sixteen_channels_are_shown_in_four_rows(vae):
    model = AutoencoderKL.from_preset("tiny", seed=0)
    many = AutoencoderKL(dataclasses.replace(model.config, latent_channels=16))
    panel = panels.channels(many, FIRST)
    height = panel.pixels.shape[0]
    assert height == 4 * (8 * max(1, round(SIDE / (4 * 8))) + 4) and math.isqrt(16) == 4
