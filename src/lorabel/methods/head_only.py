"""Head only: the encoder stays frozen and nothing is added; the lower baseline, also called linear probing where the head is linear.

Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes". Departures: the head may be the family's own.
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
