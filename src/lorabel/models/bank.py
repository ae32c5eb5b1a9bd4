"""The bank: one frozen encoder, K members of one method, K heads; packed sequences in, logits out.

A member is a complete classifier of its own. Sequences carry their member through `PackedBatch.member_sequences`; members never influence each other.
K = 1 is ordinary training and prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lorabel.data.types import PackedBatch
from lorabel.errors import ConfigError
from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.methods.base import Method, ParameterSpec
from lorabel.models.encoder import Adapters, MaskSource, PackedEncoder
from lorabel.models.heads import apply_head
from lorabel.models.spans import spans_of
from lorabel.models.windows import pool_windows

# Trained encoder weights (full fine-tuning, K = 1) stand under this prefix beside the members' tensors.
ENCODER_PREFIX = "encoder."


@dataclass(frozen=True)
class Bank:
    """Encoder, members and heads.

    Attributes:
        encoder: The shared encoder.
        methods: Settings of the one method, one per member (K).
        head: The members' head.
        tensors: Adapter and head tensors by name, each with the leading K.
        head_dropout: Per member, the probability before the head's layers that take dropout; empty for none.
        constants: Adapter tensors that are not trained, each with the leading K.
        joined: The factors of each product, where they were made beforehand; see `models.joined`.
    """

    encoder: PackedEncoder
    methods: tuple[Method, ...]
    head: HeadSpec
    tensors: Mapping[str, Tensor]
    head_dropout: tuple[float, ...] = ()
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    joined: Mapping[tuple[int, str], tuple[Tensor, Tensor]] | None = None

    @property
    def members(self) -> int:
        """K."""
        return len(self.methods)

    def select(self, first: int, last: int, tensors: Mapping[str, Tensor] | None = None) -> Bank:
        """The members from `first` to before `last`, as a bank over views of the same tensors.

        Args:
            first: First member.
            last: One after the last member.
            tensors: Their tensors, where others stand in for the views.
        """
        if tensors is None:
            tensors = {name: tensor if self.is_shared(name) else tensor[first:last] for name, tensor in self.tensors.items()}
        constants = {name: tensor[first:last] for name, tensor in self.constants.items()}
        return replace(self, methods=self.methods[first:last], head_dropout=self.head_dropout[first:last], tensors=tensors, constants=constants)

    def adapters(self, *, is_training: bool = False) -> Adapters:
        """What the members' methods fill in.

        Args:
            is_training: Whether the methods' own dropout is on.
        """
        return Adapters(self.methods, {**self.constants, **self.tensors}, is_training, self.joined)

    @staticmethod
    def is_shared(name: str) -> bool:
        """Whether a tensor belongs to the encoder, so that it has no leading K."""
        return name.startswith(ENCODER_PREFIX)

    def logits(self, batch: PackedBatch, masks: MaskSource | None = None, between: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Class scores.

        Args:
            batch: B rows, sorted by member; the states of a row's windows are pooled before the head.
            masks: Dropout factors in training, None in evaluation.
            between: What happens to the pooled states (B, D) before the head, in training; None for nothing.

        Returns:
            (B, C) in float32 or wider, in the batch's order.
        """
        pooled = self.encoder.pool(batch, self.adapters(is_training=masks is not None), self.head.pooling, masks)
        if batch.windows is not None:
            pooled = pool_windows(pooled, batch.windows)
            batch = batch.per_row()
            masks = None if masks is None else masks.of(batch)
        pooled = pooled if between is None else between(pooled)
        weights = self.encoder.weights
        pooler = (weights["pooler.weight"], weights["pooler.bias"]) if self.head.reads_frozen_pooler else None
        spans = spans_of(batch.member_sequences, self.encoder.device)
        return apply_head(self.head, self.tensors, pooled, spans, pooler=pooler, masks=masks, dropout=self.head_dropout or (0.0,) * self.members)


def stacked_parameters(members: Sequence[Method], shape: EncoderShape) -> tuple[ParameterSpec, ...]:
    """The trained tensors of a bank: every one that some member has, as large as the largest member's.

    Args:
        members: K settings of one method.
        shape: The encoder.

    Returns:
        One specification per tensor; a member that is smaller fills the first rows and columns, one that lacks the tensor none of it.

    Raises:
        ConfigError: Members differ in method, in an option that all must share, or in sizes or sites where the method cannot fill up with zeros.
    """
    kinds = sorted({member.name for member in members})
    if len(kinds) > 1:
        raise ConfigError(f"bank: members of different methods, got {', '.join(kinds)}; expected one method per bank. Train each method in a bank of its own.")
    for option in members[0].shared_options:
        values = sorted({str(getattr(member, option)) for member in members})
        if len(values) > 1:
            raise ConfigError(
                f"bank: members differ in method.{option}, got {', '.join(values)}; expected one value per bank. Train each in a bank of its own."
            )
    of_members = [member.parameters(shape) for member in members]
    stacked = _stacked(of_members)
    if not members[0].pads_exactly and any([(s.name, s.shape) for s in stacked] != [(s.name, s.shape) for s in specs] for specs in of_members):
        raise ConfigError(
            f"bank: members of different sizes, got {len(members)} settings of {kinds[0]}; expected equal sizes and sites. Train each size in a bank of its own."
        )
    if members[0].has_same_tensors and len({frozenset(spec.name for spec in specs) for specs in of_members}) > 1:
        raise ConfigError(
            f"bank: members on different sites, got {len(members)} settings of {kinds[0]}; expected the same ones. Train each choice of sites in a bank of its own."
        )
    return stacked


def stacked_constants(members: Sequence[Method], shape: EncoderShape) -> tuple[ParameterSpec, ...]:
    """The tensors of a bank that are not trained; as `stacked_parameters`."""
    return _stacked([member.constants(shape) for member in members])


def _stacked(of_members: Sequence[Sequence[ParameterSpec]]) -> tuple[ParameterSpec, ...]:
    stacked: dict[str, ParameterSpec] = {}
    for spec in (spec for specs in of_members for spec in specs):
        known = stacked.get(spec.name, spec)
        stacked[spec.name] = replace(spec, shape=tuple(map(max, spec.shape, known.shape)), rate_factor=1.0)
    return tuple(stacked.values())


def corner(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """The first rows and columns of a member's tensor that are its own; the rest is filled up with zeros to the largest member's size."""
    return tensor[tuple(slice(length) for length in size)]


def first_adapted_layer(members: Sequence[Method], shape: EncoderShape) -> int:
    """The lowest layer that some member acts on: all below it give the same states for all members at all times.

    Args:
        members: K settings of one method.
        shape: The encoder.

    Returns:
        A layer from 0; the number of layers where no member acts on any.
    """
    if any(member.trains_encoder for member in members):
        return 0
    return min((spec.layer for member in members for spec in member.parameters(shape)), default=shape.num_layers)
