"""Updaters: what the loop calls to turn gradients into new values.

Adapters and heads live in one flat arena with our own optimiser. Full fine-tuning has every encoder weight to move: there the library's fused
optimiser does it, on float32 master weights (K = 1). Both answer the same few questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lorabel.config import OptimizerConfig
from lorabel.training.optim import AdamW, Arena, ArenaOptimizer, MemberSettings, Sgd


@dataclass(frozen=True)
class MemberUpdate:
    """How one member moves in one step.

    Attributes:
        factor: Of the peak learning rate.
        max_grad_norm: Clipping norm, 0 for none.
        unscale: Multiplied into the gradients first (inverse of the loss scale).
        is_allowed: False where the loss was not finite: nothing may change.
        step: Steps done, this one included.
    """

    factor: float
    max_grad_norm: float
    unscale: float
    is_allowed: bool
    step: int = 1


class Updater(Protocol):
    """Owns the trained tensors and their optimiser."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Trained tensors by name."""

    def leaves(self, first: int, last: int) -> dict[str, Tensor]:
        """Tensors of the members from `first` to before `last`, to take gradients of; they share the memory of `tensors`."""

    def zero_grad(self) -> None:
        """Set all gradients to zero."""

    def add_grads(self, first: int, last: int, grads: Sequence[Tensor | None]) -> None:
        """Add gradients to those gathered so far.

        Args:
            first: As given to `leaves`.
            last: As given to `leaves`.
            grads: One per leaf, in their order; None where the loss does not reach it.
        """

    def update(self, members: Sequence[MemberUpdate | None]) -> list[float]:
        """Clip and update.

        Args:
            members: One per member; None for a member that takes no part in this step and keeps its bits.

        Returns:
            Each member's gradient norm before clipping; where it is not finite, nothing of the member was changed.
        """

    def state(self) -> dict[str, Tensor]:
        """Values and optimiser state, to resume from; copies."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take values and optimiser state from `state()`."""


_REST = MemberUpdate(0.0, 0.0, 1.0, is_allowed=False)


