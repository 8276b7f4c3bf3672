"""Evaluation: means over images in one pass with constant memory, what the intervals rest on, and the table."""

from __future__ import annotations

import itertools
import json
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from klvae_edu import AutoencoderKL
from klvae_edu.data import image_dataset
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.evaluation.bootstrap import REPLICATES, Sums, bootstrap_weights, estimate
from klvae_edu.evaluation.compare import evaluate, image_channels
from klvae_edu.evaluation.images import Key
from klvae_edu.evaluation.result import MIN_UNITS
from klvae_edu.metrics import FrechetDistance, gradient_energy, psnr, ssim


def images(count: int = 24, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def halved(batch: Tensor) -> Tensor:
    return batch / 2


def with_errors(of_image: Tensor) -> Any:
    """Return a method that adds a constant error to an image; the image's first value selects the error."""
    return lambda batch: batch + of_image[batch[:, 0, 0, 0].long()][:, None, None, None]


class Pictures:
    """Images that belong to `photographs` photographs in turn."""

    what = "made-up images"

    def __init__(self, batch: Tensor, photographs: int) -> None:
        self.batch, self.photographs = batch, photographs

    def __len__(self) -> int:
        return len(self.batch)

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        return (((n % self.photographs,), image) for n, image in enumerate(self.batch))

    def report(self) -> None:
        return None


def test_values_are_means_over_images_of_what_the_metrics_give() -> None:
    batch = images()
    found = evaluate({"halved": halved}, batch, frechet="random")
    wanted = {
        "PSNR": psnr(halved(batch), batch).mean(),
        "SSIM": ssim(halved(batch), batch).mean(),
        "gradient energy": gradient_energy(halved(batch)).mean() / gradient_energy(batch).mean(),
    }
    assert {name: found.estimate("halved", name).value for name in found.metrics} == pytest.approx(
        {name: value.item() for name, value in wanted.items()}, rel=1e-5
    )
    assert found.estimate("halved", "gradient energy").value == pytest.approx(0.25, rel=1e-5)
    distance = FrechetDistance("random")
    distance.update(halved(batch), batch)
    assert found.frechet["halved"] == pytest.approx(distance.compute(), rel=1e-4)


def test_psnr_is_the_mean_of_decibels_not_the_decibels_of_a_mean_error() -> None:
    """Errors of 0.2 and 0.02 have 20 and 40 dB; their mean error has 23 dB."""
    batch = torch.zeros(2, 3, 16, 16)
    batch[1, 0, 0, 0] = 1
    found = evaluate({"shifted": with_errors(torch.tensor([0.2, -0.02]))}, batch, frechet="random")
    assert found.estimate("shifted", "PSNR").value == pytest.approx(30, abs=1e-3)


def test_models_are_seen_as_they_are_displayed() -> None:
    batch = images().sign()
    found = evaluate({"overshoots": lambda x: 1.5 * x, "exact": lambda x: x}, batch, frechet="random")
    for metric in ("SSIM", "gradient energy"):
        assert found.estimate("overshoots", metric) == found.estimate("exact", metric)
    assert math.isinf(found.estimate("overshoots", "PSNR").value)
    assert found.frechet["overshoots"] == pytest.approx(0, abs=1e-5)


def test_an_autoencoder_reconstructs_through_the_mode_of_its_posterior() -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0).eval()
    batch = images(3)
    found = evaluate({"tiny": vae}, batch, frechet="random")
    with torch.no_grad():
        expected = psnr(vae.decode(vae.encode(batch).latent_dist.mode()).sample, batch).mean().item()
    assert found.estimate("tiny", "PSNR").value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [1, 7, 24, 100])
def test_any_batch_size_gives_the_same(size: int) -> None:
    batch = images()
    one, other = (evaluate({"halved": halved}, batch, frechet="random", batch_size=n) for n in (4, size))
    np.testing.assert_allclose(one.quotients["halved"], other.quotients["halved"], rtol=1e-6)
    assert one.frechet["halved"] == pytest.approx(other.frechet["halved"], rel=1e-4)


class MeanDifference(nn.Module):
    source = "nowhere"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unused", torch.zeros(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3))


