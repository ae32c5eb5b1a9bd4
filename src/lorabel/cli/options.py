"""Flags that several verbs share: one table from flag to setting, help taken from the setting itself."""

from dataclasses import dataclass, fields
from functools import cache, reduce
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from cyclopts import Group, Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorabel.cli.flags import OUTPUT
from lorabel.config import SHORT_NAMES, Device, Precision, RunConfig, flatten, load_config, merge, read_config_file, read_recipe
from lorabel.errors import ConfigError
from lorabel.registry import AUGMENTATIONS, METHODS, WEIGHTINGS
from lorabel.settings_text import parse_assignment

# Settings that name a registered thing: their help lists what there is.
_NAMES = {"data.augmentation": AUGMENTATIONS.names, "loss.class_weights": WEIGHTINGS.names}

DATA = Group("Data", sort_key=1)
MODEL = Group("Encoder, method, head", sort_key=2)
TRAINING = Group("Training", sort_key=3)


def flag(name: str, group: Group, **options: Any) -> Parameter:
    """The command-line parameter of one entry of `SHORT_NAMES`, with the setting's own help sentence and what the default recipe sets."""
    sentence, default = _help_of(SHORT_NAMES[name]), _default_of(SHORT_NAMES[name])
    if default and "(default" not in sentence:
        sentence = f"{sentence.removesuffix('.')} (default: {default})."
    return Parameter(help=sentence, group=group, **options)


@cache
def _recipe() -> dict[str, Any]:
    return flatten(read_recipe("default"))


def _default_of(path: str) -> str:
    """What a setting is when nothing is said, as one types it; empty where that is nothing or derived."""
    value = _recipe()[path] if path in _recipe() else _field_of(path).default
    if value is None or isinstance(value, bool):
        return ""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _help_of(path: str) -> str:
    if path == "method.name":
        return f"One of {', '.join(METHODS.names())}; explained by lorabel methods."
    sentence = str(_field_of(path).description)
    return f"{sentence.removesuffix('.')} ({', '.join(_NAMES[path]())})." if path in _NAMES else sentence


def _field_of(path: str) -> FieldInfo:
    """A setting as its section declares it. Each method brings its own options: the default recipe's method's, else those of the first one that has it."""
    section, _, option = path.rpartition(".")
    if section == "method":
        kinds = chain([METHODS.get(str(_recipe()["method.name"]))], (kind for _, kind in METHODS.items()))
        return next(fields[option] for kind in kinds if option in (fields := cast(type[BaseModel], kind).model_fields))
    model: Any = RunConfig
    for name in section.split(".") if section else []:
        model = model.model_fields[name].annotation
    return cast(FieldInfo, model.model_fields[option])


