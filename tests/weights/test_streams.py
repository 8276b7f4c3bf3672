"""States in binary streams: their bytes, several states in one stream, pipes, and errors."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import tempfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from klvae_edu import AutoencoderKL, AutoencoderKLConfig

CONFIG = AutoencoderKLConfig(
    block_out_channels=(16, 24), layers_per_block=1, norm_num_groups=8, act_fn="gelu", scaling_factor=None
)


def model(seed: int, **changes: Any) -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(replace(CONFIG, **changes))


def state_of(vae: AutoencoderKL) -> bytes:
    stream = io.BytesIO()
    vae.save_state(stream)
    return stream.getvalue()


def same(first: AutoencoderKL, second: AutoencoderKL) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and first.config == second.config


def refused(vae: AutoencoderKL, stream: Any) -> str:
    """Return the error of loading; the model must be unchanged after it."""
    before = model(0)
    before.load_state_dict(vae.state_dict())
    before.config = vae.config
    with pytest.raises(ValueError) as error:
        vae.load_state(stream)
    assert same(vae, before)
    return str(error.value)


def test_a_state_comes_back_as_it_was_saved() -> None:
    first, second = model(1), model(2)
    assert not same(first, second)
    second.load_state(io.BytesIO(state_of(first)))
    assert same(first, second)


def test_the_bytes_are_those_of_a_safetensors_file(tmp_path: Path) -> None:
    vae = model(1)
    vae.to_single_file(tmp_path / "vae.safetensors", names="diffusers")
    assert state_of(vae) == (tmp_path / "vae.safetensors").read_bytes()
    assert same(AutoencoderKL.from_single_file(tmp_path / "vae.safetensors"), vae)


def test_the_stream_is_flushed_and_stays_open(tmp_path: Path) -> None:
    vae = model(1)
    with open(tmp_path / "vae.safetensors", "wb", buffering=1 << 24) as file:
        vae.save_state(file)
        assert not file.closed
        assert same(AutoencoderKL.from_single_file(file.name), vae)


def test_a_file_of_compvis_names_is_a_state_too(tmp_path: Path) -> None:
    first, second = model(1), model(2)
    first.to_single_file(tmp_path / "vae.safetensors", names="compvis")
    with open(tmp_path / "vae.safetensors", "rb") as file:
        second.load_state(file)
    assert same(first, second)


def test_several_states_and_other_bytes_may_follow_each_other() -> None:
    stream = io.BytesIO()
    stream.write(b"before")
    for seed in range(3):
        model(seed).save_state(stream)
    stream.write(b"after")
    stream.seek(6)
    vae = model(9)
    for seed in range(3):
        vae.load_state(stream)
        assert same(vae, model(seed))
    assert stream.read() == b"after"


@pytest.mark.parametrize("buffering", [0, -1])
def test_pipes_work_with_and_without_a_buffer(buffering: int) -> None:
    """Pipes write and read fewer bytes at a time than requested."""
    sent = [model(seed) for seed in (1, 2)]
    reading, writing = os.pipe()
    with open(reading, "rb", buffering) as source, open(writing, "wb", buffering) as sink:
        sender = threading.Thread(target=lambda: [vae.save_state(sink) for vae in sent], daemon=True)
        sender.start()
        received = [model(9), model(9)]
        for vae in received:
            vae.load_state(source)
        sender.join()
    assert all(same(*pair) for pair in zip(sent, received, strict=True))


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_stream_may_give_other_bytes_than_bytes_and_fewer_than_asked_for(kind: Any) -> None:
    class Other(io.BytesIO):
        def read(self, size: int | None = -1) -> Any:
            return kind(super().read(min(size or 0, 1000)))

    vae = model(2)
    vae.load_state(Other(state_of(model(1))))
    assert same(vae, model(1))


def test_models_with_a_compiled_part_write_and_read_the_same_bytes() -> None:
    first, second = model(1), model(2)
    for vae in (first, second):
        vae.decoder = torch.compile(vae.decoder)  # type: ignore[assignment]
    assert state_of(first) == state_of(model(1))
    second.load_state(io.BytesIO(state_of(first)))
    assert same(first, second)


def test_a_changed_model_is_refused_and_nothing_is_written() -> None:
    vae, stream = model(1), io.BytesIO()
    vae.quant_conv = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"the model: the weights do not fit(.|\n)*missing: quant_conv\.bias"):
        vae.save_state(stream)
    assert stream.getvalue() == b""


@pytest.mark.parametrize("value", ["5", "[2]", '"x"', "[]"])
def test_an_invalid_configuration_is_refused(value: str) -> None:
    config = f'{{"_class_name": "AutoencoderKL", "down_block_types": {value}, "up_block_types": {value}}}'
    data = save(model(1).state_dict(), metadata={"config": config})
    message = refused(model(2), io.BytesIO(data))
    assert message.startswith("the state in the stream: down_block_types: expected")


def test_sockets_and_archives_work(tmp_path: Path) -> None:
    vae, again = model(1), model(2)
    left, right = socket.socketpair()
    with left, right, left.makefile("wb") as sink, right.makefile("rb") as source:
        sender = threading.Thread(target=vae.save_state, args=(sink,), daemon=True)
        sender.start()
        again.load_state(source)
        sender.join()
    assert same(vae, again)
    with gzip.open(tmp_path / "state.gz", "wb") as stream:
        vae.save_state(stream)
    with gzip.open(tmp_path / "state.gz", "rb") as stream:
        (again := model(3)).load_state(stream)
    assert same(vae, again)
    with zipfile.ZipFile(tmp_path / "states.zip", "w") as archive, archive.open("first", "w") as stream:
        vae.save_state(stream)
    with zipfile.ZipFile(tmp_path / "states.zip") as archive, archive.open("first") as stream:
        (again := model(3)).load_state(stream)
    assert same(vae, again)


def test_a_stream_that_writes_parts_and_one_that_returns_nothing_get_everything() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:1000])

    class Silent(io.BytesIO):
        def write(self, data: Any) -> Any:
            super().write(data)

    for stream in (Slow(), Silent()):
        model(1).save_state(stream)
        assert stream.getvalue() == state_of(model(1))


def test_the_model_keeps_its_type_and_its_parameters_and_owns_its_weights() -> None:
    first, second = model(1), model(2).to(torch.bfloat16)
    parameters = list(second.parameters())
    data = bytearray(state_of(first))
    second.load_state(io.BytesIO(data))
    assert second.dtype == torch.bfloat16
    assert all(before is after for before, after in zip(parameters, second.parameters(), strict=True))
    assert same(second, first.to(torch.bfloat16))


def test_fields_that_do_not_change_the_network_are_taken_over() -> None:
    changes: dict[str, Any] = {
        "scaling_factor": 0.3,
        "latents_mean": (0.1, 0.2, 0.3, 0.4),
        "latents_std": (1.0, 2.0, 3.0, 4.0),
        "sample_size": 64,
        "force_upcast": False,
    }
    vae = model(2, scaling_factor=0.9)
    vae.load_state(io.BytesIO(state_of(model(1, **changes))))
    assert vae.config == replace(CONFIG, **changes)
    vae.load_state(io.BytesIO(state_of(model(1, shift_factor=0.5))))
    assert vae.config == replace(CONFIG, shift_factor=0.5)


def test_another_architecture_is_refused_field_by_field() -> None:
    message = refused(model(2), io.BytesIO(state_of(model(1, act_fn="silu", latent_channels=8, scaling_factor=0.3))))
    assert "act_fn: expected gelu, got silu" in message
    assert "latent_channels: expected 4, got 8" in message
    assert "scaling_factor" not in message


@pytest.mark.parametrize("end", [0, 1, 7, 8, 9, 100, 2000, 20000, -1])
def test_a_stream_that_ends_too_early_is_refused(end: int) -> None:
    data = state_of(model(1))
    end = end if end >= 0 else len(data) - 1
    message = refused(model(2), io.BytesIO(data[:end]))
    assert ("is empty" if end == 0 else "ends too early") in message


def test_after_the_last_state_the_stream_is_at_its_end() -> None:
    stream, vae = io.BytesIO(state_of(model(1))), model(2)
    vae.load_state(stream)
    assert "is empty, or at its end" in refused(vae, stream)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 5000,
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (30).to_bytes(8, "little") + b'{"a": {"data_offsets": [0, 9]}}'.ljust(40),
        (8).to_bytes(8, "little") + b"\xff" * 8,
        (40).to_bytes(8, "little") + b'{"a": {"data_offsets": [0, 1e999]}}'.ljust(40),
        (40).to_bytes(8, "little") + b'{"a": {"data_offsets": [0, -4]}}'.ljust(40),
        (60_000).to_bytes(8, "little") + b"[" * 60_000,
        (70).to_bytes(8, "little") + b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}'.ljust(80),
    ],
    ids=range(10),
)
def test_other_bytes_are_refused(data: bytes) -> None:
    message = refused(model(2), io.BytesIO(data))
    assert "save_state" in message


def test_other_bytes_are_refused_without_waiting_for_more_of_them() -> None:
    stream = io.BytesIO(b"<html><body>" * 100)
    assert "it begins with b'<html><b'" in refused(model(2), stream)
    assert stream.tell() == 8


def test_more_bytes_than_the_model_can_have_are_refused_without_reading_them() -> None:
    state = state_of(model(1))
    size = int.from_bytes(state[:8], "little")
    header = json.loads(state[8 : 8 + size])
    header["a"] = {"dtype": "U8", "shape": [10**15], "data_offsets": [0, 10**15]}
    head = json.dumps(header).encode()
    stream = io.BytesIO(len(head).to_bytes(8, "little") + head + bytes(100))
    assert "claims 1,000,000,000,000,000 bytes of tensors; expected at most" in refused(model(2), stream)
    assert stream.tell() == 8 + len(head)


def test_a_large_header_is_refused_without_reading_it() -> None:
    stream = io.BytesIO((5_000_000).to_bytes(8, "little") + b"{" * 5_000_000)
    assert "got something else" in refused(model(2), stream)
    assert stream.tell() == 8


def test_a_state_without_its_configuration_or_with_other_tensors_is_refused() -> None:
    weights = model(1).state_dict()
    assert "no configuration" in refused(model(2), io.BytesIO(save(weights)))
    with_config = state_of(model(1))
    size = int.from_bytes(with_config[:8], "little")
    renamed = with_config[: 8 + size].replace(b'"quant_conv.bias"', b'"quant_conv.bIas"') + with_config[8 + size :]
    message = refused(model(2), io.BytesIO(renamed))
    assert "missing: quant_conv.bias (8,)" in message and "unknown: quant_conv.bIas (8,)" in message


def test_values_that_are_not_finite_in_the_models_type_are_refused() -> None:
    spoiled = model(1)
    spoiled.state_dict()["decoder.conv_out.bias"][0] = float("nan")
    assert "NaN or infinity in decoder.conv_out.bias" in refused(model(2), io.BytesIO(state_of(spoiled)))
    large = model(1)
    large.state_dict()["decoder.conv_out.bias"][0] = 1e6
    model(2).load_state(io.BytesIO(state_of(large)))
    with pytest.raises(ValueError, match=r"torch\.float16 cannot hold the values of decoder\.conv_out\.bias"):
        model(2).half().load_state(io.BytesIO(state_of(large)))


def closed() -> io.BytesIO:
    stream = io.BytesIO(state_of(model(1)))
    stream.close()
    return stream


@pytest.mark.parametrize(
    "stream",
    [
        lambda: io.StringIO("text"),
        lambda: io.StringIO(),
        lambda: tempfile.TemporaryFile("w+"),  # noqa: SIM115
        closed,
        lambda: open(os.devnull, "wb"),  # noqa: SIM115
        lambda: "state.safetensors",
        lambda: None,
    ],
    ids=["text", "empty text", "text file", "closed", "only for writing", "a path", "nothing"],
)
def test_anything_but_a_readable_binary_stream_is_refused(stream: Any) -> None:
    assert "expected a binary stream" in refused(model(2), stream())


@pytest.mark.parametrize(
    "stream",
    [
        io.StringIO,
        lambda: tempfile.TemporaryFile("w"),  # noqa: SIM115
        closed,
        lambda: open(os.devnull, "rb"),  # noqa: SIM115
        lambda: "state.safetensors",
        lambda: None,
    ],
    ids=["text", "text file", "closed", "only for reading", "a path", "nothing"],
)
def test_anything_but_a_writable_binary_stream_is_refused(stream: Any) -> None:
    with pytest.raises(ValueError, match="expected a binary stream that is open for writing"):
        model(1).save_state(stream())


@pytest.mark.skipif(not hasattr(os, "set_blocking"), reason="needs os.set_blocking")
def test_a_stream_that_does_not_wait_is_an_error_not_a_loop() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    with open(reading, "rb", 0) as source, open(writing, "wb", 0) as sink:
        assert "waits for its data" in refused(model(2), source)
        with pytest.raises(BlockingIOError):
            model(1).save_state(sink)


def test_the_error_of_a_full_disk_is_not_changed() -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        model(1).save_state(Full())
