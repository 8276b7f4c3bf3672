"""Exercises of notebook 13: right answers in many styles, and mistakes that no list has."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from klvae_edu import AutoencoderKL
from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

# Right answers


def freeze_by_name(vae):
    for name, parameter in vae.named_parameters():
        parameter.requires_grad = name.startswith(("decoder.", "post_quant_conv."))
    return [parameter for parameter in vae.parameters() if parameter.requires_grad]


def freeze_all_and_thaw(vae):
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    return list(vae.decoder.parameters()) + list(vae.post_quant_conv.parameters())


def freeze_and_filter(vae):
    vae.requires_grad_(True)
    for parameter in itertools.chain(vae.encoder.parameters(), vae.quant_conv.parameters()):
        parameter.requires_grad_(False)
    return filter(lambda parameter: parameter.requires_grad, vae.parameters())


def freeze_and_give_a_tuple(vae):
    frozen = {id(p) for p in (*vae.encoder.parameters(), *vae.quant_conv.parameters())}
    for p in vae.parameters():
        p.requires_grad_(id(p) not in frozen)
    return tuple(p for p in vae.parameters() if id(p) not in frozen)


def freeze_in_a_generator(vae):
    return (parameter for parameter in freeze_by_name(vae))


class _Found(Exception):
    pass


def hunt_and_stop(model, x):
    def hook_of(name):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                raise _Found(name)

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules()]
    try:
        model(x)
    except _Found as found:
        return found.args[0]
    finally:
        for handle in handles:
            handle.remove()
    return None


def hunt_by_names(model, x):
    names = {module: name for name, module in model.named_modules()}
    first, handles = [], []
    for module in names:

        def hook(module, inputs, output):
            if not first and isinstance(output, torch.Tensor) and (output.isnan() | output.isinf()).any():
                first.append(names[module])

        handles.append(module.register_forward_hook(hook))
    model(x)
    [handle.remove() for handle in handles]
    return next(iter(first), None)


def hunt_with_a_default(model, x):
    seen = {}

    def watch(name, module, inputs, output):
        outputs = output if isinstance(output, tuple) else (output,)
        bad = any(torch.is_tensor(it) and bool((~it.detach().isfinite()).any()) for it in outputs)
        if bad:
            seen.setdefault("first", name)

    with torch.inference_mode():
        handles = [
            module.register_forward_hook(lambda *args, name=name: watch(name, *args))
            for name, module in model.named_modules()
        ]
        model(x)
    while handles:
        handles.pop().remove()
    return seen.get("first")


def told_by_numpy(action, parameters):
    parameters = [*parameters]
    before = [np.zeros(p.shape) if p.grad is None else p.grad.numpy().copy() for p in parameters]
    action()
    after = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in parameters]
    return any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def told_by_one_vector(action, parameters):
    parameters = list(parameters)

    def vector():
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])

    before = vector()
    action()
    return (vector() != before).any()


def told_by_a_loop(action, parameters):
    pairs = [(p, copy.deepcopy(p.grad)) for p in parameters]
    action()
    for p, grad in pairs:
        a = 0 * p.detach() if grad is None else grad
        b = 0 * p.detach() if p.grad is None else p.grad
        if (a - b).abs().max() > 0:
            return True
    return False


@all_verdicts(
    {
        "13.1": (
            freeze_by_name,
            freeze_all_and_thaw,
            freeze_and_filter,
            freeze_and_give_a_tuple,
            freeze_in_a_generator,
        ),
        "13.2": (hunt_and_stop, hunt_by_names, hunt_with_a_default),
        "13.3": (told_by_numpy, told_by_one_vector, told_by_a_loop),
    }
)
def test_right_answers_in_other_styles_pass(id, answer):
    assert_passes(id, answer)


# Answers that are wrong in another way


def test_a_name_that_is_wrong_in_one_model_is_described():
    def hunt(model, x):
        name = EXERCISES["13.2"].reference(model, x)
        return name if name is None or "." not in name else name.split(".")[0]

    assert_rejected("13.2", hunt, "with the layer inside of two nn.Sequential it returns 'outer', expected 'outer.1.1'")


@pytest.mark.parametrize("id", ["13.1", "13.2", "13.3"])
def test_an_answer_without_return_is_told_so(id):
    assert_rejected(id, lambda *arguments: None, "is a return missing")


@pytest.mark.parametrize("id", ["13.1", "13.2", "13.3"])
def test_a_result_in_place_of_the_function_is_told_so(id):
    assert_rejected(id, torch.zeros(()), "expected the function itself")


def test_an_exception_of_a_hunt_is_quoted():
    def hunt(model, x):
        raise KeyError("no such module")

    assert_rejected("13.2", hunt, "it raised KeyError: 'no such module'")


def test_a_hook_for_all_modules_is_found_and_taken_off():
    everywhere = torch.nn.modules.module._global_forward_hooks

    def hunt(model, x):
        torch.nn.modules.module.register_module_forward_hook(lambda *arguments: None)
        return EXERCISES["13.2"].reference(model, x)

    assert_rejected("13.2", hunt, "hooks are left in the model")
    assert not everywhere


# The solutions do what the notebook says


def test_a_step_on_these_parameters_leaves_the_latents_as_they_are():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    images = torch.randn(1, 3, 16, 16).clamp(-1, 1)
    before = vae.encode(images).latent_dist.parameters
    optimizer = torch.optim.AdamW(EXERCISES["13.1"].reference(vae), 0.1)
    decoded = vae(images).sample
    decoded.square().mean().backward()
    optimizer.step()
    assert torch.equal(vae.encode(images).latent_dist.parameters, before)
    assert not torch.allclose(vae(images).sample, decoded)
