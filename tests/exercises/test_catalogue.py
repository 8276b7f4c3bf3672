"""Properties of every exercise."""

from __future__ import annotations

import math

import pytest
import torch

from klvae_edu.exercises import EXERCISES, nb01, nb02, nb03, nb04, nb05, nb06, nb07, nb08, nb09, nb10, nb11, nb12
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.losses import vae_loss

MISTAKES = {
    "01.1": nb01.SPLIT_MISTAKES,
    "01.2": nb01.SAMPLE_MISTAKES,
    "01.3": nb01.NLL_MISTAKES,
    "02.1": nb02.KL_MISTAKES,
    "02.2": nb02.BETWEEN_MISTAKES,
    "02.3": nb02.MONTE_CARLO_MISTAKES,
    "02.4": nb02.LOSS_MISTAKES,
    "03.1": nb03.GROUP_NORM_MISTAKES,
    "03.2": nb03.SILU_MISTAKES,
    "03.3": nb03.POINTWISE_MISTAKES,
    "03.4": nb03.RESNET_MISTAKES,
    "04.1": nb04.DOWNSAMPLE_MISTAKES,
    "04.2": nb04.UPSAMPLE_MISTAKES,
    "04.3": nb04.FIELD_MISTAKES,
    "04.4": nb04.ATTENTION_MISTAKES,
    "04.5": nb04.BLOCK_MISTAKES,
    "05.1": nb05.WALK_MISTAKES,
    "05.2": nb05.ENCODER_MISTAKES,
    "05.3": nb05.DECODER_MISTAKES,
    "05.5": nb05.NAME_MISTAKES,
    "06.1": nb06.PCA_MISTAKES,
    "06.2": nb06.LENGTH_MISTAKES,
    "06.3": nb06.DISTANCE_MISTAKES,
    "06.4": nb06.TOTAL_MISTAKES,
    "06.5": nb06.WEIGHT_MISTAKES,
    "07.1": nb07.PATCHGAN_MISTAKES,
    "07.2": nb07.FIELD_MISTAKES,
    "07.3": nb07.DISCRIMINATOR_LOSS_MISTAKES,
    "07.4": nb07.WEIGHT_MISTAKES,
    "07.5": nb07.STEP_MISTAKES,
    "08.1": nb08.GENERATOR_MISTAKES,
    "08.2": nb08.SURROGATE_MISTAKES,
    "08.3": nb08.SCHEDULE_MISTAKES,
    "08.4": nb08.EMA_MISTAKES,
    "08.5": nb08.SNAPSHOT_MISTAKES,
    "09.1": nb09.PSNR_MISTAKES,
    "09.2": nb09.SSIM_MISTAKES,
    "09.3": nb09.FRECHET_MISTAKES,
    "09.4": nb09.COMPRESSION_MISTAKES,
    "09.5": nb09.VQ_MISTAKES,
    "10.1": nb10.STATISTICS_MISTAKES,
    "10.2": nb10.PREVIEW_MISTAKES,
    "10.3": nb10.TEMPERATURE_MISTAKES,
    "10.4": nb10.SLERP_MISTAKES,
    "10.5": nb10.QUANTISE_MISTAKES,
    "11.1": nb11.FACTOR_MISTAKES,
    "11.2": nb11.SPREAD_MISTAKES,
    "11.3": nb11.PATH_MISTAKES,
    "11.4": nb11.INTEGRATE_MISTAKES,
    "12.1": nb12.RAMP_MISTAKES,
    "12.2": nb12.POOL_MISTAKES,
    "12.3": nb12.NORM_MISTAKES,
    "12.4": nb12.ROWS_MISTAKES,
    "12.5": nb12.COST_MISTAKES,
}


