"""`lorabel report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lorabel.cli.flags import JsonFlag
from lorabel.cli.output import err, print_json
from lorabel.errors import ConfigError


def report(
    runs: Annotated[tuple[Path, ...], Parameter(help="Run folders.", negative=())] = (),
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="HTML file (default: report.html in the run, or here where there are several).")] = None,
    json: JsonFlag = False,
) -> None:
    """Write a report of one run, or of several side by side; reads records only."""
    if not runs:
        raise ConfigError("report: no run folder, got none; expected at least one. For example lorabel report runs/news.")
    from lorabel.cli.tables import print_runs
    from lorabel.reports.tables import NOT_COMPARABLE, are_comparable
    from lorabel.workflows.report import run_report

    result = run_report(runs, out)
    if json:
        rows = [
            {"run": run.name, **run.record.model_dump(mode="python", include={"parameters", "bytes", "metrics", "training", "seed", "test_openings"})}
            for run in result.runs
        ]
        print_json({"report": result.report, "rows": rows})
        return
    print_runs(result.runs)
    if not are_comparable(result.runs):
        err.print(f"\n[yellow]warning:[/yellow] {NOT_COMPARABLE}")
    err.print(f"\nReport   {result.report}")
