"""What is removed from a folder, and in which order."""

import shutil

import pytest

from lorabel.workflows.out_folder import clear_folder


def filled(folder):
    (folder / "cells" / "00").mkdir(parents=True)
    for name in ("compare.json", "compare.lock", "table.md", "cells/00/state"):
        (folder / name).write_text("x")
    return folder, folder / "compare.lock", folder / "compare.json"


def test_all_but_the_lock_goes(tmp_path):
    folder, lock, record = filled(tmp_path)
    clear_folder(folder, lock, record)
    assert [path.name for path in folder.iterdir()] == ["compare.lock"]
    clear_folder(folder, lock, record)


def test_the_record_goes_last(tmp_path, monkeypatch):
    """A kill on the way leaves a folder that still says what it is, so that --overwrite takes it again."""
    folder, lock, record = filled(tmp_path)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        clear_folder(folder, lock, record)
    assert record.exists()
