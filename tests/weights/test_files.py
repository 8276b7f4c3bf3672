"""Files of tensors: reading single tensors, memory, and pickles, in which nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from klvae_edu.weights.checks import MAX_LISTED, shortened
from klvae_edu.weights.files import (
    SafetensorsFile,
    atomic_write,
    is_pickle,
    order_metadata,
    read_pickle,
    weights_sha256,
)

GIGABYTE = 1 << 30


class Attack:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


OLD_FORMAT = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])


@OLD_FORMAT
def test_a_pickle_of_tensors_and_numbers_is_read(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": {"a": torch.arange(3.0)}, "step": 7, "names": ["x", None, (1.5, True)]}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "w.ckpt")
    assert torch.equal(found["state_dict"].pop("a"), torch.arange(3.0))
    assert found == {"state_dict": {}, "step": 7, "names": ["x", None, (1.5, True)]}


@OLD_FORMAT
def test_nothing_in_a_pickle_is_executed(tmp_path: Path, zipped: bool) -> None:
    planted = tmp_path / "executed"
    content = {"a": torch.zeros(1), "b": Attack(planted)}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="tensors and nothing else, but it asks for"):
        read_pickle(tmp_path / "w.ckpt")
    assert not planted.exists()
    torch.load(tmp_path / "w.ckpt", weights_only=False)
    assert planted.exists()  # the attack works


@OLD_FORMAT
@pytest.mark.parametrize("function", [os.system, eval, Path.touch], ids=["os", "builtins", "pathlib"])
def test_whatever_a_pickle_would_run_is_named_and_not_called_damaged(tmp_path: Path, zipped: bool, function) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return (function, ("nothing",))

    torch.save({"a": Call()}, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"it asks for [\w.]*(system|eval|getattr|touch)\b.*weights_only=False"):
        read_pickle(tmp_path / "w.ckpt")


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def callback(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """A class like Lightning's: its module exists while a file is written, and is removed when the file is read."""
    module = ModuleType(f"{request.param}.callbacks.model_checkpoint")
    parent = ""
    for part in module.__name__.split(".")[:-1]:
        parent = f"{parent}.{part}".lstrip(".")
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("class ModelCheckpoint:\n    def __setstate__(self, state): raise AssertionError('built')", module.__dict__)
    return module.__dict__["ModelCheckpoint"]


def saved_by_lightning(path: Path, callback: type, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    settings = callback()
    settings.mode = "min"
    kept = {"callbacks": {callback: {"best": np.float64(0.5), "dirpath": "logs"}}, "callback": settings}
    torch.save({"state_dict": {"a": torch.arange(3.0)}, **kept, **more}, path)
    monkeypatch.undo()
    assert callback.__module__ not in sys.modules


def test_the_bookkeeping_of_lightning_and_numbers_of_numpy_are_read_without_their_classes(
    tmp_path: Path, callback: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_by_lightning(tmp_path / "sd.ckpt", callback, monkeypatch)
    allowed = set(torch.serialization.get_safe_globals())
    found = read_pickle(tmp_path / "sd.ckpt")
    assert torch.equal(found["state_dict"]["a"], torch.arange(3.0))
    assert vars(found["callback"]) == {}  # a placeholder without the callback's state
    assert set(torch.serialization.get_safe_globals()) == allowed
    with pytest.raises(pickle.UnpicklingError):  # PyTorch's list of allowed classes is unchanged
        torch.load(tmp_path / "sd.ckpt", weights_only=True)


@pytest.mark.parametrize("content", [Fraction(1, 2), Path("logs"), Attack], ids=["class", "path", "program"])
def test_a_file_of_lightnings_with_anything_else_in_it_is_refused(
    tmp_path: Path, callback: type, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    planted = tmp_path / "executed"
    more = Attack(planted) if content is Attack else content
    saved_by_lightning(tmp_path / "sd.ckpt", callback, monkeypatch, more=more)
    allowed = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match=r"it asks for .*(fractions|pathlib)"):
        read_pickle(tmp_path / "sd.ckpt")
    assert not planted.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_name_that_only_resembles_lightnings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lightning_like")
    monkeypatch.setitem(sys.modules, "lightning_like", module)
    exec("class Callback: pass", module.__dict__)
    torch.save({"a": torch.ones(1), "b": module.__dict__["Callback"]()}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"it asks for lightning_like\.Callback"):
        read_pickle(tmp_path / "w.ckpt")


def test_classes_in_a_bare_pickle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Attack(tmp_path / "executed")))
    with pytest.raises(ValueError, match="tensors and nothing else"):
        read_pickle(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


@OLD_FORMAT
def test_a_pickle_with_classes_names_them_and_the_command_that_converts_it(tmp_path: Path, zipped: bool) -> None:
    """The pickle is like a training framework's: it contains callbacks and their settings besides the weights."""
    path = tmp_path / "with spaces.ckpt"
    weights = {"a": torch.arange(4.0).view(2, 2).T, "b": torch.ones(2)}
    content = {"state_dict": weights, "lr": Fraction(1, 3)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        read_pickle(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "fractions.Fraction" in message
    assert "\n" not in message and "weights_only=False" in message

    command = shlex.split(message[message.index("python -c") :])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    found = SafetensorsFile(tmp_path / "converted.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x80\x02", bytes(1000), b"\x80\x02}q\x01(X"])
def test_other_content_is_reported_as_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pt: expected a file of tensors and nothing else, got a damaged file"):
        read_pickle(tmp_path / "w.pt")


@OLD_FORMAT
def test_a_pickle_cut_off_or_altered_anywhere_is_a_value_error_or_still_whole(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": torch.ones(50)}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    damaged = [whole[:end] for end in range(0, len(whole), 37)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    refused = 0
    for data in damaged:
        (tmp_path / "w.pt").write_bytes(data)
        try:
            read_pickle(tmp_path / "w.pt")
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / 'w.pt'}: expected")
            refused += 1
    assert refused > len(damaged) // 4


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
    for read in (read_pickle, SafetensorsFile):
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
from klvae_edu.weights.files import SafetensorsFile, read_pickle
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = SafetensorsFile(path) if path.suffix == ".safetensors" else read_pickle(path)["state_dict"]
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
