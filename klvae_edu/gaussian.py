"""The posterior q(z|x): a Gaussian with one mean and one variance for each latent value."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    Built in notebook 01, section 6; `kl` in notebook 02, sections 1 and 2.
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

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + std · ε with ε ~ N(0, I): (B, C, …). Gradients reach the mean and the log-variance.

        `generator` may be on another device: ε is drawn there and moved. A CPU seed gives the same ε on every device.
        """
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """Return the most likely value, the mean of the Gaussian: (B, C, …)."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Compute KL(self ‖ other) in nats, summed over all dimensions except the batch: (B,). Default: N(0, I).

        Raises:
            ValueError: `other` has another shape; it is not broadcast.
        """
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        if other is None:
            elementwise = self.mean.pow(2) + self.var - 1.0 - self.logvar
        else:
            if other.mean.shape != self.mean.shape:
                shapes = f"{tuple(self.mean.shape)}, got {tuple(other.mean.shape)}"
                raise ValueError(f"expected another Gaussian of shape {shapes}")
            squared_difference = (self.mean - other.mean).pow(2)
            elementwise = (squared_difference + self.var) / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * elementwise.flatten(1).sum(1)  # (B, C, …) -> (B,)

    def nll(self, sample: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
        """Compute -log q(sample) in nats, summed over `dims`: (B,) for a sample of shape (B, C, H, W).

        `sample` may have any shape that broadcasts with the mean, such as (S, B, C, H, W): S samples for each image.
        """
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        elementwise = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).pow(2) / self.var
        return 0.5 * elementwise.sum(dim=dims)

    def __repr__(self) -> str:
        return f"DiagonalGaussianDistribution(shape={tuple(self.mean.shape)}, deterministic={self.deterministic})"
