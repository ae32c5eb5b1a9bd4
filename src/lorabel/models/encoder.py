"""The packed encoder: a post-norm transformer over a flat run of tokens, readable in one sitting.

One class serves the whole family table (BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT, ELECTRA): they differ in names, positions and embeddings, which
`families.py` and `checkpoint.py` have dealt with before a tensor arrives here.

Decisions:
- A batch is never padded; hidden states are (T, D). Only `attention.py` knows where a sequence ends.
- Where only the first token of each sequence is read, the last layer computes queries, feed-forward and norms for those B rows alone.
- Methods act through `Adapters`, which answers one question per kind of place (`slots.py`): what is filled in here.
- The encoder makes no random numbers: dropout factors come from a `MaskSource`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lorabel.data.types import PackedBatch
from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.heads import Pooling
from lorabel.methods.base import Method
from lorabel.models.attention import LengthGroup, group_by_length, pooled_attention, self_attention
from lorabel.models.joint_sites import JOINT_SITES, join_queries_keys_values
from lorabel.models.linear import Site, adapted_linear, joined_linear, per_member_affine, per_member_linear
from lorabel.models.pooling import mean_per_sequence
from lorabel.models.prompt import with_prompt
from lorabel.models.spans import Spans, grouped_is_available, spans_of
from lorabel.models.varlen import Segments, kernel_pooled_attention, kernel_self_attention, kernels_are_available, segments_of
from lorabel.slots import EMBEDDING_NORM, NORM_SITES, STREAM_PLACES, Prompt, StreamMap, StreamPlace

_NORM_OF: dict[StreamPlace, str] = {"after_attention": "attention_norm", "after_ffn": "ffn_norm"}


class MaskSource(Protocol):
    """Where dropout factors come from: 0 where dropped, 1 / (1 - p) where kept."""

    def rows(self, name: str, width: int, probability: float | Sequence[float], *, pooled: bool) -> Tensor | None:
        """Factors (T, width), or (B, width) for pooled rows; None where all probabilities (one, or one per member) are 0."""

    def attention(self, name: str, groups: Sequence[LengthGroup], num_heads: int, probability: float, *, pooled: bool, prefix: int) -> list[Tensor] | None:
        """One (n · H, L, P + L) tensor per group, (n · H, 1, P + L) for pooled rows, P the length of the prefix; None where the probability is 0."""

    def of(self, batch: PackedBatch) -> "MaskSource":
        """The same source for a batch of the same rows that has other tokens: longer sequences, or each row's pooled windows."""


@dataclass(frozen=True)
class Adapters:
    """A method's tensors, asked for by layer and site.

    Attributes:
        methods: Settings of the one method, one per member.
        tensors: Their parameters by name, each with the leading K.
        dropout: Whether the method's own dropout is on (training).
        joined: By layer and first site, the stacked and the block-diagonal matrix of each product, where they were made beforehand (`joined.py`).
    """

    methods: Sequence[Method]
    tensors: Mapping[str, Tensor]
    dropout: bool = False
    joined: Mapping[tuple[int, str], tuple[Tensor, Tensor]] | None = None

    def sites(self, layer: int, names: Sequence[str], shape: EncoderShape) -> list[Site]:
        """The adapted sites of a joint product over `names`, in column order."""
        if not self.methods:
            return []
        sites, start = [], 0
        for name in names:
            width = shape.linear_shape(name)[0]
            slots = self._kind.linear(self.methods, layer, name, self.tensors, shape)
            if slots is not None:
                sites.append(Site(slots, start, width))
            start += width
        return sites

    def norm_bias(self, layer: int, name: str) -> Tensor | None:
        """(K, D) added to the output of a norm, or None."""
        return self._kind.norm_bias(self.methods, layer, name, self.tensors) if self.methods else None

    def stream(self, layer: int, place: StreamPlace) -> StreamMap | None:
        """The bottleneck on the output of a block, or None."""
        return self._kind.stream(self.methods, layer, place, self.tensors) if self.methods else None

    def prefix(self, layer: int, member_sequences: Sequence[int], dtype: torch.dtype, shape: EncoderShape) -> Tensor | None:
        """(B, 2, P, D) keys and values before those of each sequence, or None."""
        members = self._kind.prefix(self.methods, layer, self.tensors, shape) if self.methods else None
        if members is None:
            return None
        counts = torch.tensor(member_sequences, device=members.device)
        return members.to(dtype).repeat_interleave(counts, dim=0, output_size=sum(member_sequences))

    def prompt(self) -> Prompt | None:
        """Embeddings put into every sequence, or None."""
        return self._kind.prompt(self.methods, self.tensors) if self.methods else None

    @property
    def has_prefix(self) -> bool:
        """Whether layers have more keys than their sequences have tokens."""
        return bool(self.methods) and self._kind.has_prefix

    def is_low_rank(self, shape: EncoderShape) -> bool:
        """Whether low-rank products are all that the method adds."""
        layers, names = range(shape.num_layers), (EMBEDDING_NORM, *NORM_SITES)
        slots = [self._kind.linear(self.methods, layer, site, self.tensors, shape) for layer in layers for site in LINEAR_SITES]
        others = [self.stream(layer, place) for layer in layers for place in STREAM_PLACES] + [
            self.norm_bias(layer, name) for layer in layers for name in names
        ]
        return all(one is None for one in others) and all(one is None or one.is_low_rank for one in slots)

    @property
    def position_shift(self) -> int:
        """Positions by which the tokens of a text are moved on."""
        return self.methods[0].position_shift() if self.methods else 0

    @property
    def _kind(self) -> type[Method]:
        return type(self.methods[0])