def test_the_catalogue_is_in_order_and_complete():
    numbers = {f"{notebook:02}": 5 for notebook in range(1, 13)} | {"01": 4, "02": 4, "03": 4, "11": 4}
    assert list(EXERCISES) == [f"{nb}.{number}" for nb, count in numbers.items() for number in range(1, count + 1)]


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.id)
def test_every_entry_is_filled(exercise):
    assert exercise.notebook.startswith(exercise.id[:3].replace(".", "_"))
    assert 1 <= exercise.difficulty <= 5 and exercise.minutes > 0 and len(exercise.title) <= 45
    assert len(exercise.hints) >= 2 and len(set(exercise.hints)) == len(exercise.hints)
    assert exercise.in_package


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.id)
def test_the_finished_version_passes(exercise):
    assert exercise.run(exercise.reference).passed


def gaussian(mean, logvar):
    return DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))


def split(parameters):
    posterior = DiagonalGaussianDistribution(parameters)
    return posterior.mean, posterior.logvar


def sample(mean, logvar, noise):
    return mean + gaussian(mean, logvar).std * noise


def nll(mean, logvar, sample):
    return gaussian(mean, logvar).nll(sample, dims=tuple(range(1, mean.ndim)))


def monte_carlo_kl(mean, logvar, noise):
    z = sample(mean, logvar, noise)
    q, p = gaussian(mean, logvar), gaussian(torch.zeros_like(mean), torch.zeros_like(logvar))
    dims = tuple(range(2, z.ndim))
    return (p.nll(z, dims) - q.nll(z, dims)).mean(0)


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (5, 7), (1, 1)])
@pytest.mark.parametrize(
    ("id", "arguments", "by_the_package"),
    [
        ("01.2", 3, sample),
        ("01.3", 3, nll),
        ("02.1", 2, lambda mean, logvar: gaussian(mean, logvar).kl()),
        ("02.2", 4, lambda mean, logvar, *other: gaussian(mean, logvar).kl(gaussian(*other))),
        ("02.3", 3, monte_carlo_kl),
    ],
)
def test_the_finished_version_does_what_the_package_does(id, arguments, by_the_package, shape):
    torch.manual_seed(0)
    shapes = [shape] * (arguments - 1) + [(6, *shape) if id == "02.3" else shape]
    tensors = [torch.randn(size, dtype=torch.float64) for size in shapes]
    torch.testing.assert_close(
        EXERCISES[id].reference(*tensors), by_the_package(*tensors), rtol=1e-12, atol=1e-12, check_stride=False
    )


@pytest.mark.parametrize("shape", [(3, 8, 5, 2), (5, 6)])
def test_the_finished_split_does_what_the_class_does(shape):
    torch.manual_seed(0)
    parameters = 25 * torch.randn(shape, dtype=torch.float64)
    assert parameters.min() < -30 and parameters.max() > 20
    for ours, theirs in zip(EXERCISES["01.1"].reference(parameters), split(parameters), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("weight", [1e-6, 0.7])
def test_the_finished_loss_does_what_the_package_does(weight):
    torch.manual_seed(0)
    reconstruction, target = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    posterior = DiagonalGaussianDistribution(torch.randn(4, 6, 2, 2, dtype=torch.float64))
    ours = EXERCISES["02.4"].reference(reconstruction, target, posterior, weight)
    theirs = vae_loss(reconstruction, target, posterior, kl_weight=weight)["loss"]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_the_default_weight_is_the_packages():
    torch.manual_seed(0)
    images, posterior = torch.zeros(2, 1, 3, 4, 4), DiagonalGaussianDistribution(1000 * torch.ones(1, 2, 1, 1))
    assert torch.equal(EXERCISES["02.4"].reference(*images, posterior), vae_loss(*images, posterior)["loss"])


def test_the_finished_sample_takes_numbers_in_a_row():
    mean, logvar, noise = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2 * math.log(3)]), torch.tensor([1.0, -1.0])
    torch.testing.assert_close(EXERCISES["01.2"].reference(mean, logvar, noise), torch.tensor([3.0, -3.0]))


@pytest.mark.parametrize("id", MISTAKES)
def test_the_probes_tell_every_known_mistake_from_the_truth_and_from_the_others(id):
    for message, code in MISTAKES[id]:
        assert EXERCISES[id].run(code).message == message
        assert "\n" not in message
