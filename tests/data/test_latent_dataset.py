"""Latents on disk: writing with `encode_images`, resuming an interrupted run, and reading."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import weakref
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch import Tensor

from klvae_edu import AutoencoderKL, latents
from klvae_edu.data import latent_writer, save_image
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.latent_dataset import LatentDataset, read_description, shard_names
from klvae_edu.data.latent_writer import encode_images

ABOUT = {"model": "a small one", "source": "sprites"}
COUNT, SIZE = 11, 16  # three shards of 4, 4 and 3


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    small = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=3)
    return small.eval()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_writer, "IMAGES_PER_SHARD", 4)
    monkeypatch.setattr(latent_writer, "PIXELS_PER_BATCH", 3 * SIZE**2)


@pytest.fixture
def images() -> AllImages:
    return AllImages("sprites", SIZE, COUNT)


@pytest.fixture
def done(vae: AutoencoderKL, images: AllImages, tmp_path: Path) -> Path:
    encode_images(vae, images, tmp_path / "done", ABOUT)
    return tmp_path / "done"


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@torch.no_grad()
def moments(vae: AutoencoderKL, images: AllImages) -> tuple[Tensor, Tensor]:
    posterior = vae.encode(torch.stack([images.load(number) for number in range(len(images))])).latent_dist
    return posterior.mean, posterior.logvar


# ---- Writing --------------------------------------------------------------------------------------------------------


def test_the_posterior_of_every_image_is_there_in_order(vae: AutoencoderKL, images: AllImages, done: Path) -> None:
    data = LatentDataset(done)
    assert len(data) == COUNT and len(data.shards) == 3
    mean, logvar = moments(vae, images)
    read = [data.posterior(shard) for shard in range(3)]
    assert [len(posterior.mean) for posterior in read] == [4, 4, 3]
    torch.testing.assert_close(torch.cat([posterior.mean for posterior in read]), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([posterior.logvar for posterior in read]), logvar, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_it_with_and_without_streaming(
    vae: AutoencoderKL, images: AllImages, done: Path, tmp_path: Path, streaming: bool
) -> None:
    for arguments in ({"path": "parquet", "data_files": f"{done}/data/*.parquet"}, {"path": str(done)}):
        read = datasets.load_dataset(**arguments, cache_dir=str(tmp_path / "cache"), streaming=streaming)
        assert list(read) == ["train"]
        rows = list(read["train"].with_format("torch"))
        assert [int(row["index"]) for row in rows] == [*range(COUNT)]
        assert rows[7]["image"] == "sprites 7"
        mean, logvar = moments(vae, images)
        torch.testing.assert_close(torch.stack([row["mean"] for row in rows]), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.stack([row["logvar"] for row in rows]), logvar, rtol=1e-4, atol=1e-5)


def test_shards_of_large_latents_hold_fewer_images(
    vae: AutoencoderKL, images: AllImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_writer, "VALUES_PER_SHARD", 2 * 3 * 8 * 8 + 5)
    found = encode_images(vae, images, tmp_path / "out", ABOUT)
    assert found["images_per_shard"] == 2 and len(LatentDataset(tmp_path / "out").shards) == 6
    assert sum(len(LatentDataset(tmp_path / "out").posterior(shard).mean) for shard in range(6)) == COUNT


def test_the_description_says_what_it_is_of(vae: AutoencoderKL, done: Path) -> None:
    found = json.loads((done / "latents.json").read_text(encoding="utf-8"))
    assert found["model"] == "a small one" and found["source"] == "sprites"
    assert (found["size"], found["images"], found["encoded"], found["left_out"]) == (SIZE, COUNT, COUNT, [])
    assert found["latent_shape"] == [3, 8, 8]
    assert found["scaling_factor"] == vae.config.scaling_factor
    assert read_description(done) == found


def test_the_statistics_are_those_of_samples(done: Path) -> None:
    data = LatentDataset(done)
    generator = torch.Generator().manual_seed(0)
    drawn = [data.posterior(shard).sample(generator) for shard in range(3) for _ in range(400)]
    by_drawing = latents.statistics(drawn)
    torch.testing.assert_close(data.statistics.mean, by_drawing.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(data.statistics.std, by_drawing.std, rtol=0.01, atol=0)
    assert data.statistics.overall_std == pytest.approx(by_drawing.overall_std, rel=0.01)
    spread = torch.cat([data.posterior(shard).mean for shard in range(3)]).std().item()
    assert data.statistics.overall_std > 1.05 * spread  # the noise of the posteriors is included


# ---- Interruptions --------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Interrupts a run like a kill: no handler catches it."""


