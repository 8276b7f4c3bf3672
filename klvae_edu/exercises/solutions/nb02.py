"""Solutions of notebook 02. Written by tools.solutions from notebooks/source/02_kl_loss.py; edit that."""

import torch


def kl_to_standard_normal(mean, logvar):
    """mean, logvar (B, C, …) -> KL to N(0, I) in nats, one number per image: (B,)."""
    each = mean**2 + torch.exp(logvar) - 1 - logvar
    return 0.5 * each.flatten(1).sum(1)


def kl_between(mean, logvar, other_mean, other_logvar):
    """KL(q ‖ p) in nats for q = (mean, logvar) and p = (other_mean, other_logvar), each (B, C, …): (B,)."""
    each = ((mean - other_mean) ** 2 + torch.exp(logvar)) / torch.exp(other_logvar) - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def monte_carlo_kl(mean, logvar, noise):
    """mean, logvar (B, C, …), noise (S, B, C, …) from N(0, 1) -> estimated KL to N(0, I) in nats: (B,)."""
    z = mean + torch.exp(0.5 * logvar) * noise
    log_q = -0.5 * (logvar + (z - mean) ** 2 / torch.exp(logvar))
    log_p = -0.5 * z**2
    return (log_q - log_p).flatten(2).sum(2).mean(0)


def kl_vae_loss(reconstruction, target, posterior, kl_weight=1e-6):
    """reconstruction, target (B, C, H, W); posterior has .kl() -> (B,). Returns a scalar."""
    pixel = (reconstruction - target).abs().flatten(1).sum(1).mean()
    return pixel + kl_weight * posterior.kl().mean()
