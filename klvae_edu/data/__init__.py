"""Image data: `files` reads images, `procedural` and `sprites` generate them, `sources` builds data sets."""

from klvae_edu.data.files import UnreadableImage, load_image, save_image
from klvae_edu.data.procedural import dead_leaves
from klvae_edu.data.sources import image_dataset, photographs

__all__ = ["UnreadableImage", "dead_leaves", "image_dataset", "load_image", "photographs", "save_image"]
