"""Files of `torch.save`: they are read as data, and nothing in them is imported, called or built."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from klvae_edu.weights.contents import open_contents
from klvae_edu.weights.pickles import Placeholder
from klvae_edu.weights.torch_files import read_torch_file

OLD_FORMAT = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])


class Planted:
    """An object whose pickle creates a file when Python loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@OLD_FORMAT
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_tensors_and_numbers_is_read(tmp_path: Path, zipped: bool, protocol: int) -> None:
    content = {"state_dict": {"a": torch.arange(3.0)}, "step": 7, "names": ["x", None, (1.5, True)], "no": False}
    torch.save(content, tmp_path / "w.ckpt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found, foreign = read_torch_file(tmp_path / "w.ckpt")
    assert torch.equal(found["state_dict"].pop("a"), torch.arange(3.0))
    assert found == {"state_dict": {}, "step": 7, "names": ["x", None, (1.5, True)], "no": False}
    assert foreign == []


@OLD_FORMAT
def test_tensors_have_their_type_shape_and_place_in_a_shared_storage(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    weights = {
        "transposed": whole.T,
        "row": whole[2],
        "parameter": nn.Parameter(torch.ones(2, 2)),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "half": torch.ones(3).half(),
        "bfloat16": torch.ones(3).bfloat16(),
        "float8": torch.ones(5).to(torch.float8_e4m3fn),
        "uint16": torch.ones(5, dtype=torch.uint16),
        "bool": torch.tensor([True, False]),
    }
    torch.save(weights, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "w.pt").content
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].float(), tensor.detach().float()), name
        assert not found[name].requires_grad


@OLD_FORMAT
def test_nothing_in_a_pickle_is_executed_and_the_tensors_beside_it_are_read(tmp_path: Path, zipped: bool) -> None:
    planted = tmp_path / "executed"
    content = {"a": torch.arange(3.0), "b": Planted(planted)}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    found, foreign = read_torch_file(tmp_path / "w.ckpt")
    assert torch.equal(found["a"], torch.arange(3.0)) and isinstance(found["b"], Placeholder)
    assert any("pathlib" in name for name in foreign)
    assert not planted.exists()
    pickle.loads(pickle.dumps(content["b"]))
    assert planted.exists()  # Python would have done it


@OLD_FORMAT
@pytest.mark.parametrize("function", [os.system, eval, Path.touch], ids=["os", "builtins", "pathlib"])
def test_whatever_a_pickle_would_run_is_named(tmp_path: Path, zipped: bool, function: Any) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return (function, ("nothing",))

    torch.save({"a": Call()}, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    assert any(name.split(".")[-1] in ("system", "eval", "getattr") for name in read_torch_file(tmp_path / "w.ckpt")[1])


def test_classes_are_not_imported_and_their_items_and_state_are_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("lightning_like")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    program = (
        "class Callback:\n    def __setstate__(self, state): raise AssertionError('built')\nclass Table(dict): pass"
    )
    exec(program, module.__dict__)
    callback, table = module.__dict__["Callback"](), module.__dict__["Table"](a=1)
    callback.mode = "min"
    kept = {"callbacks": {type(callback): np.float64(0.5)}, "callback": callback, "table": table}
    torch.save({"state_dict": {"a": torch.arange(3.0)}, **kept}, tmp_path / "sd.ckpt")
    monkeypatch.undo()
    found, foreign = read_torch_file(tmp_path / "sd.ckpt")
    assert torch.equal(found["state_dict"]["a"], torch.arange(3.0))
    assert found["callback"] == {"mode": "min"} and found["table"] == {"a": 1} and found["callbacks"] == {}
    assert {"lightning_like.Callback", "lightning_like.Table"} < set(foreign)
    assert module.__name__ not in sys.modules


@OLD_FORMAT
def test_the_weights_of_a_whole_module_have_the_names_of_its_state_dict(tmp_path: Path, zipped: bool) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Sequential(nn.BatchNorm2d(3)))
    torch.save(module, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    contents = open_contents(tmp_path / "w.pt")
    assert contents.tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(contents.tensors[name], tensor) for name, tensor in module.state_dict().items())
    assert "torch.nn.modules.conv.Conv2d" in contents.foreign


def test_objects_in_a_bare_pickle_are_not_built(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Planted(tmp_path / "executed")))
    with pytest.raises(ValueError, match="tensors and nothing else"):
        read_torch_file(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x80\x02", bytes(1000), b"\x80\x02}q\x01(X"])
def test_other_content_is_reported_as_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pt: expected a file of tensors and nothing else, got a damaged file"):
        read_torch_file(tmp_path / "w.pt")


@OLD_FORMAT
def test_a_pickle_cut_off_or_altered_anywhere_is_a_value_error_or_still_whole(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": torch.ones(50)}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    cut = [whole[:end] for end in range(0, len(whole), 37)]
    altered = [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    refused = 0
    for data in cut + altered:
        (tmp_path / "w.pt").write_bytes(data)
        try:
            read_torch_file(tmp_path / "w.pt")
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / 'w.pt'}: expected")
            refused += 1
    assert refused > len(cut)
