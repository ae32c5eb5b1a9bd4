"""`predict`: a table in, the same table with labels and probabilities out; and `load`, the same in Python."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabel.artifacts.store import storage_errors
from lorabel.config import Precision
from lorabel.data.columns import TEXT_NAMES, choose_text_columns
from lorabel.data.files import read_blocks, reader_of
from lorabel.data.readers.base import Block, Faults
from lorabel.data.readers.delimited import read_delimited
from lorabel.errors import ConfigError, DataError
from lorabel.evaluation import check_abstaining, check_threshold
from lorabel.events import EventSink, Note, Progress, ignore
from lorabel.inference.predictor import Prediction, Predictor
from lorabel.workflows.building import load_predictor
from lorabel.workflows.preparation import set_threads
from lorabel.workflows.table_writing import open_writer, types_of_table

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_STANDARD_INPUT = "standard input"
LABEL_SEPARATOR = "|"


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did.

    Attributes:
        rows: Texts classified.
        output: Where the table went, or None for standard output.
        counts: Label -> rows it was given to.
        abstained: Rows left without an answer because no class was probable enough.
    """

    rows: int
    output: str | None
    counts: dict[str, int]
    abstained: int = 0


def load(adapter: str | Path, *, precision: Precision = "auto", device: str = "auto", encoder: str | None = None) -> Predictor:
    """Load a classifier from an adapter folder alone.

    Args:
        adapter: The adapter folder, or a run folder.
        precision: fp32 reproduces the reported numbers on any machine; auto is fastest.
        device: `auto`, `cpu`, `cuda` or `mps`.
        encoder: A checkpoint folder, where the adapter's own encoder cannot be found by name.

    Returns:
        A predictor.

    Raises:
        ArtifactError: Damaged, or another encoder than the adapter was trained on.

    Example:
        >>> lorabel.load("runs/news/adapter").predict(["Shares fell again."])
        ['Business']
    """
    return load_predictor(Path(adapter), precision=precision, device=device, encoder=encoder)[0]


def run_predict(
    adapter: Path,
    source: str,
    output: Path | None,
    *,
    text_columns: tuple[str, ...] | None = None,
    prefix: str = "",
    precision: Precision = "auto",
    device: str = "auto",
    encoder: str | None = None,
    threads: int | None = None,
    keep_empty: bool = False,
    abstain_below: float | None = None,
    on_event: EventSink = ignore,
) -> PredictResult:
    """Classify a table, block by block.

    Args:
        adapter: Adapter or run folder.
        source: A file, or `-` for CSV, JSON Lines or Parquet on standard input, packed with gzip or not.
        output: A file whose name gives the format, or None for CSV on standard output.
        text_columns: Text columns; None for those of the training where the table has them, else found.
        prefix: Put before the names of added columns.
        precision: Of the computation.
        device: Where.
        encoder: A checkpoint folder in place of the named encoder.
        threads: CPU threads.
        keep_empty: Leave the added columns of rows without a text empty instead of refusing the table.
        abstain_below: Leave `predicted_label` empty where the best probability lies below this, over 0 and up to 1; score and probabilities stay.
        on_event: Receives notes and progress.

    Returns:
        Counts.

    Raises:
        DataError: Unreadable rows, none at all, or an added column that clashes with one of the table.
        ConfigError: The output's name tells no format, or the threshold is no probability.
        ArtifactError: The adapter cannot be used.
        StorageError: The output cannot be written; an old file of that name is intact.
    """
    check_threshold(abstain_below)
    kind = _output_kind(output)
    if source != "-" and not os.path.isfile(source):
        raise DataError(f"predict: no such file, got {source!r}; expected a CSV, TSV, JSONL or Parquet file, or - for standard input. Check the path.")
    set_threads(threads)
    predictor, manifest = load_predictor(adapter, precision=precision, device=device, encoder=encoder)
    check_abstaining(abstain_below, predictor.rule.task)
    join = _joining(predictor, kind)
    counts = dict.fromkeys(predictor.labels.names, 0)
    rows = abstained = 0
    where = source if source != "-" else _STANDARD_INPUT
    with (
        _source_path(source) as path,
        open_writer(output, kind, _types_of_columns(path, predictor, prefix) if kind == "parquet" else {}) as writer,
    ):
        columns: tuple[str, ...] | None = None
        names: list[str] = []
        for block in read_blocks(path):
            names = names or list(block.columns)
            _require_columns(block, names, where)
            if columns is None:
                trained = manifest.trained_columns
                columns = choose_text_columns(block, where, text_columns or (trained.texts_among(names) if trained else None))
                on_event(Note(f"Text from {' + '.join(columns)}."))
                warning = trained.warning(names, columns) if trained and not text_columns else None
                if warning is not None:
                    on_event(Note(warning, is_warning=True))
                if text_columns is None and reader_of(path) is read_delimited:
                    _warn_of_no_header(block, where, on_event)
            texts = _texts(block, where, columns, keep_empty=keep_empty)
            answers = iter(predictor.explain([text for text in texts if text is not None]))
            found = [None if text is None else next(answers) for text in texts]
            labels = [None if one is None else answer(one, abstain_below) for one in found]
            writer.write(_with_predictions(block, found, [None if label is None else join(label) for label in labels], predictor.labels.names, prefix, where))
            for label in labels:
                for given in (label,) if isinstance(label, str) else label or ():
                    counts[given] += 1
            abstained += sum(one is not None for one in found) - sum(label is not None for label in labels)
            rows += len(block)
            on_event(Progress("predicting", rows, None))
        if rows == 0:
            raise DataError(f"{where}: no rows, got an empty table; expected texts. Check the input.")
    return PredictResult(rows, str(output) if output else None, counts, abstained)


