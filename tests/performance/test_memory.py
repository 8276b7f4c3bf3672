"""Memory of tensors: bytes alive now and at most, each storage counted once."""

from __future__ import annotations

import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.performance.memory import TensorMemory

THOUSAND = 4 * 1000  # bytes of a thousand float32


def test_the_peak_is_what_was_alive_at_once() -> None:
    with TensorMemory() as memory:
        a = torch.zeros(1000)
        b = a + 1
        del b
        c = a * 2
    assert (memory.now, memory.peak) == (2 * THOUSAND, 2 * THOUSAND)
    del a, c
    assert (memory.now, memory.peak) == (0, 2 * THOUSAND)


def test_views_operations_in_place_and_what_was_there_before_count_nothing() -> None:
    before = torch.ones(1000)
    with TensorMemory() as memory:
        view = before.view(10, 100).transpose(0, 1)
        before.add_(1)
        assert view.is_set_to(view)
    assert memory.peak == 0


def test_what_is_kept_for_the_backward_pass_is_alive_until_then() -> None:
    x = torch.ones(1000, requires_grad=True)
    with TensorMemory() as memory:
        y = x.exp().exp().exp().sum()
        kept = memory.now
        y.backward()
    assert kept == pytest.approx(3 * THOUSAND, abs=100)
    del y
    x.grad = None
    assert memory.now == 0


def test_on_meta_the_count_is_that_of_the_cpu() -> None:
    peaks = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            vae, z = AutoencoderKL.from_preset("tiny"), torch.zeros(1, 4, 8, 8)
        with TensorMemory() as memory, torch.no_grad():
            vae.decode(z)
        peaks.append(memory.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.2)
    assert min(peaks) > 2 * 4 * 32 * 32 * 32  # two maps of the last level
