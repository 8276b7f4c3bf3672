"""Judge `nn.Module` classes by their parameters, results and gradients.

The attempt and the reference class are built with the same arguments. Both must have parameters of the same names and
shapes. Then both get the same random weights, and their results are compared. Known mistakes are classes, too. Only
names, shapes, results and gradients count, not the code.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from klvae_edu.exercises.attempt import Attempt, Blank, OpenGap, call, explain, kind, recipe
from klvae_edu.exercises.exercise import Judge
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

    @functools.cache
    def prepared() -> list[tuple[nn.Module, Probe, Probe, Judge]]:
        """Build the reference, and judge results with it: once, because the outcomes of the mistakes are kept."""
        probes = [inputs(*build) for build in builds] if callable(inputs) else inputs
        rights = [_randomised(reference, build) for build in builds]
        each = [*zip(rights, builds, probes, strict=True)]
        return [(right, build, probe, _results_judge(right, mistakes, build, probe)) for right, build, probe in each]

    def judge(attempt: Attempt) -> str | None:
        about = attempt.run(kind)
        if not about["class"]:
            return f"expected the class itself, got an object of type {about['type']}"
        if not about["module"]:
            return f"it is no module, and its parameters would not be found: write class {about['name']}(nn.Module)"
        attempt.run(require_all_gaps_filled, builds[0], prepared()[0][2], sorted(set(parts) - set(given)))
        try:
            found = [attempt.run(shapes_of, build) for build in builds]
        except Exception as error:
            return name_error(error, mistakes, lambda code: [code.run(shapes_of, build) for build in builds])
        complaint = _judge_parameters(attempt, found, [right for right, *_ in prepared()], mistakes, builds)
        if complaint:
            return complaint
        for right, build, probe, judge_results in prepared():
            with torch.no_grad():
                complaint = judge_results(attempt)
            if complaint in dict(mistakes):
                return complaint
            layer = _judge_leaves(attempt, right, build, probe, all_kinds=complaint is not None)
            complaint = layer or complaint or _judge_gradients(attempt, right, build, probe)
            if complaint:
                return f"{complaint}{_with(reference, build)}"
        return None

    return judge


# In the attempt's process


@recipe
def require_all_gaps_filled(attempt: type[nn.Module], build: Probe, inputs: Probe, parts: Sequence[str]) -> None:
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
    written = bool(set(parts) & vars(module).get("_modules", {}).keys())
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


def built(attempt: Build, build: Probe, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build the class, and give it these weights."""
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, which changes the random state
            module = attempt(*copy.deepcopy(build))
    except AttributeError as error:
        if "before Module.__init__() call" in str(error):
            raise AttributeError("__init__ must begin with super().__init__()") from None
        raise
    if state is not None:
        module.load_state_dict(state)
    return module


@recipe
def shapes_of(attempt: Build, build: Probe) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight."""
    return {name: tuple(value.shape) for name, value in built(attempt, build).state_dict().items()}


@recipe
def settings_of(attempt: Build, build: Probe, name: str) -> dict[str, Any]:
    """Return the plain settings of a layer, its type, and the types from which it inherits."""
    module = built(attempt, build)
    with contextlib.suppress(AttributeError):
        layer = module.get_submodule(name)
        plain = {key: value for key, value in vars(layer).items() if isinstance(value, (int, float, str, tuple))}
        kinds = [it.__name__ for it in type(layer).mro()]
        return {
            "type": type(layer).__name__,
            "kinds": kinds,
            "settings": {k: v for k, v in plain.items() if not k.startswith("_")},
        }
    return {"type": type(vars(module).get(name)).__name__, "kinds": [], "settings": {}}


@recipe
def forward_of(attempt: Build, *inputs: Any, build: Probe, state: Mapping[str, Tensor]) -> Any:
    """Return the result with these weights."""
    with torch.no_grad():
        return call(built(attempt, build, state), *inputs)


@recipe
def layers_of(
    attempt: Build, build: Probe, state: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor | str]:
    """Return the results of single layers for their inputs, or what one raised, in words."""
    module, results = built(attempt, build, state), {}
    for name, x in given.items():
        try:
            results[name] = module.get_submodule(name)(x)
        except Exception as error:
            results[name] = explain(error)
    return results


@recipe
def gradients_by_name(
    attempt: Build, build: Probe, state: Mapping[str, Tensor], inputs: Probe, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of the results, by input or parameter name; zeros where there is none."""
    return _gradients(built(attempt, build, state), inputs, names)


def _gradients(module: nn.Module, inputs: Probe, names: Sequence[str]) -> dict[str, Tensor]:
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


# In the judge's process


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

Shapes = Mapping[str, tuple[int, ...]]


