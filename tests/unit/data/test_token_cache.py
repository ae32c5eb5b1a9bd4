"""The token cache under damage, full disks and company: its answer is the tokens of these texts, or it is made again."""

import errno
import json
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lorabel.data import packing
from lorabel.data.packing import tokenise
from lorabel.errors import StorageError
from lorabel.events import Note, Progress

TEXTS = ["a b", "b", "a a a a a a", ""]


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return made


def run(tokenizer, folder, events=None, texts=TEXTS):
    return tokenise(texts, tokenizer, "t", 5, cache_dir=folder, data_digest="d", on_event=[].append if events is None else events.append)


def assert_equal(found, expected):
    assert np.array_equal(found.input_ids, expected.input_ids)
    assert np.array_equal(found.offsets, expected.offsets)
    assert found.truncated_rows == expected.truncated_rows == 1


def cached_folder(root):
    (folder,) = [path for path in (root / "tokens").iterdir() if not path.name.startswith(".")]
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["facts.json", "input_ids.npy", "offsets.npy"]),
    st.sampled_from(["flip", "cut", "remove", "zero"]),
    st.integers(0, 10_000),
    st.integers(1, 255),
)
def test_no_damage_changes_the_tokens(tokenizer, tmp_path, name, damage, place, change):
    expected = tokenise(TEXTS, tokenizer, "t", 5)
    assert_equal(run(tokenizer, tmp_path), expected)
    path = cached_folder(tmp_path) / name
    content = bytearray(path.read_bytes())
    place %= len(content)
    if damage == "flip":
        content[place] ^= change
    elif damage == "cut":
        del content[place:]
    elif damage == "zero":
        content[place:] = bytes(len(content) - place)
    # Zeros over zeros are no damage.
    assume(damage == "remove" or content != path.read_bytes())
    path.write_bytes(content)
    if damage == "remove":
        path.unlink()
    events = []
    assert_equal(run(tokenizer, tmp_path, events), expected)
    assert any(isinstance(event, Note) and "damaged" in event.text and event.is_warning for event in events)
    assert list((tmp_path / "tokens").iterdir()) == [cached_folder(tmp_path)]


def test_a_number_changed_by_hand_is_noticed(tokenizer, tmp_path):
    expected = run(tokenizer, tmp_path)
    path = cached_folder(tmp_path) / "facts.json"
    stored = json.loads(path.read_text())
    stored["facts"]["truncated_rows"] = 7
    path.write_text(json.dumps(stored))
    assert_equal(run(tokenizer, tmp_path), expected)


def test_an_intact_cache_is_read_without_tokenising(tokenizer, tmp_path):
    run(tokenizer, tmp_path)
    events = []
    run(tokenizer, tmp_path, events)
    assert not any(isinstance(event, Progress | Note) for event in events)


@pytest.mark.parametrize("failing", ["save", "rename"])
def test_a_full_disk_is_a_storage_error_that_leaves_nothing(tokenizer, tmp_path, monkeypatch, failing):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    module, name = {"save": (packing.np, "save"), "rename": (packing.os, "rename")}[failing]
    monkeypatch.setattr(module, name, full)
    with pytest.raises(StorageError, match=r"No space left on device.*LORABEL_CACHE"):
        run(tokenizer, tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_writers_at_once_all_get_their_tokens(tokenizer, tmp_path):
    expected, found = tokenise(TEXTS, tokenizer, "t", 5), []
    start = threading.Barrier(6)

    def work():
        start.wait()
        found.append(run(tokenizer, tmp_path))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for table in found:
        assert_equal(table, expected)
    assert list((tmp_path / "tokens").iterdir()) == [cached_folder(tmp_path)]


def test_more_texts_than_a_chunk_keep_their_order(tokenizer, monkeypatch):
    texts = ["a " * (index % 4) + "b" for index in range(50)]
    whole = tokenise(texts, tokenizer, "t", 4)
    monkeypatch.setattr(packing, "_TEXTS_PER_CHUNK", 7)
    in_chunks = tokenise(texts, tokenizer, "t", 4)
    assert np.array_equal(whole.input_ids, in_chunks.input_ids)
    assert np.array_equal(whole.offsets, in_chunks.offsets)
    assert whole.truncated_rows == in_chunks.truncated_rows == sum(index % 4 > 1 for index in range(50))
    assert len(tokenise([], tokenizer, "t", 4)) == 0
