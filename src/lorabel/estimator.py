"""`TextClassifier`: the fit / predict door to the same core as the command line.

The constructor only stores; `fit` checks, builds the same settings and calls the same workflow; learned attributes end in `_`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorabel.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lorabel.artifacts.records import RunRecord
    from lorabel.inference.predictor import Predictor


class TextClassifier:
    """A budgeted text classifier with scikit-learn's manners.

    Args:
        budget: Most trainable parameters, such as `1M`.
        encoder: Short name, hub name or checkpoint folder.
        method: Method options, such as `{"name": "lora", "rank": 8}`, or a method's name.
        settings: Any other settings, nested as in a config file.
        seed: Of everything random.

    Example:
        >>> TextClassifier(budget="1M").fit(texts, labels).predict(["Shares fell again."])
    """

    def __init__(
        self,
        budget: str | None = None,
        encoder: str = "minilm",
        method: str | dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        seed: int = 0,
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

        texts, labels = [str(text) for text in X], np.asarray(y).tolist()
        if len(texts) != len(labels):
            raise DataError(f"fit: lengths differ, got {len(texts)} texts and {len(labels)} labels; expected one label per text. Check the arguments.")
        method = {"name": self.method} if isinstance(self.method, str) else self.method
        layers: list[dict[str, Any]] = [self.settings or {}, {"encoder": {"name": self.encoder}, "training": {"seed": self.seed}, "budget": self.budget}]
        if method is not None:
            layers.append({"method": method})
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            data.mkdir()
            pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": [str(label) for label in labels]}), data / "train.parquet")
            config = load_config(*layers, {"data": {"source": str(data / "train.parquet"), "test_rows": None}})
            result = run_train(config, Path(folder) / "run")
            kept = Path(tempfile.mkdtemp(prefix="lorabel-"))
            shutil.copytree(result.run / "adapter", kept / "adapter")
        self._folder = kept / "adapter"
        self.record_: RunRecord = result.record
        self.predictor_: Predictor = load_predictor(self._folder, check_canary=False)[0]
        by_text = {str(label): label for label in labels}
        self.classes_: NDArray[Any] = np.array([by_text[name] for name in self.predictor_.labels.names])
        return self

    def predict(self, X: Sequence[str]) -> NDArray[Any]:  # noqa: N803
        """Most probable label of each text.

        Args:
            X: N texts.

        Returns:
            N labels, of the kind given to `fit`.

        Raises:
            ConfigError: Not fitted.
        """
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def predict_proba(self, X: Sequence[str]) -> NDArray[np.float64]:  # noqa: N803
        """Class probabilities (N, C), columns as in `classes_`.

        Args:
            X: N texts.

        Raises:
            ConfigError: Not fitted.
        """
        if not hasattr(self, "predictor_"):
            raise ConfigError("TextClassifier: not fitted, got a call before fit; expected fit first. Call fit(texts, labels).")
        return self.predictor_.predict_proba([str(text) for text in X])

    def score(self, X: Sequence[str], y: Sequence[Any]) -> float:  # noqa: N803
        """Accuracy on labelled texts.

        Args:
            X: N texts.
            y: N labels.
        """
        return float((self.predict(X) == np.asarray(y)).mean())

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
