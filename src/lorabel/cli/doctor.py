"""`lorabel doctor`."""

from typing import Any

from lorabel.cli.flags import JsonFlag
from lorabel.cli.output import out, print_json


def doctor(*, json: JsonFlag = False) -> None:
    """Say what this machine has, what is missing, and what to install."""
    from lorabel.workflows.doctor import run_doctor

    result = run_doctor()
    if json:
        print_json(result)
        return
    for name, value in result.facts.items():
        out.print(f"{name.removesuffix('_bytes').replace('_', ' '):18} {_shown(name, value)}", markup=False)
    for sentence in result.advice:
        out.print(f"\n→ {sentence}", markup=False)
    if not result.advice:
        out.print("\nNothing is missing.")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "—"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item or 'not installed'}" for key, item in value.items())
    if name.endswith("_bytes") and value is not None:
        return f"{value / 1e9:.1f} GB"
    return "—" if value is None else str(value)
