"""Methods that do more to a member in training than its gradients say: a penalty beside its loss, and changes of its values after a step.

Wrapped around an updater, so that the loop and the checkpoints know nothing of it: the penalty's gradient joins those of the rows before they are clipped, and the
allocators' state is saved and restored with the optimiser's. The loss that is told stays the loss on the rows, which can be compared between methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorabel.families import EncoderShape
from lorabel.methods.base import Allocator, Method
from lorabel.models.bank import corner
from lorabel.training.updates import MemberUpdate, Updater

_PREFIX = "allocator."


def with_allocators(updater: Updater, methods: Sequence[Method], shape: EncoderShape, total_steps: Sequence[int]) -> Updater:
    """An updater together with the allocators of its members.

    Args:
        updater: Moves the members' tensors.
        methods: One per member.
        shape: The encoder.
        total_steps: Optimiser steps of each member's run.

    Returns:
        The updater itself where no method has an allocator.
    """
    allocators = [method.allocator(shape, total) for method, total in zip(methods, total_steps, strict=True)]
    if all(allocator is None for allocator in allocators):
        return updater
    sizes = [{spec.name: spec.shape for spec in method.parameters(shape)} for method in methods]
    return AllocatingUpdater(updater, allocators, sizes)


class AllocatingUpdater:
    """An updater whose members may each have an allocator.

    Args:
        inner: Moves the members' tensors.
        allocators: One per member, or None.
        sizes: Per member, its own parameters' names and shapes without K.
    """

    def __init__(self, inner: Updater, allocators: Sequence[Allocator | None], sizes: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
        self._inner = inner
        self._allocators = {k: allocator for k, allocator in enumerate(allocators) if allocator is not None}
        self._sizes = sizes

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Trained tensors by name; see `Updater.tensors`."""
        return self._inner.tensors

    def leaves(self, first: int, last: int) -> dict[str, Tensor]:
        """See `Updater.leaves`."""
        return self._inner.leaves(first, last)

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._inner.zero_grad()

    def add_grads(self, first: int, last: int, grads: Sequence[Tensor | None]) -> None:
        """Add gradients; see `Updater.add_grads`."""
        self._inner.add_grads(first, last, grads)

    def update(self, members: Sequence[MemberUpdate | None], losses: Tensor) -> Tensor:
        """Add the penalties' gradients, clip and update, and let the allocators look at it; see `Updater.update`. Allocators work on the host, so this waits for a device."""
        taking_part = [(k, allocator, member) for k, allocator in self._allocators.items() if (member := members[k]) is not None]
        for k, allocator, member in taking_part:
            self._add_penalty(k, allocator, member.unscale)
        norms = self._inner.update(members, losses)
        is_applied = (losses.isfinite() & norms.isfinite()).tolist()
        for k, allocator, member in taking_part:
            allocator.after_step(member.step, self._values(k), self._gradients(k) if is_applied[k] else None)
        return norms

    def _add_penalty(self, k: int, allocator: Allocator, unscale: float) -> None:
        """Gradients gathered so far are scaled against underflow, so the penalty's are too."""
        leaves = {name: value.requires_grad_() for name, value in self._values(k).items()}
        found = torch.autograd.grad(allocator.penalty(leaves) / unscale, list(leaves.values()), allow_unused=True)
        for gathered, grad in zip(self._gradients(k).values(), found, strict=True):
            if grad is not None:
                gathered.add_(grad)

    def _values(self, k: int) -> dict[str, Tensor]:
        """One member's values in its own sizes: views that no graph knows of."""
        return {name: corner(self.tensors[name].detach()[k], size) for name, size in self._sizes[k].items()}

    def _gradients(self, k: int) -> dict[str, Tensor]:
        """One member's gradients in its own sizes: views."""
        gradients = {}
        for name, size in self._sizes[k].items():
            gathered = self.tensors[name].grad
            assert gathered is not None
            gradients[name] = corner(gathered[k], size)
        return gradients

    def state(self) -> dict[str, Tensor]:
        """The inner updater's state and the allocators'; copies."""
        own = {f"{_PREFIX}{k}.{name}": tensor.clone() for k, allocator in self._allocators.items() for name, tensor in allocator.state().items()}
        return {**self._inner.state(), **own}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state()` gave."""
        self._inner.restore({name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)})
        for k, allocator in self._allocators.items():
            prefix = f"{_PREFIX}{k}."
            allocator.restore({name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)})
