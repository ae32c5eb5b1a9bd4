"""`lorabel compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from lorabel.cli.flags import OUTPUT, JsonFlag, QuietFlag
from lorabel.cli.options import TrainFlags
from lorabel.cli.output import err, print_json

if TYPE_CHECKING:
    from lorabel.artifacts.compares import CompareRecord

COMPARE = Group("Comparison", sort_key=0)


def compare(
    data: Annotated[str | None, Parameter(help="As for train: a file, a folder of splits, `sample`, or a data set name on the hub.")] = None,
    *,
    methods: Annotated[
        str, Parameter(help="Methods and baselines, with commas between; lorabel methods lists the former. tfidf is always a row.", group=COMPARE)
    ],
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="Folder to make.", group=OUTPUT)],
    seeds: Annotated[int, Parameter(help="Train each method with this many seeds.", group=COMPARE)] = 1,
    rate_trials: Annotated[
        int,
        Parameter(help="Learning rates tried per method on the validation split, half a decade apart around its default; 1 takes the default.", group=COMPARE),
    ] = 1,
    reference: Annotated[str | None, Parameter(help="Row that the others are tested against (default: the first).", group=COMPARE)] = None,
    descriptions: Annotated[Path | None, Parameter(help="A text per class (YAML) for zero_shot (default: the class names).", group=COMPARE)] = None,
    final: Annotated[
        bool, Parameter(help="Open the test split once for every cell; every opening is counted.", group=OUTPUT, negative=(), show_default=False)
    ] = False,
    flags: TrainFlags = TrainFlags(),  # noqa: B008
    resume: Annotated[bool, Parameter(help="Go on with the comparison in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier comparison in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compare methods and baselines: same splits and seeds, a learning rate for each, intervals, paired tests. Options such as --rank belong to the method that --method names."""
    layers = flags.layers_of_settings()
    if data is not None:
        layers.append({"data": {"source": data}})
    if final:
        layers.append({"final": True})
    from lorabel.cli.sweep_progress import SweepPrinter
    from lorabel.workflows.compare import CompareRequest, run_compare
    from lorabel.workflows.compare_baselines import read_descriptions

    texts = read_descriptions(descriptions) if descriptions is not None else None
    request = CompareRequest(tuple(methods.split(",")), seeds, rate_trials, reference, texts)
    with SweepPrinter(is_quiet=quiet) as show:
        result = run_compare(layers, request, out, resume=resume, overwrite=overwrite, on_event=show)
    if json:
        print_json(compare_json(result.root, result.record))
        return
    print_comparison(result.record)
    if not quiet:
        err.print(f"Report   {out / 'report.html'}\nTables   {out / 'table.csv'}, .md, .tex\nRecord   {out / 'compare.json'}")


def print_comparison(record: CompareRecord) -> None:
    """The rows, and what they show."""
    from lorabel.cli.output import out as printer
    from lorabel.reports.compare_tables import as_text

    printer.print(as_text(record), markup=False, end="")
    for row in record.rows:
        if row.reason is not None:
            printer.print(f"{row.method} {row.status}: {row.reason}", markup=False)


def compare_json(root: Path, record: CompareRecord, verb: str = "compare") -> dict[str, Any]:
    """What `--json` prints: the record's rows without curves and matrices, and where everything is."""
    rows = [row.model_dump(mode="json", exclude={"curves", "confusion"}) for row in record.rows]
    return {
        "rows": rows,
        "reference": record.reference,
        "judged": record.judged,
        "rows_judged": record.rows_judged,
        "test_openings": record.test_openings,
        "record": root / f"{verb}.json",
        "report": root / "report.html",
    }
