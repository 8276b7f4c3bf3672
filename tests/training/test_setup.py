"""The initial state of a run: networks, optimisers, averaged weights, learning rates, and the parts of a step."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from klvae_edu import AutoencoderKL, DiagonalGaussianDistribution
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import (
    TrainableAutoencoder,
    TrainableDiscriminator,
    Training,
    ema_update,
    set_up,
    start_accelerator,
)
from tests.training.whole_step import whole_step


def begin(**options: Any) -> Training:
    config = TrainingConfig(**{"size": 16, "batch_size": 2, "warmup": 0.0, "device": "cpu", "disc_layers": 2} | options)
    return set_up(config, start_accelerator(config))


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# The modules that are wrapped.


def test_the_forward_gives_the_reconstruction_of_a_posterior_sample_and_the_posterior() -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    torch.manual_seed(5)
    reconstruction, posterior = TrainableAutoencoder(vae)(images())
    torch.manual_seed(5)
    expected = vae.decode(vae.encode(images()).latent_dist.sample()).sample
    assert isinstance(posterior, DiagonalGaussianDistribution)
    torch.testing.assert_close(reconstruction, expected)
    torch.testing.assert_close(posterior.mean, vae.encode(images()).latent_dist.mean)


def test_the_gradient_of_the_forward_reaches_encoder_and_decoder() -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    reconstruction, posterior = TrainableAutoencoder(vae)(images())
    (reconstruction.sum() + posterior.kl().sum()).backward()
    assert [name for name, parameter in vae.named_parameters() if parameter.grad is None] == []


def test_a_frozen_encoder_builds_no_graph() -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    trainable = TrainableAutoencoder(vae)
    assert trainable(images())[1].parameters.requires_grad
    vae.encoder.requires_grad_(False)  # quant_conv still asks for a gradient, and would have a graph
    reconstruction, posterior = trainable(images())
    assert not posterior.parameters.requires_grad
    reconstruction.sum().backward()
    assert vae.decoder.conv_in.weight.grad is not None
    with torch.no_grad():
        assert not trainable(images())[0].requires_grad


def test_images_and_reconstructions_never_share_a_batch_norm() -> None:
    torch.manual_seed(0)
    network = NLayerDiscriminator(num_filters=4, num_layers=2)
    real, fake = images(4), images(4) * 0.1
    logits = TrainableDiscriminator(network)(real, fake)
    for found, alone in zip(logits, (network(real), network(fake)), strict=True):
        assert torch.equal(found, alone)
    mixed = network(torch.cat([real, fake])).chunk(2)
    assert not torch.allclose(logits[1], mixed[1], rtol=0.1)


# The networks.


def test_without_options_there_is_the_autoencoder_and_its_optimizer_only() -> None:
    training = begin()
    assert training.discriminator is training.disc_optimizer is training.perceptual is training.ema is None
    assert training.step == 0
    assert same_weights(training.vae, AutoencoderKL.from_preset("tiny", seed=0))
    assert training.averaged is training.vae
    with pytest.raises(ValueError, match=r"a run with a discriminator, got disc_weight=0.0"):
        _ = training.patchgan


def test_each_option_brings_its_network() -> None:
    training = begin(disc_weight=0.5, disc_channels=4, perceptual_weight=1.0, lpips="untrained", ema=0.99)
    assert isinstance(training.patchgan, NLayerDiscriminator)
    assert [layer.out_channels for layer in training.patchgan.main if isinstance(layer, nn.Conv2d)] == [4, 8, 16, 1]
    assert training.perceptual is not None and training.perceptual.source == "untrained VGG16"
    assert isinstance(training.averaged, AutoencoderKL)
    assert training.averaged is not training.vae and same_weights(training.averaged, training.vae)


def test_a_step_with_efficientnets_features_has_their_term_and_their_gradient() -> None:
    options: dict[str, Any] = {"perceptual": "efficientnet-lite0", "lr": 1e-3}
    training, without = begin(perceptual_weight=3.0, **options), begin(**options)
    scalars = whole_step(training, images())
    assert scalars["perceptual"] > 0
    assert scalars["nll"] == pytest.approx(scalars["pixel"] + 3 * scalars["perceptual"], rel=1e-5)
    assert "perceptual" not in whole_step(without, images())
    assert not torch.equal(training.vae.decoder.conv_out.weight, without.vae.decoder.conv_out.weight)


def test_the_seed_decides_the_weights_and_the_posterior_samples() -> None:
    def drawn(**options: Any) -> list[Tensor]:
        training = begin(disc_channels=4, **options)
        parameters = [*training.vae.parameters()]
        parameters += training.patchgan.parameters() if options["disc_weight"] else []
        return [torch.randn(3), parameters[0], parameters[-1]]

    first, again, other = (drawn(disc_weight=0.5, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    without = drawn(disc_weight=0.0, seed=0)
    assert all(map(torch.equal, first[:2], without[:2]))  # a discriminator changes neither


def test_the_optimizers_hold_what_is_trained_and_what_the_configuration_says() -> None:
    training = begin(disc_weight=0.5, disc_channels=4, lr=3e-4, betas=(0.5, 0.9), weight_decay=0.125)
    for optimizer, network in ((training.optimizer, training.vae), (training.disc_optimizer, training.patchgan)):
        assert optimizer is not None
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
        assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.5, 0.9), 0.125)


def test_decoder_only_freezes_the_encoder_and_its_quant_conv_and_nothing_else() -> None:
    training = begin(trained_part="decoder")
    asks = {name for name, parameter in training.vae.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in training.vae.named_parameters()} - asks
    assert {name.split(".")[0] for name in asks} == {"decoder", "post_quant_conv"}
    assert {name.split(".")[0] for name in frozen} == {"encoder", "quant_conv"}
    assert sum(len(group["params"]) for group in training.optimizer.param_groups) == len(asks)


def test_one_run_after_another_may_have_another_precision() -> None:
    for precision in ("bf16", "no", "bf16"):
        assert begin(mixed_precision=precision).accelerator.mixed_precision == precision


# The averaged weights.


def averages(decay: float, values: list[float]) -> list[float]:
    """The average after each of the updates with one weight that has these values."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    averaged = AveragedModel(model, multi_avg_fn=ema_update(decay))
    found = []
    for value in values:
        nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
        found.append(averaged.module.weight.item())
    return found


