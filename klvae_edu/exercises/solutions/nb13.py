"""Solutions of notebook 13. Written by tools.solutions from notebooks/source/13_for_work.py; edit that."""

import torch


def decoder_only(vae):
    """Freeze the parts of `vae` that make the latents, train the rest -> a list of the parameters to train."""
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    for part in (vae.post_quant_conv, vae.decoder):
        part.requires_grad_(True)
    return [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]


def first_nonfinite(model, x):
    """The name of the first module of `model(x)` whose output has a value that is not finite, or None."""
    found = []

    def look(name):
        def hook(module, inputs, output):
            if torch.is_tensor(output) and not output.isfinite().all():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


def changes_gradients(action, parameters):
    """Run action(), and tell whether it changed the gradient of any of the parameters (None counts as zeros)."""
    parameters = list(parameters)

    def gradients():
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]

    before = gradients()
    action()
    return not all(map(torch.equal, before, gradients()))
