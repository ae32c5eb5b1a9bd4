"""The bundled sample: short news items in four classes, written for this project under CC0; it demonstrates, it is no quality figure."""

from importlib.resources import files
from pathlib import Path


def sample_files() -> dict[str, Path]:
    """Split name -> file of the bundled news sample."""
    folder = files("lorabel").joinpath("samples", "news")
    return {name: Path(str(folder.joinpath(f"{name}.csv"))) for name in ("train", "validation", "test")}
