"""Full fine-tuning: every weight of the encoder is trained; the baseline that adapters are measured against.

Source: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers", section 3.2.

Equation: W = W₀ + ΔW for every weight W₀ of the encoder, ΔW = 0 at the start.

Parameters: all of the encoder's, less a pooler that the head does not read.

Departures: none. A bank of it has one member only.

PEFT: none: there is no adapter.
"""

from typing import ClassVar

from lorabel.methods.base import Method
from lorabel.registry import METHODS


@METHODS.register("full")
class Full(Method):
    """Train the whole encoder and the head."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "Devlin et al. 2018, arXiv:1810.04805"
    default_learning_rate: ClassVar[float] = 1e-4
    trains_encoder: ClassVar[bool] = True
