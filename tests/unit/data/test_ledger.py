"""A damaged ledger is refused with its line, and openings from several processes are all counted."""

import multiprocessing

import pytest

from lorabel.data.ledger import TestLedger
from lorabel.errors import ArtifactError


@pytest.mark.parametrize("line", [b"[1]", b"null", b"{}", b'{"split"', b'{"split": "\xff"}', b"\x00"])
def test_damage_is_refused_with_its_line(line, tmp_path):
    ledger = TestLedger(tmp_path)
    ledger.record("a", "train", "one")
    with ledger.path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ArtifactError, match=r"jsonl:2: "):
        ledger.count("a")


def record_some(folder):
    for _ in range(20):
        TestLedger(folder).record("a", "train", "one")


def test_openings_from_two_processes_are_all_counted(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=record_some, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert TestLedger(tmp_path).count("a") == 40
