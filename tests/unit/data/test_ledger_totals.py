"""The ledger: each opening gets its own total, and a damaged ledger takes no more lines."""

import fcntl
import json
import subprocess
import sys
import threading
from datetime import datetime

import pytest

from lorabel.data.ledger import TestLedger
from lorabel.errors import ArtifactError, StorageError

GOOD = b'{"time": "2026-01-01T00:00:00+00:00", "split": "x", "verb": "evaluate", "run": "a"}\n'


def test_a_line_says_when_what_and_by_which_verb(tmp_path):
    ledger = TestLedger(tmp_path / "runs")
    ledger.record("x", "evaluate", "naïve run")
    line = json.loads(ledger.path.read_bytes())
    assert {key: line[key] for key in ("split", "verb", "run")} == {"split": "x", "verb": "evaluate", "run": "naïve run"}
    assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0


def test_processes_at_once_each_get_their_own_total(tmp_path):
    program = "import sys; from pathlib import Path; from lorabel.data.ledger import TestLedger\nfor _ in range(20): print(TestLedger(Path(sys.argv[1])).record('x', 'v', 'r'))"
    workers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    totals = [int(total) for worker in workers for total in worker.communicate(timeout=60)[0].split()]
    assert sorted(totals) == list(range(1, 81))
    assert TestLedger(tmp_path).count("x") == 80


def test_an_opening_waits_for_the_one_being_written(tmp_path):
    ledger, totals = TestLedger(tmp_path), []
    writer = threading.Thread(target=lambda: totals.append(ledger.record("x", "evaluate", "b")))
    with ledger.path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        other.write(GOOD)
    writer.join(10)
    assert totals == [2]


@pytest.mark.parametrize("last", [GOOD[:30], GOOD[:-1], b"\n", b"\xff\xfe\n", b"[]\n", b'"x"\n', b"{}\n", b"null\n"])
def test_a_damaged_line_is_reported_and_takes_no_more_lines(tmp_path, last):
    ledger = TestLedger(tmp_path)
    ledger.path.write_bytes(GOOD + last)
    for act in (lambda: ledger.count("x"), lambda: ledger.record("x", "evaluate", "b")):
        with pytest.raises(ArtifactError, match=r"jsonl:2: damaged line"):
            act()
    assert ledger.path.read_bytes() == GOOD + last


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        TestLedger(tmp_path / "file").record("x", "evaluate", "a")
    ledger = TestLedger(tmp_path)
    ledger.path.mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        ledger.count("x")
