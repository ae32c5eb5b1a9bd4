"""Tokens once, batches whole, packs exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lorabel.data.packing import pack, plan_batches, round_up, tokenise
from lorabel.data.types import TokenTable
from lorabel.events import Note


@pytest.fixture
def tokenizer():
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return made


def table_of(lengths):
    offsets = np.cumsum([0, *lengths])
    return TokenTable(np.arange(offsets[-1], dtype=np.int32), offsets, 0, 512)


def test_truncation_keeps_the_closing_token_and_is_counted(tokenizer):
    table = tokenise(["a", "a b a b a b", "b b"], tokenizer, "t", 5)
    assert [table.input_ids[a:b].tolist() for a, b in zip(table.offsets[:-1], table.offsets[1:], strict=True)] == [[1, 3, 2], [1, 3, 4, 3, 2], [1, 4, 4, 2]]
    assert table.truncated_rows == 1


def test_the_cache_is_used_keyed_and_checked(tokenizer, tmp_path):
    texts, notes = ["a b", "b"], []

    def run(texts=texts, tokenizer_digest="t", length=8, data="d"):
        return tokenise(
            texts,
            tokenizer,
            tokenizer_digest,
            length,
            cache_dir=tmp_path,
            data_digest=data,
            on_event=lambda e: notes.append(e) if isinstance(e, Note) else None,
        )

    first = run()
    # Same keys, other texts of the same number: the cache answers, so it was read.
    assert np.array_equal(run(texts=["b b b", "a"]).input_ids, first.input_ids)
    assert not np.array_equal(run(texts=["b b b", "a"], data="other").input_ids, first.input_ids)
    assert isinstance(first.input_ids, np.memmap)
    for damage in range(3):
        file = sorted((tmp_path / "tokens").glob("*/*"))[damage]
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
        run(data="d")
        run(data="other", texts=["b b b", "a"])
        assert notes, file.name
        notes.clear()
    assert np.array_equal(run().input_ids, first.input_ids)
    assert notes == []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 40), st.booleans(), st.integers(0, 3))
def test_every_row_is_in_exactly_one_batch(lengths, batch_size, grouped, seed):
    batches = plan_batches(np.array(lengths), batch_size, np.random.default_rng(seed), grouped)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)
    assert len(batches) <= -(-len(lengths) // batch_size) + len(lengths) // (50 * batch_size)
    again = plan_batches(np.array(lengths), batch_size, np.random.default_rng(seed), grouped)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_grouping_makes_lengths_alike():
    lengths = np.random.default_rng(0).integers(5, 200, size=3200)

    def waste(grouped):
        return sum(lengths[b].max() * len(b) for b in plan_batches(lengths, 32, np.random.default_rng(0), grouped)) / lengths.sum()

    assert waste(True) < 1.05 < 1.5 < waste(False)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(0, 2), st.integers(0, 5))
def test_packs_hold_exactly_the_rows(lengths, first_position, seed):
    table = table_of(lengths)
    rows = np.random.default_rng(seed).permutation(len(lengths))[: max(1, len(lengths) // 2)]
    labels = rows * 10
    batch = pack(table, rows, labels, first_position)
    assert list(batch.lengths) == sorted(batch.lengths)
    assert sorted(batch.rows.tolist()) == sorted(rows.tolist())
    for index, row in enumerate(batch.rows):
        span = slice(int(batch.cu_seqlens[index]), int(batch.cu_seqlens[index + 1]))
        assert batch.input_ids[span].tolist() == table.input_ids[table.offsets[row] : table.offsets[row + 1]].tolist()
        assert batch.position_ids[span].tolist() == list(range(first_position, first_position + lengths[row]))
        assert int(batch.labels[index]) == row * 10
        assert rows[batch.step_rows[index]] == row
    assert len(batch.input_ids) == len(batch.position_ids) == sum(batch.lengths) + batch.tail == round_up(sum(batch.lengths))


def test_runs_are_filled_up_to_few_numbers_of_tokens():
    filled = [round_up(tokens) for tokens in range(8193)]
    assert all(0 <= full - tokens <= max(7, tokens / 16) for tokens, full in enumerate(filled))
    assert len(set(filled)) < 120