class ArenaUpdater:
    """Adapters and heads of K members in one arena.

    Args:
        arena: Their buffers.
        configs: The update rule of each member; they share its name.
        learning_rates: Peak rate of each member's adapter.
        rate_factors: Per member, factors of that rate for tensors that have their own, by name.
    """

    def __init__(
        self, arena: Arena, configs: Sequence[OptimizerConfig], learning_rates: Sequence[float], rate_factors: Sequence[Mapping[str, float]] = ()
    ) -> None:
        self._arena = arena
        self._optimizer = _arena_optimizer(arena, configs, learning_rates, _factors(arena, rate_factors))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Trained tensors by name, each with the leading K."""
        return self._arena.tensors

    def leaves(self, first: int, last: int) -> dict[str, Tensor]:
        """Views of the members' values; see `Updater.leaves`."""
        return {name: tensor.detach()[first:last].requires_grad_() for name, tensor in self._arena.tensors.items()}

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._arena.zero_grad()

    def add_grads(self, first: int, last: int, grads: Sequence[Tensor | None]) -> None:
        """Add gradients; see `Updater.add_grads`."""
        for leaf, grad in zip(self._arena.tensors.values(), grads, strict=True):
            if grad is not None:
                assert leaf.grad is not None
                leaf.grad[first:last].add_(grad)

    def update(self, members: Sequence[MemberUpdate | None]) -> list[float]:
        """Clip and update; see `Updater.update`."""
        arena, chosen = self._arena, [member or _REST for member in members]
        if any(member.unscale != 1.0 for member in chosen):
            arena.grads.mul_(self._column([member.unscale for member in chosen])[:, None])
        norms: list[float] = arena.clip(self._column([member.max_grad_norm for member in chosen])).tolist()
        is_active = [member.is_allowed and math.isfinite(norm) for member, norm in zip(chosen, norms, strict=True)]
        if any(is_active):
            everyone = None if all(is_active) else torch.tensor(is_active, device=arena.values.device)
            self._optimizer.step(self._column([member.factor for member in chosen]), everyone)
        return norms

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=self._arena.values.dtype, device=self._arena.values.device)

    def state(self) -> dict[str, Tensor]:
        """Values and optimiser state; copies."""
        return {"values": self._arena.values.clone(), **{f"optimizer.{name}": tensor for name, tensor in self._optimizer.state_dict().items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take values and optimiser state from `state()`."""
        self._arena.values.copy_(state["values"])
        self._optimizer.load_state_dict({name.removeprefix("optimizer."): tensor for name, tensor in state.items() if name.startswith("optimizer.")})


class LibraryUpdater:
    """Every encoder weight and the head, moved by the library's fused optimiser on float32 master weights.

    Args:
        tensors: Trained leaves by name; `head.` names have the leading K = 1.
        config: The update rule.
        learning_rate: Peak rate of the encoder.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: OptimizerConfig, learning_rate: float) -> None:
        self._tensors = dict(tensors)
        self._peaks: list[float] = []
        groups = []
        for is_head in (False, True):
            for has_decay in (True, False):
                chosen = [t for name, t in self._tensors.items() if name.startswith("head.") == is_head and takes_decay(name) == has_decay]
                if not chosen:
                    continue
                self._peaks.append((config.head_learning_rate or learning_rate) if is_head else learning_rate)
                groups.append({"params": chosen, "weight_decay": config.weight_decay if has_decay else 0.0})
        if config.name == "adamw":
            self._optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=config.betas, eps=config.eps, fused=True)
        else:
            self._optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=config.momentum, fused=True)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Trained leaves by name."""
        return self._tensors

    def leaves(self, first: int, last: int) -> dict[str, Tensor]:
        """The trained tensors themselves; see `Updater.leaves`."""
        return self._tensors

    def zero_grad(self) -> None:
        """Set all gradients to zero, keeping their memory."""
        self._optimizer.zero_grad(set_to_none=False)

    def add_grads(self, first: int, last: int, grads: Sequence[Tensor | None]) -> None:
        """Add gradients; see `Updater.add_grads`."""
        for leaf, grad in zip(self._tensors.values(), grads, strict=True):
            if grad is None:
                continue
            if leaf.grad is None:
                leaf.grad = grad
            else:
                leaf.grad.add_(grad)

    def update(self, members: Sequence[MemberUpdate | None]) -> list[float]:
        """Clip and update; see `Updater.update`."""
        (member,) = members
        return [math.nan if member is None else self._update(member.factor, member.max_grad_norm, member.unscale, is_allowed=member.is_allowed)]

    def _update(self, factor: float, max_grad_norm: float, unscale: float, *, is_allowed: bool) -> float:
        grads = [tensor.grad for tensor in self._tensors.values() if tensor.grad is not None]
        if unscale != 1.0:
            torch._foreach_mul_(grads, unscale)
        total = torch.nn.utils.get_total_norm(grads)
        norm = float(total)
        if not (is_allowed and math.isfinite(norm)):
            return norm
        if max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(list(self._tensors.values()), max_grad_norm, total)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self._optimizer.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Values and optimiser state; copies."""
        out = {f"values.{name}": tensor.detach().clone() for name, tensor in self._tensors.items()}
        for name, tensor in self._tensors.items():
            for key, value in self._optimizer.state.get(tensor, {}).items():
                if isinstance(value, Tensor):
                    out[f"optimizer.{key}.{name}"] = value.clone()
        return out

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take values and optimiser state from `state()`."""
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(state[f"values.{name}"])
                kept = {
                    key: state[f"optimizer.{key}.{name}"].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                    if f"optimizer.{key}.{name}" in state
                }
                self._optimizer.state.pop(tensor, None)
                if kept:
                    self._optimizer.state[tensor] = kept


def takes_decay(name: str) -> bool:
    """Whether weight decay applies to a tensor: not to biases and norms, as usual."""
    return not (name.endswith(".bias") or "norm" in name)


def _factors(arena: Arena, rate_factors: Sequence[Mapping[str, float]]) -> Tensor | None:
    """(K, P) factors of the rate; None where all are 1."""
    if not any(factor != 1.0 for member in rate_factors for factor in member.values()):
        return None
    rows = [torch.cat([torch.full((block.size,), member.get(block.name, 1.0)) for block in arena.blocks]) for member in rate_factors]
    return torch.stack(rows)


def _arena_optimizer(arena: Arena, configs: Sequence[OptimizerConfig], learning_rates: Sequence[float], rate_factor: Tensor | None) -> ArenaOptimizer:
    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64)

    (name,) = {config.name for config in configs}
    settings = MemberSettings(
        learning_rate=column(learning_rates),
        head_learning_rate=column(config.head_learning_rate or rate for config, rate in zip(configs, learning_rates, strict=True)),
        weight_decay=column(config.weight_decay for config in configs),
        beta1=column(config.betas[0] if name == "adamw" else config.momentum for config in configs),
        beta2=column(config.betas[1] for config in configs),
        eps=column(config.eps for config in configs),
        rate_factor=rate_factor,
    )
    return AdamW(arena, settings) if name == "adamw" else Sgd(arena, settings)
