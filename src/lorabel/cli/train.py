"""`lorabel train`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lorabel.cli.flags import OUTPUT, JsonFlag, QuietFlag
from lorabel.cli.options import TrainFlags
from lorabel.cli.output import err, print_json


def train(
    data: Annotated[
        str | None, Parameter(help="A CSV, TSV, JSONL or Parquet file (also .gz), a folder of splits, `sample`, or a data set name on the hub.")
    ] = None,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="Run folder to make.", group=OUTPUT)],
    flags: TrainFlags = TrainFlags(),  # noqa: B008
    final: Annotated[bool, Parameter(help="Open the test split at the end; every opening is counted.", group=OUTPUT, negative=(), show_default=False)] = False,
    seeds: Annotated[int | None, Parameter(help="Train with this many seeds side by side; mean and spread come out.", group=OUTPUT)] = None,
    folds: Annotated[
        int | None, Parameter(help="Cross-validation: train this many times, each leaving out another part of the training split.", group=OUTPUT)
    ] = None,
    resume: Annotated[bool, Parameter(help="Go on from the run folder's newest checkpoint.", group=OUTPUT, negative=(), show_default=False)] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier run in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train a classifier on a table of labelled texts; adapter, record, figures and report come out."""
    from lorabel.cli.progress import ProgressPrinter
    from lorabel.config import load_config

    layers = flags.layers_with(data, final=final)
    config = load_config(*layers)
    if data is None and not any("source" in (layer.get("data") or {}) for layer in layers) and not quiet:
        err.print("No data named: this trains on the bundled sample.")
    if seeds is not None or folds is not None:
        _repeat(layers, out, seeds=seeds, folds=folds, resume=resume, overwrite=overwrite, json=json, quiet=quiet)
        return
    from lorabel.workflows.train import run_train

    with ProgressPrinter(is_quiet=quiet) as show:
        result = run_train(config, out, resume=resume, overwrite=overwrite, on_event=show)
    if json:
        print_json(result.record)
        return
    from lorabel.cli.tables import print_runs
    from lorabel.reports.tables import NamedRun

    print_runs([NamedRun(out.resolve().name, result.record)])
    if not quiet:
        err.print(f"Report   {out / 'report.html'}\nAdapter  {out / 'adapter'}")


def _repeat(layers: list[dict[str, Any]], out: Path, *, seeds: int | None, folds: int | None, resume: bool, overwrite: bool, json: bool, quiet: bool) -> None:
    """Several seeds or folds: one bank, and the spread of its members."""
    from lorabel.cli.sweep import sweep_json
    from lorabel.cli.sweep_progress import SweepPrinter, print_spread, print_sweep
    from lorabel.workflows.repeats import run_repeats

    with SweepPrinter(is_quiet=quiet) as show:
        result = run_repeats(layers, out, seeds=seeds, folds=folds, resume=resume, overwrite=overwrite, on_event=show)
    if json:
        print_json({**sweep_json(result.root, result.record), "validation": result.validation, "test": result.test, "out_of_fold": result.out_of_fold})
        return
    print_sweep(result.record)
    for name, scores in (("validation", result.validation), ("test", result.test)):
        if scores is not None:
            print_spread(name, scores, result.record.accuracy_name)
    if result.out_of_fold is not None:
        from lorabel.cli.output import out as printer
        from lorabel.reports.tables import with_interval

        printer.print(
            f"out of fold  {result.record.accuracy_name} {with_interval(result.out_of_fold, 'accuracy')}, {result.out_of_fold.n:,} rows, each judged by the member that did not see it"
        )
    if not quiet:
        err.print(f"Report   {out / 'report.html'}\nMembers  {out / 'members'}")
