"""The bank: one frozen encoder, K members of one method, K heads; packed sequences in, logits out.

A member is a complete classifier of its own. Sequences carry their member through `PackedBatch.member_sequences`; members never influence each other.
K = 1 is ordinary training and prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lorabel.data.types import PackedBatch
from lorabel.heads import HeadSpec
from lorabel.methods.base import Method
from lorabel.models.encoder import Adapters, MaskSource, PackedEncoder
from lorabel.models.heads import apply_head


@dataclass(frozen=True)
class Bank:
    """Encoder, members and heads.

    Attributes:
        encoder: The shared encoder.
        method: The members' method.
        head: The members' head.
        tensors: Adapter and head tensors by name, each with the leading K.
        head_dropout: Probability before the head's layers that take dropout.
    """

    encoder: PackedEncoder
    method: Method
    head: HeadSpec
    tensors: Mapping[str, Tensor]
    head_dropout: float = 0.0

    def logits(self, batch: PackedBatch, masks: MaskSource | None = None) -> Tensor:
        """Class scores.

        Args:
            batch: B sequences, sorted by member.
            masks: Dropout factors in training, None in evaluation.

        Returns:
            (B, C) in float32 or wider, in the batch's order.
        """
        adapters = Adapters(self.method, self.tensors, dropout=masks is not None)
        pooled = self.encoder.pool(batch, adapters, self.head.pooling, masks)
        weights = self.encoder.weights
        pooler = (weights["pooler.weight"], weights["pooler.bias"]) if self.head.reads_frozen_pooler else None
        return apply_head(self.head, self.tensors, pooled, batch.member_sequences, pooler=pooler, masks=masks, dropout=self.head_dropout)
