"""Solutions of notebook 07. Written by tools.solutions from notebooks/source/07_patchgan.py; edit that."""

from torch import nn
from torch.nn import functional as F


class NLayerDiscriminator(nn.Module):
    """Images (B, C, H, W) -> logits (B, 1, h, w), one per patch: above zero where it looks real."""

    def __init__(self, in_channels=3, num_filters=64, num_layers=3):
        super().__init__()
        layers = [nn.Conv2d(in_channels, num_filters, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = num_filters
        for number in range(1, num_layers + 1):
            before, width = width, num_filters * min(2**number, 8)
            stride = 2 if number < num_layers else 1
            convolution = nn.Conv2d(before, width, 4, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)

    def forward(self, images):
        return self.main(images)


def receptive_field(num_layers):
    """The side in pixels of the patch that one logit of NLayerDiscriminator(num_layers=num_layers) sees."""
    strides = [2] * num_layers + [1, 1]
    side = 1
    for stride in reversed(strides):
        side = 4 + (side - 1) * stride
    return side


def discriminator_loss(logits_real, logits_fake, kind):
    """Logits of images and of reconstructions -> the loss of the discriminator ("hinge" or "vanilla"), a scalar."""
    if kind == "hinge":
        real, fake = F.relu(1 - logits_real), F.relu(1 + logits_fake)
    else:
        real, fake = F.softplus(-logits_real), F.softplus(logits_fake)
    return 0.5 * (real.mean() + fake.mean())


def adaptive_weight(nll_gradient, adversarial_gradient, limit=1e4):
    """Both gradients at the last layer's weight -> the factor that gives the second the norm of the first: a scalar."""
    ratio = nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(max=limit).detach()


def discriminator_step(discriminator, optimizer, images, reconstructions):
    """One update of the discriminator with the hinge loss, which is returned. Nothing flows back further."""
    logits_real = discriminator(images)
    logits_fake = discriminator(reconstructions.detach())
    loss = discriminator_loss(logits_real, logits_fake, "hinge")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
