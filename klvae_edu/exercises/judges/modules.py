"""Judge `nn.Module` classes by their parameters, results and gradients.

The attempt and the reference class are built with the same arguments. Both must have parameters of the same names and
shapes. Then both get the same random weights, and their results are compared. Known mistakes are classes, too. Only
names, shapes, results and gradients count, not the code.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from klvae_edu.exercises.exercise import Blank, Judge, OpenGap, call, explain
from klvae_edu.exercises.judges.functions import Probe, judge_function, name_error, same, weighted_sum

Build = Callable[..., nn.Module]
ModuleMistake = tuple[str, Build]  # message, and a class that makes the mistake
_FLAT = 1e-3  # scale of feature maps so small that the eps of a norm shows


def judge_module(
    reference: Build,
    builds: Sequence[Probe],
    inputs: Callable[..., Probe] | Sequence[Probe],
    mistakes: Sequence[ModuleMistake],
    parts: Sequence[str],
    given: Sequence[str] = (),
) -> Judge:
    """Make a judge of `nn.Module` classes whose `forward` returns one tensor, or a tuple of tensors.

    Args:
        reference: the reference class.
        builds: arguments of the constructor, one tuple for each object to build.
        inputs: arguments of `forward`, one tuple for each build, or a function from the build's arguments to them.
        mistakes: tried in this order. They are recognised by their parameters or, if these are right, by their results
            or their exception. Most are subclasses of the reference.
        parts: names of the submodules that the text asks for.
        given: names of the submodules that the skeleton contains.
    """

    def judge(attempt: Any) -> str | None:
        if not isinstance(attempt, type):
            return f"expected the class itself, got an object of type {type(attempt).__name__}"
        if not issubclass(attempt, nn.Module):
            return f"it is no module, and its parameters would not be found: write class {attempt.__name__}(nn.Module)"
        probes = [inputs(*build) for build in builds] if callable(inputs) else inputs
        _require_all_gaps_filled(attempt, builds[0], probes[0], set(parts) - set(given))
        try:
            modules = [_build(attempt, build) for build in builds]
        except Exception as error:
            return name_error(error, mistakes, lambda code: [code(*build) for build in builds])
        finished = [_randomised(reference, build) for build in builds]
        complaint = _judge_parameters(modules, finished, mistakes, builds)
        if complaint:
            return complaint
        for module, right, build, probe in zip(modules, finished, builds, probes, strict=True):
            module.load_state_dict(right.state_dict())
            complaint = _judge_results(module, right, mistakes, build, probe)
            if complaint:
                return complaint if complaint in dict(mistakes) else f"{complaint}{_with(reference, build)}"
        return None

    return judge


def _require_all_gaps_filled(attempt: type[nn.Module], build: Probe, inputs: Probe, parts: set[str]) -> None:
    """Run `__init__` and `forward` separately, so that an unfinished `__init__` can be inspected.

    Raises:
        Blank: nothing is written yet.
        OpenGap: some gaps are filled, and others are open.
    """
    module = attempt.__new__(attempt)
    gaps = []
    try:
        call(lambda: (attempt.__init__(module, *build), "done")[1])
    except (Blank, OpenGap):
        gaps.append("__init__")
    except Exception:
        return  # the judge builds it again, and explains the exception
    gaps += [f"self.{name}" for name, value in vars(module).items() if value is ...]
    written = bool(parts & vars(module).get("_modules", {}).keys())
    try:
        call(attempt.forward, module, *copy.deepcopy(inputs))
        written = True
    except (Blank, OpenGap) as gap:  # an OpenGap in forward may come from a gap in __init__
        if isinstance(gap, Blank) or not gaps:
            gaps.append("forward")
    except Exception:
        written = True
    if gaps:
        raise OpenGap(", ".join(gaps)) if written else Blank


def _build(attempt: type[nn.Module], build: Probe) -> nn.Module:
    try:
        return attempt(*build)
    except AttributeError as error:
        if "before Module.__init__() call" in str(error):
            raise AttributeError("__init__ must begin with super().__init__()") from None
        raise


def _randomised(reference: Build, build: Probe) -> nn.Module:
    """Build the reference with random parameters. Untrained norms are all equal, which would hide exchanged ones."""
    torch.manual_seed(0)
    module = reference(*build)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else parameter + 0.3 * noise)
    return module


# Parameters


def _judge_parameters(
    modules: Sequence[nn.Module],
    finished: Sequence[nn.Module],
    mistakes: Sequence[ModuleMistake],
    builds: Sequence[Probe],
) -> str | None:
    found, right = [_shapes(module) for module in modules], [_shapes(module) for module in finished]
    if found == right:
        return None
    for message, code in mistakes:
        with contextlib.suppress(Exception):  # some cannot even be built
            if [_shapes(code(*build)) for build in builds] == found:
                return message
    wrong = [a == b for a, b in zip(found, right, strict=True)].index(False)
    complaint = _describe_parameters(modules[wrong], finished[wrong])
    return f"{complaint}{_with(type(finished[wrong]), builds[wrong])}"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _describe_parameters(module: nn.Module, right: nn.Module) -> str:
    """Describe the first parameter that is missing, superfluous or of another shape."""
    found, expected = _shapes(module), _shapes(right)
    if not found:
        return "it has no parameters: make the layers in __init__, and assign each to a name of self"
    for key in expected:
        if key not in found:
            name = _first_unknown(key, found)
            kind = type(vars(module).get(name)).__name__
            if kind in ("list", "tuple", "dict"):
                return f"self.{name} is a plain {kind}, in which PyTorch finds no parameters: make it an nn.ModuleList"
            return f"it has no {name}"
    for key in found:
        if key not in expected:
            return f"it has {_first_unknown(key, expected)}, which is not asked for"
    key = next(key for key in expected if found[key] != expected[key])
    name = key.rpartition(".")[0]
    setting = _describe_setting(name, module, right) if name else None
    return setting or f"{key} has shape {found[key]}, expected {expected[key]}"


def _first_unknown(key: str, known: dict[str, Any]) -> str:
    """Return the shortest prefix of a dotted name that is not a prefix of any known name."""
    words = key.split(".")
    beginnings = [".".join(words[:count]) for count in range(1, len(words) + 1)]
    return next(name for name in beginnings if not any(f"{other}.".startswith(f"{name}.") for other in known))


# Results


def _judge_results(
    module: nn.Module, right: nn.Module, mistakes: Sequence[ModuleMistake], build: Probe, inputs: Probe
) -> str | None:
    def with_the_same_weights(code: Build) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            other = code(*build)
            other.load_state_dict(right.state_dict())
            return other(*arguments)

        return run

    named = [(message, with_the_same_weights(code)) for message, code in mistakes]
    with torch.no_grad():
        complaint = judge_function(right, [inputs], named, inputs=_names(right))(module)
    if complaint in dict(mistakes):
        return complaint
    layer = _judge_leaves(module, right, inputs, all_kinds=complaint is not None)
    return layer or complaint or _judge_gradients(module, right, inputs)


def _names(module: nn.Module) -> list[str]:
    """List the names of the arguments of `forward`."""
    return list(inspect.signature(module.forward).parameters)


def _judge_leaves(module: nn.Module, right: nn.Module, inputs: Probe, all_kinds: bool) -> str | None:
    """Compare single layers on small feature maps: a wrong eps shows there even if the result is right."""
    seen: dict[str, Any] = {}
    leaves = {
        name: leaf
        for name, leaf in right.named_modules()
        if isinstance(leaf, nn.GroupNorm) or (all_kinds and not [*leaf.children()] and [*leaf.parameters()])
    }
    hooks = [
        leaf.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
        for name, leaf in leaves.items()
    ]
    right(*copy.deepcopy(inputs))
    for hook in hooks:
        hook.remove()
    for name, x in seen.items():
        try:
            agrees = same(module.get_submodule(name)(_FLAT * x), leaves[name](_FLAT * x))
        except Exception as error:
            return f"{name}: {explain(error)}"
        if not agrees:
            return _describe_setting(name, module, right) or f"{name} does not compute what is asked for"
    return None


def _describe_setting(name: str, module: nn.Module, right: nn.Module) -> str | None:
    """Describe the first setting of a layer that differs from the reference; None if all are equal."""
    ours, theirs = module.get_submodule(name), right.get_submodule(name)
    if type(ours) is not type(theirs):
        return f"{name} is a {type(ours).__name__}, expected a {type(theirs).__name__}"
    for setting, expected in vars(theirs).items():
        found = getattr(ours, setting, None)
        if isinstance(expected, (int, float, str, tuple)) and not setting.startswith("_") and found != expected:
            return f"{name} has {setting} {found}, expected {expected}"
    return None


def _judge_gradients(module: nn.Module, right: nn.Module, inputs: Probe) -> str | None:
    try:
        found = _gradients(module, inputs, _names(right))
    except Exception as error:
        return f"the values are right, but with a gradient to follow {explain(error)}"
    expected = _gradients(right, inputs, _names(right))
    least = 1e-5 * max(float(gradient.abs().max()) for gradient in expected.values())  # smaller gradients are rounding
    owners = {name: name.rpartition(".")[0] or name for name in expected}
    cut = [owners[name] for name, g in expected.items() if g.abs().max() > least >= found[name].abs().max()]
    if cut:
        names = list(dict.fromkeys(cut))
        text = ", ".join(names[:4]) + ", …" * (len(names) > 4)
        return f"the values are right, but no gradient reaches {text}: look for detach, no_grad or .data"
    wrong = [name for name in _names(right) if name in found and not same(found[name], expected[name])]
    return f"the values are right, but not the gradient with respect to {' and '.join(wrong)}" if wrong else None


def _gradients(module: nn.Module, inputs: Probe, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of the results, by input or parameter name; zeros where there is none."""
    leaves = {
        name: value.clone().requires_grad_()
        for name, value in zip(names, inputs, strict=False)
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    # Copies of the leaves, because autograd allows no in-place operation on a leaf itself.
    arguments = [leaves[name].clone() if name in leaves else v for name, v in zip(names, inputs, strict=False)]
    total = weighted_sum(module(*arguments))
    leaves |= dict(module.named_parameters())
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def _with(reference: Build, build: Probe) -> str:
    """Name the arguments with which a module was built, if all of them are short."""
    if not build or not all(isinstance(value, (int, float, str)) for value in build):
        return ""
    names = inspect.signature(reference).parameters
    return f" (built with {', '.join(f'{name}={value}' for name, value in zip(names, build, strict=False))})"
