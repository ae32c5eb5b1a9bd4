"""Every setting of a run: strict, frozen models with one help sentence per field.

Decisions:
- The sentence in `Field(description=...)` is the only source for `--help` and the docs.
- Method options stay a raw mapping here, because each method brings its own fields; `methods.base.make_method` checks them.
- Nothing a user wrote is overwritten. Values that depend on others (the learning rate of the method, the device found) go into the run's plan.
- A recipe is a YAML file of settings below the user's own; `recipes/` ships some.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from lorabel.errors import ConfigError
from lorabel.registry import AUGMENTATIONS, WEIGHTINGS, unknown_name
from lorabel.settings_text import read_settings, read_yaml, write_settings

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Device = Literal["auto", "cpu", "cuda", "mps"]
# Tokens of the longest sequence at least: the first and the last, and two between them.
SHORTEST_LENGTH = 4
AveragingFactor = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no numbers without end."""

    # Validators are built when first needed: help needs none of them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def _known(given: str, names: list[str]) -> str:
    """A name as given, or none; a fault where there is no such name."""
    known = ["none", *names]
    if given not in known:
        raise PydanticCustomError("unknown_name", "unknown name", {"known": known})
    return given


class DataConfig(Section):
    """Where the labelled texts come from and how they are read."""

    source: str = Field(
        default="sample", description="A CSV, TSV, JSONL or Parquet file (also .gz), a folder of splits, `sample`, or a data set name on the hub."
    )
    text_columns: tuple[str, ...] | None = Field(
        default=None, description="Text columns, joined with a space, such as title,body; found by name, then by type, if not given."
    )
    label_column: str | None = Field(default=None, description="Label column; found by name, then by type, if not given.")
    label_separator: str | None = Field(
        default=None, min_length=1, description="A text has several labels, written in one value with this between them, such as |; lists need no separator."
    )
    limit_rows: int | None = Field(default=None, ge=2, description="Train on this many rows, drawn stratified; validation and test stay whole.")
    fraction_percent: float | None = Field(
        default=None, gt=0, le=100, description="Train on this share of each class, in percent; smaller draws of one seed lie within larger ones."
    )
    shots: int | None = Field(default=None, ge=1, description="Train on this many rows of each class; smaller draws of one seed lie within larger ones.")
    draw_seed: int = Field(default=0, ge=0, description="Seed of what fraction_percent and shots draw; the splits stay those of split_seed.")
    validation_rows: int | None = Field(
        default=None,
        ge=1,
        description="Rows of the validation split where one is made (default: 10 percent, at most 2000), or a stratified draw from the given one.",
    )
    test_rows: int | None = Field(default=None, ge=0, description="Rows of the test split where one is made (default: 10 percent, at most 5000); 0 for none.")
    folds: int | None = Field(default=None, ge=2, description="Cross-validation: parts that the training split is cut into (stratified, equal texts together).")
    fold: int | None = Field(default=None, ge=0, description="Cross-validation: the part that is left out of training, from 0.")
    split_seed: int = Field(default=0, ge=0, description="Seed of splits that are made and rows that are drawn.")
    max_length_tokens: int | None = Field(
        default=None, ge=SHORTEST_LENGTH, description="Longest sequence in tokens; longer texts are cut and counted (default: 512 or what the encoder allows)."
    )
    long_texts: Literal["cut", "windows"] = Field(
        default="cut", description="Texts longer than the longest sequence: cut, or read in windows of that length whose states are pooled."
    )
    window_stride_tokens: int | None = Field(default=None, ge=0, description="Tokens that two neighbouring windows share (default: a quarter of a window).")
    max_windows: int = Field(default=8, ge=2, le=255, description="Most windows of a text; what lies beyond them is cut and counted.")
    window_pooling: Literal["mean", "max"] = Field(
        default="mean", description="How the states of a text's windows become one: their mean, or the maximum of each feature."
    )
    augmentation: str = Field(default="none", description="Augmentation of training texts: none, or one by name.")
    augmentation_probability: float = Field(default=0.5, ge=0, le=1, description="Share of training texts augmented in each epoch.")
    word_dropout_probability: float = Field(
        default=0.3, ge=0, lt=1, description="word_dropout: each word of an augmented text is left out with this probability."
    )
    drop_empty: bool = Field(default=False, description="Drop rows with an empty text or a missing label instead of refusing the table.")

    @field_validator("augmentation")
    @classmethod
    def _is_registered(cls, given: str) -> str:
        return _known(given, AUGMENTATIONS.names())


