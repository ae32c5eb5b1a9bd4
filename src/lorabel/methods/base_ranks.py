"""Base of low-rank methods whose sites may have ranks of their own.

The PEFT library calls it `rank_pattern`. Its scaling is alpha / rank of the site, unless `alpha_pattern` says otherwise; here the scaling is the same at every site, so that a
learning rate means the same everywhere, and the patterns that are written say so.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lorabel.errors import ConfigError
from lorabel.families import LINEAR_SITES, EncoderShape
from lorabel.methods.base import Method, ParameterSpec, make_method
from lorabel.methods.base_peft import PeftFile, Sites, by_name, site_module
from lorabel.methods.base_sited import MOST_AUTO_RANK, LowRankMethod, SitedMethod, covering, expanded

if TYPE_CHECKING:
    from torch import Tensor

EVERYWHERE = "*"
# Factors that the PEFT library starts elsewhere than at B = 0 with the encoder's own weights changed to match: the file alone does not say to what.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Options of its LoRA that change the answer and have no equal here.
_WITHOUT_EQUAL = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
)
_KEY = re.compile(rf"layers\.(0|[1-9][0-9]{{0,3}})(?:-(0|[1-9][0-9]{{0,3}}))?(?:\.({'|'.join(LINEAR_SITES)}))?")


@dataclass(frozen=True)
class _Place:
    """What a key of `ranks` names.

    Attributes:
        first: Lowest layer.
        last: Highest layer.
        site: The site in each of them; None for all.
    """

    first: int
    last: int
    site: str | None

    @classmethod
    @cache
    def of(cls, key: str) -> _Place | None:
        """The place, or None where the key names none."""
        match = _KEY.fullmatch(key)
        place = None if match is None else cls(int(match[1]), int(match[2] or match[1]), match[3])
        return place if place is not None and place.first <= place.last else None

    def holds(self, layer: int, site: str) -> bool:
        """Whether a site lies in it."""
        return self.first <= layer <= self.last and self.site in (None, site)

    def meets(self, other: _Place) -> bool:
        """Whether some site lies in both."""
        return self.first <= other.last and other.first <= self.last and (self.site is None or other.site is None or self.site == other.site)


class SiteRanksMethod(LowRankMethod):
    """A low-rank method with one rank, or a rank for each site; the update is multiplied by alpha / rank at all of them."""

    # Whether it is what the PEFT library calls DoRA.
    uses_dora: ClassVar[bool] = False

    ranks: dict[str, int] | None = Field(
        default=None,
        description="Ranks of layers and sites, such as layers.3-5: 4, layers.0.query: 2 (* for all that are not named; 0 leaves out); the others take rank.",
    )

    def model_post_init(self, context: object) -> None:
        """Refuse what is no place or no rank, and two ranks for one site; no ranks at all are as good as none given."""
        super().model_post_init(context)
        if not self.ranks:
            object.__setattr__(self, "ranks", None)
        known: dict[str, _Place] = {}
        for key, rank in (self.ranks or {}).items():
            place = _Place.of(key)
            if (place is None and key != EVERYWHERE) or rank < 0:
                raise ValueError(
                    f"method.ranks: not a site or layers and their rank, got {key!r}: {rank}; expected something like layers.0.query: 3 or layers.3-5: 4. "
                    "Leave it out to give every site the same rank."
                )
            if place is None:
                continue
            twice = next((other for other, its in known.items() if its.meets(place)), None)
            if twice is not None:
                raise ValueError(f"method.ranks: two ranks for one site, got {twice!r} and {key!r}; expected keys that have none in common. Leave one out.")
            known[key] = place

    def _places(self) -> list[tuple[_Place, str, int]]:
        """Places, their keys and ranks."""
        found = [(_Place.of(key), key, rank) for key, rank in (self.ranks or {}).items()]
        return [(place, key, rank) for place, key, rank in found if place is not None]

    def rank_at(self, layer: int, site: str) -> int:
        """The rank that names the site, else that of `*`, else `rank`."""
        if self.ranks is None:
            return self.rank
        return next((rank for place, _, rank in self._places() if place.holds(layer, site)), self.ranks.get(EVERYWHERE, self.rank))

    def parameters(self, shape: EncoderShape) -> tuple[ParameterSpec, ...]:
        """Those of each adapted site, by layer.

        Raises:
            ConfigError: A rank for a site that is not adapted, or none for any.
        """
        specs = super().parameters(shape)
        if self.ranks is not None:
            layers = self.chosen_layers(shape)
            others = [
                key
                for place, key, _ in self._places()
                if place.last >= shape.num_layers or not any(place.holds(layer, site) for layer in layers for site in self.targets)
            ]
            if others or not specs:
                raise ConfigError(
                    f"method.ranks: no such site among those adapted, got {others[0] if others else self.ranks}; expected sites of the targets and layers that are set. "
                    "Leave it out to give every site the same rank."
                )
        return specs

    def peft_config(self, shape: EncoderShape) -> dict[str, Any] | None:
        """`LoraConfig` of the PEFT library; with ranks of sites, their modules by name, each with its rank and the alpha that gives the same scaling."""
        config = super().peft_config(shape)
        if config is None:
            return None
        if self.uses_dora:
            config["use_dora"] = True
        if self.ranks is None:
            return config
        modules = {site_module(shape, spec.layer, spec.site): spec.shape[0] for spec in self.parameters(shape) if spec.role == "lora_A"}
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
    def from_peft(cls, file: PeftFile, shape: EncoderShape) -> tuple[Method, dict[str, Tensor]] | None:
        """Its LoRA or DoRA, ranks and scalings of single sites included: the scaling of the first site becomes everyone's, and B is multiplied where another was meant."""
        if file.kind != "LORA" or bool(file.config.get("use_dora")) is not cls.uses_dora:
            return None
        check_plain_lora(file.config)
        downs, ups = (file.take_sites(cls.peft_root, shape, role) for role in ("lora_A", "lora_B"))
        scalings = {(layer, site): _their_scaling(file, shape, layer, site, len(down)) for (layer, site), down in downs.items() if len(down)}
        return from_factors(cls.name, downs, ups, scalings, shape, file.probability("lora_dropout"))

    @classmethod
    def open_targets(cls, options: Mapping[str, Any]) -> Sequence[str]:
        """Those that have all sites whose rank is given."""
        places = [_Place.of(key) for key in options.get("ranks") or {}]
        named = {place.site for place in places if place is not None and place.site is not None}
        return [choice for choice in super().open_targets(options) if named <= set(expanded(choice))]

    @classmethod
    def reasons(cls, given: Mapping[str, Any], settled: Mapping[str, Any]) -> list[str]:
        """As with one rank; it is nobody's where all sites have their own."""
        asked = given.get("ranks")
        ranks = asked or settled.get("ranks")
        if not ranks:
            return super().reasons(given, settled)
        found = [] if EVERYWHERE in ranks else super().reasons(given, settled)
        if asked:
            apart = f"{len(ranks):,} places" if len(ranks) > 3 else ", ".join(f"{key} at {rank}" for key, rank in ranks.items())
            return [f"{reason.removesuffix('.')}; as asked, {apart}." for reason in found]
        ((key, rank),) = ranks.items()
        where = key.replace("layers.", "layers " if "-" in key else "layer ").replace("-", " to ")
        return [f"{reason.removesuffix('.')}; what is left takes {where} to rank {rank}." for reason in found]

    @classmethod
    def settle(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> dict[str, Any]:
        """As with one rank; where that is open, what is left of the limit gives as many top layers as it can one rank more (benchmarks/budget_solver.py, `filled`)."""
        found = super().settle(options, shape, limit)
        is_open = options.get("rank") == "auto" and not options.get("ranks") and found["rank"] < MOST_AUTO_RANK
        return {**found, **cls._filled(found, shape, limit)} if is_open else found

    @classmethod
    def _filled(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> dict[str, Any]:
        """`ranks` of the top layers that get one more; nothing where none can."""

        def with_richer(layers: Sequence[int]) -> dict[str, Any]:
            if not layers:
                return {}
            top = str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
            return {"ranks": {f"layers.{top}": options["rank"] + 1}}

        def fits(layers: Sequence[int]) -> bool:
            return make_method({**options, "name": cls.name, **with_richer(layers)}).adapter_size(shape) <= limit

        made = make_method({**options, "name": cls.name})
        assert isinstance(made, SiteRanksMethod)
        layers = made.chosen_layers(shape)
        # All of them do not fit, or the rank itself would be one more.
        return next((with_richer(layers[place:]) for place in range(1, len(layers) + 1) if fits(layers[place:])), {})

    @classmethod
    def smaller(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """As with one rank; where sites have ranks of their own, as it is where that fits, and with one rank for all."""
        if not options.get("ranks"):
            return super().smaller(options, shape, limit)
        # That of all methods: fewer layers may lack those whose ranks are given.
        as_it_is = super(SitedMethod, cls).smaller(options, shape, limit)
        return as_it_is + [{**one, "ranks": None} for one in super().smaller(_without_ranks(options), shape, limit)]

    @classmethod
    def spends(cls, options: Mapping[str, Any], shape: EncoderShape, limit: int) -> list[dict[str, Any]]:
        """With one rank for all."""
        found = super().spends(_without_ranks(options), shape, limit)
        # Ranks of sites that were set must be taken back: they would count on beside the flags of what is found.
        return [{**one, "ranks": None} for one in found] if options.get("ranks") else found


def _without_ranks(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "ranks"}


def check_plain_lora(config: Mapping[str, Any]) -> None:
    """Refuse a LoRA of the PEFT library that its factors alone do not describe.

    Raises:
        ConfigError: An option that changes the answer and has no equal here.
    """
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ConfigError(
            f"adapter_config.json: starts by changing the encoder's own weights, got init_lora_weights {start!r}; expected factors for the encoder as it is. "
            "Save it there with path_initial_model_for_weight_conversion, which gives such factors."
        )
    used = [name for name in _WITHOUT_EQUAL if config.get(name)]
    if used:
        raise ConfigError(
            f"adapter_config.json: an option that has no equal here, got {used[0]}; expected plain LoRA or DoRA. Merge it there, and give the result as the encoder."
        )


def _their_scaling(file: PeftFile, shape: EncoderShape, layer: int, site: str, rank: int) -> float:
    """What the PEFT library multiplies a site's product by."""
    alpha = file.pattern("alpha_pattern", f"{shape.names.prefix}.{site_module(shape, layer, site)}", file.number("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if file.config.get("use_rslora") else rank)


def from_factors(
    name: str, downs: Sites, ups: Sites, scalings: Mapping[tuple[int, str], float], shape: EncoderShape, dropout: float
) -> tuple[Method, dict[str, Tensor]]:
    """A low-rank method from factors, whatever their ranks and scalings.

    Args:
        name: The method's.
        downs: A (R, D_in) by layer and site; empty where the site is not adapted.
        ups: B (D_out, R) of the same sites.
        scalings: What their product is multiplied by, of the sites whose rank is not zero.
        shape: The encoder.
        dropout: Of its training.

    Returns:
        The method, and the factors by our names.

    Raises:
        ConfigError: No site, or a site with one factor alone.
    """
    if set(downs) != set(ups):
        raise ConfigError(
            f"{name}: a factor without its partner, got {len(downs)} lora_A and {len(ups)} lora_B; expected as many. Restore the file from a copy."
        )
    found = {site: len(downs[site]) for site in scalings}
    places = covering(name, found, shape)
    rank, scaling = Counter(found.values()).most_common(1)[0][0], next(iter(scalings.values()))
    covered = [(layer, site) for layer in places["layers"] or range(shape.num_layers) for site in places["targets"]]
    uneven = {f"layers.{layer}.{site}": found.get((layer, site), 0) for layer, site in covered if found.get((layer, site), 0) != rank}
    # Rounded so that an alpha of 16 is 16 again after the division by its rank.
    method = make_method({"name": name, "rank": rank, "alpha": round(scaling * rank, 9), "ranks": uneven or None, "dropout": dropout, **places})
    scaled = {site: ups[site] if its == scaling else ups[site] * (its / scaling) for site, its in scalings.items()}
    return method, by_name({site: downs[site] for site in scalings}, "lora_A") | by_name(scaled, "lora_B")
