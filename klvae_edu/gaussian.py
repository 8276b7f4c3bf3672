"""The posterior q(z|x): a Gaussian with one mean and one variance for each latent value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None  # of random numbers: one, or one for each image


class DiagonalGaussianDistribution:
    """A batch of Gaussians with diagonal covariance, built from the encoder's output.

    Args:
        parameters: (B, 2C, …), usually (B, 2C, H, W): the mean in the first C channels, the log-variance in the last C.
        deterministic: set the variance to zero: every sample is the mean, and `kl` and `nll` return zeros (B,),
            whatever `other`, `sample` and `dims` are.

    Attributes:
        mean: (B, C, …).
        logvar: (B, C, …), clamped to [-30, 20], so that `exp` neither underflows nor overflows.
        std, var: (B, C, …), exp(logvar / 2) and exp(logvar).

    Raises:
        ValueError: `parameters` has no channel dimension, or an odd number of channels.

    Source: CompVis latent-diffusion, `ldm/modules/distributions/distributions.py`; Kingma & Welling 2013, section 2.4.
    Built in notebook 01, section 5; `kl` in notebook 02, sections 1 and 2.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        if parameters.ndim < 2 or parameters.shape[1] % 2:
            raise ValueError(
                "expected parameters of shape (B, 2C, …): mean and log-variance along the channels, an even number; "
                f"got shape {tuple(parameters.shape)}"
            )
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)  # (B, C, …) each
        self.logvar = logvar.clamp(-30.0, 20.0)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std = torch.exp(0.5 * self.logvar)
            self.var = torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """Draw mean + std · ε with ε ~ N(0, I): (B, C, …). Gradients reach the mean and the log-variance.

        Args:
            generator: one for the whole batch, or a sequence with one for each image, which then does not depend on the
                rest of the batch. It may be on another device: ε is drawn there and moved. A CPU seed gives the same ε
                on every device.

        Raises:
            ValueError: a sequence that has neither one generator nor one for each image.
        """
        if generator is None or isinstance(generator, torch.Generator):
            return self.mean + self.std * self._noise(self.mean.shape, generator)
        batch, *rest = self.mean.shape
        if len(generator) not in (1, batch):
            raise ValueError(f"expected one generator, or one for each of the {batch} images, got {len(generator)}")
        each = torch.Size([batch // len(generator), *rest])
        return self.mean + self.std * torch.cat([self._noise(each, one) for one in generator])

    def mode(self) -> Tensor:
        """Return the most likely value, the mean of the Gaussian: (B, C, …)."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Compute KL(self ‖ other) in nats, summed over all dimensions except the batch: (B,). Default: N(0, I).

        It is computed and returned in float32 for 16-bit parameters: float16 ends at 65,504, and the sum does not.

        Raises:
            ValueError: `other` has another shape; it is not broadcast.
        """
        q = self._in_float32()
        if self.deterministic:
            return q.mean.new_zeros(q.mean.shape[0])
        if other is None:
            elementwise = q.mean.pow(2) + q.var - 1.0 - q.logvar
        else:
            if other.mean.shape != self.mean.shape:
                shapes = f"{tuple(self.mean.shape)}, got {tuple(other.mean.shape)}"
                raise ValueError(f"expected another Gaussian of shape {shapes}")
            p = other._in_float32()
            elementwise = ((q.mean - p.mean).pow(2) + q.var) / p.var - 1.0 - q.logvar + p.logvar
        return 0.5 * elementwise.flatten(1).sum(1)  # (B, C, …) -> (B,)

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """Compute -log q(sample) in nats, summed over `dims`: (B,) for a sample of shape (B, C, H, W).

        `sample` may have any shape that broadcasts with the mean, such as (S, B, C, H, W): S samples for each image.
        As `kl`, it is computed and returned in float32 for 16-bit parameters.
        """
        q = self._in_float32()
        if self.deterministic:
            return q.mean.new_zeros(q.mean.shape[0])
        elementwise = math.log(2.0 * math.pi) + q.logvar + (sample - q.mean).pow(2) / q.var
        return 0.5 * elementwise.sum(dim=dims)

    def _noise(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(shape, generator=generator, device=device, dtype=self.mean.dtype)
        return noise.to(self.mean.device)

    def _in_float32(self) -> DiagonalGaussianDistribution:
        """Return the same Gaussians in float32 if they are in 16 bits, otherwise `self`."""
        if self.parameters.dtype not in (torch.float16, torch.bfloat16):
            return self
        return DiagonalGaussianDistribution(self.parameters.float(), self.deterministic)

    def __repr__(self) -> str:
        return f"DiagonalGaussianDistribution(shape={tuple(self.mean.shape)}, deterministic={self.deterministic})"
