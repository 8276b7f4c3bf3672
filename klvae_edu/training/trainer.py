"""The training loop, on Hugging Face Accelerate: one process or many, CPU or GPU, float32 or bfloat16."""

from __future__ import annotations

import importlib.util
import shlex
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from klvae_edu.environment import progress
from klvae_edu.training.agreement import agreed_start
from klvae_edu.training.checkpoint import load_checkpoint, read_description, read_listing
from klvae_edu.training.config import TrainingConfig, current_names
from klvae_edu.training.failures import failures_in_words
from klvae_edu.training.interrupt import any_process, stop_on_signal
from klvae_edu.training.latent_report import CROPS, LatentReport, fit_scaling, latent_report
from klvae_edu.training.loader import SHUFFLE_BLOCK, batches, images_of, reports
from klvae_edu.training.output import lasting_output
from klvae_edu.training.result import TrainingResult
from klvae_edu.training.run_folder import RunFolder
from klvae_edu.training.setup import Training, set_up, start_accelerator
from klvae_edu.training.steps import discriminator_step, generator_step
from klvae_edu.training.validation import Validation

if TYPE_CHECKING:
    from accelerate import Accelerator


@lasting_output()
def train(config: TrainingConfig) -> TrainingResult:
    """Train an autoencoder. Weights, log and pictures go into `config.out` (see `RunFolder`); a summary is printed.

    The same configuration with the same number of threads gives the same weights on the same machine, also when the run
    was interrupted and resumed. Ctrl-C, SIGTERM and SIGHUP end the run after the current step, with everything saved.

    Raises:
        ValueError: the data, the model, the checkpoint and the configuration do not fit together, or the processes of
            the run differ in one of them.
        FileExistsError: `config.out` is in use.
        FloatingPointError: a loss is not finite; the message names step, term and the last good checkpoint.
        OSError: a save failed, a worker was killed (`ChildProcessError`), or another process of the run has ended
            (`ConnectionError`). Earlier checkpoints are intact.
        MemoryError: an allocation failed, on the CPU or the GPU.

    Built in notebook 08.
    """
    _check_tensorboard(config)
    accelerator = start_accelerator(config)
    with (
        RunFolder(config.out, config.resume, writes=accelerator.is_main_process) as folder,
        failures_in_words(config, folder, accelerator.num_processes),
    ):
        # Data, checkpoint and networks: the same in all processes, or the run ends here.
        files, checkpoint, networks = agreed_start(config, accelerator, folder)

        # Networks, optimisers and validation crops; a resumed run takes its state from its checkpoint.
        training = set_up(config, accelerator, networks)
        training.files = files
        validation = Validation(config, training.vae)
        if checkpoint is not None:
            resume(training, checkpoint)
        _announce(training, resumed=checkpoint is not None)

        # Training images, in an order that depends on the seed and the step alone.
        per_step = config.batch_size * config.accumulate * accelerator.num_processes
        passes = -(-config.steps * per_step // SHUFFLE_BLOCK)
        data = images_of(
            config, None if config.streaming else passes * SHUFFLE_BLOCK, channels=training.vae.config.in_channels
        )

        # A finished run that is resumed has no step left: only its measurements are repeated.
        first, seconds_of_steps = training.step, 0.0
        latents = measure_latents(training) if first == config.steps else None
        measured = validation.measure(training.averaged) if first == config.steps else {}

        # The folder, with nothing in it from beyond the checkpoint.
        folder.start(config, training.step)
        if checkpoint is not None:
            folder.publish(training)
        if config.tensorboard:
            accelerator.init_trackers(config.out.name)

        with (
            stop_on_signal() as stop,
            closing(batches(training, data)) as all_images,
            _progress_bar(config, accelerator, first) as bar,
        ):
            started = time.perf_counter()
            for images in islice(all_images, config.steps - first):  # (batch_size · accumulate, 3, size, size)
                training.begin_step()
                step = training.step
                try:
                    # Autoencoder: forward, losses, backward, step. In a turn of the discriminator it only reconstructs.
                    if config.trains_autoencoder(step):
                        scalars, reconstructions = generator_step(training, images)
                    else:
                        scalars, reconstructions = {}, reconstruct(training, images)

                    # Discriminator: forward, loss, backward, step, on reconstructions of before the autoencoder's step.
                    if config.trains_discriminator(step):
                        scalars |= discriminator_step(training, images, reconstructions)
                except FloatingPointError as error:
                    folder.log({"step": step, "error": str(error)})
                    hint = f"A smaller --lr may help; see klvae diagnose {shlex.quote(str(config.out))}"
                    message = f"step {step}: {error}; {folder.last_checkpoint()}. {hint}"
                    raise FloatingPointError(message) from error
                seconds = time.perf_counter() - started
                seconds_of_steps += seconds

                # Validate, with a picture: every `sample_every` steps and after the last one.
                record: dict[str, Any] = {"step": step, **scalars, "images_per_second": per_step / seconds}
                last = step == config.steps or any_process(accelerator, stop.is_set())
                if last or step % config.sample_every == 0:
                    measured = validation.measure(training.averaged)
                    record["held_out_psnr"] = measured["model"]
                    folder.save_picture(validation.picture(training.averaged), step)

                # The latents of the finished model, for its scaling factor.
                if step == config.steps:
                    latents = measure_latents(training)
                    record |= latents.to_dict()

                # Log: one line of log.jsonl, TensorBoard on request, and the progress bar.
                folder.log(record)
                accelerator.log(record, step)
                bar.set_postfix(_shown(scalars), refresh=False)
                bar.update()

                # Save, after the log: a resumed run cuts the log back to its checkpoint.
                if last or step % config.save_every == 0:
                    folder.save(training)
                if last:
                    break
                started = time.perf_counter()
        for tracker in accelerator.trackers:
            tracker.finish()

        # Files that could not be read: all of them into the folder, the first ones into the summary.
        of_validation = [validation.unreadable] if validation.unreadable else []
        folder.save_report("\n".join(reports(training, data, limit=None) + of_validation))
        result = TrainingResult(
            training.averaged,
            config,
            training.step,
            measured,
            (training.step - first) * per_step / seconds_of_steps if seconds_of_steps else 0.0,
            reports(training, data) + of_validation,
            accelerator.num_processes,
            None if training.perceptual is None else training.perceptual.source,
            latents,
        )
    accelerator.print(result.summary())
    return result


@torch.no_grad()
def reconstruct(training: Training, images: Tensor) -> Tensor:
    """Reconstruct a batch (B, C, H, W) from posterior samples, in micro-batches, without a graph: the same shape."""
    return torch.cat([training.model(part)[0] for part in images.chunk(training.config.accumulate)])


def measure_latents(training: Training) -> LatentReport:
    """Measure the averaged model's latents on training crops. Where the encoder was trained, its scaling follows."""
    config = training.config
    # A generator of its own: without one the loader would draw from the training's random numbers.
    images = images_of(config, CROPS, channels=training.vae.config.in_channels)
    crops = DataLoader(images, config.batch_size, generator=torch.Generator())
    report = latent_report(training.averaged, crops)
    if config.trained_part == "all":
        fit_scaling(training.averaged, report)
    return report


def resume(training: Training, checkpoint: Path) -> None:
    """Load the checkpoint, and print how the configuration and the files of the data differ from those that wrote it.

    Raises:
        ValueError: the checkpoint does not fit the configuration, or is damaged.
    """
    config = training.config
    description = read_description(checkpoint)
    was = TrainingConfig().to_dict() | current_names(description["config"])  # later fields: defaults
    now = config.to_dict()
    load_checkpoint(training, checkpoint)
    if training.step > config.steps or (training.step == config.steps and config.resume != "auto"):
        raise ValueError(f"steps: {checkpoint} is of step {training.step}: expected more steps, got {config.steps}")
    same = {"out", "resume", *(name for name in now if was.get(name) == now[name])}
    changes = [f"{name} {was.get(name)} -> {now[name]}" for name in now if name not in same]
    weights = description.get("perceptual_weights", training.perceptual_weights)  # earlier versions did not save them
    if weights != training.perceptual_weights:
        changes.append(f"weights of the perceptual loss: {weights} -> {training.perceptual_weights}")
    files = read_listing(checkpoint)
    moved = files.changes_to(training.files) if files and training.files and "data" in same else ""
    if moved or {"data", "seed", "streaming"} - same:
        training.stream = None  # a position in another stream
    if training.stream and len(training.stream.places) != max(1, config.workers):
        known = f"expected {was['workers']}, one for each stream position in the checkpoint"
        raise ValueError(f"workers: {known}, got {config.workers}")
    line = f"Resumed from {checkpoint}{''.join(f'; {change}' for change in changes)}."
    training.accelerator.print(line, flush=True)  # into a file at once: the run may be killed
    if moved:
        training.accelerator.print(
            f"The data are not those of the checkpoint (by names, sizes and times of files): {moved}. The run goes on "
            "with other images than without this change.",
            flush=True,
        )


def _announce(training: Training, resumed: bool) -> None:
    """Print what a user may not expect of this configuration."""
    config = training.config
    if config.resume and not resumed:
        training.accelerator.print(f"There is no checkpoint in {config.out}: the run begins at step 1.", flush=True)
    if config.disc_weight and config.disc_start >= config.steps:
        training.accelerator.print(
            f"disc_start={config.disc_start} is not before the last step, {config.steps}: the autoencoder is never "
            "trained on the discriminator.",
            flush=True,
        )


def _shown(scalars: Mapping[str, float]) -> dict[str, str]:
    """Format the scalars beside the progress bar."""
    forms = {"loss": "{:.4f}", "psnr": "{:.1f} dB", "disc_loss": "{:.3f}"}
    return {name: form.format(scalars[name]) for name, form in forms.items() if name in scalars}


def _progress_bar(config: TrainingConfig, accelerator: Accelerator, done: int) -> Any:
    silent: dict[str, Any] = {} if accelerator.is_main_process else {"disable": True}
    return progress(total=config.steps, desc="training", unit="step", initial=done, **silent)


def _check_tensorboard(config: TrainingConfig) -> None:
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard: it is not installed: pip install 'klvae-edu[tensorboard]'")
