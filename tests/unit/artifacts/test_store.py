"""Files are there whole or not at all; damage is seen; one writer at a time."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from lorabel.artifacts import store
from lorabel.artifacts.checkpoints import CheckpointStore
from lorabel.artifacts.history import History, read_history
from lorabel.artifacts.lock import RunLock
from lorabel.errors import ArtifactError, BusyError, StorageError
from lorabel.events import StepDone


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_the_old_file_and_exits_74(call, code, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    store.write_json(path, {"old": 1})

    def fails(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(StorageError, match=errno.errorcode[code]) as caught:
        store.write_json(path, {"new": 2})
    assert caught.value.exit_code == 74
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_flushed_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
    store.write_text(tmp_path / "a", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("content", ['{"a": 1, "a": 2}', "[1]", "{", '{"a": NaN}', "\xff", "[" * 200_000])
def test_odd_json_is_refused(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"a\.json"):
        store.read_json(path)


def test_links_pipes_folders_and_huge_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("link.json", "pipe.json", "folder.json", "missing.json"):
        with pytest.raises(ArtifactError):
            store.read_json(tmp_path / name)
    monkeypatch.setattr(store, "LARGEST_JSON_BYTES", 1)
    with pytest.raises(ArtifactError, match="too large"):
        store.read_json(tmp_path / "real.json")


def save_three(folder):
    checkpoints = CheckpointStore(folder)
    for step in (10, 20, 30):
        checkpoints.save(step, {"values": torch.arange(50) + step}, {"position": {"step": step}})
    return checkpoints


def test_the_newest_by_counter_is_taken_and_two_are_kept(tmp_path):
    checkpoints = save_three(tmp_path)
    assert len(list(tmp_path.glob("step-*"))) == 2
    os.utime(next(tmp_path.glob("step-0000000020*")), (2**31, 2**31))
    assert checkpoints.newest(pytest.fail).step == 30
    checkpoints.save(30, {"values": torch.zeros(1)}, {})
    assert checkpoints.newest(pytest.fail).tensors["values"].numel() == 1


MUTATIONS = ["flip", "truncate", "zero", "empty", "delete", "swap"]


@pytest.mark.parametrize("name", ["state.safetensors", "meta.json", "manifest.json"])
@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("place", [0.05, 0.5, 0.95])
def test_a_damaged_checkpoint_is_seen_said_and_passed_over(name, mutation, place, tmp_path):
    checkpoints = save_three(tmp_path)
    newest, older = sorted(tmp_path.glob("step-*"), reverse=True)
    damage(newest / name, older / name, mutation, place)
    said = []
    found = checkpoints.newest(said.append)
    assert found.step == 20
    assert torch.equal(found.tensors["values"], torch.arange(50) + 20)
    assert len(said) == 1
    assert newest.name in said[0]


def damage(path, other, mutation, place):
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) - 1))
    if mutation == "flip":
        content[at] ^= 0x01
    elif mutation == "truncate":
        content = content[:at]
    elif mutation == "zero":
        content[at : at + 16] = bytes(len(content[at : at + 16]))
        content[at] ^= 0x80
    elif mutation == "empty":
        content = bytearray()
    elif mutation == "swap":
        content = bytearray(other.read_bytes())
    path.write_bytes(content)
    if mutation == "delete":
        path.unlink()


def test_all_damaged_gives_none(tmp_path):
    checkpoints = save_three(tmp_path)
    for folder in tmp_path.glob("step-*"):
        (folder / "meta.json").write_text("{}")
    said = []
    assert checkpoints.newest(said.append) is None
    assert len(said) == 2


@pytest.mark.parametrize("call", ["rename", "fsync", "replace"])
def test_a_failed_save_keeps_the_last_good_one(call, tmp_path, monkeypatch):
    checkpoints = save_three(tmp_path)

    def fails(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(StorageError):
            checkpoints.save(40, {"values": torch.zeros(3)}, {})
    assert checkpoints.newest(pytest.fail).step == 30
    assert not list(tmp_path.glob(".writing-*"))


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path):
    code = f"from lorabel.artifacts.lock import RunLock; from pathlib import Path; import time\nwith RunLock(Path({str(tmp_path / '.lock')!r})):\n print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=str(process.pid)) as caught, RunLock(tmp_path / ".lock"):
        pass
    assert caught.value.exit_code == 75
    process.kill()
    process.wait()
    with RunLock(tmp_path / ".lock"):
        pass


def test_history_drops_lines_beyond_the_resumed_step_and_a_torn_last_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(path)
    for step in (1, 2, 3):
        history.append(StepDone(step, 3, step / 3, float("nan") if step == 1 else 0.5, 1e-3, 1.0, 10.0, 1.0))
    history.close()
    with path.open("a") as file:
        file.write('{"kind": "st')
    assert [row["step"] for row in read_history(path)] == [1, 2, 3]
    assert read_history(path)[0]["loss"] is None
    again = History(path, keep_until_step=2)
    again.append(StepDone(3, 3, 1.0, 0.1, 1e-3, 1.0, 10.0, 1.0))
    again.close()
    assert [(row["step"], row["loss"]) for row in read_history(path)] == [(1, None), (2, 0.5), (3, 0.1)]
    path.write_text('{"kind": \n{"kind": "step", "step": 1}\n')
    with pytest.raises(ArtifactError, match="jsonl:1"):
        read_history(path)
