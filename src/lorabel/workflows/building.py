"""From a prepared run to a bank and its updater; from an adapter on disk to a predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabel.artifacts.adapter import AdapterBundle, AdapterManifest, load_adapter
from lorabel.artifacts.canary import CANARY_SENTENCES
from lorabel.config import EncoderConfig, Precision
from lorabel.data.packing import tokenise
from lorabel.data.types import LabelMap, TokenTable, class_counts
from lorabel.errors import ArtifactError
from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec, make_head
from lorabel.inference.predictor import Predictor, table_logits
from lorabel.methods.base import Method, ParameterSpec, make_method
from lorabel.models.bank import ENCODER_PREFIX, Bank, corner, stacked_constants, stacked_parameters
from lorabel.models.checkpoint import EncoderSource, load_tokenizer, load_weights, made_once, resolve_encoder, weights_digest
from lorabel.models.encoder import PackedEncoder
from lorabel.models.heads import INITIAL_STD, head_shapes
from lorabel.models.joint_sites import split_queries_keys_values
from lorabel.slots import Start
from lorabel.training.optim import Arena, Block
from lorabel.training.precision import choose_compute
from lorabel.training.randomness import initial_head_tensor, initial_tensor, named_generator
from lorabel.training.updates import ArenaUpdater, LibraryUpdater, Updater, takes_decay
from lorabel.workflows.dropout import head_dropout
from lorabel.workflows.preparation import Prepared

CANARY_TOLERANCE = 1e-3
# Each of several labels is a rare yes among many noes, and the head is slow to tell them apart at the adapter's rate: this one is best for LoRA and for full fine-tuning,
# whose own rates are a tenth and a hundredth of it (benchmarks/results/multi_label.md).
_MULTI_LABEL_HEAD_RATE = 1e-2


@dataclass(frozen=True)
class Trainee:
    """What is trained.

    Attributes:
        bank: Encoder, methods, heads and live tensors of all members.
        updater: Optimiser over those tensors.
    """

    bank: Bank
    updater: Updater


def build_trainee(members: Sequence[Prepared], weights: Mapping[str, Tensor]) -> Trainee:
    """Encoder, freshly initialised members and heads, and their optimiser.

    Args:
        members: The runs; they share encoder, head and data.
        weights: The encoder's canonical tensors.
    """
    first = members[0]
    shape, compute, methods = first.source.shape, first.compute, tuple(member.method for member in members)
    encoder = PackedEncoder(shape, weights, dtype=compute.dtype, device=compute.device, dropout=first.config.encoder.dropout)
    rates = [learning_rate_of(member) for member in members]
    starts = [_start(member, weights) for member in members]
    fresh = [fresh_tensors(member, start) for member, start in zip(members, starts, strict=True)]
    optimizers = [member.config.optimizer.model_copy(update={"head_learning_rate": head_learning_rate_of(member)}) for member in members]
    updater: Updater
    if first.method.trains_encoder:
        if not first.head.reads_frozen_pooler:
            # No head reads it, so it must neither be trained nor counted.
            encoder.weights = {name: tensor for name, tensor in encoder.weights.items() if not name.startswith("pooler.")}
        trained = {f"{ENCODER_PREFIX}{name}": tensor for name, tensor in encoder.train_all(weights).items()}
        heads = {name: tensor[None].to(compute.device).requires_grad_() for name, tensor in fresh[0].items()}
        updater = LibraryUpdater({**trained, **heads}, optimizers[0], rates[0])
    else:
        arena = Arena(_blocks(methods, first.head, shape), len(members), compute.device)
        with torch.no_grad():
            for k, tensors in enumerate(fresh):
                for name, tensor in tensors.items():
                    corner(arena.tensors[name][k], tensor.shape).copy_(tensor)
        factors = [{spec.name: spec.rate_factor for spec in method.parameters(shape)} for method in methods]
        updater = ArenaUpdater(arena, optimizers, rates, factors)
    dropout = tuple(head_dropout(member.config, shape.head_dropout) for member in members)
    constants = {spec.name: torch.zeros(len(members), *spec.shape, device=compute.device) for spec in stacked_constants(methods, shape)}
    for k, (method, start) in enumerate(zip(methods, starts, strict=True)):
        for spec in method.constants(shape):
            corner(constants[spec.name][k], spec.shape).copy_(first_value(method, spec, start, members[k].config.training.seed))
    return Trainee(Bank(encoder, methods, first.head, updater.tensors, dropout, constants), updater)


def _start(prepared: Prepared, weights: Mapping[str, Tensor]) -> Start:
    """What the member's method may read to choose its initial values."""
    seed = prepared.config.training.seed
    named = prepared.tokenizer.encode_batch(list(prepared.data.labels.names), add_special_tokens=False)
    return Start(prepared.source.shape, weights, lambda purpose: named_generator(seed, purpose), tuple(tuple(one.ids) for one in named))


