"""Head only: the encoder stays frozen and nothing is added; the lower baseline, also called linear probing where the head is linear.

Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".

Equation: p = softmax(W·h + b), h the state that the head pools of the frozen encoder; W and b are trained.

Parameters: none beside the head's, which are C · (D + 1) where it is linear.

Departures: the head may be the family's own.

PEFT: none: nothing is added to the encoder.

Pooling: where the encoder was trained with mean pooling, the head reads the mean (`lorabel.solver`): its first token says little until it is
trained. On two validation splits the mean was 20 points better (benchmarks/methods.py).

Rates: from the same two splits. A single layer is a convex problem that takes large steps; behind the checkpoint's own pooler, whose tanh
keeps what it reads below 1, larger ones still. A hidden layer takes only small ones.
"""

from typing import ClassVar

from lorabel.heads import HeadSpec
from lorabel.methods.base import Method
from lorabel.registry import METHODS


@METHODS.register("head_only")
class HeadOnly(Method):
    """Train the classification head alone."""

    name: ClassVar[str] = "head_only"
    paper: ClassVar[str] = "Alain and Bengio 2016, arXiv:1610.01644"
    trains_layers: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 0.016
    pooler_learning_rate: ClassVar[float] = 0.42
    hidden_layer_learning_rate: ClassVar[float] = 5e-3

    def learning_rate_for(self, head: HeadSpec) -> float:
        """See `Method.learning_rate_for`."""
        if len(head.layers) > 1:
            return self.hidden_layer_learning_rate
        return self.pooler_learning_rate if head.reads_frozen_pooler else self.default_learning_rate
