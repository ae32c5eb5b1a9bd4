"""Updaters: what the loop calls to turn gradients into new values.

Adapters and heads live in one flat arena with our own optimiser. Full fine-tuning has every encoder weight to move: there the library's fused
optimiser does it, on float32 master weights. Both answer the same few questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lorabel.config import OptimizerConfig
from lorabel.training.optim import AdamW, Arena, ArenaOptimizer, MemberSettings, Sgd


class Updater(Protocol):
    """Owns the trained tensors and their optimiser."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Trained leaves by name."""

    def zero_grad(self) -> None:
        """Set all gradients to zero."""

    def update(self, factor: float, max_grad_norm: float, unscale: float, *, is_allowed: bool) -> float:
        """Clip and update.

        Args:
            factor: Of the peak learning rate.
            max_grad_norm: Clipping norm, 0 for none.
            unscale: Multiplied into the gradients first (inverse of the loss scale).
            is_allowed: False where the loss was not finite: nothing may change.

        Returns:
            The gradient norm before clipping; where it is not finite, nothing was changed.
        """

    def state(self) -> dict[str, Tensor]:
        """Values and optimiser state, to resume from; copies."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take values and optimiser state from `state()`."""


class ArenaUpdater:
    """Adapters and heads in one arena, K = 1.

    Args:
        arena: Their buffers.
        config: The update rule.
        learning_rate: Peak rate of the adapter.
    """

    def __init__(self, arena: Arena, config: OptimizerConfig, learning_rate: float) -> None:
        self._arena = arena
        self._optimizer = _arena_optimizer(arena, config, learning_rate)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Trained leaves by name, each with the leading K."""
        return self._arena.tensors

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._arena.zero_grad()

    def update(self, factor: float, max_grad_norm: float, unscale: float, *, is_allowed: bool) -> float:
        """Clip and update; see `Updater.update`."""
        if unscale != 1.0:
            self._arena.grads.mul_(unscale)
        members = self._arena.members
        norms = self._arena.clip(torch.full((members,), max_grad_norm, dtype=self._arena.values.dtype, device=self._arena.values.device))
        norm = float(norms.max())
        if is_allowed and math.isfinite(norm):
            self._optimizer.step(torch.full((members,), factor, dtype=self._arena.values.dtype, device=self._arena.values.device))
        return norm

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

    def zero_grad(self) -> None:
        """Set all gradients to zero, keeping their memory."""
        self._optimizer.zero_grad(set_to_none=False)

    def update(self, factor: float, max_grad_norm: float, unscale: float, *, is_allowed: bool) -> float:
        """Clip and update; see `Updater.update`."""
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


def add_grads(leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Add one share's gradients to the leaves' own.

    Args:
        leaves: Trained tensors.
        grads: One per leaf, None where the share does not reach it.
    """
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is None:
            continue
        if leaf.grad is None:
            leaf.grad = grad
        else:
            leaf.grad.add_(grad)


def takes_decay(name: str) -> bool:
    """Whether weight decay applies to a tensor: not to biases and norms, as usual."""
    return not (name.endswith(".bias") or "norm" in name)


def _arena_optimizer(arena: Arena, config: OptimizerConfig, learning_rate: float) -> ArenaOptimizer:
    def every(value: float) -> Tensor:
        return torch.full((arena.members,), value, dtype=torch.float64)

    settings = MemberSettings(
        learning_rate=every(learning_rate),
        head_learning_rate=every(config.head_learning_rate or learning_rate),
        weight_decay=every(config.weight_decay),
        beta1=every(config.betas[0] if config.name == "adamw" else config.momentum),
        beta2=every(config.betas[1]),
        eps=every(config.eps),
    )
    return AdamW(arena, settings) if config.name == "adamw" else Sgd(arena, settings)
