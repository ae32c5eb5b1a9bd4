"""`lorabel audit`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from lorabel.cli.flags import OUTPUT, JsonFlag, QuietFlag
from lorabel.cli.options import TrainFlags
from lorabel.cli.output import err, out, print_json
from lorabel.errors import ConfigError

AUDIT = Group("Audit", sort_key=0)
_EXAMPLES = 10
_WIDTH = 90


def audit(
    data: Annotated[str | None, Parameter(help="As for train: a file, a folder of splits, `sample`, or a data set name on the hub.")] = None,
    *,
    out_folder: Annotated[Path, Parameter(name=["--out", "-o"], help="Folder to make.", group=OUTPUT)],
    label_errors: Annotated[
        bool,
        Parameter(
            help="Look for wrong labels: a cross-validation judges every training row without having seen it.", group=AUDIT, negative=(), show_default=False
        ),
    ] = False,
    folds: Annotated[int, Parameter(help="Of the cross-validation.", group=AUDIT)] = 5,
    flags: TrainFlags = TrainFlags(),  # noqa: B008
    resume: Annotated[bool, Parameter(help="Go on with what is in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier audit in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Look for rows that probably carry the wrong label, and for the hardest ones."""
    if not label_errors:
        raise ConfigError("audit: what to look for, got nothing; expected --label-errors. Add it.")
    from lorabel.cli.sweep_progress import SweepPrinter
    from lorabel.workflows.label_errors import run_label_errors

    layers = flags.layers_of_settings()
    if data is not None:
        layers.append({"data": {"source": data}})
    with SweepPrinter(is_quiet=quiet) as show:
        found = run_label_errors(layers, out_folder, folds=folds, resume=resume, overwrite=overwrite, on_event=show)
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
