"""Winograd's convolution: equal to direct convolution, a quarter of the multiplications, rounding errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from klvae_edu.performance import winograd
from klvae_edu.performance.winograd import MATRICES, WinogradConv2d, transforms

CL = torch.channels_last
SIZES = [(1, 1), (1, 5), (2, 2), (4, 4), (7, 4), (9, 13)]  # below a tile, whole tiles, partial tiles


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def direct(channels: int = 6, dtype: torch.dtype = torch.float64, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, 5, 3, padding=1, bias=bias).to(dtype).requires_grad_(False)


def as_winograd(conv: nn.Conv2d) -> WinogradConv2d:
    """Build the Winograd layer with the same weights."""
    return WinogradConv2d.of(conv)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# ---- The same function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, CL], ids=["usual layout", "channels last"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_direct_one_up_to_its_borders(size: tuple[int, int], layout: torch.memory_format, bias: bool) -> None:
    conv, x = direct(bias=bias), random(2, 6, *size).to(memory_format=layout)
    expected = conv(x)
    found = as_winograd(conv)(x)
    assert_same(found, expected)
    assert found.is_contiguous(memory_format=CL)


@pytest.mark.parametrize("at_once, bands", [(1, 6), (8, 3), (10**6, 1)], ids=["row by row", "two rows", "all"])
def test_bands_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch, at_once: int, bands: int) -> None:
    """The batch has two images with six rows of two tiles: four tiles in a row."""
    cut, found = winograd.tile_windows, []
    monkeypatch.setattr(winograd, "tile_windows", lambda *arguments: found.append(arguments) or cut(*arguments))
    monkeypatch.setattr(winograd, "TILES_PER_BAND", at_once)
    conv, x = direct(), random(2, 6, 21, 5)
    expected = conv(x)
    assert_same(as_winograd(conv)(x), expected)
    assert len(found) == bands


@pytest.mark.parametrize("wrong", ["no denominators", "kernel turned round", "pixels of a tile turned round"])
def test_another_transform_is_another_function(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """The tests above detect wrong matrices."""
    changed = {
        "no denominators": MATRICES._replace(kernel=MATRICES.kernel / MATRICES.kernel.abs().amax(1, keepdim=True)),
        "kernel turned round": MATRICES._replace(kernel=MATRICES.kernel.flip(1)),
        "pixels of a tile turned round": MATRICES._replace(result=MATRICES.result.flip(0)),
    }[wrong]
    conv, x = direct(), random(1, 6, 8, 8)
    expected = conv(x)
    monkeypatch.setattr(winograd, "MATRICES", changed)
    assert (as_winograd(conv)(x) - expected).abs().max() > 0.1


def test_gradients_are_the_direct_ones_and_have_one_band_to_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, bands = [], []
    cut = winograd.tile_windows
    monkeypatch.setattr(winograd, "tile_windows", lambda *arguments: bands.append(arguments) or cut(*arguments))
    for conv in (direct(), as_winograd(direct())):
        x = random(1, 6, 40, 70).requires_grad_()
        gradients += torch.autograd.grad(conv(x).square().sum(), x)
    assert_same(gradients[1], gradients[0])
    assert len(bands) == 1
    as_winograd(direct())(x.detach())
    assert len(bands) > 2


def test_it_works_under_vmap() -> None:
    conv, x = as_winograd(direct()), random(3, 1, 6, 9, 7)
    assert_same(torch.func.vmap(conv)(x).flatten(0, 1), conv(x.flatten(0, 1)))


def test_it_is_one_graph_for_the_compiler_and_one_band(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x, graphs = as_winograd(direct()), random(1, 6, 80, 240), []

    def keep(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    assert_same(torch.compile(conv, backend=keep, fullgraph=True)(x), conv(x))
    assert sum(node.target is torch.bmm for graph in graphs for node in graph.graph.nodes) == 1


# ---- Transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [(0, 1, -1, 2, -2), (0, 1, -1, 0.5, -2), (3, -1, 0.5, 7, 0.1)])
def test_any_five_points_give_the_pixels_of_a_tile(points: tuple[float, ...]) -> None:
    taps, window = random(3, 3), random(6, 6)
    expected = F.conv2d(window[None, None], taps[None, None])[0, 0]
    result, kernel, image = transforms(*points)
    found = result @ ((kernel @ taps.flatten()) * (image @ window.flatten()))
    torch.testing.assert_close(found.view(4, 4), expected, rtol=0, atol=1e-9)


def test_with_their_points_they_are_lavin_and_grays_matrices() -> None:
    """Section 4.3, one dimension: rows of the image matrix are scaled, and rows of the kernel matrix inversely."""
    printed = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
    printed += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
    expected = torch.tensor(printed, dtype=torch.float64)
    found = transforms(0, 1, -1, 2, -2).image.view(6, 6, 6, 6)[0, :, 0, :] / 4  # kron's other factor: row 0, column 0
    signs = torch.sign((found * expected).sum(1, keepdim=True))
    assert_same(found / found.abs().amax(1, keepdim=True), signs * expected / expected.abs().amax(1, keepdim=True))


# ---- Work and rounding -----------------------------------------------------------------------------------------------


def test_channels_take_a_quarter_of_the_multiplications() -> None:
    conv, x, counts = nn.Conv2d(256, 256, 3, padding=1), random(1, 256, 64, 64, dtype=torch.float32), []
    for change in (nn.Conv2d.eval, as_winograd):
        layer = change(conv)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x)
        counts.append(counter.get_flop_counts()["Global"])
    (whole,) = counts[0].values()
    assert counts[1][torch.ops.aten.bmm] / whole == pytest.approx(1 / 4)
    assert sum(counts[1].values()) / whole < 0.32  # the kernels are transformed once, not in each of two bands


def rounding() -> dict[str, float]:
    """Compute the relative RMS error in float32 of direct and of Winograd's convolution."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(128, 128, 3, padding=1), F.silu(torch.randn(1, 128, 32, 32))
    with torch.no_grad():
        exact = conv.double()(x.double())
        found = {"direct": conv.float()(x), "Winograd": as_winograd(conv)(x)}
    return {way: float((y - exact).square().mean().sqrt() / exact.square().mean().sqrt()) for way, y in found.items()}


