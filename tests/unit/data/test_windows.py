"""Windows of long texts: where the tokenizers' own overflowing tokens fall, whole in every batch, cached, counted; settings that cannot work are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lorabel.config import DataConfig
from lorabel.data.packing import MemberRows, pack, pack_members, tokenise
from lorabel.data.windows import WindowRule, sequences_of
from lorabel.errors import ConfigError
from lorabel.workflows.preparation import window_rule, windows_facts

TEXTS = ["a", "a b c d e f g", "", "b b", "g f e d c b a a b c d e f g a b", "c d e f", "[SEP] a [CLS] b [SEP] c d e"]


def make_tokenizer(template="[CLS] $A [SEP]"):
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, **{letter: 3 + index for index, letter in enumerate("abcdefg")}}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[CLS]", "[SEP]"])
    made.post_processor = processors.TemplateProcessing(template, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return made


def rule(stride=1, most=100, pooling="mean"):
    return WindowRule(stride, most, pooling)


def windows_of(table):
    """Token ids of each row's windows."""
    cut = [table.input_ids[a:b].tolist() for a, b in zip(table.windows.offsets[:-1], table.windows.offsets[1:], strict=True)]
    return [cut[a:b] for a, b in zip(table.windows.first[:-1], table.windows.first[1:], strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefg"), max_size=40).map(" ".join), min_size=1, max_size=6),
    st.integers(4, 14),
    st.data(),
    st.sampled_from(["[CLS] $A [SEP]", "[CLS] $A", "$A [SEP] [SEP]"]),
)
def test_windows_are_the_tokenizers_own_overflowing_tokens(texts, length, data, template):
    ours = make_tokenizer(template)
    stride = data.draw(st.integers(0, length - ours.num_special_tokens_to_add(False) - 1))
    reference = make_tokenizer(template)
    reference.enable_truncation(length, stride=stride)
    expected = [[one.ids, *(more.ids for more in one.overflowing)] for one in reference.encode_batch(texts)]
    table = tokenise(texts, ours, "t", length, windows=rule(stride))
    assert windows_of(table) == expected
    assert table.truncated_rows == 0


def test_special_tokens_written_in_a_text_are_text():
    table = tokenise(TEXTS, make_tokenizer(), "t", 6, windows=rule(2))
    assert windows_of(table)[6] == [[1, 2, 3, 1, 4, 2], [1, 1, 4, 2, 5, 2], [1, 2, 5, 6, 7, 2]]


def test_what_lies_beyond_the_most_windows_is_cut_and_counted():
    whole = tokenise(TEXTS, make_tokenizer(), "t", 5, windows=rule())
    few = tokenise(TEXTS, make_tokenizer(), "t", 5, windows=rule(most=2))
    assert [len(row) for row in windows_of(whole)] == [1, 3, 1, 1, 8, 2, 4]
    assert windows_of(few) == [row[:2] for row in windows_of(whole)]
    assert (whole.truncated_rows, few.truncated_rows) == (0, 3)
    assert few.lengths.tolist() == [sum(map(len, row)) for row in windows_of(few)]
    assert windows_facts(whole) == {"long_rows": 4, "mean_of_long_rows": 17 / 4, "mean": 20 / 7}


def test_without_long_texts_the_table_is_the_one_without_windows():
    plain, read = tokenise(TEXTS, make_tokenizer(), "t", 30), tokenise(TEXTS, make_tokenizer(), "t", 30, windows=rule())
    assert np.array_equal(plain.input_ids, read.input_ids)
    assert np.array_equal(plain.offsets, read.offsets)
    assert plain.windows is None
    assert read.windows.counts.tolist() == [1] * len(TEXTS)


def test_the_cache_keeps_windows_and_tells_rules_apart(tmp_path):
    def run(texts=TEXTS, **options):
        return tokenise(texts, make_tokenizer(), "t", 5, windows=options.get("windows"), cache_dir=tmp_path, data_digest="d")

    fresh = tokenise(TEXTS, make_tokenizer(), "t", 5, windows=rule())
    run(windows=rule())
    # Other texts of the same number: the cache answers, so it was read; how states are pooled changes no token.
    cached = run(["a"] * len(TEXTS), windows=rule(pooling="max"))
    assert isinstance(cached.input_ids, np.memmap)
    assert windows_of(cached) == windows_of(fresh)
    assert cached.windows.rule.pooling == "max"
    assert len({run(windows=each).input_ids.tobytes() for each in (None, rule(), rule(0), rule(most=2))}) == 4
    assert run().windows is None
    for file in tmp_path.rglob("first.npy"):
        file.write_bytes(file.read_bytes()[:-3])
    assert windows_of(run(windows=rule())) == windows_of(fresh)


def test_some_rows_keep_their_windows():
    table = tokenise(TEXTS, make_tokenizer(), "t", 5, windows=rule())
    rows = np.array([4, 0, 6])
    assert windows_of(table.take(rows)) == [windows_of(table)[row] for row in rows]


def test_a_pack_holds_all_windows_of_its_rows_shortest_first_and_members_apart():
    table = tokenise(TEXTS, make_tokenizer(), "t", 5, windows=rule())
    members = [
        MemberRows(table, np.array([4, 3, 1]), np.array([0, 1, 2]), np.array([7, 8, 9])),
        MemberRows(table, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)),
        MemberRows(table, np.array([6]), np.array([5]), np.array([0])),
    ]
    batch = pack_members(members, 2)
    assert batch.rows.tolist() == [3, 1, 4, 6]
    assert batch.labels.tolist() == [1, 2, 0, 5]
    assert (batch.member_rows, batch.member_sequences) == ((3, 0, 1), (12, 0, 4))
    assert batch.per_row().step_rows.tolist() == [8, 9, 7, 0]
    assert batch.per_row().member_sequences == (3, 0, 1)
    found = [[None] * count for count in table.windows.counts[batch.rows]]
    for sequence, (owner, number) in enumerate(zip(batch.windows.owners, batch.windows.numbers, strict=True)):
        span = slice(int(batch.cu_seqlens[sequence]), int(batch.cu_seqlens[sequence + 1]))
        found[owner][number] = batch.input_ids[span].tolist()
        assert batch.position_ids[span].tolist() == list(range(2, 2 + span.stop - span.start))
        assert batch.step_rows[sequence] == batch.per_row().step_rows[owner]
    assert found == [windows_of(table)[row] for row in batch.rows]
    for part in (batch.lengths[:12], batch.lengths[12:]):
        assert list(part) == sorted(part)


