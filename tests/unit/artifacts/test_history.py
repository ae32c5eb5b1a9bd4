"""A damaged history is refused with its line; only a torn end is left out."""

import dataclasses

import pytest

from lorabel.artifacts import history, store
from lorabel.artifacts.history import History, read_history
from lorabel.artifacts.store import storage_errors
from lorabel.errors import ArtifactError, StorageError
from lorabel.events import Evaluated, StepDone

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


def steps(path):
    return [row["step"] for row in read_history(path)]


def test_a_process_that_dies_while_it_takes_up_its_history_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + GOOD.replace(b"1", b"2") + GOOD.replace(b"1", b"3"))

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store.os, "replace", die)
        patched.setattr(history.json, "dumps", die)
        with pytest.raises(KeyboardInterrupt):
            History(path, keep_until_step=2)
    assert steps(path) == [1, 2, 3]
    one = History(path, keep_until_step=2)
    assert steps(path) == [1, 2]
    one.append(Evaluated(step=4, **{field.name: 0.5 for field in dataclasses.fields(Evaluated) if field.name != "step"}))
    one.close()
    assert steps(path) == [1, 2, 4]
    History(path).close()
    assert steps(path) == []


def test_a_disk_that_is_full_is_said_once(tmp_path):
    event = StepDone(step=1, total_steps=2, epoch=0.5, loss=1.0, learning_rate=0.1, grad_norm=1.0, samples_per_second=1.0, seconds=1.0, member=0)
    history = History(tmp_path / "metrics.jsonl")
    history._file.close()
    history._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path):
        history.append(event)
    assert str(caught.value).startswith(f"{tmp_path / 'metrics.jsonl'}: cannot be written, got ENOSPC (No space left on device); ")


def test_a_history_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: cannot be read, got No such file"):
        read_history(tmp_path / "metrics.jsonl")
