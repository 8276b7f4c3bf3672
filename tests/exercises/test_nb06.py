"""Exercises of notebook 06: right answers in many styles, and solutions that agree with the package."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import losses
from klvae_edu.baselines import PatchPCA
from klvae_edu.exercises import EXERCISES
from klvae_edu.perceptual import LPIPS
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

# Right answers


def svd(x):
    return torch.linalg.svd(x, full_matrices=False)


def coded(directions):
    """Make a patch-PCA of a function that finds directions, in columns."""

    def pca(train, patches, components):
        mean = train.mean(0, keepdim=True)
        basis = directions(train - mean)[:, :components]
        return torch.einsum("md,dk,ek->me", (patches - mean).to(basis.dtype), basis, basis) + mean

    return pca


def pca_by_projection_of_each_patch(train, patches, components):
    mean = train.mean(0)
    rows = []
    for patch in patches:
        row = mean.clone()
        for direction in svd(train - mean)[2][:components]:
            row += torch.dot(patch - mean, direction) * direction
        rows.append(row)
    return torch.stack(rows)


def pca_in_place_on_own_tensors(train, patches, components):
    mean = train.mean(0)
    basis = svd(train.sub(mean))[2][:components]
    return F.linear(F.linear(patches.sub(mean), basis), basis.T).add_(mean)


def length_channels_last(features, eps=1e-8):
    x = features.movedim(1, -1)
    return (x / torch.sqrt((x**2).sum(-1, keepdim=True) + eps)).movedim(-1, 1)


def summed(tap):
    """Make a distance of the distance at one tap."""

    def distance(features, others, heads):
        total = 0
        for a, b, head in zip(features, others, heads, strict=True):
            total = total + tap(a, b, head)
        return total

    return distance


def tap_by_a_module(a, b, head):
    layer = nn.utils.skip_init(nn.Conv2d, head.shape[1], 1, 1, bias=False)
    layer.weight.data = head
    return nn.AdaptiveAvgPool2d(1)(layer((a - b).square())).flatten()


def distance_by_numbers(features, others, heads):
    result = 0
    for index in range(len(features)):
        squared = (features[index].double() - others[index].double()).pow(2)
        result += (squared.mean((2, 3)) * heads[index].flatten().double()).sum(1)
    return result


def distance_by_whole_batches(features, others, heads):
    rows = [(h * (a - b).pow(2)).sum(1).flatten(1).mean(1) for a, b, h in zip(features, others, heads, strict=True)]
    return torch.stack(rows, dim=1).sum(1)


def total_by_where(reconstruction, target, distance, perceptual_weight=1.0):
    error = reconstruction - target
    each = torch.where(error > 0, error, -error) + perceptual_weight * distance.view(-1, 1, 1, 1)
    return each.flatten(1).sum(1).mean()


def total_in_place(reconstruction, target, distance, perceptual_weight=1.0):
    each = (reconstruction - target).abs_()
    each += perceptual_weight * distance.reshape(-1, 1, 1, 1)
    return each.sum() / len(each)


def total_by_a_loop(reconstruction, target, distance, perceptual_weight=1.0):
    each = zip(reconstruction, target, distance, strict=True)
    return sum(torch.sum(torch.abs(x - y) + perceptual_weight * d) for x, y, d in each) / len(target)


def total_in_double(reconstruction, target, distance, perceptual_weight=1.0):
    each = (target.double() - reconstruction.double()).abs().flatten(1) + perceptual_weight * distance[:, None]
    return torch.einsum("bi->", each) / len(each)


def weights_by_a_loop(image, latent, perceptual_weight, kl_weight):
    for large, small in zip(image, latent, strict=True):
        kl_weight = kl_weight * small / large
    return [perceptual_weight, kl_weight]


@all_verdicts(
    {
        "06.1": (
            coded(lambda centred: torch.linalg.eigh(centred.T @ centred)[1].flip(1)),
            coded(lambda centred: torch.svd(centred)[2]),
            coded(lambda centred: svd(centred.double())[2].T),
            pca_by_projection_of_each_patch,
            pca_in_place_on_own_tensors,
        ),
        "06.2": (
            lambda x, eps=1e-8: x * (x * x).sum(dim=1, keepdim=True).add_(eps).rsqrt(),
            lambda x, eps=1e-8: x / (torch.einsum("bchw,bchw->bhw", x, x) + eps).sqrt()[:, None],
            lambda x, eps=1e-8: x.double() / (x.double().pow(2).sum(1, keepdim=True) + eps) ** 0.5,
            lambda x, eps=1e-8: torch.stack([image / torch.sqrt((image**2).sum(0) + eps) for image in x]),
            length_channels_last,
        ),
        "06.3": (
            summed(lambda a, b, head: F.conv2d((a - b) ** 2, head).mean((1, 2, 3))),
            summed(lambda a, b, head: torch.einsum("bchw,bchw,c->b", a - b, a - b, head.flatten()) / a[0, 0].numel()),
            summed(tap_by_a_module),
            distance_by_numbers,
            distance_by_whole_batches,
        ),
        "06.4": (
            lambda x, y, d, w=1.0: F.l1_loss(x, y, reduction="sum") / len(y) + w * y[0].numel() * d.mean(),
            lambda x, y, d, w=1.0: losses.reconstruction_loss(x, y, d, perceptual_weight=w)["nll"],
            total_by_where,
            total_in_place,
            total_by_a_loop,
            total_in_double,
        ),
        "06.5": (
            lambda image, latent, w, v: (w, losses.own_mean_weights(image, latent, kl_weight=v)["kl_weight"]),
            lambda image, latent, w, v: (
                torch.tensor(w),
                v * (torch.tensor(latent).prod() / torch.tensor(image).prod()),
            ),
            lambda image, latent, w, v: (w, torch.empty(latent).numel() / torch.empty(image).numel() * v),
            weights_by_a_loop,
        ),
    }
)
def test_right_answers_in_other_styles_pass(id, answer):
    assert_passes(id, answer)


# Wrong answers that no registered mistake is like


def distance_without_gradient(features, others, heads):
    with torch.no_grad():
        return EXERCISES["06.3"].reference(features, others, heads)


@pytest.mark.parametrize(
    ("id", "keyword", "answer"),
    [
        ("06.2", "look for detach", lambda x, eps=1e-8: x / (x.data.pow(2).sum(1, keepdim=True) + eps).sqrt()),
        ("06.3", "no gradient reaches features[0]", distance_without_gradient),
        ("06.4", "no gradient reaches distance", lambda x, y, d, w=1.0: EXERCISES["06.4"].reference(x, y, d.data, w)),
        ("06.5", "does not depend on `perceptual_weight`", lambda i, z, w, v: (1.0, v * math.prod(z) / math.prod(i))),
        ("06.5", "the KL's weight depends on `perceptual_weight`", lambda i, z, w, v: (w, w * v)),
    ],
)
def test_wrong_answers_are_named(id, keyword, answer):
    assert_rejected(id, answer, keyword)


# The solutions agree with the package


def test_the_patch_pca_is_that_of_the_package():
    images, others = torch.rand(2, 3, 3, 32, 40, generator=torch.Generator().manual_seed(0)).double()

    def patches(x):
        return F.unfold(x, 8, stride=8).transpose(1, 2).flatten(0, 1)

    ours = EXERCISES["06.1"].reference(patches(images), patches(others), 4).view(3, 20, 192).transpose(1, 2)
    theirs = PatchPCA(8, 4).fit(images).reconstruct(others)
    torch.testing.assert_close(F.fold(ours, (32, 40), 8, stride=8), theirs, rtol=0, atol=1e-10)


def test_length_and_distance_make_up_the_distance_of_the_package():
    lpips = LPIPS("untrained")
    a, b = torch.rand(2, 2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    heads = [lpips.get_buffer(f"head{tap}") for tap in range(5)]
    ours = EXERCISES["06.3"].reference(lpips.features(a), lpips.features(b), heads)
    torch.testing.assert_close(ours, lpips(a, b), rtol=1e-5, atol=0)
    tap = lpips.trunk[:4]((a - lpips.shift) / lpips.scale)
    torch.testing.assert_close(EXERCISES["06.2"].reference(tap), lpips.features(a)[0])


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_total_is_that_of_the_package(weight):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, 8, 6, generator=generator, dtype=torch.float64)
    distance = torch.rand(3, generator=generator, dtype=torch.float64)
    ours = EXERCISES["06.4"].reference(a, b, distance, weight)
    theirs = losses.reconstruction_loss(a, b, distance, perceptual_weight=weight)["nll"]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