def test_in_float32_it_rounds_some_times_as_much_as_the_direct_one() -> None:
    errors = rounding()
    assert errors["direct"] < errors["Winograd"] < min(2e-6, 10 * errors["direct"])


def test_the_points_round_less_than_lavin_and_grays(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = rounding()["Winograd"]
    monkeypatch.setattr(winograd, "MATRICES", transforms(0, 1, -1, 2, -2))
    assert rounding()["Winograd"] > 1.3 * ours


@pytest.mark.parametrize("case", ["bfloat16", "float16", "autocast"])
def test_half_precision_is_convolved_directly(case: str) -> None:
    dtype = torch.float32 if case == "autocast" else getattr(torch, case)
    conv, x = direct(dtype=dtype), random(1, 6, 8, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        expected = conv(x)
        assert torch.equal(as_winograd(conv)(x), expected)


# ---- Layers and inputs to which it applies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, expected",
    [
        (nn.Conv2d(128, 256, 3, padding=1), True),
        (nn.Conv2d(128, 96, 3, padding=1), False),
        (nn.Conv2d(3, 128, 3, padding=1), False),
        (nn.Conv2d(128, 128, 1), False),
        (nn.Conv2d(128, 128, 3, stride=2, padding=1), False),
        (nn.Conv2d(128, 128, 3), False),
        (nn.Conv2d(128, 128, 5, padding=1), False),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), False),
        (nn.Conv2d(128, 128, 3, padding=1, dilation=2), False),
        (nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"), False),
    ],
    ids=[
        "wide",
        "narrow",
        "from colours",
        "1x1",
        "stride",
        "no padding",
        "5x5",
        "groups",
        "dilation",
        "circular",
    ],
)
def test_layers_that_it_can_replace(module: nn.Conv2d, expected: bool) -> None:
    assert WinogradConv2d.can_replace(module) == expected


@pytest.mark.parametrize(
    "x, expected",
    [
        (torch.zeros(1, 6, 32, 32), True),
        (torch.zeros(1, 6, 29, 32), True),
        (torch.zeros(4, 6, 16, 16), True),
        (torch.zeros(1, 6, 28, 32), False),
        (torch.zeros(0, 6, 32, 32), False),
        (torch.zeros(6, 32, 32), False),
        (torch.zeros(1, 1, 64, 64), False),
        (torch.zeros(1, 6, 64, 64, device="meta"), False),
    ],
    ids=["large", "not whole tiles", "four small", "small", "none", "no batch", "wrong channels", "meta"],
)
def test_inputs_that_it_applies_to(monkeypatch: pytest.MonkeyPatch, x: Tensor, expected: bool) -> None:
    monkeypatch.setattr(winograd, "MIN_TILES", 64)
    assert as_winograd(direct()).applies_to(x) == expected


def test_a_wrong_number_of_channels_has_the_usual_error() -> None:
    with pytest.raises(RuntimeError, match=r"expected input.* to have 6 channels"):
        as_winograd(direct(bias=False))(random(1, 1, 8, 8))
