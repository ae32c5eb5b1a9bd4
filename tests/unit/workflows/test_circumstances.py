"""Whether a run may go on: other inputs are refused, another machine is said, and what earlier versions did not keep counts as the same."""

import pytest

from lorabel.errors import DataError
from lorabel.workflows.circumstances import check_circumstances

NOW = {"inputs": {"tokenizer": "t", "encoder": "e", "train": "a"}, "head": ["linear", "mean"], "compute": {"device": "cpu", "torch": "2.9"}}


def said(saved):
    notes = []
    check_circumstances(saved, NOW, notes.append)
    return [note.text for note in notes]


@pytest.mark.parametrize("saved", [{}, {"inputs": {"tokenizer": "t", "train": "a"}, "compute": {"device": "cpu"}}, NOW])
def test_what_was_not_kept_counts_as_the_same(saved):
    assert said(saved) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": "f"}, "the encoder changed since the run stopped, got another digest of encoder;"),
        ({"train": "b", "tokenizer": "u"}, "the data changed since the run stopped, got another digest of tokenizer, train;"),
        ({"encoder": "f", "train": "b"}, "the data and the encoder changed since the run stopped, got another digest of encoder, train;"),
        ({"validation": "v"}, "the data changed since the run stopped, got another digest of validation;"),
    ],
)
def test_other_inputs_are_refused(changed, message):
    with pytest.raises(DataError, match=message):
        said({**NOW, "inputs": {**NOW["inputs"], **changed}})


def test_another_head_is_refused():
    with pytest.raises(DataError, match="the head is another, got linear on mean; expected native on cls, with which the run began"):
        said({**NOW, "head": ["native", "cls"]})


def test_another_torch_is_said():
    (text,) = said({**NOW, "compute": {"device": "cpu", "torch": "2.8"}})
    assert text.startswith("The run goes on with torch 2.9 (before: 2.8), so its bits will differ")
