"""`TextClassifier`: the fit / predict door to the same core as the command line.

The constructor only stores; `fit` checks, builds the same settings and calls the same workflow; learned attributes end in `_`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorabel.data.texts import checked_texts
from lorabel.errors import ConfigError, DataError, first_of

if TYPE_CHECKING:
    from lorabel.artifacts.records import RunRecord
    from lorabel.inference.predictor import Predictor


class TextClassifier:
    """A budgeted text classifier with scikit-learn's manners.

    Args:
        budget: Most trainable parameters, such as `1M`.
        encoder: Short name, hub name or checkpoint folder (default: the recipe's, which is the embedded one).
        method: Method options, such as `{"name": "lora", "rank": 8}`, or a method's name.
        settings: Any other settings, nested as in a config file; where they name one of the arguments above too, they win.
        seed: Of everything random (default: the recipe's).

    Attributes:
        classes_: The labels as given to `fit`, in the order of probabilities.
        record_: The record of the training run.
        predictor_: The loaded classifier.

    Example:
        >>> TextClassifier(budget="1M").fit(texts, labels).predict(["Shares fell again."])
    """

    def __init__(
        self,
        budget: str | None = None,
        encoder: str | None = None,
        method: str | dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        self.budget = budget
        self.encoder = encoder
        self.method = method
        self.settings = settings
        self.seed = seed

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> TextClassifier:  # noqa: N803
        """Train on labelled texts; a validation split is carved out to choose the checkpoint.

        Args:
            X: N texts.
            y: N labels, strings or integers.

        Returns:
            This object.

        Raises:
            DataError: Lengths differ, or the texts cannot be used.
            ConfigError: Settings or budget are not usable.
        """
        import pyarrow
        import pyarrow.parquet

        from lorabel.config import load_config
        from lorabel.workflows.building import load_predictor
        from lorabel.workflows.train import run_train

        texts, labels = checked_texts(X, "fit"), _checked_labels(y)
        if len(texts) != len(labels):
            raise DataError(f"fit: lengths differ, got {len(texts)} texts and {len(labels)} labels; expected one label per text. Check the arguments.")
        kept = tempfile.TemporaryDirectory(prefix="lorabel-")
        with tempfile.TemporaryDirectory(prefix="lorabel-") as folder:
            data = Path(folder) / "data.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [str(label) for label in labels]}), data)
            # The caller's test rows are the caller's: no row given here is held back for one.
            source = {"source": str(data), "text_columns": ["text"], "label_column": "label", "test_rows": 0}
            try:
                result = run_train(load_config(*self._layers(), {"data": source, "final": False}), Path(folder) / "run")
            except DataError as error:
                raise DataError(_in_words_of_fit(str(error), data)) from error
            self._folder = Path(shutil.copytree(result.run / "adapter", Path(kept.name) / "adapter"))
        self._kept = kept  # Removed together with this object.
        self.record_: RunRecord = result.record
        self.predictor_: Predictor = load_predictor(self._folder, encoder=self._encoder_folder(), check_canary=False)[0]
        by_text = {str(label): label for label in labels}
        self.classes_: NDArray[Any] = np.array([by_text[name] for name in self.predictor_.labels.names])
        return self

    @classmethod
    def load(cls, folder: str | Path, encoder: str | None = None) -> TextClassifier:
        """A fitted classifier from an adapter folder, such as one written by `save` or by the command line.

        Args:
            folder: The adapter folder, or a run folder.
            encoder: A checkpoint folder, where the adapter's encoder cannot be found by name.

        Returns:
            A classifier whose `classes_` are the label names, always strings.

        Raises:
            ArtifactError: Damaged, or another encoder than the adapter was trained on.
        """
        from lorabel.workflows.building import load_predictor

        made = cls(encoder=encoder)
        made.predictor_ = load_predictor(Path(folder), encoder=encoder)[0]
        made.classes_ = np.array(made.predictor_.labels.names)
        made._folder = Path(folder) if (Path(folder) / "lorabel.json").exists() else Path(folder) / "adapter"
        return made

    def _layers(self) -> list[dict[str, Any]]:
        given: dict[str, Any] = {}
        if self.budget is not None:
            given["budget"] = self.budget
        if self.encoder is not None:
            given["encoder"] = {"name": self.encoder}
        if self.seed is not None:
            given["training"] = {"seed": self.seed}
        if self.method is not None:
            given["method"] = {"name": self.method} if isinstance(self.method, str) else self.method
        return [given, self.settings or {}]

    def _encoder_folder(self) -> str | None:
        """The encoder to load again: a folder cannot be found by the name in the adapter."""
        name = (self.settings or {}).get("encoder", {}).get("name", self.encoder)
        return name if name is not None and Path(name).expanduser().is_dir() else None

    def predict(self, X: Sequence[str]) -> NDArray[Any]:  # noqa: N803
        """Most probable label of each text.

        Args:
            X: N texts.

        Returns:
            N labels, of the kind given to `fit`.

        Raises:
            ConfigError: Not fitted.
        """
        chosen = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[chosen])

    def predict_proba(self, X: Sequence[str]) -> NDArray[np.float64]:  # noqa: N803
        """Class probabilities (N, C), columns as in `classes_`.

        Args:
            X: N texts.

        Raises:
            ConfigError: Not fitted.
        """
        if not hasattr(self, "predictor_"):
            raise ConfigError("TextClassifier: not fitted, got a call before fit; expected fit first. Call fit(texts, labels).")
        return self.predictor_.predict_proba(X)

    def score(self, X: Sequence[str], y: Sequence[Any]) -> float:  # noqa: N803
        """Accuracy on labelled texts.

        Args:
            X: N texts.
            y: N labels; compared as text, so that a loaded classifier scores integers too.

        Raises:
            DataError: Lengths differ.
            ConfigError: Not fitted.
        """
        found = self.predict(X)
        if len(found) != len(y):
            raise DataError(f"score: lengths differ, got {len(found)} texts and {len(y)} labels; expected one label per text. Check the arguments.")
        return float(np.mean([str(one) == str(other) for one, other in zip(found, y, strict=True)]))

    def save(self, folder: str | Path) -> None:
        """Copy the trained adapter folder.

        Args:
            folder: Where; it must not exist.

        Raises:
            ConfigError: Not fitted, or the folder exists.
        """
        if not hasattr(self, "predictor_"):
            raise ConfigError("TextClassifier: not fitted, got save before fit; expected fit first. Call fit(texts, labels).")
        if Path(folder).exists():
            raise ConfigError(f"save: the folder exists, got {str(folder)!r}; expected a new one. Choose another name.")
        shutil.copytree(self._folder, folder)


def _in_words_of_fit(message: str, file: Path) -> str:
    """A fault of the table, told to a caller who gave lists and no flags."""
    message = re.sub(re.escape(str(file)) + r":([0-9]+)", lambda found: f"fit: row {int(found[1]) - 1}", message).replace(str(file), "fit")
    return message.replace("pass --drop-empty", 'pass settings={"data": {"drop_empty": True}}').replace(" (--label-column)", "")


def _checked_labels(labels: Sequence[Any]) -> list[Any]:
    found = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    bad = [f"row {index} {label!r}" for index, label in enumerate(found) if label is None or label != label]
    if bad:
        raise DataError(f"fit: a missing label, got {first_of(bad)}; expected a string or an integer. Remove these rows.")
    return found
