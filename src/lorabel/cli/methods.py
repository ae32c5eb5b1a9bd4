"""`lorabel methods`."""

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from lorabel.cli.flags import JsonFlag
from lorabel.cli.output import out, print_json
from lorabel.config import read_recipe
from lorabel.workflows.methods import MethodFacts, run_methods


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "—"


def methods(name: Annotated[str | None, Parameter(help="One method, to see its options.")] = None, *, json: JsonFlag = False) -> None:
    """List the methods, or explain one."""
    found = run_methods(name)
    if json:
        print_json({"methods": found})
    elif name is None:
        _print_all(found)
    else:
        _print_one(found[0])


def _print_all(found: Sequence[MethodFacts]) -> None:
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("method", "left"),
        ("what it trains", "left"),
        ("rate", "right"),
        ("trainable*", "right"),
        ("merges", "left"),
        ("PEFT", "left"),
        ("source", "left"),
    ):
        # The summary gives way where the terminal is narrow.
        table.add_column(title, justify=justify, no_wrap=title != "what it trains")  # type: ignore[arg-type]
    for facts in found:
        table.add_row(
            facts.name,
            facts.summary,
            f"{facts.learning_rate:g}",
            f"{facts.parameters:,}" if facts.parameters else "all",
            *map(_yes, (facts.merges, facts.peft)),
            facts.paper.rpartition(", ")[2],
        )
    out.print(table)
    out.print(
        "rate: default learning rate; * with its defaults, on the embedded encoder with 4 classes, head included; "
        "merges: into the encoder's own weights; PEFT: with --head native, the adapter is one of the PEFT library too; lorabel methods NAME says more",
        style="dim",
    )


def _print_one(facts: MethodFacts) -> None:
    size = "the whole encoder" if facts.parameters is None else f"{facts.parameters:,} with its defaults, on the embedded encoder with 4 classes, head included"
    # Another head than the family's own would keep the library from building the model.
    beside = "" if facts.peft_note.startswith("none") else " The head has to be the family's own, reading the first token (--head native)."
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for title, text in (
        ("Method", f"{facts.name}: {facts.summary}"),
        ("Paper", facts.paper),
        ("Rate", f"{facts.learning_rate:g} where none is given"),
        ("Trainable", size),
        ("Merges", "yes, into the encoder's own weights" if facts.merges else "no"),
        ("PEFT", facts.peft_note + beside),
        *facts.explanation.items(),
    ):
        rows.add_row(title, Text(text))
    out.print(rows)
    out.print(
        "D_in, D_out: of a site's weight; D: width of the encoder; E: of its embeddings; R: rank or width; P: trained tokens; C: classes; ∘ is element by element",
        style="dim",
    )
    if not facts.options:
        return
    options = Table(box=None, pad_edge=False, title="\nOptions (--set method.NAME=VALUE, some have flags)", title_justify="left", title_style="bold")
    for title in ("option", "default", "values", "what it does"):
        options.add_column(title)
    for option in facts.options:
        default = ", ".join(option.default) if isinstance(option.default, tuple) else str(option.default).lower() if option.type == "bool" else option.default
        options.add_row(option.name, "—" if default is None else str(default), option.values, option.help)
    out.print(options)
    recipe = read_recipe("default")["method"]
    given = [f"{key}={','.join(value) if isinstance(value, list) else value}" for key, value in recipe.items() if key != "name"]
    if recipe["name"] == facts.name and given:
        out.print(f"\nThese are the method's own; the default recipe, which train and plan start from, sets {', '.join(given)}.", style="dim")