def first_value(method: Method, spec: ParameterSpec, start: Start, seed: int) -> Tensor:
    """Initial value of an adapter tensor: the method's own where it has one, else as the specification says."""
    given = method.initial(spec, start)
    return initial_tensor(spec, seed) if given is None else given


def learning_rate_of(prepared: Prepared) -> float:
    """Peak learning rate: as set, or the method's own."""
    return prepared.config.optimizer.learning_rate or prepared.method.learning_rate_for(prepared.head)


def head_learning_rate_of(prepared: Prepared) -> float:
    """Peak learning rate of the head: as set, or the adapter's; with several labels per text not below a rate of its own."""
    least = _MULTI_LABEL_HEAD_RATE if prepared.data.task == "multi_label" else 0.0
    return prepared.config.optimizer.head_learning_rate or max(least, learning_rate_of(prepared))


def _blocks(methods: Sequence[Method], head: HeadSpec, shape: EncoderShape) -> list[Block]:
    adapter = [Block(spec.name, spec.shape, spec.has_decay) for spec in stacked_parameters(methods, shape)]
    return adapter + [Block(name, size, takes_decay(name), "head") for name, size in head_shapes(head).items()]


def fresh_tensors(prepared: Prepared, start: Start) -> dict[str, Tensor]:
    """Initial adapter and head tensors of one member, without K."""
    seed, method, head = prepared.config.training.seed, prepared.method, prepared.head
    tensors = {spec.name: first_value(method, spec, start, seed) for spec in method.parameters(start.shape)}
    for name, shape in head_shapes(head).items():
        tensors[name] = initial_head_tensor(name, shape, seed, INITIAL_STD)
    if prepared.data.task == "multi_label":
        tensors[f"head.{head.layers[-1].key}.bias"] = _log_odds(prepared)
    if head.starts_from_pooler:
        for part in ("weight", "bias"):
            tensors[f"head.{head.layers[0].key}.{part}"] = start.weights[f"pooler.{part}"].clone()
    return tensors


def _log_odds(prepared: Prepared) -> Tensor:
    """Where the output's biases start in a multi-label task: at how often each label occurs (C,).

    From 0, every label would begin as likely as not, and what training does first, for hundreds of steps, is to learn that most are not: through the adapter, because a bias moves by
    a learning rate a step at most. The adapter then gives the same answer for every text and does not come back from it.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.3 (one prior for all classes there). Departure: each label's own share of the training rows, one row
    of each kind added, so that no bias is infinite.
    """
    labels = prepared.data.splits["train"].labels[prepared.train_rows]
    counts = torch.from_numpy(class_counts(labels, len(prepared.data.labels))).float()
    return torch.log((counts + 1) / (len(labels) - counts + 1))


def member_tensors(bank: Bank, member: int = 0) -> dict[str, Tensor]:
    """The tensors of one member, constants included, without K and in its own sizes, on the CPU; trained encoder weights under canonical names."""
    encoder = {name.removeprefix(ENCODER_PREFIX): tensor.detach().cpu() for name, tensor in bank.tensors.items() if bank.is_shared(name)}
    apart = {f"{ENCODER_PREFIX}{name}": tensor.clone() for name, tensor in split_queries_keys_values(encoder).items()}
    method, shape, stacked = bank.methods[member], bank.encoder.shape, {**bank.constants, **bank.tensors}
    sizes = {spec.name: spec.shape for spec in (*method.parameters(shape), *method.constants(shape))} | head_shapes(bank.head)
    own = {name: corner(stacked[name].detach()[member], size).cpu().clone() for name, size in sizes.items()}
    return {**own, **apart}