class EncoderConfig(Section):
    """Which pretrained encoder."""

    name: str = Field(default="minilm", description="A short name (`minilm`, `roberta-base`), a hub name, or a checkpoint folder.")
    revision: str | None = Field(default=None, description="Revision on the hub; the one resolved is recorded.")
    dropout: bool = Field(default=False, description="Turn the encoder's own dropout on (frozen-encoder methods leave it off).")


class HeadConfig(Section):
    """How a sequence becomes class scores."""

    kind: Literal["auto", "native", "linear", "native-pooler"] = Field(
        default="auto",
        description="native: the family's own head; linear: one layer; native-pooler: train the pooler too; auto: linear to read the mean, else native where the budget allows it.",
    )
    pooling: Literal["auto", "cls", "mean"] = Field(
        default="auto",
        description="cls: state of the first token; mean: over all tokens; auto: mean where the encoder was trained so and no layer is trained or rows are below 500 per class, else cls.",
    )
    dropout: float | None = Field(default=None, ge=0, lt=1, description="Dropout in the head (default: 0; with the encoder's dropout on, the family's own).")


class OptimizerConfig(Section):
    """The update rule."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="Update rule.")
    learning_rate: float | None = Field(default=None, gt=0, description="Peak learning rate (default: the method's own).")
    head_learning_rate: float | None = Field(
        default=None, gt=0, description="Peak learning rate of the head (default: the same; where texts have several labels at least 0.01)."
    )
    betas: tuple[AveragingFactor, AveragingFactor] = Field(default=(0.9, 0.999), description="AdamW's averaging factors.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay; biases and norms take none.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum.")


class ScheduleConfig(Section):
    """The learning rate over time."""

    name: Literal["linear", "cosine", "step", "constant"] = Field(default="linear", description="Shape after the warm-up; linear and cosine end at 0.")
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1, description="Share of all steps spent warming up linearly from 0.")
    warmup_steps: int | None = Field(default=None, ge=0, description="Warm-up in steps; takes the place of the ratio.")
    step_every_epochs: float = Field(default=1.0, gt=0, description="step: epochs between two drops.")
    step_factor: float = Field(default=0.5, gt=0, le=1, description="step: factor of each drop.")


class LossConfig(Section):
    """What is minimised."""

    name: str = Field(default="cross_entropy", description="A registered loss.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes.")
    class_weights: str | tuple[float, ...] = Field(default="none", description="none, one weight per class in label order, or a rule by name.")
    effective_beta: float = Field(default=0.999, ge=0, lt=1, description="effective: 0 weighs all classes alike, towards 1 it is the inverse frequency.")
    focal_gamma: float = Field(default=2.0, ge=0, description="focal: how much less rows count that are answered with certainty; 0 is cross-entropy.")
    r_drop_alpha: float = Field(
        default=0.0,
        ge=0,
        description="R-Drop: weight of the divergence between two passes of each row, each with its own dropout; 0 turns it off, else a step costs twice as much.",
    )
    mixup_alpha: float = Field(
        default=0.0,
        ge=0,
        description="Mix-up: a row's pooled state is mixed with another's, the share drawn from Beta(a, a); 0 turns it off.",
    )
    contrastive_alpha: float | None = Field(
        default=None,
        ge=0,
        description="Supervised contrastive loss: weight of what draws pooled states of a class together and classes apart; 0 turns it off "
        "(default: 1 for up to 64 rows with one label each under mean pooling, where something before the head is trained, without accumulation or windows; else 0).",
    )
    contrastive_temperature: float = Field(default=0.1, gt=0, description="Contrastive: the smaller, the more only the nearest rows matter.")

    @field_validator("class_weights")
    @classmethod
    def _is_registered(cls, given: str | tuple[float, ...]) -> str | tuple[float, ...]:
        return _known(given, WEIGHTINGS.names()) if isinstance(given, str) else given


class TrainingConfig(Section):
    """The loop."""

    num_epochs: int | None = Field(
        default=None,
        ge=1,
        description="Passes over the training split (default: 3; up to 6 where classes have few rows, more where those are fewer than 75 steps).",
    )
    batch_size: int = Field(default=32, ge=1, description="Sequences per forward pass.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Forward passes per optimiser step.")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Gradient norm is clipped to this; 0 turns clipping off.")
    precision: Precision = Field(
        default="auto", description="Number format of the frozen weights and products; auto takes bf16 where the machine multiplies it natively."
    )
    device: Device = Field(default="auto", description="Where to compute.")
    seed: int = Field(default=0, ge=0, description="Seed of initialisation, order, dropout and augmentation.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: all cores); the same number gives the same bits.")
    group_by_length: bool = Field(default=True, description="Batches hold sequences of similar length; their order stays random.")
    evaluate_every_steps: int | None = Field(
        default=None,
        ge=1,
        description="Evaluate and save every N optimiser steps (default: after each epoch, or every few where rows are few).",
    )
    early_stopping_patience: int | None = Field(default=None, ge=1, description="Stop after this many evaluations without a better score.")
    best_metric: Literal["auto", "accuracy", "macro_f1", "loss"] = Field(
        default="auto", description="Validation score that chooses the kept checkpoint; auto is accuracy, and macro_f1 where texts have several labels."
    )
    tune_thresholds: bool = Field(
        default=True, description="Where texts have several labels: choose the probability from which each label is given on the validation split; else 0.5."
    )
    calibrate: bool = Field(
        default=True,
        description="Fit a temperature on the validation split after training: probabilities come closer to the share of right answers, no answer changes.",
    )
    cuda_graphs: bool = Field(default=True, description="On a GPU, capture the steps of each shape and replay them.")
    state_cache_gb: float = Field(
        default=4.0, ge=0, description="Most gigabytes on disk for the states of frozen layers, computed once where no adapter lies below; 0 turns it off."
    )
    max_nonfinite_steps: int = Field(default=10, ge=1, description="Stop after this many steps in a row with a loss or gradient that is not finite.")


class RunConfig(Section):
    """The whole of a run; saved as `config.yaml` and accepted back unchanged.

    Attributes:
        method: `{"name": "lora", "rank": 8, ...}`; checked by the method itself.
        recipe: Name of the recipe that lies below the user's settings, for the record.
    """

    recipe: str = Field(default="default", description="Settings to start from; yours win.")
    budget: str | None = Field(
        default=None, description="Most trainable parameters: 1M, 300k, 999999, or 0.5% of encoder + head (default: fewer than 1,000,000)."
    )
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    method: dict[str, Any] = Field(default={"name": "lora"}, description="Method name and its options.")
    head: HeadConfig = HeadConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    trackers: tuple[str, ...] = Field(default=(), description="Experiment trackers that are told what happens: tensorboard, mlflow, wandb; each is an extra.")
    final: bool = Field(default=False, description="Open the test split at the end; every opening is counted.")

    @field_validator("budget", mode="before")
    @classmethod
    def _number_as_text(cls, given: Any) -> Any:
        """YAML reads 300000 as a number; it is the same budget."""
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    def to_yaml(self) -> str:
        """The settings as YAML; `load_config` reads it back to an equal value."""
        return write_settings(self.model_dump(mode="json"))


# What people type -> setting: the command line's flags (with dashes), and the names in grids and search spaces.
SHORT_NAMES = {
    "recipe": "recipe",
    "budget": "budget",
    "tracker": "trackers",
    "text_column": "data.text_columns",
    "label_column": "data.label_column",
    "label_separator": "data.label_separator",
    "limit_rows": "data.limit_rows",
    "validation_rows": "data.validation_rows",
    "test_rows": "data.test_rows",
    "split_seed": "data.split_seed",
    "max_length": "data.max_length_tokens",
    "long_texts": "data.long_texts",
    "window_stride": "data.window_stride_tokens",
    "max_windows": "data.max_windows",
    "window_pooling": "data.window_pooling",
    "drop_empty": "data.drop_empty",
    "augmentation": "data.augmentation",
    "encoder": "encoder.name",
    "revision": "encoder.revision",
    "head": "head.kind",
    "pooling": "head.pooling",
    "method": "method.name",
    "rank": "method.rank",
    "alpha": "method.alpha",
    "targets": "method.targets",
    "layers": "method.layers",
    "dropout": "method.dropout",
    "rslora": "method.use_rslora",
    "optimizer": "optimizer.name",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "schedule": "schedule.name",
    "warmup_ratio": "schedule.warmup_ratio",
    "warmup_steps": "schedule.warmup_steps",
    "label_smoothing": "loss.label_smoothing",
    "class_weights": "loss.class_weights",
    "epochs": "training.num_epochs",
    "batch_size": "training.batch_size",
    "accumulation": "training.gradient_accumulation_steps",
    "max_grad_norm": "training.max_grad_norm",
    "precision": "training.precision",
    "device": "training.device",
    "seed": "training.seed",
    "threads": "training.threads",
    "evaluate_every": "training.evaluate_every_steps",
    "patience": "training.early_stopping_patience",
    "best_metric": "training.best_metric",
}


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("lorabel").joinpath("recipes").iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """Settings of a shipped recipe.

    Args:
        name: One of `recipe_names()`.

    Raises:
        ConfigError: No such recipe.
    """
    if name not in recipe_names():
        raise ConfigError(unknown_name("recipe", name, recipe_names()))
    loaded: dict[str, Any] = read_settings(files("lorabel").joinpath("recipes", f"{name}.yaml").read_text("utf-8")) or {}
    return loaded


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings from a YAML file.

    Raises:
        ConfigError: Unreadable, not YAML, or not a mapping.
    """
    loaded = read_yaml(path, f"{path}: cannot be read as settings")
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: not a mapping of settings, got {type(loaded).__name__}; expected sections such as `training:`. See a run's config.yaml.")
    return loaded


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted name -> value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay mappings over each other, later ones winning; sections merge key by key.

    A method's options do not survive a change of its name: they belong to the other method. Options that were given without a name are for whichever method is named later.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            if key == "method" and isinstance(old, Mapping) and isinstance(value, Mapping) and "name" in old and value.get("name", old["name"]) != old["name"]:
                old = None
            result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def load_config(*layers: Mapping[str, Any]) -> RunConfig:
    """Build the settings of a run: recipe, then each layer, later ones winning.

    Args:
        layers: Nested mappings, such as a config file's content and the flags; the last `recipe` named decides the base.

    Returns:
        The checked settings.

    Raises:
        ConfigError: All faults together, each naming its field.
    """
    merged = merge(*layers)
    base = read_recipe(str(merged.get("recipe", "default")))
    try:
        return RunConfig.model_validate(merge(base, merged))
    except ValidationError as error:
        # A value that fits none of several forms has one fault for each form; the first is enough.
        explained = dict(reversed([_explain(fault) for fault in error.errors()]))
        raise ConfigError("\n".join(reversed(explained.values()))) from error


def _explain(fault: Any) -> tuple[str, str]:
    """A setting's path, and what is wrong with it."""
    path = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        where = ".".join(path)
        return where, unknown_name(where, path[-1], _known_fields(path[:-1]))
    if fault["type"] == "unknown_name":
        where = ".".join(path)
        return where, unknown_name(where, fault["input"], fault["ctx"]["known"])
    model: Any = RunConfig
    known, meaning = [], "a section of settings"
    for part in path:
        if part not in getattr(model, "model_fields", {}):
            break
        known.append(part)
        meaning, model = model.model_fields[part].description or meaning, model.model_fields[part].annotation
    where = ".".join(known)
    return (
        where,
        f"{where}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}; expected a value for: {meaning.removesuffix('.')}. Change this setting.",
    )


def _known_fields(path: list[str]) -> list[str]:
    model: Any = RunConfig
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