def test_each_distance_is_a_column_under_its_own_name() -> None:
    batch = images()
    given = {"LPIPS": MeanDifference(), "angle": MeanDifference()}
    found = evaluate({"halved": halved}, batch, distances=given, frechet="random")
    assert found.metrics == ("PSNR", "SSIM", "gradient energy", "LPIPS", "angle")
    wanted = (halved(batch) - batch).abs().mean().item()
    for name in given:
        assert found.estimate("halved", name).value == pytest.approx(wanted, rel=1e-5)
        assert f"{name}: features of nowhere." in found.notes
        assert f"{name} (0 is best)" in found.table()
        assert found.to_dict()["sources"][name] == "nowhere"
    assert found.estimate("halved", "gradient energy").value == pytest.approx(0.25, rel=1e-5)


def test_a_distance_sees_reconstructions_as_they_are_displayed() -> None:
    given = {"LPIPS": MeanDifference()}
    found = evaluate({"overshoots": lambda x: 1.5 * x}, images(2).sign(), distances=given, frechet="random")
    assert found.estimate("overshoots", "LPIPS").value == 0


# --- the classifier


class Counting(EfficientNetDistance):
    """Count the images that the network classifies."""

    count = 0

    def pooled(self, images: Tensor) -> Tensor:
        self.count += len(images)
        return super().pooled(images)


@pytest.fixture(scope="module")
def judge() -> Counting:
    return Counting("efficientnet-lite1")


def faint(batch: Tensor) -> Tensor:
    return 0.3 * batch


def flat(batch: Tensor) -> Tensor:
    return batch.mean((2, 3), keepdim=True).expand_as(batch)


@pytest.mark.parametrize("frechet", ["random", "efficientnet-lite1"])
def test_class_kept_is_the_share_whose_first_class_is_among_five_of_the_reconstruction(
    judge: Counting, frechet: str
) -> None:
    batch = torch.stack([*image_dataset("photos", 64, split="held-out", length=12)])
    models = {"exact": lambda x: x, "faint": faint, "flat": flat}
    found = evaluate(models, batch, classifier=judge, frechet=frechet)
    assert found.metrics[-1] == "class kept"
    first = judge.logits(batch).argmax(1)
    shares = {}
    for name, model in models.items():
        five = judge.logits(model(batch)).sort(dim=1, descending=True).indices[:, :5]
        shares[name] = sum(int(n) in best for n, best in zip(first, five.tolist(), strict=True)) / 12
        assert found.estimate(name, "class kept").value == pytest.approx(shares[name])
    assert shares["exact"] == 1 > shares["faint"] > shares["flat"]
    text = " ".join(found.table().split())
    assert "class kept (1 is" in text
    assert "Class kept: share of images whose first class is among the first 5 of the reconstruction, by " in text
    assert found.to_dict()["sources"]["class kept"] == "efficientnet-lite1, trained on ImageNet"


def test_the_originals_are_classified_once_for_all_models(judge: Counting) -> None:
    judge.count = 0
    evaluate({"a": halved, "b": faint, "c": flat}, images(8), classifier=judge, frechet="random")
    assert judge.count == (1 + 3) * 8


def test_features_of_the_frechet_distance_are_shared_with_the_classifier_if_they_are_its_own(judge: Counting) -> None:
    judge.count = 0
    evaluate({"a": halved}, images(8), classifier=judge, frechet="efficientnet-lite1")
    assert judge.count == 0
    other = Counting("efficientnet-lite0")
    evaluate({"a": halved}, images(8), classifier=other, frechet="efficientnet-lite1")
    assert other.count == 2 * 8