def test_the_average_is_that_worked_out_by_hand() -> None:
    """The first is the weight itself; then d = 2/11, 3/12, 4/13."""
    expected = [1.0, 20 / 11, 38 / 11, 944 / 143]
    assert averages(0.999, [1.0, 2.0, 4.0, 8.0]) == pytest.approx(expected, rel=1e-14)


def test_the_decay_never_exceeds_the_one_that_is_asked_for() -> None:
    assert averages(0.1, [1.0, 2.0, 4.0]) == pytest.approx([1.0, 1.9, 0.19 + 3.6], rel=1e-14)
    second = 20 / 11  # 2/11 is below 0.2, 3/12 is above it
    assert averages(0.2, [1.0, 2.0, 4.0]) == pytest.approx([1.0, second, 0.2 * second + 3.2], rel=1e-14)


def test_averaging_asks_for_no_gradient_and_leaves_the_weights_alone() -> None:
    model = nn.Linear(2, 2)
    averaged = AveragedModel(model, multi_avg_fn=ema_update(0.9))
    before = model.weight.clone()
    for _ in range(3):
        averaged.update_parameters(model)
    assert torch.equal(model.weight, before)
    assert averaged.module.weight.grad_fn is None


# The learning rates.


def rates(**options: Any) -> list[tuple[float, float]]:
    """Of the autoencoder and the discriminator in each step."""
    training = begin(disc_weight=0.5, disc_channels=2, **options)
    found = []
    for step in range(1, training.config.steps + 1):
        training.begin_step()
        assert training.step == step
        assert training.disc_optimizer is not None
        found.append((training.optimizer.param_groups[0]["lr"], training.disc_optimizer.param_groups[0]["lr"]))
    return found


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    found = [rate for rate, _ in rates(steps=100, warmup=0.1, lr=1.0)]
    assert [after - before for before, after in pairwise(found[:11])] == pytest.approx([1 / 11] * 10)
    assert found[0] == pytest.approx(1 / 11)
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.5)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert 0 < found[-1] < 1e-3