def _judge_parameters(
    attempt: Attempt,
    found: Sequence[Shapes],
    finished: Sequence[nn.Module],
    mistakes: Sequence[ModuleMistake],
    builds: Sequence[Probe],
) -> str | None:
    right = [_shapes(module) for module in finished]
    if list(found) == right:
        return None
    for message, code in mistakes:
        with contextlib.suppress(Exception):  # some cannot even be built
            if [_shapes(code(*build)) for build in builds] == found:
                return message
    wrong = [a == b for a, b in zip(found, right, strict=True)].index(False)
    complaint = _describe_parameters(attempt, builds[wrong], found[wrong], finished[wrong])
    return f"{complaint}{_with(type(finished[wrong]), builds[wrong])}"


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _describe_parameters(attempt: Attempt, build: Probe, found: Shapes, right: nn.Module) -> str:
    """Describe the first parameter that is missing, superfluous or of another shape."""
    expected = _shapes(right)
    if not found:
        return "it has no parameters: make the layers in __init__, and assign each to a name of self"
    for key in expected:
        if key not in found:
            name = _first_unknown(key, found)
            plain = attempt.run(settings_of, build, name)["type"]
            if plain in ("list", "tuple", "dict"):
                return f"self.{name} is a plain {plain}, in which PyTorch finds no parameters: make it an nn.ModuleList"
            return (
                f"it has no {name}"
                if plain == "NoneType"
                else f"{name}, of type {plain}, has no {key[len(name) + 1 :]}"
            )
    for key in found:
        if key not in expected:
            return f"it has {_first_unknown(key, expected)}, which is not asked for"
    key = next(key for key in expected if found[key] != expected[key])
    name = key.rpartition(".")[0]
    setting = _describe_setting(attempt, build, name, right) if name else None
    return setting or f"{key} has shape {found[key]}, expected {expected[key]}"


def _first_unknown(key: str, known: Mapping[str, Any]) -> str:
    """Return the shortest prefix of a dotted name that is not a prefix of any known name."""
    words = key.split(".")
    beginnings = [".".join(words[:count]) for count in range(1, len(words) + 1)]
    return next(name for name in beginnings if not any(f"{other}.".startswith(f"{name}.") for other in known))


# Results


def _results_judge(right: nn.Module, mistakes: Sequence[ModuleMistake], build: Probe, inputs: Probe) -> Judge:
    state = copy.deepcopy(dict(right.state_dict()))  # right goes on updating its running statistics
    named = [(message, partial(forward_of, code, build=build, state=state)) for message, code in mistakes]
    through = partial(forward_of, build=build, state=state)
    return judge_function(right, [inputs], named, inputs=_names(right), through=through)


def _names(module: nn.Module) -> list[str]:
    """List the names of the arguments of `forward`."""
    return list(inspect.signature(module.forward).parameters)


def _judge_leaves(attempt: Attempt, right: nn.Module, build: Probe, inputs: Probe, all_kinds: bool) -> str | None:
    """Compare single layers on small feature maps: a wrong eps shows there even if the result is right."""
    seen: dict[str, Tensor] = {}
    leaves = {
        name: leaf
        for name, leaf in right.named_modules()
        if isinstance(leaf, nn.GroupNorm) or (all_kinds and not [*leaf.children()] and [*leaf.parameters()])
    }
    hooks = [
        leaf.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: _FLAT * args[0].detach()}))
        for name, leaf in leaves.items()
    ]
    right(*copy.deepcopy(inputs))
    for hook in hooks:
        hook.remove()
    for name, found in attempt.run(layers_of, build, dict(right.state_dict()), seen).items():
        if isinstance(found, str):
            return _describe_setting(attempt, build, name, right) or f"{name}: {found}"
        if not same(found, leaves[name](seen[name])):
            setting = _describe_setting(attempt, build, name, right)
            if setting or all_kinds:  # a norm may do more than the norm, as long as the result is right
                return setting or f"{name} does not compute what is asked for"
    return None


def _describe_setting(attempt: Attempt, build: Probe, name: str, right: nn.Module) -> str | None:
    """Describe the first setting of a layer that differs from the reference; None if all are equal."""
    ours, theirs = attempt.run(settings_of, build, name), right.get_submodule(name)
    if type(theirs).__name__ not in ours["kinds"]:
        return f"{name} is a {ours['type']}, expected a {type(theirs).__name__}"
    for setting, expected in vars(theirs).items():
        found = ours["settings"].get(setting)
        if isinstance(expected, (int, float, str, tuple)) and not setting.startswith("_") and found != expected:
            return f"{name} has {setting} {found}, expected {expected}"
    return None


def _judge_gradients(attempt: Attempt, right: nn.Module, build: Probe, inputs: Probe) -> str | None:
    state, names = dict(right.state_dict()), _names(right)
    try:
        found = attempt.run(gradients_by_name, build, state, inputs, names)
    except Exception as error:
        return f"the values are right, but with a gradient to follow {explain(error)}"
    expected = _gradients(right, inputs, names)
    least = 1e-5 * max(float(gradient.abs().max()) for gradient in expected.values())  # smaller gradients are rounding
    owners = {name: name.rpartition(".")[0] or name for name in expected}
    cut = [owners[name] for name, g in expected.items() if g.abs().max() > least >= found[name].abs().max()]
    if cut:
        listed = list(dict.fromkeys(cut))
        text = ", ".join(listed[:4]) + ", …" * (len(listed) > 4)
        return f"the values are right, but no gradient reaches {text}: look for detach, no_grad or .data"
    wrong = [name for name in names if name in found and not same(found[name], expected[name])]
    return f"the values are right, but not the gradient with respect to {' and '.join(wrong)}" if wrong else None


def _with(reference: Build, build: Probe) -> str:
    """Name the arguments with which a module was built, if all of them are short."""
    if not build or not all(isinstance(value, (int, float, str)) for value in build):
        return ""
    names = inspect.signature(reference).parameters
    return f" (built with {', '.join(f'{name}={value}' for name, value in zip(names, build, strict=False))})"
