"""`lorabel predict`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lorabel.cli.flags import JsonFlag, QuietFlag
from lorabel.cli.output import err, out, print_json
from lorabel.config import Device, Precision
from lorabel.errors import ConfigError, DataError


def predict(
    adapter: Annotated[Path, Parameter(help="Adapter folder, or the run folder that holds it.")],
    file: Annotated[
        str | None, Parameter(allow_leading_hyphen=True, help="CSV, TSV, JSONL or Parquet file (also .gz), or - for CSV, JSONL or Parquet on standard input.")
    ] = None,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Where the table goes; the ending gives the format (default: CSV on standard output).")
    ] = None,
    text: Annotated[tuple[str, ...], Parameter(help="Classify this text instead of a file; may be repeated.", negative=(), show_default=False)] = (),
    text_column: Annotated[tuple[str, ...] | None, Parameter(help="Text columns (default: found).", negative=())] = None,
    prefix: Annotated[str, Parameter(help="Put before the names of added columns.", show_default=False)] = "",
    keep_empty: Annotated[bool, Parameter(help="Leave rows without a text unanswered instead of refusing the table.", negative=(), show_default=False)] = False,
    abstain_below: Annotated[
        float | None, Parameter(help="Leave the label empty where the best probability lies below this, such as 0.8; such rows are counted.")
    ] = None,
    encoder: Annotated[str | None, Parameter(help="Checkpoint folder, where the adapter's encoder cannot be found by name.")] = None,
    precision: Annotated[Precision, Parameter(help="fp32 gives the same bits everywhere; auto is fastest.")] = "auto",
    device: Annotated[Device, Parameter(help="Where to compute.")] = "auto",
    threads: Annotated[int | None, Parameter(help="CPU threads (default: all cores).")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Classify a table, or one text; input columns stay, label, score and probabilities are added."""
    if bool(text) == (file is not None):
        raise ConfigError(
            f'predict: either a file or --text, got {"both" if text else "neither"}; expected one. For example lorabel predict ADAPTER --text "…".'
        )
    if text:
        _check_texts(text, {"--output": output, "--text-column": text_column, "--prefix": prefix, "--keep-empty": keep_empty})
        from lorabel.workflows.preparation import set_threads

        set_threads(threads)
        _predict_texts(adapter, list(text), abstain_below, precision, device, encoder, json)
        return
    if json and output is None:
        raise ConfigError("--json: needs a file for the table, got no --output; expected one, since standard output holds the JSON. Add -o predictions.csv.")
    from lorabel.cli.progress import ProgressPrinter
    from lorabel.workflows.predict import run_predict

    assert file is not None
    with ProgressPrinter(is_quiet=quiet) as show:
        result = run_predict(
            adapter,
            file,
            output,
            text_columns=text_column,
            prefix=prefix,
            precision=precision,
            device=device,
            encoder=encoder,
            threads=threads,
            keep_empty=keep_empty,
            abstain_below=abstain_below,
            on_event=show,
        )
    if json:
        print_json(result)
    elif not quiet:
        unsure = "" if abstain_below is None else f"; {result.abstained:,} left without an answer"
        err.print(f"{result.rows:,} texts: " + ", ".join(f"{label} {count:,}" for label, count in result.counts.items()) + unsure, markup=False)


def _check_texts(texts: tuple[str, ...], flags_of_tables: dict[str, object]) -> None:
    given = [name for name, value in flags_of_tables.items() if value]
    if given:
        raise ConfigError(
            f"predict: a flag for tables beside --text, got {given[0]}; expected a file for it. Put the texts in a file, or leave {given[0]} out."
        )
    empty = [text for text in texts if not text.strip()]
    if empty:
        raise DataError(f"--text: empty text, got {empty[0]!r}; expected a text. Leave it out.")


def _predict_texts(adapter: Path, texts: list[str], abstain_below: float | None, precision: Precision, device: Device, encoder: str | None, json: bool) -> None:
    from lorabel.evaluation import check_abstaining, check_threshold
    from lorabel.workflows.predict import LABEL_SEPARATOR, answer, load

    check_threshold(abstain_below)
    predictor = load(adapter, precision=precision, device=device, encoder=encoder)
    check_abstaining(abstain_below, predictor.rule.task)
    labels = predictor.labels.names
    found = predictor.explain(texts)
    if json:
        rows = [
            {
                "text": text,
                "predicted_label": answer(p, abstain_below),
                "score": p.score,
                "probabilities": dict(zip(labels, map(float, p.probabilities), strict=True)),
            }
            for text, p in zip(texts, found, strict=True)
        ]
        print_json({"predictions": rows})
        return
    for prediction in found:
        others = "  ".join(f"{label} {value:.3f}" for label, value in zip(labels, prediction.probabilities, strict=True))
        given = answer(prediction, abstain_below)
        shown = "(no answer)" if given is None else given if isinstance(given, str) else f" {LABEL_SEPARATOR} ".join(given) or "(no label)"
        out.print(f"{shown}  {prediction.score:.3f}   ({others})", markup=False)
