"""`TextClassifier` with scikit-learn's own tools, and with the containers that people keep texts and labels in."""

import io
import json
import pickle
import pickletools
import warnings

import numpy as np
import pandas
import polars
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import DataConversionWarning
from sklearn.exceptions import NotFittedError as TheirNotFittedError
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from lorabel import TextClassifier
from lorabel.errors import ArtifactError, ConfigError, DataError

TEXTS = {"sport": "the team won the match", "money": "bank shares fell", "science": "new study finds a chip"}
SETTINGS = {"training": {"batch_size": 8, "precision": "fp32", "device": "cpu", "threads": 1}}


def rows(count, names=tuple(TEXTS)):
    return [f"{list(TEXTS.values())[index % 3]} {index}" for index in range(count)], [names[index % 3] for index in range(count)]


@pytest.fixture
def fresh(tiny_encoder):
    return TextClassifier(encoder=str(tiny_encoder("bert")), settings=SETTINGS, learning_rate=0.01, num_epochs=1)


@pytest.fixture(scope="module")
def fitted(tiny_encoder):
    return TextClassifier(encoder=str(tiny_encoder("bert")), settings=SETTINGS, learning_rate=0.01, num_epochs=15).fit(*rows(48))


def lowered(texts):
    return [text.lower() for text in texts]


def test_in_a_pipeline_with_a_step_that_normalises(fresh):
    texts, labels = rows(30)
    pipeline = Pipeline([("lower", FunctionTransformer(lowered)), ("classify", fresh)])
    pipeline.set_params(classify__num_epochs=10).fit([text.upper() for text in texts], labels)
    assert pipeline["classify"].num_epochs == 10
    assert list(pipeline.classes_) == ["money", "science", "sport"]
    assert pipeline.score([text.title() for text in texts], labels) > 0.8
    assert np.array_equal(pipeline.predict_proba(texts), pipeline["classify"].predict_proba(texts))


def test_a_grid_names_the_arguments_and_whole_methods(fresh):
    texts, labels = rows(36)
    grid = [{"rank": [1, 2], "learning_rate": [1e-6, 0.02], "num_epochs": [5]}, {"method": ["head_only"]}]
    search = GridSearchCV(fresh, grid, cv=2, scoring=["accuracy", "neg_log_loss"], refit="neg_log_loss").fit(np.array(texts), np.array(labels))
    assert len(search.cv_results_["params"]) == 5
    assert search.best_params_["learning_rate"] == 0.02
    assert search.best_estimator_.record_.config["method"]["rank"] == search.best_params_["rank"]
    assert list(search.predict(texts)) == list(search.best_estimator_.predict(texts))
    nested = GridSearchCV(make_pipeline(FunctionTransformer(lowered), fresh), {"textclassifier__seed": [3]}, cv=2).fit(texts, labels)
    assert nested.best_estimator_[-1].record_.seed == 3


def test_cross_validation_with_several_folds_scorers_and_processes(fresh):
    texts, labels = rows(36)
    scores = cross_val_score(fresh, texts, labels, cv=2, scoring="f1_macro")
    assert scores.shape == (2,)
    assert np.all((scores >= 0) & (scores <= 1))
    done = cross_validate(fresh, texts, labels, cv=2, scoring="f1_macro", n_jobs=2, return_estimator=True)
    assert np.array_equal(done["test_score"], scores)
    assert all(one.predict_proba(texts[:2]).shape == (2, 3) for one in done["estimator"])
    assert cross_val_predict(fresh, texts, labels, cv=2, method="predict_proba").shape == (36, 3)


def test_a_clone_has_the_settings_and_nothing_learned(fresh, fitted):
    assert is_classifier(fresh)
    for one in (fresh, fitted):
        copy = clone(one)
        assert copy.get_params() == one.get_params()
        assert copy.settings is not one.settings
        with pytest.raises(TheirNotFittedError, match="^TextClassifier: not fitted, got predict before fit; expected fit first"):
            copy.predict(["a"])
    assert set(fresh.get_params()) == {"budget", "encoder", "method", "settings", "seed", "rank", "learning_rate", "num_epochs"}


def test_the_plain_arguments_reach_the_run(tiny_encoder, fresh):
    given = fresh.set_params(method={"name": "lora", "targets": ["key"], "rank": 9}, rank=3, seed=5).fit(*rows(30)).record_
    assert (given.seed, given.parameters.adapter, given.config["optimizer"]["learning_rate"], given.config["training"]["num_epochs"]) == (
        5,
        3 * 2 * 64,
        0.01,
        1,
    )
    over = fresh.set_params(settings={**SETTINGS, "method": {"rank": 1}, "optimizer": {"learning_rate": 0.5}}).fit(*rows(30)).record_
    assert (over.parameters.adapter, over.config["optimizer"]["learning_rate"]) == (2 * 64, 0.5)
    with pytest.raises(ConfigError, match="^settings: not a mapping, got str"):
        fresh.set_params(settings="rank=3").fit(*rows(30))


