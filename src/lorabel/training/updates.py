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
from lorabel.data.types import to_device
from lorabel.training.optim import AdamW, Arena, ArenaOptimizer, MemberSettings, Sgd


@dataclass(frozen=True)
class MemberUpdate:
    """How one member moves in one step.

    Attributes:
        factor: Of the peak learning rate.
        max_grad_norm: Clipping norm, 0 for none.
        unscale: Multiplied into the gradients first (inverse of the loss scale).
        step: Steps done, this one included.
    """

    factor: float
    max_grad_norm: float
    unscale: float
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

    def update(self, members: Sequence[MemberUpdate | None], losses: Tensor) -> Tensor:
        """Clip and update. Where tensors live on a GPU, nothing waits for it.

        Args:
            members: One per member; None for a member that takes no part in this step and keeps its bits.
            losses: (K,) their losses, where the tensors are; a member whose loss is not finite keeps its bits too.

        Returns:
            (K,) each member's gradient norm before clipping; where it is not finite, nothing of the member was changed.
        """

    def state(self) -> dict[str, Tensor]:
        """Values and optimiser state, to resume from; copies."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take values and optimiser state from `state()`."""


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
        self.arena = arena
        self._optimizer = _arena_optimizer(arena, configs, learning_rates, _factors(arena, rate_factors))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Trained tensors by name, each with the leading K."""
        return self.arena.tensors

    def leaves(self, first: int, last: int) -> dict[str, Tensor]:
        """Views of the members' values; see `Updater.leaves`."""
        return {name: tensor.detach()[first:last].requires_grad_() for name, tensor in self.arena.tensors.items()}

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.arena.zero_grad()

    def add_grads(self, first: int, last: int, grads: Sequence[Tensor | None]) -> None:
        """Add gradients; see `Updater.add_grads`."""
        gathered, found = [], []
        for leaf, grad in zip(self.arena.tensors.values(), grads, strict=True):
            if grad is not None:
                assert leaf.grad is not None
                gathered.append(leaf.grad[first:last])
                found.append(grad)
        torch._foreach_add_(gathered, found)

    def update(self, members: Sequence[MemberUpdate | None], losses: Tensor) -> Tensor:
        """Clip and update; see `Updater.update`."""
        is_scaled = any(member is not None and member.unscale != 1.0 for member in members)
        return self.apply(to_device(self.columns(members), losses.device), losses, is_scaled=is_scaled)

    def columns(self, members: Sequence[MemberUpdate | None]) -> Tensor:
        """What `apply` reads, (4, K) on the host: factor of the rate, clipping norm, inverse of the loss scale, and 1 for each member that takes part."""
        chosen = [(one.factor, one.max_grad_norm, one.unscale, 1.0) if one is not None else (0.0, 0.0, 1.0, 0.0) for one in members]
        return torch.tensor(chosen, dtype=self.arena.values.dtype).t().contiguous()

    def apply(self, columns: Tensor, losses: Tensor, *, is_scaled: bool) -> Tensor:
        """Clip and update, on the device alone.

        Args:
            columns: See `columns`, on the device.
            losses: (K,).
            is_scaled: Whether some loss scale is not 1.

        Returns:
            (K,) gradient norms before clipping.
        """
        arena, (factor, max_norm, unscale, takes_part) = self.arena, columns
        if is_scaled:
            arena.grads.mul_(unscale[:, None])
        norms = arena.clip(max_norm)
        is_active = losses.isfinite() & norms.isfinite() & (takes_part > 0)
        # On a CPU the answer is at hand, and a step of all members is cheaper.
        self._optimizer.step(factor, None if is_active.device.type == "cpu" and bool(is_active.all()) else is_active)
        return norms

    def state(self) -> dict[str, Tensor]:
        """Values and optimiser state; copies."""
        return {"values": self.arena.values.clone(), **{f"optimizer.{name}": tensor for name, tensor in self._optimizer.state_dict().items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take values and optimiser state from `state()`."""
        self.arena.values.copy_(state["values"])
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

    def update(self, members: Sequence[MemberUpdate | None], losses: Tensor) -> Tensor:
        """Clip and update; see `Updater.update`. The library's optimiser cannot leave out a step on the device's word, so this waits for it."""
        (member,) = members
        if member is None:
            return torch.full((1,), math.nan)
        grads = [tensor.grad for tensor in self._tensors.values() if tensor.grad is not None]
        if member.unscale != 1.0:
            torch._foreach_mul_(grads, member.unscale)
        norm = torch.nn.utils.get_total_norm(grads)
        if bool(losses.isfinite().all() & norm.isfinite()):
            if member.max_grad_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(list(self._tensors.values()), member.max_grad_norm, norm)
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * member.factor
            self._optimizer.step()
        return norm[None]

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
                # The fused kernels take moments and counts where the values are, and nowhere else; a checkpoint is read onto the CPU.
                kept = {
                    key: state[f"optimizer.{key}.{name}"].to(tensor.device, copy=True)
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
