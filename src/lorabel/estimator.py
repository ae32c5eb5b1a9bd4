"""`TextClassifier`: the fit / predict door to the same core as the command line, as an estimator of scikit-learn.

The constructor only stores; `fit` checks, builds the same settings and calls the same workflow; learned attributes end in `_`.

Decisions:
- This is the one file that imports scikit-learn when it is loaded, because the base class must be there; it loads no torch, and the package loads it on first use.
- A fitted classifier keeps the files of its adapter folder in memory (a few megabytes; a whole encoder after full fine-tuning). Fitting, loading and unpickling restore from
  those files alone, so all three answer alike, and a pickle holds settings and the files' bytes but no tensors of torch. Whoever takes it back verifies it as a folder is.
- `settings` reach every setting there is. The arguments beside it are what people vary most, so that `GridSearchCV` can name them.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError as _NotFittedError
from sklearn.metrics import accuracy_score

from lorabel.data.containers import check_columns, check_lengths, given_labels, given_texts, is_matrix, label_sets
from lorabel.data.rows import label_name
from lorabel.errors import ConfigError, DataError, first_of

if TYPE_CHECKING:
    from lorabel.artifacts.records import RunRecord
    from lorabel.inference.predictor import Predictor


class NotFittedError(ConfigError, _NotFittedError):  # type: ignore[misc]  # scikit-learn carries no types.
    """A fitted classifier is needed; also scikit-learn's error of that name."""


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn carries no types.
    """A budgeted text classifier that is an estimator of scikit-learn.

    Wherever texts are taken, they may be a list or tuple of strings, a numpy array (N,) or (N, 1), a pandas or polars series, or a table of one column. Labels come in the
    same containers and are strings, integers, booleans or whole floats. Where texts have several labels, they come as one list (or tuple, or set) of labels per text, or as an
    indicator matrix (N, C) of zeros and ones, and answers are such a matrix. Row weights are not supported in `fit`.

    Args:
        budget: Most trainable parameters, such as `1M`.
        encoder: Short name, hub name or checkpoint folder (default: the recipe's, which is the embedded one).
        method: Method options, such as `{"name": "lora", "rank": 8}`, or a method's name.
        settings: Any other settings, nested as in a config file; where they name one of the other arguments too, they win.
        seed: Of everything random (default: the recipe's).
        rank: Of the method, 1 or more; wins over a rank in `method`.
        learning_rate: Peak learning rate, above 0 (default: the method's own).
        num_epochs: Passes over the training rows, 1 or more (default: 3; up to 6 where classes have few rows).

    Attributes:
        classes_: The labels given to `fit`, sorted, in the type they had (C,).
        record_: The record of the training run; not on a classifier from `load`.
        predictor_: The loaded classifier. Its own label order need not be that of `classes_`.

    Example:
        >>> TextClassifier(budget="1M").fit(texts, labels).predict(["Shares fell again."])
        >>> GridSearchCV(TextClassifier(), {"rank": [2, 8], "learning_rate": [5e-4, 2e-3]}, cv=3).fit(texts, labels).best_params_
    """

    classes_: NDArray[Any]
    record_: RunRecord
    predictor_: Predictor

    def __init__(
        self,
        budget: str | None = None,
        encoder: str | None = None,
        method: str | dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        seed: int | None = None,
        rank: int | None = None,
        learning_rate: float | None = None,
        num_epochs: int | None = None,
    ) -> None:
        self.budget = budget
        self.encoder = encoder
        self.method = method
        self.settings = settings
        self.seed = seed
        self.rank = rank
        self.learning_rate = learning_rate
        self.num_epochs = num_epochs

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: one column of strings."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any) -> TextClassifier:  # noqa: N803
        """Train on labelled texts; a validation split is carved out to choose the checkpoint.

        Args:
            X: N texts.
            y: N labels, N lists of labels, or indicators (N, C), whose labels are the numbers of their columns.

        Returns:
            This object.

        Raises:
            DataError: Lengths differ, or texts or labels cannot be used.
            ConfigError: Settings or budget are not usable.
        """
        import pyarrow
        import pyarrow.parquet

        from lorabel.artifacts.estimator_files import LABEL_KINDS, EstimatorFacts
        from lorabel.artifacts.layout import ESTIMATOR
        from lorabel.artifacts.store import write_bytes
        from lorabel.config import load_config
        from lorabel.workflows.train import run_train

        texts, sets = given_texts(X, "fit"), label_sets(y, "fit")
        labels = given_labels(y if sets is None else [label for some in sets for label in some], "fit")
        check_lengths(texts, labels if sets is None else sets, "fit")
        if sets is not None:
            check_columns(y)
        names = [label_name(label) for label in labels.tolist()] if sets is None else [[label_name(label) for label in some] for some in sets]
        with tempfile.TemporaryDirectory(prefix="lorabel-") as folder:
            data = Path(folder) / "data.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": names}), data)
            # The caller's test rows are the caller's: no row given here is held back for one.
            source = {"source": str(data), "text_columns": ["text"], "label_column": "label", "test_rows": 0}
            config = load_config(*self._layers(), {"data": source, "final": False})
            try:
                # The run folder is gone afterwards, so nothing could go on from a saved state: an interrupt is Python's own.
                result = run_train(config, Path(folder) / "run", has_report=False, heeds_signals=False)
            except DataError as error:
                raise DataError(_in_words_of_fit(str(error), data)) from error
            facts = EstimatorFacts(label_kind=LABEL_KINDS[labels.dtype.kind], precision=config.training.precision)
            write_bytes(result.run / "adapter" / ESTIMATOR, facts.to_bytes())
            self._restore(result.run / "adapter", self._encoder_folder(), config.training.device, check_canary=False)
        self.record_ = result.record
        self.classes_ = self.classes_.astype(labels.dtype)  # int32 in, int32 out.
        return self

    @classmethod
    def load(cls, folder: str | Path, encoder: str | None = None) -> TextClassifier:
        """A fitted classifier from an adapter folder, such as one written by `save` or by the command line.

        Args:
            folder: The adapter folder, or a run folder.
            encoder: A checkpoint folder, where the adapter's encoder cannot be found by name.

        Returns:
            A classifier. From `save` it answers with the labels that were given to `fit`, from the command line with their names, always strings.

        Raises:
            ArtifactError: Damaged, or another encoder than the adapter was trained on.
        """
        from lorabel.artifacts.layout import MANIFEST

        made = cls(encoder=encoder)
        is_run = (Path(folder) / "adapter" / MANIFEST).exists() and not (Path(folder) / MANIFEST).exists()
        made._restore(Path(folder) / "adapter" if is_run else Path(folder), encoder)
        return made

    def _restore(self, folder: Path, encoder: str | None, device: str = "auto", *, check_canary: bool = True) -> None:
        """Become the classifier of an adapter folder; afterwards the folder is not needed."""
        from lorabel.artifacts.estimator_files import files_of, read_facts
        from lorabel.workflows.building import load_predictor

        facts = read_facts(folder)
        self.predictor_ = load_predictor(folder, precision=facts.precision, device=device, encoder=encoder, check_canary=check_canary)[0]
        values = facts.values(self.predictor_.labels.names)
        # Names are ordered by value or by text; scikit-learn's order is that of the values, whatever they are.
        self._columns: NDArray[np.int64] = np.argsort(values, kind="stable")
        self.classes_ = values[self._columns]
        self._files = files_of(folder)

    def __getstate__(self) -> dict[str, Any]:
        """The settings and what was learned, with the adapter folder's files in place of the loaded classifier."""
        return {name: value for name, value in super().__getstate__().items() if name != "predictor_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from lorabel.artifacts.estimator_files import write_files

        super().__setstate__(state)
        if "_files" in state:
            with tempfile.TemporaryDirectory(prefix="lorabel-") as folder:
                write_files(Path(folder) / "adapter", state["_files"])
                self._restore(Path(folder) / "adapter", self._encoder_folder())
            self.classes_ = state["classes_"]

    def _layers(self) -> list[dict[str, Any]]:
        if not isinstance(self.settings or {}, dict):
            raise ConfigError(f"settings: not a mapping, got {type(self.settings).__name__}; expected nested settings. See a run's config.yaml.")
        method = {"name": self.method} if isinstance(self.method, str) else dict(self.method or {})
        given: dict[str, Any] = {
            "budget": self.budget,
            "encoder": _given(name=self.encoder),
            "method": {**method, **_given(rank=self.rank)},
            "optimizer": _given(learning_rate=self.learning_rate),
            "training": _given(seed=self.seed, num_epochs=self.num_epochs),
        }
        return [{name: value for name, value in given.items() if value is not None and value != {}}, self.settings or {}]

    def _encoder_folder(self) -> str | None:
        """The encoder to load again: a folder cannot be found by the name in the adapter."""
        name = (self.settings or {}).get("encoder", {}).get("name", self.encoder)
        return name if name is not None and Path(os.path.expanduser(name)).is_dir() else None

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Most probable label of each text; where texts have several, those whose probability reaches their threshold.

        Args:
            X: N texts.

        Returns:
            Labels (N,), of the type of `classes_`; or indicators (N, C), columns as in `classes_`.

        Raises:
            NotFittedError: Not fitted.
            DataError: Not texts.
        """
        found = self.predict_proba(X)
        if self._has_several:
            # Thresholds are in the predictor's order of labels.
            answers = self.predictor_.rule.answers(found[:, np.argsort(self._columns)])
            return np.asarray(answers[:, self._columns], dtype=np.int64)
        return np.asarray(self.classes_[found.argmax(axis=1)])

    @property
    def _has_several(self) -> bool:
        """Texts may have several labels."""
        return self.predictor_.rule.task == "multi_label"

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Class probabilities (N, C), columns as in `classes_`.

        Args:
            X: N texts.

        Raises:
            NotFittedError: Not fitted.
            DataError: Not texts.
        """
        self._check_fitted("predict")
        return self.predictor_.predict_proba(given_texts(X, "predict"))[:, self._columns]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Accuracy on labelled texts; where they have several labels, the share of texts whose labels are found exactly.

        Args:
            X: N texts.
            y: As for `fit`; compared by the names of classes where only one side is text, so that a classifier from the command line scores numbers and booleans too.
            sample_weight: Weight of each row in the mean (N,) (default: all alike).

        Raises:
            NotFittedError: Not fitted.
            DataError: Lengths differ, or not texts and labels.
        """
        self._check_fitted("score")
        texts = given_texts(X, "score")
        if self._has_several:
            wanted = self._indicators(y, "score")
            check_lengths(texts, wanted, "score")
            return float(accuracy_score(wanted, self.predict(texts), sample_weight=sample_weight))
        labels = given_labels(y, "score")
        check_lengths(texts, labels, "score")
        found = self.predict(texts)
        if (found.dtype.kind == "U") != (labels.dtype.kind == "U"):
            found, labels = (np.array([label_name(label) for label in side.tolist()]) for side in (found, labels))
        return float(accuracy_score(labels, found, sample_weight=sample_weight))

    def _indicators(self, y: Any, where: str) -> NDArray[np.int64]:
        """Labels of texts that may have several, as indicators with columns as in `classes_`."""
        sets = label_sets(y, where)
        if sets is None:
            raise DataError(f"{where}: one label per text, got {type(y).__name__}; expected a list of labels per text, or indicators (N, C). Convert them.")
        if is_matrix(y) and np.shape(y)[1] != len(self.classes_):
            raise DataError(
                f"{where}: another number of labels, got {np.shape(y)[1]} columns; expected {len(self.classes_)}, in the order of classes_. Add or drop columns."
            )
        known = np.arange(len(self.classes_)) if is_matrix(y) else self.classes_
        places = {label_name(label): place for place, label in enumerate(known.tolist())}
        found = np.zeros((len(sets), len(places)), dtype=np.int64)
        for row, some in enumerate(sets):
            # 1 and 1.0 are one label where labels are numbers.
            some = some if known.dtype.kind == "U" else np.asarray(some).astype(known.dtype).tolist()
            unknown = [repr(label) for label in some if label_name(label) not in places]
            if unknown:
                raise DataError(f"{where}: a label that is not known, got row {row} {unknown[0]}; expected one of {first_of(list(places))}. Correct the label.")
            found[row, [places[label_name(label)] for label in some]] = 1
        return found

    def save(self, folder: str | Path) -> None:
        """Write the adapter folder: safetensors and JSON, which `load`, `lorabel.load` and the command line take.

        Args:
            folder: Where; it must not exist.

        Raises:
            NotFittedError: Not fitted.
            ConfigError: The folder exists.
            StorageError: The disk refused.
        """
        from lorabel.artifacts.estimator_files import write_files

        self._check_fitted("save")
        if Path(folder).exists():
            raise ConfigError(f"save: the folder exists, got {str(folder)!r}; expected a new one. Choose another name.")
        write_files(Path(folder), self._files)

    def _check_fitted(self, called: str) -> None:
        if not hasattr(self, "predictor_"):
            raise NotFittedError(f"TextClassifier: not fitted, got {called} before fit; expected fit first. Call fit(texts, labels).")


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that were given."""
    return {name: value for name, value in arguments.items() if value is not None}


def _in_words_of_fit(message: str, file: Path) -> str:
    """A fault of the table, told to a caller who gave lists and no flags."""
    message = re.sub(re.escape(str(file)) + r":([0-9]+)", lambda found: f"fit: row {int(found[1]) - 1}", message).replace(str(file), "fit")
    words = {
        "pass --drop-empty": 'pass settings={"data": {"drop_empty": True}}',
        "the label column (--label-column)": "the labels",
        "a single class": "only one class",
    }
    for theirs, ours in words.items():
        message = message.replace(theirs, ours)
    return message
