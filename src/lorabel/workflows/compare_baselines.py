"""Baselines of a comparison: fitted on the splits the methods are trained on, scored, and kept like any other row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lorabel.artifacts.layout import RunLayout
from lorabel.artifacts.probabilities import ScoredRows, write_probabilities
from lorabel.artifacts.store import write_json
from lorabel.baselines.base import Baseline, BaselineTask
from lorabel.calibration import fit_temperature
from lorabel.data.ledger import TestLedger
from lorabel.data.packing import tokenise
from lorabel.data.types import TaskKind
from lorabel.errors import ConfigError, first_of
from lorabel.events import EventSink, Note, Progress
from lorabel.inference.embedding import mean_embeddings
from lorabel.models.checkpoint import load_weights
from lorabel.models.encoder import PackedEncoder
from lorabel.registry import BASELINES
from lorabel.settings_text import read_yaml
from lorabel.workflows.answering import answer_rule
from lorabel.workflows.finishing import forget_peak_memory, peak_memory_bytes
from lorabel.workflows.preparation import Prepared

FACTS = "facts.json"


def read_descriptions(path: Path) -> dict[str, str]:
    """Class descriptions from a YAML or JSON file.

    Args:
        path: A mapping from class name to text.

    Raises:
        ConfigError: Unreadable, or not such a mapping.
    """
    loaded = read_yaml(path, f"--descriptions {path}: cannot be read")
    if not isinstance(loaded, dict) or not all(isinstance(text, str) and text.strip() for text in loaded.values()):
        raise ConfigError(
            f"--descriptions {path}: not class descriptions, got {type(loaded).__name__}; expected a mapping from each class to a text. For example `Sports: news about matches`."
        )
    return {str(name): text for name, text in loaded.items()}


def settle_descriptions(names: Sequence[str], given: Mapping[str, str] | None) -> tuple[str, ...]:
    """One text per class: as given, else its name with spaces for underscores.

    Args:
        names: Of the classes, in order.
        given: Class -> text, or None.

    Raises:
        ConfigError: Classes without a text, or texts for classes that there are not.
    """
    if given is None:
        return tuple(name.replace("_", " ") for name in names)
    missing, unknown = [name for name in names if name not in given], sorted(set(given) - set(names))
    if missing or unknown:
        fault = f"no text for {first_of(missing)}" if missing else f"no such class as {first_of(unknown)}"
        raise ConfigError(f"--descriptions: classes differ from the data's, got {fault}; expected exactly {first_of(list(names), 8)}. Change the file.")
    return tuple(given[name] for name in names)


def fit_baselines(
    names: Sequence[str], layouts: Callable[[str], RunLayout], prepared: Prepared, descriptions: tuple[str, ...], ledger: Path, on_event: EventSink
) -> None:
    """Fit and score every baseline that is not there yet.

    Args:
        names: Registered baselines.
        layouts: Name -> its folder.
        prepared: A run over the same data and encoder; its `final` opens the test split.
        descriptions: One text per class.
        ledger: Folder of the ledger of test openings.
        on_event: Receives notes and progress.
    """
    splits = prepared.data.splits
    task = BaselineTask(
        train_texts=splits["train"].texts,
        train_labels=splits["train"].labels,
        validation_texts=splits["validation"].texts,
        validation_labels=splits["validation"].labels,
        classes=len(prepared.data.labels),
        descriptions=descriptions,
        embed=_embedding(prepared, on_event),
    )
    for name in names:
        layout = layouts(name)
        if not (layout.root / FACTS).exists():
            on_event(Note(f"{name}: fitting on {len(splits['train']):,} texts."))
            _fit(cast(Any, BASELINES.get(name))(), layout, task, prepared, ledger)


def _fit(baseline: Baseline, layout: RunLayout, task: BaselineTask, prepared: Prepared, ledger: Path) -> None:
    forget_peak_memory(prepared.compute.device)
    started = time.perf_counter()
    fitted = baseline.fit(task)
    seconds = time.perf_counter() - started
    peak = peak_memory_bytes(prepared.compute.device)
    logits = _logits(fitted.predict_proba(task.validation_texts), prepared.data.task)
    # Calibrated as the trained rows are, or their calibration errors could not be compared.
    temperature = fit_temperature(task.validation_labels, logits).temperature if prepared.config.training.calibrate else 1.0
    rule = answer_rule(prepared, task.validation_labels, logits, temperature)
    write_probabilities(layout.probabilities("validation"), ScoredRows(task.validation_labels, rule.probabilities(logits), rule.thresholds))
    test = prepared.data.splits.get("test")
    if prepared.config.final and test is not None:
        # The line is written before the split is read: an opening that crashes still counts.
        TestLedger(ledger).record(test.digest, "compare", str(layout.root.resolve().relative_to(ledger)))
        logits = _logits(fitted.predict_proba(test.texts), prepared.data.task)
        write_probabilities(layout.probabilities("test"), ScoredRows(test.labels, rule.probabilities(logits), rule.thresholds))
    # Written last: a baseline with this file is whole.
    facts = {"trainable": fitted.trainable, "bytes": fitted.bytes, "seconds": seconds, "peak_memory_bytes": peak}
    write_json(layout.root / FACTS, {**facts, "settings": {**fitted.settings, "temperature": temperature}})


def _logits(answers: NDArray[np.float64], task: TaskKind) -> NDArray[np.float64]:
    """Probabilities as logits: their logarithms; of several labels, the logarithms of their odds."""
    logs = np.log(np.maximum(answers, np.finfo(np.float64).tiny))
    if task == "single_label":
        return np.asarray(logs)
    return np.asarray(logs - np.log(np.maximum(1 - answers, np.finfo(np.float64).tiny)))


def _embedding(prepared: Prepared, on_event: EventSink) -> Callable[[Sequence[str]], NDArray[np.float64]]:
    """Texts to embeddings; the encoder is loaded when the first baseline asks for it."""

    @cache
    def encoder() -> PackedEncoder:
        return PackedEncoder(prepared.source.shape, load_weights(prepared.source), dtype=prepared.compute.dtype, device=prepared.compute.device)

    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        table = tokenise(texts, prepared.tokenizer, prepared.tokenizer_digest, prepared.max_length_tokens, windows=prepared.windows)
        return mean_embeddings(table, encoder(), lambda done: on_event(Progress("embedding", done, len(table))))

    return embed
