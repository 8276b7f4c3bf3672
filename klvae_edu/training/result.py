"""`TrainingResult`: the outcome of a run, and its summary in words."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.latent_report import LatentReport


def resume_command(config: TrainingConfig, processes: int) -> str:
    """Format the command that resumes a run of `processes` processes.

    On several machines, N in it stands for the number of the machine, and HOST for the first one.
    """
    command = config.command(resume="auto")
    if processes == 1:
        return command
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))  # torchrun sets it
    others = f"--nnodes {processes // here} --node-rank N --master-addr HOST " if here < processes else ""
    return command.replace("klvae train", f"torchrun {others}--nproc-per-node {here} -m klvae_edu train", 1)


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training run."""

    vae: AutoencoderKL
    config: TrainingConfig
    step: int  # the last finished step
    held_out: dict[str, float]  # mean PSNR in dB on the validation crops, of "model", "patch-PCA" and "bicubic"
    images_per_second: float  # of the training steps alone
    unreadable: list[str]  # reports on files of the data that could not be read
    processes: int = 1
    perceptual: str | None = None  # source of the weights of the perceptual loss in words; None: there was none
    latents: LatentReport | None = None  # of the finished model; None: the run was interrupted

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C, SIGTERM or SIGHUP ended the run before the configuration's last step."""
        return self.step < self.config.steps

    def summary(self) -> str:
        """Describe the result: the model beside its baselines, the highest of them, and what to do next."""
        config, factor = self.config, self.vae.downsample_factor
        about = {
            "patch-PCA": f"{self.vae.config.latent_channels} numbers per {factor}x{factor} patch, as in the latent",
            "bicubic": f"from the image reduced by {factor}: 3 numbers per {factor}x{factor} patch",
        }
        kind = "LPIPS with " if config.perceptual == "lpips" else ""
        higher = [name for name in about if self.held_out[name] > self.held_out["model"]]
        lines = [
            f"Step {self.step} of {config.steps}, {self.images_per_second:.0f} images/s.",
            f"Mean PSNR on {config.held_out} validation crops of {config.size}x{config.size} pixels:",
            *(f"  {value:6.2f} dB  {name:9}  {about.get(name, '')}".rstrip() for name, value in self.held_out.items()),
            f"Higher than the model: {' and '.join(higher)}." if higher else "The model is the highest.",
            *([] if self.perceptual is None else [f"The perceptual loss was {kind}{self.perceptual}."]),
            *([] if self.latents is None else self.latents.summary()),
            *self.unreadable,
        ]
        weights = str(config.out / "model")
        lines += [f"Weights in {weights}. To try them: klvae reconstruct PHOTO --model {shlex.quote(weights)}"]
        lines += [f"What the log shows: klvae diagnose {shlex.quote(str(config.out))}"]
        if self.interrupted:
            lines += [f"Interrupted. To resume: {resume_command(config, self.processes)}"]
        return "\n".join(lines)
