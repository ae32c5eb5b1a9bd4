"""`ablate`: the paper's recipe, and the recipe without each of its techniques, on the same rows and seeds.

The recipe takes schedule, warm-up, smoothing, batch, augmentation and encoder dropout from the paper, and all else from the user's settings. A row lacks one technique. What the
recipe gains over it is reported with its paired interval; a gain inside the noise is called noise. All rows train at one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabel.artifacts.compares import CompareLayout, CompareRecord, write_compare
from lorabel.artifacts.lock import RunLock
from lorabel.config import RunConfig, flatten, load_config, read_recipe
from lorabel.data.ledger import TestLedger, folder_beside
from lorabel.errors import ConfigError, DataError
from lorabel.events import EventSink, Note, ignore
from lorabel.registry import unknown_name
from lorabel.reports.ablation import draw_ablation_figures, sentences
from lorabel.search.space import Assignment, nested
from lorabel.training.precision import choose_compute
from lorabel.workflows.cells import Variant, train_cells
from lorabel.workflows.compare_folder import check_compare_folder, each_once, new_record, open_compare
from lorabel.workflows.compare_report import write_compare_report
from lorabel.workflows.compare_rows import score_rows, source_of_cells
from lorabel.workflows.dropout import check_passes
from lorabel.workflows.finishing import Ending
from lorabel.workflows.preparation import Prepared, prepare
from lorabel.workflows.stopping import StopRequest, stop_on_signals
from lorabel.workflows.sweep import SweepOptions
from lorabel.workflows.tracking import check_trackers

WHOLE = "whole recipe"
_SCHEDULES = ("cosine", "linear", "step", "constant")
# Of the paper's recipe; encoder, method, learning rate and data are the user's.
_FROM_THE_PAPER = {
    "schedule": None,
    "loss": None,
    "encoder": ("dropout",),
    "data": ("augmentation",),
    "training": ("batch_size", "gradient_accumulation_steps"),
}


@dataclass(frozen=True)
class Technique:
    """One technique of the recipe.

    Attributes:
        without: The settings -> rows that lack it, by name; empty where the recipe does not use it.
        setting: The dotted setting that switches it on.
        claim: Gain in accuracy that the paper claims for its own value of the setting; None where it claims none.
    """

    without: Callable[[RunConfig], dict[str, Assignment]]
    setting: str = ""
    claim: float | None = None

    def claim_for(self, config: RunConfig) -> float | None:
        """The claim, where the settings are the paper's."""
        if self.claim is None:
            return None
        return self.claim if flatten(config.model_dump())[self.setting] == flatten(read_recipe("paper"))[self.setting] else None


def _schedules(config: RunConfig) -> dict[str, Assignment]:
    return {f"{name} schedule": {"schedule.name": name} for name in _SCHEDULES if name != config.schedule.name}


def _warmup(config: RunConfig) -> dict[str, Assignment]:
    has_it = bool(config.schedule.warmup_ratio if config.schedule.warmup_steps is None else config.schedule.warmup_steps)
    return {"no warm-up": {"schedule.warmup_steps": 0}} if has_it else {}


def _smoothing(config: RunConfig) -> dict[str, Assignment]:
    return {"no smoothing": {"loss.label_smoothing": 0.0}} if config.loss.label_smoothing else {}


def _r_drop(config: RunConfig) -> dict[str, Assignment]:
    return {"no R-Drop": {"loss.r_drop_alpha": 0.0}} if config.loss.r_drop_alpha else {}


def _mixup(config: RunConfig) -> dict[str, Assignment]:
    return {"no mix-up": {"loss.mixup_alpha": 0.0}} if config.loss.mixup_alpha else {}


def _contrastive(config: RunConfig) -> dict[str, Assignment]:
    return {"no contrastive loss": {"loss.contrastive_alpha": 0.0}} if config.loss.contrastive_alpha else {}


