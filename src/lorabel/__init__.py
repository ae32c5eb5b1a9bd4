"""lorabel: labelled texts in, a budgeted adapter on a frozen encoder out.

The public names are resolved on first use, so that importing this package loads nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lorabel._version import __version__

if TYPE_CHECKING:
    from lorabel.config import RunConfig, load_config
    from lorabel.estimator import TextClassifier
    from lorabel.inference.predictor import Predictor
    from lorabel.workflows.predict import load

_HOMES = {
    "RunConfig": "lorabel.config",
    "load_config": "lorabel.config",
    "TextClassifier": "lorabel.estimator",
    "Predictor": "lorabel.inference.predictor",
    "load": "lorabel.workflows.predict",
}
__all__ = ["Predictor", "RunConfig", "TextClassifier", "__version__", "load", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorabel' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
