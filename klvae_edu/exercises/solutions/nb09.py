"""Solutions of notebook 09. Written by tools.solutions from notebooks/source/09_measuring_quality.py; edit that."""

import math
import torch
from klvae_edu.exercises.given import local_mean


def mean_psnr(reconstruction, target):
    """Images (B, C, H, W) in [-1, 1] -> a scalar: each image's PSNR in dB, averaged over the batch."""
    error = (reconstruction.clamp(-1, 1) - target).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(2**2 / error)).mean()


def ssim(reconstruction, target, window):
    """Images (B, C, H, W) in [-1, 1], window (k, k) that sums to 1 -> their structural similarity (B,)."""
    a, b = (reconstruction + 1) / 2, (target + 1) / 2
    mean_a, mean_b = local_mean(a, window), local_mean(b, window)
    var_a = local_mean(a * a, window) - mean_a**2
    var_b = local_mean(b * b, window) - mean_b**2
    cov = local_mean(a * b, window) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)
    return (luminance * structure).mean((1, 2, 3))


def frechet_distance(features, others):
    """Features (N, D) and (M, D) -> a scalar: the squared distance of Gaussians with their means and covariances."""
    means = (features.mean(0) - others.mean(0)).pow(2).sum()
    a, b = torch.cov(features.T), torch.cov(others.T)
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt()
    return means + a.trace() + b.trace() - 2 * roots.sum()


def compression(side, factor, channels, bits, codes):
    """Bits of an RGB image, side x side, 8 bits a value, over those of its latent: with KL, and with VQ."""
    image, positions = 3 * side**2 * 8, (side // factor) ** 2
    return image / (positions * channels * bits), image / (positions * math.log2(codes))