# --- memory


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    """Only the images of one batch are in memory at a time, and the sums have a fixed size."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    class Watched(Pictures):
        def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
            nonlocal most
            for key, image in super().__iter__():
                fresh = image.clone()
                alive.add(fresh)
                most = max(most, len(alive))
                yield key, fresh
                del fresh, image

    kept = []
    for count in (8, 80):
        most = 0
        found = evaluate({"halved": halved}, Watched(images(count), 4), frechet="random", batch_size=4)
        assert most <= 2 * 4
        kept.append(found.quotients["halved"].nbytes)
    assert kept[0] == kept[1] == (1 + REPLICATES) * 3 * 8


# --- intervals


def test_photographs_are_drawn_where_there_are_enough_else_crops_and_the_notes_say_which() -> None:
    batch = images(2 * MIN_UNITS)
    few, many = (
        evaluate({"halved": halved}, Pictures(batch, count), frechet="random") for count in (MIN_UNITS - 1, MIN_UNITS)
    )
    assert few.about["intervals"]["drawn"] == "images" and many.about["intervals"]["drawn"] == "photographs"
    assert f"that draw crops, because {MIN_UNITS - 1} photographs are too few" in " ".join(few.notes)
    assert "that draw photographs, each with all its crops" in " ".join(many.notes)
    by_hand = Sums(1)
    for n, value in enumerate(psnr(halved(batch), batch).double().numpy()):
        by_hand.add(bootstrap_weights(0, (n % MIN_UNITS,)), np.array([value]), np.ones(1))
    assert many.estimate("halved", "PSNR") == pytest.approx(estimate(by_hand.quotients()[:, 0]), rel=1e-6)


def test_with_few_images_there_is_no_interval() -> None:
    found = evaluate({"halved": halved}, images(MIN_UNITS - 1), frechet="random")
    assert found.estimate("halved", "PSNR")[1:] == (None, None)
    assert found.about["intervals"] is None and "No intervals" in " ".join(found.notes)
    assert "[" not in found.table()


def test_a_difference_is_paired() -> None:
    """Images differ by decibels, the models by little on each: the interval of their difference is the narrow one."""
    batch = torch.zeros(40, 3, 16, 16)
    batch[:, 0, 0, 0] = torch.arange(40) / 40
    error = torch.linspace(0.01, 0.3, 40)
    models = {
        name: (lambda x, factor=factor: x + factor * error[(x[:, 0, 0, 0] * 40).round().long()][:, None, None, None])
        for name, factor in (("a", 0.5), ("b", 0.55))
    }
    found = evaluate(models, batch, frechet="random")
    a, difference = found.estimate("a", "PSNR"), found.difference("a", "b", "PSNR")
    assert difference.value == pytest.approx(20 * math.log10(1.1), abs=0.01)
    assert difference.low > 0 and difference.high - difference.low < 0.1 * (a.high - a.low)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    batch = images()
    first, second, other = (evaluate({"h": halved}, batch, frechet="random", seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.quotients["h"], second.quotients["h"])
    assert np.array_equal(first.quotients["h"][0], other.quotients["h"][0])
    assert not np.array_equal(first.quotients["h"][1:], other.quotients["h"][1:])


def test_an_exact_image_makes_the_mean_infinite_and_nothing_not_a_number() -> None:
    batch = images()
    found = evaluate({"nearly": lambda x: torch.where(x[:, :1, :1, :1] > 0.9, x, x / 2)}, batch, frechet="random")
    assert not np.isnan(found.quotients["nearly"]).any()
    assert math.isinf(found.estimate("nearly", "PSNR").value)
    assert found.to_dict()["models"]["nearly"]["PSNR"]["value"] is None
    assert found.difference("nearly", "nearly", "SSIM").to_dict() == {"value": 0, "low": 0, "high": 0}
    json.dumps(found.to_dict(), allow_nan=False)


# --- output


def test_the_table_has_a_row_for_each_model_and_says_what_it_rests_on() -> None:
    models = {"first": halved, "a model with a longer name": lambda x: 0.9 * x}
    found = evaluate(models, images(), frechet="random")
    table = found.table()
    lines = table.splitlines()
    for name in models:
        (row,) = [line for line in lines if line.startswith(name)]
        estimate = found.estimate(name, "PSNR")
        assert f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]" in row
        assert row.endswith(f"{found.frechet[name]:.3g}")
    heading = " ".join(" ".join(lines[: lines.index(next(x for x in lines if x.startswith("first")))]).split())
    assert "PSNR in dB" in heading and "SSIM (1 is best)" in heading and "random" in heading
    assert "rFID" not in table
    text = " ".join(table.split())
    assert "24 images from 24 photographs: 24 images of 16x16 pixels." in text
    assert "Fréchet distance, random features: features of a small network with fixed random weights" in text
    assert max(map(len, lines)) <= 120


def test_a_wide_table_is_in_two_parts_pixels_above_features(judge: Counting) -> None:
    models = {"first": halved, "a model with a longer name": lambda x: 0.9 * x}
    given = {"LPIPS": MeanDifference(), "EfficientNet-Lite1 distance": judge}
    found = evaluate(models, images(), distances=given, classifier=judge, frechet="efficientnet-lite1")
    assert found.metrics == (
        *("PSNR", "SSIM", "gradient energy"),
        *("LPIPS", "EfficientNet-Lite1 distance", "class kept"),
    )
    upper, lower, _ = found.table().split("\n\n")
    headings = {upper: ("PSNR", "SSIM", "gradient"), lower: ("LPIPS", "EfficientNet-Lite1", "class kept")}
    for part, metrics in headings.items():
        heading, rows = part.split("\nfirst ")
        assert all(metric in heading for metric in metrics)
        assert rows.splitlines()[1].startswith("a model with a longer name")
        assert max(map(len, part.splitlines())) <= 120
    assert upper.count("[") == 2 * 3 and lower.count("[") == 2 * 3  # an interval for all but the Fréchet distance
    assert "Fréchet distance" in lower and "Fréchet distance" not in upper


def test_the_dictionary_has_names_values_intervals_and_where_they_come_from() -> None:
    found = evaluate({"halved": halved}, images(), frechet="random").to_dict()
    assert found.keys() == {"data", "intervals", "sources", "versions", "models", "notes"}
    assert found["data"] == {
        "what": "24 images of 16x16 pixels",
        "images": 24,
        "photographs": 24,
        "unreadable": None,
    }
    assert found["intervals"] == {"level": 0.95, "replicates": 1000, "drawn": "photographs", "seed": 0}
    assert found["models"]["halved"]["PSNR"].keys() == {"value", "low", "high"}
    assert found["models"]["halved"]["Fréchet distance, random features"].keys() == {"value"}
    assert found["versions"].keys() == {"klvae-edu", "torch", "torchmetrics", "numpy"}
    json.dumps(found, allow_nan=False)


def test_what_cannot_be_evaluated_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match="expected one model or more, got none"):
        evaluate({}, images(2))
    with pytest.raises(ValueError, match="expected two images or more, got 1"):
        evaluate({"halved": halved}, images(1), frechet="random")
    expected = r"expected reconstructions of shape \(4, 3, 16, 16\), but model narrow gave"
    with pytest.raises(ValueError, match=rf"{expected} shape \(4, 3, 16, 8\)"):
        evaluate({"narrow": lambda x: x[..., :8]}, images(8), frechet="random")
    with pytest.raises(ValueError, match=f"{expected} tuple"):
        evaluate({"narrow": lambda x: (x,)}, images(8), frechet="random")


# --- values that are no images


def from_sixth_image(spoil: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A model that spoils the sixth image that it sees."""
    seen = itertools.count(1)
    return lambda x: torch.stack([spoil(image) if next(seen) == 6 else image / 2 for image in x])


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda image: torch.full_like(image, float("nan")), "NaN or infinite values"),
        (lambda image: image.masked_fill(image > 0.9, float("inf")), "NaN or infinite values"),
        (lambda image: (image + 1) * 127.5, "values from .* to 25"),
    ],
)
def test_a_model_whose_pictures_no_metric_can_judge_is_named_with_the_image(
    spoil: Callable[[Tensor], Tensor], found: str
) -> None:
    models = {"fine": halved, "run/broken": from_sixth_image(spoil)}
    where = r"model run/broken gave " + found + r".* for image 6 of 24 \(24 images of 16x16 pixels\)"
    with pytest.raises(ValueError, match=where):
        evaluate(models, images(), frechet="random", batch_size=4)


