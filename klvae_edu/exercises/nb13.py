"""The exercises of notebook 13, for work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.exercises.attempt import Attempt, Local, NothingReturned, call, explain, kind, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.solutions.nb13 import changes_gradients, decoder_only, first_nonfinite
from klvae_edu.training import setup, steps

NOTEBOOK = "13_for_work"


def _refuse(attempt: Attempt) -> str | None:
    about = attempt.run(kind)
    if about["callable"]:
        return None
    return f"expected the function itself, got its result or another object ({about['type']})"


# 13.1

_ATTRIBUTE = (
    "encoder.requires_grad = False only sets a new attribute of the module: call requires_grad_(False), with the _"
)
_NOT_FROZEN = "the encoder is still trained: switch its gradients off with requires_grad_(False)"
_SWITCHED = "eval() freezes no weight: switch gradients off with requires_grad_(False)"
_WRONG_HALF = "the wrong half is frozen: the decoder is to be trained, and the encoder is not"
_PARTLY = "the encoder is frozen in part only: {} is still trained"
_QUANT = "quant_conv is still trained: it makes mean and log-variance, so the latents would change"
_STILL_FROZEN = "the decoder was frozen before the call, and still is: switch its gradients on"
_DECODER = "a part of the decoder is frozen, such as {}: only what makes the latents is to be frozen"
_POST = "post_quant_conv is frozen: it comes after the latent, and is trained with the decoder"
_POST_STILL = "post_quant_conv was frozen before the call, and still is: switch its gradients on, too"
_MODE = "train or eval mode of the model is changed: only requires_grad is to change"
_CHANGED = "weights of the model are changed: only requires_grad is to change"
_REMOVED = "a part of the model is removed: it must still encode, so freeze it instead"
_PAIRS = "names and parameters are returned in pairs: take the second of each pair, or .parameters()"
_NAMES = "names are returned: return the parameters themselves"
_MODULE = "a module is returned: return its parameters, in a list"
_DICTIONARY = "a dictionary is returned: return the parameters themselves, in a list"
_COPIES = "copies are returned, as clone, detach, .data or deepcopy make them: an optimiser would not train the model"
_FROZEN_LISTED = "frozen parameters are in the list, such as {}: return only those to train"
_LACKS_POST = "post_quant_conv is not in the list: it comes after the latent, and is trained with the decoder"
_LACKS_DECODER = "parameters of the decoder are not in the list, such as {}"
_TWICE = "a parameter is in the list twice: {}"
_NO_CONVOLUTION = (
    "it fails for a model without quant_conv and post_quant_conv, as SD3's is: they are nn.Identity there, which has "
    "no weight; requires_grad_ and parameters() of the module work for both"
)
_NESTED = "the list holds whole lists of parameters: unpack them, [*part.parameters(), *other.parameters()]"
_NO_LIST = "an object of type {} is returned: a list of parameters is asked for"

_CASES_OF_FREEZING = ("as built", "all frozen", "no convolutions")


def _model(case: str) -> AutoencoderKL:
    both = case != "no convolutions"
    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKL(
            block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=2,
            use_quant_conv=both, use_post_quant_conv=both,
        )  # fmt: skip
    vae.train(case == "as built")
    return vae.requires_grad_(case != "all frozen")


@recipe
def frozen_and_returned(answer: Any, case: str) -> dict[str, Any]:
    """Call it with a model, and describe what is left of the model, and what is returned, by names."""
    vae = _model(case)
    parameters, encoder = dict(vae.named_parameters()), vae.encoder
    before, modes = copy.deepcopy(vae.state_dict()), [module.training for module in vae.modules()]
    found = call(answer, vae)
    now = dict(vae.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    returned = _listed(found)
    return {
        "kind": _kind_of(found, returned),
        "returned": [names.get(id(it), "") for it in returned],
        "trained": [name for name, parameter in now.items() if parameter.requires_grad],
        "removed": now.keys() != parameters.keys() or vae.encoder is not encoder,
        "changed": any(not torch.equal(value, before[name]) for name, value in vae.state_dict().items()),
        "modes": [module.training for module in vae.modules()] != modes,
        "attribute": any("requires_grad" in vars(module) for module in vae.modules()),
    }


def _listed(found: Any) -> list[Any]:
    iterable = isinstance(found, Iterable) and not isinstance(found, (str, Tensor, Mapping))
    return [*found] if iterable else []


def _kind_of(found: Any, returned: Sequence[Any]) -> str:
    if isinstance(found, (nn.Module, Mapping)):
        return "module" if isinstance(found, nn.Module) else "dictionary"
    if isinstance(found, (str, Tensor)) or not isinstance(found, Iterable):
        return type(found).__name__
    if any(isinstance(it, str) for it in returned):
        return "names"
    if any(isinstance(it, tuple) and it and isinstance(it[0], str) for it in returned):
        return "pairs"
    if any(isinstance(it, Iterable) and not isinstance(it, (Tensor, Mapping)) for it in returned):
        return "nested"
    return "dictionary" if any(isinstance(it, Mapping) for it in returned) else "list"


def _judge_freezing(attempt: Attempt) -> str | None:
    complaint = _refuse(attempt)
    for case in _CASES_OF_FREEZING:
        if complaint:
            break
        try:
            left = attempt.run(frozen_and_returned, case)
        except Exception as error:
            if case == "no convolutions" and "Identity" in explain(error):
                return _NO_CONVOLUTION
            raise
        names = [name for name, _ in _model(case).named_parameters()]
        complaint = _in_model(left, names, case) or _in_list(left, names)
    return complaint


def _of(part: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{part}.")]


def _in_model(left: Mapping[str, Any], names: Sequence[str], case: str) -> str | None:
    """Describe what is wrong with the model afterwards."""
    if left["removed"]:
        return _REMOVED
    if left["changed"]:
        return _CHANGED
    if left["kind"] == "list" and left["returned"] and not any(left["returned"]):
        return _COPIES
    trained = left["trained"]
    encoder, frozen = _of("encoder", trained), [name for name in names if name not in trained]
    if encoder:
        if left["attribute"]:
            return _ATTRIBUTE
        if len(encoder) < len(_of("encoder", names)):
            return _PARTLY.format(encoder[0])
        if _of("decoder", frozen):
            return _WRONG_HALF
        return _SWITCHED if left["modes"] else _NOT_FROZEN
    if _of("quant_conv", trained):
        return _QUANT
    if _of("decoder", frozen):
        return _STILL_FROZEN if case == "all frozen" else _DECODER.format(_of("decoder", frozen)[0])
    if _of("post_quant_conv", frozen):
        return _POST_STILL if case == "all frozen" else _POST
    return _MODE if left["modes"] else None


def _in_list(left: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Describe what is wrong with what is returned."""
    by_kind = {
        "module": _MODULE,
        "dictionary": _DICTIONARY,
        "names": _NAMES,
        "pairs": _PAIRS,
        "nested": _NESTED,
        "list": None,
    }
    of_kind = by_kind.get(left["kind"], _NO_LIST.format(left["kind"]))
    if of_kind:
        return of_kind
    returned = left["returned"]
    if "" in returned:
        return _COPIES
    frozen = [name for name in returned if name not in left["trained"]]
    missing = [name for name in left["trained"] if name not in returned]
    if frozen:
        return _FROZEN_LISTED.format(frozen[0])
    if missing:
        of_decoder = _of("decoder", missing)
        return _LACKS_DECODER.format(of_decoder[0]) if of_decoder else _LACKS_POST
    twice = [name for number, name in enumerate(returned) if name in returned[:number]]
    return _TWICE.format(twice[0]) if twice else None


