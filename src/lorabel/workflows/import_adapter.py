"""`import`: a folder that the PEFT library saved becomes an adapter of ours, which says what it is and answers the same."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorabel.artifacts.adapter import AdapterBundle, AdapterEncoder, AdapterManifest, Canary, expected_tensors, save_adapter
from lorabel.artifacts.canary import CANARY_SENTENCES
from lorabel.artifacts.card import imported_card
from lorabel.artifacts.layout import PEFT_WEIGHTS
from lorabel.artifacts.peft_format import PeftFolder, from_peft, read_peft
from lorabel.artifacts.store import read_json
from lorabel.budget import Parameters, count
from lorabel.config import SHORTEST_LENGTH, EncoderConfig
from lorabel.data.packing import tokenise
from lorabel.data.types import TaskKind
from lorabel.errors import ArtifactError, ConfigError, RefusedError
from lorabel.events import EventSink, Note, ignore
from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.methods.base import Method
from lorabel.models.checkpoint import EncoderSource, load_tokenizer, load_weights, resolve_encoder, weights_digest
from lorabel.workflows.building import canary_logits
from lorabel.workflows.finishing import settled_options
from lorabel.workflows.out_folder import check_out_folder
from lorabel.workflows.preparation import longest_sequence

# float32 sums in another order; measured differences are a hundredth of it.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ImportResult:
    """What `import` did.

    Attributes:
        adapter: The folder that was written.
        method: Its method's options, name included.
        head: The head's kind.
        parameters: Counts.
        labels: Class names in order.
        encoder: The encoder's name.
        max_length_tokens: Longer texts are cut.
        largest_difference: Of the logits of the shipped sentences, here and in the PEFT library; None where that is not installed.
    """

    adapter: Path
    method: dict[str, Any]
    head: str
    parameters: Parameters
    labels: tuple[str, ...]
    encoder: str
    max_length_tokens: int
    largest_difference: float | None


def run_import(
    folder: Path,
    out: Path,
    *,
    labels: str | None = None,
    encoder: str | None = None,
    max_length_tokens: int | None = None,
    task: TaskKind = "single_label",
    on_event: EventSink = ignore,
) -> ImportResult:
    """Make an adapter of a folder of the PEFT library.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.
        out: The adapter folder to make.
        labels: Class names in order, separated by commas, or a file: one name a line, or JSON with `id2label`; None for those of the encoder's own configuration.
        encoder: Name or checkpoint folder; None for the one the folder names.
        max_length_tokens: Longer texts are cut; None for 512, or less where the encoder reads less.
        task: Whether a text has one label or several; the folder does not say.
        on_event: Receives notes.

    Returns:
        What was made.

    Raises:
        ArtifactError: The folder is damaged, lacks its head, or holds what has no place here.
        ConfigError: No equal here, wrong settings, the encoder is not found, or the labels do not fit.
        RefusedError: The PEFT library is installed and answers otherwise; nothing is written.
        StorageError: The disk refused.
    """
    if max_length_tokens is not None and max_length_tokens < SHORTEST_LENGTH:
        raise ConfigError(f"--max-length: too short, got {max_length_tokens}; expected at least {SHORTEST_LENGTH} tokens. Leave it out for 512.")
    out = out.resolve()
    check_out_folder(out, out / ".lock")
    found = read_peft(folder)
    source = resolve_encoder(EncoderConfig(name=encoder or _named_encoder(found), revision=None if encoder else found.text("revision")))
    method, head, tensors = from_peft(found, source.shape)
    _check_shapes(folder, tensors, method, head, source.shape)
    names = _label_names(labels, source, head.classes, on_event)
    length = longest_sequence(max_length_tokens, method, source.shape)
    weights = load_weights(source)
    logits = canary_logits(source, weights, method, head, tensors, length)
    difference = _difference_there(found, source, np.array(logits), length, on_event)
    manifest = AdapterManifest(
        task=task,
        labels=list(names),
        encoder=AdapterEncoder(name=source.name, revision=source.revision, digest=weights_digest(weights), shape=dataclasses.asdict(source.shape)),
        tokenizer_digest=load_tokenizer(source.folder)[1],
        method=settled_options(method),
        head=head.kind,
        pooling=head.pooling,
        max_length_tokens=length,
        metrics={},
        peft_compatible=True,
        peft_reason=None,
        canary=Canary(logits=logits),
    )
    parameters = count(method, head, source.shape)
    save_adapter(out, AdapterBundle(manifest, tensors), imported_card(manifest, parameters))
    return ImportResult(out, settled_options(method), head.kind, parameters, names, source.name, length, difference)


def _named_encoder(found: PeftFolder) -> str:
    named = found.text("base_model_name_or_path")
    if named is None:
        raise ConfigError(f"{found.folder}: names no encoder, got no base_model_name_or_path; expected one. Give it with --encoder.")
    return named


def _check_shapes(folder: Path, tensors: dict[str, Any], method: Method, head: HeadSpec, shape: EncoderShape) -> None:
    """A vector of another length means another encoder, one across instead of along that another end of the layer is scaled."""
    expected = expected_tensors(method, head, shape)
    for name in sorted({*expected, *tensors}):
        got, size = (None if one is None else tuple(one) for one in (tensors[name].shape if name in tensors else None, expected.get(name)))
        if got != size:
            raise ArtifactError(
                f"{folder / PEFT_WEIGHTS}: {name}: does not fit this encoder, got {'nothing' if got is None else f'shape {got}'}; "
                f"expected {'nothing' if size is None else f'shape {size}'}. "
                "Give the encoder it was trained on with --encoder; else the folder uses a form that has no equal here."
            )


def _label_names(given: str | None, source: EncoderSource, classes: int, on_event: EventSink) -> tuple[str, ...]:
    """Class names as asked for, else as the encoder's configuration has them, else by number."""
    if given is None:
        named = _id2label(json.loads((source.folder / "config.json").read_text("utf-8"))) or ()
        if len(named) == classes and len(set(named)) == classes and not all(name.startswith("LABEL_") for name in named):
            on_event(Note(f"Class names are those of the encoder's own configuration: {', '.join(named)}. Others can be given with --labels.", is_warning=True))
            return named
        on_event(
            Note(
                "The PEFT library does not save class names, and none were given with --labels: they are LABEL_0, LABEL_1, … as it would say.", is_warning=True
            )
        )
        return tuple(f"LABEL_{number}" for number in range(classes))
    names = _read_names(given)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise ConfigError(f"--labels: not distinct names, got {twice[0] if twice else 'an empty one'!r}; expected one name per class. Check the list.")
    odd = next((name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)), None)
    if odd is not None:
        raise ConfigError(f"--labels: not text, got {odd!r}; expected names that can be written as UTF-8. Check the list.")
    if len(names) != classes:
        raise ConfigError(f"--labels: the adapter's head has {classes} classes, got {len(names)} names; expected {classes}, in its order. Check the list.")
    return names


