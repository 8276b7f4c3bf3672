"""One training step: what it changes, what it returns, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klvae_edu import AutoencoderKL, DiagonalGaussianDistribution
from klvae_edu.losses import vae_loss
from klvae_edu.metrics import psnr
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.steps import TrainableAutoencoder, generator_step
from klvae_edu.training.trainer import lr_factor, start_accelerator

CONFIG = TrainingConfig(size=16, batch_size=2, steps=100, warmup=0.0, device="cpu")


class Workbench:
    """All that a step needs, ready for use."""

    def __init__(self, config: TrainingConfig = CONFIG) -> None:
        self.config = config
        self.accelerator = start_accelerator(config)
        self.vae = AutoencoderKL.from_preset("tiny", seed=0)
        optimizer = torch.optim.AdamW(self.vae.parameters(), config.lr, config.betas)
        self.model, self.optimizer = self.accelerator.prepare(TrainableAutoencoder(self.vae), optimizer)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: lr_factor(done, config))
        self.images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def step(self, images: Tensor | None = None) -> dict[str, float]:
        images = self.images if images is None else images
        torch.manual_seed(0)
        return generator_step(self.model, self.optimizer, self.scheduler, self.accelerator, images, self.config)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.vae.state_dict().items()}


def test_the_forward_gives_the_reconstruction_of_a_posterior_sample_and_the_posterior() -> None:
    vae = AutoencoderKL.from_preset("tiny", seed=0)
    images = torch.zeros(2, 3, 16, 16)
    torch.manual_seed(5)
    reconstruction, posterior = TrainableAutoencoder(vae)(images)
    torch.manual_seed(5)
    expected = vae.decode(vae.encode(images).latent_dist.sample()).sample
    assert isinstance(posterior, DiagonalGaussianDistribution)
    torch.testing.assert_close(reconstruction, expected)
    torch.testing.assert_close(posterior.mean, vae.encode(images).latent_dist.mean)


def test_a_step_returns_named_scalars_of_the_images_before_the_update() -> None:
    bench = Workbench()
    torch.manual_seed(0)
    with torch.no_grad():
        reconstruction, posterior = TrainableAutoencoder(bench.vae)(bench.images)
    terms = vae_loss(
        reconstruction, bench.images, posterior, pixel=CONFIG.pixel, kl_weight=CONFIG.kl_weight, reduction="mean"
    )
    scalars = bench.step()
    assert all(type(value) is float for value in scalars.values())
    assert list(scalars) == ["loss", "pixel", "kl", "grad_norm", "lr", "psnr"]
    for name, term in terms.items():
        assert scalars[name] == pytest.approx(term.item(), rel=1e-5)
    assert scalars["psnr"] == pytest.approx(psnr(reconstruction, bench.images).mean().item(), rel=1e-5)
    assert scalars["lr"] == CONFIG.lr


def test_a_step_moves_every_weight() -> None:
    bench = Workbench()
    before = bench.weights()
    bench.step()
    still = [name for name, tensor in bench.weights().items() if torch.equal(tensor, before[name])]
    assert still == []


def test_steps_on_one_batch_lower_its_loss() -> None:
    bench = Workbench()
    losses = [bench.step()["loss"] for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_gradients_left_over_from_elsewhere_do_not_count() -> None:
    clean, littered = Workbench(), Workbench()
    for parameter in littered.vae.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    clean.step()
    littered.step()
    for name, tensor in clean.weights().items():
        assert torch.equal(tensor, littered.weights()[name]), name


def test_the_gradient_is_clipped_and_its_length_before_that_is_told() -> None:
    free = Workbench(TrainingConfig(size=16, grad_clip=1e9, device="cpu"))
    whole = free.step()["grad_norm"]
    clipped = Workbench(TrainingConfig(size=16, grad_clip=whole / 10, device="cpu"))
    assert clipped.step()["grad_norm"] == pytest.approx(whole, rel=1e-5)
    length = torch.stack([parameter.grad.norm() for parameter in clipped.vae.parameters()]).norm().item()
    assert length == pytest.approx(whole / 10, rel=1e-3)


def test_a_step_calls_only_the_forward_of_the_module_it_is_given() -> None:
    """Otherwise the gradients of several processes would never meet."""
    bench = Workbench()

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args: Any) -> Any:
            self.calls += 1
            with pytest.MonkeyPatch.context() as patch:
                for name, method in originals.items():
                    patch.setattr(bench.vae, name, method)
                return self.inner(*args)

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("called behind the wrapper's back")

    originals = {"encode": bench.vae.encode, "decode": bench.vae.decode}
    bench.vae.encode = bench.vae.decode = forbidden  # type: ignore[method-assign, assignment]
    bench.model = Wrapper(bench.model)
    bench.step()
    assert bench.model.calls == 1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_weights_and_kl_stay_in_float32(precision: Any) -> None:
    bench = Workbench(TrainingConfig(size=16, mixed_precision=precision, device="cpu"))
    reconstruction, posterior = bench.model(bench.images)
    assert reconstruction.dtype == posterior.mean.dtype == torch.float32
    bench.step()
    assert {tensor.dtype for tensor in bench.weights().values()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in bench.vae.parameters()} == {torch.float32}


def test_bfloat16_changes_the_result_by_rounding_only() -> None:
    exact = Workbench(TrainingConfig(size=16, device="cpu")).step()
    rounded = Workbench(TrainingConfig(size=16, mixed_precision="bf16", device="cpu")).step()
    assert rounded["loss"] != exact["loss"]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(poison: float) -> None:
    bench = Workbench()
    bench.step()
    before = bench.weights()
    images = bench.images.clone()
    images[0, 0, 0, 0] = poison
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf)"):
        bench.step(images)
    for name, tensor in bench.weights().items():
        assert torch.equal(tensor, before[name]), name


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    config = TrainingConfig(steps=100, warmup=0.1)
    factors = [lr_factor(done, config) for done in range(101)]
    rises = [after - before for before, after in pairwise(factors[:11])]
    assert rises == pytest.approx([1 / 11] * 10)
    assert factors[0] > 0 and factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_without_a_warm_up_the_first_step_is_at_the_peak() -> None:
    assert lr_factor(0, TrainingConfig(warmup=0.0)) == 1.0


def test_one_step_alone_has_a_learning_rate() -> None:
    assert lr_factor(0, TrainingConfig(steps=1)) == 1.0
