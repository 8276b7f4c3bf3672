"""Exercises of notebook 09: right answers in many styles, and solutions that agree with the package."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from klvae_edu import metrics
from klvae_edu.exercises import EXERCISES, nb09
from klvae_edu.exercises.judges.functions import probe
from klvae_edu.exercises.nb09 import local_mean
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

# Right answers


def psnr_by_a_loop(reconstruction, target):
    total = 0
    for x, y in zip(reconstruction, target, strict=True):
        total += 10 * torch.log10(4 / F.mse_loss(x.clamp(-1, 1), y))
    return total / len(target)


def psnr_by_norms(reconstruction, target):
    root = (reconstruction.clip(-1, 1) - target).flatten(1).norm(dim=1) / math.sqrt(target[0].numel())
    return 20 * torch.log10(2 / root).mean()


def psnr_in_double(reconstruction, target):
    difference = reconstruction.double().clamp(min=-1, max=1).sub_(target.double())
    return -10 * torch.log10(torch.einsum("bchw,bchw->b", difference, difference) / target[0].numel() / 4).mean()


def psnr_by_the_package(reconstruction, target):
    return metrics.psnr(reconstruction, target).mean()


def psnr_by_torchmetrics(reconstruction, target):
    return peak_signal_noise_ratio(reconstruction.clamp(-1, 1), target, data_range=2.0, dim=(1, 2, 3))


def ssim_like(a, b, window, c1=0.01**2, c2=0.03**2):
    mean_a, mean_b = local_mean(a, window), local_mean(b, window)
    var_a = local_mean(a**2, window) - mean_a**2
    var_b = local_mean(b**2, window) - mean_b**2
    cov = local_mean(a * b, window) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def ssim_from_zero_to_two(reconstruction, target, window):
    return ssim_like(reconstruction + 1, target + 1, window, 0.02**2, 0.06**2).flatten(1).mean(1)


def ssim_by_three_factors(reconstruction, target, window):
    a, b = 0.5 * reconstruction + 0.5, 0.5 * target + 0.5
    moments = local_mean(torch.cat([a, b, a * a, b * b, a * b]), window).chunk(5)
    ma, mb, va, vb, cov = *moments[:2], *(m - n for m, n in zip(moments[2:], _squares(*moments[:2]), strict=True))
    sa, sb = va.clamp(min=1e-12).sqrt(), vb.clamp(min=1e-12).sqrt()
    c1, c2 = 1e-4, 9e-4
    light, contrast = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1), (2 * sa * sb + c2) / (va + vb + c2)
    return (light * contrast * (cov + c2 / 2) / (sa * sb + c2 / 2)).mean((1, 2, 3))


def _squares(ma, mb):
    return ma * ma, mb * mb, ma * mb


def ssim_by_differences(reconstruction, target, window):
    a, b = (reconstruction.double() + 1) / 2, (target.double() + 1) / 2
    blur = nn.utils.skip_init(nn.Conv2d, 1, 1, len(window), bias=False, dtype=torch.float64).requires_grad_(False)
    blur.weight.copy_(window)

    def mean(x):
        m = len(window) // 2
        return blur(F.pad(x, (m, m, m, m), mode="reflect").flatten(0, 1)[:, None]).view_as(x)

    ma, mb = mean(a), mean(b)
    cov, total = mean(a * b) - ma * mb, mean(a * a + b * b) - ma**2 - mb**2
    light = 1 - (ma - mb) ** 2 / (ma**2 + mb**2 + 1e-4)
    return torch.stack([x.mean() for x in light * (2 * cov + 9e-4) / (total + 9e-4)])


def ssim_by_a_loop(reconstruction, target, window):
    values = []
    for x, y in zip(reconstruction, target, strict=True):
        channels = [
            ssim_like((p[None, None] + 1) / 2, (q[None, None] + 1) / 2, window) for p, q in zip(x, y, strict=True)
        ]
        values.append(torch.stack(channels).mean())
    return torch.stack(values)


def ssim_clamped(reconstruction, target, window):
    return ssim_like((reconstruction.clamp(-1, 1) + 1) / 2, (target + 1) / 2, window).mean(dim=(1, 2, 3))


def eigenvalues(matrix):
    return torch.linalg.eigvals(matrix).real.clamp(min=0)


def frechet_biased(features, others):
    x, y = features - features.mean(0), others - others.mean(0)
    a, b = x.T @ x / len(x), y.T @ y / len(y)
    means = (features.mean(0) - others.mean(0)).square().sum()
    return means + a.trace() + b.trace() - 2 * eigenvalues(a @ b).sqrt().sum()


def frechet_by_a_symmetric_root(features, others):
    a, b = torch.cov(features.T), torch.cov(others.T)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return (features.mean(0) - others.mean(0)).square().sum() + a.trace() + b.trace() - 2 * overlap


def frechet_by_singular_values(features, others):
    x = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    y = (others - others.mean(0)) / (len(others) - 1) ** 0.5
    nuclear = torch.linalg.svdvals(x @ y.T).sum()
    return F.mse_loss(features.mean(0), others.mean(0), reduction="sum") + (x**2).sum() + (y**2).sum() - 2 * nuclear


def frechet_by_scipy(features, others):
    from scipy.linalg import sqrtm

    a, b = torch.cov(features.T).numpy(), torch.cov(others.T).numpy()
    means = ((features.mean(0) - others.mean(0)) ** 2).sum()
    return means + torch.tensor((a + b - 2 * sqrtm(a @ b).real).trace())


def frechet_by_loops(features, others):
    def moments(x):
        mean = sum(x) / len(x)
        return mean, sum(torch.outer(row - mean, row - mean) for row in x) / (len(x) - 1)

    (mu, a), (nu, b) = moments(features), moments(others)
    return (mu - nu) @ (mu - nu) + torch.trace(a) + torch.trace(b) - 2 * eigenvalues(b @ a).sqrt().sum()


def frechet_in_single(features, others):
    return EXERCISES["09.3"].reference(features.float(), others.float())


def ratios_by_the_factor(side, factor, channels, bits, codes):
    pixel_bits = 3 * 8 * factor * factor
    return pixel_bits / channels / bits, pixel_bits / math.log(codes, 2)


def ratios_by_torch(side, factor, channels, bits, codes):
    latent = torch.empty(side // factor, side // factor)
    sizes = torch.tensor([latent.numel() * channels * bits, latent.numel() * (codes - 1).bit_length()])
    return 8 * torch.empty(3, side, side).numel() / sizes


def ratios_in_a_list(side, factor, channels, bits, codes):
    places = (side / factor) ** 2
    return [8 * 3 * side**2 / size for size in (places * channels * bits, places * math.log2(codes))]


def ratios_of_bytes(side, factor, channels, bits, codes):
    image, places = 3 * side**2, (side // factor) ** 2
    return image / (places * channels * bits / 8), image / (places * math.log2(codes) / 8)


def ratios_by_shape(side, factor, channels, bits, codes):
    h = w = side // factor
    return (side * side * 3 * 8) / (h * w * channels * bits), (side * side * 3 * 8) / (
        h * w * math.log10(codes) / math.log10(2)
    )


@all_verdicts(
    {
        "09.1": (psnr_by_a_loop, psnr_by_norms, psnr_in_double, psnr_by_the_package, psnr_by_torchmetrics),
        "09.2": (ssim_from_zero_to_two, ssim_by_three_factors, ssim_by_differences, ssim_by_a_loop, ssim_clamped),
        "09.3": (
            frechet_biased,
            frechet_by_a_symmetric_root,
            frechet_by_singular_values,
            frechet_by_scipy,
            frechet_by_loops,
            frechet_in_single,
        ),
        "09.4": (ratios_by_the_factor, ratios_by_torch, ratios_in_a_list, ratios_of_bytes, ratios_by_shape),
    }
)
def test_right_answers_pass_in_any_style(id, answer):
    assert_passes(id, answer)


# A function of torch.linalg that would not return


def frechet_with_nan_for_linalg(features, others):
    """Take eigvals of roots of entries, one of them negative; cross is harmless should the guard fail."""
    a, b = torch.cov(features.T), torch.cov(others.T)
    return torch.linalg.cross(*(-(a @ b)[:2, :3]).sqrt()).sum()


def test_nan_on_its_way_to_a_decomposition_has_a_verdict_and_so_have_later_attempts():
    assert_rejected("09.3", frechet_with_nan_for_linalg, "torch.linalg got NaN or infinite values, as from the root")
    message, mistake = nb09.FRECHET_MISTAKES[0]
    assert_rejected("09.3", mistake, message)
    assert_passes("09.3", frechet_by_a_symmetric_root)


# The solutions agree with the package


def test_the_ssim_is_the_packages_and_torchmetrics_unshifted_one_is_named():
    a, b = (image.clamp(-1, 1) for image in probe((2, 3, 24, 20), (2, 3, 24, 20), scale=0.4))
    row = torch.exp(-((torch.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(row, row) / row.sum() ** 2
    ours = EXERCISES["09.2"].reference(a, b, window)
    torch.testing.assert_close(ours, metrics.ssim(a, b), rtol=1e-4, atol=0)
    unshifted = structural_similarity_index_measure(a, b, data_range=2.0, reduction="none")
    (named,) = (code for message, code in nb09.SSIM_MISTAKES if message.startswith("not shifted"))
    torch.testing.assert_close(named(a, b, window), unshifted, rtol=1e-4, atol=0)


def test_the_frechet_distance_is_the_packages():
    a, b = torch.rand(2, 70, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    b = (b * 0.7).clamp(-1, 1)
    theirs = metrics.FrechetDistance("random")
    theirs.update(a, b)
    network = metrics.RandomFeatures()
    ours = EXERCISES["09.3"].reference(network(a).double(), network(b).double())
    assert ours.item() == pytest.approx(theirs.compute(), rel=1e-3)


def test_the_ratios_are_those_of_the_papers_rows():
    assert EXERCISES["09.4"].reference(256, 8, 4, 16, 16384) == (24.0, 24 * 64 / 14)
