"""Prompt tuning: P trained embeddings stand in every text.

Source: Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2 and figure 3 (starts).

Equation: x = [x₁; p₁ … p_P; x₂ … x_T], the embeddings of a text of T tokens with the trained p; with `place: front`, x = [p₁ … p_P; x₁ … x_T].

Parameters: P · E.

Departures: by default they follow the text's first token, so that heads go on reading the state they were made for; with `place: front` they come before it, as in the PEFT library, whose
heads then read the first trained token. Positions count the trained tokens along.

PEFT: its prompt tuning, with `place: front` alone (not the default); not for DistilBERT, nor for encoders whose embeddings are projected, as those of ELECTRA small.

Pooling: where the encoder was trained with mean pooling, the head reads the mean (`lorabel.solver`): trained tokens alone hardly make the first
token say more. On two validation splits the mean was 7 points better, at a third of the rate (benchmarks/methods.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.methods.base import Method, ParameterSpec, make_method
from lorabel.methods.base_peft import PeftFile
from lorabel.registry import METHODS
from lorabel.slots import Prompt as PromptSlot
from lorabel.slots import Start

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "prompt"


@METHODS.register("prompt")
class Prompt(Method):
    """Trained embeddings that stand in every text."""

    name: ClassVar[str] = "prompt"
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    default_learning_rate: ClassVar[float] = 1e-2
    first_token_learning_rate: ClassVar[float] = 3e-2
    starts_unchanged: ClassVar[bool] = False
    peft_root: ClassVar[str] = "base_model."
    can_merge: ClassVar[bool] = False
    trains_layers: ClassVar[bool] = False
    shared_options: ClassVar[tuple[str, ...]] = ("place",)

    length: int = Field(default=20, ge=1, le=256, description="Trained tokens in each text, P.")
    place: Literal["after_first", "front"] = Field(default="after_first", description="Where they stand: after the text's first token, or before it.")
    start: Literal["vocabulary", "labels", "random"] = Field(
        default="vocabulary", description="Their start: embeddings of random words, of the class names, or random numbers of the same deviation."
    )

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """`prompt` (P, E); P · E parameters."""
        # Decay pulls embeddings towards zero, where no word lies.
        return (ParameterSpec(_NAME, (self.length, shape.embedding_size), 0, _NAME, _NAME, has_decay=False),)

    def initial(self, spec: ParameterSpec, start: Start) -> Tensor | None:
        """Words, class names or numbers, as chosen."""
        import torch

        words, generator = start.weights["embeddings.word"].float(), start.generator(_NAME)
        if self.start == "random":
            return torch.randn(spec.shape, generator=generator) * words.std()
        chosen = torch.randint(len(words), (self.length,), generator=generator)
        named = [token for tokens in start.label_tokens for token in tokens][: self.length] if self.start == "labels" else []
        chosen[: len(named)] = torch.tensor(named, dtype=torch.long)
        return words[chosen].clone()

    @classmethod
    def prompt(cls, members: Sequence[Self], tensors: Mapping[str, Tensor]) -> PromptSlot | None:
        """The trained tokens."""
        return PromptSlot(tensors[_NAME], follows_first=members[0].place == "after_first")

    def learning_rate_for(self, head: HeadSpec) -> float:
        """A first token that has to learn what to say wants a higher rate."""
        return self.first_token_learning_rate if head.pooling == "cls" else self.default_learning_rate

    def reserved_tokens(self) -> int:
        """The trained tokens take up positions."""
        return self.length

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`PromptTuningConfig` of the PEFT library; None after the first token, and for encoders whose embeddings are projected, which it cannot load."""
        if self.place != "front" or shape.has_projection or not shape.names.takes_past_keys:
            return None
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.length,
            "token_dim": shape.hidden_size,
            "num_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_name_or_path": None,
        }

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """Its prompt, before the text's first token."""
        if file.kind != "PROMPT_TUNING":
            return None
        return make_method({"name": cls.name, "length": file.count("num_virtual_tokens"), "place": "front"}), {_NAME: file.take("prompt_embeddings")}

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """One tensor."""
        return "prompt_embeddings"

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The longest prompt that fits."""
        length = min(limit // shape.embedding_size, 256)
        return [{**options, "length": length}] if length >= 1 else []