def test_the_index_of_a_batch_names_every_window_once_and_repeats_the_first():
    table = tokenise(TEXTS, make_tokenizer(), "t", 5, windows=rule())
    batch = pack(table, np.array([1, 0, 4]), None, 0)
    index, counts = batch.windows.index()
    assert counts.tolist() == [1, 3, 8]
    assert sorted(index[row, number] for row, count in enumerate(counts) for number in range(count)) == list(range(12))
    assert all((index[row, count:] == index[row, 0]).all() for row, count in enumerate(counts))
    sequences, owners, numbers = sequences_of(table.windows, np.array([1, 0, 4]))
    assert np.array_equal(table.windows.first[np.array([1, 0, 4])[owners]] + numbers, sequences)


def test_windows_that_would_not_move_on_are_refused():
    tokenise(TEXTS, make_tokenizer(), "t", 6, windows=rule(3))
    with pytest.raises(ConfigError, match="would not move on, got 4; expected fewer than the 4 tokens"):
        tokenise(TEXTS, make_tokenizer(), "t", 6, windows=rule(4))


def test_settings_of_windows_and_what_they_settle():
    assert window_rule(DataConfig(), 256) is None
    assert window_rule(DataConfig(long_texts="windows"), 256) == WindowRule(64, 8, "mean")
    given = DataConfig(long_texts="windows", window_stride_tokens=0, max_windows=3, window_pooling="max")
    assert window_rule(given, 256) == WindowRule(0, 3, "max")
    for name, value in (("window_stride_tokens", 5), ("max_windows", 3), ("window_pooling", "max")):
        with pytest.raises(ConfigError, match=f"data.{name}: nothing reads it while long texts are cut, got {value}"):
            window_rule(DataConfig(**{name: value}), 256)