@pytest.mark.parametrize("after", [0, 2, 4, 5, 10])
def test_a_run_that_was_cut_off_and_started_again_ends_with_the_same_files(
    vae: AutoencoderKL, images: AllImages, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    load = AllImages.load

    def load_until(self: AllImages, number: int) -> Tensor:
        if number == after:
            raise Stop
        return load(self, number)

    out = tmp_path / "cut"
    monkeypatch.setattr(AllImages, "load", load_until)
    with pytest.raises(Stop):
        encode_images(vae, images, out, ABOUT)
    monkeypatch.setattr(AllImages, "load", load)
    if (out / "data").is_dir():
        with pytest.raises(ValueError, match=f"not finished, {after // 4} of 3 shards"):
            LatentDataset(out)
        (out / "data" / ".train-00001.part").write_bytes(b"what a kill leaves")
    loaded: list[int] = []
    monkeypatch.setattr(AllImages, "load", lambda self, number: loaded.append(number) or load(self, number))
    encode_images(vae, images, out, ABOUT)
    assert loaded == [*range(after // 4 * 4, COUNT)]  # complete shards are not encoded again
    assert contents(out) == contents(done)


def test_a_finished_folder_is_left_as_it_is(vae: AutoencoderKL, images: AllImages, done: Path) -> None:
    before = contents(done)
    encode_images(vae, images, done, ABOUT)
    assert contents(done) == before


def test_latents_of_images_that_were_replaced_since_are_left_alone_and_said(vae: AutoencoderKL, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(folder / f"{number}.png")
    encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)
    before = contents(out)
    encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)
    Image.new("RGB", (SIZE, SIZE + 1), "white").save(folder / "1.png")
    with pytest.raises(FileExistsError, match="latents of these images, some of which were changed or replaced since"):
        encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)
    assert contents(out) == before
    description = json.loads((out / "latents.json").read_text())
    del description["versions_sha256"]  # of an older version: unchecked
    (out / "latents.json").write_text(json.dumps(description))
    assert "versions_sha256" not in encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)


