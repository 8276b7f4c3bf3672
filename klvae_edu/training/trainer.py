"""The training loop, on Hugging Face Accelerate: one process or many, CPU or GPU, float32 or bfloat16."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.environment import progress
from klvae_edu.training.checkpoint import load_checkpoint, read_description
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.loader import PASS, batches, images_of, reports
from klvae_edu.training.run_folder import RunFolder
from klvae_edu.training.setup import Training, set_up, start_accelerator
from klvae_edu.training.steps import discriminator_step, generator_step
from klvae_edu.training.validation import HeldOut

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
    processes: int = 1
    lpips: str | None = None  # where VGG16's weights came from, in words; None: no perceptual loss

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
            *([] if self.lpips is None else [f"The perceptual loss was LPIPS with {self.lpips}."]),
            *self.unreadable,
        ]
        weights = str(config.out / "model")
        lines += [f"Weights in {weights}. To see what they do: klvae reconstruct PHOTO --model {shlex.quote(weights)}"]
        if self.interrupted:
            command = config.command(resume="auto")
            if self.processes > 1:
                launcher = f"torchrun --nproc-per-node {self.processes} -m klvae_edu train"
                command = command.replace("klvae train", launcher, 1)
            lines += [f"Interrupted. To go on: {command}"]
        return "\n".join(lines)


def train(config: TrainingConfig) -> TrainingResult:
    """Train an autoencoder; weights, log and pictures go into `config.out` (see `RunFolder`), the summary is printed.

    The same configuration with the same number of threads gives the same weights on the same machine, also when the run
    was cut off in between and resumed. Ctrl-C and SIGTERM end the run after the step under way, with all saved.

    Raises:
        ValueError: the data, the model, the checkpoint and the configuration do not fit together.
        FileExistsError: `config.out` is in use.
        FloatingPointError: a loss is no longer finite; the message names step, term and the last good checkpoint.
        OSError: a save failed; what was saved before is whole.
    """
    _check_tensorboard(config)
    accelerator = start_accelerator(config)
    with RunFolder(config.out, config.resume, writes=accelerator.is_main_process) as folder:
        result = _train_in(folder, config, accelerator)
    accelerator.print(result.summary())
    return result


def _train_in(folder: RunFolder, config: TrainingConfig, accelerator: Accelerator) -> TrainingResult:
    """The run between the lock on its folder and its summary."""
    training = set_up(config, accelerator)
    held_out = HeldOut(config, training.vae)
    checkpoint = folder.to_resume()
    if checkpoint is not None:
        _resume(training, checkpoint)
    elif config.resume:
        accelerator.print(f"There is no checkpoint in {config.out}: the run begins at step 1.", flush=True)
    if config.disc_weight and config.disc_start >= config.steps:
        accelerator.print(
            f"The discriminator would begin after step {config.disc_start}: it will have no say.", flush=True
        )
    images_a_step = config.batch_size * config.accumulate * accelerator.num_processes
    passes = -(-config.steps * images_a_step // PASS)  # an index lies in the last of them, at most
    data = images_of(config, None if config.streaming else passes * PASS)
    folder.start(config, training.step)
    if checkpoint is not None:
        folder.publish(training)
    if config.tensorboard:
        accelerator.init_trackers(config.out.name)
    measured, speed = _make_steps(training, batches(training, data), folder, held_out)
    folder.save_report("\n".join([*reports(training, data, limit=None), *filter(None, [held_out.unreadable])]))
    unreadable = [*reports(training, data), *filter(None, [held_out.unreadable])]
    lpips = None if training.perceptual is None else training.perceptual.source
    return TrainingResult(
        training.averaged, config, training.step, measured, speed, unreadable, accelerator.num_processes, lpips
    )


def _resume(training: Training, checkpoint: Path) -> None:
    """Load the checkpoint, and say what is not as it was when it was written."""
    config = training.config
    was, now = read_description(checkpoint)["config"], config.to_dict()
    load_checkpoint(training, checkpoint)
    if training.step > config.steps or (training.step == config.steps and config.resume != "auto"):
        raise ValueError(f"steps: {checkpoint} has made {training.step} already, got {config.steps}")
    same = {"out", "resume", *(name for name in now if was.get(name) == now[name])}
    changes = [f"{name} {was.get(name)} -> {now[name]}" for name in now if name not in same]
    if {"data", "seed", "streaming"} - same:
        training.stream = None  # a place in another stream
    if training.stream and len(training.stream.places) != max(1, config.workers):
        known = f"expected {was['workers']}, whose places in the stream the checkpoint knows"
        raise ValueError(f"workers: {known}, got {config.workers}")
    line = f"Resumed from {checkpoint}{''.join(f'; {change}' for change in changes)}."
    training.accelerator.print(line, flush=True)  # into a file at once: the run may be killed


def _make_steps(
    training: Training, images_of_steps: Iterable[Tensor], folder: RunFolder, held_out: HeldOut
) -> tuple[dict[str, float], float]:
    """All steps that are left, or those until the run is interrupted: held-out PSNR by name, and images per second."""
    config, accelerator, first = training.config, training.accelerator, training.step
    images_a_step, seconds_of_steps = config.batch_size * config.accumulate * accelerator.num_processes, 0.0
    measured: dict[str, float] = {} if first < config.steps else held_out.measure(training.averaged)
    with _stop_when_asked() as stop, _progress_bar(config, accelerator, first) as bar:
        started = time.perf_counter()
        for images in islice(images_of_steps, config.steps - first):
            try:
                scalars = training_step(training, images)
            except FloatingPointError as error:
                message = f"step {training.step}: {error}; {folder.kept()}. A smaller --lr may help."
                raise FloatingPointError(message) from error
            seconds = time.perf_counter() - started
            seconds_of_steps += seconds
            step = training.step
            record = {"step": step, **scalars, "images_per_second": images_a_step / seconds}
            last = step == config.steps or _any_process(accelerator, stop.is_set())
            if last or step % config.sample_every == 0:
                measured = held_out.measure(training.averaged)
                record["held_out_psnr"] = measured["model"]
                folder.save_picture(held_out.picture(training.averaged), step)
            folder.log(record)
            accelerator.log(record, step)
            if last or step % config.save_every == 0:
                folder.save(training)  # after the log, which is cut back to the checkpoint when the run is resumed
            bar.set_postfix(_shown(scalars), refresh=False)
            bar.update()
            if last:
                break
            started = time.perf_counter()
    for tracker in accelerator.trackers:
        tracker.finish()
    return measured, (training.step - first) * images_a_step / seconds_of_steps if seconds_of_steps else 0.0


def training_step(training: Training, images: Tensor) -> dict[str, float]:
    """Begin the next step and make it: of the autoencoder, the discriminator, or both, as the configuration says.

    Where they take turns, the discriminator has the first.
    """
    config = training.config
    training.begin_step()
    discriminator_trains = config.trains_discriminator(training.step)
    since = training.step - max(0, config.disc_start - config.disc_warmup)
    if discriminator_trains and config.alternate and since % 2:
        with torch.no_grad():
            parts = [training.model(part)[0] for part in images.chunk(config.accumulate)]
        return discriminator_step(training, images, torch.cat(parts))
    scalars, reconstructions = generator_step(training, images)
    if discriminator_trains and not config.alternate:
        scalars |= discriminator_step(training, images, reconstructions)
    return scalars


def _any_process(accelerator: Accelerator, value: bool) -> bool:
    """Whether `value` holds in any process, asked by all of them at the same place."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum").item() > 0


def _shown(scalars: Mapping[str, float]) -> dict[str, str]:
    """What stands beside the progress bar."""
    forms = {"loss": "{:.4f}", "psnr": "{:.1f} dB", "disc_loss": "{:.3f}"}
    return {name: form.format(scalars[name]) for name, form in forms.items() if name in scalars}


def _progress_bar(config: TrainingConfig, accelerator: Accelerator, made: int) -> Any:
    silent: dict[str, Any] = {} if accelerator.is_main_process else {"disable": True}
    return progress(total=config.steps, desc="training", unit="step", initial=made, **silent)


def _check_tensorboard(config: TrainingConfig) -> None:
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard: it is not installed: pip install 'klvae-edu[tensorboard]'")


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