def bank_from_tensors(
    source: EncoderSource,
    weights: Mapping[str, Tensor],
    method: Method,
    head: HeadSpec,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Bank:
    """A bank of one member for inference.

    Args:
        source: The encoder.
        weights: Its canonical tensors; trained ones in `tensors` take their place.
        method: The member's method.
        head: The member's head.
        tensors: As `member_tensors` gives them.
        dtype: Compute dtype.
        device: Where.
    """
    trained = {name.removeprefix(ENCODER_PREFIX): tensor for name, tensor in tensors.items() if Bank.is_shared(name)}

    def make() -> PackedEncoder:
        return PackedEncoder(source.shape, {**weights, **trained}, dtype=dtype, device=device)

    encoder = make() if trained else made_once(weights, f"encoder|{dtype}|{device}", make)
    stacked = {name: tensor[None].to(device) for name, tensor in tensors.items() if not Bank.is_shared(name)}
    return Bank(encoder, (method,), head, stacked)


def load_predictor(
    folder: Path, *, precision: Precision = "auto", device: str = "auto", encoder: str | None = None, check_canary: bool = True
) -> tuple[Predictor, AdapterManifest]:
    """A predictor from an adapter folder alone.

    Args:
        folder: The adapter folder, or a run folder that holds one.
        precision: Compute precision; fp32 reproduces the stored canary logits.
        device: Where to compute.
        encoder: A checkpoint folder to use in place of the encoder the adapter names; its digest must match.
        check_canary: Compare the canary sentences' float32 logits with the stored ones.

    Returns:
        The predictor and the adapter's manifest.

    Raises:
        ArtifactError: Damaged adapter, another encoder or tokenizer than it was trained on, or answers that changed.
        ConfigError: The encoder cannot be found.
    """
    if not (folder / "lorabel.json").exists() and (folder / "adapter" / "lorabel.json").exists():
        folder = folder / "adapter"
    bundle = load_adapter(folder)
    manifest = bundle.manifest
    source = resolve_encoder(EncoderConfig(name=encoder or manifest.encoder.name, revision=None if encoder else manifest.encoder.revision))
    weights = load_weights(source)
    digest = weights_digest(weights)
    if digest != manifest.encoder.digest:
        raise ArtifactError(
            f"{folder}: trained on another encoder, got digest {digest[:16]} of {source.name}; expected {manifest.encoder.digest[:16]}. Give the right one with --encoder DIR."
        )
    tokenizer, tokenizer_digest = load_tokenizer(source.folder)
    if tokenizer_digest != manifest.tokenizer_digest:
        raise ArtifactError(
            f"{folder}: trained with another tokenizer, got digest {tokenizer_digest[:16]}; expected {manifest.tokenizer_digest[:16]}. Restore the encoder's own tokenizer.json."
        )
    labels = LabelMap(tuple(manifest.labels))
    method, head = make_method(manifest.method), make_head(source.shape, manifest.head, manifest.pooling, len(labels))
    compute = choose_compute(device, precision)  # type: ignore[arg-type]
    if check_canary:
        _check_canary(folder, bundle, source, weights, method, head)
    bank = bank_from_tensors(source, weights, method, head, bundle.tensors, compute.dtype, compute.device)
    return Predictor(bank, tokenizer, tokenizer_digest, labels, manifest.max_length_tokens, manifest.rule, manifest.window_rule), manifest


def canary_logits(
    source: EncoderSource, weights: Mapping[str, Tensor], method: Method, head: HeadSpec, tensors: Mapping[str, Tensor], max_length_tokens: int
) -> list[list[float]]:
    """Float32 logits of the shipped canary sentences on the CPU, one list per sentence."""
    bank = bank_from_tensors(source, weights, method, head, tensors, torch.float32, torch.device("cpu"))

    def table() -> TokenTable:
        return tokenise(CANARY_SENTENCES, *load_tokenizer(source.folder), max_length_tokens)

    found = table_logits(bank, made_once(weights, f"canary|{max_length_tokens}", table))
    return [[float(value) for value in row] for row in found]


def _check_canary(folder: Path, bundle: AdapterBundle, source: EncoderSource, weights: Mapping[str, Tensor], method: Method, head: HeadSpec) -> None:
    manifest = bundle.manifest
    found = canary_logits(source, weights, method, head, bundle.tensors, manifest.max_length_tokens)
    drift = _drift(np.array(found), manifest.canary.logits)
    if not drift <= CANARY_TOLERANCE * max(1.0, float(np.abs(found).max())):
        raise ArtifactError(
            f"{folder}: the adapter does not answer as it did when it was saved, got canary logits that differ by {drift:.2g}; expected at most {CANARY_TOLERANCE:g}. "
            "Train again, or check the installed versions with lorabel doctor."
        )


def _drift(found: NDArray[np.float64], stored: list[list[float]]) -> float:
    """Largest difference between two tables of logits; infinite where their shapes differ or a value is not finite."""
    if [len(row) for row in stored] != [found.shape[1]] * len(found) or not np.isfinite(stored).all():
        return math.inf
    return float(np.abs(found - np.array(stored)).max())
