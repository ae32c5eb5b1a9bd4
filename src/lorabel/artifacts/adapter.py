"""The adapter folder: what training leaves behind, usable by its path alone.

`lorabel.json` names everything needed to answer (labels in order, encoder and its digest, tokenizer digest, pooling, head, length limit) and vouches for the weights by
digest. Where the PEFT library can express the combination, the weights carry its names and its `adapter_config.json` lies beside
them; where it cannot, those two names are not written, because it would load them and answer wrongly.

Decisions:
- Loading is strict: exact names, shapes and dtypes, matching digests, finite values, regular files. Anything else is an error, never a warning.
- A digest protects against damage, not against an attacker, who can write a new digest.
- The folder appears complete or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorabel.artifacts.canary import CANARY_VERSION
from lorabel.artifacts.layout import ADAPTER_VERSION, CARD, MANIFEST, OWN_WEIGHTS, PEFT_CONFIG, PEFT_WEIGHTS
from lorabel.artifacts.peft_format import peft_config, peft_names
from lorabel.artifacts.store import file_sha256, read_json, read_tensors, require_regular, storage_errors, sync_folder, write_json, write_tensors, write_text
from lorabel.config import SHORTEST_LENGTH
from lorabel.data.columns import TrainedColumns
from lorabel.data.types import TaskKind
from lorabel.data.windows import WindowPooling, WindowRule
from lorabel.errors import ArtifactError, ConfigError
from lorabel.families import FAMILIES, EncoderShape
from lorabel.heads import HeadKind, HeadSpec, Pooling, make_head
from lorabel.inference.answers import AnswerRule
from lorabel.methods.base import Method, make_method


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AdapterEncoder(_Section):
    """The encoder an adapter belongs to.

    Attributes:
        name: Hub id of a well-known encoder, else the folder's name.
        revision: On the hub.
        digest: Over canonical tensors.
        shape: Fields of `families.EncoderShape`, so that the folder can be checked without the encoder.
    """

    name: str
    revision: str | None
    digest: str
    shape: dict[str, Any]


class Canary(_Section):
    """Float32 logits of the shipped sentences."""

    version: int = CANARY_VERSION
    logits: list[list[float]]


class AdapterWindows(_Section):
    """How texts longer than the limit are read; the fields of `data.windows.WindowRule`."""

    stride_tokens: int = Field(ge=0)
    max_windows: int = Field(ge=1)
    pooling: WindowPooling


class AdapterColumns(_Section):
    """Columns that the training texts and labels were read from; the fields of `data.columns.TrainedColumns`."""

    texts: list[str] = Field(min_length=1)
    label: str


class AdapterManifest(_Section):
    """Content of `lorabel.json`."""

    format_version: int = ADAPTER_VERSION
    task: TaskKind = "single_label"
    labels: list[str] = Field(min_length=2)
    encoder: AdapterEncoder
    tokenizer_digest: str
    method: dict[str, Any]
    head: HeadKind
    pooling: Pooling
    max_length_tokens: int = Field(ge=SHORTEST_LENGTH)
    windows: AdapterWindows | None = None
    columns: AdapterColumns | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    thresholds: list[float] | None = None
    metrics: dict[str, Any]
    peft_compatible: bool
    peft_reason: str | None
    canary: Canary
    files: dict[str, str] = Field(default_factory=dict)
    digest: str = ""

    @property
    def rule(self) -> AnswerRule:
        """How class scores become labels."""
        return AnswerRule(self.task, self.temperature, None if self.thresholds is None else tuple(self.thresholds))

    @property
    def window_rule(self) -> WindowRule | None:
        """How longer texts are read in windows; None where they are cut."""
        return None if self.windows is None else WindowRule(**self.windows.model_dump())

    @property
    def trained_columns(self) -> TrainedColumns | None:
        """Columns that the training texts and labels were read from; None where nobody wrote them down."""
        return None if self.columns is None else TrainedColumns(tuple(self.columns.texts), self.columns.label)

    def content(self) -> dict[str, Any]:
        """What is written. A setting that is younger than the format is left out where it is not used, so that older files keep their digest and older versions can read newer ones."""
        content = self.model_dump(mode="json")
        return {name: value for name, value in content.items() if name not in ("windows", "columns") or value is not None}

    def content_digest(self) -> str:
        """SHA-256 over everything in the manifest but this digest, so that a changed label is seen as surely as a changed weight."""
        content = {name: value for name, value in self.content().items() if name != "digest"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    def encoder_shape(self) -> EncoderShape:
        """The encoder's shape.

        Raises:
            ArtifactError: Not a shape.
        """
        try:
            shape = EncoderShape(**self.encoder.shape)
        except TypeError as error:
            raise ArtifactError(f"{MANIFEST}: not an encoder shape, got {error}; expected the fields of one. Restore the file from a copy.") from error
        if shape.family not in FAMILIES:
            raise ArtifactError(
                f"{MANIFEST}: unknown encoder family, got {shape.family!r}; expected one of {', '.join(FAMILIES)}. Restore the file from a copy."
            )
        return shape


@dataclass(frozen=True)
class AdapterBundle:
    """An adapter in memory.

    Attributes:
        manifest: Content of `lorabel.json`.
        tensors: Adapter and head tensors by our names, without K, float32; `encoder.…` too after full fine-tuning.
    """

    manifest: AdapterManifest
    tensors: dict[str, Any]


def save_adapter(folder: Path, bundle: AdapterBundle, card: str) -> AdapterManifest:
    """Write an adapter folder, complete or not at all; an old one is replaced.

    Args:
        folder: Where.
        bundle: Manifest and tensors; file digests are filled in here.
        card: The model card, Markdown.

    Returns:
        The manifest as written.

    Raises:
        StorageError: The disk refused; an old folder is intact.
        ArtifactError: Tensors that do not fit the manifest, or are not finite: never saved.
    """
    manifest = bundle.manifest
    shape = manifest.encoder_shape()
    method, head = _parts(manifest, shape)
    names = stored_names(manifest, method, head, shape)
    _check_tensors(folder, bundle.tensors, expected_tensors(method, head, shape))
    temporary = folder.with_name(f".{folder.name}.writing")
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        weights = PEFT_WEIGHTS if manifest.peft_compatible else OWN_WEIGHTS
        write_tensors(temporary / weights, {names[name]: tensor for name, tensor in bundle.tensors.items()}, {"format": "pt"})
        vouched = [weights]
        if manifest.peft_compatible:
            write_json(temporary / PEFT_CONFIG, peft_config(method, shape, head, manifest.encoder.name, manifest.encoder.revision))
            vouched.append(PEFT_CONFIG)
        write_text(temporary / CARD, card)
        written = manifest.model_copy(update={"files": {name: file_sha256(temporary / name) for name in vouched}})
        written = written.model_copy(update={"digest": written.content_digest()})
        write_json(temporary / MANIFEST, written.content())
        _put_in_place(temporary, folder)
    return written


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename a whole folder to its name; the one that was there is aside until the new one stands, and comes back where it cannot."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    is_replaced = folder.exists()
    if is_replaced:
        os.rename(folder, aside)
    try:
        os.rename(temporary, folder)
    except OSError:
        if is_replaced:
            os.rename(aside, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def load_adapter(folder: Path) -> AdapterBundle:
    """Read and verify an adapter folder.

    Args:
        folder: The folder.

    Returns:
        The bundle.

    Raises:
        ArtifactError: Missing, damaged, or not what its manifest says.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such adapter folder, got {folder.name!r}; expected a folder with {MANIFEST}. Check the path.")
    if not (folder / MANIFEST).exists():
        is_theirs = (folder / PEFT_CONFIG).exists()
        advice = f"The PEFT library saved it: lorabel import {folder} --out ADAPTER makes one of it" if is_theirs else "Train one with lorabel train"
        raise ArtifactError(f"{folder}: not a lorabel adapter, got no {MANIFEST}; expected one. {advice}.")
    manifest = _read_manifest(folder)
    for name, digest in manifest.files.items():
        if name not in (OWN_WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG):
            raise ArtifactError(f"{folder / MANIFEST}: vouches for an unknown file, got {name!r}; expected our own names. Restore the file from a copy.")
        require_regular(folder / name)
        if file_sha256(folder / name) != digest:
            raise ArtifactError(f"{folder / name}: damaged or changed, got another SHA-256; expected the one in {MANIFEST}. Restore it from a copy.")
    weights = PEFT_WEIGHTS if manifest.peft_compatible else OWN_WEIGHTS
    if weights not in manifest.files:
        raise ArtifactError(
            f"{folder / MANIFEST}: does not vouch for the weights, got {sorted(manifest.files)}; expected {weights}. Restore the file from a copy."
        )
    shape = manifest.encoder_shape()
    method, head = _parts(manifest, shape)
    ours = {stored: name for name, stored in stored_names(manifest, method, head, shape).items()}
    found = read_tensors(folder / weights)
    tensors = {ours.get(stored, stored): tensor for stored, tensor in found.items()}
    _check_tensors(folder / weights, tensors, expected_tensors(method, head, shape))
    return AdapterBundle(manifest, tensors)


