"""Columns of texts: the same in memory and on disk; nothing is left of the file, and a full disk is said."""

import gc
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabel.data import text_column
from lorabel.data.text_column import TextSpool
from lorabel.errors import StorageError

TEXTS = ["", "a", "Zürich", "漢字 and 🎈", "", "line\nbreak", "x" * 5000, "\u200b"]


def spooled(blocks):
    spool = TextSpool()
    for block in blocks:
        spool.add(block)
    return spool.column()


@pytest.fixture(params=[0, 10, 1 << 30], ids=["on disk", "from the second block on", "in memory"])
def limit(request, monkeypatch, tmp_path):
    monkeypatch.setattr(text_column, "_IN_MEMORY_BYTES", request.param)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return request.param


@pytest.mark.parametrize("blocks", [[TEXTS], [TEXTS[:3], [], TEXTS[3:]], [["", ""]], [[]]])
def test_texts_come_back_as_they_were(blocks, limit, tmp_path):
    column, texts = spooled(blocks), [text for block in blocks for text in block]
    assert len(column) == len(texts)
    for _ in range(2):  # The second pass finds its pages again.
        assert list(column) == texts
    assert [column[i] for i in range(len(texts))] == texts
    assert column[1:4] == texts[1:4]
    assert column[::-1] == texts[::-1]
    assert column[5:2] == []
    assert list(tmp_path.iterdir()) == []


def test_some_rows_of_some_rows(limit):
    column = spooled([TEXTS[:4], TEXTS[4:]])
    some = column.take(np.array([6, 0, 3, 3, 1]))
    assert list(some) == [TEXTS[i] for i in (6, 0, 3, 3, 1)]
    assert some[2:4] == [TEXTS[3], TEXTS[3]]
    fewer = some.take(np.array([4, 0]))
    del column, some
    gc.collect()
    assert list(fewer) == [TEXTS[1], TEXTS[6]]
    assert fewer[-1:] == [TEXTS[6]]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4), max_size=5))
def test_any_texts_are_the_same_on_disk(blocks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_column, "_IN_MEMORY_BYTES", 0)
        assert list(spooled(blocks)) == [text for block in blocks for text in block]


def test_a_full_disk_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(text_column, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = TextSpool()
    spool.add(["first"])

    class Full:
        def write(self, _data):
            raise OSError(28, "No space left on device")

    spool._file._file = Full()
    with pytest.raises(StorageError, match=r"No space left on device; expected space\. Free space, or set TMPDIR"):
        spool.add(["second"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="cannot be kept there"):
        TextSpool().add(["first"])
    assert list(tmp_path.iterdir()) == []
