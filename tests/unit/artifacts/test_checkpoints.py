"""A manifest of another make is damage like any other: said, and the checkpoint before it is used."""

import json

import pytest
import torch

from lorabel.artifacts.checkpoints import CheckpointStore


@pytest.mark.parametrize("digests", ["text", [], 3, None, {}, {"state.safetensors": 1, "meta.json": None}])
def test_odd_digests_are_passed_over(digests, tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, {"w": torch.full((3,), float(step))}, {"step": step})
    manifest = next(tmp_path.glob("step-0000000002-*")) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sha256": digests}))
    said = []
    assert store.newest(said.append).step == 1
    assert len(said) == 1
    assert "step-0000000002" in said[0]
