"""Streams: every image comes once per pass, for any number of readers, also after a run was interrupted."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from klvae_edu.data import shards
from klvae_edu.data.shards import START, Place, ProcessShare, Row, ShardReader, StreamedCrops, StreamPosition

DataSet = Callable[[int], Path]  # number of Parquet files (5, 6, 7, 5, 6, 7, … rows) -> folder


def rows_of(shard: int) -> int:
    return 5 + shard % 3


def all_numbers(count: int) -> list[int]:
    return [*range(sum(map(rows_of, range(count))))]


def png(number: int) -> bytes:
    """Make a small image of one colour, which encodes its number."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number // 256, number % 256, 0)).save(file, "PNG")
    return file.getvalue()


def number_of(crop: Tensor) -> int:
    high, low, _ = ((crop.mean((1, 2)) + 1) * 127.5).round().int().tolist()
    return 256 * high + low


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Make folders for `load_dataset`, one for each number of files; row numbers continue over the files."""
    import datasets

    made: dict[int, Path] = {}

    def of(count: int) -> Path:
        if count not in made:
            folder, begin = tmp_path_factory.mktemp(f"shards{count}"), 0
            for shard in range(count):
                numbers = range(begin, begin := begin + rows_of(shard))
                rows = {"image": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]}
                features = datasets.Features({"image": datasets.Image()})
                name = f"train-{shard:05}-of-{count:05}.parquet"
                datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / name))
            test = datasets.Dataset.from_dict({"image": rows["image"][:1]}, features=features)
            test.to_parquet(str(folder / "test-00000-of-00001.parquet"))
            made[count] = folder
        return made[count]

    return of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK", 2)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def stream(folder: Path, seed: int = 0, length: int | None = None) -> StreamedCrops:
    return StreamedCrops(str(folder), "train", 8, seed=seed, length=length)


def readers_of(folder: Path, readers: int, seed: int | None = 0) -> list[ShardReader]:
    data = stream(folder)
    return [ShardReader(data.data, data.column, seed, reader, readers) for reader in range(readers)]


def numbers(rows: list[Row]) -> list[int]:
    return [int(row.value["path"].removesuffix(".png")) for row in rows]


# --- readers


@pytest.mark.parametrize(
    ("count", "readers"), [(1, 1), (1, 3), (2, 5), (3, 2), (4, 4), (5, 64), (8, 3), (64, 64), (65, 64)]
)
def test_every_row_of_a_pass_goes_to_exactly_one_reader(data_set: DataSet, count: int, readers: int) -> None:
    shares = [[*reader.rows(Place(epoch=3))] for reader in readers_of(data_set(count), readers)]
    assert sorted(number for share in shares for number in numbers(share)) == all_numbers(count)
    if count >= readers:
        owners = [{row.shard for row in share} for share in shares]
        assert sum(map(len, owners)) == count  # no shard has two readers
        assert max(map(len, owners)) - min(map(len, owners)) <= 1
    else:
        assert all(len({row.shard for row in share}) <= 1 for share in shares)


def test_the_rows_of_a_shard_with_several_readers_are_dealt_out_in_turns(data_set: DataSet) -> None:
    shares = [[*reader.rows()] for reader in readers_of(data_set(1), 2)]
    assert [sorted(row.number for row in share) for share in shares] == [[0, 2, 4], [1, 3]]


def test_a_row_says_where_it_lies(data_set: DataSet) -> None:
    begins = [0, 5, 11, 18]
    for row in readers_of(data_set(4), 1)[0].rows():
        assert numbers([row]) == [begins[row.shard] + row.number]


def test_each_pass_has_another_order_of_shards_and_rows_and_every_seed_its_own(data_set: DataSet) -> None:
    (reader,), (other,) = readers_of(data_set(8), 1), readers_of(data_set(8), 1, seed=1)
    orders = [numbers([*one.rows(Place(epoch))]) for one in (reader, other) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(dict.fromkeys(row.shard for row in reader.rows(Place(epoch)))) for epoch in range(3)}) == 3
    assert orders[0] == numbers([*reader.rows()])


def test_rows_are_shuffled_in_blocks_within_their_shard(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK", 4)
    rows = [row.number for row in readers_of(data_set(3), 1)[0].rows() if row.shard == 2]
    assert sorted(rows[:4]) == [0, 1, 2, 3] != rows[:4]
    assert sorted(rows[4:]) == [4, 5, 6]


def test_without_a_seed_rows_come_as_they_lie(data_set: DataSet) -> None:
    (reader,) = readers_of(data_set(4), 1, seed=None)
    assert numbers([*reader.rows()]) == numbers([*reader.rows(Place(epoch=5))]) == all_numbers(4)


@pytest.mark.parametrize(("count", "readers", "reader"), [(4, 1, 0), (4, 3, 0), (2, 3, 2)])
def test_from_any_place_on_a_reader_goes_on_as_if_it_had_not_stopped(
    data_set: DataSet, count: int, readers: int, reader: int
) -> None:
    one = readers_of(data_set(count), readers)[reader]
    rows = [*one.rows(Place(epoch=1))]
    for position, row in enumerate(rows):
        assert [*one.rows(row.place)] == rows[position + 1 :]


def test_rows_that_were_had_before_are_not_decoded_again(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data, decoded = stream(data_set(4)), []
    places = [place for _, place in islice(data.crops(0, 1), 12)]
    decode = shards.decode
    monkeypatch.setattr(shards, "decode", lambda *given: decoded.append(given) or decode(*given))
    next(data.crops(0, 1, places[-1]))
    assert len(decoded) == 1


# --- crops


@pytest.mark.parametrize(("count", "workers"), [(4, 0), (4, 2), (3, 2), (1, 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_stop_in_mid_pass_every_image_has_come_once_over_all_processes_and_workers(
    data_set: DataSet, count: int, workers: int, processes: int
) -> None:
    """Readers with different shares end their pass at different times, so each is read to the end of its own pass."""
    data, seen = stream(data_set(count)), []
    for process in range(processes):
        position = StreamPosition([START] * max(1, workers))
        stopped = False
        while any(place.epoch == 0 for place in position.places):
            share = ProcessShare(data, position, process, processes)
            for crops, places in DataLoader(share, batch_size=1, num_workers=workers):
                seen += [number_of(crop) for crop, place in zip(crops, places, strict=True) if place[0] == 0]
                position.follow(places)
                if not stopped and len(seen) % 3 == 2:  # stop once in the middle
                    stopped = True
                    break
                if all(place.epoch > 0 for place in position.places):
                    break
            position = StreamPosition.from_dict(position.to_dict())
    assert sorted(seen) == all_numbers(count)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_with_the_same_crops_in_the_same_order(data_set: DataSet, workers: int) -> None:
    data, position = stream(data_set(4)), StreamPosition([START] * max(1, workers))

    def batches(count: int) -> list[Tensor]:
        found = []
        for crops, places in DataLoader(ProcessShare(data, position), batch_size=2, num_workers=workers):
            position.follow(places)
            found.append(crops)
            if len(found) == count:
                return found
        raise AssertionError("a stream has no end")

    whole = batches(14)
    position = StreamPosition([START] * max(1, workers))
    parts = [batch for count in (1, 4, 9) for batch in batches(count)]
    assert all(one.equal(other) for one, other in zip(whole, parts, strict=True))


def test_a_crop_is_a_function_of_seed_pass_and_row_whoever_reads_it(data_set: DataSet) -> None:
    data = stream(data_set(4))
    alone = {place[0] * 1000 + number_of(crop): crop for crop, place in islice(data.crops(0, 1), 100)}
    for reader in range(3):
        for crop, place in islice(data.crops(reader, 3), 12):
            assert alone[place.epoch * 1000 + number_of(crop)].equal(crop)


def test_a_position_is_what_the_last_crop_of_each_reader_s_last_batch_says() -> None:
    from torch import tensor

    position = StreamPosition([START, START, START])
    for places in ([[0, 0, 1], [0, 1, 1]], [[0, 0, 1], [0, 0, 2]], [[0, 2, 1], [1, 0, 1]], [[0, 1, 2], [0, 1, 3]]):
        position.follow(tensor(places))
    assert position == StreamPosition([Place(0, 1, 3), Place(0, 0, 2), Place(1, 0, 1)], next=1)
    assert StreamPosition.from_dict(position.to_dict()) == position


def test_a_reader_for_whom_no_image_is_left_says_so(data_set: DataSet) -> None:
    data = stream(data_set(1))
    assert number_of(next(data.crops(4, 5))[0]) == 4
    with pytest.raises(ValueError, match=r"too small for 6 readers .*: number 5 finds no image in it"):
        next(data.crops(5, 6))


def test_going_on_at_the_very_end_of_a_pass_is_no_empty_pass(data_set: DataSet) -> None:
    data: Any = stream(data_set(1))
    *_, (_, last) = islice(data.crops(0, 1), 5)
    assert last == Place(0, 0, 5)
    assert next(data.crops(0, 1, last))[1] == Place(1, 0, 1)
