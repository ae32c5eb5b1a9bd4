"""Every oddity a table can have: read exactly, or refused with a place; nothing is changed in silence."""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabel.config import DataConfig
from lorabel.data.audit_table import read_audit_table
from lorabel.data.files import read_blocks
from lorabel.data.load import load_data, load_split
from lorabel.data.readers.base import ROWS_PER_BLOCK
from lorabel.data.types import LabelMap
from lorabel.errors import DataError
from lorabel.events import Note

ODDITIES = ["NA", "null", "1.0", "2024-01-01", "a\rb", "a\r\nb", "a\nb", '"', '""', "'", "a,b", "a;b", "\t"]
ODDITIES += ["\ufeff", "\x1a", "\u2028", "\x85", "e\u0301", "🙂", "\\N", "\\u0041", "=1+1"]
any_text = st.one_of(st.sampled_from(ODDITIES), st.text(st.characters(exclude_categories=("Cs",)), max_size=6))
some_text = st.lists(any_text, max_size=4).map("".join)
rows_of_texts = st.lists(st.tuples(some_text, some_text), min_size=1, max_size=8)
on_one_folder = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def csv_bytes(rows, delimiter=","):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *rows])
    return file.getvalue().encode()


def jsonl_bytes(rows, ensure_ascii):
    return "".join(json.dumps({"text": text, "label": label}, ensure_ascii=ensure_ascii) + "\n" for text, label in rows).encode()


def read(path):
    """(line, text, label) of all rows."""
    return [row for block in read_blocks(path) for row in zip(block.lines, block.columns["text"], block.columns["label"], strict=True)]


def labelled(count=20):
    return [(f"text {i}", "ab"[i % 2]) for i in range(count)]


def load(path, **options):
    return load_data(DataConfig(source=str(path), **options))


@on_one_folder
@given(rows_of_texts, st.sampled_from([("t.csv", ","), ("t.tsv", "\t"), ("T.TSV", "\t")]), st.booleans(), st.booleans())
def test_delimited_text_comes_back_exactly_with_its_line(tmp_path, rows, form, has_mark, is_packed):
    name, delimiter = form
    content = b"\xef\xbb\xbf" * has_mark + csv_bytes(rows, delimiter)
    path = tmp_path / (name + ".gz" * is_packed)
    path.write_bytes(gzip.compress(content) if is_packed else content)
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        with pytest.raises(DataError, match=rf":{line}: a NUL byte"):
            read(path)
        return
    found = read(path)
    assert [row[1:] for row in found] == rows
    # Text before a row, written alone, has as many line ends as lines lie before it.
    assert [row[0] for row in found] == [csv_bytes(rows[:index], delimiter).count(b"\n") + 1 for index in range(len(rows))]


@on_one_folder
@given(rows_of_texts, st.booleans())
def test_json_text_comes_back_exactly_with_its_line(tmp_path, rows, ensure_ascii):
    path = tmp_path / "t.jsonl"
    path.write_bytes(jsonl_bytes(rows, ensure_ascii))
    assert read(path) == [(line, *row) for line, row in enumerate(rows, 1)]


@on_one_folder
@given(rows_of_texts, st.integers(0, 2**32), st.integers(1, 255))
def test_a_changed_byte_is_read_as_it_is_or_refused_with_a_place(tmp_path, rows, place, change):
    for name, content in (("t.csv", bytearray(csv_bytes(rows))), ("t.jsonl", bytearray(jsonl_bytes(rows, ensure_ascii=True)))):
        content[place % len(content)] ^= change
        path = tmp_path / name
        path.write_bytes(content)
        message = ""
        try:
            load(path)
        except DataError as error:
            message = str(error)
        assert message == "" or (str(path) in message and "got" in message and "expected" in message) or message.startswith("data: too few different texts")


def test_one_flipped_byte_of_a_packed_file_never_crashes(tmp_path):
    content = gzip.compress(csv_bytes([(f"hello {i * 7919 % 1000}", "ab"[i % 2]) for i in range(400)]))
    path, refused = tmp_path / "t.csv.gz", 0
    for place in range(10, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"t\.csv\.gz"):
            read(path)
        refused += 1
    assert refused > 100


