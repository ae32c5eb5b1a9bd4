"""AdaLoRA: a budget of rank that training itself spreads over the sites.

Source: Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning" (ICLR), equations 3 to 12.

Equation: h = W₀x + s·P·Λ·Q·x, s = α/R, Λ diagonal and zero at the start, P and Q Gaussian (3); the loss has γ·(‖PᵀP − I‖² + ‖QQᵀ − I‖²) beside it (4). After a step, the diagonal
entries of the triplets that are not among the b most important of all sites become zero; they may come back (5, 6). The importance of a triplet is the sensitivity |w · ∂L/∂w| of
its values, smoothed, times its uncertainty, smoothed (7 to 11). b falls along a cubic from the initial number to the target, and then stays (12).

Parameters: R · (D_in + D_out + 1) at each site, R the initial rank: that is what is trained and what counts against the budget. What is stored is what remains: triplets whose
diagonal entry is zero are dropped, and the file is as small as the target says.

Departures: the importance is taken from the values after the update and the clipped gradients, as in the authors' code. The cubic runs over (t − t_i) / (T − t_i − t_f):
with t − t_i − t_f, as printed, it would start above the initial number. From T − t_f on the same triplets stay zero. The regulariser is a mean over the matrices, as in
the authors' code, so that its weight means the same for any number of sites; its norm is squared, as in the paper; the loss that is told leaves it out. P and Q start with
deviation 1/√D, so that they are nearly orthonormal. The update is multiplied by alpha / R, R the initial rank. The diagonal has a learning rate of its own: its entries are
the singular values of the update and have far to go from zero.

PEFT: its LoRA with a rank for each site (`rank_pattern`), not its AdaLoRA.

Stored: as plain LoRA with a rank for each site, the diagonal and the scaling multiplied into B. The PEFT library's own AdaLoRA divides by the rank plus 1e-5, takes that
rank from a value that it does not save, and wants the length of a training that is over. Its LoRA with `rank_pattern` and `alpha_pattern` needs none of that and answers
with the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import Method, ParameterSpec, make_method
from lorabel.methods.base_peft import PeftFile
from lorabel.methods.base_ranks import EVERYWHERE, check_plain_lora, from_factors
from lorabel.methods.base_sited import LowRankMethod
from lorabel.registry import METHODS
from lorabel.slots import LowRank

if TYPE_CHECKING:
    from torch import Tensor

_DIAGONAL = "lora_E"


@METHODS.register("adalora")
class AdaLora(LowRankMethod):
    """Low-rank adapters whose ranks are spread over the sites in training."""

    name: ClassVar[str] = "adalora"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    default_learning_rate: ClassVar[float] = 3e-3
    folds_by_value: ClassVar[bool] = True

    targets: tuple[str, ...] = Field(default=LINEAR_SITES, description="Linear sites to adapt; or all-linear, attention, ffn.")
    rank: int = Field(default=12, ge=1, description="Rank R of every site at the start: all of it is trained and counts against the budget.")
    target_rank: int | None = Field(default=None, ge=1, description="Mean rank of a site at the end (default: two thirds of the rank).")
    initial_ratio: float = Field(default=0.1, ge=0, lt=1, description="Part of the steps before the first triplet is taken away, t_i / T.")
    final_ratio: float = Field(default=0.5, ge=0, lt=1, description="Part of the steps after the last one is taken away, t_f / T.")
    interval_steps: int = Field(default=1, ge=1, description="Steps between two allocations.")
    sensitivity_smoothing: float = Field(default=0.85, ge=0, lt=1, description="Weight of the past in the average of the sensitivity, beta_1.")
    uncertainty_smoothing: float = Field(default=0.85, ge=0, lt=1, description="Weight of the past in the average of the uncertainty, beta_2.")
    orthogonality: float = Field(default=0.1, ge=0, description="Weight of the regulariser that keeps the singular vectors orthonormal, gamma.")
    diagonal_rate_factor: float = Field(default=10.0, gt=0, description="Learning rate of the diagonal over that of the singular vectors.")

    def model_post_init(self, context: object) -> None:
        """Refuse what contradicts itself."""
        super().model_post_init(context)
        if self.target_rank is not None and self.target_rank > self.rank:
            raise ValueError(
                f"method.target_rank: larger than the rank it starts from, got {self.target_rank}; expected at most {self.rank}. Raise rank, or leave it out."
            )
        if self.initial_ratio + self.final_ratio >= 1:
            raise ValueError(
                f"method.final_ratio: no steps are left to take triplets away, got {self.final_ratio} beside an initial_ratio of {self.initial_ratio}; "
                "expected a sum below 1. Lower one of them."
            )

    @property
    def final_rank(self) -> int:
        """Mean rank of a site at the end."""
        return self.target_rank or max(1, round(2 * self.rank / 3))

    def site_parameters(self, shape: EncoderShape, layer: int, site: str) -> tuple[ParameterSpec, ...]:
        """Q as `lora_A` (R, D_in), P as `lora_B` (D_out, R), the diagonal of Λ as `lora_E` (R, 1); R · (D_in + D_out + 1) parameters."""
        out_features, in_features = shape.linear_shape(site)
        prefix = f"layers.{layer}.{site}"
        down = ParameterSpec(f"{prefix}.lora_A", (self.rank, in_features), layer, site, "lora_A", "normal", 1 / math.sqrt(in_features))
        up = ParameterSpec(
            f"{prefix}.lora_B", (out_features, self.rank), layer, site, "lora_B", "normal", 1 / math.sqrt(out_features), rate_factor=self.lora_plus_ratio
        )
        return (down, up, ParameterSpec(f"{prefix}.{_DIAGONAL}", (self.rank, 1), layer, site, _DIAGONAL, rate_factor=self.diagonal_rate_factor))

    @classmethod
    def factors(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor]) -> LowRank | None:
        """P and ΛQ."""
        added, diagonal = super().factors(members, layer, site, tensors), tensors.get(f"layers.{layer}.{site}.{_DIAGONAL}")
        if added is None or diagonal is None:
            return None
        return LowRank(added.lora_A * diagonal, added.lora_B, added.scaling, added.dropout)

    def allocator(self, shape: EncoderShape, total_steps: int) -> RankAllocator:
        """The allocator of one member."""
        return RankAllocator(self, shape, total_steps)

    def settled_from(self, total_steps: int) -> int:
        """T − t_f: the first step whose values have no more triplets than the target."""
        return total_steps - int(self.final_ratio * total_steps)

    def stored_form(self) -> Method:
        """LoRA of the target rank at every site: as many triplets as will remain, wherever they remain."""
        return self._as_lora(self.final_rank)

    def _as_lora(self, rank: int, ranks: Mapping[str, int] | None = None) -> Method:
        """LoRA whose factors have the scaling in them."""
        options = {"targets": self.targets, "layers": self.layers, "dropout": self.dropout, "lora_plus_ratio": self.lora_plus_ratio}
        return make_method({"name": "lora", "rank": rank, "alpha": rank, "ranks": ranks, **options})

    def folded(self, tensors: Mapping[str, Tensor], shape: EncoderShape) -> tuple[Method, dict[str, Tensor]]:
        """LoRA of the triplets that remain, the diagonal and the scaling in B; at least one, so that there is an adapter."""
        left = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
        sites = [spec.name.removesuffix(f".{_DIAGONAL}") for spec in self.parameters(shape) if spec.role == _DIAGONAL]
        is_kept = {site: tensors[f"{site}.{_DIAGONAL}"][:, 0] != 0 for site in sites}
        if not any(bool(kept.any()) for kept in is_kept.values()):
            is_kept[sites[0]][0] = True
        for site, kept in is_kept.items():
            if kept.any():
                left[f"{site}.lora_A"] = tensors[f"{site}.lora_A"][kept].contiguous()
                left[f"{site}.lora_B"] = (tensors[f"{site}.lora_B"][:, kept] * (self.scaling * tensors[f"{site}.{_DIAGONAL}"][kept, 0])).contiguous()
        ranks = {site: int(kept.sum()) for site, kept in is_kept.items() if kept.any()}
        return self._as_lora(max(ranks.values()), {EVERYWHERE: 0, **ranks}), left

    def peft_config(self, shape: EncoderShape) -> None:
        """None for what is still in training; see `stored_form`."""
        return None

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """Its AdaLoRA, as the LoRA that answers the same: P (α / (R + 1e-5)) Λ as B, R the initial rank of every site, whatever is left of it."""
        if file.kind != "ADALORA":
            return None
        check_plain_lora(file.config)
        downs, ups, diagonals = (file.take_sites(cls.peft_root, shape, role) for role in ("lora_A", "lora_B", _DIAGONAL))
        scaling = file.number("lora_alpha", 8) / (file.count("init_r", 12) + 1e-5)
        folded = {site: up * (scaling * diagonals[site][:, 0]) for site, up in ups.items() if site in diagonals and diagonals[site].shape == (up.shape[1], 1)}
        return from_factors("lora", downs, folded, {site: 1.0 for site, down in downs.items() if len(down)}, shape, file.probability("lora_dropout"))

    @classmethod
    def _least_rank(cls, options: Mapping[str, Any]) -> int:
        """No lower than a target that is given; where that does not fit, the gate says what would."""
        target = options.get("target_rank")
        return max(super()._least_rank(options), target if isinstance(target, int) and options.get("rank") == "auto" else 1)

    @classmethod
    def _largest_rank(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> int:
        """As LoRA's."""
        return super()._largest_rank(cls._without_target(options), shape, limit)

    @classmethod
    def spends(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """As LoRA's, the target no larger than the rank."""
        return cls._with_target(options, super().spends(cls._without_target(options), shape, limit))

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """As LoRA's, the target no larger than the rank."""
        return cls._with_target(options, super().smaller(cls._without_target(options), shape, limit))

    @classmethod
    def _without_target(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options but for the target, which smaller ranks could fall below while sizes are tried."""
        return {name: value for name, value in options.items() if name != "target_rank"}

    @classmethod
    def _with_target(cls, options: Mapping[str, Any], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        target = options.get("target_rank")
        return found if target is None else [{**one, "target_rank": min(target, one["rank"])} for one in found]


class RankAllocator:
    """Scores the triplets of one member and takes the least important away; implements `methods.base.Allocator`.

    Args:
        method: The member's settings.
        shape: The encoder.
        total_steps: T.
    """

    def __init__(self, method: AdaLora, shape: EncoderShape, total_steps: int) -> None:
        import torch

        specs = method.parameters(shape)
        self._method = method
        self._names = [spec.name for spec in specs]
        self._shapes = [spec.shape for spec in specs]
        self._diagonals = [spec.name for spec in specs if spec.role == _DIAGONAL]
        self._first_step = int(method.initial_ratio * total_steps)
        self._last_step = method.settled_from(total_steps)
        size = sum(spec.size for spec in specs)
        self._sensitivity, self._uncertainty = torch.zeros(size), torch.zeros(size)
        # Which triplets stay from the last allocation on; none before it.
        self._kept = torch.zeros(len(self._diagonals) * method.rank, dtype=torch.bool)
        self._is_final = False

    def penalty(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """γ times the mean of ‖PᵀP − I‖² and ‖QQᵀ − I‖² over all matrices (equation 4)."""
        import torch

        # Matrices of one width together: a handful of products instead of two for each site.
        by_width: dict[int, list[Tensor]] = {}
        for name in self._names:
            if not name.endswith(_DIAGONAL):
                rows = tensors[name] if name.endswith("lora_A") else tensors[name].T  # (R, D)
                by_width.setdefault(rows.shape[1], []).append(rows)
        squares = []
        for alike in by_width.values():
            stacked = torch.stack(alike)  # (N, R, D)
            identity = torch.eye(self._method.rank, dtype=stacked.dtype, device=stacked.device)
            squares.append((stacked @ stacked.mT - identity).square().sum())
        return self._method.orthogonality * torch.stack(squares).sum() / (2 * len(self._diagonals))

    def triplets_at(self, step: int) -> int:
        """b(t), how many triplets may remain after a step (equation 12)."""
        sites, method = len(self._diagonals), self._method
        most, least = sites * method.rank, sites * method.final_rank
        if step <= self._first_step:
            return most
        if step >= self._last_step:
            return least
        to_go = 1 - (step - self._first_step) / (self._last_step - self._first_step)
        return round(least + (most - least) * to_go**3)

    def after_step(self, step: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None) -> None:
        """Move the averages on, and set the diagonal entries of what is not kept to zero."""
        import torch

        with torch.no_grad():
            if gradients is not None and not self._is_final:
                self._observe(self._flat(values), self._flat(gradients))
            if step >= self._last_step:
                if not self._is_final:
                    self._kept, self._is_final = self._most_important(self.triplets_at(step)), True
                self._prune(values, self._kept)
            elif step > self._first_step and step % self._method.interval_steps == 0:
                self._prune(values, self._most_important(self.triplets_at(step)))

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        import torch

        return torch.cat([tensors[name].flatten() for name in self._names])

    def _observe(self, values: Tensor, gradients: Tensor) -> None:
        """Sensitivity, and both averages (equations 8 to 10)."""
        past, doubt = self._method.sensitivity_smoothing, self._method.uncertainty_smoothing
        now = (values * gradients).abs()
        self._sensitivity = past * self._sensitivity.to(now) + (1 - past) * now
        self._uncertainty = doubt * self._uncertainty.to(now) + (1 - doubt) * (now - self._sensitivity).abs()

    def scores(self) -> Tensor:
        """Importance of all triplets, by site: that of the diagonal entry plus the means of those of its two vectors (equations 7 and 11).

        Returns:
            (sites · R,).
        """
        import torch

        each = self._sensitivity * self._uncertainty
        parts = torch.split(each, [math.prod(shape) for shape in self._shapes])
        matrices = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        triples = zip(matrices[0::3], matrices[1::3], matrices[2::3], strict=True)
        return torch.cat([diagonal[:, 0] + up.mean(dim=0) + down.mean(dim=1) for down, up, diagonal in triples])

    def _most_important(self, count: int) -> Tensor:
        """Which triplets are among the best; of equal ones the first, so that the number is exact."""
        import torch

        scores = self.scores()
        kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        kept[torch.sort(scores, descending=True, stable=True).indices[:count]] = True
        return kept

    def _prune(self, values: Mapping[str, Tensor], kept: Tensor) -> None:
        import torch

        gone = ~kept.to(values[self._diagonals[0]].device)
        for name, of_site in zip(self._diagonals, torch.split(gone, self._method.rank), strict=True):
            values[name].masked_fill_(of_site[:, None], 0.0)

    def state(self) -> dict[str, Tensor]:
        """Both averages, and what stays."""
        return {"sensitivity": self._sensitivity, "uncertainty": self._uncertainty, "kept": self._kept}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state()` gave."""
        self._sensitivity, self._uncertainty, self._kept = state["sensitivity"], state["uncertainty"], state["kept"]
        self._is_final = bool(self._kept.any())