def _requires(vae: AutoencoderKL, *parts: str) -> Any:
    """Train these parts, and no other."""
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name.startswith(parts))
    return vae


def _after(change: Callable[[Any], Any], result: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """Make an answer that changes the model, and returns what is trained, or another result."""

    def answer(vae):
        change(vae)
        return [p for p in vae.parameters() if p.requires_grad] if result is None else result(vae)

    return answer


def _right(vae: Any) -> Any:
    return _requires(vae, "decoder.", "post_quant_conv.")


def _and(act: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make an answer that freezes the right parts, and does something besides."""
    return _after(lambda vae: [_right(vae), act(vae)])


def _returning(result: Callable[[Any], Any]) -> Callable[..., Any]:
    return _after(_right, result)


def _set_attributes(vae):
    vae.encoder.requires_grad = False
    vae.quant_conv.requires_grad = False


def _turned_off(vae):
    """Freeze, but switch nothing on."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)


def _after_the_latent(vae):
    return [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]


def _by_weight_and_bias(vae):
    _requires(vae, "decoder.", "post_quant_conv.", "quant_conv.")
    vae.quant_conv.weight.requires_grad_(False)
    vae.quant_conv.bias.requires_grad_(False)


FREEZING_MISTAKES = Mistakes(
    [
        (_ATTRIBUTE, _after(_set_attributes, lambda vae: [*vae.decoder.parameters()])),
        (_NOT_FROZEN, _after(lambda vae: None)),
        (_NOT_FROZEN, _after(lambda vae: None, lambda vae: [*vae.decoder.parameters()])),
        (_SWITCHED, _after(lambda vae: vae.encoder.eval(), lambda vae: [*vae.decoder.parameters()])),
        (_WRONG_HALF, _after(lambda vae: _requires(vae, "encoder.", "quant_conv."))),
        (_WRONG_HALF, _after(lambda vae: _requires(vae, "encoder."))),
        (
            _PARTLY.format("encoder.conv_in.weight"),
            _after(lambda vae: [_right(vae), vae.encoder.conv_in.requires_grad_(True)]),
        ),
        (
            _PARTLY.format("encoder.mid_block.attentions.0.group_norm.weight"),
            _after(lambda vae: [_right(vae), vae.encoder.mid_block.requires_grad_(True)]),
        ),
        (
            _PARTLY.format("encoder.conv_in.bias"),
            _after(
                lambda vae: [
                    p.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")) or name.endswith("bias"))
                    for name, p in vae.named_parameters()
                ]
            ),
        ),
        (_QUANT, _after(lambda vae: _requires(vae, "decoder.", "post_quant_conv.", "quant_conv."))),
        (_QUANT, _after(lambda vae: vae.encoder.requires_grad_(False))),
        (_QUANT, _and(lambda vae: vae.quant_conv.bias.requires_grad_(True) if vae.config.use_quant_conv else None)),
        (_STILL_FROZEN, _after(_turned_off)),
        (_STILL_FROZEN, _after(_turned_off, _after_the_latent)),
        (_DECODER.format("decoder.conv_in.weight"), _after(lambda vae: vae.requires_grad_(False))),
        (
            _DECODER.format("decoder.conv_in.weight"),
            _after(lambda vae: _requires(vae, "decoder.up_blocks.", "decoder.conv_out.", "post_quant_conv.")),
        ),
        (_POST, _after(lambda vae: _requires(vae, "decoder."))),
        (
            _POST_STILL,
            _after(lambda vae: [_turned_off(vae), vae.decoder.requires_grad_(True)]),
        ),
        (_MODE, _and(lambda vae: vae.eval())),
        (_MODE, _and(lambda vae: vae.encoder.eval())),
        (_MODE, _and(lambda vae: [vae.encoder.eval(), vae.decoder.train()])),
        (_CHANGED, _and(lambda vae: nn.init.zeros_(vae.decoder.conv_out.weight.data))),
        (_REMOVED, _and(lambda vae: setattr(vae, "encoder", None))),
        (_REMOVED, _and(lambda vae: setattr(vae, "encoder", copy.deepcopy(vae.encoder).requires_grad_(False)))),
        (_COPIES, lambda vae: decoder_only(copy.deepcopy(vae))),
        (_COPIES, _returning(lambda vae: [p.detach().clone() for p in vae.parameters() if p.requires_grad])),
        (_COPIES, _returning(lambda vae: [p.data for p in vae.parameters() if p.requires_grad])),
        (_COPIES, _returning(lambda vae: [v for name, v in vae.state_dict().items() if name.startswith("decoder.")])),
        (_PAIRS, _returning(lambda vae: [(n, p) for n, p in vae.named_parameters() if p.requires_grad])),
        (_NESTED, _returning(lambda vae: [vae.decoder.parameters(), vae.post_quant_conv.parameters()])),
        (_NESTED, _returning(lambda vae: [[*vae.decoder.parameters()], [*vae.post_quant_conv.parameters()]])),
        (_NAMES, _returning(lambda vae: [n for n, p in vae.named_parameters() if p.requires_grad])),
        (_MODULE, _returning(lambda vae: vae.decoder)),
        (_MODULE, _returning(lambda vae: vae)),
        (_DICTIONARY, _returning(lambda vae: {n: p for n, p in vae.named_parameters() if p.requires_grad})),
        (_DICTIONARY, _returning(lambda vae: [{"params": [p for p in vae.parameters() if p.requires_grad]}])),
        (_NO_LIST.format("bool"), _returning(lambda vae: True)),
        (_NO_LIST.format("int"), _returning(lambda vae: sum(p.numel() for p in vae.parameters()))),
        (_FROZEN_LISTED.format("encoder.conv_in.weight"), _returning(lambda vae: [*vae.parameters()])),
        (_FROZEN_LISTED.format("encoder.conv_in.weight"), _returning(lambda vae: [*vae.encoder.parameters()])),
        (_LACKS_POST, _returning(lambda vae: [*vae.decoder.parameters()])),
        (_LACKS_DECODER.format("decoder.conv_in.weight"), _returning(lambda vae: [*vae.post_quant_conv.parameters()])),
        (
            _LACKS_DECODER.format("decoder.conv_in.weight"),
            _returning(lambda vae: [*vae.decoder.conv_out.parameters(), *vae.post_quant_conv.parameters()]),
        ),
        (
            _TWICE.format("decoder.conv_out.weight"),
            _returning(
                lambda vae: [p for p in vae.parameters() if p.requires_grad] + [vae.decoder.conv_out.weight]
            ),
        ),
        (_NO_CONVOLUTION, _after(_by_weight_and_bias)),
        (
            _NO_CONVOLUTION,
            _returning(lambda vae: [*vae.decoder.parameters(), vae.post_quant_conv.weight, vae.post_quant_conv.bias]),
        ),
    ]
)  # fmt: skip


# 13.2


class _Layer(nn.Module):
    """Gives its input, or from one of its calls on the input with another first value."""

    def __init__(self, value: float | None = None, from_call: int = 1) -> None:
        super().__init__()
        self.value, self.from_call, self.calls = value, from_call, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x.clone()
        if self.value is not None and self.calls >= self.from_call:
            x[..., 0] = self.value
        return x


class _Huge(nn.Module):
    """Gives numbers that are all finite, and all near the end of float32."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 3e38)


class _Sum(nn.Module):
    """A residual block: what its layer gives, and its input, of which the sum may be infinite."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class _Mended(nn.Module):
    """Replaces what is not finite, in a copy or in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        return x.nan_to_num_() if self.in_place else x.nan_to_num()


class _Pair(nn.Module):
    """Gives a tuple, which is no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x.clone(), None


class _Network(nn.Module):
    """Layers that are registered in one order, and called in another."""

    def __init__(self, layers: Mapping[str, nn.Module], order: Sequence[str], last: float = 1.0) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.order, self.last = order, last

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            output: Any = self.get_submodule(name)(x)
            x = output[0] if isinstance(output, tuple) else output
        return x * self.last


def _of_layers(order: str, last: float = 1.0, **layers: nn.Module) -> _Network:
    return _Network(layers, order.split(), last)


_INF, _NAN = float("inf"), float("nan")
# What the case is about -> a model. The layer `bad` is the one to be named, if there is one.
_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "where all outputs are finite": lambda: _of_layers("a b", a=_Layer(), b=nn.Sequential(_Layer(), _Layer())),
    "with an infinite value in one place": lambda: _of_layers("a bad b", a=_Layer(), bad=_Layer(_INF), b=_Layer()),
    "with a NaN": lambda: _of_layers("a bad b", a=_Layer(), bad=_Layer(_NAN), b=_Layer()),
    "with -inf": lambda: _of_layers("a bad b", a=_Layer(), bad=_Layer(-_INF), b=_Layer()),
    "with an infinite value that becomes NaN later": lambda: _of_layers(
        "bad b", bad=_Layer(_INF), b=_Layer(_NAN)
    ),
    "whose layers are called in another order than __init__ has them": lambda: _of_layers(
        "bad early", early=_Layer(), bad=_Layer(_INF)
    ),
    "with the layer inside of two nn.Sequential": lambda: _of_layers(
        "outer", outer=nn.Sequential(_Layer(), nn.Sequential(_Layer(), _Layer(_INF)), _Layer())
    ),
    "where a block's sum is infinite, and none of its layers": lambda: _of_layers(
        "a block", a=_Huge(), block=_Sum(_Layer())
    ),
    "whose last layer hides it: the model's output is finite": lambda: _of_layers(
        "bad mended", bad=_Layer(_INF), mended=_Mended(False)
    ),
    "whose next layer works in place": lambda: _of_layers("bad mended", bad=_Layer(_INF), mended=_Mended(True)),
    "that calls one layer twice, the second time with an infinite result": lambda: _of_layers(
        "bad a bad", bad=_Layer(_INF, from_call=2), a=_Layer()
    ),
    "where only the model's own last line is infinite: its name is ''": lambda: _of_layers("a", _INF, a=_Layer()),
    "with an output that is a tuple": lambda: _of_layers("pair bad", pair=_Pair(), bad=_Layer(_INF)),
    "with a value of a million": lambda: _of_layers("large", large=_Layer(1e6)),
    "with large values that are all finite": lambda: _of_layers("huge", huge=_Huge()),
    "with a NaN among weights that no layer uses": lambda: _with_unused_weight(),
}  # fmt: skip


def _with_unused_weight() -> nn.Module:
    network = _of_layers("a", a=_Layer())
    network.register_parameter("unused", nn.Parameter(torch.full((2,), _NAN)))
    return network


@recipe
def named_in(answer: Any, case: str) -> dict[str, Any]:
    """Call it with the model of a case, and return what it names, and what it leaves."""
    model, x = _NETWORKS[case](), torch.linspace(-1, 1, 6).view(2, 3)
    before, everywhere = x.clone(), torch.nn.modules.module._global_forward_hooks
    hooks_before = dict(everywhere)
    try:
        found = call(answer, model, x)
    except NothingReturned:
        found = None
    left = len(everywhere) - len(hooks_before)
    everywhere.clear()  # a hook of the attempt must not stay for the cells below
    everywhere.update(hooks_before)
    hooks = [len(it._forward_hooks) + len(it._forward_pre_hooks) for it in model.modules()]
    return {
        "name": found if isinstance(found, str) or found is None else f"<{type(found).__name__}>",
        "hooks": sum(hooks) + left,
        "mode": all(module.training for module in model.modules()),
        "input": torch.equal(x, before),
    }


@cache
def _names_by(answer: Callable[..., Any]) -> list[Any]:
    return [_name_or_error(Local(answer), case) for case in _NETWORKS]


def _name_or_error(attempt: Attempt, case: str) -> Any:
    try:
        return attempt.run(named_in, case)["name"]
    except Exception as error:
        return error


_HOOKS_LEFT = (
    "the names are right, but hooks are left in the model: call remove() on what register_forward_hook returns"
)
_EVAL = "the names are right, but the model is left in eval mode: leave the mode as it is"
_INPUT = "the names are right, but the input x is changed"
_NEVER = "it returns None for every model: is a return missing, or does the model never run after the hooks are set?"
_A_MODULE = "it returns a module: return its name, from named_modules()"
_NO_NAME = "it returns an object of type {}: a name, or None, is asked for"
_NAN_ONLY = "only NaN is looked for: inf is not finite either, and usually comes first"
_INF_ONLY = "only inf is looked for: NaN is not finite either"
_LEAVES = "only modules without children are looked at: the sum at the end of a block may be the first that is infinite"
_LAST = (
    "it names the last module that is called with such an output, which is the outermost, and stands first in "
    "named_modules(): take the order of the calls, and the first of them"
)
_EVERY = "a module is named only if all of its values are not finite: one is enough"
_OUTPUT_ALONE = "only the model's own output is looked at: hooks see the output of every module"
_CHILDREN = "only the direct children have hooks: named_modules() goes all the way down"
_INPUTS = "the inputs of the modules are looked at: this names the module after the one at fault"
_LATE = "outputs are kept and looked at after the pass: the next layer may have changed them in place; look in the hook"
_SUM = "a sum or a mean is looked at: large finite values may add up to inf; look at every value"
_LIMIT = "large values are taken for infinite ones: only those that are not finite count, in the type of the output"
_WEIGHTS = "the weights are looked at, not the outputs: finite weights may give infinite outputs"
_ONE_CALL = "only the first call of a module is looked at: a module may be called twice"
_ROOT = "the model itself has the name '', which counts as False: return found[0] if found else None"
_EMPTY = "where all is finite it returns '': None is asked for"
_TYPES = "the name of the module's class is returned: return its name, from named_modules()"
_TUPLES = "it fails where an output is no tensor, such as a tuple: pass over these"
_NEGATIVE = "-inf is not found: look at both ends, with isfinite"


def _hunt(
    bad: Callable[[Tensor], bool] = lambda output: not output.isfinite().all(),
    modules: Callable[[nn.Module], Iterable[tuple[str, nn.Module]]] = lambda model: model.named_modules(),
    pick: Callable[[list[str]], Any] = lambda found: found[0] if found else None,
    leave: bool = False,
    tensors: Callable[[Any], bool] = torch.is_tensor,
    label: Callable[[str, nn.Module], Any] = lambda name, module: name,
    before: Callable[[nn.Module], Any] = lambda model: None,
) -> Callable[..., Any]:
    """Make an answer with one of its parts made otherwise."""

    def hunt(model, x):
        before(model)
        found, handles = [], []
        for name, module in modules(model):

            def look(module, inputs, output, name=name):
                if tensors(output) and bad(output):
                    found.append(label(name, module))

            handles.append(module.register_forward_hook(look))
        with torch.no_grad():
            model(x)
        if not leave:
            for handle in handles:
                handle.remove()
        return pick(found)

    return hunt


HUNT_MISTAKES = Mistakes(
    [
        (_NAN_ONLY, _hunt(lambda output: bool(output.isnan().any()))),
        (_NAN_ONLY, _hunt(lambda output: bool((output != output).any()))),
        (_INF_ONLY, _hunt(lambda output: bool(output.isinf().any()))),
        (_NEGATIVE, _hunt(lambda output: bool((output == _INF).any() or output.isnan().any()))),
        (_NEGATIVE, _hunt(lambda output: not bool(output.max() < _INF))),
        (_LAST, _hunt(pick=lambda found: found[-1] if found else None)),
        (_EVERY, _hunt(lambda output: not output.isfinite().any())),
        (_LEAVES, _hunt(modules=lambda model: [(n, m) for n, m in model.named_modules() if not [*m.children()]])),
        (_CHILDREN, _hunt(modules=lambda model: model.named_children())),
        (_OUTPUT_ALONE, _hunt(modules=lambda model: [("", model)])),
        (_SUM, _hunt(lambda output: not output.sum().isfinite())),
        (_SUM, _hunt(lambda output: not output.mean().isfinite())),
        (_SUM, _hunt(lambda output: not output.norm().isfinite())),
        (_SUM, _hunt(lambda output: not output.square().mean().isfinite())),
        (_LIMIT, _hunt(lambda output: not bool((output.abs() <= 65504).all()))),
        (_LIMIT, _hunt(lambda output: not output.half().isfinite().all())),
        (_ROOT, _hunt(modules=lambda model: [(n, m) for n, m in model.named_modules() if n])),
        (_ROOT, _hunt(pick=lambda found: (found[0] or None) if found else None)),
        (_EMPTY, _hunt(pick=lambda found: found[0] if found else "")),
        (_TYPES, _hunt(label=lambda name, module: type(module).__name__)),
        (_A_MODULE, _hunt(label=lambda name, module: module)),
        (_NO_NAME.format("list"), _hunt(pick=lambda found: found)),
        (_NO_NAME.format("tuple"), _hunt(pick=lambda found: (found[0], "inf") if found else None)),
        (_NO_NAME.format("bool"), _hunt(pick=bool)),
        (_TUPLES, _hunt(tensors=lambda output: True)),
        (_HOOKS_LEFT, _hunt(leave=True)),
        (_EVAL, _hunt(before=lambda model: model.eval())),
        (_NEVER, lambda model, x: None),
    ]
)


@HUNT_MISTAKES(_INPUT)
def hunt_with_a_changed_input(model, x):
    x.nan_to_num_().mul_(0.5)
    return first_nonfinite(model, x)


@HUNT_MISTAKES(_LAST)
def hunt_in_registered_order(model, x):
    bad, names = set(), [name for name, _ in model.named_modules()]
    _hunt(pick=lambda found: bad.update(found))(model, x)
    return next((name for name in names if name in bad), None)


@HUNT_MISTAKES(_INPUTS)
def hunt_by_inputs(model, x):
    found, handles = [], []
    for name, module in model.named_modules():

        def look(module, inputs, name=name):
            if torch.is_tensor(inputs[0]) and not inputs[0].isfinite().all():
                found.append(name)

        handles.append(module.register_forward_pre_hook(look))
    model(x)
    for handle in handles:
        handle.remove()
    return found[0] if found else None


@HUNT_MISTAKES(_LATE)
def hunt_after_the_pass(model, x):
    outputs, handles = [], []
    for name, module in model.named_modules():

        def keep(module, inputs, output, name=name):
            outputs.append((name, output))

        handles.append(module.register_forward_hook(keep))
    model(x)
    for handle in handles:
        handle.remove()
    bad = [name for name, output in outputs if torch.is_tensor(output) and not output.isfinite().all()]
    return bad[0] if bad else None


@HUNT_MISTAKES(_WEIGHTS)
def hunt_in_the_weights(model, x):
    return next((name for name, p in model.named_parameters() if not p.isfinite().all()), None)


@HUNT_MISTAKES(_ONE_CALL)
def hunt_in_the_first_call(model, x):
    found, seen, handles = [], set(), []
    for name, module in model.named_modules():

        def look(module, inputs, output, name=name):
            if name not in seen and torch.is_tensor(output) and not output.isfinite().all():
                found.append(name)
            seen.add(name)

        handles.append(module.register_forward_hook(look))
    model(x)
    for handle in handles:
        handle.remove()
    return found[0] if found else None


def _judge_hunt(attempt: Attempt) -> str | None:
    if complaint := _refuse(attempt):
        return complaint
    results = [attempt.run(named_in, case) if case != "with an output that is a tuple" else None for case in _NETWORKS]
    tuples = _name_or_error(attempt, "with an output that is a tuple")
    names = [tuples if result is None else result["name"] for result in results]
    wanted = _names_by(first_nonfinite)
    if all(name is None for name in names):
        return _NEVER
    if names != wanted:
        return _name_hunt(names, wanted)
    left = [result for result in results if result is not None]
    effects = {
        _HOOKS_LEFT: any(result["hooks"] for result in left),
        _EVAL: not all(result["mode"] for result in left),
        _INPUT: not all(result["input"] for result in left),
    }
    return next((message for message, found in effects.items() if found), None)


def _name_hunt(names: Sequence[Any], wanted: Sequence[Any]) -> str:
    """Name the mistake in the names, or else the first case that is wrong."""
    kinds = [name[1:-1] for name in names if isinstance(name, str) and name.startswith("<")]
    if kinds:
        modules = ("_Layer", "_Sum", "_Network", "Sequential", "_Mended", "_Huge", "_Pair")
        return _A_MODULE if any(it in modules for it in kinds) else _NO_NAME.format(kinds[-1])
    wrong = [not isinstance(a, str | None) or a != b for a, b in zip(names, wanted, strict=True)]
    tuple_case = [*_NETWORKS].index("with an output that is a tuple")
    if isinstance(names[tuple_case], Exception) and sum(wrong) == 1:
        return _TUPLES
    for message, code in HUNT_MISTAKES:
        if message not in (_HOOKS_LEFT, _EVAL, _INPUT) and _names_by(code) == names:
            return message
    case = wrong.index(True)
    found = explain(names[case]) if isinstance(names[case], Exception) else f"it returns {names[case]!r}"
    return f"for a model {[*_NETWORKS][case]} {found}, expected {wanted[case]!r}"


# 13.3

_ALIAS = "the gradients before are not copied: backward() adds to .grad in place, so clone it"
_NONE_ONLY = "only whether .grad is None is compared: a gradient that was there may have changed"
_ANY_THERE = "gradients from before count as a change: compare those before with those after"
_SUMS = "only sums or means of the gradients are compared: changes may cancel; compare every value"
_NORMS = "only norms of the gradients are compared: a change of sign keeps them; compare every value"
_TOLERANT = "small changes are passed over, by a tolerance: compare with torch.equal"
_CLEARS = "it clears the gradients before the action: what was there is lost, and it is what must stay"
_FIRST = "only the first parameter is looked at: look at all of them"
_ALL = "a change is told only if all gradients changed: one is enough"
_INVERTED = "the answer is inverted: True means that a gradient has changed"
_VALUES = "the weights are compared, not their gradients: look at .grad"
_ITERATOR = "parameters may be an iterator, which is empty the second time: parameters = list(parameters) first"
_ZEROS_COUNT = "None and zeros are told apart: let None count as zeros"
_SKIPS = "parameters without a gradient before are passed over: the action may give them one"
_SKIPS_AFTER = "parameters without a gradient afterwards are passed over: the action may have cleared it"
_IDENTITY = "the objects are compared, with `is`: the same values in another tensor are no change"
_TWICE_RUN = "the action is run twice: run it once"
_NOT_RUN = "the action is never run: call it, action()"
_NO_BOOL = "an object of type {} is returned: True or False is asked for"
_RESTORES = "the gradients are put back, or cleared, at the end: leave them as the action leaves them"
_LISTS = "lists of tensors cannot be compared as a whole, by == or !=: use torch.equal for each pair"
_SAME_EVER = "it returns False for every action, whatever that changes: is the result of the comparison returned?"
_SHAPES = "the gradients of several parameters cannot be stacked: their shapes differ"
_WEIGHTS_MOVED = "the weights are changed: it is only to look"


class _Bench:
    """Parameters with gradients, and an action that changes some of them."""

    def __init__(self, case: str) -> None:
        change, self.by_iterator = _ACTIONS[case]
        shapes = ((2, 3), (4,), (3,))
        self.parameters = [nn.Parameter(torch.full(shape, 2.0)) for shape in shapes]
        for parameter, start in zip(self.parameters, (1.0, None, -1.0), strict=True):
            if start is not None:
                parameter.grad = torch.linspace(start, 2 * start, parameter.numel()).view(parameter.shape)
        self.calls, self._change = 0, change

    def action(self) -> None:
        self.calls += 1
        self._change(self.parameters)

    def given(self) -> Iterable[nn.Parameter]:
        return iter(self.parameters) if self.by_iterator else list(self.parameters)

    def gradients(self) -> list[Tensor | None]:
        return [None if it.grad is None else it.grad.clone() for it in self.parameters]


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # the attempt has cleared it
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _set_grad(parameter: nn.Parameter, value: Tensor | None) -> None:
    parameter.grad = value


# What the case is about -> (the action, whether the parameters come as an iterator)
_ACTIONS: dict[str, tuple[Callable[[list[nn.Parameter]], Any], bool]] = {
    "an action that does nothing": (lambda ps: None, False),
    "an action that adds to the gradient of the first": (lambda ps: _grad(ps[0]).add_(1.0), False),
    "an action that adds to the gradient of the last": (lambda ps: _grad(ps[2]).add_(1.0), False),
    "an action that gives a gradient where none was": (lambda ps: _set_grad(ps[1], torch.ones(4)), False),
    "an action that changes all gradients": (lambda ps: [it.square().sum().backward() for it in ps], False),
    "an action that adds by a backward pass": (lambda ps: (ps[2] ** 2).sum().backward(), False),
    "an action that changes two values by as much, up and down": (
        lambda ps: _grad(ps[0])[0].add_(torch.tensor([0.5, -0.5, 0.0])),
        False,
    ),
    "an action that turns the signs round": (lambda ps: [_grad(ps[0]).neg_(), _grad(ps[2]).neg_()], False),
    "an action that changes a value by a millionth": (lambda ps: _grad(ps[2])[0].mul_(1 + 1e-6), False),
    "an action that clears a gradient": (lambda ps: _set_grad(ps[2], None), False),
    "an action that puts zeros where no gradient was": (lambda ps: _set_grad(ps[1], torch.zeros(4)), False),
    "an action that puts equal values in a new tensor": (lambda ps: _set_grad(ps[0], _grad(ps[0]).clone()), False),
    "an action that changes weights, and no gradient": (lambda ps: ps[0].data.add_(1.0), False),
    "an iterator of parameters, and a changed gradient": (lambda ps: _grad(ps[0]).add_(1.0), True),
}


@recipe
def told_of(answer: Any, case: str) -> dict[str, Any]:
    """Call it on the parameters and the action of a case, and return what it tells, and what it leaves."""
    bench, other = _Bench(case), _Bench(case)
    other.action()
    found = call(answer, bench.action, bench.given())
    if isinstance(found, np.bool_) or (isinstance(found, Tensor) and found.numel() == 1 and found.dtype == torch.bool):
        found = bool(found)
    same = [
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(bench.gradients(), other.gradients(), strict=True)
    ]
    return {
        "told": found if isinstance(found, bool) else f"<{type(found).__name__}>",
        "calls": bench.calls,
        "kept": all(same),
        "weights": all(map(torch.equal, bench.parameters, other.parameters)),
    }


@cache
def _told_by(answer: Callable[..., Any]) -> list[Any]:
    return [_outcome(Local(answer), case) for case in _ACTIONS]


def _outcome(attempt: Attempt, case: str) -> Any:
    try:
        return attempt.run(told_of, case)["told"]
    except Exception as error:
        return error


def _copied(p):
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def _told(
    record: Callable[[Any], Any] = _copied,
    differ: Callable[[Any, Any], bool] = lambda a, b: not torch.equal(a, b),
    after: Callable[[Any], Any] | None = None,
    combine: Callable[[list[bool]], Any] = any,
    chosen: Callable[[list[Any]], list[Any]] = lambda parameters: parameters,
    first: Callable[[list[Any]], Any] = lambda parameters: None,
    last: Callable[[list[Any]], Any] = lambda parameters: None,
) -> Callable[..., Any]:
    """Make an answer with one of its parts made otherwise."""

    def tell(action, parameters):
        parameters = chosen(list(parameters))
        first(parameters)
        before = [record(p) for p in parameters]
        action()
        found = combine([differ(a, (after or record)(p)) for a, p in zip(before, parameters, strict=True)])
        last(parameters)
        return found

    return tell


def _cleared(parameters):
    for p in parameters:
        p.grad = None


def _unlike(a, b):
    return a != b


_FAILS_FOR_NONE = "it fails where .grad is None: let None count as zeros"
GRADIENT_MISTAKES = Mistakes(
    [
        (_ALIAS, _told(record=lambda p: torch.zeros_like(p) if p.grad is None else p.grad)),
        (_ALIAS, _told(record=lambda p: torch.zeros_like(p) if p.grad is None else p.grad.detach())),
        (_NONE_ONLY, _told(record=lambda p: p.grad is None, differ=_unlike)),
        (_NONE_ONLY, _told(record=lambda p: p.grad is None, differ=lambda a, b: a and not b)),
        (_ANY_THERE, _told(differ=lambda a, b: b is not None, after=lambda p: p.grad)),
        (_ANY_THERE, _told(differ=lambda a, b: bool(b.any()))),
        (_SUMS, _told(record=lambda p: _copied(p).sum())),
        (_SUMS, _told(record=lambda p: _copied(p).mean())),
        (_SUMS, _told(record=lambda p: _copied(p).sum().item(), differ=_unlike)),
        (_NORMS, _told(record=lambda p: _copied(p).norm())),
        (_NORMS, _told(record=lambda p: _copied(p).abs().sum())),
        (_NORMS, _told(record=lambda p: _copied(p).square().sum())),
        (_TOLERANT, _told(differ=lambda a, b: not torch.allclose(a, b))),
        (_TOLERANT, _told(differ=lambda a, b: bool((a - b).abs().max() > 1e-4))),
        (_TOLERANT, _told(differ=lambda a, b: bool((a - b).norm() > 1e-3))),
        (_CLEARS, _told(first=_cleared)),
        (_FIRST, _told(chosen=lambda parameters: parameters[:1])),
        (_ALL, _told(combine=all)),
        (_INVERTED, _told(combine=lambda differ: not any(differ))),
        (_INVERTED, _told(differ=torch.equal, combine=all)),
        (_VALUES, _told(record=lambda p: p.detach().clone())),
        (_ZEROS_COUNT, _told(differ=lambda a, b: b is None or not torch.equal(a, b), after=lambda p: p.grad)),
        (_SKIPS, _told(record=lambda p: None if p.grad is None else p.grad.clone(), after=_copied,
                       differ=lambda a, b: a is not None and not torch.equal(a, b))),
        (_SKIPS_AFTER, _told(after=lambda p: p.grad, differ=lambda a, b: b is not None and not torch.equal(a, b))),
        (_IDENTITY, _told(record=lambda p: p.grad, differ=lambda a, b: a is not b)),
        (_NO_BOOL.format("list"), _told(combine=list)),
        (_NO_BOOL.format("int"), _told(combine=sum)),
        (_NO_BOOL.format("str"), _told(combine=lambda differ: "changed" if any(differ) else "unchanged")),
        (_RESTORES, _told(last=_cleared)),
        (_WEIGHTS_MOVED, _told(last=lambda parameters: parameters[0].data.add_(1.0))),
        (_FAILS_FOR_NONE, _told(record=lambda p: p.grad.clone())),
        (_FAILS_FOR_NONE, _told(record=lambda p: copy.deepcopy(p.grad))),
        (_SAME_EVER, lambda action, parameters: action() is not None),
    ]
)  # fmt: skip


@GRADIENT_MISTAKES(_ZEROS_COUNT)
def told_with_none_apart(action, parameters):
    parameters = list(parameters)
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    action()
    return any(
        (b is None) != (p.grad is None) or (b is not None and not torch.equal(b, p.grad))
        for b, p in zip(before, parameters, strict=True)
    )


@GRADIENT_MISTAKES(_ITERATOR)
def told_of_an_empty_iterator(action, parameters):
    before = [_copied(p) for p in parameters]
    action()
    return any(not torch.equal(a, _copied(p)) for a, p in zip(before, parameters, strict=False))


@GRADIENT_MISTAKES(_ITERATOR)
def told_of_an_empty_iterator_strictly(action, parameters):
    before = [_copied(p) for p in parameters]
    action()
    return any(not torch.equal(a, _copied(p)) for a, p in zip(before, parameters, strict=True))


@GRADIENT_MISTAKES(_ITERATOR)
def told_of_what_has_no_length(action, parameters):
    before = [_copied(parameters[i]) for i in range(len(parameters))]
    action()
    return any(not torch.equal(a, _copied(parameters[i])) for i, a in enumerate(before))


@GRADIENT_MISTAKES(_LISTS)
def told_by_lists(action, parameters):
    parameters = list(parameters)
    before = [_copied(p) for p in parameters]
    action()
    return before != [_copied(p) for p in parameters]


@GRADIENT_MISTAKES(_SHAPES)
def told_of_a_stack(action, parameters):
    parameters = list(parameters)
    before = torch.stack([_copied(p) for p in parameters])
    action()
    return not torch.equal(before, torch.stack([_copied(p) for p in parameters]))


@GRADIENT_MISTAKES(_TWICE_RUN)
def told_of_two_runs(action, parameters):
    action()
    return changes_gradients(action, parameters)


@GRADIENT_MISTAKES(_NOT_RUN)
def told_of_no_run(action, parameters):
    return changes_gradients(lambda: action, parameters)


def _judge_told(attempt: Attempt) -> str | None:
    if complaint := _refuse(attempt):
        return complaint
    left: list[dict[str, Any]] = []
    for case in _ACTIONS:
        try:
            left.append(attempt.run(told_of, case))
        except Exception as error:
            if said := _in_words(explain(error), case):
                return said
            raise
    told, wanted = [it["told"] for it in left], _told_by(changes_gradients)
    calls = {it["calls"] for it in left}
    if calls != {1}:
        return _NOT_RUN if 0 in calls else _TWICE_RUN
    kinds = [it[1:-1] for it in told if isinstance(it, str)]
    if kinds:
        return _NO_BOOL.format(kinds[0])
    if not all(it["weights"] for it in left):
        return _WEIGHTS_MOVED
    if not any(told):
        return _SAME_EVER
    if told == wanted:
        return None if all(it["kept"] for it in left) else _RESTORES
    for message, code in GRADIENT_MISTAKES:
        if _told_by(code) == told:
            return message
    wrong = [a == b for a, b in zip(told, wanted, strict=True)].index(False)
    return f"for {[*_ACTIONS][wrong]} it returns {told[wrong]}, expected {wanted[wrong]}"


def _in_words(raised: str, case: str) -> str | None:
    """Say what an exception means here, if it is known."""
    if "NoneType" in raised:
        return _FAILS_FOR_NONE
    if "Boolean value of Tensor" in raised:
        return _LISTS
    if "equal size" in raised:
        return _SHAPES
    by_iterator = _ACTIONS[case][1]
    return _ITERATOR if by_iterator and not raised.startswith(("a gap", "it returns None")) else None


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="13.1",
        title="Freeze what makes the latents",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=decoder_only,
        in_package=(setup.set_up,),
        hints=(
            "Two parts make the latents, the encoder and quant_conv; two parts come after them.",
            "module.requires_grad_(False), with the _ at its end, freezes all parameters of a module, also those of "
            "none; requires_grad_(True) undoes it.",
            "Return [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()].",
        ),
        judge=_judge_freezing,
        mistakes=FREEZING_MISTAKES,
    ),
    Exercise(
        id="13.2",
        title="The first module that is not finite",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=first_nonfinite,
        in_package=(steps.check_finite,),
        hints=(
            "module.register_forward_hook(hook) calls hook(module, inputs, output) after each forward pass of this "
            "module; the hook needs the module's name, so make one for each name.",
            "A hook that appends its name to a list, if torch.is_tensor(output) and not output.isfinite().all(): the "
            "order of the list is the order of the calls.",
            "Keep the handles that register_forward_hook returns, and call remove() on each after model(x).",
            "found[0] if found else None: the model's own name is '', which is False.",
        ),
        judge=_judge_hunt,
        mistakes=HUNT_MISTAKES,
    ),
    Exercise(
        id="13.3",
        title="Does it change gradients?",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=3,
        reference=changes_gradients,
        in_package=(steps.discriminator_step,),
        hints=(
            "Copy every gradient, run the action, and compare. parameters may be an iterator: make a list of it first.",
            "p.grad.clone(): without a copy both are the same tensor, which backward() changes in place. Where p.grad "
            "is None, take torch.zeros_like(p).",
            "torch.equal(a, b) for each pair; True if any pair differs.",
        ),
        judge=_judge_told,
        mistakes=GRADIENT_MISTAKES,
    ),
)
