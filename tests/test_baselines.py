"""Baselines: patch-PCA and bicubic agree with numpy and hand-computed values, JPEG files stay below their limit."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from klvae_edu.baselines import JpegWithin, PatchPCA, bicubic, jpeg
from klvae_edu.data import photographs
from klvae_edu.metrics import psnr


def images(batch: int = 4, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- patch-PCA


def patches_by_hand(batch: Tensor, size: int) -> np.ndarray:
    """Cut (B, C, H, W) into (patches, C·p·p) by slicing."""
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


def test_patch_pca_errors_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"call fit\(images\) before reconstruct"):
        PatchPCA(4, 4).reconstruct(images())
    with pytest.raises(ValueError, match=r"4 pixels or more, got \(4, 3, 3, 16\)"):
        PatchPCA(4, 4).fit(images(height=3, width=16))
    with pytest.raises(ValueError, match="4 patches or more, got 1 of 48"):
        PatchPCA(4, 4).fit(images(1, 4, 4))
    with pytest.raises(ValueError, match=r"images with 3 channels, got \(2, 1, 8, 8\)"):
        PatchPCA(4, 4).fit(images(batch=16)).reconstruct(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected images of shape \(B, C, H, W\)"):
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
    """Downsampled: 0 0 0 1 1 1. Pixel 5 of 12 is at 2.25, the first ones 0.75 and 1.75 away. PyTorch has a = -0.75."""
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


# --- JPEG


def crops(size: int = 128) -> Tensor:
    photo = photographs("held-out")["chelsea"]
    return torch.stack([photo[:, 0:size, 0:size], photo[:, 60 : 60 + size, 150 : 150 + size]])


def test_jpeg_is_what_pillow_gives_back_at_the_highest_quality_that_fits() -> None:
    batch = crops()
    got, used = jpeg(batch, 3000)
    assert got.shape == batch.shape and got.dtype == batch.dtype
    for image, back, size in zip(batch, got, used.tolist(), strict=True):
        pixels = Image.fromarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
        files = []
        for quality in range(1, 96):
            pixels.save(file := io.BytesIO(), "JPEG", quality=quality, optimize=True)
            files.append(file.getvalue())
        best = max((file for file in files if len(file) <= 3000), key=len)
        assert size == len(best)
        decoded = torch.from_numpy(np.array(Image.open(io.BytesIO(best)))).permute(2, 0, 1)
        torch.testing.assert_close(back, decoded / 127.5 - 1)


def test_more_bytes_are_used_and_lose_less() -> None:
    batch = crops()
    by_bytes = {limit: jpeg(batch, limit) for limit in (1500, 2500, 4500)}
    assert all((used <= limit).all() and (used > 0.8 * limit).all() for limit, (_, used) in by_bytes.items())
    quality = [psnr(back, batch).mean().item() for back, _ in by_bytes.values()]
    assert quality == sorted(quality) and quality[-1] > quality[0] + 4


def test_if_no_quality_fits_the_smallest_file_is_returned_with_its_size() -> None:
    """A header alone has about 600 bytes."""
    got, used = jpeg(crops(32), 256)
    assert (used > 256).all() and (used < 1000).all()
    assert torch.equal(got, jpeg(crops(32), 1)[0])


def test_the_bytes_of_all_images_are_counted() -> None:
    baseline = JpegWithin(900)
    batches = crops(32), crops(64)
    used = torch.cat([jpeg(batch, 900)[1] for batch in batches])
    for batch in batches:
        assert torch.equal(baseline(batch), jpeg(batch, 900)[0])
    assert baseline.report() == f"{used.double().mean():.0f} bytes on average, including headers"
    strict = JpegWithin(1)
    strict(crops(32))
    assert strict.report().endswith("including headers; 2 of 2 did not fit")


def test_with_a_large_limit_the_quality_is_95_and_no_image_depends_on_another() -> None:
    batch = crops(64)
    together, used = jpeg(batch, 10**6)
    alone = [jpeg(image[None], 10**6) for image in batch]
    assert torch.equal(together, torch.cat([back for back, _ in alone]))
    assert torch.equal(used, torch.cat([one for _, one in alone]))
    assert (psnr(together, batch) > 33).all()


def test_values_beyond_the_range_are_clamped_as_on_a_display() -> None:
    batch = crops(64)
    torch.testing.assert_close(jpeg(batch * 3, 2000)[0], jpeg((batch * 3).clamp(-1, 1), 2000)[0])


@pytest.mark.parametrize(("shape", "limit"), [((1, 1, 8, 8), 100), ((3, 8, 8), 100), ((1, 3, 8, 8), 0)])
def test_jpeg_says_what_it_expected(shape: tuple[int, ...], limit: int) -> None:
    with pytest.raises(ValueError, match=r"jpeg: expected \(B, 3, H, W\) and 1 byte or more, got"):
        jpeg(torch.zeros(shape), limit)
