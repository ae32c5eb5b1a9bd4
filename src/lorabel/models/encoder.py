"""The packed encoder: a post-norm transformer over a flat run of tokens, readable in one sitting.

One class serves the whole family table (BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT, ELECTRA): they differ in names, positions and embeddings, which
`families.py` and `checkpoint.py` have dealt with before a tensor arrives here.

Decisions:
- A batch is never padded; hidden states are (T, D). Only `attention.py` knows where a sequence ends.
- Where only the first token of each sequence is read, the last layer computes queries, feed-forward and norms for those B rows alone.
- Methods act through `Adapters`, which answers one question per product: which low-rank slots does it carry.
- The encoder makes no random numbers: dropout factors come from a `MaskSource`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lorabel.data.types import PackedBatch
from lorabel.families import EncoderShape
from lorabel.heads import Pooling
from lorabel.methods.base import Method
from lorabel.models.attention import LengthGroup, group_by_length, pooled_attention, self_attention
from lorabel.models.linear import Slot, adapted_linear
from lorabel.models.varlen import Segments, kernel_pooled_attention, kernel_self_attention, kernels_are_available, segments_of

JOINT_SITES = ("query", "key", "value")


class MaskSource(Protocol):
    """Where dropout factors come from: 0 where dropped, 1 / (1 - p) where kept."""

    def rows(self, name: str, width: int, probability: float | Sequence[float], *, pooled: bool) -> Tensor | None:
        """Factors (T, width), or (B, width) for pooled rows; None where all probabilities (one, or one per member) are 0."""

    def attention(self, name: str, groups: Sequence[LengthGroup], num_heads: int, probability: float, *, pooled: bool) -> list[Tensor] | None:
        """One (n · H, L, L) tensor per group, (n · H, 1, L) for pooled rows; None where the probability is 0."""


@dataclass(frozen=True)
class Adapters:
    """A method's tensors, asked for by layer and site.

    Attributes:
        methods: Settings of the one method, one per member.
        tensors: Their parameters by name, each with the leading K.
        dropout: Whether the method's own dropout is on (training).
    """

    methods: Sequence[Method]
    tensors: Mapping[str, Tensor]
    dropout: bool = False

    def slots(self, layer: int, sites: Sequence[str], shape: EncoderShape) -> list[Slot]:
        """The low-rank slots of a joint product over `sites`, in column order."""
        if not self.methods:
            return []
        slots, start = [], 0
        for site in sites:
            factors = type(self.methods[0]).low_rank(self.methods, layer, site, self.tensors)
            if factors is not None:
                slots.append(Slot(factors, start))
            start += shape.linear_shape(site)[0]
        return slots


@dataclass(frozen=True)
class _Step:
    """What stays the same while one batch goes through all layers."""

    groups: tuple[LengthGroup, ...]
    segments: Segments | None
    first_rows: Tensor
    member_tokens: tuple[int, ...]
    member_sequences: tuple[int, ...]
    adapters: Adapters
    masks: MaskSource | None


class PackedEncoder:
    """A pretrained encoder in one compute dtype on one device.

    Args:
        shape: Its shape.
        weights: Canonical tensors (see `checkpoint.py`); queries, keys and values are joined here, in place of the three.
        dtype: Compute dtype of all products.
        device: Where it lives.
        dropout: Turn on the encoder's own dropout wherever a mask source is given.
    """

    def __init__(self, shape: EncoderShape, weights: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device, dropout: bool = False) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.dropout = dropout
        self._has_kernels = kernels_are_available(device, dtype)
        self.weights = {name: tensor.to(device=device, dtype=dtype) for name, tensor in join_queries_keys_values(weights, shape).items()}

    def train_all(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make every weight a trained float32 (or wider) leaf for full fine-tuning.

        Args:
            weights: Canonical tensors as loaded: masters start from these, not from values already rounded to the compute dtype. They are copied.

        Returns:
            The leaves by joint name; products cast them to the compute dtype.
        """
        wide = torch.promote_types(self.dtype, torch.float32)
        joint = join_queries_keys_values(weights, self.shape)
        self.weights = {name: joint[name].detach().to(device=self.device, dtype=wide, copy=True).requires_grad_() for name in self.weights}
        return self.weights

    def pool(self, batch: PackedBatch, adapters: Adapters, pooling: Pooling, masks: MaskSource | None = None) -> Tensor:
        """Encode a batch and reduce each sequence to one row.

        Args:
            batch: B sequences, T tokens.
            adapters: Tensors that act on the encoder.
            pooling: `cls` or `mean`.
            masks: Dropout factors; None in evaluation.

        Returns:
            (B, D) in the compute dtype.
        """
        if batch.hidden is not None and batch.hidden_layer == self.shape.num_layers:
            return batch.hidden
        step = self._step(batch, adapters, masks)
        hidden = self._embed(batch, masks) if batch.hidden is None else batch.hidden
        last = self.shape.num_layers - 1
        for layer in range(batch.hidden_layer, last):
            hidden = self._layer(layer, hidden, step)
        if pooling == "cls":
            return self._last_layer_of_first_rows(last, hidden, step)
        hidden = self._layer(last, hidden, step)
        return _mean_per_sequence(hidden, batch)

    def frozen_states(self, batch: PackedBatch, layer: int, pooling: Pooling) -> Tensor:
        """What `PackedBatch.hidden` holds: the states before a layer, without adapters and dropout.

        Args:
            batch: B sequences, T tokens.
            layer: From 1; the number of layers for the pooled rows.
            pooling: `cls` or `mean`, for the pooled rows.

        Returns:
            (sum of lengths, D), or (B, D) for the pooled rows, in the compute dtype.
        """
        none = Adapters((), {})
        if layer == self.shape.num_layers:
            return self.pool(batch, none, pooling)
        return self.encode(batch, none, num_layers=layer)

    def encode(self, batch: PackedBatch, adapters: Adapters, masks: MaskSource | None = None, num_layers: int | None = None) -> Tensor:
        """Hidden states after the first `num_layers` layers (all, if None) for the tokens of all sequences, (sum of lengths, D)."""
        step = self._step(batch, adapters, masks)
        hidden = self._embed(batch, masks)
        for layer in range(self.shape.num_layers if num_layers is None else num_layers):
            hidden = self._layer(layer, hidden, step)
        return hidden[: len(hidden) - batch.tail]

    def _step(self, batch: PackedBatch, adapters: Adapters, masks: MaskSource | None) -> _Step:
        has_attention_dropout = masks is not None and self.dropout and self.shape.attention_dropout > 0
        segments = segments_of(batch) if self._has_kernels and not has_attention_dropout else None
        groups = group_by_length(batch.lengths, self.device, self.dtype) if segments is None else ()
        return _Step(groups, segments, batch.cu_seqlens[:-1], batch.member_tokens, batch.member_sequences, adapters, masks)

    def _embed(self, batch: PackedBatch, masks: MaskSource | None) -> Tensor:
        w = self.weights
        wide = torch.promote_types(self.dtype, torch.float32)
        hidden = functional.embedding(batch.input_ids, w["embeddings.word"]).to(wide)
        hidden = hidden + functional.embedding(batch.position_ids, w["embeddings.position"])
        if "embeddings.token_type" in w:
            hidden = hidden + w["embeddings.token_type"][0]
        hidden = self._norm("embeddings.norm", hidden.to(self.dtype))  # (T, E)
        hidden = _drop(hidden, masks, "embeddings", self._hidden_dropout)
        if self.shape.has_projection:
            hidden = functional.linear(hidden, w["embeddings.projection.weight"].to(self.dtype), w["embeddings.projection.bias"].to(self.dtype))
        return hidden  # (T, D)

    def _layer(self, layer: int, hidden: Tensor, step: _Step) -> Tensor:
        """One transformer layer over all tokens, (T, D) -> (T, D)."""
        qkv = self._product(layer, JOINT_SITES, hidden, step)  # (T, 3D)
        if step.segments is not None:
            context = kernel_self_attention(qkv, step.segments, self.shape.num_heads)
        else:
            context = self_attention(qkv, step.groups, self.shape.num_heads, self._attention_masks(layer, step, pooled=False))
        return self._after_attention(layer, context, hidden, step, pooled=False)

    def _last_layer_of_first_rows(self, layer: int, hidden: Tensor, step: _Step) -> Tensor:
        """The last layer where only the first token of each sequence is read, (T, D) -> (B, D)."""
        first = hidden.index_select(0, step.first_rows)  # (B, D)
        query = self._product(layer, ("query",), first, step, pooled=True)
        key_value = self._product(layer, ("key", "value"), hidden, step)  # (T, 2D)
        if step.segments is not None:
            context = kernel_pooled_attention(query, key_value, step.segments, self.shape.num_heads)
        else:
            context = pooled_attention(query, key_value, step.groups, self.shape.num_heads, self._attention_masks(layer, step, pooled=True))
        return self._after_attention(layer, context, first, step, pooled=True)

    def _after_attention(self, layer: int, context: Tensor, residual: Tensor, step: _Step, *, pooled: bool) -> Tensor:
        """Attention output, feed-forward, both residuals and norms; for all tokens or the pooled rows."""
        after_attention = self._hidden_dropout if self.shape.names.dropout_after_attention else 0.0
        out = self._product(layer, ("attention_output",), context, step, pooled=pooled)
        out = _drop(out, step.masks, f"layers.{layer}.attention_output.out", after_attention, pooled=pooled)
        hidden = self._norm(f"layers.{layer}.attention_norm", out.add_(residual))
        up = _activate(self._product(layer, ("ffn_up",), hidden, step, pooled=pooled), self.shape.activation)
        out = self._product(layer, ("ffn_down",), up, step, pooled=pooled)
        out = _drop(out, step.masks, f"layers.{layer}.ffn_down.out", self._hidden_dropout, pooled=pooled)
        return self._norm(f"layers.{layer}.ffn_norm", out.add_(hidden))

    def _product(self, layer: int, sites: Sequence[str], x: Tensor, step: _Step, *, pooled: bool = False) -> Tensor:
        weight, bias = self._joint_weight(layer, sites)
        slots = step.adapters.slots(layer, sites, self.shape)
        mask = None
        if slots and step.adapters.dropout and step.masks is not None:
            # Sites that share an input share its mask: one draw per joint product, keyed by its first site.
            key = "query" if sites[0] in JOINT_SITES else sites[0]
            mask = step.masks.rows(f"layers.{layer}.{key}", x.shape[1], slots[0].factors.dropout, pooled=pooled)
            mask = None if mask is None else mask.to(x.dtype)
        return adapted_linear(x, weight, bias, slots, step.member_sequences if pooled else step.member_tokens, mask)

    def _joint_weight(self, layer: int, sites: Sequence[str]) -> tuple[Tensor, Tensor]:
        if sites[0] not in JOINT_SITES:
            name = f"layers.{layer}.{sites[0]}"
            return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        width, first = self.shape.hidden_size, JOINT_SITES.index(sites[0])
        rows = slice(first * width, (first + len(sites)) * width)
        return self.weights[f"layers.{layer}.qkv.weight"][rows], self.weights[f"layers.{layer}.qkv.bias"][rows]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, (x.shape[1],), weight.to(x.dtype), bias.to(x.dtype), self.shape.norm_eps)

    @property
    def _hidden_dropout(self) -> float:
        return self.shape.hidden_dropout if self.dropout else 0.0

    def _attention_masks(self, layer: int, step: _Step, *, pooled: bool) -> list[Tensor] | None:
        if step.masks is None or not self.dropout:
            return None
        masks = step.masks.attention(f"layers.{layer}.attention", step.groups, self.shape.num_heads, self.shape.attention_dropout, pooled=pooled)
        return None if masks is None else [mask.to(self.dtype) for mask in masks]


