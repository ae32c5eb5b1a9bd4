"""`lorabel evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lorabel.cli.flags import JsonFlag, QuietFlag
from lorabel.cli.output import err, print_json
from lorabel.config import Device, Precision, load_config
from lorabel.errors import ConfigError


def evaluate(
    adapter: Annotated[Path, Parameter(help="Adapter folder, or the run folder that holds it.")],
    data: Annotated[
        str | None, Parameter(help="A file of labelled texts, a folder of splits, `sample`, or a data set name (default: the splits the run was trained with).")
    ] = None,
    *,
    split: Annotated[Literal["train", "validation", "test"], Parameter(help="Which split; a single file is taken as this split.")] = "test",
    text_column: Annotated[tuple[str, ...] | None, Parameter(help="Text columns (default: found).", negative=())] = None,
    label_column: Annotated[str | None, Parameter(help="Label column (default: found).")] = None,
    label_separator: Annotated[str | None, Parameter(help="What several labels in one value are split at, such as |; lists need none.")] = None,
    drop_empty: Annotated[
        bool, Parameter(help="Leave out rows with an empty text or a missing label instead of refusing the table.", negative=(), show_default=False)
    ] = False,
    encoder: Annotated[str | None, Parameter(help="Checkpoint folder, where the adapter's encoder cannot be found by name.")] = None,
    precision: Annotated[Precision, Parameter(help="fp32 gives the same bits everywhere; auto is fastest.")] = "auto",
    device: Annotated[Device, Parameter(help="Where to compute.")] = "auto",
    threads: Annotated[int | None, Parameter(help="CPU threads (default: all cores).")] = None,
    abstain_below: Annotated[
        float | None, Parameter(help="Also report coverage and accuracy of the rows whose best probability reaches this, such as 0.8.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Score an adapter on labelled texts, with intervals; opening a test split is counted."""
    from lorabel.cli.progress import ProgressPrinter
    from lorabel.workflows.evaluate import run_evaluate

    columns = {"text_columns": text_column, "label_column": label_column, "label_separator": label_separator}
    config = None if data is None else load_config({"data": {"source": data, **columns, "drop_empty": drop_empty}}).data
    if config is None and (drop_empty or any(value is not None for value in columns.values())):
        raise ConfigError(
            "evaluate: columns without data, got --text-column, --label-column or another flag of tables; expected data they belong to. Name a file, a folder or a data set."
        )
    with ProgressPrinter(is_quiet=quiet) as show:
        result = run_evaluate(
            adapter, config, split=split, precision=precision, device=device, encoder=encoder, threads=threads, abstain_below=abstain_below, on_event=show
        )
    if json:
        print_json(
            {
                **result.evaluation.model_dump(),
                "split": result.split,
                "test_openings": result.test_openings,
                "answered": None if result.answered is None else result.answered.model_dump(),
            }
        )
        return
    from lorabel.cli.tables import print_answered, print_scores

    print_scores(result.evaluation)
    if result.answered is not None:
        print_answered(result.answered)
    if result.split == "test" and not quiet:
        err.print(f"\nThis test split has been opened {result.test_openings} time{'s' if result.test_openings != 1 else ''} so far.")
