"""Import time, each time in a new process. Run: python -m benchmarks.import_time

The ways take turns. PyTorch is also listed alone, because both packages load it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.common import machine, ratios, write

PEER = "diffusers"
WAYS = {
    "klvae_edu": "import klvae_edu",
    "klvae_edu, the model": "from klvae_edu import AutoencoderKL",
    "PyTorch": "import torch",
    PEER: "from diffusers import AutoencoderKL",
}


def seconds_of(statement: str) -> float:
    """Measure a statement in a new process, without the start of the interpreter."""
    code = f"from time import perf_counter; start = perf_counter(); {statement}; print(perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    for statement in WAYS.values():  # warm-up: every file is in the disk cache afterwards
        seconds_of(statement)
    rounds = [{way: seconds_of(statement) for way, statement in WAYS.items()} for _ in range(options.rounds)]
    seconds = {way: [of_round[way] for of_round in rounds] for way in WAYS}
    report = {
        "machine": machine(),
        "rounds": options.rounds,
        "seconds": {way: round(median(values), 3) for way, values in seconds.items()},
        "time of the peer over ours": {way: ratios(seconds, way)[PEER] for way in WAYS},
    }
    write(report, options.out)


if __name__ == "__main__":
    main()
