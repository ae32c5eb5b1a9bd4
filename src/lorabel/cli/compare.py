"""`lorabel compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Group, Parameter

from lorabel.cli.flags import OUTPUT, JsonFlag, QuietFlag
from lorabel.cli.options import TrainFlags, folder_for
from lorabel.cli.output import err, print_json
from lorabel.errors import ConfigError

if TYPE_CHECKING:
    from lorabel.artifacts.compares import CompareRecord
    from lorabel.workflows.sizes import SizesResult

# What only figures need; the record has it.
_NOT_PRINTED = {"curves", "confusion", "label_errors"}
COMPARE = Group("Comparison", sort_key=0)
Number = TypeVar("Number", int, float)


def compare(
    data: Annotated[str | None, Parameter(help="As for train: a file, a folder of splits, `sample`, or a data set name on the hub.")] = None,
    *,
    methods: Annotated[
        str,
        Parameter(
            help="Methods and baselines, with commas between; options of one after colons, such as lora,lora:init=pissa,prefix:length=40. tfidf is always a row.",
            group=COMPARE,
        ),
    ],
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="Folder to make (default: runs/DATA-compare).", group=OUTPUT)] = None,
    seeds: Annotated[int, Parameter(help="Train each method with this many seeds.", group=COMPARE)] = 1,
    rate_trials: Annotated[
        int | None,
        Parameter(
            help="Learning rates tried per method, half a decade apart around its own default; the best on the validation split is taken. 1 means no search "
            "(default: 3; 1 with --fractions or --shots, where every draw would be searched).",
            group=COMPARE,
        ),
    ] = None,
    reference: Annotated[str | None, Parameter(help="Row that the others are tested against (default: the first).", group=COMPARE)] = None,
    descriptions: Annotated[Path | None, Parameter(help="A text per class (YAML) for zero_shot (default: the class names).", group=COMPARE)] = None,
    fractions: Annotated[
        str | None,
        Parameter(help="Compare at each of these shares of the training rows, in percent, with commas between, such as 1,3,10,30,100.", group=COMPARE),
    ] = None,
    shots: Annotated[str | None, Parameter(help="Compare with each of these numbers of rows per class, such as 8,64.", group=COMPARE)] = None,
    draws: Annotated[int | None, Parameter(help="Draws of each number of --shots (default: 10).", group=COMPARE)] = None,
    final: Annotated[
        bool, Parameter(help="Open the test split once for every cell; every opening is counted.", group=OUTPUT, negative=(), show_default=False)
    ] = False,
    flags: TrainFlags = TrainFlags(),  # noqa: B008
    resume: Annotated[bool, Parameter(help="Go on with the comparison in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier comparison in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compare methods and baselines: same splits and seeds, a learning rate for each method found on the validation split, intervals, paired tests.

    Options such as --rank are for every compared method that has them.
    """
    layers = flags.layers_with(data, final=final)
    out = out or folder_for(layers, "compare")
    from lorabel.cli.sweep_progress import SweepPrinter
    from lorabel.workflows.compare import RATE_TRIALS, CompareRequest, run_compare
    from lorabel.workflows.compare_baselines import read_descriptions
    from lorabel.workflows.compare_methods import split_outside

    texts = read_descriptions(descriptions) if descriptions is not None else None
    by_size = fractions is not None or shots is not None
    trials = (1 if by_size else RATE_TRIALS) if rate_trials is None else rate_trials
    request = CompareRequest(tuple(split_outside(methods, ",")), seeds, trials, reference, texts)
    if draws is not None and shots is None:
        raise ConfigError(f"--draws: nothing is drawn, got {draws} without --shots; expected both. Add --shots 8,64, or leave it out.")
    if by_size:
        from lorabel.workflows.sizes import DRAWS, SizesRequest, run_sizes

        sizes = SizesRequest(_numbers("--fractions", fractions, float), _numbers("--shots", shots, int), DRAWS if draws is None else draws)
        with SweepPrinter(is_quiet=quiet) as show:
            of_sizes = run_sizes(layers, request, sizes, out, resume=resume, overwrite=overwrite, on_event=show)
        _print_sizes(of_sizes, is_json=json, is_quiet=quiet)
        return
    with SweepPrinter(is_quiet=quiet) as show:
        result = run_compare(layers, request, out, resume=resume, overwrite=overwrite, on_event=show)
    if json:
        print_json(compare_json(result.root, result.record))
        return
    print_comparison(result.record)
    if not quiet:
        err.print(f"Report   {out / 'report.html'}\nTables   {out / 'table.csv'}, .md, .tex\nRecord   {out / 'compare.json'}")


def _numbers(flag: str, text: str | None, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """`1,3,10` as numbers."""
    try:
        return tuple(kind(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{flag}: not numbers, got {text!r}; expected numbers with commas between. Use {flag} 8,64.") from error


def _print_sizes(result: SizesResult, *, is_json: bool, is_quiet: bool) -> None:
    from lorabel.cli.output import out as printer
    from lorabel.reports.sizes_tables import sizes_text

    record, root = result.record, result.root
    if is_json:
        rows = [row.model_dump(mode="json", exclude=_NOT_PRINTED) for row in record.rows]
        points = [point.model_dump(mode="json") for point in record.points]
        shared = {name: getattr(record, name) for name in ("reference", "judged", "rows_judged", "test_openings")}
        print_json({"rows": rows, "points": points, **shared, "record": root / "sizes.json", "report": root / "report.html"})
        return
    printer.print(sizes_text(record), markup=False, end="")
    if not is_quiet:
        err.print(f"Report   {root / 'report.html'}\nTables   {root / 'sizes.csv'}, .md, .tex\nRecord   {root / 'sizes.json'}")


def print_comparison(record: CompareRecord) -> None:
    """The rows, and what they show."""
    from lorabel.cli.output import out as printer
    from lorabel.reports.compare_tables import as_text

    printer.print(as_text(record), markup=False, end="")


def compare_json(root: Path, record: CompareRecord, verb: str = "compare") -> dict[str, Any]:
    """What `--json` prints: the record's rows without curves and matrices, and where everything is."""
    rows = [row.model_dump(mode="json", exclude=_NOT_PRINTED) for row in record.rows]
    return {
        "rows": rows,
        "reference": record.reference,
        "judged": record.judged,
        "rows_judged": record.rows_judged,
        "test_openings": record.test_openings,
        "record": root / f"{verb}.json",
        "report": root / "report.html",
    }
