"""`lorabel sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from lorabel.cli.flags import OUTPUT, JsonFlag, QuietFlag
from lorabel.cli.options import TrainFlags, folder_for
from lorabel.cli.output import err, print_json

if TYPE_CHECKING:
    from lorabel.artifacts.sweeps import SweepRecord

SWEEP = Group("Sweep", sort_key=0)


def sweep(
    data: Annotated[str | None, Parameter(help="As for train: a file, a folder of splits, `sample`, or a data set name on the hub.")] = None,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="Sweep folder to make (default: runs/DATA-sweep).", group=OUTPUT)] = None,
    grid: Annotated[
        str | None, Parameter(help="Every combination of a grid file (YAML: settings with lists of values), or of a shipped grid: paper.", group=SWEEP)
    ] = None,
    search: Annotated[
        str | None,
        Parameter(help='A search space: "learning_rate=loguniform(1e-4,1e-2) rank=choice(2,4,8)"; kinds: uniform, loguniform, int, choice.', group=SWEEP),
    ] = None,
    trials: Annotated[int, Parameter(help="Settings that a search tries.", group=SWEEP)] = 16,
    sampler: Annotated[Literal["tpe", "random"], Parameter(help="How a search draws: tpe learns from the banks before.", group=SWEEP)] = "tpe",
    sampler_seed: Annotated[int, Parameter(help="Seed of the sampler.", group=SWEEP)] = 0,
    two_objectives: Annotated[
        bool, Parameter(help="A search that counts fewer parameters as well as a better score.", group=SWEEP, negative=(), show_default=False)
    ] = False,
    halving: Annotated[int | None, Parameter(help="After each evaluation of a bank, one in this many goes on.", group=SWEEP)] = None,
    bank_size: Annotated[int | None, Parameter(help="Most members trained at once (default: by free memory, up to 32).", group=SWEEP)] = None,
    storage: Annotated[str | None, Parameter(help="Optuna storage URL of a search (default: SQLite in the sweep folder).", group=SWEEP)] = None,
    flags: TrainFlags = TrainFlags(),  # noqa: B008
    resume: Annotated[bool, Parameter(help="Go on with the sweep in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier sweep in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Try many settings side by side: members of a bank share the frozen encoder, and each leaves an adapter of its own."""
    from lorabel.errors import ConfigError
    from lorabel.search.space import parse_search, read_grid

    if (grid is None) == (search is None):
        raise ConfigError(
            f"sweep: what to try, got {'both --grid and --search' if grid else 'neither --grid nor --search'}; expected one of them. For example --grid paper."
        )
    for name, value, least in (("--trials", trials, 1), ("--halving", halving, 2), ("--bank-size", bank_size, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{name}: too small, got {value}; expected at least {least}. Leave it out for the default.")
    layers = flags.layers_with(data)
    out = out or folder_for(layers, "sweep")
    source: Any = parse_search(search) if search is not None else read_grid(_grid_path(str(grid)))
    from lorabel.cli.sweep_progress import SweepPrinter
    from lorabel.workflows.sweep import Search, SweepOptions, run_sweep

    if search is not None:
        source = Search(source, trials, sampler, sampler_seed, storage, two_objectives)
    with SweepPrinter(is_quiet=quiet) as show:
        result = run_sweep(layers, source, out, SweepOptions(halving, bank_size), resume=resume, overwrite=overwrite, on_event=show)
    if json:
        print_json(sweep_json(result.root, result.record))
        return
    from lorabel.cli.sweep_progress import print_sweep

    print_sweep(result.record)
    if not quiet:
        err.print(f"Report   {out / 'report.html'}\nBest     {out / 'best.yaml'}   (lorabel train … --config {out / 'best.yaml'} --final)")


def _grid_path(given: str) -> Path:
    """A file, or a grid that is shipped."""
    from importlib.resources import files

    shipped = files("lorabel").joinpath("recipes", "grids", f"{given}.yaml")
    return Path(str(shipped)) if "/" not in given and not Path(given).exists() and shipped.is_file() else Path(given)


def sweep_json(root: Path, record: SweepRecord) -> dict[str, Any]:
    """What `--json` prints; `best` is a member's number."""
    from lorabel.artifacts.sweeps import SweepLayout

    members = [
        {
            "number": member.number,
            "settings": member.assignment,
            "status": member.status,
            "reason": member.reason,
            "validation": {"accuracy": member.accuracy, "macro_f1": member.macro_f1, "loss": member.loss} if member.has_scores else None,
            "parameters": {"trainable": member.trainable} if member.has_scores else None,
            "adapter": SweepLayout(root).member(member.number).adapter if member.has_scores else None,
            "seconds": member.seconds,
            "alarms": member.alarms,
        }
        for member in record.members
    ]
    return {
        "members": members,
        "best": record.ranked()[0].number,
        "banks": record.banks,
        "seconds": record.seconds,
        "config": root / "best.yaml",
        "report": root / "report.html",
    }