def _accumulation(config: RunConfig) -> dict[str, Assignment]:
    rows = config.training.batch_size * config.training.gradient_accumulation_steps
    large: Assignment = {"training.batch_size": rows, "training.gradient_accumulation_steps": 1}
    return {f"one batch of {rows}": large} if config.training.gradient_accumulation_steps > 1 else {}


def _precision(config: RunConfig) -> dict[str, Assignment]:
    settled = choose_compute(config.training.device, config.training.precision).precision
    return {"full precision": {"training.precision": "fp32"}} if settled != "fp32" else {}


def _augmentation(config: RunConfig) -> dict[str, Assignment]:
    return {"no augmentation": {"data.augmentation": "none"}} if config.data.augmentation != "none" else {}


def _encoder_dropout(config: RunConfig) -> dict[str, Assignment]:
    return {"no encoder dropout": {"encoder.dropout": False}} if config.encoder.dropout else {}


TECHNIQUES = {
    "schedule": Technique(_schedules, "schedule.name", claim=0.008),
    "smoothing": Technique(_smoothing, "loss.label_smoothing", claim=0.015),
    "warmup": Technique(_warmup),
    "accumulation": Technique(_accumulation),
    "precision": Technique(_precision),
    "augmentation": Technique(_augmentation),
    "r_drop": Technique(_r_drop),
    "mixup": Technique(_mixup),
    "contrastive": Technique(_contrastive),
    "encoder_dropout": Technique(_encoder_dropout),
}


@dataclass(frozen=True)
class AblateResult:
    """What an ablation made.

    Attributes:
        root: Its folder.
        record: Its record: a comparison whose reference is the whole recipe.
    """

    root: Path
    record: CompareRecord


def paper_techniques() -> dict[str, Any]:
    """Settings of the paper's recipe that are techniques, as a layer below the user's settings."""
    recipe = read_recipe("paper")
    return {section: recipe[section] if names is None else {name: recipe[section][name] for name in names} for section, names in _FROM_THE_PAPER.items()}


def run_ablate(
    base: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    seeds: int = 3,
    techniques: Sequence[str] = tuple(TECHNIQUES),
    own_processes: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    on_event: EventSink = ignore,
) -> AblateResult:
    """Train the recipe with and without each technique.

    Args:
        base: Layers of the user's settings; they win over the paper's, and `final` opens the test split once for every cell.
        out: The folder; it must not exist unless `resume` or `overwrite` is set.
        seeds: Of every row, from the settings' own on.
        techniques: Which ones, of `TECHNIQUES`.
        own_processes: On a CPU, train each row in a process of its own, so that its memory is its own; a GPU's is counted from each row's start anyway. A script that asks for
            it has to begin under `if __name__ == "__main__":`, as it is imported there.
        resume: Go on with the ablation in `out`.
        overwrite: Remove an earlier one in `out` first.
        on_event: Receives notes, progress, steps and evaluations; members are numbered through all cells.

    Returns:
        The folder and its record.

    Raises:
        ConfigError: Names, settings, budget or folder are not usable.
        DataError: The data cannot be used, changed since it was begun, or the recipe could not be trained on it.
        StoppedError: A signal asked for a stop; the state was saved.
    """
    base = [paper_techniques(), *base]
    config = load_config(*base)
    on_event = each_once(on_event)
    _check_request(seeds, techniques)
    check_trackers(config)
    layout = CompareLayout(out, "ablate")
    check_compare_folder(layout, resume=resume, overwrite=overwrite)
    prepared = prepare(config, on_event)
    # What the settings leave open is settled by other settings too, such as accumulation: settled once, or a row would differ from the whole recipe in two things.
    base = [*base, {"loss": {"contrastive_alpha": prepared.loss.contrastive_alpha}}]
    rows = _rows(load_config(*base), seeds, techniques, on_event)
    _check_rows(rows, base, prepared)
    with RunLock(layout.lock), stop_on_signals() as stop:
        fresh = new_record(config, {"seeds": seeds, "techniques": list(techniques)}, WHOLE, prepared)
        fresh = fresh.model_copy(update={"own_processes": own_processes and prepared.compute.device.type == "cpu"})
        record = _train(layout, open_compare(layout, fresh, resume=resume), base, rows, prepared, stop, on_event)
    return AblateResult(out, record)


