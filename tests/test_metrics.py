"""Metrics: PSNR, patch-PCA and bicubic agree with scikit-image, numpy and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from klvae_edu.metrics import PatchPCA, bicubic, psnr


def images(batch: int = 4, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- PSNR


def test_psnr_of_a_constant_error_is_the_hand_computed_one() -> None:
    target = torch.zeros(2, 3, 4, 4)
    reconstruction = torch.stack([target[0] + 0.2, target[1] - 0.02])
    # peak 2: 20·log10(2 / 0.2) = 20 dB, 20·log10(2 / 0.02) = 40 dB
    torch.testing.assert_close(psnr(reconstruction, target), torch.tensor([20.0, 40.0]))


def test_psnr_agrees_with_scikit_image_per_image() -> None:
    a, b = images(seed=0), images(seed=1)
    wanted = [peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=2) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(psnr(a, b), torch.tensor(wanted, dtype=torch.float32))


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(images(), images()).isinf().all()


def test_psnr_measures_the_reconstruction_as_it_is_displayed() -> None:
    target = torch.ones(1, 3, 4, 4)
    assert psnr(target + 0.5, target).isinf().all()
    assert not psnr(target - 0.5, target).isinf().any()


def test_psnr_takes_half_precision() -> None:
    a, b = images(seed=0), images(seed=1)
    torch.testing.assert_close(psnr(a.bfloat16(), b.bfloat16()), psnr(a, b), atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (4, 1, 16, 24), (4, 3, 16, 23)])
def test_psnr_refuses_shapes_that_would_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"psnr: expected two batches of one shape"):
        psnr(torch.zeros(shape), images())


def test_psnr_refuses_a_single_image() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        psnr(images()[0], images()[0])


# --- patch-PCA


def patches_by_hand(batch: Tensor, size: int) -> np.ndarray:
    """(B, C, H, W) to (patches, C·p·p), by slicing."""
    rows, columns = batch.shape[2] // size, batch.shape[3] // size
    return np.stack(
        [
            image[:, r * size : (r + 1) * size, c * size : (c + 1) * size].double().numpy().ravel()
            for image in batch
            for r in range(rows)
            for c in range(columns)
        ]
    )


@pytest.mark.parametrize(("patch", "components"), [(4, 4), (8, 4), (8, 1)])
def test_patch_pca_is_numpys_truncated_svd(patch: int, components: int) -> None:
    batch = images(batch=16)
    patches = patches_by_hand(batch, patch)
    mean = patches.mean(0)
    basis = np.linalg.svd(patches - mean, full_matrices=False)[2][:components]
    wanted = (patches - mean) @ basis.T @ basis + mean
    got = patches_by_hand(PatchPCA(patch, components).fit(batch).reconstruct(batch.double()), patch)
    np.testing.assert_allclose(got, wanted, atol=1e-10)


def test_patch_pca_is_fitted_in_double_precision_with_orthonormal_directions() -> None:
    pca = PatchPCA(4, 4).fit(images(batch=16))
    assert pca.basis is not None
    assert pca.basis.dtype == torch.float64
    torch.testing.assert_close(pca.basis @ pca.basis.T, torch.eye(4, dtype=torch.float64))


def test_with_all_components_nothing_is_lost() -> None:
    batch = images(batch=16)
    torch.testing.assert_close(PatchPCA(4, 48).fit(batch).reconstruct(batch), batch)


def test_patches_that_vary_along_one_direction_need_one_component() -> None:
    pattern = images(1, 4, 4)
    weights = torch.linspace(-1, 1, 8).view(8, 1, 1, 1)
    batch = weights * pattern
    torch.testing.assert_close(PatchPCA(4, 1).fit(batch).reconstruct(batch), batch)


def test_more_components_lose_less() -> None:
    batch = images(batch=16)
    quality = [psnr(PatchPCA(4, n).fit(batch).reconstruct(batch), batch).mean().item() for n in (1, 4, 16, 40)]
    assert quality == sorted(quality)
    assert quality[0] < quality[-1] - 3


def test_the_mean_is_part_of_the_code() -> None:
    grey = torch.full((2, 3, 8, 8), 0.5)
    torch.testing.assert_close(PatchPCA(8, 1).fit(grey).reconstruct(grey), grey)


def test_other_images_than_the_fitted_are_reconstructed_with_the_fitted_directions() -> None:
    pca = PatchPCA(8, 4).fit(images(batch=16, seed=0))
    other = images(seed=1)
    once = pca.reconstruct(other)
    torch.testing.assert_close(pca.reconstruct(once), once)  # a projection


def test_odd_sides_are_padded_by_reflection_and_cropped_back() -> None:
    pca = PatchPCA(8, 4).fit(images(batch=16))
    odd = images(2, 13, 21)
    got = pca.reconstruct(odd)
    assert got.shape == odd.shape
    padded = np.pad(odd.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), mode="reflect")
    torch.testing.assert_close(got, pca.reconstruct(torch.from_numpy(padded))[..., :13, :21])


def test_the_result_has_the_dtype_of_the_images() -> None:
    pca = PatchPCA(4, 4).fit(images(batch=16))
    assert pca.reconstruct(images()).dtype == torch.float32
    assert pca.reconstruct(images().double()).dtype == torch.float64


def test_patch_pca_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"call fit\(images\) before reconstruct"):
        PatchPCA(4, 4).reconstruct(images())
    with pytest.raises(ValueError, match=r"4 pixels or more, got \(4, 3, 3, 16\)"):
        PatchPCA(4, 4).fit(images(height=3, width=16))
    with pytest.raises(ValueError, match="4 patches or more, got 1 of 48"):
        PatchPCA(4, 4).fit(images(1, 4, 4))
    with pytest.raises(ValueError, match=r"images with 3 channels, got \(2, 1, 8, 8\)"):
        PatchPCA(4, 4).fit(images(batch=16)).reconstruct(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected images \(B, C, H, W\)"):
        PatchPCA(4, 4).fit(images()[0])


# --- bicubic


def test_bicubic_keeps_a_constant_and_its_shape() -> None:
    grey = torch.full((1, 3, 16, 24), 0.25)
    torch.testing.assert_close(bicubic(grey, 4), grey)


def test_bicubic_first_averages_areas() -> None:
    checkerboard = torch.ones(1, 3, 16, 16)
    checkerboard[..., ::2, ::2] = checkerboard[..., 1::2, 1::2] = -1
    torch.testing.assert_close(bicubic(checkerboard, 4), torch.zeros(1, 3, 16, 16))


def test_bicubic_of_a_step_is_keys_kernel_worked_out_by_hand() -> None:
    """Halved: 0 0 0 1 1 1. Pixel 5 of 12 lies at 2.25, 0.75 and 1.75 from the first ones; PyTorch has a = -0.75."""
    step = torch.tensor([0.0] * 6 + [1.0] * 6).expand(1, 1, 12, 12)

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)

    wanted = kernel(0.75) + kernel(1.75)
    assert math.isclose(bicubic(step, 2)[0, 0, 6, 5].item(), wanted, abs_tol=1e-6)


def test_bicubic_pads_odd_sides_by_reflection() -> None:
    odd = images(2, 13, 21)
    padded = np.pad(odd.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), mode="reflect")
    got = bicubic(odd, 4)
    assert got.shape == odd.shape
    torch.testing.assert_close(got, bicubic(torch.from_numpy(padded), 4)[..., :13, :21])


def test_bicubic_refuses_images_smaller_than_the_factor() -> None:
    with pytest.raises(ValueError, match=r"8 pixels or more, got \(4, 3, 4, 24\)"):
        bicubic(images(height=4), 8)
