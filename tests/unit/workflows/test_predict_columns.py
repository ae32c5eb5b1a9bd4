"""`predict` on long tables whose rows do not all look alike: columns stay in line, or the table is refused."""

import csv
import errno
import gzip
import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from lorabel.data.files import read_blocks
from lorabel.data.readers.base import ROWS_PER_BLOCK
from lorabel.errors import ConfigError, DataError, StorageError
from lorabel.events import Note
from lorabel.inference.answers import AnswerRule
from lorabel.workflows import predict, table_writing


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """A predictor that calls everything `a`."""

    def explain(texts):
        return [SimpleNamespace(label="a", score=0.75, probabilities=np.array([0.75, 0.25])) for _ in texts]

    predictor = SimpleNamespace(labels=SimpleNamespace(names=("a", "b")), explain=explain, rule=AnswerRule())
    monkeypatch.setattr(predict, "load_predictor", lambda *_, **__: (predictor, SimpleNamespace(trained_columns=None)))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_another_order_of_keys_stays_in_line(tmp_path):
    rows = [{"id": "1", "text": "one"}] * ROWS_PER_BLOCK + [{"text": "two", "id": "2"}]
    result = predict.run_predict(tmp_path, write(tmp_path / "in.jsonl", rows), tmp_path / "out.csv", threads=1)
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert result.rows == len(found) == len(rows)
    assert found[0] == {"id": "1", "text": "one", "predicted_label": "a", "score": "0.75", "prob_a": "0.75", "prob_b": "0.25"}
    assert found[-1] == {"id": "2", "text": "two", "predicted_label": "a", "score": "0.75", "prob_a": "0.75", "prob_b": "0.25"}


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.csv.gz", None])
def test_line_ends_within_a_text_are_read_back(name, tmp_path, capfd):
    texts = ["a\rb", "a\r\nb", "a\nb", "ends\r", 'a "word"', "plain"]
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    output = tmp_path / (name or "printed.csv")
    predict.run_predict(tmp_path, source, output if name else None, threads=1)
    if name is None:
        output.write_text(capfd.readouterr().out, newline="")
    assert [text for block in read_blocks(output) for text in block.columns["text"]] == texts
    content = gzip.decompress(output.read_bytes()) if name == "out.csv.gz" else output.read_bytes()
    assert content.endswith(b"\n")
    assert not content.endswith(b"\r\n")


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_a_key_that_comes_late_is_refused_and_nothing_is_left(tmp_path, name):
    rows = [{"text": "one"}] * ROWS_PER_BLOCK + [{"text": "two", "late": 1}]
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match=rf"in\.jsonl:{ROWS_PER_BLOCK + 1}: a key .* got 'late'; expected text"):
        predict.run_predict(tmp_path, source, tmp_path / name, threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_mixed_types_in_a_parquet_column_are_refused(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "one", "id": 1}, {"text": "two", "id": "x"}])
    with pytest.raises(DataError, match=r"one type in each column\. Write \.jsonl"):
        predict.run_predict(tmp_path, source, tmp_path / "out.parquet", threads=1)
    assert predict.run_predict(tmp_path, source, tmp_path / "out.jsonl", threads=1).rows == 2


def give(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def parquet_bytes(texts):
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"text\none\ntwo\n",
        b"\xef\xbb\xbftext\none\ntwo\n",
        b'{"text": "one"}\n{"text": "two"}\n',
        gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'),
        gzip.compress(b"text\none\ntwo\n"),
        parquet_bytes(["one", "two"]),
    ],
    ids=["csv", "csv with a mark", "jsonl", "packed jsonl", "packed csv", "parquet"],
)
def test_standard_input_is_read_as_what_it_is(content, monkeypatch, tmp_path):
    give(monkeypatch, content)
    notes = []
    assert predict.run_predict(tmp_path, "-", tmp_path / "out.csv", threads=1, on_event=notes.append).rows == 2
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["one", "two"]
    assert Note("Text from text.") in notes


