"""Typical answers to the exercises of notebook 06: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import losses
from klvae_edu.baselines import PatchPCA
from klvae_edu.exercises import EXERCISES, nb06
from klvae_edu.perceptual import LPIPS
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

# 06.1


def pca_raises(train, patches, components):
    raise NotImplementedError


def pca_gaps(train, patches, components):
    mean = ...  # noqa: F841
    basis = ...  # noqa: F841
    code = ...  # noqa: F841
    return ...


def pca_half(train, patches, components):
    mean = train.mean(0)
    basis = ...
    code = (patches - mean) @ basis.T
    return code @ basis + mean


def svd(x):
    return torch.linalg.svd(x, full_matrices=False)


def pca_of_the_weakest(train, patches, components):
    mean = train.mean(0)
    _, vectors = torch.linalg.eigh((train - mean).T @ (train - mean))
    basis = vectors[:, :components].T  # eigh sorts eigenvalues in ascending order
    return (patches - mean) @ basis.T @ basis + mean


def pca_with_the_mean_over_values(train, patches, components):
    mean = train.mean(1)
    basis = svd(train - mean)[2][:components]
    return (patches - mean) @ basis.T @ basis + mean


def pca_without_the_transpose(train, patches, components):
    mean = train.mean(0)
    basis = svd(train - mean)[2][:components]
    code = (patches - mean) @ basis
    return code @ basis.T + mean


def pca_by_eigh(train, patches, components):
    centred = train - train.mean(0, keepdim=True)
    _, vectors = torch.linalg.eigh(torch.einsum("nd,ne->de", centred, centred))
    basis = vectors.flip(1)[:, :components]
    return torch.einsum("md,dk,ek->me", patches - train.mean(0), basis, basis) + train.mean(0)


def pca_by_torch_svd(train, patches, components):
    mean = train.mean(0)
    _, _, v = torch.svd(train - mean)  # V itself: its columns are the directions
    basis = v[:, :components]
    return (patches - mean) @ basis @ basis.T + mean


def pca_by_projection_of_each_patch(train, patches, components):
    mean = train.mean(0)
    directions = svd(train - mean)[2]
    rows = []
    for patch in patches:
        row = mean.clone()
        for direction in directions[:components]:
            row += torch.dot(patch - mean, direction) * direction
        rows.append(row)
    return torch.stack(rows)


def pca_in_double(train, patches, components):
    train, patches = train.double(), patches.double()
    mean = train.mean(0)
    basis = svd(train - mean)[2][:components]
    return F.linear(F.linear(patches - mean, basis), basis.T) + mean


def pca_in_place_on_own_tensors(train, patches, components):
    mean = train.mean(0)
    basis = svd(train.sub(mean))[2][:components]
    return (patches.sub(mean) @ basis.T).matmul(basis).add_(mean)


def pca_in_place_on_the_patches(train, patches, components):
    mean = train.mean(0)
    basis = svd(train - mean)[2][:components]
    return patches.sub_(mean) @ basis.T @ basis + mean


@verdicts("06.1", [pca_raises, pca_gaps])
def test_a_blank_pca_is_not_attempted(answer):
    assert_blank("06.1", answer)


@mistakes(
    "06.1",
    [
        ("gap `...` is still open", pca_half),
        ("strongest ones first", pca_of_the_weakest),
        ("over the wrong axis", pca_with_the_mean_over_values),
        ("shapes do not fit", pca_without_the_transpose),
        ("changes its input patches", pca_in_place_on_the_patches),
    ],
)
def test_a_wrong_pca_is_named(keyword, answer):
    assert_rejected("06.1", answer, keyword)


@verdicts(
    "06.1",
    [pca_by_eigh, pca_by_torch_svd, pca_by_projection_of_each_patch, pca_in_double, pca_in_place_on_own_tensors],
)
def test_a_right_pca_passes_in_any_style(answer):
    assert_passes("06.1", answer)


def test_the_finished_pca_does_what_the_class_does():
    images, others = torch.rand(2, 3, 3, 32, 40, generator=torch.Generator().manual_seed(0)).double()

    def patches(x):
        return F.unfold(x, 8, stride=8).transpose(1, 2).flatten(0, 1)

    ours = nb06.through_pca(patches(images), patches(others), 4).view(3, 20, 192).transpose(1, 2)
    theirs = PatchPCA(8, 4).fit(images).reconstruct(others)
    torch.testing.assert_close(F.fold(ours, (32, 40), 8, stride=8), theirs, rtol=0, atol=1e-10)


# 06.2


def length_raises(features, eps=1e-8):
    raise NotImplementedError


def length_gaps(features, eps=1e-8):
    squared = ...  # noqa: F841
    return ...


def length_half(features, eps=1e-8):
    squared = ...
    return features / torch.sqrt(squared + eps)


def length_with_nan_replaced(features, eps=1e-8):
    return torch.nan_to_num(features / features.norm(dim=1, keepdim=True))


def length_of_data(features, eps=1e-8):
    return features / (features.data.pow(2).sum(1, keepdim=True) + eps).sqrt()


def length_in_place_on_the_features(features, eps=1e-8):
    return features.div_(torch.sqrt(features.pow(2).sum(1, keepdim=True) + eps))


def length_by_rsqrt(features, eps=1e-8):
    return features * (features * features).sum(dim=1, keepdim=True).add_(eps).rsqrt()


def length_by_einsum(features, eps=1e-8):
    squared = torch.einsum("bchw,bchw->bhw", features, features)
    return features / (squared + eps).sqrt()[:, None]


def length_in_double(features, eps=1e-8):
    features = features.double()
    return features / (features.pow(2).sum(1, keepdim=True) + eps) ** 0.5


def length_channels_last(features, eps=1e-8):
    x = features.movedim(1, -1)
    return (x / torch.sqrt((x**2).sum(-1, keepdim=True) + eps)).movedim(-1, 1)


def length_by_a_loop(features, eps=1e-8):
    return torch.stack([image / torch.sqrt((image**2).sum(0) + eps) for image in features])


@verdicts("06.2", [length_raises, length_gaps])
def test_a_blank_length_is_not_attempted(answer):
    assert_blank("06.2", answer)


@mistakes(
    "06.2",
    [
        ("gap `...` is still open", length_half),
        ("only 0/0 is avoided", length_with_nan_replaced),
        ("that of a constant length", length_of_data),
        ("changes its input features", length_in_place_on_the_features),
    ],
)
def test_a_wrong_length_is_named(keyword, answer):
    assert_rejected("06.2", answer, keyword)


@verdicts("06.2", [length_by_rsqrt, length_by_einsum, length_in_double, length_channels_last, length_by_a_loop])
def test_a_right_length_passes_in_any_style(answer):
    assert_passes("06.2", answer)


# 06.3


def distance_raises(features, others, heads):
    raise NotImplementedError


def distance_gaps(features, others, heads):
    total = features[0].new_zeros(len(features[0]))
    for _ in zip(features, others, heads, strict=True):
        weighted = ...  # noqa: F841
        total = ...
    return total


def distance_half(features, others, heads):
    total = features[0].new_zeros(len(features[0]))
    for _ in zip(features, others, heads, strict=True):
        weighted = ...
        total = total + weighted.sum(1).mean((1, 2))
    return total


def distance_emptying_the_lists(features, others, heads):
    total = 0
    while features:
        total = total + (heads.pop(0) * (features.pop(0) - others.pop(0)) ** 2).sum(1).mean((1, 2))
    return total


def distance_from_the_last(features, others, heads):
    for taps in (features, others, heads):
        taps.reverse()
    return nb06.perceptual_distance(features, others, heads)


def distance_detached(features, others, heads):
    with torch.no_grad():
        return nb06.perceptual_distance(features, others, heads)


def distance_in_place_on_the_features(features, others, heads):
    total = 0
    for a, b, head in zip(features, others, heads, strict=True):
        total = total + a.sub_(b).square().mul(head).sum(1).mean((1, 2))
    return total


def distance_by_convolution(features, others, heads):
    total = torch.zeros(len(features[0]))
    for a, b, head in zip(features, others, heads, strict=True):
        total = total + F.conv2d((a - b) ** 2, head).mean((1, 2, 3))
    return total


def distance_by_modules(features, others, heads):
    total = 0
    for a, b, head in zip(features, others, heads, strict=True):
        layer = nn.Conv2d(head.shape[1], 1, 1, bias=False)
        layer.weight.data = head
        total = total + nn.AdaptiveAvgPool2d(1)(layer((a - b).square())).flatten()
    return total


def distance_by_einsum(features, others, heads):
    taps = []
    for a, b, head in zip(features, others, heads, strict=True):
        pixels = a.shape[2] * a.shape[3]
        taps.append(torch.einsum("bchw,bchw,c->b", a - b, a - b, head.flatten()) / pixels)
    return sum(taps)


def distance_in_double(features, others, heads):
    result = 0
    for index in range(len(features)):
        squared = (features[index].double() - others[index].double()).pow(2)
        result += (squared.mean((2, 3)) * heads[index].flatten().double()).sum(1)
    return result


def distance_by_whole_batches(features, others, heads):
    rows = [(h * (a - b).pow(2)).sum(1).flatten(1).mean(1) for a, b, h in zip(features, others, heads, strict=True)]
    return torch.stack(rows, dim=1).sum(1)


@verdicts("06.3", [distance_raises, distance_gaps])
def test_a_blank_distance_is_not_attempted(answer):
    assert_blank("06.3", answer)


@mistakes(
    "06.3",
    [
        ("gap `...` is still open", distance_half),
        ("changes the caller's lists", distance_emptying_the_lists),
        ("changes the caller's lists", distance_from_the_last),
        ("no gradient reaches", distance_detached),
        ("changes its input features[0]", distance_in_place_on_the_features),
    ],
)
def test_a_wrong_distance_is_named(keyword, answer):
    assert_rejected("06.3", answer, keyword)


@verdicts(
    "06.3",
    [
        distance_by_convolution,
        distance_by_modules,
        distance_by_einsum,
        distance_in_double,
        distance_by_whole_batches,
    ],
)
def test_a_right_distance_passes_in_any_style(answer):
    assert_passes("06.3", answer)


def test_the_finished_parts_make_up_the_packages_distance():
    lpips = LPIPS("untrained")
    a, b = torch.rand(2, 2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    heads = [lpips.get_buffer(f"head{tap}") for tap in range(5)]
    ours = nb06.perceptual_distance(lpips.features(a), lpips.features(b), heads)
    torch.testing.assert_close(ours, lpips(a, b), rtol=1e-5, atol=0)
    tap = lpips.trunk[:4]((a - lpips.shift) / lpips.scale)
    torch.testing.assert_close(nb06.unit_length(tap), lpips.features(a)[0])


# 06.4


def total_raises(reconstruction, target, distance, perceptual_weight=1.0):
    raise NotImplementedError


def total_gaps(reconstruction, target, distance, perceptual_weight=1.0):
    each = ...  # noqa: F841
    return ...


def total_half(reconstruction, target, distance, perceptual_weight=1.0):
    each = ...
    return each.flatten(1).sum(1).mean()


def total_with_item(reconstruction, target, distance, perceptual_weight=1.0):
    pixel = (reconstruction - target).abs().flatten(1).sum(1).mean()
    return pixel + perceptual_weight * distance.mean().item() * target[0].numel()


def total_by_where(reconstruction, target, distance, perceptual_weight=1.0):
    error = reconstruction - target
    each = torch.where(error > 0, error, -error) + perceptual_weight * distance.view(-1, 1, 1, 1)
    return each.flatten(1).sum(1).mean()


def total_in_place(reconstruction, target, distance, perceptual_weight=1.0):
    each = (reconstruction - target).abs_()
    each += perceptual_weight * distance.reshape(-1, 1, 1, 1)
    return each.sum() / len(each)


def total_term_by_term(reconstruction, target, distance, perceptual_weight=1.0):
    batch, values = len(target), target[0].numel()
    pixel = F.l1_loss(reconstruction, target, reduction="sum") / batch
    return pixel + perceptual_weight * values * distance.mean()


def total_by_the_package(reconstruction, target, distance, perceptual_weight=1.0):
    return losses.reconstruction_loss(reconstruction, target, distance, perceptual_weight=perceptual_weight)["nll"]


def total_by_a_loop(reconstruction, target, distance, perceptual_weight=1.0):
    totals = []
    for x, y, d in zip(reconstruction, target, distance, strict=True):
        totals.append(torch.sum(torch.abs(x - y) + perceptual_weight * d))
    return sum(totals) / len(totals)


def total_in_double(reconstruction, target, distance, perceptual_weight=1.0):
    distance = distance.double()[:, None]
    each = (target.double() - reconstruction.double()).abs().flatten(1) + perceptual_weight * distance
    return torch.einsum("bi->", each) / len(each)


@verdicts("06.4", [total_raises, total_gaps])
def test_a_blank_total_is_not_attempted(answer):
    assert_blank("06.4", answer)


@mistakes(
    "06.4",
    [
        ("gap `...` is still open", total_half),
        ("no gradient reaches distance", total_with_item),
    ],
)
def test_a_wrong_total_is_named(keyword, answer):
    assert_rejected("06.4", answer, keyword)


@verdicts(
    "06.4", [total_by_where, total_in_place, total_term_by_term, total_by_the_package, total_by_a_loop, total_in_double]
)
def test_a_right_total_passes_in_any_style(answer):
    assert_passes("06.4", answer)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_finished_total_does_what_the_package_does(weight):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, 8, 6, generator=generator, dtype=torch.float64)
    distance = torch.rand(3, generator=generator, dtype=torch.float64)
    ours = nb06.reconstruction_loss(a, b, distance, weight)
    theirs = losses.reconstruction_loss(a, b, distance, perceptual_weight=weight)["nll"]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


# 06.5


def weights_raises(image, latent, perceptual_weight, kl_weight):
    raise NotImplementedError


def weights_gaps(image, latent, perceptual_weight, kl_weight):
    image_values, latent_values = ...  # noqa: RUF059
    return ..., ...


def weights_open_results(image, latent, perceptual_weight, kl_weight):
    return perceptual_weight, ...


def weights_with_one_fixed(image, latent, perceptual_weight, kl_weight):
    return 1.0, kl_weight * latent[0] * latent[1] * latent[2] / (image[0] * image[1] * image[2])


def weights_over_48(image, latent, perceptual_weight, kl_weight):
    return perceptual_weight, kl_weight / 48


def weights_by_name(image, latent, perceptual_weight, kl_weight):
    return {"perceptual_weight": perceptual_weight, "kl_weight": kl_weight * math.prod(latent) / math.prod(image)}


def weights_of_the_kl_alone(image, latent, perceptual_weight, kl_weight):
    return kl_weight * math.prod(latent) / math.prod(image)


def weights_off_by_a_factor(image, latent, perceptual_weight, kl_weight):
    return perceptual_weight, 2 * kl_weight * math.prod(latent) / math.prod(image)


def weights_by_the_package(image, latent, perceptual_weight, kl_weight):
    return perceptual_weight, losses.own_mean_weights(image, latent, kl_weight=kl_weight)["kl_weight"]


def weights_by_torch(image, latent, perceptual_weight, kl_weight):
    ratio = torch.tensor(latent).prod() / torch.tensor(image).prod()
    return torch.tensor(perceptual_weight), kl_weight * ratio


def weights_by_a_loop(image, latent, perceptual_weight, kl_weight):
    for large, small in zip(image, latent, strict=True):
        kl_weight = kl_weight * small / large
    return [perceptual_weight, kl_weight]


def weights_by_empty_tensors(image, latent, perceptual_weight, kl_weight):
    factor = torch.empty(latent).numel() / torch.empty(image).numel()
    return perceptual_weight, factor * kl_weight


def weights_by_shape(image, latent, perceptual_weight, kl_weight):
    (C, H, W), (c, h, w) = image, latent
    return 1.0 * perceptual_weight, kl_weight * (c * h * w) / (C * H * W)


@verdicts("06.5", [weights_raises, weights_gaps])
def test_blank_weights_are_not_attempted(answer):
    assert_blank("06.5", answer)


@mistakes(
    "06.5",
    [
        ("gap `...` is still open", weights_open_results),
        ("right for KL-f8's numbers only", weights_with_one_fixed),
        ("right for KL-f8's numbers only", weights_over_48),
        ("expected two numbers", weights_by_name),
        ("expected two numbers", weights_of_the_kl_alone),
        ("1 and 2.083e-08 was expected, and yours is 1 and 4.167e-08", weights_off_by_a_factor),
    ],
)
def test_wrong_weights_are_named(keyword, answer):
    assert_rejected("06.5", answer, keyword)


@verdicts(
    "06.5",
    [weights_by_the_package, weights_by_torch, weights_by_a_loop, weights_by_empty_tensors, weights_by_shape],
)
def test_right_weights_pass_in_any_style(answer):
    assert_passes("06.5", answer)


@pytest.mark.parametrize("id", ["06.1", "06.2", "06.3", "06.4", "06.5"])
def test_the_result_instead_of_the_function_is_named(id):
    verdict = EXERCISES[id].run(torch.zeros(2))
    assert not verdict.passed and "expected the function itself" in verdict.message
