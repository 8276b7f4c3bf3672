"""Solutions of notebook 06. Written by tools.solutions from notebooks/source/06_reconstruction_losses.py; edit that."""

import math
import torch


def through_pca(train, patches, components):
    """train (N, D), patches (M, D) -> (M, D): each patch from `components` numbers, by the directions of `train`."""
    mean = train.mean(0)
    _, _, directions = torch.linalg.svd(train - mean, full_matrices=False)
    basis = directions[:components]
    code = (patches - mean) @ basis.T
    return code @ basis + mean


def unit_length(features, eps=1e-8):
    """features (B, C, h, w) -> the same directions, of norm 1 at each pixel, or 0 where there are no features."""
    squared = features.pow(2).sum(1, keepdim=True)
    return features / torch.sqrt(squared + eps)


def perceptual_distance(features, others, heads):
    """Lists over the taps: features and others (B, C, h, w) of norm 1, heads (1, C, 1, 1) -> (B,)."""
    total = features[0].new_zeros(len(features[0]))
    for a, b, head in zip(features, others, heads, strict=True):
        weighted = head * (a - b) ** 2
        total = total + weighted.sum(1).mean((1, 2))
    return total


def reconstruction_loss(reconstruction, target, distance, perceptual_weight=1.0):
    """L1 and LPIPS with CompVis' reduction. Images (B, C, H, W), distance (B,) -> a scalar."""
    each = (reconstruction - target).abs() + perceptual_weight * distance.view(-1, 1, 1, 1)
    return each.flatten(1).sum(1).mean()


def own_mean_weights(image, latent, perceptual_weight, kl_weight):
    """Shapes (C, H, W) and (c, h, w), CompVis' weights -> the perceptual and the KL weight of a loss of means."""
    image_values, latent_values = math.prod(image), math.prod(latent)
    return perceptual_weight, kl_weight * latent_values / image_values
