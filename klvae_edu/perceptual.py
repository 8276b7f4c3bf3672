"""LPIPS: a perceptual distance between images, computed from the feature maps of VGG16.

The network is torchvision's VGG16, trained on ImageNet. The weights of its channels come from the package `lpips`. Two
things differ from `lpips.LPIPS`:

* Nothing here can be trained or switched to train mode: there are no parameters, only buffers.
* The gradient is finite where a feature vector is zero. The square root in its norm has an infinite slope there. In
  `lpips` only the ReLU before it keeps the resulting NaN from the image.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", section 3, eq. 1.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from klvae_edu.downloads import cached_weights, read_weights

TAPS = (3, 8, 15, 22, 29)  # layers of torchvision's vgg16().features: the ReLU before each of the five max poolings
SMALLEST_SIDE = 16  # pixels; the feature map of the last tap is 16 times smaller than the image
EPS = 1e-8  # added to the squared norm of a feature vector: norms below 1e-4 count as zero


class LPIPS(nn.Module):
    """Perceptual distance of images (B, 3, H, W) in [-1, 1]: one value per image, 0 for equal images.

    Args:
        weights: weights of VGG16.
            "auto": torchvision's, from the cache of `torch.hub` or downloaded once (528 MB). If neither works, they are
            "untrained", with a warning.
            "untrained": random, from a fixed seed. The features respond to edges and textures, not to objects, and the
            distance is no measure of quality.
            Otherwise: path of a file with torchvision's weights (.pth, .pt or .safetensors).

    Attributes:
        trained: True if VGG16 has trained weights.
        source: origin of the weights, for reports: a path or "untrained VGG16".

    Raises:
        ValueError: the file is missing, damaged, or not a file of VGG16.
        ImportError: `lpips` or `torchvision` is not installed.

    Built in notebook 06, section 3.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path = "auto") -> None:
        super().__init__()
        from torchvision.models import vgg16

        with torch.device("meta"):  # allocates nothing: the unused classifier would take 0.5 GB
            self.trunk = vgg16(weights=None).features[: TAPS[-1] + 1]
        self.trunk.to_empty(device="cpu")
        trained, self.source = _vgg16_weights(weights)
        self.trained = trained is not None
        if trained is None:
            _initialise(self.trunk)
        else:
            self._load(trained)
        # ImageNet's mean and standard deviation, for RGB in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        for number, head in enumerate(_channel_weights()):  # (1, C, 1, 1) for each tap
            self.register_buffer(f"head{number}", head)
        _parameters_to_buffers(self)
        self.eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the distances (B,) of two batches (B, 3, H, W) in [-1, 1], differentiable with respect to both.

        The result has the data type of the weights, under autocast too: in float16 EPS would become 0.

        Raises:
            ValueError: another shape, images below 16 pixels a side or not floating-point, or weights in float16.
        """
        if images.shape != targets.shape or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"expected two batches of one shape (B, 3, H, W), got {tuple(images.shape)} and {tuple(targets.shape)}"
            )
        if not (images.is_floating_point() and targets.is_floating_point()) or self.scale.dtype == torch.float16:
            raise ValueError(
                "expected floating-point images, and weights in float32 or float64 (in float16 small norms become 0), "
                f"got images of {images.dtype} and {targets.dtype}, weights of {self.scale.dtype}"
            )
        if min(images.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(f"expected images of at least {SMALLEST_SIDE} pixels a side, got {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            # For each tap: squared difference of unit vectors (B, C, h, w), weighted sum over channels, spatial mean.
            pairs = zip(self.features(images), self.features(targets), strict=True)
            distances = [
                (self.get_buffer(f"head{number}") * (a - b).pow(2)).sum(1).mean((1, 2))
                for number, (a, b) in enumerate(pairs)
            ]
        return torch.stack(distances).sum(0)  # (5, B) -> (B,)

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps (B, C, h, w) of images (B, 3, H, W) at each of the five taps.

        C is 64, 128, 256, 512, 512. The first map has the size of the image, and each following one half the size. The
        feature vector at each pixel is divided by its norm; the result has norm 1, or less if that norm is below 1e-4.
        """
        x = (images.to(self.scale.dtype) - self.shift) / self.scale  # (B, 3, H, W)
        features = []
        for number, layer in enumerate(self.trunk):
            x = layer(x)
            if number in TAPS:
                features.append(x * (x.pow(2).sum(1, keepdim=True) + EPS).rsqrt())  # divided by √(‖x‖² + EPS)
        return features

    def train(self, mode: bool = True) -> Self:
        """Keep eval mode, whatever `mode` is: a parent in train mode changes nothing here."""
        return super().train(False)

    def _load(self, state: dict[str, Any]) -> None:
        prefix = "features."
        trunk = {name.removeprefix(prefix): state[name] for name in state if str(name).startswith(prefix)}
        try:
            self.trunk.load_state_dict(trunk)
        except RuntimeError as error:
            raise ValueError(f"{self.source}: expected the weights of torchvision's vgg16: {error}") from error


def cached_vgg16() -> Path:
    """Return the path in the cache of `torch.hub` at which weights "auto" are looked for; the file may be missing."""
    from torchvision.models import VGG16_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / VGG16_Weights.IMAGENET1K_V1.url.rpartition("/")[2]


def _vgg16_weights(weights: str | Path) -> tuple[dict[str, Any] | None, str]:
    """Return the state dictionary of VGG16 (None: untrained), and its origin as `LPIPS.source`."""
    if weights == "untrained":
        return None, "untrained VGG16"
    if weights != "auto":
        if not Path(weights).is_file():
            raise ValueError(f"{weights}: expected a file with the weights of torchvision's vgg16, found none")
        return read_weights(Path(weights)), str(weights)
    from torchvision.models import VGG16_Weights

    try:
        cached = cached_weights(VGG16_Weights.IMAGENET1K_V1.url, progress=True)
    except OSError as error:
        warnings.warn(
            f"LPIPS uses untrained features, because VGG16's trained weights are not available: {error}. The distance "
            "is not the one that was fitted to human judgements. Put the file there, or pass its path.",
            stacklevel=3,
        )
        return None, "untrained VGG16"
    return read_weights(cached), str(cached)


def _parameters_to_buffers(network: nn.Module) -> None:
    """Turn every parameter into a buffer, so that no optimiser and no `requires_grad_` changes it."""
    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, parameter.detach())


def _channel_weights() -> list[Tensor]:
    """Read the weights of the channels at each tap from the package `lpips`, version 0.1: 1,472 numbers in total."""
    spec = importlib.util.find_spec("lpips")  # only located: the import takes seconds and prints a message
    if spec is None or spec.origin is None:
        raise ImportError("LPIPS needs the package lpips: pip install 'klvae-edu[notebooks]'")
    state = torch.load(Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{tap}.model.1.weight"] for tap in range(len(TAPS))]


def _initialise(trunk: nn.Module) -> None:
    """Initialise the convolutions as torchvision does (Kaiming normal, zero bias), from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
