"""Words of a report's tables."""

from types import SimpleNamespace

import pytest

from lorabel.families import LINEAR_SITES
from lorabel.reports.tables import describe_method


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"name": "lora", "rank": 8, "targets": list(LINEAR_SITES)}, "lora r=8 on all linear layers, native head, cls"),
        ({"name": "lora", "rank": 1, "ranks": {"layers.3-5": 2}, "targets": ["query"]}, "lora r=1 (layers.3-5: 2) (query), native head, cls"),
        ({"name": "lora", "rank": 1, "ranks": {f"layers.{layer}": layer for layer in range(4)}}, "lora r=1 (4 places apart), native head, cls"),
        ({"name": "lora", "rank": 2, "targets": ["query", "value"]}, "lora r=2 (query, value), native head, cls"),
        ({"name": "full"}, "full, native head, cls"),
    ],
)
def test_a_method_is_described_as_settled(method, expected):
    settings = {"method": {"name": method["name"], "rank": "auto"}, "head": {"kind": "native", "pooling": "cls"}}
    assert describe_method(SimpleNamespace(config=settings, plan={"method": method})) == expected
