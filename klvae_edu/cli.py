"""Command line `klvae`: parse the options, run a command of `klvae_edu.commands`, report errors.

Exit codes: 0 success, 1 some image or check failed, or a failure was found, 2 wrong usage or an error, 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import tyro

from klvae_edu.commands.convert import ConvertOptions, run_convert
from klvae_edu.commands.diagnose import DiagnoseOptions, run_diagnose
from klvae_edu.commands.doctor import DoctorOptions, run_doctor
from klvae_edu.commands.encode import EncodeOptions, run_encode
from klvae_edu.commands.evaluate import EvaluateOptions, run_evaluate
from klvae_edu.commands.grade import GradeOptions, run_grade
from klvae_edu.commands.inspect import InspectOptions, run_inspect
from klvae_edu.commands.reconstruct import ReconstructOptions, run_reconstruct
from klvae_edu.commands.train import run_train, train_stages
from klvae_edu.environment import restart_with_process_settings
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.output import make_output_last

DESCRIPTION = "klvae_edu: the autoencoder of Stable Diffusion, from a course. Each command has its own --help."


def run() -> None:
    """Run the console script: print warnings in one line, set up the process, exit with the code of `main`."""
    make_output_last()  # until the process has ended: Python flushes its streams last
    warnings.formatwarning = lambda message, *where, **more: f"klvae: {message}\n"
    if sys.argv[1:2] and sys.argv[1] in COMPUTING_COMMANDS:
        restart_with_process_settings()
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. An error that the user can fix is one line on stderr, no traceback."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["train"]:
            return run_train(train_stages(argv[1:]))
        types: dict[str, Callable[..., object]] = {name: options for name, (options, _) in COMMANDS.items()}
        options = tyro.extras.subcommand_cli_from_dict(types, args=argv, prog="klvae", description=DESCRIPTION)
        return dict(COMMANDS.values())[type(options)](options)
    except KeyboardInterrupt:
        print("klvae: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"klvae: {error}", file=sys.stderr)
        return 2


# Command -> (dataclass of its options, which become flags and help; function that runs it).
COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (TrainingConfig, lambda config: run_train([config])),
    "diagnose": (DiagnoseOptions, run_diagnose),
    "reconstruct": (ReconstructOptions, run_reconstruct),
    "encode": (EncodeOptions, run_encode),
    "evaluate": (EvaluateOptions, run_evaluate),
    "inspect": (InspectOptions, run_inspect),
    "convert": (ConvertOptions, run_convert),
    "grade": (GradeOptions, run_grade),
    "doctor": (DoctorOptions, run_doctor),
}
COMPUTING_COMMANDS = ("train", "reconstruct", "encode", "evaluate", "inspect")
