"""LPIPS: compare with the package `lpips`; use in training; all kinds of weight files."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator
from copy import deepcopy
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import alexnet
from torchvision.models.vgg import cfgs, make_layers

from klvae_edu.perceptual import LPIPS, SMALLEST_SIDE, TAPS

FILE = "vgg16-397923af.pth"  # as torchvision names it


@pytest.fixture(scope="module")
def ours() -> LPIPS:
    return LPIPS("untrained")


@pytest.fixture(scope="module")
def theirs(ours: LPIPS) -> nn.Module:
    """Build the package's network around the same VGG16, without its classifier, which would only take memory."""
    import lpips

    class Vgg16:
        features = make_layers(cfgs["D"], batch_norm=False)

    Vgg16.features[: TAPS[-1] + 1].load_state_dict(ours.trunk.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda pretrained: Vgg16)
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)


def images(seed: int = 0, side: int = 32, batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
    a = images()
    ramp = torch.linspace(-1, 1, 32).expand(3, 3, 32, 32)
    yield "noise", a, images(1)
    yield "a little noise", a, (a + 0.05 * images(2)).clamp(-1, 1)
    yield "a ramp and its mirror image", ramp, ramp.flip(3)
    yield "black and white", -torch.ones(3, 3, 32, 32), torch.ones(3, 3, 32, 32)
    yield "not square", images(3)[..., :24], images(4)[..., :24]


@pytest.mark.parametrize(("a", "b"), [pair[1:] for pair in pairs()], ids=[pair[0] for pair in pairs()])
def test_the_distance_is_that_of_the_package_lpips(ours: LPIPS, theirs: nn.Module, a: Tensor, b: Tensor) -> None:
    with torch.no_grad():
        expected = theirs(a, b).flatten()
        torch.testing.assert_close(ours(a, b), expected, rtol=1e-5, atol=1e-7)
    assert expected.min() > 1e-4


def test_so_is_its_gradient(ours: LPIPS, theirs: nn.Module) -> None:
    found = []
    for network in (ours, theirs):
        a = images().requires_grad_()
        network(a, images(1)).sum().backward()
        found.append(a.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6 * float(found[1].abs().max()))


def of_imagenets_mean(ours: LPIPS) -> Tensor:
    """Return images for which VGG16's input is 0. Untrained weights have zero biases, so each feature is 0 too."""
    return ours.shift.expand(2, 3, 16, 16).clone()


def without_relus(network: nn.Module) -> nn.Module:
    """Copy `network` without ReLUs: their backward pass stops a NaN where their output is 0."""
    network = deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())
    return network


@pytest.mark.parametrize("relu", [True, False])
def test_where_all_features_are_zero_the_gradient_is_finite(ours: LPIPS, theirs: nn.Module, relu: bool) -> None:
    """The package takes the square root of 0 there: without the ReLU before it, its gradient is not a number."""
    ours, theirs = (ours, theirs) if relu else (without_relus(ours), without_relus(theirs))
    for targets in (of_imagenets_mean(ours), images(side=16, batch=2)):
        a = of_imagenets_mean(ours).requires_grad_()
        assert all(x.abs().max() == 0 for x in ours.features(a))
        (gradient,) = torch.autograd.grad(ours(a, targets).sum(), a)
        assert gradient.isfinite().all()
        (gradient,) = torch.autograd.grad(theirs(a, targets).sum(), a)
        assert gradient.isfinite().all() == relu


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_the_gradient_on_constant_images_is_finite(ours: LPIPS, value: float) -> None:
    a = torch.full((1, 3, 16, 16), value, requires_grad=True)
    for targets in (a.detach().clone(), images(side=16, batch=1)):
        (gradient,) = torch.autograd.grad(ours(a, targets).sum(), a)
        assert gradient.isfinite().all()


def test_equal_images_have_the_distance_zero_and_others_do_not(ours: LPIPS) -> None:
    a, b = images(), images()
    b[1] = images(1)[1]
    distance = ours(a, b)
    assert distance.shape == (3,)
    assert distance[[0, 2]].tolist() == [0.0, 0.0]
    assert distance[1] > 0.01


def test_each_pair_is_judged_by_itself_and_both_ways_alike(ours: LPIPS) -> None:
    a, b = images(), images(1)
    together = ours(a, b)
    torch.testing.assert_close(together, torch.cat([ours(a[n : n + 1], b[n : n + 1]) for n in range(3)]))
    torch.testing.assert_close(ours(b, a), together)


