"""`TextClassifier` where texts have several labels: lists or an indicator matrix in, an indicator matrix out."""

import pickle

import numpy as np
import pandas
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import MultiLabelBinarizer

from lorabel import TextClassifier
from lorabel.errors import DataError

WORDS = {"money": "shares", "sport": "team", "weather": "storm"}
SETTINGS = {
    "training": {"batch_size": 8, "precision": "fp32", "device": "cpu", "threads": 1},
    "method": {"name": "lora", "targets": ["all-linear"]},
    "head": {"kind": "linear", "pooling": "mean"},
}


def rows(count, seed=0):
    """Three words that each mean a label, in all combinations, among others that mean none."""
    random = np.random.default_rng(seed)
    labels = [[name for name in WORDS if random.random() < 0.4] for _ in range(count)]
    texts = [" ".join(random.permutation([*(WORDS[name] for name in some), *random.choice(["the", "new", "study", "finds", "a"], 3)])) for some in labels]
    return texts, labels


@pytest.fixture
def fresh(tiny_encoder):
    return TextClassifier(encoder=str(tiny_encoder("bert")), settings=SETTINGS, learning_rate=0.01, num_epochs=12)


def test_lists_in_indicators_out_and_the_same_after_saving_and_pickling(fresh, tiny_encoder, tmp_path):
    texts, labels = rows(240)
    fresh.fit(texts, labels)
    assert list(fresh.classes_) == ["money", "sport", "weather"]
    new, theirs = rows(60, seed=1)
    wanted = MultiLabelBinarizer(classes=list(fresh.classes_)).fit_transform(theirs)
    found = fresh.predict(new)
    assert found.shape == wanted.shape
    assert (found == wanted).mean() > 0.9
    assert fresh.score(new, theirs) == fresh.score(new, wanted) == (found == wanted).all(axis=1).mean()
    assert fresh.predictor_.predict(new[:1])[0] == tuple(fresh.classes_[found[0] == 1])
    fresh.save(tmp_path / "saved")
    loaded = TextClassifier.load(tmp_path / "saved", encoder=str(tiny_encoder("bert")))
    for other in (loaded, pickle.loads(pickle.dumps(fresh))):
        assert np.array_equal(other.predict(new), found)
        assert np.array_equal(other.predict_proba(new), fresh.predict_proba(new))


def test_an_indicator_matrix_names_its_columns_by_number_and_goes_through_cross_validation(fresh):
    texts, labels = rows(90)
    matrix = MultiLabelBinarizer().fit_transform(labels)
    fresh.set_params(num_epochs=1)
    for given in (matrix, pandas.DataFrame(matrix)):
        assert fresh.fit(texts, given).classes_.tolist() == [0, 1, 2]
    fresh.set_params(num_epochs=12)
    scores = cross_val_score(fresh, texts, matrix, cv=2, scoring="f1_macro")
    assert np.all((scores > 0) & (scores <= 1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"], "b", ["a", "b"], ["b"]], "lists of labels and single ones mixed, got row 1 'b'"),
        ([["a"], [None], ["a", "b"], ["b"]], "a missing label"),
        ([["a"], [1], ["a", "b"], ["b"]], "text and other values mixed"),
        ([["a"], ["b"]], "lengths differ"),
        (np.array([[0, 1], [1, 2], [0, 1], [1, 1]]), "not one column of labels"),
        (np.array([[0, 1], [0, 1], [0, 1], [0, 1]]), "labels without a text, got 1 columns of zeros, the first 0"),
    ],
)
def test_what_cannot_be_used_is_said_before_training(fresh, labels, message):
    with pytest.raises(DataError, match=message):
        fresh.fit(["one", "two", "three", "four"], labels)


def test_one_and_one_point_nought_are_one_label(fresh):
    texts, labels = rows(60)
    numbers = [[float("abc".index("abc"[len(name) % 3])) for name in some] for some in labels]
    fresh.set_params(num_epochs=1).fit(texts, numbers)
    assert fresh.score(texts, numbers) == fresh.score(texts, [[int(one) for one in some] for some in numbers])


def test_scoring_needs_labels_that_are_known_and_as_lists(fresh):
    texts, labels = rows(60)
    fresh.set_params(num_epochs=1).fit(texts, labels)
    with pytest.raises(DataError, match="a label that is not known, got row 0 'x'"):
        fresh.score(texts[:1], [["x"]])
    with pytest.raises(DataError, match="one label per text"):
        fresh.score(texts[:1], ["money"])
