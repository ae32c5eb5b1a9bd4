"""AdamW and SGD over one flat arena, every setting a vector over members.

All trained values of all members lie in one buffer (K, P), their gradients in an equal one; named tensors are views of it. A step is then a handful of in-place
operations on whole buffers, whatever the number of tensors, and members with different settings cost nothing extra.

Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2. Equal to the library's optimisers to rounding.
Departure: none in the arithmetic; settings may differ between members and between adapter and head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """One named tensor in the arena.

    Attributes:
        name: Its name.
        shape: Without the leading K.
        has_decay: Whether weight decay applies.
        group: `adapter` or `head`; the head may have its own learning rate.
    """

    name: str
    shape: tuple[int, ...]
    has_decay: bool = True
    group: Literal["adapter", "head"] = "adapter"

    @property
    def size(self) -> int:
        """Number of values of one member."""
        size = 1
        for length in self.shape:
            size *= length
        return size


class Arena:
    """The buffers behind all trained tensors.

    Args:
        blocks: The tensors, in stored order.
        members: K.
        device: Where it lives.
        dtype: float32, or float64 in tests.
    """

    def __init__(self, blocks: Sequence[Block], members: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.blocks = tuple(blocks)
        width = sum(block.size for block in blocks)
        self.values = torch.zeros(members, width, device=device, dtype=dtype)
        self.grads = torch.zeros_like(self.values)
        self.has_decay = torch.zeros(width, device=device, dtype=dtype)
        self.is_head = torch.zeros(width, device=device, dtype=torch.bool)
        self.tensors: dict[str, Tensor] = {}
        self.starts: dict[str, int] = {}
        start = 0
        for block in blocks:
            span = slice(start, start + block.size)
            leaf = self.values[:, span].view(members, *block.shape).requires_grad_()
            leaf.grad = self.grads[:, span].view(members, *block.shape)
            self.tensors[block.name], self.starts[block.name] = leaf, start
            self.has_decay[span] = float(block.has_decay)
            self.is_head[span] = block.group == "head"
            start += block.size

    @property
    def members(self) -> int:
        """K."""
        return self.values.shape[0]

    def zero_grad(self) -> None:
        """Set all gradients to zero; the views stay."""
        self.grads.zero_()

    def grad_norms(self) -> Tensor:
        """Gradient norm of each member (K,), summed in the buffer's dtype."""
        norms: Tensor = torch.linalg.vector_norm(self.grads, dim=1)
        return norms

    def clip(self, max_norm: Tensor) -> Tensor:
        """Scale each member's gradient down to its largest norm.

        Args:
            max_norm: (K,); 0 leaves a member alone.

        Returns:
            Norms before clipping (K,).
        """
        norms = self.grad_norms()
        factor = torch.where(max_norm > 0, (max_norm / (norms + 1e-6)).clamp(max=1.0), torch.ones_like(norms))
        self.grads.mul_(factor[:, None])
        return norms


@dataclass(frozen=True)
class MemberSettings:
    """Optimiser settings, one value per member.

    Attributes:
        learning_rate: Peak rate of the adapter (K,).
        head_learning_rate: Peak rate of the head (K,).
        weight_decay: (K,).
        beta1: (K,); SGD's momentum is read from here.
        beta2: (K,).
        eps: (K,).
        rate_factor: (K, P) of the learning rate, where tensors have rates of their own; None for 1 everywhere.
    """

    learning_rate: Tensor
    head_learning_rate: Tensor
    weight_decay: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    rate_factor: Tensor | None = None


