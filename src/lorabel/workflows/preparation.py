"""What a training run needs before its first step: data, encoder, method, head, budget, tokens, all settled and checked, cheapest checks first."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from tokenizers import Tokenizer

from lorabel.budget import Budget, Parameters, require_fits, settle
from lorabel.config import SHORTEST_LENGTH, DataConfig, LossConfig, RunConfig
from lorabel.data.load import load_data
from lorabel.data.packing import tokenise
from lorabel.data.splits import fold_of_rows
from lorabel.data.texts import text_keys
from lorabel.data.types import LabelledData, SplitName, TokenTable
from lorabel.data.windows import STRIDE_DIVISOR, WindowRule
from lorabel.errors import ConfigError
from lorabel.events import EventSink, Note, ignore
from lorabel.families import EncoderShape
from lorabel.heads import HeadSpec
from lorabel.losses.base import Loss
from lorabel.methods.base import Method, make_method
from lorabel.models.checkpoint import EncoderSource, load_tokenizer, resolve_encoder
from lorabel.solver import AskedHead, Solution, solve
from lorabel.training.precision import Compute, choose_compute
from lorabel.workflows.dropout import check_passes
from lorabel.workflows.loss_choice import build_loss, choose_loss

DEFAULT_MAX_LENGTH = 512
_WINDOW_SETTINGS = ("window_stride_tokens", "max_windows", "window_pooling")


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    Attributes:
        config: The settings, untouched.
        data: Splits and labels.
        source: Where the encoder was found.
        method: The method.
        head: The head.
        parameters: Counts, within the budget.
        budget: The limit.
        loss: The section `loss` of the settings, nothing left open.
        criterion: The training loss, its class weights settled.
        reasons: Why each setting that was left open was settled as it was, a sentence each.
        compute: Device and precision.
        threads: CPU threads in use.
        tokenizer: Truncation and padding off.
        tokenizer_digest: Of what it does to a text.
        max_length_tokens: Longer texts are cut, or read in windows of that length.
        windows: How longer texts are read in windows; None where they are cut.
        tables: Token tables of the splits in use.
        train_rows: Rows of the training split that are trained on (N,).
    """

    config: RunConfig
    data: LabelledData
    source: EncoderSource
    method: Method
    head: HeadSpec
    parameters: Parameters
    budget: Budget
    loss: LossConfig
    criterion: Loss
    reasons: tuple[str, ...]
    compute: Compute
    threads: int
    tokenizer: Tokenizer
    tokenizer_digest: str
    max_length_tokens: int
    windows: WindowRule | None
    tables: dict[SplitName, TokenTable]
    train_rows: NDArray[np.int64]


def prepare(config: RunConfig, on_event: EventSink) -> Prepared:
    """Settle everything a run needs.

    Args:
        config: The settings.
        on_event: Receives notes and progress.

    Returns:
        The prepared run.

    Raises:
        LorabelError: Whatever is wrong with settings, data, encoder or budget, before any expensive work.
    """
    compute = choose_compute(config.training.device, config.training.precision)
    source = resolve_encoder(config.encoder)
    settle(config.method, source.shape, 0)  # Wrong options are refused before the data is read.
    data = load_data(config.data, on_event=on_event)
    for note in data.notes:
        on_event(Note(note))
    choice = _choose(config, data, source)
    method = make_method(choice.method)
    loss, reasons = _choose_loss(config, data, choice, method)
    train_rows = _train_rows(config, data)
    criterion = _criterion(config, data, train_rows)
    for reason in reasons:
        on_event(Note(reason))
    threads = set_threads(config.training.threads)
    tokenizer, digest = load_tokenizer(source.folder)
    max_length = _max_length(config, source, method)
    windows = window_rule(config.data, max_length)
    tables = _tokenised(data, (tokenizer, digest), max_length, windows, on_event, with_test=config.final)
    return Prepared(
        config=config,
        data=data,
        source=source,
        method=method,
        head=choice.head,
        parameters=choice.parameters,
        budget=choice.budget,
        loss=loss,
        criterion=criterion,
        reasons=reasons,
        compute=compute,
        threads=threads,
        tokenizer=tokenizer,
        tokenizer_digest=digest,
        max_length_tokens=max_length,
        windows=windows,
        tables=tables,
        train_rows=train_rows,
    )


