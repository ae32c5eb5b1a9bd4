"""TF-IDF of words and word pairs with logistic regression: what a classifier reaches that knows no language but its training texts.

Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval" (sublinear term frequency, cosine normalisation). A linear support vector machine is
about as accurate, but gives no probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorabel.baselines.base import BaselineTask, FittedBaseline
from lorabel.errors import DataError
from lorabel.registry import BASELINES

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Weakest to strongest fit; each starts where the one before ended.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
_MAX_ITERATIONS = 1000


@BASELINES.register("tfidf")
class TfIdf:
    """Words and word pairs, sublinear TF-IDF, logistic regression; its strength C is chosen by validation accuracy.

    Of several labels each has a model of its own, and the strength is chosen by average precision, which needs no thresholds.
    """

    is_always_shown: ClassVar[bool] = True

    def fit(self, task: BaselineTask) -> FittedBaseline:
        """Fit one model per strength and keep the best; of equals the most regularised.

        Args:
            task: Texts and labels.

        Returns:
            The best one.

        Raises:
            DataError: No training text holds a word.
        """
        from scipy.special import expit
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
        try:
            features = vectorizer.fit_transform(list(task.train_texts))
        except ValueError as error:
            raise DataError(
                "tfidf: no training text holds a word, got an empty vocabulary; expected texts of letters or digits. Check the text column."
            ) from error
        choose, normalised = (_chosen, _softmax) if task.train_labels.ndim == 1 else (_chosen_for_labels, expit)
        best, accuracies = choose(features, vectorizer.transform(list(task.validation_texts)), task)
        weights, intercept = best

        def predict_proba(texts: Sequence[str]) -> NDArray[np.float64]:
            return np.asarray(normalised(np.asarray(vectorizer.transform(list(texts)) @ weights.T) + intercept))

        words = sum(len(word.encode()) + 1 for word in vectorizer.vocabulary_)
        trained = np.isfinite(intercept).sum() * (weights.shape[1] + 1)
        strength = max(accuracies, key=lambda c: (accuracies[c], -c))
        settings = {
            "ngrams": [1, 2],
            "C": strength,
            f"validation_{'accuracy' if task.train_labels.ndim == 1 else 'average_precision'}_by_C": {f"{c:g}": accuracy for c, accuracy in accuracies.items()},
        }
        return FittedBaseline(predict_proba, int(trained), int(4 * (trained + weights.shape[1]) + words), settings)


Weights = tuple[NDArray[np.float64], NDArray[np.float64]]


def _chosen(train: csr_matrix, validation: csr_matrix, task: BaselineTask) -> tuple[Weights, dict[float, float]]:
    """Weights of the best strength, and the validation accuracy of each."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)
    best: Weights | None = None
    accuracies: dict[float, float] = {}
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(train, task.train_labels)
        weights, intercept = _all_classes(model, task.classes, train.shape[1])
        scores = np.asarray(validation @ weights.T) + intercept
        accuracy = float((scores.argmax(axis=1) == task.validation_labels).mean())
        if best is None or accuracy > max(accuracies.values()):
            best = weights, intercept
        accuracies[strength] = accuracy
    assert best is not None
    return best, accuracies


def _chosen_for_labels(train: csr_matrix, validation: csr_matrix, task: BaselineTask) -> tuple[Weights, dict[float, float]]:
    """The same with one model per label; one strength for all of them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    # One label against the rest is two classes: the solver for sparse features of that form is several times faster than the general one.
    models = [LogisticRegression(solver="liblinear", max_iter=_MAX_ITERATIONS) for _ in range(task.classes)]
    judged = np.flatnonzero(task.validation_labels.any(axis=0))
    best: Weights | None = None
    found: dict[float, float] = {}
    for strength in STRENGTHS:
        rows, intercept = np.zeros((task.classes, train.shape[1])), np.full(task.classes, -np.inf)
        for c, model in enumerate(models):
            present = task.train_labels[:, c]
            if present.all():
                intercept[c] = np.inf
            elif present.any():
                model.set_params(C=strength).fit(train, present)
                rows[c], intercept[c] = model.coef_[0], model.intercept_[0]
        scores = np.asarray(validation @ rows.T) + intercept
        precisions = [average_precision_score(task.validation_labels[:, c], np.nan_to_num(scores[:, c], posinf=1e9, neginf=-1e9)) for c in judged]
        score = float(np.mean(precisions)) if precisions else 0.0
        if best is None or score > max(found.values()):
            best = rows, intercept
        found[strength] = score
    assert best is not None
    return best, found


def _all_classes(model: Any, classes: int, width: int) -> Weights:
    """Weights (C, W) and intercepts (C,); of two classes the library keeps one row, and one for a class without training rows it does not have: its probability is 0."""
    rows, intercept = np.zeros((classes, width)), np.full(classes, -np.inf)
    if len(model.classes_) == 2:
        rows[model.classes_[1]] = model.coef_[0]
        intercept[model.classes_] = 0.0, model.intercept_[0]
    else:
        rows[model.classes_] = model.coef_
        intercept[model.classes_] = model.intercept_
    return rows, intercept


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
