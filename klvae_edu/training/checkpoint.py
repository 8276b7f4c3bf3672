"""Checkpoints: the whole state of a run, in a folder that is either complete or absent.

A checkpoint is written under a temporary name, synced and renamed, so that a run killed at any moment leaves the
earlier checkpoints intact. A run that resumes from a checkpoint computes the same bits as one that never stopped. The
learning rate and the order of the data are functions of the step and need no state; the position in a stream does.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from klvae_edu.data.listing import Listing
from klvae_edu.data.shards import StreamPosition
from klvae_edu.training.architecture import architecture, architecture_difference
from klvae_edu.training.setup import Training
from klvae_edu.weights.files import SafetensorsFile, write_safetensors

WEIGHTS, OPTIMIZERS, STATE = "weights.safetensors", "optimizers.pt", "state.json"
LISTING = "data.pt"  # hashes of the data's files; absent if there are none here, and in checkpoints of earlier versions
FORMAT = 1


def save_checkpoint(training: Training, folder: Path) -> None:
    """Write the state of `training` into `folder`.

    Every process calls it. One writes the networks; each writes its random state and its position in a stream.

    Raises:
        OSError: the disk is full or gone. The unfinished checkpoint is deleted.
    """
    accelerator = training.accelerator
    partial = partial_folder(folder)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        _save(random_states(), partial / f"random_{accelerator.process_index}.pt")
        if training.stream is not None:
            _save(training.stream.to_dict(), partial / f"stream_{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_safetensors(networks(training), partial / WEIGHTS, {"format": "pt"})
            _save(_optimizers(training), partial / OPTIMIZERS)
            if training.files is not None and len(training.files.hashes):
                _save(training.files.to_dict(), partial / LISTING)
            (partial / STATE).write_text(sealed(_description(training, partial)), encoding="utf-8")
            _sync(partial / STATE)
            _sync(partial)
            replaced = partial_folder(partial)
            if folder.exists():  # damaged, or from before the run was resumed at an earlier step
                os.rename(folder, replaced)
            os.rename(partial, folder)
            _sync(folder.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own types
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"the checkpoint of step {training.step} could not be written ({error})") from error
    accelerator.wait_for_everyone()


def load_checkpoint(training: Training, folder: Path) -> None:
    """Restore the state of `training` that `save_checkpoint` wrote.

    Raises:
        ValueError: damaged, of other networks, or of another number of processes. `training` is left unchanged.
    """
    state = read_description(folder)
    processes = training.accelerator.num_processes
    if state["processes"] != processes:
        raise ValueError(f"{folder}: a checkpoint of {state['processes']} process(es), and this run has {processes}")
    if difference := architecture_difference(training, state["architecture"]):
        raise ValueError(f"{folder}: of another {difference}")
    weights = SafetensorsFile(folder / WEIGHTS)
    if missing := networks(training).keys() - weights.keys():
        raise ValueError(f"{folder / WEIGHTS}: expected {min(missing)}, found only the tensors of other networks")
    optimizers = _load(folder / OPTIMIZERS)
    random = _load(folder / f"random_{training.accelerator.process_index}.pt")
    stream = f"stream_{training.accelerator.process_index}.pt"
    position = StreamPosition.from_dict(_load(folder / stream)) if stream in state["files"] else None
    with torch.no_grad():
        for name, tensor in networks(training).items():
            tensor.copy_(weights[name])
    training.optimizer.load_state_dict(optimizers["autoencoder"])
    if training.disc_optimizer is not None:
        training.disc_optimizer.load_state_dict(optimizers["discriminator"])
    training.step, training.stream = state["step"], position
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def read_description(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's description, and verify the size and digest of each of its files.

    Raises:
        ValueError: there is no checkpoint, or a file is missing, truncated or changed.
    """
    path = folder / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"{folder}: a checkpoint of format {state['format']}, this version reads {FORMAT}")
        if state.pop("seal") != _seal(state):
            raise KeyError("seal")
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no checkpoint here: {STATE} is missing") from error
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, not the description of a checkpoint") from error
    for name, expected in state["files"].items():
        found = _fingerprint(folder / name) if (folder / name).is_file() else None
        if found != expected:
            what = "missing" if found is None else f"{found['bytes']} bytes of {expected['bytes']}"
            same_length = found is not None and found["bytes"] == expected["bytes"]
            raise ValueError(f"{folder / name}: damaged: {'its contents have changed' if same_length else what}")
    return state


def read_listing(folder: Path) -> Listing | None:
    """Read the listing of the files of the data in a checkpoint that is intact; None: it has none."""
    return Listing.from_dict(_load(folder / LISTING)) if (folder / LISTING).exists() else None


def sealed(description: Mapping[str, Any]) -> str:
    """Format `state.json`: a checkpoint's description, and its digest, which detects any change."""
    return json.dumps({**description, "seal": _seal(description)}, indent=1)


def partial_folder(folder: Path) -> Path:
    """Return the temporary path to which a checkpoint is written."""
    return folder.with_name(f".{folder.name}.partial")


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, renamed first: a folder that is half deleted must not look like a checkpoint."""
    gone = partial_folder(folder)
    folder.rename(gone)
    shutil.rmtree(gone)


def networks(training: Training) -> dict[str, Tensor]:
    """Collect the tensors of all networks by name, not copied."""
    found: dict[str, torch.nn.Module | None] = {
        "autoencoder": training.vae,
        "average": training.ema,
        "discriminator": training.patchgan if training.discriminator is not None else None,
    }
    return {
        f"{network}.{name}": tensor
        for network, module in found.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    }


def random_states() -> dict[str, Tensor]:
    """Return the random states of this process. PyTorch's are enough: crops are functions of seed and index."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _optimizers(training: Training) -> dict[str, Any]:
    found = {"autoencoder": training.optimizer, "discriminator": training.disc_optimizer}
    return {name: optimizer.state_dict() for name, optimizer in found.items() if optimizer is not None}


def _description(training: Training, partial: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": training.step,
        "processes": training.accelerator.num_processes,
        "architecture": architecture(training),
        "config": training.config.to_dict(),
        "perceptual_weights": training.perceptual_weights,
        "files": {path.name: _fingerprint(path) for path in sorted(partial.iterdir())},
    }


def _seal(description: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
    return {"bytes": path.stat().st_size, "blake2b": digest}


def _save(content: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch says "unexpected pos"; its cause is the real reason
            raise error.__context__ from None
        raise
    _sync(path)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:  # its message would tell how to run foreign code
        raise ValueError(
            f"{path}: expected tensors, numbers and their names, got something else or a damaged file"
        ) from error


def _sync(path: Path) -> None:
    """Force a file, or a folder's list of files, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