def _max_length(config: RunConfig, source: EncoderSource, method: Method) -> int:
    """Longest text in tokens: as set, as the encoder's positions allow beside those that the method takes up."""
    return longest_sequence(config.data.max_length_tokens, method, source.shape)


def longest_sequence(asked: int | None, method: Method, shape: EncoderShape) -> int:
    """Tokens of a sequence at most: as asked, or 512, and no more than the encoder allows beside the method's own.

    Args:
        asked: The limit that was set, or None.
        method: The method.
        shape: The encoder.

    Raises:
        ConfigError: The method's own tokens leave no room for a text.
    """
    reserved = method.reserved_tokens()
    room = shape.max_length_tokens - reserved
    if room < SHORTEST_LENGTH:
        raise ConfigError(
            f"{method.name}: its {reserved} trained tokens leave no room for a text, got {room} of the encoder's {shape.max_length_tokens} positions; "
            f"expected at least {SHORTEST_LENGTH}. Use fewer of them, or another --encoder."
        )
    return min(asked or DEFAULT_MAX_LENGTH, room)


def window_rule(config: DataConfig, max_length_tokens: int) -> WindowRule | None:
    """How texts that are longer than the limit are read in windows; None where they are cut.

    Args:
        config: The settings.
        max_length_tokens: The limit, which is the length of a window.

    Raises:
        ConfigError: Settings of windows, but texts are cut.
    """
    if config.long_texts == "windows":
        stride = max_length_tokens // STRIDE_DIVISOR if config.window_stride_tokens is None else config.window_stride_tokens
        return WindowRule(stride, config.max_windows, config.window_pooling)
    for name in _WINDOW_SETTINGS:
        value = getattr(config, name)
        if value != DataConfig.model_fields[name].default:
            raise ConfigError(
                f"data.{name}: nothing reads it while long texts are cut, got {value}; expected windows. Add --long-texts windows, or leave it out."
            )
    return None


def _tokenised(
    data: LabelledData, tokenizer: tuple[Tokenizer, str], max_length: int, windows: WindowRule | None, on_event: EventSink, *, with_test: bool
) -> dict[SplitName, TokenTable]:
    """Token tables of the splits, from the cache where they are there."""
    tables: dict[SplitName, TokenTable] = {}
    for name, split in data.splits.items():
        # The test split stays closed unless it is opened on purpose, so it is not even tokenised.
        if name == "test" and not with_test:
            continue
        tables[name] = tokenise(split.texts, *tokenizer, max_length, windows=windows, cache_dir=cache_dir(), data_digest=split.digest, on_event=on_event)
        said = _about_long_texts(tables[name])
        if said:
            on_event(Note(f"{name}: {said}."))
    return tables


def _about_long_texts(table: TokenTable) -> str | None:
    """How many texts are longer than the limit and what becomes of them; None where none is."""
    limit, total = table.max_length_tokens, len(table)
    if table.windows is None:
        cut = table.truncated_rows
        return f"{cut:,} of {total:,} texts ({100 * cut / total:.1f} %) are longer than {limit} tokens and are cut" if cut else None
    facts = windows_facts(table)
    if not facts["long_rows"]:
        return None
    rest = f"; {table.truncated_rows:,} are longer than {table.windows.rule.max_windows} windows and are cut there" if table.truncated_rows else ""
    return (
        f"{facts['long_rows']:,} of {total:,} texts ({100 * facts['long_rows'] / total:.1f} %) are longer than {limit} tokens and are read in windows, "
        f"{facts['mean_of_long_rows']:.1f} each on average ({facts['mean']:.2f} over all texts){rest}"
    )


def windows_facts(table: TokenTable) -> dict[str, float]:
    """Rows that are longer than a window, and the mean number of windows: over them, and over all rows.

    Args:
        table: Read in windows.
    """
    assert table.windows is not None, "only a table that is read in windows has such facts"
    counts = table.windows.counts
    is_long = counts > 1
    mean_of_long = float(counts[is_long].mean()) if is_long.any() else 1.0
    return {"long_rows": int(is_long.sum()), "mean_of_long_rows": mean_of_long, "mean": float(counts.mean()) if len(counts) else 1.0}