def answer(prediction: Prediction, abstain_below: float | None) -> str | tuple[str, ...] | None:
    """The label, or the labels, or None where the best probability lies below the threshold.

    Args:
        prediction: Of one text.
        abstain_below: The threshold, or None to answer always.
    """
    return None if abstain_below is not None and prediction.score < abstain_below else prediction.label


def _joining(predictor: Predictor, kind: str) -> Callable[[str | tuple[str, ...]], str | list[str]]:
    """What puts an answer into one cell: several labels are a list where the format has lists, else they are joined.

    Raises:
        ConfigError: A label holds the mark that would join them.
    """
    if predictor.rule.task == "single_label":
        return str
    if kind in ("jsonl", "parquet"):
        return list
    marked = [name for name in predictor.labels.names if LABEL_SEPARATOR in name]
    if marked:
        raise ConfigError(
            f"--output: labels cannot be joined with {LABEL_SEPARATOR} in {kind.upper()}, got {marked[0]!r}; expected a format with lists. Write .jsonl or .parquet."
        )
    return LABEL_SEPARATOR.join


def _require_columns(block: Block, names: list[str], source: str) -> None:
    """Rows of JSON may bring a key that the rows already written lack; a table has one set of columns."""
    new = [name for name in block.columns if name not in names]
    if new:
        raise DataError(
            f"{source}:{block.lines[0]}: a key in the rows from here on that no row before has, got {new[0]!r}; expected {', '.join(names)}. Give the first row all keys."
        )


def _warn_of_no_header(block: Block, source: str, on_event: EventSink) -> None:
    """The only column of a list of texts is called like a text where the list has no header; then its first text is lost."""
    name, *others = block.columns
    if not others and " " in name and name.lower() not in TEXT_NAMES:
        on_event(
            Note(
                f"{source}: {name!r} is taken for the header, so it gets no answer. If it is a text, put a line with a name such as text before it.",
                is_warning=True,
            )
        )


def _texts(block: Block, source: str, columns: tuple[str, ...], *, keep_empty: bool) -> list[str | None]:
    """The text of each row; None where it is empty and such rows are kept."""
    faults = Faults("Give a text in every row, or leave such rows without an answer with --keep-empty.")
    texts: list[str | None] = []
    for line, *parts in zip(block.lines, *(block.columns[name] for name in columns), strict=True):
        if any(part is not None and not isinstance(part, str) for part in parts):
            faults.add(f"{source}:{line}", "the text is not a string", parts, "a string")
            continue
        text = " ".join(part for part in parts if part)
        is_empty = not text.strip()
        if is_empty and not keep_empty:
            faults.add(f"{source}:{line}", "empty text", text, "a text")
        texts.append(None if is_empty else text)
    faults.raise_if_any()
    return texts


def _with_predictions(
    block: Block, found: list[Prediction | None], answers: list[Any], labels: tuple[str, ...], prefix: str, source: str
) -> dict[str, list[Any]]:
    """The block's columns and the added ones, in order."""
    added: dict[str, list[Any]] = {
        f"{prefix}predicted_label": answers,
        f"{prefix}score": [None if one is None else one.score for one in found],
        **{f"{prefix}prob_{label}": [None if one is None else float(one.probabilities[index]) for one in found] for index, label in enumerate(labels)},
    }
    clash = next((name for name in added if name in block.columns), None)
    if clash is not None:
        raise DataError(
            f"{source}: an added column clashes with one of the table, got {clash!r}; expected a free name. Use --prefix, for example --prefix lorabel_."
        )
    return {**block.columns, **added}


def _types_of_columns(path: Path, predictor: Predictor, prefix: str) -> dict[str, Any]:
    """Arrow types of the columns that a Parquet file gets: those of the table, and those of the added columns, which no row without a label would tell."""
    import pyarrow

    label = pyarrow.string() if predictor.rule.task == "single_label" else pyarrow.list_(pyarrow.string())
    numbers = (f"{prefix}score", *(f"{prefix}prob_{name}" for name in predictor.labels.names))
    return {**types_of_table(path), f"{prefix}predicted_label": label, **dict.fromkeys(numbers, pyarrow.float64())}


def _output_kind(output: Path | None) -> str:
    if output is None:
        return "csv"
    suffixes = [suffix.lower() for suffix in output.suffixes]
    is_packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = _FORMATS.get(suffixes[-1 - is_packed]) if len(suffixes) > is_packed else None
    if kind is None:
        raise ConfigError(f"--output: unknown kind of file, got {output.name!r}; expected one of {', '.join(_FORMATS)}. Change the name's ending.")
    if kind == "parquet" and is_packed:
        raise ConfigError(f"--output: a packed Parquet file, got {output.name!r}; expected Parquet as it is (it is packed inside). Leave out .gz.")
    return kind


@contextlib.contextmanager
def _source_path(source: str) -> Iterator[Path]:
    """The input as a file; standard input is copied to a temporary one, which keeps readers and line numbers the same and memory small."""
    if source != "-":
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "copied"
        with storage_errors(copied), copied.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        path = copied.rename(Path(folder) / f"table{_ending_of(copied)}")
        try:
            yield path
        except DataError as error:
            raise DataError(str(error).replace(str(path), _STANDARD_INPUT)) from error


def _ending_of(path: Path) -> str:
    """What a file without a name holds, by its first bytes; what cannot be told is left to the CSV reader's messages."""
    with path.open("rb") as file:
        head = file.read(256)
    packed = ""
    if head.startswith(b"\x1f\x8b"):
        packed = ".gz"
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as opened:
            head = opened.read(256)
    if head.startswith(b"PAR1"):
        return ".parquet"
    return (".jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else ".csv") + packed
