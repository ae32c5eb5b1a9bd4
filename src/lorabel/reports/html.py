"""The report as one HTML file: no request leaves it, everything in it is escaped."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from lorabel.reports.figures import svg_bytes
from lorabel.reports.tables import COLUMNS, MISSING, NamedRun, comparison_rows, describe_method, duration, megabytes, percent, with_interval


def render_report(runs: Sequence[NamedRun], figures: Mapping[str, Figure]) -> str:
    """The report of one run, or of several side by side.

    Args:
        runs: The runs; the first one is described in full.
        figures: Of the first run, by file stem.

    Returns:
        HTML.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("lorabel").joinpath("reports", "templates", "report.html.j2").read_text("utf-8"))
    first = runs[0].record
    shown = first.metrics.test or first.metrics.validation
    return template.render(
        run=runs[0],
        record=first,
        shown=shown,
        split="test" if first.metrics.test else "validation",
        method=describe_method(first),
        columns=COLUMNS,
        rows=comparison_rows(runs) if len(runs) > 1 else [],
        # Our own SVG, made from numbers and escaped labels; without the XML header it can stand in the page.
        figures={name: Markup(_inline(svg_bytes(figure))) for name, figure in figures.items()},
        budget_share=min(100.0, 100 * first.parameters.trainable / first.budget),
        settings=_flat(first.config),
        plan=_flat(first.plan),
        percent=percent,
        megabytes=megabytes,
        duration=duration,
        with_interval=with_interval,
        missing=MISSING,
    )


def _inline(svg: bytes) -> str:
    text = svg.decode("utf-8")
    return text[text.index("<svg") :]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            shown = MISSING if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{key}", shown))
    return rows
