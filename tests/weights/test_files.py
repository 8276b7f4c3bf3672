"""Files of tensors: reading single tensors, memory, and the format of a file."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from klvae_edu.weights.checks import MAX_LISTED, shortened
from klvae_edu.weights.files import SafetensorsFile, atomic_write, is_pickle, order_metadata, weights_sha256
from klvae_edu.weights.torch_files import read_torch_file

GIGABYTE = 1 << 30


@pytest.mark.parametrize(
    ("content", "names", "expected"),
    [
        (save({"a": torch.ones(1)}), ["w.ckpt", "w.safetensors"], False),
        (b"\x80\0\0\0\0\0\0\0{", ["w.ckpt", "w.sft"], False),  # the header's length may look like the start of a pickle
        (pickle.dumps({}), ["w.pt", "w.safetensors", "w.sft"], True),
        (b"PK\x03\x04 and so on", ["w.pt", "w.safetensors"], True),
        (b"", ["w.pt", "w.CKPT", "w.bin"], True),
        (b"<html>{", ["w.safetensors", "w.sft", "w.SafeTensors"], False),
        (b"<html>  {", ["w.ckpt"], True),
    ],
    ids=range(7),
)
def test_the_format_is_recognised_by_the_first_bytes_or_the_name(
    tmp_path: Path, content: bytes, names: list[str], expected: bool
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(content)
        assert is_pickle(tmp_path / name) is expected, name


def test_threads_can_write_the_same_file(tmp_path: Path) -> None:
    both_write = threading.Barrier(2)
    errors: list[Exception] = []

    def write(text: str) -> None:
        try:
            with atomic_write(tmp_path / "file") as path:
                both_write.wait(timeout=60)
                path.write_text(text)
                both_write.wait(timeout=60)
                assert path.read_text() == text
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter * 9,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (tmp_path / "file").read_text() in ("aaaaaaaaa", "bbbbbbbbb")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    for read in (read_torch_file, SafetensorsFile):
        with pytest.raises(FileNotFoundError, match=r"no\.file"):
            read(tmp_path / "no.file")


def test_a_safetensors_file_is_a_mapping_of_its_tensors(tmp_path: Path) -> None:
    save_file({"b": torch.ones(2), "a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"key": "value"})
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert sorted(file) == ["a", "b"] and len(file) == 2
    assert "a" in file and "c" not in file and file.get("c") is None
    assert torch.equal(file["b"], torch.ones(2))
    assert file.metadata == {"key": "value"}
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert SafetensorsFile(tmp_path / "w.safetensors").metadata == {}


def test_a_tensor_of_a_type_that_pytorch_lacks_is_named(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "F6_E2M3", "shape": [8], "data_offsets": [0, 6]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(6))
    with pytest.raises(
        ValueError, match=r"a cannot be read \(.*F6_E2M3|a damaged or incomplete safetensors file \(.*F6_E2M3"
    ):
        SafetensorsFile(tmp_path / "w.safetensors")["a"]


def test_a_truncated_safetensors_file_is_reported(tmp_path: Path) -> None:
    whole = save({"a": torch.ones(20), "b": torch.ones(3)})
    for end in range(0, len(whole), 5):
        (tmp_path / "w.safetensors").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="a damaged or incomplete safetensors file"):
            SafetensorsFile(tmp_path / "w.safetensors")


def sparse_safetensors(path: Path) -> None:
    """Write a large sparse tensor of zeros, which takes no disk space, before a small one."""
    ends = (GIGABYTE, GIGABYTE + 4)
    header = {
        "large": {"dtype": "F32", "shape": [GIGABYTE // 4], "data_offsets": [0, ends[0]]},
        "small": {"dtype": "F32", "shape": [1], "data_offsets": list(ends)},
    }
    data = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + ends[1])


def sparse_pickle(path: Path) -> None:
    with torch.serialization.skip_data():
        torch.save({"state_dict": {"large": torch.empty(GIGABYTE // 4), "small": torch.zeros(1)}}, path)


TAKE_ONE = """
import resource, sys
from pathlib import Path
from klvae_edu.weights.files import SafetensorsFile
from klvae_edu.weights.torch_files import read_torch_file
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = SafetensorsFile(path) if path.suffix == ".safetensors" else read_torch_file(path).content["state_dict"]
assert len(weights) == 2 and weights["small"].clone().item() == 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux counts it")
@pytest.mark.parametrize("write", [sparse_safetensors, sparse_pickle])
def test_reading_a_small_tensor_of_a_large_file_takes_little_memory(tmp_path: Path, write) -> None:
    path = tmp_path / ("w.safetensors" if write is sparse_safetensors else "w.ckpt")
    write(path)
    assert os.stat(path).st_size > GIGABYTE
    done = subprocess.run([sys.executable, "-c", TAKE_ONE, str(path)], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 100  # MB


def test_metadata_are_sorted_so_that_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    path, files = tmp_path / "w.safetensors", set()
    metadata = {"format": "pt", "config": '{"text": "é \\"quoted\\" \\n"}', "z": "", "a": "1"}
    for _ in range(8):
        save_file({"b": torch.ones(2), "a": torch.zeros(1)}, path, metadata=metadata)
        with open(path, "rb+") as file:
            order_metadata(file)
        files.add(path.read_bytes())
        assert SafetensorsFile(path).metadata == metadata
        assert torch.equal(SafetensorsFile(path)["b"], torch.ones(2))
    assert len(files) == 1


def test_the_checksum_of_weights_changes_with_names_and_values_but_not_with_their_order_or_type() -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0], [4.0]])}
    found = weights_sha256(weights)
    assert re.fullmatch("[0-9a-f]{64}", found)
    assert weights_sha256(dict(reversed(weights.items()))) == found
    assert weights_sha256({name: tensor.half() for name, tensor in weights.items()}) == found
    assert weights_sha256(weights | {"b": torch.tensor([[3.0], [4.5]])}) != found
    assert weights_sha256({"a": weights["b"], "b": weights["a"]}) != found
    assert weights_sha256({"a": weights["a"].flip(0), "b": weights["b"]}) != found
    strided = torch.tensor([[1.0, 9.0], [2.0, 9.0]])[:, 0].requires_grad_()
    assert weights_sha256(weights | {"a": strided}) == found


def test_a_long_list_is_shortened_with_a_count() -> None:
    lines = [str(number) for number in range(MAX_LISTED)]
    assert shortened(lines) == lines
    assert shortened([*lines, "x", "y"]) == [*lines, "… and 2 more"]
