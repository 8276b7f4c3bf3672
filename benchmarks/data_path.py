"""Loading speed: images per second with 1, 2 and 64 readers of one data set. Run: python -m benchmarks.data_path

Numbered images are written as Parquet shards into a temporary folder, and streamed as in training: undecoded rows,
decoding, crops. One and two workers are processes of a DataLoader. 64 readers are simulated: they read their shares one
after the other, and the time of the slowest counts, as if each had its own core and disk. With 8 shards for 64 readers,
eight readers share a shard and take its rows in turns.

Every way reads one epoch twice: once without a stop, which is timed, and once with a stop in the middle, after which
reading resumes from the positions of a checkpoint. Both must give every image exactly once.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import datasets
import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.common import machine, ratios, write
from klvae_edu.data.shards import START, ProcessShare, StreamedCrops, StreamPosition

SIDE, SIZE, BATCH = 96, 64, 16  # an image of less than twice the crop's size is not scaled, so its number stays
SIMULATED = {"1 reader, simulated": 1, "64 readers, simulated": 64}
SHARED = "64 readers of 8 shards, simulated"


def picture(number: int) -> bytes:
    """Make a PNG with texture in the red channel and its number in the other two."""
    red = np.random.default_rng(number).integers(0, 256, (SIDE // 4, SIDE // 4), dtype=np.uint8)
    smooth = Image.fromarray(red).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    others = (Image.new("L", (SIDE, SIDE), value) for value in divmod(number, 256))
    file = io.BytesIO()
    Image.merge("RGB", (smooth, *others)).save(file, "PNG")
    return file.getvalue()


def numbers_of(crops: Tensor) -> list[int]:
    """Read the numbers of the images from their crops (B, 3, size, size)."""
    high, low = ((crops[:, 1:, 0, 0] + 1) * 127.5).round().int().unbind(1)
    return (256 * high + low).tolist()  # type: ignore[no-any-return]


def make_data_set(folder: Path, images: int, shards: int) -> StreamedCrops:
    features = datasets.Features({"image": datasets.Image()})
    folder.mkdir()
    for shard, numbers in enumerate(np.array_split(np.arange(images), shards)):
        rows = [{"bytes": picture(int(number)), "path": None} for number in numbers]
        part = datasets.Dataset.from_dict({"image": rows}, features=features)
        part.to_parquet(str(folder / f"train-{shard:05}-of-{shards:05}.parquet"))
    part.select([0]).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return StreamedCrops(str(folder), "train", SIZE, seed=0, length=None)


def first_pass(stream: StreamedCrops, position: StreamPosition, workers: int) -> Iterator[list[int]]:
    """Yield the image numbers of each batch of the first epoch, until all readers have finished it."""
    for crops, places in DataLoader(ProcessShare(stream, position), batch_size=BATCH, num_workers=workers):
        position.follow(places)
        numbers = numbers_of(crops)
        yield [number for number, place in zip(numbers, places, strict=True) if place[0] == 0]
        if all(place.epoch > 0 for place in position.places):
            return


def with_workers(stream: StreamedCrops, workers: int, images: int, stop: bool) -> tuple[list[int], float]:
    """Return the image numbers of one epoch, and the seconds after its first batch, scaled to the whole epoch."""
    position, seen = StreamPosition([START] * workers), list[int]()
    begin, first = 0.0, 0
    for numbers in first_pass(stream, position, workers):
        seen += numbers
        if not begin:
            begin, first = time.perf_counter(), len(seen)
        if len(seen) == images or (stop and len(seen) >= images // 2):
            break
    seconds = (time.perf_counter() - begin) * images / max(1, len(seen) - first)
    if stop:
        position = StreamPosition.from_dict(position.to_dict())  # through a checkpoint's form
        for numbers in first_pass(stream, position, workers):
            seen += numbers
    return seen, seconds


def simulated(stream: StreamedCrops, readers: int, stop: bool) -> tuple[list[int], float]:
    """Return the image numbers of one epoch of readers that run in sequence, and the seconds of the slowest."""
    seen, slowest = list[int](), 0.0
    for reader in range(readers):
        count, begin, place = 0, time.perf_counter(), START
        while place.epoch == 0:
            for crop, after in stream.crops(reader, readers, place):
                place = after
                if place.epoch > 0:
                    break
                seen += numbers_of(crop[None])
                count += 1
                slowest = max(slowest, time.perf_counter() - begin)
                if stop and count == 3:  # once for each reader, in the middle of its share
                    break
    return seen, slowest


def check_once(seen: Sequence[int], images: int, way: str) -> None:
    """Raise an `AssertionError` unless each image was seen exactly once."""
    wrong = {number: count for number, count in Counter(seen).items() if count != 1}
    missing = images - len({*seen})
    assert not wrong and not missing, f"{way}: {missing} images were never seen, {len(wrong)} more than once"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    images = options.images
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        stream = make_data_set(Path(folder) / "many", images, options.shards)
        few = make_data_set(Path(folder) / "few", images, 8)
        for number in range(options.rounds):
            for stop in (False, True) if number == 0 else (False,):
                found = {f"{n} worker{'s' * (n > 1)}": with_workers(stream, n, images, stop) for n in (1, 2)}
                found |= {way: simulated(stream, readers, stop) for way, readers in SIMULATED.items()}
                found[SHARED] = simulated(few, 64, stop)
                for way, (seen, elapsed) in found.items():
                    check_once(seen, images, f"{way}, {'with' if stop else 'without'} a stop")
                    if not stop:
                        seconds.setdefault(way, []).append(elapsed)
    alone = "1 reader, simulated"
    report = {
        "machine": f"{machine()}, {os.cpu_count()} CPUs",
        "data": f"{images} PNG images of {SIDE}x{SIDE} pixels in {options.shards} Parquet shards, crops of {SIZE}",
        "rounds": options.rounds,
        "every image once in a pass, also with a resume in mid-pass": [*seconds],  # checked above
        "images per second": {way: round(images / median(values)) for way, values in seconds.items()},
        "time over 1 worker": {"2 workers": ratios(seconds, "1 worker")["2 workers"]},
        "time over 1 reader": {way: ratios(seconds, alone)[way] for way in seconds if "64" in way},
    }
    write(report, options.out)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()
