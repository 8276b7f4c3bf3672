"""The x-ray of a model: each artefact is named, and no other; measures of known images; constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from klvae_edu import AutoencoderKL, DecoderOutput
from klvae_edu.commands.evaluate import fitted_pca
from klvae_edu.evaluation.findings import Latents, find
from klvae_edu.evaluation.images import batches, evaluation_data
from klvae_edu.evaluation.spectra import cielab
from klvae_edu.evaluation.xray import Xray

SIDE, COUNT, F = 128, 8, 8
HEALTHY = Latents(torch.zeros(4), torch.ones(4), torch.full((4,), 0.1), torch.ones(4), [], 1.0, 1.0, 0.5)
PLACE = torch.arange(SIDE)
FROM_BORDER = torch.minimum(PLACE, PLACE.flip(0)).minimum(torch.minimum(PLACE, PLACE.flip(0))[:, None])


def names(originals: Tensor, reconstructions: Tensor) -> list[str]:
    xray = Xray(F)
    xray.add(originals, reconstructions)
    return [finding.name for finding in find(xray.artefacts(), HEALTHY, F)]


@pytest.fixture(scope="module", params=["kl-f8-mini", "kl-f8-mini-16"])
def vae(request: pytest.FixtureRequest) -> AutoencoderKL:
    return AutoencoderKL.from_bundled(request.param).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    ((_, images),) = batches(evaluation_data("photos", SIDE, count=COUNT), COUNT)
    return images


@pytest.fixture(scope="module")
def decoded(vae: AutoencoderKL, images: Tensor) -> Tensor:
    with torch.no_grad():
        return vae(images).sample


def droplets(images: Tensor) -> Tensor:
    """A white disc with a radius of 4 pixels in each image, at another place."""
    images = images.clone()
    for number, image in enumerate(images):
        centre = 40 + 6 * number
        image[:, (PLACE[:, None] - centre) ** 2 + (PLACE - 100 + 5 * number) ** 2 <= 16] = 1
    return images


WAVE = torch.sin(2 * math.pi * PLACE / F)
CHECKERBOARD = ((PLACE[:, None] + PLACE) % 2 * 2 - 1).float()
INJECTED: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
    ("blur", "a Gaussian of 0.7 pixels", lambda x: gaussian_blur(x, [9, 9], [0.7, 0.7])),
    ("blur", "a Gaussian of 1.5 pixels", lambda x: gaussian_blur(x, [9, 9], [1.5, 1.5])),
    ("grid", "lines", lambda x: x + 0.05 * ((PLACE % F == 0)[:, None] | (PLACE % F == 0))),
    ("grid", "waves", lambda x: x + 0.03 * (WAVE[:, None] + WAVE)),
    ("checkerboard", "both directions", lambda x: x + 0.02 * CHECKERBOARD),
    ("checkerboard", "columns", lambda x: x + 0.02 * CHECKERBOARD[:1]),
    ("colour shift", "a warm cast", lambda x: x + torch.tensor([0.05, 0.0, -0.05])[:, None, None]),
    ("colour shift", "too dark", lambda x: x - 0.1),
    ("border", "a bright frame", lambda x: x + 0.3 * (FROM_BORDER < 4)),
    ("border", "an uncertain frame", lambda x: x + 0.2 * (FROM_BORDER < F) * torch.sin(2.1 * PLACE)),
    ("spots", "white droplets", droplets),
]


class TestFindings:
    def test_in_a_bundled_model_nothing_is_named(self, images: Tensor, decoded: Tensor) -> None:
        assert names(images, decoded) == []

    @pytest.mark.parametrize(("name", "what", "artefact"), INJECTED, ids=[f"{n}: {w}" for n, w, _ in INJECTED])
    def test_an_artefact_is_named_and_no_other(
        self, name: str, what: str, artefact: Callable[[Tensor], Tensor], images: Tensor, decoded: Tensor
    ) -> None:
        assert names(images, artefact(decoded)) == [name]

    def test_patch_pca_is_blurred_and_has_a_grid(self, monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
        monkeypatch.setattr("klvae_edu.training.validation.PCA_CROPS", 64)
        pca = fitted_pca(AutoencoderKL.from_bundled("kl-f8-mini-16"))
        assert pca is not None
        assert names(images, pca.reconstruct(images)) == ["blur", "grid"]

    def test_with_four_components_patch_pca_has_lost_colour_too(
        self, monkeypatch: pytest.MonkeyPatch, images: Tensor
    ) -> None:
        """Three of the four describe brightness: the cat and the cup are pink."""
        monkeypatch.setattr("klvae_edu.training.validation.PCA_CROPS", 64)
        pca = fitted_pca(AutoencoderKL.from_bundled("kl-f8-mini"))
        assert pca is not None
        assert names(images, pca.reconstruct(images)) == ["blur", "grid", "colour shift"]

    @pytest.mark.parametrize(
        ("changed", "name"),
        [
            ({"unused": [2], "width": torch.tensor([0.1, 0.1, 1.0, 0.1])}, "collapsed channels"),
            ({"unused": [2], "width": torch.tensor([0.1, 0.1, 1e-4, 0.1])}, "dead channels"),
            ({"scaled_std": 5.5}, "scale"),
            ({"scaled_std": 0.18}, "scale"),
        ],
    )
    def test_latents(self, changed: dict[str, object], name: str, images: Tensor) -> None:
        xray = Xray(F)
        xray.add(images, images)
        (finding,) = find(xray.artefacts(), Latents(**{**vars(HEALTHY), **changed}), F)
        assert finding.name == name
        if "unused" in changed:
            assert "channel 2 is" in finding.text


class TestXray:
    def test_of_the_originals_themselves_nothing_is_lost(self, images: Tensor) -> None:
        xray = Xray(F)
        xray.add(images, images)
        seen = xray.artefacts()
        assert (seen.detail, seen.colour, seen.spots, seen.checkerboard) == (1, 0, 0, 0)
        assert torch.equal(*seen.spectra)

    def test_a_checkerboard_has_its_amplitude(self, images: Tensor) -> None:
        xray = Xray(F)
        xray.add(images * 0.5, images * 0.5 + CHECKERBOARD * 4 / 127.5)
        assert xray.artefacts().checkerboard == pytest.approx(4, rel=1e-3)

    def test_batches_make_no_difference(self, images: Tensor, decoded: Tensor) -> None:
        at_once, one_by_one = Xray(F), Xray(F)
        at_once.add(images, decoded)
        for number in range(COUNT):
            one_by_one.add(images[number : number + 1], decoded[number : number + 1])
        for name, value in vars(at_once.artefacts()).items():
            other = getattr(one_by_one.artefacts(), name)
            torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(value), rtol=1e-4, atol=1e-6, msg=name)
        assert [example.psnr for example in one_by_one.worst] == pytest.approx(
            [example.psnr for example in at_once.worst]
        )

    def test_keeps_the_four_worst_images(self, images: Tensor) -> None:
        xray = Xray(F)
        off = torch.tensor([0.1, 0.5, 0.2, 0.4, 0.3, 0.05, 0.05, 0.05])
        xray.add(images * 0.4, images * 0.4 + off[:, None, None, None])
        assert [round(10 ** (-e.psnr / 20) * 2, 4) for e in xray.worst] == [0.5, 0.4, 0.3, 0.2]

    def test_encodes_and_decodes_each_batch_once_and_yields_its_posterior(self, vae: AutoencoderKL) -> None:
        small = torch.rand(2, 3, 96, 96) * 2 - 1
        calls: list[str] = []

        class Counted:
            device = vae.device

            def encode(self, x: Tensor) -> object:
                calls.append("encode")
                return vae.encode(x)

            def decode(self, z: Tensor) -> DecoderOutput:
                calls.append("decode")
                return vae.decode(z)

        xray = Xray(F)
        found: Iterator = xray.posteriors(Counted(), [small, small])  # type: ignore[arg-type]
        torch.testing.assert_close(next(found).mean, vae.encode(small).latent_dist.mean)
        assert calls == ["encode", "decode"]
        assert xray.count == 2 and 0 < xray.spectral_share < 1

    @pytest.mark.parametrize("channels", [1, 4])
    def test_images_of_other_channels_are_measured(self, channels: int) -> None:
        images = torch.rand(2, channels, 96, 96) * 2 - 1
        xray = Xray(F)
        xray.add(images, images * 0.9)
        assert math.isnan(xray.artefacts().colour) == (channels == 4)

    @pytest.mark.parametrize("factor", [1, 2, 4])
    def test_other_factors_are_measured(self, factor: int) -> None:
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        xray = Xray(factor)
        xray.add(images, images * 0.9)
        assert all(math.isfinite(value) for value in vars(xray.artefacts()).values() if isinstance(value, float))

    @pytest.mark.parametrize("shape", [(1, 3, 96, 104), (1, 3, 64, 64), (1, 3, 100, 100)])
    def test_other_sizes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="square images of 96 pixels or more, in multiples of 8"):
            Xray(F).add(torch.zeros(shape), torch.zeros(shape))

    def test_without_images_there_is_nothing_to_say(self) -> None:
        with pytest.raises(ValueError, match="one image or more"):
            Xray(F).artefacts()


def test_cielab_agrees_with_scikit_image() -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1
    wanted = torch.from_numpy(rgb2lab(((images + 1) / 2).movedim(1, -1).numpy())).movedim(-1, 1)
    torch.testing.assert_close(cielab(images), wanted, rtol=0, atol=0.05)  # coefficients of four digits
