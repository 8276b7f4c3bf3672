"""Name what went wrong in a training run: `klvae diagnose`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from klvae_edu.commands.arguments import HomePath


@dataclass(frozen=True)
class DiagnoseOptions:
    """Read the log of a training run, and name the failures that it shows, each with its evidence and what to try.

    The run may still be going. Exit code 0: nothing was found; 1: something was.
    """

    run: Positional[HomePath]  # folder of the run, with log.jsonl and training.json


def run_diagnose(options: DiagnoseOptions) -> int:
    """Run `klvae diagnose`, and return the exit code: 1 when something was found."""
    from klvae_edu.training.diagnosis import diagnose
    from klvae_edu.training.log import LOG_NAME, read_log
    from klvae_edu.training.recipes import load_recipe

    log = options.run / LOG_NAME
    if not log.is_file():
        stages = sorted(str(stage.parent) for stage in options.run.glob(f"stage-*/{LOG_NAME}"))
        hint = f"; its stages are {' and '.join(stages)}" if stages else ""
        raise FileNotFoundError(f"{options.run}: expected the folder of a run, with {LOG_NAME}{hint}")
    config = load_recipe(options.run / "training.json")
    records, damaged = read_log(log)
    passed_over = f"; damaged lines passed over: {damaged}" if damaged else ""
    last = records[-1]["step"] if records else 0
    print(f"{log}: {len(records)} steps, the last is {last} of {config.steps}{passed_over}")
    findings = diagnose(config, records)
    for finding in findings:
        print(f"\n{finding.name}\n  {finding.evidence}\n  {finding.advice}")
    if not findings:
        print("Nothing found.")
    return 1 if findings else 0