def expected_tensors(method: Method, head: HeadSpec, shape: EncoderShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of an adapter folder, by our names, with its shape.

    Args:
        method: The method.
        head: The head.
        shape: The encoder.
    """
    tensors = {spec.name: spec.shape for spec in (*method.parameters(shape), *method.constants(shape))}
    for layer in head.layers:
        out, inputs = head.layer_shape(layer)
        tensors |= {f"head.{layer.key}.weight": (out, inputs), f"head.{layer.key}.bias": (out,)}
    if method.trains_encoder:
        from lorabel.models.checkpoint import canonical_tensors

        has_pooler = head.reads_frozen_pooler
        tensors |= {f"encoder.{name}": size for name, (_, size) in canonical_tensors(shape).items() if has_pooler or not name.startswith("pooler.")}
    return tensors


def stored_names(manifest: AdapterManifest, method: Method, head: HeadSpec, shape: EncoderShape) -> dict[str, str]:
    """Our tensor name -> its name in the weights file."""
    expected = expected_tensors(method, head, shape)
    if not manifest.peft_compatible:
        return {name: name for name in expected}
    return peft_names(method, shape, {name: size for name, size in expected.items() if name.startswith("head.")})


def _parts(manifest: AdapterManifest, shape: EncoderShape) -> tuple[Method, HeadSpec]:
    try:
        return make_method(manifest.method), make_head(shape, manifest.head, manifest.pooling, len(manifest.labels))
    except ConfigError as error:
        raise ArtifactError(f"{MANIFEST}: method or head cannot be built, got: {error} Restore the file from a copy.") from error


def _read_manifest(folder: Path) -> AdapterManifest:
    loaded = read_json(folder / MANIFEST)
    if loaded.get("format_version") != ADAPTER_VERSION:
        raise ArtifactError(
            f"{folder / MANIFEST}: another format, got version {loaded.get('format_version')!r}; expected {ADAPTER_VERSION}. Use the lorabel that wrote it."
        )
    try:
        manifest = AdapterManifest.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(
            f"{folder / MANIFEST}: not a valid manifest, got {first['msg'].lower()} at {'.'.join(map(str, first['loc']))}; expected the fields of one. Restore the file from a copy."
        ) from error
    if manifest.content_digest() != manifest.digest:
        raise ArtifactError(
            f"{folder / MANIFEST}: damaged or changed, got another digest of its content; expected {manifest.digest[:16]!r}. Restore the file from a copy."
        )
    if manifest.thresholds is not None and len(manifest.thresholds) != len(manifest.labels):
        raise ArtifactError(
            f"{folder / MANIFEST}: thresholds do not fit the labels, got {len(manifest.thresholds)}; expected {len(manifest.labels)}. Restore the file from a copy."
        )
    if len(set(manifest.labels)) != len(manifest.labels):
        raise ArtifactError(f"{folder / MANIFEST}: a label twice, got {manifest.labels!r}; expected distinct labels. Restore the file from a copy.")
    return manifest


def _check_tensors(where: Path, tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    import torch

    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise ArtifactError(
            f"{where}: other tensors than the manifest asks for, got missing {missing[:3]} and extra {extra[:3]}; expected {len(expected)} exact names. Restore it from a copy."
        )
    for name, size in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != tuple(size) or tensor.dtype != torch.float32:
            raise ArtifactError(
                f"{where}: {name}: another shape or type, got {tuple(tensor.shape)} {tensor.dtype}; expected {tuple(size)} torch.float32. Restore it from a copy."
            )
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{where}: {name}: values that are not finite, got NaN or infinity; expected numbers. Train again with a lower learning rate.")
