"""Diagrams: one style, a caption each, and shapes that are those of the real model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from klvae_edu import AutoencoderKL, diagrams, plots
from klvae_edu.blocks import Downsample2D, ResnetBlock2D, Upsample2D
from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.diagrams import model, sketch
from klvae_edu.discriminator import NLayerDiscriminator


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(diagrams, "show", lambda fig, alt: found.append((fig, alt)))
    return found


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_diagram_is_shown_with_its_caption(name, shown):
    diagrams.show_diagram(name)
    ((figure, caption),) = shown
    assert caption.endswith(".") and len(caption.split()) > 20
    assert len(plots.render(figure)) > 5000


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_all_words_lie_inside_of_the_drawing(name):
    figure, _ = diagrams.DIAGRAMS[name]
    figure = figure()
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()


@pytest.mark.parametrize("colour", [sketch.TENSOR, sketch.OPERATION, sketch.LOSS])
def test_in_grey_words_stand_out_from_what_they_are_written_on(colour):
    assert (luminance(colour) + 0.05) / (luminance(sketch.LINE) + 0.05) > 7  # WCAG's contrast of level AAA


def luminance(colour):
    red, green, blue = to_rgb(colour)
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def test_an_unknown_diagram_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match="no diagram 'unet'; there are pipeline, posterior"):
        diagrams.show_diagram("unet")


def run_on_meta(preset, side):
    """List (channels, side) of what each layer of encoder and decoder puts out."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_preset(preset)
        found = {"encoder": [(3, side)], "decoder": [(vae.config.latent_channels, side // vae.downsample_factor)]}
        for part, maps in found.items():
            for module in getattr(vae, part).modules():
                if isinstance(module, (ResnetBlock2D, Downsample2D, Upsample2D)) or module in (
                    getattr(vae, part).conv_in,
                    getattr(vae, part).conv_out,
                ):
                    module.register_forward_hook(
                        lambda _, __, out, maps=maps: maps.append((out.shape[1], out.shape[3]))
                    )
        vae.decoder(vae.encoder(torch.zeros(1, 3, side, side))[:, : vae.config.latent_channels])
    return [*dict.fromkeys(found["encoder"])], [*dict.fromkeys(found["decoder"])]


@pytest.mark.parametrize("preset", ["sd-v1", "kl-f8-mini", "tiny"])
def test_the_feature_maps_are_those_of_the_model(preset):
    config = AutoencoderKLConfig.from_preset(preset)
    assert model.feature_maps(config, 256) == run_on_meta(preset, 256)


def test_the_pipeline_and_the_posterior_have_the_shapes_of_the_model():
    with torch.device("meta"):
        posterior = AutoencoderKL.from_preset("sd-v1").encode(torch.zeros(1, 3, 256, 256)).latent_dist
    moments, mean = (" × ".join(map(str, it.shape[1:])) for it in (posterior.parameters, posterior.mean))
    pipeline, of_posterior = (" ".join(words(diagrams.DIAGRAMS[name][0]())) for name in ("pipeline", "posterior"))
    assert mean in pipeline and mean in of_posterior and moments in of_posterior
    assert f"{3 * 256 * 256 // mean_numbers(posterior)} times fewer" in diagrams.DIAGRAMS["pipeline"][1]


def mean_numbers(posterior):
    return posterior.mean[0].numel()


def test_the_patchgan_has_the_layers_and_logits_of_the_network():
    with torch.device("meta"):
        network = NLayerDiscriminator()
        logits = network(torch.zeros(1, 3, 256, 256))
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    drawn = words(diagrams.DIAGRAMS["patchgan"][0]())
    assert [f"{it.out_channels}\nstride {it.stride[0]}" for it in convolutions] == [
        it for it in drawn if "stride" in it
    ]
    assert f"logits {logits.shape[1]} × {logits.shape[2]} × {logits.shape[3]}" in drawn


def test_the_readmes_picture_is_this_pipeline():
    """Fonts and the rounding of sizes may differ a little from one matplotlib to another."""
    stored = Image.open(Path(__file__).parents[1] / "docs/pictures/pipeline.png").convert("RGB")
    drawn = plots.figure_to_image(diagrams.DIAGRAMS["pipeline"][0]())
    height, width = (min(sides) for sides in zip(drawn.shape[:2], stored.size[::-1], strict=True))
    assert max(drawn.shape[0], stored.height) - height <= 1 and max(drawn.shape[1], stored.width) - width <= 1
    assert np.abs(np.asarray(stored, float)[:height, :width] - drawn[:height, :width]).mean() < 5
