"""The report as one HTML file: no request leaves it, everything in it is escaped."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lorabel.config import flatten
from lorabel.data.types import accuracy_name
from lorabel.reports.figures import MANY_CLASSES
from lorabel.reports.tables import (
    COLUMNS,
    MISSING,
    NOT_COMPARABLE,
    NamedRun,
    are_comparable,
    comparison_rows,
    describe_method,
    duration,
    megabytes,
    number,
    percent,
    with_interval,
)

# Narrow cells break after the score, never within its interval.
_UNBROKEN_DASH = "\u2060–\u2060"


def render_report(runs: Sequence[NamedRun], figures: Sequence[Mapping[str, bytes]], together: Mapping[str, bytes]) -> str:
    """The report of one run, or of several side by side and then one by one.

    Args:
        runs: The runs.
        figures: Of each run, by file stem, as SVG.
        together: Of several runs, by file stem, as SVG; empty where there is one.

    Returns:
        HTML.
    """
    return template("report.html.j2").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side",
        items=[_item(run, drawn) for run, drawn in zip(runs, figures, strict=True)],
        columns=COLUMNS,
        rows=[[cell.replace("–", _UNBROKEN_DASH) for cell in row] for row in comparison_rows(runs)],
        together=pictures(together).values(),
        is_comparable=are_comparable(runs),
        not_comparable=NOT_COMPARABLE,
        many_classes=MANY_CLASSES,
        percent=percent,
        number=number,
        megabytes=megabytes,
        duration=duration,
        with_interval=with_interval,
        accuracy_name=accuracy_name,
        missing=MISSING,
    )


def template(name: str) -> Template:
    """A shipped page, everything put into it escaped.

    Args:
        name: Of its file.
    """
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    loader = PackageLoader("lorabel", "reports/templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _item(run: NamedRun, figures: Mapping[str, bytes]) -> dict[str, Any]:
    record = run.record
    return {
        "name": run.name,
        "record": record,
        "shown": record.metrics.test or record.metrics.validation,
        "split": "test" if record.metrics.test else "validation",
        "method": describe_method(record),
        "figures": pictures(figures),
        "budget_share": min(100.0, 100 * record.parameters.trainable / record.budget),
        "settings": _flat(record.config),
        "plan": _flat(record.plan),
    }


def pictures(figures: Mapping[str, bytes]) -> dict[str, Markup]:
    """Our own SVG, made from numbers and escaped labels; without the XML header it can stand in the page."""
    return {name: Markup(_inline(svg)) for name, svg in figures.items()}


def _inline(svg: bytes) -> str:
    text = svg.decode("utf-8")
    return text[text.index("<svg") :]


def _flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as rows of texts."""
    return [(name, _shown(value)) for name, value in flatten(settings).items()]


def _shown(value: Any) -> str:
    return MISSING if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
