"""Draw photographs beside their reconstructions by both bundled models, which were trained on none of them.

python -m tools.reconstructions          the picture of the README
python -m tools.reconstructions OUT.png  six photographs, at twice their size
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.data import load_image
from klvae_edu.data.files import resize
from klvae_edu.latents import channel_pictures
from klvae_edu.plots import Pixels, figure_to_image, image_grid, to_image
from tools.course import COURSE

README_PICTURE = COURSE.notebooks / "images" / "reconstructions.jpg"
SIDE = 256  # pixels
SQUARES = {  # files of scikit-image; left, top and side of the square
    "astronaut.png": (96, 0, 256),
    "chelsea.png": (100, 20, 256),
    "coffee.png": (170, 40, 320),
    "rocket.jpg": (180, 60, 320),
    "motorcycle_left.png": (300, 150, 320),
    "camera.png": (100, 40, 320),
}
MODELS = ("kl-f8-mini", "kl-f8-mini-16")


def photographs() -> Tensor:
    """Read the squares of the photographs inside scikit-image: (6, 3, 256, 256) in [-1, 1]."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    squares = []
    for file, (left, top, side) in SQUARES.items():
        image = load_image(Path(spec.origin).parent / "data" / file)
        squares.append(resize(image[:, top : top + side, left : left + side], SIDE, SIDE))
    return torch.stack(squares)


@torch.no_grad()
def reconstructions(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Encode and decode images (B, 3, 256, 256) with each model: latents (B, C, 32, 32) and reconstructions by name."""
    found = {}
    for name in MODELS:
        vae = AutoencoderKL.from_bundled(name)
        z = vae.encode(images).latent_dist.mode()
        found[name] = (z, vae.decode(z).sample.clamp(-1, 1))
    return found


def six(images: Tensor) -> Pixels:
    """Draw each photograph beside both reconstructions, every pixel as 2×2: (H, W, 3) uint8."""
    rows = zip(images, *(pictures for _, pictures in reconstructions(images).values()), strict=True)
    pictures = [torch.cat([to_pixels(image) for image in row], dim=1) for row in rows]
    return torch.cat(pictures).repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()


def to_pixels(image: Tensor) -> Tensor:
    """Convert an image (3, H, W) in [-1, 1] to (H, W, 3) uint8."""
    return torch.from_numpy(to_image(image))


def readme_picture(images: Tensor) -> Pixels:
    """Draw two photographs, their four latent channels, and both reconstructions: (H, W, 3) uint8."""
    found = reconstructions(images)
    latents = channel_pictures(found[MODELS[0]][0])  # (B, 4, 1, 32, 32)
    # Four channels (4, 1, 32, 32) as one square (1, 64, 64) of 2 × 2 channels.
    tiles = [torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1) for a, b, c, d in latents]
    large = [tile.repeat_interleave(4, 1).repeat_interleave(4, 2) for tile in tiles]
    rows = zip(images, large, *(pictures for _, pictures in found.values()), strict=True)
    titles = ["photograph", "latent of kl-f8-mini", *MODELS]
    captions = [["196,608 numbers", "4 × 32 × 32 = 4,096 numbers", "from 4,096 numbers", "from 16,384 numbers"]]
    return figure_to_image(
        image_grid([list(row) for row in rows], column_titles=titles, captions=captions * len(images))
    )


def main() -> None:
    """Write the picture that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="a new picture of six photographs")
    options = parser.parse_args()
    if options.out is None:
        README_PICTURE.parent.mkdir(exist_ok=True)
        Image.fromarray(readme_picture(photographs()[:2])).save(README_PICTURE, quality=90)
    else:
        Image.fromarray(six(photographs())).save(options.out)


if __name__ == "__main__":
    main()