def test_a_pickle_holds_the_adapters_files_and_answers_the_same(fitted):
    texts, _ = rows(9)
    content = pickle.dumps(fitted)
    named = {argument for code, argument, _ in pickletools.genops(io.BytesIO(content)) if isinstance(argument, str)}
    assert {"lorabel.json", "estimator.json", "adapter_model.safetensors"} <= named
    assert not any(word.startswith(("torch.", "safetensors.", "lorabel.inference")) for word in named)
    again = pickle.loads(content)
    assert np.array_equal(again.predict_proba(texts), fitted.predict_proba(texts))
    assert np.array_equal(pickle.loads(pickle.dumps(again)).classes_, fitted.classes_)
    assert again.record_ == fitted.record_


def test_a_damaged_pickle_is_refused(fitted):
    state = fitted.__getstate__()
    state["_files"] = {**state["_files"], "adapter_model.safetensors": state["_files"]["adapter_model.safetensors"][:-1] + b"?"}
    with pytest.raises(ArtifactError, match="damaged or changed"):
        TextClassifier().__setstate__(state)


@pytest.mark.parametrize(
    "hold",
    [
        tuple,
        np.array,
        lambda values: np.array(values, dtype=object),
        lambda values: np.array(values)[:, None],
        pandas.Series,
        lambda values: pandas.Series(values, index=range(len(values), 0, -1), dtype=object),
        lambda values: pandas.DataFrame({"only": values}),
        polars.Series,
        lambda values: polars.DataFrame({"only": values}),
    ],
    ids=["tuple", "array", "objects", "column", "pandas", "pandas-objects", "pandas-table", "polars", "polars-table"],
)
def test_containers_of_texts_and_labels(hold, fitted):
    texts, labels = rows(12)
    assert np.array_equal(fitted.predict_proba(hold(texts)), fitted.predict_proba(texts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataConversionWarning)
        assert fitted.score(hold(texts), hold(labels)) == fitted.score(texts, labels)


def test_series_can_be_fitted(fresh):
    texts, labels = rows(30)
    expected = fresh.fit(texts, labels).predict_proba(texts)
    for frame in (pandas.DataFrame({"text": texts, "label": labels}), polars.DataFrame({"text": texts, "label": labels})):
        assert np.array_equal(clone(fresh).fit(frame["text"], frame["label"]).predict_proba(frame["text"]), expected)
    categories = clone(fresh).fit(texts, pandas.Series(labels, dtype="category"))
    assert list(categories.classes_) == ["money", "science", "sport"]


@pytest.mark.parametrize(
    ("names", "dtype"),
    [((10, 2, -33), np.int32), ((10, 2, 33), np.uint8), ((True, False, True), np.bool_), ((1.0, 10.0, 2.0), np.float64), (("b", "A", "1"), np.str_)],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_classes_keep_their_type_and_are_sorted(names, dtype, fresh, tmp_path):
    texts, labels = rows(30, names)
    labels = np.array(labels, dtype=dtype)
    fresh.set_params(num_epochs=12).fit(texts, labels)
    assert fresh.classes_.dtype == np.unique(labels).dtype
    assert fresh.classes_.tolist() == np.unique(labels).tolist()
    assert fresh.score(texts, labels) > 0.8
    assert get_scorer("neg_log_loss")(fresh, texts, labels) > -np.log(len(fresh.classes_))  # Better than chance: the columns are in their places.
    fresh.save(tmp_path / "adapter")
    loaded = TextClassifier.load(tmp_path / "adapter", encoder=fresh.encoder)
    assert loaded.classes_.tolist() == fresh.classes_.tolist()
    assert loaded.classes_.dtype.kind == fresh.classes_.dtype.kind.replace("u", "i")  # A folder knows integers, not their width.
    assert np.array_equal(loaded.predict_proba(texts), fresh.predict_proba(texts))
    assert np.array_equal(loaded.predict(texts), fresh.predict(texts))


def test_row_weights_count_in_the_score(fitted):
    texts, labels = rows(6)
    answers = fitted.predict(texts)
    wrong = [*answers[:5], next(label for label in labels if label != answers[5])]
    assert fitted.score(texts, wrong) == pytest.approx(5 / 6)
    assert fitted.score(texts, wrong, sample_weight=[1, 1, 1, 1, 1, 5]) == pytest.approx(0.5)
    with pytest.raises(TypeError, match="sample_weight"):
        fitted.fit(texts, labels, sample_weight=[1] * 6)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (
            pandas.DataFrame({"a": ["x"] * 4, "b": ["y"] * 4}),
            ["p", "q"] * 2,
            r"^fit: not one column of texts, got pandas.* of shape \(4, 2\); .* Choose a column",
        ),
        (polars.DataFrame({"a": ["x"] * 4, "b": ["y"] * 4}), ["p", "q"] * 2, r"^fit: not one column of texts, got polars.* of shape \(4, 2\)"),
        (np.array("x"), ["p"], r"^fit: not one column of texts, got numpy.ndarray of shape \(\)"),
        (7, ["p"], "^fit: not a sequence of texts, got 7"),
        (pandas.Series(["x", pandas.NA], dtype="string"), ["p", "q"], "^fit: not a text, got row 1 <NA>"),
        (["x", "y"], pandas.DataFrame({"a": [1, 2], "b": [1, 2]}), "^fit: not one column of labels"),
        (["x", "y"], None, "^fit: it requires y to be passed"),
        (["x", "y"], pandas.Series(["p", pandas.NA], dtype="string"), "^fit: a missing label, got row 1 <NA>"),
        (["x", "y"], polars.Series(["p", None]), "^fit: a missing label, got row 1 None"),
        (["x", "y"], ["p", 1], "^fit: text and other values mixed, got labels such as 'p', 1"),
        (["x", "y"], [0.5, 1.0], "^fit: a continuous target, got row 0 0.5"),
        (["x", "y"], [np.inf, 1.0], "^fit: a continuous target, got row 0 inf"),
        (["x", "y"], [{"p": 1}, {"q": 2}], "^fit: Unknown label type"),
        (["x", "y"], [" p", "q"], "^fit: white space around a label, got ' p'"),
    ],
)
def test_what_is_not_texts_or_labels_is_refused(texts, labels, message, fresh):
    with pytest.raises(DataError, match=message):
        fresh.fit(texts, labels)


