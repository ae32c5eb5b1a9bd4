"""`evaluate`: an adapter and a labelled table in, scores with intervals out; opening a test split is written to the ledger."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lorabel.artifacts.layout import HOLDERS, RunLayout
from lorabel.artifacts.records import read_record
from lorabel.config import DataConfig, Precision, load_config, read_config_file
from lorabel.data.columns import TrainedColumns
from lorabel.data.files import find_files, first_block
from lorabel.data.ledger import TestLedger, folder_beside
from lorabel.data.load import check_task, left_out, load_data, load_split
from lorabel.data.readers.base import sha256_of
from lorabel.data.types import Split, SplitName, class_ids
from lorabel.errors import ConfigError, DataError
from lorabel.evaluation import Answered, EvalResult, answered_rows, check_abstaining, check_threshold, evaluate_probabilities
from lorabel.events import EventSink, Note, Progress, ignore
from lorabel.inference.predictor import Predictor, table_logits
from lorabel.workflows.building import load_predictor
from lorabel.workflows.preparation import cache_dir, set_threads


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found.

    Attributes:
        evaluation: The scores.
        split: Which split was scored.
        test_openings: How often this split was opened so far, this time included; 0 for splits other than test.
        answered: What is left when unsure rows go unanswered; None where no threshold was given.
    """

    evaluation: EvalResult
    split: str
    test_openings: int
    answered: Answered | None = None


def run_evaluate(
    adapter: Path,
    data: DataConfig | None,
    *,
    split: SplitName = "test",
    precision: Precision = "auto",
    device: str = "auto",
    encoder: str | None = None,
    threads: int | None = None,
    abstain_below: float | None = None,
    on_event: EventSink = ignore,
) -> EvaluateResult:
    """Score an adapter on labelled texts.

    Args:
        adapter: Adapter or run folder.
        data: A folder of splits, a data set name, or a single file, which is then the split itself; None for the splits the run was trained with, made ones included.
        split: Which split to score.
        precision: Of the computation.
        device: Where.
        encoder: A checkpoint folder in place of the named encoder.
        threads: CPU threads.
        abstain_below: Also score the rows whose best probability reaches this, over 0 and up to 1.
        on_event: Receives notes and progress.

    Returns:
        Scores and the number of openings.

    Raises:
        DataError: The split is missing, holds a label that the adapter does not know, or is no longer the one the run had.
        ConfigError: No data is named, and the adapter lies in no run folder; or the threshold is no probability.
        ArtifactError: The adapter cannot be used.
    """
    check_threshold(abstain_below)
    set_threads(threads)
    predictor, manifest = load_predictor(adapter, precision=precision, device=device, encoder=encoder)
    check_abstaining(abstain_below, predictor.rule.task)
    if data is None:
        chosen = _split_of_run(adapter, split, on_event)
    else:
        data = data if manifest.trained_columns is None else _as_trained(data, split, manifest.trained_columns, on_event)
        chosen = _split(data, split, predictor, on_event)
        _warn_of_training_rows(adapter, Path(os.path.expanduser(data.source)), chosen, on_event)
    openings = 0
    if split == "test":
        openings = TestLedger(ledger_folder(adapter)).record(chosen.digest, "evaluate", adapter.resolve().name)
    table = predictor.tokenise(chosen.texts, cache_dir=cache_dir(), data_digest=chosen.digest, on_event=on_event)
    logits = table_logits(predictor.bank, table, lambda done: on_event(Progress("evaluating", done, len(table))))
    found = predictor.rule.probabilities(logits)
    answered = None if abstain_below is None else answered_rows(class_ids(chosen.labels), found, abstain_below)
    scores = evaluate_probabilities(chosen.labels, found, predictor.labels, thresholds=predictor.rule.thresholds)
    return EvaluateResult(scores, split, openings, answered)


def _as_trained(data: DataConfig, split: SplitName, trained: TrainedColumns, on_event: EventSink) -> DataConfig:
    """The data with the columns of the training, where nobody named others and the table has them."""
    path = os.path.expanduser(data.source)
    files = {split: [Path(path)]} if os.path.isfile(path) else find_files(data.source)[0]
    first = first_block(files[split][0]) if split in files else None
    if first is None:
        return data
    names = list(first.columns)
    texts = data.text_columns or trained.texts_among(names)
    warning = None if data.text_columns else trained.warning(names, texts)
    if warning is not None:
        on_event(Note(warning, is_warning=True))
    label = data.label_column or (trained.label if trained.label in names else None)
    return data.model_copy(update={"text_columns": texts, "label_column": label})


