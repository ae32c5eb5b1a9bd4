"""`evaluate`: an adapter and a labelled table in, scores with intervals out; opening a test split is written to the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorabel.artifacts.layout import RunLayout
from lorabel.config import DataConfig, Precision, load_config, read_config_file
from lorabel.data.ledger import TestLedger
from lorabel.data.load import load_data, load_split
from lorabel.data.packing import tokenise
from lorabel.data.types import LabelMap, Split, SplitName
from lorabel.errors import ConfigError, DataError
from lorabel.evaluation import EvalResult, evaluate_probabilities
from lorabel.events import EventSink, Progress, ignore
from lorabel.inference.predictor import probabilities, table_logits
from lorabel.workflows.building import load_predictor
from lorabel.workflows.preparation import cache_dir, set_threads


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found.

    Attributes:
        evaluation: The scores.
        split: Which split was scored.
        test_openings: How often this split was opened so far, this time included; 0 for splits other than test.
    """

    evaluation: EvalResult
    split: str
    test_openings: int


def run_evaluate(
    adapter: Path,
    data: DataConfig,
    *,
    split: SplitName = "test",
    precision: Precision = "auto",
    device: str = "auto",
    encoder: str | None = None,
    threads: int | None = None,
    on_event: EventSink = ignore,
) -> EvaluateResult:
    """Score an adapter on labelled texts.

    Args:
        adapter: Adapter or run folder.
        data: A folder of splits, a data set name, or a single file, which is then the split itself.
        split: Which split to score.
        precision: Of the computation.
        device: Where.
        encoder: A checkpoint folder in place of the named encoder.
        threads: CPU threads.
        on_event: Receives progress.

    Returns:
        Scores and the number of openings.

    Raises:
        DataError: The split is missing, or holds a label that the adapter does not know.
        ArtifactError: The adapter cannot be used.
    """
    set_threads(threads)
    predictor, _ = load_predictor(adapter, precision=precision, device=device, encoder=encoder)
    chosen = _split(data, split, predictor.labels, on_event)
    openings = 0
    if split == "test":
        openings = TestLedger(ledger_folder(adapter)).record(chosen.digest, "evaluate", adapter.resolve().name)
    table = tokenise(
        chosen.texts,
        predictor.tokenizer,
        predictor.tokenizer_digest,
        predictor.max_length_tokens,
        cache_dir=cache_dir(),
        data_digest=chosen.digest,
        on_event=on_event,
    )
    logits = table_logits(predictor.bank, table, lambda done: on_event(Progress("evaluating", done, len(table))))
    return EvaluateResult(evaluate_probabilities(chosen.labels, probabilities(logits, predictor.temperature), predictor.labels), split, openings)


def data_of_run(adapter: Path) -> DataConfig:
    """The data that an adapter was trained on, where it still lies in its run folder.

    Args:
        adapter: Adapter or run folder.

    Returns:
        The run's data settings.

    Raises:
        ConfigError: The adapter lies in no run folder.
    """
    path = adapter.resolve()
    layouts = [layout for layout in (RunLayout(path), RunLayout(path.parent)) if layout.config.exists()]
    if not layouts:
        raise ConfigError(f"evaluate: no data, got {str(adapter)!r}, which lies in no run folder; expected labelled texts. Give a file, a folder or a data set name.")
    return load_config(read_config_file(layouts[0].config)).data


def ledger_folder(adapter: Path) -> Path:
    """The folder beside the runs: above the run folder, or above the adapter folder where it stands alone."""
    path = adapter.resolve()
    run = path.parent if path.name == "adapter" and (path.parent / "record.json").exists() else path
    return run.parent


def _split(data: DataConfig, name: SplitName, labels: LabelMap, on_event: EventSink) -> Split:
    """The split to score, its labels as the adapter numbers them."""
    path = Path(data.source).expanduser()
    if path.is_file():
        return load_split(path, data, labels, name, on_event=on_event)
    loaded = load_data(data, on_event=on_event)
    if name not in loaded.splits:
        raise DataError(f"evaluate: no such split, got {name!r}; expected one of {', '.join(loaded.splits)}. Choose with --split.")
    if name in loaded.made_splits:
        raise ConfigError(
            f"evaluate: {data.source} has no {name} split of its own, got {name!r}; expected one that is given. Evaluate a file of labelled texts."
        )
    split = loaded.splits[name]
    unknown = sorted(set(loaded.labels.names) - set(labels.names))
    if unknown:
        raise DataError(
            f"evaluate: a label that the adapter does not know, got {unknown[0]!r} ({len(unknown)} in all); expected one of {', '.join(labels.names[:8])}. Use the data it was made for."
        )
    ids = labels.ids([loaded.labels.names[index] for index in split.labels])
    return Split(name, split.texts, ids, split.digest)
