"""Memory and speed of encoding very many images. Run: python -m benchmarks.encode_many

`klvae encode` on procedural sprites of 32 pixels with the bundled model, for two numbers of images. Memory is the peak
of a new process less its memory before, with the default allocator. It must not grow with the number of images. Images
per second are the difference of the two numbers over the difference of their times, so the start-up is not counted.
Afterwards the data set is read: it must hold every image once, in order.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import begin_peak, machine, measured_elsewhere, memory, write
from klvae_edu import AutoencoderKL
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.latent_dataset import pyarrow_and_parquet
from klvae_edu.data.latent_writer import encode_images

SIZE = 32  # pixels


def encoding_memory(count: int, out: Path) -> int:
    """Measure the peak memory of encoding `count` sprites into the folder `out`, less the memory before, in bytes."""
    vae = AutoencoderKL.from_bundled()
    images = AllImages("sprites", SIZE, count)
    before = begin_peak()
    encode_images(vae, images, out, {})
    return memory("VmHWM") - before


def check_complete(out: Path, count: int) -> None:
    """Raise an `AssertionError` unless the data set holds the images 0, …, `count` - 1 once each, in order."""
    _, parquet = pyarrow_and_parquet()
    shards = sorted((out / "data").iterdir())
    found = [number for shard in shards for number in parquet.read_table(shard, columns=["index"])["index"].to_pylist()]
    assert found == [*range(count)], (
        f"expected {count} images in order, got {len(found)}, {len({*found})} of them different"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--counts", type=int, nargs=2, default=[10_000, 100_000], help="numbers of images, smaller first"
    )
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    if options.memory_of:
        print(encoding_memory(options.memory_of, options.to))
        return
    mebibytes, seconds = {}, {}
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            out, begin = Path(folder) / "latents", time.perf_counter()
            settings = ["--memory-of", str(count), "--to", str(out)]
            mebibytes[str(count)] = round(measured_elsewhere("benchmarks.encode_many", *settings) / 2**20)
            seconds[count] = time.perf_counter() - begin
            check_complete(out, count)
    few, many = options.counts
    report = {
        "machine": machine(),
        "data": f"procedural sprites of {SIZE}x{SIZE} pixels, the bundled model",
        "MiB over those before": mebibytes,
        "images per second": round((many - few) / (seconds[many] - seconds[few]), 1),
        "minutes of the larger number": round(seconds[many] / 60, 1),
    }
    write(report, options.out)


if __name__ == "__main__":
    main()
