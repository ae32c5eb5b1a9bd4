"""`audit`: what is wrong with a data set before anything is trained on it; text and JSON for the door, and a folder with page, rows and counts where asked.

Truncation is counted exactly without tokenising everything: a tokenizer makes at most one token of each character of ASCII, and one more for a leading space, so that most texts are
short enough by their length alone. The token cache is not used: it would hold all tokens of texts that nobody may ever train on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lorabel.artifacts.store import write_chunks, write_json, write_text
from lorabel.config import EncoderConfig, RunConfig
from lorabel.data.audit import KINDS, OF_CLASSES, Audit, examine
from lorabel.data.audit_table import AuditTable, read_audit_table
from lorabel.errors import ConfigError, MissingExtraError
from lorabel.events import EventSink, Note, ignore
from lorabel.models.checkpoint import load_tokenizer, resolve_encoder
from lorabel.registry import unknown_name
from lorabel.reports.html import template
from lorabel.reports.tables import percent
from lorabel.workflows.out_folder import check_out_folder
from lorabel.workflows.preparation import DEFAULT_MAX_LENGTH

_TEXTS_AT_ONCE = 4096
_ROWS_PER_WRITE = 1024
_EXAMPLES = 25
ANY = "any"


@dataclass(frozen=True)
class AuditFiles:
    """What was written.

    Attributes:
        summary: `audit.json`, the same as `audit --json` prints.
        report: `audit.html`.
        table: `audit_rows.csv`, the rows concerned.
    """

    summary: Path
    report: Path
    table: Path


@dataclass(frozen=True)
class AuditResult:
    """What was found.

    Attributes:
        source: As given.
        audit: Counts, findings and rows.
        encoder: Whose limit was checked; None where the embedded one is not installed and no other was named.
        max_length_tokens: That limit, or None.
        files: What was written, or None.
        failed_on: Kinds found that the caller wanted to fail on.
    """

    source: str
    audit: Audit
    encoder: str | None
    max_length_tokens: int | None
    files: AuditFiles | None
    failed_on: tuple[str, ...]


def run_audit(config: RunConfig, out: Path | None = None, *, fail_on: Sequence[str] = (), overwrite: bool = False, on_event: EventSink = ignore) -> AuditResult:
    """Audit a data set.

    Args:
        config: Settings; data and encoder are used.
        out: A folder to make, or None to write nothing.
        fail_on: Kinds of findings that `failed_on` should name, or `any`.
        overwrite: Replace an earlier audit in `out`.
        on_event: Receives progress and notes.

    Returns:
        What was found. Failing is the caller's: everything is written by then.

    Raises:
        ConfigError: An unknown kind, or a folder that cannot be made.
        ArtifactError: The encoder is damaged.
        DataError: The files cannot be read.
        StorageError: The disk refused.
    """
    wanted = _wanted(fail_on)
    if out is not None:
        _check_folder(out, overwrite=overwrite)
    reader = _reader(config, on_event)
    table = read_audit_table(config.data, on_event=on_event)
    on_event(Note(f"Text from {' + '.join(table.columns.texts)}, labels from {table.columns.label}."))
    audit = examine(table, is_too_long=reader.cuts if reader else None, on_event=on_event)
    found = tuple(finding.kind for finding in audit.findings if finding.kind in wanted)
    encoder, limit = (config.encoder.name, reader.max_length_tokens) if reader else (None, None)
    result = AuditResult(config.data.source, audit, encoder, limit, None, found)
    return result if out is None else _write(result, table, out)


@dataclass(frozen=True)
class _Reader:
    """What an encoder reads of a text.

    Attributes:
        tokenizer: Truncation and padding off.
        max_length_tokens: More are cut.
    """

    tokenizer: Tokenizer
    max_length_tokens: int

    def cuts(self, table: AuditTable) -> NDArray[np.bool_]:
        """Which rows it cuts (N,)."""
        return too_long(table, self.tokenizer, self.max_length_tokens)


def _reader(config: RunConfig, on_event: EventSink) -> _Reader | None:
    """The encoder's limit. Data can be looked at where no encoder is installed yet: then it is said what is left out."""
    try:
        source = resolve_encoder(config.encoder)
    except MissingExtraError as error:
        if config.encoder.name != EncoderConfig().name:
            raise
        on_event(Note(f"Texts that are too long are not counted. {error}", is_warning=True))
        return None
    tokenizer, _ = load_tokenizer(source.folder)
    return _Reader(tokenizer, min(config.data.max_length_tokens or DEFAULT_MAX_LENGTH, source.shape.max_length_tokens))


def as_json(result: AuditResult) -> dict[str, Any]:
    """What `audit --json` prints and `audit.json` holds."""
    audit = result.audit
    return {
        "source": result.source,
        "rows": audit.rows,
        "duplicates": asdict(audit.duplicates),
        "conflicting_labels": audit.conflicting_labels,
        "truncated": audit.truncated,
        "classes": audit.classes,
        "words": asdict(audit.lengths),
        "encoder": result.encoder,
        "max_length_tokens": result.max_length_tokens,
        "findings": [asdict(finding) for finding in audit.findings],
    }


def too_long(table: AuditTable, tokenizer: Tokenizer, max_length_tokens: int) -> NDArray[np.bool_]:
    """Which rows have more tokens than an encoder reads (N,).

    Args:
        table: The rows.
        tokenizer: Truncation and padding off.
        max_length_tokens: The limit, special tokens included.
    """
    around = len(tokenizer.encode("").ids) + 1
    found = np.zeros(len(table), dtype=bool)
    for start in range(0, len(table), _TEXTS_AT_ONCE):
        texts = table.texts[start : start + _TEXTS_AT_ONCE]
        doubtful = [place for place, text in enumerate(texts) if len(text) + around > max_length_tokens or not text.isascii()]
        encodings = tokenizer.encode_batch_fast([texts[place] for place in doubtful])
        for place, encoding in zip(doubtful, encodings, strict=True):
            found[start + place] = len(encoding.ids) > max_length_tokens
    return found


def _wanted(fail_on: Sequence[str]) -> frozenset[str]:
    for kind in fail_on:
        if kind not in (*KINDS, ANY):
            raise ConfigError(unknown_name("--fail-on", kind, [*KINDS, ANY]))
    return frozenset(KINDS if ANY in fail_on else fail_on)


def _check_folder(out: Path, *, overwrite: bool) -> None:
    has_content = check_out_folder(out, out / ".lock", overwrite=overwrite)
    if has_content and not ((out / "audit.json").exists() or (out / "label_errors.csv").exists()):
        raise ConfigError(
            f"--overwrite: this is not the folder of an audit, got {str(out)!r}; expected one with audit.json. It is left alone: choose another --out."
        )


def _write(result: AuditResult, table: AuditTable, out: Path) -> AuditResult:
    files = AuditFiles(out / "audit.json", out / "audit.html", out / "audit_rows.csv")
    write_json(files.summary, as_json(result))
    write_chunks(files.table, _csv(result.audit, table))
    write_text(files.report, _page(result, table))
    return AuditResult(result.source, result.audit, result.encoder, result.max_length_tokens, files, result.failed_on)


def _csv(audit: Audit, table: AuditTable) -> Iterator[bytes]:
    """The rows concerned, kind by kind; how large classes are is no fault of their rows, so that lists none."""
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerow(["kind", "split", "file", "line", "label", "text", "other_split", "other_file", "other_line"])
    for kind in KINDS:
        if kind in OF_CLASSES:
            continue
        for number, row in enumerate(audit.concerned[kind]):
            other = int(audit.partners[row]) if kind.startswith(("exact", "near")) else -1
            writer.writerow(
                [kind, *_place(table, int(row)), table.labels_of(int(row)), table.texts[int(row)], *(_place(table, other) if other >= 0 else ("", "", ""))]
            )
            if number % _ROWS_PER_WRITE == 0:
                yield _drain(sheet)
    yield _drain(sheet)


def _drain(sheet: io.StringIO) -> bytes:
    content = sheet.getvalue().encode("utf-8")
    sheet.seek(0)
    sheet.truncate()
    return content


def _place(table: AuditTable, row: int) -> tuple[str, str, int]:
    return table.split_names[table.splits[row]], table.file_names[table.files[row]].name, int(table.lines[row])


@dataclass(frozen=True)
class _Example:
    """A row on the page, and the one it repeats."""

    place: str
    label: str
    text: str
    other_place: str
    other_label: str
    other_text: str


def _example(audit: Audit, table: AuditTable, kind: str, row: int) -> _Example:
    other = int(audit.partners[row]) if kind.startswith(("exact", "near")) else -1
    split, _, line = _place(table, row)
    if other < 0:
        return _Example(f"{split}, line {line:,}", table.labels_of(row), table.texts[row], "", "", "")
    other_split, _, other_line = _place(table, other)
    return _Example(
        f"{split}, line {line:,}", table.labels_of(row), table.texts[row], f"{other_split}, line {other_line:,}", table.labels_of(other), table.texts[other]
    )


def _page(result: AuditResult, table: AuditTable) -> str:
    audit = result.audit
    kinds = [finding for finding in audit.findings if finding.kind not in OF_CLASSES]
    return template("audit.html.j2").render(
        source=result.source,
        audit=audit,
        encoder=result.encoder,
        max_length_tokens=result.max_length_tokens,
        total=len(table),
        labelled=max(1, sum(audit.classes.values())),
        most=max(audit.classes.values(), default=1) or 1,
        examples={finding: [_example(audit, table, finding.kind, int(row)) for row in audit.concerned[finding.kind][:_EXAMPLES]] for finding in kinds},
        shown=_EXAMPLES,
        percent=percent,
    )
