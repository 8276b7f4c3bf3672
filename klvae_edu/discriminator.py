"""PatchGAN: a small convolutional network that judges every 70x70 patch of an image by itself.

Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2 and
appendix 6.1.2; taming-transformers, `taming/modules/discriminator/model.py`, whose weights load here as they are.
"""

from __future__ import annotations

from torch import Tensor, nn

KERNEL, PADDING = 4, 1  # of every convolution
WIDEST = 8  # times num_filters


class NLayerDiscriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> logits (B, 1, h, w), one per patch: above zero where it looks real.

    With the defaults 256x256 pixels give 30x30 logits, 8 pixels apart, each of a 70x70 patch; 2,765,633 parameters.
    The middle convolutions are followed by BatchNorm, hence have no bias. In training mode BatchNorm normalises by the
    batch at hand; of several processes each normalises by its own part of the batch.

    Args:
        in_channels: of the images.
        num_filters: channels of the first convolution; the following ones have 2, 4, 8, 8, … times as many.
        num_layers: convolutions with stride 2; two with stride 1 follow.

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
        layers: list[nn.Module] = [nn.Conv2d(in_channels, num_filters, KERNEL, 2, PADDING), nn.LeakyReLU(0.2, True)]
        width = num_filters
        for number in range(1, num_layers + 1):
            before, width = width, num_filters * min(2**number, WIDEST)
            stride = 2 if number < num_layers else 1
            layers += [
                nn.Conv2d(before, width, KERNEL, stride, PADDING, bias=False),  # BatchNorm would take a bias away again
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2, True),
            ]
        layers += [nn.Conv2d(width, 1, KERNEL, 1, PADDING)]
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, 1, h, w).

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
        return self.main(images)


def smallest_side(num_layers: int = 3) -> int:
    """The smallest image, in pixels a side, for which there is a logit: 24 for the default."""
    return 3 * 2**num_layers


def receptive_field(num_layers: int = 3) -> int:
    """The side in pixels of the patch that one logit sees: 70 for the default.

    Walked back from one logit: a convolution with kernel k and stride s sees k + (n - 1)·s of what the n values after
    it see. Built in notebook 07, section 2.
    """
    side = 1
    for stride in [1, 1] + [2] * num_layers:
        side = KERNEL + (side - 1) * stride
    return side


def _initialise(module: nn.Module) -> None:
    """pix2pix' initialisation: weights of mean 0 (BatchNorm's: 1) and standard deviation 0.02."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
