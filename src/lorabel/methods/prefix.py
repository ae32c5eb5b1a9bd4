"""Prefix tuning: every layer attends to P trained keys and values before those of the text.

Source: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", equations 2 and 3; keys and values of every layer for classification: Liu et al. 2021,
"P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks", section 3.2.

Equation: head = Attention(q, [P_k; K], [P_v; V]), P_k and P_v (P, D) of each layer; with `reparameterise`, [P_k; P_v] = W₂·tanh(W₁·e + b₁) + b₂ for each of the P tokens.

Parameters: 2 · P · layers · D; with `reparameterise`, P · D + H · D + H + (H + 1) · 2 · layers · D in training for width H, and as much stored as without.

Departures: with `reparameterise`, two layers with a tanh give the prefix in training, as in the paper's appendix; what they give is stored in their place. Positions of the text start after
the prefix, as in the PEFT library, unless `shift_positions` is off.

PEFT: its prefix tuning, with `shift_positions` alone (the default), and not for DistilBERT, which takes no keys from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.methods.base import Method, ParameterSpec, largest, make_method, prefix_of_layer
from lorabel.methods.base_peft import PeftFile
from lorabel.registry import METHODS

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "prefix"
_LONGEST = 256


@METHODS.register("prefix")
class Prefix(Method):
    """Trained keys and values that every token of every layer attends to."""

    name: ClassVar[str] = "prefix"
    paper: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190"
    default_learning_rate: ClassVar[float] = 9e-2
    # Of the two layers that give it; at the plain form's rate they end at one class (benchmarks/methods.py).
    reparameterised_learning_rate: ClassVar[float] = 3e-3
    starts_unchanged: ClassVar[bool] = False
    has_prefix: ClassVar[bool] = True
    peft_root: ClassVar[str] = "base_model."
    can_merge: ClassVar[bool] = False
    shared_options: ClassVar[tuple[str, ...]] = ("shift_positions",)

    length: int = Field(default=20, ge=1, le=_LONGEST, description="Trained keys and values per layer, P.")
    reparameterise: bool = Field(default=False, description="Train two layers that give the prefix; only the prefix is stored.")
    reparameterised_width: int = Field(default=64, ge=1, description="Width of those layers.")
    shift_positions: bool = Field(default=True, description="Positions of the text start after the prefix, as in the PEFT library.")

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """`prefix` (P, 2 · layers · D), of each layer keys before values, 2·P·layers·D parameters; or the layers that give it, P·D + H·D + H + (H + 1)·2·layers·D for width H."""
        width, whole = shape.hidden_size, 2 * shape.num_layers * shape.hidden_size
        if not self.reparameterise:
            return (ParameterSpec(_PREFIX, (self.length, whole), 0, _PREFIX, _PREFIX, "normal", 0.02),)
        hidden = self.reparameterised_width
        return (
            ParameterSpec("prefix.embedding", (self.length, width), 0, _PREFIX, "embedding", "normal"),
            ParameterSpec("prefix.first", (hidden, width), 0, _PREFIX, "first", "kaiming_uniform"),
            ParameterSpec("prefix.first_bias", (hidden,), 0, _PREFIX, "first_bias", has_decay=False),
            ParameterSpec("prefix.second", (whole, hidden), 0, _PREFIX, "second", "kaiming_uniform"),
            ParameterSpec("prefix.second_bias", (whole,), 0, _PREFIX, "second_bias", has_decay=False),
        )

    @classmethod
    def prefix(cls, members: Sequence[Self], layer: int, tensors: Mapping[str, Tensor], shape: EncoderShape) -> Tensor | None:
        """The layer's keys and values, (K, 2, P, D)."""
        whole = tensors[_PREFIX] if _PREFIX in tensors else _given_by_layers(tensors)
        return prefix_of_layer(whole, layer, shape)

    def learning_rate_for(self, head: HeadSpec) -> float:
        """The prefix itself needs a much higher rate than layers that give it."""
        return self.reparameterised_learning_rate if self.reparameterise else self.default_learning_rate

    def position_shift(self) -> int:
        """P, unless it is turned off."""
        return self.length if self.shift_positions else 0

    def reserved_tokens(self) -> int:
        """Positions that the shift takes up."""
        return self.position_shift()

    def stored_form(self) -> Method:
        """The prefix itself, whatever gave it."""
        return self.model_copy(update={"reparameterise": False}) if self.reparameterise else self

    def folded(self, tensors: Mapping[str, Tensor], shape: EncoderShape) -> tuple[Method, dict[str, Tensor]]:
        """The prefix itself, in place of the layers that gave it."""
        if not self.reparameterise:
            return self, dict(tensors)
        given = {name: tensor[None] for name, tensor in tensors.items() if name.startswith("prefix.")}
        rest = {name: tensor for name, tensor in tensors.items() if name not in given}
        return self.stored_form(), {_PREFIX: _given_by_layers(given)[0].contiguous(), **rest}

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`PrefixTuningConfig` of the PEFT library; None where it has no such form: without the shift, and for DistilBERT, which takes no keys from outside."""
        if not self.shift_positions or not shape.names.takes_past_keys:
            return None
        return {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": self.length,
            "token_dim": shape.hidden_size,
            "num_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
            "encoder_hidden_size": shape.hidden_size,
        }

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """Its prefix; whatever gave it in training, the file holds the prefix itself."""
        if file.kind != "PREFIX_TUNING":
            return None
        return make_method({"name": cls.name, "length": file.count("num_virtual_tokens")}), {_PREFIX: file.take("prompt_embeddings")}

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """One tensor for all layers."""
        return "prompt_embeddings"

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The longest prefix that fits; where layers give it and even the shortest does not, the largest width of those layers."""
        length = min(largest(lambda p: cls(**{**options, "length": p}).adapter_size(shape), limit), _LONGEST)
        if length >= 1:
            return [{**options, "length": length}]
        width = largest(lambda w: cls(**{**options, "reparameterised_width": w}).adapter_size(shape), limit)
        return [{**options, "reparameterised_width": width}] if width >= 1 else []


def _given_by_layers(tensors: Mapping[str, Tensor]) -> Tensor:
    """The prefix that the two layers give, (K, P, 2 · layers · D)."""
    import torch

    hidden = torch.tanh(tensors["prefix.embedding"] @ tensors["prefix.first"].transpose(1, 2) + tensors["prefix.first_bias"][:, None])
    return hidden @ tensors["prefix.second"].transpose(1, 2) + tensors["prefix.second_bias"][:, None]
