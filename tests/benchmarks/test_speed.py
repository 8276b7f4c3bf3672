"""The benchmarks of speed and memory run, refuse to compare different results, and draw one picture."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import activations, common, encode_many, import_time, inference, picture
from klvae_edu import AutoencoderKL
from klvae_edu.config import PRESETS, AutoencoderKLConfig
from klvae_edu.data.latent_dataset import pyarrow_and_parquet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> AutoencoderKL:
    """A small network of two levels, registered as a preset."""
    monkeypatch.setitem(PRESETS, "narrow", AutoencoderKLConfig(block_out_channels=(32, 32), layers_per_block=1))
    return AutoencoderKL.from_preset("narrow", seed=0).requires_grad_(False)


def test_inference_is_reported_as_time_speed_and_error_of_every_way(narrow: AutoencoderKL, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    inference.main(["--networks", "narrow", "--side", "16", "--rounds", "1", "--out", str(out)])
    report = json.loads(out.read_text())
    assert list(report) == ["machine", "side", "rounds", "narrow"]
    ways = {*inference.models(narrow, compvis=False, compiled=False)}
    for half in ("encode", "decode"):
        found = report["narrow"][half]
        assert {*found["seconds"]} == {*found["speed over diffusers"]} == {*found["largest error"]} == ways
        assert found["speed over diffusers"][inference.PEER] == [1.0, 1.0, 1.0]
        for median, smallest, largest in found["speed over diffusers"].values():
            assert 0 < smallest <= median <= largest
        for way, error in found["largest error"].items():
            assert (error > 1e-3) == way.endswith("bfloat16"), way


def test_a_way_that_computes_something_else_is_not_timed(narrow: AutoencoderKL) -> None:
    other = narrow.clone()
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(0.1)
    ways = {"ours": inference.halves(narrow), "ours, spoiled": inference.halves(other)}
    with pytest.raises(AssertionError, match="decode, ours, spoiled: differs by"):
        inference.errors(ways, narrow)


def test_the_compiled_copy_is_a_way_on_request(narrow: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    found = inference.measure(narrow, 16, 1, compvis=False, compiled=True)
    assert {inference.COMPILED, f"{inference.COMPILED}, bfloat16"} <= {*found["decode"]["seconds"]}
    assert len(compiled) == 4


def test_compvis_halves_are_built_as_their_model_is_and_given_our_weights(
    narrow: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CompVis' code is not installed: a stand-in has its names, and records the arguments."""
    built = []

    class Half(torch.nn.Module):
        def __init__(self, **fields: object) -> None:
            super().__init__()
            built.append(fields)

    module = types.ModuleType("ldm.modules.diffusionmodules.model")
    module.Encoder = module.Decoder = Half
    for name in ("ldm", "ldm.modules", "ldm.modules.diffusionmodules"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    loaded = []
    monkeypatch.setattr(inference.CompVis, "load_state_dict", lambda self, weights: loaded.extend(weights))
    inference.CompVis(narrow)
    assert built[0] == built[1]
    assert built[0]["ch"] == 32 and built[0]["ch_mult"] == [1, 1] and built[0]["num_res_blocks"] == 1
    assert "encoder.down.0.block.0.conv1.weight" in loaded


def test_every_import_is_timed_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_time.seconds_of("import json") > 0
    times = iter([9.0] * 4 + [0.1, 1.0, 1.0, 3.0] + [0.1, 1.0, 1.0, 4.0])
    monkeypatch.setattr(import_time, "seconds_of", lambda statement: next(times))
    import_time.main(["--rounds", "2", "--out", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seconds"][import_time.PEER] == 3.5
    assert report["time of the peer over ours"]["klvae_edu, the model"] == [3.5, 3.0, 4.0]


@LINUX
def test_memory_is_measured_of_training_steps_and_of_tiled_decoding(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    activations.main(["--preset", "tiny", "--side", "128", "--sides", "64", "--out", str(out)])
    report = json.loads(out.read_text())
    steps = report["MiB of activations"]
    assert steps["plain"] > 30  # one feature map of the largest level takes 2, and dozens are kept
    assert report["checkpointing over plain"] == pytest.approx(steps["with checkpointing"] / steps["plain"], abs=0.02)
    assert report["checkpointing over plain"] < 0.8
    assert set(report["MiB of tiled decoding, output aside"]) == {*activations.DECODING}


@LINUX
def test_latents_of_many_images_are_counted_and_their_memory_measured(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    encode_many.main(["--counts", "64", "1100", "--out", str(out)])
    report = json.loads(out.read_text())
    few, many = report["MiB over those before"].values()
    assert few < many < 1000  # the larger fills a shard and begins another
    assert report["images per second"] > 0


def test_a_data_set_that_misses_an_image_or_has_one_twice_is_detected(tmp_path: Path) -> None:
    pa, parquet = pyarrow_and_parquet()
    (tmp_path / "data").mkdir()
    for number, indices in enumerate(([0, 1, 2], [3, 4])):
        parquet.write_table(pa.table({"index": indices}), tmp_path / "data" / f"{number}.parquet")
    encode_many.check_complete(tmp_path, 5)
    for wrong in ([3], [3, 3], [3, 4, 4]):
        parquet.write_table(pa.table({"index": wrong}), tmp_path / "data" / "1.parquet")
        with pytest.raises(AssertionError, match="expected 5 images in order"):
            encode_many.check_complete(tmp_path, 5)


def test_a_processor_is_named_with_its_fast_instructions(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name : X\nflags : fpu sse2 avx2 avx512f amx_bf16_not\n")
    assert common.processor(cpuinfo).split()[1:] == ["avx2", "avx512f"]
    assert len(common.processor(tmp_path / "missing").split()) == 1


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = common.times({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {way: len(values) for way, values in seconds.items()} == {"a": 2, "b": 2}


def report_of(name: str) -> dict:
    """Make a small report with the keys of this benchmark."""
    ratio, rows = [1.2, 1.0, 1.5], {"channels": {"median": 40.0}, "bits": {"median": 20.0}}
    half = {"speed over diffusers": {"diffusers": [1.0, 1.0, 1.0], "ours, optimised, bfloat16": ratio}}
    return {
        "inference": {"machine": "a processor", "side": 256, "sd-v1": {"encode": half, "decode": half}},
        "train_step": {"machine": "", "small": {"time over ours": {"ours": [1.0, 1.0, 1.0], "as CompVis": ratio}}},
        "activations": {
            "training step": "sd-v1, batch 1, 256 pixels, float32",
            "MiB of activations": {"plain": 3000, "with checkpointing": 1000},
            "MiB of tiled decoding, output aside": {"the model": {"512": 90, "1024": 90}},
        },
        "tiled_decode": {"peak MiB over the model, output aside": {"whole, 512": 985, "tiled, 512": 423}},
        "explorer": {"milliseconds from event to picture": rows, "milliseconds of the peer": rows},
        "import_time": {"seconds": {"klvae_edu": 0.01, "diffusers": 3.0}},
    }[name]


def test_all_results_go_into_one_picture(tmp_path: Path) -> None:
    for name in picture.RESULTS:
        (tmp_path / f"{name}.json").write_text(json.dumps(report_of(name)))
    picture.main(["--results", str(tmp_path), "--out", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_make_bench_runs_every_benchmark_and_then_draws_the_picture() -> None:
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    (listed,) = (line.split(":=")[1].split() for line in makefile.splitlines() if line.startswith("BENCHMARKS "))
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - {"__init__", "common", "picture"}
    assert {*listed} == scripts
    assert {*picture.RESULTS} <= scripts