@pytest.mark.parametrize(
    ("content", "message"), [(b"text,id\n,1\n", "standard input:2: empty text"), (b"text,id\na\n", "standard input:2: another number of fields")]
)
def test_what_is_wrong_on_standard_input_is_said_of_it(content, message, monkeypatch, tmp_path):
    give(monkeypatch, content)
    with pytest.raises(DataError, match=message):
        predict.run_predict(tmp_path, "-", tmp_path / "out.csv", threads=1)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_a_table_without_rows_is_refused_in_every_format(name, tmp_path):
    (tmp_path / "in.csv").write_text("text\n")
    with pytest.raises(DataError, match=r"in\.csv: no rows"):
        predict.run_predict(tmp_path, str(tmp_path / "in.csv"), tmp_path / name, threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(("name", "message"), [("out.parquet.gz", "packed Parquet"), ("out.gz", "unknown kind"), ("out", "unknown kind")])
def test_a_name_whose_ending_promises_something_else_is_refused(name, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        predict.run_predict(tmp_path, "-", tmp_path / name, threads=1)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_rows_without_a_text_can_be_left_unanswered(name, monkeypatch, tmp_path):
    give(monkeypatch, b"text,id\none,1\n,2\n  ,3\ntwo,4\n")
    result = predict.run_predict(tmp_path, "-", tmp_path / name, threads=1, keep_empty=True)
    assert result.rows == 4
    assert sum(result.counts.values()) == 2
    if name.endswith("parquet"):
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(tmp_path / name).to_pylist()
    elif name.endswith("jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    else:
        with (tmp_path / name).open(newline="") as file:
            rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["predicted_label"] is None for row in rows] == [False, True, True, False]
    assert [row["score"] is None for row in rows] == [False, True, True, False]


def test_parquet_columns_have_their_types_where_the_first_rows_have_no_answer(tmp_path):
    rows = [{"text": ""}] * ROWS_PER_BLOCK + [{"text": "two"}]
    predict.run_predict(tmp_path, write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet", threads=1, keep_empty=True)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert (table.schema.field("predicted_label").type, table.schema.field("score").type) == (pa.string(), pa.float64())
    assert table["predicted_label"].to_pylist()[-1] == "a"


def test_parquet_columns_keep_the_types_that_they_had(tmp_path):
    types = {
        "text": pa.string(),
        "big": pa.uint64(),
        "late": pa.large_string(),
        "when": pa.timestamp("ms", "UTC"),
        "kind": pa.dictionary(pa.int8(), pa.string()),
    }
    rows = ROWS_PER_BLOCK + 1
    late = [None] * ROWS_PER_BLOCK + ["here"]
    values = {"text": ["one"] * rows, "big": [2**64 - 1] * rows, "late": late, "when": [1_700_000_000_000] * rows, "kind": ["x"] * rows}
    parquet.write_table(pa.table({name: pa.array(values[name], type=types[name]) for name in types}), tmp_path / "in.parquet")
    predict.run_predict(tmp_path, str(tmp_path / "in.parquet"), tmp_path / "out.parquet", threads=1)
    before, after = parquet.read_table(tmp_path / "in.parquet"), parquet.read_table(tmp_path / "out.parquet")
    assert after.select(before.column_names).equals(before)


def test_class_names_in_the_place_of_numbers_are_written_as_text(tmp_path):
    info = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["one", "two"], "label": [1, 0]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "in.parquet")
    predict.run_predict(tmp_path, str(tmp_path / "in.parquet"), tmp_path / "out.parquet", threads=1)
    assert parquet.read_table(tmp_path / "out.parquet")["label"].to_pylist() == ["yes", "no"]


@pytest.mark.parametrize(("first", "later", "kind"), [(None, "here", pa.string()), (1, 0.5, pa.float64()), ([], ["a"], pa.list_(pa.string()))])
def test_parquet_columns_have_room_for_what_comes_late(first, later, kind, tmp_path):
    rows = [{"text": "one", "more": first}] * ROWS_PER_BLOCK + [{"text": "two", "more": later}]
    predict.run_predict(tmp_path, write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet", threads=1)
    column = parquet.read_table(tmp_path / "out.parquet")["more"]
    assert (column.type, column.to_pylist()[-1]) == (kind, later)


@pytest.mark.parametrize("later", ["x", 2**63, {"a": 1}])
def test_what_no_parquet_column_can_hold_is_refused_before_anything_is_classified(later, tmp_path, monkeypatch):
    predictor = predict.load_predictor(tmp_path)[0]
    monkeypatch.setattr(predictor, "explain", lambda _texts: pytest.fail("classified"))
    rows = [{"text": "one", "id": 1}] * ROWS_PER_BLOCK + [{"text": "two", "id": later}]
    with pytest.raises(DataError, match=r"one type in each column\. Write \.jsonl"):
        predict.run_predict(tmp_path, write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet", threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "jsonl"])
@pytest.mark.parametrize("refusing", ["open", "write", "close"])
def test_a_disk_that_refuses_text_is_said(ending, refusing, tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            if refusing == "write":
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

        def close(self):
            super().close()
            if refusing == "close":
                raise OSError(errno.ENOSPC, "No space left on device")

    def opened(_path, _is_packed):
        if refusing == "open":
            raise OSError(errno.ENOSPC, "No space left on device")
        return Full()

    monkeypatch.setattr(table_writing, "_open_text", opened)
    with pytest.raises(StorageError, match=rf"out\.{ending}: cannot be written, got ENOSPC"):
        predict.run_predict(tmp_path, write(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / f"out.{ending}", threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_what_fails_while_a_table_is_open_is_not_blamed_on_its_disk(kind, tmp_path):
    def fill():
        with table_writing.open_writer(tmp_path / f"out.{kind}", kind, {}) as writer:
            writer.write({"text": ["a"]})
            raise OSError(errno.EIO, "Input/output error", "in.csv")

    with pytest.raises(OSError, match="Input/output error") as caught:
        fill()
    assert not isinstance(caught.value, StorageError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pyarrow tries to close again when the writer goes away.
@pytest.mark.parametrize("refusing", ["__init__", "write_table", "close"])
def test_a_disk_that_refuses_parquet_is_said(refusing, tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet.ParquetWriter, refusing, refuse)
    with pytest.raises(StorageError, match=r"out\.parquet: cannot be written, got ENOSPC"):
        predict.run_predict(tmp_path, write(tmp_path / "in.jsonl", [{"text": "one"}]), tmp_path / "out.parquet", threads=1)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("content", "warns"),
    [("Shares fell again\nRain\n", True), ("text\nShares fell again\n", False), ("Shares fell,id\nRain,1\n", False), ("words\nRain\n", False)],
)
def test_a_first_text_in_the_place_of_a_header_is_warned_of(content, warns, tmp_path):
    (tmp_path / "in.csv").write_text(content)
    notes = []
    predict.run_predict(tmp_path, str(tmp_path / "in.csv"), tmp_path / "out.csv", threads=1, on_event=notes.append)
    warnings = [note.text for note in notes if isinstance(note, Note) and note.is_warning]
    assert ["'Shares fell again' is taken for the header" in text for text in warnings] == [True] * warns


def test_numbers_that_json_has_no_form_for_are_null(tmp_path):
    values = pa.array([{"deep": [float("inf"), 1.0]}, {"deep": [2.0]}])
    parquet.write_table(pa.table({"text": ["one", "two"], "x": [float("nan"), 0.5], "y": values}), tmp_path / "in.parquet")
    predict.run_predict(tmp_path, str(tmp_path / "in.parquet"), tmp_path / "out.jsonl", threads=1)

    def refuse(name):
        raise AssertionError(name)

    first, second = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (first["x"], first["y"], second["x"], second["y"]) == (None, {"deep": [None, 1.0]}, 0.5, {"deep": [2.0]})
