"""Base of low-rank methods whose sites may have ranks of their own.

The common library calls it `rank_pattern`. Its scaling is alpha / rank of the site, unless `alpha_pattern` says otherwise; here the scaling is the same at every site, so that a
learning rate means the same everywhere, and the patterns that are written say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from lorabel.errors import ConfigError
from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import ParameterSpec
from lorabel.methods.base_sited import LowRankMethod

EVERYWHERE = "*"
_SITE = re.compile(rf"layers\.\d+\.({'|'.join(LINEAR_SITES)})")


class SiteRanksMethod(LowRankMethod):
    """A low-rank method with one rank, or a rank for each site; the update is multiplied by alpha / rank at all of them."""

    ranks: dict[str, int] | None = Field(
        default=None,
        description="Ranks of single sites, such as layers.0.query: 3 (* for all that are not named; 0 leaves a site out); the others take rank.",
    )

    def model_post_init(self, context: object) -> None:
        """Refuse what is no site or no rank."""
        super().model_post_init(context)
        for site, rank in (self.ranks or {}).items():
            if (site != EVERYWHERE and not _SITE.fullmatch(site)) or rank < 0:
                raise ValueError(
                    f"method.ranks: not a site and its rank, got {site!r}: {rank}; expected something like layers.0.query: 3. "
                    "Leave it out to give every site the same rank."
                )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sites of rank 0, sorted."""
        return tuple(sorted(site for site, rank in (self.ranks or {}).items() if not rank))

    def rank_at(self, layer: int, site: str) -> int:
        """The site's own rank, else that of `*`, else `rank`."""
        if self.ranks is None:
            return self.rank
        return self.ranks.get(f"layers.{layer}.{site}", self.ranks.get(EVERYWHERE, self.rank))

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Those of each adapted site, by layer.

        Raises:
            ConfigError: A rank for a site that is not adapted, or none for any.
        """
        specs = super().parameters(shape)
        if self.ranks is not None:
            adapted = {f"layers.{layer}.{site}" for layer in self.chosen_layers(shape) for site in self.targets}
            others = [site for site, rank in self.ranks.items() if rank and site != EVERYWHERE and site not in adapted]
            if others or not specs:
                raise ConfigError(
                    f"method.ranks: no such site among those adapted, got {others[0] if others else self.ranks}; expected sites of the targets and layers that are set. "
                    "Leave it out to give every site the same rank."
                )
        return specs

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`LoraConfig` of the common library; with ranks of sites, their modules by name, each with its rank and the alpha that gives the same scaling."""
        config = super().peft_config(shape)
        if self.ranks is None or config is None:
            return config
        family = shape.names
        modules = {
            f"{family.layer.format(i=spec.layer)}.{family.linears[spec.site]}": spec.shape[0] for spec in self.parameters(shape) if spec.role == "lora_A"
        }
        ranks = {re.escape(module): rank for module, rank in modules.items()}
        most = max(ranks.values())
        return {
            **config,
            "r": most,
            "lora_alpha": most * self.scaling,
            "use_rslora": False,
            "target_modules": rf".*\.({'|'.join(ranks)})",
            "rank_pattern": ranks,
            "alpha_pattern": {module: rank * self.scaling for module, rank in ranks.items()},
        }

    @classmethod
    def reasons(cls, given: Mapping[str, Any], settled: Mapping[str, Any]) -> list[str]:
        """As with one rank; it is nobody's where all sites have their own."""
        ranks = given.get("ranks")
        if ranks is None:
            return super().reasons(given, settled)
        found = [] if EVERYWHERE in ranks else super().reasons(given, settled)
        apart = "1 site has a rank of its own" if len(ranks) == 1 else f"{len(ranks):,} sites have ranks of their own"
        return [f"{reason.removesuffix('.')}; {apart}." for reason in found]

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """As with one rank; ranks that are given cannot shrink."""
        if options.get("ranks") is not None:
            return super(LowRankMethod, cls).smaller(options, shape, limit)
        return super().smaller(options, shape, limit)

    @classmethod
    def spends(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """As with one rank; ranks that are given are spent already."""
        return [] if options.get("ranks") is not None else super().spends(options, shape, limit)
