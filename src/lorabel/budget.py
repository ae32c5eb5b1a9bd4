"""Parameter accounting and the budget gate: settings in, counts and nearest settings that fit out.

Trainable parameters are adapter + head; the total counts each parameter once. Other tools print the head twice (a frozen copy beside the trained one).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from lorabel.errors import BudgetError, ConfigError
from lorabel.families import EncoderShape
from lorabel.heads import HEAD_KINDS, HeadKind, HeadSpec, Pooling, make_head
from lorabel.methods.base import Method, make_method, method_class
from lorabel.methods.base_sited import named_targets

DEFAULT_LIMIT = 999_999
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
# A comma stands between thousands and nowhere else: 1,5M is not 15 million.
_BUDGET = re.compile(r"([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9][0-9_]*)(\.[0-9]*)?\s*([kKmMbB]?|%)")


@dataclass(frozen=True)
class Parameters:
    """Counts of one configuration.

    Attributes:
        adapter: Trained parameters of the method, the head excluded.
        head: Trained parameters of the head.
        trainable: adapter + head, or everything for full fine-tuning.
        encoder: Parameters of the pretrained encoder.
        total: Every parameter, each counted once.
    """

    adapter: int
    head: int
    trainable: int
    encoder: int
    total: int

    @property
    def total_with_head_twice(self) -> int:
        """What tools print that keep a frozen copy of the head beside the trained one."""
        return self.total + self.head


@dataclass(frozen=True)
class Budget:
    """A limit on trainable parameters.

    Attributes:
        limit: Most trainable parameters allowed, inclusive.
        given: As the user wrote it.
        percent: Where it was given as a share of encoder + head, that share.
    """

    limit: int
    given: str
    percent: Decimal | None = None

    def beside(self, head: HeadSpec, shape: EncoderShape) -> Budget:
        """The same budget with another head: a share is one of the encoder and that head.

        Args:
            head: The other head.
            shape: The encoder.
        """
        return self if self.percent is None else replace(self, limit=_share(self.percent, base_size(head, shape)))

    def fits(self, parameters: Parameters) -> bool:
        """True where the trainable parameters are within the limit."""
        return parameters.trainable <= self.limit


@dataclass(frozen=True)
class Alternative:
    """A setting near a refused one that fits.

    Attributes:
        method: The method's options, name included.
        head: Head kind.
        parameters: Its counts.
        stored: Values in the adapter's file.
        changed: Options that differ from the refused ones.
    """

    method: dict[str, Any]
    head: HeadKind
    parameters: Parameters
    stored: int
    changed: tuple[str, ...] = ()

    def as_flags(self) -> str:
        """The command-line flags that choose it."""
        return f"--method {self.method['name']} {self.size_flags()} --head {self.head}".replace("  ", " ")

    def size_flags(self) -> str:
        """The flags that choose its size."""
        flags = []
        if "rank" in self.method:
            flags.append(f"--rank {self.method['rank']}")
        if "targets" in self.method:
            flags.append(f"--targets {named_targets(self.method['targets'])}")
        if "alpha" in self.method and ("alpha" in self.changed or self.method["alpha"] != default_of(self.method, "alpha")):
            flags.append(f"--alpha {self.method['alpha']:g}")
        if self.method.get("layers") is not None:
            flags.append(f"--layers {','.join(map(str, self.method['layers']))}")
        apart = ["ranks"] if self.method.get("ranks") or "ranks" in self.changed else []
        apart += [option for option in self.changed if option not in ("rank", "ranks", "targets", "alpha", "layers")]
        flags += [f"--set {_as_word(f'method.{option}', self.method[option])}" for option in apart]
        return " ".join(flags)


def default_of(method: Mapping[str, Any], option: str) -> Any:
    """What an option is where nobody sets it.

    Args:
        method: The method's options, name included.
        option: One of them.
    """
    return type(make_method(method)).model_fields[option].default


def _as_word(name: str, value: Any) -> str:
    """`name=value` as one word of a command line."""
    return shlex.quote(f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}")


def parse_budget(text: str | None, total: int) -> Budget:
    """Read a budget.

    Args:
        text: `1M`, `300k`, `999999`, `0.5%` (of encoder + head), or None for the default: fewer than 1,000,000.
        total: Parameters of encoder + head, for percentages.

    Returns:
        The budget; `N` means at most N.

    Raises:
        ConfigError: Not a number with an optional k, M, B or %, or below 1; a comma that stands elsewhere than between thousands.
    """
    if text is None:
        return Budget(DEFAULT_LIMIT, "fewer than 1,000,000")
    match = _BUDGET.fullmatch(text.strip())
    if match is None and "," in text:
        raise ConfigError(
            f"budget: a comma that does not stand between thousands, got {text!r}; expected something like 1.5M, 0.5% or 300,000. Write a point before decimals."
        )
    if match is None:
        raise ConfigError(f"budget: not a number of parameters, got {text!r}; expected something like 1M, 300k, 999999 or 0.5%. Use 1M to start.")
    # Decimal, because 2.01 × 1,000,000 is 2,009,999.9… in binary.
    number, unit = Decimal(match[1].replace(",", "").replace("_", "") + (match[2] or "")), match[3].lower()
    limit = _share(number, total) if unit == "%" else int(number * _UNITS[unit])
    if limit < 1:
        raise ConfigError(f"budget: allows nothing, got {text!r}; expected at least 1 parameter. Use 1M to start.")
    return Budget(limit, text, number if unit == "%" else None)


def _share(percent: Decimal, total: int) -> int:
    return int(percent * total / 100)


def base_size(head: HeadSpec, shape: EncoderShape) -> int:
    """Parameters of encoder and head together, whatever the method."""
    # A head that starts from the pooler takes it over from the encoder; it is one set of weights.
    moved = shape.parameter_groups()["pooler"] if head.starts_from_pooler else 0
    return shape.parameter_count - moved + head.parameter_count


def settle(method: Mapping[str, Any], shape: EncoderShape, limit: int) -> dict[str, Any]:
    """A method's options with every `auto` replaced by what a limit leaves room for.

    Args:
        method: Name and options as set.
        shape: The encoder.
        limit: Adapter parameters: what the budget leaves beside the head.

    Raises:
        ConfigError: Unknown method, or options that are wrong.
    """
    settled = method_class(method).settle(method, shape, limit)
    make_method(settled)
    return settled


def count(method: Method, head: HeadSpec, shape: EncoderShape) -> Parameters:
    """Count every parameter of a configuration.

    Args:
        method: The method.
        head: The head.
        shape: The encoder.

    Returns:
        The counts.
    """
    encoder, adapter = base_size(head, shape) - head.parameter_count, method.adapter_size(shape)
    trained_encoder = trainable_encoder(shape, head) if method.trains_encoder else 0
    trainable = adapter + head.parameter_count + trained_encoder
    return Parameters(adapter, head.parameter_count, trainable, encoder, encoder + adapter + head.parameter_count)


def stored_size(method: Method, head: HeadSpec, shape: EncoderShape) -> int:
    """Values in the adapter's file: what is trained, in the form it is stored in, and the constants that go with it.

    Args:
        method: The method as trained.
        head: The head.
        shape: The encoder.
    """
    form = method.stored_form()
    return count(form, head, shape).trainable + sum(spec.size for spec in form.constants(shape))


def parameter_groups(method: Method, head: HeadSpec, shape: EncoderShape) -> dict[str, tuple[int, int]]:
    """The rows of the table behind `count`.

    Args:
        method: The method.
        head: The head.
        shape: The encoder.

    Returns:
        Group -> (parameters, trained ones), in order: encoder, adapter per site, head per layer.
    """
    groups: dict[str, tuple[int, int]] = {}
    for name, size in shape.parameter_groups().items():
        if name == "pooler" and head.starts_from_pooler:
            continue
        is_trained = method.trains_encoder and (name != "pooler" or head.reads_frozen_pooler)
        groups[f"encoder {name}"] = (size, size if is_trained else 0)
    for spec in method.parameters(shape):
        key = f"adapter {spec.site}"
        groups[key] = (groups.get(key, (0, 0))[0] + spec.size,) * 2
    for layer in head.layers:
        out, inputs = head.layer_shape(layer)
        groups[f"head {layer.key}"] = (out * (inputs + 1),) * 2
    return groups


def trainable_encoder(shape: EncoderShape, head: HeadSpec) -> int:
    """Encoder parameters that full fine-tuning trains: all, less a pooler that no head reads.

    Args:
        shape: The encoder.
        head: The head.
    """
    groups = shape.parameter_groups()
    pooler = groups.pop("pooler", 0)
    return sum(groups.values()) + (pooler if head.reads_frozen_pooler else 0)


def nearest(method: Mapping[str, Any], head: HeadSpec, shape: EncoderShape, budget: Budget) -> list[Alternative]:
    """Settings close to a refused one that fit the budget.

    Args:
        method: Options of the refused method, name included.
        head: The refused head.
        shape: The encoder.
        budget: The limit beside the refused head.

    Returns:
        Same head first, then smaller heads; may be empty.
    """
    found: list[Alternative] = []
    refused = make_method(method)
    name, options = method["name"], {key: value for key, value in method.items() if key != "name"}
    for candidate in [head, *_other_heads(head, shape)]:
        allowed = budget.beside(candidate, shape)
        room = allowed.limit - candidate.parameter_count
        if room <= 0:
            continue
        for smaller in type(refused).smaller(options, shape, room):
            made = make_method({"name": name, **smaller})
            changed = tuple(option for option in smaller if getattr(refused, option) != getattr(made, option))
            entry = alternative({"name": name, **smaller}, candidate, shape, changed)
            found += [entry] if allowed.fits(entry.parameters) else []
    return found


def require_fits(method: Mapping[str, Any], head: HeadSpec, shape: EncoderShape, budget: Budget) -> Parameters:
    """The gate: return the counts, or refuse with what would fit. Full fine-tuning is a baseline and passes.

    Raises:
        BudgetError: Too many trainable parameters; the message holds the counts and the nearest settings that fit.
    """
    made = make_method(method)
    parameters = count(made, head, shape)
    if made.trains_encoder or budget.fits(parameters):
        return parameters
    options = [f"  {entry.as_flags()}  ({entry.parameters.trainable:,})" for entry in nearest(method, head, shape, budget)]
    advice = (
        "Nearest settings that fit:\n" + "\n".join(options)
        if options
        else "No setting of this method was found that fits: raise the budget or choose a smaller encoder."
    )
    table = "\n".join(f"  {name:<28}{trained:>12,}" for name, (_, trained) in parameter_groups(made, head, shape).items() if trained)
    raise BudgetError(
        f"budget: too many trainable parameters, got {parameters.trainable:,} (adapter {parameters.adapter:,} + head {parameters.head:,}); "
        f"expected at most {budget.limit:,}. {advice}\nWhat would be trained:\n{table}"
    )


def _other_heads(head: HeadSpec, shape: EncoderShape) -> list[HeadSpec]:
    others = []
    for kind in HEAD_KINDS:
        try:
            other = make_head(shape, kind, _pooling(head), head.classes)
        except ConfigError:
            continue  # This family or checkpoint has no such head: it is no alternative.
        if other.parameter_count < head.parameter_count:
            others.append(other)
    return others


def _pooling(head: HeadSpec) -> Pooling:
    return head.pooling


def alternative(method: dict[str, Any], head: HeadSpec, shape: EncoderShape, changed: tuple[str, ...] = ()) -> Alternative:
    """A setting with its counts; `changed` names the options that differ from a refused one."""
    made = make_method(method)
    return Alternative(method, head.kind, count(made, head, shape), stored_size(made, head, shape), changed)
