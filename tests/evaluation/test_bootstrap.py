"""Bootstrap: intervals of the right width, from sums of constant size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from klvae_edu.evaluation.bootstrap import (
    REPLICATES,
    Estimate,
    Sums,
    bootstrap_weights,
    estimate,
    paired_differences,
)


def of_values(values: np.ndarray, keys: list[tuple[int, ...]]) -> Estimate:
    """Estimate the mean of a metric with these values, one for each image."""
    sums = Sums(1)
    for value, key in zip(values, keys, strict=True):
        sums.add(bootstrap_weights(0, key), np.array([value]), np.ones(1))
    return estimate(sums.quotients()[:, 0])


def test_an_interval_is_1_96_standard_errors_to_either_side() -> None:
    values = np.random.default_rng(0).normal(30, 2, 400)
    found = of_values(values, [(n,) for n in range(400)])
    error = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.2 * error)


def test_crops_of_one_photograph_count_as_often_as_each_other() -> None:
    """10 equal crops of each of 40 photographs count as 40 values, not 400."""
    of_photograph = np.random.default_rng(1).normal(30, 2, 40)
    values = np.repeat(of_photograph, 10)
    together = of_values(values, [(n // 10,) for n in range(400)])
    apart = of_values(values, [(n,) for n in range(400)])
    error = 1.96 * of_photograph.std() / 40**0.5
    assert together.high - together.low == pytest.approx(2 * error, rel=0.2)
    assert apart.high - apart.low < 0.5 * (together.high - together.low)


def test_a_quotient_of_sums_is_no_mean_of_quotients() -> None:
    sums = Sums(1)
    for n, (numerator, denominator) in enumerate([(1.0, 4.0), (3.0, 4.0), (2.0, 0.0)]):
        sums.add(bootstrap_weights(0, (n,)), np.array([numerator]), np.array([denominator]))
    assert sums.quotients()[0, 0] == 6 / 8
    assert sums.quotients().shape == (1 + REPLICATES, 1)


def test_an_infinite_value_makes_only_those_replicates_infinite_that_drew_it() -> None:
    sums = Sums(1)
    weights = bootstrap_weights(0, (0,))
    sums.add(weights, np.array([np.inf]), np.ones(1))
    sums.add(np.ones(1 + REPLICATES), np.array([1.0]), np.ones(1))
    found = sums.quotients()[:, 0]
    assert not np.isnan(found).any() and (np.isinf(found) == (weights > 0)).all()


def test_without_a_denominator_a_quotient_is_not_defined() -> None:
    sums = Sums(2)
    sums.add(np.ones(1 + REPLICATES), np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    assert np.isnan(sums.quotients()).all()


def test_a_difference_of_equal_values_is_0_even_if_both_are_infinite() -> None:
    inf, nan = np.inf, np.nan
    found = paired_differences(np.array([inf, 3.0, inf, 2.0, nan]), np.array([inf, 3.0, 2.0, inf, nan]))
    assert found.tolist()[:4] == [0.0, 0.0, inf, -inf] and np.isnan(found[4])


def test_the_weights_depend_on_seed_and_key_and_have_mean_1() -> None:
    weights = bootstrap_weights(0, (3, 1))
    assert weights[0] == 1 and weights.shape == (1 + REPLICATES,)
    assert np.array_equal(weights, bootstrap_weights(0, (3, 1)))
    assert not np.array_equal(weights, bootstrap_weights(1, (3, 1)))
    assert not np.array_equal(weights, bootstrap_weights(0, (3, 2)))
    assert weights.mean() == pytest.approx(1, abs=0.1) and weights.var() == pytest.approx(1, abs=0.2)


def test_an_estimate_is_formatted_with_its_interval_and_has_no_infinity_in_json() -> None:
    assert f"{Estimate(1.234, 1.0, 1.5):.2f}" == "1.23 [1.00, 1.50]"
    assert f"{Estimate(1.234):.1f}" == "1.2"
    assert Estimate(np.inf, 1.0, np.inf).to_dict() == {"value": None, "low": 1.0, "high": None}
    json.dumps(Estimate(np.nan).to_dict(), allow_nan=False)
