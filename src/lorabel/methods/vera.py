"""VeRA: random factors, the same for every site and never trained, rescaled by trained vectors.

Source: Kopiczko, Blankevoort, Asano 2023, "VeRA: Vector-based Random Matrix Adaptation", equation 2.

Equation: h = W₀x + Λ_b·B·Λ_d·A·x, Λ diagonal, A and B random and frozen; at the start Λ_b = 0 and Λ_d = `d_initial`.

Parameters: R + D_out at each site. The frozen factors are stored beside them, R · (largest D_in + largest D_out) values.

Departures: none. The factors are drawn from `projection_seed` as the PEFT library draws them, and stored with the adapter, so that no generator has to be trusted to repeat itself.
Members of a bank need equal ranks: the frozen factors are not zero, so filling up with zeros would not be exact.

PEFT: its VeRA at the same sites, the frozen factors saved with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from lorabel.families import EncoderShape
from lorabel.methods.base import Method, ParameterSpec, largest, make_method
from lorabel.methods.base_peft import PeftFile, by_name
from lorabel.methods.base_sited import SitedMethod
from lorabel.registry import METHODS
from lorabel.slots import LinearSlots, LowRank, Start

if TYPE_CHECKING:
    from torch import Tensor

_A, _B = "vera_A", "vera_B"


@METHODS.register("vera")
class Vera(SitedMethod):
    """Shared random low-rank factors with trained scales."""

    name: ClassVar[str] = "vera"
    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    default_learning_rate: ClassVar[float] = 3e-2

    targets: tuple[str, ...] = Field(default=("query", "value"), description="Linear sites to adapt; or all-linear, attention, ffn.")
    rank: int = Field(default=256, ge=1, description="Rank R of the frozen factors.")
    d_initial: float = Field(default=0.1, gt=0, description="Start of the trained vector d; b starts at zero.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the input of the low-rank path, in training only.")
    projection_seed: int = Field(default=0, ge=0, description="Seed of the frozen factors, apart from the run's.")

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Per site `vera_lambda_d` (R,) and `vera_lambda_b` (D_out,); R + D_out parameters."""
        specs = []
        for layer in self.chosen_layers(shape):
            for site in self.targets:
                prefix = f"layers.{layer}.{site}"
                out_features, _ = shape.linear_shape(site)
                specs.append(ParameterSpec(f"{prefix}.vera_lambda_b", (out_features,), layer, site, "vera_lambda_b", has_decay=False))
                specs.append(ParameterSpec(f"{prefix}.vera_lambda_d", (self.rank,), layer, site, "vera_lambda_d", "ones", self.d_initial, has_decay=False))
        return tuple(specs)

    def constants(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """`vera_A` (R, largest D_in) and `vera_B` (largest D_out, R); a site uses their first columns and rows."""
        outs, ins = zip(*(shape.linear_shape(site) for site in self.targets), strict=True)
        return (ParameterSpec(_A, (self.rank, max(ins)), 0, "shared", _A), ParameterSpec(_B, (max(outs), self.rank), 0, "shared", _B))

    def initial(self, spec: ParameterSpec, start: Start) -> Tensor | None:
        """The frozen factors: uniform with variance 2 / fan_in, A before B from one generator."""
        return self.drawn(spec.role, start.shape) if spec.role in (_A, _B) else None

    def drawn(self, role: str, shape: EncoderShape) -> Tensor:
        """A frozen factor, `vera_A` or `vera_B`, from the seed."""
        import torch

        generator = torch.Generator().manual_seed(self.projection_seed)
        for one in self.constants(shape):
            bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(one.shape[1])
            drawn = torch.empty(one.shape).uniform_(-bound, bound, generator=generator)
            if one.role == role:
                return drawn
        raise AssertionError(role)

    @classmethod
    def linear(cls, members: Sequence[Self], layer: int, site: str, tensors: Mapping[str, Tensor], shape: EncoderShape) -> LinearSlots | None:
        """The rescaled factors in the added output."""
        b = tensors.get(f"layers.{layer}.{site}.vera_lambda_b")
        if b is None:
            return None
        d = tensors[f"layers.{layer}.{site}.vera_lambda_d"]
        out_features, in_features = shape.linear_shape(site)
        up, down = tensors[_B][:, :out_features], tensors[_A][:, :, :in_features]
        dropout = tuple(member.dropout for member in members)
        return LinearSlots(added=LowRank(d[:, :, None] * down, b[:, :, None] * up, (1.0,) * len(members), dropout))

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """The largest rank that fits with the same sites, no larger than the encoder is wide; where even rank 1 does not, the top layers alone."""
        rank = min(largest(lambda r: cls(**{**options, "rank": r}).adapter_size(shape), limit), shape.hidden_size)
        if rank >= 1:
            return [{**options, "rank": rank}]
        return cls.with_top_layers(options, shape, limit) or cls.with_top_layers({**options, "rank": 1}, shape, limit)

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`VeraConfig` of the PEFT library for the same sites."""
        return {
            "peft_type": "VERA",
            "r": self.rank,
            "target_modules": self.peft_targets(shape),
            "projection_prng_key": self.projection_seed,
            "save_projection": True,
            "vera_dropout": self.dropout,
            "d_initial": self.d_initial,
            "fan_in_fan_out": False,
            "bias": "none",
            "init_weights": True,
            "layers_to_transform": None,
            "layers_pattern": None,
        }

    @classmethod
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """Its VeRA at the same sites; factors that were not saved are drawn from their seed."""
        if file.kind != "VERA":
            return None
        scales, lengths = (file.take_sites(cls.peft_root, shape, role, dimensions=1) for role in ("vera_lambda_b", "vera_lambda_d"))
        seed = file.count("projection_prng_key", 0, least=0)
        method = make_method(
            {"name": cls.name, "rank": file.count("r"), "projection_seed": seed, "dropout": file.probability("vera_dropout"), **cls.placed(scales, shape)}
        )
        assert isinstance(method, Vera)
        frozen = {}
        for spec in method.constants(shape):
            key = method.peft_key(spec, shape)
            frozen[spec.name] = file.take(key) if key in file.left else method.drawn(spec.role, shape)
        return method, by_name(scales, "vera_lambda_b") | by_name(lengths, "vera_lambda_d") | frozen

    def peft_key(self, spec: ParameterSpec, shape: EncoderShape) -> str:
        """Vectors without `weight` at the end of their names; the shared factors above all layers."""
        return f"base_model.{spec.role}" if spec.site == "shared" else super().peft_key(spec, shape).removesuffix(".weight")