def test_features_have_norm_one_at_each_of_five_scales(ours: LPIPS) -> None:
    features = ours.features(images())
    assert [tuple(x.shape) for x in features] == [
        (3, 64, 32, 32),
        (3, 128, 16, 16),
        (3, 256, 8, 8),
        (3, 512, 4, 4),
        (3, 512, 2, 2),
    ]
    for x in features:
        torch.testing.assert_close(x.norm(dim=1), torch.ones_like(x[:, 0]))


def test_untrained_weights_are_the_same_every_time_and_everywhere(ours: LPIPS) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = LPIPS("untrained")
    assert torch.equal(torch.get_rng_state(), state)  # drawn from a generator of its own
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert ours(ramp, -ramp.mT).item() == pytest.approx(0.183694, rel=1e-4)
    assert not ours.trained and ours.source == "untrained VGG16"


def test_the_gradient_reaches_both_images(ours: LPIPS) -> None:
    a, b = images().requires_grad_(), images(1).requires_grad_()
    ours(a, b).sum().backward()
    for x in (a, b):
        assert x.grad is not None
        assert (x.grad.flatten(1).norm(dim=1) > 0).all()


def test_nothing_in_it_can_be_trained(ours: LPIPS) -> None:
    parent = nn.ModuleDict({"lpips": deepcopy(ours), "other": nn.Linear(1, 1)})
    parent.requires_grad_(True)
    assert list(parent["lpips"].parameters()) == []
    assert not any(tensor.requires_grad for tensor in parent["lpips"].state_dict(keep_vars=True).values())
    assert not parent["lpips"](images(), images(1)).requires_grad


def test_a_parent_in_train_mode_changes_nothing(ours: LPIPS) -> None:
    parent = nn.ModuleDict({"lpips": ours, "other": nn.Dropout()})
    before = ours(images(), images(1))
    assert parent.train()["other"].training
    assert ours.train() is ours
    assert not any(module.training for module in ours.modules())
    assert not any(isinstance(module, nn.Dropout) for module in ours.modules())
    for _ in range(2):
        assert torch.equal(ours(images(), images(1)), before)


def test_under_autocast_it_is_computed_in_float32_all_the_same(ours: LPIPS) -> None:
    a, b = images().requires_grad_(), images(1)
    outside = ours(a, b)
    (gradient,) = torch.autograd.grad(outside.sum(), a)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ours(a, b)
        (gradient_inside,) = torch.autograd.grad(inside.sum(), a)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(gradient_inside, gradient)


def test_images_in_16_bits_are_compared_in_float32(ours: LPIPS) -> None:
    a, b = images().bfloat16(), images(1).bfloat16()
    found = ours(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, ours(a.float(), b.float()))


def test_it_can_be_moved_to_double_precision(ours: LPIPS) -> None:
    a, b = images().double(), images(1).double()
    exact = deepcopy(ours).double()(a, b)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(ours(a, b).double(), exact, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 32, 32), (1, 3, 32, 32)),
        ((2, 3, 32, 32), (2, 3, 32, 16)),
        ((2, 1, 32, 32), (2, 1, 32, 32)),
        ((2, 4, 32, 32), (2, 4, 32, 32)),
        ((3, 32, 32), (3, 32, 32)),
    ],
)
def test_other_shapes_are_a_value_error_that_names_them(ours: LPIPS, a: Any, b: Any) -> None:
    with pytest.raises(ValueError) as error:
        ours(torch.zeros(a), torch.zeros(b))
    assert str(error.value) == f"expected two batches of one shape (B, 3, H, W), got {a} and {b}"


def test_images_below_16_pixels_a_side_are_a_value_error(ours: LPIPS) -> None:
    assert SMALLEST_SIDE == 16
    assert ours(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)).isfinite().all()
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \(1, 3, 16, 15\)"):
        ours(torch.zeros(1, 3, 16, 15), torch.zeros(1, 3, 16, 15))


# Weight files. Each tensor is a single number, expanded: the file has kilobytes instead of 59 MB.


def of_one_number_each(trunk: nn.Module) -> dict[str, Tensor]:
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}
    return {name: torch.tensor((1 + n) / 2**14).expand(state[name].shape) for n, name in enumerate(state)}