class ArenaOptimizer:
    """What AdamW and SGD share: the arena, the settings as columns, and which members take part in a step.

    Args:
        arena: Values and gradients.
        settings: One value per member.
    """

    def __init__(self, arena: Arena, settings: MemberSettings) -> None:
        self.arena = arena
        columns = {name: getattr(settings, name).to(arena.values)[:, None] for name in settings.__dataclass_fields__ if name != "rate_factor"}
        self.rate = torch.where(arena.is_head[None, :], columns["head_learning_rate"], columns["learning_rate"])  # (K, P)
        if settings.rate_factor is not None:
            self.rate = self.rate * settings.rate_factor.to(arena.values)
        self.decay = columns["weight_decay"] * arena.has_decay[None, :]  # (K, P)
        self.beta1, self.beta2, self.eps = columns["beta1"], columns["beta2"], columns["eps"]
        self.steps = torch.zeros(arena.members, 1, device=arena.values.device, dtype=arena.values.dtype)

    def buffers(self) -> dict[str, Tensor]:
        """The state tensors by name, live."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the state tensors."""
        return {name: tensor.clone() for name, tensor in self.buffers().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state from `state_dict()`."""
        for name, tensor in self.buffers().items():
            tensor.copy_(state[name])

    def step(self, factor: Tensor, is_active: Tensor | None = None) -> None:
        """Update all values in place.

        Args:
            factor: Of the peak rate, (K,).
            is_active: (K,) bool; values and state of the others keep their bits, whatever their gradients. Nothing waits for a device to know it.
        """
        with torch.no_grad():
            if is_active is None:
                self._update(factor[:, None], self.beta1, self.beta2, self.decay)
                self.steps += 1
                return
            active = is_active[:, None]
            self.arena.grads.masked_fill_(~active, 0.0)
            # A member that rests moves at rate 0, and its moments keep all of what they were.
            self._update(factor[:, None].where(active, 0.0), self.beta1.where(active, 1.0), self.beta2.where(active, 1.0), self.decay * active)
            self.steps += active

    def _update(self, factor: Tensor, beta1: Tensor, beta2: Tensor, decay: Tensor) -> None:
        """One step, the count of which is still to be raised."""
        raise NotImplementedError


class AdamW(ArenaOptimizer):
    """AdamW with decoupled weight decay.

    Args:
        arena: Values and gradients.
        settings: One value per member.
    """

    def __init__(self, arena: Arena, settings: MemberSettings) -> None:
        super().__init__(arena, settings)
        self.first = torch.zeros_like(arena.values)
        self.second = torch.zeros_like(arena.values)

    def buffers(self) -> dict[str, Tensor]:
        """First and second moments (K, P) and step counts (K, 1)."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def _update(self, factor: Tensor, beta1: Tensor, beta2: Tensor, decay: Tensor) -> None:
        values, grads = self.arena.values, self.arena.grads
        steps = self.steps + 1
        rate = self.rate * factor
        values.mul_(1 - rate * decay)
        self.first.lerp_(grads, (1 - beta1).expand_as(grads))
        self.second.mul_(beta2).addcmul_(grads, grads * (1 - beta2))
        correction1 = 1 - self.beta1**steps
        correction2 = 1 - self.beta2**steps
        denominator = self.second.sqrt().div_(correction2.sqrt()).add_(self.eps)
        values.sub_(rate.div_(correction1).mul_(self.first).div_(denominator))


class Sgd(ArenaOptimizer):
    """Stochastic gradient descent with momentum and the library's coupled weight decay.

    Args:
        arena: Values and gradients.
        settings: One value per member; momentum is `beta1`.
    """

    def __init__(self, arena: Arena, settings: MemberSettings) -> None:
        super().__init__(arena, settings)
        self.momentum = torch.zeros_like(arena.values)

    def buffers(self) -> dict[str, Tensor]:
        """Momentum (K, P) and step counts (K, 1)."""
        return {"momentum": self.momentum, "steps": self.steps}

    def _update(self, factor: Tensor, beta1: Tensor, beta2: Tensor, decay: Tensor) -> None:
        grads = self.arena.grads + decay * self.arena.values
        self.momentum.mul_(beta1).add_(grads)
        self.arena.values.sub_(self.rate * factor * self.momentum)
