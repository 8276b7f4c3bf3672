"""The command line `klvae`: it parses the options, runs a command of `klvae_edu.commands` and reports errors.

Exit codes: 0 success, 1 some image or check failed, 2 wrong use or an error, 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from klvae_edu.commands.convert import ConvertOptions, run_convert
from klvae_edu.commands.doctor import DoctorOptions, run_doctor
from klvae_edu.commands.encode import EncodeOptions, run_encode
from klvae_edu.commands.evaluate import EvaluateOptions, run_evaluate
from klvae_edu.commands.grade import GradeOptions, run_grade
from klvae_edu.commands.reconstruct import ReconstructOptions, run_reconstruct
from klvae_edu.commands.train import run_train, train_config
from klvae_edu.environment import restart_with_process_settings
from klvae_edu.training.config import TrainingConfig

DESCRIPTION = "klvae_edu: the autoencoder of Stable Diffusion, from a course. Each command has its own --help."


def run() -> None:
    """The entry point of the console script."""
    warnings.formatwarning = lambda message, *where, **more: f"klvae: {message}\n"
    if sys.argv[1:2] and sys.argv[1] in COMPUTE:
        restart_with_process_settings()
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code. An error that a user can mend is one line on stderr, no traceback."""
    import tyro

    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["train"]:
            return run_train(train_config(argv[1:]))
        kinds: dict[str, Callable[..., object]] = {name: kind for name, (kind, _) in COMMANDS.items()}
        options = tyro.extras.subcommand_cli_from_dict(kinds, args=argv, prog="klvae", description=DESCRIPTION)
        return dict(COMMANDS.values())[type(options)](options)
    except KeyboardInterrupt:
        print("klvae: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"klvae: {error}", file=sys.stderr)
        return 2


# For each command the options, which become its flags and its help, and the function that runs it.
COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (TrainingConfig, run_train),
    "reconstruct": (ReconstructOptions, run_reconstruct),
    "encode": (EncodeOptions, run_encode),
    "evaluate": (EvaluateOptions, run_evaluate),
    "convert": (ConvertOptions, run_convert),
    "grade": (GradeOptions, run_grade),
    "doctor": (DoctorOptions, run_doctor),
}
COMPUTE = ("train", "reconstruct", "encode", "evaluate")
