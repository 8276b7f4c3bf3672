"""`Photograph`: a picture that panels look at, and a button with which the learner puts another in its place."""

from __future__ import annotations

import io
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
from klvae_edu.data.files import UnreadableImage, load_image, resize
from klvae_edu.explore.explorer import Pictured, encode_pixels, status_line
from klvae_edu.gaussian import DiagonalGaussianDistribution

SIDE = 256  # pixels
MOST_PIXELS = 50_000_000  # a larger photograph would take more than 600 MB while it is read


class Encoded(NamedTuple):
    """An image with what a model makes of it, all on the model's device.

    Attributes:
        image: (1, 3, H, W) in [-1, 1].
        posterior: of shape (1, C, h, w).
        z: its mode, (1, C, h, w).
        decoded: `z` decoded, (1, 3, H, W).
    """

    image: Tensor
    posterior: DiagonalGaussianDistribution
    z: Tensor
    decoded: Tensor


@torch.no_grad()
def encode(vae: AutoencoderKL, image: Tensor) -> Encoded:
    """`image` (3, H, W) or (1, 3, H, W) in [-1, 1] through the model, with sides that are multiples of f.

    Raises:
        ValueError: another shape, or other sides.
    """
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1 or any(side % vae.downsample_factor for side in image.shape[2:]):
        expected = f"(3, H, W) or (1, 3, H, W), with H and W multiples of {vae.downsample_factor}"
        raise ValueError(f"image: expected one image {expected}, got shape {tuple(image.shape)}")
    image = image.to(vae.device, vae.dtype)
    posterior = vae.encode(image).latent_dist
    return Encoded(image, posterior, posterior.mode(), vae.decode(posterior.mode()).sample)


class Photograph(Pictured):
    """A photograph and a button to upload another; the panels that were given it change with it.

    Args:
        image: (3, H, W) in [-1, 1]; the square in its middle is taken, at 256×256 pixels.
        name: what it shows, for the line above it.

    Attributes:
        image: (1, 3, 256, 256), float32 in [-1, 1].

    Raises:
        ValueError: not (3, H, W).

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
        """What `vae` makes of the photograph. It is asked once; panels share the answer."""
        if vae not in self._encoded:
            self._encoded[vae] = encode(vae, self.image)
        return self._encoded[vae]

    def replace(self, image: Tensor, name: str) -> None:
        """Put another image (3, H, W) in [-1, 1] in the place of this one, here and in the panels that follow."""
        self._take(image, name)
        self._encoded.clear()
        self.picture.value = self._jpeg()
        self.status.value = status_line(self._caption())
        for refresh in self._followers.values():
            refresh()

    def follow(self, who: Hashable, refresh: Callable[[], None]) -> None:
        """Call `refresh` whenever there is another photograph, in the place of the last one that `who` left here.

        A cell that is run again makes its panel anew; the old one is let go, so that they do not add up.
        """
        self._followers[who] = refresh

    def still(self) -> tuple[str, bytes, str]:
        return "image/jpeg", self._jpeg(), self._caption()

    def __repr__(self) -> str:
        return "Photograph()"

    def _take(self, image: Tensor, name: str) -> None:
        self.image, self.name = square(image, SIDE)[None], name

    def _caption(self) -> str:
        return f"Photograph: {self.name}, the square in the middle at {SIDE}×{SIDE} pixels."

    def _jpeg(self) -> bytes:
        return encode_pixels(plots.to_image(self.image[0]), "jpeg")

    def _uploaded(self, value: Any) -> None:
        # An exception in a callback of ipywidgets would vanish into a log that nobody reads.
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
    """Names and contents in the value of a `FileUpload`: {name: …} in ipywidgets 7, a tuple of {"name": …} in 8."""
    if isinstance(value, Mapping):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def read(content: bytes, name: str) -> Tensor:
    """The image in a file's `content`, (3, H, W) in [-1, 1]; `name` is for error messages.

    Raises:
        UnreadableImage: not an image, damaged, or larger than 50 million pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        try:
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
        except Exception:  # load_image says what it is
            width = height = 0
        if width * height > MOST_PIXELS:
            limit = f"{MOST_PIXELS // 10**6} million or fewer"
            raise UnreadableImage(f"{name}: {width}×{height} pixels; shrink it to {limit}")
        return load_image(io.BytesIO(content), name)


def square(image: Tensor, side: int) -> Tensor:
    """The square in the middle of `image` (3, H, W), scaled: (3, side, side), float32 in [-1, 1].

    Raises:
        ValueError: another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image (3, H, W), got shape {tuple(image.shape)}")
    height, width = image.shape[1:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return resize(image[:, top : top + short, left : left + short].float(), side, side)
