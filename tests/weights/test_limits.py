"""Files that claim too much are refused: no more memory is taken than twice their size and 200 MB, and little time.

All of them are harmless: they hold zeros, and nothing in them would run.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.weights.files import MAX_JSON
from klvae_edu.weights.pickles import MAX_STEPS

MB = 1_000_000
EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
ONE_NUMBER = torch.zeros(1)

CASES: dict[str, tuple[Callable[[Path], Any], str]] = {}

Write = Callable[[Path], Any]


def case(name: str, message: str) -> Callable[[Write], Write]:
    """Register what writes the file `name`, and a part of the message that refuses it."""

    def register(write: Write) -> Write:
        CASES[name] = write, message
        return write

    return register


def with_header(path: Path, header: str, rest: int = 0) -> None:
    """Write a safetensors file with `rest` bytes of zeros, which take no disk space."""
    text = header.encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + rest)


def with_names(path: Path, name: str, count: int) -> None:
    with_header(path, "{" + ",".join(f'"{name.format(i)}":{EMPTY}' for i in range(count)) + "}")


def with_pickle(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Write an archive as `torch.save` does, with this pickle and without a tensor."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", content)


def with_config(folder: Path, **fields: Any) -> None:
    """Write a folder in diffusers' layout, whose config.json asks for another network than its small weights."""
    model = AutoencoderKL.from_preset("tiny")
    model.save_pretrained(folder)
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(values))


@case("claims.safetensors", "damaged or incomplete")
def _(path: Path) -> None:
    size = 4 * 10**12
    with_header(path, json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, size]}}))


@case("length.safetensors", "damaged or incomplete")
def _(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


@case("header.safetensors", "expected a header of at most")
def _(path: Path) -> None:
    with_header(path, '{"__metadata__":{' + ",".join(f'"{i:x}":""' for i in range(MAX_JSON // 10)) + '}, "a":' + EMPTY)


@case("configuration.safetensors", "no autoencoder in it")
def _(path: Path) -> None:
    config = json.dumps({"_class_name": [{}] * 900_000})
    with_header(path, json.dumps({"__metadata__": {"config": config}}))


@case("names.safetensors", "no autoencoder in it")
def _(path: Path) -> None:
    with_names(path, "{:x}", 30_000)


@case("roots.safetensors", "no autoencoder in it")
def _(path: Path) -> None:
    with_names(path, "encoder." * 9 + "{}.weight", 8_000)


@case("levels.safetensors", "tensors of an autoencoder; expected at most")
def _(path: Path) -> None:
    with_names(path, "encoder.down_blocks.{0}.resnets.0.conv1.bias", 10_001)


@case("name.safetensors", "a name of 3,200,000 characters")
def _(path: Path) -> None:
    with_names(path, "encoder." * 400_000, 1)


@case("sparse.safetensors", "no autoencoder in it")
def _(path: Path) -> None:
    size = 2**33
    with_header(path, json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}), size)


@case("index.safetensors.index.json", "of JSON")
def _(path: Path) -> None:
    path.write_text(json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(150_000)}}))


@case("config of millions", "do not fit|no model can be built")
def _(path: Path) -> None:
    with_config(path, block_out_channels=[32 * MB] * 3)


@case("config of layers", "expected a network of at most 10,000 tensors")
def _(path: Path) -> None:
    with_config(path, layers_per_block=10**9)


@case("config of levels", "expected a network of at most 10,000 tensors")
def _(path: Path) -> None:
    with_config(path, block_out_channels=[32] * 100_000, down_block_types=None, up_block_types=None)


@case("config of text", "of JSON")
def _(path: Path) -> None:
    with_config(path, _x=[{}] * 2_000_000)


@case("expanded.pt", "more than 4 times its size")
def _(path: Path) -> None:
    torch.save({"encoder.conv_in.weight": ONE_NUMBER.expand(2**32)}, path)


@case("expanded in parts.pt", "more than 4 times its size")
def _(path: Path) -> None:
    shapes = {name: tensor.shape for name, tensor in AutoencoderKL.from_preset("tiny").state_dict().items()}
    torch.save({name: ONE_NUMBER.expand(shape) for name, shape in shapes.items()}, path)


@case("views.pt", "more than 4 times its size")
def _(path: Path) -> None:
    whole = torch.zeros(MB)
    torch.save({f"encoder.{i}": whole[i:] for i in range(1_000)}, path)


@case("expanded, before PyTorch 1.6.pt", "more than 4 times its size")
def _(path: Path) -> None:
    torch.save({"encoder.conv_in.weight": ONE_NUMBER.expand(2**32)}, path, _use_new_zipfile_serialization=False)