def test_a_model_of_bytes_is_named() -> None:
    with pytest.raises(ValueError, match=r"model bytes gave values of torch\.uint8 for image 1 of 24"):
        evaluate({"bytes": lambda x: ((x + 1) * 127.5).byte()}, images(), frechet="random")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ((images() + 1) * 127.5, "values from .* to 25"),
        (((images() + 1) * 127.5).byte(), r"values of torch\.uint8"),
        (images().index_fill(0, torch.tensor([7]), float("nan")), "NaN or infinite values for image 8 of 24"),
    ],
)
def test_data_in_another_range_are_refused_and_not_measured(data: Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=rf"evaluate: expected .* in \[-1, 1\], but the data gave {found}"):
        evaluate({"same": lambda x: x.clone()}, data, frechet="random")


def test_a_reconstruction_may_overshoot() -> None:
    found = evaluate({"beyond": lambda x: 3 * x, "clamped": lambda x: (3 * x).clamp(-1, 1)}, images(), frechet="random")
    assert np.array_equal(found.quotients["beyond"], found.quotients["clamped"])


# --- limits of the metrics


def test_two_exact_models_differ_by_zero_and_an_exact_one_from_another_by_infinity() -> None:
    models = {"same": lambda x: x.clone(), "twin": lambda x: x.clone(), "halved": halved}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(models, images(), frechet="random")
        assert found.estimate("same", "PSNR") == (math.inf, math.inf, math.inf)
        assert found.difference("same", "twin", "PSNR") == (0, 0, 0)
        assert found.difference("same", "halved", "PSNR") == (math.inf, math.inf, math.inf)
        assert found.difference("halved", "same", "PSNR").value == -math.inf
        assert "inf [inf, inf]" in found.table()