@dataclass(frozen=True)
class _Row:
    """A row to train.

    Attributes:
        variant: Its cells.
        claim: Of the technique that it lacks.
    """

    variant: Variant
    claim: float | None


def _check_request(seeds: int, techniques: Sequence[str]) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds: too few, got {seeds}; expected at least 1. Use 3 to start.")
    for name in techniques:
        if name not in TECHNIQUES:
            raise ConfigError(unknown_name("--techniques", name, list(TECHNIQUES)))


def _rows(config: RunConfig, seeds: int, techniques: Sequence[str], on_event: EventSink) -> list[_Row]:
    """The whole recipe first, then every row that lacks something."""
    found: list[tuple[str, Assignment, float | None]] = [(WHOLE, {}, None)]
    for name in dict.fromkeys(techniques):
        technique = TECHNIQUES[name]
        rows = technique.without(config)
        if not rows:
            on_event(Note(f"{name}: the settings do not use it, so there is no row without it."))
        found += [(row, assignment, technique.claim_for(config)) for row, assignment in rows.items()]
    if len(found) == 1:
        raise ConfigError(f"--techniques: nothing to leave out, got {', '.join(techniques) or 'none'}; expected one that the settings use. Choose others.")
    first = config.training.seed
    return [_Row(Variant(name, tuple({**assignment, "training.seed": first + turn} for turn in range(seeds))), claim) for name, assignment, claim in found]


def _check_rows(rows: Sequence[_Row], base: Sequence[Mapping[str, Any]], prepared: Prepared) -> None:
    """Refuse before the first row is trained what the last would be refused for: one technique may be what another needs."""
    for row in rows:
        lacking = load_config(*base, nested(row.variant.assignments[0]))
        try:
            check_passes(lacking, prepared.method, prepared.head, prepared.source.shape)
        except ConfigError as error:
            raise ConfigError(f"{row.variant.name}: cannot be trained. {error} Or leave this row out with --techniques.") from error


def _train(
    layout: CompareLayout,
    record: CompareRecord,
    base: Sequence[Mapping[str, Any]],
    rows: Sequence[_Row],
    prepared: Prepared,
    stop: StopRequest,
    on_event: EventSink,
) -> CompareRecord:
    ledger = folder_beside(layout.root)
    ending = Ending(verb="ablate", opened_by="ablate", ledger=ledger, keeps_probabilities=True)
    # A technique may cost or save time and memory: in one bank all rows would show the same.
    variants, options = [row.variant for row in rows], SweepOptions(ending=ending)
    cells = train_cells(base, variants, layout.cells, options, stop, may_open_test=True, on_event=on_event, apart=True, own_process=record.own_processes)
    sources = [source_of_cells(row.variant.name, cells[row.variant.name], ()) for row in rows]
    if sources[0].row.status == "failed":
        raise DataError(f"ablate: the whole recipe could not be trained, got {sources[0].row.reason}; expected a finite loss. Lower --learning-rate.")
    scored = score_rows(sources, record, layout.root)
    # The paper's claims are about texts with one label each.
    has_claims = prepared.data.task == "single_label"
    test = prepared.data.splits.get("test")
    record = record.model_copy(
        update={
            "status": "finished",
            "rows": [found.model_copy(update={"claim": row.claim if has_claims else None}) for found, row in zip(scored, rows, strict=True)],
            "test_openings": TestLedger(ledger).count(test.digest) if test is not None else 0,
        }
    )
    write_compare(layout.record, record)
    write_compare_report(layout, record, draw_ablation_figures(record), sentences(record))
    return record
