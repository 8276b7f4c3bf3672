"""The log of a run, `log.jsonl`: one JSON object per step."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from klvae_edu.weights.files import atomic_write

LOG_NAME = "log.jsonl"


def cut_log(log: Path, step: int) -> None:
    """Remove the lines of steps beyond `step`, and the damaged lines. A warning names each of those by file and line.

    Of a last line without an end nothing is said: the run was killed as it wrote the line, after its last checkpoint.
    """
    lines = log.read_bytes().split(b"\n")
    steps = [_step_of(line) for line in lines]
    for number, found in enumerate(steps[:-1], start=1):
        if found is None:
            got = f"expected a JSON object with a step, got {lines[number - 1][:40]!r}"
            warnings.warn(f"{log}:{number}: {got}; this line is left out", stacklevel=4)
    with atomic_write(log) as path:
        kept = [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]
        path.write_bytes(b"".join(line + b"\n" for line in kept))


def _step_of(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