def test_originals_without_edges_have_no_gradient_energy_to_compare_with_and_a_note_says_so() -> None:
    flat = torch.full((24, 3, 16, 16), -1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate({"brighter": lambda x: x + 0.01, "noisy": lambda x: x + 0.1 * images()[: len(x)]}, flat)
    for model in ("brighter", "noisy"):
        assert math.isnan(found.estimate(model, "gradient energy").value)
        assert found.to_dict()["models"][model]["gradient energy"]["value"] is None
    assert "The gradient energy is not defined (nan): the originals have none." in " ".join(found.table().split())
    assert "not defined" not in evaluate({"halved": halved}, images(), frechet="random").table()


# --- channels


def test_grey_images_are_measured_as_they_are_and_repeated_for_networks(judge: Counting) -> None:
    grey = images()[:, :1]
    given = {"distances": {"judge": judge}, "classifier": judge, "frechet": "efficientnet-lite1"}
    found = evaluate({"halved": halved}, grey, **given)
    repeated = evaluate({"halved": halved}, grey.repeat(1, 3, 1, 1), **given)
    assert found.metrics == repeated.metrics
    np.testing.assert_allclose(found.quotients["halved"], repeated.quotients["halved"], rtol=1e-5)
    assert found.frechet == pytest.approx(repeated.frechet)


def test_for_other_numbers_of_channels_networks_are_left_out_and_a_note_says_so(judge: Counting) -> None:
    bands = torch.cat([images(), images().flip(0)[:, :2]], dim=1)  # (24, 5, 16, 16)
    found = evaluate({"halved": halved}, bands, distances={"judge": judge}, classifier=judge)
    assert found.metrics == ("PSNR", "SSIM", "gradient energy") and found.frechet == {}
    assert found.estimate("halved", "PSNR").value == pytest.approx(psnr(halved(bands), bands).mean().item(), rel=1e-5)
    table = " ".join(found.table().split())
    assert "Metrics of features are left out" in table and "Fréchet" not in table
    assert found.to_dict()["models"]["halved"].keys() == {"PSNR", "SSIM", "gradient energy"}
    json.dumps(found.to_dict(), allow_nan=False)


def small(**fields: int) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, **fields)


@pytest.mark.parametrize("channels", [1, 5])
def test_an_autoencoder_of_grey_or_of_more_bands_is_evaluated(channels: int) -> None:
    vae = small(in_channels=channels, out_channels=channels)
    batch = torch.rand(4, channels, 16, 16) * 2 - 1
    found = evaluate({"vae": vae}, batch, frechet="random")
    assert found.estimate("vae", "PSNR").value == pytest.approx(psnr(vae(batch).sample, batch).mean().item(), rel=1e-5)
    assert image_channels({"vae": vae}) == channels


def test_autoencoders_of_different_numbers_of_channels_are_an_error_that_names_them() -> None:
    grey, colour = small(in_channels=1, out_channels=1), small()
    with pytest.raises(ValueError, match="the same number of channels, got 1 for grey, 3 for colour"):
        evaluate({"grey": grey, "colour": colour}, images(4))
    with pytest.raises(ValueError, match="as many channels out as in, but depth has 3 in and 1 out"):
        evaluate({"depth": small(out_channels=1)}, images(4))
