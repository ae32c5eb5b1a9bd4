"""LoRA: a frozen linear layer plus a trained low-rank product.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3.
Rank-stabilised scaling: Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA".
A learning rate of its own for B: Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", section 4.
Start from the principal components of the weight: Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation", equations 2 to 4.

Equation: h = W₀x + s·B·A·x, s = α/R or, with `use_rslora`, α/√R; B = 0 at the start. With `init: pissa`, h = W₀x + s·(B·A − B₀·A₀)·x, s·B₀·A₀ being the R principal components of W₀.

Parameters: R · (D_in + D_out) at each site; with `ranks`, each site's own R.

Departures: none in the arithmetic. A starts uniform in ±1/√D_in (what the PEFT library draws), where the paper says Gaussian. Query, key and value of a layer
read one input and share its dropout mask, where the PEFT library draws one for each. PiSSA keeps the whole weight and takes the start's product away again,
s·(B A − B₀ A₀), so that the encoder stays shared by the members of a bank; it is stored as plain LoRA of twice the rank. Its factors take no weight decay: what is taken away
does not decay, so that theirs would wear away the principal components of the pretrained weight.

PEFT: its LoRA; `ranks` of single sites are its `rank_pattern`, and `init: pissa` becomes plain LoRA of twice the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from lorabel.errors import ConfigError
from lorabel.families import EncoderShape
from lorabel.methods.base import Method, ParameterSpec
from lorabel.methods.base_ranks import SiteRanksMethod
from lorabel.registry import METHODS
from lorabel.slots import LowRank, Start

if TYPE_CHECKING:
    from torch import Tensor

_START = ".start"


@METHODS.register("lora")
class Lora(SiteRanksMethod):
    """Low-rank adapters on any linear site of the encoder."""

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    default_learning_rate: ClassVar[float] = 1e-3
    # Whether a tensor decays is one answer for all members of a bank.
    shared_options: ClassVar[tuple[str, ...]] = ("init",)

    init: Literal["zeros", "pissa"] = Field(
        default="zeros", description="Start of the factors: B at zero; or pissa: the principal components of the weight, as rank 2R in the file."
    )

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Those of each adapted site, by layer, R · (D_in + D_out) parameters per site; with `pissa` without weight decay.

        Raises:
            ConfigError: With `pissa`, a rank above a weight's own; else as with all ranks of sites.
        """
        specs = super().parameters(shape)
        if self.init == "pissa":
            specs = tuple(replace(spec, has_decay=False) for spec in specs)
        large = [spec for spec in specs if self.init == "pissa" and self.rank_at(spec.layer, spec.site) > min(shape.linear_shape(spec.site))]
        if large:
            rank, most = self.rank_at(large[0].layer, large[0].site), min(shape.linear_shape(large[0].site))
            raise ConfigError(
                f"method.rank: more than the weight has principal components, got {rank} with init pissa; expected at most {most}. Lower the rank, or leave init out."
            )
        return specs

    def constants(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """With `pissa`, the factors' starts: as many values as are trained."""
        if self.init == "zeros":
            return ()
        return tuple(ParameterSpec(f"{s.name}{_START}", s.shape, s.layer, s.site, f"{s.role}{_START}") for s in self.parameters(shape))

    def initial(self, spec: ParameterSpec, start: Start) -> Tensor | None:
        """With `pissa`, the first R singular vectors of the site's weight, each times the root of its singular value over the scaling."""
        if self.init == "zeros":
            return None
        import torch

        weight = start.weights[f"layers.{spec.layer}.{spec.site}.weight"].double()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = self.rank_at(spec.layer, spec.site)
        root = (values[:rank] / self.scaling).sqrt()
        factor = root[:, None] * right[:rank] if spec.role.startswith("lora_A") else left[:, :rank] * root
        value: Tensor = factor.float().contiguous()
        return value

    @classmethod
    def factors(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor]) -> LowRank | None:
        """The trained factors; with `pissa`, joined with those that take the start away."""
        added = super().factors(members, layer, site, tensors)
        before = tensors.get(f"layers.{layer}.{site}.lora_A{_START}")
        if added is None or before is None:
            return added
        import torch

        down = torch.cat([added.lora_A, before], dim=1)
        up = torch.cat([added.lora_B, -tensors[f"layers.{layer}.{site}.lora_B{_START}"]], dim=2)
        return LowRank(down, up, added.scaling, added.dropout)

    def stored_form(self) -> Method:
        """With `pissa`, plain LoRA of twice the rank and the same scaling."""
        if self.init == "zeros":
            return self
        # The same scaling: alpha / rank, or alpha / √rank.
        alpha = self.alpha * (math.sqrt(2) if self.use_rslora else 2)
        ranks = None if self.ranks is None else {site: 2 * rank for site, rank in self.ranks.items()}
        return self.model_copy(update={"rank": 2 * self.rank, "ranks": ranks, "alpha": alpha, "init": "zeros"})

    def folded(self, tensors: Mapping[str, Tensor], shape: EncoderShape) -> tuple[Method, dict[str, Tensor]]:
        """With `pissa`, the factors and those of the start side by side."""
        if self.init == "zeros":
            return self, dict(tensors)
        import torch

        joined = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
        for spec in self.parameters(shape):
            now, before = tensors[spec.name], tensors[f"{spec.name}{_START}"]
            joined[spec.name] = torch.cat([now, before], dim=0) if spec.role == "lora_A" else torch.cat([now, -before], dim=1)
        return self.stored_form(), joined
