"""Our tensors under the names the common adapter library writes, and its configuration file.

Checked against version 0.21 of that library: for sequence classification it saves the adapter's tensors and, under the same prefix, the whole
trained head. A folder written here is loaded by it without a warning, and gives the same logits.
"""

from collections.abc import Mapping
from typing import Any

from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.methods.base import Method

_HEAD_MODULES = ("classifier", "score")


def peft_names(method: Method, shape: EncoderShape, head_names: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Our tensor name -> the common library's.

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
        method: A method that has a form in the common library.
        shape: The encoder.
        head: The head; a pooler that is trained with it is saved with it.
        base_model: Name of the base model on the hub.
        revision: Its revision, or None.
    """
    options = method.peft_config(shape)
    assert options is not None, "asked for a method without a form in the common library"
    plain = {key: int(value) if isinstance(value, float) and value.is_integer() and key == "lora_alpha" else value for key, value in options.items()}
    return {
        **plain,
        "base_model_name_or_path": base_model,
        "revision": revision,
        "task_type": "SEQ_CLS",
        "inference_mode": True,
        "modules_to_save": [*_HEAD_MODULES, *(["pooler"] if head.starts_from_pooler else [])],
    }
