"""Records to tables: one row per run, the same in the terminal, in Markdown and in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorabel.artifacts.records import RunRecord
from lorabel.evaluation import EvalResult
from lorabel.families import LINEAR_SITES

MISSING = "—"
COLUMNS = (
    "run",
    "method",
    "trainable",
    "adapter file",
    "validation accuracy",
    "validation macro-F1",
    "test accuracy",
    "test macro-F1",
    "training",
    "samples/s",
    "peak memory",
)

NOT_COMPARABLE = "These runs were not scored on the same rows, so their scores cannot be compared."


@dataclass(frozen=True)
class NamedRun:
    """A run and the name it goes by.

    Attributes:
        name: Of its folder.
        record: Its record.
    """

    name: str
    record: RunRecord


def are_comparable(runs: Sequence[NamedRun]) -> bool:
    """Whether all runs were scored on the same rows: the test split where it is shown, and the validation split.

    Args:
        runs: The runs.
    """
    splits = ["validation", *(["test"] if any(run.record.metrics.test for run in runs) else [])]
    return all(len({run.record.data["split_digests"].get(name) for run in runs}) == 1 for name in splits)


def comparison_rows(runs: Sequence[NamedRun]) -> list[list[str]]:
    """One row of text per run, in the order of `COLUMNS`.

    Args:
        runs: The runs.
    """
    rows = []
    for run in runs:
        record = run.record
        test = record.metrics.test
        rows.append(
            [
                run.name,
                describe_method(record),
                f"{record.parameters.trainable:,}",
                megabytes(record.bytes.adapter_file),
                with_interval(record.metrics.validation, "accuracy"),
                with_interval(record.metrics.validation, "macro_f1"),
                with_interval(test, "accuracy"),
                with_interval(test, "macro_f1"),
                duration(record.training.seconds),
                f"{record.training.samples_per_second:,.0f}",
                megabytes(record.training.peak_memory_bytes),
            ]
        )
    return rows


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table in columns of equal width, the first to the left, the others to the right; lines are as long as they need to be."""
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    cells = [[line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))] for line in lines]
    return "".join("  ".join(line).rstrip() + "\n" for line in cells)


def latex_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table in LaTeX, for the booktabs package; everything in it is escaped."""
    lines = [
        "% Needs \\usepackage{booktabs}.",
        "\\begin{table}",
        "\\centering",
        "\\small",
        f"\\caption{{{escape_latex(caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        "\\toprule",
        _latex_line(columns),
        "\\midrule",
        *map(_latex_line, rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in cells) + " \\\\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    MISSING: "---",
}


def escape_latex(text: str) -> str:
    """A text as LaTeX shows it, character by character."""
    return "".join(_LATEX.get(character, character) for character in text)


def describe_method(record: RunRecord) -> str:
    """The method in a few words: `lora r=8 (query, value), native head`."""
    options = record.plan.get("method", record.config["method"])
    parts = [str(options["name"])]
    if "rank" in options:
        ranks = options.get("ranks") or {}
        apart = ", ".join(f"{place}: {rank}" for place, rank in ranks.items()) if len(ranks) <= 2 else f"{len(ranks)} places apart"
        parts.append(f"r={options['rank']}" + (f" ({apart})" if ranks else ""))
    targets = options.get("targets")
    if targets:
        parts.append("on all linear layers" if set(targets) == set(LINEAR_SITES) else f"({', '.join(targets)})")
    head = record.plan.get("head", record.config["head"])
    return " ".join(parts) + f", {head['kind']} head, {head['pooling']}"


def number(value: float | None) -> str:
    """Four decimals, or the mark of a missing value."""
    return MISSING if value is None else f"{value:.4f}"


def with_interval(result: EvalResult | None, score: str) -> str:
    """`92.88 % (92.28–93.46)`, or a dash."""
    if result is None:
        return MISSING
    low, high = result.interval[score]
    return f"{percent(getattr(result, score))} ({100 * low:.2f}–{100 * high:.2f})"


def percent(share: float) -> str:
    """`92.88 %`."""
    return f"{100 * share:.2f} %"


def signed_points(share: float, digits: int = 2) -> str:
    """`+0.41` or `−0.12` percentage points; what rounds to zero is `+0.00`, from either side."""
    # Rounded first: a negative zero would keep its sign.
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}".replace("-", "−")


def megabytes(count: int) -> str:
    """`3.61 MB`, with fewer decimals where it is large."""
    size = count / 1e6
    return f"{size:.2f} MB" if size < 100 else f"{size:,.0f} MB"


def duration(seconds: float) -> str:
    """`45 s`, `12 min 30 s` or `1 h 05 min`."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