@case("beyond its storage.pt", "a tensor beyond its storage|is not whole")
def _(path: Path) -> None:
    torch.save({"encoder.conv_in.weight": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    shape = b"K\x04\x85"  # the shape, (4,), as the pickle has it
    assert whole.count(shape) == 1
    path.write_bytes(whole.replace(shape, b"K\x40\x85"))


@case("compressed tensors.pt", "whose records are compressed")
def _(path: Path) -> None:
    stored = io.BytesIO()
    torch.save({"encoder.conv_in.weight": torch.zeros(2 * MB)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))


@case("compressed pickle.pt", "whose records are compressed")
def _(path: Path) -> None:
    with_pickle(path, b"\x80\x02(" + b"}" * 20 * MB + b"l.", zipfile.ZIP_DEFLATED)


@case("records.pt", "a damaged file")
def _(path: Path) -> None:
    """A directory with the same record again and again."""
    with_pickle(path, b"N.")
    whole = path.read_bytes()
    start, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    directory = whole[start:end] * 80_000
    numbers = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, len(directory), start, 0)
    path.write_bytes(whole[:start] + directory + numbers)


@case("dicts.pt", f"more than {MAX_STEPS:,} entries")
def _(path: Path) -> None:
    with_pickle(path, b"\x80\x02(" + b"}" * 2 * MB + b"l.")


@case("dicts in dicts.pt", f"more than {MAX_STEPS:,} names")
def _(path: Path) -> None:
    content: dict[str, Any] = {}
    for _ in range(10):
        content = {str(i): content for i in range(100)}  # 100 ** 10 names
    torch.save(content, path)


@case("itself.pt", f"more than {MAX_STEPS:,} names")
def _(path: Path) -> None:
    content: dict[str, Any] = {}
    content |= dict.fromkeys("abcdefgh", content)
    torch.save(content, path)


@case("deep.pt", "expected tensors by name")
def _(path: Path) -> None:
    with_pickle(path, b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")


@case("memo.pt", "no autoencoder in it")
def _(path: Path) -> None:
    with_pickle(path, b"\x80\x02}r\xff\xff\xff\x7f.")  # place 2**31 - 1 of the memo


@case("bytes.pt", "a damaged file")
def _(path: Path) -> None:
    with_pickle(path, b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".")  # claims a terabyte of bytes


@case("calls.pt", "objects of 2 classes .*bytearray.*encode")
def _(path: Path) -> None:
    """Calls that Python would answer with gigabytes: 8 GB of zeros, and text that doubles again and again."""
    grow = b"0h\x01h\x02X\x03\0\0\0hex\x86Rq\x02" * 30
    zeros = b"c__builtin__\nbytearray\n\x8a\x05" + (8 * 10**9).to_bytes(5, "little") + b"\x85R"
    with_pickle(path, b"\x80\x02" + zeros + b"0c_codecs\nencode\nq\x01X\x02\0\0\0abq\x02" + grow + b".")


@case("hashes.pt", "no autoencoder in it")
def _(path: Path) -> None:
    """Whole numbers that have the same hash, as keys."""
    keys = b"".join(b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N" for i in range(1, 20_000))
    with_pickle(path, b"\x80\x02}(" + keys + b"u.")


@case("sparse.ckpt", "a damaged file")
def _(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**33)


REFUSE = """
import json, sys, warnings
from klvae_edu import AutoencoderKL

def memory(kind):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(kind))

warnings.simplefilter("ignore")
AutoencoderKL.from_bundled()
for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = memory("VmRSS")
    try:
        AutoencoderKL.from_any(path)
        message = "it was read"
    except ValueError as error:
        message = str(error)
    print(json.dumps([message, memory("VmHWM") - before]), flush=True)
"""


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux counts it")
def test_a_file_that_claims_too_much_is_refused_in_twice_its_size_and_200_megabytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in CASES]
    for path, (write, _) in zip(paths, CASES.values(), strict=True):
        write(path)
    done = subprocess.run([sys.executable, "-c", REFUSE, *map(str, paths)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for path, (message, taken), (_, expected) in zip(paths, found, CASES.values(), strict=True):
        with pytest.raises(ValueError, match=expected):
            raise ValueError(message)
        assert taken < 2 * size_of(path) + 200 * MB, path.name
        assert len(message) < 10_000, path.name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vae.ckpt")
    with pytest.raises(ValueError, match="expected a file, got a device or a pipe"):
        AutoencoderKL.from_single_file(tmp_path / "vae.ckpt")


def test_a_tensor_that_repeats_a_few_numbers_and_two_names_of_one_tensor_are_read(tmp_path: Path) -> None:
    model = AutoencoderKL(AutoencoderKLConfig.from_preset("tiny", norm_num_groups=32))
    weights = model.state_dict()
    weights["encoder.conv_norm_out.weight"] = ONE_NUMBER.expand(64)
    torch.save({"model": weights, "again": {"model": {**weights}}}, tmp_path / "vae.pt")
    read = AutoencoderKL.from_single_file(tmp_path / "vae.pt", prefix="model")
    assert torch.equal(read.state_dict()["encoder.conv_norm_out.weight"], torch.zeros(64))
    assert torch.equal(read.state_dict()["encoder.conv_in.weight"], weights["encoder.conv_in.weight"])
