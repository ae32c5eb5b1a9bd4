"""What scored rows say of a classifier: its scores with intervals, and how far it is from another on the same rows.

Rows are resampled together with what was repeated: seeds, or draws of the training rows, whose own seeds are averaged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorabel.artifacts.compares import Gap, Interval, LabelErrors, SplitScores
from lorabel.artifacts.probabilities import ScoredRows
from lorabel.data.types import class_ids
from lorabel.evaluation import count_scores
from lorabel.metrics.multi_label import f1_of_counts, macro_f1_of_counts, ranking_precisions
from lorabel.stats import group_means, mcnemar_exact, mean_and_spread, merged_p_value, resampled_means, resampled_p_value, resampled_scores

# Matrices of more classes are too large for a figure, and those of several rows for one record.
_MOST_CLASSES_CONFUSED = 200


@dataclass(frozen=True)
class RowAnswers:
    """A row's answers to one split.

    Attributes:
        scores: Name -> of each repetition (G,).
        resampled: Name -> mean over repetitions in each resample (R,), the same rows and repetitions for every row that has as many.
        correct: (S, N) where each seed was right.
        confusion: Mean confusion matrix over seeds; None where texts have several labels, or where there are too many classes to look at all pairs of them.
        label_errors: Of each label; None where texts have one.
    """

    scores: dict[str, NDArray[np.float64]]
    resampled: dict[str, NDArray[np.float64]]
    correct: NDArray[np.bool_]
    confusion: list[list[float]] | None
    label_errors: list[LabelErrors] | None = None

    def interval(self, score: str) -> Interval:
        """A score with its spread over repetitions and its 95 % interval."""
        mean, deviation = mean_and_spread(self.scores[score].tolist())
        low, high = np.clip(np.quantile(self.resampled[score], [0.025, 0.975]), 0, 1)
        return Interval(mean=mean, low=float(low), high=float(high), deviation=deviation)

    def intervals(self) -> SplitScores:
        """All scores."""
        return SplitScores(**{score: self.interval(score) for score in self.scores})

    def gap(self, against: RowAnswers, score: str) -> Gap:
        """A score less another row's, with its 95 % interval.

        Args:
            against: The other row, on the same rows.
            score: Its name.
        """
        low, high = np.quantile(self.resampled[score] - against.resampled[score], [0.025, 0.975])
        return Gap(mean=float(self.scores[score].mean() - against.scores[score].mean()), low=float(low), high=float(high))

    def mcnemar(self, against: RowAnswers) -> float:
        """Of equal accuracies. Seeds are tested in pairs; a row that is the same for all seeds is paired with each.

        Args:
            against: The other row, on the same rows.
        """
        mine, its = self.correct, against.correct
        return merged_p_value([mcnemar_exact(mine[turn % len(mine)], its[turn % len(its)]) for turn in range(max(len(mine), len(its)))])

    def p_value_of_resamples(self, against: RowAnswers, score: str) -> float:
        """See `resampled_p_value`.

        Args:
            against: The other row, on the same rows.
            score: Its name.
        """
        return resampled_p_value(self.resampled[score] - against.resampled[score])


def score_answers(repetitions: Sequence[Sequence[ScoredRows]]) -> RowAnswers:
    """Scores of a row.

    Args:
        repetitions: What was repeated, the seeds of each; all on the same split.
    """
    groups, scored = [len(seeds) for seeds in repetitions], [one for seeds in repetitions for one in seeds]
    return _of_labels(groups, scored) if scored[0].labels.ndim == 2 else _of_classes(groups, scored)


def _of_classes(groups: Sequence[int], scored: Sequence[ScoredRows]) -> RowAnswers:
    """One label per text: scores follow from the cells of the confusion matrix."""
    classes = scored[0].probabilities.shape[1]
    truth, answers = class_ids(scored[0].labels), np.stack([class_ids(one.answers) for one in scored])
    hits = np.stack([np.bincount(truth[one == truth], minlength=classes) for one in answers])
    given, actual = np.stack([np.bincount(one, minlength=classes) for one in answers]), np.broadcast_to(np.bincount(truth, minlength=classes), hits.shape)
    of_counts = count_scores(given + actual > 0)
    scores = {name: group_means(score(hits, given, actual), groups) for name, score in of_counts.items()}
    correct = np.stack([one.correct for one in scored])
    confusion = None
    if classes <= _MOST_CLASSES_CONFUSED:
        pairs = np.bincount((truth * classes + answers).ravel(), minlength=classes * classes)
        confusion = (pairs.reshape(classes, classes) / len(answers)).tolist()
    return RowAnswers(scores, resampled_scores(truth, answers, classes, of_counts, groups=groups), correct, confusion)


def _of_labels(groups: Sequence[int], scored: Sequence[ScoredRows]) -> RowAnswers:
    """Several labels per text: scores follow from how often each label was right, given and true."""
    truth, given = scored[0].labels.astype(np.float64), [one.answers.astype(np.float64) for one in scored]
    correct = np.stack([one.correct for one in scored])
    exact = correct.astype(np.float64)  # (S, N)
    ranked = np.stack([ranking_precisions(one.labels.astype(np.uint8), one.probabilities) for one in scored])
    hits, guesses = np.stack([(truth * one).sum(axis=1) for one in given]), np.stack([one.sum(axis=1) for one in given])  # (S, N) each
    seen = [(truth + one).sum(axis=0) > 0 for one in given]

    def weighted(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        actual = weights @ truth  # (C,)
        f1 = [macro_f1_of_counts(weights @ (truth * one), weights @ one, actual, labels) for one, labels in zip(given, seen, strict=True)]
        micro = f1_of_counts(hits @ weights, guesses @ weights, np.full(len(given), actual.sum()))
        return {"accuracy": exact @ weights / weights.sum(), "macro_f1": np.array(f1), "micro_f1": micro, "lrap": ranked @ weights / weights.sum()}

    def of_rows(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return weighted(np.bincount(rows, minlength=len(truth)).astype(np.float64))

    scores = {name: group_means(values, groups) for name, values in weighted(np.ones(len(truth))).items()}
    missed = np.mean([(truth > one).sum(axis=0) for one in given], axis=0)  # (C,)
    wrong = np.mean([(one > truth).sum(axis=0) for one in given], axis=0)
    errors = [LabelErrors(missed=left_out, wrong=added) for left_out, added in zip(missed.tolist(), wrong.tolist(), strict=True)]
    return RowAnswers(scores, resampled_means(groups, len(truth), of_rows), correct, None, errors)
