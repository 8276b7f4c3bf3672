"""`Photograph`: the picture of one or more panels, with a button to upload another one."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets as widgets
import torch
from PIL import Image
from torch import Tensor

from klvae_edu import plots
from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.data.files import UnreadableImage, center_square, load_image
from klvae_edu.data.formats import open_image
from klvae_edu.explore.explorer import Pictured, encode_pixels, status_line
from klvae_edu.gaussian import DiagonalGaussianDistribution

SIDE = 256  # pixels
READ_SIDE = 2 * SIDE  # shorter side of a large photograph after it was read
MAX_PIXELS = 50_000_000  # decoded at once, which takes up to 600 MB, and up to 1 GB of a WebP or JPEG 2000


class Encoded(NamedTuple):
    """An image with its posterior and its reconstruction, on the model's device.

    Attributes:
        image: (1, 3, H, W) in [-1, 1].
        posterior: posterior of shape (1, C, h, w).
        z: mode of the posterior, (1, C, h, w).
        decoded: reconstruction from `z`, (1, 3, H, W).
    """

    image: Tensor
    posterior: DiagonalGaussianDistribution
    z: Tensor
    decoded: Tensor


@torch.no_grad()
def encode(vae: AutoencoderKL, image: Tensor) -> Encoded:
    """Encode and decode `image` (3, H, W) or (1, 3, H, W) in [-1, 1]; H and W are multiples of the factor f.

    Raises:
        ValueError: another shape, or sides that are not multiples of f.
    """
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1 or any(side % vae.downsample_factor for side in image.shape[2:]):
        expected = f"(3, H, W) or (1, 3, H, W), with H and W multiples of {vae.downsample_factor}"
        raise ValueError(f"image: expected one image {expected}, got shape {tuple(image.shape)}")
    image = image.to(vae.device, vae.dtype)
    posterior = vae.encode(image).latent_dist
    return Encoded(image, posterior, posterior.mode(), vae.decode(posterior.mode()).sample)


class Photograph(Pictured):
    """A photograph and a button to upload another one; its panels are redrawn when it is replaced.

    Args:
        image: (3, H, W) in [-1, 1]; its largest centred square is resized to 256×256 pixels.
        name: description, shown above it.

    Attributes:
        image: (1, 3, 256, 256), float32 in [-1, 1].

    Raises:
        ValueError: another shape than (3, H, W).

    Example:
        >>> photograph = Photograph(photographs("held-out")["chelsea"], "a cat")
        >>> panels.channels(vae, photograph)
    """

    def __init__(self, image: Tensor, name: str = "a photograph") -> None:
        self._encoded: weakref.WeakKeyDictionary[AutoencoderKL, Encoded] = weakref.WeakKeyDictionary()
        self._followers: dict[Hashable, Callable[[], None]] = {}
        self._take(image, name)
        layout = {"width": "auto", "align_self": "flex-start"}
        self.button = widgets.FileUpload(
            accept="image/*", multiple=False, description="Upload a photograph", layout=layout
        )
        self.status = widgets.HTML(status_line(self._caption()))
        self.picture = widgets.Image(
            value=self._jpeg(), format="jpeg", layout={"align_self": "flex-start", "max_width": "100%"}
        )
        super().__init__([self.button, self.status, self.picture])
        self.button.observe(lambda change: self._uploaded(change["new"]), names="value")

    def encoded(self, vae: AutoencoderKL) -> Encoded:
        """Return the photograph encoded by `vae`. The result is cached and shared by panels."""
        if vae not in self._encoded:
            self._encoded[vae] = encode(vae, self.image)
        return self._encoded[vae]

    def replace(self, image: Tensor, name: str) -> None:
        """Replace the photograph by another image (3, H, W) in [-1, 1], and redraw its panels."""
        self._take(image, name)
        self._encoded.clear()
        self.picture.value = self._jpeg()
        self.status.value = status_line(self._caption())
        for refresh in self._followers.values():
            refresh()

    def follow(self, who: Hashable, refresh: Callable[[], None]) -> None:
        """Call `refresh` when the photograph is replaced. It replaces an earlier function of the same `who`.

        When a cell is run again, it makes a new panel; the old one is released, so panels do not accumulate.
        """
        self._followers[who] = refresh

    def still(self) -> tuple[str, bytes, str]:
        """Return the photograph as a JPEG with its caption."""
        return "image/jpeg", self._jpeg(), self._caption()

    def __repr__(self) -> str:
        return "Photograph()"

    def _take(self, image: Tensor, name: str) -> None:
        self.image, self.name = center_square(image.float(), SIDE)[None], name

    def _caption(self) -> str:
        return f"Photograph: {self.name}, the square in the middle at {SIDE}×{SIDE} pixels."

    def _jpeg(self) -> bytes:
        return encode_pixels(plots.to_image(self.image[0]), "jpeg")

    def _uploaded(self, value: Any) -> None:
        # An exception in a callback of ipywidgets would only appear in a log.
        try:
            files = uploaded_files(value)
            if not files:
                return
            if len(files) > 1:
                raise UnreadableImage(f"expected one photograph, got {len(files)} files")
            name, content = files[0]
            self.replace(read(content, name), name)
        except Exception as error:
            text = str(error) if isinstance(error, UnreadableImage) else f"{type(error).__name__}: {error}"
            self.status.value = status_line(f"{text}. The photograph stays: {self.name}.")


def uploaded_files(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[tuple[str, bytes]]:
    """Return the names and contents of uploaded files.

    Args:
        value: of a `FileUpload`: {name: …} in ipywidgets 7, a tuple of {"name": …} in ipywidgets 8.
    """
    if isinstance(value, Mapping):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def read(content: bytes, name: str) -> Tensor:
    """Decode the `content` of an image file to (3, H, W) in [-1, 1], reduced if it is large; messages use `name`.

    Raises:
        UnreadableImage: not an image, damaged, or more than 50 million pixels after the decoder has reduced it, which
            it does with a JPEG that is not progressive.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        decoded = (0, 0)
        with contextlib.suppress(Exception), open_image(io.BytesIO(content)) as image:  # load_image raises the error
            width, height = image.size
            if not image.info.get("progressive"):  # of such a JPEG, the coefficients of all pixels are in memory
                image.draft(None, (READ_SIDE, READ_SIDE))
            decoded = image.size
        if math.prod(decoded) > MAX_PIXELS:
            advice = (
                f"shrink it to {MAX_PIXELS // 10**6} million or fewer, or save it as a JPEG that is not progressive"
            )
            raise UnreadableImage(f"{name}: {width}×{height} pixels; {advice}")
        return load_image(io.BytesIO(content), name, reduce_to=READ_SIDE)
