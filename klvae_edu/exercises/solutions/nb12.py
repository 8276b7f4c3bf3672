"""Solutions of notebook 12. Written by tools.solutions from notebooks/source/12_scaling_up.py; edit that."""

import torch


def ramp(length, before, after):
    """The weights (length,) of a tile that shares `before` cells with the last one and `after` with the next."""
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 0.5) / before if before else 1.0
    weights[length - after :] = 1 - (torch.arange(after) + 0.5) / after if after else 1.0
    return weights


def pooled(means, variances, counts):
    """Statistics of tiles, (tiles, groups), and their cells, (tiles,) -> mean and variance of all, (groups,) each."""
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


def safe_group_norm(x, groups, eps=1e-6):
    """x (B, C, H, W) of any floating-point type -> normalised over each group of channels, in the same type."""
    grouped = x.float().reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


def rows_left(count, seed, epoch, reader, readers, done):
    """Of rows 0 … count - 1, those that this reader still has to read in this pass, in its order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return order[reader::readers][done:]


def cost(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    """Days, and what they cost."""
    hours = crops / (crops_per_second * machines * efficiency) / 3600
    return hours / 24, hours * machines * price
