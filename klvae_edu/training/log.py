"""The log of a run, `log.jsonl`: one JSON object per step."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from klvae_edu.weights.files import atomic_write

LOG_NAME = "log.jsonl"


def read_log(log: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the records of a log, in the order of the file, and count its damaged lines, which are passed over.

    A last line without an end is not counted: the run is writing it, or was killed as it wrote.

    Raises:
        FileNotFoundError: there is no such file.
    """
    *whole, _ = [_record_of(line) for line in log.read_bytes().split(b"\n")]
    records = [record for record in whole if record is not None]
    return records, len(whole) - len(records)


def cut_log(log: Path, step: int) -> None:
    """Remove the lines of steps beyond `step`, and the damaged lines. A warning names each of those by file and line.

    Of a last line without an end nothing is said: the run was killed as it wrote the line, after its last checkpoint.
    """
    lines = log.read_bytes().split(b"\n")
    records = [_record_of(line) for line in lines]
    for number, found in enumerate(records[:-1], start=1):
        if found is None:
            got = f"expected a JSON object with a step, got {lines[number - 1][:40]!r}"
            warnings.warn(f"{log}:{number}: {got}; this line is left out", stacklevel=4)
    with atomic_write(log) as path:
        kept = [line for line, found in zip(lines, records, strict=True) if found is not None and found["step"] <= step]
        path.write_bytes(b"".join(line + b"\n" for line in kept))


def _record_of(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None: it is damaged."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
