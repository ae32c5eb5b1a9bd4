"""The PEFT library's folders: our tensors under its names with its configuration file, and its own read as ours.

Checked against version 0.21 of that library: for sequence classification it saves the adapter's tensors and, under the same prefix, the whole
trained head. A folder written here is loaded by it without a warning, and gives the same logits; so does what is read here.

Reading is strict: a tensor that finds no place, or a place without a tensor, is an error. A pickle is never opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabel.artifacts.layout import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS
from lorabel.artifacts.store import read_json, read_tensors
from lorabel.errors import ArtifactError, ConfigError
from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec, make_head
from lorabel.methods.base import Method
from lorabel.methods.base_peft import PeftFile
from lorabel.registry import METHODS

_HEAD_MODULES = ("classifier", "score")
_PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class PeftFolder:
    """A folder that the PEFT library saved.

    Attributes:
        folder: Where it lies.
        config: Content of `adapter_config.json`.
        tensors: Those of its file by their names, float32.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Any]

    def text(self, name: str) -> str | None:
        """A setting that is a text, or None where it is missing.

        Raises:
            ArtifactError: Something else.
        """
        value = self.config.get(name)
        if value is not None and not isinstance(value, str):
            raise ArtifactError(f"{self.folder / PEFT_CONFIG}: {name}: got {value!r}; expected a text. Restore the file from a copy.")
        return value or None


