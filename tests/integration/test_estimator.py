"""`TextClassifier`: the same core behind fit and predict."""

import json
import signal

import numpy as np
import pytest

import lorabel
from lorabel import TextClassifier
from lorabel.errors import BudgetError, ConfigError, DataError
from lorabel.workflows import train

TEXTS = {"sport": "the team won the match", "money": "bank shares fell", "science": "new study finds a chip"}
SETTINGS = {"training": {"num_epochs": 15, "batch_size": 8, "precision": "fp32", "threads": 1}, "optimizer": {"learning_rate": 0.01}}


def rows(count, names=tuple(TEXTS)):
    labels = [names[index % 3] for index in range(count)]
    return [f"{list(TEXTS.values())[index % 3]} {index}" for index in range(count)], labels


@pytest.fixture(scope="module")
def fitted(tiny_encoder):
    return TextClassifier(budget="1M", encoder=str(tiny_encoder("bert")), settings=SETTINGS, seed=1).fit(*rows(60))


def test_the_constructor_only_stores(tiny_encoder):
    classifier = TextClassifier(budget="none such", encoder="nowhere", method="nothing", settings={"x": 1}, seed=-3)
    assert (classifier.budget, classifier.encoder, classifier.method, classifier.settings, classifier.seed) == ("none such", "nowhere", "nothing", {"x": 1}, -3)
    with pytest.raises(ConfigError):
        classifier.fit(*rows(30))


def test_it_learns_and_answers_with_the_labels_it_was_given(fitted):
    texts, labels = rows(30)
    assert fitted.score(texts, labels) > 0.8
    assert list(fitted.classes_) == ["money", "science", "sport"]
    assert set(fitted.predict(texts)) <= set(TEXTS)
    probabilities = fitted.predict_proba(texts)
    assert probabilities.shape == (30, 3)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert list(fitted.classes_[probabilities.argmax(axis=1)]) == list(fitted.predict(texts))


def test_no_row_is_held_back_for_a_test_split(fitted):
    counts = fitted.record_.data["rows"]
    assert "test" not in counts
    assert counts["train"] + counts["validation"] == 60
    assert fitted.record_.seed == 1


def test_save_and_load_answer_the_same(fitted, tiny_encoder, tmp_path):
    texts, labels = rows(9)
    fitted.save(tmp_path / "adapter")
    loaded = TextClassifier.load(tmp_path / "adapter", encoder=str(tiny_encoder("bert")))
    assert np.array_equal(loaded.predict_proba(texts), fitted.predict_proba(texts))
    assert loaded.score(texts, labels) == fitted.score(texts, labels)
    assert lorabel.load(tmp_path / "adapter", encoder=str(tiny_encoder("bert"))).predict(texts) == list(fitted.predict(texts))
    loaded.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "lorabel.json").read_text())["labels"] == ["money", "science", "sport"]
    with pytest.raises(ConfigError, match="the folder exists"):
        fitted.save(tmp_path / "adapter")


def test_integer_labels_come_back_as_integers_in_their_order(tiny_encoder):
    texts, labels = rows(30, names=(10, 2, 33))
    classifier = TextClassifier(encoder=str(tiny_encoder("bert")), settings={"training": {"num_epochs": 1, "precision": "fp32"}}).fit(texts, np.array(labels))
    assert list(classifier.classes_) == [2, 10, 33]
    assert classifier.predict(texts[:3]).dtype.kind == "i"


def test_arguments_and_settings_reach_the_run(tiny_encoder):
    settings = {"training": {"num_epochs": 1, "precision": "fp32", "seed": 5}, "head": {"kind": "linear"}}
    classifier = TextClassifier(encoder=str(tiny_encoder("bert")), method={"name": "lora", "rank": 1, "targets": ["key"]}, settings=settings, seed=4).fit(
        *rows(30)
    )
    assert classifier.record_.seed == 5
    assert classifier.record_.parameters.adapter == 2 * (32 + 32)
    with pytest.raises(BudgetError):
        TextClassifier(encoder=str(tiny_encoder("bert")), settings={"budget": "10"}).fit(*rows(30))
    with pytest.raises(BudgetError):
        TextClassifier(budget="10", encoder=str(tiny_encoder("bert"))).fit(*rows(30))


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", "b"], ["x"], "2 texts and 1 labels"),
        ("hello", ["x"], "a single string"),
        (["a", None, 3], ["x", "y", "x"], "row 1 None, row 2 3"),
        (["a", "b"], ["x", None], "row 1 None"),
        (["a", "b"], ["x", float("nan")], "row 1 nan"),
        (["a", "b", "c"], ["x", "x", "x"], "only one class"),
    ],
)
def test_what_cannot_be_fitted_is_refused(texts, labels, message, tiny_encoder):
    with pytest.raises(DataError, match=message):
        TextClassifier(encoder=str(tiny_encoder("bert"))).fit(texts, labels)


def test_nothing_works_before_fit(tmp_path):
    for call in (lambda c: c.predict(["a"]), lambda c: c.predict_proba(["a"]), lambda c: c.score(["a"], ["x"]), lambda c: c.save(tmp_path / "x")):
        with pytest.raises(ConfigError, match="not fitted"):
            call(TextClassifier())


def test_no_texts_no_answers(fitted):
    assert fitted.predict_proba([]).shape == (0, 3)
    assert list(fitted.predict([])) == []


@pytest.mark.parametrize("texts", ["abc", [None], ["a", 3]])
def test_what_is_not_a_sequence_of_texts_is_refused_at_every_door(texts, fitted, tiny_encoder, tmp_path):
    fitted.save(tmp_path / "adapter")
    for classifier in (fitted, lorabel.load(tmp_path / "adapter", encoder=str(tiny_encoder("bert")))):
        for call in (classifier.predict, classifier.predict_proba):
            with pytest.raises(DataError, match="predict: .* expected "):
                call(texts)


def test_half_a_character_is_refused_with_its_row_at_every_door(fitted, tiny_encoder):
    fresh = TextClassifier(encoder=str(tiny_encoder("bert")))
    for call in (
        lambda: fresh.fit(["one", "\ud800"], ["a", "b"]),
        lambda: fresh.fit(["one", "two"], ["a", "\ud800"]),
        lambda: fitted.predict(["one", "\ud800"]),
        lambda: fitted.predictor_.predict(["one", "\ud800"]),
    ):
        with pytest.raises(DataError, match=r"half of a surrogate pair, got row 1 '\\ud800'; expected whole characters"):
            call()


def test_an_interrupt_is_pythons_own(tiny_encoder, monkeypatch):
    def interrupted(*_arguments, **_options):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(train, "train_bank", interrupted)
    # A process that was started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            TextClassifier(budget="1M", encoder=str(tiny_encoder("bert")), settings=SETTINGS).fit(*rows(30))
    finally:
        signal.signal(signal.SIGINT, before)


def test_faults_name_the_callers_rows_not_a_file_or_a_flag(tiny_encoder):
    classifier = TextClassifier(encoder=str(tiny_encoder("bert")), settings=SETTINGS)
    texts, labels = rows(30)
    texts[7] = " "
    with pytest.raises(DataError, match=r"^fit: row 7: empty text, got ' '; expected a text and a label\. ") as caught:
        classifier.fit(texts, labels)
    assert "--" not in str(caught.value)
    assert "settings=" in str(caught.value)
    with pytest.raises(DataError, match=r"^fit: row 0: only one class, got 'x' in every row; .* Check the labels\.$"):
        classifier.fit(rows(30)[0], ["x"] * 30)
    with pytest.raises(DataError, match=r"^fit: no rows, got an empty table"):
        classifier.fit([], [])
