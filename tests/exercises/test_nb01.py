"""Typical answers to the exercises of notebook 01: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import numpy as np
import torch

from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

LOG_2PI = math.log(2 * math.pi)


# 01.1


def split_raises(parameters):
    raise NotImplementedError


def split_gaps(parameters):
    mean, logvar = ..., ...
    logvar = ...
    return mean, logvar


def split_gap_unpacked(parameters):
    mean, logvar = ...  # noqa: RUF059
    return mean, ...


def split_half(parameters):
    mean, logvar = parameters.chunk(2, dim=1)
    logvar = ...
    return mean, logvar


def split_third_axis(parameters):
    mean, logvar = parameters.chunk(2, dim=3)
    return mean, logvar.clamp(-30, 20)


def split_third_from_the_end(parameters):
    mean, logvar = parameters.chunk(2, dim=-3)
    return mean, logvar.clamp(-30, 20)


def split_detached(parameters):
    mean, logvar = parameters.chunk(2, dim=1)
    return mean, logvar.detach().clamp(-30, 20)


def split_all_detached(parameters):
    return split_by_slices(parameters.detach())


def split_in_place_on_the_input(parameters):
    mean, logvar = parameters.chunk(2, 1)
    return mean, logvar.clamp_(-30, 20)


def split_in_place_on_a_chunk(parameters):
    mean, logvar = parameters.clone().chunk(2, 1)
    return mean, logvar.clamp_(-30, 20)  # autograd allows this on no output of chunk


def split_assigning_to_the_input(parameters):
    channels = parameters.shape[1] // 2
    parameters[:, channels:] = parameters[:, channels:].clamp(-30, 20)
    return parameters[:, :channels], parameters[:, channels:]


def split_by_slices(parameters):
    channels = parameters.shape[1] // 2
    return parameters[:, :channels], torch.clip(parameters[:, channels:], min=-30.0, max=20.0)


def split_in_place(parameters):
    mean, logvar = torch.chunk(parameters, 2, dim=1)
    logvar = logvar.clone()
    logvar.clamp_(-30, 20)
    return [mean, logvar]


def split_by_minimum_and_maximum(parameters):
    mean, logvar = parameters.unflatten(1, (2, -1)).unbind(1)
    return mean, logvar.maximum(torch.tensor(-30.0)).minimum(torch.tensor(20.0))


def split_in_double(parameters):
    mean, logvar = parameters.double().tensor_split(2, 1)
    return mean, torch.nn.functional.hardtanh(logvar, -30, 20)


def split_by_a_loop(parameters):
    channels = parameters.shape[1] // 2
    mean = torch.stack([parameters[:, c] for c in range(channels)], dim=1)
    logvar = torch.stack([parameters[:, channels + c].clamp(-30, 20) for c in range(channels)], dim=1)
    return mean, logvar


@verdicts("01.1", [split_raises, split_gaps, split_gap_unpacked])
def test_a_blank_split_is_not_attempted(answer):
    assert_blank("01.1", answer)


def test_a_half_written_split_has_an_open_gap():
    assert_rejected("01.1", split_half, "gap `...` is still open")


@mistakes(
    "01.1",
    [
        ("wrong axis", split_third_axis),
        ("inputs of shape (6, 4)", split_third_from_the_end),
        ("a part of the gradient to parameters is cut", split_detached),
        ("no gradient reaches parameters", split_all_detached),
        ("changes its input parameters", split_in_place_on_the_input),
        ("changes its input parameters", split_assigning_to_the_input),
        ("with a gradient to follow it raised RuntimeError", split_in_place_on_a_chunk),
    ],
)
def test_a_wrong_split_is_named(keyword, answer):
    assert_rejected("01.1", answer, keyword)


@verdicts("01.1", [split_by_slices, split_in_place, split_by_minimum_and_maximum, split_in_double, split_by_a_loop])
def test_a_right_split_passes_in_any_style(answer):
    assert_passes("01.1", answer)


# 01.2


def sample_raises(mean, logvar, noise):
    raise NotImplementedError("your code here")


def sample_gaps(mean, logvar, noise):
    std = ...  # noqa: F841
    return ...


def sample_half(mean, logvar, noise):
    std = torch.exp(logvar / 2)
    return mean + ... * std


def sample_with_own_noise(mean, logvar, noise):
    return mean + torch.exp(logvar / 2) * torch.randn_like(mean)


def sample_by_torch_normal(mean, logvar, noise):
    return torch.normal(mean, torch.exp(logvar / 2))


def sample_detached(mean, logvar, noise):
    return (mean + torch.exp(logvar / 2) * noise).detach()


def sample_without_gradients(mean, logvar, noise):
    with torch.no_grad():
        return mean + torch.exp(logvar / 2) * noise


def sample_with_detached_std(mean, logvar, noise):
    std = torch.exp(logvar / 2).data
    return mean + std * noise


def sample_rewrapped(mean, logvar, noise):
    return torch.tensor((mean + torch.exp(logvar / 2) * noise).tolist())


def sample_by_numpy(mean, logvar, noise):
    return torch.from_numpy(mean.numpy() + np.exp(logvar.numpy() / 2) * noise.numpy())


def sample_for_batches_only(mean, logvar, noise):
    return mean.flatten(1).add(torch.exp(logvar / 2).flatten(1) * noise.flatten(1)).view_as(mean)


def sample_in_place_on_the_mean(mean, logvar, noise):
    mean += torch.exp(logvar / 2) * noise
    return mean


def sample_in_place_on_an_input(mean, logvar, noise):
    return noise.mul_(torch.exp(logvar / 2)).add_(mean)


def sample_in_place_on_its_own(mean, logvar, noise):
    z = torch.exp(logvar.mul(0.5))
    z = z * noise
    z += mean
    return z


def sample_by_addcmul(mean, logvar, noise):
    return torch.addcmul(mean, logvar.exp().sqrt(), noise)


def sample_by_einsum(mean, logvar, noise):
    return mean + torch.einsum("...,...->...", torch.exp(logvar / 2), noise)


def sample_in_double(mean, logvar, noise):
    return mean.double() + math.e ** (logvar.double() / 2) * noise.double()


def sample_by_a_loop(mean, logvar, noise):
    return torch.stack([m + torch.exp(v / 2) * n for m, v, n in zip(mean, logvar, noise, strict=True)])


def sample_by_distributions(mean, logvar, noise):
    return torch.distributions.AffineTransform(mean, torch.exp(logvar / 2))(noise)


@verdicts("01.2", [sample_raises, sample_gaps])
def test_a_blank_sample_is_not_attempted(answer):
    assert_blank("01.2", answer)


def test_a_half_written_sample_has_an_open_gap():
    assert_rejected("01.2", sample_half, "gap `...` is still open")


@mistakes(
    "01.2",
    [
        ("random numbers", sample_with_own_noise),
        ("random numbers", sample_by_torch_normal),
        ("no gradient reaches mean and logvar", sample_detached),
        ("no gradient reaches mean and logvar", sample_without_gradients),
        ("no gradient reaches logvar", sample_with_detached_std),
        ("no gradient reaches mean and logvar", sample_rewrapped),
        ("with a gradient to follow it raised RuntimeError", sample_by_numpy),
        ("inputs of shape (6,)", sample_for_batches_only),
        ("changes its input noise", sample_in_place_on_an_input),
        ("changes its input mean", sample_in_place_on_the_mean),
    ],
)
def test_a_wrong_sample_is_named(keyword, answer):
    assert_rejected("01.2", answer, keyword)


@verdicts(
    "01.2",
    [
        sample_in_place_on_its_own,
        sample_by_addcmul,
        sample_by_einsum,
        sample_in_double,
        sample_by_a_loop,
        sample_by_distributions,
    ],
)
def test_a_right_sample_passes_in_any_style(answer):
    assert_passes("01.2", answer)


# 01.3


def nll_raises(mean, logvar, sample):
    raise NotImplementedError


def nll_gaps(mean, logvar, sample):
    each = ...  # noqa: F841
    return ...


def nll_half(mean, logvar, sample):
    each = LOG_2PI + logvar + ...
    return 0.5 * each.flatten(1).sum(1)


def nll_without_half(mean, logvar, sample):
    return (LOG_2PI + logvar + (sample - mean) ** 2 / logvar.exp()).sum(dim=(1, 2, 3))


def nll_without_log_2pi(mean, logvar, sample):
    return 0.5 * (logvar + (sample - mean) ** 2 / logvar.exp()).sum(dim=(1, 2, 3))


def nll_with_one_log_2pi(mean, logvar, sample):
    return 0.5 * (LOG_2PI + (logvar + (sample - mean) ** 2 / logvar.exp()).sum(dim=(1, 2, 3)))


def nll_without_logvar(mean, logvar, sample):
    return 0.5 * (LOG_2PI + (sample - mean) ** 2 / logvar.exp()).sum(dim=(1, 2, 3))


def nll_with_std(mean, logvar, sample):
    std = torch.exp(logvar / 2)
    return 0.5 * (LOG_2PI + logvar + (sample - mean) ** 2 / std).sum(dim=(1, 2, 3))


def nll_divided_by_logvar(mean, logvar, sample):
    return 0.5 * (LOG_2PI + logvar + (sample - mean) ** 2 / logvar).sum(dim=(1, 2, 3))


def nll_averaged(mean, logvar, sample):
    return 0.5 * (LOG_2PI + logvar + (sample - mean) ** 2 / logvar.exp()).mean(dim=(1, 2, 3))


def nll_averaged_over_the_batch(mean, logvar, sample):
    return 0.5 * (LOG_2PI + logvar + (sample - mean) ** 2 / logvar.exp()).sum(dim=(1, 2, 3)).mean()


def nll_log_likelihood(mean, logvar, sample):
    return torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(sample).sum(dim=(1, 2, 3))


def nll_not_squared(mean, logvar, sample):
    return 0.5 * (LOG_2PI + logvar + (sample - mean) / logvar.exp()).sum(dim=(1, 2, 3))


def nll_of_three_images(mean, logvar, sample):
    each = LOG_2PI + logvar + (sample - mean) ** 2 / logvar.exp()
    return 0.5 * each.reshape(3, -1).sum(1)


def nll_squeezed(mean, logvar, sample):
    return nll_by_einsum(mean, logvar, sample).squeeze()


def nll_in_place_on_the_sample(mean, logvar, sample):
    sample.sub_(mean).square_().div_(logvar.exp()).add_(logvar).add_(LOG_2PI).mul_(0.5)
    return sample.flatten(1).sum(1)


def nll_in_place(mean, logvar, sample):
    each = (sample - mean).square_().div_(logvar.exp()).add_(logvar)
    each += LOG_2PI
    return each.mul_(0.5).flatten(1).sum(1)


def nll_by_einsum(mean, logvar, sample):
    scaled = (sample - mean).flatten(1) * torch.exp(-logvar / 2).flatten(1)
    return 0.5 * (torch.einsum("bi,bi->b", scaled, scaled) + logvar.flatten(1).sum(1) + mean[0].numel() * LOG_2PI)


def nll_by_distributions(mean, logvar, sample):
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    return -torch.distributions.Independent(normal, mean.ndim - 1).log_prob(sample)


def nll_by_a_loop(mean, logvar, sample):
    totals = []
    for m, v, s in zip(mean.flatten(1), logvar.flatten(1), sample.flatten(1), strict=True):
        total = 0.0
        for i in range(len(m)):
            total += 0.5 * (math.log(2 * math.pi) + float(v[i]) + float(s[i] - m[i]) ** 2 / math.exp(v[i]))
        totals.append(total)
    return torch.tensor(totals)


def nll_in_double(mean, logvar, sample):
    mean, logvar, sample = mean.double(), logvar.double(), sample.double()
    each = torch.nn.functional.gaussian_nll_loss(mean, sample, logvar.exp(), full=True, reduction="none")
    return each.sum(dim=tuple(range(1, mean.ndim)))


@verdicts("01.3", [nll_raises, nll_gaps])
def test_a_blank_nll_is_not_attempted(answer):
    assert_blank("01.3", answer)


def test_a_half_written_nll_has_an_open_gap():
    assert_rejected("01.3", nll_half, "gap `...` is still open")


@mistakes(
    "01.3",
    [
        ("½ is missing", nll_without_half),
        ("log 2π is missing", nll_without_log_2pi),
        ("log 2π is counted once", nll_with_one_log_2pi),
        ("logvar is missing", nll_without_logvar),
        ("standard deviation", nll_with_std),
        ("divided by logvar", nll_divided_by_logvar),
        ("a mean over the values", nll_averaged),
        ("averaged over the batch", nll_averaged_over_the_batch),
        ("log-likelihood", nll_log_likelihood),
        ("square of (sample - mean) is forgotten", nll_not_squared),
        ("it raised RuntimeError: shape '[3, -1]' is invalid", nll_of_three_images),
        ("expected shape (1,), got ()", nll_squeezed),
        ("changes its input sample", nll_in_place_on_the_sample),
    ],
)
def test_a_wrong_nll_is_named(keyword, answer):
    assert_rejected("01.3", answer, keyword)


@verdicts("01.3", [nll_in_place, nll_by_einsum, nll_by_distributions, nll_by_a_loop, nll_in_double])
def test_a_right_nll_passes_in_any_style(answer):
    assert_passes("01.3", answer)


# 01.4: a right class, and what people get wrong in one of its parts


class Right:
    def __init__(self, parameters, deterministic=False):
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.deterministic = deterministic
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)

    def sample(self, generator=None):
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )  # fmt: skip
        return self.mean + self.std * noise

    def mode(self):
        return self.mean

    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return torch.zeros(len(self.mean))
        return 0.5 * torch.sum(LOG_2PI + self.logvar + (sample - self.mean) ** 2 / self.var, dim=dims)


class BlankRaising:
    def __init__(self, parameters, deterministic=False):
        raise NotImplementedError


class BlankGaps:
    def __init__(self, parameters, deterministic=False):
        self.mean, self.logvar = ..., ...
        self.std = ...
        self.var = ...

    def sample(self, generator=None):
        return ...

    def mode(self):
        return ...

    def nll(self, sample, dims=(1, 2, 3)):
        return ...


class BlankUnpackingAGap:
    def __init__(self, parameters, deterministic=False):
        self.deterministic = deterministic
        self.mean, self.logvar = ...
        self.std = ...
        self.var = ...

    def sample(self, generator=None):
        raise NotImplementedError

    def mode(self):
        raise NotImplementedError

    def nll(self, sample, dims=(1, 2, 3)):
        raise NotImplementedError


class HalfWithTheSplitWritten(BlankGaps):
    def __init__(self, parameters, deterministic=False):
        self.mean, self.logvar = split_by_slices(parameters)
        self.std = ...
        self.var = ...


class HalfWithGaps(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return ...


class HalfRaising(Right):
    def sample(self, generator=None):
        raise NotImplementedError


class StdFromTheUnclamped(Right):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic)
        if not deterministic:
            self.std = torch.exp(0.5 * parameters.chunk(2, dim=1)[1])


class NoClamp(Right):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic)
        self.logvar = parameters.chunk(2, dim=1)[1]


class StdIsVariance(Right):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic)
        self.std = self.var


class HalvesSwapped(Right):
    def __init__(self, parameters, deterministic=False):
        first, second = parameters.chunk(2, dim=1)
        super().__init__(torch.cat([second, first], dim=1), deterministic)


class MeanClampedToo(Right):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters.clamp(-30, 20), deterministic)


class GeneratorIgnored(Right):
    def sample(self, generator=None):
        return self.mean + self.std * torch.randn_like(self.mean)


class NumpyNoise(Right):
    def sample(self, generator=None):
        noise = torch.from_numpy(np.random.standard_normal(tuple(self.mean.shape))).to(self.mean)
        return self.mean + self.std * noise


class SampleIsMean(Right):
    def sample(self, generator=None):
        return self.mean


class SampleWithVariance(Right):
    def sample(self, generator=None):
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.var * noise


class UniformNoise(Right):
    def sample(self, generator=None):
        noise = torch.rand(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * noise


class SameNoiseForAllImages(Right):
    def sample(self, generator=None):
        noise = torch.randn(self.mean.shape[1:], generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * noise


class FixedSeed(Right):
    def sample(self, generator=None):
        generator = torch.Generator().manual_seed(0)
        return super().sample(generator)


class NoiseInSinglePrecision(Right):
    def sample(self, generator=None):
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + self.std * noise


class NoiseOnTheCpu(Right):
    def sample(self, generator=None):
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.std * noise


class SampleWithoutGradient(Right):
    @torch.no_grad()
    def sample(self, generator=None):
        return super().sample(generator)


class StdWithoutGradient(Right):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic)
        self.std = self.std.detach()


class SampleWithoutGenerator(Right):
    def sample(self):
        return super().sample()


class ModeIsSample(Right):
    def mode(self):
        return self.sample()


class DeterministicIgnored(Right):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic=False)


class DeterministicOnlyInStd(Right):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic)
        self.var = torch.exp(self.logvar)


class DeterministicNllForgotten(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return 0.5 * torch.sum(LOG_2PI + self.logvar + (sample - self.mean) ** 2 / self.var, dim=dims)


class DeterministicNllOfOneNumber(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return torch.Tensor([0.0]) if self.deterministic else super().nll(sample, dims)


class DeterministicNllOfInteger(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return 0 if self.deterministic else super().nll(sample, dims)


class DeterministicNllOfScalar(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return torch.tensor(0.0) if self.deterministic else super().nll(sample, dims)


class DeterministicNllOfWholeNumbers(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return torch.zeros(len(sample), dtype=torch.long) if self.deterministic else super().nll(sample, dims)


class DeterministicNllOfOrdinaryVariance(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return Right(torch.cat([self.mean, self.logvar], dim=1)).nll(sample, dims) if self.deterministic else (
            super().nll(sample, dims)
        )  # fmt: skip


class DeterministicSampleIgnored(Right):
    def sample(self, generator=None):
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return EXERCISES["01.2"].reference(mean, self.logvar, noise)


class SampleInPlace(Right):
    def sample(self, generator=None):
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return self.mean.add_(noise.mul_(self.std))


class SampleWithStdInPlace(Right):
    def sample(self, generator=None):
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        self.std *= noise
        return mean + self.std


class ClampInPlace(Right):
    def __init__(self, parameters, deterministic=False):
        parameters.chunk(2, 1)[1].clamp_(-30, 20)
        super().__init__(parameters, deterministic)


class NllInPlace(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        sample -= self.mean
        if self.deterministic:
            return torch.zeros(len(self.mean))
        return 0.5 * torch.sum(LOG_2PI + self.logvar + sample**2 / self.var, dim=dims)


class SampleWithoutReturn(Right):
    def sample(self, generator=None):
        super().sample(generator)


class ModeWithoutReturn(Right):
    def mode(self):
        """The most likely value."""


class NllWithoutReturn(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        super().nll(sample, dims)


class NllWithoutHalf(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return 2 * super().nll(sample, dims)


class NllIgnoresDims(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        return super().nll(sample, dims=tuple(range(1, sample.ndim)))


class WithProperties:
    def __init__(self, parameters, deterministic=False):
        self.parameters, self.deterministic = parameters, deterministic

    @property
    def mean(self):
        return self.parameters[:, : self.parameters.shape[1] // 2]

    @property
    def logvar(self):
        return self.parameters[:, self.parameters.shape[1] // 2 :].clamp(min=-30, max=20)

    @property
    def var(self):
        return self.logvar.exp() * (not self.deterministic)

    @property
    def std(self):
        return self.var.sqrt()

    def sample(self, generator=None):
        return self.mode() + self.std * torch.empty_like(self.mean).normal_(generator=generator)

    def mode(self):
        return self.mean

    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return sample.new_zeros(sample.shape[0])
        return (0.5 * (math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var)).sum(dims)


class WithDistributions(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return torch.zeros(sample.shape[0])
        return -torch.distributions.Normal(self.mean, self.std).log_prob(sample).sum(dims)


class WithFlatNoise(Right):
    def sample(self, generator=None):
        noise = torch.randn(self.mean.numel(), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean - self.std * noise.view_as(self.mean)


class InDouble(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return torch.zeros(len(self.mean), dtype=torch.float64)
        each = LOG_2PI + self.logvar.double() + (sample.double() - self.mean.double()) ** 2 / self.var.double()
        return each.sum(dim=dims) / 2


class AsModule(torch.nn.Module):
    def __init__(self, parameters, deterministic=False):
        super().__init__()
        self.inner = Right(parameters, deterministic)
        self.mean, self.logvar, self.std, self.var = (getattr(self.inner, n) for n in ("mean", "logvar", "std", "var"))

    def sample(self, generator=None):
        return self.inner.sample(generator)

    def mode(self):
        return self.inner.mean.clone()

    def nll(self, sample, dims=(1, 2, 3)):
        return self.inner.nll(sample, dims)


@verdicts("01.4", [BlankRaising, BlankGaps, BlankUnpackingAGap])
def test_a_blank_class_is_not_attempted(answer):
    assert_blank("01.4", answer)


@mistakes("01.4", [("self.std = ...", HalfWithTheSplitWritten), ("nll()", HalfWithGaps), ("sample()", HalfRaising)])
def test_a_half_written_class_names_the_open_gap(keyword, answer):
    assert_rejected("01.4", answer, "gap `...` is still open")
    assert_rejected("01.4", answer, keyword)


@mistakes(
    "01.4",
    [
        ("std of large values: the log-variance is not clamped", StdFromTheUnclamped),
        ("logvar of large values: the log-variance is not clamped", NoClamp),
        ("std: this is the variance", StdIsVariance),
        ("mean: it is the second half", HalvesSwapped),
        ("it is clamped", MeanClampedToo),
        ("generator is ignored", GeneratorIgnored),
        ("generator is ignored", NumpyNoise),
        ("returns the mean", SampleIsMean),
        ("multiplied by the variance", SampleWithVariance),
        ("randn", UniformNoise),
        ("same noise is used several times", SameNoiseForAllImages),
        ("noise is always the same", FixedSeed),
        ("dtype of the mean", NoiseInSinglePrecision),
        ("device of the mean", NoiseOnTheCpu),
        ("no gradient reaches the parameters", SampleWithoutGradient),
        ("gradient is cut", StdWithoutGradient),
        ("sample(): it raised TypeError", SampleWithoutGenerator),
        ("mode(), the mean: the same input gave two different results", ModeIsSample),
        ("deterministic is ignored", DeterministicIgnored),
        ("var with deterministic=True: deterministic is ignored", DeterministicOnlyInStd),
        ("nll() with deterministic=True", DeterministicNllForgotten),
        (
            "expected zeros of shape (B,), one number for each image; got zeros of shape (1,)",
            DeterministicNllOfOneNumber,
        ),
        ("expected zeros of shape (B,), one number for each image; got 0", DeterministicNllOfInteger),
        ("expected zeros of shape (B,), one number for each image; got zeros of shape ()", DeterministicNllOfScalar),
        ("got whole numbers of shape (3,)", DeterministicNllOfWholeNumbers),
        ("got other values", DeterministicNllOfOrdinaryVariance),
        (
            "sample() with deterministic=True: the sample must be the mean: multiply the noise by self.std, which is",
            DeterministicSampleIgnored,
        ),
        ("it changes self.mean", SampleInPlace),
        ("it changes self.std", SampleWithStdInPlace),
        ("changes its input parameters", ClampInPlace),
        ("nll(): the values are right, but it changes its input sample", NllInPlace),
        ("sample(): it returns None: is a return missing?", SampleWithoutReturn),
        ("mode(), the mean: it returns None: is a return missing?", ModeWithoutReturn),
        ("nll(): it returns None: is a return missing?", NllWithoutReturn),
        ("nll(): the factor ½ is missing", NllWithoutHalf),
        ("dims is ignored", NllIgnoresDims),
    ],
)
def test_a_wrong_class_is_named(keyword, answer):
    assert_rejected("01.4", answer, keyword)


@verdicts("01.4", [Right, WithProperties, WithDistributions, WithFlatNoise, InDouble, AsModule])
def test_a_right_class_passes_in_any_style(answer):
    assert_passes("01.4", answer)
