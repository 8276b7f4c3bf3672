"""What a model offers beside its arithmetic: its weights as files, streams and vectors, and how it is computed."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import torch
from torch import Tensor, nn

from klvae_edu.attention import BACKENDS
from klvae_edu.blocks import CHECKPOINTED, Attention
from klvae_edu.config import AutoencoderKLConfig

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL


class ModelMixin(nn.Module):
    """Base of `AutoencoderKL`. The name is diffusers', where the counterpart of this class has it."""

    config: AutoencoderKLConfig
    inference_only = False  # True: a copy that `optimize` made, which is neither trained nor saved

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def get_parameters(self) -> Tensor:
        """A copy of all parameters in one vector, (num_parameters(),), in the order of `parameters()`."""
        return nn.utils.parameters_to_vector(self.parameters()).detach()

    def set_parameters(self, vector: Tensor) -> None:
        """Copy a vector such as `get_parameters` returns into the parameters.

        Raises:
            ValueError: not (num_parameters(),) real numbers. The model is left as it was.
        """
        expected = f"expected a Tensor of shape ({self.num_parameters()},) with floating-point numbers"
        if not isinstance(vector, Tensor):
            raise ValueError(f"{expected}, got {type(vector).__name__}")
        if vector.shape != (self.num_parameters(),) or not vector.is_floating_point():
            raise ValueError(f"{expected}, got {tuple(vector.shape)} in {vector.dtype}")
        parameters = list(self.parameters())
        with torch.no_grad():
            for parameter, values in zip(parameters, torch.split(vector, [p.numel() for p in parameters]), strict=True):
                parameter.copy_(values.view_as(parameter))

    def clone(self) -> Self:
        """A copy with weights of its own and the same settings."""
        return copy.deepcopy(self)

    def optimize(self, dtype: torch.dtype | None = None) -> AutoencoderKL:
        """A copy for inference that computes the same function in less time; see `inference.optimize`."""
        from klvae_edu.inference import optimize

        return optimize(self, dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        subfolder: str = "",
        revision: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> AutoencoderKL:
        """Load a model in diffusers' layout from a folder or the Hub; see `checkpoints.load_pretrained`."""
        from klvae_edu.checkpoints import load_pretrained

        return load_pretrained(folder_or_hub_id, subfolder, revision, dtype)

    @classmethod
    def from_bundled(cls, name: str = "kl-f8-mini") -> AutoencoderKL:
        """Load the trained model that comes with the package; see `checkpoints.load_bundled`."""
        from klvae_edu.checkpoints import load_bundled

        return load_bundled(name)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model in diffusers' layout; see `checkpoints.save_pretrained`."""
        from klvae_edu.checkpoints import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_single_file(
        cls, path: str | os.PathLike[str], dtype: torch.dtype | None = None, ema: bool = False, **fields: Any
    ) -> AutoencoderKL:
        """Load a model from one file under any naming scheme; see `single_file.load_single_file`."""
        from klvae_edu.single_file import load_single_file

        return load_single_file(path, dtype, ema, **fields)

    def to_single_file(self, path: str | os.PathLike[str], names: Literal["compvis", "diffusers"] = "compvis") -> None:
        """Write the model into one safetensors file; see `single_file.save_single_file`."""
        from klvae_edu.single_file import save_single_file

        save_single_file(self, path, names)

    def save_state(self, stream: BinaryIO) -> None:
        """Write weights and configuration to a binary stream; see `streams.save_state`."""
        from klvae_edu.streams import save_state

        save_state(self, stream)

    def load_state(self, stream: BinaryIO) -> None:
        """Take the weights from a binary stream that `save_state` wrote; see `streams.load_state`."""
        from klvae_edu.streams import load_state

        load_state(self, stream)

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        """Keep less for the backward pass and compute it again there: about a sixth more work, far less memory."""
        for module in self.modules():
            if isinstance(module, CHECKPOINTED):
                module.gradient_checkpointing = enable  # type: ignore[assignment]  # see blocks.run

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation for the backward pass."""
        self.enable_gradient_checkpointing(False)

    def set_attention_backend(self, name: str) -> None:
        """How attention is computed: "sdpa" (the default), "eager" or "chunked"; see `klvae_edu.attention`."""
        if name not in BACKENDS:
            raise ValueError(f"attention backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = name
