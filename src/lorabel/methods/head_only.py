"""Head only: the encoder stays frozen and nothing is added; the lower baseline, also called linear probing where the head is linear.

Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes". Departures: the head may be the family's own.

Learning rates: a single layer on frozen states is a convex problem that wants large steps; a hidden layer takes only small ones. Tried from
0.0017 to 3.9 on two validation splits (benchmarks/methods.py), a single layer gained 9 points from 0.005 to 0.14 and little beyond.
"""

from typing import ClassVar

from lorabel.methods.base import Method
from lorabel.registry import METHODS


@METHODS.register("head_only")
class HeadOnly(Method):
    """Train the classification head alone."""

    name: ClassVar[str] = "head_only"
    paper: ClassVar[str] = "Alain and Bengio 2016, arXiv:1610.01644"
    default_learning_rate: ClassVar[float] = 5e-3
    single_layer_learning_rate: ClassVar[float] = 0.14

    def learning_rate_for(self, head_layers: int) -> float:
        """See `Method.learning_rate_for`."""
        return self.single_layer_learning_rate if head_layers == 1 else self.default_learning_rate
