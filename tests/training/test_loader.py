"""The order of the crops."""

from __future__ import annotations

from itertools import islice

import pytest

from klvae_edu.training import loader
from klvae_edu.training.loader import ResumableSampler


@pytest.fixture(autouse=True)
def short_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SHUFFLE_BLOCK", 8)


def test_every_index_comes_once() -> None:
    order = list(ResumableSampler(0, 24, seed=0))
    assert sorted(order) == list(range(24)) != order
    assert sorted(order[:8]) == list(range(8))


def test_passes_are_shuffled_each_in_its_own_way() -> None:
    order = list(ResumableSampler(0, 16, seed=0))
    assert [index - 8 for index in order[8:]] != order[:8]


@pytest.mark.parametrize("position", [0, 1, 7, 8, 9, 23, 24])
def test_from_a_place_on_the_order_is_that_of_the_whole(position: int) -> None:
    whole = list(ResumableSampler(0, 24, seed=3))
    rest = ResumableSampler(position, 24, seed=3)
    assert list(rest) == whole[position:]
    assert len(rest) == 24 - position


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    assert list(islice(ResumableSampler(0, 80, seed=1), 16)) == list(ResumableSampler(0, 16, seed=1))


def test_the_seed_decides() -> None:
    assert list(ResumableSampler(0, 8, seed=0)) != list(ResumableSampler(0, 8, seed=1))
    assert list(ResumableSampler(0, 8, seed=1)) == list(ResumableSampler(0, 8, seed=1))
