"""Data sets by name: which files are taken, and what is said when the hub is not there."""

import json
import socket
import time
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from huggingface_hub.errors import RevisionNotFoundError

from lorabel.config import DataConfig
from lorabel.data.load import load_data
from lorabel.data.readers import hub
from lorabel.errors import DataError

TWO_CONFIGURATIONS = ["cola/test-0.parquet", "cola/train-0.parquet", "sst2/train-0.parquet"]


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """Repositories by (id, revision asked for) -> file names; returns what was asked of it."""
    repositories, asked = {}, []

    def dataset_info(self, repo_id, *, revision=None, timeout=None):
        asked.append((repo_id, revision))
        if (repo_id, revision) not in repositories:
            raise RevisionNotFoundError("no such branch", response=SimpleNamespace(headers={}, request=None))
        names = repositories[repo_id, revision]
        return SimpleNamespace(sha=f"sha-of-{revision}", siblings=[SimpleNamespace(rfilename=name) for name in names])

    def hf_hub_download(repo_id, filename, *, repo_type, revision, etag_timeout):
        assert repo_type == "dataset"
        path = tmp_path / repo_id / revision / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        features = {"info": {"features": {"label": {"names": ["World", "Sports"], "_type": "ClassLabel"}}}}
        table = pa.table({"text": [f"{filename} {i}" for i in range(8)], "label": [i % 2 for i in range(8)]})
        parquet.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}), path)
        return str(path)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return SimpleNamespace(repositories=repositories, asked=asked)


def test_an_alias_is_resolved_pinned_and_its_class_names_used(fake_hub):
    fake_hub.repositories["fancyzhang/ag_news", None] = ["README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    data = load_data(DataConfig(source="ag_news"))
    assert data.facts["revision"] == "sha-of-None"
    assert data.labels.names == ("Sports", "World")
    assert data.made_splits == ("validation",)
    assert list(data.splits["test"].texts)[0] == "data/test-00000-of-00001.parquet 0"


def test_all_shards_are_read_in_order(fake_hub):
    fake_hub.repositories["a/b", None] = ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"]
    files, _ = hub.hub_files("a/b")
    assert [path.name for path in files["train"]] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    # Every file is asked for at the revision that goes into the record, not at a branch that moves.
    assert all("sha-of-None" in path.parts for paths in files.values() for path in paths)


def test_the_converted_copy_is_read_where_there_is_no_parquet(fake_hub):
    fake_hub.repositories["a/b", None] = ["script.py", "train.csv"]
    fake_hub.repositories["a/b", "refs/convert/parquet"] = ["default/train/0000.parquet", "default/test/0000.parquet", "default/validation/0000.parquet"]
    files, revision = hub.hub_files("a/b")
    assert set(files) == {"train", "validation", "test"}
    assert revision == "sha-of-refs/convert/parquet"


def test_files_of_one_name_in_folders_of_their_own_are_told_apart(fake_hub):
    """As the hub's converted copies are named."""
    fake_hub.repositories["a/b", None] = ["README.md"]
    fake_hub.repositories["a/b", "refs/convert/parquet"] = ["default/test/0000.parquet", "default/train/0000.parquet"]
    files = load_data(DataConfig(source="a/b")).facts["files"]
    assert sorted(files) == ["test/0000.parquet", "train/0000.parquet"]
    assert len(set(files.values())) == 2


def test_no_parquet_at_all_is_refused(fake_hub):
    fake_hub.repositories["a/b", None] = ["train.csv"]
    with pytest.raises(DataError, match="no Parquet files with a train split"):
        hub.hub_files("a/b")


def test_one_of_several_configurations_is_named_never_picked(fake_hub):
    fake_hub.repositories["org/glue", None] = TWO_CONFIGURATIONS
    with pytest.raises(DataError, match=r"several configurations.*cola, sst2.*org/glue/cola"):
        hub.hub_files("org/glue")
    files, _ = hub.hub_files("org/glue/sst2")
    assert [path.parent.name for path in files["train"]] == ["sst2"]
    assert "test" not in files
    with pytest.raises(DataError, match="got 'qnli'"):
        hub.hub_files("org/glue/qnli")


def test_the_default_configuration_comes_first():
    found = hub.parquet_by_configuration(["all/train-0.parquet", "default/train-0.parquet", "other/test-0.parquet", "data/notes.parquet"])
    assert list(found) == ["all", "default"]
    assert hub._choose("a/b", None, found) == {"train": ["default/train-0.parquet"]}


@pytest.mark.parametrize("name", ["a/b/c/d", "../x y", "http://x/y", "a//b"])
def test_what_cannot_be_a_name_is_not_asked_for(fake_hub, name):
    with pytest.raises(DataError, match="neither a file, a folder nor a data set name"):
        hub.hub_files(name)
    assert fake_hub.asked == []


def test_no_network_names_the_local_alternative(monkeypatch):
    def unknown_host(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"ag_news.*Give a CSV, TSV, JSONL or Parquet file, a folder"):
        load_data(DataConfig(source="ag_news"))
    assert time.monotonic() - started < 10


def test_offline_mode_is_respected(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"OfflineModeIsEnabled.*Give a CSV"):
        hub.hub_files("ag_news")


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(hub, "_DEADLINE_S", 0.05)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: time.sleep(2))
    started = time.monotonic()
    with pytest.raises(DataError, match="TimeoutError"):
        hub.hub_files("ag_news")
    assert time.monotonic() - started < 1


def test_our_own_faults_are_not_taken_for_the_networks(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", broken)
    with pytest.raises(ZeroDivisionError):
        hub.hub_files("ag_news")
