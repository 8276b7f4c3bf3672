"""PatchGAN: a small convolutional network that classifies overlapping patches of an image as real or reconstructed.

Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2 and
appendix 6.1.2; taming-transformers, `taming/modules/discriminator/model.py`, whose weights load without conversion.
"""

from __future__ import annotations

from torch import Tensor, nn

KERNEL, PADDING = 4, 1  # of every convolution
MAX_WIDTH_FACTOR = 8  # the widest layer has 8 · num_filters channels


class NLayerDiscriminator(nn.Module):
    """Turn images (B, C, H, W) in [-1, 1] into logits (B, 1, h, w), one for each patch: positive means real.

    With the defaults, 256x256 pixels give 30x30 logits. Each logit sees a patch of 70x70 pixels, and neighbouring
    patches are 8 pixels apart. There are 2,765,633 parameters.

    In training mode BatchNorm normalises by the current batch. With several processes each process normalises by its
    own part of the batch.

    Args:
        in_channels: channels of the images.
        num_filters: channels of the first convolution. The following ones have 2, 4, 8, 8, … times as many.
        num_layers: number of convolutions with stride 2. Two convolutions with stride 1 follow.

    Raises:
        ValueError: an argument below 1.

    Built in notebook 07, section 2.
    """

    def __init__(self, in_channels: int = 3, num_filters: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_filters", num_filters), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        self.in_channels, self.num_layers = in_channels, num_layers
        # Shapes in comments: the defaults on 256x256 pixels.
        # (B, 3, 256, 256) -> (B, 64, 128, 128). No norm directly after the image.
        layers: list[nn.Module] = [nn.Conv2d(in_channels, num_filters, KERNEL, 2, PADDING), nn.LeakyReLU(0.2, True)]
        width = num_filters
        # Halve the sides and double the channels, up to the maximum width. The last of these layers has stride 1:
        # (B, 128, 64, 64), (B, 256, 32, 32), (B, 512, 31, 31).
        for number in range(1, num_layers + 1):
            before, width = width, num_filters * min(2**number, MAX_WIDTH_FACTOR)
            stride = 2 if number < num_layers else 1
            layers += [
                nn.Conv2d(before, width, KERNEL, stride, PADDING, bias=False),  # BatchNorm would subtract a bias again
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2, True),
            ]
        layers += [nn.Conv2d(width, 1, KERNEL, 1, PADDING)]  # (B, 1, 30, 30): the logits
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, 1, h, w) of images (B, C, H, W).

        Raises:
            ValueError: another rank or number of channels, or an image too small for one logit.
        """
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"expected images of shape (B, {self.in_channels}, H, W), got {tuple(images.shape)}")
        if min(images.shape[-2:]) < smallest_side(self.num_layers):
            raise ValueError(
                f"expected images of at least {smallest_side(self.num_layers)} pixels a side for a discriminator with "
                f"num_layers={self.num_layers}, got {tuple(images.shape)}"
            )
        return self.main(images)  # (B, 1, h, w)


def smallest_side(num_layers: int = 3) -> int:
    """Compute the smallest image side, in pixels, for which there is one logit: 24 for the default."""
    return 3 * 2**num_layers


def receptive_field(num_layers: int = 3) -> int:
    """Compute the side, in pixels, of the patch that one logit depends on: 70 for the default.

    Go backward from one logit through the layers: n neighbouring outputs of a convolution with kernel k and stride s
    depend on k + (n - 1)·s of its inputs. Built in notebook 07, section 2.
    """
    side = 1
    for stride in [1, 1] + [2] * num_layers:  # from the last layer to the first
        side = KERNEL + (side - 1) * stride
    return side


def _initialise(module: nn.Module) -> None:
    """Apply pix2pix' initialisation: normal weights of mean 0 (BatchNorm: 1) and standard deviation 0.02.

    BatchNorm's biases start at 0. Biases of convolutions keep PyTorch's initialisation.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
