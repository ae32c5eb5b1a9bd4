"""Classification heads as data: which layers, how many parameters, under which names; and which choices the PEFT library can express.

The tensors live in `models/heads.py`. This file has no torch, because `plan` counts heads.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorabel.errors import ConfigError
from lorabel.families import EncoderShape, HeadLayer

HeadKind = Literal["native", "linear", "native-pooler"]
# What a user may ask for: one of them, or that the solver chooses.
HeadChoice = Literal["auto", "native", "linear", "native-pooler"]
Pooling = Literal["cls", "mean"]
PoolingChoice = Literal["auto", "cls", "mean"]
HEAD_KINDS: tuple[HeadKind, ...] = ("native", "linear", "native-pooler")
LINEAR_HEAD = (HeadLayer("classifier", to_classes=True),)


@dataclass(frozen=True)
class HeadSpec:
    """A head chosen for one encoder and one number of classes.

    Attributes:
        kind: `native`, `linear` or `native-pooler`.
        pooling: `cls` (row 0 of each sequence) or `mean` (over its tokens).
        layers: Trained layers, input side first.
        width: D, the encoder's width.
        classes: C.
        reads_frozen_pooler: The checkpoint's own pooler is applied, frozen, before the first layer.
        starts_from_pooler: The first layer starts as a copy of the checkpoint's pooler.
    """

    kind: HeadKind
    pooling: Pooling
    layers: tuple[HeadLayer, ...]
    width: int
    classes: int
    reads_frozen_pooler: bool = False
    starts_from_pooler: bool = False

    def layer_shape(self, layer: HeadLayer) -> tuple[int, int]:
        """(out_features, in_features) of one layer."""
        return (self.classes if layer.to_classes else self.width), self.width

    @property
    def parameter_count(self) -> int:
        """Trained parameters, biases included."""
        return sum(out * (inputs + 1) for out, inputs in map(self.layer_shape, self.layers))


def make_head(shape: EncoderShape, kind: HeadKind, pooling: Pooling, classes: int) -> HeadSpec:
    """Choose a head.

    Args:
        shape: The encoder.
        kind: `native` is the family's own head as the reference library builds it, `linear` one layer on the pooled state, `native-pooler` the
            checkpoint's pooler, trained, and an output layer.
        pooling: `cls` or `mean`.
        classes: Number of classes, at least 1.

    Returns:
        The specification.

    Raises:
        ConfigError: The family's native head reads a pooler that the checkpoint lacks, or the family has no pooler at all.
    """
    family = shape.names
    if kind == "linear":
        return HeadSpec(kind, pooling, LINEAR_HEAD, shape.hidden_size, classes)
    if kind == "native" and not family.pooler_is_frozen:
        return HeadSpec(kind, pooling, family.native_head, shape.hidden_size, classes)
    if not shape.has_pooler:
        why = "this checkpoint has no pooler" if family.has_pooler else f"the {family.name} family has no pooler"
        other = "linear" if family.pooler_is_frozen else "native or linear"
        raise ConfigError(f"head.kind: {why}, got {kind!r}; expected a head that needs none. Use --head {other}.")
    if kind == "native":
        return HeadSpec(kind, pooling, family.native_head, shape.hidden_size, classes, reads_frozen_pooler=True)
    pooler = HeadLayer(f"{family.prefix}.pooler.dense", to_classes=False, activation="tanh", dropout_before=False)
    return HeadSpec(kind, pooling, (pooler, *family.native_head), shape.hidden_size, classes, starts_from_pooler=True)


def trained_pooling(folder: Path) -> Pooling | None:
    """How the checkpoint's own training pooled the last states, where its folder says so as sentence encoders do (`1_Pooling/config.json`); None where it does not.

    Args:
        folder: The checkpoint.
    """
    file = folder / "1_Pooling" / "config.json"
    try:
        said = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # A hint is taken from it, nothing else: a checkpoint without it is as good.
    if not isinstance(said, dict):
        return None
    return "mean" if said.get("pooling_mode_mean_tokens") is True else "cls" if said.get("pooling_mode_cls_token") is True else None


def why_not_peft(head: HeadSpec, method_has_peft_form: bool, *, has_windows: bool = False) -> str | None:
    """Why the PEFT library cannot load this combination, or None where it can.

    Args:
        head: The head.
        method_has_peft_form: The method has a form in the PEFT library.
        has_windows: Long texts are read in windows.

    Returns:
        A reason to print, or None.
    """
    if not method_has_peft_form:
        return "with these settings the method has no form in the PEFT library (lorabel methods says more)"
    if head.kind == "linear":
        return f"the {head.kind} head differs from the one its sequence-classification model builds"
    if head.pooling != "cls":
        return f"{head.pooling} pooling differs from the first-token pooling of its sequence-classification model"
    if has_windows:
        return "long texts are read in windows, which its sequence-classification model would cut"
    return None