def test_a_flipped_byte_of_checksummed_parquet_text_is_always_noticed(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"text": [text for text, _ in labelled()], "label": [label for _, label in labelled()]})
    parquet.write_table(table, path, write_page_checksum=True, compression="none", write_statistics=False)
    content = path.read_bytes()
    for place in range(content.index(b"text 0"), content.index(b"text 19") + 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"t\.parquet: cannot be read"):
            read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "half \\ud83d", "label": "a"}', r"jsonl:21: half of a surrogate pair"),
        ('{"text": "t", "label": "\\uDE00"}', r"jsonl:21: half of a surrogate pair"),
        ('{"text": "n\\u0000", "label": "a"}', r"jsonl:21: a NUL character, got 'n\\x00'"),
        ('{"text": "t", "label": "a\\u0000"}', r"jsonl:21: a NUL character, got 'a\\x00'"),
        ('{"text": 5, "label": "a"}', r"jsonl:21: the text is not a string, got 5"),
        ('{"text": ["t"], "label": "a"}', r"jsonl:21: the text is not a string"),
        ('{"text": null, "label": "a"}', r"jsonl:21: empty text"),
        ('{"label": "a"}', r"jsonl:21: empty text"),
        ('{"text": "t"}', r"jsonl:21: missing label"),
        ('{"text": "t", "label": null}', r"jsonl:21: missing label, got None"),
        ('{"text": "t", "label": " "}', r"jsonl:21: missing label, got ' '"),
        ('{"text": "t", "label": ["a", "b"]}', r"jsonl:21: unusable label.*a list of them in every row"),
        ('{"text": "t", "label": NaN}', r"jsonl:21: unusable label, got nan"),
        ('{"text": "t", "label": 1e999}', r"jsonl:21: unusable label, got inf"),
        ('{"text": "t", "label": ' + "9" * 5000 + "}", r"jsonl:21: not JSON"),
    ],
)
def test_json_rows_that_cannot_be_used(line, message, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(jsonl_bytes(labelled(), ensure_ascii=True) + line.encode() + b"\n")
    with pytest.raises(DataError, match=message):
        load(path)


def test_a_whole_surrogate_pair_is_one_character(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "\\ud83d\\ude42", "label": "a"}\n')
    assert read(tmp_path / "t.jsonl") == [(1, "🙂", "a")]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        ([True, False], ("false", "true")),
        ([1.0, 2], ("1", "2")),
        (["--5", "1"], ("--5", "1")),
        (["1", "01", "2"], ("01", "1", "2")),
        (["9" * 5000, "1"], ("1", "9" * 5000)),
        (["²", "1"], ("1", "²")),
        (["NA", "null", "None"], ("NA", "None", "null")),
        ([" a ", "b"], ("a", "b")),
    ],
)
def test_labels_are_ordered_and_named_whatever_row_comes_first(labels, names, tmp_path):
    path = tmp_path / "t.jsonl"
    for turned in (labels, labels[::-1]):
        path.write_bytes(jsonl_bytes([(f"t{i}", turned[i % len(turned)]) for i in range(30)], ensure_ascii=True))
        assert load(path).labels.names == names


def test_keys_keep_their_place_from_block_to_block(tmp_path):
    rows = [{"text": "t", "label": "a"}] * ROWS_PER_BLOCK + [{"label": "b", "extra": 1, "text": "u"}]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_blocks(path)
    assert list(first.columns) == ["text", "label"]
    assert list(second.columns) == ["text", "label", "extra"]
    assert (len(first), second.lines, second.columns["text"]) == (ROWS_PER_BLOCK, [ROWS_PER_BLOCK + 1], ["u"])


def test_lines_are_right_beyond_the_first_block(tmp_path):
    rows = [("one\ntwo", "a")] * ROWS_PER_BLOCK + [("", "b")]
    (tmp_path / "t.csv").write_bytes(csv_bytes(rows))
    with pytest.raises(DataError, match=rf"t\.csv:{2 * ROWS_PER_BLOCK + 2}: empty text"):
        load(tmp_path / "t.csv")


