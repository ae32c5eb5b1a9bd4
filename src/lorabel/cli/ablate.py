"""`lorabel ablate`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from lorabel.cli.flags import OUTPUT, JsonFlag, QuietFlag
from lorabel.cli.options import TrainFlags, folder_for
from lorabel.cli.output import err, print_json

ABLATION = Group("Ablation", sort_key=0)


def ablate(
    data: Annotated[str | None, Parameter(help="As for train: a file, a folder of splits, `sample`, or a data set name on the hub.")] = None,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="Folder to make (default: runs/DATA-ablate).", group=OUTPUT)] = None,
    seeds: Annotated[int, Parameter(help="Train each row with this many seeds.", group=ABLATION)] = 3,
    techniques: Annotated[
        str | None,
        Parameter(
            help="Some of schedule, smoothing, warmup, accumulation, precision, augmentation, r_drop, mixup, contrastive, encoder_dropout (default: all).",
            group=ABLATION,
        ),
    ] = None,
    final: Annotated[
        bool, Parameter(help="Open the test split once for every cell; every opening is counted.", group=OUTPUT, negative=(), show_default=False)
    ] = False,
    flags: TrainFlags = TrainFlags(),  # noqa: B008
    resume: Annotated[bool, Parameter(help="Go on with the ablation in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier ablation in the folder.", group=OUTPUT, negative=(), show_default=False)] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train the paper's recipe with and without each of its techniques; a gain inside the noise is called noise. Settings given here win over the recipe's."""
    layers = flags.layers_with(data, final=final)
    out = out or folder_for(layers, "ablate")
    from lorabel.cli.compare import compare_json, print_comparison
    from lorabel.cli.sweep_progress import SweepPrinter
    from lorabel.reports.ablation import gain, sentences, verdict
    from lorabel.workflows.ablate import TECHNIQUES, run_ablate

    chosen = tuple(TECHNIQUES) if techniques is None else tuple(name.strip() for name in techniques.split(","))
    with SweepPrinter(is_quiet=quiet) as show:
        record = run_ablate(layers, out, seeds=seeds, techniques=chosen, own_processes=True, resume=resume, overwrite=overwrite, on_event=show).record
    if json:
        printed = compare_json(out, record, "ablate")
        for plain, row in zip(printed["rows"], record.rows, strict=True):
            plain |= {"gain": gain(row), "verdict": verdict(row)}
        print_json(printed)
        return
    print_comparison(record)
    from lorabel.cli.output import out as printer

    printer.print("\n" + "\n".join(sentences(record)), markup=False)
    if not quiet:
        err.print(f"Report   {out / 'report.html'}\nTables   {out / 'table.csv'}, .md, .tex\nRecord   {out / 'ablate.json'}")
