"""Tables of runs and scores for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from lorabel.cli.output import out
from lorabel.evaluation import Answered, EvalResult
from lorabel.reports.tables import COLUMNS, NamedRun, comparison_rows, number, percent, with_interval


def print_runs(runs: Sequence[NamedRun]) -> None:
    """One run as lines, several as a table with a column per run."""
    rows = comparison_rows(runs)
    table = Table(show_header=len(runs) > 1, box=None, pad_edge=False)
    table.add_column("")
    for row in rows:
        table.add_column(row[0], overflow="fold")
    for index, name in enumerate(COLUMNS):
        if index == 0 and len(runs) > 1:
            continue
        table.add_row(f"[bold]{name}[/bold]", *(row[index] for row in rows))
    out.print(table)


def print_scores(result: EvalResult) -> None:
    """Overall and per-class scores and the confusion matrix, where there is one."""
    out.print(f"accuracy  {with_interval(result, 'accuracy')}" + ("" if result.confusion_matrix else "   (all labels of a text found exactly)"))
    out.print(f"macro-F1  {with_interval(result, 'macro_f1')}")
    if result.micro_f1 is not None:
        out.print(f"micro-F1  {with_interval(result, 'micro_f1')}   ranking precision (LRAP) {number(result.lrap)}")
    out.print(f"rows      {result.n:,}   cross-entropy {result.loss:.4f}   (95 % bootstrap intervals)")
    out.print(f"ECE       {number(result.ece)}   Brier {number(result.brier)}   log-loss {number(result.log_loss)}\n")
    table = Table(box=None, pad_edge=False)
    thresholds = ["threshold"] if result.confusion_matrix is None else []
    for name in ("class", "precision", "recall", "F1", "rows", *thresholds):
        table.add_column(name, justify="left" if name == "class" else "right")
    for label in result.labels:
        scores = result.per_class[label]
        cells = [percent(scores.precision), percent(scores.recall), percent(scores.f1), f"{scores.support:,}"]
        table.add_row(label.replace("[", "\\["), *cells, *("" if scores.threshold is None else f"{scores.threshold:.3f}" for _ in thresholds))
    out.print(table)
    if len(result.labels) > 12 or result.confusion_matrix is None:
        return
    matrix = Table(box=None, pad_edge=False, title="true ↓  predicted →", title_justify="left", title_style="dim")
    matrix.add_column("")
    for label in result.labels:
        matrix.add_column(label.replace("[", "\\["), justify="right")
    for label, counts in zip(result.labels, result.confusion_matrix, strict=True):
        matrix.add_row(label.replace("[", "\\["), *(f"{count:,}" for count in counts))
    out.print(matrix)


def print_answered(answered: Answered) -> None:
    """Coverage and accuracy where unsure rows go unanswered."""
    accuracy = "none" if answered.accuracy is None else percent(answered.accuracy)
    out.print(f"\nAnswered from probability {answered.threshold:g} up: {answered.n:,} rows, coverage {percent(answered.coverage)}, accuracy {accuracy}")
