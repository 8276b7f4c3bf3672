"""LPIPS: the distance of two images as the features of a network for recognition see it.

The network is torchvision's VGG16, trained on ImageNet; the weights of its channels come with the package `lpips`. Two
things differ from `lpips.LPIPS`: nothing here can be trained (there are no parameters, only buffers) or switched to
train mode, and the features' length is never differentiated at 0, where a square root has an infinite slope (in
`lpips` only the ReLU before it keeps the product, which is not a number, from the image).

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", section 3, eq. 1.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

TAPS = (3, 8, 15, 22, 29)  # of torchvision's vgg16().features: the last ReLU before each pooling, and the last of all
SMALLEST_SIDE = 16  # pixels; the features of the last tap are 16 times smaller
EPS = 1e-8  # added to a squared length: features shorter than 1e-4 count as none


class LPIPS(nn.Module):
    """The perceptual distance of images (B, 3, H, W) in [-1, 1]: one value per image, 0 for equal images.

    Args:
        weights: of VGG16. "auto": torchvision's, from the cache of `torch.hub` or downloaded once (528 MB), and
            untrained ones with a warning where neither can be had. "untrained": drawn from a fixed seed; they see edges
            and textures, not objects, and are no measure of quality. Else the path of a file with torchvision's
            weights (.pth, .pt or .safetensors).

    Attributes:
        trained: whether VGG16 is the trained one.
        source: where its weights came from, in words.

    Raises:
        ValueError: the file is missing, damaged, or not of VGG16.
        ImportError: `lpips` or `torchvision` is not installed.

    Built in notebook 06, section 3.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path = "auto") -> None:
        super().__init__()
        from torchvision.models import vgg16

        with torch.device("meta"):  # the classifier behind the features would take 0.5 GB, to be thrown away
            self.trunk = vgg16(weights=None).features[: TAPS[-1] + 1]
        self.trunk.to_empty(device="cpu")
        trained, self.source = _vgg16(weights)
        self.trained = trained is not None
        if trained is None:
            _draw(self.trunk)
        else:
            self._load(trained)
        # Of RGB in [-1, 1]: ImageNet's mean and standard deviation.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        for number, head in enumerate(_heads()):  # one weight per channel: (1, C, 1, 1) for each tap
            self.register_buffer(f"head{number}", head)
        _freeze(self)
        self.eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] -> their distances (B,), differentiable with respect to both.

        Computed in the precision of the weights: under autocast too, where 16 bits would round a length of 1e-10 to 0.

        Raises:
            ValueError: another shape, or images below 16 pixels a side.
        """
        if images.shape != targets.shape or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"expected two batches of one shape (B, 3, H, W), got {tuple(images.shape)} and {tuple(targets.shape)}"
            )
        if not (images.is_floating_point() and targets.is_floating_point()) or self.scale.dtype == torch.float16:
            raise ValueError(
                "expected floating-point images, and weights in float32 or float64 (in float16 a small length is 0), "
                f"got images of {images.dtype} and {targets.dtype}, weights of {self.scale.dtype}"
            )
        if min(images.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(f"expected images of at least {SMALLEST_SIDE} pixels a side, got {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            pairs = zip(self.features(images), self.features(targets), strict=True)
            distances = [
                (self.get_buffer(f"head{number}") * (a - b).pow(2)).sum(1).mean((1, 2))
                for number, (a, b) in enumerate(pairs)
            ]
        return torch.stack(distances).sum(0)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> the features at each tap (B, C, h, w), of length 1 at each pixel."""
        x = (images.to(self.scale.dtype) - self.shift) / self.scale
        found = []
        for number, layer in enumerate(self.trunk):
            x = layer(x)
            if number in TAPS:
                found.append(x * (x.pow(2).sum(1, keepdim=True) + EPS).rsqrt())
        return found

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever it is a part of."""
        return super().train(False)

    def _load(self, state: dict[str, Tensor]) -> None:
        prefix = "features."
        trunk = {name.removeprefix(prefix): state[name] for name in state if str(name).startswith(prefix)}
        try:
            self.trunk.load_state_dict(trunk)
        except RuntimeError as error:
            raise ValueError(f"{self.source}: expected the weights of torchvision's vgg16: {error}") from error


def _vgg16(weights: str | Path) -> tuple[dict[str, Tensor] | None, str]:
    """The state dictionary of VGG16 (None: untrained), and where it came from in words."""
    if weights == "untrained":
        return None, "untrained VGG16"
    if weights != "auto":
        return _read(Path(weights)), str(weights)
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if cached.exists():
        return _read(cached), str(cached)
    try:
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            raise OSError("HF_HUB_OFFLINE is set")
        state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        return dict(state), str(cached)
    except (
        OSError,
        RuntimeError,
        HTTPException,
    ) as error:  # no network (a URLError is an OSError), or a part of the file
        warnings.warn(
            f"LPIPS: VGG16's trained weights are neither in {cached} nor to be had from {url} ({error}). Its features "
            "are untrained ones: a distance, but not the one that people's judgement was fitted to. Put the file "
            "there, or pass its path.",
            stacklevel=3,
        )
        return None, "untrained VGG16"


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, read without executing anything."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a file with the weights of torchvision's vgg16, found none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged files raise whatever their reader stumbles over
        raise ValueError(f"{path}: cannot be read as weights ({error}); if it is damaged, delete it") from error


def _freeze(network: nn.Module) -> None:
    """Turn every parameter into a buffer: then no optimiser and no `requires_grad_` reaches it."""
    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, parameter.detach())


def _heads() -> list[Tensor]:
    """The channels' weights from the package `lpips`, version 0.1: 1,472 numbers."""
    spec = importlib.util.find_spec("lpips")  # not imported: that takes seconds, and it prints
    if spec is None or spec.origin is None:
        raise ImportError("LPIPS needs the package lpips: pip install 'klvae-edu[course]'")
    state = torch.load(Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{tap}.model.1.weight"] for tap in range(len(TAPS))]


def _draw(trunk: nn.Module) -> None:
    """Untrained weights, as torchvision draws them, the same every time."""
    generator = torch.Generator().manual_seed(0)
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
