"""The adapter folder: strict loading, every damage refused, nothing ever unpickled."""

import dataclasses
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from lorabel.artifacts.adapter import AdapterBundle, AdapterEncoder, AdapterManifest, Canary, expected_tensors, load_adapter, save_adapter
from lorabel.artifacts.store import file_sha256
from lorabel.errors import ArtifactError, StorageError
from lorabel.families import EncoderShape
from lorabel.heads import make_head
from lorabel.methods.base import make_method

SHAPE = EncoderShape("roberta", 16, 1, 2, 32, 50, 40, token_types=1, embedding_size=16, pad_token_id=1)


@pytest.fixture
def folder(tmp_path):
    method, head = make_method({"name": "lora", "rank": 2}), make_head(SHAPE, "native", "cls", 2)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(size, generator=generator) for name, size in expected_tensors(method, head, SHAPE).items()}
    manifest = AdapterManifest(
        labels=["no", "yes"],
        encoder=AdapterEncoder(name="tiny", revision=None, digest="d", shape=dataclasses.asdict(SHAPE)),
        tokenizer_digest="t",
        method={"name": "lora", **method.model_dump(mode="json")},
        head="native",
        pooling="cls",
        max_length_tokens=32,
        metrics={},
        peft_compatible=True,
        peft_reason=None,
        canary=Canary(logits=[[0.0, 1.0]]),
    )
    save_adapter(tmp_path / "adapter", AdapterBundle(manifest, tensors), "card")
    return tmp_path / "adapter"


def test_what_is_saved_is_loaded(folder):
    bundle = load_adapter(folder)
    assert bundle.manifest.labels == ["no", "yes"]
    assert bundle.tensors["layers.0.query.lora_A"].shape == (2, 16)
    again = folder.parent / "again"
    save_adapter(again, bundle, "card")
    assert file_sha256(again / "adapter_model.safetensors") == file_sha256(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ["lorabel.json", "adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("seed", range(60))
def test_mutated_bytes_are_refused(name, seed, folder):
    before = load_adapter(folder)
    chance = random.Random(f"{name}{seed}")
    path = folder / name
    content = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "truncate", "insert", "zero"])
    at = chance.randrange(len(content))
    if kind == "flip":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        content = content[:at]
    elif kind == "insert":
        content[at:at] = bytes([chance.randrange(1, 256)])
    else:
        content[at : at + 8] = bytes(8)
    if bytes(content) == path.read_bytes():
        pytest.skip("this mutation left the bytes as they were")
    path.write_bytes(content)
    try:
        bundle = load_adapter(folder)
    except ArtifactError:
        return
    # Only a change that says the same, such as one more space between two fields, may pass.
    assert name == "lorabel.json"
    assert bundle.manifest == before.manifest


def rewrite(folder, change):
    """Change the weights and vouch for them again: what a digest cannot see must be seen by the checks behind it."""
    path = folder / "adapter_model.safetensors"
    tensors = change(load_file(path))
    save_file(tensors, path, {"format": "pt"})
    manifest = json.loads((folder / "lorabel.json").read_text())
    manifest["files"]["adapter_model.safetensors"] = file_sha256(path)
    write_manifest(folder, manifest)


def write_manifest(folder, manifest):
    """Write a manifest with a fitting digest, where it is one."""
    try:
        manifest["digest"] = AdapterManifest.model_validate(manifest).content_digest()
    except ValidationError:
        pass
    (folder / "lorabel.json").write_text(json.dumps(manifest))


def test_a_changed_label_is_seen(folder):
    path = folder / "lorabel.json"
    path.write_text(path.read_text().replace('"yes"', '"yet"'))
    with pytest.raises(ArtifactError, match="another digest of its content"):
        load_adapter(folder)


def first(tensors):
    return sorted(tensors)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != first(t)}, "missing"),
        (lambda t: {**t, "extra": torch.zeros(1)}, "extra"),
        (lambda t: {**{k: v for k, v in t.items() if k != first(t)}, "renamed": t[first(t)]}, "missing"),
        (lambda t: {**t, first(t): t[first(t)].half()}, "another shape or type"),
        (lambda t: {**t, first(t): torch.zeros(7)}, "another shape or type"),
        (lambda t: {**t, first(t): t[first(t)] * float("nan")}, "not finite"),
        (lambda t: {**t, first(t): t[first(t)] + float("inf")}, "not finite"),
    ],
)
def test_vouched_for_but_wrong_tensors_are_refused(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(ArtifactError, match=message):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["yes", "yes"]}, "a label twice"),
        ({"labels": ["a", "b", "c"]}, "another shape"),
        ({"labels": ["only"]}, "at least 2"),
        ({"format_version": 99}, "version 99"),
        ({"method": {"name": "lora", "rank": 3}}, "another shape"),
        ({"method": {"name": "os.system"}}, "unknown name"),
        ({"head": "linear"}, "missing"),
        ({"temperature": 0}, "greater than 0"),
        ({"auto_map": "evil.py"}, "auto_map"),
        ({"files": {}}, "does not vouch"),
        ({"files": {"../../etc/passwd": "x"}}, "unknown file"),
        ({"encoder": {"name": "x", "revision": None, "digest": "d", "shape": {"family": "evil"}}}, "not an encoder shape"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change, message, folder):
    manifest = json.loads((folder / "lorabel.json").read_text())
    write_manifest(folder, {**manifest, **change})
    with pytest.raises(ArtifactError, match=message):
        load_adapter(folder)


def test_pickles_links_and_foreign_folders_are_refused(folder, tmp_path):
    weights = folder / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ArtifactError):
        load_adapter(folder)
    weights.unlink()
    (tmp_path / "elsewhere").write_bytes(kept)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="symbolic link"):
        load_adapter(folder)
    (folder / "lorabel.json").unlink()
    with pytest.raises(ArtifactError, match="lorabel import"):
        load_adapter(folder)
    with pytest.raises(ArtifactError, match="no such adapter folder"):
        load_adapter(tmp_path / "nothing")


def test_values_that_are_not_finite_are_never_saved(folder):
    bundle = load_adapter(folder)
    broken = {name: tensor * float("nan") for name, tensor in bundle.tensors.items()}
    before = file_sha256(folder / "adapter_model.safetensors")
    with pytest.raises(ArtifactError, match="not finite"):
        save_adapter(folder, AdapterBundle(bundle.manifest, broken), "card")
    assert file_sha256(folder / "adapter_model.safetensors") == before


@pytest.mark.parametrize("step", ["replace", "rename"])
def test_a_failed_save_leaves_the_old_folder(step, folder, monkeypatch):
    """Where a file cannot be written, and where the whole new folder cannot take the old one's place."""
    bundle, real = load_adapter(folder), os.rename

    def fails(source, target):
        if step == "rename" and Path(target).name.startswith("."):
            return real(source, target)  # The old one goes aside.
        if step == "rename" and Path(source).name.endswith(".old"):
            return real(source, target)  # And comes back.
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(StorageError):
        save_adapter(folder, bundle, "card")
    monkeypatch.undo()
    assert load_adapter(folder).manifest.labels == ["no", "yes"]


def test_a_replaced_folder_leaves_nothing_beside_it(folder):
    bundle = load_adapter(folder)
    before = {path.name for path in folder.parent.iterdir()}
    save_adapter(folder, bundle, "another card")
    assert {path.name for path in folder.parent.iterdir()} == before
    assert (folder / "README.md").read_text() == "another card"
