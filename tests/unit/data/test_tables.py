"""Reading labelled tables: strings stay strings, and what is wrong is said with file, line and value."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabel.config import DataConfig
from lorabel.data.files import read_blocks
from lorabel.data.load import load_data
from lorabel.errors import DataError

ODD = ["NA", "null", "None", "1.0", "2024-01-01", "TRUE", "nan", " padded ", "emoji 🙂", "a,b", 'quote "x"', "line\nbreak", "tab\there", "é", "ﬁ", "#39;"]


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), encoding="utf-8")
    return path


def write_parquet(path, rows):
    parquet.write_table(pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]}), path)
    return path


def texts_of(path):
    return [text for block in read_blocks(path) for text in block.columns["text"]]


def load(path, **options):
    return load_data(DataConfig(source=str(path), **options))


@pytest.mark.parametrize(
    ("name", "write"),
    [("t.csv", write_csv), ("t.tsv", lambda p, r: write_csv(p, r, "\t")), ("t.jsonl", write_jsonl), ("t.parquet", write_parquet)],
)
def test_odd_strings_stay_what_they_are(name, write, tmp_path):
    rows = [(text, "ab"[index % 2]) for index, text in enumerate(ODD)]
    assert texts_of(write(tmp_path / name, rows)) == ODD


text_values = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"), min_size=1).filter(lambda text: text.strip())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(text_values, text_values), min_size=1, max_size=12))
def test_any_text_survives_csv_tsv_jsonl_and_parquet(tmp_path, rows):
    for name, write in (("t.csv", write_csv), ("t.jsonl", write_jsonl), ("t.parquet", write_parquet)):
        assert texts_of(write(tmp_path / name, rows)) == [text for text, _ in rows]
    assert texts_of(write_csv(tmp_path / "t.tsv", rows, "\t")) == [text for text, _ in rows]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_place(tmp_path, content):
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,label\n" + content)
    message = ""
    try:
        list(read_blocks(path))
    except DataError as error:
        message = str(error)
    assert message == "" or ("x.csv:" in message and "got" in message)


def test_byte_order_mark_and_gzip(tmp_path):
    path = tmp_path / "x.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"\xef\xbb\xbftext,label\nhello,a\n")
    assert texts_of(path) == ["hello"]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match="intact file"):
        texts_of(path)


def test_semicolons_and_tabs_are_told_from_the_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text;label\na, b;x\n")
    assert texts_of(path) == ["a, b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no header"),
        (b"text,text\na,b\n", "used twice"),
        (b"text,\na,b\n", "without a name"),
        (b"text,label\nok,a\nbad,b,c\n", r"x\.csv:3.*another number of fields, got 3; expected 2"),
        (b'text,label\n"one\ntwo",a\nbad\n', r"x\.csv:4"),
        (b"text,label\nok,a\n\xff\xfe,b\n", r"x\.csv:3.*not UTF-8.*offset 0"),
        (b"text,label\nok,a\nno\0pe,b\n", r"x\.csv:3.*NUL byte, got offset 2"),
        (b'text,label\n"open,a\n', "quoting"),
    ],
)
def test_broken_csv_is_refused_with_the_line(content, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_blocks(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 1', r"x\.jsonl:2.*not JSON"),
        ("[1]", r"x\.jsonl:2.*not an object"),
        ('{"text": "a", "text": "b"}', r"^\S*x\.jsonl:2: a key used twice, got 'text'"),
        ("[" * 100_000, r"x\.jsonl:2"),
    ],
)
def test_broken_jsonl_is_refused_with_the_line(line, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "ok", "label": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(read_blocks(path))


def test_broken_parquet_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 nothing of the kind PAR1")
    with pytest.raises(DataError, match="expected a Parquet file"):
        list(read_blocks(path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), (" ", "y")], r":3: empty text"),
        ([("a", "x"), ("b", "")], r":3: missing label"),
        ([("a", "x"), ("b", "x")], "a single class"),
    ],
)
def test_unusable_rows_are_refused_with_line_and_value(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(write_csv(tmp_path / "x.csv", rows))


def test_many_faults_show_the_first_five_and_the_total(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(10)] + [("", "a")] * 12
    with pytest.raises(DataError, match=r"12 rows in all") as caught:
        load(write_csv(tmp_path / "x.csv", rows))
    assert str(caught.value).count("empty text") == 5
    assert len(load(write_csv(tmp_path / "x.csv", rows), drop_empty=True).splits["train"]) < 10


@pytest.mark.parametrize("value", [["a", "b"], {"x": 1}, 1.5])
def test_labels_that_cannot_be_one_are_refused(value, tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [("t", "a"), ("u", value)])
    with pytest.raises(DataError, match=r"x\.jsonl:2: unusable label"):
        load(path)


def test_a_label_that_only_test_has_is_refused_with_its_place(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"t{i}", "ab"[i % 2]) for i in range(20)])
    write_csv(tmp_path / "test.csv", [("x", "a"), ("y", "typo")])
    with pytest.raises(DataError, match=r"test\.csv:3: a label that the training split lacks, got 'typo'"):
        load(tmp_path)


def test_integer_labels_are_ordered_by_value_and_class_names_come_from_metadata(tmp_path):
    rows = [(f"t{i}", str(label)) for i, label in enumerate([10, 2, 1] * 12)]
    assert load(write_csv(tmp_path / "x.csv", rows)).labels.names == ("1", "2", "10")
    table = pa.table({"text": [f"t{i}" for i in range(20)], "label": [i % 2 for i in range(20)]})
    features = {"info": {"features": {"label": {"names": ["ham", "spam"], "_type": "ClassLabel"}}}}
    parquet.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}), tmp_path / "y.parquet")
    assert load(tmp_path / "y.parquet").labels.names == ("ham", "spam")


def write_named(path, labels):
    features = {"info": {"features": {"label": {"names": ["ham", "spam"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": [f"{path.stem} {i}" for i in range(len(labels))], "label": labels})
    parquet.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}), path)


def test_a_test_split_without_any_label_is_left_out(tmp_path):
    write_named(tmp_path / "train.parquet", [0, 1] * 20)
    write_named(tmp_path / "test.parquet", [-1] * 9)
    data = load(tmp_path)
    assert "test: no row has a label, so nothing can be scored on it; it is left out." in data.notes
    assert list(data.facts["files"]) == ["train.parquet"]
    assert data.made_splits == ("test", "validation")
    assert load(tmp_path, test_rows=0).splits.keys() == {"train", "validation"}


def test_a_test_split_with_some_labels_is_not_left_out(tmp_path):
    write_named(tmp_path / "train.parquet", [0, 1] * 20)
    write_named(tmp_path / "test.parquet", [-1] * 8 + [1])
    with pytest.raises(DataError, match=r"test\.parquet:1: missing label, got None"):
        load(tmp_path)
    assert len(load(tmp_path, drop_empty=True).splits["test"]) == 1


def test_columns_are_found_named_or_asked_for(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,Headline,Category\n" + "".join(f"{i},story number {i},{'ab'[i % 2]}\n" for i in range(20)))
    data = load(path)
    assert data.facts["text_columns"] == ["Headline"]
    assert data.facts["label_column"] == "Category"
    joined = load(path, text_columns=("id", "Headline"))
    assert all(text.split()[0].isdecimal() for text in joined.splits["train"].texts)
    with pytest.raises(DataError, match="Did you mean 'Headline'"):
        load(path, text_columns=("Headlin",))
    path.write_text("foo,bar\n1,2\n3,4\n")
    with pytest.raises(DataError, match="--label-column"):
        load(path)


def test_unknown_sources_name_the_alternatives(tmp_path):
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(DataError, match="unknown kind of file"):
        load(tmp_path / "x.docx")
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "missing.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no training split"):
        load(tmp_path / "empty")


def test_the_sample_is_there_with_its_splits():
    data = load("sample")
    assert data.labels.names == ("Business", "Sci/Tech", "Sports", "World")
    assert sum(map(len, data.splits.values())) >= 600
    assert data.made_splits == ()


@pytest.mark.data
def test_real_sets_load_whole(data_folder):
    data = load(data_folder / "ag_news")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 54620, "validation": 2000, "test": 7600}
    trec = load(data_folder / "trec6")
    assert trec.made_splits == ("validation",)
    assert any("11 test rows" in note for note in trec.notes)
