"""Zero-shot: the class whose description lies nearest to the text in the frozen encoder's embedding; nothing is trained.

Source: Yin, Hay, Roth 2019, "Benchmarking zero-shot text classification" (section 5, label names as descriptions); similarity by mean-pooled embeddings as in Reimers and
Gurevych 2019, "Sentence-BERT", whose scale of 20 turns cosines into logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorabel.baselines.base import BaselineTask, FittedBaseline
from lorabel.registry import BASELINES

SCALE = 20.0


@BASELINES.register("zero_shot")
class ZeroShot:
    """Cosine to each class's description, times 20, as logits.

    Of several labels each has its softmax share as probability: shares rank a text's labels as cosines do, and thresholds chosen on the validation split say how many hold.
    A sigmoid of each cosine would not do, as nothing trained says which cosine is near.
    """

    is_always_shown: ClassVar[bool] = False

    def fit(self, task: BaselineTask) -> FittedBaseline:
        """Embed the descriptions.

        Args:
            task: Descriptions and the embedding.

        Returns:
            The classifier; it keeps one vector per class and trains nothing.
        """
        anchors = _unit(task.embed(task.descriptions))

        def predict_proba(texts: Sequence[str]) -> NDArray[np.float64]:
            logits = SCALE * _unit(task.embed(texts)) @ anchors.T
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))

        return FittedBaseline(predict_proba, 0, 4 * anchors.size, {"descriptions": list(task.descriptions)})


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny))
