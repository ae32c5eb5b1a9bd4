"""An adapter that the PEFT library saved, as methods read it: settings that are checked when they are asked for, and tensors that are taken out one by one.

What is never asked for does not matter to the answer; a tensor that nobody takes is refused by whoever reads the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorabel.errors import ConfigError
from lorabel.families import LINEAR_SITES, EncoderShape

if TYPE_CHECKING:
    from torch import Tensor

# By layer and site.
Sites = dict[tuple[int, str], "Tensor"]


def site_module(shape: EncoderShape, layer: int, site: str) -> str:
    """The PEFT library's name of a site's module, from the layers on: `layer.0.attention.self.query`."""
    return f"{shape.names.layer.format(i=layer)}.{shape.names.linears[site]}"


def site_key(root: str, shape: EncoderShape, layer: int, site: str, role: str) -> str:
    """The PEFT library's name of a tensor at a site; some end in `.weight` as well."""
    return f"{root}{shape.names.prefix}.{site_module(shape, layer, site)}.{role}"


def by_name(found: Sites, role: str) -> dict[str, Tensor]:
    """Tensors of one role by our names."""
    return {f"layers.{layer}.{site}.{role}": tensor for (layer, site), tensor in found.items()}


class PeftFile:
    """Settings and tensors of a saved adapter.

    Args:
        config: Content of `adapter_config.json`.
        tensors: Those of its file by their names, float32.

    Attributes:
        left: Tensors that nobody took yet.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.left = dict(tensors)

    @property
    def kind(self) -> Any:
        """The library's name of the method, such as `LORA`."""
        return self.config.get("peft_type")

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number.

        Args:
            name: Of the setting.
            default: Where it is missing; None where it must be there.
            least: Smaller ones are refused.

        Raises:
            ConfigError: Missing, or something else.
        """
        value = self.config.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            raise self._refusal(name, value, f"a whole number from {least}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number over 0.

        Raises:
            ConfigError: Something else.
        """
        return self._positive(name, self.config.get(name, default))

    def probability(self, name: str) -> float:
        """A number from 0 to below 1; 0 where it is missing.

        Raises:
            ConfigError: Something else.
        """
        value = self.config.get(name, 0.0)
        if not _is_number(value) or not 0 <= value < 1:
            raise self._refusal(name, value, "a number from 0 to below 1")
        return float(value)

    def pattern(self, name: str, module: str, default: float) -> float:
        """The number of the first key that a module's name ends in, each key an expression; the default where there is none.

        Args:
            name: Of the setting.
            module: The module's whole name.
            default: A number over 0.

        Raises:
            ConfigError: No such mapping.
        """
        patterns = self.config.get(name) or {}
        if not isinstance(patterns, dict):
            raise self._refusal(name, patterns, "expressions and their numbers")
        for key, value in patterns.items():
            try:
                is_meant = re.match(rf"(.*\.)?({key})$", module) is not None
            except re.error as error:
                raise self._refusal(name, key, "expressions and their numbers") from error
            if is_meant:
                return self._positive(f"{name}.{key}", value)
        return default

    def take(self, key: str, dimensions: int = 2) -> Tensor:
        """Take one tensor out.

        Raises:
            ConfigError: It is not there, or has not so many dimensions.
        """
        if key not in self.left:
            raise ConfigError(f"adapter_model.safetensors: incomplete, got no {key!r} for {self.kind}; expected it. Restore the file from a copy.")
        tensor = self.left.pop(key)
        if tensor.dim() != dimensions:
            raise ConfigError(f"adapter_model.safetensors: {key}: got {tensor.dim()} dimensions; expected {dimensions}. Restore the file from a copy.")
        return tensor

    def take_sites(self, root: str, shape: EncoderShape, role: str, dimensions: int = 2) -> Sites:
        """Take the tensors of one role at the encoder's sites out.

        Args:
            root: What stands before the model's own names.
            shape: The encoder.
            role: Such as `lora_A`.
            dimensions: Of each.

        Returns:
            In the encoder's order.

        Raises:
            ConfigError: One has not so many dimensions.
        """
        found = {}
        for layer in range(shape.num_layers):
            for site in LINEAR_SITES:
                stem = site_key(root, shape, layer, site, role)
                key = next((key for key in (f"{stem}.weight", stem) if key in self.left), None)
                if key is not None:
                    found[layer, site] = self.take(key, dimensions)
        return found

    def _positive(self, name: str, value: Any) -> float:
        if not _is_number(value) or not value > 0:
            raise self._refusal(name, value, "a number over 0")
        return float(value)

    def _refusal(self, name: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"adapter_config.json: {name}: got {value!r}; expected {expected}. Restore the file from a copy.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
