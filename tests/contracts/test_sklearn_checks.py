"""scikit-learn's own checks of an estimator.

They make tables of numbers; of an estimator that takes one column of texts, scikit-learn runs no more than the first. So all of them run over `SpelledNumbers`, which writes
each row of numbers as a text and is a `TextClassifier` in everything else. What is about tables as such is in `EXCLUDED` with the reason, and has to fail: no check
is excluded that passes.
"""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from lorabel import TextClassifier
from tests.conftest import WORDS

EXCLUDED = {
    "check_n_features_in": "one column of texts has no number of features, so there is no n_features_in_",
    "check_n_features_in_after_fitting": "one column of texts has no number of features, so there is no n_features_in_",
    "check_estimators_nan_inf": "NaN and infinity in a table are words once spelled; a missing text or label is refused in test_estimator.py",
    "check_estimators_empty_data_messages": "of its two parts, no rows is refused as asked; no columns asks for the words `0 feature(s)`, and here it is an empty text",
    "check_classifiers_multilabel_representation_invariance": "a list of lists holds the labels of each text, so its zeros and ones are labels; indicators are an array or a table",
    "check_fit2d_predict1d": "a row in place of a table is refused, but not with the words `Reshape your data`, which is no advice for texts",
}
SETTINGS = {
    "training": {"batch_size": 16, "precision": "fp32", "device": "cpu", "threads": 1},
    "head": {"kind": "linear", "pooling": "mean"},
    "data": {"max_length_tokens": 16},
}


class SpelledNumbers(TextClassifier):
    """Rows of a table of numbers, spelled out. It knows the width of its table, as check_classifiers_train asks; whatever is no table is passed on as it is."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, False, True
        return tags

    def fit(self, X, y):
        self._width = np.asarray(X).shape[1:]
        return super().fit(spelled(X), y)

    def predict_proba(self, X):
        texts = spelled(X)
        if hasattr(self, "_width") and texts is not X and np.asarray(X).shape[1:] != self._width:
            raise ValueError("a table of another width")
        return super().predict_proba(texts)

    def score(self, X, y, sample_weight=None):
        return super().score(spelled(X), y, sample_weight)


def spelled(table):
    """For each number a word of its column and size; then all digits as one word that the tokenizer does not know, so that unlike rows are unlike texts."""
    rows = np.asarray(table)
    if rows.ndim != 2 or rows.dtype.kind == "U":
        return table
    rows = (rows.real if np.iscomplexobj(rows) else rows).astype(float)
    letters = str.maketrans("0123456789-.", "abcdefghijkl")
    sizes = np.clip(np.nan_to_num(2 * rows), -5, 5).round().astype(int) + 5
    words = [" ".join(WORDS[11 * (column % 2) + size] for column, size in enumerate(row)) for row in sizes]
    return [f"{known} {''.join(map(str, row)).translate(letters)}" for known, row in zip(words, rows.tolist(), strict=True)]


def name_of(check):
    while isinstance(check, partial):
        check = check.func
    return check.__name__


CHECKS = [check for _, check in estimator_checks_generator(SpelledNumbers())]


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_check(check, tiny_encoder):
    estimator = SpelledNumbers(encoder=str(tiny_encoder("bert")), settings=SETTINGS, learning_rate=0.01, num_epochs=3)
    if name_of(check) in EXCLUDED:
        with pytest.raises((AssertionError, ValueError)):
            check(estimator)
    else:
        check(estimator)


def test_all_kinds_of_checks_are_there():
    names = {name_of(check) for check in CHECKS}
    assert set(EXCLUDED) <= names
    assert {"check_classifiers_train", "check_estimators_pickle", "check_fit_idempotent", "check_pipeline_consistency"} <= names - set(EXCLUDED)
    assert len(names) > 45


def test_as_a_classifier_of_texts_it_passes_what_is_run():
    with pytest.warns(SkipTestWarning, match="requires input"):
        results = check_estimator(TextClassifier())
    assert [result["status"] for result in results] == ["passed"]


def test_with_array_dispatch_switched_on():
    """scikit-learn skips this check unless a variable was set before scipy was loaded, so it runs in a process of its own."""
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "test_check and array_api", __file__]
    done = subprocess.run(words, env={**os.environ, "SCIPY_ARRAY_API": "1"}, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout
