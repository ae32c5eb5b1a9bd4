"""The folder of a comparison: what may become one, what a new one begins with, and what must be the same to go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorabel.artifacts.compares import CompareLayout, CompareRecord, read_compare, write_compare
from lorabel.config import RunConfig
from lorabel.errors import ConfigError, DataError
from lorabel.events import Event, EventSink, Note
from lorabel.workflows.answering import best_metric
from lorabel.workflows.finishing import versions
from lorabel.workflows.out_folder import check_out_folder, clear_folder
from lorabel.workflows.preparation import Prepared


def check_compare_folder(layout: CompareLayout, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot hold this comparison.

    Args:
        layout: The folder.
        resume: Its content is gone on with.
        overwrite: Its content is removed first.

    Raises:
        ConfigError: Contradictory wishes, or content that is no comparison.
    """
    exists = check_out_folder(layout.root, layout.lock, resume=resume, overwrite=overwrite)
    if resume and not layout.record.exists():
        raise ConfigError(f"--resume: nothing to go on from, got {str(layout.root)!r}; expected the folder of a comparison. Leave --resume out to start.")
    if exists and not layout.record.exists():
        raise ConfigError(f"--overwrite: no comparison is here, got {str(layout.root)!r}; expected a folder with {layout.record.name}. It is left alone.")


def new_record(config: RunConfig, request: Mapping[str, Any], reference: str, prepared: Prepared) -> CompareRecord:
    """What a new comparison begins with.

    Args:
        config: Settings below all rows.
        request: What was asked for, as JSON values.
        reference: Row that the others are tested against.
        prepared: A run over the same data and encoder.
    """
    test = prepared.data.splits.get("test") if config.final else None
    judged = test or prepared.data.splits["validation"]
    return CompareRecord(
        status="running",
        request=dict(request),
        base=config.model_dump(mode="json"),
        split_digests={name: split.digest for name, split in prepared.data.splits.items()},
        metric=best_metric(config, prepared.data.task),
        task=prepared.data.task,
        reference=reference,
        judged=judged.name,
        rows_judged=len(judged),
        labels=list(prepared.data.labels.names),
        encoder=prepared.source.name,
        encoder_parameters=prepared.source.shape.parameter_count,
        versions=versions(),
    )


def open_compare(layout: CompareLayout, fresh: CompareRecord, *, resume: bool) -> CompareRecord:
    """The record to go on with, or a new one in a cleared folder.

    Args:
        layout: The folder.
        fresh: What a new comparison would begin with.
        resume: Go on with what is there.

    Raises:
        ConfigError: The comparison in the folder is another one.
        DataError: Its rows were others.
    """
    if resume:
        before = read_compare(layout.record)
        unlike = [name for name, mine, its in (("settings", fresh.base, before.base), ("rows asked for", fresh.request, before.request)) if mine != its]
        if unlike:
            raise ConfigError(
                f"--resume: the {' and '.join(unlike)} differ from the comparison's, got others; expected the same command. Repeat it, or start anew."
            )
        changed = sorted(name for name in before.split_digests if before.split_digests[name] != fresh.split_digests.get(name))
        if changed:
            raise DataError(
                f"--resume: the data changed since the comparison was begun, got another digest of {', '.join(changed)}; expected its rows. Restore them, or start anew."
            )
        return before
    clear_folder(layout.root, layout.lock, layout.record)
    write_compare(layout.record, fresh)
    return fresh


def each_once(on_event: EventSink) -> EventSink:
    """A sink that passes each note on once: sweeps read the same data and say the same of it.

    Args:
        on_event: Receives what is passed on.
    """
    said: set[tuple[str, int | None]] = set()

    def send(event: Event) -> None:
        if isinstance(event, Note):
            if (event.text, event.member) in said:
                return
            said.add((event.text, event.member))
        on_event(event)

    return send