def _choose(config: RunConfig, data: LabelledData, source: EncoderSource) -> Solution:
    asked = AskedHead(config.head.kind, config.head.pooling, len(data.labels), source.trained_pooling, len(data.splits["train"]))
    solution = solve(config.method, source.shape, asked, config.budget)
    check_passes(config, make_method(solution.method), solution.head, source.shape)
    require_fits(solution.method, solution.head, source.shape, solution.budget)
    return solution


def _choose_loss(config: RunConfig, data: LabelledData, choice: Solution, method: Method) -> tuple[LossConfig, tuple[str, ...]]:
    """The settled loss, and the reasons of all choices."""
    trains_states = method.trains_encoder or choice.parameters.adapter > 0
    loss, reasons = choose_loss(config, data, choice.head, trains_states=trains_states)
    return loss, (*choice.reasons, *reasons)


def _criterion(config: RunConfig, data: LabelledData, train_rows: NDArray[np.int64]) -> Loss:
    """The training loss, from the class counts of the rows that are trained on."""
    return build_loss(config, data.splits["train"].labels[train_rows], len(data.labels))


# What the runs of one sweep share.
SHARED = ("data", "encoder", "training.device", "training.precision", "training.threads")


def prepare_like(prepared: Prepared, config: RunConfig) -> Prepared:
    """Another run over the data, encoder and machine of a prepared one.

    Args:
        prepared: The run that is ready.
        config: The other's settings.

    Raises:
        ConfigError: Settings that runs of one sweep must share differ, or the budget does not allow the method.
    """
    for path in SHARED:
        mine, others = (_without_fold(reduce(getattr, path.split("."), cast(Any, one))) for one in (config, prepared.config))
        if mine != others:
            names = (
                [f"{path}.{name}" for name in type(mine).model_fields if getattr(mine, name) != getattr(others, name)]
                if isinstance(mine, BaseModel)
                else [path]
            )
            raise ConfigError(
                f"sweep: {', '.join(names)} must be the same in all members, got unlike values; expected one data set, encoder and machine. Run a sweep for each."
            )
    choice = _choose(config, prepared.data, prepared.source)
    rows = prepared.train_rows if config.data == prepared.config.data else _train_rows(config, prepared.data)
    method = make_method(choice.method)
    loss, reasons = _choose_loss(config, prepared.data, choice, method)
    criterion = _criterion(config, prepared.data, rows)
    like = replace(prepared, config=config, train_rows=rows, method=method, loss=loss, criterion=criterion, reasons=reasons)
    length = _max_length(config, prepared.source, like.method)
    if length != prepared.max_length_tokens:
        # A method that takes up positions leaves fewer to the texts; the cache holds the other length's table.
        tokenizer = prepared.tokenizer, prepared.tokenizer_digest
        windows = window_rule(config.data, length)
        tables = _tokenised(prepared.data, tokenizer, length, windows, ignore, with_test="test" in prepared.tables)
        like = replace(like, max_length_tokens=length, windows=windows, tables=tables)
    return replace(like, head=choice.head, parameters=choice.parameters, budget=choice.budget)


def _without_fold(section: Any) -> Any:
    """Members of a cross-validation share everything about the data but the fold that each leaves out."""
    return section.model_copy(update={"fold": None}) if isinstance(section, DataConfig) else section


def _train_rows(config: RunConfig, data: LabelledData) -> NDArray[np.int64]:
    """Rows of the training split that are trained on: all, or all but one fold."""
    train, folds, fold = data.splits["train"], config.data.folds, config.data.fold
    if fold is None:
        return np.arange(len(train))
    if folds is None:
        raise ConfigError(f"data.fold: one of none, got {fold} without data.folds; expected how many there are. Set data.folds, too, or use train --folds.")
    if fold >= folds:
        raise ConfigError(f"data.fold: no such fold, got {fold} of {folds}; expected 0 to {folds - 1}. Count folds from 0.")
    return np.flatnonzero(fold_of_rows(text_keys(train.texts), train.labels, folds, config.data.split_seed) != fold)


def set_threads(threads: int | None) -> int:
    """Use this many CPU threads.

    Args:
        threads: How many, 1 or more; all cores if None.

    Returns:
        The number in use.

    Raises:
        ConfigError: Less than one.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads: too few, got {threads}; expected 1 or more. Leave it out for all cores.")
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads


def cache_dir() -> Path:
    """Where token tables are cached: `$LORABEL_CACHE`, else `lorabel` in the user's cache folder."""
    chosen = os.environ.get("LORABEL_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lorabel"