@pytest.fixture
def weights(ours: LPIPS) -> dict[str, Tensor]:
    """Return weights as in torchvision's file, with a tensor of the classifier too."""
    return of_one_number_each(ours.trunk) | {"classifier.6.bias": torch.zeros(1000)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache of torch.hub, online; return the path of VGG16's file in it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / FILE


def no_network(*args: Any, **kwargs: Any) -> Any:
    raise URLError("Temporary failure in name resolution")


def never_called(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the network was asked")


def has(network: LPIPS, weights: dict[str, Tensor]) -> bool:
    found = network.trunk.state_dict()
    return all(torch.equal(tensor, weights[f"features.{name}"].float()) for name, tensor in found.items())


def test_weights_in_the_cache_are_used_without_a_network(
    hub: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", never_called)
    torch.save(weights, hub)
    network = LPIPS()
    assert network.trained and network.source == str(hub)
    assert has(network, weights)
    assert list(network.parameters()) == [] and not network.training


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt"])
def test_weights_can_be_in_any_file(
    name: str, tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", never_called)
    torch.save(weights, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        network = LPIPS(path)
        assert network.trained and network.source == str(path)
        assert has(network, weights)


def test_safetensors_files_can_be_read_and_half_precision_is_made_float32(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = tmp_path / "weights.safetensors"
    half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    save_file(half, path)
    network = LPIPS(path)
    path.unlink()  # 29 MB
    assert network.trained and network.source == str(path)
    assert has(network, half)
    assert {tensor.dtype for tensor in network.trunk.state_dict().values()} == {torch.float32}


def test_without_a_network_it_warns_once_and_continues_untrained(
    hub: Path, ours: LPIPS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.warns(UserWarning, match="VGG16's trained weights are not available") as caught:
        network = LPIPS()
    (warning,) = caught
    for what in (str(hub), "https://", "name resolution", "untrained", "pass its path"):
        assert what in str(warning.message)
    assert warning.filename == __file__  # it points to the line that created LPIPS
    assert not network.trained and network.source == ours.source
    assert torch.equal(network.trunk[0].weight, ours.trunk[0].weight)
    assert not hub.exists()


def test_offline_no_download_is_tried(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "urlopen", never_called)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.warns(UserWarning, match="HF_HUB_OFFLINE is set") as caught:
        assert not LPIPS().trained
    assert str(hub) in str(caught[0].message) and "https://" in str(caught[0].message)


class Answer(io.BytesIO):
    """The answer of a server: bytes, and a header that states their number."""

    def __init__(self, content: bytes, length: int) -> None:
        super().__init__(content)
        self.length = length

    def info(self) -> Any:
        headers = Message()
        headers["Content-Length"] = str(self.length)
        return headers


def test_an_interrupted_download_is_discarded(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch finds that the checksum differs, and deletes the file."""
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Answer(b"half of it", 20))
    with pytest.warns(UserWarning, match="VGG16's trained weights are not available"):
        assert not LPIPS().trained
    assert not hub.exists()


def test_named_weights_and_untrained_ones_never_warn(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "weights.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LPIPS("untrained")
        LPIPS(tmp_path / "weights.pth")


def test_a_missing_file_is_a_value_error_that_names_it(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ValueError, match="expected a file with the weights of torchvision's vgg16") as error:
            LPIPS(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "something else"])
def test_a_damaged_file_is_a_value_error_that_names_it(
    suffix: str, damage: str, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file({"features.0.bias": torch.zeros(64)}, path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) * 3 // 4], "empty": b"", "something else": b"<html>404"}[damage])
    with pytest.raises(ValueError, match="cannot be read as weights") as error:
        LPIPS(path)
    assert str(path) in str(error.value)


def test_a_damaged_file_in_the_cache_is_an_error_and_not_replaced_by_untrained_weights(hub: Path) -> None:
    hub.write_bytes(b"not what it was")
    with pytest.raises(ValueError, match="if it is damaged, delete it") as error:
        LPIPS()
    assert str(hub) in str(error.value)


def test_another_network_is_a_value_error_that_says_what_was_expected(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    with torch.device("meta"):
        other = alexnet().features
    missing = {name: tensor for name, tensor in weights.items() if name != "features.28.weight"}
    files: dict[str, Any] = {
        "alexnet": of_one_number_each(other),
        "no layer's name": {"conv1.weight": torch.zeros(1)},
        "one tensor short": missing,
        "one layer more": weights | {"features.30.weight": torch.zeros(1)},
        "wrapped": {"state_dict": weights},
        "numbers": dict.fromkeys(weights, 0.0),
    }
    for name, content in files.items():
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="expected the weights of torchvision's vgg16") as error:
            LPIPS(tmp_path / "weights.pth")
        assert str(tmp_path / "weights.pth") in str(error.value), name


def test_tensors_without_names_are_a_value_error_too(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as error:
        LPIPS(tmp_path / "weights.pth")
    assert str(tmp_path / "weights.pth") in str(error.value)


class Planted:
    """Create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch.save", "pickle", "in the cache"])
def test_code_in_a_file_is_not_executed(how: str, hub: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    trap = tmp_path / "executed"
    content = {**weights, "features.0.bias": Planted(trap)}
    path = hub if how == "in the cache" else tmp_path / "weights.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"features.0.bias": Planted(trap)}, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        LPIPS("auto" if how == "in the cache" else path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert trap.exists()  # an unsafe reader does execute it