@Parameter(name="*")
@dataclass(frozen=True)
class SettingFlags:
    """Settings as flags; those not given leave the recipe's values alone."""

    config: Annotated[Path | None, Parameter(help="Settings file (YAML), such as a run's config.yaml.", group=OUTPUT)] = None
    set: Annotated[tuple[str, ...], Parameter(help="Any setting: section.field=value; may be repeated.", group=OUTPUT, negative=(), show_default=False)] = ()
    recipe: Annotated[str | None, flag("recipe", TRAINING)] = None
    budget: Annotated[str | None, flag("budget", MODEL)] = None
    encoder: Annotated[str | None, flag("encoder", MODEL)] = None
    revision: Annotated[str | None, flag("revision", MODEL)] = None
    method: Annotated[str | None, flag("method", MODEL)] = None
    rank: Annotated[int | Literal["auto"] | None, flag("rank", MODEL)] = None
    alpha: Annotated[float | None, flag("alpha", MODEL)] = None
    targets: Annotated[str | None, flag("targets", MODEL)] = None
    layers: Annotated[str | None, flag("layers", MODEL)] = None
    dropout: Annotated[float | None, flag("dropout", MODEL)] = None
    rslora: Annotated[bool | None, flag("rslora", MODEL, negative=())] = None
    head: Annotated[Literal["auto", "native", "linear", "native-pooler"] | None, flag("head", MODEL)] = None
    pooling: Annotated[Literal["auto", "cls", "mean"] | None, flag("pooling", MODEL)] = None

    def layers_of_settings(self) -> list[dict[str, Any]]:
        """Config file, then flags, then `--set`, as nested mappings; later ones win."""
        given = {name: value for name, value in self._given().items() if name in SHORT_NAMES}
        nested = [_nest(SHORT_NAMES[name], _plain(name, value)) for name, value in given.items()]
        file = [read_config_file(self.config)] if self.config is not None else []
        said = [one["recipe"] for one in file if "recipe" in one]
        if self.recipe is not None and said and said != [self.recipe]:
            # A run's file holds every setting: the recipe below it would change nothing but its name in the record.
            raise ConfigError(
                f"--recipe: the settings file is of another recipe, got {self.recipe} beside {said[0]} in {self.config}; expected one. Leave --recipe out, or the file."
            )
        return [*file, merge(*nested), *(parse_assignment(text) for text in self.set)]

    def layers_with(self, data: str | None, *, final: bool = False) -> list[dict[str, Any]]:
        """`layers_of_settings`, and what a verb takes beside the flags: the data it names, and whether it opens the test split."""
        named = [{"data": {"source": data}}] if data is not None else []
        return [*self.layers_of_settings(), *named, *([{"final": True}] if final else [])]

    def given(self) -> dict[str, str]:
        """Fields that were set, each with its flag as one types it."""
        return {name: f"--{name.replace('_', '-')}" for name, value in self._given().items() if value != ()}

    def _given(self) -> dict[str, Any]:
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class TrainFlags(SettingFlags):
    """All settings of a training run that have a flag."""

    text_column: Annotated[tuple[str, ...] | None, flag("text_column", DATA, negative=())] = None
    label_column: Annotated[str | None, flag("label_column", DATA)] = None
    label_separator: Annotated[str | None, flag("label_separator", DATA)] = None
    limit_rows: Annotated[int | None, flag("limit_rows", DATA)] = None
    validation_rows: Annotated[int | None, flag("validation_rows", DATA)] = None
    test_rows: Annotated[int | None, flag("test_rows", DATA)] = None
    split_seed: Annotated[int | None, flag("split_seed", DATA)] = None
    max_length: Annotated[int | None, flag("max_length", DATA)] = None
    long_texts: Annotated[Literal["cut", "windows"] | None, flag("long_texts", DATA)] = None
    window_stride: Annotated[int | None, flag("window_stride", DATA)] = None
    max_windows: Annotated[int | None, flag("max_windows", DATA)] = None
    window_pooling: Annotated[Literal["mean", "max"] | None, flag("window_pooling", DATA)] = None
    drop_empty: Annotated[bool | None, flag("drop_empty", DATA, negative=())] = None
    augmentation: Annotated[str | None, flag("augmentation", DATA)] = None
    tracker: Annotated[tuple[str, ...] | None, flag("tracker", OUTPUT, negative=())] = None
    optimizer: Annotated[Literal["adamw", "sgd"] | None, flag("optimizer", TRAINING)] = None
    learning_rate: Annotated[float | None, flag("learning_rate", TRAINING)] = None
    weight_decay: Annotated[float | None, flag("weight_decay", TRAINING)] = None
    schedule: Annotated[Literal["linear", "cosine", "step", "constant"] | None, flag("schedule", TRAINING)] = None
    warmup_ratio: Annotated[float | None, flag("warmup_ratio", TRAINING)] = None
    warmup_steps: Annotated[int | None, flag("warmup_steps", TRAINING)] = None
    label_smoothing: Annotated[float | None, flag("label_smoothing", TRAINING)] = None
    class_weights: Annotated[str | None, flag("class_weights", TRAINING)] = None
    epochs: Annotated[int | None, flag("epochs", TRAINING)] = None
    batch_size: Annotated[int | None, flag("batch_size", TRAINING)] = None
    accumulation: Annotated[int | None, flag("accumulation", TRAINING)] = None
    max_grad_norm: Annotated[float | None, flag("max_grad_norm", TRAINING)] = None
    precision: Annotated[Precision | None, flag("precision", TRAINING)] = None
    device: Annotated[Device | None, flag("device", TRAINING)] = None
    seed: Annotated[int | None, flag("seed", TRAINING)] = None
    threads: Annotated[int | None, flag("threads", TRAINING)] = None
    evaluate_every: Annotated[int | None, flag("evaluate_every", TRAINING)] = None
    patience: Annotated[int | None, flag("patience", TRAINING)] = None
    best_metric: Annotated[Literal["auto", "accuracy", "macro_f1", "loss"] | None, flag("best_metric", TRAINING)] = None


def folder_for(layers: list[dict[str, Any]], verb: str) -> Path:
    """Where a verb that was told no folder works: `runs/my_texts-compare` for `my_texts.csv`.

    Raises:
        ConfigError: The section `data` cannot be used.
    """
    from lorabel.data.files import name_of_table

    return Path("runs") / f"{name_of_table(load_config({'data': merge(*layers).get('data') or {}}).data.source)}-{verb}"


def _plain(name: str, value: Any) -> Any:
    """Lists that are written with commas on the command line."""
    if name == "targets":
        return [part.strip() for part in str(value).split(",")]
    if name == "layers" or (name == "class_weights" and not str(value).isidentifier()):
        return _numbers(name, value)
    return list(value) if isinstance(value, tuple) else value


def _numbers(name: str, value: str) -> Any:
    try:
        return parse_assignment(f"x=[{value}]")["x"]
    except ConfigError as error:
        raise ConfigError(f"--{name.replace('_', '-')}: not a list, got {value!r}; expected numbers with commas between them. For example 0,1.") from error


def _nest(path: str, value: Any) -> dict[str, Any]:
    nested: dict[str, Any] = reduce(lambda inner, part: {part: inner}, reversed(path.split(".")), value)
    return nested
