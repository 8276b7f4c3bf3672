"""`ModelMixin`: loading, saving and copying, for models that are built from an `AutoencoderKLConfig`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import torch
from torch import Tensor, nn

from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.weights.any_model import read_model
from klvae_edu.weights.checks import check_dtype, check_fit, checked_copies
from klvae_edu.weights.folders import read_pretrained
from klvae_edu.weights.keys import uncompiled
from klvae_edu.weights.pretrained import FREE_FIELDS, bundled_folder, write_pretrained
from klvae_edu.weights.single_file import StoredModel, read_single_file, warn, write_single_file
from klvae_edu.weights.streams import SOURCE, read_header, read_tensors, write_state


class ModelMixin(nn.Module):
    """Base of `AutoencoderKL`; its counterpart in diffusers has the same name.

    A subclass is built by `cls(config)`.
    """

    config: AutoencoderKLConfig
    inference_only = False  # True: a copy that `optimize` made, which can be neither trained nor saved

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """Count the parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def get_parameters(self) -> Tensor:
        """Copy all parameters into one vector, (num_parameters(),), in the order of `parameters()`."""
        return nn.utils.parameters_to_vector(self.parameters()).detach()

    def set_parameters(self, vector: Tensor) -> None:
        """Copy a vector such as `get_parameters` returns into the parameters.

        Raises:
            ValueError: not a floating-point vector of shape (num_parameters(),). The model is left unchanged.
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
        """Make a copy with its own weights and the same settings."""
        return copy.deepcopy(self)

    # ---- Loading: each builds the class that it is called on ---------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        subfolder: str = "",
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
    ) -> Self:
        """Load a model that `save_pretrained` wrote, here or in diffusers.

        Args:
            folder_or_hub_id: a folder, or a Hub id such as "stabilityai/sd-vae-ft-mse" (downloaded, or from the cache);
                of a whole pipeline, its autoencoder is loaded.
            subfolder: folder of the model inside it, such as "vae" in a pipeline.
            revision: branch, tag or commit on the Hub.
            dtype: data type of the weights; None: same as in the file.
            variant: variant of the weights, such as "fp16"; None: those without a variant, or the only variant.

        Raises:
            FileNotFoundError: no folder with a model, and not available on the Hub.
            ValueError: the weights do not fit the configuration (the message lists the tensors by name and shape), are
                not finite, or cannot be read.
        """
        check_dtype(dtype)
        return cls._from_stored(read_pretrained(folder_or_hub_id, subfolder, revision, variant), dtype)

    @classmethod
    def from_any(cls, source: str | os.PathLike[str], dtype: torch.dtype | None = None, **fields: Any) -> Self:
        """Load a model, whatever it is in: what every command does with the name of a model.

        Args:
            source: a bundled model, a weight file, a folder, a Hub id with or without a path in it ("owner/name/vae"),
                or the address of its page; after "#" the prefix to take, or "ema"; see `weights.any_model.read_model`.
            dtype: data type of the weights; None: same as in the file.
            **fields: single fields of the configuration by name, such as norm_num_groups=8 or scaling_factor=0.13025.

        Raises:
            FileNotFoundError: no such file or folder, and not available on the Hub.
            ValueError: as `from_pretrained` and `from_single_file`.
        """
        check_dtype(dtype)
        return cls._from_stored(read_model(source, **fields), dtype)

    @classmethod
    def from_bundled(cls, name: str = "kl-f8-mini") -> Self:
        """Load a trained model that comes with the package, in float32 (the file has float16).

        Both have f = 8 and 2.1 million parameters. "kl-f8-mini" has 4 latent channels, as Stable Diffusion, and
        "kl-f8-mini-16" has 16, as SD3 and FLUX. Their model cards are `assets/NAME/README.md`. Nothing is downloaded.

        Raises:
            ValueError: no bundled model of that name.
        """
        return cls.from_pretrained(bundled_folder(name), dtype=torch.float32)

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        ema: bool = False,
        prefix: str | None = None,
        **fields: Any,
    ) -> Self:
        """Load the autoencoder in one file, under any naming scheme, prefix and nesting; `docs/files.md` lists them.

        One warning says which other tensors were left out, one that a scaling factor is a guess, where it is one.

        Args:
            path: `.safetensors`, `.sft`, a pickle (`.ckpt`, `.pt`, `.pth`, `.bin`), or the `.index.json` of shards.
            dtype: data type of the weights; None: same as in the file.
            ema: load the averaged weights, if the file holds trained and averaged ones.
            prefix: load the autoencoder under this prefix, such as "first_stage_model"; None: the only one.
            **fields: single fields of the configuration by name, such as norm_num_groups=8 or scaling_factor=0.13025.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file contains no complete autoencoder (the message lists the tensors by name and shape), is
                damaged, or claims more than it holds; an unknown field or dtype. Nothing in it is executed.
        """
        check_dtype(dtype)
        return cls._from_stored(read_single_file(path, ema, prefix, **fields), dtype)

    @classmethod
    def from_weights(
        cls,
        config: AutoencoderKLConfig,
        weights: Mapping[str, Tensor],
        source: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the model of `config` with copies of `weights`, which have current diffusers' names.

        Args:
            source: origin of the weights, for error messages.
            dtype: data type of the copies; None: same as `weights`.

        Raises:
            ValueError: `weights` do not fit `config`, are not of one floating-point type, or are not finite.
        """
        check_dtype(dtype)
        source = Path(source)
        try:
            model = cls._on_meta(config)
        except (RuntimeError, TypeError) as error:  # sizes beyond what PyTorch can count
            raise ValueError(f"{source}: no model can be built of {config} ({str(error).splitlines()[0]})") from error
        model.load_state_dict(checked_copies(model.state_dict(), weights, source, dtype), strict=True, assign=True)
        return model

    def load_state(self, stream: BinaryIO) -> None:
        """Load a state that `save_state` wrote into this model. No byte after the state is read.

        Of a state of another architecture, and of one with more bytes than the model's weights in float64 have, only
        the beginning is read.

        The model keeps its data type and device. It takes over the scaling of latents and the other fields of the
        configuration that do not change the network.

        Raises:
            ValueError: a state of another architecture (the fields are listed) or with too many bytes, not a binary
                stream, an empty stream, or a stream that ends too early. The model is left unchanged.
        """
        header = read_header(stream)
        expected, got = asdict(self.config), asdict(header.config)
        differing = [name for name in expected if name not in FREE_FIELDS and expected[name] != got[name]]
        if differing:
            listed = "; ".join(f"{name}: expected {expected[name]}, got {got[name]}" for name in differing)
            raise ValueError(f"{SOURCE} is of another architecture: {listed}")
        largest = sum(tensor.numel() for tensor in self.state_dict().values()) * torch.float64.itemsize
        weights = read_tensors(stream, header, limit=largest)
        names = {name: uncompiled(name) for name in self.state_dict()}
        own = {names[name]: tensor for name, tensor in self.state_dict().items()}
        weights = checked_copies(own, weights, SOURCE, self.dtype)
        self.load_state_dict({name: weights[plain] for name, plain in names.items()})
        self.config = replace(self.config, **{name: getattr(header.config, name) for name in FREE_FIELDS})

    # ---- Saving ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model in diffusers' layout, `config.json` and `diffusion_pytorch_model.safetensors`.

        A warning names fields of the configuration that diffusers ignores, such as `padding_mode="reflect"`.

        Raises:
            ValueError: as `checked_weights`.
            OSError: the disk is full or not available. Earlier files are left unchanged.
        """
        write_pretrained(self.config, self.checked_weights(), folder)
        if ignored := self.config.ignored_by_diffusers():
            values = ", ".join(f"{name}={getattr(self.config, name)!r}" for name in ignored)
            warn(f"diffusers' {self.config.diffusers_class} ignores {values}: there, this model is another one")

    def to_single_file(self, path: str | os.PathLike[str], names: Literal["compvis", "diffusers"] = "compvis") -> None:
        """Write the model into one safetensors file, with CompVis' names (which other programs expect) or diffusers'.

        Raises:
            ValueError: a suffix other than .safetensors, or unknown `names`; as `checked_weights`.
            OSError: the disk is full or not available. An earlier file is left unchanged.
        """
        write_single_file(self.config, self.checked_weights(), path, names)

    def save_state(self, stream: BinaryIO) -> None:
        """Write weights and configuration to a binary stream and flush it. The stream stays open.

        Raises:
            ValueError: not a binary stream that is open for writing; as `checked_weights`.
        """
        write_state(self.config, self.checked_weights(), stream)

    def checked_weights(self) -> dict[str, Tensor]:
        """Return the weights under diffusers' names, also when parts of the model are compiled.

        Raises:
            ValueError: the weights do not fit the configuration, because parts of the model were changed (the message
                lists the tensors); or the model is a copy for inference that `optimize` made.
        """
        if self.inference_only:
            raise ValueError(
                "expected the model itself, got a copy that optimize() made: its weights have another form"
            )
        weights = {uncompiled(name): tensor for name, tensor in self.state_dict().items()}
        check_fit(self._on_meta(self.config).state_dict(), weights, "the model")
        return weights

    @classmethod
    def _from_stored(cls, stored: StoredModel, dtype: torch.dtype | None) -> Self:
        model = cls.from_weights(stored.config, stored.weights, stored.path, dtype)
        for note in stored.notes:
            warn(f"{stored.path}: {note}")
        return model

    @classmethod
    def _on_meta(cls, config: AutoencoderKLConfig) -> Self:
        """Build the model of `config` on the meta device: names and shapes, without random weights."""
        with torch.device("meta"):
            return cls(config)