def _run_of(adapter: Path) -> RunLayout | None:
    """The finished run folder that an adapter lies in, or None."""
    path = adapter.resolve()
    return next((layout for layout in (RunLayout(path), RunLayout(path.parent)) if layout.config.exists() and layout.record.exists()), None)


def _split_of_run(adapter: Path, name: SplitName, on_event: EventSink) -> Split:
    """A split as the run had it: what was carved out of a single file is carved out again, and the record says whether it is the same."""
    layout = _run_of(adapter)
    if layout is None:
        raise ConfigError(
            f"evaluate: no data, got {str(adapter)!r}, which lies in no run folder; expected labelled texts. Give a file, a folder or a data set name."
        )
    loaded = load_data(load_config(read_config_file(layout.config)).data, on_event=on_event)
    recorded = read_record(layout.record).data["split_digests"]
    if name not in loaded.splits:
        raise DataError(f"evaluate: no such split in the run's data, got {name!r}; expected one of {', '.join(loaded.splits)}. Choose with --split.")
    split = loaded.splits[name]
    if split.digest != recorded.get(name):
        raise DataError(
            f"evaluate: {loaded.source} is not what the run was trained with, got a {name} split with another digest; expected {recorded.get(name, 'none')[:16]}. "
            "Restore the data, or name a file of labelled texts."
        )
    return split


def _warn_of_training_rows(adapter: Path, file: Path, split: Split, on_event: EventSink) -> None:
    """A file that training rows were taken from scores too well; a split that the run kept apart does not."""
    layout = _run_of(adapter)
    if layout is None or split.name == "train" or not os.path.isfile(file):
        return
    facts = read_record(layout.record).data
    held_back = {facts["split_digests"].get(name) for name in ("validation", "test")}
    if sha256_of(file) in facts["files"].values() and split.digest not in held_back:
        on_event(
            Note(
                f"{file} holds the rows this adapter was trained on, so these scores say little about new texts. Leave the data out to score the rows that were held back.",
                is_warning=True,
            )
        )


def ledger_folder(adapter: Path) -> Path:
    """The folder beside the runs, in which training counts: above the run folder, above the sweep or comparison that it is a member of, or above an adapter folder that stands alone."""
    path = adapter.resolve()
    run = path.parent if path.name == "adapter" and (path.parent / "record.json").exists() else path
    holders = [folder for folder in run.parents if any((folder / record).exists() for record in HOLDERS)]
    return folder_beside(holders[-1] if holders else run)


def _split(data: DataConfig, name: SplitName, predictor: Predictor, on_event: EventSink) -> Split:
    """The split to score, its labels as the adapter numbers them."""
    path, labels, task = Path(os.path.expanduser(data.source)), predictor.labels, predictor.rule.task
    if os.path.isfile(path):
        return load_split(path, data, labels, task, name, on_event=on_event)
    loaded = load_data(data, on_event=on_event)
    check_task(data.source, loaded.task, task)
    if name not in loaded.splits:
        raise DataError(f"evaluate: no such split, got {name!r}; expected one of {', '.join(loaded.splits)}. Choose with --split.")
    if name in loaded.made_splits:
        raise ConfigError(
            f"evaluate: {data.source} has no {name} split of its own, got {name!r}; expected one that is given. Evaluate a file of labelled texts."
        )
    split, dropped = loaded.splits[name], cast(dict[SplitName, int], loaded.facts["dropped_rows"])
    if dropped[name]:
        on_event(Note(left_out(name, dropped[name])))
    unknown = sorted(set(loaded.labels.names) - set(labels.names))
    if unknown:
        raise DataError(
            f"evaluate: a label that the adapter does not know, got {unknown[0]!r} ({len(unknown)} in all); expected one of {', '.join(labels.names[:8])}. Use the data it was made for."
        )
    return Split(name, split.texts, loaded.labels.renumbered(split.labels, labels), split.digest)
