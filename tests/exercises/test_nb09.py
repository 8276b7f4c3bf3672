"""Typical answers to the exercises of notebook 09: blank, unfinished, wrong, and right in many styles."""

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
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

# 09.1


def psnr_raises(reconstruction, target):
    raise NotImplementedError


def psnr_gaps(reconstruction, target):
    error = ...  # noqa: F841
    return ...


def psnr_half(reconstruction, target):
    error = ...
    return (10 * torch.log10(4 / error)).mean()


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


@verdicts("09.1", [psnr_raises, psnr_gaps])
def test_a_blank_psnr_is_not_attempted(answer):
    assert_blank("09.1", answer)


@mistakes(
    "09.1",
    [
        ("gap `...` is still open", psnr_half),
    ],
)
def test_a_wrong_psnr_is_named(keyword, answer):
    assert_rejected("09.1", answer, keyword)


@verdicts("09.1", [psnr_by_a_loop, psnr_by_norms, psnr_in_double, psnr_by_the_package, psnr_by_torchmetrics])
def test_a_right_psnr_passes_in_any_style(answer):
    assert_passes("09.1", answer)


# 09.2


def ssim_raises(reconstruction, target, window):
    raise NotImplementedError


def ssim_gaps(reconstruction, target, window):
    a, b = ...  # noqa: RUF059
    mean_a, mean_b = ...  # noqa: RUF059
    var_a, var_b, cov = ...  # noqa: RUF059
    luminance, structure = ...  # noqa: RUF059
    return ...


def ssim_half(reconstruction, target, window):
    a, b = (reconstruction + 1) / 2, (target + 1) / 2
    mean_a, mean_b = local_mean(a, window), local_mean(b, window)
    cov = ...
    return ((2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)).mean((1, 2, 3))


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
    blur = nn.Conv2d(1, 1, len(window), bias=False, dtype=torch.float64).requires_grad_(False)
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


@verdicts("09.2", [ssim_raises, ssim_gaps])
def test_a_blank_ssim_is_not_attempted(answer):
    assert_blank("09.2", answer)


@mistakes(
    "09.2",
    [
        ("gap `...` is still open", ssim_half),
    ],
)
def test_a_wrong_ssim_is_named(keyword, answer):
    assert_rejected("09.2", answer, keyword)


@verdicts("09.2", [ssim_from_zero_to_two, ssim_by_three_factors, ssim_by_differences, ssim_by_a_loop, ssim_clamped])
def test_a_right_ssim_passes_in_any_style(answer):
    assert_passes("09.2", answer)


