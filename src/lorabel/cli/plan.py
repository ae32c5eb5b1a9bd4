"""`lorabel plan`."""

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from lorabel.budget import Alternative, Budget
from lorabel.cli.flags import JsonFlag
from lorabel.cli.options import SettingFlags
from lorabel.cli.output import err, out, print_json
from lorabel.config import load_config
from lorabel.workflows.plan import BYTES_PER_PARAMETER, MethodPlan, PlanResult, run_plan, run_plan_all


def plan(
    *,
    classes: Annotated[int, Parameter(help="Number of classes.")] = 4,
    all_methods: Annotated[bool, Parameter(help="Show what every method can do within the budget.", negative=())] = False,
    flags: SettingFlags = SettingFlags(),  # noqa: B008
    json: JsonFlag = False,
) -> None:
    """Count parameters and check the budget; needs no network and no torch. Exit code 2 where the budget is exceeded."""
    from lorabel.errors import BudgetError, ConfigError

    if classes < 2:
        raise ConfigError(f"--classes: too few, got {classes}; expected at least 2. Give the number of different labels.")
    if all_methods:
        budget, plans = run_plan_all(load_config(*flags.layers_of_settings()), classes)
        if json:
            print_json({"budget": {"limit": budget.limit}, "methods": [one.as_json() for one in plans]})
        else:
            _print_methods(budget, plans)
        return
    result = run_plan(load_config(*flags.layers_of_settings()), classes)
    if json:
        print_json(result.as_json())
    else:
        _print(result)
    if not result.fits and not result.is_exempt:
        choices = (
            "\n".join(f"  {entry.as_flags()}   ({entry.parameters.trainable:,})" for entry in result.nearest)
            or "  none found: raise the budget or choose a smaller encoder"
        )
        raise BudgetError(
            f"budget: too many trainable parameters, got {result.parameters.trainable:,}; expected at most {result.budget.limit:,}. Nearest settings that fit:\n{choices}"
        )


def _print_alternatives(result: PlanResult) -> None:
    """What else the budget allows, the chosen setting first."""
    table = Table(box=None, pad_edge=False)
    for title, justify in (("within the budget", "left"), ("head", "left"), ("trainable", "right"), ("file, MB", "right")):
        # What is to be copied is broken where the terminal is narrow, never cut.
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for entry in ([result.chosen] if result.fits else []) + result.alternatives:
        mark = " (chosen)" if entry is result.chosen else ""
        table.add_row((entry.size_flags() or "as it is") + mark, entry.head, *_counts(entry))
    out.print()
    out.print(table)


def _counts(entry: Alternative) -> tuple[str, str]:
    """Trained parameters, and megabytes of the adapter's file."""
    return f"{entry.parameters.trainable:,}", f"{entry.stored * BYTES_PER_PARAMETER / 1e6:.2f}"


def _print_methods(budget: Budget, plans: list[MethodPlan]) -> None:
    table = Table(box=None, pad_edge=False)
    for title, width in (("method", 11), ("size", 12), ("trainable", None), ("MB", None), ("the largest that fits", 12), ("trainable", None), ("MB", None)):
        # Numbers are never cut or broken; what is said beside them may go on in the next line.
        table.add_column(title, justify="left" if width else "right", min_width=width, no_wrap=width is None, overflow="fold")
    for plan in plans:
        if plan.setting is None:
            table.add_row(plan.method, "nothing fits")
            continue
        larger = ("—",) if plan.largest is None else (plan.largest.size_flags(), *_counts(plan.largest))
        table.add_row(plan.method, plan.setting.size_flags() or "its own", *_counts(plan.setting), *larger)
    out.print(table)
    out.print(f"Budget {budget.limit:,}, head included. Full fine-tuning is a baseline and has no budget. MB: of the adapter's file.", style="dim")


def _print(result: PlanResult) -> None:
    p = result.parameters
    table = Table(box=None, pad_edge=False)
    table.add_column("group")
    table.add_column("parameters", justify="right")
    table.add_column("trained", justify="right")
    for name, (size, trained) in result.groups.items():
        table.add_row(name, f"{size:,}", f"{trained:,}" if trained else "—")
    table.add_row("[bold]total[/bold]", f"[bold]{p.total:,}[/bold]", f"[bold]{p.trainable:,}[/bold]")
    out.print(table)
    out.print(
        f"\nTrainable   {p.trainable:,} = adapter {p.adapter:,} + head {p.head:,}"
        + (" + encoder" if p.trainable > p.adapter + p.head else "")
        + f"   ({100 * p.trainable / p.total:.2f} % of {p.total:,})"
    )
    verdict = "fits" if result.fits else "does not apply: full fine-tuning is a baseline" if result.is_exempt else "DOES NOT FIT"
    out.print(f"Budget      {result.budget.limit:,}: {verdict}")
    for reason in result.reasons:
        out.print(f"Chosen      {reason}", markup=False)
    out.print(f"Files       adapter {result.adapter_file_bytes / 1e6:.2f} MB, full model {result.full_model_bytes / 1e6:,.0f} MB")
    if not result.is_exempt:
        out.print(
            f"Other tools print {p.total_with_head_twice:,} parameters in all: they keep a frozen copy of the head beside the trained one and count it twice."
        )
    if result.alternatives:
        _print_alternatives(result)
    if result.peft_reason:
        err.print(f"The PEFT library will not be able to load it: {result.peft_reason}.")
