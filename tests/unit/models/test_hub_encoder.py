"""Encoders by their name on the hub: which files are taken, which revision is kept, and that the cache answers the next time."""

import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from lorabel.config import EncoderConfig, load_config
from lorabel.events import ignore
from lorabel.models.checkpoint import load_tokenizer, load_weights, resolve_encoder
from lorabel.workflows.preparation import prepare


@pytest.fixture
def hub(tiny_encoder, tmp_path, monkeypatch):
    """A repository with a sentence encoder, and a cache; what was asked of them."""
    repository, cache, asked = tmp_path / "repository", tmp_path / "cache", []
    shutil.copytree(tiny_encoder("bert"), repository)
    (repository / "1_Pooling").mkdir()
    (repository / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (repository / "pytorch_model.bin").write_bytes(b"a pickle")

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None, local_files_only=False, etag_timeout=None):
        asked.append(("local" if local_files_only else "download", repo_id, revision))
        found = [path for path in cache.glob("*") if revision in (None, path.name)]
        if local_files_only and not found:
            raise LocalEntryNotFoundError("not in the cache")
        if not local_files_only:
            folder = cache / revision
            for path in (path for path in repository.rglob("*") if path.is_file()):
                name = str(path.relative_to(repository))
                if any(fnmatch(name, pattern) for pattern in allow_patterns):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, folder / name)
            found = [folder]
        return str(found[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo_id, *, revision=None, timeout=None: SimpleNamespace(sha=f"sha-of-{revision}"))
    return asked


def test_all_that_is_needed_is_taken_once_and_its_revision_kept(hub):
    source = resolve_encoder(EncoderConfig(name="someone/sentences"))
    assert (source.name, source.revision) == ("someone/sentences", "sha-of-None")
    assert hub == [("local", "someone/sentences", None), ("download", "someone/sentences", "sha-of-None")]
    assert not (source.folder / "pytorch_model.bin").exists()
    load_tokenizer(source.folder)
    assert load_weights(source)
    again = resolve_encoder(EncoderConfig(name="someone/sentences", revision="sha-of-None"))
    assert (again.folder, again.revision) == (source.folder, "sha-of-None")
    assert hub[2:] == [("local", "someone/sentences", "sha-of-None")]


def test_a_revision_that_is_asked_for_is_the_one_that_is_taken(hub):
    assert resolve_encoder(EncoderConfig(name="someone/sentences", revision="v2")).revision == "sha-of-v2"
    assert hub[0] == ("local", "someone/sentences", "v2")


def test_a_sentence_encoder_brings_how_it_pools(hub, news_table):
    prepared = prepare(load_config({"encoder": {"name": "someone/sentences"}, "data": {"source": str(news_table)}}), ignore)
    assert (prepared.head.kind, prepared.head.pooling) == ("linear", "mean")