def test_the_finished_ssim_is_the_packages_and_torchmetrics_unshifted_one_is_named():
    a, b = (image.clamp(-1, 1) for image in probe((2, 3, 24, 20), (2, 3, 24, 20), scale=0.4))
    row = torch.exp(-((torch.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(row, row) / row.sum() ** 2
    torch.testing.assert_close(nb09.ssim(a, b, window), metrics.ssim(a, b), rtol=1e-4, atol=0)
    unshifted = structural_similarity_index_measure(a, b, data_range=2.0, reduction="none")
    (message,) = (message for message, _ in nb09.SSIM_MISTAKES if message.startswith("not shifted"))
    named = dict(nb09.SSIM_MISTAKES)[message]
    torch.testing.assert_close(named(a, b, window), unshifted, rtol=1e-4, atol=0)


# 09.3


def frechet_raises(features, others):
    raise NotImplementedError


def frechet_gaps(features, others):
    means = ...  # noqa: F841
    a, b = ...  # noqa: RUF059
    roots = ...  # noqa: F841
    return ...


def frechet_half(features, others):
    means = (features.mean(0) - others.mean(0)).pow(2).sum()
    roots = ...
    return means + torch.cov(features.T).trace() + torch.cov(others.T).trace() - 2 * roots.sum()


def frechet_like(features, others, root, power=2, two=2):
    a, b = torch.cov(features.T), torch.cov(others.T)
    means = (features.mean(0) - others.mean(0)).norm() ** power
    return means + torch.trace(a + b) - two * root(a, b)


def eigenvalues(matrix):
    return torch.linalg.eigvals(matrix).real.clamp(min=0)


def frechet_without_the_two(features, others):
    return frechet_like(features, others, lambda a, b: eigenvalues(a @ b).sqrt().sum(), two=1)


def frechet_of_images(features, others):
    a, b = torch.cov(features), torch.cov(others)
    return a.trace() + b.trace() - 2 * torch.linalg.eigvals(a @ b).real.sqrt().sum()


def frechet_biased(features, others):
    x, y = features - features.mean(0), others - others.mean(0)
    a, b = x.T @ x / len(x), y.T @ y / len(y)
    means = (features.mean(0) - others.mean(0)).square().sum()
    return means + a.trace() + b.trace() - 2 * eigenvalues(a @ b).sqrt().sum()


def frechet_complex(features, others):
    return frechet_like(features, others, lambda a, b: torch.linalg.eigvals(a @ b).sqrt().sum())


def frechet_without_a_clamp(features, others):
    return frechet_like(features, others, lambda a, b: torch.linalg.eigvals(a @ b).real.pow(0.5).sum())


def frechet_without_a_clamp_or_the_two(features, others):
    return frechet_like(features, others, lambda a, b: torch.linalg.eigvals(a @ b).real.pow(0.5).sum(), two=1)


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
    return nb09.frechet_distance(features.float(), others.float())


@verdicts("09.3", [frechet_raises, frechet_gaps])
def test_a_blank_frechet_distance_is_not_attempted(answer):
    assert_blank("09.3", answer)


@mistakes(
    "09.3",
    [
        ("gap `...` is still open", frechet_half),
        ("2 before the root is missing", frechet_without_the_two),
        ("it takes features.T", frechet_of_images),
        ("divided by N", frechet_biased),
        ("complex", frechet_complex),
        ("clamp(min=0) before the root", frechet_without_a_clamp),
        ("2 before the root is missing", frechet_without_a_clamp_or_the_two),
    ],
)
def test_a_wrong_frechet_distance_is_named(keyword, answer):
    assert_rejected("09.3", answer, keyword)


@verdicts(
    "09.3",
    [
        frechet_by_a_symmetric_root,
        frechet_by_singular_values,
        frechet_by_scipy,
        frechet_by_loops,
        frechet_in_single,
    ],
)
def test_a_right_frechet_distance_passes_in_any_style(answer):
    assert_passes("09.3", answer)


def frechet_with_nan_for_linalg(features, others):
    """As eigvals of roots of entries, if one is negative; cross is harmless should the guard fail."""
    return frechet_like(features, others, lambda a, b: torch.linalg.cross(*(-(a @ b)[:2, :3]).sqrt()).sum())


def test_nan_on_its_way_to_a_decomposition_has_a_verdict_and_so_have_later_attempts():
    assert_rejected("09.3", frechet_with_nan_for_linalg, "torch.linalg got NaN or infinite values, as from the root")
    assert_rejected("09.3", frechet_without_the_two, "2 before the root is missing")
    assert_passes("09.3", frechet_by_a_symmetric_root)


def test_the_finished_frechet_distance_is_the_packages():
    a, b = torch.rand(2, 70, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    b = (b * 0.7).clamp(-1, 1)
    finished = metrics.FrechetDistance("random")
    finished.update(a, b)
    network = metrics.RandomFeatures()
    ours = nb09.frechet_distance(network(a).double(), network(b).double())
    assert ours.item() == pytest.approx(finished.compute(), rel=1e-3)


# 09.4


def ratios_raises(side, factor, channels, bits, codes):
    raise NotImplementedError


def ratios_gaps(side, factor, channels, bits, codes):
    image, places = ...  # noqa: RUF059
    return ..., ...


def ratios_half(side, factor, channels, bits, codes):
    image, places = 3 * side * side * 8, (side // factor) ** 2
    return image / (places * channels * bits), ...


def ratios_at_16_bits(side, factor, channels, bits, codes):
    image, places = 24 * side**2, (side // factor) ** 2
    return image / (places * channels * 16), image / (places * math.log2(codes))


def ratios_as_a_dict(side, factor, channels, bits, codes):
    return {"kl": 24 * factor**2 / (channels * bits), "vq": 24 * factor**2 / math.log2(codes)}


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


@verdicts("09.4", [ratios_raises, ratios_gaps])
def test_blank_ratios_are_not_attempted(answer):
    assert_blank("09.4", answer)


@mistakes(
    "09.4",
    [
        ("gap `...` is still open", ratios_half),
        ("right for the text's numbers only", ratios_at_16_bits),
        ("expected two numbers", ratios_as_a_dict),
    ],
)
def test_wrong_ratios_are_named(keyword, answer):
    assert_rejected("09.4", answer, keyword)


@verdicts("09.4", [ratios_by_the_factor, ratios_by_torch, ratios_in_a_list, ratios_of_bytes, ratios_by_shape])
def test_right_ratios_pass_in_any_style(answer):
    assert_passes("09.4", answer)


def test_the_ratios_are_those_of_the_papers_rows():
    assert nb09.compression(256, 8, 4, 16, 16384) == (24.0, 24 * 64 / 14)


# 09.5


def vq_raises(z, codebook):
    raise NotImplementedError


def vq_gaps(z, codebook):
    vectors = ...  # noqa: F841
    nearest = ...  # noqa: F841
    codebook_loss, commitment_loss = ...
    return ..., codebook_loss, commitment_loss


def vq_half(z, codebook):
    nearest = lookup(z, codebook)
    codebook_loss, commitment_loss = F.mse_loss(nearest, z.detach()), ...
    return z + (nearest - z).detach(), codebook_loss, commitment_loss


def lookup(z, codebook):
    rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    index = torch.cdist(rows, codebook).argmin(dim=1)
    b, c, h, w = z.shape
    return codebook[index].reshape(b, h, w, c).permute(0, 3, 1, 2)


def result(z, nearest):
    losses = F.mse_loss(nearest, z.detach()), F.mse_loss(z, nearest.detach())
    return z + (nearest - z).detach(), *losses


def vq_cancelled(z, codebook):
    e = lookup(z, codebook)
    return z + e - z, F.mse_loss(e, z.detach()), F.mse_loss(z, e.detach())


def vq_under_no_grad(z, codebook):
    with torch.no_grad():
        e = lookup(z, codebook)
    return result(z, e)


def vq_of_indices(z, codebook):
    return torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), codebook).argmin(1)


def vq_in_place(z, codebook):
    e = lookup(z, codebook)
    losses = F.mse_loss(e, z.detach().clone()), F.mse_loss(z.clone(), e.detach())
    with torch.no_grad():
        z.copy_(e)
    return z, *losses


def vq_by_broadcasting(z, codebook):
    distances = (z[:, None] - codebook[None, :, :, None, None]).pow(2).sum(2)
    e = F.embedding(distances.argmin(1), codebook).movedim(-1, 1)
    return z - (z - e).detach(), (e - z.detach()).pow(2).mean(), (e.detach() - z).pow(2).mean()


def vq_by_one_hot(z, codebook):
    rows = z.movedim(1, -1)
    squared = rows.pow(2).sum(-1, keepdim=True) - 2 * rows @ codebook.T + codebook.pow(2).sum(1)
    chosen = F.one_hot(squared.argmin(-1), len(codebook)).to(z.dtype)
    e = torch.einsum("bhwk,kc->bchw", chosen, codebook)
    return result(z, e)


def vq_by_loops(z, codebook):
    e = torch.stack(
        [
            torch.stack([codebook[(codebook - v).norm(dim=1).argmin()] for v in image.flatten(1).T], 1).view_as(image)
            for image in z
        ]
    )
    return list(result(z, e))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, e):
        return e.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def vq_by_a_function(z, codebook):
    e = lookup(z, codebook)
    return StraightThrough.apply(z, e.detach()), F.mse_loss(e, z.detach()), F.mse_loss(z, e.detach())


def vq_in_double(z, codebook):
    z, codebook = z.double(), codebook.double()
    return result(z, lookup(z, codebook))


@verdicts("09.5", [vq_raises, vq_gaps])
def test_a_blank_quantiser_is_not_attempted(answer):
    assert_blank("09.5", answer)


@mistakes(
    "09.5",
    [
        ("gap `...` is still open", vq_half),
        ("no gradient reaches z", vq_cancelled),
        ("a loss has no gradient", vq_under_no_grad),
        ("got Tensor", vq_of_indices),
        ("changes its input z", vq_in_place),
    ],
)
def test_a_wrong_quantiser_is_named(keyword, answer):
    assert_rejected("09.5", answer, keyword)


@verdicts("09.5", [vq_by_broadcasting, vq_by_one_hot, vq_by_loops, vq_by_a_function, vq_in_double])
def test_a_right_quantiser_passes_in_any_style(answer):
    assert_passes("09.5", answer)


@pytest.mark.parametrize("id", ["09.1", "09.2", "09.3", "09.4", "09.5"])
def test_the_result_instead_of_the_function_is_named(id):
    verdict = EXERCISES[id].run(torch.zeros(2))
    assert not verdict.passed and "expected the function itself" in verdict.message
