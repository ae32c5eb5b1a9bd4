"""A damaged history is refused with its line; only a torn end is left out."""

import pytest

from lorabel.artifacts.history import read_history
from lorabel.errors import ArtifactError

GOOD = b'{"kind": "step", "step": 1}\n'


@pytest.mark.parametrize(
    "line", [b"[1]", b"3", b"null", b'"text"', b'{"kind": "step"}', b'{"step": "1"}', b'{"step": true}', b'{"kind": "\xff"}', b"{", b"\x00"]
)
def test_a_damaged_line_is_refused_with_its_number(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:2: "):
        read_history(path)


def test_a_line_torn_anywhere_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    last = '{"kind": "é", "step": 22}'.encode()
    for cut in range(len(last)):
        path.write_bytes(GOOD + last[:cut])
        assert read_history(path) == [{"kind": "step", "step": 1}]
