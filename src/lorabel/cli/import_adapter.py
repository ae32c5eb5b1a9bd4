"""`lorabel import`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lorabel.cli.flags import JsonFlag, QuietFlag
from lorabel.cli.output import out as console
from lorabel.cli.output import print_json


def import_adapter(
    folder: Annotated[Path, Parameter(help="A folder with adapter_config.json and adapter_model.safetensors.")],
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="The adapter folder to make.")],
    labels: Annotated[
        str | None,
        Parameter(
            help="Class names in the order of the head, such as no,yes; or a file: one name a line, or JSON with id2label (default: the encoder's, if it has any)."
        ),
    ] = None,
    encoder: Annotated[str | None, Parameter(help="Name or checkpoint folder (default: the one that the folder names).")] = None,
    max_length: Annotated[int | None, Parameter(help="Longer texts are cut (default: 512 tokens, or what the encoder allows).")] = None,
    task: Annotated[
        Literal["single_label", "multi_label"], Parameter(help="Whether a text has one label or several; the folder does not say.")
    ] = "single_label",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make an adapter of a folder that the PEFT library saved. Where that is installed both answer first; exit code 3 where they differ, and nothing is written then."""
    from lorabel.cli.progress import ProgressPrinter
    from lorabel.workflows.import_adapter import run_import

    with ProgressPrinter(is_quiet=quiet) as show:
        result = run_import(folder, out, labels=labels, encoder=encoder, max_length_tokens=max_length, task=task, on_event=show)
    if json:
        print_json(result)
        return
    parameters = result.parameters
    console.print(f"Method      {result.method['name']}, {result.head} head, on {result.encoder}", markup=False)
    console.print(f"Trainable   {parameters.trainable:,} = adapter {parameters.adapter:,} + head {parameters.head:,}")
    console.print(f"Labels      {', '.join(result.labels)}", markup=False)
    difference = result.largest_difference
    console.print(
        f"Proof       {'none: the PEFT library is not installed' if difference is None else f'the same logits as in the PEFT library: they differ by at most {difference:.1g}'}"
    )
    console.print(f"Adapter     {result.adapter}", markup=False)
