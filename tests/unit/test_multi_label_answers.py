"""Several labels per text: losses, probabilities, thresholds, temperature and scores against the libraries and by hand."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
import torch

from lorabel.calibration import fit_temperature
from lorabel.config import load_config
from lorabel.data.types import LabelMap
from lorabel.evaluation import accuracy_and_macro_f1, evaluate_probabilities
from lorabel.inference.answers import AnswerRule
from lorabel.losses.cross_entropy import CrossEntropy
from lorabel.losses.focal import Focal
from lorabel.losses.weightings.balanced import positive_weights
from lorabel.metrics.multi_label import ranking_precisions
from lorabel.stats import row_intervals
from lorabel.thresholds import best_threshold, fit_thresholds
from lorabel.workflows.loss_choice import build_loss

NAMES = LabelMap(("a", "b", "c", "d"))


def sample(rows=300, seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 4)) * 2 - (0, 1, 2, 3)
    return (random.random((rows, 4)) < 1 / (1 + np.exp(-logits / 2))).astype(np.uint8), logits


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_librarys_over_labels_and_micro_batches_add_up(weights, smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 3, dtype=torch.float64, generator=generator), torch.randint(0, 2, (10, 3), generator=generator, dtype=torch.uint8)
    for loss in (CrossEntropy(smoothing, weights), Focal(0.0, smoothing, weights)):
        parts = sum(loss.rows(logits[a:b], labels[a:b]).sum() / loss.normaliser(labels) for a, b in ((0, 4), (4, 10)))
        target = labels.double() * (1 - smoothing) + smoothing / 2
        tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=tensor)
        torch.testing.assert_close(parts, expected, rtol=1e-12, atol=1e-12)


def test_focal_loss_over_labels_by_hand():
    logits = torch.tensor([[0.9, 0.2]], dtype=torch.float64).logit()
    found = Focal(2.0, 0.0, (3.0, 1.0)).rows(logits, torch.tensor([[1, 0]], dtype=torch.uint8))
    assert found.item() == pytest.approx((3 * 0.1**2 * -np.log(0.9) + 0.2**2 * -np.log(0.8)) / 2)
    certain = torch.tensor([[200.0, -200.0]], requires_grad=True)
    Focal(0.5).rows(certain, torch.tensor([[1, 1]], dtype=torch.uint8)).sum().backward()
    assert torch.isfinite(certain.grad).all()
    double = torch.randn(3, 2, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: Focal(1.5, 0.1).rows(x, torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.uint8)), (double,))


def test_balanced_weights_weigh_presence_against_absence():
    labels = np.array([[1, 0], [1, 1], [1, 0], [1, 0]], dtype=np.uint8)
    assert positive_weights(labels.sum(axis=0), 4).tolist() == [0.25, 3.0]
    loss = build_loss(load_config({"loss": {"class_weights": "balanced"}}), labels, 2)
    logits = torch.zeros(1, 2, dtype=torch.float64)
    assert loss.rows(logits, torch.tensor([[1, 1]], dtype=torch.uint8)).item() == pytest.approx(np.log(2) * (0.25 + 3) / 2)
    assert loss.rows(logits, torch.tensor([[0, 0]], dtype=torch.uint8)).item() == pytest.approx(np.log(2))


def test_answers_reach_their_thresholds():
    rule = AnswerRule("multi_label", 2.0, (0.5, 0.2))
    found = rule.probabilities(np.array([[0.0, -2.0], [-1.0, -4.0]]))
    assert found == pytest.approx(np.array([[0.5, 1 / (1 + np.e)], [1 / (1 + np.exp(0.5)), 1 / (1 + np.e**2)]]))
    assert rule.answers(found).tolist() == [[1, 1], [0, 0]]
    assert AnswerRule("multi_label").answers(found).tolist() == [[1, 0], [0, 0]]
    assert AnswerRule().answers(np.array([[0.2, 0.8]])).tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_a_threshold_has_the_best_f1_there_is(seed):
    random = np.random.default_rng(seed)
    found = random.integers(1, 15, 60) / 16  # Ties on purpose.
    present = (random.random(60) < found).astype(np.uint8)
    threshold = best_threshold(present, found)
    scores = {t: reference.f1_score(present, found >= t) for t in [*np.unique(found), threshold]}
    assert scores[threshold] == pytest.approx(max(scores.values()))


def test_rare_labels_share_a_threshold_and_none_is_made_of_nothing():
    random = np.random.default_rng(0)
    labels = np.zeros((200, 4), dtype=np.uint8)
    labels[:100, 0] = 1
    labels[:6, 1] = labels[3:9, 2] = 1
    found = np.clip(labels * 0.3 + random.random((200, 4)) * 0.4, 0.01, 0.99)
    thresholds = fit_thresholds(labels, found)
    assert thresholds[0] == best_threshold(labels[:, 0], found[:, 0])
    assert thresholds[1] == thresholds[2] == thresholds[3] == best_threshold(labels[:, 1:].ravel(), found[:, 1:].ravel())
    assert fit_thresholds(labels[100:], found[100:]) == (0.5,) * 4
    with pytest.raises(ValueError, match="shapes do not fit"):
        fit_thresholds(labels, found[:5])


def test_the_temperature_is_the_likeliest():
    labels, logits = sample(4000)
    fitted = fit_temperature(labels, logits)
    assert fitted.temperature == pytest.approx(2.0, rel=0.1)
    assert fitted.note is None

    def loss(temperature):
        return evaluate_probabilities(labels, AnswerRule("multi_label", temperature).probabilities(logits), NAMES).loss

    assert all(loss(fitted.temperature * factor) > loss(fitted.temperature) for factor in (0.97, 1.03))
    assert "answered right" in fit_temperature(labels, np.where(labels, 3.0, -3.0)).note
    assert "alike" in fit_temperature(labels, np.zeros_like(logits)).note


def test_ranking_precision_of_each_row_is_the_librarys():
    random = np.random.default_rng(0)
    # Few values, so that there are ties; a row without labels, and one with all of them.
    labels, found = random.integers(0, 2, (200, 5)).astype(np.uint8), random.integers(0, 4, (200, 5)) / 4
    labels[0], labels[1] = 0, 1
    rows = ranking_precisions(labels, found)
    expected = [reference.label_ranking_average_precision_score(labels[i : i + 1], found[i : i + 1]) for i in range(200)]
    assert rows.tolist() == pytest.approx(expected)
    assert rows[:2].tolist() == [1.0, 1.0]
    interval = evaluate_probabilities(labels, found, LabelMap(tuple("abcde"))).interval["lrap"]
    assert interval[0] < rows.mean() < interval[1]


def test_scores_are_the_librarys():
    labels, logits = sample()
    labels[:, 3] = 0
    thresholds = (0.5, 0.3, 0.2, 0.9)
    found = AnswerRule("multi_label").probabilities(logits)
    given = (found >= thresholds).astype(int)
    result = evaluate_probabilities(labels, found, NAMES, thresholds=thresholds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = reference.precision_recall_fscore_support(labels, given, zero_division=0)
        assert result.macro_f1 == pytest.approx(reference.f1_score(labels, given, average="macro", zero_division=0))
        assert result.micro_f1 == pytest.approx(reference.f1_score(labels, given, average="micro"))
    assert result.accuracy == pytest.approx(reference.accuracy_score(labels, given))
    assert result.lrap == pytest.approx(reference.label_ranking_average_precision_score(labels, found))
    assert result.log_loss == pytest.approx(np.mean([reference.log_loss(labels[:, c], found[:, c], labels=[0, 1]) for c in range(4)]))
    assert result.brier == pytest.approx(4 * reference.mean_squared_error(labels, found))
    for c, name in enumerate(NAMES.names):
        scores = result.per_class[name]
        assert (scores.precision, scores.recall, scores.f1, scores.support) == pytest.approx((precision[c], recall[c], f1[c], support[c]))
        assert scores.threshold == thresholds[c]
    assert sum(one.n for one in result.reliability) == labels.size
    assert (result.task, result.confusion_matrix) == ("multi_label", None)
    assert accuracy_and_macro_f1(labels, found, thresholds) == pytest.approx((result.accuracy, result.macro_f1))


def test_intervals_hold_the_score_and_are_as_wide_as_the_binomial_says():
    labels, logits = sample(2000)
    result = evaluate_probabilities(labels, AnswerRule("multi_label").probabilities(logits), NAMES)
    for name in ("accuracy", "macro_f1", "micro_f1"):
        low, high = result.interval[name]
        assert low < getattr(result, name) < high
    low, high = result.interval["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(result.accuracy * (1 - result.accuracy) / 2000), rel=0.1)
    right = np.arange(50) < 20
    found = row_intervals(50, lambda drawn: {"share": drawn @ right / 50})["share"]
    assert found == pytest.approx((0.26, 0.54), abs=0.021)


def test_a_label_that_a_resample_leaves_out_is_left_out_of_its_macro_f1():
    labels = np.zeros((40, len(NAMES)), dtype=np.uint8)
    labels[np.arange(40), np.arange(40) % 2] = 1
    labels[0, 2] = 1  # One row in forty: a third of the resamples do not have it.
    result = evaluate_probabilities(labels, np.where(labels == 1, 0.9, 0.1), NAMES)
    unseen = len(NAMES) - 3
    assert result.macro_f1 == pytest.approx(3 / len(NAMES))
    assert result.interval["macro_f1"] == pytest.approx((2 / (2 + unseen), 3 / len(NAMES)))


def test_shapes_that_do_not_fit_are_refused():
    labels, logits = sample(10)
    with pytest.raises(ValueError, match="shapes do not fit"):
        evaluate_probabilities(labels[:, :3], AnswerRule("multi_label").probabilities(logits), NAMES)
