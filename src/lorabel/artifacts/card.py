"""The model card: what the adapter is, what was measured, and how to load it."""

import html
import re
from collections.abc import Sequence

import yaml

from lorabel.artifacts.adapter import AdapterManifest
from lorabel.artifacts.records import RunRecord
from lorabel.budget import Parameters
from lorabel.data.types import TaskKind
from lorabel.evaluation import EvalResult


def model_card(record: RunRecord) -> str:
    """Markdown with a YAML header, written from the record of a run.

    Args:
        record: The run.
    """
    method = str(record.config["method"]["name"])
    lines = _head_part(method, record.encoder.name, record.task, record.labels, is_peft=record.peft_compatible)
    lines += [
        f"{record.parameters.trainable:,} trained parameters (adapter {record.parameters.adapter:,}, head {record.parameters.head:,}) "
        f"over a frozen encoder of {record.parameters.encoder:,}; file size {record.bytes.adapter_file / 1e6:.2f} MB."
        if record.parameters.trainable == record.parameters.adapter + record.parameters.head
        else f"All {record.parameters.trainable:,} parameters were trained; file size {record.bytes.adapter_file / 1e6:.1f} MB.",
        "",
        "## Measured",
        "",
        f"| split | rows | {'accuracy' if record.task == 'single_label' else 'subset accuracy'} (95 % interval) | macro-F1 (95 % interval) | ECE | Brier | log-loss |",
        "|---|---|---|---|---|---|---|",
        _row("validation", record.metrics.validation),
    ]
    if record.metrics.test is not None:
        lines.append(_row("test", record.metrics.test))
        lines += ["", f"This test split has been opened {record.test_openings} time{'s' if record.test_openings != 1 else ''} so far."]
    else:
        lines += ["", "The validation split chose the checkpoint; the test split was not opened."]
    lines += _calibration_part(record)
    lines += _thresholds_part(record)
    lines += [*_USE, *(_peft_part(record.encoder.name, record.task, record.labels) if record.peft_compatible else [])]
    if not record.peft_compatible:
        lines.append(f"The PEFT library cannot load this folder: {record.peft_reason}.")
    lines += [
        "",
        "## Training",
        "",
        f"Data: {_plain(str(record.data.get('source')))}, {record.data['rows'].get('train'):,} training rows. Seed {record.seed}. ",
    ]
    lines += [f"lorabel {record.versions['lorabel']}, torch {record.versions['torch']}, {record.training.seconds:.0f} s."]
    return "\n".join(lines) + "\n"


def imported_card(manifest: AdapterManifest, parameters: Parameters) -> str:
    """The card of an adapter that another library trained: what it is and how to load it; nothing was measured here.

    Args:
        manifest: The adapter's.
        parameters: Its counts.
    """
    encoder, task, labels = manifest.encoder.name, manifest.task, manifest.labels
    lines = _head_part(str(manifest.method["name"]), encoder, task, labels, is_peft=True)
    lines += [
        f"{parameters.trainable:,} trained parameters (adapter {parameters.adapter:,}, head {parameters.head:,}) over a frozen encoder of {parameters.encoder:,}.",
        "",
        "Imported from a folder of the PEFT library. Nothing was measured since: `lorabel evaluate path/to/adapter table.csv` does it.",
        *_USE,
        *_peft_part(encoder, task, labels),
    ]
    return "\n".join(lines) + "\n"


_USE = [
    "",
    "## Use",
    "",
    "```python",
    "import lorabel",
    "",
    'classifier = lorabel.load("path/to/adapter")',
    'classifier.predict(["some text"])',
    "```",
    "",
]


def _head_part(method: str, encoder: str, task: TaskKind, labels: Sequence[str], *, is_peft: bool) -> list[str]:
    """The header, the title, and the classes."""
    facts = {"library_name": "peft" if is_peft else "lorabel", "base_model": encoder, "pipeline_tag": "text-classification"}
    header = yaml.safe_dump({**facts, "tags": ["text-classification", method, "lorabel"]}, sort_keys=False, allow_unicode=True)
    lines = ["---", *header.splitlines(), "---", "", f"# {method} classifier on {_plain(encoder)}", ""]
    kind = "Classes" if task == "single_label" else "Labels, of which a text may have any number"
    return [*lines, f"{kind}, in order: {', '.join(map(_plain, labels))}.", ""]


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, in one line and in a table's cell: names come from tables and folders, and may hold anything."""
    one_line = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)
    return re.sub(r"([\\`*_\[\]~#])", r"\\\1", html.escape(one_line, quote=False)).replace("|", "&#124;")


def _row(name: str, result: EvalResult) -> str:
    accuracy, macro = result.interval["accuracy"], result.interval["macro_f1"]
    return (
        f"| {name} | {result.n:,} | {100 * result.accuracy:.2f} % ({100 * accuracy[0]:.2f}–{100 * accuracy[1]:.2f}) "
        f"| {100 * result.macro_f1:.2f} % ({100 * macro[0]:.2f}–{100 * macro[1]:.2f}) "
        f"| {_number(result.ece)} | {_number(result.brier)} | {_number(result.log_loss)} |"
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _calibration_part(record: RunRecord) -> list[str]:
    found = record.calibration
    if found is None:
        return []
    reason = "" if found.note is None else f" ({found.note})"
    return [
        "",
        f"Logits are divided by a temperature of {found.temperature:.3f}{reason}, fitted on the {found.n:,} validation rows, where the expected calibration error went from "
        f"{found.ece_before:.4f} to {found.ece_after:.4f}. "
        + ("No answer changes by it; other" if record.task == "single_label" else "Other")
        + " tools that read the weights do not apply it.",
    ]


def _thresholds_part(record: RunRecord) -> list[str]:
    """From which probability each of several labels is given: without it the weights answer otherwise."""
    if record.task == "single_label":
        return []
    thresholds = dict(zip(record.labels, record.rule.thresholds or (0.5,) * len(record.labels), strict=True))
    said = "A label is given where the sigmoid of its logit over the temperature reaches its threshold; other tools must do the same to answer alike:"
    rows = [f"| {_plain(name)} | {value:.3f} |" for name, value in thresholds.items()]
    return ["", said, "", "| label | threshold |", "|---|---|", *rows]


def _peft_part(encoder: str, task: TaskKind, labels: Sequence[str]) -> list[str]:
    """How the PEFT library loads the folder."""
    id2label = "{" + ", ".join(f"{index}: {label!r}" for index, label in enumerate(labels)) + "}"
    label2id = "{" + ", ".join(f"{label!r}: {index}" for index, label in enumerate(labels)) + "}"
    return [
        "The folder is also an adapter of the PEFT library; `num_labels` and the names must be given there:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForSequenceClassification",
        "",
        "base = AutoModelForSequenceClassification.from_pretrained(",
        f"    {encoder!r}, num_labels={len(labels)}," + (' problem_type="multi_label_classification",' if task == "multi_label" else ""),
        f"    id2label={id2label},",
        f"    label2id={label2id},",
        ")",
        'model = PeftModel.from_pretrained(base, "path/to/adapter")',
        "```",
    ]
