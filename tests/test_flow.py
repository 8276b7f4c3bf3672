"""Flow matching: the path and its velocity, the optimal velocity, integration, the network and its training."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from klvae_edu.flow import (
    TimedResnetBlock,
    VelocityNet,
    flow_matching_loss,
    gaussian_velocity,
    integrate,
    straight_path,
    time_features,
    train_flow,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# ---- The path --------------------------------------------------------------------------------------------------------


def test_the_path_begins_at_the_noise_ends_at_the_data_and_is_straight() -> None:
    x0, x1 = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    x_t, velocity = straight_path(x0, x1, torch.tensor([0.0, 1.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[1], x1[1])
    torch.testing.assert_close(x_t[2], 0.75 * x0[2] + 0.25 * x1[2])
    torch.testing.assert_close(x_t[2] + 0.75 * velocity[2], x1[2])


def test_each_of_a_batch_has_its_own_time_whatever_the_rank() -> None:
    x_t, _ = straight_path(torch.zeros(2, 5), torch.ones(2, 5), torch.tensor([0.1, 0.7]))
    torch.testing.assert_close(x_t, torch.tensor([[0.1] * 5, [0.7] * 5]))


@pytest.mark.parametrize(("x0", "t"), [((2, 4, 8, 8), (1,)), ((2, 4, 8, 8), (2, 1)), ((1, 4, 8, 8), (1,))])
def test_shapes_that_would_broadcast_are_a_value_error(x0: tuple[int, ...], t: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="straight_path: expected x0 and x1 of one shape"):
        straight_path(torch.zeros(x0), torch.zeros(2, 4, 8, 8), torch.zeros(t))


# ---- The optimal velocity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 0.5), (-1.0, 3.0)])
@pytest.mark.parametrize("time", [0.0, 0.3, 0.8, 1.0])
def test_on_gaussians_the_closed_form_is_the_regression_of_the_velocity_on_the_place(
    mean: float, std: float, time: float
) -> None:
    x0, x1 = draw(400_000), mean + std * draw(400_000, seed=1)
    t = torch.full_like(x0, time)
    x_t, velocity = straight_path(x0, x1, t)
    residual = velocity - gaussian_velocity(x_t, t, mean, std)
    assert abs(residual.mean()) < 0.02 * (1 + std)
    assert abs((residual * (x_t - x_t.mean())).mean()) < 0.03 * (1 + std**2)  # no linear correlation is left


def test_no_other_velocity_has_a_smaller_loss_than_the_closed_form() -> None:
    x1 = 2 + 0.5 * draw(100_000, 1)

    def loss(change: Callable[[Tensor, Tensor], Tensor]) -> float:
        return flow_matching_loss(lambda x, t: gaussian_velocity(x, t, 2.0, 0.5) + change(x, t), x1, seeded(3)).item()

    best = loss(lambda x, t: torch.zeros_like(x))
    for change in (lambda x, t: 0.1, lambda x, t: 0.1 * x, lambda x, t: 0.2 * t[:, None], lambda x, t: 0.1 * x.sin()):
        assert loss(change) > best + 1e-3
    assert best > 0.1  # not 0: lines cross, and x_t does not say which of them it is on


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_following_the_closed_form_turns_noise_into_the_data(method: str) -> None:
    noise = draw(50_000, 1)
    found = integrate(lambda x, t: gaussian_velocity(x, t, 2.0, 0.5), noise, 200, method)
    torch.testing.assert_close(found, 2 + 0.5 * noise, atol=0.02, rtol=0)


# ---- Integration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_constant_velocity_is_integrated_exactly(method: str, steps: int) -> None:
    x0, v = draw(2, 4, 2, 2), draw(2, 4, 2, 2, seed=1)
    torch.testing.assert_close(integrate(lambda x, t: v, x0, steps, method), x0 + v, rtol=1e-12, atol=1e-12)


def test_heun_is_exact_for_a_velocity_linear_in_time_and_euler_lags_behind() -> None:
    x0 = draw(5, 3)
    velocity = lambda x, t: (2 * t[:, None]).expand_as(x)  # noqa: E731  # x0 + t²
    torch.testing.assert_close(integrate(velocity, x0, 3, "heun"), x0 + 1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(integrate(velocity, x0, 4, "euler"), x0 + 1 - 1 / 4, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(method: str, order: int) -> None:
    x0 = torch.ones(1, 1, dtype=torch.float64)
    coarse, fine = (abs(integrate(lambda x, t: x, x0, n, method).item() - math.e) for n in (50, 100))
    assert coarse / fine == pytest.approx(2**order, rel=0.05)


def test_the_velocity_is_asked_at_the_times_of_the_method() -> None:
    asked: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (3,) and t.dtype == x.dtype
        asked.append(round(t[0].item(), 6))
        return torch.zeros_like(x)

    integrate(velocity, draw(3, 2), 2, "euler")
    integrate(velocity, draw(3, 2), 2, "heun")
    assert asked == [0, 0.5, 0, 0.5, 0.5, 1]  # Euler, then Heun


@pytest.mark.parametrize(("steps", "method"), [(0, "heun"), (3, "rk4")])
def test_no_steps_or_an_unknown_method_is_a_value_error(steps: int, method: str) -> None:
    with pytest.raises(ValueError, match="expected steps ≥ 1 and method 'euler' or 'heun'"):
        integrate(lambda x, t: x, draw(1, 1), steps, method)  # type: ignore[arg-type]


# ---- The network -----------------------------------------------------------------------------------------------------


def test_time_features_are_bounded_tell_times_apart_and_change_little_between_near_ones() -> None:
    features = time_features(torch.tensor([0.0, 0.5, 0.5001, 1.0]), 64)
    assert features.shape == (4, 64) and features.abs().max() <= 1
    distances = torch.cdist(features, features)
    assert distances[1, 2] < 0.5 < distances[0, 1] and distances[1, 3] > 0.5
    torch.testing.assert_close(features[0], torch.cat([torch.zeros(32), torch.ones(32)]))


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 3, 32, 16), (3, 4, 4, 4)])
def test_the_velocity_has_the_shape_of_what_it_is_asked_for(shape: tuple[int, ...]) -> None:
    net = VelocityNet(shape[1], width=16, depth=1)
    assert net(torch.randn(shape), torch.rand(shape[0])).shape == shape


def test_an_untrained_net_stands_still_and_every_parameter_but_the_zeroed_ones_reaches_the_output() -> None:
    net = VelocityNet(4, width=16, depth=2)
    x, t = torch.randn(2, 4, 8, 8, generator=seeded()), torch.rand(2, generator=seeded())
    assert not net(x, t).any()
    for number, parameter in enumerate(net.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=seeded(number))
    net(x, t).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_the_time_reaches_each_of_the_batch_by_itself() -> None:
    block = TimedResnetBlock(16, 8)
    for number, parameter in enumerate(block.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=seeded(number))
    x, time = torch.randn(2, 16, 4, 4, generator=seeded()), torch.randn(2, 8, generator=seeded(1))
    other = torch.stack([time[0], time[1] + 1])
    changed = (block(x, time) - block(x, other)).abs().amax((1, 2, 3))
    assert changed[0] == 0 and changed[1] > 1e-3


@pytest.mark.parametrize(("shape", "times"), [((2, 4, 7, 8), 2), ((2, 4, 8, 8), 1), ((4, 8, 8), 4)])
def test_odd_sides_or_too_few_times_are_a_value_error(shape: tuple[int, ...], times: int) -> None:
    with pytest.raises(ValueError, match=r"expected x \(B, C, h, w\) with even sides and t \(B,\)"):
        VelocityNet(4, 16, 1)(torch.zeros(shape), torch.zeros(times))


@pytest.mark.parametrize("width", [8, 20])
def test_a_width_whose_norms_would_take_out_the_time_is_a_value_error(width: int) -> None:
    with pytest.raises(ValueError, match=f"width: expected a multiple of 8 and at least 16, got {width}"):
        VelocityNet(4, width)


# ---- Training --------------------------------------------------------------------------------------------------------


def test_a_trained_net_sends_noise_to_the_data() -> None:
    """The data are one latent; then the velocity at every place leads to it, and so does the average of the weights."""
    torch.manual_seed(0)
    target = torch.linspace(-1, 1, 64).view(1, 4, 4, 4)
    net = VelocityNet(4, width=16, depth=1)
    before = [parameter.clone() for parameter in net.parameters()]
    average, losses = train_flow(net, iter([target.expand(16, -1, -1, -1)] * 150), 150, lr=5e-3, generator=seeded())
    assert len(losses) == 150 and losses[-1] < 0.5 * losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    found = integrate(average, torch.randn(8, 4, 4, 4, generator=seeded(1)), 10)
    assert (found - target).std() < 0.5 and (found.mean(0) - target[0]).std() < 0.3


def test_training_is_the_same_for_the_same_seeds_and_uses_no_other_randomness() -> None:
    results = []
    for other in (1, 2):
        torch.manual_seed(0)
        net = VelocityNet(4, width=16, depth=1)
        torch.manual_seed(other)
        data = [torch.randn(4, 4, 4, 4, generator=seeded(step)) for step in range(3)]
        _, losses = train_flow(net, data, 3, generator=seeded())
        results.append(losses)
    assert results[0] == results[1]


def test_too_few_batches_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="expected 3 batches, got 1"):
        train_flow(VelocityNet(4, 16, 1), [torch.zeros(2, 4, 4, 4)], 3)
