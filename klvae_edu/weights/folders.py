"""Read models from folders in diffusers' layout and from the Hugging Face Hub: any variant, shards, a pipeline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from klvae_edu.config import check_field_names
from klvae_edu.weights.contents import INDEX, SUFFIXES, open_contents
from klvae_edu.weights.pretrained import CONFIG_NAME, WEIGHTS_NAME, check_config, read_config
from klvae_edu.weights.single_file import StoredModel, select_model

_PIPELINE = "model_index.json"
_VAE = "vae"  # the folder of the autoencoder in a pipeline
# diffusers' names: a file, one of its shards, or the list of the shards; a variant such as fp16 is in the middle.
_WEIGHTS = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<variant>[\w-]+?))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<variant_of_index>[\w-]+))?\.json)?"
)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+")


class Files(NamedTuple):
    """The files of a model, here or on the Hub.

    Attributes:
        where: the folder or the repository, for error messages.
        names: of the files in the folder, and "vae/…" of those one folder below.
        path: gives the path of a file on this machine; downloads it if it is missing.
    """

    where: str
    names: list[str]
    path: Callable[[str], Path]


def read_pretrained(
    folder_or_hub_id: str | os.PathLike[str],
    subfolder: str = "",
    revision: str | None = None,
    variant: str | None = None,
    ema: bool = False,
    prefix: str | None = None,
    **fields: Any,
) -> StoredModel:
    """Read a model's configuration and weights from a folder or from the Hub.

    Args:
        folder_or_hub_id: a folder, or a Hub id such as "stabilityai/sd-vae-ft-mse"; of a pipeline, its `vae` is read.
        subfolder: folder of the model inside it, such as "vae" in a pipeline.
        revision: branch, tag or commit on the Hub.
        variant: variant of the weights, such as "fp16"; None: those without a variant, or the only variant.
        ema: as in `read_single_file`.
        prefix: as in `read_single_file`.
        **fields: single fields of the configuration by name.

    Raises:
        FileNotFoundError: no folder with a model, and not available on the Hub.
        ValueError: a file that cannot be read, a model of another class, or several variants to choose from.
    """
    check_field_names(fields)
    files = find_files(folder_or_hub_id, subfolder, revision)
    inside = f"{_VAE}/" if CONFIG_NAME not in files.names and f"{_VAE}/{CONFIG_NAME}" in files.names else ""
    names = [
        name.removeprefix(inside) for name in files.names if name.startswith(inside) and "/" not in name[len(inside) :]
    ]
    if CONFIG_NAME not in names and (_PIPELINE in names or not _weight_files(names)):
        raise FileNotFoundError(
            f"{files.where}: expected {CONFIG_NAME} and {WEIGHTS_NAME}, found {_listing(names)}{_nearby(files.where)}"
        )
    config_path = files.path(inside + CONFIG_NAME) if CONFIG_NAME in names else None
    config = read_config(config_path) if config_path else None
    weights = choose_weights(names, variant, files.where)
    path = files.path(inside + weights)
    contents = open_contents(path)
    if config_path and config:
        check_config(config_path, path, contents.metadata, fields.keys())
    try:
        found = select_model(contents, path, config, ema, prefix, fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    other = "is another program's" if CONFIG_NAME in names else "is missing"
    notes = [
        *found.notes,
        *([] if config else [f"{CONFIG_NAME} {other}: the configuration is inferred from the tensors"]),
    ]
    style = "a folder in diffusers' layout" if found.style == "diffusers' names" else f"a folder, {found.style}"
    return found._replace(style=style, notes=notes)


def choose_weights(names: Sequence[str], variant: str | None, where: str) -> str:
    """Choose the weight file, or the list of shards, among the files of a folder: safetensors before pickles.

    Raises:
        FileNotFoundError: there is none, or none of this variant.
        ValueError: there are several to choose from.
    """
    ranked: dict[str, list[tuple[bool, bool, str]]] = {}
    for name in names:
        if not _SHARD.fullmatch(name) and (match := _WEIGHTS.fullmatch(name)):
            of = match["variant"] or match["variant_of_index"] or ""
            ranked.setdefault(of, []).append((match["kind"] != "safetensors", match["index"] is not None, name))
    if variant is None and ranked:
        if "" not in ranked and len(ranked) > 1:
            raise ValueError(f"{where}: several variants of the weights; choose with variant={_choices(ranked)}")
        variant = "" if "" in ranked else next(iter(ranked))
    if variant is not None and variant in ranked:
        return min(ranked[variant])[2]
    if variant is not None:
        there = f"there are {_choices(ranked)}" if ranked else f"found {_listing(names)}"
        raise FileNotFoundError(f"{where}: no weights of the variant {variant!r}; {there}")
    others = _weight_files(names)
    if len(others) == 1:
        return others[0]
    if others:
        raise ValueError(f"{where}: several weight files, {', '.join(others)}; name the file itself")
    raise FileNotFoundError(f"{where}: expected {WEIGHTS_NAME} or another variant of it, found {_listing(names)}")


def find_files(source: str | os.PathLike[str], subfolder: str, revision: str | None) -> Files:
    """Find the files of a folder on this machine, of a repository on the Hub, or of one in its cache.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: `source` is a file.
    """
    root = Path(source).expanduser()
    folder = root / subfolder
    if root.is_file():
        raise ValueError(f"{source}: expected a folder, got a file; AutoencoderKL.from_single_file reads it")
    if folder.is_dir():
        return _files_of(folder)
    if root.is_dir():
        found = _listing(sorted(path.name for path in root.iterdir()))
        raise FileNotFoundError(f"{source}: expected a folder {subfolder!r} in it, found {found}")
    return _on_hub(str(source), subfolder, revision)


def _files_of(folder: Path) -> Files:
    inside = filter(Path.exists, [*folder.iterdir(), *(folder / _VAE).glob("*")])  # without broken links
    return Files(str(folder), sorted(path.relative_to(folder).as_posix() for path in inside), folder.joinpath)


def _nearby(folder: str) -> str:
    """Name a folder below that has a model, as a run of training has and the cache of the Hub."""
    found = sorted(
        path.parent for pattern in ("*", "snapshots/*") for path in Path(folder).glob(f"{pattern}/config.json")
    )
    return f"; there is one in {found[0]}" if found else ""


def _on_hub(hub_id: str, subfolder: str, revision: str | None) -> Files:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    from klvae_edu.downloads import SILENCE

    try:
        found = HfApi().model_info(hub_id, revision=revision, timeout=SILENCE)  # list_repo_files has no time limit
        listed = [file.rfilename for file in found.siblings or ()]
    except Exception as reason:  # no network, no such repository, no access, or not a Hub id
        try:  # what an earlier download left in the cache
            return _files_of(Path(snapshot_download(hub_id, revision=revision, local_files_only=True)) / subfolder)
        except Exception:
            raise FileNotFoundError(
                f"{hub_id!r} is not a folder here, and the Hugging Face Hub gave no model for it "
                f"({type(reason).__name__}: {str(reason).strip().splitlines()[0]}). "
                "Without a network, pass the folder of a saved model."
            ) from reason
    inside = f"{subfolder}/" if subfolder else ""
    names = [name.removeprefix(inside) for name in listed if name.startswith(inside)]

    def download(name: str) -> Path:
        folder = name.rpartition("/")[0]
        shards = [n for n in names if INDEX.fullmatch(name) and _SHARD.fullmatch(n) and n.rpartition("/")[0] == folder]
        return [Path(hf_hub_download(hub_id, inside + file, revision=revision)) for file in (*shards, name)][-1]

    return Files(f"{hub_id}/{subfolder}".rstrip("/"), names, download)


def _weight_files(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(SUFFIXES) and not _SHARD.fullmatch(name)]


def _choices(ranked: dict[str, Any]) -> str:
    return " or ".join(repr(of) for of in sorted(ranked))


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") if names else "nothing"