def peft_names(method: Method, shape: EncoderShape, head_names: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Our tensor name -> the PEFT library's.

    Args:
        method: The method.
        shape: The encoder.
        head_names: The head's tensor names (`head.…`) and shapes.
    """
    names = {spec.name: method.peft_key(spec, shape) for spec in (*method.parameters(shape), *method.constants(shape))}
    return names | {name: f"{method.peft_root}{name.removeprefix('head.')}" for name in head_names}


def peft_config(method: Method, shape: EncoderShape, head: HeadSpec, base_model: str, revision: str | None) -> dict[str, Any]:
    """Content of `adapter_config.json`.

    Args:
        method: A method that has a form in the PEFT library.
        shape: The encoder.
        head: The head; a pooler that is trained with it is saved with it.
        base_model: Name of the base model on the hub.
        revision: Its revision, or None.
    """
    options = method.peft_config(shape)
    assert options is not None, "asked for a method without a form in the PEFT library"
    plain = {key: int(value) if isinstance(value, float) and value.is_integer() and key == "lora_alpha" else value for key, value in options.items()}
    return {
        **plain,
        "base_model_name_or_path": base_model,
        "revision": revision,
        "task_type": "SEQ_CLS",
        "inference_mode": True,
        "modules_to_save": [*_HEAD_MODULES, *(["pooler"] if head.starts_from_pooler else [])],
    }


def read_peft(folder: Path) -> PeftFolder:
    """Read a folder of the PEFT library; links, as a hub's cache has them, are followed.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ArtifactError: Missing, damaged, a pickle, of another task than sequence classification, or an adapter of ours already.
    """
    import torch

    config_file, weights = folder / PEFT_CONFIG, folder / PEFT_WEIGHTS
    if (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder}: an adapter of lorabel already, got a {MANIFEST}; expected a folder of the PEFT library alone. Use it as it is.")
    if not config_file.exists():
        raise ArtifactError(f"{folder}: not a folder of the PEFT library, got no {PEFT_CONFIG}; expected one. Check the path.")
    if not weights.exists() and (folder / _PICKLE).exists():
        raise ArtifactError(
            f"{folder / _PICKLE}: a pickle, which can run any code, got no {PEFT_WEIGHTS} beside it; expected safetensors. "
            "Load it there and save it again, which writes that file."
        )
    config = read_json(_followed(config_file))
    if config.get("task_type") not in ("SEQ_CLS", None):
        raise ArtifactError(
            f"{config_file}: made for another task, got task_type {config['task_type']!r}; expected 'SEQ_CLS'. Only sequence classifiers can be imported."
        )
    tensors = read_tensors(_followed(weights))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ArtifactError(
                f"{weights}: {name}: not numbers with a fraction, got {tensor.dtype}; expected float32, float16 or bfloat16. Save it unquantised."
            )
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{weights}: {name}: values that are not finite, got NaN or infinity; expected numbers. Its training diverged.")
    return PeftFolder(folder, config, {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()})


def _followed(file: Path) -> Path:
    """Where a link leads."""
    try:
        return file.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"{file}: leads nowhere, got {type(error).__name__}; expected a file. Restore it from a copy.") from error


def from_peft(found: PeftFolder, shape: EncoderShape) -> tuple[Method, HeadSpec, dict[str, Any]]:
    """Method, head and tensors that answer as the folder does.

    Args:
        found: The folder.
        shape: The encoder.

    Returns:
        The method, the head, and their tensors by our names.

    Raises:
        ConfigError: A method, or a form of one, that has no equal here, or settings that are wrong.
        ArtifactError: No trained head, tensors without a place here, or places without a tensor that fits.
    """
    file = PeftFile(found.config, found.tensors)
    try:
        method, tensors = _method_of(file, shape)
        head, trained = _head_of(file, method.peft_root, shape)
    except ConfigError as error:
        raise ConfigError(f"{found.folder}: {error}") from error
    if file.left:
        raise ArtifactError(
            f"{found.folder / PEFT_WEIGHTS}: {len(file.left)} tensors have no place here, got {min(file.left)!r}; expected the adapter's and the {shape.names.name} family's head. "
            "Give the encoder it was trained on, or train again without what made them."
        )
    return method, head, tensors | trained


def _method_of(file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Any]]:
    kinds = [entry for _, entry in METHODS.items() if issubclass(entry, Method)]
    made = next((one for one in (entry.from_peft(file, shape) for entry in kinds) if one is not None), None)
    if made is None:
        raise ConfigError(
            f"{PEFT_CONFIG}: a method that has no equal here, got peft_type {file.kind!r}; expected one of those that `lorabel methods` marks. "
            "Merge it there, where it can be, and give the result as the encoder."
        )
    if made[0].peft_config(shape) is None:
        raise ConfigError(f"{PEFT_CONFIG}: {file.kind} does not work there with the {shape.names.name} family; expected another encoder. Check --encoder.")
    return made


def _head_of(file: PeftFile, root: str, shape: EncoderShape) -> tuple[HeadSpec, dict[str, Any]]:
    """Take the trained head out."""
    family = shape.names
    output = next(layer for layer in family.native_head if layer.to_classes)
    weight = file.left.get(f"{root}{output.key}.weight")
    if weight is None:
        raise ConfigError(
            f"{PEFT_WEIGHTS}: no trained head, got no {output.key!r}; expected the {family.name} family's. "
            "It was saved without one: train again there with task_type SEQ_CLS, which saves it."
        )
    classes = len(weight) if weight.dim() else 0
    if classes < 2:
        raise ConfigError(f"{PEFT_WEIGHTS}: no classifier, got a head with {classes} output; expected at least 2 classes. A regression cannot be imported.")
    has_pooler = family.has_pooler and f"{root}{family.prefix}.pooler.dense.weight" in file.left
    head = make_head(shape, "native-pooler" if has_pooler else "native", "cls", classes)
    keys = {f"{layer.key}.{part}": dimensions for layer in head.layers for part, dimensions in (("weight", 2), ("bias", 1))}
    missing = [key for key in keys if f"{root}{key}" not in file.left]
    if missing:
        raise ConfigError(
            f"{PEFT_WEIGHTS}: part of the head is missing, got no {missing[0]!r}; expected all of {', '.join(keys)}. Train again there with modules_to_save naming them all."
        )
    return head, {f"head.{key}": file.take(f"{root}{key}", dimensions) for key, dimensions in keys.items()}