def test_no_more_than_a_batch_of_images_is_held(
    vae: AutoencoderKL, images: AllImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, held, most = AllImages.load, [], 0

    def counting(self: AllImages, number: int) -> Tensor:
        nonlocal most
        image = load(self, number)
        held.append(weakref.ref(image))
        gc.collect()
        most = max(most, sum(reference() is not None for reference in held))
        return image

    monkeypatch.setattr(AllImages, "load", counting)
    encode_images(vae, images, tmp_path / "out", ABOUT)
    assert len(held) == COUNT and most == 3


# ---- Errors ----------------------------------------------------------------------------------------------------------


def test_images_that_cannot_be_read_are_left_out_and_named(vae: AutoencoderKL, tmp_path: Path) -> None:
    for number in range(6):
        save_image(torch.full((3, SIZE, SIZE), number / 10), tmp_path / f"{number}.png")
    for number in (1, 3, 5):
        (tmp_path / f"{number}.png").write_bytes(b"nothing")
    found = encode_images(vae, AllImages(str(tmp_path), SIZE), tmp_path / "out", ABOUT)
    assert (found["images"], found["encoded"]) == (6, 3)
    assert [f"{number}.png" in line for number, line in zip((1, 3, 5), found["left_out"], strict=True)] == [True] * 3
    data = LatentDataset(tmp_path / "out")
    assert len(data) == 3 and sum(len(data.posterior(shard).mean) for shard in range(2)) == 3


def test_none_that_can_be_read_is_an_error_that_says_why(vae: AutoencoderKL, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the images can be read and encoded\. .*a\.png"):
        encode_images(vae, AllImages(str(tmp_path), SIZE), tmp_path / "out", ABOUT)


class OverflowsOn(torch.nn.Module):
    """The encoder of a model, with NaN for images that are nearly white, as after an overflow in half precision."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        white = x.flatten(1).mean(1) > 0.9
        return torch.where(white.view(-1, 1, 1, 1), torch.nan, self.encoder(x))


@pytest.fixture
def overflowing(vae: AutoencoderKL) -> AutoencoderKL:
    other = vae.clone()
    other.encoder = OverflowsOn(other.encoder)
    return other


def shades(folder: Path, *values: float) -> AllImages:
    for number, value in enumerate(values):
        save_image(torch.full((3, SIZE, SIZE), value), folder / f"{number}.png")
    return AllImages(str(folder), SIZE)


def test_an_image_whose_latents_are_not_finite_is_named_and_has_no_row(
    vae: AutoencoderKL, overflowing: AutoencoderKL, tmp_path: Path
) -> None:
    for name, values in (("all", (0.1, 1.0, 0.3, 0.5, 1.0, 0.7)), ("finite", (0.1, 0.3, 0.5, 0.7))):
        (tmp_path / name).mkdir()
        images = shades(tmp_path / name, *values)
        found = encode_images(overflowing, images, tmp_path / f"latents of {name}", ABOUT)
        assert found["encoded"] == 4 and len(found["left_out"]) == len(values) - 4
    left_out = read_description(tmp_path / "latents of all")["left_out"]
    message = "its latents are NaN or infinite, computed in torch.float32: the weights or the image are damaged"
    assert left_out == [f"{number}.png: {message}" for number in (1, 4)]
    every, finite = LatentDataset(tmp_path / "latents of all"), LatentDataset(tmp_path / "latents of finite")
    for statistic in ("mean", "std"):
        ours, wanted = (getattr(data.statistics, statistic) for data in (every, finite))
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    assert all(batch.isfinite().all() for batch in every.batches(2))
    rows = [*datasets.Dataset.from_parquet([str(shard) for shard in every.shards], cache_dir=str(tmp_path / "cache"))]
    assert [row["image"] for row in rows] == ["0.png", "2.png", "3.png", "5.png"]
    assert [row["index"] for row in rows] == [0, 2, 3, 5]


def test_where_no_latents_are_finite_the_error_names_the_precision(
    overflowing: AutoencoderKL, vae: AutoencoderKL, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    images = shades(tmp_path / "images", 1.0, 1.0)
    half = overflowing.to(torch.bfloat16)
    message = r"0\.png: its latents are NaN or infinite, computed in torch\.bfloat16: encode with float32"
    with pytest.raises(ValueError, match=message):
        encode_images(half, images, tmp_path / "out", ABOUT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_new", [True, False])
def test_a_failure_before_the_first_shard_leaves_nothing_in_the_way(
    vae: AutoencoderKL, images: AllImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    out = tmp_path / "out"
    if not is_new:
        out.mkdir()

    def fail(self: AllImages, number: int) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(AllImages, "load", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            encode_images(vae, images, out, ABOUT)
    assert out.exists() != is_new
    assert encode_images(vae, images, out, ABOUT | {"source": "another"})["encoded"] == COUNT


def test_a_run_that_was_stopped_before_its_first_shard_makes_way_for_another(
    vae: AutoencoderKL, images: AllImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: AllImages, number: int) -> Tensor:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(AllImages, "load", stop)
        with pytest.raises(Stop):
            encode_images(vae, images, tmp_path, ABOUT)
    assert (tmp_path / "latents.json").is_file()
    assert encode_images(vae, images, tmp_path, ABOUT | {"source": "another"})["source"] == "another"
    assert read_description(tmp_path)["source"] == "another"


@pytest.mark.parametrize("channels", [1, 5])
def test_models_of_any_number_of_channels_encode_images_of_as_many(tmp_path: Path, channels: int) -> None:
    other = AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4
    )
    (tmp_path / "images").mkdir()
    for number in range(3):
        save_image(torch.rand(channels, SIZE, SIZE) * 2 - 1, tmp_path / "images" / f"{number}.tif")
    images = AllImages(str(tmp_path / "images"), SIZE, channels=channels)
    assert images.load(0).shape == (channels, SIZE, SIZE)
    assert encode_images(other, images, tmp_path / "out", ABOUT)["encoded"] == 3


def test_images_of_another_number_of_channels_are_refused(vae: AutoencoderKL, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected images with the model's 3 channels, got 1"):
        encode_images(vae, AllImages("sprites", SIZE, 2, channels=1), tmp_path / "out", ABOUT)
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_text_are_written(vae: AutoencoderKL, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    name = os.fsdecode(b"gr\xfc\xdfe.png")
    try:
        save_image(torch.zeros(3, SIZE, SIZE), tmp_path / "images" / name)
        (tmp_path / "images" / f"bad{name}").write_bytes(b"")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names that are text only")
    about = {"source": str(tmp_path / name)}
    found = encode_images(vae, AllImages(str(tmp_path / "images"), SIZE), tmp_path / "out", about)
    assert found["encoded"] == 1 and "badgr\\udcfc\\udcdfe.png: not in any" in found["left_out"][0]
    assert read_description(tmp_path / "out")["source"] == about["source"]
    data = datasets.Dataset.from_parquet(str(next(tmp_path.glob("out/data/*"))), cache_dir=str(tmp_path / "cache"))
    assert data[0]["image"] == "gr\\udcfc\\udcdfe.png"


def test_latents_of_something_else_are_left_alone(vae: AutoencoderKL, images: AllImages, done: Path) -> None:
    before = contents(done)
    other = vae.clone()
    torch.nn.init.ones_(other.quant_conv.weight)
    for model, given, about, named in (
        (other, images, ABOUT, "weights_sha256"),
        (vae, AllImages("sprites", SIZE, COUNT - 1), ABOUT, f"images: {COUNT} there, {COUNT - 1} now"),
        (vae, AllImages("sprites", 2 * SIZE, COUNT), ABOUT, "size: 16 there, 32 now"),
        (vae, AllImages("dead-leaves", SIZE, COUNT), ABOUT | {"source": "x"}, "source: sprites there, x now"),
    ):
        with pytest.raises(FileExistsError, match=named):
            encode_images(model, given, done, about)
    assert contents(done) == before


def test_a_file_or_a_folder_of_something_else_is_left_alone(
    vae: AutoencoderKL, images: AllImages, tmp_path: Path
) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("precious")
    folder.mkdir()
    (folder / "letters.txt").write_text("precious")
    with pytest.raises(ValueError, match="expected a folder for the latents, got a file"):
        encode_images(vae, images, file, ABOUT)
    with pytest.raises(FileExistsError, match="it is in use"):
        encode_images(vae, images, folder, ABOUT)
    assert file.read_text() == "precious" and [path.name for path in folder.iterdir()] == ["letters.txt"]


def test_a_size_that_the_model_would_pad_is_refused(vae: AutoencoderKL, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: expected a multiple of 2, the model's factor, got 17"):
        encode_images(vae, AllImages("sprites", 17, 2), tmp_path / "out", ABOUT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "pyarrow.parquet.write_table"])
def test_a_full_disk_leaves_whole_shards_and_says_that_they_are_gone_on_from(
    vae: AutoencoderKL,
    images: AllImages,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    out, load = tmp_path / "out", AllImages.load

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    def load_and_fill(self: AllImages, number: int) -> Tensor:
        if number == 6:
            monkeypatch.setattr(function, full)
        return load(self, number)

    monkeypatch.setattr(AllImages, "load", load_and_fill)
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\); the 1 shards before it"):
        encode_images(vae, images, out, ABOUT)
    monkeypatch.undo()
    monkeypatch.setattr(latent_writer, "IMAGES_PER_SHARD", 4)
    monkeypatch.setattr(latent_writer, "PIXELS_PER_BATCH", 3 * SIZE**2)
    assert [path.name for path in (out / "data").iterdir()] == ["train-00000-of-00003.parquet"]
    encode_images(vae, images, out, ABOUT)
    assert contents(out) == contents(done)


def test_a_damaged_shard_is_named(vae: AutoencoderKL, images: AllImages, done: Path) -> None:
    shard = done / "data" / "train-00001-of-00003.parquet"
    before = contents(done)
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.parquet: damaged"):
        encode_images(vae, images, done, ABOUT)
    shard.unlink()
    encode_images(vae, images, done, ABOUT)
    assert contents(done) == before


def test_every_flipped_bit_of_a_shard_is_noticed_when_it_is_read(done: Path) -> None:
    chance = random.Random(0)
    for _ in range(60):
        data = LatentDataset(done)
        shard = chance.choice(data.shards)
        content = shard.read_bytes()
        place, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
        shard.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with pytest.raises(ValueError, match=rf"{shard.name}: damaged: .*delete it and run klvae encode again"):
            list(data.batches(4))
        shard.write_bytes(content)
    assert sum(map(len, LatentDataset(done).batches(4))) == COUNT


def test_a_flipped_bit_is_noticed_by_a_run_that_is_resumed(vae: AutoencoderKL, images: AllImages, done: Path) -> None:
    first, second, _ = LatentDataset(done).shards
    second.unlink()
    content = bytearray(first.read_bytes())
    content[100] ^= 1
    first.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{first.name}: damaged"):
        encode_images(vae, images, done, ABOUT)


def test_a_folder_of_before_there_were_checksums_is_read(vae: AutoencoderKL, images: AllImages, done: Path) -> None:
    description = json.loads((done / "latents.json").read_text())
    del description["checksums"]
    (done / "latents.json").write_text(json.dumps(description))
    assert sum(map(len, LatentDataset(done).batches(4))) == COUNT
    assert encode_images(vae, images, done, ABOUT)["encoded"] == COUNT


def test_a_table_of_a_data_set_that_was_replaced_is_noticed(vae: AutoencoderKL, tmp_path: Path) -> None:
    """A data set in a folder has several files; of one that was written anew the number of rows may be the same."""
    folder, out = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    for number in range(2):
        image = Image.new("RGB", (SIZE, SIZE), (number,) * 3)
        rows = datasets.Dataset.from_dict({"image": [image]}, features=datasets.Features({"image": datasets.Image()}))
        rows.to_parquet(str(folder / f"{number}.parquet"))
    encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)
    encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)
    os.utime(folder / "1.parquet", ns=(1, 1))
    with pytest.raises(FileExistsError, match="some of which were changed or replaced since"):
        encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)
    description = json.loads((out / "latents.json").read_text()) | {"versions_sha256": None}  # as before it was listed
    (out / "latents.json").write_text(json.dumps(description))
    assert encode_images(vae, AllImages(str(folder), SIZE), out, ABOUT)["encoded"] == 2


def test_a_folder_without_latents_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder of latents with a latents\.json"):
        LatentDataset(tmp_path)
    (tmp_path / "latents.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="in format 1"):
        LatentDataset(tmp_path)


# ---- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_an_epoch_gives_every_latent_once_and_in_whole_batches(
    vae: AutoencoderKL, images: AllImages, tmp_path: Path, batch_size: int
) -> None:
    sharp = vae.clone()
    with torch.no_grad():
        sharp.quant_conv.weight[3:] = 0
        sharp.quant_conv.bias[3:] = -30  # log-variances: a sample is the mean, up to 3e-7
    encode_images(sharp, images, tmp_path / "sharp", ABOUT)
    data = LatentDataset(tmp_path / "sharp")
    batches = [*data.batches(batch_size, torch.Generator().manual_seed(1), scale=lambda z: z)]
    whole, rest = divmod(COUNT, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * whole + [rest] * bool(rest)
    means = torch.cat([data.posterior(shard).mean for shard in range(3)])
    distances = torch.cdist(torch.cat(batches).flatten(1), means.flatten(1))
    assert sorted(distances.argmin(1).tolist()) == [*range(COUNT)]
    assert distances.amin(1).max() < 1e-3 < distances.topk(2, largest=False).values[:, 1].min()


def test_epochs_draw_latents_of_their_own_in_orders_of_their_own(done: Path) -> None:
    data, generator = LatentDataset(done), torch.Generator().manual_seed(1)
    first, second = (torch.cat([*data.batches(4, generator)]) for _ in range(2))
    assert not torch.equal(first, second)
    again = torch.cat([*data.batches(4, torch.Generator().manual_seed(1))])
    assert torch.equal(first, again)


def test_latents_are_scaled_to_a_spread_of_one_or_as_is_asked(done: Path) -> None:
    data = LatentDataset(done)
    generator = torch.Generator().manual_seed(0)
    own = torch.cat([z for _ in range(300) for z in data.batches(8, generator)])
    assert own.std().item() == pytest.approx(1, rel=0.02)
    asked = torch.cat([z for _ in range(300) for z in data.batches(8, generator, lambda z: 0.5 * z)])
    assert asked.std().item() == pytest.approx(0.5 * data.statistics.overall_std, rel=0.02)


def test_shard_names_are_those_of_one_split() -> None:
    assert shard_names(5, 4) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert shard_names(4, 4) == ["train-00000-of-00001.parquet"]