def test_an_open_quote_is_named_where_it_opens(tmp_path):
    (tmp_path / "t.csv").write_text('text,label\n"one\ntwo",a\n"open,a\n' + "more,b\n" * 50)
    with pytest.raises(DataError, match=r"t\.csv:4: bad quoting in the row that starts here"):
        load(tmp_path / "t.csv")


def test_a_long_text_is_no_fault(tmp_path):
    long = "word " * 100_000
    (tmp_path / "t.csv").write_bytes(csv_bytes([(long, "a")]))
    assert read(tmp_path / "t.csv") == [(2, long, "a")]


def test_parquet_text_that_is_not_utf8_is_named_by_row(tmp_path):
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 3], np.int32).tobytes()), pa.py_buffer(b"a\xff\xfe"))
    parquet.write_table(pa.table({"text": bad, "label": ["a", "b"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet:2: an unreadable value in column 'text'"):
        load(tmp_path / "t.parquet")


def test_a_parquet_column_named_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"]), pa.array(["a"])], names=["text", "text", "label"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="used twice, got 'text'"):
        load(tmp_path / "t.parquet")


def test_rows_left_out_are_counted(tmp_path):
    (tmp_path / "t.csv").write_bytes(csv_bytes([*labelled(), ("", "a"), ("no label", ""), (" ", "b")]))
    data = load(tmp_path / "t.csv", drop_empty=True)
    assert "train: 3 rows without text or label were left out." in data.notes
    assert data.facts["dropped_rows"] == {"train": 3}
    assert sum(map(len, data.splits.values())) == 20


def test_fewer_rows_than_classes_are_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(csv_bytes([(f"t{i}", "abcdef"[i % 6]) for i in range(60)]))
    with pytest.raises(DataError, match="fewer rows than classes, got 5; expected at least 6"):
        load(tmp_path / "t.csv", limit_rows=5)
    assert len(set(load(tmp_path / "t.csv", limit_rows=6).splits["train"].labels.tolist())) == 6


def test_files_of_a_folder_are_told_by_their_endings(tmp_path):
    for name in ("train.csv", "val.CSV", "train.csv.bak", "notes.txt"):
        (tmp_path / name).write_bytes(csv_bytes(labelled()))
    data = load(tmp_path)
    assert data.made_splits == ("test",)
    assert len(data.splits["validation"]) == 20
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(jsonl_bytes(labelled(), ensure_ascii=True)))
    with pytest.raises(DataError, match=r"two files for one split, got train\.csv and train\.jsonl\.gz"):
        load(tmp_path)


@pytest.mark.parametrize("source", ["missing.CSV", "missing.jsonl.gz", "./missing", "~/missing-data"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(source):
    with pytest.raises(DataError, match="no such file or folder"):
        load(source)


def test_more_held_back_rows_than_there_are_is_an_error(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)))
    assert len(load_data(DataConfig(source=str(file), test_rows=0, validation_rows=18)).splits["train"]) == 2
    with pytest.raises(DataError, match=r"data\.validation_rows: .* got 19; expected at most 18, .* Use --validation-rows 2\."):
        load_data(DataConfig(source=str(file), test_rows=0, validation_rows=19))
    with pytest.raises(DataError, match=r"data\.test_rows: .* got 500; expected at most 18"):
        load_data(DataConfig(source=str(file), test_rows=500))


def test_a_first_row_in_the_place_of_the_header_is_seen(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("shares fell,money\n" + "".join(f"text {n},{['money', 'sport'][n % 2]}\n" for n in range(20)))
    with pytest.raises(DataError, match=r"t\.csv:1: the header names the label column like one of its labels, got 'money'"):
        load_data(DataConfig(source=str(file)))
    with pytest.raises(DataError, match=r"t\.csv:1: the header names"):
        read_audit_table(DataConfig(source=str(file)))
    with pytest.raises(DataError, match=r"t\.csv:1: the header names"):
        load_split(file, DataConfig(), LabelMap(("money", "sport")), "single_label", "test")
    assert len(load_data(DataConfig(source=str(file), label_column="money")).labels) == 2
    file.write_text("text,money\n" + "".join(f"text {n},{['money', 'sport'][n % 2]}\n" for n in range(20)))
    assert len(load_data(DataConfig(source=str(file))).labels) == 2


def test_advice_fits_the_fault(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "a", "label": 0.5}\n')
    with pytest.raises(DataError, match=r"unusable label.* Fix these rows\.$"):
        load_data(DataConfig(source=str(file)))
    file.write_text('{"text": "a", "label": ""}\n')
    with pytest.raises(DataError, match=r"missing label.*--drop-empty"):
        load_data(DataConfig(source=str(file)))


def test_a_label_seen_only_in_test_is_named_with_those_of_training(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)))
    (tmp_path / "test.csv").write_text("text,label\na,1\nb,7\n")
    with pytest.raises(DataError, match=r"test\.csv:3: .* got '7'; expected one of 0, 1\. Correct the label"):
        load_data(DataConfig(source=str(tmp_path)))


def test_a_split_in_parts_is_read_in_order_and_whole(tmp_path):
    for part in range(2):
        rows = "".join(f"text {part} {n},{n % 2}\n" for n in range(10))
        (tmp_path / f"train-0000{part}-of-00002.csv").write_text("text,label\n" + rows)
    train = load_data(DataConfig(source=str(tmp_path), test_rows=0, validation_rows=2)).splits["train"]
    assert len(train) == 18
    assert list(train.texts) == sorted(train.texts)
    (tmp_path / "train-00001-of-00002.csv").unlink()
    with pytest.raises(DataError, match=r"some parts of a split are missing, got 1 like train-00000-of-00002\.csv; expected 2"):
        load_data(DataConfig(source=str(tmp_path)))


def test_text_that_is_left_out_is_said(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("Title,Description,Class Index\n" + "".join(f"title {n},more {n},{n % 2}\n" for n in range(20)))
    events = []
    load_data(DataConfig(source=str(file)), on_event=events.append)
    assert Note("Not read as text: Description. Columns are joined with --text-column Title,Description.") in events
    events.clear()
    found = load_data(DataConfig(source=str(file), text_columns=("Title,Description",)), on_event=events.append)
    assert found.facts["text_columns"] == ["Title", "Description"]
    assert found.splits["train"].texts[0].count("more") == 1
    assert not [event for event in events if isinstance(event, Note)]


def test_line_ends_and_quotes_that_csv_cannot_hold_are_named(tmp_path):
    (tmp_path / "mac.csv").write_bytes(b"text,label\ra,x\rb,y\r")
    with pytest.raises(DataError, match=r"mac\.csv:1: lines that end in a carriage return alone"):
        load_data(DataConfig(source=str(tmp_path / "mac.csv")))
    (tmp_path / "raw.tsv").write_text('text\tlabel\nfine\tx\n"so he said\ty\n')
    with pytest.raises(DataError, match=r"raw\.tsv:3: bad quoting .* its own quotation marks doubled; or give the table as JSON Lines"):
        load_data(DataConfig(source=str(tmp_path / "raw.tsv")))


def test_columns_that_are_not_used_are_not_read(tmp_path, monkeypatch):
    rows = 40
    not_utf8 = pa.array([b"\xff"] * rows).cast(pa.binary()).view(pa.string())
    table = pa.table({"text": [f"text {n}" for n in range(rows)], "label": ["a", "b"] * (rows // 2), "other": not_utf8})
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path)
    asked = []
    iter_batches = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile, "iter_batches", lambda file, **options: asked.extend(options["columns"] or ["all"]) or iter_batches(file, **options)
    )
    assert load(path).facts["label_column"] == "label"
    assert len(load_split(path, DataConfig(), LabelMap(("a", "b")), "single_label", "test")) == rows
    assert len(read_audit_table(DataConfig(source=str(path)))) == rows
    assert set(asked) == {"text", "label"}
    with pytest.raises(DataError, match=r"t\.parquet:1: an unreadable value in column 'other'"):
        list(read_blocks(path))
    with pytest.raises(DataError, match=r"t\.parquet:1: an unreadable value in column 'other'"):
        load(path, text_columns=("other",))
