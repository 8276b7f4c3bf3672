"""Attention with one head, computed in three ways that agree up to rounding and cost differently.

Queries, keys and values are (B, N, C), for N = H·W pixels. Each returns (B, N, C): for every query, the average of the
values, weighted by softmax(scale · query · key) over the keys.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1. Built in notebook 04, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024  # queries at a time: their weights take CHUNK · N numbers instead of N²


def sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """PyTorch's own: it picks the fastest kernel there is, and none but the plainest writes down all N² weights."""
    query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))  # the kernels expect (B, heads, N, C)
    return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)


def eager(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition, with the whole (B, N, N) matrix of weights in memory."""
    weights = torch.softmax(scale * query @ key.transpose(1, 2), dim=-1)
    return weights @ value


def chunked(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition for some queries at a time: exact, because every query is answered by itself."""
    return torch.cat([eager(some, key, value, scale) for some in torch.split(query, CHUNK, dim=1)], dim=1)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "sdpa": sdpa,
    "eager": eager,
    "chunked": chunked,
}