def _read_names(given: str) -> tuple[str, ...]:
    """Names separated by commas, or those of a file."""
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:
        is_file = False  # Longer than any path may be: a list of names.
    if not is_file:
        if "," not in given and (path.suffix in (".txt", ".json") or path.is_dir()):
            raise ConfigError(f"--labels: no such file, got {given!r}; expected names separated by commas, or a file of them. Check the path.")
        return tuple(name.strip() for name in given.split(","))
    if path.suffix == ".json":
        names = _id2label(read_json(path.resolve()))
        if not names:
            raise ConfigError(
                f"--labels: no class names, got {given!r}; expected id2label with a name for each number, as a config.json has it. Check the file."
            )
        return names
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--labels: not UTF-8, got byte {error.start} of {given!r}; expected a text file with one name a line. Save it as UTF-8.") from error
    return tuple(line.strip() for line in lines if line.strip())


def _id2label(config: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of a model's configuration in order of their numbers; None where it has none."""
    named = config.get("id2label")
    if not isinstance(named, dict) or not all(key.isdecimal() and isinstance(name, str) for key, name in named.items()):
        return None
    return tuple(named[key] for key in sorted(named, key=int))


def _difference_there(found: PeftFolder, source: EncoderSource, ours: np.ndarray[Any, Any], length: int, on_event: EventSink) -> float | None:
    """Largest difference from the logits that the PEFT library itself gives for the shipped sentences; None where it is not installed.

    Raises:
        RefusedError: They differ by more than rounding.
    """
    if importlib.util.find_spec("peft") is None:
        on_event(Note("Not compared with the PEFT library, which is not installed (pip install 'lorabel[peft]').", is_warning=True))
        return None
    table = tokenise(CANARY_SENTENCES, *load_tokenizer(source.folder), length)
    rows = [torch.from_numpy(row.astype(np.int64))[None] for row in np.split(table.input_ids, table.offsets[1:-1])]
    try:
        with _quiet_libraries(), torch.inference_mode():
            from peft import PeftModel
            from transformers import AutoModelForSequenceClassification

            base = AutoModelForSequenceClassification.from_pretrained(source.folder, num_labels=ours.shape[1], dtype=torch.float32)
            model = PeftModel.from_pretrained(base, found.folder).eval()
            theirs = np.concatenate([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.double().numpy() for ids in rows])
    except Exception as error:
        # Whatever its code makes of a folder that it cannot load: the proof cannot be given, and that is what has to be said.
        said = str(error).strip().splitlines() or [""]
        raise ArtifactError(
            f"{found.folder}: the PEFT library itself cannot load it, got {type(error).__name__}: {said[0]}; expected a folder that it saved. Restore it from a copy."
        ) from error
    difference, most = float(np.abs(ours - theirs).max()), _TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    if not difference <= most:
        raise RefusedError(
            f"{found.folder}: answers otherwise here than in the PEFT library, got logits that differ by {difference:.2g}; expected at most {most:.2g}. "
            "Nothing was written. Check that --encoder is the one it was trained on; else please report it."
        )
    return difference


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """What the libraries say about a head that is about to be replaced, and how they read a file, helps nobody."""
    from transformers.utils import logging as theirs

    before, has_bars = logging.root.manager.disable, theirs.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if has_bars:
            theirs.enable_progress_bar()
