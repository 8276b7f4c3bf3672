"""Solutions of notebook 01. Written by tools.solutions from notebooks/source/01_diagonal_gaussian.py; edit that."""

import math
import torch


def split_parameters(parameters):
    """(B, 2C, …) -> mean (B, C, …) and log-variance (B, C, …), the latter within [-30, 20]."""
    mean, logvar = parameters.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def reparameterize(mean, logvar, noise):
    """mean, logvar and noise of one shape -> a sample of the same shape."""
    std = torch.exp(0.5 * logvar)
    return mean + std * noise


def nll(mean, logvar, sample):
    """mean, logvar, sample (B, C, …) -> -log q(sample) in nats, one number per image: (B,)."""
    each = math.log(2 * math.pi) + logvar + (sample - mean) ** 2 / torch.exp(logvar)
    return 0.5 * each.flatten(1).sum(1)


class DiagonalGaussian:
    """A Gaussian for every latent value: parameters (B, 2C, …), the mean in the first half of the channels."""

    def __init__(self, parameters, deterministic=False):
        self.deterministic = deterministic
        self.mean, self.logvar = split_parameters(parameters)
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = self.std**2

    def sample(self, generator=None):
        """A sample of the mean's shape, device and data type."""
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * noise

    def mode(self):
        """The most likely value."""
        return self.mean

    def nll(self, sample, dims=(1, 2, 3)):
        """-log q(sample), summed over `dims`; 0 if deterministic."""
        if self.deterministic:
            return torch.zeros(self.mean.shape[0], dtype=self.mean.dtype, device=self.mean.device)
        each = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * each.sum(dim=dims)
