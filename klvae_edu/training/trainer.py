"""The training loop, on Hugging Face Accelerate: one process or many, CPU or GPU, float32 or bfloat16."""

from __future__ import annotations

import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.data import image_dataset
from klvae_edu.environment import pick_device, progress
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.held_out import HeldOut
from klvae_edu.training.state import RunFolder, unused
from klvae_edu.training.steps import TrainableAutoencoder, generator_step

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to."""

    vae: AutoencoderKL
    config: TrainingConfig
    step: int  # the last step that was made
    held_out: dict[str, float]  # mean PSNR in dB on held-out crops, of "model", "patch-PCA" and "bicubic"
    images_per_second: float  # of the training steps alone
    unreadable: list[str]  # which files of the data could not be read, in words

    @property
    def interrupted(self) -> bool:
        """Ctrl-C or SIGTERM came before the configuration's last step."""
        return self.step < self.config.steps

    def summary(self) -> str:
        """The result in words: the model beside its baselines, which of them is higher, and how to go on."""
        config, factor = self.config, self.vae.downsample_factor
        about = {
            "patch-PCA": f"{self.vae.config.latent_channels} numbers per {factor}x{factor} patch, as in the latent",
            "bicubic": f"from the image reduced by {factor}: 3 numbers per {factor}x{factor} patch",
        }
        higher = [name for name in about if self.held_out[name] > self.held_out["model"]]
        lines = [
            f"Step {self.step} of {config.steps}, {self.images_per_second:.0f} images/s.",
            f"Mean PSNR on {config.held_out} held-out crops of {config.size}x{config.size} pixels:",
            *(f"  {value:6.2f} dB  {name:9}  {about.get(name, '')}".rstrip() for name, value in self.held_out.items()),
            f"Higher than the model: {' and '.join(higher)}." if higher else "The model is the highest.",
            *self.unreadable,
        ]
        weights = str(config.out / "model")
        lines += [f"Weights in {weights}. To see what they do: klvae reconstruct PHOTO --model {shlex.quote(weights)}"]
        if self.interrupted:
            go_on = config.command(init=weights, steps=config.steps - self.step, out=unused(config.out))
            lines += [f"Interrupted. To go on from these weights: {go_on}"]
        return "\n".join(lines)


def train(config: TrainingConfig) -> TrainingResult:
    """Train an autoencoder; weights, log and pictures go into `config.out` (see `RunFolder`), the summary is printed.

    The same configuration with the same number of threads gives the same weights on the same machine. Ctrl-C and
    SIGTERM end the run after the step under way, with its weights saved.

    Raises:
        ValueError: the data, the model and the configuration do not fit together.
        FileExistsError: `config.out` is in use.
        FloatingPointError: the loss is no longer finite; the message names the step and the last good save.
        OSError: a save failed; the one before it is whole.
    """
    accelerator = start_accelerator(config)
    folder = RunFolder(config.out, writes=accelerator.is_main_process)
    vae = _model(config)
    held_out = HeldOut(config, vae)
    # One pass over the data is the whole run. A stream is endless: its end, in each worker, would cost a batch.
    length = None if config.streaming else config.steps * config.batch_size * accelerator.num_processes
    data = image_dataset(config.data, config.size, seed=config.seed, length=length, streaming=config.streaming)
    folder.start(config)
    model, optimizer, loader = accelerator.prepare(
        TrainableAutoencoder(vae),
        torch.optim.AdamW(vae.parameters(), config.lr, config.betas),
        training_loader(config, data),
    )
    # The schedule is not handed to Accelerate, which would advance it once for every process.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda done: lr_factor(done, config))
    torch.manual_seed(config.seed + accelerator.process_index)  # for the posterior samples

    images_a_step, training_seconds = config.batch_size * accelerator.num_processes, 0.0
    measured: dict[str, float] = {}
    with _stop_when_asked() as stop, _progress_bar(config, accelerator) as bar:
        started = time.perf_counter()
        for step, images in enumerate(_endless(loader), start=1):
            try:
                scalars = generator_step(model, optimizer, scheduler, accelerator, images, config)
            except FloatingPointError as error:
                raise FloatingPointError(f"step {step}: {error}; {folder.kept()}. A smaller --lr may help.") from error
            seconds = time.perf_counter() - started
            training_seconds += seconds
            record = {"step": step, **scalars, "images_per_second": images_a_step / seconds}
            last = step == config.steps or stop.is_set()
            if last or step % config.save_every == 0:
                folder.save(vae, step)
            if last or step % config.sample_every == 0:
                measured = held_out.measure(vae)
                record["held_out_psnr"] = measured["model"]
                folder.save_picture(held_out.picture(vae), step)
            folder.log(record)
            bar.set_postfix(loss=f"{scalars['loss']:.4f}", psnr=f"{scalars['psnr']:.1f} dB", refresh=False)
            bar.update()
            if last:
                break
            started = time.perf_counter()
    unreadable = [report for report in (data.report(), held_out.unreadable) if report]
    result = TrainingResult(vae, config, step, measured, step * images_a_step / training_seconds, unreadable)
    accelerator.print(result.summary())
    return result


def lr_factor(done: int, config: TrainingConfig) -> float:
    """The learning rate over its peak after `done` steps: a straight rise, then half a cosine down to 0."""
    rise = round(config.warmup * config.steps)
    if done < rise:
        return (done + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (done - rise) / (config.steps - rise)))


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Accelerate's engine for this run's device and precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate keeps its settings for the life of the process; the next run in the same notebook may need others.
    # The group of processes, where there is one, stays.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(cpu=pick_device(config.device).type == "cpu", mixed_precision=config.mixed_precision)


def _model(config: TrainingConfig) -> AutoencoderKL:
    """The model to begin with, in float32 whatever the file has: in 16 bits small updates would be rounded away."""
    if config.init is None:
        vae = AutoencoderKL.from_preset(config.preset, seed=config.seed)
    else:
        vae = AutoencoderKL.from_pretrained(config.init, dtype=torch.float32)
    factor = vae.downsample_factor
    if config.size % factor:
        raise ValueError(f"size: expected a multiple of {factor}, the model's downsample factor, got {config.size}")
    return vae


def training_loader(config: TrainingConfig, data: Dataset[Tensor]) -> DataLoader[Tensor]:
    """Batches (batch_size, 3, size, size), in an order that follows from the seed."""
    return DataLoader(
        data,
        batch_size=config.batch_size,
        shuffle=not isinstance(data, IterableDataset),
        num_workers=config.workers,
        worker_init_fn=_ignore_signals,
        drop_last=True,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _ignore_signals(worker: int) -> None:
    """Both are sent to the workers too; they have to live until the trainer has made its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


def _progress_bar(config: TrainingConfig, accelerator: Accelerator) -> Any:
    silent: dict[str, Any] = {} if accelerator.is_main_process else {"disable": True}
    return progress(total=config.steps, desc="training", unit="step", **silent)


@contextmanager
def _stop_when_asked() -> Iterator[threading.Event]:
    """Within it, Ctrl-C (SIGINT) and SIGTERM only set the event; a second Ctrl-C interrupts at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print: a handler may run in the middle of one.
        os.write(2, b"\nStopping after this step. Ctrl-C once more stops at once, without saving.\n")

    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield asked
        return
    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