def test_a_constant_learning_rate_rises_and_stays() -> None:
    found = [rate for rate, _ in rates(steps=20, warmup=0.25, lr=2.0, schedule="constant")]
    assert found[:5] == pytest.approx([2 * n / 6 for n in range(1, 6)])
    assert found[5:] == [2.0] * 15


def test_without_a_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates(steps=1, warmup=0.0, lr=0.5)[0] == (0.5, 0.5)
    assert rates(steps=1, warmup=0.05, lr=0.5)[0] == (0.5, 0.5)


def test_the_discriminator_may_have_a_peak_of_its_own() -> None:
    found = rates(steps=10, warmup=0.2, lr=1e-3, disc_lr=4e-3)
    assert [theirs for _, theirs in found] == pytest.approx([4 * ours for ours, _ in found])


def test_scaled_learning_rates_count_the_crops_of_a_step() -> None:
    """CompVis: 4.5e-6 for each crop; 12 crops, accumulated twice, make 1.08e-4."""
    options: Any = {"steps": 1, "lr": 4.5e-6, "disc_lr": 1e-6, "batch_size": 12, "accumulate": 2}
    assert rates(**options, scale_lr=True)[0] == pytest.approx((1.08e-4, 2.4e-5))
    assert rates(**options)[0] == (4.5e-6, 1e-6)


# When the discriminator takes part.


def test_the_discriminator_is_trained_before_the_autoencoder_sees_it() -> None:
    config = TrainingConfig(disc_weight=0.5, disc_start=5, disc_warmup=2)
    assert [step for step in range(1, 9) if config.trains_discriminator(step)] == [4, 5, 6, 7, 8]
    assert [step for step in range(1, 9) if config.adversarial(step)] == [6, 7, 8]


@pytest.mark.parametrize(("start", "warmup"), [(0, 0), (0, 3), (3, 10)])
def test_a_warm_up_longer_than_the_start_begins_with_the_first_step(start: int, warmup: int) -> None:
    config = TrainingConfig(disc_weight=0.5, disc_start=start, disc_warmup=warmup)
    assert config.trains_discriminator(1)
    assert [config.adversarial(step) for step in (start, start + 1)] == [False, True]


def test_without_a_weight_there_is_no_discriminator_in_any_step() -> None:
    config = TrainingConfig(disc_weight=0.0)
    assert not any(config.trains_discriminator(step) or config.adversarial(step) for step in (1, 10**9))


# The parts of a step.


def test_a_step_is_cut_into_equal_parts_in_the_order_of_the_batch() -> None:
    training = begin(batch_size=4, accumulate=2)
    first, second = images(8), -images(8)
    parts = [(a.clone(), b.clone()) for a, b in training.micro_batches(training.model, first, second)]
    assert [len(a) for a, _ in parts] == [4, 4]
    assert torch.equal(torch.cat([a for a, _ in parts]), first)
    assert torch.equal(torch.cat([b for _, b in parts]), second)


def test_only_the_last_part_lets_the_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    training = begin(batch_size=2, accumulate=3)
    apart: list[nn.Module] = []

    @contextmanager
    def no_sync(network: nn.Module) -> Any:
        apart.append(network)
        yield
        apart.clear()

    monkeypatch.setattr(training.accelerator, "no_sync", no_sync)
    met = [not apart for _ in training.micro_batches(training.model, images(6))]
    assert met == [False, False, True]


def test_a_batch_that_does_not_divide_into_the_parts_is_an_error() -> None:
    config = TrainingConfig(size=16, accumulate=4, device="cpu")
    training = set_up(config, start_accelerator(config))
    with pytest.raises(ValueError, match=r"expected a batch that 4 divides \(accumulate\), got 5 images"):
        list(training.micro_batches(training.model, torch.zeros(5, 3, 16, 16)))
