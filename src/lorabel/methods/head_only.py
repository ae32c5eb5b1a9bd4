"""Head only: the encoder stays frozen and nothing is added; the lower baseline, also called linear probing where the head is linear.

Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes". Departures: the head may be the family's own.

Pooling: where the encoder was trained with mean pooling, the head reads the mean (`lorabel.solver`): its first token says little until it is
trained. On two validation splits the mean was 18 points better (benchmarks/methods.py).

Learning rates: a single layer on frozen states is a convex problem that wants large steps; a hidden layer takes only small ones
(benchmarks/methods.py).
"""

from typing import ClassVar

from lorabel.methods.base import Method
from lorabel.registry import METHODS


@METHODS.register("head_only")
class HeadOnly(Method):
    """Train the classification head alone."""

    name: ClassVar[str] = "head_only"
    paper: ClassVar[str] = "Alain and Bengio 2016, arXiv:1610.01644"
    trains_states: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 5e-3
    single_layer_learning_rate: ClassVar[float] = 0.14

    def learning_rate_for(self, head_layers: int) -> float:
        """See `Method.learning_rate_for`."""
        return self.single_layer_learning_rate if head_layers == 1 else self.default_learning_rate
