"""PatchGAN: number of parameters, receptive field, initialisation, invalid arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from klvae_edu.discriminator import NLayerDiscriminator, receptive_field, smallest_side

LAYERS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def standard() -> NLayerDiscriminator:
    torch.manual_seed(0)
    return NLayerDiscriminator()


def small(num_layers: int) -> NLayerDiscriminator:
    torch.manual_seed(0)
    return NLayerDiscriminator(num_filters=2, num_layers=num_layers)


def test_it_has_as_many_parameters_as_tamings(standard: NLayerDiscriminator) -> None:
    convolutions = 64 * 3 * 16 + 64, 128 * 64 * 16, 256 * 128 * 16, 512 * 256 * 16, 512 * 16 + 1
    norms = 2 * (128 + 256 + 512)
    assert sum(convolutions) + norms == 2_765_633
    assert sum(parameter.numel() for parameter in standard.parameters()) == 2_765_633


def test_its_weights_have_tamings_names(standard: NLayerDiscriminator) -> None:
    names = ["main.0.weight", "main.0.bias"]
    for convolution, norm in ((2, 3), (5, 6), (8, 9)):
        names += [f"main.{convolution}.weight"]
        names += [f"main.{norm}.{what}" for what in ("weight", "bias", "running_mean", "running_var")]
        names += [f"main.{norm}.num_batches_tracked"]
    names += ["main.11.weight", "main.11.bias"]
    assert list(standard.state_dict()) == names


def test_its_convolutions_are_wide_and_strided_as_in_the_paper(standard: NLayerDiscriminator) -> None:
    convolutions = [layer for layer in standard.main if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert [layer.stride for layer in convolutions] == [(2, 2), (2, 2), (2, 2), (1, 1), (1, 1)]
    assert {(layer.kernel_size, layer.padding) for layer in convolutions} == {((4, 4), (1, 1))}


def test_no_network_becomes_wider_than_eight_times_its_first_layer() -> None:
    convolutions = [
        layer for layer in NLayerDiscriminator(num_filters=2, num_layers=5).main if hasattr(layer, "stride")
    ]
    assert [layer.out_channels for layer in convolutions] == [2, 4, 8, 16, 16, 16, 1]


@pytest.mark.parametrize("num_layers", LAYERS)
def test_only_convolutions_before_a_norm_have_no_bias(num_layers: int) -> None:
    layers = list(small(num_layers).main)
    convolutions = [(here, after) for here, after in zip(layers, [*layers[1:], None], strict=True)]
    normed = [isinstance(after, nn.BatchNorm2d) for here, after in convolutions if isinstance(here, nn.Conv2d)]
    biases = [here.bias is not None for here, _ in convolutions if isinstance(here, nn.Conv2d)]
    assert normed == [False] + [True] * num_layers + [False]
    assert biases == [not follows for follows in normed]


def test_256_pixels_give_30_by_30_logits(standard: NLayerDiscriminator) -> None:
    with torch.no_grad():
        assert standard(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
        assert standard(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 6, 10)


@pytest.mark.parametrize(("num_layers", "side"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_just_its_receptive_field(num_layers: int, side: int) -> None:
    """Count the pixels that influence one logit in the middle; in eval mode, because BatchNorm mixes the batch."""
    network = small(num_layers).double().eval()
    images = torch.zeros(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    logits = network(images)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    rows, columns = gradient.abs().sum((0, 1)).nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == side
    assert len(rows) == side**2  # and all of them
    assert receptive_field(num_layers) == side


@pytest.mark.parametrize("num_layers", LAYERS)
def test_neighbouring_logits_are_a_product_of_strides_apart(num_layers: int) -> None:
    network = small(num_layers).double().eval()
    images = torch.zeros(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    logits = network(images)
    middle = logits.shape[-1] // 2
    tops = []
    for row in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(logits[0, 0, row, middle], images, retain_graph=True)
        tops.append(gradient.abs().sum((0, 1)).nonzero()[:, 0].min().item())
    assert tops[1] - tops[0] == 2**num_layers


@pytest.mark.parametrize("num_layers", LAYERS)
def test_the_smallest_side_is_the_first_that_gives_a_logit(num_layers: int) -> None:
    network, side = small(num_layers), smallest_side(num_layers)
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network.main(torch.zeros(2, 3, side - 1, side))
    with pytest.raises(ValueError, match=rf"at least {side} pixels .* num_layers={num_layers}, got \(2, 3, {side}, "):
        network(torch.zeros(2, 3, side, side - 1))


def test_the_default_needs_24_pixels_and_sees_70() -> None:
    assert smallest_side() == 24
    assert receptive_field() == 70


@pytest.mark.parametrize(("value", "logit"), [(1.0, 1.0), (-1.0, -0.2 * 0.2)])
def test_negative_values_pass_with_a_fifth_of_their_size(value: float, logit: float) -> None:
    """Use convolutions that copy one pixel, and norms that change nothing; no ReLU follows the last layer."""
    network = NLayerDiscriminator(in_channels=1, num_filters=1, num_layers=1).double().eval()
    with torch.no_grad():
        for layer in network.main:
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()
                layer.weight[:1, :, 1, 1] = 1 / layer.in_channels
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.fill_(math.sqrt(1 + layer.eps))
        network.main[2].weight[1:] = network.main[2].weight[:1]  # both channels alike
        found = network(torch.full((1, 1, 8, 8), value, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full_like(found, logit), rtol=1e-12, atol=0.0)


def test_it_starts_with_pix2pix_weights(standard: NLayerDiscriminator) -> None:
    """N(0, 0.02), norms N(1, 0.02) and 0; each mean and standard deviation within four of its standard errors."""
    for layer in standard.main:
        if not isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            continue
        centre = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
        count = layer.weight.numel()
        assert layer.weight.mean().item() == pytest.approx(centre, abs=4 * 0.02 / math.sqrt(count))
        assert layer.weight.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * count))
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.bias.abs().max() == 0


def test_a_seed_determines_the_initial_weights(standard: NLayerDiscriminator) -> None:
    torch.manual_seed(0)
    again = dict(NLayerDiscriminator().named_parameters())
    assert all(torch.equal(parameter, again[name]) for name, parameter in standard.named_parameters())
    torch.manual_seed(1)
    assert not torch.equal(NLayerDiscriminator().main[0].weight, standard.main[0].weight)


def test_images_of_any_number_of_channels_can_be_judged() -> None:
    assert NLayerDiscriminator(in_channels=4, num_filters=2)(torch.zeros(2, 4, 24, 24)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64), (1, 3, 64), (1, 3, 1, 64, 64)])
def test_another_shape_is_a_value_error_that_names_both(standard: NLayerDiscriminator, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\), got \(" + ", ".join(map(str, shape)) + r"\)"):
        standard(torch.zeros(shape))


@pytest.mark.parametrize("name", ["in_channels", "num_filters", "num_layers"])
def test_an_argument_below_one_is_a_value_error_that_names_it(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least 1, got 0"):
        NLayerDiscriminator(**{name: 0})
