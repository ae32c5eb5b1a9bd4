"""`lorabel audit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from lorabel.cli.flags import OUTPUT, JsonFlag, QuietFlag
from lorabel.cli.options import TrainFlags
from lorabel.cli.output import err, out, print_json
from lorabel.config import load_config
from lorabel.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from lorabel.workflows.audit import AuditResult

AUDIT = Group("Audit", sort_key=0)
# Flags that an audit without --label-errors reads. Settings given by --config and --set may be those of a run, and say more.
_READ = {"config", "set", "text_column", "label_column", "label_separator", "encoder", "revision", "max_length"}
_EXAMPLES = 10
_WIDTH = 90


def audit(
    data: Annotated[str | None, Parameter(help="As for train: a file, a folder of splits, `sample`, or a data set name on the hub.")] = None,
    *,
    out_folder: Annotated[
        Path | None, Parameter(name=["--out", "-o"], help="Folder to make, with a page, the counts and the rows concerned.", group=OUTPUT)
    ] = None,
    fail_on: Annotated[
        str | None,
        Parameter(help="Kinds of findings, with commas, or any: where one is found, the exit code is 3 after everything is printed and written.", group=AUDIT),
    ] = None,
    label_errors: Annotated[
        bool,
        Parameter(
            help="Look for wrong labels instead: a cross-validation judges every training row without having seen it; needs --out.",
            group=AUDIT,
            negative=(),
            show_default=False,
        ),
    ] = False,
    folds: Annotated[int | None, Parameter(help="Of the cross-validation of --label-errors (default: 5).", group=AUDIT)] = None,
    flags: TrainFlags = TrainFlags(),  # noqa: B008
    resume: Annotated[bool, Parameter(help="--label-errors: go on with what is in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier audit in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Find duplicates, conflicting labels, rare classes, cut texts, odd characters and unusable rows; or, with --label-errors, labels that are probably wrong."""
    layers = flags.layers_with(data)
    if label_errors:
        if out_folder is None:
            raise ConfigError("--label-errors: no folder to work in, got no --out; expected one. Add --out FOLDER.")
        if fail_on is not None:
            raise ConfigError(f"--fail-on: not for --label-errors, got {fail_on!r}; expected one of the two. Leave one out.")
        _label_errors(layers, out_folder, folds=folds, resume=resume, overwrite=overwrite, json=json, quiet=quiet)
        return
    if resume:
        raise ConfigError("--resume: only --label-errors can go on, got it without; expected a new audit. Leave it out, or use --overwrite.")
    unread = [flag for name, flag in flags.given().items() if name not in _READ] + ["--folds"] * (folds is not None)
    if unread:
        raise ConfigError(
            f"{unread[0]}: only --label-errors trains and reads it, got it without; expected flags of columns and of the encoder. Leave it out, or add --label-errors."
        )
    from lorabel.cli.progress import ProgressPrinter
    from lorabel.workflows.audit import as_json, run_audit

    kinds = [kind.strip() for kind in fail_on.split(",")] if fail_on is not None else []
    with ProgressPrinter(is_quiet=quiet) as show:
        result = run_audit(load_config(*layers), out_folder, fail_on=kinds, overwrite=overwrite, on_event=show)
    if json:
        print_json(as_json(result))
    else:
        _print(result)
    if result.files and not quiet:
        err.print(f"Report   {result.files.report}\nRows     {result.files.table}", markup=False)
    if result.failed_on:
        raise RefusedError(f"audit: findings that --fail-on names, got {', '.join(result.failed_on)}; expected none. Correct the data, or name fewer kinds.")


def _print(result: "AuditResult") -> None:
    found = result.audit
    sizes = [rows for rows in found.classes.values() if rows]
    out.print(f"rows      {', '.join(f'{name} {rows:,}' for name, rows in found.rows.items())}")
    if sizes:
        out.print(f"classes   {len(sizes):,}, of {min(sizes):,} to {max(sizes):,} rows")
    out.print(f"words     median {found.lengths.median:g}, 95 % have at most {found.lengths.p95:g}, the longest {found.lengths.longest:,}")
    if result.max_length_tokens is not None:
        out.print(f"encoder   {result.encoder} reads {result.max_length_tokens:,} tokens; {found.truncated:,} rows are longer", markup=False)
    if not found.findings:
        out.print("\nNothing was found.")
        return
    out.print()
    width = max(len(finding.kind) for finding in found.findings)
    for finding in found.findings:
        out.print(f"{finding.kind:<{width}}  {finding.message}", markup=False)


def _label_errors(layers: list[dict[str, Any]], out_folder: Path, *, folds: int | None, resume: bool, overwrite: bool, json: bool, quiet: bool) -> None:
    from lorabel.cli.sweep_progress import SweepPrinter
    from lorabel.workflows.label_errors import FOLDS, run_label_errors

    with SweepPrinter(is_quiet=quiet) as show:
        found = run_label_errors(layers, out_folder, folds=FOLDS if folds is None else folds, resume=resume, overwrite=overwrite, on_event=show)
    if json:
        print_json(
            {
                "label_errors": {"rows": found.rows, "suspects": found.suspects, "out_of_fold": found.out_of_fold, "examples": found.ranked[:_EXAMPLES]},
                "table": found.table,
                "report": found.report,
            }
        )
        return
    out.print(
        f"{found.suspects:,} of {found.rows:,} training rows probably carry the wrong label; the judge agrees with {100 * found.out_of_fold.accuracy:.1f} % of all labels."
    )
    for row in found.ranked[: min(_EXAMPLES, found.suspects)]:
        text = row.text if len(row.text) <= _WIDTH else row.text[: _WIDTH - 1] + "…"
        out.print(f"row {row.row:,}  {row.label} → {row.suggested}  {row.quality:.3f}  {text}", markup=False)
    if not quiet:
        err.print(f"Table    {found.table}\nReport   {found.report}")