@dataclass(frozen=True)
class _Step:
    """What stays the same while one batch goes through all layers."""

    groups: tuple[LengthGroup, ...]
    segments: Segments | None
    first_rows: Tensor
    tokens: Spans
    pooled: Spans
    adapters: Adapters
    masks: MaskSource | None
    known: Mapping[int, Tensor]


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
        self.has_kernels = kernels_are_available(device, dtype)
        self.has_grouped = grouped_is_available(device, dtype)
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
        batch, step, hidden = self._begin(batch, adapters, masks)
        last = self.shape.num_layers - 1
        for layer in range(batch.hidden_layer, last):
            hidden = self._layer(layer, hidden, step)
        if pooling == "cls":
            return self._last_layer_of_first_rows(last, hidden, step)
        hidden = self._layer(last, hidden, step)
        return mean_per_sequence(hidden, batch)

    def reads_products(self, layer: int, adapters: Adapters) -> bool:
        """Whether the frozen queries, keys and values of a layer can be known beforehand: not where a method changes what its weights read, or the length of their rows."""
        slots = [site.slots for site in adapters.sites(layer, JOINT_SITES, self.shape)]
        return all(one.magnitude is None and one.input_scale is None for one in slots)

    def frozen_products(self, layer: int, hidden: Tensor) -> Tensor:
        """What `PackedBatch.hidden_products` holds: queries, keys and values of a layer, (T, D) -> (T, 3 · D)."""
        weight, bias = self._joint_weight(layer, JOINT_SITES)
        return functional.linear(hidden, weight, bias)

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
        batch, step, hidden = self._begin(batch, adapters, masks)
        for layer in range(self.shape.num_layers if num_layers is None else num_layers):
            hidden = self._layer(layer, hidden, step)
        return hidden[: len(hidden) - batch.tail]

    def _begin(self, batch: PackedBatch, adapters: Adapters, masks: MaskSource | None) -> tuple[PackedBatch, _Step, Tensor]:
        """The batch as the layers see it, what stays the same for all of them, and the states before the first layer that is computed."""
        prompt = adapters.prompt()
        if batch.hidden is not None:
            return batch, self._step(batch, adapters, masks), batch.hidden
        if prompt is None:
            words = functional.embedding(batch.input_ids, self.weights["embeddings.word"])
        else:
            tokens = functional.embedding(batch.input_ids, self.weights["embeddings.word"])
            batch, index = with_prompt(batch, prompt, self.shape.first_position)
            masks = None if masks is None else masks.of(batch)
            words = torch.cat([tokens, prompt.rows.flatten(0, 1).to(tokens.dtype)]).index_select(0, index)
        step = self._step(batch, adapters, masks)
        return batch, step, self._embed(words, batch.position_ids + adapters.position_shift, step)

    def _step(self, batch: PackedBatch, adapters: Adapters, masks: MaskSource | None) -> _Step:
        has_attention_dropout = masks is not None and self.dropout and self.shape.attention_dropout > 0
        # The kernels know no dropout on attention weights, and a prefix makes more keys than queries.
        segments = segments_of(batch) if self.has_kernels and not has_attention_dropout and not adapters.has_prefix else None
        groups = group_by_length(batch.lengths, self.device, self.dtype) if segments is None else ()
        known = {} if batch.hidden_products is None else {batch.hidden_layer: batch.hidden_products}
        return _Step(groups, segments, batch.cu_seqlens[:-1], self._token_spans(batch), spans_of(batch.member_sequences, self.device), adapters, masks, known)

    def _token_spans(self, batch: PackedBatch) -> Spans:
        """Where the members' tokens lie; the tail is the last member's."""
        if self.has_grouped and len(batch.member_sequences) > 1:
            return Spans(batch.member_tokens, batch.member_ends)
        return Spans(batch.member_tokens)

    def _embed(self, words: Tensor, position_ids: Tensor, step: _Step) -> Tensor:
        """Word embeddings (T, E) to the states before the first layer (T, D)."""
        w = self.weights
        wide = torch.promote_types(self.dtype, torch.float32)
        hidden = words.to(wide) + functional.embedding(position_ids, w["embeddings.position"])
        if "embeddings.token_type" in w:
            hidden = hidden + w["embeddings.token_type"][0]
        hidden = self._norm("embeddings.norm", hidden.to(self.dtype))  # (T, E)
        bias = step.adapters.norm_bias(0, EMBEDDING_NORM)
        hidden = hidden if bias is None else per_member_affine(hidden, None, bias, step.tokens)
        hidden = _drop(hidden, step.masks, "embeddings", self._hidden_dropout)
        if self.shape.has_projection:
            hidden = functional.linear(hidden, w["embeddings.projection.weight"].to(self.dtype), w["embeddings.projection.bias"].to(self.dtype))
        return hidden  # (T, D)

    def _layer(self, layer: int, hidden: Tensor, step: _Step) -> Tensor:
        """One transformer layer over all tokens, (T, D) -> (T, D)."""
        qkv = self._product(layer, JOINT_SITES, hidden, step, known=step.known.get(layer))  # (T, 3D)
        if step.segments is not None:
            context = kernel_self_attention(qkv, step.segments, self.shape.num_heads)
        else:
            prefix = step.adapters.prefix(layer, step.pooled.known, qkv.dtype, self.shape)
            context = self_attention(qkv, step.groups, self.shape.num_heads, self._attention_masks(layer, step, prefix, pooled=False), prefix)
        return self._after_attention(layer, context, hidden, step, pooled=False)

    def _last_layer_of_first_rows(self, layer: int, hidden: Tensor, step: _Step) -> Tensor:
        """The last layer where only the first token of each sequence is read, (T, D) -> (B, D)."""
        first = hidden.index_select(0, step.first_rows)  # (B, D)
        known, width = step.known.get(layer), self.shape.hidden_size
        query = self._product(layer, ("query",), first, step, pooled=True, known=None if known is None else known[:, :width].index_select(0, step.first_rows))
        key_value = self._product(layer, ("key", "value"), hidden, step, known=None if known is None else known[:, width:])  # (T, 2D)
        if step.segments is not None:
            context = kernel_pooled_attention(query, key_value, step.segments, self.shape.num_heads)
        else:
            prefix = step.adapters.prefix(layer, step.pooled.known, query.dtype, self.shape)
            masks = self._attention_masks(layer, step, prefix, pooled=True)
            context = pooled_attention(query, key_value, step.groups, self.shape.num_heads, masks, prefix)
        return self._after_attention(layer, context, first, step, pooled=True)

    def _after_attention(self, layer: int, context: Tensor, residual: Tensor, step: _Step, *, pooled: bool) -> Tensor:
        """Attention output, feed-forward, both residuals and norms; for all tokens or the pooled rows."""
        after_attention = self._hidden_dropout if self.shape.names.dropout_after_attention else 0.0
        out = self._product(layer, ("attention_output",), context, step, pooled=pooled)
        out = _drop(out, step.masks, f"layers.{layer}.attention_output.out", after_attention, pooled=pooled)
        hidden = self._close(layer, "after_attention", out, residual, step, pooled=pooled)
        up = _activate(self._product(layer, ("ffn_up",), hidden, step, pooled=pooled), self.shape.activation)
        out = self._product(layer, ("ffn_down",), up, step, pooled=pooled)
        out = _drop(out, step.masks, f"layers.{layer}.ffn_down.out", self._hidden_dropout, pooled=pooled)
        return self._close(layer, "after_ffn", out, hidden, step, pooled=pooled)

    def _close(self, layer: int, place: StreamPlace, out: Tensor, residual: Tensor, step: _Step, *, pooled: bool) -> Tensor:
        """The end of a block: its bottleneck where it has one, the residual, the norm and its bias."""
        rows = step.pooled if pooled else step.tokens
        stream = step.adapters.stream(layer, place)
        out = out.add_(residual) if stream is None else out + _bottleneck(stream, residual if stream.is_parallel else out, rows) + residual
        name = _NORM_OF[place]
        hidden = self._norm(f"layers.{layer}.{name}", out)
        bias = step.adapters.norm_bias(layer, name)
        return hidden if bias is None else per_member_affine(hidden, None, bias, rows)

    def _product(self, layer: int, names: Sequence[str], x: Tensor, step: _Step, *, pooled: bool = False, known: Tensor | None = None) -> Tensor:
        weight, bias = self._joint_weight(layer, names)
        sites = step.adapters.sites(layer, names, self.shape)
        dropout = next((site.slots.added.dropout for site in sites if site.slots.added is not None), None)
        mask = None
        if dropout is not None and step.adapters.dropout and step.masks is not None:
            # Sites that share an input share its mask: one draw per joint product, keyed by its first site.
            key = "query" if names[0] in JOINT_SITES else names[0]
            mask = step.masks.rows(f"layers.{layer}.{key}", x.shape[1], dropout, pooled=pooled)
            mask = None if mask is None else mask.to(x.dtype)
        spans = step.pooled if pooled else step.tokens
        if step.adapters.joined is not None and sites:
            return joined_linear(x, weight, bias, *step.adapters.joined[layer, names[0]], spans, mask, known)
        return adapted_linear(x, weight, bias, sites, spans, mask, known)

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

    def _attention_masks(self, layer: int, step: _Step, prefix: Tensor | None, *, pooled: bool) -> list[Tensor] | None:
        if step.masks is None or not self.dropout:
            return None
        name, length = f"layers.{layer}.attention", 0 if prefix is None else prefix.shape[2]
        masks = step.masks.attention(name, step.groups, self.shape.num_heads, self.shape.attention_dropout, pooled=pooled, prefix=length)
        return None if masks is None else [mask.to(self.dtype) for mask in masks]


def _drop(x: Tensor, masks: MaskSource | None, name: str, probability: float, *, pooled: bool = False) -> Tensor:
    mask = masks.rows(name, x.shape[1], probability, pooled=pooled) if masks is not None else None
    return x if mask is None else x * mask.to(x.dtype)


def _bottleneck(stream: StreamMap, source: Tensor, spans: Spans) -> Tensor:
    """What a stream map adds to a block's output (N, D)."""
    down = _activate(per_member_linear(source, stream.down, stream.down_bias, spans), stream.activation)  # (N, R)
    added = per_member_linear(down, stream.up, stream.up_bias, spans)
    if len(set(stream.scaling)) == 1:
        return added if stream.scaling[0] == 1.0 else added * stream.scaling[0]
    return torch.cat([part * scaling for part, scaling in zip(torch.split(added, list(spans.known)), stream.scaling, strict=True)])


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "relu":
        return functional.relu(x)
    return functional.gelu(x, approximate="none" if name == "gelu" else "tanh")