def test_what_was_saved_for_the_estimator_is_checked(fitted, tmp_path):
    for content, message in (
        ('{"format_version": 2}', "another format, got version 2"),
        ('{"format_version": 1, "label_kind": "colour"}', "not usable"),
        ('{"format_version": 1, "label_kind": "integer"}', "labels of another kind, got 'integer'"),
    ):
        folder = tmp_path / str(len(message))
        fitted.save(folder)
        (folder / "estimator.json").write_text(content)
        with pytest.raises(ArtifactError, match=message):
            TextClassifier.load(folder, encoder=fitted.encoder)
    fitted.save(tmp_path / "plain")
    (tmp_path / "plain" / "estimator.json").unlink()
    assert list(TextClassifier.load(tmp_path / "plain", encoder=fitted.encoder).classes_) == list(fitted.classes_)
    with pytest.raises(ArtifactError, match="nowhere: no such adapter folder"):
        TextClassifier.load(tmp_path / "nowhere")


@pytest.mark.parametrize("values", [(True, False), (1.0, 0.0), (7, 3)], ids=["boolean", "float", "integer"])
def test_the_command_line_and_python_mean_the_same_classes(values, fresh, tmp_path, run_cli):
    """A table's `true` and `1` and a program's `True` and `1.0` are one class each, whichever of the two trained and whichever scores."""
    import pyarrow
    import pyarrow.parquet

    texts = [f"{('the team won', 'bank shares fell')[index % 2]} {index}" for index in range(40)]
    labels = [values[index % 2] for index in range(40)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / "train.parquet")
    words = ("--encoder", fresh.encoder, "--epochs", 12, "--learning-rate", 0.01, "--batch-size", 8, "--precision", "fp32", "--threads", 1)
    done = run_cli("train", tmp_path / "train.parquet", *words, "--test-rows", 0, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    loaded = TextClassifier.load(tmp_path / "run", encoder=fresh.encoder)
    assert loaded.score(texts, np.array(labels)) > 0.8
    fresh.set_params(num_epochs=12).fit(texts, np.array(labels))
    fresh.save(tmp_path / "adapter")
    scored = run_cli("evaluate", tmp_path / "adapter", tmp_path / "train.parquet", "--encoder", fresh.encoder, "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["accuracy"] == pytest.approx(fresh.score(texts, np.array(labels)), abs=1e-6)