def join_queries_keys_values(weights: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """Lay each layer's query, key and value tensors under each other as `layers.i.qkv`; everything else is passed on."""
    joint = {name: tensor for name, tensor in weights.items() if name.rsplit(".", 2)[-2] not in JOINT_SITES}
    for layer in range(shape.num_layers):
        for part in ("weight", "bias"):
            joint[f"layers.{layer}.qkv.{part}"] = torch.cat([weights[f"layers.{layer}.{site}.{part}"] for site in JOINT_SITES])
    return joint


def split_queries_keys_values(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `join_queries_keys_values`: canonical names again."""
    apart: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        head, _, part = name.rpartition(".qkv.")
        if not head:
            apart[name] = tensor
            continue
        for site, piece in zip(JOINT_SITES, tensor.chunk(3), strict=True):
            apart[f"{head}.{site}.{part}"] = piece.contiguous()
    return apart


def _drop(x: Tensor, masks: MaskSource | None, name: str, probability: float, *, pooled: bool = False) -> Tensor:
    mask = masks.rows(name, x.shape[1], probability, pooled=pooled) if masks is not None else None
    return x if mask is None else x * mask.to(x.dtype)


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "relu":
        return functional.relu(x)
    return functional.gelu(x, approximate="none" if name == "gelu" else "tanh")


def _mean_per_sequence(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Mean over each sequence's tokens, (T, D) -> (B, D), summed in float32 or wider."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    lengths = torch.tensor(batch.lengths, device=hidden.device)
    hidden = hidden[: len(hidden) - batch.tail]
    owner = torch.repeat_interleave(torch.arange(len(batch.lengths), device=hidden.device), lengths)
    sums = hidden.new_zeros(len(batch.lengths), hidden.shape[1], dtype=wide).index_add(0, owner, hidden.to(wide))
    return (sums / lengths[:, None]).to(hidden.dtype)
