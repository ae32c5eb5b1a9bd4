"""Which columns hold the text and the label."""

import pytest

from lorabel.data.columns import Columns, choose_columns, choose_text_columns
from lorabel.data.readers.base import Block
from lorabel.errors import DataError

ROWS = 12
LONG = [f"a longer piece of writing, number {i}" for i in range(ROWS)]
FEW = [f"class {i % 3}" for i in range(ROWS)]
IDS = [f"id-{i}" for i in range(ROWS)]


def block(**columns):
    return Block(columns, list(range(2, 2 + ROWS)))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": LONG, "label": FEW}, (("text",), "label")),
        ({"Label": FEW, "TEXT": LONG}, (("TEXT",), "Label")),
        ({"id": IDS, "review": LONG, "sentiment": FEW}, (("review",), "sentiment")),
        ({"idx": IDS, "stuff": LONG, "kind": FEW}, (("stuff",), "kind")),
        ({"stuff": LONG, "number": [i % 3 for i in range(ROWS)]}, (("stuff",), "number")),
        # The name decides before the values do.
        ({"sentence": FEW, "category": LONG}, (("sentence",), "category")),
    ],
)
def test_columns_are_told_by_name_then_by_values(columns, expected):
    assert choose_columns(block(**columns), "t.csv", None, None) == Columns(*expected)


def test_asked_for_columns_are_taken_in_the_order_given():
    assert choose_columns(block(title=LONG, body=LONG, label=FEW, other=FEW), "t.csv", ("body", "title"), "other") == Columns(("body", "title"), "other")


@pytest.mark.parametrize(
    ("columns", "text", "label", "message"),
    [
        ({"text": LONG, "label": FEW}, ("txt",), None, r"t\.csv: column.*'txt'.*Did you mean 'text'"),
        ({"text": LONG, "label": FEW}, None, "lable", r"'lable'.*Did you mean 'label'"),
        ({"text": LONG, "label": FEW}, ("label",), "label", "one column as text and label"),
        ({"text": LONG, "one": FEW, "two": FEW}, None, None, r"no label column can be told, got columns text, one, two.*--label-column"),
        ({"text": LONG}, None, None, "no label column"),
        ({"a": [1] * ROWS, "b": list(range(ROWS)), "label": FEW}, None, None, "no text column can be told.*--text-column"),
    ],
)
def test_what_cannot_be_told_is_asked_for(columns, text, label, message):
    with pytest.raises(DataError, match=message):
        choose_columns(block(**columns), "t.csv", text, label)


@pytest.mark.parametrize(
    ("values", "separator", "task"),
    [
        ([["a", "b"], [], ["a"]], None, "multi_label"),
        ([None, ["a"], None], None, "multi_label"),
        (["a", "b", ["a"]], None, "single_label"),
        (["a|b", "", "a"], "|", "multi_label"),
        (["a|b", "", "a"], None, "single_label"),
    ],
)
def test_lists_and_a_separator_make_several_labels(values, separator, task):
    found = choose_columns(block(text=LONG, label=values * 4), "t.jsonl", None, None, separator)
    assert (found.task, found.separator) == (task, separator)


def test_a_table_to_predict_needs_no_label():
    assert choose_text_columns(block(anything=IDS), "t.csv", None) == ("anything",)
    assert choose_text_columns(block(id=IDS, words=LONG), "t.csv", None) == ("words",)
    with pytest.raises(DataError, match="Did you mean 'words'"):
        choose_text_columns(block(id=IDS, words=LONG), "t.csv", ("word",))


def test_a_comma_joins_columns_unless_one_is_called_that():
    table = block(**{"title": IDS, "body": LONG, "a,b": LONG, "label": FEW})
    assert choose_columns(table, "t.csv", ["title, body"], "label").texts == ("title", "body")
    assert choose_text_columns(table, "t.csv", ["a,b"]) == ("a,b",)
    with pytest.raises(DataError, match="nope"):
        choose_columns(table, "t.csv", ["title,nope"], "label")
