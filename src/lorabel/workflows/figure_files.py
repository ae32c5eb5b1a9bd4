"""Figures on disk: PNG to look at and SVG to print, each drawn once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from lorabel.artifacts.store import write_bytes
from lorabel.reports.figures import png_bytes, svg_bytes


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Write each figure in both forms.

    Args:
        folder: Where to.
        figures: File stem -> figure.

    Returns:
        File stem -> SVG, for a page that shows them.
    """
    drawn = {name: svg_bytes(figure) for name, figure in figures.items()}
    for name, figure in figures.items():
        write_bytes(folder / f"{name}.png", png_bytes(figure))
        write_bytes(folder / f"{name}.svg", drawn[name])
    return drawn
