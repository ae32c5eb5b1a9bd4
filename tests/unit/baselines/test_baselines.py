"""Baselines of a comparison, against the reference library and by hand."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from lorabel.baselines.base import BaselineTask
from lorabel.baselines.tfidf import STRENGTHS
from lorabel.errors import DataError
from lorabel.registry import BASELINES

TEXTS = ["goal in the match", "team won the match", "shares fell today", "bank shares rose", "new chip found", "study of a chip"] * 3
LABELS = np.array([0, 0, 1, 1, 2, 2] * 3)


def no_embedding(_texts):
    raise AssertionError("this baseline needs no encoder")


def task(texts, labels, classes, validation=None, **changes):
    own = {"train_texts": texts, "train_labels": labels, "classes": classes, "descriptions": tuple("abcd"[:classes]), "embed": no_embedding}
    held = {"validation_texts": texts if validation is None else validation[0], "validation_labels": labels if validation is None else validation[1]}
    return BaselineTask(**{**own, **held, **changes})


@pytest.mark.parametrize("classes", [2, 3])
def test_tfidf_is_the_library_s_model_at_the_chosen_strength(classes):
    keep = classes > LABELS
    texts, labels = [text for text, kept in zip(TEXTS, keep, strict=True) if kept], LABELS[keep]
    fitted = BASELINES.get("tfidf")().fit(task(texts, labels, classes))
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    model = LogisticRegression(C=fitted.settings["C"], max_iter=1000).fit(features.fit_transform(texts), labels)
    asked = ["the match was won", "a chip"]
    assert np.abs(fitted.predict_proba(asked) - model.predict_proba(features.transform(asked))).max() < 2e-3
    assert fitted.trainable == classes * (len(features.vocabulary_) + 1)


def test_the_strength_is_chosen_on_validation_and_ties_take_the_weakest():
    noisy = np.array([0, 0, 1, 1, 2, 2] * 2 + [1, 2, 0, 2, 0, 1])
    fitted = BASELINES.get("tfidf")().fit(task(TEXTS, noisy, 3, (TEXTS[:6], LABELS[:6])))
    by_strength = fitted.settings["validation_accuracy_by_C"]
    assert list(by_strength) == [f"{strength:g}" for strength in STRENGTHS]
    best = max(by_strength.values())
    assert fitted.settings["C"] == min(strength for strength in STRENGTHS if by_strength[f"{strength:g}"] == best)
    assert (fitted.predict_proba(TEXTS[:6]).argmax(axis=1) == LABELS[:6]).mean() == best


def test_a_class_without_training_rows_has_probability_zero():
    fitted = BASELINES.get("tfidf")().fit(task(TEXTS, np.where(LABELS == 2, 3, LABELS), 4))
    found = fitted.predict_proba(["a new chip", "nothing known here"])
    assert found.shape == (2, 4)
    assert (found[:, 2] == 0).all()
    assert found.sum(axis=1) == pytest.approx([1, 1])


def test_texts_without_words_are_refused():
    with pytest.raises(DataError, match="no training text holds a word"):
        BASELINES.get("tfidf")().fit(task(["!", "?"], np.array([0, 1]), 2))


def test_zero_shot_takes_the_nearest_description_by_angle():
    places = {"sport": [1.0, 0.0], "money": [0.0, 1.0], "match": [5.0, 1.0], "bank": [0.1, 0.2]}

    def embed(texts):
        return np.array([places[text] for text in texts])

    fitted = BASELINES.get("zero_shot")().fit(task(TEXTS, LABELS, 2, descriptions=("sport", "money"), embed=embed))
    found = fitted.predict_proba(["match", "bank"])
    assert found.argmax(axis=1).tolist() == [0, 1]
    # Cosines 5 / √26 and 1 / √26, times 20, through the logistic function.
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(-20 * 4 / np.sqrt(26))))
    assert fitted.trainable == 0


def test_zero_shot_shares_out_several_labels_in_the_order_of_their_angles():
    places = {"sport": [1.0, 0.0], "money": [0.0, 1.0], "match": [5.0, 1.0], "both": [1.0, 1.0]}

    def embed(texts):
        return np.array([places[text] for text in texts])

    fitted = BASELINES.get("zero_shot")().fit(task(TEXTS, np.zeros((len(TEXTS), 2), dtype=bool), 2, descriptions=("sport", "money"), embed=embed))
    found = fitted.predict_proba(["match", "both"])
    assert found[0, 0] > 0.5 > found[0, 1]
    assert found[1] == pytest.approx([0.5, 0.5])


def test_every_baseline_says_whether_it_is_always_shown():
    assert [name for name, kind in BASELINES.items() if kind.is_always_shown] == ["tfidf"]
    assert {"tfidf", "zero_shot"} <= set(BASELINES.names())
